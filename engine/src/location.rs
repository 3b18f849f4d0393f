//! Where a chunk lies, and what it is: the registry's answer to "where is chunk X".

use serde::{Deserialize, Serialize};

use crate::cluster::StripeShape;
use crate::ids::{ChunkId, StripeId};

/// How a chunk's stored bytes become its plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Codec {
    /// Stored as they are.
    Plain,
    /// One zstd frame.
    Zstd,
}

/// What the id of a chunk is a hash of. User bytes can never be taken for a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChunkKind {
    /// Bytes of a file.
    Data,
    /// A node of a manifest tree, hashed in a domain of its own, made only by the gateway.
    Manifest,
}

/// Where a chunk's stored bytes lie within a stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkLocation {
    /// The stripe; its id names the volume.
    pub stripe: StripeId,
    /// The stripe's shape, so that a read needs no second look-up.
    pub shape: StripeShape,
    /// First stored byte, counted from the start of the stripe (its table included).
    pub offset: u32,
    /// Stored bytes.
    pub stored_length: u32,
    /// Plain bytes.
    pub plain_length: u32,
    /// How they are stored.
    pub codec: Codec,
    /// What the id is a hash of.
    pub kind: ChunkKind,
}

/// A chunk together with where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LocatedChunk {
    /// Its name.
    pub chunk: ChunkId,
    /// Its place.
    pub location: ChunkLocation,
}
