//! Whether a chunk that somebody else has is told from one that nobody has, by time or by outcome (promise 6).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use chaos::attack::arena::Arena;
use chaos::attack::caller::{Caller, chunk_id, random_bytes, session};
use chaos::attack::statistics::{RankSum, percentile, rank_sum};
use chaos::serial::serial;
use chaos::size::{Size, seed};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngCore as _, SeedableRng as _};
use tokio::time::timeout;
use tonic::{Code, Status};

const CHUNK_BYTES: usize = 1 << 20;
/// Tiny chunks that are sent to set the server's idea of how long a write takes.
const TINY: usize = 64;
/// Tries between two lots of tiny chunks.
const TRIES_BETWEEN: usize = 12;
/// An upload that takes longer counts as refused.
const UPLOAD_TIME_MAX: Duration = Duration::from_secs(30);

/// A chunk that only this run has, by number.
fn chunk(run: u64, number: u64) -> Bytes {
    let mut bytes = vec![0; CHUNK_BYTES];
    SmallRng::seed_from_u64(run.wrapping_mul(1_000_003).wrapping_add(number)).fill_bytes(&mut bytes);
    bytes.into()
}

/// Uploads a chunk in a session of its own; how long until it was acknowledged.
async fn upload(caller: &Caller, data: Bytes) -> Result<Duration, Status> {
    let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let upload = session("/guess", &[(chunk_id(&data), size)]);
    let upload_id = upload.upload_id.clone();
    let missing = caller.begin(upload).await?;
    if missing != [0] {
        return Err(Status::unknown(format!("begin tells: missing {missing:?}")));
    }
    let begun = Instant::now();
    let sent = timeout(UPLOAD_TIME_MAX, caller.put_chunks(&upload_id, &[data])).await;
    sent.map_err(|_elapsed| Status::deadline_exceeded("no acknowledgement"))??;
    Ok(begun.elapsed())
}

/// The times of uploads of chunks that the victim has, and of such that nobody has, in random order.
async fn times(
    victim: &Caller,
    attacker: &Caller,
    run: u64,
    count: u64,
    tiny: bool,
) -> Result<[Vec<Duration>; 2]> {
    for number in 0..count {
        victim.put(&format!("/{run}-{number}"), &[chunk(run, number)]).await?;
    }
    let mut order: Vec<u64> = (0..count * 2).collect();
    order.shuffle(&mut SmallRng::seed_from_u64(run));
    let mut times = [Vec::new(), Vec::new()];
    for (place, number) in order.into_iter().enumerate() {
        if tiny && place.is_multiple_of(TRIES_BETWEEN) {
            for _ in 0..TINY / 16 {
                let mut sending = tokio::task::JoinSet::new();
                for _ in 0..16 {
                    let caller = attacker.clone();
                    sending.spawn(async move { upload(&caller, random_bytes(20)).await });
                }
                while let Some(sent) = sending.join_next().await {
                    sent??;
                }
            }
        }
        times[usize::from(number >= count)].push(upload(attacker, chunk(run, number)).await?);
    }
    for kind in &mut times {
        kind.sort_unstable();
    }
    Ok(times)
}

/// Fails if two samples in a row are told apart: one of a hundred is off by chance.
async fn not_told_apart(
    name: &str,
    victim: &Caller,
    attacker: &Caller,
    run: u64,
    count: u64,
    tiny: bool,
) -> Result<()> {
    let mut found: Vec<RankSum> = Vec::new();
    for sample in 0..2 {
        let run = run.wrapping_mul(2).wrapping_add(sample);
        let [known, fresh] = times(victim, attacker, run, count, tiny).await?;
        let test = rank_sum(&known, &fresh);
        let medians = [percentile(&known, 0.5), percentile(&fresh, 0.5)];
        eprintln!("{name}, {count} known and fresh chunks each: medians {medians:?}, {test:?}");
        if test.p > 0.01 {
            return Ok(());
        }
        found.push(test);
    }
    anyhow::bail!("{name}: known and fresh chunks are told apart: {found:?}")
}

fn tries() -> u64 {
    Size::chosen().pick(60, 2000, 2000)
}

#[test]
fn known_chunks_take_as_long_as_fresh_ones() -> Result<()> {
    let _serial = serial();
    let run = seed("oracle");
    let arena = Arena::start()?;
    let (victim, attacker) = (arena.neighbour("victim", 0)?, arena.neighbour("attacker", 0)?);
    arena
        .prepare(async move { not_told_apart("as it is", &victim, &attacker, run, tries(), false).await })?;
    arena.finish()
}

#[test]
fn known_chunks_take_as_long_as_fresh_ones_after_tiny_ones() -> Result<()> {
    let _serial = serial();
    let run = seed("oracle");
    let arena = Arena::start()?;
    let (victim, attacker) = (arena.neighbour("victim", 0)?, arena.neighbour("attacker", 0)?);
    arena.prepare(async move {
        not_told_apart("after tiny chunks", &victim, &attacker, run, tries(), true).await
    })?;
    arena.finish()
}

#[test]
fn known_chunks_take_as_long_as_fresh_ones_with_a_disk_down() -> Result<()> {
    let _serial = serial();
    let run = seed("oracle");
    let mut arena = Arena::start()?;
    let (victim, attacker) = (arena.neighbour("victim", 0)?, arena.neighbour("attacker", 0)?);
    arena.cluster.kill(("storage", 2))?;
    arena.prepare(async move {
        // Until it is known to be down: that takes as long for all.
        victim.put("/settled", &[chunk(run, u64::MAX)]).await?;
        not_told_apart("with a disk down", &victim, &attacker, run, tries(), false).await
    })?;
    arena.finish()
}

#[test]
fn what_cannot_be_written_is_refused_whether_it_is_known_or_not() -> Result<()> {
    let _serial = serial();
    let run = seed("oracle");
    let mut arena = Arena::start()?;
    let (victim, attacker) = (arena.neighbour("victim", 0)?, arena.neighbour("attacker", 0)?);
    let count = Size::chosen().pick(4, 20, 20);
    arena.prepare(async move {
        for number in 0..count {
            victim.put(&format!("/{number}"), &[chunk(run, number)]).await?;
        }
        Ok(())
    })?;
    // Three of six: more than a code of 4+2 may lack when it writes.
    for index in [1, 3, 5] {
        arena.cluster.kill(("storage", index))?;
    }
    arena.prepare(async move {
        let mut codes = [BTreeSet::new(), BTreeSet::new()];
        for number in 0..count {
            for (kind, number) in [number, count + number].into_iter().enumerate() {
                let outcome = upload(&attacker, chunk(run, number)).await;
                codes[kind].insert(format!("{:?}", outcome.map_or_else(|error| error.code(), |_| Code::Ok)));
            }
        }
        let [known, fresh] = codes;
        eprintln!("with three storage nodes down: known {known:?}, fresh {fresh:?}");
        ensure!(known == fresh, "known chunks are answered {known:?}, fresh ones {fresh:?}");
        Ok(())
    })?;
    arena.finish()
}
