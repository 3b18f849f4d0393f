//! What synchronisation removes goes to `.keepstone/trash/DATE/` under the path it had, for 30 days.
//!
//! If something is there under that path already, it goes to `.keepstone/trash/DATE/RANDOM/` and the path.
//!
//! Invariants:
//! - It is moved, never copied and deleted: after a crash it is at its place or in the trash.
//! - A folder goes only if all below it is as it was last seen and has been on the server so. What came into it between
//!   that look and the move brings it back.
//! - What is ignored in a folder never goes with it: the folder stays, with that and with the rules that say so.
//! - What is removed rather than kept in the trash is on the server in that very version.
//! - What is mounted below a folder neither goes with it nor is removed with the trash.

mod around;
mod check;
mod emptying;
mod removal;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use self::check::FolderCheck;
use super::disk::{DiskError, Durability, ObjectKind, rename_new, same_but_renamed};
use super::ignore_rules::IgnoreRules;
use super::model::{LocalIndex, Stamp};
use super::rel::{Rel, STATE_FOLDER};
use super::root::{Root, TRASH_FOLDER};
use crate::planner::model::NodeId;

/// Said in the place of a path in the trash.
const FREED: &str = "it is on the server; its space is free";

/// Why a folder was not moved to the trash. Nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum TrashFolderError {
    /// As for everything.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Something in it is not synchronised, and no scan will change that: somebody must do something about it.
    #[error("cannot be removed here because of {path}: {why}; move or remove that")]
    Blocked {
        /// What, as it can be shown.
        path: String,
        /// Why it is not synchronised.
        why: String,
    },
}

/// What becomes of what goes from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays in the trash for its days.
    Kept,
    /// What the server has in that very version is removed, so that its space is free; the rest stays in the trash.
    Freed,
}

/// A day as `YYYY-MM-DD`, by days since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn date_of(days: i64) -> String {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

fn days_now() -> i64 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    i64::try_from(seconds / 86_400).unwrap_or_default()
}

