//! Moving and renaming: a few rows, however large what is moved.
//!
//! Invariants:
//! - A folder is never moved below itself.
//! - What is replaced is in the trash afterwards, whole, but for the moved entry if that was in it.

use engine::ids::{EntryId, NamespaceId};

use super::names;
use super::tree::{Change, Target};
use super::txn::Group;
use crate::model::command::StepError;
use crate::model::outcome::StepOutcome;
use crate::model::row::EntryKind;

impl Group<'_, '_> {
    pub(super) fn entry_move(
        &mut self,
        namespace: NamespaceId,
        entry: EntryId,
        from: Target<'_>,
        to: Target<'_>,
        replace: bool,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        names::check(to.name)?;
        let mut moved = self.live_entry_at(namespace, entry, from)?;
        let depth = self.live_folder(namespace, to.parent, Some(entry))?;
        Self::check_depth(&moved.kind, depth)?;
        if from.parent == to.parent && from.name == to.name {
            return Ok(StepOutcome::Entry(moved));
        }
        let folder = moved.kind == EntryKind::Folder;
        let arrived = if folder { self.arrived_with(namespace, from.parent)? } else { 0 };
        self.take_entry(namespace, &moved);
        self.make_room(namespace, &mut row, to, replace)?;
        moved.parent = to.parent;
        to.name.clone_into(&mut moved.name);
        self.journal(namespace, &mut row, &mut moved, Change::Moved(arrived))?;
        self.put_entry(namespace, &moved);
        self.put_namespace(namespace, &row);
        Ok(StepOutcome::Entry(moved))
    }
}
