//! The trash: deleting, taking back, and removing for good.
//!
//! Invariants:
//! - A trashed entry takes what is below it along without touching those rows.
//! - Once a purge has begun its item cannot be restored, and it ends with nothing left: leaves go first, so a purge
//!   that stops halfway leaves a smaller tree, never rows that nothing leads to.
//! - A step does a bounded amount of work: entries and versions that it removes are counted together.

use std::collections::VecDeque;

use engine::ids::{EntryId, NamespaceId};

use super::keys;
use super::names;
use super::rows::PlaceRow;
use super::tree::{Change, Target};
use super::txn::{Group, invalid, not_found};
use crate::kv::KeyRange;
use crate::model::QUERY_ITEMS_MAX;
use crate::model::command::StepError;
use crate::model::outcome::{Release, StepOutcome};
use crate::model::row::{EntryKind, EntryRow, NamespaceRow, TrashRow, VersionRow};

/// Children of a folder that a purge reads at once.
const PURGE_PAGE_ROWS: usize = 256;

/// A purge's progress within one step.
struct Purge {
    /// Rows that may still be removed.
    left: usize,
    entries: u64,
    bytes: u64,
    releases: Vec<Release>,
}

/// A folder whose children are being removed, with those that were read and are still there.
struct Open {
    folder: EntryRow,
    children: VecDeque<EntryRow>,
}

impl Group<'_, '_> {
    pub(super) fn entry_delete(
        &mut self,
        namespace: NamespaceId,
        entry: EntryId,
        at: Target<'_>,
        recursive: bool,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        let deleted = self.live_entry_at(namespace, entry, at)?;
        let filled = || self.first_key(&keys::children(namespace, entry)).is_some();
        if deleted.kind == EntryKind::Folder && !recursive && filled() {
            return Err(StepError::NotEmpty);
        }
        let trash = self.trash_put(namespace, &mut row, deleted)?;
        self.put_namespace(namespace, &row);
        Ok(StepOutcome::Trashed { trash })
    }

    /// Moves an entry of the tree to the trash; gives its number there.
    pub(super) fn trash_put(
        &mut self,
        namespace: NamespaceId,
        row: &mut NamespaceRow,
        mut entry: EntryRow,
    ) -> Result<u64, StepError> {
        let trash = row.next_trash;
        row.next_trash += 1;
        self.take_entry(namespace, &entry);
        self.journal(namespace, row, &mut entry, Change::Deleted)?;
        self.put(&keys::place(namespace, entry.entry), &PlaceRow::Trashed(trash));
        let item = TrashRow { trash, entry, deleted_ms: self.time_ms, purging: false };
        self.put(&keys::trash(namespace, trash), &item);
        Ok(trash)
    }

    pub(super) fn trash_restore(
        &mut self,
        namespace: NamespaceId,
        trash: u64,
        to: Target<'_>,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        names::check(to.name)?;
        let key = keys::trash(namespace, trash);
        let item: TrashRow = self.get(&key)?.ok_or_else(|| not_found("trash item"))?;
        if item.purging {
            return Err(not_found("trash item"));
        }
        let mut restored = item.entry;
        let depth = self.live_folder(namespace, to.parent, None)?;
        Self::check_depth(&restored.kind, depth)?;
        self.make_room(namespace, &mut row, to, false)?;
        restored.parent = to.parent;
        to.name.clone_into(&mut restored.name);
        self.delete(&key);
        self.journal(namespace, &mut row, &mut restored, Change::Arrived)?;
        self.put_entry(namespace, &restored);
        self.put_namespace(namespace, &row);
        Ok(StepOutcome::Entry(restored))
    }

