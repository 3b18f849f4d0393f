//! What a file has beside what is kept in sync: owner, group, ACL, extended attributes and flags. A file that takes the
//! place of another one takes these over; a new one gets those that a file that is made in its folder would get. Blocks.
//!
//! Invariants:
//! - The permission bits of the new file stay as they were given: they are kept in sync.
//! - What this user may not set is left out and logged. What may not be read is an error: it would be lost unseen.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Gid, IFlags, Mode, OFlags, StatxAttributes, Uid, XattrFlags};
use rustix::io::Errno;

use super::beneath;
use super::disk::unless_unable;

/// An ACL as the kernel gives it.
const ACL: &CStr = c"system.posix_acl_access";
/// The one that a folder gives to what is made in it.
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";
/// Bytes of one value, and of all names: Linux's own bounds.
const VALUE_BYTES_MAX: usize = 64 * 1024;
/// They say something of the content, which is another now; or they belong to the file system below.
const NOT_CARRIED: [&[u8]; 3] = [b"security.ima", b"security.evm", b"trusted.overlay."];
/// Flags that a person sets and that hold for whatever content.
const FLAGS: IFlags = IFlags::NOATIME
    .union(IFlags::NODUMP)
    .union(IFlags::SYNC)
    .union(IFlags::COMPRESSED)
    .union(IFlags::SECURE_REMOVAL)
    .union(IFlags::UNRM)
    .union(IFlags::NOTAIL);

/// What keeps anybody, the owner and root too, from changing a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protection {
    /// `chattr +i`.
    Immutable,
    /// `chattr +a`.
    AppendOnly,
}

/// How something is protected, by its flags.
pub(super) fn protection(folder: BorrowedFd<'_>, name: &OsStr) -> Option<Protection> {
    let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::empty() };
    let attributes = beneath::stat_at(folder, name, flags).ok()?.stx_attributes;
    if attributes.contains(StatxAttributes::IMMUTABLE) {
        Some(Protection::Immutable)
    } else {
        attributes.contains(StatxAttributes::APPEND).then_some(Protection::AppendOnly)
    }
}

/// Gives `new`, which has its bytes and permission bits, what the file `name` in `folder` has; `true` if that changed
/// anything, which then is to be made durable. Something else than a file at that name gives nothing.
pub(crate) fn carry_over(folder: BorrowedFd<'_>, name: &OsStr, new: &File) -> Result<bool, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let old = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    let old_stat = rustix::fs::fstat(&old)?;
    if FileType::from_raw_mode(old_stat.st_mode) != FileType::RegularFile {
        return inherit(folder, new);
    }
    let new_stat = rustix::fs::fstat(new)?;
    let bits = Mode::from_raw_mode(new_stat.st_mode & 0o7777);
    let mut changed = own(new, (new_stat.st_uid, new_stat.st_gid), (old_stat.st_uid, old_stat.st_gid))?;
    let path = beneath::path_of_fd(old.as_fd());
    changed |= carry_attributes(&path, new)?;
    if changed {
        // An owner's change clears some, an ACL sets some.
        set_bits(new, bits)?;
    }
    Ok(carry_flags(folder, name, new) || changed)
}

/// Gives `new`, which was made elsewhere, what it would have if it had been made in `folder`; `true` if that changed
/// anything, which then is to be made durable.
pub(crate) fn inherit(folder: BorrowedFd<'_>, new: &File) -> Result<bool, Errno> {
    let of_folder = rustix::fs::fstat(folder)?;
    let of_new = rustix::fs::fstat(new)?;
    let bits = Mode::from_raw_mode(of_new.st_mode & 0o7777);
    let mut changed = false;
    if Mode::from_raw_mode(of_folder.st_mode & 0o7777).contains(Mode::SGID) {
        changed |= own(new, (of_new.st_uid, of_new.st_gid), (of_new.st_uid, of_folder.st_gid))?;
    }
    let wanted = value(|buffer| rustix::fs::getxattr(beneath::path_of_fd(folder), DEFAULT_ACL, buffer))?;
    let has = value(|buffer| rustix::fs::fgetxattr(new, ACL, buffer))?;
    match (wanted, has) {
        (Some(wanted), has) if has.as_ref() != Some(&wanted) => changed |= set(new, ACL, &wanted)?,
        (None, Some(_)) => changed |= remove(new, ACL)?,
        _ => {}
    }
    if changed {
        set_bits(new, bits)?;
    }
    Ok(changed)
}

