//! Files that are on the server already, as they are here: nothing of them is sent, and they get no new version. Where
//! only permission bits or time differ, these are set, which makes no version either and charges nothing.
//!
//! Each has a session all the same, until the server has said that it lacks nothing of it: chunks that cannot be read any
//! more are asked for, and then the file is put like any other.

use bytes::Bytes;
use engine::manifest::{ContentHasher, ManifestEntry};
use futures_util::{StreamExt as _, stream};
use proto::v1;

use super::Context;
use super::read::FileStamp;
use super::remote::PlannedFile;
use super::session::{Session, abort, changed_meanwhile};

/// Sessions that are ended at once.
const ABORTS_MAX: usize = 16;

/// The current version of a file on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerFile {
    entry_id: u64,
    version: u64,
    size: u64,
    /// None for what is no content's name.
    content: Option<[u8; 32]>,
    mode: u32,
    mtime_ns: i64,
}

impl ServerFile {
    pub(crate) fn of(entry: &v1::Entry) -> Self {
        Self {
            entry_id: entry.id,
            version: entry.version,
            size: entry.size,
            content: entry.content[..].try_into().ok(),
            mode: entry.mode,
            mtime_ns: entry.mtime_ns,
        }
    }

    /// Whether a file of this size, cut into `entries` as the version on the server is, has its content. Files that
    /// are cut otherwise never seem to.
    fn has_content(&self, size: u64, entries: &[ManifestEntry]) -> bool {
        if self.size != size || size == 0 {
            return self.size == size;
        }
        let mut hasher = ContentHasher::new();
        entries.iter().for_each(|entry| hasher.push(entry));
        self.content.as_ref() == Some(hasher.finish().as_bytes())
    }
}

/// Whether a file is on the server already with the content that it has here.
pub(crate) fn is_same(file: &PlannedFile, stamp: FileStamp, entries: &[ManifestEntry]) -> bool {
    file.on_server.is_some_and(|on_server| on_server.has_content(stamp.size, entries))
}

/// Ends the sessions of such files, of which the server can read all: sets the permission bits and times that differ, if
/// the versions are still current, and reports all.
pub(crate) async fn settle(context: &Context, sessions: Vec<Session>) {
    let aborts = sessions.iter().map(|session| abort(context, &session.upload_id));
    stream::iter(aborts.collect::<Vec<_>>()).buffer_unordered(ABORTS_MAX).collect::<()>().await;
    let of = |session: Session| session.file.on_server.map(|on_server| (session, on_server));
    let (same, differing): (Vec<_>, Vec<_>) =
        sessions.into_iter().filter_map(of).partition(|(session, on_server)| {
            (on_server.mode, on_server.mtime_ns) == (session.stamp.mode, session.stamp.mtime_ns)
        });
    same.iter().for_each(|(session, _)| done(context, session));
    if differing.is_empty() {
        return;
    }
    let actions = differing.iter().map(|(session, on_server)| {
        let attributes = v1::SetAttributesAt {
            entry_id: on_server.entry_id,
            mode: session.stamp.mode,
            mtime_ns: session.stamp.mtime_ns,
            version: on_server.version,
        };
        v1::Action { action: Some(v1::action::Action::SetAttributes(attributes)) }
    });
    // Whatever history of the tree the server has: the version that was looked at is named.
    match context.api.apply(Bytes::new(), actions.collect()).await {
        Ok((results, _answered)) => {
            for ((session, _), result) in differing.iter().zip(results) {
                match result {
                    Ok(_entry) => done(context, session),
                    Err(error) if error.is_fatal() => context.fail_call(session.local(), &error),
                    Err(error) => {
                        tracing::debug!(%error, "attributes not set");
                        context.fail(session.local(), changed_meanwhile(&session.file.file.remote));
                    }
                }
            }
        }
        Err(error) => differing.iter().for_each(|(session, _)| context.fail_call(session.local(), &error)),
    }
}

fn done(context: &Context, session: &Session) {
    let mut report = context.report();
    report.files += 1;
    report.unchanged += 1;
    report.bytes += session.stamp.size;
    report.chunks += session.entries.len() as u64;
    drop(report);
    context.progress.file_done();
}

#[cfg(test)]
mod tests {
    use engine::cutter::Cutter;

    use super::*;
    use crate::upload::read::cut_bytes;

    #[test]
    fn content_is_compared_as_the_server_names_it() {
        let bytes = vec![7; 300_000];
        let entries = cut_bytes(&bytes, Cutter::Cdc64k);
        let mut hasher = ContentHasher::new();
        entries.iter().for_each(|entry| hasher.push(entry));
        let entry = v1::Entry {
            size: 300_000,
            content: hasher.finish().as_bytes().to_vec().into(),
            ..v1::Entry::default()
        };
        let on_server = ServerFile::of(&entry);
        assert!(on_server.has_content(300_000, &entries));
        assert!(!on_server.has_content(300_001, &entries));
        let mut other = bytes.clone();
        other[299_999] = 8;
        assert!(!on_server.has_content(300_000, &cut_bytes(&other, Cutter::Cdc64k)));
        let unnamed = ServerFile::of(&v1::Entry { content: Vec::new().into(), ..entry.clone() });
        assert!(!unnamed.has_content(300_000, &entries));
        let empty = ServerFile::of(&v1::Entry { size: 0, content: Vec::new().into(), ..entry });
        assert!(empty.has_content(0, &[]) && !empty.has_content(1, &cut_bytes(b"x", Cutter::Cdc64k)));
    }
}
