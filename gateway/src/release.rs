//! Gives references back: after a purge, an abort, or a session whose content already had another holder.
//!
//! What is there after a crash between the steps, and what a repetition does (each step is idempotent):
//! 1. The namespace has queued the release (in the command that dropped the last use). Nothing is lost; a later purge
//!    takes it up again.
//! 2. `ContentRelease` has taken the reference away; if it was the last, the content is dead and queued. The release
//!    is still queued too, and repeating it answers with the dead content again.
//! 3. `ChunksUnpin` has removed some pins. Repeated from the start.
//! 4. `DeadContentForget`: the pins are gone. 5. `ReleaseDone`: the release is off the queue.
//!
//! A pin left behind by a crash is garbage; a pin is never removed while its holder may still be a content's.
//!
//! One release that cannot be done does not stop the others: it is found by halves, set aside in its namespace with the
//! reason, and tried again, later each time, by whichever gateway looks first ([`retry_set_aside`]). What ends the work
//! is that the cluster's metadata does not answer; then everything is still queued.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::ids::{ChunkId, ContentId, GroupId, HolderId, NamespaceId};
use engine::manifest::{ContentList, build_tree, decode_node};
use futures_util::future::try_join_all;
use metaraft::api::MetaError;
use metaraft::model::command::DataStep;
use metaraft::model::outcome::{DeadContent, Release, StepOutcome};
use metaraft::model::query::{Query, Reply};
use metaraft::model::row::AsideRelease;
use tokio_util::sync::CancellationToken;

use crate::chunks::reader::ChunkSource;
use crate::failure::Failure;
use crate::limits::{COMMAND_CHUNKS_MAX, COMMAND_STEPS_MAX, REQUEST_COMMANDS_MAX};
use crate::meta::{Meta, wrong_reply};
use crate::random;
use crate::sessions::Session;

/// Releases that are taken up at once when what is left of earlier ones is drained.
const DRAIN_MAX: u32 = 1000;

/// How often it is looked for releases that are to be tried again.
const RETRY_LOOK_INTERVAL: Duration = Duration::from_secs(20);

/// Releases of a group that are tried again at once.
const RETRIES_MAX: u32 = 256;

fn failed(error: &MetaError) -> Failure {
    Failure::from_meta(error, "clean-up")
}

/// Why releases were not done.
#[derive(Debug)]
enum Stuck {
    /// The cluster does not answer, or takes nothing: no release can be done now.
    Cluster(Failure),
    /// Of these releases at least one cannot be done.
    Release(Failure),
}

impl From<MetaError> for Stuck {
    fn from(error: MetaError) -> Self {
        let of_all = matches!(
            error,
            MetaError::Unavailable { .. }
                | MetaError::NoCluster
                | MetaError::NoSpace
                | MetaError::RequestOutOfTime { .. }
        );
        if of_all { Self::Cluster(failed(&error)) } else { Self::Release(failed(&error)) }
    }
}

impl From<Stuck> for Failure {
    fn from(stuck: Stuck) -> Self {
        match stuck {
            Stuck::Cluster(failure) | Stuck::Release(failure) => failure,
        }
    }
}

/// Commits steps of several groups, fused; gives the outcomes in the order of the steps within each group.
async fn commit_fused(
    meta: &Meta,
    steps: BTreeMap<GroupId, Vec<DataStep>>,
) -> Result<Vec<StepOutcome>, MetaError> {
    let commands = steps.into_iter().flat_map(|(group, steps)| {
        let commands: Vec<Vec<DataStep>> =
            steps.chunks(COMMAND_STEPS_MAX).map(<[DataStep]>::to_vec).collect();
        commands.into_iter().map(move |steps| (group, steps))
    });
    let commands: Vec<(GroupId, Vec<DataStep>)> = commands.collect();
    let mut outcomes = Vec::new();
    for some in commands.chunks(REQUEST_COMMANDS_MAX) {
        let committed =
            some.iter().map(|(group, steps)| meta.commit_in(*group, random::request(), steps.clone()));
        outcomes.extend(try_join_all(committed).await?.into_iter().flatten());
    }
    Ok(outcomes)
}

