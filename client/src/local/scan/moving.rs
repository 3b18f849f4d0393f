//! Whether a folder that was found is one that was known elsewhere.

use std::collections::HashSet;
use std::os::fd::AsFd;

use super::folders::{Pending, Walk};
use crate::local::list::list;
use crate::local::model::LocalRecord;
use crate::local::rel::Rel;
use crate::planner::model::{Kind, ROOT};

/// Folders on one path, above which an index is taken to be wrong.
const DEPTH_MAX: usize = 10_000;

impl Walk<'_> {
    /// The node that a folder was, if it was one elsewhere and is not there any more.
    pub(super) fn mover(&mut self, folder: &Pending) -> Option<LocalRecord> {
        if !self.root.keeps_inodes() {
            return None;
        }
        let identity = folder.object.stamp.identity;
        let record = self.index.by_identity(identity)?;
        if record.kind != Kind::Folder || record.node == ROOT || self.visited.contains(&record.node) {
            return None;
        }
        // A folder has one place.
        let is_it = identity.born_ns != 0;
        if self.claimed.contains(&record.node) || !self.is_gone_from_its_place(&record, is_it) {
            return None;
        }
        (is_it || self.holds_the_same(folder, &record)).then_some(record)
    }

    /// Whether something in a folder was in that node already: without a time of birth, the inode number alone does not
    /// tell that it is the same folder.
    fn holds_the_same(&self, folder: &Pending, record: &LocalRecord) -> bool {
        let known: HashSet<_> =
            self.index.children(record.node).into_iter().map(|child| child.stamp.identity).collect();
        if known.is_empty() {
            return record.stamp.mtime_ns == folder.object.stamp.mtime_ns;
        }
        let Ok(fd) = self.root.open_folder(&folder.rel) else { return false };
        list(fd.as_fd(), &self.root.home())
            .is_ok_and(|entries| entries.iter().any(|entry| known.contains(&entry.object.stamp.identity)))
    }

    /// Whether the object that a node was is not at the node's place any more. `elsewhere`: it was seen at another
    /// place, and has only one. That decides if its own place cannot be looked at.
    pub(super) fn is_gone_from_its_place(&mut self, record: &LocalRecord, elsewhere: bool) -> bool {
        if self.vanished.contains_key(&record.node) || self.displaced.contains(&record.node) {
            return true;
        }
        let Some(rel) = self.path_of(record) else { return true };
        match self.root.stat(&rel) {
            Ok(there) => there.is_none_or(|there| there.stamp.identity != record.stamp.identity),
            Err(error) => {
                tracing::debug!(%error, elsewhere, "a place cannot be looked at");
                self.unsettled |= !elsewhere;
                elsewhere
            }
        }
    }

    /// Where a node would be if it were where it was known to be in its folder; its folder may have been moved.
    pub(super) fn path_of(&self, record: &LocalRecord) -> Option<Rel> {
        let mut names = vec![record.place.name.clone()];
        let mut at = record.place.parent;
        for _ in 0..DEPTH_MAX {
            if at == ROOT {
                return Rel::from_names(names.iter().rev().map(String::as_str)).ok();
            }
            let place = match self.moved.get(&at) {
                Some(place) => place.clone(),
                None => self.index.node(at)?.place,
            };
            names.push(place.name);
            at = place.parent;
        }
        None
    }
}
