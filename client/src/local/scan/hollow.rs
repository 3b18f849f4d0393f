//! New folders that hold nothing but what is ignored, and rules: they are not sent. Such a folder is what is left of one
//! that was deleted elsewhere while something in it was ignored here; sent again, it would come back everywhere.
//!
//! It is taken in once it holds anything else. One that was found before rules came from the server, and was not sent yet, is
//! let go again. A new folder with nothing in it at all is one that somebody made, wherever it is: of a folder that was
//! deleted elsewhere none is left.

use std::collections::{HashMap, HashSet};

use crate::local::ignore_rules::IGNORE_FILE;
use crate::local::model::LocalUpdate;
use crate::planner::model::NodeId;

#[derive(Debug)]
struct Inside {
    parent: NodeId,
    /// It was found before, when other rules held or none were here.
    known: bool,
    ignores: bool,
    rules: bool,
    holds: bool,
}

impl Inside {
    fn new(parent: NodeId, known: bool) -> Self {
        Self { parent, known, ignores: false, rules: false, holds: false }
    }
}

/// The folders of one scan that are new to the server.
#[derive(Debug, Default)]
pub(super) struct Hollow(HashMap<NodeId, Inside>);

impl Hollow {
    pub(super) fn is_new(&mut self, folder: NodeId, parent: NodeId) {
        self.0.insert(folder, Inside::new(parent, false));
    }

    /// A folder that was found before and never sent is listed again.
    pub(super) fn is_unsent(&mut self, folder: NodeId, parent: NodeId) {
        self.0.insert(folder, Inside::new(parent, true));
    }

    pub(super) fn ignored(&mut self, folder: NodeId, count: u64) {
        if let Some(inside) = self.0.get_mut(&folder) {
            inside.ignores |= count > 0;
        }
    }

    /// Something that is not ignored is in a folder.
    pub(super) fn holds(&mut self, folder: NodeId, name: &str) {
        if let Some(inside) = self.0.get_mut(&folder) {
            if name == IGNORE_FILE {
                inside.rules = true;
            } else {
                inside.holds = true;
            }
        }
    }

    /// Takes such folders, and the rules in them, out of what a scan says.
    pub(super) fn leave_out(&self, updates: &mut Vec<LocalUpdate>) {
        let (mut holding, mut ignoring) = (HashSet::new(), HashSet::new());
        let around: HashSet<NodeId> = self.0.values().map(|inside| inside.parent).collect();
        for (folder, inside) in &self.0 {
            let has_nothing = !inside.ignores && !inside.rules && !around.contains(folder);
            if inside.holds || has_nothing {
                self.mark(*folder, &mut holding);
            }
            if inside.ignores {
                self.mark(*folder, &mut ignoring);
            }
        }
        let is_new = |folder: &NodeId| self.0.contains_key(folder);
        let is_hollow =
            |folder: &NodeId| is_new(folder) && ignoring.contains(folder) && !holding.contains(folder);
        if !self.0.keys().any(is_hollow) {
            return;
        }
        // A folder that holds rules alone, in one that is left out, goes with that.
        let is_in_hollow = |folder: NodeId| {
            let mut at = folder;
            loop {
                if is_hollow(&at) {
                    return true;
                }
                match self.0.get(&at) {
                    Some(inside) if !holding.contains(&at) => at = inside.parent,
                    _ => return false,
                }
            }
        };
        updates.retain(|update| match update {
            LocalUpdate::Put(record) => !is_in_hollow(record.node) && !is_in_hollow(record.place.parent),
            LocalUpdate::Gone(_) => true,
        });
        let known = self.0.iter().filter(|(folder, inside)| inside.known && is_hollow(folder));
        updates.extend(known.map(|(folder, _)| LocalUpdate::Gone(*folder)));
    }

    /// A folder and the new ones around it.
    fn mark(&self, folder: NodeId, marked: &mut HashSet<NodeId>) {
        let mut at = folder;
        while marked.insert(at)
            && let Some(inside) = self.0.get(&at)
        {
            at = inside.parent;
        }
    }
}
