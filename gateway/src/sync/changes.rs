//! Pages of the journal, and of what is below a folder.

use engine::ids::{ClusterId, EntryId, NamespaceId};
use metaraft::api::MetaError;
use metaraft::model::query::{BelowFrame, Query, Reply};
use metaraft::model::row::ChangeRow;
use proto::v1;
use serde::{Deserialize, Serialize};

use crate::auth::Caller;
use crate::convert;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{SYNC_PAGE, SYNC_PAGE_MAX};
use crate::meta::wrong_reply;
use crate::sync::seal::Purpose;

/// Where a client is in a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    namespace: NamespaceId,
    /// Which history of the metadata the numbers are of.
    history: ClusterId,
    position: u64,
    since: u64,
}

/// Where a client is in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Page {
    namespace: NamespaceId,
    top: EntryId,
    position: Vec<BelowFrame>,
}

/// What a cursor that a client sent stands for.
pub(crate) enum Position {
    /// In the present journal.
    At {
        /// The number up to which it has seen changes.
        position: u64,
        since: u64,
    },
    /// In another history.
    Elsewhere,
}

fn failed(error: &MetaError) -> Failure {
    Failure::from_meta(error, "changes")
}

fn count(count_max: u32) -> Result<u32, Failure> {
    match count_max {
        0 => Ok(SYNC_PAGE),
        count if count <= SYNC_PAGE_MAX => Ok(count),
        count => Err(Failure::invalid(format!("count_max: {count} is more than {SYNC_PAGE_MAX}"))),
    }
}

fn history(core: &Core) -> ClusterId {
    core.meta.map().cluster
}

/// Takes a cursor from a client.
pub(crate) async fn open_cursor(core: &Core, caller: &Caller, cursor: &[u8]) -> Result<Position, Failure> {
    if cursor.is_empty() {
        return Ok(Position::At { position: 0, since: 0 });
    }
    let opened: Option<Cursor> = core.sealer().await?.open(Purpose::Cursor, cursor);
    let bad = || Failure::new(tonic::Code::InvalidArgument, "bad-cursor", "cursor: not one of this tree");
    let opened = opened.filter(|opened| opened.namespace == caller.namespace).ok_or_else(bad)?;
    if opened.history != history(core) {
        return Ok(Position::Elsewhere);
    }
    Ok(Position::At { position: opened.position, since: opened.since })
}

/// A page of the journal after a cursor.
pub(crate) async fn changes(
    core: &Core,
    caller: &Caller,
    request: &v1::ChangesRequest,
) -> Result<v1::ChangesResponse, Failure> {
    let count_max = count(request.count_max)?;
    let reset = || v1::ChangesResponse { cursor_reset: true, ..v1::ChangesResponse::default() };
    let Position::At { position, since } = open_cursor(core, caller, &request.cursor).await? else {
        return Ok(reset());
    };
    let namespace = caller.namespace;
    let query = Query::Changes { namespace, position, since, count_max };
    match core.meta.query(namespace.slot(), query).await.map_err(|error| failed(&error))? {
        Reply::Changes { changes, position, since, more } => {
            let cursor = Cursor { namespace, history: history(core), position, since };
            Ok(v1::ChangesResponse {
                changes: changes.into_iter().map(change_to_wire).collect(),
                cursor: core.sealer().await?.seal(Purpose::Cursor, &cursor),
                more,
                cursor_reset: false,
                sequence: position,
            })
        }
        Reply::ChangesGone => Ok(reset()),
        _ => Err(failed(&wrong_reply("changes"))),
    }
}

fn change_to_wire(change: ChangeRow) -> v1::Change {
    v1::Change {
        entry_id: change.entry.0,
        entry: change.row.map(|row| convert::entry_to_wire(row, None)),
        list_below: change.list_below,
    }
}

/// A page of what is below a folder.
pub(crate) async fn list_below(
    core: &Core,
    caller: &Caller,
    request: &v1::ListBelowRequest,
) -> Result<v1::ListBelowResponse, Failure> {
    let count_max = count(request.count_max)?;
    let (namespace, top) = (caller.namespace, EntryId(request.entry_id));
    let position = if request.page.is_empty() {
        Vec::new()
    } else {
        let page: Option<Page> = core.sealer().await?.open(Purpose::Below, &request.page);
        let bad =
            || Failure::new(tonic::Code::InvalidArgument, "bad-cursor", "page: not one of this listing");
        page.filter(|page| page.namespace == namespace && page.top == top).ok_or_else(bad)?.position
    };
    let query = Query::Below { namespace, top, position, count_max };
    let page = match core.meta.query(namespace.slot(), query).await.map_err(|error| failed(&error))? {
        Reply::Below(page) => page,
        _ => return Err(failed(&wrong_reply("list below"))),
    };
    let page = page.ok_or_else(|| Failure::no_entry(&format!("entry {}", top.0)))?;
    let next_page = if page.position.is_empty() {
        bytes::Bytes::new()
    } else {
        core.sealer().await?.seal(Purpose::Below, &Page { namespace, top, position: page.position })
    };
    let entries = page.entries.into_iter().map(|row| convert::entry_to_wire(row, None)).collect();
    Ok(v1::ListBelowResponse { entries, next_page })
}
