//! Groups what a walk finds into units of work. Pure.
//!
//! Invariants:
//! - Order is kept: folders that a unit's files need are in this unit or an earlier one.
//! - A unit is bounded in items and in bytes that will be held in memory.

use super::walk::{Found, LocalFile, LocalFolder, LocalSymlink};
use crate::report::Failure;

/// Files up to this size are read whole, and put many at once.
pub(crate) const SMALL_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Small files in a unit.
const UNIT_FILES_MAX: usize = 256;
/// Bytes of small files in a unit.
const UNIT_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Folders and symlinks in a unit.
const UNIT_ENTRIES_MAX: usize = 512;
/// Large files in a unit.
const UNIT_LARGE_FILES_MAX: usize = 4;

/// Work that is done together.
#[derive(Debug, Default)]
pub(crate) struct Unit {
    pub(crate) folders: Vec<LocalFolder>,
    pub(crate) symlinks: Vec<LocalSymlink>,
    pub(crate) small: Vec<LocalFile>,
    pub(crate) large: Vec<LocalFile>,
    pub(crate) failed: Vec<Failure>,
}

impl Unit {
    fn is_empty(&self) -> bool {
        self.folders.is_empty()
            && self.symlinks.is_empty()
            && self.small.is_empty()
            && self.large.is_empty()
            && self.failed.is_empty()
    }
}

/// Collects a unit.
#[derive(Debug, Default)]
pub(crate) struct Batcher {
    unit: Unit,
    small_bytes: u64,
}

impl Batcher {
    /// Adds one thing; gives the unit before it once that is full.
    pub(crate) fn push(&mut self, found: Found) -> Option<Unit> {
        let full = match &found {
            Found::File(file) if file.size <= SMALL_FILE_BYTES_MAX => {
                self.unit.small.len() >= UNIT_FILES_MAX
                    || (!self.unit.small.is_empty() && self.small_bytes + file.size > UNIT_BYTES_MAX)
            }
            Found::File(_) => self.unit.large.len() >= UNIT_LARGE_FILES_MAX,
            Found::Folder(_) | Found::Symlink(_) | Found::Failed(_) => {
                self.unit.folders.len() + self.unit.symlinks.len() + self.unit.failed.len()
                    >= UNIT_ENTRIES_MAX
            }
        };
        let unit = if full { self.take() } else { None };
        match found {
            Found::Folder(folder) => self.unit.folders.push(folder),
            Found::Symlink(symlink) => self.unit.symlinks.push(symlink),
            Found::Failed(failure) => self.unit.failed.push(failure),
            Found::File(file) if file.size <= SMALL_FILE_BYTES_MAX => {
                self.small_bytes += file.size;
                self.unit.small.push(file);
            }
            Found::File(file) => self.unit.large.push(file),
        }
        unit
    }

    /// The unit that is collected so far, if there is anything in it.
    pub(crate) fn take(&mut self) -> Option<Unit> {
        self.small_bytes = 0;
        let unit = std::mem::take(&mut self.unit);
        if unit.is_empty() { None } else { Some(unit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::RemotePath;

    fn file(size: u64) -> Found {
        Found::File(LocalFile { local: "f".into(), remote: RemotePath::root(), size, in_walked_folder: true })
    }

    #[test]
    fn units_are_bounded_in_files_and_bytes() {
        let mut batcher = Batcher::default();
        let mut units: Vec<Unit> = (0..600).filter_map(|_| batcher.push(file(1))).collect();
        units.extend(batcher.take());
        assert_eq!(units.iter().map(|unit| unit.small.len()).collect::<Vec<_>>(), [256, 256, 88]);
        let mut units: Vec<Unit> = (0..5).filter_map(|_| batcher.push(file(3 << 20))).collect();
        units.extend(batcher.take());
        assert_eq!(units.iter().map(|unit| unit.small.len()).collect::<Vec<_>>(), [2, 2, 1]);
        assert!(batcher.take().is_none());
    }

    #[test]
    fn large_files_do_not_count_as_bytes_held() {
        let mut batcher = Batcher::default();
        assert!(batcher.push(file(1)).is_none());
        assert!(batcher.push(file(1 << 40)).is_none());
        let unit = batcher.take().unwrap();
        assert_eq!((unit.small.len(), unit.large.len()), (1, 1));
    }
}
