//! Pages of the journal, and of what is below a folder.

use engine::ids::{ClusterId, EntryId, NamespaceId};
use metaraft::api::MetaError;
use metaraft::model::journal::{JournalRun, Seen};
use metaraft::model::query::{BelowFrame, Query, Reply};
use metaraft::model::row::ChangeRow;
use proto::v1;
use serde::{Deserialize, Serialize};

use crate::auth::Caller;
use crate::convert;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{SYNC_PAGE, SYNC_PAGE_GIVEN_MAX, SYNC_PAGE_MAX};
use crate::meta::wrong_reply;
use crate::sync::history::{Reached, reign_of, went_back};
use crate::sync::seal::{Purpose, Sealer};

/// Where a client is in a journal. Its tree is sealed with it, not carried: each change carries a cursor there and back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    /// Which history of the metadata the numbers are of: the first bytes of its id, which is random.
    history: [u8; HISTORY_BYTES],
    position: u64,
    since: u64,
    /// Who issued the later of the two, and those before: see [`metaraft::model::journal::Seen`]. `None`: of before cursors
    /// had runs.
    runs: Option<Vec<JournalRun>>,
}

const HISTORY_BYTES: usize = 8;

/// A cursor as it was before it was bound to its tree; with `()` for its runs: before it had any.
#[derive(Deserialize)]
struct LongCursor<R> {
    namespace: NamespaceId,
    history: ClusterId,
    position: u64,
    since: u64,
    runs: R,
}

impl<R> LongCursor<R> {
    fn cursor(self, tree: NamespaceId, runs: impl Fn(R) -> Option<Vec<JournalRun>>) -> Option<Cursor> {
        let Self { namespace, history, position, since, runs: known } = self;
        (namespace == tree).then(|| Cursor { history: short(history), position, since, runs: runs(known) })
    }
}

fn short(history: ClusterId) -> [u8; HISTORY_BYTES] {
    let mut bytes = [0; HISTORY_BYTES];
    bytes.copy_from_slice(&history.as_bytes()[..HISTORY_BYTES]);
    bytes
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
        /// See [`metaraft::model::journal::Seen`].
        runs: Option<Vec<JournalRun>>,
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
        count if count <= SYNC_PAGE_MAX => Ok(count.min(SYNC_PAGE_GIVEN_MAX)),
        count => Err(Failure::invalid(format!("count_max: {count} is more than {SYNC_PAGE_MAX}"))),
    }
}

fn history(core: &Core) -> [u8; HISTORY_BYTES] {
    short(core.meta.map().cluster)
}

fn opened(sealer: &Sealer, tree: NamespaceId, cursor: &[u8]) -> Option<Cursor> {
    let long = || {
        let long: LongCursor<Option<Vec<JournalRun>>> = sealer.open(Purpose::LongCursor, None, cursor)?;
        long.cursor(tree, |runs| runs)
    };
    let plain = || {
        let plain: LongCursor<()> = sealer.open(Purpose::PlainCursor, None, cursor)?;
        plain.cursor(tree, |()| None)
    };
    sealer.open(Purpose::Cursor, Some(tree), cursor).or_else(long).or_else(plain)
}

/// Takes a cursor from a client.
pub(crate) async fn open_cursor(core: &Core, caller: &Caller, cursor: &[u8]) -> Result<Position, Failure> {
    if cursor.is_empty() {
        return Ok(Position::At { position: 0, since: 0, runs: None });
    }
    let bad = || Failure::new(tonic::Code::InvalidArgument, "bad-cursor", "cursor: not one of this tree");
    let opened = opened(core.sealer().await?, caller.namespace, cursor).ok_or_else(bad)?;
    if opened.history != history(core) {
        return Ok(Position::Elsewhere);
    }
    Ok(Position::At { position: opened.position, since: opened.since, runs: opened.runs })
}

/// Seals what a client has seen by the answer to a change of its own, beyond its cursor.
pub(crate) async fn seal_seen(
    core: &Core,
    caller: &Caller,
    number: u64,
    runs: Vec<JournalRun>,
) -> Result<bytes::Bytes, Failure> {
    let cursor = Cursor { history: history(core), position: number, since: number, runs: Some(runs) };
    Ok(core.sealer().await?.seal(Purpose::Cursor, Some(caller.namespace), &cursor))
}

/// Up to which number what a client has seen by answers to its changes is of another history; `None`: it is of this one.
async fn parted(core: &Core, caller: &Caller, seen: &[u8]) -> Result<Option<u64>, Failure> {
    if seen.is_empty() {
        return Ok(None);
    }
    let Position::At { position, since, runs } = open_cursor(core, caller, seen).await? else {
        return Ok(Some(0));
    };
    let namespace = caller.namespace;
    let query = Query::ChangesAfter { namespace, position, since, runs, count_max: 1 };
    match core.meta.query(namespace.slot(), query).await.map_err(|error| failed(&error))? {
        Reply::WentBack { common } => Ok(Some(common)),
        _ => Ok(None),
    }
}

