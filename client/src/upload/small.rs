//! Puts a unit of small files together: one begin, their chunks, one commit.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use engine::ids::ChunkId;
use engine::manifest::ManifestEntry;
use proto::{CHUNK_UPLOADS_MAX, v1};

use super::chunk_stream::{OutgoingChunk, PutFailure, outcome};
use super::read::{FileStamp, OpenFile, ReadFileError, cut_bytes};
use super::remote::PlannedFile;
use super::session::{Patience, Session, abort, choose_cutter, commit_all};
use super::{Context, unchanged};
use crate::call_error::CallError;

/// A small file that is read, cut and named.
struct Small {
    session: Session,
    bytes: Bytes,
}

/// Puts the files; what comes of each goes into the report.
pub(crate) async fn put(context: &Arc<Context>, files: Vec<PlannedFile>) {
    let bytes: u64 = files.iter().map(|file| file.file.size).sum();
    let mut small = read_all(context, files).await;
    send_all(context, &mut small).await;
    if !small.is_empty() {
        commit_all(context, small.into_iter().map(|small| small.session).collect()).await;
    }
    context.progress.advanced(bytes);
}

async fn read_all(context: &Arc<Context>, files: Vec<PlannedFile>) -> Vec<Small> {
    // Never closed.
    let permit = context.hashing.acquire().await;
    let read = tokio::task::spawn_blocking(move || {
        files.into_iter().map(|file| (read(&file), file)).collect::<Vec<_>>()
    });
    let read = read.await;
    drop(permit);
    let read = read.unwrap_or_else(|error| {
        context.fail(std::path::Path::new(""), format!("reading files panicked: {error}"));
        Vec::new()
    });
    let mut small = Vec::with_capacity(read.len());
    for (result, file) in read {
        match result {
            Ok((stamp, bytes, entries)) => match Session::new(file, stamp, entries) {
                Ok(session) => small.push(Small { session, bytes }),
                Err(error) => context.stop_if_fatal(&error),
            },
            Err(error) => context.fail(&file.file.local, error.to_string()),
        }
    }
    small
}

