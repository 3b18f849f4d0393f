//! What the root group does; part of [`super::command`].

use engine::cluster::{DiskAttestation, Location, SlotRange};
use engine::code::Code;
use engine::ids::{ClusterId, DiskId, NodeId};
use serde::{Deserialize, Serialize};

use super::row::SecretBytes;

/// What the root group does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootStep {
    /// Makes the installation. Idempotent for the same cluster id; refused for another.
    ClusterInit {
        /// The installation's id.
        cluster: ClusterId,
        /// The code of new volumes.
        code: Code,
        /// The shard map: every slot once.
        slots: Vec<SlotRange>,
        /// Metadata replicas and their addresses.
        meta_nodes: Vec<(NodeId, String)>,
    },
    /// Registers a storage node, or changes its address or place. Idempotent.
    StorageNodeRegister {
        /// Its id.
        node: NodeId,
        /// `host:port`.
        address: String,
        /// Its failure domain.
        location: Location,
    },
    /// Registers a disk, or moves it to another node or path. Idempotent.
    DiskRegister {
        /// Its id.
        disk: DiskId,
        /// The node it is in.
        node: NodeId,
        /// Its directory there.
        path: String,
    },
    /// Creates volumes, if there are `existing` now; refused as [`super::command::StepError::Changed`] otherwise.
    VolumesCreate {
        /// How many volumes the planner saw.
        existing: u64,
        /// The code of each.
        code: Code,
        /// Members of each, by position.
        members: Vec<Vec<DiskId>>,
    },
    /// Sets a setting; the value has been checked by the caller and is checked again.
    SettingSet {
        /// Its name.
        name: String,
        /// Its value, as text.
        value: String,
    },
    /// Keeps a secret under a name, if there is none yet; answers [`super::outcome::StepOutcome::Secret`] with the one in force.
    SecretMake {
        /// Its name.
        name: String,
        /// Fresh random bytes.
        secret: SecretBytes,
    },
    /// Keeps what is known of disks' starts. Idempotent; one that rests on an older start than the registered one
    /// changes nothing.
    DisksAttest {
        /// Up to [`super::QUERY_ITEMS_MAX`] of them.
        disks: Vec<AttestedDisk>,
    },
}

/// What the warden has learned of a disk's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttestedDisk {
    /// Which.
    pub disk: DiskId,
    /// The start that was registered when the warden decided; 0 for none.
    pub before: u64,
    /// What is known now.
    pub attested: DiskAttestation,
}
