use super::*;
use crate::disk::{self, Disk, OpenError, ReadOutcome};
use crate::faults;
use crate::index;
use crate::record::{ExtentNumber, Owner, ShardHeader, encode_front};
use crate::testing::{
    Model, OWNER, assert_holds, authority, copy_tree, extent_files, listing, name, new_disk, open_disk,
    payload, put, put_of, put_random, read_all, scrub, seeded, stop,
};
use crate::writer::PutOutcome;
use engine::store::ShardLoss;
use rand::Rng;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

#[tokio::test]
async fn a_deleted_index_is_rebuilt_alike() {
    let mut random = seeded("a_deleted_index_is_rebuilt_alike");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let mut disk = new_disk(&path);
    let mut model = Model::new();
    for _ in 0..3 {
        put_random(&disk, &mut model, &mut random, 30).await;
        let gone: Vec<ShardName> = model.keys().copied().step_by(3).collect();
        disk.delete(gone.clone(), authority()).await.unwrap();
        gone.iter().for_each(|shard| drop(model.remove(shard)));
        stop(disk).await;
        disk = open_disk(&path);
    }
    let before = listing(&disk).await;
    stop(disk).await;
    std::fs::remove_dir_all(index::path(&path)).unwrap();
    let disk = open_disk(&path);
    assert_eq!(listing(&disk).await, before);
    assert_holds(&disk, &model).await;
    assert_eq!(scrub(&disk).await, (model.len() as u64, 0));
    put_random(&disk, &mut model, &mut random, 10).await;
    assert_holds(&disk, &model).await;
    stop(disk).await;
}

#[tokio::test]
async fn a_damaged_index_gives_no_wrong_answer_and_is_rebuilt() {
    let mut random = seeded("a_damaged_index_gives_no_wrong_answer_and_is_rebuilt");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 40).await;
    stop(disk).await;
    for round in 0..15 {
        let copy = scratch.path().join("copy");
        copy_tree(&path, &copy);
        let mut files: Vec<_> =
            std::fs::read_dir(index::path(&copy)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| std::fs::metadata(file).unwrap().len() > 0);
        files.sort();
        let file = &files[random.random_range(0..files.len())];
        let length = std::fs::metadata(file).unwrap().len();
        println!("round={round} file={}", file.display());
        for _ in 0..5 {
            crate::testing::flip_bit(file, random.random_range(0..length), random.random_range(0..8));
        }
        // Perhaps at once, perhaps when it is started again after the damage showed.
        let disk = open_disk(&copy);
        for (shard, bytes) in &model {
            match read_all(&disk, *shard, bytes.len()).await {
                ReadOutcome::Bytes(read) => assert_eq!(read, *bytes),
                ReadOutcome::Refused(_) => {}
                ReadOutcome::Lost(_, reason) => panic!("{reason}"),
            }
        }
        stop(disk).await;
        let disk = open_disk(&copy);
        assert_holds(&disk, &model).await;
        stop(disk).await;
        std::fs::remove_dir_all(&copy).unwrap();
    }
}

#[tokio::test]
async fn an_index_of_another_disk_is_not_believed() {
    let mut random = seeded("an_index_of_another_disk_is_not_believed");
    let scratch = tempfile::tempdir().unwrap();
    let (path, other) = (scratch.path().join("disk"), scratch.path().join("other"));
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 10).await;
    stop(disk).await;
    let stranger = Owner { disk: engine::ids::DiskId::from_bytes([0xd2; 16]), ..OWNER };
    Index::create(&other, stranger.disk).map(|index| index.stop()).unwrap();
    std::fs::remove_dir_all(index::path(&path)).unwrap();
    copy_tree(&index::path(&other), &index::path(&path));
    let disk = open_disk(&path);
    assert_holds(&disk, &model).await;
    stop(disk).await;
}

