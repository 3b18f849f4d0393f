//! The types that openraft is set up with, and their encoding (postcard) for disk and wire.

use std::io;

use bytes::Bytes;
use engine::ids::GroupId;
use openraft::type_config::alias;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::app::LogTime;

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
    /// The mark of the process that proposed it, if it has one, then encoded commands, in order. (Entries of before
    /// there were marks have none, and are read alike.)
    #[serde(serialize_with = "serialize_all", deserialize_with = "deserialize_all")]
    parts: Vec<Bytes>,
}

/// What a mark begins with: no command does.
const MARK_TAG: u8 = 0xfe;

impl Batch {
    /// Of commands that are proposed at a time by the process with this mark.
    pub(crate) fn new(time: LogTime, mark: u64, commands: Vec<Bytes>) -> Self {
        let mut parts = commands;
        let marked = [&[MARK_TAG][..], &mark.to_be_bytes()].concat();
        parts.insert(0, Bytes::from(marked));
        Self { time_ms: time.time_ms, wall_ms: time.wall_ms, parts }
    }

    fn split(&self) -> (u64, &[Bytes]) {
        let first = self.parts.first().map(|first| &first[..]);
        match first.and_then(|first| first.strip_prefix(&[MARK_TAG])).map(<[u8; 8]>::try_from) {
            Some(Ok(mark)) => (u64::from_be_bytes(mark), &self.parts[1..]),
            _ => (0, &self.parts),
        }
    }

    /// The mark of the process that proposed it; 0: none.
    pub(crate) fn mark(&self) -> u64 {
        self.split().0
    }

    /// Encoded commands, in order.
    pub(crate) fn commands(&self) -> &[Bytes] {
        self.split().1
    }
}

impl std::fmt::Display for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} commands at {} ms", self.commands().len(), self.time_ms)
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
            batch.commands().iter().map(|command| command.len() + OVERHEAD_BYTES / 2).sum::<usize>()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_before_there_were_marks_are_read() {
        #[derive(Serialize)]
        struct Before {
            time_ms: u64,
            wall_ms: u64,
            commands: Vec<serde_bytes::ByteBuf>,
        }
        let commands = vec![serde_bytes::ByteBuf::from(vec![1, 2]), serde_bytes::ByteBuf::from(vec![1])];
        let bytes = encode(&Before { time_ms: 5, wall_ms: 6, commands }).unwrap();
        let batch: Batch = decode(&bytes).unwrap();
        assert_eq!((batch.time_ms, batch.wall_ms, batch.mark()), (5, 6, 0));
        assert_eq!(batch.commands(), [Bytes::from_static(&[1, 2]), Bytes::from_static(&[1])]);
    }

    #[test]
    fn a_mark_goes_with_the_commands_and_is_none_of_them() {
        let commands = vec![Bytes::from_static(&[1, 2]), Bytes::from_static(b"")];
        let batch = Batch::new(LogTime::at(7), u64::MAX, commands.clone());
        let read: Batch = decode(&encode(&batch).unwrap()).unwrap();
        assert_eq!((read.mark(), read.commands()), (u64::MAX, &commands[..]));
        assert_eq!(Batch::default().commands(), [] as [Bytes; 0]);
    }
}
