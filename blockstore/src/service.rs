//! The storage API: who may call, what is well formed, and which disk answers.
//!
//! Invariants:
//! - Every call names the roles it takes; peers of another cluster are refused.
//! - Payloads that wait for disks are at most [`PAYLOAD_BYTES_MAX`] together; beyond that calls are refused as busy.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::ids::{ClusterId, DiskId};
use futures_util::future::join_all;
use proto::internal::storage_server::Storage;
use proto::internal::{self, put_shard_response, read_shard_response};
use proto::peer::{Peer, Role};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use crate::disk::{Disk, DiskError, ReadOutcome};
use crate::disks::Slot;
use crate::heartbeat::Pulse;
use crate::locks::locked;
use crate::scrub::ScrubEnd;
use crate::wire;
use crate::writer::PutOutcome;

/// Bytes of shards that may be in the node's hands at once.
const PAYLOAD_BYTES_MAX: usize = 96 * 1024 * 1024;

/// Scrubs at once; each has a thread per disk.
const SCRUBS_MAX: usize = 2;

/// Progress messages that wait for a client.
const PROGRESS_WAITING_MAX: usize = 16;

const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

const PUTS_AND_READS: [Role; 2] = [Role::Gateway, Role::Storage];
const ALL: [Role; 3] = [Role::Gateway, Role::Storage, Role::Meta];

/// Serves the node's disks.
pub(crate) struct StorageService {
    cluster: ClusterId,
    slots: Arc<Vec<Slot>>,
    by_id: BTreeMap<DiskId, usize>,
    payload_bytes: Arc<Semaphore>,
    scrubs: Arc<Semaphore>,
    tasks: TaskTracker,
    pulse: Pulse,
}

/// A disk of this node, or why it does not serve.
enum Found<'a> {
    Serves(&'a Arc<Disk>),
    Refuses(String),
}

impl StorageService {
    /// `tasks` ends with the node: scrubs run in it. `pulse` reports what they found.
    pub(crate) fn new(cluster: ClusterId, slots: Arc<Vec<Slot>>, tasks: TaskTracker, pulse: Pulse) -> Self {
        let by_id = (0..).zip(slots.iter()).filter_map(|(index, slot)| Some((slot.id?, index))).collect();
        Self {
            cluster,
            slots,
            by_id,
            payload_bytes: Arc::new(Semaphore::new(PAYLOAD_BYTES_MAX)),
            scrubs: Arc::new(Semaphore::new(SCRUBS_MAX)),
            tasks,
            pulse,
        }
    }

    fn authorize<T>(&self, request: &Request<T>, roles: &[Role]) -> Result<(), Status> {
        Peer::authorize(request, self.cluster, roles).map(|_peer| ()).map_err(|status| *status)
    }

    fn find(&self, disk: DiskId) -> Found<'_> {
        let slot = self.by_id.get(&disk).and_then(|index| self.slots.get(*index));
        match slot {
            None => Found::Refuses(format!("disk {disk} is not in this storage node")),
            Some(slot) => match &slot.disk {
                Some(disk) => Found::Serves(disk),
                None => Found::Refuses(slot.refused.reason.clone()),
            },
        }
    }

    fn find_or_status(&self, disk: DiskId) -> Result<&Arc<Disk>, Status> {
        match self.find(disk) {
            Found::Serves(disk) => Ok(disk),
            Found::Refuses(reason) => Err(Status::failed_precondition(reason)),
        }
    }

    fn take_payload(&self, bytes: u32) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.payload_bytes)
            .try_acquire_many_owned(bytes)
            .map_err(|_none_left| Status::resource_exhausted("too many bytes wait for this node's disks"))
    }
}

fn disk_status(error: DiskError) -> Status {
    match error {
        DiskError::Busy(reason) => Status::resource_exhausted(reason),
        DiskError::Refused(reason) | DiskError::Stale(reason) => Status::failed_precondition(reason),
    }
}

