//! Another account's ids in every place an id goes: the answer is that of an id that does not exist, to the letter;
//! and positions and tokens that were bent.

use std::future::Future;
use std::pin::Pin;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use chaos::attack::arena::Arena;
use chaos::attack::caller::{
    Caller, chunk_id, commit_of, entry_of, item_status, random_16, random_bytes, request_id, session,
};
use chaos::attack::gate::{ATTACKER, Gate};
use chaos::serial::serial;
use proto::v1;
use proto::v1::action::Action;
use tonic::{Code, Status};

/// Ids of one account, or of nobody.
#[derive(Clone, Debug)]
struct Ids {
    file: u64,
    version: u64,
    folder: u64,
    trash: u64,
    upload: Bytes,
    chunk: Bytes,
    device: Bytes,
}

const FILE: &str = "/victim/file";

impl Ids {
    async fn of(victim: &Caller) -> Result<Self> {
        let folder = victim.make_folder("/victim").await?.id;
        let data = random_bytes(2000);
        let file = victim.put(FILE, &[data]).await?;
        victim.make_folder("/deleted").await?;
        let delete =
            v1::DeleteEntryRequest { request_id: request_id(), path: "/deleted".to_owned(), recursive: true };
        let trash = victim.files().delete_entry(victim.request(delete)).await?.into_inner().trash_id;
        let chunk = random_bytes(1000);
        let upload = session("/victim/open", &[(chunk_id(&chunk), 1000)]);
        let upload_id = upload.upload_id.clone();
        victim.begin(upload).await?;
        let who = victim.accounts().who_am_i(victim.request(v1::WhoAmIRequest {})).await?.into_inner();
        Ok(Self {
            file: file.id,
            version: file.version,
            folder,
            trash,
            upload: upload_id,
            chunk,
            device: who.device,
        })
    }

    /// The same kinds of ids, which nobody has.
    fn of_nobody(&self) -> Self {
        Self {
            file: self.file + 1_000_000,
            version: self.version + 1_000_000,
            folder: self.folder + 1_000_000,
            trash: self.trash + 1_000_000,
            upload: random_16(),
            chunk: self.chunk.clone(),
            device: random_bytes(8),
        }
    }
}

type Outcome<'a> = Pin<Box<dyn Future<Output = Result<String, Status>> + Send + 'a>>;

async fn act(caller: &Caller, action: Action) -> Result<String, Status> {
    match caller.apply(vec![action]).await?.into_iter().next().and_then(|result| result.result) {
        Some(v1::apply_result::Result::Error(error)) => Err(item_status(error)),
        other => Ok(format!("{other:?}")),
    }
}

fn place(parent_id: u64, name: &str) -> Option<v1::Place> {
    Some(v1::Place { parent_id, name: name.to_owned() })
}

async fn put(caller: &Caller, ids: &Ids) -> Result<String, Status> {
    caller.put_chunks(&ids.upload, std::slice::from_ref(&ids.chunk)).await.map(|()| "taken".to_owned())
}

async fn commit(caller: &Caller, upload: v1::CommitUpload) -> Result<String, Status> {
    let message =
        v1::CommitUploadsRequest { request_id: request_id(), uploads: vec![upload], ..Default::default() };
    let answer = caller.files().commit_uploads(caller.request(message)).await?.into_inner();
    entry_of(answer.results).map(|entry| format!("{entry:?}"))
}

async fn download(caller: &Caller, message: v1::DownloadRequest) -> Result<String, Status> {
    let mut stream = caller.files().download(caller.request(message)).await?.into_inner();
    let mut text = String::new();
    while let Some(part) = stream.message().await? {
        text.push_str(&format!("{part:?}"));
    }
    Ok(text)
}

async fn download_many(caller: &Caller, ids: &Ids) -> Result<String, Status> {
    let entries = vec![v1::EntryVersion { entry_id: ids.file, version: ids.version }];
    let message = v1::DownloadManyRequest { paths: Vec::new(), entries };
    let mut stream = caller.files().download_many(caller.request(message)).await?.into_inner();
    let mut text = String::new();
    while let Some(part) = stream.message().await? {
        if let Some(error) = part.error {
            return Err(item_status(error));
        }
        text.push_str(&format!("{part:?}"));
    }
    Ok(text)
}

