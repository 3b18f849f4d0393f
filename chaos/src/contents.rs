//! The oracle of synchronisation: what users saved and did not give up themselves must be live in the end, which is in
//! the tree of every device under some name. That it is in a trash, or an earlier version, is not enough: nobody
//! deleted it.
//!
//! A saved file is known by its bytes and its modification time, which synchronisation keeps: so that a copy is a file
//! of its own, and giving up one says nothing of the other. Of several files with the same bytes one must be live, for
//! two that come to the same name are one from then on.
//!
//! Whoever gives something up says so by what they destroyed, not by what was at a path a moment before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::compare::digest_of;
use crate::snapshot::{Item, OWN_FOLDER, Snapshot};

/// SHA-256 of a file's bytes.
pub type Digest = [u8; 32];

/// A file as somebody saved it: its bytes, and when.
type Saved = (Digest, i128);

/// What users saved and did not overwrite or delete themselves.
#[derive(Debug, Default)]
pub struct Contents {
    /// With who saved it, and where.
    saved: Mutex<BTreeMap<Saved, String>>,
    /// All times with which these bytes were ever saved: more than one, if there were copies.
    times: Mutex<BTreeMap<Digest, BTreeSet<i128>>>,
    /// How often these bytes were given up with a time that nobody had saved, or that was given up before. Copies that
    /// change places on one device while another deletes one of them exchange their times: each of these is one of them.
    given_up_otherwise: Mutex<BTreeMap<Digest, usize>>,
    /// The same of files that stay on the device with this name: ignored ones.
    kept: Mutex<BTreeMap<(String, Saved), String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A regular file as it is now; nothing if it changes meanwhile or is something else.
fn look(file: &mut File) -> Option<Saved> {
    let time = |file: &File| {
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        Some(i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()))
    };
    let before = time(file)?;
    let digest = digest_of(file).ok()?;
    (time(file)? == before).then_some((digest, before))
}

/// How many names a file has in a device's folder. What the sync client keeps for itself, such as its trash, is none.
fn names_in(root: &Path, file: &File) -> usize {
    let Ok(open) = file.metadata() else { return 0 };
    let walk = walkdir::WalkDir::new(root).into_iter().filter_entry(|entry| entry.file_name() != OWN_FOLDER);
    let is_name = |entry: &walkdir::DirEntry| {
        entry.metadata().is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (open.dev(), open.ino()))
    };
    walk.flatten().filter(is_name).count()
}

fn look_at(path: &Path) -> Option<Saved> {
    if !std::fs::symlink_metadata(path).ok()?.is_file() {
        return None;
    }
    look(&mut File::open(path).ok()?)
}

impl Contents {
    fn note(&self, saved: Saved, what: &str) {
        locked(&self.times).entry(saved.0).or_default().insert(saved.1);
        locked(&self.saved).insert(saved, what.to_owned());
    }

    /// A user has saved the file at `path`: it must be on all devices in the end.
    pub fn save(&self, path: &Path, what: &str) {
        if let Some(saved) = look_at(path) {
            self.note(saved, what);
        }
    }

    /// The same of what was written through `file`, wherever it is in `root` by now. Nothing, if it is not there any more:
    /// what the sync client had taken away before the user wrote to it. What is at its place then is somebody else's,
    /// who may have given it up already.
    pub fn save_open(&self, root: &Path, file: &mut File, what: &str) {
        if let Some(saved) = look(file)
            && names_in(root, file) > 0
        {
            self.note(saved, what);
        }
    }

    /// The same of a file that stays on its device.
    pub fn save_here(&self, device: &str, path: &Path, what: &str) {
        if let Some(saved) = look_at(path) {
            locked(&self.kept).insert((device.to_owned(), saved), what.to_owned());
        }
    }

    /// A user destroys one name of the file that is open. Under another one it lives on in `root`, but for
    /// `names_going` that are still there.
    pub fn give_up_open(&self, device: &str, root: &Path, names_going: usize, file: &mut File) {
        if names_in(root, file) <= names_going {
            self.forget(device, file);
        }
    }

    /// The same, whatever names it has: its bytes change.
    pub fn give_up_bytes(&self, device: &str, file: &mut File) {
        self.forget(device, file);
    }

