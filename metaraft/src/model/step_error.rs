//! Why a step of a command changes nothing.

use engine::ids::{Epoch, SlotId, VersionId};
use serde::{Deserialize, Serialize};

/// Why a step, and with it its command, changed nothing. Variants differ where the caller's next move differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StepError {
    /// The slot is another group's: fetch the shard map and go there.
    #[error("slot {slot} is not owned by this group")]
    NotOwner {
        /// Which.
        slot: SlotId,
    },
    /// A step for the root group came to a data group, or the other way round.
    #[error("step for another kind of group")]
    WrongGroup,
    /// The installation exists with another id, or does not exist yet.
    #[error("cluster is not this one, or not made yet")]
    WrongCluster,
    /// What the decision was based on has changed: look again.
    #[error("changed meanwhile: {what}")]
    Changed {
        /// What.
        what: String,
    },
    /// The email belongs to an account.
    #[error("email is taken")]
    EmailTaken,
    /// No such account, device, namespace, entry, version, trash item, session or content.
    #[error("no such {what}")]
    NotFound {
        /// What, in the glossary's words.
        what: String,
    },
    /// Something is there.
    #[error("already exists")]
    AlreadyExists {
        /// Its kind, in words.
        kind: String,
    },
    /// The file's current version is another than the base.
    #[error("conflict: the current version is {current:?}")]
    Conflict {
        /// The current version; `None` if nothing is there.
        current: Option<VersionId>,
    },
    /// A folder where a file was meant, or the other way round.
    #[error("it is a {is}")]
    WrongKind {
        /// What it is.
        is: String,
    },
    /// A folder with entries, deleted without `recursive`.
    #[error("folder is not empty")]
    NotEmpty,
    /// A folder would be moved below itself.
    #[error("a folder cannot be moved into itself")]
    Cycle,
    /// A name that no entry may have.
    #[error("bad name: {why}")]
    BadName {
        /// Why.
        why: String,
    },
    /// The tree would be deeper than [`super::DEPTH_MAX`].
    #[error("too deep: at most {max} folders within one another")]
    TooDeep {
        /// The bound.
        max: u32,
    },
    /// The namespace's quota would be exceeded.
    #[error("quota exceeded: used_bytes={used_bytes} quota_bytes={quota_bytes} needed_bytes={needed_bytes}")]
    Quota {
        /// Used now.
        used_bytes: u64,
        /// Allowed.
        quota_bytes: u64,
        /// Asked for.
        needed_bytes: u64,
    },
    /// The session has ended: committed, aborted or expired.
    #[error("upload session has ended: {how}")]
    UploadEnded {
        /// How.
        how: String,
    },
    /// A registration of an older epoch: fetch the cluster map and write the stripe again.
    #[error("stale epoch: current_epoch={current}")]
    StaleEpoch {
        /// The oldest that is taken.
        current: Epoch,
    },
    /// A value that can never be right.
    #[error("invalid: {why}")]
    Invalid {
        /// Why.
        why: String,
    },
    /// There are as many as there may be: some are to go first.
    #[error("too many: {what}")]
    TooMany {
        /// Of what, and what to do.
        what: String,
    },
    /// The request id has been used for something else: send a new one.
    #[error("the request id has been used for something else")]
    RequestReused,
    /// The token is wrong, or its device was revoked.
    #[error("the token is wrong or has been revoked")]
    TokenRefused,
    /// The nursery has no room for the file: it goes over stripes.
    #[error("the nursery is full")]
    NurseryFull,
    /// The namespace has the content in stripes, of which nobody knows here whether they can be read: it goes over stripes,
    /// where that is seen to.
    #[error("the content is in stripes already")]
    ContentHeld,
}
