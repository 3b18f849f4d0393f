//! Answers of this device's calls against the journal's pages: either may be newer than the other.

use proto::v1;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::journal::{SYNC_ROOT, Server, catch_up, compare, entry, folder_entry, follow, position, relist};
use super::{fresh, seed};
use crate::planner::model::{NodeId, ROOT};
use crate::state::database::State;
use crate::state::reached::Reached;
use crate::state::record::{Outcome, Part};
use crate::state::remote::{Finished, RemotePage, node_of};
use crate::state::trees::Side;

/// Of the random test.
const ROUNDS: u64 = 20;

/// A call of this device, on what it knows, as far as the server takes it. Gives what is to be recorded.
fn random_call(state: &State, server: &mut Server, random: &mut SmallRng) -> Option<Outcome> {
    let known = |id: &u64| {
        let node = state.node_of_entry(*id).unwrap()?;
        let place = state.side(Side::Remote, node).unwrap()?.place;
        let entry = &server.entries[id];
        let parent = state.remote_facts(place.parent).unwrap()?.entry;
        ((parent, &place.name) == (entry.parent, &entry.name)).then_some((*id, node))
    };
    let (folders, live) = (server.folders(), server.live());
    let inside: Vec<u64> = live.iter().copied().filter(|id| !server.is_below(SYNC_ROOT, *id)).collect();
    let there = |id: &u64| {
        let node = state.node_of_entry(*id).unwrap()?;
        state.side(Side::Remote, node).unwrap().map(|_| (*id, node))
    };
    // Wherever they are by now.
    let anywhere: Vec<(u64, NodeId)> = inside.iter().filter_map(there).collect();
    let live: Vec<(u64, NodeId)> = inside.iter().filter_map(known).collect();
    let targets: Vec<u64> = folders
        .into_iter()
        .filter(|id| {
            *id == SYNC_ROOT || server.is_below(*id, SYNC_ROOT) && live.iter().any(|(known, _)| known == id)
        })
        .collect();
    let parent = *targets.choose(random)?;
    let name = server.free_name(parent, random);
    if random.random_bool(0.3)
        && let Some((id, node)) = anywhere.choose(random).copied()
    {
        server.entries.get_mut(&id).unwrap().mode ^= 0o10;
        server.changed(id);
        return Some(Outcome::Remote { node, entry: server.entries[&id].clone(), part: Part::Attributes });
    }
    match (random.random_range(0..8), live.choose(random).copied()) {
        (0..=1, _) => {
            let made = match random.random_bool(0.5) {
                true => folder_entry(0, parent, &name),
                false => entry(0, parent, &name, random.random()),
            };
            let id = server.create(made);
            let node = state.number_for_split();
            Some(Outcome::Remote { node, entry: server.entries[&id].clone(), part: Part::Whole })
        }
        (2..=6, Some((id, node))) if !server.is_below(parent, id) => {
            server.moved(id, parent, &name);
            Some(Outcome::Remote { node, entry: server.entries[&id].clone(), part: Part::Place })
        }
        (7, Some((id, node))) => {
            let trashed = server.entries.remove(&id).unwrap();
            server.trashed.insert(id, trashed);
            server.changed(id);
            Some(Outcome::RemoteGone { node, entry: Some(server.trashed[&id].clone()) })
        }
        _ => None,
    }
}

