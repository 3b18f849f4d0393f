//! Where each row lies: the key layout of a group's state.
//!
//! A key is a table's byte, the slot (where a table is spread over slots), ids at fixed width in the order in which
//! they are scanned, and last whatever has no fixed width: a name, an email.
//!
//! Invariants:
//! - Keys of one table sort as their parts do: numbers are big-endian, names are bare bytes at the end, so that a
//!   folder's children are scanned in byte order of their names.
//! - No key is a prefix of another one's fixed part: every prefix that is scanned ends at a part's end.
//! - A slot's rows are, in every table that has slots, one range: that is what moves with a slot.

use engine::code::PositionSet;
use engine::ids::{
    AccountId, ChunkId, ContentId, DeviceId, DiskId, EntryId, HolderId, NamespaceId, NodeId, RequestId,
    SlotId, StripeId, UploadId, VersionId, VolumeId, email_slot,
};

/// The tables. Numbers are part of the format: never reused, never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Table {
    /// The group's own sums and the slots that it owns.
    Group = 1,
    /// Outcomes of requests, by the requests' time.
    Request = 2,
    /// Marks that are of no use after some time, by time.
    Expiry = 3,
    /// Journal rows of what is gone, by when it went.
    Tombstone = 4,
    /// Releases that were set aside, by when they are to be tried again.
    ReleaseRetry = 5,

    /// The installation (root group).
    Cluster = 10,
    /// Settings that were set (root group).
    Setting = 11,
    /// Metadata replicas (root group).
    MetaNode = 12,
    /// Storage nodes (root group).
    StorageNode = 13,
    /// Disks (root group).
    Disk = 14,
    /// Volumes (root group).
    Volume = 15,
    /// Secrets that all gateways share (root group).
    Secret = 16,
    /// What is attested of disks' starts (root group).
    DiskAttestation = 17,

    /// Whose an email is.
    Email = 20,
    /// Accounts.
    Account = 21,
    /// Their devices.
    Device = 22,

    /// Namespaces.
    Namespace = 30,
    /// Entries, by folder and name.
    Entry = 31,
    /// Where an entry is, by its id.
    Place = 32,
    /// Versions, by entry.
    Version = 33,
    /// Deleted entries.
    Trash = 34,
    /// What changed last, by sequence.
    Journal = 35,
    /// How often the namespace uses a content.
    Use = 36,
    /// Upload sessions.
    Upload = 37,
    /// Their chunk lists.
    UploadPart = 38,
    /// References to be released.
    Release = 39,
    /// Up to which number the journal has been pruned.
    JournalPruned = 40,
    /// References to be released that could not be, and wait.
    ReleaseAside = 41,
    /// Upload sessions that have not been committed nor forgotten, by when they end.
    UploadOpen = 42,
    /// The runs of journals, by their first numbers.
    JournalRun = 43,
    /// What is recorded of them, and the latest one.
    JournalRuns = 44,
    /// Contents of the nursery.
    Nursery = 45,
    /// Their bytes.
    NurseryBytes = 46,

    /// Contents.
    Content = 50,
    /// Which namespaces refer to them.
    ContentRef = 51,
    /// References that were released, and must not come back.
    ContentReleased = 52,
    /// Holders that must not become a content's.
    HolderBarred = 53,
    /// Dead contents whose chunks are still referred to.
    DeadContent = 54,

    /// Chunks.
    Chunk = 60,
    /// Who refers to them.
    ChunkRef = 61,
    /// Stripes.
    Stripe = 62,
    /// Stripes by volume and positions.
    StripeCount = 63,
    /// Oldest epochs that are taken.
    VolumeFence = 64,
}

/// A key under construction.
struct Key(Vec<u8>);

/// Room for most keys, so that they are made in one piece.
const KEY_BYTES: usize = 96;

impl Key {
    fn of(table: Table) -> Self {
        let mut bytes = Vec::with_capacity(KEY_BYTES);
        bytes.push(table as u8);
        Self(bytes)
    }

    fn slot(self, slot: SlotId) -> Self {
        self.bytes(&slot.0.to_be_bytes())
    }

