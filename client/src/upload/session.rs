//! One file's upload session, from its chunk list to its commit.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use engine::cutter::Cutter;
use engine::manifest::ManifestEntry;
use proto::v1;

use super::Context;
use super::chunk_stream::PutFailure;
use super::read::FileStamp;
use super::remote::PlannedFile;
use super::unchanged::is_same;
use crate::call_error::CallError;
use crate::connection::{Backoff, RETRY_TIME_MAX, random_16};
use crate::path::RemotePath;
use crate::wire;

/// How long chunks that the gateway refuses for the moment are handed in again, without any being taken.
const REFUSED_TIME_MAX: Duration = Duration::from_secs(5);

/// A file that is cut and named, and the session it goes up in.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) file: PlannedFile,
    pub(crate) stamp: FileStamp,
    pub(crate) entries: Vec<ManifestEntry>,
    pub(crate) upload_id: Bytes,
    /// Whether the server has this content at its path already.
    pub(crate) same: bool,
}

/// The cutter for a file of this size: by what is on the server already, if anything is.
pub(crate) fn choose_cutter(previous: Option<Cutter>, size: u64) -> Cutter {
    previous.map_or_else(|| Cutter::for_size(size), |cutter| Cutter::for_new_version(cutter, size))
}

impl Session {
    pub(crate) fn new(
        file: PlannedFile,
        stamp: FileStamp,
        entries: Vec<ManifestEntry>,
    ) -> Result<Self, CallError> {
        let same = is_same(&file, stamp, &entries);
        Ok(Self { file, stamp, entries, upload_id: Bytes::copy_from_slice(&random_16()?), same })
    }

    pub(crate) fn local(&self) -> &Path {
        &self.file.file.local
    }

    pub(crate) fn begin(&self) -> v1::BeginUpload {
        v1::BeginUpload {
            upload_id: self.upload_id.clone(),
            path: self.file.file.remote.to_string(),
            size: self.stamp.size,
            cutter: wire::cutter_to_wire(choose_cutter(self.file.previous, self.stamp.size)).into(),
            chunks: Some(wire::chunk_list(&self.entries)),
            ..v1::BeginUpload::default()
        }
    }

    fn commit(&self) -> v1::CommitUpload {
        v1::CommitUpload {
            upload_id: self.upload_id.clone(),
            path: self.file.file.remote.to_string(),
            base: Some(v1::Base { base: Some(self.file.base) }),
            mode: self.stamp.mode,
            mtime_ns: self.stamp.mtime_ns,
            ..v1::CommitUpload::default()
        }
    }
}

/// Commits complete sessions and records what came of each.
pub(crate) async fn commit_all(context: &Context, sessions: Vec<Session>) {
    let commits: Vec<_> = sessions.iter().map(Session::commit).collect();
    let results = match context.api.commit_uploads(Bytes::new(), commits).await {
        Ok((results, _answered)) => results,
        Err(error) => {
            for session in &sessions {
                let reason = format!("whether it was committed is not known: {error}");
                context.fail(session.local(), reason);
            }
            context.stop_if_fatal(&error);
            return;
        }
    };
    for (session, result) in sessions.iter().zip(results) {
        match result {
            Ok(_entry) => {
                let mut report = context.report();
                report.files += 1;
                report.bytes += session.stamp.size;
                report.chunks += session.entries.len() as u64;
                drop(report);
                context.progress.file_done();
            }
            Err(error) => {
                context.fail(session.local(), commit_failure(session, &error));
                abort(context, &session.upload_id).await;
            }
        }
    }
}

fn commit_failure(session: &Session, error: &CallError) -> String {
    match error.reason() {
        "conflict" => changed_meanwhile(&session.file.file.remote),
        _ => error.to_string(),
    }
}

/// Says that somebody else was faster.
pub(crate) fn changed_meanwhile(remote: &RemotePath) -> String {
    format!(
        "{remote} was changed on the server while this was put, and is as it was changed; put again to replace it"
    )
}

/// Gives up a session whose file failed. If that fails too, the session expires by itself.
pub(crate) async fn abort(context: &Context, upload_id: &Bytes) {
    if context.stop.is_cancelled() {
        return;
    }
    if let Err(error) = context.api.abort_upload(upload_id.clone()).await {
        tracing::debug!(%error, "session left to expire");
    }
}

/// How long failures are borne: anew after each success, longer when the connection broke than when the gateway said
/// that it cannot.
pub(crate) struct Patience {
    broken: Backoff,
    refused: Backoff,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { broken: Backoff::new(RETRY_TIME_MAX), refused: Backoff::new(REFUSED_TIME_MAX) }
    }

    pub(crate) fn reset(&mut self) {
        self.broken.reset();
        self.refused.reset();
    }

    /// Waits before the next try; `false` when there shall be none. Cancel safe.
    pub(crate) async fn wait(&mut self, failure: &PutFailure) -> bool {
        if !failure.error().is_transient() {
            return false;
        }
        match failure {
            PutFailure::Broken(_) => self.broken.wait().await,
            PutFailure::Refused(_) => self.refused.wait().await,
        }
    }
}
