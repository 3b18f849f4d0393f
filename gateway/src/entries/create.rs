//! Makes folders and symlinks, many at once, in order.
//!
//! Items are made in waves: all those whose folder is known go together, then those below them, and so on. So a deep
//! tree takes as many waves as it is deep, and two items of one name keep their order. Those of one wave go in few
//! commands: see [`super::together`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem;

use engine::ids::EntryId;
use futures_util::{StreamExt, stream};
use metaraft::api::MetaError;
use metaraft::model::DEPTH_MAX;
use metaraft::model::command::{DataStep, OnExisting, StepError};
use metaraft::model::outcome::StepOutcome;
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::{EntryKind, EntryRow, ROOT_ENTRY};
use proto::v1;

use crate::auth::Caller;
use crate::convert;
use crate::core::Core;
use crate::entries::together::{Batch, Part, only_outcome, parts, row_of};
use crate::failure::Failure;
use crate::limits::{BATCH_ITEMS_MAX, COMMAND_ENTRIES_MAX, ENTRY_COMMANDS_AT_ONCE_MAX};
use crate::path::RemotePath;
use crate::random;

/// Permission bits of folders that are made on the way.
const PARENT_MODE: u32 = 0o755;

/// An item, checked.
#[derive(Clone, Debug)]
struct Wanted {
    path: RemotePath,
    kind: EntryKind,
    mode: u32,
    mtime_ns: i64,
    parents: bool,
    existing: OnExisting,
}

fn parse(entry: &v1::CreateEntry) -> Result<Wanted, Failure> {
    let path = RemotePath::parse(&entry.path)?;
    if path.names().is_empty() && !entry.parents {
        return Err(Failure::new(tonic::Code::AlreadyExists, "exists", "/: the root folder is always there"));
    }
    let kind = match entry.kind() {
        v1::EntryKind::Folder => EntryKind::Folder,
        v1::EntryKind::Symlink => EntryKind::Symlink(convert::symlink_target(&entry.symlink_target)?),
        v1::EntryKind::File | v1::EntryKind::Unspecified => {
            return Err(Failure::invalid(format!("{path}: only folders and symlinks are made so")));
        }
    };
    let existing = match (&kind, entry.parents, entry.replace) {
        (EntryKind::Folder, true, _) => OnExisting::TakeFolder,
        (EntryKind::Symlink(_), _, true) => OnExisting::ReplaceSymlink,
        _ => OnExisting::Refuse,
    };
    let mode = convert::mode(entry.mode)?;
    Ok(Wanted { path, kind, mode, mtime_ns: entry.mtime_ns, parents: entry.parents, existing })
}

/// What is sent by itself in one wave.
enum Call {
    /// Those of a command's items that are ready.
    Part(Part, Vec<usize>),
    /// An item whose command has gone before.
    Item(usize),
    /// Folders on the way to some.
    Parents(Vec<RemotePath>),
}

/// What can be done of what is pending.
#[derive(Default)]
struct Ready {
    /// Items that can be made, or be told that they cannot.
    items: BTreeSet<usize>,
    /// Items whose folder is yet to be made.
    waiting: BTreeSet<usize>,
    /// Folders that can be made for those.
    parents: Vec<RemotePath>,
}

/// What came of one item, or of a folder on the way.
enum Made {
    Item(usize, Result<EntryRow, Failure>),
    Parent(RemotePath, Result<EntryRow, Failure>),
}

struct Creation<'a> {
    batch: Batch<'a>,
    /// Folders whose ids are known.
    folders: HashMap<RemotePath, EntryId>,
    /// Items that are not made yet, by their index.
    pending: BTreeMap<usize, Wanted>,
    /// Commands that have not gone yet.
    parts: Vec<Part>,
    results: Vec<Option<Result<v1::Entry, Failure>>>,
}

