//! That nothing is lost whatever happens between the look and the replacement.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::{Rng, SeedableRng};

use super::*;
use crate::local::testing::{TestRoot, rel};

fn temp(root: &Root, text: &str) -> Temp {
    let mut temp = root.temp_file().unwrap();
    temp.file().write_all(text.as_bytes()).unwrap();
    temp.finish(0o644, 1_000_000_000).unwrap();
    temp
}

#[test]
fn a_new_file_takes_a_free_place_only() {
    let root = TestRoot::new();
    let stamp = root.place_new(temp(&root, "one"), &rel("f"), None, Durability::Now).unwrap();
    assert_eq!(stamp, root.stamp("f"));
    assert_eq!(stamp.mtime_ns, 1_000_000_000);
    let again = root.place_new(temp(&root, "two"), &rel("f"), None, Durability::Now);
    assert!(matches!(again, Err(DiskError::Exists(_))));
    assert!(matches!(
        root.place_new(temp(&root, "two"), &rel("x/f"), None, Durability::Now),
        Err(DiskError::Vanished(_))
    ));
    assert_eq!(root.read("f"), "one");
    assert_eq!(root.temporary_count(), 0);
}

#[test]
fn only_what_was_seen_is_replaced() {
    let root = TestRoot::new();
    root.write("f", "old");
    let seen = root.stamp("f");
    let replace = |text: &str, seen: &Stamp, replaced| {
        root.replace(temp(&root, text), &rel("f"), seen, replaced, Durability::Now)
    };
    let first = replace("new", &seen, Replaced::Removed).unwrap();
    assert_eq!(first, root.stamp("f"));
    assert_eq!(root.read("f"), "new");
    assert!(matches!(replace("x", &seen, Replaced::Removed), Err(DiskError::Changed(_))));
    root.write("f", "saved");
    assert!(matches!(replace("x", &first, Replaced::Removed), Err(DiskError::Changed(_))));
    assert_eq!(root.read("f"), "saved");
    assert!(root.trashed().is_empty());
    replace("newer", &root.stamp("f"), Replaced::ToTrash).unwrap();
    assert_eq!(root.trashed().into_iter().collect::<Vec<_>>(), [("f".to_owned(), b"saved".to_vec())]);
    std::fs::remove_file(root.dir().join("f")).unwrap();
    assert!(matches!(replace("x", &first, Replaced::Removed), Err(DiskError::Vanished(_))));
    assert_eq!(root.temporary_count(), 0);
}

/// An editor that writes into the new file as soon as it is in place, over and over: the stamp is never that of its
/// writes.
#[test]
fn an_edit_right_after_the_replacement_has_another_stamp() {
    let root = TestRoot::new();
    root.write("f", "old");
    // Removing this takes a while: the edit comes before that is done.
    std::fs::write(root.dir().join("f"), vec![1; 64 << 20]).unwrap();
    let seen = root.stamp("f");
    let new = temp(&root, "new");
    let placed = std::thread::scope(|scope| {
        let edit = scope.spawn(|| {
            while std::fs::metadata(root.dir().join("f")).unwrap().len() > 3 {
                std::hint::spin_loop();
            }
            root.write("f", "edited");
        });
        let placed = root.replace(new, &rel("f"), &seen, Replaced::Removed, Durability::Now).unwrap();
        edit.join().unwrap();
        placed
    });
    assert_eq!(root.read("f"), "edited");
    assert_ne!(placed, root.stamp("f"));
    assert_eq!((placed.size, placed.mtime_ns), (3, 1_000_000_000), "it is that of the server's content");
}

#[test]
fn a_folder_is_never_replaced() {
    let root = TestRoot::new();
    std::fs::create_dir(root.dir().join("d")).unwrap();
    root.write("d/f", "x");
    let seen = root.stamp("d");
    let result = root.replace(temp(&root, "new"), &rel("d"), &seen, Replaced::Removed, Durability::Now);
    assert!(matches!(result, Err(DiskError::Changed(_))));
    assert_eq!(root.read("d/f"), "x");
}

