//! The thread that owns the state. Others send it work and wait for what comes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};

use crate::state::database::State;
use crate::state::error::StateError;

/// Work that waits.
const WORK_QUEUED_MAX: usize = 256;

type Work = Box<dyn FnOnce(&mut State) + Send>;

/// Sends work to the state's thread.
#[derive(Clone, Debug)]
pub(crate) struct StateThread {
    work: mpsc::Sender<Work>,
    damaged: Arc<AtomicBool>,
}

/// The thread itself, to be waited for.
#[derive(Debug)]
pub(crate) struct StateOwner {
    thread: std::thread::JoinHandle<Result<(), StateError>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The thread has ended: the session is stopping.
    #[error("the state is closed")]
    Closed,
    /// The state failed.
    #[error(transparent)]
    State(#[from] StateError),
}

impl StateThread {
    /// Starts the thread. It ends, and closes the state, once all senders are dropped.
    pub(crate) fn start(mut state: State) -> std::io::Result<(Self, StateOwner)> {
        let (work, mut queue) = mpsc::channel::<Work>(WORK_QUEUED_MAX);
        let thread = std::thread::Builder::new().name("sync-state".to_owned()).spawn(move || {
            while let Some(work) = queue.blocking_recv() {
                work(&mut state);
            }
            state.close()
        })?;
        Ok((Self { work, damaged: Arc::default() }, StateOwner { thread }))
    }

    /// Has `work` done, and gives what came of it. Work is done in the order it was sent in. If this is dropped
    /// before, the work is done all the same.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, AskError> {
        let (done, answer) = oneshot::channel();
        let boxed: Work = Box::new(move |state| {
            // Who asked may be gone.
            drop(done.send(work(state)));
        });
        self.work.send(boxed).await.map_err(|_closed| AskError::Closed)?;
        let answer = answer.await.map_err(|_dropped| AskError::Closed)?;
        if matches!(answer, Err(StateError::Damaged(_))) {
            self.damaged.store(true, Ordering::Relaxed);
        }
        answer.map_err(AskError::State)
    }

    /// Whether the state was found damaged: it is to be built anew.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }
}

impl StateOwner {
    /// Waits for the thread. Blocks.
    pub(crate) fn join(self) -> Result<(), StateError> {
        self.thread
            .join()
            .unwrap_or_else(|_panic| Err(StateError::Unusable("the state's thread panicked".to_owned())))
    }
}
