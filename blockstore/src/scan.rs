//! Walking an extent: how the index is caught up after a crash, and rebuilt when it is gone.
//!
//! Invariants:
//! - Nothing is changed, least of all truncated: what cannot be read is stepped over, boundary by boundary.
//! - The end of an extent, as far back as one batch reaches, may be torn: a record there counts only if all of it
//!   verifies. Anywhere before it, a sound header counts, since what follows was synced after it.

use std::fs::File;

use rustix::fs::SeekFrom;

use crate::extent::{EXTENT_HEADER_BYTES, Extents, header_is_sound, read_up_to};
use crate::index::IndexError;
use crate::reader::{ReadFault, verify_file};
use crate::record::{
    BOUNDARY, BOUNDARY_BYTES, ExtentNumber, Head, HeadError, Place, decode_head, payload_start, record_bytes,
};
use crate::writer::BATCH_BYTES_MAX;

/// How much of an extent's end may be torn: one batch and the record that closed it.
const TAIL_BYTES: u64 = BATCH_BYTES_MAX + 32 * 1024 * 1024;

/// What a walk met beside the records it reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walk {
    /// Bytes before the tail that are no record: damage.
    pub(crate) unreadable: bool,
    /// Records, or what was left of them, at the torn end.
    pub(crate) torn: u64,
    /// Where the file ends.
    pub(crate) end: u64,
}

/// Why a scan ended early.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The disk cannot be read, or synced.
    #[error("scanning the extents: {0}")]
    Io(#[from] std::io::Error),
    /// What was found cannot be indexed.
    #[error("scanning the extents: {0}")]
    Index(#[from] IndexError),
}

/// Reports every head from `from` on, in order. `verify_all`: every record's payload is verified, and one that
/// fails is not reported.
pub(crate) fn walk_extent(
    extents: &Extents,
    extent: ExtentNumber,
    from: u64,
    verify_all: bool,
    mut report: impl FnMut(Place, Head) -> Result<(), IndexError>,
) -> Result<Walk, ScanError> {
    let file = extents.file(extent)?;
    let end = file.metadata()?.len();
    let tail = if verify_all { 0 } else { end.saturating_sub(TAIL_BYTES) };
    let mut boundary = [0; BOUNDARY];
    let mut walk = Walk { end, ..Walk::default() };

    let filled = read_up_to(&file, &mut boundary, 0)?;
    if !header_is_sound(extents.owner(), extent, &boundary[..filled]) {
        tracing::warn!(disk = %extents.owner().disk, %extent, "the extent's own header is damaged");
    }
    let mut offset = from.max(EXTENT_HEADER_BYTES).next_multiple_of(BOUNDARY_BYTES);
    while offset < end {
        let place = Place { extent, offset };
        let filled = read_up_to(&file, &mut boundary, offset)?;
        match decode_head(extents.owner(), place, &boundary[..filled]) {
            Ok(Head::Shard(header)) => {
                let whole = offset + payload_start(header.payload_length) + u64::from(header.payload_length);
                let checked = offset + record_bytes(header.payload_length) > tail;
                let sound = !checked
                    || match verify_file(extents.owner(), &file, place, header.name, header.payload_length) {
                        Ok(()) => true,
                        Err(ReadFault::Io(error)) => return Err(error.into()),
                        Err(ReadFault::Gone | ReadFault::Damaged(_)) => false,
                    };
                if sound {
                    report(place, Head::Shard(header))?;
                } else {
                    walk.torn += 1;
                }
                offset += if whole > end { BOUNDARY_BYTES } else { record_bytes(header.payload_length) };
            }
            Ok(head @ Head::Tombstone(header)) => {
                report(place, head)?;
                offset += record_bytes(header.payload_length);
            }
            Err(HeadError::Empty) => offset = next_data(&file, offset + BOUNDARY_BYTES, end)?,
            Err(_other) => {
                if offset < tail {
                    walk.unreadable = true;
                } else {
                    walk.torn += 1;
                }
                offset += BOUNDARY_BYTES;
            }
        }
    }
    Ok(walk)
}

/// The boundary at or before the next data from `offset` on; `end` if there is none.
fn next_data(file: &File, offset: u64, end: u64) -> std::io::Result<u64> {
    if offset >= end {
        return Ok(end);
    }
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok((data - data % BOUNDARY_BYTES).max(offset)),
        Err(rustix::io::Errno::NXIO) => Ok(end),
        // A file system that cannot tell holes from data: all of it is read.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(offset),
        Err(error) => Err(error.into()),
    }
}
