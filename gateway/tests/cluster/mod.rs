//! A whole cluster in this process: one metadata node, four storage nodes of code 2+2, one gateway. Real sockets,
//! real TLS, real disks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockstore::config::{ScrubConfig, StorageConfig, UNREADABLE_PLACES_MAX_DEFAULT};
use blockstore::node::StorageNode;
use bytes::Bytes;
use engine::ids::{ClusterId, NodeId, ROOT_GROUP};
use gateway::config::{GatewayConfig, Limits};
use gateway::server::Gateway;
use metaraft::api::{MetaApi, bootstrap};
use metaraft::client::MetaClient;
use metaraft::node::{MetaConfig, MetaNode};
use metaraft::state::StateMachine;
use metaraft::warden::Warden;
use metaraft::warden::liveness::Liveness;
use proto::peer::{INTERNAL_NAME, Peer, Role, TlsFiles, TlsIdentity};
use proto::v1;
use proto::v1::accounts_client::AccountsClient;
use proto::v1::admin_client::AdminClient;
use proto::v1::files_client::FilesClient;
use proto::v1::sync_client::SyncClient;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tempfile::TempDir;
use tonic::Request;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// How long a test waits for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const STORAGE_NODES: u64 = 4;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    cluster: ClusterId,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, cluster: ClusterId::from_bytes([7; 16]) }
    }

    fn issue(&self, directory: &Path, role: Role, node: u64) -> TlsFiles {
        let peer = Peer { cluster: self.cluster, role, node: NodeId(node) };
        let mut params =
            CertificateParams::new(vec![INTERNAL_NAME.to_owned(), "localhost".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(peer.uri().try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |suffix: &str, text: String| {
            let path = directory.join(format!("{}-{node}.{suffix}", role.as_str()));
            std::fs::write(&path, text).unwrap();
            path
        };
        TlsFiles {
            ca: file("ca", self.issuer.pem()),
            certificate: file("crt", certificate.pem()),
            key: file("key", key.serialize_pem()),
        }
    }
}

/// All of it.
pub(crate) struct Cluster {
    directory: TempDir,
    authority: Authority,
    meta: MetaNode,
    warden: Warden,
    pub(crate) storage: BTreeMap<u64, StorageNode>,
    pub(crate) gateway: Gateway,
    pub(crate) token: String,
    meta_address: SocketAddr,
}

impl Cluster {
    /// Starts a fresh cluster, and waits until it has volumes.
    pub(crate) async fn start(data_groups: u16) -> Self {
        Self::start_with(data_groups, Limits::default()).await
    }

    /// The same, with limits of its own.
    pub(crate) async fn start_with(data_groups: u16, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let meta_address = listener.local_addr().unwrap();
        let members = vec![(NodeId(1), meta_address.to_string())];
        let config = MetaConfig {
            node: NodeId(1),
            listen: meta_address,
            advertise: None,
            data_dir: directory.path().join("meta"),
            tls: authority.issue(directory.path(), Role::Meta, 1),
            members: members.clone(),
            data_groups,
            snapshot_log_entries: 4096,
            log_entries_kept: 1024,
            snapshot_stall_max: metaraft::node::SNAPSHOT_STALL_MAX,
        };
        let liveness = Arc::new(Liveness::default());
        let app = Arc::new(StateMachine::new(Arc::clone(&liveness)));
        let meta = MetaNode::start_on(listener, config, app).await.unwrap();
        let warden = Warden::start(meta.group(ROOT_GROUP).unwrap(), liveness);
        meta.set_heartbeat_sink(warden.sink());
        let tls = authority.issue(directory.path(), Role::Gateway, 1);
        let identity = TlsIdentity::load(&tls).unwrap();
        let client = MetaClient::new(&[meta_address.to_string()], &identity).unwrap();
        let api = Arc::new(MetaApi::start(client));
        let code = "2+2".parse().unwrap();
        bootstrap::init_cluster(&api, authority.cluster, code, data_groups, members).await.unwrap();
        let admin = gateway::accounts::bootstrap_admin(Arc::clone(&api), "root@x.org", "Root", None, "test");
        let token = admin.await.unwrap().token;
        api.stop().await;
        let gateway = Gateway::start(GatewayConfig {
            node: NodeId(1),
            listen: "127.0.0.1:0".parse().unwrap(),
            meta: vec![meta_address.to_string()],
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
            internal_tls: tls,
            data_dir: directory.path().join("gateway"),
            limits,
        });
        let gateway = gateway.await.unwrap();
        let mut cluster = Self {
            directory,
            authority,
            meta,
            warden,
            storage: BTreeMap::new(),
            gateway,
            token,
            meta_address,
        };
        for node in 1..=STORAGE_NODES {
            cluster.start_storage(node).await;
        }
        cluster.wait_for_status(|status| status.volumes > 0 && status.health == "ok").await;
        cluster
    }

    /// The metadata as gateways reach it.
    pub(crate) fn meta_api(&self) -> MetaApi {
        let tls = self.authority.issue(self.directory.path(), Role::Gateway, 9);
        let identity = TlsIdentity::load(&tls).unwrap();
        MetaApi::start(MetaClient::new(&[self.meta_address.to_string()], &identity).unwrap())
    }

    pub(crate) async fn start_storage(&mut self, node: u64) {
        let data_dir = self.directory.path().join(format!("storage-{node}"));
        let config = StorageConfig {
            node: NodeId(node),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            disks: vec![data_dir.join("disk")],
            data_dir,
            rack: String::new(),
            meta: vec![self.meta_address.to_string()],
            tls: self.authority.issue(self.directory.path(), Role::Storage, node),
            reserve_bytes: Some(0),
            scrub: ScrubConfig::default(),
            unreadable_places_max: UNREADABLE_PLACES_MAX_DEFAULT,
        };
        self.storage.insert(node, StorageNode::start(config).await.unwrap());
    }

    /// Another gateway of the same cluster.
    pub(crate) async fn another_gateway(&self, node: u64, limits: Limits) -> Gateway {
        let tls = self.authority.issue(self.directory.path(), Role::Gateway, node);
        let gateway = Gateway::start(GatewayConfig {
            node: NodeId(node),
            listen: "127.0.0.1:0".parse().unwrap(),
            meta: vec![self.meta_address.to_string()],
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
            internal_tls: tls,
            data_dir: self.directory.path().join(format!("gateway-{node}")),
            limits,
        });
        gateway.await.unwrap()
    }

    /// The CA's certificate, in PEM form.
    pub(crate) fn ca(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("gateway-1.ca")).unwrap()
    }

    pub(crate) async fn stop_storage(&mut self, node: u64) {
        if let Some(storage) = self.storage.remove(&node) {
            storage.stop().await;
        }
    }

    pub(crate) async fn wait_for_status(
        &self,
        holds: impl Fn(&v1::StatusResponse) -> bool,
    ) -> v1::StatusResponse {
        let deadline = Instant::now() + PATIENCE;
        let client = self.client().await;
        loop {
            let status = client.admin().status(client.request(v1::StatusRequest {})).await;
            match &status {
                Ok(status) if holds(status.get_ref()) => return status.get_ref().clone(),
                _ => assert!(Instant::now() < deadline, "waited in vain: {status:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_of(&self.gateway).await
    }

    pub(crate) async fn client_of(&self, gateway: &Gateway) -> Client {
        let ca = Certificate::from_pem(self.ca());
        let tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{}", gateway.address())).unwrap();
        let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
        Client { channel, token: self.token.clone() }
    }

    pub(crate) async fn stop(self) {
        self.gateway.stop().await;
        for (_node, storage) in self.storage {
            storage.stop().await;
        }
        self.warden.stop().await;
        self.meta.stop().await;
    }
}

/// A signed-in client.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    pub(crate) token: String,
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

pub(crate) fn request_id() -> Bytes {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut id = u64::try_from(now.as_millis()).unwrap().to_be_bytes().to_vec();
    id.extend_from_slice(&random::<16>());
    id.into()
}

impl Client {
    /// The same connection with another token.
    pub(crate) fn with_token(&self, token: String) -> Self {
        Self { channel: self.channel.clone(), token }
    }

    pub(crate) fn files(&self) -> FilesClient<Channel> {
        FilesClient::new(self.channel.clone())
            .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(proto::MESSAGE_BYTES_MAX)
    }

    pub(crate) fn sync(&self) -> SyncClient<Channel> {
        SyncClient::new(self.channel.clone()).max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
    }

    pub(crate) fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
    }

    pub(crate) fn accounts(&self) -> AccountsClient<Channel> {
        AccountsClient::new(self.channel.clone())
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {}", self.token).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    }
}
