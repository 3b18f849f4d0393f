//! Commands and queries to the metadata cluster, as bytes. Typed wrappers are in `api`.
//!
//! Attempts are repeated until a deadline, also when an attempt's outcome is unknown: that is harmless because every
//! command carries a request id, whose outcome the state machine remembers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use engine::ids::{GroupId, NamespaceId};
use futures_util::{Stream, StreamExt, future, stream};
use proto::internal::{QueryRequest, WatchRequest, WatchResponse};
use proto::peer::TlsIdentity;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::asker::{self, QUESTIONS_WAITING_MAX, Question};
use super::config::ClientConfig;
use super::errors::{ProposeError, QueryError};
use super::leaders::{Attempt, Leaders};
use super::proposer::{self, PROPOSALS_WAITING_MAX, Proposal};
use crate::api::cluster_clock::learn;
use crate::app::LogTime;
use crate::raft::group::COMMAND_BYTES_MAX;
use crate::raft::peers::PeerAddressError;

/// How long after its deadline a caller still waits for the call's own account of what failed.
const DEADLINE_GRACE: Duration = Duration::from_millis(100);

/// How long a node may take to begin to tell.
const WATCH_BEGIN_TIMEOUT: Duration = Duration::from_secs(3);

/// What has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchedChanges {
    /// Namespaces, with the number that each one's journal has reached at least.
    pub notices: Vec<(NamespaceId, u64)>,
    /// Anything may have changed as well.
    pub gap: bool,
}

fn watched(message: &WatchResponse) -> WatchedChanges {
    let notices = message
        .notices
        .iter()
        .filter_map(|notice| Some((NamespaceId::from_slice(&notice.namespace).ok()?, notice.sequence)));
    WatchedChanges { notices: notices.collect(), gap: message.gap }
}

/// A client of the metadata cluster. Clones share its connections. Must be used within a tokio runtime; its tasks
/// end once all clones are dropped and what was under way has been answered.
#[derive(Clone)]
pub struct MetaClient {
    leaders: Arc<Leaders>,
    proposers: Arc<Mutex<BTreeMap<GroupId, mpsc::Sender<Proposal>>>>,
    askers: Arc<Mutex<BTreeMap<GroupId, mpsc::Sender<Question>>>>,
    tasks: TaskTracker,
}

impl MetaClient {
    /// A client of the nodes at these addresses (see [`proto::peer::MetaAddress`]). Connects when it is first used.
    ///
    /// # Errors
    /// If an address is malformed.
    pub fn new(addresses: &[String], identity: &TlsIdentity) -> Result<Self, PeerAddressError> {
        Self::with_config(addresses, identity, ClientConfig::default())
    }

    /// As [`Self::new`], with deadlines of one's own.
    ///
    /// # Errors
    /// If an address is malformed.
    pub fn with_config(
        addresses: &[String],
        identity: &TlsIdentity,
        config: ClientConfig,
    ) -> Result<Self, PeerAddressError> {
        Ok(Self {
            leaders: Arc::new(Leaders::new(addresses, identity, config)?),
            proposers: Arc::default(),
            askers: Arc::default(),
            tasks: TaskTracker::new(),
        })
    }

    fn proposer(&self, group: GroupId) -> mpsc::Sender<Proposal> {
        // Held only for a look-up or an insertion.
        let mut proposers = self.proposers.lock().unwrap_or_else(PoisonError::into_inner);
        proposers
            .entry(group)
            .or_insert_with(|| {
                let (queue, waiting) = mpsc::channel(PROPOSALS_WAITING_MAX);
                self.tasks.spawn(proposer::run(Arc::clone(&self.leaders), group, waiting));
                queue
            })
            .clone()
    }

    fn asker(&self, group: GroupId) -> mpsc::Sender<Question> {
        // Held only for a look-up or an insertion.
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        askers
            .entry(group)
            .or_insert_with(|| {
                let (queue, waiting) = mpsc::channel(QUESTIONS_WAITING_MAX);
                self.tasks.spawn(asker::run(Arc::clone(&self.leaders), group, waiting));
                queue
            })
            .clone()
    }

