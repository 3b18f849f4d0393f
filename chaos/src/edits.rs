//! What people and programs do to a folder, at random: make, edit in place, append, save as editors do, move, rename by
//! case, swap, copy, link by hard links and symlinks, change modes, delete, replace one kind by another; with names of
//! all sorts, special files, and files that are ignored. The sync client works in the same folder meanwhile, so
//! whatever fails because something is gone or there already has simply not been done.
//!
//! What is destroyed is moved aside first, or open: so it is known to a byte what a user gave up, whatever the client
//! puts in its place at that moment.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngCore as _};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, mknodat, openat, renameat, renameat_with, unlinkat,
};
use rustix::io::Errno;

use crate::contents::Contents;
use crate::snapshot::{OWN_FOLDER, is_gone};

/// Entries in a folder, beyond which there is more deleted than made.
const ENTRIES_MAX: usize = 120;
/// Names that several devices choose alike.
const NAMES: [&str; 12] = [
    "report.txt",
    "Report.txt",
    "notes",
    "photo.jpg",
    "archive.tar.gz",
    ".hidden",
    "a",
    "b",
    "c c",
    "übung.md",
    "data.db",
    "x",
];
/// Names that a careless program trips over; some are one name in another normal form.
const ODD_NAMES: [&str; 16] = [
    "new\nline",
    "esc\u{1b}[31m\u{202e}",
    "na\u{ef}ve",
    "nai\u{308}ve",
    "trailing dot.",
    "dots...",
    " leading",
    "trailing ",
    "back\\slash",
    "CON",
    "con",
    "-rf",
    "%2f",
    "\u{1f468}\u{200d}\u{1f469}",
    ".name.part",
    "a (b's conflicted copy 2026-01-20).txt",
];
/// Names that are tried for what had one that is not UTF-8.
const USUAL_NAMES_TRIED_MAX: usize = 10_000;
/// Says what is ignored: the users leave it as it is.
const RULES: &str = ".keepstoneignore";
/// How names end that the tests have ignored.
pub const IGNORED_END: &str = ".ignored";

/// What users do besides the usual.
#[derive(Clone, Copy, Debug)]
pub struct Kinds {
    /// Second names for files.
    pub hard_links: bool,
    /// Pipes and sockets, and names that are not UTF-8.
    pub special_files: bool,
    /// Files whose names end in [`IGNORED_END`].
    pub ignored: bool,
    /// Names of all sorts.
    pub odd_names: bool,
}

impl Kinds {
    /// Everything; less what `KEEPSTONE_EDITS_WITHOUT` names, such as `hard_links,ignored`, to find who is to blame.
    #[must_use]
    pub fn chosen() -> Self {
        let without = std::env::var("KEEPSTONE_EDITS_WITHOUT").unwrap_or_default();
        let with = |kind: &str| !without.split(',').any(|word| word.trim() == kind);
        Self {
            hard_links: with("hard_links"),
            special_files: with("special_files"),
            ignored: with("ignored"),
            odd_names: with("odd_names"),
        }
    }
}

