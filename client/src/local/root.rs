//! The folder that is kept the same: whose it is, that it is there, and that nobody else has it.
//!
//! `DIR/.keepstone/root` is the marker. It says the root's random id, which the state repeats: a folder without it, or
//! with another, is not the one whose files the state knows, and what it lacks was not deleted by anybody. A disk that
//! is not mounted leaves an empty folder without a marker. The marker alone decides: the numbers of a disk and of its
//! file system are not the same for good.
//!
//! Invariants:
//! - All is done relative to one descriptor, opened once: whatever is mounted over the path later, or renamed into its
//!   place, is not touched.
//! - Two processes never hold one state: it is locked as long as a [`Root`] lives.
//!
//! After a crash in [`Root::create`]: no marker (as if never begun), or a whole one.

mod exclusions;
mod marker;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub(crate) use self::exclusions::EXCLUSIONS_FILE;
pub use self::exclusions::ExclusionsError;
use self::marker::Marker;
use super::beneath::{self, Home};
use super::own_data;
use super::rel::STATE_FOLDER;

/// Temporary files, in the state's folder.
pub(super) const TEMPORARY_FOLDER: &str = "tmp";
/// What was removed by synchronisation, in the state's folder.
pub(super) const TRASH_FOLDER: &str = "trash";
/// The marker's name in the state's folder of a root.
pub(crate) const MARKER_FILE: &str = marker::FILE;
/// Is locked as long as a root is open.
pub(crate) const LOCK_FILE: &str = "lock";

/// Which root it is: random, made once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RootId(pub [u8; 16]);

impl std::fmt::Display for RootId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Why a folder cannot be kept the same, now. While any of these holds nothing is deleted on either side.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Not there.
    #[error("{} is not there: if it is on a disk that is not mounted, mount it", .0.display())]
    Missing(PathBuf),
    /// No folder.
    #[error("{} is no folder", .0.display())]
    NotFolder(PathBuf),
    /// The permissions do not allow to read, or to write, it.
    #[error("{} may not be read and written: check its permissions", .0.display())]
    Denied(PathBuf),
    /// No marker: some other folder, or an empty mount point.
    #[error(
        "{path} has no marker {STATE_FOLDER}/root: a disk may not be mounted there, or the folder was emptied; \
         nothing is deleted. If the folder is right: keepstone sync add --again {path}", path = .0.display()
    )]
    MarkerMissing(PathBuf),
    /// A marker that cannot be read.
    #[error(
        "the marker {STATE_FOLDER}/root in {path} is damaged ({reason}); nothing is deleted. If the folder is right: \
         keepstone sync add --again {path}", path = path.display()
    )]
    MarkerDamaged {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A marker of another root.
    #[error("{} is another folder than before: its marker has another id; nothing is deleted", .0.display())]
    OtherRoot(PathBuf),
    /// Nothing in it but the marker, though there were files.
    #[error("{} is empty, and was not: nothing is deleted. If it is meant: keepstone sync confirm {path}; \
             to bring the files back: keepstone sync undelete {path}", .0.display(), path = .0.display())]
    Empty(PathBuf),
    /// The same root, but not what is open: a disk that was taken out and is there again, or a copy. It is to be opened
    /// anew.
    #[error("{} is there again, as another disk than the one that is open: it is opened anew", .0.display())]
    Remounted(PathBuf),
    /// Another process has the state.
    #[error("another keepstone has {} already", .0.display())]
    Busy(PathBuf),
    /// Lies in a root.
    #[error("{} is inside {}, which is kept in sync itself", path.display(), other.display())]
    Inside {
        /// The folder.
        path: PathBuf,
        /// The root around it.
        other: PathBuf,
    },
    /// A root lies in it.
    #[error("{} is around {}, which is kept in sync itself", path.display(), other.display())]
    Around {
        /// The folder.
        path: PathBuf,
        /// The root in it.
        other: PathBuf,
    },
    /// It is, or lies in, what must not be synchronised.
    #[error("{} cannot be kept in sync: {} is {what}", path.display(), own.display())]
    OwnData {
        /// The folder.
        path: PathBuf,
        /// It, or the folder around it.
        own: PathBuf,
        /// What that is.
        what: &'static str,
    },
    /// The state would be synchronised itself.
    #[error("the state {} is inside the folder itself: put it elsewhere, or leave --state out", .0.display())]
    StateInside(PathBuf),
    /// Anything else.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was to be used.
        path: PathBuf,
        /// Why it cannot.
        source: std::io::Error,
    },
}

