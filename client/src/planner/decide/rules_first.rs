//! Rules that are on the server hold before anything new of their folder is sent.

use super::Planning;
use crate::local::ignore_rules::IGNORE_FILE;
use crate::planner::fate::{Fate, Wish};
use crate::planner::model::{NodeId, Place};
use crate::planner::view::Side;

impl Planning<'_> {
    /// Whether the server has rules for a folder here, or for one above it, that are still to come.
    pub(super) fn awaits_rules(&mut self, folder: NodeId) -> bool {
        if let Some(known) = self.awaiting.get(&folder) {
            return *known;
        }
        let above = self.view.above_of_folder(folder);
        let awaits = above.iter().any(|folder| self.has_rules_to_come(*folder));
        self.awaiting.insert(folder, awaits);
        awaits
    }

    fn has_rules_to_come(&self, folder: NodeId) -> bool {
        let place = Place { parent: folder, name: IGNORE_FILE.to_owned() };
        let Some(rules) = self.view.at(Side::Remote, &place) else { return false };
        if self.ready.is_busy(rules) {
            return true;
        }
        let triple = self.view.get(rules);
        match self.view.own_fate(rules) {
            Fate::Bring(_) | Fate::Both(Wish::MoveLocal(_) | Wish::Undo) => true,
            Fate::Both(_) => {
                let agrees = triple.remote.as_ref().map(|node| &node.kind)
                    == triple.local.as_ref().map(|node| &node.kind);
                !agrees && (triple.edited(Side::Remote) || triple.synced.is_none())
            }
            _ => false,
        }
    }
}
