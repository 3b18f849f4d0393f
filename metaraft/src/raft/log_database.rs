//! The log database: votes and logs of all groups of a node, and what a group finds there when it starts.
//!
//! Keys: group (2 bytes, big-endian), kind (1), and for entries the index (8, big-endian). Two keys of one byte are the
//! node's own: how far its log is ([`Attestation`]), and whom it was enrolled with.
//!
//! Invariants:
//! - Once the run has begun, every write counts one up, in the same batch: an older copy of the database has counted less.
//! - `LAST` is written in every batch that moves the end of a log, so the last entry found is that one.
//! - Every write is synced; see [`super::log_writer`].

use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use engine::attestation::Attestation;
use engine::ids::GroupId;
use rocksdb::{DB, DBRecoveryMode, IteratorMode, Options, ReadOptions, WriteBatch};

use super::types::{Entry, LogId, Vote, database_error, decode, encode, group_prefix};
use super::witness::{Acknowledged, Witness};

const VOTE: u8 = 0;
const PURGED: u8 = 1;
const LAST: u8 = 2;
const ENTRY: u8 = 3;
const BEYOND_ENTRIES: u8 = 4;
/// Keys of the node itself; those of groups are longer.
const ATTESTATION: [u8; 1] = [0];
const ENROLMENT: [u8; 1] = [1];

const MEBIBYTE: usize = 1024 * 1024;

/// Why a group cannot start from what is on disk.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database cannot be read or does not make sense.
    #[error("cannot read the log of group {group}: {source}")]
    Read {
        /// The group.
        group: GroupId,
        /// Why.
        source: io::Error,
    },
    /// Acknowledged entries, or a vote, are gone: the node must not vote.
    #[error(
        "the log of group {group} went back: it ends at {found}, but {acknowledged} had been acknowledged. This node \
         must not vote again: replace it by a new one, with a new id"
    )]
    WentBack {
        /// The group.
        group: GroupId,
        /// The end of the log, and the vote, as they are.
        found: String,
        /// As they had been.
        acknowledged: String,
    },
    /// The state database lost what the log no longer has.
    #[error(
        "the state of group {group} is at index {applied}, but the log before index {purged} is gone. This node \
         must not vote again: replace it by a new one, with a new id"
    )]
    StateBehind {
        /// The group.
        group: GroupId,
        /// The last index that the state holds.
        applied: u64,
        /// The last index that was purged.
        purged: u64,
    },
}

/// Where a group's log begins and ends, and its vote.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LogEnds {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) last: Option<LogId>,
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_paranoid_checks(true);
    options.set_manual_wal_flush(false);
    options.set_recycle_log_file_num(0);
    // The binding has no `track_and_verify_wals`; this older check at least finds whole files missing.
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_write_buffer_size(8 * MEBIBYTE);
    options.set_max_write_buffer_number(3);
    options.set_max_total_wal_size(64 * MEBIBYTE as u64);
    options.set_max_background_jobs(2);
    options.set_max_open_files(128);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(MEBIBYTE);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    let mut blocks = rocksdb::BlockBasedOptions::default();
    blocks.set_block_cache(&rocksdb::Cache::new_lru_cache(4 * MEBIBYTE));
    blocks.set_format_version(5);
    options.set_block_based_table_factory(&blocks);
    options
}

/// How far the log is, and whether this run counts.
struct Counter {
    attestation: Attestation,
    begun: bool,
}

/// The log database.
pub(crate) struct LogDatabase {
    db: DB,
    /// Locked while a batch is written: batches are counted in the order in which they are.
    counter: Mutex<Counter>,
    new: bool,
}

fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// What is told of an entry that cannot be decoded.
fn not_known(error: &io::Error) -> io::Error {
    let why = format!(
        "an entry of the log is not known to this software ({error}): newer software wrote it, so upgrade that of this \
         node; or it is damaged"
    );
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl LogDatabase {
    /// Opens it, or makes it, with an incarnation of its own.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let db =
            DB::open(&options(), path).map_err(|error| database_error("open the log database", &error))?;
        let found = db.get(ATTESTATION).map_err(|error| database_error("read the log database", &error))?;
        let (attestation, new) = match found {
            Some(bytes) => {
                let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the node's own row is damaged");
                (Attestation::from_bytes(&bytes).ok_or_else(damaged)?, false)
            }
            None => (Attestation { incarnation: random()?, start: 0, run: [0; 16], sequence: 0 }, true),
        };
        let database = Self { db, counter: Mutex::new(Counter { attestation, begun: false }), new };
        if new {
            let mut batch = WriteBatch::default();
            batch.put(ATTESTATION, attestation.to_bytes());
            database.write_batch(batch)?;
        }
        Ok(database)
    }

    /// Whether it was made by this start.
    pub(crate) fn is_new(&self) -> bool {
        self.new
    }

    fn counter(&self) -> MutexGuard<'_, Counter> {
        // Changed only after the write that it counts, in one assignment.
        self.counter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the log is, durably.
    pub(crate) fn attestation(&self) -> Attestation {
        self.counter().attestation
    }

    /// The same, unless a write is under way.
    pub(crate) fn attestation_at_hand(&self) -> Option<Attestation> {
        match self.counter.try_lock() {
            Ok(counter) => Some(counter.attestation),
            Err(TryLockError::Poisoned(counter)) => Some(counter.into_inner().attestation),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Begins a run: one more start, under a name of its own. From now on writes are counted.
    pub(crate) fn begin(&self) -> io::Result<Attestation> {
        let mut counter = self.counter();
        let begun =
            Attestation { start: counter.attestation.start + 1, run: random()?, ..counter.attestation };
        let mut batch = WriteBatch::default();
        batch.put(ATTESTATION, begun.to_bytes());
        self.write_batch(batch)?;
        *counter = Counter { attestation: begun, begun: true };
        Ok(begun)
    }

    /// The node's enrolment, encoded by whoever keeps it.
    pub(crate) fn enrolment(&self) -> io::Result<Option<Vec<u8>>> {
        self.db.get(ENROLMENT).map_err(|error| database_error("read the log database", &error))
    }

    /// Replaces the node's enrolment, durably.
    pub(crate) fn enrol(&self, enrolment: &[u8]) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        batch.put(ENROLMENT, enrolment);
        self.write_batch(batch)
    }

    /// What `group`'s log holds, compared with what it had acknowledged.
    pub(crate) fn load(&self, group: GroupId, witness: &Witness) -> Result<LogEnds, LogError> {
        let read = |source| LogError::Read { group, source };
        let ends = self.ends(group).map_err(read)?;
        let acknowledged = witness.read(group).map_err(read)?;
        if ends.last < acknowledged.last || ends.vote < acknowledged.vote {
            return Err(LogError::WentBack {
                group,
                found: describe(&Acknowledged { vote: ends.vote, last: ends.last }),
                acknowledged: describe(&acknowledged),
            });
        }
        Ok(ends)
    }

    fn ends(&self, group: GroupId) -> io::Result<LogEnds> {
        let ends = LogEnds {
            vote: self.get(group, VOTE)?,
            purged: self.get(group, PURGED)?,
            last: self.get(group, LAST)?,
        };
        let next = |log_id: Option<LogId>| log_id.map_or(0, |log_id| log_id.index + 1);
        let first_found = self.entry_id(group, IteratorMode::Start)?;
        let last_found = self.entry_id(group, IteratorMode::End)?;
        let empty = next(ends.purged) == next(ends.last);
        let whole = match (first_found, last_found) {
            (None, None) => empty && ends.purged == ends.last,
            (Some(first), Some(last)) => {
                !empty && first.index == next(ends.purged) && Some(last) == ends.last
            }
            _ => false,
        };
        if whole {
            return Ok(ends);
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the log is not whole: purged={:?} last={:?} first_found={first_found:?} last_found={last_found:?}",
                ends.purged, ends.last
            ),
        ))
    }

    fn get<T: serde::de::DeserializeOwned>(&self, group: GroupId, kind: u8) -> io::Result<Option<T>> {
        let value =
            self.db.get(key(group, kind)).map_err(|error| database_error("read the log database", &error))?;
        value.map(|bytes| decode(&bytes)).transpose()
    }

    fn entry_id(&self, group: GroupId, mode: IteratorMode<'_>) -> io::Result<Option<LogId>> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(key(group, ENTRY));
        options.set_iterate_upper_bound(key(group, BEYOND_ENTRIES));
        let Some(row) = self.db.iterator_opt(mode, options).next() else { return Ok(None) };
        let (_key, value) = row.map_err(|error| database_error("read the log database", &error))?;
        Ok(Some(decode::<Entry>(&value)?.log_id))
    }

    /// Entries `from..to` as far as they are there, in order, until `bytes_max` are exceeded (at least one).
    pub(crate) fn entries(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> io::Result<Vec<Entry>> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(entry_key(group, from));
        options.set_iterate_upper_bound(entry_key(group, to));
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for row in self.db.iterator_opt(IteratorMode::Start, options) {
            let (_key, value) = row.map_err(|error| database_error("read the log database", &error))?;
            bytes += value.len();
            entries.push(decode(&value).map_err(|error| not_known(&error))?);
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(entries)
    }

    /// Writes a batch of groups' rows, counts it and syncs it.
    pub(crate) fn write_synced(&self, mut batch: WriteBatch) -> io::Result<()> {
        let mut counter = self.counter();
        let mut next = counter.attestation;
        if counter.begun {
            next.sequence += 1;
            batch.put(ATTESTATION, next.to_bytes());
        }
        self.write_batch(batch)?;
        counter.attestation = next;
        Ok(())
    }

    fn write_batch(&self, batch: WriteBatch) -> io::Result<()> {
        let mut options = rocksdb::WriteOptions::default();
        options.set_sync(true);
        self.db
            .write_opt(batch, &options)
            .map_err(|error| database_error("write and sync the log database", &error))
    }
}

