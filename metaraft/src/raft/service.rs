//! The internal `Raft` service: what peers send goes to the group's openraft. Metadata nodes of this cluster only.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::ids::{ClusterId, GroupId};
use futures_util::{Stream, stream};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest};
use proto::internal::{RaftRequest, RaftResponse, SnapshotPart, SnapshotProgress};
use proto::peer::{Peer, Role};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tonic::{Code, Request, Response, Status, Streaming};

use super::network::{Ballot, SnapshotHeader};
use super::receiving::{Progress, ReceivedFile, Receiving};
use super::snapshot::{ReceivedSnapshot, SnapshotData, SnapshotReceiver};
use super::types::{Raft, RaftTypes, decode, encode};
use crate::standing::prover::Standing;

type Snapshot = openraft::type_config::alias::SnapshotOf<RaftTypes, SnapshotData>;

/// How long the sender of a snapshot may take to say what it sends.
const FIRST_PART_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a sender of a snapshot waits for one that is being received or installed, before it is told to come again.
const PLACE_WAIT: Duration = Duration::from_secs(5);
/// How often a sender hears how far its snapshot has come.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Parts that wait for the disk.
const PARTS_WAITING_MAX: usize = 2;

/// A group as its peers reach it. Clones share it.
#[derive(Clone)]
pub(crate) struct GroupPort {
    pub(crate) raft: Raft,
    /// Where snapshots are kept while they are received and installed.
    pub(crate) receiving: Arc<Receiving>,
    /// How long a sender of a snapshot may send nothing.
    pub(crate) stall_max: Duration,
}

/// Serves all groups of a node.
pub(crate) struct RaftService {
    pub(crate) cluster: ClusterId,
    pub(crate) groups: Arc<BTreeMap<GroupId, GroupPort>>,
    /// Whether this node votes; if not it takes nothing from peers either.
    pub(crate) standing: watch::Receiver<Standing>,
    /// Whether it was logged that a peer's entries are not understood: the sender repeats them.
    pub(crate) not_understood_told: AtomicBool,
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

/// Keeps the parts that come over `queue` in a file. Blocks.
fn keep(kept: ReceivedFile, mut queue: mpsc::Receiver<bytes::Bytes>) -> std::io::Result<ReceivedSnapshot> {
    let mut receiver = SnapshotReceiver::create(kept)?;
    while let Some(part) = queue.blocking_recv() {
        receiver.take(&part)?;
    }
    receiver.finish()
}

/// Parts of a snapshot, as they arrive.
struct Parts {
    stream: Streaming<SnapshotPart>,
    stall_max: Duration,
}

impl Parts {
    async fn next(&mut self) -> Result<Option<SnapshotPart>, Status> {
        tokio::time::timeout(self.stall_max, self.stream.message())
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("the sender of a snapshot fell silent"))?
    }
}

impl GroupPort {
    /// Receives a whole snapshot. If this is dropped, what was received goes.
    async fn receive(&self, parts: &mut Parts) -> Result<ReceivedSnapshot, Status> {
        let wait = PLACE_WAIT.min(self.stall_max / 4);
        let busy = || Status::resource_exhausted("another snapshot is being received or installed");
        let kept = self.receiving.begin(wait).await.ok_or_else(busy)?;
        let (queue, waiting) = mpsc::channel(PARTS_WAITING_MAX);
        let keeping = tokio::task::spawn_blocking(move || keep(kept, waiting));
        let mut sent = Ok(());
        loop {
            let part = match parts.next().await {
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
        received.map_err(|error| Status::internal(error.to_string()))
    }

    /// Receives a snapshot and has it installed. If this is dropped once it is whole, openraft goes on with it.
    async fn install(self, header: SnapshotHeader, mut parts: Parts) -> Result<RaftResponse, Status> {
        let received = self.receive(&mut parts).await?;
        let snapshot = Snapshot { meta: header.meta, snapshot: SnapshotData::Received(received) };
        respond(self.raft.install_full_snapshot(header.vote, snapshot).await).map(Response::into_inner)
    }
}

type Progresses = Pin<Box<dyn Stream<Item = Result<SnapshotProgress, Status>> + Send>>;

/// Tells how far `work` has come, until it has ended and its answer has been told.
fn told(
    work: impl Future<Output = Result<RaftResponse, Status>> + Send + 'static,
    progress: Progress,
) -> Progresses {
    Box::pin(stream::unfold(Some(Box::pin(work)), move |work| {
        let progress = progress.clone();
        async move {
            let mut work = work?;
            tokio::select! {
                done = &mut work => {
                    let last = done.map(|done| SnapshotProgress { count: progress.count(), done: Some(done) });
                    Some((last, None))
                }
                () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                    Some((Ok(SnapshotProgress { count: progress.count(), done: None }), Some(work)))
                }
            }
        }
    }))
}

#[tonic::async_trait]
impl proto::internal::raft_server::Raft for RaftService {
    async fn append(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        let (port, message) = match self.open::<AppendEntriesRequest<RaftTypes>>(&request) {
            Ok(opened) => opened,
            Err(status) if status.code() == Code::InvalidArgument => {
                // None of it is taken, so nothing is applied that others would apply otherwise: what a peer sends does
                // not end this node.
                if !self.not_understood_told.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        group = request.get_ref().group,
                        error = status.message(),
                        "entries that a peer sends are not understood, and refused: this replica does not follow. If \
                         its software is older than the leader's, upgrade it"
                    );
                }
                return Err(status);
            }
            Err(status) => return Err(status),
        };
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

    type InstallSnapshotStream = Progresses;

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<Progresses>, Status> {
        self.authorize(&request)?;
        let mut stream = request.into_inner();
        let first = tokio::time::timeout(FIRST_PART_TIMEOUT, stream.message())
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("no snapshot was sent"))??
            .ok_or_else(|| Status::invalid_argument("an empty snapshot"))?;
        let port = self.port(first.group)?.clone();
        let header: SnapshotHeader = decode(&first.header)
            .map_err(|error| Status::invalid_argument(format!("snapshot header: {error}")))?;
        let parts = Parts { stream, stall_max: port.stall_max };
        let progress = port.receiving.progress().clone();
        Ok(Response::new(told(port.install(header, parts), progress)))
    }
}
