//! What one account may have the cluster keep and gather, in short; at the size at which it once worked, and beside an
//! innocent account, these attacks are in `tests/tests/attacks`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::ids::ChunkId;
use gateway::config::Limits;
use proto::v1;
use tonic::Status;

use super::sign_in;
use crate::cluster::{Client, Cluster, random, request_id};
use crate::get;

const MIB: u64 = 1 << 20;

/// Makes an account with a quota, and signs a device of it in.
async fn account(cluster: &Cluster, email: &str, quota_bytes: u64) -> Client {
    let admin = cluster.client().await;
    let create = v1::CreateAccountRequest {
        request_id: request_id(),
        email: email.to_owned(),
        name: email.to_owned(),
        password: "correct horse battery".to_owned(),
        quota_bytes,
        admin: false,
    };
    admin.admin().create_account(admin.request(create)).await.unwrap();
    let client = cluster.client().await;
    let request = sign_in(email, "correct horse battery");
    let token = client.accounts().sign_in(request).await.unwrap().into_inner().token;
    client.with_token(token)
}

/// Begins a session of `count` chunks of 64 KiB that nobody has; gives its id, or the reason of the refusal; of the
/// whole request's, what it says.
async fn begin(client: &Client, count: u32) -> Result<Bytes, String> {
    const CHUNK_BYTES: u32 = 64 << 10;
    let upload_id = Bytes::copy_from_slice(&random::<16>());
    let seed = random::<16>();
    let id = |number: u32| ChunkId::of(&[&seed[..], &number.to_be_bytes()].concat());
    let chunks = v1::ChunkList {
        ids: (0..count).flat_map(|number| *id(number).as_bytes()).collect::<Vec<u8>>().into(),
        sizes: vec![CHUNK_BYTES; count as usize],
    };
    let upload = v1::BeginUpload {
        upload_id: upload_id.clone(),
        path: "/never".to_owned(),
        size: u64::from(count) * u64::from(CHUNK_BYTES),
        cutter: v1::Cutter::Cdc64k.into(),
        chunks: Some(chunks),
        ..v1::BeginUpload::default()
    };
    let message = v1::BeginUploadsRequest { request_id: request_id(), uploads: vec![upload] };
    let answer = client.files().begin_uploads(client.request(message)).await;
    match answer.map_err(|status| status.message().to_owned())?.into_inner().uploads.remove(0).error {
        None => Ok(upload_id),
        Some(error) => Err(error.reason),
    }
}

async fn abort(client: &Client, upload_id: Bytes) {
    let message = v1::AbortUploadRequest { request_id: request_id(), upload_id };
    client.files().abort_upload(client.request(message)).await.unwrap();
}

/// Makes folders or, with a target, symlinks; gives how many were made.
async fn make(client: &Client, paths: &[String], target: &[u8]) -> usize {
    let kind = if target.is_empty() { v1::EntryKind::Folder } else { v1::EntryKind::Symlink };
    let entry = |path: &String| v1::CreateEntry {
        path: path.clone(),
        kind: kind.into(),
        symlink_target: Bytes::copy_from_slice(target),
        mode: 0o755,
        ..v1::CreateEntry::default()
    };
    let entries = paths.iter().map(entry).collect();
    let message = v1::CreateEntriesRequest { request_id: request_id(), entries };
    let answer = client.files().create_entries(client.request(message)).await.unwrap().into_inner();
    let made = |result: &&v1::EntryResult| matches!(result.result, Some(v1::entry_result::Result::Entry(_)));
    answer.results.iter().filter(made).count()
}

