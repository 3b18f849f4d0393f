//! The dedup rule (promise 6): which chunks a client need not send.
//!
//! A chunk may be skipped only if a version that the account may read holds it - the whole content is held by its
//! tree, or the chunk is in the current version of the upload's file or of one that the client names as a hint -
//! it can be read, and pinning it for the session succeeded. Whether the cluster has a chunk for anybody else is neither asked nor
//! told here.
//!
//! The look is bounded: lists of up to [`LOOK_ENTRIES_MAX`] entries, [`LOOK_BATCH_ENTRIES_MAX`] in one batch; nodes
//! are read one after the other.

use std::collections::{BTreeSet, HashMap};

use engine::ids::{ChunkId, ContentId, EntryId, HolderId};
use engine::location::LocatedChunk;
use engine::manifest::{ContentList, TreeWalk, WalkStep};
use metaraft::model::query::Resolved;
use metaraft::model::row::EntryKind;

use crate::auth::Caller;
use crate::chunks::presence::{Care, Unreadable, mark};
use crate::contents::Content;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{LOOK_BATCH_ENTRIES_MAX, LOOK_ENTRIES_MAX};
use crate::path::RemotePath;
use crate::sessions::Session;
use crate::uploads::begin::{Begun, Look};

fn failed(error: &metaraft::api::MetaError) -> Failure {
    Failure::from_meta(error, "upload")
}

/// Pins what may be skipped, and marks it as durable in the sessions.
pub(crate) async fn pin_readable(core: &Core, caller: &Caller, begun: &[Begun]) -> Result<(), Failure> {
    let sessions: Vec<&Session> = begun.iter().map(|begun| begun.session.as_ref()).collect();
    let mut readable: Vec<Vec<bool>> =
        sessions.iter().map(|session| vec![false; session.unknown().len()]).collect();
    mark_held(core, caller, &sessions, &mut readable).await?;
    mark_current(core, caller, begun, &mut readable).await?;

    let mut spared = Vec::new();
    for (number, (session, readable)) in sessions.iter().zip(&readable).enumerate() {
        for (place, chunk) in session.unknown() {
            if readable[place] {
                spared.push(Spared { number, place, chunk, holder: session.holder });
            }
        }
    }
    for spared in pin_sound(core, spared).await? {
        sessions[spared.number].mark_durable([spared.place]);
    }
    Ok(())
}

/// A chunk of a session that need not be sent, if it is there.
#[derive(Clone, Copy)]
struct Spared {
    /// Which session.
    number: usize,
    /// Which of its chunks.
    place: usize,
    chunk: ChunkId,
    holder: HolderId,
}

/// Pins chunks that can be read, and gives these. What is lost is marked: it is to be sent, and its bytes take the
/// place of what is there.
async fn pin_sound(core: &Core, spared: Vec<Spared>) -> Result<Vec<Spared>, Failure> {
    if spared.is_empty() {
        return Ok(spared);
    }
    let chunks: Vec<ChunkId> = spared.iter().map(|spared| spared.chunk).collect();
    let places = core.meta.locate(&chunks).await.map_err(|error| failed(&error))?;
    let located: HashMap<ChunkId, LocatedChunk> = chunks
        .iter()
        .zip(places)
        .filter_map(|(chunk, location)| Some((*chunk, LocatedChunk { chunk: *chunk, location: location? })))
        .collect();
    let doubt = core.presence.look(&located.values().copied().collect::<Vec<_>>(), Care::Usual).await;
    let mut bad = unless_marked(core, &doubt).await?;
    let (mut pinned, mut marked_before) = (Vec::new(), false);
    let good: Vec<Spared> = spared.into_iter().filter(|spared| !bad.contains(&spared.chunk)).collect();
    let pins: Vec<(HolderId, ChunkId)> = good.iter().map(|spared| (spared.holder, spared.chunk)).collect();
    let there = core.meta.pin(&pins).await.map_err(|error| failed(&error))?;
    for (spared, there) in good.into_iter().zip(there) {
        marked_before |= !there && located.contains_key(&spared.chunk);
        if there {
            pinned.push(spared);
        }
    }
    if marked_before || !bad.is_empty() {
        // Where some of a file is lost, the disks' word for the rest is not taken.
        let rest = pinned.iter().filter_map(|spared| located.get(&spared.chunk).copied());
        let rest: HashMap<ChunkId, LocatedChunk> = rest.map(|chunk| (chunk.chunk, chunk)).collect();
        let doubt = core.presence.look(&rest.into_values().collect::<Vec<_>>(), Care::Thorough).await;
        bad.extend(unless_marked(core, &doubt).await?);
        pinned.retain(|spared| !bad.contains(&spared.chunk));
    }
    Ok(pinned)
}

