//! The service that a sync client follows a tree with, and changes it by ids.

use std::time::Duration;

use bytes::Bytes;
use engine::ids::ChunkId;
use engine::manifest::ManifestEntry;
use proto::MESSAGE_BYTES_MAX;
use proto::v1;
use proto::v1::sync_client::SyncClient;
use tonic::Streaming;
use tonic::transport::Channel;

use super::files;
use crate::call_error::CallError;
use crate::connection::ApiClient;
use crate::state::reached::Reached;

/// Changes and entries asked for in one page.
const PAGE_COUNT: u32 = 5_000;
/// Chunks that a list may have, whatever the server says: 4 TiB in chunks of 1 MiB.
const MANIFEST_CHUNKS_MAX: usize = 4_000_000;
/// How long a call that opens a stream may take.
const OPEN_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a stream may be silent in the middle of an answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);

fn sync(channel: Channel) -> SyncClient<Channel> {
    SyncClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Which bytes of which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeOf {
    pub(crate) entry: u64,
    pub(crate) version: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl ApiClient {
    /// A page of what changed since a cursor, beyond which answers may have been seen.
    pub(crate) async fn changes(&self, cursor: Bytes, seen: Bytes) -> Result<v1::ChangesResponse, CallError> {
        let message = v1::ChangesRequest { cursor, count_max: PAGE_COUNT, seen };
        self.call(message, |channel, request| async move { sync(channel).changes(request).await }).await
    }

    /// A page of all that is below a folder, if the server is of the history of a cursor.
    pub(crate) async fn list_below(
        &self,
        entry_id: u64,
        page: Bytes,
        cursor: Bytes,
    ) -> Result<v1::ListBelowResponse, CallError> {
        let message = v1::ListBelowRequest { entry_id, page, count_max: PAGE_COUNT, cursor };
        self.call(message, |channel, request| async move { sync(channel).list_below(request).await }).await
    }

    /// Whether a folder is in the tree, if the server is of the history of a cursor; empty: of whichever it is.
    pub(crate) async fn is_in_tree(&self, folder_id: u64, cursor: Bytes) -> Result<bool, CallError> {
        let message = v1::ListBelowRequest { entry_id: folder_id, page: Bytes::new(), count_max: 1, cursor };
        let listed =
            self.call(message, |channel, request| async move { sync(channel).list_below(request).await });
        match listed.await {
            Ok(_page) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Tells of changes as they happen.
    pub(crate) async fn watch(&self) -> Result<Streaming<v1::WatchResponse>, CallError> {
        let request = self.request(v1::WatchRequest {});
        let mut client = sync(self.channel());
        match tokio::time::timeout(OPEN_TIME_MAX, client.watch(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.status(&status)),
            Err(_elapsed) => Err(self.silent(OPEN_TIME_MAX)),
        }
    }

    /// Waits for a change beyond the cursor.
    pub(crate) async fn wait_for_change(&self, cursor: Bytes, timeout: Duration) -> Result<bool, CallError> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let request = self.request(v1::WaitForChangeRequest { cursor, timeout_ms });
        let mut client = sync(self.channel());
        match tokio::time::timeout(timeout + OPEN_TIME_MAX, client.wait_for_change(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().changed),
            Ok(Err(status)) => Err(self.status(&status)),
            Err(_elapsed) => Err(self.silent(timeout)),
        }
    }

    /// Carries out actions, which rest on what was seen up to a cursor; each succeeds or fails by itself.
    pub(crate) async fn apply(
        &self,
        cursor: Bytes,
        actions: Vec<v1::Action>,
    ) -> Result<(Vec<Result<v1::Entry, CallError>>, Reached), CallError> {
        let count = actions.len();
        let message = v1::ApplyRequest { request_id: self.new_request_id().await?, actions, cursor };
        let answer =
            self.call(message, |channel, request| async move { sync(channel).apply(request).await }).await?;
        if answer.results.len() != count {
            return Err(CallError::protocol("not one answer per action"));
        }
        let reached =
            Reached { proof: answer.seen.to_vec(), sequence: answer.sequence, reign: answer.reign.to_vec() };
        let results = answer
            .results
            .into_iter()
            .map(|result| match result.result {
                Some(v1::apply_result::Result::Entry(entry)) => Ok(entry),
                Some(v1::apply_result::Result::Error(error)) => Err(CallError::from_item(&error)),
                None => Err(CallError::protocol("an action without an answer")),
            })
            .collect();
        Ok((results, reached))
    }

    /// The chunks of a version, in order, with the entry as of it.
    pub(crate) async fn manifest(
        &self,
        entry_id: u64,
        version: u64,
    ) -> Result<(v1::Entry, Vec<ManifestEntry>), CallError> {
        let request = self.request(v1::GetManifestRequest { entry_id, version });
        let mut client = sync(self.channel());
        let opened = tokio::time::timeout(OPEN_TIME_MAX, client.get_manifest(request)).await;
        let mut stream = match opened {
            Ok(answer) => answer.map_err(|status| self.status(&status))?.into_inner(),
            Err(_elapsed) => return Err(self.silent(OPEN_TIME_MAX)),
        };
        let mut entry = None;
        let mut chunks = Vec::new();
        while let Some(message) = self.next_of(&mut stream).await? {
            entry = entry.or(message.entry);
            push_chunks(&mut chunks, message.chunks.unwrap_or_default())?;
        }
        let entry = entry.ok_or_else(|| CallError::protocol("no entry with the chunk list"))?;
        Ok((entry, chunks))
    }

    /// Reads a run of a version's bytes.
    pub(crate) async fn open_range(
        &self,
        range: RangeOf,
    ) -> Result<Streaming<v1::DownloadResponse>, CallError> {
        let message = v1::DownloadRequest {
            path: String::new(),
            version: range.version,
            offset: range.offset,
            length: range.length,
            entry_id: range.entry,
        };
        let request = self.request(message);
        let mut client = files(self.channel());
        match tokio::time::timeout(OPEN_TIME_MAX, client.download(request)).await {
            Ok(answer) => Ok(answer.map_err(|status| self.status(&status))?.into_inner()),
            Err(_elapsed) => Err(self.silent(OPEN_TIME_MAX)),
        }
    }

    /// Reads many small files' versions.
    pub(crate) async fn open_many(
        &self,
        entries: Vec<v1::EntryVersion>,
    ) -> Result<Streaming<v1::DownloadManyResponse>, CallError> {
        let request = self.request(v1::DownloadManyRequest { paths: Vec::new(), entries });
        let mut client = files(self.channel());
        match tokio::time::timeout(OPEN_TIME_MAX, client.download_many(request)).await {
            Ok(answer) => Ok(answer.map_err(|status| self.status(&status))?.into_inner()),
            Err(_elapsed) => Err(self.silent(OPEN_TIME_MAX)),
        }
    }

    /// A stream's next message, if it comes in time. Not cancel safe.
    pub(crate) async fn next_of<T>(&self, stream: &mut Streaming<T>) -> Result<Option<T>, CallError> {
        match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
            Ok(message) => message.map_err(|status| self.status(&status)),
            Err(_elapsed) => Err(self.silent(SILENCE_MAX)),
        }
    }

    /// An answer ended before all had come: whoever gave it is not there any more.
    pub(crate) fn broken_off(&self) -> CallError {
        let reason = "its answer broke off".to_owned();
        CallError::Unreachable { endpoint: self.endpoint().to_owned(), reason }
    }

    fn silent(&self, time: Duration) -> CallError {
        CallError::Unreachable {
            endpoint: self.endpoint().to_owned(),
            reason: format!("no answer within {} s", time.as_secs()),
        }
    }
}

fn push_chunks(chunks: &mut Vec<ManifestEntry>, list: v1::ChunkList) -> Result<(), CallError> {
    if list.ids.len() != list.sizes.len() * ChunkId::LENGTH {
        return Err(CallError::protocol("a chunk list whose ids and sizes do not match"));
    }
    if chunks.len() + list.sizes.len() > MANIFEST_CHUNKS_MAX {
        return Err(CallError::protocol("a chunk list without end"));
    }
    for (bytes, size) in list.ids.chunks_exact(ChunkId::LENGTH).zip(list.sizes) {
        let id = ChunkId::from_slice(bytes).map_err(|error| CallError::protocol(error.to_string()))?;
        chunks.push(ManifestEntry { id, size: u64::from(size) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_list_that_does_not_add_up_is_refused() {
        let mut chunks = Vec::new();
        let list = |ids: usize, sizes: usize| v1::ChunkList {
            ids: vec![7; ids * ChunkId::LENGTH].into(),
            sizes: vec![1; sizes],
        };
        assert!(push_chunks(&mut chunks, list(2, 1)).is_err());
        assert!(push_chunks(&mut chunks, list(1, 2)).is_err());
        assert_eq!(chunks.len(), 0);
        push_chunks(&mut chunks, list(3, 3)).unwrap();
        assert_eq!(chunks.len(), 3);
    }
}
