//! The `Metadata` service: commands and queries go to this node's groups, heartbeats to the warden.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use engine::ids::{ClusterId, GroupId, NodeId, ROOT_GROUP};
use futures_util::future::join_all;
use futures_util::{Stream, stream};
use proto::internal::{
    AttestRequest, AttestResponse, GroupStatus, HeartbeatRequest, HeartbeatResponse, NodeStatusRequest,
    NodeStatusResponse, NotLeader, ProposeRequest, ProposeResponse, QueryManyRequest, QueryManyResponse,
    QueryRequest, QueryResponse, WatchNotice, WatchRequest, WatchResponse,
};
use proto::peer::{Peer, Role};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::heartbeat::HeartbeatSink;
use super::space::Room;
use crate::app::LogTime;
use crate::log_clock::own_wall_ms;
use crate::raft::group::{GroupError, GroupHandle, Leadership};
use crate::standing::attester::{self, Attester};
use crate::standing::prover::WitnessId;
use crate::watchers::Watcher;

/// Commands in one call.
const COMMANDS_MAX: usize = 4096;
/// Queries in one call, and bytes of replies in one answer: what has no room is asked for again.
const QUERIES_MAX: usize = 256;
const REPLIES_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes of outcomes that one answer carries: with their lengths, and what is beside them, they fit a message.
const OUTCOMES_BYTES_MAX: usize = proto::MESSAGE_BYTES_MAX - 64 * 1024;

/// Serves all groups of a node.
pub(crate) struct MetadataService {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) members: Arc<BTreeMap<u64, String>>,
    pub(crate) groups: Arc<BTreeMap<GroupId, GroupHandle>>,
    pub(crate) heartbeats: Arc<OnceLock<Arc<dyn HeartbeatSink>>>,
    pub(crate) attester: Arc<Attester>,
    pub(crate) stop: CancellationToken,
}

impl MetadataService {
    fn authorize<T>(&self, request: &Request<T>, roles: &[Role]) -> Result<Peer, Status> {
        Peer::authorize(request, self.cluster, roles).map_err(|status| *status)
    }

    fn group(&self, group: u32) -> Result<&GroupHandle, Status> {
        u16::try_from(group)
            .ok()
            .and_then(|group| self.groups.get(&GroupId(group)))
            .ok_or_else(|| Status::not_found(format!("no metadata group {group}")))
    }

    fn not_leader(&self, leader: Option<NodeId>) -> NotLeader {
        not_leader(&self.members, leader)
    }

    /// Splits off what the caller is to try elsewhere.
    fn answer<T>(&self, result: Result<T, GroupError>) -> Result<Result<T, NotLeader>, Status> {
        match result {
            Ok(answer) => Ok(Ok(answer)),
            Err(GroupError::NotLeader { leader }) => Ok(Err(self.not_leader(leader))),
            Err(error @ GroupError::NoSpace) => Err(Status::resource_exhausted(error.to_string())),
            Err(error @ (GroupError::Unavailable { .. } | GroupError::Stopped)) => {
                Err(Status::unavailable(error.to_string()))
            }
        }
    }
}

/// The first of some replies, as many as have at most so many bytes together, but at least one.
fn first_that_fit(replies: Vec<Vec<u8>>, bytes_max: usize) -> Vec<Bytes> {
    let mut bytes = 0;
    let fits = |reply: &Vec<u8>| {
        let first = bytes == 0;
        bytes += reply.len().max(1);
        first || bytes <= bytes_max
    };
    replies.into_iter().take_while(fits).map(Bytes::from).collect()
}

/// How far a stream of notices is.
#[derive(PartialEq, Eq)]
enum WatchState {
    Begins,
    Goes,
    Ended,
}

/// A stream of notices, for as long as this node leads: followers apply later, by a heartbeat at times.
struct Watch {
    leadership: watch::Receiver<Leadership>,
    members: Arc<BTreeMap<u64, String>>,
    stop: CancellationToken,
    watcher: Watcher,
    state: WatchState,
}

impl Watch {
    fn not_leader(&self) -> Option<NotLeader> {
        let leadership = *self.leadership.borrow();
        (!leadership.is_self).then(|| not_leader(&self.members, leadership.leader))
    }

    async fn next(mut self) -> Option<(Result<WatchResponse, Status>, Self)> {
        if self.state == WatchState::Ended {
            return None;
        }
        if let Some(not_leader) = self.not_leader() {
            self.state = WatchState::Ended;
            let response = WatchResponse { not_leader: Some(not_leader), ..WatchResponse::default() };
            return Some((Ok(response), self));
        }
        if self.state == WatchState::Begins {
            self.state = WatchState::Goes;
            // Whatever came before is unknown to who listens now.
            return Some((Ok(WatchResponse { gap: true, ..WatchResponse::default() }), self));
        }
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                changed = self.leadership.changed() => {
                    changed.ok()?;
                    if let Some(not_leader) = self.not_leader() {
                        self.state = WatchState::Ended;
                        let response = WatchResponse { not_leader: Some(not_leader), ..WatchResponse::default() };
                        return Some((Ok(response), self));
                    }
                }
                told = self.watcher.next() => {
                    let notices = told.notices.into_iter().map(|(namespace, sequence)| WatchNotice {
                        namespace: Bytes::copy_from_slice(namespace.as_bytes()),
                        sequence,
                    });
                    let response = WatchResponse { notices: notices.collect(), gap: told.gap, not_leader: None };
                    return Some((Ok(response), self));
                }
            }
        }
    }
}

fn not_leader(members: &BTreeMap<u64, String>, leader: Option<NodeId>) -> NotLeader {
    let address = leader.and_then(|leader| members.get(&leader.0)).cloned().unwrap_or_default();
    NotLeader { leader: leader.map_or(0, |leader| leader.0), leader_address: address }
}

