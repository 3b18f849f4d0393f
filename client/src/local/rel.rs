//! Where something is below the root, as names that lead nowhere else.
//!
//! Invariants:
//! - No name is empty, `.` or `..`, holds a `/` or NUL, or is above [`NAME_BYTES_MAX`].
//! - The first name is never [`STATE_FOLDER`]: what is in there is reached by this crate's own functions alone.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What the root's own folder is called: marker, temporary files, trash, and the state unless it is elsewhere.
pub const STATE_FOLDER: &str = ".keepstone";
/// Most bytes of one name: what Linux's file systems hold.
pub const NAME_BYTES_MAX: usize = 255;
/// Most bytes of a path below the root that one system call can take, with room for the trash's own folders.
pub const PATH_BYTES_MAX: usize = 4_000;

/// Why a name cannot be one on this disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelError {
    /// It means something else, or cannot be written.
    #[error("{name:?} cannot be a name on this device")]
    Name {
        /// The name.
        name: String,
    },
    /// Too long for a file system.
    #[error("the name {name:?} has {bytes} bytes, {max} are possible", max = NAME_BYTES_MAX)]
    NameTooLong {
        /// The name.
        name: String,
        /// Its length.
        bytes: usize,
    },
    /// The whole path is.
    #[error("the path has {bytes} bytes, {max} are possible", max = PATH_BYTES_MAX)]
    PathTooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is the place of the root's own state.
    #[error("{STATE_FOLDER} at the top is where keepstone keeps its state")]
    Reserved,
}

/// A path below the root, checked. The root itself is the empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rel {
    /// Names with `/` between them.
    path: String,
}

/// Whether `name` can be that of something on disk.
///
/// # Errors
/// If it cannot.
pub fn check_name(name: &str) -> Result<(), RelError> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(RelError::Name { name: name.to_owned() });
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(RelError::NameTooLong { name: name.to_owned(), bytes: name.len() });
    }
    Ok(())
}

impl Rel {
    /// The root itself.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// What is called `name` in this folder.
    ///
    /// # Errors
    /// If that is no name, or the path gets too long.
    pub fn join(&self, name: &str) -> Result<Self, RelError> {
        check_name(name)?;
        if self.is_root() {
            if name == STATE_FOLDER {
                return Err(RelError::Reserved);
            }
            return Ok(Self { path: name.to_owned() });
        }
        let bytes = self.path.len() + 1 + name.len();
        if bytes > PATH_BYTES_MAX {
            return Err(RelError::PathTooLong { bytes });
        }
        let mut path = String::with_capacity(bytes);
        path.push_str(&self.path);
        path.push('/');
        path.push_str(name);
        Ok(Self { path })
    }

    /// From the names on the way, topmost first.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, RelError> {
        names.into_iter().try_fold(Self::root(), |folder, name| folder.join(name))
    }

    /// From names with `/` between them.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn parse(path: &str) -> Result<Self, RelError> {
        if path.is_empty() { Ok(Self::root()) } else { Self::from_names(path.split('/')) }
    }

    /// Whether it is the root itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.path.is_empty()
    }

    /// The names on the way, topmost first.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.path.split('/').filter(|name| !name.is_empty())
    }

    /// Its folder and its name in there; `None` for the root.
    #[must_use]
    pub fn split(&self) -> Option<(Self, &str)> {
        if self.is_root() {
            return None;
        }
        Some(match self.path.rsplit_once('/') {
            Some((folder, name)) => (Self { path: folder.to_owned() }, name),
            None => (Self::root(), &self.path),
        })
    }

    /// The folder it is in; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        Some(self.split()?.0)
    }

    /// What it is called; empty for the root.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it is `folder` or below it.
    #[must_use]
    pub fn is_within(&self, folder: &Self) -> bool {
        folder.is_root()
            || self
                .path
                .strip_prefix(&folder.path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Names with `/` between them; empty for the root.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// As a system call takes it: the root is `.`.
    pub(crate) fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(if self.is_root() { b"." } else { self.path.as_bytes() })
    }
}

impl std::fmt::Display for Rel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_root() { "." } else { &self.path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "a/b", "/", "a\0", STATE_FOLDER] {
            assert!(Rel::root().join(name).is_err(), "{name:?}");
        }
        assert!(Rel::root().join(&"n".repeat(255)).is_ok());
        assert!(matches!(Rel::root().join(&"n".repeat(256)), Err(RelError::NameTooLong { bytes: 256, .. })));
        assert!(Rel::parse("a//b").is_err());
        assert!(Rel::parse("/a").is_err());
        let deep = vec!["n".repeat(255); 16];
        assert!(matches!(
            Rel::from_names(deep.iter().map(String::as_str)),
            Err(RelError::PathTooLong { .. })
        ));
    }

    #[test]
    fn the_states_name_is_free_below_the_top() {
        let rel = Rel::parse("a/.keepstone").unwrap();
        assert_eq!(rel.name(), STATE_FOLDER);
    }

    #[test]
    fn a_path_comes_apart_as_it_was_put_together() {
        let rel = Rel::from_names(["a", "b", "c"]).unwrap();
        assert_eq!(rel.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        let (folder, name) = rel.split().unwrap();
        assert_eq!((folder.as_str(), name), ("a/b", "c"));
        assert_eq!(Rel::parse("a").unwrap().parent(), Some(Rel::root()));
        assert_eq!(Rel::root().parent(), None);
        assert!(
            rel.is_within(&Rel::parse("a/b").unwrap()) && rel.is_within(&rel) && rel.is_within(&Rel::root())
        );
        assert!(!Rel::parse("ab").unwrap().is_within(&Rel::parse("a").unwrap()));
    }
}
