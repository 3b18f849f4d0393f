use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::*;
use crate::codec::{ChunkCompressor, decode_chunk};
use crate::ids::VolumeId;

fn prepared(plain: Vec<u8>) -> PreparedChunk {
    ChunkCompressor::new().prepare(ChunkId::of(&plain), ChunkKind::Data, plain.into()).unwrap()
}

fn noise(random: &mut SmallRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill_bytes(&mut bytes);
    bytes
}

fn small_stripe() -> SealedStripe {
    let mut builder = StripeBuilder::new();
    for text in ["one", "two", "three"] {
        assert!(matches!(builder.push(prepared(text.repeat(100).into_bytes())), Pushed::Taken));
    }
    builder.seal().unwrap()
}

#[test]
fn chunks_lie_where_the_table_says() {
    let mut random = SmallRng::seed_from_u64(3);
    let mut builder = StripeBuilder::new();
    let mut plains = Vec::new();
    for index in 0..200 {
        let length = random.random_range(1..30_000);
        let plain = if index % 2 == 0 { noise(&mut random, length) } else { vec![7; length] };
        plains.push(plain.clone());
        assert!(matches!(builder.push(prepared(plain)), Pushed::Taken));
    }
    let sealed = builder.seal().unwrap();
    let stripe = StripeId::new(VolumeId(1), [1; 8]);
    let (chunks, length) = parse_table(sealed.bytes()).unwrap();
    assert_eq!((&chunks[..], length as usize), (sealed.chunks(), sealed.bytes().len()));
    assert_eq!(sealed.layout(), StripeLayout::Coded);
    for located in sealed.located(stripe) {
        let start = located.location.offset as usize;
        let stored = sealed.bytes().slice(start..start + located.location.stored_length as usize);
        let plain = decode_chunk(&located.location, stored, located.chunk).unwrap();
        assert!(plains.iter().any(|pushed| *pushed == plain));
    }
}

#[test]
fn a_stripe_takes_one_maximal_chunk_and_no_more() {
    let mut random = SmallRng::seed_from_u64(4);
    let mut builder = StripeBuilder::new();
    assert!(matches!(builder.push(prepared(noise(&mut random, CHUNK_BYTES_MAX))), Pushed::Taken));
    assert!(matches!(builder.push(prepared(noise(&mut random, 1))), Pushed::Full(_)));
    assert!(builder.seal().unwrap().bytes().len() <= STRIPE_BYTES_MAX);
    assert!(StripeBuilder::new().seal().is_none());
}

#[test]
fn a_stripe_is_full_at_its_chunk_count_and_holds_each_chunk_once() {
    let mut builder = StripeBuilder::new();
    for index in 0..STRIPE_CHUNKS_MAX {
        assert!(matches!(builder.push(prepared(index.to_be_bytes().to_vec())), Pushed::Taken));
    }
    assert!(matches!(builder.push(prepared(0_usize.to_be_bytes().to_vec())), Pushed::Taken), "it is there");
    assert!(matches!(builder.push(prepared(vec![1])), Pushed::Full(_)));
    let sealed = builder.seal().unwrap();
    assert_eq!(parse_table(sealed.bytes()).unwrap().0.len(), STRIPE_CHUNKS_MAX);
}

#[test]
fn damaged_tables_are_refused() {
    let sealed = small_stripe();
    let table = table_length(3);
    assert!(parse_table(&sealed.bytes()[..table]).is_ok(), "the table alone is enough");
    for length in 0..table {
        assert!(parse_table(&sealed.bytes()[..length]).is_err(), "cut to {length}");
    }
    for at in 0..table {
        let mut bytes = sealed.bytes().to_vec();
        bytes[at] ^= 1;
        assert!(parse_table(&bytes).is_err(), "byte {at}");
    }
}

#[test]
fn tables_with_a_right_checksum_that_no_builder_makes_are_refused() {
    let forge = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = small_stripe().bytes().to_vec();
        change(&mut bytes);
        let crc = table_crc(&bytes[..table_length(3)]);
        bytes[CRC_OFFSET..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
        parse_table(&bytes)
    };
    assert!(forge(&|_bytes| ()).is_ok());
    let row = HEADER_BYTES;
    assert!(forge(&|bytes| bytes[8] = 9).is_err(), "format");
    assert!(forge(&|bytes| bytes[11] = 1).is_err(), "reserved");
    assert!(forge(&|bytes| bytes[row + 32] = 2).is_err(), "kind");
    assert!(forge(&|bytes| bytes[row + 33] = 2).is_err(), "codec");
    assert!(forge(&|bytes| bytes[row + 34] = 1).is_err(), "reserved");
    assert!(forge(&|bytes| bytes[row + 39] += 1).is_err(), "offset");
    assert!(forge(&|bytes| bytes[row + 40] = 0xff).is_err(), "stored length");
    assert!(forge(&|bytes| bytes[row + 44..row + 48].fill(0)).is_err(), "plain length");
    assert!(forge(&|bytes| bytes.copy_within(row..row + 32, row + ROW_BYTES)).is_err(), "a chunk twice");
}

#[test]
fn the_format_is_pinned() {
    let mut builder = StripeBuilder::new();
    for text in ["one", "two", "three"] {
        assert!(matches!(builder.push(prepared(text.as_bytes().to_vec())), Pushed::Taken));
    }
    let sealed = builder.seal().unwrap();
    // Made by other code: see the format at the head of the module.
    let expected = "3da78f65a83ec1e8167a4144d1665fde607ffe320b8dbf525731c7bec49d2301";
    assert_eq!(hex::encode(crate::hash::sha256(sealed.bytes())), expected);
}

#[test]
fn small_stripes_are_copied_on_positions_that_rotate() {
    let code: Code = "4+2".parse().unwrap();
    assert_eq!(small_stripe().layout(), StripeLayout::Copies);
    let mut uses = [0_u32; 6];
    let mut random = SmallRng::seed_from_u64(5);
    for _stripe in 0..6000 {
        let stripe = StripeId::new(VolumeId(3), random.random());
        let used = used_positions(code, stripe, StripeLayout::Copies);
        assert_eq!(used.count(), 3);
        used.iter().for_each(|position| uses[usize::from(position.0)] += 1);
        assert_eq!(used_positions(code, stripe, StripeLayout::Coded).count(), 6);
    }
    assert!(uses.iter().all(|uses| (2700..3300).contains(uses)), "{uses:?}");
}

#[test]
fn a_part_of_a_stripe_is_the_stripe_of_that_part() {
    let (whole, _plains) = crate::simulation::sealed(3, &[700, 90_000, 33, 5000]);
    let ids: Vec<ChunkId> = whole.chunks().iter().map(|row| row.chunk).collect();
    assert_eq!(whole.only(|_chunk| true).unwrap(), whole);
    assert!(whole.only(|_chunk| false).is_none());
    let part = whole.only(|chunk| chunk != ids[1]).unwrap();
    let (rows, length) = parse_table(part.bytes()).unwrap();
    assert_eq!(rows, part.chunks());
    assert_eq!(length as usize, part.bytes().len());
    for row in &rows {
        let before = whole.chunks().iter().find(|before| before.chunk == row.chunk).unwrap();
        let stored = |stripe: &SealedStripe, row: &StripeChunk| {
            stripe.bytes().slice(row.offset as usize..(row.offset + row.stored_length) as usize)
        };
        assert_eq!(stored(&part, row), stored(&whole, before));
    }
    assert_eq!(rows.iter().map(|row| row.chunk).collect::<Vec<_>>(), [ids[0], ids[2], ids[3]]);
}
