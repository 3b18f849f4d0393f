//! Upload sessions: their chunk lists, the intent that holds a content, the commit, and giving up.
//!
//! Invariants:
//! - A session goes from open to held to committed, or from either to aborted, and never back.
//! - A held session has one use of its content, which the commit turns into the version's and an abort gives back.
//! - An aborted or expired session never commits, nor is it gone on with, whoever wakes up late.
//! - The chunk list of a session is the one that its content is named after. It goes with the commit (the content
//!   has it from then on); an aborted session keeps it for those who remove its pins.

use engine::chunk::check_chunk_size;
use engine::cutter::Cutter;
use engine::ids::{ContentId, DeviceId, HolderId, NamespaceId, UploadId, VersionId};
use engine::manifest::ManifestEntry;

use super::keys;
use super::names;
use super::tree::{Attributes, Change, Target, WALK_MAX};
use super::txn::{Group, invalid, not_found};
use super::versions::{check_quota, has_rows};
use crate::model::command::{Base, StepError};
use crate::model::outcome::{Release, StepOutcome};
use crate::model::row::{EntryKind, EntryRow, FileState, NamespaceRow, UploadRow, UploadState, VersionRow};
use crate::model::{DEPTH_MAX, UPLOAD_CHUNKS_MAX, UPLOAD_PART_ENTRIES};

/// How long a session may be made to live.
const LIFE_MS_MAX: u64 = 366 * 24 * 60 * 60 * 1000;

/// What a session is begun with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session<'a> {
    pub holder: HolderId,
    pub content: ContentId,
    pub size: u64,
    pub cutter: Cutter,
    pub chunks: &'a [ManifestEntry],
    pub life_ms: u64,
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
        let row = self.namespace(namespace)?;
        let key = keys::upload(namespace, upload);
        if let Some(existing) = self.get::<UploadRow>(&key)? {
            let equal = existing.holder == session.holder
                && existing.content == session.content
                && existing.size == session.size
                && existing.cutter == session.cutter;
            if !equal {
                return Err(StepError::AlreadyExists { kind: "upload session".to_owned() });
            }
            return self.upload_extend(namespace, upload, session.life_ms);
        }
        check_list(session)?;
        check_quota(&row, session.size)?;
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
        for (part, entries) in (0..).zip(session.chunks.chunks(UPLOAD_PART_ENTRIES)) {
            self.put(&keys::upload_part(namespace, upload, part), &entries);
        }
        Ok(StepOutcome::Done)
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
            self.put(&keys::upload(namespace, upload), &UploadRow { expires_ms, ..session });
        }
        Ok(StepOutcome::Done)
    }

    /// A session that has not ended.
    fn upload_pending(&self, namespace: NamespaceId, upload: UploadId) -> Result<UploadRow, StepError> {
        let session: UploadRow =
            self.get(&keys::upload(namespace, upload))?.ok_or_else(|| not_found("upload session"))?;
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
            _ => self.use_add(namespace, &mut row, session.content)?,
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
        let entry = self.file_put(namespace, &mut row, at, existing.as_ref(), before, like)?;
        if let EntryKind::File(state) = entry.kind {
            let state = UploadState::Committed { entry: entry.entry, version: state.version };
            self.put(&keys::upload(namespace, commit.upload), &UploadRow { state, ..session });
        }
        for part in 0..session.chunk_count.div_ceil(UPLOAD_PART_ENTRIES as u64) {
            self.delete(&keys::upload_part(namespace, commit.upload, part));
        }
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
            None => (row.take_entry_id(), self.wall_ms, 0),
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
        self.namespace(namespace)?;
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
        self.put(&key, &UploadRow { state: UploadState::Aborted, ..session });
        Ok(StepOutcome::Aborted { holder: Some(session.holder), release })
    }
}

/// Compares what is at the target with what the commit was made against; gives the current version's state.
fn check_base(base: Base, existing: Option<&EntryRow>) -> Result<Option<FileState>, StepError> {
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
