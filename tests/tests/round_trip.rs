//! What is put comes back: to the last byte, with permission bits, times and symlinks.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use chaos::cluster::{Cluster, Options};
use chaos::compare::assert_same;
use chaos::serial::serial;
use chaos::size::{Size, seed};
use chaos::skip::skipped;
use chaos::tree::{self, Shape};

const MIB: u64 = 1 << 20;
/// For trees and files of full size.
const LONG: Duration = Duration::from_secs(1800);

#[test]
fn a_tree_comes_back_to_the_last_byte() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?.with_deadline(LONG);
    let scratch = cluster.scratch("round-trip")?;
    let made = scratch.join("made");
    tree::generate(&made, Shape { files: 300, bytes_max: 3 * MIB }, seed("round_trip"))?;

    let report = client.put(&[&made], "/tree")?;
    let files = count_files(&made)?;
    ensure!(report.files == files, "{} files reported of {files}", report.files);
    client.get("/tree", &scratch.join("back"))?;
    assert_same(&made, &scratch.join("back"))?;

    // A second put of the same changes nothing, and sends nothing.
    let again = client.put(&[&made], "/again")?;
    ensure!(again.bytes == report.bytes, "{again:?}");
    ensure!(again.bytes_sent <= report.bytes, "{again:?}");
    let over = client.put(&[&made.join("edges")], "/again")?;
    ensure!(over.failed.is_empty());
    client.get("/again/edges", &scratch.join("edges-back"))?;
    assert_same(&made.join("edges"), &scratch.join("edges-back"))?;
    cluster.finish()
}

#[test]
fn files_above_each_cutters_range_come_back() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?.with_deadline(LONG);
    let scratch = cluster.scratch("cutters")?;
    let sizes: &[u64] = Size::chosen().pick(
        &[32 * MIB, 32 * MIB + 1],
        &[32 * MIB, 32 * MIB + 1, 1024 * MIB, 4096 * MIB, 4096 * MIB + 1],
        &[32 * MIB, 32 * MIB + 1, 1024 * MIB, 4096 * MIB, 4096 * MIB + 1],
    );
    for &size in sizes {
        let (made, back) = (scratch.join("made"), scratch.join("back"));
        tree::write_random(&made, size, seed("cutters"))?;
        client.put(&[&made], &format!("/large-{size}"))?;
        client.get(&format!("/large-{size}"), &back)?;
        assert_same(&made, &back)?;
        fs::remove_file(back)?;
    }
    cluster.finish()
}

#[test]
fn a_real_tree_comes_back() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?.with_deadline(LONG);
    let scratch = cluster.scratch("real")?;
    let source = Path::new(Size::chosen().pick("/usr/share/perl", "/usr/share", "/usr/share"));
    if !source.is_dir() {
        cluster.finish()?;
        return skipped(&format!("no {}", source.display()));
    }
    // A copy: the system's own tree may change meanwhile.
    let real = scratch.join("real");
    let copied = Command::new("cp").arg("-a").arg(source).arg(&real).status()?;
    ensure!(copied.success(), "cp -a {}: {copied}", source.display());
    let report = client.put(&[&real], "/real")?;
    let least = Size::chosen().pick(100, 10_000, 10_000);
    ensure!(report.files > least, "only {} files in {}", report.files, real.display());
    client.get("/real", &scratch.join("back"))?;
    assert_same(&real, &scratch.join("back"))?;
    cluster.finish()
}

fn count_files(root: &Path) -> Result<u64> {
    let mut count = 0;
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_type()?.is_file() {
                count += 1;
            }
        }
    }
    Ok(count)
}
