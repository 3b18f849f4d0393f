//! What a client sends and what it has not taken yet, both bounded.
//!
//! Invariants:
//! - A body that stands still while it is waited for ends with an error. Time in which nobody waits for it does not
//!   count: flow control is no fault of the client.
//! - Bytes are counted from when they arrive until their request is answered, and from when an answer is made until
//!   the client's window has taken them.
//! - [`Beginning`] is told once the client's window has taken bytes of the answer, and not before.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use engine::ids::AccountId;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;

use crate::door::chunk_messages::Messages;
use crate::door::shares::{Share, Shares};
use crate::failure::Failure;
use crate::live::Ended;

/// Bytes are counted in units of this many.
pub(crate) const UNIT_BYTES: u64 = 1024;

/// Bytes of one request that are not counted: bounded by the number of requests.
const UNCOUNTED_BYTES: u64 = 16 * 1024;

/// Answers of up to so many bytes are not counted: bounded by the number of requests.
const UNCOUNTED_ANSWER_BYTES: usize = 16 * 1024;

/// How long chunks that one's share has no room for wait.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(30);

/// The largest frame of a stream of bytes.
const FRAME_UNITS: u64 = 1024 + 1;

/// How long an answer that one's share has no room for waits.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// What is counted for one request, until it is answered.
pub(crate) type Held = Arc<Mutex<Option<Share>>>;

/// What a body may be.
pub(crate) enum Rules {
    /// Of a stranger: so many bytes within a time.
    Stranger { bytes_max: u64, seconds_max: u64 },
    /// One message of an account.
    Message { account: AccountId, bytes: Arc<Shares<AccountId>>, held: Held, idle_max: Duration, pace: u64 },
    /// A stream of chunks: each message is counted while it is gathered, and then by who takes it.
    Stream { messages: Messages, idle_max: Duration },
}

