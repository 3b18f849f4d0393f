//! A local folder, and how things are put into it so that a crash leaves them whole or not there at all.
//!
//! A file is written to a temporary name in its folder, synced, given its permission bits and time, and renamed. After
//! a crash before the rename there is a file `.NAME.keepstone-XXXX` to be deleted, and nothing else has changed.
//!
//! Invariants:
//! - All is done relative to an open folder, and no symlink below it is ever followed: whatever names a server gives
//!   and whatever links are there, nothing outside is touched.
//! - What is there already is replaced only when that is asked for.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use crate::local::unsynced::{carry_over, set_bits};
use crate::sparse::SparseWriter;

/// Bytes of a file's own name kept in its temporary one, which must not get too long.
const TEMPORARY_NAME_BYTES_MAX: usize = 200;
/// Temporary names tried before giving up.
const TEMPORARY_TRIES_MAX: usize = 16;

/// An open folder.
#[derive(Debug)]
pub struct LocalFolder {
    fd: OwnedFd,
}

/// What is at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalKind {
    /// A folder.
    Folder,
    /// Anything else.
    Other,
}

fn times(mtime_ns: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: mtime_ns.div_euclid(1_000_000_000),
            tv_nsec: mtime_ns.rem_euclid(1_000_000_000),
        },
    }
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & 0o7777)
}

impl LocalFolder {
    /// Opens a folder that the user named: symlinks on the way are followed. Blocks.
    ///
    /// # Errors
    /// If it is not there, is no folder, or may not be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self { fd: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// Opens the folder `name` in this one; a symlink there is an error. Blocks.
    ///
    /// # Errors
    /// If it is not there, is no folder, or may not be opened.
    pub fn open_child(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self { fd: rustix::fs::openat(&self.fd, name, flags, Mode::empty())? })
    }

    /// Opens the folder at `relative`, names with `/` between them, following no symlink. Blocks.
    ///
    /// # Errors
    /// As [`open_child`](Self::open_child).
    pub fn open_below(self: &Arc<Self>, relative: &str) -> io::Result<Arc<Self>> {
        let mut folder = self.clone();
        for name in relative.split('/').filter(|name| !name.is_empty()) {
            folder = Arc::new(folder.open_child(OsStr::new(name))?);
        }
        Ok(folder)
    }

    /// Makes the folder `name`, open to its owner only for now; one that is there already will do. Blocks.
    ///
    /// # Errors
    /// If something else is there, or it cannot be made.
    pub fn make_child(&self, name: &OsStr) -> io::Result<()> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) if self.kind(name)? == Some(LocalKind::Folder) => Ok(()),
            Err(Errno::EXIST) => Err(io::Error::other("something else is there, and no folder")),
            Err(error) => Err(error.into()),
        }
    }

    /// What is at `name`, not following a symlink. Blocks.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn kind(&self, name: &OsStr) -> io::Result<Option<LocalKind>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                Ok(Some(LocalKind::Folder))
            }
            Ok(_) => Ok(Some(LocalKind::Other)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a symlink. Blocks.
    ///
    /// # Errors
    /// ALREADY EXISTS if something is there, and it is a folder or `overwrite` is not set.
    pub fn make_symlink(
        &self,
        name: &OsStr,
        target: &[u8],
        mtime_ns: i64,
        overwrite: bool,
    ) -> io::Result<()> {
        let target = OsStr::from_bytes(target);
        let temporary =
            self.with_temporary_name(name, |temporary| rustix::fs::symlinkat(target, &self.fd, temporary))?.0;
        let placed = rustix::fs::utimensat(
            &self.fd,
            temporary.as_os_str(),
            &times(mtime_ns),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(io::Error::from)
        .and_then(|()| self.rename(&temporary, name, overwrite));
        if placed.is_err() {
            self.remove_temporary(&temporary);
        }
        placed
    }

    /// Begins a file that will be called `name`. Blocks.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn begin_file(self: &Arc<Self>, name: &OsStr) -> io::Result<TemporaryFile> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (temporary, fd) = self.with_temporary_name(name, |temporary| {
            rustix::fs::openat(&self.fd, temporary, flags, Mode::RUSR | Mode::WUSR)
        })?;
        Ok(TemporaryFile {
            folder: self.clone(),
            file: SparseWriter::new(File::from(fd)),
            name: name.to_owned(),
            temporary,
            placed: false,
        })
    }

    /// Gives the folder its permission bits and time, and makes its entries durable. Blocks.
    ///
    /// # Errors
    /// If one of that fails.
    pub fn finish(&self, mode_bits: u32, mtime_ns: i64) -> io::Result<()> {
        // As it was made in its folder, it may give its group to what is made in it: that stays.
        let made = rustix::fs::fstat(&self.fd)?.st_mode & Mode::SGID.bits();
        set_bits(&self.fd, mode(mode_bits | made))?;
        rustix::fs::futimens(&self.fd, &times(mtime_ns))?;
        rustix::fs::fsync(&self.fd)?;
        Ok(())
    }

    /// Makes the folder's entries durable. Blocks.
    ///
    /// # Errors
    /// Those of fsync.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    fn with_temporary_name<T>(
        &self,
        name: &OsStr,
        make: impl Fn(&OsStr) -> rustix::io::Result<T>,
    ) -> io::Result<(OsString, T)> {
        let name = name.as_bytes();
        let kept = &name[..name.len().min(TEMPORARY_NAME_BYTES_MAX)];
        for _ in 0..TEMPORARY_TRIES_MAX {
            let mut random = [0; 4];
            getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
            let suffix = format!(".keepstone-{}", hex::encode(random));
            let temporary = OsString::from_vec([b".", kept, suffix.as_bytes()].concat());
            match make(&temporary) {
                Ok(made) => return Ok((temporary, made)),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("no free temporary name"))
    }

    fn rename(&self, from: &OsStr, to: &OsStr, overwrite: bool) -> io::Result<()> {
        if overwrite {
            return Ok(rustix::fs::renameat(&self.fd, from, &self.fd, to)?);
        }
        match rustix::fs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => {
                // File systems without it have hard links, which do not replace either.
                rustix::fs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty())?;
                Ok(rustix::fs::unlinkat(&self.fd, from, AtFlags::empty())?)
            }
            renamed => Ok(renamed?),
        }
    }

    fn remove_temporary(&self, temporary: &OsStr) {
        if let Err(error) = rustix::fs::unlinkat(&self.fd, temporary, AtFlags::empty()) {
            tracing::warn!(%error, ?temporary, "a temporary file is left");
        }
    }
}

