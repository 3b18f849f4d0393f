//! What queries answer, and how much at most.

use engine::ids::{ChunkId, EntryId, NamespaceId};

use super::{DATA, Harness, SPACE};
use crate::model::query::{Query, Reply, Resolved};
use crate::model::row::{EntryKind, ROOT_ENTRY};
use crate::model::{PAGE_BYTES_MAX, QUERY_ITEMS_MAX};

fn resolve(harness: &Harness, path: &[&str]) -> Resolved {
    let path = path.iter().map(|name| (*name).to_owned()).collect();
    match harness.ask(&Query::Resolve { namespace: SPACE, paths: vec![path] }) {
        Reply::Resolved(mut resolved) => resolved.remove(0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_path_leads_as_far_as_it_exists() {
    let mut harness = Harness::data();
    let a = harness.folder(ROOT_ENTRY, "a");
    let b = harness.folder(a, "b");
    let file = harness.file(1, "file").entry;
    let cases: [(&[&str], u32, EntryId, Option<EntryId>); 10] = [
        (&[], 0, ROOT_ENTRY, Some(ROOT_ENTRY)),
        (&["a"], 1, a, Some(ROOT_ENTRY)),
        (&["a", "b"], 2, b, Some(a)),
        (&["a", "b", "new"], 2, b, Some(b)),
        (&["a", "x", "new"], 1, a, None),
        (&["new"], 0, ROOT_ENTRY, Some(ROOT_ENTRY)),
        (&["file"], 1, file, Some(ROOT_ENTRY)),
        (&["file", "x"], 1, file, None),
        (&["", "a"], 0, ROOT_ENTRY, None),
        (&[".."], 0, ROOT_ENTRY, Some(ROOT_ENTRY)),
    ];
    for (path, found, last, parent) in cases {
        let resolved = resolve(&harness, path);
        assert_eq!((resolved.found, resolved.last.entry, resolved.parent), (found, last, parent), "{path:?}");
    }
}

#[test]
fn folders_and_trash_are_paged() {
    let mut harness = Harness::data();
    for name in ["b", "a", "c", "ä", "a b"] {
        let row = harness.create(ROOT_ENTRY, name, EntryKind::Folder).unwrap();
        if name == "c" {
            harness.delete(&row, false).unwrap();
            harness.create(ROOT_ENTRY, name, EntryKind::Folder).unwrap();
        }
    }
    let page = |after: Option<&str>, count_max| {
        let after = after.map(str::to_owned);
        match harness.ask(&Query::Children { namespace: SPACE, parent: ROOT_ENTRY, after, count_max }) {
            Reply::Entries { entries, more } => {
                (entries.into_iter().map(|row| row.name).collect::<Vec<_>>(), more)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(page(None, 2), (vec!["a".to_owned(), "a b".to_owned()], true));
    assert_eq!(page(Some("a b"), 3), (vec!["b".to_owned(), "c".to_owned(), "ä".to_owned()], false));
    assert_eq!(page(None, 0), (Vec::new(), true));
    assert_eq!(page(None, u32::MAX).0.len(), 5);
    let trash = |after| match harness.ask(&Query::Trash { namespace: SPACE, after, count_max: 1 }) {
        Reply::Trash { items, more } => (items.len(), more),
        other => panic!("{other:?}"),
    };
    assert_eq!((trash(0), trash(1)), ((1, false), (0, false)));
}

#[test]
fn what_is_not_here_is_said_so() {
    let harness = Harness::data();
    let namespace = NamespaceId::from_bytes([77; 16]);
    assert_eq!(harness.ask(&Query::Namespace { namespace }), Reply::Namespace(None));
    let paths = vec![vec!["a".to_owned()]];
    assert_eq!(harness.ask(&Query::Resolve { namespace, paths }), Reply::NoNamespace);
    let elsewhere = Harness::bare(DATA);
    let slot = namespace.slot();
    assert_eq!(elsewhere.ask(&Query::Namespace { namespace }), Reply::NotOwner(slot));
    let entries = vec![EntryId(99), ROOT_ENTRY];
    let paths = Reply::Paths(vec![None, Some(Vec::new())]);
    assert_eq!(harness.ask(&Query::Paths { namespace: SPACE, entries }), paths);
}

#[test]
fn a_query_for_too_much_is_refused() {
    let harness = Harness::data();
    let chunks = vec![ChunkId::from_bytes([1; 32]); QUERY_ITEMS_MAX as usize + 1];
    assert_eq!(harness.ask(&Query::ChunksLocate { chunks }), Reply::NotUnderstood);
    let paths = vec![vec!["a".to_owned(); QUERY_ITEMS_MAX as usize + 1]];
    assert_eq!(harness.ask(&Query::Resolve { namespace: SPACE, paths }), Reply::NotUnderstood);
    assert_eq!(harness.ask(&Query::ClusterMap), Reply::NotUnderstood, "for the root group");
}

/// More bytes of symlinks than an answer has, in one folder; gives their ids.
fn many_symlinks(harness: &mut Harness, parent: EntryId) -> Vec<EntryId> {
    let count = 2 * PAGE_BYTES_MAX / 4000;
    let link = || EntryKind::Symlink(vec![b'x'; 4000]);
    let make = |number| harness.create(parent, &format!("{number:06}"), link()).unwrap().entry;
    (0..count).map(make).collect()
}

#[test]
fn pages_end_early_where_rows_are_large() {
    let mut harness = Harness::data();
    let folder = harness.folder(ROOT_ENTRY, "f");
    let links = many_symlinks(&mut harness, folder);
    let (mut seen, mut after) = (0, None);
    loop {
        let query = Query::Children { namespace: SPACE, parent: folder, after, count_max: 10_000 };
        let Reply::Entries { entries, more } = harness.ask(&query) else { panic!("no entries") };
        assert!(entries.len() * 4000 <= PAGE_BYTES_MAX + 8000, "{} entries", entries.len());
        seen += entries.len();
        after = entries.last().map(|row| row.name.clone());
        if !more {
            break;
        }
    }
    assert_eq!(seen, links.len());
    let query = Query::EntriesById { namespace: SPACE, entries: links.clone() };
    let Reply::EntriesById(rows) = harness.ask(&query) else { panic!("no entries") };
    assert!(!rows.is_empty() && rows.len() * 4000 <= PAGE_BYTES_MAX + 8000, "{} entries", rows.len());
    assert!(rows.iter().zip(&links).all(|(row, link)| row.as_ref().is_some_and(|row| row.entry == *link)));
    let path = |number: usize| vec!["f".to_owned(), format!("{number:06}")];
    let query = Query::Resolve { namespace: SPACE, paths: (0..links.len()).map(path).collect() };
    let Reply::Resolved(resolved) = harness.ask(&query) else { panic!("no paths") };
    assert!(!resolved.is_empty() && resolved.len() * 4000 <= PAGE_BYTES_MAX + 8000, "{}", resolved.len());
}

#[test]
fn paths_are_answered_for_as_far_as_there_is_room() {
    let mut harness = Harness::data();
    let mut bottom = ROOT_ENTRY;
    for _ in 0..250 {
        bottom = harness.folder(bottom, &"d".repeat(255));
    }
    let query = Query::Paths { namespace: SPACE, entries: vec![bottom; 10_000] };
    let Reply::Paths(paths) = harness.ask(&query) else { panic!("no paths") };
    let bytes: usize = paths.iter().flatten().flatten().map(String::len).sum();
    assert!(bytes > PAGE_BYTES_MAX / 2 && bytes < 2 * PAGE_BYTES_MAX, "{bytes} bytes");
}

#[test]
fn a_deep_and_wide_tree_is_listed_whole() {
    let mut harness = Harness::data();
    let (mut folder, mut expected) = (ROOT_ENTRY, 0);
    for _ in 0..20 {
        // The folder comes first, so that all of its neighbours wait while it is listed.
        for number in 0..300 {
            let target = EntryKind::Symlink(vec![b'x'; 1000]);
            harness.create(folder, &format!("b{number:03}"), target).unwrap();
        }
        folder = harness.folder(folder, "a");
        expected += 301;
    }
    let (mut seen, mut position) = (Vec::new(), Vec::new());
    loop {
        let query = Query::Below { namespace: SPACE, top: ROOT_ENTRY, position, count_max: 700 };
        let Reply::Below(Some(page)) = harness.ask(&query) else { panic!("no page") };
        seen.extend(page.entries.iter().map(|row| row.entry));
        position = page.position;
        if position.is_empty() {
            break;
        }
    }
    let told = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((told, seen.len()), (expected, expected));
}
