//! The writer of a disk: one thread that makes every change to its extents and its index.
//!
//! Group commit: the puts that wait are gathered and written one after the other, made durable by one fdatasync,
//! indexed in one batch, and then answered. What is on disk after a crash, step by step:
//!
//! 1. records written, not synced: perhaps torn ones at the end of the newest extent. None was acknowledged; a scan
//!    takes those that verify and syncs them before anything is served.
//! 2. synced (and the directory, for a new extent): all there. The scan from the index's mark finds them.
//! 3. indexed: nothing to do.
//!
//! A deletion: (1) a tombstone over the record's first 4 KiB, synced; (2) the row removed from the index, synced;
//! (3) a hole punched over the whole record. After a crash behind 1 the row leads to a tombstone, which reads as
//! "not there" and is finished then; behind 2 nothing leads there, and a scan finds a tombstone or a hole.
//!
//! A shard that is stored again because its record was damaged: the new record is synced first, then the old one is
//! deleted as above, and the row changes in the same index batch. After a crash in between a scan finds both, takes
//! the later one and buries the other.
//!
//! Once an extent is appended to no more it is sealed: see its header.
//!
//! Invariants:
//! - An answer "stored" is sent only after the sync that covers the record.
//! - A failed write (other than for want of space) or a failed sync fences the disk; it is never tried again.
//! - Nothing is refused by an epoch or a history before that is durable, and nothing is changed by older ones.
//! - After a write that ran out of space its extent is never appended to, so torn bytes lie only at the end of one.

mod admission;
mod authority;
mod deletion;
mod offer;
mod rebuild;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use engine::ids::{Epoch, VolumeId};
use tokio::sync::{mpsc, oneshot};

use crate::appender::Appender;
use crate::disk_core::Core;
use crate::extent::{EXTENT_BYTES_MAX, EXTENT_HEADER_BYTES, Seal, punch_hole};
use crate::files::is_out_of_space;
use crate::index::{ExtentFigures, IndexBatch, IndexError, Row, ScrubCursor, Totals};
use crate::locks::locked;
use crate::record::{
    BOUNDARY, ExtentNumber, Place, ShardHeader, ShardName, Stamp, encode_front, record_bytes,
};

use admission::Admission;
pub use authority::Authority;
pub(crate) use offer::Offer;

/// Most that one batch writes before its sync, unless a single record is larger.
pub(crate) const BATCH_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Most puts in one batch.
const BATCH_COUNT_MAX: usize = 256;

/// Volumes whose epochs a disk remembers.
const VOLUMES_MAX: usize = 1 << 20;

/// After so many bytes the index is synced with a batch, so that a scan after a power cut stays short.
const INDEX_UNSYNCED_BYTES_MAX: u64 = 256 * 1024 * 1024;

const ZEROS: [u8; BOUNDARY] = [0; BOUNDARY];

/// What became of a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// On stable storage, now or since an earlier put of the same shard.
    Stored,
    /// The volume's membership has changed.
    StaleEpoch(Epoch),
    /// The disk takes no writes.
    Refused(String),
    /// Another shard of that name is stored already.
    Conflict(String),
}

/// A shard to be stored, checked against its bounds and its CRC-32.
#[derive(Clone, Debug)]
pub struct Put {
    /// The cluster's history, as the writer knows it.
    pub history: u64,
    /// Its header.
    pub header: ShardHeader,
    /// Its bytes, as many as the header says.
    pub payload: Bytes,
}

/// What the writer is asked to do.
pub(crate) enum Work {
    Put {
        offer: Offer,
        answer: oneshot::Sender<PutOutcome>,
    },
    Delete {
        names: Vec<ShardName>,
        authority: Authority,
        answer: oneshot::Sender<Result<u64, DeleteRefused>>,
    },
    RaiseAuthority(Authority),
    /// The cluster has confirmed this start of the disk.
    Confirm,
    /// The cluster knows that the disk was fenced.
    Fence(String),
    /// A read found the record of this row damaged, or could not read it.
    MarkDamaged {
        name: ShardName,
        row: Row,
        unreadable: bool,
        answer: oneshot::Sender<()>,
    },
    /// A read found a tombstone where this row leads.
    Forget {
        name: ShardName,
        row: Row,
        answer: oneshot::Sender<()>,
    },
    SetScrubCursor(ScrubCursor),
    /// Nothing but to look whether the index has failed.
    Wake,
    Stop,
}

