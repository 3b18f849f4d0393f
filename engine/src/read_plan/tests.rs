use super::*;
use crate::cluster::StripeShape;
use crate::ids::{ChunkId, VolumeId};
use crate::location::{ChunkKind, ChunkLocation, Codec};

/// 4+2 with shards of 1 MiB.
const SHARD_BYTES: u32 = 1 << 20;

fn code() -> Code {
    "4+2".parse().unwrap()
}

fn chunk(offset: u32, stored_length: u32) -> LocatedChunk {
    let location = ChunkLocation {
        stripe: StripeId::new(VolumeId(1), [1; 8]),
        shape: StripeShape { layout: StripeLayout::Coded, length: 4 * SHARD_BYTES },
        offset,
        stored_length,
        plain_length: stored_length,
        codec: Codec::Plain,
        kind: ChunkKind::Data,
    };
    LocatedChunk { chunk: ChunkId::of(b"x"), location }
}

fn plan(chunks: &[LocatedChunk]) -> ReadPlan {
    ReadPlan::new(code(), chunks, &|_position| true, 0).unwrap()
}

fn range(position: u8, start: u32, end: u32) -> ShardRange {
    ShardRange { position: Position(position), start, end }
}

fn bytes(range: ShardRange) -> Bytes {
    vec![range.position.0; (range.end - range.start) as usize].into()
}

#[test]
fn near_chunks_are_read_as_one_and_far_ones_apart() {
    let near = chunk(10_000 + READ_GAP_BYTES_MAX, 10);
    let far = chunk(10_010 + 2 * READ_GAP_BYTES_MAX + 1, 10);
    let mut plan = plan(&[far, chunk(0, 10_000), near]);
    let end = 10_010 + READ_GAP_BYTES_MAX;
    let start = 10_010 + 2 * READ_GAP_BYTES_MAX + 1;
    assert_eq!(plan.step(), Progress::Waiting(vec![range(0, 0, end), range(0, start, start + 10)]));
    assert_eq!(plan.step(), Progress::Waiting(Vec::new()), "nothing is asked for twice");
}

#[test]
fn a_chunk_over_a_shard_boundary_is_read_from_both() {
    let chunk = chunk(SHARD_BYTES - 5, 12);
    let mut plan = plan(&[chunk]);
    let (first, second) = (range(0, SHARD_BYTES - 5, SHARD_BYTES), range(1, 0, 7));
    assert_eq!(plan.step(), Progress::Waiting(vec![first, second]));
    plan.arrived(second, bytes(second));
    assert_eq!(plan.stored_bytes(&chunk, PositionSet::EMPTY), None);
    plan.arrived(first, bytes(first));
    assert_eq!(plan.step(), Progress::Ready);
    let expected = [vec![0; 5], vec![1; 7]].concat();
    assert_eq!(plan.stored_bytes(&chunk, PositionSet::EMPTY), Some(expected.into()));
}

#[test]
fn a_lost_range_is_asked_of_exactly_k_others_and_what_is_held_is_used() {
    let chunks = [chunk(0, 4 * SHARD_BYTES)];
    let mut plan = plan(&chunks);
    let Progress::Waiting(reads) = plan.step() else { panic!("nothing is held") };
    assert_eq!(reads.len(), 4);
    reads[1..].iter().for_each(|read| plan.arrived(*read, bytes(*read)));
    plan.failed(reads[0]);
    let parity = range(4, 0, SHARD_BYTES);
    assert_eq!(plan.step(), Progress::Waiting(vec![parity]));
    plan.failed(parity);
    let other = range(5, 0, SHARD_BYTES);
    assert_eq!(plan.step(), Progress::Waiting(vec![other]));
    plan.failed(other);
    assert_eq!(plan.step(), Progress::Lost { have: 3, need: 4 });
}

#[test]
fn an_answer_of_another_length_is_a_failure() {
    let mut plan = plan(&[chunk(0, 10)]);
    let home = range(0, 0, 10);
    assert_eq!(plan.step(), Progress::Waiting(vec![home]));
    plan.arrived(home, bytes(range(0, 0, 9)));
    assert_eq!(plan.step(), Progress::Waiting((1..5).map(|position| range(position, 0, 10)).collect()));
}

#[test]
fn a_late_answer_of_a_slow_position_still_counts() {
    let mut plan = plan(&[chunk(0, 10)]);
    let home = range(0, 0, 10);
    assert_eq!(plan.step(), Progress::Waiting(vec![home]));
    plan.hedge();
    assert_eq!(plan.step(), Progress::Waiting((1..5).map(|position| range(position, 0, 10)).collect()));
    plan.arrived(home, bytes(home));
    assert_eq!(plan.step(), Progress::Ready);
}
