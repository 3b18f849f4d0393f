//! The snapshots that a node receives: for each group one at a time, each attempt in a file of its own.
//!
//! openraft may go on installing a snapshot after the call that brought it has ended. So whoever holds the snapshot
//! holds its file and its group's only place: a later attempt can neither touch what is being installed, nor fill the
//! disk beside it.
//!
//! Invariants:
//! - A file is written by one attempt and read by the installation that follows; it goes when the last of both goes.
//! - Of a group there is at most one file while the node runs; what a crash left is removed before the node starts.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::ids::GroupId;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// How the names of the files end.
const SUFFIX: &str = ".snapshot";

/// How far the present attempt of a group has come. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    count: Arc<AtomicU64>,
    #[cfg(test)]
    pub(crate) pause: tests::Pause,
}

impl Progress {
    /// Something was kept or installed.
    pub(crate) fn advance(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How often something was, since the node's start.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// A part is about to be installed.
    pub(crate) fn installing(&self) {
        #[cfg(test)]
        self.pause.wait();
        self.advance();
    }
}

/// Where one group receives.
#[derive(Debug)]
pub(crate) struct Receiving {
    directory: PathBuf,
    group: GroupId,
    attempts: AtomicU64,
    place: Arc<Mutex<()>>,
    progress: Progress,
}

/// The file of one attempt, and the group's place. The file goes when this goes.
#[derive(Debug)]
pub(crate) struct ReceivedFile {
    path: PathBuf,
    progress: Progress,
    _place: OwnedMutexGuard<()>,
}

impl Receiving {
    /// Files go below `directory`.
    pub(crate) fn new(directory: PathBuf, group: GroupId) -> Self {
        let (attempts, place) = (AtomicU64::new(0), Arc::default());
        Self { directory, group, attempts, place, progress: Progress::default() }
    }

    /// How far the present attempt has come.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// How many attempts there were.
    #[cfg(test)]
    pub(crate) fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// A name for a new attempt, once no other one is under way; `None` if one still is after `wait`. Cancel safe.
    pub(crate) async fn begin(&self, wait: Duration) -> Option<ReceivedFile> {
        let place = tokio::time::timeout(wait, Arc::clone(&self.place).lock_owned()).await.ok()?;
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(format!("group-{}-{attempt}{SUFFIX}", self.group));
        Some(ReceivedFile { path, progress: self.progress.clone(), _place: place })
    }
}

impl ReceivedFile {
    /// Makes the file, which must not be there. Blocks.
    pub(crate) fn create(&self) -> io::Result<File> {
        File::create_new(&self.path)
    }

    /// Opens it for reading. Blocks.
    pub(crate) fn open(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl Drop for ReceivedFile {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "received snapshot not removed");
            }
            _ => {}
        }
    }
}

/// Removes what a crash left below `directory`. Blocks.
///
/// # Errors
/// If the directory cannot be read, or a file not be removed.
pub(crate) fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with("group-") && name.ends_with(SUFFIX));
        if ours {
            tracing::info!(path = %entry.path().display(), "removing a snapshot that was not installed");
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Condvar;

    use super::*;

    /// Stops an installation for as long as a test likes.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Pause(Arc<(std::sync::Mutex<Paused>, Condvar)>);

    #[derive(Debug, Default)]
    struct Paused {
        paused: bool,
        /// Parts that may pass all the same.
        parts: usize,
    }

    impl Pause {
        fn change(&self, paused: bool, parts: usize) {
            *self.0.0.lock().unwrap() = Paused { paused, parts };
            self.0.1.notify_all();
        }

        /// Nothing is installed from now on.
        pub(crate) fn pause(&self) {
            self.change(true, 0);
        }

        /// One part more.
        pub(crate) fn pass_one(&self) {
            self.change(true, 1);
        }

        pub(crate) fn go_on(&self) {
            self.change(false, 0);
        }

        pub(super) fn wait(&self) {
            let state = self.0.0.lock().unwrap();
            let mut state = self.0.1.wait_while(state, |state| state.paused && state.parts == 0).unwrap();
            state.parts = state.parts.saturating_sub(1);
        }
    }

    #[test]
    fn a_later_attempt_has_another_file_and_waits_until_the_first_one_is_gone() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let receiving = Receiving::new(directory.path().to_owned(), GroupId(3));
            let first = receiving.begin(Duration::ZERO).await.unwrap();
            io::Write::write_all(&mut first.create().unwrap(), b"first").unwrap();
            assert!(receiving.begin(Duration::from_millis(10)).await.is_none(), "one at a time");
            assert_eq!(std::fs::read(&first.path).unwrap(), b"first");
            let path = first.path.clone();
            drop(first);
            let second = receiving.begin(Duration::ZERO).await.unwrap();
            assert_ne!(second.path, path);
            assert!(!path.exists());
            second.create().unwrap();
            assert!(second.create().is_err(), "a file that is there is never replaced");
        });
    }

    #[test]
    fn what_a_crash_left_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["group-1.snapshot", "group-2-0.snapshot", "log.witness", "group-1.other"] {
            std::fs::write(directory.path().join(name), b"x").unwrap();
        }
        remove_leftovers(directory.path()).unwrap();
        let left = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, ["group-1.other", "log.witness"]);
    }
}
