//! A model device: disk, state, and the work on them. What an operation needs is taken down when it is planned, as the
//! real executor does; it is refused if it is no longer so when it is carried out.

use std::collections::{BTreeMap, BTreeSet};

use engine::cutter::Cutter;

use super::content::{Bytes, bytes_of, bytes_of_kind, cut};
use super::disk::{Disk, Inode, Thing, thing_of};
use super::scan::scan;
use super::server::{Entry, History, Server};
use super::state::{Intent, Local, Stamp, State};
use super::task::{Batch, Done, Failed, Outcome, Task};
use crate::planner::model::{Kind, Node, NodeId, Operation, Place, ROOT};
use crate::planner::names::swapped;
use crate::planner::planted::{Bug, planted};
use crate::planner::transition::{Part, node_of, part_of, same_kind};
use crate::planner::{Blocked, Decisions, Deletes, NameRules, Plan, Rules, Trees, plan};

#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) number: usize,
    pub(super) disk: Disk,
    pub(super) state: State,
    pub(super) online: bool,
    pub(super) withheld: bool,
    /// A complete scan, and all of the server's tree, are known since the last start.
    scanned: bool,
    pub(super) tasks: Vec<Task>,
    pub(super) unrecorded: Vec<Done>,
    pub(super) batches: Vec<Batch>,
    /// The batch that was taken last.
    pub(super) taken: Option<Batch>,
    /// Contents that were ever on this disk.
    pub(super) seen: BTreeSet<Bytes>,
    pub(super) decisions: Decisions,
    pub(super) blocked: Vec<(NodeId, Blocked)>,
}

impl Device {
    pub(super) fn new(number: usize, names: NameRules, tells_birth: bool) -> Self {
        Self {
            number,
            disk: Disk::new(names, tells_birth),
            state: State::new(),
            online: true,
            withheld: false,
            scanned: false,
            tasks: Vec::new(),
            unrecorded: Vec::new(),
            batches: Vec::new(),
            taken: None,
            seen: BTreeSet::new(),
            decisions: Decisions::new(),
            blocked: Vec::new(),
        }
    }

    /// Dies at once, and starts again.
    pub(super) fn crash(&mut self) {
        self.tasks.clear();
        self.unrecorded.clear();
        self.batches.clear();
        self.taken = None;
        self.scanned = false;
        for (node, intent) in std::mem::take(&mut self.state.intents) {
            let folder = self.state.local.path(intent.folder);
            let mut after = folder.unwrap_or_default();
            after.push(intent.name_after.clone());
            let Some(was) = self.state.local.get(node).cloned() else { continue };
            let Some(stamp) = self.state.stamps.get(&node).copied() else { continue };
            if self.disk.resolve(&after) == Some(intent.inode) && !planted(Bug::SplitForgotten) {
                let mut renamed = was;
                renamed.place.name = intent.name_after;
                self.state.record_split(node, intent.new_node, Local { node: renamed, stamp });
            }
        }
    }

    /// Dies, and finds its database gone.
    pub(super) fn lose(&mut self) {
        self.crash();
        self.state = State::new();
    }

    pub(super) fn fetch(&mut self, server: &Server) {
        if self.online
            && let History::Parted(common) = self.history(server)
        {
            self.went_back(if server.tells_common { common } else { 0 });
        }
        // Before it was listed anew it may go back again, and further.
        if self.online
            && let (Some(before), Some(former)) = (self.state.went_back, &self.state.former_place)
            && let History::Parted(common) = server.history(former)
        {
            let common = if server.tells_common { common } else { 0 };
            if common < before {
                self.went_back(common);
            }
        }
        if self.online && self.batches.len() < 3 {
            let relist = self.state.relist;
            let after = if relist { 0 } else { self.state.sequence };
            let (asked, told) = (self.state.known().clone(), server.reached());
            self.batches.push(Batch { changes: server.changes(after), relist, asked, told });
        }
    }

