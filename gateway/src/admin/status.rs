//! The cluster's status, worked out from what was gathered. Pure.
//!
//! Invariants:
//! - A stripe counts as short if a position was not durable when it was acknowledged, or if one of its shards is on a
//!   disk that cannot be read now.
//! - Health is `ok` only if there is no problem; every problem is one plain line that says what to do.

use bytes::Bytes;
use engine::cluster::{ClusterMap, DiskInfo, Health, Volume};
use engine::ids::{GroupId, NodeId};
use metaraft::model::row::{AsideRelease, GroupCounters, StripeCount};
use proto::v1;

use crate::admin::replicas::MetaViews;
use crate::random::log_ms;

/// What was asked of the cluster.
pub(crate) struct Gathered {
    pub(crate) map: std::sync::Arc<ClusterMap>,
    /// Sums of each data group; `None` if it did not answer.
    pub(crate) groups: Vec<(GroupId, Option<GroupCounters>)>,
    /// Whether the root group answered just now.
    pub(crate) root_answers: bool,
    /// Metadata nodes that answered.
    pub(crate) meta_up: Vec<NodeId>,
    /// How these see themselves.
    pub(crate) meta: MetaViews,
    pub(crate) gateway: NodeId,
    pub(crate) gateway_address: String,
    /// Disks that hang as this gateway finds them, a line each.
    pub(crate) hung_disks: Vec<String>,
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Up => "up",
        Health::Down => "down",
        Health::Missing => "missing",
        Health::Failed => "failed",
        Health::Full => "full",
        Health::Behind => "behind",
    }
}

fn up_or_down(up: bool) -> String {
    if up { "up" } else { "down" }.to_owned()
}

/// Positions of a volume whose disks can be read.
fn readable_positions(map: &ClusterMap, volume: &Volume) -> usize {
    volume.members.iter().filter(|disk| map.disk_health(**disk).readable()).count()
}

/// Whether stripes like these lack a shard now.
pub(crate) fn is_short(map: &ClusterMap, count: &StripeCount) -> bool {
    if !count.missing.is_empty() {
        return true;
    }
    let Some(volume) = map.volume(count.volume) else { return true };
    count.used.iter().any(|position| {
        let disk = volume.members.get(usize::from(position.0));
        !disk.is_some_and(|disk| map.disk_health(*disk).readable())
    })
}

fn disk_problem(map: &ClusterMap, disk: &DiskInfo) -> Option<String> {
    let node = map.storage_node(disk.node)?;
    if node.health != Health::Up {
        return None; // Said of the node.
    }
    let what = match disk.health {
        Health::Up => return None,
        Health::Down => "is not reported by its node; look at the node's log",
        Health::Missing => {
            "is missing: its directory is not there or is not this disk's; mount it, or replace the disk"
        }
        Health::Failed => "is out of service; look after it or replace it",
        Health::Full => "is full; it takes no writes until space is freed or disks are added",
        Health::Behind => "holds less than it acknowledged; it takes no writes, and what it has is read",
    };
    let said = if disk.reason.is_empty() { String::new() } else { format!(": {}", disk.reason) };
    Some(format!("disk {} ({} on storage node {}) {what}{said}", disk.disk, disk.path, disk.node))
}

struct Problems {
    lines: Vec<String>,
    down: bool,
}

fn node_problems(gathered: &Gathered, problems: &mut Problems) {
    let map = &gathered.map;
    if !gathered.root_answers {
        problems.down = true;
        problems.lines.push(
            "the root metadata group has no leader; start metadata nodes until most of them are up"
                .to_owned(),
        );
    }
    for (group, counters) in &gathered.groups {
        if counters.is_none() {
            problems.down = true;
            problems.lines.push(format!(
                "metadata group {group} has no leader; start metadata nodes until most of them are up"
            ));
        }
    }
    for node in &map.meta_nodes {
        if !gathered.meta_up.contains(&node.node) {
            let (id, address) = (node.node, &node.address);
            problems.lines.push(format!("metadata node {id} at {address} is down; start it"));
        }
    }
    for line in gathered.meta.problems() {
        if !problems.lines.contains(&line) {
            problems.lines.push(line);
        }
    }
    for node in &map.storage_nodes {
        if node.health != Health::Up {
            let (id, address) = (node.node, &node.address);
            problems.lines.push(format!("storage node {id} at {address} is down; start it"));
        }
    }
    problems.lines.extend(map.disks.iter().filter_map(|disk| disk_problem(map, disk)));
}