fn put_refused(reason: String) -> put_shard_response::Result {
    put_shard_response::Result::DiskRefuses(internal::DiskRefuses { reason })
}

fn read_refused(reason: String) -> read_shard_response::Result {
    read_shard_response::Result::DiskRefuses(internal::DiskRefuses { reason })
}

#[tonic::async_trait]
impl Storage for StorageService {
    async fn put_shard(
        &self,
        request: Request<internal::PutShardRequest>,
    ) -> Result<Response<internal::PutShardResponse>, Status> {
        self.authorize(&request, &PUTS_AND_READS)?;
        let request = request.into_inner();
        let disk = wire::disk_id(&request.disk)?;
        let put = wire::put(request)?;
        let _permit = self.take_payload(put.header.payload_length)?;
        let result = match self.find(disk) {
            Found::Refuses(reason) => put_refused(reason),
            Found::Serves(disk) => match disk.put(put).await {
                Ok(PutOutcome::Stored) => put_shard_response::Result::Stored(internal::Stored {}),
                Ok(PutOutcome::StaleEpoch(current)) => {
                    put_shard_response::Result::StaleEpoch(internal::StaleEpoch { current: current.0 })
                }
                Ok(PutOutcome::Refused(reason))
                | Err(DiskError::Refused(reason) | DiskError::Stale(reason)) => put_refused(reason),
                Ok(PutOutcome::Conflict(reason)) => return Err(Status::already_exists(reason)),
                Err(busy @ DiskError::Busy(_)) => return Err(disk_status(busy)),
            },
        };
        Ok(Response::new(internal::PutShardResponse { result: Some(result) }))
    }

    async fn read_shard(
        &self,
        request: Request<internal::ReadShardRequest>,
    ) -> Result<Response<internal::ReadShardResponse>, Status> {
        self.authorize(&request, &PUTS_AND_READS)?;
        let request = request.into_inner();
        let disk = wire::disk_id(&request.disk)?;
        let name = wire::shard_name(&request.stripe, request.position)?;
        wire::range(request.offset, request.length)?;
        let _permit = self.take_payload(request.length)?;
        let result = match self.find(disk) {
            Found::Refuses(reason) => read_refused(reason),
            Found::Serves(disk) => match disk.read(name, request.offset, request.length).await {
                Ok(ReadOutcome::Bytes(bytes)) => read_shard_response::Result::Payload(bytes),
                Ok(ReadOutcome::Lost(loss, reason)) => {
                    let loss = wire::loss_to_wire(loss).into();
                    read_shard_response::Result::Lost(internal::ShardLost { reason, loss })
                }
                Ok(ReadOutcome::Refused(reason))
                | Err(DiskError::Refused(reason) | DiskError::Stale(reason)) => read_refused(reason),
                Err(busy @ DiskError::Busy(_)) => return Err(disk_status(busy)),
            },
        };
        Ok(Response::new(internal::ReadShardResponse { result: Some(result) }))
    }

    async fn delete_shards(
        &self,
        request: Request<internal::DeleteShardsRequest>,
    ) -> Result<Response<internal::DeleteShardsResponse>, Status> {
        self.authorize(&request, &ALL)?;
        let request = request.into_inner();
        let disk = wire::disk_id(&request.disk)?;
        wire::shard_count(request.shards.len())?;
        let names: Result<Vec<_>, Status> =
            request.shards.iter().map(|shard| wire::shard_name(&shard.stripe, shard.position)).collect();
        let authority = wire::authority(request.history, &request.volumes)?;
        let deleted = self.find_or_status(disk)?.delete(names?, authority).await.map_err(disk_status)?;
        Ok(Response::new(internal::DeleteShardsResponse { deleted }))
    }