    /// Whether what is known of the server, by its journal and by answers, is of its history.
    fn history(&self, server: &Server) -> History {
        server.history(self.state.known())
    }

    /// Learns that the server went back: all that is under way ends, then what was known beyond `common` is forgotten.
    fn went_back(&mut self, common: u64) {
        while let Some(outcome) = self.unrecorded.pop() {
            self.record(outcome);
        }
        self.crash();
        self.state.forget_history(common);
    }

    pub(super) fn take_batch(&mut self) {
        if !self.batches.is_empty() {
            let batch = self.batches.remove(0);
            self.take(batch);
        }
    }

    pub(super) fn take(&mut self, batch: Batch) {
        // A second answer to a question that was asked twice says nothing new; of a whole listing it may not be
        // believed that the rest is gone. What was asked before the other answer came may be of another history than
        // that, too.
        let of_known = self.state.known().takes(&batch.asked, &batch.told);
        let is_later = batch.told.sequence >= self.state.followed.sequence;
        if of_known && is_later && (!self.state.relist || batch.relist) {
            self.state.apply_changes(&batch.changes, batch.told.sequence, batch.relist);
            self.state.followed.clone_from(&batch.told);
            self.seen.extend(self.state.had_later.drain(..));
        }
        self.taken = Some(batch);
    }

    pub(super) fn scan(&mut self) -> bool {
        // What is done and not recorded is under way: a scan that looks now is not believed about it.
        if self.unrecorded.iter().any(|done| !done.is_remote()) {
            return false;
        }
        self.scanned = true;
        let cutter = self.cutter();
        scan(&mut self.state, &self.disk, cutter)
    }

    pub(super) fn plan(&mut self, operations_max: usize) -> Option<Plan> {
        if !self.scanned || self.state.relist {
            return None;
        }
        let rules = Rules {
            name: format!("D{}", self.number),
            date: "2026-01-20".to_owned(),
            tag: format!("t{}", self.number),
            names: self.disk.names,
            deletes: if self.withheld { Deletes::Withheld } else { Deletes::Allowed },
            unread: BTreeSet::new(),
            sends_held: false,
            operations_max,
        };
        let busy: BTreeSet<NodeId> = self.busy();
        let state = &self.state;
        let excluded = |id: NodeId| state.entry_of(id).is_some_and(|entry| state.excluded.contains(&entry));
        let trees =
            Trees { remote: &state.remote, local: &state.local, synced: &state.synced, excluded: &excluded };
        let planned = plan(&trees, &state.dirty(), &busy, &rules);
        self.decisions.extend(planned.decisions.iter().copied());
        self.blocked.clone_from(&planned.blocked);
        Some(planned)
    }

    fn busy(&self) -> BTreeSet<NodeId> {
        let unrecorded = self.unrecorded.iter().map(|done| match &done.outcome {
            Outcome::Remote(node, ..)
            | Outcome::RemoteGone(node, ..)
            | Outcome::Local(node, ..)
            | Outcome::LocalGone(node)
            | Outcome::Recut(node, _)
            | Outcome::Split(node, ..) => *node,
        });
        self.tasks.iter().map(|task| node_of(&task.operation)).chain(unrecorded).collect()
    }

    /// Makes tasks of operations; what concerns the state alone is done at once.
    pub(super) fn prepare(&mut self, operations: Vec<Operation>) {
        for operation in operations {
            match operation {
                Operation::Link { keep, gone } => self.state.link(keep, gone),
                Operation::Agree(node) => self.state.settle(node),
                Operation::Forget(node) => self.state.forget(node),
                operation => {
                    let task = self.task(operation);
                    self.tasks.push(task);
                }
            }
        }
    }

