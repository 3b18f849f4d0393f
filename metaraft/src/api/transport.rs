//! How encoded commands and queries reach a group: over the network, or in a test within the process.

use bytes::Bytes;
use engine::ids::GroupId;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::error::MetaError;
use crate::client::{MetaClient, WatchedChanges};

/// Carries bytes to a group's leader and its answer back, and tries again as long as that makes sense.
#[tonic::async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Commits one encoded command; gives its encoded outcome.
    ///
    /// # Errors
    /// If no leader answered in time (the command may have been applied), or it refuses the caller.
    async fn propose(&self, group: GroupId, command: Bytes) -> Result<Bytes, MetaError>;

    /// Answers an encoded query; `little`: together with others, for its reply is small and comes soon.
    ///
    /// # Errors
    /// If no leader answered in time, or it refuses the caller.
    async fn query(&self, group: GroupId, query: Bytes, little: bool) -> Result<Bytes, MetaError>;

    /// One attempt at watching which namespaces of a group change; see [`MetaClient::watch_once`].
    ///
    /// # Errors
    /// If the node that was asked does not answer, or does not lead.
    async fn watch(&self, group: GroupId) -> Result<BoxStream<'static, WatchedChanges>, MetaError>;
}

#[tonic::async_trait]
impl Transport for MetaClient {
    async fn propose(&self, group: GroupId, command: Bytes) -> Result<Bytes, MetaError> {
        let outcomes = self.propose_raw(group, vec![command]).await?;
        outcomes.into_iter().next().ok_or_else(|| MetaError::Protocol { what: "no outcome".to_owned() })
    }

    async fn query(&self, group: GroupId, query: Bytes, little: bool) -> Result<Bytes, MetaError> {
        let reply =
            if little { self.query_little(group, query).await } else { self.query_raw(group, query).await };
        Ok(reply?)
    }

    async fn watch(&self, group: GroupId) -> Result<BoxStream<'static, WatchedChanges>, MetaError> {
        Ok(self.watch_once(group).await?.boxed())
    }
}
