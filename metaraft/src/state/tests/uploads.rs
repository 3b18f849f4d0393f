//! Sessions and commits.

use engine::chunk::CHUNK_BYTES_MAX;
use engine::ids::{AccountId, ContentId, HolderId, NamespaceId, UploadId, VersionId};

use super::super::quota::{ENTRY_BYTES, FILE_BYTES, VERSION_BYTES};
use super::{DEVICE, Harness, SPACE, begin_step, chunks, commit_step, entry, holder_of, retain_step};
use crate::model::command::{Base, DataStep, OpenUploadsMax, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};
use crate::model::row::{EntryKind, EntryRow, ROOT_ENTRY, UploadState};

fn version(row: &EntryRow) -> VersionId {
    match row.kind {
        EntryKind::File(state) => state.version,
        _ => panic!("{row:?}"),
    }
}

#[test]
fn a_session_whose_list_does_not_fit_is_refused() {
    let mut harness = Harness::data();
    let upload = UploadId::from_bytes([1; 16]);
    let good = begin_step(upload, &chunks(1, 1000));
    let change = |change: &dyn Fn(&mut DataStep)| {
        let mut step = good.clone();
        change(&mut step);
        step
    };
    let bad = [
        change(&|step| {
            if let DataStep::UploadBegin { size, .. } = step {
                *size += 1
            }
        }),
        change(&|step| {
            if let DataStep::UploadBegin { content, .. } = step {
                *content = ContentId::from_bytes([3; 32]);
            }
        }),
        change(&|step| {
            if let DataStep::UploadBegin { life_ms, .. } = step {
                *life_ms = u64::MAX
            }
        }),
        begin_step(upload, &chunks(1, CHUNK_BYTES_MAX as u64 + 1)),
    ];
    for step in bad {
        assert!(matches!(harness.step(step.clone()), Err(StepError::Invalid { .. })), "{step:?}");
    }
    let begun = harness.done(good.clone());
    assert_eq!(begun, StepOutcome::UploadBegun { holder: holder_of(upload) });
    // Begun again, through another gateway, which has minted another holder.
    let again = change(&|step| {
        if let DataStep::UploadBegin { holder, .. } = step {
            *holder = HolderId::from_bytes([99; 16]);
        }
    });
    assert_eq!(harness.done(again), begun, "two holders of one session");
    let other = begin_step(upload, &chunks(2, 1000));
    assert!(matches!(harness.step(other), Err(StepError::AlreadyExists { .. })));
}

#[test]
fn a_commit_goes_through_only_against_its_base() {
    let mut harness = Harness::data();
    let first = harness.file(1, "a");
    let upload = harness.begin(2, 1000);
    let current = Some(version(&first));
    assert_eq!(harness.commit(upload, "a", Base::Absent), Err(StepError::Conflict { current }));
    let stale = Base::Version(VersionId(77));
    assert_eq!(harness.commit(upload, "a", stale), Err(StepError::Conflict { current }));
    let nothing = harness.commit(upload, "b", Base::Version(version(&first)));
    assert_eq!(nothing, Err(StepError::Conflict { current: None }));
    harness.folder(ROOT_ENTRY, "f");
    let onto_folder = harness.commit(upload, "f", Base::Any);
    assert_eq!(onto_folder, Err(StepError::WrongKind { is: "folder".into() }));
    let second = harness.commit(upload, "a", Base::Version(version(&first))).unwrap();
    assert_eq!(second.entry, first.entry);
    assert!(version(&second) > version(&first));
    let again = harness.commit(upload, "a", Base::Any);
    assert_eq!(again, Err(StepError::UploadEnded { how: "committed".into() }));
    let Reply::Versions(versions) = harness.ask(&Query::Versions { namespace: SPACE, entry: first.entry })
    else {
        panic!("no versions");
    };
    let numbers: Vec<_> = versions.iter().map(|row| row.version).collect();
    assert_eq!(numbers, [version(&second), version(&first)]);
    assert_eq!(harness.used_bytes(), 2000);
}

