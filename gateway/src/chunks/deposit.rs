//! What becomes of a sealed stripe: chunks that are new are written and registered; those that are there already are
//! pinned, and answered as if they had been written (promise 6).
//!
//! A chunk that is there takes its place in the packer like any other, so it waits as they do, and shares its stripe's
//! end with those that are new. A stripe of which all is there waits as long as a write of its size just took, and is
//! then committed, as the registration of one that was written would be. When none was written, or writes fail now, it
//! is written itself, which tells how long that takes and whether it would be refused; its shards are deleted after the
//! answer.
//!
//! What is there after a crash between the steps: as in [`super::stripe`]; shards of a stripe that was written to be
//! deleted are garbage like those of one that was never registered.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::cluster::StripeRecord;
use engine::ids::{ChunkId, HolderId};
use engine::location::{ChunkLocation, LocatedChunk};
use engine::stripe::SealedStripe;
use futures_util::future::join;
use tokio::sync::oneshot;

use crate::chunks::latency::{WriteTime, WriteTimes};
use crate::chunks::presence::{Care, Presence, mark};
use crate::chunks::stripe::StripeSink;
use crate::failure::Failure;
use crate::meta::Meta;
use crate::random;
use crate::suspects::Suspects;

/// Tokio's timers go by the millisecond: the last part of a wait is slept on a thread.
const TIMER_COARSE: Duration = Duration::from_millis(2);

/// Where the shards of a stripe take this long, its chunks are pinned meanwhile and the whole time is waited for: a commit
/// after so long a pause takes longer than one behind a write. Where they take less, a commit might outlast the time.
const PINNED_WITHIN_MIN: Duration = Duration::from_millis(5);

/// More than a thread's sleep is ever late by itself, in microseconds: beyond that the machine is busy.
const LATE_US_MAX: u32 = 500;

/// A commit that took longer says nothing about the next one, in microseconds.
const COMMIT_US_MAX: u32 = 20_000;

/// Told when a chunk is durable and pinned, or why not.
pub(crate) type Done = oneshot::Sender<Result<(), Failure>>;

/// Who waits for a chunk of a stripe.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) holders: Vec<HolderId>,
    pub(crate) done: Vec<Done>,
    /// Where it is already; `None` if it is new.
    pub(crate) known: Option<ChunkLocation>,
}

/// Deposits stripes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Depositor {
    meta: Meta,
    suspects: Arc<Suspects>,
    sink: StripeSink,
    presence: Presence,
    times: Arc<Mutex<WriteTimes>>,
    /// How late waits end beyond what was asked for, in microseconds.
    late_us: Arc<AtomicU32>,
    /// How long a registration takes behind a write, and a pin behind a wait, in microseconds.
    register_us: Arc<AtomicU32>,
    pin_us: Arc<AtomicU32>,
}

/// Takes one more time into a mean of the last few.
fn learn(mean_us: &AtomicU32, took: Duration) {
    let took = u32::try_from(took.as_micros()).unwrap_or(COMMIT_US_MAX).min(COMMIT_US_MAX);
    let before = mean_us.load(Ordering::Relaxed);
    let mean = if before == 0 { took } else { (before * 15 + took) / 16 };
    mean_us.store(mean, Ordering::Relaxed);
}

type Results = HashMap<ChunkId, Result<(), Failure>>;

fn all(chunks: impl IntoIterator<Item = ChunkId>, result: &Result<(), Failure>) -> Results {
    chunks.into_iter().map(|chunk| (chunk, result.clone())).collect()
}

impl Depositor {
    pub(crate) fn new(meta: Meta, suspects: Arc<Suspects>, sink: StripeSink, presence: Presence) -> Self {
        let times = Arc::default();
        let (late_us, register_us, pin_us) = (Arc::default(), Arc::default(), Arc::default());
        Self { meta, suspects, sink, presence, times, late_us, register_us, pin_us }
    }