fn error(path: &Path, errno: Errno) -> RootError {
    let path = path.to_owned();
    match errno {
        Errno::NOENT => RootError::Missing(path),
        Errno::NOTDIR | Errno::LOOP => RootError::NotFolder(path),
        Errno::ACCESS | Errno::PERM | Errno::ROFS => RootError::Denied(path),
        other => RootError::Io { path, source: other.into() },
    }
}

/// An open root.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    state: PathBuf,
    fd: OwnedFd,
    home: Home,
    inode: u64,
    id: RootId,
    keeps_inodes: bool,
    locks: Mutex<Vec<HeldLock>>,
}

impl Root {
    /// Makes a folder a root, or takes one that is a root already. `state` is where the state will be; absent, in the
    /// folder itself. `others` are the roots that there are. Blocks.
    ///
    /// # Errors
    /// See [`RootError`].
    pub fn create(path: &Path, state: Option<&Path>, others: &[PathBuf]) -> Result<Self, RootError> {
        let path = path.canonicalize().map_err(|source| io_error(path, source))?;
        check_apart(&path, others)?;
        let fd = open_root(&path)?;
        make_folder(&path, fd.as_fd(), STATE_FOLDER)?;
        let folder = open_state_folder(&path, fd.as_fd())?;
        let id = match marker::read(folder.as_fd()) {
            Ok(Some(marker)) => marker.id,
            Ok(None) | Err(marker::ReadError::Damaged(_)) => RootId(random(&path)?),
            Err(marker::ReadError::Io(errno)) => return Err(error(&path, errno)),
        };
        // The lock first: a root that runs is not changed under its daemon's hands.
        let root = Self::finish_open(path, state, fd, id)?;
        root.write_marker()?;
        Ok(root)
    }

    fn write_marker(&self) -> Result<(), RootError> {
        let folder = open_state_folder(&self.path, self.fd())?;
        let marker = Marker::here(self.id, self.fd(), &self.home);
        marker::write(folder.as_fd(), &marker).map_err(|errno| error(&self.path, errno))
    }

    /// Marks a folder, whose marker is missing or damaged, as the root `id` again. One that has a marker stays as it is.
    /// Takes no lock: whoever keeps it in sync goes on by it. Blocks.
    ///
    /// # Errors
    /// `Empty`: as an empty mount point is, and then nothing is made in it. `OtherRoot`, and as for
    /// [`open`](Self::open).
    pub fn mark_again(path: &Path, id: RootId) -> Result<(), RootError> {
        let path = path.canonicalize().map_err(|source| io_error(path, source))?;
        check_apart(&path, &[])?;
        let fd = open_root(&path)?;
        match read_marker(&path, fd.as_fd()) {
            Ok(marker) if marker.id == id => return Ok(()),
            Ok(_other) => return Err(RootError::OtherRoot(path)),
            Err(RootError::MarkerMissing(_) | RootError::MarkerDamaged { .. }) => {}
            Err(error) => return Err(error),
        }
        if is_empty(fd.as_fd()).map_err(|errno| error(&path, errno))? {
            return Err(RootError::Empty(path));
        }
        let stat = beneath::stat_at(fd.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)
            .map_err(|errno| error(&path, errno))?;
        make_folder(&path, fd.as_fd(), STATE_FOLDER)?;
        let folder = open_state_folder(&path, fd.as_fd())?;
        let marker = Marker::here(id, fd.as_fd(), &Home::of(&stat));
        marker::write(folder.as_fd(), &marker).map_err(|errno| error(&path, errno))
    }

