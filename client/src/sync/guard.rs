//! Whether so many deletes are meant. Pure: time is what it is told.
//!
//! A disk that lost its files, a wrong folder or a slip of the hand look like deletes; those are carried out only once
//! somebody has confirmed them. A disk loses its files one after another, and a scan finds them in portions: so what
//! was carried out a while ago counts as well.
//!
//! Invariants:
//! - A confirmation is of just those deletes that were shown: if they are others by now, it counts for nothing.
//! - What is confirmed is a number from then on, which shrinks as those are carried out, and is never more than what
//!   still waits.
//! - What was carried out counts over restarts too: it is kept in the state, with the time of day.
//! - What was confirmed does not count against what comes later.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::config::DeleteGuard;
use super::status::DELETES_ALL;

/// So few deletes never wait: of the last two files, one is half.
const FEW_DELETES_MAX: u64 = 10;
/// Deletes within this time count together.
const WINDOW: Duration = Duration::from_secs(10 * 60);
/// What is remembered of it, in steps.
const STEP: Duration = Duration::from_secs(10);
/// Steps that are remembered: those of the window, and the one that has begun.
const STEPS_MAX: usize = 61;

/// As the trees are: files only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Deletes that are not carried out yet.
    pub(crate) pending: u64,
    /// Deletes that were carried out in the life of the state.
    pub(crate) carried_out: u64,
    /// Files that both sides agreed on, those that wait to be deleted among them.
    pub(crate) known: u64,
}

/// A part of the window.
#[derive(Clone, Copy, Debug)]
struct Step {
    began: Instant,
    carried_out: u64,
    known_max: u64,
}

/// Whether somebody has said that the folder is meant to be empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum AllConfirmed {
    #[default]
    No,
    /// A scan of everything is to find what that comes to.
    Unscanned,
    /// It has.
    Scanned,
}

/// Judges deletes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guard {
    limits: DeleteGuard,
    confirmed: u64,
    /// All that was in the folder is meant to go.
    all: AllConfirmed,
    /// What somebody was shown and has confirmed, until it is compared with what waits.
    shown: Option<String>,
    carried_out: u64,
    steps: VecDeque<Step>,
    /// It is otherwise than it was last kept.
    changed: bool,
}

/// Bytes of a number as it is kept.
const NUMBER_BYTES: usize = 8;

impl Guard {
    pub(crate) fn new(limits: DeleteGuard) -> Self {
        Self { limits, ..Self::default() }
    }

    /// As it was kept, at `now_ms` by the time of day. What cannot be read is taken for nothing: then only what comes
    /// from now on counts.
    pub(crate) fn restored(self, kept: &[u8], now: Instant, now_ms: u64) -> Self {
        let numbers: Vec<u64> = kept
            .chunks_exact(NUMBER_BYTES)
            .filter_map(|bytes| bytes.try_into().ok().map(u64::from_be_bytes))
            .collect();
        let Some((carried_out, steps)) = numbers.split_first() else { return self };
        let step_of = |step: &[u64]| {
            let [began_ms, carried_out, known_max] = *step else { return None };
            // A clock that was set back makes it no younger than now.
            let age = Duration::from_millis(now_ms.saturating_sub(began_ms)).min(WINDOW);
            Some(Step { began: now.checked_sub(age)?, carried_out, known_max })
        };
        let steps = steps.chunks_exact(3).take(STEPS_MAX).filter_map(step_of).collect();
        Self { carried_out: *carried_out, steps, ..self }
    }

