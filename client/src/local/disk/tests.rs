//! What must hold of each change on disk.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::local::testing::{TestRoot, rel};

const TIME_NS: i64 = 1_700_000_000_123_456_789;

#[test]
fn made_things_are_as_they_were_to_be() {
    let root = TestRoot::new();
    let made = root.create_folder(&rel("d"), 0o750, None, Durability::Now).unwrap();
    let there = root.stat(&rel("d")).unwrap().unwrap();
    assert_eq!((there.kind, there.stamp), (ObjectKind::Folder, made));
    assert_eq!(made.mode, 0o750);
    let made = root.create_symlink(&rel("d/l"), b"../\xff", TIME_NS, None, Durability::Later).unwrap();
    let there = root.stat(&rel("d/l")).unwrap().unwrap();
    assert_eq!((there.kind, there.stamp), (ObjectKind::Symlink, made));
    assert_eq!(made.mtime_ns, TIME_NS);
    assert_eq!(root.read_symlink(&rel("d/l")).unwrap(), (b"../\xff".to_vec(), made));
    root.sync_folder(&rel("d")).unwrap();
    assert!(matches!(root.create_folder(&rel("d"), 0o700, None, Durability::Now), Err(DiskError::Exists(_))));
    assert!(matches!(
        root.create_symlink(&rel("d"), b"x", 0, None, Durability::Now),
        Err(DiskError::Exists(_))
    ));
    assert!(matches!(
        root.create_folder(&rel("x/y"), 0o700, None, Durability::Now),
        Err(DiskError::Vanished(_))
    ));
    assert!(made.identity.born_ns != 0, "this file system tells the time of birth");
}

#[test]
fn what_is_not_there_is_nothing_and_what_is_no_file_is_not_read() {
    let root = TestRoot::new();
    root.write("f", "x");
    for path in ["x", "x/y", "f/y"] {
        assert_eq!(root.stat(&rel(path)).unwrap(), None, "{path}");
    }
    assert!(matches!(root.open_for_read(&rel("x")), Err(DiskError::Vanished(_))));
    root.create_folder(&rel("d"), 0o700, None, Durability::Later).unwrap();
    root.create_symlink(&rel("l"), b"f", 0, None, Durability::Later).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.dir().join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .unwrap();
    for path in ["d", "l", "pipe", "l/x", "f/x"] {
        assert!(matches!(root.open_for_read(&rel(path)), Err(DiskError::Changed(_))), "{path}");
    }
    assert_eq!(root.stat(&rel("pipe")).unwrap().unwrap().kind, ObjectKind::Special);
}

#[test]
fn a_move_replaces_nothing_and_moves_only_what_is_meant() {
    let root = TestRoot::new();
    root.write("a", "a");
    root.write("b", "b");
    root.create_folder(&rel("d"), 0o755, None, Durability::Later).unwrap();
    let a = root.stamp("a");
    let b = root.stamp("b");
    let moved = |from: &str, to: &str, expected: &Stamp| {
        root.move_entry(&rel(from), &rel(to), expected.identity, None, Durability::Now)
    };
    assert!(matches!(moved("a", "b", &a), Err(DiskError::Exists(_))));
    assert!(matches!(moved("a", "c", &b), Err(DiskError::Changed(_))));
    assert!(matches!(moved("x", "c", &a), Err(DiskError::Vanished(_))));
    assert!(matches!(moved("a", "x/c", &a), Err(DiskError::Vanished(_))));
    assert_eq!(root.read("a"), "a");
    let now = moved("a", "d/c", &a).unwrap();
    assert_eq!(now, root.stamp("d/c"));
    assert!(same_but_renamed(&now, &a));
    let d = root.stamp("d");
    assert!(matches!(moved("d", "d/e", &d), Err(DiskError::Changed(_))), "into itself");
    moved("d", "e", &d).unwrap();
    assert_eq!(root.read("e/c"), "a");
}