/// A page of the journal after a cursor.
pub(crate) async fn changes(
    core: &Core,
    caller: &Caller,
    request: &v1::ChangesRequest,
) -> Result<v1::ChangesResponse, Failure> {
    let count_max = count(request.count_max)?;
    let reset = |reason: v1::ResetReason, common_sequence| v1::ChangesResponse {
        cursor_reset: true,
        reset_reason: reason.into(),
        common_sequence,
        ..v1::ChangesResponse::default()
    };
    let Position::At { position, since, runs } = open_cursor(core, caller, &request.cursor).await? else {
        return Ok(reset(v1::ResetReason::WentBack, 0));
    };
    let parted = parted(core, caller, &request.seen).await?;
    let namespace = caller.namespace;
    let query = Query::ChangesAfter { namespace, position, since, runs, count_max };
    let answered = core.meta.query(namespace.slot(), query).await.map_err(|error| failed(&error))?;
    match (answered, parted) {
        (Reply::WentBack { common }, parted) => {
            let common = parted.map_or(common, |parted| parted.min(common));
            Ok(reset(v1::ResetReason::WentBack, common))
        }
        (_, Some(common)) => Ok(reset(v1::ResetReason::WentBack, common)),
        (Reply::ChangesAfter { changes, position, since, runs, more }, None) => {
            let reign = reign_of(&runs);
            let cursor = Cursor { history: history(core), position, since, runs: Some(runs) };
            Ok(v1::ChangesResponse {
                changes: changes.into_iter().map(change_to_wire).collect(),
                cursor: core.sealer().await?.seal(Purpose::Cursor, Some(namespace), &cursor),
                more,
                sequence: position,
                reign,
                ..v1::ChangesResponse::default()
            })
        }
        (Reply::ChangesGone, None) => Ok(reset(v1::ResetReason::PastHorizon, 0)),
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
        let page: Option<Page> = core.sealer().await?.open(Purpose::Below, None, &request.page);
        let bad =
            || Failure::new(tonic::Code::InvalidArgument, "bad-cursor", "page: not one of this listing");
        page.filter(|page| page.namespace == namespace && page.top == top).ok_or_else(bad)?.position
    };
    let seen = match open_cursor(core, caller, &request.cursor).await? {
        _ if request.cursor.is_empty() => None,
        Position::At { position, since, runs } => Some(Seen { number: position.max(since), runs }),
        Position::Elsewhere => return Err(went_back()),
    };
    let query = Query::BelowAt { namespace, top, position, seen, count_max };
    let reply = core.meta.query(namespace.slot(), query).await.map_err(|error| failed(&error))?;
    let (page, reached) = match reply {
        Reply::BelowAt { page, number, runs } => (page, Reached::sealed(core, caller, number, runs).await?),
        Reply::WentBack { .. } => return Err(went_back()),
        _ => return Err(failed(&wrong_reply("list below"))),
    };
    let page = page.ok_or_else(|| Failure::no_entry(&format!("entry {}", top.0)))?;
    let next_page = if page.position.is_empty() {
        bytes::Bytes::new()
    } else {
        core.sealer().await?.seal(Purpose::Below, None, &Page { namespace, top, position: page.position })
    };
    let entries = page.entries.into_iter().map(|row| convert::entry_to_wire(row, None)).collect();
    let Reached { seen, sequence, reign } = reached;
    Ok(v1::ListBelowResponse { entries, next_page, seen, sequence, reign })
}

#[cfg(test)]
mod tests {
    use metaraft::model::journal::Reign;
    use metaraft::model::row::SecretBytes;

    use super::*;

    #[test]
    fn cursors_of_all_forms_open_for_their_tree_alone() {
        let sealer = Sealer::new(SecretBytes([7; 32]));
        let [tree, other] = [1, 2].map(|byte| NamespaceId::from_bytes([byte; 16]));
        let cluster = ClusterId::from_bytes([9; 16]);
        let runs = vec![JournalRun { first: 3, reign: Reign { term: 2, mark: u64::MAX } }];
        let runless = Cursor { history: short(cluster), position: 5, since: 6, runs: None };
        let with_runs = Cursor { runs: Some(runs.clone()), ..runless.clone() };
        let sealed = [
            (sealer.seal(Purpose::Cursor, Some(tree), &with_runs), &with_runs),
            (sealer.seal(Purpose::LongCursor, None, &(tree, cluster, 5_u64, 6_u64, Some(runs))), &with_runs),
            (sealer.seal(Purpose::PlainCursor, None, &(tree, cluster, 5_u64, 6_u64)), &runless),
        ];
        for (sealed, cursor) in sealed {
            assert_eq!(opened(&sealer, tree, &sealed).as_ref(), Some(cursor));
            assert_eq!(opened(&sealer, other, &sealed), None);
        }
        let short = sealer.seal(Purpose::Cursor, Some(tree), &with_runs);
        assert!(short.len() <= 44, "{} bytes", short.len());
    }
}
