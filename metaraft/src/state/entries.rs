//! Folders and symlinks, attributes, and copies within a namespace.

use engine::ids::{DeviceId, EntryId, NamespaceId};

use super::keys;
use super::names;
use super::tree::{Attributes, Change, Target};
use super::txn::{Group, invalid, not_found};
use crate::model::command::{OnExisting, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::row::{EntryKind, EntryRow, NamespaceRow, VersionRow};

/// Bytes of a symlink's target (Linux: PATH_MAX).
const SYMLINK_BYTES_MAX: usize = 4096;

pub(super) fn check_kind(kind: &EntryKind) -> Result<(), StepError> {
    match kind {
        EntryKind::Folder => Ok(()),
        EntryKind::Symlink(to) if (1..=SYMLINK_BYTES_MAX).contains(&to.len()) && !to.contains(&0) => Ok(()),
        EntryKind::Symlink(_) => {
            Err(invalid(format!("a symlink's target has 1 to {SYMLINK_BYTES_MAX} bytes, none of them NUL")))
        }
        EntryKind::File(_) => Err(invalid("files are made by commits")),
    }
}

impl Group<'_, '_> {
    pub(super) fn entry_create(
        &mut self,
        namespace: NamespaceId,
        at: Target<'_>,
        kind: &EntryKind,
        attributes: Attributes,
        on_existing: OnExisting,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        check_kind(kind)?;
        names::check(at.name)?;
        let depth = self.live_folder(namespace, at.parent, None)?;
        let Some(mut existing) = self.entry_at(namespace, at)? else {
            Self::check_depth(kind, depth)?;
            let created = self.entry_put_new(namespace, &mut row, at, kind.clone(), attributes)?;
            self.put_namespace(namespace, &row);
            return Ok(StepOutcome::Entry(created));
        };
        match (on_existing, &existing.kind, kind) {
            (OnExisting::TakeFolder, EntryKind::Folder, EntryKind::Folder) => {}
            (OnExisting::ReplaceSymlink, EntryKind::Symlink(_), EntryKind::Symlink(_)) => {
                row.recharge_entry(&existing.kind, kind)?;
                existing.kind = kind.clone();
                existing.mode = attributes.permissions();
                existing.mtime_ns = attributes.mtime_ns;
                self.journal(namespace, &mut row, &mut existing, Change::Changed)?;
                self.put_entry(namespace, &existing);
                self.put_namespace(namespace, &row);
            }
            _ => return Err(StepError::AlreadyExists { kind: existing.kind.word().to_owned() }),
        }
        Ok(StepOutcome::Entry(existing))
    }

    /// Makes a folder or a symlink where nothing is.
    fn entry_put_new(
        &mut self,
        namespace: NamespaceId,
        row: &mut NamespaceRow,
        at: Target<'_>,
        kind: EntryKind,
        attributes: Attributes,
    ) -> Result<EntryRow, StepError> {
        row.charge_entry(&kind)?;
        let mut created = EntryRow {
            entry: row.take_entry_id(),
            parent: at.parent,
            name: at.name.to_owned(),
            kind,
            mode: attributes.permissions(),
            mtime_ns: attributes.mtime_ns,
            created_ms: self.wall_ms,
            changed_ms: self.wall_ms,
            sequence: 0,
        };
        self.journal(namespace, row, &mut created, Change::Changed)?;
        self.put_entry(namespace, &created);
        Ok(created)
    }

    pub(super) fn entry_set_attributes(
        &mut self,
        namespace: NamespaceId,
        entry: EntryId,
        attributes: Attributes,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        let mut changed = self.live_entry(namespace, entry)?;
        let (mode, mtime_ns) = (attributes.permissions(), attributes.mtime_ns);
        if (changed.mode, changed.mtime_ns) != (mode, mtime_ns) {
            (changed.mode, changed.mtime_ns) = (mode, mtime_ns);
            self.journal(namespace, &mut row, &mut changed, Change::Changed)?;
            self.put_entry(namespace, &changed);
            self.put_namespace(namespace, &row);
        }
        Ok(StepOutcome::Entry(changed))
    }

    pub(super) fn entry_copy(
        &mut self,
        namespace: NamespaceId,
        entry: EntryId,
        to: Target<'_>,
        replace: bool,
        device: DeviceId,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        names::check(to.name)?;
        let source = self.live_entry(namespace, entry)?;
        self.live_folder(namespace, to.parent, None)?;
        if source.parent == to.parent && source.name == to.name {
            return Ok(StepOutcome::Entry(source));
        }
        if source.kind == EntryKind::Folder {
            return Err(StepError::WrongKind { is: source.kind.word().to_owned() });
        }
        self.make_room(namespace, &mut row, to, replace)?;
        let attributes = Attributes { mode: source.mode, mtime_ns: source.mtime_ns };
        let copy = match source.kind {
            EntryKind::File(state) => {
                let version: VersionRow = self
                    .get(&keys::version(namespace, entry, state.version))?
                    .ok_or_else(|| not_found("version"))?;
                self.version_use_again(namespace, version.content, version.size)?;
                let (mode, mtime_ns) = (source.mode, source.mtime_ns);
                let like = VersionRow { mode, mtime_ns, device, ..version };
                self.file_put(namespace, &mut row, to, None, None, like)?
            }
            kind => self.entry_put_new(namespace, &mut row, to, kind, attributes)?,
        };
        self.put_namespace(namespace, &row);
        Ok(StepOutcome::Entry(copy))
    }

    /// Sends what is at a target to the trash, if it may go there.
    pub(super) fn make_room(
        &mut self,
        namespace: NamespaceId,
        row: &mut NamespaceRow,
        at: Target<'_>,
        replace: bool,
    ) -> Result<(), StepError> {
        match self.entry_at(namespace, at)? {
            None => Ok(()),
            Some(existing) if !replace => {
                Err(StepError::AlreadyExists { kind: existing.kind.word().to_owned() })
            }
            Some(existing) => self.trash_put(namespace, row, existing).map(drop),
        }
    }
}
