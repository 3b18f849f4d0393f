//! Follows the disk: scans all of it at the start, at intervals and when it is told to, and single folders when the
//! watcher hints at them.
//!
//! Invariants:
//! - One scan at a time; its updates are taken in before the next begins.
//! - Whatever ends the watching, it begins again after the next good scan of everything.
//! - What this program did to the disk meanwhile is not believed, and looked at again.

mod pending;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::pending::{AGAIN_FIRST, Pending, UNQUIET_MAX};
use super::board::is_within;
use super::effects::Effects;
use super::lookout::{self, Lookout};
use super::state_thread::StateThread;
use super::status::Waiting;
use crate::local::ignore_rules::IgnoreRules;
use crate::local::model::LocalUpdate;
use crate::local::rel::Rel;
use crate::local::root::{Root, RootError};
use crate::local::scan::{
    Misnamed, Reading, Scan, ScanError, ScanOptions, Scope, ScopeFolder, Skipped, Why, scan,
};
use crate::local::watch::{Notice, Watcher, Writers};
use crate::planner::model::NodeId;
use crate::state::error::StateError;
use crate::state::local::LocalApplied;
use crate::state::scan_index::ScanIndex;
use crate::state::trees::Side;

/// Before the next scan of everything, when something could not be read; then twice as long, and so on.
pub(crate) const INCOMPLETE_INTERVAL: Duration = Duration::from_secs(60);
/// Between scans of everything where nothing tells of changes.
const UNWATCHED_INTERVAL: Duration = Duration::from_secs(60);
/// A root that is not what it was is looked at again after this.
const TROUBLE_INTERVAL: Duration = Duration::from_secs(10);

/// What the scanner is told.
#[derive(Debug)]
pub(crate) enum ScanRequest {
    /// Everything.
    Whole,
    /// These folders, and whether all that is below: something in them is not as it was known.
    Nodes(Vec<(NodeId, bool)>),
    /// Answered once nothing is left to be scanned.
    Settled(oneshot::Sender<()>),
}

/// Something on the disk that a scan left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftOut {
    pub(crate) waiting: Waiting,
    pub(crate) kind: LeftOutKind,
}

/// Why something was left out, as far as it matters to whether both sides agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeftOutKind {
    /// It cannot be kept in sync at all: listing its folder tells.
    Meant,
    /// A folder that is kept in sync by itself, or is this program's own: only a look into it tells.
    OtherRoot,
    /// It is on another file system, with whatever files are there.
    Elsewhere,
    /// A known folder that could not be read: only a look into it tells whether it still is so.
    Closed,
    /// It could not be read.
    Unread,
    /// A file that is being written.
    Changing,
    /// A folder's rules are not known.
    Rules,
}

/// What a scan left out.
#[derive(Debug)]
pub(crate) struct FoundLeftOut {
    /// What was looked at.
    pub(crate) scope: Scope,
    /// Where folders were that are elsewhere now, or gone.
    pub(crate) left: Vec<Rel>,
    /// Known folders that could not be read.
    pub(crate) unread: BTreeMap<Rel, NodeId>,
    /// Left out there, and why.
    pub(crate) skipped: Vec<LeftOut>,
    /// How much is ignored in which folders of it.
    pub(crate) ignored: Vec<(String, u64)>,
}

/// What the scanner tells.
#[derive(Debug)]
pub(crate) enum ScanEvent {
    /// Updates were taken in.
    Applied {
        /// When the scan began.
        began: Instant,
        /// Nodes that are otherwise now.
        changed: Vec<NodeId>,
        /// Whether it was of everything.
        whole: bool,
        found: FoundLeftOut,
        /// Files that are still being written.
        unquiet: usize,
    },
    /// The root is not what it was: nothing may be deleted, or done here at all.
    Trouble(String),
    /// The root is on another disk than the one that is open.
    Remounted,
    /// The scan could not be made this time.
    Failed(String),
    /// Whether all of the folder is watched; if not, why.
    Watching(Option<String>),
    /// The state failed.
    State(String),
}

