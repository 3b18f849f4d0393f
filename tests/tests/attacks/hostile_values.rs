//! Values that no honest client sends, in every field: each is answered in time, with a reason, and harms nobody.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use chaos::attack::arena::Arena;
use chaos::attack::caller::{
    Caller, commit_of, entry_of, folder, item_status, random_bytes, request_id, session,
};
use chaos::attack::gate::ATTACKER;
use chaos::attack::h2_client::{H2Client, message_of};
use chaos::serial::serial;
use proto::v1;
use tokio::time::timeout;
use tonic::{Code, Status};

/// Every refusal comes by then.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

type Outcome<'a> = Pin<Box<dyn Future<Output = Result<(), Status>> + Send + 'a>>;

fn bad_paths() -> Vec<String> {
    let mut paths: Vec<String> =
        ["", "relative", "//", "/a//b", "/.", "/..", "/a/../b", "/nul\0nul", "/\0", "/a/"]
            .map(str::to_owned)
            .to_vec();
    paths.push(format!("/{}", "x".repeat(256)));
    paths.push("/d".repeat(300));
    paths.push(format!("/{}", "y".repeat(1 << 20)));
    paths
}

async fn of_path(caller: &Caller, path: &str) -> Vec<Result<(), Status>> {
    let path = path.to_owned();
    let (files, request_id) = (|| caller.files(), request_id());
    let to = v1::MoveEntryRequest {
        request_id: request_id.clone(),
        from: "/there".to_owned(),
        to: path.clone(),
        replace: false,
    };
    let copy = v1::CopyEntryRequest {
        request_id: request_id.clone(),
        from: "/there".to_owned(),
        to: path.clone(),
        replace: false,
    };
    let delete = v1::DeleteEntryRequest { request_id, path: path.clone(), recursive: false };
    let versions = v1::ListVersionsRequest { path: path.clone() };
    let restore = v1::RestoreVersionRequest {
        request_id: chaos::attack::caller::request_id(),
        path: path.clone(),
        version: u64::MAX,
    };
    let download = v1::DownloadRequest { path: path.clone(), ..v1::DownloadRequest::default() };
    vec![
        caller.make_folder(&path).await.map(drop),
        caller.begin(session(&format!("{path}\0"), &[])).await.map(drop),
        files().move_entry(caller.request(to)).await.map(drop),
        files().copy_entry(caller.request(copy)).await.map(drop),
        files().delete_entry(caller.request(delete)).await.map(drop),
        files().list_versions(caller.request(versions)).await.map(drop),
        files().restore_version(caller.request(restore)).await.map(drop),
        files().download(caller.request(download)).await.map(drop),
    ]
}

async fn create(caller: &Caller, entry: v1::CreateEntry) -> Result<(), Status> {
    let message = v1::CreateEntriesRequest { request_id: request_id(), entries: vec![entry] };
    entry_of(caller.files().create_entries(caller.request(message)).await?.into_inner().results).map(drop)
}

async fn begin(caller: &Caller, change: impl FnOnce(&mut v1::BeginUpload)) -> Result<(), Status> {
    let mut upload = session("/begun", &[(Bytes::from(vec![7; 32]), 100)]);
    change(&mut upload);
    caller.begin(upload).await.map(drop)
}

async fn range(caller: &Caller, message: v1::DownloadRequest) -> Result<(), Status> {
    let mut stream = caller.files().download(caller.request(message)).await?.into_inner();
    while stream.message().await?.is_some() {}
    Ok(())
}

async fn with_request_id(caller: &Caller, request_id: Bytes) -> Result<(), Status> {
    let entries = vec![folder("/by-id")];
    let message = v1::CreateEntriesRequest { request_id, entries };
    entry_of(caller.files().create_entries(caller.request(message)).await?.into_inner().results).map(drop)
}

async fn put(caller: &Caller, upload_ids: Vec<Bytes>, id: Bytes, data: Bytes) -> Result<(), Status> {
    let chunks = vec![v1::PutChunk { upload_ids, id, data }];
    let stream = tokio_stream::once(v1::PutChunksRequest { chunks });
    let mut answers = caller.files().put_chunks(caller.request(stream)).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if let Some(error) = answer.results.into_iter().find_map(|result| result.error) {
            return Err(item_status(error));
        }
    }
    Ok(())
}

