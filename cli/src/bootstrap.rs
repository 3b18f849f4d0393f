//! Makes an installation of metadata nodes that run, and its administrator. Repeating it is harmless.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use engine::code::Code;
use engine::ids::{ClusterId, NodeId};
use gateway::accounts::{BootstrapAdmin, bootstrap_admin};
use metaraft::api::MetaApi;
use metaraft::api::bootstrap::init_cluster_spread;
use metaraft::client::MetaClient;
use proto::peer::{MetaAddress, TlsIdentity};
use tokio::time::Instant;

/// How long the metadata nodes may take until they have leaders.
const LEADERS_TIME_MAX: Duration = Duration::from_secs(30);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// What an installation is made of.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    pub(crate) cluster: ClusterId,
    pub(crate) code: Code,
    pub(crate) data_groups: u16,
    /// Storage nodes that there will be: volumes are spread over them, however late some register.
    pub(crate) storage_nodes: usize,
    pub(crate) meta_nodes: Vec<(NodeId, String)>,
}

/// The administrator to be made.
#[derive(Clone, Debug)]
pub(crate) struct Administrator {
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) password: Option<String>,
    pub(crate) device: String,
}

/// Makes the installation and the administrator; gives a new device of theirs.
pub(crate) async fn bootstrap(
    identity: &TlsIdentity,
    installation: &Installation,
    administrator: &Administrator,
) -> anyhow::Result<BootstrapAdmin> {
    let named = |(node, address): &(NodeId, String)| {
        MetaAddress { node: Some(*node), address: address.clone() }.to_string()
    };
    let addresses: Vec<String> = installation.meta_nodes.iter().map(named).collect();
    let client = MetaClient::new(&addresses, identity).context("the metadata nodes' addresses")?;
    let api = Arc::new(MetaApi::start(client));
    let done = init_and_admin(&api, installation, administrator).await;
    api.stop().await;
    done
}

async fn init_and_admin(
    api: &Arc<MetaApi>,
    installation: &Installation,
    administrator: &Administrator,
) -> anyhow::Result<BootstrapAdmin> {
    let deadline = Instant::now() + LEADERS_TIME_MAX;
    loop {
        let Installation { cluster, code, data_groups, storage_nodes, meta_nodes } = installation.clone();
        match init_cluster_spread(api, cluster, code, data_groups, meta_nodes, storage_nodes).await {
            Ok(()) => break,
            Err(metaraft::api::MetaError::Step(error)) => {
                return Err(error).context("the cluster cannot be initialised");
            }
            Err(error) if Instant::now() >= deadline => {
                return Err(error).context("the metadata nodes do not answer");
            }
            Err(error) => tracing::debug!(%error, "the cluster is not initialised yet"),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(RETRY_INTERVAL);
    api.wait_ready(left).await.context("the metadata nodes do not answer")?;
    let Administrator { email, name, password, device } = administrator;
    bootstrap_admin(api.clone(), email, name, password.as_deref(), device)
        .await
        .map_err(|failure| anyhow::anyhow!("the administrator cannot be made: {}", failure.message))
}
