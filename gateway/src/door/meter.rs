//! So much a second: each key may do something `burst` times at once, and then once per period (the generic cell rate
//! algorithm, ITU-T I.371). The time comes from the caller.
//!
//! Invariants:
//! - At most [`KEYS_MAX`] keys are remembered. Those whose time is over are dropped first; if there are none, whoever
//!   is new is refused, until some are.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Keys that are remembered.
const KEYS_MAX: usize = 64 * 1024;

/// Counts for each key.
#[derive(Debug)]
pub(crate) struct Meter<K> {
    period: Duration,
    burst: u32,
    /// When each key has its whole burst again.
    whole_again: HashMap<K, Instant>,
    sweep_at: usize,
}

impl<K: Eq + Hash + Copy> Meter<K> {
    pub(crate) fn new(burst: u64, period: Duration) -> Self {
        let burst = u32::try_from(burst).unwrap_or(u32::MAX).max(1);
        Self { period, burst, whole_again: HashMap::new(), sweep_at: 1024 }
    }

    /// How long `key` has to wait before it may do it again; zero: not at all.
    pub(crate) fn wait(&self, key: K, now: Instant) -> Duration {
        match self.whole_again.get(&key) {
            Some(whole_again) => {
                (*whole_again + self.period).saturating_duration_since(now + self.period * self.burst)
            }
            None if self.whole_again.len() >= KEYS_MAX => self.period,
            None => Duration::ZERO,
        }
    }

    fn sweep(&mut self, now: Instant) {
        if self.whole_again.len() >= self.sweep_at {
            self.whole_again.retain(|_key, whole_again| *whole_again > now);
            self.sweep_at = (1024 + 2 * self.whole_again.len()).min(KEYS_MAX);
        }
    }

    /// Notes that `key` does it now; says so if it may not yet, and notes nothing.
    pub(crate) fn take(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        self.sweep(now);
        let wait = self.wait(key, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        let whole_again = self.whole_again.entry(key).or_insert(now);
        *whole_again = (*whole_again).max(now) + self.period;
        Ok(())
    }

    /// Notes that `key` did it `count` times, whether it might or not, and gives how long it has to wait for the next
    /// one: at most `wait_max`, for no more is noted.
    pub(crate) fn owe(&mut self, key: K, count: u32, wait_max: Duration, now: Instant) -> Duration {
        self.sweep(now);
        if self.whole_again.len() < KEYS_MAX || self.whole_again.contains_key(&key) {
            let most = now + self.period * (self.burst - 1) + wait_max;
            let whole_again = self.whole_again.entry(key).or_insert(now);
            *whole_again = ((*whole_again).max(now) + self.period.saturating_mul(count)).min(most);
        }
        self.wait(key, now)
    }

    /// Takes one back: it was right that `key` did it.
    pub(crate) fn give_back(&mut self, key: K) {
        if let Some(whole_again) = self.whole_again.get_mut(&key)
            && let Some(earlier) = whole_again.checked_sub(self.period)
        {
            *whole_again = earlier;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_per_period() {
        let begun = Instant::now();
        let mut meter = Meter::new(3, Duration::from_secs(2));
        let mut taken = Vec::new();
        for tenth in 0..100 {
            let now = begun + Duration::from_millis(100 * tenth);
            while meter.take("one", now).is_ok() {
                taken.push(tenth / 10);
            }
        }
        assert_eq!(taken, [0, 0, 0, 2, 4, 6, 8]);
        assert_eq!(meter.wait("one", begun + Duration::from_secs(9)), Duration::from_secs(1));
        assert!(meter.take("another", begun).is_ok(), "each by itself");
    }

    #[test]
    fn what_is_given_back_counts_as_never_done() {
        let now = Instant::now();
        let mut meter = Meter::new(1, Duration::from_secs(60));
        for _again in 0..100 {
            meter.take(1, now).unwrap();
            meter.give_back(1);
        }
        meter.take(1, now).unwrap();
        assert!(meter.take(1, now).is_err());
    }

    #[test]
    fn keys_are_bounded_and_forgotten_when_their_time_is_over() {
        let now = Instant::now();
        let mut meter = Meter::new(1, Duration::from_secs(1));
        let taken = (0..2 * KEYS_MAX).filter(|key| meter.take(*key, now).is_ok()).count();
        assert!(taken <= KEYS_MAX && meter.whole_again.len() <= KEYS_MAX);
        meter.take(2 * KEYS_MAX, now + Duration::from_secs(2)).unwrap();
        assert_eq!(meter.whole_again.len(), 1);
    }
}
