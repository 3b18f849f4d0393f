//! How a group's openraft calls its peers: openraft's own messages, encoded, over the internal `Raft` service.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use engine::ids::GroupId;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use proto::internal::raft_client::RaftClient;
use proto::internal::{RaftRequest, RaftResponse, SnapshotPart, SnapshotProgress};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use super::peers::{Lane, Peers};
use super::snapshot::{SnapshotData, send_parts};
use super::types::{RaftTypes, SnapshotMeta, Vote, decode, encode};
use crate::standing::prover::Standing;

type Snapshot = openraft::type_config::alias::SnapshotOf<RaftTypes, SnapshotData>;

/// How long the peer may take to make entries durable; openraft's own limit is for small messages.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Parts of a snapshot that are read ahead of the network.
const SNAPSHOT_PARTS_AHEAD_MAX: usize = 2;
/// Pause before an unreachable peer is tried again.
const UNREACHABLE_BACKOFF: Duration = Duration::from_millis(150);

/// A vote that is asked for, really or to see whether it would be granted.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ballot {
    pub(crate) pre_vote: bool,
    pub(crate) request: VoteRequest<RaftTypes>,
}

/// What comes before the parts of a snapshot.
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
}

/// Makes a group's connections.
pub(crate) struct GroupNetwork {
    pub(crate) group: GroupId,
    pub(crate) node: u64,
    pub(crate) peers: Arc<Peers>,
    /// A node that does not vote sends nothing either: it may be a leader that was put back from a copy.
    pub(crate) standing: watch::Receiver<Standing>,
    /// How long a snapshot may take to get on by nothing at all; there is no bound for the whole.
    pub(crate) snapshot_stall_max: Duration,
}

impl RaftNetworkFactory<RaftTypes> for GroupNetwork {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: u64, _node: &openraft::BasicNode) -> PeerNetwork {
        let (peers, standing) = (Arc::clone(&self.peers), self.standing.clone());
        let snapshot_stall_max = self.snapshot_stall_max;
        PeerNetwork { group: self.group, node: self.node, target, peers, standing, snapshot_stall_max }
    }
}

/// One peer, for one group.
pub(crate) struct PeerNetwork {
    group: GroupId,
    node: u64,
    target: u64,
    peers: Arc<Peers>,
    standing: watch::Receiver<Standing>,
    snapshot_stall_max: Duration,
}

enum CallError {
    TimedOut(Duration),
    Failed(String),
}

impl PeerNetwork {
    fn client(&self, lane: Lane) -> Result<RaftClient<Channel>, CallError> {
        if !self.standing.borrow().votes() {
            return Err(CallError::Failed("this node does not vote".to_owned()));
        }
        let unknown = || CallError::Failed(format!("node {} is not in the configuration", self.target));
        self.peers.client(self.target, lane).ok_or_else(unknown)
    }

    fn request(&self, message: &impl Serialize) -> Result<RaftRequest, CallError> {
        let payload = encode(message).map_err(|error| CallError::Failed(error.to_string()))?;
        Ok(RaftRequest { group: u32::from(self.group.0), payload: payload.into() })
    }

    fn rpc_error(&self, action: RPCTypes, error: CallError) -> RPCError<RaftTypes> {
        match error {
            CallError::TimedOut(timeout) => {
                RPCError::Timeout(Timeout { action, id: self.node, target: self.target, timeout })
            }
            CallError::Failed(why) => RPCError::Unreachable(Unreachable::from_string(why)),
        }
    }
}

/// Waits for an answer and decodes it.
async fn answer<T: DeserializeOwned>(
    timeout: Duration,
    call: impl Future<Output = Result<Response<RaftResponse>, Status>>,
) -> Result<T, CallError> {
    let response = match tokio::time::timeout(timeout, call).await {
        Err(_elapsed) => return Err(CallError::TimedOut(timeout)),
        Ok(Err(status)) if status.code() == Code::DeadlineExceeded => {
            return Err(CallError::TimedOut(timeout));
        }
        Ok(Err(status)) => return Err(CallError::Failed(status.to_string())),
        Ok(Ok(response)) => response.into_inner(),
    };
    answered(response)
}

/// Decodes an answer.
fn answered<T: DeserializeOwned>(response: RaftResponse) -> Result<T, CallError> {
    if !response.error.is_empty() {
        return Err(CallError::Failed(response.error));
    }
    decode(&response.payload).map_err(|error| CallError::Failed(error.to_string()))
}

