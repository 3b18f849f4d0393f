//! The tables. A change of them is a new number, and a step from each earlier one.

/// The number of this schema.
pub(super) const SCHEMA: i64 = 1;

/// The columns of a node in a tree, in the order that `row` reads and writes them. `kind` is null if it is not there.
macro_rules! node_columns {
    () => {
        "parent, name, kind, content, size, cutter, target, mode, mtime"
    };
}
pub(super) use node_columns;

/// Makes all tables.
pub(super) const CREATE: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

-- Each node, as `synced` has it (kind null: it does not), with what is known of it beside the trees.
CREATE TABLE nodes (
    id INTEGER PRIMARY KEY,
    -- On the server: its id, the current version, its latest number in the journal, its time (of whatever kind).
    entry INTEGER,
    version INTEGER NOT NULL DEFAULT 0,
    sequence INTEGER NOT NULL DEFAULT 0,
    remote_mtime INTEGER NOT NULL DEFAULT 0,
    -- 1: `differences` has it for that tree; 0: it is there as in synced.
    remote INTEGER NOT NULL DEFAULT 0,
    local INTEGER NOT NULL DEFAULT 0,
    parent INTEGER, name TEXT, kind INTEGER, content BLOB, size INTEGER, cutter INTEGER, target BLOB,
    mode INTEGER, mtime INTEGER,
    -- On the disk: how it was when last looked at. Null: it is not there.
    inode INTEGER, born INTEGER, stamp_size INTEGER, stamp_mtime INTEGER, stamp_ctime INTEGER,
    stamp_mode INTEGER
);
CREATE INDEX nodes_place ON nodes (parent, name) WHERE kind IS NOT NULL;
CREATE INDEX nodes_entry ON nodes (entry) WHERE entry IS NOT NULL;
CREATE INDEX nodes_inode ON nodes (inode) WHERE inode IS NOT NULL;

-- What is not as in synced. tree: 1 remote, 2 local. kind null: it is not there.
CREATE TABLE differences (
    node INTEGER NOT NULL, tree INTEGER NOT NULL,
    parent INTEGER, name TEXT, kind INTEGER, content BLOB, size INTEGER, cutter INTEGER, target BLOB,
    mode INTEGER, mtime INTEGER,
    PRIMARY KEY (node, tree)
) WITHOUT ROWID;
CREATE INDEX differences_place ON differences (parent, name, tree) WHERE kind IS NOT NULL;

-- The batch of the server's changes that is coming in.
CREATE TABLE arrivals (node INTEGER PRIMARY KEY, gone INTEGER NOT NULL, list_below INTEGER NOT NULL);
-- What was deleted on the server by this device, as of its last number: older news of it are stale.
CREATE TABLE deleted (entry INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, at_cursor INTEGER NOT NULL);

-- Uploads of large files that were begun, to be gone on with.
CREATE TABLE uploads (
    node INTEGER PRIMARY KEY, upload_id BLOB NOT NULL, content BLOB NOT NULL, size INTEGER NOT NULL,
    cutter INTEGER NOT NULL, begun_ms INTEGER NOT NULL
);
-- Splits that rename: written before the rename on disk.
CREATE TABLE splits (node INTEGER PRIMARY KEY, new_node INTEGER NOT NULL, parent INTEGER NOT NULL,
    name_before TEXT NOT NULL, name_after TEXT NOT NULL, inode INTEGER NOT NULL, born INTEGER NOT NULL);
-- Where chunks may be found in local files. A hint: whoever uses one hashes the bytes.
CREATE TABLE chunks (prefix INTEGER NOT NULL, node INTEGER NOT NULL, offset INTEGER NOT NULL,
    size INTEGER NOT NULL, PRIMARY KEY (prefix, node, offset)) WITHOUT ROWID;
-- Folders that are not kept on this device, by the server's id.
CREATE TABLE excluded (entry INTEGER PRIMARY KEY, path TEXT NOT NULL);
CREATE TABLE log (number INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, what INTEGER NOT NULL,
    path TEXT NOT NULL, detail TEXT NOT NULL);
";
