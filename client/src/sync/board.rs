//! What the session shows: its status, and the log of what it did.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{broadcast, watch};

use super::config::Limits;
use super::planning::PlanStep;
use super::scanner::{LeftOut, LeftOutKind};
use super::shared::{DirectionCounters, Shared};
use super::state_thread::StateThread;
use super::status::{Done, LogEntry, Phase, Status, Traffic, WAITING_LISTED_MAX, Waiting};
use super::task::{Line, MovedFolder};
use super::throttle::Throttle;
use crate::local::rel::Rel;
use crate::local::scan::{IGNORED_FOLDERS_MAX, Scope, ScopeFolder};
use crate::planner::model::NodeId;

/// What is said where all that could be read agrees.
const LEFT_OUT: &str = "not all that is in the folder is kept in sync";
/// Lines that are written at once; more wait for the next time.
const LINES_MAX: usize = 2_000;
/// The character that comes after `/`.
const AFTER_SLASH: char = '0';
/// Time between writes of lines.
const FLUSH_INTERVAL: std::time::Duration = std::time::Duration::from_millis(150);

/// How the session is, as its loop sees it.
pub(crate) struct View<'a> {
    pub(crate) online: bool,
    pub(crate) paused: bool,
    pub(crate) looking: bool,
    pub(crate) trouble: Option<String>,
    pub(crate) at_rest: bool,
    pub(crate) running: bool,
    pub(crate) deletes_shown: String,
    pub(crate) step: &'a PlanStep,
}

enum Waited {
    Line(Line),
    /// A failure, whose path is not known yet.
    Failed(NodeId, String),
}

/// Something that is left out for good.
struct Skipped {
    why: String,
    kind: LeftOutKind,
}

/// Something that could not be read.
struct Unread {
    why: String,
    /// A look at its folder alone tells whether it still is so.
    listed: bool,
}

pub(crate) struct Board {
    status: watch::Sender<Status>,
    events: broadcast::Sender<LogEntry>,
    lines: Vec<(u64, Waited)>,
    flushed: tokio::time::Instant,
    /// Left out for good, and what could not be read.
    skipped: BTreeMap<String, Skipped>,
    unread: BTreeMap<String, Unread>,
    /// How much is ignored, by folder.
    ignored: BTreeMap<String, u64>,
    offline: String,
}

pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl Board {
    pub(crate) fn new(status: watch::Sender<Status>, events: broadcast::Sender<LogEntry>) -> Self {
        Self {
            status,
            events,
            lines: Vec::new(),
            flushed: tokio::time::Instant::now(),
            skipped: BTreeMap::new(),
            unread: BTreeMap::new(),
            ignored: BTreeMap::new(),
            offline: String::new(),
        }
    }

    pub(crate) fn line(&mut self, line: Line) {
        self.lines.push((now_ms(), Waited::Line(line)));
    }

    pub(crate) fn session(&mut self, detail: String) {
        self.line(Line { what: Done::Session, path: String::new(), detail });
    }

    pub(crate) fn failed(&mut self, node: NodeId, reason: String) {
        self.lines.push((now_ms(), Waited::Failed(node, reason)));
    }

    pub(crate) fn has_lines(&self) -> bool {
        !self.lines.is_empty()
    }

    pub(crate) fn limits(&mut self, limits: Limits) {
        self.status.send_modify(|status| status.limits = limits);
    }

    pub(crate) fn watching(&mut self, watching: bool) {
        self.status.send_if_modified(|status| {
            let changed = status.watching != watching;
            status.watching = watching;
            changed
        });
    }

    pub(crate) fn excluded(&mut self, excluded: Vec<String>) {
        self.status.send_if_modified(|status| {
            let changed = status.excluded != excluded;
            status.excluded = excluded;
            changed
        });
    }

    pub(crate) fn offline(&mut self, reason: String) {
        if self.offline != reason {
            self.session(reason.clone());
        }
        self.offline = reason;
    }

    pub(crate) fn offline_reason(&self) -> String {
        if self.offline.is_empty() { "the gateway does not answer".to_owned() } else { self.offline.clone() }
    }

    /// What a scan left out. Where it has looked at all, that is all there is; where it has only listed folders, it
    /// has looked at the files in them, not at what is in the folders there.
    pub(crate) fn skipped(&mut self, skipped: Vec<LeftOut>, scope: &Scope) {
        self.skipped.retain(|path, skipped| !is_within(path, scope, skipped.kind != LeftOutKind::OtherRoot));
        self.unread.retain(|path, unread| !is_within(path, scope, unread.listed));
        for LeftOut { waiting: Waiting { path, why }, kind } in skipped {
            match kind {
                LeftOutKind::Meant | LeftOutKind::OtherRoot | LeftOutKind::Elsewhere
                    if self.skipped.len() < WAITING_LISTED_MAX =>
                {
                    self.skipped.insert(path, Skipped { why, kind });
                }
                LeftOutKind::Closed | LeftOutKind::Unread | LeftOutKind::Changing | LeftOutKind::Rules
                    if self.unread.len() < WAITING_LISTED_MAX =>
                {
                    self.unread.insert(path, Unread { why, listed: kind != LeftOutKind::Closed });
                }
                _ => {}
            }
        }
    }

    /// How much a scan found to be ignored in the folders that it has listed.
    pub(crate) fn ignored(&mut self, ignored: Vec<(String, u64)>, scope: &Scope) {
        self.ignored.retain(|folder, _count| !is_listed(folder, scope));
        for (folder, count) in ignored {
            if count == 0 {
                self.ignored.remove(&folder);
            } else if self.ignored.len() < IGNORED_FOLDERS_MAX || self.ignored.contains_key(&folder) {
                self.ignored.insert(folder, count);
            }
        }
    }

    /// What was left out in a folder is where that folder is now.
    pub(crate) fn moved(&mut self, folder: &MovedFolder) {
        rekey(&mut self.skipped, folder);
        rekey(&mut self.unread, folder);
        rekey(&mut self.ignored, folder);
    }

    /// A folder is not there any more: what is left out in it is told of where it is now, if it is anywhere.
    pub(crate) fn left(&mut self, folder: &Rel) {
        forget(&mut self.skipped, folder);
        forget(&mut self.unread, folder);
        forget(&mut self.ignored, folder);
    }

    /// The folders in those that a scan has listed in which something is left out.
    pub(crate) fn folders_with_left_out(&self, scope: &Scope) -> Vec<Rel> {
        let Scope::Folders(folders) = scope else { return Vec::new() };
        let mut below = BTreeSet::new();
        for ScopeFolder { folder, .. } in folders {
            children(&self.skipped, folder, &mut below);
            children(&self.unread, folder, &mut below);
            children(&self.ignored, folder, &mut below);
        }
        below.into_iter().collect()
    }

    /// What would be kept in sync, but could not be read.
    pub(crate) fn unread(&self) -> Vec<Waiting> {
        let waiting =
            |(path, unread): (&String, &Unread)| Waiting { path: path.clone(), why: unread.why.clone() };
        self.unread.iter().map(waiting).collect()
    }

    /// What is on other file systems, with files that somebody may take to be kept in sync.
    pub(crate) fn left_out_data(&self) -> Vec<Waiting> {
        let left_out = self.skipped.iter().filter(|(_path, skipped)| skipped.kind == LeftOutKind::Elsewhere);
        left_out.map(|(path, skipped)| Waiting { path: path.clone(), why: skipped.why.clone() }).collect()
    }

    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Says how things are, if that has changed.
    pub(crate) fn publish(&mut self, view: &View<'_>, shared: &Shared) {
        if view.online {
            self.offline.clear();
        }
        let (mut phase, mut message) = phase_of(view, &self.offline);
        if phase == Phase::UpToDate && (self.has_unread() || !self.left_out_data().is_empty()) {
            (phase, message) = (Phase::Waiting, LEFT_OUT.to_owned());
        }
        let step = view.step;
        let pending = step.dirty.len() as u64;
        let left_out = self.skipped.iter();
        let left_out =
            left_out.map(|(path, skipped)| Waiting { path: path.clone(), why: skipped.why.clone() });
        let skipped = self.unread().into_iter().chain(left_out).take(WAITING_LISTED_MAX).collect();
        self.status.send_if_modified(|status| {
            let next = Status {
                root: status.root.clone(),
                remote_path: status.remote_path.clone(),
                phase,
                message,
                online: view.online,
                paused: view.paused,
                watching: status.watching,
                agreed_count: step.agreed_count,
                pending_count: pending,
                waiting_count: step.waiting_count,
                waiting: step.waiting.clone(),
                skipped,
                ignored_count: self.ignored.values().sum(),
                deletes_to_confirm: step.deletes_to_confirm,
                deletes_shown: view.deletes_shown.clone(),
                transfers: shared.counters.transfers(),
                up: traffic(&shared.counters.up, &shared.up),
                down: traffic(&shared.counters.down, &shared.down),
                limits: status.limits,
                excluded: status.excluded.clone(),
            };
            let changed = *status != next;
            *status = next;
            changed
        });
    }

    /// Says that the session has ended.
    pub(crate) fn stopped(&mut self, message: &str) {
        self.status.send_modify(|status| {
            status.phase = Phase::Stopped;
            status.online = false;
            status.watching = false;
            message.clone_into(&mut status.message);
        });
    }

    /// Writes the lines that wait, and tells them to those who listen.
    pub(crate) async fn flush(&mut self, state: &StateThread, at_once: bool) {
        let due = self.lines.len() >= LINES_MAX || self.flushed.elapsed() >= FLUSH_INTERVAL;
        if self.lines.is_empty() || !(due || at_once) {
            return;
        }
        self.flushed = tokio::time::Instant::now();
        let lines = std::mem::take(&mut self.lines);
        let written = state.ask(move |state| {
            let mut entries = Vec::with_capacity(lines.len());
            for (time_ms, waited) in lines {
                let line = match waited {
                    Waited::Line(line) => line,
                    Waited::Failed(node, detail) => {
                        Line { what: Done::Failed, path: state.shown_path(node)?, detail }
                    }
                };
                let Line { what, path, detail } = line;
                entries.push(LogEntry { number: 0, time_ms, what, path, detail });
            }
            state.log(&mut entries)?;
            Ok(entries)
        });
        match written.await {
            // Nobody may be listening.
            Ok(entries) => entries.into_iter().for_each(|entry| drop(self.events.send(entry))),
            Err(error) => tracing::warn!(%error, "lines of the log are lost"),
        }
    }
}

