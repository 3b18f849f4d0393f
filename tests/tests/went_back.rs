//! The server goes back to an older state, as a restored backup or a machine that was rolled back does: the cluster's whole
//! directory is put back as it was some time ago, under devices that run, are stopped or are in the middle of something.
//! Its numbers may have passed those that the devices know by the time they look again.
//!
//! Nothing that any device had is lost or deleted, and all end the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos::client::Client;
use chaos::cluster::Cluster;
use chaos::compare::{digest_of, file_digest};
use chaos::contents::digests;
use chaos::device::{Device, SETTLE_DEADLINE};
use chaos::size::{Size, seed};
use chaos::snapshot::{Item, Snapshot};
use chaos::wait::wait_for;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

const PASSWORD: &str = "correct horse battery staple\n";
const EMAIL: &str = "roll@example.org";
const DEVICES: usize = 3;
/// Copies of the cluster that it may be put back to.
const COPIES_MAX: usize = 3;
/// Times that a put is tried while a device is faster.
const PUTS_MAX: usize = 10;
/// Histories on one cluster, before a new one is made.
const HISTORIES_MAX: u64 = 10;

/// A cluster that can be put back, its devices, and what they had.
struct World {
    cluster: Cluster,
    client: Client,
    devices: Vec<Device>,
    /// Contents that somebody wrote and nobody overwrote or deleted: each must be a file in the end.
    had: BTreeMap<[u8; 32], String>,
    copies: Vec<PathBuf>,
    turns: u64,
    written: u64,
}

/// Copies a directory with its holes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status()?;
    ensure!(status.success(), "cp of {}: {status}", from.display());
    Ok(())
}

impl World {
    fn new(devices: usize) -> Result<Self> {
        let cluster = Cluster::start_in_one_process()?;
        let client = cluster.account(EMAIL)?;
        let mut all = Vec::new();
        for name in ["a", "b", "c"].iter().take(devices) {
            let mut device = Device::new(&cluster, EMAIL, PASSWORD, name)?;
            // These users delete what they have, and mean it.
            device.arguments = ["--deletes-percent-max", "100"].map(Into::into).to_vec();
            all.push(device);
        }
        let (had, copies) = (BTreeMap::new(), Vec::new());
        Ok(Self { cluster, client, devices: all, had, copies, turns: 0, written: 0 })
    }

    /// Bytes that nobody wrote before.
    fn fresh(&mut self, random: &mut SmallRng) -> Vec<u8> {
        self.written += 1;
        let size = if random.random_range(0..12) == 0 { 400_000 } else { random.random_range(0..3_000) };
        let mut bytes = vec![0; size];
        rand::RngCore::fill_bytes(random, &mut bytes);
        [format!("content {}\n", self.written).as_bytes(), &bytes].concat()
    }

    /// Saves a file on a device. What is overwritten is given up: what is in the file that is open, whatever the sync
    /// client puts in its place at that moment.
    fn save(&mut self, device: usize, path: &str, bytes: &[u8]) -> Result<()> {
        let full = self.devices[device].path(path);
        match File::options().read(true).write(true).open(&full) {
            Ok(mut file) => {
                self.had.remove(&digest_of(&mut file)?);
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(bytes)?;
            }
            Err(_none) => self.devices[device].write(path, bytes)?,
        }
        // As it is on the disk: what was written into a file that had just been replaced is nowhere.
        if let Ok(saved) = file_digest(&full) {
            self.had.insert(saved, format!("{path} of {}", self.devices[device].name));
        }
        Ok(())
    }

    /// Deletes a file on a device: moved out first, so that it is known what is given up.
    fn delete(&mut self, device: usize, path: &str) -> Result<()> {
        let root = &self.devices[device].root;
        let aside = root.with_file_name("deleted");
        // The sync client may have been faster.
        if fs::rename(root.join(path), &aside).is_ok() {
            self.had.remove(&file_digest(&aside)?);
            fs::remove_file(aside)?;
        }
        Ok(())
    }

