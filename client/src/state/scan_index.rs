//! What a scan asks: the disk as it was known, through a connection of its own, so that a long scan holds up nobody.
//!
//! Answers are as of the moment of each question, not of the scan's start. What changes in between is changed by this
//! program; the session knows it and does not believe what the scan says of it (see [`super::local::Touched`]).

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, OptionalExtension, params};

use super::database::{State, connect_reader};
use super::error::StateError;
use super::row::{id, read_node, read_stamp, signed, unsigned};
use super::schema::node_columns;
use crate::local::model::{Identity, LocalIndex, LocalRecord, NAMES_MAX};
use crate::planner::model::{Kind, Node, NodeId};
use crate::planner::names::swapped;
use crate::planner::transition::same_kind;

/// A node with its number, columns and stamp as `local` has them, from either table.
macro_rules! records {
    ($table:literal, $on:literal, $where:literal) => {
        concat!(
            "SELECT n.id, ",
            $table,
            ".parent, ",
            $table,
            ".name, ",
            $table,
            ".kind, ",
            $table,
            ".content, ",
            $table,
            ".size, ",
            $table,
            ".cutter, ",
            $table,
            ".target, ",
            $table,
            ".mode, ",
            $table,
            ".mtime, ",
            "n.inode, n.born, n.stamp_size, n.stamp_mtime, n.stamp_ctime, n.stamp_mode FROM ",
            $on,
            " WHERE ",
            $where
        )
    };
}

/// In `synced`, and the same here.
const SAME_BY_ID: &str = records!("n", "nodes n", "n.id = ? AND n.local = 0 AND n.kind IS NOT NULL");
const SAME_AT: &str =
    records!("n", "nodes n", "n.parent = ? AND n.name = ? AND n.local = 0 AND n.kind IS NOT NULL");
const SAME_IN: &str = records!("n", "nodes n", "n.parent = ? AND n.local = 0 AND n.kind IS NOT NULL");
/// Otherwise here than in `synced`.
const OWN_BY_ID: &str = records!(
    "d",
    "differences d JOIN nodes n ON n.id = d.node",
    "d.node = ? AND d.tree = 2 AND d.kind IS NOT NULL"
);
const OWN_AT: &str = records!(
    "d",
    "differences d JOIN nodes n ON n.id = d.node",
    "d.parent = ? AND d.name = ? AND d.tree = 2 AND d.kind IS NOT NULL"
);
const OWN_IN: &str = records!(
    "d",
    "differences d JOIN nodes n ON n.id = d.node",
    "d.parent = ? AND d.tree = 2 AND d.kind IS NOT NULL"
);
/// Otherwise here than in `synced`, which does not have it, and without an id of the server's.
const UNSENT_IN: &str = "SELECT d.node FROM differences d JOIN nodes n ON n.id = d.node
    WHERE d.parent = ? AND d.tree = 2 AND d.kind IS NOT NULL AND n.kind IS NULL AND n.entry IS NULL";
/// A node in `synced`, and whether the server has it otherwise.
const SYNCED: &str = concat!("SELECT remote, ", node_columns!(), " FROM nodes WHERE id = ?");
/// As the server has it then.
const REMOTE: &str = concat!("SELECT ", node_columns!(), " FROM differences WHERE node = ? AND tree = 1");

/// Answers a scan.
#[derive(Debug)]
pub struct ScanIndex {
    connection: Connection,
    next_node: Arc<AtomicU64>,
    failed: RefCell<Option<StateError>>,
}

impl State {
    /// For a scan, to be used on another thread.
    ///
    /// # Errors
    /// If the file cannot be opened once more.
    pub fn scan_index(&self) -> Result<ScanIndex, StateError> {
        Ok(ScanIndex {
            connection: connect_reader(self.file())?,
            next_node: self.node_numbers(),
            failed: RefCell::new(None),
        })
    }
}

impl ScanIndex {
    /// Looks at a state that somebody else may have open.
    ///
    /// # Errors
    /// If there is none, or it cannot be opened.
    pub(crate) fn open(file: &Path) -> Result<Self, StateError> {
        let next_node = Arc::new(AtomicU64::new(0));
        Ok(Self { connection: connect_reader(file)?, next_node, failed: RefCell::new(None) })
    }

