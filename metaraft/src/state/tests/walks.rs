//! Ways up to the root folder: what one command learns of them, and how far it walks in all.

use engine::ids::EntryId;

use super::journal::folder_step;
use super::{Harness, SPACE, entry};
use crate::model::SEEN_COMMAND_ROWS_MAX;
use crate::model::command::{DataStep, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};
use crate::model::row::{EntryKind, EntryRow, ROOT_ENTRY};

/// Folders of a chain that is made at once.
const CHAIN_FOLDERS: usize = 250;

fn touch(entry: EntryId, mtime_ns: i64) -> DataStep {
    DataStep::EntrySetAttributes { namespace: SPACE, entry, mode: 0o700, mtime_ns }
}

fn move_from(row: &EntryRow, from_name: &str, to_parent: EntryId, to_name: &str) -> DataStep {
    DataStep::EntryMove {
        namespace: SPACE,
        entry: row.entry,
        from_parent: row.parent,
        from_name: from_name.to_owned(),
        to_parent,
        to_name: to_name.to_owned(),
        replace: false,
    }
}

fn move_to(row: &EntryRow, to_parent: EntryId) -> DataStep {
    move_from(row, &row.name, to_parent, &row.name)
}

fn delete(row: &EntryRow) -> DataStep {
    let (entry, parent, name) = (row.entry, row.parent, row.name.clone());
    DataStep::EntryDelete { namespace: SPACE, entry, parent, name, recursive: true }
}

fn restore(trash: u64, name: &str) -> DataStep {
    DataStep::TrashRestore { namespace: SPACE, trash, to_parent: ROOT_ENTRY, to_name: name.to_owned() }
}

/// Each as an item of one command.
fn each(harness: &mut Harness, items: Vec<Vec<DataStep>>) -> Vec<Result<Vec<StepOutcome>, StepError>> {
    match harness.done(DataStep::Each { items }) {
        StepOutcome::Each(results) => results,
        other => panic!("{other:?}"),
    }
}

/// A chain of folders in the root folder: the first and the last one.
fn chain(harness: &mut Harness, name: &str, count: usize) -> (EntryRow, EntryId) {
    let top = harness.create(ROOT_ENTRY, name, EntryKind::Folder).unwrap();
    let mut last = top.entry;
    for _ in 1..count {
        last = harness.folder(last, "d");
    }
    (top, last)
}

/// A chain that is deeper than any that is made at once: others were moved under it, one after the other.
fn deep_chain(harness: &mut Harness, chains: usize) -> (EntryRow, EntryId) {
    let (mut top, deepest) = chain(harness, "0", CHAIN_FOLDERS);
    for number in 1..chains {
        let (above, last) = chain(harness, &number.to_string(), CHAIN_FOLDERS);
        harness.done(move_to(&top, last));
        top = above;
    }
    (top, deepest)
}

#[test]
fn a_command_walks_each_way_up_once_and_only_so_far_in_all() {
    let mut harness = Harness::data();
    let chains = 16;
    let (top, deepest) = deep_chain(&mut harness, chains);
    let often = (0..1000).map(|mtime_ns| vec![touch(deepest, mtime_ns)]).collect();
    assert!(each(&mut harness, often).iter().all(Result::is_ok));

    // Each of these moves the whole chain, so that nothing is known of the way up any more.
    let mut items = Vec::new();
    for number in 0..40 {
        let before = if number == 0 { top.name.clone() } else { format!("top {number}") };
        items.push(vec![move_from(&top, &before, ROOT_ENTRY, &format!("top {}", number + 1))]);
        items.push(vec![touch(deepest, 5000 + number)]);
    }
    let results = each(&mut harness, items);
    let (moves, touches): (Vec<_>, Vec<_>) =
        results.iter().enumerate().partition(|(number, _)| number % 2 == 0);
    assert!(moves.iter().all(|(_, result)| result.is_ok()), "{moves:?}");
    let too_far = StepError::Changed { what: "too much to tell where the entry is".to_owned() };
    let walks = SEEN_COMMAND_ROWS_MAX / (chains * CHAIN_FOLDERS - 1);
    for (number, (_, result)) in touches.into_iter().enumerate() {
        if number < walks {
            assert!(result.is_ok(), "{number} {result:?}");
        } else {
            assert_eq!(*result, Err(too_far.clone()), "{number}");
        }
    }
    // In another command it goes.
    harness.done(touch(deepest, 9));
}

