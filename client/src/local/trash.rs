//! What synchronisation removes goes to `.keepstone/trash/DATE/` under the path it had, for 30 days.
//!
//! If something is there under that path already, it goes to `.keepstone/trash/DATE/RANDOM/` and the path.
//!
//! Invariants:
//! - It is moved, never copied and deleted: after a crash it is at its place or in the trash.
//! - A folder goes only if all below it is known and as it was last seen, or is never synchronised by the ignore
//!   rules. What came into it between that look and the move brings it back.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::beneath;
use super::disk::{DiskError, Durability, ObjectKind, rename_new, same_but_renamed};
use super::ignore_rules::{IgnoreRules, Level};
use super::list::{Entry, list};
use super::model::{LocalIndex, LocalRecord, Stamp};
use super::rel::{Rel, STATE_FOLDER};
use super::root::{Root, TRASH_FOLDER};
use crate::planner::model::NodeId;

/// Folders on one path that are looked at below a folder that is to go.
const DEPTH_MAX: usize = 4_096;

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
        let (folder, name) = self.parent_of(rel)?;
        let from = (folder.as_fd(), name);
        let there = self.object_at(from.0, from.1).map_err(|errno| DiskError::of(rel, errno))?;
        if there.stamp != *expected || !matches!(there.kind, ObjectKind::File | ObjectKind::Symlink) {
            return Err(DiskError::Changed(rel.clone()));
        }
        let moved = self.move_to_trash(from, rel)?;
        if !same_but_renamed(&moved.object.stamp, expected) {
            self.bring_back(&moved, from, rel)?;
            return Err(DiskError::Changed(rel.clone()));
        }
        self.sync_trashed(rel, &moved, durability)?;
        Ok(moved.shown)
    }

    /// Moves a folder with all that is in it to the trash, if all of it is as `index` knows it, or ignored by `rules`.
    /// What is known and not there any more does not matter. Says where below the trash it is. Blocks.
    ///
    /// # Errors
    /// `Changed` with the path of what is not known or not as it was; `Vanished`: nothing was done. `NoSpace`,
    /// `Denied`, `Io`.
    pub fn trash_folder(
        &self,
        rel: &Rel,
        node: NodeId,
        index: &dyn LocalIndex,
        rules: &IgnoreRules,
        durability: Durability,
    ) -> Result<String, DiskError> {
        let (folder, name) = self.parent_of(rel)?;
        let from = (folder.as_fd(), name);
        let there = self.object_at(from.0, from.1).map_err(|errno| DiskError::of(rel, errno))?;
        let known = index.node(node).is_some_and(|known| known.stamp.identity == there.stamp.identity);
        if !known || there.kind != ObjectKind::Folder {
            return Err(DiskError::Changed(rel.clone()));
        }
        let fd = self.open_folder(rel).map_err(|errno| DiskError::of(rel, errno))?;
        let check = FolderCheck { root: self, index };
        let level = rules.level_of(self, rel)?;
        check.check(&fd, rel, node, &level, 0)?;
        let moved = self.move_to_trash(from, rel)?;
        // Once more, for what was saved in it meanwhile.
        let again = if moved.object.stamp.identity == there.stamp.identity {
            child(moved.folder.as_fd(), &moved.name)
                .map_err(|errno| DiskError::of(rel, errno))
                .and_then(|fd| check.check(&fd, rel, node, &level, 0))
        } else {
            Err(DiskError::Changed(rel.clone()))
        };
        if let Err(error) = again {
            self.bring_back(&moved, from, rel)?;
            return Err(error);
        }
        self.sync_trashed(rel, &moved, durability)?;
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
        let failed = |errno| DiskError::of(rel, errno);
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

    /// Removes what has been in the trash for more than `days_max` days. Says how many days' trash it removed. Blocks.
    ///
    /// # Errors
    /// `Denied`, `Io`: the rest stays for the next time.
    pub fn empty_trash(&self, days_max: u32) -> Result<u32, DiskError> {
        let failed = |errno| DiskError::of(&Rel::root(), errno);
        let trash = self.state_folder(TRASH_FOLDER)?;
        let oldest_kept = date_of(days_now() - i64::from(days_max));
        let mut removed = 0;
        for entry in rustix::fs::Dir::read_from(&trash).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let is_date = name.len() == oldest_kept.len() && name.as_bytes()[0].is_ascii_digit();
            if !is_date || name >= oldest_kept.as_str() {
                continue;
            }
            let path = Path::new(&beneath::path_of_fd(trash.as_fd())).join(name);
            remove_all(&path).map_err(|error| DiskError::of_io(&Rel::root(), error))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Where the trash is, to be told to people.
    #[must_use]
    pub fn trash_path(&self) -> std::path::PathBuf {
        self.path().join(STATE_FOLDER).join(TRASH_FOLDER)
    }
}

/// Removes a folder and all below it, also what its owner made unwritable.
fn remove_all(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            for entry in walkdir::WalkDir::new(path).follow_links(false) {
                let entry = entry?;
                if entry.file_type().is_dir() {
                    std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o700))?;
                }
            }
            std::fs::remove_dir_all(path)
        }
        removed => removed,
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

/// Looks whether a folder holds only what is known.
struct FolderCheck<'a> {
    root: &'a Root,
    index: &'a dyn LocalIndex,
}

impl FolderCheck<'_> {
    /// `rel` is where the folder was in the root, which the ignore rules go by.
    fn check(
        &self,
        fd: &OwnedFd,
        rel: &Rel,
        node: NodeId,
        level: &Level,
        depth: usize,
    ) -> Result<(), DiskError> {
        if depth > DEPTH_MAX {
            return Err(DiskError::Changed(rel.clone()));
        }
        let listed = list(fd.as_fd(), self.root.device()).map_err(|errno| DiskError::of(rel, errno))?;
        let known = self.index.children(node);
        let known: HashMap<&str, &LocalRecord> =
            known.iter().map(|record| (record.place.name.as_str(), record)).collect();
        for Entry { name, object } in listed {
            let changed = || {
                let shown = name.to_str().and_then(|name| rel.join(name).ok());
                DiskError::Changed(shown.unwrap_or_else(|| rel.clone()))
            };
            let Some(text) = name.to_str() else { return Err(changed()) };
            let below = rel.join(text).map_err(|_no_path| changed())?;
            let is_folder = object.kind == ObjectKind::Folder;
            let Some(known) = known.get(text) else {
                if level.is_ignored(text, is_folder) && object.kind != ObjectKind::MountPoint {
                    continue;
                }
                return Err(changed());
            };
            if is_folder && known.stamp.identity == object.stamp.identity {
                let fd = child(fd.as_fd(), &name).map_err(|errno| DiskError::of(&below, errno))?;
                let level = level.enter(fd.as_fd(), text);
                self.check(&fd, &below, known.node, &level, depth + 1)?;
            } else if known.stamp != object.stamp {
                return Err(changed());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
