//! Fetches small files, many in one round trip, and puts them in place.
//!
//! Bytes are verified before anything is written; a file is synced before it gets its name; its folder is synced
//! before it is recorded.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use proto::v1;

use super::range_reader::RangeReader;
use super::remote::record;
use crate::api::RangeOf;
use crate::call_error::CallError;
use crate::download::verify::ContentCheck;
use crate::local::disk::{DiskError, Durability};
use crate::local::model::{LocalRecord, Stamp};
use crate::local::rel::Rel;
use crate::local::replace::Replaced;
use crate::local::root::Root;
use crate::local::temp::Temp;
use crate::planner::model::{Kind, NodeId};
use crate::sparse::{self, Before};
use crate::state::record::{Outcome, Part};
use crate::sync::shared::Shared;
use crate::sync::status::Done;
use crate::sync::task::{Again, DownloadTask, End, Ended};

/// Files in one round trip.
pub(crate) const BATCH_FILES_MAX: usize = 400;
/// Their bytes.
pub(crate) const BATCH_BYTES_MAX: u64 = 6 * 1024 * 1024;
/// Most bytes that one answer may hold, whatever was asked for.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Files written and synced at once, so that one commit of the file system's journal serves many.
const WRITERS: usize = 8;

/// Fetches the files and records what came of them.
pub(crate) async fn run(shared: &Shared, tasks: Vec<DownloadTask>) -> Vec<Ended> {
    let (tasks, refused) = split_refused(shared, tasks).await;
    if tasks.is_empty() {
        return refused;
    }
    let answers = tokio::select! {
        answers = receive(shared, &tasks) => answers,
        () = shared.stop.cancelled() => {
            let stopped = tasks.iter().map(|task| Ended::quietly(task.node, End::Stopped));
            return refused.into_iter().chain(stopped).collect();
        }
    };
    let answers = match answers {
        Ok(answers) => answers,
        Err(error) => {
            let failed = tasks.iter().map(|task| Ended::call(task.node, &error));
            return refused.into_iter().chain(failed).collect();
        }
    };
    let mut ended = refused;
    let mut received = Vec::with_capacity(tasks.len());
    for (task, answer) in tasks.into_iter().zip(answers) {
        match answer {
            Answer::Whole(bytes) => received.push((task, bytes.freeze())),
            Answer::Failed(error) => ended.push(Ended::call(task.node, &error)),
            Answer::Part(_) | Answer::None => {
                let error = CallError::protocol("a file without an end");
                ended.push(Ended::call(task.node, &error));
            }
        }
    }
    let nodes: Vec<NodeId> = received.iter().map(|(task, _bytes)| task.node).collect();
    let places = received.iter().map(|(task, _bytes)| task.place.clone()).collect();
    let effect = shared.effects.begin(nodes.clone(), places);
    for (task, _bytes) in &mut received {
        task.keeps_replaced |= shared.writers.contains(&task.rel);
    }
    let root = shared.root.clone();
    let written = tokio::task::spawn_blocking(move || write_all(&root, received)).await;
    let Ok(written) = written else {
        ended.extend(nodes.into_iter().map(|node| Ended::failed(node, "writing it panicked", Again::Later)));
        return ended;
    };
    let mut outcomes = Vec::with_capacity(written.len());
    for (task, result) in written {
        match result {
            Ok(file) => {
                let (outcome, done) = placed(shared, &task, &file);
                outcomes.push(outcome);
                ended.push(done);
            }
            Err(end) => ended.push(Ended::quietly(task.node, end)),
        }
    }
    let ended = record(shared, outcomes, ended).await;
    drop(effect);
    ended
}

/// Takes out those that the disk would refuse: they are not fetched.
async fn split_refused(shared: &Shared, tasks: Vec<DownloadTask>) -> (Vec<DownloadTask>, Vec<Ended>) {
    let nodes: Vec<NodeId> = tasks.iter().map(|task| task.node).collect();
    let root = shared.root.clone();
    let work = tokio::task::spawn_blocking(move || {
        let (mut taken, mut refused) = (Vec::with_capacity(tasks.len()), Vec::new());
        let mut room = root.free_bytes();
        for task in tasks {
            match check_disk(&root, &task, &mut room) {
                Ok(()) => taken.push(task),
                Err(error) => refused.push(Ended::quietly(task.node, End::of_disk(&error))),
            }
        }
        (taken, refused)
    });
    let panicked = |node| Ended::failed(node, "a look at the disk panicked", Again::Later);
    work.await.unwrap_or_else(|_panic| (Vec::new(), nodes.into_iter().map(panicked).collect()))
}

/// Looks whether the disk would take the file; `room` is what is left for others. Blocks.
fn check_disk(root: &Root, task: &DownloadTask, room: &mut u64) -> Result<(), DiskError> {
    root.check_target(&task.rel, task.replaces.as_ref())?;
    *room = room.checked_sub(task.content.size).ok_or_else(|| DiskError::NoSpace(task.rel.clone()))?;
    Ok(())
}

