//! Open upload sessions that this gateway has seen lately: their chunk lists, and what it knows to be durable.
//!
//! A cache: the sessions themselves are rows in the metadata cluster, and may go on through another gateway.
//!
//! Invariants:
//! - A session's holder is the one in its row.
//! - A session is found only under its own namespace: upload ids are chosen by clients.
//! - A session that has ended, or whose time is over, takes nothing more; one that is gone on with lives on.
//! - A chunk is marked durable only after a commit that pinned it for the session's holder.
//! - One look for a session's durable chunks is under way at a time, and asks for [`COMMAND_CHUNKS_MAX`] at a time.
//! - At most [`SESSION_ENTRIES_MAX`] list entries and [`SESSIONS_MAX`] sessions are kept, the latest used.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use engine::ids::{ChunkId, ContentId, HolderId, NamespaceId, UploadId};
use engine::manifest::ManifestEntry;
use metaraft::api::MetaError;
use metaraft::model::command::{DataStep, StepError};
use metaraft::model::row::{UploadRow, UploadState};

use crate::failure::Failure;
use crate::limits::{
    COMMAND_CHUNKS_MAX, COMMAND_STEPS_MAX, EXTEND_AFTER_MS, SESSION_ENTRIES_MAX, SESSION_FRESH, SESSIONS_MAX,
};
use crate::meta::Meta;
use crate::random;

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) upload: UploadId,
    pub(crate) holder: HolderId,
    pub(crate) content: ContentId,
    pub(crate) size: u64,
    expires_ms: AtomicU64,
    /// Its chunks, in order.
    pub(crate) entries: Vec<ManifestEntry>,
    /// Index of the first entry of each distinct chunk, by chunk id.
    distinct: Vec<u32>,
    /// By place in `distinct`.
    durable: Mutex<Vec<bool>>,
    checked: Mutex<Instant>,
    /// Looks for durable chunks that have begun.
    looks_begun: AtomicU64,
    /// The latest that has ended. Taken for as long as a look takes.
    look: tokio::sync::Mutex<Look>,
}

/// How far a look for durable chunks goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Through all chunks.
    Whole,
    /// Until some turn out to be missing: that is all that a commit needs to know.
    UntilMissing,
}

/// Looks for durable chunks, by their numbers: the latest that has ended, and the latest that went through all.
#[derive(Debug, Default)]
struct Look {
    ended: u64,
    whole: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    pub(crate) fn new(
        upload: UploadId,
        holder: HolderId,
        content: ContentId,
        expires_ms: u64,
        entries: Vec<ManifestEntry>,
    ) -> Self {
        let mut distinct: Vec<u32> = (0_u32..).zip(&entries).map(|(index, _entry)| index).collect();
        distinct.sort_by_key(|index| (entries[*index as usize].id, *index));
        distinct.dedup_by_key(|index| entries[*index as usize].id);
        Self {
            upload,
            holder,
            content,
            size: entries.iter().map(|entry| entry.size).sum(),
            expires_ms: AtomicU64::new(expires_ms),
            durable: Mutex::new(vec![false; distinct.len()]),
            distinct,
            entries,
            checked: Mutex::new(Instant::now()),
            looks_begun: AtomicU64::new(0),
            look: tokio::sync::Mutex::default(),
        }
    }

    fn entry(&self, place: usize) -> &ManifestEntry {
        &self.entries[self.distinct[place] as usize]
    }

    /// Where the chunk is among the distinct ones, and its size; `None` if the session has no such chunk.
    pub(crate) fn find(&self, chunk: ChunkId) -> Option<(usize, u64)> {
        let place =
            self.distinct.binary_search_by_key(&chunk, |index| self.entries[*index as usize].id).ok()?;
        Some((place, self.entry(place).size))
    }

    /// Remembers that chunks are pinned for this session's holder.
    pub(crate) fn mark_durable(&self, places: impl IntoIterator<Item = usize>) {
        let mut durable = lock(&self.durable);
        for place in places {
            durable[place] = true;
        }
    }

    /// Distinct chunks that are not known to be durable, with their places.
    pub(crate) fn unknown(&self) -> Vec<(usize, ChunkId)> {
        self.unknown_from(0, usize::MAX)
    }

