//! Names: those that conflicting copies get, those that something goes by on the way, and which of them a device's file
//! system can hold beside one another. Pure.

use std::borrow::Cow;

use unicode_normalization::{UnicodeNormalization, is_nfc};

use super::model::{NodeId, ROOT};

/// A name's longest length.
pub const NAME_BYTES_MAX: usize = 255;
/// The folder of a root that is the client's own.
pub const OWN_FOLDER: &str = ".keepstone";
/// How a name begins that something has only until its right one is free.
const SWAP_PREFIX: &str = ".keepstone-swap-";
/// Longer extensions are taken for a part of the name.
const EXTENSION_BYTES_MAX: usize = 32;
/// Of the name whose conflicted copy it is.
const WHOSE_BYTES_MAX: usize = 80;

/// What a device's file system makes of names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameRules {
    /// Two names that differ in case alone are one.
    pub case_blind: bool,
    /// Two names that differ in Unicode normalisation alone are one.
    pub normalising: bool,
    /// Characters and names that Windows refuses cannot be.
    pub windows: bool,
}

/// Why a node cannot be on this device under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameProblem {
    /// It differs in case alone from another's.
    Case,
    /// It differs in normalisation alone from another's.
    Unicode,
    /// It is reserved, or has characters that cannot be.
    Reserved,
}

impl NameProblem {
    fn words(self) -> &'static str {
        match self {
            Self::Case => "case conflict",
            Self::Unicode => "unicode conflict",
            Self::Reserved => "reserved name",
        }
    }
}

impl NameRules {
    /// The same for all names that are one to the file system.
    #[must_use]
    pub fn fold<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let composed = if self.normalising && !is_nfc(name) {
            Cow::Owned(name.nfc().collect())
        } else {
            Cow::Borrowed(name)
        };
        if self.case_blind { Cow::Owned(composed.to_lowercase()) } else { composed }
    }

    /// Whether every name is only itself.
    #[must_use]
    pub fn exact(&self) -> bool {
        !self.case_blind && !self.normalising
    }

    /// Which problem two names have that are one to the file system.
    #[must_use]
    pub fn clash(&self, one: &str, other: &str) -> NameProblem {
        let same = one.nfc().eq(other.nfc());
        if same { NameProblem::Unicode } else { NameProblem::Case }
    }

    /// Whether a name cannot be at all.
    #[must_use]
    pub fn refused(&self, parent: NodeId, name: &str) -> bool {
        let own = parent == ROOT && self.fold(name) == self.fold(OWN_FOLDER);
        own || (self.windows && windows_refuses(name))
    }
}

fn windows_refuses(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_ascii_uppercase();
    let numbered = |prefix: &str| {
        stem.strip_prefix(prefix)
            .is_some_and(|rest| rest.len() == 1 && rest != "0" && rest.parse::<u8>().is_ok())
    };
    name.ends_with(['.', ' '])
        || name.chars().any(|c| c < ' ' || "<>:\"\\|?*".contains(c))
        || ["CON", "PRN", "AUX", "NUL"].contains(&stem.as_str())
        || numbered("COM")
        || numbered("LPT")
}

/// The `number`th name (from 1) for a copy that came out of a conflict.
#[must_use]
pub fn conflicted(name: &str, is_folder: bool, whose: &str, date: &str, number: u32) -> String {
    let whose: String = whose.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect();
    let whose = shortened(&whose, WHOSE_BYTES_MAX);
    with_remark(name, is_folder, &format!("{whose}'s conflicted copy {date}"), number)
}

/// The `number`th name (from 1) for something made where an excluded folder is.
#[must_use]
pub fn selective(name: &str, is_folder: bool, number: u32) -> String {
    with_remark(name, is_folder, "selective sync conflict", number)
}

/// The `number`th name (from 1) for something whose name a device cannot hold.
#[must_use]
pub fn renamed(name: &str, is_folder: bool, problem: NameProblem, number: u32) -> String {
    let clean: String = match problem {
        NameProblem::Reserved => {
            name.chars().map(|c| if c < ' ' || "<>:\"\\|?*".contains(c) { '_' } else { c }).collect()
        }
        NameProblem::Case | NameProblem::Unicode => name.to_owned(),
    };
    let clean = if problem == NameProblem::Reserved { clean.trim_end_matches(['.', ' ']) } else { &clean };
    let named = with_remark(if clean.is_empty() { "_" } else { clean }, is_folder, problem.words(), number);
    // A device's name such as `CON` is one with any extension.
    if windows_refuses(&named) && problem == NameProblem::Reserved { format!("_{named}") } else { named }
}

fn with_remark(name: &str, is_folder: bool, remark: &str, number: u32) -> String {
    let (stem, extension) = if is_folder { (name, "") } else { parts(name) };
    let number = if number > 1 { format!(" {number}") } else { String::new() };
    let tail = format!(" ({remark}{number}){extension}");
    let stem = shortened(stem, NAME_BYTES_MAX.saturating_sub(tail.len()));
    format!("{stem}{tail}")
}

