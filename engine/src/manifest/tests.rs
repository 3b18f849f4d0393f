use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

fn entries(count: u32) -> Vec<ManifestEntry> {
    (0..count)
        .map(|index| ManifestEntry {
            id: ChunkId::of(&index.to_be_bytes()),
            size: u64::from(index % 7 + 1) * 1000,
        })
        .collect()
}

fn walk(
    list: ContentList,
    nodes: &BTreeMap<ChunkId, Bytes>,
    from: u64,
) -> (Vec<(u64, ManifestEntry)>, usize) {
    let mut walk = TreeWalk::new(list, from).unwrap();
    let mut found = Vec::new();
    let mut fetched = 0;
    loop {
        match walk.step() {
            WalkStep::Chunk { offset, entry } => found.push((offset, entry)),
            WalkStep::Fetch { entry } => {
                fetched += 1;
                walk.feed(&nodes[&entry.id]).unwrap();
            }
            WalkStep::Done => return (found, fetched),
        }
    }
}

#[test]
fn content_ids_are_pinned_and_depend_on_order_and_sizes() {
    assert_eq!(
        ContentId::of(&[]).to_string(),
        "2589158d4b48bace211a2af75f6bced1d2cf03c62cada9352bc01bb6761831da"
    );
    let list = entries(3);
    let swapped = [list[1], list[0], list[2]];
    let mut resized = list.clone();
    resized[2].size += 1;
    let ids =
        [ContentId::of(&list), ContentId::of(&swapped), ContentId::of(&resized), ContentId::of(&list[..2])];
    for (index, id) in ids.iter().enumerate() {
        assert!(!ids[index + 1..].contains(id));
    }
}

#[test]
fn a_walk_gives_back_what_the_tree_was_built_of_from_any_offset() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for count in [0, 1, 4096, 4097, 8192, 20_000] {
        let entries = entries(count);
        let (list, nodes) = build_tree(entries.clone()).unwrap();
        assert_eq!(list.depth, u8::from(count > 4096));
        let total: u64 = entries.iter().map(|entry| entry.size).sum();
        assert_eq!(list.size(), Ok(total));
        assert!(
            nodes.iter().all(|(id, bytes)| *id == manifest_node_id(bytes) && bytes.len() <= NODE_BYTES_MAX)
        );
        let nodes: BTreeMap<_, _> = nodes.into_iter().collect();
        for from in [0, total, total / 2, random.random_range(0..=total)] {
            let (found, fetched) = walk(list.clone(), &nodes, from);
            let mut offset = 0;
            let mut expected = Vec::new();
            for entry in &entries {
                if offset + entry.size > from {
                    expected.push((offset, *entry));
                }
                offset += entry.size;
            }
            assert_eq!(found, expected, "seed {seed} count {count} from {from}");
            assert!(
                fetched <= expected.len().div_ceil(LIST_ENTRIES_MAX) + 1,
                "skipped nodes are not fetched"
            );
        }
    }
}

#[test]
fn trees_of_two_levels_walk_in_order() {
    // Two nodes over two nodes of two chunks each; a real one would have 16 million chunks.
    let chunks = entries(8);
    let mut nodes = BTreeMap::new();
    let mut fold = |level: u8, entries: &[ManifestEntry]| -> Vec<ManifestEntry> {
        let fold_run = |run: &[ManifestEntry]| {
            let bytes = ManifestNode { level, entries: run.to_vec() }.encode();
            let id = manifest_node_id(&bytes);
            nodes.insert(id, bytes);
            ManifestEntry { id, size: run.iter().map(|entry| entry.size).sum() }
        };
        entries.chunks(2).map(fold_run).collect()
    };
    let middle = fold(0, &chunks);
    let list = ContentList { depth: 2, entries: fold(1, &middle) };
    let (found, fetched) = walk(list.clone(), &nodes, 0);
    assert_eq!(found.iter().map(|(_offset, entry)| *entry).collect::<Vec<_>>(), chunks);
    assert_eq!(fetched, 6);
    let total = list.size().unwrap();
    let (found, fetched) = walk(list, &nodes, total - 1);
    assert_eq!(found, vec![(total - chunks[7].size, chunks[7])]);
    assert_eq!(fetched, 2, "only the last node of each level");
}

#[test]
fn hostile_bytes_are_refused() {
    let node = ManifestNode { level: 0, entries: entries(3) };
    let good = node.encode();
    assert_eq!(decode_node(&good), Ok(node.clone()));
    for length in 0..good.len() {
        assert!(decode_node(&good[..length]).is_err(), "cut to {length}");
    }
    let with = |index: usize, byte: u8| {
        let mut bytes = good.to_vec();
        bytes[index] = byte;
        decode_node(&bytes)
    };
    assert_eq!(with(0, 2), Err(ManifestError::Format { found: 2 }));
    assert_eq!(with(1, 3), Err(ManifestError::Level { found: 3 }));
    assert!(matches!(with(2, 0xff), Err(ManifestError::Count { .. })));
    assert!(matches!(with(5, 2), Err(ManifestError::Length { .. })));
    assert!(matches!(with(NODE_HEADER_BYTES + 32, 0xff), Err(ManifestError::Size { .. })));
    let overflowing = ManifestEntry { id: ChunkId::of(b"x"), size: u64::MAX };
    let bytes = ManifestNode { level: 1, entries: vec![overflowing; 2] }.encode();
    assert!(matches!(decode_node(&bytes), Err(ManifestError::Size { .. })));
}

#[test]
fn a_walk_refuses_nodes_that_do_not_belong() {
    let (list, nodes) = build_tree(entries(5000)).unwrap();
    let mut walk = TreeWalk::new(list, 0).unwrap();
    assert!(matches!(walk.step(), WalkStep::Fetch { .. }));
    assert!(matches!(walk.feed(&nodes[1].1), Err(ManifestError::WrongNode { .. })));
    assert!(matches!(walk.step(), WalkStep::Fetch { .. }), "it still awaits the node");
    walk.feed(&nodes[0].1).unwrap();
    assert!(matches!(walk.step(), WalkStep::Chunk { offset: 0, .. }));

    // A node under the right name, but with another size than announced, or of another level.
    let node = ManifestNode { level: 0, entries: entries(2) }.encode();
    let top = |depth, size| ContentList {
        depth,
        entries: vec![ManifestEntry { id: manifest_node_id(&node), size }],
    };
    for (list, fits) in [(top(1, 3000), true), (top(1, 2999), false), (top(2, 3000), false)] {
        let mut walk = TreeWalk::new(list, 0).unwrap();
        assert!(matches!(walk.step(), WalkStep::Fetch { .. }));
        assert_eq!(walk.feed(&node).is_ok(), fits);
    }
}

#[test]
fn lists_that_no_builder_makes_are_refused() {
    assert!(ContentList { depth: 4, entries: entries(1) }.check().is_err());
    assert!(ContentList { depth: 1, entries: Vec::new() }.check().is_err());
    assert!(ContentList { depth: 0, entries: entries(4097) }.check().is_err());
    let zero = ManifestEntry { id: ChunkId::of(b"x"), size: 0 };
    assert!(ContentList { depth: 0, entries: vec![zero] }.check().is_err());
    assert!(build_tree(vec![zero]).is_err());
    assert!(ContentList::default().check().is_ok());
}
