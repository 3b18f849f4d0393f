//! What the loop makes of what it hears: commands, news of both sides, and how tasks ended.

use std::collections::{BTreeMap, HashSet};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Event, Run, RunEnd};
use crate::local::ignore_rules::IGNORE_FILE;
use crate::planner::model::{Kind, NodeId, ROOT};
use crate::state::excluded::{EXCLUDED_MAX, ExclusionList};
use crate::state::trees::Side;
use crate::sync::config::Limits;
use crate::sync::follower::FollowerEvent;
use crate::sync::handle::{Command, ExcludeError};
use crate::sync::scanner::{ScanEvent, ScanRequest};
use crate::sync::status::Done;
use crate::sync::task::{Again, End, Ended, Line};
use crate::sync::waits::Until;

/// Whether what was done changed which rules are here.
fn is_about_rules(line: &Line) -> bool {
    let name = line.path.rsplit('/').next().unwrap_or_default();
    let is_here =
        matches!(line.what, Done::FileDown | Done::LocalChanged | Done::LocalDeleted | Done::Conflict);
    is_here && name == IGNORE_FILE
}

impl Run {
    pub(super) async fn handle(&mut self, event: Event) -> Option<RunEnd> {
        match event {
            Event::Command(Some(command)) => return self.command(command).await,
            Event::Command(None) => return Some(RunEnd::Stopped),
            Event::Follower(Some(event)) => {
                if matches!(event, FollowerEvent::CaughtUp) {
                    self.renew_exclusions().await;
                }
                return self.follower(event);
            }
            Event::Scan(Some(event)) => return self.scan(event).await,
            Event::Stop => return Some(RunEnd::Stopped),
            // They end by themselves when all is stopped.
            Event::Follower(None) | Event::Scan(None) if self.stop.is_cancelled() => {
                return Some(RunEnd::Stopped);
            }
            Event::Follower(None) | Event::Scan(None) => {
                return Some(RunEnd::Failed("a part of the session has ended".to_owned()));
            }
            Event::Task(ended) => return self.ended(ended).await,
            Event::Checked => {
                self.checking = None;
                // What the last look found is told before its end, and may not have been heard yet.
                let (scanner, follower) = (&self.channels.scanner, &self.channels.follower);
                self.disturbed |= !scanner.is_empty() || !follower.is_empty();
                self.answer_quiet(false);
            }
            Event::RulesRead => {
                self.reading_rules = None;
                self.disturb();
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
            Command::Pause(true) => self.pause(),
            Command::Pause(false) => self.resume(),
            Command::ConfirmDeletes { shown, done } => {
                let confirmed = self.confirm_deletes(shown).await;
                drop(done.send(confirmed));
            }
            Command::Undelete { done } => {
                let undone = self.undelete().await;
                drop(done.send(undone));
            }
            Command::SetLimits(limits) => self.set_limits(limits),
            Command::SetExcluded { path, excluded, done } => {
                let set = self.set_excluded(path, excluded).await;
                self.show_excluded().await;
                drop(done.send(set));
                self.disturb();
            }
            Command::Rescan => {
                self.waits.asked(Instant::now());
                self.request_scan(ScanRequest::Whole);
            }
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
        let root = self.shared.root.clone();
        let done = self.shared.state.ask(move |state| {
            if !excluded {
                let known = state.excluded()?.into_iter().find(|(_, known)| *known == asked);
                let Some((entry, _path)) = known else { return Ok(Err("it is not excluded".to_owned())) };
                let mut listed = state.excluded()?;
                listed.retain(|(other, _path)| *other != entry);
                if let Err(error) = root.write_exclusions(&listed) {
                    return Ok(Err(error.to_string()));
                }
                return state.include(entry).map(|_| Ok(()));
            }
            let Some(node) = state.node_at_path(Side::Remote, &asked)? else {
                return Ok(Err("there is no such folder on the server".to_owned()));
            };
            let is_folder = state.side(Side::Remote, node)?.is_some_and(|value| value.kind == Kind::Folder);
            match state.remote_facts(node)? {
                Some(facts) if is_folder && node != ROOT => {
                    let mut listed = state.excluded()?;
                    listed.retain(|(other, _path)| *other != facts.entry);
                    if listed.len() >= EXCLUDED_MAX {
                        return Ok(Err(format!("{EXCLUDED_MAX} folders are excluded already")));
                    }
                    listed.push((facts.entry, asked.clone()));
                    // The list first: it is what a new state follows.
                    if let Err(error) = root.write_exclusions(&listed) {
                        return Ok(Err(error.to_string()));
                    }
                    state.exclude(facts.entry, &asked).map(|()| Ok(()))
                }
                _ => Ok(Err("only folders can be excluded".to_owned())),
            }
        });
        let refused = |reason: String| ExcludeError::Refused { path: path.clone(), reason };
        match done.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(refused(reason)),
            Err(error) => Err(refused(error.to_string())),
        }
    }

    /// Once the server's tree was listed anew, the excluded folders have new ids: the list beside the marker gets them.
    async fn renew_exclusions(&mut self) {
        let root = self.shared.root.clone();
        let renewed = self.shared.state.ask(move |state| {
            if state.exclusion_list()? != ExclusionList::Outdated {
                return Ok(false);
            }
            match root.write_exclusions(&state.excluded()?) {
                Ok(()) => state.note_exclusion_list(true)?,
                // It is written at the next start.
                Err(error) => tracing::warn!(%error, "the list of what is excluded is out of date"),
            }
            Ok(true)
        });
        if renewed.await.unwrap_or(false) {
            self.show_excluded().await;
        }
    }

    pub(super) async fn show_excluded(&mut self) {
        if let Ok(excluded) = self.shared.state.ask(|state| state.excluded()).await {
            self.board.excluded(excluded.into_iter().map(|(_entry, path)| path).collect());
        }
    }

    /// Something happened that may change what is to be done.
    pub(super) fn disturb(&mut self) {
        self.want_plan = true;
        self.disturbed = true;
    }

    fn follower(&mut self, event: FollowerEvent) -> Option<RunEnd> {
        match event {
            FollowerEvent::Online => {
                self.online = true;
                self.waits.wake(Some(Until::Online), Instant::now());
                self.disturb();
            }
            FollowerEvent::CaughtUp => {
                self.remote_known = true;
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
                    self.waits.remote_news(Instant::now());
                    self.disturb();
                } else {
                    self.want_plan = true;
                }
            }
            FollowerEvent::WentBack(common) => return Some(RunEnd::WentBack(common)),
            FollowerEvent::Ended(reason) => return Some(RunEnd::Failed(reason)),
        }
        None
    }

