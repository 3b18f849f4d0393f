//! Changes by those who follow the tree: each says what its caller has seen, and changes nothing if that is no longer
//! so.
//!
//! Invariant: what is deleted with all below it has nothing in it, or at it, that changed after the number that the
//! caller had seen. If too much has changed to tell within a bound, it counts as changed.

use std::collections::BTreeMap;

use engine::ids::{EntryId, NamespaceId, VersionId};

use super::keys;
use super::rows::{JournalRow, PlaceRow};
use super::tree::{Attributes, Change, Target};
use super::txn::{Group, decode_row};
use crate::kv::KeyRange;
use crate::model::SEEN_ROWS_MAX;
use crate::model::command::StepError;
use crate::model::outcome::StepOutcome;
use crate::model::row::{EntryKind, EntryRow, ROOT_ENTRY};

use super::entries::check_kind;
use super::tree::WALK_MAX;

/// What the caller of a deletion has seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub version: Option<VersionId>,
    pub recursive: bool,
    pub unchanged_since: u64,
}

fn changed(what: &str) -> StepError {
    StepError::Changed { what: what.to_owned() }
}

/// Refuses an entry whose current version is another one; folders and symlinks have none.
fn check_version(entry: &EntryRow, version: Option<VersionId>) -> Result<(), StepError> {
    let current = match &entry.kind {
        EntryKind::File(state) => Some(state.version),
        EntryKind::Folder | EntryKind::Symlink(_) => None,
    };
    if current == version { Ok(()) } else { Err(StepError::Conflict { current }) }
}

impl Group<'_, '_> {
    pub(super) fn entry_delete_seen(
        &mut self,
        namespace: NamespaceId,
        entry: EntryId,
        at: Target<'_>,
        seen: Seen,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        let deleted = self.live_entry_at(namespace, entry, at)?;
        check_version(&deleted, seen.version)?;
        match deleted.kind {
            EntryKind::File(_) => {}
            EntryKind::Symlink(_) if deleted.sequence > seen.unchanged_since => {
                return Err(changed("the symlink"));
            }
            EntryKind::Symlink(_) => {}
            EntryKind::Folder if seen.recursive => {
                self.check_unchanged_below(namespace, entry, seen.unchanged_since)?;
            }
            EntryKind::Folder if self.first_key(&keys::children(namespace, entry)).is_some() => {
                return Err(StepError::NotEmpty);
            }
            EntryKind::Folder => {}
        }
        let trash = self.trash_put(namespace, &mut row, deleted.clone())?;
        self.put_namespace(namespace, &row);
        Ok(StepOutcome::TrashedEntry { trash, entry: deleted })
    }

    /// Refuses if anything at or below a folder that is in the tree has changed after a number. What was deleted
    /// there since does not count: it is in the trash, as it was.
    fn check_unchanged_below(
        &self,
        namespace: NamespaceId,
        folder: EntryId,
        unchanged_since: u64,
    ) -> Result<(), StepError> {
        let after = keys::journal(namespace, unchanged_since);
        let range = KeyRange::prefix_after(&keys::journal_all(namespace), &after);
        let rows = self.scan_keys(&range, SEEN_ROWS_MAX + 1);
        if rows.len() > SEEN_ROWS_MAX {
            return Err(changed("too much to tell what is below the folder"));
        }
        let mut known = BTreeMap::from([(folder, true), (ROOT_ENTRY, false)]);
        for (key, bytes) in &rows {
            let latest: JournalRow = decode_row(key, bytes)?;
            if !latest.deleted && self.is_below(namespace, latest.entry, &mut known)? {
                return Err(changed("something in the folder"));
            }
        }
        Ok(())
    }

    /// Whether walking up from an entry meets what is known to be in the folder before what is known not to be.
    fn is_below(
        &self,
        namespace: NamespaceId,
        entry: EntryId,
        known: &mut BTreeMap<EntryId, bool>,
    ) -> Result<bool, StepError> {
        let mut path = Vec::new();
        let mut at = entry;
        let mut below = None;
        for _ in 0..=WALK_MAX {
            below = known.get(&at).copied();
            if below.is_some() {
                break;
            }
            path.push(at);
            match self.get(&keys::place(namespace, at))? {
                Some(PlaceRow::In(parent, _)) => at = parent,
                Some(PlaceRow::Trashed(_)) | None => {
                    below = Some(false);
                    break;
                }
            }
        }
        // Deeper than any walk goes: not known to be elsewhere.
        let below = below.unwrap_or(true);
        known.extend(path.into_iter().map(|entry| (entry, below)));
        Ok(below)
    }

    pub(super) fn entry_set_attributes_seen(
        &mut self,
        namespace: NamespaceId,
        entry: EntryId,
        version: VersionId,
        attributes: Attributes,
    ) -> Result<StepOutcome, StepError> {
        self.namespace(namespace)?;
        check_version(&self.live_entry(namespace, entry)?, Some(version))?;
        self.entry_set_attributes(namespace, entry, attributes)
    }

    pub(super) fn symlink_retarget(
        &mut self,
        namespace: NamespaceId,
        entry: EntryId,
        before: &[u8],
        target: &[u8],
        attributes: Attributes,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        let kind = EntryKind::Symlink(target.to_vec());
        check_kind(&kind)?;
        let mut link = self.live_entry(namespace, entry)?;
        match &link.kind {
            EntryKind::Symlink(now) if now == before => {}
            EntryKind::Symlink(_) => return Err(changed("where the symlink points")),
            other => return Err(StepError::WrongKind { is: other.word().to_owned() }),
        }
        link.kind = kind;
        link.mode = attributes.permissions();
        link.mtime_ns = attributes.mtime_ns;
        self.journal(namespace, &mut row, &mut link, Change::Changed)?;
        self.put_entry(namespace, &link);
        self.put_namespace(namespace, &row);
        Ok(StepOutcome::Entry(link))
    }
}
