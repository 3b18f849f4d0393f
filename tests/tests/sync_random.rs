//! Several people at work in one tree, at random, while daemons and the gateway are killed, stand still, or are cut off.
//! After quiet: all devices and the server are the same, and what a user saved and did not give up is live on each.
//!
//! A run is a quarter of a minute of this. `KEEPSTONE_SIZE=full` makes 500 of them, `KEEPSTONE_RUNS` as many as it says.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use chaos::cluster::{Cluster, Options};
use chaos::device::Device;
use chaos::edits::{Editor, IGNORED_END, Kinds};
use chaos::gateway::Gateway;
use chaos::group::Group;
use chaos::proxy::{Network, Proxy};
use chaos::size::{Size, seed};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

const DEVICES: usize = 3;

/// One fault, at random.
fn disturb(group: &mut Group, gateway: &mut Gateway, proxy: &Proxy, random: &mut SmallRng) -> Result<()> {
    let device = random.random_range(0..DEVICES);
    let a_moment = Duration::from_millis(random.random_range(50..1500));
    match random.random_range(0..6) {
        0 | 1 => {
            group.devices[device].kill()?;
            std::thread::sleep(a_moment);
            group.devices[device].start()?;
        }
        2 => {
            group.devices[device].pause(true)?;
            std::thread::sleep(a_moment);
            group.devices[device].pause(false)?;
        }
        3 => {
            gateway.kill()?;
            std::thread::sleep(a_moment / 2);
            gateway.start()?;
        }
        4 => {
            proxy.set(if random.random() { Network::Cut } else { Network::Silent });
            std::thread::sleep(a_moment);
            proxy.set(Network::Up);
        }
        _ => {
            group.devices[device].stop()?;
            std::thread::sleep(a_moment);
            group.devices[device].start()?;
        }
    }
    Ok(())
}

#[test]
fn nothing_is_lost_and_all_end_the_same_whatever_breaks() -> Result<()> {
    let seed = seed("sync_random");
    let mut random = SmallRng::seed_from_u64(seed);
    let cluster = Arc::new(Cluster::start(&Options::default())?);
    let mut gateway = Gateway::of(&cluster)?;
    let runs = std::env::var("KEEPSTONE_RUNS").ok().and_then(|text| text.parse().ok());
    for round in 0..runs.unwrap_or(Size::chosen().pick(2, 500, 2_000)) {
        let mut group = Group::on(Arc::clone(&cluster), &format!("random-{round}"), DEVICES)?;
        let target = cluster.endpoint.strip_prefix("https://").context("no https endpoint")?.to_owned();
        let proxy = Proxy::start("127.0.0.1", &target)?;
        group.devices[0].via(&proxy)?;
        for device in &mut group.devices {
            // These users delete most of what they have, time and again, and mean it.
            device.arguments = ["--deletes-percent-max", "100"].map(Into::into).to_vec();
        }
        ignore(&mut group)?;
        group.start()?;
        let lasts = Duration::from_secs(Size::chosen().pick(12, 12, 60));
        let steps = work(&mut group, &mut gateway, &proxy, lasts, &mut random)
            .with_context(|| format!("round {round}"))?;
        let contents = group.contents.count();
        let agreed = group.finish().with_context(|| format!("seed {seed}, round {round}"))?;
        eprintln!(
            "round {round}: {steps} things done, {contents} contents all there, {} entries, {} conflicted copies",
            agreed.paths().len(),
            agreed.conflicted().len()
        );
        ensure!(steps > 50 && contents > 10, "only {steps} steps, {contents} contents");
    }
    drop(gateway);
    Arc::into_inner(cluster).context("the cluster is still used")?.finish()
}

/// All devices learn what is ignored before anybody makes such a file.
fn ignore(group: &mut Group) -> Result<()> {
    group.ignored = vec![IGNORED_END.to_owned()];
    let Some(first) = group.devices.first() else { return Ok(()) };
    first.write(".keepstoneignore", format!("*{IGNORED_END}\n"))?;
    group.devices.iter().try_for_each(|device| device.once_agreed().map(drop))
}

