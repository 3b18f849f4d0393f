//! Starts a metadata node and stops it.
//!
//! Invariant: when [`MetaNode::stop`] returns, every task and thread of the node has ended and its databases are
//! closed, so that it can be started again at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use engine::ids::{ClusterId, GroupId, NodeId, ROOT_GROUP};
use proto::peer::{Role, TlsError, TlsIdentity};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::MetaConfig;
use super::databases::Databases;
use super::heartbeat::HeartbeatSink;
use super::server;
use super::service::MetadataService;
use super::space::{self, SpaceGate};
use crate::app::App;
use crate::log_clock::LogClock;
use crate::raft::group::{self, GroupHandle, GroupParts};
use crate::raft::log_database::LogError;
use crate::raft::peers::{PeerAddressError, Peers};
use crate::raft::receiving::{self, Receiving};
use crate::raft::service::{GroupPort, RaftService};
use crate::raft::state_store::StateStore;
use crate::standing::attester::{self, Attester};

/// How long openraft's own tasks may take to let go of the databases.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
const RELEASE_POLL: Duration = Duration::from_millis(2);

/// Why a metadata node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The configuration contradicts itself or the certificate.
    #[error("configuration of the metadata node: {0}")]
    Config(String),
    /// A member's address cannot be used.
    #[error(transparent)]
    Address(#[from] PeerAddressError),
    /// The disk failed.
    #[error("cannot {what} in {}: {source}", path.display())]
    Disk {
        /// What was tried.
        what: &'static str,
        /// The data directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A group's log is not what it was.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The port cannot be used.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Consensus refuses what is on disk.
    #[error("group {group} does not start: {reason}")]
    Group {
        /// The group.
        group: GroupId,
        /// Why.
        reason: String,
    },
}

/// A running metadata node.
pub struct MetaNode {
    node: NodeId,
    cluster: ClusterId,
    address: SocketAddr,
    groups: Arc<BTreeMap<GroupId, GroupHandle>>,
    heartbeats: Arc<OnceLock<Arc<dyn HeartbeatSink>>>,
    space: Arc<SpaceGate>,
    failed: watch::Sender<Option<String>>,
    attester: Arc<Attester>,
    receiving: BTreeMap<GroupId, Arc<Receiving>>,
    stop: CancellationToken,
    tasks: TaskTracker,
    databases: Databases,
}

fn check(config: &MetaConfig, identity: &TlsIdentity) -> Result<BTreeMap<u64, String>, StartError> {
    let peer = identity.peer();
    if peer.role != Role::Meta || peer.node != config.node {
        return Err(StartError::Config(format!(
            "the certificate is for {} {}, not for meta {}",
            peer.role.as_str(),
            peer.node,
            config.node
        )));
    }
    let members: BTreeMap<u64, String> =
        config.members.iter().map(|(node, address)| (node.0, address.clone())).collect();
    if members.len() != config.members.len() {
        return Err(StartError::Config("a member is named twice".to_owned()));
    }
    if !members.contains_key(&config.node.0) {
        return Err(StartError::Config(format!("node {} is not among the members", config.node)));
    }
    if config.snapshot_log_entries == 0 {
        return Err(StartError::Config("snapshot_log_entries must be at least 1".to_owned()));
    }
    Ok(members)
}

/// Opens what is in the node's directory. Blocks.
fn open(
    config: &MetaConfig,
    members: &BTreeMap<u64, String>,
    groups: &[GroupId],
) -> Result<(Databases, Arc<Attester>), StartError> {
    let directory = &config.data_dir;
    let databases = Databases::open(directory, groups)?;
    let removed = receiving::remove_leftovers(directory);
    removed.map_err(|source| StartError::Disk {
        what: "remove snapshots that were not installed",
        path: directory.clone(),
        source,
    })?;
    let failed = |source| StartError::Disk { what: "read who this node is", path: directory.clone(), source };
    let attester =
        Attester::open(directory, config.node, members, Arc::clone(&databases.log)).map_err(failed)?;
    Ok((databases, Arc::new(attester)))
}

fn receiving(config: &MetaConfig, groups: &[GroupId]) -> BTreeMap<GroupId, Arc<Receiving>> {
    let of = |group: &GroupId| (*group, Arc::new(Receiving::new(config.data_dir.clone(), *group)));
    groups.iter().map(of).collect()
}

impl MetaNode {
    /// Starts a node whose groups all run `app`. When this returns the node listens and its groups run; leaders may
    /// not have been elected yet.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    pub async fn start(config: MetaConfig, app: Arc<dyn App>) -> Result<Self, StartError> {
        let (listener, _address) = server::listen(config.listen).await?;
        Self::start_on(listener, config, app).await
    }

    /// As [`Self::start`], on a socket that listens already (`config.listen` is not used).
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_on(
        listener: tokio::net::TcpListener,
        config: MetaConfig,
        app: Arc<dyn App>,
    ) -> Result<Self, StartError> {
        let listening = config.listen;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: listening, source })?;
        let identity = TlsIdentity::load(&config.tls)?;
        let cluster = identity.peer().cluster;
        let mut members = check(&config, &identity)?;
        if let Some(own) = &config.advertise {
            members.insert(config.node.0, own.clone());
        }
        let members = Arc::new(members);
        let peers = Arc::new(Peers::new(&members, &identity)?);
        let ids: Vec<GroupId> = (ROOT_GROUP.0..=config.data_groups).map(GroupId).collect();
        let (own, voters, opened) = (config.clone(), Arc::clone(&members), ids.clone());
        let (databases, attester) = tokio::task::spawn_blocking(move || open(&own, &voters, &opened))
            .await
            .map_err(|error| StartError::Config(format!("opening the databases panicked: {error}")))??;

        let mut node = Self {
            node: config.node,
            cluster,
            address,
            groups: Arc::default(),
            heartbeats: Arc::default(),
            space: Arc::default(),
            failed: watch::Sender::new(None),
            attester,
            receiving: receiving(&config, &ids),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            databases,
        };
        // One for all groups: so that of a quiet one is not behind those of the others after a restart.
        let clock = Arc::new(Mutex::new(LogClock::new(0, Instant::now())));
        let mut groups = BTreeMap::new();
        for &id in &ids {
            let parts = GroupParts {
                group: id,
                node: config.node.0,
                members: Arc::clone(&members),
                log: node.databases.log_store(id),
                state: StateStore::new(id, Arc::clone(&node.databases.state), Arc::clone(&app))
                    .with_clock(Arc::clone(&clock)),
                peers: Arc::clone(&peers),
                snapshot_log_entries: config.snapshot_log_entries,
                log_entries_kept: config.log_entries_kept,
                snapshot_stall_max: config.snapshot_stall_max,
                clocks: node.attester.clocks(),
                space: Arc::clone(&node.space),
                failed: node.failed.clone(),
                standing: node.attester.standing(),
                may_found: node.attester.may_found(),
            };
            match group::start(parts, &node.tasks, &node.stop).await {
                Ok(handle) => groups.insert(id, handle),
                Err(reason) => {
                    node.groups = Arc::new(groups);
                    node.stop().await;
                    return Err(StartError::Group { group: id, reason });
                }
            };
        }
        node.groups = Arc::new(groups);
        for peer in members.keys().copied().filter(|member| *member != config.node.0) {
            let (attester, peers) = (Arc::clone(&node.attester), Arc::clone(&peers));
            node.tasks.spawn(attester::call(attester, peers, peer, node.stop.clone()));
        }
        node.serve(listener, identity, members, &config);
        tracing::info!(node = %config.node, %address, groups = ids.len(), "metadata node started");
        Ok(node)
    }

    fn serve(
        &self,
        listener: tokio::net::TcpListener,
        identity: TlsIdentity,
        members: Arc<BTreeMap<u64, String>>,
        config: &MetaConfig,
    ) {
        let metadata = MetadataService {
            cluster: self.cluster,
            node: self.node,
            members,
            groups: Arc::clone(&self.groups),
            heartbeats: Arc::clone(&self.heartbeats),
            attester: Arc::clone(&self.attester),
            stop: self.stop.clone(),
        };
        let port = |(id, handle): (&GroupId, &GroupHandle)| {
            let receiving = Arc::clone(&self.receiving[id]);
            let port =
                GroupPort { raft: handle.raft().clone(), receiving, stall_max: config.snapshot_stall_max };
            (*id, port)
        };
        let ports = self.groups.iter().map(port);
        let raft = RaftService {
            cluster: self.cluster,
            groups: Arc::new(ports.collect()),
            standing: self.attester.standing(),
            not_understood_told: AtomicBool::new(false),
        };
        self.tasks.spawn(server::serve(listener, identity, metadata, raft, self.stop.clone()));
        let groups = self.groups.values().cloned().collect();
        let gate = Arc::clone(&self.space);
        self.tasks.spawn(space::watch(config.data_dir.clone(), gate, groups, self.stop.clone()));
        self.tasks.close();
    }

    /// Which node this is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Which installation it belongs to, by its certificate.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// One of its groups.
    #[must_use]
    pub fn group(&self, group: GroupId) -> Option<GroupHandle> {
        self.groups.get(&group).cloned()
    }

    /// Where one of its groups receives snapshots.
    #[cfg(test)]
    pub(crate) fn receiving(&self, group: GroupId) -> Arc<Receiving> {
        Arc::clone(&self.receiving[&group])
    }

    /// The state of one of its groups as this node has it, up to date or not.
    #[cfg(test)]
    pub(crate) fn state(&self, group: GroupId) -> StateStore {
        let app = Arc::new(super::tests::registers::Registers::default());
        StateStore::new(group, Arc::clone(&self.databases.state), app)
    }

    /// Waits until one of the groups has failed for good (its disk erred, or was full), and says why. The node is of no
    /// use then until its process starts again. Cancel safe.
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        let mut failed = self.failed.subscribe();
        async move {
            let reason = failed.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            match reason {
                Some(reason) => reason,
                // The node has been stopped.
                None => std::future::pending().await,
            }
        }
    }

    /// Says where heartbeats go, once; later calls change nothing. Until then storage nodes are told to wait.
    pub fn set_heartbeat_sink(&self, sink: Arc<dyn HeartbeatSink>) {
        if self.heartbeats.set(sink).is_err() {
            tracing::warn!("the heartbeats of storage nodes go somewhere already");
        }
    }

    /// Stops the node. Handles of its groups that are kept answer [`crate::node::GroupError`] from then on.
    pub async fn stop(self) {
        let Self { node, groups, stop, tasks, databases, heartbeats, attester, .. } = self;
        stop.cancel();
        tasks.close();
        for (group, handle) in groups.iter() {
            if let Err(error) = handle.raft().shutdown().await {
                tracing::error!(%group, %error, "a group did not shut down well");
            }
        }
        drop((groups, heartbeats, attester));
        if tokio::time::timeout(RELEASE_TIMEOUT, tasks.wait()).await.is_err() {
            tracing::error!(%node, "tasks still run although the node has stopped");
        }
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        while databases.in_use() && Instant::now() < deadline {
            tokio::time::sleep(RELEASE_POLL).await;
        }
        if databases.in_use() {
            // Closing would wait for ever: leave the rest to the end of the process.
            tracing::error!(%node, "the databases are still in use although the node has stopped");
            return;
        }
        if let Err(error) = tokio::task::spawn_blocking(move || databases.close()).await {
            tracing::error!(%node, %error, "closing the databases failed");
        }
        tracing::info!(%node, "metadata node stopped");
    }
}