fn volume_problems(map: &ClusterMap, problems: &mut Problems) {
    if map.volumes.is_empty() {
        problems.down = true;
        problems.lines.push(format!(
            "there are no volumes yet: {} disks are registered, the code {} takes {}, spread over nodes and racks as \
             the settings volume-nodes-min and volume-racks-min say; start the storage nodes that are missing, or wait",
            map.disks.len(),
            map.code,
            map.code.total()
        ));
        return;
    }
    let unreadable =
        map.volumes.iter().filter(|volume| readable_positions(map, volume) < volume.code.data()).count();
    if unreadable > 0 {
        problems.down |= unreadable == map.volumes.len();
        problems.lines.push(format!(
            "{unreadable} of {} volumes cannot be read: too many of their disks are not up; bring them back",
            map.volumes.len()
        ));
    }
}

fn nodes(gathered: &Gathered) -> Vec<v1::NodeStatus> {
    let status = |node: NodeId, role: &str, address: &str, up| v1::NodeStatus {
        node: node.0,
        role: role.to_owned(),
        address: address.to_owned(),
        state: up_or_down(up),
    };
    let map = &gathered.map;
    let meta = map
        .meta_nodes
        .iter()
        .map(|node| status(node.node, "meta", &node.address, gathered.meta_up.contains(&node.node)));
    let storage = map
        .storage_nodes
        .iter()
        .map(|node| status(node.node, "storage", &node.address, node.health == Health::Up));
    let gateway = status(gathered.gateway, "gateway", &gathered.gateway_address, true);
    meta.chain(storage).chain(std::iter::once(gateway)).collect()
}

fn disks(map: &ClusterMap) -> Vec<v1::DiskStatus> {
    let status = |disk: &DiskInfo| v1::DiskStatus {
        disk: Bytes::copy_from_slice(disk.disk.as_bytes()),
        node: disk.node.0,
        path: disk.path.clone(),
        state: word(map.disk_health(disk.disk)).to_owned(),
        capacity_bytes: disk.usage.capacity_bytes,
        free_bytes: disk.usage.free_bytes,
        allocated_bytes: disk.usage.allocated_bytes,
        shards: disk.usage.shards,
        shards_damaged_found: disk.usage.shards_damaged_found,
    };
    map.disks.iter().map(status).collect()
}

/// Puts the answer together.
/// How long it is until a moment, for people.
fn in_words(at_ms: u64, now_ms: u64) -> String {
    match at_ms.saturating_sub(now_ms) / 60_000 {
        0 => "within a minute".to_owned(),
        minutes @ 1..120 => format!("in {minutes} min"),
        minutes => format!("in {} h", minutes / 60),
    }
}

