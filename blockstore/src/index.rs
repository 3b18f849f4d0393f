//! The index of a disk: where each shard lies. A cache of the extents, in RocksDB.
//!
//! | key | value |
//! | --- | --- |
//! | `s` stripe position | [`Row`]: place, lengths, epoch |
//! | `p` extent offset | [`ShardName`]: the same, in the order of the medium, for scrubbing |
//! | `d` stripe position | the shard is known to be damaged (empty), or unreadable (one byte) |
//! | `v` volume | highest epoch known |
//! | `x` extent | [`ExtentFigures`] |
//! | `m` name | format and disk, [`Totals`], [`ScrubCursor`] |
//!
//! Invariants:
//! - Rows are written after their records are synced, in one batch with the mark up to which extents are indexed
//!   ([`Totals::mark`]). RocksDB recovers a prefix of the batches, so whatever un-synced rows a power cut takes,
//!   the records from the mark on are all that must be scanned again.
//! - A deletion is synced here before its space is punched: after that no scan, and no lost batch, brings it back.
//! - Only one thread at a time writes: the scan when a disk is opened, the disk's writer after that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::cluster::StripeLayout;
use engine::code::Code;
use engine::ids::{DiskId, Epoch, Position, StripeId, VolumeId};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, IteratorMode, LogLevel, LruCacheOptions,
    Options, ReadOptions, WriteBatch, WriteOptions,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::record::{ExtentNumber, Place, ShardHeader, ShardName};

/// The value of a damaged shard's row whose record the medium does not give back.
const UNREADABLE: &[u8] = b"u";

/// Format of the rows. An index of another is rebuilt.
const FORMAT: u32 = 2;

const SHARDS: u8 = b's';
const PLACES: u8 = b'p';
const DAMAGED: u8 = b'd';
const EPOCHS: u8 = b'v';
const EXTENTS: u8 = b'x';
const IDENTITY: &[u8] = b"midentity";
const TOTALS: &[u8] = b"mtotals";
const SCRUB: &[u8] = b"mscrub";

/// Put beside the index when it was found damaged while serving: the next start rebuilds it.
const DAMAGED_MARKER: &str = "index.damaged";

const WRITE_BUFFER_BYTES: usize = 2 * 1024 * 1024;
const BLOCK_CACHE_BYTES: usize = 8 * 1024 * 1024;
const WAL_BYTES_MAX: u64 = 4 * 1024 * 1024;
const FILES_OPEN_MAX: i32 = 64;

/// Why the index failed. It is a cache: the remedy is to rebuild it.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// RocksDB says so.
    #[error("index database: {0}")]
    Database(#[from] rocksdb::Error),
    /// A row that this software did not write.
    #[error("index: a row of {what} is malformed")]
    Malformed {
        /// Which kind.
        what: &'static str,
    },
    /// The directory cannot be removed or made.
    #[error("index directory: {0}")]
    Io(#[from] std::io::Error),
    /// It was found damaged and is being made anew from the extents.
    #[error("the index is being rebuilt")]
    Rebuilding,
}

/// Where a shard lies, and its header but for its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Where its record begins.
    pub place: Place,
    /// The volume's epoch when it was written.
    pub epoch: Epoch,
    /// The volume's code.
    pub code: Code,
    /// Whether it is a coded piece or a whole copy.
    pub layout: StripeLayout,
    /// Bytes of the stripe, before padding.
    pub stripe_length: u32,
    /// Bytes of the shard.
    pub payload_length: u32,
    /// CRC-32 of the shard.
    pub payload_crc32: u32,
}

impl Row {
    /// The row of a record at `place`.
    #[must_use]
    pub fn new(place: Place, header: &ShardHeader) -> Self {
        Self {
            place,
            epoch: header.epoch,
            code: header.code,
            layout: header.layout,
            stripe_length: header.stripe_length,
            payload_length: header.payload_length,
            payload_crc32: header.payload_crc32,
        }
    }

    /// The header of the record it leads to.
    #[must_use]
    pub fn header(&self, name: ShardName) -> ShardHeader {
        ShardHeader {
            name,
            epoch: self.epoch,
            code: self.code,
            layout: self.layout,
            stripe_length: self.stripe_length,
            payload_length: self.payload_length,
            payload_crc32: self.payload_crc32,
        }
    }
}

