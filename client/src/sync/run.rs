//! The session's loop: it alone decides what is done next. Others tell it what happened; it plans, hands out work, and
//! tells those who watch.
//!
//! Invariants:
//! - A node is worked on by at most one task at a time.
//! - Nothing is planned before the disk was scanned whole and the server's tree is known whole; nothing is deleted
//!   while either is in doubt, or the deletes are so many that they wait for a confirmation.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::config::{DeleteGuard, Limits};
use super::execute::{download_large, download_small, local, remote, upload_large, upload_small};
use super::follower::{CheckNow, FollowerEvent};
use super::handle::{Command, ExcludeError};
use super::planning::{PlanInput, PlanStep, plan_step};
use super::queues::{Lane, Portion, Queues};
use super::scanner::{ScanEvent, ScanRequest};
use super::shared::Shared;
use super::status::{Done, Quiet, Waiting};
use super::task::{Again, End, Ended, Line};
use super::waits::{Until, Waits};
use crate::planner::Rules;
use crate::planner::model::{NodeId, ROOT};
use crate::state::trees::Side;

/// While tasks run, planning anew takes at most this share of the time: one part in five.
const PLAN_PAUSE_FACTOR: u32 = 4;
/// How often the status is told while something is going on.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);
/// A gateway that stays away for so long is not waited for by who asks for quiet.
const OFFLINE_QUIET: Duration = Duration::from_secs(20);

/// What the loop needs of the parts that run beside it.
pub(crate) struct Channels {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) follower: mpsc::Receiver<FollowerEvent>,
    pub(crate) checks: mpsc::Sender<CheckNow>,
    pub(crate) scanner: mpsc::Receiver<ScanEvent>,
    pub(crate) scans: mpsc::Sender<ScanRequest>,
}

pub(crate) struct Run {
    shared: Shared,
    /// Ends all that is under way, at the end of the session.
    stop: CancellationToken,
    channels: Channels,
    board: Board,
    guard: DeleteGuard,
    rules: Box<dyn Fn() -> Rules + Send>,
    queues: Queues,
    tasks: JoinSet<Vec<Ended>>,
    running: HashMap<tokio::task::Id, (Lane, Vec<NodeId>)>,
    busy: HashSet<NodeId>,
    waits: Waits,
    want_plan: bool,
    plan_not_before: Instant,
    last: PlanStep,
    online: bool,
    offline_since: Instant,
    paused: bool,
    /// The server's tree is known whole; the disk was scanned whole, once; the last whole scan left nothing out.
    remote_known: bool,
    scanned: bool,
    complete: bool,
    unquiet: usize,
    trouble: Option<String>,
    confirmed: u64,
    quiet: Vec<oneshot::Sender<Quiet>>,
    /// A last look at both sides before it is said to be quiet, and whether anything happened since it began.
    checking: Option<oneshot::Receiver<()>>,
    disturbed: bool,
}

/// Why the loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RunEnd {
    /// It was told to.
    Stopped,
    /// It cannot go on.
    Failed(String),
    /// The state is damaged: begin anew with a new one.
    Damaged,
}

enum Event {
    Command(Option<Command>),
    Follower(Option<FollowerEvent>),
    Scan(Option<ScanEvent>),
    Task(Result<(tokio::task::Id, Vec<Ended>), tokio::task::JoinError>),
    Checked,
    Time,
}

