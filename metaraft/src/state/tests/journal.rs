//! The journal's pages and horizon, items that fail by themselves, changes on condition.

use engine::ids::{ClusterId, EntryId, VersionId};

use super::{Harness, SPACE, entry};
use crate::model::command::{DataStep, RootStep, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::query::{BelowPage, Query, Reply};
use crate::model::row::{ChangeRow, EntryKind, EntryRow, ROOT_ENTRY, SecretBytes};
use crate::model::{SEEN_COMMAND_ROWS_MAX, SEEN_ROWS_MAX};

fn changes(harness: &Harness, position: u64, since: u64, count_max: u32) -> (Vec<ChangeRow>, u64, u64, bool) {
    match harness.ask(&Query::Changes { namespace: SPACE, position, since, count_max }) {
        Reply::Changes { changes, position, since, more } => (changes, position, since, more),
        other => panic!("{other:?}"),
    }
}

fn sequence(harness: &Harness) -> u64 {
    match harness.ask(&Query::Sequences { namespaces: vec![SPACE] }) {
        Reply::Sequences(sequences) => sequences[0].unwrap(),
        other => panic!("{other:?}"),
    }
}

fn delete_seen(row: &EntryRow, version: Option<VersionId>, unchanged_since: u64) -> DataStep {
    DataStep::EntryDeleteSeen {
        namespace: SPACE,
        entry: row.entry,
        parent: row.parent,
        name: row.name.clone(),
        version,
        recursive: true,
        unchanged_since,
    }
}

pub(super) fn folder_step(parent: EntryId, name: &str) -> DataStep {
    DataStep::EntryCreate {
        namespace: SPACE,
        parent,
        name: name.to_owned(),
        kind: EntryKind::Folder,
        mode: 0o755,
        mtime_ns: 1,
        existing: crate::model::command::OnExisting::Refuse,
    }
}

#[test]
fn a_listing_leaves_out_what_was_in_the_trash_before_it_began_and_tells_what_goes_later() {
    let mut harness = Harness::data();
    let gone = harness.create(ROOT_ENTRY, "gone", EntryKind::Folder).unwrap();
    harness.folder(gone.entry, "below");
    harness.delete(&gone, true).unwrap();
    let kept: Vec<EntryRow> = ["a", "b", "c"]
        .map(|name| harness.create(ROOT_ENTRY, name, EntryKind::Folder).unwrap())
        .into_iter()
        .collect();
    let present = sequence(&harness);
    let (first, position, since, more) = changes(&harness, 0, 0, 3);
    assert_eq!((since, more), (present, true));
    assert!(first.iter().all(|change| change.entry != gone.entry), "{first:?}");
    harness.delete(&kept[0], true).unwrap();
    let (mut rest, position, _, more) = changes(&harness, position, since, 100);
    assert!(!more && position == present + 1);
    rest.splice(0..0, first);
    let told: Vec<(EntryId, bool)> = rest.iter().map(|change| (change.entry, change.row.is_some())).collect();
    let expected = [(kept[1].entry, true), (kept[2].entry, true), (kept[0].entry, false)];
    assert_eq!(told.last_chunk::<3>(), Some(&expected));
    assert!(told.iter().all(|(entry, _)| *entry != gone.entry));
    let (nothing, at, _, more) = changes(&harness, position, position, 100);
    assert!(nothing.is_empty() && at == position && !more);
    let ahead = Query::Changes { namespace: SPACE, position: position + 1, since: 0, count_max: 1 };
    assert_eq!(harness.ask(&ahead), Reply::ChangesGone, "a number that was never reached");
}

#[test]
fn what_is_gone_is_told_until_the_horizon_and_then_only_a_listing_helps() {
    let mut harness = Harness::data();
    harness.done(DataStep::JournalHorizonSet { horizon_ms: 1000 });
    assert!(harness.step(DataStep::JournalHorizonSet { horizon_ms: 0 }).is_err());
    let row = harness.create(ROOT_ENTRY, "a", EntryKind::Folder).unwrap();
    let before = sequence(&harness);
    harness.delete(&row, true).unwrap();
    let gone = sequence(&harness);
    // Commands within the horizon take nothing away.
    harness.time_ms += 999;
    harness.folder(ROOT_ENTRY, "b");
    assert_eq!(changes(&harness, before, before, 10).0.len(), 2);
    harness.time_ms += 2000;
    harness.folder(ROOT_ENTRY, "c");
    let asked = |position| Query::Changes { namespace: SPACE, position, since: position, count_max: 10 };
    assert_eq!(harness.ask(&asked(before)), Reply::ChangesGone);
    assert!(matches!(harness.ask(&asked(gone)), Reply::Changes { .. }), "who knew is not sent away");
    assert_eq!(changes(&harness, 0, 0, 10).0.len(), 2);
    // What is in the trash comes back all the same, under a new number.
    let (to_parent, to_name) = (ROOT_ENTRY, "back".to_owned());
    let back = harness.step(DataStep::TrashRestore { namespace: SPACE, trash: 1, to_parent, to_name });
    let back = entry(back).unwrap();
    let (told, ..) = changes(&harness, gone + 2, gone + 2, 10);
    assert_eq!(told, [ChangeRow { entry: row.entry, row: Some(back), list_below: true }]);
}

#[test]
fn a_folder_that_came_back_is_listed_whichever_page_tells_of_it() {
    let mut harness = Harness::data();
    let row = harness.create(ROOT_ENTRY, "a", EntryKind::Folder).unwrap();
    let below = harness.folder(row.entry, "below");
    let trash = harness.delete(&row, true).unwrap();
    let since = sequence(&harness);
    let (to_parent, to_name) = (ROOT_ENTRY, "a".to_owned());
    harness.done(DataStep::TrashRestore { namespace: SPACE, trash, to_parent, to_name });
    harness.folder(ROOT_ENTRY, "another");
    let (entry, mode) = (row.entry, 0o700);
    harness.done(DataStep::EntrySetAttributes { namespace: SPACE, entry, mode, mtime_ns: 9 });
    // The first page goes beyond the number of its return.
    let (first, position, since, more) = changes(&harness, since, since, 1);
    assert!(more && first[0].entry != row.entry);
    let (second, ..) = changes(&harness, position, since, 1);
    assert!(second[0].entry == row.entry && second[0].list_below, "{second:?}");
    let query = Query::Below { namespace: SPACE, top: row.entry, position: Vec::new(), count_max: 10 };
    let Reply::Below(Some(BelowPage { entries, position })) = harness.ask(&query) else { panic!("no page") };
    assert!(entries.len() == 1 && entries[0].entry == below && position.is_empty());
}

#[test]
fn a_folder_that_goes_with_the_one_above_it_during_a_listing_is_told_of() {
    let mut harness = Harness::data();
    let outer = harness.create(ROOT_ENTRY, "outer", EntryKind::Folder).unwrap();
    let inner = harness.create(outer.entry, "inner", EntryKind::Folder).unwrap();
    let leaf = harness.folder(inner.entry, "leaf");
    let touch = |entry: EntryId, mtime_ns| DataStep::EntrySetAttributes {
        namespace: SPACE,
        entry,
        mode: 0o700,
        mtime_ns,
    };
    harness.done(touch(inner.entry, 7));
    // The leaf is told of while it is there.
    let (first, position, since, more) = changes(&harness, 0, 0, 2);
    assert!(more && first[1].entry == leaf && first[1].row.is_some());
    let trash = harness.delete(&outer, true).unwrap();
    for purged in [false, true] {
        if purged {
            harness.done(DataStep::TrashPurge { namespace: SPACE, trash, entries_max: 100 });
        }
        let (rest, ..) = changes(&harness, position, since, 10);
        let told: Vec<_> = rest.iter().map(|change| (change.entry, change.row.is_some())).collect();
        assert!(told.contains(&(inner.entry, false)) && told.contains(&(outer.entry, false)), "{told:?}");
    }
}

#[test]
fn a_folder_moved_out_of_one_that_came_back_is_listed_though_that_one_is_gone_again() {
    let mut harness = Harness::data();
    let outer = harness.create(ROOT_ENTRY, "outer", EntryKind::Folder).unwrap();
    let inner = harness.create(outer.entry, "inner", EntryKind::Folder).unwrap();
    harness.folder(inner.entry, "below");
    let trash = harness.delete(&outer, true).unwrap();
    let since = sequence(&harness);
    let (to_parent, to_name) = (ROOT_ENTRY, "outer".to_owned());
    let back = harness.step(DataStep::TrashRestore { namespace: SPACE, trash, to_parent, to_name });
    harness.done(DataStep::EntryMove {
        namespace: SPACE,
        entry: inner.entry,
        from_parent: outer.entry,
        from_name: "inner".to_owned(),
        to_parent: ROOT_ENTRY,
        to_name: "inner".to_owned(),
        replace: false,
    });
    harness.delete(&entry(back).unwrap(), true).unwrap();
    let (told, ..) = changes(&harness, since, since, 10);
    let told: Vec<_> =
        told.iter().map(|change| (change.entry, change.row.is_some(), change.list_below)).collect();
    assert_eq!(told, [(inner.entry, true, true), (outer.entry, false, false)]);
}

#[test]
fn items_fail_by_themselves_and_whole() {
    let mut harness = Harness::data();
    let items = vec![
        vec![folder_step(ROOT_ENTRY, "a"), folder_step(ROOT_ENTRY, "b")],
        vec![folder_step(ROOT_ENTRY, "c"), folder_step(ROOT_ENTRY, "a")],
        vec![folder_step(ROOT_ENTRY, "d")],
        vec![DataStep::Each { items: Vec::new() }],
    ];
    let StepOutcome::Each(results) = harness.done(DataStep::Each { items }) else { panic!("not each") };
    assert_eq!(results[0].as_ref().map(Vec::len), Ok(2));
    assert!(matches!(results[1], Err(StepError::AlreadyExists { .. })));
    assert!(results[2].is_ok() && matches!(results[3], Err(StepError::Invalid { .. })));
    assert_eq!(harness.names(ROOT_ENTRY), ["a", "b", "d"], "nothing of a failed item remains");
    let many = DataStep::Each { items: vec![Vec::new(); 5000] };
    assert!(matches!(harness.step(many), Err(StepError::Invalid { .. })));
}

#[test]
fn an_item_for_another_group_sends_the_command_there_whole() {
    let mut harness = Harness::bare(super::DATA);
    let items = vec![vec![folder_step(ROOT_ENTRY, "a")]];
    let refused = harness.step(DataStep::Each { items: items.clone() });
    assert!(matches!(refused, Err(StepError::NotOwner { .. })), "{refused:?}");
}

#[test]
fn a_file_goes_only_at_the_version_that_was_seen() {
    let mut harness = Harness::data();
    let file = harness.file(1, "f");
    let EntryKind::File(state) = file.kind else { panic!("no file") };
    for version in [None, Some(VersionId(state.version.0 + 1))] {
        let refused = harness.step(delete_seen(&file, version, 0));
        assert_eq!(refused, Err(StepError::Conflict { current: Some(state.version) }));
    }
    let set = |version| DataStep::EntrySetAttributesSeen {
        namespace: SPACE,
        entry: file.entry,
        version,
        mode: 0o600,
        mtime_ns: 8,
    };
    assert!(matches!(harness.step(set(VersionId(99))), Err(StepError::Conflict { .. })));
    harness.done(set(state.version));
    let StepOutcome::TrashedEntry { entry, .. } = harness.done(delete_seen(&file, Some(state.version), 0))
    else {
        panic!("not trashed");
    };
    assert_eq!((entry.entry, entry.mode), (file.entry, 0o600));
}

#[test]
fn a_folder_goes_only_if_nothing_in_it_changed_or_too_much_to_tell() {
    let mut harness = Harness::data();
    let top = harness.create(ROOT_ENTRY, "top", EntryKind::Folder).unwrap();
    let inner = harness.create(top.entry, "inner", EntryKind::Folder).unwrap();
    let seen = sequence(&harness);
    harness.folder(ROOT_ENTRY, "elsewhere");
    let late = harness.create(inner.entry, "late", EntryKind::Folder).unwrap();
    let refused = Err(StepError::Changed { what: "something in the folder".to_owned() });
    assert_eq!(harness.step(delete_seen(&top, None, seen)), refused);
    // What came and went is in the trash: it is not lost.
    harness.delete(&late, true).unwrap();
    harness.done(delete_seen(&top, None, seen));

    let top = harness.create(ROOT_ENTRY, "top", EntryKind::Folder).unwrap();
    let seen = sequence(&harness);
    for number in 0..=SEEN_ROWS_MAX {
        harness.folder(ROOT_ENTRY, &number.to_string());
    }
    assert!(matches!(harness.step(delete_seen(&top, None, seen)), Err(StepError::Changed { .. })));
    harness.done(delete_seen(&top, None, seen + 1));
}

/// How many of some items went through.
fn went_through(harness: &mut Harness, items: Vec<Vec<DataStep>>) -> Vec<bool> {
    match harness.done(DataStep::Each { items }) {
        StepOutcome::Each(results) => results.iter().map(Result::is_ok).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_deletes_many_folders_but_reads_only_so_many_rows() {
    let mut harness = Harness::data();
    let mut folders = |count: usize, name: &str| -> Vec<EntryRow> {
        let named = (0..count).map(|number| format!("{name} {number}"));
        named.map(|name| harness.create(ROOT_ENTRY, &name, EntryKind::Folder).unwrap()).collect()
    };
    let (many, few) = (folders(1000, "many"), folders(40, "few"));
    let seen = sequence(&harness);
    let delete = |rows: &[EntryRow]| -> Vec<Vec<DataStep>> {
        rows.iter().map(|row| vec![delete_seen(row, None, seen)]).collect()
    };
    assert!(went_through(&mut harness, delete(&many)).iter().all(|done| *done));
    for number in 0..3000 {
        harness.folder(ROOT_ENTRY, &number.to_string());
    }
    let done = went_through(&mut harness, delete(&few)).iter().filter(|done| **done).count();
    assert_eq!(done, (SEEN_COMMAND_ROWS_MAX - 4000) / 3000);
}

#[test]
fn what_a_command_read_of_the_journal_hides_no_later_change_of_its_own() {
    let mut harness = Harness::data();
    let [one, other, last] =
        ["one", "other", "last"].map(|name| harness.create(ROOT_ENTRY, name, EntryKind::Folder).unwrap());
    let seen = sequence(&harness);
    let taken_back = delete_seen(&other, None, 0);
    let items = vec![
        vec![delete_seen(&one, None, seen)],
        vec![folder_step(ROOT_ENTRY, "x"), delete_seen(&other, None, seen), taken_back],
        vec![folder_step(last.entry, "late")],
        vec![delete_seen(&last, None, seen)],
        vec![delete_seen(&other, None, seen)],
    ];
    assert_eq!(went_through(&mut harness, items), [true, false, true, false, true]);
}

#[test]
fn a_symlink_is_pointed_elsewhere_only_from_where_it_was_seen_to_point() {
    let mut harness = Harness::data();
    let link = harness.create(ROOT_ENTRY, "l", EntryKind::Symlink(b"x".to_vec())).unwrap();
    let retarget = |before: &[u8], target: &[u8]| DataStep::SymlinkRetarget {
        namespace: SPACE,
        entry: link.entry,
        target_before: before.to_vec(),
        target: target.to_vec(),
        mode: 0o777,
        mtime_ns: 2,
    };
    assert!(matches!(harness.step(retarget(b"y", b"z")), Err(StepError::Changed { .. })));
    assert!(matches!(harness.step(retarget(b"x", b"")), Err(StepError::Invalid { .. })));
    let now = entry(harness.step(retarget(b"x", b"z"))).unwrap();
    assert_eq!(now.kind, EntryKind::Symlink(b"z".to_vec()));
    assert!(matches!(harness.step(delete_seen(&link, None, link.sequence)), Err(StepError::Changed { .. })));
    harness.done(delete_seen(&link, None, now.sequence));
}

#[test]
fn a_secret_is_made_once_and_only_in_the_root_group() {
    let mut harness = Harness::root();
    let make = |byte| RootStep::SecretMake { name: "seal".to_owned(), secret: SecretBytes([byte; 32]) };
    assert_eq!(harness.root_step(make(1)), Err(StepError::WrongCluster));
    let init = RootStep::ClusterInit {
        cluster: ClusterId::from_bytes([1; 16]),
        code: "4+2".parse().unwrap(),
        slots: crate::api::bootstrap::spread_slots(1),
        meta_nodes: Vec::new(),
    };
    harness.root_step(init).unwrap();
    let secret = Query::Secret { name: "seal".to_owned() };
    assert_eq!(harness.ask(&secret), Reply::Secret(None));
    for byte in [1, 2] {
        assert_eq!(harness.root_step(make(byte)), Ok(StepOutcome::Secret(SecretBytes([1; 32]))));
    }
    assert_eq!(harness.ask(&secret), Reply::Secret(Some(SecretBytes([1; 32]))));
    assert_eq!(harness.ask(&Query::Settings), Reply::Settings(Vec::new()), "it is not a setting");
    assert_eq!(format!("{:?}", SecretBytes([1; 32])), "SecretBytes");
    assert_eq!(Harness::data().ask(&secret), Reply::NotUnderstood);
}
