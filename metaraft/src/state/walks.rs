//! What one command has learned of the way from folders up to the root folder.
//!
//! Invariants:
//! - With a folder all that is above it is known, up to the root folder: so nothing is known below one that is not.
//! - What is known is as the rows are by now: an entry that leaves its place takes all with it that is known, if it is
//!   known itself. One that arrives was not in the tree, and nothing below it is known.
//! - It is the same on every replica, as the rows are: what a walk still has to read follows from the command alone.

use std::collections::BTreeMap;

use engine::ids::{EntryId, NamespaceId};

use crate::model::row::ROOT_ENTRY;

/// An entry in the tree that a walk has passed.
#[derive(Clone, Copy, Debug)]
struct Passed {
    parent: EntryId,
    /// How many folders are above it.
    depth: u32,
    /// When it, or a folder above it, last came back from the trash, if that has been looked for.
    arrived: Option<u64>,
}

/// The entries that the walks of one command have passed. There are no more than rows that they may read.
#[derive(Debug, Default)]
pub(super) struct Walks {
    passed: BTreeMap<(NamespaceId, EntryId), Passed>,
}

impl Walks {
    /// How many folders are above an entry, if it is known to be in the tree.
    pub(super) fn depth(&self, namespace: NamespaceId, entry: EntryId) -> Option<u32> {
        if entry == ROOT_ENTRY {
            return Some(0);
        }
        self.passed.get(&(namespace, entry)).map(|passed| passed.depth)
    }

    /// The same of when it, or a folder above it, last came back from the trash.
    pub(super) fn arrived(&self, namespace: NamespaceId, entry: EntryId) -> Option<u64> {
        if entry == ROOT_ENTRY {
            return Some(0);
        }
        self.passed.get(&(namespace, entry)).and_then(|passed| passed.arrived)
    }

    /// Keeps the way up that a walk has read: entries with their parents, ending below one that has `depth` folders above
    /// it. Gives how many the first one has.
    pub(super) fn learn(
        &mut self,
        namespace: NamespaceId,
        mut depth: u32,
        way: &[(EntryId, EntryId)],
    ) -> u32 {
        for (entry, parent) in way.iter().rev() {
            depth += 1;
            let passed = Passed { parent: *parent, depth, arrived: None };
            self.passed.insert((namespace, *entry), passed);
        }
        depth
    }

    /// Keeps when an entry that is known, or a folder above it, last came back.
    pub(super) fn learn_arrived(&mut self, namespace: NamespaceId, entry: EntryId, arrived: u64) {
        if let Some(passed) = self.passed.get_mut(&(namespace, entry)) {
            passed.arrived = Some(arrived);
        }
    }

    /// Whether `above` is met on at most `steps` steps up from an entry that is known, that entry included.
    pub(super) fn meets(&self, namespace: NamespaceId, entry: EntryId, above: EntryId, steps: u32) -> bool {
        if !self.passed.contains_key(&(namespace, above)) {
            return false;
        }
        let mut at = entry;
        for _ in 0..=steps {
            if at == above {
                return true;
            }
            match self.passed.get(&(namespace, at)) {
                Some(passed) => at = passed.parent,
                None => return false,
            }
        }
        false
    }

    /// An entry leaves its place, with all that is below it.
    pub(super) fn leave(&mut self, namespace: NamespaceId, entry: EntryId) {
        if self.passed.contains_key(&(namespace, entry)) {
            self.forget();
        }
    }

    /// Some of what the command did was taken back.
    pub(super) fn forget(&mut self) {
        self.passed.clear();
    }
}