    fn task(&mut self, operation: Operation) -> Task {
        let node = node_of(&operation);
        let remote = self.state.remote.get(node).cloned();
        let local = self.state.local.get(node).cloned();
        let part = part_of(&operation, remote.as_ref(), local.as_ref());
        let place = match &operation {
            Operation::LocalMove(_, to) | Operation::RemoteMove(_, to) => Some(to.clone()),
            Operation::LocalCreate(_) => remote.as_ref().map(|node| node.place.clone()),
            Operation::RemoteCreate(_) => local.as_ref().map(|node| node.place.clone()),
            Operation::Download(_) => local.as_ref().or(remote.as_ref()).map(|node| node.place.clone()),
            Operation::Upload(_) => remote.as_ref().or(local.as_ref()).map(|node| node.place.clone()),
            _ => None,
        };
        let split = match &operation {
            Operation::Split { name, .. } => Some((self.state.new_node(), name.clone())),
            _ => None,
        };
        let state = &self.state;
        let facts = state.facts.get(&node).copied();
        let entry = remote.zip(facts).and_then(|(remote, facts)| {
            let parent = state.entry_of(remote.place.parent)?;
            let entry = Entry {
                id: facts.entry,
                parent,
                name: remote.place.name,
                kind: remote.kind,
                attributes: remote.attributes,
                version: facts.version,
                sequence: facts.sequence,
            };
            Some((entry, parent))
        });
        let stamp = state.stamps.get(&node).copied();
        let task = Task {
            part,
            remote: entry,
            sequence: state.sequence,
            path: state.local.path(node),
            folder_path: place.as_ref().and_then(|place| state.local.path(place.parent)),
            folder_entry: place.as_ref().and_then(|place| state.entry_of(place.parent)),
            sent: None,
            new_node: split.as_ref().map(|(new_node, _)| *new_node),
            operation,
            local: local.zip(stamp).map(|(node, stamp)| Local { node, stamp }),
        };
        if let (Some((new_node, Some(name_after))), Some(local)) = (split, &task.local) {
            let folder = local.node.place.parent;
            let intent = Intent { new_node, folder, name_after, inode: local.stamp.inode };
            self.state.intents.insert(node, intent);
        }
        task
    }

    /// Takes in where an answer was of, and records what was done; an answer that may be of another history counts as lost.
    pub(super) fn record(&mut self, done: Done) {
        if let Some((asked, told)) = &done.answer
            && !self.state.note_answered(asked, told)
        {
            return;
        }
        match done.outcome {
            Outcome::Remote(node, entry, part) => self.state.record_remote(node, &entry, part),
            Outcome::RemoteGone(node, entry, sequence) => {
                self.state.record_remote_gone(node, entry, sequence);
            }
            Outcome::Local(node, local, part) => self.state.record_local(node, local, part),
            Outcome::LocalGone(node) => self.state.record_local_gone(node),
            Outcome::Recut(node, local) => {
                self.state.set_local(node, Some(local));
                self.state.settle(node);
            }
            Outcome::Split(node, new_node, local) => self.state.record_split(node, new_node, local),
        }
    }

    /// Sends a task's call.
    pub(super) fn send(&mut self, pick: u8) {
        let (known, count) = (self.state.known().clone(), self.tasks.len());
        if let Some(task) = self.tasks.get_mut(usize::from(pick) % count.max(1)) {
            task.sent.get_or_insert(known);
        }
    }

    /// Records one thing that was done.
    pub(super) fn record_one(&mut self, pick: u8) {
        if !self.unrecorded.is_empty() {
            let done = self.unrecorded.remove(usize::from(pick) % self.unrecorded.len());
            self.record(done);
        }
    }