    fn number(self, number: u64) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// The key of a table's only row, and the prefix of all its rows.
pub(super) fn table(table: Table) -> Vec<u8> {
    Key::of(table).0
}

pub(super) fn group_sums() -> Vec<u8> {
    Key::of(Table::Group).bytes(b"sums").0
}

pub(super) fn owned_slots() -> Vec<u8> {
    Key::of(Table::Group).bytes(b"slots").0
}

/// How long tombstones are kept, in milliseconds.
pub(super) fn journal_horizon() -> Vec<u8> {
    Key::of(Table::Group).bytes(b"journal-horizon").0
}

/// What the nursery holds.
pub(super) fn nursery_sums() -> Vec<u8> {
    Key::of(Table::Group).bytes(b"nursery").0
}

/// Who empties the nursery.
pub(super) fn nursery_lease() -> Vec<u8> {
    Key::of(Table::Group).bytes(b"nursery-lease").0
}

pub(super) fn request(request: RequestId) -> Vec<u8> {
    Key::of(Table::Request).bytes(request.as_bytes()).0
}

/// The first key of requests made at `time_ms` or later.
pub(super) fn requests_from(time_ms: u64) -> Vec<u8> {
    Key::of(Table::Request).number(time_ms).0
}

/// A mark at `marked` that was made at `time_ms`.
pub(super) fn expiry(time_ms: u64, marked: &[u8]) -> Vec<u8> {
    Key::of(Table::Expiry).number(time_ms).bytes(marked).0
}

/// The first key of marks made at `time_ms` or later.
pub(super) fn expiries_from(time_ms: u64) -> Vec<u8> {
    Key::of(Table::Expiry).number(time_ms).0
}

/// The marked key in the key of an expiry row.
pub(super) fn expiry_marked(key: &[u8]) -> Option<&[u8]> {
    key.get(1 + 8..)
}

/// A journal row of something that went at `time_ms`.
pub(super) fn tombstone(time_ms: u64, namespace: NamespaceId, sequence: u64) -> Vec<u8> {
    Key::of(Table::Tombstone).number(time_ms).bytes(namespace.as_bytes()).number(sequence).0
}

/// The first key of what went at `time_ms` or later.
pub(super) fn tombstones_from(time_ms: u64) -> Vec<u8> {
    Key::of(Table::Tombstone).number(time_ms).0
}

/// Namespace and sequence in the key of a tombstone.
pub(super) fn tombstone_parts(key: &[u8]) -> Option<(NamespaceId, u64)> {
    let (namespace, sequence) = last(key, NamespaceId::LENGTH + 8)?.split_at_checked(NamespaceId::LENGTH)?;
    Some((NamespaceId::from_slice(namespace).ok()?, u64::from_be_bytes(sequence.try_into().ok()?)))
}

pub(super) fn secret(name: &str) -> Vec<u8> {
    Key::of(Table::Secret).bytes(name.as_bytes()).0
}

pub(super) fn setting(name: &str) -> Vec<u8> {
    Key::of(Table::Setting).bytes(name.as_bytes()).0
}

pub(super) fn meta_node(node: NodeId) -> Vec<u8> {
    Key::of(Table::MetaNode).number(node.0).0
}

pub(super) fn storage_node(node: NodeId) -> Vec<u8> {
    Key::of(Table::StorageNode).number(node.0).0
}

pub(super) fn disk(disk: DiskId) -> Vec<u8> {
    Key::of(Table::Disk).bytes(disk.as_bytes()).0
}

pub(super) fn disk_attestation(disk: DiskId) -> Vec<u8> {
    Key::of(Table::DiskAttestation).bytes(disk.as_bytes()).0
}

pub(super) fn volume(volume: VolumeId) -> Vec<u8> {
    Key::of(Table::Volume).number(volume.0).0
}

pub(super) fn email(email: &str) -> Vec<u8> {
    Key::of(Table::Email).slot(email_slot(email)).bytes(email.as_bytes()).0
}

pub(super) fn account(account: AccountId) -> Vec<u8> {
    Key::of(Table::Account).slot(account.slot()).bytes(account.as_bytes()).0
}

pub(super) fn devices(account: AccountId) -> Vec<u8> {
    Key::of(Table::Device).slot(account.slot()).bytes(account.as_bytes()).0
}

pub(super) fn device(account: AccountId, device: DeviceId) -> Vec<u8> {
    Key(devices(account)).bytes(device.as_bytes()).0
}

/// All devices of a group, as a prefix.
pub(super) fn all_devices() -> Vec<u8> {
    Key::of(Table::Device).0
}

/// The account in the key of a device row.
pub(super) fn account_of_device(key: &[u8]) -> Option<AccountId> {
    let end = key.len().checked_sub(DeviceId::LENGTH)?;
    AccountId::from_slice(last(key.get(..end)?, AccountId::LENGTH)?).ok()
}

/// The device in the key of a device row.
pub(super) fn device_id(key: &[u8]) -> Option<DeviceId> {
    DeviceId::from_slice(last(key, DeviceId::LENGTH)?).ok()
}

fn in_namespace(table: Table, namespace: NamespaceId) -> Key {
    Key::of(table).slot(namespace.slot()).bytes(namespace.as_bytes())
}

pub(super) fn namespace(namespace: NamespaceId) -> Vec<u8> {
    in_namespace(Table::Namespace, namespace).0
}

pub(super) fn entry(namespace: NamespaceId, parent: EntryId, name: &str) -> Vec<u8> {
    Key(children(namespace, parent)).bytes(name.as_bytes()).0
}

pub(super) fn children(namespace: NamespaceId, parent: EntryId) -> Vec<u8> {
    in_namespace(Table::Entry, namespace).number(parent.0).0
}

pub(super) fn place(namespace: NamespaceId, entry: EntryId) -> Vec<u8> {
    in_namespace(Table::Place, namespace).number(entry.0).0
}

pub(super) fn versions(namespace: NamespaceId, entry: EntryId) -> Vec<u8> {
    in_namespace(Table::Version, namespace).number(entry.0).0
}

pub(super) fn version(namespace: NamespaceId, entry: EntryId, version: VersionId) -> Vec<u8> {
    Key(versions(namespace, entry)).number(version.0).0
}

pub(super) fn trash_all(namespace: NamespaceId) -> Vec<u8> {
    in_namespace(Table::Trash, namespace).0
}

pub(super) fn trash(namespace: NamespaceId, trash: u64) -> Vec<u8> {
    Key(trash_all(namespace)).number(trash).0
}

pub(super) fn journal_all(namespace: NamespaceId) -> Vec<u8> {
    in_namespace(Table::Journal, namespace).0
}

pub(super) fn journal(namespace: NamespaceId, sequence: u64) -> Vec<u8> {
    Key(journal_all(namespace)).number(sequence).0
}

/// The number in the key of a journal row.
pub(super) fn journal_sequence(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(last(key, 8)?.try_into().ok()?))
}

