//! Power cuts: every metadata and storage directory on a disk of its own that forgets, in the middle of uploads, all
//! that was not made durable. (Killing processes proves nothing about fsync: the kernel keeps their writes.)

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use chaos::cluster::{Cluster, Options};
use chaos::disk::{Mount, XFS_BYTES_MIN, unavailable};
use chaos::ledger::Ledger;
use chaos::serial::serial;
use chaos::size::{Size, seed};
use chaos::skip::skipped;
use chaos::workload::Uploader;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

const UPLOADERS: usize = 3;
const REMOTE: &str = "/power";
/// Sparse: only what is written takes space.
const DISK_BYTES: u64 = 8 * XFS_BYTES_MIN;

#[test]
fn nothing_acknowledged_is_lost_when_the_power_fails() -> Result<()> {
    if let Some(why) = unavailable() {
        return skipped(&format!("power cuts need root and xfsprogs ({why})"));
    }
    let _serial = serial();
    let mut random = SmallRng::seed_from_u64(seed("power_cut"));
    let images = tempfile::tempdir()?;
    let directory = tempfile::tempdir()?;
    // The mounts are dropped after the cluster, the directories after the mounts.
    let mut mounts: Vec<Mount> = Vec::new();
    let groups = Size::chosen().pick("3", "1", "3");
    let mut options = Options::with(&["--data-groups", groups]);
    options.directory = Some(directory.path().join("cluster"));
    let mut cluster = Cluster::start(&options)?;
    cluster.client()?.ok(&["mkdir", REMOTE])?;
    cluster.stop()?;
    for role in cluster.roles("meta").into_iter().chain(cluster.roles("storage")) {
        let data_dir = role.data_dir.clone().context("role without data_dir")?;
        let image = images.path().join(format!("{}-{}", role.role, role.id));
        mounts.push(Mount::under(&data_dir, |point| Mount::xfs(&image, DISK_BYTES, point))?);
    }
    cluster.restart()?;

    let ledger = Ledger::default();
    let rounds = Size::chosen().pick(2, 10, 100);
    for round in 0..rounds {
        let scratch = tempfile::tempdir()?;
        power_cut_round(&mut cluster, &mut mounts, &ledger, &format!("{round}"), scratch.path(), &mut random)
            .with_context(|| format!("round {round} of {rounds}"))?;
    }
    cluster.finish()?;
    drop(mounts);
    Ok(())
}

fn power_cut_round(
    cluster: &mut Cluster,
    mounts: &mut [Mount],
    ledger: &Ledger,
    round: &str,
    scratch: &std::path::Path,
    random: &mut SmallRng,
) -> Result<()> {
    let client = cluster.client()?;
    let stop = AtomicBool::new(false);
    let moment = Duration::from_millis(random.random_range(300..3000));
    let uploaders: Vec<Uploader<'_>> = (0..UPLOADERS)
        .map(|index| Uploader {
            client: client.clone(),
            scratch: scratch.to_owned(),
            remote: REMOTE.to_owned(),
            ledger,
            name: format!("{round}-{index}"),
            seed: random.random(),
        })
        .collect();
    mounts.shuffle(random);
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = uploaders.iter().map(|uploader| scope.spawn(|| uploader.run(&stop))).collect();
        std::thread::sleep(moment);
        // First the disks, while everybody writes; then the processes.
        let restarted = mounts.iter().try_for_each(Mount::cut_power).and_then(|()| {
            stop.store(true, Ordering::Relaxed);
            cluster.kill_all()?;
            mounts.iter_mut().try_for_each(Mount::remount)?;
            cluster.restart()
        });
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|panic| anyhow::anyhow!("an uploader panicked: {panic:?}"))??;
        }
        restarted.map(drop)
    })?;
    let copy = scratch.join("copy");
    client.with_deadline(Duration::from_secs(600)).get(REMOTE, &copy)?;
    let checked = ledger.check(&copy)?;
    eprintln!(
        "round {round}: power cut after {moment:?}, ready after {:?}, {checked:?}",
        cluster.ready_after
    );
    fs::remove_dir_all(&copy)?;
    Ok(())
}