    fn forget(&self, device: &str, file: &mut File) {
        if let Some(saved) = look(file) {
            if locked(&self.saved).remove(&saved).is_none() {
                *locked(&self.given_up_otherwise).entry(saved.0).or_default() += 1;
            }
            locked(&self.kept).remove(&(device.to_owned(), saved));
        }
    }

    /// A user destroys what is at `path`, where nobody else can put something: it was moved aside before.
    pub fn give_up(&self, device: &str, root: &Path, path: &Path) {
        if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
            && let Ok(mut file) = File::open(path)
        {
            let names_going = usize::from(path.starts_with(root));
            self.give_up_open(device, root, names_going, &mut file);
        }
    }

    /// How many files must be somewhere.
    #[must_use]
    pub fn count(&self) -> usize {
        locked(&self.saved).len() + locked(&self.kept).len()
    }

    /// What is missing in a device's tree, one line each.
    #[must_use]
    pub fn missing(&self, device: &str, tree: &Snapshot) -> Vec<String> {
        let live: BTreeSet<Digest> = digests(tree);
        let saved = locked(&self.saved);
        let times = locked(&self.times);
        let mut given_up = locked(&self.given_up_otherwise).clone();
        given_up.retain(|digest, _count| times.get(digest).is_some_and(|times| times.len() > 1));
        let mut is_given_up = |digest| match given_up.get_mut(digest) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        };
        let everywhere =
            saved.iter().filter(|((digest, _), _)| !live.contains(digest) && !is_given_up(digest)).map(shown);
        let kept = locked(&self.kept);
        let here = kept
            .iter()
            .filter(|((name, (digest, _)), _)| {
                name == device && !live.contains(digest) && !tree.left_out.contains(digest)
            })
            .map(|((_, saved), what)| shown((saved, what)));
        everywhere.chain(here).collect()
    }
}

/// With the beginning of its SHA-256, so that it can be looked for in what a test left behind.
fn shown(((digest, _), what): (&Saved, &String)) -> String {
    let begin: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{what} ({begin})")
}