/// Answers to calls, and pages, come as late as they like, but each in their order.
#[test]
fn answers_and_pages_that_overtake_each_other_end_at_the_servers_tree() {
    for round in 0..ROUNDS {
        let seed = seed().wrapping_add(round);
        let mut random = SmallRng::seed_from_u64(seed);
        let (folder, mut state) = fresh();
        let mut server = Server::new();
        state.set_root_entry(SYNC_ROOT, 0).unwrap();
        relist(&mut state, &server);
        let mut calls: Vec<Outcome> = Vec::new();
        let mut page: Option<RemotePage> = None;
        for step in 0..400 {
            let last = step % 40 > 30;
            match random.random_range(0..6) {
                0..=1 if !last => server.random_change(&mut random),
                // The executor works on one thing once at a time.
                2 if !last => {
                    let call = random_call(&state, &mut server, &mut random);
                    let of = |outcome: &Outcome| match outcome {
                        Outcome::Remote { node, .. } | Outcome::RemoteGone { node, .. } => Some(*node),
                        _ => None,
                    };
                    calls.retain(|earlier| {
                        let same = call.as_ref().and_then(of) == of(earlier);
                        if same {
                            state.record(std::slice::from_ref(earlier)).unwrap();
                        }
                        !same
                    });
                    calls.extend(call);
                }
                3 if !calls.is_empty() => {
                    let answered = calls.swap_remove(random.random_range(0..calls.len()));
                    state.record(&[answered]).unwrap();
                }
                _ => match page.take() {
                    None => page = Some(server.page(position(&state), random.random_range(1..20))),
                    Some(page) => {
                        state.apply_changes(&page).unwrap();
                        if !page.more {
                            for wanted in state.listings_wanted().unwrap() {
                                state.apply_listing(wanted, &server.below(wanted), true).unwrap();
                            }
                            if !calls.is_empty() && random.random_bool(0.2) {
                                let answered = calls.swap_remove(random.random_range(0..calls.len()));
                                state.record(&[answered]).unwrap();
                            }
                            assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
                        }
                    }
                },
            }
            if step % 40 == 39 {
                calls.drain(..).for_each(|outcome| drop(state.record(&[outcome]).unwrap()));
                catch_up(&mut state, folder.path(), &mut server, &mut random);
                catch_up(&mut state, folder.path(), &mut server, &mut random);
                page = None;
                let gone: Vec<NodeId> = state.dirty().unwrap();
                let gone = gone.into_iter().filter(|node| state.side(Side::Remote, *node).unwrap().is_none());
                let gone: Vec<Outcome> = gone.map(|node| Outcome::Agreed { node }).collect();
                state.record(&gone).unwrap();
                compare(&state, &server, seed);
            }
        }
    }
}

#[test]
fn a_page_read_before_a_call_does_not_undo_it() {
    let (_folder, mut state) = fresh();
    let mut server = Server::new();
    state.set_root_entry(SYNC_ROOT, 0).unwrap();
    let kept = server.create(entry(0, SYNC_ROOT, "f", 1));
    let removed = server.create(entry(0, SYNC_ROOT, "g", 1));
    let stale = server.page(0, 100);
    // A call of this device changes one and deletes the other, and is recorded before the page is taken in.
    let mut first = server.entries[&kept].clone();
    state.apply_changes(&stale).unwrap();
    state.finish_batch().unwrap();
    let (node, gone) =
        (state.node_of_entry(kept).unwrap().unwrap(), state.node_of_entry(removed).unwrap().unwrap());
    first.version = 2;
    first.name = "renamed".to_owned();
    first.sequence = server.sequence + 1;
    state.record(&[Outcome::Remote { node, entry: first.clone(), part: Part::Place }]).unwrap();
    let was = server.entries[&removed].clone();
    state.record(&[Outcome::RemoteGone { node: gone, entry: Some(was) }]).unwrap();
    state.apply_changes(&stale).unwrap();
    state.finish_batch().unwrap();
    assert_eq!(state.side_at(Side::Remote, ROOT, "renamed").unwrap(), Some(node));
    assert_eq!(state.side_children(Side::Remote, ROOT).unwrap(), [node]);
    assert_eq!(state.remote_facts(node).unwrap().unwrap().version, 2);
}

#[test]
fn news_of_an_own_creation_before_its_answer_make_one_node() {
    let (_folder, mut state) = fresh();
    state.set_root_entry(SYNC_ROOT, 0).unwrap();
    let made = folder_entry(70, SYNC_ROOT, "d");
    let inside = entry(71, 70, "x", 1);
    follow(&mut state, vec![made.clone(), inside]);
    let mine = NodeId(5_000);
    state.record(&[Outcome::Remote { node: mine, entry: made, part: Part::Whole }]).unwrap();
    assert_eq!(state.node_of_entry(70).unwrap(), Some(mine));
    assert_eq!(state.side_children(Side::Remote, ROOT).unwrap(), [mine]);
    assert_eq!(state.side_children(Side::Remote, mine).unwrap().len(), 1);
}

#[test]
fn what_came_back_before_an_answer_is_not_lost() {
    let (_folder, mut state) = fresh();
    state.set_root_entry(SYNC_ROOT, 0).unwrap();
    let at = |id: u64, name: &str, sequence: u64| v1::Entry { sequence, ..entry(id, SYNC_ROOT, name, 1) };
    // It was deleted on the server; while this device makes it anew, by another id, the old one is restored.
    follow(&mut state, vec![at(80, "f", 5)]);
    let node = state.node_of_entry(80).unwrap().unwrap();
    state.record(&[Outcome::Remote { node, entry: at(81, "g", 6), part: Part::Whole }]).unwrap();
    let old = state.node_of_entry(80).unwrap().expect("the old one is known");
    assert_ne!(old, node);
    assert_eq!(state.node_of_entry(81).unwrap(), Some(node));
    assert_eq!(state.side_at(Side::Remote, ROOT, "f").unwrap(), Some(old));
    assert_eq!(state.side_at(Side::Remote, ROOT, "g").unwrap(), Some(node));
    // The answer to a delete comes after the news that it is back.
    follow(&mut state, vec![at(80, "f", 9)]);
    state.record(&[Outcome::RemoteGone { node: old, entry: Some(at(80, "f", 8)) }]).unwrap();
    assert_eq!(state.side_at(Side::Remote, ROOT, "f").unwrap(), Some(old));
    // Not so if it is not.
    state.record(&[Outcome::RemoteGone { node: old, entry: Some(at(80, "f", 9)) }]).unwrap();
    assert_eq!(state.side_at(Side::Remote, ROOT, "f").unwrap(), None);
}

