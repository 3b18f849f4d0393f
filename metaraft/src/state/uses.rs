//! How often a namespace uses a content.
//!
//! Invariants:
//! - A content's use count is the number of the namespace's versions with it, and of its sessions that hold it.
//! - A use row with `retained` means that the content's slot has the reference of that generation.
//! - With the last use the row goes, and the reference is queued to be released, unless the content was in the nursery
//!   alone; a later use has a new generation, so a late release never hits it.
//! - Empty content has no rows.
//! - A release is queued or set aside, never both, until it is done. One that is set aside has a row that says why and
//!   when it is tried again, and one that finds it by that time.

use engine::ids::{ContentId, NamespaceId};

use super::keys;
use super::rows::UseRow;
use super::txn::{Group, invalid};
use crate::model::command::StepError;
use crate::model::outcome::{Release, StepOutcome};
use crate::model::row::{ASIDE_WHY_BYTES_MAX, AsideRelease, NamespaceRow};

/// How long a release is left alone after it failed for the first time; doubled with each further time.
const RETRY_FIRST_MS: u64 = 60_000;

/// The longest that it is left alone.
const RETRY_LAST_MS: u64 = 24 * 60 * 60 * 1000;

/// As much of a text as fits into so many bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// How long a release waits that has failed so often.
fn retry_after_ms(attempts: u32) -> u64 {
    let doubled = 1_u64.checked_shl(attempts.saturating_sub(1)).unwrap_or(u64::MAX);
    RETRY_FIRST_MS.saturating_mul(doubled).min(RETRY_LAST_MS)
}

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
                if used.retained { Ok(()) } else { self.nursery_retained(namespace, content, generation) }
            }
            _ => Err(invalid("a held content has no use row of the session's generation")),
        }
    }

    /// Counts one use less. With the last one the reference is queued to be released, and returned, if there may be one.
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
        if !self.nursery_let_go(namespace, content, used)? {
            return Ok(None);
        }
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
        self.aside_take(namespace, Release { content, generation })?;
        Ok(StepOutcome::Done)
    }

    pub(super) fn release_set_aside(
        &mut self,
        namespace: NamespaceId,
        release: Release,
        why: &str,
    ) -> Result<StepOutcome, StepError> {
        self.own(namespace.slot())?;
        let Release { content, generation } = release;
        let queued = keys::release(namespace, content, generation);
        let before = self.aside_take(namespace, release)?;
        if before.is_none() && !self.contains(&queued) {
            return Ok(StepOutcome::Done);
        }
        self.delete(&queued);
        let (attempts, since_ms) =
            before.map_or((0, self.time_ms), |before| (before.attempts, before.since_ms));
        let attempts = attempts.saturating_add(1);
        let retry_ms = self.time_ms.saturating_add(retry_after_ms(attempts));
        let why = cut(why, ASIDE_WHY_BYTES_MAX).to_owned();
        let row = AsideRelease { namespace, release, why, attempts, since_ms, retry_ms };
        self.put(&keys::release_aside(namespace, content, generation), &row);
        self.put(&keys::release_retry(retry_ms, namespace, content, generation), &row);
        Ok(StepOutcome::Done)
    }

    /// Removes the rows of a release that was set aside, and gives what they said.
    fn aside_take(
        &mut self,
        namespace: NamespaceId,
        release: Release,
    ) -> Result<Option<AsideRelease>, StepError> {
        let Release { content, generation } = release;
        let key = keys::release_aside(namespace, content, generation);
        let Some(row) = self.get::<AsideRelease>(&key)? else { return Ok(None) };
        self.delete(&key);
        self.delete(&keys::release_retry(row.retry_ms, namespace, content, generation));
        Ok(Some(row))
    }
}
