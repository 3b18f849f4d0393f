//! Batches of the server's changes against a model of the server: in pages of any size, with stale pages, calls of
//! this device in between, folders that come back or are moved in from outside, crashes and resets.

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::ids::ContentId;
use proto::v1;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{fresh, seed};
use crate::planner::model::ROOT;
use crate::state::database::State;
use crate::state::reached::Reached;
use crate::state::record::Outcome;
use crate::state::remote::{Finished, RemotePage};
use crate::state::trees::Side;

pub(super) fn folder_entry(id: u64, parent: u64, name: &str) -> v1::Entry {
    let mut entry = v1::Entry { id, parent, name: name.to_owned(), mode: 0o755, ..Default::default() };
    entry.set_kind(v1::EntryKind::Folder);
    entry.sequence = 1;
    entry
}

pub(super) fn entry(id: u64, parent: u64, name: &str, content: u8) -> v1::Entry {
    let mut entry = v1::Entry { id, parent, name: name.to_owned(), mode: 0o644, ..Default::default() };
    entry.set_kind(v1::EntryKind::File);
    entry.set_cutter(v1::Cutter::Cdc64k);
    entry.size = 1 + u64::from(content);
    entry.content = Bytes::copy_from_slice(ContentId::from_bytes([content; 32]).as_bytes());
    entry.version = 1;
    entry.sequence = 1;
    entry
}

/// Takes in entries as one batch: there is nothing else in their folders.
pub(super) fn follow(state: &mut State, entries: Vec<v1::Entry>) {
    let changes = entries.into_iter().map(|entry| v1::Change {
        entry_id: entry.id,
        entry: Some(entry),
        list_below: false,
    });
    let page = RemotePage { changes: changes.collect(), reached: Reached::at(1), more: false };
    state.apply_changes(&page).unwrap();
    for wanted in state.listings_wanted().unwrap() {
        state.apply_listing(wanted, &[], true).unwrap();
    }
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
}

const NAMESPACE_ROOT: u64 = 1;
pub(super) const SYNC_ROOT: u64 = 2;

/// A namespace with a journal, as the server keeps it: one row per entry, at its latest number.
#[derive(Default)]
pub(super) struct Server {
    pub(super) entries: BTreeMap<u64, v1::Entry>,
    /// Trashed entries; what is below them keeps its rows.
    pub(super) trashed: BTreeMap<u64, v1::Entry>,
    /// By number: the entry, and when it last arrived from the trash.
    journal: BTreeMap<u64, u64>,
    arrived: BTreeMap<u64, u64>,
    pub(super) sequence: u64,
    next_id: u64,
    clock_ms: u64,
}

impl Server {
    pub(super) fn new() -> Self {
        let mut server = Self { next_id: SYNC_ROOT, ..Self::default() };
        server.entries.insert(NAMESPACE_ROOT, folder_entry(NAMESPACE_ROOT, 0, "root"));
        // In a folder that is made after it, and that it is moved into: it does not come first in the journal.
        let id = server.create(folder_entry(0, NAMESPACE_ROOT, "kept"));
        assert_eq!(id, SYNC_ROOT);
        let around = server.create(folder_entry(0, NAMESPACE_ROOT, "around"));
        server.moved(SYNC_ROOT, around, "kept");
        server
    }

    pub(super) fn changed(&mut self, id: u64) {
        self.sequence += 1;
        self.clock_ms += 1;
        let (sequence, clock_ms) = (self.sequence, self.clock_ms);
        self.journal.retain(|_, entry| *entry != id);
        self.journal.insert(sequence, id);
        for map in [&mut self.entries, &mut self.trashed] {
            if let Some(entry) = map.get_mut(&id) {
                entry.sequence = sequence;
                entry.changed_ms = clock_ms;
            }
        }
    }

    pub(super) fn moved(&mut self, id: u64, parent: u64, name: &str) {
        let entry = self.entries.get_mut(&id).unwrap();
        entry.parent = parent;
        name.clone_into(&mut entry.name);
        self.changed(id);
    }

