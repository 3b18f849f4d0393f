//! The one thread that writes the log database: what waits, of all groups, goes into one batch and one sync.
//!
//! Invariants:
//! - Requests are carried out in the order in which they were queued, and answered after their sync.
//! - After a failed write or sync every later request fails too: the pages may be gone, so nothing is tried again.
//! - A purge is carried out only if the state database holds what is purged durably; else it is left out.
//! - The witness follows each sync, and is lowered, durably, before a truncation.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use engine::ids::GroupId;
use openraft::storage::IOFlushed;
use rocksdb::WriteBatch;
use tokio::sync::{mpsc, oneshot};

use super::log_database::{LogDatabase, LogEnds, purge_upto, put_entries, put_vote, truncate_after};
use super::log_store::Tail;
use super::state_database::StateDatabase;
use super::types::{LogId, RaftTypes, Vote};
use super::witness::{Acknowledged, Witness};

/// Requests that may wait for the writer.
pub(crate) const LOG_QUEUE_MAX: usize = 1024;
/// Requests, and bytes, that go into one sync.
const SYNC_REQUESTS_MAX: usize = 512;
const SYNC_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What is to be written.
pub(crate) enum LogRequest {
    /// Entries in order, without gaps, the first one right after the end of the log.
    Append { entries: Vec<(u64, Vec<u8>)>, last: LogId, done: IOFlushed<RaftTypes> },
    /// A vote.
    Vote { vote: Vote, done: oneshot::Sender<io::Result<()>> },
    /// Removes what comes after `last`.
    Truncate { last: Option<LogId>, done: oneshot::Sender<io::Result<()>> },
    /// Removes what comes up to `upto`, included. Nobody waits for it.
    Purge { upto: LogId },
}

/// A request of a group, with the part of its log that is in memory.
pub(crate) struct GroupRequest {
    pub(crate) group: GroupId,
    pub(crate) tail: Arc<Tail>,
    pub(crate) request: LogRequest,
}

enum Completion {
    Append { tail: Arc<Tail>, last: LogId, done: IOFlushed<RaftTypes> },
    Plain(oneshot::Sender<io::Result<()>>),
}

impl Completion {
    fn complete(self, result: &Result<(), String>) {
        let copy = || result.clone().map_err(io::Error::other);
        match self {
            Self::Append { tail, last, done } => {
                if result.is_ok() {
                    tail.durable(last.index);
                }
                done.io_completed(copy());
            }
            Self::Plain(done) => {
                // Whoever asked may have gone.
                drop(done.send(copy()));
            }
        }
    }
}

/// The writer's state; [`LogWriter::run`] is its thread.
pub(crate) struct LogWriter {
    database: Arc<LogDatabase>,
    state: Arc<StateDatabase>,
    witness: Witness,
    ends: BTreeMap<GroupId, LogEnds>,
    failure: Option<String>,
}

impl LogWriter {
    /// A writer for groups whose logs are as `ends` says.
    pub(crate) fn new(
        database: Arc<LogDatabase>,
        state: Arc<StateDatabase>,
        witness: Witness,
        ends: BTreeMap<GroupId, LogEnds>,
    ) -> Self {
        Self { database, state, witness, ends, failure: None }
    }

    /// Serves the queue until all its senders are gone.
    pub(crate) fn run(mut self, mut queue: mpsc::Receiver<GroupRequest>) {
        while let Some(first) = queue.blocking_recv() {
            let mut requests = vec![first];
            let mut bytes = requests[0].request.bytes();
            while requests.len() < SYNC_REQUESTS_MAX && bytes < SYNC_BYTES_MAX {
                let Ok(next) = queue.try_recv() else { break };
                bytes += next.request.bytes();
                requests.push(next);
            }
            self.serve(requests);
        }
        if let Err(error) = self.witness.sync() {
            tracing::warn!(%error, "cannot sync the witness of the log");
        }
    }

