use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::cluster::{ClusterMap, DiskUsage, Health, Location};
use engine::code::Code;
use engine::ids::{ClusterId, DiskId, NodeId, ROOT_GROUP};
use proto::internal::{DiskReport as WireDisk, DiskState, HeartbeatRequest};

use super::Warden;
use super::liveness::{DiskReport, Liveness};
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
    api.propose(ROOT_GROUP, Command { request: new_request(), steps: Steps::Root(steps) }).await.unwrap();
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
    assert!(change(&|request| request.disks = vec![WireDisk::default(); 2000]).is_err());
}

#[tokio::test]
async fn only_what_differs_is_registered_and_a_copy_takes_nothing_over() {
    let (_local, api) = made(&Arc::default()).await;
    let up = DiskState::Up;
    let nowhere = |_disk| false;
    let first = report(1, &[(1, up), (2, DiskState::Missing)]);
    let map = api.refresh_map().await.unwrap();
    let steps = plan::registrations(&map, &first, nowhere);
    assert_eq!(steps.len(), 2, "a disk that was never seen to serve gets no row: {steps:?}");
    root(&api, steps).await;
    let map = api.refresh_map().await.unwrap();
    assert!(plan::registrations(&map, &first, nowhere).is_empty());
    let moved = NodeReport { address: "elsewhere:1".into(), ..first.clone() };
    assert_eq!(plan::registrations(&map, &moved, nowhere).len(), 1);
    let location = Location { rack: "r9".into() };
    assert_eq!(plan::registrations(&map, &NodeReport { location, ..first }, nowhere).len(), 1);
    let second = report(2, &[(1, up)]);
    assert_eq!(plan::registrations(&map, &second, |_disk| true).len(), 1, "the node, not the disk");
    assert_eq!(plan::registrations(&map, &second, nowhere).len(), 2, "a disk that has moved");
    let broken = report(2, &[(1, DiskState::Failed)]);
    assert_eq!(plan::registrations(&map, &broken, nowhere).len(), 1);
    api.stop().await;
}

#[tokio::test]
async fn health_is_what_was_heard_within_the_grace() {
    let (_local, api) = made(&Arc::default()).await;
    let up = DiskState::Up;
    for node in [1, 2] {
        let number = u8::try_from(node).unwrap();
        let registered = report(node, &[(number, up), (number + 10, up)]);
        let map = api.refresh_map().await.unwrap();
        root(&api, plan::registrations(&map, &registered, |_disk| false)).await;
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
    let reported = |health| DiskReport { path: String::new(), health, usage };
    let later = start + 2 * GRACE;
    let disks = BTreeMap::from([(disk_id(1), reported(Health::Full))]);
    liveness.hear(NodeId(1), disks.clone(), later);
    assert!(
        liveness.serves_elsewhere(disk_id(1), NodeId(2)) && !liveness.serves_elsewhere(disk_id(1), NodeId(1))
    );
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
