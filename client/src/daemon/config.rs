//! The daemon's configuration: which folders, with what, how. A TOML file, mode 0600.
//!
//! Invariants:
//! - The file is changed under a lock on its directory, and replaced as a whole: a command and the daemon never undo
//!   each other's changes.
//! - No folder of it is inside another.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::path::{PathError, RemotePath};
use crate::private_file;
use crate::profile::{Profile, ProfileError};
use crate::sync::config::{DeleteGuard, Limits, Rate, SCAN_INTERVAL_DEFAULT, SyncConfig};

/// Largest configuration that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Folders in one configuration.
pub const ROOTS_MAX: usize = 256;
/// What every written file begins with.
const HEADER: &str = "# Written by `keepstone sync`: comments are not kept.\n";

/// Why a configuration cannot be read, changed or used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// Read, write, lock.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or a key is missing, unknown or wrong.
    #[error("{} is not a configuration of the sync daemon: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A folder cannot be added.
    #[error("{}: {reason}", directory.display())]
    Refused {
        /// Which.
        directory: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// It is not in the configuration.
    #[error("{} is not kept in sync; `keepstone sync status` shows what is", directory.display())]
    Unknown {
        /// The folder.
        directory: PathBuf,
    },
}

fn yes() -> bool {
    true
}

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonConfig {
    /// The profile of folders that name none; absent: the command line's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<PathBuf>,
    /// Pause while the network is metered.
    #[serde(default = "yes")]
    pub pause_on_metered: bool,
    /// Tell of conflicts on the desktop.
    #[serde(default = "yes")]
    pub notify: bool,
    /// The folders.
    #[serde(default, rename = "root")]
    pub roots: Vec<RootConfig>,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self { profile: None, pause_on_metered: true, notify: true, roots: Vec::new() }
    }
}

/// A folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootConfig {
    /// The local folder, absolute.
    pub directory: PathBuf,
    /// The remote folder.
    #[serde(default = "remote_default")]
    pub remote: String,
    /// Where the state is kept; absent: `.keepstone` in the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PathBuf>,
    /// The profile; absent: the configuration's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<PathBuf>,
    /// Whether it is paused.
    #[serde(default)]
    pub paused: bool,
    /// Bandwidth to the server.
    #[serde(default, with = "super::rate::as_text")]
    pub up: Rate,
    /// Bandwidth from the server.
    #[serde(default, with = "super::rate::as_text")]
    pub down: Rate,
    /// More deletes at once wait for a confirmation.
    #[serde(default = "deletes_max_default")]
    pub deletes_max: u64,
    /// As do deletes of more than so many of a hundred files.
    #[serde(default = "deletes_percent_max_default")]
    pub deletes_percent_max: u32,
    /// From one look at everything to the next.
    #[serde(default = "scan_minutes_default")]
    pub scan_minutes: u64,
}

fn remote_default() -> String {
    "/".to_owned()
}

fn deletes_max_default() -> u64 {
    DeleteGuard::default().count_max
}

fn deletes_percent_max_default() -> u32 {
    DeleteGuard::default().percent_max
}

fn scan_minutes_default() -> u64 {
    SCAN_INTERVAL_DEFAULT.as_secs() / 60
}

