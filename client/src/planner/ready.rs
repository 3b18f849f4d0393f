//! Keeps the operations of one plan, and those that are under way, out of one another's way.

use std::collections::BTreeSet;

use super::Blocked;
use super::model::{Kind, NodeId, Operation, Place, ROOT};
use super::names::NameRules;
use super::planted::{Bug, planted};
use super::transition::node_of;
use super::view::{Side, View};

/// What the plan so far, and what is under way, uses.
pub(super) struct Ready<'a> {
    view: &'a View<'a>,
    names: &'a NameRules,
    busy: &'a BTreeSet<NodeId>,
    operations: Vec<Operation>,
    /// Nodes of this plan's operations.
    planned: BTreeSet<NodeId>,
    /// Places that something comes to, by the name as the side has it.
    claimed: BTreeSet<(Side, NodeId, String)>,
    /// Folders with something below them that is worked on.
    in_use: BTreeSet<(Side, NodeId)>,
    /// Folders here whose path changes.
    moving: BTreeSet<NodeId>,
    /// What changes its place on the server, and the folders, and those above them, that something comes to there: two
    /// moves that are right one by one could put each other's folder within itself.
    moving_remote: BTreeSet<NodeId>,
    targets_remote: BTreeSet<NodeId>,
    /// Nodes that become one with another: what is in them is told by another id from then on.
    linked: BTreeSet<NodeId>,
}

impl<'a> Ready<'a> {
    pub(super) fn new(view: &'a View<'a>, names: &'a NameRules, busy: &'a BTreeSet<NodeId>) -> Self {
        let mut ready = Self {
            view,
            names,
            busy,
            operations: Vec::new(),
            planned: BTreeSet::new(),
            claimed: BTreeSet::new(),
            in_use: BTreeSet::new(),
            moving: BTreeSet::new(),
            moving_remote: BTreeSet::new(),
            targets_remote: BTreeSet::new(),
            linked: BTreeSet::new(),
        };
        for &node in busy {
            let triple = view.get(node);
            for side in [Side::Remote, Side::Local] {
                ready.use_above(side, node);
                // Where it may come to.
                if let Some(known) = triple.side(side) {
                    ready.claim(Side::Remote, &known.place);
                    ready.claim(Side::Local, &known.place);
                }
            }
        }
        ready
    }

    pub(super) fn count(&self) -> usize {
        self.operations.len()
    }

    pub(super) fn into_operations(self) -> Vec<Operation> {
        self.operations
    }

    pub(super) fn is_planned(&self, node: NodeId) -> bool {
        self.planned.contains(&node)
    }

    pub(super) fn is_busy(&self, node: NodeId) -> bool {
        self.busy.contains(&node) && !planted(Bug::BusyIgnored)
    }

    fn use_above(&mut self, side: Side, node: NodeId) {
        for folder in self.view.above(side, node) {
            if !self.in_use.insert((side, folder)) {
                break;
            }
        }
    }

    fn key(&self, side: Side, place: &Place) -> (Side, NodeId, String) {
        let name = match side {
            Side::Remote => place.name.clone(),
            Side::Local => self.names.fold(&place.name).into_owned(),
        };
        (side, place.parent, name)
    }

    fn claim(&mut self, side: Side, place: &Place) {
        let key = self.key(side, place);
        self.claimed.insert(key);
    }

    pub(super) fn is_claimed(&self, side: Side, place: &Place) -> bool {
        self.claimed.contains(&self.key(side, place)) && !planted(Bug::ClaimsIgnored)
    }

    /// Adds an operation, which comes to a place on a side if one is given; or says why not now.
    pub(super) fn add(
        &mut self,
        operation: Operation,
        comes_to: Option<(Side, &Place)>,
    ) -> Result<(), Blocked> {
        let node = node_of(&operation);
        let other = match &operation {
            Operation::Link { gone, .. } => Some(*gone),
            _ => None,
        };
        for node in other.into_iter().chain([node]) {
            if self.is_busy(node) {
                return Err(Blocked::Busy);
            }
            if self.is_planned(node) {
                return Err(Blocked::NotYet);
            }
        }
        if let Some((side, place)) = comes_to
            && self.is_claimed(side, place)
        {
            return Err(Blocked::NotYet);
        }
        let triple = self.view.get(node);
        let mut folders = [Side::Remote, Side::Local].into_iter().filter_map(|side| triple.side(side));
        if folders.any(|known| self.linked.contains(&known.place.parent)) {
            return Err(Blocked::NotYet);
        }
        self.check_paths(&operation, node)?;
        self.note_paths(&operation, node);
        if let Some((side, place)) = comes_to {
            self.claim(side, place);
        }
        self.planned.extend(other.into_iter().chain([node]));
        self.operations.push(operation);
        Ok(())
    }