    /// Carries a task out.
    pub(super) fn perform(&mut self, task: &Task, server: &mut Server) -> Result<Done, Failed> {
        let done = match &task.operation {
            Operation::RemoteCreate(_)
            | Operation::Upload(_)
            | Operation::RemoteRetarget(_)
            | Operation::RemoteMove(..)
            | Operation::RemoteDelete(_)
            | Operation::RemoteAttributes(..) => {
                let asked = task.sent.as_ref().unwrap_or_else(|| self.state.known()).clone();
                if !self.online || server.history(&asked) != History::Same {
                    return Err(Failed::Changed);
                }
                let outcome = self.perform_remote(task, server)?;
                Ok(Done { outcome, answer: Some((asked, server.reached())) })
            }
            _ => self.perform_local(task, server).map(|outcome| Done { outcome, answer: None }),
        };
        if done.is_err() {
            self.state.intents.remove(&node_of(&task.operation));
        }
        done
    }

    fn perform_remote(&self, task: &Task, server: &mut Server) -> Result<Outcome, Failed> {
        let node = node_of(&task.operation);
        let part = task.part.unwrap_or(Part::Nothing);
        let refused = |_refused| Failed::Changed;
        let entry = task.remote.as_ref().map(|(entry, _)| entry);
        let from = entry.map(|entry| (entry.parent, entry.name.clone()));
        let done = match &task.operation {
            Operation::RemoteCreate(_) => {
                let local = task.local.as_ref().ok_or(Failed::Changed)?;
                let (kind, attributes) = (local.node.kind.clone(), local.node.attributes);
                server.create(
                    task.folder_entry.ok_or(Failed::Changed)?,
                    &local.node.place.name,
                    kind,
                    attributes,
                )
            }
            Operation::Upload(_) => {
                let local = task.local.as_ref().ok_or(Failed::Changed)?;
                self.check(task, local)?;
                let (kind, attributes) = (local.node.kind.clone(), local.node.attributes);
                let folder = task.folder_entry.ok_or(Failed::Changed)?;
                match entry {
                    Some(entry) => {
                        server.commit(folder, &entry.name, (entry.id, entry.version), kind, attributes)
                    }
                    None => server.create(folder, &local.node.place.name, kind, attributes),
                }
            }
            Operation::RemoteRetarget(_) => {
                let (local, entry) = (task.local.as_ref(), entry);
                let (local, entry) = local.zip(entry).ok_or(Failed::Changed)?;
                server.retarget(entry.id, &entry.kind, local.node.kind.clone())
            }
            Operation::RemoteMove(_, to) => {
                let (entry, from) = entry.zip(from).ok_or(Failed::Changed)?;
                let folder = task.folder_entry.ok_or(Failed::Changed)?;
                server.move_entry(entry.id, &from, &(folder, to.name.clone()))
            }
            Operation::RemoteAttributes(_, attributes) => {
                let entry = entry.ok_or(Failed::Changed)?;
                server.set_attributes(entry.id, *attributes, entry.version)
            }
            _ => {
                let (entry, from) = entry.zip(from).ok_or(Failed::Changed)?;
                let unseen = server
                    .below(entry.id)
                    .into_iter()
                    .filter_map(|id| server.entries.get(&id).and_then(|entry| bytes_of_kind(&entry.kind)))
                    .find(|bytes| *bytes != 0 && !self.seen.contains(bytes));
                let gone = server.delete(entry.id, &from, entry.version, task.sequence).map_err(refused)?;
                if let Some(bytes) = unseen {
                    return Err(Failed::Wrong(format!("deletes content {bytes} that was never here")));
                }
                return Ok(Outcome::RemoteGone(node, gone.id, gone.sequence));
            }
        };
        done.map(|entry| Outcome::Remote(node, entry, part)).map_err(refused)
    }

    /// The object that a task is about, if it is as it was known.
    fn check(&self, task: &Task, local: &Local) -> Result<Inode, Failed> {
        let inode = self.object(task)?;
        let object = &self.disk.objects[&inode];
        let same = object.born == local.stamp.born && object.stamp == local.stamp.stamp;
        if (same && inode == local.stamp.inode) || planted(Bug::StampIgnored) {
            Ok(inode)
        } else {
            Err(Failed::Changed)
        }
    }

