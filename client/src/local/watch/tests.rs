//! That no change goes unnoticed.
#![cfg(target_os = "linux")]

use std::time::Duration;

use super::*;
use crate::local::scan::ScopeFolder;
use crate::local::testing::{TestRoot, rel};

const DEADLINE: Duration = Duration::from_secs(10);

/// Hints until all of `folders` were hinted at.
async fn until(watcher: &mut Watcher, folders: &[(&str, bool)]) -> Vec<ScopeFolder> {
    let mut left: Vec<ScopeFolder> =
        folders.iter().map(|(folder, deep)| ScopeFolder { folder: rel(folder), deep: *deep }).collect();
    let mut all = Vec::new();
    while !left.is_empty() {
        let notice = tokio::time::timeout(DEADLINE, watcher.next()).await;
        match notice.unwrap_or_else(|_| panic!("no hint at {left:?}, but at {all:?}")) {
            Some(Notice::Scan(Scope::Folders(folders))) => {
                left.retain(|folder| !folders.contains(folder));
                all.extend(folders);
            }
            other => panic!("{other:?}"),
        }
    }
    all
}

fn start(root: &TestRoot) -> Watcher {
    Watcher::start(root.root(), &Writers::default()).unwrap()
}

#[tokio::test]
async fn a_saved_file_is_hinted_at_once_it_is_quiet() {
    let root = TestRoot::new();
    std::fs::create_dir_all(root.dir().join("a/b")).unwrap();
    let mut watcher = start(&root);
    let unquiet = watcher.unquiet();
    for text in ["one", "two"] {
        let began = Instant::now();
        root.write("a/b/f", text);
        while !unquiet.contains(&rel("a/b/f")) {
            assert!(began.elapsed() < DEADLINE);
            tokio::task::yield_now().await;
        }
        let hinted = until(&mut watcher, &[("a/b", false)]).await;
        println!("hinted after {:?}", began.elapsed());
        assert!(began.elapsed() >= QUIET);
        assert_eq!(hinted.len(), 1);
        assert!(!unquiet.contains(&rel("a/b/f")));
    }
    watcher.stop().await;
}

#[tokio::test]
async fn what_happens_in_new_and_moved_folders_is_seen() {
    let root = TestRoot::new();
    std::fs::create_dir_all(root.dir().join("old/sub")).unwrap();
    let mut watcher = start(&root);
    std::fs::create_dir_all(root.dir().join("x/y/z")).unwrap();
    root.write("x/y/z/f", "early");
    until(&mut watcher, &[("x", true)]).await;
    root.write("x/y/z/f", "late");
    until(&mut watcher, &[("x/y/z", false)]).await;
    // Both ends in one hint; and what is below is watched under its new path.
    std::fs::rename(root.dir().join("old"), root.dir().join("x/new")).unwrap();
    let hinted = tokio::time::timeout(DEADLINE, watcher.next()).await.unwrap();
    let Some(Notice::Scan(Scope::Folders(folders))) = hinted else { panic!("{hinted:?}") };
    assert_eq!(folders, [("", false), ("x", false)].map(|(at, deep)| ScopeFolder { folder: rel(at), deep }));
    root.write("x/new/sub/f", "f");
    until(&mut watcher, &[("x/new/sub", false)]).await;
    std::fs::create_dir(root.dir().join("old")).unwrap();
    until(&mut watcher, &[("old", true)]).await;
    root.write("old/f", "f");
    until(&mut watcher, &[("old", false)]).await;
    watcher.stop().await;
}

#[tokio::test]
async fn a_folder_that_left_is_not_watched_any_more() {
    let root = TestRoot::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.dir().join("d/sub")).unwrap();
    let mut watcher = start(&root);
    std::fs::rename(root.dir().join("d"), outside.path().join("d")).unwrap();
    until(&mut watcher, &[("", false)]).await;
    std::fs::write(outside.path().join("d/sub/f"), "not ours").unwrap();
    root.write("f", "ours");
    let hinted = until(&mut watcher, &[("", false)]).await;
    assert_eq!(hinted.len(), 1, "{hinted:?}");
    std::fs::rename(outside.path().join("d"), root.dir().join("d")).unwrap();
    until(&mut watcher, &[("d", true), ("", false)]).await;
    root.write("d/sub/f", "ours again");
    until(&mut watcher, &[("d/sub", false)]).await;
    watcher.stop().await;
}

#[tokio::test]
async fn deletes_attributes_and_links_are_seen_and_the_state_is_not() {
    let root = TestRoot::new();
    root.write("f", "f");
    let mut watcher = start(&root);
    root.write(".keepstone/tmp/x", "not seen");
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(root.dir().join("f"), permissions).unwrap();
    assert_eq!(until(&mut watcher, &[("", false)]).await.len(), 1);
    std::fs::remove_file(root.dir().join("f")).unwrap();
    until(&mut watcher, &[("", false)]).await;
    std::os::unix::fs::symlink("x", root.dir().join("l")).unwrap();
    until(&mut watcher, &[("", false)]).await;
    // Reading is no change.
    assert!(std::fs::read_dir(root.dir()).unwrap().count() > 0);
    root.write(".keepstone/tmp/x", "not seen either");
    assert!(tokio::time::timeout(QUIET * 3, watcher.next()).await.is_err());
    watcher.stop().await;
}