/// Gives a symlink `new` in a folder the owner and group of what it takes the place of.
pub(super) fn own_symlink(old: (BorrowedFd<'_>, &OsStr), new: (BorrowedFd<'_>, &OsStr)) -> Result<(), Errno> {
    let old = rustix::fs::statat(old.0, old.1, AtFlags::SYMLINK_NOFOLLOW)?;
    let made = rustix::fs::statat(new.0, new.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if (old.st_uid, old.st_gid) == (made.st_uid, made.st_gid) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
    match rustix::fs::chownat(new.0, new.1, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        done => done,
    }
}

/// Gives what this program has just made its permission bits; a file system that has no room for them does without.
pub(crate) fn set_bits(file: impl AsFd, bits: Mode) -> Result<(), Errno> {
    unless_unable(rustix::fs::fchmod(file, bits))
}

/// `has`, `wanted`: owner and group.
fn own(file: &File, has: (u32, u32), wanted: (u32, u32)) -> Result<bool, Errno> {
    if has == wanted {
        return Ok(false);
    }
    let owner = (has.0 != wanted.0).then(|| Uid::from_raw(wanted.0));
    let group = (has.1 != wanted.1).then(|| Gid::from_raw(wanted.1));
    let refused = |error| matches!(error, Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS);
    match rustix::fs::fchown(file, owner, group) {
        // Only root gives files away; a group that one is in can be given.
        Err(error) if refused(error) => {}
        done => return done.map(|()| true),
    }
    let given = group.is_some() && owner.is_some() && rustix::fs::fchown(file, None, group).is_ok();
    tracing::warn!(
        owner = wanted.0,
        group = wanted.1,
        given,
        "a file's owner or group may not be given to its new version"
    );
    Ok(given)
}

/// A value, if there is one.
fn value(read: impl Fn(&mut Vec<u8>) -> Result<usize, Errno>) -> Result<Option<Vec<u8>>, Errno> {
    let mut buffer = vec![0; 256];
    let len = match read(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(VALUE_BYTES_MAX, 0);
            read(&mut buffer)
        }
        other => other,
    };
    match len {
        Ok(len) => {
            buffer.truncate(len);
            Ok(Some(buffer))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The names in a list of names, each of which ends with a zero.
fn names(list: &[u8]) -> impl Iterator<Item = &CStr> {
    list.split_inclusive(|byte| *byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok())
}

fn is_carried(name: &CStr) -> bool {
    !NOT_CARRIED.iter().any(|not| name.to_bytes().starts_with(not))
}

/// Makes the attributes of `new` those of what is at `old`.
fn carry_attributes(old: &str, new: &File) -> Result<bool, Errno> {
    let there = value(|buffer| rustix::fs::listxattr(old, buffer))?.unwrap_or_default();
    let here = value(|buffer| rustix::fs::flistxattr(new, buffer))?.unwrap_or_default();
    let mut changed = false;
    for name in names(&there).filter(|name| is_carried(name)) {
        let Some(wanted) = value(|buffer| rustix::fs::getxattr(old, name, buffer))? else { continue };
        if value(|buffer| rustix::fs::fgetxattr(new, name, buffer))?.as_ref() != Some(&wanted) {
            changed |= set(new, name, &wanted)?;
        }
    }
    // It was made in another folder, which may have given it some.
    let given = |name: &&CStr| *name == ACL || name.to_bytes().starts_with(b"user.");
    for name in names(&here).filter(given) {
        if !names(&there).any(|known| known == name) {
            changed |= remove(new, name)?;
        }
    }
    Ok(changed)
}

fn set(file: &File, name: &CStr, value: &[u8]) -> Result<bool, Errno> {
    match rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()) {
        Ok(()) => Ok(true),
        Err(errno @ (Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)) => {
            let name = OsStr::from_bytes(name.to_bytes());
            tracing::warn!(%errno, ?name, "an attribute of a file may not be given to its new version");
            Ok(false)
        }
        Err(errno) => Err(errno),
    }
}

fn remove(file: &File, name: &CStr) -> Result<bool, Errno> {
    match rustix::fs::fremovexattr(file, name) {
        Ok(()) => Ok(true),
        Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Flags are kept where that is easy: a file that cannot be opened, or a file system that has none, loses none that
/// matter to anybody but the file system.
fn carry_flags(folder: BorrowedFd<'_>, name: &OsStr, new: &File) -> bool {
    let open = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let carried = || {
        let old = rustix::fs::openat(folder, name, open, Mode::empty())?;
        let wanted = rustix::fs::ioctl_getflags(&old)? & FLAGS;
        if wanted.is_empty() {
            return Ok(false);
        }
        let has = rustix::fs::ioctl_getflags(new)?;
        if has & FLAGS == wanted {
            return Ok(false);
        }
        rustix::fs::ioctl_setflags(new, (has - FLAGS) | wanted)?;
        Ok::<_, Errno>(true)
    };
    carried().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::process::Command;

    use super::*;

    fn made(dir: &std::path::Path, name: &str, mode: u32) -> File {
        let file = File::create_new(dir.join(name)).unwrap();
        file.set_permissions(PermissionsExt::from_mode(mode)).unwrap();
        file
    }

    fn opened(dir: &std::path::Path) -> File {
        File::open(dir).unwrap()
    }

    /// A list of rights: for the owner, user 65534, the group, the mask, others.
    fn acl(rights: [u16; 5]) -> Vec<u8> {
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        let any = u32::MAX;
        for ((tag, id), right) in [(1, any), (2, 65_534), (4, any), (16, any), (32, any)].iter().zip(rights) {
            bytes.extend(u16::to_le_bytes(*tag));
            bytes.extend(right.to_le_bytes());
            bytes.extend(u32::to_le_bytes(*id));
        }
        bytes
    }

    #[test]
    fn all_that_a_file_has_goes_over_to_its_new_version_and_nothing_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (made(dir.path(), "old", 0o640), made(dir.path(), "new", 0o604));
        for (name, value) in [(c"user.tag", &b"kept"[..]), (c"user.none", b""), (c"user.long", &[7; 2_000])] {
            if rustix::fs::fsetxattr(&old, name, value, XattrFlags::empty()) == Err(Errno::OPNOTSUPP) {
                return;
            }
        }
        rustix::fs::fsetxattr(&new, c"user.stray", b"of the folder it was made in", XattrFlags::empty())
            .unwrap();
        rustix::fs::fsetxattr(&old, ACL, &acl([6, 4, 4, 6, 0]), XattrFlags::empty()).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            std::os::unix::fs::chown(dir.path().join("old"), Some(1_234), Some(4_321)).unwrap();
        }
        let folder = opened(dir.path());
        assert_eq!(carry_over(folder.as_fd(), OsStr::new("old"), &new), Ok(true));
        let get = |name| value(|buffer| rustix::fs::fgetxattr(&new, name, buffer)).unwrap();
        assert_eq!(get(c"user.tag").as_deref(), Some(&b"kept"[..]));
        assert_eq!(get(c"user.none").as_deref(), Some(&b""[..]));
        assert_eq!(get(c"user.long").as_deref(), Some(&[7; 2_000][..]));
        assert_eq!(get(c"user.stray"), None);
        assert_eq!(get(ACL), Some(acl([6, 4, 4, 0, 4])), "with the bits that it was given");
        let metadata = new.metadata().unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o604);
        if is_root {
            assert_eq!((metadata.uid(), metadata.gid()), (1_234, 4_321));
        }
        // With the same bits there is nothing left to do.
        old.set_permissions(PermissionsExt::from_mode(0o604)).unwrap();
        assert_eq!(carry_over(folder.as_fd(), OsStr::new("old"), &new), Ok(false));
    }

    #[test]
    fn a_new_file_is_as_if_made_in_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            std::os::unix::fs::chown(&folder, None, Some(4_321)).unwrap();
        }
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o2770)).unwrap();
        let default = acl([7, 7, 5, 7, 0]);
        let set = rustix::fs::setxattr(&folder, DEFAULT_ACL, &default, XattrFlags::empty());
        if set == Err(Errno::OPNOTSUPP) {
            return;
        }
        set.unwrap();
        let inside = made(&folder, "inside", 0o640);
        let elsewhere = made(dir.path(), "elsewhere", 0o640);
        assert_eq!(inherit(opened(&folder).as_fd(), &elsewhere), Ok(true));
        let acl_of = |file: &File| value(|buffer| rustix::fs::fgetxattr(file, ACL, buffer)).unwrap();
        assert!(acl_of(&inside).is_some());
        assert_eq!(acl_of(&elsewhere), acl_of(&inside));
        let (one, other) = (inside.metadata().unwrap(), elsewhere.metadata().unwrap());
        assert_eq!((one.mode(), one.gid()), (other.mode(), other.gid()));
        // And back in a folder without.
        assert_eq!(inherit(opened(dir.path()).as_fd(), &elsewhere), Ok(true));
        assert_eq!(acl_of(&elsewhere), None);
    }

    #[test]
    fn flags_that_protect_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let folder = opened(dir.path());
        made(dir.path(), "f", 0o600);
        for (flag, expected) in [("i", Protection::Immutable), ("a", Protection::AppendOnly)] {
            let chattr = |sign: &str| {
                let told =
                    Command::new("chattr").arg(format!("{sign}{flag}")).arg(dir.path().join("f")).output();
                told.is_ok_and(|output| output.status.success())
            };
            if !chattr("+") {
                println!("only root can set flags, and only some file systems have them");
                return;
            }
            let told = protection(folder.as_fd(), OsStr::new("f"));
            assert!(chattr("-"));
            assert_eq!(told, Some(expected));
        }
        assert_eq!(protection(folder.as_fd(), OsStr::new("f")), None);
    }
}
