//! A storage node and its client over mutual TLS on loopback, and its heartbeats.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

mod heartbeats;
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use blockstore::client::StorageCallError;
use blockstore::node::{StartError, StorageNode};
use blockstore::record::ShardName;
use bytes::Bytes;
use engine::cluster::StripeLayout;
use engine::code::Code;
use engine::ids::{ClusterId, DiskId, Epoch, NodeId, Position, StripeId, VolumeId};
use engine::store::{PutShardError, ReadShardError, ShardPut, ShardStore};
use proto::internal::ListShardsRequest;
use proto::internal::storage_client::StorageClient as Stub;
use proto::peer::{ExpectedServer, Role};
use support::{Authority, CLUSTER};

fn stripe(number: u64) -> StripeId {
    StripeId::new(VolumeId(1), number.to_be_bytes())
}

fn shard(disk: DiskId, number: u64, payload: Bytes) -> ShardPut {
    ShardPut {
        disk,
        stripe: stripe(number),
        position: Position(2),
        epoch: Epoch(3),
        code: Code::new(4, 2).unwrap(),
        layout: StripeLayout::Coded,
        stripe_length: u32::try_from(payload.len()).unwrap(),
        payload,
    }
}

fn bytes_of(number: u64, length: usize) -> Bytes {
    (0..length).map(|at| (at as u64 * 31 + number).to_le_bytes()[0]).collect()
}

