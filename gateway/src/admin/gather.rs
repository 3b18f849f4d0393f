//! Asks the cluster for what its status is made of; whoever does not answer in time counts as down.

use std::time::Duration;

use engine::cluster::MetaNodeInfo;
use engine::ids::{GroupId, NodeId};
use futures_util::future::{join, join_all};
use metaraft::model::query::{Query, Reply};
use metaraft::model::row::GroupCounters;
use proto::internal::NodeStatusRequest;
use proto::internal::metadata_client::MetadataClient;
use proto::peer::Role;

use crate::admin::status::Gathered;
use crate::core::Core;
use crate::limits::STATUS_WAIT_MAX;

/// How long a metadata node may take to answer for itself.
const NODE_WAIT_MAX: Duration = Duration::from_secs(1);

pub(crate) async fn gather(core: &Core) -> Gathered {
    let refreshed = tokio::time::timeout(STATUS_WAIT_MAX, core.meta.api().refresh_map()).await;
    let root_answers = matches!(refreshed, Ok(Ok(_)));
    let map = core.meta.map();
    let groups = map.data_groups().into_iter().map(|group| counters(core, group));
    let nodes = map.meta_nodes.iter().map(|node| answers(core, node));
    let (groups, meta_up) = join(join_all(groups), join_all(nodes)).await;
    Gathered {
        groups,
        root_answers,
        meta_up: meta_up.into_iter().flatten().collect(),
        gateway: core.node,
        gateway_address: core.address.clone(),
        hung_disks: core.hung_disks(),
        map,
    }
}

async fn counters(core: &Core, group: GroupId) -> (GroupId, Option<GroupCounters>) {
    let asked = core.meta.api().query(group, Query::Counters);
    match tokio::time::timeout(STATUS_WAIT_MAX, asked).await {
        Ok(Ok(Reply::Counters(counters))) => (group, Some(counters)),
        _ => (group, None),
    }
}

/// The node's id, if it answers.
async fn answers(core: &Core, node: &MetaNodeInfo) -> Option<NodeId> {
    let ask = async {
        let expected = core.identity.expects(Role::Meta, Some(node.node));
        let endpoint = core.identity.endpoint(&node.address, expected).ok()?.tcp_nodelay(true);
        let channel = endpoint.connect().await.ok()?;
        let answer = MetadataClient::new(channel).node_status(NodeStatusRequest {}).await.ok()?;
        (answer.into_inner().node == node.node.0).then_some(node.node)
    };
    tokio::time::timeout(NODE_WAIT_MAX, ask).await.ok().flatten()
}
