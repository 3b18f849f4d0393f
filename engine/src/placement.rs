//! Which disks make a volume. The root group's warden calls this; it is deterministic, so that a new leader would
//! plan the same.
//!
//! Invariants:
//! - No disk is in a volume twice.
//! - A volume's shards are spread over nodes, and then over racks, as thinly as the disks allow: one per node where
//!   there are nodes enough, and so that the loss of a rack leaves `k` where racks allow it.
//! - The spread has a floor ([`Spread`]): however few disks there are at the moment, no volume lies closer together.
//! - A volume with a dead member does not count: where healthy disks suffice, another one is made.
//! - The number of volumes grows with the number of disks, not with their bytes: losing more than `m` disks at once
//!   is likely to lose some stripe in proportion to the number of distinct volumes. Volumes with dead members included,
//!   there are at most [`VOLUMES_FACTOR_MAX`] times as many as the disks ask for.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{ClusterMap, Health, Volume};
use crate::code::Code;
use crate::hash::sha256_parts;
use crate::ids::{DiskId, NodeId};

/// Each disk is in about this many volumes: enough to spread a rebuild, few enough to keep volumes few.
const VOLUMES_PER_DISK: usize = 4;

/// Open volumes, those with dead members included, are at most so many times what all the disks ask for.
const VOLUMES_FACTOR_MAX: usize = 3;

/// How thinly volumes must be spread, whatever disks there are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Nodes over which each volume is spread evenly (as many as it has shards, at most).
    pub nodes_min: usize,
    /// Racks, the same.
    pub racks_min: usize,
}

impl Spread {
    /// No floor: as thinly as the disks of the moment allow.
    pub const ANY: Self = Self { nodes_min: 1, racks_min: 1 };
}

/// A disk that volumes may use, and its failure domains.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlacementDisk {
    /// The disk.
    pub disk: DiskId,
    /// Its node.
    pub node: NodeId,
    /// Its node's rack; the same (empty) text where racks are not known.
    pub rack: String,
}

impl PlacementDisk {
    /// All disks of the map that are up.
    #[must_use]
    pub fn all_up(map: &ClusterMap) -> Vec<Self> {
        let up = map.disks.iter().filter(|info| map.disk_health(info.disk) == Health::Up);
        let rack = |node| map.storage_node(node).map(|info| info.location.rack.clone()).unwrap_or_default();
        up.map(|info| Self { disk: info.disk, node: info.node, rack: rack(info.node) }).collect()
    }
}

/// The code that a cluster of `disks` disks begins with (count nodes instead where a node should be allowed to fail):
/// 4+2 from six, 6+3 from nine, 10+4 from fourteen; `None` below six, where an operator must choose.
#[must_use]
pub fn code_for(disks: usize) -> Option<Code> {
    let (data, parity) = match disks {
        0..6 => return None,
        6..9 => (4, 2),
        9..14 => (6, 3),
        _ => (10, 4),
    };
    Code::new(data, parity).ok()
}

/// The members, by position, of volumes of `code` to be added to `existing` ones over `disks`. Empty when there are
/// enough without a member among the `dead`, or when the disks do not suffice for the spread.
#[must_use]
pub fn plan_volumes(
    disks: &[PlacementDisk],
    existing: &[Volume],
    dead: &BTreeSet<DiskId>,
    code: Code,
    spread: Spread,
) -> Vec<Vec<DiskId>> {
    let mut disks: Vec<&PlacementDisk> = disks.iter().collect();
    disks.sort_unstable();
    disks.dedup_by_key(|disk| disk.disk);
    let Some(caps) = Caps::lowest(&disks, code, spread) else { return Vec::new() };
    let mut loads = Loads::of(existing);
    let open: Vec<&Volume> = existing.iter().filter(|volume| volume.open && volume.code == code).collect();
    let alive = open.iter().filter(|volume| !volume.members.iter().any(|disk| dead.contains(disk))).count();
    let known = disks.len() + dead.iter().filter(|dead| disks.iter().all(|disk| disk.disk != **dead)).count();
    let room = (VOLUMES_FACTOR_MAX * volume_count(known, code)).saturating_sub(open.len());
    let due = volume_count(disks.len(), code).saturating_sub(alive).min(room);
    let mut planned = Vec::new();
    for index in open.len()..open.len() + due {
        let chosen = choose(&disks, code, caps, index, &loads);
        let members = assign_positions(&chosen, code, index, &loads);
        loads.add(&members, code);
        planned.push(members);
    }
    planned
}

