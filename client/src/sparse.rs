//! Writes files so that what is zero takes no room on the disk: where all of a block is zero, a hole is left.
//!
//! Invariants:
//! - A file reads the same as if every byte had been written; its length is exact, also where it ends in a hole.
//! - Nothing is split but at blocks: bytes without a block of zeros are written by one call.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::write_back::WriteBack;

/// What file systems give and take room by. A hole that is smaller saves nothing.
const BLOCK_BYTES: usize = 4096;
/// Bytes that are compared at once.
const WORD_BYTES: usize = 16;

/// What a place of the file held until now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing was ever written there: it is a hole, or behind the end.
    Hole,
    /// Anything: what is to be a hole has to be made one.
    Anything,
}

/// Whether all bytes are zero. What is not shows at its first bytes, mostly.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<WORD_BYTES>();
    // Some words at a time: what the compiler makes of it compares as many bytes as the memory gives.
    words.chunks(16).all(|some| some.iter().fold(0, |all, word| all | u128::from_ne_bytes(*word)) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// A run of bytes that are written, or left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    from: usize,
    to: usize,
    zero: bool,
}

/// Calls `act` for each run of bytes that is to be at `offset`, in order. Runs meet at blocks of the file.
fn each_run(bytes: &[u8], offset: u64, mut act: impl FnMut(Run) -> io::Result<()>) -> io::Result<()> {
    let within = usize::try_from(offset % BLOCK_BYTES as u64).unwrap_or(0);
    let mut run: Option<Run> = None;
    let mut from = 0;
    while from < bytes.len() {
        let block_end = if from == 0 { BLOCK_BYTES - within } else { from + BLOCK_BYTES };
        let to = block_end.min(bytes.len());
        let zero = is_zero(&bytes[from..to]);
        match &mut run {
            Some(run) if run.zero == zero => run.to = to,
            other => {
                if let Some(done) = other.replace(Run { from, to, zero }) {
                    act(done)?;
                }
            }
        }
        from = to;
    }
    run.map_or(Ok(()), act)
}

/// Writes `bytes` at `offset`. The file is not made longer by zeros at the end of `bytes`: who writes the last of a file
/// sets its length. Blocks.
///
/// # Errors
/// Those of the disk.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64, before: Before) -> io::Result<()> {
    each_run(bytes, offset, |run| {
        let (part, at) = (&bytes[run.from..run.to], offset + run.from as u64);
        match before {
            Before::Hole if run.zero => Ok(()),
            Before::Anything if run.zero => make_hole(file, at, part),
            _ => file.write_all_at(part, at),
        }
    })
}

/// `zeros`: to be written where the file system has no holes.
fn make_hole(file: &File, offset: u64, zeros: &[u8]) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, offset, zeros.len() as u64) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => file.write_all_at(zeros, offset),
        punched => Ok(punched?),
    }
}

/// Writes a new file from its beginning to its end.
#[derive(Debug)]
pub(crate) struct SparseWriter {
    file: File,
    offset: u64,
    write_back: WriteBack,
}

impl SparseWriter {
    /// `file` has nothing in it.
    pub(crate) fn new(file: File) -> Self {
        Self { file, offset: 0, write_back: WriteBack::default() }
    }

    /// The file, with the length of what was written. Waits for what of it is on its way to the disk. Blocks.
    ///
    /// # Errors
    /// Those of the disk. The file must not be used then.
    pub(crate) fn finished(&self) -> io::Result<&File> {
        self.write_back.finish()?;
        if self.file.metadata()?.len() != self.offset {
            self.file.set_len(self.offset)?;
        }
        Ok(&self.file)
    }
}

impl io::Write for SparseWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_at(&self.file, bytes, self.offset, Before::Hole)?;
        self.offset += bytes.len() as u64;
        self.write_back.wrote(&self.file, bytes.len() as u64)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use rand::{Rng, SeedableRng};

    use super::*;

    fn used_bytes(file: &File) -> u64 {
        file.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn a_zero_is_told_from_every_other_byte_wherever_it_is() {
        for len in [0, 1, 15, 16, 17, 255, 256, 257, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn any_bytes_in_any_parts_read_back_and_zeros_take_no_room() {
        let mut random = rand::rngs::SmallRng::seed_from_u64(19);
        for _ in 0..40 {
            let mut bytes = vec![0; random.random_range(0..600_000)];
            let mut at = 0;
            while at < bytes.len() {
                let to = (at + random.random_range(1..60_000)).min(bytes.len());
                if random.random_bool(0.4) {
                    random.fill(&mut bytes[at..to]);
                }
                at = to;
            }
            let file = tempfile::tempfile().unwrap();
            let mut writer = SparseWriter::new(file.try_clone().unwrap());
            let mut left = &bytes[..];
            while !left.is_empty() {
                let (part, rest) = left.split_at(random.random_range(1..=left.len().min(70_000)));
                writer.write_all(part).unwrap();
                left = rest;
            }
            writer.finished().unwrap();
            let mut read = vec![1; bytes.len()];
            file.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(read, bytes);
            assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64, "its end is exact");
            let blocks = bytes.chunks(BLOCK_BYTES).filter(|block| !is_zero(block)).count() as u64;
            // Some for the file system's own.
            assert!(used_bytes(&file) <= (blocks + 4) * BLOCK_BYTES as u64, "{blocks} {}", used_bytes(&file));
        }
    }

    #[test]
    fn what_was_there_before_does_not_shine_through_a_hole() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 100_000], 0).unwrap();
        write_at(&file, &[0; 50_000], 10_000, Before::Anything).unwrap();
        let mut read = vec![1; 100_000];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(is_zero(&read[10_000..60_000]));
        assert!(read[..10_000].iter().chain(&read[60_000..]).all(|byte| *byte == 7));
        assert!(used_bytes(&file) < 80_000, "{}", used_bytes(&file));
    }
}