#[tokio::test]
async fn a_root_that_goes_is_noticed() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("root");
    for way in ["move", "delete"] {
        std::fs::create_dir(&dir).unwrap();
        let root = TestRoot::at(&dir);
        let mut watcher = start(&root);
        if way == "move" {
            std::fs::rename(&dir, outer.path().join("moved")).unwrap();
        } else {
            std::fs::remove_dir_all(&dir).unwrap();
        }
        loop {
            match tokio::time::timeout(DEADLINE, watcher.next()).await.unwrap() {
                Some(Notice::RootGone) => break,
                Some(_) => {}
                None => panic!("{way}: ended without a word"),
            }
        }
        assert_eq!(watcher.next().await, None);
    }
}

#[tokio::test]
async fn hints_that_nobody_takes_are_put_together_and_not_lost() {
    let root = TestRoot::new();
    for at in 0..40 {
        std::fs::create_dir(root.dir().join(format!("d{at}"))).unwrap();
    }
    let mut watcher = start(&root);
    for at in 0..40 {
        root.write(&format!("d{at}/f"), "f");
        if at % 2 == 0 {
            tokio::time::sleep(QUIET).await;
        }
    }
    let all: Vec<(String, bool)> = (0..40).map(|at| (format!("d{at}"), false)).collect();
    let all: Vec<(&str, bool)> = all.iter().map(|(path, deep)| (path.as_str(), *deep)).collect();
    until(&mut watcher, &all).await;
    watcher.stop().await;
}

