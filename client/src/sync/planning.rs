//! One step of planning, on the state's thread: looks at what is dirty, records what concerns the state alone, and
//! prepares the rest.

use std::collections::{BTreeSet, HashSet};

use tokio::time::Instant;

use super::guard::{Counts, Guard};
use super::prepare::{Prepared, prepare};
use super::status::{WAITING_LISTED_MAX, Waiting};
use super::task::{CompareTask, Ended, Task};
use crate::path::RemotePath;
use crate::planner::model::{Kind, NodeId, Operation};
use crate::planner::{Blocked, Deletes, Rules, Trees, plan};
use crate::state::database::State;
use crate::state::error::StateError;
use crate::state::trees::{DirtyNodes, Side, SideTree, SyncedTree};

/// Operations of one plan, at least: less is planned only if there is no more.
const OPERATIONS_MIN: usize = 2_000;
/// Of a large dirty set, this share is planned at once, so that it is looked at a bounded number of times.
const DIRTY_SHARE: usize = 8;
/// What deletes were carried out lately, as [`Guard::to_keep`] gives it.
pub(super) const GUARD: &str = "delete_guard";
/// Remembered as 0 once both sides have agreed on everything.
const FIRST_SYNC: &str = "first_sync";
/// Rounds in which only the state changes.
const ROUNDS_MAX: usize = 64;

/// What planning is told.
#[derive(Debug)]
pub(crate) struct PlanInput {
    /// Being worked on, or not to be tried now.
    pub(crate) busy: BTreeSet<NodeId>,
    pub(crate) rules: Rules,
    pub(crate) guard: Guard,
    /// When it is planned.
    pub(crate) now: Instant,
    /// Nothing may be deleted, for a reason of its own: the disk is not known whole.
    pub(crate) withheld: bool,
    /// The time of day.
    pub(crate) now_ms: u64,
    /// Nodes whose paths are wanted, with why they wait.
    pub(crate) named: Vec<(NodeId, String)>,
    /// Local files that were compared with earlier versions already.
    pub(crate) compared: HashSet<NodeId>,
    pub(crate) remote_path: RemotePath,
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
    pub(crate) agreed_count: u64,
    /// There is more to plan at once.
    pub(crate) more: bool,
    /// Deletes that wait for a confirmation, and what tells just these.
    pub(crate) deletes_to_confirm: u64,
    pub(crate) deletes_shown: String,
    /// The server's tree is coming in: nothing was planned.
    pub(crate) torn: bool,
    /// Given back.
    pub(crate) compared: HashSet<NodeId>,
    pub(crate) guard: Guard,
}

/// Plans.
pub(crate) fn plan_step(state: &mut State, mut input: PlanInput) -> Result<PlanStep, StateError> {
    let mut step = PlanStep::default();
    if state.remote_position()?.batch_open {
        step.torn = true;
        (step.compared, step.guard) = (input.compared, input.guard);
        return Ok(step);
    }
    let excluded = excluded_nodes(state)?;
    for round in 0..ROUNDS_MAX {
        let Looked { dirty, prepared, planned } =
            state.reading(|state| look(state, &mut input, &excluded, &mut step))?;
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
        step.dirty = dirty.into_iter().collect();
        state.reading(|state| name_waiting(state, &mut step, blocked, &input.named))?;
        if step.dirty.is_empty() && step.tasks.is_empty() && state.number(FIRST_SYNC)?.unwrap_or(1) != 0 {
            state.set_number(FIRST_SYNC, 0)?;
        }
        if step.dirty.is_empty() && step.tasks.is_empty() {
            state.forget_reset()?;
        }
        break;
    }
    if let Some(kept) = input.guard.take_kept(input.now, input.now_ms) {
        state.set_bytes(GUARD, &kept)?;
    }
    (step.compared, step.guard) = (input.compared, input.guard);
    Ok(step)
}

/// What one look at the trees came to.
struct Looked {
    dirty: Vec<NodeId>,
    prepared: Prepared,
    planned: Planned,
}

/// What is left of a plan once its operations are prepared.
struct Planned {
    truncated: bool,
    blocked: Vec<(NodeId, Blocked)>,
}

/// Plans by the trees as they are, and prepares what came of it. Changes nothing.
fn look(
    state: &State,
    input: &mut PlanInput,
    excluded: &HashSet<NodeId>,
    step: &mut PlanStep,
) -> Result<Looked, StateError> {
    let dirty = visible_dirty(state, excluded)?;
    step.agreed_count = state.synced_count()?.saturating_sub(once_agreed(state, &dirty)?);
    let counts = Counts {
        pending: state.deletes()?.max_of_sides(),
        carried_out: state.deletes_carried_out(),
        known: state.synced_files_count()?,
    };
    step.deletes_to_confirm = input.guard.judge(counts, input.now);
    step.deletes_shown.clear();
    if step.deletes_to_confirm > 0 {
        step.deletes_shown = state.deletes_shown()?;
        if input.guard.take_confirmation(&step.deletes_shown, step.deletes_to_confirm) {
            step.deletes_to_confirm = input.guard.judge(counts, input.now);
        }
    }
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
    let (operations, compares) = split_compares(state, planned.operations, input)?;
    let mut prepared = prepare(state, operations)?;
    prepared.tasks.extend(compares);
    let planned = Planned { truncated: planned.truncated, blocked: planned.blocked };
    Ok(Looked { dirty, prepared, planned })
}

