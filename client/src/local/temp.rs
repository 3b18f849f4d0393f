//! Files that are being made: written in the state's folder, which is on the root's file system, and then put in place.
//!
//! On disk after a crash: before it is put in place, a file in `.keepstone/tmp`, which [`Root::clean_temporary`] removes
//! unless its key is still wanted; nothing else has changed. How much of it an early sync has written makes no difference:
//! who continues it checks each chunk by its hash.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::beneath;
use super::disk::{DiskError, Durability, ObjectKind, mode_of, moved_stamp, rename_new, times};
use super::model::{Identity, Stamp};
use super::rel::{Rel, STATE_FOLDER};
use super::root::{Root, TEMPORARY_FOLDER};
use super::unsynced;
use crate::write_back::WriteBack;

/// What the names of files to be gone on with begin with.
const KEPT_PREFIX: &str = "part-";

/// What the names of files that are about to be exchanged with one in place begin with.
pub(super) const SWAP_PREFIX: &str = "swap-";

/// A file being made. Dropped before it is put in place, it is removed, unless it is to be kept.
#[derive(Debug)]
pub struct Temp {
    folder: OwnedFd,
    name: OsString,
    file: File,
    kept: bool,
    write_back: Arc<WriteBack>,
}

fn failed(errno: Errno) -> DiskError {
    DiskError::of(&Rel::root(), errno)
}

impl Root {
    pub(super) fn state_folder(&self, below: &str) -> Result<OwnedFd, DiskError> {
        let path = Path::new(STATE_FOLDER).join(below);
        beneath::open_path(self.fd(), path.as_os_str(), OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)
    }

    /// Begins a file. Blocks.
    ///
    /// # Errors
    /// `NoSpace`, `Denied`, `Io`; `Vanished` if the state's folder is not there.
    pub fn temp_file(&self) -> Result<Temp, DiskError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|error| DiskError::of_io(&Rel::root(), std::io::Error::other(error.to_string())))?;
        self.temp(hex::encode(random).into(), OFlags::EXCL, false)
    }

    /// Begins a file that can be gone on with after a restart, or goes on with it: what is in it already is there to
    /// be read and checked. `key` names it; one and the same is used by one at a time. Blocks.
    ///
    /// # Errors
    /// As [`temp_file`](Self::temp_file).
    pub fn temp_file_kept(&self, key: u128) -> Result<Temp, DiskError> {
        let name = OsString::from(format!("{KEPT_PREFIX}{key:032x}"));
        match self.temp(name.clone(), OFlags::empty(), true) {
            // It was finished as a file that its owner may not write, and then not put in place.
            Err(DiskError::Denied(_)) => {
                self.make_writable(&name)?;
                self.temp(name, OFlags::empty(), true)
            }
            begun => begun,
        }
    }

    /// Bytes that can still be written to the root's file system; all there are, if it does not say. Blocks.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        rustix::fs::fstatvfs(self.fd()).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn temp(&self, name: OsString, flags: OFlags, kept: bool) -> Result<Temp, DiskError> {
        let folder = self.state_folder(TEMPORARY_FOLDER)?;
        let flags = flags | OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&folder, &name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        Ok(Temp { folder, name, file: File::from(fd), kept, write_back: Arc::default() })
    }

    /// Makes a temporary file one that can be gone on with; if that is not possible, it goes.
    fn make_writable(&self, name: &OsStr) -> Result<(), DiskError> {
        let folder = self.state_folder(TEMPORARY_FOLDER)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&folder, name, flags, Mode::empty()).map_err(failed)?;
        let path = beneath::path_of_fd(fd.as_fd());
        let is_file = self.object_of_fd(fd.as_fd()).map_err(failed)?.kind == ObjectKind::File;
        let mode = Mode::RUSR | Mode::WUSR;
        if is_file && rustix::fs::chmodat(rustix::fs::CWD, &path, mode, AtFlags::empty()).is_ok() {
            return Ok(());
        }
        rustix::fs::unlinkat(&folder, name, AtFlags::empty()).map_err(failed)
    }

    /// Removes temporary files that a crash left; those that can be gone on with only if their key is not wanted any
    /// more. To be called while none is in use. Blocks.
    ///
    /// # Errors
    /// `Denied`, `Io`.
    pub fn clean_temporary(&self, is_wanted: &dyn Fn(u128) -> bool) -> Result<u64, DiskError> {
        use std::os::unix::ffi::OsStrExt;
        let folder = self.state_folder(TEMPORARY_FOLDER)?;
        let mut removed = 0;
        for entry in rustix::fs::Dir::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let key = std::str::from_utf8(name)
                .ok()
                .and_then(|name| name.strip_prefix(KEPT_PREFIX))
                .and_then(|key| u128::from_str_radix(key, 16).ok());
            if key.is_some_and(is_wanted) {
                continue;
            }
            let name = OsStr::from_bytes(name);
            if name.as_bytes().starts_with(SWAP_PREFIX.as_bytes()) {
                // A crash in the middle of a replacement: it may be what somebody saved a moment before.
                self.move_to_trash(
                    (folder.as_fd(), name),
                    &Rel::root().join("recovered").unwrap_or_default(),
                )?;
                continue;
            }
            match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
                Ok(()) => removed += 1,
                Err(errno) => tracing::warn!(%errno, ?name, "a temporary file is left"),
            }
        }
        Ok(removed)
    }

    /// Puts a finished file where nothing is. After a crash: in the temporary folder, or whole in place. The stamp is
    /// that of what was finished, not of what somebody has made of it since.
    ///
    /// # Errors
    /// `Changed` if the folder is another one than `within`; `Exists`, `Vanished` (the folder), `Denied`, `NoSpace`,
    /// `Io`: the temporary file is gone, or kept if it was to be kept.
    pub fn place_new(
        &self,
        mut temp: Temp,
        rel: &Rel,
        within: Option<Identity>,
        durability: Durability,
    ) -> Result<Stamp, DiskError> {
        let (folder, name) = self.parent_within(rel, within)?;
        let failed = |errno| DiskError::of(rel, errno);
        if unsynced::inherit(folder.as_fd(), &temp.file).map_err(failed)? {
            temp.sync().map_err(failed)?;
        }
        let before = self.object_of_fd(temp.file.as_fd()).map_err(failed)?.stamp;
        rename_new((temp.folder.as_fd(), &temp.name), (folder.as_fd(), name))
            .map_err(|errno| self.explained(DiskError::of_rename(rel, errno)))?;
        temp.kept = true;
        let after = self.object_of_fd(temp.file.as_fd()).map_err(failed)?.stamp;
        if let Some(folder) = rel.parent() {
            self.sync_fd(rel, &folder, durability)?;
        }
        Ok(moved_stamp(&before, after))
    }
}

