//! That a scan finds what is on disk, whatever was done to it, and which node each thing is.

mod ignored;
mod links;
mod names;
mod random;
mod written;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::*;
use crate::local::model::LocalRecord;
use crate::local::testing::{MemoryIndex, TestRoot, as_another_user, rel};
use crate::planner::model::{Kind, NodeId};

/// Scans until a stamp can be relied on take as many tries as this at most, with a pause between them.
const TRIES_MAX: usize = 200;
const PAUSE: Duration = Duration::from_millis(5);

fn options() -> ScanOptions {
    let mut options = ScanOptions::new(IgnoreRules, CancellationToken::new());
    options.empty_allowed = true;
    options
}

fn take_in(root: &TestRoot, index: &mut MemoryIndex, scope: &Scope) -> Scan {
    let found = scan(root, index, scope, &options()).unwrap();
    index.apply(&found.updates);
    found
}

fn whole(root: &TestRoot, index: &mut MemoryIndex) -> Scan {
    take_in(root, index, &Scope::Whole)
}

/// Scans until nothing is left to be looked at again.
fn settle(root: &TestRoot, index: &mut MemoryIndex) -> Scan {
    for _ in 0..TRIES_MAX {
        let found = whole(root, index);
        if found.again.is_empty() {
            return found;
        }
        std::thread::sleep(PAUSE);
    }
    panic!("the folder does not get quiet");
}

fn shallow(paths: &[&str]) -> Scope {
    Scope::Folders(paths.iter().map(|path| ScopeFolder { folder: rel(path), deep: false }).collect())
}

/// A root with some things in it, known.
fn known() -> (TestRoot, MemoryIndex) {
    let root = TestRoot::new();
    for folder in ["a/sub", "b"] {
        std::fs::create_dir_all(root.dir().join(folder)).unwrap();
    }
    for (path, text) in [("f", "f"), ("g", "gg"), ("a/f", "aaa"), ("a/sub/f", "ssss"), ("b/f", "bbbbb")] {
        root.write(path, text);
    }
    std::os::unix::fs::symlink("f", root.dir().join("l")).unwrap();
    let mut index = MemoryIndex::default();
    settle(&root, &mut index);
    (root, index)
}

fn node(index: &MemoryIndex, path: &str) -> NodeId {
    index.find(path).unwrap_or_else(|| panic!("nothing is known at {path}")).node
}

fn rename(root: &TestRoot, from: &str, to: &str) {
    std::fs::rename(root.dir().join(from), root.dir().join(to)).unwrap();
}

fn gone(found: &Scan) -> usize {
    found.updates.iter().filter(|update| matches!(update, LocalUpdate::Gone(_))).count()
}

#[test]
fn what_has_not_changed_is_neither_read_nor_said() {
    let (root, mut index) = known();
    let found = whole(&root, &mut index);
    assert_eq!(found.updates, []);
    assert_eq!((found.counts.hashed, found.counts.files, found.counts.folders), (0, 6, 4));
    assert!(found.complete && found.skipped.is_empty());
    // Of another folder nothing is said.
    root.write("a/new", "new");
    assert_eq!(take_in(&root, &mut index, &shallow(&["b", ""])).updates, []);
    assert_eq!(take_in(&root, &mut index, &shallow(&["a"])).updates.len(), 1);
}

#[test]
fn moved_files_and_folders_stay_the_nodes_they_were() {
    let (root, mut index) = known();
    let nodes = ["a", "a/sub", "a/sub/f", "f", "l"].map(|path| node(&index, path));
    rename(&root, "a", "b/moved");
    rename(&root, "f", "b/moved/sub/file");
    rename(&root, "l", "link");
    let found = whole(&root, &mut index);
    let now = ["b/moved", "b/moved/sub", "b/moved/sub/f", "b/moved/sub/file", "link"];
    assert_eq!(now.map(|path| node(&index, path)), nodes);
    assert_eq!(gone(&found), 0);
    assert_eq!(found.counts.hashed, 2, "the moved file and link, for a rename changes their stamp");
    assert_eq!(found.updates.len(), 3, "a moved folder is one update");
    assert_eq!(found.left, [rel("a")]);
    std::fs::remove_dir_all(root.dir().join("b")).unwrap();
    assert_eq!(whole(&root, &mut index).left, [rel("b")], "not what was in it");
}

