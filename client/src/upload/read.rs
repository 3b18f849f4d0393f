//! Reads local files: whole when they are small, or twice when they are large (first to cut and name the chunks, then
//! to send those that the server lacks).
//!
//! Invariants:
//! - Every read of one file goes through one descriptor, opened without following a symlink.
//! - What is committed is the file as it was at one moment: its size and time are the same before the first byte was
//!   read and after the last, and a chunk that is read again still has its name.
//! - A size is only what the system says: files are read to their end. Where another number of bytes comes, though
//!   nothing has changed (files of `/proc` and `/sys`, some network file systems), those bytes are the file if they can be
//!   held at once; else it is refused, and why is said.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;
use engine::cutter::{ChunkCutter, Cutter};
use engine::ids::ChunkId;
use engine::manifest::ManifestEntry;
use rustix::fs::OFlags;

use super::walk::{mode_bits, mtime_ns};
use crate::naming::{entry_of, name_chunks};

/// Why a file cannot be put. All but IO errors are changes under our hands.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadFileError {
    #[error("it vanished before it could be read")]
    Vanished,
    #[error("it changed while it was read; nothing of it was put: put it again once nobody writes it")]
    Changed,
    #[error("it is no regular file any more")]
    NotRegular,
    #[error(
        "it says that it has {said} bytes and gives {gave} of them, so that it cannot be read twice alike; copy it to \
         a disk, and put the copy"
    )]
    OtherSize { said: u64, gave: Gave },
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

/// How many bytes a file gives, beside what its size says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gave {
    Fewer,
    More,
}

impl std::fmt::Display for Gave {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fewer => "fewer",
            Self::More => "more",
        })
    }
}

/// Bytes of a file whose size cannot be relied on: it is held in memory.
const OTHER_SIZE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// What must not change while a file is read, and what is kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp {
    pub(crate) size: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) mode: u32,
    inode: u64,
}

/// A file being put.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: File,
    pub(crate) stamp: FileStamp,
}

fn stamp_of(file: &File) -> Result<FileStamp, ReadFileError> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadFileError::NotRegular);
    }
    Ok(FileStamp {
        size: metadata.len(),
        mtime_ns: mtime_ns(&metadata),
        mode: mode_bits(&metadata),
        inode: metadata.ino(),
    })
}

impl OpenFile {
    /// Opens a regular file. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self, ReadFileError> {
        // Without O_NONBLOCK the opening of a pipe that took the file's place would wait for a writer.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ReadFileError::Vanished);
            }
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(ReadFileError::NotRegular);
            }
            Err(error) => return Err(error.into()),
        };
        let stamp = stamp_of(&file)?;
        Ok(Self { file, stamp })
    }

    /// Checks that nothing has changed since it was opened. Blocks.
    pub(crate) fn check_unchanged(&self) -> Result<(), ReadFileError> {
        if stamp_of(&self.file)? == self.stamp { Ok(()) } else { Err(ReadFileError::Changed) }
    }

    /// Reads a small file whole. Its stamp's size is that of what came. Blocks.
    pub(crate) fn read_whole(&mut self) -> Result<Bytes, ReadFileError> {
        let said = self.stamp.size;
        let most = said.max(OTHER_SIZE_BYTES_MAX);
        let mut bytes =
            Vec::with_capacity(usize::try_from(said).map_err(|_too_large| ReadFileError::Changed)?);
        let mut file = &self.file;
        // What cannot be read from any place is at its beginning.
        drop(file.rewind());
        file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
        self.check_unchanged()?;
        let came = bytes.len() as u64;
        if came > most {
            return Err(ReadFileError::OtherSize { said, gave: Gave::More });
        }
        self.stamp.size = came;
        Ok(bytes.into())
    }

    /// The first pass over a large file: its chunk list. Calls `advanced` with the bytes of each chunk; it stops the
    /// pass by answering `false`. Blocks.
    pub(crate) fn cut(
        &self,
        cutter: Cutter,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Vec<ManifestEntry>, ReadFileError> {
        let cut = cut_file(&self.file, self.stamp.size, cutter, &mut go_on);
        let more = cut.is_ok() && has_more(&self.file, self.stamp.size)?;
        // A change explains whatever came.
        self.check_unchanged()?;
        if more {
            return Err(ReadFileError::OtherSize { said: self.stamp.size, gave: Gave::More });
        }
        cut
    }

    /// Reads a chunk again and checks that it still is what its name says. Blocks.
    pub(crate) fn read_chunk(&self, offset: u64, entry: &ManifestEntry) -> Result<Bytes, ReadFileError> {
        read_chunk(&self.file, offset, entry)
    }
}

/// Cuts bytes that are in memory.
pub(crate) fn cut_bytes(bytes: &[u8], cutter: Cutter) -> Vec<ManifestEntry> {
    let mut entries = Vec::new();
    let mut pushed = 0;
    let mut cut = ChunkCutter::new(cutter);
    loop {
        while let Some(chunk) = cut.next_chunk() {
            entries.push(entry_of(chunk.bytes));
        }
        if pushed == bytes.len() {
            return entries;
        }
        let more = (bytes.len() - pushed).min(cutter.chunk_bytes_max());
        cut.push(&bytes[pushed..pushed + more]);
        pushed += more;
        if pushed == bytes.len() {
            cut.finish();
        }
    }
}

