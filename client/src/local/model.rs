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

/// In the place of the change time of a stamp that cannot be relied on: no file has it.
pub(super) const NO_CTIME_NS: i64 = i64::MIN;

impl Stamp {
    /// Whether it tells of a change at all; if not, the file is looked at again in any case.
    #[must_use]
    pub fn is_reliable(&self) -> bool {
        self.ctime_ns != NO_CTIME_NS
    }
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

/// How precisely file systems keep times that do not keep them to less than a second (FAT: two seconds).
const COARSE_NS: i64 = 2_000_000_000;

/// The attributes of an object, by how it is now and how it was known: what the disk shows unchanged is not somebody's
/// change, whatever was asked for. Some file systems have one mode for all, or keep times only roughly.
///
/// `takes_modes`: whether the file system keeps permission bits at all. If not, none that it shows are anybody's wish.
#[must_use]
pub fn attributes_of(now: &Stamp, kind: &Kind, known: Option<&LocalRecord>, takes_modes: bool) -> Attributes {
    let Some(known) = known else {
        let plain = if *kind == Kind::Folder { 0o755 } else { 0o644 };
        return Attributes { mode: if takes_modes { now.mode } else { plain }, mtime_ns: now.mtime_ns };
    };
    let mode = if takes_modes && now.mode != known.stamp.mode { now.mode } else { known.attributes.mode };
    let is_rounded = now.mtime_ns % 1_000_000_000 == 0
        && known.kind == *kind
        && now.mtime_ns.saturating_sub(known.attributes.mtime_ns).saturating_abs() < COARSE_NS;
    let keeps_time = now.mtime_ns == known.stamp.mtime_ns || is_rounded;
    Attributes { mode, mtime_ns: if keeps_time { known.attributes.mtime_ns } else { now.mtime_ns } }
}

/// Names of one object that are looked at together.
pub const NAMES_MAX: usize = 1_000;

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
    /// All nodes that are names of one object: more than one for a file with hard links. At most [`NAMES_MAX`].
    fn by_identity_all(&self, identity: Identity) -> Vec<LocalRecord>;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::model::ROOT;

    fn stamp(mode: u32, mtime_ns: i64) -> Stamp {
        Stamp { identity: Identity { inode: 7, born_ns: 0 }, size: 0, mtime_ns, ctime_ns: 0, mode }
    }

    #[test]
    fn only_what_somebody_changed_on_the_disk_is_a_change() {
        let second = 1_000_000_000;
        let kind = Kind::Symlink(b"x".to_vec());
        // As it was asked for, and as the disk took it.
        let known = LocalRecord {
            node: NodeId(2),
            place: Place { parent: ROOT, name: "f".to_owned() },
            kind: kind.clone(),
            attributes: Attributes { mode: 0o600, mtime_ns: 9 * second + 5 },
            stamp: stamp(0o777, 8 * second),
        };
        let of = |now, takes| attributes_of(&now, &kind, Some(&known), takes);
        assert_eq!(of(known.stamp, true), known.attributes);
        assert_eq!(of(stamp(0o755, 8 * second), true).mode, 0o755);
        assert_eq!(of(stamp(0o755, 8 * second), false).mode, 0o600, "another mount, not a wish");
        assert_eq!(of(stamp(0o777, 10 * second), true).mtime_ns, known.attributes.mtime_ns, "rounded");
        assert_eq!(of(stamp(0o777, 10 * second + 1), true).mtime_ns, 10 * second + 1);
        assert_eq!(of(stamp(0o777, 20 * second), true).mtime_ns, 20 * second);
        let other = attributes_of(&stamp(0o777, 10 * second), &Kind::Folder, Some(&known), true);
        assert_eq!(other.mtime_ns, 10 * second, "another content has a time of its own");
        assert_eq!(attributes_of(&stamp(0o777, 0), &kind, None, false).mode, 0o644);
        assert_eq!(attributes_of(&stamp(0o777, 0), &Kind::Folder, None, false).mode, 0o755);
        assert_eq!(attributes_of(&stamp(0o777, 0), &kind, None, true).mode, 0o777);
    }
}
