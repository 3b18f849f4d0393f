//! Looks at, and changes, what is on disk, one thing at a time. All of it blocks.
//!
//! Invariants:
//! - Nothing outside the root is touched, no symlink is followed, no mount point below the root is entered.
//! - Nothing that is there is replaced or removed unless it is what was last seen: each change names the [`Stamp`] or
//!   [`Identity`] that it expects.
//! - Nothing is put into a folder that took the place of the one that was meant.
//! - An error leaves the disk as it was, but where a function says otherwise.

mod create;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Statx, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::beneath::{self, Home};
use super::model::{Identity, Stamp};
use super::rel::Rel;
use super::root::Root;
use super::unsynced::{self, Protection};

/// File systems keep times at least this precisely (FAT: two seconds).
const TIME_PRECISION_NS: u64 = 2_000_000_001;

/// Why something on disk was not done. Variants differ where the caller's next move differs.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Not as it was expected: scan it, and plan anew.
    #[error("{0} has changed meanwhile")]
    Changed(Rel),
    /// Not there, or a folder on the way is not: scan it, and plan anew.
    #[error("{0} has vanished meanwhile")]
    Vanished(Rel),
    /// Something is at the place: scan it, and plan anew.
    #[error("{0} is there already")]
    Exists(Rel),
    /// The disk is full: try again once it has more room.
    #[error("no space left on the disk for {0}")]
    NoSpace(Rel),
    /// The quota on the disk is used up, of which the room on the disk says nothing: try again later.
    #[error("no space left on the disk for {0}: its quota is used up")]
    Quota(Rel),
    /// Permissions, or a read-only file system.
    #[error("{0} may not be changed: check its permissions")]
    Denied(Rel),
    /// A flag keeps everybody from changing it: the owner and root too.
    #[error("{rel} is marked {flag}, or a folder that it is in is: take that away ({remedy})")]
    Protected {
        /// What.
        rel: Rel,
        /// As it is called.
        flag: &'static str,
        /// What a person does about it.
        remedy: &'static str,
    },
    /// This file system cannot hold it.
    #[error("this file system cannot hold {rel}: {reason}")]
    NotSupported {
        /// What.
        rel: Rel,
        /// Why.
        reason: String,
    },
    /// It cannot be renamed from where it is, also not into the trash: somebody must move it.
    #[error(
        "{0} cannot be renamed or removed by synchronisation on this file system (a folder of an overlay's lower layer, \
         or a subvolume): do that by hand, as with mv or rm"
    )]
    NotMovable(Rel),
    /// Anything else, damaged disks among it.
    #[error("{rel}: {source}")]
    Io {
        /// What.
        rel: Rel,
        /// Why.
        source: std::io::Error,
    },
}

impl DiskError {
    /// Sorts what the system says of `rel`.
    pub(super) fn of(rel: &Rel, errno: Errno) -> Self {
        let rel = rel.clone();
        match errno {
            Errno::NOENT => Self::Vanished(rel),
            Errno::EXIST | Errno::NOTEMPTY => Self::Exists(rel),
            // A symlink, a file or a mount point is where a folder was; or the reverse.
            Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::XDEV | Errno::BUSY => Self::Changed(rel),
            Errno::NOSPC => Self::NoSpace(rel),
            Errno::DQUOT => Self::Quota(rel),
            Errno::ACCESS | Errno::PERM | Errno::ROFS => Self::Denied(rel),
            Errno::NAMETOOLONG => Self::NotSupported { rel, reason: "the name is too long".to_owned() },
            Errno::ILSEQ => Self::NotSupported { rel, reason: "it does not allow the name".to_owned() },
            Errno::FBIG => Self::NotSupported { rel, reason: "the file is too large".to_owned() },
            Errno::OPNOTSUPP | Errno::NOSYS => {
                Self::NotSupported { rel, reason: "it lacks the operation".to_owned() }
            }
            other => Self::Io { rel, source: other.into() },
        }
    }

