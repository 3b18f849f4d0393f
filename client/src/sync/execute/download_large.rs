//! Fetches one large file: chunks that are in local files already are copied from there, the rest come by ranges, in
//! parallel. All of it goes into a file that outlives a restart and is gone on with.
//!
//! Invariants:
//! - Whatever a chunk is taken from, its bytes are hashed before they count; the list itself is hashed against the
//!   content that was asked for. So the file is whole and right when all chunks are in.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::BytesMut;
use engine::ids::{ChunkId, ContentId};
use engine::manifest::ManifestEntry;
use futures_util::StreamExt;
use futures_util::stream;

use super::download_small::{end_of_write, placed, put_in_place};
use super::remote::record;
use crate::api::RangeOf;
use crate::call_error::CallError;
use crate::local::disk::Durability;
use crate::local::model::LocalRecord;
use crate::local::rel::Rel;
use crate::local::root::Root;
use crate::local::temp::Temp;
use crate::planner::model::NodeId;
use crate::state::chunk_index::ChunkPlace;
use crate::sync::shared::{Shared, Shown};
use crate::sync::state_thread::AskError;
use crate::sync::status::Direction;
use crate::sync::task::{Again, DownloadTask, End, Ended};
use crate::upload::read::{cut_file, read_chunk};

/// Bytes of a range, unless one chunk is longer.
const RANGE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Ranges under way of one file.
const RANGES_MAX: usize = 4;

/// Fetches the file and records what came of it.
pub(crate) async fn run(shared: &Shared, task: DownloadTask) -> Ended {
    let path = task.rel.as_str().to_owned();
    let shown = shared.counters.show(task.node, path, Direction::Down, task.content.size);
    match fetch(shared, &task, &shown).await {
        Ok(ended) => ended,
        Err(end) => Ended::quietly(task.node, end),
    }
}

/// What names the file that is being assembled: the same content goes on where it was.
pub(crate) fn temporary_key(node: NodeId, content: &ContentId) -> u128 {
    let mut first = [0; 16];
    first.copy_from_slice(&content.as_bytes()[..16]);
    u128::from_be_bytes(first) ^ u128::from(node.0)
}

async fn fetch(shared: &Shared, task: &DownloadTask, shown: &Shown) -> Result<Ended, End> {
    let call = |error: CallError| End::of_call(&error);
    let (_entry, entries) = shared.api.manifest(task.entry, task.version).await.map_err(call)?;
    if ContentId::of(&entries) != task.content.content {
        // Another version than was asked for, or a list that is not of it.
        return Err(End::of_call(&CallError::protocol("a chunk list of another content")));
    }
    let entries = Arc::new(entries);
    let (mut temp, missing) = assemble_local(shared, task, &entries, shown).await?;
    let file = Arc::new(temp.file().try_clone().map_err(|error| end_of_write(&task.rel, &error))?);
    fetch_missing(shared, task, &file, &entries, missing, shown).await?;
    if shared.stop.is_cancelled() {
        return Err(End::Stopped);
    }
    let effect = shared.effects.begin(vec![task.node], vec![task.place.clone()]);
    let (root, here) = (shared.root.clone(), task.clone());
    let work = tokio::task::spawn_blocking(move || {
        temp.finish(here.attributes.mode, here.attributes.mtime_ns).map_err(|error| End::of_disk(&error))?;
        put_in_place(&root, temp, &here, Durability::Now)
    });
    let stamp = work.await.unwrap_or(Err(End::Stopped))?;
    let node = task.node;
    drop(shared.state.ask(move |state| state.index_chunks(node, &entries)).await);
    let (outcome, done) = placed(shared, task, stamp);
    let ended = record(shared, vec![outcome], vec![done]).await.pop();
    drop(effect);
    ended.ok_or(End::Done)
}

/// A chunk's place in the file that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    offset: u64,
    entry: ManifestEntry,
}

fn pieces(entries: &[ManifestEntry]) -> Vec<Piece> {
    let mut offset = 0;
    let mut all = Vec::with_capacity(entries.len());
    for entry in entries {
        all.push(Piece { offset, entry: *entry });
        offset += entry.size;
    }
    all
}