/// Marks what is lost, and gives all that cannot be read.
async fn unless_marked(core: &Core, doubt: &Unreadable) -> Result<BTreeSet<ChunkId>, Failure> {
    if !doubt.lost.is_empty() {
        mark(&core.meta, &doubt.lost).await.map_err(|error| failed(&error))?;
    }
    Ok(doubt.chunks())
}

/// Contents that kept versions of the caller's tree hold whole.
async fn mark_held(
    core: &Core,
    caller: &Caller,
    sessions: &[&Session],
    readable: &mut [Vec<bool>],
) -> Result<(), Failure> {
    let contents: Vec<ContentId> = sessions.iter().map(|session| session.content).collect();
    if contents.is_empty() {
        return Ok(());
    }
    let held = core.meta.namespace_holds(caller.namespace, contents).await.map_err(|error| failed(&error))?;
    for (readable, _held) in readable.iter_mut().zip(held).filter(|(_readable, held)| *held) {
        readable.fill(true);
    }
    Ok(())
}

/// The content of the file that a path leads to, if it leads to one.
fn content_at(path: &RemotePath, resolved: &Resolved) -> Option<ContentId> {
    match &resolved.last.kind {
        EntryKind::File(state) if resolved.found as usize == path.names().len() && state.size > 0 => {
            Some(state.content)
        }
        _ => None,
    }
}

/// Chunks of the current versions at the sessions' paths and hints.
async fn mark_current(
    core: &Core,
    caller: &Caller,
    begun: &[Begun],
    readable: &mut [Vec<bool>],
) -> Result<(), Failure> {
    let mut asked: Vec<(usize, RemotePath)> = Vec::new();
    let mut asked_ids: Vec<(usize, EntryId)> = Vec::new();
    for (number, begun) in begun.iter().enumerate() {
        if readable[number].iter().all(|readable| *readable) {
            continue;
        }
        for look in &begun.looks {
            match look {
                Look::Path(path) => asked.push((number, path.clone())),
                Look::Entry(entry) => asked_ids.push((number, *entry)),
            }
        }
    }
    let paths: Vec<RemotePath> = asked.iter().map(|(_number, path)| path.clone()).collect();
    let ids: Vec<EntryId> = asked_ids.iter().map(|(_number, entry)| *entry).collect();
    let (resolved, rows) = futures_util::future::try_join(
        core.meta.resolve(caller.namespace, &paths),
        core.meta.entries_by_id(caller.namespace, ids),
    )
    .await
    .map_err(|error| failed(&error))?;
    let mut interested: HashMap<ContentId, Vec<usize>> = HashMap::new();
    for ((number, path), resolved) in asked.iter().zip(&resolved) {
        if let Some(content) = content_at(path, resolved) {
            interested.entry(content).or_default().push(*number);
        }
    }
    for ((number, _entry), row) in asked_ids.iter().zip(rows) {
        if let Some(EntryKind::File(state)) = row.map(|row| row.kind)
            && state.size > 0
        {
            interested.entry(state.content).or_default().push(*number);
        }
    }
    let contents: Vec<ContentId> = interested.keys().copied().collect();
    let found = core.meta.contents_in(caller.namespace, &contents, false).await;
    let found = found.map_err(|error| failed(&error))?;
    let mut left = LOOK_BATCH_ENTRIES_MAX;
    for (content, found) in found {
        // What is in the nursery has no chunks yet that could be pinned.
        let Content::Listed(list) = found else { continue };
        let numbers = interested.remove(&content).unwrap_or_default();
        let looking: Vec<(usize, &Session)> =
            numbers.into_iter().map(|number| (number, begun[number].session.as_ref())).collect();
        left -= mark_list(core, list, &looking, readable, left.min(LOOK_ENTRIES_MAX)).await?;
        if left == 0 {
            break;
        }
    }
    Ok(())
}

