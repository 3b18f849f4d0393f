//! Disks that answer with EIO, and metadata disks that fill up, while files are uploaded.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::client::{Client, binary};
use chaos::cluster::{Cluster, Options, RoleInfo};
use chaos::compare::assert_same;
use chaos::disk::{Mount, XFS_BYTES_MIN, leave};
use chaos::faulty::{FaultyDisk, unavailable};
use chaos::ledger::Ledger;
use chaos::serial::serial;
use chaos::size::seed;
use chaos::skip::skipped;
use chaos::tree::{self, Shape};
use chaos::wait::wait_for;
use chaos::workload::Uploader;

const MIB: u64 = 1 << 20;
const REMOTE: &str = "/files";
const NOTICE_DEADLINE: Duration = Duration::from_secs(60);
/// Trees of small files that full metadata disks may still take.
const FOLDERS_MAX: usize = 400;
/// Puts that must be acknowledged before, and again after, a disk fails.
const PUTS_MIN: usize = 5;

/// Uploads on two threads, and counts what was acknowledged, until `meanwhile` has ended.
fn while_uploading(
    client: &Client,
    scratch: &Path,
    ledger: &Ledger,
    meanwhile: impl FnOnce(&AtomicUsize) -> Result<()>,
) -> Result<()> {
    let (stop, puts) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|index| {
                let (stop, puts) = (&stop, &puts);
                scope.spawn(move || -> Result<()> {
                    let mut turn = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let uploader = Uploader {
                            client: client.clone(),
                            scratch: scratch.to_owned(),
                            remote: REMOTE.to_owned(),
                            ledger,
                            name: format!("{index}-{turn}"),
                            seed: seed("disk_errors") + turn * 2 + index,
                        };
                        puts.fetch_add(usize::from(uploader.put_one()?), Ordering::Relaxed);
                        turn += 1;
                    }
                    Ok(())
                })
            })
            .collect();
        let result = meanwhile(&puts);
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|panic| anyhow::anyhow!("an uploader panicked: {panic:?}"))??;
        }
        result
    })
}

fn wait_for_puts(puts: &AtomicUsize, what: &str) -> Result<()> {
    let before = puts.load(Ordering::Relaxed);
    wait_for(what, NOTICE_DEADLINE, || Ok((puts.load(Ordering::Relaxed) >= before + PUTS_MIN).then_some(())))
}

fn check(client: &Client, ledger: &Ledger, scratch: &Path, name: &str) -> Result<()> {
    let copy = scratch.join(name);
    client.get(REMOTE, &copy)?;
    ledger.check(&copy)?;
    fs::remove_dir_all(copy)?;
    Ok(())
}

/// A cluster with one role's directory on a disk that can fail.
fn cluster_on(directory: &Path, kind: &str, index: usize) -> Result<(Cluster, FaultyDisk)> {
    let options = Options { directory: Some(directory.join("cluster")), ..Options::default() };
    let mut cluster = Cluster::start(&options)?;
    cluster.client()?.ok(&["mkdir", REMOTE])?;
    cluster.stop()?;
    let data_dir = cluster.roles(kind)[index].data_dir.clone().context("no data_dir")?;
    let disk = FaultyDisk::under(&data_dir, 4 * XFS_BYTES_MIN)?;
    cluster.restart()?;
    Ok((cluster, disk))
}

