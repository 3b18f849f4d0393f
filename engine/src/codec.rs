//! How a chunk is stored: as it is, or as one zstd frame; and back, verified.
//!
//! Invariants:
//! - A chunk is stored compressed only if that saves a tenth or more.
//! - Nothing leaves [`decode_chunk`] that does not match its name; decompression never gives more than announced.

use bytes::Bytes;

use crate::chunk::{CHUNK_BYTES_MAX, ChunkSizeError, check_chunk_size};
use crate::ids::ChunkId;
use crate::location::{ChunkKind, ChunkLocation, Codec};

const ZSTD_LEVEL: i32 = 3;

/// Chunks above this size are compressed only if a sample of them shrinks.
const SAMPLE_THRESHOLD_BYTES: usize = 16 * 1024;
/// A sample is this many runs, spread over the chunk.
const SAMPLE_RUNS: usize = 4;
/// Bytes of each run.
const SAMPLE_RUN_BYTES: usize = 2 * 1024;

/// A chunk as it will be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedChunk {
    chunk: ChunkId,
    kind: ChunkKind,
    codec: Codec,
    stored: Bytes,
    plain_length: u32,
}

impl PreparedChunk {
    /// Its name.
    #[must_use]
    pub fn chunk(&self) -> ChunkId {
        self.chunk
    }

    /// What the name is a hash of.
    #[must_use]
    pub fn kind(&self) -> ChunkKind {
        self.kind
    }

    /// How it is stored.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Its stored bytes.
    #[must_use]
    pub fn stored(&self) -> &Bytes {
        &self.stored
    }

    /// Bytes before compression.
    #[must_use]
    pub fn plain_length(&self) -> u32 {
        self.plain_length
    }
}

/// Prepares chunks for storing. Keeps zstd's working memory (about a MiB) from chunk to chunk.
pub struct ChunkCompressor {
    /// `None` if zstd cannot start (no memory): then chunks are stored plain.
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl ChunkCompressor {
    /// Ready to prepare chunks.
    #[must_use]
    pub fn new() -> Self {
        Self { zstd: zstd::bulk::Compressor::new(ZSTD_LEVEL).ok() }
    }

    /// Compresses `plain` if that pays. `chunk` must be its name, in the hash domain of `kind`: not checked here.
    /// Takes some 3 ms per MiB of what compresses, a tenth of that otherwise.
    ///
    /// # Errors
    /// If `plain` is empty or above [`CHUNK_BYTES_MAX`].
    pub fn prepare(
        &mut self,
        chunk: ChunkId,
        kind: ChunkKind,
        plain: Bytes,
    ) -> Result<PreparedChunk, ChunkSizeError> {
        check_chunk_size(plain.len() as u64)?;
        #[expect(clippy::cast_possible_truncation, reason = "at most CHUNK_BYTES_MAX")]
        let plain_length = plain.len() as u32;
        let (codec, stored) = match self.compress(&plain) {
            Some(frame) => (Codec::Zstd, frame.into()),
            None => (Codec::Plain, plain),
        };
        Ok(PreparedChunk { chunk, kind, codec, stored, plain_length })
    }

    /// The frame, if it saves a tenth.
    fn compress(&mut self, plain: &[u8]) -> Option<Vec<u8>> {
        let zstd = self.zstd.as_mut()?;
        if plain.len() > SAMPLE_THRESHOLD_BYTES {
            let sample = sample_of(plain);
            if !saves_a_tenth(zstd.compress(&sample).ok()?.len(), sample.len()) {
                return None;
            }
        }
        let mut frame = zstd.compress(plain).ok()?;
        if !saves_a_tenth(frame.len(), plain.len()) {
            return None;
        }
        // zstd reserves for the worst case; chunks wait in queues, so give that back.
        frame.shrink_to_fit();
        Some(frame)
    }
}

impl Default for ChunkCompressor {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for ChunkCompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkCompressor").finish_non_exhaustive()
    }
}

fn saves_a_tenth(stored: usize, plain: usize) -> bool {
    stored * 10 <= plain * 9
}

fn sample_of(plain: &[u8]) -> Vec<u8> {
    let stride = (plain.len() - SAMPLE_RUN_BYTES) / (SAMPLE_RUNS - 1);
    (0..SAMPLE_RUNS).flat_map(|run| &plain[run * stride..][..SAMPLE_RUN_BYTES]).copied().collect()
}

/// Why stored bytes do not give the chunk. The caller's next move is the same (try other shards), but for
/// [`DecodeChunkError::Location`], which no shard can mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeChunkError {
    /// The location is not one: its lengths are out of bounds.
    #[error("chunk {chunk}: its location is not one")]
    Location {
        /// The chunk.
        chunk: ChunkId,
    },
    /// Not as many bytes as the location says.
    #[error("chunk {chunk}: found {found} stored bytes, expected {expected}")]
    Length {
        /// The chunk.
        chunk: ChunkId,
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: u32,
    },
    /// The frame is damaged, or gives another length.
    #[error("chunk {chunk}: cannot decompress")]
    Frame {
        /// The chunk.
        chunk: ChunkId,
    },
    /// The bytes are not the chunk's.
    #[error("chunk {chunk}: its bytes have another hash")]
    Hash {
        /// The chunk.
        chunk: ChunkId,
    },
}

