//! The connection to a gateway, and how calls over it are repeated.
//!
//! Invariants:
//! - A call is repeated only while its failure is transient, and until a deadline. Every mutating request carries a
//!   request id, so a repeated one does nothing twice: the gateway gives the first answer again.
//! - The server is verified by the given CA and by no other root.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use engine::ids::RequestId;
use proto::v1;
use tokio::time::Instant;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Response, Status};

use crate::api::accounts;
use crate::call_error::CallError;
use crate::server_clock::{ServerClock, wall_ms};
use crate::shown_token::ShownToken;

/// How long a call is repeated while its failures are transient.
pub const RETRY_TIME_MAX: Duration = Duration::from_secs(30);
/// How long one try of a unary call may take.
const TRY_TIME_MAX: Duration = Duration::from_secs(60);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the server may take to tell its time.
const CLOCK_TIME_MAX: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Flow-control windows: wide for one fast stream, and a bound of what a server can make us buffer.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// The first frame of a message is copied once more than the others: small ones, by measurement.
const FRAME_BYTES_MAX: u32 = 32 * 1024;

/// What is needed to reach a gateway.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// `https://HOST:PORT`.
    pub endpoint: String,
    /// The cluster's CA certificates, in PEM form.
    pub ca_pem: Vec<u8>,
    /// The device's token; none to sign in.
    pub token: Option<String>,
}

/// A connection to a gateway. Cheap to clone; clones share it. It reconnects by itself.
#[derive(Clone)]
pub struct ApiClient {
    channel: Channel,
    endpoint: Arc<str>,
    token: Option<Arc<ShownToken>>,
    retry_time_max: Duration,
    clock: Arc<ServerClock>,
    /// Whether the gateway has said that it does not know how to put a file by one call.
    lacks_put_file: Arc<AtomicBool>,
}

impl std::fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiClient").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Adds the scheme that people leave out.
#[must_use]
pub fn normalize_endpoint(text: &str) -> String {
    let text = text.trim_end_matches('/');
    if text.contains("://") { text.to_owned() } else { format!("https://{text}") }
}

fn build_endpoint(options: &ConnectOptions) -> Result<Endpoint, CallError> {
    let setup = |message: String| CallError::Setup { message };
    let text = normalize_endpoint(&options.endpoint);
    if !text.starts_with("https://") {
        return Err(setup(format!("{text} is not an endpoint: write https://HOST:PORT")));
    }
    let bad_endpoint = |error| setup(format!("{text} is not an endpoint ({error}): write https://HOST:PORT"));
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&options.ca_pem));
    Endpoint::from_shared(text.clone())
        .map_err(bad_endpoint)?
        .tls_config(tls)
        .map_err(|error| setup(format!("the CA certificate cannot be used ({})", deepest(&error))))
        .map(|endpoint| {
            endpoint
                .connect_timeout(CONNECT_TIME_MAX)
                .tcp_nodelay(true)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_frame_size(FRAME_BYTES_MAX)
                .http2_keep_alive_interval(Duration::from_secs(20))
                .keep_alive_timeout(Duration::from_secs(20))
        })
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    text
}

impl ApiClient {
    /// Connects, once: a gateway that is not running is reported at once.
    ///
    /// # Errors
    /// If the endpoint, CA or token cannot be used, nobody answers, or TLS refuses the answer.
    pub async fn connect(options: &ConnectOptions) -> Result<Self, CallError> {
        let endpoint = build_endpoint(options)?;
        let token = options.token.as_deref().map(ShownToken::new).transpose()?.map(Arc::new);
        let text = normalize_endpoint(&options.endpoint);
        let channel = endpoint.connect().await.map_err(|error| CallError::from_transport(&text, &error))?;
        Ok(Self {
            channel,
            endpoint: text.into(),
            token,
            retry_time_max: RETRY_TIME_MAX,
            clock: Arc::default(),
            lacks_put_file: Arc::default(),
        })
    }

    /// Connects with the first call, and again whenever the connection broke. Must be called within a runtime.
    ///
    /// # Errors
    /// If the endpoint, CA or token cannot be used.
    pub fn connect_lazily(options: &ConnectOptions) -> Result<Self, CallError> {
        let channel = build_endpoint(options)?.connect_lazy();
        let token = options.token.as_deref().map(ShownToken::new).transpose()?.map(Arc::new);
        let endpoint = normalize_endpoint(&options.endpoint).into();
        Ok(Self {
            channel,
            endpoint,
            token,
            retry_time_max: RETRY_TIME_MAX,
            clock: Arc::default(),
            lacks_put_file: Arc::default(),
        })
    }

    /// Over a channel that a test has made; nothing is repeated.
    #[cfg(test)]
    pub(crate) fn of_channel(channel: Channel) -> Self {
        Self {
            channel,
            endpoint: "test".into(),
            token: None,
            retry_time_max: Duration::ZERO,
            clock: Arc::default(),
            lacks_put_file: Arc::default(),
        }
    }

    /// The same connection with another bound on how long calls are repeated; zero repeats none.
    #[must_use]
    pub fn with_retry_time_max(mut self, retry_time_max: Duration) -> Self {
        self.retry_time_max = retry_time_max;
        self
    }

