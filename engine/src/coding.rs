//! Reed-Solomon coding: a stripe into `k + m` shards, and any `k` of them back into what is wanted.
//!
//! A shard has `ceil(length / k)` bytes; the stripe is padded with zeros to `k` such. Byte `i` of a shard depends on
//! byte `i` of the others alone, so a range of a shard is decoded from the same range of any `k`.
//!
//! Invariants:
//! - The generator is that of the `reed-solomon-erasure` crate (systematic, from a Vandermonde matrix over
//!   GF(2^8)): it is a format, pinned by a test.
//! - Nothing here locks: a code's generator is made once per process.

use std::sync::OnceLock;

use bytes::Bytes;
use reed_solomon_erasure::galois_8;

use crate::code::{Code, PositionSet, SHARDS_MAX};
use crate::ids::Position;

/// Bytes of each shard that are worked on at once, so that they stay in the CPU's cache.
const BLOCK_BYTES: usize = 32 * 1024;

/// Why shards cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeShardsError {
    /// Fewer than `k` are there.
    #[error("too few shards: have={have} need={need}")]
    TooFew {
        /// Shards that are there.
        have: usize,
        /// `k`.
        need: usize,
    },
    /// They are not of one length, or have none, or are not of this code.
    #[error("shards that do not belong together")]
    Mismatch,
}

/// Bytes of each shard of a stripe of `stripe_bytes`.
#[must_use]
pub fn shard_length(code: Code, stripe_bytes: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "at most SHARDS_MAX")]
    stripe_bytes.div_ceil(code.data() as u32)
}

/// The rows that make a code's shards out of its data: `k` unit rows, then `m` of parity.
#[derive(Debug)]
struct Generator {
    codec: galois_8::ReedSolomon,
    rows: Vec<Vec<u8>>,
}

impl Generator {
    fn build(code: Code) -> Self {
        #[expect(clippy::expect_used, reason = "Code's invariant: 1 ≤ k, 1 ≤ m, k + m ≤ 32")]
        let codec = galois_8::ReedSolomon::new(code.data(), code.parity()).expect("a code");
        let mut rows = vec![vec![0; code.data()]; code.total()];
        for column in 0..code.data() {
            // A unit vector's parity is this column of the generator.
            let mut shards = vec![vec![0_u8]; code.total()];
            shards[column][0] = 1;
            #[expect(clippy::expect_used, reason = "as many shards as the code has, of one byte each")]
            codec.encode(&mut shards).expect("shards of this code");
            for (row, shard) in rows.iter_mut().zip(&shards) {
                row[column] = shard[0];
            }
        }
        Self { codec, rows }
    }

    fn of(code: Code) -> &'static Self {
        const SIDE: usize = SHARDS_MAX as usize;
        static GENERATORS: [OnceLock<Generator>; SIDE * SIDE] = [const { OnceLock::new() }; SIDE * SIDE];
        GENERATORS[code.data() * SIDE + code.parity()].get_or_init(|| Self::build(code))
    }
}

/// Codes `stripe` into its `k + m` shards, by position. Data shards share its memory where they can.
///
/// # Panics
/// If `stripe` is empty.
#[must_use]
pub fn encode(code: Code, stripe: &Bytes) -> Vec<Bytes> {
    assert!(!stripe.is_empty(), "an empty stripe");
    let length = stripe.len().div_ceil(code.data());
    let mut shards: Vec<Bytes> = (0..code.data())
        .map(|index| {
            let start = (index * length).min(stripe.len());
            let end = (start + length).min(stripe.len());
            if end - start == length {
                return stripe.slice(start..end);
            }
            let mut padded = vec![0; length];
            padded[..end - start].copy_from_slice(&stripe[start..end]);
            padded.into()
        })
        .collect();
    let mut parity = vec![vec![0; length]; code.parity()];
    #[expect(clippy::expect_used, reason = "k data and m parity shards of one length, not empty")]
    Generator::of(code).codec.encode_sep(&shards, &mut parity).expect("shards of this code");
    shards.extend(parity.into_iter().map(Bytes::from));
    shards
}

/// Makes wanted shards, or one range of each, out of the same of `k` others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoder {
    /// By wanted shard, what each source is multiplied by.
    rows: Vec<Vec<u8>>,
}

