//! The state database: what the state machines of all groups of a node hold.
//!
//! Keys: group (2 bytes, big-endian), generation (4), then the group's own key. Generation 0 has one key, the empty
//! one: the group's [`StateMeta`].
//!
//! Invariants:
//! - A change and the applied index that tells of it are written in one batch.
//! - Only the generation that the meta row names is read. Another one is a snapshot being installed, or what one
//!   replaced; it is deleted when the database is opened.
//! - Nothing but [`StateDatabase::make_durable`] and the end of an installation waits for the disk.
//! - It has no log of its own: the group's log is one, which keeps what is not durable here. So whatever is written is in
//!   memory until it is flushed, and a crash leaves what was flushed: all writes up to some moment, and none after it, with
//!   the applied index of that moment. What came after it is applied again.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use engine::ids::GroupId;
use rocksdb::{DB, DBRawIterator, DBRecoveryMode, Options, ReadOptions, Snapshot, WriteBatch};
use serde::{Deserialize, Serialize};

use super::types::{LogId, SnapshotMeta, StoredMembership, database_error, decode, encode, group_prefix};
use crate::kv::{Backing, BackingError, Changes, KeyRange, Row, prefix_end};

const MEBIBYTE: usize = 1024 * 1024;
/// The first generation that holds keys.
const GENERATION_FIRST: u32 = 1;

/// How far a group's state has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StateMeta {
    /// Where the group's keys are.
    pub(crate) generation: u32,
    /// The last log entry that is in the state.
    pub(crate) applied: Option<LogId>,
    /// The members by the last entry that changed them.
    pub(crate) membership: StoredMembership,
    /// The leader's time of the last batch applied.
    pub(crate) time_ms: u64,
}

impl Default for StateMeta {
    fn default() -> Self {
        Self {
            generation: GENERATION_FIRST,
            applied: None,
            membership: StoredMembership::default(),
            time_ms: 0,
        }
    }
}

impl StateMeta {
    /// As openraft describes a snapshot of this state.
    pub(crate) fn snapshot_meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

/// Few shards: a table's whole filter is one block, of a MiB and more, and what is larger than a shard is never kept.
fn block_cache() -> rocksdb::Cache {
    let mut options = rocksdb::LruCacheOptions::default();
    options.set_capacity(64 * MEBIBYTE);
    options.set_num_shard_bits(1);
    rocksdb::Cache::new_lru_cache_opts(&options)
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_paranoid_checks(true);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // Rows that live for a moment (upload sessions) are gone before they would be written to a table.
    options.set_write_buffer_size(32 * MEBIBYTE);
    // Most of what is asked for is not there: requests, chunks and names that are new.
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(0.05);
    options.set_max_write_buffer_number(3);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(MEBIBYTE);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    let mut blocks = rocksdb::BlockBasedOptions::default();
    blocks.set_block_cache(&block_cache());
    blocks.set_bloom_filter(10.0, false);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_format_version(5);
    options.set_block_based_table_factory(&blocks);
    options
}

/// What a row takes in a batch beside its key and value, at most.
const ROW_OVERHEAD_BYTES: usize = 16;

/// The state database.
pub(crate) struct StateDatabase {
    db: DB,
    /// How far groups are known to be durable.
    durable: Mutex<BTreeMap<GroupId, Option<LogId>>>,
}

impl StateDatabase {
    /// Opens it, or makes it, and deletes generations that are not in force.
    pub(crate) fn open(path: &Path, groups: impl Iterator<Item = GroupId>) -> io::Result<Self> {
        let db =
            DB::open(&options(), path).map_err(|error| database_error("open the state database", &error))?;
        let database = Self { db, durable: Mutex::default() };
        for group in groups {
            let generation = database.meta(group)?.generation;
            database.delete_generations(group, GENERATION_FIRST, generation)?;
            database.delete_generations(group, generation.saturating_add(1), u32::MAX)?;
        }
        Ok(database)
    }

    /// How far `group` has come.
    pub(crate) fn meta(&self, group: GroupId) -> io::Result<StateMeta> {
        let value = self
            .db
            .get(meta_key(group))
            .map_err(|error| database_error("read the state database", &error))?;
        Ok(value.map(|bytes| decode(&bytes)).transpose()?.unwrap_or_default())
    }

