//! What a neighbour can make of entries that have no bytes: symlinks, empty files, versions, lists.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use bytes::Bytes;
use chaos::attack::arena::Arena;
use chaos::attack::caller::{Caller, commit_of, random_bytes, request_id, session};
use chaos::disk::allocated_bytes;
use chaos::serial::serial;
use chaos::size::Size;
use proto::v1;

use crate::uploads::unknown_chunks;

const MIB: u64 = 1 << 20;

/// What the metadata of one node takes on its disk, at most.
fn metadata_bytes(folders: &[PathBuf]) -> Result<u64> {
    let bytes = folders.iter().map(|folder| allocated_bytes(folder)).collect::<Result<Vec<u64>>>()?;
    Ok(bytes.into_iter().max().unwrap_or(0))
}

/// Makes symlinks with long targets until one is refused or all are there; gives how many are.
pub(crate) async fn symlinks(caller: &Caller, count: usize) -> Result<usize> {
    const TOGETHER: usize = 500;
    let mut made = 0;
    for batch in 0..count.div_ceil(TOGETHER) {
        let link = |place| v1::CreateEntry {
            path: format!("/link-{batch}-{place}"),
            kind: v1::EntryKind::Symlink.into(),
            symlink_target: Bytes::from(vec![b'x'; 4000]),
            mode: 0o777,
            ..v1::CreateEntry::default()
        };
        let entries = (0..TOGETHER).map(link).collect();
        let message = v1::CreateEntriesRequest { request_id: request_id(), entries };
        let answer = caller.files().create_entries(caller.request(message)).await;
        let Ok(answer) = answer else { break };
        let results = answer.into_inner().results;
        let good = results.iter().filter(|result| is_entry(result)).count();
        made += good;
        if good < TOGETHER {
            break;
        }
    }
    Ok(made)
}

fn is_entry(result: &v1::EntryResult) -> bool {
    matches!(result.result, Some(v1::entry_result::Result::Entry(_)))
}

/// Commits empty files, at as many names or as so many versions of one; gives how many commits went through.
async fn empty_files(caller: &Caller, count: usize, one_name: bool) -> Result<usize> {
    const TOGETHER: usize = 1000;
    let mut made = 0;
    for batch in 0..count.div_ceil(TOGETHER) {
        let uploads: Vec<v1::BeginUpload> = (0..TOGETHER).map(|_| session("/empty", &[])).collect();
        let ids: Vec<Bytes> = uploads.iter().map(|upload| upload.upload_id.clone()).collect();
        let begin = v1::BeginUploadsRequest { request_id: request_id(), uploads };
        let Ok(_begun) = caller.files().begin_uploads(caller.request(begin)).await else { break };
        let commit = |(place, id): (usize, Bytes)| {
            let path = if one_name { "/one".to_owned() } else { format!("/empty-{batch}-{place}") };
            commit_of(id, &path)
        };
        let uploads = ids.into_iter().enumerate().map(commit).collect();
        let message = v1::CommitUploadsRequest { request_id: request_id(), uploads, ..Default::default() };
        let Ok(answer) = caller.files().commit_uploads(caller.request(message)).await else { break };
        let good = answer.into_inner().results.iter().filter(|result| is_entry(result)).count();
        made += good;
        if good < TOGETHER {
            break;
        }
    }
    Ok(made)
}

/// Opens sessions with long lists of chunks that nobody sends, until one is refused; gives those that began.
async fn long_lists(caller: &Caller, count: usize) -> Result<Vec<Bytes>> {
    let mut begun = Vec::new();
    for number in 0..count {
        let upload = session(&format!("/list-{number}"), &unknown_chunks(100_000, 16 << 10));
        let upload_id = upload.upload_id.clone();
        if caller.begin(upload).await.is_err() {
            break;
        }
        begun.push(upload_id);
    }
    Ok(begun)
}

#[derive(Clone, Copy)]
enum What {
    Symlinks,
    EmptyFiles,
    Versions,
}

/// One attack on an account of its own with a quota of 1 MiB: it has to come to an end before `count`.
fn ends_at_the_quota(name: &str, what: What, count: usize) -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", MIB)?;
    let folders: Vec<PathBuf> =
        arena.cluster.roles("meta").iter().filter_map(|role| role.data_dir.clone()).collect();
    let before = metadata_bytes(&folders)?;
    let attack = async move {
        let made = match what {
            What::Symlinks => symlinks(&neighbour, count).await?,
            What::EmptyFiles => empty_files(&neighbour, count, false).await?,
            What::Versions => empty_files(&neighbour, count, true).await?,
        };
        let used = neighbour.used_bytes().await?;
        // The account is full, and not stuck: its owner reads, and makes room.
        neighbour.files().list_trash(neighbour.request(v1::ListTrashRequest::default())).await?;
        Ok((made, used))
    };
    let ((made, used), seen) = arena.watch(name, attack)?;
    let grown = metadata_bytes(&folders)?.saturating_sub(before);
    eprintln!(
        "{name}: {made} of {count} made, {used} bytes used, a metadata disk grew by {} MiB",
        grown / MIB
    );
    ensure!(made < count, "{name}: all {count} were made at a quota of 1 MiB; used {used} bytes");
    ensure!(used > 0, "{name}: {made} were made and nothing counts as used");
    ensure!(grown < 150 * MIB, "{name}: a metadata disk grew by {} MiB", grown / MIB);
    seen.survived()?;
    arena.finish()
}

#[test]
fn symlinks_are_charged() -> Result<()> {
    ends_at_the_quota("symlinks of 4,000 bytes", What::Symlinks, Size::chosen().pick(3000, 45_000, 45_000))
}

#[test]
fn empty_files_are_charged() -> Result<()> {
    ends_at_the_quota("empty files", What::EmptyFiles, Size::chosen().pick(10_000, 202_000, 202_000))
}

#[test]
fn versions_are_charged_or_bounded() -> Result<()> {
    ends_at_the_quota("versions of one file", What::Versions, Size::chosen().pick(10_000, 112_000, 112_000))
}

#[test]
fn lists_of_open_sessions_are_bounded_without_a_quota_too() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    let sessions = Size::chosen().pick(40, 120, 120);
    let folders: Vec<PathBuf> =
        arena.cluster.roles("meta").iter().filter_map(|role| role.data_dir.clone()).collect();
    let before = metadata_bytes(&folders)?;
    let attacker = neighbour.clone();
    let attack = async move { long_lists(&attacker, sessions).await };
    let (begun, seen) = arena.watch("sessions of 100,000 chunks", attack)?;
    let grown = metadata_bytes(&folders)?.saturating_sub(before);
    eprintln!(
        "{} sessions of 100,000 chunks began; a metadata disk grew by {} MiB",
        begun.len(),
        grown / MIB
    );
    ensure!(begun.len() < sessions, "all {sessions} sessions of 100,000 chunks that nobody sends began");
    seen.survived()?;
    // Whoever gives them up can store again.
    arena.prepare(async move {
        for upload_id in begun {
            let message = v1::AbortUploadRequest { request_id: request_id(), upload_id };
            neighbour.files().abort_upload(neighbour.request(message)).await?;
        }
        neighbour.put("/honest", &[random_bytes(1000)]).await?;
        Ok(())
    })?;
    arena.finish()
}
