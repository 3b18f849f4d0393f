//! Which entries of a batch can be made next, and which folders on the way to them. Nothing here waits or does IO.
//!
//! Invariants:
//! - What an item waits for is one name in a folder whose id is known ([`Item::next`]). So items wait for the same
//!   folder exactly if they name the same, and no path is compared.
//! - A wave looks at one name of each item, however long its path is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use engine::ids::EntryId;
use metaraft::model::command::OnExisting;
use metaraft::model::query::Resolved;
use metaraft::model::row::{EntryKind, ROOT_ENTRY};

use crate::failure::Failure;
use crate::path::RemotePath;

/// An item, checked.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) path: RemotePath,
    pub(super) kind: EntryKind,
    pub(super) mode: u32,
    pub(super) mtime_ns: i64,
    pub(super) parents: bool,
    pub(super) existing: OnExisting,
}

/// An item that is not made yet.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) wanted: Wanted,
    /// So many names of its path are folders whose ids are known; at most all but the last.
    known: usize,
    /// Where those lead.
    folder: EntryId,
}

/// A folder on the way to an item: the name that is next on the item's path.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) item: usize,
    pub(super) folder: EntryId,
    pub(super) name: String,
}

/// What can be done of what is pending.
#[derive(Debug, Default)]
pub(super) struct Ready {
    /// Items that can be made, or be told that they cannot.
    pub(super) items: BTreeSet<usize>,
    /// Items whose folder is yet to be made.
    pub(super) waiting: BTreeSet<usize>,
    /// Folders that can be made for those.
    pub(super) ways: Vec<Way>,
}

/// What came of the folders of one wave, by where they are and their names.
#[derive(Debug, Default)]
pub(super) struct Folders(HashMap<EntryId, HashMap<String, Result<EntryId, Failure>>>);

/// Items that are not made yet, by their index.
#[derive(Debug)]
pub(super) struct Waves(BTreeMap<usize, Item>);

impl Item {
    /// What is next on its path: a folder on the way, or the item itself.
    fn next(&self) -> (EntryId, &str) {
        (self.folder, self.wanted.path.names().get(self.known).map_or("", String::as_str))
    }

    /// The folder that it goes to, if that is known.
    pub(super) fn parent(&self) -> Option<EntryId> {
        (self.known + 1 >= self.wanted.path.names().len()).then_some(self.folder)
    }

    /// The path of what is next.
    pub(super) fn next_path(&self) -> RemotePath {
        let names = self.wanted.path.names();
        RemotePath::from_names(names[..names.len().min(self.known + 1)].to_vec())
    }

    /// Goes on to the folders that were made on its path. Where one cannot be made, neither can anything below it.
    fn advance(&mut self, folders: &Folders) -> Result<(), Failure> {
        loop {
            let (folder, name) = self.next();
            match folders.0.get(&folder).and_then(|folders| folders.get(name)) {
                Some(Err(failure)) => return Err(failure.clone()),
                Some(Ok(entry)) if self.parent().is_none() => {
                    self.known += 1;
                    self.folder = *entry;
                }
                _ => return Ok(()),
            }
        }
    }
}

impl Folders {
    pub(super) fn put(&mut self, folder: EntryId, name: String, made: Result<EntryId, Failure>) {
        self.0.entry(folder).or_default().insert(name, made);
    }
}

