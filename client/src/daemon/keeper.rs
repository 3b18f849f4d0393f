//! One folder of the daemon: runs its session, and starts it again when it has ended by itself (a disk that was taken
//! out, a gateway that refused) until it is told to stop.
//!
//! Invariants:
//! - At most one session of the folder runs.
//! - Only a folder that was just added is made one that is kept in sync, and only at its first start: a disk that is
//!   not mounted later leaves an empty folder, which is refused.
//! - Paused means: told to pause by the user, or the network is metered and that pauses. A session that starts then
//!   is paused before anything else is asked of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;

use super::bus::Notice;
use super::config::RootConfig;
use crate::local::root::RootId;
use crate::sync::config::{Expected, Limits};
use crate::sync::handle::Handle;
use crate::sync::session::Session;
use crate::sync::status::{Done, LogEntry, Phase, Status, Traffic};

/// Commands that wait.
const COMMANDS_QUEUED_MAX: usize = 16;
/// A session that has ended is started again after this, then after twice as long, ...
const RETRY_INTERVAL_FIRST: Duration = Duration::from_secs(5);
/// ... up to this.
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(120);
/// A session that ran as long as this had started well.
const RAN_WELL: Duration = Duration::from_secs(60);

/// What all folders share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The profile of folders that name none.
    pub profile: PathBuf,
    /// Whether to pause because the network is metered.
    pub metered_pause: watch::Receiver<bool>,
    /// Takes conflicts to be told.
    pub notices: Option<mpsc::Sender<Notice>>,
}

/// Which folder a directory has proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Where.
    pub directory: PathBuf,
    /// Which.
    pub id: RootId,
}

/// About the first start of a folder.
#[derive(Clone, Debug)]
pub struct First {
    /// It was just added: one that was never kept in sync is made so. Else it is refused, as a disk that is not mounted.
    pub may_be_new: bool,
    /// Is told which it is, if that is not in its configuration.
    pub learned: mpsc::Sender<Learned>,
}

/// How a folder is.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Its session, while one runs.
    pub session: Option<Handle>,
    /// Else why not, in words.
    pub message: String,
    /// How many starts have come to an end, well or not.
    pub starts: u64,
}

#[derive(Debug)]
enum Command {
    Pause(bool),
    SetLimits(Limits),
    Stop,
}

/// The hold on a folder that is kept. Clones share it.
#[derive(Clone, Debug)]
pub struct Keeper {
    config: Arc<RootConfig>,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
}

impl Keeper {
    /// Begins to keep a folder. The task ends after [`Keeper::stop`].
    #[must_use]
    pub fn start(config: RootConfig, shared: Shared, first: First) -> (Self, JoinHandle<()>) {
        let (commands, receiver) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let (view_sender, view) = watch::channel(View::default());
        let unknown = if first.may_be_new { Expected::MayBeNew } else { Expected::Existing };
        let task = Task {
            paused: config.paused,
            limits: config.limits(),
            expected: config.id.map_or(unknown, Expected::Root),
            learned: Some(first.learned),
            config: config.clone(),
            shared,
            commands: receiver,
            view: view_sender,
        };
        let handle = tokio::spawn(task.run());
        (Self { config: Arc::new(config), commands, view }, handle)
    }

