//! Writes a sealed stripe to a volume, and says when it is durable enough to be acknowledged.
//!
//! What is on disk after a crash, at each step:
//! 1. Shards sent, not all durable: garbage under a stripe id that nobody knows.
//! 2. All durable (or as many as the rule below asks for): still garbage, until the caller registers the stripe.
//! 3. Given up and written to another volume: the first attempt's shards are garbage under an id of their own, since
//!    every attempt has a new one.
//!
//! The rule: a stripe is reported written when every shard is durable. Only when no volume is left without a member
//! that errs or is gone may it be reported with shards missing: at least `k + 1` durable ones, or two copies of a small
//! stripe in a volume of which `k + 1` members are healthy. What is missing is in the record, which the caller commits:
//! the queue for repair.
//!
//! Invariants:
//! - A disk that is busy or slow makes no stripe short: it is gone around where another volume has neither, and else
//!   waited for; if that takes too long, the write is refused ([`WriteStripeError::Busy`]).
//! - A shard that is missing from a record is missing because its disk erred or does not answer at all.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;

use crate::cluster::{ClusterMap, StripeLayout, StripeRecord, Volume};
use crate::code::{Code, PositionSet};
use crate::coding::encode;
use crate::health::DiskState;
use crate::ids::{DiskId, Epoch, Position, StripeId, VolumeId};
use crate::store::{Entropy, PutShardError, ShardPut, ShardStore, Timer};
use crate::stripe::{SealedStripe, used_positions};

/// Volumes that are tried for one stripe, and deadlines that are waited for slow disks.
pub const WRITE_ATTEMPTS_MAX: usize = 4;

/// How long a put waits before it comes again to a disk that was busy: the first time, and at most. Drawn at random
/// from the upper half, so that those who were refused together do not come again together.
const BUSY_WAIT_MIN: Duration = Duration::from_millis(10);
const BUSY_WAIT_MAX: Duration = Duration::from_millis(500);

/// Stripe ids that are drawn to find one whose copies lie on healthy disks only.
const ID_DRAWS_MAX: usize = 64;

/// Says something of a disk: the caller's view, beside the map's.
pub type DiskCheck<'a> = &'a (dyn Fn(DiskId) -> bool + Send + Sync);

/// What the caller knows of disks, beside the map.
#[derive(Clone, Copy)]
pub struct DiskView<'a> {
    /// What to do with a disk that is to be written to.
    pub state: &'a (dyn Fn(DiskId) -> DiskState + Send + Sync),
    /// Whether a disk that has not answered a put until its deadline hangs; otherwise it answers others, and is slow.
    pub hangs: DiskCheck<'a>,
}

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
    /// Disks that take writes were busy or slow all the time: come back later. No disk is to be blamed.
    #[error("the disks are too busy: not stored within {deadlines} deadlines{}", describe(failed))]
    Busy {
        /// Deadlines that were waited for.
        deadlines: usize,
        /// What went wrong beside that.
        failed: Vec<FailedPut>,
    },
    /// Volumes whose members all take writes are left, but every one that was tried had a member that failed: try
    /// again.
    #[error("not stored in {WRITE_ATTEMPTS_MAX} volumes{}", describe(failed))]
    Unsettled {
        /// What went wrong.
        failed: Vec<FailedPut>,
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
    disks: DiskView<'a>,
    /// Disks that erred, or hang.
    failed: Vec<FailedPut>,
    /// Disks that were late for this stripe.
    late: Vec<DiskId>,
    /// Deadlines that have gone by.
    deadlines: usize,
}

impl<'a> View<'a> {
    fn state(&self, disk: DiskId) -> DiskState {
        if !self.map.disk_health(disk).writable() || self.failed.iter().any(|put| put.disk == disk) {
            return DiskState::Gone;
        }
        let state = (self.disks.state)(disk);
        if self.late.contains(&disk) { state.max(DiskState::Slow) } else { state }
    }

    /// Positions of `volume` whose disks are no worse than `worst`.
    fn positions(&self, volume: &Volume, worst: DiskState) -> PositionSet {
        let by_position = volume.code.positions().zip(&volume.members);
        by_position
            .filter(|(_position, disk)| self.state(**disk) <= worst)
            .map(|(position, _disk)| position)
            .collect()
    }

    /// Positions of `volume` whose disks take writes, be it late.
    fn healthy(&self, volume: &Volume) -> PositionSet {
        self.positions(volume, DiskState::Slow)
    }

