//! The tree of a namespace: where entries are, who is above them, and the journal of what changed.
//!
//! Invariants:
//! - An entry that is not in the trash has one row, at its folder and name, and a place row that says so; an entry
//!   in the trash has a trash row, and a place row with its number.
//! - Walking up from an entry that is in the tree ends at the root folder: there are no cycles.
//! - What is below a trashed folder keeps its rows, and is out of the tree: nothing is changed or put there.
//! - Every entry but a fresh root folder has exactly one journal row, at its row's `sequence`; one that is gone
//!   keeps it, marked as deleted, until it is pruned (`journal`). Applying all rows after any number up to which
//!   nothing was pruned, in order, with each entry as it is now, leads from the tree at that number to the tree of now.

use engine::ids::{AccountId, EntryId, NamespaceId, VersionId};

use super::keys;
use super::rows::{JournalRow, PlaceRow};
use super::txn::{Group, invalid, not_found};
use crate::model::DEPTH_MAX;
use crate::model::command::StepError;
use crate::model::outcome::StepOutcome;
use crate::model::row::{EntryKind, EntryRow, NamespaceRow, OpenUploads, ROOT_ENTRY};

/// The permission bits that are kept.
const MODE_MASK: u32 = 0o7777;

/// The permission bits of a fresh root folder.
const ROOT_MODE: u32 = 0o755;

/// How far up a walk goes. A folder that was moved with all below it may end up deeper than [`DEPTH_MAX`]; what is
/// below it can still be reached, and moved away, from within this bound.
pub(super) const WALK_MAX: u32 = 16 * DEPTH_MAX;

/// What a walk reads of each folder that it asks when it came back: its place, its row, and that of the journal.
const ARRIVED_STEP_ROWS: usize = 3;

/// Where the root folder's row lies: in an entry that does not exist, under no name.
const ABOVE_ROOT: EntryId = EntryId(0);

/// A place in a folder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// The folder.
    pub parent: EntryId,
    /// The name there.
    pub name: &'a str,
}

/// What an entry has besides its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    /// Permission bits; others are dropped.
    pub mode: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
}

impl Attributes {
    /// The bits that are kept.
    pub(super) fn permissions(self) -> u32 {
        self.mode & MODE_MASK
    }
}

/// What a change means to those who follow the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is new, elsewhere or otherwise.
    Changed,
    /// It is gone, with all below it.
    Deleted,
    /// It is back, with all below it.
    Arrived,
    /// It is elsewhere; with all below it, it last came back at this number, by itself or in a folder it was in.
    Moved(u64),
}

impl NamespaceRow {
    /// The next entry's id.
    pub(super) fn take_entry_id(&mut self) -> EntryId {
        let entry = self.next_entry;
        self.next_entry = EntryId(entry.0 + 1);
        entry
    }
}

impl Group<'_, '_> {
    pub(super) fn namespace_create(
        &mut self,
        namespace: NamespaceId,
        owner: AccountId,
        quota_bytes: u64,
    ) -> Result<StepOutcome, StepError> {
        self.own(namespace.slot())?;
        if let Some(existing) = self.get::<NamespaceRow>(&keys::namespace(namespace))? {
            let kind = || "namespace".to_owned();
            let equal = existing.owner == owner;
            return if equal {
                Ok(StepOutcome::Done)
            } else {
                Err(StepError::AlreadyExists { kind: kind() })
            };
        }
        let row = NamespaceRow {
            owner,
            quota_bytes,
            used_bytes: 0,
            sequence: 0,
            next_entry: EntryId(ROOT_ENTRY.0 + 1),
            next_version: VersionId(1),
            next_trash: 1,
            next_generation: 1,
            row_bytes: 0,
            open: OpenUploads::default(),
        };
        let root = EntryRow {
            entry: ROOT_ENTRY,
            parent: ROOT_ENTRY,
            name: String::new(),
            kind: EntryKind::Folder,
            mode: ROOT_MODE,
            mtime_ns: i64::try_from(self.wall_ms.saturating_mul(1_000_000)).unwrap_or(i64::MAX),
            created_ms: self.wall_ms,
            changed_ms: self.wall_ms,
            sequence: 0,
        };
        self.put_namespace(namespace, &row);
        self.put_entry(namespace, &root);
        Ok(StepOutcome::Done)
    }

