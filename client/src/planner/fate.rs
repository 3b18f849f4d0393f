//! What is to become of a node, by its own three states alone.

use super::model::{Kind, NodeId};
use super::planted::{Bug, planted};
use super::transition::{same_attributes, same_kind, settled};
use super::view::{Side, Triple, View};

/// What is to become of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// On neither side.
    Nowhere,
    /// On the server only, and to come here.
    Bring(Because),
    /// Here only, and to go to the server.
    Send(Because),
    /// Deleted here, unchanged there. A folder stays if something in it does.
    GoesRemote,
    /// Deleted there, unchanged here. A folder stays if something in it does.
    GoesLocal,
    /// On both sides.
    Both(Wish),
    /// Excluded, and not here: `true` if synced still has it.
    Away(bool),
    /// Excluded, and here without changes of its own: it goes from here.
    Leaves,
    /// Excluded, and moved here to where it would be within itself: nothing comes of that move.
    ForgetsMove,
}

/// Why something that one side lacks comes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    /// It is new.
    New,
    /// It was edited on the one side and deleted on the other.
    Edited,
    /// It was moved on the one side and deleted on the other.
    Moved,
    /// It is a folder, deleted on the one side, with something in it that lives on the other.
    Kept,
}

/// Where a node that is on both sides is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Where it is.
    Stay,
    /// On the server as here.
    MoveRemote,
    /// Here as on the server; `true` if it was moved here as well.
    MoveLocal(bool),
    /// Here as on the server, for as it is here it would be within itself.
    Undo,
}

impl View<'_> {
    /// What is to become of a node, but for folders that stay because something in them does.
    pub(super) fn own_fate(&self, node: NodeId) -> Fate {
        let triple = self.get(node);
        if self.is_excluded(node)
            && let Some(fate) = self.excluded_fate(&triple)
        {
            let within = fate == Fate::Both(Wish::MoveRemote) && self.must_undo(node, &triple);
            return match (within, changed_here(&triple)) {
                (false, _) => fate,
                (true, true) => Fate::Both(Wish::Stay),
                (true, false) => Fate::ForgetsMove,
            };
        }
        match (&triple.remote, &triple.local, &triple.synced) {
            (None, None, _) => Fate::Nowhere,
            (Some(_), None, None) => Fate::Bring(Because::New),
            (None, Some(_), None) => Fate::Send(Because::New),
            (Some(_), None, Some(_)) => match lives(&triple, Side::Remote) {
                Some(because) => Fate::Bring(because),
                None => Fate::GoesRemote,
            },
            (None, Some(_), Some(_)) => match lives(&triple, Side::Local) {
                Some(because) => Fate::Send(because),
                None => Fate::GoesLocal,
            },
            (Some(_), Some(_), _) => Fate::Both(self.wish(node, &triple)),
        }
    }

    fn wish(&self, node: NodeId, triple: &Triple) -> Wish {
        let wish = self.raw_wish(triple);
        if wish == Wish::MoveRemote && self.must_undo(node, triple) { Wish::Undo } else { wish }
    }

    /// Whether a folder's local place is within itself on the server, and nothing in between is to leave it.
    ///
    /// What is in between may have to be undone as well; it is further down, so this ends.
    fn must_undo(&self, node: NodeId, triple: &Triple) -> bool {
        // In a circle this would not end; nothing is planned for what is adrift.
        if planted(Bug::CycleNotUndone) || self.is_adrift(node) {
            return false;
        }
        let Some(local) = triple.local.as_ref().filter(|local| local.kind == Kind::Folder) else {
            return false;
        };
        let Some(between) = self.between(Side::Remote, node, local.place.parent) else { return false };
        self.kept_undone(node, || {
            !between.iter().any(|inner| self.own_fate(*inner) == Fate::Both(Wish::MoveRemote))
        })
    }

    /// If `folder` is at or below `node` on a side: the folders from it up to, and without, `node`.
    pub(super) fn between(&self, side: Side, node: NodeId, folder: NodeId) -> Option<Vec<NodeId>> {
        if folder == node {
            return Some(Vec::new());
        }
        let mut between = vec![folder];
        for above in self.above(side, folder) {
            if above == node {
                return Some(between);
            }
            between.push(above);
        }
        None
    }

    /// What an excluded node comes to; `None` if the same as others.
    fn excluded_fate(&self, triple: &Triple) -> Option<Fate> {
        match (&triple.remote, &triple.local) {
            (Some(_), None) if planted(Bug::ExcludedIsDelete) && triple.synced.is_some() => {
                Some(Fate::GoesRemote)
            }
            (Some(_), None) => Some(Fate::Away(triple.synced.is_some())),
            (Some(_), Some(_)) => {
                // What was changed here goes up; what was changed there does not come down.
                let moved = triple.moved(Side::Local) && self.raw_wish(triple) == Wish::MoveRemote;
                // What both agree on is recorded before it goes: or it looks changed to who removes the folder.
                let synced = triple.synced.as_ref();
                let agrees =
                    settled(triple.remote.as_ref(), triple.local.as_ref(), synced).as_ref() != synced;
                let changed = moved || agrees || changed_here(triple);
                Some(match (changed, moved) {
                    (false, _) => Fate::Leaves,
                    (true, true) => Fate::Both(Wish::MoveRemote),
                    (true, false) => Fate::Both(Wish::Stay),
                })
            }
            (None, _) => None,
        }
    }

    /// Where a node is to be, by its own places alone.
    fn raw_wish(&self, triple: &Triple) -> Wish {
        match (&triple.remote, &triple.local) {
            // It stepped aside on both sides, which is so if the server went back: it gets its right name there first.
            (Some(remote), Some(local))
                if [remote, local].iter().all(|node| self.is_own_swap(&node.place)) =>
            {
                Wish::Stay
            }
            // It stepped aside for the sake of where it is to be.
            (Some(remote), Some(local)) if remote.place != local.place && self.is_own_swap(&remote.place) => {
                Wish::MoveRemote
            }
            (Some(remote), Some(local)) if remote.place != local.place => {
                let (there, here) = (triple.moved(Side::Remote), triple.moved(Side::Local));
                let (here, there) = if planted(Bug::MovesInverted) { (there, here) } else { (here, there) };
                if here && !there { Wish::MoveRemote } else { Wish::MoveLocal(here) }
            }
            _ => Wish::Stay,
        }
    }
}

/// Whether content or attributes here are to go to the server.
fn changed_here(triple: &Triple) -> bool {
    let (Some(remote), Some(local)) = (&triple.remote, &triple.local) else { return false };
    let Some(synced) = &triple.synced else { return !same_kind(&remote.kind, &local.kind) };
    let edited = triple.edited(Side::Local) && !same_kind(&remote.kind, &local.kind);
    edited || (!same_attributes(local, synced) && same_attributes(remote, synced))
}

/// Why what only one side has, and the other deleted, lives on.
fn lives(triple: &Triple, side: Side) -> Option<Because> {
    if triple.is_folder() {
        None
    } else if triple.edited(side) && !planted(Bug::DeleteBeatsEdit) {
        Some(Because::Edited)
    } else if triple.moved(side) {
        Some(Because::Moved)
    } else {
        None
    }
}
