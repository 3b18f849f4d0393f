//! Copies a file, or a folder with all below it, without moving a byte of content.
//!
//! A folder is copied entry by entry: after a crash, a part of the copy is there, whole files all. Each step's request
//! id follows from the client's and from where in the copied tree the entry is, so that a repetition goes on where the
//! first attempt ended. One that finds nothing at its source gets the first answer if that was a file or symlink, as in
//! [`super::change`].

use engine::hash::sha256_parts;
use engine::ids::EntryId;
use futures_util::{StreamExt, stream};
use metaraft::api::MetaError;
use metaraft::model::command::{DataStep, OnExisting};
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::{EntryKind, EntryRow};
use proto::v1;

use crate::auth::Caller;
use crate::convert;
use crate::core::{Core, found};
use crate::entries::change::{NO_ENTRY, is_about_target, parent_of};
use crate::failure::Failure;
use crate::limits::{COPY_COMMANDS_AT_ONCE_MAX, PAGE_ENTRIES};
use crate::meta::{entry_of, wrong_reply};
use crate::path::RemotePath;

/// Folders that wait to be walked; a tree with more in one folder is copied in parts.
const FOLDERS_WAITING_MAX: usize = 1_000_000;

/// The step for one place in the copied tree.
fn step_of(request: RequestKey, relative: &[String]) -> RequestKey {
    let mut parts: Vec<&[u8]> = vec![b"keepstone copy\0"];
    parts.extend(relative.iter().flat_map(|name| [name.as_bytes(), b"/".as_slice()]));
    let digest = sha256_parts(&parts);
    let [a, b, c, d, e, f, g, h, ..] = digest;
    request.step(u32::from_be_bytes([a, b, c, d])).step(u32::from_be_bytes([e, f, g, h]))
}

struct Copy<'a> {
    core: &'a Core,
    caller: &'a Caller,
    request: RequestKey,
    from: RemotePath,
    to: RemotePath,
    files: u64,
    bytes: u64,
}

/// Copies what is at `from` to exactly `to`.
pub(crate) async fn copy(
    core: &Core,
    caller: &Caller,
    request: RequestKey,
    message: &v1::CopyEntryRequest,
) -> Result<v1::CopyEntryResponse, Failure> {
    let from = RemotePath::parse_named(&message.from)?;
    let to = RemotePath::parse_named(&message.to)?;
    check_places(&from, &to, message.replace)?;
    let resolved = core.meta.resolve(caller.namespace, &[from.clone(), to.clone()]).await;
    let resolved = resolved.map_err(|error| Failure::from_meta(&error, &from.to_string()))?;
    let [from_resolved, to_resolved] = resolved.as_slice() else {
        return Err(Failure::from_meta(&wrong_reply("resolve"), "copy"));
    };
    let source = found(&from, from_resolved);
    let parent = parent_of(&to, to_resolved);
    let mut copy = Copy { core, caller, request, from, to: to.clone(), files: 0, bytes: 0 };
    let source = match source {
        Ok(source) => source,
        Err(nowhere) => {
            let row = copy.remembered(parent.unwrap_or(NO_ENTRY), message.replace, nowhere).await?;
            return Ok(copy.response(row));
        }
    };
    let parent = parent?;
    let row = if source.kind == EntryKind::Folder {
        let replaced = found(&to, to_resolved).ok().filter(|_row| message.replace);
        copy.folder(&source, parent, replaced).await?
    } else {
        copy.one(&source, parent, &[], message.replace).await?
    };
    Ok(copy.response(row))
}

fn check_places(from: &RemotePath, to: &RemotePath, replace: bool) -> Result<(), Failure> {
    if to == from {
        return Err(Failure::invalid(format!("{from}: source and target of the copy are the same")));
    }
    if to.is_within(from) {
        let message = format!("{from}: a folder cannot be copied into itself ({to})");
        return Err(Failure::precondition("cycle", message));
    }
    if replace && from.is_within(to) {
        let message = format!("{to}: it holds what is to be copied ({from}), so it cannot be replaced by it");
        return Err(Failure::precondition("cycle", message));
    }
    Ok(())
}

/// A folder of the copy: where it was copied from, where it is now, and its place in the copied tree.
struct CopiedFolder {
    source: EntryId,
    target: EntryId,
    relative: Vec<String>,
}

