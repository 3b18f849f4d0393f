//! One version of a file as a stream.
//!
//! Runs are read ahead, as many as the bounds allow, and sent in order. Whatever fails ends the stream with an error
//! status: a stream that ends well is whole.
//!
//! A client that takes nothing for a while is no fault: what was read for it is dropped, with its share of the bounds,
//! and read again once it goes on, whenever that is. For one that does not even take the entry, which goes ahead of a file of
//! some size, nothing is read.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use engine::ids::{AccountId, ChunkId, EntryId, NamespaceId, VersionId};
use engine::location::ChunkLocation;
use futures_util::{Stream, StreamExt, TryStreamExt};
use metaraft::model::nursery::{FileAt, FoundContent, Opened};
use metaraft::model::row::{EntryKind, EntryRow, FileState, VersionRow};
use proto::v1;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

use crate::auth::{Caller, Claim, refused};
use crate::contents::{Content, KeptContent};
use crate::convert;
use crate::core::{BUDGET_UNIT_BYTES, Core, content_gone};
use crate::door::bodies::{Beginning, counted};
use crate::door::shares::Share;
use crate::downloads::outbox::{Gone, Outbox, Waited};
use crate::downloads::plan::{Planner, Run};
use crate::failure::Failure;
use crate::limits::{DOWNLOAD_MESSAGE_BYTES_MAX, DOWNLOAD_PAUSE_AFTER, DOWNLOAD_RUNS_MAX};
use crate::path::{RemotePath, shown};

/// A version of a file that the caller may read.
pub(crate) struct FileVersion {
    pub(crate) entry: v1::Entry,
    pub(crate) state: FileState,
    /// What messages call it.
    pub(crate) subject: String,
}

/// So little is kept for a client that pauses, with its share of the bounds, for as long as its request is open: to wait until
/// it was taken would cost more than all else that sending it does.
const KEPT_BYTES_MAX: u64 = 64 * 1024;

/// What is to be sent.
pub(crate) struct Download {
    namespace: NamespaceId,
    file: FileVersion,
    range: Range<u64>,
    /// What was found along with the version.
    opening: Option<Opening>,
}

/// A content, and where its chunks lie, as far as that was told with it.
struct Opening {
    content: Content,
    places: HashMap<ChunkId, ChunkLocation>,
}

impl Download {
    /// Whether it is so little that it is kept for a client that pauses.
    fn is_kept(&self) -> bool {
        self.range.end - self.range.start <= KEPT_BYTES_MAX
    }

    /// Whether its entry comes in a message of its own.
    fn entry_goes_ahead(&self) -> bool {
        self.range.is_empty() || !self.is_kept()
    }
}

/// The entry as a version of it was.
fn at_version(mut entry: EntryRow, version: &VersionRow) -> (EntryRow, FileState) {
    let VersionRow { version, content, size, cutter, mode, mtime_ns, .. } = *version;
    let state = FileState { version, content, size, cutter };
    entry.kind = EntryKind::File(state);
    entry.mode = mode;
    entry.mtime_ns = mtime_ns;
    (entry, state)
}

/// The state of a file, or why there is nothing to download.
pub(crate) fn file_state(row: &EntryRow, subject: &str) -> Result<FileState, Failure> {
    match &row.kind {
        EntryKind::File(state) => Ok(*state),
        other => {
            let message = format!("{subject}: it is a {}, not a file", other.word());
            Err(Failure::precondition("wrong-kind", message))
        }
    }
}

/// Finds a version by path or, without one, by the entry's id; version 0 is the current one.
pub(crate) async fn find_version(
    core: &Core,
    caller: &Caller,
    path: &str,
    entry: u64,
    version: u64,
) -> Result<FileVersion, Failure> {
    if path.is_empty() && entry != 0 {
        let row = core.entry_by_id(caller.namespace, EntryId(entry)).await?;
        return version_of(core, caller, row, None, version).await;
    }
    let path = RemotePath::parse(path)?;
    let row = core.entry_at(caller.namespace, &path).await?;
    version_of(core, caller, row, Some(&path), version).await
}