/// The image that a power cut leaves at a random moment: extents as they are, the index as it was some while before.
#[tokio::test]
async fn after_a_power_cut_every_acknowledged_shard_is_found() {
    let mut random = seeded("after_a_power_cut_every_acknowledged_shard_is_found");
    let scratch = tempfile::tempdir().unwrap();
    for _ in 0..8 {
        let (path, cut) = (scratch.path().join("disk"), scratch.path().join("cut"));
        let disk = new_disk(&path);
        let mut model = Model::new();
        put_random(&disk, &mut model, &mut random, 20).await;
        let gone: Vec<ShardName> = model.keys().copied().take(5).collect();
        disk.delete(gone.clone(), authority()).await.unwrap();
        gone.iter().for_each(|shard| drop(model.remove(shard)));
        let count = random.random_range(0..20);
        put_random(&disk, &mut model, &mut random, count).await;
        copy_tree(&index::path(&path), &index::path(&cut));
        put_random(&disk, &mut model, &mut random, 20).await;
        copy_tree(&path.join("extents"), &cut.join("extents"));
        std::fs::copy(path.join("superblock"), cut.join("superblock")).unwrap();
        stop(disk).await;

        let disk = open_disk(&cut);
        assert_holds(&disk, &model).await;
        assert_eq!(scrub(&disk).await, (model.len() as u64, 0));
        put_random(&disk, &mut model, &mut random, 5).await;
        stop(disk).await;
        let disk = open_disk(&cut);
        assert_holds(&disk, &model).await;
        stop(disk).await;
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::remove_dir_all(&cut).unwrap();
    }
}

/// The index's log loses its end, as un-synced bytes do.
#[tokio::test]
async fn a_torn_index_log_costs_nothing() {
    let mut random = seeded("a_torn_index_log_costs_nothing");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 40).await;
    let live = scratch.path().join("live");
    copy_tree(&path, &live);
    stop(disk).await;
    for _ in 0..12 {
        let copy = scratch.path().join("copy");
        copy_tree(&live, &copy);
        for entry in std::fs::read_dir(index::path(&copy)).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "log") {
                let length = std::fs::metadata(&file).unwrap().len();
                let file = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
                file.set_len(random.random_range(0..=length)).unwrap();
            }
        }
        let disk = open_disk(&copy);
        assert_holds(&disk, &model).await;
        stop(disk).await;
        std::fs::remove_dir_all(&copy).unwrap();
    }
}

/// An unacknowledged record lies torn at the end of the newest extent: it may be there or not, but never wrong, and
/// it is no damage.
#[tokio::test]
async fn torn_ends_are_neither_served_nor_called_damage() {
    let mut random = seeded("torn_ends_are_neither_served_nor_called_damage");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 10).await;
    copy_tree(&index::path(&path), &scratch.path().join("index-before"));
    let files = extent_files(&path);
    let acknowledged_end = std::fs::metadata(&files[0]).unwrap().len();
    let (shard, bytes) = (name(1, 1, 1), payload(&mut random, 150_000));
    assert_eq!(put(&disk, shard, &bytes).await, PutOutcome::Stored);
    let end = std::fs::metadata(&files[0]).unwrap().len();
    // As a crash leaves it: a disk that is closed says of its newest extent that it is whole.
    let live = scratch.path().join("live");
    copy_tree(&path, &live);
    stop(disk).await;

    for round in 0..40 {
        let copy = scratch.path().join("copy");
        copy_tree(&live, &copy);
        std::fs::remove_dir_all(index::path(&copy)).unwrap();
        if round % 2 == 0 {
            copy_tree(&scratch.path().join("index-before"), &index::path(&copy));
        }
        let extent = extent_files(&copy).remove(0);
        let cut = random.random_range(acknowledged_end..end);
        let file = std::fs::OpenOptions::new().write(true).open(&extent).unwrap();
        file.set_len(cut).unwrap();
        if round % 4 >= 2 {
            // The file's length was made durable, its last blocks were not.
            file.set_len(end).unwrap();
        }
        let disk = open_disk(&copy);
        for (shard, bytes) in &model {
            assert_eq!(read_all(&disk, *shard, bytes.len()).await, ReadOutcome::Bytes(bytes.clone()));
        }
        match read_all(&disk, shard, bytes.len()).await {
            ReadOutcome::Lost(..) => {}
            ReadOutcome::Bytes(read) => assert_eq!(read, bytes, "cut={cut}"),
            ReadOutcome::Refused(reason) => panic!("{reason}"),
        }
        assert_eq!(scrub(&disk).await.1, 0, "cut={cut}");
        assert_eq!(put(&disk, shard, &bytes).await, PutOutcome::Stored);
        assert_eq!(read_all(&disk, shard, bytes.len()).await, ReadOutcome::Bytes(bytes.clone()));
        stop(disk).await;
        std::fs::remove_dir_all(&copy).unwrap();
    }
}

