//! How full a disk is, and when it takes no more.
//!
//! Invariant: writes are refused while what is free is within the reserve, so deletes, the index and repairs always
//! have room. The reserve is left again only with an eighth of it to spare, so a disk does not flap.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

/// Most that is reserved unless the configuration says otherwise.
const RESERVE_BYTES_MAX: u64 = 2 << 30;

/// Least that is reserved, on disks where it is not more than a quarter: room for the index.
const RESERVE_BYTES_MIN: u64 = 32 << 20;

/// The file system of a disk.
#[derive(Debug)]
pub(crate) struct Space {
    directory: PathBuf,
    reserve_bytes: Option<u64>,
}

/// It, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Size.
    pub(crate) capacity_bytes: u64,
    /// Free for this process.
    pub(crate) free_bytes: u64,
    /// Of which these are kept back.
    pub(crate) reserve_bytes: u64,
    /// Whether nothing can be written there: the kernel remounts a file system so when it errs.
    pub(crate) read_only: bool,
}

impl Sample {
    /// Free for shards.
    pub(crate) fn usable_bytes(&self) -> u64 {
        self.free_bytes.saturating_sub(self.reserve_bytes)
    }

    /// Whether `bytes` more can be taken; a disk that is `full` already needs some room to spare.
    pub(crate) fn admits(&self, bytes: u64, full: bool) -> bool {
        let spare = if full { self.reserve_bytes / 8 } else { 0 };
        self.usable_bytes() >= bytes.saturating_add(spare)
    }
}

/// What is reserved of a file system of that size by default: 2%, within bounds.
pub(crate) fn default_reserve_bytes(capacity_bytes: u64) -> u64 {
    (capacity_bytes / 50).clamp(RESERVE_BYTES_MIN.min(capacity_bytes / 4), RESERVE_BYTES_MAX)
}

impl Space {
    pub(crate) fn new(directory: &Path, reserve_bytes: Option<u64>) -> Self {
        Self { directory: directory.to_owned(), reserve_bytes }
    }

    /// Asks the file system.
    pub(crate) fn sample(&self) -> io::Result<Sample> {
        let stat = statvfs(&self.directory)?;
        let capacity_bytes = stat.f_blocks.saturating_mul(stat.f_frsize);
        Ok(Sample {
            capacity_bytes,
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
            reserve_bytes: self.reserve_bytes.unwrap_or_else(|| default_reserve_bytes(capacity_bytes)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_small_on_small_disks_and_bounded_on_large_ones() {
        assert_eq!(default_reserve_bytes(64 << 20), 16 << 20);
        assert_eq!(default_reserve_bytes(1 << 30), 32 << 20);
        assert_eq!(default_reserve_bytes(16 << 40), 2 << 30);
    }

    #[test]
    fn a_full_disk_needs_room_to_spare_before_it_takes_more() {
        let sample = Sample { capacity_bytes: 1000, free_bytes: 108, reserve_bytes: 80, read_only: false };
        assert!(sample.admits(28, false) && !sample.admits(29, false));
        assert!(sample.admits(18, true) && !sample.admits(19, true));
    }
}
