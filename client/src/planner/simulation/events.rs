//! Events, and lists of them made from a seed: mostly at random, and some short stories in between that chance alone would
//! seldom tell.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::user::{ACTS, Act, MAKES, NEST, SWAP};
use crate::planner::names::NameRules;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody does something on a device.
    User(u8, Act),
    /// Somebody does something on the server.
    Web(Act),
    Fetch(u8),
    Take(u8),
    /// Takes what it fetched, and once more.
    TakeTwice(u8),
    /// Takes what it fetched last before what it fetched earlier.
    TakeLast(u8),
    /// Takes what it took last once more, whatever happened since.
    TakeAgain(u8),
    Scan(u8),
    Plan(u8, u8),
    /// Sends a task's call, which comes to the server, if it needs one, when the task is carried out.
    Send(u8, u8),
    /// Carries a task out and records it.
    Perform(u8, u8),
    /// Carries a task out; it is recorded later.
    Begin(u8, u8),
    Record(u8, u8),
    /// The answer of a call is lost.
    LoseAnswer(u8, u8),
    /// Much of what a device does at once.
    Work(u8),
    Crash(u8),
    LoseDatabase(u8),
    /// The server says that the cursor is of no use.
    Reset(u8),
    Online(u8, bool),
    Withhold(u8, bool),
    Exclude(u8, u8, bool),
    /// The server is kept as it is now.
    Keep,
    /// The server goes back to what was kept.
    GoBack(u8),
    /// All become quiet.
    Quiet,
}

#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) devices: Vec<(NameRules, bool)>,
    /// Only one device is used at a time, and nothing fails: there is no reason for a conflict.
    pub(super) calm: bool,
}

/// The setup and events of a seed.
pub(super) fn generate(seed: u64) -> (Setup, Vec<Event>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let calm = rng.random_ratio(1, 8);
    let count = rng.random_range(2..=5_usize);
    let plain = rng.random_bool(0.5);
    let devices = (0..count)
        .map(|_| {
            let odd = !plain && !calm && rng.random_ratio(2, 5);
            let names = NameRules {
                case_blind: odd && rng.random_bool(0.7),
                normalising: odd && rng.random_bool(0.5),
                windows: odd && rng.random_bool(0.2),
            };
            (names, rng.random_bool(0.7))
        })
        .collect();
    let length = rng.random_range(5..70);
    let faults = rng.random_bool(0.6);
    let exclusion = rng.random_bool(0.3);
    let mut events = if !calm && rng.random_ratio(1, 6) { perturbed(&mut rng) } else { Vec::new() };
    for _ in 0..length {
        let device = rng.random_range(0..8_u8);
        if calm {
            events.push(Event::User(device, random_act(&mut rng)));
            if rng.random_bool(0.7) {
                events.push(Event::Quiet);
            }
            continue;
        }
        match rng.random_range(0..40) {
            0 => events.extend(at_once(&mut rng, device)),
            1 if faults => events.extend(lost_halfway(&mut rng, device)),
            2 => events.extend(in_between(&mut rng, device)),
            3 if faults => events.extend(offline_spell(&mut rng, device)),
            4 if faults => events.extend(out_of_order(&mut rng, device)),
            _ => events.push(random_event(&mut rng, device, faults, exclusion)),
        }
        if rng.random_ratio(1, 40) {
            events.push(Event::Quiet);
        }
    }
    if seed % 4 == 1 && !calm {
        go_back(seed, &mut events);
        if seed % 8 == 5 {
            go_back_between(seed, &mut events);
        }
    }
    (Setup { devices, calm }, events)
}

/// Has the server go back, at random. By a generator of its own: the other seeds stay as they were.
fn go_back(seed: u64, events: &mut Vec<Event>) {
    let mut rng = SmallRng::seed_from_u64(!seed);
    for _ in 0..rng.random_range(1..4) {
        let kept = rng.random_range(0..=events.len());
        events.insert(kept, Event::Keep);
        let mut gone = rng.random_range(kept + 1..=events.len());
        if rng.random() {
            events.insert(gone, Event::Quiet);
            gone += 1;
        }
        events.insert(gone, Event::GoBack(rng.random()));
        // Its numbers pass those that were known.
        for _ in 0..if rng.random() { rng.random_range(1..12) } else { 0 } {
            events.insert(gone + 1, Event::Web(Act { what: rng.random(), ..random_act(&mut rng) }));
        }
    }
}

