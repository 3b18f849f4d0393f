//! The boundaries are a format: these vectors must never change.

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::*;
use crate::ids::{ChunkId, ContentId};
use crate::manifest::ManifestEntry;

/// A buffer that is the same on every machine and in every version of any crate (splitmix64).
fn pinned_bytes(length: usize) -> Vec<u8> {
    let mut state = 0x6b65_6570_7374_6f6e_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn cut_whole(bytes: &[u8], cutter: Cutter) -> Vec<(u64, Bytes)> {
    cut_reader(bytes, cutter).collect::<Result<_, _>>().unwrap()
}

/// Boundaries by the crate's own form for a whole slice.
fn slice_lengths(bytes: &[u8], cutter: Cutter) -> Vec<usize> {
    if cutter == Cutter::Fixed4m {
        return bytes.chunks(cutter.chunk_bytes_max()).map(<[u8]>::len).collect();
    }
    let (min, average) = (cutter.chunk_bytes_min(), cutter.chunk_bytes_average());
    fastcdc::v2020::FastCDC::with_level(bytes, min, average, cutter.chunk_bytes_max(), Normalization::Level1)
        .map(|chunk| chunk.length)
        .collect()
}

fn content_of(bytes: &[u8], cutter: Cutter) -> ContentId {
    let entries: Vec<ManifestEntry> = cut_whole(bytes, cutter)
        .iter()
        .map(|(_offset, bytes)| ManifestEntry { id: ChunkId::of(bytes), size: bytes.len() as u64 })
        .collect();
    ContentId::of(&entries)
}

#[test]
fn boundaries_and_ids_match_the_pinned_vectors() {
    let bytes = pinned_bytes(9_000_001);
    let vectors: [(Cutter, usize, &[usize], &str); 4] = [
        (
            Cutter::Cdc64k,
            111,
            &[21965, 150605, 91303, 59476, 70538, 72332],
            "4130b1e93c17a9b0ff6aa04ee98a08550a0450aed2565c1d79c7f9ec9c244dc2",
        ),
        (
            Cutter::Cdc256k,
            30,
            &[323349, 455180, 327045, 424045, 87188, 343989],
            "be3d582c8db4780032b5ad1fcf4ffd5e702bfd65ae9ebe8474c5131b965d80b5",
        ),
        (
            Cutter::Cdc1m,
            7,
            &[1616807, 1559475, 1220828, 1434919, 1578084, 1463795],
            "6ae9a5bd40d03c0e0c4d1a78947c505c1aeb192caa01ef9b9e917e611eaa728f",
        ),
        (
            Cutter::Fixed4m,
            3,
            &[4194304, 4194304, 611393],
            "2b1cb55d787c39a82b94f31e53f56838b9d58c1a4bf6b39eb0aaaf86ed8792dc",
        ),
    ];
    for (cutter, count, first, content) in vectors {
        let lengths: Vec<usize> =
            cut_whole(&bytes, cutter).iter().map(|(_offset, bytes)| bytes.len()).collect();
        let found =
            (cutter, lengths.len(), &lengths[..lengths.len().min(6)], content_of(&bytes, cutter).to_string());
        assert_eq!(found, (cutter, count, first, content.to_owned()));
    }
}

#[test]
fn boundaries_do_not_depend_on_how_bytes_are_pushed() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for cutter in Cutter::ALL {
        for _round in 0..6 {
            let mut bytes = vec![0; random.random_range(0..5 * cutter.chunk_bytes_max().min(1 << 20))];
            random.fill_bytes(&mut bytes);
            // A run without structure, which is cut only at the maximum.
            let flat = random.random_range(0..=bytes.len());
            bytes[flat..].iter_mut().take(3 << 20).for_each(|byte| *byte = 7);
            let mut pushed = ChunkCutter::new(cutter);
            let mut lengths = Vec::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(random.random_range(1..=rest.len().min(300_000)));
                pushed.push(part);
                rest = after;
                while random.random_bool(0.9) {
                    let Some(chunk) = pushed.next_chunk() else { break };
                    lengths.push(chunk.bytes.len());
                }
            }
            pushed.finish();
            while let Some(chunk) = pushed.next_chunk() {
                lengths.push(chunk.bytes.len());
            }
            assert_eq!(lengths, slice_lengths(&bytes, cutter), "seed {seed} {cutter} {}", bytes.len());
            let read: Vec<usize> = cut_whole(&bytes, cutter).iter().map(|(_, bytes)| bytes.len()).collect();
            assert_eq!(read, lengths, "seed {seed} {cutter}");
        }
    }
}