    /// As [`of`](Self::of), of a rename of `rel` within the root, both of whose folders were opened: there is no other
    /// file system on the way, and a name that is refused is refused always.
    pub(super) fn of_rename(rel: &Rel, errno: Errno) -> Self {
        match errno {
            Errno::XDEV => Self::NotMovable(rel.clone()),
            Errno::INVAL => {
                Self::NotSupported { rel: rel.clone(), reason: "it does not allow the name".to_owned() }
            }
            other => Self::of(rel, other),
        }
    }

    /// As [`of`](Self::of), of what the standard library gives.
    pub(super) fn of_io(rel: &Rel, error: std::io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => Self::of(rel, errno),
            None => Self::Io { rel: rel.clone(), source: error },
        }
    }
}

/// When the entries of the folders that change are made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before the function returns.
    Now,
    /// By [`Root::sync_folder`], called for each folder once for many changes, before they are recorded.
    Later,
}

/// What something on disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// A folder.
    Folder,
    /// A regular file.
    File,
    /// A symlink.
    Symlink,
    /// A pipe, socket or device: not synchronised.
    Special,
    /// A folder or file where another file system is mounted: not synchronised.
    MountPoint,
}

/// What is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: ObjectKind,
    /// How it is.
    pub stamp: Stamp,
    /// Names that it has, on the whole file system.
    pub links: u32,
}

pub(super) fn nanoseconds(time: rustix::fs::StatxTimestamp) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec))
}

pub(super) fn object_of(stat: &Statx, home: &Home) -> Object {
    let kind = match FileType::from_raw_mode(stat.stx_mode.into()) {
        _ if !home.holds(stat) || beneath::is_mount_point(stat) => ObjectKind::MountPoint,
        FileType::Directory => ObjectKind::Folder,
        FileType::RegularFile => ObjectKind::File,
        FileType::Symlink => ObjectKind::Symlink,
        _ => ObjectKind::Special,
    };
    let known = rustix::fs::StatxFlags::from_bits_retain(stat.stx_mask);
    let born_ns = if known.contains(rustix::fs::StatxFlags::BTIME) { nanoseconds(stat.stx_btime) } else { 0 };
    let stamp = Stamp {
        identity: Identity { inode: stat.stx_ino, born_ns },
        size: stat.stx_size,
        mtime_ns: nanoseconds(stat.stx_mtime),
        ctime_ns: nanoseconds(stat.stx_ctime),
        mode: u32::from(stat.stx_mode) & 0o7777,
    };
    Object { kind, stamp, links: stat.stx_nlink }
}

/// Whether two stamps are of one object with the same bytes; a rename between them is allowed.
pub(super) fn same_but_renamed(a: &Stamp, b: &Stamp) -> bool {
    Stamp { ctime_ns: 0, ..*a } == Stamp { ctime_ns: 0, ..*b }
}

/// The stamp of what was `before` and has been renamed since: what the rename itself changes is taken over. If anything
/// else has changed, somebody has edited it, and the stamp stays as it was, so that the next scan sees the edit.
pub(crate) fn moved_stamp(before: &Stamp, after: Stamp) -> Stamp {
    if same_but_renamed(before, &after) { after } else { *before }
}

pub(super) fn times(mtime_ns: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: mtime_ns.div_euclid(1_000_000_000),
            tv_nsec: mtime_ns.rem_euclid(1_000_000_000),
        },
    }
}

pub(super) fn mode_of(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & 0o7777)
}

/// Held while folders are made writable: of two at once, the second would take the first one's mode for the right one,
/// or find the folder read-only again.
static WRITABLE: Mutex<()> = Mutex::new(());

