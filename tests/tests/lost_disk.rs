//! A disk that is gone when the cluster starts, or older than what it acknowledged.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos::client::Client;
use chaos::cluster::{Cluster, Options};
use chaos::compare::assert_same;
use chaos::serial::serial;
use chaos::size::seed;
use chaos::tree::{self, Shape, copy_tree};
use chaos::wait::wait_for;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const NOTICE_DEADLINE: Duration = Duration::from_secs(60);
/// The warden writes the disks' counts down every 2 s.
const ATTESTED_AFTER: Duration = Duration::from_secs(5);

#[test]
fn a_deleted_disk_is_named_and_everything_reads() -> Result<()> {
    let _serial = serial();
    let mut cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("lost-disk")?;
    let made = scratch.join("made");
    tree::generate(&made, Shape { files: 60, bytes_max: 4 * MIB }, seed("lost_disk"))?;
    client.put(&[&made], "/tree")?;
    cluster.stop()?;

    let node = cluster.roles("storage")[2].clone();
    let data_dir = node.data_dir.clone().context("storage node without data_dir")?;
    let disk = disk_directory(&data_dir)?;
    fs::remove_dir_all(&disk)?;
    cluster.restart()?;

    client.get("/tree", &scratch.join("back"))?;
    assert_same(&made, &scratch.join("back"))?;
    let status = wait_for("the disk to be reported", NOTICE_DEADLINE, || {
        let status = client.json(&["admin", "status"])?;
        let disks = status["disks"].as_array().cloned().unwrap_or_default();
        Ok(disks.iter().any(|disk| disk["state"] == "missing").then_some(status))
    })?;
    ensure!(status["health"] == "degraded", "{status}");
    let missing: Vec<_> =
        status["disks"].as_array().into_iter().flatten().filter(|disk| disk["state"] != "up").collect();
    ensure!(missing.len() == 1 && missing[0]["node"] == node.id, "which disk? {missing:?}");
    let (short, total) = (status["stripes_short"].as_u64(), status["stripes_total"].as_u64());
    ensure!(short > Some(0) && short <= total, "stripes short: {short:?} of {total:?}");
    ensure!(!disk.join("superblock").exists(), "the missing disk was formatted anew");
    let shown = client.ok(&["admin", "status"])?.stdout;
    ensure!(shown.contains("missing"), "not shown to people: {shown}");
    cluster.finish()
}

/// The disks whose state is not `up`, and the lines of `problems`, once there are `count` of them.
fn not_up(client: &Client, count: usize) -> Result<(Vec<Value>, String)> {
    wait_for("the disks that are not up", NOTICE_DEADLINE, || {
        let status = client.json(&["admin", "status"])?;
        let disks = status["disks"].as_array().cloned().unwrap_or_default();
        let found: Vec<Value> = disks.into_iter().filter(|disk| disk["state"] != "up").collect();
        Ok((found.len() == count).then(|| (found, status["problems"].to_string())))
    })
}

/// A disk's directory is replaced by a copy that is one `put` older. Whether it was copied while the cluster was stopped
/// or while it ran, the next start says so, and the right directory heals it.
#[test]
fn a_disk_that_is_older_than_what_it_acknowledged_is_named() -> Result<()> {
    let _serial = serial();
    let mut cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("older-disk")?;
    let made = scratch.join("made");
    tree::generate(&made, Shape { files: 20, bytes_max: MIB }, seed("older_disk"))?;
    client.put(&[&made], "/before")?;
    let node = cluster.roles("storage")[2].clone();
    let disk = disk_directory(&node.data_dir.clone().context("storage node without data_dir")?)?;

    for stopped in [true, false] {
        let older = scratch.join(format!("older-{stopped}"));
        if stopped {
            cluster.stop()?;
            copy_tree(&disk, &older)?;
            cluster.restart()?;
        } else {
            copy_tree(&disk, &older)?;
        }
        let name = format!("/after-{stopped}");
        // One put after another, over more than the time for which counts are in the leader's memory alone.
        let until = Instant::now() + ATTESTED_AFTER;
        let mut files = 0;
        while files == 0 || Instant::now() < until {
            let file = scratch.join(format!("file-{stopped}-{files}"));
            tree::write_random(&file, 3 * MIB, seed("older_disk") + files)?;
            client.put(&[&file], &format!("{name}-{files}"))?;
            files += 1;
        }
        cluster.stop()?;
        let right = scratch.join(format!("right-{stopped}"));
        fs::rename(&disk, &right).or_else(|_other_file_system| {
            copy_tree(&disk, &right)?;
            Ok::<_, anyhow::Error>(fs::remove_dir_all(&disk)?)
        })?;
        copy_tree(&older, &disk)?;
        cluster.restart()?;

        let (found, problems) = not_up(&client, 1)?;
        ensure!(found[0]["state"] == "behind" && found[0]["node"] == node.id, "which disk? {found:?}");
        ensure!(problems.contains("put the right directory back"), "{problems}");
        ensure!(client.status()?.health == "degraded", "not said");
        let back = scratch.join(format!("back-{stopped}"));
        client.get(&format!("{name}-0"), &back)?;
        assert_same(&scratch.join(format!("file-{stopped}-0")), &back)?;
        // It stays so over a restart, whatever is written meanwhile.
        client.put(&[&made], &format!("/meanwhile-{stopped}"))?;
        cluster.stop()?;
        cluster.restart()?;
        ensure!(not_up(&client, 1)?.0[0]["state"] == "behind", "forgotten after a restart");

        cluster.stop()?;
        fs::remove_dir_all(&disk)?;
        copy_tree(&right, &disk)?;
        cluster.restart()?;
        not_up(&client, 0)?;
    }
    cluster.finish()
}

/// The one disk of a storage node: the directory that holds its extents.
fn disk_directory(data_dir: &Path) -> Result<std::path::PathBuf> {
    for entry in fs::read_dir(data_dir)? {
        let path = entry?.path();
        if path.join("extents").is_dir() {
            return Ok(path);
        }
    }
    anyhow::bail!("no disk in {}", data_dir.display())
}
