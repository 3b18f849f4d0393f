//! What a file that is got is written into, as it comes, instead of being put in a place: standard output, pipes, and
//! devices that take a stream. Nothing of these is ever replaced by a file.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::output::NobodyReads;

/// Where bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Through {
    StandardOutput,
    StandardError,
    /// A pipe or a device.
    Opened(PathBuf),
}

/// What a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A place in a folder.
    Place,
    Through(Through),
    /// Something that is neither written into nor replaced: what, and what to do.
    Refused(String),
}

/// Looks at a target, which may be `-`. Blocks.
pub(crate) fn look(target: &Path) -> Target {
    match target.as_os_str().as_bytes() {
        b"-" | b"/dev/stdout" | b"/dev/fd/1" | b"/proc/self/fd/1" => {
            return Target::Through(Through::StandardOutput);
        }
        b"/dev/stderr" | b"/dev/fd/2" | b"/proc/self/fd/2" => return Target::Through(Through::StandardError),
        _ => {}
    }
    // A shell's `>(COMMAND)` is such a path.
    let is_open_file = target.starts_with("/dev/fd") || target.starts_with("/proc/self/fd");
    let metadata = if is_open_file { std::fs::metadata(target) } else { std::fs::symlink_metadata(target) };
    match metadata {
        Ok(metadata) if is_open_file && metadata.is_file() => {
            Target::Refused("it is a file that is open: name the file, or use `keepstone cat`".to_owned())
        }
        Ok(metadata) => of_kind(target, &metadata),
        Err(_nothing_there) => Target::Place,
    }
}

fn of_kind(target: &Path, metadata: &Metadata) -> Target {
    let kind = metadata.file_type();
    if kind.is_fifo() || kind.is_char_device() {
        return Target::Through(Through::Opened(target.to_owned()));
    }
    if kind.is_symlink() && !target.is_dir() {
        let to = std::fs::read_link(target).unwrap_or_default();
        return Target::Refused(format!(
            "it is a symlink to {}, which is neither followed nor replaced: name what it points to, or remove it first",
            to.display()
        ));
    }
    if kind.is_socket() {
        return Target::Refused("it is a socket, which is not replaced: name another target".to_owned());
    }
    if kind.is_block_device() {
        return Target::Refused(
            "it is a disk, which is neither replaced nor written: name another target, or use `keepstone cat`"
                .to_owned(),
        );
    }
    Target::Place
}

impl Through {
    /// Opens it; of a pipe, once somebody reads. Blocks.
    pub(crate) fn open(&self) -> std::io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::StandardOutput => Box::new(std::io::stdout()),
            Self::StandardError => Box::new(std::io::stderr()),
            Self::Opened(path) => {
                // If a file has taken its place, it is neither made, nor cut, nor made somebody's terminal.
                let flags = i32::try_from(OFlags::NOCTTY.bits()).unwrap_or_default();
                let file = File::options().write(true).custom_flags(flags).open(path)?;
                let kind = file.metadata()?.file_type();
                if !kind.is_fifo() && !kind.is_char_device() {
                    return Err(std::io::Error::other("it is something else now"));
                }
                Box::new(file)
            }
        })
    }

    /// What it means that writing into it failed. Who reads standard output may leave once they have enough; whatever
    /// else a file is written into is to have all of it.
    pub(crate) fn failure(&self, error: std::io::Error) -> anyhow::Error {
        match self {
            Self::StandardOutput => NobodyReads::or(error),
            Self::Opened(_) if error.kind() == ErrorKind::BrokenPipe => {
                anyhow::anyhow!("whoever read it left before all of it was written")
            }
            Self::StandardError | Self::Opened(_) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_reads_standard_output_may_leave() {
        let gone = || std::io::Error::from(ErrorKind::BrokenPipe);
        assert!(Through::StandardOutput.failure(gone()).is::<NobodyReads>());
        for through in [Through::StandardError, Through::Opened("pipe".into())] {
            assert!(!through.failure(gone()).is::<NobodyReads>());
        }
    }

    #[test]
    fn streams_are_written_into_and_nothing_odd_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        std::os::unix::fs::symlink("folder", at("link to folder")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for name in ["file", "folder", "link to folder", "nothing"] {
            assert_eq!(look(&at(name)), Target::Place, "{name}");
        }
        for (name, word) in
            [("link", "symlink to file"), ("dangling", "symlink to nowhere"), ("socket", "socket")]
        {
            match look(&at(name)) {
                Target::Refused(reason) => assert!(reason.contains(word), "{reason}"),
                other => panic!("{name} is {other:?}"),
            }
        }
        assert_eq!(look(&at("pipe")), Target::Through(Through::Opened(at("pipe"))));
        let null = PathBuf::from("/dev/null");
        assert_eq!(look(&null), Target::Through(Through::Opened(null.clone())));
        for standard in ["-", "/dev/stdout", "/dev/fd/1"] {
            assert_eq!(look(Path::new(standard)), Target::Through(Through::StandardOutput));
        }
    }
}
