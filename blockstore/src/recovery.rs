//! From a disk's directory to an index that is right: opened and caught up, or rebuilt.
//!
//! Invariants:
//! - When this is done every shard that was ever acknowledged and not deleted is indexed, and everything indexed is
//!   on stable storage: an extent is synced, and read from the medium, before what is found in it is indexed.
//! - Of several records of one shard the one appended last counts, and a tombstone outweighs all that were appended
//!   before it. What is outweighed gets a tombstone of its own before the index forgets it, so that no later rebuild
//!   finds it alive.
//! - What the medium does not give back, or does not verify where it was durable, is indexed as unreadable or
//!   damaged, or counted where no record can be told; it never keeps the rest from being found.
//! - Interrupted at any moment, the next start goes on from the mark or begins again; the extents are not touched,
//!   but for tombstones, seals, and those in which nothing lives.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use engine::ids::{Epoch, VolumeId};

use crate::disk_core::Core;
use crate::extent::{Extents, Seal, sync};
use crate::files::is_out_of_space;
use crate::index::{ExtentFigures, Index, IndexBatch, IndexError, Row, Totals};
use crate::locks::locked;
use crate::logbook::Logbook;
use crate::record::{ExtentNumber, Head, Place, ShardName, Stamp, payload_start, record_bytes};
use crate::scan::{Condition, ScanError, Walk, WalkOptions, walk_extent};

/// Heads between two commits of a scan.
const HEADS_PER_COMMIT_MAX: usize = 4096;

/// Rows of an extent that are looked at together.
const PAGE_COUNT: usize = 1024;

/// What a scan is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task<'a> {
    /// The index is made anew, and every payload is verified.
    pub(crate) verify_all: bool,
    /// More places than this that cannot be read end it.
    pub(crate) unreadable_places_max: u64,
    /// Ends it when set.
    pub(crate) stopping: &'a AtomicBool,
}

/// Takes what a scan finds into the index.
struct Intake<'a> {
    index: &'a Index,
    extents: &'a Extents,
    unreadable_places_max: u64,
    totals: Totals,
    figures: BTreeMap<ExtentNumber, ExtentFigures>,
    epochs: BTreeMap<VolumeId, Epoch>,
    batch: IndexBatch,
    /// Rows of the batch, which the index does not show yet.
    pending: HashMap<ShardName, Option<Row>>,
    /// Records that others have outweighed: to be buried before the batch is committed.
    outweighed: Vec<(ShardName, Row)>,
    /// Shards found unreadable.
    unreadable: BTreeSet<ShardName>,
    heads: usize,
}

impl<'a> Intake<'a> {
    fn new(
        index: &'a Index,
        extents: &'a Extents,
        logbook: &Mutex<Logbook>,
        task: Task<'_>,
    ) -> Result<Self, IndexError> {
        let logbook = locked(logbook);
        let mut totals = index.totals()?;
        totals.sequence = totals.sequence.max(logbook.sequence_floor());
        let mut epochs = index.epochs()?;
        for (volume, epoch) in logbook.epochs() {
            let known = epochs.entry(volume).or_default();
            *known = epoch.max(*known);
        }
        let mut batch = IndexBatch::default();
        for (volume, epoch) in &epochs {
            batch.set_epoch(*volume, *epoch)?;
        }
        Ok(Self {
            index,
            extents,
            unreadable_places_max: task.unreadable_places_max,
            totals,
            figures: index.extents()?,
            epochs,
            batch,
            pending: HashMap::new(),
            outweighed: Vec::new(),
            unreadable: BTreeSet::new(),
            heads: 0,
        })
    }

    fn take(&mut self, place: Place, head: Head, condition: Condition) -> Result<(), ScanError> {
        let (Head::Shard(header) | Head::Tombstone(header)) = head;
        let name = header.name;
        let known = match self.pending.get(&name) {
            Some(row) => *row,
            None => self.index.row(name)?,
        };
        match (head, known) {
            (Head::Shard(_), Some(row)) if row.place == place => self.note(name, condition)?,
            (Head::Shard(_), Some(row)) if row.place > place => {
                self.outweighed.push((name, Row::new(place, &header)));
            }
            (Head::Shard(_), _older_or_none) => {
                if let Some(row) = known {
                    self.outweigh(name, row);
                }
                let row = Row::new(place, &header);
                self.batch.insert(name, &row)?;
                self.pending.insert(name, Some(row));
                self.totals.shards += 1;
                self.figures.entry(place.extent).or_default().shards += 1;
                self.note(name, condition)?;
                let volume = name.stripe.volume();
                let epoch = self.epochs.entry(volume).or_default();
                if header.epoch > *epoch {
                    *epoch = header.epoch;
                    self.batch.set_epoch(volume, header.epoch)?;
                }
            }
            (Head::Tombstone(_), Some(row)) if row.place == place => self.remove(name, &row),
            (Head::Tombstone(_), Some(row)) if row.place < place => self.outweigh(name, row),
            (Head::Tombstone(_), _later_or_none) => {}
        }
        let end = place.offset + record_bytes(header.payload_length);
        self.totals.mark = self.totals.mark.max(Place { offset: end, ..place });
        self.heads += 1;
        if self.heads.is_multiple_of(HEADS_PER_COMMIT_MAX) { self.commit(place.extent) } else { Ok(()) }
    }

