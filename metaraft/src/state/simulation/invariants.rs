//! What must hold after every command, recounted from the rows themselves.

use std::collections::{BTreeMap, BTreeSet};

use engine::cluster::StripeRecord;
use engine::ids::{ChunkId, ContentId, EntryId, HolderId, NamespaceId};

use super::super::keys::{self, Table};
use super::super::nursery::NurseryBytesRow;
use super::super::quota::{FILE_BYTES, VERSION_BYTES, entry_bytes};
use super::super::rows::{DeadContentRow, JournalRow, PlaceRow, SumsRow, UseRow};
use super::world::World;
use crate::kv::Backing;
use crate::model::nursery::{NurseryRow, NurseryState, NurserySums};
use crate::model::outcome::Release;
use crate::model::row::{
    AsideRelease, ChunkRow, ChunkState, ContentRow, EntryKind, EntryRow, NamespaceRow, OpenUploads,
    ROOT_ENTRY, StripeCount, TrashRow, UploadRow, UploadState, VersionRow,
};

/// Where ids begin in the keys of namespaces, contents and chunks: after the table and the slot.
const ID: usize = 3;

/// The namespace in a key.
fn namespace_of(key: &[u8]) -> NamespaceId {
    NamespaceId::from_slice(&key[ID..ID + NamespaceId::LENGTH]).unwrap()
}

/// All there is, read once.
struct All {
    namespaces: BTreeMap<NamespaceId, NamespaceRow>,
    entries: Vec<(NamespaceId, EntryRow)>,
    trash: Vec<(NamespaceId, TrashRow)>,
    versions: Vec<(NamespaceId, EntryId, VersionRow)>,
    uses: BTreeMap<(NamespaceId, ContentId), UseRow>,
    uploads: Vec<(NamespaceId, UploadRow)>,
    contents: BTreeMap<ContentId, ContentRow>,
    content_refs: BTreeSet<(ContentId, NamespaceId, u64)>,
    nursery: BTreeMap<(NamespaceId, ContentId, u64), NurseryRow>,
    chunks: BTreeMap<ChunkId, ChunkRow>,
    chunk_refs: BTreeSet<(ChunkId, HolderId)>,
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}

impl All {
    fn read(world: &World) -> Self {
        let content = |key: &[u8], at: usize| ContentId::from_slice(&key[at..at + 32]).unwrap();
        let chunk = |key: &[u8]| ChunkId::from_slice(&key[ID..ID + 32]).unwrap();
        let reference = |(key, ()): (Vec<u8>, ())| {
            let namespace = NamespaceId::from_slice(&key[ID + 32..ID + 48]).unwrap();
            (content(&key, ID), namespace, number(&key[ID + 48..]))
        };
        let version = |(key, row): (Vec<u8>, VersionRow)| {
            (namespace_of(&key), EntryId(number(&key[ID + 16..ID + 24])), row)
        };
        let used = |(key, row): (Vec<u8>, UseRow)| ((namespace_of(&key), content(&key, ID + 16)), row);
        let pin = |(key, ()): (Vec<u8>, ())| (chunk(&key), HolderId::from_slice(&key[ID + 32..]).unwrap());
        let of = |key: &[u8]| namespace_of(key);
        Self {
            namespaces: world.rows(Table::Namespace).into_iter().map(|(key, row)| (of(&key), row)).collect(),
            entries: world.rows(Table::Entry).into_iter().map(|(key, row)| (of(&key), row)).collect(),
            trash: world.rows(Table::Trash).into_iter().map(|(key, row)| (of(&key), row)).collect(),
            versions: world.rows(Table::Version).into_iter().map(version).collect(),
            uses: world.rows(Table::Use).into_iter().map(used).collect(),
            uploads: world.rows(Table::Upload).into_iter().map(|(key, row)| (of(&key), row)).collect(),
            contents: world.rows(Table::Content).into_iter().map(|(k, row)| (content(&k, ID), row)).collect(),
            content_refs: world.rows(Table::ContentRef).into_iter().map(reference).collect(),
            nursery: world
                .rows(Table::Nursery)
                .into_iter()
                .map(|(key, row)| (keys::nursery_parts(&key).unwrap(), row))
                .collect(),
            chunks: world.rows(Table::Chunk).into_iter().map(|(key, row)| (chunk(&key), row)).collect(),
            chunk_refs: world.rows(Table::ChunkRef).into_iter().map(pin).collect(),
        }
    }

    /// All entries that are not gone for good: in folders, and in the trash.
    fn every_entry(&self) -> impl Iterator<Item = (NamespaceId, &EntryRow)> {
        let trashed = self.trash.iter().map(|(namespace, item)| (*namespace, &item.entry));
        self.entries.iter().map(|(namespace, row)| (*namespace, row)).chain(trashed)
    }
}

