//! For tests: disks in memory with faults, under a clock that jumps. One thread, and the same run for the same seed.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::cluster::{
    ClusterMap, DiskAttestation, DiskInfo, DiskUsage, Health, Location, StorageNodeInfo, StripeRecord, Volume,
};
use crate::code::Code;
use crate::codec::ChunkCompressor;
use crate::health::DiskState;
use crate::ids::{ChunkId, ClusterId, DiskId, Epoch, NodeId, Position, StripeId, VolumeId};
use crate::location::ChunkKind;
use crate::placement::{PlacementDisk, Spread, plan_volumes};
use crate::reader::ReadPatience;
use crate::store::{
    Entropy, Processor, PutShardError, ReadShardError, ShardLoss, ShardPut, ShardStore, Timer,
};
use crate::stripe::{SealedStripe, StripeBuilder};
use crate::writer::DiskView;

/// A time that jumps to the next thing that happens.
#[derive(Debug, Default)]
pub(crate) struct SimClock(Mutex<ClockState>);

#[derive(Debug, Default)]
struct ClockState {
    now: Duration,
    timers: Vec<(Duration, Waker)>,
}

impl SimClock {
    pub(crate) fn now(&self) -> Duration {
        self.0.lock().unwrap().now
    }

    async fn wait(&self, duration: Duration) {
        let end = self.now() + duration;
        std::future::poll_fn(|context| {
            let mut state = self.0.lock().unwrap();
            if state.now >= end {
                return Poll::Ready(());
            }
            state.timers.push((end, context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Jumps to the earliest timer, and wakes it. Says whether there was one.
    fn jump(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        let Some(earliest) = state.timers.iter().map(|(end, _waker)| *end).min() else { return false };
        state.now = state.now.max(earliest);
        let timers = std::mem::take(&mut state.timers);
        let (due, later): (Vec<_>, Vec<_>) = timers.into_iter().partition(|(end, _waker)| *end <= earliest);
        state.timers = later;
        due.into_iter().for_each(|(_end, waker)| waker.wake());
        true
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A disk's way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// None: answers within 1 to 5 ms.
    None,
    /// Answers, but only after this time.
    Slow(Duration),
    /// Never answers.
    Hangs,
    /// Answers at once that it is not available.
    Down,
    /// Takes no writes; reads go on.
    Full,
    /// Answers at once that it is busy, until then.
    BusyUntil(Duration),
}

#[derive(Debug)]
struct StoreState {
    random: SmallRng,
    faults: BTreeMap<DiskId, Fault>,
    shards: BTreeMap<(DiskId, StripeId, Position), Bytes>,
    /// Puts fail by chance, one in so many; 0 = never.
    flaky_one_in: u32,
    epoch: Epoch,
    reads: Vec<(Position, u32, u32)>,
    puts: usize,
}

/// Disks, clock and randomness.
#[derive(Debug)]
pub(crate) struct Sim {
    pub(crate) clock: Arc<SimClock>,
    state: Mutex<StoreState>,
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let state = StoreState {
            random: SmallRng::seed_from_u64(seed),
            faults: BTreeMap::new(),
            shards: BTreeMap::new(),
            flaky_one_in: 0,
            epoch: Epoch(1),
            reads: Vec::new(),
            puts: 0,
        };
        Arc::new(Self { clock: Arc::default(), state: Mutex::new(state) })
    }

    /// Runs until `future` is done, jumping through time whenever nothing else can happen.
    pub(crate) fn run<F: Future>(&self, future: F) -> F::Output {
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(flag.clone());
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            if !flag.0.swap(false, Ordering::SeqCst) {
                assert!(self.clock.jump(), "everything waits for nothing");
            }
        }
    }

    /// Polls `future` at most `polls` times, then drops it.
    pub(crate) fn run_and_drop<F: Future>(&self, future: F, polls: usize) {
        let mut future = pin!(future);
        for _poll in 0..polls {
            if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() || !self.clock.jump()
            {
                return;
            }
        }
    }

    pub(crate) fn set_fault(&self, disk: DiskId, fault: Fault) {
        self.state.lock().unwrap().faults.insert(disk, fault);
    }

    pub(crate) fn set_flaky(&self, one_in: u32) {
        self.state.lock().unwrap().flaky_one_in = one_in;
    }

    pub(crate) fn set_epoch(&self, epoch: Epoch) {
        self.state.lock().unwrap().epoch = epoch;
    }

    pub(crate) fn holds(&self, disk: DiskId, stripe: StripeId, position: Position) -> bool {
        self.state.lock().unwrap().shards.contains_key(&(disk, stripe, position))
    }

    /// Forgets a shard.
    pub(crate) fn lose(&self, disk: DiskId, stripe: StripeId, position: Position) {
        self.state.lock().unwrap().shards.remove(&(disk, stripe, position));
    }

    /// Changes a shard so that its checksums still hold: the disk lies.
    pub(crate) fn falsify(&self, disk: DiskId, stripe: StripeId, position: Position) {
        let mut state = self.state.lock().unwrap();
        let shard = state.shards.get_mut(&(disk, stripe, position)).unwrap();
        *shard = shard.iter().map(|byte| byte ^ 0x55).collect::<Vec<u8>>().into();
    }

    /// The ranges read since the last call.
    pub(crate) fn take_reads(&self) -> Vec<(Position, u32, u32)> {
        std::mem::take(&mut self.state.lock().unwrap().reads)
    }

    /// Puts so far.
    pub(crate) fn puts(&self) -> usize {
        self.state.lock().unwrap().puts
    }

    fn busy(&self, disk: DiskId) -> bool {
        let fault = self.state.lock().unwrap().faults.get(&disk).copied();
        matches!(fault, Some(Fault::BusyUntil(until)) if self.clock.now() < until)
    }

    /// Waits as the disk's fault says; `false` = it is down.
    async fn answer(&self, disk: DiskId) -> bool {
        let (fault, latency_ms) = {
            let mut state = self.state.lock().unwrap();
            let latency_ms = state.random.random_range(1..=5);
            (state.faults.get(&disk).copied().unwrap_or(Fault::None), latency_ms)
        };
        match fault {
            Fault::None | Fault::Full | Fault::BusyUntil(_) => {
                self.clock.wait(Duration::from_millis(latency_ms)).await
            }
            Fault::Slow(time) => self.clock.wait(time).await,
            Fault::Hangs => std::future::pending().await,
            Fault::Down => return false,
        }
        true
    }
}

impl ShardStore for Sim {
    async fn put_shard(&self, put: ShardPut) -> Result<(), PutShardError> {
        let unavailable =
            || PutShardError::Unavailable { disk: put.disk, reason: "connection refused".to_owned() };
        self.state.lock().unwrap().puts += 1;
        if self.busy(put.disk) {
            return Err(PutShardError::Busy { disk: put.disk, reason: "queue full".to_owned() });
        }
        if !self.answer(put.disk).await {
            return Err(unavailable());
        }
        let mut state = self.state.lock().unwrap();
        if put.epoch < state.epoch {
            let current = state.epoch;
            return Err(PutShardError::StaleEpoch { stripe: put.stripe, position: put.position, current });
        }
        if state.faults.get(&put.disk) == Some(&Fault::Full) {
            return Err(PutShardError::DiskRefuses { disk: put.disk, reason: "full".to_owned() });
        }
        let flaky = state.flaky_one_in > 0 && {
            let one_in = state.flaky_one_in;
            state.random.random_range(0..one_in) == 0
        };
        // A failed put may have stored its shard all the same.
        if !flaky || state.random.random() {
            state.shards.insert((put.disk, put.stripe, put.position), put.payload.clone());
        }
        if flaky { Err(unavailable()) } else { Ok(()) }
    }

    async fn read_shard(
        &self,
        disk: DiskId,
        stripe: StripeId,
        position: Position,
        offset: u32,
        length: u32,
    ) -> Result<Bytes, ReadShardError> {
        self.state.lock().unwrap().reads.push((position, offset, length));
        if self.busy(disk) {
            return Err(ReadShardError::Busy { disk, reason: "queue full".to_owned() });
        }
        if !self.answer(disk).await {
            return Err(ReadShardError::Unavailable { disk, reason: "connection refused".to_owned() });
        }
        let state = self.state.lock().unwrap();
        let shard = state.shards.get(&(disk, stripe, position));
        let range = shard.and_then(|shard| {
            let end = (offset + length) as usize;
            (end <= shard.len()).then(|| shard.slice(offset as usize..end))
        });
        range.ok_or(ReadShardError::Lost {
            stripe,
            position,
            loss: ShardLoss::Absent,
            reason: "not there".to_owned(),
        })
    }
}

impl Timer for Sim {
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send {
        self.clock.wait(duration)
    }
}

/// Takes some time, and comes to no end now and then.
impl Processor for Sim {
    fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> impl Future<Output = Option<R>> + Send {
        let (wait, ends) = {
            let random = &mut self.state.lock().unwrap().random;
            (Duration::from_millis(random.random_range(0..10)), random.random_range(0..8) > 0)
        };
        let waited = self.clock.wait(wait);
        async move {
            waited.await;
            ends.then(work)
        }
    }
}

impl Entropy for Sim {
    fn fill(&self, bytes: &mut [u8]) {
        self.state.lock().unwrap().random.fill_bytes(bytes);
    }
}

pub(crate) fn disk_id(index: u64) -> DiskId {
    let mut id = [0xd1; 16];
    id[8..].copy_from_slice(&index.to_be_bytes());
    DiskId::from_bytes(id)
}

/// One disk per node, all up, with the volumes that placement plans.
pub(crate) fn cluster(disks: u64, code: Code) -> ClusterMap {
    let mut map = ClusterMap {
        cluster: ClusterId::from_bytes([1; 16]),
        revision: 1,
        code,
        meta_nodes: Vec::new(),
        storage_nodes: Vec::new(),
        disks: Vec::new(),
        volumes: Vec::new(),
        slots: Vec::new(),
    };
    for index in 0..disks {
        map.storage_nodes.push(StorageNodeInfo {
            node: NodeId(index),
            address: String::new(),
            location: Location::default(),
            health: Health::Up,
        });
        map.disks.push(DiskInfo {
            disk: disk_id(index),
            node: NodeId(index),
            path: String::new(),
            health: Health::Up,
            reason: String::new(),
            usage: DiskUsage::default(),
            attested: DiskAttestation::default(),
        });
    }
    let planned = plan_volumes(&PlacementDisk::all_up(&map), &[], &BTreeSet::new(), code, Spread::ANY);
    let volume = |(index, members): (usize, Vec<DiskId>)| Volume {
        volume: VolumeId(index as u64 + 1),
        code,
        epoch: Epoch(1),
        members,
        open: true,
    };
    map.volumes = planned.into_iter().enumerate().map(volume).collect();
    map
}

pub(crate) fn set_health(map: &mut ClusterMap, disk: DiskId, health: Health) {
    map.disks.iter_mut().filter(|info| info.disk == disk).for_each(|info| info.health = health);
}

/// The disk that holds, or should hold, a position of a stripe.
pub(crate) fn disk_of(map: &ClusterMap, record: &StripeRecord, position: Position) -> DiskId {
    map.volume(record.stripe.volume()).unwrap().members[usize::from(position.0)]
}

/// A sealed stripe of chunks of these lengths: noise and text in turn. With the chunks' plain bytes.
pub(crate) fn sealed(seed: u64, lengths: &[usize]) -> (SealedStripe, BTreeMap<ChunkId, Bytes>) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut compressor = ChunkCompressor::new();
    let mut builder = StripeBuilder::new();
    let mut plains = BTreeMap::new();
    for (index, length) in lengths.iter().enumerate() {
        let mut plain = vec![0; *length];
        let random_bytes = if index % 3 == 2 { length / 10 } else { *length };
        random.fill_bytes(&mut plain[..random_bytes]);
        let plain = Bytes::from(plain);
        let chunk = ChunkId::of(&plain);
        builder.push(compressor.prepare(chunk, ChunkKind::Data, plain.clone()).unwrap());
        plains.insert(chunk, plain);
    }
    (builder.seal().unwrap(), plains)
}

/// Every disk takes writes and answers reads, as far as the caller knows.
pub(crate) fn all(_disk: DiskId) -> bool {
    true
}

/// The same for writes; whoever is late hangs.
pub(crate) fn plain_view() -> DiskView<'static> {
    DiskView { state: &|_disk| DiskState::Fine, hangs: &all }
}

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) const PATIENCE: ReadPatience =
    ReadPatience { hedge_after: Duration::from_millis(50), deadline: Duration::from_secs(20) };

#[cfg(test)]
mod tests;