/// Killed between the tombstone and the index: the shard is gone, and that is no damage.
#[tokio::test]
async fn a_deletion_cut_short_is_finished_when_it_is_met() {
    let mut random = seeded("a_deletion_cut_short_is_finished_when_it_is_met");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 10).await;
    let rows = listing(&disk).await;
    stop(disk).await;
    let extents = Extents::open(&path, OWNER).unwrap();
    for (shard, row) in rows.iter().take(3) {
        let file = extents.file(row.place.extent).unwrap();
        let tombstone = Head::Tombstone(row.header(*shard));
        extents.write_tombstone(&file, row.place, Stamp::default(), &tombstone).unwrap();
    }
    let disk = open_disk(&path);
    assert!(matches!(read_all(&disk, rows[0].0, 1).await, ReadOutcome::Lost(..)));
    let bytes = model[&rows[1].0].clone();
    assert_eq!(put(&disk, rows[1].0, &bytes).await, PutOutcome::Stored, "it may be stored anew");
    model.remove(&rows[0].0);
    model.remove(&rows[2].0);
    assert_eq!(scrub(&disk).await.1, 0);
    assert_holds(&disk, &model).await;
    stop(disk).await;
    std::fs::remove_dir_all(index::path(&path)).unwrap();
    let disk = open_disk(&path);
    assert_holds(&disk, &model).await;
    stop(disk).await;
}

#[tokio::test]
async fn a_scan_finds_what_lies_behind_damage() {
    let mut random = seeded("a_scan_finds_what_lies_behind_damage");
    let scratch = tempfile::tempdir().unwrap();
    let extents = Extents::open(scratch.path(), OWNER).unwrap();
    let extent = ExtentNumber(1);
    let file = Arc::clone(extents.create(extent).unwrap().file());
    let mut places = Vec::new();
    let mut offset = crate::extent::EXTENT_HEADER_BYTES;
    for number in 0..20 {
        let bytes = payload(&mut random, 70_000);
        let place = Place { extent, offset };
        let header: ShardHeader = put_of(name(1, number, 0), 1, &bytes).header;
        let front = encode_front(OWNER, place, Stamp::default(), &header, &bytes);
        file.write_all_at(&[&front[..], &bytes].concat(), offset).unwrap();
        places.push(place);
        offset += record_bytes(header.payload_length);
    }
    (&*file).flush().unwrap();
    file.set_len(offset + 200 * 1024 * 1024).unwrap();
    let path = extent_files(scratch.path()).remove(0);
    crate::testing::flip_bit(&path, places[7].offset + 20, 3);
    crate::testing::flip_bit(&path, places[12].offset + 40_000, 3);
    let mut found = Vec::new();
    let never = AtomicBool::new(false);
    let options = WalkOptions { verify_all: false, unreadable_places_max: 0, stopping: &never };
    let walk = walk_extent(&extents, extent, 0, options, |place, _, _| {
        found.push(place);
        Ok(())
    });
    let walk = walk.unwrap();
    assert!(walk.unreadable, "the damaged header was met");
    places.remove(7);
    assert_eq!(
        found, places,
        "a damaged payload is found by reading it, a damaged header hides one record only"
    );
}

