//! The types that openraft is set up with, and their encoding (postcard) for disk and wire.

use std::io;

use bytes::Bytes;
use engine::ids::GroupId;
use openraft::type_config::alias;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

openraft::declare_raft_types!(
    /// How openraft is set up.
    pub(crate) RaftTypes:
        D = Batch,
        R = Outcomes,
        NodeId = u64,
        Node = openraft::BasicNode,
);

pub(crate) type LogId = alias::LogIdOf<RaftTypes>;
pub(crate) type Vote = alias::VoteOf<RaftTypes>;
pub(crate) type Entry = alias::EntryOf<RaftTypes>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<RaftTypes>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<RaftTypes>;
pub(crate) type Raft = openraft::Raft<RaftTypes, super::state_store::StateStore>;

/// What one log entry holds: commands that waited together, and the leader's time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Batch {
    /// The log's time, milliseconds since 1970.
    pub(crate) time_ms: u64,
    /// The voters' clocks together, milliseconds since 1970.
    pub(crate) wall_ms: u64,
    /// Encoded commands, in order.
    #[serde(serialize_with = "serialize_all", deserialize_with = "deserialize_all")]
    pub(crate) commands: Vec<Bytes>,
}

impl std::fmt::Display for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} commands at {} ms", self.commands.len(), self.time_ms)
    }
}

/// The encoded outcome of each command of a batch, in order. (openraft asks for serde; it never leaves the node.)
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcomes(
    #[serde(serialize_with = "serialize_all", deserialize_with = "deserialize_all")] pub(crate) Vec<Bytes>,
);

fn serialize_all<S: Serializer>(all: &[Bytes], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(all.iter().map(|one| serde_bytes::Bytes::new(one)))
}

fn deserialize_all<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Bytes>, D::Error> {
    let all = Vec::<serde_bytes::ByteBuf>::deserialize(deserializer)?;
    Ok(all.into_iter().map(|one| Bytes::from(one.into_vec())).collect())
}

/// Encodes a value for disk or wire.
pub(crate) fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Decodes what [`encode`] made; bytes left over are an error.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    let malformed = |why: String| {
        let what = std::any::type_name::<T>();
        io::Error::new(io::ErrorKind::InvalidData, format!("cannot decode {what}: {why}"))
    };
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(|error| malformed(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(malformed(format!("{} bytes left over", rest.len()))) }
}

/// How many bytes an entry takes in memory, nearly.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    const OVERHEAD_BYTES: usize = 128;
    match &entry.payload {
        openraft::EntryPayload::Normal(batch) => {
            batch.commands.iter().map(|command| command.len() + OVERHEAD_BYTES / 2).sum::<usize>()
                + OVERHEAD_BYTES
        }
        _ => OVERHEAD_BYTES,
    }
}

/// Wraps a RocksDB error with what was being done.
pub(crate) fn database_error(what: &str, error: &rocksdb::Error) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}

/// The first two bytes of every key: the group.
pub(crate) fn group_prefix(group: GroupId) -> [u8; 2] {
    group.0.to_be_bytes()
}
