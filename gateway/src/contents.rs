//! Where a tree's contents are: listed, with their chunks in stripes, or whole in the nursery of the tree's group.
//!
//! Invariants:
//! - The nursery is asked first: what has left it has been listed elsewhere before.
//! - Bytes of the nursery are checked against their chunks' names before they are given on, as all others are.

use std::collections::HashMap;

use bytes::Bytes;
use engine::chunk::CHUNK_BYTES_MAX;
use engine::ids::{ChunkId, ContentId, NamespaceId};
use engine::location::ChunkKind;
use engine::manifest::{ContentList, ManifestEntry};
use metaraft::api::MetaError;
use metaraft::model::nursery::{FileAt, FoundContent, Opened, TokenGuard};
use metaraft::model::query::{Query, Reply};

use crate::core::content_gone;
use crate::failure::Failure;
use crate::meta::{Meta, ask_all, wrong_reply};

/// One content of a tree.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Its chunks are in stripes.
    Listed(ContentList),
    /// It is in the nursery.
    Kept(KeptContent),
}

/// A content of the nursery.
#[derive(Clone, Debug)]
pub(crate) struct KeptContent {
    chunks: Vec<ManifestEntry>,
    bytes: Bytes,
}

impl KeptContent {
    pub(crate) fn new(chunks: Vec<ManifestEntry>, bytes: Vec<u8>) -> Self {
        Self { chunks, bytes: bytes.into() }
    }

    /// Its chunks with their bytes, verified.
    pub(crate) fn verified(&self) -> Result<Vec<(ChunkId, Bytes)>, Failure> {
        let mut rest = self.bytes.clone();
        let mut verified = Vec::with_capacity(self.chunks.len());
        for ManifestEntry { id, size } in &self.chunks {
            let size = usize::try_from(*size).unwrap_or(usize::MAX);
            if size > rest.len().min(CHUNK_BYTES_MAX) {
                return Err(damaged(*id));
            }
            let plain = rest.split_to(size);
            if !id.names(ChunkKind::Data, &plain) {
                return Err(damaged(*id));
            }
            verified.push((*id, plain));
        }
        Ok(verified)
    }

    fn into_list(self) -> ContentList {
        ContentList { depth: 0, entries: self.chunks }
    }
}

impl Content {
    /// Its chunks, or the top of their tree.
    pub(crate) fn into_list(self) -> ContentList {
        match self {
            Self::Listed(list) => list,
            Self::Kept(kept) => kept.into_list(),
        }
    }

    /// As a group has found it; `None` if it has to be asked for elsewhere, or is nowhere.
    pub(crate) fn found(content: FoundContent) -> Option<Self> {
        match content {
            FoundContent::Elsewhere | FoundContent::Absent => None,
            FoundContent::Stored(row) => Some(Self::Listed(row.list)),
            FoundContent::Nursery { chunks, bytes } => Some(Self::Kept(KeptContent::new(chunks, bytes))),
        }
    }
}

fn damaged(chunk: ChunkId) -> Failure {
    tracing::error!(chunk = %chunk, "a chunk of the nursery is not what its name says");
    content_gone()
}

impl Meta {
    /// Contents that versions of a tree have; those that are nowhere are left out. Of those in the nursery the bytes are
    /// there only if they were asked for.
    pub(crate) async fn contents_in(
        &self,
        namespace: NamespaceId,
        contents: &[ContentId],
        bytes: bool,
    ) -> Result<HashMap<ContentId, Content>, MetaError> {
        let ask = |contents| async move {
            match self.query(namespace.slot(), Query::ContentsIn { namespace, contents, bytes }).await? {
                Reply::ContentsIn(found) => Ok(Some(found)),
                _ => Ok(None),
            }
        };
        let found = ask_all("contents", contents, |_content| ContentId::LENGTH, ask).await?;
        let (mut there, mut elsewhere) = (HashMap::with_capacity(contents.len()), Vec::new());
        for (content, found) in contents.iter().zip(found) {
            if found == FoundContent::Elsewhere {
                elsewhere.push(*content);
            } else if let Some(found) = Content::found(found) {
                there.insert(*content, found);
            }
        }
        if !elsewhere.is_empty() {
            let rows = self.contents(&elsewhere).await?;
            there.extend(rows.into_iter().map(|(content, row)| (content, Content::Listed(row.list))));
        }
        Ok(there)
    }

    /// An entry and, with `content`, all that is needed to read a file's current version, in one look.
    pub(crate) async fn open(
        &self,
        guard: Option<TokenGuard>,
        namespace: NamespaceId,
        at: FileAt,
        content: bool,
    ) -> Result<Opened, MetaError> {
        let query = Query::OpenFile { guard, namespace, at, content };
        match self.query(namespace.slot(), query).await? {
            Reply::Opened(opened) => Ok(*opened),
            _ => Err(wrong_reply("file")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(chunks: &[&[u8]]) -> KeptContent {
        let entry = |chunk: &&[u8]| ManifestEntry { id: ChunkId::of(chunk), size: chunk.len() as u64 };
        KeptContent::new(chunks.iter().map(entry).collect(), chunks.concat())
    }

    #[test]
    fn only_the_right_bytes_are_given_on() {
        let right = kept(&[b"one", b"another"]);
        let bytes: Vec<Bytes> = right.verified().unwrap().into_iter().map(|(_chunk, bytes)| bytes).collect();
        assert_eq!(bytes, ["one", "another"]);
        let mut flipped = right.bytes.to_vec();
        flipped[4] ^= 1;
        for wrong in [flipped, right.bytes[1..].to_vec(), Vec::new()] {
            let failure = KeptContent::new(right.chunks.clone(), wrong).verified().unwrap_err();
            assert_eq!(failure.code, tonic::Code::DataLoss);
        }
    }
}
