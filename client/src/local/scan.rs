//! Finds out how the disk is, as differences from what was known of it. Blocks.
//!
//! A scan lists folders and compares stamps; only what is new or has another stamp is read. It goes in four steps:
//! folders are listed, and which node each is decided (`folders`); which node each new or changed file is is decided
//! from inodes (`matching`); those are read, by several threads (`contents`); and what is left over is told apart into
//! moved by content, and gone.
//!
//! Invariants:
//! - Nothing is kept per file that has not changed: memory goes with the changes and the largest folder.
//! - [`LocalUpdate::Gone`] is said only if no folder of the scan changed after it was listed: what was moved from a
//!   folder not yet listed into one that was is found by the next scan, not lost. Of what is in a folder that cannot be
//!   read nothing is said.
//! - An inode number that was given anew is not taken for the old file: the time of birth tells, and where there is
//!   none, size and time, and then the content.
//! - What is skipped (unreadable, special, not UTF-8, still changing) keeps the node that it was, also if it was moved to
//!   where it has a name that cannot be sent.

mod contents;
mod folders;
mod holding;
mod hollow;
mod judging;
mod matching;
mod moving;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::disk::DiskError;
use super::hash::HashError;
use super::ignore_rules::IgnoreRules;
use super::model::{LocalIndex, LocalUpdate};
use super::rel::Rel;
use super::root::{Root, RootError};
use super::watch::{Unquiet, Writers};
use crate::planner::model::{NodeId, ROOT};

/// Skipped things that are named; more are only counted.
pub const SKIPPED_MAX: usize = 10_000;
/// Folders whose ignored things are counted one by one; those of more are counted together.
pub const IGNORED_FOLDERS_MAX: usize = 100_000;
/// Threads that read files, at most.
pub const HASH_THREADS_MAX: usize = 8;

/// A folder to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeFolder {
    /// Which.
    pub folder: Rel,
    /// Whether with all folders below it. New and moved folders are always looked at with all below them.
    pub deep: bool,
}

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of the root.
    Whole,
    /// These folders. What is not there any more stands for the folder that it was in.
    Folders(Vec<ScopeFolder>),
}

/// Folders in which something known has a name that cannot be sent. Scans keep it from one to the next: one of other
/// folders looks at these as well, for what it misses may be there. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Misnamed(Arc<Mutex<BTreeSet<Rel>>>);

impl Misnamed {
    fn inner(&self) -> MutexGuard<'_, BTreeSet<Rel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folders(&self) -> BTreeSet<Rel> {
        self.inner().clone()
    }

    /// `all`: there are no others.
    fn keep(&self, mut folders: BTreeSet<Rel>, all: bool) {
        let mut known = self.inner();
        if all {
            *known = folders;
        } else {
            known.append(&mut folders);
        }
    }
}

/// How to scan.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// What is left out unless it is known already.
    pub rules: IgnoreRules,
    /// Ends the scan early.
    pub stop: CancellationToken,
    /// Threads that read files, up to [`HASH_THREADS_MAX`].
    pub hash_threads: usize,
    /// Which files are being written, by the watcher's word: they are left out as still changing.
    pub unquiet: Option<Unquiet>,
    /// Which files may be written without a word of it: what is in their pages is written back before they are read.
    pub writers: Option<Writers>,
    /// What earlier scans found under names that cannot be sent.
    pub misnamed: Misnamed,
    /// Whether a root with nothing in it is believed though there was something: somebody has confirmed it.
    pub empty_allowed: bool,
    /// Whether the file system keeps permission bits ([`Root::probe_modes`]).
    pub takes_modes: bool,
}

impl ScanOptions {
    /// With a thread for each processor.
    #[must_use]
    pub fn new(rules: IgnoreRules, stop: CancellationToken) -> Self {
        let hash_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            rules,
            stop,
            hash_threads,
            unquiet: None,
            writers: None,
            misnamed: Misnamed::default(),
            empty_allowed: false,
            takes_modes: true,
        }
    }
}