    fn times(&self) -> MutexGuard<'_, WriteTimes> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that differs where writes may be otherwise: which disks take writes, as the map and this gateway see
    /// it, and which volumes there are.
    fn cluster(&self) -> u64 {
        let map = self.meta.map();
        let mut hasher = DefaultHasher::new();
        map.revision.hash(&mut hasher);
        for disk in &map.disks {
            map.disk_health(disk.disk).writable().hash(&mut hasher);
            (self.suspects.write_state(disk.disk) as u8).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Makes a stripe's chunks durable and pins them, and tells those who wait.
    pub(crate) async fn deposit(&self, sealed: SealedStripe, mut waiting: HashMap<ChunkId, Waiting>) {
        let known: HashMap<ChunkId, ChunkLocation> = waiting
            .iter()
            .filter_map(|(chunk, waiting)| waiting.known.map(|location| (*chunk, location)))
            .collect();
        let holders: HashMap<ChunkId, Vec<HolderId>> = waiting
            .iter_mut()
            .map(|(chunk, waiting)| (*chunk, std::mem::take(&mut waiting.holders)))
            .collect();
        let mut written = None;
        let results = if known.is_empty() {
            let stored = self.store(&sealed, &holders).await;
            all(waiting.keys().copied(), &stored)
        } else if known.len() == sealed.chunks().len() {
            let (results, garbage) = self.acknowledge(&sealed, &known, &holders).await;
            written = garbage;
            results
        } else {
            self.store_mixed(&sealed, &known, &holders).await
        };
        for (chunk, waiting) in waiting {
            let failed = || Err(Failure::internal("deposit", &"a chunk was not reached"));
            let result = results.get(&chunk).cloned().unwrap_or_else(failed);
            for done in waiting.done {
                // A caller that has gone does not hear it.
                drop(done.send(result.clone()));
            }
        }
        if let Some(record) = written {
            self.sink.discard(&record).await;
        }
    }

    /// Writes and registers, and notes how long that took.
    async fn store(
        &self,
        sealed: &SealedStripe,
        holders: &HashMap<ChunkId, Vec<HolderId>>,
    ) -> Result<(), Failure> {
        let cluster = self.cluster();
        let stored = self.sink.store(sealed, holders).await;
        self.note(sealed, cluster, stored.as_ref().ok().copied());
        stored.map(|took| learn(&self.register_us, took.whole.saturating_sub(took.durable)))
    }

    /// Notes how long a stripe took; `None` if it did not get there.
    fn note(&self, sealed: &SealedStripe, cluster: u64, took: Option<WriteTime>) {
        let unchanged = self.cluster() == cluster;
        let mut times = self.times();
        match took {
            None => times.failed(),
            Some(took) if unchanged => times.wrote(Instant::now(), cluster, sealed.bytes().len(), took),
            Some(_) => {}
        }
    }

    /// Some are new: all of them share the end of the write of these, and its failure.
    async fn store_mixed(
        &self,
        sealed: &SealedStripe,
        known: &HashMap<ChunkId, ChunkLocation>,
        holders: &HashMap<ChunkId, Vec<HolderId>>,
    ) -> Results {
        let Some(fresh) = sealed.only(|chunk| !known.contains_key(&chunk)) else { return Results::new() };
        let (stored, pinned) = join(self.store(&fresh, holders), self.pin(known, holders)).await;
        let mut results = all(fresh.chunks().iter().map(|row| row.chunk), &stored);
        match stored {
            Ok(()) => results.extend(self.finish(sealed, known, holders, pinned).await),
            Err(_) => results.extend(all(known.keys().copied(), &stored)),
        }
        results
    }

    /// All are there: pins them, and answers as if they had been written. Gives also what was written, if anything, to
    /// be discarded after the answers.
    async fn acknowledge(
        &self,
        sealed: &SealedStripe,
        known: &HashMap<ChunkId, ChunkLocation>,
        holders: &HashMap<ChunkId, Vec<HolderId>>,
    ) -> (Results, Option<StripeRecord>) {
        let (began, cluster) = (Instant::now(), self.cluster());
        let random = u32::from_be_bytes(random::bytes());
        let took = self.times().draw(began, cluster, sealed.bytes().len(), random);
        let Some(took) = took else {
            return self.write_as_well(sealed, known, holders).await;
        };
        let pinned = if took.durable >= PINNED_WITHIN_MIN {
            let pin = async { self.pin_as_if_registered(self.unreadable(known).await, known, holders).await };
            join(pin, self.wait_until(began + took.whole)).await.0
        } else {
            let durable = began + self.before_pin(took.durable);
            let (unreadable, ()) = join(self.unreadable(known), self.wait_until(durable)).await;
            let waited = Instant::now();
            let pinned = self.pin_as_if_registered(unreadable, known, holders).await;
            learn(&self.pin_us, waited.elapsed());
            pinned
        };
        (self.finish(sealed, known, holders, pinned).await, None)
    }

    /// Writes what is there, to see how long that takes and whether it would be refused.
    async fn write_as_well(
        &self,
        sealed: &SealedStripe,
        known: &HashMap<ChunkId, ChunkLocation>,
        holders: &HashMap<ChunkId, Vec<HolderId>>,
    ) -> (Results, Option<StripeRecord>) {
        let (began, cluster) = (Instant::now(), self.cluster());
        let write = async {
            let written = self.sink.write_only(sealed).await;
            (written, began.elapsed())
        };
        let ((written, durable), unreadable) = join(write, self.unreadable(known)).await;
        let record = match written {
            Ok(record) => record,
            Err(failure) => {
                self.note(sealed, cluster, None);
                return (all(known.keys().copied(), &Err(failure)), None);
            }
        };
        let pinned = self.pin_as_if_registered(unreadable, known, holders).await;
        self.note(sealed, cluster, Some(WriteTime { durable, whole: began.elapsed() }));
        (self.finish(sealed, known, holders, pinned).await, Some(record))
    }

    /// Pins by as many commits, one after the other, as a registration takes.
    async fn pin_as_if_registered(
        &self,
        unreadable: Result<BTreeSet<ChunkId>, Failure>,
        known: &HashMap<ChunkId, ChunkLocation>,
        holders: &HashMap<ChunkId, Vec<HolderId>>,
    ) -> Result<HashSet<ChunkId>, Failure> {
        let unreadable = unreadable?;
        let registered = self.sink.as_if_registered().await;
        registered.map_err(|error| Failure::from_meta(&error, "chunks"))?;
        self.pin_all_but(&unreadable, known, holders).await
    }

    /// Stores for good what could not be pinned; gives the results of all that are known.
    async fn finish(
        &self,
        sealed: &SealedStripe,
        known: &HashMap<ChunkId, ChunkLocation>,
        holders: &HashMap<ChunkId, Vec<HolderId>>,
        pinned: Result<HashSet<ChunkId>, Failure>,
    ) -> Results {
        let pinned = match pinned {
            Ok(pinned) => pinned,
            Err(failure) => return all(known.keys().copied(), &Err(failure)),
        };
        let mut results = all(pinned.iter().copied(), &Ok(()));
        let gone = |chunk| known.contains_key(&chunk) && !pinned.contains(&chunk);
        if let Some(gone) = sealed.only(gone) {
            let stored = self.store(&gone, holders).await;
            results.extend(all(gone.chunks().iter().map(|row| row.chunk), &stored));
        }
        results
    }

    /// Those that cannot be read where they are, marked so that fresh bytes take their place.
    async fn unreadable(
        &self,
        known: &HashMap<ChunkId, ChunkLocation>,
    ) -> Result<BTreeSet<ChunkId>, Failure> {
        let located =
            known.iter().map(|(chunk, location)| LocatedChunk { chunk: *chunk, location: *location });
        let found = self.presence.look(&located.collect::<Vec<_>>(), Care::Usual).await;
        if !found.is_empty() {
            let places: Vec<_> = found.lost.iter().chain(&found.unavailable).copied().collect();
            mark(&self.meta, &places).await.map_err(|error| Failure::from_meta(&error, "chunks"))?;
        }
        Ok(found.chunks())
    }

    async fn pin(
        &self,
        known: &HashMap<ChunkId, ChunkLocation>,
        holders: &HashMap<ChunkId, Vec<HolderId>>,
    ) -> Result<HashSet<ChunkId>, Failure> {
        let unreadable = self.unreadable(known).await?;
        self.pin_all_but(&unreadable, known, holders).await
    }

    /// Pins those that can be read, each for all its holders; says which are pinned.
    async fn pin_all_but(
        &self,
        unreadable: &BTreeSet<ChunkId>,
        known: &HashMap<ChunkId, ChunkLocation>,
        holders: &HashMap<ChunkId, Vec<HolderId>>,
    ) -> Result<HashSet<ChunkId>, Failure> {
        let mut pinned: HashSet<ChunkId> =
            known.keys().copied().filter(|chunk| !unreadable.contains(chunk)).collect();
        let pins: Vec<(HolderId, ChunkId)> = pinned
            .iter()
            .flat_map(|chunk| holders.get(chunk).into_iter().flatten().map(|holder| (*holder, *chunk)))
            .collect();
        let there = self.meta.pin(&pins).await.map_err(|error| Failure::from_meta(&error, "chunks"))?;
        for ((_holder, chunk), there) in pins.iter().zip(there) {
            if !there {
                pinned.remove(chunk);
            }
        }
        Ok(pinned)
    }

    /// How long to wait before a pin, so that it ends when a registration would that follows a write of this duration: a
    /// commit behind a wait takes longer than one behind a write, or less, for it has fewer rows.
    fn before_pin(&self, durable: Duration) -> Duration {
        let mean = |mean_us: &AtomicU32| Duration::from_micros(mean_us.load(Ordering::Relaxed).into());
        let (register, pin) = (mean(&self.register_us), mean(&self.pin_us));
        if pin.is_zero() { durable } else { (durable + register).saturating_sub(pin) }
    }

    /// Waits until then as exactly as a thread can, and learns by how much it is late.
    async fn wait_until(&self, end: Instant) {
        let late = Duration::from_micros(self.late_us.load(Ordering::Relaxed).into());
        let target = end.checked_sub(late).unwrap_or(end);
        if let Some(coarse) = target.checked_sub(TIMER_COARSE) {
            tokio::time::sleep_until(coarse.into()).await;
        }
        let fine = tokio::task::spawn_blocking(move || {
            let left = target.saturating_duration_since(Instant::now());
            std::thread::sleep(left);
            !left.is_zero()
        });
        // It has nothing that could panic; without it the wait is a little short.
        if fine.await.unwrap_or(false) {
            let now_late = Instant::now().saturating_duration_since(target).as_micros();
            let now_late = u32::try_from(now_late).unwrap_or(LATE_US_MAX).min(LATE_US_MAX);
            let before = self.late_us.load(Ordering::Relaxed);
            self.late_us.store((before * 7 + now_late) / 8, Ordering::Relaxed);
        }
    }
}
