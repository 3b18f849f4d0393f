//! What is not synchronised: by `.keepstoneignore` files at any level, written as gitignore files are, and by default
//! the temporary files that editors, browsers and desktops leave.
//!
//! The deepest file that says anything about a path decides, within a file the last line; the defaults come last, so
//! `!*.part` brings those back. What is in an ignored folder is ignored. The rules are asked only about what is not
//! synchronised yet.

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::fs::{Mode, OFlags};

use super::disk::DiskError;
use super::rel::Rel;
use super::root::Root;

/// What the files with rules are called. They are synchronised themselves.
pub const IGNORE_FILE: &str = ".keepstoneignore";
/// Bytes of one of them that are read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Temporary files, known by their names.
const DEFAULTS: &[&str] = &[
    // Editors: backups, locks and swap files of Emacs, Vim, gedit, Kate, nano.
    "*~",
    ".#*",
    r"\#*#",
    "*.swp",
    "*.swo",
    "*.swx",
    ".*.kate-swp",
    ".goutputstream-*",
    "4913",
    // Office programs.
    "~$*",
    ".~lock.*#",
    "~WRL*.tmp",
    "~WRD*.tmp",
    "lu[0-9]*.tmp",
    "*.laccdb",
    "*.ldb.lock",
    // Desktops.
    ".DS_Store",
    "._*",
    ".AppleDouble/",
    ".Spotlight-V100/",
    ".Trashes/",
    ".fseventsd/",
    "Icon\r",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$RECYCLE.BIN/",
    "System Volume Information/",
    ".directory",
    ".Trash-*/",
    ".fuse_hidden*",
    ".nfs*",
    // Downloads that are not finished.
    "*.part",
    "*.crdownload",
    "*.partial",
    "*.opdownload",
    "*.download/",
    // Ours: files that `keepstone get` is writing.
    ".*.keepstone-[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]",
];

/// Rules that hold for a whole root.
#[derive(Clone, Debug)]
pub struct IgnoreRules {
    defaults: Arc<Gitignore>,
}

impl Default for IgnoreRules {
    fn default() -> Self {
        Self { defaults: Arc::new(compile(DEFAULTS.iter().copied()).unwrap_or_else(Gitignore::empty)) }
    }
}

/// `None` if there is no rule in it. A line that is no pattern is left out.
fn compile<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Gitignore> {
    let mut builder = GitignoreBuilder::new("");
    for line in lines {
        if let Err(error) = builder.add_line(None, line) {
            tracing::warn!(%error, line, "not a rule in {IGNORE_FILE}");
        }
    }
    builder.build().ok().filter(|rules| !rules.is_empty())
}

/// The rules that hold in one folder: its own, and those of the folders above it.
#[derive(Clone, Debug)]
pub struct Level(Arc<LevelInner>);

#[derive(Debug)]
struct LevelInner {
    above: Option<Level>,
    name: String,
    own: Option<Gitignore>,
    defaults: Arc<Gitignore>,
}

impl IgnoreRules {
    /// The rules in the folder at `rel`, read from it and all above it. Blocks.
    ///
    /// # Errors
    /// If one of the folders cannot be opened.
    pub fn level_of(&self, root: &Root, rel: &Rel) -> Result<Level, DiskError> {
        let mut at = Rel::root();
        let open = |at: &Rel| root.open_folder(at).map_err(|errno| DiskError::of(at, errno));
        let mut level = self.top(std::os::fd::AsFd::as_fd(&open(&at)?));
        for name in rel.names() {
            at = at.join(name).map_err(|_no_name| DiskError::Changed(rel.clone()))?;
            level = level.enter(std::os::fd::AsFd::as_fd(&open(&at)?), name);
        }
        Ok(level)
    }

    /// The rules in the root, which is open at `folder`. Blocks.
    pub(super) fn top(&self, folder: BorrowedFd<'_>) -> Level {
        Level(Arc::new(LevelInner {
            above: None,
            name: String::new(),
            own: read(folder),
            defaults: self.defaults.clone(),
        }))
    }
}

/// Reads the rules of a folder. A file that cannot be read has none: more is synchronised then, not less.
fn read(folder: BorrowedFd<'_>) -> Option<Gitignore> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(folder, IGNORE_FILE, flags, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    std::fs::File::from(fd).take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    compile(String::from_utf8_lossy(&bytes).lines())
}

