//! The stripe format: a table of chunks, then their stored bytes. A stripe is coded, written and acknowledged as one.
//!
//! ```text
//! magic "KSSTRIPE" | format u16 | reserved u16 (0) | chunks u32 | CRC-32 of all of the table but this field u32
//! per chunk: id 32 bytes | kind u8 | codec u8 | reserved u16 (0) | offset u32 | stored length u32 | plain length u32
//! stored bytes of the chunks, in table order, without gaps
//! ```
//!
//! Numbers are big-endian. Offsets count from the start of the stripe. The table lets the registry be rebuilt from the
//! disks; reading a chunk needs only its [`ChunkLocation`](crate::location::ChunkLocation).
//!
//! Invariants:
//! - A stripe is never changed once sealed.
//! - No chunk is in a stripe twice.
//! - What [`parse_table`] accepts, [`StripeBuilder`] could have made.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::chunk::CHUNK_BYTES_MAX;
use crate::cluster::{StripeLayout, StripeShape};
use crate::code::{Code, PositionSet};
use crate::codec::PreparedChunk;
use crate::ids::{ChunkId, Position, StripeId};
use crate::location::{ChunkKind, ChunkLocation, Codec, LocatedChunk};

/// Most stored bytes of chunks in a stripe.
pub const STRIPE_PAYLOAD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most chunks in a stripe.
pub const STRIPE_CHUNKS_MAX: usize = 2048;

/// Most bytes in a stripe, table included.
pub const STRIPE_BYTES_MAX: usize = table_length(STRIPE_CHUNKS_MAX) + STRIPE_PAYLOAD_BYTES_MAX;

/// Stripes up to this size, table included, are written as copies.
pub const STRIPE_COPIES_BYTES_MAX: usize = 32 * 1024;

const MAGIC: &[u8; 8] = b"KSSTRIPE";
const STRIPE_FORMAT: u16 = 1;
/// Bytes before the first row.
const HEADER_BYTES: usize = 20;
/// Where the CRC-32 is.
const CRC_OFFSET: usize = 16;
/// Bytes of a row.
const ROW_BYTES: usize = 48;

/// Bytes of the table of a stripe of `chunks`.
const fn table_length(chunks: usize) -> usize {
    HEADER_BYTES + chunks * ROW_BYTES
}

// Offsets are u32, and a single chunk of maximal size must fit.
const _: () = assert!(STRIPE_BYTES_MAX <= u32::MAX as usize && CHUNK_BYTES_MAX <= STRIPE_PAYLOAD_BYTES_MAX);

/// A chunk's row in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeChunk {
    /// Its name.
    pub chunk: ChunkId,
    /// What the name is a hash of.
    pub kind: ChunkKind,
    /// How it is stored.
    pub codec: Codec,
    /// First stored byte, counted from the start of the stripe.
    pub offset: u32,
    /// Stored bytes.
    pub stored_length: u32,
    /// Plain bytes.
    pub plain_length: u32,
}

/// Collects chunks into one stripe.
#[derive(Debug, Default)]
pub struct StripeBuilder {
    chunks: Vec<PreparedChunk>,
    names: BTreeSet<ChunkId>,
    payload_bytes: usize,
}

/// What became of a chunk that was pushed.
#[derive(Debug)]
pub enum Pushed {
    /// It is in the stripe, now or already.
    Taken,
    /// It does not fit: seal the stripe, and push it to the next. An empty builder takes any chunk.
    Full(PreparedChunk),
}

impl StripeBuilder {
    /// Of no chunks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a chunk, unless it is there already or does not fit.
    pub fn push(&mut self, chunk: PreparedChunk) -> Pushed {
        if self.names.contains(&chunk.chunk()) {
            return Pushed::Taken;
        }
        let bytes = self.payload_bytes + chunk.stored().len();
        if bytes > STRIPE_PAYLOAD_BYTES_MAX || self.chunks.len() == STRIPE_CHUNKS_MAX {
            return Pushed::Full(chunk);
        }
        self.payload_bytes = bytes;
        self.names.insert(chunk.chunk());
        self.chunks.push(chunk);
        Pushed::Taken
    }

    /// Chunks in it.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Stored bytes of its chunks.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Whether nothing was pushed yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Writes the table and the chunks; `None` if there are none.
    #[must_use]
    pub fn seal(self) -> Option<SealedStripe> {
        if self.chunks.is_empty() {
            return None;
        }
        let rows = self.chunks.iter().map(|chunk| StripeChunk {
            chunk: chunk.chunk(),
            kind: chunk.kind(),
            codec: chunk.codec(),
            offset: 0,
            stored_length: in_stripe(chunk.stored().len()),
            plain_length: chunk.plain_length(),
        });
        let stored: Vec<&[u8]> = self.chunks.iter().map(|chunk| &**chunk.stored()).collect();
        Some(assemble(rows.collect(), &stored))
    }
}

