//! One command for several items of a request, each at a place of its own, in which each succeeds or fails by itself.
//!
//! Invariant: the request's message alone says which command an item is in, and at which place there; so a repetition
//! finds the answers that were remembered. An item that could not go with its command the first time (its chunks were
//! not all there, say) has an empty place in it, and when it comes again it goes alone.

use engine::ids::SlotId;
use metaraft::api::MetaError;
use metaraft::model::command::{DataStep, StepError};
use metaraft::model::outcome::StepOutcome;
use metaraft::model::request_key::RequestKey;

use crate::meta::{Meta, wrong_reply};
use crate::sync::history::Guard;

/// What the items at the places of one command do.
pub(crate) struct Places(Vec<Vec<DataStep>>);

/// What the places of one command answered.
pub(crate) struct Answers(Vec<Option<Result<Vec<StepOutcome>, StepError>>>);

/// What came of one item.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Its steps were taken, now or when the command first came, or refused.
    Taken(Result<Vec<StepOutcome>, MetaError>),
    /// Its place was empty when the command first came: it goes alone.
    Empty,
}

impl Places {
    /// So many, all empty.
    pub(crate) fn new(count: usize) -> Self {
        Self(vec![Vec::new(); count])
    }

    /// Puts an item at a place. What is beyond the last one goes nowhere, and is answered so.
    pub(crate) fn put(&mut self, place: usize, steps: Vec<DataStep>) {
        if let Some(empty) = self.0.get_mut(place) {
            *empty = steps;
        }
    }

    /// Sends the command; none of it is done if `guard` refuses.
    pub(crate) async fn send(
        self,
        meta: &Meta,
        slot: SlotId,
        request: RequestKey,
        guard: Option<&Guard>,
    ) -> Result<Answers, MetaError> {
        let answers = meta.each_guarded(slot, request, guard, self.0).await?;
        Ok(Answers(answers.into_iter().map(Some).collect()))
    }
}

impl Answers {
    /// What came of the item at a place; to be asked once.
    pub(crate) fn take(&mut self, place: usize) -> Answer {
        match self.0.get_mut(place).and_then(Option::take) {
            Some(Ok(outcomes)) if outcomes.is_empty() => Answer::Empty,
            Some(answer) => Answer::Taken(answer.map_err(MetaError::from)),
            None => Answer::Taken(Err(wrong_reply("a place"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_answer_is_of_an_empty_place_and_is_given_once() {
        let refused = StepError::Invalid { why: "refused".to_owned() };
        let all = [Ok(vec![StepOutcome::Done]), Ok(Vec::new()), Err(refused.clone())];
        let mut answers = Answers(all.into_iter().map(Some).collect());
        assert!(matches!(answers.take(0), Answer::Taken(Ok(outcomes)) if outcomes == [StepOutcome::Done]));
        assert!(matches!(answers.take(1), Answer::Empty));
        assert!(matches!(answers.take(2), Answer::Taken(Err(MetaError::Step(error))) if error == refused));
        assert!(matches!(answers.take(0), Answer::Taken(Err(_))), "not twice");
        assert!(matches!(answers.take(3), Answer::Taken(Err(_))), "there is none");
    }
}
