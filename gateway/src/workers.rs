//! Threads for what takes a processor for long, beside the async workers: these have thousands of small steps to do, each of
//! which would wait for it.
//!
//! Invariants:
//! - Work gives way to whoever serves: see [`Importance`].
//! - At most as many pieces of work as there are threads have begun or wait for a thread, with what they hold. Further ones
//!   wait in their callers' futures, in the order of asking.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

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

/// What of the work is under way. Without a lock: an idle thread that holds one may not run for long.
struct Progress {
    begun: Instant,
    taken: AtomicUsize,
    /// When the first of it was taken, or some was finished last; since `begun`.
    since_ms: AtomicU64,
}

impl Progress {
    fn new(begun: Instant) -> Self {
        Self { begun, taken: AtomicUsize::new(0), since_ms: AtomicU64::new(0) }
    }

    fn note(&self, now: Instant) {
        let since = u64::try_from((now - self.begun).as_millis()).unwrap_or(u64::MAX);
        self.since_ms.store(since, Ordering::SeqCst);
    }

    fn take(&self, now: Instant) {
        if self.taken.load(Ordering::SeqCst) == 0 {
            // Before it is counted: nobody is to see the work with the time of what came before it.
            self.note(now);
        }
        self.taken.fetch_add(1, Ordering::SeqCst);
    }

    fn finish(&self, now: Instant) {
        self.note(now);
        self.taken.fetch_sub(1, Ordering::SeqCst);
    }

    /// When it will be that nothing was finished for so long.
    fn stands_still_at(&self, period: Duration, now: Instant) -> Instant {
        if self.taken.load(Ordering::SeqCst) == 0 {
            return now + period;
        }
        self.begun + Duration::from_millis(self.since_ms.load(Ordering::SeqCst)) + period
    }
}

/// A piece of work's place among those under way, until it is finished, given up, or has panicked.
struct Turn {
    progress: Arc<Progress>,
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    fn taken(progress: &Arc<Progress>, permit: OwnedSemaphorePermit) -> Self {
        progress.take(Instant::now());
        Self { progress: Arc::clone(progress), _permit: permit }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.progress.finish(Instant::now());
    }
}

/// Where no thread may be idle.
const NICE_INSTEAD: i32 = 15;

/// Some threads, each with a workspace that it keeps. They end when this is dropped, and are waited for but for idle ones:
/// those may take long to end, and hold nothing.
pub(crate) struct Workers<W> {
    importance: Importance,
    at_once: Arc<Semaphore>,
    progress: Arc<Progress>,
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
        let at_once = Arc::new(Semaphore::new(count));
        let progress = Arc::new(Progress::new(Instant::now()));
        Ok(Self { importance, at_once, progress, jobs: Some(jobs), threads })
    }

    /// Has a piece of work done. Cancel safe: what has begun is finished for nobody, and nothing else begins.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut W) -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let permit = Arc::clone(&self.at_once).acquire_owned().await.map_err(|_closed| Unfinished)?;
        let (answer, result) = oneshot::channel();
        let turn = Turn::taken(&self.progress, permit);
        // The permit goes with the work: a caller that is dropped does not let more of it start.
        let job: Job<W> = Box::new(move |workspace| {
            if !answer.is_closed() {
                // The caller may be gone by then.
                answer.send(work(workspace)).ok();
            }
            // Not before the answer: it makes others run, in this thread's place maybe.
            drop(turn);
        });
        self.jobs.as_ref().ok_or(Unfinished)?.try_send(job).map_err(|_ended| Unfinished)?;
        result.await.map_err(|_ended| Unfinished)
    }

    /// Waits until nothing of the work that was taken has been finished for so long. Cancel safe: it only looks.
    pub(crate) async fn stand_still(&self, period: Duration) {
        loop {
            let now = Instant::now();
            let until = self.progress.stands_still_at(period, now);
            if until <= now {
                return;
            }
            tokio::time::sleep_until(until.into()).await;
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
        if matches!(self.importance, Importance::Idle) {
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that does a processor's work had panicked");
            }
        }
    }
}

/// Makes this thread so important.
fn set(importance: Importance) {
    let nice = match importance {
        Importance::Nice(nice) => nice,
        Importance::Idle => NICE_INSTEAD,
    };
    // On Linux this is the thread's alone.
    if let Err(error) = rustix::process::nice(nice) {
        tracing::warn!(error = %error, "a thread works at the priority of everything else");
    }
    if matches!(importance, Importance::Idle) {
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let thread = thread_priority::thread_native_id();
        let set = thread_priority::set_thread_priority_and_policy(thread, ThreadPriority::Min, idle);
        // It sets the niceness too, which means nothing then, and may not be allowed to.
        if thread_priority::thread_schedule_policy() != Ok(idle) {
            tracing::warn!(error = ?set.err(), "a thread that should only run when no other wants to is just less important");
        }
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
    use futures_util::FutureExt;
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
    async fn what_is_given_up_before_it_began_never_begins() {
        let workers = Workers::<()>::start("test", 1, Importance::Idle).unwrap();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let begun = Arc::new(AtomicUsize::new(0));
        let first = workers.run(move |()| held.recv().is_ok());
        let mut first = std::pin::pin!(first);
        assert!(first.as_mut().now_or_never().is_none());
        for _gives_up in 0..10 {
            let begun = Arc::clone(&begun);
            let second = workers.run(move |()| begun.fetch_add(1, Ordering::SeqCst));
            assert!(second.now_or_never().is_none());
        }
        drop(hold);
        first.await.unwrap();
        assert_eq!(workers.run(|()| 7).await, Ok(7));
        assert_eq!(begun.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn an_idle_thread_is_one_to_the_scheduler() {
        let workers = Workers::<()>::start("test", 1, Importance::Idle).unwrap();
        let policy = workers.run(|()| thread_priority::thread_schedule_policy()).await.unwrap();
        assert_eq!(policy, Ok(ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle)));
    }

    #[test]
    fn work_stands_still_from_when_some_was_finished_last() {
        const PERIOD: Duration = Duration::from_millis(100);
        let begun = Instant::now();
        let after = |periods: u32| begun + PERIOD * periods;
        let progress = Progress::new(begun);
        assert_eq!(progress.stands_still_at(PERIOD, after(9)), after(10), "nothing is to be done");
        progress.take(after(10));
        progress.take(after(12));
        assert_eq!(progress.stands_still_at(PERIOD, after(13)), after(11), "more work is no progress");
        progress.finish(after(14));
        assert_eq!(progress.stands_still_at(PERIOD, after(14)), after(15));
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
