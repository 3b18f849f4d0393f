//! Opens what is below the root and nothing else: by openat2 where Linux has it (5.6), else name by name.
//!
//! Invariants:
//! - No symlink is followed, at no step, and no mount point below the root is entered.
//! - What is opened was, at that moment, below the folder that `root` is open at.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::rel::Rel;

/// Times that openat2 is asked again when somebody renames on the way.
const TRIES_MAX: usize = 16;

/// What is asked of an object.
pub(super) fn statx_flags() -> StatxFlags {
    StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID)
}

/// Opens what is at `rel` with `flags`; a symlink there is LOOP, another file system on the way XDEV. Blocks.
pub(super) fn open(root: BorrowedFd<'_>, rel: &Rel, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_path(root, rel.as_os_str(), flags)
}

/// As [`open`]; for paths that the crate itself makes, in the state's folder.
pub(super) fn open_path(root: BorrowedFd<'_>, path: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    #[cfg(target_os = "linux")]
    {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        for _ in 0..TRIES_MAX {
            match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Kernels without it, and sandboxes that do not know it.
                Err(Errno::NOSYS | Errno::PERM) => break,
                opened => return opened,
            }
        }
    }
    walk(root, path, flags)
}

/// Name by name: each is opened relative to the one before, following nothing.
fn walk(root: BorrowedFd<'_>, path: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    use std::os::unix::ffi::OsStrExt;
    let home = Home::of(&stat_at(root, OsStr::new(""), AtFlags::EMPTY_PATH)?);
    let step = OFlags::DIRECTORY | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::openat(root, ".", step, Mode::empty())?;
    let mut names = path.as_bytes().split(|byte| *byte == b'/').peekable();
    while let Some(name) = names.next() {
        if name == b".." {
            return Err(Errno::XDEV);
        }
        let flags = if names.peek().is_some() { step } else { flags };
        at = rustix::fs::openat(&at, OsStr::from_bytes(name), flags, Mode::empty())?;
        if !home.holds(&stat_at(at.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)?) {
            return Err(Errno::XDEV);
        }
    }
    Ok(at)
}

/// The folder that `rel` is in, to act in by name, and the name. Blocks.
///
/// # Errors
/// INVAL for the root itself, which is in no folder of ours.
pub(super) fn open_parent<'a>(root: BorrowedFd<'_>, rel: &'a Rel) -> Result<(OwnedFd, &'a str), Errno> {
    let Some((folder, _name)) = rel.split() else { return Err(Errno::INVAL) };
    let fd = open(root, &folder, OFlags::PATH | OFlags::DIRECTORY)?;
    Ok((fd, rel.name()))
}

/// What is at `name` in a folder, following nothing. Blocks.
pub(super) fn stat_at(folder: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> Result<Statx, Errno> {
    let flags = flags | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(folder, name, flags, statx_flags())
}

/// The number of the file system that something is on.
pub(super) fn device_of(stat: &Statx) -> u64 {
    rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)
}

/// Where a root is at home: what is elsewhere is not synchronised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home {
    device: u64,
    /// The mount; `None` where the system does not tell (before Linux 5.8).
    mount: Option<u64>,
}

impl Home {
    pub(super) fn of(stat: &Statx) -> Self {
        Self { device: device_of(stat), mount: mount_of(stat) }
    }

    /// `st_dev`.
    pub(super) fn device(&self) -> u64 {
        self.device
    }

    /// Whether something is at home there. In an overlay of several file systems, files have the numbers of the file
    /// systems that they are on, and folders the overlay's; the mount is one. A folder with another number in the same
    /// mount is a subvolume, which nothing can be renamed into.
    pub(super) fn holds(&self, stat: &Statx) -> bool {
        let is_folder = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory;
        match (self.mount, mount_of(stat)) {
            (Some(home), Some(mount)) if !is_folder => home == mount,
            (Some(home), Some(mount)) => home == mount && self.device == device_of(stat),
            _ => self.device == device_of(stat),
        }
    }
}

fn mount_of(stat: &Statx) -> Option<u64> {
    StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID).then_some(stat.stx_mnt_id)
}

/// Whether it is where another file system, or the same one again, is mounted.
pub(super) fn is_mount_point(stat: &Statx) -> bool {
    stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        && stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

/// A path that leads to what `fd` is open at, wherever that is now. It works for descriptors that were opened for the
/// path only, which the system calls that change an object refuse.
#[cfg(target_os = "linux")]
pub(super) fn path_of_fd(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// Both ways of opening, for what each test claims of them.
    fn both(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> [Result<OwnedFd, Errno>; 2] {
        let path = OsStr::from_bytes(path.as_bytes());
        [open_path(root, path, flags), walk(root, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW)]
    }

    #[test]
    fn nothing_is_followed_by_either_way() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("f"), "secret").unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::fs::create_dir(inside.path().join("d")).unwrap();
        std::fs::write(inside.path().join("d/f"), "mine").unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("link")).unwrap();
        std::os::unix::fs::symlink("d", inside.path().join("inner")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("f"), inside.path().join("d/l")).unwrap();
        let root = rustix::fs::open(inside.path(), OFlags::DIRECTORY | OFlags::PATH, Mode::empty()).unwrap();
        for opened in both(root.as_fd(), "d/f", OFlags::RDONLY) {
            assert!(opened.is_ok());
        }
        for path in ["link/f", "inner/f", "d/l", "link", ".."] {
            for opened in both(root.as_fd(), path, OFlags::RDONLY) {
                assert!(matches!(opened, Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV)), "{path}");
            }
        }
    }

    #[test]
    fn another_file_system_is_not_entered() {
        let root = rustix::fs::open("/", OFlags::DIRECTORY | OFlags::PATH, Mode::empty()).unwrap();
        for opened in both(root.as_fd(), "proc/version", OFlags::RDONLY) {
            assert_eq!(opened.unwrap_err(), Errno::XDEV);
        }
    }
}
