//! The three trees as one planning asks for them: each node once, all three together.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::Trees;
use super::model::{Kind, Node, NodeId, Place, ROOT, Tree};
use super::names::{NameRules, swapped};
use super::planted::{Bug, planted};
use super::transition::same_kind;

/// Nodes that are kept; then all are forgotten, and asked for again as they are needed.
const KEPT_MAX: usize = 100_000;
/// Folders whose names are kept folded.
const FOLDERS_KEPT_MAX: usize = 64;
/// Folders within one another that a walk up bears.
pub(super) const DEPTH_MAX: usize = 10_000;

/// One of the sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Remote,
    Local,
}

/// A node in the three trees.
#[derive(Debug)]
pub(super) struct Triple {
    pub(super) remote: Option<Node>,
    pub(super) local: Option<Node>,
    pub(super) synced: Option<Node>,
}

impl Triple {
    pub(super) fn side(&self, side: Side) -> Option<&Node> {
        match side {
            Side::Remote => self.remote.as_ref(),
            Side::Local => self.local.as_ref(),
        }
    }

    /// Whether it is a folder, wherever it is.
    pub(super) fn is_folder(&self) -> bool {
        let any = self.remote.as_ref().or(self.local.as_ref()).or(self.synced.as_ref());
        any.is_some_and(|node| node.kind == Kind::Folder)
    }

    /// Whether a side has another place than both agreed on. A name for stepping aside is nobody's wish.
    pub(super) fn moved(&self, side: Side) -> bool {
        match (self.side(side), &self.synced) {
            (Some(node), Some(synced)) => {
                let is_wish = swapped(&node.place.name).is_none() || planted(Bug::AsideIsWish);
                node.place != synced.place && is_wish
            }
            _ => false,
        }
    }

    /// Whether a side has another content than both agreed on.
    pub(super) fn edited(&self, side: Side) -> bool {
        match (self.side(side), &self.synced) {
            (Some(node), Some(synced)) => !same_kind(&node.kind, &synced.kind),
            _ => false,
        }
    }
}

pub(super) struct View<'a> {
    trees: &'a Trees<'a>,
    /// Of this device's names for stepping aside.
    tag: &'a str,
    kept: RefCell<BTreeMap<NodeId, Rc<Triple>>>,
    excluded: RefCell<BTreeMap<NodeId, bool>>,
    adrift: RefCell<BTreeMap<NodeId, bool>>,
    /// Folders of which it was asked whether their local move is to be undone.
    undone: RefCell<BTreeMap<NodeId, bool>>,
    /// Folders here that were looked into: what is there, by the name as the file system has it.
    folded: RefCell<BTreeMap<NodeId, BTreeMap<String, Vec<NodeId>>>>,
}

impl<'a> View<'a> {
    pub(super) fn new(trees: &'a Trees<'a>, tag: &'a str) -> Self {
        Self {
            trees,
            tag,
            kept: RefCell::default(),
            excluded: RefCell::default(),
            adrift: RefCell::default(),
            undone: RefCell::default(),
            folded: RefCell::default(),
        }
    }