/// Reads the first `size` bytes of a file and cuts them. `go_on` stops it by answering `false`. Blocks.
pub(crate) fn cut_file(
    file: &File,
    size: u64,
    cutter: Cutter,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Vec<ManifestEntry>, ReadFileError> {
    let mut reader = SequentialReader { file, offset: 0, left: size };
    let (ended, entries) = name_chunks(size, |take| {
        let mut cut = ChunkCutter::new(cutter);
        loop {
            let ended = cut.push_from(&mut reader)?;
            while let Some(chunk) = cut.next_chunk() {
                take(chunk.bytes);
            }
            if ended {
                return Ok(());
            }
            if !go_on() {
                return Err(ReadFileError::Changed);
            }
        }
    });
    ended?;
    if reader.left > 0 {
        return Err(ReadFileError::OtherSize { said: size, gave: Gave::Fewer });
    }
    Ok(entries)
}

/// Whether a file gives bytes beyond its size. Blocks.
pub(crate) fn has_more(file: &File, size: u64) -> Result<bool, std::io::Error> {
    Ok(file.read_at(&mut [0], size)? > 0)
}

/// Reads a chunk and checks that it is what its name says. Blocks.
pub(crate) fn read_chunk(file: &File, offset: u64, entry: &ManifestEntry) -> Result<Bytes, ReadFileError> {
    let size = usize::try_from(entry.size).map_err(|_too_large| ReadFileError::Changed)?;
    let mut bytes = vec![0; size];
    read_at(file, &mut bytes, offset)?;
    if ChunkId::of(&bytes) != entry.id {
        return Err(ReadFileError::Changed);
    }
    Ok(bytes.into())
}

fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), ReadFileError> {
    file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => ReadFileError::Changed,
        _ => ReadFileError::Io(error),
    })
}

/// Reads the bytes that the file had when it was opened, and no more.
struct SequentialReader<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for SequentialReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn both_passes_and_the_whole_read_agree() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        for size in [0, 1, 16 * 1024, 300_000, 2_000_003] {
            let mut bytes = vec![0; size];
            rand::rngs::SmallRng::seed_from_u64(7).fill(&mut bytes[..]);
            std::fs::write(&path, &bytes).unwrap();
            let mut file = OpenFile::open(&path).unwrap();
            let whole = file.read_whole().unwrap();
            assert_eq!(whole, bytes);
            let entries = cut_bytes(&whole, Cutter::Cdc64k);
            assert_eq!(file.cut(Cutter::Cdc64k, || true).unwrap(), entries);
            let mut offset = 0;
            for entry in &entries {
                let chunk = file.read_chunk(offset, entry).unwrap();
                let at = usize::try_from(offset).unwrap();
                assert_eq!(chunk, bytes[at..at + chunk.len()]);
                offset += entry.size;
            }
            assert_eq!(offset, size as u64);
        }
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, vec![1; 100_000]).unwrap();
        let mut file = OpenFile::open(&path).unwrap();
        let entries = cut_bytes(&file.read_whole().unwrap(), Cutter::Cdc64k);
        std::fs::write(&path, vec![2; 100_000]).unwrap();
        assert!(matches!(file.read_chunk(0, &entries[0]), Err(ReadFileError::Changed)));
        std::fs::write(&path, vec![1; 100_001]).unwrap();
        assert!(matches!(file.check_unchanged(), Err(ReadFileError::Changed)));
        assert!(matches!(file.cut(Cutter::Cdc64k, || true), Err(ReadFileError::Changed)), "it has grown");
        std::fs::write(&path, vec![1; 10]).unwrap();
        assert!(matches!(file.cut(Cutter::Cdc64k, || true), Err(ReadFileError::Changed)), "it has shrunk");
    }

    #[test]
    fn a_file_whose_size_is_not_true_is_read_to_its_end() {
        for path in ["/proc/version", "/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled"] {
            let Ok(text) = std::fs::read(path) else { continue };
            let mut file = OpenFile::open(Path::new(path)).unwrap();
            assert_ne!(file.stamp.size, text.len() as u64, "{path} tells the truth here");
            let said = file.stamp.size;
            let cut = file.cut(Cutter::Cdc64k, || true).unwrap_err();
            assert!(matches!(cut, ReadFileError::OtherSize { said: size, .. } if size == said), "{cut}");
            let bytes = file.read_whole().unwrap();
            assert!(!bytes.is_empty());
            assert_eq!(file.stamp.size, bytes.len() as u64);
        }
    }

    #[test]
    fn what_is_no_file_any_more_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        assert!(matches!(OpenFile::open(&path), Err(ReadFileError::Vanished)));
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert!(matches!(OpenFile::open(&path), Err(ReadFileError::NotRegular)));
        assert!(matches!(OpenFile::open(directory.path()), Err(ReadFileError::NotRegular)));
    }
}
