//! Small files by one call each: what they are refused for, what is read of them in the nursery and behind it, and what is
//! left once they are gone.

use bytes::Bytes;
use engine::ids::{ChunkId, RequestId};
use metaraft::model::command::{Command, DataStep, Steps};
use metaraft::model::nursery::SMALL_FILE_BYTES_MAX;
use metaraft::model::query::{Query, Reply};
use proto::v1;
use tonic::{Code, Status};

use crate::cluster::{Client, Cluster, request_id};
use crate::{any, base, cut, entry, get, get_range, mkdir, noise, put, second_account};

fn message(path: &str, bytes: &[u8], base: Option<v1::Base>) -> v1::PutFileRequest {
    v1::PutFileRequest {
        request_id: request_id(),
        path: path.to_owned(),
        base,
        mode: 0o640,
        mtime_ns: 77,
        cutter: v1::Cutter::Cdc64k.into(),
        data: Bytes::copy_from_slice(bytes),
        ..v1::PutFileRequest::default()
    }
}

async fn send(client: &Client, message: v1::PutFileRequest) -> Result<v1::Entry, Status> {
    let answer = client.files().put_file(client.request(message)).await?;
    Ok(answer.into_inner().entry.unwrap())
}

async fn put_small(client: &Client, path: &str, bytes: &[u8]) -> v1::Entry {
    send(client, message(path, bytes, any())).await.unwrap()
}

async fn set(client: &Client, name: &str, value: &str) {
    let (name, value) = (name.to_owned(), value.to_owned());
    let message = v1::SetSettingRequest { request_id: request_id(), name, value };
    client.admin().set_setting(client.request(message)).await.unwrap();
}

fn reason(status: &Status) -> &str {
    status.metadata().get("keepstone-reason").map_or("", |reason| reason.to_str().unwrap())
}

/// Files of all sizes that go so, each with its bytes.
fn files() -> Vec<(String, Vec<u8>)> {
    let sizes = [0, 1, 4096, 16_384, 16_385, 40_000, 65_536];
    let bytes = |size: usize| {
        let mut some = (9000..).map(|seed| noise(seed + size as u64, size));
        // The largest is one that is cut into several chunks.
        some.find(|bytes| size < SMALL_FILE_BYTES_MAX || cut(bytes).ids.len() > 1).unwrap()
    };
    sizes.iter().map(|size| (format!("/nursery/{size}"), bytes(*size))).collect()
}

async fn all_read_back(client: &Client) {
    let files = files();
    for (path, bytes) in &files {
        assert_eq!(get(client, path).await.unwrap(), *bytes, "{path}");
    }
    assert_eq!(get_range(client, "/nursery/40000", 17_000, 9000).await.unwrap(), files[5].1[17_000..26_000]);
    let paths = files.iter().map(|(path, _bytes)| path.clone()).collect();
    let many = v1::DownloadManyRequest { paths, ..v1::DownloadManyRequest::default() };
    let mut stream = client.files().download_many(client.request(many)).await.unwrap().into_inner();
    let mut got = vec![Vec::new(); files.len()];
    while let Some(message) = stream.message().await.unwrap() {
        assert_eq!(message.error, None);
        got[message.index as usize].extend_from_slice(&message.data);
    }
    assert!(got.iter().zip(&files).all(|(got, (_path, bytes))| got == bytes));
    let large = entry(client, "/nursery/65536").await.unwrap();
    let manifest = v1::GetManifestRequest { entry_id: large.id, version: large.version };
    let mut stream = client.sync().get_manifest(client.request(manifest)).await.unwrap().into_inner();
    let chunks = stream.message().await.unwrap().unwrap().chunks.unwrap();
    assert!(chunks.sizes.len() > 1, "it is cut into one chunk");
    let ids: Vec<u8> = cut(&files[6].1).ids.iter().flat_map(|id| *id.as_bytes()).collect();
    assert_eq!(chunks.ids, ids, "cut as a client cuts it");
}

