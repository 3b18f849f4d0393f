//! Chunks: what is deduplicated. A chunk's name is the SHA-256 of its plain bytes.

use crate::hash::sha256;
use crate::ids::ChunkId;
use crate::location::ChunkKind;
use crate::manifest::manifest_node_id;

/// Most plain bytes in a chunk, of any cutter and kind.
pub const CHUNK_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why bytes are not a chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a chunk: {bytes} bytes; chunks have 1 to {CHUNK_BYTES_MAX}")]
pub struct ChunkSizeError {
    /// How many there are.
    pub bytes: u64,
}

/// Refuses sizes that no chunk has.
///
/// # Errors
/// If `bytes` is 0 or above [`CHUNK_BYTES_MAX`].
pub fn check_chunk_size(bytes: u64) -> Result<(), ChunkSizeError> {
    if bytes == 0 || bytes > CHUNK_BYTES_MAX as u64 {
        return Err(ChunkSizeError { bytes });
    }
    Ok(())
}

impl ChunkId {
    /// The name of a chunk of a file's bytes.
    #[must_use]
    pub fn of(plain: &[u8]) -> Self {
        Self::from_bytes(sha256(plain))
    }

    /// Whether this is the name of `plain`, in the hash domain of `kind`.
    #[must_use]
    pub fn names(&self, kind: ChunkKind, plain: &[u8]) -> bool {
        *self
            == match kind {
                ChunkKind::Data => Self::of(plain),
                ChunkKind::Manifest => manifest_node_id(plain),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_named_by_its_sha_256() {
        let id = ChunkId::of(b"abc");
        assert_eq!(id.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(id.names(ChunkKind::Data, b"abc"));
        assert!(!id.names(ChunkKind::Manifest, b"abc"), "the domains must differ");
    }

    #[test]
    fn empty_and_oversized_chunks_are_refused() {
        assert!(check_chunk_size(0).is_err());
        assert!(check_chunk_size(1).is_ok());
        assert!(check_chunk_size(CHUNK_BYTES_MAX as u64).is_ok());
        assert!(check_chunk_size(CHUNK_BYTES_MAX as u64 + 1).is_err());
    }
}
