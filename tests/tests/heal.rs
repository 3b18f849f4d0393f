//! Files that lost more than their stripes survive: reads say so, and whoever puts the same bytes again has them back,
//! for all who refer to them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::client::Client;
use chaos::cluster::{Cluster, Options};
use chaos::compare::assert_same;
use chaos::damage;
use chaos::serial::serial;
use chaos::size::seed;
use chaos::tree::{self, Shape};
use chaos::wait::wait_for;

const MIB: u64 = 1 << 20;
const PAGE_BYTES: u64 = 4096;
const DEADLINE: Duration = Duration::from_secs(120);

/// Flips a bit in every page that holds anything, from a part of each extent on.
fn rot(cluster: &Cluster, nodes: &[usize], from: impl Fn(u64) -> u64) -> Result<()> {
    for node in nodes {
        let directory = cluster.roles("storage")[*node].data_dir.clone().context("no data_dir")?;
        for extent in damage::extents(&directory)? {
            let file = File::options().read(true).write(true).open(&extent)?;
            let pages = file.metadata()?.len() / PAGE_BYTES;
            let mut page = [0; 4096];
            for index in from(pages)..pages {
                file.read_exact_at(&mut page, index * PAGE_BYTES)?;
                if page.iter().any(|byte| *byte != 0) {
                    file.write_all_at(&[page[2000] ^ 1], index * PAGE_BYTES + 2000)?;
                }
            }
        }
    }
    Ok(())
}

fn reads(client: &Client, remote: &str, made: &Path, scratch: &Path) -> Result<bool> {
    let back = scratch.join("back");
    if back.exists() {
        fs::remove_dir_all(&back)?;
    }
    let output = client.run(&["get".as_ref(), remote.as_ref(), back.as_os_str()])?;
    if output.code != Some(0) {
        let told = format!("{}{}", output.stdout, output.stderr);
        ensure!(told.contains("cannot be read"), "fails, and does not say why: {told}");
        return Ok(false);
    }
    assert_same(made, &back)?;
    Ok(true)
}

/// Puts the tree's files and folders where they are already.
fn put_again(client: &Client, made: &Path, remote: &str) -> Result<()> {
    let entries = fs::read_dir(made)?.map(|entry| Ok(entry?.path()));
    let entries = entries.collect::<Result<Vec<PathBuf>>>()?;
    client.put(&entries.iter().map(PathBuf::as_path).collect::<Vec<_>>(), remote)?;
    Ok(())
}

struct Scene {
    cluster: Cluster,
    owner: Client,
    other: Client,
    made: PathBuf,
    scratch: PathBuf,
}

/// A tree of small and large files that two accounts hold.
fn scene(options: &Options, name: &str) -> Result<Scene> {
    let cluster = Cluster::start(options)?;
    let owner = cluster.client()?;
    let other = cluster.account("other@example.org")?;
    let scratch = cluster.scratch(name)?;
    let made = scratch.join("made");
    tree::generate(&made, Shape { files: 30, bytes_max: 2 * MIB }, seed(name))?;
    tree::write_random(&made.join("large"), 14 * MIB, seed(name).wrapping_add(1))?;
    owner.put(&[&made], "/tree")?;
    other.put(&[&made], "/theirs")?;
    Ok(Scene { cluster, owner, other, made, scratch })
}

#[test]
fn what_has_rotted_on_more_disks_than_it_survives_is_whole_again_once_it_is_put_again() -> Result<()> {
    let _serial = serial();
    let Scene { cluster, owner, other, made, scratch } = scene(&Options::default(), "heal-rot")?;
    // Nobody has read it since: the disks are asked when it is put.
    rot(&cluster, &[0, 2, 5], |_pages| 0)?;
    put_again(&owner, &made, "/tree")?;
    ensure!(reads(&owner, "/tree", &made, &scratch)?, "put again, and it does not read");
    ensure!(reads(&other, "/theirs", &made, &scratch)?, "the other holder's does not read");

    // Only a part of each shard: what the disks say of their shards is not enough, a read has found it.
    rot(&cluster, &[1, 3, 4], |pages| pages / 2)?;
    ensure!(!reads(&owner, "/tree", &made, &scratch)?, "nothing was lost");
    ensure!(!reads(&other, "/theirs", &made, &scratch)?, "nothing was lost");
    put_again(&owner, &made, "/tree")?;
    ensure!(reads(&owner, "/tree", &made, &scratch)?, "put again, and it does not read");
    ensure!(reads(&other, "/theirs", &made, &scratch)?, "the other holder's does not read");
    cluster.finish()
}

#[test]
fn what_another_account_puts_takes_the_place_of_what_is_lost() -> Result<()> {
    let _serial = serial();
    let Scene { cluster, owner, made, scratch, .. } = scene(&Options::default(), "heal-other")?;
    let third = cluster.account("third@example.org")?;
    rot(&cluster, &[0, 2, 5], |_pages| 0)?;
    third.put(&[&made], "/mine")?;
    ensure!(reads(&third, "/mine", &made, &scratch)?, "fresh bytes were dropped");
    ensure!(reads(&owner, "/tree", &made, &scratch)?, "the owner's does not read");
    cluster.finish()
}

/// Also: volumes with dead members are no reason not to make others, while healthy disks suffice.
#[test]
fn what_lay_on_disks_that_are_gone_is_whole_again_once_it_is_put_again() -> Result<()> {
    let _serial = serial();
    let options = Options::with(&["--storage-nodes", "10", "--code", "4+2"]);
    let Scene { mut cluster, owner, other, made, scratch } = scene(&options, "heal-gone")?;
    cluster.stop()?;
    for node in [0, 3, 6, 9] {
        let directory = cluster.roles("storage")[node].data_dir.clone().context("no data_dir")?;
        fs::remove_dir_all(disk_directory(&directory)?)?;
    }
    cluster.restart()?;
    wait_for("volumes that cannot be read", DEADLINE, || {
        let told = owner.run(&["admin", "status"])?;
        Ok(format!("{}{}", told.stdout, told.stderr).contains("cannot be read").then_some(()))
    })?;
    let mut number = 0;
    wait_for("volumes without the disks that are gone", DEADLINE, || {
        let probe = scratch.join("probe");
        number += 1;
        tree::write_random(&probe, 3 * MIB, seed("probe").wrapping_add(number))?;
        let before = owner.status()?.stripes_short;
        let stored = owner.run(&["put".as_ref(), probe.as_os_str(), "/probe".as_ref()])?.code == Some(0);
        owner.run(&["rm", "/probe"])?;
        Ok((stored && owner.status()?.stripes_short == before).then_some(()))
    })?;
    put_again(&owner, &made, "/tree")?;
    ensure!(reads(&owner, "/tree", &made, &scratch)?, "put again, and it does not read");
    ensure!(reads(&other, "/theirs", &made, &scratch)?, "the other holder's does not read");
    cluster.finish()
}

/// The one disk of a storage node: the directory that holds its extents.
fn disk_directory(data_dir: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(data_dir)? {
        let path = entry?.path();
        if path.join("extents").is_dir() {
            return Ok(path);
        }
    }
    anyhow::bail!("no disk in {}", data_dir.display())
}
