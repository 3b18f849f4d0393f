//! The server's side of a tree that is being put: makes its folders and symlinks, and finds what its files replace.
//!
//! Invariants:
//! - Of listings, only those that the walk can still need are held, and none above [`LISTED_ENTRIES_MAX`].
//! - A file below a folder that could not be made is reported, and not tried.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use engine::cutter::Cutter;
use engine::ids::ChunkId;
use futures_util::StreamExt;
use futures_util::stream;
use proto::v1;

use super::Context;
use super::batch::Unit;
use super::unchanged::ServerFile;
use super::walk::{LocalFile, LocalFolder, LocalSymlink};
use crate::call_error::CallError;
use crate::path::RemotePath;
use crate::wire;

/// Larger folders are not listed: their files are looked up one by one.
const LISTED_ENTRIES_MAX: usize = 50_000;
/// Folders listed at once.
const LISTINGS_MAX: usize = 8;
/// Files looked up at once.
const LOOKUPS_MAX: usize = 16;
/// A symlink's permission bits, which mean nothing.
const SYMLINK_MODE: u32 = 0o777;

/// A file to be put, and what it replaces.
#[derive(Debug)]
pub(crate) struct PlannedFile {
    pub(crate) file: LocalFile,
    pub(crate) base: v1::base::Base,
    /// How the version that it replaces was cut.
    pub(crate) previous: Option<Cutter>,
    /// That version itself.
    pub(crate) on_server: Option<ServerFile>,
}

/// What is known of a file's path on the server.
#[derive(Clone, Copy, Debug)]
struct Present {
    kind: v1::EntryKind,
    version: u64,
    cutter: Option<Cutter>,
    file: ServerFile,
    /// Of a symlink: of its target, time and permission bits.
    symlink: Option<[u8; 32]>,
}

impl Present {
    fn of(entry: &v1::Entry) -> Self {
        let symlink = (entry.kind() == v1::EntryKind::Symlink)
            .then(|| symlink_digest(&entry.symlink_target, entry.mode, entry.mtime_ns));
        Self {
            kind: entry.kind(),
            version: entry.version,
            cutter: wire::cutter_from_wire(entry.cutter),
            file: ServerFile::of(entry),
            symlink,
        }
    }
}

/// Listings may be long and targets too: what is compared is a digest.
fn symlink_digest(target: &[u8], mode: u32, mtime_ns: i64) -> [u8; 32] {
    let attributes = [mode.to_be_bytes().as_slice(), &mtime_ns.to_be_bytes()].concat();
    *ChunkId::of(&[&attributes, target].concat()).as_bytes()
}

#[derive(Debug)]
enum Folder {
    /// Made by this upload: nothing was in it.
    New,
    Listed(HashMap<String, Present>),
    /// Too large to list.
    Unlisted,
}

/// What is known of the server's tree where the walk is.
#[derive(Debug, Default)]
pub(crate) struct RemoteTree {
    folders: HashMap<RemotePath, Folder>,
    /// The folder that could not be made and that the walk is still below of, with all such since then.
    broken: Vec<RemotePath>,
}

impl RemoteTree {
    /// Makes the unit's folders and symlinks and looks up its files. Gives small and large files to be put.
    pub(crate) async fn prepare(
        &mut self,
        context: &Context,
        unit: Unit,
    ) -> (Vec<PlannedFile>, Vec<PlannedFile>) {
        let last_folder = unit.folders.last().map(|folder| folder.remote.clone());
        self.make_folders(context, unit.folders).await;
        let symlinks =
            unit.symlinks.into_iter().filter(|link| self.usable(context, &link.local, &link.remote));
        let symlinks: Vec<_> = symlinks.collect();
        let mut changed = Vec::new();
        for link in symlinks {
            match self.has_symlink(context, &link).await {
                Ok(true) => context.report().symlinks += 1,
                // Making it says what is wrong.
                Ok(false) | Err(_) => changed.push(link),
            }
        }
        make_symlinks(context, changed).await;
        let small = self.plan(context, unit.small).await;
        let large = self.plan(context, unit.large).await;
        // The walk is in the last folder it gave, or still in the one of the files before that.
        if let Some(last) = last_folder {
            self.folders.retain(|path, _| *path == last);
        }
        (small, large)
    }