    /// The first `count_max` of them from `place` on.
    fn unknown_from(&self, place: usize, count_max: usize) -> Vec<(usize, ChunkId)> {
        let durable = lock(&self.durable);
        let unknown = durable.iter().enumerate().skip(place).filter(|(_place, durable)| !**durable);
        unknown.take(count_max).map(|(place, _durable)| (place, self.entry(place).id)).collect()
    }

    /// Asks the cluster about chunks that are not known to be durable.
    pub(crate) async fn refresh_durable(&self, meta: &Meta, extent: Extent) -> Result<(), MetaError> {
        self.look(extent, |chunks| async move { meta.pinned(self.holder, &chunks).await }).await
    }

    /// One look at a time. Who waited for one that began after it came uses what that found; one that began before may
    /// have asked too early.
    async fn look<F>(&self, extent: Extent, ask: impl Fn(Vec<ChunkId>) -> F) -> Result<(), MetaError>
    where
        F: Future<Output = Result<Vec<bool>, MetaError>>,
    {
        let begun = self.looks_begun.load(Ordering::SeqCst);
        let mut look = self.look.lock().await;
        let latest = if extent == Extent::Whole { look.whole } else { look.ended };
        if latest > begun {
            return Ok(());
        }
        let number = self.looks_begun.fetch_add(1, Ordering::SeqCst) + 1;
        let mut next = 0;
        let mut any_missing = false;
        while extent == Extent::Whole || !any_missing {
            let unknown = self.unknown_from(next, COMMAND_CHUNKS_MAX);
            let Some((last, _chunk)) = unknown.last() else {
                look.whole = number;
                break;
            };
            next = last + 1;
            let pinned = ask(unknown.iter().map(|(_place, chunk)| *chunk).collect()).await?;
            any_missing |= pinned.iter().any(|pinned| !pinned);
            let places = unknown.iter().zip(pinned).filter(|(_chunk, pinned)| *pinned);
            self.mark_durable(places.map(|((place, _chunk), _pinned)| *place));
        }
        look.ended = number;
        Ok(())
    }

    /// Whether all its chunks are known to be durable.
    pub(crate) fn is_complete(&self) -> bool {
        lock(&self.durable).iter().all(|durable| *durable)
    }

    /// Indexes into the list of chunks that are to be sent, each named once, ascending.
    pub(crate) fn missing(&self) -> Vec<u32> {
        let durable = lock(&self.durable);
        let missing = self.distinct.iter().zip(durable.iter()).filter(|(_index, durable)| !**durable);
        let mut missing: Vec<u32> = missing.map(|(index, _durable)| *index).collect();
        missing.sort_unstable();
        missing
    }

    /// When it ends by itself, as last heard.
    pub(crate) fn expires_ms(&self) -> u64 {
        self.expires_ms.load(Ordering::Relaxed)
    }

    fn is_fresh(&self) -> bool {
        lock(&self.checked).elapsed() < SESSION_FRESH && random::log_ms() < self.expires_ms()
    }
}

#[derive(Debug, Default)]
struct Cache {
    sessions: HashMap<(NamespaceId, UploadId), (Arc<Session>, u64)>,
    /// By when each was last used.
    used: BTreeMap<u64, (NamespaceId, UploadId)>,
    clock: u64,
    entries: usize,
}

impl Cache {
    fn get(&mut self, key: (NamespaceId, UploadId)) -> Option<Arc<Session>> {
        let (session, used) = self.sessions.get_mut(&key)?;
        self.clock += 1;
        self.used.remove(used);
        *used = self.clock;
        self.used.insert(self.clock, key);
        Some(Arc::clone(session))
    }

    fn remove(&mut self, key: (NamespaceId, UploadId)) {
        if let Some((session, used)) = self.sessions.remove(&key) {
            self.used.remove(&used);
            self.entries -= session.entries.len();
        }
    }

    fn insert(&mut self, key: (NamespaceId, UploadId), session: Arc<Session>) {
        self.remove(key);
        self.entries += session.entries.len();
        self.clock += 1;
        self.used.insert(self.clock, key);
        self.sessions.insert(key, (session, self.clock));
        while self.sessions.len() > SESSIONS_MAX
            || (self.entries > SESSION_ENTRIES_MAX && self.sessions.len() > 1)
        {
            let Some((_used, oldest)) = self.used.first_key_value() else { break };
            self.remove(*oldest);
        }
    }
}

