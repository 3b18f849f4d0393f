//! What the server says: its journal's batches, page by page, and entries as they come back from calls.
//!
//! Of two statements about one entry the one with the higher number in the journal holds, in whichever order they
//! come. A batch begins with the first page after a whole one, and is finished by [`State::finish_batch`] once all its
//! pages, and all listings that it asks for, are in; only then is `remote` a tree again, but for what an answer of a call,
//! which the journal has not come up to, put where nothing is known to be: it waits for the next batch.

use std::collections::{HashMap, HashSet};

use proto::v1;
use rusqlite::{OptionalExtension, params};

use super::database::State;
use super::error::StateError;
use super::reached::Reached;
use super::row::{empty_file, id, signed, unsigned};
use super::trees::{RemoteFacts, Side};
use crate::path::check_name;
use crate::planner::model::{Attributes, FileContent, Kind, Node, NodeId, Place, ROOT};
use crate::wire;
use engine::ids::ContentId;

/// Folders within one another that a walk up bears.
const DEPTH_MAX: usize = 4_096;
/// Remembered as 1 after a listing anew, until both sides have agreed on everything.
const WAS_RESET: &str = "was_reset";

/// A page of changes, as it came.
#[derive(Clone, Debug, Default)]
pub struct RemotePage {
    /// In order.
    pub changes: Vec<v1::Change>,
    /// What the tree has reached with them; its proof goes on behind them.
    pub reached: Reached,
    /// The batch goes on.
    pub more: bool,
}

/// What a batch came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// `remote` is a tree again.
    Whole,
    /// The remote folder itself is gone, or was listed anew and not told of; nothing was changed.
    RootGone,
}

/// Where walking up from a node of `remote` ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Root,
    /// Its folder is not there.
    Nowhere,
    /// Not at the root, and it is not known yet where. The answer of a call tells how something is now; the journal, which
    /// has not come so far, may not have told yet of the folder that it is in, or that this is not below it any more.
    /// What is below it makes no news of its own, so it is kept.
    Adrift,
}

/// What is known of the server's journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemotePosition {
    /// Where to go on; empty: from nothing.
    pub cursor: Vec<u8>,
    /// The number that the tree has reached with that.
    pub sequence: u64,
    /// Whether a batch has come in part.
    pub batch_open: bool,
}