impl Level {
    /// The rules in the folder `name` in this one, which is open at `folder`. Blocks.
    pub(super) fn enter(&self, folder: BorrowedFd<'_>, name: &str) -> Self {
        self.below(name, read(folder))
    }

    /// The rules in the folder `name`, which is known to have no file with rules.
    pub(super) fn enter_without(&self, name: &str) -> Self {
        self.below(name, None)
    }

    fn below(&self, name: &str, own: Option<Gitignore>) -> Self {
        let defaults = self.0.defaults.clone();
        Self(Arc::new(LevelInner { above: Some(self.clone()), name: name.to_owned(), own, defaults }))
    }

    /// Whether the thing called `name` in this folder is not to be synchronised.
    #[must_use]
    pub fn is_ignored(&self, name: &str, is_folder: bool) -> bool {
        let mut path = name.to_owned();
        let mut at = Some(self);
        while let Some(level) = at {
            let matched = level.0.own.as_ref().map_or(Match::None, |own| own.matched(&path, is_folder));
            match matched {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => {}
            }
            at = level.0.above.as_ref();
            if at.is_some() && self.has_rules_above(level) {
                path = format!("{}/{path}", level.0.name);
            }
        }
        self.0.defaults.matched(name, is_folder).is_ignore()
    }

    /// Whether any folder above `level` has rules, so that the path must be known there.
    fn has_rules_above(&self, level: &Self) -> bool {
        let mut at = level.0.above.as_ref();
        while let Some(above) = at {
            if above.0.own.is_some() {
                return true;
            }
            at = above.0.above.as_ref();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for (path, rules) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, rules).unwrap();
        }
        let root = Root::create(dir.path(), None, &[]).unwrap();
        (dir, root)
    }

    #[test]
    fn temporary_files_are_ignored_by_default() {
        let (_dir, root) = root(&[]);
        let level = IgnoreRules::default().level_of(&root, &Rel::root()).unwrap();
        for name in [
            "letter.txt~",
            ".#letter",
            "#letter#",
            ".letter.swp",
            "~$letter.docx",
            ".~lock.letter.odt#",
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            "film.mkv.part",
            "x.crdownload",
            ".f.keepstone-0123abcd",
            "._letter",
            ".nfs000123",
            ".goutputstream-ABC123",
        ] {
            assert!(level.is_ignored(name, false), "{name}");
        }
        for name in [
            "letter.txt",
            "part",
            "a.parts",
            ".keepstoneignore",
            ".git",
            "tmp",
            "x.keepstone-0123abcd",
            "4914",
        ] {
            assert!(!level.is_ignored(name, false), "{name}");
        }
        assert!(level.is_ignored(".Trash-1000", true) && !level.is_ignored(".Trash-1000", false));
    }

    #[test]
    fn the_deepest_rule_decides_and_the_last_in_a_file() {
        let (_dir, root) = root(&[
            (IGNORE_FILE, "*.log\n!keep.log\n/build/\nsub/deep/only-there\n# comment\n!*.part\n"),
            ("sub/.keepstoneignore", "!*.log\nsecret\n"),
            ("sub/deep/f", ""),
        ]);
        let rules = IgnoreRules::default();
        let top = rules.level_of(&root, &Rel::root()).unwrap();
        let sub = rules.level_of(&root, &Rel::parse("sub").unwrap()).unwrap();
        let deep = rules.level_of(&root, &Rel::parse("sub/deep").unwrap()).unwrap();
        assert!(top.is_ignored("a.log", false) && !top.is_ignored("keep.log", false));
        assert!(top.is_ignored("build", true) && !top.is_ignored("build", false));
        assert!(!sub.is_ignored("build", true), "it is anchored at the top");
        assert!(!sub.is_ignored("a.log", false) && !deep.is_ignored("a.log", false));
        assert!(deep.is_ignored("secret", false) && !top.is_ignored("secret", false));
        assert!(deep.is_ignored("only-there", false) && !sub.is_ignored("only-there", false));
        assert!(!deep.is_ignored("film.part", false), "a rule brings back what is ignored by default");
    }
}