#[test]
fn links_and_files_take_each_others_place() {
    let root = TestRoot::new();
    root.write("f", "old");
    let seen = root.stamp("f");
    let link =
        root.replace_by_symlink(&rel("f"), b"target", 5, &seen, Replaced::Removed, Durability::Now).unwrap();
    assert_eq!(root.read_symlink(&rel("f")).unwrap(), (b"target".to_vec(), link));
    let changed = root.replace_by_symlink(&rel("f"), b"other", 5, &seen, Replaced::Removed, Durability::Now);
    assert!(matches!(changed, Err(DiskError::Changed(_))));
    let other =
        root.replace_by_symlink(&rel("f"), b"other", 5, &link, Replaced::Removed, Durability::Now).unwrap();
    root.replace(temp(&root, "file"), &rel("f"), &other, Replaced::Removed, Durability::Now).unwrap();
    assert_eq!(root.read("f"), "file");
    assert_eq!(root.temporary_count(), 0);
}

/// What came out of the exchange is not what was expected, as if it had been saved a moment before it.
#[test]
fn a_save_between_the_look_and_the_exchange_goes_back_to_its_place() {
    let root = TestRoot::new();
    root.write("f", "seen");
    let seen = root.stamp("f");
    let mut temp = temp(&root, "new");
    temp.set_name(swap_name().unwrap()).unwrap();
    let (folder, name) = root.parent_of(&rel("f")).map(|(fd, name)| (fd, name.to_owned())).unwrap();
    let new = root.object_of_fd(temp.fd()).unwrap().stamp;
    let place = rel("f");
    let swap = Swap {
        root: &root,
        rel: &place,
        temporary: (temp.folder(), temp.name()),
        in_place: (folder.as_fd(), &name),
        new,
        expected: &seen,
    };
    // The save, then exchange and undo as `run` does them after its look.
    root.write("other", "saved meanwhile");
    std::fs::rename(root.dir().join("other"), root.dir().join("f")).unwrap();
    swap.exchange().unwrap();
    swap.undo().unwrap();
    assert_eq!(root.read("f"), "saved meanwhile");
    assert!(!root.is_gone(&temp));
    // A second save, between the exchange and the undoing: the first goes back, the second is in the trash.
    swap.exchange().unwrap();
    root.write("other", "saved once more");
    std::fs::rename(root.dir().join("other"), root.dir().join("f")).unwrap();
    swap.undo().unwrap();
    assert_eq!(root.read("f"), "saved meanwhile");
    assert_eq!(root.trashed().into_values().collect::<Vec<_>>(), [b"saved once more".to_vec()]);
    assert!(root.is_gone(&temp), "the new one was replaced by the second save");
}

#[test]
fn file_systems_that_cannot_exchange_replace_by_link_and_rename() {
    let root = TestRoot::new();
    root.write("f", "seen");
    let seen = root.stamp("f");
    let mut temp = temp(&root, "new");
    temp.set_name(swap_name().unwrap()).unwrap();
    let (folder, name) = root.parent_of(&rel("f")).map(|(fd, name)| (fd, name.to_owned())).unwrap();
    let new = root.object_of_fd(temp.fd()).unwrap().stamp;
    let place = rel("f");
    let swap = Swap {
        root: &root,
        rel: &place,
        temporary: (temp.folder(), temp.name()),
        in_place: (folder.as_fd(), &name),
        new,
        expected: &seen,
    };
    root.write("f", "saved meanwhile");
    assert!(matches!(swap.replace_linked(), Err(DiskError::Changed(_))));
    assert_eq!(root.read("f"), "saved meanwhile");
    let swap = Swap { expected: &root.stamp("f"), ..swap };
    swap.replace_linked().unwrap();
    assert_eq!(root.read("f"), "new");
    swap.dispose(Replaced::ToTrash).unwrap();
    assert_eq!(root.trashed().into_values().collect::<Vec<_>>(), [b"saved meanwhile".to_vec()]);
    temp.keep(true);
    assert_eq!(root.temporary_count(), 0);
}