    /// Whether enough members take writes for a coded stripe. Small stripes keep to it as well: a cluster that is so
    /// short of disks that it refuses large files must not take small ones as if nothing were wrong.
    fn takes_stripes(&self, volume: &Volume) -> bool {
        self.healthy(volume).count() >= durable_shards_min(volume.code, StripeLayout::Coded)
    }

    /// Whether a shard is missing whose disk takes writes.
    fn lacks_healthy(&self, record: &StripeRecord) -> bool {
        let volume = self.map.volume(record.stripe.volume());
        volume.is_some_and(|volume| record.missing.intersects(self.healthy(volume)))
    }

    /// Whether a stripe that has enough durable shards may be acknowledged: a whole one always, a short one only if
    /// no disk that takes writes lacks its shard, and a small one only in a volume that still takes stripes.
    fn may_acknowledge(&self, record: &StripeRecord) -> bool {
        let takes_stripes =
            || self.map.volume(record.stripe.volume()).is_some_and(|volume| self.takes_stripes(volume));
        record.missing.is_empty()
            || (!self.lacks_healthy(record)
                && (record.shape.layout == StripeLayout::Coded || takes_stripes()))
    }

    fn open(&self) -> impl Iterator<Item = &'a Volume> + use<'a> {
        self.map.volumes.iter().filter(|volume| volume.open && volume.members.len() == volume.code.total())
    }

    /// Volumes of which no member is worse than `worst`.
    fn volumes(&self, worst: DiskState) -> Vec<&'a Volume> {
        self.open().filter(|volume| self.positions(volume, worst).count() == volume.code.total()).collect()
    }

    /// Whether an attempt in a volume with a member in that state had better go elsewhere.
    fn better_than(&self, state: DiskState) -> bool {
        match state {
            DiskState::Fine => false,
            DiskState::Slow => !self.volumes(DiskState::Fine).is_empty(),
            DiskState::Gone => !self.volumes(DiskState::Slow).is_empty(),
        }
    }

    /// Sorts those that are late at a deadline: they hang and are gone, or they are slow. Gives the worst.
    fn judge_late(&mut self, late: impl Iterator<Item = DiskId>) -> DiskState {
        self.deadlines += 1;
        let mut worst = DiskState::Fine;
        for disk in late {
            let hangs = (self.disks.hangs)(disk);
            if hangs {
                self.failed.push(FailedPut { disk, error: None });
            } else if !self.late.contains(&disk) {
                self.late.push(disk);
            }
            worst = worst.max(if hangs { DiskState::Gone } else { DiskState::Slow });
        }
        worst
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Every disk that was sent to has answered, or is gone.
    Settled,
    /// Given up because another volume does better.
    GivenUp,
    /// Slow disks have not answered in all the time there is.
    OutOfTime,
}

/// What became of an attempt.
struct Attempt {
    /// The stripe as it stands, what is not durable among the missing.
    record: StripeRecord,
    end: End,
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
    /// `disks` says what the caller knows of them. After `deadline` a disk that has not answered is given up, or
    /// waited for if it is only slow; a write takes at most [`WRITE_ATTEMPTS_MAX`] times that.
    ///
    /// Cancel safety: dropping the future leaves at most garbage on disks; nothing is registered here.
    ///
    /// # Errors
    /// If it is not durable. What was stored of it is garbage.
    pub async fn write(
        &self,
        map: &ClusterMap,
        disks: DiskView<'_>,
        sealed: &SealedStripe,
        deadline: Duration,
    ) -> Result<WrittenStripe, WriteStripeError> {
        let mut view = View { map, disks, failed: Vec::new(), late: Vec::new(), deadlines: 0 };
        let mut shards = Shards { sealed, coded: None };
        let mut attempts = Vec::new();
        let mut unsettled = false;
        if view.open().next().is_none() {
            return Err(WriteStripeError::NoVolume);
        }
        for _attempt in 0..WRITE_ATTEMPTS_MAX {
            let Some(target) = self.choose(&view, sealed.layout()) else { break };
            let attempt = self.attempt(&mut view, target, &mut shards, deadline).await?;
            if attempt.end == End::OutOfTime {
                return Err(WriteStripeError::Busy { deadlines: view.deadlines, failed: view.failed });
            }
            unsettled = attempt.end == End::GivenUp;
            let enough = attempt.durable() >= attempt.needed() && !unsettled;
            attempts.push(attempt);
            if enough {
                break;
            }
        }
        if unsettled && !view.volumes(DiskState::Slow).is_empty() {
            return Err(WriteStripeError::Unsettled { failed: view.failed });
        }
        let durable = attempts.iter().map(Attempt::durable).max().unwrap_or(0);
        let code = attempts.first().map_or(map.code, |attempt| attempt.record.code);
        attempts.retain(|attempt| attempt.durable() >= attempt.needed());
        // A disk that failed when the shards were sent may take writes again by now.
        unsettled = attempts.iter().any(|attempt| view.lacks_healthy(&attempt.record));
        attempts.retain(|attempt| view.may_acknowledge(&attempt.record));
        // Of equals the first.
        match attempts.into_iter().rev().max_by_key(Attempt::durable) {
            Some(best) => Ok(WrittenStripe { record: best.record, failed: view.failed }),
            None if unsettled => Err(WriteStripeError::Unsettled { failed: view.failed }),
            None => {
                let needed = durable_shards_min(code, StripeLayout::Coded);
                Err(WriteStripeError::NotEnoughDisks { durable, needed, failed: view.failed })
            }
        }
    }