impl Run {
    pub(crate) fn new(
        shared: Shared,
        stop: CancellationToken,
        channels: Channels,
        board: Board,
        guard: DeleteGuard,
        rules: Box<dyn Fn() -> Rules + Send>,
    ) -> Self {
        let now = Instant::now();
        Self {
            shared,
            stop,
            channels,
            board,
            guard,
            rules,
            queues: Queues::default(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            busy: HashSet::new(),
            waits: Waits::default(),
            want_plan: true,
            plan_not_before: now,
            last: PlanStep::default(),
            online: false,
            offline_since: now,
            paused: false,
            remote_known: false,
            scanned: false,
            complete: false,
            unquiet: 0,
            trouble: None,
            confirmed: 0,
            quiet: Vec::new(),
            checking: None,
            disturbed: false,
        }
    }

    /// Runs until it is told to stop, or cannot go on; all tasks have ended then. Gives the commands' receiver back.
    pub(crate) async fn run(mut self) -> (RunEnd, mpsc::Receiver<Command>, Board) {
        self.show_excluded().await;
        let end = loop {
            if let Some(end) = self.plan_if_due().await {
                break end;
            }
            self.dispatch();
            self.look_for_quiet();
            self.tell(false).await;
            let event = self.next_event().await;
            if let Some(end) = self.handle(event).await {
                break end;
            }
        };
        self.stop.cancel();
        self.shared.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.tell(true).await;
        (end, self.channels.commands, self.board)
    }

    async fn next_event(&mut self) -> Event {
        let due = self.next_due();
        let checking = async {
            match &mut self.checking {
                Some(checking) => drop(checking.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = self.channels.commands.recv() => Event::Command(command),
            event = self.channels.follower.recv() => Event::Follower(event),
            event = self.channels.scanner.recv() => Event::Scan(event),
            Some(ended) = self.tasks.join_next_with_id() => Event::Task(ended),
            () = checking => Event::Checked,
            () = tokio::time::sleep_until(due) => Event::Time,
        }
    }

    fn next_due(&self) -> Instant {
        let now = Instant::now();
        let mut due = now + Duration::from_secs(30);
        if let Some(next) = self.waits.next() {
            due = due.min(next);
        }
        if self.want_plan && self.may_plan() {
            due = due.min(self.plan_not_before);
        }
        if !self.running.is_empty() || self.board.has_lines() {
            due = due.min(now + STATUS_INTERVAL);
        }
        if !self.online && !self.quiet.is_empty() {
            due = due.min(self.offline_since + OFFLINE_QUIET);
        }
        due.max(now + Duration::from_millis(1))
    }

    async fn handle(&mut self, event: Event) -> Option<RunEnd> {
        match event {
            Event::Command(Some(command)) => return self.command(command).await,
            Event::Command(None) => return Some(RunEnd::Stopped),
            Event::Follower(event) => return self.follower(event?).await,
            Event::Scan(event) => return self.scan(event?).await,
            Event::Task(ended) => return self.ended(ended).await,
            Event::Checked => {
                self.checking = None;
                self.answer_quiet(false);
            }
            Event::Time => {
                if self.waits.wake(None, Instant::now()) {
                    self.want_plan = true;
                }
            }
        }
        None
    }

    async fn command(&mut self, command: Command) -> Option<RunEnd> {
        match command {
            Command::Stop => return Some(RunEnd::Stopped),
            Command::Pause(true) => self.pause(),
            Command::Pause(false) => self.resume(),
            Command::ConfirmDeletes => {
                self.confirmed = self.last.deletes_to_confirm;
                self.disturb();
            }
            Command::SetLimits(limits) => self.set_limits(limits),
            Command::SetExcluded { path, excluded, done } => {
                let set = self.set_excluded(path, excluded).await;
                self.show_excluded().await;
                drop(done.send(set));
                self.disturb();
            }
            Command::Rescan => self.request_scan(ScanRequest::Whole).await,
            Command::LogTail { count, done } => {
                self.tell(true).await;
                let tail = self.shared.state.ask(move |state| state.log_tail(count)).await;
                drop(done.send(tail.unwrap_or_default()));
            }
            Command::Quiet { done } => self.quiet.push(done),
        }
        None
    }

    fn pause(&mut self) {
        self.paused = true;
        self.shared.stop.cancel();
        for node in self.queues.clear() {
            self.busy.remove(&node);
        }
    }

    fn resume(&mut self) {
        if self.paused {
            self.paused = false;
            self.shared.stop = self.stop.child_token();
            self.disturb();
        }
    }

    fn set_limits(&mut self, limits: Limits) {
        self.shared.up.set(limits.up);
        self.shared.down.set(limits.down);
        self.board.limits(limits);
    }

    async fn set_excluded(&mut self, path: String, excluded: bool) -> Result<(), ExcludeError> {
        let asked = path.clone();
        let done = self.shared.state.ask(move |state| {
            if !excluded {
                let known = state.excluded()?.into_iter().find(|(_, known)| *known == asked);
                return match known {
                    Some((entry, _path)) => state.include(entry).map(|_| Ok(())),
                    None => Ok(Err("it is not excluded")),
                };
            }
            let Some(node) = state.node_at_path(Side::Remote, &asked)? else {
                return Ok(Err("there is no such folder on the server"));
            };
            let is_folder = state
                .side(Side::Remote, node)?
                .is_some_and(|value| value.kind == crate::planner::model::Kind::Folder);
            match state.remote_facts(node)? {
                Some(facts) if is_folder && node != ROOT => {
                    state.exclude(facts.entry, &asked).map(|()| Ok(()))
                }
                _ => Ok(Err("only folders can be excluded")),
            }
        });
        let refused = |reason: String| ExcludeError::Refused { path: path.clone(), reason };
        match done.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(refused(reason.to_owned())),
            Err(error) => Err(refused(error.to_string())),
        }
    }

    async fn show_excluded(&mut self) {
        if let Ok(excluded) = self.shared.state.ask(|state| state.excluded()).await {
            self.board.excluded(excluded.into_iter().map(|(_entry, path)| path).collect());
        }
    }

    /// Something happened that may change what is to be done.
    fn disturb(&mut self) {
        self.want_plan = true;
        self.disturbed = true;
    }

    async fn follower(&mut self, event: FollowerEvent) -> Option<RunEnd> {
        match event {
            FollowerEvent::Online => {
                self.online = true;
                self.remote_known = true;
                self.waits.wake(Some(Until::Online), Instant::now());
                self.disturb();
            }
            FollowerEvent::Offline(reason) => {
                if self.online {
                    self.offline_since = Instant::now();
                }
                self.online = false;
                self.board.offline(reason);
            }
            FollowerEvent::Whole(count) => {
                self.waits.wake(Some(Until::RemoteNews), Instant::now());
                if count > 0 {
                    self.disturb();
                } else {
                    self.want_plan = true;
                }
            }
            FollowerEvent::Ended(reason) => return Some(RunEnd::Failed(reason)),
        }
        None
    }

    async fn scan(&mut self, event: ScanEvent) -> Option<RunEnd> {
        match event {
            ScanEvent::Applied { changed, whole, complete, skipped, unquiet } => {
                self.trouble = None;
                self.unquiet = unquiet;
                if whole {
                    self.scanned = true;
                    self.complete = complete;
                    self.board.skipped(skipped, true);
                } else {
                    self.board.skipped(skipped, false);
                }
                changed.iter().for_each(|node| self.waits.forget(*node));
                let woken = self.waits.wake(Some(Until::Scanned), Instant::now());
                if whole || woken || !changed.is_empty() {
                    self.disturb();
                }
            }
            ScanEvent::Trouble(reason) => {
                if self.trouble.as_ref() != Some(&reason) {
                    self.board.session(reason.clone());
                }
                self.trouble = Some(reason);
                for node in self.queues.clear() {
                    self.busy.remove(&node);
                }
            }
            ScanEvent::Failed(reason) => {
                self.complete = false;
                self.board.line(Line { what: Done::Failed, path: String::new(), detail: reason });
            }
            ScanEvent::Watching(trouble) => {
                self.board.watching(trouble.is_none());
                if let Some(trouble) = trouble {
                    self.board.session(trouble);
                }
            }
            ScanEvent::State(reason) => return Some(self.state_failed(reason)),
        }
        None
    }

    fn state_failed(&self, reason: String) -> RunEnd {
        if self.shared.state.is_damaged() { RunEnd::Damaged } else { RunEnd::Failed(reason) }
    }

    async fn ended(
        &mut self,
        ended: Result<(tokio::task::Id, Vec<Ended>), tokio::task::JoinError>,
    ) -> Option<RunEnd> {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, ended),
            Err(error) => {
                tracing::error!(%error, "a task panicked");
                (error.id(), Vec::new())
            }
        };
        let Some((lane, nodes)) = self.running.remove(&id) else { return None };
        self.queues.ended(lane);
        for node in &nodes {
            self.busy.remove(node);
        }
        let told: HashSet<NodeId> = ended.iter().map(|ended| ended.node).collect();
        let lost = nodes.into_iter().filter(|node| !told.contains(node));
        let lost: Vec<Ended> =
            lost.map(|node| Ended::failed(node, "an error in the program", Again::Later)).collect();
        if self.shared.state.is_damaged() {
            return Some(RunEnd::Damaged);
        }
        self.take_ended(ended.into_iter().chain(lost)).await
    }