fn change(entry: v1::Entry) -> v1::Change {
    v1::Change { entry_id: entry.id, entry: Some(entry), list_below: false }
}

fn page(changes: Vec<v1::Change>, sequence: u64, more: bool) -> RemotePage {
    RemotePage { changes, reached: Reached::at(sequence), more }
}

#[test]
fn an_answer_between_two_pages_and_the_news_after_it_are_of_one_node() {
    let (_folder, mut state) = fresh();
    state.set_root_entry(SYNC_ROOT, 0).unwrap();
    let at = |id: u64, name: &str, sequence: u64| v1::Entry { sequence, ..entry(id, SYNC_ROOT, name, 1) };
    let mine = state.number_for_split();
    let here = node_of(&at(70, "f", 100), ROOT);
    state.transaction(|state| state.set_side(Side::Local, mine, here.clone())).unwrap();
    // Made here as 70, and renamed by another before the answer comes: the first page is past the making, and does not
    // have the renaming.
    state.apply_changes(&page(vec![change(at(69, "other", 110))], 110, true)).unwrap();
    state.record(&[Outcome::Remote { node: mine, entry: at(70, "f", 100), part: Part::Whole }]).unwrap();
    state.apply_changes(&page(vec![change(at(70, "renamed", 120))], 120, false)).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    assert_eq!(state.node_of_entry(70).unwrap(), Some(mine));
    assert_eq!(state.side_at(Side::Remote, ROOT, "renamed").unwrap(), Some(mine));
}

#[test]
fn what_an_answer_puts_into_a_folder_that_comes_back_outlives_the_news_that_it_was_gone() {
    let (_folder, mut state) = fresh();
    state.set_root_entry(SYNC_ROOT, 0).unwrap();
    let inside = entry(62, 61, "x", 1);
    let all = vec![folder_entry(60, SYNC_ROOT, "b"), folder_entry(61, SYNC_ROOT, "a"), inside.clone()];
    follow(&mut state, all);
    let [a, x] = [61, 62].map(|id| state.node_of_entry(id).unwrap().unwrap());
    // The page was read when b was in the trash. It was restored, and a moved into it by this device.
    let gone = v1::Change { entry_id: 60, entry: None, list_below: false };
    state.apply_changes(&page(vec![gone], 103, false)).unwrap();
    let moved = v1::Entry { sequence: 105, ..folder_entry(61, 60, "a") };
    state.record(&[Outcome::Remote { node: a, entry: moved.clone(), part: Part::Place }]).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    assert!(state.side(Side::Remote, a).unwrap().is_some() && state.side(Side::Remote, x).unwrap().is_some());
    let back = v1::Entry { sequence: 104, ..folder_entry(60, SYNC_ROOT, "b") };
    state.apply_changes(&page(vec![change(back), change(moved.clone())], 105, false)).unwrap();
    assert_eq!(state.listings_wanted().unwrap(), [60]);
    state.apply_listing(60, &[moved, inside], true).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    assert_eq!(state.path(Side::Remote, x).unwrap().as_deref(), Some("b/a/x"));
}

#[test]
fn what_is_in_a_folder_that_an_answer_puts_where_nothing_is_known_is_kept() {
    let (_folder, mut state) = fresh();
    state.set_root_entry(SYNC_ROOT, 0).unwrap();
    follow(&mut state, vec![folder_entry(70, SYNC_ROOT, "c")]);
    let c = state.node_of_entry(70).unwrap().unwrap();
    // Another made x in c (3), made y (4) and moved c into it (5); then this device changed c (6). The page ends at 3.
    let changed = v1::Entry { sequence: 6, ..folder_entry(70, 71, "c") };
    state.record(&[Outcome::Remote { node: c, entry: changed.clone(), part: Part::Attributes }]).unwrap();
    let x = v1::Entry { sequence: 3, ..entry(72, 70, "x", 1) };
    state.apply_changes(&page(vec![change(x)], 3, false)).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    let x = state.node_of_entry(72).unwrap().expect("x makes no news of its own again");
    assert!(state.side(Side::Remote, x).unwrap().is_some());
    let y = v1::Entry { sequence: 4, created_ms: 10, changed_ms: 10, ..folder_entry(71, SYNC_ROOT, "y") };
    state.apply_changes(&page(vec![change(y), change(changed)], 6, false)).unwrap();
    assert_eq!(state.listings_wanted().unwrap(), [], "y is new");
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    assert_eq!(state.path(Side::Remote, x).unwrap().as_deref(), Some("y/c/x"));
}