/// Why nothing was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeleteRefused {
    /// The caller knows less than the disk does.
    Stale(String),
    /// The disk is out of service.
    Disk(String),
}

/// The extent that is appended to.
struct Active {
    extent: ExtentNumber,
    appender: Appender,
    /// Where the next record goes, behind those that wait to be flushed.
    end: u64,
    /// What of it has been synced.
    durable_bytes: u64,
    named: bool,
}

/// A put that was written and waits for the sync.
struct Written {
    name: ShardName,
    volume: VolumeId,
    row: Row,
    replaced: Option<Row>,
    answer: oneshot::Sender<PutOutcome>,
}

type WaitingPut = (Put, oneshot::Sender<PutOutcome>);

pub(crate) struct Writer {
    core: Arc<Core>,
    totals: Totals,
    extents: BTreeMap<ExtentNumber, ExtentFigures>,
    epochs: BTreeMap<VolumeId, Epoch>,
    history: u64,
    active: Option<Active>,
    /// Where the last record was appended, in this process.
    last: Option<Place>,
    /// Shards whose records the medium does not give back.
    unreadable: BTreeSet<ShardName>,
    index_unsynced_bytes: u64,
}

impl Writer {
    /// A writer that goes on from what the index and the logbook say.
    pub(crate) fn new(core: Arc<Core>) -> Result<Self, IndexError> {
        let mut writer = Self {
            core,
            totals: Totals::default(),
            extents: BTreeMap::new(),
            epochs: BTreeMap::new(),
            history: 0,
            active: None,
            last: None,
            unreadable: BTreeSet::new(),
            index_unsynced_bytes: 0,
        };
        writer.load()?;
        Ok(writer)
    }

    /// Takes over what the index says, as of now.
    fn load(&mut self) -> Result<(), IndexError> {
        let index = &self.core.index;
        self.totals = index.totals()?;
        self.extents = index.extents()?;
        self.epochs = index.epochs()?;
        let count_max = usize::try_from(self.core.unreadable_places_max).unwrap_or(usize::MAX);
        self.unreadable = index.unreadable(count_max.saturating_add(1))?.into_iter().collect();
        {
            let logbook = locked(&self.core.logbook);
            self.history = logbook.history();
            self.totals.sequence = self.totals.sequence.max(logbook.sequence_floor());
            for (volume, epoch) in logbook.epochs() {
                let known = self.epochs.entry(volume).or_default();
                *known = epoch.max(*known);
            }
        }
        self.index_unsynced_bytes = 0;
        self.publish();
        self.suspect();
        Ok(())
    }

    /// Takes the disk out of service if too much of it cannot be read.
    fn suspect(&self) {
        let unplaced: u64 = self.extents.values().map(|figures| figures.unreadable_places).sum();
        let places = unplaced.saturating_add(self.unreadable.len() as u64);
        if places > self.core.unreadable_places_max {
            self.core.suspend(&format!(
                "suspect: {places} places cannot be read, more than the {} that are allowed; replace the disk",
                self.core.unreadable_places_max
            ));
        }
    }

    /// Works until told to stop, or until nobody can ask any more.
    pub(crate) fn run(mut self, mut work: mpsc::Receiver<Work>) {
        let mut next = work.blocking_recv();
        while let Some(item) = next.take() {
            if self.core.index_failed.swap(false, Ordering::AcqRel) {
                self.rebuild_index();
            }
            match item {
                Work::Put { offer, answer } => {
                    let mut bytes = 0;
                    let mut batch = Vec::new();
                    let mut take = |offer: &Offer, answer| {
                        if let Some(put) = offer.take() {
                            bytes += record_bytes(put.header.payload_length);
                            batch.push((put, answer));
                        }
                        batch.len() < BATCH_COUNT_MAX && bytes < BATCH_BYTES_MAX
                    };
                    let mut more = take(&offer, answer);
                    while more && next.is_none() {
                        match work.try_recv() {
                            Ok(Work::Put { offer, answer }) => more = take(&offer, answer),
                            Ok(other) => next = Some(other),
                            Err(_empty) => break,
                        }
                    }
                    self.put_all(batch);
                }
                Work::Stop => break,
                other => self.do_other(other),
            }
            if self.core.index_failed.load(Ordering::Acquire) && next.is_none() {
                next = Some(Work::Wake);
            }
            if next.is_none() {
                next = work.blocking_recv();
            }
        }
        if let Err(reason) = self.seal_active() {
            tracing::warn!(disk = %self.core.extents.owner().disk, reason, "the newest extent was not sealed");
        }
        self.core.index.stop();
    }