/// Nodes that are looked at to tell how many of all that wait were in sync before.
const COUNTED_MAX: usize = 10_000;

/// How many of these nodes both sides once agreed on: counted, or if they are very many, estimated from some of them.
fn once_agreed(state: &State, nodes: &[NodeId]) -> Result<u64, StateError> {
    let stride = nodes.len().div_ceil(COUNTED_MAX).max(1);
    let (mut looked, mut agreed) = (0_u64, 0_u64);
    for node in nodes.iter().step_by(stride) {
        looked += 1;
        agreed += u64::from(state.synced(*node)?.is_some());
    }
    Ok(agreed * nodes.len() as u64 / looked.max(1))
}

/// Takes out the conflicts that may be none: until both sides have agreed on everything once, a local file that is to
/// make room for another content is compared with the earlier versions of that first.
fn split_compares(
    state: &State,
    operations: Vec<Operation>,
    input: &PlanInput,
) -> Result<(Vec<Operation>, Vec<Task>), StateError> {
    if state.number(FIRST_SYNC)?.unwrap_or(1) == 0 {
        return Ok((operations, Vec::new()));
    }
    let mut left = Vec::with_capacity(operations.len());
    let mut compares = Vec::new();
    for operation in operations {
        match compare_of(state, &operation, input)? {
            Some(task) => compares.push(Task::Compare(task)),
            None => left.push(operation),
        }
    }
    Ok((left, compares))
}

fn compare_of(
    state: &State,
    operation: &Operation,
    input: &PlanInput,
) -> Result<Option<CompareTask>, StateError> {
    let Operation::LocalMove(node, _away) = operation else { return Ok(None) };
    if input.compared.contains(node)
        || state.synced(*node)?.is_some()
        || state.side(Side::Remote, *node)?.is_some()
    {
        return Ok(None);
    }
    let Some(record) = state.local_record(*node)? else { return Ok(None) };
    let Kind::File(content) = record.kind else { return Ok(None) };
    let Some(other) = state.side_at(Side::Remote, record.place.parent, &record.place.name)? else {
        return Ok(None);
    };
    let is_file = state.side(Side::Remote, other)?.is_some_and(|value| matches!(value.kind, Kind::File(_)));
    if !is_file || state.side(Side::Local, other)?.is_some() || state.synced(other)?.is_some() {
        return Ok(None);
    }
    let Some(below) = state.path(Side::Remote, other)? else { return Ok(None) };
    let path = below.split('/').try_fold(input.remote_path.clone(), |path, name| path.join(name));
    Ok(path.ok().map(|path| CompareTask { node: *node, other, path, content, stamp: record.stamp }))
}

fn excluded_nodes(state: &State) -> Result<HashSet<NodeId>, StateError> {
    let mut nodes = HashSet::new();
    for (entry, _path) in state.excluded()? {
        nodes.extend(state.node_of_entry(entry)?);
    }
    Ok(nodes)
}

/// The dirty nodes, folders first, but for those that lie in an excluded folder and are on the server alone: that is how they are to
/// be.
fn visible_dirty(state: &State, excluded: &HashSet<NodeId>) -> Result<Vec<NodeId>, StateError> {
    let DirtyNodes { mut folders, others } = state.dirty_by_kind()?;
    if excluded.is_empty() {
        folders.extend(others);
        return Ok(folders);
    }
    // Excluded folders that are here are to go, though both sides agree on them.
    for node in excluded {
        if state.side(Side::Local, *node)?.is_some()
            && let Err(at) = folders.binary_search(node)
        {
            folders.insert(at, *node);
        }
    }
    let mut hidden_folders: HashSet<NodeId> = HashSet::new();
    let mut shown = Vec::with_capacity(folders.len() + others.len());
    for node in folders.into_iter().chain(others) {
        let only_remote = state.side(Side::Local, node)?.is_none() && state.synced(node)?.is_none();
        if !only_remote || !in_excluded(state, node, excluded, &mut hidden_folders)? {
            shown.push(node);
        }
    }
    Ok(shown)
}

/// Folders within one another that a walk up bears: as many as the server's own.
const DEPTH_MAX: usize = 4_096;

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
        // In a circle, for a moment.
        let is_endless = walked.len() >= DEPTH_MAX;
        if next == crate::planner::model::ROOT || is_endless {
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
    // What agrees by now waits for nothing.
    let named: Vec<_> = named.iter().filter(|(node, _why)| step.dirty.contains(node)).cloned().collect();
    let all = named.into_iter().chain(blocked.filter(|(node, _)| !named_nodes.contains(node)));
    for (node, why) in all {
        step.waiting_count += 1;
        if step.waiting.len() < WAITING_LISTED_MAX {
            step.waiting.push(Waiting { path: state.shown_path(node)?, why });
        }
    }
    Ok(())
}
