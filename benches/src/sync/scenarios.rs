//! What is measured, for either program alike.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use chaos::compare::file_digest;
use chaos::tree::write_random;
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use crate::pair::{Pair, wait};
use crate::table::Table;

const MIB: u64 = 1 << 20;
const FILES_PER_FOLDER: usize = 500;
/// Changed while the first device is off.
const CHANGED_WHILE_OFF: usize = 10;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    latency_files: usize,
    many: &'static [usize],
    large_bytes: u64,
    renamed: usize,
    restart: usize,
}

impl Sizes {
    pub(crate) fn new(full: bool, restart_files: Option<usize>) -> Self {
        let renamed = if full { 100_000 } else { 10_000 };
        Self {
            latency_files: if full { 200 } else { 50 },
            many: if full { &[10_000, 100_000] } else { &[10_000] },
            large_bytes: if full { 1024 * MIB } else { 256 * MIB },
            renamed,
            restart: restart_files.unwrap_or(renamed),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures")]
fn float(number: u64) -> f64 {
    number as f64
}

fn count(number: usize) -> f64 {
    float(u64::try_from(number).unwrap_or(u64::MAX))
}

fn megabytes(bytes: u64) -> f64 {
    float(bytes) / 1e6
}

/// From the last write of a 1 KiB file to the identical file under its final name on the second device.
pub(crate) fn latency(pair: &mut dyn Pair, sizes: &Sizes, table: &mut Table) -> anyhow::Result<()> {
    let mut random = SmallRng::from_os_rng();
    let mut latencies = Histogram::<u64>::new(3)?;
    // Syncthing takes over a second for each.
    let files = if pair.name() == "Keepstone" { sizes.latency_files } else { sizes.latency_files.min(20) };
    for index in 0..files {
        let mut bytes = vec![0; 1024];
        random.fill_bytes(&mut bytes);
        let name = format!("file-{index}");
        fs::write(pair.a().join(&name), &bytes)?;
        let there = pair.b().join(&name);
        let took = wait("the file", Instant::now(), Duration::from_millis(2), || {
            Ok(fs::read(&there).is_ok_and(|found| found == bytes))
        })?;
        latencies.record(u64::try_from(took.as_micros())?)?;
        // Idle in between, at no fixed beat.
        std::thread::sleep(Duration::from_millis(random.random_range(100..400)));
    }
    for (label, quantile, promise) in [("p50", 0.5, "at most 250"), ("p99", 0.99, "at most 600")] {
        let value = float(latencies.value_at_quantile(quantile)) / 1000.0;
        table.add(pair.name(), format!("1 KiB file to the second device: {label}"), "ms", value, promise);
    }
    Ok(())
}

/// Bytes of small files.
const SMALL: RangeInclusive<usize> = 1024..=10 * 1024;
/// Bytes of files that are many only to be looked at.
const TINY: RangeInclusive<usize> = 16..=64;

/// Files in folders; how many bytes in all.
fn make_files(
    folder: &Path,
    files: usize,
    sizes: RangeInclusive<usize>,
    random: &mut SmallRng,
) -> anyhow::Result<u64> {
    let mut total = 0;
    let mut buffer = vec![0; *sizes.end()];
    for index in 0..files {
        let below = folder.join(format!("{}", index / FILES_PER_FOLDER));
        if index % FILES_PER_FOLDER == 0 {
            fs::create_dir_all(&below)?;
        }
        let bytes = random.random_range(sizes.clone());
        random.fill_bytes(&mut buffer[..bytes]);
        fs::write(below.join(format!("file-{index}")), &buffer[..bytes])?;
        total += u64::try_from(bytes)?;
    }
    Ok(total)
}

/// Files below a folder that have their final names.
fn count_files(folder: &Path) -> usize {
    let entries = walkdir::WalkDir::new(folder).into_iter().flatten();
    entries
        .filter(|entry| {
            entry.file_type().is_file() && !entry.file_name().as_encoded_bytes().starts_with(b".")
        })
        .count()
}

/// Fails unless both folders hold the same bytes.
fn assert_same_files(a: &Path, b: &Path) -> anyhow::Result<()> {
    for entry in walkdir::WalkDir::new(a) {
        let entry = entry?;
        if entry.file_type().is_file() {
            let there = b.join(entry.path().strip_prefix(a)?);
            let same =
                fs::read(entry.path())? == fs::read(&there).with_context(|| there.display().to_string())?;
            ensure!(same, "{} differs", there.display());
        }
    }
    Ok(())
}

/// Many files made at once.
pub(crate) fn many(pair: &mut dyn Pair, sizes: &Sizes, table: &mut Table) -> anyhow::Result<()> {
    let mut random = SmallRng::from_os_rng();
    for &files in sizes.many {
        let name = format!("many-{files}");
        let began = Instant::now();
        let bytes = make_files(&pair.a().join(&name), files, SMALL, &mut random)?;
        let made = began.elapsed();
        let there = pair.b().join(&name);
        let interval = Duration::from_millis(if files > 20_000 { 500 } else { 100 });
        let took = wait("all files", began, interval, || Ok(count_files(&there) == files))?;
        let promise = if files == 10_000 { "at most half of Syncthing's" } else { "" };
        let what = format!("{files} files of 1 to 10 KiB to the second device");
        table.add(pair.name(), &what, "s", took.as_secs_f64(), promise);
        table.add(pair.name(), format!("{what}: rate"), "files/s", count(files) / took.as_secs_f64(), "");
        eprintln!("  made in {:.1} s, {:.0} MB", made.as_secs_f64(), megabytes(bytes));
        pair.settle()?;
        assert_same_files(&pair.a().join(&name), &there)?;
    }
    Ok(())
}

struct LargeChange {
    what: &'static str,
    wire_promise: &'static str,
    change: fn(&Path) -> anyhow::Result<()>,
}

fn change_middle(path: &Path) -> anyhow::Result<()> {
    let mut bytes = vec![0; usize::try_from(MIB)?];
    SmallRng::from_os_rng().fill_bytes(&mut bytes);
    let mut file = fs::File::options().write(true).open(path)?;
    let middle = file.metadata()?.len() / 2;
    file.seek(SeekFrom::Start(middle))?;
    Ok(file.write_all(&bytes)?)
}

fn insert_first(path: &Path) -> anyhow::Result<()> {
    let next = path.with_file_name(".inserted");
    let mut out = fs::File::create(&next)?;
    out.write_all(b"x")?;
    std::io::copy(&mut fs::File::open(path)?, &mut out)?;
    Ok(fs::rename(next, path)?)
}

/// A large file, then small changes of it.
pub(crate) fn large(pair: &mut dyn Pair, sizes: &Sizes, table: &mut Table) -> anyhow::Result<()> {
    let outside = pair.a().with_file_name("large-made");
    write_random(&outside, sizes.large_bytes, SmallRng::from_os_rng().random())?;
    let alone = pair.alone(&outside)?;
    let (here, there) = (pair.a().join("large"), pair.b().join("large"));
    let began = Instant::now();
    fs::rename(&outside, &here)?;
    let took = wait_same(&here, &there, began)?;
    let size = sizes.large_bytes / MIB;
    let rate = float(sizes.large_bytes) / took.as_secs_f64();
    table.add(pair.name(), format!("{size} MiB file to the second device"), "s", took.as_secs_f64(), "");
    table.add(pair.name(), format!("{size} MiB file: rate"), "MB/s", rate / 1e6, "");
    if let Some((up, down)) = alone {
        table.add(pair.name(), format!("{size} MiB: put alone"), "MB/s", up / 1e6, "");
        table.add(pair.name(), format!("{size} MiB: get alone"), "MB/s", down / 1e6, "");
        let share = 100.0 * rate / up.min(down);
        table.add(pair.name(), format!("{size} MiB: sync of the slower of both"), "%", share, "at least 50");
    }
    pair.settle()?;
    let changes = [
        LargeChange { what: "1 MiB changed in the middle", wire_promise: "at most 4", change: change_middle },
        LargeChange { what: "1 byte inserted at the start", wire_promise: "at most 2", change: insert_first },
    ];
    for LargeChange { what, wire_promise, change } in changes {
        let (up, down) = pair.wire_bytes()?;
        change(&here)?;
        let took = wait_same(&here, &there, Instant::now())?;
        pair.settle()?;
        let (up_after, down_after) = pair.wire_bytes()?;
        table.add(pair.name(), format!("{what}: seen after"), "s", took.as_secs_f64(), "at most 10");
        table.add(pair.name(), format!("{what}: wire, up"), "MB", megabytes(up_after - up), wire_promise);
        table.add(
            pair.name(),
            format!("{what}: wire, down"),
            "MB",
            megabytes(down_after - down),
            wire_promise,
        );
    }
    Ok(())
}

/// Waits until `there` has the bytes of `here`; looks at them only when it has been replaced and has the size.
fn wait_same(here: &Path, there: &Path, began: Instant) -> anyhow::Result<Duration> {
    use std::os::unix::fs::MetadataExt as _;
    let length = fs::metadata(here)?.len();
    let mut looked_at = None;
    let mut seen_after = Duration::ZERO;
    let mut digest = None;
    wait("the same bytes", began, Duration::from_millis(10), || {
        let Ok(metadata) = fs::metadata(there) else { return Ok(false) };
        let stamp = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len());
        if metadata.len() != length || looked_at == Some(stamp) {
            return Ok(false);
        }
        looked_at = Some(stamp);
        seen_after = began.elapsed();
        if digest.is_none() {
            digest = Some(file_digest(here)?);
        }
        Ok(file_digest(there).ok() == digest)
    })?;
    // Comparing takes time that nobody waits for.
    Ok(seen_after)
}

/// A folder with many files renamed; then the first device off and on again.
pub(crate) fn rename_and_restart(
    pair: &mut dyn Pair,
    sizes: &Sizes,
    table: &mut Table,
) -> anyhow::Result<()> {
    let mut random = SmallRng::from_os_rng();
    let files = sizes.renamed;
    make_files(&pair.a().join("before"), files, SMALL, &mut random)?;
    let there = pair.b().join("before");
    let interval = Duration::from_millis(500);
    wait("all files", Instant::now(), interval, || Ok(count_files(&there) == files))?;
    pair.settle()?;
    let (up, down) = pair.wire_bytes()?;
    let began = Instant::now();
    fs::rename(pair.a().join("before"), pair.a().join("after"))?;
    let renamed = pair.b().join("after");
    let took = wait("the rename", began, Duration::from_millis(5), || {
        Ok(!there.exists()
            && renamed.exists()
            && (pair.name() == "Keepstone" || count_files(&renamed) == files))
    })?;
    ensure!(count_files(&renamed) == files, "{} of {files} files", count_files(&renamed));
    pair.settle()?;
    let (up_after, down_after) = pair.wire_bytes()?;
    let what = format!("folder of {files} files renamed");
    table.add(pair.name(), format!("{what}: seen after"), "s", took.as_secs_f64(), "at most 2");
    table.add(pair.name(), format!("{what}: wire, up"), "kB", float(up_after - up) / 1e3, "at most 100");
    table.add(
        pair.name(),
        format!("{what}: wire, down"),
        "kB",
        float(down_after - down) / 1e3,
        "at most 100",
    );
    restart(pair, sizes, table, &renamed, &mut random)
}

fn restart(
    pair: &mut dyn Pair,
    sizes: &Sizes,
    table: &mut Table,
    renamed: &Path,
    random: &mut SmallRng,
) -> anyhow::Result<()> {
    let mut files = sizes.renamed;
    if sizes.restart > files {
        // Only the first device is looked at: the second one need not fetch them.
        fs::create_dir(pair.a().join("more"))?;
        let there = pair.b().join("more");
        wait("a new folder", Instant::now(), Duration::from_millis(100), || Ok(there.exists()))?;
        pair.settle()?;
        pair.leave_out_on_b("more")?;
        let began = Instant::now();
        make_files(&pair.a().join("more"), sizes.restart - files, TINY, random)?;
        eprintln!("  {} more made in {:.0} s", sizes.restart - files, began.elapsed().as_secs_f64());
        files = sizes.restart;
    }
    pair.settle()?;
    if let Some(bytes) = pair.process_a().and_then(|process| process.resident_bytes()) {
        table.add(
            pair.name(),
            format!("idle with {files} files: resident"),
            "MB",
            megabytes(bytes),
            "below 100 MiB",
        );
    }
    pair.stop_a()?;
    let mut changed: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for index in 0..CHANGED_WHILE_OFF {
        let number = index * (sizes.renamed / CHANGED_WHILE_OFF);
        let name = format!("{}/file-{number}", number / FILES_PER_FOLDER);
        let mut bytes = vec![0; 5000];
        random.fill_bytes(&mut bytes);
        fs::write(pair.a().join("after").join(&name), &bytes)?;
        changed.push((renamed.join(name), bytes));
    }
    let began = Instant::now();
    let seen = walkdir::WalkDir::new(pair.a())
        .into_iter()
        .flatten()
        .filter(|entry| entry.metadata().is_ok())
        .count();
    table.add(
        pair.name(),
        format!("stat of {files} files, one thread"),
        "s",
        began.elapsed().as_secs_f64(),
        "",
    );
    ensure!(seen > files, "{seen} of {files}");
    let began = Instant::now();
    pair.start_a()?;
    let took = wait("the changes", began, Duration::from_millis(20), || {
        Ok(changed.iter().all(|(path, bytes)| fs::read(path).is_ok_and(|found| found == *bytes)))
    })?;
    let what = format!("restart over {files} files, {CHANGED_WHILE_OFF} changed");
    table.add(pair.name(), format!("{what}: seen after"), "s", took.as_secs_f64(), "at most 60");
    if let Some(bytes) = pair.process_a().and_then(|process| process.resident_bytes_peak()) {
        table.add(pair.name(), format!("{what}: resident, peak"), "MB", megabytes(bytes), "at most 1 GiB");
    }
    Ok(())
}