    /// Takes a session that runs already. It is not started again when it has ended.
    #[must_use]
    pub fn of_session(config: RootConfig, session: Handle, shared: Shared) -> (Self, JoinHandle<()>) {
        let (commands, receiver) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let running = View { session: Some(session.clone()), message: String::new(), starts: 1 };
        let (view_sender, view) = watch::channel(running);
        let mut task = Task {
            paused: config.paused,
            limits: config.limits(),
            expected: Expected::Root(session.root_id()),
            learned: None,
            config: config.clone(),
            shared,
            commands: receiver,
            view: view_sender,
        };
        let handle = tokio::spawn(async move {
            task.run_once(session).await;
        });
        (Self { config: Arc::new(config), commands, view }, handle)
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &RootConfig {
        &self.config
    }

    /// Its session, while one runs.
    #[must_use]
    pub fn session(&self) -> Option<Handle> {
        self.view.borrow().session.clone()
    }

    /// Waits until the first start has come to an end: nothing, or why no session runs.
    ///
    /// # Errors
    /// If it could not be started; it is tried again all the same.
    pub async fn started(&mut self) -> Result<(), String> {
        let view = self.view.wait_for(|view| view.starts > 0).await;
        match view {
            Ok(view) if view.session.is_some() => Ok(()),
            Ok(view) => Err(view.message.clone()),
            Err(_stopped) => Err("it was stopped".to_owned()),
        }
    }

    /// Pauses it, or goes on, and tries at once what waits to be tried again.
    pub async fn pause(&self, paused: bool) {
        self.tell(Command::Pause(paused)).await;
    }

    /// Sets the bandwidth.
    pub async fn set_limits(&self, limits: Limits) {
        self.tell(Command::SetLimits(limits)).await;
    }

    /// Ends its session, and the task.
    pub async fn stop(&self) {
        self.tell(Command::Stop).await;
    }

    async fn tell(&self, command: Command) {
        if self.commands.send(command).await.is_err() {
            tracing::debug!("the folder is not kept any more");
        }
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        let view = self.view.borrow().clone();
        match view.session {
            Some(session) => session.status(),
            None => self.status_without_session(view),
        }
    }

    fn status_without_session(&self, view: View) -> Status {
        Status {
            root: self.config.directory.clone(),
            remote_path: self.config.remote.clone(),
            phase: if view.starts == 0 { Phase::Starting } else { Phase::Stopped },
            message: view.message,
            online: false,
            paused: self.config.paused,
            watching: false,
            agreed_count: 0,
            pending_count: 0,
            waiting_count: 0,
            waiting: Vec::new(),
            skipped: Vec::new(),
            ignored_count: 0,
            deletes_to_confirm: 0,
            deletes_shown: String::new(),
            transfers: Vec::new(),
            up: Traffic::default(),
            down: Traffic::default(),
            limits: self.config.limits(),
            excluded: Vec::new(),
        }
    }
}

/// Why a session's run came to an end.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    StartAgain,
    Stop,
}

struct Task {
    config: RootConfig,
    shared: Shared,
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<View>,
    paused: bool,
    limits: Limits,
    /// What the folder must be; once a session has run, that one.
    expected: Expected,
    learned: Option<mpsc::Sender<Learned>>,
}

impl Task {
    async fn run(mut self) {
        let mut wait = RETRY_INTERVAL_FIRST;
        loop {
            let began = tokio::time::Instant::now();
            match self.start_session().await {
                Ok(session) => {
                    self.view.send_modify(|view| {
                        view.starts += 1;
                        view.message.clear();
                        view.session = Some(session.clone());
                    });
                    if self.run_once(session).await == Next::Stop {
                        return;
                    }
                }
                Err(message) => self.view.send_modify(|view| {
                    view.starts += 1;
                    view.message = message;
                }),
            }
            if began.elapsed() >= RAN_WELL {
                wait = RETRY_INTERVAL_FIRST;
            }
            tracing::warn!(
                root = %self.config.directory.display(), why = self.view.borrow().message, "not kept in sync"
            );
            if self.wait_to_retry(wait).await == Next::Stop {
                return;
            }
            wait = (wait * 2).min(RETRY_INTERVAL_MAX);
        }
    }

    /// Serves a session until it has ended.
    async fn run_once(&mut self, session: Handle) -> Next {
        let next = self.serve(&session).await;
        session.stop().await;
        let message = session.status().message;
        self.view.send_modify(|view| {
            view.session = None;
            view.message = message;
        });
        next
    }

    async fn start_session(&mut self) -> Result<Handle, String> {
        let (config, profile) = (self.config.clone(), self.shared.profile.clone());
        let read = tokio::task::spawn_blocking(move || config.sync_config(&profile)).await;
        let mut config = read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        config.limits = self.limits;
        config.expected = self.expected;
        let session = Session::start(config).await.map_err(|error| error.to_string())?;
        let known = Expected::Root(session.root_id());
        if self.expected != known {
            self.expected = known;
            let learned = Learned { directory: self.config.directory.clone(), id: session.root_id() };
            if self.learned.as_ref().is_some_and(|queue| queue.try_send(learned).is_err()) {
                tracing::warn!("the folder's id is not noted; it will be at the next start");
            }
        }
        tracing::info!(root = %self.config.directory.display(), "kept in sync");
        Ok(session)
    }

