//! Folders that are not known and hold nothing but what is ignored, and rules: no scan takes them in (`scan`). So they
//! stay as what is ignored does. A folder with nothing in it at all is something else: somebody made it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::beneath;
use super::disk::ObjectKind;
use super::ignore_rules::{Beside, IGNORE_FILE, Level};
use super::list::{Entry, list};
use super::own_data;
use super::rel::STATE_FOLDER;
use super::root::Root;

/// Folders within one another that are looked into.
const DEPTH_MAX: usize = 4_096;

impl Root {
    /// Whether something in an unknown folder is ignored, and nothing else is in it. `fd`: open for reading, at its
    /// start; `level`: its own. Blocks.
    pub(super) fn holds_only_ignored(&self, fd: &OwnedFd, name: &str, level: &Level) -> bool {
        self.ignores(fd, name, level, 0) == Ok(Some(true))
    }

    /// Whether anything in it is ignored; `None`: it holds something else.
    fn ignores(&self, fd: &OwnedFd, name: &str, level: &Level, depth: usize) -> Result<Option<bool>, Errno> {
        if depth > DEPTH_MAX {
            return Ok(None);
        }
        let entries = list(fd.as_fd(), &self.home())?;
        if own_data::folder(fd.as_fd(), name, &entries).is_some() {
            return Ok(Some(true));
        }
        // One that is kept in sync by itself.
        let marker = format!("{STATE_FOLDER}/root");
        if beneath::stat_at(fd.as_fd(), OsStr::new(&marker), AtFlags::empty()).is_ok() {
            return Ok(None);
        }
        let beside = Beside::new(&entries);
        let (mut ignores, mut has_nothing) = (false, true);
        for Entry { name, object } in &entries {
            let Some(name) = name.to_str() else { continue };
            let is_ignored = level.judge(name, object.kind, &beside).is_some();
            has_nothing &= matches!(object.kind, ObjectKind::Special | ObjectKind::MountPoint);
            match object.kind {
                ObjectKind::Special | ObjectKind::MountPoint => {}
                _ if is_ignored => ignores = true,
                ObjectKind::Folder => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let below = rustix::fs::openat(fd, name, flags, Mode::empty())?;
                    let level = level.enter(below.as_fd(), name);
                    match self.ignores(&below, name, &level, depth + 1)? {
                        Some(below) => ignores |= below,
                        None => return Ok(None),
                    }
                }
                ObjectKind::File | ObjectKind::Symlink if name == IGNORE_FILE => {}
                ObjectKind::File | ObjectKind::Symlink => return Ok(None),
            }
        }
        Ok((!has_nothing).then_some(ignores))
    }
}