/// Has the one disk of a storage role that does not run verified.
fn unfence(role: &RoleInfo) -> Result<String> {
    let config =
        role.argv.iter().skip_while(|argument| *argument != "--config").nth(1).context("no --config")?;
    let data_dir = role.data_dir.as_ref().context("no data_dir")?;
    let mut disks = fs::read_dir(data_dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    let disk = disks.find(|path| path.join("superblock").exists()).context("no disk")?;
    let output = std::process::Command::new(binary()?)
        .args(["storage", "--config", config, "--unfence"])
        .arg(disk)
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_storage_disk_that_takes_no_writes_is_fenced_and_nothing_is_lost() -> Result<()> {
    if let Some(why) = unavailable() {
        return skipped(&format!("failing disks need root, nbdkit, nbdfuse and xfsprogs ({why})"));
    }
    let _serial = serial();
    let directory = tempfile::tempdir()?;
    let scratch = tempfile::tempdir()?;
    let (mut cluster, mut disk) = cluster_on(directory.path(), "storage", 2)?;
    let client = cluster.client()?;
    let node = cluster.roles("storage")[2].id;
    let ledger = Ledger::default();

    while_uploading(&client, scratch.path(), &ledger, |puts| {
        wait_for_puts(puts, "puts on a healthy disk")?;
        disk.fail_writes(true)?;
        let status = wait_for("the failed disk to be reported", NOTICE_DEADLINE, || {
            let status = client.json(&["admin", "status"])?;
            let disks = status["disks"].as_array().cloned().unwrap_or_default();
            Ok(disks.iter().any(|disk| disk["state"] == "failed" && disk["node"] == node).then_some(status))
        })?;
        ensure!(status["health"] == "degraded", "{status}");
        wait_for_puts(puts, "puts beside a failed disk")
    })?;
    check(&client, &ledger, scratch.path(), "beside")?;

    // The disk is healed, as by a reboot. That does not lift the fence, though neither the disk nor its node could note
    // it: the cluster remembers.
    disk.fail_writes(false)?;
    cluster.kill(("storage", 2))?;
    disk.remount()?;
    cluster.start_role(("storage", 2))?;
    wait_for("the fence to be told after a restart", NOTICE_DEADLINE, || {
        let status = client.json(&["admin", "status"])?;
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        Ok(problems
            .iter()
            .any(|line| line.as_str().is_some_and(|line| line.contains("--unfence")))
            .then_some(()))
    })?;

    // Once its records were verified, what it had acknowledged is there, and it takes part again.
    cluster.kill(("storage", 2))?;
    let verified = unfence(cluster.roles("storage")[2])?;
    ensure!(verified.contains("0 of them damaged"), "{verified}");
    cluster.start_role(("storage", 2))?;
    wait_for("the disk to be used again", NOTICE_DEADLINE, || {
        let status = client.json(&["admin", "status"])?;
        let disks = status["disks"].as_array().cloned().unwrap_or_default();
        Ok(disks.iter().all(|disk| disk["state"] == "up").then_some(()))
    })?;
    cluster.kill(("storage", 4))?;
    check(&client, &ledger, scratch.path(), "healed")?;
    cluster.finish()?;
    drop(disk);
    Ok(())
}

#[test]
fn a_storage_disk_that_cannot_be_read_is_read_around() -> Result<()> {
    if let Some(why) = unavailable() {
        return skipped(&format!("failing disks need root, nbdkit, nbdfuse and xfsprogs ({why})"));
    }
    let _serial = serial();
    let directory = tempfile::tempdir()?;
    let scratch = tempfile::tempdir()?;
    let (mut cluster, disk) = cluster_on(directory.path(), "storage", 1)?;
    let client = cluster.client()?;
    let ledger = Ledger::default();
    while_uploading(&client, scratch.path(), &ledger, |puts| wait_for_puts(puts, "puts"))?;
    // What the kernel has cached of it goes with the restart and the remount's like.
    cluster.stop()?;
    cluster.restart()?;
    disk.fail_reads(true)?;
    check(&client, &ledger, scratch.path(), "around")?;
    check(&client, &ledger, scratch.path(), "around-again")?;
    disk.fail_reads(false)?;
    cluster.finish()?;
    drop(disk);
    Ok(())
}

#[test]
fn a_metadata_disk_that_takes_no_writes_stops_its_replica_only() -> Result<()> {
    if let Some(why) = unavailable() {
        return skipped(&format!("failing disks need root, nbdkit, nbdfuse and xfsprogs ({why})"));
    }
    let _serial = serial();
    let directory = tempfile::tempdir()?;
    let scratch = tempfile::tempdir()?;
    for index in [0, 1] {
        let home = directory.path().join(format!("{index}"));
        fs::create_dir(&home)?;
        let (mut cluster, mut disk) = cluster_on(&home, "meta", index)?;
        let client = cluster.client()?;
        let ledger = Ledger::default();
        while_uploading(&client, scratch.path(), &ledger, |puts| {
            wait_for_puts(puts, "puts on healthy disks")?;
            disk.fail_writes(true)?;
            wait_for_puts(puts, "puts beside a failing replica")?;
            wait_for_puts(puts, "further puts beside a failing replica")
        })?;
        check(&client, &ledger, scratch.path(), "beside")?;
        // Healed, it catches up and serves: the others cannot do without it once one of them is gone.
        disk.fail_writes(false)?;
        cluster.kill(("meta", index))?;
        disk.remount()?;
        cluster.start_role(("meta", index))?;
        cluster.kill(("meta", 2))?;
        while_uploading(&client, scratch.path(), &ledger, |puts| {
            wait_for_puts(puts, "puts with the healed replica")
        })?;
        check(&client, &ledger, scratch.path(), "healed")?;
        cluster.finish()?;
        drop(disk);
    }
    Ok(())
}

#[test]
fn full_metadata_disks_refuse_writes_and_lose_nothing() -> Result<()> {
    if let Some(why) = chaos::disk::unavailable() {
        return skipped(&format!("small disks need root ({why})"));
    }
    let _serial = serial();
    let directory = tempfile::tempdir()?;
    let scratch = tempfile::tempdir()?;
    let options = Options { directory: Some(directory.path().join("cluster")), ..Options::default() };
    let mut cluster = Cluster::start(&options)?;
    let client = cluster.client()?;
    client.ok(&["mkdir", REMOTE])?;
    cluster.stop()?;
    let mut mounts = Vec::new();
    let mut homes = BTreeSet::new();
    for role in cluster.roles("meta") {
        let data_dir = role.data_dir.clone().context("no data_dir")?;
        mounts.push(Mount::under(&data_dir, |point| Mount::tmpfs(192 * MIB, point))?);
        homes.insert(data_dir);
    }
    cluster.restart()?;
    let ledger = Ledger::default();
    while_uploading(&client, scratch.path(), &ledger, |puts| {
        wait_for_puts(puts, "puts with room on all replicas")?;
        let first = homes.first().context("no replica")?;
        // Nearly full: the replica takes part in what others lead.
        leave(first, 8 * MIB)?;
        wait_for_puts(puts, "puts beside one full replica")
    })?;
    check(&client, &ledger, scratch.path(), "one-full")?;

    homes.iter().try_for_each(|home| leave(home, 8 * MIB))?;
    // Space that the logs have set aside takes some more.
    let many = scratch.path().join("many");
    tree::generate(&many, Shape { files: 300, bytes_max: 4096 }, seed("full_metadata"))?;
    let mut made = Vec::new();
    let refused = loop {
        let folder = format!("/made-{}", made.len());
        let arguments = ["put".as_ref(), many.as_os_str(), folder.as_ref()];
        let output = client.with_deadline(NOTICE_DEADLINE).run(&arguments)?;
        if output.code != Some(0) {
            break output;
        }
        made.push(folder);
        ensure!(made.len() < FOLDERS_MAX, "{} trees were taken by full disks", made.len());
    };
    ensure!(refused.code == Some(1), "{refused:?}");
    ensure!(refused.stderr.contains("at their reserve"), "refused, but why? {refused:?}");
    check(&client, &ledger, scratch.path(), "all-full")?;

    // Room again: it goes on by itself, and everything acknowledged is there, also after a crash.
    for home in &homes {
        fs::remove_file(home.join("ballast"))?;
    }
    wait_for("writes once there is room", NOTICE_DEADLINE, || {
        Ok((client.run(&["mkdir", "-p", "/room"])?.code == Some(0)).then_some(()))
    })?;
    cluster.kill_all()?;
    cluster.restart()?;
    check(&client, &ledger, scratch.path(), "room")?;
    for folder in &made {
        let back = scratch.path().join("back");
        client.get(folder, &back)?;
        assert_same(&many, &back)?;
        fs::remove_dir_all(back)?;
    }
    client.ok(&["mkdir", "/accepted"])?;
    cluster.finish()?;
    drop(mounts);
    Ok(())
}
