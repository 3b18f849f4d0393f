//! What lies at a place that something is to come to, and that no scan ever takes in: a pipe, what is ignored, a mount
//! point, and the like. The place stays taken until somebody moves it away, so it is named to them.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::beneath;
use super::disk::{DiskError, ObjectKind};
use super::ignore_rules::IgnoreRules;
use super::list::list;
use super::model::{Identity, LocalIndex, LocalRecord};
use super::own_data;
use super::rel::{Rel, STATE_FOLDER};
use super::root::Root;
use super::unsynced::{self, Protection};
use crate::planner::model::ROOT;

/// To look at what is in a folder by name.
const PASS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockerKind {
    Pipe,
    Socket,
    Device,
    /// Another file system, or the same one again, is mounted there.
    MountPoint,
    /// A folder that is kept in sync by itself.
    OtherRoot,
    IgnoredFolder,
    IgnoredFile,
    /// What is in it is ignored, or rules.
    OnlyIgnored,
    /// It may be ignored: its folder's rules are not understood.
    UnknownRules,
    /// Keys, tokens or data of this program.
    Own,
    UnreadableFolder,
    UnreadableFile,
}

impl BlockerKind {
    /// Whether a folder that comes may be the one that is there, with what is ignored in it.
    pub(crate) fn may_be_adopted(self) -> bool {
        matches!(self, Self::IgnoredFolder | Self::OnlyIgnored | Self::UnknownRules)
    }
}

impl fmt::Display for BlockerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pipe => "a pipe",
            Self::Socket => "a socket",
            Self::Device => "a device",
            Self::MountPoint => "another file system, which is mounted there",
            Self::OtherRoot => "a folder that is kept in sync by itself",
            Self::IgnoredFolder => "a folder that is ignored here",
            Self::IgnoredFile => "a file that is ignored here",
            Self::OnlyIgnored => "a folder with nothing but what is ignored here",
            Self::UnknownRules => "in a folder whose rules are not understood",
            Self::Own => "this program's own data, which is never sent",
            Self::UnreadableFolder => "a folder that may not be read",
            Self::UnreadableFile => "a file that may not be read",
        })
    }
}

/// Something that keeps a place from being taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocker {
    /// Where: at the place itself, or on the way there.
    pub(crate) rel: Rel,
    pub(crate) kind: BlockerKind,
    seen: Seen,
}

/// What of it must stay for it to be the same obstacle. Its size and times are none of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    kind: ObjectKind,
    identity: Identity,
    mode: u32,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            BlockerKind::UnreadableFolder | BlockerKind::UnreadableFile => {
                "make it readable, or move it away"
            }
            BlockerKind::UnknownRules => "put those rules right, or move it away",
            BlockerKind::MountPoint => "unmount it, or move one of the two",
            _ => "move it away, or give it another name",
        };
        write!(f, "{} is {}: {what}", self.rel, self.kind)
    }
}

impl Root {
    fn seen_at(&self, folder: BorrowedFd<'_>, name: &OsStr) -> Result<Seen, Errno> {
        let object = self.object_at(folder, name)?;
        Ok(Seen { kind: object.kind, identity: object.stamp.identity, mode: object.stamp.mode })
    }

    /// What keeps `rel` from being taken or changed, if that is something that no scan takes in; `None` if nothing is
    /// there, or what a scan will tell of. Blocks.
    pub(crate) fn blocker(&self, rel: &Rel, index: &dyn LocalIndex, rules: &IgnoreRules) -> Option<Blocker> {
        let mut at = Rel::root();
        let mut folder = Some(ROOT);
        for name in rel.names() {
            let above = at.clone();
            at = at.join(name).ok()?;
            let known = folder.and_then(|folder| index.at(folder, name));
            let fd = beneath::open(self.fd(), &above, OFlags::PATH | OFlags::DIRECTORY).ok()?;
            let seen = self.seen_at(fd.as_fd(), OsStr::new(name)).ok()?;
            let is_last = at == *rel;
            let unknown = Unknown { root: self, rules, above: &above, is_unknown: known.is_none() };
            if let Some(kind) = self.obstacle(fd.as_fd(), name, &seen, is_last, &unknown) {
                return Some(Blocker { rel: at, kind, seen });
            }
            folder = known.map(|known: LocalRecord| known.node);
        }
        None
    }

