//! Makes folders and symlinks, where nothing is.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{DiskError, Durability, in_writable, mode_of, times};
use crate::local::model::{Identity, Stamp};
use crate::local::rel::Rel;
use crate::local::root::Root;
use crate::local::unsynced;

impl Root {
    /// Makes a folder. After a crash: not there, or there with the owner's bits only, or whole.
    ///
    /// # Errors
    /// `Changed` if its parent is another folder than `within`; `Exists`, `Vanished` (its parent), `NoSpace`, `Denied`,
    /// `NotSupported`, `Io`.
    pub fn create_folder(
        &self,
        rel: &Rel,
        mode: u32,
        within: Option<Identity>,
        durability: Durability,
    ) -> Result<Stamp, DiskError> {
        let (parent, name) = self.parent_within(rel, within)?;
        let failed = |errno| DiskError::of(rel, errno);
        in_writable(&[parent.as_fd()], || rustix::fs::mkdirat(&parent, name, Mode::RWXU))
            .map_err(|errno| DiskError::of_rename(rel, errno))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(failed)?;
        let made = self.object_of_fd(fd.as_fd()).map_err(failed)?.stamp;
        // In a folder that gives its group to what is made in it, so does this one.
        let mode = mode_of(mode) | (mode_of(made.mode) & Mode::SGID);
        unsynced::set_bits(&fd, mode).map_err(failed)?;
        if let (Durability::Now, Some(folder)) = (durability, rel.parent()) {
            rustix::fs::fsync(&fd).map_err(failed)?;
            self.sync_folder(&folder)?;
        }
        Ok(self.object_of_fd(fd.as_fd()).map_err(failed)?.stamp)
    }

    /// Makes a symlink. After a crash: not there, or whole.
    ///
    /// # Errors
    /// `Changed` if its folder is another one than `within`; `Exists`, `Vanished` (its folder), `NoSpace`, `Denied`,
    /// `NotSupported`, `Io`.
    pub fn create_symlink(
        &self,
        rel: &Rel,
        target: &[u8],
        mtime_ns: i64,
        within: Option<Identity>,
        durability: Durability,
    ) -> Result<Stamp, DiskError> {
        let (parent, name) = self.parent_within(rel, within)?;
        let failed = |errno| DiskError::of(rel, errno);
        let target = OsStr::from_bytes(target);
        in_writable(&[parent.as_fd()], || rustix::fs::symlinkat(target, &parent, name)).map_err(|errno| {
            match errno {
                Errno::PERM if unsynced::protection(parent.as_fd(), OsStr::new("")).is_none() => {
                    DiskError::NotSupported { rel: rel.clone(), reason: "it has no symlinks".to_owned() }
                }
                other => self.explained(DiskError::of_rename(rel, other)),
            }
        })?;
        rustix::fs::utimensat(&parent, name, &times(mtime_ns), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let made = self.object_at(parent.as_fd(), name).map_err(failed)?.stamp;
        if let (Durability::Now, Some(folder)) = (durability, rel.parent()) {
            self.sync_folder(&folder)?;
        }
        Ok(made)
    }
}
