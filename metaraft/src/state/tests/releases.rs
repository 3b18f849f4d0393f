//! Releases that cannot be done, and wait aside of the others.

use super::{Harness, SPACE};
use crate::model::command::DataStep;
use crate::model::outcome::{Release, StepOutcome};
use crate::model::query::{Query, Reply};
use crate::model::row::{ASIDE_WHY_BYTES_MAX, AsideRelease};

/// Deletes and purges a file; gives what is to be released.
fn release(harness: &mut Harness, number: u8) -> Release {
    let row = harness.file(number, &format!("{number}"));
    let trash = harness.delete(&row, false).unwrap();
    match harness.done(DataStep::TrashPurge { namespace: SPACE, trash, entries_max: 10 }) {
        StepOutcome::Purged { releases, .. } => releases[0],
        other => panic!("{other:?}"),
    }
}

fn set_aside(release: Release, why: &str) -> DataStep {
    let Release { content, generation } = release;
    DataStep::ReleaseSetAside { namespace: SPACE, content, generation, why: why.to_owned() }
}

fn queued(harness: &Harness) -> Vec<Release> {
    match harness.ask(&Query::Releases { namespace: SPACE, count_max: 10 }) {
        Reply::Releases(queued) => queued,
        other => panic!("{other:?}"),
    }
}

fn due(harness: &Harness, now_ms: u64) -> Vec<AsideRelease> {
    match harness.ask(&Query::ReleasesDue { now_ms, count_max: 10 }) {
        Reply::ReleasesAside(due) => due,
        other => panic!("{other:?}"),
    }
}

fn counted(harness: &Harness) -> (u64, usize) {
    match harness.ask(&Query::Counters) {
        Reply::Counters(counters) => (counters.releases_aside, counters.releases_aside_some.len()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_release_that_fails_waits_longer_each_time_and_is_never_lost() {
    let mut harness = Harness::data();
    let [bad, good] = [1, 2].map(|number| release(&mut harness, number));
    let start_ms = harness.time_ms;
    harness.done(set_aside(bad, "its list is unreadable"));
    assert_eq!(queued(&harness), [good], "the rest goes on");
    assert_eq!(counted(&harness), (1, 1));
    let mut waited_ms = 0;
    for attempts in 1..20 {
        let waiting = due(&harness, u64::MAX);
        let [row] = waiting.as_slice() else { panic!("{waiting:?}") };
        assert_eq!((row.release, row.attempts, row.since_ms), (bad, attempts, start_ms));
        assert_eq!(row.why, "its list is unreadable");
        let wait_ms = row.retry_ms - harness.time_ms;
        assert!(wait_ms > waited_ms || wait_ms == 24 * 3_600_000, "{wait_ms} after {waited_ms}");
        waited_ms = wait_ms;
        assert!(due(&harness, row.retry_ms - 1).is_empty());
        assert_eq!(due(&harness, row.retry_ms).len(), 1);
        harness.time_ms = row.retry_ms;
        harness.done(set_aside(bad, "its list is unreadable"));
    }
    assert_eq!(waited_ms, 24 * 3_600_000);
    let done = DataStep::ReleaseDone { namespace: SPACE, content: bad.content, generation: bad.generation };
    harness.done(done);
    assert_eq!((due(&harness, u64::MAX), counted(&harness)), (Vec::new(), (0, 0)));
    assert_eq!(queued(&harness), [good]);
}

#[test]
fn what_was_released_meanwhile_is_not_set_aside() {
    let mut harness = Harness::data();
    let Release { content, generation } = release(&mut harness, 1);
    harness.done(DataStep::ReleaseDone { namespace: SPACE, content, generation });
    harness.done(set_aside(Release { content, generation }, "too late"));
    assert_eq!(due(&harness, u64::MAX), Vec::new());
}

#[test]
fn a_long_reason_is_cut_between_letters() {
    let mut harness = Harness::data();
    let bad = release(&mut harness, 1);
    harness.done(set_aside(bad, &"é".repeat(1000)));
    let why = &due(&harness, u64::MAX)[0].why;
    assert!(why.len() <= ASIDE_WHY_BYTES_MAX && why.len() > ASIDE_WHY_BYTES_MAX - 2, "{}", why.len());
}
