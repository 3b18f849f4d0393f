//! Puts proposals that wait for a group's leader together into log entries.
//!
//! Invariants:
//! - An entry is proposed with the log's time, never below the last one it proposed (nor, by the state machine,
//!   below the last one applied); see [`crate::log_clock`].
//! - At most [`ENTRIES_IN_FLIGHT_MAX`] entries are under way: what comes meanwhile waits and goes out as one.
//! - Every caller gets the outcomes of its own commands, or learns that they are unknown.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::error::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use tokio::sync::{mpsc, oneshot};

use tokio_util::sync::CancellationToken;

use super::group::GroupError;
use super::types::{Batch, Raft, RaftTypes};
use crate::app::LogTime;
use crate::log_clock::{Clocks, LogClock, own_wall_ms};

/// Proposals that may wait for a group.
pub(crate) const PROPOSALS_WAITING_MAX: usize = 4096;
/// Entries of a group that are under way at once.
const ENTRIES_IN_FLIGHT_MAX: usize = 4;
/// Commands, and bytes of them, in an entry (but at least one proposal).
const BATCH_COMMANDS_MAX: usize = 1024;
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// How far the wall clock may leave the monotonic one from one entry to the next.
const WALL_JUMP_MS_MAX: u64 = 1_000;

/// A group's time, as its leader tells it. Clones share it.
#[derive(Clone)]
pub(crate) struct GroupTime {
    pub(crate) log: Arc<Mutex<LogClock>>,
    pub(crate) clocks: Arc<Clocks>,
}

impl GroupTime {
    /// Of a new entry.
    fn stamp(&self) -> LogTime {
        let now = Instant::now();
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let own_ms = own_wall_ms();
        let wall_ms = self.clocks.agreed_ms(own_ms, log.reached(now).unwrap_or(own_ms), now);
        LogTime { time_ms: log.stamp(now, wall_ms), wall_ms }
    }

    /// By now.
    pub(crate) fn now(&self) -> LogTime {
        let (now, own_ms) = (Instant::now(), own_wall_ms());
        let reached = self.log.lock().unwrap_or_else(PoisonError::into_inner).reached(now);
        let wall_ms = self.clocks.agreed_ms(own_ms, reached.unwrap_or(own_ms), now);
        LogTime { time_ms: reached.unwrap_or(wall_ms), wall_ms }
    }
}

/// What tells entries of this process from those of any other, one that is a copy of it included: if the machine was
/// rolled back with all that ran on it, its wall clock is set right sooner or later, and that begins another mark.
struct Mark {
    mark: u64,
    at: Instant,
    wall_ms: u64,
}

impl Mark {
    fn new(now: Instant, wall_ms: u64) -> Self {
        let mut random = [0; 8];
        #[expect(clippy::expect_used, reason = "a system without random bytes starts no node")]
        getrandom::fill(&mut random).expect("the operating system gives random bytes");
        // 0 stands for none.
        Self { mark: u64::from_be_bytes(random).max(1), at: now, wall_ms }
    }

    /// The mark of an entry that is made now.
    fn at(&mut self, now: Instant, wall_ms: u64) -> u64 {
        let passed_ms = u64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        let jumped = self.wall_ms.saturating_add(passed_ms).abs_diff(wall_ms) > WALL_JUMP_MS_MAX;
        let mark = if jumped { Self::new(now, wall_ms).mark } else { self.mark };
        *self = Self { mark, at: now, wall_ms };
        mark
    }
}

/// Commands that are to be committed, and who waits for their outcomes.
pub(crate) struct Proposal {
    pub(crate) commands: Vec<Bytes>,
    pub(crate) outcomes: oneshot::Sender<Result<Vec<Bytes>, GroupError>>,
}

impl Proposal {
    fn bytes(&self) -> usize {
        self.commands.iter().map(Bytes::len).sum()
    }
}

type Waiter = (usize, oneshot::Sender<Result<Vec<Bytes>, GroupError>>);

