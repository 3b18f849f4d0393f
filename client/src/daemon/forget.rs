//! Forgets that a folder was kept in sync: its state and its marker go, the files in it and the local trash stay. Kept
//! in sync again, with whatever remote folder, it is taken for new: what both sides have is joined, and nothing is
//! deleted. Or only sets a state aside that is in the way of a new folder ([`set_aside`]).
//!
//! After a crash in between the state may be gone and the marker there: the folder is taken for new as well.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::local::rel::STATE_FOLDER;
use crate::local::root::{EXCLUSIONS_FILE, LOCK_FILE, MARKER_FILE};
use crate::state::database::FILE_NAME;

/// What a state consists of: its file, and what SQLite has beside it.
const FILE_SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// Why a folder cannot be forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// It is being kept in sync.
    #[error("{} is being kept in sync: stop that first", .0.display())]
    Busy(PathBuf),
    /// A file cannot be removed, renamed or locked.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// Remove, rename, lock.
        what: &'static str,
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
    // A folder is locked once, by whatever name.
    let elsewhere = state.filter(|state| !is_same(state, &own));
    let folders = [Some(own.as_path()), elsewhere].into_iter().flatten();
    // Held until all is removed.
    let mut locks = Vec::new();
    for folder in folders.clone() {
        locks.extend(lock(directory, folder)?);
    }
    let mut any = false;
    for folder in folders {
        for suffix in FILE_SUFFIXES {
            any |= remove(&folder.join(format!("{FILE_NAME}{suffix}")))?;
        }
    }
    any |= remove(&own.join(EXCLUSIONS_FILE))?;
    any |= remove(&own.join(MARKER_FILE))?;
    drop(locks);
    Ok(any)
}

/// Sets the state of a folder aside that is to be taken for a new one: it is of another, or of a time before. Gives its
/// new name; nothing if there is no state, or if the folder has its marker and so is the one that the state knows. After
/// a crash in between, what is left of the state is set aside the next time. Blocking.
///
/// # Errors
/// If the folder or the state is in use, or a file cannot be renamed.
pub fn set_aside(directory: &Path, state: Option<&Path>) -> Result<Option<PathBuf>, ForgetError> {
    let own = directory.join(STATE_FOLDER);
    let folder = state.unwrap_or(&own);
    let path = folder.join(FILE_NAME);
    if own.join(MARKER_FILE).symlink_metadata().is_ok() || path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let mut locks = Vec::new();
    locks.extend(lock(directory, &own)?);
    if !is_same(folder, &own) {
        locks.extend(lock(folder, folder)?);
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let aside = folder.join(format!("{FILE_NAME}.aside-{}", now.as_nanos()));
    // The file itself comes last: as long as it is there, it is not taken for set aside.
    for suffix in FILE_SUFFIXES.into_iter().rev() {
        let (from, to) = (with_suffix(&path, suffix), with_suffix(&aside, suffix));
        match std::fs::rename(&from, to) {
            Err(source) if !is_absent(&source) => {
                return Err(ForgetError::Io { what: "rename", path: from, source });
            }
            Ok(()) | Err(_) => {}
        }
    }
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| ForgetError::Io { what: "rename", path, source })?;
    drop(locks);
    Ok(Some(aside))
}

fn is_same(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The lock of a folder that has one.
fn lock(directory: &Path, folder: &Path) -> Result<Option<File>, ForgetError> {
    let path = folder.join(LOCK_FILE);
    let file = match File::options().write(true).open(&path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(source) => return Err(ForgetError::Io { what: "lock", path, source }),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(ForgetError::Busy(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(ForgetError::Io { what: "lock", path, source }),
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn remove(path: &Path) -> Result<bool, ForgetError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(source) => Err(ForgetError::Io { what: "remove", path: path.to_owned(), source }),
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
        let own = root.join(STATE_FOLDER);
        drop(Root::create(&root, Some(&own), &[]).unwrap());
        assert!(forget(&root, Some(&own)).unwrap(), "its own folder, named");
        assert!(!forget(&scratch.path().join("gone"), None).unwrap());
    }

    #[test]
    fn a_state_is_set_aside_whole_where_the_marker_is_gone() {
        let scratch = tempfile::tempdir().unwrap();
        let (root, state) = (scratch.path().join("root"), scratch.path().join("state"));
        std::fs::create_dir(&root).unwrap();
        for state in [None, Some(state.as_path())] {
            let open = Root::create(&root, state, &[]).unwrap();
            let path = open.state_path().join(FILE_NAME);
            std::fs::write(&path, "state").unwrap();
            std::fs::write(with_suffix(&path, "-wal"), "log").unwrap();
            assert_eq!(set_aside(&root, state).unwrap(), None, "it is the folder that the state knows");
            std::fs::remove_file(root.join(STATE_FOLDER).join(MARKER_FILE)).unwrap();
            assert!(matches!(set_aside(&root, state), Err(ForgetError::Busy(_))));
            drop(open);
            let aside = set_aside(&root, state).unwrap().unwrap();
            assert_eq!(std::fs::read(&aside).unwrap(), b"state");
            assert_eq!(std::fs::read(with_suffix(&aside, "-wal")).unwrap(), b"log");
            assert!(!path.exists() && !with_suffix(&path, "-wal").exists());
            assert_eq!(set_aside(&root, state).unwrap(), None, "there is none any more");
        }
    }
}