#[test]
fn attributes_are_set_on_what_is_meant_also_if_it_cannot_be_read() {
    let root = TestRoot::new();
    root.write("f", "x");
    let before = root.stamp("f");
    let after = root.set_attributes(&rel("f"), &before, 0o000, TIME_NS).unwrap();
    assert_eq!((after.mode, after.mtime_ns), (0, TIME_NS));
    assert_eq!(after, root.stamp("f"));
    assert!(matches!(root.set_attributes(&rel("f"), &before, 0o644, 0), Err(DiskError::Changed(_))));
    root.set_attributes(&rel("f"), &after, 0o640, -1).unwrap();
    let metadata = std::fs::metadata(root.dir().join("f")).unwrap();
    assert_eq!(
        (metadata.permissions().mode() & 0o7777, metadata.mtime(), metadata.mtime_nsec()),
        (0o640, -1, 999_999_999)
    );
    let d = root.create_folder(&rel("d"), 0o755, None, Durability::Later).unwrap();
    root.write("d/f", "came later");
    assert_eq!(root.set_attributes(&rel("d"), &d, 0o700, 0).unwrap().mode, 0o700);
    root.create_symlink(&rel("l"), b"f", 0, None, Durability::Later).unwrap();
    let link = root.stamp("l");
    assert!(root.set_attributes(&rel("l"), &link, 0o777, 0).is_err());
    assert_eq!(root.stamp("f").mode, 0o640, "the link was not followed");
}

#[test]
fn an_edit_during_a_rename_stays_visible_to_the_next_scan() {
    let before =
        Stamp { identity: Identity { inode: 1, born_ns: 0 }, size: 1, mtime_ns: 1, ctime_ns: 1, mode: 0o644 };
    let renamed = Stamp { ctime_ns: 2, ..before };
    assert_eq!(moved_stamp(&before, renamed), renamed);
    let edited = Stamp { ctime_ns: 2, mtime_ns: 2, ..before };
    assert_eq!(moved_stamp(&before, edited), before);
}

#[test]
fn an_edit_while_attributes_are_given_stays_visible_to_the_next_scan() {
    let root = TestRoot::new();
    root.write("f", "x");
    let before = root.stat(&rel("f")).unwrap().unwrap();
    root.set_attributes(&rel("f"), &before.stamp, 0o600, TIME_NS).unwrap();
    let given = root.stat(&rel("f")).unwrap().unwrap();
    assert!(!is_edited(&before, &given, TIME_NS));
    let truncated = Stamp { mtime_ns: TIME_NS - TIME_NS % 2_000_000_000, ..given.stamp };
    assert!(!is_edited(&before, &Object { stamp: truncated, ..given }, TIME_NS), "as FAT keeps it");
    root.write("f", "y");
    let edited = root.stat(&rel("f")).unwrap().unwrap();
    assert!(is_edited(&before, &edited, TIME_NS), "of the same size");
    let grown = Stamp { size: 2, ..given.stamp };
    assert!(is_edited(&before, &Object { stamp: grown, ..given }, TIME_NS));
    // What comes into a folder is no edit of it.
    let folder = Object { kind: ObjectKind::Folder, ..before };
    assert!(!is_edited(&folder, &edited, TIME_NS));
}

#[test]
fn a_folder_that_becomes_a_link_to_outside_leads_nowhere() {
    let root = TestRoot::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("f"), "outside").unwrap();
    std::fs::create_dir(outside.path().join("sub")).unwrap();
    root.write("f", "mine");
    let mine = root.stamp("f");
    let theirs = {
        let there = TestRoot::at(outside.path());
        there.stamp("f")
    };
    std::os::unix::fs::symlink(outside.path(), root.dir().join("d")).unwrap();
    let before = listing(outside.path());
    let temp = || {
        let mut temp = root.temp_file().unwrap();
        temp.finish(0o644, 0).unwrap();
        temp
    };
    let replaced = crate::local::replace::Replaced::Removed;
    assert!(root.open_for_read(&rel("d/f")).is_err());
    assert_eq!(root.stat(&rel("d/f")).unwrap(), None);
    assert!(root.create_folder(&rel("d/x"), 0o755, None, Durability::Now).is_err());
    assert!(root.create_symlink(&rel("d/x"), b"y", 0, None, Durability::Now).is_err());
    assert!(root.place_new(temp(), &rel("d/x"), None, Durability::Now).is_err());
    assert!(root.replace(temp(), &rel("d/f"), &theirs, replaced, Durability::Now).is_err());
    assert!(root.replace_by_symlink(&rel("d/f"), b"y", 0, &theirs, replaced, Durability::Now).is_err());
    assert!(root.move_entry(&rel("f"), &rel("d/x"), mine.identity, None, Durability::Now).is_err());
    assert!(root.move_entry(&rel("d/f"), &rel("x"), theirs.identity, None, Durability::Now).is_err());
    assert!(root.trash(&rel("d/f"), &theirs, Durability::Now).is_err());
    assert!(root.set_attributes(&rel("d/f"), &theirs, 0o600, 0).is_err());
    assert_eq!(listing(outside.path()), before);
    assert_eq!(root.read("f"), "mine");
}

