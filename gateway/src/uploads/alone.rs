//! Commits one session by commands of its own: one whose list is too long to go with others.

use metaraft::api::MetaError;
use metaraft::model::command::DataStep;
use metaraft::model::outcome::StepOutcome;

use crate::failure::Failure;
use crate::meta::{entry_of, wrong_reply};
use crate::random;
use crate::uploads::commit::{Committed, Ready, Request};

/// Where the steps of such commits begin; those of batches are below.
const FIRST_STEP: u32 = 1_000_000;

/// Commits it.
pub(super) async fn commit(request: Request<'_>, ready: Ready) -> (Ready, Result<Committed, Failure>) {
    let committed = commit_content(request, &ready).await;
    let committed = committed.map_err(|error| Failure::from_meta(&error, &ready.subject));
    (ready, committed)
}

async fn commit_content(request: Request<'_>, ready: &Ready) -> Result<Committed, MetaError> {
    let (meta, slot) = (&request.core.meta, request.caller.namespace.slot());
    let step = FIRST_STEP.saturating_add(u32::try_from(ready.index).unwrap_or(u32::MAX));
    let id = request.id.step(step);
    let guarded =
        |steps: Vec<DataStep>| steps.into_iter().chain(request.guard.cloned()).chain([ready.commit.clone()]).collect();
    let Some(content) = &ready.content else {
        let outcomes = meta.commit(slot, id, guarded(Vec::new())).await?;
        return Ok(Committed { entry: entry_of(outcomes)?, clean_up: None });
    };
    if content.together {
        let steps = vec![content.hold(request), content.retain(request, None)];
        let outcomes = meta.commit(slot, id, guarded(steps)).await?;
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
    let outcomes = meta.commit(slot, id, guarded(Vec::new())).await?;
    Ok(Committed { entry: entry_of(outcomes)?, clean_up })
}