    /// The keys of `group` as they change; for whoever writes them.
    pub(crate) fn live(&self, group: GroupId, generation: u32) -> StateView<'_> {
        StateView { source: Source::Live(&self.db), prefix: prefix(group, generation) }
    }

    /// Writes changes of `group` together with how far it has come then. Not synced: the log has it.
    pub(crate) fn write(&self, group: GroupId, changes: Changes, meta: &StateMeta) -> io::Result<()> {
        let prefix = prefix(group, meta.generation);
        let row_bytes = |(key, value): (&Vec<u8>, &Option<Vec<u8>>)| {
            ROW_OVERHEAD_BYTES + prefix.len() + key.len() + value.as_ref().map_or(0, Vec::len)
        };
        let meta_row = encode(meta)?;
        let bytes = changes.iter().map(row_bytes).sum::<usize>() + ROW_OVERHEAD_BYTES * 2 + meta_row.len();
        let mut batch = WriteBatch::with_capacity_bytes(bytes);
        let mut full_key = Vec::with_capacity(128);
        for (key, value) in changes {
            full_key.clear();
            full_key.extend_from_slice(&prefix);
            full_key.extend_from_slice(&key);
            match value {
                Some(value) => batch.put(&full_key, value),
                None => batch.delete(&full_key),
            }
        }
        batch.put(meta_key(group), meta_row);
        self.write_unlogged(batch)
    }

    fn write_unlogged(&self, batch: WriteBatch) -> io::Result<()> {
        let mut unlogged = rocksdb::WriteOptions::default();
        unlogged.disable_wal(true);
        self.db
            .write_opt(batch, &unlogged)
            .map_err(|error| database_error("write the state database", &error))
    }

    /// Makes everything written so far durable, and tells how far `group` had come by then.
    pub(crate) fn make_durable(&self, group: GroupId) -> io::Result<Option<LogId>> {
        let applied = self.meta(group)?.applied;
        self.sync()?;
        // Held for an insertion.
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).insert(group, applied);
        Ok(applied)
    }

    /// The same, unless the group is known to be durable up to an index.
    pub(crate) fn make_durable_upto(&self, group: GroupId, index: u64) -> io::Result<Option<LogId>> {
        let known = self.durable.lock().unwrap_or_else(PoisonError::into_inner).get(&group).copied();
        match known {
            Some(durable) if durable.is_some_and(|durable| durable.index >= index) => Ok(durable),
            _ => self.make_durable(group),
        }
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.db.flush().map_err(|error| database_error("sync the state database", &error))
    }

    /// Writes rows into a generation that is not in force.
    pub(crate) fn write_rows(&self, group: GroupId, generation: u32, rows: &[Row]) -> io::Result<()> {
        let prefix = prefix(group, generation);
        let mut batch = WriteBatch::default();
        for (key, value) in rows {
            batch.put([prefix.as_slice(), key].concat(), value);
        }
        self.write_unlogged(batch)
    }

    /// Puts the generation that `meta` names in force, durably with all its rows, and deletes the one before.
    pub(crate) fn switch(&self, group: GroupId, before: u32, meta: &StateMeta) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        batch.put(meta_key(group), encode(meta)?);
        self.write_unlogged(batch)?;
        self.make_durable(group)?;
        self.delete_generations(group, before, before.saturating_add(1))
    }

    /// Deletes the rows of generations `from..to`.
    pub(crate) fn delete_generations(&self, group: GroupId, from: u32, to: u32) -> io::Result<()> {
        if from >= to || !self.any_row(group, from, to)? {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        batch.delete_range(prefix(group, from), prefix(group, to));
        self.write_unlogged(batch)
    }

    fn any_row(&self, group: GroupId, from: u32, to: u32) -> io::Result<bool> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(prefix(group, from));
        options.set_iterate_upper_bound(prefix(group, to));
        let row = self.db.iterator_opt(rocksdb::IteratorMode::Start, options).next().transpose();
        Ok(row.map_err(|error| database_error("read the state database", &error))?.is_some())
    }
}

fn prefix(group: GroupId, generation: u32) -> Vec<u8> {
    [group_prefix(group).as_slice(), &generation.to_be_bytes()].concat()
}