impl Copy<'_> {
    /// For messages: where in the copy something failed.
    fn failed(&self, error: &MetaError, relative: &[String]) -> Failure {
        let base = if is_about_target(error) { &self.to } else { &self.from };
        let at = relative.iter().fold(base.clone(), |path, name| path.join(name));
        Failure::from_meta(error, &at.to_string())
    }

    fn count(&mut self, row: &EntryRow) {
        if let EntryKind::File(state) = &row.kind {
            self.files += 1;
            self.bytes += state.size;
        }
    }

    fn response(&self, row: EntryRow) -> v1::CopyEntryResponse {
        let entry = Some(convert::entry_to_wire(row, Some(&self.to)));
        v1::CopyEntryResponse { entry, files: self.files, bytes: self.bytes }
    }

    /// What a first request has copied from where now is nothing. Of a folder that cannot be told: perhaps only a part
    /// of it was copied.
    async fn remembered(
        &mut self,
        parent: EntryId,
        replace: bool,
        nowhere: Failure,
    ) -> Result<EntryRow, Failure> {
        let name = self.to.name().to_owned();
        let row = self.propose(self.copy_of(NO_ENTRY, parent, name, replace), &[]).await?;
        if row.kind == EntryKind::Folder {
            return Err(nowhere);
        }
        self.count(&row);
        Ok(row)
    }

    fn copy_of(&self, entry: EntryId, to_parent: EntryId, to_name: String, replace: bool) -> DataStep {
        let (namespace, device) = (self.caller.namespace, self.caller.device);
        DataStep::EntryCopy { namespace, entry, to_parent, to_name, replace, device }
    }

    /// Copies a file or symlink.
    async fn one(
        &mut self,
        source: &EntryRow,
        parent: EntryId,
        relative: &[String],
        replace: bool,
    ) -> Result<EntryRow, Failure> {
        let row = self.propose_one(source, parent, relative, replace).await?;
        self.count(&row);
        Ok(row)
    }

    async fn propose_one(
        &self,
        source: &EntryRow,
        parent: EntryId,
        relative: &[String],
        replace: bool,
    ) -> Result<EntryRow, Failure> {
        let name = relative.last().map_or_else(|| self.to.name(), String::as_str).to_owned();
        let step = self.copy_of(source.entry, parent, name, replace);
        self.propose(step, relative).await
    }

    async fn make_folder(
        &self,
        source: &EntryRow,
        parent: EntryId,
        relative: &[String],
    ) -> Result<EntryRow, Failure> {
        let step = DataStep::EntryCreate {
            namespace: self.caller.namespace,
            parent,
            name: relative.last().map_or_else(|| self.to.name(), String::as_str).to_owned(),
            kind: EntryKind::Folder,
            mode: source.mode,
            mtime_ns: source.mtime_ns,
            existing: OnExisting::Refuse,
        };
        self.propose(step, relative).await
    }

    async fn propose(&self, step: DataStep, relative: &[String]) -> Result<EntryRow, Failure> {
        let slot = self.caller.namespace.slot();
        let made = self.core.meta.commit(slot, step_of(self.request, relative), vec![step]).await;
        made.and_then(entry_of).map_err(|error| self.failed(&error, relative))
    }

    /// Copies a folder and all below it.
    async fn folder(
        &mut self,
        source: &EntryRow,
        parent: EntryId,
        replaced: Option<EntryRow>,
    ) -> Result<EntryRow, Failure> {
        if let Some(replaced) = replaced {
            self.trash_target(replaced).await?;
        }
        let top = self.make_folder(source, parent, &[]).await?;
        let mut waiting =
            vec![CopiedFolder { source: source.entry, target: top.entry, relative: Vec::new() }];
        while let Some(folder) = waiting.pop() {
            self.children(&folder, &mut waiting).await?;
            if waiting.len() > FOLDERS_WAITING_MAX {
                return Err(Failure::invalid(format!("{}: too many folders to copy at once", self.from)));
            }
        }
        Ok(top)
    }

    /// What is at the target goes to the trash first; in a repetition it is the copy itself, which stays.
    async fn trash_target(&self, replaced: EntryRow) -> Result<(), Failure> {
        let step = DataStep::EntryDelete {
            namespace: self.caller.namespace,
            entry: replaced.entry,
            parent: replaced.parent,
            name: replaced.name,
            recursive: true,
        };
        // One id for the whole request: a remembered outcome means that this was done before.
        let request = self.request.step(u32::MAX);
        let done = self.core.meta.step(self.caller.namespace.slot(), request, step).await;
        done.map(drop).map_err(|error| self.failed(&error, &[]))
    }

    /// Copies the children of one folder, page by page.
    async fn children(
        &mut self,
        folder: &CopiedFolder,
        waiting: &mut Vec<CopiedFolder>,
    ) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let page = self
                .core
                .meta
                .children(self.caller.namespace, folder.source, after.clone(), PAGE_ENTRIES)
                .await;
            let (children, more) = page.map_err(|error| self.failed(&error, &folder.relative))?;
            after = children.last().map(|child| child.name.clone());
            let this = &*self;
            let work: Vec<_> = children
                .iter()
                .map(|child| async move {
                    let mut relative = folder.relative.clone();
                    relative.push(child.name.clone());
                    let row = if child.kind == EntryKind::Folder {
                        this.make_folder(child, folder.target, &relative).await?
                    } else {
                        this.propose_one(child, folder.target, &relative, false).await?
                    };
                    Ok::<_, Failure>((child.entry, row, relative))
                })
                .collect();
            let copied: Vec<Result<_, Failure>> =
                stream::iter(work).buffered(COPY_COMMANDS_AT_ONCE_MAX).collect().await;
            for copied in copied {
                let (source, row, relative) = copied?;
                self.count(&row);
                if row.kind == EntryKind::Folder {
                    waiting.push(CopiedFolder { source, target: row.entry, relative });
                }
            }
            if !more || after.is_none() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RemotePath {
        RemotePath::parse(text).unwrap()
    }

    #[test]
    fn a_folder_is_not_copied_into_itself_nor_over_what_holds_it() {
        assert!(check_places(&path("/a"), &path("/a"), false).is_err());
        assert!(check_places(&path("/a"), &path("/a/b"), false).is_err());
        assert!(check_places(&path("/a/b"), &path("/a"), true).is_err());
        assert!(check_places(&path("/a/b"), &path("/a"), false).is_ok(), "refused later, as existing");
        assert!(check_places(&path("/a"), &path("/ab"), true).is_ok());
    }

    #[test]
    fn steps_differ_by_place_and_repeat() {
        let request = RequestKey::from(engine::ids::RequestId::new(1, [1; 16]));
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(step_of(request, &names(&["a", "b"])), step_of(request, &names(&["a", "b"])));
        assert_ne!(step_of(request, &names(&["a", "b"])), step_of(request, &names(&["ab"])));
        assert_ne!(step_of(request, &names(&["a", "b"])), step_of(request, &names(&["b", "a"])));
    }
}
