//! A device's state: the three trees and what is known of their nodes, as the database keeps them.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;

use super::content::{Bytes, bytes_of_kind};
use super::disk::Inode;
use super::server::{self, Change, Entry, EntryId, Reached};
use crate::planner::model::{Attributes, Kind, Node, NodeId, Place, ROOT, Tree};
use crate::planner::planted::{Bug, planted};
use crate::planner::transition::{Part, agreed, settled};
use crate::planner::went_back::{Bond, bond};

#[derive(Clone, Debug, Default)]
pub(in crate::planner) struct MapTree {
    nodes: BTreeMap<NodeId, Node>,
    places: BTreeSet<(NodeId, String, NodeId)>,
}

impl MapTree {
    pub(in crate::planner) fn set(&mut self, id: NodeId, node: Option<Node>) {
        if let Some(old) = self.nodes.remove(&id) {
            self.places.remove(&(old.place.parent, old.place.name, id));
        }
        if let Some(node) = node {
            self.places.insert((node.place.parent, node.place.name.clone(), id));
            self.nodes.insert(id, node);
        }
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.keys().copied()
    }

    pub(super) fn below(&self, id: NodeId) -> Vec<NodeId> {
        let (mut all, mut known) = (vec![id], BTreeSet::from([id]));
        let mut next = 0;
        while next < all.len() {
            // News out of order can tell of a circle, for a moment.
            all.extend(self.children(all[next]).into_iter().filter(|child| known.insert(*child)));
            next += 1;
        }
        all
    }

    pub(super) fn path(&self, id: NodeId) -> Option<Vec<String>> {
        let mut path = Vec::new();
        let mut next = id;
        while next != ROOT {
            let node = self.nodes.get(&next)?;
            path.push(node.place.name.clone());
            next = node.place.parent;
            if path.len() > 1_000 {
                return None;
            }
        }
        path.reverse();
        Some(path)
    }
}

impl Tree for MapTree {
    fn node(&self, id: NodeId) -> Option<Node> {
        if id == ROOT {
            let place = Place { parent: NodeId(0), name: String::new() };
            return Some(Node {
                place,
                kind: Kind::Folder,
                attributes: Attributes { mode: 0o755, mtime_ns: 0 },
            });
        }
        self.nodes.get(&id).cloned()
    }

    fn at(&self, parent: NodeId, name: &str) -> Option<NodeId> {
        let from = (parent, name.to_owned(), NodeId(0));
        let (at, its, id) = self.places.range(from..).next()?;
        (*at == parent && its == name).then_some(*id)
    }

    fn children(&self, parent: NodeId) -> Vec<NodeId> {
        let from = (parent, String::new(), NodeId(0));
        self.places.range(from..).take_while(|(at, _, _)| *at == parent).map(|(_, _, id)| *id).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) entry: EntryId,
    pub(super) version: u64,
    pub(super) sequence: u64,
}

/// How an object was when it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) inode: Inode,
    pub(super) born: u64,
    pub(super) stamp: u64,
}

/// A split about to rename.
#[derive(Clone, Debug)]
pub(super) struct Intent {
    pub(super) new_node: NodeId,
    pub(super) folder: NodeId,
    pub(super) name_after: String,
    pub(super) inode: Inode,
}

