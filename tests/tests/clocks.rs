//! Machines whose clocks are wrong for a while: nothing stops once they are right again, and nothing that was written
//! meanwhile is of another day.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use chaos::client::Client;
use chaos::cluster::{Cluster, Options, RoleName};
use chaos::serial::serial;
use chaos::skip::skipped;
use chaos::wait::wait_for;

/// How soon all must work again.
const RIGHT_DEADLINE: Duration = Duration::from_secs(10);
/// How long an election, and all that follows, may take while machines are down.
const ELECTION_DEADLINE: Duration = Duration::from_secs(60);
/// How far a time may be from this test's own.
const TIME_TOLERANCE: Duration = Duration::from_secs(120);

/// What sets the clock of one process; `None` where it is not installed.
fn faketime() -> Option<PathBuf> {
    let libraries = std::fs::read_dir("/usr/lib").ok()?;
    let found = libraries.flatten().map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    found.into_iter().find(|path| path.is_file())
}

fn ahead(library: &std::path::Path, days: u32) -> Vec<(&'static str, String)> {
    vec![
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", format!("+{days}d")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}

/// Makes a folder, each attempt a request of its own, until one works.
fn writes_within(client: &Client, folder: &str, deadline: Duration) -> Result<()> {
    wait_for(&format!("a write of {folder}"), deadline, || {
        let Ok(output) = client.with_deadline(deadline).run(&["mkdir", folder]) else { return Ok(None) };
        if output.code != Some(0) {
            eprintln!("{folder}: {}", output.stderr.trim());
        }
        Ok((output.code == Some(0)).then_some(()))
    })
}

/// Reads, lists and deletes as well, and what was made is of now.
fn all_works(client: &Client, folder: &str) -> Result<()> {
    writes_within(client, folder, RIGHT_DEADLINE)?;
    let listing = client.json(&["ls", "/"])?;
    let entries = listing["entries"].as_array().or_else(|| listing.as_array()).context("a listing")?;
    let name = folder.trim_start_matches('/');
    let entry = entries.iter().find(|entry| entry["name"] == name).context("the folder is not listed")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let changed = entry["changed"].as_str().context("when it was changed")?;
    let output = std::process::Command::new("date").args(["-d", changed, "+%s"]).output()?;
    let changed: u64 = String::from_utf8(output.stdout)?.trim().parse().context(changed.to_owned())?;
    ensure!(
        now.as_secs().abs_diff(changed) <= TIME_TOLERANCE.as_secs(),
        "{folder} was changed at {changed}, now it is {}",
        now.as_secs()
    );
    client.ok(&["rm", "-r", folder])?;
    Ok(())
}

fn restart(cluster: &mut Cluster, roles: &[RoleName], environment: &[(&str, String)]) -> Result<()> {
    for role in roles {
        cluster.kill(*role)?;
    }
    for role in roles {
        cluster.start_role_under(*role, environment)?;
    }
    Ok(())
}

#[test]
fn a_leader_whose_clock_is_ahead_stops_no_write_then_or_later() -> Result<()> {
    let _serial = serial();
    let Some(library) = faketime() else {
        return skipped("libfaketime is not installed (deploy/check-toolchain --tests installs it)");
    };
    let mut cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    client.ok(&["mkdir", "/kept"])?;
    restart(&mut cluster, &[("meta", 0)], &ahead(&library, 2))?;
    writes_within(&client, "/one-ahead", ELECTION_DEADLINE)?;
    // Node 1 misses a write that the other two have; when 2 is away, only 0 can lead.
    cluster.kill(("meta", 1))?;
    writes_within(&client, "/two-left", ELECTION_DEADLINE)?;
    cluster.kill(("meta", 2))?;
    cluster.start_role(("meta", 1))?;
    writes_within(&client, "/led-by-it", ELECTION_DEADLINE)?;
    cluster.start_role(("meta", 2))?;
    all_works(&client, "/while-it-leads")?;
    restart(&mut cluster, &[("meta", 0)], &[])?;
    all_works(&client, "/right-again")?;
    client.ok(&["ls", "/kept"])?;
    cluster.finish()
}

#[test]
fn clocks_that_were_all_ahead_for_one_write_stop_none_afterwards() -> Result<()> {
    let _serial = serial();
    let Some(library) = faketime() else {
        return skipped("libfaketime is not installed (deploy/check-toolchain --tests installs it)");
    };
    let mut cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    client.ok(&["mkdir", "/kept"])?;
    let mut all = vec![("gateway", 0)];
    all.extend((0..cluster.roles("meta").len()).map(|index| ("meta", index)));
    all.extend((0..cluster.roles("storage").len()).map(|index| ("storage", index)));
    for days in [2, 40] {
        restart(&mut cluster, &all, &ahead(&library, days))?;
        writes_within(&client, &format!("/all-ahead-{days}"), ELECTION_DEADLINE)?;
        restart(&mut cluster, &all, &[])?;
        writes_within(&client, &format!("/first-{days}"), ELECTION_DEADLINE)?;
        all_works(&client, &format!("/right-again-{days}"))?;
    }
    client.ok(&["ls", "/kept"])?;
    cluster.finish()
}
