//! What a cluster must do while its nodes come and go.

use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::ids::{GroupId, NodeId, ROOT_GROUP};

use super::cluster::{Cluster, run, wait_for};
use crate::client::ProposeError;
use crate::node::GroupError;

const DATA: GroupId = GroupId(1);

#[test]
fn commands_are_applied_and_refused_ones_leave_nothing() {
    run(async {
        let mut cluster = Cluster::start(1, 1000).await;
        let client = cluster.client();
        assert_eq!(client.propose(DATA, "set a 1").await, "1");
        assert_eq!(client.propose(DATA, "fail a 2").await, "refused");
        assert_eq!(client.propose(DATA, "set b 3").await, "2");
        assert_eq!(client.query(DATA, "get a").await, "1");
        assert_eq!(client.query(ROOT_GROUP, "get a").await, "");
        let time: u64 = client.propose(DATA, "time").await.parse().unwrap();
        assert!(time > 1_700_000_000_000);
        cluster.stop().await;
    });
}

#[test]
fn outcomes_that_are_too_large_for_one_answer_come_in_several() {
    run(async {
        let mut cluster = Cluster::start(1, 1000).await;
        let client = cluster.client();
        let bytes = proto::MESSAGE_BYTES_MAX / 3;
        let say = Bytes::from(format!("say {bytes}"));
        let outcomes = client.0.propose_raw(DATA, vec![say; 5]).await.unwrap();
        assert_eq!(outcomes.iter().map(Bytes::len).collect::<Vec<_>>(), [bytes; 5]);
        // One that is too large by itself is refused, and soon.
        let said = format!("say {}", proto::MESSAGE_BYTES_MAX);
        let begun = Instant::now();
        let refused = client.0.propose_raw(DATA, vec![Bytes::from(said)]).await;
        assert!(matches!(refused, Err(ProposeError::Refused { .. })), "an outcome of a whole message");
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert_eq!(client.propose(DATA, "set a 1").await, "1");
        cluster.stop().await;
    });
}

#[test]
fn a_restart_of_all_keeps_everything_and_is_ready_soon() {
    run(async {
        let mut cluster = Cluster::start(2, 1000).await;
        let client = cluster.client();
        for index in 0..20 {
            client.propose(DATA, &format!("set k{index} {index}")).await;
            client.propose(GroupId(2), &format!("set k{index} other{index}")).await;
        }
        cluster.stop().await;
        let started = Instant::now();
        for node in 1..=3 {
            cluster.start_node(node).await;
        }
        assert_eq!(client.query(DATA, "count").await, "20");
        let elapsed = started.elapsed();
        println!("ready after {elapsed:?}");
        assert!(elapsed < Duration::from_secs(10), "ready only after {elapsed:?}");
        assert_eq!(client.query(DATA, "get k7").await, "7");
        assert_eq!(client.query(GroupId(2), "get k7").await, "other7");
        assert_eq!(client.propose(DATA, "set k20 20").await, "21");
        cluster.stop().await;
    });
}

#[test]
fn the_others_go_on_when_the_leader_dies_and_it_catches_up_by_log() {
    run(async {
        let mut cluster = Cluster::start(1, 1000).await;
        let client = cluster.client();
        client.propose(DATA, "set a 1").await;
        let leader = cluster.leader(DATA).await;
        cluster.stop_node(leader).await;
        let stopped = Instant::now();
        assert_eq!(client.propose(DATA, "set a 2").await, "2");
        println!("writes went on after {:?}", stopped.elapsed());
        assert_ne!(cluster.leader(DATA).await, leader);
        cluster.start_node(leader).await;
        cluster.settle(DATA).await;
        let states: Vec<_> = (1..=3).map(|node| cluster.local_state(node, DATA)).collect();
        assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
        assert_eq!(client.query(DATA, "get a").await, "2");
        cluster.stop().await;
    });
}

#[test]
fn a_replica_that_fell_behind_the_log_gets_a_snapshot() {
    run(async {
        let mut cluster = Cluster::start(1, 20).await;
        let client = cluster.client();
        client.propose(DATA, "set old 0").await;
        let leader = cluster.leader(DATA).await;
        let behind = (1..=3).find(|node| *node != leader).unwrap();
        cluster.stop_node(behind).await;
        let large = "x".repeat(20_000);
        for index in 0..150 {
            client.propose(DATA, &format!("set k{index} {index}{large}")).await;
        }
        client.propose(DATA, "set old 1").await;
        wait_for("a purged log", || {
            let progress = cluster.nodes[&leader].group(DATA).unwrap().progress();
            progress.purged_index > 60
        })
        .await;
        cluster.start_node(behind).await;
        // Writes go on while the snapshot is sent.
        for index in 0..40 {
            client.propose(DATA, &format!("set late{index} {index}")).await;
        }
        cluster.settle(DATA).await;
        assert_eq!(cluster.local_state(behind, DATA), cluster.local_state(leader, DATA));
        let progress = cluster.nodes[&behind].group(DATA).unwrap().progress();
        assert!(progress.purged_index > 60, "no snapshot was installed: {progress:?}");
        // And what was installed is there after a restart, and the node can lead.
        cluster.stop_node(behind).await;
        cluster.start_node(behind).await;
        cluster.settle(DATA).await;
        assert_eq!(cluster.local_state(behind, DATA), cluster.local_state(leader, DATA));
        cluster.stop_node(leader).await;
        assert_eq!(client.query(DATA, "get old").await, "1");
        cluster.stop().await;
    });
}

