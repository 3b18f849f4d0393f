//! Which chunks a range of a content needs, in order, and how they are read: runs of neighbours in one stripe.
//!
//! Invariants:
//! - The cuts of all runs, put together, are exactly the range.
//! - A run is of one stripe, and of at most [`RUN_BYTES_MAX`] plain bytes (or one chunk).

use std::collections::HashMap;
use std::ops::Range;

use engine::ids::ChunkId;
use engine::location::{ChunkLocation, LocatedChunk};
use engine::manifest::{ContentList, ManifestEntry, ManifestError, TreeWalk, WalkStep};

use crate::chunks::reader::ChunkSource;
use crate::failure::Failure;
use crate::limits::{LOCATE_CHUNKS_MAX, RUN_BYTES_MAX};

/// A chunk, and which of its plain bytes are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedChunk {
    pub(crate) id: ChunkId,
    /// Bytes of the whole chunk.
    pub(crate) size: u64,
    pub(crate) cut: Range<usize>,
}

/// Neighbours in one stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) chunks: Vec<LocatedChunk>,
    /// By chunk.
    pub(crate) cuts: Vec<Range<usize>>,
    /// Plain bytes of the whole chunks.
    pub(crate) bytes: u64,
}

/// Which bytes of a chunk at `offset` lie in `range`; `None` if none do.
pub(crate) fn cut_of(offset: u64, size: u64, range: &Range<u64>) -> Option<Range<usize>> {
    let start = range.start.max(offset);
    let end = range.end.min(offset + size);
    if start >= end {
        return None;
    }
    // Within one chunk: at most 4 MiB.
    Some(usize::try_from(start - offset).ok()?..usize::try_from(end - offset).ok()?)
}

/// Parts located chunks, in the order in which they are wanted, into runs.
pub(crate) fn into_runs(wanted: &[WantedChunk], located: Vec<LocatedChunk>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (wanted, located) in wanted.iter().zip(located) {
        match runs.last_mut() {
            Some(run)
                if run.chunks.last().is_some_and(|last| last.location.stripe == located.location.stripe)
                    && run.bytes + wanted.size <= RUN_BYTES_MAX as u64
                    && !run.chunks.iter().any(|chunk| chunk.chunk == wanted.id) =>
            {
                run.chunks.push(located);
                run.cuts.push(wanted.cut.clone());
                run.bytes += wanted.size;
            }
            _ => runs.push(Run { chunks: vec![located], cuts: vec![wanted.cut.clone()], bytes: wanted.size }),
        }
    }
    runs
}

/// Walks a content, and gives the runs of a range batch by batch.
pub(crate) struct Planner {
    walk: TreeWalk,
    range: Range<u64>,
    source: ChunkSource,
    /// Where some of the chunks lie, as was told with the list.
    places: HashMap<ChunkId, ChunkLocation>,
    done: bool,
}

fn bad_list(error: &ManifestError) -> Failure {
    Failure::internal("manifest", error)
}

impl Planner {
    pub(crate) fn new(
        source: ChunkSource,
        list: ContentList,
        places: HashMap<ChunkId, ChunkLocation>,
        range: Range<u64>,
    ) -> Result<Self, Failure> {
        let done = range.is_empty();
        let walk = TreeWalk::new(list, range.start).map_err(|error| bad_list(&error))?;
        Ok(Self { walk, range, source, places, done })
    }

    /// The next runs; `None` at the end of the range. A content that ends before its range does is an error.
    pub(crate) async fn next_runs(&mut self) -> Result<Option<Vec<Run>>, Failure> {
        let mut wanted: Vec<WantedChunk> = Vec::new();
        while !self.done && wanted.len() < LOCATE_CHUNKS_MAX {
            match self.walk.step() {
                WalkStep::Chunk { offset, entry: ManifestEntry { id, size } } => {
                    wanted.extend(cut_of(offset, size, &self.range).map(|cut| WantedChunk { id, size, cut }));
                    self.done = offset + size >= self.range.end;
                }
                WalkStep::Fetch { entry } => {
                    let bytes = self.source.read_node(entry.id).await?;
                    self.walk.feed(&bytes).map_err(|error| bad_list(&error))?;
                }
                WalkStep::Done => return Err(Failure::internal("manifest", &"it ends before its file does")),
            }
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        let ids: Vec<ChunkId> = wanted.iter().map(|wanted| wanted.id).collect();
        let located = match self.known(&ids) {
            Some(located) => located,
            None => self.source.locate(&ids).await?,
        };
        Ok(Some(into_runs(&wanted, located)))
    }

    /// Where chunks lie, if that was told of all of them.
    fn known(&self, chunks: &[ChunkId]) -> Option<Vec<LocatedChunk>> {
        let located =
            |chunk: &ChunkId| Some(LocatedChunk { chunk: *chunk, location: *self.places.get(chunk)? });
        chunks.iter().map(located).collect()
    }
}

#[cfg(test)]
mod tests {
    use engine::cluster::{StripeLayout, StripeShape};
    use engine::ids::{StripeId, VolumeId};
    use engine::location::{ChunkKind, Codec};

    use super::*;

    fn located(chunk: u8, stripe: u8) -> LocatedChunk {
        let location = ChunkLocation {
            stripe: StripeId::new(VolumeId(1), [stripe; 8]),
            shape: StripeShape { layout: StripeLayout::Coded, length: 100 },
            offset: 0,
            stored_length: 10,
            plain_length: 10,
            codec: Codec::Plain,
            kind: ChunkKind::Data,
        };
        LocatedChunk { chunk: ChunkId::from_bytes([chunk; 32]), location }
    }

    fn wanted(chunk: u8, size: u64) -> WantedChunk {
        WantedChunk { id: ChunkId::from_bytes([chunk; 32]), size, cut: 0..10 }
    }

    #[test]
    fn cuts_of_a_range_add_up_to_it() {
        let sizes = [5_u64, 1, 7, 4];
        for start in 0..17 {
            for end in start..=17 {
                let range = start..end;
                let mut offset = 0;
                let mut bytes = Vec::new();
                for size in sizes {
                    for position in cut_of(offset, size, &range).into_iter().flatten() {
                        bytes.push(offset + position as u64);
                    }
                    offset += size;
                }
                assert_eq!(bytes, range.clone().collect::<Vec<_>>(), "{range:?}");
            }
        }
    }

    #[test]
    fn runs_are_of_one_stripe_and_bounded() {
        let chunks = [wanted(1, 10), wanted(2, 10), wanted(3, 10), wanted(4, RUN_BYTES_MAX as u64)];
        let places = vec![located(1, 1), located(2, 1), located(3, 2), located(4, 2)];
        let runs = into_runs(&chunks, places);
        let counts: Vec<usize> = runs.iter().map(|run| run.chunks.len()).collect();
        assert_eq!(counts, [2, 1, 1]);
        assert_eq!(runs[0].bytes, 20);
    }

    #[test]
    fn a_chunk_that_repeats_begins_a_new_run() {
        let runs = into_runs(&[wanted(1, 10), wanted(1, 10)], vec![located(1, 1), located(1, 1)]);
        assert_eq!(runs.len(), 2);
    }
}
