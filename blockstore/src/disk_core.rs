//! What a disk's threads share: its files, its index, and how it is.
//!
//! Invariants:
//! - Once a disk is failed or missing it stays so until the node is started again: nothing is served from it.
//! - Full and up change into each other as space comes and goes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::cluster::{DiskUsage, Health};

use crate::extent::Extents;
use crate::index::{self, Index, IndexError};
use crate::locks::locked;
use crate::record::ExtentNumber;
use crate::space::{Sample, Space};
use crate::superblock::SUPERBLOCK_FILE;

/// How a disk is, and why if it is not up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// Up, full, failed or missing.
    pub health: Health,
    /// In words; empty when up.
    pub reason: String,
}

impl DiskStatus {
    pub(crate) fn up() -> Self {
        Self { health: Health::Up, reason: String::new() }
    }
}

pub(crate) struct Core {
    pub(crate) path: PathBuf,
    pub(crate) extents: Extents,
    pub(crate) index: Index,
    pub(crate) space: Space,
    status: Mutex<DiskStatus>,
    /// Allocated bytes of each extent, as last seen.
    allocated: Mutex<BTreeMap<ExtentNumber, u64>>,
    usage: Mutex<DiskUsage>,
    pub(crate) shards: AtomicU64,
    pub(crate) damaged_found: AtomicU64,
}

impl Core {
    pub(crate) fn new(path: PathBuf, extents: Extents, index: Index, space: Space) -> Self {
        Self {
            path,
            extents,
            index,
            space,
            status: Mutex::new(DiskStatus::up()),
            allocated: Mutex::default(),
            usage: Mutex::default(),
            shards: AtomicU64::new(0),
            damaged_found: AtomicU64::new(0),
        }
    }

    pub(crate) fn status(&self) -> DiskStatus {
        locked(&self.status).clone()
    }

    /// Why nothing is read from this disk, if so.
    pub(crate) fn refuses_reads(&self) -> Option<String> {
        let status = locked(&self.status);
        (!status.health.readable()).then(|| status.reason.clone())
    }

    fn leave_service(&self, health: Health, reason: &str) {
        let mut status = locked(&self.status);
        if status.health.readable() {
            tracing::error!(disk = %self.extents.owner().disk, path = %self.path.display(), reason, "disk fenced");
            *status = DiskStatus { health, reason: reason.to_owned() };
        }
    }

    /// Takes the disk out of service: it erred, and what it says can no longer be relied on.
    pub(crate) fn fence(&self, reason: &str) {
        self.leave_service(Health::Failed, reason);
    }

    /// Takes the disk out of service because its index failed; the next start rebuilds it.
    pub(crate) fn fence_for_index(&self, error: &IndexError) {
        index::mark_damaged(&self.path);
        self.fence(&format!("{error}; restart the storage node to rebuild the index"));
    }

    /// Whether the file system has room for `bytes` more; the disk is full while it has not.
    pub(crate) fn admits(&self, sample: &Sample, bytes: u64) -> bool {
        let mut status = locked(&self.status);
        let full = status.health == Health::Full;
        let admits = sample.admits(bytes, full);
        if status.health.readable() && full == admits {
            *status = if admits {
                DiskStatus::up()
            } else {
                let reason = format!(
                    "full: {} bytes free of {}, of which {} are reserved",
                    sample.free_bytes, sample.capacity_bytes, sample.reserve_bytes
                );
                DiskStatus { health: Health::Full, reason }
            };
            tracing::info!(disk = %self.extents.owner().disk, health = ?status.health, "disk space");
        }
        admits
    }

    /// Notes what an extent takes on the file system now.
    pub(crate) fn measure_extent(&self, extent: ExtentNumber) {
        let bytes = self.extents.allocated_bytes(extent);
        let mut allocated = locked(&self.allocated);
        if bytes == 0 {
            allocated.remove(&extent);
        } else {
            allocated.insert(extent, bytes);
        }
    }

    /// The latest figures.
    pub(crate) fn usage(&self) -> DiskUsage {
        let mut usage = *locked(&self.usage);
        usage.shards = self.shards.load(Ordering::Relaxed);
        usage.shards_damaged_found = self.damaged_found.load(Ordering::Relaxed);
        usage
    }

    /// Takes the figures anew, and notices if the disk has gone or its space has come back. Blocks.
    pub(crate) fn refresh_usage(&self) {
        if self.refuses_reads().is_some() {
            return;
        }
        match std::fs::metadata(self.path.join(SUPERBLOCK_FILE)) {
            Ok(_there) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.leave_service(Health::Missing, "the superblock has gone from the disk's directory");
                return;
            }
            Err(error) => {
                self.fence(&format!("cannot read the superblock: {error}"));
                return;
            }
        }
        let sample = match self.space.sample() {
            Ok(sample) => sample,
            Err(error) => {
                self.fence(&format!("cannot ask the file system for its space: {error}"));
                return;
            }
        };
        self.admits(&sample, 1);
        let newest = locked(&self.allocated).last_key_value().map(|(extent, _)| *extent);
        if let Some(extent) = newest {
            self.measure_extent(extent);
        }
        let extents: u64 = locked(&self.allocated).values().sum();
        let beside = directory_bytes(&index::path(&self.path)) + directory_bytes(&self.path);
        let mut usage = locked(&self.usage);
        usage.capacity_bytes = sample.capacity_bytes;
        usage.free_bytes = sample.usable_bytes();
        usage.allocated_bytes = extents + beside;
    }
}

/// Bytes allocated to the files in a directory, not to those in its subdirectories.
fn directory_bytes(directory: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    // Files come and go while RocksDB compacts: what is gone takes nothing.
    let files = entries.flatten().filter_map(|entry| entry.metadata().ok());
    files.filter(std::fs::Metadata::is_file).map(|metadata| metadata.blocks() * 512).sum()
}
