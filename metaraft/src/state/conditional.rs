//! Changes by those who follow the tree: each says what its caller has seen, and changes nothing if that is no longer
//! so.
//!
//! Invariants:
//! - What is deleted with all below it has nothing in it, or at it, that changed after the number that the caller had
//!   seen. If too much has changed to tell within a bound, it counts as changed.
//! - All deletions of one command, and all walks up to the root folder, together read a bounded number of rows: what one
//!   has read of the journal, or of a way up, is not read again by the next, and beyond [`SEEN_COMMAND_ROWS_MAX`] all
//!   counts as changed.

use std::collections::BTreeMap;

use engine::ids::{EntryId, NamespaceId, VersionId};

use super::keys;
use super::rows::{JournalRow, PlaceRow};
use super::tree::{Attributes, Change, Target};
use super::txn::{Group, decode_row};
use crate::kv::KeyRange;
use crate::model::command::StepError;
use crate::model::outcome::StepOutcome;
use crate::model::row::{EntryKind, EntryRow, ROOT_ENTRY};
use crate::model::{SEEN_COMMAND_ROWS_MAX, SEEN_ROWS_MAX};

use super::entries::check_kind;
use super::tree::WALK_MAX;

/// What the caller of a deletion has seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub version: Option<VersionId>,
    pub recursive: bool,
    pub unchanged_since: u64,
}

/// What the conditional deletions of one command have read so far, and how much its walks have with them.
#[derive(Debug, Default)]
pub(super) struct SeenRows {
    /// How many rows.
    count: usize,
    /// The journal that was read last.
    journal: Option<SeenJournal>,
}

/// What one journal tells since a number.
#[derive(Debug)]
struct SeenJournal {
    namespace: NamespaceId,
    since: u64,
    /// Up to which number it was read.
    through: u64,
    rows: usize,
    /// Entries that changed and were not deleted, as the rows said when they were read. Some may be gone by now.
    live: Vec<EntryId>,
}

impl SeenRows {
    /// Forgets what was read, though not how much: some of it was taken back.
    pub(super) fn forget(&mut self) {
        self.journal = None;
    }

    /// Counts rows that a walk is about to read; refuses them if that is too much for one command.
    pub(super) fn count_walked(&mut self, rows: usize) -> Result<(), StepError> {
        if self.left() < rows {
            return Err(changed("too much to tell where the entry is"));
        }
        self.count += rows;
        Ok(())
    }

    fn left(&self) -> usize {
        SEEN_COMMAND_ROWS_MAX.saturating_sub(self.count)
    }
}

fn too_much() -> StepError {
    changed("too much to tell what is below the folder")
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
        &mut self,
        namespace: NamespaceId,
        folder: EntryId,
        unchanged_since: u64,
    ) -> Result<(), StepError> {
        let journal = self.changed_since(namespace, unchanged_since)?;
        let mut known = BTreeMap::from([(folder, true), (ROOT_ENTRY, false)]);
        for entry in &journal.live {
            if self.is_below(namespace, *entry, &mut known)? {
                return Err(changed("something in the folder"));
            }
        }
        self.seen.journal = Some(journal);
        Ok(())
    }

    /// What has changed after a number: what the command has read of it before, and what has come since.
    fn changed_since(&mut self, namespace: NamespaceId, since: u64) -> Result<SeenJournal, StepError> {
        let known = self.seen.journal.take();
        let mut journal = known
            .filter(|journal| journal.namespace == namespace && journal.since == since)
            .unwrap_or(SeenJournal { namespace, since, through: since, rows: 0, live: Vec::new() });
        let after = keys::journal(namespace, journal.through);
        let range = KeyRange::prefix_after(&keys::journal_all(namespace), &after);
        let rows_max = SEEN_ROWS_MAX.saturating_sub(journal.rows).min(self.seen.left());
        let rows = self.scan_keys(&range, rows_max + 1);
        self.seen.count += rows.len();
        if rows.len() > rows_max {
            return Err(too_much());
        }
        for (key, bytes) in &rows {
            let latest: JournalRow = decode_row(key, bytes)?;
            journal.through = keys::journal_sequence(key).unwrap_or(journal.through);
            journal.rows += 1;
            if !latest.deleted {
                journal.live.push(latest.entry);
            }
        }
        Ok(journal)
    }

    /// Whether walking up from an entry meets what is known to be in the folder before what is known not to be.
    fn is_below(
        &mut self,
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
            if self.seen.left() == 0 {
                return Err(too_much());
            }
            self.seen.count += 1;
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
        row.recharge_entry(&link.kind, &kind)?;
        link.kind = kind;
        link.mode = attributes.permissions();
        link.mtime_ns = attributes.mtime_ns;
        self.journal(namespace, &mut row, &mut link, Change::Changed)?;
        self.put_entry(namespace, &link);
        self.put_namespace(namespace, &row);
        Ok(StepOutcome::Entry(link))
    }
}
