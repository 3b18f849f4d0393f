//! The metadata cluster as the gateway speaks to it: typed questions and commands, spread over groups and put
//! together again.
//!
//! Answers come in the order of what was asked, whichever groups gave them. A reply of the wrong shape is an error,
//! never a guess.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use engine::cluster::ClusterMap;
use engine::ids::{
    ChunkId, ContentId, EntryId, GroupId, HolderId, NamespaceId, ROOT_GROUP, SlotId, UploadId, VersionId,
};
use engine::location::ChunkLocation;
use engine::manifest::ManifestEntry;
use futures_util::future::try_join_all;
use metaraft::api::{MetaApi, MetaError};
use metaraft::model::command::{Command, DataStep, RootStep, StepError, Steps};
use metaraft::model::outcome::StepOutcome;
use metaraft::model::query::{Query, Reply, Resolved};
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::{ContentRow, EntryRow, SecretBytes, TrashRow, UploadRow, VersionRow};
use metaraft::model::{PAGE_BYTES_MAX, QUERY_ITEMS_MAX, UPLOAD_PART_ENTRIES};

use crate::limits::{COMMAND_CHUNKS_MAX, COMMAND_STEPS_MAX};
use crate::path::RemotePath;
use crate::random;
use crate::sync::history::Guard;

/// A cheap handle.
#[derive(Clone)]
pub(crate) struct Meta {
    api: Arc<MetaApi>,
}

/// The error for an answer of the wrong shape.
pub(crate) fn wrong_reply(what: &'static str) -> MetaError {
    MetaError::Protocol { what: format!("{what}: unexpected answer") }
}

/// Asks about all of `items`, as often as it takes: a question has as many as fit by their `bytes`, at least one, and
/// its reply answers for the first of them, as many as fit again.
pub(crate) async fn ask_all<T: Clone, R, F>(
    what: &'static str,
    items: &[T],
    bytes: impl Fn(&T) -> usize,
    ask: impl Fn(Vec<T>) -> F,
) -> Result<Vec<R>, MetaError>
where
    F: Future<Output = Result<Option<Vec<R>>, MetaError>>,
{
    let mut answers = Vec::with_capacity(items.len());
    while let Some(rest) = items.get(answers.len()..).filter(|rest| !rest.is_empty()) {
        let mut asked_bytes = 0;
        let fits = |item: &&T| {
            let fits = asked_bytes < PAGE_BYTES_MAX;
            asked_bytes += bytes(item);
            fits
        };
        let asked: Vec<T> = rest.iter().take_while(fits).take(QUERY_ITEMS_MAX as usize).cloned().collect();
        let count = asked.len();
        match ask(asked).await? {
            Some(first) if (1..=count).contains(&first.len()) => answers.extend(first),
            _ => return Err(wrong_reply(what)),
        }
    }
    Ok(answers)
}

/// The entry that a step answered with.
pub(crate) fn entry_of(outcomes: Vec<StepOutcome>) -> Result<EntryRow, MetaError> {
    match outcomes.into_iter().next_back() {
        Some(StepOutcome::Entry(row)) => Ok(row),
        _ => Err(wrong_reply("entry")),
    }
}

impl Meta {
    pub(crate) fn new(api: Arc<MetaApi>) -> Self {
        Self { api }
    }

    pub(crate) fn api(&self) -> &MetaApi {
        &self.api
    }

    /// The cluster map, a moment old at most.
    pub(crate) fn map(&self) -> Arc<ClusterMap> {
        self.api.map()
    }

    /// How long an upload session lives, if nobody goes on with it.
    pub(crate) fn session_life_ms(&self) -> u64 {
        u64::try_from(self.api.settings().session_life().as_millis()).unwrap_or(u64::MAX)
    }

    /// The group that owns `slot`, by the map.
    pub(crate) fn group_of(&self, slot: SlotId) -> Result<GroupId, MetaError> {
        self.api.group_of(slot)
    }

    /// Whether two slots are one group's, so that steps for both can be one command.
    pub(crate) fn together(&self, one: SlotId, other: SlotId) -> Result<bool, MetaError> {
        Ok(self.group_of(one)? == self.group_of(other)?)
    }

    /// Commits steps of one group, all or none.
    pub(crate) async fn commit(
        &self,
        slot: SlotId,
        request: impl Into<RequestKey>,
        steps: Vec<DataStep>,
    ) -> Result<Vec<StepOutcome>, MetaError> {
        let group = self.group_of(slot)?;
        self.commit_in(group, request, steps).await
    }

    /// The same, by group. A remembered request gives the outcomes of the steps that it had the first time.
    pub(crate) async fn commit_in(
        &self,
        group: GroupId,
        request: impl Into<RequestKey>,
        steps: Vec<DataStep>,
    ) -> Result<Vec<StepOutcome>, MetaError> {
        self.api.propose(group, Command::new(request, Steps::Data(steps))).await
    }

