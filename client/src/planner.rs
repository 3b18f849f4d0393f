//! What to do so that a folder here and a tree there become the same: pure, with neither clock nor IO.
//!
//! [`plan`] looks at the three trees of [`model`] and gives operations; the decisions are the table of docs/sync.md.
//!
//! Invariants:
//! - The same trees, nodes and rules give the same plan.
//! - Operations of one plan do not depend on one another: each is possible as the trees are now, no two want one place,
//!   and none changes the path that another uses.
//! - A conflict is decided alike wherever it is met: the server's place and content stay, what is here gets another
//!   name. So devices that plan at once do not undo one another's work.
//! - Nothing is deleted on one side unless the other side deleted it, and it is then as both last agreed on it.
//! - Whatever cannot be done now is blocked for a reason; waits that go in a circle are broken.
//!
//! The cost goes with the nodes that are dirty and the depth they are at. What is below a folder is never walked.

mod decide;
pub mod decision;
mod fate;
pub mod model;
pub mod names;
mod planted;
mod ready;
#[cfg(test)]
mod simulation;
mod survivors;
#[cfg(test)]
mod tests;
pub mod transition;
mod view;
mod waits;
pub(crate) mod went_back;

use std::collections::BTreeSet;
use std::fmt;

pub use self::decision::{Decision, Decisions};
use self::model::{NodeId, Operation, Tree};
pub use self::names::NameRules;

/// Operations of one plan, as a rule.
pub const PLAN_OPERATIONS_MAX: usize = 2_000;

/// Whether something may be deleted, on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletes {
    /// Yes.
    Allowed,
    /// Not before somebody has confirmed it, or the folder has been looked at completely.
    Withheld,
}

/// What planning goes by, besides the trees.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Whose conflicted copies they are.
    pub name: String,
    /// Today, as conflicted copies have it: `2026-01-20`.
    pub date: String,
    /// Tells this device's names for stepping aside from those of others: a few letters and digits, for the life of the
    /// root, even if the state is lost.
    pub tag: String,
    /// Which names this device can hold.
    pub names: NameRules,
    /// Whether something may be deleted.
    pub deletes: Deletes,
    /// Folders here that could not be read: nothing at, below or above them is deleted.
    pub unread: BTreeSet<NodeId>,
    /// Whether nothing new may be sent now.
    pub sends_held: bool,
    /// Operations of one plan.
    pub operations_max: usize,
}

/// The three trees, and what of them is not kept here.
#[derive(Clone, Copy)]
pub struct Trees<'a> {
    /// As the server last said.
    pub remote: &'a dyn Tree,
    /// As the disk was last seen.
    pub local: &'a dyn Tree,
    /// As both last agreed.
    pub synced: &'a dyn Tree,
    /// Which folders are not kept on this device: each by itself; what is below it follows.
    pub excluded: &'a dyn Fn(NodeId) -> bool,
}

impl fmt::Debug for Trees<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trees")
    }
}

/// Why nothing is done about a node now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// Its folder has to be made first.
    Folder(NodeId),
    /// Another has to leave its place first.
    Place(NodeId),
    /// Another has to leave this folder, or its inside, first.
    Leaving(NodeId),
    /// It goes with the folder that it is in.
    WithFolder(NodeId),
    /// Deletes wait for a confirmation.
    DeletesWithheld,
    /// A folder that could not be read is at, below or above it.
    Unread,
    /// It, something in it, or what is at its place is being worked on.
    Busy,
    /// The server has not told yet where it is now.
    Adrift,
    /// Something else of this plan comes first.
    NotYet,
    /// It is excluded here; changes made here go to the server first.
    Excluded,
    /// It is a folder on one side and none on the other.
    Kinds,
    /// The server has rules for what is ignored in its folder that are not here yet, or are not applied yet.
    Rules,
    /// No name could be found that is free.
    NoName,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder(_) => "waits for the folder that it is in",
            Self::Place(_) => "waits until its name is free",
            Self::Leaving(_) => "waits until something has been moved out of it",
            Self::WithFolder(_) => "waits for the folder that it is in to be deleted",
            Self::DeletesWithheld => {
                "is to be deleted, which waits for a confirmation or for a complete scan"
            }
            Self::Unread => {
                "is to be deleted, which waits until this folder, or the one in or above it, can be read"
            }
            Self::Busy => "waits for what is being done to it, in it or at its place",
            Self::Adrift => "waits for the server to tell where it is now",
            Self::NotYet => "waits for something that comes first",
            Self::Excluded => "is excluded here; waits until changes made here have gone to the server",
            Self::Kinds => "is a folder on one side and none on the other",
            Self::Rules => "waits until the rules of its folder, which the server has, are here",
            Self::NoName => "waits: no free name could be found for it",
        })
    }
}

/// What to do now.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// To be carried out, in any order.
    pub operations: Vec<Operation>,
    /// Nodes about which nothing is done now.
    pub blocked: Vec<(NodeId, Blocked)>,
    /// Which decisions were reached.
    pub decisions: Decisions,
    /// There was more than fits a plan: some nodes were not looked at.
    pub truncated: bool,
}

/// Plans what to do now.
///
/// `dirty` are all nodes that are not the same in all three trees, and the excluded folders that are here; folders come
/// first, for what moves paths must not have to wait for what uses them, again and again. `busy` nodes are not to be
/// touched now, because something is being done to them or failed a short while ago: nothing is planned for them, at
/// their places, or (moves and deletes) above them.
#[must_use]
pub fn plan(trees: &Trees<'_>, dirty: &[NodeId], busy: &BTreeSet<NodeId>, rules: &Rules) -> Plan {
    decide::plan(trees, dirty, busy, rules)
}
