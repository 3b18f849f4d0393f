//! Contents: ordered lists of chunks, and the tree into which a long list is folded.
//!
//! A list of up to [`LIST_ENTRIES_MAX`] chunks is kept as it is. A longer one becomes a tree: its runs of
//! [`LIST_ENTRIES_MAX`] entries are nodes, stored as chunks, and the list holds the nodes (or, one level up, their
//! nodes).
//!
//! Invariants:
//! - A content's id is over its chunks alone: it does not depend on the tree.
//! - A node's id is hashed in a domain of its own, so user bytes can never be taken for a node.
//! - Nodes come from the cluster, but are checked like any bytes: id, level, count, sizes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chunk::{CHUNK_BYTES_MAX, check_chunk_size};
use crate::hash::sha256_parts;
use crate::ids::{ChunkId, ContentId};

/// Most entries in a list, and in a node of its tree.
pub const LIST_ENTRIES_MAX: usize = 4096;

/// Most levels of nodes under a list: 4,096 to the fourth chunks.
pub const DEPTH_MAX: u8 = 3;

/// Most bytes in an encoded node.
pub const NODE_BYTES_MAX: usize = NODE_HEADER_BYTES + LIST_ENTRIES_MAX * NODE_ENTRY_BYTES;

const NODE_FORMAT: u8 = 1;
/// Format, level, entry count (big-endian).
const NODE_HEADER_BYTES: usize = 1 + 1 + 4;
/// Id, size (big-endian).
const NODE_ENTRY_BYTES: usize = 32 + 8;

/// One entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// The chunk, or the node, by the depth of the list that this is in.
    pub id: ChunkId,
    /// Bytes of the file that it stands for.
    pub size: u64,
}

/// Hashes a content's chunks as they come, so that a list need not be held.
#[derive(Clone, Debug)]
pub struct ContentHasher(Sha256);

impl ContentHasher {
    /// Of no chunks yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Sha256::new_with_prefix(b"keepstone content 1\0"))
    }

    /// Adds the next chunk.
    pub fn push(&mut self, entry: &ManifestEntry) {
        self.0.update(entry.id.as_bytes());
        self.0.update(entry.size.to_be_bytes());
    }

    /// The content's id.
    #[must_use]
    pub fn finish(self) -> ContentId {
        ContentId::from_bytes(self.0.finalize().into())
    }
}

impl Default for ContentHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl ContentId {
    /// Names the content of these chunks, in order. No chunks make the empty content.
    #[must_use]
    pub fn of(entries: &[ManifestEntry]) -> Self {
        let mut hasher = ContentHasher::new();
        entries.iter().for_each(|entry| hasher.push(entry));
        hasher.finish()
    }
}

/// A content's chunks, or the top of their tree.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContentList {
    /// Levels of nodes below: 0 = the entries are data chunks.
    pub depth: u8,
    /// At most [`LIST_ENTRIES_MAX`].
    pub entries: Vec<ManifestEntry>,
}

impl ContentList {
    /// Bytes of the file.
    ///
    /// # Errors
    /// As [`ContentList::check`].
    pub fn size(&self) -> Result<u64, ManifestError> {
        self.check()?;
        Ok(self.entries.iter().map(|entry| entry.size).sum())
    }

    /// Checks depth, count and sizes.
    ///
    /// # Errors
    /// If it is no list that [`build_tree`] makes.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.depth > DEPTH_MAX {
            return Err(ManifestError::Level { found: self.depth });
        }
        if self.entries.is_empty() && self.depth == 0 {
            return Ok(());
        }
        check_entries(self.depth, &self.entries).map(drop)
    }
}

/// Why bytes or entries are not part of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Written by a version of the software that this one does not know.
    #[error("manifest node: unknown format {found}")]
    Format {
        /// Its first byte.
        found: u8,
    },
    /// The bytes are no more, or less, than the count says, or there are none.
    #[error("manifest node: {bytes} bytes do not hold {entries} entries")]
    Length {
        /// How many there are.
        bytes: usize,
        /// How many entries are announced.
        entries: usize,
    },
    /// No entries, or too many.
    #[error("manifest: {found} entries; there are 1 to {LIST_ENTRIES_MAX}")]
    Count {
        /// How many.
        found: usize,
    },
    /// Not the level that belongs there.
    #[error("manifest: level {found} does not belong here")]
    Level {
        /// What it says.
        found: u8,
    },
    /// A size that nothing has, or sizes that do not add up.
    #[error("manifest: a size of {found} bytes does not belong here")]
    Size {
        /// The size, or the sum.
        found: u64,
    },
    /// The bytes are not those of the node that was asked for.
    #[error("manifest node: these are not the bytes of {expected}")]
    WrongNode {
        /// What was asked for.
        expected: ChunkId,
    },
}