pub(crate) struct Scanner {
    pub(crate) root: Arc<Root>,
    /// Tells where to look; none: scans at intervals have to do.
    pub(crate) watcher: Option<Watcher>,
    pub(crate) state: StateThread,
    pub(crate) effects: Effects,
    pub(crate) rules: Arc<IgnoreRules>,
    pub(crate) interval: Duration,
    /// Somebody has confirmed that the root is meant to be empty. Ends when something is in it.
    pub(crate) empty_confirmed: Arc<AtomicBool>,
    pub(crate) requests: mpsc::Receiver<ScanRequest>,
    pub(crate) events: mpsc::Sender<ScanEvent>,
    pub(crate) stop: CancellationToken,
    /// Why not all is watched, as it was last told.
    pub(crate) unwatched: Option<String>,
    /// The system allows no more watches: some folders are not watched.
    pub(crate) limited: bool,
    /// What the last scan of everything could not read, and whether some of it can be read again.
    pub(crate) unread: HashSet<String>,
    pub(crate) watch_anew: bool,
    /// Before everything is scanned again for what could not be read.
    pub(crate) incomplete_wait: Duration,
    /// When it may be tried to watch anew: one that ends at once is not begun again at once.
    pub(crate) watch_not_before: Instant,
    /// Who writes without a word.
    pub(crate) writers: Writers,
    pub(crate) lookout: Lookout,
    /// Whether the file system keeps permission bits, once that is known.
    pub(crate) takes_modes: Option<bool>,
    /// What was renamed to what cannot be sent.
    pub(crate) misnamed: Misnamed,
}

/// What a scan came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looked {
    All,
    /// Something could not be read.
    NotAll,
    Failed,
}

impl Scanner {
    /// Scans until it is stopped.
    pub(crate) async fn run(mut self) {
        let mut pending = Pending::of_whole();
        let mut index = match self.state.ask(|state| state.scan_index()).await {
            Ok(index) => Some(index),
            Err(error) => {
                drop(self.events.send(ScanEvent::State(error.to_string())).await);
                return;
            }
        };
        let mut next_whole = Instant::now() + self.interval();
        let mut next_look = Instant::now() + lookout::INTERVAL;
        while !self.stop.is_cancelled() {
            // Scans that fail follow one another, and what the watcher says is not left waiting for their end.
            while let Some(notice) = self.watcher.as_mut().and_then(Watcher::try_next) {
                self.take_notice(Some(notice), &mut pending).await;
                next_whole = next_whole.min(Instant::now() + self.interval());
            }
            if let Some((scope, times)) = pending.take(Instant::now()) {
                let Some(owned) = index.take() else { return };
                let whole = scope == Scope::Whole;
                let (returned, looked) = self.scan(owned, scope, &times, &mut pending).await;
                index = returned;
                if whole && looked != Looked::Failed {
                    self.watch_again(&mut pending).await;
                }
                if whole {
                    let wait = self.next_interval(looked);
                    next_whole = Instant::now() + wait;
                }
                continue;
            }
            pending.tell_settled();
            let due = pending.next_due().map_or(next_whole, |due| due.min(next_whole));
            let stop = self.stop.clone();
            let notice = async {
                match &mut self.watcher {
                    Some(watcher) => watcher.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                notice = notice => {
                    self.take_notice(notice, &mut pending).await;
                    next_whole = next_whole.min(Instant::now() + self.interval());
                }
                request = self.requests.recv() => match request {
                    Some(request) => self.take_request(request, &mut pending).await,
                    None => break,
                },
                () = tokio::time::sleep_until(next_look) => {
                    index = self.look(index, &mut pending).await;
                    next_look = Instant::now() + lookout::INTERVAL;
                }
                () = tokio::time::sleep_until(due) => {
                    if Instant::now() >= next_whole {
                        pending.whole = true;
                    }
                }
            }
            while let Ok(request) = self.requests.try_recv() {
                self.take_request(request, &mut pending).await;
            }
        }
        if let Some(watcher) = self.watcher.take() {
            watcher.stop().await;
        }
    }

    async fn take_notice(&mut self, notice: Option<Notice>, pending: &mut Pending) {
        let watching = match notice {
            Some(Notice::Scan(Scope::Whole)) => {
                pending.whole = true;
                return;
            }
            Some(Notice::Scan(Scope::Folders(folders))) => {
                folders.into_iter().for_each(|folder| pending.add(folder));
                return;
            }
            Some(Notice::LimitReached { watched }) => {
                self.limited = true;
                format!(
                    "only {watched} folders can be watched, for the system allows no more; changes in the others \
                     are found by scans: raise fs.inotify.max_user_watches"
                )
            }
            Some(Notice::RootGone) => {
                pending.whole = true;
                self.end_watcher().await;
                "the folder was moved or removed".to_owned()
            }
            None => {
                pending.whole = true;
                self.end_watcher().await;
                "the folder is not watched any more; changes are found by scans".to_owned()
            }
        };
        self.tell_watching(Some(watching)).await;
    }

    /// Says whether all is watched, if that is news.
    async fn tell_watching(&mut self, trouble: Option<String>) {
        if self.unwatched != trouble {
            self.unwatched.clone_from(&trouble);
            drop(self.events.send(ScanEvent::Watching(trouble)).await);
        }
    }

    async fn end_watcher(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.stop().await;
        }
    }

