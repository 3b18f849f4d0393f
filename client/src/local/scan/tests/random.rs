//! Random edits of a real folder: after each scan what is known is what is there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use engine::cutter::Cutter;
use engine::ids::{ChunkId, ContentId};
use engine::manifest::ManifestEntry;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Runs and edits per run: some seconds in all.
const RUNS: u64 = 60;
const EDITS: usize = 25;

fn content_of(bytes: &[u8]) -> ContentId {
    let chunks = engine::cutter::cut_reader(bytes, Cutter::for_size(bytes.len() as u64)).map(|chunk| {
        let (_, bytes) = chunk.unwrap();
        ManifestEntry { id: ChunkId::of(&bytes), size: bytes.len() as u64 }
    });
    ContentId::of(&chunks.collect::<Vec<_>>())
}

/// What is on disk, as the standard library sees it: by path, the mode and what it is.
pub(super) fn disk(dir: &Path) -> BTreeMap<String, (u32, String)> {
    let mut all = BTreeMap::new();
    for entry in walkdir::WalkDir::new(dir)
        .min_depth(1)
        .into_iter()
        .filter_entry(|entry| !(entry.depth() == 1 && entry.file_name() == ".keepstone"))
    {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        let what = if metadata.is_dir() {
            "folder".to_owned()
        } else if metadata.is_symlink() {
            format!("link {:?}", fs::read_link(entry.path()).unwrap())
        } else {
            format!("file {:?}", content_of(&fs::read(entry.path()).unwrap()))
        };
        let path = entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
        all.insert(path, (metadata.permissions().mode() & 0o7777, what));
    }
    all
}

/// What is known, in the same form.
pub(super) fn known_paths(index: &MemoryIndex) -> BTreeMap<String, (u32, String)> {
    use std::os::unix::ffi::OsStringExt;
    index
        .records()
        .map(|record| {
            let what = match &record.kind {
                Kind::Folder => "folder".to_owned(),
                Kind::Symlink(target) => {
                    format!("link {:?}", PathBuf::from(std::ffi::OsString::from_vec(target.clone())))
                }
                Kind::File(file) => format!("file {:?}", file.content),
            };
            assert_eq!(record.attributes.mode, record.stamp.mode);
            (index.path(record.node).unwrap(), (record.attributes.mode, what))
        })
        .collect()
}

struct Editor {
    random: SmallRng,
    dir: PathBuf,
    count: u32,
}

impl Editor {
    /// Something that is there, relative to the root; the root itself if nothing is.
    fn pick(&mut self, is_wanted: impl Fn(&fs::Metadata) -> bool) -> Option<PathBuf> {
        let all: Vec<_> = walkdir::WalkDir::new(&self.dir)
            .min_depth(1)
            .into_iter()
            .filter_entry(|entry| entry.file_name() != ".keepstone")
            .map(|entry| entry.unwrap())
            .filter(|entry| is_wanted(&entry.metadata().unwrap()))
            .map(|entry| entry.into_path())
            .collect();
        (!all.is_empty()).then(|| all[self.random.random_range(0..all.len())].clone())
    }

    fn folder(&mut self) -> PathBuf {
        let dir = self.dir.clone();
        if self.random.random_bool(0.3) { dir } else { self.pick(fs::Metadata::is_dir).unwrap_or(dir) }
    }

    /// Few names, so that things meet.
    fn place(&mut self) -> PathBuf {
        let name = ["a", "b", "c", "d", "e", "name"][self.random.random_range(0..6)];
        self.folder().join(name)
    }

    fn text(&mut self) -> Vec<u8> {
        self.count += 1;
        // Some equal, some of equal length, some large.
        match self.random.random_range(0..10) {
            0 => Vec::new(),
            1 | 2 => b"the same everywhere".to_vec(),
            3 => self.count.to_be_bytes().repeat(30_000),
            _ => self.count.to_be_bytes().to_vec(),
        }
    }

    /// Does one thing to the folder; what cannot be done is not.
    fn edit(&mut self) -> std::io::Result<()> {
        match self.random.random_range(0..16) {
            0..=2 => {
                let text = self.text();
                fs::write(self.place(), text)
            }
            3 => fs::create_dir(self.place()),
            4 => {
                let (Some(path), text) = (self.pick(fs::Metadata::is_file), self.text()) else {
                    return Ok(());
                };
                fs::write(path, text)
            }
            5 => {
                // An editor's save.
                let (Some(path), text) = (self.pick(fs::Metadata::is_file), self.text()) else {
                    return Ok(());
                };
                let temporary = path.with_file_name("saving");
                fs::write(&temporary, text)?;
                fs::rename(temporary, path)
            }
            6..=8 => {
                let Some(from) = self.pick(|_| true) else { return Ok(()) };
                let to = self.place();
                fs::rename(from, to)
            }
            9 => {
                // A swap.
                let (Some(one), Some(other)) = (self.pick(|_| true), self.pick(|_| true)) else {
                    return Ok(());
                };
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    one,
                    rustix::fs::CWD,
                    other,
                    rustix::fs::RenameFlags::EXCHANGE,
                )?;
                Ok(())
            }
            10 => {
                let Some(path) = self.pick(|metadata| !metadata.is_dir()) else { return Ok(()) };
                fs::remove_file(path)
            }
            11 => {
                let Some(path) = self.pick(fs::Metadata::is_dir) else { return Ok(()) };
                fs::remove_dir_all(path)
            }
            12 => {
                let target = ["a", "../b", "/nowhere"][self.random.random_range(0..3)];
                std::os::unix::fs::symlink(target, self.place())
            }
            13 => {
                let Some(from) = self.pick(fs::Metadata::is_file) else { return Ok(()) };
                fs::hard_link(from, self.place())
            }
            14 => {
                let Some(path) = self.pick(|metadata| !metadata.is_symlink()) else { return Ok(()) };
                let mode = [0o755, 0o700, 0o711][self.random.random_range(0..3)];
                fs::set_permissions(path, PermissionsExt::from_mode(mode))
            }
            _ => {
                // A copy, and the old one deleted: moved by content.
                let Some(from) = self.pick(fs::Metadata::is_file) else { return Ok(()) };
                let to = self.place();
                if to.exists() {
                    return Ok(());
                }
                fs::copy(&from, to)?;
                fs::remove_file(from)
            }
        }
    }
}

