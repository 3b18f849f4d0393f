//! Looks whether a folder holds only what may go with it, before it is trashed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{TrashFolderError, child};
use crate::local::blocker::is_other_root;
use crate::local::disk::{DiskError, ObjectKind};
use crate::local::ignore_rules::{Beside, Level};
use crate::local::list::{Entry, list};
use crate::local::model::{LocalIndex, LocalRecord};
use crate::local::own_data;
use crate::local::rel::{Rel, STATE_FOLDER};
use crate::local::root::Root;
use crate::planner::model::NodeId;

/// Folders on one path that are looked at below a folder that is to go.
const DEPTH_MAX: usize = 4_096;

/// Looks whether a folder holds only what is known and has been sent, or is ignored.
pub(super) struct FolderCheck<'a> {
    pub(super) root: &'a Root,
    pub(super) index: &'a dyn LocalIndex,
}

impl FolderCheck<'_> {
    /// Says whether anything in it is ignored. `rel` is where the folder was in the root, which the ignore rules go by.
    pub(super) fn check(
        &self,
        fd: &OwnedFd,
        rel: &Rel,
        node: NodeId,
        level: &Level,
        depth: usize,
    ) -> Result<bool, TrashFolderError> {
        if depth > DEPTH_MAX {
            return Err(DiskError::Changed(rel.clone()).into());
        }
        let mut ignores = false;
        let known = self.index.children_sent(node);
        let known: HashMap<&str, &(LocalRecord, bool)> =
            known.iter().map(|known| (known.0.place.name.as_str(), known)).collect();
        let entries = self.list(fd, rel)?;
        let beside = Beside::new(&entries);
        for entry in &entries {
            let Entry { name, object } = entry;
            let is_folder = object.kind == ObjectKind::Folder;
            let text = name.to_str().ok_or_else(|| blocked(rel, name, "its name is not UTF-8"))?;
            let below = rel.join(text).map_err(|error| blocked(rel, name, &error.to_string()))?;
            let known = known.get(text);
            if object.kind == ObjectKind::MountPoint {
                return Err(blocked(rel, name, MOUNTED));
            }
            let Some((known, sent)) = known else {
                let is_ignored = level.judge(text, object.kind, &beside).is_some()
                    || (is_folder
                        && text != STATE_FOLDER
                        && self.holds_only_ignored(fd.as_fd(), text, level));
                if !is_ignored {
                    return Err(if level.is_unknown() {
                        blocked(rel, name, "the rules of its folder are not understood, so it may be ignored")
                    } else {
                        refused(fd.as_fd(), rel, entry, below)
                    });
                }
                ignores = true;
                continue;
            };
            // Not sent: a scan saw it since its deletion was planned, and the server has never had it.
            if is_folder && *sent && known.stamp.identity == object.stamp.identity {
                let fd = child(fd.as_fd(), name).map_err(|errno| DiskError::of(&below, errno))?;
                let level = level.enter(fd.as_fd(), text);
                ignores |= self.check(&fd, &below, known.node, &level, depth + 1)?;
            } else if !sent || known.stamp != object.stamp {
                return Err(refused(fd.as_fd(), rel, entry, below));
            }
        }
        Ok(ignores)
    }

    /// Whether an unknown folder is one that no scan takes in.
    fn holds_only_ignored(&self, parent: BorrowedFd<'_>, name: &str, level: &Level) -> bool {
        child(parent, OsStr::new(name)).is_ok_and(|fd| {
            let level = level.enter(fd.as_fd(), name);
            self.root.holds_only_ignored(&fd, name, &level)
        })
    }

    pub(super) fn list(&self, fd: &OwnedFd, rel: &Rel) -> Result<Vec<Entry>, TrashFolderError> {
        list(fd.as_fd(), &self.root.home()).map_err(|errno| DiskError::of(rel, errno).into())
    }
}

const MOUNTED: &str = "another file system is mounted there: unmount it";

fn blocked(folder: &Rel, name: &OsStr, why: &str) -> TrashFolderError {
    TrashFolderError::Blocked { path: format!("{folder}/{}", name.display()), why: why.to_owned() }
}

/// Something is not known, or not as it was: the next scan takes it in, unless no scan ever does.
fn refused(fd: BorrowedFd<'_>, folder: &Rel, entry: &Entry, below: Rel) -> TrashFolderError {
    let Entry { name, object } = entry;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match object.kind {
        ObjectKind::Special => blocked(folder, name, "it is a pipe, socket or device"),
        ObjectKind::Folder if name == STATE_FOLDER || is_other_root(fd, name) => {
            blocked(folder, name, "that folder is kept in sync by itself")
        }
        ObjectKind::File | ObjectKind::Folder
            if rustix::fs::openat(fd, name, flags, Mode::empty())
                .is_err_and(|errno| errno == Errno::ACCESS) =>
        {
            blocked(folder, name, "it may not be read: check its permissions")
        }
        ObjectKind::File if own_data::is_profile_at(fd, name) => {
            blocked(folder, name, &format!("it is {}, which is never sent", own_data::PROFILE))
        }
        _ => DiskError::Changed(below).into(),
    }
}
