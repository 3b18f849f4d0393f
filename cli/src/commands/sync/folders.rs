//! `sync add`, `remove`, `pause`, `resume`, `confirm`, `undelete`, `rescan`, `exclude`, `include`, `limits`: by the daemon if one
//! runs; what is only noted in the configuration is noted there without one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use client::daemon::client::{self as daemon_client, Refused};
use client::daemon::config::{self, ConfigError, DaemonConfig, RootConfig};
use client::daemon::forget::forget;
use client::daemon::known;
use client::daemon::paths::Paths;
use client::daemon::{rate, supervisor, wire as convert};
use client::path::RemotePath;
use proto::daemon as wire;
use serde_json::json;

use super::reach::{self, roots};
use super::{absolute, directory, existing_directory, utf8};
use crate::args::{Global, SyncAdd, SyncBelow, SyncConfirm, SyncFolder, SyncLimits, SyncSome};
use crate::output::Output;
use crate::shown::{shown, shown_path};
use crate::table::{Side, Table};

const NOT_RUNNING: &str = "The sync daemon does not run; start it with `keepstone sync start`.";

/// Changes the configuration. A daemon that starts at the same moment reads it afterwards: it has its socket first.
async fn edit<T: Send + 'static>(
    change: impl FnOnce(&mut DaemonConfig) -> Result<T, ConfigError> + Send + 'static,
) -> anyhow::Result<T> {
    let path = Paths::from_environment()?.config;
    Ok(tokio::task::spawn_blocking(move || config::edit(&path, change)).await??)
}

