//! How often a namespace uses a content.
//!
//! Invariants:
//! - A content's use count is the number of the namespace's versions with it, and of its sessions that hold it.
//! - A use row with `retained` means that the content's slot has the reference of that generation.
//! - With the last use the row goes, and the reference is queued to be released; a later use has a new generation,
//!   so a late release never hits it.
//! - Empty content has no rows.

use engine::ids::{ContentId, NamespaceId};

use super::keys;
use super::rows::UseRow;
use super::txn::{Group, invalid};
use crate::model::command::StepError;
use crate::model::outcome::{Release, StepOutcome};
use crate::model::row::NamespaceRow;

impl Group<'_, '_> {
    /// Counts one more use. A new row has a new generation, and is not retained yet.
    pub(super) fn use_add(
        &mut self,
        namespace: NamespaceId,
        row: &mut NamespaceRow,
        content: ContentId,
    ) -> Result<UseRow, StepError> {
        let key = keys::content_use(namespace, content);
        let used = match self.get::<UseRow>(&key)? {
            Some(used) => UseRow { count: used.count + 1, ..used },
            None => {
                let generation = row.next_generation;
                row.next_generation += 1;
                UseRow { count: 1, generation, retained: false }
            }
        };
        self.put(&key, &used);
        Ok(used)
    }

    /// Counts one more use of a content that a version of the namespace has.
    pub(super) fn use_again(&mut self, namespace: NamespaceId, content: ContentId) -> Result<(), StepError> {
        let key = keys::content_use(namespace, content);
        let used: UseRow = self.get(&key)?.ok_or_else(|| invalid("a version's content has no use row"))?;
        self.put(&key, &UseRow { count: used.count + 1, ..used });
        Ok(())
    }

    /// Turns a session's use into a version's: by now the content's slot has the reference.
    pub(super) fn use_commit(
        &mut self,
        namespace: NamespaceId,
        content: ContentId,
        generation: u64,
    ) -> Result<(), StepError> {
        let key = keys::content_use(namespace, content);
        match self.get::<UseRow>(&key)? {
            Some(used) if used.generation == generation => {
                self.put(&key, &UseRow { retained: true, ..used });
                Ok(())
            }
            _ => Err(invalid("a held content has no use row of the session's generation")),
        }
    }

    /// Counts one use less. With the last one the reference is queued to be released, and returned.
    pub(super) fn use_drop(
        &mut self,
        namespace: NamespaceId,
        content: ContentId,
    ) -> Result<Option<Release>, StepError> {
        let key = keys::content_use(namespace, content);
        let used: UseRow = self.get(&key)?.ok_or_else(|| invalid("a used content has no use row"))?;
        if used.count > 1 {
            self.put(&key, &UseRow { count: used.count - 1, ..used });
            return Ok(None);
        }
        let generation = used.generation;
        self.delete(&key);
        // Whether it was ever retained is not known here: releasing what is not there changes nothing.
        self.put(&keys::release(namespace, content, generation), &());
        Ok(Some(Release { content, generation }))
    }

    pub(super) fn release_done(
        &mut self,
        namespace: NamespaceId,
        content: ContentId,
        generation: u64,
    ) -> Result<StepOutcome, StepError> {
        self.own(namespace.slot())?;
        self.delete(&keys::release(namespace, content, generation));
        Ok(StepOutcome::Done)
    }
}