#[test]
fn what_is_in_folders_that_an_answer_puts_in_a_circle_is_kept() {
    let (_folder, mut state) = fresh();
    state.set_root_entry(SYNC_ROOT, 0).unwrap();
    let folders = [folder_entry(60, SYNC_ROOT, "a"), folder_entry(61, SYNC_ROOT, "b")];
    let files = [entry(62, 60, "in a", 1), entry(63, 61, "in b", 1)];
    follow(&mut state, folders.into_iter().chain(files).collect());
    let [a, in_a, in_b] = [60, 62, 63].map(|id| state.node_of_entry(id).unwrap().unwrap());
    // Another moved b into a (12) and out again (14); then this device moved a into b (15). The page ends at 12.
    let moved = v1::Entry { sequence: 15, ..folder_entry(60, 61, "a") };
    state.record(&[Outcome::Remote { node: a, entry: moved.clone(), part: Part::Place }]).unwrap();
    let there = v1::Entry { sequence: 12, ..folder_entry(61, 60, "b") };
    state.apply_changes(&page(vec![change(there)], 12, false)).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    assert_eq!(state.path(Side::Remote, in_a).unwrap(), None, "in a circle");
    let back = v1::Entry { sequence: 14, ..folder_entry(61, SYNC_ROOT, "b") };
    state.apply_changes(&page(vec![change(back), change(moved)], 15, false)).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    assert_eq!(state.path(Side::Remote, in_a).unwrap().as_deref(), Some("b/a/in a"));
    assert_eq!(state.path(Side::Remote, in_b).unwrap().as_deref(), Some("b/in b"));
}

/// A folder of the server, 60, with x in it, 61, that another moved out of the root (4), and its node; news are in up to
/// 5. This device, which had not heard of it, moves it in again (7).
fn moved_out() -> (tempfile::TempDir, State, NodeId, v1::Entry, v1::Entry) {
    let (folder, mut state) = fresh();
    state.set_root_entry(SYNC_ROOT, 0).unwrap();
    let inside = entry(61, 60, "x", 1);
    follow(&mut state, vec![folder_entry(60, SYNC_ROOT, "a"), inside.clone()]);
    let node = state.node_of_entry(60).unwrap().unwrap();
    let out = v1::Entry { sequence: 4, ..folder_entry(60, 9, "a") };
    state.apply_changes(&page(vec![change(out)], 5, false)).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    assert_eq!(state.side(Side::Remote, node).unwrap(), None);
    let back = v1::Entry { sequence: 7, ..folder_entry(60, SYNC_ROOT, "a") };
    (folder, state, node, back, inside)
}

/// The news that the folder is back have what is in it listed, once.
fn assert_listed(state: &mut State, back: v1::Entry, inside: v1::Entry) {
    state.apply_changes(&page(vec![change(back)], 7, false)).unwrap();
    assert_eq!(state.listings_wanted().unwrap(), [60]);
    state.apply_listing(60, &[inside], true).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    assert_eq!(state.listings_wanted().unwrap(), [], "once");
    let x = state.node_of_entry(61).unwrap().unwrap();
    assert_eq!(state.path(Side::Remote, x).unwrap().as_deref(), Some("a/x"));
}

#[test]
fn what_is_in_a_folder_that_an_answer_brings_back_after_it_was_moved_out_is_asked_for() {
    let (_folder, mut state, node, back, inside) = moved_out();
    state.record(&[Outcome::Remote { node, entry: back.clone(), part: Part::Place }]).unwrap();
    assert_listed(&mut state, back, inside);
}

#[test]
fn a_listing_that_an_answer_asks_for_after_they_were_made_comes_with_the_next_batch() {
    let (_folder, mut state, node, back, inside) = moved_out();
    // The answer comes between the listings of another batch and its end.
    state.apply_changes(&page(vec![change(entry(69, SYNC_ROOT, "other", 1))], 6, false)).unwrap();
    assert_eq!(state.listings_wanted().unwrap(), []);
    state.record(&[Outcome::Remote { node, entry: back.clone(), part: Part::Place }]).unwrap();
    assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
    assert_listed(&mut state, back, inside);
}
