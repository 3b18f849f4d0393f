//! The daemon's API: each request checked, done by the supervisor or a session, and answered.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::daemon as wire;
use proto::daemon::daemon_server::Daemon;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::config::{ConfigError, RootConfig};
use super::keeper::Keeper;
use super::supervisor::{EditError, Supervisor};
use super::wire::{log_to_wire, rate, rate_to_wire, status_to_wire};
use crate::path::RemotePath;
use crate::sync::handle::{DeletesError, Ended, ExcludeError, Handle};
use crate::sync::status::{DELETES_ALL, Status as SyncStatus};

/// Log entries of one folder in one answer, at most, and if nothing is said.
const LOG_ENTRIES_MAX: usize = 10_000;
const LOG_ENTRIES_DEFAULT: usize = 100;

/// What the requests are about.
#[derive(Debug)]
pub(crate) struct DaemonService {
    pub(crate) supervisor: Supervisor,
    pub(crate) config: PathBuf,
    pub(crate) metered_pause: watch::Receiver<bool>,
    /// Which deletes of each folder were last shown to somebody. As many as there are folders.
    pub(crate) shown: Mutex<HashMap<PathBuf, String>>,
    /// Cancelled once a request has ended everything.
    pub(crate) stopped: CancellationToken,
}

impl From<ConfigError> for Status {
    fn from(error: ConfigError) -> Self {
        let message = error.to_string();
        match error {
            ConfigError::Unknown { .. } => Self::not_found(message),
            ConfigError::Refused { .. } => Self::failed_precondition(message),
            ConfigError::Io { .. } | ConfigError::Malformed { .. } => Self::internal(message),
        }
    }
}

impl From<EditError> for Status {
    fn from(error: EditError) -> Self {
        match error {
            EditError::Config(error) => error.into(),
            EditError::Start { message } => Self::failed_precondition(message),
            EditError::Forget(error) => Self::failed_precondition(error.to_string()),
            EditError::Ending => Self::unavailable(error.to_string()),
        }
    }
}

fn ended(error: &Ended) -> Status {
    Status::unavailable(error.to_string())
}

fn directory(text: &str) -> Result<PathBuf, Status> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Status::invalid_argument(format!("{text:?} is not an absolute path")))
}

fn selected(roots: Option<wire::Roots>) -> Result<Option<PathBuf>, Status> {
    match roots.unwrap_or_default().directory {
        text if text.is_empty() => Ok(None),
        text => directory(&text).map(Some),
    }
}

fn optional(text: &str) -> Result<Option<PathBuf>, Status> {
    if text.is_empty() { Ok(None) } else { directory(text).map(Some) }
}

/// The session of a folder that must have one.
fn running(keeper: &Keeper) -> Result<Handle, Status> {
    keeper.session().ok_or_else(|| {
        let status = keeper.status();
        Status::failed_precondition(format!(
            "{} is not being kept in sync now: {}",
            status.root.display(),
            if status.message.is_empty() { "it is starting" } else { &status.message }
        ))
    })
}

fn deletes_failed(error: DeletesError) -> Status {
    match error {
        DeletesError::Ended(error) => ended(&error),
        DeletesError::Failed(reason) => Status::internal(reason),
        DeletesError::None | DeletesError::Others { .. } => Status::failed_precondition(error.to_string()),
    }
}

/// What is said to who confirms other deletes than wait.
fn others_wait(status: &SyncStatus, shown: &str, waiting: &str) -> String {
    let why = if shown.is_empty() { "these were not shown yet" } else { "they are others than were shown" };
    let root = status.root.display();
    let what = if waiting == DELETES_ALL {
        "all files of the folder".to_owned()
    } else {
        format!("{} files", status.deletes_to_confirm)
    };
    format!(
        "{what} would be deleted now, and {why}: look at them with `keepstone sync status {root}`; if they are meant, \
         keepstone sync confirm {root} {waiting}; to bring them back, keepstone sync undelete {root}"
    )
}

impl DaemonService {
    fn shown(&self) -> MutexGuard<'_, HashMap<PathBuf, String>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes which deletes these statuses show.
    fn note_shown(&self, statuses: &[SyncStatus]) {
        let mut shown = self.shown();
        for status in statuses {
            shown.insert(status.root.clone(), status.deletes_shown.clone());
        }
    }

    fn one(&self, text: &str) -> Result<Keeper, Status> {
        let directory = directory(text)?;
        let keepers = self.supervisor.select(Some(&directory))?;
        keepers.into_iter().next().ok_or_else(|| Status::not_found(text.to_owned()))
    }

    fn several(&self, roots: Option<wire::Roots>) -> Result<Vec<Keeper>, Status> {
        let directory = selected(roots)?;
        Ok(self.supervisor.select(directory.as_deref().map(Path::new))?)
    }
}