#[test]
fn a_commit_needs_its_content_held_unless_there_is_none() {
    let mut harness = Harness::data();
    let upload = harness.begin(1, 1000);
    let commit = commit_step(upload, ROOT_ENTRY, "a", Base::Any);
    assert!(matches!(harness.step(commit), Err(StepError::Invalid { .. })));
    let empty = harness.begin(2, 0);
    let held = harness.done(DataStep::UploadHold { namespace: SPACE, upload: empty });
    assert_eq!(held, StepOutcome::Held { generation: 0, retained: true });
    let row = entry(harness.step(commit_step(empty, ROOT_ENTRY, "empty", Base::Any))).unwrap();
    assert!(matches!(row.kind, EntryKind::File(state) if state.size == 0));
    let trash = harness.delete(&row, false).unwrap();
    let purged = harness.done(DataStep::TrashPurge { namespace: SPACE, trash, entries_max: 10 });
    assert!(
        matches!(purged, StepOutcome::Purged { done: true, entries: 1, ref releases, .. } if releases.is_empty())
    );
}

#[test]
fn an_aborted_or_expired_session_never_commits() {
    let mut harness = Harness::data();
    let upload = harness.begin(1, 1000);
    harness.done(DataStep::UploadHold { namespace: SPACE, upload });
    let abort = || DataStep::UploadAbort { namespace: SPACE, upload };
    let aborted = harness.done(abort());
    let StepOutcome::Aborted { holder: Some(holder), release: Some(release) } = aborted else {
        panic!("{aborted:?}");
    };
    assert_eq!(holder, holder_of(upload));
    assert_eq!(harness.done(abort()), aborted, "still to be released");
    let ended = Err(StepError::UploadEnded { how: "aborted".into() });
    assert_eq!(harness.commit(upload, "a", Base::Any), ended);
    let (content, generation) = (release.content, release.generation);
    harness.done(DataStep::ContentRelease { content, namespace: SPACE, generation });
    harness.done(DataStep::ReleaseDone { namespace: SPACE, content, generation });
    assert_eq!(harness.done(abort()), StepOutcome::Aborted { holder: Some(holder), release: None });
    let late = harness.step(retain_step(upload, &chunks(1, 1000), Some(generation)));
    assert!(matches!(late, Err(StepError::Changed { .. })), "a late retain of what was released");

    let upload = harness.begin(2, 1000);
    harness.time_ms += 3_600_001;
    let ended = Err(StepError::UploadEnded { how: "expired".into() });
    assert_eq!(harness.commit(upload, "a", Base::Any), ended);
    let unknown = UploadId::from_bytes([99; 16]);
    let nothing = harness.done(DataStep::UploadAbort { namespace: SPACE, upload: unknown });
    assert_eq!(nothing, StepOutcome::Aborted { holder: None, release: None });
}

#[test]
fn an_ended_session_is_not_begun_again_and_a_pending_one_lives_on() {
    let mut harness = Harness::data();
    let begin = |number| begin_step(UploadId::from_bytes([number; 16]), &chunks(number, 1000));
    let ended = |how: &str| Err(StepError::UploadEnded { how: how.to_owned() });
    let extend = |number| {
        let upload = UploadId::from_bytes([number; 16]);
        DataStep::UploadExtend { namespace: SPACE, upload, life_ms: 3_600_000 }
    };
    harness.file(1, "a");
    let aborted = harness.begin(2, 1000);
    harness.done(DataStep::UploadAbort { namespace: SPACE, upload: aborted });
    for (number, how) in [(1, "committed"), (2, "aborted")] {
        assert_eq!(harness.step(begin(number)), ended(how));
        assert_eq!(harness.step(extend(number)), ended(how));
    }
    for (number, again) in [(3, begin(3)), (4, extend(4))] {
        let upload = harness.begin(number, 1000);
        harness.time_ms += 3_000_000;
        harness.done(again.clone());
        harness.time_ms += 3_000_000;
        harness.commit(upload, &format!("{number}"), Base::Any).unwrap();
        harness.begin(number + 10, 1000);
        harness.time_ms += 3_600_001;
        assert_eq!(harness.step(begin(number + 10)), ended("expired"));
        assert_eq!(harness.step(extend(number + 10)), ended("expired"));
    }
    let forever = DataStep::UploadExtend { namespace: SPACE, upload: aborted, life_ms: u64::MAX };
    assert!(matches!(harness.step(forever), Err(StepError::Invalid { .. })));
}