    /// From a scan of everything that came to this to the next: what cannot be read is looked for ever more rarely.
    fn next_interval(&mut self, looked: Looked) -> Duration {
        if looked == Looked::All {
            self.incomplete_wait = INCOMPLETE_INTERVAL;
            return self.interval();
        }
        let wait = self.incomplete_wait.min(self.interval().max(INCOMPLETE_INTERVAL));
        self.incomplete_wait = wait.saturating_mul(2);
        wait
    }

    /// From one scan of everything to the next.
    fn interval(&self) -> Duration {
        let watched = self.watcher.is_some() && !self.limited;
        if watched { self.interval } else { self.interval.min(UNWATCHED_INTERVAL) }
    }

    /// After a scan of everything: where nothing watches, or what could not be read then can be read now, the folder
    /// is watched anew, and scanned once more, for what has changed until it was watched.
    async fn watch_again(&mut self, pending: &mut Pending) {
        if (self.watcher.is_some() && !self.watch_anew) || Instant::now() < self.watch_not_before {
            return;
        }
        self.watch_not_before = Instant::now() + UNWATCHED_INTERVAL;
        self.end_watcher().await;
        let (root, writers) = (self.root.clone(), self.writers.clone());
        let started = tokio::task::spawn_blocking(move || Watcher::start(&root, &writers)).await;
        let trouble = match started {
            Ok(Ok(watcher)) => {
                self.watcher = Some(watcher);
                (self.limited, self.watch_anew) = (false, false);
                pending.whole = true;
                None
            }
            Ok(Err(error)) => Some(format!("{error}; changes are found by scans")),
            Err(error) => Some(format!("{error}; changes are found by scans")),
        };
        self.tell_watching(trouble).await;
    }

    async fn take_request(&self, request: ScanRequest, pending: &mut Pending) {
        match request {
            ScanRequest::Whole => pending.whole = true,
            ScanRequest::Nodes(nodes) => {
                let (nodes, deep): (Vec<NodeId>, Vec<bool>) = nodes.into_iter().unzip();
                for (folder, deep) in self.rels_of(nodes).await.into_iter().zip(deep) {
                    // A folder that is not known here stands for the root, which is only looked at itself.
                    let deep = deep && !folder.is_root();
                    pending.add(ScopeFolder { folder, deep });
                }
            }
            ScanRequest::Settled(done) => pending.settled.push(done),
        }
    }

    /// Where folders are on the disk, as far as that is known.
    async fn rels_of(&self, nodes: Vec<NodeId>) -> Vec<Rel> {
        let paths = self.state.ask(move |state| {
            nodes.into_iter().map(|node| state.path(Side::Local, node)).collect::<Result<Vec<_>, _>>()
        });
        let paths = paths.await.unwrap_or_default();
        paths
            .into_iter()
            .map(|path| path.and_then(|path| Rel::parse(&path).ok()).unwrap_or_default())
            .collect()
    }

    /// Looks at files that nobody tells of. Gives the index back.
    async fn look(&mut self, index: Option<ScanIndex>, pending: &mut Pending) -> Option<ScanIndex> {
        // What is being changed here is not as it is known.
        if !self.effects.is_idle() {
            return index;
        }
        let (index, root, writers) = (index?, self.root.clone(), self.writers.clone());
        let mut lookout = std::mem::take(&mut self.lookout);
        let unquiet = self.watcher.as_ref().map(Watcher::unquiet);
        let work = tokio::task::spawn_blocking(move || {
            let changed = lookout.look(&root, &index, &writers, unquiet.as_ref());
            (index, lookout, changed)
        });
        let (index, lookout, changed) = work.await.ok()?;
        self.lookout = lookout;
        if let Err(error) = index.check() {
            drop(self.events.send(ScanEvent::State(error.to_string())).await);
        }
        changed.into_iter().for_each(|folder| pending.add(folder));
        Some(index)
    }

