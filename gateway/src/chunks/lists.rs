//! Chunk lists of contents that were read lately.
//!
//! Invariant: what is kept is what the cluster holds or held, for a content's id is the hash of its chunks' ids and sizes.
//! If the content was removed meanwhile its chunks are not found. Who may read it is decided before.

use engine::ids::ContentId;
use engine::manifest::{ContentList, ManifestEntry};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

/// Bytes of all lists, and about how large one is.
const BYTES_MAX: u64 = 8 * 1024 * 1024;
const USUAL_BYTES: u64 = 1024;

#[derive(Clone)]
struct ByBytes;

impl Weighter<ContentId, ContentList> for ByBytes {
    fn weight(&self, _content: &ContentId, list: &ContentList) -> u64 {
        (size_of::<ContentId>() + size_of::<ContentList>() + size_of_val::<[ManifestEntry]>(&list.entries))
            as u64
    }
}

pub(crate) struct Lists(Cache<ContentId, ContentList, ByBytes>);

impl Default for Lists {
    fn default() -> Self {
        let count = usize::try_from(BYTES_MAX / USUAL_BYTES).unwrap_or(usize::MAX);
        Self(Cache::with_weighter(count, BYTES_MAX, ByBytes))
    }
}

impl Lists {
    pub(crate) fn get(&self, content: ContentId) -> Option<ContentList> {
        self.0.get(&content)
    }

    /// Keeps a list, unless it is the top of a tree: the id does not say which nodes that has.
    pub(crate) fn keep(&self, content: ContentId, list: &ContentList) {
        if list.depth == 0 {
            self.0.insert(content, list.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::ids::ChunkId;

    use super::*;

    fn list(depth: u8, chunks: usize) -> ContentList {
        let entry = |number: usize| ManifestEntry { id: ChunkId::of(&number.to_le_bytes()), size: 1 };
        ContentList { depth, entries: (0..chunks).map(entry).collect() }
    }

    fn content(number: usize) -> ContentId {
        ContentId::from_bytes(*ChunkId::of(&number.to_le_bytes()).as_bytes())
    }

    #[test]
    fn lists_are_kept_and_tops_of_trees_are_not() {
        let lists = Lists::default();
        lists.keep(content(1), &list(0, 3));
        lists.keep(content(2), &list(1, 3));
        assert_eq!(lists.get(content(1)), Some(list(0, 3)));
        assert_eq!(lists.get(content(2)), None);
    }

    #[test]
    fn what_is_kept_is_bounded_by_its_bytes() {
        let lists = Lists::default();
        let long = list(0, 4096);
        for number in 0..200 {
            lists.keep(content(number), &long);
        }
        let kept = (0..200).filter(|number| lists.get(content(*number)).is_some()).count();
        let most = BYTES_MAX / size_of_val::<[ManifestEntry]>(&long.entries) as u64;
        assert!(kept > 0 && kept as u64 <= most, "{kept} lists");
    }
}
