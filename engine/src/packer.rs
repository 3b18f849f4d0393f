//! Decides when a stripe is sealed: when it is full; at once when nothing else is waiting; else after a short linger
//! in which nothing came (or eight), so that chunks share stripes without waiting long. Nothing here waits or does IO: the shell around it sends
//! events, and performs the actions.
//!
//! Invariants:
//! - Every chunk pushed comes out in exactly one stripe (a chunk pushed twice into one stripe, once).
//! - While a chunk waits here, a linger is running or a write is under way, so it never waits for ever.
//! - At most `writes_max` writes are under way, if the shell pushes only while [`Packer::accepts`].

use crate::codec::PreparedChunk;
use crate::stripe::{Pushed, SealedStripe, StripeBuilder};

/// Lingers that a chunk waits at most, while more keep coming.
const LINGERS_MAX: u32 = 8;

/// What happened.
#[derive(Debug)]
pub enum PackEvent {
    /// A chunk is ready. To be sent only while [`Packer::accepts`].
    Chunk {
        /// The chunk.
        chunk: PreparedChunk,
        /// Whether more chunks are waiting behind it.
        more: bool,
    },
    /// The linger that [`PackAction::Linger`] asked for is over.
    LingerOver,
    /// A write that [`PackAction::Write`] asked for is over, well or not.
    WriteOver,
    /// No more chunks will come: what is there is sealed.
    Flush,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum PackAction {
    /// Write this stripe, and report when that is over.
    Write(SealedStripe),
    /// Wait a few milliseconds, and report. One at a time is asked for.
    Linger,
}

/// See the module.
#[derive(Debug)]
pub struct Packer {
    builder: StripeBuilder,
    writes: usize,
    writes_max: usize,
    /// As the latest chunk said.
    more: bool,
    lingering: bool,
    /// Lingers that the builder's first chunk has waited.
    lingers: u32,
    /// Whether a chunk came in this linger.
    grew: bool,
    /// The builder's chunks have waited long enough: they are sealed when a write may begin.
    due: bool,
}

impl Packer {
    /// With at most `writes_max` (at least 1) writes under way.
    #[must_use]
    pub fn new(writes_max: usize) -> Self {
        Self {
            builder: StripeBuilder::new(),
            writes: 0,
            writes_max: writes_max.max(1),
            more: false,
            lingering: false,
            lingers: 0,
            grew: false,
            due: false,
        }
    }

    /// Whether a chunk may be pushed now. It changes only with [`PackEvent::WriteOver`].
    #[must_use]
    pub fn accepts(&self) -> bool {
        self.writes < self.writes_max
    }

    /// Whether no chunk waits and no write is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.builder.is_empty() && self.writes == 0
    }

    /// Takes an event; gives what is to be done, in order: at most two writes and a linger.
    pub fn step(&mut self, event: PackEvent) -> Vec<PackAction> {
        let mut actions = Vec::new();
        match event {
            PackEvent::Chunk { chunk, more: behind } => {
                self.more = behind;
                self.grew = true;
                if let Pushed::Full(chunk) = self.builder.push(chunk) {
                    self.seal(&mut actions);
                    let pushed = self.builder.push(chunk);
                    debug_assert!(matches!(pushed, Pushed::Taken), "an empty builder takes any chunk");
                }
            }
            PackEvent::LingerOver => {
                self.lingering = false;
                self.lingers += 1;
                self.due = !self.builder.is_empty() && (!self.grew || self.lingers >= LINGERS_MAX);
            }
            PackEvent::WriteOver => self.writes = self.writes.saturating_sub(1),
            PackEvent::Flush => self.due = !self.builder.is_empty(),
        }
        let alone = self.writes == 0 && !self.more;
        if (self.due || alone) && self.accepts() {
            self.seal(&mut actions);
        }
        if !self.builder.is_empty() && !self.due && !self.lingering {
            self.lingering = true;
            self.grew = false;
            actions.push(PackAction::Linger);
        }
        actions
    }

