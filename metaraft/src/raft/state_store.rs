//! One group's state machine, as openraft drives it: applies entries, and is its own snapshot.
//!
//! The state is persistent, so "building a snapshot" only makes sure that it is durable up to where it is; that is
//! what lets the log be purged. A snapshot is materialised only to be sent: a RocksDB snapshot of the state at one
//! applied index, pinned while it is read. So there is always one, after a restart as well, and never a stale one.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use engine::ids::GroupId;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};

use super::reader::QueryJob;
use super::snapshot::SnapshotData;
use super::state_database::{PinnedState, StateDatabase, StateMeta};
use super::types::{Entry, LogId, Outcomes, RaftTypes, SnapshotMeta, StoredMembership, entry_bytes};
use crate::app::{App, LogTime, Made, NotUnderstood};
use crate::kv::{Txn, View};
use crate::log_clock::LogClock;
use crate::model::journal::Reign;
use crate::watchers::Watchers;

type Snapshot = openraft::type_config::alias::SnapshotOf<RaftTypes, SnapshotData>;

/// Entries, and bytes of them, that are applied in one write.
const APPLY_ENTRIES_MAX: usize = 256;
const APPLY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A group's state. Clones share it.
#[derive(Clone)]
pub(crate) struct StateStore {
    group: GroupId,
    database: Arc<StateDatabase>,
    app: Arc<dyn App>,
    watchers: Arc<Watchers>,
    clock: Arc<Mutex<LogClock>>,
}

/// Stops the replica, before it holds something else than those that know the command.
fn not_known(index: u64, unknown: &NotUnderstood) -> io::Error {
    let why = format!(
        "this software does not know a command in entry {index} of the log ({unknown}), so it was proposed by a newer \
         one: upgrade the software of this node"
    );
    io::Error::new(io::ErrorKind::Unsupported, why)
}

