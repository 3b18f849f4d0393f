//! Reading shards: nothing leaves here that has not passed its checksums.
//!
//! Invariants:
//! - A range is returned only if every block it touches verifies against the checksums in the record's own front,
//!   and the front against the place where it was found.
//! - Buffers are at most one shard and its front, or [`PIECE_BYTES`] while verifying.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;

use bytes::Bytes;
use engine::store::ShardLoss;
use rustix::fs::{Advice, fadvise};

use crate::extent::{Extents, read_up_to, read_vec};
use crate::index::Row;
use crate::record::{
    BLOCK_BYTES, HEADER_BYTES, Head, HeadError, Owner, Place, ShardHeader, ShardName, block_count,
    block_crc32, decode_head, payload_start, record_bytes,
};

/// Bytes read at once while verifying a record.
pub(crate) const PIECE_BYTES: usize = 1024 * 1024;

/// A range that begins this early is read together with the record's front.
const TOGETHER_BYTES: u64 = 256 * 1024;

/// What is asked for from this size on is read past the page cache: smaller ranges find their neighbours there.
const DIRECT_BYTES_MIN: u32 = 128 * 1024;

/// Why a record does not give its shard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadFault {
    /// It was deleted: the index is about to forget it, or a crash kept it from doing so.
    #[error("deleted")]
    Gone,
    /// What is there is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// The medium does not give it back: this shard is lost, its neighbours are read on.
    #[error("read failed: {0}")]
    Io(#[from] io::Error),
}

impl ReadFault {
    /// How the shard is lost.
    pub(crate) fn loss(&self) -> ShardLoss {
        match self {
            Self::Gone => ShardLoss::Absent,
            Self::Damaged(_) => ShardLoss::Damaged,
            Self::Io(_) => ShardLoss::Unreadable,
        }
    }
}

