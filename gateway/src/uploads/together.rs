//! Commits many small sessions by few commands, in which each succeeds or fails by itself.
//!
//! Invariant: an item's index in the request says which command it is in, and at which place there ([`crate::places`]).

use std::collections::BTreeMap;

use engine::ids::GroupId;
use futures_util::future::join_all;
use metaraft::api::MetaError;
use metaraft::model::command::{DataStep, StepError};
use metaraft::model::outcome::StepOutcome;

use crate::failure::Failure;
use crate::limits::COMMAND_UPLOADS_MAX;
use crate::meta::{entry_of, wrong_reply};
use crate::places::{Answer, Places};
use crate::random;
use crate::uploads::alone;
use crate::uploads::commit::{Committed, Ready, Request};

/// An item, with what is known of its pins once its content is retained.
struct Item {
    ready: Ready,
    clean_up: Option<bool>,
}

type Outcome = (Ready, Result<Committed, Failure>);

fn told(ready: Ready, error: &MetaError) -> Outcome {
    let failure = Failure::from_meta(error, &ready.subject);
    (ready, Err(failure))
}

/// Commits all of them.
pub(super) async fn commit_all(request: Request<'_>, items: Vec<Ready>) -> Vec<Outcome> {
    let mut commands: BTreeMap<usize, Vec<Ready>> = BTreeMap::new();
    for ready in items {
        commands.entry(ready.index / COMMAND_UPLOADS_MAX).or_default().push(ready);
    }
    let committed = commands.into_iter().map(|(number, items)| commit_some(request, number, items));
    join_all(committed).await.into_iter().flatten().collect()
}

async fn commit_some(request: Request<'_>, number: usize, items: Vec<Ready>) -> Vec<Outcome> {
    let (mut outcomes, items) = retain_elsewhere(request, items).await;
    if items.is_empty() {
        return outcomes;
    }
    let place = |ready: &Ready| ready.index % COMMAND_UPLOADS_MAX;
    let mut places = Places::new(COMMAND_UPLOADS_MAX);
    for Item { ready, .. } in &items {
        places.put(place(ready), steps(request, ready));
    }
    let id = request.id.step(u32::try_from(number).unwrap_or(u32::MAX));
    let slot = request.caller.namespace.slot();
    let mut answers = match places.send(&request.core.meta, slot, id, request.guard).await {
        Ok(answers) => answers,
        Err(error) => {
            outcomes.extend(items.into_iter().map(|item| told(item.ready, &error)));
            return outcomes;
        }
    };
    for Item { ready, clean_up } in items {
        outcomes.push(match answers.take(place(&ready)) {
            Answer::Empty => alone::commit(request, ready).await,
            Answer::Taken(Ok(steps)) => finished(ready, clean_up, steps),
            Answer::Taken(Err(error)) => told(ready, &error),
        });
    }
    outcomes
}

/// What an item does in its command.
fn steps(request: Request<'_>, ready: &Ready) -> Vec<DataStep> {
    match &ready.content {
        Some(content) if content.together => {
            vec![content.hold(request), content.retain(request, None), ready.commit.clone()]
        }
        _ => vec![ready.commit.clone()],
    }
}

fn finished(ready: Ready, clean_up: Option<bool>, steps: Vec<StepOutcome>) -> Outcome {
    let retained = steps.iter().find_map(|step| match step {
        StepOutcome::Retained { holder } => Some(*holder),
        _ => None,
    });
    let clean_up = match (&ready.content, retained) {
        (Some(content), Some(holder)) => content.clean_up_after(holder),
        _ => clean_up,
    };
    match entry_of(steps) {
        Ok(entry) => (ready, Ok(Committed { entry, clean_up })),
        Err(error) => told(ready, &error),
    }
}

/// Holds the contents whose slots are other groups', and retains them there; gives those that failed, and the rest.
async fn retain_elsewhere(request: Request<'_>, items: Vec<Ready>) -> (Vec<Outcome>, Vec<Item>) {
    let elsewhere = |ready: &Ready| ready.content.as_ref().is_some_and(|content| !content.together);
    let (apart, here): (Vec<Ready>, Vec<Ready>) = items.into_iter().partition(elsewhere);
    let mut done: Vec<Item> = here.into_iter().map(|ready| Item { ready, clean_up: None }).collect();
    let mut failed = Vec::new();
    let holds = apart.iter().filter_map(|ready| Some(vec![ready.content.as_ref()?.hold(request)])).collect();
    let mut retained: BTreeMap<GroupId, Vec<(Ready, DataStep)>> = BTreeMap::new();
    for (ready, held) in each(request, None, apart, holds).await {
        match (held, &ready.content) {
            (Ok(StepOutcome::Held { retained: true, .. }), _) => {
                done.push(Item { ready, clean_up: Some(false) });
            }
            (Ok(StepOutcome::Held { generation, .. }), Some(content)) => {
                match request.core.meta.group_of(content.session.content.slot()) {
                    Ok(group) => {
                        let step = content.retain(request, Some(generation));
                        retained.entry(group).or_default().push((ready, step));
                    }
                    Err(error) => failed.push(told(ready, &error)),
                }
            }
            (Ok(_), _) => failed.push(told(ready, &wrong_reply("hold"))),
            (Err(failure), _) => failed.push((ready, Err(failure))),
        }
    }
    let groups = retained.into_iter().map(|(group, items)| {
        let (ready, steps): (Vec<Ready>, Vec<DataStep>) = items.into_iter().unzip();
        each(request, Some(group), ready, steps.into_iter().map(|step| vec![step]).collect())
    });
    for (ready, outcome) in join_all(groups).await.into_iter().flatten() {
        match (outcome, &ready.content) {
            (Ok(StepOutcome::Retained { holder }), Some(content)) => {
                let clean_up = content.clean_up_after(holder);
                done.push(Item { ready, clean_up });
            }
            (Ok(_), _) => failed.push(told(ready, &wrong_reply("retain"))),
            (Err(failure), _) => failed.push((ready, Err(failure))),
        }
    }
    (failed, done)
}

/// One idempotent step of each item, in one command of a group (or of the namespace's).
async fn each(
    request: Request<'_>,
    group: Option<GroupId>,
    items: Vec<Ready>,
    steps: Vec<Vec<DataStep>>,
) -> Vec<(Ready, Result<StepOutcome, Failure>)> {
    if items.is_empty() {
        return Vec::new();
    }
    let meta = &request.core.meta;
    let results = match group {
        Some(group) => meta.each_in(group, random::request(), steps).await,
        None => meta.each(request.caller.namespace.slot(), random::request(), steps).await,
    };
    match results {
        Ok(results) => {
            let outcome = |(ready, result): (Ready, Result<Vec<StepOutcome>, StepError>)| {
                let outcome = match result.map(|mut steps| steps.pop()) {
                    Ok(Some(outcome)) => Ok(outcome),
                    Ok(None) => Err(Failure::from_meta(&wrong_reply("step"), &ready.subject)),
                    Err(error) => Err(Failure::from_step(&error, &ready.subject)),
                };
                (ready, outcome)
            };
            items.into_iter().zip(results).map(outcome).collect()
        }
        Err(error) => {
            let refused = |ready: Ready| {
                let failure = Failure::from_meta(&error, &ready.subject);
                (ready, Err(failure))
            };
            items.into_iter().map(refused).collect()
        }
    }
}