async fn manifest(caller: &Caller, ids: &Ids) -> Result<String, Status> {
    let message = v1::GetManifestRequest { entry_id: ids.file, version: 0 };
    let mut stream = caller.sync().get_manifest(caller.request(message)).await?.into_inner();
    Ok(format!("{:?}", stream.message().await?))
}

/// A session that names a file as what may hold its chunks: which are missing.
async fn hinted(caller: &Caller, ids: &Ids, data_of_file: &Bytes) -> Result<String, Status> {
    let size = u32::try_from(data_of_file.len()).unwrap_or(0);
    let mut upload = session("/mine", &[(chunk_id(data_of_file), size)]);
    upload.entry_id = ids.file;
    upload.hint_entry_id = ids.file;
    Ok(format!("{:?}", caller.begin(upload).await?))
}

/// Commits a session of one's own into a folder.
async fn commit_into(caller: &Caller, ids: &Ids) -> Result<String, Status> {
    let data = random_bytes(500);
    let upload = session("/mine", &[(chunk_id(&data), 500)]);
    let upload_id = upload.upload_id.clone();
    caller.begin(upload).await?;
    caller.put_chunks(&upload_id, &[data]).await?;
    let (parent_id, name) = (ids.folder, "into".to_owned());
    commit(caller, v1::CommitUpload { parent_id, name, path: String::new(), ..commit_of(upload_id, "") })
        .await
}

async fn upload_status(caller: &Caller, ids: &Ids) -> Result<String, Status> {
    let message = v1::UploadStatusRequest { upload_id: ids.upload.clone() };
    Ok(format!("{:?}", caller.files().upload_status(caller.request(message)).await?.into_inner()))
}

async fn abort(caller: &Caller, ids: &Ids) -> Result<String, Status> {
    let message = v1::AbortUploadRequest { request_id: request_id(), upload_id: ids.upload.clone() };
    Ok(format!("{:?}", caller.files().abort_upload(caller.request(message)).await?.into_inner()))
}

async fn below(caller: &Caller, ids: &Ids) -> Result<String, Status> {
    let message = v1::ListBelowRequest {
        entry_id: ids.folder,
        page: Bytes::new(),
        count_max: 0,
        ..v1::ListBelowRequest::default()
    };
    Ok(format!("{:?}", caller.sync().list_below(caller.request(message)).await?.into_inner()))
}

async fn restore_trash(caller: &Caller, ids: &Ids) -> Result<String, Status> {
    let (trash_id, to) = (ids.trash, "/stolen".to_owned());
    let message = v1::RestoreTrashRequest { request_id: request_id(), trash_id, to };
    Ok(format!("{:?}", caller.files().restore_trash(caller.request(message)).await?.into_inner()))
}

async fn purge_trash(caller: &Caller, ids: &Ids) -> Result<String, Status> {
    let message = v1::PurgeTrashRequest { request_id: request_id(), trash_id: ids.trash };
    Ok(format!("{:?}", caller.files().purge_trash(caller.request(message)).await?.into_inner()))
}

async fn revoke(caller: &Caller, ids: &Ids) -> Result<String, Status> {
    let message = v1::RevokeDeviceRequest { request_id: request_id(), device: ids.device.clone() };
    Ok(format!("{:?}", caller.accounts().revoke_device(caller.request(message)).await?.into_inner()))
}