/// What all keys of namespace rows begin with.
pub(super) fn namespaces() -> Vec<u8> {
    Key::of(Table::Namespace).0
}

/// The namespace in the key of a namespace row.
pub(super) fn namespace_id(key: &[u8]) -> Option<NamespaceId> {
    NamespaceId::from_slice(last(key, NamespaceId::LENGTH)?).ok()
}

pub(super) fn journal_pruned(namespace: NamespaceId) -> Vec<u8> {
    in_namespace(Table::JournalPruned, namespace).0
}

pub(super) fn journal_run_all(namespace: NamespaceId) -> Vec<u8> {
    in_namespace(Table::JournalRun, namespace).0
}

/// The run that begins with the number `first`.
pub(super) fn journal_run(namespace: NamespaceId, first: u64) -> Vec<u8> {
    Key(journal_run_all(namespace)).number(first).0
}

pub(super) fn journal_runs(namespace: NamespaceId) -> Vec<u8> {
    in_namespace(Table::JournalRuns, namespace).0
}

pub(super) fn content_use(namespace: NamespaceId, content: ContentId) -> Vec<u8> {
    in_namespace(Table::Use, namespace).bytes(content.as_bytes()).0
}

pub(super) fn nursery(namespace: NamespaceId, content: ContentId, generation: u64) -> Vec<u8> {
    in_namespace(Table::Nursery, namespace).bytes(content.as_bytes()).number(generation).0
}