    /// Commits one step.
    pub(crate) async fn step(
        &self,
        slot: SlotId,
        request: impl Into<RequestKey>,
        step: DataStep,
    ) -> Result<StepOutcome, MetaError> {
        let outcomes = self.commit(slot, request, vec![step]).await?;
        outcomes.into_iter().next().ok_or_else(|| wrong_reply("step"))
    }

    /// Commits items of which each succeeds or fails by itself; gives what the steps of each answer.
    pub(crate) async fn each(
        &self,
        slot: SlotId,
        request: impl Into<RequestKey>,
        items: Vec<Vec<DataStep>>,
    ) -> Result<Vec<Result<Vec<StepOutcome>, StepError>>, MetaError> {
        let group = self.group_of(slot)?;
        self.each_in(group, request, items).await
    }

    /// The same, by group.
    pub(crate) async fn each_in(
        &self,
        group: GroupId,
        request: impl Into<RequestKey>,
        items: Vec<Vec<DataStep>>,
    ) -> Result<Vec<Result<Vec<StepOutcome>, StepError>>, MetaError> {
        self.each_after(group, request, None, items).await
    }

    /// As [`Self::each`], and none of it if `guard` refuses.
    pub(crate) async fn each_guarded(
        &self,
        slot: SlotId,
        request: impl Into<RequestKey>,
        guard: Option<&Guard>,
        items: Vec<Vec<DataStep>>,
    ) -> Result<Vec<Result<Vec<StepOutcome>, StepError>>, MetaError> {
        let group = self.group_of(slot)?;
        self.each_after(group, request, guard, items).await
    }

    async fn each_after(
        &self,
        group: GroupId,
        request: impl Into<RequestKey>,
        guard: Option<&Guard>,
        items: Vec<Vec<DataStep>>,
    ) -> Result<Vec<Result<Vec<StepOutcome>, StepError>>, MetaError> {
        let count = items.len();
        let steps = [DataStep::Each { items }].into_iter().chain(guard.map(Guard::step)).collect();
        let mut outcomes = self.commit_in(group, request, steps).await?;
        guard.inspect(|guard| guard.take(&mut outcomes));
        match outcomes.into_iter().next() {
            Some(StepOutcome::Each(results)) if results.len() == count => Ok(results),
            _ => {
                Err(StepError::Invalid { why: "the request id was used for another request".to_owned() }
                    .into())
            }
        }
    }

    /// A secret that all gateways share: made by the first one that asks.
    pub(crate) async fn secret(&self, name: &str) -> Result<SecretBytes, MetaError> {
        let query = Query::Secret { name: name.to_owned() };
        match self.api.query(ROOT_GROUP, query).await? {
            Reply::Secret(Some(secret)) => return Ok(secret),
            Reply::Secret(None) => {}
            _ => return Err(wrong_reply("secret")),
        }
        let step = RootStep::SecretMake { name: name.to_owned(), secret: SecretBytes(random::bytes()) };
        let command = Command::new(random::request(), Steps::Root(vec![step]));
        match self.api.propose(ROOT_GROUP, command).await?.into_iter().next() {
            Some(StepOutcome::Secret(secret)) => Ok(secret),
            _ => Err(wrong_reply("secret")),
        }
    }

    /// Entries by id, in order; `None` for what is not in the tree.
    pub(crate) async fn entries_by_id(
        &self,
        namespace: NamespaceId,
        entries: Vec<EntryId>,
    ) -> Result<Vec<Option<EntryRow>>, MetaError> {
        ask_all(
            "entries",
            &entries,
            |_entry| size_of::<EntryId>(),
            |entries| async move {
                match self.query(namespace.slot(), Query::EntriesById { namespace, entries }).await? {
                    Reply::EntriesById(rows) => Ok(Some(rows)),
                    _ => Ok(None),
                }
            },
        )
        .await
    }

    /// The numbers that journals have reached, in order.
    pub(crate) async fn sequences(&self, namespaces: &[NamespaceId]) -> Result<Vec<Option<u64>>, MetaError> {
        self.spread(namespaces, NamespaceId::slot, |group, namespaces| async move {
            match self.api.query(group, Query::Sequences { namespaces }).await? {
                Reply::Sequences(sequences) => Ok(sequences),
                _ => Err(wrong_reply("sequences")),
            }
        })
        .await
    }

    pub(crate) async fn query(&self, slot: SlotId, query: Query) -> Result<Reply, MetaError> {
        let group = self.group_of(slot)?;
        self.api.query(group, query).await
    }

