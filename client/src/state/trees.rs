//! The three trees: asked as the planner asks, and changed node by node.
//!
//! Changes are to be made within a transaction.

use std::cell::Cell;

use rusqlite::{OptionalExtension, params};

use super::database::State;
use super::error::StateError;
use super::row::{id, normalized, read_node, read_stamp, signed, unsigned, with_node};
use super::schema::node_columns;
use crate::local::model::{LocalRecord, Stamp};
use crate::planner::model::{Kind, Node, NodeId, ROOT, Tree};
use crate::planner::transition::settled;

/// One of the trees that are kept as differences from `synced`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The server's.
    Remote,
    /// The disk's.
    Local,
}

impl Side {
    pub(super) fn number(self) -> i64 {
        match self {
            Self::Remote => 1,
            Self::Local => 2,
        }
    }

    fn select_at(self) -> &'static str {
        match self {
            Self::Remote => {
                "SELECT id FROM nodes WHERE parent = ? AND name = ? AND kind IS NOT NULL AND remote = 0"
            }
            Self::Local => {
                "SELECT id FROM nodes WHERE parent = ? AND name = ? AND kind IS NOT NULL AND local = 0"
            }
        }
    }

    fn select_children(self) -> &'static str {
        match self {
            Self::Remote => "SELECT id FROM nodes WHERE parent = ? AND kind IS NOT NULL AND remote = 0",
            Self::Local => "SELECT id FROM nodes WHERE parent = ? AND kind IS NOT NULL AND local = 0",
        }
    }

    fn mark(self) -> &'static str {
        match self {
            Self::Remote => "UPDATE nodes SET remote = ? WHERE id = ?",
            Self::Local => "UPDATE nodes SET local = ? WHERE id = ?",
        }
    }
}

/// What is known of a node on the server beside its place in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteFacts {
    /// Its id there.
    pub entry: u64,
    /// The current version, of a file.
    pub version: u64,
    /// Its latest number in the journal.
    pub sequence: u64,
    /// Its modification time, of whatever kind it is.
    pub mtime_ns: i64,
}

/// A row of `nodes`, as far as the trees go.
#[derive(Debug)]
pub(super) struct NodeRow {
    remote_differs: bool,
    local_differs: bool,
    synced: Option<Node>,
}

impl NodeRow {
    fn differs(&self, side: Side) -> bool {
        match side {
            Side::Remote => self.remote_differs,
            Side::Local => self.local_differs,
        }
    }
}

/// The row that was read last.
#[derive(Debug, Default)]
pub(super) enum KeptRow {
    /// None is kept: it may be changed at any time.
    #[default]
    Never,
    /// None yet.
    None,
    /// There is this one, or none with this id.
    Some(NodeId, Option<NodeRow>),
}

/// The nodes that are not the same in all three trees.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DirtyNodes {
    /// Those that are folders somewhere, ascending.
    pub folders: Vec<NodeId>,
    /// All others, ascending.
    pub others: Vec<NodeId>,
}

/// `synced`, as the planner asks for it.
#[derive(Clone, Copy, Debug)]
pub struct SyncedTree<'a>(pub &'a State);

/// `remote` or `local`, as the planner asks for it.
#[derive(Clone, Copy, Debug)]
pub struct SideTree<'a>(pub &'a State, pub Side);

impl Tree for SyncedTree<'_> {
    fn node(&self, id: NodeId) -> Option<Node> {
        self.0.answer(self.0.synced(id))
    }

    fn at(&self, parent: NodeId, name: &str) -> Option<NodeId> {
        self.0.answer(self.0.synced_at(parent, name))
    }

    fn children(&self, parent: NodeId) -> Vec<NodeId> {
        self.0.answer(self.0.synced_children(parent))
    }
}

impl Tree for SideTree<'_> {
    fn node(&self, id: NodeId) -> Option<Node> {
        self.0.answer(self.0.side(self.1, id))
    }

    fn at(&self, parent: NodeId, name: &str) -> Option<NodeId> {
        self.0.answer(self.0.side_at(self.1, parent, name))
    }

    fn children(&self, parent: NodeId) -> Vec<NodeId> {
        self.0.answer(self.0.side_children(self.1, parent))
    }
}

