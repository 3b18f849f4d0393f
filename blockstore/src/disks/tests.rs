use super::*;
use crate::config::{ScrubConfig, UNREADABLE_PLACES_MAX_DEFAULT};
use crate::testing::{copy_tree, open_disk, options};
use engine::ids::NodeId;
use proto::peer::TlsFiles;

const CLUSTER: ClusterId = ClusterId::from_bytes([0xc1; 16]);

fn config(data_dir: &Path, disks: &[&Path]) -> StorageConfig {
    let nowhere = || PathBuf::from("unused.pem");
    StorageConfig {
        node: NodeId(1),
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: None,
        data_dir: data_dir.join("node"),
        disks: disks.iter().map(|path| (*path).to_owned()).collect(),
        rack: String::new(),
        meta: Vec::new(),
        tls: TlsFiles { ca: nowhere(), certificate: nowhere(), key: nowhere() },
        reserve_bytes: Some(0),
        scrub: ScrubConfig { bytes_per_second: 0, ..ScrubConfig::default() },
        unreadable_places_max: UNREADABLE_PLACES_MAX_DEFAULT,
    }
}

fn open_and_stop(config: &StorageConfig) -> Vec<(Option<DiskId>, DiskStatus)> {
    let slots = open_all(config, CLUSTER).unwrap();
    let states = slots.iter().map(|slot| (slot.id, slot.status())).collect();
    for disk in slots.iter().filter_map(|slot| slot.disk.as_ref()) {
        disk.stop();
    }
    states
}

#[test]
fn new_directories_become_disks_and_are_known_again() {
    let scratch = tempfile::tempdir().unwrap();
    let (absent, empty) = (scratch.path().join("a/absent"), scratch.path().join("empty"));
    std::fs::create_dir(&empty).unwrap();
    let config = config(scratch.path(), &[&absent, &empty]);
    let first = open_and_stop(&config);
    assert!(first.iter().all(|(id, status)| id.is_some() && *status == DiskStatus::up()));
    assert_eq!(open_and_stop(&config), first);
}

#[test]
fn a_known_disk_that_is_gone_is_missing_and_never_formatted_anew() {
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    let config = config(scratch.path(), &[&a, &b]);
    let first = open_and_stop(&config);
    std::fs::rename(&a, scratch.path().join("away")).unwrap();
    for unmounted in [false, true] {
        if unmounted {
            std::fs::create_dir(&a).unwrap();
        }
        let now = open_and_stop(&config);
        assert_eq!((now[0].0, now[0].1.health), (first[0].0, Health::Missing));
        assert!(now[0].1.reason.contains("gone"), "{}", now[0].1.reason);
        assert_eq!(now[1], first[1], "the other disk serves");
        assert!(!a.join("superblock").exists());
    }
    std::fs::remove_dir(&a).unwrap();
    std::fs::rename(scratch.path().join("away"), &a).unwrap();
    assert_eq!(open_and_stop(&config), first, "it serves again where it was");
}

#[test]
fn foreign_swapped_copied_and_filled_directories_are_refused_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let (a, b, copy, foreign, filled) = (path("a"), path("b"), path("copy"), path("foreign"), path("filled"));
    let first = open_and_stop(&config(scratch.path(), &[&a, &b]));
    copy_tree(&a, &copy);
    let other = Owner { cluster: ClusterId::from_bytes([9; 16]), disk: DiskId::from_bytes([9; 16]) };
    superblock::format(&foreign, other).unwrap();
    std::fs::create_dir(&filled).unwrap();
    std::fs::write(filled.join("thesis.tex"), "x").unwrap();

    let now = open_and_stop(&config(scratch.path(), &[&a, &b, &copy, &foreign, &filled]));
    assert_eq!(now[..2], first[..]);
    for ((id, status), word) in now[2..].iter().zip(["second copy", "belongs to cluster", "no superblock"]) {
        assert_eq!((*id, status.health), (None, Health::Missing));
        assert!(status.reason.contains(word), "{}", status.reason);
    }
    assert_eq!(std::fs::read_dir(&filled).unwrap().count(), 1, "nothing was written there");

    std::fs::rename(&a, path("x")).unwrap();
    std::fs::rename(&b, &a).unwrap();
    std::fs::rename(path("x"), &b).unwrap();
    for (_, status) in open_and_stop(&config(scratch.path(), &[&a, &b])) {
        assert!(status.reason.contains("was there before"), "{}", status.reason);
    }
}

#[test]
fn a_disk_that_another_process_serves_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    superblock::format(&a, crate::testing::OWNER).unwrap();
    let held = open_disk(&options(&a).path);
    let now = open_and_stop(&config(scratch.path(), &[&a, &b]));
    assert_eq!(now[0].1.health, Health::Missing);
    assert_eq!(now[1].1, DiskStatus::up());
    held.stop();
}

#[test]
fn a_damaged_memory_or_an_impossible_configuration_starts_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let a = scratch.path().join("a");
    assert!(matches!(open_all(&config(scratch.path(), &[]), CLUSTER), Err(DisksError::Configuration(_))));
    let twice = config(scratch.path(), &[&a, &a]);
    assert!(matches!(open_all(&twice, CLUSTER), Err(DisksError::Configuration(_))));
    std::fs::create_dir(scratch.path().join("node")).unwrap();
    std::fs::write(scratch.path().join("node").join(KNOWN_DISKS_FILE), "{").unwrap();
    assert!(matches!(open_all(&config(scratch.path(), &[&a]), CLUSTER), Err(DisksError::Memory { .. })));
    assert!(!a.exists());
}

/// Of two processes with one blank directory the second meets the lock, and remembers nothing of it.
#[test]
fn a_blank_directory_that_another_process_has_is_not_formatted() {
    let scratch = tempfile::tempdir().unwrap();
    let a = scratch.path().join("a");
    let held = superblock::lock_blank(&a).unwrap();
    let config = config(scratch.path(), &[&a]);
    let now = open_and_stop(&config);
    assert_eq!((now[0].0, now[0].1.health), (None, Health::Missing));
    assert!(now[0].1.reason.contains("locked"), "{}", now[0].1.reason);
    assert!(!a.join(superblock::SUPERBLOCK_FILE).exists(), "it was formatted under the other's feet");
    drop(held);
    assert_eq!(open_and_stop(&config)[0].1, DiskStatus::up());
}
