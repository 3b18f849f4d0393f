//! Checks that bytes are a version's content: cuts them as the version was cut and names the result.

use engine::cutter::ChunkCutter;
use engine::ids::{ChunkId, ContentId};
use engine::manifest::{ContentHasher, ManifestEntry};
use proto::v1;

use crate::planner::model::FileContent;
use crate::wire;

/// Takes a version's bytes in order.
#[derive(Debug)]
pub(crate) struct ContentCheck {
    expected: Vec<u8>,
    size: u64,
    received: u64,
    /// None for a cutter that this version of the client does not know: then only the size is checked.
    cutter: Option<ChunkCutter>,
    hasher: ContentHasher,
}

/// Why bytes are not the version's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes that came are not this version's content; nothing was written: get it again")]
pub(crate) struct WrongContent;

impl ContentCheck {
    pub(crate) fn new(entry: &v1::Entry) -> Self {
        Self {
            expected: entry.content.to_vec(),
            size: entry.size,
            received: 0,
            cutter: wire::cutter_from_wire(entry.cutter).map(ChunkCutter::new),
            hasher: ContentHasher::new(),
        }
    }

    /// For a content that is known by name.
    pub(crate) fn of(content: FileContent) -> Self {
        Self {
            expected: content.content.as_bytes().to_vec(),
            size: content.size,
            received: 0,
            cutter: Some(ChunkCutter::new(content.cutter)),
            hasher: ContentHasher::new(),
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.received += bytes.len() as u64;
        if let Some(cutter) = &mut self.cutter {
            // In parts, so that the cutter's buffer stays small.
            for part in bytes.chunks(cutter.cutter().chunk_bytes_max()) {
                cutter.push(part);
                take_chunks(cutter, &mut self.hasher);
            }
        }
    }

    pub(crate) fn finish(mut self) -> Result<(), WrongContent> {
        if self.received != self.size {
            return Err(WrongContent);
        }
        let Some(mut cutter) = self.cutter else { return Ok(()) };
        cutter.finish();
        take_chunks(&mut cutter, &mut self.hasher);
        let content: ContentId = self.hasher.finish();
        if self.size == 0 || content.as_bytes()[..] == self.expected[..] { Ok(()) } else { Err(WrongContent) }
    }
}

fn take_chunks(cutter: &mut ChunkCutter, hasher: &mut ContentHasher) {
    while let Some(chunk) = cutter.next_chunk() {
        hasher.push(&ManifestEntry { id: ChunkId::of(chunk.bytes), size: chunk.bytes.len() as u64 });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use engine::cutter::{Cutter, cut_reader};
    use rand::{Rng, SeedableRng};

    use super::*;

    fn entry(bytes: &[u8]) -> v1::Entry {
        let entries: Vec<ManifestEntry> = cut_reader(bytes, Cutter::Cdc64k)
            .map(|chunk| chunk.unwrap().1)
            .map(|chunk| ManifestEntry { id: ChunkId::of(&chunk), size: chunk.len() as u64 })
            .collect();
        v1::Entry {
            size: bytes.len() as u64,
            cutter: v1::Cutter::Cdc64k.into(),
            content: Bytes::copy_from_slice(ContentId::of(&entries).as_bytes()),
            ..Default::default()
        }
    }

    #[test]
    fn only_the_versions_own_bytes_pass() {
        let mut bytes = vec![0; 1_000_000];
        rand::rngs::SmallRng::seed_from_u64(1).fill(&mut bytes[..]);
        let entry = entry(&bytes);
        let check = |bytes: &[u8], part: usize| {
            let mut check = ContentCheck::new(&entry);
            bytes.chunks(part).for_each(|part| check.push(part));
            check.finish()
        };
        assert_eq!(check(&bytes, 1_000_000), Ok(()));
        assert_eq!(check(&bytes, 4_097), Ok(()));
        assert_eq!(check(&bytes[1..], 4_097), Err(WrongContent));
        bytes[500_000] ^= 1;
        assert_eq!(check(&bytes, 65_536), Err(WrongContent));
    }
}
