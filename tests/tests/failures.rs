//! Processes that die or stand still: reads go on, writes go on or are refused clearly, nothing old is told.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos::client::Client;
use chaos::cluster::{Cluster, Options};
use chaos::compare::assert_same;
use chaos::disk::allocated_bytes;
use chaos::serial::serial;
use chaos::size::{Size, seed};
use chaos::tree::{self, Shape};
use chaos::wait::wait_for;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

const MIB: u64 = 1 << 20;
/// How long the cluster may take to notice that a process is gone or back.
const NOTICE_DEADLINE: Duration = Duration::from_secs(60);
const STORAGE_NODES: usize = 6;
const META_NODES: usize = 3;

/// Reads everything back and compares.
fn read_all(client: &Client, remote: &str, made: &Path, back: &Path) -> Result<()> {
    client.get(remote, back)?;
    assert_same(made, back)?;
    std::fs::remove_dir_all(back)?;
    Ok(())
}

fn wait_for_health(client: &Client, wanted: &str) -> Result<()> {
    wait_for(&format!("health {wanted}"), NOTICE_DEADLINE, || {
        Ok((client.status()?.health == wanted).then_some(()))
    })
}

#[test]
fn any_two_storage_nodes_and_one_metadata_node_may_die() -> Result<()> {
    let _serial = serial();
    let mut cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("deaths")?;
    let made = scratch.join("made");
    let mut random = SmallRng::seed_from_u64(seed("deaths"));
    tree::generate(&made, Shape { files: 40, bytes_max: 6 * MIB }, random.random())?;
    client.put(&[&made], "/tree")?;

    let mut pairs: Vec<(usize, usize)> =
        (0..STORAGE_NODES).flat_map(|a| (a + 1..STORAGE_NODES).map(move |b| (a, b))).collect();
    for _ in 0..Size::chosen().pick(3, pairs.len(), pairs.len()) {
        let (a, b) = pairs.swap_remove(random.random_range(0..pairs.len()));
        let meta = random.random_range(0..META_NODES);
        eprintln!("killing storage {a} and {b}, meta {meta}");
        for name in [("storage", a), ("storage", b), ("meta", meta)] {
            cluster.kill(name)?;
        }
        read_all(&client, "/tree", &made, &scratch.join("back"))
            .with_context(|| format!("storage {a} and {b}, meta {meta} are dead"))?;
        for name in [("storage", a), ("storage", b), ("meta", meta)] {
            cluster.start_role(name)?;
        }
        wait_for_health(&client, "ok")?;
    }
    cluster.finish()
}

#[test]
fn writes_go_on_with_one_storage_node_gone_and_are_refused_with_two() -> Result<()> {
    let _serial = serial();
    let mut cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("short")?;
    let (made, back) = (scratch.join("made"), scratch.join("back"));
    tree::generate(&made, Shape { files: 20, bytes_max: 6 * MIB }, seed("short"))?;
    let large = scratch.join("large");
    tree::write_random(&large, 9 * MIB, seed("short"))?;

    cluster.kill(("storage", 1))?;
    client.put(&[&made], "/one-gone")?;
    read_all(&client, "/one-gone", &made, &back)?;
    wait_for_health(&client, "degraded")?;
    let status = client.status()?;
    ensure!(status.stripes_short > 0, "nothing is on record as short: {status:?}");

    cluster.kill(("storage", 4))?;
    wait_for("two disks down", NOTICE_DEADLINE, || {
        let down = client.status()?.disks.iter().filter(|disk| disk.state != "up").count();
        Ok((down == 2).then_some(()))
    })?;
    let refused = client.run(&["put".as_ref(), large.as_os_str(), "/large".as_ref()])?;
    ensure!(refused.code == Some(1), "a write with two of six disks gone: {refused:?}");
    ensure!(refused.stderr.to_lowercase().contains("disk"), "unclear: {}", refused.stderr);
    ensure!(!client.exists("/large")?, "a refused file is there");

    client.ok(&["mkdir", "/folder"])?;
    client.ok(&["mv", "/one-gone/edges/random-4096", "/folder/moved"])?;
    client.ok(&["rm", "/one-gone/edges/random-4097"])?;
    ensure!(client.exists("/folder/moved")?);
    ensure!(!client.exists("/one-gone/edges/random-4097")?);

    // Started again, they are used again.
    cluster.start_role(("storage", 1))?;
    cluster.start_role(("storage", 4))?;
    wait_for("all disks up", NOTICE_DEADLINE, || {
        Ok(client.status()?.disks.iter().all(|disk| disk.state == "up").then_some(()))
    })?;
    let used = |cluster: &Cluster| -> Result<Vec<u64>> {
        let directories = cluster.roles("storage").into_iter().filter_map(|role| role.data_dir.clone());
        directories.map(|directory| allocated_bytes(&directory)).collect()
    };
    let before = used(&cluster)?;
    client.put(&[&large], "/large")?;
    let after = used(&cluster)?;
    for node in [1, 4] {
        ensure!(after[node] >= before[node] + MIB, "storage {node} got nothing: {before:?} {after:?}");
    }
    client.get("/large", &scratch.join("large-back"))?;
    assert_same(&large, &scratch.join("large-back"))?;
    cluster.finish()
}

