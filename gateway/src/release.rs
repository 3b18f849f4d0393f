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

use std::collections::BTreeMap;

use engine::ids::{ChunkId, ContentId, GroupId, HolderId, NamespaceId};
use engine::manifest::{ContentList, build_tree, decode_node};
use futures_util::future::try_join_all;
use metaraft::api::MetaError;
use metaraft::model::command::DataStep;
use metaraft::model::outcome::{DeadContent, Release, StepOutcome};
use metaraft::model::query::{Query, Reply};

use crate::chunks::reader::ChunkSource;
use crate::failure::Failure;
use crate::limits::{COMMAND_CHUNKS_MAX, COMMAND_STEPS_MAX, REQUEST_COMMANDS_MAX};
use crate::meta::{Meta, wrong_reply};
use crate::random;
use crate::sessions::Session;

/// Releases that are taken up at once when what is left of earlier ones is drained.
const DRAIN_MAX: u32 = 1000;

fn failed(error: &MetaError) -> Failure {
    Failure::from_meta(error, "clean-up")
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

/// Does releases of a namespace, to the end.
pub(crate) async fn execute(
    meta: &Meta,
    source: &ChunkSource,
    namespace: NamespaceId,
    releases: &[Release],
) -> Result<(), Failure> {
    let mut steps: BTreeMap<GroupId, Vec<DataStep>> = BTreeMap::new();
    for Release { content, generation } in releases {
        let (content, generation) = (*content, *generation);
        let group = meta.group_of(content.slot()).map_err(|error| failed(&error))?;
        steps.entry(group).or_default().push(DataStep::ContentRelease { content, namespace, generation });
    }
    let mut dead = Vec::new();
    for outcome in commit_fused(meta, steps).await.map_err(|error| failed(&error))? {
        match outcome {
            StepOutcome::Released { dead: Some(content) } => dead.push(content),
            StepOutcome::Released { dead: None } => {}
            _ => return Err(failed(&wrong_reply("release"))),
        }
    }
    bury_contents(meta, source, dead).await?;
    let done = |release: &Release| DataStep::ReleaseDone {
        namespace,
        content: release.content,
        generation: release.generation,
    };
    let group = meta.group_of(namespace.slot()).map_err(|error| failed(&error))?;
    let steps = BTreeMap::from([(group, releases.iter().map(done).collect())]);
    commit_fused(meta, steps).await.map_err(|error| failed(&error))?;
    Ok(())
}

/// Removes the pins of dead contents, then takes them off their queues.
async fn bury_contents(meta: &Meta, source: &ChunkSource, dead: Vec<DeadContent>) -> Result<(), Failure> {
    let mut pins = Pins::default();
    let mut forgotten: BTreeMap<GroupId, Vec<DataStep>> = BTreeMap::new();
    for DeadContent { content, holder, list } in dead {
        unpin_list(meta, source, holder, list, &mut pins).await?;
        let group = meta.group_of(content.slot()).map_err(|error| failed(&error))?;
        forgotten.entry(group).or_default().push(DataStep::DeadContentForget { content, holder });
    }
    pins.flush(meta).await?;
    commit_fused(meta, forgotten).await.map_err(|error| failed(&error))?;
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
    ) -> Result<(), Failure> {
        let mut groups: BTreeMap<GroupId, Vec<ChunkId>> = BTreeMap::new();
        for chunk in chunks {
            groups
                .entry(meta.group_of(chunk.slot()).map_err(|error| failed(&error))?)
                .or_default()
                .push(chunk);
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

    async fn flush(&mut self, meta: &Meta) -> Result<(), Failure> {
        self.chunks = 0;
        commit_fused(meta, std::mem::take(&mut self.steps)).await.map_err(|error| failed(&error))?;
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
) -> Result<(), Failure> {
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
                let bytes = source.read_node(id).await?;
                let node = decode_node(&bytes).map_err(|error| Failure::internal("manifest", &error))?;
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
    pins.flush(meta).await
}

/// Bars a holder from becoming the content's; false if it is already.
async fn dismiss(meta: &Meta, content: ContentId, holder: HolderId) -> Result<bool, Failure> {
    let step = DataStep::HolderDismiss { content, holder };
    match meta.step(content.slot(), random::request(), step).await.map_err(|error| failed(&error))? {
        StepOutcome::Dismissed { in_force } => Ok(!in_force),
        _ => Err(failed(&wrong_reply("dismiss"))),
    }
}
