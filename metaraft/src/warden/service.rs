//! The warden's shell: takes heartbeats, registers what differs, and creates volumes when disks suffice.
//!
//! Invariants:
//! - It acts only while its node leads the root group; what it knows goes with leadership. A leader that has been
//!   replaced without knowing it yet can do no harm: its commands do not commit.
//! - A heartbeat that changes nothing costs no command. Counts of records are attested in one command for all disks
//!   that have grown, at most every [`ATTEST_INTERVAL`], and at once when a node stops.
//! - Volumes are created once no disk has been registered for [`SETTLE_TIME`], so that the disks of a fresh cluster
//!   are seen together, and never closer together than the settings say, whoever has not come yet; the command says how
//!   many volumes were seen, so two planners never create twice.
//! - A disk that has taken no writes for [`DEAD_AFTER`] counts as dead: its volumes are no reason not to make others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::cluster::{ClusterMap, DiskAttestation, DiskInfo, HISTORY};
use engine::ids::DiskId;
use engine::placement::Spread;
use proto::internal::{DiskState, DiskVerdict, HeartbeatRequest, HeartbeatResponse, VolumeEpoch};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::attest::{self, Judgement};
use super::liveness::Liveness;
use super::plan::{self, Taken};
use super::report::NodeReport;
use crate::api::new_request_at;
use crate::model::codec;
use crate::model::command::{Command, CommandOutcome, RootStep, StepError, Steps};
use crate::model::query::{Query, Reply};
use crate::model::settings::Settings;
use crate::node::{GroupError, GroupHandle, HeartbeatSink, Leadership};

/// How often volumes are planned.
const TICK: Duration = Duration::from_millis(250);

/// How long no disk must have been registered before volumes are created.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// How often the disks' counts of records are written to the root group: what a disk acknowledged before it was
/// replaced by an older copy is missed only if it is younger, and this leader is gone as well.
const ATTEST_INTERVAL: Duration = Duration::from_secs(2);
/// How long a disk must have taken no writes before others are found for its volumes: a restart takes less.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// How long a copy of the map may serve to answer heartbeats.
const MAP_AGE_MAX: Duration = Duration::from_millis(500);

/// The root group, as the warden uses it.
#[tonic::async_trait]
pub trait RootGroup: Send + Sync + 'static {
    /// Commits an encoded command.
    ///
    /// # Errors
    /// As [`GroupHandle::propose`].
    async fn propose(&self, command: Vec<u8>) -> Result<Vec<u8>, GroupError>;

    /// Answers an encoded query, linearizably.
    ///
    /// # Errors
    /// As [`GroupHandle::query`].
    async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>, GroupError>;

    /// Who leads, and every change of it.
    fn leadership(&self) -> watch::Receiver<Leadership>;

    /// The group's log time by now, milliseconds since 1970.
    fn log_ms(&self) -> u64;
}

#[tonic::async_trait]
impl RootGroup for GroupHandle {
    async fn propose(&self, command: Vec<u8>) -> Result<Vec<u8>, GroupError> {
        Self::propose(self, command).await
    }

    async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>, GroupError> {
        Self::query(self, query).await
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        Self::leadership(self)
    }

    fn log_ms(&self) -> u64 {
        self.time().time_ms
    }
}

/// Why the warden could not do something this time.
#[derive(Debug, thiserror::Error)]
enum WardenError {
    /// The group does not answer, or this node does not lead it any more.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The installation has not been made.
    #[error("the cluster has not been initialised")]
    NoCluster,
    /// The command changed nothing.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The group's state machine answered something else.
    #[error("unexpected answer of the root group: {0}")]
    Unexpected(String),
}

/// What a leader has at hand, in memory.
#[derive(Default)]
struct AtHand {
    map: Option<(Instant, Arc<ClusterMap>)>,
    /// When a disk was last registered, or leadership began.
    changed: Option<Instant>,
    /// The latest counts of the disks whose starts are registered.
    counts: BTreeMap<DiskId, DiskAttestation>,
    /// When they were last written down.
    attested: Option<Instant>,
    /// Members of volumes that take no writes, and since when.
    unwell: BTreeMap<DiskId, Instant>,
}

struct Inner {
    root: Box<dyn RootGroup>,
    liveness: Arc<Liveness>,
    at_hand: Mutex<AtHand>,
}