/// A register: one file that holds a number which only grows. A read must give at least the last number that was
/// acknowledged before it began, at most the last one tried before it ended.
struct Register {
    client: Client,
    acknowledged: AtomicU64,
    tried: AtomicU64,
    failure: Mutex<Option<String>>,
    stop: AtomicBool,
    reads: AtomicU64,
}

impl Register {
    fn write_on(&self, local: &Path) -> Result<()> {
        while !self.stop.load(Ordering::SeqCst) {
            let number = self.tried.load(Ordering::SeqCst) + 1;
            std::fs::write(local, format!("{number:010}"))?;
            self.tried.store(number, Ordering::SeqCst);
            let output = self.client.run(&["put".as_ref(), local.as_os_str(), "/register".as_ref()])?;
            if output.code == Some(0) {
                self.acknowledged.store(number, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    fn read_on(&self) -> Result<()> {
        while !self.stop.load(Ordering::SeqCst) {
            let least = self.acknowledged.load(Ordering::SeqCst);
            let Ok(bytes) = self.client.cat("/register") else { continue };
            let most = self.tried.load(Ordering::SeqCst);
            let number: u64 = String::from_utf8(bytes)?.parse()?;
            self.reads.fetch_add(1, Ordering::SeqCst);
            if number < least || number > most {
                let text = format!("read {number}, but {least} was acknowledged before, and {most} tried");
                *self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(text);
            }
        }
        Ok(())
    }
}

#[test]
fn a_leader_that_stood_still_never_answers_with_an_old_state() -> Result<()> {
    let _serial = serial();
    let mut cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?.with_deadline(Duration::from_secs(60));
    let local = cluster.scratch("register")?.join("number");
    std::fs::write(&local, format!("{:010}", 0))?;
    client.put(&[&local], "/register")?;
    let register = Register {
        client,
        acknowledged: AtomicU64::new(0),
        tried: AtomicU64::new(0),
        failure: Mutex::new(None),
        stop: AtomicBool::new(false),
        reads: AtomicU64::new(0),
    };
    let rounds = Size::chosen().pick(2, 10, 40);
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| register.write_on(&local));
        let readers = [scope.spawn(|| register.read_on()), scope.spawn(|| register.read_on())];
        let broken = pause_each(&mut cluster, &register, rounds);
        register.stop.store(true, Ordering::SeqCst);
        for thread in readers.into_iter().chain([writer]) {
            thread.join().map_err(|panic| anyhow::anyhow!("a thread panicked: {panic:?}"))??;
        }
        broken
    })?;
    let failure = register.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    ensure!(failure.is_none(), "{failure:?}");
    let reads = register.reads.load(Ordering::SeqCst);
    eprintln!("{} writes, {reads} reads", register.acknowledged.load(Ordering::SeqCst));
    ensure!(reads > 20, "only {reads} reads: the test saw nothing");
    cluster.finish()
}

/// Stops every metadata node in turn (one of them leads), each until writes go on without it, and lets it go on.
fn pause_each(cluster: &mut Cluster, register: &Register, rounds: usize) -> Result<()> {
    for _ in 0..rounds {
        for meta in 0..META_NODES {
            cluster.pause(("meta", meta), true)?;
            let before = register.acknowledged.load(Ordering::SeqCst);
            let started = Instant::now();
            let result = wait_for("writes to go on without a metadata node", NOTICE_DEADLINE, || {
                Ok((register.acknowledged.load(Ordering::SeqCst) >= before + 3).then_some(()))
            });
            eprintln!("meta {meta} stood still: three writes took {:?}", started.elapsed());
            cluster.pause(("meta", meta), false)?;
            result?;
        }
    }
    Ok(())
}