/// Marks, for each session that looks, the chunks of its own that the list holds. Gives how many entries were looked
/// at, at most `entries_max`. A node that cannot be read ends the look: what is not marked is sent.
async fn mark_list(
    core: &Core,
    list: ContentList,
    looking: &[(usize, &Session)],
    readable: &mut [Vec<bool>],
    entries_max: usize,
) -> Result<usize, Failure> {
    let bad = |error| Failure::internal("manifest", &error);
    let mut walk = TreeWalk::new(list, 0).map_err(bad)?;
    let mut looked = 0;
    while looked < entries_max {
        match walk.step() {
            WalkStep::Done => break,
            WalkStep::Fetch { entry } => match core.source.read_node(entry.id).await {
                Ok(bytes) => walk.feed(&bytes).map_err(bad)?,
                Err(error) => {
                    tracing::warn!(chunk = %entry.id, error = %error, "manifest node not read; chunks are sent anew");
                    break;
                }
            },
            WalkStep::Chunk { entry, .. } => {
                looked += 1;
                mark_chunk(entry.id, looking, readable);
            }
        }
    }
    Ok(looked)
}

fn mark_chunk(chunk: ChunkId, looking: &[(usize, &Session)], readable: &mut [Vec<bool>]) {
    for (number, session) in looking {
        if let Some((place, _size)) = session.find(chunk) {
            readable[*number][place] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::cutter::Cutter;
    use engine::ids::{EntryId, UploadId, VersionId};
    use engine::manifest::ManifestEntry;
    use metaraft::model::row::{EntryRow, FileState};

    use super::*;

    fn chunk(byte: u8) -> ChunkId {
        ChunkId::from_bytes([byte; 32])
    }

    fn session(chunks: &[u8]) -> Session {
        let entries: Vec<ManifestEntry> =
            chunks.iter().map(|byte| ManifestEntry { id: chunk(*byte), size: 1 }).collect();
        let (upload, holder) = (UploadId::from_bytes([1; 16]), HolderId::from_bytes([2; 16]));
        let content = ContentId::of(&entries);
        Session::new(upload, holder, content, u64::MAX, entries)
    }

    fn resolved(found: u32, kind: EntryKind) -> Resolved {
        let last = EntryRow {
            entry: EntryId(2),
            parent: EntryId(1),
            name: "a".into(),
            kind,
            mode: 0,
            mtime_ns: 0,
            created_ms: 0,
            changed_ms: 0,
            sequence: 0,
        };
        Resolved { found, last, parent: Some(EntryId(1)) }
    }

    #[test]
    fn only_chunks_of_looked_at_lists_are_marked_and_only_for_who_looks() {
        let (one, other) = (session(&[1, 2, 3]), session(&[2, 9]));
        let mut readable = vec![vec![false; 3], vec![false; 2]];
        mark_chunk(chunk(2), &[(0, &one)], &mut readable);
        mark_chunk(chunk(7), &[(0, &one)], &mut readable);
        assert_eq!(readable, [vec![false, true, false], vec![false, false]]);
        mark_chunk(chunk(2), &[(0, &one), (1, &other)], &mut readable);
        assert_eq!(readable[1], [true, false]);
    }

    #[test]
    fn a_path_that_leads_elsewhere_gives_nothing_to_look_at() {
        let state = FileState {
            version: VersionId(1),
            content: ContentId::from_bytes([5; 32]),
            size: 10,
            cutter: Cutter::Cdc64k,
        };
        let path = RemotePath::parse("/d/a").unwrap();
        assert_eq!(content_at(&path, &resolved(2, EntryKind::File(state))), Some(state.content));
        assert_eq!(content_at(&path, &resolved(1, EntryKind::File(state))), None, "only a part was found");
        assert_eq!(content_at(&path, &resolved(2, EntryKind::Folder)), None);
    }
}
