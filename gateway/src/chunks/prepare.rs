//! The work of a processor on chunks, off the async workers: checking their names, and compressing them.
//!
//! As many at once as there are processors, each with a compressor that it keeps.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use engine::codec::{ChunkCompressor, PreparedChunk};
use engine::ids::ChunkId;
use engine::location::ChunkKind;
use tokio::sync::Semaphore;

use crate::failure::Failure;

/// More would only take memory.
const AT_ONCE_MAX: usize = 8;

/// A bounded pool of workers.
#[derive(Clone)]
pub(crate) struct Preparer {
    at_once: Arc<Semaphore>,
    compressors: Arc<Mutex<Vec<ChunkCompressor>>>,
}

impl Preparer {
    pub(crate) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            at_once: Arc::new(Semaphore::new(processors.min(AT_ONCE_MAX))),
            compressors: Arc::new(Mutex::new(Vec::new())),
        }
    }

    /// Does a piece of work there.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = Arc::clone(&self.at_once).acquire_owned().await;
        let permit = permit.map_err(|closed| Failure::internal("prepare", &closed))?;
        tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        })
        .await
        .map_err(|error| Failure::internal("prepare", &error))
    }

    /// Whether each chunk has the name that it was sent under, in order.
    pub(crate) async fn check(&self, chunks: Vec<(ChunkId, Bytes)>) -> Result<Vec<bool>, Failure> {
        self.run(move || chunks.iter().map(|(chunk, plain)| chunk.names(ChunkKind::Data, plain)).collect())
            .await
    }

    /// Compresses chunks, whose names have been checked, where that pays; in order.
    pub(crate) async fn prepare(
        &self,
        kind: ChunkKind,
        chunks: Vec<(ChunkId, Bytes)>,
    ) -> Result<Vec<PreparedChunk>, Failure> {
        let compressors = Arc::clone(&self.compressors);
        let pool = move || compressors.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let compressors = Arc::clone(&self.compressors);
        self.run(move || {
            let mut compressor = pool().unwrap_or_default();
            let prepared = chunks
                .into_iter()
                .map(|(chunk, plain)| compressor.prepare(chunk, kind, plain))
                .collect::<Result<Vec<_>, _>>();
            compressors.lock().unwrap_or_else(PoisonError::into_inner).push(compressor);
            prepared
        })
        .await?
        .map_err(|error| Failure::invalid(error.to_string()))
    }
}