    /// Where to write next: a volume whose members are all fine; or one whose members all take writes, be it late; or
    /// copies on healthy disks of any volume; or as many healthy disks of one volume as there are, if they suffice.
    fn choose<'a>(&self, view: &View<'a>, layout: StripeLayout) -> Option<Target<'a>> {
        let whole = [DiskState::Fine, DiskState::Slow].map(|worst| view.volumes(worst));
        if let Some(volume) = whole.iter().find_map(|volumes| self.pick(volumes)) {
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

    /// Sends the shards, and waits until all are durable, or it is clear that another attempt is better, or slow
    /// disks have had all the time there is.
    async fn attempt(
        &self,
        view: &mut View<'_>,
        target: Target<'_>,
        shards: &mut Shards<'_>,
        deadline: Duration,
    ) -> Result<Attempt, WriteStripeError> {
        let mut durable = PositionSet::EMPTY;
        let mut waiting = target.sent;
        let mut end = End::Settled;
        let mut over = std::pin::pin!(self.timer.sleep(deadline));
        let mut puts: FuturesUnordered<_> = shards
            .puts(target)
            .into_iter()
            .map(|put| async { (put.position, self.put_while_busy(put).await) })
            .collect();
        while !waiting.is_empty() && end == End::Settled {
            let worst = match select(puts.next(), &mut over).await {
                Either::Left((Some((position, result)), _over)) => {
                    waiting = waiting.without(position);
                    match result {
                        Ok(()) => {
                            durable = durable.with(position);
                            DiskState::Fine
                        }
                        Err(PutShardError::StaleEpoch { current, .. }) => {
                            let volume = target.volume.volume;
                            return Err(WriteStripeError::StaleEpoch { volume, current });
                        }
                        Err(error) => {
                            view.failed.push(FailedPut { disk: target.disk(position), error: Some(error) });
                            DiskState::Gone
                        }
                    }
                }
                Either::Left((None, _over)) => break,
                Either::Right(_) => {
                    over.set(self.timer.sleep(deadline));
                    let worst = view.judge_late(waiting.iter().map(|position| target.disk(position)));
                    waiting = waiting
                        .iter()
                        .filter(|position| view.state(target.disk(*position)) != DiskState::Gone)
                        .collect();
                    worst
                }
            };
            if view.better_than(worst) {
                end = End::GivenUp;
            } else if view.deadlines >= WRITE_ATTEMPTS_MAX && !waiting.is_empty() {
                end = End::OutOfTime;
            }
        }
        let record = StripeRecord {
            stripe: target.stripe,
            code: target.volume.code,
            shape: shards.sealed.shape(),
            epoch: target.volume.epoch,
            used: target.used,
            missing: target.used.iter().filter(|position| !durable.contains(*position)).collect(),
        };
        Ok(Attempt { record, end })
    }

    /// Puts a shard, and comes again for as long as the disk is busy: until the caller gives up.
    async fn put_while_busy(&self, put: ShardPut) -> Result<(), PutShardError> {
        let mut wait = BUSY_WAIT_MIN;
        loop {
            match self.store.put_shard(put.clone()).await {
                Err(PutShardError::Busy { .. }) => {
                    self.timer.sleep(jittered(&*self.entropy, wait)).await;
                    wait = (wait * 2).min(BUSY_WAIT_MAX);
                }
                result => return result,
            }
        }
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

/// A time from the upper half of `wait`.
fn jittered(entropy: &impl Entropy, wait: Duration) -> Duration {
    let mut random = [0];
    entropy.fill(&mut random);
    wait / 2 + wait * u32::from(random[0]) / 512
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
