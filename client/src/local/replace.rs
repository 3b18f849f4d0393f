//! Puts a finished file, or a symlink, where another one is, without ever losing what somebody saved meanwhile.
//!
//! The new one and the one in place are exchanged in one step, and what came out is looked at: if it is not what was
//! expected, they are exchanged back. On file systems that cannot exchange, what is in place gets a second name (a hard
//! link) first, then the new one is renamed over it; where there are no hard links, it leaves its place first.
//!
//! On disk after a crash, step by step:
//! 1. The new one is called `.keepstone/tmp/swap-X`: nothing else has changed; on the next start it goes to the trash.
//! 2. Exchanged: the new one is in place, whole; the old one is `swap-X` and goes to the trash on the next start,
//!    whatever it was. (By hard link: the same.)
//! 3. The old one removed, or in the trash: done.
//!
//! What is not kept in sync (owner, group, ACL, extended attributes, flags) is carried over to the new one before step 1.
//! A file that has other names (hard links) leaves them with what they had: here each name is a file of its own, and the
//! server's of that name says nothing of the others.
//!
//! What stays possible: a program that has the old file open writes into it after the exchange. Those bytes are in the
//! trash if [`Replaced::ToTrash`] was asked for, as it is where the program was heard writing before; else they are gone
//! with the file.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::disk::{
    DiskError, Durability, ObjectKind, in_writable, moved_stamp, rename_new, same_but_renamed, times,
};
use super::model::Stamp;
use super::rel::Rel;
use super::root::{Root, TEMPORARY_FOLDER};
use super::temp::{SWAP_PREFIX, Temp};
use super::unsynced;

/// What becomes of the file that is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The server has its content.
    Removed,
    /// It is kept in the local trash.
    ToTrash,
}

fn swap_name() -> Result<OsString, DiskError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| DiskError::of_io(&Rel::root(), std::io::Error::other(error.to_string())))?;
    Ok(format!("{SWAP_PREFIX}{}", hex::encode(random)).into())
}

/// A name in the temporary folder, and one in place.
struct Swap<'a> {
    root: &'a Root,
    rel: &'a Rel,
    temporary: (BorrowedFd<'a>, &'a OsStr),
    in_place: (BorrowedFd<'a>, &'a OsStr),
    /// Of the new one, as it was finished.
    new: Stamp,
    expected: &'a Stamp,
}

