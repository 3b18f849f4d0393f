//! What is stored already is stored once, edits send little, and small files do not cost much more than their bytes.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use chaos::cluster::{Cluster, Options};
use chaos::compare::assert_same;
use chaos::disk::allocated_bytes;
use chaos::group::Group;
use chaos::serial::serial;
use chaos::size::{Size, seed};
use chaos::tree;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// 4+2 in the default cluster.
const EXPANSION: f64 = 1.5;
const LONG: Duration = Duration::from_secs(1800);

/// Bytes allocated on all storage disks, indexes included.
fn bytes_on_disks(cluster: &Cluster) -> Result<u64> {
    let mut sum = 0;
    for role in cluster.roles("storage") {
        if let Some(directory) = &role.data_dir {
            sum += allocated_bytes(directory)?;
        }
    }
    Ok(sum)
}

#[expect(clippy::cast_precision_loss, reason = "byte counts, for ratios")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[test]
fn the_same_tree_again_adds_nothing() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let admin = cluster.client()?.with_deadline(LONG);
    let other = cluster.account("other@example.org")?.with_deadline(LONG);
    let scratch = cluster.scratch("dedup")?;
    let seed = seed("dedup");
    let made = scratch.join("made");
    fs::create_dir(&made)?;
    for index in 0..Size::chosen().pick(24, 200, 200) {
        tree::write_random(&made.join(format!("{index}")), 5 * MIB + index, seed.wrapping_add(index))?;
    }

    admin.put(&[&made], "/one")?;
    let before = bytes_on_disks(&cluster)?;
    admin.put(&[&made], "/two")?;
    let foreign = other.put(&[&made], "/mine")?;
    let added = bytes_on_disks(&cluster)?.saturating_sub(before);
    ensure!(ratio(added, before) < 0.01, "{added} bytes added to {before}");

    // The other account had to show that it has the bytes.
    ensure!(foreign.bytes_sent == foreign.bytes, "another account was spared sending: {foreign:?}");
    other.get("/mine", &scratch.join("back"))?;
    assert_same(&made, &scratch.join("back"))?;
    ensure!(!other.exists("/one")?, "another account sees the tree");

    let status = admin.status()?;
    ensure!(status.bytes_logical >= 3 * foreign.bytes, "{status:?}");
    ensure!(status.bytes_unique <= foreign.bytes, "{status:?}");
    cluster.finish()
}

#[test]
fn one_byte_at_the_start_of_a_large_file_sends_little() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?.with_deadline(LONG);
    let scratch = cluster.scratch("insert")?;
    let (made, edited) = (scratch.join("made"), scratch.join("edited"));
    let size = Size::chosen().pick(128 * MIB, 1024 * MIB, 1024 * MIB);
    tree::write_random(&made, size, seed("insert"))?;
    prepend(&made, b"!", &edited)?;

    client.put(&[&made], "/file")?;
    let output = client.ok(&["put".as_ref(), "--json".as_ref(), edited.as_os_str(), "/file".as_ref()])?;
    let sent = output.json()?["bytes_sent"].as_u64().unwrap_or(u64::MAX);
    ensure!(sent < 2 * MIB, "{sent} bytes sent");
    ensure!(output.elapsed < Duration::from_secs(10), "took {:?}", output.elapsed);
    eprintln!("one byte inserted: {sent} bytes sent in {:?}", output.elapsed);
    client.get("/file", &scratch.join("back"))?;
    assert_same(&edited, &scratch.join("back"))?;
    cluster.finish()
}

#[test]
fn small_files_cost_little_more_than_their_bytes() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?.with_deadline(LONG);
    let scratch = cluster.scratch("small")?;
    let seed = seed("small");
    let made = scratch.join("made");
    fs::create_dir(&made)?;
    let count = Size::chosen().pick(3_000, 10_000, 10_000);
    for index in 0..count {
        tree::write_random(&made.join(format!("{index:05}")), 4 * KIB, seed.wrapping_add(index))?;
    }
    let before = bytes_on_disks(&cluster)?;
    let started = std::time::Instant::now();
    let report = client.put(&[&made], "/small")?;
    let elapsed = started.elapsed();
    let cost = ratio(bytes_on_disks(&cluster)?.saturating_sub(before), report.bytes) / EXPANSION;
    eprintln!("{count} files of 4 KiB in {elapsed:?}: {cost:.2} times their coded bytes on the disks");
    ensure!(cost <= 2.0, "{cost} times the coded bytes");
    client.get("/small", &scratch.join("back"))?;
    assert_same(&made, &scratch.join("back"))?;
    cluster.finish()
}

fn prepend(source: &Path, prefix: &[u8], target: &Path) -> Result<()> {
    let mut input = File::open(source)?;
    let mut output = File::create(target)?;
    output.write_all(prefix)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        output.write_all(&buffer[..count])?;
    }
}

/// Licences, empty configurations and the like: more of them than a chunk is sent for at once.
#[test]
fn hundreds_of_small_files_with_the_same_content_are_put_and_synchronised() -> Result<()> {
    let _serial = serial();
    let group = Group::new("the-same", 1)?;
    let device = &group.devices[0];
    let made = device.home().join("made");
    fs::create_dir(&made)?;
    for index in 0..300 {
        fs::write(made.join(format!("{index}")), "the same in all of them")?;
        device.write(&format!("here/{index}"), "the same on the device")?;
    }
    let put = group.client.put(&[&made], "/put")?;
    ensure!(put.files == 300, "{put:?}");
    device.once_agreed()?;
    for index in 0..300 {
        let got = device.read(&format!("put/{index}"));
        ensure!(got.as_deref() == Some(b"the same in all of them".as_slice()), "{index}: {got:?}");
    }
    group.finish()?;
    Ok(())
}