pub(super) fn nursery_bytes(namespace: NamespaceId, content: ContentId, generation: u64) -> Vec<u8> {
    in_namespace(Table::NurseryBytes, namespace).bytes(content.as_bytes()).number(generation).0
}

/// Namespace, content and generation in the key of a content of the nursery.
pub(super) fn nursery_parts(key: &[u8]) -> Option<(NamespaceId, ContentId, u64)> {
    let parts = last(key, NamespaceId::LENGTH + ContentId::LENGTH + 8)?;
    let (namespace, parts) = parts.split_at_checked(NamespaceId::LENGTH)?;
    let (content, generation) = parts.split_at_checked(ContentId::LENGTH)?;
    let generation = u64::from_be_bytes(generation.try_into().ok()?);
    Some((NamespaceId::from_slice(namespace).ok()?, ContentId::from_slice(content).ok()?, generation))
}

pub(super) fn upload(namespace: NamespaceId, upload: UploadId) -> Vec<u8> {
    in_namespace(Table::Upload, namespace).bytes(upload.as_bytes()).0
}

/// What has not been committed nor forgotten, by when it ends.
pub(super) fn uploads_open(namespace: NamespaceId) -> Vec<u8> {
    in_namespace(Table::UploadOpen, namespace).0
}

pub(super) fn upload_open(namespace: NamespaceId, expires_ms: u64, upload: UploadId) -> Vec<u8> {
    Key(uploads_open(namespace)).number(expires_ms).bytes(upload.as_bytes()).0
}

/// The session in the key of a row of those that are open.
pub(super) fn open_upload(key: &[u8]) -> Option<UploadId> {
    UploadId::from_slice(last(key, UploadId::LENGTH)?).ok()
}

pub(super) fn upload_part(namespace: NamespaceId, upload: UploadId, part: u64) -> Vec<u8> {
    in_namespace(Table::UploadPart, namespace).bytes(upload.as_bytes()).number(part).0
}

pub(super) fn releases(namespace: NamespaceId) -> Vec<u8> {
    in_namespace(Table::Release, namespace).0
}

pub(super) fn releases_of(namespace: NamespaceId, content: ContentId) -> Vec<u8> {
    Key(releases(namespace)).bytes(content.as_bytes()).0
}

pub(super) fn release(namespace: NamespaceId, content: ContentId, generation: u64) -> Vec<u8> {
    Key(releases_of(namespace, content)).number(generation).0
}

/// Content and generation in the key of a release row.
pub(super) fn release_parts(key: &[u8]) -> Option<(ContentId, u64)> {
    let (content, generation) = last(key, ContentId::LENGTH + 8)?.split_at_checked(ContentId::LENGTH)?;
    Some((ContentId::from_slice(content).ok()?, u64::from_be_bytes(generation.try_into().ok()?)))
}

pub(super) fn release_aside(namespace: NamespaceId, content: ContentId, generation: u64) -> Vec<u8> {
    in_namespace(Table::ReleaseAside, namespace).bytes(content.as_bytes()).number(generation).0
}

/// A release that is to be tried again at `retry_ms`.
pub(super) fn release_retry(
    retry_ms: u64,
    namespace: NamespaceId,
    content: ContentId,
    generation: u64,
) -> Vec<u8> {
    let at = Key::of(Table::ReleaseRetry).number(retry_ms).bytes(namespace.as_bytes());
    at.bytes(content.as_bytes()).number(generation).0
}

/// The first key of what is to be tried again at `retry_ms` or later.
pub(super) fn release_retries_from(retry_ms: u64) -> Vec<u8> {
    Key::of(Table::ReleaseRetry).number(retry_ms).0
}

fn in_content(table: Table, content: ContentId) -> Key {
    Key::of(table).slot(content.slot()).bytes(content.as_bytes())
}

pub(super) fn content(content: ContentId) -> Vec<u8> {
    in_content(Table::Content, content).0
}

pub(super) fn content_refs(content: ContentId) -> Vec<u8> {
    in_content(Table::ContentRef, content).0
}