/// A file in its place.
pub(super) struct InPlace {
    stamp: Stamp,
    /// Other names (hard links) that the one before it had: they keep what they had.
    names_left: u32,
}

/// What a file in its place comes to.
pub(super) fn placed(shared: &Shared, task: &DownloadTask, file: &InPlace) -> (Outcome, Ended) {
    shared.counters.down.file(task.content.size);
    let part = if task.replaces.is_some() { Part::Content } else { Part::Whole };
    let record = LocalRecord {
        node: task.node,
        place: task.place.clone(),
        kind: Kind::File(task.content),
        attributes: task.attributes,
        stamp: file.stamp,
    };
    let mut detail = format!("{} bytes", task.content.size);
    if file.names_left > 0 {
        detail.push_str("; it had another name here (a hard link), which keeps what it was");
    }
    let done = Ended::done(task.node, Done::FileDown, task.rel.as_str(), detail);
    (Outcome::Local { record, part }, done)
}

enum Answer {
    None,
    Part(BytesMut),
    Whole(BytesMut),
    Failed(CallError),
}

/// How many files to ask for at once: as many as the limit lets come in together, at least one.
fn together(sizes: impl Iterator<Item = u64>, part_bytes: Option<u64>) -> usize {
    let Some(part_bytes) = part_bytes else { return sizes.count() };
    let mut bytes = 0_u64;
    let fit = sizes.take_while(|size| {
        bytes = bytes.saturating_add(*size);
        bytes <= part_bytes
    });
    fit.count().max(1)
}

/// One answer per task. What came before a failure is kept.
async fn receive(shared: &Shared, tasks: &[DownloadTask]) -> Result<Vec<Answer>, CallError> {
    let mut answers: Vec<Answer> = tasks
        .iter()
        .map(|task| if task.content.size == 0 { Answer::Whole(BytesMut::new()) } else { Answer::None })
        .collect();
    let asked: Vec<usize> = (0..tasks.len()).filter(|index| tasks[*index].content.size > 0).collect();
    if asked.is_empty() {
        return Ok(answers);
    }
    let mut rest = asked.as_slice();
    while !rest.is_empty() {
        let part_bytes = shared.down.part_bytes();
        let sizes = rest.iter().map(|index| tasks[*index].content.size);
        let (now, later) = rest.split_at(together(sizes, part_bytes));
        let bytes: u64 = now.iter().map(|index| tasks[*index].content.size).sum();
        let came = match (part_bytes, now) {
            (Some(part_bytes), [index]) if bytes > part_bytes => {
                receive_alone(shared, &tasks[*index]).await.map(|answer| answers[*index] = answer)
            }
            (limit, _) => {
                let paid = if limit.is_some() { bytes } else { 0 };
                shared.down.take(paid).await;
                receive_together(shared, tasks, now, paid, &mut answers).await
            }
        };
        match came {
            Ok(()) => {}
            Err(error) if answers.iter().any(|answer| matches!(answer, Answer::Whole(_))) => {
                for index in rest {
                    if !matches!(answers[*index], Answer::Whole(_)) {
                        answers[*index] = Answer::Failed(error.clone());
                    }
                }
                return Ok(answers);
            }
            Err(error) => return Err(error),
        }
        rest = later;
    }
    Ok(answers)
}

/// One file that is more than may come in at once.
async fn receive_alone(shared: &Shared, task: &DownloadTask) -> Result<Answer, CallError> {
    let length = task.content.size;
    let range = RangeOf { entry: task.entry, version: task.version, offset: 0, length };
    let mut reader = RangeReader::new(shared, range);
    let mut data = BytesMut::new();
    while (data.len() as u64) < length {
        data.extend_from_slice(&reader.next().await?);
    }
    Ok(Answer::Whole(data))
}

/// Files that come in one answer, of which so many bytes are paid for.
async fn receive_together(
    shared: &Shared,
    tasks: &[DownloadTask],
    asked: &[usize],
    mut paid: u64,
    answers: &mut [Answer],
) -> Result<(), CallError> {
    let version_of =
        |index: &usize| v1::EntryVersion { entry_id: tasks[*index].entry, version: tasks[*index].version };
    let mut stream = shared.api.open_many(asked.iter().map(version_of).collect()).await?;
    let mut bytes = 0;
    let mut ended = 0;
    while let Some(message) = shared.api.next_of(&mut stream).await? {
        let index = asked.get(message.index as usize).copied();
        bytes += message.data.len();
        let Some(index) = index.filter(|_| bytes <= ANSWER_BYTES_MAX) else {
            return Err(CallError::protocol("files or bytes that were not asked for"));
        };
        let wire = message.data.len() as u64;
        shared.down.take(wire.saturating_sub(paid)).await;
        paid = paid.saturating_sub(wire);
        shared.counters.down.wire(wire);
        ended += usize::from(message.end || message.error.is_some());
        if let Some(error) = &message.error {
            answers[index] = Answer::Failed(CallError::from_item(error));
            continue;
        }
        let mut data = match std::mem::replace(&mut answers[index], Answer::None) {
            Answer::None => BytesMut::new(),
            Answer::Part(data) => data,
            Answer::Whole(_) | Answer::Failed(_) => {
                return Err(CallError::protocol("bytes after the end of a file"));
            }
        };
        data.extend_from_slice(&message.data);
        answers[index] = if message.end { Answer::Whole(data) } else { Answer::Part(data) };
    }
    if ended < asked.len() { Err(shared.api.broken_off()) } else { Ok(()) }
}

