//! Known things that were given a name that cannot be sent. They are skipped, and stay as they were known until they have
//! a good name: nothing of them is gone, and nothing else is taken in at their places.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;

use super::Why;
use super::folders::{Walk, is_kind};
use crate::local::disk::{Object, ObjectKind};
use crate::local::list::Entry;
use crate::local::model::{LocalRecord, LocalUpdate};
use crate::local::rel::{NAME_BYTES_MAX, PATH_BYTES_MAX, Rel};
use crate::planner::model::{NodeId, ROOT};

/// What one scan found to be held.
#[derive(Debug, Default)]
pub(super) struct Holding {
    nodes: HashSet<NodeId>,
    /// The folders that it is in now.
    folders: BTreeSet<Rel>,
}

impl Walk<'_> {
    /// Names what cannot be sent in a listed folder, and holds what is known of it.
    pub(super) fn name_unsendable(&mut self, folder: &Rel, entries: &[Entry]) {
        for entry in entries {
            let Some(why) = unsendable(folder, &entry.name) else { continue };
            let why = if self.hold(folder, &entry.object) { Why::Held(why.to_string()) } else { why };
            let name = entry.name.display();
            let path = if folder.is_root() { name.to_string() } else { format!("{folder}/{name}") };
            self.skip(path, why);
        }
    }

    /// Whether something in a folder is at the place of what is held: that is said of it, and it is held itself if it was
    /// known elsewhere.
    pub(super) fn is_instead_of_held(
        &mut self,
        known: Option<&LocalRecord>,
        object: &Object,
        rel: &Rel,
    ) -> bool {
        let is_instead = known.is_some_and(|known| {
            self.holding.nodes.contains(&known.node) && known.stamp.identity != object.stamp.identity
        });
        if is_instead {
            self.hold(&rel.parent().unwrap_or_default(), object);
            self.skip(rel.to_string(), Why::InsteadOfHeld);
        }
        is_instead
    }

    /// Holds the nodes that an object was, if they are not at their places any more. Says whether there are any.
    fn hold(&mut self, folder: &Rel, object: &Object) -> bool {
        if !self.root.keeps_inodes() {
            return false;
        }
        let was = self.index.by_identity_all(object.stamp.identity);
        let held: Vec<NodeId> =
            was.iter().filter(|record| self.is_held_by(record, object)).map(|record| record.node).collect();
        if held.is_empty() {
            return false;
        }
        for node in held {
            self.claimed.insert(node);
            self.vanished.remove(&node);
            self.holding.nodes.insert(node);
        }
        self.holding.folders.insert(folder.clone());
        true
    }

    fn is_held_by(&self, record: &LocalRecord, object: &Object) -> bool {
        let is_folder = object.kind == ObjectKind::Folder;
        let is_alike =
            record.stamp.size == object.stamp.size && record.stamp.mtime_ns == object.stamp.mtime_ns;
        // Without a time of birth, a folder's number has to do: better a delete that waits than a wrong one.
        let is_it = object.stamp.identity.born_ns != 0 || is_folder || is_alike;
        if !is_it
            || record.node == ROOT
            || !is_kind(record, object.kind)
            || self.claimed.contains(&record.node)
            || self.is_never_sent(record)
        {
            return false;
        }
        let Some(rel) = self.path_of(record) else { return true };
        match self.root.stat(&rel) {
            // A file at a file's place is an edit, and this one is what an editor has kept of it.
            Ok(Some(there)) => {
                let is_other = there.stamp.identity != object.stamp.identity;
                is_other && (is_folder || !is_kind(record, there.kind))
            }
            Ok(None) | Err(_) => true,
        }
    }

    fn is_never_sent(&self, record: &LocalRecord) -> bool {
        self.index.children_unsent(record.place.parent).contains(&record.node)
            && self.is_all_unsent(record.node)
    }

    /// A folder that something held was in does not go: what else was in it goes by itself.
    pub(super) fn spare_held(&mut self) {
        if self.holding.nodes.is_empty() {
            return;
        }
        let around = self.around_held();
        let (mut kept, mut gone, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for update in std::mem::take(&mut self.result.updates) {
            match update {
                LocalUpdate::Put(record) => {
                    seen.insert(record.node);
                    kept.push(LocalUpdate::Put(record));
                }
                LocalUpdate::Gone(node) => gone.push(node),
            }
        }
        while let Some(node) = gone.pop() {
            if self.claimed.contains(&node) || !seen.insert(node) {
                continue;
            }
            if around.contains(&node) {
                gone.extend(self.index.children(node).into_iter().map(|child| child.node));
            } else {
                kept.push(LocalUpdate::Gone(node));
            }
        }
        self.result.updates = kept;
    }

    /// The folders that what is held was in, at any depth.
    fn around_held(&self) -> HashSet<NodeId> {
        let mut around = HashSet::new();
        for node in &self.holding.nodes {
            let mut at = *node;
            while let Some(record) = self.index.node(at)
                && around.insert(record.place.parent)
            {
                at = record.place.parent;
            }
        }
        around
    }

    /// Keeps where something is held, for the next scans.
    pub(super) fn keep_misnamed(&mut self) {
        let folders = std::mem::take(&mut self.holding.folders);
        self.options.misnamed.keep(folders, self.whole && self.result.complete);
    }
}

/// Why a name in a folder cannot be sent, if it cannot.
fn unsendable(folder: &Rel, name: &OsStr) -> Option<Why> {
    let Some(text) = name.to_str() else { return Some(Why::NameNotUtf8) };
    if text.len() <= NAME_BYTES_MAX && folder.as_str().len() + 1 + text.len() <= PATH_BYTES_MAX {
        return None;
    }
    folder.join(text).err().map(|error| Why::Name(error.to_string()))
}
