//! Asks the cluster for what its status is made of; whoever does not answer in time counts as down.

use std::time::Duration;

use engine::cluster::MetaNodeInfo;
use engine::ids::GroupId;
use futures_util::future::{join, join_all};
use metaraft::model::query::{Query, Reply};
use metaraft::model::row::GroupCounters;
use proto::internal::NodeStatusRequest;
use proto::internal::metadata_client::MetadataClient;
use proto::peer::Role;

use crate::admin::replicas::{MetaView, MetaViews};
use crate::admin::status::Gathered;
use crate::core::Core;
use crate::limits::STATUS_WAIT_MAX;
use crate::random::own_ms;

/// How long a metadata node may take to answer for itself.
const NODE_WAIT_MAX: Duration = Duration::from_secs(1);

/// Replicas that are behind are looked at again: so often, with this pause. An election takes less, and so does a
/// replica that follows.
const LOOKS_MAX: usize = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(400);

pub(crate) async fn gather(core: &Core) -> Gathered {
    let refreshed = tokio::time::timeout(STATUS_WAIT_MAX, core.meta.api().refresh_map()).await;
    let root_answers = matches!(refreshed, Ok(Ok(_)));
    let map = core.meta.map();
    let groups = map.data_groups().into_iter().map(|group| counters(core, group));
    let (groups, meta) = join(join_all(groups), views(core, &map.meta_nodes)).await;
    Gathered {
        groups,
        root_answers,
        meta_up: meta.first.iter().map(|view| view.node).collect(),
        meta,
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

/// How the metadata nodes see themselves; twice if that leaves a question.
async fn views(core: &Core, nodes: &[MetaNodeInfo]) -> MetaViews {
    let look = || async {
        let answers = join_all(nodes.iter().map(|node| view(core, node))).await;
        answers.into_iter().flatten().collect::<Vec<MetaView>>()
    };
    let first = look().await;
    let mut views = MetaViews { last: first.clone(), first };
    for _look in 1..LOOKS_MAX {
        if views.replica_problems().is_empty() {
            break;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
        views.last = look().await;
    }
    views
}

/// The node's view of itself, if it answers.
async fn view(core: &Core, node: &MetaNodeInfo) -> Option<MetaView> {
    let ask = async {
        let expected = core.identity.expects(Role::Meta, Some(node.node));
        let endpoint = core.identity.endpoint(&node.address, expected).ok()?.tcp_nodelay(true);
        let channel = endpoint.connect().await.ok()?;
        let answer = MetadataClient::new(channel).node_status(NodeStatusRequest {}).await.ok()?;
        let status = answer.into_inner();
        let (node, address) = (node.node, node.address.clone());
        (status.node == node.0).then(|| MetaView { node, address, status, own_time_ms: own_ms() })
    };
    tokio::time::timeout(NODE_WAIT_MAX, ask).await.ok().flatten()
}