impl Decoder {
    /// For `sources`, of which the first `k` are used, and `wanted`, in that order.
    ///
    /// # Errors
    /// If there are fewer than `k` sources, one occurs twice, or a position is not of this code.
    pub fn new(code: Code, sources: &[Position], wanted: &[Position]) -> Result<Self, DecodeShardsError> {
        let need = code.data();
        let sources = sources.get(..need).ok_or(DecodeShardsError::TooFew { have: sources.len(), need })?;
        let in_code = |position: &Position| usize::from(position.0) < code.total();
        let distinct = sources.iter().copied().collect::<PositionSet>().count() == need;
        if !distinct || !sources.iter().chain(wanted).all(in_code) {
            return Err(DecodeShardsError::Mismatch);
        }
        let generator = &Generator::of(code).rows;
        let matrix = sources.iter().map(|source| generator[usize::from(source.0)].clone()).collect();
        let inverse = invert(matrix).ok_or(DecodeShardsError::Mismatch)?;
        let rows =
            wanted.iter().map(|wanted| multiply_row(&generator[usize::from(wanted.0)], &inverse)).collect();
        Ok(Self { rows })
    }

    /// Decodes: `sources` are the shards, or ranges, that [`Decoder::new`] was told of, in that order.
    ///
    /// # Errors
    /// If they are not as many as it needs, or not of one length above 0.
    pub fn decode<T: AsRef<[u8]>>(&self, sources: &[T]) -> Result<Vec<Vec<u8>>, DecodeShardsError> {
        let Some(first_row) = self.rows.first() else { return Ok(Vec::new()) };
        let need = first_row.len();
        let sources = sources.get(..need).ok_or(DecodeShardsError::TooFew { have: sources.len(), need })?;
        let length = sources[0].as_ref().len();
        if length == 0 || sources.iter().any(|source| source.as_ref().len() != length) {
            return Err(DecodeShardsError::Mismatch);
        }
        let mut decoded = vec![vec![0; length]; self.rows.len()];
        for start in (0..length).step_by(BLOCK_BYTES) {
            let block = start..length.min(start + BLOCK_BYTES);
            for (row, out) in self.rows.iter().zip(&mut decoded) {
                for (index, source) in sources.iter().enumerate() {
                    let input = &source.as_ref()[block.clone()];
                    if index == 0 {
                        galois_8::mul_slice(row[index], input, &mut out[block.clone()]);
                    } else {
                        galois_8::mul_slice_xor(row[index], input, &mut out[block.clone()]);
                    }
                }
            }
        }
        Ok(decoded)
    }
}

/// Fills in those of `wanted` that are `None`, from any `k` that are there. `shards` has one place per position.
///
/// # Errors
/// If fewer than `k` are there, or they do not belong together. Then nothing is changed.
pub fn reconstruct(
    code: Code,
    shards: &mut [Option<Bytes>],
    wanted: PositionSet,
) -> Result<(), DecodeShardsError> {
    if shards.len() != code.total() {
        return Err(DecodeShardsError::Mismatch);
    }
    let present: Vec<(Position, Bytes)> = code
        .positions()
        .zip(shards.iter())
        .filter_map(|(position, shard)| shard.clone().map(|bytes| (position, bytes)))
        .take(code.data())
        .collect();
    let (sources, bytes): (Vec<Position>, Vec<Bytes>) = present.into_iter().unzip();
    let missing: Vec<Position> =
        wanted.iter().filter(|position| matches!(shards.get(usize::from(position.0)), Some(None))).collect();
    let decoded = Decoder::new(code, &sources, &missing)?.decode(&bytes)?;
    for (position, bytes) in missing.iter().zip(decoded) {
        shards[usize::from(position.0)] = Some(bytes.into());
    }
    Ok(())
}

/// Decodes one range of the shard at `wanted` from the same range of `k` others.
///
/// # Errors
/// If there are fewer than `k`, or they do not belong together.
pub fn decode_range(
    code: Code,
    sources: &[(Position, Bytes)],
    wanted: Position,
) -> Result<Bytes, DecodeShardsError> {
    let (positions, bytes): (Vec<Position>, Vec<&Bytes>) =
        sources.iter().map(|(position, bytes)| (*position, bytes)).unzip();
    let mut decoded = Decoder::new(code, &positions, &[wanted])?.decode(&bytes)?;
    decoded.pop().map(Bytes::from).ok_or(DecodeShardsError::Mismatch)
}

fn multiply_row(row: &[u8], matrix: &[Vec<u8>]) -> Vec<u8> {
    let cell = |column: usize| {
        row.iter().zip(matrix).fold(0, |sum, (factor, other)| sum ^ galois_8::mul(*factor, other[column]))
    };
    (0..row.len()).map(cell).collect()
}