#[test]
fn what_a_command_learned_of_a_way_up_hides_no_later_change_of_its_own() {
    let mut harness = Harness::data();
    let (top, last) = chain(&mut harness, "top", 100);
    let (other, below) = chain(&mut harness, "other", 200);
    let results = each(
        &mut harness,
        vec![
            vec![folder_step(last, "a")],
            // Deeper than folders may be, by now.
            vec![move_to(&top, below)],
            vec![folder_step(last, "b")],
            // Into itself, by now.
            vec![move_to(&other, last)],
        ],
    );
    assert!(results[0].is_ok() && results[1].is_ok());
    assert!(matches!(results[2], Err(StepError::TooDeep { .. })), "{:?}", results[2]);
    assert!(results[3].is_err());

    let mut harness = Harness::data();
    let (a, a_last) = chain(&mut harness, "a", 3);
    let (b, b_last) = chain(&mut harness, "b", 3);
    let results = each(
        &mut harness,
        vec![
            vec![touch(a_last, 2), touch(b_last, 2), folder_step(a_last, "x"), folder_step(b_last, "x")],
            vec![move_to(&a, b_last)],
            vec![move_to(&b, a_last)],
            // Now that the way up is known as well.
            vec![folder_step(a_last, "y")],
            vec![move_to(&b, a_last)],
        ],
    );
    assert!(results[0].is_ok() && results[1].is_ok() && results[3].is_ok());
    assert_eq!((&results[2], &results[4]), (&Err(StepError::Cycle), &Err(StepError::Cycle)));
}

#[test]
fn what_is_below_a_folder_that_goes_or_comes_back_is_in_the_tree_only_while_it_is() {
    let mut harness = Harness::data();
    let (top, last) = chain(&mut harness, "top", 5);
    let leaf = harness.folder(last, "leaf");
    let bad = || touch(EntryId(9999), 0);
    let results = each(
        &mut harness,
        vec![
            vec![touch(leaf, 2)],
            // Taken back: it is still there.
            vec![delete(&top), bad()],
            vec![touch(leaf, 3)],
            vec![delete(&top)],
            vec![touch(leaf, 4)],
            // It is learned of while it is back, and then that is taken back.
            vec![restore(1, "back"), touch(leaf, 5), bad()],
            vec![touch(leaf, 6)],
            vec![restore(1, "back")],
            vec![touch(leaf, 7)],
        ],
    );
    let went: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(went, [true, false, true, true, false, false, false, true, true]);
}

#[test]
fn what_a_command_learned_of_returns_hides_none_of_its_own() {
    let mut harness = Harness::data();
    let outer = harness.create(ROOT_ENTRY, "outer", EntryKind::Folder).unwrap();
    let inner = harness.create(outer.entry, "inner", EntryKind::Folder).unwrap();
    let [one, two, three] =
        ["one", "two", "three"].map(|name| harness.create(inner.entry, name, EntryKind::Folder).unwrap());
    let Reply::Sequences(sequences) = harness.ask(&Query::Sequences { namespaces: vec![SPACE] }) else {
        panic!("no number");
    };
    let since = sequences[0].unwrap();
    let results = each(
        &mut harness,
        vec![
            vec![move_to(&one, ROOT_ENTRY)],
            vec![delete(&outer)],
            vec![restore(1, "outer")],
            vec![move_to(&two, ROOT_ENTRY)],
            vec![move_to(&three, ROOT_ENTRY)],
        ],
    );
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let query = Query::Changes { namespace: SPACE, position: since, since, count_max: 10 };
    let Reply::Changes { changes, .. } = harness.ask(&query) else { panic!("no changes") };
    let told: Vec<_> = changes.iter().map(|change| (change.entry, change.list_below)).collect();
    let expected = [(one.entry, false), (outer.entry, true), (two.entry, true), (three.entry, true)];
    assert_eq!(told, expected);
}

#[test]
fn a_link_deep_down_is_pointed_elsewhere_often_in_one_command() {
    let mut harness = Harness::data();
    let (_top, last) = chain(&mut harness, "top", 200);
    let link = harness.create(last, "l", EntryKind::Symlink(b"0".to_vec())).unwrap();
    let target = |number: usize| number.to_string().into_bytes();
    let items = (0..1000).map(|number| {
        vec![DataStep::SymlinkRetarget {
            namespace: SPACE,
            entry: link.entry,
            target_before: target(number),
            target: target(number + 1),
            mode: 0o777,
            mtime_ns: 2,
        }]
    });
    let results = each(&mut harness, items.collect());
    assert!(results.iter().all(Result::is_ok));
    let moved = harness.step(move_to(&link, ROOT_ENTRY));
    assert_eq!(entry(moved).unwrap().kind, EntryKind::Symlink(b"1000".to_vec()));
}
