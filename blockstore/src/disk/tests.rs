use super::*;
use crate::index;
use crate::record::SHARD_BYTES_MAX;
use crate::testing::{
    Model, assert_holds, authority, extent_files, listing, name, new_disk, open_disk, options, payload, put,
    put_of, put_random, read_all, seeded, stop,
};
use engine::cluster::Health;
use engine::ids::{Epoch, VolumeId};
use rand::Rng;

#[tokio::test]
async fn a_stored_shard_reads_back_in_any_range() {
    let mut random = seeded("a_stored_shard_reads_back_in_any_range");
    let scratch = tempfile::tempdir().unwrap();
    let disk = new_disk(&scratch.path().join("disk"));
    let lengths = [1, 4095, 4096, 65_535, 65_536, 65_537, 1 << 20, SHARD_BYTES_MAX as usize];
    for (number, length) in (0..).zip(lengths) {
        let (shard, bytes) = (name(1, number, 3), payload(&mut random, length));
        assert_eq!(put(&disk, shard, &bytes).await, PutOutcome::Stored);
        assert_eq!(read_all(&disk, shard, length).await, ReadOutcome::Bytes(bytes.clone()));
        for _ in 0..40 {
            let from = random.random_range(0..length);
            let count = random.random_range(1..=length - from);
            let (offset, want) = (u32::try_from(from).unwrap(), u32::try_from(count).unwrap());
            let read = disk.read(shard, offset, want).await.unwrap();
            assert_eq!(read, ReadOutcome::Bytes(bytes.slice(from..from + count)));
        }
        let beyond = disk.read(shard, 1, u32::try_from(length).unwrap()).await.unwrap();
        assert!(matches!(beyond, ReadOutcome::Lost(..)));
    }
    assert!(matches!(read_all(&disk, name(1, 99, 0), 1).await, ReadOutcome::Lost(..)));
    assert_eq!(disk.usage().shards_damaged_found, 0, "what was never there is not damaged");
    stop(disk).await;
}

#[tokio::test]
async fn storing_a_shard_again_is_harmless_and_changing_it_is_refused() {
    let mut random = seeded("storing_a_shard_again_is_harmless_and_changing_it_is_refused");
    let scratch = tempfile::tempdir().unwrap();
    let disk = new_disk(&scratch.path().join("disk"));
    let (shard, bytes) = (name(1, 1, 0), payload(&mut random, 100_000));
    let twice = [put_of(shard, 1, &bytes), put_of(shard, 1, &bytes)];
    let [first, second] = twice.map(|put| disk.put(put));
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.unwrap(), second.unwrap()), (PutOutcome::Stored, PutOutcome::Stored));
    for other in [payload(&mut random, 100_000), bytes.slice(1..)] {
        assert!(matches!(put(&disk, shard, &other).await, PutOutcome::Conflict(_)));
    }
    assert_eq!(read_all(&disk, shard, 100_000).await, ReadOutcome::Bytes(bytes));
    assert_eq!(listing(&disk).await.len(), 1);
    stop(disk).await;
}

#[tokio::test]
async fn writers_of_an_older_epoch_are_refused_even_after_a_rebuild() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let bytes = Bytes::from_static(b"shard");
    assert_eq!(disk.put(put_of(name(7, 1, 0), 3, &bytes)).await.unwrap(), PutOutcome::Stored);
    let epochs = [(VolumeId(8), Epoch(5)), (VolumeId(7), Epoch(2))].into();
    disk.raise_authority(Authority { history: 1, epochs });
    let stale = |number: u64, volume, epoch| put_of(name(volume, number, 0), epoch, &bytes);
    assert_eq!(disk.put(stale(2, 7, 2)).await.unwrap(), PutOutcome::StaleEpoch(Epoch(3)));
    assert_eq!(disk.put(stale(3, 8, 4)).await.unwrap(), PutOutcome::StaleEpoch(Epoch(5)));
    assert_eq!(disk.put(stale(4, 8, 5)).await.unwrap(), PutOutcome::Stored);
    stop(disk).await;

    std::fs::remove_dir_all(index::path(&path)).unwrap();
    let disk = open_disk(&path);
    assert_eq!(disk.put(stale(5, 7, 2)).await.unwrap(), PutOutcome::StaleEpoch(Epoch(3)));
    assert_eq!(disk.put(stale(6, 8, 4)).await.unwrap(), PutOutcome::StaleEpoch(Epoch(5)));
    stop(disk).await;
}

