//! The nursery: small files whose bytes lie in a row of their namespace's group until they are packed into stripes.

use engine::cutter::Cutter;
use engine::ids::{AccountId, ContentId, DeviceId, EntryId, HolderId, NamespaceId};
use engine::location::ChunkLocation;
use engine::manifest::ManifestEntry;
use serde::{Deserialize, Serialize};

use super::command::Base;
use super::query::Resolved;
use super::row::{ContentRow, EntryRow};

/// Bytes of a file that is put by one command.
pub const SMALL_FILE_BYTES_MAX: usize = 64 * 1024;

/// Whose token came with a request: judged where the work is done.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenGuard {
    /// Whose.
    pub account: AccountId,
    /// Which device's.
    pub device: DeviceId,
    /// SHA-256 of the token's secret, as the device's row keeps it.
    pub token_hash: [u8; 32],
}

impl std::fmt::Debug for TokenGuard {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TokenGuard")
            .field("account", &self.account)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// A file that is put by one command, with its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmallFile {
    /// Where `names` begin.
    pub folder: EntryId,
    /// Names of the folders from there on, which must be there, and the file's own.
    pub names: Vec<String>,
    /// What must be there.
    pub base: Base,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Who puts it.
    pub device: DeviceId,
    /// How it is cut.
    pub cutter: Cutter,
    /// Its chunks, in order; whoever proposes it has checked that these are their names.
    pub chunks: Vec<ManifestEntry>,
    /// Its bytes, at most [`SMALL_FILE_BYTES_MAX`].
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// How far a file of the nursery is on its way to a stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NurseryState {
    /// Its bytes are here, and nobody has begun to move them.
    Kept,
    /// Its bytes are here, and are being stored elsewhere for this holder.
    Moving {
        /// Who refers to its chunks meanwhile, and perhaps from then on.
        holder: HolderId,
    },
    /// Its bytes are not needed here any more. The holder is another's, or the last use has gone: its pins are to be
    /// removed, unless it turns out to be the content's.
    Leaving {
        /// Whose pins.
        holder: HolderId,
    },
}

/// A content in the nursery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NurseryRow {
    /// Its chunks, in order.
    pub chunks: Vec<ManifestEntry>,
    /// Since when it is there, by the log's time.
    pub since_ms: u64,
    /// An upload session has held the content meanwhile: it may have made a reference of this generation.
    pub shared: bool,
    /// How far it is.
    pub state: NurseryState,
}

impl NurseryRow {
    /// Bytes of all chunks.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.size).sum()
    }
}

/// One content of the nursery, as whoever empties it sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NurseryFile {
    /// Whose.
    pub namespace: NamespaceId,
    /// Which content.
    pub content: ContentId,
    /// Of which use.
    pub generation: u64,
    /// Its row.
    pub row: NurseryRow,
    /// Its bytes; none if it is leaving.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// What a group's nursery holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NurserySums {
    /// Contents whose bytes are there.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Where a namespace's content is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FoundContent {
    /// Not in the nursery, and its slot is another group's: to be asked for there.
    Elsewhere,
    /// Nowhere.
    Absent,
    /// In stripes.
    Stored(ContentRow),
    /// In the nursery.
    Nursery {
        /// Its chunks, in order.
        chunks: Vec<ManifestEntry>,
        /// Its bytes, if they were asked for.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
}

/// Which file is to be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileAt {
    /// Names from the root folder on.
    Path(Vec<String>),
    /// By its id.
    Entry(EntryId),
}

/// What was found where a file was to be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Opened {
    /// The token is not right, or not any more.
    TokenRefused,
    /// There is no such entry; the path leads so far.
    NoEntry(Option<Resolved>),
    /// The entry.
    Found {
        /// As it is now.
        entry: EntryRow,
        /// Its content; `None` if it is no file, or empty.
        content: Option<FoundContent>,
        /// Where the first of its chunks lie, in order, as far as this group knows.
        places: Vec<Option<ChunkLocation>>,
    },
}
