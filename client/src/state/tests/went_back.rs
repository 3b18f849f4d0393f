//! What is forgotten once the server went back, and what is found again when it is listed anew.

use proto::v1;

use super::fresh;
use super::journal::{entry, folder_entry};
use crate::planner::model::{Kind, NodeId, ROOT};
use crate::state::database::State;
use crate::state::excluded::ExclusionList;
use crate::state::reached::Reached;
use crate::state::remote::{Finished, RemotePage};
use crate::state::trees::Side;

const TOP: u64 = 1;

fn at(sequence: u64, mut entry: v1::Entry) -> v1::Entry {
    entry.sequence = sequence;
    entry
}

fn page(entries: Vec<v1::Entry>) -> RemotePage {
    let sequence = entries.iter().map(|entry| entry.sequence).max().unwrap_or_default();
    let changes = entries.into_iter().map(|entry| v1::Change {
        entry_id: entry.id,
        entry: Some(entry),
        list_below: false,
    });
    RemotePage { changes: changes.collect(), reached: Reached::at(sequence), more: false }
}

/// Takes entries in, and has both sides agree on all of them.
fn agree(state: &mut State, entries: Vec<v1::Entry>) {
    let ids: Vec<u64> = entries.iter().map(|entry| entry.id).collect();
    state.apply_changes(&page(entries)).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    for entry in ids {
        let node = node(state, entry);
        let value = state.side(Side::Remote, node).unwrap();
        state.set_side(Side::Local, node, value.clone()).unwrap();
        state.set_synced(node, value).unwrap();
    }
}

fn node(state: &State, entry: u64) -> NodeId {
    state.node_of_entry(entry).unwrap().unwrap()
}

fn content(state: &State, side: Side, node: NodeId) -> Option<u8> {
    match state.side(side, node).unwrap()?.kind {
        Kind::File(file) => Some(file.content.as_bytes()[0]),
        Kind::Folder | Kind::Symlink(_) => None,
    }
}

/// Two histories that are the same up to 5. A folder and two files of the beginning, of which one was edited later; one
/// file that was made later; one that the server does not tell of any more.
fn before() -> (tempfile::TempDir, State) {
    let (folder, mut state) = fresh();
    state.set_root_entry(TOP, 0).unwrap();
    agree(
        &mut state,
        vec![
            at(1, folder_entry(2, TOP, "folder")),
            at(2, entry(3, 2, "old", 1)),
            at(3, entry(4, 2, "edited", 1)),
            at(4, entry(6, TOP, "untold", 4)),
        ],
    );
    agree(&mut state, vec![at(9, entry(4, 2, "edited", 2)), at(10, entry(5, TOP, "made", 3))]);
    (folder, state)
}

fn listed_anew() -> Vec<v1::Entry> {
    vec![
        at(1, folder_entry(2, TOP, "folder")),
        at(2, entry(3, 2, "old", 1)),
        at(3, entry(4, 2, "edited", 1)),
        // The id was issued again.
        at(6, entry(5, TOP, "other", 8)),
    ]
}

fn check_nothing_is_a_delete(state: &State) {
    for id in state.dirty().unwrap() {
        let both = [Side::Local, Side::Remote].iter().all(|side| state.side(*side, id).unwrap().is_some());
        assert!(both || state.synced(id).unwrap().is_none(), "node {} looks deleted", id.0);
    }
}

#[test]
fn what_was_said_within_the_common_beginning_holds_and_the_rest_is_forgotten() {
    let (_folder, mut state) = before();
    let [old, edited, made, untold] = [3, 4, 5, 6].map(|entry| node(&state, entry));
    assert!(state.note_answered(&state.known().unwrap(), &Reached::at(11)).unwrap());
    assert!(state.answered().unwrap().is_some());
    state.forget_history(5).unwrap();
    assert!(state.answered().unwrap().is_none() && state.remote_position().unwrap().cursor.is_empty());
    assert!(state.was_reset().unwrap(), "what is replaced goes to the trash");
    // The listing breaks off once, and is begun again.
    state.begin_relist(true).unwrap();
    state.apply_changes(&page(vec![at(3, entry(4, 2, "edited", 1))])).unwrap();
    state.begin_relist(true).unwrap();
    state.apply_changes(&page(listed_anew())).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    assert_eq!(state.went_back().unwrap(), None);

    assert_eq!(node(&state, 3), old);
    assert!(state.synced(old).unwrap().is_some() && !state.dirty().unwrap().contains(&old));
    // The server has the version that was replaced: what is here is an edit of it.
    assert_eq!(node(&state, 4), edited);
    assert_eq!(
        (content(&state, Side::Remote, edited), content(&state, Side::Local, edited)),
        (Some(1), Some(2))
    );
    assert_eq!(state.synced(edited).unwrap(), state.side(Side::Remote, edited).unwrap());
    assert_eq!(state.side(Side::Remote, edited).unwrap().unwrap().place.parent, node(&state, 2));
    // One file does not become another.
    assert_ne!(node(&state, 5), made);
    assert_eq!((content(&state, Side::Remote, made), content(&state, Side::Local, made)), (None, Some(3)));
    assert_eq!(content(&state, Side::Local, node(&state, 5)), None);
    assert_eq!(
        (content(&state, Side::Remote, untold), content(&state, Side::Local, untold)),
        (None, Some(4))
    );
    check_nothing_is_a_delete(&state);
}

#[test]
fn where_the_histories_part_before_all_that_is_known_nothing_of_it_counts() {
    let (_folder, mut state) = before();
    let [folder, edited] = [2, 4].map(|entry| node(&state, entry));
    state.forget_history(0).unwrap();
    state.begin_relist(true).unwrap();
    state.apply_changes(&page(listed_anew())).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    assert!(node(&state, 2) != folder && node(&state, 4) != edited);
    assert_eq!(content(&state, Side::Local, edited), Some(2));
    assert_eq!(state.side_children(Side::Local, ROOT).unwrap().len(), 3);
    check_nothing_is_a_delete(&state);
}

#[test]
fn a_folder_that_is_excluded_stays_so_and_none_is_that_took_its_id() {
    let (_folder, mut state) = before();
    agree(&mut state, vec![at(11, folder_entry(7, TOP, "large")), at(12, folder_entry(8, TOP, "gone"))]);
    for (entry, path) in [(2, "folder"), (7, "large"), (8, "gone")] {
        state.exclude(entry, path).unwrap();
    }
    assert_eq!(state.exclusion_list().unwrap(), ExclusionList::Right);
    state.forget_history(5).unwrap();
    assert_eq!(
        state.exclusion_list().unwrap(),
        ExclusionList::Void,
        "the list beside the marker has void ids"
    );
    state.begin_relist(true).unwrap();
    let mut entries = listed_anew();
    entries.extend([at(7, folder_entry(8, TOP, "large")), at(8, folder_entry(7, TOP, "another"))]);
    state.apply_changes(&page(entries)).unwrap();
    state.finish_batch().unwrap();
    let excluded = state.excluded().unwrap();
    assert_eq!(excluded, [(2, "folder".to_owned()), (8, "large".to_owned())]);
    assert_eq!(state.exclusion_list().unwrap(), ExclusionList::Outdated);
}
