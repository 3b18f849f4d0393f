//! One stripe's way to durability: written, registered, its chunks registered.
//!
//! What is there after a crash between the steps:
//! 1. Shards written: garbage on disks under a stripe id that nobody knows.
//! 2. `StripeRegister` committed: a stripe without live chunks, found by its row and buried later.
//! 3. `ChunksRegister` committed in some groups: those chunks are there, pinned by their sessions; the others are sent
//!    again by their clients. A chunk is acknowledged only after its own group has it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockstore::client::StorageClient;
use blockstore::record::ShardName;
use engine::cluster::StripeRecord;
use engine::ids::{ChunkId, Epoch, GroupId, HolderId, StripeId};
use engine::stripe::SealedStripe;
use engine::writer::{DiskView, StripeWriter, WriteStripeError, WrittenStripe};
use futures_util::future::{join_all, try_join_all};
use metaraft::api::MetaError;
use metaraft::model::command::{DataStep, NewChunk, StepError};
use tonic::Code;

use crate::chunks::latency::WriteTime;
use crate::failure::Failure;
use crate::meta::Meta;
use crate::random::{self, SystemEntropy, TokioTimer};
use crate::suspects::{Suspects, WatchedStore};

/// Times that a stripe is written, when disks or epochs change under it.
const ATTEMPTS_MAX: usize = 4;

/// Between them: about as long as the map takes to follow.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(400);

/// The disks, as the gateway sees them.
pub(crate) type Store = WatchedStore<StorageClient>;

/// Stores stripes.
#[derive(Clone)]
pub(crate) struct StripeSink {
    meta: Meta,
    suspects: Arc<Suspects>,
    storage: Arc<StorageClient>,
    writer: StripeWriter<Store, TokioTimer, SystemEntropy>,
}

fn not_enough_disks(meta: &Meta, error: &WriteStripeError) -> Failure {
    tracing::warn!(error = %error, "stripe refused");
    let full = meta.map().disks.iter().any(|disk| disk.health == engine::cluster::Health::Full);
    if full {
        let message =
            "not enough disks with free space: free some, or add disks (`keepstone admin status` says more)";
        return Failure::new(Code::ResourceExhausted, "no-space", message);
    }
    let message = "not enough disks take writes: start the storage nodes that are down \
                   (`keepstone admin status` says which), then try again";
    Failure::precondition("not-enough-disks", message)
}

impl StripeSink {
    pub(crate) fn new(
        meta: Meta,
        suspects: Arc<Suspects>,
        storage: Arc<StorageClient>,
        store: Arc<Store>,
    ) -> Self {
        let writer = StripeWriter::new(store, Arc::new(TokioTimer), Arc::new(SystemEntropy));
        Self { meta, suspects, storage, writer }
    }

    /// Makes a stripe and its chunks durable, each chunk pinned for its holders. Says how long that took.
    pub(crate) async fn store(
        &self,
        sealed: &SealedStripe,
        holders: &HashMap<ChunkId, Vec<HolderId>>,
    ) -> Result<WriteTime, Failure> {
        let began = Instant::now();
        let mut last = Failure::unavailable("the stripe could not be written; try again");
        for attempt in 1..=ATTEMPTS_MAX {
            let written = match self.try_write(sealed, attempt).await? {
                Ok(written) => written,
                Err(failure) => {
                    last = failure;
                    continue;
                }
            };
            let durable = began.elapsed();
            match self.register(sealed, &written, holders).await {
                Ok(()) => return Ok(WriteTime { durable, whole: began.elapsed() }),
                Err(MetaError::Step(StepError::StaleEpoch { .. })) => {}
                Err(error) => return Err(Failure::from_meta(&error, "chunks")),
            }
        }
        Err(last)
    }

