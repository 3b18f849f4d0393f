//! A run: some devices and a server, a list of events, then quiet; and what must hold all along and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::content::bytes_of_kind;
use super::device::Device;
use super::disk::{Thing, thing_of};
use super::events::{Event, Setup};
use super::server::{self, EntryId, Server};
use super::task::Failed;
use super::user::{Ledger, act, act_on_server};
use crate::planner::model::{Attributes, Kind};
use crate::planner::names::{NameRules, swapped};
use crate::planner::{Blocked, Decisions};

/// Rounds of all devices until all are quiet.
const ROUNDS_MAX: usize = 60;
/// Plans of one device, with nobody else doing anything, until it has nothing to do.
const PLANS_MAX: usize = 120;

#[derive(Clone, Debug, Default)]
pub(super) struct Summary {
    pub(super) decisions: Decisions,
    pub(super) rounds: usize,
    pub(super) operations: usize,
}

pub(super) struct World {
    pub(super) server: Server,
    pub(super) devices: Vec<Device>,
    kept: Vec<Server>,
    /// The latest reign of all histories.
    reign: u64,
    ledger: Ledger,
    calm: bool,
    last_user: Option<usize>,
    pub(super) summary: Summary,
}

/// Runs events, then quiet. The error says what did not hold.
pub(super) fn run(setup: &Setup, events: &[Event]) -> Result<Summary, String> {
    let mut world = World::new(setup);
    for (number, event) in events.iter().enumerate() {
        world.event(*event).map_err(|error| format!("event {number} {event:?}: {error}"))?;
    }
    world.quiet().map_err(|error| format!("at the end: {error}"))?;
    world.forget_everything().map_err(|error| format!("after all lost their databases: {error}"))?;
    for device in &world.devices {
        world.summary.decisions.extend(device.decisions.iter().copied());
    }
    Ok(world.summary)
}

impl World {
    pub(super) fn new(setup: &Setup) -> Self {
        let device =
            |(number, (names, birth)): (usize, &(NameRules, bool))| Device::new(number, *names, *birth);
        Self {
            server: Server::new(),
            devices: setup.devices.iter().enumerate().map(device).collect(),
            kept: Vec::new(),
            reign: 0,
            ledger: Ledger::new(),
            calm: setup.calm,
            last_user: None,
            summary: Summary::default(),
        }
    }

    pub(super) fn event(&mut self, event: Event) -> Result<(), String> {
        let count = self.devices.len();
        let at = |device: u8| usize::from(device) % count;
        match event {
            Event::User(device, user) => {
                let device = at(device);
                // In a calm run all are quiet before another device is used.
                if self.calm && self.last_user.is_some_and(|last| last != device) {
                    self.quiet()?;
                }
                self.last_user = Some(device);
                act(&mut self.devices[device], &mut self.ledger, user);
            }
            Event::Web(web) => act_on_server(&mut self.server, &mut self.ledger, web),
            Event::Fetch(device) => self.devices[at(device)].fetch(&self.server),
            Event::Take(device) => self.devices[at(device)].take_batch(),
            Event::TakeTwice(device) => {
                let device = &mut self.devices[at(device)];
                let batches = device.batches.clone();
                device.take_batch();
                device.batches = batches;
                device.take_batch();
            }
            Event::TakeLast(device) => {
                let device = &mut self.devices[at(device)];
                device.batches.pop().into_iter().for_each(|batch| device.take(batch));
            }
            Event::TakeAgain(device) => {
                let device = &mut self.devices[at(device)];
                device.taken.take().into_iter().for_each(|batch| device.take(batch));
            }
            Event::Scan(device) => {
                self.devices[at(device)].scan();
            }
            Event::Plan(device, most) => self.plan(at(device), 1 + usize::from(most % 8))?,
            Event::Perform(device, pick) => {
                self.perform(at(device), pick, Ending::Recorded)?;
            }
            Event::Begin(device, pick) => {
                self.perform(at(device), pick, Ending::Later)?;
            }
            Event::Send(device, pick) => self.devices[at(device)].send(pick),
            Event::LoseAnswer(device, pick) => {
                self.perform(at(device), pick, Ending::Lost)?;
            }
            Event::Record(device, pick) => self.devices[at(device)].record_one(pick),
            Event::Work(device) => self.work(at(device))?,
            Event::Crash(device) => self.devices[at(device)].crash(),
            Event::LoseDatabase(device) => self.devices[at(device)].lose(),
            Event::Reset(device) => {
                let device = &mut self.devices[at(device)];
                device.batches.clear();
                device.taken = None;
                device.state.relist = true;
            }
            Event::Online(device, online) => self.devices[at(device)].online = online,
            Event::Withhold(device, withheld) => self.devices[at(device)].withheld = withheld,
            Event::Exclude(device, pick, on) => self.exclude(at(device), pick, on),
            Event::Keep => self.kept.push(self.server.clone()),
            Event::GoBack(pick) => self.go_back(pick),
            Event::Quiet => self.quiet()?,
        }
        Ok(())
    }

