//! How a witness keeps its [`Attestations`] on disk: in a file of two halves, which are overwritten in turn. It says
//! something new every second, and replacing a file each time would cost a commit of the file system's journal.
//!
//! A half: magic, generation (u64), length of the rows (u32), rows, CRC-32 of all that; then whatever lay there before.
//! Numbers are little-endian. The valid half of the higher generation counts.
//!
//! What is on disk after a crash:
//! - while a file is made: the file before, or the new one (it is renamed into place);
//! - while a half is overwritten, wherever the write is torn: the other half, which is whole, or the new one.
//!
//! Invariant: the half that is overwritten is the older one, and the newer one is *known* to be on disk. Who has just
//! started does not know that, nor who had an error: both make the file anew.

use super::{ATTESTED_VOTERS_MAX, Attestations, ROW_BYTES};

const MAGIC: &[u8; 8] = b"KSATTES2";
/// Of files that have no halves, which builds before this form wrote.
const MAGIC_WHOLE: &[u8; 8] = b"KSATTES1";
const HEAD_BYTES: usize = 8 + 8 + 4;
/// A half has blocks of its own, for all rows that there can be.
const HALF_BYTES: usize = 16 << 10;
const _: () = assert!(HEAD_BYTES + ATTESTED_VOTERS_MAX * ROW_BYTES + 4 <= HALF_BYTES);

/// Why a witness's file cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a file of attestations, or a damaged one")]
pub struct DamagedAttestations;

/// A witness's file, as far as it is known since the witness started; `F` is what writes to it.
#[derive(Debug)]
pub struct Halves<F> {
    /// The open file, and the generation of its newest half.
    made: Option<(F, u64)>,
}

impl<F> Default for Halves<F> {
    fn default() -> Self {
        Self { made: None }
    }
}

