//! Who was heard of lately: storage nodes and disks as their heartbeats tell, kept in memory by the root group's
//! leader.
//!
//! Invariants:
//! - Nothing here is durable, and nothing durable is decided by it: losing it costs a grace time.
//! - A leader that has not led for a grace time yet believes the best of those it has not heard of: a change of
//!   leader takes nobody down.
//! - What was learned as a leader is dropped when leadership is.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use engine::cluster::{ClusterMap, DiskUsage, Health};
use engine::ids::{DiskId, NodeId};

/// How long a node's word that it has a disk keeps another node from taking the disk over.
const ELSEWHERE_TIME: Duration = Duration::from_secs(5);

/// A disk, as its node reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskReport {
    /// Its directory.
    pub path: String,
    /// [`Health::Up`], [`Health::Missing`], [`Health::Failed`], [`Health::Full`] or [`Health::Behind`].
    pub health: Health,
    /// Why, in words, when it is not up.
    pub reason: String,
    /// Its figures.
    pub usage: DiskUsage,
    /// Its start.
    pub start: DiskStart,
}

/// A start of a disk, as its node reports it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DiskStart {
    /// Which one, from 1; 0 if nothing is told of it.
    pub starts: u64,
    /// Its random number.
    pub incarnation: u64,
    /// Starts that it descends from, each with the fewest records that any start after it found.
    pub lineage: Vec<(u64, u64)>,
    /// Records ever appended.
    pub sequence: u64,
    /// The operator had it verified after so many starts.
    pub verified_starts: u64,
    /// Whether a write or a sync has failed.
    pub fenced: bool,
}

/// The latest that was heard of a node.
#[derive(Clone, Debug)]
struct NodeReport {
    heard: Instant,
    disks: BTreeMap<DiskId, DiskReport>,
}

#[derive(Debug, Default)]
struct Heard {
    leading_since: Option<Instant>,
    nodes: BTreeMap<NodeId, NodeReport>,
}

/// What the leader remembers of heartbeats. Cheap to lock: held for a look-up or an insertion only.
#[derive(Debug, Default)]
pub struct Liveness {
    heard: Mutex<Heard>,
}

impl Liveness {
    fn with<T>(&self, run: impl FnOnce(&mut Heard) -> T) -> T {
        // A panic in between leaves nothing half-changed that matters: the next heartbeat replaces it.
        run(&mut self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Begins to lead, knowing nobody.
    pub fn begin_to_lead(&self, now: Instant) {
        self.with(|heard| *heard = Heard { leading_since: Some(now), nodes: BTreeMap::new() });
    }

    /// Leads no more.
    pub fn cease_to_lead(&self) {
        self.with(|heard| *heard = Heard::default());
    }

    /// Takes a heartbeat in.
    pub fn hear(&self, node: NodeId, disks: BTreeMap<DiskId, DiskReport>, now: Instant) {
        self.with(|heard| heard.nodes.insert(node, NodeReport { heard: now, disks }));
    }

    /// Whether `disk`, registered in `from`, may be taken over by `to`: no other node was lately heard to serve it, and
    /// `from` itself has been heard under this leader, or has been silent for long enough.
    pub fn may_take_over(&self, disk: DiskId, from: NodeId, to: NodeId) -> bool {
        self.may_take_over_at(disk, from, to, Instant::now())
    }

    /// As [`Liveness::may_take_over`], at a given time.
    pub fn may_take_over_at(&self, disk: DiskId, from: NodeId, to: NodeId, now: Instant) -> bool {
        let lately = |since: Instant| now.saturating_duration_since(since) <= ELSEWHERE_TIME;
        let serves = |report: &NodeReport| report.disks.get(&disk).is_some_and(|disk| disk.health.readable());
        self.with(|heard| {
            let elsewhere = heard
                .nodes
                .iter()
                .any(|(other, report)| *other != to && lately(report.heard) && serves(report));
            let silent = heard.leading_since.is_some_and(|since| !lately(since));
            !elsewhere && (heard.nodes.contains_key(&from) || silent)
        })
    }

    /// Sets health and usage in a map of what is registered, as of now.
    pub fn overlay(&self, map: &mut ClusterMap, grace: Duration) {
        self.overlay_at(map, grace, Instant::now());
    }

    /// As [`Liveness::overlay`], at a given time.
    pub fn overlay_at(&self, map: &mut ClusterMap, grace: Duration, now: Instant) {
        self.with(|heard| heard.overlay(map, grace, now));
    }
}

impl Heard {
    fn overlay(&self, map: &mut ClusterMap, grace: Duration, now: Instant) {
        let fresh = |since: Instant| now.saturating_duration_since(since) <= grace;
        let young = self.leading_since.is_none_or(fresh);
        for info in &mut map.storage_nodes {
            let up = self.nodes.get(&info.node).map_or(young, |report| fresh(report.heard));
            info.health = if up { Health::Up } else { Health::Down };
        }
        for info in &mut map.disks {
            let Some(report) = self.nodes.get(&info.node) else {
                info.health = if young { Health::Up } else { Health::Down };
                continue;
            };
            let disk = report.disks.get(&info.disk);
            info.usage = disk.map_or_else(DiskUsage::default, |disk| disk.usage);
            info.reason = disk.map_or_else(String::new, |disk| disk.reason.clone());
            info.health = match disk {
                _ if !fresh(report.heard) => Health::Down,
                Some(disk) => disk.health,
                None => Health::Missing,
            };
        }
    }
}
