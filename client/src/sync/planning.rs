//! One step of planning, on the state's thread: looks at what is dirty, records what concerns the state alone, and
//! prepares the rest.

use std::collections::{BTreeSet, HashSet};

use super::config::DeleteGuard;
use super::prepare::prepare;
use super::status::{WAITING_LISTED_MAX, Waiting};
use super::task::{Ended, Task};
use crate::local::guard::{Verdict, judge};
use crate::planner::model::NodeId;
use crate::planner::{Deletes, Rules, Trees, plan};
use crate::state::database::State;
use crate::state::error::StateError;
use crate::state::trees::{Side, SideTree, SyncedTree};

/// Operations of one plan, at least: less is planned only if there is no more.
const OPERATIONS_MIN: usize = 2_000;
/// Of a large dirty set, this share is planned at once, so that it is looked at a bounded number of times.
const DIRTY_SHARE: usize = 8;
/// Rounds in which only the state changes.
const ROUNDS_MAX: usize = 64;

/// What planning is told.
#[derive(Debug)]
pub(crate) struct PlanInput {
    /// Being worked on, or not to be tried now.
    pub(crate) busy: BTreeSet<NodeId>,
    pub(crate) rules: Rules,
    pub(crate) guard: DeleteGuard,
    /// So many deletes were confirmed.
    pub(crate) confirmed: u64,
    /// Nothing may be deleted, for a reason of its own: the disk is not known whole.
    pub(crate) withheld: bool,
    /// Nodes whose paths are wanted, with why they wait.
    pub(crate) named: Vec<(NodeId, String)>,
}

/// What planning came to.
#[derive(Debug, Default)]
pub(crate) struct PlanStep {
    pub(crate) tasks: Vec<Task>,
    pub(crate) failed: Vec<Ended>,
    /// What waits, and why: the first of it, and how many.
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) waiting_count: u64,
    pub(crate) dirty: HashSet<NodeId>,
    pub(crate) synced_count: u64,
    /// There is more to plan at once.
    pub(crate) more: bool,
    /// Deletes that wait for a confirmation.
    pub(crate) deletes_to_confirm: u64,
    /// The server's tree is coming in: nothing was planned.
    pub(crate) torn: bool,
    /// Deletes are under way or planned: a confirmation still holds.
    pub(crate) deletes: u64,
}

/// Plans.
pub(crate) fn plan_step(state: &mut State, mut input: PlanInput) -> Result<PlanStep, StateError> {
    let mut step = PlanStep::default();
    if state.remote_position()?.batch_open {
        step.torn = true;
        return Ok(step);
    }
    let excluded = excluded_nodes(state)?;
    for round in 0..ROUNDS_MAX {
        let dirty = visible_dirty(state, &excluded)?;
        step.synced_count = state.synced_count()?;
        step.deletes = state.deletes()?.max_of_sides();
        step.deletes_to_confirm = match judge(step.deletes, step.synced_count, input.confirmed, &input.guard)
        {
            Verdict::Allowed => 0,
            Verdict::Confirm { deletes } => deletes,
        };
        let withheld = input.withheld || step.deletes_to_confirm > 0;
        input.rules.deletes = if withheld { Deletes::Withheld } else { Deletes::Allowed };
        input.rules.operations_max = OPERATIONS_MIN.max(dirty.len() / DIRTY_SHARE);
        let planned = {
            let (remote, local) = (SideTree(state, Side::Remote), SideTree(state, Side::Local));
            let synced = SyncedTree(state);
            let is_excluded = |node: NodeId| excluded.contains(&node);
            let trees = Trees { remote: &remote, local: &local, synced: &synced, excluded: &is_excluded };
            plan(&trees, &dirty, &input.busy, &input.rules)
        };
        // What was planned on a failed answer is not believed.
        state.check()?;
        let prepared = prepare(state, planned.operations)?;
        if !prepared.outcomes.is_empty() {
            state.record(&prepared.outcomes)?;
        }
        let only_state =
            prepared.tasks.is_empty() && prepared.failed.is_empty() && !prepared.outcomes.is_empty();
        if only_state && round + 1 < ROUNDS_MAX {
            continue;
        }
        step.more = !prepared.outcomes.is_empty() || planned.truncated;
        step.tasks = prepared.tasks;
        step.failed = prepared.failed;
        let blocked = planned.blocked.into_iter().map(|(node, why)| (node, why.to_string()));
        name_waiting(state, &mut step, blocked, &input.named)?;
        step.dirty = dirty.into_iter().collect();
        break;
    }
    Ok(step)
}

fn excluded_nodes(state: &State) -> Result<HashSet<NodeId>, StateError> {
    let mut nodes = HashSet::new();
    for (entry, _path) in state.excluded()? {
        nodes.extend(state.node_of_entry(entry)?);
    }
    Ok(nodes)
}

/// The dirty nodes, but for those that lie in an excluded folder and are on the server alone: that is how they are to
/// be.
fn visible_dirty(state: &State, excluded: &HashSet<NodeId>) -> Result<Vec<NodeId>, StateError> {
    let mut dirty = state.dirty()?;
    if excluded.is_empty() {
        return Ok(dirty);
    }
    // Excluded folders that are here are to go, though both sides agree on them.
    for node in excluded {
        if state.side(Side::Local, *node)?.is_some()
            && let Err(at) = dirty.binary_search(node)
        {
            dirty.insert(at, *node);
        }
    }
    let mut hidden_folders: HashSet<NodeId> = HashSet::new();
    let mut shown = Vec::with_capacity(dirty.len());
    for node in dirty {
        let only_remote = state.side(Side::Local, node)?.is_none() && state.synced(node)?.is_none();
        if !only_remote || !in_excluded(state, node, excluded, &mut hidden_folders)? {
            shown.push(node);
        }
    }
    Ok(shown)
}

/// Whether a node is, or lies in, an excluded folder of the server.
fn in_excluded(
    state: &State,
    node: NodeId,
    excluded: &HashSet<NodeId>,
    hidden: &mut HashSet<NodeId>,
) -> Result<bool, StateError> {
    let mut walked = Vec::new();
    let mut next = node;
    loop {
        if excluded.contains(&next) || hidden.contains(&next) {
            hidden.extend(walked);
            return Ok(true);
        }
        if next == crate::planner::model::ROOT {
            return Ok(false);
        }
        walked.push(next);
        match state.side(Side::Remote, next)? {
            Some(value) => next = value.place.parent,
            None => return Ok(false),
        }
    }
}

fn name_waiting(
    state: &State,
    step: &mut PlanStep,
    blocked: impl Iterator<Item = (NodeId, String)>,
    named: &[(NodeId, String)],
) -> Result<(), StateError> {
    let named_nodes: HashSet<NodeId> = named.iter().map(|(node, _why)| *node).collect();
    let all = named.iter().cloned().chain(blocked.filter(|(node, _)| !named_nodes.contains(node)));
    for (node, why) in all {
        step.waiting_count += 1;
        if step.waiting.len() < WAITING_LISTED_MAX {
            step.waiting.push(Waiting { path: state.shown_path(node)?, why });
        }
    }
    Ok(())
}