/// Gauss-Jordan over GF(2^8); `None` if the square matrix has no inverse.
fn invert(mut matrix: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let size = matrix.len();
    for (index, row) in matrix.iter_mut().enumerate() {
        row.extend((0..size).map(|column| u8::from(column == index)));
    }
    for column in 0..size {
        let pivot = (column..size).find(|row| matrix[*row][column] != 0)?;
        matrix.swap(column, pivot);
        let scale = galois_8::div(1, matrix[column][column]);
        matrix[column].iter_mut().for_each(|cell| *cell = galois_8::mul(*cell, scale));
        let pivot_row = matrix[column].clone();
        for (index, row) in matrix.iter_mut().enumerate() {
            let factor = row[column];
            if index != column && factor != 0 {
                row.iter_mut()
                    .zip(&pivot_row)
                    .for_each(|(cell, above)| *cell ^= galois_8::mul(factor, *above));
            }
        }
    }
    Some(matrix.into_iter().map(|row| row[size..].to_vec()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, RngCore, SeedableRng};

    fn codes() -> [Code; 3] {
        ["4+2", "6+3", "10+4"].map(|code| code.parse().unwrap())
    }

    fn random_stripe(random: &mut SmallRng, length: usize) -> Bytes {
        let mut bytes = vec![0; length];
        random.fill_bytes(&mut bytes);
        bytes.into()
    }

    #[test]
    fn every_erasure_pattern_of_up_to_m_shards_is_rebuilt() {
        let mut random = SmallRng::seed_from_u64(1);
        for code in codes() {
            let stripe = random_stripe(&mut random, 1003);
            let shards = encode(code, &stripe);
            assert_eq!(shards.len(), code.total());
            let length = shard_length(code, 1003) as usize;
            assert!(shards.iter().all(|shard| shard.len() == length));
            for bits in 0..1_u32 << code.total() {
                let lost = PositionSet(bits);
                if lost.count() > code.parity() {
                    continue;
                }
                let mut left: Vec<Option<Bytes>> = shards.iter().cloned().map(Some).collect();
                lost.iter().for_each(|position| left[usize::from(position.0)] = None);
                reconstruct(code, &mut left, lost).unwrap();
                assert!(
                    left.iter().zip(&shards).all(|(left, shard)| left.as_ref() == Some(shard)),
                    "{lost:?}"
                );
            }
        }
    }

    #[test]
    fn fewer_than_k_shards_are_refused_and_nothing_is_changed() {
        let code = codes()[0];
        let shards = encode(code, &Bytes::from_static(b"some stripe"));
        let mut left: Vec<Option<Bytes>> = shards.into_iter().map(Some).collect();
        left[..3].fill(None);
        let before = left.clone();
        let error = reconstruct(code, &mut left, PositionSet(1)).unwrap_err();
        assert_eq!(error, DecodeShardsError::TooFew { have: 3, need: 4 });
        assert_eq!(left, before);
    }

    #[test]
    fn a_range_is_decoded_from_the_same_range_of_any_k() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        for code in codes() {
            for _round in 0..50 {
                let length = random.random_range(1..300_000);
                let shards = encode(code, &random_stripe(&mut random, length));
                let start = random.random_range(0..shards[0].len());
                let end = random.random_range(start + 1..=shards[0].len());
                let wanted = random.random_range(0..code.total());
                let mut sources: Vec<usize> = (0..code.total()).filter(|index| *index != wanted).collect();
                while sources.len() > code.data() {
                    sources.swap_remove(random.random_range(0..sources.len()));
                }
                let position = |index: usize| Position(u8::try_from(index).unwrap());
                let sources: Vec<(Position, Bytes)> = sources
                    .iter()
                    .map(|index| (position(*index), shards[*index].slice(start..end)))
                    .collect();
                let decoded = decode_range(code, &sources, position(wanted)).unwrap();
                assert_eq!(decoded, shards[wanted].slice(start..end), "seed {seed} {code}");
            }
        }
    }

    #[test]
    fn stripes_shorter_than_k_bytes_are_padded() {
        let code = codes()[2];
        let shards = encode(code, &Bytes::from_static(b"abc"));
        assert_eq!(&shards[0][..], b"a");
        assert_eq!(&shards[3][..], b"\0");
        assert_eq!(shard_length(code, 3), 1);
    }

    #[test]
    fn parity_is_pinned() {
        let shards = encode(codes()[0], &Bytes::from_static(&[1, 2, 3, 4]));
        assert_eq!(shards[4..].iter().map(|shard| shard[0]).collect::<Vec<_>>(), PINNED_PARITY);
    }

    const PINNED_PARITY: [u8; 2] = [69, 94];

    #[test]
    fn shards_that_do_not_belong_together_are_refused() {
        let code = codes()[0];
        let positions = [Position(0), Position(1), Position(2), Position(3)];
        assert!(Decoder::new(code, &[Position(0); 4], &[Position(1)]).is_err());
        assert!(Decoder::new(code, &positions, &[Position(6)]).is_err());
        let decoder = Decoder::new(code, &positions, &[Position(4)]).unwrap();
        assert_eq!(decoder.decode(&[b"ab", b"ab", b"ab", &b"a"[..]]), Err(DecodeShardsError::Mismatch));
        assert_eq!(decoder.decode(&[b""; 4]), Err(DecodeShardsError::Mismatch));
    }
}