    fn go_back(&mut self, pick: u8) {
        self.reign += 1;
        if self.kept.is_empty() {
            // Another leads it.
            self.server.begin_reign(self.reign);
            return;
        }
        let before = self.server.ever.clone();
        self.server = self.kept[usize::from(pick / 4) % self.kept.len()].clone();
        // What went up in the other history did go up: who had planned before it could notice did nothing wrong.
        self.server.ever.extend(before);
        self.server.begin_reign(self.reign);
        self.server.tells_common = !pick.is_multiple_of(4);
        // What no device has, and the server did not have then, is lost; nobody can help that.
        let mut there = self.contents_there();
        there.extend(self.devices.iter().flat_map(|device| device.disk.contents()));
        let lost: Vec<_> = self.ledger.written.difference(&there).copied().collect();
        self.ledger.removed.extend(lost);
    }

    fn contents_there(&self) -> BTreeSet<u32> {
        let entries =
            self.server.below(server::TOP).into_iter().filter_map(|id| self.server.entries.get(&id));
        entries.filter_map(|entry| bytes_of_kind(&entry.kind)).collect()
    }

    fn exclude(&mut self, device: usize, pick: u8, on: bool) {
        let folders: Vec<EntryId> = self
            .server
            .below(server::TOP)
            .into_iter()
            .skip(1)
            .filter(|id| self.server.is_folder(*id))
            .collect();
        let excluded = &mut self.devices[device].state.excluded;
        if on && !folders.is_empty() {
            excluded.insert(folders[usize::from(pick) % folders.len()]);
        } else if let Some(first) = excluded.iter().nth(usize::from(pick) % excluded.len().max(1)).copied() {
            excluded.remove(&first);
        }
    }

    fn plan(&mut self, device: usize, operations_max: usize) -> Result<(), String> {
        let device = &mut self.devices[device];
        if let Some(plan) = device.plan(operations_max) {
            for (node, why) in &plan.blocked {
                if *why == Blocked::Kinds || *why == Blocked::NoName {
                    return Err(format!("node {} {why}", node.0));
                }
            }
            self.summary.operations += plan.operations.len();
            device.prepare(plan.operations);
        }
        Ok(())
    }

    /// Carries a task out; says whether it could be.
    fn perform(&mut self, device: usize, pick: u8, ending: Ending) -> Result<bool, String> {
        let device = &mut self.devices[device];
        if device.tasks.is_empty() {
            return Ok(true);
        }
        let task = device.tasks.remove(usize::from(pick) % device.tasks.len());
        match device.perform(&task, &mut self.server) {
            Ok(done) => {
                match ending {
                    Ending::Recorded => device.record(done),
                    Ending::Later => device.unrecorded.push(done),
                    Ending::Lost if done.is_remote() => {}
                    Ending::Lost => device.record(done),
                }
                Ok(true)
            }
            Err(Failed::Changed) => Ok(false),
            Err(Failed::Wrong(why)) => Err(format!("device {}: {:?} {why}", device.number, task.operation)),
        }
    }

    fn work(&mut self, device: usize) -> Result<(), String> {
        let own = &mut self.devices[device];
        own.take_batch();
        own.fetch(&self.server);
        own.take_batch();
        own.scan();
        for pick in 0..3 {
            self.plan(device, 100)?;
            while !self.devices[device].tasks.is_empty() {
                self.perform(device, pick, Ending::Recorded)?;
            }
        }
        Ok(())
    }

