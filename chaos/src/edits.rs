//! What people and programs do to a folder, at random: make, edit, save as editors do, move, rename by case, swap,
//! copy, delete, replace one kind by another. The sync client works in the same folder meanwhile, so whatever fails
//! because something is gone or there already has simply not been done.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngCore as _};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, openat, renameat, renameat_with, unlinkat};

use crate::compare::file_digest;
use crate::group::Contents;
use crate::snapshot::OWN_FOLDER;

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

/// One device's user.
#[derive(Debug)]
pub struct Editor<'a> {
    root: PathBuf,
    contents: &'a Contents,
    random: SmallRng,
    name: String,
    count: u64,
}

impl<'a> Editor<'a> {
    /// Works in `root`; what is saved is noted in `contents`.
    #[must_use]
    pub fn new(root: &Path, contents: &'a Contents, name: &str, random: SmallRng) -> Self {
        Self { root: root.to_owned(), contents, random, name: name.to_owned(), count: 0 }
    }

    /// Does one thing.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn step(&mut self) -> anyhow::Result<()> {
        let (files, folders) = self.list()?;
        let crowded = files.len() + folders.len() > ENTRIES_MAX;
        // Trying is all that is wanted: see the header.
        drop(match self.random.random_range(0..if crowded { 22 } else { 18 }) {
            0..=3 => self.create(&folders),
            4 | 5 => self.edit(&files),
            6 | 7 => self.save_as_editors_do(&files),
            8 | 9 => self.rename(&files, &folders),
            10 => self.rename(&folders, &folders),
            11 => self.make_folder(&folders),
            12 => self.swap(&files),
            13 => self.copy(&files, &folders),
            14 => self.change_mode(&files),
            15 => self.link(&folders),
            16 => self.change_kind(&files, &folders),
            17..=20 => self.delete(&files),
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
            } else {
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
        let name = NAMES.choose(&mut self.random).copied().unwrap_or("x");
        folder.join(name)
    }

    fn saved(&self, path: &Path) -> std::io::Result<()> {
        // As the bytes are on disk now; the client may have moved them away already.
        if let Ok(digest) = file_digest(path) {
            let name = path.strip_prefix(&self.root).unwrap_or(path).display().to_string();
            self.contents.save(digest, &format!("{} {}: {name}", self.name, self.count));
        }
        Ok(())
    }

    fn create(&mut self, folders: &[PathBuf]) -> std::io::Result<()> {
        let (path, bytes) = (self.place(folders), self.bytes());
        // Whole at once, under its name only if that is free: nothing is overwritten.
        let temporary = self.root.with_file_name(format!("draft-{}-{}", self.name, self.count));
        fs::write(&temporary, bytes)?;
        let moved = renameat_with(CWD, &temporary, CWD, &path, RenameFlags::NOREPLACE);
        if moved.is_err() {
            fs::remove_file(&temporary)?;
        }
        moved?;
        self.saved(&path)
    }

    fn edit(&mut self, files: &[PathBuf]) -> std::io::Result<()> {
        let Some(path) = self.choose_file(files) else { return Ok(()) };
        let bytes = self.bytes();
        self.contents.give_up(&path);
        let mut file = File::options().write(true).open(&path)?;
        let length = file.metadata()?.len();
        match self.random.random_range(0..3) {
            0 => file.set_len(0)?,
            1 => drop(file.seek(SeekFrom::End(0))?),
            _ => drop(file.seek(SeekFrom::Start(self.random.random_range(0..=length)))?),
        }
        file.write_all(&bytes)?;
        drop(file);
        self.saved(&path)
    }

    fn save_as_editors_do(&mut self, files: &[PathBuf]) -> std::io::Result<()> {
        let Some(path) = self.choose_file(files) else { return Ok(()) };
        let bytes = self.bytes();
        let Some((folder, name)) = path.parent().zip(path.file_name()) else { return Ok(()) };
        // Wherever the client moves the folder meanwhile: no temporary file is left behind.
        let folder = File::open(folder)?;
        let temporary = format!(".{}.swp", name.to_string_lossy());
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&folder, &temporary, flags, Mode::from_raw_mode(0o644))?;
        let written = File::from(file).write_all(&bytes);
        self.contents.give_up(&path);
        let moved = written.and_then(|()| Ok(renameat(&folder, &temporary, &folder, name)?));
        if moved.is_err() {
            unlinkat(&folder, &temporary, AtFlags::empty())?;
        }
        moved?;
        self.saved(&path)
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
        renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE)?;
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
        renameat_with(CWD, &a, CWD, b, RenameFlags::EXCHANGE)?;
        Ok(())
    }

    fn copy(&mut self, files: &[PathBuf], folders: &[PathBuf]) -> std::io::Result<()> {
        let Some(from) = self.choose_file(files) else { return Ok(()) };
        let to = self.place(folders);
        let bytes = fs::read(&from)?;
        let mut file = File::options().write(true).create_new(true).open(&to)?;
        file.write_all(&bytes)
    }

    fn change_mode(&mut self, files: &[PathBuf]) -> std::io::Result<()> {
        let Some(path) = files.choose(&mut self.random).cloned() else { return Ok(()) };
        if fs::symlink_metadata(&path)?.is_symlink() {
            return Ok(());
        }
        let mode = [0o644, 0o600, 0o755, 0o640].choose(&mut self.random).copied().unwrap_or(0o644);
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }

    fn link(&mut self, folders: &[PathBuf]) -> std::io::Result<()> {
        let path = self.place(folders);
        let target = NAMES.choose(&mut self.random).copied().unwrap_or("x");
        symlink(OsStr::new(target), path)
    }

    fn change_kind(&mut self, files: &[PathBuf], folders: &[PathBuf]) -> std::io::Result<()> {
        if self.random.random() {
            let Some(path) = files.choose(&mut self.random).cloned() else { return Ok(()) };
            self.contents.give_up(&path);
            fs::remove_file(&path)?;
            return fs::create_dir(&path);
        }
        let Some(path) = folders.choose(&mut self.random).cloned() else { return Ok(()) };
        let bytes = self.bytes();
        // Only an empty one: the client may be putting something in just now.
        fs::remove_dir(&path)?;
        fs::write(&path, bytes)?;
        self.saved(&path)
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
                    self.contents.give_up(&path);
                    fs::remove_file(&path)?;
                }
            }
            return Ok(());
        }
        self.contents.give_up(&path);
        fs::remove_file(path)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::snapshot::Snapshot;

    #[test]
    fn alone_in_a_folder_everything_saved_is_there() {
        for seed in 0..5 {
            let scratch = tempfile::tempdir().unwrap();
            let root = scratch.path().join("root");
            fs::create_dir(&root).unwrap();
            let contents = Contents::default();
            let mut editor = Editor::new(&root, &contents, "a", SmallRng::seed_from_u64(seed));
            for _ in 0..300 {
                editor.step().unwrap();
            }
            let there = crate::group::digests(&Snapshot::take(&root).unwrap());
            assert!(contents.count() > 10, "seed {seed}: only {} contents", contents.count());
            assert!(contents.count() <= there.len(), "seed {seed}");
        }
    }
}
