//! The marker in a root: a few lines that say which root it is, and on which file system it was made.
//!
//! It is written to a temporary file, synced and renamed: after a crash there is the old one or the new one.

use std::io::{Read, Write};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::RootId;
use crate::local::beneath::Home;

/// Its name in the state's folder.
pub(super) const FILE: &str = "root";
const FILE_NEW: &str = "root.new";
/// What this version writes.
const FORMAT: u32 = 1;
/// Most bytes of it that are read.
const BYTES_MAX: u64 = 4_096;

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) id: RootId,
    /// The number that the file system has for itself; 0: none.
    pub(super) file_system: u64,
    /// `st_dev`.
    pub(super) device: u64,
}

impl Marker {
    /// Of a root in a folder that is open. Blocks.
    pub(super) fn here(id: RootId, folder: BorrowedFd<'_>, home: &Home) -> Self {
        Self { id, file_system: file_system_of(folder), device: home.device() }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Text {
    format: u32,
    id: String,
    /// In hexadecimal: TOML's integers have a sign.
    file_system: String,
    device: String,
}

/// Why it cannot be read.
#[derive(Debug)]
pub(super) enum ReadError {
    Damaged(String),
    Io(Errno),
}

/// The number that a file system has for itself; 0 if it has none. Blocks.
fn file_system_of(fd: BorrowedFd<'_>) -> u64 {
    rustix::fs::fstatvfs(fd).map_or(0, |stat| stat.f_fsid)
}

/// Kinds of file systems on which an object has another inode number each time that the system reads it in.
const INODES_CHANGE: [u64; 2] = [0x4d44, 0x2011_bab0];

/// Whether objects keep their inode numbers. FAT and exFAT have none on disk. Blocks.
pub(super) fn keeps_inodes(fd: BorrowedFd<'_>) -> bool {
    let kind = rustix::fs::fstatfs(fd).map_or(0, |stat| u64::try_from(stat.f_type).unwrap_or(0));
    !INODES_CHANGE.contains(&kind)
}

/// Reads the marker in the state's folder. Blocks.
pub(super) fn read(folder: BorrowedFd<'_>) -> Result<Option<Marker>, ReadError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(folder, FILE, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(ReadError::Io(errno)),
    };
    let mut text = String::new();
    std::fs::File::from(fd)
        .take(BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| ReadError::Damaged(error.to_string()))?;
    parse(&text).map(Some)
}

fn parse(text: &str) -> Result<Marker, ReadError> {
    let text: Text = toml::from_str(text).map_err(|error| ReadError::Damaged(error.message().to_owned()))?;
    if text.format != FORMAT {
        return Err(ReadError::Damaged(format!(
            "its format is {}, this version knows {FORMAT}",
            text.format
        )));
    }
    let mut id = [0; 16];
    hex::decode_to_slice(&text.id, &mut id).map_err(|error| ReadError::Damaged(error.to_string()))?;
    let number =
        |text: &str| u64::from_str_radix(text, 16).map_err(|error| ReadError::Damaged(error.to_string()));
    Ok(Marker { id: RootId(id), file_system: number(&text.file_system)?, device: number(&text.device)? })
}

/// Writes the marker into the state's folder, durably. Blocks.
pub(super) fn write(folder: BorrowedFd<'_>, marker: &Marker) -> Result<(), Errno> {
    let text = Text {
        format: FORMAT,
        id: marker.id.to_string(),
        file_system: format!("{:x}", marker.file_system),
        device: format!("{:x}", marker.device),
    };
    let text = toml::to_string(&text).map_err(|_unwritable| Errno::INVAL)?;
    let text =
        format!("# This folder is kept in sync by keepstone. Do not delete or copy this file.\n{text}");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(folder, FILE_NEW, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = std::fs::File::from(fd);
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    rustix::fs::renameat(folder, FILE_NEW, folder, FILE)?;
    rustix::fs::fsync(folder)
}
