//! A group of voters with a small Raft (elections and whole-log replication in one step each) over the real [`Prover`]:
//! random deaths, returns, wiped directories, directories put back from older copies, and acknowledged writes between.
//!
//! What is checked after every step: a leader holds every acknowledged write; a second history is founded only where no
//! voter's directory knows of the first any more, and no storage node has told; a voter whose directory was never touched
//! never refuses.

use std::time::Duration;

use engine::attestation::{Attestation, Attestations};
use engine::ids::NodeId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::prover::{Action, Found, Prover, Roster, VoterSelf, WITNESS_GRACE, WitnessId};

const VOTERS: usize = 3;
const STORAGE: usize = 2;
const STEPS: usize = 300;
const COPIES_MAX: usize = 4;

#[derive(Clone)]
struct Disk {
    found: Found,
    refused: Option<String>,
    begun: bool,
    attested: Attestations,
    term: u64,
    /// Term and value of each entry; the first one founds the group.
    log: Vec<(u64, u64)>,
}

struct Node {
    disk: Disk,
    copies: Vec<Disk>,
    prover: Option<Prover>,
    /// Whether its directory was ever wiped or put back.
    touched: bool,
}

struct World {
    random: SmallRng,
    now: Duration,
    nodes: Vec<Node>,
    storage: Vec<(Attestations, bool)>,
    acknowledged: Vec<u64>,
    founded: Option<Roster>,
    next: u64,
    /// Whether directories are put back from copies: then a storage node is always there to know better.
    copies: bool,
    elections: usize,
    refusals: usize,
}

fn voter(index: usize) -> u64 {
    index as u64 + 1
}

impl World {
    fn new(seed: u64, copies: bool) -> Self {
        let mut world = Self {
            random: SmallRng::seed_from_u64(seed),
            now: Duration::ZERO,
            nodes: Vec::new(),
            storage: vec![(Attestations::default(), true); STORAGE],
            acknowledged: Vec::new(),
            founded: None,
            next: 1,
            copies,
            elections: 0,
            refusals: 0,
        };
        for _ in 0..VOTERS {
            let disk = world.blank();
            world.nodes.push(Node { disk, copies: Vec::new(), prover: None, touched: false });
        }
        world
    }

    fn unique(&mut self) -> [u8; 16] {
        self.next += 1;
        u128::from(self.next).to_le_bytes()
    }

    fn blank(&mut self) -> Disk {
        let attestation = Attestation { incarnation: self.unique(), start: 0, run: [0; 16], sequence: 0 };
        Disk {
            found: Found { attestation, roster: None, witnesses: [].into() },
            refused: None,
            begun: false,
            attested: Attestations::default(),
            term: 0,
            log: Vec::new(),
        }
    }

    fn votes(&self, index: usize) -> bool {
        self.nodes[index].prover.as_ref().is_some_and(|prover| prover.standing().votes())
    }

    fn start(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.nodes[index];
        node.disk.begun = false;
        let members = (0..VOTERS).map(voter).collect();
        let (found, refused) = (node.disk.found.clone(), node.disk.refused.clone());
        node.prover = Some(Prover::new(NodeId(voter(index)), members, found, refused, now));
        self.proceed(index);
    }

    /// What the shell does: everything that is due, durably.
    fn proceed(&mut self, index: usize) {
        loop {
            let (now, run) = (self.now, self.unique());
            let node = &mut self.nodes[index];
            let Some(prover) = &mut node.prover else { return };
            match prover.step(now) {
                None => break,
                Some(Action::Enrol(roster)) => {
                    node.disk.found.roster = Some(roster.clone());
                    prover.enrolled(roster);
                }
                Some(Action::Begin) => {
                    let last = node.disk.found.attestation;
                    node.disk.found.attestation = Attestation { start: last.start + 1, run, ..last };
                    node.disk.begun = true;
                    prover.began(node.disk.found.attestation, now);
                }
                Some(Action::Remember(witnesses)) => node.disk.found.witnesses = witnesses,
            }
        }
        let node = &mut self.nodes[index];
        let refuses = node
            .prover
            .as_ref()
            .is_some_and(|prover| matches!(prover.standing(), super::prover::Standing::Refuses(_)));
        if refuses && node.disk.refused.is_none() {
            node.disk.refused = Some("refused".to_owned());
            self.refusals += 1;
            assert!(self.nodes[index].touched, "voter {} lost nothing and refuses", voter(index));
        }
    }

