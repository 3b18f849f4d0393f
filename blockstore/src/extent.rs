//! Extent files: where the shards of a disk lie, appended one after the other.
//!
//! Invariants:
//! - Only the writer thread appends, and only to the one extent it created since the node started.
//! - An extent file takes what was written to it: nothing is allocated ahead.
//! - Appends, and reads of large ranges, go past the page cache where the file system can do so.
//! - A file is at most [`EXTENT_BYTES_MAX`] long; it never shrinks.
//! - An extent that is appended to no more is sealed: the seal, in its first boundary behind the header, says how far
//!   it is known to be whole. What does not verify before that is damage; behind it, and in an extent without a seal,
//!   the end may be torn. A seal is a sector of its own, so that writing it cannot hurt the header.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, pread};

use crate::aligned::Pool;
use crate::appender::{Appender, is_unfit, open_direct};
use crate::files;
use crate::locks::locked;
use crate::record::{
    BOUNDARY, BOUNDARY_BYTES, ExtentNumber, HEADER_BYTES, Head, Owner, Place, Stamp, encode_head,
};

/// Largest extent file.
pub(crate) const EXTENT_BYTES_MAX: u64 = 1 << 30;

/// Bytes of an extent's own header: one boundary.
pub(crate) const EXTENT_HEADER_BYTES: u64 = BOUNDARY_BYTES;

/// Files kept open per disk: of an extent up to two, one of them for direct reads and writes.
const FILES_OPEN_MAX: usize = 128;

const MAGIC: &[u8; 8] = b"KSEXTNT\n";
const FORMAT: u16 = 1;
const SALT_BYTES: usize = 32;
const FIELDS_BYTES: usize = 8 + 2 + 6 + 16 + 16 + 4 + 8 + SALT_BYTES;

const SEAL_MAGIC: &[u8; 8] = b"KSSEAL\n\0";
const SEAL_AT: usize = 2048;
const SEAL_FIELDS_BYTES: usize = 8 + 16 + 4 + 8 + 8;

/// What a seal says of its extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    /// Bytes from the beginning that are whole and durable.
    pub(crate) end: u64,
    /// The number of the disk's last record when it was sealed.
    pub(crate) sequence: u64,
}

fn encode_seal(owner: Owner, extent: ExtentNumber, seal: Seal) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SEAL_FIELDS_BYTES + 4);
    bytes.extend_from_slice(SEAL_MAGIC);
    bytes.extend_from_slice(owner.disk.as_bytes());
    bytes.extend_from_slice(&extent.0.to_le_bytes());
    bytes.extend_from_slice(&seal.end.to_le_bytes());
    bytes.extend_from_slice(&seal.sequence.to_le_bytes());
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The seal in an extent's first boundary; `None` if there is none, or it is damaged.
pub(crate) fn decode_seal(owner: Owner, extent: ExtentNumber, first_boundary: &[u8]) -> Option<Seal> {
    let bytes = first_boundary.get(SEAL_AT..SEAL_AT + SEAL_FIELDS_BYTES + 4)?;
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let seal = Seal { end: number(28)?, sequence: number(36)? };
    (encode_seal(owner, extent, seal) == bytes).then_some(seal)
}

/// The header of extent `extent`: whose it is, and the salt from which its keys will come.
fn encode_header(owner: Owner, extent: ExtentNumber, salt: &[u8; SALT_BYTES]) -> [u8; BOUNDARY] {
    let mut bytes = Vec::with_capacity(FIELDS_BYTES + 4);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(owner.disk.as_bytes());
    bytes.extend_from_slice(owner.cluster.as_bytes());
    bytes.extend_from_slice(&extent.0.to_le_bytes());
    bytes.extend_from_slice(&files::now_ms().to_le_bytes());
    bytes.extend_from_slice(salt);
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    let mut boundary = [0; BOUNDARY];
    boundary[..bytes.len()].copy_from_slice(&bytes);
    boundary
}

