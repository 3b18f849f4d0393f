//! A leader that stops running for a while, as by SIGSTOP, and then goes on where it was.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use engine::ids::GroupId;
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, run, wait_for};
use super::registers::Registers;
use crate::node::{GroupHandle, MetaConfig, MetaNode};

const DATA: GroupId = GroupId(1);

/// A node on a runtime of one thread: while that thread is blocked, nothing of the node runs.
struct PausableNode {
    handle: GroupHandle,
    pause: tokio::sync::mpsc::UnboundedSender<mpsc::Receiver<()>>,
    stop: CancellationToken,
    thread: std::thread::JoinHandle<()>,
}

impl PausableNode {
    fn start(config: MetaConfig) -> Self {
        let (ready, started) = mpsc::channel();
        let (pause, mut pauses) = tokio::sync::mpsc::unbounded_channel::<mpsc::Receiver<()>>();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let node = MetaNode::start(config, Arc::new(Registers::default())).await.unwrap();
                ready.send(node.group(DATA).unwrap()).unwrap();
                loop {
                    tokio::select! {
                        () = stopped.cancelled() => break,
                        Some(resume) = pauses.recv() => resume.recv().unwrap(),
                    }
                }
                node.stop().await;
            });
        });
        Self { handle: started.recv().unwrap(), pause, stop, thread }
    }
}

#[test]
fn a_leader_that_was_paused_never_answers_with_an_old_state() {
    run(async {
        let mut cluster = Cluster::start(1, 1000).await;
        let client = cluster.client();
        client.propose(DATA, "set a old").await;
        let leader = cluster.leader(DATA).await;
        // The leader restarts on a runtime that can be paused, and leads again once the others were down.
        let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
        cluster.stop_node(leader).await;
        let paused = PausableNode::start(cluster.config(leader));
        let (mut paused_count, mut round) = (0, 0);
        while paused_count < 3 {
            round += 1;
            let leads = || paused.handle.is_leader();
            while !leads() {
                let rival = cluster.leader_among(&others, DATA);
                if let Some(rival) = rival {
                    cluster.stop_node(rival).await;
                    let waited = Duration::from_secs(3);
                    let _elected = tokio::time::timeout(
                        waited,
                        wait_for("another leader", || {
                            leads() || cluster.leader_among(&others, DATA).is_some()
                        }),
                    )
                    .await;
                    cluster.start_node(rival).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let old = format!("old{round}");
            client.propose(DATA, &format!("set a {old}")).await;
            if !leads() {
                continue;
            }
            paused_count += 1;
            let (resume, resumed) = mpsc::channel();
            paused.pause.send(resumed).unwrap();
            let new = format!("new{round}");
            client.propose(DATA, &format!("set a {new}")).await;
            // Asked while it is paused, and answered, if at all, when it goes on.
            let asked: Vec<_> = (0..20)
                .map(|_| {
                    let handle = paused.handle.clone();
                    tokio::spawn(async move { handle.query(b"get a".to_vec()).await })
                })
                .collect();
            resume.send(()).unwrap();
            for answer in asked {
                let answer = answer.await.unwrap();
                assert!(answer.is_err() || answer == Ok(new.clone().into_bytes()), "{answer:?} after {new}");
            }
        }
        let PausableNode { handle, pause, stop, thread } = paused;
        drop((handle, pause));
        stop.cancel();
        tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
        cluster.stop().await;
    });
}
