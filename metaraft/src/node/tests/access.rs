//! Who may call what, and where heartbeats end up.

use std::sync::Arc;

use engine::ids::{ClusterId, GroupId, NodeId, ROOT_GROUP};
use proto::internal::metadata_client::MetadataClient;
use proto::internal::raft_client::RaftClient;
use proto::internal::{
    HeartbeatRequest, HeartbeatResponse, NodeStatusRequest, QueryRequest, RaftRequest, VolumeEpoch,
};
use proto::peer::{ExpectedServer, Role, TlsIdentity};
use tonic::{Code, Status};

use super::cluster::{Cluster, run};
use crate::node::HeartbeatSink;
use crate::raft::peers::connect_lazily;

struct Sink;

#[tonic::async_trait]
impl HeartbeatSink for Sink {
    async fn heartbeat(&self, report: HeartbeatRequest) -> Result<HeartbeatResponse, Status> {
        let volumes = vec![VolumeEpoch { volume: report.node, epoch: 1 }];
        Ok(HeartbeatResponse { volumes, ..HeartbeatResponse::default() })
    }
}

fn expecting(
    address: &str,
    identity: &TlsIdentity,
    cluster: ClusterId,
    role: Role,
    node: Option<NodeId>,
) -> tonic::transport::Channel {
    let expected = ExpectedServer { cluster, role, node };
    connect_lazily(address, identity, expected, std::time::Duration::from_secs(5)).unwrap()
}

fn channel(cluster: &Cluster, node: u64, identity: &TlsIdentity) -> tonic::transport::Channel {
    let address = cluster.addresses[&node].to_string();
    expecting(&address, identity, cluster.authority.cluster, Role::Meta, Some(NodeId(node)))
}

fn query(group: GroupId) -> QueryRequest {
    QueryRequest { group: u32::from(group.0), query: "count".into() }
}

#[test]
fn each_call_takes_only_its_roles_and_only_this_cluster() {
    run(async {
        let mut cluster = Cluster::start(0, 1000).await;
        let leader = cluster.leader(ROOT_GROUP).await;
        let gateway = channel(&cluster, leader, &cluster.identity(Role::Gateway));
        let storage = channel(&cluster, leader, &cluster.identity(Role::Storage));
        MetadataClient::new(gateway.clone()).query(query(ROOT_GROUP)).await.unwrap();
        let refused = MetadataClient::new(storage).query(query(ROOT_GROUP)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let vote = RaftRequest { group: 0, payload: "vote".into() };
        let refused = RaftClient::new(gateway.clone()).vote(vote.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let meta = channel(&cluster, leader, &cluster.identity(Role::Meta));
        let refused = RaftClient::new(meta).vote(vote).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "nonsense from a peer is refused: {refused}");
        let unknown = MetadataClient::new(gateway).query(query(GroupId(9))).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);

        let other = ClusterId::from_bytes([8; 16]);
        let files = cluster.authority.issue_for(other, cluster.directory.path(), Role::Gateway, 100);
        let stranger = channel(&cluster, leader, &TlsIdentity::load(&files).unwrap());
        let refused = MetadataClient::new(stranger).query(query(ROOT_GROUP)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        cluster.stop().await;
    });
}

#[test]
fn nothing_is_sent_to_a_server_that_is_not_who_is_expected() {
    run(async {
        let mut cluster = Cluster::start(0, 1000).await;
        let leader = cluster.leader(ROOT_GROUP).await;
        let (address, own) = (cluster.addresses[&leader].to_string(), cluster.authority.cluster);
        let other = ClusterId::from_bytes([8; 16]);
        let gateway = cluster.identity(Role::Gateway);
        let wrong = [
            (own, Role::Storage, None),
            (own, Role::Gateway, Some(NodeId(leader))),
            (own, Role::Meta, Some(NodeId(leader % 3 + 1))),
            (other, Role::Meta, Some(NodeId(leader))),
        ];
        for (of, role, node) in wrong {
            let channel = expecting(&address, &gateway, of, role, node);
            let refused = MetadataClient::new(channel).query(query(ROOT_GROUP)).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{of} {role:?} {node:?}: {refused}");
        }
        let right = expecting(&address, &gateway, own, Role::Meta, None);
        MetadataClient::new(right).query(query(ROOT_GROUP)).await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn heartbeats_reach_the_sink_of_the_root_leader_only() {
    run(async {
        let mut cluster = Cluster::start(0, 1000).await;
        let leader = cluster.leader(ROOT_GROUP).await;
        let storage = cluster.identity(Role::Storage);
        let report = HeartbeatRequest {
            node: 100,
            cluster: storage.peer().cluster.as_bytes().to_vec().into(),
            ..HeartbeatRequest::default()
        };
        let mut at_leader = MetadataClient::new(channel(&cluster, leader, &storage));
        let early = at_leader.heartbeat(report.clone()).await.unwrap_err();
        assert_eq!(early.code(), Code::Unavailable);
        for node in cluster.nodes.values() {
            node.set_heartbeat_sink(Arc::new(Sink));
        }
        let taken = at_leader.heartbeat(report.clone()).await.unwrap().into_inner();
        assert_eq!(taken.volumes, [VolumeEpoch { volume: 100, epoch: 1 }]);
        let lie = HeartbeatRequest { node: 101, ..report.clone() };
        assert_eq!(at_leader.heartbeat(lie).await.unwrap_err().code(), Code::PermissionDenied);

        let follower = (1..=3).find(|node| *node != leader).unwrap();
        let mut at_follower = MetadataClient::new(channel(&cluster, follower, &storage));
        let sent_on = at_follower.heartbeat(report).await.unwrap().into_inner().not_leader.unwrap();
        assert_eq!(sent_on.leader, leader);
        assert_eq!(sent_on.leader_address, cluster.addresses[&leader].to_string());
        let status = at_follower.node_status(NodeStatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.node, status.groups.len(), status.groups[0].leader), (follower, 1, leader));
        cluster.stop().await;
    });
}
