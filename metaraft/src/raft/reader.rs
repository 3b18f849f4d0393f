//! Linearizable queries of a group: those that wait together share one read index.
//!
//! Invariant: a query is answered from a view taken after a quorum has confirmed, after the query arrived, that this
//! node leads, and after everything committed by then has been applied. So a leader that was paused or cut off,
//! while another one was elected, answers nothing from before.
//!
//! Queries that may take long (pages, lists) are confirmed with the others and answered apart from them, a few at a time:
//! nobody's look-up waits for somebody's listing.

use std::sync::Arc;
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::error::{LinearizableReadError, RaftError};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::group::GroupError;
use super::state_store::StateStore;
use super::types::{Raft, RaftTypes};

/// Queries that may wait for a group.
pub(crate) const QUERIES_WAITING_MAX: usize = 4096;
/// Queries in one round, and rounds at once.
const ROUND_QUERIES_MAX: usize = 256;
const ROUNDS_MAX: usize = 4;
/// Long queries that are answered at once, at most; fewer if there are few processors.
const LONG_AT_ONCE_MAX: usize = 4;
/// How long a round waits for the quorum and for the state to catch up.
const ROUND_TIMEOUT: Duration = Duration::from_secs(3);

/// A query, and who waits for its reply.
pub(crate) struct QueryJob {
    pub(crate) query: Vec<u8>,
    pub(crate) reply: oneshot::Sender<Result<Vec<u8>, GroupError>>,
}

/// What rounds are made with.
#[derive(Clone)]
struct Rounds {
    raft: Raft,
    state: StateStore,
    /// Long queries that are confirmed.
    long: mpsc::Sender<QueryJob>,
}

/// Serves a group's queries until `stop`, or until the queue's senders are gone.
pub(crate) async fn run(
    raft: Raft,
    state: StateStore,
    mut queue: mpsc::Receiver<QueryJob>,
    stop: CancellationToken,
) {
    let at_once = Arc::new(Semaphore::new(ROUNDS_MAX));
    let tasks = TaskTracker::new();
    let (long, long_queue) = mpsc::channel(QUERIES_WAITING_MAX);
    tasks.spawn(answer_long(state.clone(), long_queue, stop.clone()));
    let rounds = Rounds { raft, state, long };
    loop {
        let Ok(permit) = Arc::clone(&at_once).acquire_owned().await else { break };
        let first = tokio::select! {
            () = stop.cancelled() => break,
            first = queue.recv() => first,
        };
        let Some(first) = first else { break };
        let mut jobs = vec![first];
        while jobs.len() < ROUND_QUERIES_MAX
            && let Ok(next) = queue.try_recv()
        {
            jobs.push(next);
        }
        let rounds = rounds.clone();
        tasks.spawn(async move {
            rounds.round(jobs).await;
            drop(permit);
        });
    }
    drop((queue, rounds));
    tasks.close();
    tasks.wait().await;
}

impl Rounds {
    async fn round(&self, jobs: Vec<QueryJob>) {
        let confirming = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        let confirmed = tokio::time::timeout(ROUND_TIMEOUT, confirming)
            .await
            .map_err(|_elapsed| unavailable("no quorum answered in time"))
            .and_then(|result| result.map_err(|error| read_error(&error)));
        if let Err(error) = confirmed {
            jobs.into_iter().for_each(|job| drop(job.reply.send(Err(error.clone()))));
            return;
        }
        let app = self.state.app();
        let (long, short): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| app.may_take_long(&job.query));
        for job in long {
            if let Err(refused) = self.long.try_send(job) {
                let error = unavailable("too many long queries are waiting");
                // Whoever asked may have given up.
                drop(refused.into_inner().reply.send(Err(error)));
            }
        }
        answer(self.state.clone(), short).await;
    }
}

/// Answers long queries, each from a view of its own, until `stop`, or until the queue's senders are gone. Those that wait
/// then learn it by their senders' end.
async fn answer_long(state: StateStore, mut queue: mpsc::Receiver<QueryJob>, stop: CancellationToken) {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let at_once = Arc::new(Semaphore::new((processors / 2).clamp(1, LONG_AT_ONCE_MAX)));
    let tasks = TaskTracker::new();
    loop {
        let Ok(permit) = Arc::clone(&at_once).acquire_owned().await else { break };
        let job = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            job = queue.recv() => job,
        };
        let Some(job) = job else { break };
        let state = state.clone();
        tasks.spawn(async move {
            answer(state, vec![job]).await;
            drop(permit);
        });
    }
    drop(queue);
    tasks.close();
    tasks.wait().await;
}

/// Answers confirmed queries from one view.
async fn answer(state: StateStore, jobs: Vec<QueryJob>) {
    if jobs.is_empty() {
        return;
    }
    // Those that are left when it fails learn it by their senders' end.
    match tokio::task::spawn_blocking(move || state.query(jobs)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(error = %error, "queries cannot be answered"),
        Err(error) => tracing::error!(error = %error, "a query ended its thread"),
    }
}

fn unavailable(reason: &str) -> GroupError {
    GroupError::Unavailable { reason: reason.to_owned() }
}

fn read_error(error: &RaftError<RaftTypes, LinearizableReadError<RaftTypes>>) -> GroupError {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
            GroupError::not_leader(forward.leader_id)
        }
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => unavailable(&error.to_string()),
        RaftError::Fatal(_) => GroupError::Stopped,
    }
}