    /// Puts a file on the server, past all devices.
    fn put(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let local = self.cluster.scratch("put")?.join("file");
        fs::write(&local, bytes)?;
        if let Some((folder, _name)) = path.rsplit_once('/').filter(|(folder, _)| !folder.is_empty()) {
            self.client.ok(&["mkdir", "-p", folder])?;
        }
        // Refused if a device was faster: what it sent is looked at, then.
        for tries in 1.. {
            let before = self.client.cat(path).ok();
            match self.client.put(&[&local], path) {
                Err(refused)
                    if tries < PUTS_MAX && format!("{refused:#}").contains("was changed on the server") => {}
                Err(failed) => return Err(failed),
                Ok(_put) => {
                    if let Some(before) = before {
                        self.had.remove(&digest(&self.cluster, &before)?);
                    }
                    break;
                }
            }
        }
        self.had.insert(file_digest(&local)?, format!("{path} of the server"));
        Ok(())
    }

    /// Stops the cluster, keeps a copy of it as it is, and begins again: as it is, or as it was when a copy was made, so
    /// many copies ago. `keep_others`: it may come to be as it was in the history that is given up, later.
    fn turn(&mut self, back: Option<usize>, keep_others: bool) -> Result<()> {
        self.cluster.kill_all()?;
        let directory = self.cluster.directory().to_owned();
        let copies = self.cluster.scratch("copies")?;
        self.turns += 1;
        let name = copies.join(self.turns.to_string());
        copy(&directory, &name)?;
        self.copies.push(name);
        if let Some(back) = back {
            let from = self.copies[self.copies.len().saturating_sub(1 + back)].clone();
            fs::remove_dir_all(&directory)?;
            copy(&from, &directory)?;
            // Later ones are of a history that is given up: going to one of them is as going to another server's.
            let later =
                if keep_others { Vec::new() } else { self.copies.split_off(self.copies.len() - back) };
            for copy in later {
                fs::remove_dir_all(copy)?;
            }
        }
        while self.copies.len() > COPIES_MAX {
            fs::remove_dir_all(self.copies.remove(0))?;
        }
        self.cluster.restart()?;
        Ok(())
    }

    /// Has all devices run, and waits until they and the server are the same, and have all that they had.
    fn agree(&mut self) -> Result<Snapshot> {
        for device in &mut self.devices {
            if !device.is_running()? {
                device.start()?;
            }
        }
        let mut last = String::new();
        let settled = wait_for("all to be the same", SETTLE_DEADLINE, || {
            for device in &self.devices {
                let status = device.status()?;
                if status
                    .as_ref()
                    .is_none_or(|status| status["phase"] != "up-to-date" || status["pending_count"] != 0)
                {
                    last = format!("{} says {status:?}", device.name);
                    return Ok(None);
                }
            }
            let all: Vec<Snapshot> = self.devices.iter().map(Device::snapshot).collect::<Result<_>>()?;
            for other in &all[1..] {
                let found = all[0].differences(other);
                if !found.is_empty() {
                    last = found.join("\n");
                    return Ok(None);
                }
            }
            let found = all[0].differences(&self.server()?);
            if !found.is_empty() {
                last = format!("the server: {}", found.join("\n"));
                return Ok(None);
            }
            Ok(Some(all[0].clone()))
        });
        let agreed = settled.with_context(|| last)?;
        let there = digests(&agreed);
        let lost: Vec<&String> =
            self.had.iter().filter(|(digest, _)| !there.contains(*digest)).map(|(_, what)| what).collect();
        ensure!(
            lost.is_empty(),
            "{} of {} contents are no files any more: {lost:?}",
            lost.len(),
            self.had.len()
        );
        Ok(agreed)
    }

    fn server(&self) -> Result<Snapshot> {
        let back = self.cluster.scratch("back")?.join("tree");
        if back.exists() {
            fs::remove_dir_all(&back)?;
        }
        self.client.get("/", &back)?;
        Snapshot::take(&back)
    }

    fn finish(mut self) -> Result<()> {
        for device in &mut self.devices {
            if device.is_running()? {
                device.stop()?;
            }
            device.calm();
        }
        self.cluster.finish()
    }
}

fn digest(cluster: &Cluster, bytes: &[u8]) -> Result<[u8; 32]> {
    let path = cluster.scratch("digest")?.join("file");
    fs::write(&path, bytes)?;
    file_digest(&path)
}