impl State {
    /// A node as both sides last agreed on it.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn synced(&self, node: NodeId) -> Result<Option<Node>, StateError> {
        self.with_row(node, |row| row.and_then(|row| row.synced.clone()))
    }

    /// Asks about a node's row, if there is one. While [`State::reading`], it is kept until another one is asked for.
    fn with_row<T>(&self, node: NodeId, ask: impl FnOnce(Option<&NodeRow>) -> T) -> Result<T, StateError> {
        if let KeptRow::Some(kept, row) = &*self.row_kept.borrow()
            && *kept == node
        {
            return Ok(ask(row.as_ref()));
        }
        let row = self.row(node)?;
        let answer = ask(row.as_ref());
        let mut kept = self.row_kept.borrow_mut();
        if !matches!(*kept, KeptRow::Never) {
            *kept = KeptRow::Some(node, row);
        }
        Ok(answer)
    }

    fn row(&self, node: NodeId) -> Result<Option<NodeRow>, StateError> {
        let mut statement = self.connection.prepare_cached(concat!(
            "SELECT remote, local, ",
            node_columns!(),
            " FROM nodes WHERE id = ?"
        ))?;
        let row = statement.query_row([id(node)], |row| {
            Ok(NodeRow {
                remote_differs: row.get::<_, i64>(0)? != 0,
                local_differs: row.get::<_, i64>(1)? != 0,
                synced: read_node(row, 2)?,
            })
        });
        Ok(row.optional()?)
    }

    fn synced_at(&self, parent: NodeId, name: &str) -> Result<Option<NodeId>, StateError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id FROM nodes WHERE parent = ? AND name = ? AND kind IS NOT NULL")?;
        let found = statement.query_row(params![id(parent), name], |row| row.get::<_, i64>(0)).optional()?;
        Ok(found.map(|node| NodeId(unsigned(node))))
    }

    fn synced_children(&self, parent: NodeId) -> Result<Vec<NodeId>, StateError> {
        self.ids("SELECT id FROM nodes WHERE parent = ? AND kind IS NOT NULL", &[id(parent)])
    }

    /// A node as it is on one side.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn side(&self, side: Side, node: NodeId) -> Result<Option<Node>, StateError> {
        let found = self.with_row(node, |row| match row {
            None => Some(None),
            Some(row) => (!row.differs(side)).then(|| row.synced.clone()),
        })?;
        match found {
            Some(as_synced) => Ok(as_synced),
            None => self.difference(side, node),
        }
    }

    fn difference(&self, side: Side, node: NodeId) -> Result<Option<Node>, StateError> {
        let mut statement = self.connection.prepare_cached(concat!(
            "SELECT ",
            node_columns!(),
            " FROM differences WHERE node = ? AND tree = ?"
        ))?;
        let found = statement.query_row([id(node), side.number()], |row| read_node(row, 0)).optional()?;
        found.ok_or_else(|| StateError::Damaged(format!("node {} lacks its difference", node.0)))
    }

    /// What is at a place on one side.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn side_at(&self, side: Side, parent: NodeId, name: &str) -> Result<Option<NodeId>, StateError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT node FROM differences WHERE parent = ? AND name = ? AND tree = ? AND kind IS NOT NULL",
        )?;
        let parameters = params![id(parent), name, side.number()];
        let own = statement.query_row(parameters, |row| row.get::<_, i64>(0)).optional()?;
        if let Some(node) = own {
            return Ok(Some(NodeId(unsigned(node))));
        }
        let mut statement = self.connection.prepare_cached(side.select_at())?;
        let found = statement.query_row(params![id(parent), name], |row| row.get::<_, i64>(0)).optional()?;
        Ok(found.map(|node| NodeId(unsigned(node))))
    }

    /// What is in a folder on one side.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn side_children(&self, side: Side, parent: NodeId) -> Result<Vec<NodeId>, StateError> {
        let mut all = self.ids(side.select_children(), &[id(parent)])?;
        all.extend(self.ids(
            "SELECT node FROM differences WHERE parent = ? AND tree = ? AND kind IS NOT NULL",
            &[id(parent), side.number()],
        )?);
        all.sort_unstable();
        Ok(all)
    }

    pub(super) fn ids(&self, sql: &str, parameters: &[i64]) -> Result<Vec<NodeId>, StateError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(rusqlite::params_from_iter(parameters), |row| row.get::<_, i64>(0))?;
        let ids: Result<Vec<_>, _> = rows.map(|node| node.map(|node| NodeId(unsigned(node)))).collect();
        Ok(ids?)
    }

    /// The nodes that are not the same in all three trees, ascending.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn dirty(&self) -> Result<Vec<NodeId>, StateError> {
        self.ids("SELECT DISTINCT node FROM differences ORDER BY node", &[])
    }

    /// The same, folders apart.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn dirty_by_kind(&self) -> Result<DirtyNodes, StateError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT node, MAX(COALESCE(kind, (SELECT kind FROM nodes WHERE id = node), 1) = 0) \
             FROM differences GROUP BY node ORDER BY node",
        )?;
        let mut rows = statement.query([])?;
        let mut dirty = DirtyNodes::default();
        while let Some(row) = rows.next()? {
            let node = NodeId(unsigned(row.get(0)?));
            if row.get(1)? { dirty.folders.push(node) } else { dirty.others.push(node) }
        }
        Ok(dirty)
    }

    /// What is at a path below the root on one side, names with `/` between.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn node_at_path(&self, side: Side, path: &str) -> Result<Option<NodeId>, StateError> {
        let mut at = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            match self.side_at(side, at, name)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// How many nodes both sides agree on, but for the root.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn synced_count(&self) -> Result<u64, StateError> {
        if let Some(count) = self.synced_counted.get() {
            return Ok(count);
        }
        let count: i64 = self.connection.query_row(
            "SELECT COUNT(*) FROM nodes INDEXED BY nodes_place WHERE kind IS NOT NULL",
            [],
            |row| row.get(0),
        )?;
        let count = unsigned(count).saturating_sub(1);
        self.synced_counted.set(Some(count));
        Ok(count)
    }

    /// Says how a node is on one side. Its row is made if there is none, and goes once it is nowhere.
    pub(super) fn set_side(&self, side: Side, node: NodeId, value: Option<Node>) -> Result<(), StateError> {
        let value = value.map(|value| normalized(node, value));
        let row = match self.row(node)? {
            Some(row) => row,
            None => {
                self.connection.prepare_cached("INSERT INTO nodes (id) VALUES (?)")?.execute([id(node)])?;
                NodeRow { remote_differs: false, local_differs: false, synced: None }
            }
        };
        let (differed, differs) = (row.differs(side), value != row.synced);
        if differs {
            self.write_difference(side, node, value.as_ref())?;
        } else if differed {
            self.delete_difference(side, node)?;
        }
        if differs != differed {
            self.connection.prepare_cached(side.mark())?.execute([i64::from(differs), id(node)])?;
        }
        if value.is_none() {
            if side == Side::Local {
                self.write_stamp(node, None)?;
            }
            self.forget_if_nowhere(node)?;
        }
        Ok(())
    }

    fn write_difference(&self, side: Side, node: NodeId, value: Option<&Node>) -> Result<(), StateError> {
        let mut statement = self.connection.prepare_cached(concat!(
            "INSERT OR REPLACE INTO differences (node, tree, ",
            node_columns!(),
            ") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        ))?;
        statement.execute(with_node(&[id(node), side.number()], value))?;
        Ok(())
    }

    fn delete_difference(&self, side: Side, node: NodeId) -> Result<(), StateError> {
        let mut statement =
            self.connection.prepare_cached("DELETE FROM differences WHERE node = ? AND tree = ?")?;
        statement.execute([id(node), side.number()])?;
        Ok(())
    }

    /// Says how both sides last agreed on a node; what the sides themselves are stays.
    pub(super) fn set_synced(&self, node: NodeId, value: Option<Node>) -> Result<(), StateError> {
        let value = value.map(|value| normalized(node, value));
        let Some(row) = self.row(node)? else { return Ok(()) };
        self.count_synced(row.synced.as_ref(), value.as_ref());
        let mut differ = [0, 0];
        for (differs, side) in differ.iter_mut().zip([Side::Remote, Side::Local]) {
            if row.differs(side) {
                *differs = i64::from(self.difference(side, node)? != value);
                if *differs == 0 {
                    self.delete_difference(side, node)?;
                }
            } else if row.synced != value {
                *differs = 1;
                self.write_difference(side, node, row.synced.as_ref())?;
            }
        }
        let mut statement = self.connection.prepare_cached(
            "UPDATE nodes SET remote = ?2, local = ?3, parent = ?4, name = ?5, kind = ?6, content = ?7, size = ?8, \
             cutter = ?9, target = ?10, mode = ?11, mtime = ?12 WHERE id = ?1",
        )?;
        statement.execute(with_node(&[id(node), differ[0], differ[1]], value.as_ref()))?;
        if value.is_none() { self.forget_if_nowhere(node) } else { Ok(()) }
    }

    /// Keeps the counts of what both sides agree on, once they were counted.
    fn count_synced(&self, before: Option<&Node>, after: Option<&Node>) {
        let is_file = |node: Option<&Node>| node.is_some_and(|node| matches!(node.kind, Kind::File(_)));
        let counted = |count: &Cell<Option<u64>>, before: bool, after: bool| {
            count.set(count.get().map(|count| count + u64::from(after) - u64::from(before)));
        };
        counted(&self.synced_counted, before.is_some(), after.is_some());
        counted(&self.files_counted, is_file(before), is_file(after));
    }

    /// Makes `synced` say what both sides agree on of this node, part by part.
    pub(super) fn settle(&self, node: NodeId) -> Result<(), StateError> {
        let remote = self.side(Side::Remote, node)?;
        let local = self.side(Side::Local, node)?;
        let synced = self.synced(node)?;
        let settled = settled(remote.as_ref(), local.as_ref(), synced.as_ref());
        if settled == synced { self.forget_if_nowhere(node) } else { self.set_synced(node, settled) }
    }

    /// Removes what is on one side at and below a node; gives all nodes that it was.
    pub(super) fn remove_below(&self, side: Side, node: NodeId) -> Result<Vec<NodeId>, StateError> {
        let mut removed = Vec::new();
        let mut pending = vec![node];
        while let Some(next) = pending.pop() {
            if next == ROOT {
                return Err(StateError::Damaged("the root lies below another node".to_owned()));
            }
            pending.extend(self.side_children(side, next)?);
            self.set_side(side, next, None)?;
            removed.push(next);
        }
        Ok(removed)
    }

    fn forget_if_nowhere(&self, node: NodeId) -> Result<(), StateError> {
        // Not in synced, and absent or the same (so absent as well) on each side.
        let mut statement = self.connection.prepare_cached(
            "DELETE FROM nodes WHERE id = ?1 AND kind IS NULL AND NOT EXISTS \
             (SELECT 1 FROM differences WHERE node = ?1 AND kind IS NOT NULL)",
        )?;
        if statement.execute([id(node)])? > 0 {
            self.connection.prepare_cached("DELETE FROM differences WHERE node = ?")?.execute([id(node)])?;
            self.connection.prepare_cached("DELETE FROM uploads WHERE node = ?")?.execute([id(node)])?;
        }
        Ok(())
    }

    /// What is known of a node on the server.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn remote_facts(&self, node: NodeId) -> Result<Option<RemoteFacts>, StateError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT entry, version, sequence, remote_mtime FROM nodes WHERE id = ?")?;
        let facts = statement
            .query_row([id(node)], |row| {
                let Some(entry) = row.get::<_, Option<i64>>(0)? else { return Ok(None) };
                Ok(Some(RemoteFacts {
                    entry: unsigned(entry),
                    version: unsigned(row.get(1)?),
                    sequence: unsigned(row.get(2)?),
                    mtime_ns: row.get(3)?,
                }))
            })
            .optional()?;
        Ok(facts.flatten())
    }

    pub(super) fn set_remote_facts(
        &self,
        node: NodeId,
        facts: Option<RemoteFacts>,
    ) -> Result<(), StateError> {
        let mut statement = self.connection.prepare_cached(
            "UPDATE nodes SET entry = ?, version = ?, sequence = ?, remote_mtime = ? WHERE id = ?",
        )?;
        let (entry, version, sequence, mtime_ns) = match facts {
            Some(facts) => {
                (Some(signed(facts.entry)), signed(facts.version), signed(facts.sequence), facts.mtime_ns)
            }
            None => (None, 0, 0, 0),
        };
        statement.execute(params![entry, version, sequence, mtime_ns, id(node)])?;
        Ok(())
    }

    /// The node of an entry of the server.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn node_of_entry(&self, entry: u64) -> Result<Option<NodeId>, StateError> {
        let mut statement = self.connection.prepare_cached("SELECT id FROM nodes WHERE entry = ?")?;
        let found = statement.query_row([signed(entry)], |row| row.get::<_, i64>(0)).optional()?;
        Ok(found.map(|node| NodeId(unsigned(node))))
    }

    /// A node as it was last seen on the disk.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn local_record(&self, node: NodeId) -> Result<Option<LocalRecord>, StateError> {
        let Some(value) = self.side(Side::Local, node)? else { return Ok(None) };
        let mut statement = self.connection.prepare_cached(
            "SELECT inode, born, stamp_size, stamp_mtime, stamp_ctime, stamp_mode FROM nodes WHERE id = ?",
        )?;
        let stamp = statement.query_row([id(node)], |row| read_stamp(row, 0)).optional()?.flatten();
        let record = |stamp| LocalRecord {
            node,
            place: value.place,
            kind: value.kind,
            attributes: value.attributes,
            stamp,
        };
        Ok(stamp.map(record))
    }

    pub(super) fn write_stamp(&self, node: NodeId, stamp: Option<Stamp>) -> Result<(), StateError> {
        let mut statement = self.connection.prepare_cached(
            "UPDATE nodes SET inode = ?, born = ?, stamp_size = ?, stamp_mtime = ?, stamp_ctime = ?, \
             stamp_mode = ? WHERE id = ?",
        )?;
        match stamp {
            Some(stamp) => statement.execute(params![
                signed(stamp.identity.inode),
                stamp.identity.born_ns,
                signed(stamp.size),
                stamp.mtime_ns,
                stamp.ctime_ns,
                stamp.mode,
                id(node)
            ])?,
            None => {
                let none = Option::<i64>::None;
                statement.execute(params![none, none, none, none, none, none, id(node)])?
            }
        };
        Ok(())
    }

    /// A node's path below the root on one side, names with `/` between; `None` if it is not there, or on the server
    /// in a circle.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn path(&self, side: Side, node: NodeId) -> Result<Option<String>, StateError> {
        let mut names = Vec::new();
        let mut next = node;
        while next != ROOT {
            let Some(node) = self.side(side, next)? else { return Ok(None) };
            if names.len() >= DEPTH_MAX && side == Side::Remote {
                return Ok(None);
            }
            if names.len() >= DEPTH_MAX {
                return Err(StateError::Damaged("folders form a loop".to_owned()));
            }
            names.push(node.place.name);
            next = node.place.parent;
        }
        names.reverse();
        Ok(Some(names.join("/")))
    }

    /// A node's path on whichever side has it, for people to read.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn shown_path(&self, node: NodeId) -> Result<String, StateError> {
        for side in [Side::Local, Side::Remote] {
            if let Some(path) = self.path(side, node)? {
                return Ok(path);
            }
        }
        Ok(match self.synced(node)? {
            Some(synced) => synced.place.name,
            None => String::new(),
        })
    }
}

/// Folders within one another. The server has at most 256; a local tree may be deeper.
const DEPTH_MAX: usize = 4_096;