pub(crate) fn status(gathered: &Gathered) -> v1::StatusResponse {
    let map = &gathered.map;
    let counters: Vec<&GroupCounters> =
        gathered.groups.iter().filter_map(|(_group, counters)| counters.as_ref()).collect();
    let stripes = || counters.iter().flat_map(|counters| &counters.stripes);
    let stripes_total = stripes().map(|count| count.stripes).sum();
    let stripes_short: u64 = stripes().filter(|count| is_short(map, count)).map(|count| count.stripes).sum();
    let damaged: u64 = map.disks.iter().map(|disk| disk.usage.shards_damaged_found).sum();
    let mut problems = Problems { lines: Vec::new(), down: false };
    node_problems(gathered, &mut problems);
    volume_problems(map, &mut problems);
    problems.lines.extend(gathered.hung_disks.iter().cloned());
    if stripes_short > 0 {
        problems.lines.push(format!(
            "{stripes_short} of {stripes_total} stripes lack a shard or have one on a disk that is not up; \
             bring the disks back"
        ));
    }
    let health = match (problems.down, problems.lines.is_empty()) {
        (true, _) => "down",
        (false, false) => "degraded",
        (false, true) => "ok",
    };
    if damaged > 0 {
        // Reads go round damage; it is told, but is no reason to call the cluster degraded by itself.
        problems.lines.push(format!("{damaged} damaged shards were found; reads use the other shards"));
    }
    let releases_aside: u64 = counters.iter().map(|counters| counters.releases_aside).sum();
    let some_aside = counters.iter().flat_map(|counters| &counters.releases_aside_some).next();
    if let Some(AsideRelease { why, attempts, retry_ms, .. }) = some_aside {
        // Nothing else waits for them: what they would free stays taken.
        problems.lines.push(format!(
            "{releases_aside} removed contents could not be let go, and keep their space; one was tried {attempts} \
             times and is tried again {}: {why}",
            in_words(*retry_ms, log_ms())
        ));
    }
    v1::StatusResponse {
        releases_aside,
        nursery_files: counters.iter().map(|counters| counters.nursery.files).sum(),
        nursery_bytes: counters.iter().map(|counters| counters.nursery.bytes).sum(),
        health: health.to_owned(),
        problems: problems.lines,
        nodes: nodes(gathered),
        disks: disks(map),
        stripes_total,
        stripes_short,
        shards_damaged_found: damaged,
        bytes_logical: counters.iter().map(|counters| counters.bytes_logical).sum(),
        bytes_unique: counters.iter().map(|counters| counters.bytes_unique).sum(),
        bytes_on_disk: map.disks.iter().map(|disk| disk.usage.allocated_bytes).sum(),
        volumes: map.volumes.len() as u64,
        code: map.code.to_string(),
        data_groups: u32::try_from(map.data_groups().len()).unwrap_or(u32::MAX),
        cluster: Bytes::copy_from_slice(map.cluster.as_bytes()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use engine::cluster::{DiskAttestation, DiskUsage, Location, SlotRange, StorageNodeInfo};
    use engine::code::PositionSet;
    use engine::ids::{ClusterId, DiskId, Epoch, Position, SlotId, VolumeId};

    use super::*;

    fn disk(number: u8) -> DiskId {
        DiskId::from_bytes([number; 16])
    }

    fn map(health: [Health; 3]) -> ClusterMap {
        let node = |number: u8| StorageNodeInfo {
            node: NodeId(u64::from(number)),
            address: "127.0.0.1:1".into(),
            location: Location::default(),
            health: Health::Up,
        };
        let disk_info = |number: u8| DiskInfo {
            disk: disk(number),
            node: NodeId(u64::from(number)),
            path: "/d".into(),
            health: health[usize::from(number)],
            reason: String::new(),
            usage: DiskUsage { allocated_bytes: 10, ..DiskUsage::default() },
            attested: DiskAttestation::default(),
        };
        ClusterMap {
            cluster: ClusterId::from_bytes([1; 16]),
            revision: 1,
            code: "2+1".parse().unwrap(),
            meta_nodes: vec![],
            storage_nodes: (0..3).map(node).collect(),
            disks: (0..3).map(disk_info).collect(),
            volumes: vec![Volume {
                volume: VolumeId(1),
                code: "2+1".parse().unwrap(),
                epoch: Epoch(1),
                members: (0..3).map(disk).collect(),
                open: true,
            }],
            slots: vec![SlotRange { first: SlotId(0), last: SlotId(16_383), group: GroupId(1) }],
        }
    }

    fn count(used: &[u8], missing: &[u8]) -> StripeCount {
        let set = |positions: &[u8]| positions.iter().map(|position| Position(*position)).collect();
        let (used, missing): (PositionSet, PositionSet) = (set(used), set(missing));
        StripeCount { volume: VolumeId(1), used, missing, stripes: 5 }
    }

    fn gathered(health: [Health; 3], counts: Vec<StripeCount>) -> Gathered {
        let counters = GroupCounters { stripes: counts, ..GroupCounters::default() };
        Gathered {
            map: std::sync::Arc::new(map(health)),
            groups: vec![(GroupId(1), Some(counters))],
            root_answers: true,
            meta_up: vec![],
            meta: MetaViews::default(),
            gateway: NodeId(9),
            gateway_address: "127.0.0.1:7420".into(),
            hung_disks: vec![],
        }
    }

    const UP: Health = Health::Up;

    #[test]
    fn all_well_is_ok() {
        let status = status(&gathered([UP; 3], vec![count(&[0, 1, 2], &[])]));
        assert_eq!((status.health.as_str(), status.stripes_total, status.stripes_short), ("ok", 5, 0));
        assert_eq!(status.bytes_on_disk, 30);
        assert_eq!(status.problems, Vec::<String>::new());
    }

    #[test]
    fn a_disk_that_hangs_is_a_problem() {
        let mut gathered = gathered([UP; 3], vec![]);
        gathered.hung_disks.push("disk 1 hangs".into());
        let status = status(&gathered);
        assert_eq!((status.health.as_str(), &status.problems), ("degraded", &gathered.hung_disks));
    }

    #[test]
    fn a_shard_on_a_disk_that_is_not_up_makes_stripes_short() {
        let counts = vec![count(&[0, 1, 2], &[]), count(&[0, 1], &[])];
        let status = status(&gathered([UP, UP, Health::Missing], counts));
        assert_eq!((status.health.as_str(), status.stripes_total, status.stripes_short), ("degraded", 10, 5));
        assert!(status.problems.iter().any(|line| line.contains("missing")), "{:?}", status.problems);
    }

    #[test]
    fn releases_that_were_set_aside_are_counted_and_told_with_their_reason() {
        let mut gathered = gathered([UP, UP, UP], vec![]);
        let release = metaraft::model::outcome::Release {
            content: engine::ids::ContentId::from_bytes([1; 32]),
            generation: 1,
        };
        let aside = AsideRelease {
            namespace: engine::ids::NamespaceId::from_bytes([2; 16]),
            release,
            why: "its list is unreadable".to_owned(),
            attempts: 3,
            since_ms: 0,
            retry_ms: log_ms() + 600_000,
        };
        if let Some((_group, Some(counters))) = gathered.groups.first_mut() {
            (counters.releases_aside, counters.releases_aside_some) = (7, vec![aside]);
        }
        let status = status(&gathered);
        assert_eq!(status.releases_aside, 7);
        let told = status.problems.iter().find(|line| line.starts_with("7 removed contents")).unwrap();
        assert!(told.contains("3 times") && told.contains("its list is unreadable"), "{told}");
        assert_eq!(
            [in_words(9, 10), in_words(90_000, 0), in_words(u64::MAX, 0)].map(|text| text.len() > 3),
            [true; 3]
        );
    }

    #[test]
    fn a_full_disk_is_a_problem_but_its_stripes_are_whole() {
        let status = status(&gathered([UP, UP, Health::Full], vec![count(&[0, 1, 2], &[])]));
        assert_eq!((status.health.as_str(), status.stripes_short), ("degraded", 0));
    }

    #[test]
    fn a_stripe_that_was_acknowledged_short_stays_short_until_it_is_filled() {
        let status = status(&gathered([UP; 3], vec![count(&[0, 1, 2], &[2])]));
        assert_eq!((status.health.as_str(), status.stripes_short), ("degraded", 5));
    }

    #[test]
    fn without_a_leader_or_a_readable_volume_it_is_down() {
        let mut leaderless = gathered([UP; 3], vec![]);
        leaderless.groups[0].1 = None;
        assert_eq!(status(&leaderless).health, "down");
        let unreadable = gathered([UP, Health::Failed, Health::Failed], vec![]);
        assert_eq!(status(&unreadable).health, "down");
    }
}
