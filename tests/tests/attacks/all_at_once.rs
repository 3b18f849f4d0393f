//! All attacks of the other files together, for a minute: the processes stay small, and who does not attack is served.
//!
//! Not among them are floods of frames, which are a matter of processor time: see `floods`.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chaos::attack::arena::Arena;
use chaos::attack::caller::Caller;
use chaos::attack::gate::{ATTACKER, Gate, address_of};
use chaos::serial::serial;
use chaos::size::Size;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::{connections, entries, queries, sign_in, streams, uploads};

/// Repeats an attack until `period` is over; what it says of itself is asked elsewhere.
async fn again<T>(period: Duration, mut attack: impl AsyncFnMut() -> Result<T>) {
    let begun = Instant::now();
    while let Some(left) = period.checked_sub(begun.elapsed()) {
        let pause = Duration::from_millis(50);
        // It ends with the period, wherever it is.
        drop(timeout(left, attack()).await);
        tokio::time::sleep(pause).await;
    }
}

type Attack = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn strangers(gate: &Gate, period: Duration, running: &mut JoinSet<()>) {
    let mut spawn = |attack: fn(Gate, Duration) -> Attack| {
        running.spawn(attack(gate.clone(), period));
    };
    spawn(|gate, period| {
        Box::pin(again(period, async move || connections::without_bodies(gate.clone(), period, 16).await))
    });
    spawn(|gate, period| {
        Box::pin(again(period, async move || {
            let hold = Duration::from_secs(5);
            connections::endless_bodies(&gate, ATTACKER, "Accounts/SignIn", "", 1, 100, hold).await
        }))
    });
    spawn(|gate, period| {
        Box::pin(again(period, async move || connections::silent(&gate, [200, 100, 20, 50]).await))
    });
    spawn(|gate, period| {
        Box::pin(again(period, async move || {
            sign_in::guess(&gate, 40, period, address_of, |_worker| "innocent@example.org".to_owned()).await
        }))
    });
}

fn neighbours(
    gate: &Gate,
    period: Duration,
    running: &mut JoinSet<()>,
    callers: [Caller; 5],
    download: Vec<u8>,
) {
    let [lists, links, streaming, tiny, reading] = callers;
    running.spawn(again(period, async move || {
        queries::abandoned_lists(&lists, 1, 8).await?;
        uploads::long_lists(&lists, Duration::from_secs(1)).await
    }));
    running.spawn(again(period, async move || entries::symlinks(&links, 2000).await));
    let (puts, token) = (gate.clone(), streaming.token.clone());
    running.spawn(again(period, async move || {
        let hold = Duration::from_secs(5);
        streams::idle_streams(&puts, &token, "Files/PutChunks", None, 200, hold).await
    }));
    running.spawn(again(period, async move || uploads::tiny_sessions(&tiny, 1, 2000).await));
    let gate = gate.clone();
    running.spawn(again(period, async move || {
        let hold = Duration::from_secs(5);
        streams::idle_streams(&gate, &reading.token, "Files/Download", Some(&download), 300, hold).await
    }));
}

#[test]
fn everything_at_once_harms_only_who_does_it() -> Result<()> {
    let _serial = serial();
    connections::raise_open_files();
    let arena = Arena::start()?;
    let period = Duration::from_secs(Size::chosen().pick(10, 60, 60));
    let trash = Size::chosen().pick(1000, 10_000, 10_000);
    let names = ["lists", "links", "streaming", "tiny", "reading"];
    let callers = names.map(|name| arena.neighbour(name, if name == "links" { 10 << 20 } else { 0 }));
    let [lists, links, streaming, tiny, reading] = callers;
    let callers = [lists?, links?, streaming?, tiny?, reading?];
    let (with_trash, with_file) = (callers[0].clone(), callers[4].clone());
    let download = arena.prepare(async move {
        queries::deep_trash(&with_trash, trash).await?;
        streams::large_file(&with_file, 16).await
    })?;
    let gate = arena.gate.clone();
    let attack = async move {
        let mut running = JoinSet::new();
        strangers(&gate, period, &mut running);
        neighbours(&gate, period, &mut running, callers, download);
        while let Some(ended) = running.join_next().await {
            ended?;
        }
        Ok(())
    };
    let ((), seen) = arena.attack("everything at once", attack)?;
    seen.harmless()?;
    ensure!(seen.beside.count() > 10, "only {} × 4 KiB were served", seen.beside.count());
    arena.finish()
}
