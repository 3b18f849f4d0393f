//! Opens the folder that is to be kept the same, or makes a new one such a folder. What is no such folder any more is
//! refused: the marker of a disk that is not mounted is missing as well.

use std::path::{Path, PathBuf};

use super::config::Expected;
use super::session::StartError;
use crate::local::rel::STATE_FOLDER;
use crate::local::root::{Root, RootError, RootId};
use crate::state::database::FILE_NAME;

/// Makes a folder one that can be kept the same, if it is none yet, and says which it is. Blocks.
///
/// # Errors
/// If the folder cannot be used.
pub fn make_root(directory: &Path, state: Option<&Path>) -> Result<RootId, StartError> {
    Ok(open_root(directory, state, Expected::MayBeNew)?.id())
}

/// Opens a folder that is as expected. Blocks.
pub(super) fn open_root(
    directory: &Path,
    state: Option<&Path>,
    expected: Expected,
) -> Result<Root, StartError> {
    let root = match Root::open(directory, state) {
        Err(RootError::MarkerMissing(_)) if expected == Expected::MayBeNew && is_new(directory, state) => {
            Root::create(directory, state, &[])?
        }
        Err(RootError::MarkerMissing(path)) => return Err(StartError::Unmarked(path)),
        opened => opened?,
    };
    match expected {
        Expected::Root(id) if id != root.id() => Err(RootError::OtherRoot(directory.to_owned()).into()),
        _ => Ok(root),
    }
}

/// Whether the folder was never kept the same: there is no state of it. With a state and without a marker, it is not
/// the folder that the state knows.
fn is_new(directory: &Path, state: Option<&Path>) -> bool {
    let folder = state.map_or_else(|| directory.join(STATE_FOLDER), PathBuf::from);
    !folder.join(FILE_NAME).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unmounted_mount_point_is_not_taken_for_a_new_folder() {
        let scratch = tempfile::tempdir().unwrap();
        let point = scratch.path().join("vault");
        std::fs::create_dir(&point).unwrap();
        let id = make_root(&point, None).unwrap();
        assert_eq!(make_root(&point, None).unwrap(), id, "it is made once");
        let known = [Expected::Existing, Expected::Root(id)];
        for expected in known {
            assert_eq!(open_root(&point, None, expected).unwrap().id(), id);
        }
        // Unmounted: the state, which was in it, is gone with the marker.
        std::fs::rename(&point, scratch.path().join("disk")).unwrap();
        std::fs::create_dir(&point).unwrap();
        for expected in known {
            let error = open_root(&point, None, expected).unwrap_err();
            assert!(matches!(error, StartError::Unmarked(_)), "{error}");
            assert!(error.to_string().contains("mount"), "{error}");
        }
        assert!(std::fs::read_dir(&point).unwrap().next().is_none(), "nothing is made in it");
        // So it is with a state that is elsewhere.
        let state = scratch.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::fs::write(state.join(FILE_NAME), "state").unwrap();
        let error = open_root(&point, Some(&state), Expected::MayBeNew).unwrap_err();
        assert!(matches!(error, StartError::Unmarked(_)) && error.to_string().contains("--new"), "{error}");
        // Another disk there is another folder.
        let other = make_root(&point, None).unwrap();
        assert!(open_root(&point, None, Expected::Existing).is_ok_and(|root| root.id() == other));
        let error = open_root(&point, None, Expected::Root(id)).unwrap_err();
        assert!(matches!(error, StartError::Root(RootError::OtherRoot(_))), "{error}");
    }
}
