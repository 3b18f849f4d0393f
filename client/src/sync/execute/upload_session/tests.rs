//! Uploads whose commits fail, against a gateway that has all their chunks.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::cutter::Cutter;
use engine::ids::ContentId;
use proto::v1;

use super::*;
use crate::fake_gateway::{Calls, FakeGateway, refusal};
use crate::local::rel::Rel;
use crate::planner::model::{Attributes, FileContent};
use crate::sync::execute::{upload_large, upload_small};
use crate::sync::task::{End, UploadTask};
use crate::upload::read::cut_bytes;

const SYNC_ROOT: u64 = 2;

struct Harness {
    folder: tempfile::TempDir,
    shared: Shared,
    calls: Calls,
}

impl Harness {
    /// `commits`: how the commits end, in order; then all succeed.
    async fn new(commits: Vec<tonic::Status>) -> Self {
        let failures = Mutex::new(commits.into_iter());
        let made = AtomicUsize::new(100);
        let gateway = FakeGateway::default()
            .on("Files/BeginUploads", |request: v1::BeginUploadsRequest| {
                let uploads = request.uploads.iter().map(|_one| v1::BegunUpload::default()).collect();
                Ok(v1::BeginUploadsResponse { uploads })
            })
            .on("Files/UploadStatus", |_: v1::UploadStatusRequest| Ok(v1::UploadStatusResponse::default()))
            .on("Files/AbortUpload", |_: v1::AbortUploadRequest| Ok(v1::AbortUploadResponse::default()))
            .on("Files/CommitUploads", move |request: v1::CommitUploadsRequest| {
                let results = request.uploads.into_iter().map(|upload| {
                    let result = match failures.lock().unwrap().next() {
                        Some(failure) => v1::entry_result::Result::Error(item(&failure)),
                        None => {
                            let id = made.fetch_add(1, Ordering::Relaxed) as u64;
                            v1::entry_result::Result::Entry(committed_entry(id, &upload))
                        }
                    };
                    v1::EntryResult { result: Some(result) }
                });
                Ok(v1::CommitUploadsResponse { results: results.collect(), ..Default::default() })
            });
        let (api, calls) = gateway.start().await;
        let folder = tempfile::tempdir().unwrap();
        let shared = Shared::of(api, folder.path(), SYNC_ROOT);
        Self { folder, shared, calls }
    }

    /// A file on the disk, to be sent.
    fn task(&self, node: u64, name: &str) -> UploadTask {
        let bytes = Bytes::copy_from_slice(name.as_bytes());
        std::fs::write(self.folder.path().join(name), &bytes).unwrap();
        let rel = Rel::parse(name).unwrap();
        let stamp = self.shared.root.stat(&rel).unwrap().unwrap().stamp;
        let cutter = Cutter::for_size(stamp.size);
        let content = ContentId::of(&cut_bytes(&bytes, cutter));
        UploadTask {
            node: NodeId(node),
            rel,
            content: FileContent { content, size: stamp.size, cutter },
            attributes: Attributes { mode: 0o644, mtime_ns: stamp.mtime_ns },
            stamp,
            base: None,
            parent: SYNC_ROOT,
            name: name.to_owned(),
        }
    }

    async fn session(&self, node: u64) -> Option<Vec<u8>> {
        let begun = self.shared.state.ask(move |state| state.upload_begun(NodeId(node))).await;
        begun.unwrap().map(|begun| begun.upload_id)
    }
}

fn item(failure: &tonic::Status) -> v1::ItemError {
    let reason = failure.metadata().get(proto::REASON_TRAILER).unwrap().to_str().unwrap();
    v1::ItemError {
        code: u32::try_from(i32::from(failure.code())).unwrap(),
        message: failure.message().to_owned(),
        reason: reason.to_owned(),
    }
}

fn committed_entry(id: u64, upload: &v1::CommitUpload) -> v1::Entry {
    let mut entry = v1::Entry {
        id,
        parent: upload.parent_id,
        name: upload.name.clone(),
        version: 1,
        sequence: 1,
        ..v1::Entry::default()
    };
    entry.set_kind(v1::EntryKind::File);
    entry
}

