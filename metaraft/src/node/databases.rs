//! Opens a node's databases, checks every group's log against what it had acknowledged, and runs the log writer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use engine::ids::GroupId;
use tokio::sync::mpsc;

use super::start::StartError;
use crate::raft::log_database::{LogDatabase, LogEnds, LogError};
use crate::raft::log_store::LogStore;
use crate::raft::log_writer::{GroupRequest, LOG_QUEUE_MAX, LogWriter};
use crate::raft::state_database::StateDatabase;
use crate::raft::witness::Witness;

/// A node's open databases.
pub(crate) struct Databases {
    /// The log database.
    pub(crate) log: Arc<LogDatabase>,
    /// The state database.
    pub(crate) state: Arc<StateDatabase>,
    ends: BTreeMap<GroupId, LogEnds>,
    queue: mpsc::Sender<GroupRequest>,
    writer: std::thread::JoinHandle<()>,
}

impl Databases {
    /// Opens what is below `directory`, for these groups. Blocks.
    pub(crate) fn open(directory: &Path, groups: &[GroupId]) -> Result<Self, StartError> {
        let failed = |what: &'static str| {
            move |source: std::io::Error| StartError::Disk { what, path: directory.to_owned(), source }
        };
        std::fs::create_dir_all(directory).map_err(failed("make the data directory"))?;
        let log = LogDatabase::open(&directory.join("log")).map_err(failed("open the log database"))?;
        let witness =
            Witness::open(&directory.join("log.witness")).map_err(failed("open the log's witness"))?;
        let state = StateDatabase::open(&directory.join("state"), groups.iter().copied())
            .map_err(failed("open the state database"))?;
        // The files just made must not vanish with a power cut while what they promise stays.
        std::fs::File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("sync the data directory"))?;
        let mut ends = BTreeMap::new();
        for &group in groups {
            let found = log.load(group, &witness)?;
            let applied = state.meta(group).map_err(failed("read the state database"))?.applied;
            if applied < found.purged {
                return Err(StartError::Log(LogError::StateBehind {
                    group,
                    applied: applied.map_or(0, |applied| applied.index),
                    purged: found.purged.map_or(0, |purged| purged.index),
                }));
            }
            ends.insert(group, found);
        }
        let (log, state) = (Arc::new(log), Arc::new(state));
        let (queue, requests) = mpsc::channel(LOG_QUEUE_MAX);
        let writer = LogWriter::new(Arc::clone(&log), Arc::clone(&state), witness, ends.clone());
        let writer = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run(requests))
            .map_err(failed("start the log writer"))?;
        Ok(Self { log, state, ends, queue, writer })
    }

    /// The log of one of the groups.
    pub(crate) fn log_store(&self, group: GroupId) -> LogStore {
        let ends = self.ends.get(&group).copied().unwrap_or_default();
        LogStore::new(group, ends, Arc::clone(&self.log), self.queue.clone())
    }

    /// Whether a group still holds on to its log or state.
    pub(crate) fn in_use(&self) -> bool {
        self.queue.strong_count() > 1
            || Arc::strong_count(&self.state) > 2
            || Arc::strong_count(&self.log) > 2
    }

    /// Waits until the groups have let go of the databases, then closes them. Blocks.
    pub(crate) fn close(self) {
        let Self { log, state, queue, writer, .. } = self;
        drop(queue);
        if writer.join().is_err() {
            tracing::error!("the log writer panicked");
        }
        if let Err(error) = state.sync() {
            tracing::warn!(%error, "state not synced at stop; it will be applied again from the log");
        }
        drop((log, state));
    }
}
