//! Takes chunks from a stream, makes them durable, and acknowledges each.
//!
//! Invariants:
//! - A chunk is acknowledged only after a commit that pinned it for every session it was sent for.
//! - A chunk that is there already takes the same way as one that is new ([`crate::chunks::deposit`]), and its bytes
//!   count against the same bounds: a client cannot tell the two apart.
//! - Bytes held are bounded per stream and over all streams, and both bounds are taken before work begins.
//! - Whoever takes no answer for [`ANSWER_STALL_MAX`] loses the stream, and with it its part of the bounds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::codec::PreparedChunk;
use engine::ids::{ChunkId, HolderId, UploadId};
use engine::location::{ChunkKind, ChunkLocation};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::{CHUNK_UPLOADS_MAX, v1};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::auth::Caller;
use crate::chunks::inflight::{Claim, Claimed};
use crate::convert;
use crate::core::{BUDGET_UNIT_BYTES, Core};
use crate::door::shares::Share;
use crate::failure::Failure;
use crate::limits::{
    PUT_MESSAGE_CHUNKS_MAX, PUT_MESSAGE_SESSIONS_MAX, PUT_MESSAGES_IN_FLIGHT_MAX, UPLOAD_STREAM_BYTES_MAX,
};
use crate::sessions::{Session, session_gone};

/// A client that takes no answers for so long loses its stream.
const ANSWER_STALL_MAX: Duration = Duration::from_secs(30);

/// Times that a chunk is looked for again after somebody else's attempt to store it ended.
const CLAIM_ROUNDS_MAX: usize = 8;

/// Where answers go.
pub(crate) type Sink = mpsc::Sender<Result<v1::PutChunkResult, Status>>;

/// Where the answers of one stream go, until nobody takes them.
#[derive(Clone)]
struct Answers {
    sink: Sink,
    /// How long one may wait.
    stall_max: Duration,
    /// Told once an answer was not taken: no other one is tried.
    stalled: CancellationToken,
}

impl Answers {
    fn new(sink: Sink, stall_max: Duration) -> Self {
        Self { sink, stall_max, stalled: CancellationToken::new() }
    }

    /// Until nobody takes answers any more.
    async fn ended(&self) {
        tokio::select! {
            () = self.sink.closed() => {}
            () = self.stalled.cancelled() => {}
        }
    }

    async fn send(&self, chunk: Bytes, result: Result<(), Failure>) {
        let error = result.err().map(Failure::into_item);
        let answer = v1::PutChunkResult { id: chunk, error };
        let taken = tokio::select! {
            taken = self.sink.send(Ok(answer)) => taken.is_ok(),
            () = tokio::time::sleep(self.stall_max) => false,
            () = self.stalled.cancelled() => false,
        };
        if !taken {
            self.stalled.cancel();
        }
    }
}

/// Serves one stream until it ends.
pub(crate) async fn serve(
    core: Arc<Core>,
    caller: Caller,
    mut incoming: Streaming<v1::PutChunksRequest>,
    sink: Sink,
) {
    let answers = Answers::new(sink, ANSWER_STALL_MAX);
    let stream_budget =
        Arc::new(Semaphore::new(usize::try_from(UPLOAD_STREAM_BYTES_MAX / BUDGET_UNIT_BYTES).unwrap_or(1)));
    let mut working = JoinSet::new();
    let end: Result<(), Status> = loop {
        let message = tokio::select! {
            message = incoming.message() => message,
            () = core.stopping.cancelled() => {
                break Err(Failure::unavailable("the gateway is stopping; go on in a moment").into());
            }
            () = answers.ended() => break Ok(()),
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        };
        if message.chunks.len() > PUT_MESSAGE_CHUNKS_MAX {
            let text = format!("at most {PUT_MESSAGE_CHUNKS_MAX} chunks in one message");
            break Err(Failure::invalid(text).into());
        }
        let budgets = tokio::select! {
            budgets = admit(&core, &caller, &stream_budget, &message) => budgets,
            () = answers.ended() => break Ok(()),
        };
        let budgets = match budgets {
            Ok(budgets) => budgets,
            Err(failure) => break Err(failure.into()),
        };
        while working.len() >= PUT_MESSAGES_IN_FLIGHT_MAX {
            working.join_next().await;
        }
        while working.try_join_next().is_some() {}
        working.spawn(put_message(Arc::clone(&core), caller.clone(), message, budgets, answers.clone()));
    };
    while working.join_next().await.is_some() {}
    if let Err(status) = end {
        // A client that has gone does not hear it, nor one that takes nothing.
        drop(tokio::time::timeout(ANSWER_STALL_MAX, answers.sink.send(Err(status))).await);
    }
}

