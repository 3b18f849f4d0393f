//! Snapshots that take long to install, and senders that try again meanwhile.

use std::time::{Duration, Instant};

use engine::ids::GroupId;

use super::cluster::{Client, Cluster, run, wait_for};
use crate::raft::receiving::Receiving;

const DATA: GroupId = GroupId(1);
/// How long a snapshot may get on by nothing at all, in these tests.
const STALL: Duration = Duration::from_secs(2);

/// A cluster with a replica that is down and can only be helped by a snapshot of some 8 parts; its leader, and it.
async fn behind() -> (Cluster, Client, u64, u64) {
    let mut cluster = Cluster::start(1, 20).await;
    for node in 1..=3 {
        cluster.stop_node(node).await;
    }
    cluster.snapshot_stall_max = STALL;
    for node in 1..=3 {
        cluster.start_node(node).await;
    }
    let client = cluster.client();
    client.propose(DATA, "set old 0").await;
    let leader = cluster.leader(DATA).await;
    let behind = (1..=3).find(|node| *node != leader).unwrap();
    cluster.stop_node(behind).await;
    let large = "x".repeat(100_000);
    for index in 0..80 {
        client.propose(DATA, &format!("set k{index} {index}{large}")).await;
    }
    wait_for("a purged log", || cluster.nodes[&leader].group(DATA).unwrap().progress().purged_index > 40)
        .await;
    (cluster, client, leader, behind)
}

fn files(cluster: &Cluster, node: u64) -> usize {
    let directory = cluster.config(node).data_dir;
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".snapshot")).count()
}

async fn equal_in_the_end(cluster: &mut Cluster, leader: u64, behind: u64) {
    cluster.settle(DATA).await;
    assert_eq!(cluster.local_state(behind, DATA), cluster.local_state(leader, DATA));
    wait_for("no file", || files(cluster, behind) == 0).await;
    cluster.stop().await;
}

/// Lets the installation of one part through for each interval, until `parts` have been.
async fn crawl(receiving: &Receiving, parts: usize, interval: Duration) {
    for _ in 0..parts {
        let before = receiving.progress().count();
        tokio::time::sleep(interval).await;
        receiving.progress().pause.pass_one();
        wait_for("a part", || receiving.progress().count() > before).await;
    }
}

#[test]
fn an_installation_that_gets_on_slowly_is_waited_for() {
    run(async {
        let (mut cluster, client, leader, behind) = behind().await;
        cluster.start_node(behind).await;
        let receiving = cluster.nodes[&behind].receiving(DATA);
        receiving.progress().pause.pause();
        wait_for("the whole snapshot", || receiving.progress().count() >= 8).await;
        let started = Instant::now();
        crawl(&receiving, 5, STALL * 6 / 10).await;
        assert!(started.elapsed() > STALL * 5 / 2, "longer than any stall");
        assert_eq!(receiving.attempts(), 1, "it was sent again while it was installed");
        // Meanwhile the others went on.
        client.propose(DATA, "set old 1").await;
        receiving.progress().pause.go_on();
        equal_in_the_end(&mut cluster, leader, behind).await;
    });
}

#[test]
fn a_retry_does_not_touch_what_is_being_installed() {
    run(async {
        let (mut cluster, client, leader, behind) = behind().await;
        // What a crash left.
        let left = cluster.config(behind).data_dir.join("group-1.snapshot");
        std::fs::write(&left, b"half of one").unwrap();
        cluster.start_node(behind).await;
        assert!(!left.exists());
        let receiving = cluster.nodes[&behind].receiving(DATA);
        receiving.progress().pause.pause();
        wait_for("the whole snapshot", || receiving.progress().count() >= 8).await;
        // The sender hears nothing new, gives up, and tries again and again; each time there is more to send.
        for index in 0..20 {
            client.propose(DATA, &format!("set late{index} {index}")).await;
            tokio::time::sleep(STALL / 6).await;
            assert_eq!(files(&cluster, behind), 1, "one at a time");
        }
        assert_eq!(receiving.attempts(), 1);
        receiving.progress().pause.go_on();
        equal_in_the_end(&mut cluster, leader, behind).await;
    });
}
