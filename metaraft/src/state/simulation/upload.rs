//! An upload, as a gateway does it: begin, pin or register every chunk, hold, retain, commit, clean up.

use engine::cluster::{StripeLayout, StripeRecord, StripeShape};
use engine::code::{Code, PositionSet};
use engine::cutter::Cutter;
use engine::ids::{
    ChunkId, EntryId, Epoch, GroupId, HolderId, NamespaceId, RequestId, StripeId, UploadId, VolumeId,
};
use engine::location::{ChunkKind, ChunkLocation, Codec};
use rand::Rng;

use super::editor;
use super::world::{Content, Progress, World};
use crate::model::command::{Base, DataStep, NewChunk, OpenUploadsMax, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};

/// What all who go on with an upload know of it.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub namespace: NamespaceId,
    pub upload: UploadId,
    pub holder: HolderId,
    pub content: Content,
}

#[derive(Clone, Debug)]
enum Phase {
    Begin,
    Pin(Vec<(GroupId, Vec<ChunkId>)>, Vec<ChunkId>),
    Stripe(Vec<ChunkId>),
    Register(StripeRecord, Vec<(GroupId, Vec<ChunkId>)>),
    Check,
    Hold,
    Retain { generation: u64 },
    Commit,
    Dismiss,
    Unpin(Vec<(GroupId, Vec<ChunkId>)>),
}

#[derive(Clone, Debug)]
pub(super) struct Upload {
    session: Session,
    phase: Phase,
    parent: EntryId,
    name: String,
    base: Base,
    life_ms: u64,
    /// Names the requests of this attempt; those of one attempt are all made when it begins.
    attempt: [u8; 8],
    started_ms: u64,
    step: u32,
    /// The holder in force, if retaining told it.
    in_force: Option<HolderId>,
    failed: bool,
}

impl Upload {
    pub(super) fn new(world: &mut World) -> Self {
        let mut content = world.contents[world.random.random_range(0..world.contents.len())].clone();
        let mut namespace = world.namespaces[world.random.random_range(0..world.namespaces.len())];
        // Often the same as another one under way: they share a generation and a content.
        if world.random.random_bool(0.4)
            && let Some(other) = world.some_upload()
        {
            (content, namespace) = (other.content, other.namespace);
        }
        let upload = UploadId::from_bytes(world.random.random());
        let holder = HolderId::from_bytes(world.random.random());
        let session = Session { namespace, upload, holder, content };
        world.uploads.push(session.clone());
        let (parent, name) = editor::some_target(world, namespace);
        let base = if world.random.random_bool(0.7) { Base::Any } else { Base::Absent };
        let life_ms = world.random.random_range(1..200) * 3_600_000;
        let (attempt, started_ms) = (world.random.random(), world.time_ms);
        Self {
            session,
            phase: Phase::Begin,
            parent,
            name,
            base,
            life_ms,
            attempt,
            started_ms,
            step: 0,
            in_force: None,
            failed: false,
        }
    }

    /// The same upload from the start, by another gateway.
    pub(super) fn taken_over(&self, world: &mut World) -> Self {
        let (attempt, started_ms) = (world.random.random(), world.time_ms);
        let (parent, name) = editor::some_target(world, self.session.namespace);
        let fresh =
            Self { phase: Phase::Begin, attempt, started_ms, step: 0, in_force: None, ..self.clone() };
        Self { parent, name, failed: false, ..fresh }
    }

    pub(super) fn session(&self) -> Session {
        self.session.clone()
    }

