//! Queries for files' contents: where they are, and what the nursery holds.

use engine::ids::{AccountId, ContentId, NamespaceId};
use engine::location::ChunkLocation;

use super::keys::{self, Table};
use super::nursery::NurseryBytesRow;
use super::query::{MANIFEST_ENTRY_BYTES, ROW_BYTES, Reader, Refusal, first_answers};
use super::query_tree::page;
use super::rows::UseRow;
use super::txn::decode_row;
use crate::kv::KeyRange;
use crate::model::PAGE_BYTES_MAX;
use crate::model::nursery::{
    FileAt, FoundContent, NurseryFile, NurseryRow, NurseryState, Opened, TokenGuard,
};
use crate::model::query::{Query, Reply};
use crate::model::row::{ChunkRow, ChunkState, ContentRow, DeviceRow, EntryKind, EntryRow, ROOT_ENTRY};

/// Chunks of a file that is opened whose places are told at once: all of one of 4 MiB.
const PLACES_MAX: usize = 256;

/// Of a file of more bytes the list is asked for by itself, by who does not have it.
const OPEN_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Rows of the nursery that one page looks at.
const NURSERY_LOOKED_AT_MAX: usize = 4096;

/// One content of the nursery: whose, which, of which use.
type NurseryKey = (NamespaceId, ContentId, u64);