    /// Notes how a record is that has just been indexed.
    fn note(&mut self, name: ShardName, condition: Condition) -> Result<(), ScanError> {
        if condition == Condition::Sound || self.index.is_damaged(name)? {
            return Ok(());
        }
        let unreadable = condition == Condition::Unreadable;
        self.batch.set_damaged(name, unreadable);
        self.totals.damaged_found += 1;
        if unreadable && self.unreadable.insert(name) {
            let places = self.unreadable.len() as u64;
            if places > self.unreadable_places_max {
                return Err(ScanError::Suspect { places });
            }
        }
        Ok(())
    }

    fn outweigh(&mut self, name: ShardName, row: Row) {
        self.remove(name, &row);
        self.outweighed.push((name, row));
    }

    fn remove(&mut self, name: ShardName, row: &Row) {
        self.batch.remove(name, row);
        self.pending.insert(name, None);
        self.totals.shards = self.totals.shards.saturating_sub(1);
        let figures = self.figures.entry(row.place.extent).or_default();
        figures.shards = figures.shards.saturating_sub(1);
    }

    /// Takes in what a walk met beside records.
    fn take_walk(&mut self, extent: ExtentNumber, walk: &Walk, rebuild: bool) {
        // The extent is listed even if nothing lives in it, so that it is known to have been scanned.
        let figures = self.figures.entry(extent).or_default();
        figures.unreadable |= walk.unreadable;
        figures.unreadable_places = figures.unreadable_places.max(walk.unreadable_places);
        figures.bytes = figures.bytes.max(walk.end);
        if rebuild {
            self.totals.damaged_found += walk.lost + u64::from(walk.truncated);
        }
        self.totals.sequence = self.totals.sequence.max(walk.sequence);
    }

    /// Puts tombstones over what was outweighed, and syncs them. A record that cannot be reached is as good as buried.
    fn bury(&mut self) -> Result<(), ScanError> {
        let mut files = BTreeMap::new();
        let stamp = Stamp { sequence: self.totals.sequence, durable_bytes: 0 };
        for (name, row) in std::mem::take(&mut self.outweighed) {
            let file = match self.extents.file(row.place.extent) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            if row.place.offset < file.metadata()?.len() {
                let tombstone = Head::Tombstone(row.header(name));
                self.extents
                    .write_tombstone(&file, row.place, stamp, &tombstone)
                    .map_err(ScanError::Write)?;
                files.insert(row.place.extent, file);
            }
        }
        files.values().try_for_each(|file| sync(file)).map_err(ScanError::Write)
    }

    fn commit(&mut self, scanned: ExtentNumber) -> Result<(), ScanError> {
        self.bury()?;
        let mut batch = std::mem::take(&mut self.batch);
        // A record may have replaced one in any earlier extent: all figures are few, so all are written.
        for (extent, figures) in &self.figures {
            batch.set_extent(*extent, Some(figures))?;
        }
        self.totals.extent_next = self.totals.extent_next.max(ExtentNumber(scanned.0.saturating_add(1)));
        batch.set_totals(&self.totals)?;
        self.index.commit(batch, false)?;
        self.pending.clear();
        Ok(())
    }

    /// Finds what an extent has lost that is shorter than the index knows, or gone: its shards are damaged.
    fn check_length(&mut self, extent: ExtentNumber) -> Result<(), ScanError> {
        let Some(figures) = self.figures.get_mut(&extent) else { return Ok(()) };
        let length = self.extents.file_bytes(extent)?.unwrap_or(0);
        if length >= figures.bytes {
            return Ok(());
        }
        tracing::error!(
            disk = %self.extents.owner().disk, %extent, bytes = length, known_bytes = figures.bytes,
            "an extent is shorter than it was"
        );
        figures.bytes = length;
        figures.unreadable = true;
        let mut after = Place { extent, offset: 0 };
        loop {
            let page = self.index.list_by_place(after, PAGE_COUNT)?;
            let Some((last, _)) = page.last() else { break };
            after = *last;
            for (place, name) in page {
                if place.extent != extent {
                    return self.commit(extent);
                }
                let row = self.index.row(name)?.filter(|row| row.place == place);
                let cut = row.is_some_and(|row| {
                    place.offset + payload_start(row.payload_length) + u64::from(row.payload_length) > length
                });
                if cut {
                    self.note(name, Condition::Damaged)?;
                }
            }
            self.commit(extent)?;
        }
        self.commit(extent)
    }
}