    fn telling(&self, index: usize) -> Option<Attestation> {
        let node = &self.nodes[index];
        node.prover.as_ref()?.telling(node.disk.found.attestation.sequence)
    }

    /// One call of voter `from` to voter `to`.
    fn meet(&mut self, from: usize, to: usize) {
        if from == to || self.nodes[from].prover.is_none() || self.nodes[to].prover.is_none() {
            return;
        }
        for (witness, of) in [(to, from), (from, to)] {
            if let Some(own) = self.telling(of) {
                self.nodes[witness].disk.attested.tell(NodeId(voter(of)), own);
            }
        }
        for (witness, of) in [(to, from), (from, to)] {
            let held = self.nodes[witness].disk.attested.of(NodeId(voter(of)));
            let itself: VoterSelf = self.nodes[witness].prover.as_ref().unwrap().itself();
            let prover = self.nodes[of].prover.as_mut().unwrap();
            prover.meet(voter(witness), itself);
            prover.hear(WitnessId::Voter(voter(witness)), held);
            self.proceed(of);
        }
    }

    /// One round of a storage node's calls to a voter: it says what it holds, and holds what it is told.
    fn attend(&mut self, storage: usize, index: usize) {
        if !self.storage[storage].1 || self.nodes[index].prover.is_none() {
            return;
        }
        for _ in 0..2 {
            let held = self.storage[storage].0.of(NodeId(voter(index)));
            let witness = WitnessId::Storage(storage as u64);
            self.nodes[index].prover.as_mut().unwrap().hear(witness, held);
            self.proceed(index);
            if let Some(own) = self.telling(index) {
                self.storage[storage].0.tell(NodeId(voter(index)), own);
            }
        }
    }

    fn wrote(&mut self, index: usize) {
        if self.nodes[index].disk.begun {
            self.nodes[index].disk.found.attestation.sequence += 1;
        }
    }

    fn elect(&mut self, candidate: usize) {
        if !self.votes(candidate) || self.nodes[candidate].disk.log.is_empty() {
            return;
        }
        let last = |disk: &Disk| (disk.log.last().map(|entry| entry.0), disk.log.len());
        let term = self.nodes[candidate].disk.term + 1 + self.random.random_range(0..2);
        let mine = last(&self.nodes[candidate].disk);
        let reachable: Vec<usize> = (0..VOTERS)
            .filter(|other| *other == candidate || (self.votes(*other) && self.random.random_bool(0.8)))
            .collect();
        let mut granted = 0;
        for other in &reachable {
            let disk = &mut self.nodes[*other].disk;
            if term > disk.term && mine >= last(disk) {
                disk.term = term;
                granted += 1;
                self.wrote(*other);
            }
        }
        if granted * 2 <= VOTERS {
            return;
        }
        self.elections += 1;
        let log = self.nodes[candidate].disk.log.clone();
        for value in &self.acknowledged {
            let there = log.iter().any(|entry| entry.1 == *value);
            assert!(there, "voter {} leads without the acknowledged write {value}", voter(candidate));
        }
        for _ in 0..self.random.random_range(1..4) {
            self.write(candidate, term, &reachable);
        }
    }

    fn write(&mut self, leader: usize, term: u64, reachable: &[usize]) {
        self.next += 1;
        let value = self.next;
        self.nodes[leader].disk.log.push((term, value));
        let log = self.nodes[leader].disk.log.clone();
        let mut stored = 0;
        for other in reachable {
            if *other != leader && self.random.random_bool(0.2) {
                continue;
            }
            let disk = &mut self.nodes[*other].disk;
            if disk.term <= term {
                disk.term = term;
                disk.log.clone_from(&log);
                stored += 1;
                self.wrote(*other);
            }
        }
        if stored * 2 > VOTERS {
            self.acknowledged.push(value);
        }
    }