    pub(super) fn tree(&self, side: Side) -> &'a dyn Tree {
        match side {
            Side::Remote => self.trees.remote,
            Side::Local => self.trees.local,
        }
    }

    pub(super) fn get(&self, node: NodeId) -> Rc<Triple> {
        if let Some(known) = self.kept.borrow().get(&node) {
            return Rc::clone(known);
        }
        let triple = Rc::new(Triple {
            remote: self.trees.remote.node(node),
            local: self.trees.local.node(node),
            synced: self.trees.synced.node(node),
        });
        let mut kept = self.kept.borrow_mut();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(node, Rc::clone(&triple));
        triple
    }

    /// The answer that was given for a folder before, or else `found`, which may ask for others.
    pub(super) fn kept_undone(&self, folder: NodeId, found: impl FnOnce() -> bool) -> bool {
        if let Some(known) = self.undone.borrow().get(&folder) {
            return *known;
        }
        let answer = found();
        let mut undone = self.undone.borrow_mut();
        if undone.len() >= KEPT_MAX {
            undone.clear();
        }
        undone.insert(folder, answer);
        answer
    }

    pub(super) fn at(&self, side: Side, place: &Place) -> Option<NodeId> {
        self.tree(side).at(place.parent, &place.name)
    }

    /// Whether this device made something step aside to there.
    pub(super) fn is_own_swap(&self, place: &Place) -> bool {
        swapped(&place.name).is_some_and(|(tag, _plain)| tag == self.tag)
    }

    /// What is here at a place that is the same to the file system. Costs a look at the whole folder, once.
    pub(super) fn at_folded(&self, names: &NameRules, place: &Place, but: NodeId) -> Option<NodeId> {
        let mut folded = self.folded.borrow_mut();
        if folded.len() >= FOLDERS_KEPT_MAX {
            folded.clear();
        }
        let folder = folded.entry(place.parent).or_insert_with(|| {
            let mut folder: BTreeMap<String, Vec<NodeId>> = BTreeMap::new();
            for child in self.trees.local.children(place.parent) {
                if let Some(node) = &self.get(child).local {
                    folder.entry(names.fold(&node.place.name).into_owned()).or_default().push(child);
                }
            }
            folder
        });
        folder
            .get(names.fold(&place.name).as_ref())
            .and_then(|children| children.iter().copied().filter(|other| *other != but).min())
    }

    /// Whether a side has this node, as a folder.
    pub(super) fn has_folder(&self, side: Side, node: NodeId) -> bool {
        node == ROOT || self.get(node).side(side).is_some_and(|node| node.kind == Kind::Folder)
    }

    /// The folders above a node on one side, the nearest first, without the root.
    ///
    /// In a circle it goes round once or a few times.
    pub(super) fn above(&self, side: Side, node: NodeId) -> Vec<NodeId> {
        let mut above = Vec::new();
        let mut next = self.get(node).side(side).map(|node| node.place.parent);
        let mut mark = None;
        while let Some(folder) = next {
            if folder == ROOT || above.len() >= DEPTH_MAX || mark == Some(folder) {
                break;
            }
            above.push(folder);
            if above.len().is_power_of_two() {
                mark = Some(folder);
            }
            next = self.get(folder).side(side).map(|node| node.place.parent);
        }
        above
    }

    /// A folder here and those above it, up to the root.
    pub(super) fn above_of_folder(&self, folder: NodeId) -> Vec<NodeId> {
        if folder == ROOT {
            return vec![ROOT];
        }
        let mut folders = vec![folder];
        folders.extend(self.above(Side::Local, folder));
        folders.push(ROOT);
        folders
    }

    /// Whether a node is on the server, and walking up there does not end at the root: what is known of one of the folders
    /// is newer than what is known of the others.
    pub(super) fn is_adrift(&self, node: NodeId) -> bool {
        if self.get(node).remote.is_none() {
            return false;
        }
        let mut walked = Vec::new();
        let mut on_path = BTreeSet::new();
        let mut next = node;
        let found = loop {
            if next == ROOT {
                break false;
            }
            if let Some(known) = self.adrift.borrow().get(&next) {
                break *known;
            }
            if !on_path.insert(next) {
                break true;
            }
            walked.push(next);
            match &self.get(next).remote {
                Some(node) => next = node.place.parent,
                None => break true,
            }
        };
        let mut adrift = self.adrift.borrow_mut();
        if adrift.len() >= KEPT_MAX {
            adrift.clear();
        }
        adrift.extend(walked.into_iter().map(|node| (node, found)));
        found
    }

    /// Whether a node is excluded, or below what is: where it is on the server, else where it is here.
    pub(super) fn is_excluded(&self, node: NodeId) -> bool {
        let mut walked = Vec::new();
        let mut next = node;
        let found = loop {
            if next == ROOT || walked.len() >= DEPTH_MAX {
                break false;
            }
            if let Some(known) = self.excluded.borrow().get(&next) {
                break *known;
            }
            walked.push(next);
            if (self.trees.excluded)(next) {
                break true;
            }
            let triple = self.get(next);
            match triple.remote.as_ref().or(triple.local.as_ref()) {
                Some(node) => next = node.place.parent,
                None => break false,
            }
        };
        let mut excluded = self.excluded.borrow_mut();
        if excluded.len() >= KEPT_MAX {
            excluded.clear();
        }
        excluded.extend(walked.into_iter().map(|node| (node, found)));
        found
    }
}