#[test]
fn many_waiting_commands_share_log_entries() {
    run(async {
        let mut cluster = Cluster::start(1, 100_000).await;
        let client = cluster.client();
        client.propose(DATA, "set first 0").await;
        let leader = cluster.leader(DATA).await;
        let before = cluster.nodes[&leader].group(DATA).unwrap().progress().last_log_index;
        let commands: usize = 2000;
        let started = Instant::now();
        let tasks: Vec<_> = (0..commands)
            .map(|index| {
                let client = client.clone();
                tokio::spawn(async move { client.propose(DATA, &format!("set k{index} {index}")).await })
            })
            .collect();
        let mut counts = Vec::new();
        for task in tasks {
            counts.push(task.await.unwrap().parse::<usize>().unwrap());
        }
        println!("{commands} commands in {:?}", started.elapsed());
        counts.sort_unstable();
        assert_eq!(counts, (2..commands + 2).collect::<Vec<_>>(), "every caller gets its own outcome");
        let after = cluster.nodes[&leader].group(DATA).unwrap().progress().last_log_index;
        let entries = usize::try_from(after - before).unwrap();
        println!("{entries} entries");
        assert!(entries * 4 < commands, "{entries} entries for {commands} commands");
        cluster.stop().await;
    });
}

#[test]
fn a_leader_without_its_quorum_answers_no_query() {
    run(async {
        let mut cluster = Cluster::start(1, 1000).await;
        let client = cluster.client();
        client.propose(DATA, "set a 1").await;
        let leader = cluster.leader(DATA).await;
        let handle = cluster.nodes[&leader].group(DATA).unwrap();
        for node in (1..=3).filter(|node| *node != leader) {
            cluster.stop_node(node).await;
        }
        let answer = handle.query(b"get a".to_vec()).await;
        assert!(
            matches!(answer, Err(GroupError::Unavailable { .. } | GroupError::NotLeader { .. })),
            "{answer:?}"
        );
        drop(handle);
        cluster.stop().await;
    });
}

#[test]
fn short_queries_wait_for_no_long_ones() {
    run(async {
        let mut cluster = Cluster::start(1, 1000).await;
        let client = cluster.client();
        client.propose(DATA, "set a 1").await;
        let leader = cluster.leader(DATA).await;
        let handle = cluster.nodes[&leader].group(DATA).unwrap();
        let mut asked = Vec::new();
        for _ in 0..4 {
            let long = handle.clone();
            asked.push(tokio::spawn(async move { long.query(b"long".to_vec()).await }));
            // In one round with it, and in later ones.
            for _ in 0..3 {
                assert_eq!(handle.query(b"get a".to_vec()).await, Ok(b"1".to_vec()));
            }
        }
        assert!(asked.iter().all(|long| !long.is_finished()), "a short query waited for a long one");
        for long in asked {
            assert_eq!(long.await.unwrap(), Ok(b"long".to_vec()));
        }
        drop(handle);
        cluster.stop().await;
    });
}

#[test]
fn a_follower_names_the_leader_and_refuses_oversized_commands() {
    run(async {
        let mut cluster = Cluster::start(1, 1000).await;
        let client = cluster.client();
        client.propose(DATA, "set a 1").await;
        let leader = cluster.leader(DATA).await;
        let follower = (1..=3).find(|node| *node != leader).unwrap();
        let handle = cluster.nodes[&follower].group(DATA).unwrap();
        let refused = handle.propose(b"set a 2".to_vec()).await;
        assert_eq!(refused, Err(GroupError::NotLeader { leader: Some(NodeId(leader)) }));
        let queried = handle.query(b"get a".to_vec()).await;
        assert_eq!(queried, Err(GroupError::NotLeader { leader: Some(NodeId(leader)) }));
        let large = Bytes::from(vec![b'x'; crate::node::COMMAND_BYTES_MAX + 1]);
        let refused = client.0.propose_raw(DATA, vec![large]).await;
        assert!(matches!(refused, Err(ProposeError::TooLarge { .. })), "{refused:?}");
        let small = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let leading = cluster.nodes[&leader].group(DATA).unwrap();
        let commands = vec![
            vec![b'x'; crate::node::COMMAND_BYTES_MAX + 1].into(),
            small("set a 2"),
            small("bad"),
            small("set a 3"),
        ];
        let outcomes = leading.propose_all(commands).await.unwrap();
        assert_eq!(outcomes, ["too large", "2", "not proposed", "3"], "each is refused by itself");
        drop(leading);
        cluster.stop().await;
        // A handle that somebody kept does not keep the node, and says that it has stopped.
        let stopped = handle.query(b"get a".to_vec()).await;
        assert_eq!(stopped, Err(GroupError::Stopped));
    });
}
