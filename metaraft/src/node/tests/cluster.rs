//! Starts, stops and restarts the nodes of a test cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::ids::{ClusterId, GroupId, NodeId};
use proto::peer::{INTERNAL_NAME, Peer, Role, TlsFiles, TlsIdentity};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tempfile::TempDir;

use super::registers::Registers;
use crate::client::{ClientConfig, MetaClient};
use crate::node::{MetaConfig, MetaNode, SNAPSHOT_STALL_MAX, StartError};
use crate::raft::reader::QueryJob;

/// How long a test waits for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test on a runtime of its own.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(4).enable_all().build().unwrap().block_on(test);
}

/// The certificates of one installation.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) cluster: ClusterId,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, cluster: ClusterId::from_bytes([7; 16]) }
    }

    pub(crate) fn issue(&self, directory: &Path, role: Role, node: u64) -> TlsFiles {
        self.issue_for(self.cluster, directory, role, node)
    }

    pub(crate) fn issue_for(&self, cluster: ClusterId, directory: &Path, role: Role, node: u64) -> TlsFiles {
        let peer = Peer { cluster, role, node: NodeId(node) };
        let mut params = CertificateParams::new(vec![INTERNAL_NAME.to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(peer.uri().try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let name = format!("{cluster}-{}-{node}", role.as_str());
        let file = |suffix: &str, text: String| {
            let path = directory.join(format!("{name}.{suffix}"));
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

/// Three nodes, any of which may be down.
pub(crate) struct Cluster {
    pub(crate) directory: TempDir,
    pub(crate) authority: Authority,
    pub(crate) addresses: BTreeMap<u64, SocketAddr>,
    pub(crate) nodes: BTreeMap<u64, MetaNode>,
    data_groups: u16,
    snapshot_log_entries: u64,
    pub(crate) snapshot_stall_max: Duration,
    /// Which node is of an older version, once it is started again.
    pub(crate) knows_less: Option<u64>,
}

impl Cluster {
    /// Founds a cluster of three.
    pub(crate) async fn start(data_groups: u16, snapshot_log_entries: u64) -> Self {
        let mut cluster = Self {
            directory: tempfile::tempdir().unwrap(),
            authority: Authority::new(),
            addresses: BTreeMap::new(),
            nodes: BTreeMap::new(),
            data_groups,
            snapshot_log_entries,
            snapshot_stall_max: SNAPSHOT_STALL_MAX,
            knows_less: None,
        };
        let mut listeners = BTreeMap::new();
        for node in 1..=3 {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            cluster.addresses.insert(node, listener.local_addr().unwrap());
            listeners.insert(node, listener);
        }
        for (node, listener) in listeners {
            let config = cluster.config(node);
            let started = MetaNode::start_on(listener, config, Arc::new(Registers::default())).await.unwrap();
            cluster.nodes.insert(node, started);
        }
        cluster
    }

    pub(crate) fn config(&self, node: u64) -> MetaConfig {
        MetaConfig {
            node: NodeId(node),
            listen: self.addresses[&node],
            advertise: None,
            data_dir: self.directory.path().join(format!("node-{node}")),
            tls: self.authority.issue(self.directory.path(), Role::Meta, node),
            members: self.addresses.iter().map(|(id, address)| (NodeId(*id), address.to_string())).collect(),
            data_groups: self.data_groups,
            snapshot_log_entries: self.snapshot_log_entries,
            log_entries_kept: 4,
            snapshot_stall_max: self.snapshot_stall_max,
        }
    }

    pub(crate) async fn stop_node(&mut self, node: u64) {
        self.nodes.remove(&node).unwrap().stop().await;
    }

    pub(crate) async fn stop(&mut self) {
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.stop_node(node).await;
        }
    }

    pub(crate) async fn try_start_node(&mut self, node: u64) -> Result<(), StartError> {
        let app = Registers { knows_less: self.knows_less == Some(node) };
        let started = MetaNode::start(self.config(node), Arc::new(app)).await?;
        self.nodes.insert(node, started);
        Ok(())
    }

    pub(crate) async fn start_node(&mut self, node: u64) {
        self.try_start_node(node).await.unwrap();
    }

    pub(crate) fn identity(&self, role: Role) -> TlsIdentity {
        TlsIdentity::load(&self.authority.issue(self.directory.path(), role, 100)).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        let addresses: Vec<String> = self.addresses.values().map(ToString::to_string).collect();
        let config = ClientConfig { deadline: PATIENCE, ..ClientConfig::default() };
        Client(MetaClient::with_config(&addresses, &self.identity(Role::Gateway), config).unwrap())
    }

    /// The node that leads `group`, once one does and all that are up agree.
    pub(crate) async fn leader(&self, group: GroupId) -> u64 {
        let mut leader = 0;
        wait_for("a leader", || {
            let seen: Vec<_> =
                self.nodes.values().map(|node| *node.group(group).unwrap().leadership().borrow()).collect();
            let known = seen.first().and_then(|first| first.leader);
            leader = known.map_or(0, |leader| leader.0);
            let agreed = seen.iter().all(|leadership| leadership.leader == known);
            agreed && self.nodes.get(&leader).is_some_and(|node| node.group(group).unwrap().is_leader())
        })
        .await;
        leader
    }

    /// Which of these nodes leads `group` now, by its own account.
    pub(crate) fn leader_among(&self, nodes: &[u64], group: GroupId) -> Option<u64> {
        let leads = |node: &u64| {
            self.nodes
                .get(node)
                .is_some_and(|started| started.group(group).is_some_and(|group| group.is_leader()))
        };
        nodes.iter().copied().find(leads)
    }

    /// Waits until all nodes that are up have applied the same.
    pub(crate) async fn settle(&self, group: GroupId) {
        wait_for("equal replicas", || {
            let mut applied: Vec<_> = self
                .nodes
                .values()
                .map(|node| node.group(group).unwrap().progress())
                .map(|progress| (progress.applied_index, progress.last_log_index))
                .collect();
            applied.dedup();
            applied.len() == 1 && applied[0].0 == applied[0].1
        })
        .await;
    }

    /// The whole state of `group` as `node` has it, up to date or not.
    pub(crate) fn local_state(&self, node: u64, group: GroupId) -> String {
        let node = &self.nodes[&node];
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        node.state(group).query([QueryJob { query: b"all".to_vec(), reply }]).unwrap();
        String::from_utf8(answer.try_recv().unwrap().unwrap()).unwrap()
    }
}

/// A client that speaks in texts.
#[derive(Clone)]
pub(crate) struct Client(pub(crate) MetaClient);

impl Client {
    pub(crate) async fn propose(&self, group: GroupId, command: &str) -> String {
        let outcomes =
            self.0.propose_raw(group, vec![Bytes::copy_from_slice(command.as_bytes())]).await.unwrap();
        String::from_utf8(outcomes[0].to_vec()).unwrap()
    }

    pub(crate) async fn query(&self, group: GroupId, query: &str) -> String {
        let reply = self.0.query_raw(group, Bytes::copy_from_slice(query.as_bytes())).await.unwrap();
        String::from_utf8(reply.to_vec()).unwrap()
    }
}

/// Waits for a condition, with a deadline.
pub(crate) async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
