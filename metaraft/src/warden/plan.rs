//! What the warden decides, from the registered map and from what it has heard.

use std::collections::BTreeSet;

use engine::cluster::{ClusterMap, Health};
use engine::ids::{DiskId, Epoch, VolumeId};
use engine::placement::{PlacementDisk, Spread, plan_volumes};

use super::report::NodeReport;
use crate::model::command::RootStep;

/// The steps that bring the registry up to a node's report; none if nothing differs. A disk is taken over from
/// another node only if it serves here and `elsewhere` does not say that it serves there too: then one of the two is
/// a copy, and the registry stays as it is.
pub(super) fn registrations(
    map: &ClusterMap,
    report: &NodeReport,
    elsewhere: impl Fn(DiskId) -> bool,
) -> Vec<RootStep> {
    let mut steps = Vec::new();
    let known = map.storage_node(report.node);
    if known.is_none_or(|known| known.address != report.address || known.location != report.location) {
        let (address, location) = (report.address.clone(), report.location.clone());
        steps.push(RootStep::StorageNodeRegister { node: report.node, address, location });
    }
    for (disk, reported) in &report.disks {
        let serves = reported.health.readable();
        let differs = match map.disk(*disk) {
            // A disk that was never seen to serve is not worth a row.
            None => serves,
            Some(known) if known.node == report.node => serves && known.path != reported.path,
            Some(_) => serves && !elsewhere(*disk),
        };
        if differs {
            let (node, path) = (report.node, reported.path.clone());
            steps.push(RootStep::DiskRegister { disk: *disk, node, path });
        }
    }
    steps
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
