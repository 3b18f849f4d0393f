//! Paths as clients write them: absolute, `/` between names. Parsed once, here; inside, a path is its names.
//!
//! Invariants:
//! - Every name of a [`RemotePath`] is one that an entry may have: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`.
//! - There are at most [`DEPTH_MAX`] of them.

use metaraft::model::{DEPTH_MAX, NAME_BYTES_MAX};

/// Why a text is not a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    /// It does not begin with `/`.
    #[error("{path}: paths begin with /")]
    NotAbsolute { path: String },
    /// One of its names is no name.
    #[error("{path}: {why}")]
    BadName { path: String, why: &'static str },
    /// More names than a tree is deep.
    #[error("{path}: more than {DEPTH_MAX} names")]
    TooDeep { path: String },
    /// The root folder, where an entry with a name is needed.
    #[error("the root folder / cannot be used here")]
    Root,
}

/// A path in an account's tree: the names from its root folder on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RemotePath(Vec<String>);

/// For messages: control characters escaped, and not longer than a message should be.
pub(crate) fn shown(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 400;
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == SHOWN_CHARS_MAX {
            shown.push('…');
            break;
        }
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Why `name` cannot be an entry's name; `None` if it can.
pub(crate) fn name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("a name is empty")
    } else if name.len() > NAME_BYTES_MAX {
        Some("a name is longer than 255 bytes")
    } else if name == "." || name == ".." {
        Some("a name may not be . or ..")
    } else if name.contains('\0') {
        Some("a name may not contain NUL")
    } else if name.contains('/') {
        Some("a name may not contain /")
    } else {
        None
    }
}

impl RemotePath {
    /// The root folder.
    pub(crate) const ROOT: Self = Self(Vec::new());

    /// Takes a path from a request.
    pub(crate) fn parse(text: &str) -> Result<Self, PathError> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(PathError::NotAbsolute { path: shown(text) });
        };
        if rest.is_empty() {
            return Ok(Self::ROOT);
        }
        if rest.split('/').count() > DEPTH_MAX as usize {
            return Err(PathError::TooDeep { path: shown(text) });
        }
        match rest.split('/').find_map(name_fault) {
            Some(why) => Err(PathError::BadName { path: shown(text), why }),
            None => Ok(Self(rest.split('/').map(str::to_owned).collect())),
        }
    }

    /// Takes a path that must have a last name.
    pub(crate) fn parse_named(text: &str) -> Result<Self, PathError> {
        let path = Self::parse(text)?;
        if path.0.is_empty() { Err(PathError::Root) } else { Ok(path) }
    }

    /// From names that the cluster gave.
    pub(crate) fn from_names(names: Vec<String>) -> Self {
        Self(names)
    }

    /// The names, from the root folder on.
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }

    /// The last name; empty for the root folder.
    pub(crate) fn name(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }

    /// The folder that it is in; the root folder's is itself.
    pub(crate) fn parent(&self) -> Self {
        let mut names = self.0.clone();
        names.pop();
        Self(names)
    }

    /// The entry `name` in this folder.
    pub(crate) fn join(&self, name: &str) -> Self {
        let mut names = self.0.clone();
        names.push(name.to_owned());
        Self(names)
    }

    /// Whether it is `other` or below it.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// As requests write it.
    pub(crate) fn text(&self) -> String {
        format!("/{}", self.0.join("/"))
    }
}

impl std::fmt::Display for RemotePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&shown(&self.text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_parse_to_their_names() {
        let path = RemotePath::parse("/docs/a b.txt").unwrap();
        assert_eq!(path.names(), ["docs", "a b.txt"]);
        assert_eq!(path.text(), "/docs/a b.txt");
        assert_eq!(path.parent().text(), "/docs");
        assert_eq!(RemotePath::parse("/").unwrap(), RemotePath::ROOT);
        assert_eq!(RemotePath::ROOT.parent(), RemotePath::ROOT);
    }

    #[test]
    fn hostile_paths_are_refused() {
        let long = format!("/{}", "x".repeat(256));
        let deep = "/x".repeat(257);
        let dots = ["/..", "/a/../b", "/.", "/a/.", "/a/./b"];
        let others = ["", "a", "a/b", "//", "/a//b", "/a/", "/a\0b", long.as_str(), deep.as_str()];
        for bad in dots.into_iter().chain(others) {
            assert!(RemotePath::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(RemotePath::parse_named("/"), Err(PathError::Root));
    }

    #[test]
    fn odd_but_allowed_names_are_taken() {
        for good in ["/...", "/ ", "/-rf", "/a\nb", "/日本", "/..a", &format!("/{}", "x".repeat(255))] {
            assert_eq!(RemotePath::parse(good).unwrap().text(), *good);
        }
    }

    #[test]
    fn messages_show_no_control_characters() {
        let error = RemotePath::parse("a\u{1b}[2J").unwrap_err().to_string();
        assert!(!error.contains('\u{1b}'), "{error}");
    }

    #[test]
    fn within_goes_by_whole_names() {
        let docs = RemotePath::parse("/docs").unwrap();
        assert!(RemotePath::parse("/docs/a").unwrap().is_within(&docs));
        assert!(docs.is_within(&docs));
        assert!(!RemotePath::parse("/docs2").unwrap().is_within(&docs));
    }
}