/// Makes all of them; each succeeds or fails by itself.
pub(crate) async fn create(
    core: &Core,
    caller: &Caller,
    request: RequestKey,
    entries: &[v1::CreateEntry],
) -> Result<Vec<Result<v1::Entry, Failure>>, Failure> {
    if entries.len() > BATCH_ITEMS_MAX {
        return Err(Failure::invalid(format!("at most {BATCH_ITEMS_MAX} entries in one request")));
    }
    let mut results = Vec::with_capacity(entries.len());
    let mut pending = BTreeMap::new();
    let mut levels: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        match parse(entry) {
            Ok(wanted) => {
                levels.entry(wanted.path.names().len()).or_default().push(index);
                pending.insert(index, wanted);
                results.push(None);
            }
            Err(failure) => results.push(Some(Err(failure))),
        }
    }
    let batch = Batch { core, caller, request };
    let folders = HashMap::from([(RemotePath::ROOT, ROOT_ENTRY)]);
    let mut creation = Creation { batch, folders, pending, parts: parts(levels.into_values()), results };
    creation.find_folders().await?;
    for _wave in 0..=2 * DEPTH_MAX as usize + BATCH_ITEMS_MAX {
        if creation.pending.is_empty() {
            break;
        }
        creation.wave().await;
    }
    let missing = || Err(Failure::internal("create", &"an item was not reached"));
    Ok(creation.results.into_iter().map(|result| result.unwrap_or_else(missing)).collect())
}

