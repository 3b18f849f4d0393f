//! Hints at what changes in a root as it changes, so that only that need be scanned. A hint is never the truth.
//!
//! The watcher says which folders to scan, once what changed in them is quiet. When the system lost events, or more
//! changed than is worth naming, it says: everything. Where it cannot watch (other systems than Linux, watches used up)
//! it says so, and scans at intervals have to do.
//!
//! Invariants:
//! - A new folder is watched before it is hinted at: what came into it before is found by the scan, what comes later is
//!   hinted at.
//! - The two ends of a move are hinted at together, so that one scan sees both.
//! - What is in the root's own `.keepstone` is not watched, and nothing is followed.

mod debounce;
#[cfg(target_os = "linux")]
mod inotify;
mod writers;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::debounce::Debounce;
use super::rel::Rel;
use super::root::Root;
use super::scan::Scope;

pub use self::debounce::{KEPT_CHANGING_MAX, QUIET};
pub use self::writers::Writers;

/// Hints that wait to be taken; while they do, further ones are put together.
const NOTICES_QUEUED_MAX: usize = 16;

/// What the watcher says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// To be scanned now.
    Scan(Scope),
    /// Not all folders can be watched, for the system allows no more watches: changes in the others are found by scans
    /// at intervals only. Said once.
    LimitReached {
        /// Folders that are watched.
        watched: usize,
    },
    /// The root was removed, moved or unmounted, or its marker was. Nothing more is said: once the root is back, it is
    /// to be watched anew.
    RootGone,
}

/// Why there is no watcher.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// This system has none that this version knows.
    #[error("this system has no way to watch a folder that keepstone knows")]
    NotSupported,
    /// The system refuses: too many watchers, mostly.
    #[error("cannot watch the folder: {0}")]
    Io(#[from] std::io::Error),
}

/// Tells which files are being written just now: a scan leaves them out until they are quiet.
#[derive(Clone, Debug, Default)]
pub struct Unquiet(Arc<Mutex<Debounce<Rel>>>);

impl Unquiet {
    /// Whether something changed at `rel` a moment ago, and will be hinted at once it is quiet.
    #[must_use]
    pub fn contains(&self, rel: &Rel) -> bool {
        self.with(|changes| changes.contains(rel, Instant::now()))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Debounce<Rel>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Watches a root, on a thread of its own.
#[derive(Debug)]
pub struct Watcher {
    notices: mpsc::Receiver<Notice>,
    unquiet: Unquiet,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watcher {
    /// Watches all folders of a root; returns once they are watched, so that a scan that begins then misses nothing.
    /// `writers`: is kept told who writes. Blocks; to be called in a tokio runtime.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn start(root: &Arc<Root>, writers: &Writers) -> Result<Self, WatchError> {
        let (sender, notices) = mpsc::channel(NOTICES_QUEUED_MAX);
        let stop = CancellationToken::new();
        let unquiet = Unquiet::default();
        #[cfg(target_os = "linux")]
        let thread = inotify::start(root.clone(), sender, (unquiet.clone(), writers.clone()), stop.clone())?;
        #[cfg(not(target_os = "linux"))]
        let thread = {
            drop((root, sender, writers));
            return Err(WatchError::NotSupported);
        };
        #[cfg(target_os = "linux")]
        Ok(Self { notices, unquiet, stop, thread: Some(thread) })
    }

    /// The next hint; `None` once the watcher has ended. May be dropped at any time.
    pub async fn next(&mut self) -> Option<Notice> {
        self.notices.recv().await
    }

    /// The next notice, if there is one by now.
    pub fn try_next(&mut self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }

    /// Which files are being written: for [`ScanOptions`](super::scan::ScanOptions).
    #[must_use]
    pub fn unquiet(&self) -> Unquiet {
        self.unquiet.clone()
    }

    /// Ends it, and its thread.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.notices.close();
        if let Some(thread) = self.thread.take() {
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests;