impl<F> Halves<F> {
    /// Makes the file hold this. `make` replaces the file by these bytes and opens it, `overwrite` writes bytes at an offset
    /// of it; each returns once that is durable.
    ///
    /// # Errors
    /// That of `make` or `overwrite`. What the file then holds is this, or what it held before; the next call makes it anew.
    pub fn keep<E>(
        &mut self,
        held: &Attestations,
        make: impl FnOnce(&[u8]) -> Result<F, E>,
        overwrite: impl FnOnce(&F, u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Put back only when all went well.
        let (file, generation) = match self.made.take() {
            None => {
                let mut bytes = half(0, held);
                bytes.resize(2 * HALF_BYTES, 0);
                (make(&bytes)?, 0)
            }
            Some((file, generation)) => {
                let generation = generation + 1;
                let offset = if generation.is_multiple_of(2) { 0 } else { HALF_BYTES as u64 };
                overwrite(&file, offset, &half(generation, held))?;
                (file, generation)
            }
        };
        self.made = Some((file, generation));
        Ok(())
    }
}

/// Reads a file.
///
/// # Errors
/// If it is not one, or no half of it is whole.
pub fn read(file: &[u8]) -> Result<Attestations, DamagedAttestations> {
    if file.len() != 2 * HALF_BYTES {
        return read_whole(file).ok_or(DamagedAttestations);
    }
    let halves = file.chunks(HALF_BYTES).filter_map(read_half);
    halves.max_by_key(|(generation, _)| *generation).map(|(_, held)| held).ok_or(DamagedAttestations)
}

fn half(generation: u64, held: &Attestations) -> Vec<u8> {
    let rows = held.rows();
    let mut bytes = Vec::with_capacity(HEAD_BYTES + rows.len() + 4);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&generation.to_le_bytes());
    // At most ATTESTED_VOTERS_MAX rows.
    bytes.extend_from_slice(&u32::try_from(rows.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&rows);
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

fn read_half(half: &[u8]) -> Option<(u64, Attestations)> {
    let (generation, rest) = half.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let rows = rest.get(..length)?;
    let sum = rest.get(length..)?.first_chunk::<4>()?;
    if crc32fast::hash(&half[..HEAD_BYTES + length]).to_le_bytes() != *sum {
        return None;
    }
    Some((u64::from_le_bytes(*generation), Attestations::from_rows(rows)?))
}

fn read_whole(file: &[u8]) -> Option<Attestations> {
    let (body, sum) = file.split_last_chunk::<4>()?;
    let rows = body.strip_prefix(MAGIC_WHOLE)?;
    if crc32fast::hash(body).to_le_bytes() != *sum {
        return None;
    }
    Attestations::from_rows(rows)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use rand::rngs::SmallRng;
    use rand::{Rng, RngCore, SeedableRng};

    use super::*;
    use crate::attestation::Attestation;
    use crate::ids::NodeId;

    fn of(voters: u64, sequence: u64) -> Attestations {
        let mut held = Attestations::default();
        for voter in 0..voters {
            held.tell(NodeId(voter), Attestation { incarnation: [1; 16], start: 7, run: [2; 16], sequence });
        }
        held
    }

    fn write(file: &mut [u8], offset: u64, bytes: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Of the sectors of a write each is on disk, or is not, or is neither what it was nor what it was to be.
    fn tear(file: &mut [u8], offset: u64, bytes: &[u8], random: &mut SmallRng) {
        for (sector, at) in bytes.chunks(512).zip((offset..).step_by(512)) {
            let mut sector = sector.to_vec();
            match random.random_range(0..5) {
                0 | 1 => continue,
                2 => random.fill_bytes(&mut sector),
                _ => {}
            }
            write(file, at, &sector);
        }
    }

    /// A file in memory, and whether the next write of it fails.
    #[derive(Default)]
    struct Disk {
        file: RefCell<Vec<u8>>,
        failing: Cell<bool>,
        made: Cell<u32>,
    }

    impl Disk {
        /// Keeps `held`. A write that fails may have been done in part; one that makes the file is done or not.
        fn keep(
            &self,
            halves: &mut Halves<()>,
            held: &Attestations,
            random: &mut SmallRng,
        ) -> Result<(), ()> {
            let failing = self.failing.get();
            let make = |bytes: &[u8]| {
                self.made.set(self.made.get() + 1);
                if !failing || random.random() {
                    *self.file.borrow_mut() = bytes.to_vec();
                }
                if failing { Err(()) } else { Ok(()) }
            };
            let mut torn = SmallRng::seed_from_u64(self.made.get().into());
            let overwrite = |&(): &(), offset, bytes: &[u8]| {
                let mut file = self.file.borrow_mut();
                if failing {
                    tear(&mut file, offset, bytes, &mut torn);
                    return Err(());
                }
                write(&mut file, offset, bytes);
                Ok(())
            };
            halves.keep(held, make, overwrite)
        }
    }

    #[test]
    fn failing_writes_and_crashes_leave_what_was_held_before_or_the_new() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        for _round in 0..300 {
            let disk = Disk::default();
            let mut halves = Halves::default();
            disk.keep(&mut halves, &of(1, 0), &mut random).unwrap();
            let mut old = of(1, 0);
            for sequence in 1..random.random_range(2..20) {
                if random.random_ratio(1, 6) {
                    // Started anew.
                    halves = Halves::default();
                }
                disk.failing.set(random.random_ratio(1, 4));
                let new = of([1, 3, 40, 256][random.random_range(0..4)], sequence);
                let kept = disk.keep(&mut halves, &new, &mut random);
                let found = read(&disk.file.borrow()).unwrap();
                assert!(found == new || kept.is_err() && found == old, "seed {seed}: {found:?}");
                old = found;
            }
        }
    }

    #[test]
    fn a_file_is_made_once_and_again_after_an_error() {
        let mut random = SmallRng::seed_from_u64(1);
        let disk = Disk::default();
        let mut halves = Halves::default();
        for (sequence, failing, made) in
            [(1, false, 1), (2, false, 1), (3, true, 1), (4, true, 2), (5, false, 3), (6, false, 3)]
        {
            disk.failing.set(failing);
            assert_eq!(disk.keep(&mut halves, &of(2, sequence), &mut random).is_err(), failing);
            assert_eq!(disk.made.get(), made, "{sequence}");
        }
    }

    #[test]
    fn a_file_of_an_older_build_is_read_and_a_damaged_one_refused() {
        let mut bytes = MAGIC_WHOLE.to_vec();
        bytes.extend_from_slice(&of(3, 5).rows());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        assert_eq!(read(&bytes), Ok(of(3, 5)));
        for index in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[index] ^= 1;
            assert_eq!(read(&flipped), Err(DamagedAttestations), "byte {index}");
        }
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let mut file = half(0, &of(3, 5));
        file.resize(2 * HALF_BYTES, 0);
        for index in 0..HEAD_BYTES + 3 * ROW_BYTES + 4 {
            let mut flipped = file.clone();
            flipped[index] ^= 1;
            assert_eq!(read(&flipped), Err(DamagedAttestations), "byte {index}");
        }
        let (zeros, ones) = ([0; 2 * HALF_BYTES], [255; 2 * HALF_BYTES]);
        for bytes in [&file[..file.len() - 1], &file[..100], b"", &zeros, &ones] {
            assert_eq!(read(bytes), Err(DamagedAttestations), "{} bytes", bytes.len());
        }
    }
}