    async fn list_shards(
        &self,
        request: Request<internal::ListShardsRequest>,
    ) -> Result<Response<internal::ListShardsResponse>, Status> {
        self.authorize(&request, &ALL)?;
        let request = request.into_inner();
        let disk = wire::disk_id(&request.disk)?;
        let after = request.after.map(|after| wire::shard_name(&after.stripe, after.position)).transpose()?;
        let asked = usize::try_from(request.count_max).unwrap_or(usize::MAX);
        let count = if asked == 0 { wire::SHARDS_PER_CALL_MAX } else { asked.min(wire::SHARDS_PER_CALL_MAX) };
        let mut shards = self.find_or_status(disk)?.list(after, count + 1).await.map_err(disk_status)?;
        let more = shards.len() > count;
        shards.truncate(count);
        let shards = shards
            .into_iter()
            .map(|(name, row)| internal::ShardInfo {
                stripe: name.stripe.as_bytes().to_vec().into(),
                position: name.position.0.into(),
                epoch: row.epoch.0,
                length: row.payload_length,
            })
            .collect();
        Ok(Response::new(internal::ListShardsResponse { shards, more }))
    }

    type ScrubStream = Pin<Box<dyn Stream<Item = Result<internal::ScrubProgress, Status>> + Send>>;

    async fn scrub(
        &self,
        request: Request<internal::ScrubRequest>,
    ) -> Result<Response<Self::ScrubStream>, Status> {
        self.authorize(&request, &ALL)?;
        let permit = Arc::clone(&self.scrubs)
            .try_acquire_owned()
            .map_err(|_none_left| Status::resource_exhausted("a scrub runs already; wait for its end"))?;
        let disks: Vec<Arc<Disk>> = self.slots.iter().filter_map(|slot| slot.disk.clone()).collect();
        let (progress, messages) = mpsc::channel(PROGRESS_WAITING_MAX);
        let pulse = self.pulse.clone();
        self.tasks.spawn(async move {
            scrub_all(disks, &pulse, progress).await;
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

/// What a scrub of several disks has done so far.
struct Progress {
    so_far: internal::ScrubProgress,
    told: Instant,
}

/// Scrubs all disks side by side; ends early once nobody listens. What it found has been reported to the metadata
/// cluster, if that can be reached, before the last message goes out: so who waits for that sees it in the status.
async fn scrub_all(
    disks: Vec<Arc<Disk>>,
    pulse: &Pulse,
    messages: mpsc::Sender<Result<internal::ScrubProgress, Status>>,
) {
    let progress = Progress { so_far: internal::ScrubProgress::default(), told: Instant::now() };
    let progress = Arc::new(Mutex::new(progress));
    let scrubs = disks.iter().map(|disk| {
        let (progress, messages) = (Arc::clone(&progress), messages.clone());
        disk.scrub(move |checked| {
            let mut progress = locked(&progress);
            progress.so_far.records_checked += 1;
            progress.so_far.bytes_checked += checked.bytes;
            progress.so_far.damaged += u64::from(checked.damaged);
            if progress.told.elapsed() >= PROGRESS_INTERVAL {
                progress.told = Instant::now();
                // A client that reads slowly gets fewer messages, never old ones in a queue.
                drop(messages.try_send(Ok(progress.so_far)));
            }
            !messages.is_closed()
        })
    });
    let mut end = Ok(());
    for ended in join_all(scrubs).await {
        match ended {
            Ok(ScrubEnd::Complete) => {}
            // The disk's state tells of it; what the other disks hold was checked.
            Ok(ScrubEnd::Refused(reason)) => tracing::warn!(reason, "a disk was not scrubbed to its end"),
            Ok(ScrubEnd::Stopped) => end = Err(Status::unavailable("the scrub was stopped before its end")),
            Err(error) => end = Err(disk_status(error)),
        }
    }
    pulse.beat_now().await;
    let so_far = locked(&progress).so_far;
    let last = end.map(|()| internal::ScrubProgress { done: true, ..so_far });
    if messages.send(last).await.is_err() {
        tracing::debug!("nobody waits for the scrub's end");
    }
}
