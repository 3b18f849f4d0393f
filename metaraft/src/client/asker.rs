//! Puts queries with small replies that wait for one group into one call, and hands each caller its own.
//!
//! Invariants:
//! - At most [`CALLS_MAX`] calls to a group are under way: what comes meanwhile waits and goes out as one. Queries
//!   that take long, or answer much, do not come this way: nobody's look-up waits for somebody's listing.
//! - A reply is to the query in its place. What an answer had no room for is asked again in another call.
//! - Queries change nothing: a call is repeated until the latest deadline of those in it, whatever became of the last one.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use engine::ids::GroupId;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::internal::QueryManyRequest;
use tokio::sync::{mpsc, oneshot};

use super::errors::QueryError;
use super::leaders::{Attempt, GaveUp, Leaders};
use crate::api::cluster_clock::learn;
use crate::app::LogTime;

/// Callers that may wait for a group.
pub(crate) const QUESTIONS_WAITING_MAX: usize = 4096;
/// Calls to a group that are under way at once.
const CALLS_MAX: usize = 4;
/// Queries, and bytes of them, in a call (but at least one).
const CALL_QUERIES_MAX: usize = 64;
const CALL_BYTES_MAX: usize = 256 * 1024;

/// A caller's query.
pub(crate) struct Question {
    pub(crate) query: Bytes,
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<Result<Bytes, QueryError>>,
}

/// Serves the questions to one group until the queue's senders are gone.
pub(crate) async fn run(leaders: Arc<Leaders>, group: GroupId, mut queue: mpsc::Receiver<Question>) {
    let mut calls = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = calls.next(), if !calls.is_empty() => {}
            first = queue.recv(), if calls.len() < CALLS_MAX => {
                let Some(first) = first else { break };
                let questions = gather(first, &mut queue);
                let leaders = Arc::clone(&leaders);
                calls.push(async move { ask_all(questions, |deadline, some| ask(&leaders, group, deadline, some)).await });
            }
        }
    }
    while calls.next().await.is_some() {}
}

/// Takes what else is waiting, as far as one call has room. Whoever has given up is left out.
fn gather(first: Question, queue: &mut mpsc::Receiver<Question>) -> Vec<Question> {
    let (mut questions, mut bytes, mut next) = (Vec::new(), 0, Some(first));
    while let Some(question) = next {
        if !question.reply.is_closed() {
            bytes += question.query.len();
            questions.push(question);
        }
        let room = questions.len() < CALL_QUERIES_MAX && bytes < CALL_BYTES_MAX;
        next = if room { queue.try_recv().ok() } else { None };
    }
    questions
}

/// Asks until each has its reply: an answer is to the first of those that were asked, at least one.
async fn ask_all<F>(mut questions: Vec<Question>, mut ask: impl FnMut(Instant, Vec<Bytes>) -> F)
where
    F: Future<Output = Result<Vec<Bytes>, QueryError>>,
{
    while let Some(deadline) = questions.iter().map(|question| question.deadline).max() {
        let queries: Vec<Bytes> = questions.iter().map(|question| question.query.clone()).collect();
        let told = match ask(deadline, queries).await {
            Ok(replies) if (1..=questions.len()).contains(&replies.len()) => {
                replies.into_iter().map(Ok).collect::<Vec<_>>()
            }
            Ok(replies) => {
                let reason = format!("{} replies to {} queries", replies.len(), questions.len());
                vec![Err(QueryError::Refused { reason }); questions.len()]
            }
            Err(error) => vec![Err(error); questions.len()],
        };
        let rest = questions.split_off(told.len());
        for (question, told) in questions.into_iter().zip(told) {
            // Whoever asked may have given up.
            drop(question.reply.send(told));
        }
        questions = rest;
    }
}

async fn ask(
    leaders: &Leaders,
    group: GroupId,
    deadline: Instant,
    queries: Vec<Bytes>,
) -> Result<Vec<Bytes>, QueryError> {
    let request = QueryManyRequest { group: u32::from(group.0), queries };
    let called = leaders.call(group, deadline, |mut client| {
        let request = request.clone();
        async move {
            match client.query_many(request).await.map(tonic::Response::into_inner) {
                Ok(response) => match response.not_leader {
                    Some(not_leader) => Attempt::NotLeader(not_leader),
                    None => {
                        learn(LogTime { time_ms: response.log_ms, wall_ms: response.wall_ms });
                        Attempt::Done(response.replies)
                    }
                },
                Err(status) => Attempt::Failed(status),
            }
        }
    });
    called.await.map_err(QueryError::from)
}

impl From<GaveUp> for QueryError {
    fn from(gave_up: GaveUp) -> Self {
        match gave_up {
            GaveUp::Deadline { last_failure } => Self::Unavailable { last_failure },
            GaveUp::Refused { reason } => Self::Refused { reason },
            // Reading takes no space: no leader says so.
            GaveUp::NoSpace => Self::Refused { reason: "a query was refused for lack of space".to_owned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn question(byte: u8) -> (Question, oneshot::Receiver<Result<Bytes, QueryError>>) {
        let (reply, replied) = oneshot::channel();
        (Question { query: vec![byte].into(), deadline: Instant::now(), reply }, replied)
    }

    #[tokio::test]
    async fn each_gets_the_reply_to_its_own_however_few_an_answer_has_room_for() {
        let (questions, replies): (Vec<_>, Vec<_>) = (0..7).map(question).unzip();
        let calls = Mutex::new(Vec::new());
        ask_all(questions, |_deadline, queries| {
            calls.lock().unwrap().push(queries.len());
            let first = queries.into_iter().take(3).map(|query| Bytes::from(vec![query[0] + 100])).collect();
            std::future::ready(Ok(first))
        })
        .await;
        for (byte, reply) in (100..).zip(replies) {
            assert_eq!(reply.await.unwrap().unwrap(), vec![byte]);
        }
        assert_eq!(calls.into_inner().unwrap(), [7, 4, 1]);
    }

    #[tokio::test]
    async fn a_failure_or_a_wrong_number_of_replies_is_told_to_all() {
        for answer in
            [Ok(Vec::new()), Ok(vec![Bytes::new(); 9]), Err(QueryError::Refused { reason: "x".into() })]
        {
            let (questions, replies): (Vec<_>, Vec<_>) = (0..2).map(question).unzip();
            ask_all(questions, |_deadline, _queries| std::future::ready(answer.clone())).await;
            for reply in replies {
                assert!(reply.await.unwrap().is_err());
            }
        }
    }

    #[tokio::test]
    async fn whoever_has_given_up_is_not_asked_for() {
        let (sender, mut queue) = mpsc::channel(8);
        let given_up = |byte| {
            let (question, reply) = question(byte);
            drop(reply);
            question
        };
        let (kept, _reply) = question(3);
        for question in [given_up(2), kept] {
            sender.send(question).await.unwrap();
        }
        let gathered = gather(given_up(1), &mut queue);
        assert_eq!(gathered.iter().map(|question| question.query[0]).collect::<Vec<_>>(), [3]);
    }
}