    /// Whether all questions were answered. If not, the scan is worth nothing.
    ///
    /// # Errors
    /// The first error that was met.
    pub fn check(&self) -> Result<(), StateError> {
        self.failed.borrow_mut().take().map_or(Ok(()), Err)
    }

    fn answer<T: Default>(&self, result: Result<T, StateError>) -> T {
        result.unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            T::default()
        })
    }

    fn one(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<Option<LocalRecord>, StateError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row(parameters, read_record).optional()?.flatten())
    }

    fn many(&self, sql: &str, parent: NodeId, all: &mut Vec<LocalRecord>) -> Result<(), StateError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        for record in statement.query_map([id(parent)], read_record)? {
            all.extend(record?);
        }
        Ok(())
    }

    fn record(&self, node: NodeId) -> Result<Option<LocalRecord>, StateError> {
        // Both questions of one moment.
        let snapshot = self.connection.unchecked_transaction()?;
        let record = self.record_now(node)?;
        snapshot.finish()?;
        Ok(record)
    }

    fn record_now(&self, node: NodeId) -> Result<Option<LocalRecord>, StateError> {
        match self.one(OWN_BY_ID, [id(node)])? {
            Some(record) => Ok(Some(record)),
            None => self.one(SAME_BY_ID, [id(node)]),
        }
    }

    fn by_identity(&self, identity: Identity) -> Result<Option<LocalRecord>, StateError> {
        let mut statement =
            self.connection.prepare_cached("SELECT id FROM nodes WHERE inode = ? AND born = ?")?;
        let parameters = params![signed(identity.inode), identity.born_ns];
        let found = statement.query_row(parameters, |row| row.get::<_, i64>(0)).optional()?;
        found.map_or(Ok(None), |node| self.record(NodeId(unsigned(node))))
    }

    fn by_identity_all_of(&self, identity: Identity) -> Result<Vec<LocalRecord>, StateError> {
        let most = i64::try_from(NAMES_MAX).unwrap_or(i64::MAX);
        let mut statement =
            self.connection.prepare_cached("SELECT id FROM nodes WHERE inode = ? AND born = ? LIMIT ?")?;
        let parameters = params![signed(identity.inode), identity.born_ns, most];
        let nodes: Vec<i64> =
            statement.query_map(parameters, |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let records = nodes.into_iter().map(|node| self.record(NodeId(unsigned(node))));
        records.filter_map(Result::transpose).collect()
    }

    /// Nodes that are on the disk, by number: those that come after one. For [`LocalIndex`]'s kind of questions only.
    pub(crate) fn nodes_after(&self, after: NodeId, count_max: usize) -> Vec<NodeId> {
        self.answer(self.nodes_after_of(after, count_max))
    }

    fn nodes_after_of(&self, after: NodeId, count_max: usize) -> Result<Vec<NodeId>, StateError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id FROM nodes WHERE id > ? AND inode IS NOT NULL ORDER BY id LIMIT ?")?;
        let most = i64::try_from(count_max).unwrap_or(i64::MAX);
        let nodes = statement.query_map(params![id(after), most], |row| row.get::<_, i64>(0))?;
        let nodes: Vec<i64> = nodes.collect::<rusqlite::Result<_>>()?;
        Ok(nodes.into_iter().map(|node| NodeId(unsigned(node))).collect())
    }

    fn children_of(&self, parent: NodeId) -> Result<Vec<LocalRecord>, StateError> {
        let snapshot = self.connection.unchecked_transaction()?;
        let mut all = Vec::new();
        self.many(SAME_IN, parent, &mut all)?;
        self.many(OWN_IN, parent, &mut all)?;
        snapshot.finish()?;
        all.sort_by(|a, b| a.place.name.cmp(&b.place.name));
        Ok(all)
    }

    fn children_sent_of(&self, parent: NodeId) -> Result<Vec<(LocalRecord, bool)>, StateError> {
        let snapshot = self.connection.unchecked_transaction()?;
        let (mut same, mut own) = (Vec::new(), Vec::new());
        self.many(SAME_IN, parent, &mut same)?;
        self.many(OWN_IN, parent, &mut own)?;
        let mut all: Vec<_> = same.into_iter().map(|record| (record, true)).collect();
        for record in own {
            let (synced, remote) = self.elsewhere(record.node)?;
            let sent = is_sent(&record, synced.as_ref(), remote.as_ref());
            all.push((record, sent));
        }
        snapshot.finish()?;
        Ok(all)
    }

    fn children_unsent_of(&self, parent: NodeId) -> Result<HashSet<NodeId>, StateError> {
        let mut statement = self.connection.prepare_cached(UNSENT_IN)?;
        let nodes = statement.query_map([id(parent)], |row| Ok(NodeId(unsigned(row.get(0)?))))?;
        Ok(nodes.collect::<Result<_, _>>()?)
    }

    fn is_on_server_now(&self, node: NodeId) -> Result<bool, StateError> {
        let snapshot = self.connection.unchecked_transaction()?;
        let here = self.record_now(node)?;
        let (_synced, remote) = self.elsewhere(node)?;
        snapshot.finish()?;
        Ok(here.zip(remote).is_some_and(|(here, remote)| same_kind(&here.kind, &remote.kind)))
    }

    /// A node as both sides last agreed on it, and as the server has it.
    fn elsewhere(&self, node: NodeId) -> Result<(Option<Node>, Option<Node>), StateError> {
        let mut statement = self.connection.prepare_cached(SYNCED)?;
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)? != 0, read_node(row, 1)?));
        let Some((remote_differs, synced)) = statement.query_row([id(node)], row).optional()? else {
            return Ok((None, None));
        };
        if !remote_differs {
            return Ok((synced.clone(), synced));
        }
        let mut statement = self.connection.prepare_cached(REMOTE)?;
        let remote = statement.query_row([id(node)], |row| read_node(row, 0)).optional()?.flatten();
        Ok((synced, remote))
    }

    fn record_at(&self, parent: NodeId, name: &str) -> Result<Option<LocalRecord>, StateError> {
        let snapshot = self.connection.unchecked_transaction()?;
        let record = match self.one(OWN_AT, params![id(parent), name])? {
            Some(record) => Some(record),
            None => self.one(SAME_AT, params![id(parent), name])?,
        };
        snapshot.finish()?;
        Ok(record)
    }
}