#[test]
fn the_quota_is_exact() {
    let mut harness = Harness::data();
    let namespace = NamespaceId::from_bytes([70; 16]);
    let owner = AccountId::from_bytes([1; 16]);
    let quota_bytes = 2 * (1000 + FILE_BYTES) - 1;
    harness.done(DataStep::NamespaceCreate { namespace, owner, quota_bytes });
    let in_it = |step: DataStep| match step {
        DataStep::UploadBegin { upload, holder, content, size, cutter, chunks, life_ms, most, .. } => {
            DataStep::UploadBegin { namespace, upload, holder, content, size, cutter, chunks, life_ms, most }
        }
        other => other,
    };
    let uploads = [1, 2].map(|number| UploadId::from_bytes([number; 16]));
    let begin = |number: u8| in_it(begin_step(uploads[usize::from(number) - 1], &chunks(number, 1000)));
    harness.done(begin(1));
    let over =
        StepError::Quota { used_bytes: 1000 + FILE_BYTES, quota_bytes, needed_bytes: 1000 + FILE_BYTES };
    assert_eq!(harness.step(begin(2)), Err(over.clone()), "an open session counts");
    harness.done(DataStep::UploadHold { namespace, upload: uploads[0] });
    let commit = |upload, name: &str| DataStep::FileCommit {
        namespace,
        upload,
        parent: ROOT_ENTRY,
        name: name.to_owned(),
        base: Base::Any,
        mode: 0,
        mtime_ns: 0,
        device: DEVICE,
    };
    let first = entry(harness.step(commit(uploads[0], "a"))).unwrap();
    assert_eq!(harness.step(begin(2)), Err(over.clone()));
    let (entry_id, name) = (first.entry, "a".to_owned());
    let parent = ROOT_ENTRY;
    harness.done(DataStep::EntryDelete { namespace, entry: entry_id, parent, name, recursive: false });
    assert_eq!(harness.step(begin(2)), Err(over), "the trash counts");
    harness.done(DataStep::TrashPurge { namespace, trash: 1, entries_max: 10 });
    harness.done(begin(2));
    harness.done(DataStep::UploadHold { namespace, upload: uploads[1] });
    harness.done(commit(uploads[1], "b"));
}

#[test]
fn what_has_no_bytes_of_its_own_counts_as_well() {
    let mut harness = Harness::data();
    let charged = |harness: &Harness| match harness.ask(&Query::Namespace { namespace: SPACE }) {
        Reply::Namespace(Some(row)) => row.charged_bytes(),
        other => panic!("{other:?}"),
    };
    let link = |bytes: usize| EntryKind::Symlink(vec![b'x'; bytes]);
    harness.folder(ROOT_ENTRY, "f");
    assert_eq!(charged(&harness), ENTRY_BYTES);
    let row = harness.create(ROOT_ENTRY, "l", link(4000)).unwrap();
    assert_eq!(charged(&harness), 2 * ENTRY_BYTES + 4000);
    harness.done(DataStep::SymlinkRetarget {
        namespace: SPACE,
        entry: row.entry,
        target_before: vec![b'x'; 4000],
        target: vec![b'y'; 10],
        mode: 0,
        mtime_ns: 0,
    });
    assert_eq!(charged(&harness), 2 * ENTRY_BYTES + 10);
    for (number, versions) in [(1, 1), (2, 2)] {
        let upload = harness.begin(number, 0);
        harness.done(commit_step(upload, ROOT_ENTRY, "empty", Base::Any));
        assert_eq!(charged(&harness), 3 * ENTRY_BYTES + 10 + versions * VERSION_BYTES);
    }
}

