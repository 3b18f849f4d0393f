//! A gateway process: starts, serves on one port, stops.
//!
//! It is ready once it listens; requests that come before the metadata cluster answers are told to come again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockstore::client::StorageClient;
use engine::ids::{AccountId, DiskId};
use metaraft::api::MetaApi;
use metaraft::client::MetaClient;
use proto::peer::{TlsError, TlsIdentity};
use proto::v1::accounts_server::AccountsServer;
use proto::v1::admin_server::AdminServer;
use proto::v1::sync_server::SyncServer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::chunks::deposit::Depositor;
use crate::chunks::inflight::InFlight;
use crate::chunks::prepare::Preparer;
use crate::chunks::presence::Presence;
use crate::chunks::reader::ChunkSource;
use crate::chunks::stripe::StripeSink;
use crate::chunks::writer::ChunkWriter;
use crate::config::{GatewayConfig, Limits};
use crate::core::{BUDGET_UNIT_BYTES, Core};
use crate::door::gate::Gate;
use crate::door::listen::Door;
use crate::door::refusals::Refusals;
use crate::door::shares::Shares;
use crate::failure::Failure;
use crate::limits::{CLEANUPS_MAX, STOP_GRACE};
use crate::meta::Meta;
use crate::password::Passwords;
use crate::release::retry_set_aside;
use crate::services::accounts::AccountsService;
use crate::services::admin::AdminService;
use crate::services::dispatch::BoundedFiles;
use crate::services::files::FilesService;
use crate::services::sync::SyncService;
use crate::sessions::Sessions;
use crate::sign_in::turns::Turns;
use crate::suspects::{Suspects, WatchedStore, probe_hung};
use crate::sync::waiters::DeviceWaiters;
use crate::sync::watch::follow_groups;
use crate::uploads::{begin, forget};

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
        source: rustls::Error,
    },
    /// The TLS files are no certificate and key at all.
    #[error("{} cannot be used: {source}", path.display())]
    PublicPem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
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
        map.storage_node(node).map(|info| (node, info.address.clone()))
    };
    StorageClient::new(identity, Arc::new(resolve))
}

fn other(failure: Failure) -> StartError {
    StartError::Other { why: failure.message }
}

/// So many bytes for each account, and for all together.
fn bytes(own: u64, all: u64) -> Shares<AccountId> {
    Shares::new(own.div_ceil(BUDGET_UNIT_BYTES), all.div_ceil(BUDGET_UNIT_BYTES))
}

