//! The memory of requests, and commands that are refused whole.

use engine::ids::{RequestId, SlotId};

use super::super::keys::{self, Table};
use super::super::requests::SWEEP_BYTES_MAX;
use super::{DATA, Harness, SPACE, begin_step, chunks};
use crate::app::{App as _, LogTime};
use crate::kv::{Backing, KeyRange};
use crate::model::command::{Command, CommandOutcome, DataStep, RootStep, StepError, Steps};
use crate::model::request_key::RequestKey;
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
fn an_id_that_was_used_for_something_else_is_refused_and_forgets_nothing() {
    let mut harness = Harness::data();
    let request = harness.request();
    let first = harness.apply(request, Steps::Data(vec![mkdir("a")]));
    let reused = CommandOutcome::Failed { step: 0, error: StepError::RequestReused };
    assert_eq!(harness.apply(request, Steps::Data(vec![mkdir("b")])), reused);
    assert_eq!(harness.names(ROOT_ENTRY), ["a"]);
    assert_eq!(harness.apply(request, Steps::Data(vec![mkdir("a")])), first);
    // Where a client's message says what is asked for, the steps that it led to do not.
    let account = engine::ids::AccountId::from_bytes([1; 16]);
    let asked = |words: &[u8]| RequestKey::of_client(account, request, "create", words).step(3);
    let mut apply = |key: RequestKey, name: &str| {
        let command = Command::new(key, Steps::Data(vec![mkdir(name)]));
        harness.apply_bytes(&crate::model::codec::encode(&command))
    };
    let first = apply(asked(b"c"), "c");
    assert_eq!(apply(asked(b"c"), "cc"), first);
    assert_eq!(apply(asked(b"d"), "c"), reused);
    assert_eq!(harness.names(ROOT_ENTRY), ["a", "c"]);
}

/// Applies at these times, both counted from the harness's.
fn apply_at(harness: &mut Harness, log_days: i64, wall_days: i64, made_days: i64) -> CommandOutcome {
    let at = |days: i64| harness.time_ms.saturating_add_signed(days * DAY_MS);
    harness.requests += 1;
    let request = RequestId::new(at(made_days), u128::from(harness.requests).to_be_bytes());
    let command = Command::new(request, Steps::Data(vec![]));
    let time = LogTime { time_ms: at(log_days), wall_ms: at(wall_days) };
    let mut txn = crate::kv::Txn::new(&harness.store);
    let command = crate::model::codec::encode(&command);
    let outcome = harness.machine.apply(harness.group, &mut txn, time.into(), &command).unwrap();
    harness.store.commit(txn.into_changes().unwrap());
    crate::model::codec::decode(&outcome).unwrap()
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

#[test]
fn requests_of_a_right_clock_are_taken_whatever_the_log_and_the_clocks_said_before() {
    let done = |outcome| matches!(outcome, CommandOutcome::Done(_));
    // A log two days ahead, a week behind; and clocks that were 30 days ahead, or behind, for one entry.
    for log_days in [2, -7, 0] {
        for wrong_days in [30, 2, -30] {
            let mut harness = Harness::data();
            harness.time_ms += 20 * DAY_MS.unsigned_abs();
            assert!(done(apply_at(&mut harness, log_days, 0, 0)));
            if wrong_days > 0 {
                assert!(done(apply_at(&mut harness, log_days, wrong_days, wrong_days)));
            }
            assert!(done(apply_at(&mut harness, log_days, wrong_days, log_days)), "by the log");
            assert!(done(apply_at(&mut harness, log_days, 0, 0)), "{log_days} {wrong_days}");
            assert!(!done(apply_at(&mut harness, log_days, 0, 3)), "a wrong client");
            assert!(!done(apply_at(&mut harness, log_days, 0, -9)), "too old");
        }
    }
}

#[test]
fn no_outcome_is_forgotten_whose_request_would_be_taken_again() {
    let mut harness = Harness::data();
    let request = harness.request();
    let first = harness.apply(request, Steps::Data(vec![mkdir("a")]));
    // All clocks are 30 days ahead for a while, and many commands are applied meanwhile; then they are right again.
    for _ in 0..100 {
        harness.time_ms += 2000;
        apply_at(&mut harness, 0, 30, 30);
    }
    assert_eq!(harness.apply(request, Steps::Data(vec![mkdir("a")])), first);
    // And when all are far behind, what is forgotten by the log is not taken by the wall.
    harness.time_ms += 3 * DAY_MS.unsigned_abs();
    apply_at(&mut harness, 0, 0, 0);
    let outcome = apply_at(&mut harness, 0, -3, -3);
    assert!(matches!(outcome, CommandOutcome::RequestOutOfTime { .. }), "{outcome:?}");
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
fn large_outcomes_go_fewer_at_once() {
    let mut harness = Harness::data();
    let link = EntryKind::Symlink(vec![b'x'; 4096]);
    let entry = harness.create(ROOT_ENTRY, "link", link).unwrap().entry;
    let touch = DataStep::EntrySetAttributes { namespace: SPACE, entry, mode: 0o777, mtime_ns: 5 };
    for _ in 0..20 {
        harness.all(vec![touch.clone(); 100]);
    }
    let remembered = |harness: &Harness| {
        let range = KeyRange::prefix(&keys::table(Table::Request));
        harness.store.scan(&range, usize::MAX, false).unwrap()
    };
    harness.time_ms += REQUEST_MEMORY_MS + 1;
    for _ in 0..3 {
        let before = remembered(&harness);
        let row_bytes_max = before.iter().map(|(key, value)| key.len() + value.len()).max().unwrap_or(0);
        harness.all(Vec::new());
        let after = remembered(&harness);
        let gone = before.iter().filter(|row| !after.contains(row));
        let bytes = gone.map(|(key, value)| key.len() + value.len()).sum::<usize>();
        assert!(bytes > 0 && bytes < SWEEP_BYTES_MAX + row_bytes_max, "{bytes}");
    }
    for _ in 0..30 {
        harness.all(Vec::new());
    }
    assert_eq!(remembered(&harness).len(), 33);
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
    let steps = Steps::Data(vec![begin_step(upload, &chunks(1, 10))]);
    let good = crate::model::codec::encode(&Command::new(harness.request(), steps));
    for length in 0..good.len() {
        assert_eq!(harness.apply_bytes(&good[..length]), CommandOutcome::NotUnderstood);
    }
    let mut other_format = good.clone();
    other_format[0] += 1;
    let mut left_over = good.clone();
    left_over.push(0);
    for bad in [&other_format, &left_over] {
        assert_eq!(harness.apply_bytes(bad), CommandOutcome::NotUnderstood);
        // In the log all the same, it is of newer software: the replica stops.
        let mut txn = crate::kv::Txn::new(&harness.store);
        let applied = crate::app::App::apply(
            &harness.machine,
            DATA,
            &mut txn,
            LogTime::at(harness.time_ms).into(),
            bad,
        );
        assert!(applied.is_err());
    }
    assert!(harness.machine.refusal(DATA, &good).is_none());
    assert_eq!(harness.store, before);
}

#[test]
fn too_many_steps_are_refused() {
    let mut harness = Harness::data();
    let steps = vec![DataStep::SlotsAdopt { first: SlotId(0), last: SlotId(0) }; crate::model::STEPS_MAX + 1];
    assert!(matches!(harness.all(steps), CommandOutcome::Failed { error: StepError::Invalid { .. }, .. }));
}
