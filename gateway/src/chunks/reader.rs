//! Chunks back from the disks: found by the registry, read by the engine, verified there.
//!
//! A place may be a moment old: a chunk that is lost where it was is looked up once more, and a map that does not know
//! a volume is fetched anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::ids::{ChunkId, NamespaceId, StripeId};
use engine::location::LocatedChunk;
use engine::presence::Verdict;
use engine::reader::{ChunkReader, DamagedShard, ReadChunkError, ReadPatience};
use engine::store::Processor;
use futures_util::future::try_join_all;
use metaraft::api::MetaError;
use metaraft::model::nursery::SMALL_FILE_BYTES_MAX;
use metaraft::model::row::FileState;
use tonic::Code;

use crate::chunks::lists::Lists;
use crate::chunks::presence::mark;
use crate::chunks::stripe::Store;
use crate::contents::Content;
use crate::core::content_gone;
use crate::failure::Failure;
use crate::meta::Meta;
use crate::random::TokioTimer;
use crate::suspects::Suspects;
use crate::workers::{Importance, Workers};

/// After this time a read of some chunks fails.
const READ_DEADLINE: Duration = Duration::from_secs(20);

/// Times that a read is tried, while places or disks change under it.
const ATTEMPTS_MAX: usize = 3;

/// Between them, when disks did not answer.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(300);

/// More threads that decode would only take memory.
const DECODERS_MAX: usize = 8;
/// Decoding is less important to the scheduler than serving.
const DECODERS_IMPORTANCE: Importance = Importance::Nice(5);

/// Decodes beside the async workers.
struct Decoders(Workers<()>);

impl Processor for Decoders {
    async fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Option<R> {
        let done = self.0.run(move |()| work()).await;
        done.inspect_err(|error| tracing::error!(error = %error, "a stripe was not decoded")).ok()
    }
}

/// Reads chunks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ChunkSource {
    meta: Meta,
    suspects: Arc<Suspects>,
    reader: ChunkReader<Store, TokioTimer, Decoders>,
    lists: Arc<Lists>,
}

/// What to tell of a chunk that the registry does not have.
fn missing(chunk: ChunkId) -> Failure {
    tracing::error!(chunk = %chunk, "a chunk that a content lists is not registered");
    let message = "a part of it is not there any more: it was removed meanwhile, or lost";
    Failure::new(Code::DataLoss, "data-loss", message)
}

fn failed(error: &MetaError) -> Failure {
    Failure::from_meta(error, "chunks")
}

fn log_damage(damaged: &[DamagedShard]) {
    for shard in damaged {
        tracing::warn!(
            stripe = %shard.stripe, position = %shard.position, disk = %shard.disk, reason = shard.reason,
            "damaged shard"
        );
    }
}

fn told(error: &ReadChunkError) -> Failure {
    match error {
        ReadChunkError::Lost { damaged, .. } => {
            log_damage(damaged);
            tracing::error!(error = %error, "chunk lost");
            let message = "a part of it cannot be read: too few of its shards are left on the disks that are up \
                           (`keepstone admin status` says which are not)";
            Failure::new(Code::DataLoss, "data-loss", message)
        }
        ReadChunkError::Unavailable { damaged, .. } => {
            log_damage(damaged);
            tracing::warn!(error = %error, "chunk unavailable");
            let message = "a part of it cannot be read now: too many disks do not answer \
                           (`keepstone admin status` says which); try again when they are back";
            Failure::new(Code::Unavailable, "not-enough-disks", message)
        }
        ReadChunkError::UnknownVolume { .. } | ReadChunkError::BadLocation { .. } => {
            Failure::internal("chunk location", error)
        }
    }
}

