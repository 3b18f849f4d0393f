//! Remote paths, and the names that a server may give to local files.
//!
//! Invariants:
//! - A [`RemotePath`] begins with `/`, and each of its names passes [`check_name`].
//! - A name that passes [`check_name`] names a direct child of the folder it is used in, never anything else.

/// Most bytes in a name.
pub const NAME_BYTES_MAX: usize = 255;

/// Why a text is not a name. Reads on after the name itself: "`NAME` is not a name: {error}".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing.
    #[error("it is empty")]
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("it is {bytes} bytes long, and names have at most {NAME_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// `.` or `..`.
    #[error("`.` and `..` are not names")]
    Dots,
    /// A `/` or NUL within.
    #[error("names have no `/` and no NUL")]
    BadCharacter,
}

/// Checks a name, from whatever source.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_name(name: &str) -> Result<(), NameError> {
    match name {
        "" => Err(NameError::Empty),
        "." | ".." => Err(NameError::Dots),
        _ if name.len() > NAME_BYTES_MAX => Err(NameError::TooLong { bytes: name.len() }),
        _ if name.contains(['/', '\0']) => Err(NameError::BadCharacter),
        _ => Ok(()),
    }
}

/// Why a text is not a remote path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not absolute.
    #[error("{path:?} is not a remote path: remote paths begin with `/`")]
    Relative {
        /// As given.
        path: String,
    },
    /// One of its names is none.
    #[error("{path:?} is not a remote path: {source}")]
    Name {
        /// As given, shortened.
        path: String,
        /// What is wrong with the name.
        source: NameError,
    },
}

/// An absolute path in an account's tree: `/` alone, or names each after a `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemotePath(String);

impl RemotePath {
    /// The account's top folder.
    #[must_use]
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// Parses a path; repeated and trailing slashes are dropped.
    ///
    /// # Errors
    /// If it is not absolute, or a name in it is none.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let shortened = || text.chars().take(80).collect();
        if !text.starts_with('/') {
            return Err(PathError::Relative { path: shortened() });
        }
        let mut path = String::with_capacity(text.len());
        for name in text.split('/').filter(|name| !name.is_empty()) {
            check_name(name).map_err(|source| PathError::Name { path: shortened(), source })?;
            path.push('/');
            path.push_str(name);
        }
        Ok(if path.is_empty() { Self::root() } else { Self(path) })
    }

    /// The entry `name` in this folder.
    ///
    /// # Errors
    /// If `name` is no name.
    pub fn join(&self, name: &str) -> Result<Self, PathError> {
        check_name(name)
            .map_err(|source| PathError::Name { path: name.chars().take(80).collect(), source })?;
        let folder = if self.is_root() { "" } else { self.as_str() };
        Ok(Self(format!("{folder}/{name}")))
    }

    /// The path as the wire has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the top folder.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// The last name; `None` for the top folder.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        if self.is_root() { None } else { self.0.rsplit('/').next() }
    }

    /// The folder it is in; `None` for the top folder.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        match self.0.rfind('/') {
            Some(0) | None => Some(Self::root()),
            Some(at) => Some(Self(self.0[..at].to_owned())),
        }
    }
}

impl std::fmt::Display for RemotePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for RemotePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_needless_slashes_only() {
        let parse = |text| RemotePath::parse(text).map(|path| path.to_string());
        assert_eq!(parse("/").as_deref(), Ok("/"));
        assert_eq!(parse("//a//b/").as_deref(), Ok("/a/b"));
        assert_eq!(parse("/a b/\u{e4}").as_deref(), Ok("/a b/\u{e4}"));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\0b", "/", &"x".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["...", "..a", "a\\b", "con", &"x".repeat(255), "\u{1f980}", " "] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
        assert!(matches!(RemotePath::parse("a/b"), Err(PathError::Relative { .. })));
        assert!(matches!(RemotePath::parse("/a/../b"), Err(PathError::Name { .. })));
    }

    #[test]
    fn a_child_has_its_folder_as_parent() {
        let folder = RemotePath::parse("/a").unwrap();
        let child = folder.join("b").unwrap();
        assert_eq!(child.as_str(), "/a/b");
        assert_eq!(child.parent(), Some(folder));
        assert_eq!(child.name(), Some("b"));
        assert_eq!(RemotePath::root().join("a").unwrap().parent(), Some(RemotePath::root()));
        assert_eq!(RemotePath::root().parent(), None);
        assert!(RemotePath::root().join("..").is_err());
    }
}