async fn refusals_change_nothing(client: &Client, other: &Client) {
    let absent = || base(v1::base::Base::Absent(true));
    let taken = send(client, message("/nursery/1", b"x", absent())).await.unwrap_err();
    assert_eq!((taken.code(), reason(&taken)), (Code::Aborted, "conflict"));
    let stale = base(v1::base::Base::Version(1));
    let stale = send(client, message("/nursery/4096", b"x", stale)).await.unwrap_err();
    assert_eq!(reason(&stale), "conflict");
    let folder = send(client, message("/nursery", b"x", any())).await.unwrap_err();
    assert_eq!(folder.code(), Code::FailedPrecondition, "{folder}");
    let nowhere = send(client, message("/no/such/folder", b"x", any())).await.unwrap_err();
    assert_eq!(nowhere.code(), Code::NotFound);
    assert!(nowhere.message().contains("/no/such"), "{nowhere}");
    let below_a_file = send(client, message("/nursery/1/x", b"x", any())).await.unwrap_err();
    assert_eq!(below_a_file.code(), Code::FailedPrecondition, "{below_a_file}");
    let large = send(client, message("/nursery/large", &noise(1, 65_537), any())).await.unwrap_err();
    assert_eq!(large.code(), Code::InvalidArgument);
    // Nobody puts into a folder of somebody else's, by whatever id.
    let mine = entry(client, "/nursery").await.unwrap();
    let by_id = v1::PutFileRequest {
        path: String::new(),
        parent_id: mine.id + 1000,
        name: "x".to_owned(),
        ..message("", b"x", any())
    };
    assert_eq!(send(other, by_id).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(get(client, "/nursery/1").await.unwrap(), files()[1].1);
}

async fn a_repetition_gets_the_first_answer(client: &Client) {
    let first = message("/nursery/again", b"first", any());
    let put = send(client, first.clone()).await.unwrap();
    put_small(client, "/nursery/again", b"second").await;
    let again = send(client, first.clone()).await.unwrap();
    assert_eq!((again.id, again.version), (put.id, put.version));
    assert_eq!(get(client, "/nursery/again").await.unwrap(), b"second");
    let other = v1::PutFileRequest { data: Bytes::from_static(b"third"), ..first };
    assert_eq!(send(client, other).await.unwrap_err().code(), Code::InvalidArgument);
    let earlier = v1::DownloadRequest {
        path: "/nursery/again".to_owned(),
        version: put.version,
        ..v1::DownloadRequest::default()
    };
    let mut stream = client.files().download(client.request(earlier)).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().data, "first"[..], "an earlier version");
}

/// A full nursery: the same call, the long way, and repeated.
async fn what_has_no_room_goes_into_stripes(cluster: &Cluster, client: &Client) {
    let before = cluster.wait_for_status(|_status| true).await;
    set(client, "nursery-bytes-max", "0").await;
    let bytes = noise(9100, 30_000);
    let request = message("/nursery/full", &bytes, any());
    let put = loop {
        // The gateway hears of the setting a moment later.
        let put = send(client, v1::PutFileRequest { request_id: request_id(), ..request.clone() }).await;
        if cluster.wait_for_status(|_status| true).await.stripes_total > before.stripes_total {
            break put.unwrap();
        }
    };
    let first = send(client, request.clone()).await.unwrap();
    let again = send(client, request.clone()).await.unwrap();
    assert_eq!((first.version, first.id), (again.version, again.id));
    assert!(first.version > put.version);
    let by_id = v1::PutFileRequest {
        path: String::new(),
        parent_id: first.parent,
        name: "full by id".to_owned(),
        ..message("", &bytes[1..], any())
    };
    send(client, by_id).await.unwrap();
    assert_eq!(get(client, "/nursery/full by id").await.unwrap(), bytes[1..]);
    assert_eq!(get(client, "/nursery/full").await.unwrap(), bytes);
    set(client, "nursery-bytes-max", "67108864").await;
}

/// A chunk that is in stripes and cannot be read there: the same bytes once more take its place, if it is by one call.
async fn what_is_lost_is_healed_by_putting_it_again(cluster: &Cluster, client: &Client) {
    let (_path, bytes) = &files()[2];
    let chunk = ChunkId::of(bytes);
    let meta = cluster.meta_api();
    meta.refresh_map().await.unwrap();
    let group = meta.group_of(chunk.slot()).unwrap();
    let place = || async {
        let query = Query::ChunksLocate { chunks: vec![chunk] };
        let places = match meta.query(group, query).await.unwrap() {
            Reply::Locations(places) => places,
            _ => Vec::new(),
        };
        places[0].unwrap().stripe
    };
    let before = place().await;
    let lost = DataStep::ChunksUnreadable { chunks: vec![(chunk, before)] };
    let request = RequestId::from_slice(&request_id()).unwrap();
    meta.propose(group, Command::new(request, Steps::Data(vec![lost]))).await.unwrap();
    put_small(client, "/nursery/healed", bytes).await;
    assert_ne!(place().await, before, "the bytes that came again were thrown away");
    assert_eq!(get(client, "/nursery/healed").await.unwrap(), *bytes);
    meta.stop().await;
}