/// Opens the index of the disk and brings it up to the extents, or makes it anew from them.
pub(crate) fn open_index(
    disk_directory: &Path,
    extents: &Extents,
    logbook: &Mutex<Logbook>,
    task: Task<'_>,
) -> Result<Index, ScanError> {
    let disk = extents.owner().disk;
    let began = Instant::now();
    let opened = if task.verify_all { None } else { Index::open(disk_directory, disk) };
    let rebuild = opened.is_none();
    let index = match opened {
        Some(index) => index,
        None => Index::create(disk_directory, disk)?,
    };
    let mut intake = Intake::new(&index, extents, logbook, task)?;
    let known: Vec<ExtentNumber> = intake.figures.keys().copied().collect();
    for extent in known {
        intake.check_length(extent)?;
    }
    let scanned = scan(&mut intake, extents, rebuild, task)?;
    extents.sync_directory().map_err(ScanError::Write)?;
    remove_dead_extents(&mut intake, extents, logbook)?;
    let (shards, heads) = (intake.totals.shards, intake.heads);
    drop(intake);
    let elapsed_ms = began.elapsed().as_millis();
    if rebuild && scanned > 0 {
        tracing::info!(%disk, shards, elapsed_ms, "the index was rebuilt from the extents");
    } else {
        tracing::debug!(%disk, shards, heads, elapsed_ms, "the index was caught up");
    }
    Ok(index)
}

/// Scans what lies behind the index's mark, and seals it: nothing is appended there any more.
fn scan(
    intake: &mut Intake<'_>,
    extents: &Extents,
    rebuild: bool,
    task: Task<'_>,
) -> Result<usize, ScanError> {
    let disk = extents.owner().disk;
    let mark = intake.totals.mark;
    let options = WalkOptions {
        verify_all: !rebuild || task.verify_all,
        unreadable_places_max: task.unreadable_places_max,
        stopping: task.stopping,
    };
    let mut scanned = 0;
    for extent in extents.list()? {
        let behind = extent < mark.extent && intake.figures.contains_key(&extent);
        if behind {
            continue;
        }
        let from = if extent == mark.extent { mark.offset } else { 0 };
        let report = |place, head, condition| intake.take(place, head, condition);
        scanned += 1;
        let walk = match walk_extent(extents, extent, from, options, report) {
            // Its file cannot even be opened: a place that is not given back, as any other.
            Err(ScanError::Io(error)) => {
                tracing::error!(%disk, %extent, %error, "an extent cannot be read");
                let unreadable = Walk { unreadable: true, unreadable_places: 1, ..Walk::default() };
                intake.take_walk(extent, &unreadable, rebuild);
                continue;
            }
            walked => walked?,
        };
        intake.take_walk(extent, &walk, rebuild);
        intake.commit(extent)?;
        if walk.unreadable || walk.torn > 0 {
            tracing::warn!(
                %disk, %extent, walk.unreadable, walk.unreadable_places, walk.lost, walk.torn,
                "an extent has bytes that are no records"
            );
        }
        if !walk.sealed {
            let seal = Seal { end: walk.whole_end, sequence: intake.totals.sequence };
            let file = extents.file(extent)?;
            match extents.write_seal(&file, extent, seal) {
                Err(error) if is_out_of_space(&error) => tracing::warn!(%disk, %extent, "no room for a seal"),
                sealed => sealed.map_err(ScanError::Write)?,
            }
        }
    }
    Ok(scanned)
}

/// Removes extents in which nothing lives: those of a process that ended before it stored anything, and those whose
/// removal a crash cut short.
fn remove_dead_extents(
    intake: &mut Intake<'_>,
    extents: &Extents,
    logbook: &Mutex<Logbook>,
) -> Result<(), ScanError> {
    let dead: Vec<ExtentNumber> = intake
        .figures
        .iter()
        .filter(|(_, figures)| figures.shards == 0 && !figures.unreadable)
        .map(|(extent, _)| *extent)
        .collect();
    if dead.is_empty() {
        return Ok(());
    }
    // The count of records may stand in such an extent alone.
    let noted = locked(logbook).raise_floor(intake.totals.sequence);
    match noted {
        Err(error) if is_out_of_space(&error) => return Ok(()),
        raised => raised.map_err(ScanError::Write)?,
    }
    for extent in dead {
        intake.figures.remove(&extent);
        intake.batch.set_extent(extent, None)?;
        intake.commit(extent)?;
        extents.remove(extent)?;
    }
    Ok(())
}

/// Takes the first measure of what the disk's extents occupy.
pub(crate) fn measure(core: &Core) -> Result<(), ScanError> {
    for extent in core.extents.list()? {
        core.measure_extent(extent);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
