//! A Raft group of this node: starts it, and the handle by which the rest of the node uses it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::ids::{GroupId, NodeId};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{BasicNode, Config, SnapshotPolicy};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::batcher::{self, GroupTime, PROPOSALS_WAITING_MAX, Proposal};
use super::log_store::LogStore;
use super::network::GroupNetwork;
use super::peers::Peers;
use super::reader::{self, QUERIES_WAITING_MAX, QueryJob};
use super::state_store::StateStore;
use super::types::Raft;
use crate::app::{App, LogTime};
use crate::log_clock::Clocks;
use crate::node::space::{Room, SpaceGate};
use crate::standing::prover::Standing;
use crate::watchers::{Watcher, Watchers};

/// Bytes of one command.
pub const COMMAND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of commands that are judged at once; more are judged on a thread that may be blocked.
const JUDGED_INLINE_BYTES_MAX: usize = 256 * 1024;
/// How long a proposal may take to commit before its outcome counts as unknown.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(8);

const HEARTBEAT_MS: u64 = 150;
const ELECTION_MS_MIN: u64 = 450;
const ELECTION_MS_MAX: u64 = 750;
/// openraft's bound for a snapshot, which no code of it enforces: a year.
const SNAPSHOT_MS_MAX: u64 = 365 * 24 * 60 * 60 * 1000;
/// How long a node waits for the one before it to found a group.
const FOUND_DELAY: Duration = Duration::from_millis(1500);

/// Why a group did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Another node leads, or none; for commands that were under way the outcome is unknown.
    #[error("this node does not lead the group; leader={leader:?}")]
    NotLeader {
        /// Who leads, if this node knows.
        leader: Option<NodeId>,
    },
    /// No answer in time, or too much waits: try again. The outcome of commands is unknown.
    #[error("the group is not available now: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// The disk of the leader is nearly full: nothing was done, and nothing will be until there is room.
    #[error("the metadata disk of this node is nearly full")]
    NoSpace,
    /// The group has stopped on this node. The outcome of commands is unknown.
    #[error("the group has stopped on this node")]
    Stopped,
}

impl GroupError {
    pub(crate) fn not_leader(leader: Option<u64>) -> Self {
        Self::NotLeader { leader: leader.map(NodeId) }
    }
}

/// Who leads a group, as this node sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// Whether that is this node. (It may have been replaced without knowing it yet.)
    pub is_self: bool,
    /// The term.
    pub term: u64,
}

/// Where a group's log and state are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupProgress {
    /// The term.
    pub term: u64,
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// The last index in the log; 0 for an empty one.
    pub last_log_index: u64,
    /// The last index in the state; 0 for none.
    pub applied_index: u64,
    /// The last index that was purged from the log; 0 for none.
    pub purged_index: u64,
}

/// A group of this node. Clones share it.
#[derive(Clone)]
pub struct GroupHandle {
    group: GroupId,
    raft: Raft,
    proposals: mpsc::Sender<Proposal>,
    queries: mpsc::Sender<QueryJob>,
    leadership: watch::Receiver<Leadership>,
    members: Arc<BTreeMap<u64, String>>,
    space: Arc<SpaceGate>,
    watchers: Arc<Watchers>,
    standing: watch::Receiver<Standing>,
    app: Arc<dyn App>,
    time: GroupTime,
}

/// Commands, those apart that are refused without being proposed.
struct Judged {
    /// For each command its outcome, if it is refused.
    refused: Vec<Option<Bytes>>,
    /// The others.
    proposed: Vec<Bytes>,
    /// One was refused for lack of space.
    no_space: bool,
}

/// Judges commands by their bytes, each by itself: they may be of many callers.
fn judge(app: &dyn App, group: GroupId, room: Room, commands: Vec<Bytes>) -> Judged {
    let mut judged =
        Judged { refused: Vec::with_capacity(commands.len()), proposed: Vec::new(), no_space: false };
    for command in commands {
        let mut refused = app.refusal(group, &command);
        if refused.is_none() && room == Room::Reserve {
            refused = app.refusal_at_reserve(&command);
            judged.no_space |= refused.is_some();
        }
        if refused.is_none() {
            judged.proposed.push(command);
        }
        judged.refused.push(refused.map(Bytes::from));
    }
    judged
}

