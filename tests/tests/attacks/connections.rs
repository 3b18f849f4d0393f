//! What strangers can do before anybody knows who they are: connections that say nothing, requests without bodies,
//! bodies without an end.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos::attack::arena::Arena;
use chaos::attack::caller::Caller;
use chaos::attack::gate::{ATTACKER, Gate, INNOCENT};
use chaos::attack::h2_client::{H2Client, OpenRequest, message_begun};
use chaos::serial::serial;
use chaos::size::Size;
use proto::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

/// Whoever says nothing is gone by then.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;
const WRONG_TOKEN: &str = "ks1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A request of each kind, by a stranger, that never gets its body: how many are still open after `SILENCE_MAX`.
pub(crate) async fn without_bodies(gate: Gate, hold: Duration, count: usize) -> Result<usize> {
    const METHODS: [&str; 6] = [
        "Files/BeginUploads",
        "Files/CommitUploads",
        "Files/PutChunks",
        "Files/ListTrash",
        "Sync/Apply",
        "Accounts/SignIn",
    ];
    let begun = Instant::now();
    let mut clients = Vec::new();
    let mut waiting = JoinSet::new();
    for token in ["", WRONG_TOKEN] {
        for method in METHODS {
            let mut client = H2Client::connect(&gate, ATTACKER, 64 << 10).await?;
            for _ in 0..count {
                let Ok(request) = client.start(method, token).await else { break };
                waiting.spawn(request.is_ended_within(SILENCE_MAX));
            }
            clients.push(client);
        }
    }
    let mut open = 0;
    while let Some(ended) = waiting.join_next().await {
        open += usize::from(!ended?);
    }
    sleep(hold.saturating_sub(begun.elapsed())).await;
    Ok(open)
}

#[test]
fn strangers_who_send_no_body_disturb_nobody() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let (hold, count) = Size::chosen().pick((4, 16), (60, 100), (60, 100));
    let attack = without_bodies(arena.gate.clone(), Duration::from_secs(hold), count);
    let (open, seen) = arena.attack("requests of strangers without a body", attack)?;
    seen.harmless()?;
    ensure!(open == 0, "{open} requests of strangers are still open after {SILENCE_MAX:?}");
    arena.finish()
}

#[test]
fn a_neighbour_who_sends_no_body_disturbs_nobody() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    let gate = arena.gate.clone();
    let hold = Duration::from_secs(Size::chosen().pick(6, 120, 120));
    let attack = async move {
        let mut client = H2Client::connect(&gate, ATTACKER, 64 << 10).await?;
        let mut open = Vec::new();
        for _ in 0..64 {
            let Ok(request) = client.start("Files/BeginUploads", &neighbour.token).await else { break };
            open.push(request);
        }
        let count = open.len();
        sleep(hold).await;
        Ok(count)
    };
    let (count, seen) = arena.attack("64 BeginUploads of a neighbour without a body", attack)?;
    ensure!(count > 0, "nothing was begun");
    seen.harmless()?;
    arena.finish()
}

/// Streams of almost `MIB`s each, whose last bytes never come: how many bytes were taken.
pub(crate) async fn endless_bodies(
    gate: &Gate,
    from: IpAddr,
    method: &'static str,
    token: &str,
    connections: usize,
    streams: usize,
    hold: Duration,
) -> Result<usize> {
    const ANNOUNCED: u32 = 4 << 20;
    let until = tokio::time::Instant::now() + hold;
    let mut clients = Vec::new();
    let mut sending = JoinSet::new();
    for _ in 0..connections {
        let mut client = H2Client::connect(gate, from, 64 << 10).await?;
        for _ in 0..streams {
            let Ok(mut request) = client.start(method, token).await else { break };
            sending.spawn(async move {
                let mut sent = request.send(message_begun(ANNOUNCED, 0), false).await.unwrap_or(0);
                let part = message_begun(0, MIB / 4 - 5);
                // All but the last quarter of a MiB.
                for _ in 0..15 {
                    let Ok(Ok(bytes)) = timeout(hold, request.send(part.clone(), false)).await else { break };
                    sent += bytes;
                }
                // Held open: it is not to end before all others are there.
                sleep_until(until).await;
                drop::<OpenRequest>(request);
                sent
            });
        }
        clients.push(client);
    }
    let mut sent = 0;
    while let Some(bytes) = sending.join_next().await {
        sent += bytes?;
    }
    Ok(sent)
}

#[test]
fn bodies_of_strangers_are_not_gathered() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let (connections, streams) = Size::chosen().pick((1, 120), (2, 250), (2, 250));
    let hold = Duration::from_secs(Size::chosen().pick(3, 20, 20));
    for method in ["Accounts/SignIn", "Files/CommitUploads"] {
        let gate = arena.gate.clone();
        let attack =
            async move { endless_bodies(&gate, ATTACKER, method, "", connections, streams, hold).await };
        let (sent, seen) = arena.attack(&format!("endless {method} of strangers"), attack)?;
        eprintln!("{} MiB were taken of strangers", sent / MIB);
        seen.harmless()?;
    }
    arena.finish()
}