impl Waves {
    pub(super) fn new(wanted: impl IntoIterator<Item = (usize, Wanted)>) -> Self {
        let item = |wanted| Item { wanted, known: 0, folder: ROOT_ENTRY };
        Self(wanted.into_iter().map(|(index, wanted)| (index, item(wanted))).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, index: usize) -> Option<&Item> {
        self.0.get(&index)
    }

    pub(super) fn remove(&mut self, index: usize) -> Option<Item> {
        self.0.remove(&index)
    }

    /// The folders that items go to, each once, with those items.
    pub(super) fn parents(&self) -> BTreeMap<RemotePath, Vec<usize>> {
        let mut parents: BTreeMap<RemotePath, Vec<usize>> = BTreeMap::new();
        for (index, item) in &self.0 {
            parents.entry(item.wanted.path.parent()).or_default().push(*index);
        }
        parents
    }

    /// Notes how far the path of an item's folder leads.
    pub(super) fn resolved(&mut self, index: usize, resolved: &Resolved) {
        let Some(item) = self.0.get_mut(&index) else { return };
        let (found, last) = (resolved.found as usize, &resolved.last);
        (item.known, item.folder) = if last.kind == EntryKind::Folder {
            (found, last.entry)
        } else {
            // Something else is where a folder should be: whoever tries to make that is told.
            (found.saturating_sub(1), last.parent)
        };
    }

    pub(super) fn ready(&self) -> Ready {
        let folders = self.0.values().filter(|item| item.wanted.kind == EntryKind::Folder);
        let own: HashSet<(EntryId, &str)> =
            folders.filter(|item| item.parent().is_some()).map(Item::next).collect();
        let mut taken: HashSet<(EntryId, &str)> = HashSet::new();
        let mut ready = Ready::default();
        for (index, item) in &self.0 {
            let next = item.next();
            if item.parent().is_some() {
                if taken.insert(next) {
                    ready.items.insert(*index);
                }
            // A folder that the batch itself makes is waited for.
            } else if own.contains(&next) {
                ready.waiting.insert(*index);
            } else if item.wanted.parents {
                ready.waiting.insert(*index);
                if taken.insert(next) {
                    let (folder, name) = next;
                    ready.ways.push(Way { item: *index, folder, name: name.to_owned() });
                }
            } else {
                ready.items.insert(*index);
            }
        }
        ready
    }

    /// Takes what came of a wave's folders; gives the items that cannot be made for that.
    pub(super) fn advance(&mut self, folders: &Folders) -> Vec<(usize, Failure)> {
        let mut failed = Vec::new();
        self.0.retain(|index, item| match item.advance(folders) {
            Ok(()) => true,
            Err(failure) => {
                failed.push((*index, failure));
                false
            }
        });
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(path: &str, parents: bool) -> Wanted {
        let (path, kind) = (RemotePath::parse(path).unwrap(), EntryKind::Folder);
        let existing = if parents { OnExisting::TakeFolder } else { OnExisting::Refuse };
        Wanted { path, kind, mode: 0o755, mtime_ns: 0, parents, existing }
    }

    fn waves(items: &[(String, bool)]) -> Waves {
        Waves::new(items.iter().map(|(path, parents)| wanted(path, *parents)).enumerate())
    }

    /// Makes all that is ready, as a cluster would; gives how many folders were made on the way.
    fn wave(waves: &mut Waves, next_id: &mut u64) -> usize {
        let ready = waves.ready();
        let mut folders = Folders::default();
        for way in &ready.ways {
            *next_id += 1;
            folders.put(way.folder, way.name.clone(), Ok(EntryId(*next_id)));
        }
        for index in ready.items {
            *next_id += 1;
            let item = waves.remove(index).unwrap();
            let parent = item.parent().unwrap();
            folders.put(parent, item.wanted.path.name().to_owned(), Ok(EntryId(*next_id)));
        }
        assert!(waves.advance(&folders).is_empty());
        ready.ways.len()
    }

    #[test]
    fn a_folder_on_the_way_to_many_is_made_once_and_found_by_all() {
        let deep = "/x".repeat(255);
        let items: Vec<(String, bool)> = (0..1024).map(|number| (format!("{deep}/{number}"), true)).collect();
        let mut waves = waves(&items);
        let (mut next_id, mut made, mut count) = (1, 0, 0);
        while !waves.is_empty() {
            made += wave(&mut waves, &mut next_id);
            count += 1;
        }
        assert_eq!((made, count), (255, 256));
    }

    #[test]
    fn a_folder_that_the_batch_makes_is_waited_for_and_not_made_on_the_way() {
        let mut waves =
            waves(&[("/a/b/c".to_owned(), true), ("/a".to_owned(), false), ("/z/y".to_owned(), false)]);
        let ready = waves.ready();
        assert_eq!(ready.items, BTreeSet::from([1, 2]), "the last one is told that there is no /z");
        assert_eq!((ready.waiting, ready.ways.len()), (BTreeSet::from([0]), 0));
        assert_eq!(waves.remove(2).unwrap().parent(), None);
        let mut next_id = 1;
        assert_eq!(wave(&mut waves, &mut next_id), 0);
        let way = waves.ready().ways.remove(0);
        assert_eq!((way.item, way.folder, way.name.as_str()), (0, EntryId(2), "b"));
        assert_eq!(waves.get(0).unwrap().next_path().text(), "/a/b");
    }

    #[test]
    fn nothing_below_a_folder_that_cannot_be_made_is_tried() {
        let mut waves =
            waves(&[("/a/b/c".to_owned(), true), ("/a/d".to_owned(), true), ("/e/f".to_owned(), true)]);
        let mut folders = Folders::default();
        folders.put(ROOT_ENTRY, "a".to_owned(), Err(Failure::not_found("no")));
        let failed: Vec<usize> = waves.advance(&folders).into_iter().map(|(index, _failure)| index).collect();
        assert_eq!(failed, [0, 1]);
        assert!(waves.get(2).is_some());
    }
}
