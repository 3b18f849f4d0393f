//! Makes the lost shards of one stripe out of any `k` (or any copy), and verifies them. Nothing here waits or does IO.
//!
//! Invariants:
//! - No shard leaves that was made of a stripe whose table or chunks do not verify: a lying source is never spread.

use bytes::Bytes;

use crate::cluster::{StripeLayout, StripeShape};
use crate::code::{Code, PositionSet};
use crate::codec::decode_chunk;
use crate::coding::{DecodeShardsError, encode, reconstruct, shard_length};
use crate::ids::{Position, StripeId};
use crate::stripe::{ParseStripeError, locate, parse_table, used_positions};

/// Why a stripe's shards cannot be made. Variants differ where the caller's next move differs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// Fetch more shards.
    #[error("stripe {stripe}: {source}")]
    Shards {
        /// The stripe.
        stripe: StripeId,
        /// Why.
        source: DecodeShardsError,
    },
    /// These shards do not give the stripe: try others.
    #[error("stripe {stripe}: its shards do not verify: {source}")]
    Table {
        /// The stripe.
        stripe: StripeId,
        /// What is wrong.
        source: ParseStripeError,
    },
    /// These shards do not give this chunk: try others.
    #[error("stripe {stripe}: its shards do not verify: {source}")]
    Chunk {
        /// The stripe.
        stripe: StripeId,
        /// What is wrong.
        source: crate::codec::DecodeChunkError,
    },
}

/// The stripe's bytes out of any `k` whole shards, or any whole copy; verified.
///
/// # Errors
/// If they are too few, or do not verify.
pub fn join(
    code: Code,
    stripe: StripeId,
    shape: StripeShape,
    held: &[(Position, Bytes)],
) -> Result<Bytes, RebuildError> {
    let shards_error = |source| RebuildError::Shards { stripe, source };
    let length = shape.length as usize;
    let bytes = match shape.layout {
        StripeLayout::Copies => {
            let (_position, bytes) =
                held.first().ok_or(shards_error(DecodeShardsError::TooFew { have: 0, need: 1 }))?;
            bytes.clone()
        }
        StripeLayout::Coded => join_data(code, shape.length, held).map_err(shards_error)?,
    };
    if bytes.len() < length {
        return Err(shards_error(DecodeShardsError::Mismatch));
    }
    let bytes = bytes.slice(..length);
    verify(stripe, shape, &bytes)?;
    Ok(bytes)
}

fn join_data(code: Code, length: u32, held: &[(Position, Bytes)]) -> Result<Bytes, DecodeShardsError> {
    let mut shards: Vec<Option<Bytes>> = vec![None; code.total()];
    for (position, bytes) in held {
        let place = shards.get_mut(usize::from(position.0)).ok_or(DecodeShardsError::Mismatch)?;
        if bytes.len() != shard_length(code, length) as usize {
            return Err(DecodeShardsError::Mismatch);
        }
        *place = Some(bytes.clone());
    }
    let data: PositionSet = code.positions().take(code.data()).collect();
    reconstruct(code, &mut shards, data)?;
    let mut joined = Vec::with_capacity(code.data() * shard_length(code, length) as usize);
    shards.iter().take(code.data()).flatten().for_each(|shard| joined.extend_from_slice(shard));
    Ok(joined.into())
}

/// Checks the table, and every chunk against its name.
fn verify(stripe: StripeId, shape: StripeShape, bytes: &Bytes) -> Result<(), RebuildError> {
    let table_error = |source| RebuildError::Table { stripe, source };
    let (chunks, length) = parse_table(bytes).map_err(table_error)?;
    if length != shape.length {
        return Err(table_error(ParseStripeError::Table { what: "length" }));
    }
    for located in locate(&chunks, stripe, shape) {
        let start = located.location.offset as usize;
        let stored = bytes.slice(start..start + located.location.stored_length as usize);
        decode_chunk(&located.location, stored, located.chunk)
            .map_err(|source| RebuildError::Chunk { stripe, source })?;
    }
    Ok(())
}

