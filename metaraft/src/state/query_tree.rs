//! Queries about a namespace: its tree, versions, trash and sessions.

use engine::ids::{ContentId, EntryId, NamespaceId, UploadId, VersionId};
use engine::manifest::ManifestEntry;

use super::keys;
use super::query::{ROW_BYTES, Reader, Refusal, check_count, first_answers};
use super::rows::{PlaceRow, UseRow};
use super::txn::decode_row;
use crate::kv::KeyRange;
use crate::model::outcome::Release;
use crate::model::query::{Query, Reply, Resolved};
use crate::model::row::{EntryKind, EntryRow, NamespaceRow, ROOT_ENTRY, TrashRow, VersionRow};
use crate::model::{DEPTH_MAX, QUERY_ITEMS_MAX};

/// How far up a path is followed; see `tree`.
pub(super) const PATH_NAMES_MAX: u32 = 16 * DEPTH_MAX;

/// Bytes of a name on a path, but for the name itself, about.
const PATH_NAME_BYTES: usize = 24;

/// Bytes of an entry, about.
pub(super) fn entry_bytes(row: &EntryRow) -> usize {
    let target = match &row.kind {
        EntryKind::Symlink(target) => target.len(),
        EntryKind::File(_) | EntryKind::Folder => 0,
    };
    ROW_BYTES + row.name.len() + target
}

pub(super) fn page(count_max: u32) -> usize {
    count_max.min(QUERY_ITEMS_MAX) as usize
}

