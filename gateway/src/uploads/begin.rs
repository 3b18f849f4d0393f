//! Opens upload sessions, many at once, and says which chunks are to be sent.
//!
//! The session's row is committed before anything is pinned for its holder, so that what a crash leaves behind is
//! found by the session's expiry. Who refers to the chunks, the holder, is minted for it here, and is in force if the
//! session did not exist yet: otherwise the row says who it is, whichever gateway the session began through. So a
//! session id that is used again, after its session is gone, never refers by the holder that a late release names.

use std::sync::Arc;

use engine::ids::{ChunkId, ContentId, EntryId, HolderId, UploadId};
use engine::manifest::ManifestEntry;
use futures_util::future::join_all;
use metaraft::model::command::{DataStep, OpenUploadsMax, StepError};
use metaraft::model::outcome::StepOutcome;
use proto::v1;
use tokio_util::sync::CancellationToken;

use crate::auth::Caller;
use crate::config::Limits;
use crate::convert;
use crate::core::Core;
use crate::door::debts::{Cause, Debts};
use crate::failure::Failure;
use crate::limits::{
    BATCH_ENTRIES_MAX, BATCH_ITEMS_MAX, COMMAND_UPLOADS_MAX, SHORT_LISTS_DISCOUNT, SHORT_LISTS_ENTRIES_MAX,
};
use crate::meta::wrong_reply;
use crate::path::{RemotePath, shown};
use crate::random;
use crate::sessions::Session;
use crate::uploads::{forget, look};

/// Chunk list entries in one fused command.
const COMMAND_ENTRIES_MAX: usize = 32 * 1024;

const CHUNK_LISTS: Cause = Cause {
    what: "this account begins uploads faster than their chunks can be sent",
    limit: "account_list_entries_per_second",
};

/// A file, as a client names it.
#[derive(Clone, Debug)]
pub(crate) enum Look {
    Path(RemotePath),
    Entry(EntryId),
}

/// A session that is about to begin.
struct Beginning {
    upload: UploadId,
    content: ContentId,
    entries: Vec<ManifestEntry>,
    looks: Vec<Look>,
    subject: String,
    step: DataStep,
}

/// A session that has begun.
pub(crate) struct Begun {
    pub(crate) session: Arc<Session>,
    /// Files whose current versions may hold its chunks.
    pub(crate) looks: Vec<Look>,
}

/// Begins all of them; each succeeds or fails by itself.
pub(crate) async fn begin(
    core: &Core,
    caller: &Caller,
    uploads: Vec<v1::BeginUpload>,
) -> Result<Vec<Result<Arc<Session>, Failure>>, Failure> {
    check_batch(&uploads)?;
    let (life_ms, most) = (core.meta.session_life_ms(), core.meta.api().settings().open_uploads_max());
    let expires_ms = random::log_ms().saturating_add(life_ms);
    let parsed: Vec<Result<Beginning, Failure>> =
        uploads.into_iter().map(|upload| parse(caller, &upload, life_ms, most)).collect();
    let valid: Vec<&Beginning> = parsed.iter().filter_map(|parsed| parsed.as_ref().ok()).collect();
    let mut begun = commit_all(core, caller, &valid).await;
    let without_room = |result: &Result<HolderId, Failure>| result.as_ref().is_err_and(Failure::is_full);
    if begun.iter().any(without_room) && forget::tidy(core, caller.namespace).await? {
        // Sessions that nobody went on with have made room; those that have begun begin again harmlessly.
        begun = commit_all(core, caller, &valid).await;
    }
    let mut begun = begun.into_iter();
    let mut results = Vec::with_capacity(parsed.len());
    let mut open = Vec::new();
    for beginning in parsed {
        results.push(match beginning {
            Err(failure) => Err(failure),
            Ok(beginning) => match begun.next() {
                Some(Ok(holder)) => {
                    let Beginning { upload, content, entries, looks, .. } = beginning;
                    let session = Arc::new(Session::new(upload, holder, content, expires_ms, entries));
                    open.push(Begun { session: Arc::clone(&session), looks });
                    Ok(session)
                }
                Some(Err(failure)) => Err(failure),
                None => Err(Failure::internal("begin", &"an answer is missing")),
            },
        });
    }
    look::pin_readable(core, caller, &open).await?;
    for begun in open {
        core.sessions.insert(caller.namespace, begun.session);
    }
    Ok(results)
}

/// What the client is told of one.
pub(crate) fn begun_to_wire(result: Result<Arc<Session>, Failure>) -> v1::BegunUpload {
    match result {
        Ok(session) => {
            v1::BegunUpload { missing: session.missing(), expires_ms: session.expires_ms(), error: None }
        }
        Err(failure) => v1::BegunUpload { error: Some(failure.into_item()), ..Default::default() },
    }
}

/// What accounts owe for the lists that they begin with.
pub(crate) fn debts(limits: &Limits, stopping: CancellationToken) -> Debts {
    let Limits { account_list_entries_burst: burst, account_list_entries_per_second: per_second, .. } =
        *limits;
    Debts::new(CHUNK_LISTS, burst, per_second, stopping)
}

