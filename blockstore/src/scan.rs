//! Walking an extent: how the index is caught up after a crash, and rebuilt when it is gone.
//!
//! Invariants:
//! - Nothing is changed, least of all truncated: what cannot be read is stepped over, boundary by boundary, so a walk
//!   always ends.
//! - What a walk verifies it reads from the medium: the file is synced first, and what the page cache holds of it is
//!   dropped. A sync that fails ends the walk, and is not tried again.
//! - Up to its durable end (its seal, what its own records say, and all but one batch of its length) an extent is
//!   whole: a record that fails there is damaged. Behind that the end may be torn: a record counts only if all of it
//!   verifies, and what does not was never acknowledged.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, SeekFrom, fadvise};

use crate::extent::{EXTENT_HEADER_BYTES, Extents, decode_seal, header_is_sound, read_up_to, sync};
use crate::index::IndexError;
use crate::reader::{ReadFault, verify_file};
use crate::record::{
    BOUNDARY, BOUNDARY_BYTES, ExtentNumber, Head, HeadError, Owner, Place, ShardHeader, Stamp,
    decode_stamped_head, payload_start, record_bytes,
};
use crate::writer::BATCH_BYTES_MAX;

/// How much of an extent's end may be torn: one batch and the record that closed it.
const TAIL_BYTES: u64 = BATCH_BYTES_MAX + 32 * 1024 * 1024;

/// How a record is that a walk reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It verifies, or lies where everything is whole and is verified when it is read.
    Sound,
    /// Its head stands, its payload fails.
    Damaged,
    /// Its head stands, the medium does not give its payload back.
    Unreadable,
}

/// What a walk met beside the records it reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walk {
    /// Bytes before the durable end that are no record, or that the medium does not give back.
    pub(crate) unreadable: bool,
    /// Places that the medium does not give back and that no record could be told for.
    pub(crate) unreadable_places: u64,
    /// Records before the durable end whose heads are gone.
    pub(crate) lost: u64,
    /// Records, or what was left of them, at the torn end.
    pub(crate) torn: u64,
    /// Where the file ends.
    pub(crate) end: u64,
    /// Up to where everything is known to be whole and durable by now.
    pub(crate) whole_end: u64,
    /// The highest number of a record that was met.
    pub(crate) sequence: u64,
    /// Whether the extent has a seal.
    pub(crate) sealed: bool,
    /// Whether the file ends before its seal says.
    pub(crate) truncated: bool,
}

/// Why a scan ended early.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The disk cannot be read at all.
    #[error("scanning the extents: {0}")]
    Io(#[from] io::Error),
    /// A write or a sync failed: it is not tried again.
    #[error("scanning the extents: a write failed: {0}")]
    Write(io::Error),
    /// What was found cannot be indexed.
    #[error("scanning the extents: {0}")]
    Index(#[from] IndexError),
    /// Too much of the disk cannot be read.
    #[error("{places} places of the disk cannot be read")]
    Suspect {
        /// How many were met.
        places: u64,
    },
    /// The disk is being closed.
    #[error("scanning the extents was stopped")]
    Stopped,
}

/// How an extent is walked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WalkOptions<'a> {
    /// Every record's payload is verified, not only where the extent may be torn.
    pub(crate) verify_all: bool,
    /// More places than this that cannot be read end the walk.
    pub(crate) unreadable_places_max: u64,
    /// Ends the walk when set.
    pub(crate) stopping: &'a AtomicBool,
}

/// An extent under a walk.
struct Walker<'a, 'b> {
    owner: Owner,
    extent: ExtentNumber,
    file: &'a File,
    options: WalkOptions<'b>,
    durable_end: u64,
    walk: Walk,
    /// A run of bytes that are no record, until the next head.
    run: Option<Run>,
    last_sequence: u64,
}

/// Bytes that are no record.
#[derive(Clone, Copy)]
struct Run {
    start: u64,
    /// The number of the record before it; 0 if that is not known.
    after: u64,
    /// Whether boundaries of zeros were met in it: then deleted records may lie among those that are lost.
    holes: bool,
}

