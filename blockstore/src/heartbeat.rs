//! Heartbeats: the node reports itself and its disks to whoever leads the root group, and learns of epochs, and of
//! what the cluster knows of its disks' starts.
//!
//! Invariants:
//! - One beat is under way at a time, each with a deadline; a metadata node that hangs delays the next by no more.
//! - Disks are reported only by an id that their own superblock, or the node's memory, gave.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::cluster::Health;
use engine::ids::{DiskId, Epoch, NodeId, VolumeId};
use futures_util::future::join_all;
use proto::internal::metadata_client::MetadataClient;
use proto::internal::{self, DiskReport, DiskState, HeartbeatRequest, HeartbeatResponse};
use proto::peer::{MetaAddress, Role};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::channels::Channels;
use crate::config::StorageConfig;
use crate::disk::Verdict;
use crate::disks::Slot;
use crate::writer::Authority;

/// From one beat to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long after its start a node that no beat has reached anybody of may keep it to itself.
const START_TIME_MAX: Duration = Duration::from_secs(15);

/// A metadata node that takes longer is passed over.
const DEADLINE: Duration = Duration::from_secs(2);

/// The last beat of a node that stops takes no longer.
const LAST_BEAT_MAX: Duration = Duration::from_secs(1);

/// Leaders that one beat follows from answer to answer.
const HOPS_MAX: usize = 3;

/// Why a beat reached no leader.
#[derive(Debug, thiserror::Error)]
enum BeatError {
    #[error("{address}: {status}")]
    Call { address: String, status: Box<tonic::Status> },
    #[error("{address} does not lead, nor does any that it names")]
    NoLeader { address: String },
    #[error("{address}: {reason}")]
    Address { address: String, reason: String },
}

/// Requests for a beat out of turn that may wait.
const OUT_OF_TURN_MAX: usize = 16;

/// Asks for a beat out of turn. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pulse(mpsc::Sender<oneshot::Sender<()>>);

impl Pulse {
    /// Returns once a beat that began after this call has ended, however it ended; at once if the heart has stopped.
    pub(crate) async fn beat_now(&self) {
        let (beaten, ended) = oneshot::channel();
        if self.0.send(beaten).await.is_ok() && ended.await.is_err() {
            tracing::debug!("the node stops; nobody beats any more");
        }
    }
}

/// Beats until told to stop.
pub(crate) struct Heart {
    node: u64,
    cluster: Vec<u8>,
    address: String,
    rack: String,
    meta: Vec<MetaAddress>,
    channels: Channels,
    slots: Arc<Vec<Slot>>,
    /// Where the last beat succeeded.
    leader: Option<MetaAddress>,
    healthy: Option<bool>,
    /// When it began to beat.
    began: Instant,
    out_of_turn: mpsc::Receiver<oneshot::Sender<()>>,
    stopping: bool,
}

fn report(slot: &Slot) -> Option<DiskReport> {
    let status = slot.status();
    let state = match status.health {
        Health::Up => DiskState::Up,
        Health::Full => DiskState::Full,
        Health::Failed => DiskState::Failed,
        Health::Behind => DiskState::Behind,
        Health::Missing | Health::Down => DiskState::Missing,
    };
    let start = slot.disk.as_ref().map(|disk| disk.start()).unwrap_or_default();
    let usage = slot.disk.as_ref().map(|disk| disk.usage()).unwrap_or_default();
    Some(DiskReport {
        disk: slot.id?.as_bytes().to_vec().into(),
        path: slot.path.to_string_lossy().into_owned(),
        state: state.into(),
        reason: status.reason,
        capacity_bytes: usage.capacity_bytes,
        free_bytes: usage.free_bytes,
        allocated_bytes: usage.allocated_bytes,
        shards: usage.shards,
        shards_damaged_found: usage.shards_damaged_found,
        starts: start.starts,
        incarnation: start.incarnation,
        lineage: start.lineage,
        sequence: start.sequence,
        lineage_opened: start.lineage_opened,
        verified_starts: start.verified_starts,
        fenced: slot.disk.as_ref().is_some_and(|disk| disk.is_fenced()),
    })
}

impl Heart {
    pub(crate) fn new(
        config: &StorageConfig,
        identity: &proto::peer::TlsIdentity,
        address: String,
        slots: Arc<Vec<Slot>>,
    ) -> (Self, Pulse) {
        let (pulse, out_of_turn) = mpsc::channel(OUT_OF_TURN_MAX);
        let heart = Self {
            node: config.node.0,
            cluster: identity.peer().cluster.as_bytes().to_vec(),
            address,
            rack: config.rack.clone(),
            meta: config.meta.iter().map(|text| MetaAddress::parse(text)).collect(),
            channels: Channels::new(identity),
            slots,
            leader: None,
            healthy: None,
            began: Instant::now(),
            out_of_turn,
            stopping: false,
        };
        (heart, Pulse(pulse))
    }