    /// Answers an encoded query whose reply is small and comes soon, as [`Self::query_raw`] does; those of concurrent callers
    /// travel together. Cancel safe.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn query_little(&self, group: GroupId, query: Bytes) -> Result<Bytes, QueryError> {
        let unavailable = |why: &str| QueryError::Unavailable { last_failure: why.to_owned() };
        let deadline = self.leaders.deadline();
        let (reply, replied) = oneshot::channel();
        let answered = async {
            let question = Question { query, deadline, reply };
            let gone = || unavailable("the client has stopped");
            self.asker(group).send(question).await.map_err(|_gone| gone())?;
            replied.await.unwrap_or_else(|_gone| Err(gone()))
        };
        // As for commands: each caller at its own deadline.
        tokio::time::timeout_at((deadline + DEADLINE_GRACE).into(), answered)
            .await
            .unwrap_or_else(|_elapsed| Err(unavailable("the call was still under way")))
    }

    /// Commits encoded commands in `group`, in order but not as one, and returns the encoded outcome of each.
    /// Commands of concurrent callers travel together.
    ///
    /// Every command must carry a request id, for it may be proposed more than once. Not cancel safe: commands whose
    /// caller has gone may be committed all the same.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose_raw(
        &self,
        group: GroupId,
        commands: Vec<Bytes>,
    ) -> Result<Vec<Bytes>, ProposeError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        // By itself, before it could spoil the call of others that it would travel in.
        if let Some(bytes) = commands.iter().map(Bytes::len).find(|bytes| *bytes > COMMAND_BYTES_MAX) {
            return Err(ProposeError::TooLarge { bytes, bytes_max: COMMAND_BYTES_MAX });
        }
        let unavailable = |why: &str| ProposeError::Unavailable { last_failure: why.to_owned() };
        let deadline = self.leaders.deadline();
        let (outcomes, answer) = oneshot::channel();
        let answered = async {
            let proposal = Proposal { commands, deadline, outcomes };
            let gone = || unavailable("the client has stopped");
            self.proposer(group).send(proposal).await.map_err(|_gone| gone())?;
            answer.await.unwrap_or_else(|_gone| Err(gone()))
        };
        // The call that the commands travel in ends at the latest deadline of all of them; each caller at its own.
        tokio::time::timeout_at((deadline + DEADLINE_GRACE).into(), answered)
            .await
            .unwrap_or_else(|_elapsed| Err(unavailable("the call was still under way")))
    }

    /// One attempt at watching which namespaces of `group` change, at its leader. The stream begins with a gap, and
    /// ends when that node leads no more or cannot be reached; the next attempt goes to another one.
    ///
    /// # Errors
    /// [`QueryError::Unavailable`] if the node does not answer, or does not lead.
    pub async fn watch_once(
        &self,
        group: GroupId,
    ) -> Result<impl Stream<Item = WatchedChanges> + Send + use<>, QueryError> {
        let unavailable = |why: &str| QueryError::Unavailable { last_failure: why.to_owned() };
        let (node, mut client) = self.leaders.favourite(group).ok_or_else(|| unavailable("no node"))?;
        let request = WatchRequest { group: u32::from(group.0) };
        let begun = tokio::time::timeout(WATCH_BEGIN_TIMEOUT, async {
            let mut stream = client.watch(request).await?.into_inner();
            let first = stream.message().await?;
            Ok::<_, tonic::Status>((stream, first))
        });
        let begun = match begun.await {
            Ok(begun) => begun.map_err(|status| status.to_string()),
            Err(_elapsed) => Err("no answer in time".to_owned()),
        };
        let (not_leader, why) = match begun {
            Ok((stream, Some(first))) if first.not_leader.is_none() => {
                let leaders = Arc::clone(&self.leaders);
                let rest = stream::unfold((stream, leaders), move |(mut stream, leaders)| async move {
                    match stream.message().await {
                        Ok(Some(message)) if message.not_leader.is_none() => {
                            Some((watched(&message), (stream, leaders)))
                        }
                        Ok(last) => {
                            let hint = last.and_then(|last| last.not_leader);
                            leaders.pass_on(group, node, hint.as_ref());
                            None
                        }
                        Err(_status) => {
                            leaders.pass_on(group, node, None);
                            None
                        }
                    }
                });
                return Ok(stream::once(future::ready(watched(&first))).chain(rest));
            }
            Ok((_stream, first)) => (first.and_then(|first| first.not_leader), "does not lead".to_owned()),
            Err(why) => (None, why),
        };
        self.leaders.pass_on(group, node, not_leader.as_ref());
        Err(unavailable(&why))
    }

    /// Answers an encoded query from `group`, linearizably: it sees everything that was committed before this call.
    /// Cancel safe.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn query_raw(&self, group: GroupId, query: Bytes) -> Result<Bytes, QueryError> {
        let request = QueryRequest { group: u32::from(group.0), query };
        let called = self.leaders.call(group, self.leaders.deadline(), |mut client| {
            let request = request.clone();
            async move {
                match client.query(request).await.map(tonic::Response::into_inner) {
                    Ok(response) => match response.not_leader {
                        Some(not_leader) => Attempt::NotLeader(not_leader),
                        None => {
                            learn(LogTime { time_ms: response.log_ms, wall_ms: response.wall_ms });
                            Attempt::Done(response.reply)
                        }
                    },
                    Err(status) => Attempt::Failed(status),
                }
            }
        });
        called.await.map_err(QueryError::from)
    }
}
