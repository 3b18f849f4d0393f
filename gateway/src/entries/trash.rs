//! Takes entries out of the trash, or removes them for good.

use engine::ids::EntryId;
use metaraft::api::MetaError;
use metaraft::model::command::DataStep;
use metaraft::model::outcome::StepOutcome;
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::TrashRow;
use proto::v1;
use tonic::Code;

use crate::auth::Caller;
use crate::convert;
use crate::core::Core;
use crate::entries::change::{NO_ENTRY, is_about_target, parent_of};
use crate::failure::Failure;
use crate::limits::{PAGE_ENTRIES, PURGE_ENTRIES_MAX};
use crate::meta::{entry_of, wrong_reply};
use crate::path::RemotePath;
use crate::release;

/// Steps that one purge of one item takes: more entries than any tree has.
const PURGE_STEPS_MAX: u32 = 10_000_000;

fn failed(error: &MetaError) -> Failure {
    Failure::from_meta(error, "trash")
}

/// The item of that number, if it is there.
async fn item(core: &Core, caller: &Caller, trash: u64) -> Result<Option<TrashRow>, Failure> {
    let Some(before) = trash.checked_sub(1) else { return Ok(None) };
    let (rows, _more) = core.meta.trash(caller.namespace, before, 1).await.map_err(|error| failed(&error))?;
    Ok(rows.into_iter().next().filter(|row| row.trash == trash))
}

/// Where an item goes back to: the folder, its new name, and the path for messages.
async fn target(
    core: &Core,
    caller: &Caller,
    message: &v1::RestoreTrashRequest,
) -> Result<(EntryId, String, RemotePath), Failure> {
    if !message.to.is_empty() {
        let to = RemotePath::parse_named(&message.to)?;
        let resolved = core.resolve_one(caller.namespace, &to).await?;
        return Ok((parent_of(&to, &resolved)?, to.name().to_owned(), to));
    }
    let Some(row) = item(core, caller, message.trash_id).await? else {
        // Perhaps a repetition: the remembered answer, or that there is no such item.
        return Ok((NO_ENTRY, "-".to_owned(), RemotePath::ROOT));
    };
    let parent = core.meta.path(caller.namespace, row.entry.parent).await.map_err(|error| failed(&error))?;
    match parent {
        Some(parent) => Ok((row.entry.parent, row.entry.name.clone(), parent.join(&row.entry.name))),
        None => {
            let name = crate::path::shown(&row.entry.name);
            let message =
                format!("{name}: the folder that it was in is gone; say where it is to be restored to");
            Err(Failure::precondition("folder-gone", message))
        }
    }
}

/// Takes an item out of the trash.
pub(crate) async fn restore(
    core: &Core,
    caller: &Caller,
    request: RequestKey,
    message: &v1::RestoreTrashRequest,
) -> Result<v1::Entry, Failure> {
    let (to_parent, to_name, mut path) = target(core, caller, message).await?;
    let step =
        DataStep::TrashRestore { namespace: caller.namespace, trash: message.trash_id, to_parent, to_name };
    let restored = core.meta.commit(caller.namespace.slot(), request.step(0), vec![step]).await;
    let row = restored.and_then(entry_of).map_err(|error| {
        let item = format!("trash item {}", message.trash_id);
        let about = if is_about_target(&error) { path.to_string() } else { item };
        Failure::from_meta(&error, &about)
    })?;
    if path == RemotePath::ROOT {
        let found = core.meta.path(caller.namespace, row.entry).await.map_err(|error| failed(&error))?;
        path = found.unwrap_or(path);
    }
    Ok(convert::entry_to_wire(row, Some(&path)))
}

/// Removes one item, or all, for good, and gives back what they referred to. Of all, one that cannot be removed does
/// not stop the others.
pub(crate) async fn purge(
    core: &Core,
    caller: &Caller,
    request: RequestKey,
    trash: u64,
) -> Result<v1::PurgeTrashResponse, Failure> {
    release::drain(&core.meta, &core.source, caller.namespace).await?;
    let mut purged = v1::PurgeTrashResponse::default();
    if trash != 0 {
        purge_one(core, caller, request, trash, &mut purged).await?;
        return Ok(purged);
    }
    let (mut after, mut left, mut first) = (0, 0_u64, None);
    loop {
        let page = core.meta.trash(caller.namespace, after, PAGE_ENTRIES).await;
        let (rows, more) = page.map_err(|error| failed(&error))?;
        for row in &rows {
            after = row.trash;
            match purge_one(core, caller, request, row.trash, &mut purged).await {
                Ok(()) => {}
                // Somebody else purged it, or took it back.
                Err(failure) if failure.code == Code::NotFound => {}
                Err(failure) if matches!(failure.code, Code::Unavailable | Code::ResourceExhausted) => {
                    return Err(failure);
                }
                Err(failure) => {
                    left += 1;
                    first.get_or_insert(failure);
                }
            }
        }
        if !more || rows.is_empty() {
            return match first {
                None => Ok(purged),
                Some(first) => Err(first.but_for(left, "item", "purged")),
            };
        }
    }
}

async fn purge_one(
    core: &Core,
    caller: &Caller,
    request: RequestKey,
    trash: u64,
    purged: &mut v1::PurgeTrashResponse,
) -> Result<(), Failure> {
    let namespace = caller.namespace;
    let [a, b, c, d, e, f, g, h] = trash.to_be_bytes();
    let item = request.step(u32::from_be_bytes([a, b, c, d])).step(u32::from_be_bytes([e, f, g, h]));
    for number in 0..PURGE_STEPS_MAX {
        let step = DataStep::TrashPurge { namespace, trash, entries_max: PURGE_ENTRIES_MAX };
        let outcome = core.meta.step(namespace.slot(), item.step(number), step).await;
        let outcome = outcome.map_err(|error| Failure::from_meta(&error, &format!("trash item {trash}")))?;
        let StepOutcome::Purged { done, entries, bytes, releases } = outcome else {
            return Err(failed(&wrong_reply("purge")));
        };
        purged.entries += entries;
        purged.bytes += bytes;
        release::execute(&core.meta, &core.source, namespace, &releases).await?;
        if done {
            return Ok(());
        }
    }
    Err(Failure::internal("purge", &"it does not end"))
}