#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) node: Node,
    pub(super) stamp: Stamp,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) remote: MapTree,
    pub(super) local: MapTree,
    pub(super) synced: MapTree,
    pub(super) facts: BTreeMap<NodeId, Facts>,
    pub(super) by_entry: BTreeMap<EntryId, NodeId>,
    pub(super) stamps: BTreeMap<NodeId, Stamp>,
    pub(super) sequence: u64,
    pub(super) relist: bool,
    deleted: BTreeMap<EntryId, u64>,
    pub(super) intents: BTreeMap<NodeId, Intent>,
    pub(super) excluded: BTreeSet<EntryId>,
    /// Where the server's journal was followed to.
    pub(super) followed: Reached,
    /// Where the answers to calls have led beyond that.
    pub(super) answered: Reached,
    /// Since the server went back, until it is listed anew: up to where both histories are the same, and nodes whose entries
    /// were forgotten, with whether all that the server had said of them was here.
    pub(super) went_back: Option<u64>,
    /// What was known of it before.
    pub(super) former_place: Option<Reached>,
    /// Contents of files as the server has them again, of which this device had a later one: it had all that they were.
    pub(super) had_later: Vec<Bytes>,
    former: BTreeMap<EntryId, (NodeId, bool)>,
    next: u64,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            remote: MapTree::default(),
            local: MapTree::default(),
            synced: MapTree::default(),
            facts: BTreeMap::new(),
            by_entry: BTreeMap::from([(server::TOP, ROOT)]),
            stamps: BTreeMap::new(),
            sequence: 0,
            relist: true,
            deleted: BTreeMap::new(),
            intents: BTreeMap::new(),
            excluded: BTreeSet::new(),
            followed: Reached::default(),
            answered: Reached::default(),
            went_back: None,
            former_place: None,
            had_later: Vec::new(),
            former: BTreeMap::new(),
            next: 2,
        }
    }

    /// Up to where the server is known, by its journal or by answers.
    pub(super) fn known(&self) -> &Reached {
        if self.answered.sequence > self.followed.sequence { &self.answered } else { &self.followed }
    }

    /// Keeps where an answer was of; false: it may be of another history than what is known by now.
    pub(super) fn note_answered(&mut self, asked: &Reached, told: &Reached) -> bool {
        let of_known = self.known().takes(asked, told);
        if of_known && told.sequence > self.known().sequence {
            self.answered = told.clone();
        }
        of_known
    }

    pub(super) fn new_node(&mut self) -> NodeId {
        self.next += 1;
        NodeId(self.next - 1)
    }

    pub(super) fn entry_of(&self, node: NodeId) -> Option<EntryId> {
        if node == ROOT { Some(server::TOP) } else { self.facts.get(&node).map(|facts| facts.entry) }
    }

    /// All nodes that differ, and the excluded folders; folders first.
    pub(super) fn dirty(&self) -> Vec<NodeId> {
        let all: BTreeSet<NodeId> =
            self.remote.ids().chain(self.local.ids()).chain(self.synced.ids()).collect();
        let excluded: BTreeSet<NodeId> =
            self.excluded.iter().filter_map(|entry| self.by_entry.get(entry).copied()).collect();
        let differs = |id: &NodeId| {
            let (remote, local) = (self.remote.get(*id), self.local.get(*id));
            remote != local || remote != self.synced.get(*id) || excluded.contains(id)
        };
        let is_folder = |id: &NodeId| {
            let mut sides = [&self.remote, &self.local, &self.synced].into_iter();
            sides.any(|tree| tree.get(*id).is_some_and(|node| node.kind == Kind::Folder))
        };
        let (mut dirty, others): (Vec<_>, Vec<_>) = all.into_iter().filter(differs).partition(is_folder);
        dirty.extend(others);
        dirty
    }

    fn forget_if_nowhere(&mut self, id: NodeId) {
        if [&self.remote, &self.local, &self.synced].iter().all(|tree| tree.get(id).is_none())
            && let Some(facts) = self.facts.remove(&id)
        {
            self.by_entry.remove(&facts.entry);
        }
    }

    pub(super) fn set_local(&mut self, id: NodeId, local: Option<Local>) {
        match local {
            Some(local) => {
                self.local.set(id, Some(normalized(local.node)));
                self.stamps.insert(id, local.stamp);
            }
            None => {
                self.local.set(id, None);
                self.stamps.remove(&id);
                self.forget_if_nowhere(id);
            }
        }
    }

    fn set_synced(&mut self, id: NodeId, node: Option<Node>) {
        self.synced.set(id, node.map(normalized));
        self.forget_if_nowhere(id);
    }

    /// Whether walking up from a node ends at one that is not there, and nothing on the way is newer than what the journal
    /// has told: then it may be told yet. In a circle, which is so for a moment, it does not end.
    fn is_torn_off(&self, id: NodeId, told: u64) -> bool {
        let mut walked = BTreeSet::new();
        let mut next = id;
        while next != ROOT && walked.insert(next) {
            if self.is_newer(next, told) {
                return false;
            }
            match self.remote.get(next) {
                Some(node) => next = node.place.parent,
                None => return true,
            }
        }
        false
    }

    fn is_newer(&self, id: NodeId, told: u64) -> bool {
        self.facts.get(&id).is_some_and(|facts| facts.sequence > told)
    }

    /// Drops a node and what is below it, but for what is known by a later number than `told`, with all below that.
    fn drop_remote(&mut self, id: NodeId, told: u64) -> Vec<NodeId> {
        let (mut dropped, mut pending) = (Vec::new(), vec![id]);
        while let Some(next) = pending.pop() {
            if next != id && self.is_newer(next, told) {
                continue;
            }
            pending.extend(self.remote.children(next));
            self.remote.set(next, None);
            self.forget_if_nowhere(next);
            dropped.push(next);
        }
        dropped
    }

    /// Takes in an entry unless something newer is known of it.
    fn take_entry(&mut self, entry: &Entry, answer: bool) -> Option<NodeId> {
        let known = self.by_entry.get(&entry.id).copied();
        let is_newer =
            known.and_then(|id| self.facts.get(&id)).is_some_and(|facts| facts.sequence > entry.sequence);
        let is_deleted = self.deleted.get(&entry.id).is_some_and(|sequence| *sequence >= entry.sequence);
        // An answer that came late: the journal has told all up to here, so it is gone already.
        let is_gone = answer
            && !planted(Bug::LateAnswer)
            && entry.sequence <= self.sequence
            && known.is_none_or(|id| self.remote.get(id).is_none());
        if is_newer || is_deleted || is_gone {
            return known;
        }
        let id = known.unwrap_or_else(|| self.new_node());
        let parent = match self.by_entry.get(&entry.parent) {
            Some(parent) => *parent,
            None => {
                // Not told of yet.
                let parent = self.new_node();
                self.by_entry.insert(entry.parent, parent);
                self.facts.insert(parent, Facts { entry: entry.parent, version: 0, sequence: 0 });
                parent
            }
        };
        self.by_entry.insert(entry.id, id);
        let node = Node {
            place: Place { parent, name: entry.name.clone() },
            kind: entry.kind.clone(),
            attributes: entry.attributes,
        };
        self.remote.set(id, Some(normalized(node)));
        let facts = Facts { entry: entry.id, version: entry.version, sequence: entry.sequence };
        self.facts.insert(id, facts);
        Some(id)
    }

    /// Takes in a batch of changes that was read when the server had reached `sequence`.
    pub(super) fn apply_changes(&mut self, changes: &[Change], sequence: u64, relist: bool) {
        let mut arrived = Vec::new();
        let (mut gone, mut came_in) = (Vec::new(), Vec::new());
        for change in changes {
            match &change.entry {
                Some(entry) => {
                    let known = self.by_entry.get(&entry.id).copied();
                    let was_there = known.is_some_and(|id| self.remote.get(id).is_some());
                    arrived.extend(self.take_entry(entry, false));
                    if !was_there {
                        came_in.extend(&change.below);
                    }
                }
                None => gone.extend(self.by_entry.get(&change.id).copied()),
            }
        }
        for entry in came_in {
            arrived.extend(self.take_entry(entry, false));
        }
        for id in gone {
            if !self.is_newer(id, sequence) {
                self.drop_remote(id, sequence);
            }
        }
        if relist {
            let seen: BTreeSet<NodeId> = arrived.iter().copied().collect();
            for id in self.remote.ids().collect::<Vec<_>>() {
                if !seen.contains(&id) && !self.is_newer(id, sequence) {
                    self.drop_remote(id, sequence);
                }
            }
            self.rejoin();
        }
        for id in self.remote.ids().collect::<Vec<_>>() {
            if self.remote.get(id).is_some() && self.is_torn_off(id, sequence) {
                self.drop_remote(id, sequence);
            }
        }
        let strangers: Vec<NodeId> = self.facts.keys().copied().collect();
        strangers.into_iter().for_each(|id| self.forget_if_nowhere(id));
        self.sequence = self.sequence.max(sequence);
        self.relist = false;
        self.deleted.retain(|_, deleted| *deleted >= sequence);
    }

    /// Forgets what was known of the server beyond the number up to which its two histories are the same.
    pub(super) fn forget_history(&mut self, common: u64) {
        let common = self.went_back.map_or(common, |before| before.min(common));
        if self.went_back.is_none() {
            self.former_place = Some(self.known().clone());
        }
        self.went_back = Some(common);
        let known: Vec<(NodeId, Facts)> = self.facts.iter().map(|(id, facts)| (*id, *facts)).collect();
        let said = |facts: &Facts| (facts.sequence > 0).then_some(facts.sequence);
        let void: BTreeSet<EntryId> = known
            .iter()
            .filter(|(_, facts)| bond(common, said(facts)) == Bond::Void)
            .map(|(_, facts)| facts.entry)
            .collect();
        for (id, facts) in known.into_iter().filter(|(_, facts)| void.contains(&facts.entry)) {
            self.facts.remove(&id);
            self.by_entry.remove(&facts.entry);
            let synced = self.synced.get(id);
            let agreed = synced.is_some() && synced == self.remote.get(id);
            self.remote.set(id, None);
            self.synced.set(id, None);
            if self.local.get(id).is_some() {
                self.former.insert(facts.entry, (id, agreed));
            }
        }
        let by_entry = &self.by_entry;
        self.excluded.retain(|entry| by_entry.contains_key(entry));
        self.forget_one_sided();
        self.deleted.clear();
        (self.sequence, self.relist) = (0, true);
        (self.followed, self.answered) = (Reached::default(), Reached::default());
    }

    fn forget_one_sided(&mut self) {
        for id in self.synced.ids().collect::<Vec<_>>() {
            let both = self.remote.get(id).is_some() && self.local.get(id).is_some();
            if !both {
                self.set_synced(id, None);
            }
        }
    }

    /// The server's tree is listed anew after it went back.
    fn rejoin(&mut self) {
        let Some(common) = self.went_back.take() else { return };
        self.former_place = None;
        self.forget_one_sided();
        let mut joined = Vec::new();
        for (entry, (id, agreed)) in std::mem::take(&mut self.former) {
            let Some(told) = self.by_entry.get(&entry).copied().filter(|told| *told != id) else { continue };
            let said = self.facts.get(&told).map(|facts| facts.sequence);
            let alike = self
                .remote
                .get(told)
                .zip(self.local.get(id))
                .is_some_and(|(one, other)| discriminant(&one.kind) == discriminant(&other.kind));
            if alike && self.remote.get(id).is_none() && bond(common, said) == Bond::Holds {
                self.link(id, told);
                if agreed {
                    joined.push(id);
                }
            }
        }
        for id in joined {
            let told = self.remote.get(id).cloned();
            self.had_later.extend(told.as_ref().and_then(|told| bytes_of_kind(&told.kind)));
            self.set_synced(id, told);
        }
    }

    pub(super) fn record_remote(&mut self, node: NodeId, entry: &Entry, part: Part) {
        // It was made anew, and meanwhile the old one came back: that is another thing from now on.
        let is_other = self.facts.get(&node).is_some_and(|facts| facts.entry != entry.id);
        if is_other && self.remote.get(node).is_some() && !planted(Bug::ComesBackUnseen) {
            let old = self.new_node();
            self.join_remote(old, node);
        }
        match self.by_entry.get(&entry.id).copied() {
            // The journal told of it before the answer came.
            Some(known) if known != node => self.join_remote(node, known),
            Some(_) => {}
            None => {
                if let Some(old) = self.facts.get(&node) {
                    self.by_entry.remove(&old.entry);
                }
                self.by_entry.insert(entry.id, node);
                self.facts.insert(node, Facts { entry: entry.id, version: 0, sequence: 0 });
            }
        }
        self.take_entry(entry, true);
        let Some(parent) = self.by_entry.get(&entry.parent).copied() else { return };
        let done = Node {
            place: Place { parent, name: entry.name.clone() },
            kind: entry.kind.clone(),
            attributes: entry.attributes,
        };
        self.set_synced(node, agreed(self.synced.get(node).cloned(), &done, part));
    }

    pub(super) fn record_remote_gone(&mut self, node: NodeId, entry: EntryId, sequence: u64) {
        self.deleted.insert(entry, sequence);
        // The journal may have told by now that it is back.
        let is_back =
            self.facts.get(&node).is_some_and(|facts| facts.entry == entry && facts.sequence > sequence);
        let gone = if is_back { Vec::new() } else { self.drop_remote(node, u64::MAX) };
        for id in gone.into_iter().chain([node]) {
            self.set_synced(id, None);
        }
    }

    pub(super) fn record_local(&mut self, id: NodeId, local: Local, part: Part) {
        let done = local.node.clone();
        self.set_local(id, Some(local));
        self.set_synced(id, agreed(self.synced.get(id).cloned(), &done, part));
    }

    pub(super) fn record_local_gone(&mut self, node: NodeId) {
        for id in self.local.below(node) {
            self.set_local(id, None);
            self.set_synced(id, None);
        }
    }

    pub(super) fn record_split(&mut self, node: NodeId, new_node: NodeId, local: Local) {
        self.intents.remove(&node);
        self.local.set(node, None);
        self.stamps.remove(&node);
        self.set_synced(node, None);
        self.set_local(new_node, Some(local));
    }

    pub(super) fn settle(&mut self, id: NodeId) {
        let settled = settled(self.remote.get(id), self.local.get(id), self.synced.get(id));
        self.set_synced(id, settled);
    }

    pub(super) fn forget(&mut self, id: NodeId) {
        self.set_synced(id, None);
    }

    /// Gives `keep` all that is known of `gone` on the server.
    fn join_remote(&mut self, keep: NodeId, gone: NodeId) {
        for child in self.remote.children(gone) {
            if let Some(mut node) = self.remote.get(child).cloned() {
                node.place.parent = keep;
                self.remote.set(child, Some(node));
            }
        }
        let node = self.remote.get(gone).cloned();
        self.remote.set(gone, None);
        self.remote.set(keep, node);
        if let Some(old) = self.facts.get(&keep) {
            self.by_entry.remove(&old.entry);
        }
        if let Some(facts) = self.facts.remove(&gone) {
            self.by_entry.insert(facts.entry, keep);
            self.facts.insert(keep, facts);
        }
    }

    pub(super) fn link(&mut self, keep: NodeId, gone: NodeId) {
        if self.remote.get(keep).is_none() && self.remote.get(gone).is_some() {
            self.join_remote(keep, gone);
        }
        if self.local.get(keep).is_none()
            && let Some(node) = self.local.get(gone).cloned()
            && let Some(stamp) = self.stamps.get(&gone).copied()
        {
            for child in self.local.children(gone) {
                if let Some(mut node) = self.local.get(child).cloned() {
                    node.place.parent = keep;
                    self.local.set(child, Some(node));
                }
            }
            self.set_local(gone, None);
            self.set_local(keep, Some(Local { node, stamp }));
        }
        self.set_synced(gone, None);
        self.settle(keep);
    }
}

/// Without what is not compared.
fn normalized(mut node: Node) -> Node {
    match node.kind {
        Kind::Folder => node.attributes.mtime_ns = 0,
        Kind::Symlink(_) => node.attributes = Attributes { mode: 0, mtime_ns: 0 },
        Kind::File(_) => {}
    }
    node
}
