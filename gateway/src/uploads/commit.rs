//! Commits upload sessions, many at once: each becomes a file, or a new version of one.
//!
//! The order, and what is there after a crash (DESIGN.md, "Metadata"):
//! 1. Manifest nodes stored, pinned for the session's holder: garbage that goes with the session.
//! 2. `UploadHold` in the namespace's group: the content is counted as used; expiry gives it back.
//! 3. `ContentRetain` in the content's group: a reference of the namespace, which the hold vouches for.
//! 4. `FileCommit` in the namespace's group: the file is there, and the session has ended.
//! 5. Only after the answer: if another holder is in force, this session's pins go (they are garbage by then).
//!
//! Where one group has both slots, 2 to 4 are one step after the other in one command. Small sessions go together,
//! as items of few commands (`together`); a large one has commands of its own (`alone`). Which is which depends on the
//! session's list alone. Request ids of commits follow from the client's and the item's place, so that a repetition
//! repeats each under its first id, through whichever gateway; holding and retaining are idempotent in themselves.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use engine::ids::{EntryId, HolderId, UploadId};
use engine::manifest::{ContentList, build_tree};
use futures_util::{StreamExt, stream};
use metaraft::api::MetaError;
use metaraft::model::command::{Base, DataStep};
use metaraft::model::query::Resolved;
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::{EntryRow, UploadRow, UploadState};
use proto::v1;

use crate::auth::Caller;
use crate::convert;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{BATCH_ITEMS_MAX, REQUEST_COMMANDS_MAX, SMALL_UPLOAD_CHUNKS_MAX};
use crate::path::{RemotePath, name_fault, shown};
use crate::sessions::{Extent, Session, session_gone};
use crate::sync::history::Guard;
use crate::uploads::{alone, together};

/// Manifest nodes of one file that are stored at once.
const NODES_AT_ONCE: usize = 4;

/// Where a file is to be, as the client names it.
enum Place {
    Path(RemotePath),
    In(EntryId, String),
}

/// One item of the batch, checked.
struct Wanted {
    upload: UploadId,
    place: Place,
    base: Base,
    mode: u32,
    mtime_ns: i64,
}

/// One item that is ready to be committed, but for its content.
pub(super) struct Ready {
    /// Its place in the request.
    pub index: usize,
    pub subject: String,
    pub row: UploadRow,
    /// The commit itself.
    pub commit: DataStep,
    /// What is held and retained before; `None` for an empty file, and for a session that has ended: then only the
    /// remembered answer matters.
    pub content: Option<ReadyContent>,
    pub path: Option<RemotePath>,
}

/// A session whose chunks are all durable, and the list of its content.
pub(super) struct ReadyContent {
    pub session: Arc<Session>,
    pub list: ContentList,
    /// Whether one group has the slots of the namespace and of the content.
    pub together: bool,
}

/// What a batch is committed for.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub core: &'a Arc<Core>,
    pub caller: &'a Caller,
    pub id: RequestKey,
    /// What refuses commits of a caller who knows another history of the tree.
    pub guard: Option<&'a Guard>,
}

/// A file that is there now.
pub(super) struct Committed {
    pub entry: EntryRow,
    /// Whether the session's pins are to be removed, and if so whether its holder is known to be barred.
    pub clean_up: Option<bool>,
}

fn place(upload: &v1::CommitUpload) -> Result<Place, Failure> {
    if !upload.path.is_empty() || upload.parent_id == 0 {
        return Ok(Place::Path(RemotePath::parse_named(&upload.path)?));
    }
    match name_fault(&upload.name) {
        Some(why) => {
            let message = format!("{}: {why}", shown(&upload.name));
            Err(Failure::new(tonic::Code::InvalidArgument, "bad-path", message))
        }
        None => Ok(Place::In(EntryId(upload.parent_id), upload.name.clone())),
    }
}

fn parse(upload: &v1::CommitUpload) -> Result<Wanted, Failure> {
    Ok(Wanted {
        upload: convert::upload_id(&upload.upload_id)?,
        place: place(upload)?,
        base: convert::base(upload.base)?,
        mode: convert::mode(upload.mode)?,
        mtime_ns: upload.mtime_ns,
    })
}

impl Wanted {
    fn path(&self) -> Option<&RemotePath> {
        match &self.place {
            Place::Path(path) => Some(path),
            Place::In(..) => None,
        }
    }

