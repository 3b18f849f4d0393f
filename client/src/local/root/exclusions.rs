//! Which folders are not kept on this device, beside the marker: the state repeats it, and can be lost. (Without this
//! list all that is excluded would be fetched.)
//!
//! It is written to a temporary file, synced and renamed: after a crash there is the old one or the new one. It is
//! written before the state, and the state follows it at the next start.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Root, open_state_folder};
use crate::state::excluded::EXCLUDED_MAX;

/// Its name in the state's folder of a root.
pub(crate) const EXCLUSIONS_FILE: &str = "excluded.toml";
const FILE_NEW: &str = "excluded.toml.new";
/// What this version writes.
const FORMAT: u32 = 1;
/// Most bytes of it that are read: a path for each folder, as long as it can be.
const BYTES_MAX: u64 = EXCLUDED_MAX as u64 * 4_200;

#[derive(Debug, Serialize, Deserialize)]
struct Text {
    format: u32,
    #[serde(default, rename = "folder")]
    folders: Vec<Folder>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Folder {
    /// The server's id, in hexadecimal: TOML's integers have a sign.
    entry: String,
    path: String,
}

/// Why the list cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the list of the folders that are excluded here, {path}, cannot be used: {reason}", path = path.display())]
pub struct ExclusionsError {
    path: std::path::PathBuf,
    reason: String,
}

impl Root {
    fn exclusions_error(&self, reason: impl std::fmt::Display) -> ExclusionsError {
        let path = self.path().join(crate::local::rel::STATE_FOLDER).join(EXCLUSIONS_FILE);
        ExclusionsError { path, reason: reason.to_string() }
    }

    /// The excluded folders: the server's id, and the path as it was given. `None`: there is no such list. Blocks.
    ///
    /// # Errors
    /// If there is one that cannot be read or understood.
    pub fn exclusions(&self) -> Result<Option<Vec<(u64, String)>>, ExclusionsError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let folder =
            open_state_folder(self.path(), self.fd()).map_err(|error| self.exclusions_error(error))?;
        let fd = match rustix::fs::openat(&folder, EXCLUSIONS_FILE, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.exclusions_error(errno)),
        };
        let mut text = String::new();
        let read = std::fs::File::from(fd).take(BYTES_MAX).read_to_string(&mut text);
        read.map_err(|error| self.exclusions_error(error))?;
        let text: Text = toml::from_str(&text).map_err(|error| self.exclusions_error(error.message()))?;
        if text.format != FORMAT {
            return Err(self.exclusions_error(format!("its format is {}", text.format)));
        }
        let folder = |folder: Folder| match u64::from_str_radix(&folder.entry, 16) {
            Ok(entry) => Ok((entry, folder.path)),
            Err(error) => Err(self.exclusions_error(error)),
        };
        Ok(Some(text.folders.into_iter().map(folder).collect::<Result<_, _>>()?))
    }

    /// Writes the list, durably. Blocks.
    ///
    /// # Errors
    /// If it cannot be written; then it is as it was.
    pub fn write_exclusions(&self, excluded: &[(u64, String)]) -> Result<(), ExclusionsError> {
        let folder =
            |(entry, path): &(u64, String)| Folder { entry: format!("{entry:x}"), path: path.clone() };
        let text = Text { format: FORMAT, folders: excluded.iter().map(folder).collect() };
        let text = toml::to_string(&text).map_err(|error| self.exclusions_error(error))?;
        let text = format!(
            "# Folders that are not kept on this device: `keepstone sync exclude` and `include`.\n{text}"
        );
        let folder =
            open_state_folder(self.path(), self.fd()).map_err(|error| self.exclusions_error(error))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&folder, FILE_NEW, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| self.exclusions_error(errno))?;
        let mut file = std::fs::File::from(fd);
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(|error| self.exclusions_error(error))?;
        rustix::fs::renameat(&folder, FILE_NEW, &folder, EXCLUSIONS_FILE)
            .and_then(|()| rustix::fs::fsync(folder.as_fd()))
            .map_err(|errno| self.exclusions_error(errno))
    }
}

#[cfg(test)]
mod tests {
    use crate::local::testing::TestRoot;

    #[test]
    fn what_is_written_is_read_alike_and_damage_is_told() {
        let root = TestRoot::new();
        assert_eq!(root.exclusions().unwrap(), None);
        let list = vec![(u64::MAX, "a \"b\"/ü".to_owned()), (7, "c".to_owned())];
        root.write_exclusions(&list).unwrap();
        assert_eq!(root.exclusions().unwrap(), Some(list));
        root.write_exclusions(&[]).unwrap();
        assert_eq!(root.exclusions().unwrap(), Some(Vec::new()));
        for damage in ["", "format = 2\n", "format = 1\n[[folder]]\nentry = \"x\"\npath = \"p\"\n"] {
            root.write(".keepstone/excluded.toml", damage);
            assert!(root.exclusions().unwrap_err().to_string().contains("excluded.toml"), "{damage}");
        }
    }
}
