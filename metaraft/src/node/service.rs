//! The `Metadata` service: commands and queries go to this node's groups, heartbeats to the warden.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use engine::ids::{ClusterId, GroupId, NodeId, ROOT_GROUP};
use proto::internal::{
    GroupStatus, HeartbeatRequest, HeartbeatResponse, NodeStatusRequest, NodeStatusResponse, NotLeader,
    ProposeRequest, ProposeResponse, QueryRequest, QueryResponse,
};
use proto::peer::{Peer, Role};
use tonic::{Request, Response, Status};

use super::heartbeat::HeartbeatSink;
use crate::raft::group::{GroupError, GroupHandle};

/// Commands in one call.
const COMMANDS_MAX: usize = 4096;

/// Serves all groups of a node.
pub(crate) struct MetadataService {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) members: Arc<BTreeMap<u64, String>>,
    pub(crate) groups: Arc<BTreeMap<GroupId, GroupHandle>>,
    pub(crate) heartbeats: Arc<OnceLock<Arc<dyn HeartbeatSink>>>,
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
        let address = leader.and_then(|leader| self.members.get(&leader.0)).cloned().unwrap_or_default();
        NotLeader { leader: leader.map_or(0, |leader| leader.0), leader_address: address }
    }

    /// Splits off what the caller is to try elsewhere.
    fn answer<T>(&self, result: Result<T, GroupError>) -> Result<Result<T, NotLeader>, Status> {
        match result {
            Ok(answer) => Ok(Ok(answer)),
            Err(GroupError::NotLeader { leader }) => Ok(Err(self.not_leader(leader))),
            Err(error @ GroupError::TooLarge { .. }) => Err(Status::invalid_argument(error.to_string())),
            Err(error @ GroupError::NoSpace) => Err(Status::resource_exhausted(error.to_string())),
            Err(error @ (GroupError::Unavailable { .. } | GroupError::Stopped)) => {
                Err(Status::unavailable(error.to_string()))
            }
        }
    }
}

#[tonic::async_trait]
impl proto::internal::metadata_server::Metadata for MetadataService {
    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        self.authorize(&request, &[Role::Gateway, Role::Meta])?;
        let request = request.into_inner();
        if request.commands.len() > COMMANDS_MAX {
            return Err(Status::invalid_argument(format!("more than {COMMANDS_MAX} commands in a call")));
        }
        let result = self.group(request.group)?.propose_all(request.commands).await;
        Ok(Response::new(match self.answer(result)? {
            Ok(outcomes) => ProposeResponse { outcomes, not_leader: None },
            Err(not_leader) => ProposeResponse { outcomes: Vec::new(), not_leader: Some(not_leader) },
        }))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        self.authorize(&request, &[Role::Gateway, Role::Meta])?;
        let request = request.into_inner();
        let result = self.group(request.group)?.query(request.query.into()).await;
        Ok(Response::new(match self.answer(result)? {
            Ok(reply) => QueryResponse { reply: reply.into(), not_leader: None },
            Err(not_leader) => QueryResponse { reply: Bytes::new(), not_leader: Some(not_leader) },
        }))
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
            return Ok(Response::new(HeartbeatResponse { not_leader, volumes: Vec::new() }));
        }
        let sink =
            self.heartbeats.get().ok_or_else(|| Status::unavailable("this metadata node is starting"))?;
        sink.heartbeat(report).await.map(Response::new)
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
            }
        });
        Ok(Response::new(NodeStatusResponse { node: self.node.0, groups: groups.collect() }))
    }
}
