//! Folders, moves, copies, the trash.

use engine::ids::EntryId;

use super::{DEVICE, Harness, SPACE, chunks, commit_step, entry, retain_step};
use crate::model::DEPTH_MAX;
use crate::model::command::{Base, CommandOutcome, DataStep, OnExisting, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};
use crate::model::row::{EntryKind, EntryRow, ROOT_ENTRY};

fn move_step(row: &EntryRow, to_parent: EntryId, to_name: &str, replace: bool) -> DataStep {
    DataStep::EntryMove {
        namespace: SPACE,
        entry: row.entry,
        from_parent: row.parent,
        from_name: row.name.clone(),
        to_parent,
        to_name: to_name.to_owned(),
        replace,
    }
}

#[test]
fn names_that_no_entry_may_have_are_refused() {
    let mut harness = Harness::data();
    for name in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
        let refused = harness.create(ROOT_ENTRY, name, EntryKind::Folder);
        assert!(matches!(refused, Err(StepError::BadName { .. })), "{name:?}");
    }
    let row = harness.create(ROOT_ENTRY, "x", EntryKind::Folder).unwrap();
    assert_eq!(row.mode, 0o755, "only permission bits are kept");
    assert!(matches!(harness.step(move_step(&row, ROOT_ENTRY, "..", true)), Err(StepError::BadName { .. })));
}

#[test]
fn what_is_there_is_taken_or_refused_as_asked() {
    let mut harness = Harness::data();
    let create = |name: &str, kind: EntryKind, existing| DataStep::EntryCreate {
        namespace: SPACE,
        parent: ROOT_ENTRY,
        name: name.to_owned(),
        kind,
        mode: 0o777,
        mtime_ns: 1,
        existing,
    };
    let folder = harness.folder(ROOT_ENTRY, "f");
    let link = harness.create(ROOT_ENTRY, "l", EntryKind::Symlink(b"x".to_vec())).unwrap();
    let taken = entry(harness.step(create("f", EntryKind::Folder, OnExisting::TakeFolder))).unwrap();
    assert_eq!(taken.entry, folder);
    assert!(harness.step(create("f", EntryKind::Folder, OnExisting::Refuse)).is_err());
    assert!(harness.step(create("l", EntryKind::Folder, OnExisting::TakeFolder)).is_err());
    let elsewhere = EntryKind::Symlink(b"y".to_vec());
    let replaced = harness.step(create("l", elsewhere.clone(), OnExisting::ReplaceSymlink));
    let replaced = entry(replaced).unwrap();
    assert_eq!((replaced.entry, &replaced.kind), (link.entry, &elsewhere));
    assert!(harness.step(create("f", elsewhere, OnExisting::ReplaceSymlink)).is_err());
    for target in [Vec::new(), vec![0], vec![b'x'; 4097]] {
        assert!(harness.create(ROOT_ENTRY, "bad", EntryKind::Symlink(target)).is_err());
    }
}

#[test]
fn a_folder_is_never_moved_below_itself() {
    let mut harness = Harness::data();
    let a = harness.create(ROOT_ENTRY, "a", EntryKind::Folder).unwrap();
    let b = harness.folder(a.entry, "b");
    let c = harness.folder(b, "c");
    for target in [a.entry, b, c] {
        assert_eq!(harness.step(move_step(&a, target, "x", true)), Err(StepError::Cycle));
    }
    let onto_itself = harness.done(move_step(&a, ROOT_ENTRY, "a", false));
    assert_eq!(onto_itself, StepOutcome::Entry(a), "nothing changes");
}

#[test]
fn a_move_needs_the_place_as_it_is_and_a_free_target_or_leave_to_replace() {
    let mut harness = Harness::data();
    let a = harness.create(ROOT_ENTRY, "a", EntryKind::Folder).unwrap();
    let b = harness.file(1, "b");
    let refused = harness.step(move_step(&a, ROOT_ENTRY, "b", false));
    assert_eq!(refused, Err(StepError::AlreadyExists { kind: "file".into() }));
    let moved = entry(harness.step(move_step(&a, ROOT_ENTRY, "b", true))).unwrap();
    assert_eq!(harness.names(ROOT_ENTRY), ["b"]);
    let stale = harness.step(move_step(&a, ROOT_ENTRY, "z", false));
    assert!(matches!(stale, Err(StepError::Changed { .. })));
    // What was replaced is in the trash, and comes back.
    let restore = |to_name: &str| DataStep::TrashRestore {
        namespace: SPACE,
        trash: 1,
        to_parent: ROOT_ENTRY,
        to_name: to_name.to_owned(),
    };
    assert!(matches!(harness.step(restore("b")), Err(StepError::AlreadyExists { .. })));
    let restored = entry(harness.step(restore("b2"))).unwrap();
    assert_eq!((restored.entry, restored.kind), (b.entry, b.kind));
    assert!(matches!(harness.step(restore("b3")), Err(StepError::NotFound { .. })));
    assert_eq!(moved.entry, a.entry);
}

#[test]
fn replacing_the_folder_that_it_is_in_takes_the_entry_out_first() {
    let mut harness = Harness::data();
    let outer = harness.folder(ROOT_ENTRY, "outer");
    let inner = harness.create(outer, "inner", EntryKind::Folder).unwrap();
    harness.folder(inner.entry, "kept");
    entry(harness.step(move_step(&inner, ROOT_ENTRY, "outer", true))).unwrap();
    assert_eq!(harness.names(ROOT_ENTRY), ["outer"]);
    assert_eq!(harness.names(inner.entry), ["kept"]);
    assert!(harness.names(outer).is_empty());
}

