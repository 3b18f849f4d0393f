//! One disk, opened: a handle by which async code puts, reads, deletes, lists and scrubs.
//!
//! Invariants:
//! - Every change goes through the disk's writer thread, every read through its reading threads; the queues of both
//!   are bounded, and what does not fit is refused as busy.
//! - [`Disk::stop`] ends all threads; what was acknowledged is on stable storage long before.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use engine::cluster::DiskUsage;
use engine::ids::DiskId;
use engine::store::ShardLoss;
use tokio::sync::{mpsc, oneshot};

use crate::config::ScrubConfig;
use crate::disk_core::{Core, DiskStatus, fenced_words};
use crate::extent::Extents;
use crate::files::is_out_of_space;
use crate::index::{IndexError, Row};
use crate::locks::locked;
use crate::logbook::{Logbook, Start};
use crate::reader::read_range;
use crate::record::{Owner, Place, ShardName};
use crate::recovery::{self, Task};
use crate::scan::ScanError;
use crate::scrub::{self, Checked, ScrubEnd, finish_deletion, report_damage};
use crate::space::Space;
use crate::superblock::{self, DiskLock, SuperblockError};
use crate::threads::{NotRun, Threads};
use crate::writer::{Authority, DeleteRefused, Offer, Put, PutOutcome, Work, Writer};

/// Changes that may wait for the writer.
const CHANGES_WAITING_MAX: usize = 256;

/// Threads that read one disk.
const READ_THREADS: usize = 4;

/// Reads that may wait for them.
const READS_WAITING_MAX: usize = 256;

/// One-shot scrubs that may wait for the one thread that does them.
const SCRUBS_WAITING_MAX: usize = 2;

/// How often a read looks again when its shard moved meanwhile.
const READ_ATTEMPTS_MAX: usize = 3;

/// What a disk is opened with.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Its directory.
    pub path: PathBuf,
    /// Whose it is, as its superblock says.
    pub owner: Owner,
    /// Kept free; when absent 2%, within bounds.
    pub reserve_bytes: Option<u64>,
    /// The background scrub.
    pub scrub: ScrubConfig,
    /// The node's own directory, where it is noted that the disk is fenced, if the disk itself takes no more writes.
    pub data_dir: Option<PathBuf>,
    /// More places than this that cannot be read make the disk suspect: it serves nothing more.
    pub unreadable_places_max: u64,
}

/// Why a disk was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process serves it.
    #[error(transparent)]
    Lock(#[from] SuperblockError),
    /// Its extents cannot be read, or its index cannot be made.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The index failed as soon as it was opened.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The directory or a thread cannot be made.
    #[error("cannot open the disk: {0}")]
    Io(#[from] std::io::Error),
    /// A write or a sync failed, now or at an earlier start.
    #[error("{}", fenced_words(reason, path))]
    Fenced {
        /// What happened.
        reason: String,
        /// The disk's directory.
        path: PathBuf,
    },
}

/// Why a disk did not answer a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// Too much waits for this disk: come back later.
    #[error("busy: {0}")]
    Busy(String),
    /// The disk is out of service, or the node stops.
    #[error("{0}")]
    Refused(String),
    /// The caller knows less of the cluster than the disk does: fetch the cluster map.
    #[error("{0}")]
    Stale(String),
}

impl From<DeleteRefused> for DiskError {
    fn from(refused: DeleteRefused) -> Self {
        match refused {
            DeleteRefused::Stale(reason) => Self::Stale(reason),
            DeleteRefused::Disk(reason) => Self::Refused(reason),
        }
    }
}

/// What became of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Verified bytes.
    Bytes(Bytes),
    /// Not there, damaged or unreadable: rebuild it from the others.
    Lost(ShardLoss, String),
    /// The disk is out of service.
    Refused(String),
}

impl From<NotRun> for DiskError {
    fn from(error: NotRun) -> Self {
        match error {
            NotRun::Busy => Self::Busy(error.to_string()),
            NotRun::Stopping => Self::Refused(error.to_string()),
        }
    }
}

/// What the cluster knows of a disk's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The disk holds all that it is known to have acknowledged.
    Confirmed,
    /// It holds less, for this reason.
    Behind(String),
    /// A write or a sync failed in an earlier start, and it has not been verified since.
    Fenced,
}

/// Lets go of what the writer has not taken when the caller of a put goes away.
struct GiveUp(Offer);