/// Syncs what an earlier process may have left unsynced, and forgets what the page cache holds: what is read from
/// now on comes from the medium.
fn settle(file: &File) -> Result<(), ScanError> {
    sync(file).map_err(ScanError::Write)?;
    if let Err(error) = fadvise(file, 0, None, Advice::DontNeed) {
        tracing::debug!(%error, "a file system takes no advice; its cached pages are verified");
    }
    Ok(())
}

/// Reports every head from `from` on, in order.
///
/// # Errors
/// See [`ScanError`]; that a place cannot be read is none, up to the options' bound.
pub(crate) fn walk_extent(
    extents: &Extents,
    extent: ExtentNumber,
    from: u64,
    options: WalkOptions<'_>,
    mut report: impl FnMut(Place, Head, Condition) -> Result<(), ScanError>,
) -> Result<Walk, ScanError> {
    let file = extents.file(extent)?;
    settle(&file)?;
    let end = file.metadata()?.len();
    let mut walker = Walker {
        owner: extents.owner(),
        extent,
        file: &file,
        options,
        durable_end: 0,
        walk: Walk { end, ..Walk::default() },
        run: None,
        last_sequence: 0,
    };
    let start = from.max(EXTENT_HEADER_BYTES).next_multiple_of(BOUNDARY_BYTES);
    walker.find_durable_end(start)?;
    walker.walk(start, &mut report)?;
    Ok(walker.walk)
}

impl Walker<'_, '_> {
    fn go_on(&self) -> Result<(), ScanError> {
        if self.options.stopping.load(Ordering::Relaxed) { Err(ScanError::Stopped) } else { Ok(()) }
    }

    /// Counts a place that cannot be read.
    fn unreadable_place(&mut self, offset: u64, error: &io::Error) -> Result<(), ScanError> {
        let places = self.walk.unreadable_places + 1;
        tracing::warn!(disk = %self.owner.disk, extent = %self.extent, offset_bytes = offset, %error, "a place cannot be read");
        self.walk.unreadable_places = places;
        self.walk.unreadable = true;
        if places > self.options.unreadable_places_max {
            return Err(ScanError::Suspect { places });
        }
        Ok(())
    }

    /// What the extent says of itself: its seal, and what its records say was durable when they were written.
    fn find_durable_end(&mut self, start: u64) -> Result<(), ScanError> {
        let end = self.walk.end;
        let mut boundary = [0; BOUNDARY];
        match read_up_to(self.file, &mut boundary, 0) {
            Ok(filled) => {
                if !header_is_sound(self.owner, self.extent, &boundary[..filled]) {
                    tracing::warn!(disk = %self.owner.disk, extent = %self.extent, "the extent's own header is damaged");
                }
                if let Some(seal) = decode_seal(self.owner, self.extent, &boundary[..filled]) {
                    self.walk.sealed = true;
                    self.walk.truncated = seal.end > end;
                    self.walk.sequence = seal.sequence;
                    self.durable_end = seal.end.min(end);
                }
            }
            Err(error) => self.unreadable_place(0, &error)?,
        }
        if !self.walk.sealed {
            self.durable_end = end.saturating_sub(TAIL_BYTES).max(start);
            self.look_for_stamps()?;
        }
        self.walk.whole_end = self.durable_end;
        Ok(())
    }

    /// Raises the durable end by the stamps in what may be torn.
    fn look_for_stamps(&mut self) -> Result<(), ScanError> {
        let mut boundary = [0; BOUNDARY];
        let mut offset = self.durable_end.next_multiple_of(BOUNDARY_BYTES);
        while offset < self.walk.end {
            self.go_on()?;
            let place = Place { extent: self.extent, offset };
            // A place that cannot be read is counted by the walk itself.
            let filled = read_up_to(self.file, &mut boundary, offset).unwrap_or(0);
            offset = match decode_stamped_head(self.owner, place, &boundary[..filled]) {
                Ok((Head::Shard(header), stamp)) => {
                    self.durable_end = self.durable_end.max(stamp.durable_bytes.min(self.walk.end));
                    self.behind(offset, &header)
                }
                Ok((Head::Tombstone(header), _)) => self.behind(offset, &header),
                Err(HeadError::Empty) => next_data(self.file, offset + BOUNDARY_BYTES, self.walk.end)?,
                Err(_other) => offset + BOUNDARY_BYTES,
            };
        }
        Ok(())
    }

