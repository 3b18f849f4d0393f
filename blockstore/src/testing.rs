//! What the tests of several modules share: disks in scratch directories, shards made from a seed, crash images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use engine::cluster::StripeLayout;
use engine::code::Code;
use engine::ids::{ClusterId, DiskId, Epoch, Position, StripeId, VolumeId};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::config::{ScrubConfig, UNREADABLE_PLACES_MAX_DEFAULT};
use crate::disk::{Disk, DiskOptions, ReadOutcome};
use crate::index::Row;
use crate::record::{Owner, ShardHeader, ShardName};
use crate::scrub::ScrubEnd;
use crate::superblock;
use crate::writer::{Authority, Put, PutOutcome};

pub(crate) const OWNER: Owner =
    Owner { cluster: ClusterId::from_bytes([0xc1; 16]), disk: DiskId::from_bytes([0xd1; 16]) };

/// The shards that must be there, by name.
pub(crate) type Model = BTreeMap<ShardName, Bytes>;

/// A seed from the environment, or a fresh one; printed, so that a failure can be repeated.
pub(crate) fn seeded(test: &str) -> SmallRng {
    let given = std::env::var("KEEPSTONE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(rand::random);
    println!("{test}: KEEPSTONE_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

pub(crate) fn options(path: &Path) -> DiskOptions {
    DiskOptions {
        path: path.to_owned(),
        owner: OWNER,
        reserve_bytes: Some(0),
        scrub: ScrubConfig { bytes_per_second: 0, ..ScrubConfig::default() },
        data_dir: None,
        unreadable_places_max: UNREADABLE_PLACES_MAX_DEFAULT,
    }
}

/// Leave to change any of the tests' volumes.
pub(crate) fn authority() -> Authority {
    let volumes = (0..10).chain([u64::MAX]).map(|volume| (VolumeId(volume), Epoch(1))).collect();
    Authority { history: 1, epochs: volumes }
}

/// A formatted disk in `path`, served.
pub(crate) fn new_disk(path: &Path) -> Arc<Disk> {
    superblock::format(path, OWNER).unwrap();
    open_disk(path)
}

pub(crate) fn open_disk(path: &Path) -> Arc<Disk> {
    Arc::new(Disk::open(&options(path)).unwrap())
}

pub(crate) async fn stop(disk: Arc<Disk>) {
    tokio::task::spawn_blocking(move || disk.stop()).await.unwrap();
}

pub(crate) fn name(volume: u64, number: u64, position: u8) -> ShardName {
    ShardName { stripe: StripeId::new(VolumeId(volume), number.to_be_bytes()), position: Position(position) }
}

pub(crate) fn payload(random: &mut SmallRng, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    random.fill_bytes(&mut bytes);
    Bytes::from(bytes)
}

/// Lengths around what matters: blocks, boundaries, and small ones most of all.
pub(crate) fn length(random: &mut SmallRng) -> usize {
    let around = [1, 3900, 4096, 65_536, 131_072, 300_000];
    let centre: usize = around[random.random_range(0..around.len())];
    (centre + random.random_range(0..200)).saturating_sub(100).max(1)
}

pub(crate) fn put_of(name: ShardName, epoch: u32, payload: &Bytes) -> Put {
    let payload_length = u32::try_from(payload.len()).unwrap();
    let header = ShardHeader {
        name,
        epoch: Epoch(epoch),
        code: Code::new(4, 2).unwrap(),
        layout: StripeLayout::Coded,
        stripe_length: payload_length,
        payload_length,
        payload_crc32: crc32fast::hash(payload),
    };
    Put { history: 1, header, payload: payload.clone() }
}

pub(crate) async fn put(disk: &Disk, name: ShardName, payload: &Bytes) -> PutOutcome {
    disk.put(put_of(name, 1, payload)).await.unwrap()
}

/// Stores `count` random shards, several at once, and notes them.
pub(crate) async fn put_random(disk: &Arc<Disk>, model: &mut Model, random: &mut SmallRng, count: usize) {
    let mut waiting = Vec::new();
    for _ in 0..count {
        let name = name(random.random_range(1..4), random.random(), random.random_range(0..6));
        let length = length(random);
        let bytes = payload(random, length);
        model.insert(name, bytes.clone());
        let disk = Arc::clone(disk);
        waiting.push(tokio::spawn(async move { put(&disk, name, &bytes).await }));
    }
    for put in waiting {
        assert_eq!(put.await.unwrap(), PutOutcome::Stored);
    }
}

pub(crate) async fn read_all(disk: &Disk, name: ShardName, length: usize) -> ReadOutcome {
    disk.read(name, 0, u32::try_from(length).unwrap()).await.unwrap()
}

/// Every shard of the model is there, byte for byte, and no other.
pub(crate) async fn assert_holds(disk: &Disk, model: &Model) {
    for (name, bytes) in model {
        assert_eq!(read_all(disk, *name, bytes.len()).await, ReadOutcome::Bytes(bytes.clone()), "{name:?}");
    }
    assert_eq!(listing(disk).await.len(), model.len());
    assert_eq!(disk.usage().shards, model.len() as u64);
}

pub(crate) async fn listing(disk: &Disk) -> Vec<(ShardName, Row)> {
    disk.list(None, usize::MAX).await.unwrap()
}

/// Scrubs the whole disk: records checked, and those found damaged.
pub(crate) async fn scrub(disk: &Disk) -> (u64, u64) {
    let counts = Arc::new(std::sync::Mutex::new((0, 0)));
    let counted = Arc::clone(&counts);
    let end = disk.scrub(move |checked| {
        let mut counts = counted.lock().unwrap();
        counts.0 += 1;
        counts.1 += u64::from(checked.damaged);
        true
    });
    assert_eq!(end.await.unwrap(), ScrubEnd::Complete);
    *counts.lock().unwrap()
}

/// The extent files of a disk, ascending.
pub(crate) fn extent_files(disk: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(disk.join("extents")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Copies a directory with all below it, as a crash would find it. Files that go meanwhile are passed over.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else if let Err(error) = std::fs::copy(entry.path(), &target) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        }
    }
}

/// Flips one bit of a file.
pub(crate) fn flip_bit(file: &Path, offset: u64, bit: u8) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], offset).unwrap();
}
