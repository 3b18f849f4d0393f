//! What is known of the disk: the local tree with the stamps by which a change is noticed, and what a scan says of it.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::planner::model::{Attributes, Kind, NodeId, Place};

/// Which object of the root's file system something is. A root lies on one file system, whose own number is left out:
/// it may be another after a restart of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// `st_ino`. Given anew once the object is gone.
    pub inode: u64,
    /// When it was made, nanoseconds since 1970: tells two objects apart that had one inode after another. 0 where
    /// the file system does not say.
    pub born_ns: i64,
}

/// How an object was when it was last looked at. Equal stamps mean: nothing has changed, its bytes need not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Which object it is.
    pub identity: Identity,
    /// Bytes (of a file).
    pub size: u64,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Change time, nanoseconds since 1970. It changes with a rename as well.
    pub ctime_ns: i64,
    /// Permission bits.
    pub mode: u32,
}

/// A node of the local tree, as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalRecord {
    /// Which.
    pub node: NodeId,
    /// Where.
    pub place: Place,
    /// What, with the content's name for a file.
    pub kind: Kind,
    /// As they are on disk.
    pub attributes: Attributes,
    /// How it was then.
    pub stamp: Stamp,
}

/// What was known of the disk before a scan. The state database answers.
pub trait LocalIndex {
    /// What is at a place.
    fn at(&self, parent: NodeId, name: &str) -> Option<LocalRecord>;
    /// All that is in a folder, by name.
    fn children(&self, parent: NodeId) -> Vec<LocalRecord>;
    /// The same, in any order, and whether nothing is lost if it goes from here: both sides agreed on it as it is, or
    /// the server has it.
    fn children_sent(&self, parent: NodeId) -> Vec<(LocalRecord, bool)>;
    /// Those of a folder's that the server has never had.
    fn children_unsent(&self, parent: NodeId) -> HashSet<NodeId>;
    /// Whether the server has a file or symlink in the very version that is known here.
    fn is_on_server(&self, node: NodeId) -> bool;
    /// Which node an object was, wherever.
    fn by_identity(&self, identity: Identity) -> Option<LocalRecord>;
    /// A node.
    fn node(&self, node: NodeId) -> Option<LocalRecord>;
    /// A number for a node that was not known.
    fn new_node(&mut self) -> NodeId;
}

/// What a scan found to be otherwise than it was known. Only complete sets are acted upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalUpdate {
    /// New, elsewhere or otherwise.
    Put(LocalRecord),
    /// Not there any more, with all below it that no [`LocalUpdate::Put`] of the same set puts elsewhere.
    Gone(NodeId),
}
