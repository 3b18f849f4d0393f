//! That only what is certain is ignored without a rule, that rules decide as they say, and that rules which are not
//! understood are not taken for none.

use super::*;
use crate::local::testing::TestRoot;

fn with(files: &[(&str, &[u8])]) -> TestRoot {
    let root = TestRoot::new();
    for (path, bytes) in files {
        let path = root.dir().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    root
}

fn level(root: &TestRoot, path: &str) -> Level {
    IgnoreRules.level_of(root, &Rel::parse(path).unwrap()).unwrap()
}

/// Whether a file or folder of this name is ignored beside these others.
fn is_ignored(level: &Level, name: &str, kind: ObjectKind, others: &[&str]) -> bool {
    let object = |kind| {
        let identity = crate::local::model::Identity { inode: 1, born_ns: 1 };
        let stamp = crate::local::model::Stamp { identity, size: 0, mtime_ns: 0, ctime_ns: 0, mode: 0 };
        super::super::disk::Object { kind, stamp, links: 1 }
    };
    let entry = |name: &str, kind| Entry { name: name.into(), object: object(kind) };
    let mut entries: Vec<Entry> = others.iter().map(|name| entry(name, ObjectKind::File)).collect();
    entries.push(entry(name, kind));
    level.judge(name, kind, &Beside::new(&entries)).is_some()
}

#[test]
fn only_what_is_certain_is_ignored_without_a_rule() {
    let root = with(&[]);
    let level = level(&root, "");
    for (name, beside) in [
        (".letter.swp", "letter"),
        (".letter.txt.swo", "letter.txt"),
        (".#letter", "letter"),
        ("#letter#", "letter"),
        (".letter.kate-swp", "letter"),
        ("~$letter.docx", "letter.docx"),
        ("~$tter.docx", "letter.docx"),
        ("~$etter.docx", "letter.docx"),
        (".~lock.letter.odt#", "letter.odt"),
        ("._letter", "letter"),
        ("db.laccdb", "db.accdb"),
    ] {
        assert!(is_ignored(&level, name, ObjectKind::File, &[beside]), "{name} beside {beside}");
        assert!(!is_ignored(&level, name, ObjectKind::File, &["other"]), "{name} alone may be anybody's");
    }
    for name in [
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        ".f.keepstone-0123abcd",
        ".nfs000000000012345600000001",
        ".goutputstream-ABC123",
        "~WRL0001.tmp",
    ] {
        assert!(is_ignored(&level, name, ObjectKind::File, &[]), "{name}");
        assert!(!is_ignored(&level, name, ObjectKind::Folder, &[]), "{name} as a folder");
    }
    assert!(is_ignored(&level, ".Trash-1000", ObjectKind::Folder, &[]));
    assert!(!is_ignored(&level, ".Trash-1000", ObjectKind::File, &[]));
}

#[test]
fn names_that_people_use_are_kept_in_sync() {
    let root = with(&[]);
    let level = level(&root, "");
    for name in [
        "4913",
        "film.mkv.part",
        "Album.part",
        "x.crdownload",
        "x.partial",
        "notes~",
        "a.download",
        ".directory",
        "lu1.tmp",
        "x.swp",
        ".nfsrc",
        ".keepstoneignore",
        "x.keepstone-0123abcd",
        ".git",
        "~$",
        "_",
        "##",
    ] {
        for kind in [ObjectKind::File, ObjectKind::Folder] {
            assert!(!is_ignored(&level, name, kind, &["notes", "film.mkv", "x"]), "{name}");
        }
    }
}

#[test]
fn the_deepest_rule_decides_and_the_last_in_a_file() {
    let root = with(&[
        (IGNORE_FILE, b"*.log\n!keep.log\n/build/\nsub/deep/only-there\n# comment\n!.DS_Store\n"),
        ("sub/.keepstoneignore", b"!*.log\nsecret\n"),
        ("sub/deep/f", b""),
    ]);
    let [top, sub, deep] = ["", "sub", "sub/deep"].map(|path| level(&root, path));
    let file = |level, name| is_ignored(level, name, ObjectKind::File, &[]);
    let folder = |level, name| is_ignored(level, name, ObjectKind::Folder, &[]);
    assert!(file(&top, "a.log") && !file(&top, "keep.log"));
    assert!(folder(&top, "build") && !file(&top, "build"));
    assert!(!folder(&sub, "build"), "it is anchored at the top");
    assert!(!file(&sub, "a.log") && !file(&deep, "a.log"));
    assert!(file(&deep, "secret") && !file(&top, "secret"));
    assert!(file(&deep, "only-there") && !file(&sub, "only-there"));
    assert!(!file(&deep, ".DS_Store"), "a rule brings back what is built in");
    let rule = deep.judge("secret", ObjectKind::File, &Beside::new(&[])).unwrap();
    assert_eq!(rule.to_string(), "sub/.keepstoneignore:2: secret");
}

#[test]
fn what_is_in_an_ignored_folder_is_ignored() {
    let root = with(&[(IGNORE_FILE, b"/build/\n!*.rs\n"), ("build/sub/f", b"")]);
    for path in ["build", "build/sub"] {
        assert!(is_ignored(&level(&root, path), "new.rs", ObjectKind::File, &[]), "{path}");
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let root = with(&[(IGNORE_FILE, "\u{feff}secret\r\nother\r\n".as_bytes())]);
    let level = level(&root, "");
    assert!(!level.is_unknown());
    for name in ["secret", "other"] {
        assert!(is_ignored(&level, name, ObjectKind::File, &[]), "{name}");
    }
}

#[test]
fn rules_that_are_not_understood_are_not_taken_for_none() {
    let large = vec![b'#'; 1024 * 1024 + 1];
    let utf16: Vec<u8> = "\u{feff}secret\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (what, bytes) in [
        ("not UTF-8", &b"caf\xe9\n"[..]),
        ("UTF-16", &utf16),
        ("UTF-16 without a mark", b"s\0e\0\n\0"),
        ("too large", &large),
        ("refused", b"fine\n[z-a]\n"),
        ("an end that is none", b"x\\"),
    ] {
        let root = with(&[(IGNORE_FILE, bytes), ("sub/f", b"")]);
        assert!(level(&root, "").unknown_here().is_some(), "{what}");
        assert!(level(&root, "sub").is_unknown() && level(&root, "sub").unknown_here().is_none(), "{what}");
    }
    let root = with(&[("rules", b"secret\n")]);
    for target in ["rules", "nowhere"] {
        std::os::unix::fs::symlink(target, root.dir().join(IGNORE_FILE)).unwrap();
        assert!(level(&root, "").is_unknown(), "a symlink to {target}");
        std::fs::remove_file(root.dir().join(IGNORE_FILE)).unwrap();
    }
    std::fs::create_dir(root.dir().join(IGNORE_FILE)).unwrap();
    assert!(level(&root, "").is_unknown(), "a folder");
}

#[test]
fn rules_that_may_not_be_read_are_not_taken_for_none() {
    use std::os::unix::fs::PermissionsExt;
    let test = "local::ignore_rules::tests::rules_that_may_not_be_read_are_not_taken_for_none";
    if !crate::local::testing::as_another_user(test) {
        return;
    }
    let root = with(&[(IGNORE_FILE, b"secret\n")]);
    std::fs::set_permissions(root.dir().join(IGNORE_FILE), PermissionsExt::from_mode(0o000)).unwrap();
    assert!(level(&root, "").is_unknown());
}
