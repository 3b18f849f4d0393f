//! A synced folder as a value: what is where, with everything that synchronisation keeps. Two folders are the same if
//! their snapshots are.
//!
//! Left out is what is not kept: the sync client's own `.keepstone`, times of folders, times and bits of symlinks,
//! special files, names that are not UTF-8, and what a test leaves out by name. A folder that holds such a thing is
//! compared as the folder it is where both have it; where only one has it, the thing keeps it there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::compare::{DIFFERENCES_SHOWN_MAX, file_digest};

/// The sync client's own folder in a root.
pub const OWN_FOLDER: &str = ".keepstone";

/// Something in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A folder.
    Folder {
        /// Permission bits.
        mode: u32,
    },
    /// A file.
    File {
        /// SHA-256 of its bytes.
        digest: [u8; 32],
        /// Bytes.
        size: u64,
        /// Permission bits.
        mode: u32,
        /// Modification time in nanoseconds.
        mtime_ns: i128,
    },
    /// A symlink, by where it points.
    Symlink(String),
}

/// All that is below a root, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Relative paths, with slashes.
    pub items: BTreeMap<String, Item>,
    /// Of files that were left out by name.
    pub left_out: BTreeSet<[u8; 32]>,
    /// Folders below which something was left out.
    keeping: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at a folder that may change meanwhile: what vanishes while it is looked at is left out.
    ///
    /// # Errors
    /// On IO errors.
    pub fn take(root: &Path) -> anyhow::Result<Self> {
        let (mut items, mut keeping) = (BTreeMap::new(), BTreeSet::new());
        let walk = walkdir::WalkDir::new(root).min_depth(1);
        let walk =
            walk.into_iter().filter_entry(|entry| entry.depth() != 1 || entry.file_name() != OWN_FOLDER);
        for entry in walk {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if is_gone(error.io_error()) => continue,
                Err(error) => return Err(error.into()),
            };
            let below = entry.path().strip_prefix(root)?;
            let Some(path) = below.to_str().map(str::to_owned) else {
                keep(&mut keeping, &below.to_string_lossy());
                continue;
            };
            match item(entry.path()) {
                Ok(Some(item)) => drop(items.insert(path, item)),
                Ok(None) => keep(&mut keeping, &path),
                Err(error) if is_gone(error.downcast_ref()) => {}
                Err(error) => return Err(error).with_context(|| path.clone()),
            }
        }
        Ok(Self { items, left_out: BTreeSet::new(), keeping })
    }

    /// Without what has such a name, and all below it.
    #[must_use]
    pub fn without(mut self, is_left_out: &dyn Fn(&str) -> bool) -> Self {
        let (out, items) = self.items.into_iter().partition(|(path, _)| path.split('/').any(is_left_out));
        self.items = items;
        let out: BTreeMap<String, Item> = out;
        for (path, item) in out {
            keep(&mut self.keeping, &path);
            if let Item::File { digest, .. } = item {
                self.left_out.insert(digest);
            }
        }
        self
    }

    /// Whether a path that the other one lacks is there only for what was left out.
    fn is_kept_here(&self, path: &str) -> bool {
        matches!(self.items.get(path), Some(Item::Folder { .. })) && self.keeping.contains(path)
    }

    /// How another one differs, one line each, at most [`DIFFERENCES_SHOWN_MAX`].
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, item) in &self.items {
            match other.items.get(path) {
                None if self.is_kept_here(path) => {}
                None => found.push(format!("only on the left: {path}")),
                Some(theirs) if theirs != item => {
                    found.push(format!("{path}: {} and {}", short(item), short(theirs)));
                }
                Some(_same) => {}
            }
        }
        let only = |path: &&String| !self.items.contains_key(*path) && !other.is_kept_here(path);
        let right = other.items.keys().filter(only);
        found.extend(right.map(|path| format!("only on the right: {path}")));
        found.truncate(DIFFERENCES_SHOWN_MAX);
        found
    }

    /// Fails unless both are the same.
    ///
    /// # Errors
    /// If they differ; the message says how.
    pub fn assert_same(&self, other: &Self, which: &str) -> anyhow::Result<()> {
        let found = self.differences(other);
        ensure!(found.is_empty(), "{which} differ:\n{}", found.join("\n"));
        Ok(())
    }

    /// The files' names that a conflict has made.
    #[must_use]
    pub fn conflicted(&self) -> Vec<&str> {
        self.items.keys().filter(|path| path.contains("conflict")).map(String::as_str).collect()
    }

    /// All paths, in order.
    #[must_use]
    pub fn paths(&self) -> Vec<&str> {
        self.items.keys().map(String::as_str).collect()
    }
}

/// Notes all folders above a path.
fn keep(keeping: &mut BTreeSet<String>, path: &str) {
    keeping.extend(path.match_indices('/').map(|(at, _)| path[..at].to_owned()));
}

pub(crate) fn is_gone(error: Option<&std::io::Error>) -> bool {
    error.is_some_and(|error| {
        matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
    })
}

fn item(path: &Path) -> anyhow::Result<Option<Item>> {
    let metadata = fs::symlink_metadata(path)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_symlink() {
        return Ok(Some(Item::Symlink(fs::read_link(path)?.to_string_lossy().into_owned())));
    }
    if metadata.is_dir() {
        return Ok(Some(Item::Folder { mode }));
    }
    if !metadata.is_file() {
        return Ok(None);
    }
    let mtime_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    let digest = match fs::File::open(path) {
        Ok(_readable) => file_digest(path)?,
        Err(error) => return Err(error.into()),
    };
    Ok(Some(Item::File { digest, size: metadata.len(), mode, mtime_ns }))
}

fn short(item: &Item) -> String {
    match item {
        Item::Folder { mode } => format!("folder {mode:o}"),
        Item::File { digest, size, mode, mtime_ns } => {
            format!(
                "file {:02x}{:02x}{:02x} of {size} bytes, {mode:o}, at {mtime_ns}",
                digest[0], digest[1], digest[2]
            )
        }
        Item::Symlink(target) => format!("symlink to {target}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_compared_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let (left, right) = (scratch.path().join("l"), scratch.path().join("r"));
        for root in [&left, &right] {
            fs::create_dir_all(root.join("d")).unwrap();
            fs::write(root.join("d/f"), "x").unwrap();
            fs::File::options()
                .write(true)
                .open(root.join("d/f"))
                .unwrap()
                .set_modified(std::time::UNIX_EPOCH)
                .unwrap();
            fs::create_dir(root.join(OWN_FOLDER)).unwrap();
            fs::write(root.join(OWN_FOLDER).join(root.file_name().unwrap()), "x").unwrap();
        }
        let take = |root: &Path| Snapshot::take(root).unwrap();
        assert_eq!(take(&left).differences(&take(&right)), Vec::<String>::new());
        assert_eq!(take(&left).paths(), ["d", "d/f"]);
        fs::set_permissions(right.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(take(&left).differences(&take(&right)).len(), 1);
        fs::write(right.join("d/f"), "y").unwrap();
        fs::write(right.join("g"), "").unwrap();
        assert_eq!(take(&left).differences(&take(&right)).len(), 3);
    }
}