#[tonic::async_trait]
impl Daemon for DaemonService {
    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        let keepers = self.several(request.into_inner().roots)?;
        let statuses: Vec<_> = keepers.iter().map(Keeper::status).collect();
        self.note_shown(&statuses);
        Ok(Response::new(wire::StatusResponse {
            process_id: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: self.config.to_string_lossy().into_owned(),
            metered_pause: *self.metered_pause.borrow(),
            roots: statuses.into_iter().map(status_to_wire).collect(),
        }))
    }

    async fn add(&self, request: Request<wire::AddRequest>) -> Result<Response<wire::AddResponse>, Status> {
        let request = request.into_inner();
        let remote = RemotePath::parse(&request.remote)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut root = RootConfig::new(directory(&request.directory)?, &remote);
        root.state = optional(&request.state)?;
        root.profile = optional(&request.profile)?;
        root.up = rate(request.up_limit.unwrap_or_default());
        root.down = rate(request.down_limit.unwrap_or_default());
        self.supervisor.add(root).await?;
        Ok(Response::new(wire::AddResponse {}))
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveRequest>,
    ) -> Result<Response<wire::RemoveResponse>, Status> {
        self.supervisor.remove(directory(&request.into_inner().directory)?).await?;
        Ok(Response::new(wire::RemoveResponse {}))
    }

    async fn pause(
        &self,
        request: Request<wire::PauseRequest>,
    ) -> Result<Response<wire::PauseResponse>, Status> {
        let request = request.into_inner();
        self.supervisor.pause(selected(request.roots)?, request.paused).await?;
        Ok(Response::new(wire::PauseResponse {}))
    }

    async fn confirm(
        &self,
        request: Request<wire::ConfirmRequest>,
    ) -> Result<Response<wire::ConfirmResponse>, Status> {
        let wire::ConfirmRequest { directory, shown } = request.into_inner();
        let session = running(&self.one(&directory)?)?;
        let root = session.status().root;
        let shown =
            if shown.is_empty() { self.shown().get(&root).cloned().unwrap_or_default() } else { shown };
        match session.confirm_deletes(&shown).await {
            Ok(deletes) => Ok(Response::new(wire::ConfirmResponse { deletes })),
            Err(DeletesError::None) => Ok(Response::new(wire::ConfirmResponse { deletes: 0 })),
            Err(DeletesError::Others { waiting }) => {
                let status = session.status();
                self.note_shown(std::slice::from_ref(&status));
                Err(Status::failed_precondition(others_wait(&status, &shown, &waiting)))
            }
            Err(error) => Err(deletes_failed(error)),
        }
    }

    async fn undelete(
        &self,
        request: Request<wire::UndeleteRequest>,
    ) -> Result<Response<wire::UndeleteResponse>, Status> {
        let session = running(&self.one(&request.into_inner().directory)?)?;
        match session.undelete().await {
            Ok(files) => Ok(Response::new(wire::UndeleteResponse { files })),
            Err(error) => Err(deletes_failed(error)),
        }
    }

    async fn exclude(
        &self,
        request: Request<wire::ExcludeRequest>,
    ) -> Result<Response<wire::ExcludeResponse>, Status> {
        let request = request.into_inner();
        let session = running(&self.one(&request.directory)?)?;
        session.set_excluded(&request.path, request.excluded).await.map_err(|error| match error {
            ExcludeError::Ended(error) => ended(&error),
            ExcludeError::Refused { .. } => Status::failed_precondition(error.to_string()),
        })?;
        Ok(Response::new(wire::ExcludeResponse {}))
    }

    async fn set_limits(
        &self,
        request: Request<wire::SetLimitsRequest>,
    ) -> Result<Response<wire::SetLimitsResponse>, Status> {
        let request = request.into_inner();
        let (up, down) = (request.up_limit.map(rate), request.down_limit.map(rate));
        self.supervisor.set_limits(selected(request.roots)?, up, down).await?;
        Ok(Response::new(wire::SetLimitsResponse {}))
    }

    async fn log(&self, request: Request<wire::LogRequest>) -> Result<Response<wire::LogResponse>, Status> {
        let request = request.into_inner();
        let count = match usize::try_from(request.count_max).unwrap_or(LOG_ENTRIES_MAX) {
            0 => LOG_ENTRIES_DEFAULT,
            count => count.min(LOG_ENTRIES_MAX),
        };
        let mut entries = Vec::new();
        for keeper in self.several(request.roots)? {
            // A folder that has no session now has no log to show either; its status says why.
            let Some(session) = keeper.session() else { continue };
            let root = keeper.config().directory.to_string_lossy().into_owned();
            let tail = session.log_tail(count).await.map_err(|error| ended(&error))?;
            entries.extend(tail.into_iter().map(|entry| log_to_wire(&root, entry)));
        }
        entries.sort_by(|a, b| (a.time_ms, &a.directory, a.number).cmp(&(b.time_ms, &b.directory, b.number)));
        Ok(Response::new(wire::LogResponse { entries }))
    }

    async fn rescan(
        &self,
        request: Request<wire::RescanRequest>,
    ) -> Result<Response<wire::RescanResponse>, Status> {
        for keeper in self.several(request.into_inner().roots)? {
            running(&keeper)?.rescan().await.map_err(|error| ended(&error))?;
        }
        Ok(Response::new(wire::RescanResponse {}))
    }

    async fn stop(
        &self,
        _request: Request<wire::StopRequest>,
    ) -> Result<Response<wire::StopResponse>, Status> {
        // If another request, or a signal, was first, then it ends all the same.
        drop(self.supervisor.stop().await);
        self.stopped.cancel();
        Ok(Response::new(wire::StopResponse {}))
    }
}

/// A request's limits, from what was given.
#[must_use]
pub fn limit_to_wire(limit: Option<crate::sync::config::Rate>) -> Option<wire::Rate> {
    limit.map(rate_to_wire)
}
