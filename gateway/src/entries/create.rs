//! Makes folders and symlinks, many at once, in order.
//!
//! Items are made in waves: all those whose folder is known go together, then those below them, and so on. So a deep
//! tree takes as many waves as it is deep, and two items of one name keep their order. What is in a wave is decided in
//! [`super::waves`]; those of one wave go in few commands: see [`super::together`].

use std::collections::BTreeMap;
use std::mem;

use futures_util::{StreamExt, stream};
use metaraft::api::MetaError;
use metaraft::model::DEPTH_MAX;
use metaraft::model::command::{DataStep, OnExisting, StepError};
use metaraft::model::outcome::StepOutcome;
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::{EntryKind, EntryRow};
use proto::v1;

use crate::auth::Caller;
use crate::convert;
use crate::core::Core;
use crate::entries::together::{Batch, Part, only_outcome, parts, row_of};
use crate::entries::waves::{Folders, Item, Ready, Wanted, Waves, Way};
use crate::failure::Failure;
use crate::limits::{BATCH_ITEMS_MAX, COMMAND_ENTRIES_MAX, ENTRY_COMMANDS_AT_ONCE_MAX};
use crate::path::RemotePath;
use crate::random;

/// Permission bits of folders that are made on the way.
const PARENT_MODE: u32 = 0o755;

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
    Ways(Vec<Way>),
}

/// What came of one item, or of a folder on the way.
enum Made {
    Item(usize, Result<EntryRow, Failure>),
    Way(Way, Result<EntryRow, Failure>),
}

