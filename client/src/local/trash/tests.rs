//! That what goes to the trash is what was meant, and all of it.

use super::TrashFolderError::{Blocked, Disk};
use super::*;
use crate::local::scan::{ScanOptions, Scope, scan};
use crate::local::testing::{MemoryIndex, Mounted, TestRoot, rel};
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
        let options = ScanOptions::new(IgnoreRules, CancellationToken::new());
        let found = scan(&root, &mut index, &Scope::Whole, &options).unwrap();
        index.apply(&found.updates);
        if found.again.is_empty() {
            return (root, index);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("the folder does not get quiet");
}

fn trash_folder(root: &TestRoot, index: &MemoryIndex, path: &str) -> Result<String, TrashFolderError> {
    let node = index.find(path).unwrap().node;
    root.trash_folder(&rel(path), node, index, &IgnoreRules, Fate::Kept)
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
fn a_folder_goes_with_all_that_is_known_in_it() {
    let (root, index) = known_folder();
    std::fs::remove_file(root.dir().join("d/sub/g")).unwrap();
    let shown = trash_folder(&root, &index, "d").unwrap();
    let trashed = root.trash_path().join(shown);
    assert_eq!(std::fs::read_to_string(trashed.join("f")).unwrap(), "f");
    assert_eq!(root.stat(&rel("d")).unwrap(), None);
}

#[test]
fn what_is_ignored_stays_with_its_folder_and_its_rules() {
    for fate in [Fate::Kept, Fate::Freed] {
        let (root, mut index) = known_folder();
        root.write("d/sub/.keepstoneignore", "secret/\n*.log\n");
        let options = ScanOptions::new(IgnoreRules, CancellationToken::new());
        for _ in 0..100 {
            let found = scan(&root, &mut index, &Scope::Whole, &options).unwrap();
            index.apply(&found.updates);
            if found.again.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        std::fs::create_dir(root.dir().join("d/sub/secret")).unwrap();
        root.write("d/sub/secret/key", "key");
        root.write("d/sub/x.log", "log");
        let node = index.find("d").unwrap().node;
        let shown = root.trash_folder(&rel("d"), node, &index, &IgnoreRules, fate).unwrap();
        assert!(shown.contains("stays here"), "{shown}");
        assert_eq!(
            (root.read("d/sub/secret/key"), root.read("d/sub/x.log")),
            ("key".to_owned(), "log".to_owned())
        );
        assert_eq!(root.read("d/sub/.keepstoneignore"), "secret/\n*.log\n", "or they would be sent");
        for path in ["d/f", "d/l", "d/sub/g"] {
            assert_eq!(root.stat(&rel(path)).unwrap(), None, "{path}");
        }
        let expected: &[&str] = if fate == Fate::Kept { &["d/f", "d/l", "d/sub/g"] } else { &[] };
        assert_eq!(root.trashed().into_keys().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn what_goes_to_free_space_is_kept_if_the_server_has_another_version() {
    let (root, mut index) = known_folder();
    let [outdated, node] = ["d/sub/g", "d"].map(|path| index.find(path).unwrap().node);
    index.outdated.insert(outdated);
    root.trash_folder(&rel("d"), node, &index, &IgnoreRules, Fate::Freed).unwrap();
    assert_eq!(root.trashed().into_keys().collect::<Vec<_>>(), ["d/sub/g"]);
    assert_eq!(root.stat(&rel("d")).unwrap(), None);
}

#[test]
fn a_folder_with_anything_unknown_or_changed_stays() {
    let (root, index) = known_folder();
    let refused = |what: &str| match trash_folder(&root, &index, "d") {
        Err(Disk(DiskError::Changed(at))) => assert_eq!(at.as_str(), what),
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
fn a_folder_with_anything_that_was_never_sent_stays() {
    for path in ["d/new", "d/sub/g"] {
        let (root, mut index) = known_folder();
        root.write(path, "saved after the delete was planned");
        // A scan sees it before the folder goes.
        let options = ScanOptions::new(IgnoreRules, CancellationToken::new());
        for _ in 0..100 {
            let found = scan(&root, &mut index, &Scope::Whole, &options).unwrap();
            index.apply(&found.updates);
            if found.again.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let known = index.find(path).unwrap();
        assert_eq!(known.stamp, root.stamp(path), "{path}");
        index.unsent.insert(known.node);
        let refused = trash_folder(&root, &index, "d");
        assert!(matches!(&refused, Err(Disk(DiskError::Changed(at))) if at.as_str() == path), "{refused:?}");
        assert_eq!(root.read(path), "saved after the delete was planned");
        assert!(root.trashed().is_empty());
    }
}

#[test]
fn a_folder_made_anew_is_not_taken_for_the_old_one() {
    let (root, index) = known_folder();
    std::fs::rename(root.dir().join("d"), root.dir().join("e")).unwrap();
    std::fs::create_dir(root.dir().join("d")).unwrap();
    assert!(matches!(trash_folder(&root, &index, "d"), Err(Disk(DiskError::Changed(_)))));
    std::fs::remove_dir(root.dir().join("d")).unwrap();
    std::os::unix::fs::symlink("e", root.dir().join("d")).unwrap();
    assert!(matches!(trash_folder(&root, &index, "d"), Err(Disk(DiskError::Changed(_)))));
    assert_eq!(root.read("e/f"), "f");
}

/// What it is that keeps a folder from going.
fn blocked(root: &TestRoot, index: &MemoryIndex) -> String {
    match trash_folder(root, index, "d") {
        Err(Blocked { path, .. }) => {
            assert!(root.trashed().is_empty());
            path
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_no_scan_takes_in_is_named_when_it_keeps_a_folder() {
    use std::os::unix::ffi::OsStrExt;
    let (root, index) = known_folder();
    let not_utf8 = root.dir().join("d/sub").join(OsStr::from_bytes(b"x\xff"));
    std::fs::write(&not_utf8, "x").unwrap();
    assert_eq!(blocked(&root, &index), "d/sub/x\u{fffd}");
    std::fs::remove_file(not_utf8).unwrap();
    let pipe = root.dir().join("d/pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert_eq!(blocked(&root, &index), "d/pipe");
    std::fs::remove_file(pipe).unwrap();
    std::fs::create_dir(root.dir().join("d/.keepstone")).unwrap();
    assert_eq!(blocked(&root, &index), "d/.keepstone");
    std::fs::remove_dir(root.dir().join("d/.keepstone")).unwrap();
    trash_folder(&root, &index, "d").unwrap();
}

#[test]
fn what_may_not_be_read_is_named_when_it_keeps_a_folder() {
    use std::os::unix::fs::PermissionsExt;
    let test = "local::trash::tests::what_may_not_be_read_is_named_when_it_keeps_a_folder";
    if !crate::local::testing::as_another_user(test) {
        return;
    }
    let (root, index) = known_folder();
    root.write("d/secret", "x");
    std::fs::set_permissions(root.dir().join("d/secret"), PermissionsExt::from_mode(0o000)).unwrap();
    assert_eq!(blocked(&root, &index), "d/secret");
}

#[test]
fn what_no_scan_takes_in_because_of_rules_stays_with_its_folder() {
    let (root, index) = known_folder();
    for folder in ["d/sub/new/below", "d/state"] {
        std::fs::create_dir_all(root.dir().join(folder)).unwrap();
    }
    // Never taken in, for there is nothing else in it; and this program's own.
    for path in ["d/sub/new/below/.DS_Store", "d/state/state.db", "d/state/lock"] {
        root.write(path, "mine");
    }
    let shown = trash_folder(&root, &index, "d").unwrap();
    assert!(shown.contains("stays here"), "{shown}");
    for path in ["d/sub/new/below/.DS_Store", "d/state/state.db", "d/state/lock"] {
        assert_eq!(root.read(path), "mine");
    }
    assert_eq!(root.trashed().into_keys().collect::<Vec<_>>(), ["d/f", "d/l", "d/sub/g"]);
}

#[test]
fn what_is_mounted_in_an_ignored_folder_stays_with_that() {
    let (root, index) = known_folder();
    let at = root.dir().join("d/.Trash-1/deep/mnt");
    std::fs::create_dir_all(&at).unwrap();
    let Some(mounted) = Mounted::at(&at) else { return };
    std::fs::write(at.join("f"), "on another file system").unwrap();
    trash_folder(&root, &index, "d").unwrap();
    assert_eq!(root.read("d/.Trash-1/deep/mnt/f"), "on another file system");
    drop(mounted);
}

#[test]
fn a_folder_with_another_file_system_in_it_stays() {
    let (root, index) = known_folder();
    let path = "d/sub/mnt";
    let at = root.dir().join(path);
    std::fs::create_dir_all(&at).unwrap();
    let Some(mounted) = Mounted::at(&at) else { return };
    std::fs::write(at.join("f"), "on another file system").unwrap();
    assert_eq!(blocked(&root, &index), path);
    assert_eq!(root.read(&format!("{path}/f")), "on another file system");
    drop(mounted);
    std::fs::remove_dir(at).unwrap();
    trash_folder(&root, &index, "d").unwrap();
}

/// Empties it as of a day, and so often that all that is old by then goes.
fn empty_trash_on(root: &TestRoot, day: i64) -> Result<u32, DiskError> {
    let mut removed = 0;
    for day in day..day + 3 {
        removed += root.empty_trash_on(day, 30)?;
    }
    Ok(removed)
}

#[test]
fn the_trash_is_emptied_of_what_is_old_only() {
    let root = TestRoot::new();
    let trash = root.trash_path();
    let today = days_now();
    let (kept, old) = (date_of(today + 10), date_of(today));
    for day in [old.as_str(), kept.as_str(), "not a date", "1999-12-31"] {
        std::fs::create_dir_all(trash.join(day).join("d/e")).unwrap();
        std::fs::write(trash.join(day).join("d/e/f"), "x").unwrap();
        std::os::unix::fs::symlink("/", trash.join(day).join("d/l")).unwrap();
        for (folder, mode) in [("d/e", 0o000), ("d", 0o500)] {
            let unwritable = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(trash.join(day).join(folder), unwritable).unwrap();
        }
    }
    assert_eq!(empty_trash_on(&root, today).unwrap(), 0, "all of it has just been seen first");
    assert_eq!(empty_trash_on(&root, today + 31).unwrap(), 2);
    let mut left: Vec<_> =
        std::fs::read_dir(&trash).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [kept.as_str(), "not a date"]);
}

#[test]
fn what_was_made_unwritable_is_removed_with_the_trash() {
    let test = "local::trash::tests::what_was_made_unwritable_is_removed_with_the_trash";
    if crate::local::testing::as_another_user(test) {
        the_trash_is_emptied_of_what_is_old_only();
    }
}

#[test]
fn emptying_the_trash_does_not_enter_another_file_system() {
    let root = TestRoot::new();
    let day = root.trash_path().join("1999-12-31");
    let at = day.join("d/mnt");
    std::fs::create_dir_all(&at).unwrap();
    std::fs::write(day.join("d/old"), "x").unwrap();
    std::fs::create_dir_all(root.trash_path().join("1999-12-30")).unwrap();
    let today = days_now();
    empty_trash_on(&root, today).unwrap();
    let Some(mounted) = Mounted::at(&at) else { return };
    std::fs::write(at.join("f"), "on another file system").unwrap();
    assert_eq!(root.empty_trash_on(today + 31, 30).unwrap(), 0);
    assert!(matches!(root.empty_trash_on(today + 33, 30), Err(DiskError::Changed(_))));
    assert_eq!(std::fs::read_to_string(at.join("f")).unwrap(), "on another file system");
    assert!(!day.join("d/old").exists() && !root.trash_path().join("1999-12-30").exists());
    drop(mounted);
    assert_eq!(root.empty_trash_on(today + 34, 30).unwrap(), 1);
}
