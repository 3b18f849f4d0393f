//! Between the wire's forms and the engine's.

use bytes::{Bytes, BytesMut};
use engine::cutter::Cutter;
use engine::manifest::ManifestEntry;
use proto::v1;

pub(crate) fn cutter_to_wire(cutter: Cutter) -> v1::Cutter {
    match cutter {
        Cutter::Cdc64k => v1::Cutter::Cdc64k,
        Cutter::Cdc256k => v1::Cutter::Cdc256k,
        Cutter::Cdc1m => v1::Cutter::Cdc1m,
        Cutter::Fixed4m => v1::Cutter::Fixed4m,
    }
}

/// `None` for a cutter that this version does not know.
pub(crate) fn cutter_from_wire(cutter: i32) -> Option<Cutter> {
    match v1::Cutter::try_from(cutter).ok()? {
        v1::Cutter::Unspecified => None,
        v1::Cutter::Cdc64k => Some(Cutter::Cdc64k),
        v1::Cutter::Cdc256k => Some(Cutter::Cdc256k),
        v1::Cutter::Cdc1m => Some(Cutter::Cdc1m),
        v1::Cutter::Fixed4m => Some(Cutter::Fixed4m),
    }
}

pub(crate) fn chunk_list(entries: &[ManifestEntry]) -> v1::ChunkList {
    let mut ids = BytesMut::with_capacity(entries.len() * 32);
    for entry in entries {
        ids.extend_from_slice(entry.id.as_bytes());
    }
    let size = |entry: &ManifestEntry| u32::try_from(entry.size).unwrap_or(u32::MAX);
    v1::ChunkList { ids: Bytes::from(ids), sizes: entries.iter().map(size).collect() }
}
