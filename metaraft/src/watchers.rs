//! Those who are told which namespaces have changed, as a group applies it.
//!
//! Invariants:
//! - Telling never waits: what a watcher has not taken yet is joined, the latest number of each namespace.
//! - A watcher holds at most [`NOTICES_MAX`] namespaces; what would be more becomes a gap ("anything may have changed").
//! - What is applied after a watcher was added is told to it, or covered by a gap.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::ids::NamespaceId;
use tokio::sync::Notify;

use crate::app::Notice;

/// Namespaces that wait to be told to one watcher.
const NOTICES_MAX: usize = 4096;

/// Watchers of one group: gateways, each with one.
const WATCHERS_MAX: usize = 256;

/// What a watcher is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The latest number of each namespace.
    pub(crate) notices: BTreeMap<NamespaceId, u64>,
    /// Anything may have changed as well.
    pub(crate) gap: bool,
}

#[derive(Default)]
struct Waiting {
    told: Mutex<Told>,
    ready: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Held for a few insertions.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    fn tell(&self, notices: &[Notice]) {
        {
            let mut told = lock(&self.told);
            for Notice { namespace, sequence } in notices {
                let latest = told.notices.entry(*namespace).or_default();
                *latest = (*latest).max(*sequence);
            }
            if told.notices.len() > NOTICES_MAX {
                *told = Told { notices: BTreeMap::new(), gap: true };
            }
        }
        self.ready.notify_one();
    }

    fn tell_gap(&self) {
        *lock(&self.told) = Told { notices: BTreeMap::new(), gap: true };
        self.ready.notify_one();
    }
}

/// All watchers of a group.
#[derive(Default)]
pub(crate) struct Watchers {
    all: Mutex<Vec<Arc<Waiting>>>,
}

/// One watcher; it is told nothing more once it is dropped.
pub(crate) struct Watcher {
    waiting: Arc<Waiting>,
}

impl Watchers {
    /// Adds one; `None` if there are too many.
    pub(crate) fn add(&self) -> Option<Watcher> {
        let mut all = lock(&self.all);
        all.retain(|waiting| Arc::strong_count(waiting) > 1);
        if all.len() >= WATCHERS_MAX {
            return None;
        }
        let waiting = Arc::new(Waiting::default());
        all.push(Arc::clone(&waiting));
        Some(Watcher { waiting })
    }

    /// Whether anybody has been added. Whoever is added later is told of a gap first.
    pub(crate) fn any(&self) -> bool {
        !lock(&self.all).is_empty()
    }

    /// Tells of changes that have been applied.
    pub(crate) fn tell(&self, notices: &[Notice]) {
        if notices.is_empty() {
            return;
        }
        let mut all = lock(&self.all);
        all.retain(|waiting| Arc::strong_count(waiting) > 1);
        all.iter().for_each(|waiting| waiting.tell(notices));
    }

    /// Tells that anything may have changed.
    pub(crate) fn tell_gap(&self) {
        lock(&self.all).iter().for_each(|waiting| waiting.tell_gap());
    }
}

impl Watcher {
    /// Waits until there is something to tell, and takes it. Cancel safe.
    pub(crate) async fn next(&self) -> Told {
        loop {
            let told = std::mem::take(&mut *lock(&self.waiting.told));
            if told != Told::default() {
                return told;
            }
            self.waiting.ready.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(namespace: u64, sequence: u64) -> Notice {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&namespace.to_be_bytes());
        Notice { namespace: NamespaceId::from_bytes(bytes), sequence }
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told_the_latest_numbers_once() {
        let watchers = Watchers::default();
        let watcher = watchers.add().unwrap();
        watchers.tell(&[notice(1, 5), notice(2, 9)]);
        watchers.tell(&[notice(1, 7)]);
        watchers.tell(&[notice(1, 6)]);
        let told = watcher.next().await;
        let expected = BTreeMap::from([(notice(1, 0).namespace, 7), (notice(2, 0).namespace, 9)]);
        assert_eq!(told, Told { notices: expected, gap: false });
        let waits = tokio::time::timeout(std::time::Duration::from_millis(20), watcher.next());
        assert!(waits.await.is_err(), "nothing is told twice");
    }

    #[tokio::test]
    async fn too_much_to_tell_is_a_gap() {
        let watchers = Watchers::default();
        let watcher = watchers.add().unwrap();
        for namespace in 0..=NOTICES_MAX as u64 {
            watchers.tell(&[notice(namespace, 1)]);
        }
        watchers.tell(&[notice(3, 2)]);
        let told = watcher.next().await;
        assert!(told.gap);
        assert_eq!(told.notices, BTreeMap::from([(notice(3, 0).namespace, 2)]));
    }

    #[test]
    fn watchers_are_bounded_and_those_dropped_make_room() {
        let watchers = Watchers::default();
        let mut some: Vec<Watcher> = (0..WATCHERS_MAX).map(|_| watchers.add().unwrap()).collect();
        assert!(watchers.add().is_none());
        some.pop();
        assert!(watchers.add().is_some());
    }
}
