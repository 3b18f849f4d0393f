//! Appending to an extent past the page cache: through it, the copy and its bookkeeping were a quarter of all CPU of a
//! put.
//!
//! Invariants:
//! - Records are gathered in one buffer that begins on a boundary and written from there, whole boundaries at a time:
//!   many small ones by one write.
//! - What the buffer holds is not written yet: [`Appender::flush`] comes before the sync.
//! - A file system without direct writes, or that takes them no more, gets buffered ones.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::aligned::Aligned;
use crate::extent;
use crate::record::BOUNDARY;

/// Most that is written at once: a shard of a 4+2 stripe and its front, or hundreds of small ones.
const BUFFER_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What waits to be written.
struct Buffer {
    memory: Aligned,
    filled: usize,
}

impl Buffer {
    /// Takes as much of `bytes` as there is room for, and gives the rest.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (now, later) = bytes.split_at(bytes.len().min(BUFFER_BYTES_MAX - self.filled));
        self.memory.bytes_mut()[self.filled..self.filled + now.len()].copy_from_slice(now);
        self.filled += now.len();
        later
    }

    fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[..self.filled]
    }
}

/// Writes at the end of one extent file.
pub(crate) struct Appender {
    file: Arc<File>,
    /// The same file, opened for direct writes where its file system has them.
    direct: Option<Arc<File>>,
    buffer: Buffer,
    /// Where the buffer's first byte goes: all before it is written.
    written: u64,
}

impl Appender {
    /// Begins a new extent file with its first boundary, which is written at once: by that it shows whether the file
    /// takes direct writes. `file` and `direct` are both that file.
    pub(crate) fn begin(
        file: &Arc<File>,
        direct: Option<Arc<File>>,
        first: &[u8; BOUNDARY],
    ) -> io::Result<Self> {
        let buffer = Buffer { memory: Aligned::new(BUFFER_BYTES_MAX), filled: 0 };
        let mut appender = Self { file: Arc::clone(file), direct, buffer, written: 0 };
        appender.push(&[first])?;
        appender.flush()?;
        Ok(appender)
    }

    /// The file, for everything but appending.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether what is written goes past the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// All before this is written, though not synced.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Takes `parts`, one after the other and together whole boundaries, behind what came before.
    pub(crate) fn push(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        for part in parts {
            let mut rest = self.buffer.take(part);
            while !rest.is_empty() {
                self.flush()?;
                rest = self.buffer.take(rest);
            }
        }
        Ok(())
    }

    /// Writes what was pushed. After an error the rest of it is forgotten: it is written up to [`Self::written`].
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let mut done = 0;
        let outcome = self.write_all(&mut done);
        self.written += done as u64;
        self.buffer.filled = 0;
        outcome
    }

    fn write_all(&mut self, done: &mut usize) -> io::Result<()> {
        let mut cut_short = false;
        while *done < self.buffer.filled {
            match self.write(*done) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                // What was cut short goes on from a boundary: only there direct writes begin.
                Ok(count) if count >= BOUNDARY => *done = (*done + count) / BOUNDARY * BOUNDARY,
                // Another try says what cut it.
                Ok(_less) if !cut_short => cut_short = true,
                Ok(_less) => return Err(io::ErrorKind::StorageFull.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_unfit(&error) => match self.direct.take() {
                    Some(direct) => extent::sync(&direct)?,
                    None => return Err(error),
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes some of what waits, from its byte `from` on.
    fn write(&self, from: usize) -> io::Result<usize> {
        let (bytes, at) = (&self.buffer.bytes()[from..], self.written + from as u64);
        #[cfg(test)]
        let bytes = &bytes[..crate::faults::write(self.handle(), at, bytes.len())?];
        self.handle().write_at(bytes, at)
    }

    /// What is written by, and synced by.
    fn handle(&self) -> &File {
        self.direct.as_ref().unwrap_or(&self.file)
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        extent::sync(self.handle())
    }
}

/// Opens a file for reads and writes past the page cache; [`is_unfit`] if its file system has none.
pub(crate) fn open_direct(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// Whether `error` says that a file system has no direct reads or writes, or none at such places.
pub(crate) fn is_unfit(error: &io::Error) -> bool {
    let unfit = [Errno::INVAL, Errno::NOTSUP];
    error.raw_os_error().is_some_and(|code| unfit.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::{self, Fault};

    const FIRST: [u8; BOUNDARY] = [1; BOUNDARY];

    fn begin(directory: &Path) -> Appender {
        let path = directory.join("extent");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        let direct = open_direct(&path).ok().map(Arc::new);
        Appender::begin(&Arc::new(file), direct, &FIRST).unwrap()
    }

    fn record(byte: u8, boundaries: usize) -> Vec<u8> {
        vec![byte; boundaries * BOUNDARY]
    }

    fn on_disk(directory: &Path) -> Vec<u8> {
        std::fs::read(directory.join("extent")).unwrap()
    }

    #[test]
    fn small_and_large_records_lie_one_behind_the_other() {
        for direct in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let mut appender = begin(directory.path());
            if !direct {
                appender.direct = None;
            } else if !appender.is_direct() {
                println!("skipped: no direct writes on this file system");
            }
            let records = [record(2, 1), record(3, 700), record(4, 2), record(5, 1300)];
            for whole in &records {
                let (front, rest) = whole.split_at(132);
                appender.push(&[front, rest]).unwrap();
            }
            let written = usize::try_from(appender.written()).unwrap();
            assert_eq!(on_disk(directory.path()).len(), written, "what is not flushed is not there");
            appender.flush().unwrap();
            let expected = [FIRST.as_slice(), &records.concat()].concat();
            assert_eq!(appender.written(), expected.len() as u64);
            assert!(on_disk(directory.path()) == expected, "direct={direct}");
        }
    }

    #[test]
    fn after_a_failure_it_says_how_far_it_came() {
        let directory = tempfile::tempdir().unwrap();
        let mut appender = begin(directory.path());
        let limit = (BOUNDARY + BUFFER_BYTES_MAX) as u64;
        let path = directory.path().join("extent");
        faults::fill_up(&path, limit);
        appender.push(&[&record(2, 1)]).unwrap();
        let failed = appender.push(&[&record(3, 1200)]).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
        assert_eq!(appender.written(), limit);
        appender.flush().unwrap();
        assert_eq!(appender.written(), limit, "what could not be written is forgotten");
        faults::heal(&path);
    }

    #[test]
    fn writes_that_are_cut_short_or_refused_as_direct_ones_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("extent");
        let mut appender = begin(directory.path());
        let records = [record(2, 9), record(3, 700)];
        for (whole, fault) in records.iter().zip([Fault::CutShort(3 * BOUNDARY + 512), Fault::Unfit]) {
            faults::once(&path, fault);
            appender.push(&[whole]).unwrap();
            appender.flush().unwrap();
        }
        assert!(!appender.is_direct());
        assert!(on_disk(directory.path()) == [FIRST.as_slice(), &records.concat()].concat());
        faults::once(&path, Fault::CutShort(100));
        appender.push(&[&record(4, 1)]).unwrap();
        appender.flush().unwrap();
        faults::once(&path, Fault::Unfit);
        appender.push(&[&record(5, 1)]).unwrap();
        assert!(is_unfit(&appender.flush().unwrap_err()), "a buffered write is never unfit");
        appender.sync().unwrap();
    }
}