/// What lives in an extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExtentFigures {
    /// Shards indexed in it.
    pub shards: u64,
    /// Whether a scan met bytes there that it could not place: then the file is not unlinked unasked.
    pub unreadable: bool,
    /// Places that the medium did not give back, where a scan could not tell what lies there.
    pub unreadable_places: u64,
    /// How long the file is at least.
    pub bytes: u64,
}

/// Figures of the whole disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Everything before this place is indexed.
    pub mark: Place,
    /// Shards indexed.
    pub shards: u64,
    /// Shards ever found damaged, each counted once.
    pub damaged_found: u64,
    /// The next extent to be made.
    pub extent_next: ExtentNumber,
    /// Records ever appended.
    pub sequence: u64,
}

/// How far the background scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScrubCursor {
    /// The last record it checked.
    pub checked: Place,
    /// How long the disk is to be served yet, in milliseconds, until the next pass begins.
    pub next_in_ms: u64,
}

/// The index of one disk.
pub(crate) struct Index {
    db: DB,
}

fn shard_key(table: u8, name: ShardName) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + StripeId::LENGTH + 1);
    key.push(table);
    key.extend_from_slice(name.stripe.as_bytes());
    key.push(name.position.0);
    key
}

fn parse_shard_key(key: &[u8]) -> Result<ShardName, IndexError> {
    let malformed = IndexError::Malformed { what: "shards" };
    let Some((position, stripe)) = key.get(1..).and_then(<[u8]>::split_last) else { return Err(malformed) };
    let stripe = StripeId::from_slice(stripe).map_err(|_length| malformed)?;
    Ok(ShardName { stripe, position: Position(*position) })
}

fn place_key(place: Place) -> Vec<u8> {
    let mut key = vec![PLACES];
    key.extend_from_slice(&place.extent.0.to_be_bytes());
    key.extend_from_slice(&place.offset.to_be_bytes());
    key
}

fn parse_place_key(key: &[u8]) -> Result<Place, IndexError> {
    let malformed = IndexError::Malformed { what: "places" };
    let Some((extent, offset)) = key.get(1..).and_then(|rest| rest.split_first_chunk::<4>()) else {
        return Err(malformed);
    };
    let offset = <[u8; 8]>::try_from(offset).map_err(|_length| malformed)?;
    Ok(Place { extent: ExtentNumber(u32::from_be_bytes(*extent)), offset: u64::from_be_bytes(offset) })
}

fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, IndexError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_left_over) => Err(IndexError::Malformed { what }),
        Err(_error) => Err(IndexError::Malformed { what }),
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, IndexError> {
    postcard::to_stdvec(value).map_err(|_error| IndexError::Malformed { what: "this version" })
}

