//! That a write which ended after its file was read is found, though the file's time says nothing of it.

use super::*;
use crate::local::watch::Writers;

#[test]
fn what_was_written_while_it_was_read_is_read_again() {
    let (root, mut index) = known();
    let mut options = options();
    let writers = Writers::default();
    options.writers = Some(writers.clone());
    let scanned = |index: &mut MemoryIndex| {
        let found = scan(&root, index, &Scope::Whole, &options).unwrap();
        index.apply(&found.updates);
        found
    };
    let kind = |index: &MemoryIndex| index.find("f").unwrap().kind;
    let old = kind(&index);
    root.write("f", "n");
    settle(&root, &mut index);
    let new = index.find("f").unwrap();
    // As if it had been read when the write had set the time, and not yet any byte.
    index.apply(&[LocalUpdate::Put(LocalRecord { kind: old.clone(), ..new.clone() })]);
    assert_eq!((scanned(&mut index).updates.len(), kind(&index)), (0, old), "nothing tells");
    writers.written(&rel("f"), Instant::now());
    let found = scanned(&mut index);
    assert_eq!((found.updates.len(), kind(&index), found.counts.hashed), (1, new.kind, 1));
    // Until that is kept it is to be read again, and not said again.
    let found = scanned(&mut index);
    assert_eq!((found.updates.len(), found.counts.hashed), (0, 1));
    writers.read(found.read.into_iter().map(|file| (file.rel, file.began)));
    assert_eq!(scanned(&mut index).counts.hashed, 0);
}