pub(super) fn check(world: &World) {
    let all = All::read(world);
    check_uses(&all);
    check_nursery(world, &all);
    check_aside(world);
    check_references(&all);
    check_bytes(world, &all);
    check_tree(world, &all);
    check_journal(world, &all);
}

/// What was set aside is found by its time, and is not queued as well.
fn check_aside(world: &World) {
    let aside: Vec<AsideRelease> =
        world.rows(Table::ReleaseAside).into_iter().map(|(_key, row)| row).collect();
    let mut by_time = world.rows::<AsideRelease>(Table::ReleaseRetry);
    assert!(by_time.iter().all(|(key, row)| {
        let Release { content, generation } = row.release;
        *key == keys::release_retry(row.retry_ms, row.namespace, content, generation)
    }));
    by_time.sort_by_key(|(_key, row)| (row.namespace, row.release.content, row.release.generation));
    let by_time: Vec<AsideRelease> = by_time.into_iter().map(|(_key, row)| row).collect();
    let mut sorted = aside.clone();
    sorted.sort_by_key(|row| (row.namespace, row.release.content, row.release.generation));
    assert_eq!(by_time, sorted, "what was set aside is not found by its time");
    for AsideRelease { namespace, release, .. } in aside {
        let queued = keys::release(namespace, release.content, release.generation);
        assert!(world.row::<()>(&queued).is_none(), "queued and set aside: {release:?}");
    }
}

/// Every version and every hold is counted once, and what is counted as retained is.
fn check_uses(all: &All) {
    let mut counted: BTreeMap<(NamespaceId, ContentId), u64> = BTreeMap::new();
    for (namespace, _, version) in all.versions.iter().filter(|(_, _, version)| version.size > 0) {
        *counted.entry((*namespace, version.content)).or_default() += 1;
        let used = all.uses[&(*namespace, version.content)];
        let kept = all.nursery.get(&(*namespace, version.content, used.generation)).is_some_and(has_bytes);
        assert!(used.retained || kept, "a version that is neither retained nor in the nursery");
    }
    for (namespace, upload) in &all.uploads {
        if let UploadState::Held { generation } = upload.state {
            *counted.entry((*namespace, upload.content)).or_default() += 1;
            assert_eq!(all.uses[&(*namespace, upload.content)].generation, generation);
        }
    }
    let kept: BTreeMap<_, _> = all.uses.iter().map(|(key, row)| (*key, row.count)).collect();
    assert_eq!(kept, counted, "uses are miscounted");
}

fn has_bytes(row: &NurseryRow) -> bool {
    matches!(row.state, NurseryState::Kept | NurseryState::Moving { .. })
}

/// What has bytes is used, and nothing else is kept; what is kept by itself is nowhere else.
fn check_nursery(world: &World, all: &All) {
    let (mut with_bytes, mut sums) = (BTreeSet::new(), NurserySums::default());
    for ((namespace, content, generation), row) in &all.nursery {
        let used = all.uses.get(&(*namespace, *content)).filter(|used| used.generation == *generation);
        if has_bytes(row) {
            let key = keys::nursery_bytes(*namespace, *content, *generation);
            let bytes: NurseryBytesRow = world.row(&key).expect("the bytes are lost");
            assert_eq!(bytes.0.len() as u64, row.size());
            with_bytes.insert(key);
            sums.files += 1;
            sums.bytes += row.size() + 256;
            assert!(used.is_some_and(|used| !used.retained), "kept for nothing: {row:?}");
        } else {
            assert!(used.is_none_or(|used| used.retained), "leaving, but needed: {row:?}");
        }
        if row.state == NurseryState::Kept && !row.shared {
            assert!(!all.content_refs.contains(&(*content, *namespace, *generation)), "referred to unseen");
        }
    }
    let kept: BTreeSet<_> =
        world.rows::<NurseryBytesRow>(Table::NurseryBytes).into_iter().map(|(key, _)| key).collect();
    assert_eq!(kept, with_bytes, "bytes of nothing");
    let mut counted = NurserySums::default();
    for row in world.stores().filter_map(|store| store.get(&keys::nursery_sums()).unwrap()) {
        let row: NurserySums = crate::model::codec::decode(&row).unwrap();
        counted.files += row.files;
        counted.bytes += row.bytes;
    }
    assert_eq!(counted, sums, "the nursery's sums");
}

