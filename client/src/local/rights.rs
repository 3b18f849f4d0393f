//! Who may do what at a place, as far as that decides what the disk allows: once it is another, what was refused may be
//! allowed.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Access, AtFlags, StatxAttributes};

use super::beneath;
use super::rel::Rel;
use super::root::Root;

/// The rights at some places, and at the folders that they are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    places: Vec<(Rel, AtPlace)>,
}

/// Of a name and of its folder; absent: there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AtPlace {
    folder: Option<OfOne>,
    object: Option<OfOne>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OfOne {
    mode: u16,
    owner: (u32, u32),
    flags: StatxAttributes,
    /// By access lists and read-only mounts too, which the others do not tell of.
    may: [bool; 3],
}

impl OfOne {
    fn of(folder: BorrowedFd<'_>, name: &str) -> Option<Self> {
        let name = OsStr::new(name);
        let empty = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::empty() };
        let stat = beneath::stat_at(folder, name, empty).ok()?;
        let asked = if name.is_empty() { OsStr::new(".") } else { name };
        let flags = AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW;
        let may = [Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK]
            .map(|access| rustix::fs::accessat(folder, asked, access, flags).is_ok());
        let flags = stat.stx_attributes & (StatxAttributes::IMMUTABLE | StatxAttributes::APPEND);
        Some(Self { mode: stat.stx_mode, owner: (stat.stx_uid, stat.stx_gid), flags, may })
    }
}

impl Rights {
    pub(crate) fn places(&self) -> impl Iterator<Item = &Rel> {
        self.places.iter().map(|(rel, _rights)| rel)
    }
}

impl Root {
    /// The rights at these places. Blocks.
    pub(crate) fn rights(&self, places: impl IntoIterator<Item = Rel>) -> Rights {
        let look = |rel: Rel| {
            let at = self.rights_at(&rel);
            (rel, at)
        };
        Rights { places: places.into_iter().map(look).collect() }
    }

    /// Whether the rights at their places are still these. Blocks.
    pub(crate) fn has_rights(&self, rights: &Rights) -> bool {
        rights.places.iter().all(|(rel, known)| self.rights_at(rel) == *known)
    }

    fn rights_at(&self, rel: &Rel) -> AtPlace {
        match self.parent_of(rel) {
            Ok((folder, name)) => AtPlace {
                folder: OfOne::of(folder.as_fd(), ""),
                object: name.to_str().and_then(|name| OfOne::of(folder.as_fd(), name)),
            },
            // The root itself is in no folder of ours.
            Err(_error) => {
                AtPlace { folder: None, object: if rel.is_root() { OfOne::of(self.fd(), "") } else { None } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::local::testing::TestRoot;

    #[test]
    fn rights_are_others_once_modes_owners_or_access_lists_are_and_not_by_what_is_written() {
        let root = TestRoot::new();
        std::fs::create_dir(root.dir().join("folder")).unwrap();
        root.write("folder/f", "text");
        let rights =
            || root.rights(["folder/f", "folder/none", "", "gone/f"].map(|path| Rel::parse(path).unwrap()));
        let known = rights();
        root.write("folder/f", "another text");
        root.write("folder/other", "text");
        assert!(root.has_rights(&known), "what is written changes no rights");
        for (path, mode, before) in [("folder", 0o500, 0o755), ("folder/f", 0o400, 0o644)] {
            let set =
                |mode| std::fs::set_permissions(root.dir().join(path), Permissions::from_mode(mode)).unwrap();
            set(before);
            let known = rights();
            set(mode);
            assert!(!root.has_rights(&known), "{path}");
            set(before);
            assert!(root.has_rights(&known), "{path}");
        }
        let known = rights();
        root.write("folder/none", "it is there now");
        assert!(!root.has_rights(&known));
        if rustix::process::geteuid().is_root() {
            let known = rights();
            std::os::unix::fs::chown(root.dir().join("folder"), Some(65_534), None).unwrap();
            assert!(!root.has_rights(&known), "another owner");
        } else {
            eprintln!("another owner is not tried: that needs root");
        }
    }
}
