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

/// Refuses a request's commands if the metadata's history is not its client's, and learns where they bring the journal.
pub(crate) struct Guard {
    step: DataStep,
    runs: Option<Vec<JournalRun>>,
    reached: Mutex<Option<(u64, JournalRun)>>,
}

impl Guard {
    /// Of a client that has seen what a cursor stands for; `None` for one that has no cursor.
    pub(crate) async fn of(core: &Core, caller: &Caller, cursor: &[u8]) -> Result<Option<Self>, Failure> {
        if cursor.is_empty() {
            return Ok(None);
        }
        let Position::At { position, since, runs } = open_cursor(core, caller, cursor).await? else {
            let message = "the server went back to an older state; look at what has changed and decide anew";
            return Err(Failure::new(tonic::Code::Aborted, "conflict", message));
        };
        let seen = Seen { number: position.max(since), runs: runs.clone() };
        let step = DataStep::JournalGuard { namespace: caller.namespace, seen };
        Ok(Some(Self { step, runs, reached: Mutex::new(None) }))
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
            if reached.is_none_or(|(before, _run)| before < number) {
                *reached = Some((number, run));
            }
        }
    }

    /// What the client has seen with the answers to all commands: sealed as a cursor is, and its number; empty and 0 if
    /// nothing was learned.
    pub(crate) async fn seen(&self, core: &Core, caller: &Caller) -> Result<(Bytes, u64), Failure> {
        let reached = *self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((number, latest)) = reached else { return Ok((Bytes::new(), 0)) };
        let mut runs = vec![latest];
        runs.extend(self.runs.iter().flatten().filter(|run| run.first < latest.first));
        runs.truncate(RUNS_TOLD_MAX);
        Ok((seal_seen(core, caller, number, runs).await?, number))
    }
}

/// As [`Guard::seen`], of a request that may have none.
pub(crate) async fn seen(
    guard: Option<&Guard>,
    core: &Core,
    caller: &Caller,
) -> Result<(Bytes, u64), Failure> {
    match guard {
        Some(guard) => guard.seen(core, caller).await,
        None => Ok((Bytes::new(), 0)),
    }
}
