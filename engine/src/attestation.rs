//! What others remember of a metadata voter, so that one that comes back without all that it had acknowledged is found
//! out: by a newer image of itself, which lies where its own disk cannot lose it.
//!
//! A voter's log counts its synced writes, its starts, and names each run. Witnesses (the other voters, the storage
//! nodes) are told how far it is, once every second or two. A directory that was put back from an older copy is
//! behind what some witness holds; one that was wiped has another incarnation.
//!
//! Invariants:
//! - What a witness holds never goes back, and never changes its incarnation.
//! - [`Attestation::judge`] accepts every directory that lost nothing, whatever witnesses were told of it.

pub mod file;

use std::collections::BTreeMap;

use crate::ids::NodeId;

/// Voters that a witness remembers.
pub const ATTESTED_VOTERS_MAX: usize = 256;

const ROW_BYTES: usize = 8 + Attestation::BYTES;

/// How far a voter's log had been synced at a moment, in which life of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attestation {
    /// Drawn when its data directory was made; another one is another voter.
    pub incarnation: [u8; 16],
    /// How often it had been started, this run included.
    pub start: u64,
    /// Drawn for the run: two directories with one count of starts are copies of each other.
    pub run: [u8; 16],
    /// Synced writes of its log so far, over all runs.
    pub sequence: u64,
}

/// Why a voter's directory is not what it was. Each is final: the voter must not vote again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Behind {
    /// Its directory was made anew, or is another node's.
    #[error("its data directory is not the one that it had (wiped, or another disk)")]
    OtherIncarnation,
    /// It was started since the copy was made.
    #[error(
        "its data directory is an older copy: it had been started {held} times, the copy knows of {found}"
    )]
    OlderStart {
        /// Starts that the copy knows of.
        found: u64,
        /// Starts that a witness knows of.
        held: u64,
    },
    /// Two directories go on from one copy.
    #[error("its data directory is one of two copies, and the other one has been started (start {start})")]
    OtherRun {
        /// The start that both count.
        start: u64,
    },
    /// It wrote since the copy was made, or its disk lost what it had synced.
    #[error("its log lost synced writes: {found} are there, {held} had been acknowledged")]
    LostWrites {
        /// Writes that are there.
        found: u64,
        /// Writes that a witness knows of.
        held: u64,
    },
}

impl Attestation {
    /// Bytes of one on disk.
    pub const BYTES: usize = 16 + 8 + 16 + 8;

    /// What a witness holds once it has been told `told` while it held `held`.
    #[must_use]
    pub fn keep(held: Option<Self>, told: Self) -> Self {
        match held {
            Some(held) if held.incarnation != told.incarnation => held,
            Some(held) if held.start == told.start && held.run != told.run => held,
            Some(held) if (held.start, held.sequence) >= (told.start, told.sequence) => held,
            _ => told,
        }
    }

    /// Whether `told` says no more than `held` but how far the log is: it can wait a moment for others of its kind.
    #[must_use]
    pub fn only_goes_on(held: Option<Self>, told: Self) -> bool {
        held.is_some_and(|held| Self { sequence: told.sequence, ..held } == told)
    }

    /// Judges a directory that was found to be as `self` says (`self` is of its last run), by what a witness holds.
    ///
    /// # Errors
    /// If the witness knows better.
    pub fn judge(&self, held: &Self) -> Result<(), Behind> {
        if held.incarnation != self.incarnation {
            return Err(Behind::OtherIncarnation);
        }
        if held.start > self.start {
            return Err(Behind::OlderStart { found: self.start, held: held.start });
        }
        if held.start == self.start && held.run != self.run {
            return Err(Behind::OtherRun { start: self.start });
        }
        if held.start == self.start && held.sequence > self.sequence {
            return Err(Behind::LostWrites { found: self.sequence, held: held.sequence });
        }
        Ok(())
    }

    /// As [`Self::judge`], for a directory that has been started meanwhile: `current` is of the run that goes on, and a
    /// witness that comes late may hold it too.
    ///
    /// # Errors
    /// If the witness knows better.
    pub fn judge_running(&self, current: &Self, held: &Self) -> Result<(), Behind> {
        let of_this_run = held.incarnation == current.incarnation && held.start == current.start;
        if !of_this_run {
            return self.judge(held);
        }
        if held.run == current.run { Ok(()) } else { Err(Behind::OtherRun { start: current.start }) }
    }

    /// Its bytes on disk and wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.incarnation);
        bytes[16..24].copy_from_slice(&self.start.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.run);
        bytes[40..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    /// Takes one from disk or wire; `None` if it has another length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (incarnation, rest) = bytes.split_first_chunk::<16>()?;
        let (start, rest) = rest.split_first_chunk::<8>()?;
        let (run, rest) = rest.split_first_chunk::<16>()?;
        let sequence = <[u8; 8]>::try_from(rest).ok()?;
        Some(Self {
            incarnation: *incarnation,
            start: u64::from_le_bytes(*start),
            run: *run,
            sequence: u64::from_le_bytes(sequence),
        })
    }
}

