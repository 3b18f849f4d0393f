//! Sends small files, many in one round trip: one begin, their chunks, one commit. One that is alone goes by one call.

use std::collections::HashMap;

use bytes::Bytes;
use engine::ids::{ChunkId, ContentId};
use engine::manifest::ManifestEntry;
use proto::{CHUNK_UPLOADS_MAX, v1};
use tokio::sync::oneshot;

use super::remote::{record, record_answered};
use super::upload_session::{Fate, fate, give_up};
use crate::call_error::CallError;
use crate::connection::random_16;
use crate::local::model::LocalRecord;
use crate::local::root::Root;
use crate::planner::model::{FileContent, Kind, NodeId};
use crate::state::record::{Outcome, Part};
use crate::sync::shared::Shared;
use crate::sync::status::Done;
use crate::sync::task::{Again, End, Ended, UploadTask};
use crate::upload::chunk_stream::{OutgoingChunk, PutOutcome, outcome};
use crate::upload::read::{ReadFileError, cut_bytes};
use crate::upload::session::Patience;
use crate::upload::single::SINGLE_FILE_BYTES_MAX;
use crate::wire;

/// Files in one round trip.
pub(crate) const BATCH_FILES_MAX: usize = 500;
/// Their bytes.
pub(crate) const BATCH_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A file that is read and cut.
struct Read {
    task: UploadTask,
    bytes: Bytes,
    entries: Vec<ManifestEntry>,
    upload_id: Bytes,
}

/// Sends the files and records what came of them.
pub(crate) async fn run(shared: &Shared, tasks: Vec<UploadTask>) -> Vec<Ended> {
    let mut ended = Vec::with_capacity(tasks.len());
    let mut outcomes = Vec::new();
    let read = read_all(shared, tasks, &mut ended, &mut outcomes).await;
    let read = match put_alone(shared, read).await {
        Ok(put) => {
            let mut ended = record(shared, outcomes, ended).await;
            ended.extend(put);
            return ended;
        }
        Err(others) => others,
    };
    let sent = send_all(shared, read, &mut ended).await;
    let mut failed = Vec::new();
    let unchanged = check_all(shared, sent, &mut ended, &mut failed).await;
    let committed = commit_all(shared, unchanged, &mut failed).await;
    let mut ended = record(shared, outcomes, ended).await;
    ended.extend(committed);
    // Another try begins a session of its own.
    give_up(shared, failed).await;
    ended
}

/// Puts a file that is alone and so small that it goes by one call; gives back what does not.
async fn put_alone(shared: &Shared, mut all: Vec<Read>) -> Result<Vec<Ended>, Vec<Read>> {
    let small = all.len() == 1 && all.iter().all(|read| read.bytes.len() as u64 <= SINGLE_FILE_BYTES_MAX);
    let Some(read) = all.pop_if(|_read| small && !shared.api.lacks_put_file()) else { return Err(all) };
    let node = read.task.node;
    let asked = match shared.known().await {
        Ok(known) => known,
        Err(end) => return Ok(vec![Ended::quietly(node, end)]),
    };
    let bytes = read.bytes.len() as u64;
    tokio::select! {
        () = shared.up.take(bytes) => {}
        () = shared.stop.cancelled() => return Ok(vec![Ended::quietly(node, End::Stopped)]),
    }
    // It may have waited for long.
    let (root, task) = (shared.root.clone(), read.task.clone());
    let checked = tokio::task::spawn_blocking(move || unchanged(&root, &task)).await;
    if let Err(end) = checked.unwrap_or(Err(End::Stopped)) {
        return Ok(vec![Ended::quietly(node, end)]);
    }
    let message = v1::PutFileRequest {
        cursor: asked.proof.clone().into(),
        data: read.bytes.clone(),
        ..put_file(&read.task)
    };
    match shared.api.put_file(message, read.task.content.content).await {
        Ok((entry, told)) => {
            shared.counters.up.wire(bytes);
            let (outcome, done) = committed(shared, &read.task, entry);
            Ok(record_answered(shared, (asked, told), vec![outcome], vec![done]).await)
        }
        Err(error) if error.code() == Some(tonic::Code::Unimplemented) => Err(vec![read]),
        Err(error) => Ok(vec![Ended::call(node, &error)]),
    }
}

