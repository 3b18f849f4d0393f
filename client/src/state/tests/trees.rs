//! The three trees, kept as one and two sets of differences, against three maps.

use std::collections::BTreeMap;

use engine::cutter::Cutter;
use engine::ids::ContentId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{fresh, seed};
use crate::local::model::{Identity, LocalIndex, LocalRecord, LocalUpdate, Stamp};
use crate::planner::model::{Attributes, FileContent, Kind, Node, NodeId, Place, ROOT};
use crate::state::database::{FILE_NAME, State};
use crate::state::error::StateError;
use crate::state::local::Touched;
use crate::state::record::{Outcome, Part};
use crate::state::row::root_node;
use crate::state::trees::{DirtyNodes, Side};

fn file(content: u8) -> Kind {
    let content = ContentId::from_bytes([content; 32]);
    Kind::File(FileContent { content, size: 1 + u64::from(content.as_bytes()[0]), cutter: Cutter::Cdc64k })
}

fn node(parent: u64, name: &str, kind: Kind) -> Node {
    Node {
        place: Place { parent: NodeId(parent), name: name.to_owned() },
        kind,
        attributes: Attributes { mode: 0o644, mtime_ns: 0 },
    }
}

fn random_node(random: &mut SmallRng) -> Option<Node> {
    if random.random_bool(0.3) {
        return None;
    }
    let kind = match random.random_range(0..4) {
        0 => Kind::Folder,
        1 => Kind::Symlink(vec![random.random_range(0..3)]),
        _ => file(random.random_range(0..3)),
    };
    let mut node = node(random.random_range(1..6), ["a", "b", "c"][random.random_range(0..3)], kind);
    match node.kind {
        Kind::Symlink(_) => node.attributes.mode = 0,
        Kind::File(_) => node.attributes.mtime_ns = random.random_range(0..2),
        Kind::Folder => {}
    }
    Some(node)
}

#[derive(Default)]
struct Model {
    synced: BTreeMap<NodeId, Node>,
    sides: [BTreeMap<NodeId, Node>; 2],
}

fn put(map: &mut BTreeMap<NodeId, Node>, node: NodeId, value: Option<Node>) {
    match value {
        Some(value) => drop(map.insert(node, value)),
        None => drop(map.remove(&node)),
    }
}

fn compare(state: &State, model: &Model, seed: u64) {
    let mut dirty = Vec::new();
    for number in 1..40 {
        let id = NodeId(number);
        assert_eq!(state.synced(id).unwrap().as_ref(), model.synced.get(&id), "seed {seed} {id:?}");
        for (side, map) in [Side::Remote, Side::Local].into_iter().zip(&model.sides) {
            assert_eq!(state.side(side, id).unwrap().as_ref(), map.get(&id), "seed {seed} {side:?} {id:?}");
        }
        if model.sides.iter().any(|map| map.get(&id) != model.synced.get(&id)) {
            dirty.push(id);
        }
    }
    assert_eq!(state.dirty().unwrap(), dirty, "seed {seed}");
    assert_eq!(state.synced_count().unwrap() + 1, model.synced.len() as u64);
    for parent in (1..6).map(NodeId) {
        for (side, map) in [Side::Remote, Side::Local].into_iter().zip(&model.sides) {
            let below: Vec<NodeId> =
                map.iter().filter(|(_, node)| node.place.parent == parent).map(|(id, _)| *id).collect();
            assert_eq!(state.side_children(side, parent).unwrap(), below, "seed {seed}");
            for name in ["a", "b", "c"] {
                let there: Vec<NodeId> =
                    below.iter().copied().filter(|id| map[id].place.name == name).collect();
                match state.side_at(side, parent, name).unwrap() {
                    Some(found) => assert!(there.contains(&found), "seed {seed}"),
                    None => assert!(there.is_empty(), "seed {seed}"),
                }
            }
        }
    }
}

