//! Makes folders and symlinks, many at once, in order.
//!
//! Items are made in waves: all those whose folder is known go together, then those below them, and so on. So a deep
//! tree takes as many waves as it is deep, and two items of one name keep their order.

use std::collections::{HashMap, HashSet};

use engine::ids::EntryId;
use futures_util::{StreamExt, stream};
use metaraft::api::MetaError;
use metaraft::model::DEPTH_MAX;
use metaraft::model::command::{DataStep, OnExisting, StepError};
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::{EntryKind, EntryRow, ROOT_ENTRY};
use proto::v1;

use crate::auth::Caller;
use crate::convert;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{BATCH_ITEMS_MAX, CREATE_AT_ONCE_MAX};
use crate::meta::entry_of;
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

/// What is done in one wave.
enum Job {
    /// An item, by its index.
    Item(usize),
    /// A folder on the way to some.
    Parent(RemotePath),
}

struct Creation<'a> {
    core: &'a Core,
    caller: &'a Caller,
    request: RequestKey,
    /// Folders whose ids are known.
    folders: HashMap<RemotePath, EntryId>,
    pending: Vec<(usize, Wanted)>,
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
    let mut pending = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        match parse(entry) {
            Ok(wanted) => {
                pending.push((index, wanted));
                results.push(None);
            }
            Err(failure) => results.push(Some(Err(failure))),
        }
    }
    let folders = HashMap::from([(RemotePath::ROOT, ROOT_ENTRY)]);
    let mut creation = Creation { core, caller, request, folders, pending, results };
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
        let mut paths: Vec<RemotePath> =
            self.pending.iter().map(|(_index, wanted)| wanted.path.parent()).collect();
        paths.sort_unstable();
        paths.dedup();
        let resolved = self.core.meta.resolve(self.caller.namespace, &paths).await;
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

    /// Takes what can be done now out of the pending items.
    fn next_jobs(&mut self) -> Vec<Job> {
        let own: HashSet<RemotePath> = self
            .pending
            .iter()
            .filter(|(_index, wanted)| wanted.kind == EntryKind::Folder)
            .map(|(_index, wanted)| wanted.path.clone())
            .collect();
        let mut taken: HashSet<RemotePath> = HashSet::new();
        let mut jobs = Vec::new();
        for (index, wanted) in &self.pending {
            let parent = wanted.path.parent();
            let known = self.known(&parent);
            if known == parent {
                if taken.insert(wanted.path.clone()) {
                    jobs.push(Job::Item(*index));
                }
                continue;
            }
            let next = RemotePath::from_names(parent.names()[..=known.names().len()].to_vec());
            // A folder that the batch itself makes is waited for.
            if own.contains(&next) {
                continue;
            }
            if !wanted.parents {
                jobs.push(Job::Item(*index));
            } else if taken.insert(next.clone()) {
                jobs.push(Job::Parent(next));
            }
        }
        jobs
    }

    async fn wave(&mut self) {
        let jobs = self.next_jobs();
        let mut made = Vec::with_capacity(jobs.len());
        let this = &*self;
        let work: Vec<_> = jobs.iter().map(|job| this.run(job)).collect();
        let mut working = stream::iter(work).buffered(CREATE_AT_ONCE_MAX);
        while let Some(result) = working.next().await {
            made.push(result);
        }
        drop(working);
        for (job, result) in jobs.into_iter().zip(made) {
            match job {
                Job::Item(index) => self.settle(index, result),
                Job::Parent(path) => match result {
                    Ok(row) => drop(self.folders.insert(path, row.entry)),
                    Err(failure) => self.fail_below(&path, &failure),
                },
            }
        }
    }

    fn settle(&mut self, index: usize, result: Result<EntryRow, Failure>) {
        let Some(at) = self.pending.iter().position(|(pending, _wanted)| *pending == index) else { return };
        let (_index, wanted) = self.pending.remove(at);
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
        self.pending.retain(|(index, wanted)| {
            let below = wanted.path.is_within(path);
            if below {
                results[*index] = Some(Err(failure.clone()));
            }
            !below
        });
    }

    async fn run(&self, job: &Job) -> Result<EntryRow, Failure> {
        match job {
            Job::Parent(path) => {
                let wanted = Wanted {
                    path: path.clone(),
                    kind: EntryKind::Folder,
                    mode: PARENT_MODE,
                    mtime_ns: i64::try_from(random::wall_ms()).unwrap_or(0).saturating_mul(1_000_000),
                    parents: true,
                    existing: OnExisting::TakeFolder,
                };
                // Taking a folder that is there makes it idempotent, so the request id is fresh.
                self.propose(&wanted, random::request().into()).await
            }
            Job::Item(index) => {
                let wanted = self.pending.iter().find(|(pending, _wanted)| pending == index);
                let Some((_index, wanted)) = wanted else {
                    return Err(Failure::internal("create", &"an item is gone"));
                };
                let step = u32::try_from(*index).unwrap_or(u32::MAX);
                self.propose(wanted, self.request.step(step)).await
            }
        }
    }

    async fn propose(&self, wanted: &Wanted, request: RequestKey) -> Result<EntryRow, Failure> {
        let namespace = self.caller.namespace;
        if wanted.path.names().is_empty() {
            return self.core.entry_at(namespace, &wanted.path).await;
        }
        let subject = wanted.path.to_string();
        let folder = wanted.path.parent();
        let Some(parent) = self.folders.get(&folder).copied() else {
            return Err(Failure::not_found(format!("{subject}: there is no folder {folder}")));
        };
        let step = DataStep::EntryCreate {
            namespace,
            parent,
            name: wanted.path.name().to_owned(),
            kind: wanted.kind.clone(),
            mode: wanted.mode,
            mtime_ns: wanted.mtime_ns,
            existing: wanted.existing,
        };
        let made = self.core.meta.commit(namespace.slot(), request, vec![step]).await.and_then(entry_of);
        made.map_err(|error| match error {
            MetaError::Step(StepError::WrongKind { is }) => Failure::precondition(
                "wrong-kind",
                format!("{subject}: there is a {is} of that name already"),
            ),
            error => Failure::from_meta(&error, &subject),
        })
    }
}