pub(crate) async fn add(global: &Global, arguments: SyncAdd, output: &Output) -> anyhow::Result<ExitCode> {
    let directory = existing_directory(&arguments.directory)?;
    if arguments.again {
        return mark_again(directory, arguments.state, output).await;
    }
    let remote = RemotePath::parse(&arguments.remote)?;
    let state = arguments.state.as_deref().map(absolute).transpose()?;
    let profile = global.profile.as_deref().map(absolute).transpose()?;
    let api = reach::find(None).await?;
    let running = api.is_some();
    if let Some(mut api) = api {
        let text = |path: &Option<PathBuf>| path.as_deref().map(utf8).transpose();
        let request = wire::AddRequest {
            directory: utf8(&directory)?,
            remote: remote.to_string(),
            state: text(&state)?.unwrap_or_default(),
            profile: text(&profile)?.unwrap_or_default(),
            up_limit: arguments.limits.up.map(convert::rate_to_wire),
            down_limit: arguments.limits.down.map(convert::rate_to_wire),
        };
        api.add(request).await.map_err(Refused::from)?;
    } else {
        let mut root = RootConfig::new(directory.clone(), &remote);
        (root.state, root.profile) = (state, profile);
        root.up = arguments.limits.up.unwrap_or_default();
        root.down = arguments.limits.down.unwrap_or_default();
        edit(move |config| supervisor::add_new(config, root)).await?;
    }
    let document = json!({ "directory": directory, "remote": remote.to_string(), "running": running });
    output.print(&document, || {
        let hint = if running { String::new() } else { format!("\n{NOT_RUNNING}") };
        format!("{} is kept in sync with {}{hint}", shown_path(&directory), shown(remote.as_str()))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Marks a folder again that was kept in sync. Whoever keeps it goes on by itself.
async fn mark_again(directory: PathBuf, state: Option<PathBuf>, output: &Output) -> anyhow::Result<ExitCode> {
    let paths = Paths::from_environment()?;
    let state = state.as_deref().map(absolute).transpose()?;
    let marked = directory.clone();
    tokio::task::spawn_blocking(move || known::mark_again(&paths, &marked, state.as_deref())).await??;
    output.print(&json!({ "directory": directory, "marked": true }), || {
        format!("{} is marked again; it is kept in sync as before", directory.display())
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn remove(arguments: &SyncFolder, output: &Output) -> anyhow::Result<ExitCode> {
    let directory = directory(&arguments.directory)?;
    // What the daemon does not have, a `sync run` may have kept in sync.
    let was_configured = match reach::find(None).await? {
        Some(mut api) => daemon_client::remove(&mut api, utf8(&directory)?).await?,
        None => remove_without_daemon(directory.clone()).await?,
    };
    let removed = directory.clone();
    tokio::task::spawn_blocking(move || forget_run(removed, was_configured)).await??;
    output.print(&json!({ "directory": directory }), || {
        format!("{} is not kept in sync any more; its files stay", shown_path(&directory))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Takes a folder out of the configuration and forgets its state; gives whether it was there.
async fn remove_without_daemon(directory: PathBuf) -> anyhow::Result<bool> {
    let path = Paths::from_environment()?.config;
    let removed = tokio::task::spawn_blocking(move || {
        let root = match config::edit(&path, |config| config.remove(&directory)) {
            Ok(root) => root,
            Err(ConfigError::Unknown { .. }) => return Ok(false),
            Err(error) => return Err(anyhow::Error::from(error)),
        };
        forget(&directory, root.state.as_deref())?;
        Ok(true)
    });
    removed.await?
}

/// Forgets what a `sync run` of a folder has left. One that runs on it is an error. Blocks.
fn forget_run(directory: PathBuf, was_configured: bool) -> anyhow::Result<()> {
    let paths = Paths::from_environment()?;
    let state = known::state_of(&paths, &directory)?;
    let was_run = forget(&directory, state.as_deref())? | known::forget(&paths, &directory)?;
    anyhow::ensure!(was_configured || was_run, ConfigError::Unknown { directory });
    Ok(())
}

pub(crate) async fn pause(arguments: &SyncSome, paused: bool, output: &Output) -> anyhow::Result<ExitCode> {
    let directory = arguments.directory.as_deref().map(directory).transpose()?;
    if let Some(mut api) = reach::find(directory.as_deref()).await? {
        let request = wire::PauseRequest { roots: roots(directory.as_deref())?, paused };
        api.pause(request).await.map_err(Refused::from)?;
    } else {
        let chosen = directory.clone();
        edit(move |config| supervisor::set_paused(config, chosen.as_deref(), paused)).await?;
    }
    output.print(&json!({ "directory": directory, "paused": paused }), || {
        let which = directory.as_deref().map_or("Everything".to_owned(), shown_path);
        format!("{which} {}", if paused { "is paused" } else { "goes on" })
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn confirm(arguments: SyncConfirm, output: &Output) -> anyhow::Result<ExitCode> {
    let directory = directory(&arguments.directory)?;
    let mut api = reach::require(Some(&directory)).await?;
    let shown = arguments.shown.unwrap_or_default();
    let request = wire::ConfirmRequest { directory: utf8(&directory)?, shown };
    let answer = api.confirm(request).await.map_err(Refused::from)?.into_inner();
    output.print(&json!({ "directory": directory, "deletes": answer.deletes }), || match answer.deletes {
        0 => "No deletes wait to be confirmed".to_owned(),
        count => format!("{} may go ahead", crate::format::count(count, "delete")),
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn undelete(arguments: &SyncFolder, output: &Output) -> anyhow::Result<ExitCode> {
    let directory = directory(&arguments.directory)?;
    let mut api = reach::require(Some(&directory)).await?;
    let request = wire::UndeleteRequest { directory: utf8(&directory)? };
    let files = api.undelete(request).await.map_err(Refused::from)?.into_inner().files;
    output.print(&json!({ "directory": directory, "files": files }), || {
        format!("{} undone; the files come back", crate::format::count(files, "delete"))
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn rescan(arguments: &SyncSome, output: &Output) -> anyhow::Result<ExitCode> {
    let directory = arguments.directory.as_deref().map(directory).transpose()?;
    let mut api = reach::require(directory.as_deref()).await?;
    let request = wire::RescanRequest { roots: roots(directory.as_deref())? };
    api.rescan(request).await.map_err(Refused::from)?;
    output.print(&json!({ "directory": directory }), String::new)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn exclude(
    arguments: &SyncBelow,
    excluded: bool,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let directory = directory(&arguments.directory)?;
    let mut api = reach::require(Some(&directory)).await?;
    let path = arguments.path.trim_matches('/').to_owned();
    let request = wire::ExcludeRequest { directory: utf8(&directory)?, path: path.clone(), excluded };
    api.exclude(request).await.map_err(Refused::from)?;
    output.print(&json!({ "directory": directory, "path": path, "excluded": excluded }), || {
        if excluded {
            format!("{} goes from this device; it stays on the server", shown(&path))
        } else {
            format!("{} comes back to this device", shown(&path))
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn limits(arguments: &SyncLimits, output: &Output) -> anyhow::Result<ExitCode> {
    let directory = arguments.directory.as_deref().map(directory).transpose()?;
    let (up, down) = (arguments.limits.up, arguments.limits.down);
    if up.is_some() || down.is_some() {
        set_limits(directory.as_deref(), arguments).await?;
    }
    // Without a daemon, and for all that it keeps, the configuration is what holds.
    let path = Paths::from_environment()?.config;
    let config = tokio::task::spawn_blocking(move || DaemonConfig::load(&path)).await??;
    let chosen: Vec<&RootConfig> = config
        .roots
        .iter()
        .filter(|root| directory.as_ref().is_none_or(|directory| *directory == root.directory))
        .collect();
    let rows: Vec<_> = chosen
        .iter()
        .map(|root| json!({ "directory": root.directory, "up": rate::show(root.up), "down": rate::show(root.down) }))
        .collect();
    output.print(&json!({ "limits": rows }), || {
        let mut table = Table::new(&[("UP", Side::Right), ("DOWN", Side::Right), ("FOLDER", Side::Left)]);
        for root in &chosen {
            table.row(vec![rate::show(root.up), rate::show(root.down), root.directory.display().to_string()]);
        }
        table.render()
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn set_limits(directory: Option<&Path>, arguments: &SyncLimits) -> anyhow::Result<()> {
    let (up, down) = (arguments.limits.up, arguments.limits.down);
    if let Some(mut api) = reach::find(directory).await? {
        let request = wire::SetLimitsRequest {
            roots: roots(directory)?,
            up_limit: up.map(convert::rate_to_wire),
            down_limit: down.map(convert::rate_to_wire),
        };
        api.set_limits(request).await.map_err(Refused::from)?;
    } else {
        let chosen = directory.map(Path::to_owned);
        edit(move |config| supervisor::set_limits(config, chosen.as_deref(), up, down)).await?;
    }
    Ok(())
}