struct Creation<'a> {
    batch: Batch<'a>,
    waves: Waves,
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
    let mut pending = Vec::with_capacity(entries.len());
    let mut levels: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        match parse(entry) {
            Ok(wanted) => {
                levels.entry(wanted.path.names().len()).or_default().push(index);
                pending.push((index, wanted));
                results.push(None);
            }
            Err(failure) => results.push(Some(Err(failure))),
        }
    }
    let batch = Batch { core, caller, request };
    let (waves, parts) = (Waves::new(pending), parts(levels.into_values()));
    let mut creation = Creation { batch, waves, parts, results };
    creation.find_folders().await?;
    for _wave in 0..=2 * DEPTH_MAX as usize + BATCH_ITEMS_MAX {
        if creation.waves.is_empty() {
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
        let (paths, items): (Vec<RemotePath>, Vec<Vec<usize>>) = self.waves.parents().into_iter().unzip();
        let Batch { core, caller, .. } = self.batch;
        let resolved = core.meta.resolve(caller.namespace, &paths).await;
        let resolved = resolved.map_err(|error| Failure::from_meta(&error, "create"))?;
        for (items, resolved) in items.into_iter().zip(&resolved) {
            for item in items {
                self.waves.resolved(item, resolved);
            }
        }
        Ok(())
    }

    /// What is sent now. A command goes once, when none of its items waits for a folder: those are made by commands of
    /// lower levels, so that some can always go.
    fn calls(&mut self) -> Vec<Call> {
        let Ready { mut items, waiting, ways } = self.waves.ready();
        let mut calls: Vec<Call> =
            ways.chunks(COMMAND_ENTRIES_MAX).map(|some| Call::Ways(some.to_vec())).collect();
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
        let mut folders = Folders::default();
        for made in made.into_iter().flatten() {
            match made {
                Made::Item(index, result) => self.settle(index, result, &mut folders),
                Made::Way(Way { folder, name, .. }, result) => {
                    folders.put(folder, name, result.map(|row| row.entry));
                }
            }
        }
        for (index, failure) in self.waves.advance(&folders) {
            self.results[index] = Some(Err(failure));
        }
    }

    fn settle(&mut self, index: usize, result: Result<EntryRow, Failure>, folders: &mut Folders) {
        let Some(item) = self.waves.remove(index) else { return };
        let path = &item.wanted.path;
        if let (Ok(row), Some(parent)) = (&result, item.parent())
            && row.kind == EntryKind::Folder
        {
            folders.put(parent, path.name().to_owned(), Ok(row.entry));
        }
        self.results[index] = Some(result.map(|row| convert::entry_to_wire(row, Some(path))));
    }

    async fn run(&self, call: Call) -> Vec<Made> {
        match call {
            Call::Ways(ways) => self.ways(ways).await,
            Call::Item(index) => vec![Made::Item(index, self.alone(index).await)],
            Call::Part(part, items) => self.together(&part, items).await,
        }
    }

    /// Makes folders on the way, or takes those that are there: that is idempotent, so the request id is fresh.
    async fn ways(&self, ways: Vec<Way>) -> Vec<Made> {
        let namespace = self.batch.caller.namespace;
        let mtime_ns = i64::try_from(random::wall_ms()).unwrap_or(0).saturating_mul(1_000_000);
        let step = |way: &Way| DataStep::EntryCreate {
            namespace,
            parent: way.folder,
            name: way.name.clone(),
            kind: EntryKind::Folder,
            mode: PARENT_MODE,
            mtime_ns,
            existing: OnExisting::TakeFolder,
        };
        let steps = ways.iter().map(|way| vec![step(way)]).collect();
        let outcomes = match self.batch.core.meta.each(namespace.slot(), random::request(), steps).await {
            Ok(outcomes) => outcomes.into_iter().map(only_outcome).collect(),
            Err(error) => vec![Err(error); ways.len()],
        };
        let made = |(way, outcome): (Way, _)| {
            let made = self.item(way.item).and_then(|item| made(outcome, || item.next_path()));
            Made::Way(way, made)
        };
        ways.into_iter().zip(outcomes).map(made).collect()
    }

    async fn alone(&self, index: usize) -> Result<EntryRow, Failure> {
        let item = self.item(index)?;
        let path = &item.wanted.path;
        if path.names().is_empty() {
            return self.batch.core.entry_at(self.batch.caller.namespace, path).await;
        }
        made(self.batch.alone(index, self.step(item)?).await, || path.clone())
    }

    async fn together(&self, part: &Part, items: Vec<usize>) -> Vec<Made> {
        let (mut all, mut steps) = (Vec::with_capacity(items.len()), BTreeMap::new());
        for index in items {
            match self.item(index) {
                // There is nothing to be made.
                Ok(item) if item.wanted.path.names().is_empty() => {
                    all.push(Made::Item(index, self.alone(index).await));
                }
                item => match item.and_then(|item| self.step(item)) {
                    Ok(step) => drop(steps.insert(index, step)),
                    Err(failure) => all.push(Made::Item(index, Err(failure))),
                },
            }
        }
        for (index, outcome) in self.batch.together(part, steps).await {
            let result = self.item(index).and_then(|item| made(outcome, || item.wanted.path.clone()));
            all.push(Made::Item(index, result));
        }
        all
    }

    fn item(&self, index: usize) -> Result<&Item, Failure> {
        self.waves.get(index).ok_or_else(|| Failure::internal("create", &"an item is gone"))
    }

    fn step(&self, item: &Item) -> Result<DataStep, Failure> {
        let wanted = &item.wanted;
        let Some(parent) = item.parent() else {
            let folder = wanted.path.parent();
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

/// What came of the step that makes what is at `path`.
fn made(
    outcome: Result<StepOutcome, MetaError>,
    path: impl FnOnce() -> RemotePath,
) -> Result<EntryRow, Failure> {
    match outcome {
        Ok(StepOutcome::Entry(row)) => Ok(row),
        Err(MetaError::Step(StepError::WrongKind { is })) => {
            let message = format!("{}: there is a {is} of that name already", path());
            Err(Failure::precondition("wrong-kind", message))
        }
        outcome => row_of(outcome, &path()),
    }
}