/// Has the server go back between what a device asks and what it is answered, some of it before and some after.
fn go_back_between(seed: u64, events: &mut Vec<Event>) {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(32));
    for _ in 0..rng.random_range(1..3) {
        let device = rng.random();
        let mut story = Vec::new();
        for _ in 0..rng.random_range(1..5) {
            story.push(Event::User(device, random_act(&mut rng)));
        }
        story.extend([
            Event::Fetch(device),
            Event::Take(device),
            Event::Scan(device),
            Event::Plan(device, 7),
        ]);
        let mut kept = false;
        for _ in 0..rng.random_range(3..14) {
            let pick = rng.random();
            story.push(match rng.random_range(0..12) {
                0 | 1 => Event::Send(device, pick),
                2 | 3 => Event::Perform(device, pick),
                4 | 5 => Event::Begin(device, pick),
                6 => Event::Record(device, pick),
                7 => Event::Web(random_act(&mut rng)),
                8 => Event::Fetch(device),
                9 => Event::Take(device),
                _ if kept => Event::GoBack(pick),
                _ => Event::Keep,
            });
            kept |= story.last() == Some(&Event::Keep);
        }
        let at = rng.random_range(0..=events.len());
        events.splice(at..at, story);
    }
}

fn random_act(rng: &mut SmallRng) -> Act {
    Act { what: rng.random_range(0..ACTS), one: rng.random(), other: rng.random(), name: rng.random() }
}

/// A random tree on all sides; then each changes it, and knows of nobody else.
fn perturbed(rng: &mut SmallRng) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..rng.random_range(4..16) {
        events.push(Event::User(0, Act { what: rng.random_range(0..MAKES), ..random_act(rng) }));
    }
    events.push(Event::Quiet);
    for _ in 0..rng.random_range(4..20) {
        let act = random_act(rng);
        events.push(if rng.random_ratio(1, 3) { Event::Web(act) } else { Event::User(rng.random(), act) });
    }
    events
}

/// A device is away for a while. People use it, and everything else, meanwhile.
fn offline_spell(rng: &mut SmallRng, device: u8) -> Vec<Event> {
    let other = device.wrapping_add(1);
    let mut events = vec![Event::Online(device, false)];
    for _ in 0..rng.random_range(2..12) {
        let act = random_act(rng);
        events.push(match rng.random_range(0..8) {
            0..=2 => Event::User(device, act),
            3 => Event::User(other, act),
            4 => Event::Web(act),
            5 => Event::Work(device),
            _ => Event::Work(other),
        });
    }
    events.push(Event::Online(device, true));
    if rng.random() {
        events.push(Event::Work(device));
    }
    events
}

/// What a device fetched reaches it in another order, and more than once, with work in between.
fn out_of_order(rng: &mut SmallRng, device: u8) -> Vec<Event> {
    let other = device.wrapping_add(1);
    let mut events = vec![Event::Fetch(device), Event::Web(random_act(rng))];
    events.extend([Event::User(other, random_act(rng)), Event::Work(other), Event::Fetch(device)]);
    events.push(Event::TakeLast(device));
    for _ in 0..rng.random_range(0..5) {
        let pick = rng.random();
        events.push(match rng.random_range(0..5) {
            0 => Event::Scan(device),
            1 => Event::Plan(device, 7),
            2 => Event::Begin(device, pick),
            3 => Event::Record(device, pick),
            _ => Event::Perform(device, pick),
        });
    }
    events.extend([Event::TakeAgain(device), Event::Take(device)]);
    events
}

/// Two devices do something with the same things, without knowing of one another.
fn at_once(rng: &mut SmallRng, device: u8) -> Vec<Event> {
    let one = random_act(rng);
    let mut other = Act { one: one.one, ..random_act(rng) };
    let mut first = one;
    if rng.random_bool(0.4) {
        first.what = NEST;
        other = Act { what: NEST, one: first.other, other: first.one, ..other };
    }
    let second = device.wrapping_add(1);
    let mut events = vec![Event::Quiet, Event::User(device, first), Event::User(second, other)];
    for _ in 0..rng.random_range(0..3) {
        let more = Act { one: one.one, ..random_act(rng) };
        events.push(Event::User(if rng.random() { device } else { second }, more));
    }
    events
}

