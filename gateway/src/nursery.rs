//! Empties the nurseries: small files that were put by one command each are packed into stripes together.
//!
//! Each gateway looks at each group once a second; whoever has the group's lease moves what is old enough, or all of it if
//! there is much. The order of a move, and what is there after a crash behind each step (`docs/metadata.md`):
//! 1. `NurseryTake`: the row is moving, by a holder. Whoever comes next goes on with that one.
//! 2. Chunks stored and pinned for the holder, as an upload's are. 3. `ContentRetain`. Both are done again from the start.
//! 4. `NurserySettle`: the content counts as retained, and its bytes are gone from the nursery.
//! 5. What went meanwhile, or has another holder by now, is leaving: `HolderDismiss`, `ChunksUnpin`, `NurseryForget`.
//!
//! All commands of one move are named after one request made at its beginning, so that none of them is taken once the marks
//! that refuse late ones may have gone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::ids::{ChunkId, GroupId, HolderId};
use engine::location::ChunkKind;
use engine::manifest::ContentList;
use futures_util::future::join_all;
use metaraft::api::MetaError;
use metaraft::model::command::{DataStep, StepError};
use metaraft::model::nursery::{NurseryFile, NurseryState, NurserySums};
use metaraft::model::outcome::StepOutcome;
use metaraft::model::query::{Query, Reply};
use metaraft::model::request_key::RequestKey;

use crate::contents::KeptContent;
use crate::core::Core;
use crate::failure::Failure;
use crate::meta::wrong_reply;
use crate::random;
use crate::release;

/// How often it is looked whether there is something to move.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// With so many bytes in a nursery all of it is moved, however young.
const FULL_BYTES: u64 = 8 * 1024 * 1024;

/// Files that are moved together.
const TOGETHER_MAX: u32 = 512;

/// How long the lease of a group is good for. It is taken anew with every look.
const LEASE_MS: u64 = 60_000;

fn failed(error: &MetaError) -> Failure {
    Failure::from_meta(error, "nursery")
}

/// A file that is on its way, and for whom its chunks are pinned.
struct Moving {
    file: NurseryFile,
    holder: HolderId,
}

/// The commands of one move.
struct Commands<'a> {
    core: &'a Core,
    request: RequestKey,
    made: u32,
}

/// A file that is on its way, and its content's holder, if it is known.
type Retained = (Moving, Option<HolderId>);

type Results = Vec<Result<Vec<StepOutcome>, StepError>>;

impl Commands<'_> {
    /// Commits items of a group, each by itself.
    async fn each(&mut self, group: GroupId, items: Vec<Vec<DataStep>>) -> Result<Results, Failure> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        self.made += 1;
        let each = self.core.meta.each_in(group, self.request.step(self.made), items).await;
        each.map_err(|error| failed(&error))
    }
}

/// Empties the nurseries until the gateway stops.
pub(crate) async fn run(core: Arc<Core>) {
    let mover = u64::from_be_bytes(random::bytes());
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = core.stopping.cancelled() => return,
        }
        for group in core.meta.map().data_groups() {
            let emptied = tokio::select! {
                emptied = empty(&core, mover, group) => emptied,
                () = core.stopping.cancelled() => return,
            };
            if let Err(failure) = emptied {
                tracing::debug!(group = group.0, error = %failure, "small files are moved later");
            }
        }
    }
}

/// Moves what is old enough out of a group's nursery, if nobody else does.
async fn empty(core: &Arc<Core>, mover: u64, group: GroupId) -> Result<(), Failure> {
    let sums = match core.meta.api().query(group, Query::NurserySums).await {
        Ok(Reply::NurserySums(sums)) => sums,
        Ok(_) => return Err(failed(&wrong_reply("nursery"))),
        Err(error) => return Err(failed(&error)),
    };
    let since_ms_max = move_until(sums, core.meta.api().settings().nursery_age(), random::log_ms());
    let (mut after, mut moved) = (None, Ok(()));
    loop {
        let query = Query::Nursery { after, since_ms_max, count_max: TOGETHER_MAX };
        let (files, next) = match core.meta.api().query(group, query).await {
            Ok(Reply::Nursery { files, next }) => (files, next),
            Ok(_) => return Err(failed(&wrong_reply("nursery"))),
            Err(error) => return Err(failed(&error)),
        };
        if !files.is_empty() {
            let lease = DataStep::NurseryLease { mover, life_ms: LEASE_MS };
            match core.meta.commit_in(group, random::request(), vec![lease]).await {
                Ok(_) => {}
                // Another gateway moves them.
                Err(MetaError::Step(StepError::Changed { .. })) => return Ok(()),
                Err(error) => return Err(failed(&error)),
            }
            // What could not be moved does not keep the others there.
            moved = move_some(core, group, files).await.and(moved);
        }
        match next {
            Some(last) => after = Some(last),
            None => return moved,
        }
    }
}

