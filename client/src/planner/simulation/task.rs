//! What a model device has planned, what came of it, and what it was told.

use super::server::{Change, Entry, EntryId, Reached};
use super::state::Local;
use crate::planner::model::{NodeId, Operation};
use crate::planner::transition::Part;

/// Something planned, with what it needs.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) operation: Operation,
    pub(super) part: Option<Part>,
    pub(super) remote: Option<(Entry, EntryId)>,
    pub(super) sequence: u64,
    pub(super) local: Option<Local>,
    pub(super) path: Option<Vec<String>>,
    /// Where it comes to: the folder's path here, or its id there.
    pub(super) folder_path: Option<Vec<String>>,
    pub(super) folder_entry: Option<EntryId>,
    pub(super) new_node: Option<NodeId>,
    /// It was sent, and has not come to the server: what was known of the server then.
    pub(super) sent: Option<Reached>,
}

/// What came of a task.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Remote(NodeId, Entry, Part),
    RemoteGone(NodeId, EntryId, u64),
    Local(NodeId, Local, Part),
    LocalGone(NodeId),
    Recut(NodeId, Local),
    Split(NodeId, NodeId, Local),
}

/// What was done.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) outcome: Outcome,
    /// Of a call: what was known when it was sent, and where the server was.
    pub(super) answer: Option<(Reached, Reached)>,
}

impl Done {
    pub(super) fn is_remote(&self) -> bool {
        self.answer.is_some()
    }
}

/// Why a task was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// A side is not as it was known.
    Changed,
    /// It would have been wrong to do it.
    Wrong(String),
}

#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) relist: bool,
    /// What was known when it was asked for, and where the server was.
    pub(super) asked: Reached,
    pub(super) told: Reached,
}