/// Whatever is used leads to chunks that are there: version, reference, content, pins, chunks.
fn check_references(all: &All) {
    for ((namespace, content), used) in all.uses.iter().filter(|(_, used)| used.retained) {
        let reference = (*content, *namespace, used.generation);
        assert!(all.content_refs.contains(&reference), "retained, but not referred to: {reference:?}");
    }
    let referred: BTreeSet<_> = all.content_refs.iter().map(|(content, _, _)| *content).collect();
    let there: BTreeSet<_> = all.contents.keys().copied().collect();
    assert_eq!(referred, there, "contents and references differ");
    for (content, row) in &all.contents {
        for entry in &row.list.entries {
            let pinned = all.chunk_refs.contains(&(entry.id, row.holder));
            assert!(pinned, "{content} has lost {}", entry.id);
        }
    }
    let pinned: BTreeSet<_> = all.chunk_refs.iter().map(|(chunk, _)| *chunk).collect();
    for (chunk, row) in &all.chunks {
        assert!(
            !(row.state == ChunkState::Condemned && pinned.contains(chunk)),
            "a condemned chunk is pinned"
        );
        assert_eq!(row.unreferenced_since_ms.is_none(), pinned.contains(chunk), "{row:?}");
    }
    assert!(pinned.iter().all(|chunk| all.chunks.contains_key(chunk)), "a pin without a chunk");
}

/// Quotas and sums are exact.
fn check_bytes(world: &World, all: &All) {
    for (namespace, row) in &all.namespaces {
        let own = all.versions.iter().filter(|(of, _, _)| of == namespace);
        let used: u64 = own.map(|(_, _, version)| version.size).sum();
        assert_eq!(row.used_bytes, used, "used bytes");
        check_charges(world, all, *namespace, row);
        assert!(row.quota_bytes == 0 || row.charged_bytes() <= row.quota_bytes, "over quota");
    }
    let sums: Vec<SumsRow> = world
        .stores()
        .filter_map(|store| store.get(&keys::group_sums()).unwrap())
        .map(|row| crate::model::codec::decode(&row).unwrap())
        .collect();
    let logical: u64 = all
        .every_entry()
        .filter_map(|(_, row)| match row.kind {
            EntryKind::File(state) => Some(state.size),
            _ => None,
        })
        .sum();
    assert_eq!(sums.iter().map(|sums| sums.bytes_logical).sum::<u64>(), logical, "logical bytes");
    let unique: u64 = all.chunks.values().map(|row| u64::from(row.location.plain_length)).sum();
    assert_eq!(sums.iter().map(|sums| sums.bytes_unique).sum::<u64>(), unique, "unique bytes");
    assert_eq!(sums.iter().map(|sums| sums.chunks).sum::<u64>(), all.chunks.len() as u64, "chunks");
    let mut stripes: BTreeMap<_, u64> = BTreeMap::new();
    for (_, record) in world.rows::<StripeRecord>(Table::Stripe) {
        *stripes.entry((record.stripe.volume(), record.used, record.missing)).or_default() += 1;
    }
    let mut counted: BTreeMap<_, u64> = BTreeMap::new();
    for (_, count) in world.rows::<StripeCount>(Table::StripeCount) {
        *counted.entry((count.volume, count.used, count.missing)).or_default() += count.stripes;
    }
    assert_eq!(counted, stripes, "stripes");
}

/// What rows and open sessions count is what is there.
fn check_charges(world: &World, all: &All, namespace: NamespaceId, row: &NamespaceRow) {
    let entries = all.every_entry().filter(|(of, entry)| *of == namespace && entry.entry != ROOT_ENTRY);
    let versions = all.versions.iter().filter(|(of, _, _)| *of == namespace).count() as u64;
    let rows = entries.map(|(_, entry)| entry_bytes(&entry.kind)).sum::<u64>() + versions * VERSION_BYTES;
    assert_eq!(row.row_bytes, rows, "row bytes");
    let (mut open, mut listed) = (OpenUploads::default(), BTreeSet::new());
    for (_, upload) in all.uploads.iter().filter(|(of, _)| *of == namespace) {
        if matches!(upload.state, UploadState::Committed { .. }) {
            continue;
        }
        if upload.state == UploadState::Aborted {
            open.given_up += 1;
            open.given_up_entries += upload.chunk_count;
        } else {
            open.sessions += 1;
            open.list_entries += upload.chunk_count;
            open.bytes += upload.size + FILE_BYTES;
        }
        listed.insert(keys::upload_open(namespace, upload.expires_ms, upload.upload));
    }
    assert_eq!(row.open, open, "open sessions");
    let kept = world.rows::<()>(Table::UploadOpen).into_iter().map(|(key, ())| key);
    let kept: BTreeSet<_> = kept.filter(|key| key.starts_with(&keys::uploads_open(namespace))).collect();
    assert_eq!(kept, listed, "the list of open sessions");
}

