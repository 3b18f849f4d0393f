//! Metadata nodes that come back without what they had acknowledged: wiped, or put back from an older copy.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::client::Client;
use chaos::cluster::{Cluster, Options};
use chaos::serial::serial;
use chaos::size::{Size, seed};
use chaos::tree::copy_tree;
use chaos::wait::wait_for;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const RETURN_DEADLINE: Duration = Duration::from_secs(60);
/// How long a listing may try before it counts as refused.
const LISTING_DEADLINE: Duration = Duration::from_secs(12);

fn data_dir(cluster: &Cluster, meta: usize) -> Result<PathBuf> {
    cluster.roles("meta")[meta].data_dir.clone().context("a metadata node without data_dir")
}

/// The folders that a listing shows; none if it is refused.
fn listed(client: &Client) -> Option<Vec<String>> {
    let output = client.with_deadline(LISTING_DEADLINE).run(&["ls", "--json", "/"]).ok()?.success().ok()?;
    let listing = output.json().ok()?;
    let entries = listing["entries"].as_array().or_else(|| listing.as_array())?.clone();
    Some(entries.iter().filter_map(|entry| entry["name"].as_str().map(str::to_owned)).collect())
}

fn all_listed(client: &Client, acknowledged: &[String]) -> Result<bool> {
    let Some(names) = listed(client) else { return Ok(false) };
    let lost: Vec<_> = acknowledged.iter().filter(|name| !names.contains(name)).collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    Ok(true)
}

fn problems(client: &Client) -> Result<String> {
    let status: Value = client.json(&["admin", "status"])?;
    Ok(status["problems"].to_string())
}

/// One schedule: `away` misses the writes, `other` dies with them, `victim` comes back from what `forget` left of it.
fn round(
    cluster: &mut Cluster,
    random: &mut SmallRng,
    number: usize,
    acknowledged: &mut Vec<String>,
) -> Result<()> {
    let client = cluster.client()?;
    let mut nodes = [0, 1, 2];
    nodes.shuffle(random);
    let [victim, away, other] = nodes;
    let wiped = random.random_bool(0.5);
    eprintln!("round {number}: victim {victim}, away {away}, other {other}, wiped {wiped}");
    let directory = data_dir(cluster, victim)?;
    let aside = directory.with_extension("aside");
    let copy = directory.with_extension("copy");
    if !wiped {
        cluster.kill(("meta", victim))?;
        copy_tree(&directory, &copy)?;
        cluster.start_role(("meta", victim))?;
        wait_for("the victim to vote again", RETURN_DEADLINE, || {
            Ok(problems(&client)?.eq("[]").then_some(()))
        })?;
    }
    cluster.kill(("meta", away))?;
    for index in 0..5 {
        let name = format!("r{number}-{index}");
        client.ok(&["mkdir", &format!("/{name}")])?;
        acknowledged.push(name);
    }
    let mut deaths = [victim, other];
    deaths.shuffle(random);
    for meta in deaths {
        cluster.kill(("meta", meta))?;
    }
    fs::rename(&directory, &aside)?;
    if wiped {
        fs::create_dir(&directory)?;
    } else {
        fs::rename(&copy, &directory)?;
    }
    let mut returns = [victim, away];
    returns.shuffle(random);
    for meta in returns {
        cluster.start_role(("meta", meta))?;
    }
    ensure!(!all_listed(&client, acknowledged)?, "nobody has the writes, and a listing was answered");

    // The third one returns: it and the one that was away are a majority of true voters; the victim is named.
    cluster.start_role(("meta", other))?;
    wait_for("all acknowledged folders", RETURN_DEADLINE, || {
        Ok(all_listed(&client, acknowledged)?.then_some(()))
    })?;
    let victim_id = cluster.roles("meta")[victim].id;
    wait_for("the victim to be named", RETURN_DEADLINE, || {
        let problems = problems(&client)?;
        let named = problems.contains(&format!("metadata node {victim_id} must not vote"));
        Ok(named.then_some(()))
    })?;
    client.ok(&["mkdir", &format!("/r{number}-after")])?;
    acknowledged.push(format!("r{number}-after"));

    // Its own directory put back, it votes again.
    cluster.kill(("meta", victim))?;
    fs::remove_dir_all(&directory)?;
    fs::rename(&aside, &directory)?;
    cluster.start_role(("meta", victim))?;
    wait_for("the victim to be well again", RETURN_DEADLINE, || {
        Ok(problems(&client)?.eq("[]").then_some(()))
    })?;
    ensure!(all_listed(&client, acknowledged)?, "not listed in the end");
    Ok(())
}

#[test]
fn a_metadata_node_that_lost_its_memory_neither_votes_nor_costs_a_write() -> Result<()> {
    let _serial = serial();
    let seed = seed("amnesia");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(&Options::default())?;
    let mut acknowledged = Vec::new();
    for number in 0..Size::chosen().pick(2, 50, 200) {
        round(&mut cluster, &mut random, number, &mut acknowledged)?;
    }
    cluster.finish()
}
