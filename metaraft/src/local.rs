//! The groups within the process and in memory, for tests: commands are applied at once, at this machine's time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use engine::ids::{GroupId, NodeId, ROOT_GROUP};
use futures_util::stream::BoxStream;
use tokio::sync::watch;

use crate::api::{MetaError, Transport};
use crate::app::{App, LogTime};
use crate::client::WatchedChanges;
use crate::kv::{MemoryStore, Txn, View};
use crate::log_clock::own_wall_ms;
use crate::node::{GroupError, Leadership};
use crate::state::StateMachine;
use crate::warden::RootGroup;
use crate::warden::liveness::Liveness;

/// Root and data groups. Clones share them.
#[derive(Clone)]
pub(crate) struct Local {
    inner: Arc<Inner>,
}

struct Inner {
    machine: StateMachine,
    groups: Mutex<BTreeMap<GroupId, MemoryStore>>,
    leadership: watch::Sender<Leadership>,
    proposals: AtomicUsize,
}

impl Local {
    pub(crate) fn new(liveness: Arc<Liveness>) -> Self {
        let leadership = watch::Sender::new(Leadership::default());
        let (groups, proposals) = (Mutex::default(), AtomicUsize::new(0));
        Self {
            inner: Arc::new(Inner { machine: StateMachine::new(liveness), groups, leadership, proposals }),
        }
    }

    /// Makes this node the leader of the root group, or not.
    pub(crate) fn lead(&self, term: u64, is_self: bool) {
        let leader = is_self.then_some(NodeId(1));
        self.inner.leadership.send_replace(Leadership { leader, is_self, term });
    }

    /// Commands so far.
    pub(crate) fn proposals(&self) -> usize {
        self.inner.proposals.load(Ordering::SeqCst)
    }

    fn apply(&self, group: GroupId, command: &[u8]) -> Vec<u8> {
        self.inner.proposals.fetch_add(1, Ordering::SeqCst);
        let mut groups = self.inner.groups.lock().unwrap();
        let store = groups.entry(group).or_default();
        let mut txn = Txn::new(store);
        if let Some(refused) = self.inner.machine.refusal(group, command) {
            return refused;
        }
        let outcome =
            self.inner.machine.apply(group, &mut txn, LogTime::at(own_wall_ms()).into(), command).unwrap();
        let changes = txn.into_changes().unwrap();
        store.commit(changes);
        outcome
    }

    fn answer(&self, group: GroupId, query: &[u8]) -> Vec<u8> {
        let mut groups = self.inner.groups.lock().unwrap();
        self.inner.machine.query(group, &View::new(groups.entry(group).or_default()), query)
    }
}

#[tonic::async_trait]
impl Transport for Local {
    async fn propose(&self, group: GroupId, command: Bytes) -> Result<Bytes, MetaError> {
        Ok(self.apply(group, &command).into())
    }

    async fn query(&self, group: GroupId, query: Bytes, _little: bool) -> Result<Bytes, MetaError> {
        Ok(self.answer(group, &query).into())
    }

    async fn watch(&self, _group: GroupId) -> Result<BoxStream<'static, WatchedChanges>, MetaError> {
        Err(MetaError::Unavailable { reason: "nothing is watched here".to_owned() })
    }
}

#[tonic::async_trait]
impl RootGroup for Local {
    async fn propose(&self, command: Vec<u8>) -> Result<Vec<u8>, GroupError> {
        Ok(self.apply(ROOT_GROUP, &command))
    }

    async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>, GroupError> {
        Ok(self.answer(ROOT_GROUP, &query))
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    fn log_ms(&self) -> u64 {
        own_wall_ms()
    }
}
