//! What keeps something from being done on this disk, and is not seen as a change by any scan once it has gone.
//!
//! Invariant: an obstacle that stays as it was never ends a wait, whatever is written beside it: else what is refused would be
//! tried without a pause.

use std::fmt;

use super::blocker::Blocker;
use super::rel::Rel;
use super::rights::Rights;
use super::room::Room;
use super::root::Root;

/// What to look at again, to know whether what was refused is worth another try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// Something lies there.
    Blocker(Blocker),
    /// This user may not.
    Rights(Rights),
    /// There was no room but this.
    Full(Room),
}

impl Obstacle {
    /// Where it is, if it is anywhere.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Rel> {
        let (blocker, rights) = match self {
            Self::Blocker(blocker) => (Some(&blocker.rel), None),
            Self::Rights(rights) => (None, Some(rights.places())),
            Self::Full(_) => (None, None),
        };
        blocker.into_iter().chain(rights.into_iter().flatten())
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocker(blocker) => blocker.fmt(f),
            Self::Rights(_) => f.write_str("this user may not change it"),
            Self::Full(_) => f.write_str("no space left on the disk"),
        }
    }
}

impl Root {
    /// Whether it is still there as it was. Blocks.
    pub(crate) fn is_kept_by(&self, obstacle: &Obstacle) -> bool {
        match obstacle {
            Obstacle::Blocker(blocker) => self.is_blocked_by(blocker),
            Obstacle::Rights(rights) => self.has_rights(rights),
            Obstacle::Full(room) => !self.has_more_room(*room),
        }
    }
}