async fn start(authority: &Authority, scratch: &std::path::Path, disks: usize) -> (StorageNode, Vec<DiskId>) {
    let node = StorageNode::start(authority.config(scratch, disks, Vec::new())).await.unwrap();
    let ids = node.disks().iter().map(|slot| slot.id.unwrap()).collect();
    (node, ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_stored_read_listed_deleted_and_scrubbed_over_the_network() {
    let scratch = tempfile::tempdir().unwrap();
    let authority = Authority::new(scratch.path());
    let (node, disks) = start(&authority, scratch.path(), 2).await;
    let address = node.address().to_string();
    let client = authority.client(CLUSTER, Role::Gateway, &address);

    let mut tasks = Vec::new();
    for number in 0..40 {
        let (client, disk) = (client.clone(), disks[usize::from(number % 2 == 1)]);
        tasks.push(tokio::spawn(async move {
            let bytes = bytes_of(number, 1 << 20);
            client.put_shard(shard(disk, number, bytes.clone())).await.unwrap();
            client.put_shard(shard(disk, number, bytes.clone())).await.unwrap();
            let read = client.read_shard(disk, stripe(number), Position(2), 70_000, 200_000).await.unwrap();
            assert_eq!(read, bytes.slice(70_000..270_000));
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let other = client.put_shard(shard(disks[0], 0, bytes_of(9, 1 << 20))).await;
    assert!(matches!(other, Err(PutShardError::DiskRefuses { .. })), "{other:?}");
    let stale = ShardPut { epoch: Epoch(2), ..shard(disks[0], 90, bytes_of(1, 10)) };
    let stale = client.put_shard(stale).await;
    assert!(matches!(stale, Err(PutShardError::StaleEpoch { current: Epoch(3), .. })), "{stale:?}");
    let absent = client.read_shard(disks[0], stripe(1), Position(2), 0, 10).await;
    assert!(matches!(absent, Err(ReadShardError::Lost { .. })), "it is on the other disk: {absent:?}");
    let nowhere = client.put_shard(shard(DiskId::from_bytes([9; 16]), 1, bytes_of(1, 10))).await;
    assert!(matches!(nowhere, Err(PutShardError::DiskRefuses { .. })), "{nowhere:?}");

    let (page, more) = client.list_shards(disks[0], None, 15).await.unwrap();
    assert!(more && page.len() == 15);
    let (rest, more) = client.list_shards(disks[0], Some(page[14].name), 15).await.unwrap();
    assert!(!more && rest.len() == 5 && rest[0].length == 1 << 20);
    let names: Vec<ShardName> = rest.iter().map(|listed| listed.name).collect();
    let volume = names[0].stripe.volume();
    for refused in [BTreeMap::new(), BTreeMap::from([(volume, Epoch(2))])] {
        let refused = client.delete_shards(disks[0], &names, &refused).await;
        assert!(matches!(refused, Err(StorageCallError::Refused { .. })), "{refused:?}");
    }
    let epochs = BTreeMap::from([(volume, Epoch(3))]);
    assert_eq!(client.delete_shards(disks[0], &names, &epochs).await.unwrap(), 5);

    let meta = authority.client(CLUSTER, Role::Meta, &address);
    let mut progress = meta.scrub(NodeId(7), &address).await.unwrap();
    let mut last = None;
    while let Some(message) = progress.message().await.unwrap() {
        last = Some(message);
    }
    let last = last.unwrap();
    assert_eq!((last.records_checked, last.damaged, last.done), (35, 0, true));
    node.stop().await;
}

#[tokio::test]
async fn only_the_roles_of_this_cluster_are_served() {
    let scratch = tempfile::tempdir().unwrap();
    let authority = Authority::new(scratch.path());
    let (node, disks) = start(&authority, scratch.path(), 1).await;
    let address = node.address().to_string();
    let put = || shard(disks[0], 1, bytes_of(1, 100));

    let denied = authority.client(CLUSTER, Role::Meta, &address).put_shard(put()).await;
    assert!(matches!(&denied, Err(PutShardError::Unavailable { reason, .. }) if reason.contains("not for")));
    let foreign = authority.client(ClusterId::from_bytes([2; 16]), Role::Gateway, &address);
    let denied = foreign.list_shards(disks[0], None, 1).await;
    assert!(
        matches!(denied, Err(StorageCallError::Unavailable { .. })),
        "it is not whom that client expects"
    );
    // Nor does the node take it from a client of another cluster that does not mind.
    let identity = authority.identity(ClusterId::from_bytes([2; 16]), Role::Gateway, 1);
    let expected = ExpectedServer { cluster: CLUSTER, role: Role::Storage, node: None };
    let channel = identity.endpoint(&address, expected).unwrap().connect_lazy();
    let request = ListShardsRequest { disk: disks[0].as_bytes().to_vec().into(), after: None, count_max: 1 };
    let denied = Stub::new(channel).list_shards(request).await.unwrap_err();
    assert_eq!(denied.code(), tonic::Code::PermissionDenied);

    // A client that expects another node, or another role, at the address sends nothing.
    let gateway = authority.identity(CLUSTER, Role::Gateway, 1);
    for (role, node) in [(Role::Storage, Some(NodeId(8))), (Role::Meta, None), (Role::Gateway, None)] {
        let channel = gateway.endpoint(&address, gateway.expects(role, node)).unwrap().connect().await;
        assert!(channel.is_err(), "{role:?} {node:?}");
    }

    // A certificate of another authority does not even get a connection.
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Authority::new(elsewhere.path()).client(CLUSTER, Role::Gateway, &address);
    assert!(matches!(stranger.put_shard(put()).await, Err(PutShardError::Unavailable { .. })));

    authority.client(CLUSTER, Role::Storage, &address).put_shard(put()).await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_is_not_running_is_reported_at_once_and_used_again_when_it_is_back() {
    let scratch = tempfile::tempdir().unwrap();
    let authority = Authority::new(scratch.path());
    let mut config = authority.config(scratch.path(), 1, Vec::new());
    let node = StorageNode::start(config.clone()).await.unwrap();
    let disk = node.disks()[0].id.unwrap();
    config.listen = node.address();
    let client = authority.client(CLUSTER, Role::Gateway, &node.address().to_string());
    client.put_shard(shard(disk, 1, bytes_of(1, 5000))).await.unwrap();
    node.stop().await;

    let began = Instant::now();
    let gone = client.read_shard(disk, stripe(1), Position(2), 0, 5000).await;
    assert!(matches!(gone, Err(ReadShardError::Unavailable { .. })), "{gone:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());

    let node = StorageNode::start(config).await.unwrap();
    let read = client.read_shard(disk, stripe(1), Position(2), 0, 5000).await.unwrap();
    assert_eq!(read, bytes_of(1, 5000));
    node.stop().await;
}

#[tokio::test]
async fn how_connecting_ended_for_a_dropped_call_is_not_the_answer_to_the_next() {
    let scratch = tempfile::tempdir().unwrap();
    let authority = Authority::new(scratch.path());
    let mut config = authority.config(scratch.path(), 1, Vec::new());
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    config.listen = silent.local_addr().unwrap();
    let disk = DiskId::from_bytes([3; 16]);
    let client = authority.client(CLUSTER, Role::Gateway, &config.listen.to_string());

    // Nobody waits for this connection any more when it is refused.
    let dropped = client.read_shard(disk, stripe(1), Position(2), 0, 10);
    tokio::select! {
        answer = dropped => panic!("a socket that says nothing answered: {answer:?}"),
        accepted = silent.accept() => {
            let (socket, _from) = accepted.unwrap();
            socket.set_zero_linger().unwrap();
        }
    }
    drop(silent);

    let node = StorageNode::start(config).await.unwrap();
    let disk = node.disks()[0].id.unwrap();
    client.put_shard(shard(disk, 1, bytes_of(1, 5000))).await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_process_starts_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let authority = Authority::new(scratch.path());
    for (role, node) in [(Role::Gateway, 7), (Role::Storage, 8)] {
        let mut config = authority.config(scratch.path(), 1, Vec::new());
        config.tls = authority.issue(CLUSTER, role, node);
        let started = StorageNode::start(config).await;
        assert!(matches!(started, Err(StartError::WrongCertificate { node: NodeId(7), .. })));
    }
    assert!(!scratch.path().join("disk-0").exists(), "nothing was formatted");
}
