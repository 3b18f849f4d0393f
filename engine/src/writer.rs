//! Writes a sealed stripe to a volume, and says when it is durable enough to be acknowledged.
//!
//! What is on disk after a crash, at each step:
//! 1. Shards sent, not all durable: garbage under a stripe id that nobody knows.
//! 2. All durable (or as many as the rule below asks for): still garbage, until the caller registers the stripe.
//! 3. Given up and written to another volume: the first attempt's shards are garbage under an id of their own, since
//!    every attempt has a new one.
//!
//! The rule: a stripe is reported written when every shard is durable. Only when no volume is left whose members are
//! all healthy may it be reported with shards missing: at least `k + 1` durable ones, or two copies of a small stripe
//! in a volume of which `k + 1` members are healthy.
//! What is missing is in the record, which the caller commits: the queue for repair.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;

use crate::cluster::{ClusterMap, StripeLayout, StripeRecord, Volume};
use crate::code::{Code, PositionSet};
use crate::coding::encode;
use crate::ids::{DiskId, Epoch, Position, StripeId, VolumeId};
use crate::store::{Entropy, PutShardError, ShardPut, ShardStore, Timer};
use crate::stripe::{SealedStripe, used_positions};

/// Volumes that are tried for one stripe.
pub const WRITE_ATTEMPTS_MAX: usize = 4;

/// Stripe ids that are drawn to find one whose copies lie on healthy disks only.
const ID_DRAWS_MAX: usize = 64;

/// Says whether a disk takes new shards now: the caller's view, beside the map's.
pub type DiskCheck<'a> = &'a (dyn Fn(DiskId) -> bool + Send + Sync);

/// A stripe that is durable, ready to be registered.
#[derive(Debug)]
pub struct WrittenStripe {
    /// To be committed before its chunks are.
    pub record: StripeRecord,
    /// What went wrong on the way, for logs and for the caller's view of disks.
    pub failed: Vec<FailedPut>,
}

/// A shard that a disk did not store (in time).
#[derive(Debug)]
pub struct FailedPut {
    /// The disk.
    pub disk: DiskId,
    /// Why; `None` = no answer within the deadline.
    pub error: Option<PutShardError>,
}

/// Why a stripe is not durable. Variants differ where the caller's next move differs.
#[derive(Debug, thiserror::Error)]
pub enum WriteStripeError {
    /// There are no volumes yet, or all are sealed.
    #[error("the cluster has no volume that takes stripes: add disks, or wait until volumes are made")]
    NoVolume,
    /// The membership has changed: fetch the cluster map, and write again.
    #[error("stale epoch: volume={volume} current_epoch={current}")]
    StaleEpoch {
        /// The volume.
        volume: VolumeId,
        /// The epoch that a node knows.
        current: Epoch,
    },
    /// Too few disks take writes: refuse, or try later.
    #[error("not enough disks take writes: {durable} of {needed} shards stored{}", describe(failed))]
    NotEnoughDisks {
        /// Most shards of one attempt that became durable.
        durable: usize,
        /// Fewest members of a volume that must take writes.
        needed: usize,
        /// What went wrong.
        failed: Vec<FailedPut>,
    },
}

/// The first few failures, in words.
fn describe(failed: &[FailedPut]) -> String {
    const SHOWN_MAX: usize = 3;
    let mut text = String::new();
    for put in failed.iter().take(SHOWN_MAX) {
        match &put.error {
            Some(error) => text.push_str(&format!("; {error}")),
            None => text.push_str(&format!("; disk {} did not answer in time", put.disk)),
        }
    }
    text
}

/// Fewest durable shards with which a stripe may be acknowledged when no healthy volume is left.
#[must_use]
pub fn durable_shards_min(code: Code, layout: StripeLayout) -> usize {
    match layout {
        StripeLayout::Coded => code.data() + 1,
        StripeLayout::Copies => 2,
    }
}

/// Writes stripes. Cheap to clone.
#[derive(Debug)]
pub struct StripeWriter<S, T, E> {
    store: Arc<S>,
    timer: Arc<T>,
    entropy: Arc<E>,
}

impl<S, T, E> Clone for StripeWriter<S, T, E> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), timer: self.timer.clone(), entropy: self.entropy.clone() }
    }
}

/// One attempt: where to, under which id, and which positions are sent.
#[derive(Clone, Copy, Debug)]
struct Target<'a> {
    volume: &'a Volume,
    stripe: StripeId,
    /// Positions that are to hold a shard.
    used: PositionSet,
    /// Those of them whose disks take writes.
    sent: PositionSet,
}

impl Target<'_> {
    fn disk(&self, position: Position) -> DiskId {
        self.volume.members[usize::from(position.0)]
    }
}

