//! Fetches one large file: chunks that are in local files already are copied from there, the rest come by ranges, in
//! parallel. All of it goes into a file that outlives a restart and is gone on with.
//!
//! Invariants:
//! - Whatever a chunk is taken from, its bytes are hashed before they count; the list itself is hashed against the
//!   content that was asked for. So the file is whole and right when all chunks are in.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use engine::ids::{ChunkId, ContentId};
use engine::manifest::ManifestEntry;
use futures_util::StreamExt;
use futures_util::stream;

use super::download_small::{end_of_write, placed, put_in_place};
use super::range_reader::RangeReader;
use super::remote::record;
use crate::api::RangeOf;
use crate::call_error::CallError;
use crate::local::disk::{DiskError, Durability};
use crate::local::model::LocalRecord;
use crate::local::rel::Rel;
use crate::local::root::Root;
use crate::local::temp::Temp;
use crate::planner::model::{Kind, NodeId};
use crate::sparse::{self, Before, is_zero};
use crate::state::chunk_index::ChunkPlace;
use crate::state::trees::Side;
use crate::sync::shared::{Shared, Shown};
use crate::sync::state_thread::AskError;
use crate::sync::status::Direction;
use crate::sync::task::{Again, DownloadTask, End, Ended, Refusal};
use crate::upload::read::{cut_file, read_chunk};
use crate::write_back::WriteBack;

/// Bytes of a range, unless one chunk is longer.
const RANGE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Left free for the state and for small files: a large file that would need this too waits.
const RESERVE_BYTES: u64 = 4 * 1024 * 1024;
/// Sizes of chunks that are compared with zeros of that size, to know how much room a file needs.
const ZERO_SIZES_MAX: usize = 64;
/// Chunks above this size are not.
const ZERO_CHUNK_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Ranges under way of one file.
const RANGES_MAX: usize = 4;

/// Fetches the file and records what came of it.
pub(crate) async fn run(shared: &Shared, task: DownloadTask) -> Ended {
    let path = task.rel.as_str().to_owned();
    let shown = shared.counters.show(task.node, path, Direction::Down, task.content.size);
    if let Some(superseded) = shared.parts.begin(task.node, task.content.content) {
        discard(shared, vec![(task.node, superseded)]).await;
    }
    match fetch(shared, &task, &shown).await {
        Ok(ended) => ended,
        Err(end) => {
            shared.parts.broken_off(task.node, task.content.content);
            let no_room = matches!(
                end,
                End::Refused { by: Refusal::Full, .. } | End::Failed { again: Again::Later, .. }
            );
            let looked_at =
                if no_room { shared.parts.all() } else { vec![(task.node, task.content.content)] };
            discard_unwanted(shared, looked_at).await;
            Ended::quietly(task.node, end)
        }
    }
}

/// Files in part that downloads of this session left, to be gone on with: of which content of which node. None of them
/// is in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts(Arc<Mutex<HashMap<NodeId, ContentId>>>);

impl Parts {
    fn parts(&self) -> MutexGuard<'_, HashMap<NodeId, ContentId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A download begins: what it goes on with is in use. Gives what is left of another content of the node.
    fn begin(&self, node: NodeId, content: ContentId) -> Option<ContentId> {
        self.parts().remove(&node).filter(|left| *left != content)
    }

    fn broken_off(&self, node: NodeId, content: ContentId) {
        self.parts().insert(node, content);
    }

    fn all(&self) -> Vec<(NodeId, ContentId)> {
        self.parts().iter().map(|(node, content)| (*node, *content)).collect()
    }

    /// Takes out one that is to be discarded, unless it is in use by now.
    fn take(&self, node: NodeId, content: ContentId) -> bool {
        let mut parts = self.parts();
        let is_left = parts.get(&node) == Some(&content);
        if is_left {
            parts.remove(&node);
        }
        is_left
    }
}

/// Removes those of which the server has another content by now, or none.
async fn discard_unwanted(shared: &Shared, parts: Vec<(NodeId, ContentId)>) {
    let asked = shared.state.ask(move |state| {
        let mut unwanted = Vec::new();
        for (node, content) in parts {
            let kind = state.side(Side::Remote, node)?.map(|value| value.kind);
            if !matches!(kind, Some(Kind::File(file)) if file.content == content) {
                unwanted.push((node, content));
            }
        }
        Ok(unwanted)
    });
    let mut unwanted = asked.await.unwrap_or_default();
    unwanted.retain(|(node, content)| shared.parts.take(*node, *content));
    discard(shared, unwanted).await;
}