impl Temp {
    /// To be looked at.
    #[must_use]
    pub fn as_file(&self) -> &File {
        &self.file
    }

    /// To be written and read.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Removes it, though it could be gone on with: its room is needed.
    pub fn discard(mut self) {
        self.kept = false;
    }

    /// Gives it its permission bits and time, and makes its bytes durable. To be called before it is put in place,
    /// with nothing written after it. Blocks.
    ///
    /// # Errors
    /// `NoSpace`, `Io`: its bytes may not be on disk, and it must not be put in place.
    pub fn finish(&mut self, mode: u32, mtime_ns: i64) -> Result<(), DiskError> {
        unsynced::set_bits(&self.file, mode_of(mode)).map_err(failed)?;
        rustix::fs::futimens(&self.file, &times(mtime_ns)).map_err(failed)?;
        self.sync().map_err(failed)
    }

    /// Makes its bytes durable. If that fails it is no longer one that can be gone on with: the system may take for
    /// written what is not on the disk, and another sync would not tell.
    pub(super) fn sync(&mut self) -> Result<(), Errno> {
        let synced =
            self.write_back.finish().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let synced = synced.and_then(|()| rustix::fs::fsync(&self.file));
        self.kept &= synced.is_ok();
        synced
    }

    /// Who writes it says here how much, so that it is on its way to the disk early.
    pub(crate) fn write_back(&self) -> Arc<WriteBack> {
        self.write_back.clone()
    }

    /// Sets whether it outlives being dropped.
    pub fn keep(&mut self, kept: bool) {
        self.kept = kept;
    }

    pub(super) fn set_name(&mut self, name: OsString) -> Result<(), Errno> {
        rustix::fs::renameat(&self.folder, &self.name, &self.folder, &name)?;
        self.name = name;
        Ok(())
    }

    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        // What has failed on its way to the disk is not to be gone on with.
        self.kept &= self.write_back.finish().is_ok();
        if !self.kept
            && let Err(error) = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty())
        {
            tracing::warn!(%error, name = ?self.name, "a temporary file is left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::testing::TestRoot;

    /// More than is gathered before it is sent.
    const MUCH: u64 = 1 << 30;

    fn begun(root: &TestRoot, key: u128) -> Temp {
        let mut temp = root.root().temp_file_kept(key).unwrap();
        temp.write_back = Arc::new(WriteBack::with(|_file| Err(Errno::NOSPC.into())));
        std::io::Write::write_all(temp.file(), b"some").unwrap();
        temp
    }

    fn held(root: &TestRoot, key: u128) -> u64 {
        root.root().temp_file_kept(key).unwrap().as_file().metadata().unwrap().len()
    }

    #[test]
    fn a_file_that_did_not_reach_the_disk_is_not_gone_on_with() {
        let root = TestRoot::new();
        drop(begun(&root, 1));
        assert_eq!(held(&root, 1), 4, "nothing failed");

        let temp = begun(&root, 2);
        temp.write_back().wrote(temp.as_file(), MUCH).unwrap();
        drop(temp);
        assert_eq!(held(&root, 2), 0, "it failed while it was written");

        let mut temp = begun(&root, 3);
        temp.write_back().wrote(temp.as_file(), MUCH).unwrap();
        assert!(matches!(temp.finish(0o644, 0), Err(DiskError::NoSpace(_))));
        drop(temp);
        assert_eq!(held(&root, 3), 0, "it failed at its end");
    }
}