    /// Writes a stripe that will not be registered.
    pub(crate) async fn write_only(&self, sealed: &SealedStripe) -> Result<StripeRecord, Failure> {
        let mut last = Failure::unavailable("the stripe could not be written; try again");
        for attempt in 1..=ATTEMPTS_MAX {
            match self.try_write(sealed, attempt).await? {
                Ok(written) => return Ok(written.record),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    /// Commits nothing where a stripe's own row would be: it takes as long as that. With one group the row goes with
    /// the chunks, in one command.
    pub(crate) async fn as_if_registered(&self) -> Result<(), MetaError> {
        let map = self.meta.map();
        if let Some(volume) = map.volumes.first().filter(|_volume| map.data_groups().len() > 1) {
            let stripe = StripeId::new(volume.volume, random::bytes());
            self.meta.commit_in(self.meta.group_of(stripe.slot())?, random::request(), Vec::new()).await?;
        }
        Ok(())
    }

    /// Deletes the shards of a stripe that was written and not registered. What cannot be deleted is garbage.
    pub(crate) async fn discard(&self, record: &StripeRecord) {
        let map = self.meta.map();
        let Some(volume) = map.volume(record.stripe.volume()) else { return };
        let epochs = BTreeMap::from([(record.stripe.volume(), record.epoch)]);
        let epochs = &epochs;
        let deletions = record.used.iter().filter_map(|position| {
            let disk = *volume.members.get(usize::from(position.0))?;
            let name = ShardName { stripe: record.stripe, position };
            Some(async move {
                if let Err(error) = self.storage.delete_shards(disk, &[name], epochs).await {
                    tracing::debug!(disk = %disk, error = %error, "a shard is left behind as garbage");
                }
            })
        });
        join_all(deletions).await;
    }

    /// One attempt, after a pause if it is not the first; an error within is worth another one.
    async fn try_write(
        &self,
        sealed: &SealedStripe,
        attempt: usize,
    ) -> Result<Result<WrittenStripe, Failure>, Failure> {
        if attempt > 1 {
            tokio::time::sleep(ATTEMPT_PAUSE).await;
            if let Err(error) = self.meta.api().refresh_map().await {
                tracing::warn!(error = %error, "cluster map not refreshed");
            }
        }
        match self.write(sealed).await {
            Ok(written) => Ok(Ok(written)),
            Err(error @ WriteStripeError::Busy { .. }) => {
                // It has been waited for long enough.
                tracing::warn!(error = %error, "stripe refused");
                Err(Failure::busy("the disks do not keep up with what is written"))
            }
            Err(error @ (WriteStripeError::StaleEpoch { .. } | WriteStripeError::Unsettled { .. })) => {
                tracing::warn!(error = %error, attempt, "stripe not written");
                Ok(Err(Failure::unavailable("the stripe could not be written; try again")))
            }
            Err(error) => Ok(Err(not_enough_disks(&self.meta, &error))),
        }
    }

    async fn write(&self, sealed: &SealedStripe) -> Result<WrittenStripe, WriteStripeError> {
        let map = self.meta.map();
        let deadline = self.meta.api().settings().write_deadline();
        self.suspects.set_deadline(deadline);
        self.suspects.meet(&map);
        let state = |disk| self.suspects.write_state(disk);
        let hangs = |disk| self.suspects.hangs(disk);
        let disks = DiskView { state: &state, hangs: &hangs };
        let written = self.writer.write(&map, disks, sealed, deadline).await?;
        for put in &written.failed {
            match &put.error {
                Some(error) => tracing::warn!(disk = %put.disk, error = %error, "shard not stored"),
                None => tracing::warn!(disk = %put.disk, "shard not stored in time"),
            }
        }
        Ok(written)
    }

    async fn register(
        &self,
        sealed: &SealedStripe,
        written: &WrittenStripe,
        holders: &HashMap<ChunkId, Vec<HolderId>>,
    ) -> Result<(), MetaError> {
        let record = written.record;
        let mut groups: BTreeMap<GroupId, Vec<NewChunk>> = BTreeMap::new();
        for located in sealed.located(record.stripe) {
            let holders = holders.get(&located.chunk).cloned().unwrap_or_default();
            let chunk = NewChunk { chunk: located.chunk, location: located.location, holders };
            groups.entry(self.meta.group_of(located.chunk.slot())?).or_default().push(chunk);
        }
        // The stripe's own row first; chunks of the same group go with it.
        let own = self.meta.group_of(record.stripe.slot())?;
        let mut steps = vec![DataStep::StripeRegister { record }];
        steps.extend(groups.remove(&own).map(|chunks| chunks_step(record.epoch, chunks)));
        self.meta.commit_in(own, random::request(), steps).await?;
        let others = groups.into_iter().map(|(group, chunks)| {
            self.meta.commit_in(group, random::request(), vec![chunks_step(record.epoch, chunks)])
        });
        try_join_all(others).await.map(drop)
    }
}

fn chunks_step(epoch: Epoch, chunks: Vec<NewChunk>) -> DataStep {
    DataStep::ChunksRegister { epoch, chunks }
}
