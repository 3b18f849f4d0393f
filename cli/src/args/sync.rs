//! Arguments of the commands that keep folders in sync.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use client::daemon::rate;
use client::sync::config::Rate;

#[derive(Debug, Subcommand)]
pub(crate) enum SyncCommand {
    /// Keep a folder in sync, in the foreground, until Ctrl-C.
    Run(SyncRun),
    /// Add a folder to those that the daemon keeps in sync.
    Add(SyncAdd),
    /// Stop keeping a folder in sync, and forget that it was. Its files stay, here and on the server.
    Remove(SyncFolder),
    /// Start the daemon in the background.
    Start,
    /// Stop the daemon.
    Stop,
    /// Run the daemon in the foreground.
    Daemon(SyncDaemon),
    /// Show how each folder is, and what waits and why.
    Status(SyncSome),
    /// Pause a folder, or all of them.
    Pause(SyncSome),
    /// Go on with a folder, or with all of them.
    Resume(SyncSome),
    /// Let many deletes go ahead that wait to be confirmed.
    Confirm(SyncConfirm),
    /// Undo the deletes that wait to be confirmed: the files come back.
    Undelete(SyncFolder),
    /// List what is ignored here, each with its rule.
    Ls(SyncLs),
    /// Show what was done.
    Log(SyncLog),
    /// Look at all of a folder now, or of all of them, and try again what waits.
    Rescan(SyncSome),
    /// Do not keep a folder below on this device: it goes here, and stays on the server.
    Exclude(SyncBelow),
    /// Keep an excluded folder on this device again.
    Include(SyncBelow),
    /// Show or set bandwidth limits.
    Limits(SyncLimits),
    /// Print the systemd unit that runs the daemon while you are signed in, or install it.
    Unit(SyncUnit),
}

#[derive(Debug, Args)]
pub(crate) struct SyncRun {
    /// The local folder.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// The remote folder; made if it is not there.
    #[arg(long, default_value = "/", value_name = "PATH")]
    pub(crate) remote: String,
    /// End as soon as both sides agree, with exit code 0; or with 1 if something keeps them from it.
    #[arg(long)]
    pub(crate) once: bool,
    /// Where to keep the state. [default: DIR/.keepstone]
    #[arg(long, value_name = "DIR2")]
    pub(crate) state: Option<PathBuf>,
    /// Take it for a new folder, though the one that was kept in sync at this path is not there. A state of that is set
    /// aside.
    #[arg(long)]
    pub(crate) new: bool,
    #[command(flatten)]
    pub(crate) limits: LimitArguments,
    /// More deletes at once wait for `keepstone sync confirm DIR`.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) deletes_max: u64,
    /// As do deletes of more than so many of a hundred files.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) deletes_percent_max: u32,
    /// Let the deletes go ahead that were shown as SHOWN, as `sync confirm DIR SHOWN` does; others wait. `all` is for a
    /// folder that is meant to be empty.
    #[arg(long, value_name = "SHOWN", conflicts_with = "undelete")]
    pub(crate) confirm: Option<String>,
    /// Undo deletes that would wait to be confirmed: the files come back.
    #[arg(long)]
    pub(crate) undelete: bool,
    /// Look at everything this often, besides noticing changes.
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    pub(crate) scan_minutes: u64,
}

/// Bandwidth limits. What is not given stays as it is.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LimitArguments {
    /// Bytes per second to the server, such as 500K or 2M; `auto` is 80% of what is measured; or `unlimited`.
    #[arg(long, value_name = "RATE", value_parser = rate::parse)]
    pub(crate) up: Option<Rate>,
    /// The same from the server.
    #[arg(long, value_name = "RATE", value_parser = rate::parse)]
    pub(crate) down: Option<Rate>,
}

#[derive(Debug, Args)]
pub(crate) struct SyncAdd {
    /// The local folder.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// The remote folder; made if it is not there.
    #[arg(long, default_value = "/", value_name = "PATH")]
    pub(crate) remote: String,
    /// Where to keep the state. [default: DIR/.keepstone]
    #[arg(long, value_name = "DIR2")]
    pub(crate) state: Option<PathBuf>,
    /// It was kept in sync, and is the right folder though its marker is missing or damaged: mark it again. What is
    /// excluded stays excluded.
    #[arg(long)]
    pub(crate) again: bool,
    #[command(flatten)]
    pub(crate) limits: LimitArguments,
}

#[derive(Debug, Args)]
pub(crate) struct SyncConfirm {
    /// The local folder.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// The deletes that are meant, as `sync status` shows them. If others wait by now, nothing goes ahead. [default: those
    /// that were last shown]
    #[arg(value_name = "SHOWN")]
    pub(crate) shown: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SyncFolder {
    /// The local folder.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct SyncSome {
    /// The local folder. [default: all]
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SyncLs {
    /// The local folder. [default: all that the daemon keeps in sync]
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// What is not sent because of a rule, or because of what it is.
    #[arg(long, required = true)]
    pub(crate) ignored: bool,
    /// Where the state is kept, if not in the folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SyncDaemon {
    /// Leave the terminal's session, as `start` wants it.
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SyncLog {
    /// The local folder. [default: all]
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// How many entries of each folder.
    #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) lines: u32,
}

#[derive(Debug, Args)]
pub(crate) struct SyncBelow {
    /// The local folder that is kept in sync.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// A folder below it, such as `photos/raw`.
    #[arg(value_name = "PATH")]
    pub(crate) path: String,
}

#[derive(Debug, Args)]
pub(crate) struct SyncLimits {
    /// The local folder. [default: each of them]
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) limits: LimitArguments,
}

#[derive(Debug, Args)]
pub(crate) struct SyncUnit {
    /// Write it to the systemd directory of this user.
    #[arg(long)]
    pub(crate) install: bool,
}