#[tokio::test]
async fn listings_come_in_order_page_by_page() {
    let mut random = seeded("listings_come_in_order_page_by_page");
    let scratch = tempfile::tempdir().unwrap();
    let disk = new_disk(&scratch.path().join("disk"));
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 100).await;
    let mut listed = Vec::new();
    loop {
        let page = disk.list(listed.last().copied(), 7).await.unwrap();
        if page.is_empty() {
            break;
        }
        listed.extend(page.into_iter().map(|(shard, _)| shard));
    }
    assert_eq!(listed, model.keys().copied().collect::<Vec<_>>());
    stop(disk).await;
}

#[tokio::test]
async fn deleted_shards_give_their_space_back_and_stay_deleted() {
    let mut random = seeded("deleted_shards_give_their_space_back_and_stay_deleted");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 60).await;
    let keep = model.split_off(&name(0, u64::MAX / 2, 0));
    let mut names: Vec<_> = model.keys().copied().collect();
    disk.refresh_usage().await;
    let before = disk.usage().allocated_bytes;
    names.push(name(9, 9, 0));
    assert_eq!(
        disk.delete(names.clone(), authority()).await.unwrap(),
        model.len() as u64,
        "absent ones do not count"
    );
    assert_eq!(disk.delete(names.clone(), authority()).await.unwrap(), 0);
    disk.refresh_usage().await;
    let freed: usize = model.values().map(Bytes::len).sum();
    assert!(disk.usage().allocated_bytes + freed as u64 <= before + 64 * 1024, "freed={freed}");
    assert_holds(&disk, &keep).await;
    stop(disk).await;

    for rebuild in [false, true] {
        if rebuild {
            std::fs::remove_dir_all(index::path(&path)).unwrap();
        }
        let disk = open_disk(&path);
        assert_holds(&disk, &keep).await;
        for shard in &names {
            assert!(matches!(read_all(&disk, *shard, 1).await, ReadOutcome::Lost(..)));
        }
        assert_eq!(disk.usage().shards_damaged_found, 0);
        stop(disk).await;
    }
}

#[tokio::test]
async fn an_extent_in_which_nothing_lives_is_unlinked() {
    let mut random = seeded("an_extent_in_which_nothing_lives_is_unlinked");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 20).await;
    stop(disk).await;
    let disk = open_disk(&path);
    let mut later = Model::new();
    put_random(&disk, &mut later, &mut random, 5).await;
    assert_eq!(extent_files(&path).len(), 2, "no extent is appended to after a restart");
    disk.delete(model.keys().copied().collect(), authority()).await.unwrap();
    assert_eq!(extent_files(&path).len(), 1);
    assert_holds(&disk, &later).await;
    stop(disk).await;
}

#[tokio::test]
async fn twenty_restarts_cost_little_space() {
    let mut random = seeded("twenty_restarts_cost_little_space");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    stop(new_disk(&path)).await;
    let mut model = Model::new();
    for _ in 0..20 {
        let disk = open_disk(&path);
        put_random(&disk, &mut model, &mut random, 3).await;
        stop(disk).await;
    }
    for _ in 0..20 {
        stop(open_disk(&path)).await;
    }
    let disk = open_disk(&path);
    assert_holds(&disk, &model).await;
    disk.refresh_usage().await;
    let bytes: usize = model.values().map(Bytes::len).sum();
    let allocated = disk.usage().allocated_bytes;
    println!("bytes={bytes} allocated={allocated}");
    // A record wastes at most a boundary and its front, an extent its header; the rest is the index.
    assert!(allocated <= bytes as u64 + 60 * 5000 + 20 * 8192 + 3 * 1024 * 1024);
    stop(disk).await;
}

#[tokio::test]
async fn a_disk_that_cannot_be_written_is_fenced() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    std::fs::remove_dir_all(path.join("extents")).unwrap();
    let bytes = Bytes::from_static(b"shard");
    assert!(matches!(put(&disk, name(1, 1, 0), &bytes).await, PutOutcome::Refused(_)));
    assert_eq!(disk.status().health, Health::Failed);
    assert!(matches!(put(&disk, name(1, 2, 0), &bytes).await, PutOutcome::Refused(_)));
    assert!(matches!(read_all(&disk, name(1, 1, 0), 5).await, ReadOutcome::Refused(_)));
    assert!(matches!(disk.delete(vec![name(1, 1, 0)], authority()).await, Err(DiskError::Refused(_))));
    assert!(matches!(disk.list(None, 1).await, Err(DiskError::Refused(_))));
    stop(disk).await;
}

