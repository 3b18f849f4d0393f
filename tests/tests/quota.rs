//! What an account may keep: what counts, what is said once it is full, and what makes room.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos::client::{Client, Output};
use chaos::cluster::{Cluster, Options};
use chaos::disk::{Mount, leave};
use chaos::serial::serial;
use chaos::size::{Size, seed};
use chaos::skip::skipped;
use chaos::tree;
use chaos::wait::wait_for;
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// How long something may take that a loaded machine does in seconds.
const DEADLINE: Duration = Duration::from_secs(90);

fn number(document: &Value, field: &str) -> Result<u64> {
    document[field].as_u64().with_context(|| format!("no {field} in {document}"))
}

fn used_bytes(client: &Client) -> Result<u64> {
    number(&client.json(&["whoami"])?, "used_bytes")
}

/// The numbers of a file's versions, newest first.
fn versions(client: &Client, path: &str) -> Result<Vec<u64>> {
    let document = client.json(&["versions", "ls", path])?;
    let listed = document["versions"].as_array().context("no versions")?;
    listed.iter().map(|version| number(version, "version")).collect()
}

fn refused(output: &Output, words: &[&str]) -> Result<()> {
    ensure!(output.code == Some(1), "not refused: {output:?}");
    for word in words {
        ensure!(output.stderr.contains(word), "{word:?} is not said: {output:?}");
    }
    Ok(())
}

#[test]
fn a_full_quota_says_what_fills_it_and_removing_versions_makes_room() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let admin = cluster.client()?;
    let owner = cluster.account("owner@example.org")?.with_deadline(DEADLINE);
    let scratch = cluster.scratch("quota")?;
    let quota = |arguments: &[&str]| {
        let command = [&["admin", "account", "quota", "owner@example.org"], arguments].concat();
        admin.json(&command)
    };
    ensure!(number(&quota(&[])?, "quota_bytes")? == 0);
    ensure!(number(&quota(&["20M"])?, "quota_bytes")? == 20 * MIB);
    let seed = seed("quota");
    let put = |round: u64| {
        let file = scratch.join("f");
        fs::remove_file(&file).ok();
        tree::write_random(&file, MIB, seed.wrapping_add(round))?;
        owner.run(&["put".as_ref(), file.as_os_str(), "/f".as_ref()])
    };
    // Until it is full: each version of the one file counts, and little besides.
    let mut stored = 0;
    let full = loop {
        let output = put(stored)?;
        if output.code != Some(0) {
            break output;
        }
        stored += 1;
        ensure!(stored <= 20, "{stored} MiB are in a quota of 20");
    };
    ensure!(stored >= 18, "only {stored} versions of 1 MiB fit into 20 MiB: {full:?}");
    refused(&full, &["quota", "earlier versions", "keepstone versions rm", "keepstone trash purge --all"])?;
    ensure!(used_bytes(&owner)? >= stored * MIB);
    owner.ok(&["trash", "purge", "--all"])?;
    refused(&put(100)?, &["quota"])?;

    // The current one stays, whoever asks.
    let listed = versions(&owner, "/f")?;
    ensure!(listed.len() as u64 == stored, "{listed:?}");
    let current = listed.first().context("no version")?.to_string();
    let output = owner.run(&["versions", "rm", "/f", "--version", &current])?;
    refused(&output, &["/f", "current"])?;
    ensure!(versions(&owner, "/f")? == listed);
    let before = owner.cat("/f")?;

    let oldest = listed.last().context("no version")?.to_string();
    let removed = owner.json(&["versions", "rm", "/f", "--version", &oldest])?;
    ensure!(number(&removed, "versions")? == 1 && number(&removed, "bytes")? == MIB, "{removed}");
    let again = owner.json(&["versions", "rm", "/f", "--version", &oldest])?;
    ensure!(number(&again, "versions")? == 0, "it was gone: {again}");
    put(101)?.success()?;
    let removed = owner.json(&["versions", "rm", "/f", "--keep", "3"])?;
    ensure!(number(&removed, "versions")? == stored - 3, "{removed}");
    ensure!(used_bytes(&owner)? < 4 * MIB, "freed at once");
    ensure!(versions(&owner, "/f")?.len() == 3);
    let earlier = owner.cat_version("/f", *listed.first().context("no version")?)?;
    ensure!(earlier == before, "a version that was kept is not what it was");
    put(102)?.success()?;
    let removed = owner.json(&["versions", "rm", "/f", "--before", "2999-01-01"])?;
    ensure!(number(&removed, "versions")? == 3, "{removed}");
    ensure!(fs::read(scratch.join("f"))? == owner.cat("/f")?);

    // Lowered below what is there, nothing goes and nothing comes; without one all fits.
    quota(&["1M"])?;
    ensure!(fs::read(scratch.join("f"))? == owner.cat("/f")?);
    refused(&put(103)?, &["quota"])?;
    ensure!(number(&quota(&["none"])?, "quota_bytes")? == 0);
    put(104)?.success()?;

    // Only for administrators, and only for accounts that there are.
    let output = owner.run(&["admin", "account", "quota", "owner@example.org", "1T"])?;
    refused(&output, &["administrator"])?;
    refused(&admin.run(&["admin", "account", "quota", "nobody@example.org"])?, &["no such account"])?;
    cluster.finish()
}