#[tokio::test]
async fn a_rebuild_goes_past_unreadable_places_and_ends() {
    let mut random = seeded("a_rebuild_goes_past_unreadable_places_and_ends");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 20).await;
    let mut rows = listing(&disk).await;
    rows.sort_by_key(|(_, row)| row.place);
    stop(disk).await;
    std::fs::remove_dir_all(index::path(&path)).unwrap();
    let extent = extent_files(&path).remove(0);
    let gone = rows[9].0;
    faults::make_unreadable(&extent, rows[9].1.place.offset..rows[9].1.place.offset + 4096);
    let disk = open_disk(&path);
    assert_eq!(listing(&disk).await.len(), 19, "all but the one whose head is unreadable");
    model.remove(&gone);
    assert_holds(&disk, &model).await;
    let figures = disk.usage();
    assert!(figures.shards == 19, "{figures:?}");
    stop(disk).await;
    // A disk with nothing but such places ends its scan as well.
    std::fs::remove_dir_all(index::path(&path)).unwrap();
    faults::make_unreadable(&extent, 0..u64::MAX);
    let opened = Disk::open(&crate::testing::options(&path));
    assert!(matches!(opened, Err(OpenError::Scan(ScanError::Suspect { .. }))) || opened.is_ok());
    if let Ok(disk) = opened {
        disk.stop();
    }
    faults::heal(&extent);
}

/// Rot in a record's head, near the end of an extent: damage, since the extent says how far it was durable.
#[tokio::test]
async fn rot_near_the_end_of_an_extent_is_damage_after_a_rebuild() {
    let mut random = seeded("rot_near_the_end_of_an_extent_is_damage_after_a_rebuild");
    let scratch = tempfile::tempdir().unwrap();
    for closed in [true, false] {
        let path = scratch.path().join(format!("disk-{closed}"));
        let disk = new_disk(&path);
        let mut model = Model::new();
        for _ in 0..10 {
            put_random(&disk, &mut model, &mut random, 1).await;
        }
        let mut rows = listing(&disk).await;
        rows.sort_by_key(|(_, row)| row.place);
        let crashed = scratch.path().join(format!("crashed-{closed}"));
        copy_tree(&path, &crashed);
        stop(disk).await;
        let path = if closed { path } else { crashed };
        std::fs::remove_dir_all(index::path(&path)).unwrap();
        let extent = extent_files(&path).remove(0);
        // One head and one payload; behind both of them something was stored later.
        crate::testing::flip_bit(&extent, rows[4].1.place.offset + 20, 2);
        let payload_at = payload_start(rows[6].1.payload_length);
        crate::testing::flip_bit(&extent, rows[6].1.place.offset + payload_at, 2);
        let disk = open_disk(&path);
        assert_eq!(listing(&disk).await.len(), 9, "closed={closed}");
        scrub(&disk).await;
        assert_eq!(disk.usage().shards_damaged_found, 2, "closed={closed}");
        let read = read_all(&disk, rows[6].0, 1).await;
        assert!(matches!(read, ReadOutcome::Lost(ShardLoss::Damaged, _)), "{read:?}");
        stop(disk).await;
    }
}