#[tokio::test]
async fn a_commit_that_fails_for_the_moment_keeps_the_upload() {
    let harness = Harness::new(vec![refusal(Code::Unavailable, ""), refusal(Code::Aborted, "changed")]).await;
    let task = harness.task(7, "large");
    let ended = upload_large::run(&harness.shared, task.clone()).await;
    assert!(matches!(ended.end, End::Failed { .. }), "{ended:?}");
    let session = harness.session(7).await;
    assert!(session.is_some());
    let ended = upload_large::run(&harness.shared, task.clone()).await;
    assert!(matches!(ended.end, End::RemoteChanged), "{ended:?}");
    assert_eq!(harness.session(7).await, session);
    let ended = upload_large::run(&harness.shared, task).await;
    assert!(matches!(ended.end, End::Done), "{ended:?}");
    assert_eq!(harness.session(7).await, None);
    assert_eq!((harness.calls.of("Files/BeginUploads"), harness.calls.of("Files/AbortUpload")), (1, 0));
}

#[tokio::test]
async fn a_conflict_gives_a_large_files_session_up() {
    let harness = Harness::new(vec![refusal(Code::Aborted, "conflict")]).await;
    let ended = upload_large::run(&harness.shared, harness.task(7, "large")).await;
    assert!(matches!(ended.end, End::RemoteChanged), "{ended:?}");
    assert_eq!(harness.session(7).await, None);
    assert_eq!(harness.calls.of("Files/AbortUpload"), 1);
}

#[tokio::test]
async fn a_session_that_has_ended_is_forgotten_and_not_ended_again() {
    let harness = Harness::new(vec![refusal(Code::FailedPrecondition, "upload-ended")]).await;
    upload_large::run(&harness.shared, harness.task(7, "large")).await;
    assert_eq!(harness.session(7).await, None);
    assert_eq!(harness.calls.of("Files/AbortUpload"), 0);
}

#[tokio::test]
async fn a_session_of_other_content_is_given_up_for_a_new_one() {
    let harness = Harness::new(vec![refusal(Code::Unavailable, "")]).await;
    upload_large::run(&harness.shared, harness.task(7, "large")).await;
    let ended = upload_large::run(&harness.shared, harness.task(7, "large as edited since")).await;
    assert!(matches!(ended.end, End::Done), "{ended:?}");
    assert_eq!((harness.calls.of("Files/BeginUploads"), harness.calls.of("Files/AbortUpload")), (2, 1));
}

#[tokio::test]
async fn small_files_that_are_not_committed_give_their_sessions_up() {
    let failures = vec![refusal(Code::Aborted, "conflict"), refusal(Code::ResourceExhausted, "quota")];
    let harness = Harness::new(failures).await;
    let tasks = vec![harness.task(7, "a"), harness.task(8, "b"), harness.task(9, "c")];
    let ended = upload_small::run(&harness.shared, tasks).await;
    assert_eq!(ended.iter().filter(|ended| matches!(ended.end, End::Done)).count(), 1);
    assert_eq!(harness.calls.of("Files/AbortUpload"), 2);
}

#[test]
fn only_a_refusal_of_the_file_itself_ends_a_session() {
    let fate_of = |code, reason: &str| {
        fate(&CallError::Refused { code, reason: reason.to_owned(), message: String::new() })
    };
    assert_eq!(fate_of(Code::Aborted, "conflict"), Fate::Refused);
    assert_eq!(fate_of(Code::NotFound, "not-found"), Fate::Refused);
    assert_eq!(fate_of(Code::NotFound, "no-upload"), Fate::Ended);
    assert_eq!(fate_of(Code::FailedPrecondition, "upload-ended"), Fate::Ended);
    for (code, reason) in [
        (Code::Unavailable, ""),
        (Code::Internal, ""),
        (Code::ResourceExhausted, "quota"),
        (Code::FailedPrecondition, "incomplete"),
        (Code::Aborted, "changed"),
    ] {
        assert_eq!(fate_of(code, reason), Fate::Open, "{reason}");
    }
}
