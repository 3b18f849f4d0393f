//! What the warden decides, from the registered map and from what it has heard.

use std::collections::{BTreeMap, BTreeSet};

use engine::cluster::{ClusterMap, DiskAttestation, DiskInfo, Health};
use engine::ids::{DiskId, Epoch, VolumeId};
use engine::placement::{PlacementDisk, Spread, plan_volumes};

use super::attest::{self, Judgement};
use super::report::NodeReport;
use crate::model::QUERY_ITEMS_MAX;
use crate::model::command::{AttestedDisk, RootStep};

/// What a report changes.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Steps that bring the registry up to it; none if nothing differs.
    pub steps: Vec<RootStep>,
    /// What the node is told of its disks' starts.
    pub judgements: BTreeMap<DiskId, Judgement>,
}

/// Takes a node's report in. A disk is taken over from another node only if it serves here, its start follows on the
/// registered one, and `free` says that it serves nowhere else: otherwise one of the two is a copy, and the registry
/// stays as it is. `known` gives what is attested of a disk: the row, or what this leader has heard since.
pub(super) fn take_in(
    map: &ClusterMap,
    report: &NodeReport,
    known: impl Fn(&DiskInfo) -> DiskAttestation,
    free: impl Fn(&DiskInfo) -> bool,
) -> Taken {
    let mut taken = Taken::default();
    let registered = map.storage_node(report.node);
    if registered.is_none_or(|known| known.address != report.address || known.location != report.location) {
        let (address, location) = (report.address.clone(), report.location.clone());
        taken.steps.push(RootStep::StorageNodeRegister { node: report.node, address, location });
    }
    let mut attested = Vec::new();
    for (disk, reported) in &report.disks {
        let info = map.disk(*disk);
        let before = info.map_or_else(DiskAttestation::default, &known);
        let judgement = attest::judge(&before, reported);
        let sound = !matches!(judgement, Judgement::Behind(_) | Judgement::Fenced(_));
        let serves = sound && reported.health.readable();
        let here = info.is_some_and(|info| info.node == report.node);
        let differs = match info {
            // A disk that was never seen to serve is not worth a row.
            None => serves,
            Some(info) if here => serves && info.path != reported.path,
            Some(info) => serves && free(info),
        };
        if differs {
            let (node, path) = (report.node, reported.path.clone());
            taken.steps.push(RootStep::DiskRegister { disk: *disk, node, path });
        }
        let mine = here || differs;
        let now = attest::attestation(&before, reported);
        // Its count is attested from time to time; a new start and a fence at once.
        let at_once = judgement == Judgement::Accepted || now.fenced_starts != before.fenced_starts;
        if mine && sound && judgement != Judgement::Unknown && at_once {
            attested.push(AttestedDisk { disk: *disk, before: before.incarnation, attested: now });
        }
        if mine || !sound {
            taken.judgements.insert(*disk, judgement);
        }
    }
    if !attested.is_empty() {
        taken.steps.push(RootStep::DisksAttest { disks: attested });
    }
    taken
}

/// Counts that have grown since they were attested.
pub(super) fn counts_due(map: &ClusterMap, heard: &BTreeMap<DiskId, DiskAttestation>) -> Option<RootStep> {
    let grown = |(disk, heard): (&DiskId, &DiskAttestation)| {
        let row = map.disk(*disk)?.attested;
        (row.incarnation == heard.incarnation && row.sequence < heard.sequence).then_some(AttestedDisk {
            disk: *disk,
            before: row.incarnation,
            attested: DiskAttestation { sequence: heard.sequence, ..row },
        })
    };
    let disks: Vec<AttestedDisk> = heard.iter().filter_map(grown).take(QUERY_ITEMS_MAX as usize).collect();
    (!disks.is_empty()).then_some(RootStep::DisksAttest { disks })
}

/// The volumes that the disks which are up suffice for, spread as they must be, and that do not exist yet: those with
/// a member among the `dead` do not count.
pub(super) fn volumes_due(map: &ClusterMap, dead: &BTreeSet<DiskId>, spread: Spread) -> Option<RootStep> {
    let disks = PlacementDisk::all_up(map);
    let members = plan_volumes(&disks, &map.volumes, dead, map.code, spread);
    if members.is_empty() {
        return None;
    }
    Some(RootStep::VolumesCreate { existing: map.volumes.len() as u64, code: map.code, members })
}

/// The epochs of the volumes with a member in the report's node.
pub(super) fn epochs_for(map: &ClusterMap, report: &NodeReport) -> Vec<(VolumeId, Epoch)> {
    let here = |disk: &DiskId| {
        report.disks.contains_key(disk) || map.disk(*disk).is_some_and(|known| known.node == report.node)
    };
    map.volumes
        .iter()
        .filter(|volume| volume.members.iter().any(here))
        .map(|volume| (volume.volume, volume.epoch))
        .collect()
}

/// The disks of open volumes that take no writes now.
pub(super) fn unwell(map: &ClusterMap) -> BTreeSet<DiskId> {
    let open = map.volumes.iter().filter(|volume| volume.open);
    let members: BTreeSet<DiskId> = open.flat_map(|volume| volume.members.iter().copied()).collect();
    members.into_iter().filter(|disk| !map.disk_health(*disk).writable()).collect()
}

/// How many disks serve: for the log.
pub(super) fn disks_up(map: &ClusterMap) -> usize {
    map.disks.iter().filter(|info| map.disk_health(info.disk) == Health::Up).count()
}
