//! Arguments of the commands on accounts, devices and the cluster's state.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::parse_size;

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// The gateway: https://HOST:PORT.
    pub(crate) endpoint: String,
    /// The account's email address.
    #[arg(long)]
    pub(crate) email: String,
    /// The cluster's CA certificate, a PEM file.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: PathBuf,
    /// What to call this device. [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// Where to write the profile. [default: as --profile]
    #[arg(long, value_name = "PROFILE")]
    pub(crate) out: Option<PathBuf>,
    /// Read the password from standard input instead of asking for it.
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DevicesCommand {
    /// Show the account's devices.
    Ls,
    /// Take a device's token out of use, at once.
    Revoke {
        /// Its id or name, as `keepstone devices ls` shows them.
        #[arg(value_name = "ID|NAME")]
        device: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Accounts.
    #[command(subcommand)]
    Account(AccountCommand),
    /// Show how the cluster is.
    Status(StatusArguments),
    /// Re-read everything on every disk and find damage.
    Scrub(ScrubArguments),
    /// Delays and deadlines of the cluster.
    #[command(subcommand)]
    Settings(SettingsCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Make an account.
    Create(AccountCreate),
    /// Show or set how much an account may keep.
    Quota(AccountQuota),
}

#[derive(Debug, Args)]
pub(crate) struct AccountQuota {
    /// Its email address.
    pub(crate) email: String,
    /// Most bytes it may keep, such as 20G, or `none`. [default: show it]
    #[arg(value_name = "SIZE|none", value_parser = parse_quota)]
    pub(crate) quota: Option<u64>,
}

/// A size, or none, which is 0.
fn parse_quota(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        text => match parse_size(text)? {
            0 => Err("write `none` for no limit".to_owned()),
            size => Ok(size),
        },
    }
}

#[derive(Debug, Args)]
pub(crate) struct AccountCreate {
    /// Its email address.
    pub(crate) email: String,
    /// The person's name.
    #[arg(long, default_value = "")]
    pub(crate) name: String,
    /// Most bytes it may keep, such as 20G. [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) quota: Option<u64>,
    /// An administrator too.
    #[arg(long)]
    pub(crate) admin: bool,
    /// Read the password from standard input instead of asking for it.
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// Wait up to so many seconds until the health is `ok`.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) wait: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ScrubArguments {
    /// Begin now and wait until it is done.
    #[arg(long, required = true)]
    pub(crate) now: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SettingsCommand {
    /// Show all settings.
    Ls,
    /// Show one.
    Get {
        /// Its name.
        name: String,
    },
    /// Change one.
    Set {
        /// Its name.
        name: String,
        /// Its new value, such as 90s, 12h or 30d.
        value: String,
    },
}