    /// Where the gateway is.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            token.show(request.metadata_mut());
        }
        request
    }

    pub(crate) fn status(&self, status: &Status) -> CallError {
        if self.token.as_ref().is_some_and(|token| token.was_not_seen(status)) {
            let reason =
                "it is an older version than the one that answered before; it is asked in its way".to_owned();
            return CallError::Unreachable { endpoint: self.endpoint.to_string(), reason };
        }
        CallError::from_status(&self.endpoint, self.token.is_some(), status)
    }

    /// A fresh request id, as the wire has it. Its time is the server's, which is asked once and again whenever this
    /// machine's clocks disagree; this machine's own as long as the server does not tell.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub(crate) async fn new_request_id(&self) -> Result<Bytes, CallError> {
        if self.clock.now_ms().is_none()
            && let Some(token) = &self.token
        {
            let request = self.request(v1::WhoAmIRequest {});
            let mut gateway = accounts(self.channel());
            let asked = gateway.who_am_i(request);
            // If it gives no answer, the call that the id is for says what is the matter.
            if let Ok(Ok(answer)) = tokio::time::timeout(CLOCK_TIME_MAX, asked).await {
                let answer = answer.into_inner();
                token.learn(answer.takes_token_header);
                if answer.server_time_ms != 0 {
                    self.clock.learn(answer.server_time_ms);
                }
            }
        }
        let time_ms = self.clock.now_ms().unwrap_or_else(wall_ms);
        Ok(Bytes::copy_from_slice(RequestId::new(time_ms, random_16()?).as_bytes()))
    }

    /// Names both clocks where the server did not take an id's time; the next id learns it anew.
    fn told_of_time(&self, error: CallError) -> CallError {
        let CallError::Refused { code, reason, message } = error else { return error };
        if reason != "request-out-of-time" {
            return CallError::Refused { code, reason, message };
        }
        let server = self.clock.now_ms().map_or_else(|| "unknown".to_owned(), |ms| (ms / 1000).to_string());
        self.clock.forget();
        let message = format!(
            "{message} (this machine's clock: {}, the gateway's: {server}, in seconds since 1970)",
            wall_ms() / 1000
        );
        CallError::Refused { code, reason, message }
    }

    /// Whether the gateway is known to be older than the call that puts a file.
    pub(crate) fn lacks_put_file(&self) -> bool {
        self.lacks_put_file.load(Ordering::Relaxed)
    }

    /// Notes that it is.
    pub(crate) fn note_lack_of_put_file(&self) {
        self.lacks_put_file.store(true, Ordering::Relaxed);
    }

    /// Makes a unary call, repeated while its failures are transient.
    pub(crate) async fn call<Q, A, F, Fut>(&self, message: Q, send: F) -> Result<A, CallError>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        let mut backoff = Backoff::new(self.retry_time_max);
        loop {
            let attempt = send(self.channel(), self.request(message.clone()));
            let error = match tokio::time::timeout(TRY_TIME_MAX, attempt).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => self.status(&status),
                Err(_elapsed) => CallError::Unreachable {
                    endpoint: self.endpoint.to_string(),
                    reason: format!("no answer within {} s", TRY_TIME_MAX.as_secs()),
                },
            };
            if !error.is_transient() || !backoff.wait().await {
                return Err(self.told_of_time(error));
            }
            tracing::debug!(%error, "call repeated");
        }
    }
}

/// Waits between tries, ever longer, until a deadline that counts from the first of them: what went well before may
/// have taken any time.
#[derive(Debug)]
pub(crate) struct Backoff {
    deadline: Option<Instant>,
    time_max: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(time_max: Duration) -> Self {
        Self { deadline: None, time_max, next: BACKOFF_FIRST }
    }

    /// Begins anew, after progress.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.time_max);
    }

    /// Waits before the next try; `false` when the deadline leaves no room for one. Cancel safe.
    pub(crate) async fn wait(&mut self) -> bool {
        let Some(wait) = self.next_wait(Instant::now()) else { return false };
        tokio::time::sleep(wait).await;
        true
    }

    /// How long to wait before the next try.
    fn next_wait(&mut self, now: Instant) -> Option<Duration> {
        let wait = self.next;
        let deadline = *self.deadline.get_or_insert(now + self.time_max);
        if now + wait > deadline {
            return None;
        }
        self.next = (wait * 2).min(BACKOFF_MAX);
        Some(wait)
    }
}

/// 16 fresh random bytes.
///
/// # Errors
/// If the system has no randomness to give.
pub(crate) fn random_16() -> Result<[u8; 16], CallError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| CallError::Setup {
        message: format!("the system gives no random bytes: {error}"),
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_need_no_scheme_but_never_go_without_tls() {
        assert_eq!(normalize_endpoint("127.0.0.1:7420"), "https://127.0.0.1:7420");
        assert_eq!(normalize_endpoint("https://h:1/"), "https://h:1");
        let options = ConnectOptions { endpoint: "http://h:1".to_owned(), ca_pem: Vec::new(), token: None };
        assert!(matches!(build_endpoint(&options), Err(CallError::Setup { .. })));
    }

    #[tokio::test]
    async fn a_closed_port_is_reported_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let options =
            ConnectOptions { endpoint: format!("https://127.0.0.1:{port}"), ca_pem: Vec::new(), token: None };
        let error = ApiClient::connect(&options).await.unwrap_err();
        assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    }

    #[test]
    fn time_that_went_well_does_not_count_against_tries() {
        let mut backoff = Backoff::new(Duration::from_millis(400));
        let later = Instant::now() + Duration::from_secs(65);
        assert!(backoff.next_wait(later).is_some(), "a reader may have paused for a minute");
        assert!(backoff.next_wait(later + Duration::from_secs(65)).is_none(), "this time went badly");
        backoff.reset();
        assert!(backoff.next_wait(later + Duration::from_secs(65)).is_some());
    }

    #[tokio::test]
    async fn backoff_ends_at_its_deadline() {
        let mut backoff = Backoff::new(Duration::from_millis(400));
        let mut tries = 0;
        while backoff.wait().await {
            tries += 1;
        }
        assert!((1..=3).contains(&tries), "{tries}");
    }
}