/// Writes the table and the chunks, whose offsets are set here.
fn assemble(mut rows: Vec<StripeChunk>, stored: &[&[u8]]) -> SealedStripe {
    let table_bytes = table_length(rows.len());
    let payload_bytes: usize = stored.iter().map(|stored| stored.len()).sum();
    let mut bytes = Vec::with_capacity(table_bytes + payload_bytes);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&STRIPE_FORMAT.to_be_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&in_stripe(rows.len()).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    let mut offset = table_bytes;
    for (row, stored) in rows.iter_mut().zip(stored) {
        row.offset = in_stripe(offset);
        write_row(row, &mut bytes);
        offset += stored.len();
    }
    let crc = table_crc(&bytes);
    bytes[CRC_OFFSET..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
    stored.iter().for_each(|stored| bytes.extend_from_slice(stored));
    SealedStripe { bytes: bytes.into(), chunks: rows }
}

/// A number that [`STRIPE_BYTES_MAX`] bounds.
#[expect(clippy::cast_possible_truncation, reason = "STRIPE_BYTES_MAX fits, by the assertion above")]
fn in_stripe(number: usize) -> u32 {
    debug_assert!(number <= STRIPE_BYTES_MAX, "{number} in a stripe");
    number as u32
}

fn write_row(row: &StripeChunk, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(row.chunk.as_bytes());
    bytes.push(match row.kind {
        ChunkKind::Data => 0,
        ChunkKind::Manifest => 1,
    });
    bytes.push(match row.codec {
        Codec::Plain => 0,
        Codec::Zstd => 1,
    });
    bytes.extend_from_slice(&[0; 2]);
    for number in [row.offset, row.stored_length, row.plain_length] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
}

/// CRC-32 of a table, header and rows, but for the field that holds it.
fn table_crc(table: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&table[..CRC_OFFSET]);
    hasher.update(&table[HEADER_BYTES..]);
    hasher.finalize()
}

/// A stripe, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedStripe {
    bytes: Bytes,
    chunks: Vec<StripeChunk>,
}

impl SealedStripe {
    /// Table and payload.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Its chunks, in table order.
    #[must_use]
    pub fn chunks(&self) -> &[StripeChunk] {
        &self.chunks
    }

    /// A stripe of only those of its chunks, in their order; `None` if there are none.
    #[must_use]
    pub fn only(&self, keep: impl Fn(ChunkId) -> bool) -> Option<Self> {
        let rows: Vec<StripeChunk> = self.chunks.iter().filter(|row| keep(row.chunk)).copied().collect();
        if rows.is_empty() {
            return None;
        }
        if rows.len() == self.chunks.len() {
            return Some(self.clone());
        }
        let stored: Vec<&[u8]> = rows
            .iter()
            .map(|row| &self.bytes[row.offset as usize..(row.offset + row.stored_length) as usize])
            .collect();
        Some(assemble(rows, &stored))
    }

    /// Small stripes are written as copies, all others coded.
    #[must_use]
    pub fn layout(&self) -> StripeLayout {
        if self.bytes.len() <= STRIPE_COPIES_BYTES_MAX { StripeLayout::Copies } else { StripeLayout::Coded }
    }

    /// Layout and length.
    #[must_use]
    pub fn shape(&self) -> StripeShape {
        StripeShape { layout: self.layout(), length: in_stripe(self.bytes.len()) }
    }

    /// Where its chunks lie once it is written as `stripe`, in table order.
    #[must_use]
    pub fn located(&self, stripe: StripeId) -> Vec<LocatedChunk> {
        locate(&self.chunks, stripe, self.shape())
    }
}

/// Where the chunks of a table lie, in table order.
#[must_use]
pub fn locate(chunks: &[StripeChunk], stripe: StripeId, shape: StripeShape) -> Vec<LocatedChunk> {
    let located = |chunk: &StripeChunk| LocatedChunk {
        chunk: chunk.chunk,
        location: ChunkLocation {
            stripe,
            shape,
            offset: chunk.offset,
            stored_length: chunk.stored_length,
            plain_length: chunk.plain_length,
            codec: chunk.codec,
            kind: chunk.kind,
        },
    };
    chunks.iter().map(located).collect()
}

