//! Cuts a file into chunks: by content (FastCDC, v2020 form), or at fixed offsets.
//!
//! Boundaries are a format: they decide which chunks two files share. The algorithm's parameters, its normalisation
//! level and its gear table are pinned by the test vectors below.
//!
//! Invariants:
//! - The boundaries depend on the bytes alone, never on how they were pushed.
//! - Chunks are never empty and never above the cutter's maximum; only a file's last one may be below its minimum.

use std::io::Read;

use bytes::Bytes;
use fastcdc::v2020::{Normalization, cut, select_masks};
use serde::{Deserialize, Serialize};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// A file keeps its cutter until it is this many times larger than the cutter's range.
const KEPT_GROWTH_MAX: u64 = 16;

/// How a file is cut. Named in the manifest of every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Cutter {
    /// By content, 64 KiB on average: files up to 32 MiB.
    #[serde(rename = "cdc-64k")]
    Cdc64k,
    /// By content, 256 KiB on average: files up to 4 GiB.
    #[serde(rename = "cdc-256k")]
    Cdc256k,
    /// By content, 1 MiB on average: larger files.
    #[serde(rename = "cdc-1m")]
    Cdc1m,
    /// Every 4 MiB: on request.
    #[serde(rename = "fixed-4m")]
    Fixed4m,
}

/// Why a text is not a cutter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cutter: {text:?}; there are cdc-64k, cdc-256k, cdc-1m and fixed-4m")]
pub struct CutterError {
    /// What was given, shortened to 80 characters.
    pub text: String,
}

/// Why a list of chunks is not one that a cutter makes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "chunk {index} has {bytes} bytes; but for a file's last one, chunks by {cutter} have at least {}",
    cutter.chunk_bytes_min()
)]
pub struct SmallChunkError {
    /// How the file is said to be cut.
    pub cutter: Cutter,
    /// Which chunk of the file, from 0.
    pub index: usize,
    /// Its bytes.
    pub bytes: u32,
}

impl Cutter {
    /// All cutters.
    pub const ALL: [Self; 4] = [Self::Cdc64k, Self::Cdc256k, Self::Cdc1m, Self::Fixed4m];

    /// The cutter of a new file of `bytes` bytes.
    #[must_use]
    pub fn for_size(bytes: u64) -> Self {
        if bytes <= 32 * MIB {
            Self::Cdc64k
        } else if bytes <= 4 * GIB {
            Self::Cdc256k
        } else {
            Self::Cdc1m
        }
    }

    /// The cutter of a new version of `new_size` bytes: the earlier version's, so that an edit sends little, until
    /// the file has grown 16-fold past that cutter's range.
    #[must_use]
    pub fn for_new_version(previous: Self, new_size: u64) -> Self {
        match previous.range_bytes_max() {
            Some(range) if new_size > range * KEPT_GROWTH_MAX => Self::for_size(new_size),
            _ => previous,
        }
    }

    /// The largest file that [`Cutter::for_size`] gives this cutter; `None` = no bound.
    fn range_bytes_max(self) -> Option<u64> {
        match self {
            Self::Cdc64k => Some(32 * MIB),
            Self::Cdc256k => Some(4 * GIB),
            Self::Cdc1m | Self::Fixed4m => None,
        }
    }

    /// Fewest bytes in a chunk, but for a file's last.
    #[must_use]
    pub fn chunk_bytes_min(self) -> usize {
        match self {
            Self::Fixed4m => self.chunk_bytes_average(),
            _ => self.chunk_bytes_average() / 4,
        }
    }

    /// Bytes in a chunk on average, about.
    #[must_use]
    pub fn chunk_bytes_average(self) -> usize {
        match self {
            Self::Cdc64k => 64 * 1024,
            Self::Cdc256k => 256 * 1024,
            Self::Cdc1m => 1024 * 1024,
            Self::Fixed4m => 4 * 1024 * 1024,
        }
    }

    /// Most bytes in a chunk.
    #[must_use]
    pub fn chunk_bytes_max(self) -> usize {
        match self {
            Self::Fixed4m => self.chunk_bytes_average(),
            _ => self.chunk_bytes_average() * 4,
        }
    }

    /// Refuses the sizes of a file's chunks, in order, if one that is not the last is smaller than this cutter makes
    /// them: each chunk costs rows, a place in a stripe and its share of a disk's blocks, however small it is. Larger
    /// ones are taken, up to [`CHUNK_BYTES_MAX`](crate::chunk::CHUNK_BYTES_MAX): they cost nobody anything.
    ///
    /// # Errors
    /// With the first that is too small.
    pub fn check_sizes(self, sizes: &[u32]) -> Result<(), SmallChunkError> {
        let least = self.chunk_bytes_min();
        let not_last = &sizes[..sizes.len().saturating_sub(1)];
        match not_last.iter().position(|size| (*size as usize) < least) {
            None => Ok(()),
            Some(index) => Err(SmallChunkError { cutter: self, index, bytes: sizes[index] }),
        }
    }

