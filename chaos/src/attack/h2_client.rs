//! HTTP/2 as a client speaks it who keeps to its letter and means ill: requests without bodies, answers that nobody
//! reads, windows of nothing.

use std::future::poll_fn;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use tokio::task::JoinHandle;

use super::gate::Gate;

/// How long the gateway may take to let one more stream begin.
const STREAM_TIME_MAX: Duration = Duration::from_secs(5);

/// One connection. It ends when this is dropped.
#[derive(Debug)]
pub struct H2Client {
    requests: SendRequest<Bytes>,
    authority: String,
    connection: JoinHandle<()>,
}

/// A request whose headers were sent.
#[derive(Debug)]
pub struct OpenRequest {
    /// The answer's headers, once they come.
    pub response: ResponseFuture,
    /// The body's end of the client.
    pub body: SendStream<Bytes>,
}

/// A gRPC message as it is framed, of which only `sent` bytes follow the five of the frame.
#[must_use]
pub fn message_begun(announced: u32, sent: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(sent + 5);
    bytes.put_u8(0);
    bytes.put_u32(announced);
    bytes.put_bytes(0, sent);
    bytes.freeze()
}

/// A whole gRPC message as it is framed.
#[must_use]
pub fn message_of(encoded: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(encoded.len() + 5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(encoded.len()).unwrap_or(u32::MAX));
    bytes.put_slice(encoded);
    bytes.freeze()
}

impl H2Client {
    /// Connects from `from`; `window_bytes` is how much of each answer may come without being read.
    ///
    /// # Errors
    /// If the gateway refuses.
    pub async fn connect(gate: &Gate, from: IpAddr, window_bytes: u32) -> anyhow::Result<Self> {
        let stream = gate.tls(from).await?;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(window_bytes)
            .initial_connection_window_size(64 << 20)
            .handshake(stream)
            .await?;
        let connection = tokio::spawn(async move {
            // However it ends: who cares sees it by its streams.
            connection.await.ok();
        });
        Ok(Self { requests, authority: gate.address.to_string(), connection })
    }

    /// Sends a gRPC request's headers, and no body yet.
    ///
    /// # Errors
    /// If the connection has ended, or the gateway lets no more streams begin.
    pub async fn start(&mut self, method: &str, token: &str) -> anyhow::Result<OpenRequest> {
        let mut request = http::Request::builder()
            .method("POST")
            .uri(format!("https://{}/keepstone.v1.{method}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let ready = tokio::time::timeout(STREAM_TIME_MAX, self.requests.clone().ready()).await;
        self.requests = ready.context("no more streams may begin")??;
        let (response, body) = self.requests.send_request(request.body(())?, false)?;
        Ok(OpenRequest { response, body })
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.connection.is_finished()
    }
}

impl Drop for H2Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl OpenRequest {
    /// Sends bytes as the gateway gives room for them; `end` ends the body. Gives how many went.
    ///
    /// # Errors
    /// If the stream or the connection was ended by the gateway.
    pub async fn send(&mut self, mut bytes: Bytes, end: bool) -> anyhow::Result<usize> {
        let all = bytes.len();
        while !bytes.is_empty() {
            self.body.reserve_capacity(bytes.len());
            let room =
                poll_fn(|context| self.body.poll_capacity(context)).await.context("the stream ended")??;
            let part = bytes.split_to(room.min(bytes.len()));
            self.body.send_data(part, end && bytes.is_empty())?;
        }
        Ok(all)
    }

    /// Whether the gateway has ended the stream, or answers it, within `deadline`.
    pub async fn is_ended_within(self, deadline: Duration) -> bool {
        let Self { response, mut body } = self;
        let answered = async {
            match response.await {
                Err(_reset) => {}
                Ok(response) => {
                    let ends_at_once = response.headers().contains_key("grpc-status");
                    let mut answer = response.into_body();
                    while !ends_at_once && matches!(answer.data().await, Some(Ok(_))) {}
                }
            }
        };
        let reset = poll_fn(|context| body.poll_reset(context));
        tokio::time::timeout(deadline, async {
            tokio::select! {
                () = answered => {}
                _ = reset => {}
            }
        })
        .await
        .is_ok()
    }
}