/// Without exchange: a swap of `text` for what is at `f`, carried out by `act`.
fn swap_by(root: &TestRoot, text: &str, seen: &Stamp, act: impl Fn(&Swap<'_>)) {
    let mut temp = temp(root, text);
    temp.set_name(swap_name().unwrap()).unwrap();
    let (folder, name) = root.parent_of(&rel("f")).map(|(fd, name)| (fd, name.to_owned())).unwrap();
    let new = root.object_of_fd(temp.fd()).unwrap().stamp;
    let place = rel("f");
    act(&Swap {
        root,
        rel: &place,
        temporary: (temp.folder(), temp.name()),
        in_place: (folder.as_fd(), &name),
        new,
        expected: seen,
    });
    let gone = root.is_gone(&temp);
    temp.keep(gone);
}

#[test]
fn without_exchange_what_is_written_after_the_look_is_in_the_trash() {
    let root = TestRoot::new();
    root.write("f", "seen");
    swap_by(&root, "new", &root.stamp("f"), |swap| {
        let aside = swap_name().unwrap();
        std::fs::hard_link(root.dir().join("f"), root.dir().join(".keepstone/tmp").join(&aside)).unwrap();
        root.write("f", "saved into the old one");
        swap.rename_over(&aside).unwrap();
        swap.dispose(Replaced::Removed).unwrap();
    });
    assert_eq!(root.read("f"), "new");
    assert_eq!(root.trashed().into_values().collect::<Vec<_>>(), [b"saved into the old one".to_vec()]);
    assert_eq!(root.temporary_count(), 0);
}

#[test]
fn file_systems_without_hard_links_replace_what_was_seen_only() {
    let root = TestRoot::new();
    root.write("f", "seen");
    let seen = root.stamp("f");
    let moved = |swap: &Swap<'_>| swap.replace_moved(&swap_name().unwrap());
    swap_by(&root, "new", &seen, |swap| {
        moved(swap).unwrap();
        swap.dispose(Replaced::Removed).unwrap();
    });
    assert_eq!(root.read("f"), "new");
    // What is not as it was seen goes back to its place, whatever it is.
    swap_by(&root, "newer", &seen, |swap| assert!(matches!(moved(swap), Err(DiskError::Changed(_)))));
    assert_eq!(root.read("f"), "new");
    std::fs::remove_file(root.dir().join("f")).unwrap();
    std::fs::create_dir(root.dir().join("f")).unwrap();
    root.write("f/below", "x");
    swap_by(&root, "newer", &seen, |swap| assert!(matches!(moved(swap), Err(DiskError::Changed(_)))));
    assert_eq!(root.read("f/below"), "x");
    assert!(root.trashed().is_empty());
    assert_eq!(root.temporary_count(), 0);
}

/// An editor saves all the time while files are replaced: each replacement that says it was done replaced what was
/// seen, which is in the trash, and none of the editor's saves is in there that was not seen.
#[test]
fn replacing_while_an_editor_saves_takes_only_what_was_seen() {
    let root = TestRoot::new();
    root.write("f", "first");
    let done = AtomicBool::new(false);
    let mut taken = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                root.write("saving", &format!("save {count}"));
                std::fs::rename(root.dir().join("saving"), root.dir().join("f")).unwrap();
                count += 1;
            }
        });
        for count in 0..300 {
            let Ok((mut file, seen)) = root.open_for_read(&rel("f")) else { continue };
            let mut text = String::new();
            std::io::Read::read_to_string(&mut file, &mut text).unwrap();
            let new = temp(&root, &format!("remote {count}"));
            match root.replace(new, &rel("f"), &seen, Replaced::ToTrash, Durability::Later) {
                Ok(_) => taken.push(text),
                Err(DiskError::Changed(_) | DiskError::Vanished(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let trashed: Vec<String> =
        root.trashed().into_values().map(|bytes| String::from_utf8(bytes).unwrap()).collect();
    for text in &taken {
        assert!(trashed.contains(text), "{text} was replaced and is not in the trash");
    }
    assert_eq!(root.temporary_count(), 0);
}

const CHILD: &str = "KEEPSTONE_TEST_REPLACE_CHILD";

/// Replaces one file over and over, until it is killed.
#[test]
fn replace_until_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let root = TestRoot::at(std::path::Path::new(&dir));
    for count in 0.. {
        let seen = root.stamp("f");
        let text = format!("{count} ").repeat(10_000);
        root.replace(temp(&root, &text), &rel("f"), &seen, Replaced::Removed, Durability::Later).unwrap();
    }
}

#[test]
fn a_process_killed_while_it_replaces_leaves_a_whole_file_in_place() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "0 ".repeat(10_000)).unwrap();
    for _ in 0..15 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "local::replace::tests::replace_until_killed"])
            .env(CHILD, dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(random.random_range(20..120)));
        child.kill().unwrap();
        child.wait().unwrap();
        let text = std::fs::read_to_string(dir.path().join("f")).unwrap();
        let first = text.split(' ').next().unwrap().to_owned();
        assert_eq!(text, format!("{first} ").repeat(10_000), "a torn file is in place");
        let root = TestRoot::at(dir.path());
        root.clean_temporary(&|_| false).unwrap();
        assert_eq!(root.temporary_count(), 0);
        let whole = |bytes: &Vec<u8>| {
            let text = String::from_utf8_lossy(bytes);
            let first = text.split(' ').next().unwrap_or_default();
            text == format!("{first} ").repeat(10_000)
        };
        assert!(root.trashed().values().all(whole), "what was being exchanged is kept whole");
    }
}

