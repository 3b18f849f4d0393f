//! A local folder, and how things are put into it so that a crash leaves them whole or not there at all.
//!
//! A file is written without a name where the file system can do that (O_TMPFILE), else under a temporary name in its
//! folder, which is held by a lock; it is synced, given its permission bits and time, and linked or renamed. After a
//! crash before that, nothing is there, or a file `.NAME.keepstone-XXXXXXXX` that nobody holds, which the next to work
//! in the folder deletes; and nothing else has changed.
//!
//! Invariants:
//! - All is done relative to an open folder, and no symlink below it is ever followed: whatever names a server gives
//!   and whatever links are there, nothing outside is touched.
//! - What is there already is replaced only when that is asked for.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::Errno;

use crate::local::unsynced::{carry_over, set_bits};
use crate::sparse::SparseWriter;

/// Bytes of a file's own name kept in its temporary one, which must not get too long.
const TEMPORARY_NAME_BYTES_MAX: usize = 200;
/// What comes after it, before the digits.
const TEMPORARY_SUFFIX: &[u8] = b".keepstone-";
const TEMPORARY_DIGITS: usize = 8;
/// Where Linux has a process's open files by number.
const OPEN_FILES: &str = "/proc/self/fd";
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
    /// A regular file.
    File,
    /// A symlink.
    Symlink,
    /// A device, pipe or socket, in words.
    Special(&'static str),
}

impl LocalKind {
    fn of(file_type: FileType) -> Self {
        match file_type {
            FileType::Directory => Self::Folder,
            FileType::RegularFile => Self::File,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Special("a named pipe"),
            FileType::Socket => Self::Special("a socket"),
            _ => Self::Special("a device"),
        }
    }

    /// The kind in words.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Folder => "a folder",
            Self::File => "a file",
            Self::Symlink => "a symlink",
            Self::Special(word) => word,
        }
    }
}

