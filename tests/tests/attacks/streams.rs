//! What a neighbour can do with streams: chunks that never come, downloads that are never read.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use chaos::attack::arena::Arena;
use chaos::attack::caller::{Caller, random_bytes};
use chaos::attack::gate::{ATTACKER, Gate};
use chaos::attack::h2_client::{H2Client, OpenRequest, message_of};
use chaos::serial::serial;
use chaos::size::Size;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Streams of one connection, somewhat below what the gateway allows.
const CONNECTION_STREAMS: usize = 240;

/// How many streams were opened, and how many of them the gateway had not ended at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Idle {
    opened: usize,
    still_open: usize,
}

/// Opens `count` streams of a method and leaves them alone for `hold`.
pub(crate) async fn idle_streams(
    gate: &Gate,
    token: &str,
    method: &str,
    body: Option<&[u8]>,
    count: usize,
    hold: Duration,
) -> Result<Idle> {
    let begun = Instant::now();
    let mut clients: Vec<H2Client> = Vec::new();
    let mut open: Vec<OpenRequest> = Vec::new();
    while open.len() < count {
        if open.len().is_multiple_of(CONNECTION_STREAMS) {
            // A connection may be refused: then there are as many streams as there are.
            match H2Client::connect(gate, ATTACKER, 0).await {
                Ok(client) => clients.push(client),
                Err(_refused) => break,
            }
        }
        let Some(client) = clients.last_mut() else { break };
        let Ok(mut request) = client.start(method, token).await else { break };
        if let Some(body) = body {
            request.send(message_of(body), true).await.ok();
        }
        open.push(request);
    }
    sleep(hold.saturating_sub(begun.elapsed())).await;
    let opened = open.len();
    let mut looking = JoinSet::new();
    for request in open {
        looking.spawn(request.is_ended_within(Duration::from_secs(1)));
    }
    let still_open = looking.join_all().await.into_iter().filter(|ended| !ended).count();
    Ok(Idle { opened, still_open })
}

/// A file of so many MiB in the neighbour's tree, and the request that reads it.
pub(crate) async fn large_file(caller: &Caller, mebibytes: usize) -> Result<Vec<u8>> {
    let chunks: Vec<Bytes> = (0..mebibytes).map(|_| random_bytes(1 << 20)).collect();
    caller.put("/large", &chunks).await?;
    // DownloadRequest{path = 1}, encoded.
    Ok([&[0x0a, 6][..], b"/large"].concat())
}

#[test]
fn idle_streams_of_chunks_stop_nobodys_uploads() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    let (count, hold) = Size::chosen().pick((64, 8), (1000, 120), (1000, 120));
    let gate = arena.gate.clone();
    let attack = async move {
        let hold = Duration::from_secs(hold);
        idle_streams(&gate, &neighbour.token, "Files/PutChunks", None, count, hold).await
    };
    let (idle, seen) = arena.attack("idle PutChunks", attack)?;
    eprintln!("{idle:?}");
    seen.harmless()?;
    // In the short form nobody waits for that.
    ensure!(Size::chosen() == Size::Ci || idle.still_open == 0, "idle streams do not end: {idle:?}");
    arena.finish()
}

#[test]
fn a_few_unread_downloads_stop_nobodys_reads() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    let (size, hold) = Size::chosen().pick((32, 6), (64, 150), (64, 150));
    let gate = arena.gate.clone();
    let token = neighbour.token.clone();
    let body = arena.prepare(async move { large_file(&neighbour, size).await })?;
    let attack = async move {
        let hold = Duration::from_secs(hold);
        idle_streams(&gate, &token, "Files/Download", Some(&body), 16, hold).await
    };
    let (idle, seen) = arena.attack("16 unread downloads", attack)?;
    ensure!(idle.opened > 0, "nothing was opened");
    seen.harmless()?;
    ensure!(Size::chosen() == Size::Ci || idle.still_open == 0, "unread downloads do not end: {idle:?}");
    arena.finish()
}

#[test]
fn many_unread_downloads_take_no_memory() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    let (count, hold) = Size::chosen().pick((480, 5), (2160, 60), (2160, 60));
    let gate = arena.gate.clone();
    let token = neighbour.token.clone();
    let body = arena.prepare(async move { large_file(&neighbour, 16).await })?;
    let methods = ["Files/Download", "Files/DownloadMany"];
    for method in methods.into_iter().take(Size::chosen().pick(1, 2, 2)) {
        let (gate, token) = (gate.clone(), token.clone());
        // DownloadMany has the path in the same field.
        let body = body.clone();
        let attack = async move {
            idle_streams(&gate, &token, method, Some(&body), count, Duration::from_secs(hold)).await
        };
        let (idle, seen) = arena.attack(&format!("unread {method}"), attack)?;
        eprintln!("{idle:?}");
        seen.harmless()?;
    }
    arena.finish()
}