impl Gateway {
    /// Starts to serve. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`]. A metadata cluster that does not answer yet is no error.
    pub async fn start(config: GatewayConfig) -> Result<Self, StartError> {
        let identity = TlsIdentity::load(&config.internal_tls)?;
        let acceptor = public_tls(&config)?;
        let client = MetaClient::new(&config.meta, &identity)
            .map_err(|error| StartError::MetaAddress { why: error.to_string() })?;
        let passwords = Passwords::new().map_err(other)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| StartError::Listen { address: config.listen, source })?;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        let meta = Meta::new(Arc::new(MetaApi::start(client)));
        let storage = Arc::new(storage_client(&identity, &meta));
        let suspects = Arc::new(Suspects::default());
        let store = Arc::new(WatchedStore::new(Arc::clone(&storage), Arc::clone(&suspects)));
        let sink =
            StripeSink::new(meta.clone(), Arc::clone(&suspects), Arc::clone(&storage), Arc::clone(&store));
        let source =
            ChunkSource::new(meta.clone(), Arc::clone(&suspects), Arc::clone(&store)).map_err(other)?;
        let presence = Presence::new(meta.clone(), Arc::clone(&store), source.clone());
        let depositor = Depositor::new(meta.clone(), Arc::clone(&suspects), sink, presence.clone());
        let packing = CancellationToken::new();
        let (writer, pack) = ChunkWriter::new(depositor, packing.clone());
        let limits = &config.limits;
        let ((forgetting, forgotten), stopping) = (forget::queue(), CancellationToken::new());
        let core = Arc::new(Core {
            node: config.node,
            address: address.to_string(),
            identity,
            source,
            meta,
            storage,
            passwords,
            turns: Turns::new(limits),
            sessions: Sessions::default(),
            preparer: Preparer::new(),
            in_flight: InFlight::default(),
            suspects: Arc::clone(&suspects),
            presence,
            writer,
            upload_bytes: bytes(limits.account_upload_bytes_max, limits.upload_bytes_max),
            download_bytes: bytes(limits.account_download_bytes_max, limits.download_bytes_max),
            lookups: Shares::new(limits.account_lookups_max, limits.lookups_max),
            read_bytes: bytes(limits.account_read_bytes_max, limits.read_bytes_max),
            refusals: refusals(limits, stopping.clone()),
            chunk_lists: begin::debts(limits, stopping.clone()),
            put_streams: Shares::new(limits.account_put_streams_max, limits.put_streams_max),
            downloads: Shares::new(limits.account_downloads_max, limits.downloads_max),
            live: Arc::default(),
            cleanups: Arc::new(Semaphore::new(CLEANUPS_MAX)),
            forgetting,
            waiters: Shares::new(limits.account_waiters_max, limits.waiters_max),
            device_waiters: DeviceWaiters::new(limits.device_waiters_max),
            watches: Arc::default(),
            sealer: OnceCell::new(),
            tasks: TaskTracker::new(),
            stopping,
        });
        core.tasks.spawn(forget::run(Arc::clone(&core), forgotten));
        core.tasks.spawn(probe_hung(core.meta.clone(), suspects, store, core.stopping.clone()));
        spawn_followers(&core);
        let packer = tokio::spawn(pack);
        let stop_serving = CancellationToken::new();
        let gate = Gate::new(routes(&core).await, Arc::clone(&core), limits);
        let door = Door::new(acceptor, gate, limits);
        let serving = tokio::spawn(door.serve(listener, stop_serving.clone()));
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

/// The certificate that clients see; HTTP/2 only.
fn public_tls(config: &GatewayConfig) -> Result<TlsAcceptor, StartError> {
    let pem = |path: &Path, source| StartError::PublicPem { path: path.to_owned(), source };
    let chain = CertificateDer::pem_slice_iter(&read(&config.certificate)?).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|source| pem(&config.certificate, source))?;
    let key = PrivateKeyDer::from_pem_slice(&read(&config.key)?);
    let key = key.map_err(|source| pem(&config.key, source))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|source| StartError::PublicTls { source })?;
    tls.alpn_protocols.push(b"h2".to_vec());
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

fn refusals(limits: &Limits, stopping: CancellationToken) -> Refusals {
    Refusals::new(limits.account_refusals_burst, limits.account_refusals_per_second, stopping)
}

/// Starts what follows the cluster for as long as the gateway runs.
fn spawn_followers(core: &Arc<Core>) {
    core.tasks.spawn(follow_groups(Arc::clone(core)));
    core.tasks.spawn(crate::nursery::run(Arc::clone(core)));
    let (meta, source) = (core.meta.clone(), core.source.clone());
    core.tasks.spawn(retry_set_aside(meta, source, core.stopping.clone()));
    core.tasks.spawn(Arc::clone(&core.live).follow(core.meta.clone(), core.stopping.clone()));
}

async fn routes(core: &Arc<Core>) -> Routes {
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
    let mut routes = Routes::new(health_service)
        .add_service(AccountsServer::new(AccountsService::new(Arc::clone(core))))
        .add_service(BoundedFiles::new(FilesService::new(Arc::clone(core))))
        .add_service(SyncServer::new(SyncService::new(Arc::clone(core))))
        .add_service(AdminServer::new(AdminService::new(Arc::clone(core))));
    if let Ok(reflection) = reflection().build_v1() {
        routes = routes.add_service(reflection);
    }
    if let Ok(reflection) = reflection().build_v1alpha() {
        routes = routes.add_service(reflection);
    }
    routes.prepare()
}
