//! Where the heartbeats of storage nodes go.

use proto::internal::{HeartbeatRequest, HeartbeatResponse};

/// Takes the reports of storage nodes, on the node that leads the root group.
#[tonic::async_trait]
pub trait HeartbeatSink: Send + Sync + 'static {
    /// Takes a report whose cluster and node have been checked against the sender's certificate. Called only while
    /// this node leads the root group, as far as it knows.
    ///
    /// # Errors
    /// What the storage node is to be told; it tries again a little later.
    async fn heartbeat(&self, report: HeartbeatRequest) -> Result<HeartbeatResponse, tonic::Status>;
}