    /// Passes on what the session is told, until it ends or is to be stopped.
    async fn serve(&mut self, session: &Handle) -> Next {
        let mut events = session.events();
        let mut metered = self.shared.metered_pause.clone();
        if self.is_paused() && session.pause().await.is_err() {
            return Next::StartAgain;
        }
        loop {
            let told = tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Pause(paused)) => {
                        self.paused = paused;
                        self.tell_pause(session).await
                    }
                    Some(Command::SetLimits(limits)) => {
                        self.limits = limits;
                        session.set_limits(limits).await.is_ok()
                    }
                    Some(Command::Stop) | None => return Next::Stop,
                },
                Ok(()) = metered.changed() => self.tell_pause(session).await,
                event = events.recv() => {
                    match event {
                        Ok(event) => self.tell_conflict(event),
                        Err(broadcast::error::RecvError::Lagged(missed)) => {
                            tracing::debug!(missed, "too many events to look at");
                        }
                        Err(broadcast::error::RecvError::Closed) => return Next::StartAgain,
                    }
                    true
                }
                ended = session.ended_wait() => {
                    tracing::info!(root = %self.config.directory.display(), why = ended.reason, "ended");
                    return Next::StartAgain;
                }
            };
            if !told {
                return Next::StartAgain;
            }
        }
    }

    fn is_paused(&self) -> bool {
        self.paused || *self.shared.metered_pause.borrow()
    }

    async fn tell_pause(&self, session: &Handle) -> bool {
        let told = if self.is_paused() { session.pause().await } else { session.resume().await };
        told.is_ok()
    }

    fn tell_conflict(&self, event: LogEntry) {
        if event.what != Done::Conflict {
            return;
        }
        let Some(notices) = &self.shared.notices else { return };
        let notice = Notice { root: self.config.directory.clone(), path: event.path };
        if notices.try_send(notice).is_err() {
            tracing::debug!("a conflict was not told on the desktop: too many at once");
        }
    }

    /// Waits for the next try: until it is time, or the user resumes it.
    async fn wait_to_retry(&mut self, wait: Duration) -> Next {
        let until = tokio::time::Instant::now() + wait;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Next::StartAgain,
                command = self.commands.recv() => match command {
                    Some(Command::Pause(paused)) => {
                        self.paused = paused;
                        if !paused {
                            return Next::StartAgain;
                        }
                    }
                    Some(Command::SetLimits(limits)) => self.limits = limits,
                    Some(Command::Stop) | None => return Next::Stop,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::RemotePath;

    fn shared() -> (Shared, watch::Sender<bool>) {
        let (metered, metered_pause) = watch::channel(false);
        (Shared { profile: "/no/such/profile.toml".into(), metered_pause, notices: None }, metered)
    }

    fn first() -> First {
        First { may_be_new: false, learned: mpsc::channel(1).0 }
    }

    #[tokio::test]
    async fn what_cannot_start_says_why_and_can_be_stopped() {
        let (shared, _metered) = shared();
        let config = RootConfig::new("/no/such/folder".into(), &RemotePath::root());
        let (mut keeper, task) = Keeper::start(config, shared, first());
        let error = keeper.started().await.unwrap_err();
        assert!(error.contains("profile"), "{error}");
        let status = keeper.status();
        assert_eq!((status.phase, status.message), (Phase::Stopped, error));
        keeper.pause(true).await;
        keeper.set_limits(Limits::default()).await;
        keeper.stop().await;
        task.await.unwrap();
        keeper.stop().await;
    }

    #[tokio::test]
    async fn what_cannot_start_is_tried_again_when_told_to_go_on() {
        let (shared, _metered) = shared();
        let config = RootConfig::new("/no/such/folder".into(), &RemotePath::root());
        let (mut keeper, task) = Keeper::start(config, shared, first());
        for starts in 1..4 {
            keeper.view.wait_for(|view| view.starts == starts).await.unwrap();
            keeper.pause(false).await;
        }
        keeper.stop().await;
        task.await.unwrap();
    }
}
