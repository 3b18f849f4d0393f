//! The local side of a folder that is being got: its subfolders and symlinks, and which of its files may be written.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;

use proto::v1;

use super::FileJob;
use super::verify::ContentCheck;
use crate::local_folder::{LocalFolder, LocalKind};
use crate::path::RemotePath;
use crate::upload::{mode_bits, mtime_ns};
use crate::wire;

/// Bytes read at once where content is compared.
const COMPARE_BYTES: usize = 256 * 1024;

/// What became of one entry of a page.
pub(crate) enum Placed {
    File(FileJob),
    There { size: u64 },
    Folder { relative: String, remote: RemotePath, mode: u32, mtime_ns: i64 },
    Symlink,
    Failed { remote: String, reason: String },
}

/// Says why a finished file did not get its name.
pub(crate) fn place_failure(job: &FileJob, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AlreadyExists => already_there(&job.name),
        _ => format!("{} cannot be put in place: {error}", job.name.display()),
    }
}

fn already_there(name: &OsStr) -> String {
    format!("{} is there already and was left alone; replace it with --overwrite", name.display())
}

/// Decides whether a file may be written at `name`, where a symlink is in the way only of a file.
fn check_free(folder: &LocalFolder, name: &OsStr, overwrite: bool, symlink: bool) -> Result<(), String> {
    match folder.kind(name) {
        Ok(None) => Ok(()),
        Ok(Some(LocalKind::File)) if overwrite => Ok(()),
        Ok(Some(LocalKind::Symlink)) if overwrite && symlink => Ok(()),
        Ok(Some(LocalKind::File)) => Err(already_there(name)),
        Ok(Some(LocalKind::Symlink)) if symlink => Err(already_there(name)),
        Ok(Some(kind)) => Err(format!(
            "{} is {}, which is not replaced: remove it first, or name another target",
            name.display(),
            kind.word()
        )),
        Err(error) => Err(format!("cannot look at {}: {error}", name.display())),
    }
}

/// What is to be done for a file.
pub(crate) enum FileAt {
    /// Get it.
    Free,
    /// Its content is there already.
    There,
}

/// Decides whether a file is to be got to `name`. One that is there already with the same content need not be. Blocks.
pub(crate) fn look_at_file(
    folder: &LocalFolder,
    name: &OsStr,
    entry: &v1::Entry,
    overwrite: bool,
) -> Result<FileAt, String> {
    let is_there = || has_content(folder, name, entry).unwrap_or(false);
    match check_free(folder, name, overwrite, false) {
        // Its bits and time are left alone, as it is.
        Err(_in_the_way) if is_there() => Ok(FileAt::There),
        Err(in_the_way) => Err(in_the_way),
        Ok(()) if has_attributes(folder, name, entry).unwrap_or(false) && is_there() => Ok(FileAt::There),
        Ok(()) => Ok(FileAt::Free),
    }
}

/// Whether a regular file with the entry's permission bits and time is at `name`. Blocks.
fn has_attributes(folder: &LocalFolder, name: &OsStr, entry: &v1::Entry) -> io::Result<bool> {
    if folder.kind(name)? != Some(LocalKind::File) {
        return Ok(false);
    }
    let metadata = folder.open_file(name)?.metadata()?;
    Ok(mode_bits(&metadata) == entry.mode && mtime_ns(&metadata) == entry.mtime_ns)
}

/// Whether a regular file with the entry's content is at `name`. Blocks; reads it only if the size is right.
fn has_content(folder: &LocalFolder, name: &OsStr, entry: &v1::Entry) -> io::Result<bool> {
    if folder.kind(name)? != Some(LocalKind::File) || wire::cutter_from_wire(entry.cutter).is_none() {
        return Ok(false);
    }
    let mut file = folder.open_file(name)?;
    if file.metadata()?.len() != entry.size {
        return Ok(false);
    }
    let mut check = ContentCheck::new(entry);
    let mut buffer = vec![0; COMPARE_BYTES];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(check.finish().is_ok()),
            count => check.push(&buffer[..count]),
        }
    }
}

/// Makes the symlink of `entry` at `name`; one that points there already will do.
pub(crate) fn make_symlink(
    folder: &LocalFolder,
    name: &OsStr,
    entry: &v1::Entry,
    overwrite: bool,
) -> Result<(), String> {
    if let Err(reason) = check_free(folder, name, overwrite, true) {
        let there = folder.symlink_target(name).is_ok_and(|target| target == entry.symlink_target[..]);
        return if there { Ok(()) } else { Err(reason) };
    }
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
        v1::EntryKind::File => Ok(match look_at_file(folder, &name, entry, overwrite)? {
            FileAt::Free => Placed::File(FileJob { folder: folder.clone(), name, remote, size: entry.size }),
            FileAt::There => Placed::There { size: entry.size },
        }),
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

    #[test]
    fn what_is_no_file_is_refused_by_name_and_what_is_there_is_not_got_again() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::os::unix::fs::symlink("/dev/null", at("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
        std::fs::write(at("empty"), "").unwrap();
        let folder = Arc::new(LocalFolder::open(directory.path()).unwrap());
        let place =
            |entry: v1::Entry| place_page(&folder, "", &RemotePath::root(), vec![entry], true).remove(0);
        for (name, kind, word) in [
            ("link", v1::EntryKind::File, "a symlink"),
            ("pipe", v1::EntryKind::File, "a named pipe"),
            ("pipe", v1::EntryKind::Symlink, "a named pipe"),
        ] {
            match place(entry(name, kind)) {
                Placed::Failed { reason, .. } => assert!(reason.contains(word), "{reason}"),
                _ => panic!("{name} is taken"),
            }
        }
        let page = |name: &str, size| {
            let cutter = v1::Cutter::Cdc64k.into();
            vec![v1::Entry { size, cutter, ..entry(name, v1::EntryKind::File) }]
        };
        let placed = place_page(&folder, "", &RemotePath::root(), page("empty", 0), false).remove(0);
        assert!(matches!(placed, Placed::There { size: 0 }));
        let placed = place_page(&folder, "", &RemotePath::root(), page("empty", 1), false).remove(0);
        assert!(matches!(placed, Placed::Failed { .. }));
        let link = v1::Entry { symlink_target: "/dev/null".into(), ..entry("link", v1::EntryKind::Symlink) };
        let placed = place_page(&folder, "", &RemotePath::root(), vec![link], false).remove(0);
        assert!(matches!(placed, Placed::Symlink));
    }
}
