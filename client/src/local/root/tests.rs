//! What a root must refuse, and say so.

use std::fs::File;

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_root_that_was_made_opens_again_with_its_id() {
    let dir = folder();
    let id = Root::create(dir.path(), None, &[]).unwrap().id();
    let root = Root::open(dir.path(), None).unwrap();
    assert_eq!(root.id(), id);
    assert_eq!(root.state_path(), dir.path().canonicalize().unwrap().join(".keepstone"));
    root.check(false).unwrap();
    drop(root);
    assert_eq!(Root::create(dir.path(), None, &[]).unwrap().id(), id, "made again, it stays the same root");
}

#[test]
fn a_folder_without_marker_is_no_root() {
    let dir = folder();
    assert!(matches!(Root::open(dir.path(), None), Err(RootError::MarkerMissing(_))));
    assert!(matches!(Root::open(&dir.path().join("x"), None), Err(RootError::Missing(_))));
    std::fs::write(dir.path().join("f"), "").unwrap();
    assert!(matches!(Root::open(&dir.path().join("f"), None), Err(RootError::NotFolder(_))));
    std::fs::create_dir(dir.path().join(".keepstone")).unwrap();
    assert!(matches!(Root::open(dir.path(), None), Err(RootError::MarkerMissing(_))));
    std::fs::write(dir.path().join(".keepstone/root"), "format = 1\nid = 'zz'").unwrap();
    assert!(matches!(Root::open(dir.path(), None), Err(RootError::MarkerDamaged { .. })));
    std::fs::remove_dir_all(dir.path().join(".keepstone")).unwrap();
    std::os::unix::fs::symlink("/tmp", dir.path().join(".keepstone")).unwrap();
    assert!(Root::open(dir.path(), None).is_err());
    assert!(
        Root::create(dir.path(), None, &[]).is_err(),
        "the state's folder is not looked for through a link"
    );
}

#[test]
fn only_one_process_has_a_root() {
    let dir = folder();
    let state = folder();
    let root = Root::create(dir.path(), None, &[]).unwrap();
    assert!(matches!(Root::open(dir.path(), None), Err(RootError::Busy(_))));
    assert!(matches!(Root::open(dir.path(), Some(state.path())), Err(RootError::Busy(_))));
    assert!(matches!(Root::create(dir.path(), None, &[]), Err(RootError::Busy(_))));
    drop(root);
    let root = Root::open(dir.path(), Some(state.path())).unwrap();
    assert_eq!(root.state_path(), state.path().canonicalize().unwrap());
}

#[test]
fn a_program_that_is_being_started_does_not_keep_a_root_locked() {
    let dir = folder();
    let fd = open_root(dir.path()).unwrap();
    let held = lock(dir.path(), fd.as_fd()).unwrap();
    let inherited = held.0.try_clone().unwrap();
    drop(held);
    let again = lock(dir.path(), fd.as_fd());
    assert!(again.is_ok(), "{again:?}");
    drop(inherited);
}

#[test]
fn roots_inside_and_around_one_another_are_refused() {
    let dir = folder();
    let inner = dir.path().join("a/b");
    std::fs::create_dir_all(&inner).unwrap();
    drop(Root::create(dir.path(), None, &[]).unwrap());
    assert!(matches!(Root::create(&inner, None, &[]), Err(RootError::Inside { .. })));
    assert!(!inner.join(".keepstone").exists(), "what is refused is left as it was");
    let around = folder();
    let inner = around.path().join("a");
    std::fs::create_dir(&inner).unwrap();
    drop(Root::create(&inner, None, &[]).unwrap());
    assert!(matches!(Root::create(around.path(), None, &[inner]), Err(RootError::Around { .. })));
    let state = dir.path().join("state");
    assert!(matches!(Root::open(dir.path(), Some(&state)), Err(RootError::StateInside(_))));
}

#[test]
fn a_root_that_is_no_more_what_it_was_is_noticed() {
    let outer = folder();
    let dir = outer.path().join("root");
    std::fs::create_dir(&dir).unwrap();
    let root = Root::create(&dir, None, &[]).unwrap();
    root.check(false).unwrap();
    assert!(matches!(root.check(true), Err(RootError::Empty(_))));
    std::fs::write(dir.join("f"), "").unwrap();
    root.check(true).unwrap();

    std::fs::rename(dir.join(".keepstone/root"), outer.path().join("kept")).unwrap();
    assert!(matches!(root.check(true), Err(RootError::MarkerMissing(_))));
    std::fs::rename(outer.path().join("kept"), dir.join(".keepstone/root")).unwrap();
    root.check(true).unwrap();

    let aside = outer.path().join("aside");
    std::fs::rename(&dir, &aside).unwrap();
    assert!(matches!(root.check(true), Err(RootError::Missing(_))));
    std::fs::create_dir(&dir).unwrap();
    assert!(matches!(root.check(true), Err(RootError::MarkerMissing(_))), "as an empty mount point");
    drop(Root::create(&dir, None, &[]).unwrap());
    assert!(matches!(root.check(true), Err(RootError::OtherRoot(_))));
}

#[test]
fn the_marker_decides_whatever_numbers_the_disk_has() {
    let dir = folder();
    let root = Root::create(dir.path(), None, &[]).unwrap();
    let folder = File::open(dir.path().join(".keepstone")).unwrap();
    let made = Marker::here(root.id(), root.fd(), &root.home());
    drop(root);
    let other = Marker { device: made.device + 1, file_system: made.file_system ^ 1, ..made };
    marker::write(folder.as_fd(), &other).unwrap();
    let root = Root::open(dir.path(), None).unwrap();
    assert_eq!(root.id(), made.id);
    assert_eq!(marker::read(folder.as_fd()).unwrap().unwrap(), made, "it has the numbers of now");
}

#[test]
fn a_root_that_is_another_disk_by_now_is_to_be_opened_anew() {
    let outer = folder();
    let dir = outer.path().join("root");
    std::fs::create_dir(&dir).unwrap();
    let root = Root::create(&dir, None, &[]).unwrap();
    std::fs::rename(&dir, outer.path().join("aside")).unwrap();
    std::fs::create_dir_all(dir.join(".keepstone")).unwrap();
    std::fs::copy(outer.path().join("aside/.keepstone/root"), dir.join(".keepstone/root")).unwrap();
    assert!(matches!(root.check(false), Err(RootError::Remounted(_))));
    root.let_go();
    assert_eq!(Root::open(&dir, None).unwrap().id(), root.id());
}

#[test]
fn a_folder_is_marked_again_unless_it_is_empty_or_another() {
    let dir = folder();
    let root = Root::create(dir.path(), None, &[]).unwrap();
    let id = root.id();
    Root::mark_again(dir.path(), id).unwrap();
    assert!(matches!(Root::mark_again(dir.path(), RootId([9; 16])), Err(RootError::OtherRoot(_))));
    std::fs::remove_file(dir.path().join(".keepstone/root")).unwrap();
    assert!(matches!(Root::mark_again(dir.path(), id), Err(RootError::Empty(_))), "as an empty mount point");
    assert!(matches!(root.check(false), Err(RootError::MarkerMissing(_))));
    std::fs::write(dir.path().join("f"), "").unwrap();
    Root::mark_again(dir.path(), id).unwrap();
    root.check(true).unwrap();
}
