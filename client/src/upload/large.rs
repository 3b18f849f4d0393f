//! Puts one large file: cuts and names it in a first pass, then reads again and sends what the server lacks.

use std::sync::Arc;

use bytes::Bytes;
use engine::manifest::ManifestEntry;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::chunk_stream::{OutgoingChunk, PutFailure, outcome};
use super::read::{OpenFile, ReadFileError};
use super::remote::PlannedFile;
use super::session::{Patience, Session, abort, choose_cutter, commit_all};
use super::{Context, unchanged};
use crate::call_error::CallError;

/// Chunks read ahead of the stream.
const READ_AHEAD_CHUNKS: usize = 2;
/// Chunks in a list that one message can hold, with room to spare.
pub(crate) const CHUNKS_MAX: usize = 500_000;

/// Why a large file was not put.
#[derive(Debug, thiserror::Error)]
enum PutLargeError {
    #[error(transparent)]
    Read(#[from] ReadFileError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("it has {chunks} chunks, and files of more than {CHUNKS_MAX} cannot be put yet")]
    TooManyChunks { chunks: usize },
    #[error("the upload was stopped")]
    Stopped,
}

/// Puts the file; what comes of it goes into the report.
pub(crate) async fn put(context: &Arc<Context>, file: PlannedFile) {
    let local = file.file.local.clone();
    let mut advance = Advance { context, left: file.file.size };
    if let Err(error) = put_file(context, file, &mut advance).await {
        match &error {
            PutLargeError::Call(call) => context.fail_call(&local, call),
            _ => context.fail(&local, error.to_string()),
        }
    }
}

/// Tells the progress of one file: all of its bytes in the end, whatever happens.
struct Advance<'a> {
    context: &'a Context,
    left: u64,
}

impl Advance<'_> {
    fn by(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        self.context.progress.advanced(bytes);
    }
}

impl Drop for Advance<'_> {
    fn drop(&mut self) {
        self.by(self.left);
    }
}

