//! Queries of those who follow a namespace: its journal, what is below a folder, entries by id.
//!
//! Pages make batches: `since` is the number up to which the caller had everything when the batch began, and goes along
//! from page to page. Below a folder that came back after it lies what the caller does not have, whichever page tells
//! of the folder. A listing of all there is is a batch that begins at the present number, with the journal from its
//! beginning. Pruning of what was gone by then does not end it, and what was in the trash by then is left out, for its
//! caller never saw it, nor anything in it. What is gone with a folder above it is told of: what is in *it* may have
//! been told of when that folder was still there, and is found only through it.
//!
//! Invariants:
//! - A page costs at most as many rows as it may have changes, and a walk up that is remembered within the page.
//! - A page after `position` has every entry whose latest number is in its range, as it is now or as gone.

use std::collections::{HashMap, VecDeque};

use engine::ids::{EntryId, NamespaceId};

use super::keys;
use super::query::{ROW_BYTES, Reader, Refusal, check_count, first_answers};
use super::query_tree::{PATH_NAMES_MAX, entry_bytes, page};
use super::rows::{JournalRow, PlaceRow};
use super::runs::{History, history, runs_to};
use super::txn::decode_row;
use crate::kv::KeyRange;
use crate::model::PAGE_BYTES_MAX;
use crate::model::journal::{JournalRun, Seen};
use crate::model::query::{BelowFrame, BelowPage, Query, Reply};
use crate::model::row::{ChangeRow, EntryKind, EntryRow, NamespaceRow, ROOT_ENTRY};

/// Children of a folder that are read at once.
const CHILDREN_ROWS: usize = 256;

/// Bytes of children that a walk has read and not come to, about; beyond, those of outer folders are read again later.
const AHEAD_BYTES_MAX: usize = 2 * PAGE_BYTES_MAX;

/// Frames of a position, more than any tree is deep.
const FRAMES_MAX: usize = PATH_NAMES_MAX as usize + 1;

/// Whether folders are in the tree, as far as it was looked up.
type Live = HashMap<EntryId, bool>;

/// A folder that is being listed.
struct Open {
    folder: EntryId,
    after: String,
    children: VecDeque<EntryRow>,
    /// Whether all its further children are in `children`.
    ended: bool,
}

/// Drops what was read of all folders but the innermost; gives the bytes of what is left.
fn forget_outer(open: &mut [Open]) -> usize {
    let Some((inner, outer)) = open.split_last_mut() else { return 0 };
    for folder in outer {
        folder.ended = folder.ended && folder.children.is_empty();
        folder.children.clear();
    }
    inner.children.iter().map(entry_bytes).sum()
}