/// A name and its extension, with the dot. `.tar.gz` and its like are one.
fn parts(name: &str) -> (&str, &str) {
    let Some(dot) = name.rfind('.').filter(|dot| *dot > 0) else { return (name, "") };
    let dot = match name.get(..dot).and_then(|stem| stem.strip_suffix(".tar")) {
        Some(stem) if !stem.is_empty() => stem.len(),
        _ => dot,
    };
    let extension = name.get(dot..).unwrap_or_default();
    if extension.len() > EXTENSION_BYTES_MAX || extension.len() < 2 || extension.contains(' ') {
        return (name, "");
    }
    (name.get(..dot).unwrap_or(name), extension)
}

fn shortened(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The name that a node goes by until `name` is free. It tells the right one, for whoever finds it left over.
#[must_use]
pub fn swap(node: NodeId, name: &str, number: u32) -> String {
    let plain = plain_of_swap(name).unwrap_or(name);
    let start = format!("{SWAP_PREFIX}{}.{number}-", node.0);
    let plain = shortened(plain, NAME_BYTES_MAX.saturating_sub(start.len()));
    format!("{start}{plain}")
}

/// The right name of something that goes by a name of [`swap`].
#[must_use]
pub fn plain_of_swap(name: &str) -> Option<&str> {
    let (numbers, plain) = name.strip_prefix(SWAP_PREFIX)?.split_once('-')?;
    let is_numbers = !numbers.is_empty() && numbers.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    (is_numbers && !plain.is_empty() && plain != "." && plain != "..").then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(name: &str, number: u32) -> String {
        conflicted(name, false, "Ann", "2026-01-20", number)
    }

    #[test]
    fn a_conflicted_copy_keeps_its_extension() {
        assert_eq!(copy("a.txt", 1), "a (Ann's conflicted copy 2026-01-20).txt");
        assert_eq!(copy("a.tar.gz", 2), "a (Ann's conflicted copy 2026-01-20 2).tar.gz");
        assert_eq!(copy(".profile", 1), ".profile (Ann's conflicted copy 2026-01-20)");
        assert_eq!(copy(".a.b", 1), ".a (Ann's conflicted copy 2026-01-20).b");
        assert_eq!(copy("Dr. No", 1), "Dr. No (Ann's conflicted copy 2026-01-20)");
        assert_eq!(copy("a.", 1), "a. (Ann's conflicted copy 2026-01-20)");
        assert_eq!(copy(".tar.gz", 1), ".tar (Ann's conflicted copy 2026-01-20).gz");
        assert_eq!(
            conflicted("v1.5", true, "a/b", "2026-01-20", 1),
            "v1.5 (a_b's conflicted copy 2026-01-20)"
        );
    }

    #[test]
    fn a_long_name_is_shortened_between_characters() {
        let name = format!("{}.txt", "ä".repeat(125));
        let copy = copy(&name, 1);
        assert!(copy.len() <= NAME_BYTES_MAX && copy.len() >= NAME_BYTES_MAX - 1, "{}", copy.len());
        assert!(copy.ends_with("ä (Ann's conflicted copy 2026-01-20).txt"));
    }

    #[test]
    fn a_swap_name_tells_the_right_one_and_does_not_grow() {
        let once = swap(NodeId(7), "a-b", 1);
        assert_eq!(plain_of_swap(&once), Some("a-b"));
        assert_eq!(plain_of_swap(&swap(NodeId(8), &once, 3)), Some("a-b"));
        assert_eq!(plain_of_swap("a-b"), None);
        assert_eq!(plain_of_swap(".keepstone-swap-x-b"), None);
        assert_eq!(swap(NodeId(1), &"x".repeat(255), 1).len(), NAME_BYTES_MAX);
    }

    #[test]
    fn names_that_are_one_fold_alike() {
        let rules = NameRules { case_blind: true, normalising: true, windows: false };
        assert_eq!(rules.fold("\u{c9}A"), rules.fold("e\u{301}a"));
        assert_eq!(rules.clash("\u{e9}", "e\u{301}"), NameProblem::Unicode);
        assert_eq!(rules.clash("a", "A"), NameProblem::Case);
        assert_ne!(NameRules::default().fold("a"), NameRules::default().fold("A"));
    }

    #[test]
    fn reserved_names_are_known_and_made_harmless() {
        let rules = NameRules { windows: true, ..NameRules::default() };
        for name in ["con", "Aux.txt", "COM1", "a.", "a ", "a:b", "lpt9.x"] {
            assert!(rules.refused(NodeId(5), name), "{name}");
            let renamed = renamed(name, false, NameProblem::Reserved, 1);
            assert!(!rules.refused(NodeId(5), &renamed), "{renamed}");
        }
        for name in ["console", "COM0", "COM10", "a.b", "lpt"] {
            assert!(!rules.refused(NodeId(5), name), "{name}");
        }
        assert!(NameRules::default().refused(ROOT, ".keepstone"));
        assert!(!NameRules::default().refused(NodeId(5), ".keepstone"));
    }
}