/// Values of entries and ranges that must be refused, by what they are.
fn refused_entries(caller: &Caller) -> Vec<(&'static str, Outcome<'_>)> {
    let at = |entry_id| v1::DownloadRequest { entry_id, ..v1::DownloadRequest::default() };
    let version = v1::DownloadRequest {
        path: "/there".to_owned(),
        version: u64::MAX,
        ..v1::DownloadRequest::default()
    };
    let link = |target: Vec<u8>| v1::CreateEntry {
        path: "/link".to_owned(),
        kind: v1::EntryKind::Symlink.into(),
        symlink_target: target.into(),
        ..v1::CreateEntry::default()
    };
    vec![
        ("mode", Box::pin(create(caller, v1::CreateEntry { mode: u32::MAX, ..folder("/mode") }))),
        ("kind", Box::pin(create(caller, v1::CreateEntry { kind: 77, ..folder("/kind") }))),
        ("negative kind", Box::pin(create(caller, v1::CreateEntry { kind: -1, ..folder("/kind") }))),
        ("no target", Box::pin(create(caller, link(Vec::new())))),
        ("NUL in a target", Box::pin(create(caller, link(b"a\0b".to_vec())))),
        ("long target", Box::pin(create(caller, link(vec![b'x'; 1 << 20])))),
        ("no such entry", Box::pin(range(caller, at(u64::MAX)))),
        ("no such version", Box::pin(range(caller, version))),
        ("no request id", Box::pin(with_request_id(caller, Bytes::new()))),
        ("short request id", Box::pin(with_request_id(caller, random_bytes(23)))),
        ("long request id", Box::pin(with_request_id(caller, random_bytes(1 << 20)))),
        ("request id of 1970", Box::pin(with_request_id(caller, vec![0; 24].into()))),
        ("request id of the end of time", Box::pin(with_request_id(caller, vec![0xff; 24].into()))),
    ]
}

/// The same of uploads.
fn refused_uploads(caller: &Caller) -> Vec<(&'static str, Outcome<'_>)> {
    let commit = |change: fn(&mut v1::CommitUpload)| {
        let mut upload = commit_of(random_bytes(16), "/committed");
        change(&mut upload);
        async move {
            let message = v1::CommitUploadsRequest {
                request_id: request_id(),
                uploads: vec![upload],
                ..Default::default()
            };
            let answer = caller.files().commit_uploads(caller.request(message)).await?.into_inner();
            entry_of(answer.results).map(drop)
        }
    };
    vec![
        ("size", Box::pin(begin(caller, |upload| upload.size = u64::MAX))),
        ("cutter", Box::pin(begin(caller, |upload| upload.cutter = 99))),
        ("no cutter", Box::pin(begin(caller, |upload| upload.cutter = 0))),
        ("short upload id", Box::pin(begin(caller, |upload| upload.upload_id = vec![1; 15].into()))),
        ("long upload id", Box::pin(begin(caller, |upload| upload.upload_id = vec![1; 1 << 20].into()))),
        ("no chunks", Box::pin(begin(caller, |upload| upload.chunks = None))),
        (
            "chunks of no size",
            Box::pin(begin(caller, |upload| {
                upload.size = 0;
                upload.chunks = Some(v1::ChunkList { ids: vec![7; 32].into(), sizes: vec![0] });
            })),
        ),
        (
            "chunks of 4 GiB",
            Box::pin(begin(caller, |upload| {
                upload.size = u64::from(u32::MAX);
                upload.chunks = Some(v1::ChunkList { ids: vec![7; 32].into(), sizes: vec![u32::MAX] });
            })),
        ),
        (
            "half a chunk id",
            Box::pin(begin(caller, |upload| {
                upload.chunks = Some(v1::ChunkList { ids: vec![7; 16].into(), sizes: vec![100] });
            })),
        ),
        ("chunk for nothing", Box::pin(put(caller, Vec::new(), random_bytes(32), random_bytes(9)))),
        (
            "chunk for half an id",
            Box::pin(put(caller, vec![random_bytes(8)], random_bytes(32), random_bytes(9))),
        ),
        ("chunk without an id", Box::pin(put(caller, vec![random_bytes(16)], Bytes::new(), random_bytes(9)))),
        ("no base", Box::pin(commit(|upload| upload.base = None))),
        ("no such session", Box::pin(commit(|_upload| {}))),
        (
            "no such folder",
            Box::pin(commit(|upload| {
                upload.path.clear();
                upload.parent_id = u64::MAX;
                upload.name = "x".to_owned();
            })),
        ),
    ]
}

