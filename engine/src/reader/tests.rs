use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::cluster::{Health, StripeLayout, StripeRecord};
use crate::code::Code;

use crate::simulation::{
    DEADLINE, Fault, PATIENCE, Sim, all, cluster, disk_of, plain_view, sealed, set_health,
};

use crate::writer::StripeWriter;

/// A cluster with one stripe in it.
struct World {
    sim: Arc<Sim>,
    map: ClusterMap,
    record: StripeRecord,
    chunks: Vec<LocatedChunk>,
    plains: BTreeMap<ChunkId, Bytes>,
}

impl World {
    fn new(seed: u64, code: &str, lengths: &[usize]) -> Self {
        let code: Code = code.parse().unwrap();
        let (sim, map) = (Sim::new(seed), cluster(code.total() as u64, code));
        let (sealed, plains) = sealed(seed, lengths);
        let writer = StripeWriter::new(sim.clone(), sim.clone(), sim.clone());
        let record = sim.run(writer.write(&map, plain_view(), &sealed, DEADLINE)).unwrap().record;
        let chunks = sealed.located(record.stripe);
        Self { sim, map, record, chunks, plains }
    }

    fn read(&self, chunks: &[LocatedChunk]) -> Result<ReadStripe, ReadChunkError> {
        let reader = ChunkReader::new(self.sim.clone(), self.sim.clone(), self.sim.clone());
        self.sim.run(reader.read_chunks(&self.map, &all, chunks, PATIENCE))
    }

    fn read_right(&self, chunks: &[LocatedChunk]) -> ReadStripe {
        let read = self.read(chunks).unwrap();
        let names: Vec<ChunkId> = chunks.iter().map(|chunk| chunk.chunk).collect();
        assert_eq!(read.chunks.iter().map(|(chunk, _plain)| *chunk).collect::<Vec<_>>(), names);
        assert!(read.chunks.iter().all(|(chunk, plain)| self.plains[chunk] == *plain));
        read
    }

    fn disk(&self, position: u8) -> DiskId {
        disk_of(&self.map, &self.record, Position(position))
    }

    fn lose(&self, position: u8) {
        self.sim.lose(self.disk(position), self.record.stripe, Position(position));
    }

    fn falsify(&self, position: u8) {
        self.sim.falsify(self.disk(position), self.record.stripe, Position(position));
    }
}

/// 20 chunks that fill all data shards.
const LENGTHS: [usize; 20] = [40_000; 20];

#[test]
fn a_healthy_read_touches_only_the_ranges_asked_for() {
    let world = World::new(1, "4+2", &LENGTHS);
    world.sim.take_reads();
    let read = world.read_right(&world.chunks[..1]);
    assert!(read.damaged.is_empty() && read.unavailable.is_empty());
    let location = world.chunks[0].location;
    assert_eq!(world.sim.take_reads(), [(Position(0), location.offset, location.stored_length)]);
    world.read_right(&world.chunks);
    let reads = world.sim.take_reads();
    assert_eq!(reads.len(), 4, "neighbours are read at once: {reads:?}");
    assert!(reads.iter().all(|(position, _, _)| position.0 < 4));
}

#[test]
fn chunks_come_in_the_order_asked_for_and_may_repeat() {
    let world = World::new(2, "4+2", &LENGTHS);
    let chunks: Vec<LocatedChunk> = [7, 3, 3, 19, 0].map(|index: usize| world.chunks[index]).to_vec();
    world.read_right(&chunks);
}

#[test]
fn any_m_lost_shards_are_decoded_around_and_reported() {
    for code in ["4+2", "6+3", "10+4"] {
        for first in 0..code.parse::<Code>().unwrap().total() {
            let world = World::new(3, code, &LENGTHS);
            let total = world.record.code.total();
            let lost: Vec<u8> = (0..world.record.code.parity())
                .map(|index| u8::try_from((first + index) % total).unwrap())
                .collect();
            lost.iter().for_each(|position| world.lose(*position));
            let read = world.read_right(&world.chunks);
            let data_lost = lost.iter().filter(|position| usize::from(**position) < world.record.code.data());
            assert!(read.damaged.len() >= data_lost.count());
            assert!(read.damaged.iter().all(|shard| lost.contains(&shard.position.0)));
            assert!(read.damaged.iter().all(|shard| shard.disk == world.disk(shard.position.0)));
        }
    }
}