/// Volumes for so many disks: about [`VOLUMES_PER_DISK`] for each, and if possible a number that gives every disk
/// equally many parity positions.
fn volume_count(disks: usize, code: Code) -> usize {
    let fewest = (VOLUMES_PER_DISK * disks).div_ceil(code.total());
    (fewest..2 * fewest).find(|count| (count * code.parity()).is_multiple_of(disks)).unwrap_or(fewest)
}

/// How often disks are used so far.
#[derive(Debug, Default)]
struct Loads {
    volumes: BTreeMap<DiskId, usize>,
    parity: BTreeMap<DiskId, usize>,
}

impl Loads {
    fn of(existing: &[Volume]) -> Self {
        let mut loads = Self::default();
        existing
            .iter()
            .filter(|volume| volume.open)
            .for_each(|volume| loads.add(&volume.members, volume.code));
        loads
    }

    fn add(&mut self, members: &[DiskId], code: Code) {
        members.iter().for_each(|disk| *self.volumes.entry(*disk).or_default() += 1);
        members.iter().skip(code.data()).for_each(|disk| *self.parity.entry(*disk).or_default() += 1);
    }

    fn volumes(&self, disk: DiskId) -> usize {
        self.volumes.get(&disk).copied().unwrap_or(0)
    }

    fn parity(&self, disk: DiskId) -> usize {
        self.parity.get(&disk).copied().unwrap_or(0)
    }
}

/// Most shards of one volume in a node and in a rack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Caps {
    node: usize,
    rack: usize,
}

impl Caps {
    /// The lowest that leave room for a volume: nodes first, then racks. None above the floor.
    fn lowest(disks: &[&PlacementDisk], code: Code, spread: Spread) -> Option<Self> {
        let most = |domains: usize| code.total().div_ceil(domains.clamp(1, code.total()));
        let (nodes, racks) = (1..=most(spread.nodes_min), 1..=most(spread.racks_min));
        nodes
            .flat_map(|node| racks.clone().map(move |rack| Self { node, rack }))
            .find(|caps| caps.room(disks) >= code.total())
    }

    /// Shards of one volume that fit.
    fn room(self, disks: &[&PlacementDisk]) -> usize {
        let mut used = Shares::default();
        disks.iter().filter(|disk| used.take(disk, self)).count()
    }
}

/// Shards of one volume per node and rack.
#[derive(Debug, Default)]
struct Shares<'a> {
    nodes: BTreeMap<NodeId, usize>,
    racks: BTreeMap<&'a str, usize>,
}

impl<'a> Shares<'a> {
    fn fits(&self, disk: &PlacementDisk, caps: Caps) -> bool {
        self.nodes.get(&disk.node).copied().unwrap_or(0) < caps.node
            && self.racks.get(disk.rack.as_str()).copied().unwrap_or(0) < caps.rack
    }

    /// Counts the disk if it fits.
    fn take(&mut self, disk: &'a PlacementDisk, caps: Caps) -> bool {
        let fits = self.fits(disk, caps);
        if fits {
            *self.nodes.entry(disk.node).or_default() += 1;
            *self.racks.entry(&disk.rack).or_default() += 1;
        }
        fits
    }
}

