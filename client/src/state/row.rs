//! Between rows and values.

use engine::cutter::Cutter;
use engine::ids::ContentId;
use engine::manifest::ContentHasher;
use rusqlite::types::Type;
use rusqlite::{Row, params_from_iter};

use crate::local::model::{Identity, Stamp};
use crate::planner::model::{Attributes, FileContent, Kind, Node, NodeId, Place, ROOT};

/// The bits of an unsigned number as SQLite keeps them.
pub(super) fn signed(value: u64) -> i64 {
    i64::from_ne_bytes(value.to_ne_bytes())
}

/// Back from [`signed`].
pub(super) fn unsigned(value: i64) -> u64 {
    u64::from_ne_bytes(value.to_ne_bytes())
}

pub(super) fn id(node: NodeId) -> i64 {
    signed(node.0)
}

pub(super) fn cutter_number(cutter: Cutter) -> i64 {
    match cutter {
        Cutter::Cdc64k => 1,
        Cutter::Cdc256k => 2,
        Cutter::Cdc1m => 3,
        Cutter::Fixed4m => 4,
    }
}

pub(super) fn cutter_of(number: i64, column: usize) -> rusqlite::Result<Cutter> {
    match number {
        1 => Ok(Cutter::Cdc64k),
        2 => Ok(Cutter::Cdc256k),
        3 => Ok(Cutter::Cdc1m),
        4 => Ok(Cutter::Fixed4m),
        _ => Err(rusqlite::Error::IntegralValueOutOfRange(column, number)),
    }
}

pub(super) fn content_of(bytes: &[u8], column: usize) -> rusqlite::Result<ContentId> {
    ContentId::from_slice(bytes)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, Box::new(error)))
}

fn mode_of(number: i64, column: usize) -> rusqlite::Result<u32> {
    u32::try_from(number).map_err(|_too_large| rusqlite::Error::IntegralValueOutOfRange(column, number))
}

/// Reads a node from nine columns, from `at` on.
pub(super) fn read_node(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Node>> {
    let kind = match row.get::<_, Option<i64>>(at + 2)? {
        None => return Ok(None),
        Some(0) => Kind::Folder,
        Some(1) => Kind::File(FileContent {
            content: content_of(row.get_ref(at + 3)?.as_blob()?, at + 3)?,
            size: unsigned(row.get(at + 4)?),
            cutter: cutter_of(row.get(at + 5)?, at + 5)?,
        }),
        Some(2) => Kind::Symlink(row.get(at + 6)?),
        Some(other) => return Err(rusqlite::Error::IntegralValueOutOfRange(at + 2, other)),
    };
    Ok(Some(Node {
        place: Place { parent: NodeId(unsigned(row.get(at)?)), name: row.get(at + 1)? },
        kind,
        attributes: Attributes { mode: mode_of(row.get(at + 7)?, at + 7)?, mtime_ns: row.get(at + 8)? },
    }))
}

/// Reads a stamp from six columns, from `at` on.
pub(super) fn read_stamp(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Stamp>> {
    let Some(inode) = row.get::<_, Option<i64>>(at)? else { return Ok(None) };
    Ok(Some(Stamp {
        identity: Identity { inode: unsigned(inode), born_ns: row.get(at + 1)? },
        size: unsigned(row.get(at + 2)?),
        mtime_ns: row.get(at + 3)?,
        ctime_ns: row.get(at + 4)?,
        mode: mode_of(row.get(at + 5)?, at + 5)?,
    }))
}

/// A node's nine columns as parameters; all null for none.
pub(super) fn node_parameters(node: Option<&Node>) -> [rusqlite::types::Value; 9] {
    use rusqlite::types::Value;
    let Some(node) = node else { return std::array::from_fn(|_| Value::Null) };
    let (kind, content, size, cutter, target) = match &node.kind {
        Kind::Folder => (0, Value::Null, Value::Null, Value::Null, Value::Null),
        Kind::File(file) => (
            1,
            Value::Blob(file.content.as_bytes().to_vec()),
            Value::Integer(signed(file.size)),
            Value::Integer(cutter_number(file.cutter)),
            Value::Null,
        ),
        Kind::Symlink(target) => (2, Value::Null, Value::Null, Value::Null, Value::Blob(target.clone())),
    };
    [
        Value::Integer(id(node.place.parent)),
        Value::Text(node.place.name.clone()),
        Value::Integer(kind),
        content,
        size,
        cutter,
        target,
        Value::Integer(i64::from(node.attributes.mode)),
        Value::Integer(node.attributes.mtime_ns),
    ]
}

/// A statement's parameters: some numbers, then a node's columns.
pub(super) fn with_node(numbers: &[i64], node: Option<&Node>) -> impl rusqlite::Params + use<> {
    let numbers: Vec<_> = numbers.iter().map(|number| rusqlite::types::Value::Integer(*number)).collect();
    params_from_iter(numbers.into_iter().chain(node_parameters(node)))
}

/// As the trees keep it: without what is not compared, so that equal nodes are equal values.
pub(super) fn normalized(node_id: NodeId, mut node: Node) -> Node {
    match &mut node.kind {
        Kind::Folder => node.attributes.mtime_ns = 0,
        Kind::Symlink(_) => node.attributes = Attributes { mode: 0, mtime_ns: 0 },
        Kind::File(file) if file.size == 0 => *file = empty_file(),
        Kind::File(_) => {}
    }
    if node_id == ROOT { root_node() } else { node }
}

/// The content of no bytes: one, however it is said to be cut.
pub(super) fn empty_file() -> FileContent {
    FileContent { content: ContentHasher::new().finish(), size: 0, cutter: Cutter::Cdc64k }
}

/// The root, as it is in all three trees.
pub(super) fn root_node() -> Node {
    Node {
        place: Place { parent: NodeId(0), name: String::new() },
        kind: Kind::Folder,
        attributes: Attributes { mode: 0o755, mtime_ns: 0 },
    }
}
