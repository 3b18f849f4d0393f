//! Deletes that wait: told apart, undone, and counted over restarts.

use engine::cutter::Cutter;
use engine::ids::ContentId;

use super::fresh;
use crate::planner::model::{Attributes, FileContent, Kind, Node, NodeId, Place, ROOT};
use crate::state::database::State;
use crate::state::record::Outcome;
use crate::state::trees::Side;

fn node(parent: NodeId, name: &str, kind: Kind) -> Node {
    let place = Place { parent, name: name.to_owned() };
    Node { place, kind, attributes: Attributes { mode: 0o644, mtime_ns: 0 } }
}

/// A folder (2) with files 10 to 13, on which both sides agree.
fn agreed(state: &mut State) {
    let file = FileContent { content: ContentId::from_bytes([7; 32]), size: 1, cutter: Cutter::for_size(1) };
    let files = (10..14).map(|id| (NodeId(id), node(NodeId(2), &format!("f{id}"), Kind::File(file))));
    let all = std::iter::once((NodeId(2), node(ROOT, "folder", Kind::Folder))).chain(files);
    let all: Vec<_> = all.collect();
    state
        .transaction(|state| {
            for (id, value) in &all {
                state.set_side(Side::Remote, *id, Some(value.clone()))?;
                state.set_side(Side::Local, *id, Some(value.clone()))?;
                state.set_synced(*id, Some(value.clone()))?;
            }
            Ok(())
        })
        .unwrap();
}

fn gone(state: &mut State, side: Side, nodes: &[u64]) {
    let set = |state: &mut State| nodes.iter().try_for_each(|node| state.set_side(side, NodeId(*node), None));
    state.transaction(set).unwrap();
}

#[test]
fn deletes_are_told_from_as_many_others() {
    let (_folder, mut state) = fresh();
    agreed(&mut state);
    gone(&mut state, Side::Local, &[10, 11]);
    let one = state.deletes_shown().unwrap();
    assert!(one.starts_with("2-"), "{one}");
    assert_eq!(state.deletes_shown().unwrap(), one);
    let value = state.synced(NodeId(11)).unwrap();
    state.transaction(|state| state.set_side(Side::Local, NodeId(11), value)).unwrap();
    gone(&mut state, Side::Local, &[12]);
    let other = state.deletes_shown().unwrap();
    assert!(other.starts_with("2-") && other != one, "{other}");
    gone(&mut state, Side::Local, &[11]);
    assert!(state.deletes_shown().unwrap().starts_with("3-"));
}

#[test]
fn deletes_that_are_undone_come_back_from_the_other_side() {
    let (_folder, mut state) = fresh();
    agreed(&mut state);
    gone(&mut state, Side::Local, &[10, 11, 12, 13, 2]);
    assert_eq!(state.bring_back(false).unwrap(), 4);
    for id in [2, 10, 13] {
        assert!(state.synced(NodeId(id)).unwrap().is_none(), "as something new on the server: {id}");
        assert!(state.side(Side::Remote, NodeId(id)).unwrap().is_some(), "{id}");
    }
    assert_eq!(state.deletes().unwrap().max_of_sides(), 0);
}

#[test]
fn an_emptied_folder_comes_back_without_a_scan_that_saw_it_empty() {
    let (_folder, mut state) = fresh();
    agreed(&mut state);
    assert_eq!(state.bring_back(true).unwrap(), 4);
    assert!(state.side_children(Side::Local, ROOT).unwrap().is_empty());
    assert_eq!(state.side_children(Side::Remote, ROOT).unwrap(), [NodeId(2)]);
    assert_eq!(state.deletes().unwrap().max_of_sides(), 0);
}

#[test]
fn what_was_carried_out_is_counted_over_restarts() {
    let (folder, mut state) = fresh();
    agreed(&mut state);
    gone(&mut state, Side::Remote, &[10, 11]);
    state
        .record(&[Outcome::LocalGone { node: NodeId(10) }, Outcome::LocalGone { node: NodeId(11) }])
        .unwrap();
    assert_eq!(state.deletes_carried_out(), 2);
    state.close().unwrap();
    assert_eq!(State::open(folder.path()).unwrap().state.deletes_carried_out(), 2);
}