impl ChunkSource {
    /// Starts the threads that decode.
    ///
    /// # Errors
    /// If the machine gives no threads.
    pub(crate) fn new(meta: Meta, suspects: Arc<Suspects>, store: Arc<Store>) -> Result<Self, Failure> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let decoders = Workers::start("decode", processors.min(DECODERS_MAX), DECODERS_IMPORTANCE);
        let decoders = Decoders(decoders.map_err(|error| Failure::internal("decode", &error))?);
        let reader = ChunkReader::new(store, Arc::new(TokioTimer), Arc::new(decoders));
        Ok(Self { meta, suspects, reader, lists: Arc::default() })
    }

    /// The content that a version in a tree names. What may be in the nursery is always asked for: a list that was read
    /// earlier may be of chunks that have gone since.
    pub(crate) async fn content_of(
        &self,
        namespace: NamespaceId,
        state: &FileState,
    ) -> Result<Content, Failure> {
        let content = state.content;
        if state.size > SMALL_FILE_BYTES_MAX as u64
            && let Some(list) = self.lists.get(content)
        {
            return Ok(Content::Listed(list));
        }
        let found = self.meta.contents_in(namespace, &[content], true).await;
        let mut found = found.map_err(|error| Failure::from_meta(&error, "content"))?;
        let found = found.remove(&content).ok_or_else(content_gone)?;
        if let Content::Listed(list) = &found {
            self.lists.keep(content, list);
        }
        Ok(found)
    }

    /// Where chunks lie, in order; a chunk that lies nowhere is an error.
    pub(crate) async fn locate(&self, chunks: &[ChunkId]) -> Result<Vec<LocatedChunk>, Failure> {
        let places = self.meta.locate(chunks).await.map_err(|error| failed(&error))?;
        let located = chunks.iter().zip(places).map(|(chunk, location)| {
            Ok(LocatedChunk { chunk: *chunk, location: location.ok_or_else(|| missing(*chunk))? })
        });
        located.collect()
    }

    /// The plain bytes of chunks that lie in one stripe, verified, in order. Cancel-safe.
    pub(crate) async fn read_run(&self, run: &[LocatedChunk]) -> Result<Vec<Bytes>, Failure> {
        let mut error = match self.read_once(run).await {
            Ok(plain) => return Ok(plain),
            Err(error) => error,
        };
        for _attempt in 1..ATTEMPTS_MAX {
            if matches!(error, ReadChunkError::Unavailable { .. }) {
                tokio::time::sleep(ATTEMPT_PAUSE).await;
            }
            self.meta.api().refresh_map().await.map_err(|error| failed(&error))?;
            let chunks: Vec<ChunkId> = run.iter().map(|located| located.chunk).collect();
            let located = self.locate(&chunks).await?;
            let moved = located.iter().zip(run).any(|(now, before)| now.location != before.location);
            if !moved && matches!(error, ReadChunkError::Lost { .. } | ReadChunkError::BadLocation { .. }) {
                break;
            }
            error = match self.read_stripes(&located).await {
                Ok(plain) => return Ok(plain),
                Err(error) => error,
            };
        }
        if matches!(error, ReadChunkError::Lost { .. }) {
            self.mark_lost(run).await;
        }
        Err(told(&error))
    }

    /// Has those of a run that are lost marked where they lie, so that whoever uploads them is asked for their bytes.
    async fn mark_lost(&self, run: &[LocatedChunk]) {
        let mut lost = Vec::new();
        for chunk in run {
            if matches!(self.read_once(&[*chunk]).await, Err(ReadChunkError::Lost { .. })) {
                lost.push((chunk.chunk, chunk.location.stripe));
            }
        }
        if let Err(error) = mark(&self.meta, &lost).await {
            tracing::warn!(error = %error, "lost chunks were not marked; the next read tries again");
        }
    }

    /// Reads chunks of one stripe where they lie, only to see whether that works.
    pub(crate) async fn try_read(&self, run: &[LocatedChunk]) -> Verdict {
        match self.read_once(run).await {
            Ok(_plain) => Verdict::Sound,
            Err(ReadChunkError::Lost { .. }) => Verdict::Lost,
            Err(_) => Verdict::Unavailable,
        }
    }

    /// Reads chunks of any stripes, each stripe once, in order.
    async fn read_stripes(&self, located: &[LocatedChunk]) -> Result<Vec<Bytes>, ReadChunkError> {
        let mut stripes: HashMap<StripeId, Vec<LocatedChunk>> = HashMap::new();
        for chunk in located {
            stripes.entry(chunk.location.stripe).or_default().push(*chunk);
        }
        let reads = stripes.values().map(|run| self.read_once(run));
        let read = try_join_all(reads).await?;
        let mut plain: HashMap<ChunkId, Bytes> = HashMap::new();
        for (run, bytes) in stripes.values().zip(read) {
            plain.extend(run.iter().map(|located| located.chunk).zip(bytes));
        }
        let bytes = located.iter().map(|located| plain.get(&located.chunk).cloned());
        bytes.collect::<Option<Vec<Bytes>>>().ok_or(ReadChunkError::BadLocation { stripe: None })
    }

    async fn read_once(&self, run: &[LocatedChunk]) -> Result<Vec<Bytes>, ReadChunkError> {
        let map = self.meta.map();
        self.suspects.meet(&map);
        let available = |disk| self.suspects.readable(&map, disk);
        let hedge_after = self.suspects.hedge_after(self.meta.api().settings().read_hedge());
        let patience = ReadPatience { hedge_after, deadline: READ_DEADLINE };
        let read = self.reader.read_chunks(&map, &available, run, patience).await?;
        log_damage(&read.damaged);
        Ok(read.chunks.into_iter().map(|(_chunk, plain)| plain).collect())
    }

    /// The bytes of a manifest node.
    pub(crate) async fn read_node(&self, node: ChunkId) -> Result<Bytes, Failure> {
        let located = self.locate(&[node]).await?;
        let read = self.read_run(&located).await?;
        read.into_iter().next().ok_or_else(|| missing(node))
    }
}