async fn emptied(cluster: &Cluster, client: &Client) -> v1::StatusResponse {
    set(client, "nursery-age", "0ms").await;
    let status = cluster.wait_for_status(|status| status.nursery_files == 0).await;
    set(client, "nursery-age", "1d").await;
    status
}

async fn purge(client: &Client, path: &str) {
    let delete = v1::DeleteEntryRequest { request_id: request_id(), path: path.to_owned(), recursive: true };
    let trash_id = client.files().delete_entry(client.request(delete)).await.unwrap().into_inner().trash_id;
    let purge = v1::PurgeTrashRequest { request_id: request_id(), trash_id };
    client.files().purge_trash(client.request(purge)).await.unwrap();
}

async fn scenario(data_groups: u16) {
    let cluster = Cluster::start(data_groups).await;
    let client = cluster.client().await;
    let other = second_account(&cluster, &client).await;
    set(&client, "nursery-age", "1d").await;
    mkdir(&client, "/nursery", false).await.unwrap();
    // It hears of the setting before anything is moved: files are moved once they are ten seconds old.
    for (path, bytes) in files() {
        let put = put_small(&client, &path, &bytes).await;
        assert_eq!((put.size, put.mode, put.mtime_ns), (bytes.len() as u64, 0o640, 77));
    }
    let kept = cluster.wait_for_status(|status| status.nursery_files == 6).await;
    let bytes: u64 = files().iter().map(|(_path, bytes)| bytes.len() as u64).sum();
    assert_eq!((kept.nursery_bytes, kept.stripes_total), (bytes + 6 * 256, 0));
    all_read_back(&client).await;
    refusals_change_nothing(&client, &other).await;
    a_repetition_gets_the_first_answer(&client).await;
    // Somebody else's equal file has bytes of its own there, and both are moved into one place.
    put_small(&other, "/same", &files()[4].1).await;
    // The same once more costs nothing; a long upload of the same takes it out of there.
    let counted = cluster.wait_for_status(|_status| true).await.nursery_files;
    put_small(&client, "/nursery/copy", &files()[5].1).await;
    assert_eq!(cluster.wait_for_status(|_status| true).await.nursery_files, counted);
    put(&client, "/nursery/session", &files()[6].1).await.unwrap();
    assert_eq!(cluster.wait_for_status(|_status| true).await.nursery_files, counted - 1);
    let stored = emptied(&cluster, &client).await;
    assert!(stored.stripes_total > 0);
    let unique: u64 = stored.bytes_unique;
    all_read_back(&client).await;
    assert_eq!(get(&other, "/same").await.unwrap(), files()[4].1);
    what_is_lost_is_healed_by_putting_it_again(&cluster, &client).await;
    what_has_no_room_goes_into_stripes(&cluster, &client).await;
    put_small(&client, "/nursery/4096", b"a new version").await;
    purge(&client, "/nursery").await;
    purge(&other, "/same").await;
    let status = emptied(&cluster, &client).await;
    assert_eq!((status.bytes_logical, status.releases_aside), (0, 0));
    assert!(status.bytes_unique >= unique, "chunks stay until they are swept");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn small_files_wait_in_the_nursery_and_leave_it_with_one_data_group() {
    scenario(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn small_files_wait_in_the_nursery_and_leave_it_with_three_data_groups() {
    scenario(3).await;
}

/// A token that was right a moment ago is judged by what does the work.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_revoked_token_puts_and_gets_nothing_more() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let other = second_account(&cluster, &client).await;
    let sign_in = v1::SignInRequest {
        email: "bob@x.org".to_owned(),
        password: "hunter2hunter2".to_owned(),
        device_name: "phone".to_owned(),
    };
    let phone = client.accounts().sign_in(sign_in).await.unwrap().into_inner().token;
    let phone = cluster.client().await.with_token(phone);
    for number in 0..3 {
        put_small(&phone, "/a", &noise(number, 100)).await;
        get(&phone, "/a").await.unwrap();
    }
    let device = phone.accounts().who_am_i(phone.request(v1::WhoAmIRequest {})).await.unwrap().into_inner();
    let revoke = v1::RevokeDeviceRequest { request_id: request_id(), device: device.device };
    other.accounts().revoke_device(other.request(revoke)).await.unwrap();
    let refused = send(&phone, message("/a", b"too late", any())).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::Unauthenticated, "unauthenticated"));
    assert_eq!(get(&phone, "/a").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(get(&other, "/a").await.unwrap(), noise(2, 100));
    // A right secret with another's name is nobody's.
    let forged = other.with_token(format!("{}x", &other.token[..other.token.len() - 1]));
    assert_eq!(get(&forged, "/a").await.unwrap_err().code(), Code::Unauthenticated);
    cluster.stop().await;
}
