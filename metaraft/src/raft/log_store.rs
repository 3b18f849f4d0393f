//! One group's log and vote, as openraft reads and writes them.
//!
//! The latest entries are in memory: an appended entry is readable at once, before it is durable, and replication
//! and apply seldom read the disk. Where the log begins and ends is known here; the writer thread follows.
//!
//! Invariants:
//! - The tail holds an unbroken run of entries that ends at the log's last one; what is not yet durable is in it.
//! - A read takes the tail first and only then the database, for what comes before: an entry leaves the tail only
//!   when it is in the database.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::ids::GroupId;
use futures_util::Stream;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot};

use super::log_database::{LogDatabase, LogEnds};
use super::log_writer::{GroupRequest, LogRequest};
use super::types::{Entry, LogId, RaftTypes, Vote, encode, entry_bytes};

/// Bytes and entries of a group's log that stay in memory after they are durable.
const TAIL_BYTES_MAX: usize = 4 * 1024 * 1024;
const TAIL_ENTRIES_MAX: usize = 1024;
/// Bytes of entries that one read returns (but at least one entry), where openraft allows a limit.
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The part of a group's log that is in memory, and where the log begins and ends.
pub(crate) struct Tail(Mutex<TailState>);

struct TailState {
    ends: LogEnds,
    /// The index of the log's first entry, or where it would be.
    first: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
    durable_index_next: u64,
}

impl Tail {
    /// For a log of which nothing is in memory.
    pub(crate) fn new(ends: LogEnds) -> Self {
        let durable_index_next = ends.last.map_or(0, |last| last.index + 1);
        let first = ends.purged.map_or(0, |purged| purged.index + 1);
        Self(Mutex::new(TailState { ends, first, entries: VecDeque::new(), bytes: 0, durable_index_next }))
    }

    fn lock(&self) -> MutexGuard<'_, TailState> {
        // The lock is held only for plain moves of data, so a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries up to `index` are in the database.
    pub(crate) fn durable(&self, index: u64) {
        let mut tail = self.lock();
        tail.durable_index_next = tail.durable_index_next.max(index + 1);
        tail.shrink();
    }
}

impl TailState {
    fn shrink(&mut self) {
        while self.bytes > TAIL_BYTES_MAX || self.entries.len() > TAIL_ENTRIES_MAX {
            match self.entries.front() {
                Some(first) if first.log_id.index < self.durable_index_next => {
                    self.bytes -= entry_bytes(first);
                    self.entries.pop_front();
                }
                _ => break,
            }
        }
    }

    fn push(&mut self, entry: Entry) {
        if self.ends.last.is_none() {
            self.first = entry.log_id.index;
        }
        self.bytes += entry_bytes(&entry);
        self.ends.last = Some(entry.log_id);
        self.entries.push_back(entry);
    }

    fn truncate_after(&mut self, last: Option<LogId>) {
        let next = last.map_or(0, |last| last.index + 1);
        while self.entries.back().is_some_and(|entry| entry.log_id.index >= next) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= entry_bytes(&entry);
            }
        }
        self.durable_index_next = self.durable_index_next.min(next);
        self.ends.last = last;
    }

    fn purge(&mut self, upto: LogId) {
        while self.entries.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= entry_bytes(&entry);
            }
        }
        self.ends.purged = Some(upto);
        self.first = upto.index + 1;
        if self.ends.last < Some(upto) {
            self.ends.last = Some(upto);
            self.durable_index_next = self.durable_index_next.max(upto.index + 1);
        }
    }
}

/// A group's log. Clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    group: GroupId,
    tail: Arc<Tail>,
    database: Arc<LogDatabase>,
    writer: mpsc::Sender<GroupRequest>,
}

impl LogStore {
    /// The log of `group`, which is on disk as `ends` says.
    pub(crate) fn new(
        group: GroupId,
        ends: LogEnds,
        database: Arc<LogDatabase>,
        writer: mpsc::Sender<GroupRequest>,
    ) -> Self {
        Self { group, tail: Arc::new(Tail::new(ends)), database, writer }
    }

    async fn queue(&self, request: LogRequest) -> io::Result<()> {
        let request = GroupRequest { group: self.group, tail: Arc::clone(&self.tail), request };
        self.writer.send(request).await.map_err(|_gone| io::Error::other("the log writer has stopped"))
    }

