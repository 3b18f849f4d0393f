//! The nursery: files that were put by one command, whose bytes lie here until they are packed into stripes.
//!
//! Invariants:
//! - A content is in the nursery for one use of it, by its generation. While that use is there and not retained, and no
//!   session alone holds it, its row is kept or moving, and its bytes are there.
//! - Bytes are there exactly if the row is kept or moving. The sums are those of these rows.
//! - Moving means: chunks may be pinned for the holder, and the content may be retained elsewhere for the use. So the last
//!   use that goes is queued to be released, and the row stays, leaving, until the holder's pins are gone.
//! - Kept means that nothing of it is anywhere else, unless it is shared: a session has held it, which may have retained it.
//!
//! The order of a move, and what is there after a crash behind each step (`docs/metadata.md`):
//! 1. `NurseryTake`: moving, by a holder. Whoever takes it again is told that one.
//! 2. Chunks stored, pinned for the holder: they are the move's, which is done from the start.
//! 3. `ContentRetain` by the use's generation: the same.
//! 4. `NurserySettle`: retained. The bytes are gone, and if the holder is the content's, so is the row.
//! 5. Otherwise `HolderDismiss`, `ChunksUnpin`, and only then `NurseryForget`.

use engine::chunk::check_chunk_size;
use engine::ids::{ContentId, EntryId, HolderId, NamespaceId, VersionId};
use serde::{Deserialize, Serialize};

use super::keys;
use super::names;
use super::rows::{NurseryLeaseRow, UseRow};
use super::tree::{Attributes, Target, WALK_MAX};
use super::txn::{Group, invalid, not_found};
use super::uploads::check_base;
use super::versions::has_rows;
use crate::model::DEPTH_MAX;
use crate::model::command::StepError;
use crate::model::nursery::{NurseryRow, NurseryState, NurserySums, SMALL_FILE_BYTES_MAX, SmallFile};
use crate::model::outcome::StepOutcome;
use crate::model::row::{ContentRow, EntryKind, EntryRow, NamespaceRow, ROOT_ENTRY, VersionRow};

/// What a content of the nursery counts beside its bytes: so there are not many more than the bound says.
const ROW_BYTES: u64 = 256;

/// How long somebody may be the one who empties a nursery without saying so again.
const LEASE_MS_MAX: u64 = 10 * 60 * 1000;

/// The bytes of a content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NurseryBytesRow(#[serde(with = "serde_bytes")] pub Vec<u8>);

fn changed(what: &str) -> StepError {
    StepError::Changed { what: what.to_owned() }
}

fn check_file(file: &SmallFile) -> Result<(), StepError> {
    if file.bytes.len() > SMALL_FILE_BYTES_MAX {
        let bytes = file.bytes.len();
        return Err(invalid(format!(
            "{bytes} bytes; by one command a file has at most {SMALL_FILE_BYTES_MAX}"
        )));
    }
    let mut sum = 0_u64;
    for chunk in &file.chunks {
        check_chunk_size(chunk.size).map_err(|refused| invalid(refused.to_string()))?;
        sum += chunk.size;
    }
    if sum != file.bytes.len() as u64 {
        let bytes = file.bytes.len();
        return Err(invalid(format!("the chunks have {sum} bytes together, the file {bytes}")));
    }
    Ok(())
}

impl Group<'_, '_> {
    /// Makes a file, or a new version of one, whose bytes are kept here.
    pub(super) fn small_file_put(
        &mut self,
        namespace: NamespaceId,
        file: &SmallFile,
        nursery_bytes_max: u64,
    ) -> Result<StepOutcome, StepError> {
        let mut row = self.namespace(namespace)?;
        check_file(file)?;
        let Some((name, folders)) = file.names.split_last() else {
            return Err(invalid("a file needs a name"));
        };
        names::check(name)?;
        let (parent, depth) = self.walk_down(namespace, file.folder, folders)?;
        let at = Target { parent, name };
        let existing = self.entry_at(namespace, at)?;
        if existing.is_none() && depth > DEPTH_MAX {
            return Err(StepError::TooDeep { max: DEPTH_MAX });
        }
        let before = check_base(file.base, existing.as_ref())?;
        let (content, size) = (ContentId::of(&file.chunks), file.bytes.len() as u64);
        if has_rows(size) {
            self.nursery_keep(namespace, &mut row, (content, file), nursery_bytes_max)?;
        }
        let attributes = Attributes { mode: file.mode, mtime_ns: file.mtime_ns };
        let like = VersionRow {
            version: VersionId(0),
            content,
            size,
            cutter: file.cutter,
            mode: attributes.permissions(),
            mtime_ns: file.mtime_ns,
            created_ms: 0,
            device: file.device,
        };
        let entry = self.file_put(namespace, &mut row, at, existing.as_ref(), before, like)?;
        self.put_namespace(namespace, &row);
        Ok(StepOutcome::Entry(entry))
    }