/// Does releases of a namespace, to the end; sets aside those that cannot be done.
///
/// # Errors
/// If the cluster does not answer: what was not done is still queued.
pub(crate) async fn execute(
    meta: &Meta,
    source: &ChunkSource,
    namespace: NamespaceId,
    releases: &[Release],
) -> Result<(), Failure> {
    let attempt = |part: Vec<Release>| async move { together(meta, source, namespace, &part).await };
    let set_aside = |release: Release, why: Failure| set_aside(meta, namespace, release, why);
    each_that_can(releases, attempt, set_aside).await
}

/// Attempts all together; where that fails, halves, down to single ones, which are set aside.
async fn each_that_can<A, S>(
    releases: &[Release],
    attempt: impl Fn(Vec<Release>) -> A,
    set_aside: impl Fn(Release, Failure) -> S,
) -> Result<(), Failure>
where
    A: Future<Output = Result<(), Stuck>>,
    S: Future<Output = Result<(), Failure>>,
{
    // At most one for each time that they can be halved.
    let mut parts = vec![releases];
    while let Some(part) = parts.pop() {
        match (attempt(part.to_vec()).await, part) {
            (Ok(()), _) | (_, []) => {}
            (Err(Stuck::Cluster(failure)), _) => return Err(failure),
            (Err(Stuck::Release(failure)), [one]) => set_aside(*one, failure).await?,
            (Err(Stuck::Release(_)), part) => {
                let (first, rest) = part.split_at(part.len() / 2);
                parts.extend([rest, first]);
            }
        }
    }
    Ok(())
}

async fn set_aside(
    meta: &Meta,
    namespace: NamespaceId,
    release: Release,
    why: Failure,
) -> Result<(), Failure> {
    let Release { content, generation } = release;
    tracing::warn!(content = %content, generation, error = %why, "a release cannot be done now and is set aside");
    let step = DataStep::ReleaseSetAside { namespace, content, generation, why: why.message };
    meta.step(namespace.slot(), random::request(), step).await.map_err(|error| failed(&error))?;
    Ok(())
}

/// Does releases of a namespace, all or (as far as anybody can tell) none.
async fn together(
    meta: &Meta,
    source: &ChunkSource,
    namespace: NamespaceId,
    releases: &[Release],
) -> Result<(), Stuck> {
    let mut steps: BTreeMap<GroupId, Vec<DataStep>> = BTreeMap::new();
    for Release { content, generation } in releases {
        let (content, generation) = (*content, *generation);
        let group = meta.group_of(content.slot())?;
        steps.entry(group).or_default().push(DataStep::ContentRelease { content, namespace, generation });
    }
    let mut dead = Vec::new();
    for outcome in commit_fused(meta, steps).await? {
        match outcome {
            StepOutcome::Released { dead: Some(content) } => dead.push(content),
            StepOutcome::Released { dead: None } => {}
            _ => return Err(wrong_reply("release").into()),
        }
    }
    bury_contents(meta, source, dead).await?;
    let done = |release: &Release| DataStep::ReleaseDone {
        namespace,
        content: release.content,
        generation: release.generation,
    };
    let group = meta.group_of(namespace.slot())?;
    let steps = BTreeMap::from([(group, releases.iter().map(done).collect())]);
    commit_fused(meta, steps).await?;
    Ok(())
}

/// Removes the pins of dead contents, then takes them off their queues.
async fn bury_contents(meta: &Meta, source: &ChunkSource, dead: Vec<DeadContent>) -> Result<(), Stuck> {
    let mut pins = Pins::default();
    let mut forgotten: BTreeMap<GroupId, Vec<DataStep>> = BTreeMap::new();
    for DeadContent { content, holder, list } in dead {
        unpin_list(meta, source, holder, list, &mut pins).await?;
        let group = meta.group_of(content.slot())?;
        forgotten.entry(group).or_default().push(DataStep::DeadContentForget { content, holder });
    }
    pins.flush(meta).await?;
    commit_fused(meta, forgotten).await?;
    Ok(())
}

/// Pins to be removed, gathered until they fill commands.
#[derive(Default)]
struct Pins {
    steps: BTreeMap<GroupId, Vec<DataStep>>,
    chunks: usize,
}