type Budgets = (OwnedSemaphorePermit, Share);

async fn admit(
    core: &Core,
    caller: &Caller,
    stream_budget: &Arc<Semaphore>,
    message: &v1::PutChunksRequest,
) -> Result<Budgets, Failure> {
    let size = |chunk: &v1::PutChunk| {
        chunk.data.len() + chunk.id.len() + chunk.upload_ids.iter().map(Bytes::len).sum::<usize>()
    };
    let bytes: usize = message.chunks.iter().map(size).sum();
    let units = (bytes as u64).div_ceil(BUDGET_UNIT_BYTES).max(1);
    let of_stream = u32::try_from(units).unwrap_or(u32::MAX);
    let of_stream = Arc::clone(stream_budget).acquire_many_owned(of_stream).await;
    let of_stream = of_stream.map_err(|closed| Failure::internal("upload budget", &closed))?;
    Ok((of_stream, core.upload_bytes.take(caller.account, units).await))
}

/// A chunk that is what it says, and its place in each session that it is for.
struct Item {
    chunk: ChunkId,
    plain: Bytes,
    places: Vec<(Arc<Session>, usize)>,
}

impl Item {
    fn holders(&self) -> Vec<HolderId> {
        self.places.iter().map(|(session, _place)| session.holder).collect()
    }

    fn mark_durable(&self) {
        for (session, place) in &self.places {
            session.mark_durable([*place]);
        }
    }
}

async fn put_message(
    core: Arc<Core>,
    caller: Caller,
    message: v1::PutChunksRequest,
    budgets: Budgets,
    answers: Answers,
) {
    let (items, refused) = match check(&core, &caller, message.chunks).await {
        Ok(checked) => checked,
        Err((failure, ids)) => (Vec::new(), ids.into_iter().map(|id| (id, failure.clone())).collect()),
    };
    let refuse = async {
        for (id, failure) in refused {
            answers.send(id, Err(failure)).await;
        }
    };
    // Refusals hold nothing: what is not stored is let go of before they are taken.
    let store = async {
        store_all(&core, items, &answers).await;
        drop(budgets);
    };
    futures_util::future::join(refuse, store).await;
}

type Checked = (Vec<Item>, Vec<(Bytes, Failure)>);

/// What an answer calls a chunk: its id, as far as ids go, copied, for a part of the message would keep all of it.
fn named(chunk: &v1::PutChunk) -> Bytes {
    Bytes::copy_from_slice(&chunk.id[..chunk.id.len().min(ChunkId::LENGTH)])
}