#[tokio::test]
async fn a_disk_whose_directory_goes_while_it_serves_is_missing() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    std::fs::rename(&path, scratch.path().join("elsewhere")).unwrap();
    disk.refresh_usage().await;
    assert_eq!(disk.status().health, Health::Missing);
    let bytes = Bytes::from_static(b"shard");
    assert!(matches!(put(&disk, name(1, 1, 0), &bytes).await, PutOutcome::Refused(_)));
    stop(disk).await;
}

#[tokio::test]
async fn a_disk_is_served_by_one_process_at_a_time() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    assert!(matches!(Disk::open(&options(&path)), Err(OpenError::Lock(_))));
    stop(disk).await;
    stop(open_disk(&path)).await;
}

/// A file system in memory, of a few megabytes, until it is dropped. Only root can mount one.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    fn mount(path: &std::path::Path, megabytes: usize) -> Option<Self> {
        std::fs::create_dir(path).unwrap();
        let size = format!("size={megabytes}m");
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(path)
            .output()
            .ok()?;
        mount.status.success().then(|| Self(path.to_owned()))
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let unmount = std::process::Command::new("umount").arg(&self.0).output();
        assert!(unmount.is_ok_and(|output| output.status.success()), "left mounted: {:?}", self.0);
    }
}

async fn fill(disk: &Arc<Disk>, model: &mut Model, random: &mut rand::rngs::SmallRng) -> String {
    for number in 0..10_000 {
        let (shard, bytes) = (name(1, number, 1), payload(random, 200_000));
        match put(disk, shard, &bytes).await {
            PutOutcome::Stored => drop(model.insert(shard, bytes)),
            PutOutcome::Refused(reason) => return reason,
            other => panic!("{other:?}"),
        }
    }
    panic!("the disk took everything");
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers_by_deleting() {
    let mut random = seeded("a_full_disk_refuses_writes_serves_reads_and_recovers_by_deleting");
    let scratch = tempfile::tempdir().unwrap();
    let mounted = scratch.path().join("small");
    let Some(_small) = SmallFileSystem::mount(&mounted, 64) else {
        println!("skipped: only root can mount a small file system");
        return;
    };
    // With the default reserve, and with none, so that writes really run out of space.
    for reserve_bytes in [None, Some(0)] {
        let path = mounted.join("disk");
        superblock::format(&path, crate::testing::OWNER).unwrap();
        let disk = Arc::new(Disk::open(&DiskOptions { reserve_bytes, ..options(&path) }).unwrap());
        let mut model = Model::new();
        let reason = fill(&disk, &mut model, &mut random).await;
        assert!(reason.contains("full") || reason.contains("write failed"), "{reason}");
        assert!(model.len() > 100, "only {} were stored", model.len());
        if reserve_bytes.is_none() {
            assert_eq!(disk.status().health, Health::Full);
            assert_holds(&disk, &model).await;
            let gone: Vec<ShardName> = model.keys().copied().take(60).collect();
            assert_eq!(disk.delete(gone.clone(), authority()).await.unwrap(), 60);
            gone.iter().for_each(|shard| drop(model.remove(shard)));
            let bytes = payload(&mut random, 100_000);
            assert_eq!(put(&disk, name(2, 1, 0), &bytes).await, PutOutcome::Stored);
            model.insert(name(2, 1, 0), bytes);
            assert_eq!(disk.status().health, Health::Up);
        }
        if disk.status().health != Health::Failed {
            assert_holds(&disk, &model).await;
        }
        stop(disk).await;
        // The index may have had no room for its last rows; a disk with room again finds all that was acknowledged.
        let copy = scratch.path().join("copy");
        crate::testing::copy_tree(&path, &copy);
        let disk = open_disk(&copy);
        assert_holds(&disk, &model).await;
        assert_eq!(crate::testing::scrub(&disk).await, (model.len() as u64, 0));
        stop(disk).await;
        std::fs::remove_dir_all(&copy).unwrap();
        std::fs::remove_dir_all(&path).unwrap();
    }
}

#[tokio::test]
async fn of_a_batch_that_runs_out_of_space_what_is_whole_is_stored() {
    let mut random = seeded("of_a_batch_that_runs_out_of_space_what_is_whole_is_stored");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 1).await;
    // Each is written at once, whatever it shares a batch with.
    const RECORD_BYTES: u64 = 2 << 20;
    let payloads = (0..12).map(|number| (name(5, number, 0), payload(&mut random, (2 << 20) - 4096)));
    let shards: Model = payloads.collect();
    let extent = extent_files(&path).remove(0);
    let fitting = random.random_range(1..6);
    let end = std::fs::metadata(&extent).unwrap().len() + RECORD_BYTES * fitting;
    crate::faults::fill_up(&extent, end + random.random_range(0..RECORD_BYTES));
    let all = shards.iter().map(|(name, bytes)| put(&disk, *name, bytes));
    let outcomes = futures_util::future::join_all(all).await;
    let mut refused = Model::new();
    for (number, ((name, bytes), outcome)) in (0..).zip(shards.into_iter().zip(outcomes)) {
        match outcome {
            PutOutcome::Stored if number != fitting => drop(model.insert(name, bytes)),
            PutOutcome::Refused(_) if number >= fitting => drop(refused.insert(name, bytes)),
            other => panic!("{number}: {other:?}"),
        }
    }
    let told = disk.core.sequence.load(Ordering::Relaxed);
    assert_eq!(told, model.len() as u64, "no more are told of than a scan would find");
    crate::faults::heal(&extent);
    assert_holds(&disk, &model).await;
    for (name, bytes) in refused {
        assert_eq!(put(&disk, name, &bytes).await, PutOutcome::Stored, "another extent has space");
        model.insert(name, bytes);
    }
    assert_holds(&disk, &model).await;
    stop(disk).await;
    std::fs::remove_dir_all(path.join("index")).unwrap();
    let disk = open_disk(&path);
    assert_holds(&disk, &model).await;
    stop(disk).await;
}