/// What a request with so many entries is counted as: they wait in others' way where they are many together.
pub(crate) fn burden(entries: usize) -> usize {
    entries.saturating_sub(SHORT_LISTS_ENTRIES_MAX)
        + entries.min(SHORT_LISTS_ENTRIES_MAX) / SHORT_LISTS_DISCOUNT
}

/// Entries of all lists together, also of those that are not well made.
pub(crate) fn entries(uploads: &[v1::BeginUpload]) -> usize {
    let of_list = |chunks: &v1::ChunkList| chunks.sizes.len().max(chunks.ids.len().div_ceil(ChunkId::LENGTH));
    uploads.iter().filter_map(|upload| upload.chunks.as_ref()).map(of_list).sum()
}

fn check_batch(uploads: &[v1::BeginUpload]) -> Result<(), Failure> {
    if uploads.len() > BATCH_ITEMS_MAX || entries(uploads) > BATCH_ENTRIES_MAX {
        return Err(Failure::invalid(format!(
            "at most {BATCH_ITEMS_MAX} uploads with {BATCH_ENTRIES_MAX} chunks together in one request"
        )));
    }
    Ok(())
}

fn parse(
    caller: &Caller,
    upload: &v1::BeginUpload,
    life_ms: u64,
    most: OpenUploadsMax,
) -> Result<Beginning, Failure> {
    let mut looks = Vec::new();
    if !upload.path.is_empty() {
        looks.push(Look::Path(RemotePath::parse_named(&upload.path)?));
    }
    if !upload.hint_path.is_empty() {
        looks.push(Look::Path(RemotePath::parse_named(&upload.hint_path)?));
    }
    let ids = [upload.entry_id, upload.hint_entry_id].into_iter().filter(|entry| *entry != 0);
    looks.extend(ids.map(|entry| Look::Entry(EntryId(entry))));
    let subject = if upload.path.is_empty() { "upload".to_owned() } else { shown(&upload.path) };
    let id = convert::upload_id(&upload.upload_id)?;
    let cutter = convert::cutter(upload.cutter)?;
    let entries = convert::chunk_list(upload.chunks.as_ref(), cutter, upload.size)?;
    let content = ContentId::of(&entries);
    let step = DataStep::UploadBegin {
        namespace: caller.namespace,
        upload: id,
        holder: HolderId::from_bytes(random::bytes()),
        content,
        size: upload.size,
        cutter,
        chunks: entries.clone(),
        life_ms,
        most,
    };
    Ok(Beginning { upload: id, content, entries, looks, subject, step })
}

/// Commits the sessions' rows, fused; in order, with the holders in force. Beginning is idempotent, so request ids are
/// fresh.
async fn commit_all(core: &Core, caller: &Caller, sessions: &[&Beginning]) -> Vec<Result<HolderId, Failure>> {
    let mut commands: Vec<&[&Beginning]> = Vec::new();
    let mut rest = sessions;
    while !rest.is_empty() {
        let mut entries = 0;
        let fitting = rest.iter().take(COMMAND_UPLOADS_MAX).take_while(|beginning| {
            let fits = entries == 0 || entries + beginning.entries.len() <= COMMAND_ENTRIES_MAX;
            entries += beginning.entries.len();
            fits
        });
        let (command, others) = rest.split_at(fitting.count().max(1));
        commands.push(command);
        rest = others;
    }
    let committed = commands.into_iter().map(|command| commit_some(core, caller, command));
    join_all(committed).await.into_iter().flatten().collect()
}

/// Commits some as one command, in which each succeeds or fails by itself.
async fn commit_some(
    core: &Core,
    caller: &Caller,
    sessions: &[&Beginning],
) -> Vec<Result<HolderId, Failure>> {
    let items = sessions.iter().map(|beginning| vec![beginning.step.clone()]).collect();
    match core.meta.each(caller.namespace.slot(), random::request(), items).await {
        Ok(results) => {
            let told = |(session, result): (&&Beginning, Result<Vec<StepOutcome>, StepError>)| match result
                .map(|outcomes| outcomes.into_iter().next())
            {
                Ok(Some(StepOutcome::UploadBegun { holder })) => Ok(holder),
                Ok(_) => Err(Failure::from_meta(&wrong_reply("begin"), &session.subject)),
                Err(error) => Err(Failure::from_step(&error, &session.subject)),
            };
            sessions.iter().zip(results).map(told).collect()
        }
        Err(error) => {
            sessions.iter().map(|session| Err(Failure::from_meta(&error, &session.subject))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_short_lists_are_less_of_a_burden_than_a_long_one_and_some() {
        assert_eq!([0, 160, 8192, 8192 + 6000].map(burden), [0, 10, 512, 6512]);
    }

    #[test]
    fn lists_count_by_what_they_hold_whichever_half_is_missing() {
        let upload = |ids: usize, sizes: usize| v1::BeginUpload {
            chunks: Some(v1::ChunkList { ids: vec![0; ids].into(), sizes: vec![1; sizes] }),
            ..v1::BeginUpload::default()
        };
        let none = v1::BeginUpload::default();
        assert_eq!(entries(&[upload(64, 2), upload(65, 0), upload(0, 7), none]), 2 + 3 + 7);
    }
}