fn options() -> Options {
    let mut table = BlockBasedOptions::default();
    // One shard: a table's whole filter is one block, and what is larger than a shard is never kept.
    let mut cache = LruCacheOptions::default();
    cache.set_capacity(BLOCK_CACHE_BYTES);
    cache.set_num_shard_bits(0);
    table.set_block_cache(&Cache::new_lru_cache_opts(&cache));
    table.set_cache_index_and_filter_blocks(true);
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_paranoid_checks(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_open_files(FILES_OPEN_MAX);
    options.set_skip_stats_update_on_db_open(true);
    options.set_manifest_preallocation_size(64 * 1024);
    options.set_max_manifest_file_size(1024 * 1024);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(512 * 1024);
    options.set_stats_dump_period_sec(0);
    options
}

/// Where a disk keeps its index.
pub(crate) fn path(disk_directory: &Path) -> PathBuf {
    disk_directory.join("index")
}

/// Notes that the index cannot be trusted, so that the next start rebuilds it.
pub(crate) fn mark_damaged(disk_directory: &Path) {
    if let Err(error) = std::fs::write(disk_directory.join(DAMAGED_MARKER), b"") {
        tracing::warn!(%error, "cannot note that the index is damaged");
    }
}

impl Index {
    /// Opens the index of `disk` as it is; `None` if there is none that can be used.
    pub(crate) fn open(disk_directory: &Path, disk: DiskId) -> Option<Self> {
        let path = path(disk_directory);
        if disk_directory.join(DAMAGED_MARKER).exists() || !path.join("CURRENT").exists() {
            return None;
        }
        let opened = DB::open(&options(), &path).map_err(IndexError::from).and_then(|db| {
            let index = Self { db };
            let identity = index.get::<(u32, DiskId)>(IDENTITY, "identity")?;
            Ok((identity == Some((FORMAT, disk))).then_some(index))
        });
        match opened {
            Ok(Some(index)) => Some(index),
            Ok(None) => {
                tracing::warn!(%disk, "the index is of another disk or format");
                None
            }
            Err(error) => {
                tracing::warn!(%disk, %error, "the index is damaged");
                None
            }
        }
    }

    /// Makes an empty index in place of what was there.
    pub(crate) fn create(disk_directory: &Path, disk: DiskId) -> Result<Self, IndexError> {
        let path = path(disk_directory);
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        let index = Self { db: DB::open(&options(), &path)? };
        index.db.put(IDENTITY, encode(&(FORMAT, disk))?)?;
        match std::fs::remove_file(disk_directory.join(DAMAGED_MARKER)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _gone => Ok(index),
        }
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8], what: &'static str) -> Result<Option<T>, IndexError> {
        self.db.get_pinned(key)?.map(|bytes| decode(&bytes, what)).transpose()
    }

    /// Where a shard lies.
    pub(crate) fn row(&self, name: ShardName) -> Result<Option<Row>, IndexError> {
        self.get(&shard_key(SHARDS, name), "shards")
    }

    /// Whether a shard is known to be damaged.
    pub(crate) fn is_damaged(&self, name: ShardName) -> Result<bool, IndexError> {
        Ok(self.db.get_pinned(shard_key(DAMAGED, name))?.is_some())
    }

    /// Shards whose records the medium does not give back, up to `count_max`.
    pub(crate) fn unreadable(&self, count_max: usize) -> Result<Vec<ShardName>, IndexError> {
        let mut found = Vec::new();
        self.walk(&[DAMAGED], |key, value| {
            if value == UNREADABLE {
                found.push(parse_shard_key(key)?);
            }
            Ok(found.len() < count_max)
        })?;
        Ok(found)
    }

    pub(crate) fn totals(&self) -> Result<Totals, IndexError> {
        Ok(self.get(TOTALS, "totals")?.unwrap_or_default())
    }

    pub(crate) fn scrub_cursor(&self) -> Result<ScrubCursor, IndexError> {
        Ok(self.get(SCRUB, "scrub cursor")?.unwrap_or_default())
    }

    /// Calls `each` with the rows of one table, from `from` on, until it answers false.
    fn walk(
        &self,
        from: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, IndexError>,
    ) -> Result<(), IndexError> {
        let table = from[0];
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(vec![table + 1]);
        for entry in self.db.iterator_opt(IteratorMode::From(from, Direction::Forward), read) {
            let (key, value) = entry?;
            if !each(&key, &value)? {
                break;
            }
        }
        Ok(())
    }

    /// Up to `count_max` shards after `after`, in order of stripe and position.
    pub(crate) fn list(
        &self,
        after: Option<ShardName>,
        count_max: usize,
    ) -> Result<Vec<(ShardName, Row)>, IndexError> {
        let mut from = after.map_or_else(|| vec![SHARDS], |name| shard_key(SHARDS, name));
        if after.is_some() {
            from.push(0);
        }
        let mut found = Vec::new();
        self.walk(&from, |key, value| {
            if found.len() < count_max {
                found.push((parse_shard_key(key)?, decode(value, "shards")?));
            }
            Ok(found.len() < count_max)
        })?;
        Ok(found)
    }

    /// Up to `count_max` shards behind `after`, in the order in which they lie on the medium.
    pub(crate) fn list_by_place(
        &self,
        after: Place,
        count_max: usize,
    ) -> Result<Vec<(Place, ShardName)>, IndexError> {
        let mut from = place_key(after);
        from.push(0);
        let mut found = Vec::new();
        self.walk(&from, |key, value| {
            found.push((parse_place_key(key)?, decode(value, "places")?));
            Ok(found.len() < count_max)
        })?;
        Ok(found)
    }

    /// All epochs that are known.
    pub(crate) fn epochs(&self) -> Result<BTreeMap<VolumeId, Epoch>, IndexError> {
        let mut epochs = BTreeMap::new();
        self.walk(&[EPOCHS], |key, value| {
            let volume = key.get(1..).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
            let volume = volume.ok_or(IndexError::Malformed { what: "epochs" })?;
            epochs.insert(VolumeId(u64::from_be_bytes(volume)), decode(value, "epochs")?);
            Ok(true)
        })?;
        Ok(epochs)
    }

    /// What lives in each extent.
    pub(crate) fn extents(&self) -> Result<BTreeMap<ExtentNumber, ExtentFigures>, IndexError> {
        let mut extents = BTreeMap::new();
        self.walk(&[EXTENTS], |key, value| {
            let extent = key.get(1..).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
            let extent = extent.ok_or(IndexError::Malformed { what: "extents" })?;
            extents.insert(ExtentNumber(u32::from_be_bytes(extent)), decode(value, "extents")?);
            Ok(true)
        })?;
        Ok(extents)
    }

    /// Writes a batch. `synced`: it is durable when this returns, and all batches before it.
    pub(crate) fn commit(&self, batch: IndexBatch, synced: bool) -> Result<(), IndexError> {
        let mut write = WriteOptions::default();
        write.set_sync(synced);
        Ok(self.db.write_opt(batch.0, &write)?)
    }

    #[cfg(test)]
    pub(crate) fn flush(&self) -> Result<(), IndexError> {
        Ok(self.db.flush()?)
    }

    /// Ends RocksDB's background work, so that dropping the index is quick and leaves no thread in it.
    pub(crate) fn stop(&self) {
        if let Err(error) = self.db.flush_wal(true) {
            tracing::warn!(%error, "the index was not synced on stop; the next start scans a little more");
        }
        self.db.cancel_all_background_work(true);
    }
}

