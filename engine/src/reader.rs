//! Reads chunks of one stripe, decodes what is lost, and checks every chunk against its name.
//!
//! Invariants:
//! - No chunk is returned whose bytes do not match its SHA-256.
//! - Reads, and combinations of shards that are tried, are bounded.
//! - What was found damaged is reported, also when the read succeeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;

use crate::cluster::{ClusterMap, Volume};
use crate::code::PositionSet;
use crate::codec::decode_chunk;
use crate::ids::{ChunkId, DiskId, Position, StripeId, VolumeId};
use crate::location::LocatedChunk;
use crate::read_plan::{Progress, ReadPlan, ShardRange};
use crate::store::{Processor, ReadShardError, ShardStore, Timer};

pub use crate::writer::DiskCheck;

/// Combinations of shards that are tried for a chunk whose bytes are wrong although its shards' checksums are right.
pub const COMBINATIONS_MAX: usize = 256;

/// How long a read waits before it comes again to a disk that was busy.
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// How long a read waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadPatience {
    /// After this time other shards are asked as well: the observed 95th percentile, or a setting. The same again for
    /// those.
    pub hedge_after: Duration,
    /// After this time the read fails as unavailable.
    pub deadline: Duration,
}

/// A shard that was found lost or wrong, for the repairer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedShard {
    /// The stripe.
    pub stripe: StripeId,
    /// Which of its shards.
    pub position: Position,
    /// Where it should be.
    pub disk: DiskId,
    /// What was found, in words.
    pub reason: String,
}

/// What a read gave.
#[derive(Debug)]
pub struct ReadStripe {
    /// The chunks' plain bytes, verified, in the order of the request.
    pub chunks: Vec<(ChunkId, Bytes)>,
    /// Shards found damaged on the way.
    pub damaged: Vec<DamagedShard>,
    /// Disks that did not answer, or failed this time.
    pub unavailable: Vec<DiskId>,
}

/// Why chunks cannot be read. Variants differ where the caller's next move differs.
#[derive(Debug, thiserror::Error)]
pub enum ReadChunkError {
    /// The map does not know the volume: fetch it anew.
    #[error("no volume {volume} in the cluster map")]
    UnknownVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// The locations are not of one stripe, or not within it: the registry is wrong.
    #[error("bad location: stripe={stripe:?}")]
    BadLocation {
        /// The first chunk's stripe; `None` if no chunk was asked for.
        stripe: Option<StripeId>,
    },
    /// Too few shards can be had now: try later, or elsewhere.
    #[error("unavailable: stripe={stripe} shards_needed={need}: {} disks do not answer", unavailable.len())]
    Unavailable {
        /// The stripe.
        stripe: StripeId,
        /// Shards that it takes.
        need: usize,
        /// Disks that did not answer, or failed this time.
        unavailable: Vec<DiskId>,
        /// Shards found damaged on the way.
        damaged: Vec<DamagedShard>,
    },
    /// Too few shards are left, or none of their combinations gives the chunk. If the chunk was moved meanwhile, its
    /// new place may have it: look it up once more.
    #[error("lost: chunk={chunk} stripe={stripe} shards_left={have} shards_needed={need}")]
    Lost {
        /// The first chunk that is lost.
        chunk: ChunkId,
        /// Its stripe.
        stripe: StripeId,
        /// Shards left.
        have: usize,
        /// Shards that it takes.
        need: usize,
        /// What was found.
        damaged: Vec<DamagedShard>,
    },
}

/// Chunks that are smaller than this together are decoded where they arrive: to hand them over would take as long.
const HANDED_OVER_BYTES_MIN: usize = 128 * 1024;

/// Reads chunks. Cheap to clone.
#[derive(Debug)]
pub struct ChunkReader<S, T, P> {
    store: Arc<S>,
    timer: Arc<T>,
    processor: Arc<P>,
    /// Grows with every read, so that copies share the load.
    turn: Arc<AtomicUsize>,
}