#[test]
fn bodies_of_a_neighbour_are_bounded() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    let (connections, streams) = Size::chosen().pick((1, 120), (2, 250), (2, 250));
    let hold = Duration::from_secs(Size::chosen().pick(3, 20, 20));
    let methods = ["Files/CreateEntries", "Files/BeginUploads", "Files/PutChunks", "Sync/Apply"];
    for method in methods.into_iter().take(Size::chosen().pick(2, 4, 4)) {
        let (gate, token) = (arena.gate.clone(), neighbour.token.clone());
        let attack =
            async move { endless_bodies(&gate, ATTACKER, method, &token, connections, streams, hold).await };
        let (sent, seen) = arena.attack(&format!("endless {method} of a neighbour"), attack)?;
        eprintln!("{} MiB were taken of a neighbour", sent / MIB);
        seen.harmless()?;
    }
    arena.finish()
}

/// What a silent connection has said before it fell silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Nothing,
    /// The first bytes of a TLS ClientHello.
    HalfHello,
    /// The same, a byte a second: never quite silent.
    DrippingHello,
    /// A whole handshake, and nothing of HTTP/2.
    Handshake,
}

/// A TLS record with a ClientHello of 508 bytes, of which some are here.
const HALF_HELLO: [u8; 43] = {
    let mut hello = [7; 43];
    let begin = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let mut at = 0;
    while at < begin.len() {
        hello[at] = begin[at];
        at += 1;
    }
    hello
};

/// How long the gateway lets the connection be open; `None` if longer than [`SILENCE_MAX`].
async fn open_for(gate: Gate, said: Said) -> Result<Option<Duration>> {
    let begun = Instant::now();
    let ended = async {
        if said == Said::Handshake {
            let Ok(mut stream) = gate.tls(ATTACKER).await else { return };
            while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
            return;
        }
        let Ok(stream) = gate.tcp(ATTACKER).await else { return };
        let (mut reading, mut writing) = stream.into_split();
        let dripping = async {
            match said {
                Said::HalfHello => drop(writing.write_all(&HALF_HELLO).await),
                Said::DrippingHello => {
                    for byte in HALF_HELLO {
                        if writing.write_all(&[byte]).await.is_err() {
                            break;
                        }
                        sleep(Duration::from_secs(1)).await;
                    }
                }
                Said::Nothing | Said::Handshake => {}
            }
            std::future::pending::<()>().await;
        };
        let closed = async { while matches!(reading.read(&mut [0; 1024]).await, Ok(1..)) {} };
        tokio::select! {
            () = dripping => {}
            () = closed => {}
        }
    };
    Ok(timeout(SILENCE_MAX, ended).await.is_ok().then(|| begun.elapsed()))
}

/// Opens so many connections of each kind and waits until they are closed: those that were not, and how long the
/// longest was open.
pub(crate) async fn silent(gate: &Gate, counts: [usize; 4]) -> Result<(Vec<Said>, Duration)> {
    let mut open = JoinSet::new();
    let kinds = [Said::Nothing, Said::HalfHello, Said::DrippingHello, Said::Handshake];
    for (said, count) in kinds.into_iter().zip(counts) {
        for _ in 0..count {
            let gate = gate.clone();
            open.spawn(async move { (said, open_for(gate, said).await) });
        }
    }
    let (mut forever, mut longest) = (Vec::new(), Duration::ZERO);
    while let Some(ended) = open.join_next().await {
        let (said, open_for) = ended?;
        match open_for? {
            Some(time) => longest = longest.max(time),
            None => forever.push(said),
        }
    }
    Ok((forever, longest))
}

/// The longest that an innocent client waits for a new connection and its first answer, of ten.
async fn new_connections(gate: &Gate, token: &str) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for _ in 0..10 {
        let begun = Instant::now();
        let caller = Caller::connect(gate, INNOCENT, token).await?;
        caller.accounts().who_am_i(caller.request(v1::WhoAmIRequest {})).await?;
        longest = longest.max(begun.elapsed());
    }
    Ok(longest)
}

pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum.map(|maximum| maximum.min(65_536)).or(Some(65_536));
    // If it is refused, opening connections fails and says so.
    setrlimit(Resource::Nofile, limit).ok();
}

#[test]
fn silent_connections_are_closed() -> Result<()> {
    let _serial = serial();
    raise_open_files();
    let arena = Arena::start()?;
    let counts = Size::chosen().pick([300, 150, 20, 100], [2000, 1200, 100, 1000], [2000, 1200, 100, 1000]);
    let (gate, token) = (arena.gate.clone(), arena.innocent().token.clone());
    let attack = async move {
        let (silent, waited) = tokio::join!(silent(&gate, counts), new_connections(&gate, &token));
        let (forever, longest) = silent?;
        Ok((forever, longest, waited.context("a new innocent connection")?))
    };
    let ((forever, longest, waited), seen) = arena.attack("silent connections", attack)?;
    let count = |said| forever.iter().filter(|other| **other == said).count();
    eprintln!("the longest was open for {longest:?}; new innocent connections waited {waited:?} at most");
    ensure!(
        forever.is_empty(),
        "still open after {SILENCE_MAX:?}: {} silent, {} half a hello, {} dripping, {} after the handshake",
        count(Said::Nothing),
        count(Said::HalfHello),
        count(Said::DrippingHello),
        count(Said::Handshake)
    );
    ensure!(waited < Duration::from_secs(2), "a new innocent connection waited {waited:?}");
    seen.harmless()?;
    arena.finish()
}