    /// What is to be kept for [`Self::restored`], if that has changed.
    pub(crate) fn take_kept(&mut self, now: Instant, now_ms: u64) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut kept = self.carried_out.to_be_bytes().to_vec();
        for step in &self.steps {
            let age = now.saturating_duration_since(step.began).as_millis();
            let began_ms = now_ms.saturating_sub(u64::try_from(age).unwrap_or(u64::MAX));
            for number in [began_ms, step.carried_out, step.known_max] {
                kept.extend(number.to_be_bytes());
            }
        }
        Some(kept)
    }

    /// Somebody wants those deletes carried out that were shown as `shown`.
    pub(crate) fn confirm_shown(&mut self, shown: String) {
        self.shown = Some(shown);
    }

    /// Whether it was confirmed that the folder is meant to be empty. That counts once.
    pub(crate) fn takes_all(&mut self) -> bool {
        self.shown.take_if(|shown| shown == DELETES_ALL).is_some()
    }

    /// Compares what was confirmed with what waits: if it is that, it may go ahead. Says whether it may.
    pub(crate) fn take_confirmation(&mut self, waiting: &str, pending: u64) -> bool {
        let is_it = self.shown.take().is_some_and(|shown| shown == waiting);
        if is_it {
            self.confirm(pending);
        }
        is_it
    }

    /// Somebody wants so many deletes carried out.
    pub(crate) fn confirm(&mut self, deletes: u64) {
        self.confirmed = self.confirmed.max(deletes);
    }

    /// Somebody wants all that was in the folder deleted, which no scan has found to be gone yet.
    pub(crate) fn confirm_all(&mut self) {
        self.all = AllConfirmed::Unscanned;
    }

    /// Everything was scanned: what waits now is all that was confirmed with [`Self::confirm_all`].
    pub(crate) fn all_scanned(&mut self) {
        if self.all == AllConfirmed::Unscanned {
            self.all = AllConfirmed::Scanned;
        }
    }

    /// How many deletes wait for a confirmation; 0: all may be carried out.
    pub(crate) fn judge(&mut self, counts: Counts, now: Instant) -> u64 {
        let Counts { pending, known, .. } = counts;
        if self.all == AllConfirmed::Scanned {
            self.all = AllConfirmed::No;
            self.confirm(pending);
        }
        self.take_in(counts, now);
        if pending <= self.confirmed {
            return 0;
        }
        let before: u64 = self.steps.iter().map(|step| step.carried_out).sum();
        let too_many = pending.saturating_add(before) > self.limits.count_max;
        // Of the files that there were: what was made meanwhile and deleted again is no loss.
        let known_max = self.steps.iter().map(|step| step.known_max).max().unwrap_or(known);
        let lost = known_max.saturating_sub(known.saturating_sub(pending));
        let share = u128::from(lost) * 100 > u128::from(known_max) * u128::from(self.limits.percent_max);
        if too_many || (share && lost > FEW_DELETES_MAX) { pending } else { 0 }
    }

    fn take_in(&mut self, counts: Counts, now: Instant) {
        let carried_out = counts.carried_out.saturating_sub(self.carried_out);
        self.changed |= carried_out > 0;
        self.carried_out = counts.carried_out;
        let left = self.confirmed.min(counts.pending);
        let covered = carried_out.min(self.confirmed - left);
        self.confirmed = left;
        for step in &mut self.steps {
            step.known_max = step.known_max.saturating_sub(covered);
        }
        while self.steps.front().is_some_and(|step| now.saturating_duration_since(step.began) >= WINDOW)
            || self.steps.len() > STEPS_MAX
        {
            self.steps.pop_front();
        }
        let carried_out = carried_out - covered;
        match self.steps.back_mut() {
            Some(step) if now.saturating_duration_since(step.began) < STEP => {
                step.carried_out += carried_out;
                step.known_max = step.known_max.max(counts.known);
            }
            _ => self.steps.push_back(Step { began: now, carried_out, known_max: counts.known }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pending: u64, carried_out: u64, known: u64) -> Counts {
        Counts { pending, carried_out, known }
    }

    fn judge_once(pending: u64, known: u64) -> u64 {
        Guard::default().judge(counts(pending, 0, known), Instant::now())
    }

    #[test]
    fn many_or_most_deletes_wait_and_few_do_not() {
        assert_eq!(judge_once(1_000, 1_000_000), 0);
        assert_eq!(judge_once(1_001, 1_000_000), 1_001);
        assert_eq!(judge_once(50, 100), 0);
        assert_eq!(judge_once(51, 100), 51);
        assert_eq!(judge_once(11, 11), 11);
        assert_eq!(judge_once(10, 10), 0);
        assert_eq!(judge_once(u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn what_was_confirmed_does_not_cover_more() {
        let now = Instant::now();
        let mut guard = Guard::new(DeleteGuard { count_max: 5, percent_max: 100 });
        assert_eq!(guard.judge(counts(6, 0, 100), now), 6);
        guard.confirm(6);
        assert_eq!(guard.judge(counts(7, 0, 100), now), 7);
        assert_eq!(guard.judge(counts(6, 0, 100), now), 0);
    }

    #[test]
    fn a_folder_that_is_meant_to_be_empty_waits_for_no_second_word() {
        let now = Instant::now();
        let mut guard = Guard::default();
        guard.confirm_all();
        assert_eq!(guard.judge(counts(0, 0, 100), now), 0);
        assert_eq!(guard.judge(counts(60, 0, 100), now), 60, "others, from before");
        guard.all_scanned();
        assert_eq!(guard.judge(counts(100, 0, 100), now), 0);
        assert_eq!(guard.judge(counts(0, 100, 0), now), 0);
        guard.all_scanned();
        assert_eq!(guard.judge(counts(100, 100, 100), now), 100, "it counts once");
        // The files were put back before they were looked for.
        guard.confirm_all();
        guard.all_scanned();
        assert_eq!(guard.judge(counts(0, 100, 100), now), 0);
        assert_eq!(guard.judge(counts(100, 100, 100), now), 100);
    }

    #[test]
    fn a_delete_that_never_succeeds_keeps_no_confirmation_alive() {
        let now = Instant::now();
        let mut guard = Guard::default();
        guard.confirm(50_000);
        assert_eq!(guard.judge(counts(50_000, 0, 100_000), now), 0);
        assert_eq!(guard.judge(counts(1, 49_999, 50_001), now), 0);
        assert_eq!(guard.judge(counts(2_001, 49_999, 50_001), now), 2_001);
    }

    #[test]
    fn deletes_that_come_in_portions_wait_once_they_are_many() {
        let mut now = Instant::now();
        let mut guard = Guard::default();
        let (mut gone, mut waited_at) = (0, 0);
        for _ in 0..100 {
            now += Duration::from_secs(2);
            if guard.judge(counts(300, gone, 100_000 - gone), now) > 0 {
                waited_at = gone;
                break;
            }
            gone += 300;
        }
        assert_eq!(waited_at, 900);
        // After a while they count no more.
        now += WINDOW + STEP;
        assert_eq!(guard.judge(counts(300, gone, 100_000 - gone), now), 0);
    }

    #[test]
    fn most_files_deleted_one_by_one_wait_and_those_made_meanwhile_do_not() {
        let now = Instant::now();
        let mut guard = Guard::default();
        let waits = |guard: &mut Guard, gone: u64| guard.judge(counts(1, gone, 60 - gone), now) > 0;
        let first = (0..60).find(|gone| waits(&mut guard, *gone));
        assert_eq!(first, Some(30), "the delete after half of them");
        // Five files stay; a hundred others come and go.
        let mut guard = Guard::default();
        for gone in 0..100 {
            assert_eq!(guard.judge(counts(0, gone, 6), now), 0);
            assert_eq!(guard.judge(counts(1, gone, 6), now), 0, "{gone}");
        }
    }

    #[test]
    fn what_was_carried_out_counts_after_a_restart_until_its_time_is_over() {
        let limits = DeleteGuard { count_max: 1_000, percent_max: 50 };
        let (now, now_ms) = (Instant::now() + 2 * WINDOW, 1_800_000_000_000);
        let mut guard = Guard::new(limits);
        assert_eq!(guard.judge(counts(30, 0, 100), now), 0);
        assert!(guard.take_kept(now, now_ms).is_none(), "nothing was carried out yet");
        assert_eq!(guard.judge(counts(0, 30, 70), now), 0);
        let kept = guard.take_kept(now, now_ms).unwrap();
        assert!(guard.take_kept(now, now_ms).is_none());
        for (later_ms, waits) in [(1_000, true), (0, true), (700_000, false)] {
            let mut guard = Guard::new(limits).restored(&kept, now, now_ms + later_ms);
            assert_eq!(guard.judge(counts(30, 30, 70), now) > 0, waits, "after {later_ms} ms");
        }
        // The clock was set back by a day.
        let mut guard = Guard::new(limits).restored(&kept, now, now_ms - 86_400_000);
        assert_eq!(guard.judge(counts(30, 30, 70), now), 30);
        // What was carried out and not judged any more before the end counts as well.
        let mut guard = Guard::new(limits).restored(&kept, now, now_ms);
        assert_eq!(guard.judge(counts(0, 1_030, 70), now), 0);
        assert_eq!(guard.judge(counts(1, 1_030, 69), now), 1);
        assert_eq!(Guard::new(limits).restored(&[1, 2, 3], now, now_ms).judge(counts(5, 0, 100), now), 0);
    }

    #[test]
    fn only_what_was_shown_is_confirmed() {
        let now = Instant::now();
        let mut guard = Guard::default();
        assert_eq!(guard.judge(counts(2_000, 0, 3_000), now), 2_000);
        guard.confirm_shown("2000-a".to_owned());
        assert!(!guard.take_confirmation("2000-b", 2_000), "as many, but others");
        assert!(!guard.take_confirmation("2000-a", 2_000), "it counts once");
        guard.confirm_shown("2000-b".to_owned());
        assert!(guard.take_confirmation("2000-b", 2_000));
        assert_eq!(guard.judge(counts(2_000, 0, 3_000), now), 0);
        assert_eq!(guard.judge(counts(2_001, 0, 3_000), now), 2_001);
    }

    #[test]
    fn what_was_confirmed_and_done_does_not_make_the_next_delete_wait() {
        let now = Instant::now();
        let mut guard = Guard::default();
        assert_eq!(guard.judge(counts(5_000, 0, 6_000), now), 5_000);
        guard.confirm(5_000);
        assert_eq!(guard.judge(counts(5_000, 0, 6_000), now), 0);
        assert_eq!(guard.judge(counts(2_000, 3_000, 3_000), now), 0);
        assert_eq!(guard.judge(counts(0, 5_000, 1_000), now), 0);
        assert_eq!(guard.judge(counts(20, 5_000, 1_000), now), 0);
    }
}
