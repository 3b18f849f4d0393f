//! Commands: everything that changes metadata, as one group's state machine takes it.
//!
//! A command is a list of steps, applied in order and all or none. Steps that concern one group are fused into one
//! command; an operation over several groups is a row of commands in the order of `docs/metadata.md` (intent, retain,
//! commit, release), so that a crash between any two leaves garbage and never a dangling reference.
//!
//! Invariants:
//! - A command that fails changes nothing, and its failure is remembered like a success.
//! - A request id is applied once; a repetition within [`super::REQUEST_MEMORY_MS`] gives the first outcome, an older
//!   id is refused, and so is one that asks for something else.
//! - Every step is idempotent in itself where its doc says so, so that recovery may repeat it under a new request id.
//!
//! Encoding: postcard. New steps and fields are only ever added at the end, under a new [`super::MODEL_FORMAT`].

use engine::cluster::StripeRecord;
use engine::cutter::Cutter;
use engine::ids::{
    AccountId, ChunkId, ContentId, DeviceId, EntryId, Epoch, HolderId, NamespaceId, RequestId, SlotId,
    StripeId, UploadId, VersionId, VolumeId,
};
use engine::location::ChunkLocation;
use engine::manifest::{ContentList, ManifestEntry};
use serde::{Deserialize, Serialize};

use super::journal::Seen;
use super::nursery::{SmallFile, TokenGuard};
use super::request_key::{Payload, RequestKey};
use super::row::{AccountRow, DeviceRow, EntryKind};

pub use super::answer::CommandOutcome;
pub use super::choice::{Base, OnExisting, OpenUploadsMax, VersionChoice};
pub use super::root_step::{AttestedDisk, RootStep};
pub use super::step_error::StepError;

/// What a client of a group proposes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Names the request for repetitions.
    pub request: RequestId,
    /// What to do, all or none.
    pub steps: Steps,
    /// What the request asked for; `None` if that is these very bytes. A repetition that asks for something else is
    /// refused: [`StepError::RequestReused`].
    pub payload: Option<Payload>,
}

impl Command {
    /// A command under a request.
    #[must_use]
    pub fn new(request: impl Into<RequestKey>, steps: Steps) -> Self {
        let RequestKey { id, payload } = request.into();
        Self { request: id, steps, payload }
    }
}

/// The steps of a command, by the kind of group they are for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Steps {
    /// For the root group.
    Root(Vec<RootStep>),
    /// For a data group.
    Data(Vec<DataStep>),
}

/// A chunk to be registered, with those who refer to it from the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewChunk {
    /// Its id.
    pub chunk: ChunkId,
    /// Where it lies. The first registration wins, unless what it says was found unreadable; a loser's place is dead
    /// space.
    pub location: ChunkLocation,
    /// Sessions that pin it, won or lost.
    pub holders: Vec<HolderId>,
}

