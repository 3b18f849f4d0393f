//! One folder kept the same as one remote folder.

use std::sync::{Arc, Mutex};

use tokio::sync::{broadcast, mpsc, watch};

use super::config::SyncConfig;
use super::handle::{COMMANDS_QUEUED_MAX, Command, EVENTS_QUEUED_MAX, Handle};
use super::status::{Phase, Quiet, Status, Traffic};
use crate::call_error::CallError;

/// Why a session cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder is not there, or is none.
    #[error("{message}")]
    Root {
        /// What is wrong with it, and what to do.
        message: String,
    },
    /// The state cannot be opened.
    #[error("the state of the synchronisation cannot be opened: {message}")]
    State {
        /// Why.
        message: String,
    },
    /// The profile cannot be used.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// See [`Session::start`].
#[derive(Debug)]
pub struct Session;

impl Session {
    /// Starts to keep a folder the same. A gateway that does not answer is waited for; a folder or a state that
    /// cannot be used is an error at once. What ends the session later is in its status.
    ///
    /// # Errors
    /// If the folder, the state or the profile cannot be used.
    pub async fn start(config: SyncConfig) -> Result<Handle, StartError> {
        let metadata = tokio::fs::metadata(&config.root).await.map_err(|error| StartError::Root {
            message: format!("{}: {error}", config.root.display()),
        })?;
        if !metadata.is_dir() {
            return Err(StartError::Root { message: format!("{} is no folder", config.root.display()) });
        }
        let (commands, receiver) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let (status_sender, status) = watch::channel(first_status(&config));
        let (events, _nobody) = broadcast::channel(EVENTS_QUEUED_MAX);
        let task = tokio::spawn(run(receiver, status_sender));
        Ok(Handle { commands, status, events, task: Arc::new(Mutex::new(Some(task))) })
    }
}

fn first_status(config: &SyncConfig) -> Status {
    Status {
        root: config.root.clone(),
        remote_path: config.remote_path.to_string(),
        phase: Phase::Starting,
        message: String::new(),
        online: false,
        paused: false,
        watching: false,
        agreed_count: 0,
        pending_count: 0,
        waiting_count: 0,
        waiting: Vec::new(),
        skipped: Vec::new(),
        deletes_to_confirm: 0,
        transfers: Vec::new(),
        up: Traffic::default(),
        down: Traffic::default(),
        limits: config.limits,
        excluded: Vec::new(),
    }
}

async fn run(mut commands: mpsc::Receiver<Command>, status: watch::Sender<Status>) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Stop => break,
            Command::Pause(paused) => {
                status.send_modify(|status| status.paused = paused);
            }
            Command::SetLimits(limits) => {
                status.send_modify(|status| status.limits = limits);
            }
            Command::SetExcluded { path, excluded: _, done } => {
                let reason = "the session is still starting".to_owned();
                drop(done.send(Err(super::handle::ExcludeError::Refused { path, reason })));
            }
            Command::LogTail { count: _, done } => drop(done.send(Vec::new())),
            Command::Quiet { done } => drop(done.send(Quiet { agreed: false, waiting: Vec::new() })),
            Command::ConfirmDeletes | Command::Rescan => {}
        }
    }
    status.send_modify(|status| {
        status.phase = Phase::Stopped;
        "it was stopped".clone_into(&mut status.message);
    });
}
