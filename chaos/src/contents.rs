//! The oracle of synchronisation: what users saved and did not give up themselves must be live in the end, which is in
//! the tree of every device under some name. That it is in a trash, or an earlier version, is not enough: nobody
//! deleted it.
//!
//! A saved file is known by its bytes and its modification time, which synchronisation keeps: so that a copy is a file
//! of its own, and giving up one says nothing of the other. Of several files with the same bytes one must be live, for
//! two that come to the same name are one from then on; `history.rs` tells that from a loss.
//!
//! Whoever gives something up says so by what they destroyed, not by what was at a path a moment before.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::compare::digest_of;
use crate::history::{GiveUp, History, Save};
use crate::snapshot::{Item, OWN_FOLDER, Snapshot};

/// SHA-256 of a file's bytes.
pub type Digest = [u8; 32];

/// A file as somebody saved it: its bytes, and when.
type Saved = (Digest, i128);

/// What users saved and did not overwrite or delete themselves.
#[derive(Debug, Default)]
pub struct Contents {
    everywhere: Mutex<BTreeMap<Digest, History>>,
    /// Of files that stay on the device with this name: ignored ones.
    kept: Mutex<BTreeMap<(String, Saved), Save>>,
}

/// A file that should be live, and is not.
#[derive(Debug)]
pub struct Missing {
    /// How it was saved.
    pub what: String,
    /// What users called it in its folder.
    pub names: BTreeSet<String>,
    /// The beginning of its SHA-256, so that it can be looked for in what a test left behind.
    digest_begin: String,
    /// Who saved these bytes and who gave them up, a line each.
    story: String,
}

impl Missing {
    fn new(digest: &Digest, save: &Save, story: String) -> Self {
        let digest_begin = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Self { what: save.what().to_owned(), names: save.names().clone(), digest_begin, story }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({}){}", self.what, self.digest_begin, self.story)
    }
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

fn now_ns() -> i128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i128::try_from(now.as_nanos()).unwrap_or(i128::MAX)
}

impl Contents {
    fn note(&self, device: &str, path: &Path, (digest, time_ns): Saved, what: &str) {
        let save = Save::new(device, path, time_ns, what);
        locked(&self.everywhere).entry(digest).or_default().save(save);
    }

    /// A user of a device has saved the file at `path`: it must be on all devices in the end.
    pub fn save(&self, device: &str, path: &Path, what: &str) {
        if let Some(saved) = look_at(path) {
            self.note(device, path, saved, what);
        }
    }

    /// The same of what was written through `file`, wherever it is in `root` by now. Nothing, if it is not there any more:
    /// what the sync client had taken away before the user wrote to it. What is at its place then is somebody else's,
    /// who may have given it up already.
    pub fn save_open(&self, device: &str, root: &Path, path: &Path, file: &mut File, what: &str) {
        if let Some(saved) = look(file)
            && names_in(root, file) > 0
        {
            self.note(device, path, saved, what);
        }
    }

    /// The same of a file that stays on its device.
    pub fn save_here(&self, device: &str, path: &Path, what: &str) {
        if let Some(saved) = look_at(path) {
            let save = Save::new(device, path, saved.1, what);
            locked(&self.kept).insert((device.to_owned(), saved), save);
        }
    }

    /// A user gave a file the name that `path` has.
    pub fn renamed(&self, path: &Path) {
        if let Some((digest, time_ns)) = look_at(path)
            && let Some(history) = locked(&self.everywhere).get_mut(&digest)
        {
            history.rename(time_ns, path);
        }
    }

    /// A user destroys one name of the file that is open. Under another one it lives on in `root`, but for
    /// `names_going` that are still there.
    pub fn give_up_open(&self, device: &str, root: &Path, names_going: usize, file: &mut File, what: &str) {
        if names_in(root, file) <= names_going {
            self.forget(device, file, what);
        }
    }

    /// The same, whatever names it has: its bytes change.
    pub fn give_up_bytes(&self, device: &str, file: &mut File, what: &str) {
        self.forget(device, file, what);
    }

    fn forget(&self, device: &str, file: &mut File, what: &str) {
        let Some(saved) = look(file) else { return };
        let only_here = locked(&self.kept).remove(&(device.to_owned(), saved)).is_some();
        let (digest, time_ns) = saved;
        let give_up = GiveUp { time_ns, at_ns: now_ns(), what: what.to_owned() };
        locked(&self.everywhere).entry(digest).or_default().give_up(give_up, only_here);
    }

    /// A user destroys what is at `path`, where nobody else can put something: it was moved aside before.
    pub fn give_up(&self, device: &str, root: &Path, path: &Path, what: &str) {
        if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
            && let Ok(mut file) = File::open(path)
        {
            let names_going = usize::from(path.starts_with(root));
            self.give_up_open(device, root, names_going, &mut file, what);
        }
    }

    /// How many files must be somewhere.
    #[must_use]
    pub fn count(&self) -> usize {
        let everywhere: usize = locked(&self.everywhere).values().map(History::open_count).sum();
        everywhere + locked(&self.kept).len()
    }

