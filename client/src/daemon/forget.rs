//! Forgets that a folder was kept in sync: its state and its marker go, the files in it and the local trash stay. Kept
//! in sync again, with whatever remote folder, it is taken for new: what both sides have is joined, and nothing is
//! deleted.
//!
//! After a crash in between the state may be gone and the marker there: the folder is taken for new as well.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::local::rel::STATE_FOLDER;
use crate::local::root::{EXCLUSIONS_FILE, LOCK_FILE, MARKER_FILE};
use crate::state::database::FILE_NAME;

/// Why a folder cannot be forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// It is being kept in sync.
    #[error("{} is being kept in sync: stop that first", .0.display())]
    Busy(PathBuf),
    /// A file cannot be removed.
    #[error("cannot remove {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Forgets `directory`, whose state is in `state` or, absent, in the folder itself. Gives whether there was anything.
/// Blocking.
///
/// # Errors
/// If it is being kept in sync, or a file cannot be removed.
pub fn forget(directory: &Path, state: Option<&Path>) -> Result<bool, ForgetError> {
    let own = directory.join(STATE_FOLDER);
    let folders = [Some(own.as_path()), state].into_iter().flatten();
    // Held until all is removed.
    let mut locks = Vec::new();
    for folder in folders.clone() {
        locks.extend(lock(directory, folder)?);
    }
    let mut any = false;
    for folder in folders {
        for suffix in ["", "-wal", "-shm"] {
            any |= remove(&folder.join(format!("{FILE_NAME}{suffix}")))?;
        }
    }
    any |= remove(&own.join(EXCLUSIONS_FILE))?;
    any |= remove(&own.join(MARKER_FILE))?;
    drop(locks);
    Ok(any)
}

/// The lock of a folder that has one.
fn lock(directory: &Path, folder: &Path) -> Result<Option<File>, ForgetError> {
    let path = folder.join(LOCK_FILE);
    let file = match File::options().write(true).open(&path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(source) => return Err(ForgetError::Io { path, source }),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(ForgetError::Busy(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(ForgetError::Io { path, source }),
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn remove(path: &Path) -> Result<bool, ForgetError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(source) => Err(ForgetError::Io { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::root::{Root, RootError};

    #[test]
    fn a_forgotten_folder_is_new_and_keeps_its_files() {
        let scratch = tempfile::tempdir().unwrap();
        let (root, state) = (scratch.path().join("root"), scratch.path().join("state"));
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("file"), "x").unwrap();
        assert!(!forget(&root, None).unwrap(), "there is nothing to forget");
        for state in [None, Some(state.as_path())] {
            let open = Root::create(&root, state, &[]).unwrap();
            std::fs::write(open.state_path().join(FILE_NAME), "state").unwrap();
            assert!(matches!(forget(&root, state), Err(ForgetError::Busy(_))));
            drop(open);
            assert!(forget(&root, state).unwrap());
            assert!(matches!(Root::open(&root, state), Err(RootError::MarkerMissing(_))));
            assert!(root.join("file").exists());
        }
        assert!(!forget(&scratch.path().join("gone"), None).unwrap());
    }
}