/// A version of an entry that is in the caller's tree.
pub(crate) async fn version_of(
    core: &Core,
    caller: &Caller,
    row: EntryRow,
    path: Option<&RemotePath>,
    version: u64,
) -> Result<FileVersion, Failure> {
    let subject = path.map_or_else(|| shown(&row.name), ToString::to_string);
    let mut state = file_state(&row, &subject)?;
    let mut row = row;
    if version != 0 && version != state.version.0 {
        let found = core.meta.version(caller.namespace, row.entry, VersionId(version)).await;
        let found = found
            .map_err(|error| Failure::from_meta(&error, &subject))?
            .ok_or_else(|| Failure::not_found(format!("{subject}: there is no version {version}")))?;
        (row, state) = at_version(row, &found);
    }
    Ok(FileVersion { entry: convert::entry_to_wire(row, path), state, subject })
}

/// Opens the current version of a file, by path or, without one, by its id: in one look.
async fn open(
    core: &Core,
    claim: &Claim,
    path: &str,
    entry: u64,
) -> Result<(FileVersion, Option<Opening>), Failure> {
    let (at, path) = if path.is_empty() && entry != 0 {
        (FileAt::Entry(EntryId(entry)), None)
    } else {
        let path = RemotePath::parse(path)?;
        (FileAt::Path(path.names().to_vec()), Some(path))
    };
    let subject = path.as_ref().map_or_else(|| format!("entry {entry}"), ToString::to_string);
    let opened = core.meta.open(claim.token, claim.caller.namespace, at, true).await;
    let (row, content, places) = match opened.map_err(|error| Failure::from_meta(&error, &subject))? {
        Opened::TokenRefused => return Err(refused()),
        Opened::NoEntry(_) => return Err(Failure::no_entry(&subject)),
        Opened::Found { entry, content, places } => (entry, content, places),
    };
    let subject = path.as_ref().map_or_else(|| shown(&row.name), ToString::to_string);
    let state = file_state(&row, &subject)?;
    let content = match content {
        Some(FoundContent::Absent) => return Err(content_gone()),
        Some(content) => Content::found(content),
        None => None,
    };
    let opening = content.map(|content| {
        let places = match &content {
            Content::Listed(list) => {
                let chunks = list.entries.iter().map(|entry| entry.id);
                chunks.zip(places).filter_map(|(chunk, place)| Some((chunk, place?))).collect()
            }
            Content::Kept(_) => HashMap::new(),
        };
        Opening { content, places }
    });
    Ok((FileVersion { entry: convert::entry_to_wire(row, path.as_ref()), state, subject }, opening))
}

/// Finds what a request asks for.
pub(crate) async fn find(
    core: &Core,
    claim: &Claim,
    request: &v1::DownloadRequest,
) -> Result<Download, Failure> {
    let caller = &claim.caller;
    let (file, opening) = if request.version == 0 {
        open(core, claim, &request.path, request.entry_id).await?
    } else {
        claim.check(&core.meta).await?;
        (find_version(core, caller, &request.path, request.entry_id, request.version).await?, None)
    };
    let (size, subject) = (file.state.size, &file.subject);
    if request.offset > size {
        let message = format!("{subject}: offset {} is beyond its end, {size} bytes", request.offset);
        return Err(Failure::new(Code::OutOfRange, "out-of-range", message));
    }
    let end = match request.length {
        0 => size,
        length => request.offset.saturating_add(length).min(size),
    };
    Ok(Download { namespace: caller.namespace, range: request.offset..end, file, opening })
}

/// A run's bytes, with its share of the bound on bytes.
struct ReadRun {
    run: Run,
    plain: Vec<Bytes>,
    budget: Share,
}