async fn who(client: &Client) -> v1::WhoAmIResponse {
    client.accounts().who_am_i(client.request(v1::WhoAmIRequest {})).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_not_committed_and_what_has_no_bytes_counts_against_the_quota() {
    let cluster = Cluster::start_with(1, Limits::default()).await;
    let client = account(&cluster, "ada@x.org", 10 * MIB).await;
    let open = begin(&client, 128).await.unwrap();
    assert_eq!(begin(&client, 128).await, Err("quota".to_owned()), "8 MiB are under way");
    assert!(who(&client).await.open_uploads_bytes >= 8 * MIB);
    abort(&client, open).await;
    assert_eq!(who(&client).await.open_uploads_bytes, 0);
    let open = begin(&client, 128).await.unwrap();
    abort(&client, open).await;

    let paths: Vec<String> = (0..500).map(|number| format!("/link-{number}")).collect();
    let mut made = 0;
    for round in 0..8 {
        let paths: Vec<String> = paths.iter().map(|path| format!("{path}-{round}")).collect();
        made += make(&client, &paths, &[b'x'; 4000]).await;
    }
    let most = usize::try_from(10 * MIB / 4000).unwrap();
    assert!((most - most / 10..=most).contains(&made), "{made} symlinks of 4,000 bytes in 10 MiB");
    assert!(who(&client).await.used_bytes > 9 * MIB);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn uploads_under_way_are_bounded_without_a_quota() {
    let cluster = Cluster::start_with(1, Limits::default()).await;
    let admin = cluster.client().await;
    let (name, value) = ("account-uploads-max".to_owned(), "3".to_owned());
    let message = v1::SetSettingRequest { request_id: request_id(), name, value };
    admin.admin().set_setting(admin.request(message)).await.unwrap();
    let client = account(&cluster, "ada@x.org", 0).await;
    // Settings reach the gateway with its next look at them.
    let deadline = Instant::now() + crate::cluster::PATIENCE;
    let mut open = Vec::new();
    loop {
        match begin(&client, 1).await {
            Ok(upload) => open.push(upload),
            Err(reason) => break assert_eq!(reason, "limit"),
        }
        assert!(Instant::now() < deadline, "{} uploads are under way", open.len());
    }
    assert!(open.len() >= 3, "{} uploads are under way", open.len());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_long_list_is_refused_by_itself_and_a_deep_trash_is_listed_in_pages() {
    let cluster = Cluster::start_with(1, Limits::default()).await;
    let client = account(&cluster, "ada@x.org", 0).await;
    assert_eq!(begin(&client, 130_000).await, Err("invalid".to_owned()));

    let mut path = String::new();
    for _ in 0..100 {
        path = format!("{path}/{}", "d".repeat(255));
        assert_eq!(make(&client, std::slice::from_ref(&path), b"").await, 1);
    }
    let paths: Vec<String> = (0..200).map(|number| format!("{path}/{number}")).collect();
    for some in paths.chunks(50) {
        assert_eq!(make(&client, some, b"").await, 50);
    }
    for path in paths {
        let message = v1::DeleteEntryRequest { request_id: request_id(), path, recursive: true };
        client.files().delete_entry(client.request(message)).await.unwrap();
    }
    let (mut after, mut pages, mut seen) = (0, 0, 0);
    loop {
        let message = v1::ListTrashRequest { after, count_max: 10_000 };
        let page = client.files().list_trash(client.request(message)).await.unwrap().into_inner();
        let bytes: usize = page.items.iter().map(|item| item.path.len()).sum();
        assert!(bytes < 2 << 20, "a page of {bytes} bytes");
        pages += 1;
        seen += page.items.len();
        if !page.more {
            break;
        }
        after = page.items.last().unwrap().trash_id;
    }
    assert_eq!(seen, 200);
    assert!(pages > 1, "5 MiB of paths in one page");
    cluster.stop().await;
}

async fn make_as(client: &Client, request_id: &Bytes, path: &str) -> Result<(), Status> {
    let folder = v1::CreateEntry {
        path: path.to_owned(),
        kind: v1::EntryKind::Folder.into(),
        mode: 0o755,
        ..v1::CreateEntry::default()
    };
    let message = v1::CreateEntriesRequest { request_id: request_id.clone(), entries: vec![folder] };
    let answer = client.files().create_entries(client.request(message)).await?.into_inner();
    match answer.results.into_iter().next().and_then(|result| result.result) {
        Some(v1::entry_result::Result::Entry(_)) => Ok(()),
        other => Err(Status::aborted(format!("{other:?}"))),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_request_id_is_its_senders_and_its_words() {
    let cluster = Cluster::start_with(1, Limits::default()).await;
    let one = account(&cluster, "ada@x.org", 0).await;
    let other = account(&cluster, "bob@x.org", 0).await;
    let id = request_id();
    make_as(&one, &id, "/a").await.unwrap();
    make_as(&one, &id, "/a").await.unwrap();
    make_as(&other, &id, "/b").await.unwrap();
    let reused = make_as(&one, &id, "/c").await.unwrap_err();
    assert!(reused.message().contains("request-id-reused"), "{reused}");
    let there = |client: &Client, path: &str| {
        let (mut files, request) =
            (client.files(), client.request(v1::GetEntryRequest { path: path.into() }));
        async move { files.get_entry(request).await.is_ok() }
    };
    assert!(there(&one, "/a").await && there(&other, "/b").await, "acknowledged and not there");
    assert!(!there(&one, "/c").await && !there(&other, "/a").await);
    assert!(get(&one, "/a").await.is_err(), "a folder");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_begins_long_lists_waits_and_nobody_else() {
    let limits = Limits {
        account_list_entries_burst: 1000,
        account_list_entries_per_second: 1000,
        ..Limits::default()
    };
    let cluster = Cluster::start_with(1, limits).await;
    let hasty = account(&cluster, "hasty@x.org", 0).await;
    let other = account(&cluster, "other@x.org", 0).await;
    let begun = Instant::now();
    let mut first = std::pin::pin!(begin(&hasty, 8192 + 6000));
    tokio::select! {
        biased;
        first = &mut first => panic!("answered before the other: {first:?}"),
        second = begin(&other, 8192 + 1000) => drop(second.unwrap()),
    }
    first.await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(4900), "{:?}", begun.elapsed());
    begin(&hasty, 8192 + 30_000).await.unwrap();
    let refused = begin(&hasty, 1).await.unwrap_err();
    assert!(refused.contains("account_list_entries_per_second"), "{refused}");
    begin(&other, 1).await.unwrap();
    cluster.stop().await;
}
