//! Actions on the server that move no content, many in one call.

use proto::v1;

use crate::state::reached::Reached;
use crate::state::record::Outcome;
use crate::sync::shared::Shared;
use crate::sync::state_thread::AskError;
use crate::sync::status::Done;
use crate::sync::task::{Again, End, Ended, RemoteTask};

/// Actions in one call.
pub(crate) const ACTIONS_MAX: usize = 1_000;

/// Carries the actions out and records what came of them.
pub(crate) async fn run(shared: &Shared, tasks: Vec<RemoteTask>) -> Vec<Ended> {
    let actions: Vec<v1::Action> = tasks.iter().map(|task| task.action.clone()).collect();
    let all_end = |end: &End| tasks.iter().map(|task| Ended::quietly(task.node, end.clone())).collect();
    let asked = match shared.known().await {
        Ok(known) => known,
        Err(end) => return all_end(&end),
    };
    let (results, told) = match shared.api.apply(asked.proof.clone().into(), actions).await {
        Ok(answer) => answer,
        Err(error) => return tasks.iter().map(|task| Ended::call(task.node, &error)).collect(),
    };
    let mut outcomes = Vec::with_capacity(tasks.len());
    let mut ended = Vec::with_capacity(tasks.len());
    for (task, result) in tasks.into_iter().zip(results) {
        match result {
            Ok(entry) => {
                let (outcome, what) = match task.part {
                    Some(part) => (Outcome::Remote { node: task.node, entry, part }, Done::RemoteChanged),
                    None => {
                        (Outcome::RemoteGone { node: task.node, entry: Some(entry) }, Done::RemoteDeleted)
                    }
                };
                outcomes.push(outcome);
                ended.push(Ended::done(task.node, what, &task.path, task.detail));
            }
            Err(error) => ended.push(Ended::call(task.node, &error)),
        }
    }
    record_answered(shared, (asked, told), outcomes, ended).await
}

/// Records outcomes; if that fails, everything that was done counts as failed. What proves to be nowhere is looked at again.
pub(crate) async fn record(shared: &Shared, outcomes: Vec<Outcome>, ended: Vec<Ended>) -> Vec<Ended> {
    if outcomes.is_empty() {
        return ended;
    }
    match shared.state.ask(move |state| state.record(&outcomes)).await {
        Ok(nowhere) if nowhere.is_empty() => ended,
        Ok(nowhere) => {
            let looked_at = |ended: Ended| {
                let is_nowhere = nowhere.contains(&ended.node);
                if is_nowhere { Ended::quietly(ended.node, End::LocalChanged) } else { ended }
            };
            ended.into_iter().map(looked_at).collect()
        }
        Err(error) => all_unrecorded(ended, &error),
    }
}

/// As [`record`], of what an answer of the server's came to: with where that has led (what was known when it was asked for,
/// and what it told). One that may be of another history than what is known by now counts as lost: the journal tells what
/// came of it.
pub(super) async fn record_answered(
    shared: &Shared,
    (asked, told): (Reached, Reached),
    outcomes: Vec<Outcome>,
    ended: Vec<Ended>,
) -> Vec<Ended> {
    match shared.state.ask(move |state| state.record_answered(&asked, &told, &outcomes)).await {
        Ok(true) => ended,
        Ok(false) => ended.into_iter().map(|ended| Ended::quietly(ended.node, End::RemoteChanged)).collect(),
        Err(error) => all_unrecorded(ended, &error),
    }
}

fn all_unrecorded(ended: Vec<Ended>, error: &AskError) -> Vec<Ended> {
    let reason = format!("done, but it cannot be recorded: {error}");
    ended.into_iter().map(|ended| Ended::failed(ended.node, reason.as_str(), Again::Soon)).collect()
}