    async fn take_ended(&mut self, all: impl Iterator<Item = Ended>) -> Option<RunEnd> {
        let now = Instant::now();
        let mut rescan = Vec::new();
        let mut check = false;
        for ended in all {
            if let End::Failed { reason, again: Again::Never } = &ended.end {
                return Some(RunEnd::Failed(reason.clone()));
            }
            match &ended.end {
                End::LocalChanged => rescan.push(ended.node),
                End::RemoteChanged => check = true,
                _ => {}
            }
            let fresh = self.waits.ended(ended.node, &ended.end, now);
            if let End::Failed { reason, .. } = &ended.end
                && fresh
            {
                self.board.failed(ended.node, reason.clone());
            }
            if let Some(line) = ended.line {
                self.board.line(line);
            }
        }
        self.disturb();
        if !rescan.is_empty() {
            self.rescan_around(rescan).await;
        }
        if check {
            let (answer, _nobody) = oneshot::channel();
            // When it is full, somebody asks already.
            drop(self.channels.checks.try_send(answer));
        }
        None
    }

    /// Has the folders looked at that nodes are in, or are to come to.
    async fn rescan_around(&mut self, nodes: Vec<NodeId>) {
        let folders = self.shared.state.ask(move |state| {
            let mut folders = BTreeSet::new();
            for node in nodes {
                for side in [Side::Local, Side::Remote] {
                    folders.extend(state.side(side, node)?.map(|value| value.place.parent));
                }
            }
            Ok(folders)
        });
        if let Ok(folders) = folders.await {
            self.request_scan(ScanRequest::Nodes(folders.into_iter().collect())).await;
        }
    }