impl Creation<'_> {
    /// Looks up the folders of all items, as far as they are there.
    async fn find_folders(&mut self) -> Result<(), Failure> {
        let mut paths: Vec<RemotePath> = self.pending.values().map(|wanted| wanted.path.parent()).collect();
        paths.sort_unstable();
        paths.dedup();
        let Batch { core, caller, .. } = self.batch;
        let resolved = core.meta.resolve(caller.namespace, &paths).await;
        let resolved = resolved.map_err(|error| Failure::from_meta(&error, "create"))?;
        for (path, resolved) in paths.into_iter().zip(resolved) {
            let found = RemotePath::from_names(path.names()[..resolved.found as usize].to_vec());
            if resolved.last.kind == EntryKind::Folder {
                self.folders.insert(found, resolved.last.entry);
            }
        }
        Ok(())
    }

    /// The longest part of a path that is a known folder.
    fn known(&self, path: &RemotePath) -> RemotePath {
        let mut known = path.clone();
        while !self.folders.contains_key(&known) {
            known = known.parent();
        }
        known
    }

    fn ready(&self) -> Ready {
        let folders = self.pending.values().filter(|wanted| wanted.kind == EntryKind::Folder);
        let own: HashSet<&RemotePath> = folders.map(|wanted| &wanted.path).collect();
        let mut taken: HashSet<RemotePath> = HashSet::new();
        let mut ready = Ready::default();
        for (index, wanted) in &self.pending {
            let parent = wanted.path.parent();
            let known = self.known(&parent);
            if known == parent {
                if taken.insert(wanted.path.clone()) {
                    ready.items.insert(*index);
                }
                continue;
            }
            let next = RemotePath::from_names(parent.names()[..=known.names().len()].to_vec());
            // A folder that the batch itself makes is waited for.
            if own.contains(&next) {
                ready.waiting.insert(*index);
            } else if wanted.parents {
                ready.waiting.insert(*index);
                if taken.insert(next.clone()) {
                    ready.parents.push(next);
                }
            } else {
                ready.items.insert(*index);
            }
        }
        ready
    }

    /// What is sent now. A command goes once, when none of its items waits for a folder: those are made by commands of
    /// lower levels, so that some can always go.
    fn calls(&mut self) -> Vec<Call> {
        let Ready { mut items, waiting, parents } = self.ready();
        let mut calls: Vec<Call> =
            parents.chunks(COMMAND_ENTRIES_MAX).map(|some| Call::Parents(some.to_vec())).collect();
        for part in mem::take(&mut self.parts) {
            let ready: Vec<usize> = part.items.iter().copied().filter(|item| items.remove(item)).collect();
            if ready.is_empty() || part.items.iter().any(|item| waiting.contains(item)) {
                self.parts.push(part);
            } else {
                calls.push(Call::Part(part, ready));
            }
        }
        calls.extend(items.into_iter().map(Call::Item));
        calls
    }

    async fn wave(&mut self) {
        let calls = self.calls();
        let this = &*self;
        let work: Vec<_> = calls.into_iter().map(|call| this.run(call)).collect();
        let made: Vec<Vec<Made>> = stream::iter(work).buffered(ENTRY_COMMANDS_AT_ONCE_MAX).collect().await;
        for made in made.into_iter().flatten() {
            match made {
                Made::Item(index, result) => self.settle(index, result),
                Made::Parent(path, Ok(row)) => drop(self.folders.insert(path, row.entry)),
                Made::Parent(path, Err(failure)) => self.fail_below(&path, &failure),
            }
        }
    }

    fn settle(&mut self, index: usize, result: Result<EntryRow, Failure>) {
        let Some(wanted) = self.pending.remove(&index) else { return };
        if let Ok(row) = &result
            && row.kind == EntryKind::Folder
        {
            self.folders.insert(wanted.path.clone(), row.entry);
        }
        self.results[index] = Some(result.map(|row| convert::entry_to_wire(row, Some(&wanted.path))));
    }

    /// A folder on the way cannot be made: neither can anything below it.
    fn fail_below(&mut self, path: &RemotePath, failure: &Failure) {
        let results = &mut self.results;
        self.pending.retain(|index, wanted| {
            let below = wanted.path.is_within(path);
            if below {
                results[*index] = Some(Err(failure.clone()));
            }
            !below
        });
    }

    async fn run(&self, call: Call) -> Vec<Made> {
        match call {
            Call::Parents(paths) => self.parents(paths).await,
            Call::Item(index) => vec![Made::Item(index, self.alone(index).await)],
            Call::Part(part, items) => self.together(&part, items).await,
        }
    }

    /// Makes folders on the way, or takes those that are there: that is idempotent, so the request id is fresh.
    async fn parents(&self, paths: Vec<RemotePath>) -> Vec<Made> {
        let mtime_ns = i64::try_from(random::wall_ms()).unwrap_or(0).saturating_mul(1_000_000);
        let (mut all, mut sent, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        for path in paths {
            let (kind, existing) = (EntryKind::Folder, OnExisting::TakeFolder);
            let folder = Wanted { path, kind, mode: PARENT_MODE, mtime_ns, parents: true, existing };
            match self.step(&folder) {
                Ok(step) => {
                    sent.push(folder);
                    steps.push(vec![step]);
                }
                Err(failure) => all.push(Made::Parent(folder.path, Err(failure))),
            }
        }
        let slot = self.batch.caller.namespace.slot();
        let outcomes = match self.batch.core.meta.each(slot, random::request(), steps).await {
            Ok(outcomes) => outcomes.into_iter().map(only_outcome).collect(),
            Err(error) => vec![Err(error); sent.len()],
        };
        all.extend(sent.into_iter().zip(outcomes).map(|(folder, outcome)| {
            let made = made(&folder, outcome);
            Made::Parent(folder.path, made)
        }));
        all
    }

    async fn alone(&self, index: usize) -> Result<EntryRow, Failure> {
        let wanted = self.wanted(index)?;
        if wanted.path.names().is_empty() {
            return self.batch.core.entry_at(self.batch.caller.namespace, &wanted.path).await;
        }
        made(wanted, self.batch.alone(index, self.step(wanted)?).await)
    }

    async fn together(&self, part: &Part, items: Vec<usize>) -> Vec<Made> {
        let (mut all, mut steps) = (Vec::with_capacity(items.len()), BTreeMap::new());
        for index in items {
            match self.wanted(index) {
                // There is nothing to be made.
                Ok(wanted) if wanted.path.names().is_empty() => {
                    all.push(Made::Item(index, self.alone(index).await));
                }
                wanted => match wanted.and_then(|wanted| self.step(wanted)) {
                    Ok(step) => drop(steps.insert(index, step)),
                    Err(failure) => all.push(Made::Item(index, Err(failure))),
                },
            }
        }
        for (index, outcome) in self.batch.together(part, steps).await {
            let result = self.wanted(index).and_then(|wanted| made(wanted, outcome));
            all.push(Made::Item(index, result));
        }
        all
    }

    fn wanted(&self, index: usize) -> Result<&Wanted, Failure> {
        self.pending.get(&index).ok_or_else(|| Failure::internal("create", &"an item is gone"))
    }

    fn step(&self, wanted: &Wanted) -> Result<DataStep, Failure> {
        let folder = wanted.path.parent();
        let Some(parent) = self.folders.get(&folder).copied() else {
            return Err(Failure::not_found(format!("{}: there is no folder {folder}", wanted.path)));
        };
        Ok(DataStep::EntryCreate {
            namespace: self.batch.caller.namespace,
            parent,
            name: wanted.path.name().to_owned(),
            kind: wanted.kind.clone(),
            mode: wanted.mode,
            mtime_ns: wanted.mtime_ns,
            existing: wanted.existing,
        })
    }
}

/// What came of the step that makes an item.
fn made(wanted: &Wanted, outcome: Result<StepOutcome, MetaError>) -> Result<EntryRow, Failure> {
    match outcome {
        Err(MetaError::Step(StepError::WrongKind { is })) => {
            let message = format!("{}: there is a {is} of that name already", wanted.path);
            Err(Failure::precondition("wrong-kind", message))
        }
        outcome => row_of(outcome, &wanted.path),
    }
}