    /// Tried out once; as long as that cannot be, modes are taken to be what they seem.
    async fn takes_modes(&mut self) -> bool {
        if self.takes_modes.is_none() {
            let root = self.root.clone();
            let probed = tokio::task::spawn_blocking(move || root.probe_modes()).await;
            self.takes_modes = probed.ok().and_then(Result::ok);
        }
        self.takes_modes.unwrap_or(true)
    }

    /// Scans, and takes in what that says. Gives the index back (`None` if it is lost), and whether nothing was left
    /// out.
    async fn scan(
        &mut self,
        index: ScanIndex,
        scope: Scope,
        times: &BTreeMap<Rel, u32>,
        pending: &mut Pending,
    ) -> (Option<ScanIndex>, Looked) {
        let (began, under_way) = (Instant::now(), self.effects.begin_scan());
        let (root, rules, stop) = (self.root.clone(), self.rules.clone(), self.stop.clone());
        let unquiet = self.watcher.as_ref().map(Watcher::unquiet);
        let whole = scope == Scope::Whole;
        let empty_confirmed = self.empty_confirmed.clone();
        let (takes_modes, writers) = (self.takes_modes().await, self.writers.clone());
        let misnamed = self.misnamed.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut index = index;
            let mut options = ScanOptions::new((*rules).clone(), stop);
            options.unquiet = unquiet;
            options.writers = Some(writers);
            options.misnamed = misnamed;
            options.takes_modes = takes_modes;
            options.empty_allowed = empty_confirmed.load(Ordering::Relaxed);
            let result = scan(&root, &mut index, &scope, &options);
            if matches!(root.is_empty(), Ok(false)) {
                empty_confirmed.store(false, Ordering::Relaxed);
            }
            (index, scope, result)
        });
        let Ok((index, scope, result)) = work.await else {
            drop(self.events.send(ScanEvent::State("the scan panicked".to_owned())).await);
            return (None, Looked::Failed);
        };
        if let Err(error) = index.check() {
            drop(self.events.send(ScanEvent::State(error.to_string())).await);
            return (Some(index), Looked::Failed);
        }
        let found = match result {
            Ok(found) => found,
            Err(error) => {
                self.failed(error, pending).await;
                return (Some(index), Looked::Failed);
            }
        };
        // What has not been quiet for long is not waited for.
        let still =
            |folder: &&ScopeFolder| times.get(&folder.folder).is_none_or(|count| *count < UNQUIET_MAX);
        let unquiet = found.again.iter().filter(still).count();
        for folder in &found.again {
            pending.add_later(folder.clone(), times, Instant::now());
        }
        let looked = if found.complete { Looked::All } else { Looked::NotAll };
        if whole {
            self.compare_unread(&found.skipped);
        } else {
            self.look_for_readable(&scope, pending).await;
            self.note_unread(&found);
        }
        let applied = self.apply(found.updates, under_way).await;
        match applied {
            Ok(applied) => {
                self.note_read(found.read, &applied.refused);
                for path in applied.again {
                    let folder = Rel::parse(&path).unwrap_or_default();
                    pending.add_later(ScopeFolder { folder, deep: false }, times, Instant::now());
                }
                let skipped = left_out(found.skipped, found.counts.skipped, &found.unread);
                let (left, unread, ignored) = (found.left, found.unread, found.ignored);
                let found = FoundLeftOut { scope, left, unread, skipped, ignored };
                let changed = applied.changed;
                drop(self.events.send(ScanEvent::Applied { began, changed, whole, found, unquiet }).await);
            }
            Err(error) => drop(self.events.send(ScanEvent::State(error)).await),
        }
        (Some(index), looked)
    }

    /// Files that were read are known as they are, but for those of which the scan was not believed.
    fn note_read(&self, read: Vec<Reading>, refused: &HashSet<NodeId>) {
        let kept = read.into_iter().filter(|file| file.node.is_none_or(|node| !refused.contains(&node)));
        self.writers.read(kept.map(|file| (file.rel, file.began)));
    }

    /// A folder that could not be read could not be watched either: once it can be read, all is to be watched anew.
    fn compare_unread(&mut self, skipped: &[Skipped]) {
        let unread: HashSet<String> = unread_of(skipped).collect();
        self.watch_anew |= self.unread.iter().any(|path| !unread.contains(path));
        self.unread = unread;
    }

    /// The same of a scan of some folders.
    fn note_unread(&mut self, found: &Scan) {
        let is_left = |path: &String| {
            Rel::parse(path).is_ok_and(|rel| found.left.iter().any(|left| rel.is_within(left)))
        };
        if !found.left.is_empty() {
            self.unread.retain(|path| !is_left(path));
        }
        self.unread.extend(unread_of(&found.skipped));
    }

    /// Where a folder that could not be read was just looked at, it may be readable by now: then all is looked at again.
    async fn look_for_readable(&mut self, scope: &Scope, pending: &mut Pending) {
        let near = self.unread.iter().filter(|path| is_within(path, scope, true));
        let near: Vec<Rel> = near.filter_map(|path| Rel::parse(path).ok()).collect();
        if near.is_empty() {
            return;
        }
        let root = self.root.clone();
        let work = tokio::task::spawn_blocking(move || {
            near.into_iter().filter(|rel| root.can_be_listed(rel)).collect::<Vec<Rel>>()
        });
        for rel in work.await.unwrap_or_default() {
            self.unread.remove(rel.as_str());
            // Nothing watches what is in it.
            self.watch_anew = true;
            pending.whole = true;
        }
    }

    async fn apply(
        &self,
        updates: Vec<LocalUpdate>,
        under_way: super::effects::ScanUnderWay,
    ) -> Result<LocalApplied, String> {
        let applied = self
            .state
            .ask(move |state| -> Result<LocalApplied, StateError> { state.apply_local(updates, &under_way) });
        applied.await.map_err(|error| error.to_string())
    }

    async fn failed(&self, error: ScanError, pending: &mut Pending) {
        let event = match &error {
            ScanError::Stopped => return,
            // It may be we ourselves who have just emptied it.
            ScanError::Root(RootError::Empty(_)) if !self.effects.is_idle() => {
                pending.whole = true;
                tokio::time::sleep(AGAIN_FIRST).await;
                return;
            }
            ScanError::Root(RootError::Io { .. }) | ScanError::Disk(_) => {
                ScanEvent::Failed(error.to_string())
            }
            ScanError::Root(RootError::Remounted(_)) => ScanEvent::Remounted,
            ScanError::Root(_) => ScanEvent::Trouble(error.to_string()),
        };
        // Of single folders too: nothing is deleted until a scan of everything was complete.
        pending.whole = true;
        drop(self.events.send(event).await);
        tokio::select! {
            () = tokio::time::sleep(TROUBLE_INTERVAL) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// Where something is that could not be read.
fn unread_of(skipped: &[Skipped]) -> impl Iterator<Item = String> {
    let unread = skipped.iter().filter(|skipped| matches!(skipped.why, Why::Unreadable | Why::Io(_)));
    unread.map(|skipped| skipped.path.clone())
}

/// Of `count` things, those that are named; `closed`: known folders that could not be read.
fn left_out(named: Vec<Skipped>, count: u64, closed: &BTreeMap<Rel, NodeId>) -> Vec<LeftOut> {
    let unnamed = count.saturating_sub(named.len() as u64);
    let closed: HashSet<&str> = closed.keys().map(Rel::as_str).collect();
    let mut all: Vec<LeftOut> =
        named.into_iter().map(|skipped| shown(closed.contains(skipped.path.as_str()), skipped)).collect();
    if unnamed > 0 {
        let why = format!("{unnamed} more things were left out, and some of them may not have been read");
        all.push(LeftOut { waiting: Waiting { path: String::new(), why }, kind: LeftOutKind::Unread });
    }
    all
}

fn shown(is_closed: bool, skipped: Skipped) -> LeftOut {
    let kind = match &skipped.why {
        Why::Unreadable | Why::Io(_) if is_closed => LeftOutKind::Closed,
        Why::Unreadable | Why::Io(_) => LeftOutKind::Unread,
        Why::StillChanging => LeftOutKind::Changing,
        Why::Held(_) | Why::InsteadOfHeld | Why::OwnNow(_) => LeftOutKind::Unread,
        Why::Rules(_) => LeftOutKind::Rules,
        Why::MountPoint => LeftOutKind::Elsewhere,
        Why::OtherRoot | Why::Own(_) => LeftOutKind::OtherRoot,
        Why::NameNotUtf8 | Why::Name(_) | Why::Special | Why::OwnFile(_) => LeftOutKind::Meant,
    };
    LeftOut { waiting: Waiting { path: skipped.path, why: skipped.why.to_string() }, kind }
}