async fn put_file(
    context: &Arc<Context>,
    file: PlannedFile,
    advance: &mut Advance<'_>,
) -> Result<(), PutLargeError> {
    let (open, entries) = cut(context, &file).await?;
    if entries.len() > CHUNKS_MAX {
        return Err(PutLargeError::TooManyChunks { chunks: entries.len() });
    }
    let open = Arc::new(open);
    let session = Session::new(file, open.stamp, entries)?;
    let complete = send_missing(context, &open, &session, advance).await;
    let checked = match complete {
        Ok(complete) => blocking(move || open.check_unchanged()).await.map(|()| complete),
        // Such as for a full quota: no less is it there.
        Err(PutLargeError::Call(call))
            if session.same && call.code().is_some() && !call.is_fatal() && !call.is_transient() =>
        {
            Ok(Complete::AtOnce)
        }
        Err(error) => Err(error),
    };
    match checked {
        Ok(Complete::AtOnce) if session.same => unchanged::settle(context, vec![session]).await,
        Ok(_) => commit_all(context, vec![session]).await,
        Err(error) => {
            abort(context, &session.upload_id).await;
            return Err(error);
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReadFileError> + Send + 'static,
) -> Result<T, PutLargeError> {
    tokio::task::spawn_blocking(work).await.map_or(Err(PutLargeError::Stopped), |done| Ok(done?))
}

async fn cut(
    context: &Arc<Context>,
    file: &PlannedFile,
) -> Result<(OpenFile, Vec<ManifestEntry>), PutLargeError> {
    let permit = context.hashing.acquire().await;
    let (local, previous, stop) = (file.file.local.clone(), file.previous, context.stop.clone());
    let done = blocking(move || {
        let open = OpenFile::open(&local)?;
        let entries = open.cut(choose_cutter(previous, open.stamp.size), || !stop.is_cancelled())?;
        Ok((open, entries))
    })
    .await;
    drop(permit);
    if context.stop.is_cancelled() { Err(PutLargeError::Stopped) } else { done }
}

/// How the server came to have all chunks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Complete {
    /// It lacked none.
    AtOnce,
    /// They were sent.
    Sent,
}

async fn send_missing(
    context: &Context,
    open: &Arc<OpenFile>,
    session: &Session,
    advance: &mut Advance<'_>,
) -> Result<Complete, PutLargeError> {
    let mut patience = Patience::new();
    let mut missing = begin(context, session, &mut patience).await?;
    if missing.is_empty() {
        advance.by(session.stamp.size);
        return Ok(Complete::AtOnce);
    }
    let to_send: u64 = missing.iter().map(|index| session.entries[*index as usize].size).sum();
    advance.by(session.stamp.size - to_send.min(session.stamp.size));
    while !missing.is_empty() {
        let pass = send_pass(context, open, session, missing, advance).await?;
        if pass.acknowledged > 0 {
            patience.reset();
        }
        let Some(failure) = pass.failure else { return Ok(Complete::Sent) };
        let again = tokio::select! {
            again = patience.wait(&failure) => again,
            () = context.stop.cancelled() => return Err(PutLargeError::Stopped),
        };
        if !again {
            return Err(failure.error().clone().into());
        }
        let status = context.api.upload_status(session.upload_id.clone()).await?;
        missing = checked(status.missing, session)?;
    }
    Ok(Complete::Sent)
}

/// Indexes that the gateway asks for, ascending and all in the list.
fn checked(mut missing: Vec<u32>, session: &Session) -> Result<Vec<u32>, CallError> {
    missing.sort_unstable();
    missing.dedup();
    match missing.last() {
        Some(last) if *last as usize >= session.entries.len() => {
            Err(CallError::protocol(format!("chunk {last} was asked for")))
        }
        _ => Ok(missing),
    }
}

async fn begin(
    context: &Context,
    session: &Session,
    patience: &mut Patience,
) -> Result<Vec<u32>, PutLargeError> {
    loop {
        let begun = context.api.begin_uploads(vec![session.begin()]).await?.pop();
        let begun = begun.ok_or_else(|| CallError::protocol("no answer"))?;
        let Some(error) = &begun.error else { return Ok(checked(begun.missing, session)?) };
        let failure = PutFailure::Refused(CallError::from_item(error));
        if !patience.wait(&failure).await {
            return Err(failure.error().clone().into());
        }
    }
}

/// What came of sending chunks once.
struct Pass {
    acknowledged: u64,
    failure: Option<PutFailure>,
}

/// Reads and sends the chunks of `missing`, in order; stops reading at the first failure.
async fn send_pass(
    context: &Context,
    open: &Arc<OpenFile>,
    session: &Session,
    missing: Vec<u32>,
    advance: &mut Advance<'_>,
) -> Result<Pass, PutLargeError> {
    let (sender, mut chunks) = mpsc::channel(READ_AHEAD_CHUNKS);
    let places = places(&session.entries, &missing);
    let reader_file = open.clone();
    let reader = tokio::task::spawn_blocking(move || {
        for (offset, entry) in places {
            let chunk = reader_file.read_chunk(offset, &entry).map(|data| (entry, data));
            let failed = chunk.is_err();
            if sender.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    });
    let mut pass = Pass { acknowledged: 0, failure: None };
    let mut read_error = None;
    let mut outstanding = FuturesUnordered::new();
    let mut reading = true;
    while reading || !outstanding.is_empty() {
        tokio::select! {
            chunk = chunks.recv(), if reading => match chunk {
                Some(Ok((entry, data))) => {
                    outstanding.push(hand_in(context, session, entry, data).await);
                }
                Some(Err(error)) => read_error = Some(error),
                None => reading = false,
            },
            Some((result, bytes)) = outstanding.next() => match result {
                Ok(()) => {
                    pass.acknowledged += bytes;
                    advance.by(bytes);
                    let mut report = context.report();
                    report.bytes_sent += bytes;
                    report.chunks_sent += 1;
                }
                Err(failure) => {
                    reading = false;
                    pass.failure = pass.failure.take().or(Some(failure));
                }
            },
        }
    }
    drop(chunks);
    if reader.await.is_err() {
        return Err(PutLargeError::Stopped);
    }
    read_error.map_or(Ok(pass), |error| Err(error.into()))
}

async fn hand_in(
    context: &Context,
    session: &Session,
    entry: ManifestEntry,
    data: Bytes,
) -> impl Future<Output = (Result<(), PutFailure>, u64)> + use<> {
    let upload_ids = vec![session.upload_id.clone()];
    let receiver = context.chunks.put(OutgoingChunk { id: entry.id, data, upload_ids }).await;
    async move { (outcome(receiver).await, entry.size) }
}

/// Offset and entry of each chunk of `missing`, which ascends.
pub(crate) fn places(entries: &[ManifestEntry], missing: &[u32]) -> Vec<(u64, ManifestEntry)> {
    let mut places = Vec::with_capacity(missing.len());
    let mut next = missing.iter().map(|index| *index as usize).peekable();
    let mut offset = 0;
    for (at, entry) in entries.iter().enumerate() {
        if next.next_if_eq(&at).is_some() {
            places.push((offset, *entry));
        }
        offset += entry.size;
    }
    places
}

#[cfg(test)]
mod tests {
    use engine::ids::ChunkId;

    use super::*;

    #[test]
    fn missing_chunks_are_found_at_their_offsets() {
        let entry = |size: u64| ManifestEntry { id: ChunkId::of(&size.to_be_bytes()), size };
        let entries = [entry(10), entry(20), entry(30), entry(40)];
        assert_eq!(places(&entries, &[0, 2, 3]), [(0, entry(10)), (30, entry(30)), (60, entry(40))]);
        assert_eq!(places(&entries, &[]), []);
    }
}
