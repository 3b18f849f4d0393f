//! Decaying disks: flipped bits, a truncated extent, a deleted index. Every read is right, and a scrub finds it all.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::client::Client;
use chaos::cluster::{Cluster, Options};
use chaos::compare::assert_same;
use chaos::damage;
use chaos::serial::serial;
use chaos::size::{Size, seed};
use chaos::tree::{self, Shape};
use chaos::wait::wait_for;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const NOTICE_DEADLINE: Duration = Duration::from_secs(60);

fn storage_dir(cluster: &Cluster, node: usize) -> Result<PathBuf> {
    cluster.roles("storage")[node].data_dir.clone().context("storage node without data_dir")
}

fn read_back(client: &Client, made: &Path, scratch: &Path) -> Result<()> {
    let back = scratch.join("back");
    client.get("/tree", &back)?;
    assert_same(made, &back)?;
    fs::remove_dir_all(&back)?;
    Ok(())
}

/// Damaged shards that a scrub finds now. The status soon counts at least as many.
fn scrub(client: &Client) -> Result<u64> {
    let report = client.json(&["admin", "scrub", "--now"])?;
    let damaged = report["damaged"].as_u64().with_context(|| report.to_string())?;
    wait_for("the damage in the status", NOTICE_DEADLINE, || {
        Ok((client.status()?.shards_damaged_found >= damaged).then_some(()))
    })?;
    Ok(damaged)
}

#[test]
fn flipped_bits_and_lost_tails_never_reach_a_reader() -> Result<()> {
    let _serial = serial();
    let mut random = SmallRng::seed_from_u64(seed("damage"));
    let mut cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("damage")?;
    let made = scratch.join("made");
    tree::generate(&made, Shape { files: 80, bytes_max: 5 * MIB }, random.random())?;
    client.put(&[&made], "/tree")?;

    // Two disks of six, which 4+2 survives whatever happens to them. First while everything runs.
    let flips = damage::flip_bits(
        &damage::extents(&storage_dir(&cluster, 0)?)?,
        Size::chosen().pick(60, 400, 400),
        &mut random,
    )?;
    read_back(&client, &made, &scratch)?;
    let found = scrub(&client)?;
    ensure!(found > 0, "{} bits flipped, no damaged shard found", flips.len());

    // Then a tail lost and more bits flipped while stopped.
    cluster.stop()?;
    let extents = damage::extents(&storage_dir(&cluster, 3)?)?;
    damage::flip_bits(&extents, Size::chosen().pick(40, 300, 300), &mut random)?;
    let largest = extents.iter().max_by_key(|path| fs::metadata(path).map_or(0, |data| data.len()));
    let largest = largest.context("no extents")?;
    damage::truncate(largest, fs::metadata(largest)?.len() / 2)?;
    cluster.restart()?;
    read_back(&client, &made, &scratch)?;
    let found_more = scrub(&client)?;
    ensure!(found_more > found, "a truncated extent and no more damage found: {found} then {found_more}");
    ensure!(scrub(&client)? == found_more, "a second scrub counted the same shards again");
    read_back(&client, &made, &scratch)?;
    cluster.finish()
}

