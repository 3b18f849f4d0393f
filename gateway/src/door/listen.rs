//! Takes connections: TLS, then HTTP/2, each with its deadlines, until the gateway stops.
//!
//! Invariants:
//! - A connection that does not finish its handshake, or asks for nothing, is closed after seconds; one that was used
//!   and is idle, after minutes. A client that waits for changes has a stream open, so it is not idle.
//! - Of a stranger some KiB are read before a request of it is answered: the rest waits in the sender's socket.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;
use crate::door::address::Address;
use crate::door::connections::{Connection, Connections, Place};
use crate::door::gate::Gate;

/// By measurement, as for the storage nodes' connections: the first frame of a message is copied once more than the
/// others, and windows of the default size double the cost of a byte.
const FRAME_BYTES: u32 = 32 * 1024;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Bytes of all headers of one request.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// HTTP/2 streams of one connection.
const CONNECTION_STREAMS_MAX: u32 = 256;

/// Unanswered pings for so long mean that a client has gone.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection may take to end once it is told to.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// How long nothing is accepted after the system had no file descriptor left, or the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all connections share.
pub(crate) struct Door {
    acceptor: TlsAcceptor,
    connections: Arc<Connections>,
    gate: Gate,
    handshake_max: Duration,
    first_request_max: Duration,
    idle_max: Duration,
    unproven_bytes_max: u64,
}

fn seconds(value: u64) -> Duration {
    Duration::from_secs(value)
}

impl Door {
    pub(crate) fn new(acceptor: TlsAcceptor, gate: Gate, limits: &Limits) -> Self {
        Self {
            acceptor,
            connections: Connections::new(limits),
            gate,
            handshake_max: seconds(limits.handshake_seconds_max),
            first_request_max: seconds(limits.first_request_seconds_max),
            idle_max: seconds(limits.idle_seconds_max),
            unproven_bytes_max: limits.unproven_connection_bytes_max,
        }
    }

    /// Takes connections until `stop`, and waits until those that are open have ended.
    pub(crate) async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let door = Arc::new(self);
        let open = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(error = %error, "a connection could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(place) = door.connections.enter(Address::of(peer.ip())) else {
                tracing::warn!("all connections are taken (connections_max): a new one was closed");
                continue;
            };
            open.spawn(serve_connection(Arc::clone(&door), stream, place, stop.clone()));
        }
        drop(listener);
        open.close();
        open.wait().await;
    }
}

async fn serve_connection(door: Arc<Door>, stream: TcpStream, place: Place, stop: CancellationToken) {
    // Without it small answers wait for the client's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %error, "no TCP_NODELAY");
    }
    let handshake = tokio::time::timeout(door.handshake_max, door.acceptor.accept(stream));
    let stream = tokio::select! {
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) | Err(_) => return,
        },
        () = place.evicted.cancelled() => return,
        () = stop.cancelled() => return,
    };
    let stream = Metered::new(stream, Arc::clone(&place), door.unproven_bytes_max);
    serve_http(&door, stream, &place, &stop).await;
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

async fn serve_http(door: &Door, stream: Metered, place: &Place, stop: &CancellationToken) {
    let gate = door.gate.clone();
    let connection = Arc::clone(place);
    let service = service_fn(move |request| {
        let (gate, connection) = (gate.clone(), Arc::clone(&connection));
        async move { Ok::<_, std::convert::Infallible>(gate.serve(request, connection).await) }
    });
    let builder = http();
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut wait = door.first_request_max;
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error = %error, "a connection ended");
                }
                return;
            }
            () = place.evicted.cancelled() => return,
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => match place.time_left(door.first_request_max, door.idle_max) {
                Some(left) => wait = left,
                None => break,
            },
        }
    }
    // What is under way goes on for a while.
    serving.as_mut().graceful_shutdown();
    drop(tokio::time::timeout(CLOSE_GRACE, serving).await);
}

/// A connection's bytes: a stranger's are read only so far.
struct Metered {
    stream: TlsStream<TcpStream>,
    connection: Arc<Connection>,
    bytes_max: u64,
    /// While more must not be read.
    paused: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Metered {
    fn new(stream: TlsStream<TcpStream>, connection: Arc<Connection>, bytes_max: u64) -> Self {
        Self { stream, connection, bytes_max, paused: None }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.connection.readable(self.bytes_max) {
            let connection = Arc::clone(&self.connection);
            let paused = self
                .paused
                .get_or_insert_with(|| Box::pin(async move { connection.may_read.notified().await }));
            std::task::ready!(paused.as_mut().poll(context));
            self.paused = None;
        }
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.connection.has_read(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
