//! Small files that must be whole or absent: superblocks and the node's memory of its disks.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Replaces `path` by `bytes` so that a crash at any moment leaves the old content or the new: written beside it,
/// synced, renamed over it, and the directory synced.
///
/// # Errors
/// Any IO error; the old content then stands, or the new one is there but not known to be durable.
pub(crate) fn replace_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))?;
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&temporary, path)?;
    sync_directory(directory)
}

/// Whether a write failed for want of space only.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Creates a directory with its missing parents, each durable in its own parent.
pub(crate) fn create_directory_durably(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_directory_durably(parent)?;
    }
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _created => {}
    }
    sync_directory(parent.unwrap_or(Path::new(".")))
}

/// Milliseconds since 1970, for records that people read; nothing is decided by it.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_holds_the_new_bytes_and_leaves_nothing_beside_it() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("a/b");
        create_directory_durably(&directory).unwrap();
        for content in [b"one".as_slice(), b"second"] {
            replace_durably(&directory.join("file"), content).unwrap();
            assert_eq!(std::fs::read(directory.join("file")).unwrap(), content);
        }
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    }
}
