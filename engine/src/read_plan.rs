//! Decides which ranges of which shards are read to get chunks of one stripe. Nothing here waits or does IO.
//!
//! Invariants:
//! - A range of a shard is asked for once (and once more in the search for a wrong shard).
//! - Data is read from where it lies; other positions are asked only for ranges whose own position is bad, down or
//!   slow, and what was read for other chunks is used first.
//! - A plan is lost only when, for some range, neither its own position nor `k` others are left.

use bytes::Bytes;

use crate::cluster::StripeLayout;
use crate::code::{Code, PositionSet};
use crate::coding::{decode_range, shard_length};
use crate::ids::{Position, StripeId};
use crate::location::LocatedChunk;
use crate::stripe::{STRIPE_BYTES_MAX, copy_positions};

/// Ranges with at most this many bytes between them are read as one.
pub const READ_GAP_BYTES_MAX: u32 = 64 * 1024;

/// A range of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardRange {
    /// The shard.
    pub position: Position,
    /// First byte within the shard.
    pub start: u32,
    /// End, not included.
    pub end: u32,
}

impl ShardRange {
    fn covers(self, other: Self) -> bool {
        self.position == other.position && self.start <= other.start && other.end <= self.end
    }

    fn at(self, position: Position) -> Self {
        Self { position, ..self }
    }
}

/// What is known of a position. In order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Good,
    /// Said to be down: asked only when too few good ones are left.
    Doubtful,
    /// Asked, and has not answered within the time that reads usually take.
    Slow,
    /// Lost, damaged, or failed just now: not asked again.
    Bad,
}

/// How far a plan is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Start these reads, if any, and wait for those under way.
    Waiting(Vec<ShardRange>),
    /// All that is wanted is held.
    Ready,
    /// Too few positions are left for some range.
    Lost {
        /// Positions left that hold it.
        have: usize,
        /// How many it takes.
        need: usize,
    },
}

/// The reads of one stripe. A copy shares the bytes held.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    code: Code,
    layout: StripeLayout,
    shard_length: u32,
    /// Positions that hold shards; for copies, the first is where reads go.
    positions: Vec<Position>,
    standing: Vec<Standing>,
    wanted: Vec<ShardRange>,
    under_way: Vec<ShardRange>,
    held: Vec<(ShardRange, Bytes)>,
}

impl ReadPlan {
    /// For chunks of one stripe; `None` if a location is not one, or they are not of one stripe.
    ///
    /// `up` says where reads are expected to succeed; `turn` differs from read to read, so that copies share the load.
    #[must_use]
    pub fn new(
        code: Code,
        chunks: &[LocatedChunk],
        up: &dyn Fn(Position) -> bool,
        turn: usize,
    ) -> Option<Self> {
        let first = chunks.first()?.location;
        let (stripe, shape) = (first.stripe, first.shape);
        let fits = |chunk: &LocatedChunk| {
            let location = chunk.location;
            let end = location.offset.checked_add(location.stored_length);
            location.stripe == stripe
                && location.shape == shape
                && location.stored_length > 0
                && end.is_some_and(|end| end <= shape.length)
        };
        if shape.length as usize > STRIPE_BYTES_MAX || !chunks.iter().all(fits) {
            return None;
        }
        let standing: Vec<Standing> = code
            .positions()
            .map(|position| if up(position) { Standing::Good } else { Standing::Doubtful })
            .collect();
        let (positions, shard_length) = match shape.layout {
            StripeLayout::Coded => (code.positions().collect(), shard_length(code, shape.length)),
            StripeLayout::Copies => (copies_in_turn(code, stripe, &standing, turn), shape.length),
        };
        let mut plan = Self {
            code,
            layout: shape.layout,
            shard_length,
            positions,
            standing,
            wanted: Vec::new(),
            under_way: Vec::new(),
            held: Vec::new(),
        };
        let merged = merge(chunks);
        plan.wanted = merged.into_iter().flat_map(|(start, end)| plan.split(start, end)).collect();
        Some(plan)
    }

