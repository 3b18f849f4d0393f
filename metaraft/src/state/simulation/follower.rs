//! Those who follow a namespace's journal from time to time: from whatever they had seen, the rows since then must
//! lead them to the tree as it is now.

use std::collections::BTreeMap;

use engine::ids::{EntryId, NamespaceId};

use super::super::keys::{self, Table};
use super::super::rows::{JournalRow, PlaceRow};
use super::world::World;
use crate::model::row::{EntryRow, NamespaceRow, ROOT_ENTRY};

pub(super) struct Follower {
    namespace: NamespaceId,
    seen: u64,
    tree: BTreeMap<EntryId, EntryRow>,
}

/// An entry as it is now, if it is in the tree.
fn live(world: &World, namespace: NamespaceId, entry: EntryId) -> Option<EntryRow> {
    let PlaceRow::In(parent, name) = world.row(&keys::place(namespace, entry))? else { return None };
    let mut above = parent;
    while above != EntryId(0) && above != ROOT_ENTRY {
        match world.row(&keys::place(namespace, above))? {
            PlaceRow::In(parent, _) => above = parent,
            PlaceRow::Trashed(_) => return None,
        }
    }
    world.row(&keys::entry(namespace, parent, &name))
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
        let of = |namespace: &NamespaceId| Self { namespace: *namespace, seen: 0, tree: BTreeMap::new() };
        world.namespaces.iter().flat_map(|namespace| [of(namespace), of(namespace), of(namespace)]).collect()
    }

    fn drop_with_all_below(&mut self, entry: EntryId) {
        let mut gone = vec![entry];
        while let Some(entry) = gone.pop() {
            self.tree.remove(&entry);
            gone.extend(self.tree.values().filter(|row| row.parent == entry).map(|row| row.entry));
        }
    }

    /// Takes in what has changed, and compares. What is gone is dropped last, when what was moved out of it is
    /// where it belongs.
    pub(super) fn follow(&mut self, world: &World) {
        let namespace = self.namespace;
        let row: NamespaceRow = world.row(&keys::namespace(namespace)).unwrap();
        let (from, to) = (keys::journal(namespace, self.seen + 1), keys::journal(namespace, u64::MAX));
        let mut gone = Vec::new();
        for (key, change) in world.rows::<JournalRow>(Table::Journal) {
            if key < from || key > to {
                continue;
            }
            match live(world, namespace, change.entry) {
                None => gone.push(change.entry),
                Some(entry) => {
                    assert!(!change.deleted, "deleted and in the tree: {entry:?}");
                    if entry.entry != ROOT_ENTRY {
                        self.tree.insert(entry.entry, entry);
                    }
                    if change.arrived > self.seen {
                        let arrived = below(world, namespace, change.entry);
                        self.tree.extend(arrived.into_iter().map(|row| (row.entry, row)));
                    }
                }
            }
        }
        gone.into_iter().for_each(|entry| self.drop_with_all_below(entry));
        assert_eq!(self.tree, whole(world, namespace), "the journal from {} on leads elsewhere", self.seen);
        self.seen = row.sequence;
    }
}
