//! What all parts of a session share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::effects::Effects;
use super::execute::download_large::Parts;
use super::state_thread::{AskError, StateThread};
use super::status::{Direction, Transfer};
use super::task::{Again, End};
use super::throttle::Throttle;
use crate::connection::ApiClient;
use crate::local::ignore_rules::IgnoreRules;
use crate::local::root::Root;
use crate::local::watch::Writers;
use crate::planner::model::NodeId;
use crate::state::reached::Reached;
use crate::state::scan_index::ScanIndex;
use crate::upload::chunk_stream::ChunkSender;

/// Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) api: ApiClient,
    pub(crate) root: Arc<Root>,
    pub(crate) state: StateThread,
    pub(crate) chunks: ChunkSender,
    /// For checks of whole folders before they go.
    pub(crate) index: Arc<Mutex<ScanIndex>>,
    pub(crate) rules: Arc<IgnoreRules>,
    pub(crate) effects: Effects,
    pub(crate) up: Throttle,
    pub(crate) down: Throttle,
    pub(crate) counters: Arc<Counters>,
    pub(crate) parts: Parts,
    /// Who writes files of the folder just now, by the watcher's word.
    pub(crate) writers: Writers,
    /// See the scanner's.
    pub(crate) empty_confirmed: Arc<AtomicBool>,
    /// Cancelled when what is under way is to be broken off: a pause, or the end.
    pub(crate) stop: CancellationToken,
}

impl Shared {
    /// Up to where the server's tree is known, by its journal or by answers: calls that rest on what is known of it go with
    /// this. A session that learns that the server went back ends all that is under way first, so it is of the history
    /// that was planned for.
    pub(crate) async fn known(&self) -> Result<Reached, End> {
        self.state.ask(|state| state.known()).await.map_err(|error| unrecorded(&error))
    }

    /// Keeps where an answer has led, before what was done is recorded. One that may be of another history than what is
    /// known by now counts as lost: the journal tells what came of it.
    pub(crate) async fn note_answered(&self, asked: Reached, told: Reached) -> Result<(), End> {
        let noted = self.state.ask(move |state| state.note_answered(&asked, &told)).await;
        if noted.map_err(|error| unrecorded(&error))? { Ok(()) } else { Err(End::RemoteChanged) }
    }
}

#[cfg(test)]
impl Shared {
    /// Of an empty folder, which is kept the same as an entry of a gateway's.
    pub(crate) fn of(api: ApiClient, folder: &std::path::Path, entry: u64) -> Self {
        let root = Arc::new(Root::create(folder, None, &[]).unwrap());
        let mut state = crate::state::database::State::open(root.state_path()).unwrap().state;
        state.set_root_entry(entry, 0).unwrap();
        let index = Arc::new(Mutex::new(state.scan_index().unwrap()));
        let (state, _owner) = StateThread::start(state).unwrap();
        let (chunks, _task) = ChunkSender::start(api.clone());
        Self {
            api,
            root,
            state,
            chunks,
            index,
            rules: Arc::default(),
            effects: Effects::default(),
            up: Throttle::new(super::config::Rate::Unlimited),
            down: Throttle::new(super::config::Rate::Unlimited),
            counters: Arc::default(),
            parts: Parts::default(),
            writers: Writers::default(),
            empty_confirmed: Arc::default(),
            stop: CancellationToken::new(),
        }
    }
}

fn unrecorded(error: &AskError) -> End {
    End::Failed { reason: error.to_string(), again: Again::Soon }
}

/// Sums and transfers under way, for the status.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) up: DirectionCounters,
    pub(crate) down: DirectionCounters,
    transfers: Mutex<BTreeMap<NodeId, Transfer>>,
}

#[derive(Debug, Default)]
pub(crate) struct DirectionCounters {
    pub(crate) files: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) wire: AtomicU64,
}

impl DirectionCounters {
    pub(crate) fn file(&self, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn wire(&self, bytes: u64) {
        self.wire.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A transfer shown in the status, until it is dropped.
#[derive(Debug)]
pub(crate) struct Shown {
    counters: Arc<Counters>,
    node: NodeId,
}

impl Counters {
    pub(crate) fn show(
        self: &Arc<Self>,
        node: NodeId,
        path: String,
        direction: Direction,
        bytes_total: u64,
    ) -> Shown {
        let transfer = Transfer { path, direction, bytes_done: 0, bytes_total };
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner).insert(node, transfer);
        Shown { counters: self.clone(), node }
    }

    pub(crate) fn transfers(&self) -> Vec<Transfer> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Shown {
    pub(crate) fn advance(&self, bytes: u64) {
        let mut transfers = self.counters.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(transfer) = transfers.get_mut(&self.node) {
            transfer.bytes_done = (transfer.bytes_done + bytes).min(transfer.bytes_total);
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.counters.transfers.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.node);
    }
}
