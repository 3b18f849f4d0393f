//! Many small files in one round trip: all their chunks are looked up together, and read stripe by stripe, so that
//! files that were packed together are read together.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::{Bytes, BytesMut};
use engine::ids::{AccountId, ChunkId, ContentId, EntryId, NamespaceId, StripeId};
use engine::location::LocatedChunk;
use engine::manifest::{ContentList, ManifestEntry};
use futures_util::{StreamExt, stream};
use proto::v1;
use tonic::Code;

use crate::auth::Caller;
use crate::contents::Content;
use crate::convert;
use crate::core::{BUDGET_UNIT_BYTES, Core, content_gone, found};
use crate::door::shares::Share;
use crate::downloads::outbox::{Gone, Outbox, Waited};
use crate::downloads::stream::{Ended, FileVersion, file_state, version_of};
use crate::failure::Failure;
use crate::limits::{
    BATCH_ITEMS_MAX, DOWNLOAD_MANY_BYTES_MAX, DOWNLOAD_MESSAGE_BYTES_MAX, DOWNLOAD_PAUSE_AFTER,
    DOWNLOAD_RUNS_MAX, REQUEST_COMMANDS_MAX,
};
use crate::path::RemotePath;

/// All files of a request, in order, each found or not.
pub(crate) struct Many {
    namespace: NamespaceId,
    files: Vec<Result<FileVersion, Failure>>,
}

/// Finds the files, by path or by id.
pub(crate) async fn find(
    core: &Core,
    caller: &Caller,
    request: &v1::DownloadManyRequest,
) -> Result<Many, Failure> {
    if request.paths.len().max(request.entries.len()) > BATCH_ITEMS_MAX {
        return Err(Failure::invalid(format!("at most {BATCH_ITEMS_MAX} files in one request")));
    }
    let found = match (request.paths.as_slice(), request.entries.as_slice()) {
        (paths, []) => by_path(core, caller, paths).await?,
        ([], entries) => by_id(core, caller, entries).await?,
        _ => return Err(Failure::invalid("files are named by path or by id, not by both")),
    };
    let mut left = DOWNLOAD_MANY_BYTES_MAX;
    Ok(Many {
        namespace: caller.namespace,
        files: found.into_iter().map(|file| bounded(file?, &mut left)).collect(),
    })
}

async fn by_path(
    core: &Core,
    caller: &Caller,
    paths: &[String],
) -> Result<Vec<Result<FileVersion, Failure>>, Failure> {
    let parsed: Vec<Result<RemotePath, Failure>> =
        paths.iter().map(|path| RemotePath::parse(path).map_err(Failure::from)).collect();
    let valid: Vec<RemotePath> = parsed.iter().filter_map(|path| path.clone().ok()).collect();
    let resolved = core.meta.resolve(caller.namespace, &valid).await;
    let mut resolved = resolved.map_err(|error| Failure::from_meta(&error, "download"))?.into_iter();
    let files = parsed.into_iter().map(|path| {
        let path = path?;
        let resolved = resolved.next().ok_or_else(|| Failure::no_entry(&path.to_string()))?;
        let row = found(&path, &resolved)?;
        let subject = path.to_string();
        let state = file_state(&row, &subject)?;
        Ok(FileVersion { entry: convert::entry_to_wire(row, Some(&path)), state, subject })
    });
    Ok(files.collect())
}

async fn by_id(
    core: &Core,
    caller: &Caller,
    entries: &[v1::EntryVersion],
) -> Result<Vec<Result<FileVersion, Failure>>, Failure> {
    let ids = entries.iter().map(|entry| EntryId(entry.entry_id)).collect();
    let rows = core.meta.entries_by_id(caller.namespace, ids).await;
    let rows = rows.map_err(|error| Failure::from_meta(&error, "download"))?;
    let files = entries.iter().zip(rows).map(|(entry, row)| async move {
        let row = row.ok_or_else(|| Failure::no_entry(&format!("entry {}", entry.entry_id)))?;
        version_of(core, caller, row, None, entry.version).await
    });
    let files: Vec<_> = files.collect();
    Ok(stream::iter(files).buffered(REQUEST_COMMANDS_MAX).collect().await)
}

