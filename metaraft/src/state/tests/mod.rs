//! What single commands do, and what they refuse.

mod fuzz;
mod journal;
mod nursery;
mod queries;
mod registry;
mod releases;
mod requests;
mod root;
mod runs;
mod tree;
mod uploads;
mod versions;
mod walks;

use std::sync::Arc;

use engine::cutter::Cutter;
use engine::ids::{
    AccountId, ChunkId, ContentId, DeviceId, EntryId, GroupId, HolderId, NamespaceId, ROOT_GROUP, RequestId,
    SLOT_COUNT, SlotId, UploadId,
};
use engine::manifest::{ContentList, ManifestEntry};

use super::machine::StateMachine;
use crate::app::{App, LogTime, Made};
use crate::kv::{MemoryStore, Txn, View};
use crate::model::codec::{decode, encode};
use crate::model::command::{
    Base, Command, CommandOutcome, DataStep, OnExisting, OpenUploadsMax, RootStep, StepError, Steps,
};
use crate::model::journal::Reign;
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};
use crate::model::row::{EntryKind, EntryRow, ROOT_ENTRY};
use crate::warden::liveness::Liveness;

const DATA: GroupId = GroupId(1);
const SPACE: NamespaceId = NamespaceId::from_bytes([7; 16]);
const DEVICE: DeviceId = DeviceId::from_bytes([8; 8]);

/// One group, its clock, and a counter that names requests.
struct Harness {
    group: GroupId,
    store: MemoryStore,
    machine: StateMachine,
    time_ms: u64,
    reign: Reign,
    requests: u64,
}

impl Harness {
    fn bare(group: GroupId) -> Self {
        let machine = StateMachine::new(Arc::new(Liveness::default()));
        Self {
            group,
            store: MemoryStore::default(),
            machine,
            time_ms: 1_800_000_000_000,
            reign: Reign::default(),
            requests: 0,
        }
    }

    /// A data group with every slot and a namespace without quota.
    fn data() -> Self {
        let mut harness = Self::bare(DATA);
        harness.done(DataStep::SlotsAdopt { first: SlotId(0), last: SlotId(SLOT_COUNT - 1) });
        let owner = AccountId::from_bytes([9; 16]);
        harness.done(DataStep::NamespaceCreate { namespace: SPACE, owner, quota_bytes: 0 });
        harness
    }

    fn root() -> Self {
        Self::bare(ROOT_GROUP)
    }

    fn apply_bytes(&mut self, command: &[u8]) -> CommandOutcome {
        if let Some(refused) = self.machine.refusal(self.group, command) {
            return decode(&refused).unwrap();
        }
        let made = Made { time: LogTime::at(self.time_ms), reign: self.reign };
        let mut txn = Txn::new(&self.store);
        let outcome = self.machine.apply(self.group, &mut txn, made, command).unwrap();
        let changes = txn.into_changes().unwrap();
        self.store.commit(changes);
        decode(&outcome).unwrap()
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        let mut random = [0; 16];
        random[..8].copy_from_slice(&self.requests.to_be_bytes());
        RequestId::new(self.time_ms, random)
    }

    fn apply(&mut self, request: RequestId, steps: Steps) -> CommandOutcome {
        self.apply_bytes(&encode(&Command::new(request, steps)))
    }

    fn all(&mut self, steps: Vec<DataStep>) -> CommandOutcome {
        let request = self.request();
        self.apply(request, Steps::Data(steps))
    }

