//! Versions that are removed, and the quota that they give back.

use engine::ids::{EntryId, VersionId};

use super::{Harness, SPACE, begin_step, chunks, retain_step};
use crate::model::command::{Base, DataStep, StepError, VersionChoice};
use crate::model::outcome::{Release, StepOutcome};
use crate::model::query::{Query, Reply};
use crate::model::row::{EntryKind, EntryRow, ROOT_ENTRY};

/// A file with a version for each number.
fn file(harness: &mut Harness, numbers: std::ops::RangeInclusive<u8>) -> EntryRow {
    let mut row = None;
    for number in numbers {
        let upload = harness.begin(number, 1000);
        row = Some(harness.commit(upload, "a", Base::Any).unwrap());
        harness.time_ms += 1000;
    }
    row.unwrap()
}

fn versions(harness: &Harness, entry: EntryId) -> Vec<u64> {
    match harness.ask(&Query::Versions { namespace: SPACE, entry }) {
        Reply::Versions(rows) => rows.into_iter().map(|row| row.version.0).collect(),
        other => panic!("{other:?}"),
    }
}

fn remove(entry: EntryId, which: VersionChoice, versions_max: u32) -> DataStep {
    DataStep::VersionsRemove { namespace: SPACE, entry, which, versions_max }
}

fn removed(outcome: StepOutcome) -> (bool, u64, u64, Vec<Release>) {
    match outcome {
        StepOutcome::VersionsRemoved { done, versions, bytes, releases } => (done, versions, bytes, releases),
        other => panic!("{other:?}"),
    }
}

#[test]
fn removed_versions_give_their_bytes_back_at_once_and_their_releases_are_queued() {
    let mut harness = Harness::data();
    let file = file(&mut harness, 1..=6);
    assert_eq!((harness.used_bytes(), versions(&harness, file.entry)), (6000, vec![6, 5, 4, 3, 2, 1]));
    let keep = |kept, most| remove(file.entry, VersionChoice::AllButNewest(kept), most);
    let (done, count, bytes, releases) = removed(harness.done(keep(3, 2)));
    assert_eq!((done, count, bytes, releases.len()), (false, 2, 2000, 2));
    assert_eq!((harness.used_bytes(), versions(&harness, file.entry)), (4000, vec![6, 5, 4, 3]));
    assert!(removed(harness.done(keep(3, 2))).0);
    let nothing = removed(harness.done(keep(3, 2)));
    assert_eq!(nothing, (true, 0, 0, Vec::new()), "a repetition");
    assert_eq!(versions(&harness, file.entry), [6, 5, 4]);
    match harness.ask(&Query::Releases { namespace: SPACE, count_max: 10 }) {
        Reply::Releases(queued) => assert_eq!(queued.len(), 3),
        other => panic!("{other:?}"),
    }
    // What was removed is let go by its own reference only, and a content that comes again has another one.
    let again = engine::ids::UploadId::from_bytes([41; 16]);
    harness.done(begin_step(again, &chunks(1, 1000)));
    let held = harness.done(DataStep::UploadHold { namespace: SPACE, upload: again });
    let StepOutcome::Held { generation, retained: false } = held else { panic!("{held:?}") };
    assert!(releases.iter().all(|release| release.generation != generation));
    harness.done(retain_step(again, &chunks(1, 1000), Some(generation)));
}

#[test]
fn the_current_version_stays_whatever_is_asked_for() {
    let mut harness = Harness::data();
    let file = file(&mut harness, 1..=3);
    let listed = |ids: &[u64]| {
        let ids = ids.iter().map(|id| VersionId(*id)).collect();
        remove(file.entry, VersionChoice::Listed(ids), 10)
    };
    let refused = harness.step(listed(&[1, 3]));
    assert!(matches!(&refused, Err(StepError::Invalid { why }) if why.contains("current")), "{refused:?}");
    assert_eq!(versions(&harness, file.entry), [3, 2, 1], "all or none");
    assert_eq!(removed(harness.done(listed(&[2, 2, 77]))).1, 1);
    assert_eq!(versions(&harness, file.entry), [3, 1]);
    let everything = VersionChoice::Before { time_ms: u64::MAX };
    assert_eq!(removed(harness.done(remove(file.entry, everything, 10))).1, 1);
    assert_eq!(versions(&harness, file.entry), [3]);
    for bad in [
        remove(file.entry, VersionChoice::AllButNewest(0), 10),
        remove(file.entry, VersionChoice::AllButNewest(1), 0),
        remove(file.entry, VersionChoice::AllButNewest(1), u32::MAX),
    ] {
        assert!(matches!(harness.step(bad.clone()), Err(StepError::Invalid { .. })), "{bad:?}");
    }
    let folder = harness.folder(ROOT_ENTRY, "folder");
    let refused = harness.step(remove(folder, VersionChoice::AllButNewest(1), 10));
    assert!(matches!(refused, Err(StepError::WrongKind { .. })), "{refused:?}");
    assert!(matches!(file.kind, EntryKind::File(state) if state.version == VersionId(3)));
}

#[test]
fn versions_before_a_time_go_up_to_the_first_that_was_not() {
    let mut harness = Harness::data();
    let begun_ms = harness.time_ms;
    let file = file(&mut harness, 1..=5);
    let before = |time_ms| remove(file.entry, VersionChoice::Before { time_ms }, 10);
    assert_eq!(removed(harness.done(before(begun_ms))).1, 0);
    assert_eq!(removed(harness.done(before(begun_ms + 2001))).1, 3);
    assert_eq!(versions(&harness, file.entry), [5, 4]);
}

#[test]
fn what_is_in_the_trash_has_its_versions_removed_by_a_purge_alone() {
    let mut harness = Harness::data();
    let file = file(&mut harness, 1..=3);
    harness.delete(&file, false).unwrap();
    let refused = harness.step(remove(file.entry, VersionChoice::AllButNewest(1), 10));
    assert!(matches!(refused, Err(StepError::NotFound { .. })), "{refused:?}");
}

#[test]
fn a_quota_is_set_and_what_is_there_stays() {
    let mut harness = Harness::data();
    file(&mut harness, 1..=3);
    let set = |quota_bytes| DataStep::NamespaceQuotaSet { namespace: SPACE, quota_bytes };
    harness.done(set(2500));
    assert_eq!(harness.used_bytes(), 3000);
    let upload = begin_step(engine::ids::UploadId::from_bytes([4; 16]), &chunks(4, 1000));
    assert!(matches!(harness.step(upload.clone()), Err(StepError::Quota { quota_bytes: 2500, .. })));
    harness.done(set(4000));
    let refused = harness.step(upload.clone());
    assert!(
        matches!(refused, Err(StepError::Quota { .. })),
        "entries and versions count as well: {refused:?}"
    );
    harness.done(set(4000 + 2 * 256 + 4 * 128));
    harness.done(upload);
    harness.done(set(0));
    let unknown = engine::ids::NamespaceId::from_bytes([77; 16]);
    let refused = harness.step(DataStep::NamespaceQuotaSet { namespace: unknown, quota_bytes: 1 });
    assert!(matches!(refused, Err(StepError::NotFound { .. })), "{refused:?}");
}