fn meta_key(group: GroupId) -> Vec<u8> {
    prefix(group, 0)
}

enum Source<'a> {
    Live(&'a DB),
    Snapshot(&'a Snapshot<'a>),
}

/// One group's keys, without their prefix.
pub(crate) struct StateView<'a> {
    source: Source<'a>,
    prefix: Vec<u8>,
}

impl StateView<'_> {
    fn key(&self, key: &[u8]) -> Vec<u8> {
        [self.prefix.as_slice(), key].concat()
    }

    /// Goes over the rows of `range`; `None` if it is empty.
    fn iterator(&self, range: &KeyRange) -> Option<DBRawIterator<'_>> {
        let to = match &range.to {
            Some(to) => Some(self.key(to)),
            None => prefix_end(&self.prefix),
        };
        let from = self.key(&range.from);
        if to.as_ref().is_some_and(|to| *to <= from) {
            return None;
        }
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        if let Some(to) = to {
            options.set_iterate_upper_bound(to);
        }
        Some(match &self.source {
            Source::Live(db) => db.raw_iterator_opt(options),
            Source::Snapshot(snapshot) => snapshot.raw_iterator_opt(options),
        })
    }
}

fn backing_error(error: &rocksdb::Error) -> BackingError {
    BackingError { reason: error.to_string() }
}

impl Backing for StateView<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackingError> {
        let key = self.key(key);
        match &self.source {
            Source::Live(db) => db.get(key),
            Source::Snapshot(snapshot) => snapshot.get(key),
        }
        .map_err(|error| backing_error(&error))
    }

    fn scan(&self, range: &KeyRange, limit: usize, reverse: bool) -> Result<Vec<Row>, BackingError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let Some(mut iterator) = self.iterator(range) else { return Ok(Vec::new()) };
        if reverse {
            iterator.seek_to_last()
        } else {
            iterator.seek_to_first()
        }
        let mut rows = Vec::new();
        while rows.len() < limit
            && let Some((key, value)) = iterator.item()
        {
            rows.push((key[self.prefix.len()..].to_vec(), value.to_vec()));
            if reverse { iterator.prev() } else { iterator.next() }
        }
        iterator.status().map_err(|error| backing_error(&error))?;
        Ok(rows)
    }

    fn visit(
        &self,
        range: &KeyRange,
        take: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), BackingError> {
        let Some(mut iterator) = self.iterator(range) else { return Ok(()) };
        iterator.seek_to_first();
        while let Some((key, value)) = iterator.item()
            && take(&key[self.prefix.len()..], value)
        {
            iterator.next();
        }
        iterator.status().map_err(|error| backing_error(&error))
    }
}

self_cell::self_cell!(
    struct PinnedDatabase {
        owner: Arc<StateDatabase>,

        #[covariant]
        dependent: Snapshot,
    }
);

/// A group's state as it was at one moment, for as long as this lives.
pub(crate) struct PinnedState {
    pinned: PinnedDatabase,
    group: GroupId,
    meta: StateMeta,
}

impl std::fmt::Debug for PinnedState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinnedState").field("group", &self.group).field("meta", &self.meta).finish()
    }
}

impl PinnedState {
    /// `group` as it is now.
    pub(crate) fn new(database: Arc<StateDatabase>, group: GroupId) -> io::Result<Self> {
        let pinned = PinnedDatabase::new(database, |database| database.db.snapshot());
        let value = pinned
            .borrow_dependent()
            .get(meta_key(group))
            .map_err(|error| database_error("read the state database", &error))?;
        let meta = value.map(|bytes| decode(&bytes)).transpose()?.unwrap_or_default();
        Ok(Self { pinned, group, meta })
    }

    /// How far the group had come.
    pub(crate) fn meta(&self) -> &StateMeta {
        &self.meta
    }