fn put_file(task: &UploadTask) -> v1::PutFileRequest {
    v1::PutFileRequest {
        parent_id: task.parent,
        name: task.name.clone(),
        base: Some(base(task)),
        mode: task.attributes.mode,
        mtime_ns: task.attributes.mtime_ns,
        cutter: wire::cutter_to_wire(task.content.cutter).into(),
        ..v1::PutFileRequest::default()
    }
}

/// What reading a file came to.
enum ReadResult {
    Whole(Bytes, Vec<ManifestEntry>),
    /// Other bytes under the same stamp than were scanned: this is what they are.
    Other(FileContent),
}

async fn read_all(
    shared: &Shared,
    tasks: Vec<UploadTask>,
    ended: &mut Vec<Ended>,
    outcomes: &mut Vec<Outcome>,
) -> Vec<Read> {
    let root = shared.root.clone();
    let nodes: Vec<NodeId> = tasks.iter().map(|task| task.node).collect();
    let work = tokio::task::spawn_blocking(move || {
        tasks.into_iter().map(|task| (read(&root, &task), task)).collect::<Vec<_>>()
    });
    let Ok(results) = work.await else {
        ended.extend(nodes.into_iter().map(|node| Ended::failed(node, "reading it panicked", Again::Later)));
        return Vec::new();
    };
    let mut all = Vec::with_capacity(results.len());
    for (result, task) in results {
        match result {
            Ok(ReadResult::Whole(bytes, entries)) => match random_16() {
                Ok(id) => {
                    let upload_id = Bytes::copy_from_slice(&id);
                    all.push(Read { task, bytes, entries, upload_id });
                }
                Err(error) => ended.push(Ended::call(task.node, &error)),
            },
            Ok(ReadResult::Other(content)) => {
                let place = shared.state.ask({
                    let node = task.node;
                    move |state| state.local_record(node)
                });
                if let Ok(Some(known)) = place.await
                    && known.stamp == task.stamp
                {
                    outcomes.push(Outcome::Recut { record: recut(known, content) });
                }
                ended.push(Ended::quietly(task.node, End::Done));
            }
            Err(end) => ended.push(Ended::quietly(task.node, end)),
        }
    }
    all
}

fn recut(known: LocalRecord, content: FileContent) -> LocalRecord {
    LocalRecord { kind: Kind::File(content), ..known }
}

fn read(root: &Root, task: &UploadTask) -> Result<ReadResult, End> {
    use std::os::unix::fs::FileExt;
    let (file, stamp) = root.open_for_read(&task.rel).map_err(|error| End::of_disk(&error))?;
    if stamp != task.stamp {
        return Err(End::LocalChanged);
    }
    let size = usize::try_from(stamp.size).map_err(|_too_large| End::LocalChanged)?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0).map_err(|error| end_of_read(error.into()))?;
    unchanged(root, task)?;
    let bytes = Bytes::from(bytes);
    let entries = cut_bytes(&bytes, task.content.cutter);
    let content = ContentId::of(&entries);
    if content == task.content.content {
        Ok(ReadResult::Whole(bytes, entries))
    } else {
        Ok(ReadResult::Other(FileContent { content, size: stamp.size, cutter: task.content.cutter }))
    }
}

/// What a file that cannot be read comes to.
pub(super) fn end_of_read(error: ReadFileError) -> End {
    match error {
        ReadFileError::Io(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            End::Failed { reason: format!("cannot be read: {error}"), again: Again::Soon }
        }
        _ => End::LocalChanged,
    }
}

/// Checks that what is at the file's place still is as it was scanned.
pub(super) fn unchanged(root: &Root, task: &UploadTask) -> Result<(), End> {
    match root.stat(&task.rel) {
        Ok(Some(object)) if object.stamp == task.stamp => Ok(()),
        Ok(_) => Err(End::LocalChanged),
        Err(error) => Err(End::of_disk(&error)),
    }
}