/// The name of an encoded node, in the hash domain of nodes.
#[must_use]
pub fn manifest_node_id(bytes: &[u8]) -> ChunkId {
    ChunkId::from_bytes(sha256_parts(&[b"keepstone manifest node\0", bytes]))
}

/// Checks the entries of one list or node; gives the sum of their sizes.
fn check_entries(level: u8, entries: &[ManifestEntry]) -> Result<u64, ManifestError> {
    if entries.is_empty() || entries.len() > LIST_ENTRIES_MAX {
        return Err(ManifestError::Count { found: entries.len() });
    }
    let mut sum = 0_u64;
    for entry in entries {
        let fits = if level == 0 { check_chunk_size(entry.size).is_ok() } else { entry.size > 0 };
        sum = sum
            .checked_add(entry.size)
            .filter(|_sum| fits)
            .ok_or(ManifestError::Size { found: entry.size })?;
    }
    Ok(sum)
}

/// One node of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestNode {
    /// Levels of nodes below: 0 = the entries are data chunks.
    pub level: u8,
    /// 1 to [`LIST_ENTRIES_MAX`].
    pub entries: Vec<ManifestEntry>,
}

impl ManifestNode {
    /// Its bytes, at most [`NODE_BYTES_MAX`].
    ///
    /// # Panics
    /// If it has more than [`LIST_ENTRIES_MAX`] entries.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        assert!(self.entries.len() <= LIST_ENTRIES_MAX, "a node of {} entries", self.entries.len());
        #[expect(clippy::cast_possible_truncation, reason = "at most LIST_ENTRIES_MAX")]
        let count = self.entries.len() as u32;
        let mut bytes = Vec::with_capacity(NODE_HEADER_BYTES + self.entries.len() * NODE_ENTRY_BYTES);
        bytes.extend_from_slice(&[NODE_FORMAT, self.level]);
        bytes.extend_from_slice(&count.to_be_bytes());
        for entry in &self.entries {
            bytes.extend_from_slice(entry.id.as_bytes());
            bytes.extend_from_slice(&entry.size.to_be_bytes());
        }
        bytes.into()
    }
}

/// Takes a node apart, and checks all of it but its id.
///
/// # Errors
/// If the bytes are not a node that [`ManifestNode::encode`] makes.
pub fn decode_node(bytes: &[u8]) -> Result<ManifestNode, ManifestError> {
    let header: &[u8; NODE_HEADER_BYTES] =
        bytes.first_chunk().ok_or(ManifestError::Length { bytes: bytes.len(), entries: 0 })?;
    let &[format, level, c0, c1, c2, c3] = header;
    if format != NODE_FORMAT {
        return Err(ManifestError::Format { found: format });
    }
    if level >= DEPTH_MAX {
        return Err(ManifestError::Level { found: level });
    }
    let count = u32::from_be_bytes([c0, c1, c2, c3]) as usize;
    if count == 0 || count > LIST_ENTRIES_MAX {
        return Err(ManifestError::Count { found: count });
    }
    let (rows, rest) = bytes[NODE_HEADER_BYTES..].as_chunks::<NODE_ENTRY_BYTES>();
    if rows.len() != count || !rest.is_empty() {
        return Err(ManifestError::Length { bytes: bytes.len(), entries: count });
    }
    let entries: Vec<ManifestEntry> = rows.iter().map(entry_from_row).collect();
    check_entries(level, &entries)?;
    Ok(ManifestNode { level, entries })
}

fn entry_from_row(row: &[u8; NODE_ENTRY_BYTES]) -> ManifestEntry {
    let mut id = [0; 32];
    let mut size = [0; 8];
    id.copy_from_slice(&row[..32]);
    size.copy_from_slice(&row[32..]);
    ManifestEntry { id: ChunkId::from_bytes(id), size: u64::from_be_bytes(size) }
}

