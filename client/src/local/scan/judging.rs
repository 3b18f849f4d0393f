//! What of a listed folder is taken in, by the rules. What is in sync stays so, whatever it is called by now.

use super::Why;
use super::folders::{Walk, is_kind};
use crate::local::disk::{Object, ObjectKind};
use crate::local::ignore_rules::{IGNORE_FILE, Level};
use crate::local::model::LocalRecord;
use crate::local::rel::Rel;
use crate::planner::model::{Kind, NodeId, ROOT};

impl Walk<'_> {
    /// Names a folder's rules if they are not known.
    pub(super) fn tell_unknown_rules(&mut self, rel: &Rel, level: &Level) {
        if let Some(why) = level.unknown_here() {
            let path =
                rel.join(IGNORE_FILE).map_or_else(|_too_long| rel.to_string(), |path| path.to_string());
            self.skip(path, Why::Rules(why.to_owned()));
        }
    }

    /// What to make of something in a folder: `None` if it is ignored; else what was known there, and whether it counts
    /// only if it was in sync elsewhere. `is_held`: whether the rules keep what is new there from being sent.
    pub(super) fn judge(
        &mut self,
        known: Option<LocalRecord>,
        is_unsent: bool,
        object: &Object,
        is_held: impl FnOnce() -> bool,
    ) -> Option<(Option<LocalRecord>, bool)> {
        let Some(record) = known else {
            if !is_held() {
                return Some((None, false));
            }
            return self.is_moved_here(object).then_some((None, true));
        };
        // It was found before these rules were there, and is still here only.
        if is_unsent && is_held() && self.is_all_unsent(record.node) {
            self.dropped.push(record.node);
            return None;
        }
        Some((Some(record), false))
    }

    /// Whether a node was never sent, with all that is below it.
    pub(super) fn is_all_unsent(&self, folder: NodeId) -> bool {
        let mut left = vec![folder];
        while let Some(node) = left.pop() {
            let unsent = self.index.children_unsent(node);
            let children = self.index.children(node);
            if children.iter().any(|child| !unsent.contains(&child.node)) {
                return false;
            }
            left.extend(
                children.into_iter().filter(|child| child.kind == Kind::Folder).map(|child| child.node),
            );
        }
        true
    }

    /// Whether something was in sync at another place, where nothing is any more: then it stays in sync under the name
    /// that it has now. (Where something is, an editor has renamed the file to keep what it was.)
    fn is_moved_here(&self, object: &Object) -> bool {
        let was = self.index.by_identity_all(object.stamp.identity);
        self.root.keeps_inodes() && was.iter().any(|record| self.is_moved_from(record, object))
    }

    fn is_moved_from(&self, record: &LocalRecord, object: &Object) -> bool {
        let is_alike =
            record.stamp.size == object.stamp.size && record.stamp.mtime_ns == object.stamp.mtime_ns;
        let is_it = object.stamp.identity.born_ns != 0 || (is_alike && object.kind != ObjectKind::Folder);
        if !is_it
            || record.node == ROOT
            || !is_kind(record, object.kind)
            || self.claimed.contains(&record.node)
        {
            return false;
        }
        if self.index.children_unsent(record.place.parent).contains(&record.node) {
            return false;
        }
        self.path_of(record).is_none_or(|rel| matches!(self.root.stat(&rel), Ok(None)))
    }
}
