//! Upload sessions: their chunk lists, the intent that holds a content, the commit, and giving up.
//!
//! Invariants:
//! - A session's holder is the one that it first began with, whoever begins it again.
//! - A session goes from open to held to committed, or from either to aborted, and never back.
//! - A held session has one use of its content, which the commit turns into the version's and an abort gives back.
//! - A session counts against the quota from its beginning on, and is among the open ones until it is committed or
//!   forgotten.
//! - An aborted or expired session never commits, nor is it gone on with, whoever wakes up late.
//! - The chunk list of a session is the one that its content is named after. It goes with the commit (the content
//!   has it from then on); an aborted session keeps it for those who remove its pins, and then forget it.

use engine::chunk::check_chunk_size;
use engine::cutter::Cutter;
use engine::ids::{ContentId, DeviceId, HolderId, NamespaceId, UploadId, VersionId};
use engine::manifest::ManifestEntry;

use super::keys;
use super::names;
use super::quota::ENTRY_BYTES;
use super::tree::{Attributes, Change, Target, WALK_MAX};
use super::txn::{Group, invalid};
use super::versions::has_rows;
use crate::model::command::{Base, OpenUploadsMax, StepError};
use crate::model::outcome::{Release, StepOutcome};
use crate::model::row::{EntryKind, EntryRow, FileState, NamespaceRow, UploadRow, UploadState, VersionRow};
use crate::model::{DEPTH_MAX, UPLOAD_CHUNKS_MAX, UPLOAD_PART_ENTRIES};

/// How long a session may be made to live.
const LIFE_MS_MAX: u64 = 366 * 24 * 60 * 60 * 1000;

/// How long a session that was given up is kept, with its list: longer than a gateway goes on with one that it saw open,
/// so that whoever forgets it removes what was still pinned for it meanwhile.
const GIVEN_UP_MS: u64 = 120 * 1000;

/// What a session is begun with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session<'a> {
    pub holder: HolderId,
    pub content: ContentId,
    pub size: u64,
    pub cutter: Cutter,
    pub chunks: &'a [ManifestEntry],
    pub life_ms: u64,
    pub most: OpenUploadsMax,
}

/// What is committed, and on what condition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commit {
    pub upload: UploadId,
    pub base: Base,
    pub attributes: Attributes,
    pub device: DeviceId,
}

fn check_life(life_ms: u64) -> Result<(), StepError> {
    if life_ms > LIFE_MS_MAX {
        return Err(invalid(format!("a session lives at most {LIFE_MS_MAX} ms")));
    }
    Ok(())
}

fn check_list(session: &Session<'_>) -> Result<(), StepError> {
    if session.chunks.len() > UPLOAD_CHUNKS_MAX {
        return Err(invalid(format!(
            "a file has at most {UPLOAD_CHUNKS_MAX} chunks; cut it into larger ones"
        )));
    }
    check_life(session.life_ms)?;
    let mut sum = 0_u64;
    for chunk in session.chunks {
        check_chunk_size(chunk.size).map_err(|refused| invalid(refused.to_string()))?;
        sum += chunk.size;
    }
    if sum != session.size {
        let size = session.size;
        return Err(invalid(format!("the chunks have {sum} bytes together, the file {size}")));
    }
    if ContentId::of(session.chunks) != session.content {
        return Err(invalid("the content's id is not that of its chunks"));
    }
    Ok(())
}

fn ended(how: &str) -> StepError {
    StepError::UploadEnded { how: how.to_owned() }
}

impl Group<'_, '_> {
    pub(super) fn upload_begin(
        &mut self,
        namespace: NamespaceId,
        upload: UploadId,
        session: &Session<'_>,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        let key = keys::upload(namespace, upload);
        if let Some(existing) = self.get::<UploadRow>(&key)? {
            let equal = existing.content == session.content
                && existing.size == session.size
                && existing.cutter == session.cutter;
            if !equal {
                return Err(StepError::AlreadyExists { kind: "upload session".to_owned() });
            }
            self.upload_extend(namespace, upload, session.life_ms)?;
            return Ok(StepOutcome::UploadBegun { holder: existing.holder });
        }
        check_list(session)?;
        row.charge_upload(session.size, session.chunks.len() as u64, session.most)?;
        let begun = UploadRow {
            upload,
            holder: session.holder,
            content: session.content,
            size: session.size,
            cutter: session.cutter,
            chunk_count: session.chunks.len() as u64,
            created_ms: self.time_ms,
            expires_ms: self.time_ms.saturating_add(session.life_ms),
            state: UploadState::Open,
        };
        self.put(&key, &begun);
        self.put(&keys::upload_open(namespace, begun.expires_ms, upload), &());
        self.put_namespace(namespace, &row);
        for (part, entries) in (0..).zip(session.chunks.chunks(UPLOAD_PART_ENTRIES)) {
            self.put(&keys::upload_part(namespace, upload, part), &entries);
        }
        Ok(StepOutcome::UploadBegun { holder: session.holder })
    }

