//! What metadata nodes hear of a storage node, and what it learns from them.

use std::time::Duration;

use blockstore::node::StorageNode;
use engine::ids::Epoch;
use engine::store::{PutShardError, ShardPut, ShardStore};
use proto::internal::metadata_server::{Metadata, MetadataServer};
use proto::internal::{
    AttestRequest, AttestResponse, DiskState, HeartbeatRequest, HeartbeatResponse, NodeStatusRequest,
    NodeStatusResponse, NotLeader, ProposeRequest, ProposeResponse, QueryManyRequest, QueryManyResponse,
    QueryRequest, QueryResponse, VolumeEpoch, WatchRequest, WatchResponse,
};
use proto::peer::Role;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::support::{Authority, CLUSTER};
use crate::{bytes_of, shard};

/// The far end of heartbeats: hands on what it hears, and answers as told.
struct Listener {
    answer: HeartbeatResponse,
    heard: mpsc::Sender<HeartbeatRequest>,
}

#[tonic::async_trait]
impl Metadata for Listener {
    async fn propose(&self, _request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        Err(Status::unimplemented("only heartbeats are heard here"))
    }

    async fn query(&self, _request: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        Err(Status::unimplemented("only heartbeats are heard here"))
    }

    async fn query_many(
        &self,
        _request: Request<QueryManyRequest>,
    ) -> Result<Response<QueryManyResponse>, Status> {
        Err(Status::unimplemented("only heartbeats are heard here"))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        drop(self.heard.try_send(request.into_inner()));
        Ok(Response::new(self.answer.clone()))
    }

    async fn attest(&self, _request: Request<AttestRequest>) -> Result<Response<AttestResponse>, Status> {
        Err(Status::unimplemented("not this listener's"))
    }

    async fn node_status(
        &self,
        _request: Request<NodeStatusRequest>,
    ) -> Result<Response<NodeStatusResponse>, Status> {
        Err(Status::unimplemented("only heartbeats are heard here"))
    }

    type WatchStream = tokio_stream::Empty<Result<WatchResponse, Status>>;

    async fn watch(&self, _request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only heartbeats are heard here"))
    }
}

struct Listening {
    address: String,
    heard: mpsc::Receiver<HeartbeatRequest>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

async fn listen(authority: &Authority, node: u64, answer: HeartbeatResponse) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, heard) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let router = Server::builder()
        .tls_config(authority.identity(CLUSTER, Role::Meta, node).server())
        .unwrap()
        .add_service(MetadataServer::new(Listener { answer, heard: sender }));
    let stopped = stop.clone().cancelled_owned();
    let server = tokio::spawn(router.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped));
    Listening { address, heard, stop, server }
}

async fn next(listening: &mut Listening) -> HeartbeatRequest {
    tokio::time::timeout(Duration::from_secs(10), listening.heard.recv()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_find_the_leader_report_the_disks_and_bring_epochs() {
    let scratch = tempfile::tempdir().unwrap();
    let authority = Authority::new(scratch.path());
    let volumes = vec![VolumeEpoch { volume: 1, epoch: 4 }];
    let mut leader =
        listen(&authority, 2, HeartbeatResponse { volumes, ..HeartbeatResponse::default() }).await;
    let not_leader = NotLeader { leader: 2, leader_address: leader.address.clone() };
    let answer = HeartbeatResponse { not_leader: Some(not_leader), ..HeartbeatResponse::default() };
    let mut follower = listen(&authority, 1, answer).await;

    // The first metadata node of the configuration is down, the second follows, and the leader is known to it only.
    let down = "127.0.0.1:1".to_owned();
    let config = authority.config(scratch.path(), 2, vec![down, follower.address.clone()]);
    let node = StorageNode::start(config.clone()).await.unwrap();
    let address = node.address().to_string();
    next(&mut follower).await;
    let heard = next(&mut leader).await;
    assert_eq!((heard.node, heard.address.as_str(), heard.rack.as_str()), (7, address.as_str(), "r1"));
    assert_eq!(heard.cluster, CLUSTER.as_bytes().to_vec());
    assert_eq!(heard.disks.len(), 2);
    for (report, slot) in heard.disks.iter().zip(node.disks()) {
        assert_eq!(report.disk, slot.id.unwrap().as_bytes().to_vec());
        assert_eq!(report.state(), DiskState::Up);
        assert!(report.capacity_bytes > 0 && report.allocated_bytes > 0 && report.free_bytes > 0);
    }

    let disk = node.disks()[0].id.unwrap();
    let client = authority.client(CLUSTER, Role::Gateway, &address);
    for number in 0.. {
        // Until the epoch has arrived the older one is taken.
        let put = ShardPut { epoch: Epoch(3), ..shard(disk, number, bytes_of(1, 100)) };
        match client.put_shard(put).await {
            Ok(()) => assert!(number < 10_000, "the epoch never came"),
            Err(PutShardError::StaleEpoch { current, .. }) => {
                assert_eq!(current, Epoch(4));
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    node.stop().await;

    std::fs::remove_dir_all(&config.disks[0]).unwrap();
    while leader.heard.try_recv().is_ok() {}
    let node = StorageNode::start(config).await.unwrap();
    let heard = next(&mut leader).await;
    assert_eq!(heard.disks[0].disk, disk.as_bytes().to_vec());
    assert_eq!(heard.disks[0].state(), DiskState::Missing);
    assert!(heard.disks[0].reason.contains("gone"), "{}", heard.disks[0].reason);
    assert_eq!(heard.disks[1].state(), DiskState::Up);
    node.stop().await;
    for listening in [leader, follower] {
        listening.stop.cancel();
        listening.server.await.unwrap().unwrap();
    }
}
