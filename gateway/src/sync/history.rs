//! What a sync client's changes rest on: the history of its tree that it knows.
//!
//! Metadata that went back to an older state issues ids and versions again. A change that names them is refused if its
//! client knows of another history; and with its answer goes what proves, later, of which history the answer was.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use metaraft::model::command::DataStep;
use metaraft::model::journal::{JournalRun, RUNS_TOLD_MAX, Seen};
use metaraft::model::outcome::StepOutcome;

use crate::auth::Caller;
use crate::core::Core;
use crate::failure::Failure;
use crate::sync::changes::{Position, open_cursor, seal_seen};

/// A client knows of another history than the metadata's.
pub(crate) fn went_back() -> Failure {
    let message = "the server went back to an older state; look at what has changed and decide anew";
    Failure::new(tonic::Code::Aborted, "conflict", message)
}

/// Refuses a request's commands if the metadata's history is not its client's, and learns where they bring the journal.
pub(crate) struct Guard {
    step: DataStep,
    runs: Option<Vec<JournalRun>>,
    reached: Mutex<At>,
}

/// Where a request's commands have found the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Unknown,
    Number(u64, JournalRun),
    /// In more than one reign: their answers may be of two histories.
    Mixed,
}

impl Guard {
    /// Of a client that has seen what a cursor stands for; `None` for one that has no cursor.
    pub(crate) async fn of(core: &Core, caller: &Caller, cursor: &[u8]) -> Result<Option<Self>, Failure> {
        if cursor.is_empty() {
            return Ok(None);
        }
        let Position::At { position, since, runs } = open_cursor(core, caller, cursor).await? else {
            return Err(went_back());
        };
        let seen = Seen { number: position.max(since), runs: runs.clone() };
        let step = DataStep::JournalGuard { namespace: caller.namespace, seen };
        Ok(Some(Self { step, runs, reached: Mutex::new(At::Unknown) }))
    }

    /// The last step of each command.
    pub(crate) fn step(&self) -> DataStep {
        self.step.clone()
    }

    /// Takes the answer to that step from a command's outcomes.
    pub(crate) fn take(&self, outcomes: &mut Vec<StepOutcome>) {
        if let Some(StepOutcome::JournalAt { number, run }) =
            outcomes.pop_if(|last| matches!(last, StepOutcome::JournalAt { .. }))
            && let Some(run) = run
        {
            // Held for a comparison.
            let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
            *reached = match *reached {
                At::Number(_, before) if before.reign != run.reign => At::Mixed,
                At::Number(before, run) if before >= number => At::Number(before, run),
                At::Mixed => At::Mixed,
                _ => At::Number(number, run),
            };
        }
    }

    /// Where the answers to all commands have led the client; nothing if that was not learned.
    async fn reached(&self, core: &Core, caller: &Caller) -> Result<Reached, Failure> {
        let reached = *self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, latest) = match reached {
            At::Unknown => return Ok(Reached::default()),
            At::Number(number, latest) => (number, latest),
            At::Mixed => {
                let message =
                    "the metadata's leader changed meanwhile; look at what has changed and decide anew";
                return Err(Failure::new(tonic::Code::Aborted, "conflict", message));
            }
        };
        let mut runs = vec![latest];
        runs.extend(self.runs.iter().flatten().filter(|run| run.first < latest.first));
        runs.truncate(RUNS_TOLD_MAX);
        Reached::sealed(core, caller, number, runs).await
    }
}

/// A place in a journal, as clients are told of it with an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reached {
    /// Sealed as a cursor is; empty: nothing is told.
    pub(crate) seen: Bytes,
    pub(crate) sequence: u64,
    pub(crate) reign: Bytes,
}

impl Reached {
    /// A number, with the runs up to it, the latest first.
    pub(crate) async fn sealed(
        core: &Core,
        caller: &Caller,
        sequence: u64,
        runs: Vec<JournalRun>,
    ) -> Result<Self, Failure> {
        let reign = reign_of(&runs);
        Ok(Self { seen: seal_seen(core, caller, sequence, runs).await?, sequence, reign })
    }

    /// Where a request's answers have led, which may have had no guard.
    pub(crate) async fn of(guard: Option<&Guard>, core: &Core, caller: &Caller) -> Result<Self, Failure> {
        match guard {
            Some(guard) => guard.reached(core, caller).await,
            None => Ok(Self::default()),
        }
    }
}

/// What clients compare reigns by: of the latest of some runs; empty of none.
pub(crate) fn reign_of(runs: &[JournalRun]) -> Bytes {
    runs.first().map_or_else(Bytes::new, |run| {
        [run.reign.term.to_be_bytes(), run.reign.mark.to_be_bytes()].concat().into()
    })
}
