//! What a node does when its disk lost something.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use engine::ids::GroupId;

use super::cluster::{Cluster, run};
use crate::node::{LogError, StartError};

const DATA: GroupId = GroupId(1);

/// The write-ahead logs of a database that hold something.
fn wals(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    let mut wals: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "log"))
        .filter(|path| path.metadata().unwrap().len() > 0)
        .collect();
    wals.sort();
    wals
}

#[test]
fn a_node_whose_log_lost_acknowledged_entries_does_not_start() {
    run(async {
        let mut cluster = Cluster::start(1, 100_000).await;
        let client = cluster.client();
        for index in 0..50 {
            client.propose(DATA, &format!("set k{index} {index}")).await;
        }
        cluster.settle(DATA).await;
        cluster.stop_node(2).await;
        let wal = wals(&cluster.directory.path().join("node-2/log")).pop().unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&wal).unwrap();
        let middle = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, middle).unwrap();
        file.write_all_at(&[byte[0] ^ 0xff], middle).unwrap();
        drop(file);
        let refused = cluster.try_start_node(2).await;
        assert!(matches!(refused, Err(StartError::Log(LogError::WentBack { .. }))), "{refused:?}");
        // The others have a quorum without it.
        client.propose(DATA, "set after 1").await;
        cluster.stop().await;
    });
}

#[test]
fn a_node_without_its_log_does_not_start() {
    run(async {
        let mut cluster = Cluster::start(1, 100_000).await;
        cluster.client().propose(DATA, "set a 1").await;
        cluster.settle(DATA).await;
        cluster.stop_node(3).await;
        std::fs::remove_dir_all(cluster.directory.path().join("node-3/log")).unwrap();
        let refused = cluster.try_start_node(3).await;
        assert!(matches!(refused, Err(StartError::Log(LogError::WentBack { .. }))), "{refused:?}");
        cluster.stop().await;
    });
}

#[test]
fn a_state_that_lost_its_latest_writes_is_rebuilt_from_the_log() {
    run(async {
        let mut cluster = Cluster::start(1, 100_000).await;
        let client = cluster.client();
        for index in 0..50 {
            client.propose(DATA, &format!("set k{index} {index}")).await;
        }
        cluster.settle(DATA).await;
        let before = cluster.local_state(1, DATA);
        cluster.stop_node(1).await;
        for wal in wals(&cluster.directory.path().join("node-1/state")) {
            let length = wal.metadata().unwrap().len();
            OpenOptions::new().write(true).open(&wal).unwrap().set_len(length / 2).unwrap();
        }
        cluster.start_node(1).await;
        cluster.settle(DATA).await;
        assert_eq!(cluster.local_state(1, DATA), before);
        cluster.stop().await;
    });
}

#[test]
fn a_node_whose_state_lost_what_the_log_no_longer_has_does_not_start() {
    run(async {
        let mut cluster = Cluster::start(1, 10).await;
        let client = cluster.client();
        for index in 0..60 {
            client.propose(DATA, &format!("set k{index} {index}")).await;
        }
        cluster.settle(DATA).await;
        super::cluster::wait_for("a purged log", || {
            cluster.nodes[&1].group(DATA).unwrap().progress().purged_index > 10
        })
        .await;
        cluster.stop_node(1).await;
        std::fs::remove_dir_all(cluster.directory.path().join("node-1/state")).unwrap();
        let refused = cluster.try_start_node(1).await;
        assert!(matches!(refused, Err(StartError::Log(LogError::StateBehind { .. }))), "{refused:?}");
        cluster.stop().await;
    });
}