impl From<HeadError> for ReadFault {
    fn from(error: HeadError) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// The checksums at the front of a record, behind its header.
struct Front {
    header: ShardHeader,
    checksums: Vec<u8>,
}

fn truncated() -> ReadFault {
    ReadFault::Damaged("the extent file ends before the record does".to_owned())
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Parses the front of a record of `payload_length` bytes out of its first bytes.
fn parse_front(
    owner: Owner,
    place: Place,
    name: ShardName,
    length: u32,
    bytes: &[u8],
) -> Result<Front, ReadFault> {
    let header = match decode_head(owner, place, bytes) {
        Ok(Head::Shard(header)) => header,
        Ok(Head::Tombstone(_)) => return Err(ReadFault::Gone),
        Err(HeadError::NoRecord) if bytes.len() < HEADER_BYTES => {
            return Err(truncated());
        }
        Err(error) => return Err(error.into()),
    };
    if header.name != name || header.payload_length != length {
        return Err(ReadFault::Damaged("another shard lies in its place".to_owned()));
    }
    let start = size(payload_start(length));
    let checksums = bytes.get(HEADER_BYTES..start).ok_or_else(truncated)?.to_vec();
    Ok(Front { header, checksums })
}

impl Front {
    /// Verifies whole blocks, of which the first is `first`; the last may be the shard's short one.
    fn verify(&self, owner: Owner, place: Place, first: u32, bytes: &[u8]) -> Result<(), ReadFault> {
        for (number, block) in (first..).zip(bytes.chunks(BLOCK_BYTES as usize)) {
            let at = number as usize * 4;
            let expected = self.checksums.get(at..at + 4).ok_or_else(truncated)?;
            if block_crc32(owner, place, self.header.name, number, block).to_le_bytes() != expected {
                return Err(ReadFault::Damaged(format!("block {number} fails its checksum")));
            }
        }
        Ok(())
    }
}

fn open(extents: &Extents, place: Place) -> Result<std::sync::Arc<File>, ReadFault> {
    extents.file(place.extent).map_err(|error| fault(place, error))
}

fn fault(place: Place, error: io::Error) -> ReadFault {
    if error.kind() == io::ErrorKind::NotFound {
        ReadFault::Damaged(format!("extent {} is missing", place.extent))
    } else {
        ReadFault::Io(error)
    }
}

/// Reads `length` bytes of the shard from `offset`. The caller has checked that they lie within it.
pub(crate) fn read_range(
    extents: &Extents,
    name: ShardName,
    row: &Row,
    offset: u32,
    length: u32,
) -> Result<Bytes, ReadFault> {
    let (owner, place) = (extents.owner(), row.place);
    let start = payload_start(row.payload_length);
    let first = offset / BLOCK_BYTES;
    let blocks_begin = u64::from(first * BLOCK_BYTES);
    let end = u64::from(offset) + u64::from(length);
    let blocks_end = end.next_multiple_of(u64::from(BLOCK_BYTES)).min(u64::from(row.payload_length));

    let near = |behind: u64, length: u64| extents.read(place.extent, place.offset + behind, size(length));
    let read = |behind: u64, bytes: u64| {
        if length >= DIRECT_BYTES_MIN {
            extents.read_past_cache(place.extent, place.offset + behind, size(bytes))
        } else {
            near(behind, bytes)
        }
    };
    let fault = |error| fault(place, error);
    let (front, blocks) = if blocks_begin <= TOGETHER_BYTES {
        let whole = read(0, start + blocks_end).map_err(fault)?;
        let front = parse_front(owner, place, name, row.payload_length, &whole)?;
        (front, whole.slice(whole.len().min(size(start + blocks_begin))..))
    } else {
        let head = near(0, start).map_err(fault)?;
        let front = parse_front(owner, place, name, row.payload_length, &head)?;
        (front, read(start + blocks_begin, blocks_end - blocks_begin).map_err(fault)?)
    };
    if (blocks.len() as u64) < blocks_end - blocks_begin {
        return Err(truncated());
    }
    front.verify(owner, place, first, &blocks)?;
    let within = size(u64::from(offset) - blocks_begin);
    Ok(blocks.slice(within..within + length as usize))
}

/// Verifies all of a record, its padding included, as the medium has it: what the page cache holds is dropped first.
pub(crate) fn verify_record(extents: &Extents, name: ShardName, row: &Row) -> Result<(), ReadFault> {
    let file = open(extents, row.place)?;
    let bytes = record_bytes(row.payload_length);
    let forget = || fadvise(&*file, row.place.offset, NonZeroU64::new(bytes), Advice::DontNeed);
    // Advice only: where it is not taken, the cached pages are verified.
    forget().map_err(io::Error::from)?;
    verify_file(extents.owner(), &file, row.place, name, row.payload_length)?;
    verify_padding(&file, row)?;
    forget().map_err(io::Error::from)?;
    Ok(())
}

/// Verifies the front and every block of the record of `name` at `place` of an open extent.
pub(crate) fn verify_file(
    owner: Owner,
    file: &File,
    place: Place,
    name: ShardName,
    length: u32,
) -> Result<(), ReadFault> {
    let start = payload_start(length);
    let head = read_vec(file, size(start), place.offset)?;
    let front = parse_front(owner, place, name, length, &head)?;
    let mut buffer = vec![0; PIECE_BYTES.min(size(u64::from(length)))];
    let blocks_per_piece = u32::try_from(PIECE_BYTES).unwrap_or(u32::MAX) / BLOCK_BYTES;
    let mut number = 0;
    while number < block_count(length) {
        let begin = u64::from(number) * u64::from(BLOCK_BYTES);
        let piece = size(u64::from(length) - begin).min(PIECE_BYTES);
        if read_up_to(file, &mut buffer[..piece], place.offset + start + begin)? < piece {
            return Err(truncated());
        }
        front.verify(owner, place, number, &buffer[..piece])?;
        number += blocks_per_piece;
    }
    Ok(())
}

/// Checks the zeros behind a shard: where they have changed the medium rots, though the shard is whole. Where the
/// file ends among them nothing is amiss.
fn verify_padding(file: &File, row: &Row) -> Result<(), ReadFault> {
    let end = payload_start(row.payload_length) + u64::from(row.payload_length);
    let length = size(record_bytes(row.payload_length) - end);
    let padding = read_vec(file, length, row.place.offset + end)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(ReadFault::Damaged("the zeros behind the shard have changed".to_owned()));
    }
    Ok(())
}