    fn obstacle(
        &self,
        folder: BorrowedFd<'_>,
        name: &str,
        seen: &Seen,
        is_last: bool,
        unknown: &Unknown<'_>,
    ) -> Option<BlockerKind> {
        let text = name;
        let name = OsStr::new(name);
        match seen.kind {
            ObjectKind::MountPoint => Some(BlockerKind::MountPoint),
            ObjectKind::Special => {
                let stat = beneath::stat_at(folder, name, AtFlags::empty()).ok()?;
                Some(match FileType::from_raw_mode(stat.stx_mode.into()) {
                    FileType::Fifo => BlockerKind::Pipe,
                    FileType::Socket => BlockerKind::Socket,
                    _ => BlockerKind::Device,
                })
            }
            // A folder on the way is no obstacle, whatever the rules say of it.
            ObjectKind::Folder if is_last => {
                if is_other_root(folder, name) {
                    return Some(BlockerKind::OtherRoot);
                }
                if is_own_folder(folder, text) {
                    return Some(BlockerKind::Own);
                }
                if let Some(kind) = unknown.left_out(text, ObjectKind::Folder) {
                    return Some(kind);
                }
                is_unreadable(folder, name).then_some(BlockerKind::UnreadableFolder)
            }
            ObjectKind::Folder => None,
            ObjectKind::File | ObjectKind::Symlink => {
                if let Some(kind) = unknown.left_out(text, seen.kind) {
                    return Some(kind);
                }
                if seen.kind == ObjectKind::Symlink {
                    return None;
                }
                if unknown.is_unknown && own_data::is_profile_at(folder, name) {
                    return Some(BlockerKind::Own);
                }
                is_unreadable(folder, name).then_some(BlockerKind::UnreadableFile)
            }
        }
    }

    /// Whether a folder is there that can be listed. Blocks.
    pub(crate) fn can_be_listed(&self, folder: &Rel) -> bool {
        self.open_folder(folder).is_ok()
    }

    /// Whether it is still there as it was. Blocks.
    pub(crate) fn is_blocked_by(&self, blocker: &Blocker) -> bool {
        let Some((folder, name)) = blocker.rel.split() else { return false };
        match beneath::open(self.fd(), &folder, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => self.seen_at(fd.as_fd(), OsStr::new(name)) == Ok(blocker.seen),
            Err(_errno) => false,
        }
    }