/// Every entry has one place, its place says so, and something leads to it.
fn check_tree(world: &World, all: &All) {
    let mut places: BTreeMap<(NamespaceId, EntryId), PlaceRow> = BTreeMap::new();
    for (key, place) in world.rows::<PlaceRow>(Table::Place) {
        places.insert((namespace_of(&key), EntryId(number(&key[ID + 16..]))), place);
    }
    let mut expected: BTreeMap<(NamespaceId, EntryId), PlaceRow> = BTreeMap::new();
    for (namespace, row) in &all.entries {
        let parent = if row.name.is_empty() { EntryId(0) } else { row.parent };
        let before = expected.insert((*namespace, row.entry), PlaceRow::In(parent, row.name.clone()));
        assert!(before.is_none(), "an entry in two places: {row:?}");
    }
    for (namespace, item) in &all.trash {
        let before = expected.insert((*namespace, item.entry.entry), PlaceRow::Trashed(item.trash));
        assert!(before.is_none(), "an entry in two places: {item:?}");
    }
    assert_eq!(places, expected, "places");
    for (namespace, row) in &all.entries {
        let mut at = row.entry;
        for _ in 0..1000 {
            match places.get(&(*namespace, at)) {
                Some(PlaceRow::In(parent, _)) if parent.0 != 0 => at = *parent,
                Some(_) => break,
                None => panic!("nothing leads to {row:?}"),
            }
        }
    }
    for (namespace, entry, version) in &all.versions {
        assert!(places.contains_key(&(*namespace, *entry)), "a version of nothing: {version:?}");
    }
    let purging = all.trash.iter().any(|(_, item)| item.purging);
    for (namespace, row) in all.every_entry() {
        if let EntryKind::File(state) = row.kind {
            let current = keys::version(namespace, row.entry, state.version);
            let version: Option<VersionRow> = world.row(&current);
            assert!(purging || version.is_some_and(|version| version.content == state.content));
        }
    }
}

/// One journal row for each entry, at its number.
fn check_journal(world: &World, all: &All) {
    let mut latest: BTreeMap<(NamespaceId, EntryId), (u64, bool)> = BTreeMap::new();
    for (key, row) in world.rows::<JournalRow>(Table::Journal) {
        let sequence = number(&key[ID + 16..]);
        let before = latest.insert((namespace_of(&key), row.entry), (sequence, row.deleted));
        assert!(before.is_none(), "two journal rows of {row:?}");
    }
    for (namespace, row) in all.entries.iter().filter(|(_, row)| row.sequence > 0) {
        assert_eq!(latest[&(*namespace, row.entry)], (row.sequence, false));
    }
    let pruned = |namespace: &NamespaceId| world.row(&keys::journal_pruned(*namespace)).unwrap_or(0_u64);
    for (namespace, item) in &all.trash {
        match latest.get(&(*namespace, item.entry.entry)) {
            Some(latest) => assert_eq!(*latest, (item.entry.sequence, true)),
            None => assert!(item.entry.sequence <= pruned(namespace), "pruned and not told: {item:?}"),
        }
    }
    let tombstones: BTreeSet<(NamespaceId, u64)> = world
        .rows::<()>(Table::Tombstone)
        .iter()
        .map(|(key, ())| keys::tombstone_parts(key).unwrap())
        .collect();
    for ((namespace, entry), (sequence, deleted)) in latest {
        assert!(!deleted || tombstones.contains(&(namespace, sequence)), "kept for ever: {entry:?}");
    }
}

/// When nobody is at work: all queues are empty, and unless something was left lying, so is everything that only
/// sessions refer to.
pub(super) fn check_quiet(world: &World, faults: bool) {
    assert!(world.rows::<()>(Table::Release).is_empty(), "releases are left");
    assert!(world.rows::<AsideRelease>(Table::ReleaseAside).is_empty(), "releases are left aside");
    let dead = world.rows::<DeadContentRow>(Table::DeadContent);
    assert!(dead.is_empty(), "dead contents are left: {dead:?}");
    assert!(world.rows::<NurseryRow>(Table::Nursery).is_empty(), "the nursery is not empty");
    if faults {
        return;
    }
    let all = All::read(world);
    let ended = |state: UploadState| matches!(state, UploadState::Committed { .. } | UploadState::Aborted);
    assert!(all.uploads.iter().all(|(_, upload)| ended(upload.state)), "sessions are left");
    let mut needed = BTreeSet::new();
    for row in all.contents.values() {
        needed.extend(row.list.entries.iter().map(|entry| (entry.id, row.holder)));
    }
    assert_eq!(all.chunk_refs, needed, "pins are left");
    let used: BTreeSet<_> =
        all.uses.iter().map(|((namespace, content), used)| (*content, *namespace, used.generation)).collect();
    assert_eq!(all.content_refs, used, "references are left");
}
