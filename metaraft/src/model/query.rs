//! Queries: everything that is read, linearizable, from a group's leader.

use engine::cluster::ClusterMap;
use engine::ids::{
    AccountId, ChunkId, ContentId, DeviceId, EntryId, HolderId, NamespaceId, SlotId, UploadId, VersionId,
};
use engine::location::ChunkLocation;
use engine::manifest::ManifestEntry;
use serde::{Deserialize, Serialize};

use super::journal::{JournalRun, Seen};
use super::nursery::{FileAt, FoundContent, NurseryFile, NurserySums, Opened, TokenGuard};
use super::outcome::Release;
use super::row::{
    AccountRow, AsideRelease, ChangeRow, ContentRow, DeviceRow, EntryRow, GroupCounters, NamespaceRow,
    SecretBytes, TrashRow, UploadRow, VersionRow,
};

/// A question to one group. Lists are bounded by [`super::QUERY_ITEMS_MAX`] items and about [`super::PAGE_BYTES_MAX`]
/// bytes: a page may be shorter than was asked for, and where it says so only the first items are answered for, at least
/// one; the caller asks again for the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    // The root group.
    /// Answers [`Reply::ClusterMap`], with health as its leader sees it.
    ClusterMap,
    /// Answers [`Reply::Settings`]: those that were set.
    Settings,

    // Accounts.
    /// Answers [`Reply::AccountId`].
    AccountByEmail {
        /// Lower case.
        email: String,
    },
    /// Answers [`Reply::Account`].
    Account {
        /// Whose.
        account: AccountId,
    },
    /// Answers [`Reply::Devices`].
    Devices {
        /// Whose.
        account: AccountId,
    },
    /// Answers [`Reply::Device`].
    Device {
        /// Whose.
        account: AccountId,
        /// Which.
        device: DeviceId,
    },

    // Namespaces.
    /// Answers [`Reply::Namespace`].
    Namespace {
        /// Which.
        namespace: NamespaceId,
    },
    /// Walks paths from the root folder. Answers [`Reply::Resolved`], in order, for the first ones.
    Resolve {
        /// Where.
        namespace: NamespaceId,
        /// Names from the root folder on; no names = the root folder.
        paths: Vec<Vec<String>>,
    },
    /// A page of a folder, by name. Answers [`Reply::Entries`].
    Children {
        /// Where.
        namespace: NamespaceId,
        /// Which folder.
        parent: EntryId,
        /// Begin after this name.
        after: Option<String>,
        /// At most so many.
        count_max: u32,
    },
    /// Answers [`Reply::Versions`], newest first.
    Versions {
        /// Where.
        namespace: NamespaceId,
        /// Which file.
        entry: EntryId,
    },
    /// Answers [`Reply::Version`].
    Version {
        /// Where.
        namespace: NamespaceId,
        /// Which file.
        entry: EntryId,
        /// Which version.
        version: VersionId,
    },
    /// A page of the trash, oldest first. Answers [`Reply::Trash`].
    Trash {
        /// Where.
        namespace: NamespaceId,
        /// Begin after this number; 0 = from the start.
        after: u64,
        /// At most so many.
        count_max: u32,
    },
    /// Names from the root folder to each entry. Answers [`Reply::Paths`], in order, for the first ones; `None` where an
    /// ancestor is gone.
    Paths {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        entries: Vec<EntryId>,
    },
    /// Answers [`Reply::Uploads`], in order.
    Uploads {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        uploads: Vec<UploadId>,
    },
    /// A part of a session's chunk list. Answers [`Reply::UploadPart`].
    UploadPart {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        upload: UploadId,
        /// Counted from 0, each of [`super::UPLOAD_PART_ENTRIES`] entries but the last.
        part: u64,
    },
    /// Whether kept versions of the namespace hold these contents: what may be told to its owner. Answers
    /// [`Reply::Flags`].
    NamespaceHolds {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        contents: Vec<ContentId>,
    },
    /// Releases still to be done. Answers [`Reply::Releases`].
    Releases {
        /// Where.
        namespace: NamespaceId,
        /// At most so many.
        count_max: u32,
    },

    // Contents and chunks.
    /// Answers [`Reply::Contents`], in order, for the first ones.
    Contents {
        /// Which.
        contents: Vec<ContentId>,
    },
    /// Where chunks lie, or should; condemned ones lie nowhere. Answers [`Reply::Locations`], in order.
    ChunksLocate {
        /// Which.
        chunks: Vec<ChunkId>,
    },
    /// Whether the holder refers to the chunks and they are not known to be unreadable. Answers [`Reply::Flags`], in order.
    ChunksPinned {
        /// Who.
        holder: HolderId,
        /// To which.
        chunks: Vec<ChunkId>,
    },
    /// Answers [`Reply::Counters`].
    Counters,

    /// A page of a namespace's journal. Answers [`Reply::Changes`] or [`Reply::ChangesGone`].
    Changes {
        /// Where.
        namespace: NamespaceId,
        /// Begin after this number.
        position: u64,
        /// As the page before said: up to which number the caller had everything when this batch of pages began.
        /// Both 0: a listing of all there is begins.
        since: u64,
        /// At most so many.
        count_max: u32,
    },
    /// A page of all that is below a folder, each folder before what is in it. Answers [`Reply::Below`].
    Below {
        /// Where.
        namespace: NamespaceId,
        /// Which folder.
        top: EntryId,
        /// As the page before said; empty: from the start.
        position: Vec<BelowFrame>,
        /// At most so many.
        count_max: u32,
    },
    /// Entries by id. Answers [`Reply::EntriesById`], in order, for the first ones; `None` for what is not in the tree.
    EntriesById {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        entries: Vec<EntryId>,
    },
    /// The latest numbers of journals. Answers [`Reply::Sequences`], in order.
    Sequences {
        /// Which.
        namespaces: Vec<NamespaceId>,
    },
    /// A secret of the root group. Answers [`Reply::Secret`].
    Secret {
        /// Its name.
        name: String,
    },
    /// Sessions of a namespace that have not been committed nor forgotten, those that end first first. Answers
    /// [`Reply::UploadsOpen`].
    UploadsOpen {
        /// Where.
        namespace: NamespaceId,
        /// At most so many.
        count_max: u32,
    },
    /// Whether devices are there and not revoked. Answers [`Reply::Flags`], in order.
    DevicesLive {
        /// Which.
        devices: Vec<(AccountId, DeviceId)>,
    },
    /// Releases of all namespaces of the group that were set aside and are to be tried again by now, the longest due
    /// first. Answers [`Reply::ReleasesAside`].
    ReleasesDue {
        /// Now, milliseconds since 1970.
        now_ms: u64,
        /// At most so many.
        count_max: u32,
    },
    /// As [`Query::Changes`], if what the caller has seen is of the journal's own history. Answers [`Reply::ChangesAfter`],
    /// [`Reply::ChangesGone`] or [`Reply::WentBack`].
    ChangesAfter {
        /// Where.
        namespace: NamespaceId,
        /// Begin after this number.
        position: u64,
        /// See [`Query::Changes`].
        since: u64,
        /// The runs of the later of the two numbers: see [`Seen`].
        runs: Option<Vec<JournalRun>>,
        /// At most so many.
        count_max: u32,
    },
    /// As [`Query::Below`], if what the caller has seen is of the journal's own history. Answers [`Reply::BelowAt`] or
    /// [`Reply::WentBack`].
    BelowAt {
        /// Where.
        namespace: NamespaceId,
        /// Which folder.
        top: EntryId,
        /// As the page before said; empty: from the start.
        position: Vec<BelowFrame>,
        /// What the caller has seen; `None`: nothing.
        seen: Option<Seen>,
        /// At most so many.
        count_max: u32,
    },
    /// Contents that the namespace's versions have, wherever they are by now. Answers [`Reply::ContentsIn`], in order, for
    /// the first ones.
    ContentsIn {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        contents: Vec<ContentId>,
        /// Whether the bytes of those in the nursery are wanted.
        bytes: bool,
    },
    /// All that is needed to read the current version of a file, in one look. Answers [`Reply::Opened`].
    OpenFile {
        /// Whose token it must be; `None` if that has been checked.
        guard: Option<TokenGuard>,
        /// Where.
        namespace: NamespaceId,
        /// Which.
        at: FileAt,
        /// Whether its content is wanted, or only the entry.
        content: bool,
    },
    /// A page of the group's nursery. Answers [`Reply::Nursery`].
    Nursery {
        /// Begin after this one.
        after: Option<(NamespaceId, ContentId, u64)>,
        /// Only what is there since this or longer, and what is on its way.
        since_ms_max: u64,
        /// At most so many.
        count_max: u32,
    },
    /// What the group's nursery holds. Answers [`Reply::NurserySums`].
    NurserySums,
}

