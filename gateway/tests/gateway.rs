//! The gateway against real metadata and storage nodes, in one process.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

mod batches;
mod cluster;
mod door;
mod nursery;
mod oracle;
mod release;
mod repeats;
mod sync;

use bytes::Bytes;
use cluster::{Client, Cluster, random, request_id};
use engine::cutter::{Cutter, cut_reader};
use engine::ids::ChunkId;
use proto::v1;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tonic::{Code, Status};

/// A file as a client cuts it.
struct Cut {
    ids: Vec<ChunkId>,
    chunks: Vec<Bytes>,
}

fn cut(bytes: &[u8]) -> Cut {
    let chunks: Vec<Bytes> = cut_reader(bytes, Cutter::Cdc64k).map(|chunk| chunk.unwrap().1).collect();
    Cut { ids: chunks.iter().map(|chunk| ChunkId::of(chunk)).collect(), chunks }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

fn base(base: v1::base::Base) -> Option<v1::Base> {
    Some(v1::Base { base: Some(base) })
}

fn any() -> Option<v1::Base> {
    base(v1::base::Base::Any(true))
}

async fn begin(client: &Client, path: &str, bytes: &[u8]) -> (Bytes, v1::BegunUpload) {
    let upload_id = Bytes::copy_from_slice(&random::<16>());
    let begun = begin_as(client, &upload_id, path, bytes, "").await;
    (upload_id, begun)
}

async fn begin_as(client: &Client, upload: &Bytes, path: &str, bytes: &[u8], hint: &str) -> v1::BegunUpload {
    begin_cut(client, upload, path, &cut(bytes), hint).await
}

async fn begin_cut(client: &Client, upload: &Bytes, path: &str, cut: &Cut, hint: &str) -> v1::BegunUpload {
    let chunks = v1::ChunkList {
        ids: cut.ids.iter().flat_map(|id| id.as_bytes().iter().copied()).collect::<Vec<u8>>().into(),
        sizes: cut.chunks.iter().map(|chunk| u32::try_from(chunk.len()).unwrap()).collect(),
    };
    let upload = v1::BeginUpload {
        upload_id: upload.clone(),
        path: path.to_owned(),
        size: cut.chunks.iter().map(|chunk| chunk.len() as u64).sum(),
        cutter: v1::Cutter::Cdc64k.into(),
        chunks: Some(chunks),
        hint_path: hint.to_owned(),
        ..v1::BeginUpload::default()
    };
    let request = v1::BeginUploadsRequest { request_id: request_id(), uploads: vec![upload] };
    let response = client.files().begin_uploads(client.request(request)).await.unwrap();
    response.into_inner().uploads.remove(0)
}

async fn put_all(
    client: &Client,
    messages: Vec<v1::PutChunksRequest>,
) -> Result<Vec<v1::PutChunkResult>, Status> {
    let stream = futures_util::stream::iter(messages);
    let mut answers = client.files().put_chunks(client.request(stream)).await?.into_inner();
    let mut results = Vec::new();
    while let Some(message) = answers.message().await? {
        results.extend(message.results);
    }
    Ok(results)
}

async fn put_missing(
    client: &Client,
    upload: &Bytes,
    bytes: &[u8],
    missing: &[u32],
) -> Vec<v1::PutChunkResult> {
    put_cut(client, upload, &cut(bytes), missing, 4).await
}

async fn put_cut(
    client: &Client,
    upload: &Bytes,
    cut: &Cut,
    missing: &[u32],
    together: usize,
) -> Vec<v1::PutChunkResult> {
    let chunk = |index: &u32| {
        let index = usize::try_from(*index).unwrap();
        v1::PutChunk {
            upload_ids: vec![upload.clone()],
            id: Bytes::copy_from_slice(cut.ids[index].as_bytes()),
            data: cut.chunks[index].clone(),
        }
    };
    let messages = missing
        .chunks(together)
        .map(|indexes| v1::PutChunksRequest { chunks: indexes.iter().map(chunk).collect() });
    put_all(client, messages.collect()).await.unwrap()
}

async fn commit(
    client: &Client,
    request: &Bytes,
    upload: &Bytes,
    path: &str,
    base: Option<v1::Base>,
) -> Result<v1::Entry, v1::ItemError> {
    let upload = v1::CommitUpload {
        upload_id: upload.clone(),
        path: path.to_owned(),
        base,
        mode: 0o644,
        mtime_ns: 5,
        ..v1::CommitUpload::default()
    };
    let request =
        v1::CommitUploadsRequest { request_id: request.clone(), uploads: vec![upload], ..Default::default() };
    let response = client.files().commit_uploads(client.request(request)).await.unwrap();
    match response.into_inner().results.remove(0).result.unwrap() {
        v1::entry_result::Result::Entry(entry) => Ok(entry),
        v1::entry_result::Result::Error(error) => Err(error),
    }
}

async fn put(client: &Client, path: &str, bytes: &[u8]) -> Result<v1::Entry, v1::ItemError> {
    let (upload, begun) = begin(client, path, bytes).await;
    if let Some(error) = begun.error {
        return Err(error);
    }
    for result in put_missing(client, &upload, bytes, &begun.missing).await {
        if let Some(error) = result.error {
            return Err(error);
        }
    }
    commit(client, &request_id(), &upload, path, any()).await
}

async fn get_range(client: &Client, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, Status> {
    let request = v1::DownloadRequest {
        path: path.to_owned(),
        version: 0,
        offset,
        length,
        ..v1::DownloadRequest::default()
    };
    let mut stream = client.files().download(client.request(request)).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await? {
        bytes.extend_from_slice(&message.data);
    }
    Ok(bytes)
}

async fn get(client: &Client, path: &str) -> Result<Vec<u8>, Status> {
    get_range(client, path, 0, 0).await
}

async fn mkdir(client: &Client, path: &str, parents: bool) -> Result<v1::Entry, v1::ItemError> {
    let mut entry = v1::CreateEntry { path: path.to_owned(), mode: 0o755, parents, ..Default::default() };
    entry.set_kind(v1::EntryKind::Folder);
    let request = v1::CreateEntriesRequest { request_id: request_id(), entries: vec![entry] };
    let response = client.files().create_entries(client.request(request)).await.unwrap();
    match response.into_inner().results.remove(0).result.unwrap() {
        v1::entry_result::Result::Entry(entry) => Ok(entry),
        v1::entry_result::Result::Error(error) => Err(error),
    }
}

async fn entry(client: &Client, path: &str) -> Result<v1::Entry, Status> {
    let request = v1::GetEntryRequest { path: path.to_owned() };
    Ok(client.files().get_entry(client.request(request)).await?.into_inner().entry.unwrap())
}

async fn second_account(cluster: &Cluster, client: &Client) -> Client {
    let create = v1::CreateAccountRequest {
        request_id: request_id(),
        email: "Bob@X.org".to_owned(),
        name: "Bob".to_owned(),
        password: "hunter2hunter2".to_owned(),
        quota_bytes: 64 * 1024 * 1024,
        admin: false,
    };
    client.admin().create_account(client.request(create)).await.unwrap();
    let sign_in = |password: &str| v1::SignInRequest {
        email: "bob@x.org".to_owned(),
        password: password.to_owned(),
        device_name: "laptop".to_owned(),
    };
    let refused = client.accounts().sign_in(sign_in("wrong")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let token = client.accounts().sign_in(sign_in("hunter2hunter2")).await.unwrap().into_inner().token;
    cluster.client().await.with_token(token)
}

async fn files_come_back(client: &Client) {
    for (number, size) in [0, 1, 4095, 16_384, 32_768, 65_536, 300_000, 9_000_000].into_iter().enumerate() {
        let bytes = noise(number as u64, size);
        let path = format!("/file-{size}");
        let made = put(client, &path, &bytes).await.unwrap();
        assert_eq!(made.size, size as u64);
        assert_eq!(get(client, &path).await.unwrap(), bytes, "{path}");
        let (offset, length) = (size / 3, size / 3 + 1);
        let part = get_range(client, &path, offset as u64, length as u64).await.unwrap();
        assert_eq!(part, bytes[offset..(offset + length).min(size)], "{path}");
    }
    let paths: Vec<String> =
        ["/file-1", "/nowhere", "/file-300000", "/file-0", "/file-9000000"].map(String::from).into();
    let request = v1::DownloadManyRequest { paths, entries: Vec::new() };
    let mut stream = client.files().download_many(client.request(request)).await.unwrap().into_inner();
    let mut sizes = [0; 5];
    let mut errors = [false; 5];
    while let Some(message) = stream.message().await.unwrap() {
        let index = usize::try_from(message.index).unwrap();
        sizes[index] += message.data.len();
        errors[index] |= message.error.is_some();
    }
    assert_eq!(sizes, [1, 0, 300_000, 0, 0]);
    assert_eq!(errors, [false, true, false, false, true]);
}

async fn only_what_may_be_read_is_skipped(client: &Client, other: &Client) {
    let bytes = noise(100, 2_000_000);
    put(client, "/mine", &bytes).await.unwrap();
    let (_upload, again) = begin(client, "/copy", &bytes).await;
    assert_eq!(again.missing, Vec::<u32>::new(), "the tree holds the whole content");
    let mut edited = bytes.clone();
    edited[1_000_000] ^= 1;
    let (_upload, edit) = begin(client, "/mine", &edited).await;
    assert!((1..=3).contains(&edit.missing.len()), "only what changed is sent: {:?}", edit.missing);
    let (_upload, elsewhere) = begin(client, "/elsewhere", &edited).await;
    assert_eq!(elsewhere.missing.len(), cut(&edited).ids.len(), "no version at that path");
    let upload = Bytes::copy_from_slice(&random::<16>());
    let hinted = begin_as(client, &upload, "/elsewhere", &edited, "/mine").await;
    assert_eq!(hinted.missing, edit.missing, "the hint is looked at");

    let (theirs, begun) = begin(other, "/mine", &bytes).await;
    assert_eq!(begun.missing.len(), cut(&bytes).ids.len(), "another account is told nothing");
    let early = commit(other, &request_id(), &theirs, "/mine", any()).await.unwrap_err();
    assert_eq!(early.reason, "incomplete", "{}", early.message);
    for result in put_missing(other, &theirs, &bytes, &begun.missing).await {
        assert_eq!(result.error, None);
    }
    commit(other, &request_id(), &theirs, "/mine", any()).await.unwrap();
    assert_eq!(get(other, "/mine").await.unwrap(), bytes);
}

async fn hostile_requests_are_refused(client: &Client, other: &Client) {
    for bad in ["", "x", "/../x", "/a//b", "/a\0", &format!("/{}", "n".repeat(300))] {
        assert_eq!(entry(client, bad).await.unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
    }
    assert_eq!(entry(client, "/nowhere/x").await.unwrap_err().code(), Code::NotFound);
    let forged = client.with_token(format!("{}x", client.token));
    assert_eq!(entry(&forged, "/").await.unwrap_err().code(), Code::Unauthenticated);
    let status = other.admin().status(other.request(v1::StatusRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);

    let bytes = noise(200, 50_000);
    let (upload, _begun) = begin(client, "/hostile", &bytes).await;
    let chunk = |id: &[u8], data: &[u8]| v1::PutChunksRequest {
        chunks: vec![v1::PutChunk {
            upload_ids: vec![upload.clone()],
            id: Bytes::copy_from_slice(id),
            data: Bytes::copy_from_slice(data),
        }],
    };
    let right = cut(&bytes);
    let mut wrong = right.chunks[0].to_vec();
    wrong[0] ^= 1;
    let foreign = noise(201, 100);
    let messages = vec![
        chunk(right.ids[0].as_bytes(), &wrong),
        chunk(ChunkId::of(&foreign).as_bytes(), &foreign),
        chunk(b"short", b"x"),
    ];
    let results = put_all(client, messages).await.unwrap();
    assert_eq!(results.len(), 3);
    assert!(results.iter().all(|result| result.error.is_some()), "{results:?}");
    // Another account's session is none of theirs.
    let theirs = put_all(other, vec![chunk(right.ids[0].as_bytes(), &right.chunks[0])]).await.unwrap();
    assert_eq!(theirs[0].error.as_ref().unwrap().reason, "no-upload");
}

async fn commits_are_checked_and_repeat(client: &Client) {
    let bytes = noise(300, 100_000);
    let (upload, begun) = begin(client, "/versions", &bytes).await;
    put_missing(client, &upload, &bytes, &begun.missing).await;
    let request = request_id();
    let absent = base(v1::base::Base::Absent(true));
    let first = commit(client, &request, &upload, "/versions", absent).await.unwrap();
    let again = commit(client, &request, &upload, "/versions", absent).await.unwrap();
    assert_eq!((again.id, again.version), (first.id, first.version), "a repetition gives the first answer");
    let ended = commit(client, &request_id(), &upload, "/versions", any()).await.unwrap_err();
    assert_eq!(ended.reason, "upload-ended");

    let edited = noise(301, 90_000);
    let (upload, begun) = begin(client, "/versions", &edited).await;
    put_missing(client, &upload, &edited, &begun.missing).await;
    let conflict = commit(client, &request_id(), &upload, "/versions", absent).await.unwrap_err();
    assert_eq!((conflict.code, conflict.reason.as_str()), (Code::Aborted as u32, "conflict"));
    let current = base(v1::base::Base::Version(first.version));
    let second = commit(client, &request_id(), &upload, "/versions", current).await.unwrap();
    assert_eq!(second.id, first.id);
    let request = v1::DownloadRequest {
        path: "/versions".into(),
        version: first.version,
        ..v1::DownloadRequest::default()
    };
    let mut old = client.files().download(client.request(request)).await.unwrap().into_inner();
    let mut read = Vec::new();
    while let Some(message) = old.message().await.unwrap() {
        read.extend_from_slice(&message.data);
    }
    assert_eq!(read, bytes);
    let restore = v1::RestoreVersionRequest {
        request_id: request_id(),
        path: "/versions".into(),
        version: first.version,
    };
    client.files().restore_version(client.request(restore)).await.unwrap();
    assert_eq!(get(client, "/versions").await.unwrap(), bytes);
}

async fn trees_move_copy_and_come_back(client: &Client) {
    let bytes = noise(400, 70_000);
    assert!(mkdir(client, "/t/a/b", false).await.is_err());
    mkdir(client, "/t/a/b", true).await.unwrap();
    put(client, "/t/a/b/f", &bytes).await.unwrap();
    let copy = |from: &str, to: &str| v1::CopyEntryRequest {
        request_id: request_id(),
        from: from.into(),
        to: to.into(),
        replace: false,
    };
    let copied = client.files().copy_entry(client.request(copy("/t/a", "/t/c"))).await.unwrap().into_inner();
    assert_eq!((copied.files, copied.bytes), (1, 70_000));
    assert_eq!(get(client, "/t/c/b/f").await.unwrap(), bytes);
    let inside = client.files().copy_entry(client.request(copy("/t", "/t/a/x"))).await.unwrap_err();
    assert_eq!(inside.code(), Code::FailedPrecondition);

    let request = v1::MoveEntryRequest {
        request_id: request_id(),
        from: "/t/c/b".into(),
        to: "/t/moved".into(),
        replace: false,
    };
    let moved = client.files().move_entry(client.request(request.clone())).await.unwrap().into_inner();
    let again = client.files().move_entry(client.request(request)).await.unwrap().into_inner();
    assert_eq!(moved, again, "a repetition gives the first answer");
    assert_eq!(get(client, "/t/moved/f").await.unwrap(), bytes);

    let delete =
        |recursive| v1::DeleteEntryRequest { request_id: request_id(), path: "/t".into(), recursive };
    let refused = client.files().delete_entry(client.request(delete(false))).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let deleted = client.files().delete_entry(client.request(delete(true))).await.unwrap().into_inner();
    assert!(entry(client, "/t/moved/f").await.is_err());
    let list = v1::ListTrashRequest::default();
    let trash = client.files().list_trash(client.request(list)).await.unwrap().into_inner();
    assert!(trash.items.iter().any(|item| item.trash_id == deleted.trash_id && item.path == "/t"));
    let restore =
        v1::RestoreTrashRequest { request_id: request_id(), trash_id: deleted.trash_id, to: String::new() };
    client.files().restore_trash(client.request(restore)).await.unwrap();
    assert_eq!(get(client, "/t/moved/f").await.unwrap(), bytes);
}

async fn purging_gives_space_back(client: &Client) {
    put(client, "/purged", &noise(500, 3_000_000)).await.unwrap();
    let used = || async {
        let request = client.request(v1::WhoAmIRequest {});
        client.accounts().who_am_i(request).await.unwrap().into_inner().used_bytes
    };
    let before = used().await;
    let delete =
        v1::DeleteEntryRequest { request_id: request_id(), path: "/purged".into(), recursive: false };
    let trash = client.files().delete_entry(client.request(delete)).await.unwrap().into_inner();
    let purge = v1::PurgeTrashRequest { request_id: request_id(), trash_id: trash.trash_id };
    let purged = client.files().purge_trash(client.request(purge)).await.unwrap().into_inner();
    assert_eq!((purged.entries, purged.bytes), (1, 3_000_000));
    let entry_and_version = 256 + 128;
    assert_eq!(used().await, before - 3_000_000 - entry_and_version);
    // What was purged may be put again.
    put(client, "/purged", &noise(500, 3_000_000)).await.unwrap();
    assert_eq!(get(client, "/purged").await.unwrap(), noise(500, 3_000_000));
}

/// More chunks than a list holds: its nodes are stored as chunks themselves. They are as small as chunks may be, and
/// most of them the same few.
async fn long_lists_become_trees(client: &Client) {
    const PIECE_BYTES: usize = 16 * 1024;
    const DISTINCT: usize = 90;
    let bytes = noise(700, DISTINCT * PIECE_BYTES).repeat(100);
    let pieces = |bytes: &[u8]| {
        let chunks: Vec<Bytes> = bytes.chunks(PIECE_BYTES).map(Bytes::copy_from_slice).collect();
        Cut { ids: chunks.iter().map(|chunk| ChunkId::of(chunk)).collect(), chunks }
    };
    let id = || Bytes::copy_from_slice(&random::<16>());
    let upload = id();
    let list = pieces(&bytes);
    let begun = begin_cut(client, &upload, "/long", &list, "").await;
    assert_eq!(begun.missing.len(), DISTINCT);
    let results = put_cut(client, &upload, &list, &begun.missing, 50).await;
    assert!(results.len() == DISTINCT && results.iter().all(|result| result.error.is_none()));
    let request = v1::UploadStatusRequest { upload_id: upload.clone() };
    let status = client.files().upload_status(client.request(request)).await.unwrap().into_inner();
    assert_eq!(status.missing, Vec::<u32>::new());
    commit(client, &request_id(), &upload, "/long", any()).await.unwrap();
    assert_eq!(get(client, "/long").await.unwrap(), bytes);
    let (from, length) = (100_200_001, 77);
    let part = get_range(client, "/long", from as u64, length as u64).await.unwrap();
    assert_eq!(part, bytes[from..from + length]);

    let mut edited = bytes.clone();
    edited[8000 * PIECE_BYTES] ^= 1;
    let upload = id();
    let begun = begin_cut(client, &upload, "/long", &pieces(&edited), "").await;
    assert_eq!(begun.missing, [8000], "the current version's tree is looked at");
    let abort = v1::AbortUploadRequest { request_id: request_id(), upload_id: upload.clone() };
    client.files().abort_upload(client.request(abort)).await.unwrap();
    let late = commit(client, &request_id(), &upload, "/long", any()).await.unwrap_err();
    assert_eq!(late.reason, "upload-ended");

    let delete = v1::DeleteEntryRequest { request_id: request_id(), path: "/long".into(), recursive: false };
    client.files().delete_entry(client.request(delete)).await.unwrap();
    let purge = v1::PurgeTrashRequest { request_id: request_id(), trash_id: 0 };
    client.files().purge_trash(client.request(purge)).await.unwrap();
    let begun = begin_cut(client, &id(), "/long", &list, "").await;
    assert_eq!(begun.missing.len(), DISTINCT, "what was purged is not told any more");
}

/// Each chunk costs rows and a place on the disks, however small it is.
async fn tiny_chunks_are_refused_but_for_a_files_last_one(client: &Client) {
    let cut = |sizes: &[usize]| {
        let chunks: Vec<Bytes> = sizes.iter().map(|size| noise(*size as u64, *size).into()).collect();
        Cut { ids: chunks.iter().map(|chunk| ChunkId::of(chunk)).collect(), chunks }
    };
    let id = || Bytes::copy_from_slice(&random::<16>());
    let begun = begin_cut(client, &id(), "/tiny", &cut(&[3; 1000]), "").await;
    let error = begun.error.unwrap();
    assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument as u32, "invalid"));
    assert!(error.message.contains("16384"), "names the limit: {}", error.message);
    for good in [&[3][..], &[16 * 1024, 3], &[70_000, 16 * 1024, 300_000, 1]] {
        let upload = id();
        let begun = begin_cut(client, &upload, "/tiny", &cut(good), "").await;
        assert_eq!(begun.error, None, "{good:?}");
        put_cut(client, &upload, &cut(good), &begun.missing, 4).await;
        commit(client, &request_id(), &upload, "/tiny", any()).await.unwrap();
    }
}

async fn losses_are_survived(cluster: &mut Cluster, client: &Client) {
    let bytes = noise(600, 5_000_000);
    put(client, "/lossy", &bytes).await.unwrap();
    cluster.stop_storage(1).await;
    assert_eq!(get(client, "/lossy").await.unwrap(), bytes, "one node less");
    let short = noise(601, 1_000_000);
    put(client, "/short", &short).await.unwrap();
    let status = cluster.wait_for_status(|status| status.stripes_short > 0).await;
    assert_eq!(status.health, "degraded");
    cluster.stop_storage(2).await;
    assert_eq!(get(client, "/lossy").await.unwrap(), bytes, "two nodes less");
    let refused = put(client, "/refused", &noise(602, 1_000_000)).await.unwrap_err();
    assert_eq!(refused.reason, "not-enough-disks", "{}", refused.message);
    mkdir(client, "/metadata-goes-on", false).await.unwrap();
    cluster.start_storage(1).await;
    cluster.start_storage(2).await;
    cluster.wait_for_status(|status| status.nodes.iter().all(|node| node.state == "up")).await;
    put(client, "/refused", &noise(602, 1_000_000)).await.unwrap();
    assert_eq!(get(client, "/short").await.unwrap(), short);
}

async fn a_revoked_device_is_out_at_once(other: &Client) {
    let me = other.accounts().who_am_i(other.request(v1::WhoAmIRequest {})).await.unwrap().into_inner();
    let revoke = v1::RevokeDeviceRequest { request_id: request_id(), device: me.device };
    other.accounts().revoke_device(other.request(revoke)).await.unwrap();
    assert_eq!(entry(other, "/").await.unwrap_err().code(), Code::Unauthenticated);
}

async fn scenario(data_groups: u16) {
    let mut cluster = Cluster::start(data_groups).await;
    let client = cluster.client().await;
    let other = second_account(&cluster, &client).await;
    files_come_back(&client).await;
    only_what_may_be_read_is_skipped(&client, &other).await;
    hostile_requests_are_refused(&client, &other).await;
    commits_are_checked_and_repeat(&client).await;
    trees_move_copy_and_come_back(&client).await;
    batches::batches_go_item_by_item(&client).await;
    repeats::repetitions_are_about_what_was_meant(&client).await;
    purging_gives_space_back(&client).await;
    long_lists_become_trees(&client).await;
    tiny_chunks_are_refused_but_for_a_files_last_one(&client).await;
    losses_are_survived(&mut cluster, &client).await;
    a_revoked_device_is_out_at_once(&other).await;
    drop((client, other));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_api_works_with_one_data_group() {
    scenario(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_api_works_across_three_data_groups() {
    scenario(3).await;
}
