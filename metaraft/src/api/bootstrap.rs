//! Makes an installation: the root group's rows first, then each data group takes its slots.
//!
//! What is there after a crash in between: the map names owners that do not own their slots yet, so commands to
//! those are refused as not owned. Everything here is idempotent: it is simply run again.

use engine::cluster::SlotRange;
use engine::code::Code;
use engine::ids::{ClusterId, GroupId, NodeId, ROOT_GROUP, SLOT_COUNT, SlotId};

use super::error::MetaError;
use super::meta_api::MetaApi;
use super::request::new_request;
use crate::model::command::{Command, DataStep, RootStep, StepError, Steps};
use crate::model::settings::VOLUME_NODES_MIN;

/// The slots, spread evenly over groups `1..=data_groups` in runs.
///
/// # Panics
/// If there are no data groups, or more than slots.
#[must_use]
pub fn spread_slots(data_groups: u16) -> Vec<SlotRange> {
    assert!((1..=SLOT_COUNT).contains(&data_groups), "{data_groups} data groups for {SLOT_COUNT} slots");
    let (each, rest) = (SLOT_COUNT / data_groups, SLOT_COUNT % data_groups);
    let mut first = 0;
    (1..=data_groups)
        .map(|group| {
            let count = each + u16::from(group <= rest);
            let range =
                SlotRange { first: SlotId(first), last: SlotId(first + count - 1), group: GroupId(group) };
            first += count;
            range
        })
        .collect()
}

/// [`init_cluster_spread`] without a floor: volumes are made as soon as there are disks enough.
///
/// # Errors
/// See there.
pub async fn init_cluster(
    api: &MetaApi,
    cluster: ClusterId,
    code: Code,
    data_groups: u16,
    meta_nodes: Vec<(NodeId, String)>,
) -> Result<(), MetaError> {
    init_cluster_spread(api, cluster, code, data_groups, meta_nodes, 1).await
}

/// Makes the installation if it has not been made; the map is at hand afterwards. Each volume will be spread over
/// `volume_nodes` storage nodes at least (but one for each shard is enough). Run again it changes nothing: everything
/// is as it was given the first time.
///
/// # Errors
/// [`StepError::WrongCluster`] if there is an installation of another id; else as [`MetaApi::propose`].
pub async fn init_cluster_spread(
    api: &MetaApi,
    cluster: ClusterId,
    code: Code,
    data_groups: u16,
    meta_nodes: Vec<(NodeId, String)>,
    volume_nodes: usize,
) -> Result<(), MetaError> {
    if data_groups == 0 || data_groups > SLOT_COUNT {
        let why = format!("{data_groups} data groups; there can be 1 to {SLOT_COUNT}");
        return Err(StepError::Invalid { why }.into());
    }
    let init = RootStep::ClusterInit { cluster, code, slots: spread_slots(data_groups), meta_nodes };
    let mut steps = vec![init];
    let spread = volume_nodes.clamp(1, code.total());
    // In the same command, so that no volume is made before the floor is known; an operator's later word stays.
    if spread > 1 && matches!(api.refresh_map().await, Err(MetaError::NoCluster)) {
        steps.push(RootStep::SettingSet { name: VOLUME_NODES_MIN.to_owned(), value: spread.to_string() });
    }
    api.propose(ROOT_GROUP, Command::new(new_request(), Steps::Root(steps))).await?;
    let map = api.refresh_map().await?;
    for SlotRange { first, last, group } in map.slots.iter().copied() {
        let adopt = DataStep::SlotsAdopt { first, last };
        api.propose(group, Command::new(new_request(), Steps::Data(vec![adopt]))).await?;
    }
    Ok(())
}