    async fn request_scan(&mut self, request: ScanRequest) {
        self.disturbed = true;
        drop(self.channels.scans.send(request).await);
    }

    fn may_plan(&self) -> bool {
        !self.paused && self.scanned && self.remote_known && self.trouble.is_none()
    }

    async fn plan_if_due(&mut self) -> Option<RunEnd> {
        let now = Instant::now();
        let due = self.running.is_empty() || now >= self.plan_not_before;
        if !self.want_plan || !self.may_plan() || !due {
            return None;
        }
        self.want_plan = false;
        let waiting: Vec<(NodeId, String)> =
            self.waits.waiting().map(|(node, wait)| (node, wait.reason.clone())).collect();
        let busy = self.busy.iter().copied().chain(waiting.iter().map(|(node, _why)| *node)).collect();
        let input = PlanInput {
            busy,
            rules: (self.rules)(),
            guard: self.guard,
            confirmed: self.confirmed,
            withheld: !self.complete,
            named: waiting,
        };
        let begun = Instant::now();
        let step = match self.shared.state.ask(move |state| plan_step(state, input)).await {
            Ok(step) => step,
            Err(error) => return Some(self.state_failed(error.to_string())),
        };
        self.plan_not_before = Instant::now() + begun.elapsed() * PLAN_PAUSE_FACTOR;
        self.take_step(step).await
    }

    async fn take_step(&mut self, mut step: PlanStep) -> Option<RunEnd> {
        if step.torn {
            return None;
        }
        if step.deletes == 0 {
            self.confirmed = 0;
        }
        self.want_plan |= step.more;
        self.waits.drop_over(|node| step.dirty.contains(&node));
        for task in step.tasks.drain(..) {
            self.busy.insert(task.node());
            self.queues.push(task);
        }
        let failed = std::mem::take(&mut step.failed);
        self.last = step;
        if failed.is_empty() { None } else { self.take_ended(failed.into_iter()).await }
    }