pub(super) fn begin(task: &UploadTask, upload_id: &Bytes, entries: &[ManifestEntry]) -> v1::BeginUpload {
    v1::BeginUpload {
        upload_id: upload_id.clone(),
        size: task.content.size,
        cutter: wire::cutter_to_wire(task.content.cutter).into(),
        chunks: Some(wire::chunk_list(entries)),
        entry_id: task.base.map_or(0, |(entry, _version)| entry),
        ..v1::BeginUpload::default()
    }
}

/// What must be there.
fn base(task: &UploadTask) -> v1::Base {
    let base = match task.base {
        Some((_entry, version)) => v1::base::Base::Version(version),
        None => v1::base::Base::Absent(true),
    };
    v1::Base { base: Some(base) }
}

pub(super) fn commit(task: &UploadTask, upload_id: &Bytes) -> v1::CommitUpload {
    v1::CommitUpload {
        upload_id: upload_id.clone(),
        base: Some(base(task)),
        mode: task.attributes.mode,
        mtime_ns: task.attributes.mtime_ns,
        parent_id: task.parent,
        name: task.name.clone(),
        ..v1::CommitUpload::default()
    }
}

/// Sends what the server lacks until nothing is missing; gives the files that are whole there.
async fn send_all(shared: &Shared, mut all: Vec<Read>, ended: &mut Vec<Ended>) -> Vec<Read> {
    let mut patience = Patience::new();
    let mut whole = Vec::with_capacity(all.len());
    while !all.is_empty() {
        let begins = all.iter().map(|read| begin(&read.task, &read.upload_id, &read.entries)).collect();
        let begun = match shared.api.begin_uploads(begins).await {
            Ok(begun) => begun,
            Err(error) => {
                ended.extend(all.iter().map(|read| Ended::call(read.task.node, &error)));
                return whole;
            }
        };
        let mut failures = send_once(shared, &all, &begun).await;
        let worst = failures
            .values()
            .find(|failure| failure.error().is_transient())
            .or_else(|| failures.values().next())
            .cloned();
        let again = match &worst {
            None => false,
            Some(worst) => tokio::select! {
                again = patience.wait(worst) => again,
                () = shared.stop.cancelled() => false,
            },
        };
        let mut left = Vec::new();
        for (index, read) in all.into_iter().enumerate() {
            match failures.remove(&index) {
                None => whole.push(read),
                Some(failure) if again && failure.error().is_transient() => left.push(read),
                Some(failure) => ended.push(Ended::call(read.task.node, failure.error())),
            }
        }
        all = left;
    }
    whole
}

type Failures = HashMap<usize, crate::upload::chunk_stream::PutFailure>;

/// Sends the missing chunks once, each once for as many of its files as may be; gives the files that failed.
async fn send_once(shared: &Shared, all: &[Read], begun: &[v1::BegunUpload]) -> Failures {
    use crate::upload::chunk_stream::PutFailure;
    let mut failures = Failures::new();
    let mut wanted: HashMap<ChunkId, (Bytes, Vec<usize>)> = HashMap::new();
    let mut order = Vec::new();
    for (index, (read, begun)) in all.iter().zip(begun).enumerate() {
        if let Some(error) = &begun.error {
            failures.insert(index, PutFailure::Refused(CallError::from_item(error)));
            continue;
        }
        for missing in &begun.missing {
            let Some((entry, data)) = chunk_of(read, *missing as usize) else {
                let error = CallError::protocol(format!("chunk {missing} was asked for"));
                failures.insert(index, PutFailure::Refused(error));
                break;
            };
            let (_data, files) = wanted.entry(entry.id).or_insert_with(|| {
                order.push(entry.id);
                (data, Vec::new())
            });
            files.push(index);
        }
    }
    let mut waiting: Vec<(oneshot::Receiver<PutOutcome>, Vec<usize>, u64)> = Vec::new();
    for id in order {
        let Some((data, mut files)) = wanted.remove(&id) else { continue };
        files.dedup();
        let bytes = data.len() as u64;
        for files in files.chunks(CHUNK_UPLOADS_MAX) {
            let upload_ids = files.iter().map(|index| all[*index].upload_id.clone()).collect();
            tokio::select! {
                () = shared.up.take(bytes) => {}
                // Then the stream is closed, or soon will be; what is begun here ends by itself.
                () = shared.stop.cancelled() => {}
            }
            let sent = shared.chunks.put(OutgoingChunk { id, data: data.clone(), upload_ids }).await;
            waiting.push((sent, files.to_vec(), bytes));
        }
    }
    for (receiver, files, bytes) in waiting {
        match outcome(receiver).await {
            Ok(()) => shared.counters.up.wire(bytes),
            Err(failure) => failures.extend(files.into_iter().map(|index| (index, failure.clone()))),
        }
    }
    failures
}