    fn step(&mut self, step: DataStep) -> Result<StepOutcome, StepError> {
        match self.all(vec![step]) {
            CommandOutcome::Done(mut outcomes) => Ok(outcomes.remove(0)),
            CommandOutcome::Failed { error, .. } => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn done(&mut self, step: DataStep) -> StepOutcome {
        self.step(step).unwrap()
    }

    fn root_step(&mut self, step: RootStep) -> Result<StepOutcome, StepError> {
        let request = self.request();
        match self.apply(request, Steps::Root(vec![step])) {
            CommandOutcome::Done(mut outcomes) => Ok(outcomes.remove(0)),
            CommandOutcome::Failed { error, .. } => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn ask(&self, query: &Query) -> Reply {
        let reply = self.machine.query(self.group, &View::new(&self.store), &encode(query));
        decode(&reply).unwrap()
    }

    fn create(&mut self, parent: EntryId, name: &str, kind: EntryKind) -> Result<EntryRow, StepError> {
        entry(self.step(DataStep::EntryCreate {
            namespace: SPACE,
            parent,
            name: name.to_owned(),
            kind,
            mode: 0o100_755,
            mtime_ns: 5,
            existing: OnExisting::Refuse,
        }))
    }

    fn folder(&mut self, parent: EntryId, name: &str) -> EntryId {
        self.create(parent, name, EntryKind::Folder).unwrap().entry
    }

    /// Begins a session of a file of one chunk of `size` bytes (none for 0); gives its id.
    fn begin(&mut self, number: u8, size: u64) -> UploadId {
        let upload = UploadId::from_bytes([number; 16]);
        self.done(begin_step(upload, &chunks(number, size)));
        upload
    }

    /// Holds, retains and commits.
    fn commit(&mut self, upload: UploadId, name: &str, base: Base) -> Result<EntryRow, StepError> {
        let chunks = chunks(upload.as_bytes()[0], 1000);
        let steps = vec![
            DataStep::UploadHold { namespace: SPACE, upload },
            retain_step(upload, &chunks, None),
            commit_step(upload, ROOT_ENTRY, name, base),
        ];
        match self.all(steps) {
            CommandOutcome::Done(mut outcomes) => entry(Ok(outcomes.remove(2))),
            CommandOutcome::Failed { error, .. } => Err(error),
            other => panic!("{other:?}"),
        }
    }

    /// A file of 1,000 bytes, in the root folder.
    fn file(&mut self, number: u8, name: &str) -> EntryRow {
        let upload = self.begin(number, 1000);
        self.commit(upload, name, Base::Absent).unwrap()
    }

    fn used_bytes(&self) -> u64 {
        match self.ask(&Query::Namespace { namespace: SPACE }) {
            Reply::Namespace(Some(row)) => row.used_bytes,
            other => panic!("{other:?}"),
        }
    }

    fn delete(&mut self, row: &EntryRow, recursive: bool) -> Result<u64, StepError> {
        let (entry, parent, name) = (row.entry, row.parent, row.name.clone());
        match self.step(DataStep::EntryDelete { namespace: SPACE, entry, parent, name, recursive })? {
            StepOutcome::Trashed { trash } => Ok(trash),
            other => panic!("{other:?}"),
        }
    }

    fn names(&self, parent: EntryId) -> Vec<String> {
        let query = Query::Children { namespace: SPACE, parent, after: None, count_max: 100 };
        match self.ask(&query) {
            Reply::Entries { entries, .. } => entries.into_iter().map(|row| row.name).collect(),
            other => panic!("{other:?}"),
        }
    }
}

fn entry(outcome: Result<StepOutcome, StepError>) -> Result<EntryRow, StepError> {
    match outcome? {
        StepOutcome::Entry(row) => Ok(row),
        other => panic!("{other:?}"),
    }
}

fn chunks(number: u8, size: u64) -> Vec<ManifestEntry> {
    let chunk = ManifestEntry { id: ChunkId::from_bytes([number; 32]), size };
    if size == 0 { Vec::new() } else { vec![chunk] }
}

fn holder_of(upload: UploadId) -> HolderId {
    HolderId::from_bytes(*upload.as_bytes())
}

fn begin_step(upload: UploadId, chunks: &[ManifestEntry]) -> DataStep {
    DataStep::UploadBegin {
        namespace: SPACE,
        upload,
        holder: holder_of(upload),
        content: ContentId::of(chunks),
        size: chunks.iter().map(|chunk| chunk.size).sum(),
        cutter: Cutter::Cdc64k,
        chunks: chunks.to_vec(),
        life_ms: 3_600_000,
        most: OpenUploadsMax { sessions: 100, list_entries: 1000 },
    }
}

fn retain_step(upload: UploadId, chunks: &[ManifestEntry], generation: Option<u64>) -> DataStep {
    DataStep::ContentRetain {
        content: ContentId::of(chunks),
        namespace: SPACE,
        generation,
        holder: holder_of(upload),
        size: chunks.iter().map(|chunk| chunk.size).sum(),
        list: ContentList { depth: 0, entries: chunks.to_vec() },
    }
}

fn commit_step(upload: UploadId, parent: EntryId, name: &str, base: Base) -> DataStep {
    let (mode, mtime_ns) = (0o100_644, 6);
    DataStep::FileCommit {
        namespace: SPACE,
        upload,
        parent,
        name: name.to_owned(),
        base,
        mode,
        mtime_ns,
        device: DEVICE,
    }
}
