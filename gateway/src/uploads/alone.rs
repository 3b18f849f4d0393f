//! Commits one session by commands of its own: one whose list is too long to go with others.

use metaraft::api::MetaError;
use metaraft::model::command::DataStep;
use metaraft::model::outcome::StepOutcome;

use crate::failure::Failure;
use crate::meta::{entry_of, wrong_reply};
use crate::random;
use crate::sync::history::Guard;
use crate::uploads::commit::{Committed, Ready, Request};

/// Where the steps of such commits begin; those of batches are below.
const FIRST_STEP: u32 = 1_000_000;

/// Commits it.
pub(super) async fn commit(request: Request<'_>, ready: Ready) -> (Ready, Result<Committed, Failure>) {
    let committed = commit_content(request, &ready).await;
    let committed = committed.map_err(|error| Failure::from_meta(&error, &ready.subject));
    (ready, committed)
}

/// Commits the file after steps of the same command.
async fn commit_after(
    request: Request<'_>,
    ready: &Ready,
    mut steps: Vec<DataStep>,
) -> Result<Vec<StepOutcome>, MetaError> {
    let step = FIRST_STEP.saturating_add(u32::try_from(ready.index).unwrap_or(u32::MAX));
    steps.push(ready.commit.clone());
    steps.extend(request.guard.map(Guard::step));
    let slot = request.caller.namespace.slot();
    let mut outcomes = request.core.meta.commit(slot, request.id.step(step), steps).await?;
    request.guard.inspect(|guard| guard.take(&mut outcomes));
    Ok(outcomes)
}

async fn commit_content(request: Request<'_>, ready: &Ready) -> Result<Committed, MetaError> {
    let (meta, slot) = (&request.core.meta, request.caller.namespace.slot());
    let Some(content) = &ready.content else {
        let outcomes = commit_after(request, ready, Vec::new()).await?;
        return Ok(Committed { entry: entry_of(outcomes)?, clean_up: None });
    };
    if content.together {
        let steps = vec![content.hold(request), content.retain(request, None)];
        let outcomes = commit_after(request, ready, steps).await?;
        let clean_up = match outcomes.get(1) {
            Some(StepOutcome::Retained { holder }) => content.clean_up_after(*holder),
            // Another request with this id ended the session.
            _ => None,
        };
        return Ok(Committed { entry: entry_of(outcomes)?, clean_up });
    }
    let held = meta.step(slot, random::request(), content.hold(request)).await?;
    let StepOutcome::Held { generation, retained } = held else { return Err(wrong_reply("hold")) };
    let clean_up = if retained {
        Some(false)
    } else {
        let retain = content.retain(request, Some(generation));
        match meta.step(content.session.content.slot(), random::request(), retain).await? {
            StepOutcome::Retained { holder } => content.clean_up_after(holder),
            _ => return Err(wrong_reply("retain")),
        }
    };
    let outcomes = commit_after(request, ready, Vec::new()).await?;
    Ok(Committed { entry: entry_of(outcomes)?, clean_up })
}