/// Whether `bytes` begin an extent file of `owner` with that number.
pub(crate) fn header_is_sound(owner: Owner, extent: ExtentNumber, bytes: &[u8]) -> bool {
    let Some(fields) = bytes.get(..FIELDS_BYTES) else { return false };
    let Some(checksum) = bytes.get(FIELDS_BYTES..FIELDS_BYTES + 4) else { return false };
    fields.starts_with(MAGIC)
        && fields[8..10] == FORMAT.to_le_bytes()
        && fields[16..32] == *owner.disk.as_bytes()
        && fields[32..48] == *owner.cluster.as_bytes()
        && fields[48..52] == extent.0.to_le_bytes()
        && checksum == crc32fast::hash(fields).to_le_bytes()
}

/// The file's name in `extents/`.
pub(crate) fn file_name(extent: ExtentNumber) -> String {
    format!("{:08}.ext", extent.0)
}

fn parse_file_name(name: &str) -> Option<ExtentNumber> {
    let number = ExtentNumber(name.strip_suffix(".ext")?.parse().ok()?);
    (file_name(number) == name).then_some(number)
}

/// Files that are open, by extent and by whether they are so for direct reads and writes.
type OpenFiles = BTreeMap<(ExtentNumber, bool), Arc<File>>;

/// The extents of one disk.
pub(crate) struct Extents {
    directory: PathBuf,
    owner: Owner,
    open: Mutex<OpenFiles>,
    /// Whether the file system is known to have no direct reads or writes.
    buffered: AtomicBool,
    /// For direct reads.
    memory: Arc<Pool>,
}

impl Extents {
    /// Opens `disk_directory/extents`, making it if it is not there.
    pub(crate) fn open(disk_directory: &Path, owner: Owner) -> io::Result<Self> {
        let directory = disk_directory.join("extents");
        files::create_directory_durably(&directory)?;
        Ok(Self {
            directory,
            owner,
            open: Mutex::default(),
            buffered: AtomicBool::new(false),
            memory: Arc::default(),
        })
    }

    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    fn path(&self, extent: ExtentNumber) -> PathBuf {
        self.directory.join(file_name(extent))
    }

    /// Those there are, ascending. Files with other names are none of ours and left alone.
    pub(crate) fn list(&self) -> io::Result<Vec<ExtentNumber>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            numbers.extend(entry?.file_name().to_str().and_then(parse_file_name));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The file of an extent, for reading and writing in place.
    pub(crate) fn file(&self, extent: ExtentNumber) -> io::Result<Arc<File>> {
        if let Some(file) = locked(&self.open).get(&(extent, false)) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(OpenOptions::new().read(true).write(true).open(self.path(extent))?);
        self.remember(extent, false, &file);
        Ok(file)
    }

