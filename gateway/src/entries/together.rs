//! Sends one step of each of a request's items in few commands, in which each succeeds or fails by itself.
//!
//! Invariant: the request's message alone says which command an item is in, and at which place there
//! ([`crate::places`]). An item whose step was not known yet when its command went has an empty place in it.

use std::collections::BTreeMap;

use metaraft::api::MetaError;
use metaraft::model::command::DataStep;
use metaraft::model::outcome::StepOutcome;
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::EntryRow;

use crate::auth::Caller;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{BATCH_ITEMS_MAX, COMMAND_ENTRIES_MAX};
use crate::meta::wrong_reply;
use crate::path::RemotePath;
use crate::places::{Answer, Places};

/// The items of a request that have places in one command, by their index in the message.
pub(super) struct Part {
    number: usize,
    pub(super) items: Vec<usize>,
}

/// Gives places to items. Those of one level are ready at about the same time: they share commands only with one
/// another. Levels and their order must follow from the message alone.
pub(super) fn parts(levels: impl IntoIterator<Item = Vec<usize>>) -> Vec<Part> {
    let commands = levels.into_iter().flat_map(|level| {
        level.chunks(COMMAND_ENTRIES_MAX).map(<[usize]>::to_vec).collect::<Vec<Vec<usize>>>()
    });
    commands.enumerate().map(|(number, items)| Part { number, items }).collect()
}

/// Whose batch it is, and under which request its items are.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a> {
    pub(super) core: &'a Core,
    pub(super) caller: &'a Caller,
    pub(super) request: RequestKey,
}

impl Batch<'_> {
    /// Step `number` of the request: those of items have their index, those of commands follow behind.
    fn key(&self, number: usize) -> RequestKey {
        self.request.step(u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// Takes an item's step by itself.
    pub(super) async fn alone(&self, item: usize, step: DataStep) -> Result<StepOutcome, MetaError> {
        self.core.meta.step(self.caller.namespace.slot(), self.key(item), step).await
    }

    /// Takes the steps of those of a part's items that are ready; gives what came of each.
    pub(super) async fn together(
        &self,
        part: &Part,
        mut steps: BTreeMap<usize, DataStep>,
    ) -> Vec<(usize, Result<StepOutcome, MetaError>)> {
        let mut results = Vec::with_capacity(steps.len());
        if steps.is_empty() {
            return results;
        }
        // Nothing else has a place beside it.
        if part.items.len() == 1 {
            for (item, step) in steps {
                results.push((item, self.alone(item, step).await));
            }
            return results;
        }
        let mut places = Places::new(part.items.len());
        for (place, item) in part.items.iter().enumerate() {
            places.put(place, steps.get(item).cloned().into_iter().collect());
        }
        let (slot, key) = (self.caller.namespace.slot(), self.key(BATCH_ITEMS_MAX + part.number));
        let mut answers = match places.send(&self.core.meta, slot, key, None).await {
            Ok(answers) => answers,
            Err(error) => return steps.into_keys().map(|item| (item, Err(error.clone()))).collect(),
        };
        for (place, item) in part.items.iter().enumerate() {
            let Some(step) = steps.remove(item) else { continue };
            let result = match answers.take(place) {
                Answer::Empty => self.alone(*item, step).await,
                Answer::Taken(outcomes) => only_outcome(outcomes),
            };
            results.push((*item, result));
        }
        results
    }
}

/// What came of the one step of an item.
pub(super) fn only_outcome<E: Into<MetaError>>(
    outcomes: Result<Vec<StepOutcome>, E>,
) -> Result<StepOutcome, MetaError> {
    outcomes.map_err(Into::into)?.pop().ok_or_else(|| wrong_reply("entries"))
}

/// The entry that a step answered with, or why there is none at `path`.
pub(super) fn row_of(
    outcome: Result<StepOutcome, MetaError>,
    path: &RemotePath,
) -> Result<EntryRow, Failure> {
    match outcome {
        Ok(StepOutcome::Entry(row)) => Ok(row),
        Ok(_other) => Err(Failure::from_meta(&wrong_reply("entry"), &path.to_string())),
        Err(error) => Err(Failure::from_meta(&error, &path.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_do_not_share_commands() {
        let many: Vec<usize> = (10..10 + COMMAND_ENTRIES_MAX + 1).collect();
        let parts = parts([vec![0, 3], Vec::new(), many.clone()]);
        let items: Vec<&[usize]> = parts.iter().map(|part| part.items.as_slice()).collect();
        assert_eq!(items, [&[0, 3], &many[..COMMAND_ENTRIES_MAX], &many[COMMAND_ENTRIES_MAX..]]);
        assert_eq!(parts.iter().map(|part| part.number).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