/// The shards of `lost`, as far as the stripe uses those positions, out of any `k` whole others, or any copy.
///
/// # Errors
/// As [`join`].
pub fn rebuild(
    code: Code,
    stripe: StripeId,
    shape: StripeShape,
    held: &[(Position, Bytes)],
    lost: PositionSet,
) -> Result<Vec<(Position, Bytes)>, RebuildError> {
    let bytes = join(code, stripe, shape, held)?;
    let used = used_positions(code, stripe, shape.layout);
    let wanted = lost.iter().filter(|position| used.contains(*position));
    Ok(match shape.layout {
        StripeLayout::Copies => wanted.map(|position| (position, bytes.clone())).collect(),
        StripeLayout::Coded => {
            let shards = encode(code, &bytes);
            wanted.map(|position| (position, shards[usize::from(position.0)].clone())).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::ChunkCompressor;
    use crate::ids::{ChunkId, VolumeId};
    use crate::location::ChunkKind;
    use crate::stripe::{SealedStripe, StripeBuilder};
    use rand::rngs::SmallRng;
    use rand::{RngCore, SeedableRng};

    fn sealed(length: usize) -> SealedStripe {
        let mut builder = StripeBuilder::new();
        for seed in 0..3 {
            let mut plain = vec![0; length / 3];
            SmallRng::seed_from_u64(seed).fill_bytes(&mut plain);
            let chunk =
                ChunkCompressor::new().prepare(ChunkId::of(&plain), ChunkKind::Data, plain.into()).unwrap();
            builder.push(chunk);
        }
        builder.seal().unwrap()
    }

    /// All shards, by position, of the positions that the stripe uses.
    fn shards_of(sealed: &SealedStripe, code: Code, stripe: StripeId) -> Vec<(Position, Bytes)> {
        let used = used_positions(code, stripe, sealed.layout());
        match sealed.layout() {
            StripeLayout::Copies => used.iter().map(|position| (position, sealed.bytes().clone())).collect(),
            StripeLayout::Coded => used.iter().zip(encode(code, sealed.bytes())).collect(),
        }
    }

    #[test]
    fn any_m_lost_shards_are_made_again() {
        for (code, length) in [("4+2", 1000), ("4+2", 200_000), ("6+3", 300_000), ("10+4", 100_001)] {
            let code: Code = code.parse().unwrap();
            let sealed = sealed(length);
            let stripe = StripeId::new(VolumeId(1), [3; 8]);
            let all = shards_of(&sealed, code, stripe);
            for first in 0..all.len() {
                let mut held = all.clone();
                held.rotate_left(first);
                let gone: Vec<_> = held.drain(..code.parity()).collect();
                let lost = gone.iter().map(|(position, _bytes)| *position).collect();
                let mut made = rebuild(code, stripe, sealed.shape(), &held, lost).unwrap();
                made.sort_by_key(|(position, _)| gone.iter().position(|(lost, _)| lost == position));
                assert_eq!(made, gone, "{code} {length}");
            }
        }
    }

    #[test]
    fn a_lying_source_is_never_spread() {
        let code: Code = "4+2".parse().unwrap();
        let sealed = sealed(200_000);
        let stripe = StripeId::new(VolumeId(1), [3; 8]);
        for liar in 0..5 {
            for at in [0, 70, 50_000] {
                let mut held = shards_of(&sealed, code, stripe);
                let lost = held.pop().map(|(position, _bytes)| position).into_iter().collect();
                // Exactly k sources, the liar among them; byte 50,000 of the last data shard is padding or beyond.
                held.retain(|(position, _bytes)| position.0 == liar || position.0 != (liar + 1) % 5);
                let (_position, bytes) = held.iter_mut().find(|(position, _)| position.0 == liar).unwrap();
                let mut wrong = bytes.to_vec();
                wrong[at] ^= 0x80;
                *bytes = wrong.into();
                let made = rebuild(code, stripe, sealed.shape(), &held, lost);
                assert!(made.is_err(), "liar {liar} byte {at}");
            }
        }
    }

    #[test]
    fn too_few_or_foreign_shards_are_refused() {
        let code: Code = "4+2".parse().unwrap();
        let sealed = sealed(200_000);
        let stripe = StripeId::new(VolumeId(1), [3; 8]);
        let held = shards_of(&sealed, code, stripe);
        let rebuild =
            |held: &[(Position, Bytes)]| rebuild(code, stripe, sealed.shape(), held, PositionSet(1));
        assert!(matches!(rebuild(&held[3..]), Err(RebuildError::Shards { .. })));
        assert!(matches!(rebuild(&[(Position(9), held[0].1.clone())]), Err(RebuildError::Shards { .. })));
        let short: Vec<_> = held.iter().map(|(position, bytes)| (*position, bytes.slice(1..))).collect();
        assert!(rebuild(&short).is_err());
    }
}