    pub(super) fn namespace_quota_set(
        &mut self,
        namespace: NamespaceId,
        quota_bytes: u64,
    ) -> Result<StepOutcome, StepError> {
        let row = self.namespace(namespace)?;
        self.put_namespace(namespace, &NamespaceRow { quota_bytes, ..row });
        Ok(StepOutcome::Done)
    }

    /// Writes an entry at its row's place. What was at another place before is taken away by the caller.
    pub(super) fn put_entry(&mut self, namespace: NamespaceId, row: &EntryRow) {
        let parent = if row.entry == ROOT_ENTRY { ABOVE_ROOT } else { row.parent };
        self.put(&keys::entry(namespace, parent, &row.name), row);
        self.put(&keys::place(namespace, row.entry), &PlaceRow::In(parent, row.name.clone()));
    }

    /// Takes an entry away from its place in the tree; its place row is to be written or deleted by the caller.
    pub(super) fn take_entry(&mut self, namespace: NamespaceId, row: &EntryRow) {
        self.walks.leave(namespace, row.entry);
        self.delete(&keys::entry(namespace, row.parent, &row.name));
    }

    /// What is under a name, in the tree or not.
    pub(super) fn entry_at(
        &self,
        namespace: NamespaceId,
        at: Target<'_>,
    ) -> Result<Option<EntryRow>, StepError> {
        self.get(&keys::entry(namespace, at.parent, at.name))
    }

    /// An entry that is in the tree.
    pub(super) fn live_entry(
        &mut self,
        namespace: NamespaceId,
        entry: EntryId,
    ) -> Result<EntryRow, StepError> {
        let row = self.placed_entry(namespace, entry)?;
        if entry != ROOT_ENTRY {
            self.depth_of(namespace, row.parent, None, WALK_MAX)?;
        }
        Ok(row)
    }

    /// An entry that has a row in a folder, whether that is in the tree or not.
    fn placed_entry(&self, namespace: NamespaceId, entry: EntryId) -> Result<EntryRow, StepError> {
        let Some(PlaceRow::In(parent, name)) = self.get(&keys::place(namespace, entry))? else {
            return Err(not_found("entry"));
        };
        self.get(&keys::entry(namespace, parent, &name))?.ok_or_else(|| not_found("entry"))
    }

    /// An entry that is in the tree, at this very place.
    pub(super) fn live_entry_at(
        &mut self,
        namespace: NamespaceId,
        entry: EntryId,
        at: Target<'_>,
    ) -> Result<EntryRow, StepError> {
        if entry == ROOT_ENTRY {
            return Err(invalid("the root folder stays where it is"));
        }
        let row = self.live_entry(namespace, entry)?;
        if row.parent != at.parent || row.name != at.name {
            return Err(StepError::Changed { what: "where the entry is".to_owned() });
        }
        Ok(row)
    }

    /// A folder in the tree that takes entries; with how many folders are above it. `moved` must not be among them.
    pub(super) fn live_folder(
        &mut self,
        namespace: NamespaceId,
        folder: EntryId,
        moved: Option<EntryId>,
    ) -> Result<u32, StepError> {
        self.live_folder_within(namespace, folder, moved, DEPTH_MAX)
    }

    /// The same, with another bound on how deep it may be.
    pub(super) fn live_folder_within(
        &mut self,
        namespace: NamespaceId,
        folder: EntryId,
        moved: Option<EntryId>,
        depth_max: u32,
    ) -> Result<u32, StepError> {
        let depth = self.depth_of(namespace, folder, moved, depth_max)?;
        let Some(PlaceRow::In(parent, name)) = self.get(&keys::place(namespace, folder))? else {
            return Err(not_found("folder"));
        };
        let row: EntryRow =
            self.get(&keys::entry(namespace, parent, &name))?.ok_or_else(|| not_found("folder"))?;
        if row.kind != EntryKind::Folder {
            return Err(StepError::WrongKind { is: row.kind.word().to_owned() });
        }
        Ok(depth)
    }

