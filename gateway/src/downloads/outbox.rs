//! What a download has ready to be sent. Unlike in a channel, what was not taken can be taken back: a client that
//! pauses is no fault, and costs nothing while it does.
//!
//! Invariants:
//! - Messages are given in order; what is taken back was not given.
//! - A stream never ends well by itself: without [`Outbox::end`] it ends with an error, and an error comes after all
//!   messages before it, however long these wait.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::Notify;
use tonic::Status;

struct State<T> {
    waiting: VecDeque<T>,
    /// Set once: how it ended.
    ended: Option<Result<(), Status>>,
    /// The client would take a message, and there was none.
    wanted: bool,
    gone: bool,
    waker: Option<Waker>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// Something was taken or asked for, or the client has gone.
    taken: Notify,
    /// The client has gone.
    left: Notify,
    messages_max: usize,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client does not listen any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// What came of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// What was waited for is so.
    Ready,
    /// The client has taken nothing for as long as was waited.
    Paused,
}

/// The sender's half. One task uses it.
pub(crate) struct Outbox<T>(Arc<Shared<T>>);

/// The client's half: a stream of messages.
pub(crate) struct Taken<T>(Arc<Shared<T>>);

/// At most `messages_max` wait.
pub(crate) fn outbox<T>(messages_max: usize) -> (Outbox<T>, Taken<T>) {
    let state = State { waiting: VecDeque::new(), ended: None, wanted: false, gone: false, waker: None };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        taken: Notify::new(),
        left: Notify::new(),
        messages_max,
    });
    (Outbox(Arc::clone(&shared)), Taken(shared))
}

impl<T> Outbox<T> {
    /// Does work whose messages go here, and drops it when the client goes: whatever it waits for then, nobody wants what
    /// comes of it. One at a time.
    pub(crate) async fn while_heard<R>(&self, work: impl Future<Output = R>) -> Result<R, Gone> {
        tokio::select! {
            biased;
            () = self.0.left.notified() => Err(Gone),
            result = work => Ok(result),
        }
    }

    /// Waits until there is room for a message. Cancel safe.
    pub(crate) async fn room(&self, pause_after: Duration) -> Result<Waited, Gone> {
        let messages_max = self.0.messages_max;
        self.until(pause_after, |state| state.waiting.len() < messages_max).await
    }

    /// There will be no further message: the stream ends well with the last of those that wait, in one go with it. Waits until
    /// that was taken (the client may have gone by then); if the client pauses before, it has not ended. Cancel safe.
    pub(crate) async fn last_taken(&self, pause_after: Duration) -> Result<Waited, Gone> {
        {
            let mut state = self.0.state();
            state.ended = Some(Ok(()));
            wake(state);
        }
        let waited = self.until(pause_after, |state| state.waiting.is_empty()).await?;
        let mut state = self.0.state();
        if waited == Waited::Ready || state.waiting.is_empty() {
            return Ok(Waited::Ready);
        }
        state.ended = None;
        Ok(Waited::Paused)
    }

    /// Waits, for as long as it takes, until the client would take a message that is not there. Cancel safe.
    pub(crate) async fn wanted(&self) -> Result<(), Gone> {
        loop {
            {
                let state = self.0.state();
                if state.gone {
                    return Err(Gone);
                }
                if state.wanted {
                    return Ok(());
                }
            }
            self.0.taken.notified().await;
        }
    }

    async fn until(&self, pause_after: Duration, is_so: impl Fn(&State<T>) -> bool) -> Result<Waited, Gone> {
        loop {
            {
                let state = self.0.state();
                if state.gone {
                    return Err(Gone);
                }
                if is_so(&state) {
                    return Ok(Waited::Ready);
                }
            }
            // Whatever is taken begins the time anew.
            if tokio::time::timeout(pause_after, self.0.taken.notified()).await.is_err() {
                return Ok(Waited::Paused);
            }
        }
    }

    /// Adds a message. There is room: the caller has waited for it.
    pub(crate) fn push(&self, message: T) {
        let mut state = self.0.state();
        debug_assert!(state.waiting.len() < self.0.messages_max, "pushed without room");
        state.waiting.push_back(message);
        state.wanted = false;
        wake(state);
    }

    /// Takes back what the client has not taken, in order.
    pub(crate) fn take_back(&self) -> VecDeque<T> {
        std::mem::take(&mut self.0.state().waiting)
    }

    /// Ends the stream: well, or with an error that comes after what waits.
    pub(crate) fn end(self, how: Result<(), Status>) {
        self.0.state().ended = Some(how);
    }
}