#[test]
fn hostile_values_are_refused_for_a_reason() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    let attack = async move {
        neighbour.put("/there", &[random_bytes(1000)]).await?;
        let mut wrong = Vec::new();
        let mut look = |what: String, outcome: Result<(), Status>| {
            let code = outcome.map_or_else(|status| status.code(), |()| Code::Ok);
            let bad = matches!(
                code,
                Code::Ok | Code::Internal | Code::Unknown | Code::Unavailable | Code::DeadlineExceeded
            );
            if bad {
                wrong.push(format!("{what}: {code:?}"));
            }
        };
        for path in bad_paths() {
            let shown: String = path.chars().take(20).collect();
            for (call, outcome) in
                timeout(ANSWER_TIME_MAX, of_path(&neighbour, &path)).await?.into_iter().enumerate()
            {
                look(format!("path {shown:?}, call {call}"), outcome);
            }
        }
        for (what, outcome) in refused_entries(&neighbour).into_iter().chain(refused_uploads(&neighbour)) {
            look(what.to_owned(), timeout(ANSWER_TIME_MAX, outcome).await?);
        }
        ensure!(wrong.is_empty(), "{wrong:#?}");
        ensure!(neighbour.get("/there").await?.len() == 1000);
        Ok(())
    };
    let ((), seen) = arena.watch("hostile values", attack)?;
    seen.survived()?;
    arena.finish()
}

#[test]
fn odd_values_that_are_legal_come_back_as_they_were() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    arena.prepare(async move {
        for (number, mtime_ns) in [i64::MIN, -1, 0, i64::MAX].into_iter().enumerate() {
            let path = format!("/time-{number}");
            create(&neighbour, v1::CreateEntry { mtime_ns, ..folder(&path) }).await?;
            let message = v1::GetEntryRequest { path };
            let entry = neighbour.files().get_entry(neighbour.request(message)).await?.into_inner().entry;
            ensure!(entry.is_some_and(|entry| entry.mtime_ns == mtime_ns), "{mtime_ns}");
        }
        for name in ["\u{1b}[2J", "a\nb", "\u{202e}gnp", " ", "-rf", "\u{7f}", "~", "con", "ﬀ"] {
            let path = format!("/{name}");
            neighbour.put(&path, &[random_bytes(10)]).await?;
            ensure!(neighbour.get(&path).await?.len() == 10, "{name:?}");
        }
        neighbour.put("/there", &[random_bytes(1000)]).await?;
        for (offset, length, expected) in
            [(0, u64::MAX, 1000), (999, u64::MAX, 1), (1, 2, 2), (u64::MAX, u64::MAX, 0), (1000, 0, 0)]
        {
            let path = "/there".to_owned();
            let message = v1::DownloadRequest { path, offset, length, ..v1::DownloadRequest::default() };
            let mut bytes = 0;
            // A range behind the end is empty, or refused for a reason.
            match neighbour.files().download(neighbour.request(message)).await {
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    while let Some(part) = stream.message().await? {
                        bytes += part.data.len();
                    }
                }
                Err(status) => ensure!(
                    matches!(status.code(), Code::InvalidArgument | Code::OutOfRange),
                    "{offset}, {length}: {status}"
                ),
            }
            ensure!(bytes == expected, "{offset}, {length}: {bytes} bytes");
        }
        Ok(())
    })?;
    arena.finish()
}

#[test]
fn bytes_that_are_no_message_are_answered() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    let gate = arena.gate.clone();
    let attack = async move {
        // A path that is not UTF-8, a field that never ends, a length beyond the end, nonsense, groups in groups.
        let bodies: [Vec<u8>; 5] = [
            vec![0x0a, 3, b'/', 0xff, 0xfe],
            vec![0xff; 64],
            vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
            random_bytes(4096).to_vec(),
            vec![0x0b; 100_000],
        ];
        for token in ["", &neighbour.token] {
            let mut client = H2Client::connect(&gate, ATTACKER, 1 << 20).await?;
            for method in
                ["Files/GetEntry", "Files/BeginUploads", "Files/PutChunks", "Sync/Apply", "Nothing/Here"]
            {
                for body in &bodies {
                    let mut request = client.start(method, token).await?;
                    // The gateway need not hear it to the end.
                    request.send(message_of(body), true).await.ok();
                    let ended = request.is_ended_within(ANSWER_TIME_MAX).await;
                    ensure!(ended, "{method}: {} bytes are not answered", body.len());
                }
            }
        }
        Ok(())
    };
    let ((), seen) = arena.watch("bytes that are no message", attack)?;
    seen.survived()?;
    arena.finish()
}
