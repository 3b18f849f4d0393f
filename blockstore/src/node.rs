//! The storage node: its disks, the server before them and the heart that reports them.
//!
//! Invariants:
//! - It serves as soon as its disks are open, whether or not the metadata cluster is there.
//! - [`StorageNode::stop`] joins every task and thread; calls that are under way are finished first.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::ids::NodeId;
use proto::internal::storage_server::StorageServer;
use proto::peer::{Role, TlsError, TlsIdentity};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::attest;
use crate::channels::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, STREAM_WINDOW_BYTES};
use crate::config::StorageConfig;
use crate::disks::{self, DisksError, Slot};
use crate::heartbeat::Heart;
use crate::service::StorageService;

/// Calls at once on one connection; a client waits with more.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;

/// Calls that are under way have so long to end when the node stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Why a storage node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its certificate is of another process.
    #[error(
        "the certificate is {found}'s, not storage node {node}'s: check `node` and the certificate files"
    )]
    WrongCertificate {
        /// Whose it is.
        found: String,
        /// The node of the configuration.
        node: NodeId,
    },
    /// Its disks cannot even be looked at.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// Its address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The server cannot be set up.
    #[error("cannot set up the server: {0}")]
    Server(#[from] tonic::transport::Error),
    /// The thread that opened the disks ended early.
    #[error("the disks were not opened")]
    OpeningEnded,
}

/// A storage node that serves.
pub struct StorageNode {
    address: SocketAddr,
    slots: Arc<Vec<Slot>>,
    stop: CancellationToken,
    /// Ends the heart, once the disks are closed.
    stop_heart: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    tasks: TaskTracker,
}

impl StorageNode {
    /// Opens the disks and serves. Returns when calls are taken.
    ///
    /// # Errors
    /// See [`StartError`]. A disk that is refused is no error: the others are served, and it is reported.
    pub async fn start(config: StorageConfig) -> Result<Self, StartError> {
        let identity = TlsIdentity::load(&config.tls)?;
        let peer = identity.peer();
        if peer.role != Role::Storage || peer.node != config.node {
            let found = format!("{} node {}", peer.role.as_str(), peer.node);
            return Err(StartError::WrongCertificate { found, node: config.node });
        }
        let listen = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;

        let opening = config.clone();
        let slots = tokio::task::spawn_blocking(move || disks::open_all(&opening, peer.cluster))
            .await
            .map_err(|_panicked| StartError::OpeningEnded)??;
        let slots = Arc::new(slots);

        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let advertised = config.advertise.clone().unwrap_or_else(|| address.to_string());
        let (heart, pulse) = Heart::new(&config, &identity, advertised, Arc::clone(&slots));
        let stop_heart = CancellationToken::new();
        tasks.spawn(heart.run(stop_heart.clone()));
        attest::start(&config, &identity, &tasks, &stop);

        let service =
            StorageServer::new(StorageService::new(peer.cluster, Arc::clone(&slots), tasks.clone(), pulse))
                .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(proto::MESSAGE_BYTES_MAX);
        let router = Server::builder()
            .tls_config(identity.server())?
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_service(service);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped));
        tracing::info!(node = %config.node, %address, disks = slots.len(), "the storage node serves");
        Ok(Self { address, slots, stop, stop_heart, server, tasks })
    }

    /// Where it serves.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its configured disks, served or refused.
    #[must_use]
    pub fn disks(&self) -> &[Slot] {
        &self.slots
    }

    /// Finishes the calls that are under way, then ends every task and thread.
    pub async fn stop(mut self) {
        self.stop.cancel();
        for disk in self.slots.iter().filter_map(|slot| slot.disk.as_ref()) {
            disk.stop_scrubs();
        }
        match tokio::time::timeout(DRAIN_MAX, &mut self.server).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the server ended with an error"),
            Ok(Err(error)) => tracing::error!(%error, "the server panicked"),
            Err(_elapsed) => {
                tracing::warn!("calls were cut off: they did not end in time");
                self.server.abort();
            }
        }
        let slots = Arc::clone(&self.slots);
        let stopped = tokio::task::spawn_blocking(move || {
            for slot in slots.iter() {
                if let Some(disk) = &slot.disk {
                    disk.stop();
                }
            }
        });
        if stopped.await.is_err() {
            tracing::error!("a disk did not stop");
        }
        self.stop_heart.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
