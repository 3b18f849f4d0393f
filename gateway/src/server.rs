//! A gateway process: starts, serves on one port, stops.
//!
//! It is ready once it listens; requests that come before the metadata cluster answers are told to come again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockstore::client::StorageClient;
use engine::ids::DiskId;
use metaraft::api::MetaApi;
use metaraft::client::MetaClient;
use proto::peer::{TlsError, TlsIdentity};
use proto::v1::accounts_server::AccountsServer;
use proto::v1::admin_server::AdminServer;
use proto::v1::sync_server::SyncServer;
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use crate::chunks::deposit::Depositor;
use crate::chunks::inflight::InFlight;
use crate::chunks::prepare::Preparer;
use crate::chunks::presence::Presence;
use crate::chunks::reader::ChunkSource;
use crate::chunks::stripe::StripeSink;
use crate::chunks::writer::ChunkWriter;
use crate::config::GatewayConfig;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{
    CLEANUPS_MAX, CONNECTION_STREAMS_MAX, DOWNLOAD_BYTES_MAX, PUT_STREAMS_MAX, REQUESTS_MAX, STOP_GRACE,
    UPLOAD_BYTES_MAX, WAITERS_MAX,
};
use crate::meta::Meta;
use crate::password::Passwords;
use crate::services::accounts::AccountsService;
use crate::services::admin::AdminService;
use crate::services::dispatch::BoundedFiles;
use crate::services::files::FilesService;
use crate::services::sync::SyncService;
use crate::sessions::Sessions;
use crate::suspects::{Suspects, WatchedStore, probe_hung};
use crate::sync::watch::follow_groups;
use crate::uploads::put::byte_budget;

/// HTTP/2 by measurement (docs: large frames and windows halve the cost per byte).
const FRAME_BYTES: u32 = 1024 * 1024;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Unanswered pings for so long mean that a client has gone.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// An address of a metadata node is not one.
    #[error("metadata nodes: {why}")]
    MetaAddress {
        /// Why.
        why: String,
    },
    /// The TLS files are there but are not a certificate and its key.
    #[error("the public certificate and key cannot be used: {source}")]
    PublicTls {
        /// Why.
        source: tonic::transport::Error,
    },
    /// The process cannot work at all.
    #[error("cannot start: {why}")]
    Other {
        /// Why.
        why: String,
    },
}

/// A running gateway.
pub struct Gateway {
    address: SocketAddr,
    core: Arc<Core>,
    stop_serving: CancellationToken,
    serving: JoinHandle<()>,
    packing: CancellationToken,
    packer: JoinHandle<()>,
}

fn read(path: &Path) -> Result<Vec<u8>, StartError> {
    std::fs::read(path).map_err(|source| StartError::Read { path: path.to_owned(), source })
}

fn storage_client(identity: &TlsIdentity, meta: &Meta) -> StorageClient {
    let meta = meta.clone();
    let resolve = move |disk: DiskId| {
        let map = meta.map();
        let node = map.disk(disk)?.node;
        map.storage_node(node).map(|node| node.address.clone())
    };
    StorageClient::new(identity, Arc::new(resolve))
}

fn other(failure: Failure) -> StartError {
    StartError::Other { why: failure.message }
}

