//! How far a session is, and giving it up.

use std::sync::Arc;

use metaraft::api::MetaError;
use metaraft::model::command::DataStep;
use metaraft::model::outcome::StepOutcome;
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::{UploadRow, UploadState};
use proto::v1;

use crate::auth::Caller;
use crate::convert;
use crate::core::Core;
use crate::failure::Failure;
use crate::meta::wrong_reply;
use crate::release;
use crate::sessions::{Extent, session_gone};
use crate::uploads::forget;

fn failed(error: &MetaError) -> Failure {
    Failure::from_meta(error, "upload")
}

async fn row_of(core: &Core, caller: &Caller, upload: &[u8]) -> Result<Option<UploadRow>, Failure> {
    let upload = convert::upload_id(upload)?;
    let rows = core.meta.uploads(caller.namespace, vec![upload]).await.map_err(|error| failed(&error))?;
    Ok(rows.into_iter().next().flatten())
}

/// What is still missing, or what the session has become.
pub(crate) async fn status(
    core: &Core,
    caller: &Caller,
    upload: &[u8],
) -> Result<v1::UploadStatusResponse, Failure> {
    let row = row_of(core, caller, upload).await?.ok_or_else(session_gone)?;
    let mut response = v1::UploadStatusResponse::default();
    if let UploadState::Committed { entry, version } = row.state {
        response.expires_ms = row.expires_ms;
        let path = core.meta.path(caller.namespace, entry).await.map_err(|error| failed(&error))?;
        let mut committed = v1::Entry { id: entry.0, version: version.0, ..v1::Entry::default() };
        committed.set_kind(v1::EntryKind::File);
        committed.size = row.size;
        if let Some(path) = path {
            committed.name = path.name().to_owned();
            committed.path = path.text();
        }
        response.committed = Some(committed);
    } else {
        let session = core.sessions.go_on_with(&core.meta, caller.namespace, &row).await?;
        session.refresh_durable(&core.meta, Extent::Whole).await.map_err(|error| failed(&error))?;
        response.expires_ms = session.expires_ms();
        response.missing = session.missing();
    }
    Ok(response)
}

/// Gives a session up: first in its own row, so that no commit can follow, then what it referred to.
pub(crate) async fn abort(
    core: &Arc<Core>,
    caller: &Caller,
    request: RequestKey,
    upload: &[u8],
) -> Result<(), Failure> {
    let id = convert::upload_id(upload)?;
    let namespace = caller.namespace;
    // Read first; a committed session has no list any more, and nothing to be removed.
    let row = row_of(core, caller, upload).await?;
    let session = match &row {
        Some(row) if !matches!(row.state, UploadState::Committed { .. }) => {
            Some(core.sessions.load(&core.meta, namespace, row).await.map_err(|error| failed(&error))?)
        }
        _ => None,
    };
    let step = DataStep::UploadAbort { namespace, upload: id };
    let outcome =
        core.meta.step(namespace.slot(), request.step(0), step).await.map_err(|error| failed(&error))?;
    core.sessions.remove(namespace, id);
    let StepOutcome::Aborted { holder, release } = outcome else {
        return Err(failed(&wrong_reply("abort")));
    };
    if let Some(release) = release {
        release::execute(&core.meta, &core.source, namespace, &[release]).await?;
    }
    if let (Some(_holder), Some(session)) = (holder, session) {
        core.clean_up(session, false).await;
        forget::later(core, namespace, id);
    }
    Ok(())
}
