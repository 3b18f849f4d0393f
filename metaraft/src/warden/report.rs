//! Heartbeats off the wire: checked once, here.

use std::collections::BTreeMap;

use engine::cluster::{DiskUsage, Health, Location};
use engine::ids::{DiskId, NodeId};
use proto::internal::{DiskState, HeartbeatRequest};

use super::liveness::{DiskReport, DiskStart};

/// Disks in one node.
const DISKS_MAX: usize = 1024;

/// Bytes of an address, a rack's name or a path.
const TEXT_BYTES_MAX: usize = 4096;

/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 512;

/// Starts of a disk that none confirmed.
const LINEAGE_MAX: usize = 1024;

/// A storage node's report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeReport {
    pub node: NodeId,
    pub address: String,
    pub location: Location,
    pub disks: BTreeMap<DiskId, DiskReport>,
    /// The node stops: nothing more will come.
    pub stopping: bool,
}

/// Why a report is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("heartbeat: {why}")]
pub(super) struct ReportError {
    why: String,
}

fn bad(why: impl Into<String>) -> ReportError {
    ReportError { why: why.into() }
}

/// What a node says in words, fit to be shown: it may name paths and errors of any kind.
fn words(text: &str) -> String {
    text.chars().map(|shown| if shown.is_control() { ' ' } else { shown }).take(REASON_CHARS_MAX).collect()
}

fn text(what: &str, text: &str) -> Result<String, ReportError> {
    if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(bad(format!("{what}: up to {TEXT_BYTES_MAX} bytes, without control characters")));
    }
    Ok(text.to_owned())
}

impl NodeReport {
    /// # Errors
    /// For ids that are none, states that are unknown, or too much of anything.
    pub(super) fn parse(request: &HeartbeatRequest) -> Result<Self, ReportError> {
        if request.disks.len() > DISKS_MAX {
            return Err(bad(format!("{} disks; a node has at most {DISKS_MAX}", request.disks.len())));
        }
        if request.address.is_empty() {
            return Err(bad("no address"));
        }
        let mut disks = BTreeMap::new();
        for reported in &request.disks {
            let disk = DiskId::from_slice(&reported.disk).map_err(|refused| bad(refused.to_string()))?;
            let health = match reported.state() {
                DiskState::Up => Health::Up,
                DiskState::Missing => Health::Missing,
                DiskState::Failed => Health::Failed,
                DiskState::Full => Health::Full,
                DiskState::Behind => Health::Behind,
                DiskState::Unspecified => return Err(bad(format!("disk {disk} in no known state"))),
            };
            let usage = DiskUsage {
                capacity_bytes: reported.capacity_bytes,
                free_bytes: reported.free_bytes,
                allocated_bytes: reported.allocated_bytes,
                shards: reported.shards,
                shards_damaged_found: reported.shards_damaged_found,
            };
            if reported.lineage.len() > LINEAGE_MAX {
                return Err(bad(format!("disk {disk} with {} unconfirmed starts", reported.lineage.len())));
            }
            if reported.lineage.len() != reported.lineage_opened.len() {
                return Err(bad(format!("disk {disk} does not say what each of its starts found")));
            }
            let lineage = reported.lineage.iter().copied().zip(reported.lineage_opened.iter().copied());
            let start = DiskStart {
                starts: reported.starts,
                incarnation: reported.incarnation,
                lineage: lineage.collect(),
                sequence: reported.sequence,
                verified_starts: reported.verified_starts,
                fenced: reported.fenced,
            };
            let path = text("path", &reported.path)?;
            let reason = words(&reported.reason);
            if disks.insert(disk, DiskReport { path, health, reason, usage, start }).is_some() {
                return Err(bad(format!("disk {disk} twice: one of the directories is a copy")));
            }
        }
        let location = Location { rack: text("rack", &request.rack)? };
        Ok(Self {
            node: NodeId(request.node),
            address: text("address", &request.address)?,
            location,
            disks,
            stopping: request.stopping,
        })
    }
}
