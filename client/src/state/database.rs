//! The file: opened, checked, moved aside when it is damaged; transactions; single values.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::deletes::CARRIED_OUT;
use super::error::StateError;
use super::row::{root_node, signed, unsigned, with_node};
use super::schema::{CREATE, FROM_1, SCHEMA, node_columns};
use super::trees::KeptRow;
use crate::local::root::RootId;
use crate::planner::model::{NodeId, ROOT};

/// The file's name in the state folder.
pub const FILE_NAME: &str = "state.db";
/// Statements that are kept prepared.
const STATEMENTS_MAX: usize = 128;
/// Kibibytes of pages held in memory by the owner, and by each who reads beside it.
const CACHE_KIB: i64 = 16 * 1024;
const READER_CACHE_KIB: i64 = 4 * 1024;
/// How long another connection's lock is waited for.
const BUSY_TIME_MAX: Duration = Duration::from_secs(10);
/// Pages of the log after which they are copied into the file.
const CHECKPOINT_PAGES: i64 = 2_000;
/// Damaged files that are kept beside the state.
const DAMAGED_KEPT_MAX: usize = 3;

/// The state of one root. One thread owns it.
pub struct State {
    pub(super) connection: Connection,
    path: PathBuf,
    /// The next node's number; shared with those who find nodes on the disk.
    next_node: Arc<AtomicU64>,
    /// How many nodes are in `synced`, once it was counted.
    pub(super) synced_counted: Cell<Option<u64>>,
    /// How many of them are files, once it was counted.
    pub(super) files_counted: Cell<Option<u64>>,
    /// Deletes of files that were carried out.
    pub(super) carried_out: Cell<u64>,
    /// The row read last, while [`State::reading`]: the three trees are asked for one node after another.
    pub(super) row_kept: RefCell<KeptRow>,
    /// The first error met where none can be returned (a planner's question).
    pub(super) failed: RefCell<Option<StateError>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A state, and how it was found.
#[derive(Debug)]
pub struct Opened {
    /// To be used.
    pub state: State,
    /// Why the file that was there was moved aside, and where to.
    pub rebuilt: Option<(String, PathBuf)>,
}

impl State {
    /// Opens the state in a folder; makes it if there is none. A damaged one is moved aside and begun anew. Blocks.
    ///
    /// # Errors
    /// If it is of a later version, or the disk fails.
    pub fn open(folder: &Path) -> Result<Opened, StateError> {
        let path = folder.join(FILE_NAME);
        match Self::open_checked(&path) {
            Ok(state) => Ok(Opened { state, rebuilt: None }),
            Err(StateError::Damaged(reason)) => {
                let aside = move_aside(&path).map_err(|error| StateError::Unusable(error.to_string()))?;
                let state = Self::open_checked(&path)?;
                Ok(Opened { state, rebuilt: Some((reason, aside)) })
            }
            Err(error) => Err(error),
        }
    }

    /// Moves the file aside, which was found damaged while it was in use, and begins anew. Blocks.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn open_anew(folder: &Path) -> Result<Opened, StateError> {
        let path = folder.join(FILE_NAME);
        let aside = move_aside(&path).map_err(|error| StateError::Unusable(error.to_string()))?;
        let state = Self::open_checked(&path)?;
        Ok(Opened { state, rebuilt: Some(("found while it was in use".to_owned(), aside)) })
    }

