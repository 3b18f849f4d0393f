//! Versions of files, and what they cost.
//!
//! Invariants:
//! - The namespace's used bytes are the sum of the sizes of all its version rows, those in the trash too; what the rows
//!   themselves count is in `quota`.
//! - The group's logical bytes are the sum of the sizes of the current versions of all files, those in the trash too.
//! - A version row has one use of its content.

use engine::ids::{ContentId, DeviceId, EntryId, NamespaceId, VersionId};

use super::keys;
use super::quota::VERSION_BYTES;
use super::tree::Change;
use super::txn::{Group, not_found};
use crate::model::command::StepError;
use crate::model::outcome::{Release, StepOutcome};
use crate::model::row::{EntryKind, EntryRow, FileState, NamespaceRow, VersionRow};

/// Whether a content of `size` bytes has rows.
pub(super) fn has_rows(size: u64) -> bool {
    size > 0
}

impl Group<'_, '_> {
    /// Adds a version to a file, current from now on, and charges it; its use of the content is the caller's.
    /// `like` is what it is made of; number and time are set here. Returns what the entry is to hold.
    pub(super) fn version_add(
        &mut self,
        namespace: NamespaceId,
        row: &mut NamespaceRow,
        entry: EntryId,
        like: VersionRow,
        before: Option<FileState>,
    ) -> Result<FileState, StepError> {
        row.check_quota(like.size.saturating_add(VERSION_BYTES))?;
        row.used_bytes += like.size;
        row.row_bytes += VERSION_BYTES;
        let version = row.next_version;
        row.next_version = VersionId(version.0 + 1);
        let added = VersionRow { version, created_ms: self.time_ms, ..like };
        self.put(&keys::version(namespace, entry, version), &added);
        let size_before = before.map_or(0, |before| before.size);
        self.sums.bytes_logical =
            self.sums.bytes_logical.saturating_sub(size_before).saturating_add(like.size);
        Ok(FileState { version, content: like.content, size: like.size, cutter: like.cutter })
    }

    /// Removes a version row of an entry in the trash, and gives back what it cost.
    pub(super) fn version_remove(
        &mut self,
        namespace: NamespaceId,
        row: &mut NamespaceRow,
        entry: EntryId,
        version: &VersionRow,
    ) -> Result<Option<Release>, StepError> {
        self.delete(&keys::version(namespace, entry, version.version));
        row.used_bytes = row.used_bytes.saturating_sub(version.size);
        row.row_bytes = row.row_bytes.saturating_sub(VERSION_BYTES);
        if has_rows(version.size) { self.use_drop(namespace, version.content) } else { Ok(None) }
    }

    /// Counts one more use of what a version of this namespace has.
    pub(super) fn version_use_again(
        &mut self,
        namespace: NamespaceId,
        content: ContentId,
        size: u64,
    ) -> Result<(), StepError> {
        if has_rows(size) { self.use_again(namespace, content) } else { Ok(()) }
    }

    pub(super) fn version_restore(
        &mut self,
        namespace: NamespaceId,
        entry: EntryId,
        version: VersionId,
        device: DeviceId,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        let mut file: EntryRow = self.live_entry(namespace, entry)?;
        let EntryKind::File(before) = file.kind else {
            return Err(StepError::WrongKind { is: file.kind.word().to_owned() });
        };
        let earlier: VersionRow =
            self.get(&keys::version(namespace, entry, version))?.ok_or_else(|| not_found("version"))?;
        self.version_use_again(namespace, earlier.content, earlier.size)?;
        let like = VersionRow { device, ..earlier };
        file.kind = EntryKind::File(self.version_add(namespace, &mut row, entry, like, Some(before))?);
        file.mode = earlier.mode;
        file.mtime_ns = earlier.mtime_ns;
        self.journal(namespace, &mut row, &mut file, Change::Changed)?;
        self.put_entry(namespace, &file);
        self.put_namespace(namespace, &row);
        Ok(StepOutcome::Entry(file))
    }
}