    /// The folder that names lead to from another one that is in the tree, and how many folders are above it.
    fn walk_down(
        &mut self,
        namespace: NamespaceId,
        from: EntryId,
        names: &[String],
    ) -> Result<(EntryId, u32), StepError> {
        let above =
            if from == ROOT_ENTRY { 0 } else { self.live_folder_within(namespace, from, None, WALK_MAX)? };
        let depth = u32::try_from(names.len()).unwrap_or(u32::MAX).saturating_add(above);
        if depth > WALK_MAX {
            return Err(StepError::TooDeep { max: DEPTH_MAX });
        }
        self.seen.count_walked(names.len())?;
        let mut parent = from;
        for name in names {
            let folder =
                if name.is_empty() { None } else { self.entry_at(namespace, Target { parent, name })? };
            let folder: EntryRow = folder.ok_or_else(|| not_found("folder"))?;
            if folder.kind != EntryKind::Folder {
                return Err(StepError::WrongKind { is: folder.kind.word().to_owned() });
            }
            parent = folder.entry;
        }
        Ok((parent, depth))
    }

    /// Counts a new version's use of a content, and keeps the bytes. Refused if the content is in stripes: bytes that come
    /// again heal what cannot be read there, and that is for the other way to find out.
    fn nursery_keep(
        &mut self,
        namespace: NamespaceId,
        row: &mut NamespaceRow,
        (content, file): (ContentId, &SmallFile),
        bytes_max: u64,
    ) -> Result<(), StepError> {
        let used = self.use_add(namespace, row, content)?;
        let key = keys::nursery(namespace, content, used.generation);
        if used.retained {
            return Err(StepError::ContentHeld);
        }
        let bytes = NurseryBytesRow(file.bytes.clone());
        if self.contains(&key) {
            // Whatever has become of those that were there.
            self.put(&keys::nursery_bytes(namespace, content, used.generation), &bytes);
            return Ok(());
        }
        let mut sums = self.nursery_sums()?;
        sums.files += 1;
        sums.bytes += file.bytes.len() as u64 + ROW_BYTES;
        if sums.bytes > bytes_max {
            return Err(StepError::NurseryFull);
        }
        let (chunks, since_ms) = (file.chunks.clone(), self.time_ms);
        // Another use of a content that is not retained is a session's.
        let shared = used.count > 1;
        self.put(&key, &NurseryRow { chunks, since_ms, shared, state: NurseryState::Kept });
        self.put(&keys::nursery_bytes(namespace, content, used.generation), &bytes);
        self.put(&keys::nursery_sums(), &sums);
        Ok(())
    }

    fn nursery_sums(&self) -> Result<NurserySums, StepError> {
        Ok(self.get(&keys::nursery_sums())?.unwrap_or_default())
    }

    /// Removes a content's bytes, which are there.
    fn nursery_bytes_remove(
        &mut self,
        namespace: NamespaceId,
        content: ContentId,
        (generation, row): (u64, &NurseryRow),
    ) -> Result<(), StepError> {
        self.delete(&keys::nursery_bytes(namespace, content, generation));
        let sums = self.nursery_sums()?;
        let files = sums.files.saturating_sub(1);
        let bytes = sums.bytes.saturating_sub(row.size() + ROW_BYTES);
        self.put(&keys::nursery_sums(), &NurserySums { files, bytes });
        Ok(())
    }

    /// A session holds a content that may be in the nursery: it may retain it, and then be given up.
    pub(super) fn nursery_share(
        &mut self,
        namespace: NamespaceId,
        content: ContentId,
        used: UseRow,
    ) -> Result<(), StepError> {
        let key = keys::nursery(namespace, content, used.generation);
        if used.retained || used.count < 2 {
            return Ok(());
        }
        if let Some(row) = self.get::<NurseryRow>(&key)?.filter(|row| !row.shared) {
            self.put(&key, &NurseryRow { shared: true, ..row });
        }
        Ok(())
    }