    /// When all are quiet and then lose their databases, nothing is sent, fetched, renamed or deleted.
    fn forget_everything(&mut self) -> Result<(), String> {
        let sequence = self.server.sequence;
        let kept_all = self.devices.iter().all(|device| device.state.excluded.is_empty());
        let disks: Vec<_> = self.devices.iter().map(|device| device.disk.objects.clone()).collect();
        self.devices.iter_mut().for_each(Device::lose);
        self.quiet()?;
        // Without the list of what is excluded, more comes than was here, and with it names that cannot be.
        if kept_all && self.server.sequence != sequence {
            return Err(format!("something changed on the server\n{}", self.shown()));
        }
        for (device, disk) in self.devices.iter().zip(disks) {
            if kept_all && device.disk.objects != disk {
                return Err(format!("the disk of device {} changed\n{}", device.number, self.shown()));
            }
        }
        Ok(())
    }

    /// Everybody goes on until nothing is left to do, while nobody does anything new.
    pub(super) fn quiet(&mut self) -> Result<(), String> {
        for device in &mut self.devices {
            (device.online, device.withheld) = (true, false);
        }
        for round in 0..ROUNDS_MAX {
            let mut did = false;
            for device in 0..self.devices.len() {
                did |= self.settle(device)?;
            }
            if !did {
                self.summary.rounds = self.summary.rounds.max(round);
                return self.check();
            }
        }
        Err(format!("not quiet after {ROUNDS_MAX} rounds\n{}", self.shown()))
    }

    /// One device alone goes on until it has nothing to do; says whether it did anything.
    fn settle(&mut self, number: usize) -> Result<bool, String> {
        let mut did = false;
        // What is under way comes to its end first.
        loop {
            let device = &mut self.devices[number];
            if let Some(outcome) = device.unrecorded.pop() {
                device.record(outcome);
            } else if device.tasks.is_empty() {
                break;
            } else {
                self.perform(number, 0, Ending::Recorded)?;
            }
            did = true;
        }
        for plans in 0..PLANS_MAX {
            let device = &mut self.devices[number];
            while !device.batches.is_empty() {
                device.take_batch();
            }
            device.fetch(&self.server);
            device.take_batch();
            device.scan();
            let Some(plan) = device.plan(if plans.is_multiple_of(3) { 3 } else { 1_000 }) else { continue };
            if plan.operations.is_empty() {
                return Ok(did);
            }
            did = true;
            self.summary.operations += plan.operations.len();
            device.prepare(plan.operations);
            let mut pick = u8::try_from(plans).unwrap_or_default();
            while !self.devices[number].tasks.is_empty() {
                pick = pick.wrapping_mul(31).wrapping_add(7);
                let tasks = &self.devices[number].tasks;
                let operation = tasks[usize::from(pick) % tasks.len()].operation.clone();
                if !self.perform(number, pick, Ending::Recorded)? {
                    return Err(format!(
                        "device {number} with nobody else about: refused {operation:?}\n{}",
                        self.shown()
                    ));
                }
            }
        }
        Err(format!("device {number} alone has more to do after {PLANS_MAX} plans\n{}", self.shown()))
    }

    /// What must hold when all are quiet.
    fn check(&self) -> Result<(), String> {
        for device in &self.devices {
            self.check_device(device)
                .map_err(|error| format!("device {}: {error}\n{}", device.number, self.shown()))?;
        }
        let live = self.contents_there();
        for bytes in &self.ledger.written {
            if *bytes != 0 && !self.ledger.removed.contains(bytes) && !live.contains(bytes) {
                return Err(format!("content {bytes} is nowhere, and nobody removed it\n{}", self.shown()));
            }
        }
        for entry in self.server.entries.values() {
            if swapped(&entry.name).is_some() {
                return Err(format!("{} is left over\n{}", entry.name, self.shown()));
            }
            if self.calm && entry.name.contains("conflict") {
                return Err(format!("{} for no reason\n{}", entry.name, self.shown()));
            }
        }
        Ok(())
    }