#[test]
fn chunks_join_to_the_file_and_keep_to_their_bounds() {
    let bytes = pinned_bytes(3_000_000);
    for cutter in Cutter::ALL {
        for length in [0, 1, cutter.chunk_bytes_min(), cutter.chunk_bytes_min() + 1, 2_999_999] {
            let bytes = &bytes[..length.min(bytes.len())];
            let chunks = cut_whole(bytes, cutter);
            let mut joined = Vec::new();
            for (offset, chunk) in &chunks {
                assert_eq!(*offset, joined.len() as u64);
                assert!(!chunk.is_empty() && chunk.len() <= cutter.chunk_bytes_max());
                joined.extend_from_slice(chunk);
            }
            assert_eq!(joined, bytes);
            let full = chunks.len().saturating_sub(1);
            assert!(chunks[..full].iter().all(|(_, chunk)| chunk.len() >= cutter.chunk_bytes_min()));
        }
    }
}

#[test]
fn one_byte_inserted_at_the_start_changes_few_chunks() {
    let bytes = pinned_bytes(8_000_000);
    let mut edited = vec![1];
    edited.extend_from_slice(&bytes);
    let ids = |bytes: &[u8]| -> std::collections::BTreeSet<ChunkId> {
        cut_whole(bytes, Cutter::Cdc64k).iter().map(|(_, chunk)| ChunkId::of(chunk)).collect()
    };
    assert!(ids(&edited).difference(&ids(&bytes)).count() <= 4);
}

#[test]
fn an_error_of_the_reader_ends_the_cut() {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::Error::other("gone"));
            }
            let count = buffer.len().min(self.0);
            buffer[..count].fill(3);
            self.0 -= count;
            Ok(count)
        }
    }
    let cut: Vec<_> = cut_reader(Failing(700_000), Cutter::Cdc64k).collect();
    assert!(cut.last().unwrap().is_err());
    assert_eq!(cut.iter().filter(|chunk| chunk.is_err()).count(), 1);
}

#[test]
fn cutters_are_chosen_by_size_and_kept_while_a_file_grows() {
    assert_eq!(Cutter::for_size(0), Cutter::Cdc64k);
    assert_eq!(Cutter::for_size(32 * MIB), Cutter::Cdc64k);
    assert_eq!(Cutter::for_size(32 * MIB + 1), Cutter::Cdc256k);
    assert_eq!(Cutter::for_size(4 * GIB + 1), Cutter::Cdc1m);
    assert_eq!(Cutter::for_new_version(Cutter::Cdc64k, 512 * MIB), Cutter::Cdc64k);
    assert_eq!(Cutter::for_new_version(Cutter::Cdc64k, 512 * MIB + 1), Cutter::Cdc256k);
    assert_eq!(Cutter::for_new_version(Cutter::Cdc64k, 65 * GIB), Cutter::Cdc1m);
    assert_eq!(Cutter::for_new_version(Cutter::Cdc1m, 1), Cutter::Cdc1m);
    assert_eq!(Cutter::for_new_version(Cutter::Fixed4m, 1 << 50), Cutter::Fixed4m);
}

#[test]
fn cutters_print_and_parse_alike() {
    for cutter in Cutter::ALL {
        assert_eq!(cutter.to_string().parse(), Ok(cutter));
    }
    assert!("cdc-2m".parse::<Cutter>().is_err());
}

#[test]
fn only_a_files_last_chunk_may_be_small() {
    for cutter in Cutter::ALL {
        let least = u32::try_from(cutter.chunk_bytes_min()).unwrap();
        for good in [&[][..], &[1], &[least, 1], &[least, least * 2, 3]] {
            assert_eq!(cutter.check_sizes(good), Ok(()), "{cutter} {good:?}");
        }
        assert_eq!(
            cutter.check_sizes(&[least, least - 1, least]),
            Err(SmallChunkError { cutter, index: 1, bytes: least - 1 })
        );
    }
    let error = Cutter::Cdc64k.check_sizes(&[3, 3]).unwrap_err().to_string();
    assert!(error.contains("cdc-64k") && error.contains("16384"), "{error}");
}

#[test]
fn what_the_cutters_make_is_taken() {
    let mut bytes = vec![0_u8; 9 * 1024 * 1024];
    SmallRng::seed_from_u64(7).fill_bytes(&mut bytes[..5 * 1024 * 1024]);
    for cutter in Cutter::ALL {
        let sizes: Vec<u32> = cut_reader(&bytes[..], cutter)
            .map(|chunk| u32::try_from(chunk.unwrap().1.len()).unwrap())
            .collect();
        assert_eq!(cutter.check_sizes(&sizes), Ok(()), "{cutter}");
    }
}
