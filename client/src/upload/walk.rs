//! Finds what there is to put: walks local trees on a thread of its own.
//!
//! Invariants:
//! - A folder comes before anything in it, and its files and symlinks before its subfolders: so that all a caller
//!   needs to know of a remote folder, it needs at once.
//! - Symlinks are never followed, not even when named as a source.
//! - Unfinished files of `get` are nobody's content, and are passed over.

use std::fs::Metadata;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use walkdir::{DirEntry, WalkDir};

use super::UploadSource;
use crate::local_folder::is_unfinished_name;
use crate::path::RemotePath;
use crate::progress::Progress;
use crate::report::Failure;

/// A regular file to be put.
#[derive(Clone, Debug)]
pub(crate) struct LocalFile {
    pub(crate) local: PathBuf,
    pub(crate) remote: RemotePath,
    /// As the walk saw it.
    pub(crate) size: u64,
    /// Whether it is in a folder that the walk has given before; else it was named as a source.
    pub(crate) in_walked_folder: bool,
}

/// A folder to be made.
#[derive(Clone, Debug)]
pub(crate) struct LocalFolder {
    pub(crate) local: PathBuf,
    pub(crate) remote: RemotePath,
    pub(crate) mode: u32,
    pub(crate) mtime_ns: i64,
}

/// A symlink to be made.
#[derive(Clone, Debug)]
pub(crate) struct LocalSymlink {
    pub(crate) local: PathBuf,
    pub(crate) remote: RemotePath,
    pub(crate) target: Vec<u8>,
    pub(crate) mtime_ns: i64,
}

/// One thing that the walk found.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Folder(LocalFolder),
    Symlink(LocalSymlink),
    File(LocalFile),
    Failed(Failure),
}