    /// What is missing in a device's tree.
    #[must_use]
    pub fn missing(&self, device: &str, tree: &Snapshot) -> Vec<Missing> {
        let live: BTreeSet<Digest> = digests(tree);
        let mut missing = Vec::new();
        for (digest, history) in locked(&self.everywhere).iter() {
            if !live.contains(digest) {
                missing.extend(history.lost().map(|save| Missing::new(digest, save, history.story())));
            }
        }
        for ((name, (digest, _)), save) in locked(&self.kept).iter() {
            if name == device && !live.contains(digest) && !tree.left_out.contains(digest) {
                missing.push(Missing::new(digest, save, String::new()));
            }
        }
        missing
    }
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
    use std::time::Duration;

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

        fn write(&self, name: &str, bytes: &str, second: u64) {
            fs::write(self.at(name), bytes).unwrap();
            let time = UNIX_EPOCH + Duration::from_secs(second);
            File::options().write(true).open(self.at(name)).unwrap().set_modified(time).unwrap();
        }

        fn save(&self, name: &str, bytes: &str, second: u64) {
            self.save_on("a", name, bytes, second);
        }

        fn save_on(&self, device: &str, name: &str, bytes: &str, second: u64) {
            self.write(name, bytes, second);
            self.contents.save(device, &self.at(name), name);
        }

        /// As a user deletes it.
        fn delete(&self, name: &str) {
            self.contents.give_up("a", self.root.path(), &self.at(name), name);
            fs::remove_file(self.at(name)).unwrap();
        }

        fn missing(&self) -> Vec<String> {
            names(&self.contents.missing("a", &Snapshot::take(self.root.path()).unwrap()))
        }
    }

    fn names(missing: &[Missing]) -> Vec<String> {
        let mut names: Vec<String> = missing.iter().map(|missing| missing.what.clone()).collect();
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
            tree.delete(name);
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
    fn copies_that_became_one_file_are_given_up_as_one_and_others_are_not() {
        let copied = |name: &str, name_on_c: &str| {
            let tree = Tree::new();
            tree.save("f", "bytes", 1);
            tree.save(name, "bytes", 2);
            tree.save_on("c", name_on_c, "bytes", 3);
            tree
        };
        let became_one = copied("copy", "copy");
        became_one.delete("copy");
        became_one.delete("f");
        assert_eq!(became_one.missing(), Vec::<String>::new());
        let lost_by_a_client = copied("copy", "copy");
        lost_by_a_client.delete("f");
        fs::remove_file(lost_by_a_client.at("copy")).unwrap();
        assert_eq!(lost_by_a_client.missing(), ["copy", "copy"], "nobody deleted it");
        let two = copied("copy", "copy on c");
        two.delete("f");
        two.delete("copy");
        fs::remove_file(two.at("copy on c")).unwrap();
        assert_eq!(two.missing(), ["copy on c"]);
        // Before either device heard of the other, a user gave one the name of the other.
        let renamed = copied("copy", "copy on c");
        renamed.delete("f");
        fs::rename(renamed.at("copy on c"), renamed.at("copy")).unwrap();
        renamed.contents.renamed(&renamed.at("copy"));
        renamed.delete("copy");
        assert_eq!(renamed.missing(), Vec::<String>::new());
    }

    #[test]
    fn what_was_given_up_before_it_was_noted_is_not_waited_for() {
        let tree = Tree::new();
        tree.write("f", "bytes", 1);
        tree.contents.give_up("b", tree.root.path(), &tree.at("f"), "f on b");
        tree.contents.save("a", &tree.at("f"), "f");
        assert_eq!(tree.contents.count(), 0);
        tree.contents.save("a", &tree.at("f"), "f");
        assert_eq!(tree.contents.count(), 1, "it was given up once");
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
            tree.contents.save_open("a", tree.root.path(), &tree.at(name), &mut file, name);
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
        tree.delete("f");
        assert_eq!(tree.missing(), Vec::<String>::new());
        fs::remove_file(tree.at("copy")).unwrap();
        assert_eq!(tree.missing(), ["copy"]);
        let tree = Tree::new();
        tree.save("f", "bytes", 1);
        fs::hard_link(tree.at("f"), tree.at("second")).unwrap();
        tree.contents.give_up("a", tree.root.path(), &tree.at("f"), "f");
        assert_eq!(tree.contents.count(), 1, "its second name is still there");
        fs::rename(tree.at("second"), tree.at(OWN_FOLDER).join("trash/second")).unwrap();
        tree.contents.give_up("a", tree.root.path(), &tree.at("f"), "f");
        assert_eq!(tree.contents.count(), 0, "that it is in the trash is no name");
    }

    #[test]
    fn what_stays_here_must_stay_here() {
        let tree = Tree::new();
        fs::write(tree.at("x.ignored"), "mine").unwrap();
        tree.contents.save_here("a", &tree.at("x.ignored"), "x");
        let take = || Snapshot::take(tree.root.path()).unwrap().without(&|name| name.ends_with(".ignored"));
        assert_eq!(names(&tree.contents.missing("a", &take())), Vec::<String>::new());
        fs::remove_file(tree.at("x.ignored")).unwrap();
        assert_eq!(names(&tree.contents.missing("a", &take())), ["x"]);
        assert_eq!(names(&tree.contents.missing("b", &take())), Vec::<String>::new());
    }
}
