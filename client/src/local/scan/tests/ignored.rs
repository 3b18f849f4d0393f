//! That what is ignored, or is this program's own, is left out, and what is in sync stays so.

use super::*;

#[test]
fn what_was_in_sync_stays_so_under_a_name_that_is_ignored() {
    let (root, mut index) = known();
    root.write(".keepstoneignore", "*.part\n");
    whole(&root, &mut index);
    let nodes = ["a", "a/f", "g"].map(|path| node(&index, path));
    rename(&root, "a", "a.part");
    rename(&root, "g", "g.part");
    root.write("a.part/new", "in an ignored folder");
    root.write("x.part", "new");
    let found = whole(&root, &mut index);
    assert_eq!(["a.part", "a.part/f", "g.part"].map(|path| node(&index, path)), nodes);
    assert_eq!((gone(&found), found.counts.ignored), (0, 2), "{found:?}");
    // Renamed to keep it while another is saved in its place: that is not what is in sync.
    let before = node(&index, "f");
    rename(&root, "f", "f.part");
    root.write("f", "saved");
    whole(&root, &mut index);
    assert_eq!((node(&index, "f"), index.find("f.part")), (before, None));
}

#[test]
fn nothing_new_is_taken_in_where_the_rules_are_not_understood() {
    let (root, mut index) = known();
    root.write("a/.keepstoneignore", "secret\n[z-a]\n");
    root.write("a/new", "may be ignored");
    root.write("a/sub/new", "may be ignored");
    root.write("a/f", "in sync, and edited");
    root.write("new", "elsewhere");
    let found = whole(&root, &mut index);
    assert_eq!(["a/new", "a/sub/new", "a/.keepstoneignore"].map(|path| index.find(path)), [None, None, None]);
    assert!(index.find("new").is_some() && found.complete);
    assert_eq!(index.find("a/f").unwrap().stamp.size, 19);
    let [Skipped { path, why: Why::Rules(why) }] = &found.skipped[..] else { panic!("{:?}", found.skipped) };
    assert!(path == "a/.keepstoneignore" && why.contains("line 2"), "{path}: {why}");
    root.write("a/.keepstoneignore", "secret\n");
    take_in(&root, &mut index, &shallow(&["a"]));
    assert!(index.find("a/new").is_some() && index.find("a/sub/new").is_some());
}

#[test]
fn what_was_never_sent_goes_by_rules_that_come_later() {
    let (root, mut index) = known();
    std::fs::create_dir(root.dir().join("n")).unwrap();
    root.write("n/secret", "secret");
    root.write("secret", "secret");
    whole(&root, &mut index);
    for path in ["n", "n/secret", "secret"] {
        let node = node(&index, path);
        index.unsent.insert(node);
    }
    root.write(".keepstoneignore", "secret\n");
    let found = whole(&root, &mut index);
    assert_eq!([index.find("secret"), index.find("n/secret")], [None, None]);
    assert_eq!(found.counts.ignored, 2);
}

#[test]
fn a_new_folder_with_nothing_but_what_is_ignored_is_left_out() {
    let (root, mut index) = known();
    root.write(".keepstoneignore", "*.log\n");
    for folder in ["left/over", "left/rules", "made/empty", "other/over"] {
        std::fs::create_dir_all(root.dir().join(folder)).unwrap();
    }
    root.write("left/over/x.log", "log");
    root.write("other/over/x.log", "log");
    root.write("left/.keepstoneignore", "other\n");
    root.write("left/rules/.keepstoneignore", "other\n");
    for _ in 0..2 {
        whole(&root, &mut index);
        for path in ["left", "left/over", "left/rules", "left/.keepstoneignore", "other", "other/over"] {
            assert_eq!(index.find(path), None, "{path}");
        }
    }
    assert!(index.find("made/empty").is_some());
    root.write("left/over/f", "something");
    whole(&root, &mut index);
    assert!(index.find("left/.keepstoneignore").is_some() && index.find("left/over/f").is_some());
    // Somebody makes a folder in what is left of another one.
    std::fs::create_dir(root.dir().join("other/made")).unwrap();
    whole(&root, &mut index);
    assert!(index.find("other/made").is_some() && index.find("other/over").is_none());
}

