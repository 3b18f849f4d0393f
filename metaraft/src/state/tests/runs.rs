//! Journals that go back to an older state: who has seen more is told so, and up to where both histories are the same.

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Harness, SPACE};
use crate::kv::MemoryStore;
use crate::model::command::{DataStep, StepError};
use crate::model::journal::{JournalRun, Reign, Seen};
use crate::model::query::{Query, Reply};
use crate::model::row::{EntryKind, ROOT_ENTRY};

fn reign(term: u64, mark: u64) -> Reign {
    Reign { term, mark }
}

/// Asks with a place in the journal; gives the next one, or how far both histories are the same.
fn ask(harness: &Harness, seen: &Seen) -> Result<Seen, u64> {
    let (number, runs) = (seen.number, seen.runs.clone());
    let query =
        Query::ChangesAfter { namespace: SPACE, position: number, since: number, runs, count_max: 1_000 };
    match harness.ask(&query) {
        Reply::ChangesAfter { position, since, runs, more, .. } => {
            assert!(!more && position == since);
            Ok(Seen { number: position, runs: Some(runs) })
        }
        Reply::WentBack { common } => Err(common),
        other => panic!("{other:?}"),
    }
}

/// Lists the top folder with a place in the journal; gives the names and the place by now, or how far both histories are the
/// same.
fn list(harness: &Harness, seen: Option<&Seen>) -> Result<(Vec<String>, Seen), u64> {
    let query = Query::BelowAt {
        namespace: SPACE,
        top: ROOT_ENTRY,
        position: Vec::new(),
        seen: seen.cloned(),
        count_max: 1_000,
    };
    match harness.ask(&query) {
        Reply::BelowAt { page: Some(page), number, runs } => {
            let names = page.entries.into_iter().map(|row| row.name).collect();
            Ok((names, Seen { number, runs: Some(runs) }))
        }
        Reply::WentBack { common } => Err(common),
        other => panic!("{other:?}"),
    }
}

fn nothing() -> Seen {
    Seen { number: 0, runs: Some(Vec::new()) }
}

#[test]
fn a_restored_copy_is_told_from_what_it_was_copied_from_though_term_and_numbers_agree() {
    let mut harness = Harness::data();
    harness.reign = reign(1, 11);
    harness.folder(ROOT_ENTRY, "a");
    let copy = harness.store.clone();
    harness.folder(ROOT_ENTRY, "b");
    let seen = ask(&harness, &nothing()).unwrap();
    assert_eq!((seen.number, ask(&harness, &seen)), (2, Ok(seen.clone())));
    // Back, and on to the same number and beyond, in a term of the same number.
    harness.store = copy;
    harness.reign = reign(1, 12);
    assert_eq!(ask(&harness, &seen), Err(1), "behind it");
    for name in ["c", "d"] {
        harness.folder(ROOT_ENTRY, name);
        assert_eq!(ask(&harness, &seen), Err(1), "at it, and past it");
    }
    assert_eq!(list(&harness, Some(&seen)), Err(1), "a folder of that id may be another one");
    let (names, place) = list(&harness, None).unwrap();
    assert_eq!((names, place.number), (["a", "c", "d"].map(str::to_owned).to_vec(), 3));
    assert_eq!(list(&harness, Some(&place)).unwrap().1, place);
    assert_eq!(ask(&harness, &place), Ok(place), "a listing proves as much as a page of the journal");
    let guard = |seen| DataStep::JournalGuard { namespace: SPACE, seen };
    assert!(matches!(harness.step(guard(seen)), Err(StepError::Changed { .. })));
    let fresh = ask(&harness, &nothing()).unwrap();
    harness.done(guard(fresh));
}

