//! One folder kept the same as one remote folder: what belongs to it is opened, its parts are started, and joined at
//! the end.
//!
//! Order of the end: nothing new begins, what is under way is broken off and recorded, all parts are joined, the state
//! is closed, the root is let go.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::config::{Expected, SyncConfig};
use super::effects::Effects;
use super::execute::download_large::Parts;
use super::follower::Follower;
use super::handle::{COMMANDS_QUEUED_MAX, Command, EVENTS_QUEUED_MAX, Handle};
use super::lookout::Lookout;
use super::opening::open_root;
use super::recover::recover;
use super::run::{Channels, Run, RunEnd};
use super::scanner::{INCOMPLETE_INTERVAL, Scanner};
use super::shared::{Counters, Shared};
use super::state_thread::StateThread;
use super::status::{Phase, Status, Traffic};
use super::throttle::Throttle;
use crate::call_error::CallError;
use crate::connection::ApiClient;
use crate::local::ignore_rules::IgnoreRules;
use crate::local::root::{ExclusionsError, Root, RootError};
use crate::local::scan::Misnamed;
use crate::local::watch::{Watcher, Writers};
use crate::planner::{Deletes, NameRules, Rules};
use crate::state::database::{Opened, State};
use crate::state::error::StateError;
use crate::state::excluded::ExclusionList;
use crate::upload::chunk_stream::ChunkSender;

/// How long a call of a session is repeated by itself; afterwards the session does, and says so.
const CALL_RETRY_TIME_MAX: Duration = Duration::from_secs(4);
/// Events between the parts.
const EVENTS_MAX: usize = 64;
/// Days that the local trash keeps what synchronisation removed.
const TRASH_DAYS: u32 = 30;
/// Of the root's id: what tells this device's names for stepping aside from those of others.
const SWAP_TAG_CHARS: usize = 8;
/// Damaged states in one session, before it gives up: the disk itself is bad then.
const REBUILDS_MAX: u32 = 3;

/// Why a session cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// It is not the folder that was kept the same.
    #[error(
        "{path} has no marker .keepstone/root any more: if a disk or another file system belongs there, mount it. \
         If it is the right folder: keepstone sync add --again {path}. If it is to be taken for a new folder: keepstone sync remove {path}, then keepstone sync add {path} or \
         keepstone sync run --new {path}", path = .0.display()
    )]
    Unmarked(PathBuf),
    /// The state cannot be opened.
    #[error(transparent)]
    State(#[from] StateError),
    /// Which folders are excluded is not known: all of them would be fetched.
    #[error("{0}. Put it right, or remove it: what was excluded is fetched then")]
    Exclusions(#[from] ExclusionsError),
    /// It is kept the same as another remote folder.
    #[error(
        "this folder is kept the same as {known} on the server, not {asked}: remove it from synchronisation first"
    )]
    OtherRemote {
        /// As the state says.
        known: String,
        /// As was asked.
        asked: String,
    },
    /// The profile cannot be used.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The system has no thread to give.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// See [`Session::start`].
#[derive(Debug)]
pub struct Session;

impl Session {
    /// Starts to keep a folder the same. A gateway that does not answer is waited for; a folder or a state that
    /// cannot be used is an error at once. What ends the session later is in its status.
    ///
    /// # Errors
    /// If the folder, the state or the profile cannot be used.
    pub async fn start(config: SyncConfig) -> Result<Handle, StartError> {
        let api = ApiClient::connect_lazily(&config.connect)?.with_retry_time_max(CALL_RETRY_TIME_MAX);
        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || open(&opening)).await;
        let (root, opened) = opened.map_err(|error| StateError::Unusable(error.to_string()))??;
        let (commands, receiver) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let (status_sender, status) = watch::channel(first_status(&config));
        let (events, _nobody) = broadcast::channel(EVENTS_QUEUED_MAX);
        let board = Board::new(status_sender, events.clone());
        let stop = CancellationToken::new();
        let root_id = root.id();
        let keeper = Keeper { config, api, root: Arc::new(root), stop: stop.clone() };
        let task = tokio::spawn(keeper.keep(opened, board, receiver));
        Ok(Handle { root_id, commands, status, events, stop, task: Arc::new(Mutex::new(Some(task))) })
    }
}

/// Opens the root and its state, and settles what a crash left. Blocks.
fn open(config: &SyncConfig) -> Result<(Root, Opened), StartError> {
    let root = open_root(&config.root, config.state_dir.as_deref(), config.expected)?;
    let mut opened = State::open(root.state_path())?;
    bind(&mut opened.state, &root, config)?;
    Ok((root, opened))
}

