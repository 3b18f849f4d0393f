//! Looks whether a folder holds only what is known, before it goes with all that is in it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use super::child;
use crate::local::disk::{DiskError, ObjectKind};
use crate::local::ignore_rules::Level;
use crate::local::list::{Entry, list};
use crate::local::model::{LocalIndex, LocalRecord};
use crate::local::rel::Rel;
use crate::local::root::Root;
use crate::planner::model::NodeId;

/// Folders on one path that are looked at below a folder that is to go.
const DEPTH_MAX: usize = 4_096;

/// Looks whether a folder holds only what is known.
pub(super) struct FolderCheck<'a> {
    pub(super) root: &'a Root,
    pub(super) index: &'a dyn LocalIndex,
}

impl FolderCheck<'_> {
    /// `rel` is where the folder was in the root, which the ignore rules go by.
    pub(super) fn check(
        &self,
        fd: &OwnedFd,
        rel: &Rel,
        node: NodeId,
        level: &Level,
        depth: usize,
    ) -> Result<(), DiskError> {
        if depth > DEPTH_MAX {
            return Err(DiskError::Changed(rel.clone()));
        }
        let listed = list(fd.as_fd(), self.root.device()).map_err(|errno| DiskError::of(rel, errno))?;
        let known = self.index.children_sent(node);
        let known: HashMap<&str, &(LocalRecord, bool)> =
            known.iter().map(|known| (known.0.place.name.as_str(), known)).collect();
        for Entry { name, object } in listed {
            let changed = || {
                let shown = name.to_str().and_then(|name| rel.join(name).ok());
                DiskError::Changed(shown.unwrap_or_else(|| rel.clone()))
            };
            let Some(text) = name.to_str() else { return Err(changed()) };
            let below = rel.join(text).map_err(|_no_path| changed())?;
            let is_folder = object.kind == ObjectKind::Folder;
            let Some((known, sent)) = known.get(text) else {
                if level.is_ignored(text, is_folder) && object.kind != ObjectKind::MountPoint {
                    continue;
                }
                return Err(changed());
            };
            if !sent {
                // A scan saw it since its deletion was planned: the server has never had it.
                return Err(changed());
            }
            if is_folder && known.stamp.identity == object.stamp.identity {
                let fd = child(fd.as_fd(), &name).map_err(|errno| DiskError::of(&below, errno))?;
                let level = level.enter(fd.as_fd(), text);
                self.check(&fd, &below, known.node, &level, depth + 1)?;
            } else if known.stamp != object.stamp {
                return Err(changed());
            }
        }
        Ok(())
    }
}
