//! Sessions that have ended without a commit: those that were given up are forgotten some time later, and those whose
//! time is over, or that nobody goes on with, are given up when their account needs the room.
//!
//! What is there after a crash between the steps, and what goes on with it (each step is idempotent):
//! 1. `UploadExpire`, or the abort before: the session counts no bytes any more, and never commits. Its row, its list and
//!    its pins are there, and it is among the open ones.
//! 2. The release of what it held, then its pins are gone.
//! 3. `UploadForget`: row and list are gone. Before that, whoever tidies up its account finds it and begins with 1.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::ids::{NamespaceId, UploadId};
use metaraft::api::MetaError;
use metaraft::model::command::{DataStep, StepError};
use metaraft::model::outcome::StepOutcome;
use metaraft::model::row::{UploadRow, UploadState};
use tokio::sync::mpsc;

use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{FORGETTING_MAX, IDLE_AFTER_MS, TIDY_UPLOADS_MAX};
use crate::meta::wrong_reply;
use crate::random;
use crate::release;
use crate::sessions::Session;

/// How long after a session was given up it is forgotten: longer than the metadata keep it at least, whose log may run a
/// sixteenth slower.
const FORGET_AFTER: Duration = Duration::from_secs(150);

/// A session that is to be forgotten, and when.
pub(crate) type Forgotten = (Instant, NamespaceId, UploadId);

/// The queue of sessions that are to be forgotten.
pub(crate) fn queue() -> (mpsc::Sender<Forgotten>, mpsc::Receiver<Forgotten>) {
    mpsc::channel(FORGETTING_MAX)
}

fn failed(error: &MetaError) -> Failure {
    Failure::from_meta(error, "upload")
}

/// Has a session forgotten that has just been given up. If the queue is full it stays among the open ones until its
/// account needs the room.
pub(crate) fn later(core: &Core, namespace: NamespaceId, upload: UploadId) {
    if let Err(full) = core.forgetting.try_send((Instant::now() + FORGET_AFTER, namespace, upload)) {
        tracing::debug!(%upload, error = %full, "a session that was given up is not forgotten yet");
    }
}

/// Forgets what comes over the queue, each at its time, until the gateway stops.
pub(crate) async fn run(core: Arc<Core>, mut queue: mpsc::Receiver<Forgotten>) {
    loop {
        let next = tokio::select! {
            () = core.stopping.cancelled() => return,
            next = queue.recv() => next,
        };
        let Some((at, namespace, upload)) = next else { return };
        tokio::select! {
            () = core.stopping.cancelled() => return,
            () = tokio::time::sleep_until(at.into()) => {}
        }
        if let Err(error) = forget_one(&core, namespace, upload).await {
            tracing::debug!(%upload, error = %error.message, "a session that was given up is not forgotten yet");
        }
    }
}

async fn forget_one(core: &Core, namespace: NamespaceId, upload: UploadId) -> Result<(), Failure> {
    let rows = core.meta.uploads(namespace, vec![upload]).await.map_err(|error| failed(&error))?;
    match rows.into_iter().next().flatten() {
        Some(row) if row.state == UploadState::Aborted => end(core, namespace, &row, None).await.map(drop),
        _ => Ok(()),
    }
}

/// Gives up sessions of a namespace whose time is over or that are idle, and forgets those that were given up long enough ago; tells
/// whether that made any room.
pub(crate) async fn tidy(core: &Core, namespace: NamespaceId) -> Result<bool, Failure> {
    let rows = core.meta.uploads_open(namespace, TIDY_UPLOADS_MAX).await.map_err(|error| failed(&error))?;
    let now_ms = random::log_ms();
    let life_ms = core.meta.session_life_ms();
    let mut freed = false;
    for row in &rows {
        let gone_on_with_ms = row.expires_ms.saturating_sub(life_ms);
        let idle =
            row.state != UploadState::Aborted && gone_on_with_ms.saturating_add(IDLE_AFTER_MS) < now_ms;
        // Whether their time is over is for the leader's clock to say; this one only saves asking.
        if idle || row.expires_ms < now_ms {
            freed |= end(core, namespace, row, idle.then_some(row.expires_ms)).await?;
        }
    }
    Ok(freed)
}

/// Takes one session as far as it may go; tells whether that made room.
async fn end(
    core: &Core,
    namespace: NamespaceId,
    row: &UploadRow,
    idle: Option<u64>,
) -> Result<bool, Failure> {
    let entries = core.meta.upload_list(namespace, row).await.map_err(|error| failed(&error))?;
    let session = Session::new(row.upload, row.holder, row.content, row.expires_ms, entries);
    let expire = DataStep::UploadExpire { namespace, upload: row.upload, idle };
    let release = match core.meta.step(namespace.slot(), random::request(), expire).await {
        Ok(StepOutcome::Aborted { holder: Some(_holder), release }) => release,
        Ok(StepOutcome::Aborted { holder: None, .. }) => return Ok(false),
        Err(MetaError::Step(StepError::Changed { .. })) => return Ok(false),
        Ok(_) => return Err(failed(&wrong_reply("expire"))),
        Err(error) => return Err(failed(&error)),
    };
    core.sessions.remove(namespace, row.upload);
    if let Some(release) = release {
        release::execute(&core.meta, &core.source, namespace, &[release]).await?;
    }
    release::unpin_session(&core.meta, &session, false).await?;
    if row.state != UploadState::Aborted {
        // Given up only now: somebody may still be at work on it.
        later(core, namespace, row.upload);
        return Ok(true);
    }
    let forget = DataStep::UploadForget { namespace, upload: row.upload };
    match core.meta.step(namespace.slot(), random::request(), forget).await {
        Ok(_done) => Ok(true),
        Err(MetaError::Step(StepError::Changed { .. })) => Ok(false),
        Err(error) => Err(failed(&error)),
    }
}