async fn discard(shared: &Shared, parts: Vec<(NodeId, ContentId)>) {
    if parts.is_empty() {
        return;
    }
    let root = shared.root.clone();
    let work = tokio::task::spawn_blocking(move || {
        for (node, content) in parts {
            match root.temp_file_kept(temporary_key(node, &content)) {
                Ok(temp) => temp.discard(),
                Err(error) => tracing::warn!(%error, "a part of a file is left until the next start"),
            }
        }
    });
    drop(work.await);
}

/// What names the file that is being assembled: the same content goes on where it was.
pub(crate) fn temporary_key(node: NodeId, content: &ContentId) -> u128 {
    let mut first = [0; 16];
    first.copy_from_slice(&content.as_bytes()[..16]);
    u128::from_be_bytes(first) ^ u128::from(node.0)
}

async fn fetch(shared: &Shared, task: &DownloadTask, shown: &Shown) -> Result<Ended, End> {
    let (root, here) = (shared.root.clone(), task.clone());
    // Room is looked at once it is known what of it is on this device.
    let free =
        tokio::task::spawn_blocking(move || root.check_target(&here.rel, here.replaces.as_ref())).await;
    free.unwrap_or(Ok(())).map_err(|error| End::of_disk(&error))?;
    let call = |error: CallError| End::of_call(&error);
    let (_entry, entries) = shared.api.manifest(task.entry, task.version).await.map_err(call)?;
    if ContentId::of(&entries) != task.content.content {
        // Another version than was asked for, or a list that is not of it.
        return Err(End::of_call(&CallError::protocol("a chunk list of another content")));
    }
    let entries = Arc::new(entries);
    let (mut temp, Filled { missing, before, .. }) = assemble_local(shared, task, &entries, shown).await?;
    let file = Arc::new(temp.file().try_clone().map_err(|error| end_of_write(&task.rel, &error))?);
    let target = Target { file, rel: task.rel.clone(), before, write_back: temp.write_back() };
    if let Err(end) = fetch_missing(shared, task, &target, &entries, missing, shown).await {
        let root = shared.root.clone();
        // What was fetched is kept, unless that keeps others from having room.
        drop(tokio::task::spawn_blocking(move || give_room(&root, temp)).await);
        return Err(end);
    }
    if shared.stop.is_cancelled() {
        return Err(End::Stopped);
    }
    let effect = shared.effects.begin(vec![task.node], vec![task.place.clone()]);
    let (root, mut here) = (shared.root.clone(), task.clone());
    here.keeps_replaced |= shared.writers.contains(&here.rel);
    let work = tokio::task::spawn_blocking(move || {
        temp.finish(here.attributes.mode, here.attributes.mtime_ns).map_err(|error| End::of_disk(&error))?;
        put_in_place(&root, temp, &here, Durability::Now)
    });
    let file = work.await.unwrap_or(Err(End::Stopped))?;
    let node = task.node;
    drop(shared.state.ask(move |state| state.index_chunks(node, &entries)).await);
    let (outcome, done) = placed(shared, task, &file);
    let ended = record(shared, vec![outcome], vec![done]).await.pop();
    drop(effect);
    ended.ok_or(End::Done)
}

/// The file that is being made.
#[derive(Clone, Debug)]
struct Target {
    file: Arc<File>,
    rel: Rel,
    before: Before,
    write_back: Arc<WriteBack>,
}

impl Target {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), End> {
        sparse::write_at(&self.file, bytes, offset, self.before)
            .and_then(|()| self.write_back.wrote(&self.file, bytes.len() as u64))
            .map_err(|error| end_of_write(&self.rel, &error))
    }
}