    fn seal(&mut self, actions: &mut Vec<PackAction>) {
        self.due = false;
        self.lingers = 0;
        if let Some(sealed) = std::mem::take(&mut self.builder).seal() {
            self.writes += 1;
            actions.push(PackAction::Write(sealed));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::codec::ChunkCompressor;
    use crate::ids::ChunkId;
    use crate::location::ChunkKind;

    fn chunk(number: u32, length: usize) -> PreparedChunk {
        let mut plain = vec![0; length];
        SmallRng::seed_from_u64(u64::from(number)).fill(&mut plain[..]);
        let plain = Bytes::from(plain);
        ChunkCompressor::new().prepare(ChunkId::of(&plain), ChunkKind::Data, plain).unwrap()
    }

    fn push(packer: &mut Packer, number: u32, length: usize, more: bool) -> Vec<PackAction> {
        packer.step(PackEvent::Chunk { chunk: chunk(number, length), more })
    }

    fn written(actions: &[PackAction]) -> Vec<usize> {
        let chunks = |action: &PackAction| match action {
            PackAction::Write(sealed) => Some(sealed.chunks().len()),
            PackAction::Linger => None,
        };
        actions.iter().filter_map(chunks).collect()
    }

    #[test]
    fn a_lone_chunk_is_sealed_at_once() {
        let mut packer = Packer::new(4);
        assert_eq!(written(&push(&mut packer, 1, 100, false)), [1]);
        assert!(packer.step(PackEvent::WriteOver).is_empty());
        assert!(packer.is_idle());
    }

    #[test]
    fn chunks_gather_while_a_write_is_under_way_and_go_when_it_is_over() {
        let mut packer = Packer::new(4);
        assert_eq!(written(&push(&mut packer, 1, 100, false)), [1]);
        assert_eq!(push(&mut packer, 2, 100, false), [PackAction::Linger]);
        assert!(push(&mut packer, 3, 100, false).is_empty(), "one linger at a time");
        assert_eq!(written(&packer.step(PackEvent::WriteOver)), [2]);
    }

    #[test]
    fn a_linger_without_new_chunks_ends_the_wait() {
        let mut packer = Packer::new(4);
        assert_eq!(push(&mut packer, 1, 100, true), [PackAction::Linger]);
        assert!(push(&mut packer, 2, 100, true).is_empty());
        assert_eq!(packer.step(PackEvent::LingerOver), [PackAction::Linger], "a chunk came meanwhile");
        assert_eq!(written(&packer.step(PackEvent::LingerOver)), [2]);
    }

    #[test]
    fn a_chunk_waits_a_bounded_number_of_lingers() {
        let mut packer = Packer::new(4);
        push(&mut packer, 0, 100, true);
        for number in 1..LINGERS_MAX {
            push(&mut packer, number, 100, true);
            assert_eq!(packer.step(PackEvent::LingerOver), [PackAction::Linger]);
        }
        push(&mut packer, LINGERS_MAX, 100, true);
        assert_eq!(written(&packer.step(PackEvent::LingerOver)), [LINGERS_MAX as usize + 1]);
    }

    #[test]
    fn a_full_stripe_is_sealed_whatever_else_is_under_way() {
        let mut packer = Packer::new(8);
        push(&mut packer, 0, 1_500_000, true);
        push(&mut packer, 1, 1_500_000, true);
        assert_eq!(written(&push(&mut packer, 2, 1_500_000, true)), [2]);
    }

    #[test]
    fn no_chunk_is_lost_or_doubled_and_writes_stay_bounded() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        for _round in 0..20 {
            let mut packer = Packer::new(3);
            let (mut pushed, mut out) = (BTreeSet::new(), Vec::new());
            let (mut writes, mut lingers) = (0, 0);
            for number in 0..300 {
                let mut actions = Vec::new();
                match random.random_range(0..4) {
                    0 if writes > 0 => {
                        writes -= 1;
                        actions.extend(packer.step(PackEvent::WriteOver));
                    }
                    1 if lingers > 0 => {
                        lingers -= 1;
                        actions.extend(packer.step(PackEvent::LingerOver));
                    }
                    _ if packer.accepts() => {
                        let chunk = chunk(number, random.random_range(1..400_000));
                        pushed.insert(chunk.chunk());
                        let more = random.random();
                        actions.extend(packer.step(PackEvent::Chunk { chunk, more }));
                    }
                    _ => (),
                }
                for action in actions {
                    match action {
                        PackAction::Write(sealed) => {
                            writes += 1;
                            out.extend(sealed.chunks().iter().map(|chunk| chunk.chunk));
                        }
                        PackAction::Linger => lingers += 1,
                    }
                }
                assert!(writes <= 3 && lingers <= 1, "seed {seed}");
                assert!(
                    packer.builder.is_empty() || writes + lingers > 0,
                    "seed {seed}: a chunk waits for nothing"
                );
            }
            while !packer.is_idle() {
                let mut actions = packer.step(PackEvent::Flush);
                actions.extend(packer.step(PackEvent::WriteOver));
                for action in actions {
                    if let PackAction::Write(sealed) = action {
                        out.extend(sealed.chunks().iter().map(|chunk| chunk.chunk));
                    }
                }
            }
            assert_eq!(out.len(), pushed.len(), "seed {seed}");
            assert_eq!(out.into_iter().collect::<BTreeSet<_>>(), pushed, "seed {seed}");
        }
    }
}