    /// Looks whether a file could be put at a place, in place of `expected` or where nothing is: what the disk would
    /// refuse afterwards need not be fetched. Blocks.
    ///
    /// # Errors
    /// As [`Root::place_new`] and [`Root::replace`] would give.
    pub(crate) fn check_target(&self, rel: &Rel, expected: Option<&LocalRecord>) -> Result<(), DiskError> {
        let (folder, name) = self.parent_of(rel)?;
        match (self.object_at(folder.as_fd(), name), expected) {
            (Ok(there), Some(expected)) if there.stamp == expected.stamp => {}
            (Ok(_) | Err(Errno::NOENT), Some(_)) => return Err(DiskError::Changed(rel.clone())),
            (Err(Errno::NOENT), None) => {}
            (Ok(_), None) => return Err(DiskError::Exists(rel.clone())),
            (Err(errno), _) => return Err(DiskError::of(rel, errno)),
        }
        if is_protected(folder.as_fd(), name, expected.is_some()) {
            return Err(self.explained(DiskError::Denied(rel.clone())));
        }
        // A folder of our own is made writable for the moment.
        match rustix::fs::accessat(&folder, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
            Err(Errno::ROFS) => Err(DiskError::Denied(rel.clone())),
            Err(Errno::ACCESS) => {
                let stat = beneath::stat_at(folder.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)
                    .map_err(|errno| DiskError::of(rel, errno))?;
                let is_own = stat.stx_uid == rustix::process::geteuid().as_raw();
                if is_own { Ok(()) } else { Err(DiskError::Denied(rel.clone())) }
            }
            // What cannot be asked is tried.
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// What the rules say of something.
struct Unknown<'a> {
    root: &'a Root,
    rules: &'a IgnoreRules,
    /// The folder that it is in.
    above: &'a Rel,
    /// Whether it is not known. What is known is in sync, whatever they say.
    is_unknown: bool,
}

impl Unknown<'_> {
    /// Why no scan takes it in, if that is by the rules. Blocks.
    fn left_out(&self, name: &str, kind: ObjectKind) -> Option<BlockerKind> {
        if !self.is_unknown {
            return None;
        }
        let level = self.rules.level_of(self.root, self.above).ok()?;
        let entries = || {
            let listed = self.root.open_folder(self.above).and_then(|fd| list(fd.as_fd(), &self.root.home()));
            listed.unwrap_or_default()
        };
        let is_folder = kind == ObjectKind::Folder;
        if level.judge_one(name, kind, entries).is_some() {
            return Some(if is_folder { BlockerKind::IgnoredFolder } else { BlockerKind::IgnoredFile });
        }
        if level.is_unknown() {
            return Some(BlockerKind::UnknownRules);
        }
        if !is_folder {
            return None;
        }
        let folder = self.root.open_folder(&self.above.join(name).ok()?).ok()?;
        let level = level.enter(folder.as_fd(), name);
        self.root.holds_only_ignored(&folder, name, &level).then_some(BlockerKind::OnlyIgnored)
    }
}

fn is_unreadable(folder: BorrowedFd<'_>, name: &OsStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(folder, name, flags, Mode::empty());
    matches!(opened, Err(Errno::ACCESS | Errno::PERM))
}

/// Whether a flag keeps everybody from putting something at a name; `taken`: in place of what is there.
fn is_protected(folder: BorrowedFd<'_>, name: &OsStr, taken: bool) -> bool {
    match unsynced::protection(folder, OsStr::new("")) {
        Some(Protection::Immutable) => true,
        // Names may come to it, and may not go.
        Some(Protection::AppendOnly) => taken,
        None => taken && unsynced::protection(folder, name).is_some(),
    }
}

fn is_own_folder(folder: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::openat(folder, name, PASS, Mode::empty())
        .is_ok_and(|fd| own_data::folder_not_listed(fd.as_fd(), name).is_some())
}

/// Whether a folder in another one is kept in sync by itself. Blocks.
pub(super) fn is_other_root(folder: BorrowedFd<'_>, name: &OsStr) -> bool {
    rustix::fs::openat(folder, name, PASS, Mode::empty()).is_ok_and(|fd| {
        let marker = format!("{STATE_FOLDER}/root");
        beneath::stat_at(fd.as_fd(), OsStr::new(&marker), AtFlags::empty()).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::local::testing::{MemoryIndex, TestRoot};

    #[test]
    fn what_no_scan_takes_in_is_named_and_what_one_does_is_not() {
        let root = TestRoot::new();
        let index = MemoryIndex::default();
        let rules = IgnoreRules;
        let blocker = |path: &str| root.blocker(&Rel::parse(path).unwrap(), &index, &rules);
        let kind = |path: &str| blocker(path).map(|blocker| (blocker.rel.to_string(), blocker.kind));
        let _socket = UnixListener::bind(root.dir().join("socket")).unwrap();
        for folder in ["other/.keepstone", "out", "folder", "state", "rest/below", "bad"] {
            std::fs::create_dir_all(root.dir().join(folder)).unwrap();
        }
        std::fs::write(root.dir().join("other/.keepstone/root"), "").unwrap();
        std::fs::write(root.dir().join(".keepstoneignore"), "secret\nout/\n").unwrap();
        for path in ["secret", "out/f", "plain", "folder/f"] {
            root.write(path, "text");
        }
        std::os::unix::fs::symlink("plain", root.dir().join("link")).unwrap();
        assert_eq!(kind("socket"), Some(("socket".to_owned(), BlockerKind::Socket)));
        assert_eq!(kind("socket/below"), Some(("socket".to_owned(), BlockerKind::Socket)));
        assert_eq!(kind("other"), Some(("other".to_owned(), BlockerKind::OtherRoot)));
        assert_eq!(kind("secret"), Some(("secret".to_owned(), BlockerKind::IgnoredFile)));
        assert_eq!(kind("out"), Some(("out".to_owned(), BlockerKind::IgnoredFolder)));
        for path in ["state/state.db", "state/lock", "rest/.keepstoneignore", "rest/below/secret", "bad/f"] {
            root.write(path, "");
        }
        std::fs::write(root.dir().join("bad/.keepstoneignore"), b"\xff\n").unwrap();
        assert_eq!(kind("state"), Some(("state".to_owned(), BlockerKind::Own)));
        assert_eq!(kind("rest"), Some(("rest".to_owned(), BlockerKind::OnlyIgnored)));
        assert_eq!(kind("bad/f"), Some(("bad/f".to_owned(), BlockerKind::UnknownRules)));
        root.write(".f.swp", "");
        assert_eq!(kind(".f.swp"), None, "it lies beside no file");
        root.write("f", "");
        assert_eq!(kind(".f.swp"), Some((".f.swp".to_owned(), BlockerKind::IgnoredFile)));
        for path in ["plain", "folder", "folder/f", "link", "none", "none/below"] {
            assert_eq!(kind(path), None, "{path}");
        }
        let there = blocker("secret").unwrap();
        assert!(root.is_blocked_by(&there));
        root.write("secret", "written again: the same obstacle");
        assert!(root.is_blocked_by(&there));
        std::fs::remove_file(root.dir().join("secret")).unwrap();
        assert!(!root.is_blocked_by(&there));
    }

    #[test]
    fn a_taken_place_is_known_before_anything_is_fetched() {
        let root = TestRoot::new();
        let check = |path: &str| root.check_target(&Rel::parse(path).unwrap(), None);
        root.write("taken", "");
        check("free").unwrap();
        assert!(matches!(check("taken"), Err(DiskError::Exists(_))));
        assert!(matches!(check("taken/below"), Err(DiskError::Changed(_))));
        assert!(matches!(check("none/below"), Err(DiskError::Vanished(_))));
        assert!(matches!(check(&"n".repeat(255)), Ok(())));
    }
}