impl<S, T, P> Clone for ChunkReader<S, T, P> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            timer: self.timer.clone(),
            processor: self.processor.clone(),
            turn: self.turn.clone(),
        }
    }
}

/// What one read has found out about disks.
struct Findings<'a> {
    stripe: StripeId,
    volume: &'a Volume,
    damaged: Vec<DamagedShard>,
    unavailable: Vec<DiskId>,
}

impl Findings<'_> {
    fn disk(&self, position: Position) -> DiskId {
        self.volume.members[usize::from(position.0)]
    }

    fn damaged(&mut self, position: Position, reason: String) {
        if !self.damaged.iter().any(|shard| shard.position == position) {
            self.damaged.push(DamagedShard {
                stripe: self.stripe,
                position,
                disk: self.disk(position),
                reason,
            });
        }
    }

    fn unavailable(&mut self, position: Position) {
        let disk = self.disk(position);
        if !self.unavailable.contains(&disk) {
            self.unavailable.push(disk);
        }
    }
}

impl<S: ShardStore, T: Timer, P: Processor> ChunkReader<S, T, P> {
    /// Over these.
    #[must_use]
    pub fn new(store: Arc<S>, timer: Arc<T>, processor: Arc<P>) -> Self {
        Self { store, timer, processor, turn: Arc::default() }
    }