/// Does something in folders that we own, also if they are read-only: they are made writable for that moment, one after
/// another. After a crash in it the owner may write in them.
pub(super) fn in_writable<T>(
    folders: &[BorrowedFd<'_>],
    act: impl Fn() -> Result<T, Errno>,
) -> Result<T, Errno> {
    match act() {
        Err(Errno::ACCESS) => {}
        done => return done,
    }
    let _one_at_a_time = WRITABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut changed = Vec::new();
    for folder in folders {
        let stat = beneath::stat_at(*folder, OsStr::new(""), AtFlags::EMPTY_PATH)?;
        let mode = Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o7777);
        if mode.contains(Mode::WUSR | Mode::XUSR) {
            continue;
        }
        let path = beneath::path_of_fd(*folder);
        let writable = mode | Mode::WUSR | Mode::XUSR;
        if rustix::fs::chmodat(rustix::fs::CWD, &path, writable, AtFlags::empty()).is_ok() {
            changed.push((path, mode));
        }
    }
    // Also if none was changed: somebody may just have made it writable.
    let done = act();
    for (path, mode) in changed {
        if let Err(error) = rustix::fs::chmodat(rustix::fs::CWD, &path, mode, AtFlags::empty()) {
            tracing::warn!(%error, "a folder stays writable");
        }
    }
    done
}

/// Permission bits of what this program has just made, or owns: those that the file system has no room for are left
/// out, and a scan takes what it shows instead for what was asked for.
pub(super) fn unless_unable(set: Result<(), Errno>) -> Result<(), Errno> {
    match set {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        done => done,
    }
}

type Named<'a> = (BorrowedFd<'a>, &'a OsStr);

/// Renames, replacing nothing, also on file systems that cannot promise that, and in folders that are read-only.
pub(super) fn rename_new(from: Named<'_>, to: Named<'_>) -> Result<(), Errno> {
    match in_writable(&[from.0, to.0], || rename_new_once(from, to)) {
        // A folder that goes into another one is changed itself: its `..` is.
        Err(Errno::ACCESS) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let moved = rustix::fs::openat(from.0, from.1, flags, Mode::empty())
                .map_err(|_no_folder| Errno::ACCESS)?;
            in_writable(&[from.0, to.0, moved.as_fd()], || rename_new_once(from, to))
        }
        done => done,
    }
}

fn rename_new_once(from: Named<'_>, to: Named<'_>) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {}
        renamed => return renamed,
    }
    // A hard link does not replace either. Folders have none: there, something made between the look and the rename
    // can only be an empty folder (anything else makes the rename fail).
    match rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()) {
        Ok(()) => return rustix::fs::unlinkat(from.0, from.1, AtFlags::empty()),
        Err(Errno::EXIST) => return Err(Errno::EXIST),
        Err(_no_links) => {}
    }
    match beneath::stat_at(to.0, to.1, AtFlags::empty()) {
        Ok(_there) => Err(Errno::EXIST),
        Err(Errno::NOENT) => rustix::fs::renameat(from.0, from.1, to.0, to.1),
        Err(errno) => Err(errno),
    }
}

/// Whether two places may be one on a case-blind file system.
fn is_same_entry(from: &Rel, to: &Rel) -> bool {
    from != to && from.as_str().to_lowercase() == to.as_str().to_lowercase()
}