/// Reads the runs of a plan ahead, in order.
fn read_ahead(
    core: Arc<Core>,
    account: AccountId,
    planner: Planner,
) -> impl Stream<Item = Result<ReadRun, Failure>> + Send {
    let planned = (Arc::clone(&core), planner);
    let runs = futures_util::stream::try_unfold(planned, move |(core, mut planner)| async move {
        let turn = core.lookups.take(account, 1).await;
        let runs = planner.next_runs().await?;
        drop(turn);
        Ok::<_, Failure>(runs.map(|runs| (runs, (core, planner))))
    });
    let runs = runs.map_ok(|runs| futures_util::stream::iter(runs.into_iter().map(Ok::<Run, Failure>)));
    let budgets = Arc::clone(&core);
    let admitted = runs.try_flatten().and_then(move |run| {
        let core = Arc::clone(&budgets);
        async move {
            let units = run.bytes.div_ceil(BUDGET_UNIT_BYTES);
            let budget = core.download_bytes.take(account, units).await;
            Ok((run, budget))
        }
    });
    let reads = admitted.map_ok(move |(run, budget)| {
        let core = Arc::clone(&core);
        let read = AbortOnDropHandle::new(tokio::spawn(async move {
            let plain = core.read_run(account, &run.chunks).await?;
            Ok(ReadRun { run, plain, budget })
        }));
        async move { read.await.map_err(|error| Failure::internal("read", &error))? }
    });
    reads.try_buffered(DOWNLOAD_RUNS_MAX)
}

/// Where the stream's messages go.
pub(crate) type Sink = Outbox<v1::DownloadResponse>;

/// Puts small chunks together and large ones apart, so that messages are of a good size.
#[derive(Default)]
struct Messages {
    gathered: BytesMut,
}

impl Messages {
    /// Adds bytes; gives messages that are ready.
    fn push(&mut self, bytes: Bytes) -> Vec<Bytes> {
        let mut ready = Vec::new();
        if self.gathered.len() + bytes.len() > DOWNLOAD_MESSAGE_BYTES_MAX {
            ready.extend(self.flush());
        }
        if bytes.len() * 2 <= DOWNLOAD_MESSAGE_BYTES_MAX {
            self.gathered.extend_from_slice(&bytes);
            return ready;
        }
        ready.extend(self.flush());
        let mut rest = bytes;
        while rest.len() > DOWNLOAD_MESSAGE_BYTES_MAX {
            ready.push(rest.split_to(DOWNLOAD_MESSAGE_BYTES_MAX));
        }
        ready.push(rest);
        ready
    }

    fn flush(&mut self) -> Option<Bytes> {
        (!self.gathered.is_empty()).then(|| std::mem::take(&mut self.gathered).freeze())
    }
}

