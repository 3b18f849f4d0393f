//! That all names of a file change together, and that a mode which the disk does not take is nobody's change.

use super::*;

fn contents(index: &MemoryIndex, path: &str) -> Kind {
    index.find(path).unwrap().kind
}

#[test]
fn a_change_by_one_name_is_seen_at_all_names() {
    let (root, mut index) = known();
    for name in ["a/sub/other", "b/third"] {
        std::fs::hard_link(root.dir().join("f"), root.dir().join(name)).unwrap();
    }
    settle(&root, &mut index);
    // The watcher tells of the folder in which the name is that was written by.
    root.write("b/third", "written by one name");
    take_in(&root, &mut index, &shallow(&["b"]));
    let now = contents(&index, "b/third");
    assert_ne!(now, contents(&index, "g"));
    for name in ["f", "a/sub/other"] {
        assert_eq!(contents(&index, name), now, "{name}");
        assert_eq!(root.read(name), "written by one name");
    }
    // And when its folder was moved at the same time.
    settle(&root, &mut index);
    std::fs::rename(root.dir().join("a/sub"), root.dir().join("a/moved")).unwrap();
    root.write("b/third", "written once more");
    take_in(&root, &mut index, &shallow(&["a", "b"]));
    for name in ["f", "a/moved/other"] {
        assert_eq!(contents(&index, name), contents(&index, "b/third"), "{name}");
    }
}

#[test]
fn a_name_that_goes_leaves_the_others_as_they_were() {
    let (root, mut index) = known();
    std::fs::hard_link(root.dir().join("f"), root.dir().join("b/h")).unwrap();
    settle(&root, &mut index);
    let before = index.find("f").unwrap();
    std::fs::remove_file(root.dir().join("b/h")).unwrap();
    settle(&root, &mut index);
    assert_eq!(index.find("b/h"), None);
    let after = index.find("f").unwrap();
    assert_eq!((after.node, after.kind), (before.node, before.kind));
}

#[test]
fn a_mode_that_the_disk_did_not_take_is_no_change_made_here() {
    let (root, mut index) = known();
    // As after a download to a file system with one mode for all.
    for path in ["a/f", "a"] {
        let mut asked = index.find(path).unwrap();
        asked.attributes.mode = 0o600;
        index.apply(&[LocalUpdate::Put(asked)]);
    }
    root.write("a/f", "edited here");
    settle(&root, &mut index);
    for path in ["a/f", "a"] {
        assert_eq!(index.find(path).unwrap().attributes.mode, 0o600, "{path}");
    }
    // Somebody sets one.
    for path in ["a/f", "a"] {
        std::fs::set_permissions(root.dir().join(path), PermissionsExt::from_mode(0o700)).unwrap();
    }
    settle(&root, &mut index);
    for path in ["a/f", "a"] {
        assert_eq!(index.find(path).unwrap().attributes.mode, 0o700, "{path}");
    }
}

#[test]
fn where_no_mode_is_kept_new_things_get_a_plain_one() {
    let (root, mut index) = known();
    let before = index.find("g").unwrap().attributes.mode;
    std::fs::create_dir(root.dir().join("n")).unwrap();
    root.write("n/f", "new");
    root.write("g.tmp", "saved by renaming");
    for path in ["n", "n/f", "g.tmp"] {
        std::fs::set_permissions(root.dir().join(path), PermissionsExt::from_mode(0o777)).unwrap();
    }
    std::fs::rename(root.dir().join("g.tmp"), root.dir().join("g")).unwrap();
    std::fs::rename(root.dir().join("b/f"), root.dir().join("b/moved")).unwrap();
    let options = ScanOptions { takes_modes: false, ..options() };
    let found = scan(&root, &mut index, &Scope::Whole, &options).unwrap();
    index.apply(&found.updates);
    let mode = |path: &str| index.find(path).unwrap().attributes.mode;
    assert_eq!((mode("n"), mode("n/f")), (0o755, 0o644));
    assert_eq!(mode("g"), before);
}
