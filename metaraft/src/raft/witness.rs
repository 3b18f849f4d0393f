//! A second, tiny record of how far each group's log and vote were acknowledged, outside the log database.
//!
//! After damage in the middle of its write-ahead log RocksDB recovers what comes before it, and drops what comes
//! after without a word, acknowledged or not. A voter that lost acknowledged entries may elect a leader that lacks
//! them too. So the last log id and vote of each group are also written here after every sync of the log database,
//! and a group whose database is behind its witness does not start.
//!
//! What is on disk after a crash: a record is written after the sync that it witnesses and lowered (and synced)
//! before a truncation, so it is never ahead of an intact log. It is written without a sync of its own, except once
//! a second: a power cut may leave it up to that far behind, where it finds less, but is never wrong.
//!
//! Layout: 64 bytes per group at 64 × group, so that a record never straddles a sector.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use engine::ids::GroupId;

use super::types::{LogId, Vote, decode, encode};

const RECORD_BYTES: usize = 64;
const BODY_BYTES_MAX: usize = RECORD_BYTES - 6;
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// What a group has acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Acknowledged {
    pub(crate) vote: Option<Vote>,
    pub(crate) last: Option<LogId>,
}

/// The file of witness records.
pub(crate) struct Witness {
    file: File,
    synced_at: Instant,
}

impl Witness {
    /// Opens the file, or makes it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.sync_all()?;
        Ok(Self { file, synced_at: Instant::now() })
    }

    /// What `group` had acknowledged at least; nothing if there is no intact record.
    pub(crate) fn read(&self, group: GroupId) -> io::Result<Acknowledged> {
        let mut record = [0; RECORD_BYTES];
        let offset = offset_bytes(group);
        if self.file.metadata()?.len() < offset + RECORD_BYTES as u64 {
            return Ok(Acknowledged::default());
        }
        self.file.read_exact_at(&mut record, offset)?;
        let (sum, rest) = record.split_at(4);
        let length = usize::from(u16::from_le_bytes([rest[0], rest[1]]));
        if length == 0 || length > BODY_BYTES_MAX || crc32fast::hash(rest).to_le_bytes() != sum {
            return Ok(Acknowledged::default());
        }
        decode(&rest[2..2 + length])
    }

    /// Records what `group` has acknowledged, as far as the page cache.
    pub(crate) fn record(&self, group: GroupId, acknowledged: &Acknowledged) -> io::Result<()> {
        let body = encode(acknowledged)?;
        let mut record = [0; RECORD_BYTES];
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        if body.len() > BODY_BYTES_MAX {
            return Err(io::Error::other(format!("witness record too long: bytes={length}")));
        }
        record[4..6].copy_from_slice(&length.to_le_bytes());
        record[6..6 + body.len()].copy_from_slice(&body);
        let sum = crc32fast::hash(&record[4..]);
        record[..4].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&record, offset_bytes(group))
    }

    /// Makes what was recorded durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.synced_at = Instant::now();
        Ok(())
    }

    /// Makes what was recorded durable if that was not done for a while.
    pub(crate) fn sync_sometimes(&mut self) -> io::Result<()> {
        if self.synced_at.elapsed() >= SYNC_INTERVAL { self.sync() } else { Ok(()) }
    }
}

fn offset_bytes(group: GroupId) -> u64 {
    u64::from(group.0) * RECORD_BYTES as u64
}

#[cfg(test)]
mod tests {
    use openraft::testing::log_id;

    use super::*;
    use crate::raft::types::RaftTypes;

    #[test]
    fn a_record_reads_back_and_a_damaged_one_counts_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("witness");
        let witness = Witness::open(&path).unwrap();
        let acknowledged = Acknowledged {
            vote: Some(Vote::new(u64::MAX, u64::MAX)),
            last: Some(log_id::<RaftTypes>(u64::MAX, u64::MAX, u64::MAX)),
        };
        witness.record(GroupId(3), &acknowledged).unwrap();
        let mut witness = Witness::open(&path).unwrap();
        witness.sync().unwrap();
        assert_eq!(witness.read(GroupId(3)).unwrap(), acknowledged);
        assert_eq!(witness.read(GroupId(2)).unwrap(), Acknowledged::default());
        assert_eq!(witness.read(GroupId(4)).unwrap(), Acknowledged::default());
        witness.file.write_all_at(&[0], offset_bytes(GroupId(3)) + 9).unwrap();
        assert_eq!(witness.read(GroupId(3)).unwrap(), Acknowledged::default());
    }
}