/// A file's modification time in nanoseconds since 1970, within what the wire can say.
pub(crate) fn mtime_ns(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

/// Permission bits, 0 to 0o7777.
pub(crate) fn mode_bits(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

/// Walks all sources in order and sends what it finds. Ends early when nobody listens any more. Blocks.
pub(crate) fn walk(sources: &[UploadSource], found: &mpsc::Sender<Found>, progress: &dyn Progress) {
    for source in sources {
        let walk = WalkDir::new(&source.local).follow_links(false).follow_root_links(false).sort_by(order);
        let mut at = Position::new(source);
        // One that is named itself is put: somebody may want it back.
        let mut entries = walk.into_iter().filter_entry(|entry| entry.depth() == 0 || !is_unfinished(entry));
        while let Some(entry) = entries.next() {
            let item = match entry {
                Ok(entry) => match at.place(&entry) {
                    Ok(remote) => look(&entry, remote),
                    Err(reason) => {
                        if entry.file_type().is_dir() {
                            entries.skip_current_dir();
                        }
                        Found::Failed(failure(entry.path(), reason))
                    }
                },
                Err(error) => Found::Failed(walk_failure(source, error)),
            };
            if let Found::File(file) = &item {
                progress.planned(1, file.size);
            }
            if found.blocking_send(item).is_err() {
                return;
            }
        }
    }
    progress.planned_all();
}

/// A file that `get` is writing, or that one which was killed has left.
fn is_unfinished(entry: &DirEntry) -> bool {
    entry.file_type().is_file() && is_unfinished_name(entry.file_name().as_bytes())
}

/// Folders last, then by name.
fn order(a: &DirEntry, b: &DirEntry) -> std::cmp::Ordering {
    (a.file_type().is_dir(), a.file_name()).cmp(&(b.file_type().is_dir(), b.file_name()))
}

fn failure(path: &Path, reason: impl Into<String>) -> Failure {
    Failure { path: path.display().to_string(), reason: reason.into() }
}

fn walk_failure(source: &UploadSource, error: walkdir::Error) -> Failure {
    let path = error.path().unwrap_or(&source.local).to_owned();
    let reason = match error.into_io_error() {
        Some(io) if io.kind() == std::io::ErrorKind::NotFound => "there is no such file or folder".to_owned(),
        Some(io) => format!("cannot be read: {io}"),
        None => "the folders form a loop".to_owned(),
    };
    failure(&path, reason)
}

/// The remote folders from the source down to where the walk is.
struct Position<'a> {
    source: &'a UploadSource,
    folders: Vec<RemotePath>,
}

impl<'a> Position<'a> {
    fn new(source: &'a UploadSource) -> Self {
        Self { source, folders: Vec::new() }
    }

    /// Where `entry` goes, or why it can go nowhere.
    fn place(&mut self, entry: &DirEntry) -> Result<RemotePath, String> {
        let remote = if entry.depth() == 0 {
            self.source.remote.clone()
        } else {
            self.folders.truncate(entry.depth());
            let name = entry
                .file_name()
                .to_str()
                .ok_or("its name is not UTF-8: rename it, for names on the server are UTF-8")?;
            let folder = self.folders.last().ok_or("it is outside the walk")?;
            folder.join(name).map_err(|error| error.to_string())?
        };
        if entry.file_type().is_dir() {
            self.folders.truncate(entry.depth());
            self.folders.push(remote.clone());
        }
        Ok(remote)
    }
}

fn look(entry: &DirEntry, remote: RemotePath) -> Found {
    let local = entry.path().to_owned();
    let metadata = match entry.metadata() {
        Ok(metadata) => metadata,
        Err(error) => return Found::Failed(failure(&local, format!("cannot be read: {error}"))),
    };
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Found::Folder(LocalFolder {
            local,
            remote,
            mode: mode_bits(&metadata),
            mtime_ns: mtime_ns(&metadata),
        });
    }
    if kind.is_symlink() {
        return match std::fs::read_link(&local) {
            Ok(target) => Found::Symlink(LocalSymlink {
                target: target.into_os_string().into_vec(),
                local,
                remote,
                mtime_ns: mtime_ns(&metadata),
            }),
            Err(error) => Found::Failed(failure(&local, format!("cannot be read: {error}"))),
        };
    }
    if kind.is_file() {
        let in_walked_folder = entry.depth() > 0;
        return Found::File(LocalFile { local, remote, size: metadata.len(), in_walked_folder });
    }
    let what = if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Found::Failed(failure(&local, format!("it is {what}, which cannot be stored; skipped")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk_all(sources: Vec<UploadSource>) -> Vec<Found> {
        let (sender, mut receiver) = mpsc::channel(1);
        let thread = std::thread::spawn(move || walk(&sources, &sender, &crate::progress::NoProgress));
        let mut all = Vec::new();
        while let Some(found) = receiver.blocking_recv() {
            all.push(found);
        }
        thread.join().unwrap();
        all
    }

    fn describe(found: &Found) -> String {
        match found {
            Found::Folder(folder) => format!("folder {}", folder.remote),
            Found::Symlink(link) => {
                format!("symlink {} {}", link.remote, String::from_utf8_lossy(&link.target))
            }
            Found::File(file) => format!("file {} {}", file.remote, file.size),
            Found::Failed(failure) => format!("failed {}", failure.reason),
        }
    }

    #[test]
    fn a_folders_files_come_before_its_subfolders_and_odd_things_are_reported() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        std::fs::create_dir_all(top.join("a/deep")).unwrap();
        std::fs::write(top.join("a/deep/x"), "12").unwrap();
        std::fs::write(top.join("z"), "1").unwrap();
        std::fs::write(top.join(".z.keepstone-01ab23cd"), "half").unwrap();
        std::os::unix::fs::symlink("a", top.join("link")).unwrap();
        std::fs::write(top.join(std::ffi::OsStr::from_bytes(b"bad\xff")), "").unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, top.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
        let found = walk_all(vec![UploadSource { local: top, remote: RemotePath::parse("/t").unwrap() }]);
        let texts: Vec<String> = found.iter().map(describe).collect();
        assert_eq!(texts[0], "folder /t");
        assert!(texts[1].starts_with("failed its name is not UTF-8"), "{texts:?}");
        assert_eq!(texts[2], "symlink /t/link a");
        assert!(texts[3].starts_with("failed it is a named pipe"), "{texts:?}");
        assert_eq!(&texts[4..], ["file /t/z 1", "folder /t/a", "folder /t/a/deep", "file /t/a/deep/x 2"]);
    }

    #[test]
    fn a_missing_source_is_reported_and_the_others_go_on() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("b"), "1").unwrap();
        let source = |name: &str| UploadSource {
            local: directory.path().join(name),
            remote: RemotePath::root().join(name).unwrap(),
        };
        let texts: Vec<String> = walk_all(vec![source("a"), source("b")]).iter().map(describe).collect();
        assert_eq!(texts, ["failed there is no such file or folder", "file /b 1"]);
    }

    #[test]
    fn a_symlink_named_as_source_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("d")).unwrap();
        std::os::unix::fs::symlink("d", directory.path().join("l")).unwrap();
        let remote = RemotePath::parse("/l").unwrap();
        let found = walk_all(vec![UploadSource { local: directory.path().join("l"), remote }]);
        assert_eq!(found.iter().map(describe).collect::<Vec<_>>(), ["symlink /l d"]);
    }
}
