//! How the trees change when an operation has been carried out. Pure; used by the state database and the simulation.
//!
//! `synced` learns what was done, not what is now: a file that is edited here while it goes up differs from what went
//! up, and that is one side's edit, not two. And it learns only what both sides have, or are known to have had at once:
//! a thing that was moved out of the way, on whichever side, has not been agreed upon.

use super::model::{Kind, Node, NodeId, Operation, Place};

/// Which parts of a node an operation made the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it: it was made.
    Whole,
    /// Content and attributes of a file.
    Content,
    /// A symlink's target.
    Target,
    /// Its place.
    Place,
    /// Its attributes.
    Attributes,
    /// Nothing: it was moved out of the way, or under a name that the other side does not have yet.
    Nothing,
}

/// Which part the success of an operation makes the same, as the node was on both sides when it was planned. `None`: it
/// deletes, or changes the state alone.
#[must_use]
pub fn part_of(operation: &Operation, remote: Option<&Node>, local: Option<&Node>) -> Option<Part> {
    let moved = |to: &Place, other: Option<&Node>| {
        if other.is_some_and(|other| other.place == *to) { Part::Place } else { Part::Nothing }
    };
    Some(match operation {
        Operation::RemoteCreate(_) | Operation::LocalCreate(_) => Part::Whole,
        Operation::Upload(_) if remote.is_none() => Part::Whole,
        Operation::Download(_) if local.is_none() => Part::Whole,
        Operation::Upload(_) | Operation::Download(_) => Part::Content,
        Operation::RemoteRetarget(_) | Operation::LocalRetarget(_) => Part::Target,
        Operation::RemoteMove(_, to) => moved(to, local),
        Operation::LocalMove(_, to) => moved(to, remote),
        Operation::RemoteAttributes(..) | Operation::LocalAttributes(..) => Part::Attributes,
        Operation::Link { .. }
        | Operation::Agree(_)
        | Operation::Forget(_)
        | Operation::Recut(..)
        | Operation::Split { .. }
        | Operation::RemoteDelete(_)
        | Operation::LocalDelete(_) => return None,
    })
}

/// `synced` after one side was made as `done` in `part`.
#[must_use]
pub fn agreed(synced: Option<Node>, done: &Node, part: Part) -> Option<Node> {
    if part == Part::Whole {
        return Some(done.clone());
    }
    // What is not in synced is not yet on both sides: only its making can bring it there.
    let mut synced = synced?;
    match part {
        Part::Whole | Part::Nothing => {}
        Part::Content => {
            synced.kind = done.kind.clone();
            synced.attributes = done.attributes;
        }
        Part::Target => synced.kind = done.kind.clone(),
        Part::Place => synced.place = done.place.clone(),
        Part::Attributes => synced.attributes = done.attributes,
    }
    Some(synced)
}

/// `synced` after it was found out what both sides agree on ([`Operation::Agree`], [`Operation::Link`],
/// [`Operation::Recut`]): part by part.
///
/// A node that is on both sides and was not in `synced` comes in as it is here, so that the other side's place and
/// attributes are what is new; but not with content that differs, which would be taken for the other side's edit.
#[must_use]
pub fn settled(remote: Option<&Node>, local: Option<&Node>, synced: Option<&Node>) -> Option<Node> {
    match (remote, local) {
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => synced.cloned(),
        (Some(remote), Some(local)) => {
            let mut settled = match synced {
                Some(synced) => synced.clone(),
                None if same_kind(&remote.kind, &local.kind) => local.clone(),
                None => return None,
            };
            if remote.place == local.place {
                settled.place = local.place.clone();
            }
            if same_kind(&remote.kind, &local.kind) {
                settled.kind = local.kind.clone();
            }
            if same_attributes(remote, local) {
                settled.attributes = local.attributes;
            }
            Some(settled)
        }
    }
}

/// Whether two are folders, files of one content, or symlinks to one target. Contents that were cut otherwise cannot be
/// compared, and count as different, but for no bytes at all.
#[must_use]
pub fn same_kind(one: &Kind, other: &Kind) -> bool {
    match (one, other) {
        (Kind::File(one), Kind::File(other)) if one.size == 0 => other.size == 0,
        _ => one == other,
    }
}

/// Whether two have the same attributes, as far as they are kept in sync.
#[must_use]
pub fn same_attributes(one: &Node, other: &Node) -> bool {
    match one.kind {
        Kind::Folder => one.attributes.mode == other.attributes.mode,
        Kind::File(_) => one.attributes == other.attributes,
        Kind::Symlink(_) => true,
    }
}

/// Whether two are the same in all that is kept in sync.
#[must_use]
pub fn same_node(one: &Node, other: &Node) -> bool {
    one.place == other.place && same_kind(&one.kind, &other.kind) && same_attributes(one, other)
}

/// The node that an operation is about.
#[must_use]
pub fn node_of(operation: &Operation) -> NodeId {
    match operation {
        Operation::Link { keep: node, .. }
        | Operation::Agree(node)
        | Operation::Forget(node)
        | Operation::Recut(node, _)
        | Operation::Split { node, .. }
        | Operation::RemoteCreate(node)
        | Operation::Upload(node)
        | Operation::RemoteRetarget(node)
        | Operation::RemoteMove(node, _)
        | Operation::RemoteDelete(node)
        | Operation::RemoteAttributes(node, _)
        | Operation::LocalCreate(node)
        | Operation::Download(node)
        | Operation::LocalRetarget(node)
        | Operation::LocalMove(node, _)
        | Operation::LocalDelete(node)
        | Operation::LocalAttributes(node, _) => *node,
    }
}