/// A file being written under a temporary name. Dropped before it is placed, it is deleted.
#[derive(Debug)]
pub struct TemporaryFile {
    folder: Arc<LocalFolder>,
    file: SparseWriter,
    name: OsString,
    temporary: OsString,
    placed: bool,
}

impl TemporaryFile {
    /// Gives it its length, permission bits and time, and makes its bytes durable. Blocks.
    ///
    /// # Errors
    /// If one of that fails.
    pub fn sync(&self, mode_bits: u32, mtime_ns: i64) -> io::Result<()> {
        let file = self.file.finished()?;
        set_bits(file, mode(mode_bits))?;
        rustix::fs::futimens(file, &times(mtime_ns))?;
        file.sync_all()
    }

    /// Gives it its name. Blocks.
    ///
    /// # Errors
    /// ALREADY EXISTS if something is there and `overwrite` is not set; if a folder is there.
    pub fn place(mut self, overwrite: bool) -> io::Result<()> {
        if overwrite && self.carry_over()? {
            self.file.finished()?.sync_all()?;
        }
        self.folder.rename(&self.temporary, &self.name, overwrite)?;
        self.placed = true;
        Ok(())
    }
}

impl TemporaryFile {
    /// Takes over what the file that is to be replaced has and versions do not: owner, group, ACL and the like.
    fn carry_over(&self) -> io::Result<bool> {
        match carry_over(self.folder.fd.as_fd(), &self.name, self.file.finished()?) {
            // There is none.
            Err(Errno::NOENT) => Ok(false),
            carried => Ok(carried?),
        }
    }
}

impl io::Write for TemporaryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.placed {
            self.folder.remove_temporary(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    const TIME_NS: i64 = 1_700_000_000_123_456_789;

    fn folder() -> (tempfile::TempDir, Arc<LocalFolder>) {
        let directory = tempfile::tempdir().unwrap();
        let folder = Arc::new(LocalFolder::open(directory.path()).unwrap());
        (directory, folder)
    }

    fn put(folder: &Arc<LocalFolder>, name: &str, bytes: &[u8], overwrite: bool) -> io::Result<()> {
        let mut file = folder.begin_file(OsStr::new(name))?;
        file.write_all(bytes)?;
        file.sync(0o640, TIME_NS)?;
        file.place(overwrite)
    }

    #[test]
    fn a_placed_file_has_its_bytes_bits_and_time() {
        let (directory, folder) = folder();
        let name = "n".repeat(255);
        put(&folder, &name, b"bytes", false).unwrap();
        let path = directory.path().join(&name);
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"bytes");
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
        assert_eq!(metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(), TIME_NS);
    }

    #[test]
    fn what_is_there_is_replaced_only_when_asked() {
        let (directory, folder) = folder();
        put(&folder, "f", b"old", false).unwrap();
        let error = put(&folder, "f", b"new", false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(directory.path().join("f")).unwrap(), b"old");
        put(&folder, "f", b"new", true).unwrap();
        assert_eq!(std::fs::read(directory.path().join("f")).unwrap(), b"new");
        std::fs::create_dir(directory.path().join("d")).unwrap();
        assert!(put(&folder, "d", b"new", true).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn an_abandoned_file_leaves_nothing() {
        let (directory, folder) = folder();
        let mut file = folder.begin_file(OsStr::new("f")).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_symlink_on_the_way_is_not_followed() {
        let (directory, folder) = folder();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), directory.path().join("link")).unwrap();
        assert!(folder.open_child(OsStr::new("link")).is_err());
        assert!(folder.make_child(OsStr::new("link")).is_err());
        assert!(folder.open_below("link/x").is_err());
        put(&folder, "link", b"file now", true).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn symlinks_keep_their_target_and_time() {
        let (directory, folder) = folder();
        folder.make_symlink(OsStr::new("l"), b"../\xff", TIME_NS, false).unwrap();
        let path = directory.path().join("l");
        assert_eq!(std::fs::read_link(&path).unwrap().as_os_str().as_bytes(), b"../\xff");
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(), TIME_NS);
        let error = folder.make_symlink(OsStr::new("l"), b"x", TIME_NS, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        folder.make_symlink(OsStr::new("l"), b"x", TIME_NS, true).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn times_before_1970_are_times_too() {
        let (directory, folder) = folder();
        folder.make_child(OsStr::new("d")).unwrap();
        folder.open_below("d").unwrap().finish(0o755, -1_500_000_000).unwrap();
        let metadata = std::fs::metadata(directory.path().join("d")).unwrap();
        assert_eq!(metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(), -1_500_000_000);
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
    }
}
