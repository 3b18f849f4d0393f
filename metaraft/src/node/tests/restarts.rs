//! Nodes stop and start at random while clients write: what was acknowledged stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::ids::GroupId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::cluster::{Cluster, run};

const WRITERS: u16 = 8;
const ROUNDS: usize = 8;

#[test]
fn random_restarts_lose_nothing_acknowledged() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    run(async move {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut cluster = Cluster::start(2, 30).await;
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (client, stop) = (cluster.client(), Arc::clone(&stop));
                let group = GroupId(1 + writer % 2);
                tokio::spawn(async move {
                    let mut written = 0;
                    while !stop.load(Ordering::Relaxed) {
                        client.propose(group, &format!("set w{writer} {}", written + 1)).await;
                        written += 1;
                        let read = client.query(group, &format!("get w{writer}")).await;
                        assert_eq!(read, written.to_string(), "writer {writer} reads its own write");
                    }
                    (writer, group, written)
                })
            })
            .collect();
        for _ in 0..ROUNDS {
            let node = random.random_range(1..=3);
            cluster.stop_node(node).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
            if random.random_bool(0.3) {
                let second = node % 3 + 1;
                cluster.stop_node(second).await;
                cluster.start_node(second).await;
            }
            cluster.start_node(node).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..800))).await;
        }
        stop.store(true, Ordering::Relaxed);
        let client = cluster.client();
        let mut total = 0;
        for writer in writers {
            let (writer, group, written) = writer.await.unwrap();
            assert_eq!(client.query(group, &format!("get w{writer}")).await, written.to_string());
            total += written;
        }
        println!("{total} writes");
        for group in [GroupId(1), GroupId(2)] {
            cluster.settle(group).await;
            let states: Vec<_> = (1..=3).map(|node| cluster.local_state(node, group)).collect();
            assert!(states.iter().all(|state| *state == states[0]), "replicas of group {group} differ");
        }
        cluster.stop().await;
    });
}