/// The digests of all files in a snapshot.
#[must_use]
pub fn digests(snapshot: &Snapshot) -> BTreeSet<Digest> {
    snapshot
        .items
        .values()
        .filter_map(|item| match item {
            Item::File { digest, .. } => Some(*digest),
            Item::Folder { .. } | Item::Symlink(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    struct Tree {
        root: tempfile::TempDir,
        contents: Contents,
    }

    impl Tree {
        fn new() -> Self {
            let tree = Self { root: tempfile::tempdir().unwrap(), contents: Contents::default() };
            fs::create_dir_all(tree.root.path().join(OWN_FOLDER).join("trash")).unwrap();
            tree
        }

        fn at(&self, name: &str) -> std::path::PathBuf {
            self.root.path().join(name)
        }

        fn save(&self, name: &str, bytes: &str, second: u64) {
            fs::write(self.at(name), bytes).unwrap();
            let time = UNIX_EPOCH + Duration::from_secs(second);
            File::options().write(true).open(self.at(name)).unwrap().set_modified(time).unwrap();
            self.contents.save(&self.at(name), name);
        }

        fn missing(&self) -> Vec<String> {
            names(&self.contents.missing("a", &Snapshot::take(self.root.path()).unwrap()))
        }
    }

    fn names(missing: &[String]) -> Vec<String> {
        let mut names: Vec<String> =
            missing.iter().filter_map(|shown| Some(shown.split_once(" (")?.0.to_owned())).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_nobody_deleted_must_be_live_wherever_else_it_is() {
        let tree = Tree::new();
        tree.save("f", "bytes", 1);
        tree.save("g", "others", 1);
        assert_eq!(tree.missing(), Vec::<String>::new());
        fs::rename(tree.at("f"), tree.at("renamed")).unwrap();
        assert_eq!(tree.missing(), Vec::<String>::new());
        // A wrong delete, as a client does it: into the trash.
        fs::rename(tree.at("renamed"), tree.at(OWN_FOLDER).join("trash/f")).unwrap();
        assert_eq!(tree.missing(), ["f"]);
        // A wrong replacement.
        fs::write(tree.at("g"), "not others").unwrap();
        assert_eq!(tree.missing(), ["f", "g"]);
    }

    #[test]
    fn copies_that_exchange_their_times_are_given_up_by_their_bytes_and_a_single_file_is_not() {
        let tree = Tree::new();
        let give_up = |name: &str, seconds: u64| {
            let file = File::options().write(true).open(tree.at(name)).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
            tree.contents.give_up("a", tree.root.path(), &tree.at(name));
            fs::remove_file(tree.at(name)).unwrap();
        };
        tree.save("f", "bytes", 1);
        tree.save("copy", "bytes", 2);
        give_up("f", 2);
        fs::rename(tree.at("copy"), tree.at("other")).unwrap();
        assert_eq!(tree.missing(), Vec::<String>::new());
        give_up("other", 2);
        assert_eq!(tree.missing(), Vec::<String>::new());
        tree.save("single", "others", 1);
        give_up("single", 2);
        assert_eq!(tree.missing(), ["single"]);
        // One is given up, and the other one gone.
        tree.save("g", "more", 1);
        tree.save("copy of g", "more", 2);
        give_up("g", 1);
        fs::remove_file(tree.at("copy of g")).unwrap();
        assert_eq!(tree.missing(), ["copy of g", "single"]);
    }

    #[test]
    fn what_was_written_to_a_file_counts_where_it_is_by_now_and_not_what_is_at_its_place() {
        let tree = Tree::new();
        let saved = |name: &str, moved_to: &str| {
            let mut file =
                File::options().read(true).write(true).create_new(true).open(tree.at(name)).unwrap();
            file.write_all(name.as_bytes()).unwrap();
            fs::rename(tree.at(name), tree.at(moved_to)).unwrap();
            fs::write(tree.at(name), "another user's").unwrap();
            tree.contents.save_open(tree.root.path(), &mut file, name);
            fs::remove_file(tree.at(name)).unwrap();
        };
        let trashed = format!("{OWN_FOLDER}/trash/f");
        saved("taken away", &trashed);
        assert_eq!(tree.contents.count(), 0);
        saved("moved", "elsewhere");
        assert_eq!(tree.missing(), Vec::<String>::new());
        fs::remove_file(tree.at("elsewhere")).unwrap();
        assert_eq!(tree.missing(), ["moved"]);
    }

    #[test]
    fn what_a_user_deleted_may_be_gone_and_a_copy_of_it_may_not() {
        let tree = Tree::new();
        tree.save("f", "bytes", 1);
        tree.save("copy", "bytes", 2);
        tree.contents.give_up("a", tree.root.path(), &tree.at("f"));
        fs::remove_file(tree.at("f")).unwrap();
        assert_eq!(tree.missing(), Vec::<String>::new());
        fs::remove_file(tree.at("copy")).unwrap();
        assert_eq!(tree.missing(), ["copy"]);
        let tree = Tree::new();
        tree.save("f", "bytes", 1);
        fs::hard_link(tree.at("f"), tree.at("second")).unwrap();
        tree.contents.give_up("a", tree.root.path(), &tree.at("f"));
        assert_eq!(tree.contents.count(), 1, "its second name is still there");
        fs::rename(tree.at("second"), tree.at(OWN_FOLDER).join("trash/second")).unwrap();
        tree.contents.give_up("a", tree.root.path(), &tree.at("f"));
        assert_eq!(tree.contents.count(), 0, "that it is in the trash is no name");
    }

    #[test]
    fn what_stays_here_must_stay_here() {
        let tree = Tree::new();
        fs::write(tree.at("x.ignored"), "mine").unwrap();
        tree.contents.save_here("a", &tree.at("x.ignored"), "x");
        let take = || Snapshot::take(tree.root.path()).unwrap().without(&|name| name.ends_with(".ignored"));
        assert_eq!(tree.contents.missing("a", &take()), Vec::<String>::new());
        fs::remove_file(tree.at("x.ignored")).unwrap();
        assert_eq!(names(&tree.contents.missing("a", &take())), ["x"]);
        assert_eq!(tree.contents.missing("b", &take()), Vec::<String>::new());
    }
}
