//! openraft's own tests of stores, on these stores.

use std::sync::{Arc, mpsc};

use engine::ids::GroupId;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::log_store::LogStore;
use super::state_store::StateStore;
use super::types::RaftTypes;
use crate::node::databases::Databases;
use crate::node::tests::registers::Registers;

struct Builder {
    closer: mpsc::Sender<Used>,
}

/// Databases that a test has used, with their directory.
struct Used(Databases, TempDir);

/// Keeps the databases and their directory until a test is over.
struct Guard {
    used: Option<Used>,
    closer: mpsc::Sender<Used>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The stores may still be there, so another thread waits for them.
        if let Some(used) = self.used.take() {
            drop(self.closer.send(used));
        }
    }
}

impl StoreBuilder<RaftTypes, LogStore, StateStore, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, StateStore), StorageError<RaftTypes>> {
        let directory = tempfile::tempdir().unwrap();
        let group = GroupId(1);
        let databases = Databases::open(directory.path(), &[group]).unwrap();
        let log = databases.log_store(group);
        let state = StateStore::new(group, Arc::clone(&databases.state), Arc::new(Registers::default()));
        Ok((Guard { used: Some(Used(databases, directory)), closer: self.closer.clone() }, log, state))
    }
}

#[test]
fn the_stores_pass_the_suite_of_openraft() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (closer, closing) = mpsc::channel();
    // All are closed when the test ends: a database that is open while its process ends may abort it.
    let closed = std::thread::spawn(move || {
        for Used(databases, _directory) in closing {
            databases.close();
        }
    });
    runtime.block_on(Suite::test_all(Builder { closer })).unwrap();
    drop(runtime);
    closed.join().unwrap();
}
