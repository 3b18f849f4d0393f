//! Another account's request id, or one's own with other words: a memory of answers belongs to who asked what.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use chaos::attack::arena::Arena;
use chaos::attack::caller::{
    Caller, chunk_id, commit_of, entry_of, folder, random_bytes, request_id, session,
};
use chaos::serial::serial;
use proto::v1;
use tonic::Status;

async fn make(caller: &Caller, request_id: Bytes, path: &str) -> Result<v1::Entry, Status> {
    let message = v1::CreateEntriesRequest { request_id, entries: vec![folder(path)] };
    entry_of(caller.files().create_entries(caller.request(message)).await?.into_inner().results)
}

async fn is_there(caller: &Caller, path: &str) -> Result<bool> {
    let message = v1::GetEntryRequest { path: path.to_owned() };
    match caller.files().get_entry(caller.request(message)).await {
        Ok(_entry) => Ok(true),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
        Err(status) => Err(status.into()),
    }
}

/// Acknowledged means done: what was answered as made is there, by the name it was asked for.
async fn holds(caller: &Caller, what: &str, path: &str, made: Result<v1::Entry, Status>) -> Result<()> {
    let there = is_there(caller, path).await?;
    match made {
        Ok(entry) => {
            ensure!(there, "{what}: {path} was acknowledged and is not there");
            let name = path.rsplit('/').next().unwrap_or_default();
            ensure!(entry.name == name, "{what}: the answer names {:?}, not {name:?}", entry.name);
        }
        Err(status) => ensure!(!there, "{what}: {path} was refused ({status}) and is there"),
    }
    Ok(())
}

async fn folders(one: &Caller, other: &Caller) -> Result<()> {
    let id = request_id();
    make(one, id.clone(), "/of-one").await?;
    holds(other, "another's id", "/of-other", make(other, id.clone(), "/of-other").await).await?;
    ensure!(!is_there(one, "/of-other").await? && !is_there(other, "/of-one").await?);
    // The same account, other words.
    holds(one, "one's own id", "/second", make(one, id.clone(), "/second").await).await?;
    // The same words: the same answer, nothing done twice.
    let again = make(one, id, "/of-one").await;
    ensure!(again.is_ok_and(|entry| entry.name == "of-one"), "a retry is not answered as before");
    Ok(())
}

async fn moves_and_deletes(one: &Caller, other: &Caller) -> Result<()> {
    for caller in [one, other] {
        for path in ["/m", "/d"] {
            make(caller, request_id(), path).await?;
        }
    }
    let id = request_id();
    let rename = |to: &str| v1::MoveEntryRequest {
        request_id: id.clone(),
        from: "/m".to_owned(),
        to: to.to_owned(),
        replace: false,
    };
    one.files().move_entry(one.request(rename("/moved-of-one"))).await?;
    let moved = other.files().move_entry(other.request(rename("/moved-of-other"))).await;
    let moved = moved.map(|answer| answer.into_inner().entry.unwrap_or_default());
    holds(other, "a move with another's id", "/moved-of-other", moved).await?;

    let id = request_id();
    let delete = || v1::DeleteEntryRequest { request_id: id.clone(), path: "/d".to_owned(), recursive: true };
    one.files().delete_entry(one.request(delete())).await?;
    let deleted = other.files().delete_entry(other.request(delete())).await.is_ok();
    ensure!(
        deleted != is_there(other, "/d").await?,
        "a delete with another's id was answered with {deleted} and did the opposite"
    );
    Ok(())
}

async fn commits(one: &Caller, other: &Caller) -> Result<()> {
    let id = request_id();
    let mut answers = Vec::new();
    for (caller, path) in [(one, "/file-of-one"), (other, "/file-of-other")] {
        let data = random_bytes(1000);
        let upload = session(path, &[(chunk_id(&data), 1000)]);
        let upload_id = upload.upload_id.clone();
        caller.begin(upload).await?;
        caller.put_chunks(&upload_id, &[data]).await?;
        let message = v1::CommitUploadsRequest {
            request_id: id.clone(),
            uploads: vec![commit_of(upload_id, path)],
            ..Default::default()
        };
        let answer = caller.files().commit_uploads(caller.request(message)).await;
        answers.push(answer.and_then(|answer| entry_of(answer.into_inner().results)));
    }
    let second = answers.pop().context("two answers")?;
    holds(other, "a commit with another's id", "/file-of-other", second).await
}

async fn applies(one: &Caller, other: &Caller) -> Result<()> {
    let id = request_id();
    for (caller, name) in [(one, "applied-of-one"), (other, "applied-of-other")] {
        let place = Some(v1::Place { parent_id: 1, name: name.to_owned() });
        let action = v1::action::Action::CreateFolder(v1::CreateFolderAt { place, mode: 0o755, mtime_ns: 0 });
        let message = v1::ApplyRequest {
            request_id: id.clone(),
            actions: vec![v1::Action { action: Some(action) }],
            ..Default::default()
        };
        let answer = caller.sync().apply(caller.request(message)).await;
        let made = answer.and_then(|answer| {
            match answer.into_inner().results.into_iter().next().and_then(|result| result.result) {
                Some(v1::apply_result::Result::Entry(entry)) => Ok(entry),
                other => Err(Status::aborted(format!("{other:?}"))),
            }
        });
        holds(caller, "actions with another's id", &format!("/{name}"), made).await?;
    }
    Ok(())
}

#[test]
fn a_request_id_answers_only_who_sent_it_and_what_it_was() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let (one, other) = (arena.neighbour("one", 0)?, arena.neighbour("other", 0)?);
    arena.prepare(async move {
        let mut wrong = Vec::new();
        for (what, result) in [
            ("folders", folders(&one, &other).await),
            ("moves and deletes", moves_and_deletes(&one, &other).await),
            ("commits", commits(&one, &other).await),
            ("actions", applies(&one, &other).await),
        ] {
            if let Err(error) = result {
                wrong.push(format!("{what}: {error:#}"));
            }
        }
        ensure!(wrong.is_empty(), "{wrong:#?}");
        Ok(())
    })?;
    arena.finish()
}
