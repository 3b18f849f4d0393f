//! What came of a transfer: counts, and what failed and why.

use serde::Serialize;

/// Something that was not transferred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Its path: local when putting, remote when getting.
    pub path: String,
    /// What happened and what to do.
    pub reason: String,
}

/// What a put did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UploadReport {
    /// Files committed, or found to be there already.
    pub files: u64,
    /// Of them, those that were there already with the same content: nothing was sent, and no version made.
    pub unchanged: u64,
    /// Folders made, or found.
    pub folders: u64,
    /// Symlinks made, or found.
    pub symlinks: u64,
    /// Bytes of the files committed.
    pub bytes: u64,
    /// Chunk bytes sent.
    pub bytes_sent: u64,
    /// Chunks of the files committed.
    pub chunks: u64,
    /// Chunks sent.
    pub chunks_sent: u64,
    /// What failed. Nothing of it is on the server under its name.
    pub failed: Vec<Failure>,
}

/// What a get did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DownloadReport {
    /// Files in place.
    pub files: u64,
    /// Of them, those that were there already with the same content.
    pub unchanged: u64,
    /// Folders made, or found.
    pub folders: u64,
    /// Symlinks made.
    pub symlinks: u64,
    /// Bytes of the files in place.
    pub bytes: u64,
    /// What failed. Nothing of it is on the disk under its name, other than what was there before.
    pub failed: Vec<Failure>,
}
