//! Connections to the other metadata nodes, shared by all groups.
//!
//! Each peer has two: votes and heartbeats never wait behind entries and snapshots.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::ids::NodeId;
use proto::internal::metadata_client::MetadataClient;
use proto::internal::raft_client::RaftClient;
use proto::peer::{EndpointError, ExpectedServer, Role, TlsIdentity};
use tonic::transport::Channel;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Votes, heartbeats, leader transfers.
    Control,
    /// Entries and snapshots.
    Bulk,
}

/// Why the peers' addresses cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("not an address of a metadata node: {address:?}")]
pub struct PeerAddressError {
    /// The address.
    pub address: String,
    source: EndpointError,
}

/// Connections to all peers, made when they are first used.
pub(crate) struct Peers {
    channels: BTreeMap<u64, (Channel, Channel)>,
}

/// A connection to `address` (host:port), made when it is first used and made again when it breaks. Nobody but
/// `expected` is spoken to there.
pub(crate) fn connect_lazily(
    address: &str,
    identity: &TlsIdentity,
    expected: ExpectedServer,
    connect_timeout: Duration,
) -> Result<Channel, PeerAddressError> {
    let endpoint = identity
        .endpoint(address, expected)
        .map_err(|source| PeerAddressError { address: address.to_owned(), source })?;
    let channel = endpoint
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_lazy();
    Ok(channel)
}

impl Peers {
    /// For the nodes at these addresses.
    pub(crate) fn new(
        members: &BTreeMap<u64, String>,
        identity: &TlsIdentity,
    ) -> Result<Self, PeerAddressError> {
        let mut channels = BTreeMap::new();
        for (node, address) in members {
            let expected = identity.expects(Role::Meta, Some(NodeId(*node)));
            let connect = || connect_lazily(address, identity, expected, CONNECT_TIMEOUT);
            channels.insert(*node, (connect()?, connect()?));
        }
        Ok(Self { channels })
    }

    /// A client of `node`'s other service; `None` if the configuration does not know it.
    pub(crate) fn metadata(&self, node: u64) -> Option<MetadataClient<Channel>> {
        let (control, _bulk) = self.channels.get(&node)?;
        Some(MetadataClient::new(control.clone()))
    }

    /// A client of `node`; `None` if the configuration does not know it.
    pub(crate) fn client(&self, node: u64, lane: Lane) -> Option<RaftClient<Channel>> {
        let (control, bulk) = self.channels.get(&node)?;
        let channel = match lane {
            Lane::Control => control,
            Lane::Bulk => bulk,
        };
        Some(
            RaftClient::new(channel.clone())
                .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(proto::MESSAGE_BYTES_MAX),
        )
    }
}