    fn serve(&mut self, requests: Vec<GroupRequest>) {
        let mut completions = Vec::with_capacity(requests.len());
        let mut ends = self.ends.clone();
        let mut result = self.failure.clone().map_or(Ok(()), Err);
        let mut batch = WriteBatch::default();
        let mut lowered = Vec::new();
        for GroupRequest { group, tail, request } in requests {
            let before = ends.get(&group).copied().unwrap_or_default();
            let mut after = before;
            if matches!(request, LogRequest::Truncate { .. }) {
                lowered.push(group);
            }
            let added =
                if result.is_ok() { self.add(&mut batch, group, &mut after, &request) } else { Ok(()) };
            if let Err(error) = added {
                result = Err(error.to_string());
            }
            ends.insert(group, after);
            match request {
                LogRequest::Append { last, done, .. } => {
                    completions.push(Completion::Append { tail, last, done });
                }
                LogRequest::Vote { done, .. } | LogRequest::Truncate { done, .. } => {
                    completions.push(Completion::Plain(done));
                }
                LogRequest::Purge { .. } => {}
            }
        }
        let written =
            result.and_then(|()| self.write(batch, &ends, &lowered).map_err(|error| error.to_string()));
        if let Err(error) = &written
            && self.failure.is_none()
        {
            tracing::error!(%error, "the log database failed; this node takes no more writes until it is restarted");
            self.failure = Some(format!("the log database failed before: {error}"));
        }
        if written.is_ok() {
            self.ends = ends;
        }
        for completion in completions {
            completion.complete(&written);
        }
        if written.is_ok()
            && let Err(error) = self.witness.sync_sometimes()
        {
            tracing::warn!(%error, "cannot sync the witness of the log");
        }
    }

    fn add(
        &self,
        batch: &mut WriteBatch,
        group: GroupId,
        ends: &mut LogEnds,
        request: &LogRequest,
    ) -> io::Result<()> {
        match request {
            LogRequest::Append { entries, last, .. } => {
                let gap = |end: LogId| entries.first().is_some_and(|(first, _)| *first != end.index + 1);
                if let Some(end) = ends.last.filter(|end| gap(*end)) {
                    return Err(io::Error::other(format!("a gap in the log: group={group} end={end}")));
                }
                put_entries(batch, group, entries, last)?;
                ends.last = Some(*last);
            }
            LogRequest::Vote { vote, .. } => {
                put_vote(batch, group, vote)?;
                ends.vote = Some(*vote);
            }
            LogRequest::Truncate { last, .. } => {
                truncate_after(batch, group, *last)?;
                ends.last = *last;
            }
            LogRequest::Purge { upto } => match self.state.make_durable_upto(group, upto.index) {
                Ok(durable) if durable.is_some_and(|durable| durable.index >= upto.index) => {
                    let last = ends.last.map_or(*upto, |last| last.max(*upto));
                    purge_upto(batch, group, upto, &last)?;
                    ends.purged = Some(*upto);
                    ends.last = Some(last);
                }
                Ok(durable) => {
                    let durable = durable.map(|durable| durable.index);
                    tracing::error!(%group, ?durable, upto = upto.index, "log not purged: the state is behind");
                }
                Err(error) => tracing::error!(%group, %error, "log not purged: the state database failed"),
            },
        }
        Ok(())
    }

    fn write(
        &mut self,
        batch: WriteBatch,
        ends: &BTreeMap<GroupId, LogEnds>,
        lowered: &[GroupId],
    ) -> io::Result<()> {
        for group in lowered {
            // Down to whatever is there during and after the batch: nothing is promised of the rest.
            let vote = self.ends.get(group).and_then(|ends| ends.vote);
            self.witness.record(*group, &Acknowledged { vote, last: None })?;
        }
        if !lowered.is_empty() {
            self.witness.sync()?;
        }
        self.database.write_synced(batch)?;
        for (group, after) in ends {
            if self.ends.get(group) != Some(after) || lowered.contains(group) {
                self.witness.record(*group, &Acknowledged { vote: after.vote, last: after.last })?;
            }
        }
        Ok(())
    }
}

impl LogRequest {
    fn bytes(&self) -> usize {
        match self {
            Self::Append { entries, .. } => entries.iter().map(|(_, value)| value.len()).sum(),
            _ => 0,
        }
    }
}
