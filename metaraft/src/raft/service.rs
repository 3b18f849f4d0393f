//! The internal `Raft` service: what peers send goes to the group's openraft. Metadata nodes of this cluster only.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::ids::{ClusterId, GroupId};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest};
use proto::internal::{RaftRequest, RaftResponse, SnapshotPart};
use proto::peer::{Peer, Role};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, mpsc, watch};
use tonic::{Request, Response, Status, Streaming};

use super::network::{Ballot, SnapshotHeader};
use super::snapshot::{ReceivedSnapshot, SnapshotData, SnapshotReceiver};
use super::state_store::StateStore;
use super::types::{Raft, RaftTypes, decode, encode};
use crate::standing::prover::Standing;

type Snapshot = openraft::type_config::alias::SnapshotOf<RaftTypes, SnapshotData>;

/// How long a sender of a snapshot may be silent.
const PART_TIMEOUT: Duration = Duration::from_secs(30);
/// Parts that wait for the disk.
const PARTS_WAITING_MAX: usize = 2;

/// A group as its peers reach it.
pub(crate) struct GroupPort {
    pub(crate) raft: Raft,
    /// Held while a snapshot is received: one at a time.
    receiving: Mutex<()>,
}

impl GroupPort {
    pub(crate) fn new(raft: Raft) -> Self {
        Self { raft, receiving: Mutex::new(()) }
    }
}

/// Serves all groups of a node.
pub(crate) struct RaftService {
    pub(crate) cluster: ClusterId,
    pub(crate) groups: Arc<BTreeMap<GroupId, GroupPort>>,
    /// Whether this node votes; if not it takes nothing from peers either.
    pub(crate) standing: watch::Receiver<Standing>,
    /// Where snapshots are kept while they are received.
    pub(crate) directory: PathBuf,
}

impl RaftService {
    fn authorize<T>(&self, request: &Request<T>) -> Result<(), Status> {
        Peer::authorize(request, self.cluster, &[Role::Meta]).map_err(|status| *status)?;
        let standing = self.standing.borrow();
        if standing.votes() { Ok(()) } else { Err(Status::unavailable(standing.reason())) }
    }

    fn port(&self, group: u32) -> Result<&GroupPort, Status> {
        u16::try_from(group)
            .ok()
            .and_then(|group| self.groups.get(&GroupId(group)))
            .ok_or_else(|| Status::not_found(format!("no group {group} on this node")))
    }

    fn open<T: DeserializeOwned>(&self, request: &Request<RaftRequest>) -> Result<(&GroupPort, T), Status> {
        self.authorize(request)?;
        let port = self.port(request.get_ref().group)?;
        let message = decode(&request.get_ref().payload)
            .map_err(|error| Status::invalid_argument(format!("raft message: {error}")))?;
        Ok((port, message))
    }
}

fn respond<T: Serialize, E: std::fmt::Display>(
    result: Result<T, E>,
) -> Result<Response<RaftResponse>, Status> {
    let encoded = result
        .map_err(|error| error.to_string())
        .and_then(|answer| encode(&answer).map_err(|error| error.to_string()));
    Ok(Response::new(match encoded {
        Ok(payload) => RaftResponse { payload: payload.into(), error: String::new() },
        Err(error) => RaftResponse { payload: bytes::Bytes::new(), error },
    }))
}

async fn next_part(parts: &mut Streaming<SnapshotPart>) -> Result<Option<SnapshotPart>, Status> {
    tokio::time::timeout(PART_TIMEOUT, parts.message())
        .await
        .map_err(|_elapsed| Status::deadline_exceeded("the sender of a snapshot fell silent"))?
}

/// Keeps the parts that come over `queue` in `path`. Blocks.
fn keep(
    path: &std::path::Path,
    mut queue: mpsc::Receiver<bytes::Bytes>,
) -> std::io::Result<ReceivedSnapshot> {
    let mut receiver = SnapshotReceiver::create(path)?;
    while let Some(part) = queue.blocking_recv() {
        receiver.take(&part)?;
    }
    receiver.finish()
}

#[tonic::async_trait]
impl proto::internal::raft_server::Raft for RaftService {
    async fn append(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        let (port, message) = self.open::<AppendEntriesRequest<RaftTypes>>(&request)?;
        respond(port.raft.append_entries(message).await)
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        let (port, ballot) = self.open::<Ballot>(&request)?;
        if ballot.pre_vote {
            respond(port.raft.pre_vote(ballot.request).await)
        } else {
            respond(port.raft.vote(ballot.request).await)
        }
    }

    async fn transfer_leader(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        let (port, message) = self.open::<TransferLeaderRequest<RaftTypes>>(&request)?;
        respond(port.raft.handle_transfer_leader(message).await)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<RaftResponse>, Status> {
        self.authorize(&request)?;
        let mut parts = request.into_inner();
        let first =
            next_part(&mut parts).await?.ok_or_else(|| Status::invalid_argument("an empty snapshot"))?;
        let port = self.port(first.group)?;
        let header: SnapshotHeader = decode(&first.header)
            .map_err(|error| Status::invalid_argument(format!("snapshot header: {error}")))?;
        let busy = |_busy| Status::resource_exhausted("another snapshot is being received");
        let _receiving = port.receiving.try_lock().map_err(busy)?;

        let group = GroupId(u16::try_from(first.group).unwrap_or(u16::MAX));
        let path = StateStore::received_path(&self.directory, group);
        let (queue, waiting) = mpsc::channel(PARTS_WAITING_MAX);
        let keeping = tokio::task::spawn_blocking(move || keep(&path, waiting));
        let mut sent = Ok(());
        loop {
            let part = match next_part(&mut parts).await {
                Ok(Some(part)) => part,
                Ok(None) => break,
                Err(status) => {
                    sent = Err(status);
                    break;
                }
            };
            // The keeper has failed if it takes no more, and says why below.
            if queue.send(part.data).await.is_err() {
                break;
            }
        }
        drop(queue);
        let received = keeping.await.map_err(|error| Status::internal(error.to_string()))?;
        sent?;
        let received = received.map_err(|error| Status::internal(error.to_string()))?;
        let snapshot = Snapshot { meta: header.meta, snapshot: SnapshotData::Received(received) };
        respond(port.raft.install_full_snapshot(header.vote, snapshot).await)
    }
}
