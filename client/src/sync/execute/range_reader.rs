//! Reads a run of a version's bytes, within the limit of what may come in, and goes on after a break.
//!
//! Invariants:
//! - While there is a limit, bytes are paid for before they are asked for, in small parts: so the limit holds on the
//!   wire, whatever windows and buffers lie between, and the gateway never waits for somebody who may not read.
//! - Bytes come in order, each once. An answer that ends early counts as broken, never as whole.

use bytes::Bytes;
use proto::v1;
use tonic::Streaming;

use crate::api::RangeOf;
use crate::call_error::CallError;
use crate::connection::{Backoff, RETRY_TIME_MAX};
use crate::sync::shared::Shared;

/// Reads a range to its end.
pub(super) struct RangeReader<'a> {
    shared: &'a Shared,
    /// What is still to come.
    range: RangeOf,
    /// An answer, and how many of its bytes are still to come.
    open: Option<(Streaming<v1::DownloadResponse>, u64)>,
    /// Bytes that the limit has let through and that have not come yet.
    paid: u64,
    /// Of the time without any progress.
    backoff: Backoff,
}

impl<'a> RangeReader<'a> {
    pub(super) fn new(shared: &'a Shared, range: RangeOf) -> Self {
        Self { shared, range, open: None, paid: 0, backoff: Backoff::new(RETRY_TIME_MAX) }
    }

    /// The next bytes, never none. Not to be asked once all have come. Not cancel safe.
    ///
    /// # Errors
    /// If the gateway refuses, gives more than was asked for, or cannot be reached for long.
    pub(super) async fn next(&mut self) -> Result<Bytes, CallError> {
        loop {
            let error = match self.try_next().await {
                Ok(data) if data.is_empty() => continue,
                Ok(data) => {
                    self.backoff.reset();
                    return Ok(data);
                }
                Err(error) => error,
            };
            self.open = None;
            if !error.is_transient() || !self.backoff.wait().await {
                return Err(error);
            }
            tracing::debug!(%error, offset = self.range.offset, "a range is gone on with");
        }
    }

    async fn try_next(&mut self) -> Result<Bytes, CallError> {
        let (mut stream, left) = match self.open.take() {
            Some(open) => open,
            None => {
                let part = self.pay().await;
                let stream = self.shared.api.open_range(RangeOf { length: part, ..self.range }).await?;
                (stream, part)
            }
        };
        let Some(message) = self.shared.api.next_of(&mut stream).await? else {
            return Err(self.shared.api.broken_off());
        };
        let came = message.data.len() as u64;
        let Some(left) = left.checked_sub(came) else {
            return Err(CallError::protocol("more bytes than were asked for"));
        };
        self.range.offset += came;
        self.range.length -= came;
        // Without a limit, or with one that was set meanwhile.
        let unpaid = came.saturating_sub(self.paid);
        self.paid = self.paid.saturating_sub(came);
        self.shared.down.take(unpaid).await;
        self.shared.counters.down.wire(came);
        if left > 0 {
            self.open = Some((stream, left));
        }
        Ok(message.data)
    }

    /// Pays for what is to be asked for, and says how much that is.
    async fn pay(&mut self) -> u64 {
        let Some(part) = self.shared.down.part_bytes() else { return self.range.length };
        let part = part.min(self.range.length);
        self.shared.down.take(part.saturating_sub(self.paid)).await;
        self.paid = self.paid.max(part);
        part
    }
}
