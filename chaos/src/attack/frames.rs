//! HTTP/2 frames written by hand (RFC 9113), for what no library sends.

use std::net::IpAddr;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, WriteHalf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;

use super::gate::Gate;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long one write may take before the gateway counts as not reading any more.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);

/// Frame types.
pub mod kind {
    /// A piece of a body.
    pub const DATA: u8 = 0;
    /// The beginning of a header block, and of a stream.
    pub const HEADERS: u8 = 1;
    /// Order among streams, long deprecated.
    pub const PRIORITY: u8 = 2;
    /// The end of a stream.
    pub const RST_STREAM: u8 = 3;
    /// Parameters.
    pub const SETTINGS: u8 = 4;
    /// A question that must be answered.
    pub const PING: u8 = 6;
    /// Room for more bytes.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of a header block.
    pub const CONTINUATION: u8 = 9;
}

/// The header block is complete.
pub const END_HEADERS: u8 = 4;

/// One frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(9 + payload.len());
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    bytes.put_slice(&length);
    bytes.put_u8(kind);
    bytes.put_u8(flags);
    bytes.put_u32(stream);
    bytes.put_slice(payload);
    bytes.freeze()
}

/// A header field as HPACK writes it without compression; with `indexed` the gateway has to remember it (RFC 7541, 6.2).
#[must_use]
pub fn field(name: &str, value: &[u8], indexed: bool) -> Vec<u8> {
    let mut bytes = vec![if indexed { 0x40 } else { 0 }];
    for text in [name.as_bytes(), value] {
        length(&mut bytes, text.len());
        bytes.extend_from_slice(text);
    }
    bytes
}

/// An HPACK integer with a prefix of seven bits (RFC 7541, 5.1).
fn length(bytes: &mut Vec<u8>, mut value: usize) {
    let low = |value: usize| u8::try_from(value & 0x7f).unwrap_or(0);
    if value < 127 {
        bytes.push(low(value));
        return;
    }
    bytes.push(127);
    value -= 127;
    while value >= 128 {
        bytes.push(low(value) | 0x80);
        value >>= 7;
    }
    bytes.push(low(value));
}

/// The header block of a gRPC request.
#[must_use]
pub fn request_block(method: &str) -> Vec<u8> {
    let path = format!("/keepstone.v1.{method}");
    [
        field(":method", b"POST", false),
        field(":scheme", b"https", false),
        field(":authority", b"127.0.0.1", false),
        field(":path", path.as_bytes(), false),
        field("content-type", b"application/grpc", false),
        field("te", b"trailers", false),
    ]
    .concat()
}

/// A connection on which anything may be written; what comes back is read and thrown away.
#[derive(Debug)]
pub struct Frames {
    writing: WriteHalf<TlsStream<TcpStream>>,
    reading: JoinHandle<()>,
}

impl Frames {
    /// Connects from `from`, and says that it speaks HTTP/2.
    ///
    /// # Errors
    /// If the gateway refuses.
    pub async fn connect(gate: &Gate, from: IpAddr) -> anyhow::Result<Self> {
        let (mut reading, mut writing) = tokio::io::split(gate.tls(from).await?);
        writing.write_all(PREFACE).await?;
        writing.write_all(&frame(kind::SETTINGS, 0, 0, &[])).await?;
        writing.flush().await?;
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            while matches!(reading.read(&mut buffer).await, Ok(1..)) {}
        });
        Ok(Self { writing, reading })
    }

    /// Writes bytes; `false` once the gateway has ended the connection or takes nothing more.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        let write = async {
            self.writing.write_all(bytes).await?;
            self.writing.flush().await
        };
        matches!(tokio::time::timeout(WRITE_TIME_MAX, write).await, Ok(Ok(()))) && !self.reading.is_finished()
    }

    /// Whether the gateway ends the connection within `deadline`.
    pub async fn is_closed_within(mut self, deadline: Duration) -> bool {
        tokio::time::timeout(deadline, &mut self.reading).await.is_ok()
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_those_of_the_rfc() {
        assert_eq!(
            &frame(kind::PING, 0, 0, &[7; 8])[..],
            &[0, 0, 8, 6, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7]
        );
    }

    #[test]
    fn lengths_are_those_of_the_rfc() {
        // RFC 7541, C.1, with this prefix: 1337 = 127 + 1210.
        let of = |value| {
            let mut bytes = Vec::new();
            length(&mut bytes, value);
            bytes
        };
        assert_eq!(of(10), [10]);
        assert_eq!(of(126), [126]);
        assert_eq!(of(127), [127, 0]);
        assert_eq!(of(1337), [127, 0xba, 0x09]);
    }
}
