//! The chunk list of a version, as a stream of its pieces.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use engine::ids::NamespaceId;
use engine::manifest::{ManifestEntry, TreeWalk, WalkStep};
use proto::v1;

use crate::auth::Caller;
use crate::core::Core;
use crate::downloads::outbox::{Gone, Outbox, Waited};
use crate::downloads::stream::{FileVersion, find_version};
use crate::failure::Failure;
use crate::limits::{DOWNLOAD_PAUSE_AFTER, MANIFEST_MESSAGE_ENTRIES};

/// Where the stream's messages go.
pub(crate) type Sink = Outbox<v1::GetManifestResponse>;

/// What is to be listed.
pub(crate) struct Manifest {
    namespace: NamespaceId,
    file: FileVersion,
}

/// Finds the version that a request names, if the caller may read it.
pub(crate) async fn find(
    core: &Core,
    caller: &Caller,
    request: &v1::GetManifestRequest,
) -> Result<Manifest, Failure> {
    let file = find_version(core, caller, "", request.entry_id, request.version).await?;
    Ok(Manifest { namespace: caller.namespace, file })
}

/// Sends the list to the end, or ends the stream with an error.
pub(crate) async fn serve(core: Arc<Core>, manifest: Manifest, sink: Sink) {
    let sending = sink.while_heard(send_all(&core, manifest, &sink));
    let ended = sending.await.unwrap_or(Ok(()));
    sink.end(ended.map_err(Into::into));
}

/// Waits for as long as the client pauses: one message and a place in the list are held meanwhile.
async fn send(sink: &Sink, message: v1::GetManifestResponse) -> Result<(), Gone> {
    while sink.room(DOWNLOAD_PAUSE_AFTER).await? == Waited::Paused {}
    sink.push(message);
    Ok(())
}

fn chunk_list(entries: &[ManifestEntry]) -> Result<v1::ChunkList, Failure> {
    let mut ids = BytesMut::with_capacity(entries.len() * 32);
    let mut sizes = Vec::with_capacity(entries.len());
    for entry in entries {
        ids.extend_from_slice(entry.id.as_bytes());
        sizes.push(
            u32::try_from(entry.size).map_err(|_large| Failure::internal("manifest", &"a chunk's size"))?,
        );
    }
    Ok(v1::ChunkList { ids: Bytes::from(ids), sizes })
}

async fn send_all(core: &Core, manifest: Manifest, sink: &Sink) -> Result<(), Failure> {
    let FileVersion { entry, state, .. } = manifest.file;
    let mut entry = Some(entry);
    let mut waiting: Vec<ManifestEntry> = Vec::new();
    if state.size > 0 {
        let bad = |error| Failure::internal("manifest", &error);
        let list = core.source.content_of(manifest.namespace, &state).await?.into_list();
        let mut walk = TreeWalk::new(list, 0).map_err(bad)?;
        loop {
            match walk.step() {
                WalkStep::Done => break,
                WalkStep::Fetch { entry } => {
                    let bytes = core.source.read_node(entry.id).await?;
                    walk.feed(&bytes).map_err(bad)?;
                }
                WalkStep::Chunk { entry, .. } => waiting.push(entry),
            }
            if waiting.len() >= MANIFEST_MESSAGE_ENTRIES {
                let chunks = Some(chunk_list(&std::mem::take(&mut waiting))?);
                if send(sink, v1::GetManifestResponse { entry: entry.take(), chunks }).await == Err(Gone) {
                    return Ok(());
                }
            }
        }
    }
    if entry.is_some() || !waiting.is_empty() {
        let chunks = Some(chunk_list(&waiting)?);
        // Who has gone needs no answer.
        let (Ok(()) | Err(Gone)) = send(sink, v1::GetManifestResponse { entry, chunks }).await;
    }
    Ok(())
}