    /// Opens a root that was made. Blocks.
    ///
    /// # Errors
    /// See [`RootError`].
    pub fn open(path: &Path, state: Option<&Path>) -> Result<Self, RootError> {
        let path = path.canonicalize().map_err(|source| io_error(path, source))?;
        check_apart(&path, &[])?;
        let fd = open_root(&path)?;
        let marker = read_marker(&path, fd.as_fd())?;
        let root = Self::finish_open(path, state, fd, marker.id)?;
        // The marker decides. The numbers follow the name that a disk came up under on many file systems (XFS, F2FS,
        // FAT), and are only told.
        if marker != Marker::here(marker.id, root.fd(), &root.home) {
            tracing::info!(root = %root.path.display(), "the folder's disk has other numbers than before");
            root.write_marker()?;
        }
        Ok(root)
    }

    /// Opens a root that was made only to look at it, whoever has it: it is not locked, and nothing is made in it.
    /// Blocks.
    ///
    /// # Errors
    /// See [`RootError`].
    pub(super) fn open_to_look(path: &Path) -> Result<Self, RootError> {
        let path = path.canonicalize().map_err(|source| io_error(path, source))?;
        let fd = open_root(&path)?;
        let marker = read_marker(&path, fd.as_fd())?;
        let stat = beneath::stat_at(fd.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)
            .map_err(|errno| error(&path, errno))?;
        let state = path.join(STATE_FOLDER);
        let (home, inode, keeps_inodes) = (Home::of(&stat), stat.stx_ino, marker::keeps_inodes(fd.as_fd()));
        Ok(Self { path, state, fd, home, inode, id: marker.id, keeps_inodes, locks: Mutex::default() })
    }

    fn finish_open(path: PathBuf, state: Option<&Path>, fd: OwnedFd, id: RootId) -> Result<Self, RootError> {
        let own = path.join(STATE_FOLDER);
        let state = match state {
            Some(state) => {
                std::fs::create_dir_all(state).map_err(|source| io_error(state, source))?;
                state.canonicalize().map_err(|source| io_error(state, source))?
            }
            None => own.clone(),
        };
        if state.starts_with(&path) && !state.starts_with(&own) {
            return Err(RootError::StateInside(state));
        }
        let stat = beneath::stat_at(fd.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)
            .map_err(|errno| error(&path, errno))?;
        let folder = open_state_folder(&path, fd.as_fd())?;
        // In the root as well as beside the state: two states of one root would undo each other's work.
        let mut locks = vec![lock(&path, folder.as_fd())?];
        if state != own {
            let state_fd = open_root(&state)?;
            locks.push(lock(&state, state_fd.as_fd())?);
        }
        make_folder(&path, folder.as_fd(), TEMPORARY_FOLDER)?;
        make_folder(&path, folder.as_fd(), TRASH_FOLDER)?;
        let (home, inode, keeps_inodes) = (Home::of(&stat), stat.stx_ino, marker::keeps_inodes(fd.as_fd()));
        Ok(Self { path, state, fd, home, inode, id, keeps_inodes, locks: Mutex::new(locks) })
    }