#[test]
fn a_folder_that_was_found_before_its_rules_came_and_never_sent_is_let_go() {
    let (root, mut index) = known();
    for folder in ["n/deep/below", "n/holds"] {
        std::fs::create_dir_all(root.dir().join(folder)).unwrap();
    }
    root.write("n/deep/below/t", "ignored soon");
    root.write("n/holds/t", "ignored soon");
    root.write("n/holds/f", "something");
    whole(&root, &mut index);
    for path in ["n", "n/deep", "n/deep/below", "n/deep/below/t", "n/holds", "n/holds/t", "n/holds/f"] {
        let node = node(&index, path);
        index.unsent.insert(node);
    }
    root.write(".keepstoneignore", "t\n");
    whole(&root, &mut index);
    for path in ["n/deep", "n/deep/below", "n/deep/below/t", "n/holds/t"] {
        assert_eq!(index.find(path), None, "{path}");
    }
    assert!(index.find("n/holds/f").is_some());
}

fn profile() -> String {
    let (id, device) = ("0".repeat(32), "0".repeat(16));
    format!(
        "endpoint = \"https://h:1\"\nca = \"ca\"\ntoken = \"ks1_x\"\naccount = \"{id}\"\ndevice = \"{device}\"\n"
    )
}

#[test]
fn own_data_is_never_taken_in() {
    let (root, mut index) = known();
    for folder in ["c/config", "c/pki", "s", "deep/.keepstone", "p"] {
        std::fs::create_dir_all(root.dir().join(folder)).unwrap();
    }
    for path in
        ["c/config/up.toml", "c/pki/ca.key", "s/state.db", "s/lock", "deep/.keepstone/state.db", "p/lock"]
    {
        root.write(path, "x");
    }
    root.write("p/anything", &profile());
    let found = whole(&root, &mut index);
    for path in ["c/pki/ca.key", "s/state.db", "deep/.keepstone", "p/anything"] {
        assert_eq!(index.find(path), None, "{path}");
    }
    assert!(index.find("p/lock").is_some());
    let mut own: Vec<_> = found.skipped.iter().map(|skipped| skipped.path.as_str()).collect();
    own.sort_unstable();
    assert_eq!(own, ["c", "deep/.keepstone", "p/anything", "s"]);
}

#[test]
fn a_file_in_sync_that_becomes_a_profile_stays_as_it_was_known() {
    let (root, mut index) = known();
    let before = ["a/f", "g", "b/f"].map(|path| index.find(path).unwrap());
    // Written in place, saved by renaming, and moved as well.
    root.write("a/f", &profile());
    root.write("g.tmp", &profile());
    rename(&root, "g.tmp", "g");
    rename(&root, "b/f", "b/moved");
    root.write("b/moved", &profile());
    for _ in 0..2 {
        let found = whole(&root, &mut index);
        assert_eq!(gone(&found), 0);
        let mut own: Vec<_> = found.skipped.iter().map(|skipped| skipped.path.as_str()).collect();
        own.sort_unstable();
        assert_eq!(own, ["a/f", "b/moved", "g"]);
        assert!(found.skipped.iter().all(|skipped| matches!(skipped.why, Why::OwnNow(_))), "{found:?}");
        let [a, g, moved] = ["a/f", "g", "b/moved"].map(|path| index.find(path).unwrap());
        assert_eq!([&a, &g], [&before[0], &before[1]]);
        assert_eq!((moved.node, moved.kind), (before[2].node, before[2].kind.clone()));
    }
    root.write("a/f", "no token any more");
    rename(&root, "b/moved", "b/elsewhere");
    root.write("b/elsewhere", "nor here");
    root.write("g", "nor here");
    settle(&root, &mut index);
    assert_eq!(["a/f", "b/elsewhere"].map(|path| node(&index, path)), [before[0].node, before[2].node]);
    assert_eq!(random::disk(&root.dir()), random::known_paths(&index));
}