impl State {
    /// Where the server's journal is gone on with.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn remote_position(&self) -> Result<RemotePosition, StateError> {
        Ok(RemotePosition {
            cursor: self.bytes("cursor")?.unwrap_or_default(),
            sequence: unsigned(self.number("sequence")?.unwrap_or(0)),
            batch_open: self.number("batch_open")?.unwrap_or(0) != 0,
        })
    }

    /// Goes on from a later point, up to which nothing has changed.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_remote_position(&mut self, place: &Reached) -> Result<(), StateError> {
        self.transaction(|state| state.follow_from(place))
    }

    /// The server's id of the folder that is kept the same; `None` before [`State::set_root_entry`].
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn root_entry(&self) -> Result<Option<u64>, StateError> {
        Ok(self.remote_facts(ROOT)?.map(|facts| facts.entry))
    }

    /// Says which folder of the server is kept the same, and under which number that was said of it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_root_entry(&mut self, entry: u64, sequence: u64) -> Result<(), StateError> {
        self.transaction(|state| {
            state.remember_root(sequence)?;
            state.set_remote_facts(ROOT, Some(RemoteFacts { entry, version: 0, sequence: 0, mtime_ns: 0 }))
        })
    }

    /// Begins to list the remote folder anew: what is not seen again until the batch is whole is gone. `whole`: it is
    /// the top of the server's tree, so that the journal from its start is the listing; else a listing of the folder
    /// is to be taken in before the journal's first page.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn begin_relist(&mut self, whole: bool) -> Result<(), StateError> {
        self.transaction(|state| {
            if state.bytes("cursor")?.is_some_and(|cursor| !cursor.is_empty()) {
                state.note_reset()?;
            }
            state.connection.execute_batch(
                // That the root is gone holds until it is told of again: else all of it would be swept away.
                "DELETE FROM arrivals WHERE node <> 1 OR gone = 0; DELETE FROM deleted; \
                 UPDATE nodes SET sequence = 0 WHERE sequence <> 0;",
            )?;
            state.follow_from(&Reached::default())?;
            state.set_number("relist", 1)?;
            state.set_number("relist_whole", i64::from(whole))?;
            state.set_number("changed_ms_max", 0)?;
            state.set_number("batch_open", 1)
        })
    }

    /// Whether the server's tree was listed anew since both sides last agreed on everything: what it has may be of
    /// another history, and older than what is here.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn was_reset(&self) -> Result<bool, StateError> {
        Ok(self.number(WAS_RESET)?.unwrap_or(0) != 0)
    }

    pub(super) fn note_reset(&self) -> Result<(), StateError> {
        self.set_number(WAS_RESET, 1)
    }

    /// Both sides agree on everything.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn forget_reset(&mut self) -> Result<(), StateError> {
        if self.was_reset()? { self.set_number(WAS_RESET, 0) } else { Ok(()) }
    }

    /// Takes in one page of changes.
    ///
    /// # Errors
    /// If the file cannot be written; then nothing was taken in.
    pub fn apply_changes(&mut self, page: &RemotePage) -> Result<(), StateError> {
        self.transaction(|state| {
            let seen_ms = unsigned(state.number("changed_ms_max")?.unwrap_or(0));
            let relist = state.number("relist")?.unwrap_or(0) != 0;
            let whole = state.number("relist_whole")?.unwrap_or(0) != 0;
            let mut latest_ms = unsigned(state.number("changed_ms_coming")?.unwrap_or(0)).max(seen_ms);
            let mut root_doubted = false;
            for change in &page.changes {
                // What the cursor is past, whether it is taken in or not.
                latest_ms = change.entry.as_ref().map_or(latest_ms, |entry| latest_ms.max(entry.changed_ms));
                match &change.entry {
                    // Listing a folder anew: what is elsewhere in the tree is not taken in.
                    Some(entry) if relist && !whole && !state.is_near(entry)? => {}
                    Some(entry) => {
                        let was_there = state.is_there(entry.id)?;
                        let node = state.take_entry(entry)?;
                        // A folder that was not there, and is older than what is known, came back from the trash
                        // or from where it was not followed: what is below it makes no news of its own. (The
                        // server says so only of what came back behind the cursor of this page.)
                        let unseen = if relist { !whole } else { entry.created_ms <= seen_ms };
                        let came_in = !was_there && unseen;
                        let list = change.list_below || (came_in && entry.kind() == v1::EntryKind::Folder);
                        state.arrived(node, false, list)?;
                    }
                    None => match state.node_of_entry(change.entry_id)? {
                        Some(node) => state.arrived(node, true, false)?,
                        None => root_doubted |= state.deleted_at(change.entry_id)?.is_none(),
                    },
                }
            }
            if root_doubted {
                state.set_number("root_doubted", 1)?;
            }
            state.follow_from(&page.reached)?;
            state.set_number("changed_ms_coming", signed(latest_ms))?;
            state.set_number("batch_open", 1)
        })
    }

    /// The folders whose whole content is to be asked for before the batch is whole.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn listings_wanted(&self) -> Result<Vec<u64>, StateError> {
        let mut reached = HashMap::new();
        let mut wanted = Vec::new();
        for node in self.ids("SELECT node FROM arrivals WHERE list_below = 1 AND gone = 0", &[])? {
            if self.reach(node, &mut reached)? == Reach::Root
                && let Some(facts) = self.remote_facts(node)?
            {
                wanted.push(facts.entry);
            }
        }
        Ok(wanted)
    }

    /// Takes in a page of what is below a folder; `last`: that was all.
    ///
    /// # Errors
    /// If the file cannot be written; then nothing was taken in.
    pub fn apply_listing(
        &mut self,
        folder: u64,
        entries: &[v1::Entry],
        last: bool,
    ) -> Result<(), StateError> {
        self.transaction(|state| {
            for entry in entries {
                let node = state.take_entry(entry)?;
                state.arrived(node, false, false)?;
            }
            if last && let Some(node) = state.node_of_entry(folder)? {
                let mut statement =
                    state.connection.prepare_cached("UPDATE arrivals SET list_below = 0 WHERE node = ?")?;
                statement.execute([id(node)])?;
            }
            Ok(())
        })
    }

    /// Ends a batch, all of whose pages and listings are in: drops what is gone or no longer below the root.
    ///
    /// # Errors
    /// If the file cannot be written; then the batch is still open.
    pub fn finish_batch(&mut self) -> Result<Finished, StateError> {
        self.transaction(|state| {
            let gone = state.ids("SELECT node FROM arrivals WHERE gone = 1", &[])?;
            let relist = state.number("relist")?.unwrap_or(0) != 0;
            if gone.contains(&ROOT) || (relist && !state.is_root_told()?) {
                return Ok(Finished::RootGone);
            }
            let mut adrift = Vec::new();
            for node in gone {
                adrift.extend(state.drop_remote(node)?);
            }
            let mut reached = HashMap::new();
            for node in state.ids("SELECT node FROM arrivals WHERE gone = 0", &[])? {
                match state.reach(node, &mut reached)? {
                    Reach::Root => {}
                    Reach::Nowhere => adrift.extend(state.drop_remote(node)?),
                    Reach::Adrift => adrift.push(node),
                }
            }
            if relist {
                adrift.extend(state.sweep()?);
                if let Some(common) = state.went_back()? {
                    state.rejoin(common)?;
                }
            }
            state.forget_strangers()?;
            let to_be_listed = state.ids("SELECT node FROM arrivals WHERE list_below = 1", &[])?;
            state.connection.execute_batch("DELETE FROM arrivals;")?;
            // The next batch tells how it is.
            for node in adrift {
                state.arrived(node, false, false)?;
            }
            // Not listed: adrift, or an answer put it there after the listings were asked for.
            for node in to_be_listed {
                if state.side(Side::Remote, node)?.is_some() {
                    state.arrived(node, false, true)?;
                }
            }
            // Pages read before these deletes have been taken in, or never will be.
            let mut statement = state.connection.prepare_cached("DELETE FROM deleted WHERE at_cursor < ?")?;
            statement.execute([state.number("sequence")?.unwrap_or(0)])?;
            drop(statement);
            let latest_ms = state.number("changed_ms_coming")?.unwrap_or(0);
            state.set_number("changed_ms_max", latest_ms)?;
            state.set_number("relist", 0)?;
            state.set_number("root_doubted", 0)?;
            state.set_number("batch_open", 0)?;
            Ok(Finished::Whole)
        })
    }

    /// Whether the batch tells of something as gone that is not known here. It may be a folder that the root is in:
    /// then what is below it makes no news of its own.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn is_root_doubted(&self) -> Result<bool, StateError> {
        Ok(self.number("root_doubted")?.unwrap_or(0) != 0)
    }

    /// Whether this batch tells of the root, which a journal from its start does, but for the top of the tree.
    fn is_root_told(&self) -> Result<bool, StateError> {
        let whole = self.number("relist_whole")?.unwrap_or(0) != 0;
        Ok(whole || !self.ids("SELECT node FROM arrivals WHERE node = 1 AND gone = 0", &[])?.is_empty())
    }

    /// Whether an entry, or the folder that it is in, is known.
    fn is_near(&self, entry: &v1::Entry) -> Result<bool, StateError> {
        Ok(self.node_of_entry(entry.parent)?.is_some() || self.node_of_entry(entry.id)?.is_some())
    }

    fn is_there(&self, entry: u64) -> Result<bool, StateError> {
        match self.node_of_entry(entry)? {
            Some(node) => Ok(self.side(Side::Remote, node)?.is_some()),
            None => Ok(false),
        }
    }

    fn arrived(&self, node: NodeId, gone: bool, list_below: bool) -> Result<(), StateError> {
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO arrivals (node, gone, list_below) VALUES (?, ?, ?) ON CONFLICT (node) DO UPDATE SET \
             gone = excluded.gone, list_below = MAX(list_below, excluded.list_below)",
        )?;
        statement.execute(params![id(node), gone, list_below])?;
        Ok(())
    }

    /// Takes in one entry as the server says it is, unless something newer is known. Gives its node.
    pub(super) fn take_entry(&self, entry: &v1::Entry) -> Result<NodeId, StateError> {
        let parent = self.node_or_new(entry.parent)?;
        let node = self.node_or_new(entry.id)?;
        if node == ROOT || self.is_stale(node, entry)? {
            return Ok(node);
        }
        if let Some(value) = node_of(entry, parent) {
            self.set_side(Side::Remote, node, Some(value))?;
            let facts = RemoteFacts {
                entry: entry.id,
                version: entry.version,
                sequence: entry.sequence,
                mtime_ns: entry.mtime_ns,
            };
            self.set_remote_facts(node, Some(facts))?;
        }
        Ok(node)
    }

    fn is_stale(&self, node: NodeId, entry: &v1::Entry) -> Result<bool, StateError> {
        if self.remote_facts(node)?.is_some_and(|facts| facts.sequence > entry.sequence) {
            return Ok(true);
        }
        Ok(self.deleted_at(entry.id)?.is_some_and(|deleted| deleted >= entry.sequence))
    }

    /// The last number of an entry that a call of this device deleted not long ago.
    fn deleted_at(&self, entry: u64) -> Result<Option<u64>, StateError> {
        let mut statement = self.connection.prepare_cached("SELECT sequence FROM deleted WHERE entry = ?")?;
        let deleted = statement.query_row([signed(entry)], |row| row.get::<_, i64>(0)).optional()?;
        Ok(deleted.map(unsigned))
    }

    /// The node of an entry; one that is not known yet gets a row that is in no tree.
    fn node_or_new(&self, entry: u64) -> Result<NodeId, StateError> {
        if let Some(node) = self.node_of_entry(entry)? {
            return Ok(node);
        }
        let node = self.new_node();
        let mut statement = self.connection.prepare_cached("INSERT INTO nodes (id, entry) VALUES (?, ?)")?;
        statement.execute(params![id(node), signed(entry)])?;
        // Should it prove to be nowhere, the end of the batch finds it.
        self.arrived(node, false, false)?;
        Ok(node)
    }

    /// Remembers that a call deleted an entry, whose last number was `sequence`: pages that were read before may yet
    /// say that it is there.
    pub(super) fn remember_deleted(&self, entry: u64, sequence: u64) -> Result<(), StateError> {
        let reached = self.number("sequence")?.unwrap_or(0);
        let mut statement = self
            .connection
            .prepare_cached("INSERT OR REPLACE INTO deleted (entry, sequence, at_cursor) VALUES (?, ?, ?)")?;
        statement.execute(params![signed(entry), signed(sequence), reached])?;
        Ok(())
    }

    /// Keeps what a call made from being swept away by a listing that began before.
    pub(super) fn keep_in_batch(&self, node: NodeId) -> Result<(), StateError> {
        let mut statement = self.connection.prepare_cached(
            "INSERT OR IGNORE INTO arrivals (node, gone, list_below) \
             SELECT ?, 0, 0 WHERE (SELECT value FROM meta WHERE key = 'batch_open') = 1",
        )?;
        statement.execute([id(node)])?;
        Ok(())
    }

    /// Sees to it that the next batch finds out where a node is, if the answer of a call, which is newer than what the
    /// journal has told, put it where nothing is known to be.
    pub(super) fn doubt_place(&self, node: NodeId) -> Result<(), StateError> {
        match self.reach(node, &mut HashMap::new())? {
            Reach::Adrift => self.keep_for_next_batch(node),
            Reach::Root | Reach::Nowhere => Ok(()),
        }
    }

    /// Where walking up from a node ends.
    fn reach(&self, node: NodeId, reached: &mut HashMap<NodeId, Reach>) -> Result<Reach, StateError> {
        let mut walked = HashSet::new();
        let mut next = node;
        let reach = loop {
            if next == ROOT {
                break Reach::Root;
            }
            if let Some(known) = reached.get(&next) {
                break *known;
            }
            if !walked.insert(next) {
                break Reach::Adrift;
            }
            match self.side(Side::Remote, next)? {
                Some(node) if walked.len() <= DEPTH_MAX => next = node.place.parent,
                _ => break Reach::Nowhere,
            }
        };
        let ahead = reach == Reach::Nowhere && self.is_ahead_of_journal(&walked)?;
        let reach = if ahead { Reach::Adrift } else { reach };
        reached.extend(walked.into_iter().map(|node| (node, reach)));
        Ok(reach)
    }

    /// Whether something newer is known of one of these than the journal has told.
    fn is_ahead_of_journal(&self, nodes: &HashSet<NodeId>) -> Result<bool, StateError> {
        let told = unsigned(self.number("sequence")?.unwrap_or(0));
        for node in nodes {
            if self.remote_facts(*node)?.is_some_and(|facts| facts.sequence > told) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes a node and what is below it, as the journal says; gives what is there by an answer that is newer than that,
    /// and stays.
    fn drop_remote(&self, node: NodeId) -> Result<Vec<NodeId>, StateError> {
        if self.side(Side::Remote, node)?.is_none() {
            return Ok(Vec::new());
        }
        let told = unsigned(self.number("sequence")?.unwrap_or(0));
        let mut newer = Vec::new();
        let mut pending = vec![node];
        while let Some(next) = pending.pop() {
            if next == ROOT {
                return Err(StateError::Damaged("the root lies below another node".to_owned()));
            }
            if self.remote_facts(next)?.is_some_and(|facts| facts.sequence > told) {
                newer.push(next);
                continue;
            }
            pending.extend(self.side_children(Side::Remote, next)?);
            self.set_side(Side::Remote, next, None)?;
        }
        Ok(newer)
    }

    /// Has the end of the next batch look where a node is; what is told of it before holds.
    pub(super) fn keep_for_next_batch(&self, node: NodeId) -> Result<(), StateError> {
        let mut statement = self
            .connection
            .prepare_cached("INSERT OR IGNORE INTO arrivals (node, gone, list_below) VALUES (?, 0, 0)")?;
        statement.execute([id(node)])?;
        Ok(())
    }

    /// Has the next batch list what is below a folder.
    pub(super) fn list_in_next_batch(&self, node: NodeId) -> Result<(), StateError> {
        match self.side(Side::Remote, node)? {
            Some(Node { kind: Kind::Folder, .. }) => self.arrived(node, false, true),
            _ => Ok(()),
        }
    }

    /// Drops what a listing of everything has not told of; gives what is below it and newer, and stays.
    fn sweep(&self) -> Result<Vec<NodeId>, StateError> {
        let unseen = self.ids(
            "SELECT id FROM nodes WHERE id <> 1 AND id NOT IN (SELECT node FROM arrivals) AND \
             ((kind IS NOT NULL AND remote = 0) OR EXISTS \
              (SELECT 1 FROM differences WHERE node = id AND tree = 1 AND kind IS NOT NULL))",
            &[],
        )?;
        let mut newer = Vec::new();
        for node in unseen {
            newer.extend(self.drop_remote(node)?);
        }
        Ok(newer)
    }

    /// Forgets entries that were only mentioned, as somebody's folder or outside the root.
    fn forget_strangers(&self) -> Result<(), StateError> {
        self.connection
            .prepare_cached(
                "DELETE FROM nodes WHERE id IN (SELECT node FROM arrivals) AND kind IS NULL AND remote = 0 \
                 AND local = 0 AND NOT EXISTS (SELECT 1 FROM differences WHERE node = id)",
            )?
            .execute([])?;
        Ok(())
    }
}

/// An entry as a node; `None` for what this version cannot hold (a kind that it does not know, no name).
pub(super) fn node_of(entry: &v1::Entry, parent: NodeId) -> Option<Node> {
    if let Err(error) = check_name(&entry.name) {
        tracing::warn!(entry = entry.id, %error, "an entry with a name that is none is left out");
        return None;
    }
    let kind = match entry.kind() {
        v1::EntryKind::Folder => Kind::Folder,
        v1::EntryKind::Symlink => Kind::Symlink(entry.symlink_target.to_vec()),
        v1::EntryKind::File if entry.size == 0 => Kind::File(empty_file()),
        v1::EntryKind::File => Kind::File(FileContent {
            content: ContentId::from_slice(&entry.content).ok()?,
            size: entry.size,
            cutter: wire::cutter_from_wire(entry.cutter)?,
        }),
        v1::EntryKind::Unspecified => return None,
    };
    Some(Node {
        place: Place { parent, name: entry.name.clone() },
        kind,
        attributes: Attributes { mode: entry.mode & 0o7777, mtime_ns: entry.mtime_ns },
    })
}