impl Drop for GiveUp {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

/// A disk that serves.
pub struct Disk {
    core: Arc<Core>,
    work: mpsc::Sender<Work>,
    reads: Threads,
    scrubs: Threads,
    stopping: Arc<AtomicBool>,
    /// Dropped to wake the background scrub.
    background_stop: Mutex<Option<std_mpsc::Sender<()>>>,
    background: Mutex<Option<JoinHandle<()>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    refreshing: Arc<AtomicBool>,
    _lock: DiskLock,
}

impl Disk {
    /// Locks a formatted disk, brings its index up to date and starts its threads. Blocks, and reads as much of the
    /// extents as the index lacks.
    ///
    /// # Errors
    /// If the disk is locked, or cannot be read or written.
    pub fn open(options: &DiskOptions) -> Result<Self, OpenError> {
        Self::open_locked(options, superblock::lock(&options.path)?)
    }

    /// As [`Self::open`], for who holds the lock already.
    pub(crate) fn open_locked(options: &DiskOptions, lock: DiskLock) -> Result<Self, OpenError> {
        let core = Arc::new(open_core(options)?);
        recovery::measure(&core)?;
        let (work, changes) = mpsc::channel(CHANGES_WAITING_MAX);
        core.set_writer(&work);
        let writer = Writer::new(Arc::clone(&core))?;
        core.refresh_usage();

        let stopping = Arc::new(AtomicBool::new(false));
        let writer = spawn("disk-write", move || writer.run(changes))?;
        let mut background = None;
        let (background_stop, stop) = std_mpsc::channel();
        if options.scrub.bytes_per_second > 0 {
            let (core, work, config) = (Arc::clone(&core), work.clone(), options.scrub.clone());
            let stopping = Arc::clone(&stopping);
            let body = move || scrub::scrub_for_ever(&core, &work, &config, &stopping, &stop);
            background = Some(spawn("disk-scrub", body)?);
        }
        Ok(Self {
            core,
            work,
            reads: Threads::start("disk-read", READ_THREADS, READS_WAITING_MAX)?,
            scrubs: Threads::start("disk-scrub-now", 1, SCRUBS_WAITING_MAX)?,
            stopping,
            background_stop: Mutex::new(Some(background_stop)),
            background: Mutex::new(background),
            writer: Mutex::new(Some(writer)),
            refreshing: Arc::default(),
            _lock: lock,
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> DiskId {
        self.core.extents.owner().disk
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> DiskStatus {
        self.core.status()
    }

    /// Its latest figures.
    #[must_use]
    pub fn usage(&self) -> DiskUsage {
        self.core.usage()
    }

    /// This start of the disk, as the cluster is to be told of it.
    #[must_use]
    pub fn start(&self) -> Start {
        self.core.start()
    }

    /// Whether a write or a sync has failed.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.core.is_fenced()
    }

    fn ask(&self, work: Work) -> Result<(), DiskError> {
        if let Some(reason) = self.core.refuses_reads() {
            return Err(DiskError::Refused(reason));
        }
        self.work.try_send(work).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotRun::Busy.into(),
            mpsc::error::TrySendError::Closed(_) => NotRun::Stopping.into(),
        })
    }

    /// Stores a shard. Dropping the future leaves it stored or not, and its bytes held no longer unless they are being
    /// written.
    ///
    /// # Errors
    /// If the disk is busy or the node stops.
    pub async fn put(&self, put: Put) -> Result<PutOutcome, DiskError> {
        if let Some(reason) = self.core.refuses_writes() {
            return Ok(PutOutcome::Refused(reason));
        }
        let (answer, answered) = oneshot::channel();
        let offer = Offer::new(put);
        let _given_up_when_dropped = GiveUp(offer.clone());
        self.ask(Work::Put { offer, answer })?;
        answered.await.map_err(|_dropped| NotRun::Stopping.into())
    }

    /// Reads `length` bytes of a shard from `offset`.
    ///
    /// # Errors
    /// If the disk is busy or the node stops.
    pub async fn read(&self, name: ShardName, offset: u32, length: u32) -> Result<ReadOutcome, DiskError> {
        let (core, work) = (Arc::clone(&self.core), self.work.clone());
        Ok(self.reads.run(move || read(&core, &work, name, offset, length)).await?)
    }

    /// Deletes shards, and says how many of them there were; none of them if `authority` is older than what the disk
    /// knows, or lacks one of their volumes. Dropping the future leaves them deleted or not.
    ///
    /// # Errors
    /// If the disk is busy or out of service, the caller's knowledge is old, or the node stops.
    pub async fn delete(&self, names: Vec<ShardName>, authority: Authority) -> Result<u64, DiskError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Work::Delete { names, authority, answer })?;
        Ok(answered.await.map_err(|_dropped| DiskError::from(NotRun::Stopping))??)
    }

