//! One version's bytes as a stream that survives a broken connection.
//!
//! The first answer pins entry and version: what comes after a break is of the same version, wherever the entry has
//! gone. A stream that ends early is broken, whatever it says.

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
            let message =
                v1::DownloadRequest { path: path.to_string(), version, ..v1::DownloadRequest::default() };
            match open(self, message).await {
                Ok((stream, first)) => {
                    let entry =
                        first.entry.ok_or_else(|| CallError::protocol("no entry before the first byte"))?;
                    return Ok(DownloadStream {
                        api: self.clone(),
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
    message: v1::DownloadRequest,
) -> Result<(Streaming<v1::DownloadResponse>, v1::DownloadResponse), CallError> {
    let answer = files(api.channel()).download(api.request(message)).await;
    let mut stream = answer.map_err(|status| api.status(&status))?.into_inner();
    let first = stream.message().await.map_err(|status| api.status(&status))?;
    let first = first.ok_or_else(|| api.broken_off())?;
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
                Ok(None) => self.api.broken_off(),
                Err(status) => self.api.status(&status),
            };
            self.reopen(error).await?;
        }
    }

    async fn reopen(&mut self, mut error: CallError) -> Result<(), CallError> {
        while error.is_transient() && self.backoff.wait().await {
            tracing::debug!(%error, received = self.received, "download goes on");
            let message = v1::DownloadRequest {
                entry_id: self.entry.id,
                version: self.entry.version,
                offset: self.received,
                ..v1::DownloadRequest::default()
            };
            match open(&self.api, message).await {
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
