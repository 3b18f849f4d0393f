//! The local side of a folder that is being got: its subfolders and symlinks, and which of its files may be written.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;

use proto::v1;

use super::FileJob;
use crate::local_folder::{LocalFolder, LocalKind};
use crate::path::RemotePath;

/// What became of one entry of a page.
pub(crate) enum Placed {
    File(FileJob),
    Folder { relative: String, remote: RemotePath, mode: u32, mtime_ns: i64 },
    Symlink,
    Failed { remote: String, reason: String },
}

/// Says why a finished file did not get its name.
pub(crate) fn place_failure(job: &FileJob, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AlreadyExists => already_there(&job.name),
        _ => format!("cannot be put in place: {error}"),
    }
}

fn already_there(name: &OsStr) -> String {
    format!("{} is there already and was left alone; replace it with --overwrite", name.display())
}

/// Decides whether a file may be written at `name`.
pub(crate) fn check_free(folder: &LocalFolder, name: &OsStr, overwrite: bool) -> Result<(), String> {
    match folder.kind(name) {
        Ok(None) => Ok(()),
        Ok(Some(LocalKind::Other)) if overwrite => Ok(()),
        Ok(Some(LocalKind::Other)) => Err(already_there(name)),
        Ok(Some(LocalKind::Folder)) => Err(format!("a folder {} is there", name.display())),
        Err(error) => Err(format!("cannot look at {}: {error}", name.display())),
    }
}

/// Makes the symlink of `entry` at `name`.
pub(crate) fn make_symlink(
    folder: &LocalFolder,
    name: &OsStr,
    entry: &v1::Entry,
    overwrite: bool,
) -> Result<(), String> {
    check_free(folder, name, overwrite)?;
    folder
        .make_symlink(name, &entry.symlink_target, entry.mtime_ns, overwrite)
        .map_err(|error| format!("cannot be made: {error}"))
}

/// Places a page's entries in `folder`, which lies at `relative` below the target. Blocks.
pub(crate) fn place_page(
    folder: &Arc<LocalFolder>,
    relative: &str,
    remote_folder: &RemotePath,
    page: Vec<v1::Entry>,
    overwrite: bool,
) -> Vec<Placed> {
    page.into_iter()
        .map(|entry| {
            let shown = format!("{}/{}", remote_folder.as_str().trim_end_matches('/'), entry.name);
            place_entry(folder, relative, remote_folder, &entry, overwrite)
                .unwrap_or_else(|reason| Placed::Failed { remote: shown, reason })
        })
        .collect()
}

fn place_entry(
    folder: &Arc<LocalFolder>,
    relative: &str,
    remote_folder: &RemotePath,
    entry: &v1::Entry,
    overwrite: bool,
) -> Result<Placed, String> {
    let remote = remote_folder
        .join(&entry.name)
        .map_err(|error| format!("the server gave a name that is none: {error}"))?;
    let name = OsString::from(&entry.name);
    match entry.kind() {
        v1::EntryKind::File => {
            check_free(folder, &name, overwrite)?;
            Ok(Placed::File(FileJob { folder: folder.clone(), name, remote, size: entry.size }))
        }
        v1::EntryKind::Folder => {
            folder.make_child(&name).map_err(|error| format!("cannot be made: {error}"))?;
            Ok(Placed::Folder {
                relative: format!("{relative}/{}", entry.name),
                remote,
                mode: entry.mode,
                mtime_ns: entry.mtime_ns,
            })
        }
        v1::EntryKind::Symlink => {
            make_symlink(folder, &name, entry, overwrite)?;
            Ok(Placed::Symlink)
        }
        v1::EntryKind::Unspecified => Err("this version of keepstone does not know its kind".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: v1::EntryKind) -> v1::Entry {
        v1::Entry { name: name.to_owned(), kind: kind.into(), mode: 0o755, ..Default::default() }
    }

    #[test]
    fn names_that_lead_outside_touch_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("target");
        std::fs::create_dir(&inside).unwrap();
        let folder = Arc::new(LocalFolder::open(&inside).unwrap());
        for kind in [v1::EntryKind::File, v1::EntryKind::Folder, v1::EntryKind::Symlink] {
            let page =
                ["..", ".", "", "../x", "/etc/x", "a\0b"].into_iter().map(|name| entry(name, kind)).collect();
            let placed = place_page(&folder, "", &RemotePath::root(), page, true);
            assert!(placed.iter().all(|placed| matches!(placed, Placed::Failed { .. })));
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 0);
    }

    #[test]
    fn a_local_file_is_left_alone_unless_told_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("f"), "mine").unwrap();
        let folder = Arc::new(LocalFolder::open(directory.path()).unwrap());
        let place = |kind, overwrite| {
            place_page(&folder, "", &RemotePath::root(), vec![entry("f", kind)], overwrite).remove(0)
        };
        assert!(matches!(place(v1::EntryKind::File, false), Placed::Failed { .. }));
        assert!(matches!(place(v1::EntryKind::Symlink, false), Placed::Failed { .. }));
        assert!(matches!(place(v1::EntryKind::Folder, true), Placed::Failed { .. }));
        assert!(matches!(place(v1::EntryKind::File, true), Placed::File(_)));
        assert_eq!(std::fs::read(directory.path().join("f")).unwrap(), b"mine");
    }
}