impl Gateway {
    /// Starts to serve. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`]. A metadata cluster that does not answer yet is no error.
    pub async fn start(config: GatewayConfig) -> Result<Self, StartError> {
        let identity = TlsIdentity::load(&config.internal_tls)?;
        let public = Identity::from_pem(read(&config.certificate)?, read(&config.key)?);
        let client = MetaClient::new(&config.meta, &identity)
            .map_err(|error| StartError::MetaAddress { why: error.to_string() })?;
        let passwords = tokio::task::spawn_blocking(Passwords::new)
            .await
            .map_err(|error| StartError::Other { why: error.to_string() })?
            .map_err(other)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| StartError::Listen { address: config.listen, source })?;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        let router = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(public))
            .map_err(|source| StartError::PublicTls { source })?;

        let meta = Meta::new(Arc::new(MetaApi::start(client)));
        let storage = Arc::new(storage_client(&identity, &meta));
        let suspects = Arc::new(Suspects::default());
        let store = Arc::new(WatchedStore::new(Arc::clone(&storage), Arc::clone(&suspects)));
        let sink =
            StripeSink::new(meta.clone(), Arc::clone(&suspects), Arc::clone(&storage), Arc::clone(&store));
        let source = ChunkSource::new(meta.clone(), Arc::clone(&suspects), Arc::clone(&store));
        let presence = Presence::new(meta.clone(), Arc::clone(&store), source.clone());
        let depositor = Depositor::new(meta.clone(), Arc::clone(&suspects), sink, presence.clone());
        let packing = CancellationToken::new();
        let (writer, pack) = ChunkWriter::new(depositor, packing.clone());
        let core = Arc::new(Core {
            node: config.node,
            address: address.to_string(),
            identity,
            source,
            meta,
            storage,
            passwords,
            sessions: Sessions::default(),
            preparer: Preparer::new(),
            in_flight: InFlight::default(),
            suspects: Arc::clone(&suspects),
            presence,
            writer,
            upload_budget: byte_budget(UPLOAD_BYTES_MAX),
            download_budget: byte_budget(DOWNLOAD_BYTES_MAX),
            put_streams: Arc::new(Semaphore::new(PUT_STREAMS_MAX)),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            cleanups: Arc::new(Semaphore::new(CLEANUPS_MAX)),
            waiters: Arc::new(Semaphore::new(WAITERS_MAX)),
            device_waiters: Arc::default(),
            watches: Arc::default(),
            sealer: OnceCell::new(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        });
        core.tasks.spawn(follow_groups(Arc::clone(&core)));
        core.tasks.spawn(probe_hung(core.meta.clone(), suspects, store, core.stopping.clone()));
        let packer = tokio::spawn(pack);
        let stop_serving = CancellationToken::new();
        let serving = tokio::spawn(serve(router, listener, Arc::clone(&core), stop_serving.clone()));
        Ok(Self { address, core, stop_serving, serving, packing, packer })
    }

    /// Where it serves.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: takes no more requests, gives those under way some seconds, and joins every task. What was acknowledged
    /// is durable already.
    pub async fn stop(self) {
        self.core.stopping.cancel();
        self.stop_serving.cancel();
        self.core.tasks.close();
        let abort = self.serving.abort_handle();
        if tokio::time::timeout(STOP_GRACE, self.serving).await.is_err() {
            abort.abort();
        }
        if tokio::time::timeout(STOP_GRACE, self.core.tasks.wait()).await.is_err() {
            tracing::warn!("requests under way were given up");
        }
        self.packing.cancel();
        if let Err(error) = self.packer.await {
            tracing::error!(error = %error, "the packing task failed");
        }
        self.core.meta.api().stop().await;
    }
}

async fn serve(server: Server, listener: TcpListener, core: Arc<Core>, stop: CancellationToken) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<BoundedFiles>().await;
    health.set_serving::<AccountsServer<AccountsService>>().await;
    health.set_serving::<AdminServer<AdminService>>().await;
    health.set_serving::<SyncServer<SyncService>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = server
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_service(health_service)
        .add_service(AccountsServer::new(AccountsService::new(Arc::clone(&core))))
        .add_service(BoundedFiles::new(FilesService::new(Arc::clone(&core))))
        .add_service(SyncServer::new(SyncService::new(Arc::clone(&core))))
        .add_service(AdminServer::new(AdminService::new(core)))
        .add_optional_service(reflection().build_v1().ok())
        .add_optional_service(reflection().build_v1alpha().ok());
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    if let Err(error) = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
        tracing::error!(error = %error, "the gateway stopped serving");
    }
}