/// A crash between the sync of a shard that is stored again and the burial of its old record; then the new one is
/// deleted and its space given back.
#[tokio::test]
async fn a_record_that_was_outweighed_never_comes_back() {
    let mut random = seeded("a_record_that_was_outweighed_never_comes_back");
    let scratch = tempfile::tempdir().unwrap();
    for rebuild in [false, true] {
        let path = scratch.path().join(format!("disk-{rebuild}"));
        let disk = new_disk(&path);
        let mut model = Model::new();
        put_random(&disk, &mut model, &mut random, 5).await;
        let (shard, row) = listing(&disk).await.remove(0);
        let bytes = model[&shard].clone();
        stop(disk).await;
        // The old record's payload is damaged, so that it is stored again.
        let extent = extent_files(&path).remove(0);
        let (payload_at, head) = (row.place.offset + payload_start(row.payload_length), {
            let mut head = vec![0; 4096];
            std::fs::File::open(&extent).unwrap().read_exact_at(&mut head, row.place.offset).unwrap();
            head
        });
        crate::testing::flip_bit(&extent, payload_at, 1);
        let disk = open_disk(&path);
        copy_tree(&index::path(&path), &scratch.path().join("index-before"));
        assert!(matches!(read_all(&disk, shard, bytes.len()).await, ReadOutcome::Lost(..)));
        assert_eq!(put(&disk, shard, &bytes).await, PutOutcome::Stored);
        let crashed = scratch.path().join(format!("crashed-{rebuild}"));
        copy_tree(&path, &crashed);
        stop(disk).await;
        // As the crash leaves it: the old record stands, the index knows nothing of the new one.
        std::fs::remove_dir_all(index::path(&crashed)).unwrap();
        if !rebuild {
            copy_tree(&scratch.path().join("index-before"), &index::path(&crashed));
        }
        std::fs::remove_dir_all(scratch.path().join("index-before")).unwrap();
        let old = extent_files(&crashed).remove(0);
        let old = std::fs::OpenOptions::new().write(true).open(&old).unwrap();
        old.write_all_at(&head, row.place.offset).unwrap();

        let disk = open_disk(&crashed);
        assert_eq!(read_all(&disk, shard, bytes.len()).await, ReadOutcome::Bytes(bytes.clone()));
        assert_eq!(disk.delete(vec![shard], authority()).await.unwrap(), 1);
        stop(disk).await;
        std::fs::remove_dir_all(index::path(&crashed)).unwrap();
        let disk = open_disk(&crashed);
        model.remove(&shard);
        assert_eq!(listing(&disk).await.len(), model.len(), "rebuild={rebuild}: a deleted shard came back");
        assert_holds(&disk, &model).await;
        stop(disk).await;
    }
}

/// The new record of a shard that was stored again is a tombstone whose space was not given back; the old one stands.
#[tokio::test]
async fn a_tombstone_outweighs_what_was_appended_before_it() {
    let mut random = seeded("a_tombstone_outweighs_what_was_appended_before_it");
    let scratch = tempfile::tempdir().unwrap();
    crate::superblock::format(scratch.path(), OWNER).unwrap();
    let extents = Extents::open(scratch.path(), OWNER).unwrap();
    let extent = ExtentNumber(1);
    let file = Arc::clone(extents.create(extent).unwrap().file());
    let bytes = payload(&mut random, 5000);
    let header: ShardHeader = put_of(name(1, 1, 0), 1, &bytes).header;
    let places = [4096, 4096 + record_bytes(5000)].map(|offset| Place { extent, offset });
    for (place, sequence) in places.into_iter().zip(1..) {
        let stamp = Stamp { sequence, durable_bytes: place.offset };
        let front = encode_front(OWNER, place, stamp, &header, &bytes);
        file.write_all_at(&[&front[..], &bytes].concat(), place.offset).unwrap();
    }
    file.set_len(4096 + 2 * record_bytes(5000)).unwrap();
    let stamp = Stamp { sequence: 2, durable_bytes: 0 };
    extents.write_tombstone(&file, places[1], stamp, &Head::Tombstone(header)).unwrap();
    let disk = open_disk(scratch.path());
    assert!(listing(&disk).await.is_empty(), "a deleted shard came back");
    stop(disk).await;
}