/// Why a folder of the configuration cannot be kept in sync as it says.
#[derive(Debug, thiserror::Error)]
pub enum UseError {
    /// The remote path is none.
    #[error("the configuration's remote path cannot be used: {0}")]
    Remote(#[from] PathError),
    /// There is no usable profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

impl RootConfig {
    /// With defaults for all but what has none.
    #[must_use]
    pub fn new(directory: PathBuf, remote: &RemotePath) -> Self {
        Self {
            directory,
            remote: remote.to_string(),
            state: None,
            profile: None,
            paused: false,
            up: Rate::Unlimited,
            down: Rate::Unlimited,
            deletes_max: deletes_max_default(),
            deletes_percent_max: deletes_percent_max_default(),
            scan_minutes: scan_minutes_default(),
        }
    }

    /// Bandwidth in both directions.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { up: self.up, down: self.down }
    }

    /// Reads the profile and gives what a session needs. Blocking.
    ///
    /// # Errors
    /// If the profile or the remote path cannot be used.
    pub fn sync_config(&self, profile_default: &Path) -> Result<SyncConfig, UseError> {
        let path = self.profile.as_deref().unwrap_or(profile_default);
        let connect = Profile::load(path)?.connect_options(path)?;
        let mut config = SyncConfig::new(self.directory.clone(), RemotePath::parse(&self.remote)?, connect);
        config.state_dir.clone_from(&self.state);
        config.limits = self.limits();
        config.delete_guard =
            DeleteGuard { count_max: self.deletes_max, percent_max: self.deletes_percent_max };
        config.scan_interval = Duration::from_secs(self.scan_minutes.max(1).saturating_mul(60));
        Ok(config)
    }
}

impl DaemonConfig {
    /// Reads the file; none is an empty one. Blocking.
    ///
    /// # Errors
    /// If it cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        use std::io::Read;
        let malformed = |reason: String| ConfigError::Malformed { path: path.to_owned(), reason };
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        match read {
            Ok(_bytes) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Io { what: "read", path: path.to_owned(), source }),
        }
        let config: Self = toml::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        config.check().map_err(|error| malformed(error.to_string()))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let mut seen = Self::default();
        for root in &self.roots {
            seen.add(root.clone())?;
        }
        Ok(())
    }

    /// Adds a folder.
    ///
    /// # Errors
    /// If it is there already, inside another or around one, or its paths cannot be used.
    pub fn add(&mut self, root: RootConfig) -> Result<(), ConfigError> {
        let refused = |reason: String| ConfigError::Refused { directory: root.directory.clone(), reason };
        for path in [Some(&root.directory), root.state.as_ref(), root.profile.as_ref()].into_iter().flatten()
        {
            if !path.is_absolute() || path.to_str().is_none() {
                return Err(refused(format!("{} is not an absolute path of UTF-8", path.display())));
            }
        }
        RemotePath::parse(&root.remote).map_err(|error| refused(error.to_string()))?;
        if self.roots.len() >= ROOTS_MAX {
            return Err(refused(format!("there are {ROOTS_MAX} folders already, and no more are taken")));
        }
        for other in &self.roots {
            let (ours, theirs) = (&root.directory, &other.directory);
            if ours == theirs {
                return Err(refused(format!("it is kept in sync already, with {}", other.remote)));
            }
            if ours.starts_with(theirs) || theirs.starts_with(ours) {
                let reason =
                    format!("{} is kept in sync already, and one is inside the other", theirs.display());
                return Err(refused(reason));
            }
        }
        self.roots.push(root);
        Ok(())
    }

    /// A folder of it.
    ///
    /// # Errors
    /// If it has no such folder.
    pub fn root_mut(&mut self, directory: &Path) -> Result<&mut RootConfig, ConfigError> {
        self.roots
            .iter_mut()
            .find(|root| root.directory == directory)
            .ok_or_else(|| ConfigError::Unknown { directory: directory.to_owned() })
    }

    /// Takes a folder out.
    ///
    /// # Errors
    /// If it has no such folder.
    pub fn remove(&mut self, directory: &Path) -> Result<RootConfig, ConfigError> {
        let at = self.roots.iter().position(|root| root.directory == directory);
        let at = at.ok_or_else(|| ConfigError::Unknown { directory: directory.to_owned() })?;
        Ok(self.roots.remove(at))
    }
}

