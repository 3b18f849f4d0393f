//! Nodes whose directory was wiped, or put back from an older copy, while others acknowledged.

use std::path::Path;

use engine::ids::GroupId;

use super::cluster::{Cluster, run, wait_for};

const DATA: GroupId = GroupId(1);

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn refuses(cluster: &Cluster, node: u64) -> String {
    cluster.nodes[&node].group(DATA).unwrap().refuses()
}

async fn write(cluster: &Cluster, from: u32, count: u32) {
    let client = cluster.client();
    for index in from..from + count {
        client.propose(DATA, &format!("set k{index} {index}")).await;
    }
}

async fn check(cluster: &Cluster, count: u32) {
    let client = cluster.client();
    for index in 0..count {
        assert_eq!(client.query(DATA, &format!("get k{index}")).await, index.to_string());
    }
}

#[test]
fn a_wiped_voter_does_not_vote_and_the_writes_that_it_had_acknowledged_stay() {
    run(async {
        let mut cluster = Cluster::start(1, 100_000).await;
        write(&cluster, 0, 1).await;
        cluster.stop_node(3).await;
        write(&cluster, 1, 20).await;
        cluster.stop_node(1).await;
        cluster.stop_node(2).await;
        std::fs::remove_dir_all(cluster.directory.path().join("node-2")).unwrap();
        cluster.start_node(2).await;
        cluster.start_node(3).await;
        wait_for("the wiped node to refuse", || refuses(&cluster, 2).contains("must not vote")).await;
        wait_for("the other to say whom it misses", || {
            refuses(&cluster, 3).contains("metadata node 2 (it is not the one that it was)")
        })
        .await;
        assert_eq!(cluster.leader_among(&[2, 3], DATA), None);
        cluster.start_node(1).await;
        check(&cluster, 21).await;
        assert!(refuses(&cluster, 2).contains("new id"), "for good: {}", refuses(&cluster, 2));
        cluster.stop().await;
    });
}

#[test]
fn a_voter_put_back_from_an_older_copy_does_not_vote_also_after_another_start() {
    run(async {
        let mut cluster = Cluster::start(1, 100_000).await;
        write(&cluster, 0, 1).await;
        cluster.settle(DATA).await;
        let directory = cluster.directory.path().join("node-2");
        let copy = cluster.directory.path().join("copy");
        cluster.stop_node(2).await;
        copy_tree(&directory, &copy);
        cluster.start_node(2).await;
        wait_for("the node to vote again", || refuses(&cluster, 2).is_empty()).await;
        cluster.stop_node(3).await;
        write(&cluster, 1, 10).await;
        cluster.stop_node(1).await;
        cluster.stop_node(2).await;
        std::fs::remove_dir_all(&directory).unwrap();
        std::fs::rename(&copy, &directory).unwrap();
        cluster.start_node(3).await;
        cluster.start_node(2).await;
        wait_for("the older copy to refuse", || refuses(&cluster, 2).contains("older copy")).await;
        cluster.stop_node(3).await;
        cluster.stop_node(2).await;
        cluster.start_node(2).await;
        assert!(refuses(&cluster, 2).contains("older copy"), "for good, with nobody to ask");
        cluster.start_node(3).await;
        cluster.start_node(1).await;
        check(&cluster, 11).await;
        cluster.stop().await;
    });
}

#[test]
fn nodes_that_all_come_back_blank_begin_anew_only_if_nobody_remembers() {
    run(async {
        let mut cluster = Cluster::start(1, 100_000).await;
        write(&cluster, 0, 1).await;
        cluster.stop().await;
        for node in [1, 2] {
            std::fs::remove_dir_all(cluster.directory.path().join(format!("node-{node}"))).unwrap();
            cluster.start_node(node).await;
        }
        // Two blank ones of three found nothing: the third may know better, and does.
        wait_for("the blank nodes to wait for the third", || {
            [1, 2]
                .iter()
                .all(|node| refuses(&cluster, *node).contains("before all its metadata nodes are there"))
        })
        .await;
        cluster.start_node(3).await;
        wait_for("the blank nodes to refuse", || {
            [1, 2].iter().all(|node| refuses(&cluster, *node).contains("must not vote"))
        })
        .await;
        assert_eq!(cluster.leader_among(&[1, 2, 3], DATA), None);
        cluster.stop().await;
    });
}
