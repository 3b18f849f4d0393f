//! The groups, the clock, the contents there are, and what is needed to speak to the groups.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::chunk::CHUNK_BYTES_MAX;
use engine::cluster::SlotRange;
use engine::hash::sha256_parts;
use engine::ids::{
    AccountId, ChunkId, ContentId, DeviceId, Epoch, GroupId, NamespaceId, RequestId, SlotId, StripeId,
    VolumeId,
};
use engine::location::ChunkLocation;
use engine::manifest::{ContentList, ManifestEntry};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::de::DeserializeOwned;

use super::super::keys::Table;
use super::super::machine::StateMachine;
use super::upload::Session;
use crate::api::bootstrap::spread_slots;
use crate::app::{App, LogTime};
use crate::kv::{Backing, KeyRange, MemoryStore, Txn, View};
use crate::model::codec::{decode, encode};
use crate::model::command::{Command, CommandOutcome, DataStep, NewChunk, StepError, Steps};
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};
use crate::model::row::{ChunkRow, ChunkState};
use crate::warden::liveness::Liveness;

/// Whether an actor goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Going,
    Ended,
}

/// A file's bytes, by name.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub content: ContentId,
    pub size: u64,
    pub chunks: Vec<ManifestEntry>,
}

impl Content {
    pub(super) fn list(&self) -> ContentList {
        ContentList { depth: 0, entries: self.chunks.clone() }
    }

    pub(super) fn ids(&self) -> Vec<ChunkId> {
        self.chunks.iter().map(|chunk| chunk.id).collect()
    }
}

pub(super) struct World {
    pub random: SmallRng,
    pub time_ms: u64,
    pub namespaces: Vec<NamespaceId>,
    pub contents: Vec<Content>,
    pub uploads: Vec<Session>,
    pub device: DeviceId,
    machine: StateMachine,
    groups: BTreeMap<GroupId, MemoryStore>,
    slots: Vec<SlotRange>,
}

/// When every run begins.
const START_MS: u64 = 1_800_000_000_000;

/// Small chunks: the first ones.
const SMALL_CHUNKS: usize = 4;

/// How long journals keep what is gone.
const HORIZON_MS: u64 = 40 * 3_600_000;

/// Bytes that a namespace may take: sometimes not enough.
const QUOTA_BYTES: u64 = 20 * CHUNK_BYTES_MAX as u64;