fn wake<T>(mut state: MutexGuard<'_, State<T>>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl<T> Drop for Outbox<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        let broken_off = || Err(Status::unavailable("the download was broken off; go on where it was"));
        state.ended.get_or_insert_with(broken_off);
        wake(state);
    }
}

impl<T> Stream for Taken<T> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.0.state();
        if let Some(message) = state.waiting.pop_front() {
            drop(state);
            self.0.taken.notify_one();
            return Poll::Ready(Some(Ok(message)));
        }
        match &mut state.ended {
            Some(how) => Poll::Ready(std::mem::replace(how, Ok(())).err().map(Err)),
            None => {
                state.waker = Some(context.waker().clone());
                state.wanted = true;
                drop(state);
                self.0.taken.notify_one();
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Taken<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.gone = true;
        state.waiting.clear();
        drop(state);
        self.0.taken.notify_one();
        self.0.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_paused_client_goes_on_where_it_was() {
        let (outbox, mut taken) = outbox(2);
        for number in [1, 2] {
            assert_eq!(outbox.room(SOON).await, Ok(Waited::Ready));
            outbox.push(number);
        }
        assert_eq!(taken.next().await.unwrap().unwrap(), 1);
        outbox.push(3);
        assert_eq!(outbox.room(SOON).await, Ok(Waited::Paused));
        assert_eq!(outbox.take_back(), [2, 3]);
        let sender = tokio::spawn(async move {
            outbox.wanted().await.unwrap();
            for number in [2, 3, 4] {
                assert_eq!(outbox.room(SOON).await, Ok(Waited::Ready));
                outbox.push(number);
            }
            // Who has seen the end may go at once.
            assert_ne!(outbox.last_taken(SOON).await, Ok(Waited::Paused));
            outbox.end(Ok(()));
        });
        let rest: Vec<i32> = taken.map(Result::unwrap).collect().await;
        assert_eq!(rest, [2, 3, 4]);
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn the_end_comes_with_the_last_message_and_not_before_it() {
        let (outbox, mut taken) = outbox(2);
        outbox.push(1);
        outbox.push(2);
        assert_eq!(outbox.last_taken(SOON).await, Ok(Waited::Paused));
        assert_eq!(taken.next().await.unwrap().unwrap(), 1);
        assert_eq!(outbox.take_back(), [2]);
        let waits = tokio::time::timeout(SOON, taken.next());
        assert!(waits.await.is_err(), "it has not ended");
        outbox.push(2);
        let last = tokio::spawn(async move { outbox.last_taken(SOON).await });
        tokio::task::yield_now().await;
        // No task of the sender's runs between these two.
        assert_eq!(taken.next().now_or_never().unwrap().unwrap().unwrap(), 2);
        assert!(taken.next().now_or_never().unwrap().is_none());
        assert_ne!(last.await.unwrap(), Ok(Waited::Paused));
    }

    #[tokio::test]
    async fn an_error_comes_after_a_full_queue() {
        let (outbox, taken) = outbox(2);
        outbox.push(1);
        outbox.push(2);
        outbox.end(Err(Status::data_loss("gone")));
        let all: Vec<_> = taken.map(|item| item.map_err(|status| status.code())).collect().await;
        assert_eq!(all, [Ok(1), Ok(2), Err(tonic::Code::DataLoss)]);
    }

    #[tokio::test]
    async fn a_sender_that_is_dropped_never_ends_the_stream_well() {
        let (outbox, taken) = outbox(2);
        outbox.push(1);
        drop(outbox);
        let all: Vec<_> = taken.collect().await;
        assert_eq!(all[1].as_ref().unwrap_err().code(), tonic::Code::Unavailable);
    }

    #[tokio::test]
    async fn a_client_that_has_gone_is_noticed_while_it_pauses() {
        let (outbox, taken) = outbox(1);
        outbox.push(1);
        let waits = tokio::spawn(async move { outbox.wanted().await });
        drop(taken);
        assert_eq!(waits.await.unwrap(), Err(Gone));
    }

    #[tokio::test]
    async fn work_ends_with_the_client_whatever_it_waits_for() {
        let (outbox, taken) = outbox::<u8>(1);
        let (held, waits) = tokio::sync::oneshot::channel::<()>();
        let work = tokio::spawn(async move { outbox.while_heard(waits).await.map(drop) });
        tokio::task::yield_now().await;
        drop(taken);
        assert_eq!(work.await.unwrap(), Err(Gone));
        assert!(held.is_closed(), "it is dropped");
        let (outbox, taken) = super::outbox::<u8>(1);
        drop(taken);
        let work = std::future::pending::<()>();
        assert_eq!(outbox.while_heard(work).await, Err(Gone), "also one that begins afterwards");
    }
}