    /// Makes a session that has not ended live for a time from now on, unless it lives longer anyway.
    pub(super) fn upload_extend(
        &mut self,
        namespace: NamespaceId,
        upload: UploadId,
        life_ms: u64,
    ) -> Result<StepOutcome, StepError> {
        check_life(life_ms)?;
        self.namespace(namespace)?;
        let session = self.upload_pending(namespace, upload)?;
        let expires_ms = self.time_ms.saturating_add(life_ms).max(session.expires_ms);
        if expires_ms != session.expires_ms {
            self.delete(&keys::upload_open(namespace, session.expires_ms, upload));
            self.put(&keys::upload_open(namespace, expires_ms, upload), &());
            self.put(&keys::upload(namespace, upload), &UploadRow { expires_ms, ..session });
        }
        Ok(StepOutcome::Done)
    }

    /// A session that has not ended.
    fn upload_pending(&self, namespace: NamespaceId, upload: UploadId) -> Result<UploadRow, StepError> {
        let session: UploadRow =
            self.get(&keys::upload(namespace, upload))?.ok_or_else(|| ended("and is forgotten"))?;
        match session.state {
            UploadState::Committed { .. } => Err(ended("committed")),
            UploadState::Aborted => Err(ended("aborted")),
            UploadState::Open | UploadState::Held { .. } if session.expires_ms < self.time_ms => {
                Err(ended("expired"))
            }
            UploadState::Open | UploadState::Held { .. } => Ok(session),
        }
    }

    pub(super) fn upload_hold(
        &mut self,
        namespace: NamespaceId,
        upload: UploadId,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        let session = self.upload_pending(namespace, upload)?;
        if !has_rows(session.size) {
            return Ok(StepOutcome::Held { generation: 0, retained: true });
        }
        let used = match session.state {
            UploadState::Held { .. } => self
                .get(&keys::content_use(namespace, session.content))?
                .ok_or_else(|| invalid("a held content has no use row"))?,
            _ => {
                let used = self.use_add(namespace, &mut row, session.content)?;
                self.nursery_share(namespace, session.content, used)?;
                used
            }
        };
        let held = UploadRow { state: UploadState::Held { generation: used.generation }, ..session };
        self.put(&keys::upload(namespace, upload), &held);
        self.put_namespace(namespace, &row);
        Ok(StepOutcome::Held { generation: used.generation, retained: used.retained })
    }

    pub(super) fn file_commit(
        &mut self,
        namespace: NamespaceId,
        at: Target<'_>,
        commit: Commit,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        let session = self.upload_pending(namespace, commit.upload)?;
        match session.state {
            UploadState::Held { generation } => self.use_commit(namespace, session.content, generation)?,
            _ if has_rows(session.size) => return Err(invalid("the session does not hold its content yet")),
            _ => {}
        }
        names::check(at.name)?;
        let existing = self.entry_at(namespace, at)?;
        // What is there already may be deeper than files are made: its folders were moved.
        let depth_max = if existing.is_some() { WALK_MAX } else { DEPTH_MAX };
        self.live_folder_within(namespace, at.parent, None, depth_max)?;
        let like = VersionRow {
            version: VersionId(0),
            content: session.content,
            size: session.size,
            cutter: session.cutter,
            mode: commit.attributes.permissions(),
            mtime_ns: commit.attributes.mtime_ns,
            created_ms: 0,
            device: commit.device,
        };
        let before = check_base(commit.base, existing.as_ref())?;
        row.discharge_upload(&session);
        let entry = self.file_put(namespace, &mut row, at, existing.as_ref(), before, like)?;
        if let EntryKind::File(state) = entry.kind {
            let state = UploadState::Committed { entry: entry.entry, version: state.version };
            self.put(&keys::upload(namespace, commit.upload), &UploadRow { state, ..session });
        }
        self.upload_list_remove(namespace, &session);
        self.put_namespace(namespace, &row);
        Ok(StepOutcome::Entry(entry))
    }

