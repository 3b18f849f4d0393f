//! What a disk's threads share: its files, its index, its logbook, and how it is.
//!
//! Invariants:
//! - A fenced disk stays so, over restarts, until the operator has had it verified: a write or a sync failed, and
//!   what was not durable then may be gone.
//! - A disk that is suspect (too much of it cannot be read) or missing is so until the node is started again.
//! - A disk whose index is rebuilt comes back by itself. Full and up change into each other as space comes and goes.
//! - A disk that is behind takes no writes; what it has is verified as it is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use engine::cluster::{DiskUsage, Health};
use tokio::sync::mpsc;

use crate::extent::Extents;
use crate::index::{self, Index, IndexError};
use crate::locks::locked;
use crate::logbook::{Logbook, Start};
use crate::record::ExtentNumber;
use crate::shared_index::SharedIndex;
use crate::space::{Sample, Space};
use crate::superblock::SUPERBLOCK_FILE;
use crate::writer::Work;

/// How often the index is rebuilt while the disk serves: one that fails again and again lies on a bad disk.
const REBUILDS_MAX: u64 = 3;

/// How a disk is, and why if it is not up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// Up, full, behind, failed or missing.
    pub health: Health,
    /// In words; empty when up.
    pub reason: String,
}

impl DiskStatus {
    pub(crate) fn up() -> Self {
        Self { health: Health::Up, reason: String::new() }
    }
}

/// What a person reads of a fenced disk, with what to do.
pub(crate) fn fenced_words(reason: &str, path: &Path) -> String {
    format!(
        "fenced: {reason}; once the disk is sound, stop its node and run `keepstone storage --config FILE --unfence {}`",
        path.display()
    )
}

/// How firmly a disk is out of service; a higher one replaces a lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outage {
    /// Until its index has been rebuilt.
    Rebuilding,
    /// Until the node is started again.
    Suspended,
    /// Until the operator has had it verified.
    Fenced,
}

/// How the disk is, as its own threads see it.
struct State {
    status: DiskStatus,
    outage: Option<Outage>,
    /// Why it is behind what it acknowledged, if it is.
    behind: Option<String>,
}

pub(crate) struct Core {
    pub(crate) path: PathBuf,
    pub(crate) extents: Extents,
    pub(crate) index: SharedIndex,
    pub(crate) space: Space,
    pub(crate) logbook: Mutex<Logbook>,
    /// This start, apart from the logbook: that may be held by a write to a disk that hangs.
    told: Mutex<Start>,
    /// Whether the logbook says that this start is confirmed.
    pub(crate) confirmed: AtomicBool,
    /// Wakes the writer.
    wake: OnceLock<mpsc::WeakSender<Work>>,
    state: Mutex<State>,
    /// Set when the index has failed and the writer is to rebuild it.
    pub(crate) index_failed: AtomicBool,
    /// How often it has failed.
    rebuilds: AtomicU64,
    /// Allocated bytes of each extent, as last seen.
    allocated: Mutex<BTreeMap<ExtentNumber, u64>>,
    usage: Mutex<DiskUsage>,
    pub(crate) shards: AtomicU64,
    pub(crate) damaged_found: AtomicU64,
    pub(crate) sequence: AtomicU64,
    pub(crate) unreadable_places_max: u64,
    /// Set when the disk is being closed: long work ends.
    pub(crate) stopping: AtomicBool,
}

impl Core {
    pub(crate) fn new(
        path: PathBuf,
        extents: Extents,
        index: Index,
        space: Space,
        logbook: Mutex<Logbook>,
        unreadable_places_max: u64,
    ) -> Self {
        let told = locked(&logbook).start(0);
        Self {
            path,
            extents,
            index: SharedIndex::new(index),
            space,
            logbook,
            told: Mutex::new(told),
            confirmed: AtomicBool::new(false),
            wake: OnceLock::new(),
            state: Mutex::new(State { status: DiskStatus::up(), outage: None, behind: None }),
            index_failed: AtomicBool::new(false),
            rebuilds: AtomicU64::new(0),
            allocated: Mutex::default(),
            usage: Mutex::default(),
            shards: AtomicU64::new(0),
            damaged_found: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            unreadable_places_max,
            stopping: AtomicBool::new(false),
        }
    }

    pub(crate) fn status(&self) -> DiskStatus {
        let state = locked(&self.state);
        match &state.behind {
            Some(reason) if state.outage.is_none() => {
                DiskStatus { health: Health::Behind, reason: reason.clone() }
            }
            _ => state.status.clone(),
        }
    }

    /// Why nothing is read from this disk, if so.
    pub(crate) fn refuses_reads(&self) -> Option<String> {
        let state = locked(&self.state);
        state.outage.map(|_outage| state.status.reason.clone())
    }

    /// Why nothing is written to this disk, space aside, if so.
    pub(crate) fn refuses_writes(&self) -> Option<String> {
        let state = locked(&self.state);
        if state.outage.is_some() { Some(state.status.reason.clone()) } else { state.behind.clone() }
    }

    /// Whether a write or a sync has failed.
    pub(crate) fn is_fenced(&self) -> bool {
        locked(&self.state).outage == Some(Outage::Fenced)
    }

