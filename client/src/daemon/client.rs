//! How a command reaches the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::daemon as wire;
use proto::daemon::daemon_client::DaemonClient;
use tonic::transport::{Channel, Endpoint};

/// The daemon's API.
pub type DaemonApi = DaemonClient<Channel>;

/// What the daemon said against a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Why, in words.
    pub message: String,
}

impl From<tonic::Status> for Refused {
    fn from(status: tonic::Status) -> Self {
        let message = match status.message() {
            "" => format!("the sync daemon failed: {:?}", status.code()),
            message => message.to_owned(),
        };
        Self { message }
    }
}

/// Takes a folder out of those that the daemon keeps in sync; gives whether it was among them.
///
/// # Errors
/// What the daemon says against it, but for that.
pub async fn remove(api: &mut DaemonApi, directory: String) -> Result<bool, Refused> {
    match api.remove(wire::RemoveRequest { directory }).await {
        Ok(_removed) => Ok(true),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
        Err(status) => Err(status.into()),
    }
}

/// How long a daemon that is there may take to accept.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// Why a daemon that may be there cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The socket's path cannot be used.
    #[error("the sync daemon's socket cannot be {path}: its path is not UTF-8", path = path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// It does not answer.
    #[error("the sync daemon does not answer on {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The connection.
    #[error("the sync daemon does not answer: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Connects to the daemon; nothing if none runs.
///
/// # Errors
/// If one seems to run, but does not answer.
pub async fn connect(socket: &Path) -> Result<Option<DaemonApi>, ReachError> {
    let path = || socket.to_owned();
    // Whether anybody listens is asked first: the transport's errors do not tell.
    match tokio::net::UnixStream::connect(socket).await {
        Ok(stream) => drop(stream),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(source) => return Err(ReachError::Io { path: path(), source }),
    }
    let text = socket.to_str().ok_or_else(|| ReachError::Path { path: path() })?;
    let endpoint = Endpoint::from_shared(format!("unix://{text}"))?.connect_timeout(CONNECT_TIME_MAX);
    let channel = endpoint.connect().await?;
    Ok(Some(DaemonClient::new(channel).max_decoding_message_size(proto::MESSAGE_BYTES_MAX)))
}
