//! From a disk's directory to an index that is right: opened and caught up, or rebuilt.
//!
//! Invariants:
//! - When this is done every shard that was ever acknowledged and not deleted is indexed, and everything indexed is
//!   on stable storage: what a scan found is synced before anybody is told it is stored.
//! - Interrupted at any moment, the next start goes on from the mark or begins again; the extents are not touched,
//!   but for those in which nothing lives.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use engine::ids::{Epoch, VolumeId};

use crate::disk_core::Core;
use crate::extent::Extents;
use crate::index::{ExtentFigures, Index, IndexBatch, IndexError, Row, Totals};
use crate::record::{ExtentNumber, Head, Place, ShardName, record_bytes};
use crate::scan::{ScanError, walk_extent};

/// Heads between two commits of a scan.
const HEADS_PER_COMMIT_MAX: usize = 4096;

/// Takes what a scan finds into the index.
struct Intake<'a> {
    index: &'a Index,
    totals: Totals,
    extents: BTreeMap<ExtentNumber, ExtentFigures>,
    epochs: BTreeMap<VolumeId, Epoch>,
    batch: IndexBatch,
    /// Rows of the batch, which the index does not show yet.
    pending: HashMap<ShardName, Option<Row>>,
    heads: usize,
}

impl<'a> Intake<'a> {
    fn new(index: &'a Index) -> Result<Self, IndexError> {
        Ok(Self {
            index,
            totals: index.totals()?,
            extents: index.extents()?,
            epochs: index.epochs()?,
            batch: IndexBatch::default(),
            pending: HashMap::new(),
            heads: 0,
        })
    }

    fn take(&mut self, place: Place, head: Head) -> Result<(), IndexError> {
        let (Head::Shard(header) | Head::Tombstone(header)) = head;
        let name = header.name;
        let known = match self.pending.get(&name) {
            Some(row) => *row,
            None => self.index.row(name)?,
        };
        match (head, known) {
            (Head::Shard(_), Some(row)) if row.place >= place => {}
            (Head::Shard(_), _older_or_none) => {
                if let Some(row) = known {
                    self.remove(name, &row);
                }
                let row = Row::new(place, &header);
                self.batch.insert(name, &row)?;
                self.pending.insert(name, Some(row));
                self.totals.shards += 1;
                self.extents.entry(place.extent).or_default().shards += 1;
                let volume = name.stripe.volume();
                let epoch = self.epochs.entry(volume).or_default();
                if header.epoch > *epoch {
                    *epoch = header.epoch;
                    self.batch.set_epoch(volume, header.epoch)?;
                }
            }
            (Head::Tombstone(_), Some(row)) if row.place == place => self.remove(name, &row),
            (Head::Tombstone(_), _elsewhere_or_none) => {}
        }
        let end = place.offset + record_bytes(header.payload_length);
        self.totals.mark = self.totals.mark.max(Place { offset: end, ..place });
        self.heads += 1;
        if self.heads.is_multiple_of(HEADS_PER_COMMIT_MAX) { self.commit(place.extent) } else { Ok(()) }
    }

    fn remove(&mut self, name: ShardName, row: &Row) {
        self.batch.remove(name, row);
        self.pending.insert(name, None);
        self.totals.shards = self.totals.shards.saturating_sub(1);
        let figures = self.extents.entry(row.place.extent).or_default();
        figures.shards = figures.shards.saturating_sub(1);
    }

    fn commit(&mut self, scanned: ExtentNumber) -> Result<(), IndexError> {
        let mut batch = std::mem::take(&mut self.batch);
        // A record may have replaced one in any earlier extent: all figures are few, so all are written.
        for (extent, figures) in &self.extents {
            batch.set_extent(*extent, Some(figures))?;
        }
        self.totals.extent_next = self.totals.extent_next.max(ExtentNumber(scanned.0.saturating_add(1)));
        batch.set_totals(&self.totals)?;
        self.index.commit(batch, false)?;
        self.pending.clear();
        Ok(())
    }
}

/// Opens the index of the disk and brings it up to the extents, or makes it anew from them.
pub(crate) fn open_index(disk_directory: &std::path::Path, extents: &Extents) -> Result<Index, ScanError> {
    let disk = extents.owner().disk;
    let began = Instant::now();
    let opened = Index::open(disk_directory, disk);
    let rebuild = opened.is_none();
    let index = match opened {
        Some(index) => index,
        None => Index::create(disk_directory, disk)?,
    };
    let mut intake = Intake::new(&index)?;
    let mark = intake.totals.mark;
    let mut scanned = Vec::new();
    for extent in extents.list()? {
        let behind = extent < mark.extent && intake.extents.contains_key(&extent);
        if behind {
            continue;
        }
        let from = if extent == mark.extent { mark.offset } else { 0 };
        let walk = walk_extent(extents, extent, from, !rebuild, |place, head| intake.take(place, head))?;
        // The extent is listed even if nothing lives in it, so that it is known to have been scanned.
        intake.extents.entry(extent).or_default().unreadable |= walk.unreadable;
        intake.commit(extent)?;
        if walk.unreadable || walk.torn > 0 {
            tracing::warn!(%disk, %extent, walk.unreadable, walk.torn, "an extent has bytes that are no records");
        }
        scanned.push(extent);
    }
    for extent in &scanned {
        extents.file(*extent)?.sync_data()?;
    }
    extents.sync_directory()?;
    remove_dead_extents(&mut intake, extents)?;
    let (shards, heads) = (intake.totals.shards, intake.heads);
    drop(intake);
    let elapsed_ms = began.elapsed().as_millis();
    if rebuild && !scanned.is_empty() {
        tracing::info!(%disk, shards, elapsed_ms, "the index was rebuilt from the extents");
    } else {
        tracing::debug!(%disk, shards, heads, elapsed_ms, "the index was caught up");
    }
    Ok(index)
}

/// Removes extents in which nothing lives: those of a process that ended before it stored anything, and those whose
/// removal a crash cut short.
fn remove_dead_extents(intake: &mut Intake<'_>, extents: &Extents) -> Result<(), ScanError> {
    let dead: Vec<ExtentNumber> = intake
        .extents
        .iter()
        .filter(|(_, figures)| figures.shards == 0 && !figures.unreadable)
        .map(|(extent, _)| *extent)
        .collect();
    for extent in dead {
        intake.extents.remove(&extent);
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
