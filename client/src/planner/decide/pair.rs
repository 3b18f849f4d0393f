//! Two nodes that are one: at one place, each on one side only.

use super::Planning;
use super::content::incomparable;
use crate::planner::model::{Kind, NodeId, Operation};
use crate::planner::transition::same_kind;
use crate::planner::view::{Side, Triple};
use crate::planner::{Blocked, Decision};

/// What two nodes at one place are to one another.
enum Pair {
    /// One.
    One(Decision),
    /// It is not known before the local one is cut again.
    Unknown(Operation),
    /// Two.
    Two,
}

impl Planning<'_> {
    /// If a node that is here only and one that is on the server only are one: plans to join them, or what is needed
    /// to know. Says whether anything was planned.
    pub(super) fn link(&mut self, here: NodeId, there: NodeId) -> Result<bool, Blocked> {
        let (local, remote) = (self.view.get(here), self.view.get(there));
        if self.view.is_excluded(there) {
            return Ok(false);
        }
        match pair(here, &local, &remote) {
            Pair::Two => Ok(false),
            Pair::Unknown(recut) => self.act(Decision::RecutCreated, recut).map(|()| true),
            Pair::One(decision) => {
                // The one that synced knows stays.
                let (keep, gone) = if local.synced.is_some() { (here, there) } else { (there, here) };
                self.act(decision, Operation::Link { keep, gone }).map(|()| true)
            }
        }
    }

    /// The same, for a node that is on one side only, with whatever is at its place on the other.
    pub(super) fn link_anew(&mut self, node: NodeId, triple: &Triple) -> Result<bool, Blocked> {
        match (&triple.remote, &triple.local) {
            (None, Some(local)) => {
                let there = self.view.at(Side::Remote, &local.place);
                let there = there.filter(|there| self.view.get(*there).local.is_none());
                there.map_or(Ok(false), |there| self.link(node, there))
            }
            (Some(remote), None) => {
                let here = self.view.at(Side::Local, &remote.place);
                let here = here.filter(|here| self.view.get(*here).remote.is_none());
                here.map_or(Ok(false), |here| self.link(here, node))
            }
            _ => Ok(false),
        }
    }
}

fn pair(here: NodeId, local: &Triple, remote: &Triple) -> Pair {
    let (Some(node), Some(other)) = (&local.local, &remote.remote) else { return Pair::Two };
    let anew = match (local.synced.is_some(), remote.synced.is_some()) {
        // Each is an old one with a story of its own.
        (true, true) => return Pair::Two,
        (false, true) => Some(Decision::LinkAnewHere),
        (true, false) => Some(Decision::LinkAnewThere),
        (false, false) => None,
    };
    match (&node.kind, &other.kind, anew) {
        (Kind::Folder, Kind::Folder, anew) => Pair::One(anew.unwrap_or(Decision::LinkFolders)),
        (Kind::File(_), Kind::File(_), Some(anew)) | (Kind::Symlink(_), Kind::Symlink(_), Some(anew)) => {
            Pair::One(anew)
        }
        (Kind::Symlink(one), Kind::Symlink(two), None) if one == two => Pair::One(Decision::LinkSymlinks),
        (Kind::File(_), Kind::File(_), None) if same_kind(&node.kind, &other.kind) => {
            Pair::One(Decision::LinkFiles)
        }
        (Kind::File(_), Kind::File(_), None) => match incomparable(other, node) {
            Some(recut) => Pair::Unknown(recut(here)),
            None => Pair::Two,
        },
        _ => Pair::Two,
    }
}