fn chunk_of(read: &Read, index: usize) -> Option<(ManifestEntry, Bytes)> {
    let entry = *read.entries.get(index)?;
    let offset: u64 = read.entries[..index].iter().map(|entry| entry.size).sum();
    let from = usize::try_from(offset).ok()?;
    let to = from + usize::try_from(entry.size).ok()?;
    Some((entry, read.bytes.slice(from..to)))
}

/// Leaves out the files that changed while they were sent; `failed`: their sessions.
async fn check_all(
    shared: &Shared,
    all: Vec<Read>,
    ended: &mut Vec<Ended>,
    failed: &mut Vec<Bytes>,
) -> Vec<Read> {
    let root = shared.root.clone();
    let nodes: Vec<NodeId> = all.iter().map(|read| read.task.node).collect();
    let work = tokio::task::spawn_blocking(move || {
        all.into_iter().map(|read| (unchanged(&root, &read.task), read)).collect::<Vec<_>>()
    });
    let Ok(results) = work.await else {
        ended.extend(nodes.into_iter().map(|node| Ended::failed(node, "reading it panicked", Again::Later)));
        return Vec::new();
    };
    let mut unchanged = Vec::with_capacity(results.len());
    for (result, read) in results {
        match result {
            Ok(()) => unchanged.push(read),
            Err(end) => {
                ended.push(Ended::quietly(read.task.node, end));
                failed.push(read.upload_id);
            }
        }
    }
    unchanged
}

/// Commits the files, and records what came of that; `failed`: the sessions of those that were refused.
async fn commit_all(shared: &Shared, all: Vec<Read>, failed: &mut Vec<Bytes>) -> Vec<Ended> {
    if all.is_empty() {
        return Vec::new();
    }
    let all_end = |end: &End| all.iter().map(|read| Ended::quietly(read.task.node, end.clone())).collect();
    let commits = all.iter().map(|read| commit(&read.task, &read.upload_id)).collect();
    let asked = match shared.known().await {
        Ok(known) => known,
        Err(end) => return all_end(&end),
    };
    let (results, told) = match shared.api.commit_uploads(asked.proof.clone().into(), commits).await {
        Ok(answer) => answer,
        // Whether they were committed shows in the server's news.
        Err(error) => return all_end(&End::of_call(&error)),
    };
    let (mut outcomes, mut ended) = (Vec::with_capacity(all.len()), Vec::with_capacity(all.len()));
    for (read, result) in all.into_iter().zip(results) {
        match result {
            Ok(entry) => {
                let (outcome, done) = committed(shared, &read.task, entry);
                outcomes.push(outcome);
                ended.push(done);
            }
            Err(error) => {
                ended.push(Ended::call(read.task.node, &error));
                // A gateway that cannot commit for the moment is not asked for more.
                if !error.is_transient() && fate(&error) != Fate::Ended {
                    failed.push(read.upload_id);
                }
            }
        }
    }
    record_answered(shared, (asked, told), outcomes, ended).await
}

/// What a commit comes to.
pub(super) fn committed(shared: &Shared, task: &UploadTask, entry: v1::Entry) -> (Outcome, Ended) {
    shared.counters.up.file(task.content.size);
    let part = if task.base.is_some() { Part::Content } else { Part::Whole };
    let detail = format!("{} bytes", task.content.size);
    let done = Ended::done(task.node, Done::FileUp, task.rel.as_str(), detail);
    (Outcome::Remote { node: task.node, entry, part }, done)
}
