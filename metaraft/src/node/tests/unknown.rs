//! A voter that is of an older version than the leader.

use std::time::Duration;

use engine::ids::GroupId;

use super::cluster::{Cluster, run};

const DATA: GroupId = GroupId(1);

#[test]
fn a_voter_that_does_not_know_a_command_stops_and_goes_on_once_it_does() {
    run(async {
        let mut cluster = Cluster::start(1, 1000).await;
        let client = cluster.client();
        client.propose(DATA, "set a 1").await;
        let leader = cluster.leader(DATA).await;
        let older = (1..=3).find(|node| *node != leader).unwrap();
        cluster.stop_node(older).await;
        cluster.knows_less = Some(older);
        cluster.start_node(older).await;
        let failed = cluster.nodes[&older].failed();
        assert_eq!(client.propose(DATA, "set a 2").await, "2");
        assert_eq!(client.propose(DATA, "new b").await, "new");
        let reason = tokio::time::timeout(Duration::from_secs(30), failed).await.expect("it goes on");
        println!("{reason}");
        for part in ["group 1", "does not know", "a step called new", "upgrade the software of this node"] {
            assert!(reason.contains(part), "{reason}");
        }
        // The others go on; and so it does, once it knows: nothing was skipped.
        assert_eq!(client.propose(DATA, "set a 3").await, "3");
        cluster.stop_node(older).await;
        cluster.knows_less = None;
        cluster.start_node(older).await;
        cluster.settle(DATA).await;
        assert_eq!(cluster.local_state(older, DATA), cluster.local_state(leader, DATA));
        cluster.stop().await;
    });
}
