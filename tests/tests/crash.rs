//! Everything killed with SIGKILL at random moments of uploads, again and again: what was acknowledged is there, what
//! was not is not half there, and the cluster is back soon.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::client::Client;
use chaos::cluster::{Cluster, Options};
use chaos::ledger::Ledger;
use chaos::serial::serial;
use chaos::size::{Size, seed};
use chaos::wait::wait_for;
use chaos::workload::Uploader;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

/// How soon a cluster must be back.
const READY_MAX: Duration = Duration::from_secs(5);
/// How soon whoever empties the nursery next has emptied it: once the lease of the one who was killed is over.
const EMPTIED_MAX: Duration = Duration::from_secs(90);
const UPLOADERS: usize = 3;
const REMOTE: &str = "/crash";

#[test]
fn nothing_acknowledged_is_lost_with_one_data_group() -> Result<()> {
    crash_rounds("1", Size::chosen().pick(4, 20, 200))
}

#[test]
fn nothing_acknowledged_is_lost_with_three_data_groups() -> Result<()> {
    crash_rounds("3", Size::chosen().pick(4, 20, 200))
}

fn crash_rounds(data_groups: &str, rounds: usize) -> Result<()> {
    let _serial = serial();
    let mut random = SmallRng::seed_from_u64(seed("crash"));
    let mut cluster = Cluster::start(&Options::with(&["--data-groups", data_groups]))?;
    cluster.client()?.ok(&["mkdir", REMOTE])?;
    // Small files are moved into stripes while they are put, and while all is killed.
    cluster.client()?.ok(&["admin", "settings", "set", "nursery-age", "0ms"])?;
    let ledger = Ledger::default();
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let ready_after = crash_round(&mut cluster, &ledger, round, &mut random)
            .with_context(|| format!("round {round} of {rounds}, {data_groups} data groups"))?;
        slowest = slowest.max(ready_after);
        ensure!(ready_after < READY_MAX, "round {round}: ready after {ready_after:?}");
    }
    eprintln!("{data_groups} data groups, {rounds} rounds: ready after {slowest:?} at worst");
    let client = cluster.client()?;
    wait_for("the nursery to be emptied", EMPTIED_MAX, || {
        let status = client.json(&["admin", "status"])?;
        Ok((status["nursery_files"] == 0).then_some(()))
    })?;
    judge(&client, &ledger, &cluster.scratch("emptied")?)?;
    cluster.finish()
}

/// Uploads, a moment, death, restart, judgement. Returns how long the restart took.
fn crash_round(
    cluster: &mut Cluster,
    ledger: &Ledger,
    round: usize,
    random: &mut SmallRng,
) -> Result<Duration> {
    let client = cluster.client()?;
    let scratch = cluster.scratch(&format!("round-{round}"))?;
    let stop = AtomicBool::new(false);
    let moment = Duration::from_millis(random.random_range(200..2500));
    let uploaders: Vec<Uploader<'_>> = (0..UPLOADERS)
        .map(|index| Uploader {
            client: client.clone(),
            scratch: scratch.clone(),
            remote: REMOTE.to_owned(),
            ledger,
            name: format!("{round}-{index}"),
            seed: random.random(),
        })
        .collect();
    let before = ledger.acknowledged_count();
    let ready_after = std::thread::scope(|scope| -> Result<Duration> {
        let threads: Vec<_> = uploaders.iter().map(|uploader| scope.spawn(|| uploader.run(&stop))).collect();
        std::thread::sleep(moment);
        let restarted = cluster.kill_all().and_then(|()| {
            stop.store(true, Ordering::Relaxed);
            cluster.restart()
        });
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|panic| anyhow::anyhow!("an uploader panicked: {panic:?}"))??;
        }
        restarted
    })?;
    let checked = judge(&client, ledger, &scratch)?;
    eprintln!(
        "round {round}: killed after {moment:?}, {} puts acknowledged, ready after {ready_after:?}, {checked:?}",
        ledger.acknowledged_count() - before
    );
    fs::remove_dir_all(&scratch)?;
    Ok(ready_after)
}

fn judge(client: &Client, ledger: &Ledger, scratch: &std::path::Path) -> Result<chaos::ledger::Checked> {
    let copy = scratch.join("copy");
    client.with_deadline(Duration::from_secs(600)).get(REMOTE, &copy)?;
    ledger.check(&copy)
}