fn describe(acknowledged: &Acknowledged) -> String {
    let last = acknowledged.last.map_or("nothing".to_owned(), |last| last.to_string());
    let vote = acknowledged.vote.map_or("none".to_owned(), |vote| vote.to_string());
    format!("{last} (vote {vote})")
}

fn key(group: GroupId, kind: u8) -> Vec<u8> {
    let [high, low] = group_prefix(group);
    vec![high, low, kind]
}

fn entry_key(group: GroupId, index: u64) -> Vec<u8> {
    let mut bytes = key(group, ENTRY);
    bytes.extend_from_slice(&index.to_be_bytes());
    bytes
}

/// Adds a vote to a batch.
pub(crate) fn put_vote(batch: &mut WriteBatch, group: GroupId, vote: &Vote) -> io::Result<()> {
    batch.put(key(group, VOTE), encode(vote)?);
    Ok(())
}

/// Adds encoded entries, which end at `last`, to a batch.
pub(crate) fn put_entries(
    batch: &mut WriteBatch,
    group: GroupId,
    entries: &[(u64, Vec<u8>)],
    last: &LogId,
) -> io::Result<()> {
    for (index, value) in entries {
        batch.put(entry_key(group, *index), value);
    }
    batch.put(key(group, LAST), encode(last)?);
    Ok(())
}

/// Adds the removal of all entries after `last` to a batch.
pub(crate) fn truncate_after(batch: &mut WriteBatch, group: GroupId, last: Option<LogId>) -> io::Result<()> {
    let from = last.map_or(0, |last| last.index + 1);
    batch.delete_range(entry_key(group, from), key(group, BEYOND_ENTRIES));
    match last {
        Some(last) => batch.put(key(group, LAST), encode(&last)?),
        None => batch.delete(key(group, LAST)),
    }
    Ok(())
}

/// Adds the removal of all entries up to `upto` to a batch; `last` is where the log ends then.
pub(crate) fn purge_upto(
    batch: &mut WriteBatch,
    group: GroupId,
    upto: &LogId,
    last: &LogId,
) -> io::Result<()> {
    batch.delete_range(entry_key(group, 0), entry_key(group, upto.index + 1));
    batch.put(key(group, PURGED), encode(upto)?);
    batch.put(key(group, LAST), encode(last)?);
    Ok(())
}
