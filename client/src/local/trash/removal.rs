//! Removes a folder with all below it for good. Another file system that is mounted below it is not entered.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::child;
use crate::local::beneath::{self, Home};
use crate::local::disk::{ObjectKind, object_of};
use crate::local::list::{Entry, list};

/// Folders on one path that are removed.
const DEPTH_MAX: usize = 4_096;

/// Removes the folder `name` in another one, and all below it, also what its owner made unwritable. `home`: where
/// it is. What can be removed is removed also if something cannot. Blocks.
///
/// # Errors
/// XDEV if another file system is mounted below it, INVAL if it is too deep, else what the system says of the first
/// thing that could not be removed.
pub(super) fn remove_folder(parent: BorrowedFd<'_>, name: &OsStr, home: &Home) -> Result<(), Errno> {
    remove_folder_at(parent, name, home, 0)
}

fn remove_folder_at(parent: BorrowedFd<'_>, name: &OsStr, home: &Home, depth: usize) -> Result<(), Errno> {
    if depth > DEPTH_MAX {
        return Err(Errno::INVAL);
    }
    make_writable(parent, name);
    let fd = child(parent, name)?;
    // Something may have been mounted there since it was listed.
    let opened = object_of(&beneath::stat_at(fd.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)?, home);
    if opened.kind != ObjectKind::Folder {
        return Err(Errno::XDEV);
    }
    let mut removed = Ok(());
    for Entry { name, object } in list(fd.as_fd(), home)? {
        let this = match object.kind {
            ObjectKind::MountPoint => Err(Errno::XDEV),
            ObjectKind::Folder => remove_folder_at(fd.as_fd(), &name, home, depth + 1),
            ObjectKind::File | ObjectKind::Symlink | ObjectKind::Special => {
                rustix::fs::unlinkat(&fd, &name, AtFlags::empty())
            }
        };
        removed = removed.and(this);
    }
    removed?;
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Whether that is possible is seen by what follows.
fn make_writable(parent: BorrowedFd<'_>, name: &OsStr) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(parent, name, flags, Mode::empty()) else { return };
    let Ok(stat) = beneath::stat_at(fd.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH) else { return };
    if Mode::from_raw_mode(stat.stx_mode.into()).contains(Mode::RWXU) || beneath::is_mount_point(&stat) {
        return;
    }
    let path = beneath::path_of_fd(fd.as_fd());
    if let Err(error) = rustix::fs::chmodat(rustix::fs::CWD, &path, Mode::RWXU, AtFlags::empty()) {
        tracing::debug!(%error, "a folder in the trash stays unwritable");
    }
}
