//! Many small files in few round trips, and files by id.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use engine::ids::ChunkId;
use proto::v1;
use tonic::Code;

use super::{Applied, ROOT, apply_one, folder};
use crate::cluster::{Client, random, request_id};
use crate::{any, cut, noise, put, put_all};

/// A small file that is to be sent.
pub(crate) struct Small {
    upload: Bytes,
    name: String,
    data: Bytes,
}

fn small(seed: u64, count: usize, bytes: usize) -> Vec<Small> {
    let file = |number: usize| Small {
        upload: Bytes::copy_from_slice(&random::<16>()),
        name: format!("file {number}"),
        data: noise(seed * 100_000 + number as u64, bytes).into(),
    };
    (0..count).map(file).collect()
}

async fn begin(client: &Client, files: &[Small]) -> Vec<v1::BegunUpload> {
    let upload = |file: &Small| v1::BeginUpload {
        upload_id: file.upload.clone(),
        size: file.data.len() as u64,
        cutter: v1::Cutter::Cdc64k.into(),
        chunks: Some(v1::ChunkList {
            ids: Bytes::copy_from_slice(ChunkId::of(&file.data).as_bytes()),
            sizes: vec![u32::try_from(file.data.len()).unwrap()],
        }),
        ..v1::BeginUpload::default()
    };
    let uploads = files.iter().map(upload).collect();
    let request = v1::BeginUploadsRequest { request_id: request_id(), uploads };
    client.files().begin_uploads(client.request(request)).await.unwrap().into_inner().uploads
}

async fn send(client: &Client, files: &[Small]) {
    let chunk = |file: &Small| v1::PutChunk {
        upload_ids: vec![file.upload.clone()],
        id: Bytes::copy_from_slice(ChunkId::of(&file.data).as_bytes()),
        data: file.data.clone(),
    };
    let messages =
        files.chunks(64).map(|files| v1::PutChunksRequest { chunks: files.iter().map(chunk).collect() });
    let results = put_all(client, messages.collect()).await.unwrap();
    assert!(results.len() == files.len() && results.iter().all(|result| result.error.is_none()));
}

async fn commit(client: &Client, request: &Bytes, parent_id: u64, files: &[Small]) -> Vec<Applied> {
    let upload = |file: &Small| v1::CommitUpload {
        upload_id: file.upload.clone(),
        base: any(),
        mode: 0o644,
        mtime_ns: 5,
        parent_id,
        name: file.name.clone(),
        ..v1::CommitUpload::default()
    };
    let uploads = files.iter().map(upload).collect();
    let request = v1::CommitUploadsRequest { request_id: request.clone(), uploads, ..Default::default() };
    let results = client.files().commit_uploads(client.request(request)).await.unwrap().into_inner().results;
    let result = |result: v1::EntryResult| match result.result.unwrap() {
        v1::entry_result::Result::Entry(entry) => Ok(entry),
        v1::entry_result::Result::Error(error) => Err(error),
    };
    results.into_iter().map(result).collect()
}

async fn download_many(
    client: &Client,
    entries: Vec<v1::EntryVersion>,
) -> BTreeMap<u32, Result<Vec<u8>, v1::ItemError>> {
    let request = v1::DownloadManyRequest { paths: Vec::new(), entries };
    let mut stream = client.files().download_many(client.request(request)).await.unwrap().into_inner();
    let mut files: BTreeMap<u32, Result<Vec<u8>, v1::ItemError>> = BTreeMap::new();
    while let Some(message) = stream.message().await.unwrap() {
        let file = files.entry(message.index).or_insert_with(|| Ok(Vec::new()));
        match (message.error, file) {
            (Some(error), file) => *file = Err(error),
            (None, Ok(bytes)) => bytes.extend_from_slice(&message.data),
            (None, Err(_)) => {}
        }
    }
    files
}