/// An action on a file, or in a folder.
fn actions(ids: &Ids) -> [(&'static str, Action); 5] {
    let (entry_id, from) = (ids.file, place(ids.folder, "file"));
    let make = v1::CreateFolderAt { place: place(ids.folder, "made"), mode: 0o755, mtime_ns: 0 };
    let link = v1::CreateSymlinkAt {
        place: place(ids.folder, "linked"),
        target: Bytes::from_static(b"x"),
        mode: 0o777,
        mtime_ns: 0,
    };
    let file_move = v1::MoveAt { entry_id, from: from.clone(), to: place(1, "stolen") };
    let delete = v1::DeleteAt { entry_id, from, version: ids.version, ..v1::DeleteAt::default() };
    let set = v1::SetAttributesAt { entry_id, mode: 0o777, mtime_ns: 1, version: ids.version };
    [
        ("create a folder in", Action::CreateFolder(make)),
        ("create a symlink in", Action::CreateSymlink(link)),
        ("move", Action::Move(file_move)),
        ("delete", Action::Delete(delete)),
        ("attributes", Action::SetAttributes(set)),
    ]
}

/// Every place an id goes, with the answer to it.
fn calls<'a>(caller: &'a Caller, ids: &'a Ids, data: &'a Bytes) -> Vec<(&'static str, Outcome<'a>)> {
    let by_id =
        |version| v1::DownloadRequest { entry_id: ids.file, version, ..v1::DownloadRequest::default() };
    let mut calls: Vec<(&'static str, Outcome<'a>)> = vec![
        ("download by id", Box::pin(download(caller, by_id(0)))),
        ("download of a version", Box::pin(download(caller, by_id(ids.version)))),
        ("download many", Box::pin(download_many(caller, ids))),
        ("manifest", Box::pin(manifest(caller, ids))),
        ("hint of an upload", Box::pin(hinted(caller, ids, data))),
        ("chunks for a session", Box::pin(put(caller, ids))),
        ("commit of a session", Box::pin(commit(caller, commit_of(ids.upload.clone(), "/stolen")))),
        ("commit into a folder", Box::pin(commit_into(caller, ids))),
        ("status of a session", Box::pin(upload_status(caller, ids))),
        ("abort of a session", Box::pin(abort(caller, ids))),
        ("below a folder", Box::pin(below(caller, ids))),
        ("restore from the trash", Box::pin(restore_trash(caller, ids))),
        ("purge of the trash", Box::pin(purge_trash(caller, ids))),
        ("revoke a device", Box::pin(revoke(caller, ids))),
    ];
    for (what, action) in actions(ids) {
        calls.push((what, Box::pin(act(caller, action))));
    }
    calls
}

/// What was answered, with numbers and ids made equal.
fn shape(outcome: Result<String, Status>) -> String {
    let text = match outcome {
        Ok(text) => format!("Ok {text}"),
        Err(status) => format!("{:?} {}", status.code(), status.message()),
    };
    let mut shape = String::new();
    for word in text.split_inclusive(|character: char| !character.is_ascii_alphanumeric()) {
        let (bare, end) = match word.char_indices().next_back() {
            Some((at, last)) if !last.is_ascii_alphanumeric() => word.split_at(at),
            _ => (word, ""),
        };
        let is_id = bare.chars().any(|character| character.is_ascii_digit());
        shape.push_str(if is_id { "#" } else { bare });
        shape.push_str(end);
    }
    shape
}

async fn intact(victim: &Caller, ids: &Ids, data: &Bytes) -> Result<()> {
    ensure!(victim.get(FILE).await? == *data, "the victim's file was changed");
    let message = v1::GetEntryRequest { path: FILE.to_owned() };
    let entry = victim.files().get_entry(victim.request(message)).await?.into_inner().entry;
    ensure!(entry.is_some_and(|entry| entry.mode == 0o644), "the victim's attributes were changed");
    victim.put_chunks(&ids.upload, std::slice::from_ref(&ids.chunk)).await.context("the open session")?;
    victim.commit(ids.upload.clone(), "/victim/open").await.context("the open session")?;
    let message =
        v1::RestoreTrashRequest { request_id: request_id(), trash_id: ids.trash, to: String::new() };
    victim.files().restore_trash(victim.request(message)).await.context("the trash")?;
    Ok(())
}

#[test]
fn anothers_ids_are_those_of_nobody() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let (victim, attacker) = (arena.neighbour("victim", 0)?, arena.neighbour("attacker", 0)?);
    arena.prepare(async move {
        let ids = Ids::of(&victim).await?;
        let data: Bytes = victim.get(FILE).await?.into();
        let nobodys = ids.of_nobody();
        let mut told = Vec::new();
        let pairs = calls(&attacker, &ids, &data).into_iter().zip(calls(&attacker, &nobodys, &data));
        for ((what, of_victim), (_same, of_nobody)) in pairs {
            let (of_victim, of_nobody) = (shape(of_victim.await), shape(of_nobody.await));
            if of_victim != of_nobody {
                told.push(format!("{what}: {of_victim:?}, of nobody {of_nobody:?}"));
            }
        }
        ensure!(told.is_empty(), "another's ids are told from those of nobody: {told:#?}");
        intact(&victim, &ids, &data).await?;
        let message = v1::ListFolderRequest { path: "/".to_owned(), ..v1::ListFolderRequest::default() };
        let own = attacker.files().list_folder(attacker.request(message)).await?.into_inner().entries;
        ensure!(own.is_empty(), "the attacker has got {own:?}");
        Ok(())
    })?;
    arena.finish()
}