#[test]
fn a_scrub_counts_each_damaged_shard_once() -> Result<()> {
    let _serial = serial();
    let mut random = SmallRng::seed_from_u64(seed("scrub"));
    let mut cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("scrub")?;
    // Files of 3 MiB that do not compress, put one by one: every disk gets a large shard of each.
    let made = scratch.join("made");
    fs::create_dir(&made)?;
    client.ok(&["mkdir", "/tree"])?;
    for index in 0..8 {
        let file = made.join(format!("{index}"));
        tree::write_random(&file, 3 * MIB, random.random())?;
        client.put(&[&file], &format!("/tree/{index}"))?;
    }
    ensure!(scrub(&client)? == 0, "damage before anything was damaged");

    let mut damaged = 0;
    for node in [1, 4] {
        let extent = damage::extents(&storage_dir(&cluster, node)?)?.pop().context("no extent")?;
        let records = large_records(&extent)?;
        ensure!(records.len() >= 8, "only {} large records in {}", records.len(), extent.display());
        // One flip, or several, in the payload of some records: far enough behind their headers.
        let mut chosen = BTreeSet::new();
        while chosen.len() < 5 {
            chosen.extend(records.choose(&mut random));
        }
        for (start, length) in &chosen {
            for _ in 0..random.random_range(1..4) {
                let offset = start + random.random_range(32 * KIB..length - 32 * KIB);
                damage::flip_bit(&extent, offset, random.random_range(0..8))?;
            }
        }
        damaged += u64::try_from(chosen.len())?;
    }
    let found = scrub(&client)?;
    ensure!(found == damaged, "{found} found, {damaged} damaged: {:?}", client.status()?);
    // Counted once, also over a restart.
    cluster.stop()?;
    cluster.restart()?;
    wait_for("the count after a restart", NOTICE_DEADLINE, || {
        Ok((client.status()?.shards_damaged_found == damaged).then_some(()))
    })?;
    ensure!(scrub(&client)? == damaged && client.status()?.shards_damaged_found == damaged, "counted twice");
    client.get("/tree", &scratch.join("back"))?;
    for index in 0..8 {
        let name = format!("{index}");
        assert_same(&made.join(&name), &scratch.join("back").join(&name))?;
    }
    cluster.finish()
}

/// Where large records begin in an extent, and their lengths: from one page that begins as the first record does (behind
/// the extent's own header) to the next.
fn large_records(extent: &Path) -> Result<Vec<(u64, u64)>> {
    const PAGE: usize = 4096;
    const MAGIC_BYTES: usize = 8;
    let bytes = fs::read(extent)?;
    let magic = bytes.get(PAGE..PAGE + MAGIC_BYTES).context("an empty extent")?;
    let mut starts: Vec<u64> = Vec::new();
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        if page.starts_with(magic) {
            starts.push(u64::try_from(index * PAGE)?);
        }
    }
    let ends = starts.iter().skip(1).copied().chain([u64::try_from(bytes.len())?]);
    let records = starts.iter().zip(ends).map(|(&start, end)| (start, end - start));
    Ok(records.filter(|(_, length)| *length > 128 * KIB).collect())
}

#[test]
fn a_deleted_index_is_rebuilt_from_the_extents() -> Result<()> {
    let _serial = serial();
    let mut random = SmallRng::seed_from_u64(seed("index"));
    let mut cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("index")?;
    let made = scratch.join("made");
    tree::generate(&made, Shape { files: 60, bytes_max: 3 * MIB }, random.random())?;
    client.put(&[&made], "/tree")?;
    let shards = |client: &Client| -> Result<Vec<u64>> {
        let status = client.json(&["admin", "status"])?;
        let disks = status["disks"].as_array().cloned().unwrap_or_default();
        let mut counts: Vec<(u64, u64)> = disks
            .iter()
            .map(|disk| (disk["node"].as_u64().unwrap_or(0), disk["shards"].as_u64().unwrap_or(0)))
            .collect();
        counts.sort_unstable();
        Ok(counts.into_iter().map(|(_, count)| count).collect())
    };
    cluster.stop()?;
    cluster.restart()?;
    // A disk's figures come with its heartbeats.
    let before = wait_for("the disks' figures", NOTICE_DEADLINE, || {
        let counts = shards(&client)?;
        Ok(counts.iter().all(|count| *count > 0).then_some(counts))
    })?;
    cluster.stop()?;
    let mut deleted = 0;
    for node in 0..6 {
        for entry in fs::read_dir(storage_dir(&cluster, node)?)? {
            let index = entry?.path().join("index");
            if index.is_dir() {
                fs::remove_dir_all(&index)?;
                deleted += 1;
            }
        }
    }
    ensure!(deleted == 6, "{deleted} indexes found");
    cluster.restart()?;
    // Any two nodes may be gone besides: the rebuilt indexes must serve alone.
    cluster.kill(("storage", 2))?;
    cluster.kill(("storage", 5))?;
    read_back(&client, &made, &scratch)?;
    cluster.start_role(("storage", 2))?;
    cluster.start_role(("storage", 5))?;
    wait_for("as many shards as before", NOTICE_DEADLINE, || Ok((shards(&client)? == before).then_some(())))
        .with_context(|| format!("before {before:?}, now {:?}", shards(&client)))?;
    cluster.finish()
}
