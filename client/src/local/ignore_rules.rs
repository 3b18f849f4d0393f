//! What is not synchronised: by `.keepstoneignore` files at any level, written as gitignore files are, and what is
//! certain to be no one's file (`built_in`).
//!
//! The deepest file that says anything about a path decides, within a file the last line; what is built in comes last,
//! so `!.DS_Store` brings that back. What is in an ignored folder is ignored. The rules are asked only about what is not
//! synchronised yet: what is in sync stays so, whatever it is called and whatever the rules become.
//!
//! Rules that cannot be read whole and understood are not taken for none: nothing new of their folder is sent.

mod built_in;
mod file;

use std::cell::OnceCell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ignore::Match;
use ignore::gitignore::Glob;

use self::file::Own;
use super::disk::{DiskError, ObjectKind};
use super::list::Entry;
use super::rel::Rel;
use super::root::Root;

/// What the files with rules are called. They are synchronised themselves.
pub const IGNORE_FILE: &str = ".keepstoneignore";
/// Before a name that [`Beside`] is asked for: any one or two letters may be before the rest. No name has it.
const ANY_TWO: char = '\0';

/// Why something is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It is this, for certain.
    BuiltIn(&'static str),
    /// A line says so.
    Line {
        /// The file, below the root.
        file: String,
        /// From 1.
        line: String,
        /// As it is written.
        text: String,
    },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(what) => write!(f, "built in: {what}"),
            Self::Line { file, line, text } => write!(f, "{file}:{line}: {text}"),
        }
    }
}

/// The names in one folder, for what is known by lying beside its file.
pub(super) struct Beside<'a> {
    entries: &'a [Entry],
    names: OnceCell<HashSet<&'a OsStr>>,
    /// The names without their first one or two letters.
    ends: OnceCell<HashSet<&'a str>>,
}

impl<'a> Beside<'a> {
    pub(super) fn new(entries: &'a [Entry]) -> Self {
        Self { entries, names: OnceCell::new(), ends: OnceCell::new() }
    }

    fn has(&self, name: &str) -> bool {
        if let Some(end) = name.strip_prefix(ANY_TWO) {
            return self.ends.get_or_init(|| self.entries.iter().flat_map(ends).collect()).contains(end);
        }
        let names =
            self.names.get_or_init(|| self.entries.iter().map(|entry| entry.name.as_os_str()).collect());
        names.contains(OsStr::new(name))
    }
}

/// What is left of a name without its first letter, and without its second. A lock is not the file of another lock.
fn ends(entry: &Entry) -> impl Iterator<Item = &str> {
    let name = entry.name.to_str().filter(|name| !name.starts_with("~$")).unwrap_or_default();
    let is_file = entry.object.kind == ObjectKind::File;
    let after = move |letters: usize| {
        let at = name.char_indices().nth(letters).map(|(at, _letter)| at).filter(|_at| is_file);
        at.map(|at| &name[at..])
    };
    after(1).into_iter().chain(after(2))
}

/// Rules that hold for a whole root.
#[derive(Clone, Debug, Default)]
pub struct IgnoreRules;

/// The rules that hold in one folder: its own, and those of the folders above it.
#[derive(Clone, Debug)]
pub struct Level(Arc<LevelInner>);

#[derive(Debug)]
struct LevelInner {
    above: Option<Level>,
    name: String,
    own: Own,
    /// The folder is ignored itself, and is in sync all the same: nothing new in it is taken.
    within: Option<Rule>,
}

impl IgnoreRules {
    /// The rules in the folder at `rel`, read from it and all above it. Blocks.
    ///
    /// # Errors
    /// If one of the folders cannot be opened.
    pub fn level_of(&self, root: &Root, rel: &Rel) -> Result<Level, DiskError> {
        let mut at = Rel::root();
        let open = |at: &Rel| root.open_folder(at).map_err(|errno| DiskError::of(at, errno));
        let mut level = self.top(open(&at)?.as_fd());
        for name in rel.names() {
            at = at.join(name).map_err(|_no_name| DiskError::Changed(rel.clone()))?;
            level = level.enter(open(&at)?.as_fd(), name);
        }
        Ok(level)
    }

    /// The rules in the root, which is open at `folder`. Blocks.
    pub(super) fn top(&self, folder: BorrowedFd<'_>) -> Level {
        Level(Arc::new(LevelInner {
            above: None,
            name: String::new(),
            own: file::read(folder),
            within: None,
        }))
    }
}

