//! Runs the daemon: its socket, its folders, and what it asks of the desktop.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use proto::daemon::daemon_server::DaemonServer;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::bus::{NOTICES_QUEUED_MAX, follow_metered, tell_conflicts};
use super::config::{ConfigError, DaemonConfig, RootConfig};
use super::keeper::Shared;
use super::service::DaemonService;
use super::socket::{BindError, DaemonSocket, Held};
use super::supervisor::Supervisor;
use crate::sync::handle::Handle;

type Serving = JoinHandle<Result<(), tonic::transport::Error>>;

/// Requests of one connection that are under way at once.
const REQUESTS_MAX: usize = 16;

/// Why the daemon does not run, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The API.
    #[error("the daemon's socket cannot be served: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Where its files are.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The configuration; it need not be there.
    pub config: PathBuf,
    /// The socket.
    pub socket: PathBuf,
    /// The profile of folders that name none, if the configuration names none either.
    pub profile: PathBuf,
}

/// Runs until `stop` comes to an end, or a request has stopped it. All folders have come to a clean end then.
///
/// # Errors
/// If another daemon runs, or the configuration or the socket cannot be used.
pub async fn run(options: DaemonOptions, stop: impl Future<Output = ()>) -> Result<(), DaemonError> {
    // First the socket, then the configuration: a command that finds no socket may change the file.
    let socket = DaemonSocket::bind(&options.socket)?;
    let path = options.config.clone();
    let load = move || DaemonConfig::load(&path);
    let config = tokio::task::spawn_blocking(load).await.unwrap_or_else(|panicked| {
        Err(ConfigError::Malformed { path: options.config.clone(), reason: panicked.to_string() })
    })?;
    let stopped = CancellationToken::new();
    let (metered, metered_pause) = watch::channel(false);
    let follower = if config.pause_on_metered {
        tokio::spawn(follow_metered(metered, stopped.clone()))
    } else {
        let stopped = stopped.clone();
        tokio::spawn(async move {
            // Its readers wait for a change that never comes, not for an end.
            stopped.cancelled().await;
            drop(metered);
        })
    };
    let (notices, teller) = if config.notify {
        let (notices, receiver) = mpsc::channel(NOTICES_QUEUED_MAX);
        (Some(notices), Some(tokio::spawn(tell_conflicts(receiver))))
    } else {
        (None, None)
    };
    let profile = config.profile.clone().unwrap_or(options.profile);
    let shared = Shared { profile, metered_pause: metered_pause.clone(), notices };
    let (supervisor, supervising) = Supervisor::start(options.config.clone(), config, shared);
    let service = DaemonService {
        shown: Mutex::default(),
        supervisor: supervisor.clone(),
        config: options.config,
        metered_pause,
        stopped: stopped.clone(),
    };
    let (serving, held) = serve(socket, service);
    tokio::select! {
        () = stop => {}
        () = stopped.cancelled() => {}
    }
    // By a signal; a request that stops the daemon has done this already.
    drop(supervisor.stop().await);
    stopped.cancel();
    let served = serving.await;
    for task in [Some(supervising), Some(follower), teller].into_iter().flatten() {
        if let Err(error) = task.await {
            tracing::error!(%error, "a task panicked");
        }
    }
    drop(held);
    match served {
        Ok(served) => Ok(served?),
        Err(error) => {
            tracing::error!(%error, "the API's task panicked");
            Ok(())
        }
    }
}

fn serve(socket: DaemonSocket, service: DaemonService) -> (Serving, Held) {
    let (connections, held) = socket.into_parts();
    let stopped = service.stopped.clone();
    let serving = Server::builder()
        .concurrency_limit_per_connection(REQUESTS_MAX)
        .add_service(DaemonServer::new(service))
        .serve_with_incoming_shutdown(connections, stopped.cancelled_owned());
    (tokio::spawn(serving), held)
}

/// The socket of a session that runs without the daemon.
#[derive(Debug)]
pub struct RunSocket {
    supervisor: Supervisor,
    stopped: CancellationToken,
    serving: Serving,
    supervising: JoinHandle<()>,
    held: Held,
}