    fn subject(&self) -> String {
        match &self.place {
            Place::Path(path) => path.to_string(),
            Place::In(_parent, name) => shown(name),
        }
    }
}

/// A session becomes one file: who names it twice asks for its work many times over, and gets one answer at most.
fn check_distinct(parsed: &[Result<Wanted, Failure>]) -> Result<(), Failure> {
    let mut named = HashSet::with_capacity(parsed.len());
    let twice = |wanted: &&Wanted| !named.insert(wanted.upload);
    match parsed.iter().filter_map(|parsed| parsed.as_ref().ok()).find(twice) {
        Some(wanted) => Err(Failure::invalid(format!("{}: its upload is named twice", wanted.subject()))),
        None => Ok(()),
    }
}

/// Commits all of them; each succeeds or fails by itself.
pub(crate) async fn commit(
    request: Request<'_>,
    uploads: &[v1::CommitUpload],
) -> Result<Vec<Result<v1::Entry, Failure>>, Failure> {
    if uploads.len() > BATCH_ITEMS_MAX {
        return Err(Failure::invalid(format!("at most {BATCH_ITEMS_MAX} uploads in one request")));
    }
    let parsed: Vec<Result<Wanted, Failure>> = uploads.iter().map(parse).collect();
    check_distinct(&parsed)?;
    let prepared = prepare_all(request, parsed).await?;
    let mut results: Vec<Option<Result<v1::Entry, Failure>>> = uploads.iter().map(|_upload| None).collect();
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for (index, ready) in prepared.into_iter().enumerate() {
        match ready {
            Ok(ready) if ready.row.chunk_count <= SMALL_UPLOAD_CHUNKS_MAX => small.push(ready),
            Ok(ready) => large.push(ready),
            Err(failure) => results[index] = Some(Err(failure)),
        }
    }
    let (small, large) = futures_util::future::join(
        together::commit_all(request, small),
        stream::iter(large.into_iter().map(|ready| alone::commit(request, ready)))
            .buffer_unordered(REQUEST_COMMANDS_MAX)
            .collect::<Vec<_>>(),
    )
    .await;
    for (ready, committed) in small.into_iter().chain(large) {
        let finished = finish(request, &ready, committed).await;
        results[ready.index] = Some(finished);
    }
    let missing = || Err(Failure::internal("commit", &"an item was not reached"));
    Ok(results.into_iter().map(|result| result.unwrap_or_else(missing)).collect())
}

/// Forgets a session that has ended, and lets go of what it does not need any more.
async fn finish(
    request: Request<'_>,
    ready: &Ready,
    committed: Result<Committed, Failure>,
) -> Result<v1::Entry, Failure> {
    let Committed { entry, clean_up } = committed?;
    if let Some(content) = &ready.content {
        request.core.sessions.remove(request.caller.namespace, ready.row.upload);
        if let Some(dismissed) = clean_up {
            request.core.clean_up(Arc::clone(&content.session), dismissed).await;
        }
    }
    Ok(convert::entry_to_wire(entry, ready.path.as_ref()))
}

/// Looks all items up, and makes what they need before they are committed.
async fn prepare_all(
    request: Request<'_>,
    parsed: Vec<Result<Wanted, Failure>>,
) -> Result<Vec<Result<Ready, Failure>>, Failure> {
    let (core, caller) = (request.core, request.caller);
    let wanted = || parsed.iter().filter_map(|parsed| parsed.as_ref().ok());
    let ids: Vec<UploadId> = wanted().map(|wanted| wanted.upload).collect();
    let paths: Vec<RemotePath> = wanted().filter_map(|wanted| wanted.path().cloned()).collect();
    let (rows, resolved) = futures_util::future::try_join(
        core.meta.uploads(caller.namespace, ids.clone()),
        core.meta.resolve(caller.namespace, &paths),
    )
    .await
    .map_err(|error| Failure::from_meta(&error, "upload"))?;
    let found: HashMap<UploadId, Option<UploadRow>> = ids.into_iter().zip(rows).collect();
    let parents: HashMap<RemotePath, Resolved> = paths.into_iter().zip(resolved).collect();
    let prepared = parsed.into_iter().enumerate().map(|(index, wanted)| {
        let (found, parents) = (&found, &parents);
        async move {
            let wanted = wanted?;
            let row = found.get(&wanted.upload).copied().flatten().ok_or_else(session_gone)?;
            let resolved = wanted.path().and_then(|path| parents.get(path));
            prepare(request, index, wanted, row, resolved).await
        }
    });
    let prepared: Vec<_> = prepared.collect();
    Ok(stream::iter(prepared).buffered(REQUEST_COMMANDS_MAX).collect().await)
}

