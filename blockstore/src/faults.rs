//! Faults that unit tests inject where the disk is read, written and synced: places that give EIO,
//! space that ends, and syncs that fail.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;

use crate::locks::locked;
use crate::record::BOUNDARY_BYTES;

#[derive(Default)]
struct Faults {
    unreadable: Vec<Range<u64>>,
    sync_fails: bool,
    /// Nothing can be written from here on.
    full_from: Option<u64>,
    once: Option<Fault>,
}

/// What befalls one write.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    /// No more than so many bytes of it are written.
    CutShort(usize),
    /// The file system says that it does not take such.
    Unfit,
}

/// By device and inode: a test's files are its own.
static FAULTS: Mutex<BTreeMap<(u64, u64), Faults>> = Mutex::new(BTreeMap::new());

fn eio() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn change(path: &Path, change: impl FnOnce(&mut Faults)) {
    let metadata = std::fs::metadata(path).unwrap();
    change(locked(&FAULTS).entry((metadata.dev(), metadata.ino())).or_default());
}

/// From now on no read of `path` that touches `range` succeeds.
pub(crate) fn make_unreadable(path: &Path, range: Range<u64>) {
    change(path, |faults| faults.unreadable.push(range));
}

/// From now on no sync of `path` succeeds.
pub(crate) fn fail_syncs(path: &Path) {
    change(path, |faults| faults.sync_fails = true);
}

/// From now on there is no space in `path` behind `offset`.
pub(crate) fn fill_up(path: &Path, offset: u64) {
    change(path, |faults| faults.full_from = Some(offset));
}

/// Befalls the next write of `path`.
pub(crate) fn once(path: &Path, fault: Fault) {
    change(path, |faults| faults.once = Some(fault));
}

/// Everything works again.
pub(crate) fn heal(path: &Path) {
    change(path, |faults| *faults = Faults::default());
}

fn check(file: &File, fails: impl FnOnce(&Faults) -> bool) -> io::Result<()> {
    let faults = locked(&FAULTS);
    if faults.is_empty() {
        return Ok(());
    }
    let metadata = file.metadata()?;
    let hit = faults.get(&(metadata.dev(), metadata.ino())).is_some_and(fails);
    if hit { Err(eio()) } else { Ok(()) }
}

/// How much of a write is to be tried.
pub(crate) fn write(file: &File, offset: u64, length: usize) -> io::Result<usize> {
    assert!(offset.is_multiple_of(BOUNDARY_BYTES), "a write begins at {offset}, on no boundary");
    let end = offset + length as u64;
    check(file, |faults| faults.full_from.is_some_and(|from| from < end))
        .map_err(|_eio| io::Error::from(io::ErrorKind::StorageFull))?;
    let metadata = file.metadata()?;
    let once =
        locked(&FAULTS).get_mut(&(metadata.dev(), metadata.ino())).and_then(|faults| faults.once.take());
    match once {
        None => Ok(length),
        Some(Fault::CutShort(count)) => Ok(count.min(length)),
        Some(Fault::Unfit) => Err(io::Error::from_raw_os_error(rustix::io::Errno::INVAL.raw_os_error())),
    }
}

pub(crate) fn read(file: &File, offset: u64, length: usize) -> io::Result<()> {
    let end = offset + length as u64;
    check(file, |faults| faults.unreadable.iter().any(|range| range.start < end && offset < range.end))
}

pub(crate) fn sync(file: &File) -> io::Result<()> {
    check(file, |faults| faults.sync_fails)
}
