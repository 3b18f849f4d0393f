//! Which folders that one side deleted stay, because something in them lives, and which have to wait for something to
//! leave them. Found from the dirty nodes upwards, once, and only if a folder is to be deleted at all.

use std::collections::BTreeMap;

use super::fate::{Because, Fate, Wish};
use super::model::NodeId;
use super::planted::{Bug, planted};
use super::view::{Side, Triple, View};

/// What is below a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    /// This is to leave it.
    Leaves(NodeId),
    /// Something lives there.
    Lives,
}

/// What is below the folders of both sides, as far as it is not the same on both.
#[derive(Debug, Default)]
pub(super) struct Survivors {
    remote: BTreeMap<NodeId, Below>,
    local: BTreeMap<NodeId, Below>,
    /// Folders here with something below them that was changed here, and has to go to the server.
    unsent: BTreeMap<NodeId, NodeId>,
}

impl Survivors {
    pub(super) fn of(view: &View<'_>, dirty: &[NodeId]) -> Self {
        let mut survivors = Self::default();
        for &node in dirty {
            let fate = view.own_fate(node);
            survivors.add(view, node, fate);
            if fate == Fate::GoesLocal {
                survivors.keep_for_adrift(view, node);
            }
        }
        survivors
    }

    fn add(&mut self, view: &View<'_>, node: NodeId, fate: Fate) {
        let (remote, local, unsent) = match fate {
            Fate::Bring(Because::New) if planted(Bug::NewKeepsNothing) => (None, None, false),
            Fate::Nowhere | Fate::GoesRemote | Fate::GoesLocal => (None, None, false),
            Fate::Bring(_) | Fate::Away(_) | Fate::Leaves => (Some(Below::Lives), None, false),
            Fate::Send(_) => (None, Some(Below::Lives), true),
            // Excluded, and elsewhere here: it goes from here once it is sent, and stays there.
            Fate::Both(Wish::Stay) | Fate::ForgetsMove if is_elsewhere(&view.get(node)) => {
                (Some(Below::Lives), Some(Below::Leaves(node)), true)
            }
            Fate::Both(Wish::Stay) | Fate::ForgetsMove => (None, None, true),
            Fate::Both(Wish::MoveRemote) => (Some(Below::Leaves(node)), Some(Below::Lives), true),
            Fate::Both(Wish::MoveLocal(_) | Wish::Undo) => {
                (Some(Below::Lives), Some(Below::Leaves(node)), true)
            }
        };
        if let Some(below) = remote {
            mark(&mut self.remote, view.above(Side::Remote, node), below);
        }
        if let Some(below) = local {
            mark(&mut self.local, view.above(Side::Local, node), below);
        }
        if unsent {
            for folder in view.above(Side::Local, node) {
                if self.unsent.insert(folder, node).is_some() {
                    break;
                }
            }
        }
    }

    /// What is known to be in a folder on the server that is not known there is adrift: the folder may be back.
    fn keep_for_adrift(&mut self, view: &View<'_>, folder: NodeId) {
        if let Some(child) = view.tree(Side::Remote).children(folder).first() {
            let mut folders = view.above(Side::Local, folder);
            folders.insert(0, folder);
            mark(&mut self.local, folders, Below::Leaves(*child));
        }
    }

    /// A folder's fate, with what is below it considered.
    pub(super) fn fate(&self, folder: NodeId, own: Fate) -> Fate {
        match own {
            Fate::GoesRemote if self.remote.get(&folder) == Some(&Below::Lives) => Fate::Bring(Because::Kept),
            Fate::GoesLocal if self.local.get(&folder) == Some(&Below::Lives) => Fate::Send(Because::Kept),
            own => own,
        }
    }

    /// What is to leave a folder before it can be deleted on a side.
    pub(super) fn to_leave(&self, side: Side, folder: NodeId) -> Option<NodeId> {
        let below = match side {
            Side::Remote => &self.remote,
            Side::Local => &self.local,
        };
        match below.get(&folder) {
            Some(Below::Leaves(node)) if !planted(Bug::NotWaitedFor) => Some(*node),
            _ => None,
        }
    }

    /// What is below a folder here, and has to go to the server or elsewhere first.
    pub(super) fn unsent(&self, folder: NodeId) -> Option<NodeId> {
        self.unsent.get(&folder).copied()
    }
}

/// Whether a node has another place on each side.
fn is_elsewhere(triple: &Triple) -> bool {
    match (&triple.remote, &triple.local) {
        (Some(remote), Some(local)) => remote.place != local.place,
        _ => false,
    }
}

fn mark(folders: &mut BTreeMap<NodeId, Below>, above: Vec<NodeId>, below: Below) {
    for folder in above {
        match folders.get(&folder) {
            // What is above has been marked as well.
            Some(Below::Lives) => break,
            Some(Below::Leaves(_)) if below != Below::Lives => break,
            _ => {
                folders.insert(folder, below);
            }
        }
    }
}