async fn bent_positions(victim: &Caller, attacker: &Caller) -> Result<()> {
    for number in 0..5 {
        victim.make_folder(&format!("/{number}")).await?;
    }
    let message = v1::ChangesRequest { count_max: 2, ..v1::ChangesRequest::default() };
    let cursor = victim.sync().changes(victim.request(message)).await?.into_inner().cursor;
    let message = v1::ListBelowRequest {
        entry_id: 1,
        page: Bytes::new(),
        count_max: 2,
        ..v1::ListBelowRequest::default()
    };
    let page = victim.sync().list_below(victim.request(message)).await?.into_inner().next_page;
    ensure!(!page.is_empty() && !cursor.is_empty(), "there is more than one page");

    let changes = async |caller: &Caller, cursor: Bytes| {
        let message = v1::ChangesRequest { cursor, count_max: 2, ..v1::ChangesRequest::default() };
        caller.sync().changes(caller.request(message)).await.map(drop)
    };
    let below = async |caller: &Caller, page: Bytes| {
        let message =
            v1::ListBelowRequest { entry_id: 1, page, count_max: 2, ..v1::ListBelowRequest::default() };
        caller.sync().list_below(caller.request(message)).await.map(drop)
    };
    changes(victim, cursor.clone()).await?;
    below(victim, page.clone()).await?;
    let refused = |what: &str, outcome: Result<(), Status>| {
        let code = outcome.map_or_else(|status| status.code(), |()| Code::Ok);
        ensure!(code == Code::InvalidArgument, "{what}: {code:?}");
        Ok(())
    };
    refused("another's cursor", changes(attacker, cursor.clone()).await)?;
    refused("another's page", below(attacker, page.clone()).await)?;
    refused("a page as a cursor", changes(victim, page.clone()).await)?;
    refused("a cursor as a page", below(victim, cursor.clone()).await)?;
    refused("a long cursor", changes(victim, random_bytes(1 << 20)).await)?;
    for at in 0..cursor.len() {
        let mut bent = cursor.to_vec();
        bent[at] ^= 1 << (at % 8);
        refused("a bent cursor", changes(victim, bent.into()).await)?;
        refused("a cut cursor", changes(victim, cursor.slice(..at.max(1))).await)?;
    }
    for at in 0..page.len() {
        let mut bent = page.to_vec();
        bent[at] ^= 1 << (at % 8);
        refused("a bent page", below(victim, bent.into()).await)?;
    }
    Ok(())
}

async fn bent_tokens(gate: &Gate, victim: &Caller) -> Result<()> {
    let mut texts = Vec::new();
    let mut look = async |token: String| -> Result<()> {
        let caller = Caller::connect(gate, ATTACKER, &token).await?;
        match caller.accounts().who_am_i(caller.request(v1::WhoAmIRequest {})).await {
            Ok(_who) => anyhow::bail!("a bent token is taken"),
            Err(status) => {
                ensure!(status.code() == Code::Unauthenticated, "{status}");
                texts.push(status.message().to_owned());
            }
        }
        Ok(())
    };
    for at in 4..victim.token.len() {
        let mut bent: Vec<char> = victim.token.chars().collect();
        bent[at] = if bent[at] == 'A' { 'B' } else { 'A' };
        look(bent.into_iter().collect()).await?;
    }
    look(victim.token[..victim.token.len() - 1].to_owned()).await?;
    look(format!("{}A", victim.token)).await?;
    look("x".repeat(4000)).await?;
    texts.dedup();
    ensure!(texts.len() == 1, "bent tokens are told apart: {texts:?}");
    Ok(())
}

#[test]
fn bent_positions_and_tokens_are_refused_alike() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let (victim, attacker) = (arena.neighbour("victim", 0)?, arena.neighbour("attacker", 0)?);
    let gate = arena.gate.clone();
    arena.prepare(async move {
        bent_positions(&victim, &attacker).await?;
        bent_tokens(&gate, &victim).await
    })?;
    arena.finish()
}
