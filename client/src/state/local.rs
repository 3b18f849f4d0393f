//! What scans say of the disk.
//!
//! A scan looks while this program works on the same disk: what it says of what was touched meanwhile is not believed.
//! What is to be believed is decided before anything is changed, for one thing that is refused may make others wrong.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::database::State;
use super::error::StateError;
use super::trees::Side;
use crate::local::model::{LocalRecord, LocalUpdate};
use crate::planner::model::{Kind, Node, NodeId, Place, ROOT};

/// What was done to the disk by this program while a scan looked at it: what the scan says of these is not believed.
pub trait Touched {
    /// Whether a node was changed, or is being changed.
    fn node(&self, node: NodeId) -> bool;
    /// Whether something was put at a place or taken from it, or is being so.
    fn place(&self, parent: NodeId, name: &str) -> bool;
    /// Whether that is so of any place in a folder.
    fn folder(&self, folder: NodeId) -> bool;
}

/// What came of a scan's updates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalApplied {
    /// Nodes that are otherwise now than they were known.
    pub changed: Vec<NodeId>,
    /// Paths of folders to be looked at again: something in them was not believed. They need not be known yet.
    pub again: BTreeSet<String>,
    /// Nodes of which the scan was not believed: they are known as they were.
    pub refused: HashSet<NodeId>,
}

/// Rounds in which what was refused makes more be refused; after these, all is.
const ROUNDS_MAX: usize = 64;
/// Folders within one another that a walk up bears.
const DEPTH_MAX: usize = 4_096;

impl State {
    /// Takes in a scan's updates, in one transaction. Each is taken in as a whole or refused; what is refused leaves
    /// its node as it was.
    ///
    /// # Errors
    /// If the file cannot be written; then nothing was taken in.
    pub fn apply_local(
        &mut self,
        updates: Vec<LocalUpdate>,
        touched: &dyn Touched,
    ) -> Result<LocalApplied, StateError> {
        self.transaction(|state| {
            let mut batch = Batch::new(state, touched, updates);
            batch.decide()?;
            batch.apply()
        })
    }
}

/// The updates of one scan, of which some may not be believed.
///
/// Invariants, once decided:
/// - What is put is put into a folder that is there afterwards, at a place that is free then, and reaches the root.
/// - What is gone takes nothing along that the scan has seen elsewhere.
struct Batch<'a> {
    state: &'a State,
    touched: &'a dyn Touched,
    puts: HashMap<NodeId, LocalRecord>,
    /// The keys of `puts`, as the scan had them.
    order: Vec<NodeId>,
    gone: BTreeSet<NodeId>,
    refused: HashSet<NodeId>,
    /// Whether a node that the scan says nothing of is a folder.
    folders: HashMap<NodeId, bool>,
}

impl<'a> Batch<'a> {
    fn new(state: &'a State, touched: &'a dyn Touched, updates: Vec<LocalUpdate>) -> Self {
        let mut batch = Self {
            state,
            touched,
            puts: HashMap::with_capacity(updates.len()),
            order: Vec::with_capacity(updates.len()),
            gone: BTreeSet::new(),
            refused: HashSet::new(),
            folders: HashMap::new(),
        };
        for update in updates {
            match update {
                LocalUpdate::Put(record) => {
                    batch.order.push(record.node);
                    batch.puts.insert(record.node, record);
                }
                LocalUpdate::Gone(node) => {
                    batch.gone.insert(node);
                }
            }
        }
        batch
    }

    /// Finds out what is refused: what was touched, and then whatever would not fit without that.
    fn decide(&mut self) -> Result<(), StateError> {
        for (node, record) in &self.puts {
            let place = &record.place;
            if *node != ROOT && (self.touched.node(*node) || self.touched.place(place.parent, &place.name)) {
                self.refused.insert(*node);
            }
        }
        for _ in 0..ROUNDS_MAX {
            let before = self.refused.len();
            for node in self.order.clone() {
                if !self.refused.contains(&node) && !self.fits(node)? {
                    self.refused.insert(node);
                }
            }
            for node in self.gone.clone() {
                if !self.refused.contains(&node) && !self.goes(node)? {
                    self.refused.insert(node);
                }
            }
            if self.refused.len() == before {
                return Ok(());
            }
        }
        self.refused.extend(self.order.iter().copied().chain(self.gone.iter().copied()));
        Ok(())
    }

    fn is_put(&self, node: NodeId) -> Option<&LocalRecord> {
        self.puts.get(&node).filter(|_| !self.refused.contains(&node))
    }

    fn is_gone(&self, node: NodeId) -> bool {
        self.gone.contains(&node) && !self.refused.contains(&node)
    }

