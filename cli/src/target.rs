//! Where things go, by the rules of `cp -r`: an existing folder, several sources or a trailing `/` mean "into".
//! Pure.

use client::path::{PathError, RemotePath};

/// What is at a target now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Nothing,
    Folder,
    Other,
}

/// Whether sources go into a target, or one of them becomes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    Into,
    Exact,
}

/// Why a target does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("no such folder; make it first, or leave out the trailing `/`")]
    NoFolder,
    #[error("no such folder, and several things can only go into one; make it first")]
    NoFolderForSeveral,
    #[error("it is not a folder")]
    NotAFolder,
}

/// Decides how `sources` sources go to a target that has a trailing slash or not, and where `at` is now.
pub(crate) fn placement(sources: usize, trailing_slash: bool, at: At) -> Result<Placement, TargetError> {
    match at {
        At::Folder => Ok(Placement::Into),
        At::Nothing if sources > 1 => Err(TargetError::NoFolderForSeveral),
        At::Nothing if trailing_slash => Err(TargetError::NoFolder),
        At::Other if sources > 1 || trailing_slash => Err(TargetError::NotAFolder),
        At::Nothing | At::Other => Ok(Placement::Exact),
    }
}

/// A remote target as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteTarget {
    pub(crate) path: RemotePath,
    pub(crate) trailing_slash: bool,
}

impl RemoteTarget {
    pub(crate) fn parse(text: &str) -> Result<Self, PathError> {
        let path = RemotePath::parse(text)?;
        Ok(Self { trailing_slash: text.len() > 1 && text.ends_with('/'), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_follow_cp() {
        use Placement::{Exact, Into};
        let cases = [
            ((1, false, At::Nothing), Ok(Exact)),
            ((1, false, At::Other), Ok(Exact)),
            ((1, false, At::Folder), Ok(Into)),
            ((1, true, At::Folder), Ok(Into)),
            ((1, true, At::Nothing), Err(TargetError::NoFolder)),
            ((1, true, At::Other), Err(TargetError::NotAFolder)),
            ((2, false, At::Folder), Ok(Into)),
            ((2, false, At::Nothing), Err(TargetError::NoFolderForSeveral)),
            ((2, false, At::Other), Err(TargetError::NotAFolder)),
        ];
        for ((sources, slash, at), expected) in cases {
            assert_eq!(placement(sources, slash, at), expected, "{sources} {slash} {at:?}");
        }
    }

    #[test]
    fn the_root_is_a_folder_without_a_trailing_slash() {
        assert!(!RemoteTarget::parse("/").unwrap().trailing_slash);
        assert!(RemoteTarget::parse("/a/").unwrap().trailing_slash);
        assert!(RemoteTarget::parse("a/").is_err());
    }
}