#[test]
fn a_file_moved_and_edited_at_once_stays_the_node_it_was() {
    let (root, mut index) = known();
    let before = node(&index, "g");
    rename(&root, "g", "b/h");
    root.write("b/h", "edited after the move");
    let found = whole(&root, &mut index);
    assert_eq!(node(&index, "b/h"), before);
    assert_eq!(gone(&found), 0);
}

#[test]
fn an_editor_that_saves_by_renaming_edits() {
    let (root, mut index) = known();
    let before = node(&index, "f");
    root.write("f.tmp123", "saved");
    // The scan may have seen the file under its first name.
    whole(&root, &mut index);
    let temporary = node(&index, "f.tmp123");
    rename(&root, "f.tmp123", "f");
    let found = whole(&root, &mut index);
    assert_eq!(node(&index, "f"), before);
    assert!(found.updates.contains(&LocalUpdate::Gone(temporary)));
    // And with a backup by renaming, as vim and emacs do it: the backup is a new file.
    rename(&root, "f", "f~");
    root.write("f", "saved again");
    let found = whole(&root, &mut index);
    assert_eq!(node(&index, "f"), before);
    assert_eq!((gone(&found), found.counts.ignored), (0, 0));
    assert!(index.find("f~").is_some_and(|backup| backup.node != before));
}

#[test]
fn swaps_and_rings_are_moves() {
    let (root, mut index) = known();
    let nodes = ["f", "g", "a/f"].map(|path| node(&index, path));
    rename(&root, "f", "x");
    rename(&root, "g", "f");
    rename(&root, "a/f", "g");
    rename(&root, "x", "a/f");
    assert_eq!(gone(&whole(&root, &mut index)), 0);
    assert_eq!(["a/f", "f", "g"].map(|path| node(&index, path)), nodes);
    let folders = ["a", "b", "a/sub"].map(|path| node(&index, path));
    rename(&root, "a", "x");
    rename(&root, "b", "a");
    rename(&root, "x", "b");
    assert_eq!(gone(&whole(&root, &mut index)), 0);
    assert_eq!(["b", "a", "b/sub"].map(|path| node(&index, path)), folders);
}

#[test]
fn a_chain_of_renames_over_one_another_edits_the_last_and_loses_none() {
    let (root, mut index) = known();
    let (f, g) = (node(&index, "f"), node(&index, "g"));
    rename(&root, "g", "f");
    rename(&root, "a/f", "g");
    whole(&root, &mut index);
    assert_eq!((node(&index, "f"), node(&index, "g")), (f, g));
    assert_eq!(index.find("a/f"), None);
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
}

#[test]
fn a_folder_turned_inside_out_is_moves() {
    let (root, mut index) = known();
    let (a, sub, file) = (node(&index, "a"), node(&index, "a/sub"), node(&index, "a/f"));
    rename(&root, "a/sub", "x");
    rename(&root, "a", "x/a");
    assert_eq!(gone(&whole(&root, &mut index)), 0);
    assert_eq!((node(&index, "x"), node(&index, "x/a"), node(&index, "x/a/f")), (sub, a, file));
}

#[test]
fn a_folder_renamed_away_and_made_anew_is_a_move_and_a_new_one() {
    let (root, mut index) = known();
    let (a, file) = (node(&index, "a"), node(&index, "a/sub/f"));
    rename(&root, "a", "b/old");
    std::fs::create_dir(root.dir().join("a")).unwrap();
    root.write("a/f", "another");
    assert_eq!(gone(&whole(&root, &mut index)), 0);
    assert_eq!((node(&index, "b/old"), node(&index, "b/old/sub/f")), (a, file));
    assert_ne!(node(&index, "a"), a);
}

