//! Commands and queries to the metadata cluster, as bytes. Typed wrappers are in `api`.
//!
//! Attempts are repeated until a deadline, also when an attempt's outcome is unknown: that is harmless because every
//! command carries a request id, whose outcome the state machine remembers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use engine::ids::GroupId;
use proto::internal::QueryRequest;
use proto::peer::TlsIdentity;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::config::ClientConfig;
use super::errors::{ProposeError, QueryError};
use super::leaders::{Attempt, GaveUp, Leaders};
use super::proposer::{self, PROPOSALS_WAITING_MAX, Proposal};
use crate::raft::peers::PeerAddressError;

/// How long after its deadline a caller still waits for the call's own account of what failed.
const DEADLINE_GRACE: Duration = Duration::from_millis(100);

/// A client of the metadata cluster. Clones share its connections. Must be used within a tokio runtime; its tasks
/// end once all clones are dropped and what was under way has been answered.
#[derive(Clone)]
pub struct MetaClient {
    leaders: Arc<Leaders>,
    proposers: Arc<Mutex<BTreeMap<GroupId, mpsc::Sender<Proposal>>>>,
    tasks: TaskTracker,
}

impl MetaClient {
    /// A client of the nodes at these addresses (host:port). Connects when it is first used.
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
                        None => Attempt::Done(response.reply),
                    },
                    Err(status) => Attempt::Failed(status),
                }
            }
        });
        match called.await {
            Ok(reply) => Ok(reply),
            Err(GaveUp::Deadline { last_failure }) => Err(QueryError::Unavailable { last_failure }),
            Err(GaveUp::Refused { reason }) => Err(QueryError::Refused { reason }),
            // Reading takes no space: no leader says so.
            Err(GaveUp::NoSpace) => {
                Err(QueryError::Refused { reason: "a query was refused for lack of space".to_owned() })
            }
        }
    }
}
