//! What is to be scanned, and when. Pure: time is what it is told.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::local::rel::Rel;
use crate::local::scan::{Scope, ScopeFolder};

/// Looks in a row after which something that is never quiet is not waited for any more.
pub(super) const UNQUIET_MAX: u32 = 6;
/// Folders hinted at; more make it a scan of everything.
const FOLDERS_MAX: usize = 2_000;
/// What was not quiet, or not believed, is looked at again after this, then ever later.
pub(super) const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// What is to be scanned.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) whole: bool,
    /// By folder: whether with all below it.
    folders: BTreeMap<Rel, bool>,
    /// Not before this.
    later: BTreeMap<Rel, (Instant, bool, u32)>,
    pub(super) settled: Vec<oneshot::Sender<()>>,
}

impl Pending {
    /// Everything.
    pub(super) fn of_whole() -> Self {
        Self { whole: true, ..Self::default() }
    }

    pub(super) fn add(&mut self, folder: ScopeFolder) {
        *self.folders.entry(folder.folder).or_default() |= folder.deep;
        if self.folders.len() > FOLDERS_MAX {
            self.folders.clear();
            self.whole = true;
        }
    }

    /// To be looked at again, after longer each time in a row.
    pub(super) fn add_later(&mut self, folder: ScopeFolder, times: &BTreeMap<Rel, u32>, now: Instant) {
        let count = times.get(&folder.folder).copied().unwrap_or(0);
        let wait = (AGAIN_FIRST * 2_u32.saturating_pow(count.min(16))).min(AGAIN_MAX);
        let at = now + wait;
        let entry = self.later.entry(folder.folder).or_insert((at, folder.deep, count + 1));
        entry.1 |= folder.deep;
    }

    /// Takes what is due: what to scan, and how often in a row each was looked at before.
    pub(super) fn take(&mut self, now: Instant) -> Option<(Scope, BTreeMap<Rel, u32>)> {
        let mut times = BTreeMap::new();
        let due: Vec<Rel> =
            self.later.iter().filter(|(_, (at, _, _))| *at <= now).map(|(rel, _)| rel.clone()).collect();
        for rel in due {
            if let Some((_at, deep, count)) = self.later.remove(&rel) {
                times.insert(rel.clone(), count);
                self.add(ScopeFolder { folder: rel, deep });
            }
        }
        if self.whole {
            self.whole = false;
            self.folders.clear();
            return Some((Scope::Whole, times));
        }
        if self.folders.is_empty() {
            return None;
        }
        let folders = std::mem::take(&mut self.folders);
        let scope = folders.into_iter().map(|(folder, deep)| ScopeFolder { folder, deep }).collect();
        Some((Scope::Folders(scope), times))
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.later.values().map(|(at, _, _)| *at).min()
    }

    /// Tells those who wait for it that all was looked at, if it was.
    pub(super) fn tell_settled(&mut self) {
        if self.is_settled() {
            for settled in self.settled.drain(..) {
                let _nobody = settled.send(());
            }
        }
    }

    /// Whether nothing is left that is worth waiting for.
    pub(super) fn is_settled(&self) -> bool {
        let soon = self.later.values().any(|(_at, _deep, count)| *count < UNQUIET_MAX);
        !self.whole && self.folders.is_empty() && !soon
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(path: &str, deep: bool) -> ScopeFolder {
        ScopeFolder { folder: Rel::parse(path).unwrap(), deep }
    }

    #[test]
    fn many_hints_become_one_scan_of_everything() {
        let mut pending = Pending::default();
        (0..=FOLDERS_MAX).for_each(|number| pending.add(folder(&format!("f{number}"), false)));
        assert_eq!(pending.take(Instant::now()).unwrap().0, Scope::Whole);
        assert!(pending.take(Instant::now()).is_none() && pending.is_settled());
    }

    #[test]
    fn hints_of_one_folder_are_one_and_as_deep_as_the_deepest() {
        let mut pending = Pending::default();
        pending.add(folder("a", true));
        pending.add(folder("a", false));
        assert_eq!(pending.take(Instant::now()).unwrap().0, Scope::Folders(vec![folder("a", true)]));
    }

    #[test]
    fn what_is_never_quiet_is_looked_at_ever_more_rarely() {
        let mut pending = Pending::default();
        let mut times = BTreeMap::new();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..4 {
            pending.add_later(folder("a", false), &times, now);
            assert!(pending.take(now).is_none());
            let due = pending.next_due().unwrap();
            waits.push(due.duration_since(now).as_millis());
            now = due;
            times = pending.take(now).unwrap().1;
        }
        assert_eq!(waits, [100, 200, 400, 800]);
    }
}