#[test]
fn kinds_that_change_are_new_nodes() {
    let (root, mut index) = known();
    let before = ["f", "a", "l"].map(|path| node(&index, path));
    std::fs::remove_file(root.dir().join("f")).unwrap();
    std::fs::create_dir(root.dir().join("f")).unwrap();
    root.write("f/inner", "inner");
    std::fs::remove_dir_all(root.dir().join("a")).unwrap();
    root.write("a", "a file");
    std::fs::remove_file(root.dir().join("l")).unwrap();
    root.write("l", "a file too");
    let found = whole(&root, &mut index);
    for node in before {
        assert!(found.updates.contains(&LocalUpdate::Gone(node)));
    }
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
}

#[test]
fn an_inode_that_was_given_anew_is_not_the_old_file() {
    let (root, mut index) = known();
    let before = node(&index, "f");
    let time = std::fs::metadata(root.dir().join("f")).unwrap().modified().unwrap();
    // Many, so that one gets the inode of the one that was removed; of one size and time with it.
    std::fs::remove_file(root.dir().join("f")).unwrap();
    for at in 0..50 {
        let file = std::fs::File::create(root.dir().join(format!("b/new{at}"))).unwrap();
        std::io::Write::write_all(&mut &file, b"x").unwrap();
        file.set_modified(time).unwrap();
    }
    let found = whole(&root, &mut index);
    assert!(found.updates.contains(&LocalUpdate::Gone(before)));
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
}

#[test]
fn two_names_of_one_file_are_two_nodes() {
    let (root, mut index) = known();
    let before = node(&index, "f");
    std::fs::hard_link(root.dir().join("f"), root.dir().join("b/linked")).unwrap();
    settle(&root, &mut index);
    let linked = node(&index, "b/linked");
    assert_eq!(node(&index, "f"), before);
    assert_ne!(linked, before);
    root.write("f", "edited through one name");
    settle(&root, &mut index);
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
    std::fs::rename(root.dir().join("b/linked"), root.dir().join("a/linked")).unwrap();
    settle(&root, &mut index);
    assert_eq!((node(&index, "f"), node(&index, "a/linked")), (before, linked));
}

#[test]
fn a_file_that_came_back_elsewhere_with_its_content_was_moved() {
    let (root, mut index) = known();
    let (unique, moved) = (node(&index, "b/f"), node(&index, "a/sub/f"));
    // As from another file system: copied, and the old one deleted.
    std::fs::copy(root.dir().join("b/f"), root.dir().join("copied")).unwrap();
    std::fs::remove_file(root.dir().join("b/f")).unwrap();
    std::fs::create_dir(root.dir().join("restored")).unwrap();
    std::fs::copy(root.dir().join("a/sub/f"), root.dir().join("restored/f")).unwrap();
    std::fs::remove_dir_all(root.dir().join("a/sub")).unwrap();
    whole(&root, &mut index);
    assert_eq!(node(&index, "copied"), unique);
    assert_eq!(node(&index, "restored/f"), moved, "also out of a folder that is gone");
    // Two candidates: which one it was cannot be known.
    root.write("one", "same");
    root.write("two", "same");
    whole(&root, &mut index);
    for path in ["one", "two"] {
        std::fs::remove_file(root.dir().join(path)).unwrap();
    }
    root.write("three", "same");
    assert_eq!(gone(&whole(&root, &mut index)), 2);
}