/// The least used disks that keep to the caps. Disks within nodes within racks are a laminar family, so taking the
/// best that fits, one by one, always fills the volume if [`Caps::room`] says that it can be.
fn choose(disks: &[&PlacementDisk], code: Code, caps: Caps, index: usize, loads: &Loads) -> Vec<DiskId> {
    let mut order = disks.to_vec();
    order.sort_by_cached_key(|disk| (loads.volumes(disk.disk), scatter(index, disk.disk)));
    let mut shares = Shares::default();
    order
        .into_iter()
        .filter(|disk| shares.take(disk, caps))
        .take(code.total())
        .map(|disk| disk.disk)
        .collect()
}

/// Parity goes to the disks that have least of it; among the others, and among equals, the order rotates.
fn assign_positions(chosen: &[DiskId], code: Code, index: usize, loads: &Loads) -> Vec<DiskId> {
    let mut members = chosen.to_vec();
    members.sort_unstable();
    let rotation = index % members.len();
    members.rotate_left(rotation);
    let mut parity = members.clone();
    parity.sort_by_key(|disk| loads.parity(*disk));
    parity.truncate(code.parity());
    members.retain(|disk| !parity.contains(disk));
    members.extend(parity);
    members
}

/// A number without pattern, to mix equals anew for each volume.
fn scatter(index: usize, disk: DiskId) -> [u8; 32] {
    sha256_parts(&[b"keepstone placement\0", &(index as u64).to_be_bytes(), disk.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, VolumeId};

    fn code(text: &str) -> Code {
        text.parse().unwrap()
    }

    fn plan_all(disks: &[PlacementDisk], existing: &[Volume], code: Code) -> Vec<Vec<DiskId>> {
        plan_volumes(disks, existing, &BTreeSet::new(), code, Spread::ANY)
    }

    fn volumes(plan: Vec<Vec<DiskId>>, code: Code, first: usize) -> Vec<Volume> {
        let volume = |(index, members): (usize, Vec<DiskId>)| Volume {
            volume: VolumeId((first + index) as u64),
            code,
            epoch: Epoch(1),
            members,
            open: true,
        };
        plan.into_iter().enumerate().map(volume).collect()
    }

    /// `racks` racks of `nodes` nodes of `disks` disks each.
    fn disks(racks: u64, nodes: u64, disks: u64) -> Vec<PlacementDisk> {
        let disk = |rack: u64, node: u64, index: u64| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(node * 100 + index).to_be_bytes());
            PlacementDisk { disk: DiskId::from_bytes(id), node: NodeId(node), rack: format!("rack {rack}") }
        };
        (0..racks * nodes)
            .flat_map(|node| (0..disks).map(move |index| disk(node / nodes, node, index)))
            .collect()
    }

    fn shares<K: Ord>(
        members: &[DiskId],
        disks: &[PlacementDisk],
        key: impl Fn(&PlacementDisk) -> K,
    ) -> usize {
        let mut counts = BTreeMap::new();
        for member in members {
            let disk = disks.iter().find(|disk| disk.disk == *member).unwrap();
            *counts.entry(key(disk)).or_insert(0) += 1;
        }
        counts.into_values().max().unwrap()
    }

    fn check(disks: &[PlacementDisk], code: Code, per_node: usize, per_rack: usize) -> Vec<Vec<DiskId>> {
        let volumes = plan_all(disks, &[], code);
        assert!(!volumes.is_empty());
        for members in &volumes {
            assert_eq!(members.len(), code.total());
            assert_eq!(shares(members, disks, |disk| disk.disk), 1);
            assert_eq!(shares(members, disks, |disk| disk.node), per_node);
            assert_eq!(shares(members, disks, |disk| disk.rack.clone()), per_rack);
        }
        let uses =
            |disk: &PlacementDisk| volumes.iter().flatten().filter(|member| **member == disk.disk).count();
        let most = disks.iter().map(uses).max().unwrap();
        let least = disks.iter().map(uses).min().unwrap();
        assert!(most - least <= 1 && least >= 3 && most <= 8, "{least} to {most} volumes per disk");
        volumes
    }

    #[test]
    fn shards_are_spread_over_the_widest_domains_that_suffice() {
        check(&disks(1, 6, 1), code("4+2"), 1, 6);
        check(&disks(3, 2, 1), code("4+2"), 1, 2);
        check(&disks(6, 1, 2), code("4+2"), 1, 1);
        check(&disks(1, 3, 2), code("4+2"), 2, 6);
        check(&disks(1, 1, 6), code("4+2"), 6, 6);
        check(&disks(9, 3, 4), code("6+3"), 1, 1);
        check(&disks(7, 4, 3), code("10+4"), 1, 2);
        check(&disks(1, 10, 1), code("4+2"), 1, 6);
    }

    #[test]
    fn distinct_nodes_come_before_even_racks() {
        // One rack of ten nodes, one of a single node with many disks.
        let mut mixed = disks(1, 10, 1);
        mixed.extend(disks(2, 10, 8).into_iter().filter(|disk| disk.node == NodeId(10)));
        for members in plan_all(&mixed, &[], code("4+2")) {
            assert_eq!(shares(&members, &mixed, |disk| disk.node), 1);
        }
    }

    #[test]
    fn six_disks_get_six_volumes_with_even_data_and_parity() {
        let disks = disks(1, 6, 1);
        let volumes = check(&disks, code("4+2"), 1, 6);
        assert_eq!(volumes.len(), 6);
        for disk in &disks {
            let parity = volumes.iter().filter(|members| members[4..].contains(&disk.disk)).count();
            assert_eq!(parity, 2);
        }
        let first: BTreeSet<DiskId> = volumes.iter().map(|members| members[0]).collect();
        assert!(first.len() >= 4, "the first position rotates");
    }

    #[test]
    fn plans_are_stable_and_grow_with_the_disks() {
        let small = disks(1, 6, 1);
        let plan = plan_all(&small, &[], code("4+2"));
        let mut shuffled = small.clone();
        shuffled.reverse();
        assert_eq!(plan_all(&shuffled, &[], code("4+2")), plan);
        let existing: Vec<Volume> = plan
            .iter()
            .enumerate()
            .map(|(index, members)| Volume {
                volume: VolumeId(index as u64),
                code: code("4+2"),
                epoch: Epoch(1),
                members: members.clone(),
                open: true,
            })
            .collect();
        assert!(plan_all(&small, &existing, code("4+2")).is_empty(), "enough is enough");
        let grown = disks(1, 12, 1);
        let more = plan_all(&grown, &existing, code("4+2"));
        assert_eq!(more.len(), 12 - 6);
        let new = |disk: &DiskId| !small.iter().any(|old| old.disk == *disk);
        assert!(more[0].iter().all(new), "new disks fill first");
    }

    #[test]
    fn too_few_disks_make_no_volume() {
        assert!(plan_all(&disks(1, 5, 1), &[], code("4+2")).is_empty());
        assert!(plan_all(&[], &[], code("4+2")).is_empty());
        let twice = [disks(1, 3, 1), disks(1, 3, 1)].concat();
        assert!(plan_all(&twice, &[], code("4+2")).is_empty(), "a disk counts once");
    }

    #[test]
    fn the_code_follows_the_number_of_disks() {
        let names = [5, 6, 8, 9, 13, 14, 100].map(|disks| code_for(disks).map(|code| code.to_string()));
        let expected = [None, Some("4+2"), Some("4+2"), Some("6+3"), Some("6+3"), Some("10+4"), Some("10+4")];
        assert_eq!(names, expected.map(|name| name.map(str::to_owned)));
    }

    #[test]
    fn a_first_node_with_disks_enough_makes_no_volume_by_itself() {
        let (all, code) = (disks(1, 9, 12), code("6+3"));
        let nine = Spread { nodes_min: 9, racks_min: 1 };
        for nodes in 1..9 {
            let now: Vec<PlacementDisk> = all.iter().filter(|disk| disk.node.0 < nodes).cloned().collect();
            assert!(plan_volumes(&now, &[], &BTreeSet::new(), code, nine).is_empty(), "{nodes} nodes");
        }
        let planned = plan_volumes(&all, &[], &BTreeSet::new(), code, nine);
        assert!(!planned.is_empty());
        assert!(planned.iter().all(|members| shares(members, &all, |disk| disk.node) == 1));
        // Where one node is all there will be, it is enough.
        let alone = disks(1, 1, 12);
        let one = Spread { nodes_min: 1, racks_min: 1 };
        assert!(!plan_volumes(&alone, &[], &BTreeSet::new(), code, one).is_empty());
        // Three nodes of three shards each, and not one of nine.
        let three = Spread { nodes_min: 3, racks_min: 1 };
        assert!(plan_volumes(&disks(1, 2, 12), &[], &BTreeSet::new(), code, three).is_empty());
        let volumes = plan_volumes(&disks(1, 3, 12), &[], &BTreeSet::new(), code, three);
        assert!(volumes.iter().all(|members| shares(members, &all, |disk| disk.node) == 3));
    }

    #[test]
    fn a_first_rack_makes_no_volume_by_itself() {
        let (all, code) = (disks(3, 9, 1), code("6+3"));
        let spread = Spread { nodes_min: 9, racks_min: 3 };
        let first: Vec<PlacementDisk> = all.iter().filter(|disk| disk.node.0 < 18).cloned().collect();
        assert!(plan_volumes(&first, &[], &BTreeSet::new(), code, spread).is_empty());
        let volumes = plan_volumes(&all, &[], &BTreeSet::new(), code, spread);
        assert!(!volumes.is_empty());
        assert!(volumes.iter().all(|members| shares(members, &all, |disk| disk.rack.clone()) == 3));
    }

    #[test]
    fn volumes_with_dead_members_are_replaced_while_healthy_disks_suffice_and_their_number_is_bounded() {
        let (all, code) = (disks(1, 8, 1), code("4+2"));
        let mut existing = volumes(plan_all(&all, &[], code), code, 1);
        let wanted = existing.len();
        let dead: BTreeSet<DiskId> = [all[0].disk].into();
        let alive: Vec<PlacementDisk> =
            all.iter().filter(|disk| !dead.contains(&disk.disk)).cloned().collect();
        let more = plan_volumes(&alive, &existing, &dead, code, Spread::ANY);
        assert!(!more.is_empty(), "volumes without the dead disk are too few");
        assert!(more.iter().flatten().all(|disk| !dead.contains(disk)));
        existing.extend(volumes(more, code, existing.len() + 1));
        assert!(plan_volumes(&alive, &existing, &dead, code, Spread::ANY).is_empty(), "enough is enough");
        assert!(plan_all(&all, &existing, code).is_empty(), "the disk is back");
        // Whichever disks die one after the other, the volumes do not grow without end.
        for round in 0..100 {
            let dead: BTreeSet<DiskId> = [all[round % 8].disk, all[(round / 8) % 8].disk].into();
            let alive: Vec<PlacementDisk> =
                all.iter().filter(|disk| !dead.contains(&disk.disk)).cloned().collect();
            let more = plan_volumes(&alive, &existing, &dead, code, Spread::ANY);
            existing.extend(volumes(more, code, existing.len() + 1));
        }
        assert!(existing.len() <= VOLUMES_FACTOR_MAX * wanted, "{} volumes", existing.len());
        // With too few healthy disks left, none is made.
        let three: BTreeSet<DiskId> = all[..3].iter().map(|disk| disk.disk).collect();
        let first = volumes(plan_all(&all, &[], code), code, 1);
        assert!(plan_volumes(&all[3..], &first, &three, code, Spread::ANY).is_empty());
    }
}