impl World {
    pub(super) fn new(seed: u64, groups: u16) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let namespaces: Vec<NamespaceId> = (0..2).map(|_| NamespaceId::from_bytes(random.random())).collect();
        // Some are so small that files of up to three of them may be put by one command.
        let chunks: Vec<ManifestEntry> = (0..8)
            .map(|number| {
                let size_max = if number < SMALL_CHUNKS { 20_000 } else { CHUNK_BYTES_MAX as u64 };
                let id = ChunkId::from_bytes(random.random());
                ManifestEntry { id, size: random.random_range(1..=size_max) }
            })
            .collect();
        // The empty content, and a few that share chunks.
        let contents = (0..8)
            .map(|number| {
                let chunks = if number < 4 { &chunks[..] } else { &chunks[..SMALL_CHUNKS] };
                let count = number % 4;
                let chunks: Vec<ManifestEntry> =
                    (0..count).map(|_| chunks[random.random_range(0..chunks.len())]).collect();
                let size = chunks.iter().map(|chunk| chunk.size).sum();
                Content { content: ContentId::of(&chunks), size, chunks }
            })
            .collect();
        let mut world = Self {
            random,
            time_ms: START_MS,
            namespaces,
            contents,
            uploads: Vec::new(),
            device: DeviceId::from_bytes([1; 8]),
            machine: StateMachine::new(Arc::new(Liveness::default())),
            groups: (1..=groups).map(|group| (GroupId(group), MemoryStore::default())).collect(),
            slots: spread_slots(groups),
        };
        for SlotRange { first, last, group } in world.slots.clone() {
            world.done(group, vec![DataStep::SlotsAdopt { first, last }]);
        }
        for group in world.groups.keys().copied().collect::<Vec<_>>() {
            world.done(group, vec![DataStep::JournalHorizonSet { horizon_ms: HORIZON_MS }]);
        }
        for namespace in world.namespaces.clone() {
            let owner = AccountId::from_bytes([2; 16]);
            let quota_bytes = if world.random.random_bool(0.5) { 0 } else { QUOTA_BYTES };
            world.done(
                world.group_of(namespace.slot()),
                vec![DataStep::NamespaceCreate { namespace, owner, quota_bytes }],
            );
        }
        world
    }

    pub(super) fn group_of(&self, slot: SlotId) -> GroupId {
        self.slots.iter().find(|range| range.first <= slot && slot <= range.last).unwrap().group
    }

    /// Chunks by the group that owns their slots, each once.
    pub(super) fn by_group(&self, chunks: &[ChunkId]) -> Vec<(GroupId, Vec<ChunkId>)> {
        let mut groups: BTreeMap<GroupId, Vec<ChunkId>> = BTreeMap::new();
        for chunk in chunks {
            groups.entry(self.group_of(chunk.slot())).or_default().push(*chunk);
        }
        groups.into_iter().collect()
    }

    pub(super) fn some_upload(&mut self) -> Option<Session> {
        if self.uploads.is_empty() {
            return None;
        }
        let recent = self.uploads.len().saturating_sub(12);
        let index = self.random.random_range(recent..self.uploads.len());
        Some(self.uploads[index].clone())
    }

    /// Somebody finds a chunk unreadable in its stripe, or late in one where it lay before; perhaps its bytes come
    /// again, from whoever has them, and take its place.
    pub(super) fn lose_some_chunk(&mut self) {
        let chunks = self.rows::<ChunkRow>(Table::Chunk);
        if chunks.is_empty() {
            return;
        }
        let (key, row) = chunks[self.random.random_range(0..chunks.len())].clone();
        let elsewhere = self.random.random_bool(0.2);
        let stripe =
            if elsewhere { StripeId::new(VolumeId(1), self.random.random()) } else { row.location.stripe };
        let group = self.group_of(row.chunk.slot());
        self.done(group, vec![DataStep::ChunksUnreadable { chunks: vec![(row.chunk, stripe)] }]);
        let lost: ChunkRow = self.row(&key).unwrap();
        assert_eq!(lost.state == ChunkState::Live, elsewhere && row.state == ChunkState::Live);
        if self.random.random_bool(0.5) {
            let stripe = StripeId::new(VolumeId(2), self.random.random());
            let location = ChunkLocation { stripe, ..row.location };
            let chunks = vec![NewChunk { chunk: row.chunk, location, holders: Vec::new() }];
            self.done(group, vec![DataStep::ChunksRegister { epoch: Epoch(1), chunks }]);
            let now: ChunkRow = self.row(&key).unwrap();
            let healed = lost.state != ChunkState::Live;
            assert_eq!(now.state, ChunkState::Live, "fresh bytes were dropped");
            assert_eq!(now.location.stripe == stripe, healed);
            assert_eq!(now.generation > lost.generation, healed);
            assert_eq!(now.unreferenced_since_ms.is_none(), lost.unreferenced_since_ms.is_none());
        }
    }

    pub(super) fn new_request(&mut self) -> RequestId {
        RequestId::new(self.time_ms, self.random.random())
    }

    /// Delivers a command, perhaps twice; the clock goes on a little.
    pub(super) fn deliver(
        &mut self,
        group: GroupId,
        request: RequestId,
        steps: Vec<DataStep>,
    ) -> CommandOutcome {
        self.time_ms += self.random.random_range(0..50);
        let command = encode(&Command::new(request, Steps::Data(steps)));
        let outcome = self.apply(group, &command);
        if self.random.random_bool(0.1) {
            assert_eq!(self.apply(group, &command), outcome, "a repetition is answered otherwise");
        }
        outcome
    }

    fn apply(&mut self, group: GroupId, command: &[u8]) -> CommandOutcome {
        let store = self.groups.get_mut(&group).unwrap();
        let mut txn = Txn::new(store);
        let outcome = self.machine.apply(group, &mut txn, LogTime::at(self.time_ms).into(), command).unwrap();
        let changes = txn.into_changes().unwrap();
        store.commit(changes);
        decode(&outcome).unwrap()
    }

    /// One command under a request of its own; `None` if the request came too late.
    pub(super) fn propose(
        &mut self,
        group: GroupId,
        request: RequestId,
        steps: Vec<DataStep>,
    ) -> Option<Result<Vec<StepOutcome>, StepError>> {
        match self.deliver(group, request, steps) {
            CommandOutcome::Done(outcomes) => Some(Ok(outcomes)),
            CommandOutcome::Failed { error, .. } => {
                let elsewhere = matches!(error, StepError::NotOwner { .. } | StepError::WrongGroup);
                assert!(!elsewhere, "sent to the wrong group: {error}");
                Some(Err(error))
            }
            CommandOutcome::RequestOutOfTime { .. } => None,
            CommandOutcome::NotUnderstood | CommandOutcome::NoSpace => panic!("never applied"),
        }
    }

    /// A command that must go through.
    pub(super) fn done(&mut self, group: GroupId, steps: Vec<DataStep>) -> Vec<StepOutcome> {
        let request = self.new_request();
        self.propose(group, request, steps).unwrap().unwrap()
    }

    pub(super) fn ask(&self, group: GroupId, query: &Query) -> Reply {
        let reply = self.machine.query(group, &View::new(&self.groups[&group]), &encode(query));
        decode(&reply).unwrap()
    }

    /// All rows of a table, of all groups, with their keys.
    pub(super) fn rows<T: DeserializeOwned>(&self, table: Table) -> Vec<(Vec<u8>, T)> {
        let mut rows = Vec::new();
        for store in self.groups.values() {
            let range = KeyRange::prefix(&[table as u8]);
            for (key, value) in store.scan(&range, usize::MAX, false).unwrap() {
                rows.push((key, decode(&value).unwrap()));
            }
        }
        rows
    }

    /// The row at a key, whichever group has it.
    pub(super) fn row<T: DeserializeOwned>(&self, key: &[u8]) -> Option<T> {
        let mut found = self.groups.values().filter_map(|store| store.get(key).unwrap());
        let row = found.next().map(|value| decode(&value).unwrap());
        assert!(found.next().is_none(), "a row in two groups");
        row
    }

    pub(super) fn stores(&self) -> impl Iterator<Item = &MemoryStore> {
        self.groups.values()
    }

    /// Bytes that only these parts give.
    pub(super) fn derived<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
        let digest = sha256_parts(parts);
        let mut bytes = [0; N];
        bytes.copy_from_slice(&digest[..N]);
        bytes
    }
}