/// Changes to the index that become visible, and durable, together.
#[derive(Default)]
pub(crate) struct IndexBatch(WriteBatch);

impl IndexBatch {
    pub(crate) fn insert(&mut self, name: ShardName, row: &Row) -> Result<(), IndexError> {
        self.0.put(shard_key(SHARDS, name), encode(row)?);
        self.0.put(place_key(row.place), encode(&name)?);
        Ok(())
    }

    pub(crate) fn remove(&mut self, name: ShardName, row: &Row) {
        self.0.delete(shard_key(SHARDS, name));
        self.0.delete(place_key(row.place));
        self.0.delete(shard_key(DAMAGED, name));
    }

    pub(crate) fn set_damaged(&mut self, name: ShardName, unreadable: bool) {
        self.0.put(shard_key(DAMAGED, name), if unreadable { UNREADABLE } else { &[] });
    }

    pub(crate) fn set_epoch(&mut self, volume: VolumeId, epoch: Epoch) -> Result<(), IndexError> {
        let mut key = vec![EPOCHS];
        key.extend_from_slice(&volume.0.to_be_bytes());
        self.0.put(key, encode(&epoch)?);
        Ok(())
    }

    pub(crate) fn set_extent(
        &mut self,
        extent: ExtentNumber,
        figures: Option<&ExtentFigures>,
    ) -> Result<(), IndexError> {
        let mut key = vec![EXTENTS];
        key.extend_from_slice(&extent.0.to_be_bytes());
        match figures {
            Some(figures) => self.0.put(key, encode(figures)?),
            None => self.0.delete(key),
        }
        Ok(())
    }

    pub(crate) fn set_totals(&mut self, totals: &Totals) -> Result<(), IndexError> {
        self.0.put(TOTALS, encode(totals)?);
        Ok(())
    }

    pub(crate) fn set_scrub_cursor(&mut self, cursor: &ScrubCursor) -> Result<(), IndexError> {
        self.0.put(SCRUB, encode(cursor)?);
        Ok(())
    }
}
