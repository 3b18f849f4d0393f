//! Those who watch a group hear of what is committed, through changes of its leader.

use std::time::Duration;

use engine::ids::{GroupId, NamespaceId};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::cluster::{Client, Cluster, PATIENCE, run};
use crate::client::WatchedChanges;

const GROUP: GroupId = GroupId(1);

/// Watches as a gateway does: again and again.
async fn watch(client: &Client) -> BoxStream<'static, WatchedChanges> {
    let begun = async {
        loop {
            match client.0.watch_once(GROUP).await {
                Ok(stream) => return stream.boxed(),
                Err(_no_leader) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let mut stream = tokio::time::timeout(PATIENCE, begun).await.unwrap();
    let first = stream.next().await.unwrap();
    assert!(first.gap, "what came before is unknown");
    stream
}

/// The number that the registers' writes have reached, as told; `None` at the end of the stream.
async fn told(stream: &mut BoxStream<'static, WatchedChanges>) -> Option<u64> {
    let changes = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap()?;
    let number = |(namespace, number): &(NamespaceId, u64)| {
        assert_eq!(*namespace, NamespaceId::from_bytes([0; 16]));
        *number
    };
    changes.notices.first().map(number)
}

#[test]
fn watchers_hear_of_commits_and_find_the_next_leader() {
    run(async {
        let mut cluster = Cluster::start(1, 1000).await;
        let client = cluster.client();
        let mut stream = watch(&client).await;
        for number in 1..=5_u64 {
            assert_eq!(client.propose(GROUP, "set a b").await, number.to_string());
            assert_eq!(told(&mut stream).await, Some(number));
        }
        client.propose(GROUP, "fail a c").await;
        let leader = cluster.leader(GROUP).await;
        cluster.stop_node(leader).await;
        assert_eq!(
            told(&mut stream).await,
            None,
            "the stream ends with its leader, and tells of no refused command"
        );

        let mut stream = watch(&client).await;
        assert_eq!(client.propose(GROUP, "set a d").await, "6");
        assert_eq!(told(&mut stream).await, Some(6));
        cluster.stop().await;
    });
}
