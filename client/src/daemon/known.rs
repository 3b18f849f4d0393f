//! The folders that `sync run` has kept in sync, by path: a folder that is known and has no marker is a disk that is not
//! mounted, and must not be taken for a new folder; and a state that is elsewhere is to be forgotten with its folder. A
//! TOML file, mode 0600.
//!
//! Invariants:
//! - The file is changed under a lock on its directory, and replaced as a whole.
//! - It holds at most `KNOWN_MAX` folders; the oldest make room.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::{ConfigError, DaemonConfig, root_id_as_text};
use super::paths::Paths;
use crate::local::rel::STATE_FOLDER;
use crate::local::root::{Root, RootError, RootId};
use crate::private_file;
use crate::state::database::root_id_of_state;
use crate::sync::config::Expected;

/// Folders that are remembered.
const KNOWN_MAX: usize = 1_024;
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
const HEADER: &str = "# Folders that `keepstone sync run` has kept in sync.\n";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    #[serde(default, rename = "root")]
    roots: Vec<KnownRoot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KnownRoot {
    directory: PathBuf,
    #[serde(with = "root_id_as_text")]
    id: Option<RootId>,
    /// Where its state is; absent: in the folder itself, or noted by an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<PathBuf>,
}

/// What a `sync run` is to expect of a folder. Blocks.
///
/// # Errors
/// If the file of known folders cannot be read.
pub fn expected(paths: &Paths, directory: &Path) -> Result<Expected, ConfigError> {
    let configured = DaemonConfig::load(&paths.config).unwrap_or_else(|error| {
        tracing::warn!(%error, "the daemon's folders are not known");
        DaemonConfig::default()
    });
    let by_daemon = configured.roots.iter().any(|root| root.directory == directory && root.id.is_some());
    let by_run = load(&paths.roots)?.roots.iter().any(|root| root.directory == directory);
    Ok(if by_daemon || by_run { Expected::Existing } else { Expected::MayBeNew })
}

/// Why a folder is not marked again.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The configuration or the file of known folders cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Nothing knows which folder it was.
    #[error("{} is not known to have been kept in sync: add it without --again", .0.display())]
    Unknown(PathBuf),
}

/// Marks a folder again as the one that it was, by its state (in `state`; absent: in the folder itself, or where the
/// daemon's configuration says), by the daemon's configuration or by the folders that were run. Blocks.
///
/// # Errors
/// See [`MarkError`].
pub fn mark_again(paths: &Paths, directory: &Path, state: Option<&Path>) -> Result<(), MarkError> {
    let configured = DaemonConfig::load(&paths.config)?;
    let root = configured.roots.iter().find(|root| root.directory == directory);
    let state = state.or_else(|| root.and_then(|root| root.state.as_deref()));
    let state = state.map_or_else(|| directory.join(STATE_FOLDER), Path::to_owned);
    let by_run = load(&paths.roots)?.roots.into_iter().find(|root| root.directory == directory);
    let id = root_id_of_state(&state)
        .or_else(|| root.and_then(|root| root.id))
        .or_else(|| by_run.and_then(|root| root.id))
        .ok_or_else(|| MarkError::Unknown(directory.to_owned()))?;
    Ok(Root::mark_again(directory, id)?)
}

/// Where the state of a folder is that was run, if it is outside of it and still of that folder: by now it may be of
/// another, which was run with the same. Blocks.
///
/// # Errors
/// If the file of known folders cannot be read.
pub fn state_of(paths: &Paths, directory: &Path) -> Result<Option<PathBuf>, ConfigError> {
    let known = load(&paths.roots)?.roots.into_iter().find(|root| root.directory == directory);
    let Some(KnownRoot { id: Some(id), state, .. }) = known else { return Ok(None) };
    Ok(state.filter(|state| root_id_of_state(state) == Some(id)))
}

/// Remembers a folder that was opened, with its state in `state` or, absent, in the folder itself. Blocks.
///
/// # Errors
/// If the file cannot be written.
pub fn remember(
    paths: &Paths,
    directory: &Path,
    id: RootId,
    state: Option<&Path>,
) -> Result<(), ConfigError> {
    edit(&paths.roots, |known| {
        // A path that is not UTF-8 cannot be noted; the folder is all the same.
        let state = state.filter(|state| state.to_str().is_some()).map(Path::to_owned);
        let now = KnownRoot { directory: directory.to_owned(), id: Some(id), state };
        if known.roots.contains(&now) {
            return;
        }
        known.roots.retain(|root| root.directory != directory);
        known.roots.push(now);
        let surplus = known.roots.len().saturating_sub(KNOWN_MAX);
        known.roots.drain(..surplus);
    })
}

/// Forgets a folder; says whether it was known. Blocks.
///
/// # Errors
/// If the file cannot be written.
pub fn forget(paths: &Paths, directory: &Path) -> Result<bool, ConfigError> {
    let mut was_known = false;
    edit(&paths.roots, |known| {
        let before = known.roots.len();
        known.roots.retain(|root| root.directory != directory);
        was_known = known.roots.len() < before;
    })?;
    Ok(was_known)
}