    /// Reads `chunks`, all of one stripe. `available` says which disks are expected to answer, beside the map; others
    /// are asked only when too few are left. At most a stripe's bytes, and as much again while decoding, are held.
    ///
    /// Cancel safety: reads are dropped with the future; nothing else happens.
    ///
    /// # Errors
    /// If any of them cannot be read: none is returned then.
    pub async fn read_chunks(
        &self,
        map: &ClusterMap,
        available: DiskCheck<'_>,
        chunks: &[LocatedChunk],
        patience: ReadPatience,
    ) -> Result<ReadStripe, ReadChunkError> {
        let stripe = chunks.first().map(|chunk| chunk.location.stripe);
        let bad_location = ReadChunkError::BadLocation { stripe };
        let Some(stripe) = stripe else { return Err(bad_location) };
        let volume = map
            .volume(stripe.volume())
            .filter(|volume| volume.members.len() == volume.code.total())
            .ok_or(ReadChunkError::UnknownVolume { volume: stripe.volume() })?;
        let up = |position: Position| {
            let disk = volume.members[usize::from(position.0)];
            map.disk_health(disk).readable() && available(disk)
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let Some(plan) = ReadPlan::new(volume.code, chunks, &up, turn) else { return Err(bad_location) };
        let findings = Findings { stripe, volume, damaged: Vec::new(), unavailable: Vec::new() };
        let mut read = StripeRead { plan, findings, patience };
        self.fetch(&mut read, chunks[0].chunk).await?;
        let mut verified = Vec::with_capacity(chunks.len());
        for (chunk, plain) in chunks.iter().zip(self.decode(&read.plan, chunks).await) {
            let plain = match plain {
                Some(plain) => plain,
                None => self.read_among_liars(&mut read, chunk).await?,
            };
            verified.push((chunk.chunk, plain));
        }
        let Findings { damaged, unavailable, .. } = read.findings;
        Ok(ReadStripe { chunks: verified, damaged, unavailable })
    }

    /// Reads until the plan is ready.
    async fn fetch(&self, read: &mut StripeRead<'_>, chunk: ChunkId) -> Result<(), ReadChunkError> {
        let mut deadline = std::pin::pin!(self.timer.sleep(read.patience.deadline));
        let mut hedge = std::pin::pin!(self.timer.sleep(read.patience.hedge_after));
        let mut under_way = FuturesUnordered::new();
        loop {
            match read.plan.step() {
                Progress::Ready => return Ok(()),
                Progress::Lost { have, .. } => return Err(read.lost(chunk, have)),
                Progress::Waiting(reads) => {
                    under_way.extend(reads.into_iter().map(|range| self.read(&read.findings, range)));
                }
            }
            match select(select(under_way.next(), &mut hedge), &mut deadline).await {
                Either::Left((Either::Left((Some((range, result)), _)), _)) => read.take(range, result),
                Either::Left((Either::Left((None, _)), _)) => return Err(read.lost(chunk, 0)),
                Either::Left((Either::Right(_), _)) => {
                    read.plan.hedge();
                    hedge.set(self.timer.sleep(read.patience.hedge_after));
                }
                Either::Right(_) => return Err(read.late()),
            }
        }
    }

    /// The chunks that the bytes held give, in order.
    async fn decode(&self, plan: &ReadPlan, chunks: &[LocatedChunk]) -> Vec<Option<Bytes>> {
        let bytes = chunks.iter().map(|chunk| chunk.location.plain_length as usize).sum::<usize>();
        if bytes < HANDED_OVER_BYTES_MIN {
            return decode_all(plan, chunks);
        }
        let (moved_plan, moved_chunks) = (plan.clone(), chunks.to_vec());
        let decoded = self.processor.run(move || decode_all(&moved_plan, &moved_chunks)).await;
        decoded.unwrap_or_else(|| decode_all(plan, chunks))
    }

    /// The chunk's bytes are wrong although its shards passed their checksums: reads it from all positions, and looks
    /// for some that give it.
    async fn read_among_liars(
        &self,
        read: &mut StripeRead<'_>,
        chunk: &LocatedChunk,
    ) -> Result<Bytes, ReadChunkError> {
        let mut deadline = std::pin::pin!(self.timer.sleep(read.patience.deadline));
        let mut hedge = std::pin::pin!(self.timer.sleep(read.patience.hedge_after));
        let mut hedged = false;
        let mut under_way: FuturesUnordered<_> =
            read.plan.ask_all(chunk).into_iter().map(|range| self.read(&read.findings, range)).collect();
        while !under_way.is_empty() {
            let usual_time =
                if hedged { Either::Left(std::future::pending()) } else { Either::Right(&mut hedge) };
            match select(select(under_way.next(), usual_time), &mut deadline).await {
                Either::Left((Either::Left((Some((range, result)), _)), _)) => read.take(range, result),
                Either::Left((Either::Right(_), _)) => {
                    // Those that have answered may be enough.
                    hedged = true;
                    if let Some(plain) = self.see_through(read, chunk).await {
                        return Ok(plain);
                    }
                }
                Either::Left((Either::Left((None, _)), _)) | Either::Right(_) => break,
            }
        }
        if let Some(plain) = self.see_through(read, chunk).await {
            return Ok(plain);
        }
        let have = read.plan.positions().len().saturating_sub(read.findings.damaged.len());
        Err(read.lost(chunk.chunk, have))
    }

    /// The chunk from what is held without those that lie, who are reported.
    async fn see_through(&self, read: &mut StripeRead<'_>, chunk: &LocatedChunk) -> Option<Bytes> {
        let (moved_plan, moved_chunk) = (read.plan.clone(), *chunk);
        let seen = self.processor.run(move || see_through(&moved_plan, &moved_chunk)).await;
        let (plain, liars) = seen.unwrap_or_else(|| see_through(&read.plan, chunk))?;
        for liar in liars.iter() {
            read.findings.damaged(liar, "its bytes are not what the other shards give".to_owned());
        }
        Some(plain)
    }

    fn read(
        &self,
        findings: &Findings<'_>,
        range: ShardRange,
    ) -> impl Future<Output = (ShardRange, Result<Bytes, ReadShardError>)> + use<'_, S, T, P> {
        let (disk, stripe) = (findings.disk(range.position), findings.stripe);
        async move {
            let length = range.end - range.start;
            loop {
                match self.store.read_shard(disk, stripe, range.position, range.start, length).await {
                    // Asked again until the read as a whole is over; meanwhile others are asked, as for a slow one.
                    Err(ReadShardError::Busy { .. }) => self.timer.sleep(BUSY_WAIT).await,
                    result => return (range, result),
                }
            }
        }
    }
}

/// One read under way.
struct StripeRead<'a> {
    plan: ReadPlan,
    findings: Findings<'a>,
    patience: ReadPatience,
}

