//! What makes a directory a disk: its superblock, and the lock that keeps a second process out.
//!
//! Invariants:
//! - A superblock is written once, whole, before anything else is in the directory, and never changed.
//! - Only a directory that is absent or empty is formatted, only by [`format`], and by who holds its lock: of two
//!   processes with one blank directory the second meets the lock.
//!
//! After a crash while formatting there is no superblock, and the directory counts as empty.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use engine::ids::{ClusterId, DiskId};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::record::Owner;

/// The superblock's file within a disk's directory.
pub const SUPERBLOCK_FILE: &str = "superblock";

const LOCK_FILE: &str = "lock";
const FORMAT: u32 = 1;

/// What may lie in a directory that counts as empty.
const LEFT_BY_OTHERS: [&str; 3] = ["lost+found", LOCK_FILE, "superblock.tmp"];

/// The superblock as it stands on disk: JSON, so that a person can read whose disk this is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Superblock {
    format: u32,
    cluster: String,
    disk: String,
    created_ms: u64,
    /// CRC-32 over the other fields, joined by newlines.
    crc32: u32,
}

impl Superblock {
    fn checksum(&self) -> u32 {
        let text = format!("{}\n{}\n{}\n{}", self.format, self.cluster, self.disk, self.created_ms);
        crc32fast::hash(text.as_bytes())
    }
}

/// Why a directory is not served as a disk. The text is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// There is no superblock (nor, perhaps, a directory).
    #[error("there is no superblock in {}", path.display())]
    Absent {
        /// The directory.
        path: PathBuf,
        /// Whether the directory is missing, or has nothing in it.
        empty: bool,
    },
    /// The superblock cannot be understood.
    #[error("the superblock in {} is damaged ({reason}); put the right disk there, or a backup of the file", path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Made by a later version.
    #[error("the disk in {} has format {format}; this version knows {FORMAT}: upgrade the software", path.display())]
    Format {
        /// The directory.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// A disk of another installation.
    #[error("the disk in {} belongs to cluster {cluster}, not to this one: it is left untouched", path.display())]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// Another process serves it.
    #[error("the disk in {} is locked: another process serves it", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The directory cannot be read or written.
    #[error("cannot open the disk in {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl SuperblockError {
    /// Whether the directory is absent or empty, so that it may be formatted.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        matches!(self, Self::Absent { empty: true, .. })
    }
}

/// Holds a disk's directory for this process until it is dropped.
#[derive(Debug)]
pub struct DiskLock {
    file: File,
}

impl Drop for DiskLock {
    fn drop(&mut self) {
        // Closing it would do, were it not for a program that is just being started elsewhere in this process: until it
        // runs, it holds what was open here.
        if let Err(error) = flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!(%error, "a disk's lock is released only by closing it");
        }
    }
}

fn is_empty(directory: &Path) -> io::Result<bool> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        if !LEFT_BY_OTHERS.iter().any(|other| name == *other) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads whose disk the directory is.
///
/// # Errors
/// See [`SuperblockError`].
pub fn read(directory: &Path, cluster: ClusterId) -> Result<DiskId, SuperblockError> {
    let path = || directory.to_owned();
    let io = |source| SuperblockError::Io { path: path(), source };
    let bytes = match std::fs::read(directory.join(SUPERBLOCK_FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SuperblockError::Absent { path: path(), empty: is_empty(directory).map_err(io)? });
        }
        Err(error) => return Err(io(error)),
    };
    let damaged = |reason: String| SuperblockError::Damaged { path: path(), reason };
    let superblock: Superblock =
        serde_json::from_slice(&bytes).map_err(|error| damaged(format!("not its JSON: {error}")))?;
    if superblock.checksum() != superblock.crc32 {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    if superblock.format != FORMAT {
        return Err(SuperblockError::Format { path: path(), format: superblock.format });
    }
    let found: ClusterId = superblock.cluster.parse().map_err(|error| damaged(format!("{error}")))?;
    let disk: DiskId = superblock.disk.parse().map_err(|error| damaged(format!("{error}")))?;
    if found != cluster {
        return Err(SuperblockError::OtherCluster { path: path(), cluster: found });
    }
    Ok(disk)
}