    fn check_device(&self, device: &Device) -> Result<(), String> {
        let state = &device.state;
        let mut expected: BTreeMap<String, (Thing, Attributes)> = BTreeMap::new();
        let mut pending = vec![(server::TOP, String::new())];
        while let Some((folder, path)) = pending.pop() {
            for id in self.server.children(folder) {
                let entry = &self.server.entries[&id];
                if state.excluded.contains(&id) {
                    continue;
                }
                let path = format!("{path}/{}", entry.name);
                expected
                    .insert(path.clone(), (thing_of(&entry.kind), compared(&entry.kind, entry.attributes)));
                pending.push((id, path));
            }
        }
        let found: BTreeMap<String, (Thing, Attributes)> = device
            .disk
            .listing()
            .into_iter()
            .map(|(path, (thing, attributes))| {
                let attributes = match &thing {
                    Thing::Folder => compared(&Kind::Folder, attributes),
                    Thing::File(_) => attributes,
                    Thing::Symlink(_) => Attributes { mode: 0, mtime_ns: 0 },
                };
                (path, (thing, attributes))
            })
            .collect();
        if expected != found {
            let missing = expected.iter().find(|(path, what)| found.get(*path) != Some(what));
            let extra = found.iter().find(|(path, what)| expected.get(*path) != Some(what));
            return Err(format!("the disk differs: lacks {missing:?}, has {extra:?}; {:?}", device.blocked));
        }
        for id in state.local.ids() {
            if state.local.get(id) != state.remote.get(id) || state.local.get(id) != state.synced.get(id) {
                return Err(format!("node {} differs in the trees", id.0));
            }
        }
        if !state.intents.is_empty() {
            return Err("a split is still intended".to_owned());
        }
        Ok(())
    }

    pub(super) fn shown(&self) -> String {
        let mut shown = String::from("server:\n");
        let mut pending = vec![(server::TOP, String::new())];
        while let Some((folder, path)) = pending.pop() {
            for id in self.server.children(folder) {
                let entry = &self.server.entries[&id];
                let path = format!("{path}/{}", entry.name);
                let _ = writeln!(shown, "  e{id} {path} {:?} {:?}", thing_of(&entry.kind), entry.attributes);
                pending.push((id, path));
            }
        }
        for device in &self.devices {
            let state = &device.state;
            let _ = writeln!(
                shown,
                "device {} {:?} excluded {:?}",
                device.number, device.disk.names, state.excluded
            );
            for (path, (thing, attributes)) in device.disk.listing() {
                let _ = writeln!(shown, "  disk {path} {thing:?} {attributes:?}");
            }
            for id in state.dirty() {
                let _ = writeln!(shown, "  node {} entry {:?}", id.0, state.entry_of(id));
                for (name, tree) in
                    [("remote", &state.remote), ("local", &state.local), ("synced", &state.synced)]
                {
                    if let Some(node) = tree.get(id) {
                        let thing = thing_of(&node.kind);
                        let (at, called) = (node.place.parent.0, &node.place.name);
                        let _ = writeln!(shown, "    {name} {at}/{called} {thing:?} {:?}", node.attributes);
                    }
                }
            }
            let _ = writeln!(shown, "  blocked {:?}", device.blocked);
        }
        shown
    }
}

/// How a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Recorded,
    Later,
    Lost,
}

fn compared(kind: &Kind, attributes: Attributes) -> Attributes {
    match kind {
        Kind::Folder => Attributes { mtime_ns: 0, ..attributes },
        Kind::File(_) => attributes,
        Kind::Symlink(_) => Attributes { mode: 0, mtime_ns: 0 },
    }
}

/// Takes events away as long as it fails.
pub(super) fn shrink(setup: &Setup, mut events: Vec<Event>) -> (Vec<Event>, String) {
    let mut error = run(setup, &events).err().unwrap_or_default();
    let mut size = events.len().div_ceil(2).max(1);
    loop {
        let mut shorter = false;
        let mut at = 0;
        while at < events.len() {
            let mut fewer = events.clone();
            fewer.drain(at..(at + size).min(fewer.len()));
            match run(setup, &fewer) {
                Err(why) => {
                    (events, error, shorter) = (fewer, why, true);
                }
                Ok(_) => at += size,
            }
        }
        if size == 1 && !shorter {
            return (events, error);
        }
        size = (size / 2).max(1);
    }
}