async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl StateStore {
    /// The state of `group`.
    pub(crate) fn new(group: GroupId, database: Arc<StateDatabase>, app: Arc<dyn App>) -> Self {
        let clock = Arc::new(Mutex::new(LogClock::new(0, Instant::now())));
        Self { group, database, app, watchers: Arc::default(), clock }
    }

    /// The same, with the log time that all groups of the node share.
    pub(crate) fn with_clock(self, clock: Arc<Mutex<LogClock>>) -> Self {
        Self { clock, ..self }
    }

    /// The log time, which goes on from what has been applied at least. Blocks.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub(crate) fn clock(&self) -> io::Result<Arc<Mutex<LogClock>>> {
        let applied_ms = self.database.meta(self.group)?.time_ms;
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).observe(applied_ms, false, Instant::now());
        Ok(Arc::clone(&self.clock))
    }

    /// The same, telling these of what is applied.
    pub(crate) fn with_watchers(self, watchers: Arc<Watchers>) -> Self {
        Self { watchers, ..self }
    }

    /// What it runs.
    pub(crate) fn app(&self) -> Arc<dyn App> {
        Arc::clone(&self.app)
    }

    /// Answers queries on one consistent view of the present state, each as soon as it is done; those whose caller has
    /// gone are passed over. Blocks.
    pub(crate) fn query(&self, jobs: impl IntoIterator<Item = QueryJob>) -> io::Result<()> {
        let state = PinnedState::new(Arc::clone(&self.database), self.group)?;
        let backing = state.view();
        let view = View::new(&backing);
        for QueryJob { query, reply } in jobs {
            if reply.is_closed() {
                continue;
            }
            let answer = self.app.query(self.group, &view, &query);
            view.check().map_err(io::Error::other)?;
            // Whoever asked may have given up.
            drop(reply.send(Ok(answer)));
        }
        Ok(())
    }

    /// Applies entries in one write and returns the outcomes of each. Blocks.
    fn apply_entries(&self, entries: Vec<Entry>) -> io::Result<Vec<Outcomes>> {
        let mut meta = self.database.meta(self.group)?;
        let backing = self.database.live(self.group, meta.generation);
        let mut txn = Txn::new(&backing);
        let (mut all, mut late) = (Vec::with_capacity(entries.len()), false);
        for entry in entries {
            let mut outcomes = Vec::new();
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Membership(members) => {
                    meta.membership = StoredMembership::new(Some(entry.log_id), members);
                }
                EntryPayload::Normal(batch) => {
                    late = batch.time_ms < meta.time_ms;
                    meta.time_ms = meta.time_ms.max(batch.time_ms);
                    let time = LogTime { time_ms: meta.time_ms, wall_ms: batch.wall_ms };
                    let term = entry.log_id.committed_leader_id().term;
                    let made = Made { time, reign: Reign { term, mark: batch.mark() } };
                    for command in batch.commands() {
                        let applied = self.app.apply(self.group, &mut txn, made, command);
                        let outcome = applied.map_err(|unknown| not_known(entry.log_id.index, &unknown))?;
                        txn.forget_savepoints();
                        outcomes.push(Bytes::from(outcome));
                    }
                }
            }
            meta.applied = Some(entry.log_id);
            all.push(Outcomes(outcomes));
        }
        let changes = txn.into_changes().map_err(io::Error::other)?;
        let notices = if self.watchers.any() { self.app.notices(&changes) } else { Vec::new() };
        self.database.write(self.group, changes, &meta)?;
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).observe(meta.time_ms, late, Instant::now());
        self.watchers.tell(&notices);
        Ok(all)
    }

    /// Replaces the state by a snapshot's. Blocks.
    fn install(&self, meta: SnapshotMeta, snapshot: &SnapshotData) -> io::Result<()> {
        let before = self.database.meta(self.group)?;
        let generation = before
            .generation
            .checked_add(1)
            .ok_or_else(|| io::Error::other("no generation is left in the state database"))?;
        // What an earlier attempt left there.
        self.database.delete_generations(self.group, generation, u32::MAX)?;
        snapshot.read(|rows| self.database.write_rows(self.group, generation, rows))?;
        let after = StateMeta {
            generation,
            applied: meta.last_log_id,
            membership: meta.last_membership,
            time_ms: snapshot.time_ms(),
        };
        self.database.switch(self.group, before.generation, &after)?;
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).observe(
            after.time_ms,
            false,
            Instant::now(),
        );
        self.watchers.tell_gap();
        Ok(())
    }

    /// The state as it is now. Blocks.
    fn present(&self) -> io::Result<Snapshot> {
        let state = PinnedState::new(Arc::clone(&self.database), self.group)?;
        Ok(Snapshot { meta: state.meta().snapshot_meta(), snapshot: SnapshotData::Own(state) })
    }
}

impl RaftSnapshotBuilder<RaftTypes> for StateStore {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let store = self.clone();
        on_disk(move || {
            let snapshot = store.present()?;
            store.database.make_durable(store.group)?;
            Ok(snapshot)
        })
        .await
    }
}

impl RaftStateMachine<RaftTypes> for StateStore {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let store = self.clone();
        let meta = on_disk(move || store.database.meta(store.group)).await?;
        Ok((meta.applied, meta.membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<RaftTypes>, io::Error>> + Unpin + OptionalSend,
    {
        let mut more = true;
        while more {
            let (mut waiting, mut responders, mut bytes) = (Vec::new(), Vec::new(), 0);
            while waiting.len() < APPLY_ENTRIES_MAX && bytes < APPLY_BYTES_MAX {
                let Some(next) = entries.next().await else {
                    more = false;
                    break;
                };
                let (entry, responder) = next?;
                bytes += entry_bytes(&entry);
                waiting.push(entry);
                responders.push(responder);
            }
            if waiting.is_empty() {
                break;
            }
            let store = self.clone();
            let outcomes = on_disk(move || store.apply_entries(waiting)).await?;
            for (responder, outcomes) in responders.into_iter().zip(outcomes) {
                if let Some(responder) = responder {
                    responder.send(outcomes);
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let (store, meta) = (self.clone(), meta.clone());
        on_disk(move || store.install(meta, &snapshot)).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let store = self.clone();
        on_disk(move || {
            let snapshot = store.present()?;
            Ok(snapshot.meta.last_log_id.is_some().then_some(snapshot))
        })
        .await
    }
}
