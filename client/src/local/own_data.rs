//! What of this program's own is never sent: a cluster's data and keys, the states of other folders, and profiles, which
//! hold a device's token. It is known by what it is, wherever it lies and whoever owns it.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::beneath;
use super::list::Entry;
use super::rel::STATE_FOLDER;
use crate::profile::{FILE_BYTES_MAX, PEM_MARK, Profile};

/// What a file with a device's token is called.
pub(super) const PROFILE: &str = "a profile with a device's token";
const STATE: &str = "the state of a folder that is kept in sync";

/// A folder that has all of these in it.
struct Shape {
    what: &'static str,
    has: &'static [&'static str],
}

const SHAPES: &[Shape] = &[
    Shape { what: "a cluster's data and keys", has: &["config/up.toml", "pki"] },
    Shape { what: "a cluster's keys", has: &["cluster.toml", "pki/cluster.key"] },
    Shape { what: "a cluster's keys", has: &["cluster.key", "ca.pem"] },
    Shape { what: "a cluster node's keys", has: &["meta.toml", "node.key", "node.pem"] },
    Shape { what: "a cluster node's keys", has: &["storage.toml", "node.key", "node.pem"] },
    Shape { what: "a cluster node's keys", has: &["gateway.toml", "node.key", "node.pem"] },
    Shape { what: "a cluster's metadata", has: &["identity", "log.witness", "log", "state"] },
    Shape { what: "a cluster's disk", has: &["superblock", "extents", "index", "lock"] },
    Shape { what: "a storage node's data", has: &["known-disks.json", "metadata-voters"] },
    Shape { what: STATE, has: &["state.db", "lock"] },
    Shape { what: "the sync daemon's own files", has: &["roots.toml", "sync.log"] },
    Shape { what: "the sync daemon's own files", has: &["sync.sock", "sync.log"] },
];

/// What a folder that was listed is, if it is this program's own. `name`: the folder's.
pub(super) fn folder(fd: BorrowedFd<'_>, name: &str, entries: &[Entry]) -> Option<&'static str> {
    if name == STATE_FOLDER {
        return Some(STATE);
    }
    // Most folders have no name of the first of each shape: one look at the names tells.
    let starts = |entry: &Entry| {
        SHAPES.iter().any(|shape| shape.has.first().is_some_and(|first| first_name(first) == entry.name))
    };
    if !entries.iter().any(starts) {
        return None;
    }
    shape_of(fd)
}

/// As [`folder`] says, of one that was not listed. Blocks.
pub(super) fn folder_not_listed(fd: BorrowedFd<'_>, name: &str) -> Option<&'static str> {
    if name == STATE_FOLDER { Some(STATE) } else { shape_of(fd) }
}

fn shape_of(fd: BorrowedFd<'_>) -> Option<&'static str> {
    let has = |path: &str| beneath::stat_at(fd, OsStr::new(path), AtFlags::SYMLINK_NOFOLLOW).is_ok();
    SHAPES.iter().find(|shape| shape.has.iter().all(|path| has(path))).map(|shape| shape.what)
}

fn first_name(path: &str) -> &OsStr {
    OsStr::new(path.split('/').next().unwrap_or(path))
}

/// What a folder, or one around it, is, if that is this program's own. A folder that somebody made in a cluster's
/// directory, beside its data, is theirs. Blocks.
pub(super) fn around(path: &Path) -> Option<(&Path, &'static str)> {
    let what = |folder: &Path| {
        if folder.file_name() == Some(OsStr::new(STATE_FOLDER)) {
            return Some(STATE);
        }
        let has = |path: &&str| folder.join(path).symlink_metadata().is_ok();
        SHAPES.iter().find(|shape| shape.has.iter().all(has)).map(|shape| shape.what)
    };
    let is_beside = |folder: &Path| folder != path && folder.join("config/up.toml").exists();
    let own = |folder| what(folder).filter(|_what| !is_beside(folder)).map(|what| (folder, what));
    path.ancestors().find_map(own)
}

/// Whether the bytes of a whole file are a profile. `size`: the file's.
pub(super) fn is_profile(bytes: &[u8], size: u64) -> bool {
    if size > FILE_BYTES_MAX || bytes.len() as u64 != size {
        return false;
    }
    // Most files are no text, or do not have the word.
    std::str::from_utf8(bytes)
        .is_ok_and(|text| text.contains("token") && toml::from_str::<Profile>(text).is_ok())
}

/// Whether a part of a file is as one of a profile would be that is longer than that: with many certificates.
pub(super) fn may_be_of_profile(part: &[u8], size: u64) -> bool {
    size <= FILE_BYTES_MAX
        && (part.len() as u64) < size
        && std::str::from_utf8(part).is_ok_and(|text| text.contains(PEM_MARK))
}

/// Whether the file `name` in a folder is a profile. Blocks.
pub(super) fn is_profile_at(folder: BorrowedFd<'_>, name: &OsStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(folder, name, flags, Mode::empty()) else { return false };
    let file = std::fs::File::from(fd);
    let size = file.metadata().map_or(u64::MAX, |known| known.len());
    let mut bytes = Vec::new();
    size <= FILE_BYTES_MAX
        && file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).is_ok()
        && is_profile(&bytes, size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Ca;

    #[test]
    fn a_profile_is_known_by_what_is_in_it() {
        let profile = Profile {
            endpoint: "https://127.0.0.1:7420".to_owned(),
            ca: Ca::File("ca.pem".into()),
            token: "ks1_secret".to_owned(),
            account: "00".repeat(16),
            device: "00".repeat(8),
        };
        let text = toml::to_string(&profile).unwrap();
        assert!(is_profile(text.as_bytes(), text.len() as u64));
        for other in ["token = \"x\"\n", "the token\n", ""] {
            assert!(!is_profile(other.as_bytes(), other.len() as u64), "{other}");
        }
    }

    #[test]
    fn a_folder_in_own_data_is_known() {
        let scratch = tempfile::tempdir().unwrap();
        let cluster = scratch.path().join("cluster");
        for folder in ["storage-1/x", "config", "pki/x", "mine"] {
            std::fs::create_dir_all(cluster.join(folder)).unwrap();
        }
        assert_eq!(around(&cluster), None);
        for file in ["config/up.toml", "pki/cluster.key", "pki/ca.pem", "storage-1/known-disks.json"] {
            std::fs::write(cluster.join(file), "").unwrap();
        }
        std::fs::write(cluster.join("storage-1/metadata-voters"), "").unwrap();
        for (folder, own) in [("", ""), ("pki/x", "pki"), ("storage-1/x", "storage-1")] {
            assert_eq!(around(&cluster.join(folder)).unwrap().0, cluster.join(own), "{folder}");
        }
        assert_eq!(around(&cluster.join("mine")), None, "it is beside the data");
    }
}