    /// Bytes of the first chunk of `bytes`, which begin a chunk and hold at least a maximal one, or all that is left.
    fn first_cut(self, bytes: &[u8]) -> usize {
        if self == Self::Fixed4m {
            return bytes.len().min(self.chunk_bytes_max());
        }
        let average = self.chunk_bytes_average();
        let (strict, loose) = select_masks(average, Normalization::Level1);
        let (min, max) = (self.chunk_bytes_min(), self.chunk_bytes_max());
        let (_hash, length) = cut(bytes, min, average, max, strict, loose, strict << 1, loose << 1);
        length
    }
}

impl std::fmt::Display for Cutter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cdc64k => "cdc-64k",
            Self::Cdc256k => "cdc-256k",
            Self::Cdc1m => "cdc-1m",
            Self::Fixed4m => "fixed-4m",
        })
    }
}

impl std::str::FromStr for Cutter {
    type Err = CutterError;

    fn from_str(text: &str) -> Result<Self, CutterError> {
        Self::ALL
            .into_iter()
            .find(|cutter| cutter.to_string() == text)
            .ok_or_else(|| CutterError { text: text.chars().take(80).collect() })
    }
}

/// A chunk as it is cut, still in the cutter's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutChunk<'a> {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes, never none.
    pub bytes: &'a [u8],
}

/// Cuts bytes as they come. Push some, take chunks until there is none, and so on; then [`finish`](Self::finish),
/// and take the rest.
///
/// Memory: less than four maximal chunks, and what is pushed at once.
#[derive(Debug)]
pub struct ChunkCutter {
    cutter: Cutter,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are cut already.
    taken: usize,
    /// Where the first byte that is not cut lies in the file.
    offset: u64,
    finished: bool,
}

impl ChunkCutter {
    /// At the start of a file.
    #[must_use]
    pub fn new(cutter: Cutter) -> Self {
        Self { cutter, buffer: Vec::new(), taken: 0, offset: 0, finished: false }
    }

    /// How it cuts.
    #[must_use]
    pub fn cutter(&self) -> Cutter {
        self.cutter
    }

    /// Adds bytes. Chunks must be taken in between, or the buffer grows.
    ///
    /// # Panics
    /// After [`finish`](Self::finish).
    pub fn push(&mut self, bytes: &[u8]) {
        assert!(!self.finished, "bytes pushed after the end");
        self.drop_taken();
        self.buffer.extend_from_slice(bytes);
    }

    /// Adds bytes of `reader` up to two maximal chunks in all, and finishes at its end. Says whether it ended.
    ///
    /// # Errors
    /// Those of the reader; the bytes read before the error stay pushed.
    ///
    /// # Panics
    /// After [`finish`](Self::finish).
    pub fn push_from(&mut self, reader: &mut impl Read) -> std::io::Result<bool> {
        assert!(!self.finished, "bytes pushed after the end");
        self.drop_taken();
        let held = self.buffer.len() - self.taken;
        let wanted = (2 * self.cutter.chunk_bytes_max()).saturating_sub(held);
        let read = reader.take(wanted as u64).read_to_end(&mut self.buffer)?;
        self.finished = read < wanted;
        Ok(self.finished)
    }

    /// Says that no more bytes will come.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// The next chunk, once enough bytes are there to know where it ends.
    pub fn next_chunk(&mut self) -> Option<CutChunk<'_>> {
        let rest = &self.buffer[self.taken..];
        if rest.is_empty() || (!self.finished && rest.len() < self.cutter.chunk_bytes_max()) {
            return None;
        }
        let length = self.cutter.first_cut(rest);
        let chunk = CutChunk { offset: self.offset, bytes: &rest[..length] };
        self.taken += length;
        self.offset += length as u64;
        Some(chunk)
    }

    /// Makes room, once that moves no more bytes than it frees.
    fn drop_taken(&mut self) {
        if self.taken >= self.buffer.len() - self.taken {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
    }
}

/// Cuts all that `reader` gives. Yields each chunk with its offset; after an error, nothing more.
pub fn cut_reader<R: Read>(reader: R, cutter: Cutter) -> CutReader<R> {
    CutReader { reader, cutter: ChunkCutter::new(cutter), ended: false }
}

/// See [`cut_reader`].
#[derive(Debug)]
pub struct CutReader<R> {
    reader: R,
    cutter: ChunkCutter,
    ended: bool,
}

impl<R: Read> Iterator for CutReader<R> {
    type Item = std::io::Result<(u64, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(chunk) = self.cutter.next_chunk() {
                return Some(Ok((chunk.offset, Bytes::copy_from_slice(chunk.bytes))));
            }
            if self.ended {
                return None;
            }
            match self.cutter.push_from(&mut self.reader) {
                Ok(ended) => self.ended = ended,
                Err(error) => {
                    self.ended = true;
                    self.cutter = ChunkCutter::new(self.cutter.cutter());
                    return Some(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