impl Reader<'_> {
    pub(super) fn answer_files(&self, query: Query) -> Result<Reply, Refusal> {
        match query {
            Query::ContentsIn { namespace, contents, bytes } => self.contents_in(namespace, &contents, bytes),
            Query::OpenFile { guard, namespace, at, content } => {
                Ok(Reply::Opened(Box::new(self.open_file(guard.as_ref(), namespace, at, content)?)))
            }
            Query::Nursery { after, since_ms_max, count_max } => {
                self.nursery(after, since_ms_max, page(count_max).max(1))
            }
            Query::NurserySums => {
                Ok(Reply::NurserySums(self.get(&keys::nursery_sums())?.unwrap_or_default()))
            }
            query => self.answer_journal(query),
        }
    }

    fn contents_in(
        &self,
        namespace: NamespaceId,
        contents: &[ContentId],
        bytes: bool,
    ) -> Result<Reply, Refusal> {
        self.own(namespace.slot())?;
        let found = first_answers(contents, |content| {
            let found = self.find_content(namespace, *content, bytes)?;
            let size = match &found {
                FoundContent::Elsewhere | FoundContent::Absent => 0,
                FoundContent::Stored(row) => row.list.entries.len() * MANIFEST_ENTRY_BYTES,
                FoundContent::Nursery { chunks, bytes } => chunks.len() * MANIFEST_ENTRY_BYTES + bytes.len(),
            };
            Ok((found, ROW_BYTES + size))
        })?;
        Ok(Reply::ContentsIn(found))
    }

    fn find_content(
        &self,
        namespace: NamespaceId,
        content: ContentId,
        bytes: bool,
    ) -> Result<FoundContent, Refusal> {
        let used: Option<UseRow> = self.get(&keys::content_use(namespace, content))?;
        if let Some(UseRow { generation, retained: false, .. }) = used
            && let Some(row) = self.get::<NurseryRow>(&keys::nursery(namespace, content, generation))?
        {
            let key = keys::nursery_bytes(namespace, content, generation);
            let bytes = if bytes { self.get::<NurseryBytesRow>(&key)? } else { None };
            let bytes = bytes.map_or_else(Vec::new, |row| row.0);
            return Ok(FoundContent::Nursery { chunks: row.chunks, bytes });
        }
        if self.own(content.slot()).is_err() {
            return Ok(FoundContent::Elsewhere);
        }
        let row: Option<ContentRow> = self.get(&keys::content(content))?;
        Ok(row.map_or(FoundContent::Absent, FoundContent::Stored))
    }

    /// Whether a token is right.
    fn proves(&self, guard: &TokenGuard) -> Result<bool, Refusal> {
        let TokenGuard { account, device, token_hash } = guard;
        self.own(AccountId::slot(account))?;
        let row: Option<DeviceRow> = self.get(&keys::device(*account, *device))?;
        Ok(row.is_some_and(|row| row.token_hash == *token_hash && row.revoked_ms.is_none()))
    }

    fn open_file(
        &self,
        guard: Option<&TokenGuard>,
        namespace: NamespaceId,
        at: FileAt,
        content: bool,
    ) -> Result<Opened, Refusal> {
        self.namespace(namespace)?;
        if let Some(guard) = guard
            && !self.proves(guard)?
        {
            return Ok(Opened::TokenRefused);
        }
        let entry: EntryRow = match at {
            FileAt::Entry(entry) => match self.live(namespace, entry)? {
                Some(entry) => entry,
                None => return Ok(Opened::NoEntry(None)),
            },
            FileAt::Path(names) => {
                let root = self.entry(namespace, ROOT_ENTRY)?.ok_or(Refusal::NotUnderstood)?;
                let resolved = self.resolve_one(namespace, &root, &names)?;
                if resolved.found as usize != names.len() {
                    return Ok(Opened::NoEntry(Some(resolved)));
                }
                resolved.last
            }
        };
        let content = match &entry.kind {
            _ if !content => None,
            EntryKind::File(state) if state.size > OPEN_BYTES_MAX => Some(FoundContent::Elsewhere),
            EntryKind::File(state) if state.size > 0 => {
                Some(self.find_content(namespace, state.content, true)?)
            }
            _ => None,
        };
        let places = match &content {
            Some(FoundContent::Stored(row)) if row.list.depth == 0 => self.places(row)?,
            _ => Vec::new(),
        };
        Ok(Opened::Found { entry, content, places })
    }

    /// Where the first chunks of a content lie; `None` for one whose slot is another group's, too.
    fn places(&self, row: &ContentRow) -> Result<Vec<Option<ChunkLocation>>, Refusal> {
        let place = |row: Option<ChunkRow>| {
            row.filter(|row| row.state != ChunkState::Condemned).map(|row| row.location)
        };
        let chunks = row.list.entries.iter().take(PLACES_MAX).map(|entry| entry.id);
        chunks
            .map(|chunk| match self.own(chunk.slot()) {
                Ok(()) => Ok(place(self.get(&keys::chunk(chunk))?)),
                Err(_elsewhere) => Ok(None),
            })
            .collect()
    }

    fn nursery(
        &self,
        after: Option<NurseryKey>,
        since_ms_max: u64,
        count_max: usize,
    ) -> Result<Reply, Refusal> {
        let table = keys::table(Table::Nursery);
        let range = match after {
            Some((namespace, content, generation)) => {
                KeyRange::prefix_after(&table, &keys::nursery(namespace, content, generation))
            }
            None => KeyRange::prefix(&table),
        };
        let rows = self.scan(&range, NURSERY_LOOKED_AT_MAX);
        let looked_at_all = rows.len() < NURSERY_LOOKED_AT_MAX;
        let (mut files, mut bytes, mut last) = (Vec::new(), 0, None);
        for (key, value) in rows {
            if files.len() == count_max || bytes >= PAGE_BYTES_MAX {
                return Ok(Reply::Nursery { files, next: last });
            }
            let row: NurseryRow = decode_row(&key, &value)?;
            let this = keys::nursery_parts(&key).ok_or(Refusal::NotUnderstood)?;
            last = Some(this);
            if row.state == NurseryState::Kept && row.since_ms > since_ms_max {
                continue;
            }
            let (namespace, content, generation) = this;
            let kept: Option<NurseryBytesRow> = match row.state {
                NurseryState::Leaving { .. } => None,
                _ => self.get(&keys::nursery_bytes(namespace, content, generation))?,
            };
            let kept = kept.map_or_else(Vec::new, |row| row.0);
            bytes += kept.len() + ROW_BYTES;
            files.push(NurseryFile { namespace, content, generation, row, bytes: kept });
        }
        Ok(Reply::Nursery { files, next: last.filter(|_last| !looked_at_all) })
    }
}
