use super::*;
use crate::disk::ReadOutcome;
use crate::faults;
use crate::index;
use crate::record::payload_start;
use crate::testing::{
    Model, assert_holds, authority, extent_files, flip_bit, listing, new_disk, open_disk, options, put,
    put_random, read_all, scrub, seeded, stop,
};
use crate::writer::PutOutcome;
use rand::Rng;
use std::collections::BTreeSet;

/// Each shard reads right or as lost; those that are lost are among `damaged`.
async fn assert_right_or_lost(disk: &crate::disk::Disk, model: &Model, damaged: &BTreeSet<ShardName>) {
    for (name, bytes) in model {
        match read_all(disk, *name, bytes.len()).await {
            ReadOutcome::Bytes(read) => assert_eq!(read, *bytes),
            ReadOutcome::Lost(_, reason) => assert!(damaged.contains(name), "{reason}"),
            ReadOutcome::Refused(reason) => panic!("{reason}"),
        }
    }
}

#[tokio::test]
async fn flipped_bits_anywhere_are_never_served_and_each_damaged_shard_is_counted_once() {
    let mut random = seeded("flipped_bits_anywhere");
    let scratch = tempfile::tempdir().unwrap();
    for round in 0..12 {
        let path = scratch.path().join(format!("disk-{round}"));
        let disk = new_disk(&path);
        let mut model = Model::new();
        put_random(&disk, &mut model, &mut random, 30).await;
        let rows = listing(&disk).await;
        stop(disk).await;
        let file = extent_files(&path).remove(0);
        let length = std::fs::metadata(&file).unwrap().len();
        let mut damaged = BTreeSet::new();
        for _ in 0..random.random_range(1..30) {
            let offset = random.random_range(0..length);
            flip_bit(&file, offset, random.random_range(0..8));
            let hit = rows.iter().find(|(_, row)| {
                (row.place.offset..row.place.offset + record_bytes(row.payload_length)).contains(&offset)
            });
            damaged.extend(hit.map(|(name, _)| *name));
        }
        let disk = open_disk(&path);
        assert_right_or_lost(&disk, &model, &damaged).await;
        // A bit may have been flipped back; all others are found, by reads or scrubs, and counted once.
        let (checked, found) = scrub(&disk).await;
        assert_eq!(checked, 30);
        assert!(found <= damaged.len() as u64 && found + 1 >= damaged.len() as u64);
        assert_eq!(disk.usage().shards_damaged_found, found);
        assert_eq!(scrub(&disk).await, (30, found));
        assert_eq!(disk.usage().shards_damaged_found, found);
        stop(disk).await;
        let disk = open_disk(&path);
        assert_eq!(disk.usage().shards_damaged_found, found, "the count outlives a restart");

        for (name, bytes) in &model {
            assert_eq!(
                put(&disk, *name, bytes).await,
                PutOutcome::Stored,
                "a damaged shard may be stored anew"
            );
        }
        assert_holds(&disk, &model).await;
        stop(disk).await;
        std::fs::remove_dir_all(index::path(&path)).unwrap();
        let disk = open_disk(&path);
        for (name, bytes) in &model {
            assert_eq!(read_all(&disk, *name, bytes.len()).await, ReadOutcome::Bytes(bytes.clone()));
        }
        stop(disk).await;
    }
}

#[tokio::test]
async fn shards_of_truncated_and_missing_extents_are_found() {
    let mut random = seeded("shards_of_truncated_and_missing_extents_are_found");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let mut model = Model::new();
    let mut disk = new_disk(&path);
    for _ in 0..3 {
        put_random(&disk, &mut model, &mut random, 20).await;
        stop(disk).await;
        disk = open_disk(&path);
    }
    let rows = listing(&disk).await;
    stop(disk).await;
    let files = extent_files(&path);
    assert_eq!(files.len(), 3);
    let cut = std::fs::metadata(&files[1]).unwrap().len() / 2;
    std::fs::OpenOptions::new().write(true).open(&files[1]).unwrap().set_len(cut).unwrap();
    std::fs::remove_file(&files[2]).unwrap();
    let second = rows.iter().map(|(_, row)| row.place.extent).min().map(|first| first.0 + 1).unwrap();
    let damaged: BTreeSet<ShardName> = rows
        .iter()
        .filter(|(_, row)| {
            let end = row.place.offset + payload_start(row.payload_length) + u64::from(row.payload_length);
            row.place.extent.0 > second || (row.place.extent.0 == second && end > cut)
        })
        .map(|(name, _)| *name)
        .collect();
    assert!(damaged.len() > 20);
    let disk = open_disk(&path);
    assert_eq!(scrub(&disk).await, (60, damaged.len() as u64));
    assert_eq!(disk.usage().shards_damaged_found, damaged.len() as u64);
    assert_right_or_lost(&disk, &model, &damaged).await;
    assert_eq!(
        disk.delete(damaged.iter().copied().collect(), authority()).await.unwrap(),
        damaged.len() as u64
    );
    model.retain(|name, _| !damaged.contains(name));
    assert_holds(&disk, &model).await;
    stop(disk).await;
}