impl Reader<'_> {
    pub(super) fn answer_tree(&self, query: Query) -> Result<Reply, Refusal> {
        match query {
            Query::Namespace { namespace } => {
                self.own(namespace.slot())?;
                Ok(Reply::Namespace(self.get(&keys::namespace(namespace))?))
            }
            Query::Resolve { namespace, paths } => self.resolve(namespace, &paths),
            Query::Children { namespace, parent, after, count_max } => {
                self.children(namespace, parent, after.as_deref(), page(count_max))
            }
            Query::Versions { namespace, entry } => self.versions(namespace, entry),
            Query::Version { namespace, entry, version } => self.version(namespace, entry, version),
            Query::Trash { namespace, after, count_max } => self.trash(namespace, after, page(count_max)),
            Query::Paths { namespace, entries } => self.paths(namespace, &entries),
            Query::Uploads { namespace, uploads } => self.uploads(namespace, &uploads),
            Query::UploadsOpen { namespace, count_max } => self.uploads_open(namespace, page(count_max)),
            Query::UploadPart { namespace, upload, part } => self.upload_part(namespace, upload, part),
            Query::NamespaceHolds { namespace, contents } => self.namespace_holds(namespace, &contents),
            Query::Releases { namespace, count_max } => self.releases(namespace, page(count_max)),
            query => self.answer_files(query),
        }
    }

    pub(super) fn namespace(&self, namespace: NamespaceId) -> Result<NamespaceRow, Refusal> {
        self.own(namespace.slot())?;
        self.get(&keys::namespace(namespace))?.ok_or(Refusal::NoNamespace)
    }

    pub(super) fn entry(&self, namespace: NamespaceId, entry: EntryId) -> Result<Option<EntryRow>, Refusal> {
        match self.get(&keys::place(namespace, entry))? {
            Some(PlaceRow::In(parent, name)) => self.get(&keys::entry(namespace, parent, &name)),
            Some(PlaceRow::Trashed(_)) | None => Ok(None),
        }
    }

    fn resolve(&self, namespace: NamespaceId, paths: &[Vec<String>]) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        let root = self.entry(namespace, ROOT_ENTRY)?.ok_or(Refusal::NotUnderstood)?;
        let resolved = first_answers(paths, |path| {
            check_count(path.len())?;
            let resolved = self.resolve_one(namespace, &root, path)?;
            let bytes = entry_bytes(&resolved.last) + path.len() * ROW_BYTES;
            Ok((resolved, bytes))
        })?;
        Ok(Reply::Resolved(resolved))
    }

    pub(super) fn resolve_one(
        &self,
        namespace: NamespaceId,
        root: &EntryRow,
        path: &[String],
    ) -> Result<Resolved, Refusal> {
        let mut last = root.clone();
        let mut parent = Some(root.entry);
        let mut found = 0;
        for name in path {
            parent = (last.kind == EntryKind::Folder).then_some(last.entry);
            let Some(folder) = parent else { break };
            let next = if name.is_empty() { None } else { self.get(&keys::entry(namespace, folder, name))? };
            let Some(next) = next else { break };
            last = next;
            found += 1;
        }
        // The folder of a name in the middle is not the folder of the last one.
        let reached = found as usize + 1 >= path.len();
        Ok(Resolved { found, last, parent: parent.filter(|_| reached) })
    }

    fn children(
        &self,
        namespace: NamespaceId,
        parent: EntryId,
        after: Option<&str>,
        count_max: usize,
    ) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        let prefix = keys::children(namespace, parent);
        let range = match after {
            Some(name) => KeyRange::prefix_after(&prefix, &keys::entry(namespace, parent, name)),
            None => KeyRange::prefix(&prefix),
        };
        let (rows, more) = self.scan_page(&range, count_max);
        let entries = rows.iter().map(|(key, bytes)| decode_row(key, bytes));
        Ok(Reply::Entries { entries: entries.collect::<Result<_, _>>()?, more })
    }

    fn versions(&self, namespace: NamespaceId, entry: EntryId) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        let range = KeyRange::prefix(&keys::versions(namespace, entry));
        let rows = self.scan_reverse(&range, QUERY_ITEMS_MAX as usize);
        let versions = rows.iter().map(|(key, bytes)| decode_row::<VersionRow>(key, bytes));
        Ok(Reply::Versions(versions.collect::<Result<_, _>>()?))
    }

    fn version(&self, namespace: NamespaceId, entry: EntryId, version: VersionId) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        Ok(Reply::Version(self.get(&keys::version(namespace, entry, version))?))
    }

    fn trash(&self, namespace: NamespaceId, after: u64, count_max: usize) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        let range = KeyRange::prefix_after(&keys::trash_all(namespace), &keys::trash(namespace, after));
        let (rows, more) = self.scan_page(&range, count_max);
        let items = rows.iter().map(|(key, bytes)| decode_row::<TrashRow>(key, bytes));
        Ok(Reply::Trash { items: items.collect::<Result<_, _>>()?, more })
    }

    fn paths(&self, namespace: NamespaceId, entries: &[EntryId]) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        // What was deleted together was in one folder: often the same is asked for again and again.
        let mut latest: Option<(EntryId, Option<Vec<String>>)> = None;
        let paths = first_answers(entries, |entry| {
            let path = match latest.take() {
                Some((known, path)) if known == *entry => path,
                _ => self.path(namespace, *entry)?,
            };
            latest = Some((*entry, path.clone()));
            let names = path.iter().flatten().map(|name| name.len() + PATH_NAME_BYTES);
            let bytes = names.sum::<usize>().max(PATH_NAME_BYTES);
            Ok((path, bytes))
        })?;
        Ok(Reply::Paths(paths))
    }

    fn path(&self, namespace: NamespaceId, entry: EntryId) -> Result<Option<Vec<String>>, Refusal> {
        let mut names = Vec::new();
        let mut at = entry;
        for _ in 0..=PATH_NAMES_MAX {
            if at == ROOT_ENTRY {
                names.reverse();
                return Ok(Some(names));
            }
            match self.get(&keys::place(namespace, at))? {
                Some(PlaceRow::In(parent, name)) => {
                    names.push(name);
                    at = parent;
                }
                Some(PlaceRow::Trashed(_)) | None => return Ok(None),
            }
        }
        Ok(None)
    }

    fn uploads(&self, namespace: NamespaceId, uploads: &[UploadId]) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        check_count(uploads.len())?;
        let rows = uploads.iter().map(|upload| self.get(&keys::upload(namespace, *upload)));
        Ok(Reply::Uploads(rows.collect::<Result<_, _>>()?))
    }

    fn uploads_open(&self, namespace: NamespaceId, count_max: usize) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        let open = self.scan(&KeyRange::prefix(&keys::uploads_open(namespace)), count_max);
        let rows = open.iter().filter_map(|(key, _)| {
            let upload = keys::open_upload(key)?;
            self.get(&keys::upload(namespace, upload)).transpose()
        });
        Ok(Reply::UploadsOpen(rows.collect::<Result<_, _>>()?))
    }

    fn upload_part(&self, namespace: NamespaceId, upload: UploadId, part: u64) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        let entries: Option<Vec<ManifestEntry>> = self.get(&keys::upload_part(namespace, upload, part))?;
        Ok(Reply::UploadPart(entries.unwrap_or_default()))
    }

    fn namespace_holds(&self, namespace: NamespaceId, contents: &[ContentId]) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        check_count(contents.len())?;
        let mut held = Vec::with_capacity(contents.len());
        for content in contents {
            // A session's hold alone proves nothing: only a commit retains.
            let row: Option<UseRow> = self.get(&keys::content_use(namespace, *content))?;
            held.push(row.is_some_and(|row| row.retained));
        }
        Ok(Reply::Flags(held))
    }

    fn releases(&self, namespace: NamespaceId, count_max: usize) -> Result<Reply, Refusal> {
        self.namespace(namespace)?;
        let rows = self.scan(&KeyRange::prefix(&keys::releases(namespace)), count_max);
        let releases = rows.iter().map(|(key, _)| {
            let (content, generation) = keys::release_parts(key).ok_or(Refusal::NotUnderstood)?;
            Ok(Release { content, generation })
        });
        Ok(Reply::Releases(releases.collect::<Result<_, Refusal>>()?))
    }
}