fn run(seed: u64, root: &TestRoot) {
    let mut index = MemoryIndex::default();
    let mut editor = Editor { random: SmallRng::seed_from_u64(seed), dir: root.dir(), count: 0 };
    for at in 0..EDITS {
        for _ in 0..editor.random.random_range(1..8) {
            drop(editor.edit());
        }
        // Some folders first, as hints would have it.
        if editor.random.random_bool(0.4) {
            let folders: Vec<ScopeFolder> = (0..3)
                .map(|_| {
                    let folder = editor.folder();
                    let path = folder.strip_prefix(&editor.dir).unwrap().to_str().unwrap().to_owned();
                    ScopeFolder { folder: rel(&path), deep: editor.random.random_bool(0.5) }
                })
                .collect();
            take_in(root, &mut index, &Scope::Folders(folders));
        }
        let found = whole(root, &mut index);
        assert!(found.complete && found.skipped.is_empty(), "seed {seed} edit {at}: {:?}", found.skipped);
        assert_eq!(known_paths(&index), disk(&root.dir()), "seed {seed} edit {at}");
    }
    settle(root, &mut index);
    let again = whole(root, &mut index);
    assert_eq!((again.updates.as_slice(), again.counts.hashed), ([].as_slice(), 0), "seed {seed}");
    assert_eq!(known_paths(&index), disk(&root.dir()), "seed {seed}");
}

#[test]
fn after_any_edits_what_is_known_is_what_is_there() {
    let first: u64 = rand::rng().random();
    println!("seeds from {first}");
    for run_number in 0..RUNS {
        run(first.wrapping_add(run_number), &TestRoot::new());
    }
}

#[test]
fn nor_does_a_file_system_without_times_of_birth_change_that() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(dir.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("not allowed to mount: only root can try");
        return;
    }
    let first: u64 = rand::rng().random();
    println!("seeds from {first}");
    let result = std::panic::catch_unwind(|| {
        for run_number in 0..RUNS / 4 {
            let below = dir.path().join(run_number.to_string());
            fs::create_dir(&below).unwrap();
            let root = TestRoot::at(&below);
            root.write("f", "f");
            assert_eq!(root.stamp("f").identity.born_ns, 0);
            run(first.wrapping_add(run_number), &root);
        }
    });
    assert!(std::process::Command::new("umount").arg(dir.path()).status().unwrap().success());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// A folder is exchanged with a link to one outside, all the time, while the root is scanned.
#[test]
fn a_folder_that_becomes_a_link_leads_no_scan_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("sub")).unwrap();
    for name in ["secret", "sub/secret"] {
        fs::write(outside.path().join(name), "not to be read").unwrap();
    }
    let (root, mut index) = known();
    std::os::unix::fs::symlink(outside.path(), root.dir().join("link")).unwrap();
    let exchange = || {
        let (one, other) = (root.dir().join("a"), root.dir().join("link"));
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags).unwrap();
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                exchange();
            }
        });
        for _ in 0..300 {
            // A scan that finds the root changed too much may refuse; it may not believe what is outside.
            if let Ok(found) = scan(&root, &mut index, &Scope::Whole, &options()) {
                index.apply(&found.updates);
            }
            assert!(index.records().all(|record| record.place.name != "secret"));
        }
        done.store(true, Ordering::Relaxed);
    });
    settle(&root, &mut index);
    assert_eq!(known_paths(&index), disk(&root.dir()));
}

/// Files are moved about all the time while everything is scanned again and again: none is ever taken for deleted and
/// new, for no scan believes what it saw of folders that changed meanwhile.
#[test]
fn files_that_move_during_scans_are_never_lost() {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let root = TestRoot::new();
    let folders: Vec<PathBuf> = (0..12).map(|at| root.dir().join(format!("d{at}"))).collect();
    for (at, folder) in folders.iter().enumerate() {
        fs::create_dir(folder).unwrap();
        for file in 0..6 {
            fs::write(folder.join(format!("f{at}-{file}")), format!("{at} {file}")).unwrap();
        }
    }
    let mut index = MemoryIndex::default();
    settle(&root, &mut index);
    let before: BTreeMap<String, NodeId> =
        index.records().map(|record| (record.place.name.clone(), record.node)).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = SmallRng::seed_from_u64(seed);
            while !done.load(Ordering::Relaxed) {
                let from = &folders[random.random_range(0..folders.len())];
                let to = &folders[random.random_range(0..folders.len())];
                let Some(file) = fs::read_dir(from).unwrap().next() else { continue };
                let name = file.unwrap().file_name();
                fs::rename(from.join(&name), to.join(&name)).unwrap();
                if random.random_bool(0.05) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        for _ in 0..300 {
            let found = whole(&root, &mut index);
            assert_eq!(gone(&found), 0, "seed {seed}");
        }
        done.store(true, Ordering::Relaxed);
    });
    settle(&root, &mut index);
    let after: BTreeMap<String, NodeId> =
        index.records().map(|record| (record.place.name.clone(), record.node)).collect();
    assert_eq!(before, after, "seed {seed}");
    assert_eq!(known_paths(&index), disk(&root.dir()));
}