/// Why bytes are not a stripe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseStripeError {
    /// They do not begin as one.
    #[error("not a stripe")]
    Magic,
    /// Written by a version of the software that this one does not know.
    #[error("stripe: unknown format {found}")]
    Format {
        /// What it says.
        found: u16,
    },
    /// Damaged, cut off, or never written by the builder.
    #[error("stripe: bad table: {what}")]
    Table {
        /// What does not hold.
        what: &'static str,
    },
}

/// Reads the table of a whole stripe (`bytes` may be padded at the end, and shorter than the stripe if the table is
/// whole). Gives its chunks and the stripe's length.
///
/// # Errors
/// If it is not a table that [`StripeBuilder::seal`] makes.
pub fn parse_table(bytes: &[u8]) -> Result<(Vec<StripeChunk>, u32), ParseStripeError> {
    let header = bytes.get(..HEADER_BYTES).ok_or(ParseStripeError::Magic)?;
    if &header[..8] != MAGIC {
        return Err(ParseStripeError::Magic);
    }
    let format = u16::from_be_bytes([header[8], header[9]]);
    if format != STRIPE_FORMAT {
        return Err(ParseStripeError::Format { found: format });
    }
    let bad = |what| ParseStripeError::Table { what };
    let count = number_at(header, 12) as usize;
    if count == 0 || count > STRIPE_CHUNKS_MAX {
        return Err(bad("chunk count"));
    }
    let table = bytes.get(..table_length(count)).ok_or(bad("cut off"))?;
    if number_at(table, CRC_OFFSET) != table_crc(table) {
        return Err(bad("checksum"));
    }
    if header[10..12] != [0; 2] {
        return Err(bad("reserved bytes"));
    }
    let mut names = BTreeSet::new();
    let mut end = table.len();
    let mut chunks = Vec::with_capacity(count);
    for row in table[HEADER_BYTES..].as_chunks::<ROW_BYTES>().0 {
        let chunk = parse_row(row).map_err(bad)?;
        if chunk.offset as usize != end {
            return Err(bad("chunks with gaps"));
        }
        end += chunk.stored_length as usize;
        if !names.insert(chunk.chunk) {
            return Err(bad("a chunk twice"));
        }
        chunks.push(chunk);
    }
    if end - table.len() > STRIPE_PAYLOAD_BYTES_MAX {
        return Err(bad("payload too long"));
    }
    Ok((chunks, in_stripe(end)))
}

fn parse_row(row: &[u8; ROW_BYTES]) -> Result<StripeChunk, &'static str> {
    let mut id = [0; 32];
    id.copy_from_slice(&row[..32]);
    let kind = match row[32] {
        0 => ChunkKind::Data,
        1 => ChunkKind::Manifest,
        _ => return Err("chunk kind"),
    };
    let codec = match row[33] {
        0 => Codec::Plain,
        1 => Codec::Zstd,
        _ => return Err("codec"),
    };
    if row[34..36] != [0; 2] {
        return Err("reserved bytes");
    }
    let [offset, stored_length, plain_length] = [36, 40, 44].map(|at| number_at(row, at));
    let bounded = |length: u32| length > 0 && length as usize <= CHUNK_BYTES_MAX;
    let fits = match codec {
        Codec::Plain => stored_length == plain_length,
        Codec::Zstd => stored_length < plain_length,
    };
    if !bounded(stored_length) || !bounded(plain_length) || !fits {
        return Err("chunk length");
    }
    Ok(StripeChunk { chunk: ChunkId::from_bytes(id), kind, codec, offset, stored_length, plain_length })
}

fn number_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Positions that hold a shard of this stripe: all of a coded one's; of a small one's copies `m + 1`, beginning at a
/// position that its id chooses, so that copies spread over the volume.
#[must_use]
pub fn used_positions(code: Code, stripe: StripeId, layout: StripeLayout) -> PositionSet {
    match layout {
        StripeLayout::Coded => code.positions().collect(),
        StripeLayout::Copies => copy_positions(code, stripe).into_iter().collect(),
    }
}

/// Positions of the copies of a small stripe, beginning with the one that its id chooses.
#[must_use]
pub fn copy_positions(code: Code, stripe: StripeId) -> Vec<Position> {
    let &[_, _, _, _, b0, b1, b2, b3, ..] = stripe.as_bytes();
    let first = u32::from_be_bytes([b0, b1, b2, b3]) as usize % code.total();
    let mut positions: Vec<Position> = code.positions().collect();
    positions.rotate_left(first);
    positions.truncate(code.parity() + 1);
    positions
}

#[cfg(test)]
mod tests;