#[test]
fn what_cannot_be_synchronised_is_skipped_with_a_reason_and_said_to_be_gone_by_nobody() {
    use std::os::unix::ffi::OsStrExt;
    let (root, mut index) = known();
    let known_before = node(&index, "f");
    std::fs::write(root.dir().join(std::ffi::OsStr::from_bytes(b"a/\xff\xfe")), "x").unwrap();
    std::fs::remove_file(root.dir().join("f")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.dir().join("f"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    std::fs::create_dir_all(root.dir().join("nested/.keepstone")).unwrap();
    std::fs::write(root.dir().join("nested/.keepstone/root"), "another root").unwrap();
    root.write("nested/f", "belongs to the other root");
    let found = whole(&root, &mut index);
    let mut why: Vec<_> = found.skipped.iter().map(|skipped| skipped.why.clone()).collect();
    why.sort_by_key(|why| format!("{why:?}"));
    assert_eq!(why, [Why::NameNotUtf8, Why::OtherRoot, Why::Special]);
    assert!(found.complete);
    assert_eq!((gone(&found), node(&index, "f")), (0, known_before));
    assert_eq!(index.find("nested/f"), None);
}

#[test]
fn ignored_files_are_left_out_until_the_rules_change() {
    let (root, mut index) = known();
    root.write("a/sub/x.log", "log");
    root.write("a/sub/x", "x");
    root.write("a/sub/.x.swp", "never");
    root.write(".keepstoneignore", "*.log\n/b\n");
    let found = whole(&root, &mut index);
    assert_eq!(found.counts.ignored, 2);
    assert_eq!(index.find("a/sub/x.log"), None);
    assert!(index.find("b/f").is_some(), "what is synchronised already stays so");
    root.write("b/new", "in an ignored folder");
    whole(&root, &mut index);
    assert!(index.find("b/new").is_none() && index.find("b/f").is_some());
    // A hint at the rules alone is enough to find, at any depth, what they let in.
    root.write(".keepstoneignore", "# none\n");
    take_in(&root, &mut index, &shallow(&[""]));
    assert!(index.find("a/sub/x.log").is_some());
    assert_eq!(index.find("a/sub/.x.swp"), None);
}

#[test]
fn a_scope_that_is_not_there_stands_for_what_was_around_it() {
    let (root, mut index) = known();
    let a = node(&index, "a");
    rename(&root, "a", "b/a");
    std::fs::create_dir_all(root.dir().join("n/e/w")).unwrap();
    root.write("n/e/w/f", "new");
    take_in(&root, &mut index, &shallow(&["a/sub", "b", "n/e/w"]));
    assert_eq!(node(&index, "b/a"), a);
    assert!(index.find("n/e/w/f").is_some());
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
    // Another folder at the place that was asked for.
    rename(&root, "b/a/sub", "b/a/old");
    std::fs::create_dir(root.dir().join("b/a/sub")).unwrap();
    root.write("b/a/sub/g", "g");
    take_in(&root, &mut index, &shallow(&["b/a/sub"]));
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
}

#[test]
fn modes_and_times_are_seen_and_a_touched_file_keeps_its_content() {
    let (root, mut index) = known();
    let before = index.find("g").unwrap();
    std::fs::set_permissions(root.dir().join("a"), PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::set_permissions(root.dir().join("g"), PermissionsExt::from_mode(0o640)).unwrap();
    std::fs::File::open(root.dir().join("f")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let found = whole(&root, &mut index);
    assert_eq!(found.updates.len(), 3);
    let after = index.find("g").unwrap();
    assert_eq!((after.node, &after.kind, after.attributes.mode), (before.node, &before.kind, 0o640));
    assert_eq!(index.find("a").unwrap().attributes.mode, 0o700);
    assert_eq!(index.find("f").unwrap().attributes.mtime_ns, 0);
}

#[test]
fn a_file_that_is_written_while_it_is_read_is_left_for_later() {
    let (root, mut index) = known();
    let before: LocalRecord = index.find("f").unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut left = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut length = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                // It grows and shrinks.
                length = (length * 7 + 1) % 3_000_001;
                let file = std::fs::OpenOptions::new().write(true).open(root.dir().join("f")).unwrap();
                file.set_len(length).unwrap();
            }
        });
        for _ in 0..200 {
            let found = whole(&root, &mut index);
            assert_eq!(gone(&found), 0);
            if found.skipped.iter().any(|skipped| skipped.why == Why::StillChanging) {
                assert!(found.again.contains(&ScopeFolder { folder: Rel::root(), deep: false }));
                left += 1;
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(left > 0, "the file was never caught changing");
    settle(&root, &mut index);
    assert_eq!(node(&index, "f"), before.node);
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
}

#[test]
fn a_file_the_watcher_calls_unquiet_is_left_for_later() {
    let (root, mut index) = known();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let watcher = crate::local::watch::Watcher::start(root.root(), &Default::default()).unwrap();
        let options = ScanOptions { unquiet: Some(watcher.unquiet()), ..options() };
        let began = Instant::now();
        root.write("f", "being written");
        while !watcher.unquiet().contains(&rel("f")) {
            assert!(began.elapsed() < Duration::from_secs(10));
        }
        let found = scan(&root, &mut index, &Scope::Whole, &options).unwrap();
        if watcher.unquiet().contains(&rel("f")) {
            assert_eq!(found.updates, []);
            assert_eq!(found.skipped[0].why, Why::StillChanging);
        }
        watcher.stop().await;
    });
}

#[test]
fn a_root_that_was_emptied_is_believed_only_once_that_is_confirmed() {
    let (root, mut index) = known();
    for name in ["a", "b"] {
        std::fs::remove_dir_all(root.dir().join(name)).unwrap();
    }
    for name in ["f", "g", "l"] {
        std::fs::remove_file(root.dir().join(name)).unwrap();
    }
    let unconfirmed = ScanOptions { empty_allowed: false, ..options() };
    for scope in [Scope::Whole, Scope::Folders(vec![ScopeFolder { folder: Rel::root(), deep: false }])] {
        let refused = scan(&root, &mut index, &scope, &unconfirmed);
        assert!(matches!(refused, Err(ScanError::Root(RootError::Empty(_)))), "{refused:?}");
    }
    settle(&root, &mut index);
    assert_eq!(random::known_paths(&index), random::disk(&root.dir()));
    // There is nothing to lose any more.
    scan(&root, &mut index, &Scope::Whole, &unconfirmed).unwrap();
}

#[test]
fn a_time_in_the_future_does_not_keep_a_file_fresh() {
    let (root, mut index) = known();
    let file = std::fs::File::options().write(true).open(root.dir().join("f")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(4_102_444_800)).unwrap();
    // It gets quiet, and is not read again.
    settle(&root, &mut index);
    assert_eq!(whole(&root, &mut index).counts.hashed, 0);
}

#[test]
fn a_root_that_is_not_what_it_was_is_not_scanned() {
    let (root, mut index) = known();
    std::fs::remove_file(root.dir().join(".keepstone/root")).unwrap();
    let refused = scan(&root, &mut index, &Scope::Whole, &options());
    assert!(matches!(refused, Err(ScanError::Root(RootError::MarkerMissing(_)))));
}

#[test]
fn a_stopped_scan_says_nothing() {
    let (root, mut index) = known();
    let options = options();
    options.stop.cancel();
    assert!(matches!(scan(&root, &mut index, &Scope::Whole, &options), Err(ScanError::Stopped)));
}

#[test]
fn another_file_system_below_is_skipped() {
    let (root, mut index) = known();
    let below = node(&index, "b/f");
    let mount = |args: &[&str]| {
        let at = root.dir().join("b");
        std::process::Command::new("mount").args(args).arg(at).status().is_ok_and(|status| status.success())
    };
    let umount = || {
        assert!(std::process::Command::new("umount").arg(root.dir().join("b")).status().unwrap().success());
    };
    let a = root.dir().join("a");
    for args in [["-t", "tmpfs", "tmpfs"].as_slice(), &["--bind", a.to_str().unwrap()]] {
        if !mount(args) {
            println!("not allowed to mount: only root can try");
            return;
        }
        let found = scan(&root, &mut index, &Scope::Whole, &options());
        umount();
        let found = found.unwrap();
        assert_eq!(found.skipped.iter().map(|skipped| &skipped.why).collect::<Vec<_>>(), [&Why::MountPoint]);
        assert_eq!(found.updates, []);
        assert_eq!(node(&index, "b/f"), below);
    }
}

#[test]
fn a_place_that_cannot_be_looked_at_any_more_ends_no_scan() {
    if !as_another_user("local::scan::tests::a_place_that_cannot_be_looked_at_any_more_ends_no_scan") {
        return;
    }
    let (root, mut index) = known();
    let set = |path: &str, mode| {
        std::fs::set_permissions(root.dir().join(path), PermissionsExt::from_mode(mode)).unwrap();
    };
    // Moved out of a folder that then may not be entered: what it was is known by its inode.
    let before = ["a/sub", "a/sub/f", "a/f"].map(|path| node(&index, path));
    rename(&root, "a/sub", "b/sub");
    rename(&root, "a/f", "b/moved");
    set("a", 0o000);
    let found = whole(&root, &mut index);
    assert_eq!(["b/sub", "b/sub/f", "b/moved"].map(|path| node(&index, path)), before);
    assert_eq!((gone(&found), found.complete), (0, false));
    set("a", 0o755);
    settle(&root, &mut index);
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
    // Below a folder that may be entered and not read, whose rules cannot be told.
    set("b", 0o311);
    let found = take_in(&root, &mut index, &shallow(&["b/sub", ""]));
    assert_eq!((gone(&found), found.complete), (0, false));
    assert_eq!(found.skipped, [Skipped { path: "b/sub".to_owned(), why: Why::Unreadable }]);
    set("b", 0o755);
}

#[test]
fn what_may_not_be_read_is_not_gone() {
    if !as_another_user("local::scan::tests::what_may_not_be_read_is_not_gone") {
        return;
    }
    let (root, mut index) = known();
    let set = |path: &str, mode| {
        std::fs::set_permissions(root.dir().join(path), PermissionsExt::from_mode(mode)).unwrap();
    };
    let inside = node(&index, "a/sub/f");
    std::fs::remove_file(root.dir().join("b/f")).unwrap();
    set("a", 0o000);
    let found = whole(&root, &mut index);
    assert!(!found.complete);
    assert_eq!((gone(&found), node(&index, "a/sub/f")), (1, inside), "b/f is gone whatever a holds");
    assert_eq!(found.unread.values().copied().collect::<Vec<_>>(), [node(&index, "a")]);
    assert_eq!(found.skipped, [Skipped { path: "a".to_owned(), why: Why::Unreadable }]);
    // Read but not entered.
    set("a", 0o400);
    assert!(!whole(&root, &mut index).complete);
    set("a", 0o755);
    root.write("g", "edited, and not to be read");
    set("g", 0o000);
    let found = whole(&root, &mut index);
    assert_eq!(gone(&found), 0);
    assert!(found.complete);
    assert_eq!(found.skipped, [Skipped { path: "g".to_owned(), why: Why::Unreadable }]);
    assert!(matches!(&index.find("g").unwrap().kind, Kind::File(file) if file.size == 2));
    // Moved and not to be read: where it is, as it was known.
    let g = node(&index, "g");
    rename(&root, "g", "h");
    whole(&root, &mut index);
    assert_eq!(node(&index, "h"), g);
    set("h", 0o644);
    settle(&root, &mut index);
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
    // A new folder that may not be read is no loss.
    std::fs::create_dir(root.dir().join("new")).unwrap();
    set("new", 0o000);
    let found = whole(&root, &mut index);
    assert!(found.complete);
    assert_eq!(index.find("new"), None);
    set("new", 0o755);
}