impl Level {
    /// The rules in the folder `name` in this one, which is open at `folder`. Blocks.
    pub(super) fn enter(&self, folder: BorrowedFd<'_>, name: &str) -> Self {
        self.below(name, file::read(folder))
    }

    /// The rules in the folder `name`, which is known to have no file with rules.
    pub(super) fn enter_without(&self, name: &str) -> Self {
        self.below(name, Own::None)
    }

    fn below(&self, name: &str, own: Own) -> Self {
        let within = self.rule(name, ObjectKind::Folder, &|_name| false);
        Self(Arc::new(LevelInner { above: Some(self.clone()), name: name.to_owned(), own, within }))
    }

    /// Whether the folder is ignored itself, and in sync all the same.
    pub(super) fn is_within_ignored(&self) -> bool {
        self.0.within.is_some()
    }

    /// Why the rules of this very folder are not known, if they are not.
    pub(super) fn unknown_here(&self) -> Option<&str> {
        match &self.0.own {
            Own::Unknown(why) => Some(why),
            Own::None | Own::Rules(_) => None,
        }
    }

    /// Whether the rules of this folder, or of one above it, are not known.
    pub(super) fn is_unknown(&self) -> bool {
        let mut at = Some(self);
        while let Some(level) = at {
            if level.unknown_here().is_some() {
                return true;
            }
            at = level.0.above.as_ref();
        }
        false
    }

    /// Why the thing called `name` in this folder is not to be synchronised; `None`: it is.
    pub(super) fn judge(&self, name: &str, kind: ObjectKind, beside: &Beside<'_>) -> Option<Rule> {
        self.rule(name, kind, &|name| beside.has(name))
    }

    /// As [`Self::judge`] says, of a thing in a folder that was not listed; `entries` lists it, if that is needed: for
    /// names as editors and office programs give them.
    pub(super) fn judge_one(
        &self,
        name: &str,
        kind: ObjectKind,
        entries: impl Fn() -> Vec<Entry>,
    ) -> Option<Rule> {
        let listed = OnceCell::new();
        self.rule(name, kind, &|beside| Beside::new(listed.get_or_init(&entries)).has(beside))
    }

    fn rule(&self, name: &str, kind: ObjectKind, beside: &dyn Fn(&str) -> bool) -> Option<Rule> {
        if self.0.within.is_some() {
            return self.0.within.clone();
        }
        let is_folder = kind == ObjectKind::Folder;
        let mut path = name.to_owned();
        let mut at = Some(self);
        while let Some(level) = at {
            let matched = match &level.0.own {
                Own::Rules(own) => own.matched(&path, is_folder),
                Own::None | Own::Unknown(_) => Match::None,
            };
            match matched {
                Match::Ignore(glob) => return Some(level.line(glob)),
                Match::Whitelist(_) => return None,
                Match::None => {}
            }
            at = level.0.above.as_ref();
            if at.is_some() && self.has_rules_above(level) {
                path = format!("{}/{path}", level.0.name);
            }
        }
        built_in::what(name, kind, beside).map(Rule::BuiltIn)
    }

    /// A line of this folder's own rules, as it can be shown.
    fn line(&self, glob: &Glob) -> Rule {
        let mut file = IGNORE_FILE.to_owned();
        let mut at = Some(self);
        while let Some(level) = at {
            if !level.0.name.is_empty() {
                file = format!("{}/{file}", level.0.name);
            }
            at = level.0.above.as_ref();
        }
        let line = glob.from().map(|number| number.display().to_string()).unwrap_or_default();
        Rule::Line { file, line, text: glob.original().to_owned() }
    }

    /// Whether this folder, or one above it, has a file with rules.
    pub(crate) fn has_rules(&self) -> bool {
        let mut at = Some(self);
        while let Some(level) = at {
            if !matches!(level.0.own, Own::None) {
                return true;
            }
            at = level.0.above.as_ref();
        }
        false
    }

    /// Whether any folder above `level` has rules, so that the path must be known there.
    fn has_rules_above(&self, level: &Self) -> bool {
        let mut at = level.0.above.as_ref();
        while let Some(above) = at {
            if matches!(above.0.own, Own::Rules(_)) {
                return true;
            }
            at = above.0.above.as_ref();
        }
        false
    }
}

#[cfg(test)]
mod tests;