/// What the writer knows of disks while it writes one stripe.
struct View<'a> {
    map: &'a ClusterMap,
    writable: DiskCheck<'a>,
    failed: Vec<FailedPut>,
}

impl<'a> View<'a> {
    fn takes_writes(&self, disk: DiskId) -> bool {
        self.map.disk_health(disk).writable()
            && (self.writable)(disk)
            && !self.failed.iter().any(|put| put.disk == disk)
    }

    /// Positions of `volume` whose disks take writes.
    fn healthy(&self, volume: &Volume) -> PositionSet {
        let by_position = volume.code.positions().zip(&volume.members);
        by_position
            .filter(|(_position, disk)| self.takes_writes(**disk))
            .map(|(position, _disk)| position)
            .collect()
    }

    /// Whether enough members take writes for a coded stripe. Small stripes keep to it as well: a cluster that is so
    /// short of disks that it refuses large files must not take small ones as if nothing were wrong.
    fn takes_stripes(&self, volume: &Volume) -> bool {
        self.healthy(volume).count() >= durable_shards_min(volume.code, StripeLayout::Coded)
    }

    /// Whether a stripe that has enough durable shards may be acknowledged: a whole one always, a short one only in a
    /// volume that still takes stripes.
    fn may_acknowledge(&self, record: &StripeRecord) -> bool {
        record.missing.is_empty()
            || record.shape.layout == StripeLayout::Coded
            || self.map.volume(record.stripe.volume()).is_some_and(|volume| self.takes_stripes(volume))
    }

    fn open(&self) -> impl Iterator<Item = &'a Volume> + use<'a> {
        self.map.volumes.iter().filter(|volume| volume.open && volume.members.len() == volume.code.total())
    }

    fn healthy_volumes(&self) -> Vec<&'a Volume> {
        self.open().filter(|volume| self.healthy(volume).count() == volume.code.total()).collect()
    }
}

/// What became of an attempt.
struct Attempt {
    /// The stripe as it stands, what is not durable among the missing.
    record: StripeRecord,
    /// Whether it was given up because another volume may do better.
    given_up: bool,
}

impl Attempt {
    fn durable(&self) -> usize {
        self.record.used.count() - self.record.missing.count()
    }

    fn needed(&self) -> usize {
        durable_shards_min(self.record.code, self.record.shape.layout)
    }
}

impl<S: ShardStore, T: Timer, E: Entropy> StripeWriter<S, T, E> {
    /// Over these.
    #[must_use]
    pub fn new(store: Arc<S>, timer: Arc<T>, entropy: Arc<E>) -> Self {
        Self { store, timer, entropy }
    }

    /// Writes `sealed` to a volume of `map`, and returns once it is durable by the rule at the head of this module.
    /// `writable` says which disks the caller would not use now, although the map has them up. After `deadline` a disk
    /// that has not answered is given up; a write takes at most [`WRITE_ATTEMPTS_MAX`] times that.
    ///
    /// Cancel safety: dropping the future leaves at most garbage on disks; nothing is registered here.
    ///
    /// # Errors
    /// If it is not durable. What was stored of it is garbage.
    pub async fn write(
        &self,
        map: &ClusterMap,
        writable: DiskCheck<'_>,
        sealed: &SealedStripe,
        deadline: Duration,
    ) -> Result<WrittenStripe, WriteStripeError> {
        let mut view = View { map, writable, failed: Vec::new() };
        let mut shards = Shards { sealed, coded: None };
        let mut best: Option<Attempt> = None;
        if view.open().next().is_none() {
            return Err(WriteStripeError::NoVolume);
        }
        for number in 1..=WRITE_ATTEMPTS_MAX {
            let Some(target) = self.choose(&view, sealed.layout()) else { break };
            let last = number == WRITE_ATTEMPTS_MAX;
            let attempt = self.attempt(&mut view, target, &mut shards, deadline, last).await?;
            let enough = attempt.durable() >= attempt.needed() && !attempt.given_up;
            if best.as_ref().is_none_or(|best| best.durable() < attempt.durable()) {
                best = Some(attempt);
            }
            if enough {
                break;
            }
        }
        match best {
            Some(best) if best.durable() >= best.needed() && view.may_acknowledge(&best.record) => {
                Ok(WrittenStripe { record: best.record, failed: view.failed })
            }
            best => {
                let code = best.as_ref().map_or(map.code, |best| best.record.code);
                let needed = durable_shards_min(code, StripeLayout::Coded);
                let durable = best.map_or(0, |best| best.durable());
                Err(WriteStripeError::NotEnoughDisks { durable, needed, failed: view.failed })
            }
        }
    }