    /// Everything that is not a put.
    fn do_other(&mut self, work: Work) {
        match work {
            Work::Delete { names, authority, answer } => {
                let deleted = self.delete(&names, &authority);
                drop(answer.send(deleted));
            }
            Work::RaiseAuthority(authority) => drop(self.raise_authority(&authority)),
            Work::Confirm => self.confirm(),
            Work::Fence(reason) => self.core.fence(&reason),
            Work::MarkDamaged { name, row, unreadable, answer } => {
                self.mark_damaged(name, &row, unreadable);
                if answer.send(()).is_err() {
                    tracing::debug!("nobody waits for the count any more");
                }
            }
            Work::Forget { name, row, answer } => {
                self.forget(name, &row);
                if answer.send(()).is_err() {
                    tracing::debug!("nobody waits for the deletion any more");
                }
            }
            Work::SetScrubCursor(cursor) => self.set_scrub_cursor(&cursor),
            Work::Put { .. } | Work::Wake | Work::Stop => {}
        }
    }

    fn publish(&self) {
        self.core.shards.store(self.totals.shards, Ordering::Relaxed);
        self.core.damaged_found.store(self.totals.damaged_found, Ordering::Relaxed);
        // What was appended and could not be synced was never acknowledged: it is not told to anybody.
        if !self.core.is_fenced() {
            self.core.sequence.store(self.totals.sequence, Ordering::Relaxed);
        }
    }

    /// Commits a batch with the totals; a failure fences the disk and is given in words.
    fn commit(&mut self, batch: Result<IndexBatch, IndexError>, synced: bool) -> Result<(), String> {
        let committed = batch.and_then(|mut batch| {
            batch.set_totals(&self.totals)?;
            self.core.index.commit(batch, synced)
        });
        if let Err(error) = committed {
            self.core.index_failed(&error);
            return Err(error.to_string());
        }
        if synced {
            self.index_unsynced_bytes = 0;
        }
        self.publish();
        Ok(())
    }