    /// Whether it ended in a way that calls for giving the session up.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    fn request(&mut self) -> RequestId {
        self.step += 1;
        let step = self.step.to_be_bytes();
        RequestId::new(self.started_ms, World::derived(&[b"request\0", &self.attempt, &step]))
    }

    fn end(&mut self, failed: bool) -> Progress {
        self.failed = failed;
        Progress::Ended
    }

    fn go(&mut self, phase: Phase) -> Progress {
        self.phase = phase;
        Progress::Going
    }

    fn pin_all(&mut self, world: &World) -> Progress {
        let groups = world.by_group(&self.session.content.ids());
        self.go(Phase::Pin(groups, Vec::new()))
    }

    pub(super) fn step(&mut self, world: &mut World) -> Progress {
        match self.phase.clone() {
            Phase::Begin => self.begin(world),
            Phase::Pin(groups, missing) => self.pin(world, groups, missing),
            Phase::Stripe(missing) => self.register_stripe(world, &missing),
            Phase::Register(record, groups) => self.register(world, &record, groups),
            Phase::Check => self.check(world),
            Phase::Hold => self.hold(world),
            Phase::Retain { generation } => self.retain(world, generation),
            Phase::Commit => self.commit(world),
            Phase::Dismiss => self.dismiss(world),
            Phase::Unpin(groups) => self.unpin(world, groups),
        }
    }

    fn begin(&mut self, world: &mut World) -> Progress {
        // Minted by whoever begins; that of the first one is in force.
        self.session.holder = HolderId::from_bytes(world.random.random());
        let Session { namespace, upload, holder, content } = self.session.clone();
        let step = DataStep::UploadBegin {
            namespace,
            upload,
            holder,
            content: content.content,
            size: content.size,
            cutter: Cutter::Cdc64k,
            chunks: content.chunks,
            life_ms: self.life_ms,
            most: OpenUploadsMax { sessions: 20, list_entries: 40 },
        };
        let request = self.request();
        match world.propose(world.group_of(namespace.slot()), request, vec![step]) {
            Some(Ok(outcomes)) => {
                let [StepOutcome::UploadBegun { holder }] = outcomes.as_slice() else {
                    panic!("{outcomes:?}");
                };
                self.session.holder = *holder;
                self.pin_all(world)
            }
            // Who wakes up late finds it ended.
            Some(Err(
                StepError::Quota { .. } | StepError::TooMany { .. } | StepError::UploadEnded { .. },
            ))
            | None => self.end(false),
            Some(Err(error)) => panic!("begin: {error}"),
        }
    }

    fn pin(
        &mut self,
        world: &mut World,
        mut groups: Vec<(GroupId, Vec<ChunkId>)>,
        mut missing: Vec<ChunkId>,
    ) -> Progress {
        let Some((group, chunks)) = groups.pop() else {
            return self.go(if missing.is_empty() { Phase::Check } else { Phase::Stripe(missing) });
        };
        let holder = self.session.holder;
        let step = DataStep::ChunksPin { holder, chunks: chunks.clone() };
        let request = self.request();
        match world.propose(group, request, vec![step]) {
            Some(Ok(outcomes)) => {
                let StepOutcome::Pinned(pinned) = &outcomes[0] else { panic!("{outcomes:?}") };
                missing.extend(chunks.iter().zip(pinned).filter(|(_, there)| !**there).map(|(id, _)| *id));
                self.go(Phase::Pin(groups, missing))
            }
            Some(Err(error)) => panic!("pin: {error}"),
            None => self.end(false),
        }
    }

    fn register_stripe(&mut self, world: &mut World, missing: &[ChunkId]) -> Progress {
        let random = world.random.random();
        let stripe = StripeId::new(VolumeId(world.random.random_range(1..3)), random);
        let positions = |bits: u32| PositionSet(bits);
        let record = StripeRecord {
            stripe,
            code: Code::new(4, 2).unwrap(),
            shape: StripeShape { layout: StripeLayout::Coded, length: u32::MAX },
            epoch: Epoch(1),
            used: positions(0b11_1111),
            missing: positions(u32::from(world.random.random_bool(0.2))),
        };
        let request = self.request();
        let group = world.group_of(stripe.slot());
        match world.propose(group, request, vec![DataStep::StripeRegister { record }]) {
            Some(Ok(_)) => self.go(Phase::Register(record, world.by_group(missing))),
            Some(Err(error)) => panic!("stripe: {error}"),
            None => self.end(false),
        }
    }

    fn register(
        &mut self,
        world: &mut World,
        record: &StripeRecord,
        mut groups: Vec<(GroupId, Vec<ChunkId>)>,
    ) -> Progress {
        let Some((group, chunks)) = groups.pop() else { return self.go(Phase::Check) };
        let (entries, holder) = (&self.session.content.chunks, self.session.holder);
        let new = |chunk: &ChunkId| {
            let entry = entries.iter().find(|entry| entry.id == *chunk).unwrap();
            let plain_length = u32::try_from(entry.size).unwrap();
            let location = ChunkLocation {
                stripe: record.stripe,
                shape: record.shape,
                offset: 100,
                stored_length: plain_length,
                plain_length,
                codec: Codec::Plain,
                kind: ChunkKind::Data,
            };
            NewChunk { chunk: *chunk, location, holders: vec![holder] }
        };
        let chunks = chunks.iter().map(new).collect();
        let request = self.request();
        let step = DataStep::ChunksRegister { epoch: record.epoch, chunks };
        match world.propose(group, request, vec![step]) {
            Some(Ok(_)) => self.go(Phase::Register(*record, groups)),
            Some(Err(error)) => panic!("register: {error}"),
            None => self.end(false),
        }
    }

    fn check(&mut self, world: &mut World) -> Progress {
        let holder = self.session.holder;
        for (group, chunks) in world.by_group(&self.session.content.ids()) {
            let Reply::Flags(pinned) = world.ask(group, &Query::ChunksPinned { holder, chunks }) else {
                panic!("no flags");
            };
            if !pinned.iter().all(|pinned| *pinned) {
                // Somebody has given the session up and removed its pins.
                return if world.random.random_bool(0.5) { self.end(true) } else { self.pin_all(world) };
            }
        }
        self.go(Phase::Hold)
    }

    fn hold(&mut self, world: &mut World) -> Progress {
        let Session { namespace, upload, .. } = self.session;
        let group = world.group_of(namespace.slot());
        let hold = DataStep::UploadHold { namespace, upload };
        let request = self.request();
        let one_group = group == world.group_of(self.session.content.content.slot());
        if one_group && self.session.content.size > 0 && world.random.random_bool(0.6) {
            let steps = vec![hold, self.retain_step(None), self.commit_step(world)];
            let outcomes = world.propose(group, request, steps);
            if let Some(Ok(outcomes)) = &outcomes {
                self.take_retained(&outcomes[1]);
            }
            return self.committed(world, outcomes.map(|outcome| outcome.map(drop)).as_ref());
        }
        match world.propose(group, request, vec![hold]) {
            Some(Ok(outcomes)) => match outcomes[0] {
                StepOutcome::Held { retained: true, .. } => self.go(Phase::Commit),
                StepOutcome::Held { generation, .. } => self.go(Phase::Retain { generation }),
                _ => panic!("{outcomes:?}"),
            },
            Some(Err(StepError::UploadEnded { .. })) => self.go(Phase::Dismiss),
            Some(Err(error)) => panic!("hold: {error}"),
            None => self.end(false),
        }
    }

    fn retain_step(&self, generation: Option<u64>) -> DataStep {
        let Session { namespace, holder, ref content, .. } = self.session;
        let (size, list) = (content.size, content.list());
        DataStep::ContentRetain { content: content.content, namespace, generation, holder, size, list }
    }

    fn take_retained(&mut self, outcome: &StepOutcome) {
        let StepOutcome::Retained { holder } = outcome else { panic!("{outcome:?}") };
        self.in_force = Some(*holder);
    }

    fn retain(&mut self, world: &mut World, generation: u64) -> Progress {
        let group = world.group_of(self.session.content.content.slot());
        let request = self.request();
        match world.propose(group, request, vec![self.retain_step(Some(generation))]) {
            Some(Ok(outcomes)) => {
                self.take_retained(&outcomes[0]);
                self.go(Phase::Commit)
            }
            Some(Err(StepError::Changed { .. })) => self.end(true),
            Some(Err(error)) => panic!("retain: {error}"),
            None => self.end(false),
        }
    }

    fn commit_step(&self, world: &World) -> DataStep {
        DataStep::FileCommit {
            namespace: self.session.namespace,
            upload: self.session.upload,
            parent: self.parent,
            name: self.name.clone(),
            base: self.base,
            mode: 0o644,
            mtime_ns: 7,
            device: world.device,
        }
    }

    fn commit(&mut self, world: &mut World) -> Progress {
        let group = world.group_of(self.session.namespace.slot());
        let request = self.request();
        let outcomes = world.propose(group, request, vec![self.commit_step(world)]);
        self.committed(world, outcomes.map(|outcome| outcome.map(drop)).as_ref())
    }

    fn committed(&mut self, world: &mut World, outcome: Option<&Result<(), StepError>>) -> Progress {
        match outcome {
            Some(Ok(())) if self.in_force.is_some_and(|holder| holder != self.session.holder) => {
                let groups = world.by_group(&self.session.content.ids());
                self.go(Phase::Unpin(groups))
            }
            Some(Ok(()) | Err(StepError::UploadEnded { .. })) => self.go(Phase::Dismiss),
            Some(Err(
                StepError::Conflict { .. } | StepError::WrongKind { .. } | StepError::NotFound { .. },
            )) if world.random.random_bool(0.6) => {
                // Try another place: the hold stays.
                (self.parent, self.name) = editor::some_target(world, self.session.namespace);
                self.go(Phase::Hold)
            }
            Some(Err(_)) => self.end(true),
            None => self.end(false),
        }
    }

    fn dismiss(&mut self, world: &mut World) -> Progress {
        let (content, holder) = (self.session.content.content, self.session.holder);
        let request = self.request();
        let step = DataStep::HolderDismiss { content, holder };
        match world.propose(world.group_of(content.slot()), request, vec![step]) {
            Some(Ok(outcomes)) => match outcomes[0] {
                StepOutcome::Dismissed { in_force: true } => self.end(false),
                StepOutcome::Dismissed { in_force: false } => {
                    let groups = world.by_group(&self.session.content.ids());
                    self.go(Phase::Unpin(groups))
                }
                _ => panic!("{outcomes:?}"),
            },
            Some(Err(error)) => panic!("dismiss: {error}"),
            None => self.end(false),
        }
    }

    fn unpin(&mut self, world: &mut World, mut groups: Vec<(GroupId, Vec<ChunkId>)>) -> Progress {
        let Some((group, chunks)) = groups.pop() else { return self.end(false) };
        let step = DataStep::ChunksUnpin { holder: self.session.holder, chunks };
        let request = self.request();
        match world.propose(group, request, vec![step]) {
            Some(_) => self.go(Phase::Unpin(groups)),
            None => self.end(false),
        }
    }
}
