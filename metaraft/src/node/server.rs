//! The node's gRPC server: mutual TLS, bounded messages, stopped gracefully but not for ever.

use std::net::SocketAddr;
use std::time::Duration;

use proto::internal::metadata_server::MetadataServer;
use proto::internal::raft_server::RaftServer;
use proto::peer::TlsIdentity;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::service::MetadataService;
use super::start::StartError;
use crate::raft::service::RaftService;

const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_STREAMS_MAX: u32 = 1024;
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// How long calls under way may take to end once the node stops.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// Listens on `address`.
pub(crate) async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Serves until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    identity: TlsIdentity,
    metadata: MetadataService,
    raft: RaftService,
    stop: CancellationToken,
) {
    let metadata = MetadataServer::new(metadata)
        .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(proto::MESSAGE_BYTES_MAX);
    let raft = RaftServer::new(raft)
        .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(proto::MESSAGE_BYTES_MAX);
    let server = match Server::builder().tls_config(identity.server()) {
        Ok(server) => server,
        Err(error) => {
            tracing::error!(%error, "the metadata server's certificate cannot be used");
            return;
        }
    };
    let serving = server
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(Some(CONNECTION_STREAMS_MAX))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_service(metadata)
        .add_service(raft)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stop.clone().cancelled_owned(),
        );
    tokio::select! {
        served = serving => {
            if let Err(error) = served {
                tracing::error!(%error, "the metadata server failed");
            }
        }
        () = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_TIMEOUT).await;
        } => tracing::debug!("calls were under way when the metadata server stopped"),
    }
}