/// Waits for a snapshot to be received and installed, for as long as it gets on.
async fn installed<T: DeserializeOwned>(
    stall_max: Duration,
    call: impl Future<Output = Result<Response<Streaming<SnapshotProgress>>, Status>>,
) -> Result<T, CallError> {
    let failed = |status: Status| CallError::Failed(status.to_string());
    let stalled = || CallError::TimedOut(stall_max);
    let begun = tokio::time::timeout(stall_max, call).await.map_err(|_elapsed| stalled())?;
    let mut progresses = begun.map_err(failed)?.into_inner();
    let (mut count, mut deadline) = (None, Instant::now() + stall_max);
    loop {
        let next = tokio::time::timeout_at(deadline, progresses.message()).await;
        let Some(progress) = next.map_err(|_elapsed| stalled())?.map_err(failed)? else {
            return Err(CallError::Failed("the receiver of a snapshot said nothing at its end".to_owned()));
        };
        if let Some(done) = progress.done {
            return answered(done);
        }
        if count.replace(progress.count) != Some(progress.count) {
            deadline = Instant::now() + stall_max;
        }
    }
}

impl RaftNetworkV2<RaftTypes> for PeerNetwork {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftTypes>, RPCError<RaftTypes>> {
        let (lane, timeout) = if rpc.entries.is_empty() {
            (Lane::Control, option.hard_ttl())
        } else {
            (Lane::Bulk, APPEND_TIMEOUT)
        };
        let call = async {
            let (mut client, request) = (self.client(lane)?, self.request(&rpc)?);
            answer(timeout, client.append(request)).await
        };
        call.await.map_err(|error| self.rpc_error(RPCTypes::AppendEntries, error))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftTypes>, RPCError<RaftTypes>> {
        let ballot = Ballot { pre_vote: false, request };
        let call = async {
            let (mut client, request) = (self.client(Lane::Control)?, self.request(&ballot)?);
            answer(option.hard_ttl(), client.vote(request)).await
        };
        call.await.map_err(|error| self.rpc_error(RPCTypes::Vote, error))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftTypes>, RPCError<RaftTypes>> {
        let ballot = Ballot { pre_vote: true, request };
        let call = async {
            let (mut client, request) = (self.client(Lane::Control)?, self.request(&ballot)?);
            answer(option.hard_ttl(), client.vote(request)).await
        };
        call.await.map_err(|error| self.rpc_error(RPCTypes::Vote, error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<RaftTypes>, StreamingError<RaftTypes>> {
        let failed =
            |error: CallError| StreamingError::from(self.rpc_error(RPCTypes::InstallSnapshot, error));
        let SnapshotData::Own(state) = snapshot.snapshot else {
            let why = "a received snapshot is installed, not sent on";
            return Err(StreamingError::Network(NetworkError::from_string(why)));
        };
        let header = encode(&SnapshotHeader { vote, meta: snapshot.meta })
            .map_err(|error| failed(CallError::Failed(error.to_string())))?;
        let group = u32::from(self.group.0);
        let (parts, stream) = mpsc::channel(SNAPSHOT_PARTS_AHEAD_MAX);
        let reading = tokio::task::spawn_blocking(move || {
            let part = SnapshotPart { group, header: header.into(), data: bytes::Bytes::new() };
            if parts.blocking_send(part).is_err() {
                return Ok(());
            }
            send_parts(&state, |data| {
                let part = SnapshotPart { group, header: bytes::Bytes::new(), data: data.into() };
                parts.blocking_send(part).is_ok()
            })
        });
        let mut client = self.client(Lane::Bulk).map_err(failed)?;
        let call = client.install_snapshot(ReceiverStream::new(stream));
        let answered = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answered = installed(self.snapshot_stall_max, call) => answered,
        };
        // The stream is gone by now, so the reader has ended or is about to.
        match reading.await {
            Ok(Ok(())) => answered.map_err(failed),
            Ok(Err(error)) => Err(failed(CallError::Failed(format!("cannot read the state: {error}")))),
            Err(error) => Err(failed(CallError::Failed(format!("cannot read the state: {error}")))),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<RaftTypes>, RPCError<RaftTypes>> {
        let call = async {
            let (mut client, request) = (self.client(Lane::Control)?, self.request(&request)?);
            answer(option.hard_ttl(), client.transfer_leader(request)).await
        };
        call.await.map_err(|error| self.rpc_error(RPCTypes::TransferLeader, error))
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(UNREACHABLE_BACKOFF)))
    }
}