/// Whether nothing is lost if what is here goes, as the planner sees it: an edit, and a move that the server has not
/// overruled, live on; attributes alone do not.
fn is_sent(here: &LocalRecord, synced: Option<&Node>, remote: Option<&Node>) -> bool {
    let has_content = |node: Option<&Node>| node.is_some_and(|node| same_kind(&node.kind, &here.kind));
    let Some(synced) = synced else { return has_content(remote) };
    if here.kind == Kind::Folder {
        return synced.kind == Kind::Folder;
    }
    let is_moved = here.place != synced.place && swapped(&here.place.name).is_none();
    let is_overruled = remote.is_some_and(|remote| remote.place != synced.place);
    (has_content(Some(synced)) || has_content(remote)) && (!is_moved || is_overruled)
}

fn read_record(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<LocalRecord>> {
    let (Some(node), Some(stamp)) = (read_node(row, 1)?, read_stamp(row, 10)?) else { return Ok(None) };
    Ok(Some(LocalRecord {
        node: NodeId(unsigned(row.get(0)?)),
        place: node.place,
        kind: node.kind,
        attributes: node.attributes,
        stamp,
    }))
}

impl LocalIndex for ScanIndex {
    fn at(&self, parent: NodeId, name: &str) -> Option<LocalRecord> {
        self.answer(self.record_at(parent, name))
    }

    fn children(&self, parent: NodeId) -> Vec<LocalRecord> {
        self.answer(self.children_of(parent))
    }

    fn children_sent(&self, parent: NodeId) -> Vec<(LocalRecord, bool)> {
        self.answer(self.children_sent_of(parent))
    }

    fn children_unsent(&self, parent: NodeId) -> HashSet<NodeId> {
        self.answer(self.children_unsent_of(parent))
    }

    fn is_on_server(&self, node: NodeId) -> bool {
        self.answer(self.is_on_server_now(node))
    }

    fn by_identity(&self, identity: Identity) -> Option<LocalRecord> {
        self.answer(ScanIndex::by_identity(self, identity))
    }

    fn by_identity_all(&self, identity: Identity) -> Vec<LocalRecord> {
        self.answer(self.by_identity_all_of(identity))
    }

    fn node(&self, node: NodeId) -> Option<LocalRecord> {
        self.answer(self.record(node))
    }

    fn new_node(&mut self) -> NodeId {
        NodeId(self.next_node.fetch_add(1, Ordering::Relaxed))
    }
}