#[tokio::test]
async fn a_failed_sync_fences_the_disk_until_its_records_were_verified() {
    let mut random = seeded("a_failed_sync_fences_the_disk_until_its_records_were_verified");
    let scratch = tempfile::tempdir().unwrap();
    let (path, node) = (scratch.path().join("disk"), scratch.path().join("node"));
    crate::superblock::format(&path, OWNER).unwrap();
    let options = disk::DiskOptions { data_dir: Some(node), ..crate::testing::options(&path) };
    let disk = Arc::new(Disk::open(&options).unwrap());
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 10).await;
    let extent = extent_files(&path).remove(0);
    faults::fail_syncs(&extent);
    let refused = put(&disk, name(1, 1, 1), &payload(&mut random, 100)).await;
    assert!(matches!(refused, PutOutcome::Refused(_)), "{refused:?}");
    assert!(disk.is_fenced());
    stop(disk).await;

    faults::heal(&extent);
    // A restart does not lift the fence; verifying does.
    for _ in 0..2 {
        assert!(matches!(Disk::open(&options), Err(OpenError::Fenced { .. })));
    }
    let verified = disk::unfence(&options).unwrap();
    assert!(verified.shards >= 10 && verified.damaged == 0, "{verified:?}");
    let disk = Arc::new(Disk::open(&options).unwrap());
    assert!(disk.start().verified_starts > 0);
    for (name, bytes) in &model {
        assert_eq!(read_all(&disk, *name, bytes.len()).await, ReadOutcome::Bytes(bytes.clone()));
    }
    stop(disk).await;
}

/// What lies behind the index's mark is synced before it is indexed; if that fails, the disk is fenced, not served.
#[tokio::test]
async fn what_cannot_be_synced_after_a_crash_is_not_served() {
    let mut random = seeded("what_cannot_be_synced_after_a_crash_is_not_served");
    let scratch = tempfile::tempdir().unwrap();
    let (path, crashed) = (scratch.path().join("disk"), scratch.path().join("crashed"));
    let disk = new_disk(&path);
    copy_tree(&index::path(&path), &index::path(&crashed));
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 10).await;
    copy_tree(&path.join("extents"), &crashed.join("extents"));
    std::fs::copy(path.join("superblock"), crashed.join("superblock")).unwrap();
    stop(disk).await;
    let extent = extent_files(&crashed).remove(0);
    faults::fail_syncs(&extent);
    assert!(matches!(Disk::open(&crate::testing::options(&crashed)), Err(OpenError::Fenced { .. })));
    faults::heal(&extent);
    disk::unfence(&crate::testing::options(&crashed)).unwrap();
    let disk = open_disk(&crashed);
    assert_holds(&disk, &model).await;
    stop(disk).await;
}

#[tokio::test]
async fn an_index_that_fails_while_it_serves_is_rebuilt_and_the_disk_comes_back() {
    let mut random = seeded("an_index_that_fails_while_it_serves_is_rebuilt_and_the_disk_comes_back");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 40).await;
    stop(disk).await;
    // Its rows are in a table by now; its blocks rot.
    let disk = open_disk(&path);
    disk.flush_index();
    stop(disk).await;
    for entry in std::fs::read_dir(index::path(&path)).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "sst") {
            for offset in (8..200).step_by(16) {
                crate::testing::flip_bit(&file, offset, 3);
            }
        }
    }
    let disk = open_disk(&path);
    let deadline = Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let mut whole = disk.status().health == engine::cluster::Health::Up;
        for (name, bytes) in &model {
            whole &= read_all(&disk, *name, bytes.len()).await == ReadOutcome::Bytes(bytes.clone());
        }
        if whole {
            break;
        }
        assert!(Instant::now() < deadline, "{:?}", disk.status());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    put_random(&disk, &mut model, &mut random, 5).await;
    assert_holds(&disk, &model).await;
    stop(disk).await;
}

#[tokio::test]
async fn the_count_of_records_outlives_deletions_and_the_index() {
    let mut random = seeded("the_count_of_records_outlives_deletions_and_the_index");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 30).await;
    assert_eq!(disk.start().sequence, 30);
    let all: Vec<ShardName> = model.keys().copied().collect();
    disk.delete(all, authority()).await.unwrap();
    let crashed = scratch.path().join("crashed");
    copy_tree(&path, &crashed);
    stop(disk).await;
    for copy in [&path, &crashed] {
        std::fs::remove_dir_all(index::path(copy)).unwrap();
        let disk = open_disk(copy);
        assert_eq!((disk.start().starts, disk.start().sequence), (2, 30));
        stop(disk).await;
    }
}