/// A query of more bytes asks for so much that it may take long, whatever it asks for.
pub(crate) const LONG_QUERY_BYTES: usize = 32 * 1024;

/// A query for more rows than this may take long.
const LONG_ROWS: usize = 256;

impl Query {
    /// Whether it may read so many rows that look-ups should not wait for it: by what it asks for, for nobody knows how much
    /// is there.
    #[must_use]
    pub fn may_take_long(&self) -> bool {
        match self {
            Self::ClusterMap
            | Self::Settings
            | Self::AccountByEmail { .. }
            | Self::Account { .. }
            | Self::Device { .. }
            | Self::Namespace { .. }
            | Self::Version { .. }
            | Self::UploadPart { .. }
            | Self::Counters
            | Self::OpenFile { .. }
            | Self::NurserySums
            | Self::Secret { .. } => false,
            Self::Devices { .. } | Self::Versions { .. } | Self::Nursery { .. } => true,
            Self::Children { count_max, .. }
            | Self::Trash { count_max, .. }
            | Self::Releases { count_max, .. }
            | Self::Changes { count_max, .. }
            | Self::Below { count_max, .. }
            | Self::UploadsOpen { count_max, .. }
            | Self::ReleasesDue { count_max, .. }
            | Self::ChangesAfter { count_max, .. }
            | Self::BelowAt { count_max, .. } => *count_max as usize > LONG_ROWS,
            Self::Resolve { paths, .. } => paths.len() > LONG_ROWS,
            Self::Paths { entries, .. } | Self::EntriesById { entries, .. } => entries.len() > LONG_ROWS,
            Self::Uploads { uploads, .. } => uploads.len() > LONG_ROWS,
            Self::NamespaceHolds { contents, .. }
            | Self::Contents { contents }
            | Self::ContentsIn { contents, .. } => contents.len() > LONG_ROWS,
            Self::ChunksLocate { chunks } | Self::ChunksPinned { chunks, .. } => chunks.len() > LONG_ROWS,
            Self::Sequences { namespaces } => namespaces.len() > LONG_ROWS,
            Self::DevicesLive { devices } => devices.len() > LONG_ROWS,
        }
    }
}