    /// Asks each group about its items, and gives one answer per item, in order.
    async fn spread<T, R, F>(
        &self,
        items: &[T],
        slot_of: impl Fn(&T) -> SlotId,
        ask: impl Fn(GroupId, Vec<T>) -> F,
    ) -> Result<Vec<R>, MetaError>
    where
        T: Clone,
        F: Future<Output = Result<Vec<R>, MetaError>>,
    {
        let mut groups: BTreeMap<GroupId, Vec<usize>> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            groups.entry(self.group_of(slot_of(item))?).or_default().push(index);
        }
        let parts: Vec<(GroupId, &[usize])> = groups
            .iter()
            .flat_map(|(group, indexes)| indexes.chunks(COMMAND_CHUNKS_MAX).map(|part| (*group, part)))
            .collect();
        let replies = try_join_all(parts.iter().map(|(group, indexes)| {
            ask(*group, indexes.iter().filter_map(|index| items.get(*index).cloned()).collect())
        }))
        .await?;
        let mut answers: Vec<Option<R>> = items.iter().map(|_item| None).collect();
        for ((_group, indexes), reply) in parts.iter().zip(replies) {
            if reply.len() != indexes.len() {
                return Err(wrong_reply("list"));
            }
            for (index, answer) in indexes.iter().zip(reply) {
                answers[*index] = Some(answer);
            }
        }
        answers.into_iter().collect::<Option<Vec<R>>>().ok_or_else(|| wrong_reply("list"))
    }

    /// Where paths lead, in order.
    pub(crate) async fn resolve(
        &self,
        namespace: NamespaceId,
        paths: &[RemotePath],
    ) -> Result<Vec<Resolved>, MetaError> {
        let bytes = |path: &RemotePath| path.names().iter().map(|name| name.len() + 1).sum();
        ask_all("resolve", paths, bytes, |paths| async move {
            let paths = paths.iter().map(|path| path.names().to_vec()).collect();
            match self.query(namespace.slot(), Query::Resolve { namespace, paths }).await? {
                Reply::Resolved(resolved) => Ok(Some(resolved)),
                _ => Ok(None),
            }
        })
        .await
    }

    /// A page of a folder, and whether there is more.
    pub(crate) async fn children(
        &self,
        namespace: NamespaceId,
        parent: EntryId,
        after: Option<String>,
        count_max: u32,
    ) -> Result<(Vec<EntryRow>, bool), MetaError> {
        let query = Query::Children { namespace, parent, after, count_max };
        match self.query(namespace.slot(), query).await? {
            Reply::Entries { entries, more } => Ok((entries, more)),
            _ => Err(wrong_reply("children")),
        }
    }

    /// One version of a file.
    pub(crate) async fn version(
        &self,
        namespace: NamespaceId,
        entry: EntryId,
        version: VersionId,
    ) -> Result<Option<VersionRow>, MetaError> {
        match self.query(namespace.slot(), Query::Version { namespace, entry, version }).await? {
            Reply::Version(row) => Ok(row),
            _ => Err(wrong_reply("version")),
        }
    }

    /// A page of the trash, and whether there is more.
    pub(crate) async fn trash(
        &self,
        namespace: NamespaceId,
        after: u64,
        count_max: u32,
    ) -> Result<(Vec<TrashRow>, bool), MetaError> {
        match self.query(namespace.slot(), Query::Trash { namespace, after, count_max }).await? {
            Reply::Trash { items, more } => Ok((items, more)),
            _ => Err(wrong_reply("trash")),
        }
    }

    /// The paths of the first of `entries`, as many as one reply has room for, at least one; `None` where an ancestor is
    /// gone.
    pub(crate) async fn first_paths(
        &self,
        namespace: NamespaceId,
        entries: Vec<EntryId>,
    ) -> Result<Vec<Option<RemotePath>>, MetaError> {
        let count = entries.len();
        match self.query(namespace.slot(), Query::Paths { namespace, entries }).await? {
            Reply::Paths(paths) if count == 0 || (1..=count).contains(&paths.len()) => {
                Ok(paths.into_iter().map(|names| names.map(RemotePath::from_names)).collect())
            }
            _ => Err(wrong_reply("paths")),
        }
    }

    /// The path of an entry; `None` where an ancestor is gone.
    pub(crate) async fn path(
        &self,
        namespace: NamespaceId,
        entry: EntryId,
    ) -> Result<Option<RemotePath>, MetaError> {
        Ok(self.first_paths(namespace, vec![entry]).await?.into_iter().next().flatten())
    }

    /// Sessions of this namespace, in order.
    pub(crate) async fn uploads(
        &self,
        namespace: NamespaceId,
        uploads: Vec<UploadId>,
    ) -> Result<Vec<Option<UploadRow>>, MetaError> {
        let count = uploads.len();
        match self.query(namespace.slot(), Query::Uploads { namespace, uploads }).await? {
            Reply::Uploads(rows) if rows.len() == count => Ok(rows),
            _ => Err(wrong_reply("uploads")),
        }
    }

    /// Sessions of this namespace that have not been committed nor forgotten, those that end first first.
    pub(crate) async fn uploads_open(
        &self,
        namespace: NamespaceId,
        count_max: u32,
    ) -> Result<Vec<UploadRow>, MetaError> {
        match self.query(namespace.slot(), Query::UploadsOpen { namespace, count_max }).await? {
            Reply::UploadsOpen(rows) => Ok(rows),
            _ => Err(wrong_reply("uploads")),
        }
    }

    /// The chunk list of a session.
    pub(crate) async fn upload_list(
        &self,
        namespace: NamespaceId,
        row: &UploadRow,
    ) -> Result<Vec<ManifestEntry>, MetaError> {
        let mut entries = Vec::new();
        for part in 0..row.chunk_count.div_ceil(UPLOAD_PART_ENTRIES as u64) {
            let query = Query::UploadPart { namespace, upload: row.upload, part };
            match self.query(namespace.slot(), query).await? {
                Reply::UploadPart(mut part) => entries.append(&mut part),
                _ => return Err(wrong_reply("upload part")),
            }
        }
        if entries.len() as u64 == row.chunk_count { Ok(entries) } else { Err(wrong_reply("upload list")) }
    }

    /// Which of these contents a kept version of the namespace has.
    pub(crate) async fn namespace_holds(
        &self,
        namespace: NamespaceId,
        contents: Vec<ContentId>,
    ) -> Result<Vec<bool>, MetaError> {
        let count = contents.len();
        match self.query(namespace.slot(), Query::NamespaceHolds { namespace, contents }).await? {
            Reply::Flags(flags) if flags.len() == count => Ok(flags),
            _ => Err(wrong_reply("namespace holds")),
        }
    }

    /// Contents by id; absent ones are left out.
    pub(crate) async fn contents(
        &self,
        contents: &[ContentId],
    ) -> Result<HashMap<ContentId, ContentRow>, MetaError> {
        let rows = self
            .spread(contents, ContentId::slot, |group, contents| async move {
                ask_all(
                    "contents",
                    &contents,
                    |_content| ContentId::LENGTH,
                    |contents| async move {
                        match self.api.query(group, Query::Contents { contents }).await? {
                            Reply::Contents(rows) => Ok(Some(rows)),
                            _ => Ok(None),
                        }
                    },
                )
                .await
            })
            .await?;
        Ok(contents.iter().zip(rows).filter_map(|(content, row)| Some((*content, row?))).collect())
    }

    /// Where chunks lie, in order.
    pub(crate) async fn locate(&self, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkLocation>>, MetaError> {
        self.spread(chunks, ChunkId::slot, |group, chunks| async move {
            match self.api.query(group, Query::ChunksLocate { chunks }).await? {
                Reply::Locations(locations) => Ok(locations),
                _ => Err(wrong_reply("locations")),
            }
        })
        .await
    }

    /// Whether `holder` refers to chunks, in order.
    pub(crate) async fn pinned(&self, holder: HolderId, chunks: &[ChunkId]) -> Result<Vec<bool>, MetaError> {
        self.spread(chunks, ChunkId::slot, |group, chunks| async move {
            match self.api.query(group, Query::ChunksPinned { holder, chunks }).await? {
                Reply::Flags(flags) => Ok(flags),
                _ => Err(wrong_reply("pinned")),
            }
        })
        .await
    }

    /// Pins registered chunks, each for its holder; says which were there and are now pinned, in order.
    pub(crate) async fn pin(&self, pins: &[(HolderId, ChunkId)]) -> Result<Vec<bool>, MetaError> {
        self.spread(pins, |(_holder, chunk)| chunk.slot(), |group, pins| self.pin_in(group, pins)).await
    }

    async fn pin_in(&self, group: GroupId, pins: Vec<(HolderId, ChunkId)>) -> Result<Vec<bool>, MetaError> {
        let mut pinned = Vec::with_capacity(pins.len());
        // Runs of one holder become one step; the order of the answers stays.
        let runs: Vec<&[(HolderId, ChunkId)]> = pins.chunk_by(|one, next| one.0 == next.0).collect();
        for runs in runs.chunks(COMMAND_STEPS_MAX) {
            let steps = runs
                .iter()
                .map(|run| DataStep::ChunksPin {
                    holder: run[0].0,
                    chunks: run.iter().map(|(_holder, chunk)| *chunk).collect(),
                })
                .collect();
            for outcome in self.commit_in(group, random::request(), steps).await? {
                match outcome {
                    StepOutcome::Pinned(flags) => pinned.extend(flags),
                    _ => return Err(wrong_reply("pin")),
                }
            }
        }
        Ok(pinned)
    }
}