/// Whether what something was done to had been moved away.
fn is_moved(done: std::io::Result<()>) -> std::io::Result<bool> {
    match done {
        Ok(()) => Ok(false),
        Err(error) if is_gone(Some(&error)) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Renames what has a name that is not UTF-8; nothing is overwritten.
fn give_usual_name(path: &Path) -> std::io::Result<()> {
    for number in 0..USUAL_NAMES_TRIED_MAX {
        let usual = path.with_file_name(format!("had an odd name {number}"));
        match renameat_with(CWD, path, CWD, &usual, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            done => return Ok(done?),
        }
    }
    Err(std::io::Error::other(format!("no free name for {}", path.display())))
}

/// One device's user.
#[derive(Debug)]
pub struct Editor<'a> {
    root: PathBuf,
    contents: &'a Contents,
    random: SmallRng,
    name: String,
    count: u64,
    kinds: Kinds,
}

impl<'a> Editor<'a> {
    /// Works in `root`; what is saved is noted in `contents`.
    #[must_use]
    pub fn new(root: &Path, contents: &'a Contents, name: &str, random: SmallRng, kinds: Kinds) -> Self {
        Self { root: root.to_owned(), contents, random, name: name.to_owned(), count: 0, kinds }
    }

    /// Takes away what cannot be synchronised, and what would be in the way of that for good: special files. What has a
    /// name that is not UTF-8 gets another. The client may move things meanwhile: then it is looked again.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn tidy_up(&mut self) -> anyhow::Result<()> {
        while !self.tidied()? {}
        Ok(())
    }

    /// Goes through all once; tells whether nothing was moved away meanwhile, and with it perhaps what is looked for.
    fn tidied(&mut self) -> anyhow::Result<bool> {
        let walk = walkdir::WalkDir::new(&self.root).min_depth(1);
        let (mut odd, mut moved) = (Vec::new(), false);
        for entry in walk.into_iter().filter_entry(|entry| entry.file_name() != OWN_FOLDER) {
            let entry = match entry {
                Err(error) if is_gone(error.io_error()) => {
                    moved = true;
                    continue;
                }
                entry => entry?,
            };
            let kind = entry.file_type();
            let usual = kind.is_file() || kind.is_dir() || kind.is_symlink();
            let named = entry.file_name().to_str().is_some();
            if !usual {
                moved |= is_moved(self.destroy("tidy up", entry.path()))?;
            } else if !named {
                odd.push(entry.into_path());
            }
        }
        // What was saved there is not lost. The deepest first.
        for path in odd.iter().rev() {
            moved |= is_moved(give_usual_name(path))?;
        }
        Ok(!moved)
    }

    /// Does one thing.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn step(&mut self) -> anyhow::Result<()> {
        let (files, folders) = self.list()?;
        let crowded = files.len() + folders.len() > ENTRIES_MAX;
        // Trying is all that is wanted: see the header.
        drop(match self.random.random_range(0..if crowded { 27 } else { 23 }) {
            0..=3 => self.create(&folders),
            4..=6 => self.edit(&files),
            7 | 8 => self.save_as_editors_do(&files),
            9 | 10 => self.rename(&files, &folders),
            11 => self.rename(&folders, &folders),
            12 => self.make_folder(&folders),
            13 => self.swap(&files),
            14 => self.copy(&files, &folders),
            15 => self.change_mode(&files, &folders),
            16 => self.link(&files, &folders),
            17 => self.change_kind(&files, &folders),
            18 if self.kinds.hard_links => self.hard_link(&files, &folders),
            19 if self.kinds.special_files => self.make_special(&folders),
            20 if self.kinds.ignored => self.make_ignored(&folders),
            18..=21 => self.create(&folders),
            22..=25 => self.delete(&files),
            _ => self.delete(&folders),
        });
        Ok(())
    }

    /// One of them that is a plain file.
    fn choose_file(&mut self, files: &[PathBuf]) -> Option<PathBuf> {
        let path = files.choose(&mut self.random)?;
        fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()).then(|| path.clone())
    }

    fn list(&self) -> anyhow::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        let walk = walkdir::WalkDir::new(&self.root).min_depth(1).sort_by_file_name();
        for entry in walk.into_iter().filter_entry(|entry| entry.file_name() != OWN_FOLDER).flatten() {
            if entry.file_type().is_dir() {
                folders.push(entry.into_path());
            } else if entry.file_name() != RULES {
                files.push(entry.into_path());
            }
        }
        Ok((files, folders))
    }

    /// Bytes that nobody else ever saves.
    fn bytes(&mut self) -> Vec<u8> {
        self.count += 1;
        let mut bytes = format!("{} {} ", self.name, self.count).into_bytes();
        let more = match self.random.random_range(0..20) {
            0 => self.random.random_range(100_000..1_500_000),
            1..=3 => self.random.random_range(10_000..60_000),
            _ => self.random.random_range(0..4_000),
        };
        let begin = bytes.len();
        bytes.resize(begin + more, 0);
        self.random.fill_bytes(&mut bytes[begin..]);
        bytes
    }

    fn place(&mut self, folders: &[PathBuf]) -> PathBuf {
        let folder = match folders.choose(&mut self.random) {
            Some(folder) if self.random.random_bool(0.7) => folder.clone(),
            _ => self.root.clone(),
        };
        if self.kinds.odd_names && self.random.random_bool(0.15) {
            return match self.random.random_range(0..ODD_NAMES.len() + 1) {
                0 => folder.join(format!("{}{}", "long ".repeat(50), self.random.random_range(0..2))),
                index => folder.join(ODD_NAMES[index - 1]),
            };
        }
        let name = NAMES.choose(&mut self.random).copied().unwrap_or("x");
        folder.join(name)
    }

    fn describe(&self, operation: &str, path: &Path) -> String {
        format!("{} {} {operation}: {:?}", self.name, self.count, self.below(path))
    }

    fn below<'p>(&self, path: &'p Path) -> &'p Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }

    /// As the bytes are on disk now, which were written through `file`; the client may have moved them already.
    fn saved(&self, operation: &str, path: &Path, file: &mut File) {
        let what = self.describe(operation, path);
        if is_ignored(path) {
            self.contents.save_here(&self.name, path, &what);
        } else {
            self.contents.save_open(&self.name, &self.root, path, file, &what);
        }
    }

    /// Moves something out of the folder, where only this user has it.
    fn take_away(&mut self, path: &Path) -> std::io::Result<PathBuf> {
        self.count += 1;
        let aside = self.root.with_file_name(format!("away-{}-{}", self.name, self.count));
        renameat(CWD, path, CWD, &aside)?;
        Ok(aside)
    }

    /// Deletes a file, symlink or special file.
    fn destroy(&mut self, operation: &str, path: &Path) -> std::io::Result<()> {
        let aside = self.take_away(path)?;
        if fs::symlink_metadata(&aside)?.is_dir() {
            // Somebody was faster, and it is no file any more.
            return Ok(renameat_with(CWD, &aside, CWD, path, RenameFlags::NOREPLACE)?);
        }
        self.contents.give_up(&self.name, &self.root, &aside, &self.describe(operation, path));
        fs::remove_file(aside)
    }

    fn create(&mut self, folders: &[PathBuf]) -> std::io::Result<()> {
        let (path, bytes) = (self.place(folders), self.bytes());
        // Whole at once, under its name only if that is free: nothing is overwritten.
        let temporary = self.root.with_file_name(format!("draft-{}-{}", self.name, self.count));
        let mut file = written(&temporary, &bytes)?;
        let moved = renameat_with(CWD, &temporary, CWD, &path, RenameFlags::NOREPLACE);
        if moved.is_err() {
            fs::remove_file(&temporary)?;
        }
        moved?;
        self.saved("create", &path, &mut file);
        Ok(())
    }

    fn edit(&mut self, files: &[PathBuf]) -> std::io::Result<()> {
        let Some(path) = self.choose_file(files) else { return Ok(()) };
        let mut bytes = self.bytes();
        let mut file = File::options().read(true).write(true).open(&path)?;
        let length = file.metadata()?.len();
        self.contents.give_up_bytes(&self.name, &mut file, &self.describe("edit", &path));
        match self.random.random_range(0..5) {
            0 => {
                file.set_len(0)?;
                file.rewind()?;
            }
            1 => drop(file.seek(SeekFrom::End(0))?),
            2 => drop(file.seek(SeekFrom::Start(self.random.random_range(0..=length)))?),
            // As a database does: a few bytes within, the size stays.
            3 => {
                bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX).min(40));
                let last = length.saturating_sub(bytes.len() as u64);
                file.seek(SeekFrom::Start(self.random.random_range(0..=last)))?;
            }
            // Line by line, as a log.
            _ => {
                file.seek(SeekFrom::End(0))?;
                bytes.truncate(2_000);
                for line in bytes.chunks(500) {
                    file.write_all(line)?;
                }
                bytes.clear();
            }
        }
        file.write_all(&bytes)?;
        self.saved("edit", &path, &mut file);
        Ok(())
    }

    fn save_as_editors_do(&mut self, files: &[PathBuf]) -> std::io::Result<()> {
        let Some(path) = self.choose_file(files) else { return Ok(()) };
        let bytes = self.bytes();
        let Some((folder, name)) = path.parent().zip(path.file_name()) else { return Ok(()) };
        // Wherever the client moves the folder meanwhile: no temporary file is left behind.
        let folder = File::open(folder)?;
        let temporary = format!(".{}.swp", name.to_string_lossy());
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::RDWR | OFlags::CLOEXEC;
        let mut file = File::from(openat(&folder, &temporary, flags, Mode::from_raw_mode(0o644))?);
        let written = file.write_all(&bytes);
        let exchange = || Ok(renameat_with(&folder, &temporary, &folder, name, RenameFlags::EXCHANGE)?);
        let moved = written.and_then(|()| exchange());
        if moved.is_ok() {
            self.saved("save", &path, &mut file);
            // What has the temporary name now is what was there.
            let old = openat(
                &folder,
                &temporary,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK,
                Mode::empty(),
            );
            if let Ok(old) = old {
                let (mut old, what) = (File::from(old), self.describe("save", &path));
                self.contents.give_up_open(&self.name, &self.root, 1, &mut old, &what);
            }
        }
        unlinkat(&folder, &temporary, AtFlags::empty())?;
        moved
    }

    fn rename(&mut self, from: &[PathBuf], folders: &[PathBuf]) -> std::io::Result<()> {
        let Some(from) = from.choose(&mut self.random).cloned() else { return Ok(()) };
        let to = match self.random.random_range(0..4) {
            // By case only.
            0 => {
                let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let upper = name.to_uppercase();
                from.with_file_name(if upper == name { name.to_lowercase() } else { upper })
            }
            _ => self.place(folders),
        };
        // What stays here and what goes everywhere are told apart by where they were saved.
        if is_ignored(&from) == is_ignored(&to) {
            renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE)?;
            self.contents.renamed(&to);
        }
        Ok(())
    }

    fn make_folder(&mut self, folders: &[PathBuf]) -> std::io::Result<()> {
        let path = self.place(folders);
        fs::create_dir(path)
    }

    fn swap(&mut self, files: &[PathBuf]) -> std::io::Result<()> {
        let (Some(a), Some(b)) = (files.choose(&mut self.random).cloned(), files.choose(&mut self.random))
        else {
            return Ok(());
        };
        if is_ignored(&a) == is_ignored(b) {
            renameat_with(CWD, &a, CWD, b, RenameFlags::EXCHANGE)?;
            self.contents.renamed(&a);
            self.contents.renamed(b);
        }
        Ok(())
    }

    fn copy(&mut self, files: &[PathBuf], folders: &[PathBuf]) -> std::io::Result<()> {
        let Some(from) = self.choose_file(files) else { return Ok(()) };
        let to = self.place(folders);
        let bytes = fs::read(&from)?;
        let mut file = File::options().read(true).write(true).create_new(true).open(&to)?;
        file.write_all(&bytes)?;
        self.saved(&format!("copy of {:?}", self.below(&from)), &to, &mut file);
        Ok(())
    }

    fn change_mode(&mut self, files: &[PathBuf], folders: &[PathBuf]) -> std::io::Result<()> {
        if self.random.random_bool(0.2) {
            let Some(path) = folders.choose(&mut self.random).cloned() else { return Ok(()) };
            let mode = [0o755, 0o700, 0o750].choose(&mut self.random).copied().unwrap_or(0o755);
            return fs::set_permissions(path, fs::Permissions::from_mode(mode));
        }
        let Some(path) = self.choose_file(files) else { return Ok(()) };
        let mode = [0o644, 0o600, 0o755, 0o640, 0o444].choose(&mut self.random).copied().unwrap_or(0o644);
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }

    /// Makes a symlink: to a name beside it, nowhere, itself, outside; or points one elsewhere.
    fn link(&mut self, files: &[PathBuf], folders: &[PathBuf]) -> std::io::Result<()> {
        let path = self.place(folders);
        let own = path.file_name().unwrap_or_default().to_owned();
        let name = NAMES.choose(&mut self.random).copied().unwrap_or("x");
        let targets = [OsStr::new(name), OsStr::new("../nowhere/at all"), &own, OsStr::new("/etc/hostname")];
        let target = targets.choose(&mut self.random).copied().unwrap_or_default().to_owned();
        let chosen = files.choose(&mut self.random);
        let symlink_there = chosen.filter(|file| file.is_symlink() && self.count.is_multiple_of(2)).cloned();
        if let Some(old) = symlink_there {
            self.destroy("link anew", &old)?;
            return symlink(target, old);
        }
        symlink(target, path)
    }

    fn hard_link(&mut self, files: &[PathBuf], folders: &[PathBuf]) -> std::io::Result<()> {
        let Some(from) = self.choose_file(files) else { return Ok(()) };
        let to = self.place(folders);
        if is_ignored(&from) != is_ignored(&to) {
            return Ok(());
        }
        fs::hard_link(from, to)
    }

    /// Something that is never synchronised, in the way of what may be.
    fn make_special(&mut self, folders: &[PathBuf]) -> std::io::Result<()> {
        let path = self.place(folders);
        match self.random.random_range(0..3) {
            0 => Ok(mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?),
            1 => Ok(mknodat(CWD, &path, FileType::Socket, Mode::RUSR | Mode::WUSR, 0)?),
            _ => {
                let path = path.with_file_name(OsStr::from_bytes(b"not \xff UTF-8"));
                File::create_new(path).map(drop)
            }
        }
    }

    /// A file that stays on this device.
    fn make_ignored(&mut self, folders: &[PathBuf]) -> std::io::Result<()> {
        let mut path = self.place(folders).into_os_string();
        path.push(IGNORED_END);
        let (path, bytes) = (PathBuf::from(path), self.bytes());
        let mut file = written(&path, &bytes)?;
        self.saved("make ignored", &path, &mut file);
        Ok(())
    }

    fn change_kind(&mut self, files: &[PathBuf], folders: &[PathBuf]) -> std::io::Result<()> {
        if self.random.random() {
            let Some(path) = files.choose(&mut self.random).cloned() else { return Ok(()) };
            self.destroy("change kind", &path)?;
            return if is_ignored(&path) { Ok(()) } else { fs::create_dir(&path) };
        }
        let Some(path) = folders.choose(&mut self.random).cloned() else { return Ok(()) };
        let bytes = self.bytes();
        // Only an empty one: the client may be putting something in just now.
        fs::remove_dir(&path)?;
        let mut file = written(&path, &bytes)?;
        self.saved("change kind", &path, &mut file);
        Ok(())
    }

    fn delete(&mut self, paths: &[PathBuf]) -> std::io::Result<()> {
        let Some(path) = paths.choose(&mut self.random).cloned() else { return Ok(()) };
        if fs::symlink_metadata(&path)?.is_dir() {
            // As a file manager does: what is seen is deleted, and the folder if nothing came meanwhile.
            let seen: Vec<PathBuf> = walkdir::WalkDir::new(&path)
                .contents_first(true)
                .into_iter()
                .flatten()
                .map(walkdir::DirEntry::into_path)
                .collect();
            for path in seen {
                if fs::symlink_metadata(&path)?.is_dir() {
                    fs::remove_dir(&path)?;
                } else {
                    self.destroy("delete with its folder", &path)?;
                }
            }
            return Ok(());
        }
        self.destroy("delete", &path)
    }
}

