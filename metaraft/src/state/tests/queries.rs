//! What queries answer, and how much at most.

use engine::ids::{ChunkId, EntryId, NamespaceId};

use super::{DATA, Harness, SPACE};
use crate::model::QUERY_ITEMS_MAX;
use crate::model::query::{Query, Reply, Resolved};
use crate::model::row::{EntryKind, ROOT_ENTRY};

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
    let paths = vec![vec!["a".to_owned(); 5001]; 2];
    assert_eq!(harness.ask(&Query::Resolve { namespace: SPACE, paths }), Reply::NotUnderstood);
    assert_eq!(harness.ask(&Query::ClusterMap), Reply::NotUnderstood, "for the root group");
}