    fn dispatch(&mut self) {
        if self.paused || self.trouble.is_some() {
            return;
        }
        for lane in Lane::ALL {
            while !lane.is_remote() || self.online {
                let Some(portion) = self.queues.take(lane) else { break };
                let nodes = portion.nodes();
                let shared = self.shared.clone();
                let handle = self.tasks.spawn(async move { carry_out(&shared, portion).await });
                self.running.insert(handle.id(), (lane, nodes));
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.scanned && self.remote_known && self.online && self.is_at_rest() && self.unquiet == 0
    }

    fn is_at_rest(&self) -> bool {
        self.running.is_empty() && self.busy.is_empty() && !self.want_plan && !self.waits.any_passing()
    }

    /// Once nothing is left to do, has both sides looked at once more before it says so.
    fn look_for_quiet(&mut self) {
        self.quiet.retain(|quiet| !quiet.is_closed());
        if self.quiet.is_empty() || self.checking.is_some() {
            return;
        }
        let gone = !self.online && self.offline_since.elapsed() >= OFFLINE_QUIET;
        if gone || self.trouble.is_some() || (self.paused && self.running.is_empty()) {
            self.answer_quiet(true);
            return;
        }
        if !self.is_idle() {
            return;
        }
        self.disturbed = false;
        let (done, checking) = oneshot::channel();
        let (checks, scans) = (self.channels.checks.clone(), self.channels.scans.clone());
        tokio::spawn(async move {
            let (remote, remote_done) = oneshot::channel();
            let (local, local_done) = oneshot::channel();
            if checks.send(remote).await.is_ok() && scans.send(ScanRequest::Settled(local)).await.is_ok() {
                // Who drops them has ended, and with it the session.
                drop(remote_done.await);
                drop(local_done.await);
            }
            let _nobody = done.send(());
        });
        self.checking = Some(checking);
    }

    fn answer_quiet(&mut self, stuck: bool) {
        if !stuck && (self.disturbed || !self.is_idle()) {
            return;
        }
        let agreed = !stuck && self.complete && self.last.dirty.is_empty();
        let mut waiting = self.last.waiting.clone();
        if stuck || !self.complete {
            let why = match (&self.trouble, self.online, self.paused) {
                (Some(trouble), _, _) => trouble.clone(),
                (None, _, true) => "paused".to_owned(),
                (None, false, _) => self.board.offline_reason(),
                (None, true, false) => "not all of the folder could be read".to_owned(),
            };
            waiting.insert(0, Waiting { path: String::new(), why });
        }
        for quiet in self.quiet.drain(..) {
            drop(quiet.send(Quiet { agreed, waiting: waiting.clone() }));
        }
    }

    /// Tells how things are; log lines go to the state now and then, or at once.
    async fn tell(&mut self, at_once: bool) {
        let view = super::board::View {
            online: self.online,
            paused: self.paused,
            looking: !self.scanned || !self.remote_known,
            trouble: self.trouble.clone(),
            at_rest: self.is_at_rest(),
            running: !self.running.is_empty(),
            step: &self.last,
        };
        self.board.publish(&view, &self.shared);
        self.board.flush(&self.shared.state, at_once).await;
    }
}

async fn carry_out(shared: &Shared, portion: Portion) -> Vec<Ended> {
    match portion {
        Portion::Remote(tasks) => remote::run(shared, tasks).await,
        Portion::Local(tasks) => local::run(shared, tasks).await,
        Portion::UploadSmall(tasks) => upload_small::run(shared, tasks).await,
        Portion::DownloadSmall(tasks) => download_small::run(shared, tasks).await,
        Portion::UploadLarge(task) => vec![upload_large::run(shared, task).await],
        Portion::DownloadLarge(task) => vec![download_large::run(shared, task).await],
    }
}