pub(crate) async fn small_files_go_together_and_come_back_by_id(client: &Client) {
    let top = apply_one(client, folder(ROOT, "small")).await.unwrap();
    let files = small(1, 1000, 4096);
    let started = Instant::now();
    let begun = begin(client, &files).await;
    let begun_in = started.elapsed();
    assert!(begun.iter().all(|begun| begun.error.is_none() && begun.missing == [0]));
    send(client, &files).await;
    let sent_in = started.elapsed() - begun_in;
    let request = request_id();
    let made = commit(client, &request, top.id, &files).await;
    let committed_in = started.elapsed() - begun_in - sent_in;
    eprintln!("1,000 files: begun in {begun_in:?}, sent in {sent_in:?}, committed in {committed_in:?}");
    let again = commit(client, &request, top.id, &files).await;
    assert_eq!(made, again, "a repetition gives the first answers");
    let fresh = commit(client, &request_id(), top.id, &files[..1]).await;
    assert_eq!(fresh[0].as_ref().unwrap_err().reason, "upload-ended");

    let made: Vec<v1::Entry> = made.into_iter().map(Result::unwrap).collect();
    assert!(made.iter().zip(&files).all(|(made, file)| made.parent == top.id && made.name == file.name));
    let entries = made.iter().map(|made| v1::EntryVersion { entry_id: made.id, version: 0 });
    let read = download_many(client, entries.take(900).chain([v1::EntryVersion::default()]).collect()).await;
    assert!(read[&900].is_err(), "no such id");
    assert!((0..900).all(|index| read[&u32::try_from(index).unwrap()] == Ok(files[index].data.to_vec())));

    // Each by itself: one name is taken by a folder, one session is nobody's.
    apply_one(client, folder(top.id, "file 1 b")).await.unwrap();
    let mut next = small(2, 4, 3000);
    next[1].name = "file 1 b".to_owned();
    begin(client, &next).await;
    send(client, &next).await;
    next[2].upload = Bytes::copy_from_slice(&random::<16>());
    let mixed = commit(client, &request_id(), top.id, &next).await;
    assert!(mixed[0].is_ok() && mixed[3].is_ok());
    assert_eq!(mixed[1].as_ref().unwrap_err().reason, "wrong-kind");
    assert_eq!(mixed[2].as_ref().unwrap_err().reason, "no-upload");
    let overwritten = mixed[0].as_ref().unwrap();
    assert_eq!((overwritten.id, overwritten.version > made[0].version), (made[0].id, true));

    let old = v1::EntryVersion { entry_id: made[0].id, version: made[0].version };
    assert_eq!(download_many(client, vec![old]).await[&0], Ok(files[0].data.to_vec()), "an earlier version");
    // Against a version that is not there any more, or is another file's.
    for base in [made[0].version, made[5].version] {
        let mut late = small(3, 1, 100);
        late[0].name = "file 0".to_owned();
        begin(client, &late).await;
        send(client, &late).await;
        let upload = v1::CommitUpload {
            upload_id: late[0].upload.clone(),
            base: Some(v1::Base { base: Some(v1::base::Base::Version(base)) }),
            parent_id: top.id,
            name: late[0].name.clone(),
            ..v1::CommitUpload::default()
        };
        let request = v1::CommitUploadsRequest {
            request_id: request_id(),
            uploads: vec![upload],
            ..Default::default()
        };
        let response = client.files().commit_uploads(client.request(request)).await.unwrap().into_inner();
        match response.results[0].result.clone().unwrap() {
            v1::entry_result::Result::Error(error) => assert_eq!(error.reason, "conflict"),
            v1::entry_result::Result::Entry(entry) => unreachable!("overwritten: {entry:?}"),
        }
    }
}