    pub(super) fn create(&mut self, mut entry: v1::Entry) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        entry.id = id;
        entry.created_ms = self.clock_ms + 1;
        self.entries.insert(id, entry);
        self.changed(id);
        id
    }

    /// Whether walking up from an entry ends at `root`, through what is not trashed.
    pub(super) fn is_below(&self, id: u64, root: u64) -> bool {
        let mut at = id;
        while at != root {
            match self.entries.get(&at) {
                Some(entry) if entry.parent != 0 => at = entry.parent,
                _ => return false,
            }
        }
        true
    }

    pub(super) fn live(&self) -> Vec<u64> {
        self.entries.keys().copied().filter(|id| self.is_below(*id, NAMESPACE_ROOT)).collect()
    }

    pub(super) fn folders(&self) -> Vec<u64> {
        let is_folder = |id: &u64| self.entries[id].kind() == v1::EntryKind::Folder;
        self.live().into_iter().filter(is_folder).collect()
    }

    /// A name that is free in a folder.
    pub(super) fn free_name(&self, parent: u64, random: &mut SmallRng) -> String {
        loop {
            let name = format!("n{}", random.random_range(0..1_000));
            if !self.entries.values().any(|entry| entry.parent == parent && entry.name == name) {
                return name;
            }
        }
    }

    pub(super) fn random_change(&mut self, random: &mut SmallRng) {
        let folders = self.folders();
        let parent = *folders.choose(random).unwrap();
        let name = self.free_name(parent, random);
        let movable: Vec<u64> =
            self.live().into_iter().filter(|id| *id > SYNC_ROOT && !self.is_below(SYNC_ROOT, *id)).collect();
        match (random.random_range(0..11), movable.choose(random).copied()) {
            (0..=2, _) => drop(self.create(entry(0, parent, &name, random.random()))),
            (3, _) => drop(self.create(folder_entry(0, parent, &name))),
            (4..=5, Some(id)) if !self.is_below(parent, id) => {
                self.moved(id, parent, &name);
            }
            (6, Some(id)) => {
                let trashed = self.entries.remove(&id).unwrap();
                self.trashed.insert(id, trashed);
                self.changed(id);
            }
            (7, _) => {
                if let Some(id) = self.trashed.keys().copied().collect::<Vec<_>>().choose(random).copied() {
                    let mut entry = self.trashed.remove(&id).unwrap();
                    entry.parent = parent;
                    entry.name = name;
                    self.entries.insert(id, entry);
                    self.changed(id);
                    self.arrived.insert(id, self.sequence);
                }
            }
            (8, _) => self.changed(SYNC_ROOT),
            (_, Some(id)) => {
                let entry = self.entries.get_mut(&id).unwrap();
                if entry.kind() == v1::EntryKind::File {
                    entry.version += 1;
                    entry.content = Bytes::copy_from_slice(&[random.random(); 32]);
                } else {
                    entry.mode ^= 0o100;
                }
                self.changed(id);
            }
            _ => {}
        }
    }

    /// A page after a number: changes, the number it reaches, whether there is more.
    pub(super) fn page(&self, after: u64, count: usize) -> RemotePage {
        let rows: Vec<(u64, u64)> =
            self.journal.range(after + 1..).take(count).map(|(sequence, id)| (*sequence, *id)).collect();
        let reached = rows.last().map_or(after, |(sequence, _)| *sequence);
        let more = self.journal.range(reached + 1..).next().is_some();
        let changes = rows.into_iter().map(|(_, id)| {
            let live = self.is_below(id, NAMESPACE_ROOT);
            // Out of a folder that came back, as well.
            let mut at = id;
            let mut list_below = false;
            while live && at != 0 {
                list_below |= self.arrived.get(&at).is_some_and(|arrived| *arrived > after);
                at = self.entries[&at].parent;
            }
            v1::Change {
                entry_id: id,
                entry: self.entries.get(&id).filter(|_| live).cloned(),
                list_below: live && list_below,
            }
        });
        RemotePage { changes: changes.collect(), reached: Reached::at(reached), more }
    }

    pub(super) fn below(&self, folder: u64) -> Vec<v1::Entry> {
        self.entries
            .values()
            .filter(|entry| entry.id != folder && self.is_below(entry.id, folder))
            .cloned()
            .collect()
    }
}

pub(super) fn position(state: &State) -> u64 {
    let cursor = state.remote_position().unwrap().cursor;
    cursor.try_into().map_or(0, u64::from_be_bytes)
}