    /// The group's keys.
    pub(crate) fn view(&self) -> StateView<'_> {
        StateView {
            source: Source::Snapshot(self.pinned.borrow_dependent()),
            prefix: prefix(self.group, self.meta.generation),
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId as _;
    use openraft::vote::leader_id_adv::LeaderId;

    use super::*;

    fn open(path: &Path) -> Arc<StateDatabase> {
        Arc::new(StateDatabase::open(path, (0..3).map(GroupId)).unwrap())
    }

    fn rows(database: &Arc<StateDatabase>, group: GroupId) -> Vec<Row> {
        let pinned = PinnedState::new(Arc::clone(database), group).unwrap();
        let forward = pinned.view().scan(&KeyRange::all(), usize::MAX, false).unwrap();
        let mut backward = pinned.view().scan(&KeyRange::all(), usize::MAX, true).unwrap();
        backward.reverse();
        assert_eq!(forward, backward);
        forward
    }

    fn change(key: &[u8], value: &[u8]) -> Changes {
        Changes::from([(key.to_vec(), Some(value.to_vec()))])
    }

    #[test]
    fn groups_do_not_see_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let database = open(directory.path());
        let meta = StateMeta::default();
        database.write(GroupId(0), change(b"\xff\xff", b"zero"), &meta).unwrap();
        database.write(GroupId(1), change(b"", b"one"), &meta).unwrap();
        assert_eq!(rows(&database, GroupId(0)), [(b"\xff\xff".to_vec(), b"zero".to_vec())]);
        assert_eq!(rows(&database, GroupId(1)), [(b"".to_vec(), b"one".to_vec())]);
        assert_eq!(rows(&database, GroupId(2)), []);
        let live = database.live(GroupId(0), meta.generation);
        assert_eq!(live.get(b"\xff\xff").unwrap(), Some(b"zero".to_vec()));
        assert_eq!(live.get(b"").unwrap(), None);
    }

    #[test]
    fn what_is_flushed_is_durable_and_is_not_flushed_again() {
        let directory = tempfile::tempdir().unwrap();
        let database = open(directory.path());
        let at = |index| StateMeta {
            applied: Some(LogId::new(LeaderId::new(1, 1), index)),
            ..StateMeta::default()
        };
        database.write(GroupId(1), change(b"key", b"one"), &at(7)).unwrap();
        let index = |durable: io::Result<Option<LogId>>| durable.unwrap().unwrap().index;
        assert_eq!(index(database.make_durable_upto(GroupId(1), 5)), 7);
        // As a crash leaves it: a copy of what is on the disk.
        let crashed = tempfile::tempdir().unwrap();
        let copy = || {
            for file in std::fs::read_dir(directory.path()).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), crashed.path().join(file.file_name())).unwrap();
            }
        };
        database.write(GroupId(1), change(b"key", b"two"), &at(9)).unwrap();
        assert_eq!(index(database.make_durable_upto(GroupId(1), 7)), 7, "flushed for nothing");
        copy();
        let database = open(crashed.path());
        assert_eq!(rows(&database, GroupId(1)), [(b"key".to_vec(), b"one".to_vec())]);
        assert_eq!(index(database.meta(GroupId(1)).map(|meta| meta.applied)), 7);
    }

    #[test]
    fn a_half_installed_generation_is_gone_after_a_restart_and_a_whole_one_is_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let row = |value: &[u8]| (b"key".to_vec(), value.to_vec());
        {
            let database = open(directory.path());
            database.write(GroupId(1), change(b"key", b"old"), &StateMeta::default()).unwrap();
            database.write_rows(GroupId(1), 2, &[row(b"new")]).unwrap();
            assert_eq!(rows(&database, GroupId(1)), [row(b"old")]);
        }
        let database = open(directory.path());
        assert_eq!(rows(&database, GroupId(1)), [row(b"old")]);
        assert!(!database.any_row(GroupId(1), 2, u32::MAX).unwrap());
        database.write_rows(GroupId(1), 2, &[row(b"new")]).unwrap();
        let pinned = PinnedState::new(Arc::clone(&database), GroupId(1)).unwrap();
        database.switch(GroupId(1), 1, &StateMeta { generation: 2, ..StateMeta::default() }).unwrap();
        assert_eq!(rows(&database, GroupId(1)), [row(b"new")]);
        assert_eq!(pinned.view().get(b"key").unwrap(), Some(b"old".to_vec()));
        drop((pinned, database));
        assert_eq!(rows(&open(directory.path()), GroupId(1)), [row(b"new")]);
    }
}
