//! What the steps of a command answer.

use engine::ids::{AccountId, ContentId, HolderId, VolumeId};
use engine::manifest::ContentList;
use serde::{Deserialize, Serialize};

use super::command::StepError;
use super::journal::JournalRun;
use super::row::{EntryRow, SecretBytes};

/// The answer to one step, in the order of the command's steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepOutcome {
    /// Done, and nothing to say.
    Done,
    /// [`super::command::RootStep::VolumesCreate`].
    VolumesCreated(Vec<VolumeId>),
    /// [`super::command::DataStep::EmailReserve`]: whose it is now.
    EmailReserved(AccountId),
    /// [`super::command::DataStep::UploadHold`].
    Held {
        /// The reference's generation; 0 for an empty file.
        generation: u64,
        /// Whether the content's group has the reference already, so that retaining may be left out.
        retained: bool,
    },
    /// An entry as it is now.
    Entry(EntryRow),
    /// [`super::command::DataStep::EntryDelete`].
    Trashed {
        /// Its number in the trash.
        trash: u64,
    },
    /// [`super::command::DataStep::UploadAbort`].
    Aborted {
        /// Whose pins are to be removed, after [`super::command::DataStep::HolderDismiss`]; `None` if the session
        /// was unknown or had been committed.
        holder: Option<HolderId>,
        /// A reference that must be released, if the hold was the last use.
        release: Option<Release>,
    },
    /// [`super::command::DataStep::TrashPurge`].
    Purged {
        /// Nothing is left of it.
        done: bool,
        /// Entries removed by this step.
        entries: u64,
        /// Bytes of their versions.
        bytes: u64,
        /// References to be released now: [`super::command::DataStep::ContentRelease`], then
        /// [`super::command::DataStep::ReleaseDone`].
        releases: Vec<Release>,
    },
    /// [`super::command::DataStep::ContentRetain`]: the holder in force.
    Retained {
        /// Who refers to the chunks.
        holder: HolderId,
    },
    /// [`super::command::DataStep::ContentRelease`].
    Released {
        /// Set if the content died by this very release (now or before, and is still queued).
        dead: Option<DeadContent>,
    },
    /// [`super::command::DataStep::ChunksPin`]: for each chunk, whether it is there and now pinned.
    Pinned(Vec<bool>),
    /// [`super::command::DataStep::ChunksRegister`]: for each chunk, whether this registration won.
    Registered(Vec<bool>),
    /// [`super::command::DataStep::HolderDismiss`].
    Dismissed {
        /// The holder is the content's: its pins must stay, and go when the content dies. Otherwise it never will
        /// be, and its pins may be removed.
        in_force: bool,
    },
    /// [`super::command::DataStep::Each`]: of each item, what its steps answer or why it changed nothing.
    Each(Vec<Result<Vec<StepOutcome>, StepError>>),
    /// [`super::command::DataStep::EntryDeleteSeen`].
    TrashedEntry {
        /// Its number in the trash.
        trash: u64,
        /// The entry as it was.
        entry: EntryRow,
    },
    /// [`super::command::RootStep::SecretMake`].
    Secret(SecretBytes),
    /// [`super::command::DataStep::UploadBegin`].
    UploadBegun {
        /// Who refers to the session's chunks: of a session that had begun before, the one that it began with.
        holder: HolderId,
    },
    /// [`super::command::DataStep::VersionsRemove`].
    VersionsRemoved {
        /// Nothing is left of what was chosen.
        done: bool,
        /// Versions removed by this step.
        versions: u64,
        /// Their bytes.
        bytes: u64,
        /// As of [`StepOutcome::Purged`].
        releases: Vec<Release>,
    },
    /// [`super::command::DataStep::JournalGuard`].
    JournalAt {
        /// The journal's number after the steps before this one.
        number: u64,
        /// Its latest run, if runs are recorded.
        run: Option<JournalRun>,
    },
    /// [`super::command::DataStep::NurseryTake`].
    NurseryTaken {
        /// Who refers to the chunks of this move, or of the one that was begun before; `None` if it is not there to be
        /// moved any more.
        holder: Option<HolderId>,
    },
    /// [`super::command::DataStep::NurserySettle`].
    NurserySettled {
        /// Pins of the move's holder may be left: it is to be dismissed, its pins are to be removed unless it is in force,
        /// and then it is to be forgotten ([`super::command::DataStep::NurseryForget`]).
        leaving: bool,
    },
}

/// A reference of a namespace to a content, to be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Release {
    /// The content.
    pub content: ContentId,
    /// The reference's generation.
    pub generation: u64,
}

/// A content without references: what refers to its chunks is to be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadContent {
    /// Its id.
    pub content: ContentId,
    /// Who refers to its chunks.
    pub holder: HolderId,
    /// Its chunks, or the top of their tree.
    pub list: ContentList,
}