#[tokio::test]
async fn deletions_of_an_older_history_or_epoch_change_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let (shard, bytes) = (name(7, 1, 0), Bytes::from_static(b"shard"));
    assert_eq!(disk.put(put_of(shard, 3, &bytes)).await.unwrap(), PutOutcome::Stored);
    disk.raise_authority(Authority { history: 2, epochs: [(VolumeId(8), Epoch(6))].into() });
    let ordered = |history, epochs: &[(u64, u32)]| {
        let epochs = epochs.iter().map(|(volume, epoch)| (VolumeId(*volume), Epoch(*epoch))).collect();
        Authority { history, epochs }
    };
    let refused = [ordered(1, &[(7, 3)]), ordered(2, &[(7, 2)]), ordered(2, &[]), ordered(2, &[(8, 9)])];
    for authority in refused {
        let deleted = disk.delete(vec![shard], authority.clone()).await;
        assert!(matches!(deleted, Err(DiskError::Stale(_))), "{authority:?}: {deleted:?}");
    }
    let old = Put { history: 1, ..put_of(name(7, 2, 0), 3, &bytes) };
    assert!(matches!(disk.put(old).await.unwrap(), PutOutcome::Refused(_)));
    stop(disk).await;

    // What was raised outlives the index, though no record tells of it.
    std::fs::remove_dir_all(index::path(&path)).unwrap();
    let disk = open_disk(&path);
    let put = Put { history: 2, ..put_of(name(8, 1, 0), 5, &bytes) };
    assert_eq!(disk.put(put).await.unwrap(), PutOutcome::StaleEpoch(Epoch(6)));
    assert!(matches!(disk.delete(vec![shard], ordered(1, &[(7, 3)])).await, Err(DiskError::Stale(_))));
    assert_eq!(disk.delete(vec![shard], ordered(2, &[(7, 3)])).await.unwrap(), 1);
    stop(disk).await;
}

#[tokio::test]
async fn a_disk_that_is_behind_reads_on_and_takes_no_writes() {
    let scratch = tempfile::tempdir().unwrap();
    let disk = new_disk(&scratch.path().join("disk"));
    let (shard, bytes) = (name(1, 1, 0), Bytes::from_static(b"shard"));
    assert_eq!(put(&disk, shard, &bytes).await, PutOutcome::Stored);
    disk.hear(Verdict::Behind("an older copy".to_owned()));
    assert_eq!(disk.status().health, Health::Behind);
    assert!(matches!(put(&disk, name(1, 2, 0), &bytes).await, PutOutcome::Refused(_)));
    assert!(matches!(disk.delete(vec![shard], authority()).await, Err(DiskError::Refused(_))));
    assert_eq!(read_all(&disk, shard, 5).await, ReadOutcome::Bytes(bytes.clone()));
    disk.hear(Verdict::Confirmed);
    assert_eq!(put(&disk, name(1, 2, 0), &bytes).await, PutOutcome::Stored);
    stop(disk).await;
}
