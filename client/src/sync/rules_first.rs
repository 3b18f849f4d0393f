//! Rules that are on the server hold before anything new of their folder is sent: also of what was planned before they
//! came. (What is not planned yet waits by the planner's word.)

use std::collections::HashMap;

use super::queues::Portion;
use super::shared::Shared;
use super::task::{Again, Ended};
use crate::local::ignore_rules::IGNORE_FILE;
use crate::planner::Blocked;
use crate::planner::model::{NodeId, ROOT};
use crate::planner::transition::same_kind;
use crate::state::database::State;
use crate::state::error::StateError;
use crate::state::trees::Side;

/// Folders within one another that a walk up bears.
const DEPTH_MAX: usize = 4_096;

/// Takes what is not to be sent now out of a portion. `held`: nothing new is.
pub(super) async fn keep_back(
    shared: &Shared,
    portion: Portion,
    held: bool,
) -> (Option<Portion>, Vec<Ended>) {
    let new: Vec<NodeId> = match &portion {
        Portion::Remote(tasks) => tasks.iter().filter(|task| task.is_new()).map(|task| task.node).collect(),
        Portion::UploadSmall(tasks) => {
            tasks.iter().filter(|task| task.base.is_none()).map(|task| task.node).collect()
        }
        Portion::UploadLarge(task) if task.base.is_none() => vec![task.node],
        _ => Vec::new(),
    };
    if new.is_empty() {
        return (Some(portion), Vec::new());
    }
    let waiting = if held { Ok(new) } else { shared.state.ask(move |state| waiting(state, new)).await };
    // A state that fails says so to the next who asks.
    let Ok(waiting) = waiting else { return (Some(portion), Vec::new()) };
    let is_waiting = |node: &NodeId| waiting.contains(node);
    let kept = waiting.iter().map(|node| kept_back(*node)).collect();
    let portion = match portion {
        Portion::UploadLarge(task) if is_waiting(&task.node) => None,
        Portion::Remote(tasks) => {
            let tasks: Vec<_> = tasks.into_iter().filter(|task| !is_waiting(&task.node)).collect();
            (!tasks.is_empty()).then_some(Portion::Remote(tasks))
        }
        Portion::UploadSmall(tasks) => {
            let tasks: Vec<_> = tasks.into_iter().filter(|task| !is_waiting(&task.node)).collect();
            (!tasks.is_empty()).then_some(Portion::UploadSmall(tasks))
        }
        other => Some(other),
    };
    (portion, kept)
}

/// It is planned again after a moment, without a line in the log.
fn kept_back(node: NodeId) -> Ended {
    Ended::failed(node, Blocked::Rules.to_string(), Again::Online)
}

/// Those of new nodes for whose folders, or folders above them, the server has rules that are not here yet.
fn waiting(state: &State, nodes: Vec<NodeId>) -> Result<Vec<NodeId>, StateError> {
    state.reading(|state| {
        let mut folders = HashMap::new();
        let mut waiting = Vec::new();
        for node in nodes {
            let Some(value) = state.side(Side::Local, node)? else { continue };
            if waits_in(state, value.place.parent, &mut folders)? {
                waiting.push(node);
            }
        }
        Ok(waiting)
    })
}

/// Whether rules are to come to a folder, or to one above it. `known`: those that were asked about.
fn waits_in(state: &State, folder: NodeId, known: &mut HashMap<NodeId, bool>) -> Result<bool, StateError> {
    let mut walked = Vec::new();
    let mut at = folder;
    let waits = loop {
        if let Some(waits) = known.get(&at) {
            break *waits;
        }
        walked.push(at);
        if has_rules_to_come(state, at)? {
            break true;
        }
        if at == ROOT || walked.len() >= DEPTH_MAX {
            break false;
        }
        let Some(value) = state.side(Side::Local, at)? else { break false };
        at = value.place.parent;
    };
    known.extend(walked.into_iter().map(|folder| (folder, waits)));
    Ok(waits)
}

fn has_rules_to_come(state: &State, folder: NodeId) -> Result<bool, StateError> {
    let Some(rules) = state.side_at(Side::Remote, folder, IGNORE_FILE)? else { return Ok(false) };
    let Some(there) = state.side(Side::Remote, rules)? else { return Ok(false) };
    let synced = state.synced(rules)?;
    Ok(match (state.side(Side::Local, rules)?, synced) {
        // Deleted here, and not changed there.
        (None, Some(synced)) => !same_kind(&there.kind, &synced.kind),
        (None, None) => true,
        (Some(here), synced) => {
            let differs = !same_kind(&there.kind, &here.kind) || here.place != there.place;
            let is_news = synced
                .is_none_or(|synced| !same_kind(&there.kind, &synced.kind) || there.place != synced.place);
            differs && is_news
        }
    })
}
