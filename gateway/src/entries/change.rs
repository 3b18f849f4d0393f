//! Changes to single entries: attributes, moves, deletion, restoring a version.
//!
//! A repeated request may find that its path leads nowhere any more because the first one succeeded. So when a path
//! is not found, the step is proposed all the same, for an entry that never is: a remembered request gives its first
//! answer, and a new one is told that there is no such entry.

use std::collections::BTreeMap;

use engine::ids::{EntryId, VersionId};
use futures_util::{StreamExt, stream};
use metaraft::api::MetaError;
use metaraft::model::command::DataStep;
use metaraft::model::outcome::StepOutcome;
use metaraft::model::query::Resolved;
use metaraft::model::request_key::RequestKey;
use proto::v1;

use crate::auth::Caller;
use crate::convert;
use crate::core::{Core, found};
use crate::entries::together::{Batch, parts, row_of};
use crate::failure::Failure;
use crate::limits::{BATCH_ITEMS_MAX, ENTRY_COMMANDS_AT_ONCE_MAX};
use crate::meta::{entry_of, wrong_reply};
use crate::path::RemotePath;

/// Never an entry's id.
pub(crate) const NO_ENTRY: EntryId = EntryId(0);

/// An entry's id and folder by where its path leads; [`NO_ENTRY`] if it leads nowhere.
pub(crate) fn place(path: &RemotePath, resolved: &Resolved) -> (EntryId, EntryId) {
    match found(path, resolved) {
        Ok(row) => (row.entry, row.parent),
        Err(_nowhere) => (NO_ENTRY, NO_ENTRY),
    }
}

/// The folder that a new entry goes to, which must be there.
pub(crate) fn parent_of(path: &RemotePath, resolved: &Resolved) -> Result<EntryId, Failure> {
    resolved.parent.ok_or_else(|| Failure::not_found(format!("{path}: there is no folder {}", path.parent())))
}

/// Sets permission bits and times of many entries; each succeeds or fails by itself.
pub(crate) async fn set_attributes(
    core: &Core,
    caller: &Caller,
    request: RequestKey,
    entries: &[v1::SetAttributes],
) -> Result<Vec<Result<v1::Entry, Failure>>, Failure> {
    if entries.len() > BATCH_ITEMS_MAX {
        return Err(Failure::invalid(format!("at most {BATCH_ITEMS_MAX} entries in one request")));
    }
    let parsed: Vec<Result<RemotePath, Failure>> =
        entries.iter().map(|entry| RemotePath::parse(&entry.path).map_err(Failure::from)).collect();
    let paths: Vec<RemotePath> = parsed.iter().filter_map(|path| path.clone().ok()).collect();
    let resolved = core.meta.resolve(caller.namespace, &paths).await;
    let mut resolved = resolved.map_err(|error| Failure::from_meta(&error, "attributes"))?.into_iter();
    let mut results = BTreeMap::new();
    let mut steps = BTreeMap::new();
    for (index, (entry, path)) in entries.iter().zip(&parsed).enumerate() {
        let step = path.clone().and_then(|path| {
            let resolved = resolved.next().ok_or_else(|| Failure::no_entry(&path.to_string()))?;
            let (namespace, mtime_ns) = (caller.namespace, entry.mtime_ns);
            let ((entry, _parent), mode) = (place(&path, &resolved), convert::mode(entry.mode)?);
            Ok(DataStep::EntrySetAttributes { namespace, entry, mode, mtime_ns })
        });
        match step {
            Ok(step) => drop(steps.insert(index, step)),
            Err(failure) => drop(results.insert(index, Err(failure))),
        }
    }
    let batch = Batch { core, caller, request };
    let commands = parts([(0..entries.len()).collect()]).into_iter().map(|part| {
        let steps = part.items.iter().filter_map(|item| Some((*item, steps.remove(item)?))).collect();
        async move { batch.together(&part, steps).await }
    });
    let commands: Vec<_> = commands.collect();
    let set: Vec<Vec<_>> = stream::iter(commands).buffered(ENTRY_COMMANDS_AT_ONCE_MAX).collect().await;
    for (index, outcome) in set.into_iter().flatten() {
        let set = parsed[index].clone().and_then(|path| {
            let row = row_of(outcome, &path)?;
            Ok(convert::entry_to_wire(row, Some(&path)))
        });
        results.insert(index, set);
    }
    Ok(results.into_values().collect())
}