    fn leave_service(&self, outage: Outage, health: Health, reason: &str) -> bool {
        let mut state = locked(&self.state);
        if state.outage >= Some(outage) {
            return false;
        }
        tracing::error!(disk = %self.extents.owner().disk, path = %self.path.display(), reason, "disk out of service");
        state.outage = Some(outage);
        state.status = DiskStatus { health, reason: reason.to_owned() };
        true
    }

    /// Takes the disk out of service, over restarts: a write or a sync failed, so what it says can no longer be
    /// relied on.
    pub(crate) fn fence(&self, reason: &str) {
        if self.leave_service(Outage::Fenced, Health::Failed, &fenced_words(reason, &self.path)) {
            locked(&self.logbook).fence(reason);
        }
    }

    /// Takes the disk out of service until the node is started again.
    pub(crate) fn suspend(&self, reason: &str) {
        self.leave_service(Outage::Suspended, Health::Failed, reason);
    }

    /// Takes the disk out of service until its writer has rebuilt the index. The index stays marked as damaged, so
    /// that the next start rebuilds it if this process does not come to it.
    pub(crate) fn index_failed(&self, error: &IndexError) {
        if matches!(error, IndexError::Rebuilding) {
            return;
        }
        index::mark_damaged(&self.path);
        if self.rebuilds.fetch_add(1, Ordering::Relaxed) >= REBUILDS_MAX {
            self.suspend(&format!("its index failed again and again; the last time: {error}"));
        } else if self.leave_service(
            Outage::Rebuilding,
            Health::Failed,
            &format!("its index is being rebuilt ({error}); it comes back by itself"),
        ) {
            self.index_failed.store(true, Ordering::Release);
            // A queue that is full wakes the writer as well.
            let writer = self.wake.get().and_then(mpsc::WeakSender::upgrade);
            if writer.is_some_and(|writer| writer.try_send(Work::Wake).is_err()) {
                tracing::debug!("the writer is awake already");
            }
        }
    }

    /// Says where the writer is reached. Held weakly: the writer ends once nobody else can ask anything of it.
    pub(crate) fn set_writer(&self, work: &mpsc::Sender<Work>) {
        if self.wake.set(work.downgrade()).is_err() {
            tracing::debug!("a disk has one writer");
        }
    }

    /// The cluster has confirmed this start.
    pub(crate) fn confirm(&self) -> std::io::Result<()> {
        let mut logbook = locked(&self.logbook);
        logbook.confirm()?;
        *locked(&self.told) = logbook.start(0);
        self.confirmed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The index is whole again.
    pub(crate) fn index_rebuilt(&self) {
        let mut state = locked(&self.state);
        if state.outage == Some(Outage::Rebuilding) {
            state.outage = None;
            state.status = DiskStatus::up();
            tracing::info!(disk = %self.extents.owner().disk, "the disk serves again");
        }
    }

    /// Notes whether the disk holds less than it acknowledged.
    pub(crate) fn set_behind(&self, reason: Option<String>) {
        let mut state = locked(&self.state);
        if state.behind != reason {
            let disk = self.extents.owner().disk;
            match &reason {
                Some(reason) => {
                    tracing::error!(%disk, path = %self.path.display(), reason, "the disk takes no writes")
                }
                None => tracing::info!(%disk, "the disk takes writes again"),
            }
            state.behind = reason;
        }
    }

    /// This start of the disk.
    pub(crate) fn start(&self) -> Start {
        Start { sequence: self.sequence.load(Ordering::Relaxed), ..locked(&self.told).clone() }
    }

    /// Whether the file system has room for `bytes` more; the disk is full while it has not.
    pub(crate) fn admits(&self, sample: &Sample, bytes: u64) -> bool {
        let mut state = locked(&self.state);
        let full = state.status.health == Health::Full;
        let admits = sample.admits(bytes, full);
        if state.outage.is_none() && full == admits {
            state.status = if admits {
                DiskStatus::up()
            } else {
                let reason = format!(
                    "full: {} bytes free of {}, of which {} are reserved",
                    sample.free_bytes, sample.capacity_bytes, sample.reserve_bytes
                );
                DiskStatus { health: Health::Full, reason }
            };
            tracing::info!(disk = %self.extents.owner().disk, health = ?state.status.health, "disk space");
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
                let reason = "the superblock has gone from the disk's directory";
                self.leave_service(Outage::Suspended, Health::Missing, reason);
                return;
            }
            Err(error) => {
                self.suspend(&format!("cannot read the superblock: {error}"));
                return;
            }
        }
        let sample = match self.space.sample() {
            Ok(sample) => sample,
            Err(error) => {
                self.suspend(&format!("cannot ask the file system for its space: {error}"));
                return;
            }
        };
        if sample.read_only {
            self.fence("its file system has become read-only");
            return;
        }
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
fn directory_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    // Files come and go while RocksDB compacts: what is gone takes nothing.
    let files = entries.flatten().filter_map(|entry| entry.metadata().ok());
    files.filter(std::fs::Metadata::is_file).map(|metadata| metadata.blocks() * 512).sum()
}
