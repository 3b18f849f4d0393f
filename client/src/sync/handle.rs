//! The hold that others have on a running session.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::config::Limits;
use super::status::{LogEntry, Quiet, Status};
use crate::local::root::RootId;

/// Commands that wait.
pub(crate) const COMMANDS_QUEUED_MAX: usize = 64;
/// Log entries that a slow listener may be behind by; older ones it misses.
pub(crate) const EVENTS_QUEUED_MAX: usize = 4_096;

/// The session has ended; its status says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the synchronisation has ended: {reason}")]
pub struct Ended {
    /// Why, in words.
    pub reason: String,
}

/// Why a folder cannot be excluded or included.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExcludeError {
    /// The session has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// There is no such folder on either side, or the path is none.
    #[error("{path}: {reason}")]
    Refused {
        /// As given.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why deletes are neither confirmed nor undone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeletesError {
    /// The session has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// There are none.
    #[error("no deletes wait to be confirmed")]
    None,
    /// They are not those that were shown.
    #[error("other deletes wait by now than those that were shown")]
    Others {
        /// As they are to be shown now.
        waiting: String,
    },
    /// The state failed.
    #[error("{0}")]
    Failed(String),
}

/// What a session is told.
#[derive(Debug)]
pub(crate) enum Command {
    Pause(bool),
    ConfirmDeletes { shown: String, done: oneshot::Sender<Result<u64, DeletesError>> },
    Undelete { done: oneshot::Sender<Result<u64, DeletesError>> },
    SetLimits(Limits),
    SetExcluded { path: String, excluded: bool, done: oneshot::Sender<Result<(), ExcludeError>> },
    Rescan,
    LogTail { count: usize, done: oneshot::Sender<Vec<LogEntry>> },
    Quiet { done: oneshot::Sender<Quiet> },
}

/// A running session. Clones share it. It goes on when all of them are dropped; [`Handle::stop`] ends it.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) root_id: RootId,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) events: broadcast::Sender<LogEntry>,
    /// Ends the session.
    pub(crate) stop: CancellationToken,
    pub(crate) task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Handle {
    /// Which folder it is: what a later start is to expect.
    #[must_use]
    pub fn root_id(&self) -> RootId {
        self.root_id
    }

    /// How things are.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Tells of each change of the status; bursts are one.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// What is done from now on. Who is slow misses some (`RecvError::Lagged`).
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<LogEntry> {
        self.events.subscribe()
    }

    fn ended(&self) -> Ended {
        Ended { reason: self.status.borrow().message.clone() }
    }

    async fn tell(&self, command: Command) -> Result<(), Ended> {
        self.commands.send(command).await.map_err(|_closed| self.ended())
    }

    /// Begins nothing more until [`Handle::resume`]. What is under way is broken off where that loses no work.
    ///
    /// # Errors
    /// If the session has ended.
    pub async fn pause(&self) -> Result<(), Ended> {
        self.tell(Command::Pause(true)).await
    }

    /// Goes on.
    ///
    /// # Errors
    /// If the session has ended.
    pub async fn resume(&self) -> Result<(), Ended> {
        self.tell(Command::Pause(false)).await
    }

    /// Lets the deletes go ahead that a status showed as `shown` (`Status::deletes_shown`). Gives how many.
    ///
    /// # Errors
    /// If none wait, or others do by now; or the session has ended.
    pub async fn confirm_deletes(&self, shown: &str) -> Result<u64, DeletesError> {
        let (done, answer) = oneshot::channel();
        self.tell(Command::ConfirmDeletes { shown: shown.to_owned(), done }).await?;
        answer.await.unwrap_or_else(|_dropped| Err(self.ended().into()))
    }

    /// Undoes the deletes that wait to be confirmed: what is gone on one side comes back from the other. Gives how many
    /// files.
    ///
    /// # Errors
    /// If none wait, or the session has ended.
    pub async fn undelete(&self) -> Result<u64, DeletesError> {
        let (done, answer) = oneshot::channel();
        self.tell(Command::Undelete { done }).await?;
        answer.await.unwrap_or_else(|_dropped| Err(self.ended().into()))
    }

    /// Sets the bandwidth limits, at once and for what is under way too. They are not remembered.
    ///
    /// # Errors
    /// If the session has ended.
    pub async fn set_limits(&self, limits: Limits) -> Result<(), Ended> {
        self.tell(Command::SetLimits(limits)).await
    }

    /// Excludes a folder from this device (its local copy goes, once all that changed in it has gone up) or includes
    /// it again. Remembered in the state.
    ///
    /// # Errors
    /// If there is no such folder, or the session has ended.
    pub async fn set_excluded(&self, path: &str, excluded: bool) -> Result<(), ExcludeError> {
        let (done, answer) = oneshot::channel();
        self.tell(Command::SetExcluded { path: path.to_owned(), excluded, done }).await?;
        answer.await.unwrap_or_else(|_dropped| Err(self.ended().into()))
    }

    /// Scans everything now.
    ///
    /// # Errors
    /// If the session has ended.
    pub async fn rescan(&self) -> Result<(), Ended> {
        self.tell(Command::Rescan).await
    }

    /// The latest things done, oldest first.
    ///
    /// # Errors
    /// If the session has ended.
    pub async fn log_tail(&self, count: usize) -> Result<Vec<LogEntry>, Ended> {
        let (done, answer) = oneshot::channel();
        self.tell(Command::LogTail { count, done }).await?;
        answer.await.map_err(|_dropped| self.ended())
    }

    /// Waits until there is nothing more to do: both sides agree, or what does not agree waits for somebody (a
    /// confirmation, room on the disk, a gateway that stays away).
    ///
    /// # Errors
    /// If the session ends before.
    pub async fn quiet(&self) -> Result<Quiet, Ended> {
        loop {
            let (done, answer) = oneshot::channel();
            self.tell(Command::Quiet { done }).await?;
            // It is dropped when the session begins anew, or ends: then it takes no more commands.
            if let Ok(quiet) = answer.await {
                return Ok(quiet);
            }
        }
    }

    /// Waits until both sides agree: a complete scan was made, all of the server's changes are known, and local,
    /// remote and synced are the same.
    ///
    /// # Errors
    /// If the session ends before.
    pub async fn agreed(&self) -> Result<(), Ended> {
        let mut status = self.status.clone();
        loop {
            if self.quiet().await?.agreed {
                return Ok(());
            }
            status.mark_unchanged();
            status.changed().await.map_err(|_closed| self.ended())?;
        }
    }

    /// Ends the session: nothing new begins, what is under way is broken off (it is gone on with at the next start),
    /// the state is closed. Returns once all of it has ended.
    pub async fn stop(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        match task {
            Some(task) => {
                if let Err(error) = task.await {
                    tracing::error!(%error, "the session panicked");
                }
            }
            // Another clone waits for it.
            None => self.commands.closed().await,
        }
    }

    /// Waits until the session has ended by itself (the status says why) or was stopped.
    pub async fn ended_wait(&self) -> Ended {
        self.commands.closed().await;
        self.ended()
    }
}
