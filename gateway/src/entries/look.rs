//! Looks at entries: one, a page of a folder, a file's versions, a page of the trash.

use engine::ids::{EntryId, VersionId};
use metaraft::api::MetaError;
use metaraft::model::nursery::{FileAt, Opened};
use metaraft::model::query::{Query, Reply};
use metaraft::model::row::EntryKind;
use proto::v1;

use crate::auth::{Caller, Claim, refused};
use crate::convert;
use crate::core::Core;
use crate::downloads::stream::file_state;
use crate::failure::Failure;
use crate::limits::PAGE_ENTRIES;
use crate::meta::wrong_reply;
use crate::path::RemotePath;

/// Entries in one page, whatever is asked for: gathering and telling them takes some milliseconds of a processor, in which
/// others' small steps wait.
const PAGE_ENTRIES_MAX: u32 = 2_000;

fn page_size(count_max: u32) -> u32 {
    match count_max {
        0 => PAGE_ENTRIES,
        count => count.min(PAGE_ENTRIES_MAX),
    }
}

pub(crate) async fn get(core: &Core, claim: &Claim, path: &str) -> Result<v1::Entry, Failure> {
    let path = RemotePath::parse(path)?;
    let at = FileAt::Path(path.names().to_vec());
    let opened = core.meta.open(claim.token, claim.caller.namespace, at, false).await;
    match opened.map_err(|error| Failure::from_meta(&error, &path.to_string()))? {
        Opened::TokenRefused => Err(refused()),
        Opened::NoEntry(_) => Err(Failure::no_entry(&path.to_string())),
        Opened::Found { entry, .. } => Ok(convert::entry_to_wire(entry, Some(&path))),
    }
}

pub(crate) async fn list(
    core: &Core,
    caller: &Caller,
    request: &v1::ListFolderRequest,
) -> Result<v1::ListFolderResponse, Failure> {
    let path = RemotePath::parse(&request.path)?;
    let subject = path.to_string();
    let row = core.entry_at(caller.namespace, &path).await?;
    if row.kind != EntryKind::Folder {
        let message = format!("{subject}: it is a {}, not a folder", row.kind.word());
        return Err(Failure::precondition("wrong-kind", message));
    }
    let after = (!request.after.is_empty()).then(|| request.after.clone());
    let page = core.meta.children(caller.namespace, row.entry, after, page_size(request.count_max)).await;
    let (rows, more) = page.map_err(|error| Failure::from_meta(&error, &subject))?;
    let entries = rows.into_iter().map(|row| convert::entry_to_wire(row, None)).collect();
    Ok(v1::ListFolderResponse { entries, more })
}

pub(crate) async fn versions(
    core: &Core,
    caller: &Caller,
    path: &str,
) -> Result<v1::ListVersionsResponse, Failure> {
    let path = RemotePath::parse(path)?;
    let subject = path.to_string();
    let failed = |error: MetaError| Failure::from_meta(&error, &subject);
    let row = core.entry_at(caller.namespace, &path).await?;
    let current: VersionId = file_state(&row, &subject)?.version;
    let query = Query::Versions { namespace: caller.namespace, entry: row.entry };
    match core.meta.query(caller.namespace.slot(), query).await.map_err(failed)? {
        Reply::Versions(rows) => {
            let versions = rows.iter().map(|row| convert::version_to_wire(row, current)).collect();
            Ok(v1::ListVersionsResponse { versions })
        }
        _ => Err(failed(wrong_reply("versions"))),
    }
}

pub(crate) async fn trash(
    core: &Core,
    caller: &Caller,
    request: &v1::ListTrashRequest,
) -> Result<v1::ListTrashResponse, Failure> {
    let failed = |error: MetaError| Failure::from_meta(&error, "trash");
    let page = core.meta.trash(caller.namespace, request.after, page_size(request.count_max)).await;
    let (rows, more) = page.map_err(failed)?;
    let parents: Vec<EntryId> = rows.iter().map(|row| row.entry.parent).collect();
    // Paths are the larger part of the page, which ends where they do.
    let parents = core.meta.first_paths(caller.namespace, parents).await.map_err(failed)?;
    let more = more || parents.len() < rows.len();
    let items = rows.into_iter().zip(parents).map(|(row, parent)| {
        // Where the folder has gone too, the name is all that can be told.
        let path =
            parent.map_or_else(|| row.entry.name.clone(), |parent| parent.join(&row.entry.name).text());
        v1::TrashItem {
            trash_id: row.trash,
            deleted_ms: row.deleted_ms,
            path,
            entry: Some(convert::entry_to_wire(row.entry, None)),
        }
    });
    Ok(v1::ListTrashResponse { items: items.collect(), more })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_bounded() {
        assert_eq!(page_size(0), 1000);
        assert_eq!(page_size(1), 1);
        assert_eq!(page_size(u32::MAX), PAGE_ENTRIES_MAX);
    }
}
