//! The disks as this gateway finds them: every call's outcome and delay feeds the engine's model of their health, and
//! reads and writes go around disks that fail, lag or hang.
//!
//! Invariants:
//! - Every call that begins is told to the model when it is over, also when whoever waited for it has gone.
//! - A disk that hangs gets no calls but probes, one at a time.
//! - A disk that the cluster map says was started anew is judged anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::cluster::{ClusterMap, StripeLayout};
use engine::health::{CallEnd, CallKind, DiskHealth, DiskState, HealthBounds, HungDisk};
use engine::ids::{DiskId, Epoch, Position, StripeId};
use engine::store::{PutShardError, ReadShardError, ShardPut, ShardStore};
use tokio_util::sync::CancellationToken;

use crate::limits::{PROBE_TICK, READ_HEDGE_MIN};
use crate::meta::Meta;
use crate::random;

/// Until the setting has been read.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);

/// What is known of all disks.
#[derive(Debug)]
pub(crate) struct Suspects {
    health: Mutex<DiskHealth>,
    starts: Mutex<Starts>,
    /// Where the model's time begins.
    started: Instant,
}

/// The starts of the disks, as a cluster map told them.
#[derive(Debug, Default)]
struct Starts {
    revision: u64,
    /// The random number of each disk's latest start.
    incarnations: HashMap<DiskId, u64>,
}

impl Starts {
    /// Takes the disks of a map in, each with the random number of its start; says which were started since.
    fn take(&mut self, revision: u64, disks: impl Iterator<Item = (DiskId, u64)>) -> Vec<DiskId> {
        if revision == self.revision {
            return Vec::new();
        }
        self.revision = revision;
        let before = std::mem::replace(&mut self.incarnations, disks.collect());
        let anew =
            |(disk, now): (&DiskId, &u64)| before.get(disk).is_some_and(|was| was != now).then_some(*disk);
        self.incarnations.iter().filter_map(anew).collect()
    }
}

impl Default for Suspects {
    fn default() -> Self {
        let health = DiskHealth::new(HealthBounds::for_deadline(DEADLINE_DEFAULT));
        Self { health: Mutex::new(health), starts: Mutex::default(), started: Instant::now() }
    }
}

impl Suspects {
    fn health(&self) -> MutexGuard<'_, DiskHealth> {
        // Held for a look or a note only, and nothing in it panics halfway.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Sets how long callers wait for a disk.
    pub(crate) fn set_deadline(&self, deadline: Duration) {
        self.health().set_bounds(HealthBounds::for_deadline(deadline));
    }

    /// Takes a cluster map in, before disks are chosen by it.
    pub(crate) fn meet(&self, map: &ClusterMap) {
        let disks = map.disks.iter().map(|info| (info.disk, info.attested.incarnation));
        let anew = self.starts.lock().unwrap_or_else(PoisonError::into_inner).take(map.revision, disks);
        for disk in anew {
            self.health().forget(disk);
        }
    }

    /// Whether a read of a disk is expected to be answered in time, by the map and by what was seen here.
    pub(crate) fn readable(&self, map: &ClusterMap, disk: DiskId) -> bool {
        map.disk_health(disk).readable()
            && self.health().state(self.now(), disk, CallKind::Read) == DiskState::Fine
    }

    /// What to do with a disk that is to be written to, by what was seen here.
    pub(crate) fn write_state(&self, disk: DiskId) -> DiskState {
        self.health().state(self.now(), disk, CallKind::Write)
    }

    /// Whether a disk answers no writes at all.
    pub(crate) fn hangs(&self, disk: DiskId) -> bool {
        self.health().hangs(self.now(), disk, CallKind::Write)
    }

    /// The disks that hang, and for how long each has not answered.
    pub(crate) fn hung(&self) -> Vec<(HungDisk, Duration)> {
        let now = self.now();
        let hung = self.health().hung(now);
        hung.into_iter().map(|disk| (disk, now.saturating_sub(disk.since))).collect()
    }