    /// Gives a file a new version, or makes it with its first one.
    pub(super) fn file_put(
        &mut self,
        namespace: NamespaceId,
        row: &mut NamespaceRow,
        at: Target<'_>,
        existing: Option<&EntryRow>,
        before: Option<FileState>,
        like: VersionRow,
    ) -> Result<EntryRow, StepError> {
        let (entry, created_ms, sequence) = match existing {
            Some(existing) => (existing.entry, existing.created_ms, existing.sequence),
            None => {
                row.charge_rows(ENTRY_BYTES)?;
                (row.take_entry_id(), self.wall_ms, 0)
            }
        };
        let state = self.version_add(namespace, row, entry, like, before)?;
        let mut file = EntryRow {
            entry,
            parent: at.parent,
            name: at.name.to_owned(),
            kind: EntryKind::File(state),
            mode: like.mode,
            mtime_ns: like.mtime_ns,
            created_ms,
            changed_ms: self.wall_ms,
            sequence,
        };
        self.journal(namespace, row, &mut file, Change::Changed)?;
        self.put_entry(namespace, &file);
        Ok(file)
    }

    pub(super) fn upload_abort(
        &mut self,
        namespace: NamespaceId,
        upload: UploadId,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        let key = keys::upload(namespace, upload);
        let Some(session) = self.get::<UploadRow>(&key)? else {
            return Ok(StepOutcome::Aborted { holder: None, release: None });
        };
        let release = match session.state {
            UploadState::Committed { .. } => {
                return Ok(StepOutcome::Aborted { holder: None, release: None });
            }
            UploadState::Open => None,
            UploadState::Held { .. } => self.use_drop(namespace, session.content)?,
            // A repetition: what is still queued for its content is still to be done.
            UploadState::Aborted => self
                .first_key(&keys::releases_of(namespace, session.content))
                .and_then(|key| keys::release_parts(&key))
                .map(|(content, generation)| Release { content, generation }),
        };
        if session.state != UploadState::Aborted {
            row.discharge_upload(&session);
            row.count_given_up(&session);
            self.put_namespace(namespace, &row);
            self.delete(&keys::upload_open(namespace, session.expires_ms, upload));
            let expires_ms = self.time_ms.saturating_add(GIVEN_UP_MS);
            self.put(&keys::upload_open(namespace, expires_ms, upload), &());
            self.put(&key, &UploadRow { state: UploadState::Aborted, expires_ms, ..session });
        }
        Ok(StepOutcome::Aborted { holder: Some(session.holder), release })
    }

    /// Gives up a session whose time is over, or that is idle; one that was given up before, once nobody can be at work on
    /// it any more.
    pub(super) fn upload_expire(
        &mut self,
        namespace: NamespaceId,
        upload: UploadId,
        idle: Option<u64>,
    ) -> Result<StepOutcome, StepError> {
        self.own(namespace.slot())?;
        let session: Option<UploadRow> = self.get(&keys::upload(namespace, upload))?;
        let may_go_on = |session: UploadRow| {
            let is_idle = session.state != UploadState::Aborted && idle == Some(session.expires_ms);
            session.expires_ms >= self.time_ms && !is_idle
        };
        if session.is_some_and(may_go_on) {
            return Err(StepError::Changed { what: "when the upload session ends".to_owned() });
        }
        self.upload_abort(namespace, upload)
    }

    /// Removes what is left of a session that was given up, once nobody can be at work on it any more.
    pub(super) fn upload_forget(
        &mut self,
        namespace: NamespaceId,
        upload: UploadId,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        let key = keys::upload(namespace, upload);
        match self.get::<UploadRow>(&key)? {
            Some(UploadRow { state: UploadState::Committed { .. }, .. }) | None => {}
            Some(session) if session.state == UploadState::Aborted && session.expires_ms < self.time_ms => {
                self.upload_list_remove(namespace, &session);
                row.discount_given_up(&session);
                self.delete(&key);
                self.put_namespace(namespace, &row);
            }
            Some(_) => return Err(StepError::Changed { what: "when the upload session ends".to_owned() }),
        }
        Ok(StepOutcome::Done)
    }

    /// Removes a session's list, and takes it off those that are open.
    fn upload_list_remove(&mut self, namespace: NamespaceId, session: &UploadRow) {
        for part in 0..session.chunk_count.div_ceil(UPLOAD_PART_ENTRIES as u64) {
            self.delete(&keys::upload_part(namespace, session.upload, part));
        }
        self.delete(&keys::upload_open(namespace, session.expires_ms, session.upload));
    }
}

/// Compares what is at the target with what the commit was made against; gives the current version's state.
pub(super) fn check_base(base: Base, existing: Option<&EntryRow>) -> Result<Option<FileState>, StepError> {
    let state = match existing.map(|entry| &entry.kind) {
        Some(EntryKind::File(state)) => Some(*state),
        Some(other) => return Err(StepError::WrongKind { is: other.word().to_owned() }),
        None => None,
    };
    let current = state.map(|state| state.version);
    let fits = match base {
        Base::Any => true,
        Base::Absent => current.is_none(),
        Base::Version(version) => current == Some(version),
    };
    if fits { Ok(state) } else { Err(StepError::Conflict { current }) }
}