#[test]
fn a_whole_stripe_with_a_lost_shard_is_read_without_reading_anything_twice() {
    let world = World::new(4, "4+2", &LENGTHS);
    world.lose(1);
    world.sim.take_reads();
    world.read_right(&world.chunks);
    let reads = world.sim.take_reads();
    // The edges of the first and last range differ by what lies outside the chunks, so up to two small reads are added.
    let parity = reads.iter().filter(|(position, _, _)| position.0 >= 4).count();
    assert_eq!(parity, 1, "{reads:?}");
    assert!(reads.len() <= 7, "{reads:?}");
}

#[test]
fn a_disk_that_is_known_to_be_down_is_not_asked() {
    let mut world = World::new(5, "4+2", &LENGTHS);
    let down = world.disk(2);
    world.sim.set_fault(down, Fault::Hangs);
    set_health(&mut world.map, down, Health::Down);
    world.sim.take_reads();
    let began = world.sim.clock.now();
    world.read_right(&world.chunks);
    assert!(world.sim.clock.now() - began < PATIENCE.hedge_after);
    assert!(world.sim.take_reads().iter().all(|(position, _, _)| position.0 != 2));
}

#[test]
fn a_disk_that_was_wrongly_called_down_is_asked_when_nothing_else_is_left() {
    let mut world = World::new(6, "4+2", &LENGTHS);
    for position in [0, 1, 2] {
        let disk = world.disk(position);
        set_health(&mut world.map, disk, Health::Down);
    }
    world.read_right(&world.chunks);
}

#[test]
fn of_disks_called_down_those_that_answer_are_found() {
    let mut world = World::new(6, "4+2", &LENGTHS);
    for position in [0, 1, 2] {
        let disk = world.disk(position);
        set_health(&mut world.map, disk, Health::Down);
    }
    (0..2).for_each(|position| world.sim.set_fault(world.disk(position), Fault::Hangs));
    let began = world.sim.clock.now();
    world.read_right(&world.chunks[..1]);
    assert!(world.sim.clock.now() - began < 3 * PATIENCE.hedge_after);
}

#[test]
fn slow_disks_are_hedged_around() {
    for slow in [vec![0], vec![1, 3], vec![2, 5]] {
        let world = World::new(7, "4+2", &LENGTHS);
        for position in &slow {
            world.sim.set_fault(world.disk(*position), Fault::Slow(Duration::from_secs(9)));
        }
        let began = world.sim.clock.now();
        world.read_right(&world.chunks);
        let took = world.sim.clock.now() - began;
        assert!(took >= PATIENCE.hedge_after && took < 3 * PATIENCE.hedge_after, "{slow:?}: {took:?}");
    }
}

#[test]
fn when_too_many_are_slow_the_read_waits_for_them() {
    let world = World::new(8, "4+2", &LENGTHS);
    for position in 0..3 {
        world.sim.set_fault(world.disk(position), Fault::Slow(Duration::from_secs(9)));
    }
    world.read_right(&world.chunks);
    assert!(world.sim.clock.now() >= Duration::from_secs(9));
}

#[test]
fn disks_that_never_answer_make_it_unavailable_not_lost() {
    let world = World::new(9, "4+2", &LENGTHS);
    for position in 0..3 {
        world.sim.set_fault(world.disk(position), Fault::Hangs);
    }
    let began = world.sim.clock.now();
    let error = world.read(&world.chunks).unwrap_err();
    assert!(matches!(error, ReadChunkError::Unavailable { need: 4, .. }), "{error}");
    assert_eq!(world.sim.clock.now() - began, PATIENCE.deadline);

    let world = World::new(9, "4+2", &LENGTHS);
    (0..2).for_each(|position| world.lose(position));
    world.sim.set_fault(world.disk(3), Fault::Down);
    let error = world.read(&world.chunks).unwrap_err();
    let ReadChunkError::Unavailable { unavailable, damaged, .. } = error else { panic!("{error}") };
    assert_eq!((unavailable, damaged.len()), (vec![world.disk(3)], 2));
}

#[test]
fn more_than_m_lost_shards_are_a_clear_loss() {
    let world = World::new(10, "4+2", &LENGTHS);
    (1..4).for_each(|position| world.lose(position));
    let error = world.read(&world.chunks[19..]).unwrap_err();
    let ReadChunkError::Lost { chunk, have: 3, need: 4, damaged, .. } = error else { panic!("{error}") };
    assert_eq!((chunk, damaged.len()), (world.chunks[19].chunk, 3));
    world.read_right(&world.chunks[..1]);
}