/// Takes out the files that are there already as they are here, and that the server lacks nothing of; gives its answers
/// for the others.
async fn take_unchanged(
    context: &Context,
    small: &mut Vec<Small>,
    begun: Vec<v1::BegunUpload>,
) -> Vec<v1::BegunUpload> {
    let (mut there, mut others, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for (small, answer) in small.drain(..).zip(begun) {
        // Refused for good, such as for a full quota: no less is it there.
        let again = answer.error.as_ref().is_some_and(|error| CallError::from_item(error).is_transient());
        if small.session.same && answer.missing.is_empty() && !again {
            there.push(small.session);
        } else {
            others.push(small);
            answers.push(answer);
        }
    }
    *small = others;
    unchanged::settle(context, there).await;
    answers
}

fn read(file: &PlannedFile) -> Result<(FileStamp, Bytes, Vec<ManifestEntry>), ReadFileError> {
    let mut open = OpenFile::open(&file.file.local)?;
    if open.stamp.size > super::batch::SMALL_FILE_BYTES_MAX {
        // It has grown since the walk, past what may be held in memory.
        return Err(ReadFileError::Changed);
    }
    let bytes = open.read_whole()?;
    let entries = cut_bytes(&bytes, choose_cutter(file.previous, open.stamp.size));
    Ok((open.stamp, bytes, entries))
}

/// Sends what the server lacks until nothing is missing; takes out the files that fail.
async fn send_all(context: &Context, small: &mut Vec<Small>) {
    let mut patience = Patience::new();
    while !small.is_empty() {
        let begun =
            context.api.begin_uploads(small.iter().map(|small| small.session.begin()).collect()).await;
        let begun = match begun {
            Ok(begun) => begun,
            Err(error) => {
                small.drain(..).for_each(|small| context.fail_call(small.session.local(), &error));
                return;
            }
        };
        let begun = take_unchanged(context, small, begun).await;
        let mut failures: HashMap<usize, PutFailure> = HashMap::new();
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut places = HashMap::new();
        for (index, answer) in begun.into_iter().enumerate() {
            if let Some(error) = &answer.error {
                failures.insert(index, PutFailure::Refused(CallError::from_item(error)));
            } else if let Err(error) =
                collect(index, &small[index], &answer.missing, &mut wanted, &mut places)
            {
                failures.insert(index, PutFailure::Refused(error));
            }
        }
        let sent = send(context, small, wanted, &mut failures).await;
        if sent {
            patience.reset();
        }
        let Some(worst) = worst(&failures) else { return };
        let again = tokio::select! {
            again = patience.wait(&worst) => again,
            () = context.stop.cancelled() => false,
        };
        drop_failed(context, small, &failures, again).await;
    }
}

/// A chunk to be sent, and the files that it is for.
struct Wanted {
    id: ChunkId,
    data: Bytes,
    files: Vec<usize>,
}

fn collect(
    index: usize,
    small: &Small,
    missing: &[u32],
    wanted: &mut Vec<Wanted>,
    places: &mut HashMap<ChunkId, usize>,
) -> Result<(), CallError> {
    let mut missing = missing.to_vec();
    missing.sort_unstable();
    let mut offset = 0;
    let mut next = missing.iter().map(|index| *index as usize).peekable();
    for (at, entry) in small.session.entries.iter().enumerate() {
        let size = usize::try_from(entry.size).unwrap_or(usize::MAX);
        if next.next_if_eq(&at).is_some() {
            let place = *places.entry(entry.id).or_insert_with(|| {
                wanted.push(Wanted {
                    id: entry.id,
                    data: small.bytes.slice(offset..offset + size),
                    files: Vec::new(),
                });
                wanted.len() - 1
            });
            wanted[place].files.push(index);
        }
        offset += size;
    }
    match next.next() {
        None => Ok(()),
        Some(index) => Err(CallError::protocol(format!("chunk {index} was asked for"))),
    }
}

/// Sends chunks, each once for as many of its files as may be. Says whether any was acknowledged.
async fn send(
    context: &Context,
    small: &[Small],
    wanted: Vec<Wanted>,
    failures: &mut HashMap<usize, PutFailure>,
) -> bool {
    let mut waiting = Vec::with_capacity(wanted.len());
    for Wanted { id, data, files } in &wanted {
        for files in files.chunks(CHUNK_UPLOADS_MAX) {
            let upload_ids = files.iter().map(|index| small[*index].session.upload_id.clone()).collect();
            let outgoing = OutgoingChunk { id: *id, data: data.clone(), upload_ids };
            waiting.push((context.chunks.put(outgoing).await, files, data.len() as u64));
        }
    }
    let mut any = false;
    for (receiver, files, bytes) in waiting {
        match outcome(receiver).await {
            Ok(()) => {
                any = true;
                let mut report = context.report();
                report.bytes_sent += bytes;
                report.chunks_sent += 1;
            }
            Err(failure) => failures.extend(files.iter().map(|index| (*index, failure.clone()))),
        }
    }
    any
}

/// The failure that decides how long to wait: a permanent one only if there is no other.
fn worst(failures: &HashMap<usize, PutFailure>) -> Option<PutFailure> {
    let transient = failures.values().find(|failure| failure.error().is_transient());
    transient.or_else(|| failures.values().next()).cloned()
}

/// Takes out the files whose failure is permanent, and the others too if there shall be no other try.
async fn drop_failed(
    context: &Context,
    small: &mut Vec<Small>,
    failures: &HashMap<usize, PutFailure>,
    again: bool,
) {
    let mut kept = Vec::with_capacity(small.len());
    for (index, small) in small.drain(..).enumerate() {
        match failures.get(&index) {
            Some(failure) if !again || !failure.error().is_transient() => {
                context.fail_call(small.session.local(), failure.error());
                abort(context, &small.session.upload_id).await;
            }
            _ => kept.push(small),
        }
    }
    *small = kept;
}
