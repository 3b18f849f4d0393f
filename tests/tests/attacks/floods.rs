//! Floods of HTTP/2 frames, each legal by itself (CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2024-27316).

use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use chaos::attack::arena::Arena;
use chaos::attack::frames::{END_HEADERS, Frames, field, frame, kind, request_block};
use chaos::attack::gate::{ATTACKER, Gate};
use chaos::serial::serial;
use chaos::size::Size;

/// What is written again and again: with the number of the round, from which stream numbers follow.
type Round = fn(u32) -> Bytes;

const TOGETHER: u32 = 64;

fn stream_of(round: u32, place: u32) -> u32 {
    (round * TOGETHER + place) * 2 + 1
}

fn many(of: impl Fn(u32) -> Bytes) -> Bytes {
    let mut bytes = BytesMut::new();
    for place in 0..TOGETHER {
        bytes.extend_from_slice(&of(place));
    }
    bytes.freeze()
}

fn rapid_reset(round: u32) -> Bytes {
    many(|place| {
        let stream = stream_of(round, place);
        let begin = frame(kind::HEADERS, END_HEADERS, stream, &request_block("Files/ListTrash"));
        [begin, frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat().into()
    })
}

fn continuations(round: u32) -> Bytes {
    let begin =
        if round == 0 { frame(kind::HEADERS, 0, 1, &request_block("Files/ListTrash")) } else { Bytes::new() };
    let more = frame(kind::CONTINUATION, 0, 1, &field("x", &[b'y'; 16_000], false));
    [begin, more].concat().into()
}

fn pings(_round: u32) -> Bytes {
    many(|place| frame(kind::PING, 0, 0, &u64::from(place).to_be_bytes()))
}

fn settings(_round: u32) -> Bytes {
    // The initial window, up and down.
    many(|place| {
        let value = (65_535 + place % 2).to_be_bytes();
        frame(kind::SETTINGS, 0, 0, &[&[0, 4][..], &value].concat())
    })
}

/// A large field that the gateway has to remember, and then requests that name it some thousand times in few bytes.
fn hpack_bomb(round: u32) -> Bytes {
    let stream = stream_of(round, 0);
    let mut block = request_block("Files/ListTrash");
    block.extend(field("bomb", &[b'z'; 3900], true));
    // 62 is the newest field of the dynamic table.
    block.extend(std::iter::repeat_n(0x80 | 62, 4000));
    frame(kind::HEADERS, END_HEADERS, stream, &block)
}

fn empty_data(round: u32) -> Bytes {
    let begin = if round == 0 {
        frame(kind::HEADERS, END_HEADERS, 1, &request_block("Accounts/SignIn"))
    } else {
        Bytes::new()
    };
    [begin, many(|_place| frame(kind::DATA, 0, 1, &[]))].concat().into()
}

fn priorities(round: u32) -> Bytes {
    many(|place| frame(kind::PRIORITY, 0, stream_of(round, place), &[0, 0, 0, 0, 16]))
}

fn window_updates(_round: u32) -> Bytes {
    many(|_place| frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()))
}

fn garbage(round: u32) -> Bytes {
    many(|place| {
        frame(u8::try_from(10 + place % 200).unwrap_or(10), 0xff, stream_of(round, place), &[7; 100])
    })
}

const FLOODS: [(&str, Round); 9] = [
    ("rapid reset", rapid_reset),
    ("continuation", continuations),
    ("ping", pings),
    ("settings", settings),
    ("HPACK bomb", hpack_bomb),
    ("empty data", empty_data),
    ("priority", priorities),
    ("window update", window_updates),
    ("unknown frames", garbage),
];

/// Writes rounds for so long, on a new connection whenever the gateway has ended the last; gives how many rounds.
async fn flood(gate: &Gate, round: Round, period: Duration) -> Result<u32> {
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < period {
        let mut frames = Frames::connect(gate, ATTACKER).await?;
        let mut on_this = 0;
        while begun.elapsed() < period && frames.write(&round(on_this)).await {
            on_this += 1;
            rounds += 1;
        }
    }
    Ok(rounds)
}

#[test]
fn floods_of_frames_are_survived() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let period = Duration::from_millis(Size::chosen().pick(800, 15_000, 15_000));
    for (name, round) in FLOODS {
        let gate = arena.gate.clone();
        let attack = async move { flood(&gate, round, period).await };
        let (rounds, seen) = arena.watch(&format!("{name} flood"), attack)?;
        eprintln!("{rounds} rounds");
        // A flood is paid for in processor time, which two cores share: how long others wait is not asserted.
        seen.survived()?;
    }
    arena.finish()
}
