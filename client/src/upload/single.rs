//! Puts one small file by one call, if there is nothing yet where it goes.
//!
//! Whatever else there is to be said of it, that something is there already or why it is refused, is found out the long
//! way: a refused call has changed nothing.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use engine::cutter::Cutter;
use engine::ids::ContentId;
use proto::v1;

use super::UploadSource;
use super::read::{FileStamp, OpenFile, cut_bytes};
use crate::call_error::CallError;
use crate::connection::ApiClient;
use crate::progress::Progress;
use crate::report::{Failure, UploadReport};
use crate::wire;

/// Bytes of a file that is put by one call.
pub(crate) const SINGLE_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Reads it, if it is a regular file and small; blocks.
fn read(path: &Path) -> Option<(FileStamp, Bytes)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > SINGLE_FILE_BYTES_MAX {
        return None;
    }
    let mut open = OpenFile::open(path).ok()?;
    let bytes = open.read_whole().ok()?;
    // Some say less than they give.
    (bytes.len() as u64 <= SINGLE_FILE_BYTES_MAX).then_some((open.stamp, bytes))
}

/// Puts it; `None` if it is to go the long way.
pub(super) async fn put(
    api: &ApiClient,
    source: &UploadSource,
    progress: &Arc<dyn Progress>,
) -> Option<UploadReport> {
    if api.lacks_put_file() || source.remote.is_root() {
        return None;
    }
    let local = source.local.clone();
    let (stamp, data) = tokio::task::spawn_blocking(move || read(&local)).await.ok()??;
    let cutter = Cutter::for_size(stamp.size);
    let entries = cut_bytes(&data, cutter);
    let message = v1::PutFileRequest {
        path: source.remote.to_string(),
        base: Some(v1::Base { base: Some(v1::base::Base::Absent(true)) }),
        mode: stamp.mode,
        mtime_ns: stamp.mtime_ns,
        cutter: wire::cutter_to_wire(cutter).into(),
        data,
        ..v1::PutFileRequest::default()
    };
    let mut report = UploadReport::default();
    match api.put_file(message, ContentId::of(&entries)).await {
        Ok(_put) => {
            progress.planned(1, stamp.size);
            progress.planned_all();
            let chunks = entries.len() as u64;
            (report.files, report.bytes, report.chunks) = (1, stamp.size, chunks);
            (report.bytes_sent, report.chunks_sent) = (stamp.size, chunks);
            progress.advanced(stamp.size);
            progress.file_done();
        }
        Err(error) if error.is_fatal() => {
            let reason = match error {
                CallError::Unreachable { .. } => format!("whether it was put is not known: {error}"),
                _ => error.to_string(),
            };
            report.failed.push(Failure { path: source.local.display().to_string(), reason });
        }
        Err(error) => {
            tracing::debug!(%error, "a small file goes the long way");
            return None;
        }
    }
    Some(report)
}