/// Opens the folder `name` in another, and makes it if it is not there.
fn folder_in(folder: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(folder, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    child(folder, name)
}

fn child(folder: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

impl Root {
    /// Moves a file or symlink to the trash, if it is as expected. Says where below the trash it is. Blocks.
    ///
    /// # Errors
    /// `Changed`, `Vanished`: nothing was done. `NoSpace`, `Denied`, `Io`.
    pub fn trash(&self, rel: &Rel, expected: &Stamp, durability: Durability) -> Result<String, DiskError> {
        Ok(self.trash_to(rel, expected, durability)?.shown)
    }

    fn trash_to(&self, rel: &Rel, expected: &Stamp, durability: Durability) -> Result<Trashed, DiskError> {
        let (folder, name) = self.parent_of(rel)?;
        let from = (folder.as_fd(), name);
        let there = self.object_at(from.0, from.1).map_err(|errno| DiskError::of(rel, errno))?;
        if there.stamp != *expected || !matches!(there.kind, ObjectKind::File | ObjectKind::Symlink) {
            return Err(DiskError::Changed(rel.clone()));
        }
        let moved = self.move_to_trash(from, rel).map_err(|error| self.explained(error))?;
        if !same_but_renamed(&moved.object.stamp, expected) {
            self.bring_back(&moved, from, rel)?;
            return Err(DiskError::Changed(rel.clone()));
        }
        self.sync_trashed(rel, &moved, durability)?;
        Ok(moved)
    }

    /// Moves a folder with all that is in it to the trash, if all of it is as `index` knows it and has been sent. What
    /// is ignored by `rules` stays where it is, in its folders. What is known and not there any more does not matter.
    /// Says where below the trash it is. Blocks.
    ///
    /// # Errors
    /// `Blocked`; `Changed` with the path of what is not known, not as it was or not sent; `Vanished`: nothing was done. `NoSpace`,
    /// `Denied`, `Io`.
    pub fn trash_folder(
        &self,
        rel: &Rel,
        node: NodeId,
        index: &dyn LocalIndex,
        rules: &IgnoreRules,
        fate: Fate,
    ) -> Result<String, TrashFolderError> {
        let (folder, name) = self.parent_of(rel)?;
        let from = (folder.as_fd(), name);
        let there = self.object_at(from.0, from.1).map_err(|errno| DiskError::of(rel, errno))?;
        let known = index.node(node).is_some_and(|known| known.stamp.identity == there.stamp.identity);
        if !known || there.kind != ObjectKind::Folder {
            return Err(DiskError::Changed(rel.clone()).into());
        }
        let fd = self.open_folder(rel).map_err(|errno| DiskError::of(rel, errno))?;
        let check = FolderCheck { root: self, index };
        let level = rules.level_of(self, rel)?;
        if check.check(&fd, rel, node, &level, 0)? {
            return self.trash_around_ignored(&check, (rel, node), rules, fate);
        }
        let moved = self.move_to_trash(from, rel).map_err(|error| self.explained(error))?;
        // Once more, for what was saved in it meanwhile.
        let again = if moved.object.stamp.identity == there.stamp.identity {
            child(moved.folder.as_fd(), &moved.name)
                .map_err(|errno| DiskError::of(rel, errno).into())
                .and_then(|fd| check.check(&fd, rel, node, &level, 0))
                .and_then(
                    |ignores| {
                        if ignores { Err(DiskError::Changed(rel.clone()).into()) } else { Ok(()) }
                    },
                )
        } else {
            Err(DiskError::Changed(rel.clone()).into())
        };
        if let Err(error) = again {
            self.bring_back(&moved, from, rel)?;
            return Err(error);
        }
        self.sync_trashed(rel, &moved, Durability::Later)?;
        if fate == Fate::Freed && self.free_folder(&moved, node, index) {
            return Ok(FREED.to_owned());
        }
        Ok(moved.shown)
    }

    fn sync_trashed(&self, rel: &Rel, moved: &Trashed, durability: Durability) -> Result<(), DiskError> {
        if durability == Durability::Now {
            rustix::fs::fsync(&moved.folder).map_err(|errno| DiskError::of(rel, errno))?;
        }
        rel.parent().map_or(Ok(()), |folder| self.sync_fd(rel, &folder, durability))
    }

    /// Back to its place, unless something is there by now: then it stays in the trash.
    fn bring_back(&self, moved: &Trashed, to: (BorrowedFd<'_>, &OsStr), rel: &Rel) -> Result<(), DiskError> {
        match rename_new((moved.folder.as_fd(), &moved.name), to) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                tracing::warn!(path = %rel, trash = moved.shown, "was saved while it was removed; is in the trash");
                Ok(())
            }
            Err(errno) => Err(DiskError::of(rel, errno)),
        }
    }

    /// Moves what is at `from` to the trash, whatever it is.
    pub(super) fn move_to_trash(
        &self,
        from: (BorrowedFd<'_>, &OsStr),
        rel: &Rel,
    ) -> Result<Trashed, DiskError> {
        let failed = |errno| DiskError::of_rename(rel, errno);
        let date = date_of(days_now());
        let trash = self.state_folder(TRASH_FOLDER)?;
        let day = folder_in(trash.as_fd(), OsStr::new(&date)).map_err(failed)?;
        match self.move_below(from, day, &date, rel) {
            // Something was under the same path: a place of its own.
            Err(Errno::EXIST | Errno::NOTDIR | Errno::LOOP) => {
                let mut random = [0; 8];
                getrandom::fill(&mut random)
                    .map_err(|error| DiskError::of_io(rel, std::io::Error::other(error.to_string())))?;
                let own = hex::encode(random);
                let day = folder_in(trash.as_fd(), OsStr::new(&date)).map_err(failed)?;
                let day = folder_in(day.as_fd(), OsStr::new(&own)).map_err(failed)?;
                self.move_below(from, day, &format!("{date}/{own}"), rel).map_err(failed)
            }
            moved => moved.map_err(failed),
        }
    }

    fn move_below(
        &self,
        from: (BorrowedFd<'_>, &OsStr),
        base: OwnedFd,
        shown: &str,
        rel: &Rel,
    ) -> Result<Trashed, Errno> {
        let Some((parents, name)) = rel.split() else { return Err(Errno::INVAL) };
        let mut folder = base;
        for name in parents.names() {
            folder = folder_in(folder.as_fd(), OsStr::new(name))?;
        }
        let name = OsString::from(name);
        rename_new(from, (folder.as_fd(), &name))?;
        let object = self.object_at(folder.as_fd(), &name)?;
        Ok(Trashed { shown: format!("{shown}/{rel}"), folder, name, object })
    }

    /// Where the trash is, to be told to people.
    #[must_use]
    pub fn trash_path(&self) -> std::path::PathBuf {
        self.path().join(STATE_FOLDER).join(TRASH_FOLDER)
    }
}

/// Something that is in the trash now.
#[derive(Debug)]
pub(super) struct Trashed {
    folder: OwnedFd,
    name: OsString,
    object: super::disk::Object,
    shown: String,
}

impl Trashed {
    /// Where, below the trash.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }
}

#[cfg(test)]
mod tests;