/// The health, and what is said about it.
fn told(admin: &Client) -> Result<(String, String)> {
    let status = admin.json(&["admin", "status"])?;
    let health = status["health"].as_str().context("no health")?.to_owned();
    Ok((health, status["problems"].to_string()))
}

#[test]
fn within_the_reserve_of_all_metadata_disks_what_makes_room_works_and_the_state_is_told() -> Result<()> {
    if let Some(why) = chaos::disk::unavailable() {
        return skipped(&format!("small disks need root ({why})"));
    }
    let _serial = serial();
    let directory = tempfile::tempdir()?;
    let options = Options { directory: Some(directory.path().join("cluster")), ..Options::default() };
    let mut cluster = Cluster::start(&options)?;
    let client = cluster.client()?.with_deadline(DEADLINE);
    let scratch = cluster.scratch("reserve")?;
    let file = scratch.join("f");
    for round in 0..Size::chosen().pick(5, 20, 20) {
        fs::remove_file(&file).ok();
        tree::write_random(&file, MIB, seed("reserve").wrapping_add(round))?;
        client.put(&[&file], "/f")?;
        client.put(&[&file], &format!("/g{round}"))?;
    }
    client.ok(&["mkdir", "/folder"])?;
    client.put(&[&file], "/folder/h")?;
    cluster.stop()?;
    let (mut mounts, mut homes) = (Vec::new(), Vec::new());
    for role in cluster.roles("meta") {
        let data_dir = role.data_dir.clone().context("no data_dir")?;
        mounts.push(Mount::under(&data_dir, |point| Mount::tmpfs(192 * MIB, point))?);
        homes.push(data_dir);
    }
    cluster.restart()?;
    wait_for("health", DEADLINE, || Ok((told(&client)?.0 == "ok").then_some(())))?;
    // The databases have set space aside for what comes.
    client.ok(&["mkdir", "/before"])?;
    homes.iter().try_for_each(|home| leave(home, 12 * MIB))?;
    // The disks are looked at from time to time.
    let mut made = 0;
    let full = wait_for("the reserve to be noticed", DEADLINE, || {
        made += 1;
        let output = client.run(&["mkdir", &format!("/new-{made}")])?;
        Ok((output.code != Some(0)).then_some(output))
    })?;
    refused(&full, &["at their reserve", "keepstone rm", "keepstone trash purge", "keepstone versions rm"])?;
    let (health, problems) = told(&client)?;
    ensure!(health != "ok", "{problems}");
    for role in cluster.roles("meta") {
        let named = format!("metadata node {}", role.id);
        ensure!(
            problems.contains(&named) && problems.contains("reserve"),
            "{named} is not told of: {problems}"
        );
    }

    let used = used_bytes(&client)?;
    let begun = Instant::now();
    let removed = client.json(&["versions", "rm", "/f", "--keep", "1"])?;
    ensure!(number(&removed, "versions")? >= 4, "{removed}");
    ensure!(used_bytes(&client)? <= used - 4 * MIB);
    client.ok(&["rm", "-r", "/folder", "/g0"])?;
    let purged = client.json(&["trash", "purge", "--all"])?;
    ensure!(number(&purged, "entries")? == 3, "{purged}");
    ensure!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    ensure!(client.cat("/f")? == fs::read(&file)?, "reading goes on");
    refused(&client.run(&["mkdir", "/still-full"])?, &["at their reserve"])?;

    for home in &homes {
        fs::remove_file(home.join("ballast"))?;
    }
    wait_for("writes once there is room", DEADLINE, || {
        Ok((client.run(&["mkdir", "-p", "/room"])?.code == Some(0)).then_some(()))
    })?;
    wait_for("health", DEADLINE, || Ok((told(&client)?.0 == "ok").then_some(())))?;
    cluster.finish()?;
    drop(mounts);
    Ok(())
}
