//! All roles in this process.

use blockstore::node::StorageNode;
use futures_util::future::{join_all, select_all};
use gateway::server::Gateway;
use proto::peer::Role;

use super::layout::Layout;
use super::parameters::Parameters;
use crate::role::{RunningMeta, start_gateway, start_storage};

/// The running roles.
pub(crate) struct RolesHere {
    metas: Vec<RunningMeta>,
    storages: Vec<StorageNode>,
    gateways: Vec<Gateway>,
}

impl RolesHere {
    pub(crate) async fn start(layout: &Layout, parameters: &Parameters) -> anyhow::Result<Self> {
        let mut roles = Self { metas: Vec::new(), storages: Vec::new(), gateways: Vec::new() };
        for name in parameters.roles() {
            let file = layout.config(name);
            let started = match name.role {
                Role::Meta => RunningMeta::start(&file).await.map(|meta| roles.metas.push(meta)),
                Role::Storage => start_storage(&file).await.map(|storage| roles.storages.push(storage)),
                Role::Gateway => start_gateway(&file).await.map(|gateway| roles.gateways.push(gateway)),
            };
            if let Err(error) = started {
                roles.stop().await;
                return Err(error);
            }
        }
        Ok(roles)
    }

    /// Waits until a metadata node is of no use any more, and says why. Cancel safe.
    pub(crate) async fn failed(&self) -> String {
        let failed: Vec<_> = self.metas.iter().map(|meta| Box::pin(meta.failed())).collect();
        select_all(failed).await.0
    }

    /// Those that use others first.
    pub(crate) async fn stop(self) {
        join_all(self.gateways.into_iter().map(Gateway::stop)).await;
        join_all(self.storages.into_iter().map(StorageNode::stop)).await;
        join_all(self.metas.into_iter().map(RunningMeta::stop)).await;
    }
}