impl Pins {
    async fn add(
        &mut self,
        meta: &Meta,
        holder: HolderId,
        chunks: impl Iterator<Item = ChunkId>,
    ) -> Result<(), Stuck> {
        let mut groups: BTreeMap<GroupId, Vec<ChunkId>> = BTreeMap::new();
        for chunk in chunks {
            groups.entry(meta.group_of(chunk.slot())?).or_default().push(chunk);
        }
        for (group, chunks) in groups {
            self.chunks += chunks.len();
            for chunks in chunks.chunks(COMMAND_CHUNKS_MAX) {
                let step = DataStep::ChunksUnpin { holder, chunks: chunks.to_vec() };
                self.steps.entry(group).or_default().push(step);
            }
        }
        if self.chunks >= COMMAND_CHUNKS_MAX { self.flush(meta).await } else { Ok(()) }
    }

    async fn flush(&mut self, meta: &Meta) -> Result<(), Stuck> {
        self.chunks = 0;
        commit_fused(meta, std::mem::take(&mut self.steps)).await?;
        Ok(())
    }
}

/// Removes all pins of a content's holder: those of data chunks before those of the nodes that name them, so that
/// the list can be walked again after a crash.
async fn unpin_list(
    meta: &Meta,
    source: &ChunkSource,
    holder: HolderId,
    list: ContentList,
    pins: &mut Pins,
) -> Result<(), Stuck> {
    // A stack of nodes: each is taken twice, first to unpin what is below it, then to be unpinned itself.
    enum Work {
        Below { level: u8, node: ChunkId },
        Node(ChunkId),
    }
    let mut work = Vec::new();
    let ContentList { depth, entries } = list;
    if depth == 0 {
        return pins.add(meta, holder, entries.iter().map(|entry| entry.id)).await;
    }
    work.extend(entries.iter().rev().map(|entry| Work::Below { level: depth - 1, node: entry.id }));
    while let Some(next) = work.pop() {
        match next {
            Work::Node(node) => pins.add(meta, holder, std::iter::once(node)).await?,
            Work::Below { level, node: id } => {
                let bytes = source.read_node(id).await.map_err(Stuck::Release)?;
                let node = decode_node(&bytes)
                    .map_err(|error| Stuck::Release(Failure::internal("manifest", &error)))?;
                work.push(Work::Node(id));
                if level == 0 {
                    pins.add(meta, holder, node.entries.iter().map(|entry| entry.id)).await?;
                } else {
                    let below = node.entries.iter().rev();
                    work.extend(below.map(|entry| Work::Below { level: level - 1, node: entry.id }));
                }
            }
        }
    }
    Ok(())
}

/// Takes up releases of a namespace that an earlier purge did not finish.
pub(crate) async fn drain(meta: &Meta, source: &ChunkSource, namespace: NamespaceId) -> Result<(), Failure> {
    let mut before: Vec<Release> = Vec::new();
    loop {
        let query = Query::Releases { namespace, count_max: DRAIN_MAX };
        let releases = match meta.query(namespace.slot(), query).await.map_err(|error| failed(&error))? {
            Reply::Releases(releases) => releases,
            _ => return Err(failed(&wrong_reply("releases"))),
        };
        if releases.is_empty() || releases == before {
            return Ok(());
        }
        execute(meta, source, namespace, &releases).await?;
        before = releases;
    }
}

/// Tries again, until `stopping`, what was set aside, whichever gateway did so.
pub(crate) async fn retry_set_aside(meta: Meta, source: ChunkSource, stopping: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RETRY_LOOK_INTERVAL) => {}
            () = stopping.cancelled() => return,
        }
        for group in meta.map().data_groups() {
            let tried = tokio::select! {
                tried = retry_due(&meta, &source, group) => tried,
                () = stopping.cancelled() => return,
            };
            if let Err(failure) = tried {
                tracing::debug!(group = group.0, error = %failure, "releases are tried again later");
            }
        }
    }
}

/// Tries again what is due in a group.
async fn retry_due(meta: &Meta, source: &ChunkSource, group: GroupId) -> Result<(), Failure> {
    let query = Query::ReleasesDue { now_ms: random::log_ms(), count_max: RETRIES_MAX };
    let due = match meta.api().query(group, query).await.map_err(|error| failed(&error))? {
        Reply::ReleasesAside(due) => due,
        _ => return Err(failed(&wrong_reply("releases"))),
    };
    let mut by_namespace: BTreeMap<NamespaceId, Vec<Release>> = BTreeMap::new();
    for AsideRelease { namespace, release, .. } in due {
        by_namespace.entry(namespace).or_default().push(release);
    }
    for (namespace, releases) in by_namespace {
        execute(meta, source, namespace, &releases).await?;
    }
    Ok(())
}