impl GroupHandle {
    /// Which group this is.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Whether this node leads the group, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leadership.borrow().is_self
    }

    /// Who leads, and every change of it.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Why this node does not vote in the group; empty if it does.
    #[must_use]
    pub fn refuses(&self) -> String {
        self.standing.borrow().reason().to_owned()
    }

    /// The group's time by now, as this node sees it.
    #[must_use]
    pub fn time(&self) -> LogTime {
        self.time.now()
    }

    /// An error unless this node votes.
    fn check_standing(&self) -> Result<(), GroupError> {
        let standing = self.standing.borrow();
        if standing.votes() {
            return Ok(());
        }
        Err(GroupError::Unavailable { reason: standing.reason().to_owned() })
    }

    /// Tells from now on what this node applies.
    ///
    /// # Errors
    /// [`GroupError::Unavailable`] if too many are told already.
    pub(crate) fn watch(&self) -> Result<Watcher, GroupError> {
        let many = || GroupError::Unavailable { reason: "too many watchers".to_owned() };
        self.watchers.add().ok_or_else(many)
    }

    /// What the disk of this node has room for, and the bytes left on it.
    #[must_use]
    pub(crate) fn space(&self) -> (Room, u64) {
        (self.space.room(), self.space.free_bytes())
    }

    /// Where log and state are now.
    #[must_use]
    pub fn progress(&self) -> GroupProgress {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        GroupProgress {
            term: metrics.current_term,
            leader: metrics.current_leader.map(NodeId),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            applied_index: metrics.last_applied.map_or(0, |applied| applied.index),
            purged_index: metrics.purged.map_or(0, |purged| purged.index),
        }
    }

    /// Commits one encoded command and returns its encoded outcome.
    ///
    /// Not cancel safe: a command whose caller has gone may be committed all the same.
    ///
    /// # Errors
    /// See [`GroupError`]. A command may be proposed again after any of them, for its request id makes that harmless.
    pub async fn propose(&self, command: Vec<u8>) -> Result<Vec<u8>, GroupError> {
        let outcomes = self.propose_all(vec![command.into()]).await?;
        outcomes.into_iter().next().map(Vec::from).ok_or(GroupError::Stopped)
    }

    /// Commits encoded commands, in order but not as one, and returns the outcome of each. A command that the state
    /// machine refuses by its bytes alone is not proposed; it gets its outcome beside the others.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn propose_all(&self, commands: Vec<Bytes>) -> Result<Vec<Bytes>, GroupError> {
        let bytes = commands.iter().map(Bytes::len).sum::<usize>();
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        self.check_standing()?;
        let leadership = *self.leadership.borrow();
        if !leadership.is_self {
            return Err(GroupError::NotLeader { leader: leadership.leader });
        }
        let room = self.space.room();
        if room == Room::None {
            return Err(GroupError::NoSpace);
        }
        let (app, group) = (Arc::clone(&self.app), self.group);
        let judge = move || judge(&*app, group, room, commands);
        let judged = if bytes > JUDGED_INLINE_BYTES_MAX {
            tokio::task::spawn_blocking(judge).await.map_err(|_panicked| GroupError::Stopped)?
        } else {
            judge()
        };
        if judged.proposed.is_empty() && judged.no_space {
            return Err(GroupError::NoSpace);
        }
        let proposed =
            if judged.proposed.is_empty() { Vec::new() } else { self.commit(judged.proposed).await? };
        let mut proposed = proposed.into_iter();
        let all = judged.refused.into_iter().map(|refused| refused.or_else(|| proposed.next()));
        all.collect::<Option<Vec<Bytes>>>().ok_or(GroupError::Stopped)
    }

    /// Commits commands that have been judged, and returns the outcome of each.
    async fn commit(&self, commands: Vec<Bytes>) -> Result<Vec<Bytes>, GroupError> {
        let (outcomes, answer) = oneshot::channel();
        self.proposals.try_send(Proposal { commands, outcomes }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                GroupError::Unavailable { reason: "too many proposals are waiting".to_owned() }
            }
            mpsc::error::TrySendError::Closed(_) => GroupError::Stopped,
        })?;
        match tokio::time::timeout(PROPOSE_TIMEOUT, answer).await {
            Ok(answer) => answer.unwrap_or(Err(GroupError::Stopped)),
            Err(_elapsed) => {
                Err(GroupError::Unavailable { reason: "no quorum committed in time".to_owned() })
            }
        }
    }

    /// Answers an encoded query from this node's state, after a read index.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>, GroupError> {
        self.check_standing()?;
        let (reply, answer) = oneshot::channel();
        self.queries.try_send(QueryJob { query, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                GroupError::Unavailable { reason: "too many queries are waiting".to_owned() }
            }
            mpsc::error::TrySendError::Closed(_) => GroupError::Stopped,
        })?;
        answer.await.unwrap_or(Err(GroupError::Stopped))
    }

    /// Asks another voter to lead, a different one for each `turn`.
    pub(crate) async fn hand_over(&self, turn: usize) {
        let own = *self.raft.node_id();
        let others: Vec<u64> = self.members.keys().copied().filter(|member| *member != own).collect();
        let Some(to) = others.get(turn % others.len().max(1)) else { return };
        if let Err(error) = self.raft.trigger().transfer_leader(*to).await {
            tracing::warn!(group = %self.group, %error, "the group could not be handed over");
        }
    }

    /// Asks openraft to purge what it may now. For tests and operators.
    ///
    /// # Errors
    /// If the group has stopped.
    pub async fn compact(&self) -> Result<(), GroupError> {
        self.raft.trigger().snapshot().await.map_err(|_fatal| GroupError::Stopped)
    }
}

