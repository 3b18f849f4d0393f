//! The session's loop: it alone decides what is done next. Others tell it what happened; it plans, hands out work, and
//! tells those who watch.
//!
//! Invariants:
//! - A node is worked on by at most one task at a time.
//! - Nothing is planned before the disk was scanned whole and the server's tree is known whole; nothing is deleted
//!   while either is in doubt, or the deletes are so many that they wait for a confirmation.

mod deletes;
mod hear;
mod left_out;
mod obstacles;
mod quiet;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::board::{Board, now_ms};
use super::config::{DeleteGuard, OnDeletes};
use super::execute::{compare, download_large, download_small, local, remote, upload_large, upload_small};
use super::follower::{CheckNow, FollowerEvent};
use super::guard::Guard;
use super::handle::Command;
use super::planning::{PlanInput, PlanStep, plan_step};
use super::queues::{Lane, Portion, Queues};
use super::rules_first;
use super::scanner::{ScanEvent, ScanRequest};
use super::shared::Shared;
use super::status::Quiet;
use super::task::Ended;
use super::waits::Waits;
use crate::local::rel::Rel;
use crate::memory;
use crate::path::RemotePath;
use crate::planner::Rules;
use crate::planner::model::{NodeId, ROOT};

/// So much to do leaves memory behind that is worth giving back.
const DIRTY_LARGE: usize = 1_000;
/// While tasks run, planning anew takes at most this share of the time: one part in five.
const PLAN_PAUSE_FACTOR: u32 = 4;
/// How long the end waits for what is under way.
const END_TIME_MAX: Duration = Duration::from_secs(5);
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
    /// Ends all that is under way; cancelled by who ends the session, or at its end.
    stop: CancellationToken,
    channels: Channels,
    board: Board,
    guard: Guard,
    /// What waits to be confirmed is to be undone instead, once it is known.
    brings_back: bool,
    remote_path: RemotePath,
    rules: Box<dyn Fn() -> Rules + Send>,
    queues: Queues,
    tasks: JoinSet<Vec<Ended>>,
    running: HashMap<tokio::task::Id, (Lane, Vec<NodeId>)>,
    busy: HashSet<NodeId>,
    waits: Waits,
    /// Local files that are no earlier versions of what is at their places on the server.
    compared: HashSet<NodeId>,
    want_plan: bool,
    plan_not_before: Instant,
    last: PlanStep,
    /// The most that was ever to be done since nothing was.
    dirty_max: usize,
    online: bool,
    offline_since: Instant,
    paused: bool,
    /// The server's tree is known whole; the disk was scanned whole, once; the last whole scan did not fail.
    remote_known: bool,
    scanned: bool,
    complete: bool,
    /// Folders that the last scans could not read.
    unread: BTreeMap<Rel, NodeId>,
    unquiet: usize,
    /// Everything is to be scanned once the scanner takes requests again.
    scan_owed: bool,
    trouble: Option<String>,
    told: Instant,
    quiet: Vec<oneshot::Sender<Quiet>>,
    /// A last look at both sides before it is said to be quiet, and whether anything happened since it began.
    checking: Option<oneshot::Receiver<()>>,
    /// Rules have changed here, and what they are about is being looked at: nothing new is sent meanwhile.
    reading_rules: Option<oneshot::Receiver<()>>,
    disturbed: bool,
    /// When what keeps something waiting is looked at next.
    obstacles_due: Instant,
    /// Of very many, the last one that was looked at.
    looked_to: NodeId,
    /// Everything was scanned once more, for what could not be read, before it is said to be quiet.
    looked_for_unread: bool,
    /// Where folders were that this session moved, and since when they are elsewhere, until a scan that began later says
    /// how things are.
    moved_from: Vec<(Rel, Instant)>,
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
    /// The folder is on another disk than the one that is open: begin anew with that.
    Remounted,
    /// The server went back to an older state; both of its histories are the same up to this number. Begin anew once what
    /// was known beyond that is forgotten.
    WentBack(u64),
}

enum Event {
    Command(Option<Command>),
    Follower(Option<FollowerEvent>),
    Scan(Option<ScanEvent>),
    Task(Result<(tokio::task::Id, Vec<Ended>), tokio::task::JoinError>),
    Checked,
    RulesRead,
    Time,
    Stop,
}

impl Run {
    pub(crate) fn new(
        shared: Shared,
        stop: CancellationToken,
        channels: Channels,
        board: Board,
        (guard, waiting): (DeleteGuard, Option<OnDeletes>),
        remote_path: RemotePath,
        rules: Box<dyn Fn() -> Rules + Send>,
    ) -> Self {
        let now = Instant::now();
        let mut guard = Guard::new(guard);
        let brings_back = waiting == Some(OnDeletes::BringBack);
        if let Some(OnDeletes::Confirm(shown)) = waiting {
            guard.confirm_shown(shown);
        }
        Self {
            shared,
            stop,
            channels,
            board,
            guard,
            brings_back,
            remote_path,
            rules,
            queues: Queues::default(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            busy: HashSet::new(),
            waits: Waits::default(),
            compared: HashSet::new(),
            want_plan: true,
            plan_not_before: now,
            last: PlanStep::default(),
            dirty_max: 0,
            online: false,
            offline_since: now,
            paused: false,
            remote_known: false,
            scanned: false,
            complete: false,
            unread: BTreeMap::new(),
            unquiet: 0,
            scan_owed: false,
            trouble: None,
            told: now,
            quiet: Vec::new(),
            checking: None,
            reading_rules: None,
            disturbed: false,
            obstacles_due: now,
            looked_to: ROOT,
            looked_for_unread: false,
            moved_from: Vec::new(),
        }
    }

    /// Runs until it is told to stop, or cannot go on; all tasks have ended then. Gives the commands' receiver back.
    pub(crate) async fn run(mut self) -> (RunEnd, mpsc::Receiver<Command>, Board) {
        self.show_excluded().await;
        self.restore_guard().await;
        let end = loop {
            if let Some(end) = self.plan_if_due().await {
                break end;
            }
            self.dispatch();
            self.request_owed_scan();
            self.look_at_obstacles().await;
            self.look_for_quiet().await;
            self.tell(false).await;
            let event = self.next_event().await;
            if let Some(end) = self.handle(event).await {
                break end;
            }
        };
        self.stop.cancel();
        self.shared.stop.cancel();
        self.end_tasks().await;
        self.tell(true).await;
        (end, self.channels.commands, self.board)
    }

    /// Waits for what is under way, but not for a gateway that does not answer: what was done and not recorded shows
    /// at the next start, as after a crash.
    async fn end_tasks(&mut self) {
        let tasks = &mut self.tasks;
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_TIME_MAX, ended).await.is_err() {
            self.tasks.abort_all();
            while self.tasks.join_next().await.is_some() {}
        }
    }