#[test]
fn differences_say_the_same_as_three_whole_trees() {
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let (folder, mut state) = fresh();
    let mut model = Model::default();
    model.synced.insert(ROOT, root_node());
    model.sides.iter_mut().for_each(|map| drop(map.insert(ROOT, root_node())));
    for step in 0..1_500 {
        let id = NodeId(random.random_range(2..40));
        let value = random_node(&mut random);
        let which = random.random_range(0..3);
        let keep = random.random_bool(0.8);
        let done = state.transaction(|state| {
            match which {
                0 => state.set_side(Side::Remote, id, value.clone())?,
                1 => state.set_side(Side::Local, id, value.clone())?,
                // Only what is somewhere has a row to be agreed on.
                _ if state.side(Side::Remote, id)?.is_some() => state.set_synced(id, value.clone())?,
                _ => {}
            }
            // A crash before the commit is a transaction that never was.
            if keep { Ok(()) } else { Err(StateError::Full) }
        });
        assert_eq!(done.is_ok(), keep);
        if keep {
            match which {
                0 | 1 => put(&mut model.sides[which], id, value),
                _ if model.sides[0].contains_key(&id) => put(&mut model.synced, id, value),
                _ => {}
            }
        }
        if step % 50 == 0 {
            compare(&state, &model, seed);
        }
        if step % 500 == 499 {
            drop(state);
            state = State::open(folder.path()).unwrap().state;
        }
    }
    compare(&state, &model, seed);
}

#[test]
fn what_is_nowhere_leaves_no_row() {
    let (_folder, mut state) = fresh();
    let done = state.transaction(|state| {
        for id in (2..20).map(NodeId) {
            state.set_side(Side::Local, id, Some(node(1, &format!("n{}", id.0), file(1))))?;
            state.set_side(Side::Remote, id, Some(node(1, &format!("n{}", id.0), file(2))))?;
            state.set_synced(id, Some(node(1, &format!("n{}", id.0), file(3))))?;
        }
        for id in (2..20).map(NodeId) {
            state.set_synced(id, None)?;
            state.set_side(Side::Remote, id, None)?;
            state.set_side(Side::Local, id, None)?;
        }
        Ok(())
    });
    done.unwrap();
    for (table, left) in [("nodes", 1), ("differences", 0)] {
        let count: i64 = state
            .connection
            .query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |row| row.get(0))
            .unwrap();
        assert_eq!(count, left, "{table}");
    }
}

#[test]
fn numbers_of_nodes_are_never_given_twice() {
    let (folder, mut state) = fresh();
    let mut given = std::collections::BTreeSet::new();
    for _ in 0..5 {
        for _ in 0..10 {
            assert!(given.insert(state.number_for_split()));
        }
        state.transaction(|_state| Ok(())).unwrap();
        drop(state);
        state = State::open(folder.path()).unwrap().state;
    }
}

fn stamp(inode: u64) -> Stamp {
    Stamp { identity: Identity { inode, born_ns: 5 }, size: 2, mtime_ns: 0, ctime_ns: 0, mode: 0o644 }
}

fn record(id: u64, parent: u64, name: &str, kind: Kind) -> LocalRecord {
    let value = node(parent, name, kind);
    LocalRecord {
        node: NodeId(id),
        place: value.place,
        kind: value.kind,
        attributes: value.attributes,
        stamp: stamp(id * 100),
    }
}

struct Untouched;

impl Touched for Untouched {
    fn node(&self, _node: NodeId) -> bool {
        false
    }

    fn place(&self, _parent: NodeId, _name: &str) -> bool {
        false
    }

    fn folder(&self, _folder: NodeId) -> bool {
        false
    }
}

struct TouchedNode(NodeId);

impl Touched for TouchedNode {
    fn node(&self, node: NodeId) -> bool {
        node == self.0
    }

    fn place(&self, _parent: NodeId, _name: &str) -> bool {
        false
    }

    fn folder(&self, _folder: NodeId) -> bool {
        false
    }
}

#[test]
fn a_folder_that_is_gone_takes_along_all_but_what_was_moved_out() {
    let (_folder, mut state) = fresh();
    let updates = vec![
        LocalUpdate::Put(record(2, 1, "d", Kind::Folder)),
        LocalUpdate::Put(record(3, 2, "x", file(1))),
        LocalUpdate::Put(record(4, 2, "y", file(2))),
    ];
    assert_eq!(state.apply_local(updates, &Untouched).unwrap().changed.len(), 3);
    let updates = vec![LocalUpdate::Gone(NodeId(2)), LocalUpdate::Put(record(4, 1, "y", file(2)))];
    let applied = state.apply_local(updates, &Untouched).unwrap();
    assert!(applied.again.is_empty());
    assert_eq!(state.side_children(Side::Local, ROOT).unwrap(), [NodeId(4)]);
    assert_eq!(state.dirty().unwrap(), [NodeId(4)]);
}