impl StripeRead<'_> {
    fn take(&mut self, range: ShardRange, result: Result<Bytes, ReadShardError>) {
        match result {
            Ok(bytes) if bytes.len() == (range.end - range.start) as usize => self.plan.arrived(range, bytes),
            Ok(bytes) => {
                let asked = range.end - range.start;
                self.findings.damaged(range.position, format!("{} bytes came for {asked}", bytes.len()));
                self.plan.failed(range);
            }
            Err(ReadShardError::Lost { reason, .. }) => {
                self.findings.damaged(range.position, reason);
                self.plan.failed(range);
            }
            Err(ReadShardError::Unavailable { .. } | ReadShardError::Busy { .. }) => {
                self.findings.unavailable(range.position);
                self.plan.failed(range);
            }
        }
    }

    /// Lost for good, or only for now, by how many shards are known to be damaged.
    fn lost(&mut self, chunk: ChunkId, have: usize) -> ReadChunkError {
        let need = self.plan.need();
        let stripe = self.findings.stripe;
        let damaged = std::mem::take(&mut self.findings.damaged);
        let unavailable = std::mem::take(&mut self.findings.unavailable);
        if !unavailable.is_empty() && self.plan.positions().len() >= need + damaged.len() {
            ReadChunkError::Unavailable { stripe, need, unavailable, damaged }
        } else {
            ReadChunkError::Lost { chunk, stripe, have, need, damaged }
        }
    }

    /// The deadline is over: whatever did not answer is unavailable.
    fn late(&mut self) -> ReadChunkError {
        self.plan.under_way().for_each(|position| self.findings.unavailable(position));
        ReadChunkError::Unavailable {
            stripe: self.findings.stripe,
            need: self.plan.need(),
            unavailable: std::mem::take(&mut self.findings.unavailable),
            damaged: std::mem::take(&mut self.findings.damaged),
        }
    }
}

/// The chunks that the bytes held give, in order.
fn decode_all(plan: &ReadPlan, chunks: &[LocatedChunk]) -> Vec<Option<Bytes>> {
    let decode = |chunk: &LocatedChunk| {
        plan.stored_bytes(chunk, PositionSet::EMPTY).and_then(|stored| decode(chunk, stored))
    };
    chunks.iter().map(decode).collect()
}

/// Tries what is held of a chunk without each position, each two, and so on, until some give it; with those that do not
/// agree.
fn see_through(plan: &ReadPlan, chunk: &LocatedChunk) -> Option<(Bytes, PositionSet)> {
    let mut combinations = subsets(plan.positions(), plan.need()).take(COMBINATIONS_MAX);
    combinations.find_map(|without| {
        let plain = decode(chunk, plan.stored_bytes(chunk, without)?)?;
        Some((plain, plan.liars(chunk, without)))
    })
}

/// The plain bytes, if they are the chunk's.
fn decode(chunk: &LocatedChunk, stored: Bytes) -> Option<Bytes> {
    decode_chunk(&chunk.location, stored, chunk.chunk).ok()
}

/// Subsets of `positions`, smallest first, that leave at least `need`; without the empty one.
fn subsets(positions: &[Position], need: usize) -> impl Iterator<Item = PositionSet> {
    let count = positions.len();
    let sizes = 1..=count.saturating_sub(need);
    sizes.flat_map(move |size| masks(count, size)).map(move |mask| {
        (0..count).filter(|index| mask & (1 << index) != 0).map(|index| positions[index]).collect()
    })
}

/// Numbers of `count` bits of which `size` (at least one) are set, ascending.
fn masks(count: usize, size: usize) -> impl Iterator<Item = u64> {
    let next = move |mask: &u64| {
        let lowest = mask & mask.wrapping_neg();
        let ripple = mask + lowest;
        let next = ripple | (((mask ^ ripple) >> 2) / lowest);
        (next < 1 << count).then_some(next)
    };
    std::iter::successors(Some((1_u64 << size) - 1), next)
}

#[cfg(test)]
mod tests;
