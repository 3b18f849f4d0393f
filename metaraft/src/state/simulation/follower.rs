//! Those who follow a namespace's journal as devices do: page by page, with commands of others in between, away for
//! longer than the horizon at times. Whenever they have come to the end, what they know must be the tree as it is.

use std::collections::{BTreeMap, BTreeSet};

use engine::ids::{EntryId, NamespaceId};
use rand::Rng;

use super::super::keys::{self, Table};
use super::world::World;
use crate::model::query::{BelowPage, Query, Reply};
use crate::model::row::{ChangeRow, EntryRow, NamespaceRow, ROOT_ENTRY};

pub(super) struct Follower {
    namespace: NamespaceId,
    position: u64,
    since: u64,
    /// The tree after the last whole batch, and its number.
    seen: u64,
    tree: BTreeMap<EntryId, EntryRow>,
    /// What the pages of this batch said so far; what is said later of an entry replaces what was said before.
    batch: BTreeMap<EntryId, Option<EntryRow>>,
    /// How often it had to begin anew.
    resets: u64,
}

/// What is below an entry now.
fn below(world: &World, namespace: NamespaceId, top: EntryId) -> Vec<EntryRow> {
    let mut found = Vec::new();
    let mut folders = vec![top];
    while let Some(folder) = folders.pop() {
        let prefix = keys::children(namespace, folder);
        for (key, row) in world.rows::<EntryRow>(Table::Entry) {
            if key.starts_with(&prefix) {
                folders.push(row.entry);
                found.push(row);
            }
        }
    }
    found
}

/// The whole tree but for the root folder.
fn whole(world: &World, namespace: NamespaceId) -> BTreeMap<EntryId, EntryRow> {
    below(world, namespace, ROOT_ENTRY).into_iter().map(|row| (row.entry, row)).collect()
}

impl Follower {
    /// Some for each namespace.
    pub(super) fn some(world: &World) -> Vec<Self> {
        let of = |namespace: &NamespaceId| Self {
            namespace: *namespace,
            position: 0,
            since: 0,
            seen: 0,
            tree: BTreeMap::new(),
            batch: BTreeMap::new(),
            resets: 0,
        };
        world.namespaces.iter().flat_map(|namespace| [of(namespace), of(namespace), of(namespace)]).collect()
    }

    /// Takes some pages, to the end if the number allows it; tells whether it has come there.
    pub(super) fn follow(&mut self, world: &mut World, pages: u32) -> bool {
        for _ in 0..pages {
            let (namespace, position, since) = (self.namespace, self.position, self.since);
            let count_max = world.random.random_range(1..8);
            let query = Query::Changes { namespace, position, since, count_max };
            match world.ask(world.group_of(namespace.slot()), &query) {
                Reply::Changes { changes, position, since, more } => {
                    assert!(changes.len() <= count_max as usize);
                    assert!(!more || position > self.position, "a page that goes nowhere");
                    (self.position, self.since) = (position, since);
                    self.take(world, changes);
                    if !more {
                        self.finish(world);
                        return true;
                    }
                }
                Reply::ChangesGone => {
                    assert!(position > 0 || since > 0, "a fresh start is never refused");
                    (self.position, self.since) = (0, 0);
                    self.seen = 0;
                    self.tree.clear();
                    self.batch.clear();
                    self.resets += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        false
    }

    fn take(&mut self, world: &mut World, changes: Vec<ChangeRow>) {
        for ChangeRow { entry, row, list_below } in changes {
            self.batch.insert(entry, row);
            if list_below {
                for row in self.list_below(world, entry) {
                    self.batch.insert(row.entry, Some(row));
                }
            }
        }
    }

    fn list_below(&self, world: &mut World, top: EntryId) -> Vec<EntryRow> {
        let (namespace, mut position, mut found) = (self.namespace, Vec::new(), Vec::new());
        loop {
            let count_max = world.random.random_range(1..6);
            let query = Query::Below { namespace, top, position, count_max };
            let Reply::Below(Some(BelowPage { entries, position: next })) =
                world.ask(world.group_of(namespace.slot()), &query)
            else {
                panic!("a folder that was told just now is not listed");
            };
            assert!(entries.len() <= count_max as usize);
            found.extend(entries);
            if next.is_empty() {
                break;
            }
            position = next;
        }
        let mut seen = BTreeSet::from([top]);
        for row in &found {
            assert!(seen.contains(&row.parent), "before its folder: {row:?}");
            assert!(seen.insert(row.entry), "twice: {row:?}");
        }
        let truth: BTreeSet<EntryId> = below(world, namespace, top).iter().map(|row| row.entry).collect();
        seen.remove(&top);
        assert_eq!(seen, truth, "what is below {top:?}");
        found
    }

    /// The batch is whole: what is gone is dropped last, when what was moved out of it is where it belongs.
    fn finish(&mut self, world: &World) {
        let mut gone = Vec::new();
        for (entry, row) in std::mem::take(&mut self.batch) {
            match row {
                Some(row) => drop(self.tree.insert(entry, row)),
                None => gone.push(entry),
            }
        }
        while let Some(entry) = gone.pop() {
            self.tree.remove(&entry);
            gone.extend(self.tree.values().filter(|row| row.parent == entry).map(|row| row.entry));
        }
        assert_eq!(self.tree, whole(world, self.namespace), "the journal leads elsewhere");
        let row: NamespaceRow = world.row(&keys::namespace(self.namespace)).unwrap();
        assert_eq!(self.position, row.sequence);
        self.seen = self.position;
    }

    /// How often it had to begin anew.
    pub(super) fn resets(&self) -> u64 {
        self.resets
    }

    /// Up to which number it has seen its namespace, and which that is.
    pub(super) fn seen(&self) -> (NamespaceId, u64, &BTreeMap<EntryId, EntryRow>) {
        (self.namespace, self.seen, &self.tree)
    }
}