impl Reader<'_> {
    pub(super) fn answer_journal(&self, query: Query) -> Result<Reply, Refusal> {
        match query {
            Query::Changes { namespace, position, since, count_max } => {
                self.changes(namespace, position, since, page(count_max).max(1))
            }
            Query::ChangesAfter { namespace, position, since, runs, count_max } => {
                self.changes_after(namespace, (position, since, runs), page(count_max).max(1))
            }
            Query::Below { namespace, top, position, count_max } => {
                self.below(namespace, top, position, page(count_max).max(1)).map(Reply::Below)
            }
            Query::BelowAt { namespace, top, position, seen, count_max } => {
                self.below_at(namespace, (top, position), seen.as_ref(), page(count_max).max(1))
            }
            Query::EntriesById { namespace, entries } => self.entries_by_id(namespace, &entries),
            Query::Sequences { namespaces } => self.sequences(&namespaces),
            _ => Err(Refusal::NotUnderstood),
        }
    }

    /// A page of the journal for somebody who is at a position and batch beginning, with the runs of the later one.
    fn changes_after(
        &self,
        namespace: NamespaceId,
        (position, since, runs): (u64, u64, Option<Vec<JournalRun>>),
        count_max: usize,
    ) -> Result<Reply, Refusal> {
        let present = self.namespace(namespace)?.sequence;
        let seen = Seen { number: position.max(since), runs };
        if let History::Parted(common) = history(self.rows(), namespace, present, &seen)? {
            return Ok(Reply::WentBack { common });
        }
        match self.changes(namespace, position, since, count_max)? {
            Reply::Changes { changes, position, since, more } => {
                let runs = runs_to(self.rows(), namespace, position.max(since))?;
                Ok(Reply::ChangesAfter { changes, position, since, runs, more })
            }
            other => Ok(other),
        }
    }

    fn changes(
        &self,
        namespace: NamespaceId,
        position: u64,
        since: u64,
        count_max: usize,
    ) -> Result<Reply, Refusal> {
        let present = self.namespace(namespace)?.sequence;
        let fresh = position == 0 && since == 0;
        let since = if fresh { present } else { since };
        // Up to this number the caller knows what is gone.
        let seen = position.max(since);
        let pruned: u64 = self.get(&keys::journal_pruned(namespace))?.unwrap_or(0);
        if seen > present || (!fresh && pruned > seen) {
            return Ok(Reply::ChangesGone);
        }
        let after = keys::journal(namespace, position);
        let rows = self.scan(&KeyRange::prefix_after(&keys::journal_all(namespace), &after), count_max);
        let mut reached = if rows.len() < count_max { present } else { position };
        let (mut live, mut changes, mut bytes) = (Live::new(), Vec::new(), 0);
        for (key, value) in &rows {
            let sequence = keys::journal_sequence(key).ok_or(Refusal::NotUnderstood)?;
            let latest: JournalRow = decode_row(key, value)?;
            if latest.entry != ROOT_ENTRY {
                let row = self.live_row(namespace, latest.entry, &mut live)?;
                bytes += row.as_ref().map_or(ROW_BYTES, entry_bytes);
                let folder = row.as_ref().is_some_and(|row| row.kind == EntryKind::Folder);
                let list_below = folder && latest.arrived > since;
                let told = row.is_some() || sequence > since || !self.is_in_trash(namespace, latest.entry)?;
                if told {
                    changes.push(ChangeRow { entry: latest.entry, row, list_below });
                }
            }
            if rows.len() == count_max {
                reached = sequence;
            }
            if bytes >= PAGE_BYTES_MAX {
                reached = sequence;
                break;
            }
        }
        let more = reached < present;
        let since = if more { since } else { reached };
        Ok(Reply::Changes { changes, position: reached, since, more })
    }

    /// Whether an entry is an item of the trash itself: so it has been since its latest number, with all below it.
    fn is_in_trash(&self, namespace: NamespaceId, entry: EntryId) -> Result<bool, Refusal> {
        let place: Option<PlaceRow> = self.get(&keys::place(namespace, entry))?;
        Ok(matches!(place, Some(PlaceRow::Trashed(_))))
    }

    /// An entry as it is now, if it is in the tree.
    fn live_row(
        &self,
        namespace: NamespaceId,
        entry: EntryId,
        live: &mut Live,
    ) -> Result<Option<EntryRow>, Refusal> {
        let Some(row) = self.entry(namespace, entry)? else { return Ok(None) };
        let in_tree = entry == ROOT_ENTRY || self.is_live(namespace, row.parent, live)?;
        Ok(in_tree.then_some(row))
    }

    /// Whether a folder is in the tree.
    fn is_live(&self, namespace: NamespaceId, folder: EntryId, live: &mut Live) -> Result<bool, Refusal> {
        let mut path = Vec::new();
        let mut at = folder;
        let mut found = false;
        for _ in 0..=PATH_NAMES_MAX {
            if let Some(known) = live.get(&at) {
                found = *known;
                break;
            }
            path.push(at);
            if at == ROOT_ENTRY {
                found = true;
                break;
            }
            match self.get(&keys::place(namespace, at))? {
                Some(PlaceRow::In(parent, _)) => at = parent,
                Some(PlaceRow::Trashed(_)) | None => break,
            }
        }
        live.extend(path.into_iter().map(|folder| (folder, found)));
        Ok(found)
    }

    /// A page of what is below a folder, for somebody who has seen something of the journal.
    fn below_at(
        &self,
        namespace: NamespaceId,
        (top, position): (EntryId, Vec<BelowFrame>),
        seen: Option<&Seen>,
        count_max: usize,
    ) -> Result<Reply, Refusal> {
        let number = self.namespace(namespace)?.sequence;
        if let Some(seen) = seen
            && let History::Parted(common) = history(self.rows(), namespace, number, seen)?
        {
            return Ok(Reply::WentBack { common });
        }
        let page = self.below(namespace, top, position, count_max)?;
        Ok(Reply::BelowAt { page, number, runs: runs_to(self.rows(), namespace, number)? })
    }

    fn below(
        &self,
        namespace: NamespaceId,
        top: EntryId,
        position: Vec<BelowFrame>,
        count_max: usize,
    ) -> Result<Option<BelowPage>, Refusal> {
        self.namespace(namespace)?;
        if position.len() > FRAMES_MAX {
            return Err(Refusal::NotUnderstood);
        }
        let mut live = Live::new();
        if self.live_row(namespace, top, &mut live)?.is_none() {
            return Ok(None);
        }
        let frames = if position.is_empty() {
            vec![BelowFrame { folder: top, after: String::new() }]
        } else {
            position
        };
        let mut open = Vec::with_capacity(frames.len());
        for BelowFrame { folder, after } in frames {
            // What has gone since the page before is told by the journal.
            if self.is_live(namespace, folder, &mut live)? {
                open.push(Open { folder, after, children: VecDeque::new(), ended: false });
            }
        }
        let entries = self.walk_below(namespace, &mut open, count_max)?;
        let position = open.into_iter().map(|open| BelowFrame { folder: open.folder, after: open.after });
        Ok(Some(BelowPage { entries, position: position.collect() }))
    }

    /// Lists what is open, innermost first, until a page is full; what is left stays open.
    fn walk_below(
        &self,
        namespace: NamespaceId,
        open: &mut Vec<Open>,
        count_max: usize,
    ) -> Result<Vec<EntryRow>, Refusal> {
        let (mut entries, mut bytes, mut ahead) = (Vec::new(), 0, 0);
        while let Some(inner) = open.last_mut() {
            let Some(child) = inner.children.pop_front() else {
                if inner.ended {
                    open.pop();
                } else {
                    self.read_children(namespace, inner)?;
                    ahead += inner.children.iter().map(entry_bytes).sum::<usize>();
                    if ahead > AHEAD_BYTES_MAX {
                        ahead = forget_outer(open);
                    }
                }
                continue;
            };
            ahead = ahead.saturating_sub(entry_bytes(&child));
            if entries.len() >= count_max || bytes >= PAGE_BYTES_MAX {
                return Ok(entries);
            }
            child.name.clone_into(&mut inner.after);
            bytes += entry_bytes(&child);
            if child.kind == EntryKind::Folder {
                let (folder, after) = (child.entry, String::new());
                open.push(Open { folder, after, children: VecDeque::new(), ended: false });
            }
            entries.push(child);
        }
        Ok(entries)
    }

    fn read_children(&self, namespace: NamespaceId, open: &mut Open) -> Result<(), Refusal> {
        let prefix = keys::children(namespace, open.folder);
        let range = KeyRange::prefix_after(&prefix, &keys::entry(namespace, open.folder, &open.after));
        let rows = self.scan(&range, CHILDREN_ROWS);
        open.ended = rows.len() < CHILDREN_ROWS;
        for (key, bytes) in &rows {
            open.children.push_back(decode_row(key, bytes)?);
        }
        Ok(())
    }

    /// An entry as it is now, if it is in the tree.
    pub(super) fn live(&self, namespace: NamespaceId, entry: EntryId) -> Result<Option<EntryRow>, Refusal> {
        self.live_row(namespace, entry, &mut Live::new())
    }

    fn entries_by_id(&self, namespace: NamespaceId, entries: &[EntryId]) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        let mut live = Live::new();
        let rows = first_answers(entries, |entry| {
            let row = self.live_row(namespace, *entry, &mut live)?;
            let bytes = row.as_ref().map_or(ROW_BYTES, entry_bytes);
            Ok((row, bytes))
        })?;
        Ok(Reply::EntriesById(rows))
    }

    fn sequences(&self, namespaces: &[NamespaceId]) -> Result<Reply, Refusal> {
        check_count(namespaces.len())?;
        let mut sequences = Vec::with_capacity(namespaces.len());
        for namespace in namespaces {
            self.own(namespace.slot())?;
            let row: Option<NamespaceRow> = self.get(&keys::namespace(*namespace))?;
            sequences.push(row.map(|row| row.sequence));
        }
        Ok(Reply::Sequences(sequences))
    }
}