/// Moves or renames.
pub(crate) async fn move_entry(
    core: &Core,
    caller: &Caller,
    request: RequestKey,
    message: &v1::MoveEntryRequest,
) -> Result<v1::Entry, Failure> {
    let from = RemotePath::parse_named(&message.from)?;
    let to = RemotePath::parse_named(&message.to)?;
    let subject = from.to_string();
    let resolved = core.meta.resolve(caller.namespace, &[from.clone(), to.clone()]).await;
    let resolved = resolved.map_err(|error| Failure::from_meta(&error, &subject))?;
    let [from_resolved, to_resolved] = resolved.as_slice() else {
        return Err(Failure::from_meta(&wrong_reply("resolve"), &subject));
    };
    let (entry, from_parent) = place(&from, from_resolved);
    let to_parent = match parent_of(&to, to_resolved) {
        Ok(parent) => parent,
        Err(_gone) if entry == NO_ENTRY => NO_ENTRY,
        Err(failure) => return Err(failure),
    };
    let step = DataStep::EntryMove {
        namespace: caller.namespace,
        entry,
        from_parent,
        from_name: from.name().to_owned(),
        to_parent,
        to_name: to.name().to_owned(),
        replace: message.replace,
    };
    let moved = core.meta.commit(caller.namespace.slot(), request.step(0), vec![step]).await;
    let row = moved.and_then(entry_of).map_err(|error| {
        let about = if is_about_target(&error) { to.to_string() } else { subject };
        Failure::from_meta(&error, &about)
    })?;
    Ok(convert::entry_to_wire(row, Some(&to)))
}

/// Whether a move or copy failed because of what is, or may not be, at its target.
pub(crate) fn is_about_target(error: &MetaError) -> bool {
    use metaraft::model::command::StepError as E;
    matches!(error, MetaError::Step(E::AlreadyExists { .. } | E::WrongKind { .. } | E::TooDeep { .. }))
}

/// Moves an entry to the trash; gives its number there.
pub(crate) async fn delete(
    core: &Core,
    caller: &Caller,
    request: RequestKey,
    message: &v1::DeleteEntryRequest,
) -> Result<u64, Failure> {
    let path = RemotePath::parse_named(&message.path)?;
    let subject = path.to_string();
    let failed = |error: MetaError| Failure::from_meta(&error, &subject);
    let resolved = core.resolve_one(caller.namespace, &path).await?;
    let (entry, parent) = place(&path, &resolved);
    let step = DataStep::EntryDelete {
        namespace: caller.namespace,
        entry,
        parent,
        name: path.name().to_owned(),
        recursive: message.recursive,
    };
    match core.meta.step(caller.namespace.slot(), request.step(0), step).await.map_err(failed)? {
        StepOutcome::Trashed { trash } => Ok(trash),
        _ => Err(failed(wrong_reply("delete"))),
    }
}

/// Makes an earlier version the current one again, as a new version.
pub(crate) async fn restore_version(
    core: &Core,
    caller: &Caller,
    request: RequestKey,
    message: &v1::RestoreVersionRequest,
) -> Result<v1::Entry, Failure> {
    let path = RemotePath::parse_named(&message.path)?;
    let subject = path.to_string();
    let resolved = core.resolve_one(caller.namespace, &path).await?;
    let (entry, _parent) = place(&path, &resolved);
    let step = DataStep::VersionRestore {
        namespace: caller.namespace,
        entry,
        version: VersionId(message.version),
        device: caller.device,
    };
    let restored = core.meta.commit(caller.namespace.slot(), request.step(0), vec![step]).await;
    let row = restored.and_then(entry_of).map_err(|error| Failure::from_meta(&error, &subject))?;
    Ok(convert::entry_to_wire(row, Some(&path)))
}
