//! Commits upload sessions, many at once: each becomes a file, or a new version of one.
//!
//! The order, and what is there after a crash (DESIGN.md, "Metadata"):
//! 1. Manifest nodes stored, pinned for the session's holder: garbage that goes with the session.
//! 2. `UploadHold` in the namespace's group: the content is counted as used; expiry gives it back.
//! 3. `ContentRetain` in the content's group: a reference of the namespace, which the hold vouches for.
//! 4. `FileCommit` in the namespace's group: the file is there, and the session has ended.
//! 5. Only after the answer: if another holder is in force, this session's pins go (they are garbage by then).
//!
//! Where one group has both slots, 2 to 4 are one command. Request ids follow from the client's, so that a repetition
//! repeats each step under its first id, through whichever gateway.

use std::collections::HashMap;
use std::sync::Arc;

use engine::ids::{EntryId, HolderId, RequestId, UploadId};
use engine::manifest::{ContentList, build_tree};
use futures_util::StreamExt;
use futures_util::stream;
use metaraft::api::MetaError;
use metaraft::model::command::{Base, DataStep};
use metaraft::model::outcome::StepOutcome;
use metaraft::model::query::Resolved;
use metaraft::model::row::{EntryRow, UploadRow, UploadState};
use proto::v1;

use crate::auth::Caller;
use crate::convert;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{BATCH_ITEMS_MAX, REQUEST_COMMANDS_MAX};
use crate::meta::{entry_of, wrong_reply};
use crate::path::RemotePath;
use crate::sessions::{Session, session_gone};

/// Steps that one item of a batch may take.
const ITEM_STEPS: u32 = 4;

/// Manifest nodes of one file that are stored at once.
const NODES_AT_ONCE: usize = 4;

/// One item of the batch, checked.
struct Wanted {
    upload: UploadId,
    path: RemotePath,
    base: Base,
    mode: u32,
    mtime_ns: i64,
}

fn parse(upload: &v1::CommitUpload) -> Result<Wanted, Failure> {
    Ok(Wanted {
        upload: convert::upload_id(&upload.upload_id)?,
        path: RemotePath::parse_named(&upload.path)?,
        base: convert::base(upload.base)?,
        mode: convert::mode(upload.mode)?,
        mtime_ns: upload.mtime_ns,
    })
}

/// Commits all of them; each succeeds or fails by itself.
pub(crate) async fn commit(
    core: &Arc<Core>,
    caller: &Caller,
    request: RequestId,
    uploads: &[v1::CommitUpload],
) -> Result<Vec<Result<v1::Entry, Failure>>, Failure> {
    if uploads.len() > BATCH_ITEMS_MAX {
        return Err(Failure::invalid(format!("at most {BATCH_ITEMS_MAX} uploads in one request")));
    }
    let failed = |error: MetaError| Failure::from_meta(&error, "upload");
    let parsed: Vec<Result<Wanted, Failure>> = uploads.iter().map(parse).collect();
    let wanted: Vec<&Wanted> = parsed.iter().filter_map(|parsed| parsed.as_ref().ok()).collect();
    let ids: Vec<UploadId> = wanted.iter().map(|wanted| wanted.upload).collect();
    let paths: Vec<RemotePath> = wanted.iter().map(|wanted| wanted.path.clone()).collect();
    let (rows, resolved) = futures_util::future::try_join(
        core.meta.uploads(caller.namespace, ids.clone()),
        core.meta.resolve(caller.namespace, &paths),
    )
    .await
    .map_err(failed)?;
    let found: HashMap<UploadId, Option<UploadRow>> = ids.into_iter().zip(rows).collect();
    let parents: HashMap<&RemotePath, Resolved> = paths.iter().zip(resolved).collect();

    let items = (0_u32..).zip(parsed).map(|(index, wanted)| {
        let (found, parents) = (&found, &parents);
        async move {
            let wanted = wanted?;
            let row = found.get(&wanted.upload).copied().flatten().ok_or_else(session_gone)?;
            let resolved = parents.get(&wanted.path);
            let item = Item { core, caller, request, first_step: index * ITEM_STEPS };
            let entry = item.commit(&wanted, &row, resolved).await?;
            Ok(convert::entry_to_wire(entry, Some(&wanted.path)))
        }
    });
    Ok(stream::iter(items).buffered(REQUEST_COMMANDS_MAX).collect().await)
}

/// How one item is committed.
struct Item<'a> {
    core: &'a Arc<Core>,
    caller: &'a Caller,
    request: RequestId,
    first_step: u32,
}

