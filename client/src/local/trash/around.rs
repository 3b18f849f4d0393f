//! Folders that go from here without what is ignored in them, and what is removed because the server has it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::check::FolderCheck;
use super::{FREED, Fate, TrashFolderError, Trashed, child, date_of, days_now};
use crate::local::disk::{DiskError, Durability, ObjectKind, same_but_renamed};
use crate::local::ignore_rules::{IGNORE_FILE, IgnoreRules};
use crate::local::list::{Entry, list};
use crate::local::model::{LocalIndex, LocalRecord};
use crate::local::rel::Rel;
use crate::local::root::Root;
use crate::planner::model::{Kind, NodeId};

impl Root {
    /// Moves what is in sync in a folder to the trash, one by one. The folder stays with what is ignored in it, and
    /// with its rules: without them that would not be ignored any more. After a crash a part of it has gone, and the
    /// rest goes the next time.
    pub(super) fn trash_around_ignored(
        &self,
        check: &FolderCheck<'_>,
        (rel, node): (&Rel, NodeId),
        rules: &IgnoreRules,
        fate: Fate,
    ) -> Result<String, TrashFolderError> {
        let known = check.index.children_sent(node);
        // The check has read the folder to its end: it is opened anew.
        let fd = self.open_folder(rel).map_err(|errno| DiskError::of(rel, errno))?;
        for Entry { name, object } in check.list(&fd, rel)? {
            let Some(name) = name.to_str() else { continue };
            let Some((known, sent)) = known.iter().find(|(known, _sent)| known.place.name == name) else {
                continue;
            };
            let below = rel.join(name).map_err(|_no_name| DiskError::Changed(rel.clone()))?;
            if name == IGNORE_FILE {
                continue;
            }
            if !sent || known.stamp.identity != object.stamp.identity {
                return Err(DiskError::Changed(below).into());
            }
            if known.kind == Kind::Folder {
                self.trash_folder(&below, known.node, check.index, rules, fate)?;
            } else {
                self.trash_or_free(&below, known, check.index, fate)?;
            }
        }
        self.sync_folder(rel)?;
        Ok(match fate {
            Fate::Kept => format!("{}/{rel}; what is ignored in it stays here", date_of(days_now())),
            Fate::Freed => format!("{FREED}; what is ignored in it stays here"),
        })
    }

    /// As [`Root::trash`] does; removed for good if its space is to be free and the server has it in that version.
    ///
    /// # Errors
    /// See [`Root::trash`].
    pub fn trash_or_free(
        &self,
        rel: &Rel,
        known: &LocalRecord,
        index: &dyn LocalIndex,
        fate: Fate,
    ) -> Result<String, DiskError> {
        if fate == Fate::Kept || !index.is_on_server(known.node) {
            return self.trash(rel, &known.stamp, Durability::Later);
        }
        let moved = self.trash_to(rel, &known.stamp, Durability::Later)?;
        match rustix::fs::unlinkat(&moved.folder, &moved.name, AtFlags::empty()) {
            Ok(()) => Ok(FREED.to_owned()),
            Err(_stays) => Ok(moved.shown),
        }
    }

    /// Removes of a folder that was trashed what the server has in the version that is there. Whether all of it went;
    /// what did not is in the trash.
    pub(super) fn free_folder(&self, moved: &Trashed, node: NodeId, index: &dyn LocalIndex) -> bool {
        let freed = child(moved.folder.as_fd(), &moved.name)
            .and_then(|fd| self.free_below(fd.as_fd(), node, index))
            .and_then(|all| if all { Ok(()) } else { Err(Errno::NOTEMPTY) })
            .and_then(|()| rustix::fs::unlinkat(&moved.folder, &moved.name, AtFlags::REMOVEDIR));
        if let Err(errno) = freed {
            tracing::info!(%errno, path = moved.shown, "not all of an excluded folder is on the server; the rest is in the trash");
        }
        freed.is_ok()
    }

    fn free_below(&self, fd: BorrowedFd<'_>, node: NodeId, index: &dyn LocalIndex) -> Result<bool, Errno> {
        let known = index.children(node);
        let mut all = true;
        for Entry { name, object } in list(fd, &self.home())? {
            let record = known.iter().find(|known| OsStr::new(&known.place.name) == name);
            let Some(record) = record.filter(|record| record.stamp.identity == object.stamp.identity) else {
                all = false;
                continue;
            };
            let removed = match object.kind {
                ObjectKind::Folder if record.kind == Kind::Folder => {
                    let inner = child(fd, &name)?;
                    self.free_below(inner.as_fd(), record.node, index)?
                        && rustix::fs::unlinkat(fd, &name, AtFlags::REMOVEDIR).is_ok()
                }
                ObjectKind::File | ObjectKind::Symlink => {
                    same_but_renamed(&object.stamp, &record.stamp)
                        && index.is_on_server(record.node)
                        && rustix::fs::unlinkat(fd, &name, AtFlags::empty()).is_ok()
                }
                ObjectKind::Folder | ObjectKind::Special | ObjectKind::MountPoint => false,
            };
            all &= removed;
        }
        Ok(all)
    }
}