async fn prepare(
    request: Request<'_>,
    index: usize,
    wanted: Wanted,
    row: UploadRow,
    resolved: Option<&Resolved>,
) -> Result<Ready, Failure> {
    let subject = wanted.subject();
    let ended = matches!(row.state, UploadState::Committed { .. } | UploadState::Aborted);
    let (parent, name, path) = match wanted.place {
        Place::In(parent, name) => (parent, name, None),
        Place::Path(path) => {
            let parent = match resolved.and_then(|resolved| resolved.parent) {
                Some(parent) => parent,
                // A repetition after the folder has gone: only the remembered answer matters.
                None if ended => EntryId(0),
                None => {
                    let folder = path.parent();
                    return Err(Failure::not_found(format!("{subject}: there is no folder {folder}")));
                }
            };
            (parent, path.name().to_owned(), Some(path))
        }
    };
    let commit = DataStep::FileCommit {
        namespace: request.caller.namespace,
        upload: row.upload,
        parent,
        name,
        base: wanted.base,
        mode: wanted.mode,
        mtime_ns: wanted.mtime_ns,
        device: request.caller.device,
    };
    let content =
        if ended || row.size == 0 { None } else { Some(ready_content(request, &row, &subject).await?) };
    Ok(Ready { index, subject, row, commit, content, path })
}

async fn ready_content(
    request: Request<'_>,
    row: &UploadRow,
    subject: &str,
) -> Result<ReadyContent, Failure> {
    let (core, namespace) = (request.core, request.caller.namespace);
    let failed = |error: MetaError| Failure::from_meta(&error, subject);
    let session = core.sessions.load(&core.meta, namespace, row).await.map_err(failed)?;
    session.refresh_durable(&core.meta, Extent::UntilMissing).await.map_err(failed)?;
    if !session.is_complete() {
        let message = format!("{subject}: some of its chunks have not been sent yet; send them, then commit");
        return Err(Failure::precondition("incomplete", message));
    }
    let list = store_list(core, &session).await?;
    let together = core.meta.together(namespace.slot(), session.content.slot()).map_err(failed)?;
    Ok(ReadyContent { session, list, together })
}

/// The content's list; the nodes under it are stored first, pinned for the session.
async fn store_list(core: &Arc<Core>, session: &Session) -> Result<ContentList, Failure> {
    let (list, nodes) =
        build_tree(session.entries.clone()).map_err(|error| Failure::invalid(error.to_string()))?;
    let stored = nodes.into_iter().map(|(node, bytes)| core.store_node(node, bytes, session.holder));
    let mut stored = stream::iter(stored).buffered(NODES_AT_ONCE);
    while let Some(stored) = stored.next().await {
        stored?;
    }
    Ok(list)
}

impl ReadyContent {
    /// Takes the content's reference for the namespace; `generation` as the hold answered, or `None` where the hold
    /// is a step before.
    pub(super) fn retain(&self, request: Request<'_>, generation: Option<u64>) -> DataStep {
        DataStep::ContentRetain {
            content: self.session.content,
            namespace: request.caller.namespace,
            generation,
            holder: self.session.holder,
            size: self.session.size,
            list: self.list.clone(),
        }
    }

    pub(super) fn hold(&self, request: Request<'_>) -> DataStep {
        DataStep::UploadHold { namespace: request.caller.namespace, upload: self.session.upload }
    }

    /// Nothing to be done if the session's own holder is in force; otherwise it can never be.
    pub(super) fn clean_up_after(&self, in_force: HolderId) -> Option<bool> {
        (in_force != self.session.holder).then_some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_named_once_in_a_request() {
        let item = |upload: u8, path: &str| {
            parse(&v1::CommitUpload {
                upload_id: vec![upload; 16].into(),
                path: path.to_owned(),
                base: Some(v1::Base { base: Some(v1::base::Base::Any(true)) }),
                ..v1::CommitUpload::default()
            })
        };
        check_distinct(&[item(1, "/a"), item(2, "/a"), item(3, "bad")]).unwrap();
        for second in ["/a", "/b"] {
            let failure = check_distinct(&[item(1, "/a"), item(2, "/a"), item(1, second)]).unwrap_err();
            assert_eq!((failure.code, failure.reason), (tonic::Code::InvalidArgument, "invalid"));
        }
    }
}