/// Parts chunks into those that are to be stored and those that are refused. When nothing can be said about any of
/// them, the error comes with all their ids.
async fn check(
    core: &Core,
    caller: &Caller,
    chunks: Vec<v1::PutChunk>,
) -> Result<Checked, (Failure, Vec<Bytes>)> {
    let ids = || chunks.iter().map(named).collect::<Vec<_>>();
    let mut refused = Vec::new();
    let mut parsed = Vec::with_capacity(chunks.len());
    for chunk in &chunks {
        match parse(chunk) {
            Ok((id, uploads)) => parsed.push((id, uploads, chunk.data.clone())),
            Err(failure) => refused.push((named(chunk), failure)),
        }
    }
    let uploads = named_sessions(parsed.iter().flat_map(|(_id, uploads, _plain)| uploads));
    let uploads = uploads.map_err(|failure| (failure, ids()))?;
    let sessions = core.sessions.open(&core.meta, caller.namespace, &uploads).await;
    let sessions = sessions.map_err(|error| (Failure::from_meta(&error, "upload"), ids()))?;
    let mut items = Vec::with_capacity(parsed.len());
    for (chunk, uploads, plain) in parsed {
        match places(&sessions, chunk, &uploads, plain.len() as u64) {
            Ok(places) => items.push(Item { chunk, plain, places }),
            Err(failure) => refused.push((Bytes::copy_from_slice(chunk.as_bytes()), failure)),
        }
    }
    let named: Vec<(ChunkId, Bytes)> = items.iter().map(|item| (item.chunk, item.plain.clone())).collect();
    let right = core.preparer.check(named).await.map_err(|failure| (failure, ids()))?;
    let mut good = Vec::with_capacity(items.len());
    for (item, right) in items.into_iter().zip(right) {
        if right {
            good.push(item);
        } else {
            let message = "the bytes are not those of the chunk that they are sent as";
            let failure = Failure::new(tonic::Code::InvalidArgument, "bad-chunk", message);
            refused.push((Bytes::copy_from_slice(item.chunk.as_bytes()), failure));
        }
    }
    Ok((good, refused))
}

fn parse(chunk: &v1::PutChunk) -> Result<(ChunkId, Vec<UploadId>), Failure> {
    if chunk.upload_ids.is_empty() || chunk.upload_ids.len() > CHUNK_UPLOADS_MAX {
        return Err(Failure::invalid(format!(
            "a chunk is sent for 1 to {CHUNK_UPLOADS_MAX} upload sessions"
        )));
    }
    let uploads =
        chunk.upload_ids.iter().map(|upload| convert::upload_id(upload)).collect::<Result<_, _>>()?;
    Ok((convert::chunk_id(&chunk.id)?, uploads))
}

/// The sessions that a message's chunks are for, each once.
fn named_sessions<'a>(uploads: impl Iterator<Item = &'a UploadId>) -> Result<Vec<UploadId>, Failure> {
    let mut named: Vec<UploadId> = uploads.copied().collect();
    named.sort_unstable();
    named.dedup();
    if named.len() > PUT_MESSAGE_SESSIONS_MAX {
        let message =
            format!("the chunks of one message are for at most {PUT_MESSAGE_SESSIONS_MAX} upload sessions");
        return Err(Failure::invalid(message));
    }
    Ok(named)
}

/// The chunk's place in each session that it is sent for: all must be open and have it in their lists.
fn places(
    sessions: &HashMap<UploadId, Result<Arc<Session>, Failure>>,
    chunk: ChunkId,
    uploads: &[UploadId],
    size: u64,
) -> Result<Vec<(Arc<Session>, usize)>, Failure> {
    let place = |upload: &UploadId| {
        let session = sessions.get(upload).ok_or_else(session_gone)?.as_ref().map_err(Failure::clone)?;
        match session.find(chunk) {
            Some((place, listed)) if listed == size => Ok((Arc::clone(session), place)),
            Some(_) => Err(Failure::invalid("the chunk has another size in the session's list")),
            None => Err(Failure::invalid("the session's list has no such chunk")),
        }
    };
    uploads.iter().map(place).collect()
}

/// Stores chunks, and answers each as soon as it is durable.
async fn store_all(core: &Core, items: Vec<Item>, answers: &Answers) {
    let mut claimed = Vec::new();
    let mut others = Vec::new();
    for item in items {
        match core.in_flight.claim(item.chunk) {
            Claim::Mine(claim) => claimed.push((item, claim)),
            Claim::Others(wait) => others.push((item, wait)),
        }
    }
    let mine = store_claimed(core, claimed, answers);
    let after_others = others.into_iter().map(|(item, wait)| async move {
        wait.ended().await;
        let result = store_one(core, &item).await;
        answers.send(Bytes::copy_from_slice(item.chunk.as_bytes()), result).await;
    });
    let after_others = after_others.collect::<FuturesUnordered<_>>().collect::<Vec<()>>();
    futures_util::future::join(mine, after_others).await;
}