/// Whether a name is one that an unfinished file has while it is got: `.NAME.keepstone-` and 8 hex digits. Such files
/// are nobody's content: they are neither put nor synchronised.
#[must_use]
pub fn is_unfinished_name(name: &[u8]) -> bool {
    let Some(at) = name.len().checked_sub(TEMPORARY_SUFFIX.len() + TEMPORARY_DIGITS) else { return false };
    let (front, digits) = name.split_at(at + TEMPORARY_SUFFIX.len());
    front.starts_with(b".")
        && front.len() > 1 + TEMPORARY_SUFFIX.len()
        && front.ends_with(TEMPORARY_SUFFIX)
        && digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
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
            Err(Errno::EXIST) => {
                let what = self.kind(name)?.map_or("something else", LocalKind::word);
                Err(io::Error::other(format!("{what} is there, and no folder")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the regular file `name`, to be read. Blocks.
    ///
    /// # Errors
    /// If it is something else, or cannot be opened.
    pub fn open_file(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.fd, name, flags, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
    }

    /// Where the symlink `name` points. Blocks.
    ///
    /// # Errors
    /// If it is none, or cannot be read.
    pub fn symlink_target(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.fd, name, Vec::new())?.into_bytes())
    }

    /// Deletes unfinished files that nobody is writing any more: of the file `name` only, if one is given. Blocks.
    ///
    /// # Errors
    /// If the folder cannot be listed; what cannot be deleted is left.
    pub fn remove_unfinished(&self, name: Option<&OsStr>) -> io::Result<()> {
        let front = name.map(|name| temporary_front(name.as_bytes()));
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let found = entry.file_name().to_bytes();
            let ours = is_unfinished_name(found)
                && front.as_ref().is_none_or(|front| {
                    found.strip_prefix(&front[..]).is_some_and(|digits| digits.len() == TEMPORARY_DIGITS)
                });
            if ours && let Err(error) = self.remove_if_unheld(OsStr::from_bytes(found)) {
                tracing::debug!(%error, "an unfinished file is left");
            }
        }
        Ok(())
    }

    /// Whoever writes a file holds it by a lock, which ends with the process, however that ends.
    fn remove_if_unheld(&self, temporary: &OsStr) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, temporary, flags, Mode::empty())?;
        // Of whatever else has such a name, somebody else takes care; a file with a second name is in use.
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            return Ok(());
        }
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(rustix::fs::unlinkat(&self.fd, temporary, AtFlags::empty())?),
            Err(Errno::WOULDBLOCK) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What is at `name`, not following a symlink. Blocks.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn kind(&self, name: &OsStr) -> io::Result<Option<LocalKind>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(LocalKind::of(FileType::from_raw_mode(stat.st_mode)))),
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
        let begun = |fd, temporary| TemporaryFile {
            folder: self.clone(),
            file: SparseWriter::new(File::from(fd)),
            name: name.to_owned(),
            temporary,
        };
        let mode = Mode::RUSR | Mode::WUSR;
        let nameless = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        if Path::new(OPEN_FILES).exists() {
            match rustix::fs::openat(&self.fd, ".", nameless, mode) {
                Ok(fd) => return Ok(begun(fd, None)),
                // What kernels and file systems say that do not have it; if it is something else, the next call says so.
                Err(error) => tracing::trace!(%error, "no nameless file"),
            }
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (temporary, fd) = self.with_temporary_name(name, |temporary| {
            let fd = rustix::fs::openat(&self.fd, temporary, flags, mode)?;
            // Somebody who takes it for left behind, in the moment before it is held, deletes it: then another name.
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if rustix::fs::fstat(&fd)?.st_nlink == 0 => Err(Errno::EXIST),
                Err(Errno::WOULDBLOCK) => Err(Errno::EXIST),
                // A file system without locks: nobody will take it for left behind there.
                Ok(()) | Err(_) => Ok(fd),
            }
        })?;
        Ok(begun(fd, Some(temporary)))
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
        let front = temporary_front(name.as_bytes());
        for _ in 0..TEMPORARY_TRIES_MAX {
            let mut random = [0; 4];
            getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
            let temporary = OsString::from_vec([&front[..], hex::encode(random).as_bytes()].concat());
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

/// What the temporary names of `name` have before their digits.
fn temporary_front(name: &[u8]) -> Vec<u8> {
    [b".", &name[..name.len().min(TEMPORARY_NAME_BYTES_MAX)], TEMPORARY_SUFFIX].concat()
}

/// A file being written without a name, or under a temporary one. Dropped before it is placed, it is gone.
#[derive(Debug)]
pub struct TemporaryFile {
    folder: Arc<LocalFolder>,
    file: SparseWriter,
    name: OsString,
    /// None while it has no name.
    temporary: Option<OsString>,
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
    /// ALREADY EXISTS if something is there and `overwrite` is not set; if what is there is no regular file.
    pub fn place(mut self, overwrite: bool) -> io::Result<()> {
        if self.temporary.is_none() {
            let linked = self.link(&self.name);
            match linked {
                Err(error) if overwrite && error.kind() == io::ErrorKind::AlreadyExists => {}
                done => return done,
            }
            // Nobody may take it for left behind while it has that name.
            if let Err(error) =
                rustix::fs::flock(self.file.finished()?, FlockOperation::NonBlockingLockExclusive)
            {
                tracing::trace!(%error, "no locks here");
            }
            let folder = self.folder.clone();
            let link = |temporary: &OsStr| {
                self.link(temporary).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            };
            self.temporary = Some(folder.with_temporary_name(&self.name, link)?.0);
        }
        if overwrite && self.carry_over()? {
            self.file.finished()?.sync_all()?;
        }
        if overwrite
            && let Some(kind) = self.folder.kind(&self.name)?
            && kind != LocalKind::File
        {
            return Err(io::Error::other(format!("{} is there", kind.word())));
        }
        if let Some(temporary) = &self.temporary {
            self.folder.rename(temporary, &self.name, overwrite)?;
            self.temporary = None;
        }
        Ok(())
    }

    /// Gives a file without a name one that is free.
    fn link(&self, name: &OsStr) -> io::Result<()> {
        // By way of /proc: naming the descriptor itself is for the privileged.
        let path = format!("{OPEN_FILES}/{}", self.file.finished()?.as_raw_fd());
        Ok(rustix::fs::linkat(rustix::fs::CWD, path, &self.folder.fd, name, AtFlags::SYMLINK_FOLLOW)?)
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
        if let Some(temporary) = &self.temporary {
            self.folder.remove_temporary(temporary);
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
        assert!(put(&folder, "link", b"file now", true).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(directory.path().join("link").is_symlink());
    }

    #[test]
    fn nothing_but_a_file_is_replaced_by_one() {
        let (directory, folder) = folder();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
        for name in ["pipe", "socket"] {
            let error = put(&folder, name, b"x", true).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn unfinished_files_are_known_by_their_names() {
        for name in [".f.keepstone-01ab23cd", "..hidden.keepstone-00000000"] {
            assert!(is_unfinished_name(name.as_bytes()), "{name}");
        }
        for name in [
            "f.keepstone-01ab23cd",
            ".f.keepstone-01AB23CD",
            ".f.keepstone-01ab23c",
            ".keepstone-01ab23cd",
            "",
            "f",
        ] {
            assert!(!is_unfinished_name(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn only_unfinished_files_that_nobody_holds_are_removed() {
        let (directory, folder) = folder();
        let at = |name: &str| directory.path().join(name);
        for name in
            [".f.keepstone-01ab23cd", ".g.keepstone-01ab23cd", ".h.keepstone-01ab23cd", "f", ".f.keepstone-x"]
        {
            std::fs::write(at(name), "half").unwrap();
        }
        std::fs::hard_link(at(".h.keepstone-01ab23cd"), at("second name")).unwrap();
        let held = File::open(at(".g.keepstone-01ab23cd")).unwrap();
        rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        folder.remove_unfinished(Some(OsStr::new("other"))).unwrap();
        assert!(at(".f.keepstone-01ab23cd").exists());
        folder.remove_unfinished(None).unwrap();
        assert!(!at(".f.keepstone-01ab23cd").exists());
        assert!(at(".g.keepstone-01ab23cd").exists() && at(".h.keepstone-01ab23cd").exists());
        drop(held);
        folder.remove_unfinished(Some(OsStr::new("g"))).unwrap();
        assert!(!at(".g.keepstone-01ab23cd").exists());
        assert!(at("f").exists() && at(".f.keepstone-x").exists());
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
