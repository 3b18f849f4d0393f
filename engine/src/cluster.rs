//! The cluster map: which nodes, disks and volumes there are, and how they are now.
//!
//! The root group issues it; gateways and storage nodes hold copies that may be a moment old. What must not be
//! decided on an old copy is fenced by epochs.

use serde::{Deserialize, Serialize};

use crate::code::{Code, PositionSet};
use crate::ids::{ClusterId, DiskId, Epoch, GroupId, NodeId, SlotId, StripeId, VolumeId};

/// The cluster's history. A restore from a backup begins a new one, and disks refuse what older ones order; as long as
/// there is no restore there is one history.
pub const HISTORY: u64 = 1;

/// Whether a node or a disk serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Reported within the node grace, without complaint.
    Up,
    /// Not heard of within the node grace.
    Down,
    /// The node is up and says that this disk's directory is not there, or holds another disk.
    Missing,
    /// The disk gave an IO error and is fenced: it serves nothing until an operator acts.
    Failed,
    /// The disk takes no writes but deletes and repairs (its reserve is all that is left); reads go on.
    Full,
    /// The disk holds less than it acknowledged: its directory is an older copy, or its end is lost. It takes no
    /// writes; what it has is verified as it is read, so reads go on.
    Behind,
}

impl Health {
    /// Whether shards can be read from it.
    #[must_use]
    pub fn readable(self) -> bool {
        matches!(self, Self::Up | Self::Full | Self::Behind)
    }

    /// Whether new shards may be sent to it.
    #[must_use]
    pub fn writable(self) -> bool {
        self == Self::Up
    }
}

/// Where in the building something is; levels that are not known are empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Location {
    /// The rack's name.
    pub rack: String,
}

/// A storage node, as registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageNodeInfo {
    /// Its id, from its configuration and certificate.
    pub node: NodeId,
    /// `host:port` where it serves the storage API.
    pub address: String,
    /// Its failure domain.
    pub location: Location,
    /// As the root group's leader sees it now.
    pub health: Health,
}

/// A disk, as registered, with its figures from the latest heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Its id, from its superblock.
    pub disk: DiskId,
    /// The node it is in.
    pub node: NodeId,
    /// Its directory on that node.
    pub path: String,
    /// As the root group's leader sees it now.
    pub health: Health,
    /// Why, in words, when it is not up; empty when that is not known.
    pub reason: String,
    /// The latest figures.
    pub usage: DiskUsage,
    /// What the root group has attested of it.
    pub attested: DiskAttestation,
}

/// What the root group knows of a disk's starts, so that an older copy of its directory is told apart from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskAttestation {
    /// How often it had been started when it was last confirmed; 0 if it never was.
    pub starts: u64,
    /// The random number of that start.
    pub incarnation: u64,
    /// Records that it had appended, at least.
    pub sequence: u64,
    /// The start at which a write or a sync failed; 0 if none did, or it has been verified since.
    pub fenced_starts: u64,
}

/// What a disk reports with each heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Size of the file system.
    pub capacity_bytes: u64,
    /// Free there, less the reserve.
    pub free_bytes: u64,
    /// Allocated to extents, index and superblock.
    pub allocated_bytes: u64,
    /// Shards indexed.
    pub shards: u64,
    /// Shards that a scrub or a read found damaged, each counted once.
    pub shards_damaged_found: u64,
}

/// A container of stripes with a fixed code and one member disk per shard position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub volume: VolumeId,
    /// The code of its stripes.
    pub code: Code,
    /// Changes of membership so far, beginning with 1.
    pub epoch: Epoch,
    /// `k + m` disks, by position, each in a different failure domain.
    pub members: Vec<DiskId>,
    /// Whether it takes new stripes.
    pub open: bool,
}

/// Which data group owns a run of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRange {
    /// First slot of the run.
    pub first: SlotId,
    /// Last slot of the run, included.
    pub last: SlotId,
    /// Its owner. A hint: ownership is in the groups' own logs.
    pub group: GroupId,
}

/// A metadata replica, as the root group's membership names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaNodeInfo {
    /// Its id.
    pub node: NodeId,
    /// `host:port` where it serves Raft and the metadata API.
    pub address: String,
    /// As the root group's leader sees it now.
    pub health: Health,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// The installation.
    pub cluster: ClusterId,
    /// Grows with every registered change (not with health or usage).
    pub revision: u64,
    /// The code of new volumes.
    pub code: Code,
    /// Metadata replicas.
    pub meta_nodes: Vec<MetaNodeInfo>,
    /// Storage nodes, by id.
    pub storage_nodes: Vec<StorageNodeInfo>,
    /// Disks, by id.
    pub disks: Vec<DiskInfo>,
    /// Volumes, by id.
    pub volumes: Vec<Volume>,
    /// The shard map: every slot once, ascending.
    pub slots: Vec<SlotRange>,
}

impl ClusterMap {
    /// The disk of that id.
    #[must_use]
    pub fn disk(&self, disk: DiskId) -> Option<&DiskInfo> {
        self.disks.iter().find(|info| info.disk == disk)
    }

    /// The storage node of that id.
    #[must_use]
    pub fn storage_node(&self, node: NodeId) -> Option<&StorageNodeInfo> {
        self.storage_nodes.iter().find(|info| info.node == node)
    }

    /// The volume of that id.
    #[must_use]
    pub fn volume(&self, volume: VolumeId) -> Option<&Volume> {
        self.volumes.iter().find(|info| info.volume == volume)
    }

    /// How a disk serves: its own health, or its node's if that is worse. A disk that is not registered is down.
    #[must_use]
    pub fn disk_health(&self, disk: DiskId) -> Health {
        let Some(info) = self.disk(disk) else { return Health::Down };
        match self.storage_node(info.node).map(|node| node.health) {
            Some(Health::Up) => info.health,
            _ => Health::Down,
        }
    }

    /// The owner of `slot`, by the map.
    #[must_use]
    pub fn group_of(&self, slot: SlotId) -> Option<GroupId> {
        self.slots.iter().find(|range| range.first <= slot && slot <= range.last).map(|range| range.group)
    }

    /// The data groups, ascending, each once.
    #[must_use]
    pub fn data_groups(&self) -> Vec<GroupId> {
        let mut groups: Vec<GroupId> = self.slots.iter().map(|range| range.group).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// How a stripe lies on its volume's members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StripeLayout {
    /// `k` data and `m` parity shards, one per member.
    Coded,
    /// `m + 1` whole copies, on positions that rotate with the stripe's id.
    Copies,
}

/// Everything needed, beside the volume, to read a stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StripeShape {
    /// How it lies.
    pub layout: StripeLayout,
    /// Bytes of the stripe (table and payload) before it is padded and coded.
    pub length: u32,
}

/// A stripe as it is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StripeRecord {
    /// Its id, which names its volume.
    pub stripe: StripeId,
    /// The volume's code.
    pub code: Code,
    /// Its layout and length.
    pub shape: StripeShape,
    /// The volume's epoch when it was written.
    pub epoch: Epoch,
    /// Positions that hold, or should hold, a shard.
    pub used: PositionSet,
    /// Positions of `used` that were not durable when it was acknowledged: the queue for repair.
    pub missing: PositionSet,
}