/// Somebody does something on a device.
fn act(world: &mut World, device: usize, random: &mut SmallRng) -> Result<()> {
    let now = world.devices[device].snapshot()?;
    let of_kind = |wanted: fn(&Item) -> bool| -> Vec<String> {
        now.items.iter().filter(|(_, item)| wanted(item)).map(|(path, _)| path.clone()).collect()
    };
    let files = of_kind(|item| matches!(item, Item::File { .. }));
    let folders = of_kind(|item| matches!(item, Item::Folder { .. }));
    let folder = folders.choose(random).filter(|_| random.random()).map_or("", String::as_str);
    let name = format!("{folder}/n{}", random.random_range(0..1_000_000)).trim_start_matches('/').to_owned();
    let root = world.devices[device].root.clone();
    match (random.random_range(0..10), files.choose(random)) {
        (0..4, Some(path)) => {
            let bytes = world.fresh(random);
            world.save(device, path, &bytes)?;
        }
        (4, Some(path)) if files.len() > 6 => {
            world.delete(device, path)?;
        }
        (5, Some(path)) => drop(fs::rename(root.join(path), root.join(&name))),
        (6, _) if folders.len() < 8 => drop(fs::create_dir(root.join(&name))),
        (7, _) if folders.len() > 1 => {
            let from = folders.choose(random).context("no folder")?;
            drop(fs::rename(root.join(from), root.join(format!("d{}", random.random_range(0..1_000_000)))));
        }
        _ => {
            let bytes = world.fresh(random);
            world.save(device, &name, &bytes)?;
        }
    }
    Ok(())
}

/// People at work for a moment, while devices run or not.
fn work(world: &mut World, random: &mut SmallRng) -> Result<()> {
    for _ in 0..random.random_range(2..9) {
        let device = random.random_range(0..DEVICES);
        act(world, device, random)?;
        std::thread::sleep(Duration::from_millis(random.random_range(0..80)));
    }
    Ok(())
}

/// One history: all agree, then some run, some are stopped, some are killed, and the server goes back.
fn history(world: &mut World, random: &mut SmallRng) -> Result<String> {
    if random.random() {
        // No more than a restart: it may go back to this point later.
        world.turn(None, true)?;
    }
    let mut running = [true; DEVICES];
    for (device, runs) in running.iter_mut().enumerate() {
        *runs = match random.random_range(0..3) {
            0 => {
                world.devices[device].stop()?;
                false
            }
            _ => true,
        };
    }
    work(world, random)?;
    if random.random() {
        // All that they can send comes to be there.
        std::thread::sleep(Duration::from_millis(random.random_range(0..1_500)));
        work(world, random)?;
    }
    for (device, runs) in running.iter_mut().enumerate() {
        if *runs && random.random_range(0..3) == 0 {
            world.devices[device].kill()?;
            *runs = false;
        }
    }
    // The last copy is of now.
    let back = random.random_range(1..COPIES_MAX).min(world.copies.len());
    let keep_others = random.random_range(0..4) == 0;
    world.turn(Some(back), keep_others)?;
    let passed = random.random();
    if passed {
        // The server's numbers pass those that the stopped devices know, for other files.
        for number in 0..random.random_range(5..25) {
            let bytes = world.fresh(random);
            let now = world.devices[0].snapshot()?;
            let files = now.items.iter().filter(|(_, item)| matches!(item, Item::File { .. }));
            let files: Vec<&String> = files.map(|(path, _)| path).collect();
            match files.choose(random).filter(|path| number % 5 == 0 && !path.contains('/')) {
                Some(path) => world.put(&format!("/{path}"), &bytes)?,
                None => world.put(&format!("/p{}", random.random_range(0..1_000_000)), &bytes)?,
            }
        }
    }
    if random.random() {
        work(world, random)?;
    }
    let agreed = world.agree()?;
    let (entries, conflicted) = (agreed.paths().len(), agreed.conflicted().len());
    Ok(format!(
        "back by {back}, passed {passed}, running {running:?}: {} contents all there, {entries} entries, {conflicted} \
         conflicted copies",
        world.had.len()
    ))
}

