//! Connections to other processes of the cluster: one per address and who is expected there, made when first used,
//! kept, and made again when they break.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use engine::ids::NodeId;
use proto::peer::{EndpointError, ExpectedServer, Role, TlsIdentity};
use tonic::transport::Channel;

use crate::locks::locked;

/// Addresses with a connection; beyond that all are made anew.
const CHANNELS_MAX: usize = 4096;

/// A machine that does not answer is given up after this; one that refuses, at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Unanswered pings for so long mean that the peer has gone.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A metadata node that lost its power and is back answers the next packet with a reset. At its start it waits two seconds
/// for the calls of storage nodes, so packets come more often than that. The kernels exchange them: no process wakes.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The first frame of a message is copied once more than the others, so frames are small beside a shard; still smaller
/// ones cost more than they save.
pub(crate) const FRAME_BYTES: u32 = 32 * 1024;
/// Windows for shards of a mebibyte: measured better than the defaults by half.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

pub(crate) struct Channels {
    identity: TlsIdentity,
    open: Mutex<HashMap<(String, ExpectedServer), Channel>>,
}

impl Channels {
    pub(crate) fn new(identity: &TlsIdentity) -> Self {
        Self { identity: identity.clone(), open: Mutex::default() }
    }

    /// The connection to `host:port`, where a node of `role` must be, and `node` if that is known. Connecting happens
    /// with the first call on it.
    pub(crate) fn get(
        &self,
        address: &str,
        role: Role,
        node: Option<NodeId>,
    ) -> Result<Channel, EndpointError> {
        let key = (address.to_owned(), self.identity.expects(role, node));
        if let Some(channel) = locked(&self.open).get(&key) {
            return Ok(channel.clone());
        }
        let channel = self
            .identity
            .endpoint(address, key.1)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(PROBE_INTERVAL))
            .tcp_keepalive_interval(Some(PROBE_INTERVAL))
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .connect_lazy();
        let mut open = locked(&self.open);
        if open.len() >= CHANNELS_MAX {
            open.clear();
        }
        open.insert(key, channel.clone());
        Ok(channel)
    }
}
