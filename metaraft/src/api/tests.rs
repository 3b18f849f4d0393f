use std::sync::Arc;
use std::time::Duration;

use engine::code::Code;
use engine::ids::{AccountId, ClusterId, NamespaceId, NodeId, RequestId, SLOT_COUNT, SlotId};

use super::bootstrap::{init_cluster, spread_slots};
use super::{MetaApi, MetaError, by_group, new_request};
use crate::local::Local;
use crate::model::command::{Command, DataStep, StepError, Steps};
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);

async fn init(api: &MetaApi, cluster: ClusterId, data_groups: u16) -> Result<(), MetaError> {
    let meta_nodes = vec![(NodeId(1), "127.0.0.1:1".to_owned())];
    init_cluster(api, cluster, Code::new(4, 2).unwrap(), data_groups, meta_nodes).await
}

fn create(namespace: NamespaceId) -> Command {
    let owner = AccountId::from_bytes([2; 16]);
    let steps = Steps::Data(vec![DataStep::NamespaceCreate { namespace, owner, quota_bytes: 0 }]);
    Command::new(new_request(), steps)
}

#[test]
fn slots_are_spread_evenly_and_each_once() {
    for data_groups in [1, 2, 3, 7, 1000] {
        let ranges = spread_slots(data_groups);
        let counts: Vec<u16> = ranges.iter().map(|range| range.last.0 - range.first.0 + 1).collect();
        assert_eq!(counts.iter().sum::<u16>(), SLOT_COUNT);
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
        assert!(ranges.windows(2).all(|two| two[0].last.0 + 1 == two[1].first.0));
    }
}

#[tokio::test]
async fn a_cluster_is_made_once_and_its_map_is_at_hand() {
    let local = Local::new(Arc::default());
    let api = MetaApi::start(local.clone());
    assert!(matches!(api.group_of(SlotId(0)), Err(MetaError::NoCluster)));
    assert!(matches!(api.refresh_map().await, Err(MetaError::NoCluster)));
    assert!(matches!(api.wait_ready(Duration::from_millis(10)).await, Err(MetaError::Unavailable { .. })));
    init(&api, CLUSTER, 3).await.unwrap();
    api.wait_ready(Duration::from_secs(5)).await.unwrap();
    assert_eq!(api.map().data_groups().len(), 3);
    let revision = api.map().revision;
    init(&api, CLUSTER, 1).await.unwrap();
    assert_eq!((api.map().data_groups().len(), api.map().revision), (3, revision));
    let other = init(&api, ClusterId::from_bytes([9; 16]), 3).await;
    assert!(matches!(other, Err(MetaError::Step(StepError::WrongCluster))));
    assert!(matches!(init(&api, CLUSTER, 0).await, Err(MetaError::Step(StepError::Invalid { .. }))));
    let groups = by_group(&api.map(), (0..SLOT_COUNT).map(SlotId), |slot| *slot).unwrap();
    assert_eq!(groups.values().map(Vec::len).sum::<usize>(), usize::from(SLOT_COUNT));
    api.stop().await;
}

#[tokio::test]
async fn commands_and_queries_follow_a_slot_to_its_owner() {
    let api = MetaApi::start(Local::new(Arc::default()));
    init(&api, CLUSTER, 3).await.unwrap();
    let namespace = NamespaceId::from_bytes([5; 16]);
    let owner = api.group_of(namespace.slot()).unwrap();
    let wrong = *api.map().data_groups().iter().find(|group| **group != owner).unwrap();
    let command = create(namespace);
    assert_eq!(api.propose(wrong, command.clone()).await.unwrap(), [StepOutcome::Done]);
    assert_eq!(api.propose(owner, command).await.unwrap(), [StepOutcome::Done], "the first answer again");
    let reply = api.query(wrong, Query::Namespace { namespace }).await.unwrap();
    assert!(matches!(reply, Reply::Namespace(Some(_))));
    api.stop().await;
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let api = MetaApi::start(Local::new(Arc::default()));
    init(&api, CLUSTER, 1).await.unwrap();
    let namespace = NamespaceId::from_bytes([5; 16]);
    let group = api.group_of(namespace.slot()).unwrap();
    let trash = Query::Trash { namespace, after: 0, count_max: 1 };
    let missing = api.query(group, trash).await;
    assert!(matches!(missing, Err(MetaError::Step(StepError::NotFound { .. }))));
    let old = Command { request: RequestId::new(1, [0; 16]), ..create(namespace) };
    assert!(matches!(api.propose(group, old).await, Err(MetaError::RequestOutOfTime { .. })));
    let misplaced = api.query(group, Query::ClusterMap).await;
    assert!(matches!(misplaced, Err(MetaError::Protocol { .. })));
    api.stop().await;
}