/// Bytes that need room: all but those of chunks that are zero, as far as these show by coming again and again.
fn bytes_on_disk(entries: &[ManifestEntry]) -> u64 {
    let mut counts: HashMap<ChunkId, (u64, u64)> = HashMap::new();
    for entry in entries {
        counts.entry(entry.id).or_insert((entry.size, 0)).1 += 1;
    }
    let mut sizes: HashMap<u64, ChunkId> = HashMap::new();
    let mut zero_bytes = 0;
    for (id, (size, count)) in counts {
        // The longest ones only: a run of zeros is cut into chunks of one size, the cutter's largest.
        if count < 2
            || size > ZERO_CHUNK_BYTES_MAX
            || (sizes.len() >= ZERO_SIZES_MAX && !sizes.contains_key(&size))
        {
            continue;
        }
        let Ok(bytes) = usize::try_from(size) else { continue };
        if *sizes.entry(size).or_insert_with(|| ChunkId::of(&vec![0; bytes])) == id {
            zero_bytes += size * count;
        }
    }
    entries.iter().map(|entry| entry.size).sum::<u64>().saturating_sub(zero_bytes)
}

/// Whether what is still missing of a file has room beside the reserve. `size`: the bytes that need room.
fn has_room(root: &Root, temp: &mut Temp, size: u64) -> bool {
    use std::os::unix::fs::MetadataExt;
    // As it is on disk: holes hold nothing yet.
    let held = temp.file().metadata().map_or(0, |metadata| metadata.blocks().saturating_mul(512));
    size.saturating_sub(held).saturating_add(RESERVE_BYTES) <= root.free_bytes()
}

fn give_room(root: &Root, temp: Temp) {
    if root.free_bytes() < RESERVE_BYTES {
        temp.discard();
    }
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
) -> Result<(Temp, Filled), End> {
    let wanted = entries.clone();
    let failed = |error: AskError| End::Failed { reason: error.to_string(), again: Again::Soon };
    let hints = shared.state.ask(move |state| {
        let places = state.find_chunks(&wanted)?;
        let mut rels = HashMap::new();
        for place in places.iter().flatten() {
            if !rels.contains_key(&place.node)
                && let Some(path) = state.path(Side::Local, place.node)?
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
        if !has_room(&root, &mut temp, bytes_on_disk(&entries)) {
            temp.discard();
            return Err(End::of_disk(&DiskError::NoSpace(here.rel)));
        }
        let local = Local { root: &root, rels, files: HashMap::new(), old: None, wrong: Vec::new() };
        match fill_local(local, &mut temp, &here, &entries, &places, &stop) {
            Ok(filled) => Ok((temp, filled)),
            Err(end) => {
                give_room(&root, temp);
                Err(end)
            }
        }
    });
    let (temp, mut filled) = work.await.unwrap_or(Err(End::Stopped))?;
    shown.advance(filled.copied_bytes);
    let wrong = std::mem::take(&mut filled.wrong);
    if !wrong.is_empty() {
        drop(shared.state.ask(move |state| state.drop_chunk_hints(&wrong)).await);
    }
    Ok((temp, filled))
}

/// What came of looking for chunks on this device.
struct Filled {
    missing: Vec<Piece>,
    copied_bytes: u64,
    /// What the file held when it was begun, or gone on with.
    before: Before,
    /// Hints that were wrong.
    wrong: Vec<(ChunkId, ChunkPlace)>,
}

/// Puts into the file what it does not have and this device has. Blocks.
fn fill_local(
    mut local: Local<'_>,
    temp: &mut Temp,
    task: &DownloadTask,
    entries: &[ManifestEntry],
    places: &[Vec<ChunkPlace>],
    stop: &tokio_util::sync::CancellationToken,
) -> Result<Filled, End> {
    local.index_old(task.replaces.as_ref(), &task.rel, entries, places, stop);
    let failed = |error: std::io::Error| end_of_write(&task.rel, &error);
    let held = temp.file().metadata().map_or(u64::MAX, |metadata| metadata.len());
    let before = if held == 0 { Before::Hole } else { Before::Anything };
    let mut filled = Filled { missing: Vec::new(), copied_bytes: 0, before, wrong: Vec::new() };
    temp.file().set_len(task.content.size).map_err(failed)?;
    let write_back = temp.write_back();
    for (piece, places) in pieces(entries).into_iter().zip(places) {
        if stop.is_cancelled() {
            return Err(End::Stopped);
        }
        let there = piece.offset + piece.entry.size <= held
            && read_chunk(temp.file(), piece.offset, &piece.entry).is_ok();
        if there {
            filled.copied_bytes += piece.entry.size;
        } else if let Some(bytes) = local.find(&piece.entry, places) {
            sparse::write_at(temp.file(), &bytes, piece.offset, before).map_err(failed)?;
            write_back.wrote(temp.as_file(), piece.entry.size).map_err(failed)?;
            filled.copied_bytes += piece.entry.size;
        } else {
            filled.missing.push(piece);
        }
    }
    filled.wrong = local.wrong;
    Ok(filled)
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
        let Kind::File(content) = &record.kind else { return };
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
    target: &Target,
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
        .map(|run| fetch_run(shared, task, target, run, shown))
        .buffer_unordered(RANGES_MAX);
    while let Some(done) = ranges.next().await {
        done?;
    }
    drop(ranges);
    if again.is_empty() {
        return Ok(());
    }
    let target = target.clone();
    let work = tokio::task::spawn_blocking(move || copy_again(&target, &first, again));
    work.await.unwrap_or(Err(End::Stopped))
}

/// Copies chunks from where they are first in the file. Blocks.
fn copy_again(target: &Target, first: &BTreeMap<ChunkId, Piece>, mut again: Vec<Piece>) -> Result<(), End> {
    // One chunk after another, so that each is read once.
    again.sort_by_key(|piece| (piece.entry.id, piece.offset));
    let mut read: Option<(ChunkId, bytes::Bytes, bool)> = None;
    for piece in again {
        let id = piece.entry.id;
        let (bytes, zero) = match &read {
            Some((of, bytes, zero)) if *of == id => (bytes.clone(), *zero),
            _ => {
                let from = first.get(&id).ok_or(End::LocalChanged)?;
                let bytes = read_chunk(&target.file, from.offset, &from.entry)
                    .map_err(super::upload_small::end_of_read)?;
                let zero = is_zero(&bytes);
                read = Some((id, bytes.clone(), zero));
                (bytes, zero)
            }
        };
        if !(zero && target.before == Before::Hole) {
            target.write(&bytes, piece.offset)?;
        }
    }
    Ok(())
}

async fn fetch_run(
    shared: &Shared,
    task: &DownloadTask,
    target: &Target,
    run: Run,
    shown: &Shown,
) -> Result<(), End> {
    let call = |error: CallError| End::of_call(&error);
    let range = RangeOf { entry: task.entry, version: task.version, offset: run.offset, length: run.length };
    let mut reader = RangeReader::new(shared, range);
    let mut chunks = run.chunks.into_iter();
    let mut next = chunks.next();
    let mut offset = run.offset;
    let mut held = BytesMut::new();
    while next.is_some() {
        let data = tokio::select! {
            data = reader.next() => data.map_err(call)?,
            () = shared.stop.cancelled() => return Err(End::Stopped),
        };
        held.extend_from_slice(&data);
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
            write_chunks(target.clone(), whole).await?;
        }
        shown.advance(done);
    }
    Ok(())
}