    /// The same, for direct reads and writes; `None` if the file system has none.
    fn direct(&self, extent: ExtentNumber) -> io::Result<Option<Arc<File>>> {
        if self.buffered.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if let Some(file) = locked(&self.open).get(&(extent, true)) {
            return Ok(Some(Arc::clone(file)));
        }
        match open_direct(&self.path(extent)) {
            Ok(file) => {
                let file = Arc::new(file);
                self.remember(extent, true, &file);
                Ok(Some(file))
            }
            Err(error) if is_unfit(&error) => {
                self.go_buffered(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn go_buffered(&self, error: &dyn std::fmt::Display) {
        if !self.buffered.swap(true, Ordering::Relaxed) {
            let disk = self.owner.disk;
            tracing::warn!(%disk, %error, "no direct reads and writes: they go through the page cache from now on");
        }
    }

    fn remember(&self, extent: ExtentNumber, direct: bool, file: &Arc<File>) {
        let mut open = locked(&self.open);
        if open.len() >= FILES_OPEN_MAX {
            // The oldest extent is the least likely to be asked for.
            open.pop_first();
        }
        open.insert((extent, direct), Arc::clone(file));
    }

    /// Reads up to `length` bytes of an extent from `offset`: fewer only at the end of its file.
    pub(crate) fn read(&self, extent: ExtentNumber, offset: u64, length: usize) -> io::Result<Bytes> {
        let file = self.file(extent)?;
        Ok(read_vec(&file, length, offset)?.into())
    }

    /// The same, past the page cache where the file system can do so.
    pub(crate) fn read_past_cache(
        &self,
        extent: ExtentNumber,
        offset: u64,
        length: usize,
    ) -> io::Result<Bytes> {
        if let Some(file) = self.direct(extent)? {
            match read_direct(&file, &self.memory, offset, length) {
                Err(error) if is_unfit(&error) => self.go_buffered(&error),
                read => return read,
            }
        }
        self.read(extent, offset, length)
    }

    /// Makes an extent with its header. Not durable yet: the caller syncs the file and [`Self::sync_directory`].
    pub(crate) fn create(&self, extent: ExtentNumber) -> io::Result<Appender> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|error| io::Error::other(error.to_string()))?;
        let path = self.path(extent);
        let file = Arc::new(OpenOptions::new().read(true).write(true).create_new(true).open(&path)?);
        let first = encode_header(self.owner, extent, &salt);
        let begun = self.direct(extent).and_then(|direct| {
            let appender = Appender::begin(&file, direct, &first)?;
            if !appender.is_direct() {
                self.go_buffered(&"a new extent does not take them");
            }
            Ok(appender)
        });
        match begun {
            Ok(appender) => {
                self.remember(extent, false, &file);
                Ok(appender)
            }
            Err(error) => {
                self.forget(extent);
                std::fs::remove_file(&path)?;
                Err(error)
            }
        }
    }

    fn forget(&self, extent: ExtentNumber) {
        locked(&self.open).retain(|(known, _direct), _file| *known != extent);
    }

    /// Makes created and removed extents durable.
    pub(crate) fn sync_directory(&self) -> io::Result<()> {
        files::sync_directory(&self.directory)
    }

    /// Removes an extent in which nothing lives. If that is undone by a crash, a rebuild finds only holes in it.
    pub(crate) fn remove(&self, extent: ExtentNumber) -> io::Result<()> {
        self.forget(extent);
        match std::fs::remove_file(self.path(extent)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _gone => Ok(()),
        }
    }

    /// Bytes that the file system has allocated to an extent; 0 if it is not there.
    pub(crate) fn allocated_bytes(&self, extent: ExtentNumber) -> u64 {
        std::fs::metadata(self.path(extent)).map_or(0, |metadata| metadata.blocks() * 512)
    }

    /// Replaces a record's first boundary by a tombstone. Not durable yet: the caller syncs the file.
    pub(crate) fn write_tombstone(
        &self,
        file: &File,
        place: Place,
        stamp: Stamp,
        head: &Head,
    ) -> io::Result<()> {
        let mut boundary = [0; BOUNDARY];
        boundary[..HEADER_BYTES].copy_from_slice(&encode_head(self.owner, place, stamp, head));
        file.write_all_at(&boundary, place.offset)
    }

    /// Says that an extent is appended to no more, and syncs that.
    pub(crate) fn write_seal(&self, file: &File, extent: ExtentNumber, seal: Seal) -> io::Result<()> {
        file.write_all_at(&encode_seal(self.owner, extent, seal), SEAL_AT as u64)?;
        sync(file)
    }

    /// Bytes of an extent's file; `None` if it is not there.
    pub(crate) fn file_bytes(&self, extent: ExtentNumber) -> io::Result<Option<u64>> {
        match std::fs::metadata(self.path(extent)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Gives a range back to the file system, where it can be; the range then reads as zeros.
pub(crate) fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)?;
    Ok(())
}

/// Makes what was written to an extent durable.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    #[cfg(test)]
    crate::faults::sync(file)?;
    file.sync_data()
}

/// Reads up to `buffer.len()` bytes from `offset`: fewer only at the end of the file.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    #[cfg(test)]
    crate::faults::read(file, offset, buffer.len())?;
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// As [`read_vec`], past the page cache: whole boundaries around the range.
fn read_direct(file: &File, memory: &Arc<Pool>, offset: u64, length: usize) -> io::Result<Bytes> {
    let begin = offset / BOUNDARY_BYTES * BOUNDARY_BYTES;
    let before = usize::try_from(offset - begin).map_err(io::Error::other)?;
    let whole = (before + length).next_multiple_of(BOUNDARY);
    let mut lent = memory.lend(whole);
    let filled = read_up_to(file, &mut lent.bytes_mut()[..whole], begin)?;
    Ok(lent.freeze(before.min(filled)..(before + length).min(filled)))
}

/// Reads up to `length` bytes from `offset` into memory that nothing has to clear first: fewer only at the end of the
/// file.
pub(crate) fn read_vec(file: &File, length: usize, offset: u64) -> io::Result<Vec<u8>> {
    #[cfg(test)]
    crate::faults::read(file, offset, length)?;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = offset + bytes.len() as u64;
        match pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // An allocation may be larger than what was asked for.
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::ids::{ClusterId, DiskId};

    fn owner() -> Owner {
        Owner { cluster: ClusterId::from_bytes([1; 16]), disk: DiskId::from_bytes([2; 16]) }
    }

    #[test]
    fn extents_are_listed_by_number_and_strangers_are_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let extents = Extents::open(scratch.path(), owner()).unwrap();
        for number in [10, 2] {
            extents.create(ExtentNumber(number)).unwrap();
        }
        std::fs::write(scratch.path().join("extents/2.ext"), "x").unwrap();
        std::fs::write(scratch.path().join("extents/notes.txt"), "x").unwrap();
        assert_eq!(extents.list().unwrap(), vec![ExtentNumber(2), ExtentNumber(10)]);
        assert!(extents.create(ExtentNumber(2)).is_err(), "an extent is never made twice");
        extents.remove(ExtentNumber(2)).unwrap();
        assert_eq!(extents.list().unwrap(), vec![ExtentNumber(10)]);
    }

    #[test]
    fn an_extent_header_is_sound_only_for_its_disk_and_number() {
        let bytes = encode_header(owner(), ExtentNumber(3), &[4; SALT_BYTES]);
        assert!(header_is_sound(owner(), ExtentNumber(3), &bytes));
        assert!(!header_is_sound(owner(), ExtentNumber(4), &bytes));
        let other = Owner { disk: DiskId::from_bytes([9; 16]), ..owner() };
        assert!(!header_is_sound(other, ExtentNumber(3), &bytes));
        for byte in 0..FIELDS_BYTES + 4 {
            let mut damaged = bytes;
            damaged[byte] ^= 0x10;
            assert!(!header_is_sound(owner(), ExtentNumber(3), &damaged) || (10..16).contains(&byte));
        }
        assert!(!header_is_sound(owner(), ExtentNumber(3), &bytes[..20]));
    }

    #[test]
    fn a_seal_reads_back_and_is_bound_to_its_extent() {
        let scratch = tempfile::tempdir().unwrap();
        let extents = Extents::open(scratch.path(), owner()).unwrap();
        let (extent, seal) = (ExtentNumber(3), Seal { end: 1 << 20, sequence: 77 });
        let file = Arc::clone(extents.create(extent).unwrap().file());
        let mut boundary = [0; BOUNDARY];
        read_up_to(&file, &mut boundary, 0).unwrap();
        assert_eq!(decode_seal(owner(), extent, &boundary), None);
        extents.write_seal(&file, extent, seal).unwrap();
        read_up_to(&file, &mut boundary, 0).unwrap();
        assert_eq!(decode_seal(owner(), extent, &boundary), Some(seal));
        assert!(header_is_sound(owner(), extent, &boundary), "a seal leaves the header alone");
        assert_eq!(decode_seal(owner(), ExtentNumber(4), &boundary), None);
        boundary[SEAL_AT + 30] ^= 1;
        assert_eq!(decode_seal(owner(), extent, &boundary), None);
    }

    #[test]
    fn past_the_page_cache_reads_what_is_there() {
        let scratch = tempfile::tempdir().unwrap();
        let extents = Extents::open(scratch.path(), owner()).unwrap();
        let extent = ExtentNumber(3);
        let mut appender = extents.create(extent).unwrap();
        let bytes: Vec<u8> = (0..100 * BOUNDARY).map(|at| u8::try_from(at / 7 % 251).unwrap()).collect();
        appender.push(&[&bytes]).unwrap();
        appender.flush().unwrap();
        let min = 128 * 1024;
        let ranges =
            [(4096, min), (4097, min), (5000, min + 1), (8191, 300_000), (200_000, 300_000), (500_000, min)];
        for buffered in [false, true] {
            extents.buffered.store(buffered, Ordering::Relaxed);
            for (offset, length) in ranges {
                let begin = (offset - BOUNDARY).min(bytes.len());
                let expected = &bytes[begin..(begin + length).min(bytes.len())];
                let read = extents.read_past_cache(extent, offset as u64, length).unwrap();
                assert!(read == expected, "buffered={buffered} offset={offset} length={length}");
            }
        }
        extents.remove(extent).unwrap();
        assert_eq!(extents.read_past_cache(extent, 0, min).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