/// Folds a content's chunks into a list, and the nodes to be stored under it, each before those that name it.
///
/// # Errors
/// If a chunk's size is not one, or there are more than [`LIST_ENTRIES_MAX`] to the power of [`DEPTH_MAX`] + 1.
pub fn build_tree(
    entries: Vec<ManifestEntry>,
) -> Result<(ContentList, Vec<(ChunkId, Bytes)>), ManifestError> {
    for entry in &entries {
        check_chunk_size(entry.size).map_err(|refused| ManifestError::Size { found: refused.bytes })?;
    }
    let mut list = ContentList { depth: 0, entries };
    let mut nodes = Vec::new();
    while list.entries.len() > LIST_ENTRIES_MAX {
        if list.depth == DEPTH_MAX {
            return Err(ManifestError::Count { found: list.entries.len() });
        }
        let mut above = Vec::with_capacity(list.entries.len().div_ceil(LIST_ENTRIES_MAX));
        for run in list.entries.chunks(LIST_ENTRIES_MAX) {
            let size = run.iter().map(|entry| entry.size).sum();
            let bytes = ManifestNode { level: list.depth, entries: run.to_vec() }.encode();
            let id = manifest_node_id(&bytes);
            above.push(ManifestEntry { id, size });
            nodes.push((id, bytes));
        }
        list = ContentList { depth: list.depth + 1, entries: above };
    }
    Ok((list, nodes))
}

/// What a walk needs or gives next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkStep {
    /// The next data chunk, and where it begins in the file.
    Chunk {
        /// Its first byte.
        offset: u64,
        /// Its name and size.
        entry: ManifestEntry,
    },
    /// This node's bytes are needed: give them to [`TreeWalk::feed`], then go on.
    Fetch {
        /// The node's name, and the bytes of the file under it.
        entry: ManifestEntry,
    },
    /// There are no more.
    Done,
}

/// Walks a content's chunks in order, from a byte offset on. Does no IO: it says which node it needs.
///
/// Memory: one list and one node per level, at most four of [`LIST_ENTRIES_MAX`] entries.
#[derive(Clone, Debug)]
pub struct TreeWalk {
    /// From the list down: what is left of each level.
    levels: Vec<WalkLevel>,
    /// Where the next entry begins in the file.
    offset: u64,
    /// Chunks that end at or before it are left out.
    from: u64,
    /// The node that is asked for.
    awaited: Option<ManifestEntry>,
}

#[derive(Clone, Debug)]
struct WalkLevel {
    level: u8,
    entries: std::vec::IntoIter<ManifestEntry>,
}

impl TreeWalk {
    /// Begins with the chunk that holds byte `from` of the file.
    ///
    /// # Errors
    /// If the list is not one.
    pub fn new(list: ContentList, from: u64) -> Result<Self, ManifestError> {
        list.check()?;
        let level = WalkLevel { level: list.depth, entries: list.entries.into_iter() };
        Ok(Self { levels: vec![level], offset: 0, from, awaited: None })
    }

    /// What comes next. While a node is awaited, it says so again.
    pub fn step(&mut self) -> WalkStep {
        loop {
            if let Some(entry) = self.awaited {
                return WalkStep::Fetch { entry };
            }
            let Some(top) = self.levels.last_mut() else { return WalkStep::Done };
            let Some(entry) = top.entries.next() else {
                self.levels.pop();
                continue;
            };
            let offset = self.offset;
            if offset + entry.size <= self.from {
                self.offset += entry.size;
            } else if top.level == 0 {
                self.offset += entry.size;
                return WalkStep::Chunk { offset, entry };
            } else {
                self.awaited = Some(entry);
            }
        }
    }

    /// Takes the bytes of the node that [`WalkStep::Fetch`] named.
    ///
    /// # Errors
    /// If they are not that node, or it does not belong there. The walk then still awaits it.
    ///
    /// # Panics
    /// If no node was asked for.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ManifestError> {
        #[expect(clippy::expect_used, reason = "see Panics")]
        let awaited = self.awaited.expect("a node that was not asked for");
        if manifest_node_id(bytes) != awaited.id {
            return Err(ManifestError::WrongNode { expected: awaited.id });
        }
        let node = decode_node(bytes)?;
        let above = self.levels.last().map_or(0, |above| above.level);
        if node.level + 1 != above {
            return Err(ManifestError::Level { found: node.level });
        }
        let sum = check_entries(node.level, &node.entries)?;
        if sum != awaited.size {
            return Err(ManifestError::Size { found: sum });
        }
        self.levels.push(WalkLevel { level: node.level, entries: node.entries.into_iter() });
        self.awaited = None;
        Ok(())
    }
}

// A node must fit a chunk, and leave room beside it in a stripe.
const _: () = assert!(NODE_BYTES_MAX <= 256 * 1024 && NODE_BYTES_MAX <= CHUNK_BYTES_MAX);

#[cfg(test)]
mod tests;
