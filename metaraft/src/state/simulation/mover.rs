//! Emptying the nursery, as a gateway does it: take, pin or register every chunk, retain, settle, and clean up after what
//! went meanwhile. Whoever crashes leaves the rest to the next one, who finds it in the nursery.

use std::collections::BTreeSet;

use engine::cluster::{StripeLayout, StripeRecord, StripeShape};
use engine::code::{Code, PositionSet};
use engine::ids::{ChunkId, Epoch, GroupId, HolderId, RequestId, StripeId, VolumeId};
use engine::location::{ChunkKind, ChunkLocation, Codec};
use engine::manifest::ContentList;
use rand::Rng;

use super::editor;
use super::world::{Progress, World};
use crate::model::command::{Base, DataStep, NewChunk, StepError};
use crate::model::nursery::{NurseryFile, NurseryState, SMALL_FILE_BYTES_MAX, SmallFile};
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};

/// Bytes that a nursery may hold: sometimes not enough.
const NURSERY_BYTES_MAX: u64 = 100_000;

/// Puts a file by one command. Refusals are as good.
pub(super) fn put_some(world: &mut World) {
    let small = |size: u64| size <= SMALL_FILE_BYTES_MAX as u64;
    let contents: Vec<_> = world.contents.iter().filter(|content| small(content.size)).cloned().collect();
    let content = contents[world.random.random_range(0..contents.len())].clone();
    let namespace = world.namespaces[world.random.random_range(0..world.namespaces.len())];
    let (folder, name) = editor::some_target(world, namespace);
    let base = if world.random.random_bool(0.8) { Base::Any } else { Base::Absent };
    let file = SmallFile {
        folder,
        names: vec![name],
        base,
        mode: 0o644,
        mtime_ns: 7,
        device: world.device,
        cutter: engine::cutter::Cutter::Cdc64k,
        chunks: content.chunks.clone(),
        bytes: vec![7; usize::try_from(content.size).unwrap()],
    };
    let step = DataStep::FilePut { namespace, file: Box::new(file), nursery_bytes_max: NURSERY_BYTES_MAX };
    let request = world.new_request();
    match world.propose(world.group_of(namespace.slot()), request, vec![step]).unwrap() {
        Ok(_) => {}
        Err(
            StepError::NotFound { .. }
            | StepError::WrongKind { .. }
            | StepError::Conflict { .. }
            | StepError::Quota { .. }
            | StepError::NurseryFull
            | StepError::ContentHeld,
        ) => {}
        Err(error) => panic!("put: {error}"),
    }
}

#[derive(Clone, Debug)]
enum Phase {
    Look,
    Take,
    Pin(Vec<(GroupId, Vec<ChunkId>)>, Vec<ChunkId>),
    Register(Vec<ChunkId>),
    Retain,
    Settle(Option<HolderId>),
    Dismiss,
    Unpin(Vec<(GroupId, Vec<ChunkId>)>),
    Forget,
}

#[derive(Clone, Debug)]
pub(super) struct Mover {
    group: GroupId,
    file: Option<NurseryFile>,
    holder: HolderId,
    phase: Phase,
    /// All requests of one move are named when it begins: what comes a day later is refused.
    attempt: [u8; 8],
    started_ms: u64,
    step: u32,
}

impl Mover {
    /// Takes up whatever is in the nursery of some group.
    pub(super) fn new(world: &mut World) -> Self {
        let namespace = world.namespaces[world.random.random_range(0..world.namespaces.len())];
        let group = world.group_of(namespace.slot());
        Self::in_group(world, group)
    }

    fn in_group(world: &mut World, group: GroupId) -> Self {
        let (attempt, started_ms) = (world.random.random(), world.time_ms);
        let holder = HolderId::from_bytes([0; 16]);
        Self { group, file: None, holder, phase: Phase::Look, attempt, started_ms, step: 0 }
    }

    /// Another one that is just as far.
    pub(super) fn beside(&self, world: &mut World) -> Self {
        Self { attempt: world.random.random(), ..self.clone() }
    }