#[test]
fn open_sessions_are_bounded_until_they_are_forgotten() {
    let mut harness = Harness::data();
    let begin = |number: u8| {
        let mut step = begin_step(UploadId::from_bytes([number; 16]), &chunks(number, 1000));
        if let DataStep::UploadBegin { most, .. } = &mut step {
            *most = OpenUploadsMax { sessions: 3, list_entries: 2 };
        }
        step
    };
    let too_many = |outcome| matches!(outcome, Err(StepError::TooMany { .. }));
    harness.done(begin(1));
    harness.done(begin(2));
    assert!(too_many(harness.step(begin(3))), "lists");
    harness.begin(4, 0);
    assert!(too_many(harness.step(begin(5))), "sessions");
    let upload = UploadId::from_bytes([1; 16]);
    let named = |step: fn(NamespaceId, UploadId) -> DataStep| step(SPACE, upload);
    let forget = || named(|namespace, upload| DataStep::UploadForget { namespace, upload });
    let expire = || named(|namespace, upload| DataStep::UploadExpire { namespace, upload, idle: None });
    assert!(matches!(harness.step(forget()), Err(StepError::Changed { .. })), "it is open");
    assert!(matches!(harness.step(expire()), Err(StepError::Changed { .. })), "it has time left");
    let Reply::UploadsOpen(open) = harness.ask(&Query::UploadsOpen { namespace: SPACE, count_max: 9 }) else {
        panic!("no sessions");
    };
    assert_eq!(open.len(), 3);
    harness.time_ms += 3_600_001;
    let expired = harness.done(expire());
    assert_eq!(expired, StepOutcome::Aborted { holder: Some(holder_of(upload)), release: None });
    harness.done(begin(3));
    assert!(
        matches!(harness.step(forget()), Err(StepError::Changed { .. })),
        "somebody may be at work on it"
    );
    harness.time_ms += 120_001;
    let again = harness.done(expire());
    assert_eq!(again, StepOutcome::Aborted { holder: Some(holder_of(upload)), release: None });
    harness.done(forget());
    harness.done(forget());
    assert_eq!(harness.done(expire()), StepOutcome::Aborted { holder: None, release: None });
    let Reply::Namespace(Some(row)) = harness.ask(&Query::Namespace { namespace: SPACE }) else {
        panic!("no namespace");
    };
    assert_eq!((row.open.sessions, row.open.list_entries, row.open.given_up), (3, 2, 0));
}

#[test]
fn an_idle_session_is_given_up_only_if_nobody_has_gone_on_with_it() {
    let mut harness = Harness::data();
    let upload = harness.begin(1, 1000);
    let ends_ms = harness.time_ms + 3_600_000;
    harness.time_ms += 1_000_000;
    harness.done(DataStep::UploadExtend { namespace: SPACE, upload, life_ms: 3_600_000 });
    let idle = |ends_ms| DataStep::UploadExpire { namespace: SPACE, upload, idle: Some(ends_ms) };
    assert!(matches!(harness.step(idle(ends_ms)), Err(StepError::Changed { .. })));
    let given_up = harness.done(idle(ends_ms + 1_000_000));
    assert_eq!(given_up, StepOutcome::Aborted { holder: Some(holder_of(upload)), release: None });
}

#[test]
fn lists_that_were_given_up_are_bounded_as_well() {
    let mut harness = Harness::data();
    let mut refused = None;
    for number in 0..9 {
        let upload = UploadId::from_bytes([number; 16]);
        let mut step = begin_step(upload, &chunks(number, 1000));
        if let DataStep::UploadBegin { most, .. } = &mut step {
            *most = OpenUploadsMax { sessions: 9, list_entries: 2 };
        }
        if let Err(error) = harness.step(step) {
            refused = Some((number, error));
            break;
        }
        harness.done(DataStep::UploadAbort { namespace: SPACE, upload });
    }
    assert!(matches!(refused, Some((3, StepError::TooMany { .. }))), "{refused:?}");
}

#[test]
fn restoring_a_version_adds_one_and_a_hold_alone_tells_nobody() {
    let mut harness = Harness::data();
    let first = harness.file(1, "a");
    let upload = harness.begin(2, 1000);
    let contents = [1, 2].map(|number| ContentId::of(&chunks(number, 1000))).to_vec();
    let holds = Query::NamespaceHolds { namespace: SPACE, contents };
    harness.done(DataStep::UploadHold { namespace: SPACE, upload });
    assert_eq!(harness.ask(&holds), Reply::Flags(vec![true, false]));
    harness.commit(upload, "a", Base::Any).unwrap();
    assert_eq!(harness.ask(&holds), Reply::Flags(vec![true, true]));
    let restore =
        |version| DataStep::VersionRestore { namespace: SPACE, entry: first.entry, version, device: DEVICE };
    let restored = entry(harness.step(restore(version(&first)))).unwrap();
    assert!(version(&restored) > version(&first));
    assert_eq!(harness.used_bytes(), 3000);
    assert!(matches!(harness.step(restore(VersionId(99))), Err(StepError::NotFound { .. })));
    let Reply::Uploads(rows) = harness.ask(&Query::Uploads { namespace: SPACE, uploads: vec![upload] })
    else {
        panic!("no sessions");
    };
    assert!(matches!(rows[0].unwrap().state, UploadState::Committed { entry, .. } if entry == first.entry));
    let part = Query::UploadPart { namespace: SPACE, upload, part: 0 };
    assert_eq!(harness.ask(&part), Reply::UploadPart(Vec::new()), "the content has the list now");
}