/// What [`Query::answers_little`] may be asked about by name.
const LITTLE_ITEMS: usize = 64;

impl Query {
    /// Whether its reply has some 64 KiB at most, and comes soon: such queries travel together.
    #[must_use]
    pub fn answers_little(&self) -> bool {
        match self {
            Self::AccountByEmail { .. }
            | Self::Account { .. }
            | Self::Device { .. }
            | Self::Namespace { .. }
            | Self::Version { .. }
            | Self::OpenFile { .. }
            | Self::NurserySums => true,
            Self::Resolve { paths, .. } => paths.len() <= LITTLE_ITEMS / 4,
            Self::EntriesById { entries, .. } => entries.len() <= LITTLE_ITEMS / 4,
            Self::Uploads { uploads, .. } => uploads.len() <= LITTLE_ITEMS,
            Self::NamespaceHolds { contents, .. } => contents.len() <= LITTLE_ITEMS,
            Self::ChunksLocate { chunks } | Self::ChunksPinned { chunks, .. } => chunks.len() <= LONG_ROWS,
            Self::Sequences { namespaces } => namespaces.len() <= LITTLE_ITEMS,
            Self::DevicesLive { devices } => devices.len() <= LITTLE_ITEMS,
            _ => false,
        }
    }
}

/// Where the listing of a folder has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BelowFrame {
    /// The folder.
    pub folder: EntryId,
    /// The last name of it that was listed; empty: none yet.
    pub after: String,
}

/// How far a path leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Names that were found, from the root on.
    pub found: u32,
    /// What the last found name is (the root folder if none was).
    pub last: EntryRow,
    /// The entry that holds, or would hold, the path's last name, if every name before it was found and it is a
    /// folder. For the root folder: itself.
    pub parent: Option<EntryId>,
}