/// Puts in all that is on this device; gives what is not.
async fn assemble_local(
    shared: &Shared,
    task: &DownloadTask,
    entries: &Arc<Vec<ManifestEntry>>,
    shown: &Shown,
) -> Result<(Temp, Vec<Piece>), End> {
    let wanted = entries.clone();
    let failed = |error: AskError| End::Failed { reason: error.to_string(), again: Again::Soon };
    let hints = shared.state.ask(move |state| {
        let places = state.find_chunks(&wanted)?;
        let mut rels = HashMap::new();
        for place in places.iter().flatten() {
            if !rels.contains_key(&place.node)
                && let Some(path) = state.path(crate::state::trees::Side::Local, place.node)?
                && let Ok(rel) = Rel::parse(&path)
            {
                rels.insert(place.node, rel);
            }
        }
        Ok((places, rels))
    });
    let (places, rels) = hints.await.map_err(failed)?;
    let (root, here, entries, stop) =
        (shared.root.clone(), task.clone(), entries.clone(), shared.stop.clone());
    let work = tokio::task::spawn_blocking(move || {
        let key = temporary_key(here.node, &here.content.content);
        let mut temp = root.temp_file_kept(key).map_err(|error| End::of_disk(&error))?;
        let mut local = Local { root: &root, rels, files: HashMap::new(), old: None, wrong: Vec::new() };
        local.index_old(here.replaces.as_ref(), &here.rel, &entries, &places, &stop);
        let mut missing = Vec::new();
        let held = temp.file().metadata().map_or(0, |metadata| metadata.len());
        temp.file().set_len(here.content.size).map_err(|error| end_of_write(&here.rel, &error))?;
        let mut copied = 0;
        for (piece, places) in pieces(&entries).into_iter().zip(places) {
            if stop.is_cancelled() {
                return Err(End::Stopped);
            }
            let there = piece.offset + piece.entry.size <= held
                && read_chunk(temp.file(), piece.offset, &piece.entry).is_ok();
            if there {
                copied += piece.entry.size;
            } else if let Some(bytes) = local.find(&piece.entry, &places) {
                temp.file()
                    .write_all_at(&bytes, piece.offset)
                    .map_err(|error| end_of_write(&here.rel, &error))?;
                copied += piece.entry.size;
            } else {
                missing.push(piece);
            }
        }
        Ok((temp, missing, copied, local.wrong))
    });
    let (temp, missing, copied, wrong) = work.await.unwrap_or(Err(End::Stopped))?;
    shown.advance(copied);
    if !wrong.is_empty() {
        drop(shared.state.ask(move |state| state.drop_chunk_hints(&wrong)).await);
    }
    Ok((temp, missing))
}

/// Local files that chunks may be taken from.
struct Local<'a> {
    root: &'a Root,
    rels: HashMap<NodeId, Rel>,
    files: HashMap<NodeId, Option<File>>,
    /// The file that is to be replaced, and where its chunks are.
    old: Option<(File, HashMap<ChunkId, u64>)>,
    wrong: Vec<(ChunkId, ChunkPlace)>,
}

impl Local<'_> {
    /// Cuts the file that is to be replaced, if the hints do not know it: most of the new one is likely in there.
    fn index_old(
        &mut self,
        replaces: Option<&LocalRecord>,
        rel: &Rel,
        entries: &[ManifestEntry],
        places: &[Vec<ChunkPlace>],
        stop: &tokio_util::sync::CancellationToken,
    ) {
        let Some(record) = replaces else { return };
        let known =
            places.iter().filter(|places| places.iter().any(|place| place.node == record.node)).count();
        if known * 2 > entries.len() {
            return;
        }
        let crate::planner::model::Kind::File(content) = &record.kind else { return };
        let Ok((file, stamp)) = self.root.open_for_read(rel) else { return };
        let mut go_on = || !stop.is_cancelled();
        if let Ok(old) = cut_file(&file, stamp.size, content.cutter, &mut go_on) {
            let index = pieces(&old).into_iter().map(|piece| (piece.entry.id, piece.offset)).collect();
            self.old = Some((file, index));
        }
    }

    fn find(&mut self, entry: &ManifestEntry, places: &[ChunkPlace]) -> Option<bytes::Bytes> {
        if let Some((file, index)) = &self.old
            && let Some(offset) = index.get(&entry.id)
            && let Ok(bytes) = read_chunk(file, *offset, entry)
        {
            return Some(bytes);
        }
        for place in places {
            let (root, rels) = (self.root, &self.rels);
            let file = self.files.entry(place.node).or_insert_with(|| {
                rels.get(&place.node).and_then(|rel| root.open_for_read(rel).ok()).map(|(file, _stamp)| file)
            });
            match file.as_ref().and_then(|file| read_chunk(file, place.offset, entry).ok()) {
                Some(bytes) => return Some(bytes),
                None => self.wrong.push((entry.id, *place)),
            }
        }
        None
    }
}

/// A run of chunks that lie behind one another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    offset: u64,
    length: u64,
    chunks: Vec<ManifestEntry>,
}

fn runs(missing: &[Piece]) -> Vec<Run> {
    let mut all: Vec<Run> = Vec::new();
    for piece in missing {
        match all.last_mut() {
            Some(run)
                if run.offset + run.length == piece.offset
                    && run.length + piece.entry.size <= RANGE_BYTES_MAX =>
            {
                run.length += piece.entry.size;
                run.chunks.push(piece.entry);
            }
            _ => all.push(Run { offset: piece.offset, length: piece.entry.size, chunks: vec![piece.entry] }),
        }
    }
    all
}