/// Why something is not synchronised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The server's names are UTF-8.
    #[error("its name is not UTF-8: rename it")]
    NameNotUtf8,
    /// Too long, or with its path.
    #[error("{0}")]
    Name(String),
    /// It is known, and has a name by now that cannot be sent.
    #[error("{0}; it stays as it was on the server")]
    Held(String),
    /// It is at the place of such a thing.
    #[error("what was here has a name now that cannot be sent: rename that first")]
    InsteadOfHeld,
    /// A pipe, socket or device.
    #[error("it is a pipe, socket or device")]
    Special,
    /// Another file system, or the same one again.
    #[error("another file system is mounted there")]
    MountPoint,
    /// A folder that is kept in sync by itself.
    #[error("it is kept in sync by itself")]
    OtherRoot,
    /// The rules of a folder are not known.
    #[error("{0}; nothing new in this folder is sent until these rules can be read whole and understood")]
    Rules(String),
    /// A folder with keys, tokens or data of this program.
    #[error("it is {0}, which is never sent")]
    Own(&'static str),
    /// A file with the like.
    #[error("it is {0}, which is never sent")]
    OwnFile(&'static str),
    /// A file that is known and was something else before.
    #[error("it is {0} by now, which is never sent: it stays as it was on the server")]
    OwnNow(&'static str),
    /// May not be read.
    #[error("it may not be read: check its permissions")]
    Unreadable,
    /// It is being written.
    #[error("it is still being written")]
    StillChanging,
    /// The disk fails, or the like.
    #[error("it cannot be read: {0}")]
    Io(String),
}

impl Why {
    fn of_disk(error: DiskError) -> Self {
        match error {
            DiskError::Denied(_) => Self::Unreadable,
            DiskError::Io { source, .. } => {
                Errno::from_io_error(&source).map_or_else(|| Self::Io(source.to_string()), Self::of_errno)
            }
            other => Self::Io(other.to_string()),
        }
    }

    fn of_errno(errno: Errno) -> Self {
        match errno {
            Errno::ACCESS | Errno::PERM => Self::Unreadable,
            Errno::NAMETOOLONG => Self::Name("its path is too long".to_owned()),
            other => Self::Io(other.to_string()),
        }
    }
}

/// Something that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where, as it can be shown.
    pub path: String,
    /// Why.
    pub why: Why,
}

/// How much was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanCounts {
    /// Folders listed.
    pub folders: u64,
    /// Files and symlinks seen in them.
    pub files: u64,
    /// Left out by the ignore rules.
    pub ignored: u64,
    /// Files read.
    pub hashed: u64,
    /// Bytes read.
    pub hashed_bytes: u64,
    /// Left out for other reasons, also beyond [`SKIPPED_MAX`].
    pub skipped: u64,
}

/// A file of which a write had been told after it was last read ([`Writers`]), and that was read now.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Where it is.
    pub rel: Rel,
    /// What it was known as; nothing, if it was not.
    pub node: Option<NodeId>,
    /// Before the first byte was read.
    pub began: Instant,
}

/// What a scan found.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// To be applied all together.
    pub updates: Vec<LocalUpdate>,
    /// Left out, and why.
    pub skipped: Vec<Skipped>,
    /// Folders that were listed, with how much is ignored in each; of a scan of everything only those in which
    /// something is, and up to [`IGNORED_FOLDERS_MAX`].
    pub ignored: Vec<(String, u64)>,
    /// Whether all that was to be looked at could be.
    pub complete: bool,
    /// Known folders that could not be read: what is in them stays as it was known, and nothing at, below or above them
    /// may be deleted. What was moved into them looks gone until they can be read; it is still on the disk then.
    pub unread: BTreeMap<Rel, NodeId>,
    /// Where known folders were that are elsewhere now, or gone; of those within one another, the topmost.
    pub left: Vec<Rel>,
    /// To be looked at again soon (after a hundred milliseconds, say): files that are being written, and folders that
    /// changed during the scan.
    pub again: Vec<ScopeFolder>,
    /// Files that were stale: to be told to [`Writers::read`] once their updates are kept.
    pub read: Vec<Reading>,
    /// How much was seen.
    pub counts: ScanCounts,
}

/// Why there is no scan.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The root is not what it was.
    #[error(transparent)]
    Root(#[from] RootError),
    /// It cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The caller stopped it.
    #[error("stopped")]
    Stopped,
}

impl From<HashError> for ScanError {
    fn from(error: HashError) -> Self {
        match error {
            HashError::Disk(error) => Self::Disk(error),
            HashError::StillChanging(rel) => Self::Disk(DiskError::Changed(rel)),
            error @ HashError::OtherSize { .. } => {
                Self::Disk(DiskError::of_io(&Rel::root(), std::io::Error::other(error.to_string())))
            }
            HashError::Stopped => Self::Stopped,
        }
    }
}

/// Looks at `scope` and says what is otherwise than `index` has it. Blocks.
///
/// # Errors
/// If the root is not what it was, or cannot be listed, or the scan was stopped.
pub fn scan(
    root: &Root,
    index: &mut dyn LocalIndex,
    scope: &Scope,
    options: &ScanOptions,
) -> Result<Scan, ScanError> {
    match root.check(true) {
        // There was nothing before, or it is meant.
        Err(RootError::Empty(_)) if options.empty_allowed || index.children(ROOT).is_empty() => {}
        checked => checked?,
    }
    let mut walk = folders::Walk::new(root, index, options);
    walk.run(scope)?;
    let mut found = matching::decide(walk);
    contents::read(&mut found)?;
    found.finish()
}

#[cfg(test)]
mod tests;