/// Opens the state again for what made a session begin anew. Blocks.
fn reopen(root: &Root, config: &SyncConfig, why: &RunEnd) -> Result<Opened, StartError> {
    let mut opened = match why {
        RunEnd::WentBack(_) => State::open(root.state_path())?,
        RunEnd::Stopped | RunEnd::Failed(_) | RunEnd::Damaged | RunEnd::Remounted => {
            State::open_anew(root.state_path())?
        }
    };
    bind(&mut opened.state, root, config)?;
    if let RunEnd::WentBack(common) = why {
        opened.state.forget_history(*common)?;
    }
    Ok(opened)
}

/// Ties a new state to its root and remote folder; refuses one that is tied to others.
fn bind(state: &mut State, root: &Root, config: &SyncConfig) -> Result<(), StartError> {
    let asked = config.remote_path.to_string();
    match state.bytes("root_id")? {
        None => state.transaction(|state| {
            state.set_bytes("root_id", &root.id().0)?;
            state.set_bytes("remote_path", asked.as_bytes())
        })?,
        Some(known) if known == root.id().0 => {}
        Some(_other) => return Err(RootError::OtherRoot(config.root.clone()).into()),
    }
    let known = state.bytes("remote_path")?.unwrap_or_default();
    if known != asked.as_bytes() {
        let known = String::from_utf8_lossy(&known).into_owned();
        return Err(StartError::OtherRemote { known, asked });
    }
    reconcile_exclusions(state, root)
}

/// The list beside the marker is written first, so it is right; a state from before there was one has its own, as has
/// one whose list was damaged.
fn reconcile_exclusions(state: &mut State, root: &Root) -> Result<(), StartError> {
    let known = state.excluded()?;
    match state.exclusion_list()? {
        ExclusionList::Right => {}
        ExclusionList::Void => return Ok(()),
        ExclusionList::Outdated => {
            root.write_exclusions(&known)?;
            return Ok(state.note_exclusion_list(true)?);
        }
    }
    match root.exclusions() {
        Ok(Some(mut listed)) => {
            listed.sort_by(|a, b| a.1.cmp(&b.1));
            if listed != known {
                state.set_excluded(&listed)?;
            }
        }
        Ok(None) if known.is_empty() => {}
        Ok(None) => root.write_exclusions(&known)?,
        Err(error) if known.is_empty() => return Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "the list is written anew, as the state has it");
            root.write_exclusions(&known)?;
        }
    }
    Ok(())
}

fn first_status(config: &SyncConfig) -> Status {
    Status {
        root: config.root.clone(),
        remote_path: config.remote_path.to_string(),
        phase: Phase::Starting,
        message: String::new(),
        online: false,
        paused: false,
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
        limits: config.limits,
        excluded: Vec::new(),
    }
}

/// The first pause before a session begins anew once more, and the longest one.
const ANEW_PAUSE_FIRST: Duration = Duration::from_secs(1);
const ANEW_PAUSE_MAX: Duration = Duration::from_secs(60);
/// After this time without, it is the first time again.
const ANEW_CALM: Duration = Duration::from_secs(600);

/// Beginnings anew, with pauses between them: a server that goes back again and again, or a disk that comes and goes,
/// does not keep the device busy.
#[derive(Default)]
struct Anew {
    last: Option<Instant>,
    pause: Duration,
}

impl Anew {
    /// How long to wait before the session begins anew.
    fn pause(&mut self, now: Instant) -> Duration {
        let again = self.last.is_some_and(|last| now.duration_since(last) < self.pause + ANEW_CALM);
        self.last = Some(now);
        self.pause =
            if again { (self.pause * 2).clamp(ANEW_PAUSE_FIRST, ANEW_PAUSE_MAX) } else { Duration::ZERO };
        self.pause
    }
}

/// Runs a session from its start to its end, with a new state if the old one is found damaged on the way.
struct Keeper {
    config: SyncConfig,
    api: ApiClient,
    root: Arc<Root>,
    /// Cancelled by who ends the session.
    stop: CancellationToken,
}