#[test]
fn shards_that_lie_are_found_and_reported() {
    for (code, liars) in
        [("4+2", vec![0]), ("4+2", vec![1, 3]), ("6+3", vec![0, 2, 8]), ("10+4", vec![4, 12])]
    {
        let world = World::new(11, code, &LENGTHS);
        liars.iter().for_each(|position| world.falsify(*position));
        let read = world.read_right(&world.chunks);
        let mut found: Vec<u8> = read.damaged.iter().map(|shard| shard.position.0).collect();
        found.sort_unstable();
        let data = world.record.code.data();
        assert!(liars.iter().filter(|liar| usize::from(**liar) < data).all(|liar| found.contains(liar)));
        assert!(found.iter().all(|position| liars.contains(position)), "{found:?} of {liars:?}");
    }
}

#[test]
fn lies_that_cannot_be_seen_through_are_never_returned() {
    let world = World::new(12, "4+2", &LENGTHS);
    (0..3).for_each(|position| world.falsify(position));
    let error = world.read(&world.chunks[..1]).unwrap_err();
    assert!(matches!(error, ReadChunkError::Lost { .. }), "{error}");
}

#[test]
fn copies_are_read_in_turn_and_replace_each_other() {
    let world = World::new(13, "4+2", &[3000, 2000, 4000]);
    assert_eq!(world.record.shape.layout, StripeLayout::Copies);
    let reader = ChunkReader::new(world.sim.clone(), world.sim.clone(), world.sim.clone());
    world.sim.take_reads();
    for _read in 0..3 {
        world.sim.run(reader.read_chunks(&world.map, &all, &world.chunks, PATIENCE)).unwrap();
    }
    let mut asked: Vec<Position> = world.sim.take_reads().iter().map(|(position, _, _)| *position).collect();
    asked.sort_unstable();
    let used: Vec<Position> = world.record.used.iter().collect();
    assert_eq!(asked, used, "one read each, of each copy in turn");
    world.lose(used[0].0);
    world.falsify(used[1].0);
    for _read in 0..3 {
        let read = world.sim.run(reader.read_chunks(&world.map, &all, &world.chunks, PATIENCE)).unwrap();
        assert!(read.chunks.iter().all(|(chunk, plain)| world.plains[chunk] == *plain));
        assert!(read.damaged.iter().all(|shard| used[..2].contains(&shard.position)));
    }
    world.lose(used[2].0);
    assert!(matches!(world.read(&world.chunks), Err(ReadChunkError::Lost { .. })));
}

#[test]
fn locations_that_cannot_be_are_refused() {
    let world = World::new(14, "4+2", &LENGTHS);
    let other = World::new(15, "4+2", &LENGTHS);
    let mut beyond = world.chunks[19];
    beyond.location.offset = world.record.shape.length;
    let mut overflowing = world.chunks[0];
    overflowing.location.offset = u32::MAX;
    let mut empty = world.chunks[0];
    empty.location.stored_length = 0;
    let mixed = [world.chunks[0], other.chunks[0]];
    for chunks in [&[beyond][..], &[overflowing], &[empty], &mixed, &[]] {
        assert!(matches!(world.read(chunks), Err(ReadChunkError::BadLocation { .. })));
    }
    let mut map = world.map.clone();
    map.volumes.clear();
    let reader = ChunkReader::new(world.sim.clone(), world.sim.clone(), world.sim.clone());
    let error = world.sim.run(reader.read_chunks(&map, &all, &world.chunks, PATIENCE));
    assert!(matches!(error, Err(ReadChunkError::UnknownVolume { .. })));
}

#[test]
fn a_dropped_read_harms_nothing() {
    let world = World::new(16, "4+2", &LENGTHS);
    let reader = ChunkReader::new(world.sim.clone(), world.sim.clone(), world.sim.clone());
    for polls in 0..6 {
        world.sim.run_and_drop(reader.read_chunks(&world.map, &all, &world.chunks, PATIENCE), polls);
    }
    world.read_right(&world.chunks);
}

#[test]
fn any_bytes_from_disks_give_right_chunks_or_an_error() {
    let first: u64 = u64::from(rand::random::<u32>());
    println!("seeds {first} to {}", first + 60);
    for seed in first..first + 60 {
        let mut random = SmallRng::seed_from_u64(seed);
        let world = World::new(seed, "4+2", &LENGTHS[..random.random_range(1..8)]);
        for position in world.record.used.iter() {
            match random.random_range(0..4) {
                0 => world.falsify(position.0),
                1 => world.lose(position.0),
                _ => (),
            }
        }
        if let Ok(read) = world.read(&world.chunks) {
            assert!(read.chunks.iter().all(|(chunk, plain)| world.plains[chunk] == *plain), "seed {seed}");
        }
    }
}