    /// After which time a read asks for parity as well: what all but one in a hundred take, `most` if that is not known.
    /// A small read asks four disks then instead of one: were it one in twenty, all disks would have a fifth more to do
    /// just when they are slow because they have much to do.
    pub(crate) fn hedge_after(&self, most: Duration) -> Duration {
        let usual = self.health().read_delay_p99();
        usual.map_or(most, |usual| usual.max(READ_HEDGE_MIN).min(most))
    }

    fn begin(self: &Arc<Self>, disk: DiskId, kind: CallKind) -> Call {
        let began = self.now();
        self.health().begin(began, disk, kind);
        Call { suspects: Arc::clone(self), disk, kind, began, end: CallEnd::GivenUp }
    }
}

/// A call under way; given up if it is dropped before it is told how it ended.
struct Call {
    suspects: Arc<Suspects>,
    disk: DiskId,
    kind: CallKind,
    began: Duration,
    end: CallEnd,
}

impl Call {
    fn ended(mut self, end: CallEnd) {
        self.end = end;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let now = self.suspects.now();
        self.suspects.health().end(now, self.disk, self.kind, self.began, self.end);
    }
}

/// A store whose calls are watched.
pub(crate) struct WatchedStore<S> {
    inner: Arc<S>,
    suspects: Arc<Suspects>,
}

impl<S> WatchedStore<S> {
    pub(crate) fn new(inner: Arc<S>, suspects: Arc<Suspects>) -> Self {
        Self { inner, suspects }
    }
}

impl<S: ShardStore> ShardStore for WatchedStore<S> {
    async fn put_shard(&self, put: ShardPut) -> Result<(), PutShardError> {
        let call = self.suspects.begin(put.disk, CallKind::Write);
        let result = self.inner.put_shard(put).await;
        call.ended(match &result {
            Ok(()) | Err(PutShardError::StaleEpoch { .. }) => CallEnd::Answered,
            Err(PutShardError::Busy { .. }) => CallEnd::Busy,
            Err(PutShardError::DiskRefuses { .. }) => CallEnd::Refused,
            Err(PutShardError::Unavailable { .. }) => CallEnd::Failed,
        });
        result
    }

    async fn read_shard(
        &self,
        disk: DiskId,
        stripe: StripeId,
        position: Position,
        offset: u32,
        length: u32,
    ) -> Result<Bytes, ReadShardError> {
        let call = self.suspects.begin(disk, CallKind::Read);
        let result = self.inner.read_shard(disk, stripe, position, offset, length).await;
        call.ended(match &result {
            Ok(_) | Err(ReadShardError::Lost { .. }) => CallEnd::Answered,
            Err(ReadShardError::Busy { .. }) => CallEnd::Busy,
            Err(ReadShardError::Unavailable { .. }) => CallEnd::Failed,
        });
        result
    }
}

/// Asks disks that hang, now and then, whether they still do, until stopped.
pub(crate) async fn probe_hung<S: ShardStore>(
    meta: Meta,
    suspects: Arc<Suspects>,
    store: Arc<WatchedStore<S>>,
    stop: CancellationToken,
) {
    let mut probes = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(PROBE_TICK) => {}
        }
        while probes.try_join_next().is_some() {}
        let due = suspects.health().probes_due(suspects.now());
        for (disk, kind) in due {
            let (map, store) = (meta.map(), Arc::clone(&store));
            let deadline = meta.api().settings().write_deadline();
            probes.spawn(async move {
                // What it answers the model hears; that it does not answer, too.
                drop(tokio::time::timeout(deadline, probe(&map, &*store, disk, kind)).await);
            });
        }
    }
    probes.shutdown().await;
}