/// Serves a group's proposals until `stop`, or until the queue's senders are gone.
pub(crate) async fn run(
    raft: Raft,
    mut queue: mpsc::Receiver<Proposal>,
    time: GroupTime,
    stop: CancellationToken,
) {
    let mut in_flight = FuturesUnordered::new();
    let mut mark = Mark::new(Instant::now(), own_wall_ms());
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
            first = queue.recv(), if in_flight.len() < ENTRIES_IN_FLIGHT_MAX => {
                let Some(first) = first else { break };
                let (commands, waiters) = gather(first, &mut queue);
                let time = time.stamp();
                let (responder, outcome) =
                    ProgressResponder::<RaftTypes, ClientWriteResult<RaftTypes>>::complete_only();
                let batch = Batch::new(time, mark.at(Instant::now(), own_wall_ms()), commands);
                match raft.client_write_ff(batch, Some(responder)).await {
                    Ok(()) => in_flight.push(async move {
                        let result = match outcome.await {
                            Ok(result) => result.map(|written| written.data.0).map_err(write_error),
                            Err(_gone) => Err(GroupError::Stopped),
                        };
                        answer(waiters, result);
                    }),
                    Err(fatal) => {
                        tracing::warn!(error = %fatal, "a proposal met a stopped group");
                        answer(waiters, Err(GroupError::Stopped));
                    }
                }
            }
        }
    }
    // Those that wait learn that the group has stopped; those under way, as soon as openraft has.
    drop(queue);
    while in_flight.next().await.is_some() {}
}

/// Takes what else is waiting, as far as one entry has room.
fn gather(first: Proposal, queue: &mut mpsc::Receiver<Proposal>) -> (Vec<Bytes>, Vec<Waiter>) {
    let (mut commands, mut waiters) = (Vec::new(), Vec::new());
    let (mut bytes, mut next) = (0, Some(first));
    while let Some(proposal) = next {
        bytes += proposal.bytes();
        waiters.push((proposal.commands.len(), proposal.outcomes));
        commands.extend(proposal.commands);
        let room = commands.len() < BATCH_COMMANDS_MAX && bytes < BATCH_BYTES_MAX;
        next = if room { queue.try_recv().ok() } else { None };
    }
    (commands, waiters)
}

fn answer(waiters: Vec<Waiter>, result: Result<Vec<Bytes>, GroupError>) {
    let mut outcomes = result.map(Vec::into_iter);
    for (count, waiter) in waiters {
        let own = match &mut outcomes {
            Ok(outcomes) => {
                let own: Vec<Bytes> = outcomes.by_ref().take(count).collect();
                if own.len() == count { Ok(own) } else { Err(GroupError::Stopped) }
            }
            Err(error) => Err(error.clone()),
        };
        // Whoever asked may have given up.
        drop(waiter.send(own));
    }
}

fn write_error(error: ClientWriteError<RaftTypes>) -> GroupError {
    match error {
        ClientWriteError::ForwardToLeader(forward) => GroupError::not_leader(forward.leader_id),
        // It may be committed all the same, by the next leader: the request id tells.
        ClientWriteError::LogEntryDiscarded(forward) => GroupError::not_leader(forward.leader_id),
        other => GroupError::Unavailable { reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn another_process_and_one_whose_wall_clock_was_set_have_marks_of_their_own() {
        let (begun, wall_ms) = (Instant::now(), 1_800_000_000_000);
        let mut mark = Mark::new(begun, wall_ms);
        let first = mark.at(begun, wall_ms);
        assert_ne!(first, Mark::new(begun, wall_ms).mark);
        for seconds in 1..100 {
            let now = begun + Duration::from_secs(seconds);
            assert_eq!(mark.at(now, wall_ms + seconds * 1_000 + 3 * seconds), first, "a clock that drifts");
        }
        // A machine that was rolled back goes on where it was; then its clock is set.
        let now = begun + Duration::from_secs(101);
        let second = mark.at(now, wall_ms + 3_600_000);
        assert_ne!(second, first);
        assert_eq!(mark.at(now, wall_ms + 3_600_000), second);
        assert_ne!(mark.at(now, wall_ms), second, "and backwards");
    }
}