    /// Whether both are at work on one group's nursery.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.group == other.group
    }

    /// One for each group whose nursery is not empty.
    pub(super) fn needed(world: &mut World) -> Vec<Self> {
        let groups: BTreeSet<GroupId> =
            world.namespaces.iter().map(|namespace| world.group_of(namespace.slot())).collect();
        let mut movers = Vec::new();
        for group in groups {
            if !Self::nursery(world, group).is_empty() {
                movers.push(Self::in_group(world, group));
            }
        }
        movers
    }

    fn nursery(world: &World, group: GroupId) -> Vec<NurseryFile> {
        let query = Query::Nursery { after: None, since_ms_max: u64::MAX, count_max: 100 };
        let Reply::Nursery { files, next: None } = world.ask(group, &query) else { panic!("no nursery") };
        files
    }

    fn request(&mut self) -> RequestId {
        self.step += 1;
        let step = self.step.to_be_bytes();
        RequestId::new(self.started_ms, World::derived(&[b"move\0", &self.attempt, &step]))
    }

    /// `None` if it comes too late.
    fn propose(
        &mut self,
        world: &mut World,
        group: GroupId,
        step: DataStep,
    ) -> Option<Result<StepOutcome, StepError>> {
        let request = self.request();
        Some(world.propose(group, request, vec![step])?.map(|mut outcomes| outcomes.remove(0)))
    }

    /// A step that is never refused.
    fn done(&mut self, world: &mut World, group: GroupId, step: DataStep) -> Option<StepOutcome> {
        self.propose(world, group, step).map(Result::unwrap)
    }

    fn chunks(&self, world: &World) -> Vec<(GroupId, Vec<ChunkId>)> {
        let chunks = self.file.iter().flat_map(|file| file.row.chunks.iter().map(|chunk| chunk.id));
        world.by_group(&chunks.collect::<Vec<_>>())
    }

    pub(super) fn step(&mut self, world: &mut World) -> Progress {
        let next = match (self.phase.clone(), self.file.clone()) {
            (Phase::Look, _) => self.look(world),
            (_, None) => None,
            (Phase::Take, Some(file)) => self.take(world, &file),
            (Phase::Pin(groups, missing), _) => self.pin(world, groups, missing),
            (Phase::Register(missing), Some(file)) => self.register(world, &file, &missing),
            (Phase::Retain, Some(file)) => self.retain(world, &file),
            (Phase::Settle(in_force), Some(file)) => self.settle(world, &file, in_force),
            (Phase::Dismiss, Some(file)) => self.dismiss(world, &file),
            (Phase::Unpin(groups), _) => self.unpin(world, groups),
            (Phase::Forget, Some(file)) => {
                let NurseryFile { namespace, content, generation, .. } = file;
                let forget = DataStep::NurseryForget { namespace, content, generation };
                self.done(world, self.group, forget);
                None
            }
        };
        match next {
            Some(phase) => {
                self.phase = phase;
                Progress::Going
            }
            None => Progress::Ended,
        }
    }

    fn look(&mut self, world: &mut World) -> Option<Phase> {
        let mut files = Self::nursery(world, self.group);
        if files.is_empty() {
            return None;
        }
        let file = files.swap_remove(world.random.random_range(0..files.len()));
        let phase = match file.row.state {
            NurseryState::Leaving { holder } => {
                self.holder = holder;
                Phase::Dismiss
            }
            _ => {
                assert_eq!(file.bytes.len() as u64, file.row.size(), "bytes are lost");
                Phase::Take
            }
        };
        self.file = Some(file);
        Some(phase)
    }

    fn take(&mut self, world: &mut World, file: &NurseryFile) -> Option<Phase> {
        let NurseryFile { namespace, content, generation, .. } = *file;
        // Minted for this content alone.
        let holder = HolderId::from_bytes(world.random.random());
        let take = DataStep::NurseryTake { namespace, content, generation, holder };
        match self.done(world, self.group, take)? {
            StepOutcome::NurseryTaken { holder: Some(holder) } => {
                self.holder = holder;
                Some(Phase::Pin(self.chunks(world), Vec::new()))
            }
            StepOutcome::NurseryTaken { holder: None } => None,
            other => panic!("{other:?}"),
        }
    }

    fn pin(
        &mut self,
        world: &mut World,
        mut groups: Vec<(GroupId, Vec<ChunkId>)>,
        mut missing: Vec<ChunkId>,
    ) -> Option<Phase> {
        let Some((group, chunks)) = groups.pop() else {
            return Some(if missing.is_empty() { Phase::Retain } else { Phase::Register(missing) });
        };
        let step = DataStep::ChunksPin { holder: self.holder, chunks: chunks.clone() };
        let StepOutcome::Pinned(pinned) = self.done(world, group, step)? else { panic!("pin") };
        missing.extend(chunks.iter().zip(pinned).filter(|(_, there)| !there).map(|(id, _)| *id));
        Some(Phase::Pin(groups, missing))
    }

    fn register(&mut self, world: &mut World, file: &NurseryFile, missing: &[ChunkId]) -> Option<Phase> {
        let stripe = StripeId::new(VolumeId(1), world.random.random());
        let shape = StripeShape { layout: StripeLayout::Coded, length: u32::MAX };
        let record = StripeRecord {
            stripe,
            code: Code::new(4, 2).unwrap(),
            shape,
            epoch: Epoch(1),
            used: PositionSet(0b11_1111),
            missing: PositionSet(0),
        };
        self.done(world, world.group_of(stripe.slot()), DataStep::StripeRegister { record })?;
        for (group, chunks) in world.by_group(missing) {
            let new = |chunk: &ChunkId| {
                let entry = file.row.chunks.iter().find(|entry| entry.id == *chunk).unwrap();
                let plain_length = u32::try_from(entry.size).unwrap();
                let (offset, stored_length) = (100, plain_length);
                let (codec, kind) = (Codec::Plain, ChunkKind::Data);
                let location =
                    ChunkLocation { stripe, shape, offset, stored_length, plain_length, codec, kind };
                NewChunk { chunk: *chunk, location, holders: vec![self.holder] }
            };
            let chunks = chunks.iter().map(new).collect();
            self.done(world, group, DataStep::ChunksRegister { epoch: Epoch(1), chunks })?;
        }
        Some(Phase::Retain)
    }

    fn retain_step(&self, file: &NurseryFile) -> DataStep {
        DataStep::ContentRetain {
            content: file.content,
            namespace: file.namespace,
            generation: Some(file.generation),
            holder: self.holder,
            size: file.row.size(),
            list: ContentList { depth: 0, entries: file.row.chunks.clone() },
        }
    }

    fn settle_step(file: &NurseryFile, in_force: Option<HolderId>) -> DataStep {
        let NurseryFile { namespace, content, generation, .. } = *file;
        DataStep::NurserySettle { namespace, content, generation, in_force }
    }

    fn retain(&mut self, world: &mut World, file: &NurseryFile) -> Option<Phase> {
        let group = world.group_of(file.content.slot());
        if group == self.group && world.random.random_bool(0.5) {
            let steps = vec![self.retain_step(file), Self::settle_step(file, None)];
            let request = self.request();
            return match world.propose(group, request, steps)? {
                Ok(outcomes) => Self::settled(&outcomes[1]),
                Err(StepError::Changed { .. }) => Some(Phase::Settle(Some(self.holder))),
                Err(error) => panic!("retain: {error}"),
            };
        }
        let step = self.retain_step(file);
        match self.propose(world, group, step)? {
            Ok(StepOutcome::Retained { holder }) => Some(Phase::Settle(Some(holder))),
            // It has been released: settling tells that it is leaving.
            Err(StepError::Changed { .. }) => Some(Phase::Settle(Some(self.holder))),
            other => panic!("retain: {other:?}"),
        }
    }

    fn settle(&mut self, world: &mut World, file: &NurseryFile, in_force: Option<HolderId>) -> Option<Phase> {
        let settled = self.done(world, self.group, Self::settle_step(file, in_force))?;
        Self::settled(&settled)
    }

    fn settled(outcome: &StepOutcome) -> Option<Phase> {
        match outcome {
            StepOutcome::NurserySettled { leaving: false } => None,
            StepOutcome::NurserySettled { leaving: true } => Some(Phase::Dismiss),
            other => panic!("{other:?}"),
        }
    }

    fn unpin(&mut self, world: &mut World, mut groups: Vec<(GroupId, Vec<ChunkId>)>) -> Option<Phase> {
        let Some((group, chunks)) = groups.pop() else { return Some(Phase::Forget) };
        let holder = self.holder;
        self.done(world, group, DataStep::ChunksUnpin { holder, chunks })?;
        Some(Phase::Unpin(groups))
    }

    fn dismiss(&mut self, world: &mut World, file: &NurseryFile) -> Option<Phase> {
        let (content, holder) = (file.content, self.holder);
        let step = DataStep::HolderDismiss { content, holder };
        match self.done(world, world.group_of(content.slot()), step)? {
            StepOutcome::Dismissed { in_force: true } => Some(Phase::Forget),
            StepOutcome::Dismissed { in_force: false } => Some(Phase::Unpin(self.chunks(world))),
            other => panic!("{other:?}"),
        }
    }
}
