//! Erasure codes: how many data and parity shards a stripe has.

use serde::{Deserialize, Serialize};

use crate::ids::Position;

/// Most shards a stripe may have: missing positions are kept as bits of a `u32`.
pub const SHARDS_MAX: u8 = 32;

/// A `k+m` Reed-Solomon code. Invariant: `1 ≤ k`, `1 ≤ m`, `k + m ≤ SHARDS_MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u8, u8)", into = "(u8, u8)")]
pub struct Code {
    data: u8,
    parity: u8,
}

/// Why two numbers are not a code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a code: {text:?}; write K+M, such as 4+2, with at least 1 of each and at most 32 together")]
pub struct CodeError {
    text: String,
}

impl Code {
    /// A code of `data` (k) and `parity` (m) shards.
    ///
    /// # Errors
    /// If either is 0 or their sum is above [`SHARDS_MAX`].
    pub fn new(data: u8, parity: u8) -> Result<Self, CodeError> {
        let total = u16::from(data) + u16::from(parity);
        if data == 0 || parity == 0 || total > u16::from(SHARDS_MAX) {
            return Err(CodeError { text: format!("{data}+{parity}") });
        }
        Ok(Self { data, parity })
    }

    /// Data shards, `k`.
    #[must_use]
    pub fn data(self) -> usize {
        usize::from(self.data)
    }

    /// Parity shards, `m`: as many losses are survived.
    #[must_use]
    pub fn parity(self) -> usize {
        usize::from(self.parity)
    }

    /// All shards, `k + m`.
    #[must_use]
    pub fn total(self) -> usize {
        self.data() + self.parity()
    }

    /// All positions, in order.
    pub fn positions(self) -> impl Iterator<Item = Position> {
        (0..self.data + self.parity).map(Position)
    }
}

impl TryFrom<(u8, u8)> for Code {
    type Error = CodeError;

    fn try_from((data, parity): (u8, u8)) -> Result<Self, CodeError> {
        Self::new(data, parity)
    }
}

impl From<Code> for (u8, u8) {
    fn from(code: Code) -> Self {
        (code.data, code.parity)
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

impl std::str::FromStr for Code {
    type Err = CodeError;

    fn from_str(text: &str) -> Result<Self, CodeError> {
        let bad = || CodeError { text: text.chars().take(80).collect() };
        let (data, parity) = text.split_once('+').ok_or_else(bad)?;
        let number = |part: &str| part.parse::<u8>().map_err(|_not_a_number| bad());
        Self::new(number(data)?, number(parity)?)
    }
}

/// A set of a stripe's positions, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PositionSet(pub u32);

impl PositionSet {
    /// No positions.
    pub const EMPTY: Self = Self(0);

    /// Whether `position` is in the set.
    #[must_use]
    pub fn contains(self, position: Position) -> bool {
        self.0 & (1 << position.0) != 0
    }

    /// The set with `position` added.
    #[must_use]
    pub fn with(self, position: Position) -> Self {
        Self(self.0 | (1 << position.0))
    }

    /// The set with `position` taken out.
    #[must_use]
    pub fn without(self, position: Position) -> Self {
        Self(self.0 & !(1 << position.0))
    }

    /// Positions in the set.
    #[must_use]
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether the set has no position.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the two sets share a position.
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The positions, ascending.
    pub fn iter(self) -> impl Iterator<Item = Position> {
        (0..SHARDS_MAX).map(Position).filter(move |position| self.contains(*position))
    }
}

impl FromIterator<Position> for PositionSet {
    fn from_iter<I: IntoIterator<Item = Position>>(positions: I) -> Self {
        positions.into_iter().fold(Self::EMPTY, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_parse_only_in_their_bounds() {
        assert_eq!("4+2".parse::<Code>().map(Code::total), Ok(6));
        for bad in ["", "4", "0+2", "4+0", "30+3", "4+-2", "x+y"] {
            assert!(bad.parse::<Code>().is_err(), "{bad}");
        }
    }

    #[test]
    fn position_sets_hold_what_was_put_in() {
        let set: PositionSet = [Position(0), Position(31)].into_iter().collect();
        assert!(set.contains(Position(31)) && !set.contains(Position(1)));
        assert_eq!(set.without(Position(0)).iter().collect::<Vec<_>>(), vec![Position(31)]);
    }
}