impl Swap<'_> {
    fn failed(&self, errno: Errno) -> DiskError {
        DiskError::of(self.rel, errno)
    }

    /// Leaves the new one in place and the old one, as it was expected, under the temporary name; or all as it was. The
    /// stamp is that of the new one as it was finished: what a program writes into it from now on is its edit.
    fn run(&self) -> Result<Stamp, DiskError> {
        self.run_once()?;
        let placed = self.root.object_at(self.in_place.0, self.in_place.1);
        Ok(placed.map_or(self.new, |placed| moved_stamp(&self.new, placed.stamp)))
    }

    fn run_once(&self) -> Result<(), DiskError> {
        let there = self.root.object_at(self.in_place.0, self.in_place.1).map_err(|e| self.failed(e))?;
        if there.stamp != *self.expected || !matches!(there.kind, ObjectKind::File | ObjectKind::Symlink) {
            return Err(DiskError::Changed(self.rel.clone()));
        }
        match self.exchange() {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOSYS) => return self.replace_linked(),
            Err(errno) => return Err(self.failed(errno)),
        }
        let came_out = self.root.object_at(self.temporary.0, self.temporary.1).map_err(|e| self.failed(e))?;
        if same_but_renamed(&came_out.stamp, self.expected) {
            return Ok(());
        }
        self.undo()?;
        Err(DiskError::Changed(self.rel.clone()))
    }

    fn exchange(&self) -> Result<(), Errno> {
        let (a, b) = (self.temporary, self.in_place);
        in_writable(&[b.0], || rustix::fs::renameat_with(a.0, a.1, b.0, b.1, RenameFlags::EXCHANGE))
    }

    /// What came out was not expected: it goes back. Should a third thing have come to the place meanwhile, that one
    /// is kept in the trash.
    fn undo(&self) -> Result<(), DiskError> {
        let undone = match self.exchange() {
            // It was removed from its place: so the one that came out is put there.
            Err(Errno::NOENT) => rename_new(self.temporary, self.in_place),
            other => other,
        };
        let left = self.root.object_at(self.temporary.0, self.temporary.1);
        match (undone, left) {
            (_, Err(Errno::NOENT)) => Ok(()),
            (Ok(()), Ok(left)) if left.stamp.identity == self.new.identity => Ok(()),
            _ => self.root.move_to_trash(self.temporary, self.rel).map(drop),
        }
    }

    /// Without exchange: a second name for the old one, then the new one over it, then the temporary name for the old
    /// one. Between the check and the rename somebody else can put a third one there, which is then replaced: file
    /// systems that cannot exchange leave no better way that never leaves the place empty.
    fn replace_linked(&self) -> Result<(), DiskError> {
        let aside = swap_name()?;
        let folder = self.temporary.0;
        match rustix::fs::linkat(self.in_place.0, self.in_place.1, folder, &aside, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => return self.replace_moved(&aside),
            Err(errno) => return Err(self.failed(errno)),
        }
        let there = self.root.object_at(self.in_place.0, self.in_place.1).map_err(|e| self.failed(e))?;
        if !same_but_renamed(&there.stamp, self.expected) {
            let _left = rustix::fs::unlinkat(folder, &aside, AtFlags::empty());
            return Err(DiskError::Changed(self.rel.clone()));
        }
        self.rename_over(&aside)
    }

    /// The new one over the old one, which is called `aside` as well.
    fn rename_over(&self, aside: &OsStr) -> Result<(), DiskError> {
        let (folder, a, b) = (self.temporary.0, self.temporary, self.in_place);
        in_writable(&[b.0], || rustix::fs::renameat(a.0, a.1, b.0, b.1)).map_err(|e| self.failed(e))?;
        rustix::fs::renameat(folder, aside, folder, self.temporary.1).map_err(|e| self.failed(e))?;
        let came_out = self.root.object_at(folder, self.temporary.1).map_err(|e| self.failed(e))?;
        if same_but_renamed(&came_out.stamp, self.expected) {
            return Ok(());
        }
        // It was written to since the check, and cannot go back in one step.
        let trashed = self.root.move_to_trash(self.temporary, self.rel)?;
        tracing::warn!(path = %self.rel, trash = trashed.shown(), "was saved while it was replaced; is in the trash");
        Ok(())
    }

    /// Where there are no hard links either: the old one leaves its place, as `aside`, and the new one takes it if it is
    /// still free. After a crash in between nothing is there, and the old one is found by the next start.
    fn replace_moved(&self, aside: &OsStr) -> Result<(), DiskError> {
        let folder = self.temporary.0;
        let (aside, in_place) = ((folder, aside), self.in_place);
        rename_new(in_place, aside).map_err(|e| self.failed(e))?;
        let came_out = self.root.object_at(aside.0, aside.1).map_err(|e| self.failed(e))?;
        let placed = if same_but_renamed(&came_out.stamp, self.expected) {
            rename_new(self.temporary, in_place).map_err(|e| self.failed(e))
        } else {
            Err(DiskError::Changed(self.rel.clone()))
        };
        let Err(error) = placed else {
            return rustix::fs::renameat(folder, aside.1, folder, self.temporary.1)
                .map_err(|e| self.failed(e));
        };
        match rename_new(aside, in_place) {
            // Somebody has saved there: that stays.
            Err(Errno::EXIST) => self.root.move_to_trash(aside, self.rel).map(drop)?,
            back => back.map_err(|e| self.failed(e))?,
        }
        Err(match error {
            DiskError::Exists(rel) => DiskError::Changed(rel),
            other => other,
        })
    }

    /// The old one leaves its temporary name.
    fn dispose(&self, replaced: Replaced) -> Result<(), DiskError> {
        match replaced {
            Replaced::ToTrash => match self.root.move_to_trash(self.temporary, self.rel) {
                Ok(_) | Err(DiskError::Vanished(_)) => Ok(()),
                Err(error) => Err(error),
            },
            Replaced::Removed => {
                match rustix::fs::unlinkat(self.temporary.0, self.temporary.1, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => Ok(()),
                    Err(errno) => Err(self.failed(errno)),
                }
            }
        }
    }
}

