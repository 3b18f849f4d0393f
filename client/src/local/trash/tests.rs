//! That what goes to the trash is what was meant, and all of it.

use super::*;
use crate::local::scan::{ScanOptions, Scope, scan};
use crate::local::testing::{MemoryIndex, TestRoot, rel};
use tokio_util::sync::CancellationToken;

/// A folder with something in it, known to the index.
fn known_folder() -> (TestRoot, MemoryIndex) {
    let root = TestRoot::new();
    std::fs::create_dir_all(root.dir().join("d/sub")).unwrap();
    root.write("d/f", "f");
    root.write("d/sub/g", "g");
    std::os::unix::fs::symlink("x", root.dir().join("d/l")).unwrap();
    let mut index = MemoryIndex::default();
    // Stamps are to be relied on only once the clock has moved on.
    for _ in 0..100 {
        let options = ScanOptions::new(IgnoreRules::default(), CancellationToken::new());
        let found = scan(&root, &mut index, &Scope::Whole, &options).unwrap();
        index.apply(&found.updates);
        if found.again.is_empty() {
            return (root, index);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("the folder does not get quiet");
}

fn trash_folder(root: &TestRoot, index: &MemoryIndex, path: &str) -> Result<String, DiskError> {
    let node = index.find(path).unwrap().node;
    root.trash_folder(&rel(path), node, index, &IgnoreRules::default(), Durability::Now)
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (days, date) in [
        (0, "1970-01-01"),
        (-1, "1969-12-31"),
        (59, "1970-03-01"),
        (11_016, "2000-02-29"),
        (11_017, "2000-03-01"),
        (19_723, "2024-01-01"),
        (19_782, "2024-02-29"),
        (20_781, "2026-11-24"),
        (47_540, "2100-02-28"),
        (47_541, "2100-03-01"),
    ] {
        assert_eq!(date_of(days), date);
    }
}

#[test]
fn a_trashed_file_keeps_its_path_and_its_bytes() {
    let root = TestRoot::new();
    std::fs::create_dir(root.dir().join("d")).unwrap();
    for text in ["one", "two", "three"] {
        root.write("d/f", text);
        let stamp = root.stamp("d/f");
        let shown = root.trash(&rel("d/f"), &stamp, Durability::Now).unwrap();
        assert_eq!(std::fs::read_to_string(root.trash_path().join(shown)).unwrap(), text);
        assert_eq!(root.stat(&rel("d/f")).unwrap(), None);
    }
    // A file in the trash where a folder is needed.
    std::fs::remove_dir(root.dir().join("d")).unwrap();
    root.write("d", "a file now");
    let stamp = root.stamp("d");
    root.trash(&rel("d"), &stamp, Durability::Later).unwrap();
    root.write("g", "g");
    root.trash(&rel("g"), &root.stamp("g"), Durability::Later).unwrap();
    std::fs::create_dir(root.dir().join("g")).unwrap();
    root.write("g/f", "below");
    root.trash(&rel("g/f"), &root.stamp("g/f"), Durability::Later).unwrap();
    let mut texts: Vec<_> =
        root.trashed().into_values().map(|bytes| String::from_utf8(bytes).unwrap()).collect();
    texts.sort();
    assert_eq!(texts, ["a file now", "below", "g", "one", "three", "two"]);
}

#[test]
fn what_was_saved_since_stays() {
    let root = TestRoot::new();
    root.write("f", "seen");
    let seen = root.stamp("f");
    root.write("f", "saved");
    assert!(matches!(root.trash(&rel("f"), &seen, Durability::Now), Err(DiskError::Changed(_))));
    assert_eq!(root.read("f"), "saved");
    std::fs::remove_file(root.dir().join("f")).unwrap();
    assert!(matches!(root.trash(&rel("f"), &seen, Durability::Now), Err(DiskError::Vanished(_))));
    std::fs::create_dir(root.dir().join("d")).unwrap();
    let folder = root.stamp("d");
    assert!(matches!(root.trash(&rel("d"), &folder, Durability::Now), Err(DiskError::Changed(_))));
    assert!(root.trashed().is_empty());
}

#[test]
fn a_folder_goes_with_all_that_is_known_or_ignored_in_it() {
    let (root, index) = known_folder();
    std::fs::remove_file(root.dir().join("d/sub/g")).unwrap();
    root.write("d/sub/.g.swp", "left by an editor");
    let shown = trash_folder(&root, &index, "d").unwrap();
    let trashed = root.trash_path().join(shown);
    assert_eq!(std::fs::read_to_string(trashed.join("f")).unwrap(), "f");
    assert_eq!(std::fs::read_to_string(trashed.join("sub/.g.swp")).unwrap(), "left by an editor");
    assert_eq!(root.stat(&rel("d")).unwrap(), None);
}

#[test]
fn a_folder_with_anything_unknown_or_changed_stays() {
    let (root, index) = known_folder();
    let refused = |what: &str| match trash_folder(&root, &index, "d") {
        Err(DiskError::Changed(at)) => assert_eq!(at.as_str(), what),
        other => panic!("{what}: {other:?}"),
    };
    root.write("d/sub/new", "new");
    refused("d/sub/new");
    std::fs::remove_file(root.dir().join("d/sub/new")).unwrap();
    std::fs::create_dir(root.dir().join("d/empty")).unwrap();
    refused("d/empty");
    std::fs::remove_dir(root.dir().join("d/empty")).unwrap();
    root.write("d/sub/g", "edited");
    refused("d/sub/g");
    assert_eq!(root.read("d/sub/g"), "edited");
    assert!(root.trashed().is_empty());
}

#[test]
fn a_folder_made_anew_is_not_taken_for_the_old_one() {
    let (root, index) = known_folder();
    std::fs::rename(root.dir().join("d"), root.dir().join("e")).unwrap();
    std::fs::create_dir(root.dir().join("d")).unwrap();
    assert!(matches!(trash_folder(&root, &index, "d"), Err(DiskError::Changed(_))));
    std::fs::remove_dir(root.dir().join("d")).unwrap();
    std::os::unix::fs::symlink("e", root.dir().join("d")).unwrap();
    assert!(matches!(trash_folder(&root, &index, "d"), Err(DiskError::Changed(_))));
    assert_eq!(root.read("e/f"), "f");
}

#[test]
fn the_trash_is_emptied_of_what_is_old_only() {
    let root = TestRoot::new();
    let trash = root.trash_path();
    let old = date_of(days_now() - 31);
    let kept = date_of(days_now() - 30);
    for day in [old.as_str(), kept.as_str(), "not a date", "1999-12-31"] {
        std::fs::create_dir_all(trash.join(day).join("d")).unwrap();
        std::fs::write(trash.join(day).join("d/f"), "x").unwrap();
        let unwritable = std::os::unix::fs::PermissionsExt::from_mode(0o500);
        std::fs::set_permissions(trash.join(day).join("d"), unwritable).unwrap();
    }
    assert_eq!(root.empty_trash(30).unwrap(), 2);
    let mut left: Vec<_> =
        std::fs::read_dir(&trash).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [kept.as_str(), "not a date"]);
}
