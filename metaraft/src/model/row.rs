//! Rows: what the state machines of the groups hold, as queries answer with them.

use engine::code::PositionSet;
use engine::cutter::Cutter;
use engine::ids::{
    AccountId, ChunkId, ContentId, DeviceId, EntryId, HolderId, NamespaceId, UploadId, VersionId, VolumeId,
};
use engine::location::ChunkLocation;
use engine::manifest::ContentList;
use serde::{Deserialize, Serialize};

use super::nursery::NurserySums;
use super::outcome::Release;

/// The root folder of every namespace.
pub const ROOT_ENTRY: EntryId = EntryId(1);

/// An account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRow {
    /// Lower case.
    pub email: String,
    /// As people know them.
    pub name: String,
    /// In PHC string form (argon2).
    pub password_hash: String,
    /// Their own tree.
    pub namespace: NamespaceId,
    /// Whether they administrate the cluster.
    pub admin: bool,
    /// When it was made; set from the leader's time.
    pub created_ms: u64,
}

/// A signed-in device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRow {
    /// As its user named it.
    pub name: String,
    /// SHA-256 of the token's secret part.
    pub token_hash: [u8; 32],
    /// When it signed in.
    pub created_ms: u64,
    /// When its token was revoked.
    pub revoked_ms: Option<u64>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRow {
    /// Whose.
    pub owner: AccountId,
    /// Bytes that may be charged ([`Self::charged_bytes`]); 0 = no limit.
    pub quota_bytes: u64,
    /// Bytes of all kept versions, those in the trash too: exact, and free to compute.
    pub used_bytes: u64,
    /// The latest number in its journal.
    pub sequence: u64,
    /// The next entry's id.
    pub next_entry: EntryId,
    /// The next version's id.
    pub next_version: VersionId,
    /// The next number in the trash.
    pub next_trash: u64,
    /// The next generation of a content reference.
    pub next_generation: u64,
    /// What entries, symlinks' targets and versions count for the rows that they are.
    pub row_bytes: u64,
    /// Upload sessions that have not ended.
    pub open: OpenUploads,
}

impl NamespaceRow {
    /// Bytes that count against the quota.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.used_bytes.saturating_add(self.row_bytes).saturating_add(self.open.bytes)
    }
}

/// Upload sessions of a namespace that are open or held, and those that were given up and are not forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OpenUploads {
    /// How many are open or held.
    pub sessions: u64,
    /// Entries of their chunk lists.
    pub list_entries: u64,
    /// Bytes of their files, as the quota counts them.
    pub bytes: u64,
    /// How many were given up.
    pub given_up: u64,
    /// Entries of their chunk lists.
    pub given_up_entries: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A file, by its current version.
    File(FileState),
    /// A folder.
    Folder,
    /// A symlink and where it points, as bytes that are kept and never followed.
    Symlink(#[serde(with = "serde_bytes")] Vec<u8>),
}

impl EntryKind {
    /// The word for it in messages.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Folder => "folder",
            Self::Symlink(_) => "symlink",
        }
    }
}

/// A file's current version, beside its entry so that listings need nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// The current version.
    pub version: VersionId,
    /// Its content.
    pub content: ContentId,
    /// Its bytes.
    pub size: u64,
    /// How it is cut.
    pub cutter: Cutter,
}

/// A file, folder or symlink, at its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryRow {
    /// Its id.
    pub entry: EntryId,
    /// The folder it is in (for the root folder: itself).
    pub parent: EntryId,
    /// Its name there (for the root folder: empty).
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// When it was made, by the leader's time.
    pub created_ms: u64,
    /// When it last changed, by the leader's time.
    pub changed_ms: u64,
    /// Its latest number in the namespace's journal.
    pub sequence: u64,
}

/// A version of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    /// Its id.
    pub version: VersionId,
    /// Its content.
    pub content: ContentId,
    /// Its bytes.
    pub size: u64,
    /// How it is cut.
    pub cutter: Cutter,
    /// Permission bits.
    pub mode: u32,
    /// Modification time.
    pub mtime_ns: i64,
    /// When it was committed.
    pub created_ms: u64,
    /// By which device.
    pub device: DeviceId,
}