impl Root {
    /// Puts a finished file in the place of a file or symlink that is as expected. Blocks. See the module for what is
    /// on disk after a crash.
    ///
    /// # Errors
    /// `Changed`, `Vanished`: all is as it was, and the temporary file is gone. `NoSpace`, `Denied`, `Io`.
    pub fn replace(
        &self,
        mut temp: Temp,
        rel: &Rel,
        expected: &Stamp,
        replaced: Replaced,
        durability: Durability,
    ) -> Result<Stamp, DiskError> {
        let (folder, name) = self.parent_of(rel)?;
        let failed = |errno| DiskError::of(rel, errno);
        if unsynced::carry_over(folder.as_fd(), name, temp.file()).map_err(failed)? {
            temp.sync().map_err(failed)?;
        }
        temp.set_name(swap_name()?).map_err(failed)?;
        temp.keep(false);
        let new = self.object_of_fd(temp.fd()).map_err(|errno| DiskError::of(rel, errno))?.stamp;
        let swap = Swap {
            root: self,
            rel,
            temporary: (temp.folder(), temp.name()),
            in_place: (folder.as_fd(), name),
            new,
            expected,
        };
        let done = swap.run().map(|placed| {
            // First durable, then the old one goes. If either fails it stays, for the next start to find.
            rel.parent().map_or(Ok(()), |folder| self.sync_fd(rel, &folder, durability))?;
            swap.dispose(replaced).map(|()| placed)
        });
        if done.is_ok() || self.is_gone(&temp) {
            temp.keep(true);
        }
        done.and_then(|disposed| disposed).map_err(|error| self.explained(error))
    }

    /// Whether a temporary name does not lead to its file any more.
    fn is_gone(&self, temp: &Temp) -> bool {
        let named = self.object_at(temp.folder(), temp.name()).map(|object| object.stamp.identity);
        let open = self.object_of_fd(temp.fd()).map(|object| object.stamp.identity);
        named.ok() != open.ok()
    }

    /// Points a symlink elsewhere, or puts one in the place of a file, if what is there is as expected. Blocks. After
    /// a crash: as for [`replace`](Self::replace).
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub fn replace_by_symlink(
        &self,
        rel: &Rel,
        target: &[u8],
        mtime_ns: i64,
        expected: &Stamp,
        replaced: Replaced,
        durability: Durability,
    ) -> Result<Stamp, DiskError> {
        let failed = |errno| DiskError::of(rel, errno);
        let (folder, name) = self.parent_of(rel)?;
        let temporary = self.state_folder(TEMPORARY_FOLDER)?;
        let link = swap_name()?;
        rustix::fs::symlinkat(OsStr::from_bytes(target), &temporary, &link).map_err(failed)?;
        let made = rustix::fs::utimensat(&temporary, &link, &times(mtime_ns), AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|()| self.object_at(temporary.as_fd(), &link));
        made.map_err(failed)?;
        let owned = unsynced::own_symlink((folder.as_fd(), name), (temporary.as_fd(), &link));
        let made = owned.and_then(|()| self.object_at(temporary.as_fd(), &link));
        let new = made
            .map_err(|errno| {
                let _gone = rustix::fs::unlinkat(&temporary, &link, AtFlags::empty());
                failed(errno)
            })?
            .stamp;
        let swap = Swap {
            root: self,
            rel,
            temporary: (temporary.as_fd(), &link),
            in_place: (folder.as_fd(), name),
            new,
            expected,
        };
        let placed = match swap.run() {
            Ok(placed) => placed,
            Err(error) => {
                let left = self.object_at(temporary.as_fd(), &link);
                if left.is_ok_and(|left| left.stamp.identity == new.identity) {
                    rustix::fs::unlinkat(&temporary, &link, AtFlags::empty()).map_err(failed)?;
                }
                return Err(error);
            }
        };
        if let Some(folder) = rel.parent() {
            self.sync_fd(rel, &folder, durability)?;
        }
        swap.dispose(replaced)?;
        Ok(placed)
    }
}

#[cfg(test)]
mod tests;
