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
fn another_file_system_needs_to_be_accepted() {
    let dir = folder();
    let root = Root::create(dir.path(), None, &[]).unwrap();
    let path = dir.path().join(".keepstone");
    let folder = File::open(&path).unwrap();
    let made =
        Marker { id: root.id(), file_system: marker::file_system_of(root.fd()), device: root.device() };
    drop(root);
    let write = |marker| marker::write(folder.as_fd(), &marker).unwrap();
    write(Marker { device: made.device + 1, ..made });
    drop(Root::open(dir.path(), None).unwrap());
    write(Marker { device: made.device + 1, file_system: made.file_system ^ 1, ..made });
    assert!(matches!(Root::open(dir.path(), None), Err(RootError::OtherFileSystem(_))));
    assert_eq!(Root::create(dir.path(), None, &[]).unwrap().id(), made.id);
    drop(Root::open(dir.path(), None).unwrap());
}
