//! Model contents: a number each. Cut in two ways, which gives them two names; of few sizes, so that many are equal.

use engine::cutter::Cutter;
use engine::ids::ContentId;

use crate::planner::model::{FileContent, Kind};

/// Bytes of a file: what they say, as a number. 0: none.
pub(in crate::planner) type Bytes = u32;

pub(in crate::planner) fn cut(bytes: Bytes, cutter: Cutter) -> FileContent {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&bytes.to_le_bytes());
    id[4] = u8::from(cutter != Cutter::Cdc64k);
    let size = if bytes == 0 { 0 } else { 1 + u64::from(bytes % 3) };
    if bytes == 0 {
        id[4] = 0;
    }
    let cutter = if bytes == 0 { Cutter::Cdc64k } else { cutter };
    FileContent { content: ContentId::from_bytes(id), size, cutter }
}

pub(super) fn bytes_of(content: &FileContent) -> Bytes {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&content.content.as_bytes()[..4]);
    Bytes::from_le_bytes(bytes)
}

pub(super) fn bytes_of_kind(kind: &Kind) -> Option<Bytes> {
    match kind {
        Kind::File(content) => Some(bytes_of(content)),
        Kind::Folder | Kind::Symlink(_) => None,
    }
}