/// A call that changes nothing: a read of a shard that nobody has, or a put of an epoch that is over, which the disk's
/// writer refuses in its turn.
async fn probe(map: &ClusterMap, store: &impl ShardStore, disk: DiskId, kind: CallKind) {
    let Some(volume) = map.volumes.iter().find(|volume| volume.members.contains(&disk)) else { return };
    let stripe = StripeId::new(volume.volume, random::bytes());
    let mut at = volume.code.positions().zip(&volume.members);
    let Some((position, _disk)) = at.find(|(_position, member)| **member == disk) else { return };
    match kind {
        CallKind::Read => drop(store.read_shard(disk, stripe, position, 0, 1).await),
        CallKind::Write => {
            let payload = Bytes::from_static(b"?");
            let put = ShardPut {
                disk,
                stripe,
                position,
                epoch: Epoch(0),
                code: volume.code,
                layout: StripeLayout::Copies,
                stripe_length: 1,
                payload,
            };
            drop(store.put_shard(put).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as told.
    struct Answers(PutAnswer);

    #[derive(Clone, Copy)]
    enum PutAnswer {
        Stored,
        Busy,
        Unavailable,
        Never,
    }

    impl ShardStore for Answers {
        async fn put_shard(&self, put: ShardPut) -> Result<(), PutShardError> {
            let (disk, reason) = (put.disk, String::new());
            match self.0 {
                PutAnswer::Stored => Ok(()),
                PutAnswer::Busy => Err(PutShardError::Busy { disk, reason }),
                PutAnswer::Unavailable => Err(PutShardError::Unavailable { disk, reason }),
                PutAnswer::Never => std::future::pending().await,
            }
        }

        async fn read_shard(
            &self,
            disk: DiskId,
            _stripe: StripeId,
            _position: Position,
            _offset: u32,
            _length: u32,
        ) -> Result<Bytes, ReadShardError> {
            Err(ReadShardError::Unavailable { disk, reason: String::new() })
        }
    }

    const DISK: DiskId = DiskId::from_bytes([1; 16]);

    fn put() -> ShardPut {
        ShardPut {
            disk: DISK,
            stripe: StripeId::from_bytes([1; 16]),
            position: Position(0),
            epoch: Epoch(1),
            code: engine::code::Code::new(4, 2).unwrap(),
            layout: StripeLayout::Copies,
            stripe_length: 1,
            payload: Bytes::from_static(b"x"),
        }
    }

    async fn put_to(suspects: &Arc<Suspects>, answer: PutAnswer) {
        let store = WatchedStore::new(Arc::new(Answers(answer)), Arc::clone(suspects));
        drop(tokio::time::timeout(Duration::from_millis(50), store.put_shard(put())).await);
    }

    #[tokio::test]
    async fn a_disk_that_failed_is_suspect_and_a_busy_one_is_not() {
        let suspects = Arc::new(Suspects::default());
        for answer in [PutAnswer::Stored, PutAnswer::Busy] {
            put_to(&suspects, answer).await;
            assert_eq!(suspects.write_state(DISK), DiskState::Fine);
        }
        put_to(&suspects, PutAnswer::Unavailable).await;
        assert_eq!(suspects.write_state(DISK), DiskState::Gone);
        assert_eq!(suspects.write_state(DiskId::from_bytes([2; 16])), DiskState::Fine);
    }

    #[test]
    fn a_start_that_the_map_tells_of_is_noticed_once() {
        let mut starts = Starts::default();
        let mut take = |revision, start| starts.take(revision, [(DISK, start)].into_iter());
        assert!(take(1, 7).is_empty(), "nothing was known before");
        assert!(take(2, 7).is_empty());
        assert_eq!(take(3, 8), [DISK]);
        assert!(take(3, 8).is_empty());
    }

    #[tokio::test]
    async fn a_put_that_is_given_up_is_counted_and_shows_the_hung_disk() {
        let suspects = Arc::new(Suspects::default());
        suspects.set_deadline(Duration::from_millis(50));
        put_to(&suspects, PutAnswer::Never).await;
        assert_eq!(suspects.write_state(DISK), DiskState::Gone);
        let hung = suspects.hung();
        assert!(matches!(hung[..], [(HungDisk { disk: DISK, kind: CallKind::Write, .. }, _)]), "{hung:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(suspects.write_state(DISK), DiskState::Gone, "until it answers");
        put_to(&suspects, PutAnswer::Stored).await;
        assert!(suspects.hung().is_empty());
    }
}
