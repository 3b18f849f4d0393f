//! The form of one shard within an extent. Pure: bytes in, bytes out.
//!
//! A record begins on a 4 KiB boundary:
//!
//! | bytes | what |
//! | --- | --- |
//! | 128 | header: identity, shape and lengths, with a CRC-32 over all of it |
//! | 4 per 64 KiB of payload | CRC-32 of each block |
//! | payload length | the shard |
//! | up to the next boundary | zeros |
//!
//! Header and checksums fit the first 4 KiB, so any range can be verified after one more read than its own.
//!
//! Invariants:
//! - Header and block checksums cover the disk, extent and offset where the record belongs, so bytes that a disk
//!   put elsewhere never verify, nor do bytes of another shard.
//! - A tombstone is the header of what was there with another kind: it is durable before its shard is forgotten, so
//!   a scan never brings a deleted shard back.
//! - Records of one disk are numbered in the order in which they are appended, and each says how much of its extent
//!   was durable when it was written: so a scan tells a torn end from damage, and an older copy of a disk from the
//!   disk. Records of earlier versions have 0 for both: nothing is known.

use engine::cluster::StripeLayout;
use engine::code::Code;
use engine::ids::{ClusterId, DiskId, Epoch, Position, StripeId};
use serde::{Deserialize, Serialize};

/// Payload bytes under one checksum.
pub const BLOCK_BYTES: u32 = 64 * 1024;

/// Where records begin, as a buffer's length.
pub const BOUNDARY: usize = 4096;

/// Where records begin.
pub const BOUNDARY_BYTES: u64 = BOUNDARY as u64;

/// Largest shard that is stored: with it, header and checksums still fit one boundary.
pub const SHARD_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 128;

/// The format that is written and understood.
pub const FORMAT: u16 = 1;

const MAGIC: &[u8; 8] = b"KSSHARD\n";
const KIND_SHARD: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;
const CHECKSUM_AT: usize = HEADER_BYTES - 4;

/// Which extent of a disk: its file's name. Growing, never reused while the index lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ExtentNumber(pub u32);

impl std::fmt::Display for ExtentNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A shard's name within a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardName {
    /// The stripe it is of.
    pub stripe: StripeId,
    /// Which of its pieces.
    pub position: Position,
}

/// Which disk of which installation: every header is bound to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The installation.
    pub cluster: ClusterId,
    /// The disk.
    pub disk: DiskId,
}

/// Where a record belongs. The default is before all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Place {
    /// Its extent.
    pub extent: ExtentNumber,
    /// Its first byte there, on a boundary.
    pub offset: u64,
}

/// What a header says of its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardHeader {
    /// The shard.
    pub name: ShardName,
    /// The volume's epoch when it was written.
    pub epoch: Epoch,
    /// The volume's code.
    pub code: Code,
    /// Whether it is a coded piece or a whole copy.
    pub layout: StripeLayout,
    /// Bytes of the stripe, before padding.
    pub stripe_length: u32,
    /// Bytes of the shard; 1 to [`SHARD_BYTES_MAX`].
    pub payload_length: u32,
    /// CRC-32 of the whole shard.
    pub payload_crc32: u32,
}

/// When a record was appended, as its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Its number among all records of the disk, from 1; a tombstone's is that of the last record before it.
    pub sequence: u64,
    /// Bytes of its extent that were on stable storage when it was written.
    pub durable_bytes: u64,
}

/// What stands at a boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// A shard's record.
    Shard(ShardHeader),
    /// A deleted shard's: the header it had.
    Tombstone(ShardHeader),
}

/// Why bytes at a boundary are not a head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Nothing was written here, or a hole was punched.
    #[error("nothing but zeros where a record should begin")]
    Empty,
    /// Not a record: the middle of one, or damage.
    #[error("no record begins here")]
    NoRecord,
    /// It begins like a record, but its checksum is wrong.
    #[error("the record's header fails its checksum")]
    Checksum,
    /// A sound header of another disk, extent or offset: the disk put it in the wrong place.
    #[error("the record's header belongs elsewhere")]
    Elsewhere,
    /// Written by a later version of the software.
    #[error("record format {0} is not known to this version")]
    Format(u16),
    /// A sound checksum over impossible fields.
    #[error("the record's header holds impossible values")]
    Fields,
}

/// Blocks of a payload of `payload_length` bytes.
#[must_use]
pub fn block_count(payload_length: u32) -> u32 {
    payload_length.div_ceil(BLOCK_BYTES)
}

/// Where the payload begins within its record.
#[must_use]
pub fn payload_start(payload_length: u32) -> u64 {
    HEADER_BYTES as u64 + 4 * u64::from(block_count(payload_length))
}

