//! Threads of a disk's own, for reads and other blocking work: never an async worker, and never another disk's.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::locks::locked;

type Job = Box<dyn FnOnce() + Send>;

/// Why work was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotRun {
    /// Too much waits already.
    #[error("too many requests wait for this disk")]
    Busy,
    /// The node stops.
    #[error("the storage node is stopping")]
    Stopping,
}

/// A fixed number of threads with one bounded queue.
pub(crate) struct Threads {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts `count` threads, for which up to `waiting_max` jobs may wait.
    pub(crate) fn start(name: &str, count: usize, waiting_max: usize) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Job>(waiting_max);
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = Vec::new();
        for _ in 0..count {
            let receiver = Arc::clone(&receiver);
            // Idle threads queue for the lock, the first of them for the next job.
            let body = move || {
                loop {
                    let next = locked(&receiver).blocking_recv();
                    match next {
                        Some(job) => job(),
                        None => return,
                    }
                }
            };
            threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(body)?);
        }
        Ok(Self { jobs: Mutex::new(Some(sender)), threads: Mutex::new(threads) })
    }

    /// Runs `job` on one of the threads. Dropping the future leaves it running.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotRun> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || drop(answer.send(job())));
        let sender = locked(&self.jobs).clone().ok_or(NotRun::Stopping)?;
        sender.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotRun::Busy,
            mpsc::error::TrySendError::Closed(_) => NotRun::Stopping,
        })?;
        drop(sender);
        answered.await.map_err(|_dropped| NotRun::Stopping)
    }

    /// Finishes what waits and ends the threads. Blocks.
    pub(crate) fn stop(&self) {
        drop(locked(&self.jobs).take());
        let threads = std::mem::take(&mut *locked(&self.threads));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a disk thread panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_refused_when_too_much_waits_and_finished_on_stop() {
        let threads = Arc::new(Threads::start("test", 1, 1).unwrap());
        assert_eq!(threads.run(|| 7).await, Ok(7));

        let (release, held) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let first = tokio::spawn({
            let threads = Arc::clone(&threads);
            async move {
                threads
                    .run(move || {
                        begun.send(()).unwrap();
                        held.recv().is_ok()
                    })
                    .await
            }
        });
        has_begun.await.unwrap();
        let mut waiting = Box::pin(threads.run(|| 8));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(threads.run(|| 9).await, Err(NotRun::Busy));
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(true));
        assert_eq!(waiting.await, Ok(8));
        tokio::task::spawn_blocking({
            let threads = Arc::clone(&threads);
            move || threads.stop()
        })
        .await
        .unwrap();
        assert_eq!(threads.run(|| 1).await, Err(NotRun::Stopping));
    }
}
