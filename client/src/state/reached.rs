//! Up to where the server is known, by its journal and by the answers to calls.
//!
//! All that is taken in lies on one line of the server's history. A call, or a question for a page, goes with the place that
//! is known when it is sent, and the server answers only if that place is of its own history. By the time the answer comes,
//! more may be known, which the server has not been asked about; it may have gone back in between, and ids may be issued
//! again. So an answer is taken only if nothing more is known than when it was asked for, or if it was given in the reign
//! that what is known is of.

use super::database::State;
use super::error::StateError;
use super::row::{signed, unsigned};
use crate::planner::went_back::{self, Place};

/// What answers to calls have proved.
const ANSWERED: &str = "answered";
const ANSWERED_SEQUENCE: &str = "answered_sequence";
const ANSWERED_REIGN: &str = "answered_reign";
/// In which reign the server was when its journal was last told of.
const REIGN: &str = "reign";

/// A place in the server's history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// What proves it: a cursor, or what goes for one. Opaque; empty: nothing does.
    pub proof: Vec<u8>,
    /// The number that the server's tree had reached.
    pub sequence: u64,
    /// The server's reign then: opaque; empty: not known.
    pub reign: Vec<u8>,
}

impl Reached {
    /// As an answer tells it.
    pub(crate) fn told(proof: &[u8], sequence: u64, reign: &[u8]) -> Self {
        Self { proof: proof.to_vec(), sequence, reign: reign.to_vec() }
    }

    fn place(&self) -> Place<&[u8]> {
        Place { sequence: self.sequence, reign: &self.reign }
    }

    /// Whether an answer may be taken in by one who knows of this place, and knew of `asked` when it asked.
    fn takes(&self, asked: &Self, told: &Self) -> bool {
        went_back::takes(&self.place(), &asked.place(), &told.place().reign)
    }
}

#[cfg(test)]
impl Reached {
    /// A place in the only reign of a history, for tests.
    pub(crate) fn at(sequence: u64) -> Self {
        Self { proof: sequence.to_be_bytes().to_vec(), sequence, reign: Vec::new() }
    }
}

impl State {
    /// Up to where the server is known.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn known(&self) -> Result<Reached, StateError> {
        match self.answered()? {
            Some(answered) => Ok(answered),
            None => Ok(Reached {
                proof: self.bytes("cursor")?.unwrap_or_default(),
                sequence: unsigned(self.number("sequence")?.unwrap_or(0)),
                reign: self.bytes(REIGN)?.unwrap_or_default(),
            }),
        }
    }

    /// Whether an answer may be taken in that was asked for when `asked` was known, and given at `told`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn takes(&self, asked: &Reached, told: &Reached) -> Result<bool, StateError> {
        Ok(self.known()?.takes(asked, told))
    }

    /// Keeps where an answer has led. False: it may be of another history than what is known by now, and is not taken in.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn note_answered(&mut self, asked: &Reached, told: &Reached) -> Result<bool, StateError> {
        self.transaction(|state| state.take_answer(asked, told))
    }

    /// As [`note_answered`](Self::note_answered), within a transaction.
    pub(super) fn take_answer(&self, asked: &Reached, told: &Reached) -> Result<bool, StateError> {
        let known = self.known()?;
        if !known.takes(asked, told) {
            return Ok(false);
        }
        if !told.proof.is_empty() && told.sequence > known.sequence {
            self.set_bytes(ANSWERED, &told.proof)?;
            self.set_bytes(ANSWERED_REIGN, &told.reign)?;
            self.set_number(ANSWERED_SEQUENCE, signed(told.sequence))?;
        }
        Ok(true)
    }

    /// Where answers have led beyond what the journal has told; nothing if it has told all of it.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn answered(&self) -> Result<Option<Reached>, StateError> {
        let sequence = unsigned(self.number(ANSWERED_SEQUENCE)?.unwrap_or(0));
        if sequence <= unsigned(self.number("sequence")?.unwrap_or(0)) {
            return Ok(None);
        }
        let reign = self.bytes(ANSWERED_REIGN)?.unwrap_or_default();
        let proof = self.bytes(ANSWERED)?.filter(|proof| !proof.is_empty());
        Ok(proof.map(|proof| Reached { proof, sequence, reign }))
    }

    pub(super) fn forget_answered(&self) -> Result<(), StateError> {
        self.set_bytes(ANSWERED, &[])?;
        self.set_bytes(ANSWERED_REIGN, &[])?;
        self.set_number(ANSWERED_SEQUENCE, 0)
    }

    /// Goes on from here in the journal.
    pub(super) fn follow_from(&self, place: &Reached) -> Result<(), StateError> {
        self.set_bytes("cursor", &place.proof)?;
        self.set_bytes(REIGN, &place.reign)?;
        self.set_number("sequence", signed(place.sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::remote::RemotePage;
    use crate::state::tests::fresh;

    fn of(reign: u8, sequence: u64) -> Reached {
        Reached { proof: vec![reign, 1], sequence, reign: vec![reign] }
    }

    fn page(reached: Reached) -> RemotePage {
        RemotePage { reached, ..RemotePage::default() }
    }

    #[test]
    fn what_was_asked_before_more_was_known_is_taken_only_from_the_reign_that_is_known() {
        let (_folder, mut state) = fresh();
        state.apply_changes(&page(of(1, 10))).unwrap();
        let before = state.known().unwrap();
        assert_eq!(before, of(1, 10));
        // Two calls are under way. The answer to one is of a history that is gone when the other one is answered.
        assert!(state.note_answered(&before, &of(1, 12)).unwrap());
        assert!(!state.note_answered(&before, &of(2, 11)).unwrap());
        assert!(!state.note_answered(&before, &of(2, 13)).unwrap(), "also when its numbers have passed");
        assert_eq!(state.known().unwrap(), of(1, 12), "the server is asked about this one next");
        // Answers of one reign come in any order.
        assert!(state.note_answered(&before, &of(1, 11)).unwrap());
        assert_eq!(state.known().unwrap(), of(1, 12));
        // Asked with all that is known: another leads now, in the same history.
        assert!(state.note_answered(&of(1, 12), &of(3, 14)).unwrap());
        assert_eq!(state.known().unwrap(), of(3, 14));
    }

    #[test]
    fn a_page_that_was_asked_for_before_an_answer_is_taken_only_from_its_reign() {
        let (_folder, mut state) = fresh();
        state.apply_changes(&page(of(1, 10))).unwrap();
        let before = state.known().unwrap();
        assert!(state.note_answered(&before, &of(2, 11)).unwrap());
        assert!(!state.takes(&before, &of(1, 12)).unwrap());
        assert!(state.takes(&before, &of(2, 12)).unwrap());
        assert!(state.takes(&of(2, 11), &of(4, 12)).unwrap());
        // Once the journal has told of all of it, it is what is known.
        state.apply_changes(&page(of(2, 12))).unwrap();
        assert_eq!((state.answered().unwrap(), state.known().unwrap()), (None, of(2, 12)));
        assert!(!state.note_answered(&before, &of(1, 13)).unwrap());
    }

    #[test]
    fn an_answer_that_proves_nothing_leads_nowhere() {
        let (_folder, mut state) = fresh();
        let nothing = state.known().unwrap();
        assert_eq!(nothing, Reached::default());
        assert!(state.note_answered(&nothing, &Reached { sequence: 7, ..Reached::default() }).unwrap());
        assert_eq!(state.known().unwrap(), nothing);
    }
}