#[test]
fn what_was_touched_during_a_scan_is_looked_at_again_instead_of_believed() {
    let (_folder, mut state) = fresh();
    let updates =
        vec![LocalUpdate::Put(record(2, 1, "d", Kind::Folder)), LocalUpdate::Put(record(3, 2, "x", file(1)))];
    state.apply_local(updates, &Untouched).unwrap();
    let gone = vec![LocalUpdate::Gone(NodeId(2))];
    let applied = state.apply_local(gone, &TouchedNode(NodeId(3))).unwrap();
    assert_eq!(applied.again.into_iter().collect::<Vec<_>>(), [""]);
    assert!(state.local_record(NodeId(3)).unwrap().is_some(), "a file put into it meanwhile is not gone");
    // Another file was recorded at the place in the meantime: the scan's find is not put over it.
    let found = vec![LocalUpdate::Put(record(9, 2, "x", file(2)))];
    let applied = state.apply_local(found, &Untouched).unwrap();
    assert_eq!(applied.again.into_iter().collect::<Vec<_>>(), ["d"]);
    assert_eq!(state.side_at(Side::Local, NodeId(2), "x").unwrap(), Some(NodeId(3)));
}

/// What this program put into a folder that somebody deleted at the same time is not left in a folder that is not there.
#[test]
fn what_was_put_into_a_folder_that_was_found_gone_is_nowhere() {
    let (_folder, mut state) = agreed_file_in_folder();
    let put = |node, parent, name: &str| Outcome::Local {
        record: record(node, parent, name, file(7)),
        part: Part::Whole,
    };
    // Still under way: the scan is not believed.
    let gone = || vec![LocalUpdate::Gone(NodeId(2))];
    let applied = state.apply_local(gone(), &TouchedPlace(NodeId(2), "new")).unwrap();
    assert_eq!(applied.again.into_iter().collect::<Vec<_>>(), [""]);
    assert!(state.side(Side::Local, NodeId(2)).unwrap().is_some());
    // Not known to the scan: the folder goes, and then it is recorded what was put into it, and into another one.
    state.apply_local(gone(), &Untouched).unwrap();
    let nowhere = state.record(&[put(20, 2, "new"), put(21, 4, "new")]).unwrap();
    assert_eq!(nowhere, [NodeId(20)]);
    assert_eq!(state.side(Side::Local, NodeId(20)).unwrap(), None);
    assert_eq!(state.synced(NodeId(20)).unwrap(), None);
    assert_eq!(state.path(Side::Local, NodeId(21)).unwrap().as_deref(), Some("b/new"));
    // A move into it: what was moved is known where it was, and a scan of that folder finds that it is not there.
    let moved = Outcome::Local { record: record(4, 2, "b", Kind::Folder), part: Part::Place };
    assert_eq!(state.record(&[moved]).unwrap(), [NodeId(4)]);
    assert_eq!(state.path(Side::Local, NodeId(21)).unwrap().as_deref(), Some("b/new"));
}