    /// Where the next record begins, if the file holds all of this one.
    fn behind(&self, offset: u64, header: &ShardHeader) -> u64 {
        let whole = offset + payload_start(header.payload_length) + u64::from(header.payload_length);
        offset + if whole > self.walk.end { BOUNDARY_BYTES } else { record_bytes(header.payload_length) }
    }

    fn walk(
        &mut self,
        start: u64,
        report: &mut impl FnMut(Place, Head, Condition) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        let mut boundary = [0; BOUNDARY];
        let mut offset = start;
        while offset < self.walk.end {
            self.go_on()?;
            let place = Place { extent: self.extent, offset };
            let filled = match read_up_to(self.file, &mut boundary, offset) {
                Ok(filled) => filled,
                Err(error) => {
                    self.unreadable_place(offset, &error)?;
                    offset += BOUNDARY_BYTES;
                    continue;
                }
            };
            match decode_stamped_head(self.owner, place, &boundary[..filled]) {
                Ok((head @ Head::Shard(header), stamp)) => {
                    self.close_run(stamp.sequence);
                    self.last_sequence = stamp.sequence;
                    offset = self.behind(offset, &header);
                    if let Some(condition) = self.judge(place, &header, stamp) {
                        report(place, head, condition)?;
                    }
                }
                Ok((head @ Head::Tombstone(header), stamp)) => {
                    self.close_run(0);
                    self.last_sequence = 0;
                    self.walk.sequence = self.walk.sequence.max(stamp.sequence);
                    report(place, head, Condition::Sound)?;
                    offset += record_bytes(header.payload_length);
                }
                Err(HeadError::Empty) => {
                    if let Some(run) = &mut self.run {
                        run.holes = true;
                    }
                    self.last_sequence = 0;
                    offset = next_data(self.file, offset + BOUNDARY_BYTES, self.walk.end)?;
                }
                Err(_other) => {
                    let after = self.last_sequence;
                    self.run.get_or_insert(Run { start: offset, after, holes: false });
                    offset += BOUNDARY_BYTES;
                }
            }
        }
        self.close_run(0);
        Ok(())
    }

    /// Ends a run of bytes that are no record, before the record numbered `next` (0: not known).
    fn close_run(&mut self, next: u64) {
        let Some(run) = self.run.take() else { return };
        if run.start >= self.durable_end {
            self.walk.torn += 1;
            return;
        }
        let numbered = run.after > 0 && next > run.after && !run.holes;
        self.walk.lost += if numbered { (next - run.after - 1).max(1) } else { 1 };
        self.walk.unreadable = true;
    }

    /// How a record is whose head stands; `None` if it is torn.
    fn judge(&mut self, place: Place, header: &ShardHeader, stamp: Stamp) -> Option<Condition> {
        let end = place.offset + record_bytes(header.payload_length);
        let durable = place.offset < self.durable_end;
        let condition = if self.options.verify_all || end > self.durable_end {
            match verify_file(self.owner, self.file, place, header.name, header.payload_length) {
                Ok(()) => Condition::Sound,
                Err(ReadFault::Io(_)) => Condition::Unreadable,
                Err(ReadFault::Gone | ReadFault::Damaged(_)) => Condition::Damaged,
            }
        } else {
            Condition::Sound
        };
        if condition == Condition::Damaged && !durable {
            self.walk.torn += 1;
            return None;
        }
        self.walk.sequence = self.walk.sequence.max(stamp.sequence);
        if self.walk.torn == 0 {
            self.walk.whole_end = self.walk.whole_end.max(end.min(self.walk.end));
        }
        Some(condition)
    }
}

/// The boundary at or before the next data from `offset` on; `end` if there is none.
fn next_data(file: &File, offset: u64, end: u64) -> io::Result<u64> {
    if offset >= end {
        return Ok(end);
    }
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok((data - data % BOUNDARY_BYTES).max(offset)),
        Err(rustix::io::Errno::NXIO) => Ok(end),
        // A file system that cannot tell holes from data, or does not know: all of it is read.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::IO) => Ok(offset),
        Err(error) => Err(error.into()),
    }
}