/// Bytes of the whole record, a multiple of [`BOUNDARY_BYTES`].
#[must_use]
pub fn record_bytes(payload_length: u32) -> u64 {
    (payload_start(payload_length) + u64::from(payload_length)).next_multiple_of(BOUNDARY_BYTES)
}

/// The checksum of block `number` of the shard `name` at `place`.
#[must_use]
pub fn block_crc32(owner: Owner, place: Place, name: ShardName, number: u32, block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(owner.disk.as_bytes());
    hasher.update(&place.extent.0.to_le_bytes());
    hasher.update(&place.offset.to_le_bytes());
    hasher.update(name.stripe.as_bytes());
    hasher.update(&[name.position.0]);
    hasher.update(&number.to_le_bytes());
    hasher.update(block);
    hasher.finalize()
}

/// Header and block checksums of a shard about to be written at `place`: what goes before the payload.
///
/// # Panics
/// If `payload` is not as long as the header says: the caller has checked.
#[must_use]
pub fn encode_front(
    owner: Owner,
    place: Place,
    stamp: Stamp,
    header: &ShardHeader,
    payload: &[u8],
) -> Vec<u8> {
    assert_eq!(payload.len() as u64, u64::from(header.payload_length), "a header says its payload's length");
    let mut front = encode_head(owner, place, stamp, &Head::Shard(*header)).to_vec();
    for (number, block) in (0..).zip(payload.chunks(BLOCK_BYTES as usize)) {
        front.extend_from_slice(&block_crc32(owner, place, header.name, number, block).to_le_bytes());
    }
    front
}

/// A header as it stands on disk.
#[must_use]
pub fn encode_head(owner: Owner, place: Place, stamp: Stamp, head: &Head) -> [u8; HEADER_BYTES] {
    let (kind, header) = match head {
        Head::Shard(header) => (KIND_SHARD, header),
        Head::Tombstone(header) => (KIND_TOMBSTONE, header),
    };
    let (data, parity) = header.code.into();
    let layout = match header.layout {
        StripeLayout::Coded => 1,
        StripeLayout::Copies => 2,
    };
    let mut fields = Vec::with_capacity(HEADER_BYTES);
    fields.extend_from_slice(MAGIC);
    fields.extend_from_slice(&FORMAT.to_le_bytes());
    fields.extend_from_slice(&[kind, header.name.position.0, data, parity, layout, 0]);
    fields.extend_from_slice(header.name.stripe.as_bytes());
    fields.extend_from_slice(&header.epoch.0.to_le_bytes());
    fields.extend_from_slice(&header.stripe_length.to_le_bytes());
    fields.extend_from_slice(&header.payload_length.to_le_bytes());
    fields.extend_from_slice(&header.payload_crc32.to_le_bytes());
    fields.extend_from_slice(&place.offset.to_le_bytes());
    fields.extend_from_slice(&place.extent.0.to_le_bytes());
    fields.extend_from_slice(&[0; 4]);
    fields.extend_from_slice(owner.disk.as_bytes());
    fields.extend_from_slice(owner.cluster.as_bytes());
    fields.extend_from_slice(&stamp.sequence.to_le_bytes());
    fields.extend_from_slice(&stamp.durable_bytes.to_le_bytes());
    let mut bytes = [0; HEADER_BYTES];
    bytes[..fields.len()].copy_from_slice(&fields);
    let checksum = crc32fast::hash(&bytes[..CHECKSUM_AT]);
    bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Takes fields off the front of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], HeadError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(HeadError::NoRecord)?;
        self.0 = rest;
        Ok(*field)
    }

    fn take_u32(&mut self) -> Result<u32, HeadError> {
        self.take().map(u32::from_le_bytes)
    }

    fn take_u64(&mut self) -> Result<u64, HeadError> {
        self.take().map(u64::from_le_bytes)
    }
}

/// Reads what stands at `place`, given its first bytes.
///
/// # Errors
/// If that is not a head that belongs there. Fewer than [`HEADER_BYTES`] bytes are no record.
pub fn decode_head(owner: Owner, place: Place, bytes: &[u8]) -> Result<Head, HeadError> {
    decode_stamped_head(owner, place, bytes).map(|(head, _stamp)| head)
}