    /// Beats every second, and when asked, until `stop`; then once more, so that the cluster knows how the disks were
    /// when they were closed.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => None,
                Some(asked) = self.out_of_turn.recv() => Some(asked),
            };
            // A beat that is dropped by the stop is as good as one that was never sent.
            if stop.run_until_cancelled(self.beat()).await.is_none() {
                break;
            }
            if asked.is_some_and(|asked| asked.send(()).is_err()) {
                tracing::debug!("nobody waits for the beat any more");
            }
        }
        self.stopping = true;
        if tokio::time::timeout(LAST_BEAT_MAX, self.send_to_leader()).await.is_err() {
            tracing::warn!(
                node = self.node,
                "the cluster was not told how the disks were when they were closed"
            );
        }
    }

    async fn beat(&mut self) {
        let disks = self.slots.iter().filter_map(|slot| slot.disk.as_ref());
        let refreshed = join_all(disks.map(|disk| disk.refresh_usage()));
        // The figures of a disk that hangs are old ones; the others' are not held up by it for long.
        if tokio::time::timeout(INTERVAL / 2, refreshed).await.is_err() {
            tracing::warn!("a disk is slow to give its figures");
        }
        self.send_to_leader().await;
    }

    async fn send_to_leader(&mut self) {
        let mut last_error = None;
        let first = self.leader.take();
        for address in first.into_iter().chain(self.meta.clone()) {
            match self.follow(address).await {
                Ok(response) => {
                    self.note(true, "the metadata cluster takes heartbeats");
                    self.apply(&response);
                    return;
                }
                Err(error) => last_error = Some(error),
            }
        }
        let reason = last_error.map_or_else(|| "none is configured".to_owned(), |error| error.to_string());
        self.note(false, &format!("no metadata node takes heartbeats; last: {reason}"));
    }

    /// Says so when beats begin to fail or to succeed, not with each. Where all nodes of a cluster start at once, or
    /// it is still to be initialised, the first beats fail: that is told only if it lasts.
    fn note(&mut self, healthy: bool, text: &str) {
        if !healthy && self.healthy.is_none() && !self.stopping && self.began.elapsed() < START_TIME_MAX {
            tracing::info!(node = self.node, "not in the cluster yet: {text}");
            return;
        }
        if self.healthy.replace(healthy) == Some(healthy) {
            tracing::debug!(node = self.node, "{text}");
        } else if healthy {
            tracing::info!(node = self.node, "{text}");
        } else {
            tracing::warn!(node = self.node, "{text}");
        }
    }

    /// Beats to `address`, and to the leader that it names instead.
    async fn follow(&mut self, mut at: MetaAddress) -> Result<HeartbeatResponse, BeatError> {
        for _ in 0..HOPS_MAX {
            let response = self.send(&at).await?;
            match &response.not_leader {
                None => {
                    self.leader = Some(at);
                    return Ok(response);
                }
                Some(other) if !other.leader_address.is_empty() && other.leader_address != at.address => {
                    let node = Some(NodeId(other.leader)).filter(|node| node.0 != 0);
                    at = MetaAddress { node, address: other.leader_address.clone() };
                }
                Some(_unknown) => break,
            }
        }
        Err(BeatError::NoLeader { address: at.address })
    }

    async fn send(&self, at: &MetaAddress) -> Result<HeartbeatResponse, BeatError> {
        let address = at.address.as_str();
        let channel: Channel = self
            .channels
            .get(address, Role::Meta, at.node)
            .map_err(|error| BeatError::Address { address: address.to_owned(), reason: error.to_string() })?;
        let mut request = tonic::Request::new(HeartbeatRequest {
            node: self.node,
            cluster: self.cluster.clone().into(),
            address: self.address.clone(),
            rack: self.rack.clone(),
            disks: self.slots.iter().filter_map(report).collect(),
            stopping: self.stopping,
        });
        request.set_timeout(DEADLINE);
        let mut client = MetadataClient::new(channel).max_decoding_message_size(proto::MESSAGE_BYTES_MAX);
        let beat = tokio::time::timeout(DEADLINE, client.heartbeat(request)).await;
        beat.unwrap_or_else(|_elapsed| Err(tonic::Status::deadline_exceeded("no answer")))
            .map(tonic::Response::into_inner)
            .map_err(|status| BeatError::Call { address: address.to_owned(), status: Box::new(status) })
    }

    fn apply(&self, response: &HeartbeatResponse) {
        let epochs: BTreeMap<VolumeId, Epoch> = response
            .volumes
            .iter()
            .map(|internal::VolumeEpoch { volume, epoch }| (VolumeId(*volume), Epoch(*epoch)))
            .collect();
        let authority = Authority { history: response.history, epochs };
        let verdicts: BTreeMap<DiskId, Verdict> = response.verdicts.iter().filter_map(verdict).collect();
        for slot in self.slots.iter() {
            let Some(disk) = &slot.disk else { continue };
            disk.raise_authority(authority.clone());
            if let Some(verdict) = verdicts.get(&disk.id()) {
                disk.hear(verdict.clone());
            }
        }
    }
}

/// A verdict off the wire; `None` for a state that is none.
fn verdict(told: &internal::DiskVerdict) -> Option<(DiskId, Verdict)> {
    let verdict = match told.state() {
        DiskState::Up => Verdict::Confirmed,
        DiskState::Behind => Verdict::Behind(told.reason.clone()),
        DiskState::Failed => Verdict::Fenced,
        DiskState::Unspecified | DiskState::Missing | DiskState::Full => return None,
    };
    Some((DiskId::from_slice(&told.disk).ok()?, verdict))
}
