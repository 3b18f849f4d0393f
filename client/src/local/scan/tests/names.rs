//! That what is known and gets a name which cannot be sent is not gone, and is what it was once it has a good one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::*;

fn bad(root: &TestRoot, folder: &str) -> PathBuf {
    root.dir().join(folder).join(OsStr::from_bytes(b"bad\xff"))
}

fn skipped(found: &Scan) -> Vec<(&str, &Why)> {
    found.skipped.iter().map(|skipped| (skipped.path.as_str(), &skipped.why)).collect()
}

fn held_not_utf8() -> Why {
    Why::Held(Why::NameNotUtf8.to_string())
}

/// Scans, with what earlier scans with these options have kept.
fn look(root: &TestRoot, index: &mut MemoryIndex, scope: &Scope, options: &ScanOptions) -> Scan {
    let found = scan(root, index, scope, options).unwrap();
    index.apply(&found.updates);
    found
}

#[test]
fn a_known_file_with_a_name_that_cannot_be_sent_is_not_gone() {
    let (root, mut index) = known();
    let held = held_not_utf8();
    let before = index.find("a/f").unwrap();
    std::fs::rename(root.dir().join("a/f"), bad(&root, "a")).unwrap();
    for scope in [Scope::Whole, shallow(&["a"]), Scope::Whole] {
        let found = take_in(&root, &mut index, &scope);
        assert_eq!(found.updates, []);
        assert_eq!(skipped(&found), [("a/bad\u{fffd}", &held)]);
        assert!(found.complete);
    }
    assert_eq!(index.find("a/f").as_ref(), Some(&before));
    std::fs::rename(bad(&root, "a"), root.dir().join("b/good")).unwrap();
    let found = whole(&root, &mut index);
    assert_eq!((node(&index, "b/good"), gone(&found), skipped(&found)), (before.node, 0, vec![]));
    // Deleted under such a name.
    std::fs::rename(root.dir().join("b/good"), bad(&root, "")).unwrap();
    let found = whole(&root, &mut index);
    assert_eq!((gone(&found), skipped(&found)), (0, vec![("bad\u{fffd}", &held)]));
    std::fs::remove_file(bad(&root, "")).unwrap();
    assert_eq!(whole(&root, &mut index).updates, [LocalUpdate::Gone(before.node)]);
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
}

#[test]
fn nothing_in_a_known_folder_with_such_a_name_is_gone() {
    let (root, mut index) = known();
    let held = held_not_utf8();
    let paths = ["a", "a/f", "a/sub", "a/sub/f"];
    let nodes = paths.map(|path| node(&index, path));
    let options = options();
    std::fs::rename(root.dir().join("a"), bad(&root, "b")).unwrap();
    // Also by scans of where it was alone.
    for scope in [Scope::Whole, shallow(&[""]), shallow(&["a/sub"]), Scope::Whole] {
        let found = look(&root, &mut index, &scope, &options);
        assert_eq!(found.updates, [], "{scope:?}");
        assert_eq!(skipped(&found), [("b/bad\u{fffd}", &held)], "{scope:?}");
    }
    assert_eq!(paths.map(|path| node(&index, path)), nodes);
    // What leaves it has moved.
    std::fs::rename(bad(&root, "b").join("f"), root.dir().join("out")).unwrap();
    assert_eq!(gone(&look(&root, &mut index, &Scope::Whole, &options)), 0);
    assert_eq!(node(&index, "out"), nodes[1]);
    settle(&root, &mut index);
    std::fs::rename(bad(&root, "b"), root.dir().join("b/good")).unwrap();
    let found = look(&root, &mut index, &Scope::Whole, &options);
    assert_eq!((found.updates.len(), gone(&found)), (1, 0), "a moved folder is one update");
    assert_eq!(["b/good", "out", "b/good/sub", "b/good/sub/f"].map(|path| node(&index, path)), nodes);
    // Deleted under such a name.
    std::fs::rename(root.dir().join("b/good"), bad(&root, "")).unwrap();
    assert_eq!(look(&root, &mut index, &Scope::Whole, &options).updates, []);
    std::fs::remove_dir_all(bad(&root, "")).unwrap();
    assert_eq!(look(&root, &mut index, &Scope::Whole, &options).updates, [LocalUpdate::Gone(nodes[0])]);
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
}

#[test]
fn a_folder_that_is_deleted_does_not_take_along_what_left_it_for_such_a_name() {
    let (root, mut index) = known();
    let (left, other) = (node(&index, "a/sub/f"), node(&index, "a/f"));
    std::fs::rename(root.dir().join("a/sub/f"), bad(&root, "")).unwrap();
    std::fs::remove_dir_all(root.dir().join("a")).unwrap();
    assert_eq!(whole(&root, &mut index).updates, [LocalUpdate::Gone(other)]);
    assert_eq!(node(&index, "a/sub/f"), left);
    std::fs::rename(bad(&root, ""), root.dir().join("good")).unwrap();
    whole(&root, &mut index);
    assert_eq!(node(&index, "good"), left);
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
}

#[test]
fn what_comes_to_the_place_of_what_is_held_waits_and_is_not_gone_either() {
    let (root, mut index) = known();
    let held = held_not_utf8();
    let (a, b, file) = (node(&index, "a"), node(&index, "b"), node(&index, "b/f"));
    std::fs::rename(root.dir().join("a"), bad(&root, "")).unwrap();
    rename(&root, "b", "a");
    let found = whole(&root, &mut index);
    assert_eq!(found.updates, []);
    assert_eq!(skipped(&found), [("bad\u{fffd}", &held), ("a", &Why::InsteadOfHeld)]);
    std::fs::rename(bad(&root, ""), root.dir().join("c")).unwrap();
    assert_eq!(gone(&whole(&root, &mut index)), 0);
    assert_eq!(["c", "a", "a/f"].map(|path| node(&index, path)), [a, b, file]);
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
}

#[test]
fn a_backup_with_such_a_name_is_not_what_is_in_sync() {
    let (root, mut index) = known();
    let before = node(&index, "f");
    std::fs::rename(root.dir().join("f"), bad(&root, "")).unwrap();
    root.write("f", "saved in its place");
    let found = whole(&root, &mut index);
    assert_eq!((node(&index, "f"), gone(&found)), (before, 0));
    assert_eq!(skipped(&found), [("bad\u{fffd}", &Why::NameNotUtf8)]);
}

#[test]
fn a_known_file_whose_path_gets_too_long_is_not_gone() {
    let (root, mut index) = known();
    let deep = vec!["n".repeat(255); 15].join("/");
    std::fs::create_dir_all(root.dir().join(&deep)).unwrap();
    settle(&root, &mut index);
    let before = node(&index, "g");
    let long = format!("{deep}/{}", "g".repeat(165));
    rename(&root, "g", &long);
    let found = whole(&root, &mut index);
    assert_eq!(found.updates, []);
    let [Skipped { path, why: Why::Held(why) }] = &found.skipped[..] else { panic!("{:?}", found.skipped) };
    assert!(*path == long && why.contains("4000 are possible"), "{path}: {why}");
    rename(&root, &long, &format!("{deep}/g"));
    whole(&root, &mut index);
    assert_eq!(node(&index, &format!("{deep}/g")), before);
}
