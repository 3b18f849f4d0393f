use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::cluster::{ClusterMap, DiskUsage, Health, Location};
use engine::code::Code;
use engine::ids::{ClusterId, DiskId, NodeId, ROOT_GROUP};
use proto::internal::{DiskReport as WireDisk, DiskState, HeartbeatRequest};

use super::Warden;
use super::liveness::{DiskReport, DiskStart, Liveness};
use super::plan;
use super::report::NodeReport;
use crate::api::bootstrap::spread_slots;
use crate::api::{MetaApi, new_request};
use crate::local::Local;
use crate::model::command::{Command, RootStep, Steps};

const GRACE: Duration = Duration::from_secs(4);

fn disk_id(number: u8) -> DiskId {
    DiskId::from_bytes([number; 16])
}

fn heartbeat(node: u64, disks: &[(u8, DiskState)]) -> HeartbeatRequest {
    let disk = |(number, state): &(u8, DiskState)| WireDisk {
        disk: disk_id(*number).as_bytes().to_vec().into(),
        path: format!("/disk{number}"),
        state: (*state).into(),
        capacity_bytes: 1000,
        free_bytes: 500,
        ..WireDisk::default()
    };
    HeartbeatRequest {
        node,
        cluster: vec![1; 16].into(),
        address: format!("127.0.0.1:{node}"),
        rack: String::new(),
        disks: disks.iter().map(disk).collect(),
        ..HeartbeatRequest::default()
    }
}

fn report(node: u64, disks: &[(u8, DiskState)]) -> NodeReport {
    NodeReport::parse(&heartbeat(node, disks)).unwrap()
}

/// A group with an installation in it, led by this node.
async fn made(liveness: &Arc<Liveness>) -> (Local, MetaApi) {
    let local = Local::new(Arc::clone(liveness));
    let api = MetaApi::start(local.clone());
    let (cluster, code) = (ClusterId::from_bytes([1; 16]), Code::new(4, 2).unwrap());
    let init = RootStep::ClusterInit { cluster, code, slots: spread_slots(1), meta_nodes: Vec::new() };
    root(&api, vec![init]).await;
    (local, api)
}

async fn root(api: &MetaApi, steps: Vec<RootStep>) {
    api.propose(ROOT_GROUP, Command::new(new_request(), Steps::Root(steps))).await.unwrap();
}

