//! `sync`: folders that are kept the same as remote ones, by a daemon or in the foreground.

mod daemon;
mod folders;
mod ls;
mod reach;
mod run;
mod show;
mod unit;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::args::{Global, SyncCommand};
use crate::output::Output;

pub(crate) async fn run(global: &Global, command: SyncCommand, output: &Output) -> anyhow::Result<ExitCode> {
    match command {
        SyncCommand::Run(run) => run::run(global, run, output).await,
        SyncCommand::Daemon(arguments) => daemon::run(global, &arguments).await,
        SyncCommand::Start => daemon::start(global, output).await,
        SyncCommand::Stop => daemon::stop(output).await,
        SyncCommand::Add(add) => folders::add(global, add, output).await,
        SyncCommand::Remove(folder) => folders::remove(&folder, output).await,
        SyncCommand::Status(some) => show::status(&some, output).await,
        SyncCommand::Ls(some) => ls::ls(&some, output).await,
        SyncCommand::Log(log) => show::log(&log, output).await,
        SyncCommand::Pause(some) => folders::pause(&some, true, output).await,
        SyncCommand::Resume(some) => folders::pause(&some, false, output).await,
        SyncCommand::Confirm(confirm) => folders::confirm(confirm, output).await,
        SyncCommand::Undelete(folder) => folders::undelete(&folder, output).await,
        SyncCommand::Rescan(some) => folders::rescan(&some, output).await,
        SyncCommand::Exclude(below) => folders::exclude(&below, true, output).await,
        SyncCommand::Include(below) => folders::exclude(&below, false, output).await,
        SyncCommand::Limits(limits) => folders::limits(&limits, output).await,
        SyncCommand::Unit(arguments) => unit::run(&arguments, output),
    }
}

/// A folder as the daemon knows it: absolute, without symlinks; of one that is gone, as it was written.
fn directory(path: &Path) -> anyhow::Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(_gone) => std::path::absolute(path).with_context(|| format!("where is {}?", path.display())),
    }
}

/// A folder that must be there.
fn existing_directory(path: &Path) -> anyhow::Result<PathBuf> {
    let found = std::fs::canonicalize(path).with_context(|| format!("cannot use {}", path.display()))?;
    anyhow::ensure!(found.is_dir(), "{} is not a folder", path.display());
    Ok(found)
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("where is {}?", path.display()))
}

fn utf8(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}
