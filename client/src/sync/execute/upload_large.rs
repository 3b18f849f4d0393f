//! Sends one large file: cuts it, sends the chunks that the server lacks, commits. A session that was begun before a
//! restart, of the same content, is gone on with.

use std::fs::File;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use engine::ids::ContentId;
use engine::manifest::ManifestEntry;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::remote::record;
use super::upload_session::{commit_failed, give_up};
use super::upload_small::{begin, commit, committed, end_of_read, unchanged};
use crate::call_error::CallError;
use crate::connection::random_16;
use crate::local::model::LocalRecord;
use crate::planner::model::{FileContent, Kind};
use crate::state::record::Outcome;
use crate::state::uploads::UploadBegun;
use crate::sync::shared::{Shared, Shown};
use crate::sync::status::Direction;
use crate::sync::task::{Again, End, Ended, UploadTask};
use crate::upload::chunk_stream::{OutgoingChunk, PutFailure, outcome};
use crate::upload::large::{CHUNKS_MAX, places};
use crate::upload::read::{cut_file, read_chunk};
use crate::upload::session::Patience;

/// Chunks read ahead of the stream.
const READ_AHEAD_CHUNKS: usize = 4;

/// Sends the file and records what came of it.
pub(crate) async fn run(shared: &Shared, task: UploadTask) -> Ended {
    let path = task.rel.as_str().to_owned();
    let shown = shared.counters.show(task.node, path, Direction::Up, task.content.size);
    let node = task.node;
    match send(shared, &task, &shown).await {
        Ok(ended) => ended,
        Err(end) => Ended::quietly(node, end),
    }
}

async fn send(shared: &Shared, task: &UploadTask, shown: &Shown) -> Result<Ended, End> {
    let (file, entries) = match cut(shared, task).await? {
        Cut::Planned(file, entries) => (Arc::new(file), entries),
        Cut::Other(record) => {
            let ended = vec![Ended::quietly(task.node, End::Done)];
            let mut ended = super::remote::record(shared, vec![Outcome::Recut { record }], ended).await;
            return ended.pop().ok_or(End::Done);
        }
    };
    if entries.len() > CHUNKS_MAX {
        let reason = format!("it has {} chunks, and {CHUNKS_MAX} can be sent", entries.len());
        return Err(End::Failed { reason, again: Again::Later });
    }
    let session = begun(shared, task, &entries).await?;
    let left: u64 =
        session.missing.iter().filter_map(|index| entries.get(*index as usize)).map(|e| e.size).sum();
    shown.advance(task.content.size.saturating_sub(left));
    send_missing(shared, &file, &session.upload_id, &entries, session.missing, shown).await?;
    let (root, again) = (shared.root.clone(), task.clone());
    tokio::task::spawn_blocking(move || unchanged(&root, &again)).await.unwrap_or(Err(End::Stopped))?;
    let asked = shared.known().await?;
    let commits = vec![commit(task, &session.upload_id)];
    let result = match shared.api.commit_uploads(asked.proof.clone().into(), commits).await {
        Ok((mut results, told)) => {
            shared.note_answered(asked, told).await?;
            results.pop().unwrap_or_else(|| Err(CallError::protocol("no answer")))
        }
        Err(error) => Err(error),
    };
    let node = task.node;
    let entry = match result {
        Ok(entry) => entry,
        Err(error) => {
            commit_failed(shared, node, &session.upload_id, &error).await;
            return Err(End::of_call(&error));
        }
    };
    drop(shared.state.ask(move |state| state.forget_upload(node)).await);
    let (outcome, done) = committed(shared, task, entry);
    let listed = entries.clone();
    drop(shared.state.ask(move |state| state.index_chunks(node, &listed)).await);
    record(shared, vec![outcome], vec![done]).await.pop().ok_or(End::Done)
}

enum Cut {
    Planned(File, Vec<ManifestEntry>),
    /// Other bytes under the same stamp than were scanned.
    Other(LocalRecord),
}

async fn cut(shared: &Shared, task: &UploadTask) -> Result<Cut, End> {
    let (root, task_here, stop) = (shared.root.clone(), task.clone(), shared.stop.clone());
    let work = tokio::task::spawn_blocking(move || {
        let (file, stamp) = root.open_for_read(&task_here.rel).map_err(|error| End::of_disk(&error))?;
        if stamp != task_here.stamp {
            return Err(End::LocalChanged);
        }
        let mut go_on = || !stop.is_cancelled();
        let cut = cut_file(&file, stamp.size, task_here.content.cutter, &mut go_on);
        if stop.is_cancelled() {
            return Err(End::Stopped);
        }
        let entries = cut.map_err(end_of_read)?;
        unchanged(&root, &task_here)?;
        Ok((file, entries))
    });
    let (file, entries) = work.await.unwrap_or(Err(End::Stopped))?;
    let content = ContentId::of(&entries);
    if content == task.content.content {
        return Ok(Cut::Planned(file, entries));
    }
    let node = task.node;
    let known = shared.state.ask(move |state| state.local_record(node)).await;
    match known {
        Ok(Some(known)) if known.stamp == task.stamp => {
            let kind = Kind::File(FileContent { content, ..task.content });
            Ok(Cut::Other(LocalRecord { kind, ..known }))
        }
        _ => Err(End::LocalChanged),
    }
}

struct Begun {
    upload_id: Bytes,
    missing: Vec<u32>,
}