#[test]
fn a_file_can_be_gone_on_with_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let root = TestRoot::at(dir.path());
    let mut begun = root.temp_file_kept(7).unwrap();
    begun.file().write_all(b"half").unwrap();
    drop(begun);
    drop(root.temp_file_kept(8).unwrap());
    assert_eq!(root.temporary_count(), 2);
    drop(root);
    let root = TestRoot::at(dir.path());
    assert_eq!(root.clean_temporary(&|key| key == 7).unwrap(), 1);
    let mut again = root.temp_file_kept(7).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(again.file(), &mut text).unwrap();
    assert_eq!(text, "half");
    again.file().write_all(b" done").unwrap();
    again.finish(0o600, 0).unwrap();
    root.place_new(again, &rel("f"), None, Durability::Now).unwrap();
    assert_eq!(root.read("f"), "half done");
    assert_eq!(root.temporary_count(), 0);
}

#[test]
fn a_file_that_was_finished_read_only_can_be_gone_on_with() {
    let test = "local::replace::tests::a_file_that_was_finished_read_only_can_be_gone_on_with";
    if !crate::local::testing::as_another_user(test) {
        return;
    }
    let root = TestRoot::new();
    for mode in [0o444, 0o000] {
        let mut begun = root.temp_file_kept(7).unwrap();
        begun.file().set_len(0).unwrap();
        begun.file().write_all(b"whole").unwrap();
        begun.finish(mode, 0).unwrap();
        // As after a crash, or if something is at its place.
        drop(begun);
        let mut again = root.temp_file_kept(7).unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(again.file(), &mut text).unwrap();
        assert_eq!(text, "whole");
    }
    root.temp_file_kept(7).unwrap().discard();
    assert_eq!(root.temporary_count(), 0);
}

#[test]
fn a_full_disk_leaves_all_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(dir.path())
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        println!("not allowed to mount: only root can try a full disk");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        let root = TestRoot::at(dir.path());
        root.write("f", "old");
        let mut temp = root.temp_file().unwrap();
        let error = temp.file().write_all(&vec![1; 1 << 20]).unwrap_err();
        assert!(matches!(DiskError::of_io(&rel("f"), error), DiskError::NoSpace(_)));
        assert_eq!(root.read("f"), "old");
        drop(temp);
        assert_eq!(root.temporary_count(), 0);
        let seen = root.stamp("f");
        root.replace(self::temp(&root, "new"), &rel("f"), &seen, Replaced::Removed, Durability::Now).unwrap();
        assert_eq!(root.read("f"), "new");
    });
    let unmounted = std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
    result.unwrap();
}