    /// A content's use is retained from now on: what the nursery has of it is not needed any more.
    pub(super) fn nursery_retained(
        &mut self,
        namespace: NamespaceId,
        content: ContentId,
        generation: u64,
    ) -> Result<(), StepError> {
        let key = keys::nursery(namespace, content, generation);
        let Some(row) = self.get::<NurseryRow>(&key)? else { return Ok(()) };
        match row.state {
            NurseryState::Kept => {
                self.nursery_bytes_remove(namespace, content, (generation, &row))?;
                self.delete(&key);
            }
            NurseryState::Moving { holder } => {
                self.nursery_bytes_remove(namespace, content, (generation, &row))?;
                self.put(&key, &NurseryRow { state: NurseryState::Leaving { holder }, ..row });
            }
            NurseryState::Leaving { .. } => {}
        }
        Ok(())
    }

    /// The last use of a content has gone: so has what the nursery has of it. Tells whether there may be a reference that
    /// is to be released.
    pub(super) fn nursery_let_go(
        &mut self,
        namespace: NamespaceId,
        content: ContentId,
        used: UseRow,
    ) -> Result<bool, StepError> {
        let key = keys::nursery(namespace, content, used.generation);
        let row = if used.retained { None } else { self.get::<NurseryRow>(&key)? };
        let Some(row) = row else { return Ok(true) };
        self.nursery_retained(namespace, content, used.generation)?;
        Ok(row.shared || row.state != NurseryState::Kept)
    }

    pub(super) fn nursery_lease(&mut self, mover: u64, life_ms: u64) -> Result<StepOutcome, StepError> {
        let key = keys::nursery_lease();
        let row: Option<NurseryLeaseRow> = self.get(&key)?;
        if row.is_some_and(|row| row.mover != mover && row.until_ms > self.time_ms) {
            return Err(changed("who empties the nursery"));
        }
        let until_ms = self.time_ms.saturating_add(life_ms.min(LEASE_MS_MAX));
        self.put(&key, &NurseryLeaseRow { mover, until_ms });
        Ok(StepOutcome::Done)
    }

    pub(super) fn nursery_take(
        &mut self,
        namespace: NamespaceId,
        content: ContentId,
        generation: u64,
        holder: HolderId,
    ) -> Result<StepOutcome, StepError> {
        self.own(namespace.slot())?;
        let key = keys::nursery(namespace, content, generation);
        let holder = match self.get::<NurseryRow>(&key)? {
            Some(NurseryRow { state: NurseryState::Moving { holder }, .. }) => Some(holder),
            Some(row @ NurseryRow { state: NurseryState::Kept, .. }) => {
                self.put(&key, &NurseryRow { state: NurseryState::Moving { holder }, ..row });
                Some(holder)
            }
            Some(NurseryRow { state: NurseryState::Leaving { .. }, .. }) | None => None,
        };
        Ok(StepOutcome::NurseryTaken { holder })
    }

    pub(super) fn nursery_settle(
        &mut self,
        namespace: NamespaceId,
        content: ContentId,
        generation: u64,
        in_force: Option<HolderId>,
    ) -> Result<StepOutcome, StepError> {
        self.own(namespace.slot())?;
        let key = keys::nursery(namespace, content, generation);
        let holder = match self.get::<NurseryRow>(&key)?.map(|row| row.state) {
            Some(NurseryState::Moving { holder }) => holder,
            Some(NurseryState::Kept) => return Err(changed("nobody has begun to move it")),
            // Whoever comes late may have pinned something once more.
            Some(NurseryState::Leaving { .. }) | None => {
                return Ok(StepOutcome::NurserySettled { leaving: true });
            }
        };
        let in_force = match in_force {
            Some(holder) => holder,
            None => {
                self.own(content.slot())?;
                let row: Option<ContentRow> = self.get(&keys::content(content))?;
                row.ok_or_else(|| changed("the content is not retained"))?.holder
            }
        };
        self.use_commit(namespace, content, generation)?;
        let leaving = in_force != holder;
        if !leaving {
            self.delete(&key);
        }
        Ok(StepOutcome::NurserySettled { leaving })
    }

    pub(super) fn nursery_forget(
        &mut self,
        namespace: NamespaceId,
        content: ContentId,
        generation: u64,
    ) -> Result<StepOutcome, StepError> {
        self.own(namespace.slot())?;
        let key = keys::nursery(namespace, content, generation);
        match self.get::<NurseryRow>(&key)?.map(|row| row.state) {
            Some(NurseryState::Leaving { .. }) => self.delete(&key),
            Some(_) => return Err(changed("it is not leaving")),
            None => {}
        }
        Ok(StepOutcome::Done)
    }
}