    fn object(&self, task: &Task) -> Result<Inode, Failed> {
        let path = task.path.as_ref().ok_or(Failed::Changed)?;
        let inode = self.disk.resolve(path).ok_or(Failed::Changed)?;
        let object = self.disk.objects.get(&inode).ok_or(Failed::Changed)?;
        // A blind file system finds it by another name as well.
        if Some(&object.name) == path.last() { Ok(inode) } else { Err(Failed::Changed) }
    }

    fn stamp(&self, inode: Inode) -> Stamp {
        let object = &self.disk.objects[&inode];
        Stamp { inode, born: object.born, stamp: object.stamp }
    }

    fn perform_local(&mut self, task: &Task, server: &Server) -> Result<Outcome, Failed> {
        let node = node_of(&task.operation);
        let part = task.part.unwrap_or(Part::Nothing);
        let changed = |_changed| Failed::Changed;
        match &task.operation {
            Operation::LocalCreate(_) | Operation::Download(_) => self.make(task, server, node, part),
            Operation::LocalRetarget(_) | Operation::LocalAttributes(..) => {
                let local = task.local.clone().ok_or(Failed::Changed)?;
                let inode = self.check(task, &local)?;
                let mut now = local.node;
                match (&task.operation, &task.remote) {
                    (Operation::LocalAttributes(_, attributes), _) => now.attributes = *attributes,
                    (_, Some((entry, _))) => now.kind = entry.kind.clone(),
                    _ => return Err(Failed::Changed),
                }
                self.disk.write(inode, thing_of(&now.kind), now.attributes);
                Ok(Outcome::Local(node, Local { node: now, stamp: self.stamp(inode) }, part))
            }
            Operation::LocalMove(_, to) => {
                let local = task.local.clone().ok_or(Failed::Changed)?;
                let inode = self.object(task)?;
                let folder = task.folder_path.as_ref().and_then(|path| self.disk.resolve(path));
                if inode != local.stamp.inode || self.disk.objects[&inode].born != local.stamp.born {
                    return Err(Failed::Changed);
                }
                self.disk.rename(inode, folder.ok_or(Failed::Changed)?, &to.name).map_err(changed)?;
                let mut now = local.node;
                now.place = to.clone();
                Ok(Outcome::Local(node, Local { node: now, stamp: local.stamp }, part))
            }
            Operation::LocalDelete(_) => {
                let local = task.local.as_ref().ok_or(Failed::Changed)?;
                let inode = self.object(task)?;
                self.check_all_below(node, inode)?;
                // What is freed is on the server alone then: it is asked once more.
                let frees = task.remote.is_some();
                let kept_there = self.online && self.history(server) == History::Same;
                if local.stamp.inode != inode || (frees && !kept_there) {
                    return Err(Failed::Changed);
                }
                for bytes in self.disk.remove(inode) {
                    self.disk.trash.insert(bytes);
                    if bytes != 0 && !server.ever.contains(&bytes) {
                        return Err(Failed::Wrong(format!("removes content {bytes} that never went up")));
                    }
                }
                Ok(Outcome::LocalGone(node))
            }
            Operation::Recut(_, cutter) => {
                let mut local = task.local.clone().ok_or(Failed::Changed)?;
                self.check(task, &local)?;
                if let Kind::File(content) = local.node.kind {
                    local.node.kind = Kind::File(cut(bytes_of(&content), *cutter));
                }
                Ok(Outcome::Recut(node, local))
            }
            Operation::Split { name, .. } => self.split(task, node, name.as_deref()),
            _ => Err(Failed::Changed),
        }
    }