    /// Whether a node can be where the scan saw it, by what else is believed of the scan.
    fn fits(&mut self, node: NodeId) -> Result<bool, StateError> {
        let Some(place) = self.puts.get(&node).map(|record| record.place.clone()) else { return Ok(true) };
        if node == ROOT {
            return Ok(true);
        }
        let occupant = self.state.side_at(Side::Local, place.parent, &place.name)?;
        if occupant.is_some_and(|other| other != node && !self.leaves(other, &place)) {
            return Ok(false);
        }
        if !self.will_be_folder(place.parent)? {
            return Ok(false);
        }
        match self.state.side(Side::Local, node)? {
            Some(was) if was.place.parent != place.parent => self.will_reach_root(node, place.parent),
            _ => Ok(true),
        }
    }

    fn leaves(&self, other: NodeId, place: &Place) -> bool {
        self.is_gone(other) || self.is_put(other).is_some_and(|record| record.place != *place)
    }

    fn will_be_folder(&mut self, node: NodeId) -> Result<bool, StateError> {
        if node == ROOT {
            return Ok(true);
        }
        if let Some(record) = self.puts.get(&node) {
            return Ok(record.kind == Kind::Folder && !self.refused.contains(&node));
        }
        if self.is_gone(node) {
            return Ok(false);
        }
        if let Some(known) = self.folders.get(&node) {
            return Ok(*known);
        }
        let is_folder = self.state.side(Side::Local, node)?.is_some_and(|value| value.kind == Kind::Folder);
        self.folders.insert(node, is_folder);
        Ok(is_folder)
    }

    /// Whether the way up from `parent` ends at the root without passing `node`, or what is gone.
    fn will_reach_root(&self, node: NodeId, parent: NodeId) -> Result<bool, StateError> {
        let mut at = parent;
        for _ in 0..DEPTH_MAX {
            if at == ROOT {
                return Ok(true);
            }
            if at == node || self.is_gone(at) {
                return Ok(false);
            }
            at = match self.is_put(at) {
                Some(record) => record.place.parent,
                None => match self.state.side(Side::Local, at)? {
                    Some(value) => value.place.parent,
                    None => return Ok(false),
                },
            };
        }
        Ok(false)
    }

    /// Whether a node may go with all below it: nothing of that was touched, or was seen anywhere but in a place that
    /// it can be put to.
    fn goes(&self, node: NodeId) -> Result<bool, StateError> {
        if node == ROOT {
            return Err(StateError::Unusable("a scan says that the root is gone".to_owned()));
        }
        if self.state.side(Side::Local, node)?.is_none() {
            return Ok(true);
        }
        let mut pending = vec![node];
        while let Some(next) = pending.pop() {
            // What was put into it may not be recorded yet.
            if self.touched.node(next) || self.touched.folder(next) {
                return Ok(false);
            }
            if let Some(record) = self.puts.get(&next) {
                let was = self.state.side(Side::Local, next)?;
                if self.refused.contains(&next)
                    || was.is_some_and(|was| was.place.parent == record.place.parent)
                {
                    return Ok(false);
                }
                // It has left, with what is in it.
                continue;
            }
            pending.extend(self.state.side_children(Side::Local, next)?);
        }
        Ok(true)
    }

    fn apply(&self) -> Result<LocalApplied, StateError> {
        let mut applied = LocalApplied::default();
        // Places that were left, before anything is changed.
        let mut left = BTreeSet::new();
        for node in &self.refused {
            left.extend(self.state.side(Side::Local, *node)?.map(|was| was.place.parent));
        }
        for node in &self.order {
            if let Some(record) = self.is_put(*node)
                && self.put(record)?
            {
                applied.changed.push(*node);
            }
        }
        for node in &self.gone {
            if self.is_gone(*node) && self.state.side(Side::Local, *node)?.is_some() {
                applied.changed.extend(self.state.remove_below(Side::Local, *node)?);
            }
        }
        let parents = self.refused.iter().filter_map(|node| Some(self.puts.get(node)?.place.parent));
        for folder in parents.chain(left).collect::<BTreeSet<_>>() {
            applied.again.insert(self.path(folder)?);
        }
        applied.refused.clone_from(&self.refused);
        Ok(applied)
    }

    fn put(&self, record: &LocalRecord) -> Result<bool, StateError> {
        let node = record.node;
        if node == ROOT {
            self.state.write_stamp(ROOT, Some(record.stamp))?;
            return Ok(false);
        }
        if self.state.local_record(node)?.as_ref() == Some(record) {
            return Ok(false);
        }
        let value =
            Node { place: record.place.clone(), kind: record.kind.clone(), attributes: record.attributes };
        self.state.set_side(Side::Local, node, Some(value))?;
        self.state.write_stamp(node, Some(record.stamp))?;
        Ok(true)
    }

    /// Where a folder is, once all is taken in; one that was not taken in, where the scan saw it.
    fn path(&self, folder: NodeId) -> Result<String, StateError> {
        let mut names = Vec::new();
        let mut at = folder;
        for _ in 0..DEPTH_MAX {
            if let Some(above) = self.state.path(Side::Local, at)? {
                names.extend((!above.is_empty()).then_some(above));
                names.reverse();
                return Ok(names.join("/"));
            }
            let Some(record) = self.puts.get(&at) else { break };
            names.push(record.place.name.clone());
            at = record.place.parent;
        }
        Ok(String::new())
    }
}
