//! What a crash left, settled before anything else: splits that may or may not have renamed, and temporary files.

use std::collections::HashSet;
use std::sync::Arc;

use super::execute::download_large::temporary_key;
use super::state_thread::StateThread;
use crate::local::disk::DiskError;
use crate::local::model::LocalRecord;
use crate::local::rel::Rel;
use crate::local::root::Root;
use crate::planner::model::Kind;
use crate::state::database::State;
use crate::state::error::StateError;
use crate::state::record::Outcome;
use crate::state::trees::Side;
use crate::state::uploads::SplitIntent;

/// Settles it.
pub(crate) async fn recover(state: &StateThread, root: &Arc<Root>) -> Result<(), String> {
    let here = root.clone();
    let wanted = state.ask(move |state| {
        for intent in state.split_intents()? {
            settle_split(state, &here, &intent)?;
        }
        wanted_temporary_files(state)
    });
    let wanted = wanted.await.map_err(|error| error.to_string())?;
    let root = root.clone();
    let cleaned = tokio::task::spawn_blocking(move || root.clean_temporary(&|key| wanted.contains(&key)));
    match cleaned.await {
        Ok(Ok(0)) => {}
        Ok(Ok(count)) => tracing::info!(count, "temporary files of an earlier run removed"),
        Ok(Err(error)) => tracing::warn!(%error, "temporary files are left"),
        Err(error) => return Err(error.to_string()),
    }
    Ok(())
}

/// A split whose rename was done is recorded as done; else it is forgotten, and planned again.
fn settle_split(state: &mut State, root: &Root, intent: &SplitIntent) -> Result<(), StateError> {
    let renamed = renamed_record(state, root, intent)?;
    match renamed {
        Some(record) => state.record(&[Outcome::Split { node: intent.node, record }]).map(drop),
        None => state.forget_split(intent.node),
    }
}

/// The local copy under its new name, if that is where it is.
fn renamed_record(
    state: &State,
    root: &Root,
    intent: &SplitIntent,
) -> Result<Option<LocalRecord>, StateError> {
    let Some(known) = state.local_record(intent.node)? else { return Ok(None) };
    let Some(folder) = state.path(Side::Local, intent.parent)? else { return Ok(None) };
    let rel = Rel::parse(&folder).and_then(|folder| folder.join(&intent.name_after));
    let Ok(rel) = rel else { return Ok(None) };
    let found = match root.stat(&rel) {
        Ok(Some(object)) if object.stamp.identity == intent.identity => object,
        Ok(_) | Err(DiskError::Vanished(_) | DiskError::Changed(_)) => return Ok(None),
        Err(error) => return Err(StateError::Unusable(error.to_string())),
    };
    let mut record = LocalRecord { node: intent.new_node, ..known };
    record.place.name.clone_from(&intent.name_after);
    // What else has changed since shows in the scan that follows: only the rename is taken over.
    let renamed = crate::local::model::Stamp { ctime_ns: record.stamp.ctime_ns, ..found.stamp };
    if renamed == record.stamp {
        record.stamp = found.stamp;
    }
    Ok(Some(record))
}

/// Files that downloads will go on with.
fn wanted_temporary_files(state: &State) -> Result<HashSet<u128>, StateError> {
    let mut keys = HashSet::new();
    for node in state.dirty()? {
        if let Some(value) = state.side(Side::Remote, node)?
            && let Kind::File(file) = value.kind
        {
            keys.insert(temporary_key(node, &file.content));
        }
    }
    Ok(keys)
}