    /// Where to write next: a healthy volume; or copies on healthy disks of any volume; or as many healthy disks of
    /// one volume as there are, if they suffice.
    fn choose<'a>(&self, view: &View<'a>, layout: StripeLayout) -> Option<Target<'a>> {
        let healthy = view.healthy_volumes();
        if let Some(volume) = self.pick(&healthy) {
            let stripe = self.stripe_id(volume);
            let used = used_positions(volume.code, stripe, layout);
            return Some(Target { volume, stripe, used, sent: used });
        }
        let open: Vec<&Volume> = view.open().filter(|volume| view.takes_stripes(volume)).collect();
        let draws = match layout {
            StripeLayout::Coded => open.clone(),
            StripeLayout::Copies => (0..ID_DRAWS_MAX).filter_map(|_draw| self.pick(&open)).collect(),
        };
        let targets = draws.into_iter().map(|volume| {
            let stripe = self.stripe_id(volume);
            let used = used_positions(volume.code, stripe, layout);
            let healthy = view.healthy(volume);
            let sent = used.iter().filter(|position| healthy.contains(*position)).collect();
            Target { volume, stripe, used, sent }
        });
        targets
            .filter(|target| target.sent.count() >= durable_shards_min(target.volume.code, layout))
            .min_by_key(|target| target.used.count() - target.sent.count())
    }

    /// Sends the shards, and waits until all are durable, or it is clear that another attempt is better, or the
    /// deadline is over.
    async fn attempt(
        &self,
        view: &mut View<'_>,
        target: Target<'_>,
        shards: &mut Shards<'_>,
        deadline: Duration,
        last: bool,
    ) -> Result<Attempt, WriteStripeError> {
        let mut durable = PositionSet::EMPTY;
        let mut waiting = target.sent;
        let mut given_up = false;
        let mut over = std::pin::pin!(self.timer.sleep(deadline));
        let mut puts: FuturesUnordered<_> = shards
            .puts(target)
            .into_iter()
            .map(|put| async { (put.position, self.store.put_shard(put).await) })
            .collect();
        while !waiting.is_empty() && !given_up {
            let (position, result) = match select(puts.next(), &mut over).await {
                Either::Left((Some(done), _over)) => done,
                Either::Left((None, _)) | Either::Right(_) => break,
            };
            waiting = waiting.without(position);
            match result {
                Ok(()) => durable = durable.with(position),
                Err(PutShardError::StaleEpoch { current, .. }) => {
                    return Err(WriteStripeError::StaleEpoch { volume: target.volume.volume, current });
                }
                Err(error) => {
                    view.failed.push(FailedPut { disk: target.disk(position), error: Some(error) });
                    given_up = !last && !view.healthy_volumes().is_empty();
                }
            }
        }
        if !given_up && !waiting.is_empty() {
            let late = waiting.iter().map(|position| FailedPut { disk: target.disk(position), error: None });
            view.failed.extend(late);
            given_up = !last && !view.healthy_volumes().is_empty();
        }
        let record = StripeRecord {
            stripe: target.stripe,
            code: target.volume.code,
            shape: shards.sealed.shape(),
            epoch: target.volume.epoch,
            used: target.used,
            missing: target.used.iter().filter(|position| !durable.contains(*position)).collect(),
        };
        Ok(Attempt { record, given_up })
    }

    fn stripe_id(&self, volume: &Volume) -> StripeId {
        let mut random = [0; 8];
        self.entropy.fill(&mut random);
        StripeId::new(volume.volume, random)
    }

    fn pick<'a>(&self, volumes: &[&'a Volume]) -> Option<&'a Volume> {
        let mut random = [0; 8];
        self.entropy.fill(&mut random);
        let index = u64::from_be_bytes(random).checked_rem(volumes.len() as u64)?;
        volumes.get(usize::try_from(index).ok()?).copied()
    }
}

/// The shards of one stripe, coded once per code.
struct Shards<'a> {
    sealed: &'a SealedStripe,
    coded: Option<(Code, Vec<Bytes>)>,
}

impl Shards<'_> {
    fn payload(&mut self, code: Code, position: Position) -> Bytes {
        if self.sealed.layout() == StripeLayout::Copies {
            return self.sealed.bytes().clone();
        }
        if self.coded.as_ref().is_none_or(|(coded, _shards)| *coded != code) {
            self.coded = None;
        }
        let (_code, shards) = self.coded.get_or_insert_with(|| (code, encode(code, self.sealed.bytes())));
        shards[usize::from(position.0)].clone()
    }

    fn puts(&mut self, target: Target<'_>) -> Vec<ShardPut> {
        let (volume, shape) = (target.volume, self.sealed.shape());
        let put = |position: Position| ShardPut {
            disk: target.disk(position),
            stripe: target.stripe,
            position,
            epoch: volume.epoch,
            code: volume.code,
            layout: shape.layout,
            stripe_length: shape.length,
            payload: self.payload(volume.code, position),
        };
        target.sent.iter().map(put).collect()
    }
}

#[cfg(test)]
mod tests;
