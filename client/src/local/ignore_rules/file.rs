//! Reads one file with rules. What cannot be read whole and understood is no set of rules: nothing may be taken to be
//! allowed by it.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::IGNORE_FILE;

/// Bytes of one of them.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The rules of one folder.
#[derive(Debug)]
pub(super) enum Own {
    /// There are none.
    None,
    Rules(Gitignore),
    /// There are some, and they are not known: why.
    Unknown(String),
}

/// Reads the rules of the folder that is open at `folder`. Blocks.
pub(super) fn read(folder: BorrowedFd<'_>) -> Own {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(folder, IGNORE_FILE, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Own::None,
        Err(Errno::LOOP) => return Own::Unknown("it is a symlink".to_owned()),
        Err(Errno::ACCESS | Errno::PERM) => return Own::Unknown("it may not be read".to_owned()),
        Err(errno) => return Own::Unknown(format!("it cannot be read: {errno}")),
    };
    match rustix::fs::fstat(fd.as_fd()) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
        Ok(_) => return Own::Unknown("it is no file".to_owned()),
        Err(errno) => return Own::Unknown(format!("it cannot be read: {errno}")),
    }
    let mut bytes = Vec::new();
    if let Err(error) = std::fs::File::from(fd).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes) {
        return Own::Unknown(format!("it cannot be read: {error}"));
    }
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Own::Unknown(format!("it is larger than {FILE_BYTES_MAX} bytes"));
    }
    parse(bytes)
}

fn parse(bytes: Vec<u8>) -> Own {
    let Ok(text) = String::from_utf8(bytes) else { return Own::Unknown("it is not UTF-8".to_owned()) };
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text);
    let mut builder = GitignoreBuilder::new("");
    for (number, line) in (1_usize..).zip(text.lines()) {
        if line.contains('\0') {
            return Own::Unknown(format!("line {number} is no text"));
        }
        // The line's number stands where the library keeps a file's name.
        if let Err(error) = builder.add_line(Some(PathBuf::from(number.to_string())), line) {
            return Own::Unknown(format!("line {number} is not understood: {error}"));
        }
    }
    match builder.build() {
        Ok(rules) if rules.is_empty() => Own::None,
        Ok(rules) => Own::Rules(rules),
        Err(error) => Own::Unknown(format!("it is not understood: {error}")),
    }
}
