use super::*;
use crate::disk::ReadOutcome;
use crate::index;
use crate::record::{ExtentNumber, Owner, ShardHeader, encode_front};
use crate::testing::{
    Model, OWNER, assert_holds, copy_tree, extent_files, listing, name, new_disk, open_disk, payload, put,
    put_of, put_random, read_all, scrub, seeded, stop,
};
use crate::writer::PutOutcome;
use rand::Rng;
use std::io::Write;

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
        disk.delete(gone.clone()).await.unwrap();
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
                ReadOutcome::Lost(reason) => panic!("{reason}"),
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
        disk.delete(gone.clone()).await.unwrap();
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
    stop(disk).await;

    for round in 0..40 {
        let copy = scratch.path().join("copy");
        copy_tree(&path, &copy);
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
            ReadOutcome::Lost(_) => {}
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
        extents.write_tombstone(&file, row.place, &Head::Tombstone(row.header(*shard))).unwrap();
    }
    let disk = open_disk(&path);
    assert!(matches!(read_all(&disk, rows[0].0, 1).await, ReadOutcome::Lost(_)));
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
    let file = extents.create(extent).unwrap();
    let mut places = Vec::new();
    let mut offset = crate::extent::EXTENT_HEADER_BYTES;
    for number in 0..20 {
        let bytes = payload(&mut random, 70_000);
        let place = Place { extent, offset };
        let header: ShardHeader = put_of(name(1, number, 0), 1, &bytes).header;
        let front = encode_front(OWNER, place, &header, &bytes);
        crate::extent::write_parts(&file, &[&front, &bytes], offset).unwrap();
        places.push(place);
        offset += record_bytes(header.payload_length);
    }
    (&*file).flush().unwrap();
    file.set_len(offset + 200 * 1024 * 1024).unwrap();
    let path = extent_files(scratch.path()).remove(0);
    crate::testing::flip_bit(&path, places[7].offset + 20, 3);
    crate::testing::flip_bit(&path, places[12].offset + 40_000, 3);
    let mut found = Vec::new();
    let walk = walk_extent(&extents, extent, 0, false, |place, _| {
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