async fn store_claimed(core: &Core, claimed: Vec<(Item, Claimed)>, answers: &Answers) {
    if claimed.is_empty() {
        return;
    }
    let answer_all = |failure: Failure, items: Vec<(Item, Claimed)>| async move {
        for (item, _claim) in items {
            let id = Bytes::copy_from_slice(item.chunk.as_bytes());
            answers.send(id, Err(failure.clone())).await;
        }
    };
    let chunks: Vec<ChunkId> = claimed.iter().map(|(item, _claim)| item.chunk).collect();
    let named = claimed.iter().map(|(item, _claim)| (item.chunk, item.plain.clone())).collect();
    // Whatever is there already takes the same way as what is new.
    let ready = match core.known(&chunks).await {
        Ok(known) => core.preparer.prepare(ChunkKind::Data, named).await.map(|prepared| (known, prepared)),
        Err(failure) => Err(failure),
    };
    let (known, prepared) = match ready {
        Ok(ready) => ready,
        Err(failure) => return answer_all(failure, claimed).await,
    };
    let write = |((item, claim), prepared, known): (
        (Item, Claimed),
        PreparedChunk,
        Option<ChunkLocation>,
    )| async move {
        let id = Bytes::copy_from_slice(item.chunk.as_bytes());
        let result = core.writer.store(prepared, item.holders(), known).await;
        drop(claim);
        if result.is_ok() {
            item.mark_durable();
        }
        answers.send(id, result).await;
    };
    let items = claimed.into_iter().zip(prepared).zip(known);
    let written = items.map(|((claimed, prepared), known)| write((claimed, prepared, known)));
    written.collect::<FuturesUnordered<_>>().collect::<Vec<()>>().await;
}

/// Stores one chunk, after somebody else's attempt has ended.
async fn store_one(core: &Core, item: &Item) -> Result<(), Failure> {
    for _round in 0..CLAIM_ROUNDS_MAX {
        let claim = match core.in_flight.claim(item.chunk) {
            Claim::Mine(claim) => claim,
            Claim::Others(wait) => {
                wait.ended().await;
                continue;
            }
        };
        let known = core.known(&[item.chunk]).await?;
        let named = vec![(item.chunk, item.plain.clone())];
        let prepared = core.preparer.prepare(ChunkKind::Data, named).await?;
        for (prepared, known) in prepared.into_iter().zip(known) {
            core.writer.store(prepared, item.holders(), known).await?;
        }
        drop(claim);
        item.mark_durable();
        return Ok(());
    }
    Err(Failure::busy("the same chunk is being sent by many at once"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn who_takes_no_answers_loses_the_stream_and_waits_once_only() {
        let (sink, _never_taken) = mpsc::channel(1);
        let stall_max = Duration::from_millis(100);
        let answers = Answers::new(sink, stall_max);
        let begun = Instant::now();
        for _ in 0..1000 {
            answers.send(Bytes::new(), Ok(())).await;
        }
        let elapsed = begun.elapsed();
        assert!((stall_max..stall_max * 100).contains(&elapsed), "{elapsed:?}");
        answers.ended().await;
    }

    #[test]
    fn a_message_names_so_many_sessions_and_each_as_often_as_it_likes() {
        let uploads: Vec<UploadId> = (0..=PUT_MESSAGE_SESSIONS_MAX)
            .map(|number| UploadId::from_bytes((number as u128).to_be_bytes()))
            .collect();
        let some = &uploads[..PUT_MESSAGE_SESSIONS_MAX];
        assert_eq!(named_sessions(some.iter().chain(some).chain(some)).unwrap(), some);
        assert_eq!(named_sessions(uploads.iter()).unwrap_err().code, tonic::Code::InvalidArgument);
    }

    #[tokio::test]
    async fn a_stream_ends_with_who_listens() {
        let (sink, taken) = mpsc::channel(1);
        let answers = Answers::new(sink, Duration::from_secs(60));
        drop(taken);
        answers.send(Bytes::new(), Ok(())).await;
        answers.ended().await;
    }
}