/// Changes the file: reads it, lets `change` change it, and writes it, while nobody else does. Blocking.
///
/// # Errors
/// If the file cannot be read or written, or `change` fails; then nothing is written.
pub fn edit<T>(
    path: &Path,
    change: impl FnOnce(&mut DaemonConfig) -> Result<T, ConfigError>,
) -> Result<T, ConfigError> {
    let io = |what| move |source| ConfigError::Io { what, path: path.to_owned(), source };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(directory).map_err(io("make the directory of"))?;
    let lock = File::open(directory).map_err(io("lock the directory of"))?;
    lock.lock().map_err(io("lock the directory of"))?;
    let mut config = DaemonConfig::load(path)?;
    let before = config.clone();
    let result = change(&mut config)?;
    if config != before {
        let text = toml::to_string(&config)
            .map_err(|error| ConfigError::Malformed { path: path.to_owned(), reason: error.to_string() })?;
        private_file::replace(path, format!("{HEADER}{text}").as_bytes()).map_err(io("write"))?;
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(directory: &str) -> RootConfig {
        RootConfig::new(directory.into(), &RemotePath::parse("/docs").unwrap())
    }

    #[test]
    fn a_file_with_little_in_it_has_the_defaults() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("sync.toml");
        assert_eq!(DaemonConfig::load(&path).unwrap(), DaemonConfig::default());
        std::fs::write(&path, "[[root]]\ndirectory = \"/d\"\nup = \"2M\"\n").unwrap();
        let config = DaemonConfig::load(&path).unwrap();
        assert!(config.pause_on_metered && config.notify);
        let root = &config.roots[0];
        assert_eq!((root.remote.as_str(), root.up), ("/", Rate::BytesPerSecond(2 << 20)));
        assert_eq!((root.deletes_max, root.deletes_percent_max, root.scan_minutes), (1000, 50, 30));
    }

    #[test]
    fn what_is_written_is_read_alike() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("new/sync.toml");
        let mut full = root("/a \"b\"");
        full.state = Some("/state".into());
        full.profile = Some("/profile.toml".into());
        full.paused = true;
        full.down = Rate::Auto;
        edit(&path, |config| config.add(full.clone())).unwrap();
        edit(&path, |config| config.add(root("/b"))).unwrap();
        assert_eq!(DaemonConfig::load(&path).unwrap().roots, [full, root("/b")]);
        edit(&path, |config| config.remove(Path::new("/b"))).unwrap();
        assert_eq!(DaemonConfig::load(&path).unwrap().roots.len(), 1);
        assert!(matches!(
            edit(&path, |config| config.remove(Path::new("/b"))),
            Err(ConfigError::Unknown { .. })
        ));
    }

    #[test]
    fn folders_inside_one_another_are_refused() {
        let mut config = DaemonConfig::default();
        config.add(root("/a/b")).unwrap();
        for bad in ["/a/b", "/a/b/c", "/a", "/", "relative"] {
            assert!(matches!(config.add(root(bad)), Err(ConfigError::Refused { .. })), "{bad}");
        }
        config.add(root("/a/bc")).unwrap();
        let mut bad = root("/d");
        bad.remote = "no/slash".to_owned();
        assert!(config.add(bad).is_err());
    }

    #[test]
    fn a_file_that_is_none_says_what_is_wrong() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("sync.toml");
        for (text, word) in [
            ("x = 1\n", "x"),
            ("[[root]]\ndirectory = \"/d\"\nup = \"fast\"\n", "rate"),
            ("[[root]]\ndirectory = \"/d\"\n[[root]]\ndirectory = \"/d/e\"\n", "inside"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = DaemonConfig::load(&path).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        std::fs::write(&path, "x = 1\n").unwrap();
        assert!(edit(&path, |_config| Ok(())).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x = 1\n", "it is not replaced");
    }

    #[test]
    fn changes_at_once_are_all_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("sync.toml");
        std::thread::scope(|scope| {
            for index in 0..8 {
                let path = &path;
                scope.spawn(move || edit(path, |config| config.add(root(&format!("/{index}")))).unwrap());
            }
        });
        assert_eq!(DaemonConfig::load(&path).unwrap().roots.len(), 8);
    }
}
