//! The three trees that synchronisation looks at, and what it may do about their differences.
//!
//! - **remote**: the tree as the server last said.
//! - **local**: the folder as the disk was last seen.
//! - **synced**: each node as both sides last agreed on it.
//!
//! A node has one [`NodeId`] in all three, so that a move is a changed parent or name and never a loss and a find. Who
//! builds the trees gives the ids: a node first seen on either side gets a new one; the scan finds by inode and
//! content which node a file is. Two nodes that turn out to be one thing are joined by [`Operation::Link`].
//!
//! Invariants:
//! - [`ROOT`] is a folder in all three trees, at no place, and is never moved or deleted.
//! - In each tree by itself, a node's parent is a folder of that tree, names in a folder are unique, and walking up
//!   ends at the root.
//! - `synced` holds a node only if it was once in `remote` and `local` at the same time. It is asked node by node only:
//!   what its places say of folders need not make a tree.

use engine::cutter::Cutter;
use engine::ids::ContentId;
use serde::{Deserialize, Serialize};

/// A file, folder or symlink, on whichever side. Given by this device, never reused, unknown to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// The folder that is kept the same.
pub const ROOT: NodeId = NodeId(1);

/// What a node is, with what makes two of them equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A file, by its content.
    File(FileContent),
    /// A symlink, by the bytes it points with. Kept, never followed.
    Symlink(Vec<u8>),
}

/// A file's bytes, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileContent {
    /// The content's name. Comparable only with one that was cut the same way.
    pub content: ContentId,
    /// Bytes.
    pub size: u64,
    /// How it was cut.
    pub cutter: Cutter,
}

/// Permission bits and modification time. A folder's and a symlink's time is not kept in sync, nor are a symlink's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// 0 to 0o7777.
    pub mode: u32,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The folder.
    pub parent: NodeId,
    /// Its name there.
    pub name: String,
}

/// A node in one of the trees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub kind: Kind,
    /// What else is kept.
    pub attributes: Attributes,
}

/// One tree, as the planner asks for it. Answers are as of one moment for the whole of a planning.
pub trait Tree {
    /// A node.
    fn node(&self, id: NodeId) -> Option<Node>;
    /// What is at a place.
    fn at(&self, parent: NodeId, name: &str) -> Option<NodeId>;
    /// What is in a folder, in any order but always the same.
    fn children(&self, parent: NodeId) -> Vec<NodeId>;
}

/// Something to be done. It is carried out only if the sides it touches are still as the trees say (the executor
/// checks: versions on the server, stamps on the disk); otherwise nothing is done, the trees learn of the change, and
/// planning begins anew. Afterwards the executor makes the trees say what is now so, `synced` included, at once.
///
/// Operations of one plan do not depend on one another and may be carried out in any order, or in parallel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    // State only.
    /// A local and a remote node are one: from now on `keep` stands for both; `gone` is forgotten. The one that is in
    /// `synced`, if any, is kept.
    Link {
        /// Stands for both.
        keep: NodeId,
        /// Is forgotten.
        gone: NodeId,
    },
    /// Both sides agree (or both lack it): `synced` says so.
    Agree(NodeId),
    /// What both sides once agreed on of this node counts no more: `synced` forgets it (not what is below it). For what
    /// was excluded here and is gone from the disk, which must not look like a delete.
    Forget(NodeId),
    /// The local file is to be cut again, so that its content can be compared with the remote one.
    Recut(NodeId, Cutter),
    /// The local copy stops being this node and becomes a new one, at its place or, if given, at another name in
    /// the same folder (it is renamed on disk): so that the remote one can come to where it belongs.
    Split {
        /// Which.
        node: NodeId,
        /// The new node's name in the folder; absent: as it is.
        name: Option<String>,
    },

    // On the server.
    /// Makes a folder or symlink as it is here.
    RemoteCreate(NodeId),
    /// Sends a file: a new one at its local place, or a new version of the one there is.
    Upload(NodeId),
    /// Points a symlink as it does here.
    RemoteRetarget(NodeId),
    /// Moves to a place (folders by the id that they have in `remote`): where it is in `local`, or, if that is not it,
    /// out of the way (then nothing is agreed upon: see [`super::transition::part_of`]).
    RemoteMove(NodeId, Place),
    /// Deletes: a file or symlink, or a folder with all that `remote` has below it.
    RemoteDelete(NodeId),
    /// Sets attributes.
    RemoteAttributes(NodeId, Attributes),

    // On the disk.
    /// Makes a folder or symlink as it is there.
    LocalCreate(NodeId),
    /// Fetches a file: a new one at its remote place, or in place of the one there is.
    Download(NodeId),
    /// Points a symlink as it does there.
    LocalRetarget(NodeId),
    /// Moves to a place (folders by the id that they have in `local`): where it is in `remote`, or, if that is not it,
    /// out of the way. Something there is never replaced.
    LocalMove(NodeId, Place),
    /// Deletes into the local trash: a file or symlink, or a folder with all that `local` has below it.
    LocalDelete(NodeId),
    /// Sets attributes.
    LocalAttributes(NodeId, Attributes),
}