    fn open_checked(path: &Path) -> Result<Self, StateError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let mut connection = connect(path, flags, CACHE_KIB)?;
        let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(StateError::Unusable(format!("the file system allows no write-ahead log ({mode})")));
        }
        connection.execute_batch(&format!(
            "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; \
             PRAGMA journal_size_limit = 67108864; PRAGMA temp_store = MEMORY;"
        ))?;
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(StateError::Damaged(check));
        }
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        match found {
            0 => create(&mut connection)?,
            1 => connection.execute_batch(FROM_1)?,
            SCHEMA => {}
            _ if found > SCHEMA => return Err(StateError::Newer { found, known: SCHEMA }),
            _ => return Err(StateError::Damaged(format!("it has format {found}"))),
        }
        let highest: i64 = connection
            .query_row("SELECT MAX(id) FROM nodes", [], |row| row.get::<_, Option<i64>>(0))?
            .unwrap_or(1);
        let state = Self {
            connection,
            path: path.to_owned(),
            next_node: Arc::new(AtomicU64::new(0)),
            synced_counted: Cell::new(None),
            files_counted: Cell::new(None),
            carried_out: Cell::new(0),
            row_kept: RefCell::default(),
            failed: RefCell::new(None),
        };
        let reserved = unsigned(state.number("next_node")?.unwrap_or(2));
        state.carried_out.set(unsigned(state.number(CARRIED_OUT)?.unwrap_or(0)));
        state.next_node.store(reserved.max(unsigned(highest) + 1), Ordering::Relaxed);
        Ok(state)
    }

    /// Where the file is.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.path
    }

    /// A number for a new node.
    pub(super) fn new_node(&self) -> NodeId {
        NodeId(self.next_node.fetch_add(1, Ordering::Relaxed))
    }

    /// Where numbers for new nodes come from, for a scan beside this.
    pub(super) fn node_numbers(&self) -> Arc<AtomicU64> {
        self.next_node.clone()
    }

    /// Does `work` in one transaction: all of it or, after an error, nothing.
    ///
    /// # Errors
    /// Those of `work`, and of the commit.
    pub fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let done = work(self).and_then(|value| {
            self.set_number("next_node", signed(self.next_node.load(Ordering::Relaxed)))?;
            self.connection.execute_batch("COMMIT")?;
            Ok(value)
        });
        if done.is_err() {
            self.synced_counted.set(None);
            self.files_counted.set(None);
        }
        if done.is_err() && !self.connection.is_autocommit() {
            // The transaction is gone in any case when the connection is.
            drop(self.connection.execute_batch("ROLLBACK"));
        }
        done
    }

    /// Does `work`, which only reads, in one transaction: the file is locked once for all that it asks.
    ///
    /// # Errors
    /// Those of `work`, or if the file cannot be locked.
    pub fn reading<T>(&self, work: impl FnOnce(&Self) -> Result<T, StateError>) -> Result<T, StateError> {
        self.connection.execute_batch("BEGIN")?;
        *self.row_kept.borrow_mut() = KeptRow::None;
        let done = work(self);
        *self.row_kept.borrow_mut() = KeptRow::Never;
        // Nothing was written: it only unlocks.
        self.connection.execute_batch("COMMIT")?;
        done
    }

    /// A single value.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn number(&self, key: &str) -> Result<Option<i64>, StateError> {
        let mut statement = self.connection.prepare_cached("SELECT value FROM meta WHERE key = ?")?;
        Ok(statement.query_row([key], |row| row.get(0)).optional()?)
    }

    /// Sets a single value.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn set_number(&self, key: &str, value: i64) -> Result<(), StateError> {
        let mut statement =
            self.connection.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)")?;
        statement.execute(params![key, value])?;
        Ok(())
    }

    /// A single value.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn bytes(&self, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        let mut statement = self.connection.prepare_cached("SELECT value FROM meta WHERE key = ?")?;
        Ok(statement.query_row([key], |row| row.get(0)).optional()?)
    }

    /// Sets a single value.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn set_bytes(&self, key: &str, value: &[u8]) -> Result<(), StateError> {
        let mut statement =
            self.connection.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)")?;
        statement.execute(params![key, value])?;
        Ok(())
    }

    /// The first error met since the last call where none could be returned.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self) -> Result<(), StateError> {
        self.failed.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// Keeps an error for [`State::check`], and gives what stands for no answer.
    pub(super) fn answer<T: Default>(&self, result: Result<T, StateError>) -> T {
        result.unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            T::default()
        })
    }

    /// Closes the file, its log copied into it. Blocks.
    ///
    /// # Errors
    /// If that fails; nothing is lost then, the log is read at the next start.
    pub fn close(self) -> Result<(), StateError> {
        self.connection.close().map_err(|(_connection, error)| error.into())
    }
}

/// Which root the state in a folder is of, if there is one that says it. Nothing is made or changed. Blocks.
pub(crate) fn root_id_of_state(folder: &Path) -> Option<RootId> {
    let connection = connect_reader(&folder.join(FILE_NAME)).ok()?;
    let sql = "SELECT value FROM meta WHERE key = 'root_id'";
    let id: Vec<u8> = connection.query_row(sql, [], |row| row.get(0)).ok()?;
    id.try_into().ok().map(RootId)
}

/// Opens one more connection to a state's file, to read.
pub(super) fn connect_reader(path: &Path) -> Result<Connection, StateError> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY, READER_CACHE_KIB)
}

fn connect(path: &Path, flags: OpenFlags, cache_kib: i64) -> Result<Connection, StateError> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIME_MAX)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.execute_batch(&format!("PRAGMA cache_size = -{cache_kib}; PRAGMA trusted_schema = OFF;"))?;
    Ok(connection)
}

fn create(connection: &mut Connection) -> Result<(), StateError> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(CREATE)?;
    transaction.execute(
        concat!("INSERT INTO nodes (id, ", node_columns!(), ") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"),
        with_node(&[signed(ROOT.0)], Some(&root_node())),
    )?;
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()?;
    Ok(())
}

/// Renames a damaged file with its log, so that it can be looked at; older such ones go.
fn move_aside(path: &Path) -> std::io::Result<PathBuf> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let aside = path.with_extension(format!("damaged-{}", now.as_nanos()));
    std::fs::rename(path, &aside)?;
    for log in ["db-wal", "db-shm"] {
        match std::fs::remove_file(path.with_extension(log)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut kept: Vec<PathBuf> = std::fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|end| end.to_string_lossy().starts_with("damaged-")))
        .collect();
    kept.sort();
    for old in kept.iter().rev().skip(DAMAGED_KEPT_MAX) {
        std::fs::remove_file(old)?;
    }
    std::fs::File::open(folder)?.sync_all()?;
    Ok(aside)
}