impl Keeper {
    async fn keep(mut self, mut opened: Opened, mut board: Board, mut commands: mpsc::Receiver<Command>) {
        let mut rebuilds = 0;
        let mut anew = Anew::default();
        let message = loop {
            if let Some((reason, aside)) = &opened.rebuilt {
                let shown = aside.display();
                board.session(format!(
                    "the state was damaged ({reason}); it is kept as {shown}, and built anew from disk and server"
                ));
            }
            let end;
            (end, commands, board) = self.run_once(opened.state, board, commands).await;
            match end {
                RunEnd::Stopped => break "it was stopped".to_owned(),
                _ if self.stop.is_cancelled() => break "it was stopped".to_owned(),
                RunEnd::Failed(ref reason) => break reason.clone(),
                RunEnd::Damaged if rebuilds >= REBUILDS_MAX => {
                    break "the state is damaged again and again: check the disk".to_owned();
                }
                RunEnd::Damaged => rebuilds += 1,
                RunEnd::Remounted => {
                    board.session("the folder is there again as another disk: it is opened anew".to_owned());
                    if !self.pause(&mut anew).await {
                        break "it was stopped".to_owned();
                    }
                    match self.reopen().await {
                        Ok(anew) => opened = anew,
                        Err(reason) => break reason,
                    }
                    continue;
                }
                RunEnd::WentBack(_) => {
                    let message = "the server went back to an older state: what it lacks is sent again, and nothing \
                                   is deleted here";
                    board.session(message.to_owned());
                    if !self.pause(&mut anew).await {
                        break "it was stopped".to_owned();
                    }
                }
            }
            let (config, root) = (self.config.clone(), self.root.clone());
            let reopened = tokio::task::spawn_blocking(move || reopen(&root, &config, &end));
            match reopened.await {
                Ok(Ok(anew)) => opened = anew,
                Ok(Err(error)) => break error.to_string(),
                Err(error) => break error.to_string(),
            }
        };
        board.stopped(&message);
    }