    /// Up to `count_max` shards after `after`, by stripe and position.
    ///
    /// # Errors
    /// If the disk is busy or out of service, or the node stops.
    pub async fn list(
        &self,
        after: Option<ShardName>,
        count_max: usize,
    ) -> Result<Vec<(ShardName, Row)>, DiskError> {
        let core = Arc::clone(&self.core);
        let listed = self.reads.run(move || match core.refuses_reads() {
            Some(reason) => Err(reason),
            None => core.index.list(after, count_max).map_err(|error| {
                core.index_failed(&error);
                error.to_string()
            }),
        });
        listed.await?.map_err(DiskError::Refused)
    }

    /// Refuses older epochs and histories from now on. Told again with every heartbeat, so a full queue loses nothing.
    pub fn raise_authority(&self, authority: Authority) {
        if let Err(error) = self.ask(Work::RaiseAuthority(authority)) {
            tracing::debug!(disk = %self.id(), %error, "epochs wait for the next heartbeat");
        }
    }

    /// Takes what the cluster knows of this start. Told again with every heartbeat.
    pub fn hear(&self, verdict: Verdict) {
        match verdict {
            Verdict::Confirmed => {
                self.core.set_behind(None);
                if !self.core.confirmed.load(Ordering::Relaxed)
                    && let Err(error) = self.ask(Work::Confirm)
                {
                    tracing::debug!(disk = %self.id(), %error, "the confirmation waits for the next heartbeat");
                }
            }
            Verdict::Behind(reason) => self.core.set_behind(Some(reason)),
            // Noting it may block on the disk that errs: not on the caller's thread.
            Verdict::Fenced => {
                let reason = "a write failed in an earlier start, as the cluster remembers".to_owned();
                drop(self.ask(Work::Fence(reason)));
            }
        }
    }

    /// Verifies every record now; `each` is called for each on the disk's scrub thread, and ends the scrub by
    /// answering false.
    ///
    /// # Errors
    /// If other scrubs wait already, or the node stops.
    pub(crate) async fn scrub(
        &self,
        each: impl FnMut(Checked) -> bool + Send + 'static,
    ) -> Result<ScrubEnd, DiskError> {
        let (core, work, stopping) = (Arc::clone(&self.core), self.work.clone(), Arc::clone(&self.stopping));
        let job = move || scrub::scrub_disk(&core, &work, Place::default(), &stopping, each);
        Ok(self.scrubs.run(job).await?)
    }

    /// Takes the figures anew, unless that is under way: a disk that hangs must not hang its node.
    /// Dropping the future leaves it under way.
    pub async fn refresh_usage(&self) {
        if self.refreshing.swap(true, Ordering::Relaxed) {
            return;
        }
        let (core, refreshing) = (Arc::clone(&self.core), Arc::clone(&self.refreshing));
        // The job clears the flag, not this future, which may be dropped while a disk hangs.
        let job = move || {
            core.refresh_usage();
            refreshing.store(false, Ordering::Relaxed);
        };
        if let Err(error) = self.reads.run(job).await {
            self.refreshing.store(false, Ordering::Relaxed);
            tracing::debug!(disk = %self.id(), %error, "the disk's figures were not refreshed");
        }
    }

    /// Ends scrubs soon; everything else goes on.
    pub fn stop_scrubs(&self) {
        self.core.stopping.store(true, Ordering::Relaxed);
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Finishes what waits and ends the disk's threads. Blocks.
    pub fn stop(&self) {
        self.stop_scrubs();
        drop(locked(&self.background_stop).take());
        self.scrubs.stop();
        self.reads.stop();
        self.join(&self.background);
        // The writer goes last: all the others may still tell it of damage, and how far they are.
        if self.work.blocking_send(Work::Stop).is_err() {
            tracing::debug!(disk = %self.id(), "the disk's writer has ended already");
        }
        self.join(&self.writer);
    }

    /// Has the index write its rows to a table.
    #[cfg(test)]
    pub(crate) fn flush_index(&self) {
        self.core.index.flush();
    }

    fn join(&self, thread: &Mutex<Option<JoinHandle<()>>>) {
        let thread = locked(thread).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(disk = %self.id(), "a disk thread panicked");
        }
    }
}