    /// Stores puts. Of several for one shard, the later ones see what became of the first.
    fn put_all(&mut self, mut waiting: Vec<WaitingPut>) {
        while !waiting.is_empty() {
            let mut names = BTreeSet::new();
            let (now, later): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|(put, _)| names.insert(put.header.name));
            self.put_group(now);
            waiting = later;
        }
    }

    fn put_group(&mut self, puts: Vec<WaitingPut>) {
        let mut admitted = Vec::new();
        for (put, answer) in puts {
            match self.admit(&put) {
                Admission::Write { replaced } => admitted.push((put, replaced, answer)),
                Admission::Answer(outcome) => drop(answer.send(outcome)),
            }
        }
        if admitted.is_empty() {
            return;
        }
        let bytes = admitted.iter().map(|(put, ..)| record_bytes(put.header.payload_length)).sum();
        if let Err(reason) = self.prepare(bytes) {
            for (_, _, answer) in admitted {
                drop(answer.send(PutOutcome::Refused(reason.clone())));
            }
            return;
        }
        let sequence = self.totals.sequence;
        let mut written = Vec::new();
        let mut failed: Option<String> = None;
        for (put, replaced, answer) in admitted {
            if failed.is_none() {
                failed = self.append(&put).err();
            }
            match &failed {
                Some(reason) => drop(answer.send(PutOutcome::Refused(reason.clone()))),
                None => written.push(self.written(&put, replaced, answer)),
            }
        }
        failed = failed.or_else(|| self.flush().err());
        if let Some(reason) = &failed {
            for put in self.cut_off(&mut written) {
                drop(put.answer.send(PutOutcome::Refused(reason.clone())));
            }
            // The cluster is told of no record that no scan could find.
            self.totals.sequence = sequence + written.len() as u64;
        }
        if let Some(last) = written.last() {
            self.last = Some(last.row.place);
        }
        let outcome = match self.make_durable(&written, bytes) {
            Ok(()) => PutOutcome::Stored,
            Err(reason) => PutOutcome::Refused(reason),
        };
        for put in written {
            drop(put.answer.send(outcome.clone()));
        }
        if failed.is_some() {
            // Whatever the failed write left lies at the end of that extent, for ever.
            if let Err(reason) = self.seal_active() {
                tracing::warn!(disk = %self.core.extents.owner().disk, reason, "an extent was not sealed");
            }
        }
    }

    /// Sees to it that there is space, and an extent that takes `bytes` more.
    fn prepare(&mut self, bytes: u64) -> Result<(), String> {
        let sample = self.core.space.sample().map_err(|error| {
            self.core.suspend(&format!("cannot ask the file system for its space: {error}"));
            error.to_string()
        })?;
        if !self.core.admits(&sample, bytes) {
            return Err(format!("full: {} bytes free less the reserve", sample.usable_bytes()));
        }
        let fits = |active: &Active| {
            active.end == EXTENT_HEADER_BYTES || active.end.saturating_add(bytes) <= EXTENT_BYTES_MAX
        };
        if self.active.as_ref().is_some_and(fits) {
            return Ok(());
        }
        self.seal_active()?;
        let extent = self.totals.extent_next;
        let Some(following) = extent.0.checked_add(1) else {
            return Err("the disk has used up its extent numbers".to_owned());
        };
        self.totals.extent_next = ExtentNumber(following);
        let appender = self.core.extents.create(extent).map_err(|error| self.write_failed(&error))?;
        // From now on the newest extent is the one whose growth is watched.
        self.core.measure_extent(extent);
        let end = EXTENT_HEADER_BYTES;
        self.active = Some(Active { extent, appender, end, durable_bytes: end, named: false });
        Ok(())
    }

    /// Appends no more to the extent that is appended to, and says so in it. The extent is given up either way.
    fn seal_active(&mut self) -> Result<(), String> {
        let Some(active) = self.active.take() else { return Ok(()) };
        self.core.measure_extent(active.extent);
        if self.core.is_fenced() || active.durable_bytes == EXTENT_HEADER_BYTES {
            return Ok(());
        }
        let seal = Seal { end: active.durable_bytes, sequence: self.totals.sequence };
        self.core
            .extents
            .write_seal(active.appender.file(), active.extent, seal)
            .map_err(|error| self.write_failed(&error))
    }

    fn write_failed(&self, error: &io::Error) -> String {
        if is_out_of_space(error) {
            tracing::warn!(disk = %self.core.extents.owner().disk, %error, "a write found no space");
        } else {
            self.core.fence(&format!("a write failed: {error}"));
        }
        format!("a write failed: {error}")
    }

    /// Takes one record behind the last, to be flushed.
    fn append(&mut self, put: &Put) -> Result<(), String> {
        let Some(active) = &mut self.active else { return Err("no extent to write to".to_owned()) };
        let place = Place { extent: active.extent, offset: active.end };
        self.totals.sequence += 1;
        let stamp = Stamp { sequence: self.totals.sequence, durable_bytes: active.durable_bytes };
        let front = encode_front(self.core.extents.owner(), place, stamp, &put.header, &put.payload);
        let bytes = record_bytes(put.header.payload_length);
        let padding = bytes - front.len() as u64 - u64::from(put.header.payload_length);
        let padding = &ZEROS[..usize::try_from(padding).unwrap_or(0)];
        active.end += bytes;
        let pushed = active.appender.push(&[&front, &put.payload, padding]);
        pushed.map_err(|error| self.write_failed(&error))
    }

    /// Writes the records that were taken.
    fn flush(&mut self) -> Result<(), String> {
        let Some(active) = &mut self.active else { return Err("no extent to write to".to_owned()) };
        active.appender.flush().map_err(|error| self.write_failed(&error))
    }

    /// After a failed write: takes those out of `taken` whose records are not all there, and gives their space back.
    fn cut_off(&mut self, taken: &mut Vec<Written>) -> Vec<Written> {
        let Some(active) = &mut self.active else { return std::mem::take(taken) };
        let end_of = |put: &Written| put.row.place.offset + record_bytes(put.row.payload_length);
        let whole = taken.partition_point(|put| end_of(put) <= active.appender.written());
        let cut = taken.split_off(whole);
        let end = taken.last().map_or(active.durable_bytes, end_of);
        if !self.core.is_fenced() && active.end > end {
            // What the failed write left behind: if it cannot be given back it stays as dead space.
            drop(punch_hole(active.appender.file(), end, active.end - end));
        }
        active.end = end;
        cut
    }

    fn written(&self, put: &Put, replaced: Option<Row>, answer: oneshot::Sender<PutOutcome>) -> Written {
        let header = &put.header;
        let (extent, end) =
            self.active.as_ref().map_or_else(Default::default, |active| (active.extent, active.end));
        let place = Place { extent, offset: end - record_bytes(header.payload_length) };
        let row = Row::new(place, header);
        Written { name: header.name, volume: header.name.stripe.volume(), row, replaced, answer }
    }

    /// Syncs what was written and indexes it.
    fn make_durable(&mut self, written: &[Written], bytes: u64) -> Result<(), String> {
        let Some(active) = &mut self.active else { return Err("no extent to write to".to_owned()) };
        if written.is_empty() {
            return Ok(());
        }
        let synced = active
            .appender
            .sync()
            .and_then(|()| if active.named { Ok(()) } else { self.core.extents.sync_directory() });
        if let Err(error) = synced {
            self.core.fence(&format!("a sync failed: {error}"));
            return Err(format!("a sync failed: {error}"));
        }
        active.named = true;
        active.durable_bytes = active.end;
        self.totals.mark = Place { extent: active.extent, offset: active.end };
        let extent = active.extent;
        let replaced: Vec<(ShardName, Row)> =
            written.iter().filter_map(|put| put.replaced.map(|row| (put.name, row))).collect();
        self.bury(&replaced)?;
        self.index_unsynced_bytes = self.index_unsynced_bytes.saturating_add(bytes);
        let batch = self.index_batch(extent, written, &replaced);
        let sync = !replaced.is_empty() || self.index_unsynced_bytes > INDEX_UNSYNCED_BYTES_MAX;
        self.commit(batch, sync)?;
        self.give_back(&replaced);
        Ok(())
    }

    fn index_batch(
        &mut self,
        extent: ExtentNumber,
        written: &[Written],
        replaced: &[(ShardName, Row)],
    ) -> Result<IndexBatch, IndexError> {
        let mut batch = IndexBatch::default();
        self.remove_rows(&mut batch, replaced)?;
        for put in written {
            batch.insert(put.name, &put.row)?;
            let known = self.epochs.entry(put.volume).or_default();
            if put.row.epoch > *known {
                *known = put.row.epoch;
                batch.set_epoch(put.volume, put.row.epoch)?;
            }
        }
        let figures = self.extents.entry(extent).or_default();
        figures.shards += written.len() as u64;
        figures.bytes = self.totals.mark.offset;
        batch.set_extent(extent, Some(figures))?;
        self.totals.shards += written.len() as u64;
        Ok(batch)
    }

    /// Counts a damaged or unreadable shard, once.
    fn mark_damaged(&mut self, name: ShardName, row: &Row, unreadable: bool) {
        let known = self.core.index.row(name).and_then(|now| Ok((now, self.core.index.is_damaged(name)?)));
        match known {
            Ok((Some(now), false)) if now == *row => {
                let mut batch = IndexBatch::default();
                batch.set_damaged(name, unreadable);
                self.totals.damaged_found += 1;
                drop(self.commit(Ok(batch), false));
                tracing::warn!(
                    disk = %self.core.extents.owner().disk, stripe = %name.stripe, position = %name.position,
                    extent = %row.place.extent, offset_bytes = row.place.offset, unreadable,
                    "a damaged shard was found"
                );
                if unreadable && self.unreadable.insert(name) {
                    self.suspect();
                }
            }
            Ok(_known_or_gone) => {}
            Err(error) => self.core.index_failed(&error),
        }
    }

    fn set_scrub_cursor(&mut self, cursor: &ScrubCursor) {
        let mut batch = IndexBatch::default();
        let batch = batch.set_scrub_cursor(cursor).map(|()| batch);
        drop(self.commit(batch, false));
    }
}
