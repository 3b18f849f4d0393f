//! Contents: which namespaces refer to them, by whose holder they live, and what becomes of dead ones.
//!
//! Invariants:
//! - A content has a row if and only if a namespace's reference to it has one.
//! - A content's holder refers to all of its chunks from before the content is made until after it is dead: so a
//!   session's pins go only once its holder can never become the content's (it is barred), or is that of a dead
//!   content.
//! - A reference that was released never comes back, however late its retain arrives.
//! - A dead content stays queued until its chunks have been let go.
//!
//! Marks (released references, barred holders) go after [`super::txn::MARK_MEMORY_MS`]: by then no step of the
//! operation that they guard against is taken any more.

use engine::ids::{ContentId, HolderId, NamespaceId};

use super::keys;
use super::rows::{DeadContentRow, UseRow};
use super::txn::{Group, invalid};
use super::versions::has_rows;
use crate::model::command::StepError;
use crate::model::outcome::{DeadContent, StepOutcome};
use crate::model::row::ContentRow;

/// Deaths of one content that wait for its chunks to be let go: it is made anew between two.
const DEAD_ROWS_MAX: usize = 1000;

fn changed(what: &str) -> StepError {
    StepError::Changed { what: what.to_owned() }
}

fn check_list(content: ContentId, row: &ContentRow) -> Result<(), StepError> {
    let bytes = row.list.size().map_err(|refused| invalid(refused.to_string()))?;
    if !has_rows(row.size) || bytes != row.size {
        return Err(invalid(format!("a content of {} bytes with a list of {bytes}", row.size)));
    }
    if row.list.depth == 0 && ContentId::of(&row.list.entries) != content {
        return Err(invalid("the content's id is not that of its chunks"));
    }
    Ok(())
}

impl Group<'_, '_> {
    pub(super) fn content_retain(
        &mut self,
        content: ContentId,
        namespace: NamespaceId,
        generation: Option<u64>,
        row: &ContentRow,
    ) -> Result<StepOutcome, StepError> {
        self.own(content.slot())?;
        let generation = match generation {
            Some(generation) => generation,
            None => self.generation_held(namespace, content)?,
        };
        if self.contains(&keys::content_released(content, namespace, generation)) {
            return Err(changed("the reference was released"));
        }
        let key = keys::content(content);
        let holder = match self.get::<ContentRow>(&key)? {
            Some(existing) if existing.size != row.size => {
                return Err(invalid("the content is there with another size"));
            }
            Some(existing) => existing.holder,
            None => {
                check_list(content, row)?;
                if self.contains(&keys::holder_barred(content, row.holder)) {
                    return Err(changed("the session's holder was dismissed"));
                }
                self.put(&key, row);
                row.holder
            }
        };
        self.put(&keys::content_ref(content, namespace, generation), &());
        Ok(StepOutcome::Retained { holder })
    }

    fn generation_held(&self, namespace: NamespaceId, content: ContentId) -> Result<u64, StepError> {
        self.own(namespace.slot())?;
        self.get::<UseRow>(&keys::content_use(namespace, content))?
            .map(|used| used.generation)
            .ok_or_else(|| changed("the namespace does not hold the content"))
    }

    pub(super) fn content_release(
        &mut self,
        content: ContentId,
        namespace: NamespaceId,
        generation: u64,
    ) -> Result<StepOutcome, StepError> {
        self.own(content.slot())?;
        self.mark(&keys::content_released(content, namespace, generation));
        let reference = keys::content_ref(content, namespace, generation);
        if self.contains(&reference) {
            self.delete(&reference);
            if self.first_key(&keys::content_refs(content)).is_none() {
                self.content_die(content, namespace, generation)?;
            }
        }
        let queued: Vec<DeadContentRow> = self.scan(&keys::dead_contents(content), DEAD_ROWS_MAX)?;
        let own = queued.into_iter().find(|row| row.namespace == namespace && row.generation == generation);
        Ok(StepOutcome::Released { dead: own.map(|row| row.dead) })
    }

    fn content_die(
        &mut self,
        content: ContentId,
        namespace: NamespaceId,
        generation: u64,
    ) -> Result<(), StepError> {
        let key = keys::content(content);
        if let Some(ContentRow { holder, list, .. }) = self.get(&key)? {
            self.delete(&key);
            let dead = DeadContent { content, holder, list };
            let row = DeadContentRow { dead, namespace, generation };
            self.put(&keys::dead_content(content, holder), &row);
        }
        Ok(())
    }

    pub(super) fn holder_dismiss(
        &mut self,
        content: ContentId,
        holder: HolderId,
    ) -> Result<StepOutcome, StepError> {
        self.own(content.slot())?;
        let in_force =
            self.get::<ContentRow>(&keys::content(content))?.is_some_and(|row| row.holder == holder);
        if !in_force {
            self.mark(&keys::holder_barred(content, holder));
        }
        Ok(StepOutcome::Dismissed { in_force })
    }

    pub(super) fn dead_content_forget(
        &mut self,
        content: ContentId,
        holder: HolderId,
    ) -> Result<StepOutcome, StepError> {
        self.own(content.slot())?;
        self.delete(&keys::dead_content(content, holder));
        Ok(StepOutcome::Done)
    }
}
