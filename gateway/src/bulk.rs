//! Threads for work on many bytes, which gives way to everything else: what takes milliseconds of a processor would
//! otherwise stand before the many small steps of those who wait for little.

use std::future::Future;

use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// More would only take memory.
const THREADS_MAX: usize = 8;
/// How much less important they are to the scheduler.
const NICE: i32 = 5;
/// Fewer bytes are not worth the way to another thread.
pub(crate) const BULK_BYTES_MIN: u64 = 256 * 1024;

/// A runtime of such threads. They end when it is dropped, without being waited for.
pub(crate) struct Bulk {
    runtime: Option<Runtime>,
}

impl Bulk {
    /// Starts the threads; without them, if the system gives none, the work is done where it is asked for.
    pub(crate) fn start() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let runtime = Builder::new_multi_thread()
            .worker_threads(processors.min(THREADS_MAX))
            .thread_name("bulk")
            .on_thread_start(|| {
                // On Linux this is the thread's alone.
                if let Err(error) = rustix::process::nice(NICE) {
                    tracing::debug!(error = %error, "bulk work is done at the priority of everything else");
                }
            })
            .enable_time()
            .build();
        let runtime = runtime.inspect_err(|error| tracing::warn!(error = %error, "no threads for bulk work"));
        Self { runtime: runtime.ok() }
    }

    /// Runs work of so many bytes; it is dropped with the future that is given. `None` if it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        bytes: u64,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        match &self.runtime {
            Some(runtime) if bytes >= BULK_BYTES_MIN => {
                AbortOnDropHandle::new(runtime.spawn(work)).await.ok()
            }
            _ => Some(work.await),
        }
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
