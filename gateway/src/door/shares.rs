//! So much at once: each one has a share of what all have together, so that nobody can use up what is everybody's.
//!
//! Invariants:
//! - One's own share is taken first. Who waits for it holds nothing of the common one, and who has it competes for
//!   the common one with no more than that share.
//! - Who holds nothing and waits for nothing is not remembered, but for [`KEYS_SPARE`].

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Keys that may be remembered for nothing before they are looked through.
const KEYS_SPARE: usize = 1024;

/// Which of the two bounds is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// One's own.
    Own,
    /// That of all together.
    All,
}

struct Keys<K> {
    own: HashMap<K, Arc<Semaphore>>,
    /// When more are there, those that hold nothing are dropped.
    sweep_at: usize,
}

/// A bound for each key and one for all.
pub(crate) struct Shares<K> {
    keys: Mutex<Keys<K>>,
    all: Arc<Semaphore>,
    own_max: u32,
    all_max: u32,
}

/// A part of one's own share and of the common one; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    own: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
}

impl Share {
    /// Parts off `units` of it, or all there are.
    pub(crate) fn split(&mut self, units: usize) -> Option<Self> {
        let units = units.min(self.own.num_permits());
        Some(Self { own: self.own.split(units)?, all: self.all.split(units)? })
    }

    /// Adds another share of the same key and bounds.
    pub(crate) fn merge(&mut self, other: Self) {
        self.own.merge(other.own);
        self.all.merge(other.all);
    }

    /// Units held.
    #[cfg(test)]
    pub(crate) fn units(&self) -> usize {
        self.own.num_permits()
    }
}

fn bounded(units: u64) -> u32 {
    u32::try_from(units).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 3)
}

impl<K: Eq + Hash + Copy> Shares<K> {
    /// At most `own_max` units for each key and `all_max` for all together; at least one.
    pub(crate) fn new(own_max: u64, all_max: u64) -> Self {
        let all_max = bounded(all_max);
        Self {
            keys: Mutex::new(Keys { own: HashMap::new(), sweep_at: KEYS_SPARE }),
            all: Arc::new(Semaphore::new(all_max as usize)),
            own_max: bounded(own_max).min(all_max),
            all_max,
        }
    }

    fn own(&self, key: K) -> Arc<Semaphore> {
        // Held for a look-up, and now and then a sweep.
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.own.len() >= keys.sweep_at {
            keys.own.retain(|_key, own| Arc::strong_count(own) > 1);
            keys.sweep_at = KEYS_SPARE + 2 * keys.own.len();
        }
        let own = keys.own.entry(key).or_insert_with(|| Arc::new(Semaphore::new(self.own_max as usize)));
        Arc::clone(own)
    }

    fn units(&self, units: u64) -> u32 {
        bounded(units).min(self.own_max).min(self.all_max)
    }

    /// Takes units at once, or says which bound is in the way. More than a whole share counts as a whole one.
    pub(crate) fn try_take(&self, key: K, units: u64) -> Result<Share, Full> {
        let units = self.units(units);
        let own = self.own(key).try_acquire_many_owned(units).map_err(|_none| Full::Own)?;
        let all = Arc::clone(&self.all).try_acquire_many_owned(units).map_err(|_none| Full::All)?;
        Ok(Share { own, all })
    }

    /// Takes units once they are there, in the order of asking. Cancel safe, at the price of one's place.
    ///
    /// # Panics
    /// Never: the semaphores are not closed.
    #[expect(clippy::expect_used, reason = "see Panics")]
    pub(crate) async fn take(&self, key: K, units: u64) -> Share {
        let units = self.units(units);
        let own = self.own(key).acquire_many_owned(units).await.expect("is never closed");
        let all = Arc::clone(&self.all).acquire_many_owned(units).await.expect("is never closed");
        Share { own, all }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_has_a_whole_share_takes_nothing_from_others() {
        let shares = Shares::new(2, 3);
        let mut of_one = vec![shares.try_take(1, 1).unwrap(), shares.try_take(1, 1).unwrap()];
        assert_eq!(shares.try_take(1, 1).unwrap_err(), Full::Own);
        let waits = shares.take(1, 1);
        assert!(tokio::time::timeout(Duration::from_millis(20), waits).await.is_err());
        let of_two = shares.try_take(2, 1).unwrap();
        assert_eq!(shares.try_take(3, 1).unwrap_err(), Full::All);
        of_one.pop();
        drop(shares.take(3, 1).await);
        drop((of_one, of_two));
        assert_eq!(shares.take(1, 9).await.units(), 2, "more than a share is a share");
    }

    #[tokio::test]
    async fn a_part_is_given_back_by_itself() {
        let shares = Shares::new(4, 4);
        let mut share = shares.try_take(1, 4).unwrap();
        drop(share.split(3));
        assert_eq!(shares.try_take(1, 3).unwrap().units(), 3);
        assert!(shares.try_take(1, 4).is_err());
    }

    #[test]
    fn who_holds_nothing_is_forgotten() {
        let shares = Shares::new(1, 10_000);
        let held: Vec<Share> = (0..10).map(|key| shares.try_take(key, 1).unwrap()).collect();
        for key in 0..100_000 {
            drop(shares.try_take(key, 1));
        }
        assert!(shares.keys.lock().unwrap().own.len() <= 2 * KEYS_SPARE);
        assert_eq!(shares.try_take(9, 1).unwrap_err(), Full::Own, "what is held is remembered");
        drop(held);
    }
}