#[test]
fn places_of_before_runs_were_recorded_are_taken_as_they_were() {
    let mut harness = Harness::data();
    harness.folder(ROOT_ENTRY, "a");
    let old = Seen { number: 1, runs: None };
    assert_eq!(ask(&harness, &old), Ok(Seen { number: 1, runs: Some(Vec::new()) }));
    harness.reign = reign(5, 3);
    harness.folder(ROOT_ENTRY, "b");
    let run = JournalRun { first: 2, reign: reign(5, 3) };
    let next = Seen { number: 2, runs: Some(vec![run]) };
    assert_eq!(ask(&harness, &old), Ok(next.clone()));
    assert_eq!(ask(&harness, &Seen { number: 1, runs: Some(Vec::new()) }), Ok(next));
    assert_eq!(ask(&harness, &Seen { number: 3, runs: None }), Err(0), "a number that was never reached");
    let unrecorded = Seen { number: 2, runs: Some(Vec::new()) };
    assert_eq!(ask(&harness, &unrecorded), Err(0), "this number was issued with a record");
}

#[test]
fn a_change_that_is_refused_leaves_no_run_behind() {
    let mut harness = Harness::data();
    harness.reign = reign(1, 1);
    harness.folder(ROOT_ENTRY, "a");
    let before = harness.store.clone();
    harness.reign = reign(2, 2);
    let twice = |name: &str| DataStep::EntryCreate {
        namespace: SPACE,
        parent: ROOT_ENTRY,
        name: name.to_owned(),
        kind: EntryKind::Folder,
        mode: 0o755,
        mtime_ns: 1,
        existing: crate::model::command::OnExisting::Refuse,
    };
    // The first item is undone with its run, the second one notes it.
    let items = vec![vec![twice("b"), twice("b")], vec![twice("c")]];
    harness.done(DataStep::Each { items });
    let seen = ask(&harness, &nothing()).unwrap();
    let runs = seen.runs.clone().unwrap();
    assert_eq!(runs[0], JournalRun { first: 2, reign: reign(2, 2) });
    harness.store = before;
    harness.reign = reign(2, 3);
    harness.folder(ROOT_ENTRY, "d");
    assert_eq!(ask(&harness, &seen), Err(1));
}

/// A journal as it was at some time: its rows, and which change each of its numbers was.
#[derive(Clone)]
struct Kept {
    store: MemoryStore,
    changes: Vec<u64>,
}

#[test]
fn random_histories_are_told_apart_exactly() {
    let seed: u64 = rand::random();
    eprintln!("seed={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut parted, mut exact) = (0, 0);
    for _ in 0..300 {
        let mut harness = Harness::data();
        let mut now = Kept { store: harness.store.clone(), changes: Vec::new() };
        let (mut kept, mut places) = (vec![now.clone()], Vec::new());
        let mut drawn = 0;
        let mut begin = |harness: &mut Harness, random: &mut SmallRng| {
            drawn += 1;
            harness.reign = reign(random.random_range(1..4), drawn);
        };
        begin(&mut harness, &mut random);
        for change in 0..60 {
            match random.random_range(0..10) {
                0 => begin(&mut harness, &mut random),
                1 => kept.push(now.clone()),
                2 => {
                    now = kept[random.random_range(0..kept.len())].clone();
                    harness.store = now.store.clone();
                    begin(&mut harness, &mut random);
                }
                3 => places.push((ask(&harness, &nothing()).unwrap(), now.changes.clone())),
                _ => {
                    harness.folder(ROOT_ENTRY, &format!("f{change}"));
                    now.changes.push(change);
                    now.store = harness.store.clone();
                }
            }
            for (seen, changes) in &places {
                let common = changes.iter().zip(&now.changes).take_while(|(one, other)| one == other).count();
                let told = ask(&harness, seen);
                assert_eq!(told.is_ok(), common == changes.len(), "seed={seed}");
                assert_eq!(list(&harness, Some(seen)).map(|(_names, place)| place), told, "seed={seed}");
                if let Err(told) = told {
                    parted += 1;
                    exact += usize::from(told == common as u64);
                    assert!(told == common as u64 || told == 0, "seed={seed} {told} {common}");
                }
            }
        }
    }
    assert!(parted > 1_000 && exact * 10 > parted * 9, "{exact} of {parted}");
}