    /// Positions that hold shards.
    #[must_use]
    pub fn positions(&self) -> &[Position] {
        &self.positions
    }

    /// The shard ranges in which bytes `start..end` of the stripe lie.
    fn split(&self, start: u32, end: u32) -> Vec<ShardRange> {
        if self.layout == StripeLayout::Copies {
            return vec![ShardRange { position: self.positions[0], start, end }];
        }
        let length = self.shard_length;
        (start / length..=(end - 1) / length)
            .map(|index| ShardRange {
                position: self.positions[index as usize],
                start: start.max(index * length) - index * length,
                end: end.min((index + 1) * length) - index * length,
            })
            .collect()
    }

    /// Positions that have not answered.
    pub fn under_way(&self) -> impl Iterator<Item = Position> {
        self.under_way.iter().map(|read| read.position)
    }

    /// Shards that it takes when a range's own position fails.
    #[must_use]
    pub fn need(&self) -> usize {
        match self.layout {
            StripeLayout::Coded => self.code.data(),
            StripeLayout::Copies => 1,
        }
    }

    /// What to do now. Call it after each event.
    pub fn step(&mut self) -> Progress {
        let mut reads = Vec::new();
        let mut ready = true;
        for wanted in self.wanted.clone() {
            if self.resolved(wanted) {
                continue;
            }
            ready = false;
            if let Err(have) = self.ask(wanted, &mut reads) {
                return Progress::Lost { have, need: self.need() };
            }
        }
        if ready { Progress::Ready } else { Progress::Waiting(reads) }
    }

    /// Adds the reads that a range still needs. Fails with the number of positions left if they cannot suffice.
    fn ask(&mut self, wanted: ShardRange, reads: &mut Vec<ShardRange>) -> Result<(), usize> {
        let home = self.standing_of(wanted.position);
        if home == Standing::Good {
            self.start(wanted, reads);
            return Ok(());
        }
        let mut sources: Vec<Position> = self
            .positions
            .iter()
            .copied()
            .filter(|position| *position != wanted.position && self.standing_of(*position) != Standing::Bad)
            .collect();
        sources.sort_by_key(|position| self.preference(wanted.at(*position)));
        sources.truncate(self.need());
        let enough = sources.len() == self.need();
        let doubtful = sources.iter().any(|source| {
            self.standing_of(*source) != Standing::Good && self.held(wanted.at(*source)).is_none()
        });
        if home != Standing::Bad && (!enough || doubtful) {
            self.start(wanted, reads);
        } else if !enough {
            return Err(sources.len());
        }
        if enough {
            sources.into_iter().for_each(|source| self.start(wanted.at(source), reads));
        }
        Ok(())
    }

    /// Lower is better: held, then under way, then by standing.
    fn preference(&self, range: ShardRange) -> (Standing, bool) {
        if self.held(range).is_some() {
            return (Standing::Good, false);
        }
        let under_way = self.under_way.iter().any(|read| read.covers(range));
        (self.standing_of(range.position), !under_way)
    }

    fn start(&mut self, range: ShardRange, reads: &mut Vec<ShardRange>) {
        if self.held(range).is_none() && !self.under_way.iter().any(|read| read.covers(range)) {
            self.under_way.push(range);
            reads.push(range);
        }
    }

    /// A read succeeded.
    pub fn arrived(&mut self, range: ShardRange, bytes: Bytes) {
        self.under_way.retain(|read| *read != range);
        if bytes.len() == (range.end - range.start) as usize {
            self.held.push((range, bytes));
        } else {
            self.failed(range);
        }
    }

    /// A read failed: that position is not asked again.
    pub fn failed(&mut self, range: ShardRange) {
        self.under_way.retain(|read| *read != range);
        self.standing[usize::from(range.position.0)] = Standing::Bad;
    }

    /// Reads take longer than usual: whatever is under way is slow.
    pub fn hedge(&mut self) {
        for read in &self.under_way {
            let standing = &mut self.standing[usize::from(read.position.0)];
            *standing = (*standing).max(Standing::Slow);
        }
    }

