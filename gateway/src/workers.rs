//! Threads for what takes a processor for long, beside the async workers: these have thousands of small steps to do, each of
//! which would wait for it.
//!
//! Invariants:
//! - Work gives way to whoever serves: see [`Importance`].
//! - At most as many pieces of work as there are threads have begun or wait for a thread, with what they hold. Further ones
//!   wait in their callers' futures, in the order of asking.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
use tokio::sync::{Semaphore, oneshot};

type Job<W> = Box<dyn FnOnce(&mut W) + Send>;

/// The work was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a piece of work panicked, or its thread has ended")]
pub(crate) struct Unfinished;

/// How important a thread is to the scheduler, beside those that serve.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Importance {
    /// By so many steps less: it has a share, if a small one, of a machine that is never idle.
    Nice(i32),
    /// Not at all: whoever else wakes runs at once in its place, and on a machine that is never idle it hardly runs.
    Idle,
}

/// Some threads, each with a workspace that it keeps. They end, and are waited for, when this is dropped.
pub(crate) struct Workers<W> {
    at_once: Arc<Semaphore>,
    /// Pieces of work that are done.
    finished: Arc<AtomicU64>,
    jobs: Option<SyncSender<Job<W>>>,
    threads: Vec<JoinHandle<()>>,
}

impl<W: Default + 'static> Workers<W> {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// If the machine gives no threads.
    pub(crate) fn start(name: &str, count: usize, importance: Importance) -> std::io::Result<Self> {
        // As many jobs as there are permits.
        let (jobs, taken) = sync_channel(count);
        let taken = Arc::new(Mutex::new(taken));
        let threads = (0..count).map(|number| {
            let taken = Arc::clone(&taken);
            std::thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || work(importance, &taken))
        });
        let threads = threads.collect::<std::io::Result<_>>()?;
        let (at_once, finished) = (Arc::new(Semaphore::new(count)), Arc::default());
        Ok(Self { at_once, finished, jobs: Some(jobs), threads })
    }

    /// Has a piece of work done. Cancel safe: what has begun is finished for nobody.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut W) -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let turn = Arc::clone(&self.at_once).acquire_owned().await.map_err(|_closed| Unfinished)?;
        let (answer, result) = oneshot::channel();
        let finished = Arc::clone(&self.finished);
        // The permit goes with the work: a caller that is dropped does not let more of it start.
        let job: Job<W> = Box::new(move |workspace| {
            let result = work(workspace);
            finished.fetch_add(1, Ordering::Relaxed);
            drop(turn);
            // The caller may be gone.
            answer.send(result).ok();
        });
        self.jobs.as_ref().ok_or(Unfinished)?.try_send(job).map_err(|_ended| Unfinished)?;
        result.await.map_err(|_ended| Unfinished)
    }

    /// Waits until nothing was finished for so long.
    pub(crate) async fn stand_still(&self, period: Duration) {
        let mut before = self.finished.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(period).await;
            let now = self.finished.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.threads.len()
    }
}

impl<W> Drop for Workers<W> {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that does a processor's work had panicked");
            }
        }
    }
}

/// Makes this thread so important.
fn set(importance: Importance) {
    let outcome = match importance {
        // On Linux this is the thread's alone.
        Importance::Nice(nice) => rustix::process::nice(nice).map(drop).map_err(|error| error.to_string()),
        Importance::Idle => {
            let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
            let thread = thread_priority::thread_native_id();
            thread_priority::set_thread_priority_and_policy(thread, ThreadPriority::Min, policy)
                .map_err(|error| error.to_string())
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(error, ?importance, "a thread is more important than it should be");
    }
}

/// Does jobs until there will be none.
fn work<W: Default>(importance: Importance, jobs: &Mutex<Receiver<Job<W>>>) {
    set(importance);
    let mut workspace = W::default();
    loop {
        // Held while this thread waits: the others wait behind it.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            // A panic is told to whoever waits for the work, by its answer that is dropped; the next piece begins anew.
            Ok(job) => {
                if catch_unwind(AssertUnwindSafe(|| job(&mut workspace))).is_err() {
                    workspace = W::default();
                }
            }
            Err(_closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn who_gives_up_lets_no_more_begin_than_there_are_threads() {
        let workers = Arc::new(Workers::<()>::start("test", 2, Importance::Nice(1)).unwrap());
        let (begun, (hold, held)) = (Arc::new(AtomicUsize::new(0)), std::sync::mpsc::channel::<()>());
        let held = Arc::new(Mutex::new(held));
        for _gives_up in 0..10 {
            let (begun, held) = (Arc::clone(&begun), Arc::clone(&held));
            let given_up = workers.run(move |()| {
                begun.fetch_add(1, Ordering::SeqCst);
                held.lock().unwrap().recv().ok();
            });
            drop(tokio::time::timeout(Duration::from_millis(5), given_up).await);
        }
        assert!(begun.load(Ordering::SeqCst) <= 2);
        drop(hold);
        let sums = join_all((0..20).map(|number| workers.run(move |()| number + 1))).await;
        assert_eq!(sums.into_iter().map(Result::unwrap).sum::<i32>(), 210);
        assert!(begun.load(Ordering::SeqCst) <= 2);
    }

    #[tokio::test]
    async fn work_that_panics_is_told_and_the_thread_goes_on() {
        let workers = Workers::<()>::start("test", 1, Importance::Nice(1)).unwrap();
        for number in 0..3 {
            let panics = || -> u32 { panic!("planted") };
            assert_eq!(workers.run(move |()| panics()).await, Err(Unfinished));
            assert_eq!(workers.run(move |()| number).await, Ok(number));
        }
    }
}