#[test]
fn nothing_that_a_device_had_is_lost_or_deleted_however_the_server_goes_back() -> Result<()> {
    let seed = seed("went_back");
    let histories: u64 = Size::chosen().pick(4, 200, 1_000);
    let begun = Instant::now();
    let mut world: Option<World> = None;
    for number in 0..histories {
        let mut random = SmallRng::seed_from_u64(seed.wrapping_add(number));
        if number % HISTORIES_MAX == 0 {
            if let Some(before) = world.take() {
                before.finish()?;
            }
            let mut fresh = World::new(DEVICES)?;
            for device in 0..DEVICES {
                for _ in 0..4 {
                    act(&mut fresh, device, &mut random)?;
                }
            }
            fresh.agree()?;
            fresh.turn(None, true)?;
            fresh.agree()?;
            world = Some(fresh);
        }
        let world = world.as_mut().context("no world")?;
        let told = history(world, &mut random).with_context(|| format!("seed {seed}, history {number}"))?;
        eprintln!("history {number} at {:.0} s: {told}", begun.elapsed().as_secs_f64());
    }
    world.context("no world")?.finish()
}

/// A device runs to an end; then all are the same.
fn all_once(world: &World) -> Result<Snapshot> {
    for device in world.devices.iter().chain(&world.devices) {
        device.once_agreed()?;
    }
    let first = world.devices[0].snapshot()?;
    for device in &world.devices[1..] {
        first.assert_same(&device.snapshot()?, &device.name)?;
    }
    first.assert_same(&world.server()?, "the server")?;
    Ok(first)
}

/// Two devices agree on some files; a copy is made; then one makes, edits, moves and deletes, and both agree again.
fn lived_on() -> Result<World> {
    let mut world = World::new(2)?;
    world.save(0, "edited", b"as it was")?;
    world.save(0, "moved", b"moved")?;
    world.save(0, "folder/in it", b"in a folder")?;
    world.save(0, "deleted", b"deleted later")?;
    all_once(&world)?;
    world.turn(None, true)?;
    world.save(0, "edited", b"as it was edited")?;
    world.save(1, "made/here", b"made")?;
    fs::rename(world.devices[0].path("moved"), world.devices[0].path("moved there"))?;
    fs::rename(world.devices[0].path("folder"), world.devices[0].path("renamed"))?;
    fs::remove_file(world.devices[0].path("deleted"))?;
    all_once(&world)?;
    Ok(world)
}

fn check_as_lived_on(world: &World, agreed: &Snapshot) -> Result<()> {
    ensure!(agreed.conflicted().is_empty(), "{:?}", agreed.conflicted());
    let device = &world.devices[1];
    for (path, content) in [
        ("edited", "as it was edited"),
        ("made/here", "made"),
        ("moved there", "moved"),
        ("renamed/in it", "in a folder"),
        // That it was deleted is not known of the server any more; nothing is deleted for that.
        ("deleted", "deleted later"),
    ] {
        let found = device.read(path);
        ensure!(found.as_deref() == Some(content.as_bytes()), "{path}: {found:?}");
    }
    ensure!(device.read("moved").is_none() && device.read("folder/in it").is_none(), "both places");
    Ok(())
}

#[test]
fn what_the_server_lacks_since_it_went_back_is_sent_again() -> Result<()> {
    let mut world = lived_on()?;
    world.turn(Some(1), true)?;
    let agreed = all_once(&world)?;
    check_as_lived_on(&world, &agreed)?;
    world.finish()
}

#[test]
fn what_the_server_lacks_is_sent_again_though_its_numbers_have_passed_by_other_files() -> Result<()> {
    let mut world = lived_on()?;
    world.turn(Some(1), true)?;
    for number in 0..60 {
        world.put(&format!("/others/{number}"), format!("other {number}").as_bytes())?;
    }
    let agreed = all_once(&world)?;
    check_as_lived_on(&world, &agreed)?;
    for number in 0..60 {
        let found = world.devices[0].read(&format!("others/{number}"));
        ensure!(found == Some(format!("other {number}").into_bytes()), "others/{number}: {found:?}");
    }
    world.finish()
}

#[test]
fn a_file_that_was_edited_on_both_sides_of_the_return_is_lost_on_neither() -> Result<()> {
    let mut world = lived_on()?;
    world.devices[0].start()?;
    world.turn(Some(1), true)?;
    world.put("/edited", b"edited on the server after it went back")?;
    world.put("/made/here", b"another file of that name")?;
    world.save(1, "edited", b"and on a device that was off")?;
    let agreed = world.agree()?;
    ensure!(!agreed.conflicted().is_empty(), "no conflicted copy: {:?}", agreed.paths());
    ensure!(world.devices[1].read("edited").is_some() && world.devices[1].read("made/here").is_some());
    world.finish()
}