    /// Asks every position for the ranges of one chunk that are not held: to find out which of them is wrong. Reads
    /// that were under way are taken as given up.
    pub fn ask_all(&mut self, chunk: &LocatedChunk) -> Vec<ShardRange> {
        self.under_way.clear();
        let mut reads = Vec::new();
        for piece in self.pieces(chunk) {
            for position in self.positions.clone() {
                if self.standing_of(position) != Standing::Bad {
                    self.start(piece.at(position), &mut reads);
                }
            }
        }
        reads
    }

    /// The stored bytes of a chunk, from shards other than `without`; `None` if they are not held.
    #[must_use]
    pub fn stored_bytes(&self, chunk: &LocatedChunk, without: PositionSet) -> Option<Bytes> {
        let pieces = self.pieces(chunk);
        if let [piece] = pieces.as_slice() {
            return self.range_bytes(*piece, without);
        }
        let mut joined = Vec::with_capacity(chunk.location.stored_length as usize);
        for piece in pieces {
            joined.extend_from_slice(&self.range_bytes(piece, without)?);
        }
        Some(joined.into())
    }

    /// Of the shards in `suspects`, those whose held bytes differ from what the others give.
    #[must_use]
    pub fn liars(&self, chunk: &LocatedChunk, suspects: PositionSet) -> PositionSet {
        let pieces = self.pieces(chunk);
        let lies = |position: &Position| {
            pieces.iter().map(|piece| piece.at(*position)).any(|range| {
                let given = self.range_bytes(range, suspects);
                self.held(range).zip(given).is_some_and(|(told, given)| told != given)
            })
        };
        suspects.iter().filter(lies).collect()
    }

    fn pieces(&self, chunk: &LocatedChunk) -> Vec<ShardRange> {
        self.split(chunk.location.offset, chunk.location.offset + chunk.location.stored_length)
    }

    fn standing_of(&self, position: Position) -> Standing {
        self.standing[usize::from(position.0)]
    }

    fn held(&self, range: ShardRange) -> Option<Bytes> {
        let (read, bytes) = self.held.iter().find(|(read, _bytes)| read.covers(range))?;
        let start = (range.start - read.start) as usize;
        Some(bytes.slice(start..start + (range.end - range.start) as usize))
    }

    fn held_elsewhere(&self, range: ShardRange, without: PositionSet) -> Vec<(Position, Bytes)> {
        self.positions
            .iter()
            .filter(|position| **position != range.position && !without.contains(**position))
            .filter_map(|position| Some((*position, self.held(range.at(*position))?)))
            .take(self.need())
            .collect()
    }

    fn resolved(&self, range: ShardRange) -> bool {
        self.held(range).is_some() || self.held_elsewhere(range, PositionSet::EMPTY).len() == self.need()
    }

    fn range_bytes(&self, range: ShardRange, without: PositionSet) -> Option<Bytes> {
        if !without.contains(range.position)
            && let Some(bytes) = self.held(range)
        {
            return Some(bytes);
        }
        let mut sources = self.held_elsewhere(range, without);
        match self.layout {
            StripeLayout::Copies => sources.pop().map(|(_position, bytes)| bytes),
            StripeLayout::Coded => decode_range(self.code, &sources, range.position).ok(),
        }
    }
}

/// Positions of the copies: the best standing first, and among equals in turn.
fn copies_in_turn(code: Code, stripe: StripeId, standing: &[Standing], turn: usize) -> Vec<Position> {
    let mut positions = copy_positions(code, stripe);
    let rotation = turn % positions.len();
    positions.rotate_left(rotation);
    positions.sort_by_key(|position| standing[usize::from(position.0)]);
    positions
}

/// Byte ranges of the stripe that cover the chunks, near ones merged.
fn merge(chunks: &[LocatedChunk]) -> Vec<(u32, u32)> {
    let range =
        |chunk: &LocatedChunk| (chunk.location.offset, chunk.location.offset + chunk.location.stored_length);
    let mut ranges: Vec<(u32, u32)> = chunks.iter().map(range).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if start <= last.1.saturating_add(READ_GAP_BYTES_MAX) => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests;
