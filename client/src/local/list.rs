//! Lists a folder with how each thing in it is, in as few system calls as there can be.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::beneath::{self, Home};
use super::disk::{Object, object_of};

/// Bytes of names that the system gives at once.
const BUFFER_BYTES: usize = 32 * 1024;

/// One thing in a folder.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) object: Object,
}

/// What is in a folder that is open for reading, at its start. What vanishes meanwhile is left out. Blocks.
#[cfg(target_os = "linux")]
pub(super) fn list(folder: BorrowedFd<'_>, home: &Home) -> Result<Vec<Entry>, Errno> {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
    let mut names = rustix::fs::RawDir::new(folder, &mut buffer);
    let mut entries = Vec::new();
    while let Some(entry) = names.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let name = OsStr::from_bytes(name.to_bytes());
        match beneath::stat_at(folder, name, AtFlags::empty()) {
            Ok(stat) => entries.push(Entry { name: name.to_owned(), object: object_of(&stat, home) }),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(entries)
}