/// As [`decode_head`], with when it was appended.
///
/// # Errors
/// As [`decode_head`].
pub fn decode_stamped_head(owner: Owner, place: Place, bytes: &[u8]) -> Result<(Head, Stamp), HeadError> {
    let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(HeadError::NoRecord)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(HeadError::Empty);
    }
    let mut fields = Fields(bytes);
    if &fields.take::<8>()? != MAGIC {
        return Err(HeadError::NoRecord);
    }
    let checksum = crc32fast::hash(&bytes[..CHECKSUM_AT]).to_le_bytes();
    if checksum != bytes[CHECKSUM_AT..] {
        return Err(HeadError::Checksum);
    }
    let format = u16::from_le_bytes(fields.take()?);
    if format != FORMAT {
        return Err(HeadError::Format(format));
    }
    let [kind, position, data, parity, layout, _reserved] = fields.take()?;
    let stripe = StripeId::from_bytes(fields.take()?);
    let header = ShardHeader {
        name: ShardName { stripe, position: Position(position) },
        epoch: Epoch(fields.take_u32()?),
        code: Code::new(data, parity).map_err(|_out_of_bounds| HeadError::Fields)?,
        layout: match layout {
            1 => StripeLayout::Coded,
            2 => StripeLayout::Copies,
            _ => return Err(HeadError::Fields),
        },
        stripe_length: fields.take_u32()?,
        payload_length: fields.take_u32()?,
        payload_crc32: fields.take_u32()?,
    };
    let found =
        Place { offset: u64::from_le_bytes(fields.take()?), extent: ExtentNumber(fields.take_u32()?) };
    fields.take::<4>()?;
    let found_owner =
        Owner { disk: DiskId::from_bytes(fields.take()?), cluster: ClusterId::from_bytes(fields.take()?) };
    let stamp = Stamp { sequence: fields.take_u64()?, durable_bytes: fields.take_u64()? };
    if found != place || found_owner != owner {
        return Err(HeadError::Elsewhere);
    }
    let sized = (1..=SHARD_BYTES_MAX).contains(&header.payload_length);
    if !sized || usize::from(position) >= header.code.total() {
        return Err(HeadError::Fields);
    }
    match kind {
        KIND_SHARD => Ok((Head::Shard(header), stamp)),
        KIND_TOMBSTONE => Ok((Head::Tombstone(header), stamp)),
        _ => Err(HeadError::Fields),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner { cluster: ClusterId::from_bytes([1; 16]), disk: DiskId::from_bytes([2; 16]) }
    }

    fn header(payload_length: u32) -> ShardHeader {
        ShardHeader {
            name: ShardName { stripe: StripeId::from_bytes([3; 16]), position: Position(5) },
            epoch: Epoch(7),
            code: Code::new(4, 2).unwrap(),
            layout: StripeLayout::Coded,
            stripe_length: payload_length * 4,
            payload_length,
            payload_crc32: 9,
        }
    }

    const STAMP: Stamp = Stamp { sequence: 1 << 40, durable_bytes: 8192 };
    const PLACE: Place = Place { extent: ExtentNumber(11), offset: 8192 };

    #[test]
    fn heads_read_back_as_written() {
        for head in [Head::Shard(header(1)), Head::Tombstone(header(SHARD_BYTES_MAX))] {
            let bytes = encode_head(owner(), PLACE, STAMP, &head);
            assert_eq!(decode_stamped_head(owner(), PLACE, &bytes), Ok((head, STAMP)));
        }
    }

    #[test]
    fn a_head_verifies_only_where_it_belongs() {
        let bytes = encode_head(owner(), PLACE, STAMP, &Head::Shard(header(100)));
        let elsewhere = [
            (owner(), Place { offset: 4096, ..PLACE }),
            (owner(), Place { extent: ExtentNumber(1), ..PLACE }),
            (Owner { disk: DiskId::from_bytes([9; 16]), ..owner() }, PLACE),
            (Owner { cluster: ClusterId::from_bytes([9; 16]), ..owner() }, PLACE),
        ];
        for (owner, place) in elsewhere {
            assert_eq!(decode_head(owner, place, &bytes), Err(HeadError::Elsewhere));
        }
    }

    #[test]
    fn any_flipped_bit_of_a_head_shows() {
        let bytes = encode_head(owner(), PLACE, STAMP, &Head::Shard(header(100)));
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_head(owner(), PLACE, &damaged).is_err(), "bit={bit}");
        }
        assert_eq!(decode_head(owner(), PLACE, &[0; HEADER_BYTES]), Err(HeadError::Empty));
        assert_eq!(decode_head(owner(), PLACE, &bytes[..50]), Err(HeadError::NoRecord));
    }

    #[test]
    fn front_of_the_largest_shard_fits_one_boundary() {
        assert!(payload_start(SHARD_BYTES_MAX) <= BOUNDARY_BYTES);
        assert_eq!(record_bytes(1), BOUNDARY_BYTES);
        assert_eq!(record_bytes(4096 - 132), BOUNDARY_BYTES);
        assert_eq!(record_bytes(4096 - 131), 2 * BOUNDARY_BYTES);
        let payload = vec![1; BLOCK_BYTES as usize + 1];
        let front = encode_front(owner(), PLACE, STAMP, &header(BLOCK_BYTES + 1), &payload);
        assert_eq!(front.len() as u64, payload_start(BLOCK_BYTES + 1));
    }
}