/// The cache of all sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    cache: Mutex<Cache>,
}

/// Why a session takes no chunks and cannot be committed.
pub(crate) fn session_gone() -> Failure {
    let message = "there is no such upload session; it may have expired: begin a new one";
    Failure::new(tonic::Code::NotFound, "no-upload", message)
}

fn ended(how: &str) -> Failure {
    Failure::from_step(&StepError::UploadEnded { how: how.to_owned() }, "upload")
}

/// Refuses a session that has ended. Whether its time is over is for the metadata to say, by its own clock.
pub(crate) fn check_pending(row: &UploadRow) -> Result<(), Failure> {
    match row.state {
        UploadState::Committed { .. } => Err(ended("committed")),
        UploadState::Aborted => Err(ended("given up, or expired")),
        UploadState::Open | UploadState::Held { .. } => Ok(()),
    }
}

/// Makes those of these pending sessions live on that have not been for [`EXTEND_AFTER_MS`], so that how long each has
/// been idle is known; gives for each whether it did not end meanwhile.
async fn extend(
    meta: &Meta,
    namespace: NamespaceId,
    rows: &mut [UploadRow],
) -> Result<Vec<Result<(), Failure>>, MetaError> {
    let life_ms = meta.session_life_ms();
    let now_ms = random::log_ms();
    let mut results = vec![Ok(()); rows.len()];
    let short = |(_index, row): &(usize, &mut UploadRow)| {
        row.expires_ms < now_ms.saturating_add(life_ms).saturating_sub(EXTEND_AFTER_MS.min(life_ms / 4))
    };
    let mut short: Vec<(usize, &mut UploadRow)> = rows.iter_mut().enumerate().filter(short).collect();
    for some in short.chunks_mut(COMMAND_STEPS_MAX) {
        let step = |row: &UploadRow| DataStep::UploadExtend { namespace, upload: row.upload, life_ms };
        let items = some.iter().map(|(_index, row)| vec![step(row)]).collect();
        let answers = meta.each(namespace.slot(), random::request(), items).await?;
        for ((index, row), answer) in some.iter_mut().zip(answers) {
            row.expires_ms = now_ms.saturating_add(life_ms);
            results[*index] = answer.map(drop).map_err(|error| Failure::from_step(&error, "upload"));
        }
    }
    Ok(results)
}

impl Sessions {
    /// Keeps a session that has just begun, or been looked up.
    pub(crate) fn insert(&self, namespace: NamespaceId, session: Arc<Session>) {
        lock(&self.cache).insert((namespace, session.upload), session);
    }

    /// Drops a session that has ended.
    pub(crate) fn remove(&self, namespace: NamespaceId, upload: UploadId) {
        lock(&self.cache).remove((namespace, upload));
    }

    fn cached(&self, namespace: NamespaceId, upload: UploadId) -> Option<Arc<Session>> {
        lock(&self.cache).get((namespace, upload))
    }

    /// Sessions of the caller's namespace that take chunks; each that does not says why.
    pub(crate) async fn open(
        &self,
        meta: &Meta,
        namespace: NamespaceId,
        uploads: &[UploadId],
    ) -> Result<HashMap<UploadId, Result<Arc<Session>, Failure>>, MetaError> {
        let mut found = HashMap::with_capacity(uploads.len());
        let mut stale = BTreeSet::new();
        for upload in uploads {
            match self.cached(namespace, *upload).filter(|session| session.is_fresh()) {
                Some(session) => drop(found.insert(*upload, Ok(session))),
                None => drop(stale.insert(*upload)),
            }
        }
        if stale.is_empty() {
            return Ok(found);
        }
        let rows = meta.uploads(namespace, stale.iter().copied().collect()).await?;
        let mut pending = Vec::with_capacity(rows.len());
        for (upload, row) in stale.into_iter().zip(rows) {
            match row.ok_or_else(session_gone).and_then(|row| check_pending(&row).map(|()| row)) {
                Ok(row) => pending.push(row),
                Err(failure) => {
                    self.remove(namespace, upload);
                    found.insert(upload, Err(failure));
                }
            }
        }
        for (upload, session) in self.go_on(meta, namespace, pending).await? {
            found.insert(upload, session);
        }
        Ok(found)
    }