impl Root {
    pub(super) fn parent_of<'a>(&self, rel: &'a Rel) -> Result<(OwnedFd, &'a OsStr), DiskError> {
        let (folder, name) =
            beneath::open_parent(self.fd(), rel).map_err(|errno| DiskError::of(rel, errno))?;
        Ok((folder, OsStr::new(name)))
    }

    /// As [`parent_of`](Self::parent_of), if that folder is `within`: another one may be at its place by now. Where
    /// objects do not keep their numbers, that cannot be told.
    pub(super) fn parent_within<'a>(
        &self,
        rel: &'a Rel,
        within: Option<Identity>,
    ) -> Result<(OwnedFd, &'a OsStr), DiskError> {
        let (folder, name) = self.parent_of(rel)?;
        if let Some(within) = within.filter(|_folder| self.keeps_inodes()) {
            let there = self.object_of_fd(folder.as_fd()).map_err(|errno| DiskError::of(rel, errno))?;
            if there.stamp.identity != within {
                return Err(DiskError::Changed(rel.clone()));
            }
        }
        Ok((folder, name))
    }

    pub(super) fn object_at(&self, folder: BorrowedFd<'_>, name: &OsStr) -> Result<Object, Errno> {
        Ok(object_of(&beneath::stat_at(folder, name, AtFlags::empty())?, &self.home()))
    }

    pub(super) fn object_of_fd(&self, fd: BorrowedFd<'_>) -> Result<Object, Errno> {
        Ok(object_of(&beneath::stat_at(fd, OsStr::new(""), AtFlags::EMPTY_PATH)?, &self.home()))
    }

    pub(super) fn sync_fd(&self, rel: &Rel, folder: &Rel, durability: Durability) -> Result<(), DiskError> {
        match durability {
            Durability::Later => Ok(()),
            Durability::Now => self.sync_folder(folder).map_err(|error| match error {
                DiskError::Io { source, .. } => DiskError::Io { rel: rel.clone(), source },
                other => other,
            }),
        }
    }

    /// Says of what was denied whether that is by a flag that protects it, or a folder that it is in.
    pub(super) fn explained(&self, error: DiskError) -> DiskError {
        let DiskError::Denied(rel) = &error else { return error };
        let protection = self.parent_of(rel).ok().and_then(|(folder, name)| {
            let here = unsynced::protection(folder.as_fd(), name);
            here.or_else(|| unsynced::protection(folder.as_fd(), OsStr::new("")))
        });
        let (flag, remedy) = match protection {
            Some(Protection::Immutable) => ("immutable", "chattr -i"),
            Some(Protection::AppendOnly) => ("append-only", "chattr -a"),
            None => return error,
        };
        DiskError::Protected { rel: rel.clone(), flag, remedy }
    }

    /// The bits that a folder has beside those that it is given: where its own folder gives its group to what is made in
    /// it, it does so as well.
    fn inherited_bits(&self, rel: &Rel, object: &Object) -> u32 {
        let inherits = object.kind == ObjectKind::Folder
            && rel
                .parent()
                .and_then(|folder| self.stat(&folder).ok().flatten())
                .is_some_and(|folder| folder.stamp.mode & Mode::SGID.bits() != 0);
        if inherits { object.stamp.mode & Mode::SGID.bits() } else { 0 }
    }

    /// Opens a folder to be listed.
    pub(super) fn open_folder(&self, rel: &Rel) -> Result<OwnedFd, Errno> {
        beneath::open(self.fd(), rel, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// What is at `rel`; `None` if nothing, or if a folder on the way is not there.
    ///
    /// # Errors
    /// `Denied`, `Io`.
    pub fn stat(&self, rel: &Rel) -> Result<Option<Object>, DiskError> {
        let fd = match beneath::open(self.fd(), rel, OFlags::PATH) {
            Ok(fd) => fd,
            // A path with a symlink or a file in it leads to nothing; a symlink at its end is something.
            Err(Errno::LOOP | Errno::XDEV) if !rel.is_root() => {
                return match self.parent_of(rel) {
                    Ok((folder, name)) => match self.object_at(folder.as_fd(), name) {
                        Ok(object) => Ok(Some(object)),
                        Err(Errno::NOENT) => Ok(None),
                        Err(errno) => Err(DiskError::of(rel, errno)),
                    },
                    Err(DiskError::Changed(_) | DiskError::Vanished(_)) => Ok(None),
                    Err(error) => Err(error),
                };
            }
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(DiskError::of(rel, errno)),
        };
        self.object_of_fd(fd.as_fd()).map(Some).map_err(|errno| DiskError::of(rel, errno))
    }

    /// Opens a regular file, and says how it is.
    ///
    /// # Errors
    /// `Vanished`; `Changed` if it is no file; `Denied`, `Io`.
    pub fn open_for_read(&self, rel: &Rel) -> Result<(File, Stamp), DiskError> {
        // Without O_NONBLOCK the opening of a pipe that took the file's place would wait for a writer.
        let fd = beneath::open(self.fd(), rel, OFlags::RDONLY | OFlags::NONBLOCK)
            .map_err(|errno| DiskError::of(rel, errno))?;
        let object = self.object_of_fd(fd.as_fd()).map_err(|errno| DiskError::of(rel, errno))?;
        match object.kind {
            ObjectKind::File => Ok((File::from(fd), object.stamp)),
            _ => Err(DiskError::Changed(rel.clone())),
        }
    }

    /// The bytes that a symlink points with, and how it is.
    ///
    /// # Errors
    /// `Vanished`; `Changed` if it is no symlink; `Denied`, `Io`.
    pub fn read_symlink(&self, rel: &Rel) -> Result<(Vec<u8>, Stamp), DiskError> {
        let (folder, name) = self.parent_of(rel)?;
        let object = self.object_at(folder.as_fd(), name).map_err(|errno| DiskError::of(rel, errno))?;
        let target = rustix::fs::readlinkat(&folder, name, Vec::new()).map_err(|errno| match errno {
            Errno::INVAL => DiskError::Changed(rel.clone()),
            other => DiskError::of(rel, other),
        })?;
        // A symlink's target never changes: the same object, the same target.
        let after = self.object_at(folder.as_fd(), name).map_err(|errno| DiskError::of(rel, errno))?;
        if after != object || object.kind != ObjectKind::Symlink {
            return Err(DiskError::Changed(rel.clone()));
        }
        Ok((target.into_bytes(), object.stamp))
    }

    /// Makes the entries of a folder durable.
    ///
    /// # Errors
    /// `Vanished`, `Changed`, `Denied`, `Io`: then nothing that was done in it may be recorded as done.
    pub fn sync_folder(&self, folder: &Rel) -> Result<(), DiskError> {
        beneath::open(self.fd(), folder, OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(rustix::fs::fsync)
            .map_err(|errno| DiskError::of(folder, errno))
    }

    /// Moves a file, folder or symlink to a place where nothing is, if it is the object that is expected. After a
    /// crash: at the one place or the other; never at both on file systems that can rename without replacing.
    ///
    /// # Errors
    /// `Changed` if another object is at `from`, or `to` is in another folder than `within`; `Vanished`; `Exists`;
    /// `NoSpace`, `Denied`, `NotSupported`, `Io`.
    pub fn move_entry(
        &self,
        from: &Rel,
        to: &Rel,
        expected: Identity,
        within: Option<Identity>,
        durability: Durability,
    ) -> Result<Stamp, DiskError> {
        let (from_folder, from_name) = self.parent_of(from)?;
        let (to_folder, to_name) = self.parent_within(to, within)?;
        let is_expected = |folder: BorrowedFd<'_>, name| {
            self.object_at(folder, name).map(|object| (object.stamp.identity == expected, object.stamp))
        };
        let (as_expected, _) =
            is_expected(from_folder.as_fd(), from_name).map_err(|errno| DiskError::of(from, errno))?;
        if !as_expected {
            return Err(DiskError::Changed(from.clone()));
        }
        let renamed = if is_same_entry(from, to)
            && is_expected(to_folder.as_fd(), to_name).is_ok_and(|(is_it, _)| is_it)
        {
            // A case-blind file system has it at both names: the one is given the other's spelling.
            rustix::fs::renameat(&from_folder, from_name, &to_folder, to_name)
        } else {
            rename_new((from_folder.as_fd(), from_name), (to_folder.as_fd(), to_name))
        };
        renamed.map_err(|errno| match errno {
            // Into itself.
            Errno::INVAL if to.as_str().starts_with(&format!("{from}/")) => DiskError::Changed(to.clone()),
            Errno::NOENT => DiskError::Vanished(from.clone()),
            Errno::PERM => match self.explained(DiskError::of(from, errno)) {
                DiskError::Denied(_) => self.explained(DiskError::of(to, errno)),
                protected => protected,
            },
            Errno::XDEV => DiskError::NotMovable(from.clone()),
            other => DiskError::of_rename(to, other),
        })?;
        let (as_expected, stamp) =
            is_expected(to_folder.as_fd(), to_name).map_err(|errno| DiskError::of(to, errno))?;
        if !as_expected {
            // Somebody put another thing there between the look and the rename: back with it.
            rename_new((to_folder.as_fd(), to_name), (from_folder.as_fd(), from_name))
                .map_err(|errno| DiskError::of(to, errno))?;
            return Err(DiskError::Changed(from.clone()));
        }
        for folder in [to.parent(), from.parent()].into_iter().flatten() {
            self.sync_fd(to, &folder, durability)?;
        }
        Ok(stamp)
    }

    /// Gives a file or folder its permission bits and time (a folder's time is left alone), if it is as expected. A
    /// symlink has neither. After a crash: none, one or both are given. If it is edited meanwhile, the stamp is not that
    /// of the edited file.
    ///
    /// # Errors
    /// `Changed`, `Vanished`, `Denied`, `Io`.
    pub fn set_attributes(
        &self,
        rel: &Rel,
        expected: &Stamp,
        mode: u32,
        mtime_ns: i64,
    ) -> Result<Stamp, DiskError> {
        let failed = |errno| self.explained(DiskError::of(rel, errno));
        // Not opened for reading: a file that nobody may read can get its bits back.
        let fd = beneath::open(self.fd(), rel, OFlags::PATH).map_err(failed)?;
        let object = self.object_of_fd(fd.as_fd()).map_err(failed)?;
        let as_expected = match object.kind {
            ObjectKind::File => object.stamp == *expected,
            // Its times and size tell of what is in it.
            ObjectKind::Folder => {
                object.stamp.identity == expected.identity && object.stamp.mode == expected.mode
            }
            _ => false,
        };
        if !as_expected {
            return Err(DiskError::Changed(rel.clone()));
        }
        let this = beneath::path_of_fd(fd.as_fd());
        // An edit after this look hides behind the time that is set, unless it changes the size: nothing is between.
        if object.kind == ObjectKind::File && object.stamp.mtime_ns != mtime_ns {
            rustix::fs::utimensat(rustix::fs::CWD, &this, &times(mtime_ns), AtFlags::empty())
                .map_err(failed)?;
        }
        let mode = (mode & 0o7777) | self.inherited_bits(rel, &object);
        if object.stamp.mode != mode {
            let set = rustix::fs::chmodat(rustix::fs::CWD, &this, mode_of(mode), AtFlags::empty());
            let is_own = rustix::fs::fstat(&fd).is_ok_and(|stat| {
                let user = rustix::process::geteuid();
                user.is_root() || stat.st_uid == user.as_raw()
            });
            let is_free = unsynced::protection(fd.as_fd(), OsStr::new("")).is_none();
            if is_own && is_free { unless_unable(set) } else { set }.map_err(failed)?;
        }
        let after = self.object_of_fd(fd.as_fd()).map_err(failed)?;
        let edited = is_edited(&object, &after, mtime_ns) || is_mode_edited(&object, &after, mode);
        Ok(if edited { object.stamp } else { after.stamp })
    }
}

/// Whether a file that was to be given this time has another one, or another size: somebody has written into it since.
fn is_edited(before: &Object, after: &Object, mtime_ns: i64) -> bool {
    let is_time_set = after.stamp.mtime_ns.abs_diff(mtime_ns) < TIME_PRECISION_NS;
    before.kind == ObjectKind::File && !(is_time_set && before.stamp.size == after.stamp.size)
}

/// Whether what was to be given these bits has neither them nor those that it had: somebody else has set them since.
/// (A file system may refuse them all, the system those that set an id.)
fn is_mode_edited(before: &Object, after: &Object, mode: u32) -> bool {
    let (is, asked, was) = (after.stamp.mode & 0o777, mode & 0o777, before.stamp.mode & 0o777);
    is != asked && is != was
}

#[cfg(test)]
mod tests;