/// Goes on with the session that was begun of this content, or begins one.
async fn begun(shared: &Shared, task: &UploadTask, entries: &[ManifestEntry]) -> Result<Begun, End> {
    let node = task.node;
    let known = shared.state.ask(move |state| state.upload_begun(node)).await;
    if let Ok(Some(known)) = known {
        let content = FileContent { content: known.content, size: known.size, cutter: known.cutter };
        let upload_id = Bytes::from(known.upload_id);
        if content != task.content {
            give_up(shared, vec![upload_id]).await;
            return begun_anew(shared, task, entries).await;
        }
        match shared.api.upload_status(upload_id.clone()).await {
            // Committed, and the answer was lost: the server's news say so.
            Ok(status) if status.committed.is_some() => {
                drop(shared.state.ask(move |state| state.forget_upload(node)).await);
                return Err(End::RemoteChanged);
            }
            Ok(status) => return Ok(Begun { upload_id, missing: status.missing }),
            Err(error) if error.is_fatal() || error.is_transient() => return Err(End::of_call(&error)),
            // It has expired or was given up.
            Err(_gone) => {}
        }
    }
    begun_anew(shared, task, entries).await
}

async fn begun_anew(shared: &Shared, task: &UploadTask, entries: &[ManifestEntry]) -> Result<Begun, End> {
    let node = task.node;
    let id = random_16().map_err(|error| End::of_call(&error))?;
    let upload_id = Bytes::copy_from_slice(&id);
    let begun_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let row = UploadBegun {
        node,
        upload_id: id.to_vec(),
        content: task.content.content,
        size: task.content.size,
        cutter: task.content.cutter,
        begun_ms: u64::try_from(begun_ms).unwrap_or(0),
    };
    drop(shared.state.ask(move |state| state.set_upload_begun(&row)).await);
    let answers = shared.api.begin_uploads(vec![begin(task, &upload_id, entries)]).await;
    let answer = answers
        .and_then(|mut answers| answers.pop().ok_or_else(|| CallError::protocol("no answer")))
        .map_err(|error| End::of_call(&error))?;
    match &answer.error {
        Some(error) => Err(End::of_call(&CallError::from_item(error))),
        None => Ok(Begun { upload_id, missing: answer.missing }),
    }
}

async fn send_missing(
    shared: &Shared,
    file: &Arc<File>,
    upload_id: &Bytes,
    entries: &[ManifestEntry],
    mut missing: Vec<u32>,
    shown: &Shown,
) -> Result<(), End> {
    let mut patience = Patience::new();
    loop {
        missing.sort_unstable();
        missing.dedup();
        match missing.last() {
            None => return Ok(()),
            Some(last) if *last as usize >= entries.len() => {
                return Err(End::of_call(&CallError::protocol(format!("chunk {last} was asked for"))));
            }
            Some(_) => {}
        }
        let pass = Pass { shared, file, upload_id, shown };
        let (any, failure) = pass.run(places(entries, &missing)).await?;
        if any {
            patience.reset();
        }
        let Some(failure) = failure else { return Ok(()) };
        tokio::select! {
            again = patience.wait(&failure) => if !again {
                return Err(End::of_call(failure.error()));
            },
            () = shared.stop.cancelled() => return Err(End::Stopped),
        }
        let status = shared.api.upload_status(upload_id.clone()).await;
        missing = status.map_err(|error| End::of_call(&error))?.missing;
    }
}

/// Sends chunks once.
struct Pass<'a> {
    shared: &'a Shared,
    file: &'a Arc<File>,
    upload_id: &'a Bytes,
    shown: &'a Shown,
}

impl Pass<'_> {
    /// Says whether any chunk was acknowledged, and the first failure.
    async fn run(&self, places: Vec<(u64, ManifestEntry)>) -> Result<(bool, Option<PutFailure>), End> {
        let (sender, mut chunks) = mpsc::channel(READ_AHEAD_CHUNKS);
        let file = self.file.clone();
        let reader = tokio::task::spawn_blocking(move || {
            for (offset, entry) in places {
                let chunk = read_chunk(&file, offset, &entry).map(|data| (entry, data));
                let failed = chunk.is_err();
                if sender.blocking_send(chunk).is_err() || failed {
                    return;
                }
            }
        });
        let (mut any, mut failure, mut read_error) = (false, None, None);
        let mut outstanding = FuturesUnordered::new();
        let mut reading = true;
        while reading || !outstanding.is_empty() {
            tokio::select! {
                chunk = chunks.recv(), if reading => match chunk {
                    Some(Ok((entry, data))) => outstanding.push(self.hand_in(entry, data).await),
                    Some(Err(error)) => read_error = Some(error),
                    None => reading = false,
                },
                Some((result, bytes)) = outstanding.next() => match result {
                    Ok(()) => {
                        any = true;
                        self.shared.counters.up.wire(bytes);
                        self.shown.advance(bytes);
                    }
                    Err(error) => {
                        reading = false;
                        failure = failure.or(Some(error));
                    }
                },
                () = self.shared.stop.cancelled(), if reading => reading = false,
            }
        }
        drop(chunks);
        drop(reader.await);
        if self.shared.stop.is_cancelled() {
            return Err(End::Stopped);
        }
        match read_error {
            Some(error) => Err(end_of_read(error)),
            None => Ok((any, failure)),
        }
    }

    async fn hand_in(
        &self,
        entry: ManifestEntry,
        data: Bytes,
    ) -> impl Future<Output = (Result<(), PutFailure>, u64)> + use<> {
        tokio::select! {
            () = self.shared.up.take(entry.size) => {}
            () = self.shared.stop.cancelled() => {}
        }
        let upload_ids = vec![self.upload_id.clone()];
        let receiver = self.shared.chunks.put(OutgoingChunk { id: entry.id, data, upload_ids }).await;
        async move { (outcome(receiver).await, entry.size) }
    }
}