/// Whether a scan of this scope has looked at what is at a path; `listed`: listing its folder is enough.
pub(super) fn is_within(path: &str, scope: &Scope, listed: bool) -> bool {
    let Scope::Folders(folders) = scope else { return true };
    let parent = path.rsplit_once('/').map_or("", |(parent, _name)| parent);
    folders.iter().any(|folder| {
        let of = folder.folder.as_str();
        let below = of.is_empty() || parent.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'));
        // A folder that was listed can be looked into now.
        path == of || (listed && parent == of) || (folder.deep && (parent == of || below))
    })
}

/// Whether a scan of this scope has listed a folder, if it is there.
fn is_listed(path: &str, scope: &Scope) -> bool {
    let Scope::Folders(folders) = scope else { return true };
    folders.iter().any(|folder| {
        let of = folder.folder.as_str();
        let is_below = of.is_empty() || path.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'));
        path == of || (folder.deep && is_below)
    })
}

/// Those of the paths that are of a folder, or of what is below it.
fn within<V>(known: &BTreeMap<String, V>, folder: &Rel) -> Vec<String> {
    let folder = folder.as_str();
    let near = known.range(folder.to_owned()..).map(|(path, _known)| path);
    let near = near.map_while(|path| Some((path, path.strip_prefix(folder)?)));
    let within = near.filter(|(_path, below)| below.is_empty() || below.starts_with('/'));
    within.map(|(path, _below)| path.clone()).collect()
}

/// The things in a folder that one of the paths is of, or is below; each is looked for once, however many paths are.
fn children<V>(known: &BTreeMap<String, V>, folder: &Rel, found: &mut BTreeSet<Rel>) {
    let above = if folder.is_root() { String::new() } else { format!("{}/", folder.as_str()) };
    let mut next = Bound::Included(above.clone());
    while let Some((path, _known)) = known.range((next, Bound::Unbounded)).next() {
        let Some(below) = path.strip_prefix(above.as_str()) else { return };
        let name = below.split('/').next().unwrap_or_default();
        found.extend(folder.join(name).ok());
        // What is below it comes before what begins with its name and the character after `/`.
        next = if name.len() == below.len() {
            Bound::Excluded(path.clone())
        } else {
            Bound::Included(format!("{above}{name}{AFTER_SLASH}"))
        };
    }
}

fn forget<V>(known: &mut BTreeMap<String, V>, folder: &Rel) {
    for path in within(known, folder) {
        known.remove(&path);
    }
}

fn rekey<V>(known: &mut BTreeMap<String, V>, folder: &MovedFolder) {
    for path in within(known, &folder.from) {
        let renamed = folder.path_now(&path).zip(known.remove(&path));
        known.extend(renamed);
    }
}

fn traffic(counters: &DirectionCounters, throttle: &Throttle) -> Traffic {
    Traffic {
        files: counters.files.load(Ordering::Relaxed),
        bytes: counters.bytes.load(Ordering::Relaxed),
        bytes_on_wire: counters.wire.load(Ordering::Relaxed),
        bytes_per_second: throttle.rate_now(),
    }
}

fn phase_of(view: &View<'_>, offline: &str) -> (Phase, String) {
    if let Some(trouble) = &view.trouble {
        return (Phase::Waiting, trouble.clone());
    }
    if view.paused {
        return (Phase::Paused, String::new());
    }
    if !view.online {
        let phase = if view.looking && offline.is_empty() { Phase::Looking } else { Phase::Offline };
        return (phase, offline.to_owned());
    }
    if view.looking {
        return (Phase::Looking, String::new());
    }
    if view.running || !view.at_rest {
        return (Phase::Syncing, String::new());
    }
    if view.step.deletes_to_confirm > 0 {
        let message = format!(
            "{} files would be deleted, and with those of the last minutes that is many: let them go ahead with `keepstone sync confirm DIR`, or bring the files back with `keepstone sync undelete DIR`",
            view.step.deletes_to_confirm
        );
        return (Phase::Waiting, message);
    }
    if view.step.dirty.is_empty() {
        (Phase::UpToDate, String::new())
    } else {
        (Phase::Waiting, String::new())
    }
}