/// Removes a session's own pins, of its chunks and of the manifest nodes that a commit may have made, unless its
/// holder is its content's. `dismissed`: the holder in force is known to be another's, so none can become it.
pub(crate) async fn unpin_session(meta: &Meta, session: &Session, dismissed: bool) -> Result<(), Failure> {
    if !dismissed && !dismiss(meta, session.content, session.holder).await? {
        return Ok(());
    }
    let mut pins = Pins::default();
    if let Ok((_list, nodes)) = build_tree(session.entries.clone()) {
        pins.add(meta, session.holder, nodes.iter().map(|(node, _bytes)| *node)).await?;
    }
    pins.add(meta, session.holder, session.entries.iter().map(|entry| entry.id)).await?;
    Ok(pins.flush(meta).await?)
}

/// Removes the pins that a holder has of chunks, unless it is their content's.
pub(crate) async fn unpin_holder(
    meta: &Meta,
    content: ContentId,
    holder: HolderId,
    chunks: impl Iterator<Item = ChunkId>,
) -> Result<(), Failure> {
    if !dismiss(meta, content, holder).await? {
        return Ok(());
    }
    let mut pins = Pins::default();
    pins.add(meta, holder, chunks).await?;
    Ok(pins.flush(meta).await?)
}

/// Bars a holder from becoming the content's; false if it is already.
async fn dismiss(meta: &Meta, content: ContentId, holder: HolderId) -> Result<bool, Failure> {
    let step = DataStep::HolderDismiss { content, holder };
    match meta.step(content.slot(), random::request(), step).await.map_err(|error| failed(&error))? {
        StepOutcome::Dismissed { in_force } => Ok(!in_force),
        _ => Err(failed(&wrong_reply("dismiss"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn releases(count: u64) -> Vec<Release> {
        (0..count).map(|generation| Release { content: ContentId::from_bytes([1; 32]), generation }).collect()
    }

    /// Does all but those of `bad` generations; gives what was done and what was set aside, and how many attempts.
    async fn run(count: u64, bad: &[u64]) -> (Vec<u64>, Vec<u64>, usize) {
        let (done, aside, attempts) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()), Mutex::new(0));
        let attempt = |part: Vec<Release>| async {
            *attempts.lock().unwrap() += 1;
            let numbers: Vec<u64> = part.into_iter().map(|release| release.generation).collect();
            if numbers.iter().any(|number| bad.contains(number)) {
                return Err(Stuck::Release(Failure::internal("test", &"undecodable")));
            }
            done.lock().unwrap().extend(numbers);
            Ok(())
        };
        let set_aside = |release: Release, why: Failure| {
            assert_eq!(why.code, tonic::Code::Internal);
            aside.lock().unwrap().push(release.generation);
            async { Ok(()) }
        };
        each_that_can(&releases(count), attempt, set_aside).await.unwrap();
        let (mut done, aside) = (done.into_inner().unwrap(), aside.into_inner().unwrap());
        done.sort_unstable();
        (done, aside, attempts.into_inner().unwrap())
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_set_aside_and_the_rest_is_done() {
        for bad in [vec![], vec![0], vec![999], vec![3, 500, 501], (0..1000).collect()] {
            let (done, aside, attempts) = run(1000, &bad).await;
            let good: Vec<u64> = (0..1000).filter(|number| !bad.contains(number)).collect();
            assert_eq!((done, aside), (good, bad.clone()));
            assert!(attempts <= 1 + 2 * 10 * bad.len(), "{attempts} attempts for {} bad ones", bad.len());
        }
        assert_eq!(run(1, &[0]).await, (vec![], vec![0], 1));
    }

    #[tokio::test]
    async fn a_cluster_that_does_not_answer_ends_it_and_nothing_is_set_aside() {
        let attempts = Mutex::new(0);
        let attempt = |_part: Vec<Release>| async {
            *attempts.lock().unwrap() += 1;
            Err(Stuck::from(MetaError::NoCluster))
        };
        let set_aside = |release: Release, _why: Failure| async move { panic!("{release:?} is set aside") };
        each_that_can(&releases(1000), attempt, set_aside).await.unwrap_err();
        assert_eq!(attempts.into_inner().unwrap(), 1);
        let refused = metaraft::model::command::StepError::NotFound { what: "namespace".to_owned() };
        assert!(matches!(Stuck::from(MetaError::Step(refused)), Stuck::Release(_)));
    }
}
