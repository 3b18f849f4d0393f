//! A disk that is gone when the cluster starts.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::cluster::{Cluster, Options};
use chaos::compare::assert_same;
use chaos::serial::serial;
use chaos::size::seed;
use chaos::tree::{self, Shape};
use chaos::wait::wait_for;

const MIB: u64 = 1 << 20;
const NOTICE_DEADLINE: Duration = Duration::from_secs(60);

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

/// The one disk of a storage node: the directory that holds its extents.
fn disk_directory(data_dir: &std::path::Path) -> Result<std::path::PathBuf> {
    for entry in fs::read_dir(data_dir)? {
        let path = entry?.path();
        if path.join("extents").is_dir() {
            return Ok(path);
        }
    }
    anyhow::bail!("no disk in {}", data_dir.display())
}