    async fn next_event(&mut self) -> Event {
        let due = self.next_due();
        let checking = async {
            match &mut self.checking {
                Some(checking) => drop(checking.await),
                None => std::future::pending().await,
            }
        };
        let reading = async {
            match &mut self.reading_rules {
                Some(reading) => drop(reading.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => Event::Stop,
            command = self.channels.commands.recv() => Event::Command(command),
            event = self.channels.follower.recv() => Event::Follower(event),
            event = self.channels.scanner.recv() => Event::Scan(event),
            Some(ended) = self.tasks.join_next_with_id() => Event::Task(ended),
            () = checking => Event::Checked,
            () = reading => Event::RulesRead,
            () = tokio::time::sleep_until(due) => Event::Time,
        }
    }

    fn next_due(&self) -> Instant {
        let now = Instant::now();
        let mut due = now + Duration::from_secs(30);
        if let Some(next) = self.waits.next() {
            due = due.min(next);
        }
        if self.waits.any_obstacle() {
            due = due.min(self.obstacles_due);
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
            rules: Rules {
                unread: self.unread.values().copied().collect(),
                sends_held: self.reading_rules.is_some(),
                ..(self.rules)()
            },
            guard: std::mem::take(&mut self.guard),
            now,
            withheld: !self.complete,
            now_ms: now_ms(),
            named: waiting,
            compared: std::mem::take(&mut self.compared),
            remote_path: self.remote_path.clone(),
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
        self.guard = std::mem::take(&mut step.guard);
        if step.torn {
            return None;
        }
        self.want_plan |= step.more;
        self.waits.drop_agreed(|node| step.dirty.contains(&node));
        for task in step.tasks.drain(..) {
            self.busy.insert(task.node());
            self.queues.push(task);
        }
        self.compared = std::mem::take(&mut step.compared);
        let failed = std::mem::take(&mut step.failed);
        self.dirty_max = self.dirty_max.max(step.dirty.len());
        if step.dirty.is_empty() && std::mem::take(&mut self.dirty_max) > DIRTY_LARGE {
            drop(tokio::task::spawn_blocking(memory::give_back_free));
        }
        let waits = step.deletes_to_confirm > 0;
        self.last = step;
        if waits && std::mem::take(&mut self.brings_back) {
            drop(self.bring_back(false).await);
        }
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
                let held = self.reading_rules.is_some();
                let handle = self.tasks.spawn(async move { carry_out(&shared, portion, held).await });
                self.running.insert(handle.id(), (lane, nodes));
            }
        }
    }

    /// Tells how things are; log lines go to the state now and then, or at once.
    async fn tell(&mut self, at_once: bool) {
        let due = at_once || self.running.is_empty() || self.told.elapsed() >= STATUS_INTERVAL / 2;
        if !due {
            return;
        }
        self.told = Instant::now();
        let view = super::board::View {
            online: self.online,
            paused: self.paused,
            looking: !self.scanned || !self.remote_known,
            trouble: self.trouble.clone(),
            at_rest: self.is_at_rest(),
            running: !self.running.is_empty(),
            deletes_shown: self.deletes_shown(),
            step: &self.last,
        };
        self.board.publish(&view, &self.shared);
        self.board.flush(&self.shared.state, at_once).await;
    }
}

/// `held`: nothing new is to be sent now.
async fn carry_out(shared: &Shared, portion: Portion, held: bool) -> Vec<Ended> {
    let (portion, kept_back) = rules_first::keep_back(shared, portion, held).await;
    let Some(portion) = portion else { return kept_back };
    let places = portion.local_places();
    let ended = perform(shared, portion).await;
    let mut ended = super::obstacles::name(shared, places, ended).await;
    ended.extend(kept_back);
    ended
}

async fn perform(shared: &Shared, portion: Portion) -> Vec<Ended> {
    match portion {
        Portion::Remote(tasks) => remote::run(shared, tasks).await,
        Portion::Local(tasks) => local::run(shared, tasks).await,
        Portion::UploadSmall(tasks) => upload_small::run(shared, tasks).await,
        Portion::DownloadSmall(tasks) => download_small::run(shared, tasks).await,
        Portion::UploadLarge(task) => vec![upload_large::run(shared, task).await],
        Portion::Compare(tasks) => compare::run(shared, tasks).await,
        Portion::DownloadLarge(task) => vec![download_large::run(shared, task).await],
    }
}