    /// Waits before the session begins anew. `false` if it was stopped meanwhile.
    async fn pause(&self, anew: &mut Anew) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(anew.pause(Instant::now())) => true,
        }
    }

    /// Opens the folder and its state anew, once nothing uses the old ones.
    async fn reopen(&mut self) -> Result<Opened, String> {
        self.root.let_go();
        let config = SyncConfig { expected: Expected::Root(self.root.id()), ..self.config.clone() };
        let opening = tokio::task::spawn_blocking(move || open(&config)).await;
        let (root, opened) =
            opening.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.root = Arc::new(root);
        Ok(opened)
    }

    async fn run_once(
        &self,
        state: State,
        board: Board,
        commands: mpsc::Receiver<Command>,
    ) -> (RunEnd, mpsc::Receiver<Command>, Board) {
        let (state, owner) = match StateThread::start(state) {
            Ok(started) => started,
            Err(error) => return (RunEnd::Failed(StartError::Thread(error).to_string()), commands, board),
        };
        let stop = self.stop.child_token();
        let (chunks, chunk_task) = ChunkSender::start(self.api.clone());
        let ran = match self.shared(&state, chunks, &stop).await {
            Ok(shared) => self.run_parts(shared, stop, board, commands).await,
            Err(reason) => (RunEnd::Failed(reason), commands, board),
        };
        drop(state);
        // Nobody waits for its answers any more, and a gateway that hangs would give none for long.
        chunk_task.abort();
        for joined in [chunk_task.await, tokio::task::spawn_blocking(move || close(owner)).await] {
            if let Err(error) = joined
                && !error.is_cancelled()
            {
                tracing::error!(%error, "a part of the session panicked");
            }
        }
        ran
    }

    /// What all parts share, once what a crash left is settled.
    async fn shared(
        &self,
        state: &StateThread,
        chunks: ChunkSender,
        stop: &CancellationToken,
    ) -> Result<Shared, String> {
        let rules = Arc::new(IgnoreRules);
        recover(state, &self.root).await?;
        let index = state.ask(|state| state.scan_index()).await.map_err(|error| error.to_string())?;
        Ok(Shared {
            api: self.api.clone(),
            root: self.root.clone(),
            state: state.clone(),
            chunks,
            index: Arc::new(Mutex::new(index)),
            rules,
            effects: Effects::default(),
            up: Throttle::new(self.config.limits.up),
            down: Throttle::new(self.config.limits.down),
            counters: Arc::new(Counters::default()),
            parts: Parts::default(),
            writers: Writers::default(),
            empty_confirmed: Arc::default(),
            stop: stop.child_token(),
        })
    }

    async fn run_parts(
        &self,
        shared: Shared,
        stop: CancellationToken,
        mut board: Board,
        commands: mpsc::Receiver<Command>,
    ) -> (RunEnd, mpsc::Receiver<Command>, Board) {
        let (follower_events, follower) = mpsc::channel(EVENTS_MAX);
        let (checks, checks_asked) = mpsc::channel(EVENTS_MAX);
        let (scanner_events, scanner) = mpsc::channel(EVENTS_MAX);
        let (scans, scans_asked) = mpsc::channel(EVENTS_MAX);
        let (watcher, unwatched) = self.watch(&shared.writers, &mut board).await;
        let parts = [
            self.follow(&shared, follower_events, checks_asked, &stop),
            self.scan(&shared, (watcher, unwatched), scanner_events, scans_asked, &stop),
            tokio::spawn(empty_trash(self.root.clone(), stop.clone())),
        ];
        let channels = Channels { commands, follower, checks, scanner, scans };
        let rules = self.rules().await;
        let guard = (self.config.delete_guard, self.config.on_deletes.clone());
        let remote_path = self.config.remote_path.clone();
        let run = Run::new(shared, stop.clone(), channels, board, guard, remote_path, rules);
        let ran = run.run().await;
        stop.cancel();
        for part in parts {
            if let Err(error) = part.await {
                tracing::error!(%error, "a part of the session panicked");
            }
        }
        ran
    }

    fn follow(
        &self,
        shared: &Shared,
        events: mpsc::Sender<super::follower::FollowerEvent>,
        checks: mpsc::Receiver<super::follower::CheckNow>,
        stop: &CancellationToken,
    ) -> JoinHandle<()> {
        let follower = Follower {
            api: self.api.clone(),
            state: shared.state.clone(),
            remote_path: self.config.remote_path.clone(),
            events,
            checks,
            stop: stop.clone(),
        };
        tokio::spawn(follower.run())
    }

    /// Watches the folder, so that a scan that begins then misses nothing.
    async fn watch(&self, writers: &Writers, board: &mut Board) -> (Option<Watcher>, Option<String>) {
        let (root, writers) = (self.root.clone(), writers.clone());
        let started = tokio::task::spawn_blocking(move || Watcher::start(&root, &writers)).await;
        let trouble = match started {
            Ok(Ok(watcher)) => {
                board.watching(true);
                return (Some(watcher), None);
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let trouble = format!("{trouble}; changes are found by scans");
        board.session(trouble.clone());
        (None, Some(trouble))
    }

    fn scan(
        &self,
        shared: &Shared,
        (watcher, unwatched): (Option<Watcher>, Option<String>),
        events: mpsc::Sender<super::scanner::ScanEvent>,
        requests: mpsc::Receiver<super::scanner::ScanRequest>,
        stop: &CancellationToken,
    ) -> JoinHandle<()> {
        let scanner = Scanner {
            root: self.root.clone(),
            writers: shared.writers.clone(),
            watcher,
            state: shared.state.clone(),
            effects: shared.effects.clone(),
            rules: shared.rules.clone(),
            interval: self.config.scan_interval,
            empty_confirmed: shared.empty_confirmed.clone(),
            requests,
            events,
            stop: stop.clone(),
            unwatched,
            limited: false,
            unread: HashSet::new(),
            watch_anew: false,
            incomplete_wait: INCOMPLETE_INTERVAL,
            watch_not_before: tokio::time::Instant::now(),
            lookout: Lookout::default(),
            takes_modes: None,
            misnamed: Misnamed::default(),
        };
        tokio::spawn(scanner.run())
    }

    /// What planning goes by: whose copies conflict, today's date, and which names this disk can hold.
    async fn rules(&self) -> Box<dyn Fn() -> Rules + Send> {
        let name = match &self.config.name {
            Some(name) => name.clone(),
            None => tokio::select! {
                who = self.api.who_am_i() => who.map_or_else(|_| host_name(), |who| who.device_name),
                () = self.stop.cancelled() => host_name(),
            },
        };
        let tag: String = self.root.id().to_string().chars().take(SWAP_TAG_CHARS).collect();
        let root = self.root.clone();
        let probed = tokio::task::spawn_blocking(move || root.probe_names()).await;
        let names = match probed {
            Ok(Ok(names)) => NameRules {
                case_blind: names.case_blind,
                normalising: names.normalising,
                windows: cfg!(windows),
            },
            Ok(Err(_)) | Err(_) => NameRules::default(),
        };
        Box::new(move || Rules {
            name: name.clone(),
            tag: tag.clone(),
            date: today(),
            names,
            deletes: Deletes::Allowed,
            unread: std::collections::BTreeSet::new(),
            sends_held: false,
            operations_max: 0,
        })
    }
}

/// What this machine calls itself: for when the gateway cannot be asked for the device's name.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "this device".to_owned() } else { name }
}

fn close(owner: super::state_thread::StateOwner) {
    if let Err(error) = owner.join() {
        tracing::warn!(%error, "the state was not closed cleanly; its log is read at the next start");
    }
}

/// Removes what has been in the local trash for long, now and once a day.
async fn empty_trash(root: Arc<Root>, stop: CancellationToken) {
    loop {
        let emptied = root.clone();
        match tokio::task::spawn_blocking(move || emptied.empty_trash(TRASH_DAYS)).await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(days)) => tracing::info!(days, "old trash removed"),
            Ok(Err(error)) => tracing::warn!(%error, "the trash cannot be emptied"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(24 * 60 * 60)) => {}
        }
    }
}

/// The date here, as conflicted copies have it.
fn today() -> String {
    jiff::Timestamp::now().to_zoned_datetime(jiff::tz::TimeZone::system()).date().to_string()
}

#[cfg(test)]
mod tests;
