//! openraft's own tests of stores, on these stores.

use std::sync::Arc;

use engine::ids::GroupId;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::log_store::LogStore;
use super::state_store::StateStore;
use super::types::RaftTypes;
use crate::node::databases::Databases;
use crate::node::tests::registers::Registers;

struct Builder;

/// Keeps the databases and their directory until a test is over.
struct Guard {
    databases: Option<Databases>,
    _directory: TempDir,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The stores may still be there, so the writer's thread ends by itself, a little later.
        drop(self.databases.take());
    }
}

impl StoreBuilder<RaftTypes, LogStore, StateStore, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, StateStore), StorageError<RaftTypes>> {
        let directory = tempfile::tempdir().unwrap();
        let group = GroupId(1);
        let databases = Databases::open(directory.path(), &[group]).unwrap();
        let log = databases.log_store(group);
        let state = StateStore::new(group, Arc::clone(&databases.state), Arc::new(Registers));
        Ok((Guard { databases: Some(databases), _directory: directory }, log, state))
    }
}

#[test]
fn the_stores_pass_the_suite_of_openraft() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}