/// The answer to a query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The map.
    ClusterMap(Box<ClusterMap>),
    /// Names and values.
    Settings(Vec<(String, String)>),
    /// Whose email it is.
    AccountId(Option<AccountId>),
    /// The account.
    Account(Option<AccountRow>),
    /// Its devices.
    Devices(Vec<(DeviceId, DeviceRow)>),
    /// The account and one device of it.
    Device(Option<(AccountRow, DeviceRow)>),
    /// The namespace.
    Namespace(Option<NamespaceRow>),
    /// Where paths lead.
    Resolved(Vec<Resolved>),
    /// A page of entries.
    Entries {
        /// By name.
        entries: Vec<EntryRow>,
        /// Whether there are further ones.
        more: bool,
    },
    /// Versions.
    Versions(Vec<VersionRow>),
    /// One version.
    Version(Option<VersionRow>),
    /// A page of the trash.
    Trash {
        /// Oldest first.
        items: Vec<TrashRow>,
        /// Whether there are further ones.
        more: bool,
    },
    /// Names from the root on.
    Paths(Vec<Option<Vec<String>>>),
    /// Sessions.
    Uploads(Vec<Option<UploadRow>>),
    /// A part of a chunk list.
    UploadPart(Vec<ManifestEntry>),
    /// Yes or no, in order.
    Flags(Vec<bool>),
    /// Releases.
    Releases(Vec<Release>),
    /// Contents.
    Contents(Vec<Option<ContentRow>>),
    /// Places.
    Locations(Vec<Option<ChunkLocation>>),
    /// The group's sums.
    Counters(GroupCounters),
    /// The namespace is not there.
    NoNamespace,
    /// The slot is another group's.
    NotOwner(SlotId),
    /// The query is not one that this version of the software knows, it asks for too much at once, or it is for
    /// another kind of group.
    NotUnderstood,
    /// The installation has not been made.
    NoCluster,
    /// A page of changes.
    Changes {
        /// In order.
        changes: Vec<ChangeRow>,
        /// Up to which number.
        position: u64,
        /// What the next page is to be asked with.
        since: u64,
        /// Whether there are further ones.
        more: bool,
    },
    /// The journal does not go back that far, or not that far forward: begin anew.
    ChangesGone,
    /// A page of what is below a folder; `None` if the folder is not in the tree.
    Below(Option<BelowPage>),
    /// Entries.
    EntriesById(Vec<Option<EntryRow>>),
    /// Numbers; `None` for a namespace that is not there.
    Sequences(Vec<Option<u64>>),
    /// The secret, if it was made.
    Secret(Option<SecretBytes>),
    /// Sessions.
    UploadsOpen(Vec<UploadRow>),
    /// Releases that were set aside.
    ReleasesAside(Vec<AsideRelease>),
    /// A page of changes.
    ChangesAfter {
        /// In order.
        changes: Vec<ChangeRow>,
        /// Up to which number.
        position: u64,
        /// What the next page is to be asked with.
        since: u64,
        /// And with which runs.
        runs: Vec<JournalRun>,
        /// Whether there are further ones.
        more: bool,
    },
    /// What the caller has seen is of another history: this one went back to an older state and has gone on from there.
    WentBack {
        /// Up to this number both are the same; 0 if that is not known.
        common: u64,
    },
    /// A page of what is below a folder, and where the journal was.
    BelowAt {
        /// `None` if the folder is not in the tree.
        page: Option<BelowPage>,
        /// The journal's latest number.
        number: u64,
        /// Its runs up to that one.
        runs: Vec<JournalRun>,
    },
    /// Where contents are.
    ContentsIn(Vec<FoundContent>),
    /// What was found.
    Opened(Box<Opened>),
    /// A page of the nursery.
    Nursery {
        /// In the order of namespaces and contents.
        files: Vec<NurseryFile>,
        /// Where the next page begins; `None`: that was all.
        next: Option<(NamespaceId, ContentId, u64)>,
    },
    /// Its sums.
    NurserySums(NurserySums),
}

/// A page of what is below a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BelowPage {
    /// Each folder before what is in it.
    pub entries: Vec<EntryRow>,
    /// Where the next page begins; empty: that was all.
    pub position: Vec<BelowFrame>,
}