/// Turns a chunk's stored bytes into its plain ones, and checks them against its name.
///
/// # Errors
/// If they are not the chunk's.
pub fn decode_chunk(
    location: &ChunkLocation,
    stored: Bytes,
    chunk: ChunkId,
) -> Result<Bytes, DecodeChunkError> {
    let plain_length = location.plain_length as usize;
    if plain_length == 0 || plain_length > CHUNK_BYTES_MAX {
        return Err(DecodeChunkError::Location { chunk });
    }
    if stored.len() != location.stored_length as usize {
        return Err(DecodeChunkError::Length {
            chunk,
            found: stored.len(),
            expected: location.stored_length,
        });
    }
    let plain = match location.codec {
        Codec::Plain => stored,
        Codec::Zstd => zstd::bulk::decompress(&stored, plain_length)
            .map(Bytes::from)
            .map_err(|_damaged| DecodeChunkError::Frame { chunk })?,
    };
    if plain.len() != plain_length {
        return Err(DecodeChunkError::Frame { chunk });
    }
    if !chunk.names(location.kind, &plain) {
        return Err(DecodeChunkError::Hash { chunk });
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{StripeLayout, StripeShape};
    use crate::ids::{StripeId, VolumeId};
    use rand::rngs::SmallRng;
    use rand::{RngCore, SeedableRng};

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        SmallRng::seed_from_u64(7).fill_bytes(&mut bytes);
        bytes
    }

    fn prepare(plain: &[u8]) -> PreparedChunk {
        let plain = Bytes::copy_from_slice(plain);
        ChunkCompressor::new().prepare(ChunkId::of(&plain), ChunkKind::Data, plain).unwrap()
    }

    fn location_of(chunk: &PreparedChunk) -> ChunkLocation {
        ChunkLocation {
            stripe: StripeId::new(VolumeId(1), [0; 8]),
            shape: StripeShape { layout: StripeLayout::Coded, length: 1 },
            offset: 0,
            stored_length: u32::try_from(chunk.stored().len()).unwrap(),
            plain_length: chunk.plain_length(),
            codec: chunk.codec(),
            kind: chunk.kind(),
        }
    }

    #[test]
    fn text_is_compressed_and_noise_is_not() {
        for length in [1, 100, 5000, 16 * 1024 + 1, 1_000_000, CHUNK_BYTES_MAX] {
            let chunk = prepare(&noise(length));
            assert_eq!((chunk.codec(), chunk.stored().len()), (Codec::Plain, length));
            let chunk = prepare(&b"to and fro, ".repeat(length / 12 + 10)[..length.max(100)]);
            assert_eq!(chunk.codec(), Codec::Zstd, "{length}");
        }
    }

    #[test]
    fn a_chunk_with_little_to_gain_stays_plain() {
        let mut bytes = noise(100_000);
        bytes[..5000].fill(0);
        assert_eq!(prepare(&bytes).codec(), Codec::Plain);
    }

    #[test]
    fn chunks_come_back_and_damage_never_does() {
        for plain in [noise(10_000), b"again and ".repeat(5000), vec![0; CHUNK_BYTES_MAX]] {
            let chunk = prepare(&plain);
            let location = location_of(&chunk);
            assert_eq!(decode_chunk(&location, chunk.stored().clone(), chunk.chunk()).unwrap(), plain);
            for at in [0, 1, chunk.stored().len() / 2, chunk.stored().len() - 1] {
                let mut damaged = chunk.stored().to_vec();
                damaged[at] ^= 0x20;
                assert!(decode_chunk(&location, damaged.into(), chunk.chunk()).is_err(), "byte {at}");
            }
            let cut = chunk.stored().slice(1..);
            assert!(decode_chunk(&location, cut, chunk.chunk()).is_err());
            let other = ChunkLocation { kind: ChunkKind::Manifest, ..location };
            assert!(decode_chunk(&other, chunk.stored().clone(), chunk.chunk()).is_err());
        }
    }

    #[test]
    fn a_frame_never_gives_more_than_announced() {
        let chunk = prepare(&vec![0; CHUNK_BYTES_MAX]);
        for plain_length in [0, 1, 1000, chunk.plain_length() - 1, u32::MAX] {
            let location = ChunkLocation { plain_length, ..location_of(&chunk) };
            assert!(decode_chunk(&location, chunk.stored().clone(), chunk.chunk()).is_err());
        }
    }

    #[test]
    fn empty_chunks_are_refused() {
        let mut compressor = ChunkCompressor::new();
        assert!(compressor.prepare(ChunkId::of(b""), ChunkKind::Data, Bytes::new()).is_err());
    }
}