    /// Lets others open the root and its state: for who opens it anew. Nothing may be done by it any more.
    pub(crate) fn let_go(&self) {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Checks that the path still leads to this root, with its marker. `had_entries`: whether it is known to hold
    /// anything; then it must not be empty. Blocks.
    ///
    /// # Errors
    /// See [`RootError`].
    pub fn check(&self, had_entries: bool) -> Result<(), RootError> {
        let stat = beneath::stat_at(rustix::fs::CWD, self.path.as_os_str(), AtFlags::empty())
            .map_err(|errno| error(&self.path, errno))?;
        if beneath::device_of(&stat) != self.home.device() || stat.stx_ino != self.inode {
            // Without a marker it is an empty mount point, or a new folder: that says more.
            let there = open_root(&self.path)?;
            let marker = read_marker(&self.path, there.as_fd())?;
            return Err(if marker.id == self.id {
                RootError::Remounted(self.path.clone())
            } else {
                RootError::OtherRoot(self.path.clone())
            });
        }
        let marker = read_marker(&self.path, self.fd())?;
        if marker.id != self.id {
            return Err(RootError::OtherRoot(self.path.clone()));
        }
        if had_entries && self.is_empty().map_err(|errno| error(&self.path, errno))? {
            return Err(RootError::Empty(self.path.clone()));
        }
        Ok(())
    }

    /// Whether nothing is in it but what is its own. Blocks.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub fn is_empty(&self) -> Result<bool, Errno> {
        is_empty(self.fd())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its state is kept.
    #[must_use]
    pub fn state_path(&self) -> &Path {
        &self.state
    }

    /// Which it is. The state repeats it, and is of another root if it has another.
    #[must_use]
    pub fn id(&self) -> RootId {
        self.id
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn home(&self) -> Home {
        self.home
    }

    /// Whether a file keeps its inode number as long as it lives: if not, the number tells nothing of where it was.
    pub(super) fn keeps_inodes(&self) -> bool {
        self.keeps_inodes
    }
}

fn is_empty(folder: BorrowedFd<'_>) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = rustix::fs::openat(folder, ".", flags, Mode::empty())?;
    for entry in rustix::fs::Dir::new(listed)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b".." | b".keepstone") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn io_error(path: &Path, source: std::io::Error) -> RootError {
    match Errno::from_io_error(&source) {
        Some(errno) => error(path, errno),
        None => RootError::Io { path: path.to_owned(), source },
    }
}

fn random(path: &Path) -> Result<[u8; 16], RootError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| RootError::Io {
        path: path.to_owned(),
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(bytes)
}

/// Opens the folder that the user named, for reading, and checks that it may be written.
fn open_root(path: &Path) -> Result<OwnedFd, RootError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| error(path, errno))?;
    let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::accessat(&fd, ".", access, AtFlags::empty()).map_err(|errno| error(path, errno))?;
    Ok(fd)
}

fn make_folder(path: &Path, folder: BorrowedFd<'_>, name: &str) -> Result<(), RootError> {
    match rustix::fs::mkdirat(folder, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(error(path, errno)),
    }
}

fn open_state_folder(path: &Path, root: BorrowedFd<'_>) -> Result<OwnedFd, RootError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    beneath::open_path(root, OsStr::new(STATE_FOLDER), flags).map_err(|errno| match errno {
        Errno::NOENT => RootError::MarkerMissing(path.to_owned()),
        other => error(&path.join(STATE_FOLDER), other),
    })
}

fn read_marker(path: &Path, root: BorrowedFd<'_>) -> Result<Marker, RootError> {
    let folder = open_state_folder(path, root)?;
    match marker::read(folder.as_fd()) {
        Ok(Some(marker)) => Ok(marker),
        Ok(None) => Err(RootError::MarkerMissing(path.to_owned())),
        Err(marker::ReadError::Damaged(reason)) => {
            Err(RootError::MarkerDamaged { path: path.to_owned(), reason })
        }
        Err(marker::ReadError::Io(errno)) => Err(error(&path.join(STATE_FOLDER), errno)),
    }
}

/// Until it is dropped.
#[derive(Debug)]
struct HeldLock(OwnedFd);

impl Drop for HeldLock {
    fn drop(&mut self) {
        // Closing it would do, were it not for a program that is just being started elsewhere in this process: until it
        // runs, it holds what was open here.
        if let Err(error) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "a folder's lock is released only by closing it");
        }
    }
}

fn lock(path: &Path, folder: BorrowedFd<'_>) -> Result<HeldLock, RootError> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(folder, LOCK_FILE, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| error(path, errno))?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(HeldLock(fd)),
        Err(Errno::WOULDBLOCK) => Err(RootError::Busy(path.to_owned())),
        Err(errno) => Err(error(path, errno)),
    }
}

/// Checks that a folder is neither in another root nor around one.
fn check_apart(path: &Path, others: &[PathBuf]) -> Result<(), RootError> {
    if let Some((own, what)) = own_data::around(path) {
        return Err(RootError::OwnData { path: path.to_owned(), own: own.to_owned(), what });
    }
    for other in path.ancestors().skip(1) {
        if other.join(STATE_FOLDER).join(marker::FILE).symlink_metadata().is_ok() {
            return Err(RootError::Inside { path: path.to_owned(), other: other.to_owned() });
        }
    }
    for other in others {
        let Ok(other) = other.canonicalize() else { continue };
        if other != path && other.starts_with(path) {
            return Err(RootError::Around { path: path.to_owned(), other });
        }
        if other != path && path.starts_with(&other) {
            return Err(RootError::Inside { path: path.to_owned(), other });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
