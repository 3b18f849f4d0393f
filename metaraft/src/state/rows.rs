//! Rows that no query answers with: how the state machine keeps its own accounts.

use engine::cluster::{Location, SlotRange};
use engine::code::Code;
use engine::ids::{ClusterId, DiskId, EntryId, Epoch, NamespaceId, NodeId, SlotId};
use serde::{Deserialize, Serialize};

use crate::model::journal::JournalRun;
use crate::model::outcome::DeadContent;

/// A group's sums, and what it does from time to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct SumsRow {
    /// Bytes of the current versions of all files.
    pub bytes_logical: u64,
    /// Plain bytes of distinct registered chunks.
    pub bytes_unique: u64,
    /// Registered chunks.
    pub chunks: u64,
    /// Chunks ever registered: numbers the registrations.
    pub registrations: u64,
    /// When outcomes and marks that are too old are next looked for.
    pub sweep_ms: u64,
    /// Outcomes of requests that were made before this may be gone.
    pub requests_floor_ms: u64,
}

/// The slots that the group owns: runs, ascending, apart from one another.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct OwnedSlotsRow {
    /// First and last slot of each run.
    pub runs: Vec<(SlotId, SlotId)>,
}

impl OwnedSlotsRow {
    pub(super) fn contains(&self, slot: SlotId) -> bool {
        self.runs.iter().any(|(first, last)| *first <= slot && slot <= *last)
    }

    /// Adds a run, and joins those that touch.
    pub(super) fn add(&mut self, first: SlotId, last: SlotId) {
        self.runs.push((first, last));
        self.runs.sort_unstable();
        let mut joined: Vec<(SlotId, SlotId)> = Vec::with_capacity(self.runs.len());
        for (first, last) in self.runs.drain(..) {
            match joined.last_mut() {
                Some((_, end)) if u32::from(first.0) <= u32::from(end.0) + 1 => *end = last.max(*end),
                _ => joined.push((first, last)),
            }
        }
        self.runs = joined;
    }
}

/// The installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClusterRow {
    /// Its id.
    pub cluster: ClusterId,
    /// The code of new volumes.
    pub code: Code,
    /// The shard map.
    pub slots: Vec<SlotRange>,
    /// Changes registered so far.
    pub revision: u64,
    /// Volumes made so far: the last one's id.
    pub volumes: u64,
}

/// A storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StorageNodeRow {
    /// `host:port`.
    pub address: String,
    /// Its failure domain.
    pub location: Location,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DiskRow {
    /// The node it is in.
    pub node: NodeId,
    /// Its directory there.
    pub path: String,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VolumeRow {
    /// The code of its stripes.
    pub code: Code,
    /// Changes of membership so far, beginning with 1.
    pub epoch: Epoch,
    /// Members by position.
    pub members: Vec<DiskId>,
    /// Whether it takes new stripes.
    pub open: bool,
}

/// Where an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PlaceRow {
    /// In a folder, under a name. The root folder is in entry 0, which does not exist, under no name.
    In(EntryId, String),
    /// In the trash, under a number: the entry itself, not what is below it.
    Trashed(u64),
}

/// The latest change of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JournalRow {
    /// Which.
    pub entry: EntryId,
    /// It is gone: deleted, with all below it.
    pub deleted: bool,
    /// When, by sequence, it last came back from the trash with all below it; 0 = never. Who has not seen that
    /// number yet must list what is below.
    pub arrived: u64,
}

/// What is recorded of a journal's runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunsRow {
    /// The latest one.
    pub latest: JournalRun,
    /// The first number that was issued with a record.
    pub begun: u64,
    /// How many are kept.
    pub count: u32,
}

/// How often a namespace uses a content: once per version, and once per session that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UseRow {
    /// How often. Never 0: the row goes with the last use.
    pub count: u64,
    /// Of the namespace's reference to the content.
    pub generation: u64,
    /// Whether the content's slot has the reference for certain.
    pub retained: bool,
}

/// Who empties the nursery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NurseryLeaseRow {
    /// Its random bits.
    pub mover: u64,
    /// Until when, by the log's time.
    pub until_ms: u64,
}

/// A dead content, until the references to its chunks are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeadContentRow {
    /// What is to be let go.
    pub dead: DeadContent,
    /// Whose release was the last one: only that one, repeated, answers with this row, so that none is forgotten
    /// when a content dies twice.
    pub namespace: NamespaceId,
    /// And of which generation.
    pub generation: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_slots_join_where_they_touch() {
        let mut owned = OwnedSlotsRow::default();
        for (first, last) in [(10, 20), (30, 40), (21, 29), (0, 0), (5, 12), (40, 40)] {
            owned.add(SlotId(first), SlotId(last));
        }
        assert_eq!(owned.runs, vec![(SlotId(0), SlotId(0)), (SlotId(5), SlotId(40))]);
        assert!(owned.contains(SlotId(0)) && owned.contains(SlotId(29)) && !owned.contains(SlotId(4)));
    }
}