#[test]
fn a_wrong_delete_is_found_though_trash_and_versions_have_it() -> Result<()> {
    for replace in [false, true] {
        let mut group = Group::new(&format!("wrong-{replace}"), 2)?;
        let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
        a.write("kept", "a user saved this")?;
        group.contents.save(&a.name, &a.path("kept"), "kept");
        a.write("stays", "a folder that is emptied is another case")?;
        a.once_agreed()?;
        b.once_agreed()?;
        // What a client would do that went wrong: the server has it in its trash, or as an earlier version.
        if replace {
            b.write("kept", "nobody wrote this")?
        } else {
            std::fs::remove_file(b.path("kept"))?
        }
        group.converge()?;
        let error = group.assert_nothing_lost().err().context("a wrong delete was not found")?;
        ensure!(error.to_string().contains("kept"), "{error:#}");
        group.end()?;
    }
    Ok(())
}

#[test]
fn copies_that_became_one_file_are_given_up_together_and_a_wrong_delete_beside_them_is_found() -> Result<()> {
    let mut group = Group::new("became-one", 2)?;
    for device in &mut group.devices {
        // Half of the files are deleted, and that is meant.
        device.arguments = ["--deletes-percent-max", "100"].map(Into::into).to_vec();
    }
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    for name in ["F", "kept", "stays"] {
        a.write(name, format!("{name}, as a user saved it"))?;
        group.contents.save(&a.name, &a.path(name), name);
    }
    a.once_agreed()?;
    b.once_agreed()?;
    for (device, second) in [(a, 1_000), (b, 2_000)] {
        let path = device.path("Report.txt");
        device.write("Report.txt", device.read("F").context("no F")?)?;
        let file = std::fs::File::options().write(true).open(&path)?;
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(second))?;
        group.contents.save(&device.name, &path, &format!("Report.txt of {}", device.name));
    }
    a.once_agreed()?;
    b.once_agreed()?;
    let time = |device: &Device| anyhow::Ok(std::fs::metadata(device.path("Report.txt"))?.modified()?);
    ensure!(time(a)? == time(b)?, "they are two files: {:?} and {:?}", time(a)?, time(b)?);
    for name in ["F", "Report.txt"] {
        group.contents.give_up(&a.name, &a.root, &a.path(name), name);
        std::fs::remove_file(a.path(name))?;
    }
    group.converge()?;
    group.assert_nothing_lost()?;
    std::fs::remove_file(group.devices[1].path("kept"))?;
    group.converge()?;
    let error = group.assert_nothing_lost().err().context("a wrong delete was not found")?;
    let shown = error.to_string();
    ensure!(shown.starts_with("1 of ") && shown.contains("kept"), "{error:#}");
    group.end()
}

/// All users at work while this thread breaks things; gives how much they did.
fn work(
    group: &mut Group,
    gateway: &mut Gateway,
    proxy: &Proxy,
    lasts: Duration,
    random: &mut SmallRng,
) -> Result<usize> {
    let contents = std::mem::take(&mut group.contents);
    let until = Instant::now() + lasts;
    let kinds = Kinds::chosen();
    let steps = std::thread::scope(|scope| -> Result<usize> {
        let mut users = Vec::new();
        for device in &group.devices {
            let (root, name) = (device.root.clone(), device.name.clone());
            let seeds = SmallRng::seed_from_u64(random.random());
            let mut pace = SmallRng::seed_from_u64(random.random());
            let mut editor = Editor::new(&root, &contents, &name, seeds, kinds);
            users.push(scope.spawn(move || -> Result<usize> {
                let mut steps = 0;
                while Instant::now() < until {
                    // Bursts, and pauses in which things settle.
                    for _ in 0..pace.random_range(1..15) {
                        editor.step()?;
                        steps += 1;
                    }
                    std::thread::sleep(Duration::from_millis(pace.random_range(10..700)));
                }
                editor.tidy_up()?;
                Ok(steps)
            }));
        }
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(random.random_range(100..1500)));
            disturb(group, gateway, proxy, random)?;
        }
        let mut steps = 0;
        for user in users {
            steps += user.join().map_err(|panic| anyhow::anyhow!("a user panicked: {panic:?}"))??;
        }
        Ok(steps)
    })?;
    group.contents = contents;
    Ok(steps)
}