/// A request's body under its rules.
pub(crate) struct RequestBody {
    inner: Incoming,
    rules: Rules,
    begun: Instant,
    bytes: u64,
    /// What has come and waits for room.
    waiting: Option<Frame<Bytes>>,
    /// While it is waited for: when it has stood still for too long.
    patience: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, rules: Rules) -> Self {
        Self { inner, rules, begun: Instant::now(), bytes: 0, waiting: None, patience: None }
    }

    /// Until when the next bytes must have come, if they are waited for from now on.
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        match &self.rules {
            Rules::Stranger { seconds_max, .. } => self.begun + Duration::from_secs(*seconds_max),
            Rules::Stream { idle_max, .. } => now + *idle_max,
            Rules::Message { idle_max, pace, .. } => {
                let paced = self.begun + *idle_max + Duration::from_secs(self.bytes / (*pace).max(1));
                paced.min(now + *idle_max)
            }
        }
    }

    fn too_slow(&self) -> Status {
        let (what, limit) = match &self.rules {
            Rules::Stranger { seconds_max, .. } => {
                (format!("the request was not whole after {seconds_max} s"), "stranger_body_seconds_max")
            }
            Rules::Stream { idle_max, .. } => {
                (format!("nothing came for {} s", idle_max.as_secs()), "body_idle_seconds_max")
            }
            Rules::Message { .. } => ("the request came too slowly".to_owned(), "body_idle_seconds_max"),
        };
        Failure::too_slow(&what, limit).into()
    }

    /// Hands on what has come, once there is room for what it begins.
    fn poll_waiting(&mut self, context: &mut Context<'_>) -> Polled {
        if let Rules::Stream { messages, .. } = &mut self.rules
            && messages.poll_room(context).is_pending()
        {
            let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(ROOM_WAIT_MAX)));
            ready!(patience.as_mut().poll(context));
            let what = "too many chunks on their way at once";
            let failure = Failure::limit(what, "account_chunk_message_bytes_max", Duration::from_secs(5));
            return Poll::Ready(Some(Err(Status::from(failure).into())));
        }
        self.patience = None;
        Poll::Ready(self.waiting.take().map(Ok))
    }

    /// Counts bytes that have come.
    fn count(&mut self, bytes: u64) -> Result<(), Status> {
        self.bytes += bytes;
        match &self.rules {
            Rules::Stranger { bytes_max, .. } if self.bytes > *bytes_max => {
                let message = format!("at most {bytes_max} bytes before you are signed in");
                Err(Failure::limit(&message, "stranger_body_bytes_max", Duration::ZERO).into())
            }
            Rules::Message { account, bytes: shares, held, .. } if self.bytes > UNCOUNTED_BYTES => {
                let units = bytes.div_ceil(UNIT_BYTES);
                let share = shares.try_take(*account, units).map_err(|full| {
                    Failure::full(
                        "bytes of requests under way",
                        full,
                        "account_request_bytes_max",
                        "request_bytes_max",
                    )
                })?;
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                match held.as_mut() {
                    Some(held) => held.merge(share),
                    None => *held = Some(share),
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        if self.waiting.is_some() {
            return self.poll_waiting(context);
        }
        if let Rules::Stream { messages, .. } = &mut self.rules {
            messages.before_more();
        }
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.patience = None;
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                if let Err(status) = self.count(bytes) {
                    return Poll::Ready(Some(Err(status.into())));
                }
                if let (Rules::Stream { messages, .. }, Some(data)) = (&mut self.rules, frame.data_ref()) {
                    messages.have_come(data);
                }
                self.waiting = Some(frame);
                self.poll_waiting(context)
            }
            Poll::Ready(other) => Poll::Ready(other.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => {
                if self.patience.is_none() {
                    self.patience = Some(Box::pin(tokio::time::sleep_until(self.deadline())));
                }
                if let Some(patience) = self.patience.as_mut() {
                    ready!(patience.as_mut().poll(context));
                }
                self.patience = None;
                Poll::Ready(Some(Err(self.too_slow().into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // What waits is not in the inner hint any more.
        if self.waiting.is_some() { SizeHint::default() } else { self.inner.size_hint() }
    }
}

/// A part of an answer that counts until it is sent.
struct Counted {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes that count until they are dropped.
pub(crate) fn counted(bytes: Bytes, share: Share) -> Bytes {
    Bytes::from_owner(Counted { bytes, _share: share })
}

/// Tells who makes an answer that the client's window has taken the beginning of it. To be put into the answer's extensions.
#[derive(Clone, Default)]
pub(crate) struct Beginning(Arc<Notify>);

impl Beginning {
    /// Waits until it was taken. For one task, once; cancel safe.
    pub(crate) async fn taken(&self) {
        self.0.notified().await;
    }
}

type Taking = Pin<Box<dyn Future<Output = Share> + Send>>;

/// How an answer's bytes are counted.
pub(crate) struct Counting {
    pub(crate) account: AccountId,
    pub(crate) shares: Arc<Shares<AccountId>>,
    /// A stream of large messages: room is taken before the next one is.
    pub(crate) stream: bool,
}

/// An answer on its way; what it holds is given back when it has ended.
pub(crate) struct ResponseBody<G> {
    inner: Body,
    counting: Option<Counting>,
    /// Room that is waited for, and for how long still.
    taking: Option<(Taking, Pin<Box<Sleep>>)>,
    /// Room that was taken.
    room: Option<Share>,
    /// What waits for room.
    waiting: Option<Bytes>,
    /// When it ends, whatever there is still to say.
    end: Option<Pin<Box<Sleep>>>,
    /// Ready once its device may not go on.
    ended: Option<Pin<Box<dyn Future<Output = Failure> + Send>>>,
    /// Its last words were said.
    over: bool,
    /// Who waits for its beginning to be taken; once bytes of it were given.
    beginning: Option<Beginning>,
    begun: bool,
    _guards: G,
}

impl<G> ResponseBody<G> {
    pub(crate) fn new(inner: Body, counting: Option<Counting>, guards: G) -> Self {
        Self {
            inner,
            counting,
            taking: None,
            room: None,
            waiting: None,
            end: None,
            ended: None,
            over: false,
            beginning: None,
            begun: false,
            _guards: guards,
        }
    }

    /// Tells that its beginning was taken.
    pub(crate) fn telling(mut self, beginning: Option<Beginning>) -> Self {
        self.beginning = beginning;
        self
    }

    /// Ends after a time.
    pub(crate) fn ending_after(mut self, time: Option<Duration>) -> Self {
        self.end = time.map(|time| Box::pin(tokio::time::sleep(time)));
        self
    }

    /// Ends once the device that asked may not go on.
    pub(crate) fn ending_with(mut self, ended: Option<Ended>) -> Self {
        self.ended = ended.map(|ended| {
            let wait: Pin<Box<dyn Future<Output = Failure> + Send>> =
                Box::pin(async move { ended.wait().await });
            wait
        });
        self
    }

    /// Ends the answer with a status of our own.
    fn end_with(&mut self, failure: Failure) -> Polled {
        self.over = true;
        let mut trailers = http::HeaderMap::new();
        Poll::Ready(Some(match Status::from(failure).add_header(&mut trailers) {
            Ok(()) => Ok(Frame::trailers(trailers)),
            Err(status) => Err(status.into()),
        }))
    }

    /// Takes room for `units`; a failure ends the answer.
    fn poll_room(&mut self, context: &mut Context<'_>, units: u64) -> Poll<Result<(), Failure>> {
        let Some(counting) = &self.counting else { return Poll::Ready(Ok(())) };
        if self.room.is_some() {
            return Poll::Ready(Ok(()));
        }
        if self.taking.is_none() {
            if let Ok(share) = counting.shares.try_take(counting.account, units) {
                self.room = Some(share);
                return Poll::Ready(Ok(()));
            }
            let (account, shares) = (counting.account, Arc::clone(&counting.shares));
            let taking = Box::pin(async move { shares.take(account, units).await });
            self.taking = Some((taking, Box::pin(tokio::time::sleep(ANSWER_WAIT_MAX))));
        }
        if let Some((taking, patience)) = self.taking.as_mut() {
            match taking.as_mut().poll(context) {
                Poll::Ready(share) => self.room = Some(share),
                Poll::Pending => {
                    ready!(patience.as_mut().poll(context));
                    self.taking = None;
                    let what = "answers that this account's clients do not take";
                    let retry_after = Duration::from_secs(5);
                    return Poll::Ready(Err(Failure::limit(what, "account_answer_bytes_max", retry_after)));
                }
            }
        }
        self.taking = None;
        Poll::Ready(Ok(()))
    }

    fn count(&mut self, bytes: Bytes) -> Bytes {
        let units = usize::try_from((bytes.len() as u64).div_ceil(UNIT_BYTES)).unwrap_or(usize::MAX);
        match self.room.take().and_then(|mut room| room.split(units)) {
            Some(share) => counted(bytes, share),
            None => bytes,
        }
    }
}

impl<G: Unpin> ResponseBody<G> {
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(end) = self.end.as_mut()
            && end.as_mut().poll(context).is_ready()
        {
            return self.end_with(Failure::too_slow(
                "the request was open for too long",
                "open_request_seconds_max",
            ));
        }
        if let Some(ended) = self.ended.as_mut()
            && let Poll::Ready(failure) = ended.as_mut().poll(context)
        {
            return self.end_with(failure);
        }
        if let Some(bytes) = self.waiting.take() {
            let units = (bytes.len() as u64).div_ceil(UNIT_BYTES);
            return match self.poll_room(context, units) {
                Poll::Pending => {
                    self.waiting = Some(bytes);
                    Poll::Pending
                }
                Poll::Ready(Ok(())) => Poll::Ready(Some(Ok(Frame::data(self.count(bytes))))),
                Poll::Ready(Err(failure)) => self.end_with(failure),
            };
        }
        let is_stream = self.counting.as_ref().is_some_and(|counting| counting.stream);
        if is_stream && let Err(failure) = ready!(self.poll_room(context, FRAME_UNITS)) {
            return self.end_with(failure);
        }
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else {
            // Others of the account may have the room meanwhile.
            self.room = None;
            return Poll::Pending;
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other.map(|frame| frame.map_err(Into::into))),
        };
        match frame.into_data() {
            Ok(bytes) if is_stream => Poll::Ready(Some(Ok(Frame::data(self.count(bytes))))),
            Ok(bytes) if self.counting.is_some() && bytes.len() > UNCOUNTED_ANSWER_BYTES => {
                self.waiting = Some(bytes);
                self.poll_next(context)
            }
            Ok(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Err(frame) => Poll::Ready(Some(Ok(frame))),
        }
    }
}

impl<G: Unpin> HttpBody for ResponseBody<G> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        // Hyper keeps one frame until the window takes of it, and asks for the next one then.
        if self.begun
            && let Some(beginning) = self.beginning.take()
        {
            beginning.0.notify_one();
        }
        let polled = self.as_mut().poll_next(context);
        self.begun |= matches!(&polled, Poll::Ready(Some(Ok(frame))) if frame.is_data());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.over || (self.waiting.is_none() && self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        // A frame that waits is not in the inner hint any more.
        if self.waiting.is_some() { SizeHint::default() } else { self.inner.size_hint() }
    }
}