#[tokio::test]
async fn lost_events_become_a_scan_of_everything_and_what_came_then_is_watched() {
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let root = TestRoot::new();
    let mut watcher = start(&root);
    // The watcher cannot read while this thread does not wait: it runs on the test's runtime. Each file made is two
    // events at least.
    for at in 0..=limit / 2 {
        root.write(&format!("f{at}"), "");
    }
    std::fs::create_dir_all(root.dir().join("late/sub")).unwrap();
    loop {
        match tokio::time::timeout(DEADLINE, watcher.next()).await.unwrap() {
            Some(Notice::Scan(Scope::Whole)) => break,
            Some(Notice::Scan(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    root.write("late/sub/f", "f");
    until(&mut watcher, &[("late/sub", false)]).await;
    watcher.stop().await;
}

/// Writes into folders, one after the other: each is hinted at under its own path.
async fn assert_heard(watcher: &mut Watcher, root: &TestRoot, folders: &[&str]) {
    for folder in folders {
        root.write(&format!("{folder}/f"), "f");
        until(watcher, &[(*folder, false)]).await;
    }
}

/// Rounds of the tests below. What they do to folders in one round is read at once: see the test before.
const MOVES: usize = 5;

#[tokio::test]
async fn a_folder_that_takes_the_place_of_one_that_left_is_watched() {
    let root = TestRoot::new();
    let outside = tempfile::tempdir().unwrap();
    for at in 0..MOVES {
        std::fs::create_dir_all(root.dir().join(format!("p{at}/sub"))).unwrap();
        std::fs::create_dir_all(root.dir().join(format!("q{at}/sub"))).unwrap();
        std::fs::create_dir_all(outside.path().join(format!("new{at}/sub"))).unwrap();
    }
    let mut watcher = start(&root);
    for at in 0..MOVES {
        let (p, q) = (format!("p{at}"), format!("q{at}"));
        let (p, q, q_sub) = (p.as_str(), q.as_str(), format!("{q}/sub"));
        std::fs::rename(root.dir().join(p), outside.path().join(p)).unwrap();
        std::fs::create_dir(root.dir().join(p)).unwrap();
        until(&mut watcher, &[(p, true)]).await;
        assert_heard(&mut watcher, &root, &[p]).await;
        std::fs::rename(root.dir().join(q), outside.path().join(q)).unwrap();
        std::fs::rename(outside.path().join(format!("new{at}")), root.dir().join(q)).unwrap();
        until(&mut watcher, &[(q, true)]).await;
        assert_heard(&mut watcher, &root, &[q, q_sub.as_str()]).await;
        // Nobody hears what left.
        std::fs::write(outside.path().join(&q_sub).join("f"), "not ours").unwrap();
        root.write("f", "ours");
        let hinted = until(&mut watcher, &[("", false)]).await;
        assert_eq!(hinted.len(), 1, "{hinted:?}");
    }
    watcher.stop().await;
}

#[tokio::test]
async fn folders_that_change_places_are_watched_under_their_new_paths() {
    let root = TestRoot::new();
    std::fs::create_dir_all(root.dir().join("a/one")).unwrap();
    std::fs::create_dir_all(root.dir().join("in/b/two")).unwrap();
    let mut watcher = start(&root);
    let swap = |one: &str, other: &str| {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        let (one, other) = (root.dir().join(one), root.dir().join(other));
        rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags).unwrap();
    };
    for _ in 0..MOVES {
        swap("a", "in/b");
        until(&mut watcher, &[("", false), ("in", false)]).await;
        assert_heard(&mut watcher, &root, &["a", "a/two", "in/b", "in/b/one"]).await;
        swap("in/b", "a");
        until(&mut watcher, &[("", false), ("in", false)]).await;
        assert_heard(&mut watcher, &root, &["in/b/two", "a/one", "in/b", "a"]).await;
    }
    // Three in a ring.
    std::fs::create_dir_all(root.dir().join("c/three")).unwrap();
    until(&mut watcher, &[("c", true)]).await;
    swap("a", "in/b");
    swap("in/b", "c");
    until(&mut watcher, &[("", false), ("in", false)]).await;
    assert_heard(&mut watcher, &root, &["a/two", "in/b/three", "c/one", "a", "in/b", "c"]).await;
    watcher.stop().await;
}

#[tokio::test]
async fn a_folder_and_a_file_that_change_places_leave_the_folder_watched() {
    let root = TestRoot::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.dir().join("in")).unwrap();
    std::fs::create_dir_all(root.dir().join("a/one")).unwrap();
    root.write("in/b", "file");
    let mut watcher = start(&root);
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    let (one, other) = (root.dir().join("a"), root.dir().join("in/b"));
    rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags).unwrap();
    until(&mut watcher, &[("", false), ("in", false)]).await;
    assert_heard(&mut watcher, &root, &["in/b", "in/b/one"]).await;
    // It is known where it is: once it leaves, nobody hears it.
    std::fs::rename(root.dir().join("in/b"), outside.path().join("b")).unwrap();
    until(&mut watcher, &[("in", false)]).await;
    std::fs::write(outside.path().join("b/one/f"), "not ours").unwrap();
    root.write("f", "ours");
    let hinted = until(&mut watcher, &[("", false)]).await;
    assert_eq!(hinted.len(), 1, "{hinted:?}");
    watcher.stop().await;
}

#[tokio::test]
async fn a_new_folder_that_moves_and_has_a_successor_is_watched_as_that_is() {
    let root = TestRoot::new();
    let mut watcher = start(&root);
    for at in 0..MOVES {
        let (n, m) = (format!("n{at}"), format!("m{at}"));
        std::fs::create_dir_all(root.dir().join(&n).join("one")).unwrap();
        std::fs::rename(root.dir().join(&n), root.dir().join(&m)).unwrap();
        std::fs::create_dir_all(root.dir().join(&n).join("two")).unwrap();
        let (m_one, n_two) = (format!("{m}/one"), format!("{n}/two"));
        let (m, n) = (m.as_str(), n.as_str());
        until(&mut watcher, &[(m, true), (n, true)]).await;
        assert_heard(&mut watcher, &root, &[m, n, m_one.as_str(), n_two.as_str()]).await;
    }
    watcher.stop().await;
}

#[tokio::test]
async fn a_new_folder_is_watched_though_the_one_around_it_moves_at_once() {
    let root = TestRoot::new();
    for at in 0..MOVES {
        std::fs::create_dir_all(root.dir().join(format!("a{at}"))).unwrap();
    }
    let mut watcher = start(&root);
    for at in 0..MOVES {
        let (a, b) = (format!("a{at}"), format!("b{at}"));
        std::fs::create_dir_all(root.dir().join(&a).join("n/sub")).unwrap();
        std::fs::rename(root.dir().join(&a), root.dir().join(&b)).unwrap();
        std::fs::create_dir_all(root.dir().join(&a).join("n")).unwrap();
        let (in_a, in_b, sub) = (format!("{a}/n"), format!("{b}/n"), format!("{b}/n/sub"));
        until(&mut watcher, &[(a.as_str(), true), (in_b.as_str(), true)]).await;
        let folders = [&in_a, &in_b, &sub, &a, &b].map(|folder| folder.as_str());
        assert_heard(&mut watcher, &root, &folders).await;
    }
    watcher.stop().await;
}

#[tokio::test]
async fn what_was_written_is_stale_where_it_is_by_now() {
    let root = TestRoot::new();
    for name in ["written", "made", "touched", "folder/moved", "deleted"] {
        std::fs::create_dir_all(root.dir().join("folder")).unwrap();
        root.write(name, "old");
    }
    let writers = Writers::default();
    let watcher = Watcher::start(root.root(), &writers).unwrap();
    for name in ["written", "folder/moved", "deleted"] {
        root.write(name, "new");
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(root.dir().join("touched"), mode).unwrap();
    std::fs::remove_file(root.dir().join("deleted")).unwrap();
    for (from, to) in [("made", "moved"), ("folder", "elsewhere")] {
        std::fs::rename(root.dir().join(from), root.dir().join(to)).unwrap();
    }
    // The last that was done: all else was told of before.
    let began = Instant::now();
    while !writers.is_stale(&rel("elsewhere/moved")) {
        assert!(began.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let all = ["written", "elsewhere/moved", "folder/moved", "moved", "touched", "deleted"];
    assert_eq!(all.map(|name| writers.is_stale(&rel(name))), [true, true, false, false, false, false]);
    watcher.stop().await;
}