/// A new file, under a name that is free.
fn written(path: &Path, bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

fn is_ignored(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().as_bytes().ends_with(IGNORED_END.as_bytes()))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::snapshot::Snapshot;

    #[test]
    fn alone_in_a_folder_everything_saved_is_there() {
        for seed in 0..20 {
            let scratch = tempfile::tempdir().unwrap();
            let root = scratch.path().join("root");
            fs::create_dir(&root).unwrap();
            let contents = Contents::default();
            let kinds = Kinds { hard_links: true, special_files: true, ignored: true, odd_names: true };
            let mut editor = Editor::new(&root, &contents, "a", SmallRng::seed_from_u64(seed), kinds);
            for _ in 0..400 {
                editor.step().unwrap();
            }
            editor.tidy_up().unwrap();
            let tree = Snapshot::take(&root).unwrap().without(&|name| name.ends_with(IGNORED_END));
            assert!(contents.count() > 10, "seed {seed}: only {} contents", contents.count());
            let missing = contents.missing("a", &tree);
            assert!(missing.is_empty(), "seed {seed}: {missing:?}");
            // Nearly all that is there is known: the rest are copies that were linked or saved at one moment.
            let known = contents.count();
            assert!(
                known * 10 >= crate::contents::digests(&tree).len() * 8,
                "seed {seed}: only {known} are known"
            );
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1, "something is left outside");
        }
    }
}
