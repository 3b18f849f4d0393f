//! What counts against a namespace's quota, beside the bytes of its versions: entries, versions and symlinks' targets
//! for the rows that they are, and upload sessions that have not ended for what they may become.
//!
//! Invariants:
//! - A namespace's row bytes are [`ENTRY_BYTES`] for each entry but the root folder, in the tree or in the trash, with
//!   the bytes of its target if it is a symlink, and [`VERSION_BYTES`] for each version.
//! - Its sessions that are open or held count for the bytes of their files with [`FILE_BYTES`] each, and are bounded in
//!   number and in the entries of their chunk lists; so are, apart from them, those that were given up and not forgotten.
//! - What was charged is given back whatever the quota has become.

use crate::model::command::{OpenUploadsMax, StepError};
use crate::model::row::{EntryKind, NamespaceRow, UploadRow};

/// What an entry counts, whatever it is and however long its name.
pub(super) const ENTRY_BYTES: u64 = 256;

/// What a version counts beside its own bytes.
pub(super) const VERSION_BYTES: u64 = 128;

/// What a new file with its first version counts beside its own bytes.
pub(super) const FILE_BYTES: u64 = ENTRY_BYTES + VERSION_BYTES;

/// What an entry counts, with its target if it is a symlink; its versions count for themselves.
pub(super) fn entry_bytes(kind: &EntryKind) -> u64 {
    match kind {
        EntryKind::Symlink(target) => ENTRY_BYTES + target.len() as u64,
        EntryKind::File(_) | EntryKind::Folder => ENTRY_BYTES,
    }
}

impl NamespaceRow {
    /// Refuses bytes that the quota has no room for.
    pub(super) fn check_quota(&self, needed_bytes: u64) -> Result<(), StepError> {
        let charged_after = self.charged_bytes().checked_add(needed_bytes);
        if charged_after.is_none_or(|charged| self.quota_bytes != 0 && charged > self.quota_bytes) {
            return Err(StepError::Quota {
                used_bytes: self.charged_bytes(),
                quota_bytes: self.quota_bytes,
                needed_bytes,
            });
        }
        Ok(())
    }

    /// Charges a new entry.
    pub(super) fn charge_entry(&mut self, kind: &EntryKind) -> Result<(), StepError> {
        self.charge_rows(entry_bytes(kind))
    }

    /// Charges rows of so many bytes.
    pub(super) fn charge_rows(&mut self, bytes: u64) -> Result<(), StepError> {
        self.check_quota(bytes)?;
        self.row_bytes += bytes;
        Ok(())
    }

    /// Gives back what an entry cost.
    pub(super) fn discharge_entry(&mut self, kind: &EntryKind) {
        self.row_bytes = self.row_bytes.saturating_sub(entry_bytes(kind));
    }

    /// Charges an entry that becomes another kind of thing, or points elsewhere.
    pub(super) fn recharge_entry(&mut self, before: &EntryKind, after: &EntryKind) -> Result<(), StepError> {
        let (before, after) = (entry_bytes(before), entry_bytes(after));
        if after > before {
            self.check_quota(after - before)?;
        }
        self.row_bytes = self.row_bytes.saturating_sub(before) + after;
        Ok(())
    }

    /// Charges a session that begins, with so many entries in its list.
    pub(super) fn charge_upload(
        &mut self,
        size: u64,
        entries: u64,
        most: OpenUploadsMax,
    ) -> Result<(), StepError> {
        let open = &self.open;
        let many = |what: &str, most: u64| Err(StepError::TooMany { what: format!("at most {most} {what}") });
        if open.sessions >= most.sessions || open.given_up > most.sessions {
            return many("uploads may be under way", most.sessions);
        }
        if open.list_entries + entries > most.list_entries || open.given_up_entries > most.list_entries {
            return many("chunks may be in the lists of uploads that are under way", most.list_entries);
        }
        let bytes = size.saturating_add(FILE_BYTES);
        self.check_quota(bytes)?;
        self.open.sessions += 1;
        self.open.list_entries += entries;
        self.open.bytes += bytes;
        Ok(())
    }

    /// Gives back what an open session is charged: it is committed, or given up.
    pub(super) fn discharge_upload(&mut self, session: &UploadRow) {
        let open = &mut self.open;
        open.sessions = open.sessions.saturating_sub(1);
        open.list_entries = open.list_entries.saturating_sub(session.chunk_count);
        open.bytes = open.bytes.saturating_sub(session.size.saturating_add(FILE_BYTES));
    }

    /// Counts a session that was given up.
    pub(super) fn count_given_up(&mut self, session: &UploadRow) {
        self.open.given_up += 1;
        self.open.given_up_entries += session.chunk_count;
    }

    /// A session that was given up is forgotten.
    pub(super) fn discount_given_up(&mut self, session: &UploadRow) {
        self.open.given_up = self.open.given_up.saturating_sub(1);
        self.open.given_up_entries = self.open.given_up_entries.saturating_sub(session.chunk_count);
    }
}