    /// Pending sessions that are gone on with: they live on, and are loaded.
    async fn go_on(
        &self,
        meta: &Meta,
        namespace: NamespaceId,
        mut rows: Vec<UploadRow>,
    ) -> Result<Vec<(UploadId, Result<Arc<Session>, Failure>)>, MetaError> {
        let extended = extend(meta, namespace, &mut rows).await?;
        let mut sessions = Vec::with_capacity(rows.len());
        for (row, lives) in rows.into_iter().zip(extended) {
            let session = match lives {
                Ok(()) => Ok(self.load(meta, namespace, &row).await?),
                Err(failure) => {
                    self.remove(namespace, row.upload);
                    Err(failure)
                }
            };
            sessions.push((row.upload, session));
        }
        Ok(sessions)
    }

    /// The session of a row, which goes on if it has not ended.
    pub(crate) async fn go_on_with(
        &self,
        meta: &Meta,
        namespace: NamespaceId,
        row: &UploadRow,
    ) -> Result<Arc<Session>, Failure> {
        check_pending(row)?;
        let failed = |error: MetaError| Failure::from_meta(&error, "upload");
        let sessions = self.go_on(meta, namespace, vec![*row]).await.map_err(failed)?;
        sessions.into_iter().next().map_or_else(|| Err(session_gone()), |(_upload, session)| session)
    }

