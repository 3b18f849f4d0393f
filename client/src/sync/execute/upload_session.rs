//! What becomes of upload sessions whose files are not committed. One that nobody ends holds its chunks on the server
//! until it expires.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tonic::Code;

use crate::call_error::CallError;
use crate::planner::model::NodeId;
use crate::sync::shared::Shared;

/// Sessions given up at one time.
const ABORTS_AT_ONCE_MAX: usize = 8;

/// What a failed commit leaves of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The same commit may succeed yet, or has: it is gone on with.
    Open,
    /// The server has ended it.
    Ended,
    /// What it was to be committed onto is no longer so.
    Refused,
}

/// Which it is, by the failure.
pub(super) fn fate(error: &CallError) -> Fate {
    match (error.reason(), error.code()) {
        ("upload-ended" | "no-upload", _) => Fate::Ended,
        // It was not the file that changed; or chunks are missing again, and its status says which; or this
        // machine's clock is wrong.
        ("changed" | "incomplete" | "request-out-of-time", _) => Fate::Open,
        (
            _,
            Some(
                Code::Aborted
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::InvalidArgument
                | Code::PermissionDenied,
            ),
        ) => Fate::Refused,
        _ => Fate::Open,
    }
}

/// Forgets a large file's session if there is no going on with it, and gives it up if it has not ended.
pub(super) async fn commit_failed(shared: &Shared, node: NodeId, upload_id: &Bytes, error: &CallError) {
    let fate = fate(error);
    if fate == Fate::Open {
        return;
    }
    drop(shared.state.ask(move |state| state.forget_upload(node)).await);
    if fate == Fate::Refused {
        give_up(shared, vec![upload_id.clone()]).await;
    }
}

/// Gives sessions up. If that fails, they expire by themselves. Cancel safe.
pub(super) async fn give_up(shared: &Shared, upload_ids: Vec<Bytes>) {
    if upload_ids.is_empty() || shared.stop.is_cancelled() {
        return;
    }
    let aborts = upload_ids.into_iter().map(|upload_id| shared.api.abort_upload(upload_id));
    let mut aborted = stream::iter(aborts).buffer_unordered(ABORTS_AT_ONCE_MAX);
    let all = async {
        while let Some(result) = aborted.next().await {
            if let Err(error) = result {
                tracing::debug!(%error, "upload session left to expire");
                if error.is_transient() || error.is_fatal() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = all => {}
        () = shared.stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests;