    /// How many folders a folder is below the root folder, if there are not more than `depth_max`. What is known of the
    /// way up is not read again.
    fn depth_of(
        &mut self,
        namespace: NamespaceId,
        folder: EntryId,
        moved: Option<EntryId>,
        depth_max: u32,
    ) -> Result<u32, StepError> {
        let (mut at, mut way, mut found) = (folder, Vec::new(), None);
        for steps in 0..=depth_max {
            if moved == Some(at) {
                return Err(StepError::Cycle);
            }
            found = self.walks.depth(namespace, at).map(|depth| (depth, depth_max - steps));
            if found.is_some() {
                break;
            }
            self.seen.count_walked(1)?;
            match self.get(&keys::place(namespace, at))? {
                Some(PlaceRow::In(parent, _)) => {
                    way.push((at, parent));
                    at = parent;
                }
                Some(PlaceRow::Trashed(_)) | None => return Err(not_found("folder")),
            }
        }
        let Some((depth, steps_left)) = found else { return Err(StepError::TooDeep { max: DEPTH_MAX }) };
        let depth = self.walks.learn(namespace, depth, &way);
        if moved.is_some_and(|moved| self.walks.meets(namespace, at, moved, steps_left)) {
            return Err(StepError::Cycle);
        }
        if depth > depth_max {
            return Err(StepError::TooDeep { max: DEPTH_MAX });
        }
        Ok(depth)
    }

    /// Refuses a folder where it would be deeper than folders may be.
    pub(super) fn check_depth(kind: &EntryKind, parent_depth: u32) -> Result<(), StepError> {
        if *kind == EntryKind::Folder && parent_depth >= DEPTH_MAX {
            return Err(StepError::TooDeep { max: DEPTH_MAX });
        }
        Ok(())
    }

    /// When, by sequence, a folder or any above it last came back from the trash. Who moves out of it takes that
    /// along: once the folder is deleted again its own row tells nothing of what came back in it.
    /// The folder is in the tree, and a walk has been there.
    pub(super) fn arrived_with(&mut self, namespace: NamespaceId, folder: EntryId) -> Result<u64, StepError> {
        let (mut at, mut way) = (folder, Vec::new());
        let mut arrived = loop {
            if let Some(known) = self.walks.arrived(namespace, at) {
                break known;
            }
            self.seen.count_walked(ARRIVED_STEP_ROWS)?;
            let above = self.placed_entry(namespace, at)?;
            let latest = self.get::<JournalRow>(&keys::journal(namespace, above.sequence))?;
            way.push((at, latest.map_or(0, |latest| latest.arrived)));
            at = above.parent;
        };
        for (entry, latest) in way.into_iter().rev() {
            arrived = arrived.max(latest);
            self.walks.learn_arrived(namespace, entry, arrived);
        }
        Ok(arrived)
    }

    /// Gives a change its number in the journal: the entry's earlier row goes.
    pub(super) fn journal(
        &mut self,
        namespace: NamespaceId,
        row: &mut NamespaceRow,
        entry: &mut EntryRow,
        change: Change,
    ) -> Result<(), StepError> {
        row.sequence += 1;
        self.note_run(namespace, row.sequence)?;
        let before = keys::journal(namespace, entry.sequence);
        let latest = self.get::<JournalRow>(&before)?.map_or(0, |latest| latest.arrived);
        let arrived = match change {
            Change::Arrived => row.sequence,
            Change::Moved(arrived) => arrived.max(latest),
            Change::Changed | Change::Deleted => latest,
        };
        self.delete(&before);
        let deleted = change == Change::Deleted;
        entry.sequence = row.sequence;
        entry.changed_ms = self.wall_ms;
        let latest = JournalRow { entry: entry.entry, deleted, arrived };
        self.put(&keys::journal(namespace, row.sequence), &latest);
        if deleted {
            self.tombstone(namespace, row.sequence);
        }
        Ok(())
    }

    /// Marks the journal row of an entry that is gone for good, below a folder whose own row says the same.
    pub(super) fn journal_gone(&mut self, namespace: NamespaceId, entry: &EntryRow) -> Result<(), StepError> {
        let key = keys::journal(namespace, entry.sequence);
        if let Some(latest) = self.get::<JournalRow>(&key)?.filter(|latest| !latest.deleted) {
            self.put(&key, &JournalRow { deleted: true, ..latest });
            self.tombstone(namespace, entry.sequence);
        }
        Ok(())
    }
}