#[tokio::test]
async fn the_background_scrub_finds_damage_and_remembers_where_it_is() {
    let mut random = seeded("the_background_scrub_finds_damage_and_remembers_where_it_is");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 20).await;
    let rows = listing(&disk).await;
    stop(disk).await;
    flip_bit(&extent_files(&path)[0], rows[3].1.place.offset + 5, 1);
    let fast = ScrubConfig { bytes_per_second: u64::MAX, interval: Duration::from_secs(3600) };
    let fast = crate::disk::DiskOptions { scrub: fast, ..options(&path) };
    let disk = std::sync::Arc::new(crate::disk::Disk::open(&fast).unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    while disk.usage().shards_damaged_found == 0 {
        assert!(Instant::now() < deadline, "the background scrub found nothing");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop(disk).await;
    let index = index::Index::open(&path, crate::testing::OWNER.disk).unwrap();
    let next_in_ms = index.scrub_cursor().unwrap().next_in_ms;
    assert!((1..=3_600_000).contains(&next_in_ms), "an hour, less what has passed: {next_in_ms}");
}

#[tokio::test]
async fn an_unreadable_sector_costs_its_shard_and_not_the_disk() {
    let mut random = seeded("an_unreadable_sector_costs_its_shard_and_not_the_disk");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let disk = new_disk(&path);
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 20).await;
    let rows = listing(&disk).await;
    let extent = extent_files(&path).remove(0);
    // One by reading it, one by a scrub; the others are read on.
    for (_, row) in &rows[4..6] {
        faults::make_unreadable(&extent, row.place.offset..row.place.offset + 4096);
    }
    let (first, second) = (rows[4].0, rows[5].0);
    let read = read_all(&disk, first, model[&first].len()).await;
    assert!(matches!(read, ReadOutcome::Lost(ShardLoss::Unreadable, _)), "{read:?}");
    assert_eq!(scrub(&disk).await, (20, 2), "the scrub goes on behind them");
    assert_eq!(disk.status().health, engine::cluster::Health::Up);
    assert_eq!(disk.usage().shards_damaged_found, 2);
    for (name, bytes) in model.iter().filter(|(name, _)| **name != first && **name != second) {
        assert_eq!(read_all(&disk, *name, bytes.len()).await, ReadOutcome::Bytes(bytes.clone()));
    }
    // Stored anew, it lies elsewhere.
    assert_eq!(put(&disk, first, &model[&first]).await, PutOutcome::Stored);
    assert_eq!(read_all(&disk, first, model[&first].len()).await, ReadOutcome::Bytes(model[&first].clone()));
    stop(disk).await;
    faults::heal(&extent);
}

#[tokio::test]
async fn a_disk_with_too_many_unreadable_places_is_suspect_over_restarts() {
    let mut random = seeded("a_disk_with_too_many_unreadable_places_is_suspect_over_restarts");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    crate::superblock::format(&path, crate::testing::OWNER).unwrap();
    let wary = crate::disk::DiskOptions { unreadable_places_max: 2, ..options(&path) };
    let disk = std::sync::Arc::new(crate::disk::Disk::open(&wary).unwrap());
    let mut model = Model::new();
    put_random(&disk, &mut model, &mut random, 20).await;
    let rows = listing(&disk).await;
    let extent = extent_files(&path).remove(0);
    for (count, (name, row)) in rows[..3].iter().enumerate() {
        assert_eq!(disk.status().health, engine::cluster::Health::Up, "{count} places");
        faults::make_unreadable(&extent, row.place.offset..row.place.offset + 4096);
        assert!(matches!(read_all(&disk, *name, 1).await, ReadOutcome::Lost(ShardLoss::Unreadable, _)));
    }
    assert_eq!(disk.status().health, engine::cluster::Health::Failed);
    assert!(disk.status().reason.contains("suspect"), "{}", disk.status().reason);
    stop(disk).await;
    let disk = std::sync::Arc::new(crate::disk::Disk::open(&wary).unwrap());
    assert_eq!(disk.status().health, engine::cluster::Health::Failed);
    stop(disk).await;
    faults::heal(&extent);
}
