//! Puts commands that wait for one group into one call, and hands each caller its outcomes.
//!
//! Invariants:
//! - A caller's commands travel in one call, in order, and its outcomes are those of exactly these commands.
//! - Where the outcomes of a call are too large for one answer, its commands are proposed again, in order, in two calls,
//!   and so on: they have been committed, and their outcomes are remembered. Only a command whose own outcome is too
//!   large fails.
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
use tonic::Code;

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

/// What a call came to, if the leader took it.
enum Answer {
    Outcomes(Vec<Bytes>),
    /// The commands have been committed, but their outcomes are too large for one answer; or one caller's commands are
    /// too large for one call.
    TooLarge,
}

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
                    let results = halved(commands, |some| propose(&leaders, group, deadline, some)).await;
                    answer(waiters, results);
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

/// Proposes commands, in two halves where their outcomes are too large for one answer; gives what each came to.
async fn halved<F>(
    commands: Vec<Bytes>,
    mut propose: impl FnMut(Vec<Bytes>) -> F,
) -> Vec<Result<Bytes, ProposeError>>
where
    F: Future<Output = Result<Answer, ProposeError>>,
{
    let mut results = Vec::with_capacity(commands.len());
    // Those that are to be proposed, the first ones last.
    let mut left = vec![commands];
    while let Some(mut some) = left.pop() {
        match propose(some.clone()).await {
            Ok(Answer::Outcomes(outcomes)) => results.extend(outcomes.into_iter().map(Ok)),
            Ok(Answer::TooLarge) if some.len() > 1 => {
                let later = some.split_off(some.len() / 2);
                left.extend([later, some]);
            }
            Ok(Answer::TooLarge) => {
                let reason = "the outcome of a command is too large to be sent".to_owned();
                results.push(Err(ProposeError::Refused { reason }));
            }
            Err(error) => results.extend(some.iter().map(|_command| Err(error.clone()))),
        }
    }
    results
}

async fn propose(
    leaders: &Leaders,
    group: GroupId,
    deadline: Instant,
    commands: Vec<Bytes>,
) -> Result<Answer, ProposeError> {
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
                        Attempt::Done(Answer::Outcomes(response.outcomes))
                    }
                },
                // So says the leader, and so does what decodes its answer here.
                Err(status) if status.code() == Code::OutOfRange => Attempt::Done(Answer::TooLarge),
                Err(status) => Attempt::Failed(status),
            }
        }
    });
    match called.await {
        Ok(Answer::Outcomes(outcomes)) if outcomes.len() != count => {
            Err(ProposeError::Refused { reason: format!("{} outcomes for {count} commands", outcomes.len()) })
        }
        Ok(answer) => Ok(answer),
        Err(GaveUp::Deadline { last_failure }) => Err(ProposeError::Unavailable { last_failure }),
        Err(GaveUp::Refused { reason }) => Err(ProposeError::Refused { reason }),
        Err(GaveUp::NoSpace) => Err(ProposeError::NoSpace),
    }
}

fn answer(waiters: Vec<Waiter>, results: Vec<Result<Bytes, ProposeError>>) {
    let mut results = results.into_iter();
    for (count, waiter) in waiters {
        let own: Vec<_> = results.by_ref().take(count).collect();
        // Whoever asked may have given up.
        drop(waiter.send(own.into_iter().collect()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

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

    /// A leader that gives outcomes as long as the commands say, and up to ten bytes of them in an answer.
    async fn leader(commands: Vec<Bytes>, calls: &Mutex<Vec<usize>>) -> Result<Answer, ProposeError> {
        calls.lock().unwrap().push(commands.len());
        let outcomes: Vec<Bytes> =
            commands.iter().map(|command| Bytes::from(vec![1; usize::from(command[0])])).collect();
        let fits = outcomes.iter().map(Bytes::len).sum::<usize>() <= 10;
        Ok(if fits { Answer::Outcomes(outcomes) } else { Answer::TooLarge })
    }

    #[tokio::test]
    async fn a_large_outcome_costs_nobody_else_theirs() {
        let calls = Mutex::default();
        let (mut waiters, mut answers) = (Vec::new(), Vec::new());
        for count in [1, 2, 1, 1] {
            let (waiter, answer) = oneshot::channel();
            waiters.push((count, waiter));
            answers.push(answer);
        }
        let commands = [4, 5, 6, 11, 3].map(|bytes: u8| Bytes::from(vec![bytes])).to_vec();
        let results = halved(commands, |some| leader(some, &calls)).await;
        answer(waiters, results);
        let mut told = Vec::new();
        for answer in answers {
            told.push(answer.await.unwrap().map(|own| own.iter().map(Bytes::len).collect::<Vec<_>>()).ok());
        }
        assert_eq!(told, [Some(vec![4]), Some(vec![5, 6]), None, Some(vec![3])]);
        // All; the first two; the last three, of which the first one goes alone, and the others do in the end.
        assert_eq!(calls.into_inner().unwrap(), [5, 2, 3, 1, 2, 1, 1]);
    }

    #[tokio::test]
    async fn a_call_that_fails_is_not_cut() {
        let calls = Mutex::new(Vec::new());
        let commands = vec![Bytes::from_static(b"a"); 3];
        let error = ProposeError::NoSpace;
        let results = halved(commands, |some| {
            calls.lock().unwrap().push(some.len());
            std::future::ready(Err(error.clone()))
        })
        .await;
        assert_eq!((results, calls.into_inner().unwrap()), (vec![Err(error); 3], vec![3]));
    }
}