    fn usable(&self, context: &Context, local: &Path, remote: &RemotePath) -> bool {
        let below = |folder: &RemotePath| {
            remote.as_str().strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        let usable = !self.broken.iter().any(below);
        if !usable {
            context.fail(local, "the folder that it goes into could not be made");
        }
        usable
    }

    async fn make_folders(&mut self, context: &Context, folders: Vec<LocalFolder>) {
        if folders.is_empty() {
            return;
        }
        let wanted = folders.iter().filter(|folder| !folder.remote.is_root()).map(|folder| v1::CreateEntry {
            path: folder.remote.to_string(),
            kind: v1::EntryKind::Folder.into(),
            symlink_target: Bytes::new(),
            mode: folder.mode,
            mtime_ns: folder.mtime_ns,
            parents: false,
            replace: false,
        });
        let results = match context.api.create_entries(wanted.collect()).await {
            Ok(results) => results,
            Err(error) => {
                for folder in folders {
                    context.fail_call(&folder.local, &error);
                    self.broken.push(folder.remote);
                }
                return;
            }
        };
        let mut results = results.into_iter();
        let mut existing = Vec::new();
        for folder in folders {
            let result = if folder.remote.is_root() { None } else { results.next() };
            match result {
                Some(Ok(_entry)) => {
                    context.report().folders += 1;
                    self.folders.insert(folder.remote, Folder::New);
                }
                Some(Err(error)) if !error.is_already_exists() => {
                    if self.usable(context, &folder.local, &folder.remote) {
                        context.fail_call(&folder.local, &error);
                        self.broken.push(folder.remote);
                    }
                }
                Some(Err(_)) | None => existing.push(folder),
            }
        }
        self.take_existing(context, existing).await;
    }

    /// Lists folders that were there before, and gives them the local ones' permission bits and times.
    async fn take_existing(&mut self, context: &Context, existing: Vec<LocalFolder>) {
        let listed: Vec<_> = stream::iter(existing)
            .map(|folder| async {
                let listing = list(context, &folder.remote).await;
                (folder, listing)
            })
            .buffered(LISTINGS_MAX)
            .collect()
            .await;
        let mut attributes = Vec::new();
        let mut names = Vec::new();
        for (folder, listing) in listed {
            match listing {
                Ok(listing) => {
                    context.report().folders += 1;
                    if !folder.remote.is_root() {
                        attributes.push(v1::SetAttributes {
                            path: folder.remote.to_string(),
                            mode: folder.mode,
                            mtime_ns: folder.mtime_ns,
                        });
                        names.push(folder.local);
                    }
                    self.folders.insert(folder.remote, listing);
                }
                Err(error) => {
                    context.fail_call(&folder.local, &error);
                    self.broken.push(folder.remote);
                }
            }
        }
        if attributes.is_empty() {
            return;
        }
        match context.api.set_attributes(attributes).await {
            Ok(results) => {
                for (local, result) in names.iter().zip(results) {
                    if let Err(error) = result {
                        context.fail_call(local, &error);
                    }
                }
            }
            Err(error) => names.iter().for_each(|local| context.fail_call(local, &error)),
        }
    }

    async fn plan(&self, context: &Context, files: Vec<LocalFile>) -> Vec<PlannedFile> {
        let found: Vec<_> = stream::iter(files)
            .filter(|file| std::future::ready(self.usable(context, &file.local, &file.remote)))
            .map(|file| async {
                let present = self.present(context, &file.remote, file.in_walked_folder).await;
                (file, present)
            })
            .buffered(LOOKUPS_MAX)
            .collect()
            .await;
        found
            .into_iter()
            .filter_map(|(file, present)| match present.map(|present| (plan_file(&file, present), present)) {
                Ok((Ok((base, previous)), present)) => {
                    let on_server = present.map(|present| present.file);
                    Some(PlannedFile { file, base, previous, on_server })
                }
                Ok((Err(reason), _present)) => {
                    context.fail(&file.local, reason);
                    None
                }
                Err(error) => {
                    context.fail_call(&file.local, &error);
                    None
                }
            })
            .collect()
    }

    async fn has_symlink(&self, context: &Context, link: &LocalSymlink) -> Result<bool, CallError> {
        let folder = link.remote.parent().and_then(|folder| self.folders.get(&folder));
        if matches!(folder, Some(Folder::New | Folder::Unlisted)) {
            // Not worth a call for each.
            return Ok(false);
        }
        let present = self.present(context, &link.remote, true).await?;
        let here = symlink_digest(&link.target, SYMLINK_MODE, link.mtime_ns);
        Ok(present.is_some_and(|present| present.symlink == Some(here)))
    }

    async fn present(
        &self,
        context: &Context,
        remote: &RemotePath,
        in_walked_folder: bool,
    ) -> Result<Option<Present>, CallError> {
        let folder = in_walked_folder.then(|| remote.parent()).flatten();
        match folder.and_then(|folder| self.folders.get(&folder)) {
            Some(Folder::New) => Ok(None),
            Some(Folder::Listed(entries)) => Ok(remote.name().and_then(|name| entries.get(name)).copied()),
            Some(Folder::Unlisted) | None => {
                Ok(context.api.find_entry(remote).await?.as_ref().map(Present::of))
            }
        }
    }
}

fn plan_file(file: &LocalFile, present: Option<Present>) -> Result<(v1::base::Base, Option<Cutter>), String> {
    match present {
        None => Ok((v1::base::Base::Absent(true), None)),
        Some(present) => match present.kind {
            v1::EntryKind::File => Ok((v1::base::Base::Version(present.version), present.cutter)),
            v1::EntryKind::Folder => Err(format!("{} is a folder on the server", file.remote)),
            v1::EntryKind::Symlink | v1::EntryKind::Unspecified => {
                Err(format!("{} is a symlink on the server: remove it there first", file.remote))
            }
        },
    }
}

async fn list(context: &Context, path: &RemotePath) -> Result<Folder, CallError> {
    let mut entries = HashMap::new();
    let mut after = String::new();
    loop {
        let (page, more) = context.api.list_folder_page(path, &after).await?;
        if let Some(last) = page.last() {
            after.clone_from(&last.name);
        }
        entries.extend(page.into_iter().map(|entry| (entry.name.clone(), Present::of(&entry))));
        if !more {
            return Ok(Folder::Listed(entries));
        }
        if entries.len() > LISTED_ENTRIES_MAX {
            return Ok(Folder::Unlisted);
        }
    }
}

async fn make_symlinks(context: &Context, symlinks: Vec<LocalSymlink>) {
    if symlinks.is_empty() {
        return;
    }
    let wanted = symlinks.iter().map(|link| v1::CreateEntry {
        path: link.remote.to_string(),
        kind: v1::EntryKind::Symlink.into(),
        symlink_target: Bytes::copy_from_slice(&link.target),
        mode: SYMLINK_MODE,
        mtime_ns: link.mtime_ns,
        parents: false,
        replace: true,
    });
    match context.api.create_entries(wanted.collect()).await {
        Ok(results) => {
            for (link, result) in symlinks.iter().zip(results) {
                match result {
                    Ok(_entry) => context.report().symlinks += 1,
                    Err(error) => context.fail_call(&link.local, &error),
                }
            }
        }
        Err(error) => symlinks.iter().for_each(|link| context.fail_call(&link.local, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> LocalFile {
        LocalFile {
            local: "f".into(),
            remote: RemotePath::parse("/d/f").unwrap(),
            size: 1,
            in_walked_folder: true,
        }
    }

    #[test]
    fn a_file_replaces_only_the_version_that_was_seen() {
        let present = |kind: v1::EntryKind| {
            let entry = v1::Entry {
                kind: kind.into(),
                version: 7,
                cutter: v1::Cutter::Cdc1m.into(),
                ..v1::Entry::default()
            };
            Some(Present::of(&entry))
        };
        assert_eq!(plan_file(&file(), None), Ok((v1::base::Base::Absent(true), None)));
        assert_eq!(
            plan_file(&file(), present(v1::EntryKind::File)),
            Ok((v1::base::Base::Version(7), Some(Cutter::Cdc1m)))
        );
        assert!(plan_file(&file(), present(v1::EntryKind::Folder)).is_err());
        assert!(plan_file(&file(), present(v1::EntryKind::Symlink)).is_err());
    }
}