    async fn queue_and_wait(
        &self,
        request: impl FnOnce(oneshot::Sender<io::Result<()>>) -> LogRequest,
    ) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.queue(request(done)).await?;
        answer.await.map_err(|_gone| io::Error::other("the log writer has stopped"))?
    }

    /// Entries `from..to` as far as the log has them, until `bytes_max` are exceeded (but at least one).
    async fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let (from, from_memory, mut recent) = {
            let tail = self.tail.lock();
            let from = from.max(tail.first);
            let to = to.min(tail.ends.last.map_or(0, |last| last.index + 1));
            if from >= to {
                return Ok(Vec::new());
            }
            let from_memory = tail.entries.front().map_or(to, |first| first.log_id.index).min(to);
            let skip = usize::try_from(from.saturating_sub(from_memory)).unwrap_or(usize::MAX);
            let take = usize::try_from(to - from_memory.max(from).min(to)).unwrap_or(usize::MAX);
            let mut bytes = 0;
            let mut recent = Vec::new();
            if from >= from_memory || bytes_max == usize::MAX {
                for entry in tail.entries.iter().skip(skip).take(take) {
                    bytes += entry_bytes(entry);
                    recent.push(entry.clone());
                    if bytes >= bytes_max {
                        break;
                    }
                }
            }
            (from, from_memory, recent)
        };
        if from >= from_memory {
            return consecutive(from, recent);
        }
        let (database, group) = (Arc::clone(&self.database), self.group);
        let older = move || database.entries(group, from, from_memory, bytes_max);
        let mut entries = tokio::task::spawn_blocking(older).await.map_err(io::Error::other)??;
        entries.append(&mut recent);
        // What is missing at the beginning must have been purged meanwhile.
        let first = self.tail.lock().first;
        consecutive(from.max(first), entries)
    }
}

/// Checks that `entries` go on without a gap from `first`; earlier ones, purged meanwhile, are left out.
fn consecutive(first: u64, mut entries: Vec<Entry>) -> io::Result<Vec<Entry>> {
    entries.retain(|entry| entry.log_id.index >= first);
    let gap = entries.iter().zip(first..).find(|(entry, index)| entry.log_id.index != *index);
    match gap {
        Some((entry, index)) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a gap in the log: expected_index={index} found_index={}", entry.log_id.index),
        )),
        None => Ok(entries),
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogReader<RaftTypes> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        self.read(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    /// Reads ahead by [`READ_BYTES_MAX`] only, so that a long log is applied in bounded memory.
    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let start = (self.clone(), from, to, VecDeque::<Entry>::new());
        futures_util::stream::try_unfold(start, |(log, mut from, to, mut read)| async move {
            if read.is_empty() && from < to {
                read = log.read(from, to, READ_BYTES_MAX).await?.into();
            }
            let Some(entry) = read.pop_front() else { return Ok(None) };
            from = entry.log_id.index + 1;
            Ok(Some((entry, (log, from, to, read))))
        })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.tail.lock().ends.vote)
    }
}

impl RaftLogStorage<RaftTypes> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<RaftTypes>, io::Error> {
        let ends = self.tail.lock().ends;
        Ok(LogState { last_purged_log_id: ends.purged, last_log_id: ends.last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        self.queue_and_wait(|done| LogRequest::Vote { vote, done }).await?;
        self.tail.lock().ends.vote = Some(vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<RaftTypes>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let Some(last) = entries.last().map(|entry| entry.log_id) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let mut encoded = Vec::with_capacity(entries.len());
        for entry in &entries {
            encoded.push((entry.log_id.index, encode(entry)?));
        }
        {
            let mut tail = self.tail.lock();
            entries.into_iter().for_each(|entry| tail.push(entry));
        }
        self.queue(LogRequest::Append { entries: encoded, last, done: callback }).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        if last.map(|last| last.index) >= self.tail.lock().ends.last.map(|end| end.index) {
            return Ok(());
        }
        self.tail.lock().truncate_after(last);
        self.queue_and_wait(|done| LogRequest::Truncate { last, done }).await?;
        // Again, for appends that were queued before have completed since: what they wrote is gone.
        self.tail.lock().truncate_after(last);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.tail.lock().purge(upto);
        self.queue(LogRequest::Purge { upto }).await
    }
}