fn load(path: &Path) -> Result<Known, ConfigError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_bytes) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Known::default()),
        Err(source) => return Err(ConfigError::Io { what: "read", path: path.to_owned(), source }),
    }
    toml::from_str(&text).map_err(|error| ConfigError::Malformed {
        path: path.to_owned(),
        reason: format!("{error}; remove the file, and mind that disks are mounted at the next start"),
    })
}

fn edit(path: &Path, change: impl FnOnce(&mut Known)) -> Result<(), ConfigError> {
    let io = |what| move |source| ConfigError::Io { what, path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(Path::new("."));
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(io("make the directory of"))?;
    let lock = File::open(directory).map_err(io("lock the directory of"))?;
    lock.lock().map_err(io("lock the directory of"))?;
    let mut known = load(path)?;
    let before = known.clone();
    change(&mut known);
    if known != before {
        let text = toml::to_string(&known)
            .map_err(|error| ConfigError::Malformed { path: path.to_owned(), reason: error.to_string() })?;
        private_file::replace(path, format!("{HEADER}{text}").as_bytes()).map_err(io("write"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::database::State;

    #[test]
    fn a_folder_that_was_run_once_is_not_taken_for_new_until_it_is_forgotten() {
        let scratch = tempfile::tempdir().unwrap();
        let file = |name: &str| scratch.path().join("state").join(name);
        let paths =
            Paths { config: file("sync.toml"), socket: file("s"), log: file("l"), roots: file("r.toml") };
        let (one, two) = (Path::new("/one"), Path::new("/two"));
        assert_eq!(expected(&paths, one).unwrap(), Expected::MayBeNew);
        remember(&paths, one, RootId([1; 16]), None).unwrap();
        remember(&paths, one, RootId([2; 16]), None).unwrap();
        assert_eq!(expected(&paths, one).unwrap(), Expected::Existing);
        assert_eq!(expected(&paths, two).unwrap(), Expected::MayBeNew);
        assert!(forget(&paths, one).unwrap() && !forget(&paths, one).unwrap());
        assert_eq!(expected(&paths, one).unwrap(), Expected::MayBeNew);
        let many = (0..KNOWN_MAX).map(|number| KnownRoot {
            directory: format!("/{number}").into(),
            id: Some(RootId([3; 16])),
            state: None,
        });
        let text = toml::to_string(&Known { roots: many.collect() }).unwrap();
        std::fs::write(&paths.roots, text).unwrap();
        remember(&paths, one, RootId([1; 16]), None).unwrap();
        let roots = load(&paths.roots).unwrap().roots;
        assert_eq!((roots.len(), roots[0].directory.as_path()), (KNOWN_MAX, Path::new("/1")));
        std::fs::write(&paths.roots, "nonsense").unwrap();
        assert!(expected(&paths, one).unwrap_err().to_string().contains("remove the file"));
    }

    #[test]
    fn a_state_outside_of_its_folder_is_known_as_long_as_it_is_of_that() {
        let scratch = tempfile::tempdir().unwrap();
        let file = |name: &str| scratch.path().join(name);
        let paths =
            Paths { config: file("sync.toml"), socket: file("s"), log: file("l"), roots: file("r.toml") };
        let (one, state) = (Path::new("/one"), file("state"));
        let id = RootId([1; 16]);
        // As earlier versions noted it.
        std::fs::write(&paths.roots, format!("[[root]]\ndirectory = \"/one\"\nid = \"{id}\"\n")).unwrap();
        assert_eq!(state_of(&paths, one).unwrap(), None);
        remember(&paths, one, id, Some(&state)).unwrap();
        assert_eq!(load(&paths.roots).unwrap().roots.len(), 1);
        assert_eq!(state_of(&paths, one).unwrap(), None, "there is none");
        std::fs::create_dir(&state).unwrap();
        for (of, known) in [(id, Some(&state)), (RootId([2; 16]), None)] {
            let mut opened = State::open(&state).unwrap().state;
            opened.transaction(|opened| opened.set_bytes("root_id", &of.0)).unwrap();
            opened.close().unwrap();
            assert_eq!(state_of(&paths, one).unwrap().as_ref(), known);
        }
        assert_eq!(state_of(&paths, Path::new("/two")).unwrap(), None);
    }

    #[test]
    fn a_folder_of_the_daemon_is_known() {
        let scratch = tempfile::tempdir().unwrap();
        let file = |name: &str| scratch.path().join(name);
        let paths =
            Paths { config: file("sync.toml"), socket: file("s"), log: file("l"), roots: file("r.toml") };
        std::fs::write(
            &paths.config,
            format!("[[root]]\ndirectory = \"/d\"\nid = \"{}\"\n", "07".repeat(16)),
        )
        .unwrap();
        assert_eq!(expected(&paths, Path::new("/d")).unwrap(), Expected::Existing);
    }
}