/// A deleted entry, with all that is still below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashRow {
    /// Its number in the trash.
    pub trash: u64,
    /// The entry, with the parent and name it had.
    pub entry: EntryRow,
    /// When it was deleted.
    pub deleted_ms: u64,
    /// Whether a purge has begun.
    pub purging: bool,
}

/// How far an upload session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadState {
    /// Takes chunks.
    Open,
    /// Its content is counted as used, with this generation; the commit is under way.
    Held {
        /// Of the reference.
        generation: u64,
    },
    /// The file is made.
    Committed {
        /// The entry.
        entry: EntryId,
        /// The version.
        version: VersionId,
    },
    /// Given up.
    Aborted,
}

/// An upload session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRow {
    /// Its id.
    pub upload: UploadId,
    /// Who refers to its chunks.
    pub holder: HolderId,
    /// The content that it makes.
    pub content: ContentId,
    /// Bytes.
    pub size: u64,
    /// How it is cut.
    pub cutter: Cutter,
    /// Entries in its chunk list, kept in parts of [`super::UPLOAD_PART_ENTRIES`].
    pub chunk_count: u64,
    /// When it began.
    pub created_ms: u64,
    /// When it ends by itself.
    pub expires_ms: u64,
    /// How far it is.
    pub state: UploadState,
}

/// Bytes that all gateways share and nobody else sees; never printed.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretBytes(pub [u8; 32]);

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretBytes")
    }
}

/// A change in a namespace's journal, as of when it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRow {
    /// Which.
    pub entry: EntryId,
    /// How it is now; `None` if it is not in the tree.
    pub row: Option<EntryRow>,
    /// It is a folder that has come back with all below it.
    pub list_below: bool,
}

/// A content: what a version's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRow {
    /// Who refers to its chunks.
    pub holder: HolderId,
    /// Bytes.
    pub size: u64,
    /// Its chunks, or the top of their tree.
    pub list: ContentList,
}

/// Whether a registered chunk may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkState {
    /// It is where its location says.
    Live,
    /// Never handed out again; nothing refers to it.
    Condemned,
    /// It was found that it cannot be read where it should lie. What refers to it still does; who uploads it is told
    /// to send it, and the next registration takes its place.
    Unreadable,
}

/// A registered chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRow {
    /// Its id.
    pub chunk: ChunkId,
    /// Where it lies.
    pub location: ChunkLocation,
    /// Unique to this registration: the number that its group's count of registrations had reached.
    pub generation: u64,
    /// Since when nothing refers to it.
    pub unreferenced_since_ms: Option<u64>,
    /// Whether it may be used.
    pub state: ChunkState,
}

/// How many stripes of a volume use, and lack, the same positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StripeCount {
    /// The volume.
    pub volume: VolumeId,
    /// Positions in use.
    pub used: PositionSet,
    /// Positions that were not durable when the stripes were acknowledged.
    pub missing: PositionSet,
    /// Stripes.
    pub stripes: u64,
}

/// A data group's sums, kept with every change.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupCounters {
    /// Bytes of the current versions of all files, those in the trash until it is purged.
    pub bytes_logical: u64,
    /// Plain bytes of distinct registered chunks.
    pub bytes_unique: u64,
    /// Registered chunks.
    pub chunks: u64,
    /// Stripes by volume and positions.
    pub stripes: Vec<StripeCount>,
    /// Releases that were set aside; at most [`super::QUERY_ITEMS_MAX`] are counted.
    pub releases_aside: u64,
    /// Some of them, those that are tried again soonest.
    pub releases_aside_some: Vec<AsideRelease>,
    /// What the nursery holds.
    pub nursery: NurserySums,
}

/// Bytes of the reason for which a release was set aside.
pub const ASIDE_WHY_BYTES_MAX: usize = 300;

/// A release that could not be done, and is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideRelease {
    /// Whose.
    pub namespace: NamespaceId,
    /// What is released.
    pub release: Release,
    /// Why it could not be done the last time.
    pub why: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was first set aside, by the leader's time.
    pub since_ms: u64,
    /// When it is to be tried again.
    pub retry_ms: u64,
}