    fn found(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let may = node.prover.as_ref().is_some_and(Prover::may_found);
        if !may || !node.disk.log.is_empty() {
            return;
        }
        node.disk.log.push((0, 0));
        let roster = node.disk.found.roster.clone();
        self.wrote(index);
        if self.founded != roster {
            // All were wiped since they enrolled for the first one: a storage node that has called would have told them.
            let known = |node: &Node| node.disk.found.roster == self.founded;
            let knows = self.founded.is_some() && self.nodes.iter().any(known);
            assert!(!knows, "two histories were founded");
            self.acknowledged.clear();
            self.founded = roster;
        }
    }

    /// A crash; with copies in play, storage nodes have heard of the last writes (a call is due every second).
    fn crash(&mut self, index: usize) {
        if self.copies {
            self.attend(0, index);
        }
        self.nodes[index].prover = None;
    }

    fn step(&mut self) {
        let index = self.random.random_range(0..VOTERS);
        let other = self.random.random_range(0..VOTERS);
        let storage = self.random.random_range(0..STORAGE);
        let runs = self.nodes[index].prover.is_some();
        match self.random.random_range(0..100) {
            0..30 => self.meet(index, other),
            30..48 => self.attend(storage, index),
            48..58 => self.now += WITNESS_GRACE / 3,
            58..63 => self.found(index),
            63..80 => self.elect(index),
            80..85 if runs => self.crash(index),
            85..92 if !runs => {
                self.start(index);
                if self.copies {
                    self.attend(0, index);
                }
            }
            92..93 if !runs && !self.copies => {
                self.nodes[index].disk = self.blank();
                self.nodes[index].touched = true;
            }
            93..95 => {
                let node = &mut self.nodes[index];
                node.copies.truncate(COPIES_MAX);
                node.copies.insert(0, node.disk.clone());
            }
            95..97 if !runs && self.copies && !self.nodes[index].copies.is_empty() => {
                let which = self.random.random_range(0..self.nodes[index].copies.len());
                let node = &mut self.nodes[index];
                // A copy of just what is there is no older one.
                node.touched |= node.copies[which].found.attestation != node.disk.found.attestation;
                node.disk = node.copies[which].clone();
            }
            97..98 if storage != 0 || !self.copies => self.storage[storage].1 ^= true,
            _ => {}
        }
    }
}

fn run(seed: u64, copies: bool) -> World {
    let mut world = World::new(seed, copies);
    for index in 0..VOTERS {
        world.start(index);
    }
    for _ in 0..STEPS {
        world.step();
    }
    world
}

fn runs() -> u64 {
    std::env::var("KEEPSTONE_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3000)
}

fn seeds() -> impl Iterator<Item = u64> {
    let first: Option<u64> = std::env::var("KEEPSTONE_SEED").ok().and_then(|seed| seed.parse().ok());
    let from = first.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let count = if first.is_some() { 1 } else { runs() };
    (0..count).map(move |index| from + index)
}

#[test]
fn wiped_directories_never_cost_an_acknowledged_write_nor_make_a_second_history() {
    let (mut elections, mut refusals, mut writes) = (0, 0, 0);
    for seed in seeds() {
        println!("seed {seed}");
        let world = run(seed, false);
        elections += world.elections;
        refusals += world.refusals;
        writes += world.acknowledged.len();
    }
    println!("{elections} elections, {refusals} refusals, {writes} acknowledged writes");
    assert!(runs() < 100 || (elections > 0 && refusals > 0 && writes > 0), "nothing was tried");
}

/// Seed 2998633108: all three directories were wiped one after the other, before any of them met another voter again.
#[test]
fn voters_that_were_all_wiped_may_found_again() {
    assert!(run(2_998_633_108, false).founded.is_some());
}

#[test]
fn older_copies_never_cost_an_acknowledged_write_while_somebody_knows_better() {
    let (mut elections, mut refusals, mut writes) = (0, 0, 0);
    for seed in seeds() {
        println!("seed {seed}");
        let world = run(seed, true);
        elections += world.elections;
        refusals += world.refusals;
        writes += world.acknowledged.len();
    }
    println!("{elections} elections, {refusals} refusals, {writes} acknowledged writes");
    assert!(runs() < 100 || (elections > 0 && refusals > 0 && writes > 0), "nothing was tried");
}