/// Makes an absent or empty directory, and locks it: what is to be done before it is formatted.
///
/// # Errors
/// If another process has it, it is neither absent nor empty (by now), or it cannot be written.
pub fn lock_blank(directory: &Path) -> Result<DiskLock, SuperblockError> {
    let io = |source| SuperblockError::Io { path: directory.to_owned(), source };
    files::create_directory_durably(directory).map_err(io)?;
    let lock = lock(directory)?;
    // Whoever had the lock until now may have formatted it.
    if !is_empty(directory).map_err(io)? || directory.join(SUPERBLOCK_FILE).exists() {
        return Err(SuperblockError::Absent { path: directory.to_owned(), empty: false });
    }
    Ok(lock)
}

/// Makes an absent or empty directory a disk of its own. The caller holds its lock, if others may know of it.
///
/// # Errors
/// If it is neither, or cannot be written.
pub fn format(directory: &Path, owner: Owner) -> Result<(), SuperblockError> {
    let path = || directory.to_owned();
    let io = |source| SuperblockError::Io { path: path(), source };
    if !is_empty(directory).map_err(io)? {
        return Err(SuperblockError::Absent { path: path(), empty: false });
    }
    files::create_directory_durably(directory).map_err(io)?;
    let mut superblock = Superblock {
        format: FORMAT,
        cluster: owner.cluster.to_string(),
        disk: owner.disk.to_string(),
        created_ms: files::now_ms(),
        crc32: 0,
    };
    superblock.crc32 = superblock.checksum();
    let mut bytes = serde_json::to_vec_pretty(&superblock).map_err(|error| io(error.into()))?;
    bytes.push(b'\n');
    files::replace_durably(&directory.join(SUPERBLOCK_FILE), &bytes).map_err(io)
}

/// Locks a disk's directory, so that no second process serves it.
///
/// # Errors
/// If another holds the lock, or the file cannot be made.
pub fn lock(directory: &Path) -> Result<DiskLock, SuperblockError> {
    let io = |source| SuperblockError::Io { path: directory.to_owned(), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join(LOCK_FILE))
        .map_err(io)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(DiskLock { file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(SuperblockError::Locked { path: directory.to_owned() }),
        Err(error) => Err(io(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner { cluster: ClusterId::from_bytes([1; 16]), disk: DiskId::from_bytes([2; 16]) }
    }

    #[test]
    fn a_formatted_disk_is_known_again_and_never_formatted_twice() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("disk");
        assert!(read(&path, owner().cluster).unwrap_err().is_blank());
        format(&path, owner()).unwrap();
        assert_eq!(read(&path, owner().cluster).unwrap(), owner().disk);
        assert!(matches!(format(&path, owner()), Err(SuperblockError::Absent { empty: false, .. })));
    }

    #[test]
    fn foreign_damaged_and_full_directories_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("disk");
        format(&path, owner()).unwrap();
        let other = ClusterId::from_bytes([9; 16]);
        assert!(matches!(read(&path, other), Err(SuperblockError::OtherCluster { .. })));

        let file = path.join(SUPERBLOCK_FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("0202", "0203")).unwrap();
        assert!(matches!(read(&path, owner().cluster), Err(SuperblockError::Damaged { .. })));

        std::fs::remove_file(&file).unwrap();
        std::fs::write(path.join("holiday.jpg"), "x").unwrap();
        assert!(!read(&path, owner().cluster).unwrap_err().is_blank());
    }

    #[test]
    fn a_locked_disk_is_refused_until_the_lock_is_dropped() {
        let scratch = tempfile::tempdir().unwrap();
        let held = lock(scratch.path()).unwrap();
        assert!(matches!(lock(scratch.path()), Err(SuperblockError::Locked { .. })));
        // As a program that is being started has it, too.
        let inherited = held.file.try_clone().unwrap();
        drop(held);
        lock(scratch.path()).unwrap();
        drop(inherited);
    }
}
