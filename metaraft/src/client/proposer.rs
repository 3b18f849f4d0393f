//! Puts commands that wait for one group into one call, and hands each caller its outcomes.
//!
//! Invariants:
//! - A caller's commands travel in one call, in order, and its outcomes are those of exactly these commands.
//! - A call has at most [`CALL_BYTES_MAX`] bytes, or is one caller's alone: what is large holds up nobody else.
//! - At most [`CALLS_MAX`] calls to a group are under way: what comes meanwhile waits and goes out as one.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use engine::ids::GroupId;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::internal::ProposeRequest;
use tokio::sync::{mpsc, oneshot};

use super::errors::ProposeError;
use super::leaders::{Attempt, GaveUp, Leaders};
use crate::api::cluster_clock::learn;
use crate::app::LogTime;

/// Callers that may wait for a group.
pub(crate) const PROPOSALS_WAITING_MAX: usize = 4096;
/// Calls to a group that are under way at once.
const CALLS_MAX: usize = 8;
/// Commands, and bytes of them, in a call (but at least one caller's).
const CALL_COMMANDS_MAX: usize = 1024;
const CALL_BYTES_MAX: usize = 1024 * 1024;

/// A caller's commands.
pub(crate) struct Proposal {
    pub(crate) commands: Vec<Bytes>,
    pub(crate) deadline: Instant,
    pub(crate) outcomes: oneshot::Sender<Result<Vec<Bytes>, ProposeError>>,
}

type Waiter = (usize, oneshot::Sender<Result<Vec<Bytes>, ProposeError>>);

/// Serves the proposals to one group until the queue's senders are gone.
pub(crate) async fn run(leaders: Arc<Leaders>, group: GroupId, mut queue: mpsc::Receiver<Proposal>) {
    let mut calls = FuturesUnordered::new();
    let mut left = None;
    loop {
        tokio::select! {
            Some(()) = calls.next(), if !calls.is_empty() => {}
            first = next(&mut left, &mut queue), if calls.len() < CALLS_MAX => {
                let Some(first) = first else { break };
                let (deadline, commands, waiters) = gather(first, &mut queue, &mut left);
                let leaders = Arc::clone(&leaders);
                calls.push(async move {
                    let result = propose(&leaders, group, deadline, commands).await;
                    answer(waiters, result);
                });
            }
        }
    }
    while calls.next().await.is_some() {}
}

/// What is left from before, or comes next. Cancel safe.
async fn next(left: &mut Option<Proposal>, queue: &mut mpsc::Receiver<Proposal>) -> Option<Proposal> {
    match left.take() {
        Some(proposal) => Some(proposal),
        None => queue.recv().await,
    }
}

/// Takes what else is waiting, as far as one call has room, and leaves over what was taken and does not fit; the
/// deadline is the latest one.
fn gather(
    first: Proposal,
    queue: &mut mpsc::Receiver<Proposal>,
    left: &mut Option<Proposal>,
) -> (Instant, Vec<Bytes>, Vec<Waiter>) {
    let mut deadline = first.deadline;
    let (mut commands, mut waiters) = (Vec::new(), Vec::new());
    let (mut bytes, mut next) = (0, Some(first));
    while let Some(proposal) = next {
        let more = proposal.commands.iter().map(Bytes::len).sum::<usize>();
        if !waiters.is_empty() && bytes + more > CALL_BYTES_MAX {
            *left = Some(proposal);
            break;
        }
        deadline = deadline.max(proposal.deadline);
        bytes += more;
        waiters.push((proposal.commands.len(), proposal.outcomes));
        commands.extend(proposal.commands);
        let room = commands.len() < CALL_COMMANDS_MAX && bytes < CALL_BYTES_MAX;
        next = if room { queue.try_recv().ok() } else { None };
    }
    (deadline, commands, waiters)
}

async fn propose(
    leaders: &Leaders,
    group: GroupId,
    deadline: Instant,
    commands: Vec<Bytes>,
) -> Result<Vec<Bytes>, ProposeError> {
    let count = commands.len();
    let request = ProposeRequest { group: u32::from(group.0), commands };
    let called = leaders.call(group, deadline, |mut client| {
        let request = request.clone();
        async move {
            match client.propose(request).await.map(tonic::Response::into_inner) {
                Ok(response) => match response.not_leader {
                    Some(not_leader) => Attempt::NotLeader(not_leader),
                    None => {
                        learn(LogTime { time_ms: response.log_ms, wall_ms: response.wall_ms });
                        Attempt::Done(response.outcomes)
                    }
                },
                Err(status) => Attempt::Failed(status),
            }
        }
    });
    match called.await {
        Ok(outcomes) if outcomes.len() == count => Ok(outcomes),
        Ok(outcomes) => {
            Err(ProposeError::Refused { reason: format!("{} outcomes for {count} commands", outcomes.len()) })
        }
        Err(GaveUp::Deadline { last_failure }) => Err(ProposeError::Unavailable { last_failure }),
        Err(GaveUp::Refused { reason }) => Err(ProposeError::Refused { reason }),
        Err(GaveUp::NoSpace) => Err(ProposeError::NoSpace),
    }
}

fn answer(waiters: Vec<Waiter>, result: Result<Vec<Bytes>, ProposeError>) {
    match result {
        Ok(outcomes) => {
            let mut outcomes = outcomes.into_iter();
            for (count, waiter) in waiters {
                // Whoever asked may have given up.
                drop(waiter.send(Ok(outcomes.by_ref().take(count).collect())));
            }
        }
        Err(error) => waiters.into_iter().for_each(|(_, waiter)| drop(waiter.send(Err(error.clone())))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(bytes: usize) -> Proposal {
        let (outcomes, _answer) = oneshot::channel();
        Proposal { commands: vec![Bytes::from(vec![0; bytes])], deadline: Instant::now(), outcomes }
    }

    #[tokio::test]
    async fn what_is_large_travels_alone() {
        let (sender, mut queue) = mpsc::channel(8);
        for bytes in [10, 20, CALL_BYTES_MAX, 30, 40] {
            sender.send(proposal(bytes)).await.unwrap();
        }
        drop(sender);
        let (mut left, mut calls) = (None, Vec::new());
        while let Some(first) = next(&mut left, &mut queue).await {
            let (_deadline, commands, waiters) = gather(first, &mut queue, &mut left);
            assert_eq!(commands.len(), waiters.len());
            calls.push(commands.iter().map(Bytes::len).collect::<Vec<_>>());
        }
        assert_eq!(calls, [vec![10, 20], vec![CALL_BYTES_MAX], vec![30, 40]]);
    }
}