#[test]
fn nothing_is_put_or_changed_below_what_is_in_the_trash() {
    let mut harness = Harness::data();
    let folder = harness.create(ROOT_ENTRY, "f", EntryKind::Folder).unwrap();
    let child = harness.create(folder.entry, "c", EntryKind::Folder).unwrap();
    assert_eq!(harness.delete(&folder, false), Err(StepError::NotEmpty));
    let trash = harness.delete(&folder, true).unwrap();
    assert!(harness.create(child.entry, "x", EntryKind::Folder).is_err());
    assert!(harness.delete(&child, true).is_err());
    assert!(harness.step(move_step(&child, ROOT_ENTRY, "x", false)).is_err());
    let attributes =
        DataStep::EntrySetAttributes { namespace: SPACE, entry: child.entry, mode: 0, mtime_ns: 0 };
    assert!(harness.step(attributes.clone()).is_err());
    let (to_parent, to_name) = (ROOT_ENTRY, "back".to_owned());
    harness.done(DataStep::TrashRestore { namespace: SPACE, trash, to_parent, to_name });
    harness.done(attributes);
    assert_eq!(harness.names(folder.entry), ["c"]);
}

#[test]
fn the_root_folder_stays_and_folders_are_not_copied() {
    let mut harness = Harness::data();
    let Reply::Resolved(resolved) = harness.ask(&Query::Resolve { namespace: SPACE, paths: vec![vec![]] })
    else {
        panic!("no answer");
    };
    let root = resolved[0].last.clone();
    assert!(matches!(harness.delete(&root, true), Err(StepError::Invalid { .. })));
    assert!(harness.step(move_step(&root, ROOT_ENTRY, "x", true)).is_err());
    let folder = harness.folder(ROOT_ENTRY, "f");
    let copy = |entry| DataStep::EntryCopy {
        namespace: SPACE,
        entry,
        to_parent: ROOT_ENTRY,
        to_name: "copy".to_owned(),
        replace: false,
        device: DEVICE,
    };
    assert_eq!(harness.step(copy(folder)), Err(StepError::WrongKind { is: "folder".into() }));
    let file = harness.file(1, "a");
    let copied = entry(harness.step(copy(file.entry))).unwrap();
    assert_ne!(copied.entry, file.entry);
    assert_eq!(harness.used_bytes(), 2000);
}

#[test]
fn folders_go_only_so_deep() {
    let mut harness = Harness::data();
    let mut at = ROOT_ENTRY;
    for _ in 0..DEPTH_MAX {
        at = harness.folder(at, "d");
    }
    assert_eq!(harness.create(at, "d", EntryKind::Folder), Err(StepError::TooDeep { max: DEPTH_MAX }));
    let link = harness.create(at, "link", EntryKind::Symlink(b"x".to_vec())).unwrap();
    let Reply::Paths(paths) = harness.ask(&Query::Paths { namespace: SPACE, entries: vec![link.entry] })
    else {
        panic!("no paths");
    };
    assert_eq!(paths[0].as_ref().map(Vec::len), Some(DEPTH_MAX as usize + 1));
}

#[test]
fn a_file_that_a_move_brought_deeper_than_folders_go_can_still_be_edited() {
    let mut harness = Harness::data();
    let chain = |harness: &mut Harness, name: &str| {
        let top = harness.create(ROOT_ENTRY, name, EntryKind::Folder).unwrap();
        let mut at = top.entry;
        for _ in 1..200 {
            at = harness.folder(at, "d");
        }
        (top, at)
    };
    let (moved, bottom) = chain(&mut harness, "moved");
    let (_outer, below) = chain(&mut harness, "outer");
    let file = harness.file(1, "a");
    harness.done(move_step(&file, bottom, "a", false));
    harness.done(move_step(&moved, below, "moved", false));
    let upload = harness.begin(2, 1000);
    let steps = |name: &str| {
        vec![
            DataStep::UploadHold { namespace: SPACE, upload },
            retain_step(upload, &chunks(2, 1000), None),
            commit_step(upload, bottom, name, Base::Any),
        ]
    };
    let error = StepError::TooDeep { max: DEPTH_MAX };
    assert_eq!(harness.all(steps("new")), CommandOutcome::Failed { step: 2, error });
    assert!(matches!(harness.all(steps("a")), CommandOutcome::Done(_)));
}

#[test]
fn a_purge_goes_in_steps_and_spares_what_has_taken_the_place() {
    let mut harness = Harness::data();
    let old = harness.create(ROOT_ENTRY, "f", EntryKind::Folder).unwrap();
    for number in 1..=5 {
        let file = harness.file(number, "tmp");
        let name = format!("file {number}");
        harness.done(move_step(&file, old.entry, &name, false));
    }
    let trash = harness.delete(&old, true).unwrap();
    harness.folder(ROOT_ENTRY, "f");
    let (mut steps, mut entries, mut released) = (0, 0, Vec::new());
    loop {
        match harness.done(DataStep::TrashPurge { namespace: SPACE, trash, entries_max: 3 }) {
            StepOutcome::Purged { done, entries: some, releases, .. } => {
                entries += some;
                released.extend(releases);
                steps += 1;
                if done {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
        let (to_parent, to_name) = (ROOT_ENTRY, "back".to_owned());
        let restore = DataStep::TrashRestore { namespace: SPACE, trash, to_parent, to_name };
        assert!(matches!(harness.step(restore), Err(StepError::NotFound { .. })), "a purge has begun");
    }
    assert_eq!((entries, released.len()), (6, 5));
    assert!(steps > 3);
    assert_eq!(harness.used_bytes(), 0);
    assert_eq!(harness.names(ROOT_ENTRY), ["f"]);
    assert_eq!(
        harness.ask(&Query::Releases { namespace: SPACE, count_max: 10 }),
        Reply::Releases({
            released.sort_by_key(|release| release.content);
            released
        })
    );
}
