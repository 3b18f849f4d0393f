//! Waits until what changes is quiet. Pure: the caller says what time it is.
//!
//! Invariants:
//! - What changed is released once nothing more happened to it for [`QUIET`], and at the latest [`KEPT_CHANGING_MAX`]
//!   after its first change.
//! - Keys that were joined are released together.
//! - Above [`CHANGES_MAX`] keys nothing is kept but that there were too many.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Nothing happened for so long: a file is complete.
pub const QUIET: Duration = Duration::from_millis(100);
/// A file that keeps changing is looked at every so long all the same.
pub const KEPT_CHANGING_MAX: Duration = Duration::from_secs(2);
/// What is due so soon comes along: two ends of a move that the system told of one after the other.
const SLACK: Duration = Duration::from_millis(2);
/// Keys that are kept apart.
pub(super) const CHANGES_MAX: usize = 100_000;

#[derive(Debug)]
struct Change<K> {
    first: Instant,
    last: Instant,
    /// To be released with it.
    with: Vec<K>,
}

impl<K> Change<K> {
    fn due(&self) -> Instant {
        (self.last + QUIET).min(self.first + KEPT_CHANGING_MAX)
    }
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due<K> {
    /// These.
    Keys(Vec<K>),
    /// There were too many to tell apart.
    Everything,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Debounce<K> {
    changes: HashMap<K, Change<K>>,
    /// Each key once, with a time not after its due time.
    times: BinaryHeap<Reverse<(Instant, K)>>,
    /// Since when everything is to be released.
    everything: Option<Instant>,
}

impl<K: Clone + Eq + Hash + Ord> Default for Debounce<K> {
    fn default() -> Self {
        Self { changes: HashMap::new(), times: BinaryHeap::new(), everything: None }
    }
}

impl<K: Clone + Eq + Hash + Ord> Debounce<K> {
    /// Something happened to `key`.
    pub(super) fn note(&mut self, key: K, now: Instant) {
        if let Some(change) = self.changes.get_mut(&key) {
            change.last = now;
            return;
        }
        if self.everything.is_some() {
            return;
        }
        if self.changes.len() >= CHANGES_MAX {
            self.note_everything(now);
            return;
        }
        self.changes.insert(key.clone(), Change { first: now, last: now, with: Vec::new() });
        self.times.push(Reverse((now + QUIET, key)));
    }

    /// `from` became `to`.
    pub(super) fn join(&mut self, from: K, to: K, now: Instant) {
        self.note(from.clone(), now);
        self.note(to.clone(), now);
        for (one, other) in [(from.clone(), to.clone()), (to, from)] {
            if let Some(change) = self.changes.get_mut(&one)
                && !change.with.contains(&other)
            {
                change.with.push(other);
            }
        }
    }

    /// Anything may have happened.
    pub(super) fn note_everything(&mut self, now: Instant) {
        self.changes.clear();
        self.times.clear();
        self.everything.get_or_insert(now);
    }

    /// Whether `key` waits, and is not due yet.
    pub(super) fn contains(&self, key: &K, now: Instant) -> bool {
        self.changes.get(key).is_some_and(|change| change.due() > now)
    }

    /// Takes what is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Due<K>> {
        if let Some(since) = self.everything {
            if now < since + QUIET {
                return None;
            }
            self.everything = None;
            return Some(Due::Everything);
        }
        let mut due = Vec::new();
        self.release_until(now, &mut due);
        if !due.is_empty() {
            self.release_until(now + SLACK, &mut due);
        }
        (!due.is_empty()).then_some(Due::Keys(due))
    }

    fn release_until(&mut self, now: Instant, due: &mut Vec<K>) {
        while let Some(Reverse((time, key))) = self.times.pop() {
            if time > now {
                self.times.push(Reverse((time, key)));
                break;
            }
            match self.changes.get(&key).map(Change::due) {
                Some(at) if at > now => self.times.push(Reverse((at, key))),
                Some(_) => self.release(key, due),
                None => {}
            }
        }
    }

    fn release(&mut self, key: K, due: &mut Vec<K>) {
        let mut keys = vec![key];
        while let Some(key) = keys.pop() {
            if let Some(change) = self.changes.remove(&key) {
                keys.extend(change.with);
                due.push(key);
            }
        }
    }

    /// When something will be due, at the earliest.
    pub(super) fn next_due(&self) -> Option<Instant> {
        match self.everything {
            Some(since) => Some(since + QUIET),
            None => self.times.peek().map(|Reverse((time, _))| *time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn what_is_quiet_is_released_once() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        debounce.note("a", start);
        debounce.note("a", at(start, 50));
        assert!(debounce.contains(&"a", at(start, 149)));
        assert_eq!(debounce.take_due(at(start, 149)), None);
        assert_eq!(debounce.next_due(), Some(at(start, 150)));
        assert_eq!(debounce.take_due(at(start, 150)), Some(Due::Keys(vec!["a"])));
        assert_eq!(debounce.take_due(at(start, 5_000)), None);
        assert!(!debounce.contains(&"a", at(start, 5_000)));
    }

    #[test]
    fn what_keeps_changing_is_released_every_two_seconds() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        let mut released = Vec::new();
        for ms in (0..10_000).step_by(10) {
            debounce.note("log", at(start, ms));
            if ms == 0 {
                debounce.note("quiet", start);
            }
            if debounce.take_due(at(start, ms)).is_some_and(|due| due == Due::Keys(vec!["log"])) {
                released.push(ms);
            }
        }
        assert_eq!(released.len(), 4, "{released:?}");
        assert!(released.windows(2).all(|pair| pair[1] - pair[0] >= 2_000));
    }

    #[test]
    fn both_ends_of_a_move_come_together_though_one_keeps_changing() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        debounce.join("a", "b", start);
        debounce.join("b", "c", at(start, 10));
        debounce.note("c", at(start, 90));
        let Some(Due::Keys(mut keys)) = debounce.take_due(at(start, 100)) else { panic!("a is due") };
        keys.sort_unstable();
        assert_eq!(keys, ["a", "b", "c"]);
        assert_eq!(debounce.take_due(at(start, 1_000)), None);
    }

    #[test]
    fn too_many_changes_become_everything() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        for key in 0..=CHANGES_MAX {
            debounce.note(key, start);
        }
        assert_eq!(debounce.take_due(at(start, 99)), None);
        assert_eq!(debounce.take_due(at(start, 100)), Some(Due::Everything));
        assert_eq!(debounce.take_due(at(start, 1_000)), None);
    }
}