    pub(super) fn trash_purge(
        &mut self,
        namespace: NamespaceId,
        trash: u64,
        entries_max: u32,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        let key = keys::trash(namespace, trash);
        let mut item: TrashRow = self.get(&key)?.ok_or_else(|| not_found("trash item"))?;
        if entries_max == 0 || entries_max > QUERY_ITEMS_MAX {
            return Err(invalid(format!("a purge removes 1 to {QUERY_ITEMS_MAX} entries at once")));
        }
        let left = usize::try_from(entries_max).unwrap_or(usize::MAX);
        let mut purge = Purge { left, entries: 0, bytes: 0, releases: Vec::new() };
        // The item itself has no row in a folder any more: something else may be at its old place.
        let done = self.purge_below(namespace, &mut row, &item.entry, &mut purge)?
            && self.purge_entry(namespace, &mut row, &item.entry, &mut purge)?;
        if done {
            self.delete(&key);
        } else {
            item.purging = true;
            self.put(&key, &item);
        }
        self.put_namespace(namespace, &row);
        let Purge { entries, bytes, releases, .. } = purge;
        Ok(StepOutcome::Purged { done, entries, bytes, releases })
    }

    /// Removes what is below a trashed entry, leaves first; tells whether nothing is left.
    fn purge_below(
        &mut self,
        namespace: NamespaceId,
        row: &mut NamespaceRow,
        top: &EntryRow,
        purge: &mut Purge,
    ) -> Result<bool, StepError> {
        if top.kind != EntryKind::Folder {
            return Ok(true);
        }
        let mut path = vec![self.purge_open(namespace, top.clone(), None)?];
        while let Some(open) = path.last_mut() {
            if purge.left == 0 {
                return Ok(false);
            }
            if let Some(child) = open.children.pop_front() {
                if open.children.is_empty() {
                    let folder = open.folder.clone();
                    *open = self.purge_open(namespace, folder, Some(&child.name))?;
                }
                if child.kind == EntryKind::Folder {
                    path.push(self.purge_open(namespace, child, None)?);
                } else if self.purge_entry(namespace, row, &child, purge)? {
                    self.take_entry(namespace, &child);
                } else {
                    return Ok(false);
                }
                continue;
            }
            let Some(emptied) = path.pop() else { break };
            if path.is_empty() {
                return Ok(true);
            }
            if !self.purge_entry(namespace, row, &emptied.folder, purge)? {
                return Ok(false);
            }
            self.take_entry(namespace, &emptied.folder);
        }
        Ok(true)
    }

    fn purge_open(
        &self,
        namespace: NamespaceId,
        folder: EntryRow,
        after: Option<&str>,
    ) -> Result<Open, StepError> {
        let prefix = keys::children(namespace, folder.entry);
        let range = match after {
            Some(name) => KeyRange::prefix_after(&prefix, &keys::entry(namespace, folder.entry, name)),
            None => KeyRange::prefix(&prefix),
        };
        let children = self.scan_range(&range, PURGE_PAGE_ROWS)?.into();
        Ok(Open { folder, children })
    }

    /// Removes an entry without children but for its row in a folder, oldest versions first; tells whether it is
    /// gone.
    fn purge_entry(
        &mut self,
        namespace: NamespaceId,
        row: &mut NamespaceRow,
        entry: &EntryRow,
        purge: &mut Purge,
    ) -> Result<bool, StepError> {
        let versions: Vec<VersionRow> = self.scan(&keys::versions(namespace, entry.entry), purge.left)?;
        for version in &versions {
            purge.releases.extend(self.version_remove(namespace, row, entry.entry, version)?);
            purge.bytes += version.size;
        }
        purge.left -= versions.len();
        if purge.left == 0 {
            return Ok(false);
        }
        purge.left -= 1;
        purge.entries += 1;
        row.discharge_entry(&entry.kind);
        if let EntryKind::File(state) = entry.kind {
            self.sums.bytes_logical = self.sums.bytes_logical.saturating_sub(state.size);
        }
        self.delete(&keys::place(namespace, entry.entry));
        self.journal_gone(namespace, entry)?;
        Ok(true)
    }
}