    /// The session of a row, with its list, from the cache if it is there.
    pub(crate) async fn load(
        &self,
        meta: &Meta,
        namespace: NamespaceId,
        row: &UploadRow,
    ) -> Result<Arc<Session>, MetaError> {
        // An id may have been used before, by a session that is gone: its holder tells them apart.
        let cached = self.cached(namespace, row.upload).filter(|session| session.holder == row.holder);
        if let Some(session) = cached {
            *lock(&session.checked) = Instant::now();
            session.expires_ms.store(row.expires_ms, Ordering::Relaxed);
            return Ok(session);
        }
        let entries = meta.upload_list(namespace, row).await?;
        let session = Session::new(row.upload, row.holder, row.content, row.expires_ms, entries);
        let session = Arc::new(session);
        self.insert(namespace, Arc::clone(&session));
        Ok(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(byte: u8) -> ChunkId {
        ChunkId::from_bytes([byte; 32])
    }

    fn session(upload: u8, chunks: &[u8]) -> Session {
        let entries = chunks.iter().map(|byte| ManifestEntry { id: chunk(*byte), size: 10 }).collect();
        let upload = UploadId::from_bytes([upload; 16]);
        Session::new(upload, HolderId::from_bytes([1; 16]), ContentId::from_bytes([0; 32]), u64::MAX, entries)
    }

    #[test]
    fn a_chunk_that_occurs_twice_is_missing_once() {
        let session = session(1, &[9, 3, 9, 5]);
        assert_eq!(session.missing(), [0, 1, 3]);
        assert_eq!(session.size, 40);
        let (place, size) = session.find(chunk(9)).unwrap();
        assert_eq!(size, 10);
        session.mark_durable([place]);
        assert_eq!(session.missing(), [1, 3]);
        assert!(session.find(chunk(4)).is_none());
    }

    /// A session of so many distinct chunks, none of which is known to be durable.
    fn long_session(count: usize) -> Session {
        let entry = |number: usize| ManifestEntry { id: ChunkId::of(&number.to_be_bytes()), size: 10 };
        let (upload, holder) = (UploadId::from_bytes([1; 16]), HolderId::from_bytes([1; 16]));
        let entries = (0..count).map(entry).collect();
        Session::new(upload, holder, ContentId::from_bytes([0; 32]), u64::MAX, entries)
    }

    /// A cluster that has all chunks or none, and notes how many it was asked for each time.
    #[derive(Default)]
    struct Asked {
        counts: Mutex<Vec<usize>>,
        under_way: AtomicU64,
    }

    impl Asked {
        async fn answer(&self, chunks: Vec<ChunkId>, pinned: bool) -> Result<Vec<bool>, MetaError> {
            assert_eq!(self.under_way.fetch_add(1, Ordering::SeqCst), 0, "one after the other");
            lock(&self.counts).push(chunks.len());
            tokio::task::yield_now().await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            Ok(vec![pinned; chunks.len()])
        }
    }

    #[tokio::test]
    async fn a_commit_asks_for_no_more_once_something_is_missing() {
        let (session, asked) = (long_session(3 * COMMAND_CHUNKS_MAX + 1), Asked::default());
        session.look(Extent::UntilMissing, |chunks| asked.answer(chunks, false)).await.unwrap();
        assert_eq!(*lock(&asked.counts), [COMMAND_CHUNKS_MAX]);
        assert!(!session.is_complete());
        session.look(Extent::Whole, |chunks| asked.answer(chunks, false)).await.unwrap();
        assert_eq!(lock(&asked.counts)[1..], [COMMAND_CHUNKS_MAX, COMMAND_CHUNKS_MAX, COMMAND_CHUNKS_MAX, 1]);
        session.look(Extent::UntilMissing, |chunks| asked.answer(chunks, true)).await.unwrap();
        assert!(session.is_complete());
        assert_eq!(lock(&asked.counts).len(), 9);
        session.look(Extent::Whole, |chunks| asked.answer(chunks, true)).await.unwrap();
        assert_eq!(lock(&asked.counts).len(), 9, "all is known");
    }

    #[tokio::test]
    async fn many_who_ask_at_once_share_a_look() {
        let (session, asked) = (long_session(2 * COMMAND_CHUNKS_MAX), Asked::default());
        let one = |extent| session.look(extent, |chunks| asked.answer(chunks, false));
        let looks = (0..100).map(|_| one(Extent::Whole)).collect::<Vec<_>>();
        for looked in futures_util::future::join_all(looks).await {
            looked.unwrap();
        }
        assert_eq!(
            *lock(&asked.counts),
            [COMMAND_CHUNKS_MAX; 4],
            "the first, and one for all who came later"
        );
        // What a commit has not looked at may be there for all that it knows.
        let (commit, status) =
            futures_util::future::join(one(Extent::UntilMissing), one(Extent::Whole)).await;
        commit.and(status).unwrap();
        assert_eq!(lock(&asked.counts).len(), 7);
    }

    #[test]
    fn a_session_that_ended_takes_nothing_more() {
        let row = |state| UploadRow {
            upload: UploadId::from_bytes([1; 16]),
            holder: HolderId::from_bytes([1; 16]),
            content: ContentId::from_bytes([1; 32]),
            size: 10,
            cutter: engine::cutter::Cutter::Cdc64k,
            chunk_count: 1,
            created_ms: 0,
            expires_ms: 0,
            state,
        };
        let reason = |row| check_pending(&row).map_err(|failure| failure.reason);
        let committed =
            UploadState::Committed { entry: engine::ids::EntryId(1), version: engine::ids::VersionId(1) };
        for state in [UploadState::Open, UploadState::Held { generation: 1 }] {
            assert_eq!(reason(row(state)), Ok(()));
        }
        assert_eq!(reason(row(committed)), Err("upload-ended"));
        assert_eq!(reason(row(UploadState::Aborted)), Err("upload-ended"));
    }

    #[test]
    fn the_cache_forgets_the_longest_unused() {
        let namespace = NamespaceId::from_bytes([0; 16]);
        let mut cache = Cache::default();
        let key = |upload: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&upload.to_be_bytes());
            (namespace, UploadId::from_bytes(bytes))
        };
        for number in 0..SESSIONS_MAX {
            cache.insert(key(number), Arc::new(session(1, &[1])));
        }
        assert!(cache.get(key(0)).is_some());
        cache.insert(key(SESSIONS_MAX), Arc::new(session(1, &[1])));
        assert!(cache.get(key(0)).is_some(), "just used");
        assert!(cache.get(key(1)).is_none(), "longest unused");
        assert_eq!(cache.entries, SESSIONS_MAX);
        assert_eq!(cache.used.len(), cache.sessions.len());
    }
}