    /// Whether paths that the operation uses stay, and those that it changes are not used.
    fn check_paths(&self, operation: &Operation, node: NodeId) -> Result<(), Blocked> {
        if matches!(operation, Operation::RemoteDelete(_)) && self.in_use.contains(&(Side::Remote, node)) {
            return Err(Blocked::Busy);
        }
        if moves_path(operation) && self.in_use.contains(&(Side::Local, node)) {
            return Err(Blocked::Busy);
        }
        if let Operation::Link { keep, gone } = operation {
            // What is in them is told to be in the other from then on.
            let sides = [Side::Remote, Side::Local];
            let used = |node: NodeId| sides.iter().any(|side| self.in_use.contains(&(*side, node)));
            if used(*keep) || used(*gone) {
                return Err(Blocked::Busy);
            }
        }
        if let Operation::RemoteMove(_, to) = operation
            && (self.targets_remote.contains(&node)
                || self.on_server(to.parent).any(|folder| self.moving_remote.contains(&folder)))
        {
            return Err(Blocked::NotYet);
        }
        let Some(folders) = self.paths(operation, node) else { return Ok(()) };
        for folder in folders {
            if self.busy.contains(&folder) {
                return Err(Blocked::Busy);
            }
            if self.moving.contains(&folder) {
                return Err(Blocked::NotYet);
            }
        }
        Ok(())
    }

    fn note_paths(&mut self, operation: &Operation, node: NodeId) {
        if let Some(folders) = self.paths(operation, node) {
            self.in_use.extend(folders.into_iter().map(|folder| (Side::Local, folder)));
        }
        if moves_path(operation) {
            self.moving.insert(node);
        }
        if let Operation::Link { keep, gone } = operation {
            self.moving.extend([*keep, *gone]);
            self.linked.extend([*keep, *gone]);
        }
        if let Operation::RemoteMove(_, to) = operation {
            self.moving_remote.insert(node);
            let targets: Vec<NodeId> = self.on_server(to.parent).collect();
            self.targets_remote.extend(targets);
        }
        self.use_above(Side::Remote, node);
    }

    /// A folder, and those above it on the server.
    fn on_server(&self, folder: NodeId) -> impl Iterator<Item = NodeId> + use<> {
        std::iter::once(folder).chain(self.view.above(Side::Remote, folder))
    }

    /// The folders here on the paths that the operation uses.
    fn paths(&self, operation: &Operation, node: NodeId) -> Option<Vec<NodeId>> {
        let target = match operation {
            Operation::Link { .. }
            | Operation::Agree(_)
            | Operation::Forget(_)
            | Operation::RemoteCreate(_)
            | Operation::RemoteRetarget(_)
            | Operation::RemoteMove(..)
            | Operation::RemoteDelete(_)
            | Operation::RemoteAttributes(..) => return None,
            Operation::Upload(_)
            | Operation::Recut(..)
            | Operation::Split { .. }
            | Operation::LocalRetarget(_)
            | Operation::LocalDelete(_)
            | Operation::LocalAttributes(..) => None,
            Operation::LocalMove(_, to) => Some(to.parent),
            Operation::LocalCreate(_) | Operation::Download(_) => {
                self.view.get(node).remote.as_ref().map(|remote| remote.place.parent)
            }
        };
        let mut folders = self.view.above(Side::Local, node);
        if let Some(target) = target {
            folders.push(target);
            folders.extend(self.view.above(Side::Local, target));
        }
        Some(folders)
    }

    /// Whether a place is free on both sides and of the plan, so that something can be given this name.
    pub(super) fn is_free(&self, place: &Place) -> bool {
        !self.is_claimed(Side::Remote, place)
            && !self.is_claimed(Side::Local, place)
            && self.view.at(Side::Remote, place).is_none()
            && self.occupant_here(ROOT, place).is_none()
    }

    /// What else is at a place here, or at one that is the same to the file system.
    pub(super) fn occupant_here(&self, node: NodeId, place: &Place) -> Option<NodeId> {
        let exact = self.view.at(Side::Local, place).filter(|other| *other != node);
        if exact.is_some() || self.names.exact() || planted(Bug::FoldIgnored) {
            return exact;
        }
        self.view.at_folded(self.names, place, node)
    }
}

/// Whether the path of what is below it changes here.
fn moves_path(operation: &Operation) -> bool {
    matches!(operation, Operation::LocalMove(..) | Operation::LocalDelete(_))
}

impl std::fmt::Debug for Ready<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("operations", &self.operations).finish_non_exhaustive()
    }
}

/// Whether a kind is a folder.
pub(super) fn is_folder(kind: &Kind) -> bool {
    *kind == Kind::Folder
}