fn bounded(file: FileVersion, left: &mut u64) -> Result<FileVersion, Failure> {
    if file.state.size > *left {
        let message = format!(
            "{}: at most {DOWNLOAD_MANY_BYTES_MAX} bytes together are sent so; download it by itself",
            file.subject
        );
        return Err(Failure::new(Code::OutOfRange, "too-large", message));
    }
    *left -= file.state.size;
    Ok(file)
}

type Sink = Outbox<v1::DownloadManyResponse>;

/// Sends all files, each whole or with an error in its place.
pub(crate) async fn serve(core: &Core, account: AccountId, many: Many, sink: Sink) {
    let sending = sink.while_heard(send_all(core, account, &many, &sink));
    let ended = match sending.await {
        Ok(Ok(()) | Err(Ended::Unheard)) | Err(Gone) => Ok(()),
        Ok(Err(Ended::Failed(failure))) => Err(failure.into()),
    };
    sink.end(ended);
}

/// A message's place: of which file, and which of its messages.
type Place = (usize, usize);

async fn send_all(core: &Core, account: AccountId, many: &Many, sink: &Sink) -> Result<(), Ended> {
    let mut next: Place = (0, 0);
    let mut sent: Vec<Place> = Vec::new();
    while send_from(core, account, many, next, &mut sent, sink).await? == Waited::Paused {
        let kept = sent.len() - sink.take_back().len();
        let unsent = sent.split_off(kept);
        let (file, message) = sent.last().copied().map_or((0, 0), |(file, message)| (file, message + 1));
        next = unsent.first().copied().unwrap_or((file, message));
        // What was read, and its share of the bounds, are dropped by now.
        sink.wanted().await?;
    }
    Ok(())
}

/// Sends from a place on, until all was taken or the client pauses.
async fn send_from(
    core: &Core,
    account: AccountId,
    many: &Many,
    from: Place,
    sent: &mut Vec<Place>,
    sink: &Sink,
) -> Result<Waited, Ended> {
    let files = many.files.get(from.0..).unwrap_or_default();
    let (lists, plain, _budget) = gather(core, account, many.namespace, files).await?;
    for (place, file) in (from.0..).zip(files) {
        let index = u32::try_from(place).unwrap_or(u32::MAX);
        let messages = match file {
            Ok(file) => file_messages(index, file, &lists, &plain).unwrap_or_else(|failure| {
                let message = format!("{}: {}", file.subject, failure.message);
                vec![error_message(index, Failure { message, ..failure })]
            }),
            Err(failure) => vec![error_message(index, failure.clone())],
        };
        for (number, message) in messages.into_iter().enumerate() {
            // An error is told, whatever of the file was sent before.
            if place == from.0 && number < from.1 && message.error.is_none() {
                continue;
            }
            if sink.room(DOWNLOAD_PAUSE_AFTER).await? == Waited::Paused {
                return Ok(Waited::Paused);
            }
            sent.push((place, number));
            sink.push(message);
        }
    }
    Ok(sink.last_taken(DOWNLOAD_PAUSE_AFTER).await?)
}

fn error_message(index: u32, failure: Failure) -> v1::DownloadManyResponse {
    let error = Some(failure.into_item());
    v1::DownloadManyResponse { index, end: true, error, ..v1::DownloadManyResponse::default() }
}

type Plain = HashMap<ChunkId, Result<Bytes, Failure>>;

type Gathered = (HashMap<ContentId, ContentList>, Plain, Share);

/// Reads all chunks of all files, each stripe once.
async fn gather(
    core: &Core,
    account: AccountId,
    namespace: NamespaceId,
    files: &[Result<FileVersion, Failure>],
) -> Result<Gathered, Failure> {
    let files = || files.iter().filter_map(|file| file.as_ref().ok());
    let bytes: u64 = files().map(|file| file.state.size).sum();
    let budget = core.download_bytes.take(account, bytes.div_ceil(BUDGET_UNIT_BYTES)).await;
    let contents: HashSet<ContentId> =
        files().filter(|file| file.state.size > 0).map(|file| file.state.content).collect();
    let contents: Vec<ContentId> = contents.into_iter().collect();
    let turn = core.lookups.take(account, 1).await;
    let found = core.meta.contents_in(namespace, &contents, true).await;
    drop(turn);
    let found = found.map_err(|error| Failure::from_meta(&error, "download"))?;
    let (mut lists, mut kept, mut chunks) = (HashMap::new(), Plain::new(), Vec::new());
    for (content, found) in found {
        let whole = match &found {
            Content::Kept(whole) => Some(whole.verified()),
            Content::Listed(_) => None,
        };
        let list = found.into_list();
        let ids = list.entries.iter().map(|entry| entry.id);
        match whole {
            Some(Ok(plain)) => kept.extend(plain.into_iter().map(|(chunk, plain)| (chunk, Ok(plain)))),
            Some(Err(failure)) => kept.extend(ids.map(|chunk| (chunk, Err(failure.clone())))),
            None if list.depth == 0 => chunks.extend(ids),
            None => {}
        }
        lists.insert(content, list);
    }
    chunks.sort_unstable();
    chunks.dedup();
    let mut plain = read(core, account, &chunks).await?;
    plain.extend(kept);
    Ok((lists, plain, budget))
}