async fn fetch_missing(
    shared: &Shared,
    task: &DownloadTask,
    file: &Arc<File>,
    entries: &[ManifestEntry],
    missing: Vec<Piece>,
    shown: &Shown,
) -> Result<(), End> {
    // A chunk that occurs often is fetched once and copied.
    let mut first: BTreeMap<ChunkId, Piece> = BTreeMap::new();
    let mut again = Vec::new();
    let mut once = Vec::new();
    for piece in missing {
        match first.get(&piece.entry.id) {
            Some(_) => again.push(piece),
            None => {
                first.insert(piece.entry.id, piece);
                once.push(piece);
            }
        }
    }
    debug_assert!(once.len() + again.len() <= entries.len());
    let mut ranges = stream::iter(runs(&once))
        .map(|run| fetch_run(shared, task, file, run, shown))
        .buffer_unordered(RANGES_MAX);
    while let Some(done) = ranges.next().await {
        done?;
    }
    drop(ranges);
    if again.is_empty() {
        return Ok(());
    }
    let (file, rel) = (file.clone(), task.rel.clone());
    let work = tokio::task::spawn_blocking(move || {
        again.into_iter().try_for_each(|piece| {
            let from = first.get(&piece.entry.id).ok_or(End::LocalChanged)?;
            let bytes =
                read_chunk(&file, from.offset, &from.entry).map_err(super::upload_small::end_of_read)?;
            file.write_all_at(&bytes, piece.offset).map_err(|error| end_of_write(&rel, &error))
        })
    });
    work.await.unwrap_or(Err(End::Stopped))
}

async fn fetch_run(
    shared: &Shared,
    task: &DownloadTask,
    file: &Arc<File>,
    run: Run,
    shown: &Shown,
) -> Result<(), End> {
    let call = |error: CallError| End::of_call(&error);
    let range = RangeOf { entry: task.entry, version: task.version, offset: run.offset, length: run.length };
    let mut stream = tokio::select! {
        stream = shared.api.open_range(range) => stream.map_err(call)?,
        () = shared.stop.cancelled() => return Err(End::Stopped),
    };
    let mut chunks = run.chunks.into_iter();
    let mut next = chunks.next();
    let mut offset = run.offset;
    let mut held = BytesMut::new();
    while next.is_some() {
        let message = tokio::select! {
            message = shared.api.next_of(&mut stream) => message.map_err(call)?,
            () = shared.stop.cancelled() => return Err(End::Stopped),
        };
        let Some(message) = message else {
            return Err(call(CallError::protocol("fewer bytes than were asked for")));
        };
        let wire = message.data.len() as u64;
        shared.down.take(wire).await;
        shared.counters.down.wire(wire);
        held.extend_from_slice(&message.data);
        let mut whole = Vec::new();
        while let Some(entry) = next {
            let size = usize::try_from(entry.size).map_err(|_too_large| End::LocalChanged)?;
            if held.len() < size {
                break;
            }
            whole.push((offset, entry, held.split_to(size).freeze()));
            offset += entry.size;
            next = chunks.next();
        }
        let done: u64 = whole.iter().map(|(_, entry, _)| entry.size).sum();
        if !whole.is_empty() {
            write_chunks(file.clone(), task.rel.clone(), whole).await?;
        }
        shown.advance(done);
    }
    Ok(())
}

async fn write_chunks(
    file: Arc<File>,
    rel: Rel,
    chunks: Vec<(u64, ManifestEntry, bytes::Bytes)>,
) -> Result<(), End> {
    let work = tokio::task::spawn_blocking(move || {
        chunks.into_iter().try_for_each(|(offset, entry, bytes)| {
            if ChunkId::of(&bytes) != entry.id {
                return Err(End::of_call(&CallError::protocol("bytes of another chunk")));
            }
            file.write_all_at(&bytes, offset).map_err(|error| end_of_write(&rel, &error))
        })
    });
    work.await.unwrap_or(Err(End::Stopped))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, size: u64) -> Piece {
        Piece { offset, entry: ManifestEntry { id: ChunkId::of(&offset.to_be_bytes()), size } }
    }

    #[test]
    fn neighbours_come_in_one_range_up_to_its_bound() {
        let found = runs(&[piece(0, 10), piece(10, 20), piece(40, 5)]);
        let spans: Vec<_> = found.iter().map(|run| (run.offset, run.length, run.chunks.len())).collect();
        assert_eq!(spans, [(0, 30, 2), (40, 5, 1)]);
        let large = RANGE_BYTES_MAX / 2 + 1;
        assert_eq!(runs(&[piece(0, large), piece(large, large)]).len(), 2);
        assert!(runs(&[]).is_empty());
    }
}