fn listing(path: &std::path::Path) -> Vec<(String, u32, i64, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let bytes = std::fs::read(entry.path()).unwrap_or_default();
            (entry.file_name().into_string().unwrap(), metadata.mode(), metadata.mtime(), bytes)
        })
        .collect();
    all.sort();
    all
}

#[test]
fn many_at_once_change_one_read_only_folder() {
    if !crate::local::testing::as_another_user("local::disk::tests::many_at_once_change_one_read_only_folder")
    {
        return;
    }
    let root = TestRoot::new();
    root.create_folder(&rel("d"), 0o755, None, Durability::Later).unwrap();
    let set = |mode| {
        std::fs::set_permissions(root.dir().join("d"), PermissionsExt::from_mode(mode)).unwrap();
    };
    set(0o555);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let root = &root;
            scope.spawn(move || {
                for number in 0..200 {
                    let place = rel(&format!("d/{thread}-{number}"));
                    root.create_symlink(&place, b"x", 0, None, Durability::Later).unwrap();
                }
            });
        }
    });
    assert_eq!(root.stamp("d").mode, 0o555);
    set(0o755);
}

#[test]
fn read_only_folders_are_changed_and_stay_read_only() {
    use crate::local::replace::Replaced;
    use crate::local::testing::as_another_user;
    if !as_another_user("local::disk::tests::read_only_folders_are_changed_and_stay_read_only") {
        return;
    }
    let root = TestRoot::new();
    for folder in ["d", "e"] {
        root.create_folder(&rel(folder), 0o755, None, Durability::Later).unwrap();
    }
    let set = |path: &str, mode| {
        std::fs::set_permissions(root.dir().join(path), PermissionsExt::from_mode(mode)).unwrap();
    };
    set("d", 0o555);
    set("e", 0o500);
    let temp = || {
        let mut temp = root.temp_file().unwrap();
        temp.finish(0o444, 0).unwrap();
        temp
    };
    let placed = root.place_new(temp(), &rel("d/f"), None, Durability::Now).unwrap();
    root.create_folder(&rel("d/sub"), 0o555, None, Durability::Now).unwrap();
    root.create_symlink(&rel("d/l"), b"f", 0, None, Durability::Now).unwrap();
    let replaced = root.replace(temp(), &rel("d/f"), &placed, Replaced::ToTrash, Durability::Now).unwrap();
    let moved = root.move_entry(&rel("d/f"), &rel("e/g"), replaced.identity, None, Durability::Now).unwrap();
    let sub = root.stamp("d/sub");
    root.move_entry(&rel("d/sub"), &rel("e/sub"), sub.identity, None, Durability::Now).unwrap();
    root.trash(&rel("e/g"), &moved, Durability::Now).unwrap();
    assert_eq!(root.trashed().len(), 2);
    assert_eq!(["d", "e", "e/sub"].map(|path| root.stamp(path).mode), [0o555, 0o500, 0o555]);
    set("d", 0o755);
    set("e", 0o755);
}

#[test]
fn nothing_is_put_into_a_folder_that_took_the_place_of_another() {
    let root = TestRoot::new();
    let within = Some(root.create_folder(&rel("p"), 0o755, None, Durability::Later).unwrap().identity);
    root.write("f", "f");
    let file = root.stamp("f").identity;
    std::fs::rename(root.dir().join("p"), root.dir().join("q")).unwrap();
    std::fs::create_dir(root.dir().join("p")).unwrap();
    let part = || {
        let mut part = root.temp_file_kept(7).unwrap();
        std::io::Write::write_all(part.file(), b"some").unwrap();
        part.finish(0o644, 0).unwrap();
        part
    };
    let place = rel("p/x");
    for refused in [
        root.place_new(part(), &place, within, Durability::Now),
        root.create_folder(&place, 0o755, within, Durability::Now),
        root.create_symlink(&place, b"f", 0, within, Durability::Now),
        root.move_entry(&rel("f"), &place, file, within, Durability::Now),
    ] {
        assert!(matches!(refused, Err(DiskError::Changed(_))), "{refused:?}");
    }
    assert_eq!(std::fs::read_dir(root.dir().join("p")).unwrap().count(), 0);
    assert_eq!(root.read("f"), "f");
    let kept = root.temp_file_kept(7).unwrap();
    assert_eq!(kept.as_file().metadata().unwrap().len(), 4, "it is gone on with");
    root.place_new(kept, &rel("q/x"), within, Durability::Now).unwrap();
    root.move_entry(&rel("f"), &rel("q/f"), file, within, Durability::Now).unwrap();
    assert_eq!((root.read("q/x"), root.read("q/f")), ("some".to_owned(), "f".to_owned()));
}