/// Reads chunks of any stripes; each that cannot be read says why.
async fn read(
    core: &Core,
    account: AccountId,
    chunks: &[ChunkId],
) -> Result<HashMap<ChunkId, Result<Bytes, Failure>>, Failure> {
    let turn = core.lookups.take(account, 1).await;
    let places = core.meta.locate(chunks).await;
    drop(turn);
    let places = places.map_err(|error| Failure::from_meta(&error, "download"))?;
    let mut plain = HashMap::with_capacity(chunks.len());
    let mut stripes: BTreeMap<StripeId, Vec<LocatedChunk>> = BTreeMap::new();
    for (chunk, location) in chunks.iter().zip(places) {
        match location {
            Some(location) => {
                let located = LocatedChunk { chunk: *chunk, location };
                stripes.entry(location.stripe).or_default().push(located);
            }
            None => drop(plain.insert(*chunk, Err(content_gone()))),
        }
    }
    let reads = stripes.into_values().map(|mut run| async move {
        // By place, so that neighbours are one read.
        run.sort_unstable_by_key(|located| located.location.offset);
        let read = core.read_run(account, &run).await;
        (run, read)
    });
    let mut reads = stream::iter(reads).buffer_unordered(2 * DOWNLOAD_RUNS_MAX);
    while let Some((run, read)) = reads.next().await {
        match read {
            Ok(bytes) => {
                let chunks = run.iter().map(|located| located.chunk);
                plain.extend(chunks.zip(bytes.into_iter().map(Ok)));
            }
            Err(failure) => {
                plain.extend(run.iter().map(|located| (located.chunk, Err(failure.clone()))));
            }
        }
    }
    Ok(plain)
}

/// A file's messages, the first with its entry, the last with the end.
fn file_messages(
    index: u32,
    file: &FileVersion,
    lists: &HashMap<ContentId, ContentList>,
    plain: &HashMap<ChunkId, Result<Bytes, Failure>>,
) -> Result<Vec<v1::DownloadManyResponse>, Failure> {
    let no_chunks = ContentList::default();
    let list = match file.state.size {
        0 => &no_chunks,
        _ => lists.get(&file.state.content).ok_or_else(content_gone)?,
    };
    if list.depth > 0 {
        let message = "it is cut into too many chunks to be sent so; download it by itself";
        return Err(Failure::new(Code::OutOfRange, "too-large", message));
    }
    let mut messages: Vec<v1::DownloadManyResponse> = Vec::new();
    let message =
        |data: BytesMut| v1::DownloadManyResponse { index, data: data.freeze(), ..Default::default() };
    let mut data = BytesMut::new();
    let mut sent = 0_u64;
    for ManifestEntry { id, .. } in &list.entries {
        let bytes = plain.get(id).ok_or_else(content_gone)?.as_ref().map_err(Failure::clone)?;
        if !data.is_empty() && data.len() + bytes.len() > DOWNLOAD_MESSAGE_BYTES_MAX {
            messages.push(message(std::mem::take(&mut data)));
        }
        data.extend_from_slice(bytes);
        sent += bytes.len() as u64;
    }
    if sent != file.state.size {
        return Err(Failure::internal("manifest", &"its chunks do not add up to its size"));
    }
    messages.push(message(data));
    if let Some(first) = messages.first_mut() {
        first.entry = Some(file.entry.clone());
    }
    if let Some(last) = messages.last_mut() {
        last.end = true;
    }
    Ok(messages)
}