/// Since when a file must have been there to be moved now.
fn move_until(sums: NurserySums, age: Duration, now_ms: u64) -> u64 {
    if sums.bytes >= FULL_BYTES {
        return u64::MAX;
    }
    now_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// Moves some files of a group's nursery. What fails is tried again with the next look.
async fn move_some(core: &Arc<Core>, group: GroupId, files: Vec<NurseryFile>) -> Result<(), Failure> {
    let mut commands = Commands { core, request: random::request().into(), made: 0 };
    let mut leaving = Vec::new();
    let mut kept = Vec::new();
    for file in files {
        match file.row.state {
            NurseryState::Leaving { holder } => leaving.push(Moving { file, holder }),
            NurseryState::Kept | NurseryState::Moving { .. } => kept.push(file),
        }
    }
    let moving = take(&mut commands, group, kept).await?;
    let count = moving.len();
    let (stored, not_stored) = store(core, moving).await?;
    let (retained, not_retained) = retain(&mut commands, group, stored, &mut leaving).await?;
    settle(&mut commands, group, retained, &mut leaving).await?;
    let leaving_count = leaving.len();
    tracing::debug!(
        group = group.0,
        files = count,
        leaving = leaving_count,
        "small files moved into stripes"
    );
    let cleaned = clean_up(&mut commands, group, leaving).await;
    not_stored.or(not_retained).map_or(cleaned, Err)
}

/// Marks files as moving; gives those that are.
async fn take(
    commands: &mut Commands<'_>,
    group: GroupId,
    files: Vec<NurseryFile>,
) -> Result<Vec<Moving>, Failure> {
    let item = |file: &NurseryFile| {
        let NurseryFile { namespace, content, generation, .. } = *file;
        let holder = HolderId::from_bytes(random::bytes());
        vec![DataStep::NurseryTake { namespace, content, generation, holder }]
    };
    let taken = commands.each(group, files.iter().map(item).collect()).await?;
    let mut moving = Vec::with_capacity(files.len());
    for (file, taken) in files.into_iter().zip(taken) {
        let taken = taken.map_err(|error| Failure::from_step(&error, "nursery"))?;
        match taken.as_slice() {
            [StepOutcome::NurseryTaken { holder: Some(holder) }] => {
                moving.push(Moving { file, holder: *holder });
            }
            [StepOutcome::NurseryTaken { holder: None }] => {}
            _ => return Err(failed(&wrong_reply("take"))),
        }
    }
    Ok(moving)
}

/// Stores the chunks of files, each once, pinned for all their holders. Gives the files whose chunks are all stored, and
/// why others are not.
async fn store(core: &Arc<Core>, moving: Vec<Moving>) -> Result<(Vec<Moving>, Option<Failure>), Failure> {
    let mut chunks: BTreeMap<ChunkId, (Bytes, Vec<HolderId>)> = BTreeMap::new();
    let (mut sound, mut failure) = (Vec::with_capacity(moving.len()), None);
    for Moving { mut file, holder } in moving {
        let bytes = std::mem::take(&mut file.bytes);
        match KeptContent::new(file.row.chunks.clone(), bytes).verified() {
            Ok(verified) => {
                for (chunk, plain) in verified {
                    let holders = &mut chunks.entry(chunk).or_insert_with(|| (plain, Vec::new())).1;
                    if !holders.contains(&holder) {
                        holders.push(holder);
                    }
                }
                sound.push(Moving { file, holder });
            }
            Err(damaged) => failure = Some(damaged),
        }
    }
    let ids: Vec<ChunkId> = chunks.keys().copied().collect();
    let known = core.known(&ids).await?;
    let mut plain = Vec::with_capacity(chunks.len());
    let mut holders = Vec::with_capacity(chunks.len());
    for (chunk, (bytes, of_chunk)) in chunks {
        plain.push((chunk, bytes));
        holders.push(of_chunk);
    }
    let prepared = core.preparer.prepare(ChunkKind::Data, plain).await?;
    let storing = prepared
        .into_iter()
        .zip(holders)
        .zip(known)
        .map(|((chunk, holders), known)| core.writer.store(chunk, holders, known));
    let mut missing = HashSet::new();
    for (chunk, stored) in ids.iter().zip(join_all(storing).await) {
        if let Err(why) = stored {
            missing.insert(*chunk);
            failure = Some(why);
        }
    }
    sound.retain(|moving| moving.file.row.chunks.iter().all(|chunk| !missing.contains(&chunk.id)));
    Ok((sound, failure))
}

fn retain_step(moving: &Moving) -> DataStep {
    let NurseryFile { namespace, content, generation, ref row, .. } = moving.file;
    DataStep::ContentRetain {
        content,
        namespace,
        generation: Some(generation),
        holder: moving.holder,
        size: row.size(),
        list: ContentList { depth: 0, entries: row.chunks.clone() },
    }
}

fn settle_step(moving: &Moving, in_force: Option<HolderId>) -> DataStep {
    let NurseryFile { namespace, content, generation, .. } = moving.file;
    DataStep::NurserySettle { namespace, content, generation, in_force }
}

/// Retains contents whose slots are other groups'. Gives each with the holder in force; `None` for those that are to be
/// retained in the nursery's own group; and why others could not be. One that is refused has been let go meanwhile: what was
/// pinned for it since is to go, so it is leaving.
async fn retain(
    commands: &mut Commands<'_>,
    group: GroupId,
    stored: Vec<Moving>,
    leaving: &mut Vec<Moving>,
) -> Result<(Vec<Retained>, Option<Failure>), Failure> {
    let (mut retained, mut failure) = (Vec::with_capacity(stored.len()), None);
    let mut elsewhere: HashMap<GroupId, Vec<Moving>> = HashMap::new();
    for moving in stored {
        let of_content = commands.core.meta.group_of(moving.file.content.slot());
        match of_content.map_err(|error| failed(&error))? {
            own if own == group => retained.push((moving, None)),
            other => elsewhere.entry(other).or_default().push(moving),
        }
    }
    for (other, moving) in elsewhere {
        let items = moving.iter().map(|moving| vec![retain_step(moving)]).collect();
        let outcomes = match commands.each(other, items).await {
            Ok(outcomes) => outcomes,
            Err(unavailable) => {
                failure = Some(unavailable);
                continue;
            }
        };
        for (moving, outcome) in moving.into_iter().zip(outcomes) {
            match outcome.as_deref() {
                Ok([StepOutcome::Retained { holder }]) => retained.push((moving, Some(*holder))),
                Ok(_) => return Err(failed(&wrong_reply("retain"))),
                Err(error) => {
                    tracing::debug!(error = %error, "a small file was let go while it was moved");
                    leaving.push(moving);
                }
            }
        }
    }
    Ok((retained, failure))
}

/// Settles what is retained, or retains and settles it at once; adds what is leaving then.
async fn settle(
    commands: &mut Commands<'_>,
    group: GroupId,
    retained: Vec<Retained>,
    leaving: &mut Vec<Moving>,
) -> Result<(), Failure> {
    let item = |(moving, in_force): &Retained| match in_force {
        Some(holder) => vec![settle_step(moving, Some(*holder))],
        None => vec![retain_step(moving), settle_step(moving, None)],
    };
    let outcomes = commands.each(group, retained.iter().map(item).collect()).await?;
    for ((moving, _in_force), outcome) in retained.into_iter().zip(outcomes) {
        match outcome.as_deref() {
            Ok([.., StepOutcome::NurserySettled { leaving: true }]) => leaving.push(moving),
            Ok([.., StepOutcome::NurserySettled { leaving: false }]) => {}
            Ok(_) => return Err(failed(&wrong_reply("settle"))),
            Err(error) => {
                tracing::debug!(error = %error, "a small file was let go while it was moved");
                leaving.push(moving);
            }
        }
    }
    Ok(())
}

/// Removes the pins of what is leaving, then forgets it.
async fn clean_up(commands: &mut Commands<'_>, group: GroupId, leaving: Vec<Moving>) -> Result<(), Failure> {
    let (mut items, mut cleaned) = (Vec::with_capacity(leaving.len()), Ok(()));
    for Moving { file, holder } in leaving {
        let NurseryFile { namespace, content, generation, row, .. } = file;
        let chunks = row.chunks.iter().map(|chunk| chunk.id);
        match release::unpin_holder(&commands.core.meta, content, holder, chunks).await {
            Ok(()) => items.push(vec![DataStep::NurseryForget { namespace, content, generation }]),
            Err(failure) => cleaned = Err(failure),
        }
    }
    for forgotten in commands.each(group, items).await? {
        if let Err(error) = forgotten {
            tracing::debug!(error = %error, "a small file is forgotten later");
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_is_moved_and_all_where_there_is_much() {
        let age = Duration::from_secs(10);
        assert_eq!(move_until(NurserySums { files: 3, bytes: 900 }, age, 100_000), 90_000);
        assert_eq!(move_until(NurserySums { files: 3, bytes: FULL_BYTES }, age, 100_000), u64::MAX);
    }
}