async fn until(what: &str, api: &MetaApi, holds: impl Fn(&ClusterMap) -> bool) -> Arc<ClusterMap> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let map = api.refresh_map().await.unwrap();
        if holds(&map) {
            return map;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn hostile_reports_are_refused() {
    let up = DiskState::Up;
    let change = |change: &dyn Fn(&mut HeartbeatRequest)| {
        let mut request = heartbeat(1, &[(1, up), (2, up)]);
        change(&mut request);
        NodeReport::parse(&request)
    };
    assert!(change(&|_| {}).is_ok());
    assert!(change(&|request| request.disks[0].disk = vec![1; 15].into()).is_err());
    assert!(change(&|request| request.disks[0].state = 99).is_err());
    assert!(change(&|request| request.disks[0].disk = request.disks[1].disk.clone()).is_err());
    assert!(change(&|request| request.disks[0].path = "a\nb".into()).is_err());
    assert!(change(&|request| request.address = String::new()).is_err());
    assert!(change(&|request| request.rack = "x".repeat(5000)).is_err());
    assert!(change(&|request| request.disks[0].lineage = vec![1]).is_err());
    assert!(change(&|request| request.disks = vec![WireDisk::default(); 2000]).is_err());
}

/// The steps of a report, if disks of other nodes are free to be taken over, or not.
fn steps(map: &ClusterMap, report: &NodeReport, free: bool) -> Vec<RootStep> {
    plan::take_in(map, report, |info| info.attested, |_info| free).steps
}

#[tokio::test]
async fn only_what_differs_is_registered_and_a_copy_takes_nothing_over() {
    let (_local, api) = made(&Arc::default()).await;
    let up = DiskState::Up;
    let first = report(1, &[(1, up), (2, DiskState::Missing)]);
    let map = api.refresh_map().await.unwrap();
    let made = steps(&map, &first, true);
    assert_eq!(made.len(), 2, "a disk that was never seen to serve gets no row: {made:?}");
    root(&api, made).await;
    let map = api.refresh_map().await.unwrap();
    assert!(steps(&map, &first, true).is_empty());
    let moved = NodeReport { address: "elsewhere:1".into(), ..first.clone() };
    assert_eq!(steps(&map, &moved, true).len(), 1);
    let location = Location { rack: "r9".into() };
    assert_eq!(steps(&map, &NodeReport { location, ..first }, true).len(), 1);
    let second = report(2, &[(1, up)]);
    assert_eq!(steps(&map, &second, false).len(), 1, "the node, not the disk");
    assert_eq!(steps(&map, &second, true).len(), 2, "a disk that has moved");
    let broken = report(2, &[(1, DiskState::Failed)]);
    assert_eq!(steps(&map, &broken, true).len(), 1);
    api.stop().await;
}

/// A heartbeat of one disk, with its start.
fn started(node: u64, disk: u8, starts: u64, lineage: &[u64], sequence: u64) -> HeartbeatRequest {
    let mut request = heartbeat(node, &[(disk, DiskState::Up)]);
    let reported = &mut request.disks[0];
    reported.starts = starts;
    reported.incarnation = 100 + starts;
    reported.lineage = lineage.to_vec();
    reported.sequence = sequence;
    reported.lineage_opened = vec![sequence; lineage.len()];
    request
}

#[tokio::test]
async fn what_a_disk_acknowledged_and_does_not_hold_is_found_at_its_next_start() {
    let liveness = Arc::new(Liveness::default());
    let (local, api) = made(&liveness).await;
    let warden = Warden::start(local.clone(), liveness);
    local.lead(1, true);
    let sink = warden.sink();
    let verdict = async |request: HeartbeatRequest| {
        let answer = sink.heartbeat(request).await.unwrap();
        (answer.verdicts[0].state(), answer.verdicts[0].reason.clone())
    };
    assert_eq!(verdict(started(1, 1, 1, &[], 0)).await.0, DiskState::Up);
    // The count is heard with a later heartbeat of the same start.
    let later = |sequence| started(1, 1, 1, &[], sequence);
    assert_eq!(verdict(later(7)).await.0, DiskState::Up);
    let before = local.proposals();
    assert_eq!(verdict(later(7)).await.0, DiskState::Up);
    // It is restarted with a directory that lacks one record.
    let (state, reason) = verdict(started(1, 1, 2, &[101], 6)).await;
    assert_eq!(state, DiskState::Behind, "{reason}");
    let map = until("behind", &api, |map| map.disk_health(disk_id(1)) == Health::Behind).await;
    assert!(map.disk(disk_id(1)).unwrap().reason.contains("holds less"));
    // The count reaches the root group by itself, so that another leader knows it. The node goes on beating, as nodes
    // do: what was heard before the warden noticed that it leads is forgotten.
    let deadline = Instant::now() + Duration::from_secs(20);
    while api.refresh_map().await.unwrap().disk(disk_id(1)).unwrap().attested.sequence != 7 {
        assert!(Instant::now() < deadline, "the count is not written down");
        assert_eq!(verdict(later(7)).await.0, DiskState::Up);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(local.proposals() <= before + 2, "one command for the counts");
    local.lead(2, false);
    local.lead(3, true);
    let (state, _) = verdict(started(1, 1, 2, &[101], 6)).await;
    assert_eq!(state, DiskState::Behind, "another leader says the same");
    let (state, reason) = verdict(started(1, 1, 1, &[99], 100)).await;
    assert_eq!(state, DiskState::Up, "the registered start goes on: {reason}");
    assert_eq!(
        verdict(started(1, 1, 3, &[101, 102], 100)).await.0,
        DiskState::Up,
        "the right directory is back"
    );
    until("up", &api, |map| map.disk_health(disk_id(1)) == Health::Up).await;
    // A copy that was made before the last start.
    let (state, reason) = verdict(started(1, 1, 2, &[101], 500)).await;
    assert!(state == DiskState::Behind && reason.contains("older copy"), "{reason}");
    warden.stop().await;
    api.stop().await;
}

#[tokio::test]
async fn a_node_that_stops_has_its_counts_written_down_at_once() {
    let liveness = Arc::new(Liveness::default());
    let (local, api) = made(&liveness).await;
    let warden = Warden::start(local.clone(), liveness);
    local.lead(1, true);
    let sink = warden.sink();
    sink.heartbeat(started(1, 1, 1, &[], 0)).await.unwrap();
    let last = HeartbeatRequest { stopping: true, ..started(1, 1, 1, &[], 41) };
    sink.heartbeat(last).await.unwrap();
    let attested = api.refresh_map().await.unwrap().disk(disk_id(1)).unwrap().attested;
    assert_eq!((attested.starts, attested.sequence), (1, 41));
    warden.stop().await;
    api.stop().await;
}

#[test]
fn a_disk_is_taken_over_only_once_its_node_was_heard_or_silent_under_this_leader() {
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    let (disk, old, new) = (disk_id(1), NodeId(1), NodeId(2));
    let liveness = Liveness::default();
    let free = |after: u32| liveness.may_take_over_at(disk, old, new, start + second * after);
    assert!(!free(0), "nobody leads");
    liveness.begin_to_lead(start);
    assert!(!free(0) && !free(5), "its node has not been heard under this leader");
    assert!(free(6), "silent for long enough");
    let serving = report(1, &[(1, DiskState::Up)]).disks;
    liveness.hear(old, serving.clone(), start + second);
    assert!(!free(2) && !free(6), "it serves there");
    assert!(free(7), "its node is silent");
    liveness.hear(old, BTreeMap::new(), start + second * 2);
    assert!(free(2), "its node says that it has it no more");
    liveness.hear(NodeId(3), serving, start + second * 3);
    assert!(!free(3), "it serves in a third node");
}

#[tokio::test]
async fn health_is_what_was_heard_within_the_grace() {
    let (_local, api) = made(&Arc::default()).await;
    let up = DiskState::Up;
    for node in [1, 2] {
        let number = u8::try_from(node).unwrap();
        let registered = report(node, &[(number, up), (number + 10, up)]);
        let map = api.refresh_map().await.unwrap();
        root(&api, steps(&map, &registered, true)).await;
    }
    let registered = ClusterMap::clone(&*api.refresh_map().await.unwrap());
    let start = Instant::now();
    let liveness = Liveness::default();
    let healths = |after: Duration| {
        let mut map = registered.clone();
        liveness.overlay_at(&mut map, GRACE, start + after);
        [1, 11, 2, 12].map(|number| map.disk_health(disk_id(number)))
    };
    liveness.begin_to_lead(start);
    assert_eq!(healths(GRACE), [Health::Up; 4], "a young leader believes the best");
    assert_eq!(healths(GRACE + Duration::from_millis(1)), [Health::Down; 4]);
    let usage = DiskUsage::default();
    let reported = |health| DiskReport {
        path: String::new(),
        health,
        reason: String::new(),
        usage,
        start: DiskStart::default(),
    };
    let later = start + 2 * GRACE;
    let disks = BTreeMap::from([(disk_id(1), reported(Health::Full))]);
    liveness.hear(NodeId(1), disks.clone(), later);
    assert_eq!(healths(2 * GRACE), [Health::Full, Health::Missing, Health::Down, Health::Down]);
    assert_eq!(healths(3 * GRACE + Duration::from_millis(1)), [Health::Down; 4], "not heard of since");
    let disks = BTreeMap::from([(disk_id(1), reported(Health::Failed)), (disk_id(11), reported(Health::Up))]);
    liveness.hear(NodeId(1), disks, start + 4 * GRACE);
    assert_eq!(healths(4 * GRACE)[..2], [Health::Failed, Health::Up]);
    liveness.cease_to_lead();
    liveness.begin_to_lead(start + 5 * GRACE);
    assert_eq!(healths(5 * GRACE), [Health::Up; 4], "what an earlier leader knew is gone");
    api.stop().await;
}

#[tokio::test]
async fn a_fresh_cluster_gets_volumes_and_later_heartbeats_cost_nothing() {
    let liveness = Arc::new(Liveness::default());
    let (local, api) = made(&liveness).await;
    let warden = Warden::start(local.clone(), liveness);
    local.lead(1, true);
    let sink = warden.sink();
    let reports: Vec<_> =
        (1..=6).map(|node| heartbeat(node, &[(u8::try_from(node).unwrap(), DiskState::Up)])).collect();
    let began = Instant::now();
    for request in &reports {
        sink.heartbeat(request.clone()).await.unwrap();
    }
    let map = until("volumes", &api, |map| !map.volumes.is_empty()).await;
    println!("volumes after {:?}", began.elapsed());
    assert!(map.volumes.iter().all(|volume| volume.members.len() == 6 && volume.open));
    let before = local.proposals();
    for request in &reports {
        let answer = sink.heartbeat(request.clone()).await.unwrap();
        assert_eq!(answer.volumes.len(), map.volumes.len(), "every volume has a member here");
        assert!(answer.volumes.iter().all(|volume| volume.epoch == 1));
    }
    assert_eq!(local.proposals(), before);
    assert!(sink.heartbeat(heartbeat(7, &[(7, DiskState::Unspecified)])).await.is_err());
    warden.stop().await;
    api.stop().await;
}

#[tokio::test]
async fn who_does_not_lead_creates_nothing_and_forgets() {
    let liveness = Arc::new(Liveness::default());
    let (local, api) = made(&liveness).await;
    let warden = Warden::start(local.clone(), Arc::clone(&liveness));
    let sink = warden.sink();
    let failed = |node: u64| heartbeat(node, &[(u8::try_from(node).unwrap(), DiskState::Failed)]);
    for node in 1..=6 {
        sink.heartbeat(failed(node)).await.unwrap();
        let disk = disk_id(u8::try_from(node).unwrap());
        root(&api, vec![RootStep::DiskRegister { disk, node: NodeId(node), path: "/".into() }]).await;
    }
    until("heard before it leads", &api, |map| map.disk_health(disk_id(1)) == Health::Failed).await;
    local.lead(1, true);
    until("leadership begins anew", &api, |map| map.disk_health(disk_id(1)) == Health::Up).await;
    for node in 1..=6 {
        sink.heartbeat(failed(node)).await.unwrap();
    }
    until("failed disks", &api, |map| map.disk_health(disk_id(1)) == Health::Failed).await;
    local.lead(2, false);
    until("forgotten", &api, |map| map.disk_health(disk_id(1)) == Health::Up).await;
    assert!(api.map().volumes.is_empty());
    // The next time it leads, the disks that nobody complains about are used.
    local.lead(3, true);
    until("volumes", &api, |map| !map.volumes.is_empty()).await;
    warden.stop().await;
    api.stop().await;
}