/// Why a stream ended early: the client has gone, or something failed.
pub(crate) enum Ended {
    Unheard,
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Gone> for Ended {
    fn from(_gone: Gone) -> Self {
        Self::Unheard
    }
}

/// A message's bytes count until they are handed over for sending, also while it waits to be taken.
fn still_counted(data: Bytes, budget: Option<&mut Share>) -> Bytes {
    let units = usize::try_from((data.len() as u64).div_ceil(BUDGET_UNIT_BYTES)).unwrap_or(usize::MAX);
    match budget.and_then(|budget| budget.split(units)) {
        Some(share) => counted(data, share),
        None => data,
    }
}

/// Sends a download to the end, or ends it with an error.
pub(crate) async fn serve(
    core: Arc<Core>,
    account: AccountId,
    download: Download,
    sink: Sink,
    beginning: &Beginning,
) {
    let subject = download.file.subject.clone();
    let sending = sink.while_heard(send_all(core, account, download, &sink, beginning));
    let ended = match sending.await {
        Ok(Ok(()) | Err(Ended::Unheard)) | Err(Gone) => Ok(()),
        Ok(Err(Ended::Failed(failure))) => {
            Err(Failure { message: format!("{subject}: {}", failure.message), ..failure }.into())
        }
    };
    sink.end(ended);
}

async fn send_all(
    core: Arc<Core>,
    account: AccountId,
    mut download: Download,
    sink: &Sink,
    beginning: &Beginning,
) -> Result<(), Ended> {
    if download.entry_goes_ahead() {
        sink.push(v1::DownloadResponse { entry: Some(download.file.entry.clone()), data: Bytes::new() });
        if download.range.is_empty() {
            return Ok(());
        }
        beginning.taken().await;
    }
    let mut offset = download.range.start;
    // What was found goes to the first attempt alone: later on it may be elsewhere.
    let mut opening = download.opening.take();
    while send_from(&core, account, &download, opening.take(), &mut offset, sink).await? == Waited::Paused {
        let unsent: usize = sink.take_back().iter().map(|message| message.data.len()).sum();
        offset -= unsent as u64;
        tracing::debug!(offset, "a download pauses");
        // Nothing but this place is held meanwhile.
        sink.wanted().await?;
    }
    Ok(())
}

/// Sends from `offset` on, which counts along, until all was taken or the client pauses.
async fn send_from(
    core: &Arc<Core>,
    account: AccountId,
    download: &Download,
    opening: Option<Opening>,
    offset: &mut u64,
    sink: &Sink,
) -> Result<Waited, Ended> {
    let Opening { content, places } = match opening {
        Some(opening) => opening,
        None => {
            let _turn = core.lookups.take(account, 1).await;
            let content = core.source.content_of(download.namespace, &download.file.state).await?;
            Opening { content, places: HashMap::new() }
        }
    };
    let list = match content {
        Content::Listed(list) => list,
        Content::Kept(kept) => return send_kept(core, account, download, &kept, offset, sink).await,
    };
    let planner = Planner::new(core.source.clone(), list, places, *offset..download.range.end)?;
    let mut runs = std::pin::pin!(read_ahead(Arc::clone(core), account, planner));
    let mut messages = Messages::default();
    let mut budget = None;
    while let Some(read) = runs.next().await {
        let read = read?;
        budget = Some(read.budget);
        for (plain, cut) in read.plain.into_iter().zip(read.run.cuts) {
            if cut.end > plain.len() {
                return Err(Failure::internal("manifest", &"a chunk is shorter than its list says").into());
            }
            for data in messages.push(plain.slice(cut)) {
                let data = still_counted(data, budget.as_mut());
                if send(download, offset, data, sink).await? == Waited::Paused {
                    return Ok(Waited::Paused);
                }
            }
        }
    }
    if let Some(data) = messages.flush() {
        let data = still_counted(data, budget.as_mut());
        if send(download, offset, data, sink).await? == Waited::Paused {
            return Ok(Waited::Paused);
        }
    }
    if *offset < download.range.end {
        return Err(Failure::internal("manifest", &"it ends before its file does").into());
    }
    if download.is_kept() {
        return Ok(Waited::Ready);
    }
    Ok(sink.last_taken(DOWNLOAD_PAUSE_AFTER).await?)
}

/// Sends a content of the nursery, in one message: from `offset` on, which counts along.
async fn send_kept(
    core: &Core,
    account: AccountId,
    download: &Download,
    kept: &KeptContent,
    offset: &mut u64,
    sink: &Sink,
) -> Result<Waited, Ended> {
    let units = (download.range.end - *offset).div_ceil(BUDGET_UNIT_BYTES);
    let mut budget = core.download_bytes.take(account, units).await;
    let mut whole = BytesMut::new();
    for (_chunk, plain) in kept.verified()? {
        whole.extend_from_slice(&plain);
    }
    let place = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    let (from, to) = (place(*offset), place(download.range.end));
    if to > whole.len() {
        return Err(Failure::internal("manifest", &"it ends before its file does").into());
    }
    let data = still_counted(whole.freeze().slice(from..to), Some(&mut budget));
    send(download, offset, data, sink).await
}

async fn send(download: &Download, offset: &mut u64, data: Bytes, sink: &Sink) -> Result<Waited, Ended> {
    let waited = sink.room(DOWNLOAD_PAUSE_AFTER).await?;
    if waited == Waited::Ready {
        let with_entry = !download.entry_goes_ahead() && *offset == download.range.start;
        let entry = with_entry.then(|| download.file.entry.clone());
        *offset += data.len() as u64;
        sink.push(v1::DownloadResponse { entry, data });
    }
    Ok(waited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_every_byte_in_order_and_their_bound() {
        let mut messages = Messages::default();
        let sizes = [1, 100, 600_000, 600_000, 3, 4 << 20, 7, 1 << 20, 1];
        let mut sent = Vec::new();
        let mut expected = Vec::new();
        for (number, size) in sizes.into_iter().enumerate() {
            let bytes: Vec<u8> =
                (0..size).map(|byte: usize| ((byte * 31 + number) % 251).to_le_bytes()[0]).collect();
            expected.extend_from_slice(&bytes);
            sent.extend(messages.push(bytes.into()));
        }
        sent.extend(messages.flush());
        assert!(
            sent.iter().all(|message| message.len() <= DOWNLOAD_MESSAGE_BYTES_MAX && !message.is_empty())
        );
        assert_eq!(sent.concat(), expected);
    }
}