/// Begins to list anew: first what is below the folder, then the journal from its start.
pub(super) fn relist(state: &mut State, server: &Server) {
    state.begin_relist(false).unwrap();
    state.apply_listing(SYNC_ROOT, &server.below(SYNC_ROOT), true).unwrap();
}

/// Follows to the present, the server changing on the way; `crash`: the state is closed and opened at any point.
pub(super) fn catch_up(
    state: &mut State,
    folder: &std::path::Path,
    server: &mut Server,
    random: &mut SmallRng,
) {
    if state.remote_position().unwrap().cursor.is_empty() {
        relist(state, server);
    }
    loop {
        if random.random_bool(0.1) {
            *state = State::open(folder).unwrap().state;
        }
        let page = server.page(position(state), random.random_range(1..6));
        state.apply_changes(&page).unwrap();
        if page.more {
            if random.random_bool(0.2) {
                server.random_change(random);
            }
            continue;
        }
        break;
    }
    for wanted in state.listings_wanted().unwrap() {
        let entries = server.below(wanted);
        let half = entries.len() / 2;
        state.apply_listing(wanted, &entries[..half], false).unwrap();
        state.apply_listing(wanted, &entries[half..], true).unwrap();
    }
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
}

pub(super) fn compare(state: &State, server: &Server, seed: u64) {
    let mut pending = vec![(ROOT, SYNC_ROOT)];
    let mut seen = 0;
    while let Some((node, id)) = pending.pop() {
        let known = state.side_children(Side::Remote, node).unwrap();
        let there: Vec<&v1::Entry> = server.entries.values().filter(|entry| entry.parent == id).collect();
        assert_eq!(known.len(), there.len(), "seed {seed}: in {}", server.entries[&id].name);
        for entry in there {
            let child = state.side_at(Side::Remote, node, &entry.name).unwrap();
            let child = child.unwrap_or_else(|| panic!("seed {seed}: {} is missing", entry.name));
            assert_eq!(state.node_of_entry(entry.id).unwrap(), Some(child), "seed {seed}");
            let facts = state.remote_facts(child).unwrap().unwrap();
            assert_eq!((facts.version, facts.sequence), (entry.version, entry.sequence), "seed {seed}");
            pending.push((child, entry.id));
            seen += 1;
        }
    }
    let rows = state.ids("SELECT id FROM nodes", &[]).unwrap();
    let nowhere: Vec<_> = rows
        .iter()
        .filter(|node| state.side(Side::Remote, **node).unwrap().is_none())
        .map(|node| (node, state.remote_facts(*node).unwrap(), state.synced(*node).unwrap()))
        .collect();
    assert_eq!(rows.len(), seen + 1, "seed {seed}: rows of what is not there: {nowhere:?}");
}

#[test]
fn following_in_any_pages_ends_at_the_servers_tree() {
    for round in 0..12 {
        let seed = seed().wrapping_add(round);
        let mut random = SmallRng::seed_from_u64(seed);
        let (folder, mut state) = fresh();
        let mut server = Server::new();
        state.set_root_entry(SYNC_ROOT, 0).unwrap();
        for _ in 0..25 {
            for _ in 0..random.random_range(1..12) {
                server.random_change(&mut random);
            }
            if random.random_bool(0.05) {
                relist(&mut state, &server);
            }
            catch_up(&mut state, folder.path(), &mut server, &mut random);
            catch_up(&mut state, folder.path(), &mut server, &mut random);
            compare(&state, &server, seed);
        }
    }
}

#[test]
fn a_remote_root_that_is_gone_changes_nothing() {
    let (_folder, mut state) = fresh();
    let mut server = Server::new();
    state.set_root_entry(SYNC_ROOT, 0).unwrap();
    server.create(entry(0, SYNC_ROOT, "f", 1));
    let page = server.page(0, 100);
    state.apply_changes(&page).unwrap();
    state.finish_batch().unwrap();
    let root = server.entries.remove(&SYNC_ROOT).unwrap();
    server.trashed.insert(SYNC_ROOT, root);
    server.changed(SYNC_ROOT);
    let page = server.page(position(&state), 100);
    state.apply_changes(&page).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::RootGone);
    assert_eq!(state.side_children(Side::Remote, ROOT).unwrap().len(), 1);
    assert!(state.remote_position().unwrap().batch_open, "nothing is planned meanwhile");
}