async fn write_chunks(target: Target, chunks: Vec<(u64, ManifestEntry, bytes::Bytes)>) -> Result<(), End> {
    let work = tokio::task::spawn_blocking(move || {
        chunks.into_iter().try_for_each(|(offset, entry, bytes)| {
            if ChunkId::of(&bytes) != entry.id {
                return Err(End::of_call(&CallError::protocol("bytes of another chunk")));
            }
            target.write(&bytes, offset)
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
    fn a_part_of_a_superseded_content_is_found_at_the_next_download() {
        let parts = Parts::default();
        let [old, new] = [ContentId::from_bytes([1; 32]), ContentId::from_bytes([2; 32])];
        assert_eq!(parts.begin(NodeId(7), old), None);
        parts.broken_off(NodeId(7), old);
        assert_eq!(parts.begin(NodeId(7), old), None, "it is gone on with");
        assert!(!parts.take(NodeId(7), old), "it is in use");
        parts.broken_off(NodeId(7), old);
        assert_eq!(parts.begin(NodeId(7), new), Some(old));
        parts.broken_off(NodeId(7), new);
        assert!(parts.take(NodeId(7), new) && parts.all().is_empty());
    }

    #[test]
    fn zeros_that_come_again_and_again_need_no_room() {
        let entry = |bytes: &[u8]| ManifestEntry { id: ChunkId::of(bytes), size: bytes.len() as u64 };
        let (zero, tail, full) = (entry(&[0; 5_000]), entry(&[0; 70]), entry(&[3; 5_000]));
        assert_eq!(bytes_on_disk(&[full, zero, zero, full, zero, tail]), 10_070);
        assert_eq!(bytes_on_disk(&[full, full]), 10_000);
        assert_eq!(bytes_on_disk(&[]), 0);
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