impl Item<'_> {
    fn step(&self, number: u32) -> RequestId {
        self.request.step(self.first_step + number)
    }

    async fn commit(
        &self,
        wanted: &Wanted,
        row: &UploadRow,
        resolved: Option<&Resolved>,
    ) -> Result<EntryRow, Failure> {
        let subject = wanted.path.to_string();
        let failed = |error: MetaError| Failure::from_meta(&error, &subject);
        let parent = resolved.and_then(|resolved| resolved.parent);
        let ended = matches!(row.state, UploadState::Committed { .. } | UploadState::Aborted);
        let parent = match parent {
            Some(parent) => parent,
            // A repetition after the folder has gone: only the remembered answer matters.
            None if ended => EntryId(0),
            None => {
                let folder = wanted.path.parent();
                return Err(Failure::not_found(format!("{subject}: there is no folder {folder}")));
            }
        };
        let commit = DataStep::FileCommit {
            namespace: self.caller.namespace,
            upload: row.upload,
            parent,
            name: wanted.path.name().to_owned(),
            base: wanted.base,
            mode: wanted.mode,
            mtime_ns: wanted.mtime_ns,
            device: self.caller.device,
        };
        if ended {
            return self.repeat(row, commit).await.map_err(failed);
        }
        if row.size == 0 {
            let slot = self.caller.namespace.slot();
            let outcomes = self.core.meta.commit(slot, self.step(0), vec![commit]).await.map_err(failed)?;
            return entry_of(outcomes).map_err(failed);
        }
        let session = self.core.sessions.load(&self.core.meta, self.caller.namespace, row).await;
        let session = session.map_err(failed)?;
        self.require_complete(&session, &subject).await?;
        let list = self.store_list(&session).await?;
        let committed = self.commit_content(&session, list, commit).await.map_err(failed)?;
        self.core.sessions.remove(self.caller.namespace, session.upload);
        if let Some(dismissed) = committed.clean_up {
            self.core.clean_up(session, dismissed).await;
        }
        Ok(committed.entry)
    }

    /// The session has ended: gives the remembered answer, if this request ended it.
    async fn repeat(&self, row: &UploadRow, commit: DataStep) -> Result<EntryRow, MetaError> {
        let namespace = self.caller.namespace;
        let fused = row.size == 0 || self.core.meta.together(namespace.slot(), row.content.slot())?;
        let number = if fused { 0 } else { 2 };
        entry_of(self.core.meta.commit(namespace.slot(), self.step(number), vec![commit]).await?)
    }

    async fn require_complete(&self, session: &Session, subject: &str) -> Result<(), Failure> {
        let refreshed = session.refresh_durable(&self.core.meta).await;
        refreshed.map_err(|error| Failure::from_meta(&error, subject))?;
        match session.missing().len() {
            0 => Ok(()),
            missing => {
                let message =
                    format!("{subject}: {missing} chunks have not been sent yet; send them, then commit");
                Err(Failure::precondition("incomplete", message))
            }
        }
    }

    /// The content's list; the nodes under it are stored first, pinned for the session.
    async fn store_list(&self, session: &Session) -> Result<ContentList, Failure> {
        let (list, nodes) =
            build_tree(session.entries.clone()).map_err(|error| Failure::invalid(error.to_string()))?;
        let stored = nodes.into_iter().map(|(node, bytes)| self.core.store_node(node, bytes, session.holder));
        let mut stored = stream::iter(stored).buffered(NODES_AT_ONCE);
        while let Some(stored) = stored.next().await {
            stored?;
        }
        Ok(list)
    }

    async fn commit_content(
        &self,
        session: &Session,
        list: ContentList,
        commit: DataStep,
    ) -> Result<Committed, MetaError> {
        let namespace = self.caller.namespace;
        let hold = DataStep::UploadHold { namespace, upload: session.upload };
        let retain = |generation| DataStep::ContentRetain {
            content: session.content,
            namespace,
            generation,
            holder: session.holder,
            size: session.size,
            list,
        };
        let meta = &self.core.meta;
        if meta.together(namespace.slot(), session.content.slot())? {
            let steps = vec![hold, retain(None), commit];
            let outcomes = meta.commit(namespace.slot(), self.step(0), steps).await?;
            let clean_up = match outcomes.get(1) {
                Some(StepOutcome::Retained { holder }) => clean_up_after(*holder, session),
                _ => return Err(wrong_reply("retain")),
            };
            return Ok(Committed { entry: entry_of(outcomes)?, clean_up });
        }
        let held = meta.step(namespace.slot(), self.step(0), hold).await?;
        let StepOutcome::Held { generation, retained } = held else { return Err(wrong_reply("hold")) };
        let clean_up = if retained {
            Some(false)
        } else {
            let step = retain(Some(generation));
            match meta.step(session.content.slot(), self.step(1), step).await? {
                StepOutcome::Retained { holder } => clean_up_after(holder, session),
                _ => return Err(wrong_reply("retain")),
            }
        };
        let outcomes = meta.commit(namespace.slot(), self.step(2), vec![commit]).await?;
        Ok(Committed { entry: entry_of(outcomes)?, clean_up })
    }
}

/// Nothing to be done if the session's own holder is in force; otherwise it can never be.
fn clean_up_after(in_force: HolderId, session: &Session) -> Option<bool> {
    (in_force != session.holder).then_some(true)
}

struct Committed {
    entry: EntryRow,
    /// Whether the session's pins are to be removed, and if so whether its holder is known to be barred.
    clean_up: Option<bool>,
}