/// A server with one file in the root, and a state that has followed it.
fn followed() -> (tempfile::TempDir, State, Server) {
    let (folder, mut state) = fresh();
    let mut server = Server::new();
    state.set_root_entry(SYNC_ROOT, 0).unwrap();
    server.create(entry(0, SYNC_ROOT, "f", 1));
    follow_to_end(&mut state, &server);
    (folder, state, server)
}

/// Takes in one page of all that is new, with the listings that it asks for.
fn follow_to_end(state: &mut State, server: &Server) {
    state.apply_changes(&server.page(position(state), 100)).unwrap();
    for wanted in state.listings_wanted().unwrap() {
        state.apply_listing(wanted, &server.below(wanted), true).unwrap();
    }
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
}

#[test]
fn listing_anew_does_not_forget_that_the_root_is_gone() {
    let (_folder, mut state, mut server) = followed();
    let root = server.entries.remove(&SYNC_ROOT).unwrap();
    server.trashed.insert(SYNC_ROOT, root);
    server.changed(SYNC_ROOT);
    state.apply_changes(&server.page(position(&state), 100)).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::RootGone);
    // Its news are no longer in the journal, and its listing gives nothing.
    state.begin_relist(false).unwrap();
    state.apply_listing(SYNC_ROOT, &[], true).unwrap();
    state.apply_changes(&RemotePage { reached: Reached::at(9), ..RemotePage::default() }).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::RootGone);
    assert_eq!(state.side_children(Side::Remote, ROOT).unwrap().len(), 1);
}

#[test]
fn a_listing_that_does_not_tell_of_the_root_sweeps_nothing_away() {
    let (_folder, mut state, server) = followed();
    relist(&mut state, &server);
    // The root goes into the trash before the journal is read: that, and no more, is left out there.
    let gone = server.below(SYNC_ROOT).into_iter().map(|entry| v1::Change {
        entry_id: entry.id,
        entry: None,
        list_below: false,
    });
    let page = RemotePage { changes: gone.collect(), reached: Reached::at(9), more: false };
    state.apply_changes(&page).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::RootGone);
    assert_eq!(state.side_children(Side::Remote, ROOT).unwrap().len(), 1);
}

#[test]
fn a_root_that_comes_back_is_followed_after_a_listing_without_it() {
    let (_folder, mut state, server) = followed();
    state.begin_relist(false).unwrap();
    state.apply_changes(&RemotePage { reached: Reached::at(0), ..RemotePage::default() }).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::RootGone);
    follow_to_end(&mut state, &server);
    assert_eq!(state.side_children(Side::Remote, ROOT).unwrap().len(), 1);
}

#[test]
fn a_folder_moved_in_that_was_passed_over_by_the_listing_is_not_empty() {
    let (_folder, mut state, mut server) = followed();
    // Made long after the last change near the root, and known to the cursor.
    let outside = server.create(folder_entry(0, NAMESPACE_ROOT, "outside"));
    let new = server.create(folder_entry(0, outside, "new"));
    server.create(entry(0, new, "old file", 3));
    relist(&mut state, &server);
    follow_to_end(&mut state, &server);
    server.moved(new, SYNC_ROOT, "new");
    follow_to_end(&mut state, &server);
    let node = state.node_of_entry(new).unwrap().unwrap();
    assert_eq!(state.side_children(Side::Remote, node).unwrap().len(), 1);
}

#[test]
fn a_folder_gone_that_is_not_known_casts_doubt_on_the_root() {
    let (_folder, mut state, mut server) = followed();
    let own = server.create(entry(0, SYNC_ROOT, "g", 1));
    follow_to_end(&mut state, &server);
    let gone = |entry_id| {
        let change = v1::Change { entry_id, entry: None, list_below: false };
        RemotePage { changes: vec![change], reached: Reached::at(1_000), more: false }
    };
    let (node, was) = (state.node_of_entry(own).unwrap().unwrap(), server.entries[&own].clone());
    state.record(&[Outcome::RemoteGone { node, entry: Some(was) }]).unwrap();
    state.apply_changes(&gone(own)).unwrap();
    assert!(!state.is_root_doubted().unwrap(), "this device deleted it itself");
    state.finish_batch().unwrap();
    state.apply_changes(&gone(3)).unwrap();
    assert!(state.is_root_doubted().unwrap());
    state.finish_batch().unwrap();
    assert!(!state.is_root_doubted().unwrap(), "asked once");
}