type Written = (DownloadTask, Result<InPlace, End>);

/// Writes and syncs all in parallel, then gives all their names, then syncs the folders.
fn write_all(root: &Root, received: Vec<(DownloadTask, Bytes)>) -> Vec<Written> {
    let share = received.len().div_ceil(WRITERS).max(1);
    let temps: Vec<Result<Temp, End>> = std::thread::scope(|scope| {
        let writers: Vec<_> = received
            .chunks(share)
            .map(|part| {
                let write =
                    move || part.iter().map(|(task, bytes)| write(root, task, bytes)).collect::<Vec<_>>();
                (part.len(), scope.spawn(write))
            })
            .collect();
        let mut all = Vec::with_capacity(received.len());
        for (count, writer) in writers {
            match writer.join() {
                Ok(part) => all.extend(part),
                Err(_panic) => all.extend((0..count).map(|_| {
                    Err(End::Failed { reason: "writing it panicked".to_owned(), again: Again::Later })
                })),
            }
        }
        all
    });
    let mut written: Vec<Written> = received
        .into_iter()
        .zip(temps)
        .map(|((task, _bytes), temp)| {
            let stamp = temp.and_then(|temp| put_in_place(root, temp, &task, Durability::Later));
            (task, stamp)
        })
        .collect();
    sync_folders(root, &mut written);
    written
}

fn write(root: &Root, task: &DownloadTask, bytes: &Bytes) -> Result<Temp, End> {
    let mut check = ContentCheck::of(task.content);
    check.push(bytes);
    check.finish().map_err(|error| End::Failed { reason: error.to_string(), again: Again::Soon })?;
    let disk = |error: DiskError| End::of_disk(&error);
    let mut temp = root.temp_file().map_err(disk)?;
    let file = temp.file();
    sparse::write_at(file, bytes, 0, Before::Hole)
        .and_then(|()| if bytes.last() == Some(&0) { file.set_len(bytes.len() as u64) } else { Ok(()) })
        .map_err(|error| end_of_write(&task.rel, &error))?;
    temp.finish(task.attributes.mode, task.attributes.mtime_ns).map_err(disk)?;
    Ok(temp)
}

/// What a failed write comes to.
pub(super) fn end_of_write(rel: &Rel, error: &std::io::Error) -> End {
    match error.kind() {
        std::io::ErrorKind::StorageFull => End::of_disk(&DiskError::NoSpace(rel.clone())),
        std::io::ErrorKind::QuotaExceeded => End::of_disk(&DiskError::Quota(rel.clone())),
        _ => End::Failed { reason: format!("cannot be written: {error}"), again: Again::Soon },
    }
}

/// Gives a finished file its name.
pub(super) fn put_in_place(
    root: &Root,
    temp: Temp,
    task: &DownloadTask,
    durability: Durability,
) -> Result<InPlace, End> {
    let mut names_left = 0;
    let placed = match &task.replaces {
        None => root.place_new(temp, &task.rel, task.within, durability),
        Some(record) => {
            let there = root.stat(&task.rel).map_err(|error| End::of_disk(&error))?;
            names_left = there.map_or(0, |object| object.links.saturating_sub(1));
            let replaced = if task.keeps_replaced { Replaced::ToTrash } else { Replaced::Removed };
            root.replace(temp, &task.rel, &record.stamp, replaced, durability)
        }
    };
    placed.map(|stamp| InPlace { stamp, names_left }).map_err(|error| End::of_disk(&error))
}

/// Makes the names durable; what cannot be made so counts as failed.
fn sync_folders(root: &Root, written: &mut [Written]) {
    let folders: BTreeSet<Rel> = written
        .iter()
        .filter(|(_, result)| result.is_ok())
        .filter_map(|(task, _)| task.rel.parent())
        .collect();
    for folder in folders {
        if let Err(error) = root.sync_folder(&folder) {
            for (task, result) in written.iter_mut() {
                if task.rel.parent().as_ref() == Some(&folder) && result.is_ok() {
                    *result = Err(End::of_disk(&error));
                }
            }
        }
    }
}