/// What one witness holds of all voters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attestations(BTreeMap<NodeId, Attestation>);

impl Attestations {
    /// What is held of a voter.
    #[must_use]
    pub fn of(&self, voter: NodeId) -> Option<Attestation> {
        self.0.get(&voter).copied()
    }

    /// Takes in what a voter says of itself. Says whether that changed anything (which is then to be made durable).
    pub fn tell(&mut self, voter: NodeId, told: Attestation) -> bool {
        let held = self.of(voter);
        if held.is_none() && self.0.len() >= ATTESTED_VOTERS_MAX {
            return false;
        }
        let kept = Attestation::keep(held, told);
        self.0.insert(voter, kept);
        Some(kept) != held
    }

    /// The rows, one after the other.
    fn rows(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * ROW_BYTES);
        for (voter, attestation) in &self.0 {
            bytes.extend_from_slice(&voter.0.to_le_bytes());
            bytes.extend_from_slice(&attestation.to_bytes());
        }
        bytes
    }

    /// What [`Self::rows`] wrote; `None` if they do not end with a row.
    fn from_rows(rows: &[u8]) -> Option<Self> {
        if !rows.len().is_multiple_of(ROW_BYTES) {
            return None;
        }
        let row = |row: &[u8]| {
            let (voter, rest) = row.split_first_chunk::<8>()?;
            Some((NodeId(u64::from_le_bytes(*voter)), Attestation::from_bytes(rest)?))
        };
        rows.chunks(ROW_BYTES).map(row).collect::<Option<_>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: u64, run: u8, sequence: u64) -> Attestation {
        Attestation { incarnation: [1; 16], start, run: [run; 16], sequence }
    }

    #[test]
    fn a_directory_that_lost_nothing_is_accepted() {
        let found = at(3, 3, 70);
        for held in [at(3, 3, 70), at(3, 3, 69), at(2, 2, 99), at(1, 1, 0)] {
            assert_eq!(found.judge(&held), Ok(()), "{held:?}");
        }
    }

    #[test]
    fn each_way_of_being_behind_has_its_name() {
        let found = at(3, 3, 70);
        let other = Attestation { incarnation: [2; 16], ..at(1, 1, 1) };
        assert_eq!(found.judge(&other), Err(Behind::OtherIncarnation));
        assert_eq!(found.judge(&at(4, 4, 1)), Err(Behind::OlderStart { found: 3, held: 4 }));
        assert_eq!(found.judge(&at(3, 9, 1)), Err(Behind::OtherRun { start: 3 }));
        assert_eq!(found.judge(&at(3, 3, 71)), Err(Behind::LostWrites { found: 70, held: 71 }));
    }

    #[test]
    fn a_late_witness_is_judged_by_what_was_found_and_by_the_run_that_goes_on() {
        let (found, current) = (at(3, 3, 70), at(4, 4, 80));
        for held in [at(4, 4, 75), at(3, 3, 70), at(2, 2, 5)] {
            assert_eq!(found.judge_running(&current, &held), Ok(()), "{held:?}");
        }
        assert_eq!(found.judge_running(&current, &at(4, 9, 1)), Err(Behind::OtherRun { start: 4 }));
        assert_eq!(
            found.judge_running(&current, &at(5, 5, 1)),
            Err(Behind::OlderStart { found: 3, held: 5 })
        );
        assert_eq!(
            found.judge_running(&current, &at(3, 3, 71)),
            Err(Behind::LostWrites { found: 70, held: 71 })
        );
    }

    #[test]
    fn what_a_witness_holds_never_goes_back() {
        let held = at(3, 3, 70);
        assert_eq!(Attestation::keep(None, held), held);
        for older in
            [at(3, 3, 69), at(2, 2, 99), at(3, 9, 99), Attestation { incarnation: [2; 16], ..at(9, 9, 9) }]
        {
            assert_eq!(Attestation::keep(Some(held), older), held, "{older:?}");
        }
        for newer in [at(3, 3, 71), at(4, 4, 0)] {
            assert_eq!(Attestation::keep(Some(held), newer), newer);
        }
        assert!(Attestation::only_goes_on(Some(held), at(3, 3, 71)));
        assert!(!Attestation::only_goes_on(Some(held), at(4, 4, 71)));
        assert!(!Attestation::only_goes_on(None, held));
    }

    #[test]
    fn the_number_of_voters_is_bounded() {
        let mut held = Attestations::default();
        for voter in 0..2 * ATTESTED_VOTERS_MAX as u64 {
            held.tell(NodeId(voter), at(1, 1, 1));
        }
        assert_eq!(held.0.len(), ATTESTED_VOTERS_MAX);
        assert!(held.tell(NodeId(0), at(1, 1, 2)), "those that are known go on");
    }
}
