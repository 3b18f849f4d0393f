//! What a short message makes a gateway do: not more than its length is worth. Requests that are refused count against
//! their account.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use gateway::config::Limits;
use proto::v1;
use tonic::{Code, Status};

use super::account;
use crate::cluster::{Client, Cluster, PATIENCE, random, request_id};
use crate::{any, begin, noise, put_all, put_missing};

fn id() -> Bytes {
    Bytes::copy_from_slice(&random::<16>())
}

async fn an_upload_is_committed_once_in_a_request(client: &Client) {
    let bytes = noise(900, 20_000);
    let (upload, begun) = begin(client, "/once", &bytes).await;
    put_missing(client, &upload, &bytes, &begun.missing).await;
    let commit = |upload_id: &Bytes, path: &str| v1::CommitUpload {
        upload_id: upload_id.clone(),
        path: path.to_owned(),
        base: any(),
        mode: 0o644,
        ..v1::CommitUpload::default()
    };
    let ask = |uploads: Vec<v1::CommitUpload>| {
        let message = v1::CommitUploadsRequest { request_id: request_id(), uploads, ..Default::default() };
        let (mut files, request) = (client.files(), client.request(message));
        async move { files.commit_uploads(request).await }
    };
    for second in ["/once", "/twice"] {
        let refused = ask(vec![commit(&upload, "/once"), commit(&id(), "/x"), commit(&upload, second)]).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    }
    let answer = ask(vec![commit(&upload, "/once"), commit(&id(), "/x")]).await.unwrap().into_inner();
    let is_entry =
        |result: &v1::EntryResult| matches!(result.result, Some(v1::entry_result::Result::Entry(_)));
    assert_eq!(answer.results.iter().map(is_entry).collect::<Vec<_>>(), [true, false]);
}

async fn a_message_is_for_so_many_sessions(client: &Client) {
    let bytes = noise(901, 20_000);
    let chunk = v1::PutChunk {
        upload_ids: Vec::new(),
        id: Bytes::copy_from_slice(engine::ids::ChunkId::of(&bytes).as_bytes()),
        data: bytes.into(),
    };
    for (count, reason) in [(32, "no-upload"), (33, "invalid")] {
        let chunks =
            (0..count).map(|_| v1::PutChunk { upload_ids: (0..64).map(|_| id()).collect(), ..chunk.clone() });
        let results = put_all(client, vec![v1::PutChunksRequest { chunks: chunks.collect() }]).await.unwrap();
        assert_eq!(results.len(), count);
        for result in results {
            assert_eq!(result.error.unwrap().reason, reason);
        }
    }
}

/// Each wave once looked at all names of all paths.
async fn many_folders_far_down_are_made_soon(client: &Client) {
    let deep = "/x".repeat(255);
    let folder = |number: u32| v1::CreateEntry {
        path: format!("{deep}/{number}"),
        kind: v1::EntryKind::Folder.into(),
        mode: 0o755,
        parents: true,
        ..v1::CreateEntry::default()
    };
    let entries = (0..1024).map(folder).collect();
    let message = v1::CreateEntriesRequest { request_id: request_id(), entries };
    let mut files = client.files();
    let made = tokio::time::timeout(PATIENCE, files.create_entries(client.request(message))).await;
    let results = made.unwrap().unwrap().into_inner().results;
    let mut ids: Vec<u64> = results
        .into_iter()
        .filter_map(|result| match result.result? {
            v1::entry_result::Result::Entry(entry) => Some(entry.id),
            v1::entry_result::Result::Error(_) => None,
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_short_message_is_little_work() {
    let cluster = Cluster::start_with(1, Limits::default()).await;
    let client = cluster.client().await;
    an_upload_is_committed_once_in_a_request(&client).await;
    a_message_is_for_so_many_sessions(&client).await;
    many_folders_far_down_are_made_soon(&client).await;
    cluster.stop().await;
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Move,
    Copy,
    Delete,
    Restore,
    Set,
}

/// Asks for something with a path; one that is none is refused as invalid.
async fn ask(client: &Client, call: Call, path: &str) -> Result<(), Status> {
    let (mut files, path) = (client.files(), path.to_owned());
    let (request_id, to, replace) = (request_id(), "/to".to_owned(), false);
    match call {
        Call::Move => {
            let message = v1::MoveEntryRequest { request_id, from: path, to, replace };
            files.move_entry(client.request(message)).await.map(drop)
        }
        Call::Copy => {
            let message = v1::CopyEntryRequest { request_id, from: path, to, replace };
            files.copy_entry(client.request(message)).await.map(drop)
        }
        Call::Delete => {
            let message = v1::DeleteEntryRequest { request_id, path, recursive: false };
            files.delete_entry(client.request(message)).await.map(drop)
        }
        Call::Restore => {
            let message = v1::RestoreVersionRequest { request_id, path, version: 1 };
            files.restore_version(client.request(message)).await.map(drop)
        }
        Call::Set => {
            let entries = vec![v1::SetAttributes { path, mode: 0o711, mtime_ns: 1 }];
            let message = v1::SetAttributesRequest { request_id, entries };
            files.set_attributes(client.request(message)).await.map(drop)
        }
    }
}

fn is_busy(refused: &Status) -> bool {
    let limit = "account_refusals_per_second";
    refused.code() == Code::ResourceExhausted && refused.message().contains(limit)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_is_refused_counts() {
    let limits = Limits { account_refusals_burst: 1, account_refusals_per_second: 1, ..Limits::default() };
    let cluster = Cluster::start_with(1, limits).await;
    let calls = [Call::Move, Call::Copy, Call::Delete, Call::Restore, Call::Set];
    let one = |call: Call| {
        let cluster = &cluster;
        async move {
            let email = format!("{call:?}@x.org").to_lowercase();
            let client = account(cluster, &email, "correct horse battery").await;
            let begun = Instant::now();
            let answers = join_all((0..40).map(|_| ask(&client, call, "no path"))).await;
            let busy = answers.iter().filter(|answer| answer.as_ref().is_err_and(is_busy)).count();
            // Whoever is full is to be able to delete: that only waits for its answer.
            let not_let_in = if matches!(call, Call::Delete) { 0..1 } else { 20..40 };
            assert!(not_let_in.contains(&busy), "{call:?}: {busy} were not let in: {answers:?}");
            assert!(begun.elapsed() > Duration::from_secs(4), "{call:?}: the answers did not wait");
        }
    };
    join_all(calls.map(one)).await;
    cluster.stop().await;
}