/// Somebody does something to what a device is about to change.
fn in_between(rng: &mut SmallRng, device: u8) -> Vec<Event> {
    let there = random_act(rng);
    let other = device.wrapping_add(1);
    let mut events = vec![Event::Quiet, Event::User(other, there)];
    if rng.random() {
        events.push(Event::User(device, Act { one: there.one, ..random_act(rng) }));
        events.push(Event::Scan(device));
    }
    events.extend([Event::Work(other), Event::Fetch(device), Event::Take(device), Event::Scan(device)]);
    events.push(Event::Plan(device, 7));
    for _ in 0..rng.random_range(1..6) {
        let here = Act { one: there.one, ..random_act(rng) };
        let pick = rng.random();
        events.push(match rng.random_range(0..9) {
            0..=2 => Event::User(device, here),
            3 => Event::User(other, here),
            4 => Event::Work(other),
            5 => Event::Scan(device),
            6 => Event::Plan(device, 7),
            7 => Event::Begin(device, pick),
            _ => Event::Perform(device, pick),
        });
        if rng.random_ratio(1, 4) {
            events.extend([Event::Work(other), Event::Fetch(device), Event::Take(device)]);
        }
    }
    events.extend([Event::Perform(device, 0), Event::Perform(device, 0)]);
    events
}

/// A device forgets all while things change places.
fn lost_halfway(rng: &mut SmallRng, device: u8) -> Vec<Event> {
    let swap = Act { what: SWAP, ..random_act(rng) };
    let user = if rng.random() { device } else { device.wrapping_add(1) };
    let mut events = vec![Event::Quiet, Event::User(user, swap), Event::Work(user)];
    if user == device {
        events.pop();
    }
    events.extend([Event::Fetch(device), Event::Take(device), Event::Scan(device)]);
    for _ in 0..rng.random_range(1..4) {
        events.extend([Event::Plan(device, 7), Event::Perform(device, rng.random())]);
    }
    events.push(if rng.random() { Event::LoseDatabase(device) } else { Event::Crash(device) });
    events
}

fn random_event(rng: &mut SmallRng, device: u8, faults: bool, exclusion: bool) -> Event {
    let pick = rng.random();
    match rng.random_range(0..100) {
        0..=34 => Event::User(device, random_act(rng)),
        35..=39 => Event::Web(Act { what: rng.random(), ..random_act(rng) }),
        40..=45 => Event::Fetch(device),
        46..=50 => Event::Take(device),
        51..=55 => Event::Scan(device),
        56..=62 => Event::Plan(device, pick),
        63..=70 => Event::Perform(device, pick),
        71..=74 => Event::Begin(device, pick),
        75..=78 => Event::Record(device, pick),
        79..=89 => Event::Work(device),
        90 | 91 if faults => Event::Crash(device),
        92 if faults => Event::LoseDatabase(device),
        93 if faults => Event::LoseAnswer(device, pick),
        94 if faults => Event::Reset(device),
        95 if faults => Event::Online(device, rng.random_bool(0.6)),
        96 if faults => Event::Withhold(device, rng.random_bool(0.6)),
        97 if faults => match pick % 3 {
            0 => Event::TakeTwice(device),
            1 => Event::TakeLast(device),
            _ => Event::TakeAgain(device),
        },
        98 | 99 if exclusion => Event::Exclude(device, pick, rng.random_bool(0.6)),
        _ => Event::Work(device),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Events that there are, by kind.
    const KINDS: usize = 24;

    /// The kind of an event: its name.
    fn kind_of(event: &Event) -> String {
        format!("{event:?}").chars().take_while(|letter| *letter != '(').collect()
    }

    #[test]
    fn every_kind_of_event_of_act_and_of_device_occurs() {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        let mut count = |what: String| *counts.entry(what).or_default() += 1;
        for seed in 1..=2_000 {
            let (setup, events) = generate(seed);
            count(format!("{} devices", setup.devices.len()));
            for (names, _) in &setup.devices {
                count(format!("{names:?}"));
            }
            for event in &events {
                count(format!("event {}", kind_of(event)));
                if let Event::User(_, act) = event {
                    count(format!("act {}", act.what % ACTS));
                }
            }
        }
        println!("{counts:#?}");
        let of = |prefix: &str| counts.keys().filter(|what| what.starts_with(prefix)).count();
        assert_eq!(of("event "), KINDS);
        assert_eq!(of("act "), usize::from(ACTS));
        assert_eq!(counts.keys().filter(|what| what.ends_with(" devices")).count(), 4);
        // Blind to case, normalising, or Windows: each alone, together, and none.
        assert_eq!(of("NameRules"), 8);
    }
}