    fn make(&mut self, task: &Task, server: &Server, node: NodeId, part: Part) -> Result<Outcome, Failed> {
        let (entry, _) = task.remote.as_ref().ok_or(Failed::Changed)?;
        let folder =
            task.folder_path.as_ref().and_then(|path| self.disk.resolve(path)).ok_or(Failed::Changed)?;
        let is_file = matches!(entry.kind, Kind::File(_));
        // Earlier versions can be had as long as the file is there.
        if is_file && (!self.online || !server.has(entry)) {
            return Err(Failed::Changed);
        }
        let thing = thing_of(&entry.kind);
        let (inode, place) = match &task.local {
            Some(local) if is_file => {
                let inode = self.check(task, local)?;
                if let Thing::File(bytes) = self.disk.objects[&inode].thing
                    && bytes != 0
                    && !server.ever.contains(&bytes)
                {
                    return Err(Failed::Wrong(format!("overwrites content {bytes} that never went up")));
                }
                let name = self.disk.objects[&inode].name.clone();
                self.disk.remove(inode);
                let made = self.disk.make(folder, &name, thing, entry.attributes);
                (made.map_err(|_changed| Failed::Changed)?, local.node.place.clone())
            }
            Some(_) => return Err(Failed::Changed),
            None => {
                let parent = self.state.by_entry.get(&entry.parent).copied();
                let made = self.disk.make(folder, &entry.name, thing, entry.attributes);
                let place = Place { parent: parent.unwrap_or(ROOT), name: entry.name.clone() };
                (made.map_err(|_changed| Failed::Changed)?, place)
            }
        };
        self.seen.extend(bytes_of_kind(&entry.kind));
        let now = Node { place, kind: entry.kind.clone(), attributes: entry.attributes };
        Ok(Outcome::Local(node, Local { node: now, stamp: self.stamp(inode) }, part))
    }

    fn split(&mut self, task: &Task, node: NodeId, name: Option<&str>) -> Result<Outcome, Failed> {
        let mut local = task.local.clone().ok_or(Failed::Changed)?;
        let inode = self.object(task)?;
        if inode != local.stamp.inode || self.disk.objects[&inode].born != local.stamp.born {
            return Err(Failed::Changed);
        }
        if let Some(name) = name {
            let folder = self.disk.objects[&inode].parent;
            self.disk.rename(inode, folder, name).map_err(|_changed| Failed::Changed)?;
            name.clone_into(&mut local.node.place.name);
        }
        let new_node = task.new_node.ok_or(Failed::Changed)?;
        Ok(Outcome::Split(node, new_node, local))
    }

    /// A folder goes only if all in it is known, and as it is known.
    fn check_all_below(&self, node: NodeId, inode: Inode) -> Result<(), Failed> {
        let known: BTreeMap<Inode, (NodeId, Stamp)> = self
            .state
            .local
            .below(node)
            .into_iter()
            .filter_map(|id| self.state.stamps.get(&id).map(|stamp| (stamp.inode, (id, *stamp))))
            .collect();
        for inode in self.disk.below(inode) {
            let Some((id, stamp)) = known.get(&inode) else { return Err(Failed::Changed) };
            let local = self.state.local.get(*id).ok_or(Failed::Changed)?;
            let object = &self.disk.objects[&inode];
            // What was made or changed here since it was planned is known by now, but has not gone up.
            let Some(synced) = self.state.synced.get(*id) else { return Err(Failed::Changed) };
            let stayed_there = self.state.remote.get(*id).is_some_and(|remote| remote.place == synced.place);
            // A name for stepping aside is nobody's wish.
            let is_wish = swapped(&local.place.name).is_none();
            let moved = *id != node && stayed_there && local.place != synced.place && is_wish;
            let edited = !same_kind(&local.kind, &synced.kind);
            if *stamp != self.stamp(inode) || local.place.name != object.name || moved || edited {
                return Err(Failed::Changed);
            }
        }
        Ok(())
    }

    /// Cutting is by the device's own rule.
    fn cutter(&self) -> Cutter {
        if self.number % 3 == 2 { Cutter::Fixed4m } else { Cutter::Cdc64k }
    }
}