pub(super) fn content_ref(content: ContentId, namespace: NamespaceId, generation: u64) -> Vec<u8> {
    Key(content_refs(content)).bytes(namespace.as_bytes()).number(generation).0
}

pub(super) fn content_released(content: ContentId, namespace: NamespaceId, generation: u64) -> Vec<u8> {
    in_content(Table::ContentReleased, content).bytes(namespace.as_bytes()).number(generation).0
}

pub(super) fn holder_barred(content: ContentId, holder: HolderId) -> Vec<u8> {
    in_content(Table::HolderBarred, content).bytes(holder.as_bytes()).0
}

pub(super) fn dead_contents(content: ContentId) -> Vec<u8> {
    in_content(Table::DeadContent, content).0
}

pub(super) fn dead_content(content: ContentId, holder: HolderId) -> Vec<u8> {
    Key(dead_contents(content)).bytes(holder.as_bytes()).0
}

fn in_chunk(table: Table, chunk: ChunkId) -> Key {
    Key::of(table).slot(chunk.slot()).bytes(chunk.as_bytes())
}

pub(super) fn chunk(chunk: ChunkId) -> Vec<u8> {
    in_chunk(Table::Chunk, chunk).0
}

pub(super) fn chunk_refs(chunk: ChunkId) -> Vec<u8> {
    in_chunk(Table::ChunkRef, chunk).0
}

pub(super) fn chunk_ref(chunk: ChunkId, holder: HolderId) -> Vec<u8> {
    Key(chunk_refs(chunk)).bytes(holder.as_bytes()).0
}

pub(super) fn stripe(stripe: StripeId) -> Vec<u8> {
    Key::of(Table::Stripe).slot(stripe.slot()).bytes(stripe.as_bytes()).0
}

pub(super) fn stripe_count(volume: VolumeId, used: PositionSet, missing: PositionSet) -> Vec<u8> {
    let positions = [used.0.to_be_bytes(), missing.0.to_be_bytes()].concat();
    Key::of(Table::StripeCount).number(volume.0).bytes(&positions).0
}

pub(super) fn volume_fence(volume: VolumeId) -> Vec<u8> {
    Key::of(Table::VolumeFence).number(volume.0).0
}

fn last(key: &[u8], length: usize) -> Option<&[u8]> {
    key.len().checked_sub(length).and_then(|from| key.get(from..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_sort_by_the_bytes_of_their_names_and_folders_stay_apart() {
        let namespace = NamespaceId::from_bytes([7; 16]);
        let names = ["", "\u{1}", "a", "a b", "a.b", "ab", "b", "é", "\u{10ffff}"];
        let keys: Vec<_> = names.iter().map(|name| entry(namespace, EntryId(5), name)).collect();
        assert!(keys.is_sorted());
        let next_folder = children(namespace, EntryId(6));
        assert!(
            keys.iter().all(|key| key.starts_with(&children(namespace, EntryId(5))) && *key < next_folder)
        );
    }

    #[test]
    fn requests_sort_by_time() {
        let early = request(RequestId::new(255, [0xff; 16]));
        assert!(early < requests_from(256));
        assert!(requests_from(256) <= request(RequestId::new(256, [0; 16])));
    }

    #[test]
    fn what_a_key_holds_can_be_read_from_it() {
        let (namespace, content) = (NamespaceId::from_bytes([1; 16]), ContentId::from_bytes([2; 32]));
        assert_eq!(release_parts(&release(namespace, content, 9)), Some((content, 9)));
        let device_of = DeviceId::from_bytes([3; 8]);
        assert_eq!(device_id(&device(AccountId::from_bytes([4; 16]), device_of)), Some(device_of));
        assert_eq!(expiry_marked(&expiry(8, b"marked")), Some(b"marked".as_slice()));
        assert_eq!(tombstone_parts(&tombstone(8, namespace, 3)), Some((namespace, 3)));
        assert_eq!(journal_sequence(&journal(namespace, 3)), Some(3));
        assert_eq!(namespace_id(&super::namespace(namespace)), Some(namespace));
    }
}