/// Opens what the threads of a disk share, and writes the start down.
fn open_core(options: &DiskOptions) -> Result<Core, OpenError> {
    let disk = options.owner.disk;
    let logbook = Mutex::new(Logbook::load(&options.path, options.data_dir.as_deref(), disk)?);
    let fenced = |reason| OpenError::Fenced { reason, path: options.path.clone() };
    if let Some(reason) = locked(&logbook).fenced() {
        return Err(fenced(reason));
    }
    let fence = |error: &std::io::Error| {
        let reason = format!("a write failed: {error}");
        locked(&logbook).fence(&reason);
        fenced(reason)
    };
    let never = AtomicBool::new(false);
    let task =
        Task { verify_all: false, unreadable_places_max: options.unreadable_places_max, stopping: &never };
    let extents = Extents::open(&options.path, options.owner)?;
    let index = match recovery::open_index(&options.path, &extents, &logbook, task) {
        Err(ScanError::Write(error)) => return Err(fence(&error)),
        opened => opened?,
    };
    let sequence = index.totals()?.sequence;
    let begun = locked(&logbook).begin(sequence);
    match begun {
        Err(error) if is_out_of_space(&error) => {
            tracing::warn!(%disk, "no room to write the disk's start down: the cluster is not told of it");
        }
        Err(error) => return Err(fence(&error)),
        Ok(()) => {}
    }
    let space = Space::new(&options.path, options.reserve_bytes);
    Ok(Core::new(options.path.clone(), extents, index, space, logbook, options.unreadable_places_max))
}

/// What was found when a fenced disk was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Shards that it holds.
    pub shards: u64,
    /// Of these, how many are damaged or unreadable: they are to be rebuilt from others.
    pub damaged: u64,
}

/// Verifies every record of a disk from the medium, makes its index anew and lifts its fence. Blocks for as long as
/// the disk takes to be read.
///
/// # Errors
/// If the disk is served, cannot be read or written, or too much of it cannot be read: the fence stays.
pub fn unfence(options: &DiskOptions) -> Result<Verified, OpenError> {
    let _lock = superblock::lock(&options.path)?;
    let logbook = Mutex::new(Logbook::load(&options.path, options.data_dir.as_deref(), options.owner.disk)?);
    let extents = Extents::open(&options.path, options.owner)?;
    let never = AtomicBool::new(false);
    let task =
        Task { verify_all: true, unreadable_places_max: options.unreadable_places_max, stopping: &never };
    let index = recovery::open_index(&options.path, &extents, &logbook, task)?;
    let totals = index.totals()?;
    index.stop();
    locked(&logbook).lift_fence()?;
    Ok(Verified { shards: totals.shards, damaged: totals.damaged_found })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

/// Reads a range, on a thread of the disk. If the shard moves meanwhile, looks again.
fn read(core: &Core, work: &mpsc::Sender<Work>, name: ShardName, offset: u32, length: u32) -> ReadOutcome {
    if let Some(reason) = core.refuses_reads() {
        return ReadOutcome::Refused(reason);
    }
    let row_now = || {
        core.index.row(name).map_err(|error| {
            core.index_failed(&error);
            ReadOutcome::Refused(error.to_string())
        })
    };
    let mut row = match row_now() {
        Ok(row) => row,
        Err(outcome) => return outcome,
    };
    for _ in 0..READ_ATTEMPTS_MAX {
        let Some(found) = row else { break };
        if u64::from(offset) + u64::from(length) > u64::from(found.payload_length) {
            let reason = format!("the shard has only {} bytes", found.payload_length);
            return ReadOutcome::Lost(ShardLoss::Absent, reason);
        }
        let fault = match read_range(&core.extents, name, &found, offset, length) {
            Ok(bytes) => return ReadOutcome::Bytes(bytes),
            Err(fault) => fault,
        };
        row = match row_now() {
            Ok(row) => row,
            Err(outcome) => return outcome,
        };
        if row == Some(found) {
            let loss = fault.loss();
            match loss {
                ShardLoss::Absent => finish_deletion(work, name, found),
                ShardLoss::Damaged | ShardLoss::Unreadable => report_damage(work, name, found, loss),
            }
            return ReadOutcome::Lost(loss, fault.to_string());
        }
    }
    ReadOutcome::Lost(ShardLoss::Absent, "it is not stored on this disk".to_owned())
}

#[cfg(test)]
mod tests;
