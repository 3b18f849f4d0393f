//! Small files for the owner only, replaced as a whole.
//!
//! Invariants:
//! - After a crash the file holds the old bytes or the new.
//! - It is never readable by others, not even for a moment.
//! - Nothing but a regular file is replaced; a symlink to one stays, and what it points to is replaced.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes `bytes` to a new file of mode 0600 beside `path`, syncs it, renames it into place, and syncs the directory.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let path = &replaceable(path)?;
    let name = path.file_name().ok_or_else(|| std::io::Error::other("not a file name"))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = directory.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| std::fs::File::open(directory)?.sync_all());
    if written.is_err() {
        drop(std::fs::remove_file(&temporary));
    }
    written
}

/// The file that may be replaced where `path` is: itself, or what it points to. Blocks.
///
/// # Errors
/// If something else is there: a device, say, as `/dev/stdout` leads to one.
pub fn replaceable(path: &Path) -> std::io::Result<PathBuf> {
    let refused =
        || Err(std::io::Error::other("something other than a file is there, which is not replaced"));
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(path.to_owned()),
        Ok(metadata) if metadata.is_symlink() => {
            let file = std::fs::canonicalize(path)?;
            if std::fs::symlink_metadata(&file)?.is_file() { Ok(file) } else { refused() }
        }
        Ok(_) => refused(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(error) => Err(error),
    }
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "old").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::os::unix::fs::symlink("/dev/null", at("device")).unwrap();
        replace(&at("link"), b"new").unwrap();
        assert!(at("link").is_symlink());
        assert_eq!(std::fs::read(at("file")).unwrap(), b"new");
        assert!(replace(&at("device"), b"new").is_err());
        assert!(at("device").is_symlink());
        replace(&at("fresh"), b"new").unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 4, "no temporary file is left");
    }
}