struct TouchedPlace(NodeId, &'static str);

impl Touched for TouchedPlace {
    fn node(&self, _node: NodeId) -> bool {
        false
    }

    fn place(&self, parent: NodeId, name: &str) -> bool {
        (parent, name) == (self.0, self.1)
    }

    fn folder(&self, folder: NodeId) -> bool {
        folder == self.0
    }
}

/// `a/x`, which both sides agree on, and the folder `b`.
fn agreed_file_in_folder() -> (tempfile::TempDir, State) {
    let (folder, mut state) = fresh();
    let updates = vec![
        LocalUpdate::Put(record(2, 1, "a", Kind::Folder)),
        LocalUpdate::Put(record(3, 2, "x", file(1))),
        LocalUpdate::Put(record(4, 1, "b", Kind::Folder)),
    ];
    state.apply_local(updates, &Untouched).unwrap();
    let agree = |state: &mut State| {
        [2, 3, 4].into_iter().map(NodeId).try_for_each(|id| {
            state.set_side(Side::Remote, id, state.side(Side::Local, id)?)?;
            state.settle(id)
        })
    };
    state.transaction(agree).unwrap();
    assert_eq!(state.dirty().unwrap(), []);
    (folder, state)
}

#[test]
fn a_file_moved_into_a_folder_that_is_not_believed_stays_known_where_it_was() {
    let (_folder, mut state) = agreed_file_in_folder();
    // A remote folder was just made here, and is not recorded yet; somebody moves a file into it.
    let found = vec![
        LocalUpdate::Put(record(9, 1, "new", Kind::Folder)),
        LocalUpdate::Put(record(3, 9, "x", file(1))),
    ];
    let applied = state.apply_local(found, &TouchedPlace(ROOT, "new")).unwrap();
    assert!(applied.changed.is_empty(), "{applied:?}");
    assert_eq!(applied.again.into_iter().collect::<Vec<_>>(), ["", "a", "new"]);
    assert_eq!(state.dirty().unwrap(), [], "it would be deleted on the server");
}

#[test]
fn a_folder_is_not_gone_while_what_left_it_is_not_believed() {
    let (_folder, mut state) = agreed_file_in_folder();
    let found = vec![LocalUpdate::Gone(NodeId(2)), LocalUpdate::Put(record(3, 4, "x", file(1)))];
    let applied = state.apply_local(found.clone(), &TouchedPlace(NodeId(4), "x")).unwrap();
    assert_eq!(applied.again.into_iter().collect::<Vec<_>>(), ["", "a", "b"]);
    assert_eq!(state.dirty().unwrap(), []);
    // Nor is its place free for another then.
    let mut with_another = found.clone();
    with_another.push(LocalUpdate::Put(record(9, 1, "a", file(2))));
    state.apply_local(with_another, &TouchedPlace(NodeId(4), "x")).unwrap();
    assert_eq!(state.side_at(Side::Local, ROOT, "a").unwrap(), Some(NodeId(2)));
    assert_eq!(state.dirty().unwrap(), []);
    let applied = state.apply_local(found, &Untouched).unwrap();
    assert!(applied.again.is_empty());
    assert_eq!(state.dirty().unwrap(), [NodeId(2), NodeId(3)]);
}

#[test]
fn moves_of_which_one_is_not_believed_make_no_circle() {
    let (_folder, mut state) = fresh();
    let updates = vec![
        LocalUpdate::Put(record(2, 1, "a", Kind::Folder)),
        LocalUpdate::Put(record(3, 2, "b", Kind::Folder)),
        LocalUpdate::Put(record(4, 3, "c", Kind::Folder)),
    ];
    state.apply_local(updates, &Untouched).unwrap();
    // a/b/c becomes b/c/a, and what happened to b is not believed.
    let found = vec![
        LocalUpdate::Put(record(2, 4, "a", Kind::Folder)),
        LocalUpdate::Put(record(3, 1, "b", Kind::Folder)),
    ];
    let applied = state.apply_local(found.clone(), &TouchedNode(NodeId(3))).unwrap();
    assert!(applied.changed.is_empty() && applied.again.contains("a/b/c"), "{applied:?}");
    assert_eq!(state.path(Side::Local, NodeId(4)).unwrap().unwrap(), "a/b/c");
    state.apply_local(found, &Untouched).unwrap();
    assert_eq!(state.path(Side::Local, NodeId(2)).unwrap().unwrap(), "b/c/a");
}

#[test]
fn a_swap_of_two_names_is_taken_in_whole() {
    let (_folder, mut state) = fresh();
    let updates =
        vec![LocalUpdate::Put(record(2, 1, "a", file(1))), LocalUpdate::Put(record(3, 1, "b", file(2)))];
    state.apply_local(updates, &Untouched).unwrap();
    let updates =
        vec![LocalUpdate::Put(record(2, 1, "b", file(1))), LocalUpdate::Put(record(3, 1, "a", file(2)))];
    assert!(state.apply_local(updates, &Untouched).unwrap().again.is_empty());
    assert_eq!(state.side_at(Side::Local, ROOT, "a").unwrap(), Some(NodeId(3)));
    assert_eq!(state.side_at(Side::Local, ROOT, "b").unwrap(), Some(NodeId(2)));
}

#[test]
fn a_scan_is_answered_as_the_trees_are() {
    let (_folder, mut state) = fresh();
    let mut index = state.scan_index().unwrap();
    let updates =
        vec![LocalUpdate::Put(record(2, 1, "d", Kind::Folder)), LocalUpdate::Put(record(3, 2, "x", file(1)))];
    state.apply_local(updates, &Untouched).unwrap();
    // One of them is in synced, the other is not.
    state.transaction(|state| state.set_synced(NodeId(2), state.side(Side::Local, NodeId(2))?)).unwrap();
    let folder = record(2, 1, "d", Kind::Folder);
    assert_eq!(index.at(ROOT, "d").map(|found| found.stamp), Some(folder.stamp));
    assert_eq!(index.by_identity(stamp(300).identity), Some(record(3, 2, "x", file(1))));
    assert_eq!(index.children(NodeId(2)), [record(3, 2, "x", file(1))]);
    let given = index.new_node();
    assert_ne!(given, state.number_for_split());
    index.check().unwrap();
}

#[test]
fn what_the_server_never_had_is_told_apart() {
    let (_folder, mut state) = fresh();
    let index = state.scan_index().unwrap();
    let updates = vec![
        LocalUpdate::Put(record(2, 1, "d", Kind::Folder)),
        LocalUpdate::Put(record(3, 2, "same", file(1))),
        LocalUpdate::Put(record(4, 2, "edited", file(1))),
        LocalUpdate::Put(record(5, 1, "moved in", file(1))),
        LocalUpdate::Put(record(6, 2, "touched", file(1))),
        LocalUpdate::Put(record(7, 2, "folder", Kind::Folder)),
        LocalUpdate::Put(record(8, 2, "also edited there", file(1))),
    ];
    state.apply_local(updates, &Untouched).unwrap();
    let nodes: Vec<NodeId> = (2..=8).map(NodeId).collect();
    state
        .transaction(|state| {
            for node in &nodes {
                let here = state.side(Side::Local, *node)?;
                state.set_side(Side::Remote, *node, here.clone())?;
                state.set_synced(*node, here)?;
            }
            // Deleted elsewhere, but for one that is edited the same way on both sides.
            for node in &nodes[..6] {
                state.set_side(Side::Remote, *node, None)?;
            }
            state.set_side(Side::Remote, NodeId(8), Some(node(2, "also edited there", file(2))))
        })
        .unwrap();
    // Then a scan comes, before the folder goes.
    let mut touched = record(6, 2, "touched", file(1));
    touched.attributes.mode = 0o600;
    let updates = vec![
        LocalUpdate::Put(record(4, 2, "edited", file(2))),
        LocalUpdate::Put(record(5, 2, "moved in", file(1))),
        LocalUpdate::Put(touched),
        LocalUpdate::Put(record(8, 2, "also edited there", file(2))),
        LocalUpdate::Put(record(9, 2, "new", file(1))),
        LocalUpdate::Put(record(10, 2, "new folder", Kind::Folder)),
    ];
    state.apply_local(updates, &Untouched).unwrap();
    let sent: BTreeMap<String, bool> =
        index.children_sent(NodeId(2)).into_iter().map(|(record, sent)| (record.place.name, sent)).collect();
    let expected = [
        ("same", true),
        ("edited", false),
        ("moved in", false),
        ("touched", true),
        ("folder", true),
        ("also edited there", true),
        ("new", false),
        ("new folder", false),
    ];
    assert_eq!(sent, expected.map(|(name, sent)| (name.to_owned(), sent)).into());
    index.check().unwrap();
}

#[test]
fn an_edit_during_an_upload_is_one_sides_edit() {
    let (_folder, mut state) = fresh();
    let local = record(2, 1, "f", file(1));
    state.set_root_entry(1_000, 0).unwrap();
    state.apply_local(vec![LocalUpdate::Put(local)], &Untouched).unwrap();
    // While the first content goes up, the file is saved again.
    state.apply_local(vec![LocalUpdate::Put(record(2, 1, "f", file(2)))], &Untouched).unwrap();
    let entry = super::journal::entry(7, 1_000, "f", 1);
    state.record(&[Outcome::Remote { node: NodeId(2), entry, part: Part::Whole }]).unwrap();
    assert_eq!(state.synced(NodeId(2)).unwrap(), state.side(Side::Remote, NodeId(2)).unwrap());
    assert_eq!(state.side(Side::Local, NodeId(2)).unwrap().unwrap().kind, file(2));
}

#[test]
fn linked_nodes_keep_what_is_in_them() {
    let (_folder, mut state) = fresh();
    state.set_root_entry(1_000, 0).unwrap();
    let updates = vec![
        LocalUpdate::Put(record(1_002, 1, "d", Kind::Folder)),
        LocalUpdate::Put(record(1_003, 1_002, "x", file(1))),
    ];
    state.apply_local(updates, &Untouched).unwrap();
    let folder = super::journal::folder_entry(50, 1_000, "d");
    let inside = super::journal::entry(51, 50, "y", 2);
    super::journal::follow(&mut state, vec![folder, inside]);
    let remote = state.node_of_entry(50).unwrap().unwrap();
    let below = state.node_of_entry(51).unwrap().unwrap();
    state.record(&[Outcome::Linked { keep: NodeId(1_002), gone: remote }]).unwrap();
    assert_eq!(state.node_of_entry(50).unwrap(), Some(NodeId(1_002)));
    assert_eq!(state.side_children(Side::Remote, NodeId(1_002)).unwrap(), [below]);
    assert_eq!(state.side_children(Side::Local, NodeId(1_002)).unwrap(), [NodeId(1_003)]);
    assert!(state.side(Side::Remote, remote).unwrap().is_none());
    assert!(state.synced(NodeId(1_002)).unwrap().is_some());
}

#[test]
fn an_earlier_version_here_is_no_edit() {
    let (_folder, mut state) = fresh();
    state.set_root_entry(1_000, 0).unwrap();
    let local = record(1_002, 1, "f", file(1));
    let stamp = local.stamp;
    state.apply_local(vec![LocalUpdate::Put(local)], &Untouched).unwrap();
    super::journal::follow(&mut state, vec![super::journal::entry(7, 1_000, "f", 2)]);
    let (keep, gone) = (NodeId(1_002), state.node_of_entry(7).unwrap().unwrap());
    let late = Stamp { size: 9, ..stamp };
    state.record(&[Outcome::Adopted { keep, gone, stamp: late }]).unwrap();
    assert!(state.synced(keep).unwrap().is_none(), "it was edited while it was compared");
    state.record(&[Outcome::Adopted { keep, gone, stamp }]).unwrap();
    assert_eq!(state.synced(keep).unwrap(), state.side(Side::Local, keep).unwrap());
    assert_eq!(state.side(Side::Remote, keep).unwrap().unwrap().kind, file(2));
    assert_eq!(state.node_of_entry(7).unwrap(), Some(keep));
}

#[test]
fn dirty_nodes_are_told_apart_by_what_they_are_anywhere() {
    let scratch = tempfile::tempdir().unwrap();
    let mut state = State::open(scratch.path()).unwrap().state;
    let node = |name: &str, kind: Kind| Node {
        place: Place { parent: ROOT, name: name.to_owned() },
        kind,
        attributes: Attributes { mode: 0o644, mtime_ns: 0 },
    };
    state
        .transaction(|state| {
            // A new folder here; a folder that is gone there; a symlink that is gone here.
            state.set_side(Side::Local, NodeId(9), Some(node("new", Kind::Folder)))?;
            for (id, name, kind) in [(7, "folder", Kind::Folder), (8, "link", Kind::Symlink(b"to".to_vec()))]
            {
                state.set_side(Side::Remote, NodeId(id), Some(node(name, kind.clone())))?;
                state.set_side(Side::Local, NodeId(id), Some(node(name, kind)))?;
                state.settle(NodeId(id))?;
            }
            state.set_side(Side::Remote, NodeId(7), None)?;
            state.set_side(Side::Local, NodeId(8), None)?;
            Ok(())
        })
        .unwrap();
    let dirty = state.reading(State::dirty_by_kind).unwrap();
    assert_eq!(dirty, DirtyNodes { folders: vec![NodeId(7), NodeId(9)], others: vec![NodeId(8)] });
    // What is kept of a row while reading is not believed afterwards.
    state.reading(|state| state.synced(NodeId(7)).map(drop)).unwrap();
    state.transaction(|state| state.set_side(Side::Local, NodeId(7), None)).unwrap();
    assert_eq!(state.side(Side::Local, NodeId(7)).unwrap(), None);
}

#[test]
fn a_file_of_the_first_schema_is_brought_to_this_one() {
    let scratch = tempfile::tempdir().unwrap();
    State::open(scratch.path()).unwrap().state.close().unwrap();
    let file = rusqlite::Connection::open(scratch.path().join(FILE_NAME)).unwrap();
    file.execute_batch("DROP INDEX differences_gone; PRAGMA user_version = 1;").unwrap();
    drop(file);
    let opened = State::open(scratch.path()).unwrap();
    assert!(opened.rebuilt.is_none());
    let sql = "SELECT COUNT(*) FROM sqlite_master WHERE name = 'differences_gone'";
    let count: i64 = opened.state.connection.query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(count, 1);
}
