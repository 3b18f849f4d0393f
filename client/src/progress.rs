//! What a transfer tells whoever watches it.

/// Watches a transfer. Called from several tasks and threads at once; must return at once.
pub trait Progress: Send + Sync {
    /// More work was found: so many files with so many bytes. The sum of all calls is the total known so far.
    fn planned(&self, files: u64, bytes: u64);
    /// Nothing more will be found.
    fn planned_all(&self);
    /// So many more bytes are done: sent, found to be there already, or written; also those of files that failed.
    fn advanced(&self, bytes: u64);
    /// One more file is done.
    fn file_done(&self);
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn planned(&self, _files: u64, _bytes: u64) {}
    fn planned_all(&self) {}
    fn advanced(&self, _bytes: u64) {}
    fn file_done(&self) {}
}
