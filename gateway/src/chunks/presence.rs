//! Whether chunks that are registered can be read now: what cannot is asked for again, and fresh bytes take its place.
//!
//! Three looks, each closer: at the cluster map; at the stripe, whose disks are asked for a byte of their shards; at
//! the chunk itself, which is read. The closer one is taken where the one before leaves a doubt. Nothing is remembered:
//! the many chunks of one stripe that are looked at together cost one look at the stripe.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engine::ids::{ChunkId, GroupId, StripeId};
use engine::location::{ChunkLocation, LocatedChunk};
use engine::presence::{ShardAnswer, Verdict, judge, readable_by_map, readable_shards};
use engine::store::{ReadShardError, ShardStore};
use futures_util::future::{join_all, try_join_all};
use futures_util::{StreamExt, stream};
use metaraft::api::MetaError;
use metaraft::model::command::DataStep;

use crate::chunks::reader::ChunkSource;
use crate::chunks::stripe::Store;
use crate::limits::{COMMAND_CHUNKS_MAX, STRIPES_LOOKED_AT_MAX};
use crate::meta::Meta;
use crate::random;

/// A disk that has not answered by then does not say whether it has its shard.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);

/// Plain bytes that one look reads; beyond that what the disks say of their shards must do.
const READ_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// How close to look at stripes whose disks all say that they have their shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Care {
    /// Take their word for it.
    Usual,
    /// Read the chunks: others of the same file were found unreadable.
    Thorough,
}

/// Chunks that cannot be read.
#[derive(Debug, Default)]
pub(crate) struct Unreadable {
    /// Lost, whichever disks come back, and where.
    pub(crate) lost: Vec<(ChunkId, StripeId)>,
    /// Not to be had now, and where.
    pub(crate) unavailable: Vec<(ChunkId, StripeId)>,
}

impl Unreadable {
    /// Whether all can be read.
    pub(crate) fn is_empty(&self) -> bool {
        self.lost.is_empty() && self.unavailable.is_empty()
    }

    /// All of them.
    pub(crate) fn chunks(&self) -> BTreeSet<ChunkId> {
        self.lost.iter().chain(&self.unavailable).map(|(chunk, _stripe)| *chunk).collect()
    }
}

/// Looks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Presence {
    meta: Meta,
    store: Arc<Store>,
    source: ChunkSource,
}

/// Commits that chunks cannot be read where they should lie, so that their next registration takes the place.
pub(crate) async fn mark(meta: &Meta, found: &[(ChunkId, StripeId)]) -> Result<(), MetaError> {
    let mut groups: BTreeMap<GroupId, Vec<(ChunkId, StripeId)>> = BTreeMap::new();
    let Some((chunk, stripe)) = found.first() else { return Ok(()) };
    tracing::warn!(chunks = found.len(), %chunk, %stripe, "chunks cannot be read; they are asked for again");
    for (chunk, stripe) in found {
        groups.entry(meta.group_of(chunk.slot())?).or_default().push((*chunk, *stripe));
    }
    let commands = groups.iter().flat_map(|(group, chunks)| {
        chunks.chunks(COMMAND_CHUNKS_MAX).map(|chunks| {
            let step = DataStep::ChunksUnreadable { chunks: chunks.to_vec() };
            meta.commit_in(*group, random::request(), vec![step])
        })
    });
    try_join_all(commands).await.map(drop)
}

impl Presence {
    pub(crate) fn new(meta: Meta, store: Arc<Store>, source: ChunkSource) -> Self {
        Self { meta, store, source }
    }

    /// Whether the map leaves disks enough to read a chunk there.
    pub(crate) fn by_map(&self, location: &ChunkLocation) -> bool {
        readable_by_map(&self.meta.map(), location.stripe, location.shape.layout)
    }

    /// Looks for those of `chunks` that cannot be read. Cancel-safe: it only reads.
    pub(crate) async fn look(&self, chunks: &[LocatedChunk], care: Care) -> Unreadable {
        let mut stripes: BTreeMap<StripeId, Vec<LocatedChunk>> = BTreeMap::new();
        for chunk in chunks {
            stripes.entry(chunk.location.stripe).or_default().push(*chunk);
        }
        let verdicts = stripes.iter().map(|(stripe, chunks)| async move {
            (chunks, self.verdict(*stripe, &chunks[0].location).await)
        });
        let verdicts: Vec<_> = verdicts.collect();
        let mut verdicts = stream::iter(verdicts).buffer_unordered(STRIPES_LOOKED_AT_MAX);
        let (mut found, mut doubtful) = (Unreadable::default(), Vec::new());
        while let Some((chunks, verdict)) = verdicts.next().await {
            let named = chunks.iter().map(|chunk| (chunk.chunk, chunk.location.stripe));
            match (verdict, care) {
                (Verdict::Lost, _) => found.lost.extend(named),
                (Verdict::Unavailable, _) => found.unavailable.extend(named),
                (Verdict::Damaged, _) | (Verdict::Sound, Care::Thorough) => doubtful.push(chunks),
                (Verdict::Sound, Care::Usual) => {}
            }
        }
        self.read(&doubtful, &mut found).await;
        found
    }

    /// Asks a stripe's disks for a byte of their shards.
    async fn verdict(&self, stripe: StripeId, location: &ChunkLocation) -> Verdict {
        let (map, layout) = (self.meta.map(), location.shape.layout);
        let Some(volume) = map.volume(stripe.volume()) else { return Verdict::Unavailable };
        if !readable_by_map(&map, stripe, layout) {
            return Verdict::Unavailable;
        }
        let asked = readable_shards(&map, stripe, layout).unwrap_or_default();
        let answers = asked.into_iter().map(|(position, disk)| async move {
            let read = self.store.read_shard(disk, stripe, position, 0, 1);
            match tokio::time::timeout(ANSWER_WAIT_MAX, read).await {
                Ok(Ok(_byte)) => ShardAnswer::There,
                Ok(Err(ReadShardError::Lost { .. })) => ShardAnswer::Lost,
                Ok(Err(_)) | Err(_) => ShardAnswer::Silent,
            }
        });
        judge(volume.code, stripe, layout, &join_all(answers).await)
    }

    /// Reads chunks of stripes that are in doubt, one stripe after the other.
    async fn read(&self, stripes: &[&Vec<LocatedChunk>], found: &mut Unreadable) {
        let mut left = READ_BYTES_MAX;
        for chunks in stripes {
            let bytes = chunks.iter().map(|chunk| u64::from(chunk.location.plain_length)).sum();
            let Some(after) = left.checked_sub(bytes) else { return };
            left = after;
            if self.source.try_read(chunks).await == Verdict::Sound {
                continue;
            }
            for chunk in *chunks {
                let place = (chunk.chunk, chunk.location.stripe);
                match self.source.try_read(&[*chunk]).await {
                    Verdict::Lost => found.lost.push(place),
                    Verdict::Unavailable => found.unavailable.push(place),
                    Verdict::Sound | Verdict::Damaged => {}
                }
            }
        }
    }
}