/// The warden of a metadata node.
pub struct Warden {
    inner: Arc<Inner>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Warden {
    /// Begins to watch over the cluster whenever this node leads `root`. Must be called within a tokio runtime.
    /// `liveness` is the one that the group's state machine was made with.
    #[must_use]
    pub fn start(root: impl RootGroup, liveness: Arc<Liveness>) -> Self {
        let inner = Arc::new(Inner { root: Box::new(root), liveness, at_hand: Mutex::default() });
        let warden =
            Self { inner: Arc::clone(&inner), stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let stop = warden.stop.clone();
        warden.tasks.spawn(async move { inner.run(&stop).await });
        warden.tasks.close();
        warden
    }

    /// Where heartbeats go.
    #[must_use]
    pub fn sink(&self) -> Arc<dyn HeartbeatSink> {
        Arc::clone(&self.inner) as Arc<dyn HeartbeatSink>
    }

    /// Ends the warden's task, and waits for it. To be called before the metadata node stops.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Inner {
    fn at_hand<T>(&self, run: impl FnOnce(&mut AtHand) -> T) -> T {
        // Held only for a look or a replacement.
        run(&mut self.at_hand.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn run(&self, stop: &CancellationToken) {
        let mut leadership = self.root.leadership();
        let mut leading = None;
        loop {
            let now = *leadership.borrow_and_update();
            let term = now.is_self.then_some(now.term);
            if term != leading {
                self.change_leadership(term.is_some());
                leading = term;
            }
            if leading.is_some() {
                self.create_volumes().await;
                self.attest_counts(false).await;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = leadership.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(TICK), if leading.is_some() => {}
            }
        }
    }

    fn change_leadership(&self, leads: bool) {
        if leads {
            let now = Instant::now();
            self.liveness.begin_to_lead(now);
            self.at_hand(|at_hand| *at_hand = AtHand { changed: Some(now), ..AtHand::default() });
            tracing::info!("the warden watches over the cluster here");
        } else {
            self.liveness.cease_to_lead();
            self.at_hand(|at_hand| *at_hand = AtHand::default());
        }
    }

    async fn create_volumes(&self) {
        let settled = |changed: Instant| changed.elapsed() >= SETTLE_TIME;
        if !self.at_hand(|at_hand| at_hand.changed.is_some_and(settled)) {
            return;
        }
        match self.create_volumes_due().await {
            Ok(()) | Err(WardenError::NoCluster | WardenError::Group(GroupError::NotLeader { .. })) => {}
            Err(error) => tracing::warn!(error = %error, "volumes could not be planned or created"),
        }
    }

    async fn create_volumes_due(&self) -> Result<(), WardenError> {
        let map = self.fetch_map().await?;
        let dead = self.dead(&map);
        if plan::volumes_due(&map, &dead, Spread::ANY).is_none() {
            return Ok(());
        }
        let spread = self.fetch_settings().await?.volume_spread();
        let Some(step) = plan::volumes_due(&map, &dead, spread) else { return Ok(()) };
        self.propose(vec![step]).await?;
        let map = self.fetch_map().await?;
        let disks = plan::disks_up(&map);
        tracing::info!(volumes = map.volumes.len(), disks, code = %map.code, "volumes created");
        Ok(())
    }

    /// Members of volumes that have taken no writes for a while.
    fn dead(&self, map: &ClusterMap) -> BTreeSet<DiskId> {
        let (now, unwell) = (Instant::now(), plan::unwell(map));
        self.at_hand(|at_hand| {
            at_hand.unwell.retain(|disk, _since| unwell.contains(disk));
            for disk in unwell {
                at_hand.unwell.entry(disk).or_insert(now);
            }
            let dead =
                at_hand.unwell.iter().filter(|(_disk, since)| now.duration_since(**since) >= DEAD_AFTER);
            dead.map(|(disk, _since)| *disk).collect()
        })
    }

    async fn fetch_settings(&self) -> Result<Settings, WardenError> {
        let reply = self.root.query(codec::encode(&Query::Settings)).await?;
        match codec::decode(&reply).map_err(|error| WardenError::Unexpected(error.to_string()))? {
            Reply::Settings(set) => Ok(Settings::new(set)),
            other => Err(WardenError::Unexpected(format!("{other:?}").chars().take(80).collect())),
        }
    }

    async fn fetch_map(&self) -> Result<Arc<ClusterMap>, WardenError> {
        let asked = Instant::now();
        let reply = self.root.query(codec::encode(&Query::ClusterMap)).await?;
        let unexpected = |what: String| WardenError::Unexpected(what);
        match codec::decode(&reply).map_err(|error| unexpected(error.to_string()))? {
            Reply::ClusterMap(map) => {
                let map = Arc::from(map);
                self.at_hand(|at_hand| at_hand.map = Some((asked, Arc::clone(&map))));
                Ok(map)
            }
            Reply::NoCluster => Err(WardenError::NoCluster),
            other => Err(unexpected(format!("{other:?}").chars().take(80).collect())),
        }
    }

    async fn map(&self) -> Result<Arc<ClusterMap>, WardenError> {
        let fresh = |asked: &Instant| asked.elapsed() < MAP_AGE_MAX;
        match self.at_hand(|at_hand| at_hand.map.clone()) {
            Some((asked, map)) if fresh(&asked) => Ok(map),
            _ => self.fetch_map().await,
        }
    }

    async fn propose(&self, steps: Vec<RootStep>) -> Result<(), WardenError> {
        let command = Command::new(new_request_at(self.root.log_ms()), Steps::Root(steps));
        let outcome = self.root.propose(codec::encode(&command)).await?;
        match codec::decode(&outcome).map_err(|error| WardenError::Unexpected(error.to_string()))? {
            CommandOutcome::Done(_) => Ok(()),
            CommandOutcome::Failed { error, .. } => Err(error.into()),
            other => Err(WardenError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Writes the counts down that have grown, if that is due, or `now`.
    async fn attest_counts(&self, now: bool) {
        let due = self.at_hand(|at_hand| {
            let due = now || at_hand.attested.is_none_or(|attested| attested.elapsed() >= ATTEST_INTERVAL);
            if due {
                at_hand.attested = Some(Instant::now());
            }
            due.then(|| at_hand.counts.clone())
        });
        let Some(counts) = due.filter(|counts| !counts.is_empty()) else { return };
        match self.attest(&counts).await {
            Ok(()) | Err(WardenError::NoCluster | WardenError::Group(GroupError::NotLeader { .. })) => {}
            Err(error) => tracing::warn!(error = %error, "the disks' counts could not be written down"),
        }
    }

    async fn attest(&self, counts: &BTreeMap<DiskId, DiskAttestation>) -> Result<(), WardenError> {
        let map = self.map().await?;
        if let Some(step) = plan::counts_due(&map, counts) {
            self.propose(vec![step]).await?;
            self.fetch_map().await?;
        }
        Ok(())
    }

    /// What is known of a disk's start: what is registered, with what was heard of that start since.
    fn known(&self, info: &DiskInfo) -> DiskAttestation {
        let row = info.attested;
        let heard = self.at_hand(|at_hand| at_hand.counts.get(&info.disk).copied());
        match heard.filter(|heard| heard.incarnation == row.incarnation) {
            Some(heard) => DiskAttestation { sequence: row.sequence.max(heard.sequence), ..row },
            None => row,
        }
    }

    fn judge(&self, map: &ClusterMap, report: &NodeReport) -> Taken {
        let free = |info: &DiskInfo| self.liveness.may_take_over(info.disk, info.node, report.node);
        plan::take_in(map, report, |info| self.known(info), free)
    }

    async fn take_in(&self, mut report: NodeReport) -> Result<HeartbeatResponse, WardenError> {
        let looked = self.map().await;
        let mut taken = looked.as_ref().map(|map| self.judge(map, &report)).unwrap_or_default();
        for (disk, judgement) in &taken.judgements {
            if let Some(reported) = report.disks.get_mut(disk) {
                attest::overrule(reported, judgement);
            }
        }
        self.liveness.hear(report.node, report.disks.clone(), Instant::now());
        let mut map = looked?;
        if !taken.steps.is_empty() {
            let registers = |step: &RootStep| !matches!(step, RootStep::DisksAttest { .. });
            if taken.steps.iter().any(registers) {
                self.at_hand(|at_hand| at_hand.changed = Some(Instant::now()));
            }
            tracing::info!(node = %report.node, address = report.address, changes = taken.steps.len(), "registering");
            self.propose(std::mem::take(&mut taken.steps)).await?;
            map = self.fetch_map().await?;
            taken.judgements = self.judge(&map, &report).judgements;
        }
        let verdicts = self.tell(&report, &taken.judgements);
        if report.stopping {
            self.attest_counts(true).await;
        }
        let volumes = plan::epochs_for(&map, &report)
            .into_iter()
            .map(|(volume, epoch)| VolumeEpoch { volume: volume.0, epoch: epoch.0 })
            .collect();
        Ok(HeartbeatResponse { not_leader: None, volumes, verdicts, history: HISTORY })
    }

    /// Remembers the counts of the starts that are registered, and says what the node is to know of its disks.
    fn tell(&self, report: &NodeReport, judgements: &BTreeMap<DiskId, Judgement>) -> Vec<DiskVerdict> {
        let mut verdicts = Vec::new();
        for (disk, judgement) in judgements {
            let Some(reported) = report.disks.get(disk) else { continue };
            let (state, reason) = match judgement {
                Judgement::Unknown | Judgement::Accepted => continue,
                Judgement::Known => {
                    let start = &reported.start;
                    let counted = DiskAttestation {
                        starts: start.starts,
                        incarnation: start.incarnation,
                        sequence: start.sequence,
                        fenced_starts: 0,
                    };
                    self.at_hand(|at_hand| at_hand.counts.insert(*disk, counted));
                    (DiskState::Up, String::new())
                }
                Judgement::Behind(reason) => (DiskState::Behind, reason.clone()),
                Judgement::Fenced(reason) => (DiskState::Failed, reason.clone()),
            };
            verdicts.push(DiskVerdict { disk: disk.as_bytes().to_vec().into(), state: state.into(), reason });
        }
        verdicts
    }
}

#[tonic::async_trait]
impl HeartbeatSink for Inner {
    async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Status> {
        let report =
            NodeReport::parse(&request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.take_in(report).await.map_err(|error| match error {
            WardenError::Step(refused) => Status::failed_precondition(refused.to_string()),
            other => Status::unavailable(other.to_string()),
        })
    }
}
