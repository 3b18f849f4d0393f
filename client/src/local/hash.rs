//! Names the content of files: cuts and hashes them, and says how they were while that was done.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use engine::cutter::{ChunkCutter, Cutter};
use engine::ids::{ChunkId, ContentId};
use engine::manifest::ManifestEntry;
use tokio_util::sync::CancellationToken;

use super::disk::DiskError;
use super::model::Stamp;
use super::own_data;
use super::rel::Rel;
use super::root::Root;
use crate::planner::model::FileContent;

/// Why a file's content cannot be named.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// It is being written: try again once it is quiet.
    #[error("{0} changed while it was read")]
    StillChanging(Rel),
    /// It cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The caller stopped it.
    #[error("stopped")]
    Stopped,
}

/// A file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// Its name.
    pub content: FileContent,
    /// How the file was, before the first byte was read and after the last.
    pub stamp: Stamp,
    /// Its chunks.
    pub chunks: Vec<ManifestEntry>,
    /// It signs a device in.
    pub is_profile: bool,
}

impl Root {
    /// Reads a file and names its content, cut as `cutter` says for its size. Blocks.
    ///
    /// # Errors
    /// See [`HashError`].
    pub fn hash(
        &self,
        rel: &Rel,
        cutter: impl FnOnce(u64) -> Cutter,
        stop: &CancellationToken,
    ) -> Result<Hashed, HashError> {
        let (file, before) = self.open_for_read(rel)?;
        let cutter = cutter(before.size);
        let (chunks, is_profile) = cut(&file, before.size, cutter, stop, rel)?;
        let after = self.object_of_fd(file.as_fd()).map_err(|errno| DiskError::of(rel, errno))?;
        let size = chunks.iter().map(|chunk| chunk.size).sum::<u64>();
        if after.stamp != before || size != before.size {
            return Err(HashError::StillChanging(rel.clone()));
        }
        let content = FileContent { content: ContentId::of(&chunks), size, cutter };
        Ok(Hashed { content, stamp: before, chunks, is_profile })
    }
}

fn cut(
    file: &File,
    size: u64,
    cutter: Cutter,
    stop: &CancellationToken,
    rel: &Rel,
) -> Result<(Vec<ManifestEntry>, bool), HashError> {
    let mut chunks = Vec::new();
    let mut is_profile = false;
    let mut cut = ChunkCutter::new(cutter);
    // No further than it reached when it was opened: a log that grows all the time would never end.
    let mut reader = file.take(size);
    loop {
        let ended = cut.push_from(&mut reader).map_err(|error| DiskError::of_io(rel, error))?;
        while let Some(chunk) = cut.next_chunk() {
            is_profile |= own_data::is_profile(chunk.bytes, size);
            chunks.push(ManifestEntry { id: ChunkId::of(chunk.bytes), size: chunk.bytes.len() as u64 });
        }
        if ended {
            return Ok((chunks, is_profile));
        }
        if stop.is_cancelled() {
            return Err(HashError::Stopped);
        }
    }
}
