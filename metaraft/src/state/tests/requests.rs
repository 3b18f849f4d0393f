//! The memory of requests, and commands that are refused whole.

use engine::ids::{RequestId, SlotId};

use super::super::keys::{self, Table};
use super::{DATA, Harness, SPACE, begin_step, chunks};
use crate::kv::{Backing, KeyRange};
use crate::model::command::{CommandOutcome, DataStep, RootStep, StepError, Steps};
use crate::model::row::{EntryKind, ROOT_ENTRY};
use crate::model::{REQUEST_AHEAD_MS, REQUEST_MEMORY_MS};

fn mkdir(name: &str) -> DataStep {
    DataStep::EntryCreate {
        namespace: SPACE,
        parent: ROOT_ENTRY,
        name: name.to_owned(),
        kind: EntryKind::Folder,
        mode: 0o755,
        mtime_ns: 0,
        existing: crate::model::command::OnExisting::Refuse,
    }
}

#[test]
fn a_repetition_gets_the_first_answer_and_does_nothing() {
    let mut harness = Harness::data();
    let request = harness.request();
    let first = harness.apply(request, Steps::Data(vec![mkdir("a")]));
    assert!(matches!(first, CommandOutcome::Done(_)));
    harness.time_ms += 1000;
    let before = harness.store.clone();
    assert_eq!(harness.apply(request, Steps::Data(vec![mkdir("a")])), first);
    assert_eq!(harness.store.rows().len(), before.rows().len());
    // A failure is remembered as well, though it would go through by now.
    let refused = harness.request();
    let failed = harness.apply(refused, Steps::Data(vec![mkdir("a")]));
    assert!(matches!(failed, CommandOutcome::Failed { .. }));
    let parent = ROOT_ENTRY;
    let row = harness.names(parent);
    assert_eq!(row, ["a"]);
    let entry = engine::ids::EntryId(2);
    harness.done(DataStep::EntryDelete {
        namespace: SPACE,
        entry,
        parent,
        name: "a".into(),
        recursive: false,
    });
    assert_eq!(harness.apply(refused, Steps::Data(vec![mkdir("a")])), failed);
}

#[test]
fn requests_out_of_time_are_refused_and_leave_nothing() {
    let mut harness = Harness::data();
    let before = harness.store.clone();
    for time_ms in
        [0, harness.time_ms - REQUEST_MEMORY_MS - 1, harness.time_ms + REQUEST_AHEAD_MS + 1, u64::MAX]
    {
        let outcome = harness.apply(RequestId::new(time_ms, [1; 16]), Steps::Data(vec![mkdir("a")]));
        assert_eq!(outcome, CommandOutcome::RequestOutOfTime { leader_ms: harness.time_ms });
    }
    assert_eq!(harness.store, before);
    for time_ms in [harness.time_ms - REQUEST_MEMORY_MS, harness.time_ms + REQUEST_AHEAD_MS] {
        let outcome = harness.apply(RequestId::new(time_ms, [1; 16]), Steps::Data(vec![]));
        assert_eq!(outcome, CommandOutcome::Done(Vec::new()));
    }
}

#[test]
fn old_outcomes_go_a_few_with_each_command() {
    let mut harness = Harness::data();
    for _ in 0..300 {
        harness.all(Vec::new());
    }
    let remembered = |harness: &Harness| {
        let range = KeyRange::prefix(&keys::table(Table::Request));
        harness.store.scan(&range, usize::MAX, false).unwrap().len()
    };
    assert!(remembered(&harness) >= 300);
    harness.time_ms += REQUEST_MEMORY_MS + 1;
    harness.all(Vec::new());
    assert!(remembered(&harness) > 200, "no command may be held up for long");
    for _ in 0..10 {
        harness.all(Vec::new());
    }
    assert_eq!(remembered(&harness), 11);
}

#[test]
fn a_refusal_for_the_owner_is_not_remembered() {
    let mut harness = Harness::bare(DATA);
    let request = harness.request();
    let owner = engine::ids::AccountId::from_bytes([1; 16]);
    let create = || vec![DataStep::NamespaceCreate { namespace: SPACE, owner, quota_bytes: 0 }];
    let slot = SPACE.slot();
    let refused = harness.apply(request, Steps::Data(create()));
    assert_eq!(refused, CommandOutcome::Failed { step: 0, error: StepError::NotOwner { slot } });
    harness.done(DataStep::SlotsAdopt { first: slot, last: slot });
    assert!(matches!(harness.apply(request, Steps::Data(create())), CommandOutcome::Done(_)));
    let next = SlotId(slot.0 ^ 1);
    assert!(!harness.store.rows().is_empty() && next != slot);
}

#[test]
fn a_command_is_applied_whole_or_not_at_all() {
    let mut harness = Harness::data();
    let before = harness.names(ROOT_ENTRY);
    let outcome = harness.all(vec![mkdir("a"), mkdir("b"), mkdir("a"), mkdir("c")]);
    let CommandOutcome::Failed { step: 2, error: StepError::AlreadyExists { .. } } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(harness.names(ROOT_ENTRY), before);
    assert_eq!(harness.create(ROOT_ENTRY, "a", EntryKind::Folder).unwrap().sequence, 1);
}

#[test]
fn steps_go_to_their_kind_of_group_and_garbage_nowhere() {
    let mut harness = Harness::data();
    let setting = RootStep::SettingSet { name: "node-grace".into(), value: "9s".into() };
    assert_eq!(harness.root_step(setting), Err(StepError::WrongGroup));
    let mut root = Harness::root();
    assert_eq!(root.step(mkdir("a")), Err(StepError::WrongGroup));
    let before = harness.store.clone();
    let upload = engine::ids::UploadId::from_bytes([1; 16]);
    let good = crate::model::codec::encode(&crate::model::command::Command {
        request: harness.request(),
        steps: Steps::Data(vec![begin_step(upload, &chunks(1, 10))]),
    });
    for length in 0..good.len() {
        assert_eq!(harness.apply_bytes(&good[..length]), CommandOutcome::NotUnderstood);
    }
    let mut other_format = good.clone();
    other_format[0] += 1;
    assert_eq!(harness.apply_bytes(&other_format), CommandOutcome::NotUnderstood);
    assert_eq!(harness.store, before);
}

#[test]
fn too_many_steps_are_refused() {
    let mut harness = Harness::data();
    let steps = vec![DataStep::SlotsAdopt { first: SlotId(0), last: SlotId(0) }; crate::model::STEPS_MAX + 1];
    assert!(matches!(harness.all(steps), CommandOutcome::Failed { error: StepError::Invalid { .. }, .. }));
}