/// What a data group does. The slot that must be owned is that of the first id named in each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataStep {
    /// Takes ownership of slots that no group owns yet. Idempotent.
    SlotsAdopt {
        /// First slot.
        first: SlotId,
        /// Last slot, included.
        last: SlotId,
    },

    // Accounts: in the account's slot, but for the email.
    /// Points an email (lower case) to an account, if it is free; answers whose it is. Slot: the email's.
    EmailReserve {
        /// The email.
        email: String,
        /// Whose it shall be.
        account: AccountId,
    },
    /// Makes an account. Idempotent for an equal row.
    AccountCreate {
        /// Its id.
        account: AccountId,
        /// Its row.
        row: AccountRow,
    },
    /// Adds a device.
    DeviceAdd {
        /// Whose.
        account: AccountId,
        /// Its id.
        device: DeviceId,
        /// Its row; `created_ms` is set from the leader's time.
        row: DeviceRow,
    },
    /// Revokes a device's token. Idempotent.
    DeviceRevoke {
        /// Whose.
        account: AccountId,
        /// Which.
        device: DeviceId,
    },

    // Namespaces: in the namespace's slot.
    /// Makes a namespace with its root folder (entry 1). Idempotent.
    NamespaceCreate {
        /// Its id.
        namespace: NamespaceId,
        /// Its owner.
        owner: AccountId,
        /// Bytes that all kept versions may take; 0 = no limit.
        quota_bytes: u64,
    },
    /// Opens an upload session, and keeps its chunk list. For an equal session, whatever its holder, the same as
    /// [`DataStep::UploadExtend`]. Answers [`StepOutcome::UploadBegun`] with the holder in force.
    UploadBegin {
        /// Where it will be committed.
        namespace: NamespaceId,
        /// The session.
        upload: UploadId,
        /// Who refers to its chunks, if the session begins now: fresh random bits.
        holder: HolderId,
        /// Name of the content that it makes.
        content: ContentId,
        /// Bytes of the file.
        size: u64,
        /// How it is cut.
        cutter: Cutter,
        /// Its chunks, in order.
        chunks: Vec<ManifestEntry>,
        /// How long the session lives.
        life_ms: u64,
        /// How many others there may be that have not ended.
        most: OpenUploadsMax,
    },
    /// The intent: counts the session's content as used by the namespace before anything is retained elsewhere, so
    /// that it cannot vanish meanwhile. Answers [`StepOutcome::Held`]. Idempotent. Nothing is done for an empty file.
    UploadHold {
        /// The session's namespace.
        namespace: NamespaceId,
        /// The session.
        upload: UploadId,
    },
    /// The commit: makes the file, or a new version, of a session that holds its content (empty files need not),
    /// marks the content as retained, and ends the session. Answers [`StepOutcome::Entry`].
    FileCommit {
        /// The session's namespace.
        namespace: NamespaceId,
        /// The session.
        upload: UploadId,
        /// The folder.
        parent: EntryId,
        /// The file's name.
        name: String,
        /// What must be there.
        base: Base,
        /// Permission bits.
        mode: u32,
        /// Modification time, nanoseconds since 1970.
        mtime_ns: i64,
        /// Who commits.
        device: DeviceId,
    },
    /// Gives a session up. Answers [`StepOutcome::Aborted`]; the caller then releases, dismisses the holder
    /// ([`DataStep::HolderDismiss`]) and removes its pins if it is not in force. Idempotent.
    UploadAbort {
        /// The session's namespace.
        namespace: NamespaceId,
        /// The session.
        upload: UploadId,
    },
    /// Makes a folder or a symlink. Answers [`StepOutcome::Entry`].
    EntryCreate {
        /// Where.
        namespace: NamespaceId,
        /// The folder.
        parent: EntryId,
        /// Its name.
        name: String,
        /// [`EntryKind::Folder`] or [`EntryKind::Symlink`].
        kind: EntryKind,
        /// Permission bits.
        mode: u32,
        /// Modification time.
        mtime_ns: i64,
        /// If something is there.
        existing: OnExisting,
    },
    /// Sets permission bits and modification time (a file's current version keeps its own copy of both).
    EntrySetAttributes {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        entry: EntryId,
        /// Permission bits.
        mode: u32,
        /// Modification time.
        mtime_ns: i64,
    },
    /// Moves or renames an entry that is at `from_parent`/`from_name` now. Cycles are refused. With `replace`, what
    /// is at the target goes to the trash. Moving an entry onto itself changes nothing.
    EntryMove {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        entry: EntryId,
        /// Its folder now.
        from_parent: EntryId,
        /// Its name now.
        from_name: String,
        /// Its folder to be.
        to_parent: EntryId,
        /// Its name to be.
        to_name: String,
        /// Whether something at the target may go to the trash.
        replace: bool,
    },
    /// Makes a file or a symlink with the current content of another, in the same namespace.
    EntryCopy {
        /// Where.
        namespace: NamespaceId,
        /// Of which.
        entry: EntryId,
        /// The folder.
        to_parent: EntryId,
        /// The name.
        to_name: String,
        /// Whether something at the target may go to the trash.
        replace: bool,
        /// Who copies.
        device: DeviceId,
    },
    /// Moves an entry, with all below it, to the trash: a few rows, however large it is. Answers
    /// [`StepOutcome::Trashed`].
    EntryDelete {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        entry: EntryId,
        /// Its folder now.
        parent: EntryId,
        /// Its name now.
        name: String,
        /// Whether a folder with entries may go.
        recursive: bool,
    },
    /// Adds a new version with the content of an earlier one. Answers [`StepOutcome::Entry`].
    VersionRestore {
        /// Where.
        namespace: NamespaceId,
        /// Which file.
        entry: EntryId,
        /// Which version.
        version: VersionId,
        /// Who restores.
        device: DeviceId,
    },
    /// Takes an entry out of the trash. Answers [`StepOutcome::Entry`].
    TrashRestore {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        trash: u64,
        /// The folder.
        to_parent: EntryId,
        /// The name.
        to_name: String,
    },
    /// Removes up to `entries_max` entries of a trashed tree for good, leaves first. Answers
    /// [`StepOutcome::Purged`]; repeated by the caller until it is done. A purge that has begun cannot be restored.
    TrashPurge {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        trash: u64,
        /// At most so many now.
        entries_max: u32,
    },
    /// Takes a release off the queue of those to be done, once its content's group has it. Idempotent.
    ReleaseDone {
        /// Whose queue.
        namespace: NamespaceId,
        /// The content.
        content: ContentId,
        /// The generation that was released.
        generation: u64,
    },

    // Contents: in the content's slot.
    /// Refers to a content from a namespace; makes the content, with `holder` as the one who refers to its chunks,
    /// if it is not there. Answers [`StepOutcome::Retained`] with the holder in force: if it is another's, the
    /// caller's pins are to be removed after the commit. Refused ([`StepError::Changed`]) once this generation has
    /// been released or, where the content would be made, once the holder has been dismissed. Idempotent.
    ContentRetain {
        /// Which.
        content: ContentId,
        /// From where.
        namespace: NamespaceId,
        /// As [`StepOutcome::Held`] said; `None` where the namespace is in this very group and the hold is a step
        /// before: it is read from there.
        generation: Option<u64>,
        /// The session's holder.
        holder: HolderId,
        /// Bytes.
        size: u64,
        /// Its chunks, or the top of their tree.
        list: ContentList,
    },
    /// Refers no more. If it was the last reference the content dies: [`StepOutcome::Released`] has what is to be
    /// released then, and it stays queued until [`DataStep::DeadContentForget`]. Idempotent.
    ContentRelease {
        /// Which.
        content: ContentId,
        /// From where.
        namespace: NamespaceId,
        /// The generation of the reference.
        generation: u64,
    },
    /// Takes a dead content off the queue, once the references to its chunks are gone. Idempotent.
    DeadContentForget {
        /// Which.
        content: ContentId,
        /// Who referred.
        holder: HolderId,
    },

    // Chunks: each in its own slot; all of one step in slots of one group.
    /// Refers to chunks that are registered, not condemned and not known to be unreadable. Answers [`StepOutcome::Pinned`]. Idempotent.
    ChunksPin {
        /// Who refers.
        holder: HolderId,
        /// To which.
        chunks: Vec<ChunkId>,
    },
    /// Registers chunks of a stripe whose own row is committed. Answers [`StepOutcome::Registered`]. Idempotent.
    ChunksRegister {
        /// The epoch at which their stripe was written.
        epoch: Epoch,
        /// All of one stripe.
        chunks: Vec<NewChunk>,
    },
    /// Refers no more; a chunk whose last reference goes is unreferenced from the leader's time on. Idempotent.
    ChunksUnpin {
        /// Who referred.
        holder: HolderId,
        /// To which.
        chunks: Vec<ChunkId>,
    },
    /// Registers a stripe, in the slot of its id, before its chunks. Idempotent for an equal record.
    StripeRegister {
        /// What is known of it.
        record: StripeRecord,
    },
    /// From now on registrations of this volume with an older epoch are refused. Idempotent, never lowers.
    VolumeFence {
        /// Which.
        volume: VolumeId,
        /// The oldest epoch that is taken.
        epoch: Epoch,
    },

    /// Bars a session's holder from becoming the content's, unless it is: to be committed before the pins of a
    /// session are removed, whenever [`StepOutcome::Retained`] has not told that the holder in force is another's
    /// (the session was aborted, or retaining was left out because [`StepOutcome::Held`] said `retained`). A paused
    /// gateway may still send a [`DataStep::ContentRetain`] of the session, and a retain that came before may have
    /// made the content live by this holder. Answers [`StepOutcome::Dismissed`]. Idempotent. Slot: the content's.
    HolderDismiss {
        /// The session's content.
        content: ContentId,
        /// The session's holder.
        holder: HolderId,
    },

    /// Items that each succeed or fail by themselves, in order; the steps of one item are all or none. Answers
    /// [`StepOutcome::Each`]. At most [`super::STEPS_MAX`] steps together; not within another one. Fails as a whole
    /// only if a slot is another group's.
    Each {
        /// The steps of each.
        items: Vec<Vec<DataStep>>,
    },
    /// How long the journals of this group keep what is gone.
    JournalHorizonSet {
        /// Milliseconds.
        horizon_ms: u64,
    },
    /// Moves an entry to the trash if it is still what the caller has seen; otherwise [`StepError::Changed`] or
    /// [`StepError::Conflict`]. Answers [`StepOutcome::TrashedEntry`].
    EntryDeleteSeen {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        entry: EntryId,
        /// Its folder now.
        parent: EntryId,
        /// Its name now.
        name: String,
        /// Of a file: its current version.
        version: Option<VersionId>,
        /// Whether a folder with entries may go.
        recursive: bool,
        /// Of a symlink, and of a folder with `recursive`: nothing at or below it has changed after this number.
        unchanged_since: u64,
    },
    /// [`DataStep::EntrySetAttributes`] of a file whose current version is still this one.
    EntrySetAttributesSeen {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        entry: EntryId,
        /// The version; [`StepError::Conflict`] if it is not the current one.
        version: VersionId,
        /// Permission bits.
        mode: u32,
        /// Modification time.
        mtime_ns: i64,
    },
    /// Points a symlink elsewhere, if it still points where the caller has seen. Answers [`StepOutcome::Entry`].
    SymlinkRetarget {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        entry: EntryId,
        /// Where it points now.
        #[serde(with = "serde_bytes")]
        target_before: Vec<u8>,
        /// Where it is to point.
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// Modification time.
        mtime_ns: i64,
    },
    /// Makes a session that has not ended ([`StepError::UploadEnded`]) live at least so long from now on. Idempotent.
    UploadExtend {
        /// The session's namespace.
        namespace: NamespaceId,
        /// The session.
        upload: UploadId,
        /// How long.
        life_ms: u64,
    },
    /// Says of chunks that they cannot be read in the stripes that they should lie in: their next registration takes
    /// the place. Nothing is done to one that lies elsewhere by now. Idempotent.
    ChunksUnreadable {
        /// Which, and in which stripe it could not be read. All in slots of one group.
        chunks: Vec<(ChunkId, StripeId)>,
    },
    /// As [`DataStep::UploadAbort`], for a session whose time is over by the leader's clock: at its expiry, or two
    /// minutes after it was given up; or for one that nobody has gone on with, if its namespace needs the room. Refused
    /// for others. Idempotent.
    UploadExpire {
        /// The session's namespace.
        namespace: NamespaceId,
        /// The session.
        upload: UploadId,
        /// Also one that is open or held, if this is still when it will end: going on with it puts that off.
        idle: Option<u64>,
    },
    /// Forgets a session that was given up, with its chunk list, once its pins are gone. Idempotent; refused as
    /// [`DataStep::UploadExpire`] is, and for one that has just been given up.
    UploadForget {
        /// The session's namespace.
        namespace: NamespaceId,
        /// The session.
        upload: UploadId,
    },
    /// Removes earlier versions of a file in the tree for good, oldest first, up to `versions_max` of those chosen;
    /// the current one always stays. Answers [`StepOutcome::VersionsRemoved`]; repeated by the caller until it is
    /// done. Idempotent: what is not there any more is nothing to do.
    VersionsRemove {
        /// Where.
        namespace: NamespaceId,
        /// Which file.
        entry: EntryId,
        /// Which of its versions.
        which: VersionChoice,
        /// At most so many now.
        versions_max: u32,
    },
    /// Sets how many bytes a namespace may take; what is there stays, even if it is more. Idempotent.
    NamespaceQuotaSet {
        /// Which.
        namespace: NamespaceId,
        /// 0 = no limit.
        quota_bytes: u64,
    },
    /// Takes a release that cannot be done now out of the way of the others, to be tried again later: see
    /// [`super::query::Query::ReleasesDue`]. It stays queued, also for [`DataStep::ReleaseDone`]. Each time it waits
    /// longer. Nothing is done if it is not queued any more.
    ReleaseSetAside {
        /// Whose queue.
        namespace: NamespaceId,
        /// The content.
        content: ContentId,
        /// The generation.
        generation: u64,
        /// Why it cannot be done, for people; cut to [`super::row::ASIDE_WHY_BYTES_MAX`].
        why: String,
    },
    /// Changes nothing: refuses the command if what its caller has seen is not of the journal's own history, as it is
    /// after the metadata went back to an older state. As a command's last step it answers where the command has brought
    /// the journal ([`StepOutcome::JournalAt`]).
    JournalGuard {
        /// Which journal.
        namespace: NamespaceId,
        /// What they have seen of it.
        seen: Seen,
    },
    /// Changes nothing: refuses the command ([`StepError::TokenRefused`]) unless the token is right and its device not
    /// revoked. Slot: the account's.
    TokenGuard(TokenGuard),
    /// Makes a file, or a new version of one, with its bytes, which are kept in the nursery. Answers
    /// [`StepOutcome::Entry`]. Refused as [`StepError::NurseryFull`] if there is no room, and as [`StepError::ContentHeld`]
    /// if the namespace has the content in stripes: then the way over an upload session is taken.
    FilePut {
        /// Where.
        namespace: NamespaceId,
        /// The file.
        file: Box<SmallFile>,
        /// Bytes that the nursery may hold.
        nursery_bytes_max: u64,
    },
    /// Makes `mover` the one who empties this group's nursery, for a time. [`StepError::Changed`] while another one is.
    NurseryLease {
        /// Who: random bits of its own.
        mover: u64,
        /// For how long.
        life_ms: u64,
    },
    /// Begins to move a content out of the nursery. Answers [`StepOutcome::NurseryTaken`] with the holder in force.
    /// Idempotent.
    NurseryTake {
        /// Whose.
        namespace: NamespaceId,
        /// Which.
        content: ContentId,
        /// Of which use.
        generation: u64,
        /// Who refers to the chunks, if moving begins now: fresh random bits.
        holder: HolderId,
    },
    /// Ends the move of a content whose chunks are stored and which has been retained elsewhere for the use: from now on
    /// it counts as retained, and its bytes go. If the last use has gone meanwhile, nothing is done. Answers
    /// [`StepOutcome::NurserySettled`]. Idempotent.
    NurserySettle {
        /// Whose.
        namespace: NamespaceId,
        /// Which.
        content: ContentId,
        /// Of which use.
        generation: u64,
        /// The content's holder, as [`StepOutcome::Retained`] said; `None` where the content's slot is of this very group:
        /// it is read from there.
        in_force: Option<HolderId>,
    },
    /// Forgets a content that is leaving, once the pins of its holder are gone. Idempotent.
    NurseryForget {
        /// Whose.
        namespace: NamespaceId,
        /// Which.
        content: ContentId,
        /// Of which use.
        generation: u64,
    },
}