/// What a group is started with.
pub(crate) struct GroupParts {
    pub(crate) group: GroupId,
    pub(crate) node: u64,
    pub(crate) members: Arc<BTreeMap<u64, String>>,
    pub(crate) log: LogStore,
    pub(crate) state: StateStore,
    pub(crate) peers: Arc<Peers>,
    pub(crate) snapshot_log_entries: u64,
    pub(crate) log_entries_kept: u64,
    pub(crate) space: Arc<SpaceGate>,
    /// How long a snapshot may take to get on by nothing at all.
    pub(crate) snapshot_stall_max: Duration,
    /// What the voters' clocks show.
    pub(crate) clocks: Arc<Clocks>,
    /// Told once a group has failed for good.
    pub(crate) failed: watch::Sender<Option<String>>,
    /// Whether this node votes.
    pub(crate) standing: watch::Receiver<Standing>,
    /// Whether a group may be founded.
    pub(crate) may_found: watch::Receiver<bool>,
}

fn config(parts: &GroupParts) -> Config {
    Config {
        cluster_name: format!("group-{}", parts.group),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MS_MIN,
        election_timeout_max: ELECTION_MS_MAX,
        // How long a snapshot may take is up to the network: for as long as it gets on.
        install_snapshot_timeout: SNAPSHOT_MS_MAX,
        max_payload_entries: 256,
        max_append_entries: Some(256),
        replication_lag_threshold: parts.snapshot_log_entries.saturating_add(parts.log_entries_kept),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(parts.snapshot_log_entries),
        max_in_snapshot_log_to_keep: parts.log_entries_kept,
        purge_batch_size: (parts.snapshot_log_entries / 4).max(1),
        enable_pre_vote: Some(true),
        // Switched on once others have confirmed that this node may vote.
        enable_elect: false,
        ..Config::default()
    }
}