#[tonic::async_trait]
impl proto::internal::metadata_server::Metadata for MetadataService {
    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        self.authorize(&request, &[Role::Gateway, Role::Meta])?;
        let request = request.into_inner();
        if request.commands.len() > COMMANDS_MAX {
            return Err(Status::invalid_argument(format!("more than {COMMANDS_MAX} commands in a call")));
        }
        let group = self.group(request.group)?;
        let result = group.propose_all(request.commands).await;
        let LogTime { time_ms: log_ms, wall_ms } = group.time();
        Ok(Response::new(match self.answer(result)? {
            // What is too large for one answer is not put together: who proposed them asks for fewer at once.
            Ok(outcomes) if outcomes.iter().map(Bytes::len).sum::<usize>() > OUTCOMES_BYTES_MAX => {
                return Err(Status::out_of_range(
                    "the outcomes of these commands are too large for one answer",
                ));
            }
            Ok(outcomes) => ProposeResponse { outcomes, not_leader: None, wall_ms, log_ms },
            Err(not_leader) => ProposeResponse { not_leader: Some(not_leader), ..ProposeResponse::default() },
        }))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        self.authorize(&request, &[Role::Gateway, Role::Meta])?;
        let request = request.into_inner();
        let group = self.group(request.group)?;
        let result = group.query(request.query.into()).await;
        let LogTime { time_ms: log_ms, wall_ms } = group.time();
        Ok(Response::new(match self.answer(result)? {
            Ok(reply) => QueryResponse { reply: reply.into(), not_leader: None, wall_ms, log_ms },
            Err(not_leader) => QueryResponse { not_leader: Some(not_leader), ..QueryResponse::default() },
        }))
    }

    async fn query_many(
        &self,
        request: Request<QueryManyRequest>,
    ) -> Result<Response<QueryManyResponse>, Status> {
        self.authorize(&request, &[Role::Gateway, Role::Meta])?;
        let request = request.into_inner();
        if request.queries.is_empty() || request.queries.len() > QUERIES_MAX {
            return Err(Status::invalid_argument(format!("1 to {QUERIES_MAX} queries go in a call")));
        }
        let group = self.group(request.group)?;
        // Each is confirmed and answered with whatever else waits.
        let answers = join_all(request.queries.into_iter().map(|query| group.query(query.into()))).await;
        let LogTime { time_ms: log_ms, wall_ms } = group.time();
        let result = answers.into_iter().collect::<Result<Vec<_>, _>>();
        Ok(Response::new(match self.answer(result)? {
            Ok(replies) => {
                let replies = first_that_fit(replies, REPLIES_BYTES_MAX);
                QueryManyResponse { replies, not_leader: None, wall_ms, log_ms }
            }
            Err(not_leader) => {
                QueryManyResponse { not_leader: Some(not_leader), ..QueryManyResponse::default() }
            }
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.authorize(&request, &[Role::Gateway, Role::Meta])?;
        let group = self.group(request.into_inner().group)?.clone();
        // Before it looks who leads: what is applied from here on is told.
        let watcher = self.answer(group.watch())?.map_err(|_other_node| Status::internal("watch"))?;
        let watch = Watch {
            leadership: group.leadership(),
            members: Arc::clone(&self.members),
            stop: self.stop.clone(),
            watcher,
            state: WatchState::Begins,
        };
        Ok(Response::new(Box::pin(stream::unfold(watch, Watch::next))))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let peer = self.authorize(&request, &[Role::Storage])?;
        let report = request.into_inner();
        if report.node != peer.node.0 || report.cluster.as_ref() != peer.cluster.as_bytes() {
            return Err(Status::permission_denied("the report and its sender's certificate differ"));
        }
        let root = self.group(u32::from(ROOT_GROUP.0))?;
        let leadership = *root.leadership().borrow();
        if !leadership.is_self {
            let not_leader = Some(self.not_leader(leadership.leader));
            return Ok(Response::new(HeartbeatResponse { not_leader, ..HeartbeatResponse::default() }));
        }
        let sink =
            self.heartbeats.get().ok_or_else(|| Status::unavailable("this metadata node is starting"))?;
        sink.heartbeat(report).await.map(Response::new)
    }

    async fn attest(&self, request: Request<AttestRequest>) -> Result<Response<AttestResponse>, Status> {
        let peer = self.authorize(&request, &[Role::Storage, Role::Meta])?;
        let witness = match peer.role {
            Role::Meta => WitnessId::Voter(peer.node.0),
            _ => WitnessId::Storage(peer.node.0),
        };
        let answer = attester::answer(&self.attester, witness, request.into_inner(), &self.stop);
        answer.await.map(Response::new)
    }

    async fn node_status(
        &self,
        request: Request<NodeStatusRequest>,
    ) -> Result<Response<NodeStatusResponse>, Status> {
        self.authorize(&request, &[Role::Gateway, Role::Storage, Role::Meta])?;
        let groups = self.groups.iter().map(|(group, handle)| {
            let progress = handle.progress();
            GroupStatus {
                group: u32::from(group.0),
                term: progress.term,
                leader: progress.leader.map_or(0, |leader| leader.0),
                last_log_index: progress.last_log_index,
                applied_index: progress.applied_index,
                refuses: handle.refuses(),
            }
        });
        let (room, disk_free_bytes) =
            self.groups.values().next().map_or((Room::Enough, 0), GroupHandle::space);
        Ok(Response::new(NodeStatusResponse {
            node: self.node.0,
            groups: groups.collect(),
            time_ms: own_wall_ms(),
            disk_short: match room {
                Room::Enough => 0,
                Room::Reserve => 1,
                Room::None => 2,
            },
            disk_free_bytes,
        }))
    }
}