/// Lets commands reach one session that runs already. A command that stops "the daemon" there stops the session.
///
/// # Errors
/// If the socket cannot be made, or is another's.
pub fn serve_session(
    socket: &Path,
    config: RootConfig,
    session: Handle,
    shared: Shared,
) -> Result<RunSocket, BindError> {
    let socket = DaemonSocket::bind(socket)?;
    let stopped = CancellationToken::new();
    let metered_pause = shared.metered_pause.clone();
    let (supervisor, supervising) = Supervisor::of_session(config, session, shared);
    let service = DaemonService {
        shown: Mutex::default(),
        supervisor: supervisor.clone(),
        config: PathBuf::new(),
        metered_pause,
        stopped: stopped.clone(),
    };
    let (serving, held) = serve(socket, service);
    Ok(RunSocket { supervisor, stopped, serving, supervising, held })
}

impl RunSocket {
    /// Ends the session, if it has not ended, and the socket.
    pub async fn stop(self) {
        drop(self.supervisor.stop().await);
        self.stopped.cancel();
        match self.serving.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the socket could not be served"),
            Err(error) => tracing::error!(%error, "the API's task panicked"),
        }
        if let Err(error) = self.supervising.await {
            tracing::error!(%error, "a task panicked");
        }
        drop(self.held);
    }
}

#[cfg(test)]
mod tests {
    use proto::daemon as wire;

    use super::*;
    use crate::daemon::client;
    use crate::daemon::config::edit;
    use crate::path::RemotePath;

    #[tokio::test]
    async fn commands_reach_it_and_it_ends_when_told() {
        let scratch = tempfile::tempdir().unwrap();
        let options = DaemonOptions {
            config: scratch.path().join("sync.toml"),
            socket: scratch.path().join("sync.sock"),
            profile: scratch.path().join("no-profile.toml"),
        };
        let root = RootConfig::new("/no/such/folder".into(), &RemotePath::root());
        edit(&options.config, |config| config.add(root)).unwrap();
        assert!(client::connect(&options.socket).await.unwrap().is_none());
        let daemon = tokio::spawn(run(options.clone(), std::future::pending()));
        let mut api = loop {
            if let Some(api) = client::connect(&options.socket).await.unwrap() {
                break api;
            }
            tokio::task::yield_now().await;
        };
        assert!(matches!(
            run(options.clone(), std::future::pending()).await,
            Err(DaemonError::Bind(BindError::Taken { .. }))
        ));
        let status = api.status(wire::StatusRequest::default()).await.unwrap().into_inner();
        assert_eq!(status.process_id, std::process::id());
        assert_eq!(status.roots.len(), 1);
        let refused = api
            .confirm(wire::ConfirmRequest { directory: "/no/such/folder".to_owned(), ..Default::default() })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
        let unknown = api.remove(wire::RemoveRequest { directory: "/other".to_owned() }).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
        let relative = api.remove(wire::RemoveRequest { directory: "other".to_owned() }).await.unwrap_err();
        assert_eq!(relative.code(), tonic::Code::InvalidArgument);
        let add = wire::AddRequest {
            directory: "/other".to_owned(),
            remote: "no/slash".to_owned(),
            ..wire::AddRequest::default()
        };
        assert_eq!(api.add(add).await.unwrap_err().code(), tonic::Code::InvalidArgument);
        api.stop(wire::StopRequest {}).await.unwrap();
        daemon.await.unwrap().unwrap();
        assert!(!options.socket.exists());
        assert!(client::connect(&options.socket).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn it_ends_by_a_signal_with_connections_open() {
        let scratch = tempfile::tempdir().unwrap();
        let options = DaemonOptions {
            config: scratch.path().join("sync.toml"),
            socket: scratch.path().join("sync.sock"),
            profile: scratch.path().join("no-profile.toml"),
        };
        let stop = CancellationToken::new();
        let daemon = tokio::spawn(run(options.clone(), stop.clone().cancelled_owned()));
        let mut api = loop {
            if let Some(api) = client::connect(&options.socket).await.unwrap() {
                break api;
            }
            tokio::task::yield_now().await;
        };
        api.status(wire::StatusRequest::default()).await.unwrap();
        stop.cancel();
        daemon.await.unwrap().unwrap();
    }
}