/// Starts a group; its tasks run in `tasks` and end after `stop`.
pub(crate) async fn start(
    parts: GroupParts,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<GroupHandle, String> {
    let config = Arc::new(config(&parts).validate().map_err(|error| error.to_string())?);
    let GroupParts { group, node, members, log, state, peers, space, .. } = parts;
    let GroupParts { snapshot_stall_max, clocks, failed, standing, may_found, .. } = parts;
    let watchers = Arc::new(Watchers::default());
    let state = state.with_watchers(Arc::clone(&watchers));
    let app = state.app();
    let applied = state.clone();
    let log_clock = tokio::task::spawn_blocking(move || applied.clock())
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let time = GroupTime { log: log_clock, clocks };
    let network = GroupNetwork { group, node, peers, standing: standing.clone(), snapshot_stall_max };
    let raft =
        Raft::new(node, config, network, log, state.clone()).await.map_err(|error| error.to_string())?;

    let (proposals, waiting_proposals) = mpsc::channel(PROPOSALS_WAITING_MAX);
    let (queries, waiting_queries) = mpsc::channel(QUERIES_WAITING_MAX);
    let (told, leadership) = watch::channel(Leadership::default());
    tasks.spawn(batcher::run(raft.clone(), waiting_proposals, time.clone(), stop.clone()));
    tasks.spawn(reader::run(raft.clone(), state, waiting_queries, stop.clone()));
    tasks.spawn(watch_leadership(raft.clone(), group, told, failed, standing.clone(), stop.clone()));
    tasks.spawn(found(raft.clone(), group, Arc::clone(&members), may_found, stop.clone()));
    Ok(GroupHandle {
        group,
        raft,
        proposals,
        queries,
        leadership,
        members,
        space,
        watchers,
        standing,
        app,
        time,
    })
}

impl GroupHandle {
    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }
}

/// Tells who leads, and that the group has failed: a disk error stops it until the process starts again. Lets the node
/// stand for election for as long as it votes.
async fn watch_leadership(
    raft: Raft,
    group: GroupId,
    told: watch::Sender<Leadership>,
    failed: watch::Sender<Option<String>>,
    mut standing: watch::Receiver<Standing>,
    stop: CancellationToken,
) {
    let mut metrics = raft.metrics();
    loop {
        let votes = standing.borrow_and_update().votes();
        raft.runtime_config().elect(votes);
        let now = {
            let metrics = metrics.borrow_and_update();
            if let Err(fatal) = &metrics.running_state
                && !stop.is_cancelled()
            {
                let reason = format!("group {group} has stopped: {fatal}");
                failed.send_if_modified(|first| first.is_none().then(|| *first = Some(reason)).is_some());
            }
            let leader = metrics.current_leader;
            Leadership {
                leader: leader.map(NodeId),
                is_self: votes && metrics.state.is_leader() && leader == Some(metrics.id),
                term: metrics.current_term,
            }
        };
        told.send_if_modified(|last| std::mem::replace(last, now) != now);
        tokio::select! {
            () = stop.cancelled() => break,
            changed = metrics.changed() => if changed.is_err() { break },
            changed = standing.changed() => if changed.is_err() { break },
        }
    }
}

/// Founds the group with the configured members, unless it has been founded: once all of them are there, enrolled
/// together, so that nobody who lost its data founds another one. The nodes take turns, each group another one first, so
/// that leaders are spread; founding twice with the same members is harmless.
async fn found(
    raft: Raft,
    group: GroupId,
    members: Arc<BTreeMap<u64, String>>,
    mut may_found: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let Some(position) = members.keys().position(|member| member == raft.node_id()) else { return };
    let turn = (position + usize::from(group.0)) % members.len();
    let delay = FOUND_DELAY.saturating_mul(u32::try_from(turn).unwrap_or(u32::MAX));
    let wait = async {
        while matches!(raft.is_initialized().await, Ok(false)) {
            if may_found.wait_for(|may| *may).await.is_err() {
                return;
            }
            tokio::time::sleep(delay).await;
            if *may_found.borrow() {
                return;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => return,
        () = wait => {}
    }
    if matches!(raft.is_initialized().await, Ok(false)) {
        let nodes: BTreeMap<u64, BasicNode> =
            members.iter().map(|(id, address)| (*id, BasicNode::new(address))).collect();
        match raft.initialize(nodes).await {
            Ok(()) => tracing::info!(%group, "group founded"),
            // Another one was faster.
            Err(error) => tracing::debug!(%group, %error, "group not founded here"),
        }
    }
}