pub(crate) async fn what_could_not_go_at_first_goes_when_it_comes_again(client: &Client) {
    let top = apply_one(client, folder(ROOT, "again")).await.unwrap();
    let files = small(4, 3, 2000);
    begin(client, &files).await;
    send(client, &files[..2]).await;
    let request = request_id();
    let first = commit(client, &request, top.id, &files).await;
    assert!(first[0].is_ok() && first[1].is_ok());
    assert_eq!(first[2].as_ref().unwrap_err().reason, "incomplete");
    send(client, &files[2..]).await;
    let second = commit(client, &request, top.id, &files).await;
    assert_eq!(second[..2], first[..2]);
    assert!(second[2].is_ok(), "{:?}", second[2]);
    assert_eq!(commit(client, &request, top.id, &files).await, second);
}

async fn manifest(
    client: &Client,
    entry_id: u64,
    version: u64,
) -> Result<(v1::Entry, v1::ChunkList), tonic::Status> {
    let request = client.request(v1::GetManifestRequest { entry_id, version });
    let mut stream = client.sync().get_manifest(request).await?.into_inner();
    let (mut entry, mut ids, mut sizes) = (None, Vec::new(), Vec::new());
    while let Some(message) = stream.message().await? {
        entry = entry.or(message.entry);
        let chunks = message.chunks.unwrap_or_default();
        ids.extend_from_slice(&chunks.ids);
        sizes.extend(chunks.sizes);
    }
    Ok((entry.unwrap(), v1::ChunkList { ids: ids.into(), sizes }))
}

pub(crate) async fn a_manifest_is_the_list_that_was_sent(client: &Client, other: &Client) {
    let bytes = noise(700, 3_000_000);
    let made = put(client, "/listed", &bytes).await.unwrap();
    let (entry, chunks) = manifest(client, made.id, 0).await.unwrap();
    assert_eq!((entry.id, entry.version, entry.size), (made.id, made.version, bytes.len() as u64));
    let cut = cut(&bytes);
    let ids: Vec<u8> = cut.ids.iter().flat_map(|id| id.as_bytes().iter().copied()).collect();
    assert_eq!(chunks.ids, ids);
    assert_eq!(chunks.sizes.iter().map(|size| u64::from(*size)).sum::<u64>(), bytes.len() as u64);
    let empty = put(client, "/empty and listed", b"").await.unwrap();
    assert_eq!(manifest(client, empty.id, 0).await.unwrap().1, v1::ChunkList::default());
    put(client, "/listed", b"shorter").await.unwrap();
    assert_eq!(manifest(client, made.id, made.version).await.unwrap().1, chunks, "an earlier version");
    assert_eq!(manifest(client, made.id, 999_999).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(manifest(other, made.id, 0).await.unwrap_err().code(), Code::NotFound);

    let request =
        v1::DownloadRequest { entry_id: made.id, version: made.version, ..v1::DownloadRequest::default() };
    let mut stream = client.files().download(client.request(request)).await.unwrap().into_inner();
    let mut read = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        read.extend_from_slice(&message.data);
    }
    assert_eq!(read, bytes);

    // The chunks of a file that is named by id need not be sent again.
    let upload = v1::BeginUpload {
        upload_id: Bytes::copy_from_slice(&random::<16>()),
        size: bytes.len() as u64 + 1000,
        cutter: v1::Cutter::Cdc64k.into(),
        chunks: Some(longer(&chunks, &noise(701, 1000))),
        hint_entry_id: put(client, "/hinted", &bytes).await.unwrap().id,
        ..v1::BeginUpload::default()
    };
    let request = v1::BeginUploadsRequest { request_id: request_id(), uploads: vec![upload] };
    let begun = client.files().begin_uploads(client.request(request)).await.unwrap().into_inner();
    assert_eq!(begun.uploads[0].missing, [u32::try_from(cut.ids.len()).unwrap()]);
}

fn longer(chunks: &v1::ChunkList, more: &[u8]) -> v1::ChunkList {
    let mut sizes = chunks.sizes.clone();
    sizes.push(u32::try_from(more.len()).unwrap());
    v1::ChunkList { ids: [chunks.ids.as_ref(), ChunkId::of(more).as_bytes()].concat().into(), sizes }
}
