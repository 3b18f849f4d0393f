//! The chunk registry: where chunks lie, and who refers to them.
//!
//! Invariants:
//! - A reference is a row, chunk and holder: putting it in or taking it out twice changes nothing.
//! - A chunk without references says since when; one with references does not.
//! - A condemned chunk gets no references: who names it is told that it is not there, and registers it anew, with a
//!   new generation and place.
//! - A chunk that was found unreadable is not handed out either, but what refers to it keeps its reference: the next
//!   registration, in another stripe, takes its place for all of them.
//! - The sums count each registered chunk once, with its plain bytes.

use engine::chunk::check_chunk_size;
use engine::ids::{ChunkId, Epoch, HolderId, StripeId};
use engine::location::ChunkLocation;

use super::keys;
use super::txn::{Group, invalid};
use crate::model::QUERY_ITEMS_MAX;
use crate::model::command::{NewChunk, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::row::{ChunkRow, ChunkState};

fn check_count(count: usize) -> Result<(), StepError> {
    if count > QUERY_ITEMS_MAX as usize {
        return Err(invalid(format!("{count} items in one step; at most {QUERY_ITEMS_MAX}")));
    }
    Ok(())
}

fn check_location(location: &ChunkLocation) -> Result<(), StepError> {
    check_chunk_size(u64::from(location.plain_length)).map_err(|refused| invalid(refused.to_string()))?;
    let end = location.offset.checked_add(location.stored_length);
    if location.stored_length == 0 || end.is_none_or(|end| end > location.shape.length) {
        return Err(invalid("a chunk's place is not within its stripe"));
    }
    Ok(())
}

impl Group<'_, '_> {
    pub(super) fn chunks_pin(
        &mut self,
        holder: HolderId,
        chunks: &[ChunkId],
    ) -> Result<StepOutcome, StepError> {
        check_count(chunks.len())?;
        let mut pinned = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            self.own(chunk.slot())?;
            let there = match self.get::<ChunkRow>(&keys::chunk(*chunk))? {
                Some(row) if row.state == ChunkState::Live => {
                    self.chunk_refer(&row, holder);
                    true
                }
                _ => false,
            };
            pinned.push(there);
        }
        Ok(StepOutcome::Pinned(pinned))
    }

    fn chunk_refer(&mut self, row: &ChunkRow, holder: HolderId) {
        self.put(&keys::chunk_ref(row.chunk, holder), &());
        if row.unreferenced_since_ms.is_some() {
            self.put(&keys::chunk(row.chunk), &ChunkRow { unreferenced_since_ms: None, ..*row });
        }
    }

    pub(super) fn chunks_register(
        &mut self,
        epoch: Epoch,
        chunks: &[NewChunk],
    ) -> Result<StepOutcome, StepError> {
        check_count(chunks.iter().map(|new| 1 + new.holders.len()).sum())?;
        let Some(first) = chunks.first() else { return Ok(StepOutcome::Registered(Vec::new())) };
        let stripe = first.location.stripe;
        self.check_epoch(stripe.volume(), epoch)?;
        let mut won = Vec::with_capacity(chunks.len());
        for new in chunks {
            self.own(new.chunk.slot())?;
            check_location(&new.location)?;
            if new.location.stripe != stripe {
                return Err(invalid("chunks of several stripes in one registration"));
            }
            won.push(self.chunk_register(new)?);
        }
        Ok(StepOutcome::Registered(won))
    }

    fn chunk_register(&mut self, new: &NewChunk) -> Result<bool, StepError> {
        let existing: Option<ChunkRow> = self.get(&keys::chunk(new.chunk))?;
        let stays = |existing: &ChunkRow| match existing.state {
            ChunkState::Live => true,
            ChunkState::Condemned => false,
            // A repetition of the registration that was found unreadable brings nothing new.
            ChunkState::Unreadable => existing.location.stripe == new.location.stripe,
        };
        let row = match existing {
            Some(existing) if stays(&existing) => existing,
            _ => {
                self.chunk_count(existing.as_ref(), &new.location);
                self.sums.registrations += 1;
                let referred = existing.is_some_and(|existing| existing.unreferenced_since_ms.is_none());
                let row = ChunkRow {
                    chunk: new.chunk,
                    location: new.location,
                    generation: self.sums.registrations,
                    unreferenced_since_ms: (new.holders.is_empty() && !referred).then_some(self.time_ms),
                    state: ChunkState::Live,
                };
                self.put(&keys::chunk(new.chunk), &row);
                row
            }
        };
        for holder in &new.holders {
            self.chunk_refer(&row, *holder);
        }
        Ok(row.location == new.location)
    }

    pub(super) fn chunks_unreadable(
        &mut self,
        chunks: &[(ChunkId, StripeId)],
    ) -> Result<StepOutcome, StepError> {
        check_count(chunks.len())?;
        for (chunk, stripe) in chunks {
            self.own(chunk.slot())?;
            if let Some(row) = self.get::<ChunkRow>(&keys::chunk(*chunk))?
                && row.state == ChunkState::Live
                && row.location.stripe == *stripe
            {
                self.put(&keys::chunk(*chunk), &ChunkRow { state: ChunkState::Unreadable, ..row });
            }
        }
        Ok(StepOutcome::Done)
    }

    fn chunk_count(&mut self, replaced: Option<&ChunkRow>, location: &ChunkLocation) {
        let sums = &mut self.sums;
        match replaced {
            Some(replaced) => {
                let before = u64::from(replaced.location.plain_length);
                sums.bytes_unique = sums.bytes_unique.saturating_sub(before);
            }
            None => sums.chunks += 1,
        }
        sums.bytes_unique += u64::from(location.plain_length);
    }

    pub(super) fn chunks_unpin(
        &mut self,
        holder: HolderId,
        chunks: &[ChunkId],
    ) -> Result<StepOutcome, StepError> {
        check_count(chunks.len())?;
        for chunk in chunks {
            self.own(chunk.slot())?;
            let reference = keys::chunk_ref(*chunk, holder);
            if !self.contains(&reference) {
                continue;
            }
            self.delete(&reference);
            if self.first_key(&keys::chunk_refs(*chunk)).is_none()
                && let Some(row) = self.get::<ChunkRow>(&keys::chunk(*chunk))?
            {
                let since_ms = Some(self.time_ms);
                self.put(&keys::chunk(*chunk), &ChunkRow { unreferenced_since_ms: since_ms, ..row });
            }
        }
        Ok(StepOutcome::Done)
    }
}
