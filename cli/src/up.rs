//! `keepstone up`: a whole cluster on this machine.
//!
//! The first start makes keys, certificates and configuration files, all later ones use them. What is on disk after a
//! crash in between: `config/up.toml` is written last, and no role starts before it is there; without it the next
//! start makes everything anew. The profile is written once the cluster is initialised; without it the next start
//! initialises again, which changes nothing that is there.
//!
//! Invariants:
//! - One `up` per directory: it holds a lock on `DIR/lock` while it runs.
//! - Roles are started as their `argv` in `cluster.json` says, so that anybody can start one again.

mod generate;
mod in_process;
mod layout;
mod manifest;
mod parameters;
mod ports;
mod processes;
mod ready;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;

use self::in_process::RolesHere;
use self::layout::{Layout, Lock};
use self::parameters::{Changes, Parameters};
use self::processes::RoleProcesses;
use crate::args::Up;
use crate::output::{Output, tell};
use crate::shown::shown_argument;
use crate::shutdown::StopSignals;

/// The roles of the cluster, running.
enum Roles {
    Here(RolesHere),
    Processes(RoleProcesses),
}

pub(crate) async fn run(arguments: Up, output: &Output) -> anyhow::Result<ExitCode> {
    let mut signals = StopSignals::new()?;
    let layout = Layout::new(data_directory(&arguments)?);
    let lock = Lock::take(&layout)?;
    let parameters = prepare(&layout, &arguments)?;
    let mut roles = start(&layout, &parameters, arguments.processes).await?;
    let ready = tokio::select! {
        ready = become_ready(&layout, &parameters, &mut roles) => ready,
        () = signals.wait() => {
            roles.stop().await;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let endpoint = match ready {
        Ok(endpoint) => endpoint,
        Err(error) => {
            roles.stop().await;
            return Err(error);
        }
    };
    if let Err(error) = announce(&layout, &endpoint, output) {
        roles.stop().await;
        return Err(error);
    }
    let failed = roles.watch(&mut signals).await;
    roles.stop().await;
    drop(lock);
    match failed {
        None => Ok(ExitCode::SUCCESS),
        Some(reason) => {
            anyhow::bail!("{reason}. Look after the disk of {}, then start again", layout.root().display())
        }
    }
}

fn data_directory(arguments: &Up) -> anyhow::Result<PathBuf> {
    let directory = match &arguments.data {
        Some(directory) => directory.clone(),
        None => crate::files::default_data_directory()?,
    };
    std::path::absolute(&directory).with_context(|| format!("where is {}?", directory.display()))
}

/// Makes everything at a first start; checks at a later one that nothing else is wanted.
fn prepare(layout: &Layout, arguments: &Up) -> anyhow::Result<Parameters> {
    let changes = Changes::of(arguments);
    match Parameters::load(&layout.parameters())? {
        Some(parameters) => {
            changes.check(&parameters, layout)?;
            Ok(parameters)
        }
        None => {
            tell(&format!("making a new cluster in {}", layout.root().display()));
            generate::generate(layout, &changes)
        }
    }
}

async fn start(layout: &Layout, parameters: &Parameters, processes: bool) -> anyhow::Result<Roles> {
    ports::check_free(&parameters.addresses())?;
    if processes {
        Ok(Roles::Processes(RoleProcesses::start(layout, parameters)?))
    } else {
        Ok(Roles::Here(RolesHere::start(layout, parameters).await?))
    }
}

async fn become_ready(layout: &Layout, parameters: &Parameters, roles: &mut Roles) -> anyhow::Result<String> {
    if let Roles::Processes(processes) = roles {
        processes.wait_listening().await?;
    }
    let endpoint = ready::wait(layout, parameters).await?;
    let roles = &*roles;
    manifest::write(layout, parameters, |role| match roles {
        Roles::Here(_) => std::process::id(),
        Roles::Processes(processes) => processes.pid(role),
    })?;
    Ok(endpoint)
}

fn announce(layout: &Layout, endpoint: &str, output: &Output) -> anyhow::Result<()> {
    let profile = layout.profile();
    let document = json!({ "ready": endpoint, "profile": profile, "cluster": layout.manifest() });
    output.print(&document, || {
        // The default directory's profile is found without being named.
        let default =
            crate::files::default_data_directory().is_ok_and(|data| data.join("profile.toml") == profile);
        let export = if default {
            String::new()
        } else {
            format!("  export KEEPSTONE_PROFILE={}\n", shown_argument(&profile))
        };
        format!(
            "ready {endpoint}\n\n\
             Stop it with Ctrl-C. What to type next, in another terminal:\n\
             {export}  keepstone put FILE /\n  keepstone ls -l /\n  keepstone admin status\n"
        )
    })
}

impl Roles {
    /// Waits for a signal to stop; tells of roles that end by themselves meanwhile. Says why, if it is of no use to
    /// go on.
    async fn watch(&mut self, signals: &mut StopSignals) -> Option<String> {
        match self {
            Self::Here(roles) => tokio::select! {
                () = signals.wait() => None,
                reason = roles.failed() => Some(reason),
            },
            Self::Processes(processes) => loop {
                tokio::select! {
                    () = signals.wait() => return None,
                    ended = processes.next_ended() => processes.tell_ended(&ended),
                }
            },
        }
    }

    async fn stop(self) {
        match self {
            Self::Here(roles) => roles.stop().await,
            Self::Processes(processes) => processes.stop().await,
        }
    }
}