    async fn scan(&mut self, event: ScanEvent) -> Option<RunEnd> {
        match event {
            ScanEvent::Applied { began, changed, whole, found, unquiet } => {
                self.trouble = None;
                self.unquiet = unquiet;
                if whole {
                    self.scanned = true;
                    self.complete = true;
                    self.guard.all_scanned();
                }
                let now = Instant::now();
                self.look_at_obstacles_in(&found.scope).await;
                self.take_left_out(found, began).await;
                let mut woken = self.waits.wake(Some(Until::Scanned), now);
                for node in &changed {
                    woken |= self.waits.news(*node, now);
                }
                if !changed.is_empty() {
                    self.doubt_obstacles();
                }
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
                if self.is_emptied() {
                    self.found_emptied().await;
                }
            }
            ScanEvent::Remounted => return Some(RunEnd::Remounted),
            ScanEvent::Failed(reason) => {
                self.complete = false;
                if self.trouble.as_ref() != Some(&reason) {
                    self.board.line(Line { what: Done::Failed, path: String::new(), detail: reason.clone() });
                }
                // Nothing is known of what is there: it is not said to be in sync.
                self.trouble = Some(reason);
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

    pub(super) fn state_failed(&self, reason: String) -> RunEnd {
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
        let (lane, nodes) = self.running.remove(&id)?;
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

    pub(super) async fn take_ended(&mut self, all: impl Iterator<Item = Ended>) -> Option<RunEnd> {
        let now = Instant::now();
        let mut rescan = Vec::new();
        let mut look_below = Vec::new();
        let mut moved = Vec::new();
        let mut check = false;
        for ended in all {
            if let End::Failed { reason, again: Again::Never } = &ended.end {
                return Some(RunEnd::Failed(reason.clone()));
            }
            match &ended.end {
                // No scan takes in what is in the way.
                End::LocalChanged if ended.obstacle.is_some() => {}
                End::LocalChanged => rescan.push(ended.node),
                End::RemoteChanged => check = true,
                End::Compared => {
                    self.compared.insert(ended.node);
                }
                _ => {}
            }
            if ended.after.look_below || ended.line.as_ref().is_some_and(is_about_rules) {
                look_below.push(ended.node);
            }
            look_below.extend(ended.after.rules_left);
            if let Some(folder) = &ended.after.moved {
                self.folder_moved(folder);
                if folder.ruled { &mut look_below } else { &mut moved }.push(ended.node);
            }
            if self.waits.ended(&ended, now) {
                match (&ended.end, &ended.obstacle) {
                    (End::Failed { reason, .. } | End::Refused { reason, .. }, _) => {
                        self.board.failed(ended.node, reason.clone());
                    }
                    (_, Some(obstacle)) => self.board.failed(ended.node, obstacle.to_string()),
                    _ => {}
                }
            }
            if let Some(line) = ended.line {
                if line.what == Done::LocalChanged {
                    self.doubt_obstacles();
                }
                self.board.line(line);
            }
        }
        self.disturb();
        if !rescan.is_empty() {
            self.rescan_around(rescan).await;
        }
        if !moved.is_empty() {
            self.request_scan(ScanRequest::Nodes(moved.into_iter().map(|node| (node, true)).collect()));
        }
        if !look_below.is_empty() {
            self.read_rules(look_below).await;
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
            let mut folders = BTreeMap::new();
            for node in nodes {
                for side in [Side::Local, Side::Remote] {
                    let Some(value) = state.side(side, node)? else { continue };
                    folders.entry(value.place.parent).or_insert(false);
                    if side == Side::Local && value.kind == Kind::Folder {
                        // Something below it may be what is not as it was known.
                        folders.insert(node, true);
                    }
                }
            }
            Ok(folders)
        });
        if let Ok(folders) = folders.await {
            self.request_scan(ScanRequest::Nodes(folders.into_iter().collect()));
        }
    }

    /// Rules came, went or changed, or a folder that was here was taken in: all that they are about is looked at, and
    /// nothing new is sent until that has been done.
    async fn read_rules(&mut self, nodes: Vec<NodeId>) {
        let folders = self.shared.state.ask(move |state| {
            let mut folders = BTreeMap::new();
            for node in nodes {
                match state.side(Side::Local, node)? {
                    Some(value) if value.kind == Kind::Folder => folders.insert(node, true),
                    Some(value) => folders.insert(value.place.parent, true),
                    // Gone, with the place that it had.
                    None => folders.insert(ROOT, true),
                };
            }
            Ok(folders)
        });
        let is_known = match folders.await {
            Ok(folders) if !folders.contains_key(&ROOT) => {
                self.request_scan(ScanRequest::Nodes(folders.into_iter().collect()));
                !self.scan_owed
            }
            Ok(_) | Err(_) => {
                self.request_scan(ScanRequest::Whole);
                !self.scan_owed
            }
        };
        let (done, read) = oneshot::channel();
        let scans = self.channels.scans.clone();
        tokio::spawn(async move {
            // What had no room becomes a scan of everything, and is asked for before this.
            let request = if is_known { None } else { Some(ScanRequest::Whole) };
            for request in request.into_iter().chain([ScanRequest::Settled(done)]) {
                if scans.send(request).await.is_err() {
                    return;
                }
            }
        });
        self.reading_rules = Some(read);
    }

    /// Asks for a scan. The scanner takes no requests while it scans, and that can be for hours: what has no room
    /// becomes one scan of everything, later.
    pub(super) fn request_scan(&mut self, request: ScanRequest) {
        self.disturbed = true;
        if self.channels.scans.try_send(request).is_err() {
            self.scan_owed = true;
        }
    }

    /// Asks for the scan that there was no room for.
    pub(super) fn request_owed_scan(&mut self) {
        if self.scan_owed && self.channels.scans.try_send(ScanRequest::Whole).is_ok() {
            self.scan_owed = false;
        }
    }
}
