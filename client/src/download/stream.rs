//! One version's bytes as a stream that survives a broken connection.

use bytes::Bytes;
use proto::v1;
use tonic::Streaming;

use crate::api::files;
use crate::call_error::CallError;
use crate::connection::{ApiClient, Backoff, RETRY_TIME_MAX};
use crate::path::RemotePath;

/// Reads a version in order. When the connection breaks, goes on where it was, in the same version.
#[derive(Debug)]
pub struct DownloadStream {
    api: ApiClient,
    path: RemotePath,
    entry: v1::Entry,
    received: u64,
    stream: Streaming<v1::DownloadResponse>,
    /// Bytes that came with the first message.
    first: Option<Bytes>,
    backoff: Backoff,
}

impl ApiClient {
    /// Begins to read a file's version (0 = the current one).
    ///
    /// # Errors
    /// NOT_FOUND if there is none; if the gateway refuses or cannot be reached.
    pub async fn open_download(&self, path: &RemotePath, version: u64) -> Result<DownloadStream, CallError> {
        let mut backoff = Backoff::new(RETRY_TIME_MAX);
        loop {
            match open(self, path, version, 0).await {
                Ok((stream, first)) => {
                    let entry =
                        first.entry.ok_or_else(|| CallError::protocol("no entry before the first byte"))?;
                    return Ok(DownloadStream {
                        api: self.clone(),
                        path: path.clone(),
                        entry,
                        received: 0,
                        stream,
                        first: Some(first.data),
                        backoff,
                    });
                }
                Err(error) if error.is_transient() && backoff.wait().await => {
                    tracing::debug!(%error, "download opened again");
                }
                Err(error) => return Err(error),
            }
        }
    }
}

async fn open(
    api: &ApiClient,
    path: &RemotePath,
    version: u64,
    offset: u64,
) -> Result<(Streaming<v1::DownloadResponse>, v1::DownloadResponse), CallError> {
    let message =
        v1::DownloadRequest { path: path.to_string(), version, offset, ..v1::DownloadRequest::default() };
    let answer = files(api.channel()).download(api.request(message)).await;
    let mut stream = answer.map_err(|status| api.status(&status))?.into_inner();
    let first = stream.message().await.map_err(|status| api.status(&status))?;
    let first = first.ok_or_else(|| CallError::protocol("an empty stream"))?;
    Ok((stream, first))
}

impl DownloadStream {
    /// The entry, as of this version.
    #[must_use]
    pub fn entry(&self) -> &v1::Entry {
        &self.entry
    }

    /// The next bytes, never none; `None` once all have come. Not cancel safe.
    ///
    /// # Errors
    /// If the gateway refuses, cannot be reached for long, or ends the stream early.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            let data = match self.first.take() {
                Some(data) => Ok(Some(data)),
                None => self.stream.message().await.map(|message| message.map(|message| message.data)),
            };
            let error = match data {
                Ok(Some(data)) if data.is_empty() => continue,
                Ok(Some(data)) => {
                    self.received += data.len() as u64;
                    if self.received > self.entry.size {
                        return Err(CallError::protocol("more bytes than the file has"));
                    }
                    self.backoff.reset();
                    return Ok(Some(data));
                }
                Ok(None) if self.received == self.entry.size => return Ok(None),
                Ok(None) => return Err(CallError::protocol("fewer bytes than the file has")),
                Err(status) => self.api.status(&status),
            };
            self.reopen(error).await?;
        }
    }

    async fn reopen(&mut self, mut error: CallError) -> Result<(), CallError> {
        while error.is_transient() && self.backoff.wait().await {
            tracing::debug!(%error, received = self.received, "download goes on");
            match open(&self.api, &self.path, self.entry.version, self.received).await {
                Ok((stream, first)) => {
                    self.stream = stream;
                    self.first = Some(first.data);
                    return Ok(());
                }
                Err(next) => error = next,
            }
        }
        Err(error)
    }
}
