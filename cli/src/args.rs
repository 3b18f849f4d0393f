//! The command line's definition: of parsing, help, shell completions and man pages alike.

mod admin;
mod cluster;
mod files;
mod sync;

use std::path::PathBuf;

pub(crate) use admin::{
    AccountCommand, AccountCreate, AccountQuota, AdminCommand, DevicesCommand, Login, ScrubArguments,
    SettingsCommand, StatusArguments,
};
use clap::{Args, Parser, Subcommand};
pub(crate) use cluster::{
    ClusterBootstrap, ClusterCommand, ClusterInit, Member, RoleArguments, StorageArguments, Up,
};
pub(crate) use files::{
    Cat, Cp, Get, History, Ls, Mkdir, Mv, Put, Restore, Rm, Stat, TrashCommand, TrashName, TrashPurge,
    TrashRestore, VersionsCommand, VersionsRm,
};
pub(crate) use sync::{
    SyncAdd, SyncBelow, SyncCommand, SyncConfirm, SyncDaemon, SyncFolder, SyncLimits, SyncLog, SyncLs,
    SyncRun, SyncSome, SyncUnit,
};

/// Keeps your files on your own disk servers, in sync between your devices, with all earlier versions.
#[derive(Debug, Parser)]
#[command(name = "keepstone", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// The profile to use: where the gateway is, and this device's token.
    /// [default: profile.toml in the default data directory]
    #[arg(long, global = true, env = "KEEPSTONE_PROFILE", value_name = "FILE", hide_env_values = true)]
    pub(crate) profile: Option<PathBuf>,
    /// Print one JSON document on standard output.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Write logs as JSON, one line each. KEEPSTONE_LOG sets what is logged, such as `info` or `gateway=debug`.
    #[arg(long, global = true)]
    pub(crate) log_json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole cluster on this machine.
    Up(Up),
    /// Store local files and folders on the server.
    Put(Put),
    /// Fetch files and folders from the server.
    Get(Get),
    /// Write a file's bytes to standard output.
    Cat(Cat),
    /// List a folder.
    Ls(Ls),
    /// Show what is known of an entry.
    Stat(Stat),
    /// Make folders.
    Mkdir(Mkdir),
    /// Move or rename entries.
    Mv(Mv),
    /// Copy entries on the server, without moving a byte of content.
    Cp(Cp),
    /// Move entries to the trash.
    Rm(Rm),
    /// Show a file's versions.
    History(History),
    /// Show a file's versions, or delete earlier ones for good.
    #[command(subcommand)]
    Versions(VersionsCommand),
    /// Bring back an earlier version of a file, as its newest.
    Restore(Restore),
    /// Show, bring back or purge what was removed.
    #[command(subcommand)]
    Trash(TrashCommand),
    /// Keep folders the same as remote ones.
    #[command(subcommand)]
    Sync(SyncCommand),
    /// Sign in to an account and write a profile.
    Login(Login),
    /// Show whose profile this is.
    Whoami,
    /// Show or revoke an account's devices.
    #[command(subcommand)]
    Devices(DevicesCommand),
    /// For administrators: accounts, the cluster's state and settings.
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Set up a cluster of several servers.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Run a metadata node.
    Meta(RoleArguments),
    /// Run a storage node.
    Storage(StorageArguments),
    /// Run a gateway.
    Gateway(RoleArguments),
    /// Print completions for a shell.
    Completions(Completions),
    /// Write man pages into a directory.
    Man(Man),
}

impl Command {
    /// Whether the command serves until it is stopped.
    pub(crate) fn is_role(&self) -> bool {
        matches!(
            self,
            Self::Up(_)
                | Self::Meta(_)
                | Self::Storage(_)
                | Self::Gateway(_)
                | Self::Sync(SyncCommand::Daemon(_))
        )
    }
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Where to write them; must exist.
    pub(crate) directory: PathBuf,
}

/// A size as people write it: a number, and optionally K, M, G, T or P (powers of 1024; `iB` and `B` may follow).
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        "P" | "PB" | "PIB" => 50,
        _ => return Err("write a number of bytes, or one with K, M, G, T or P, such as 20G".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_not_a_number| "write a size such as 20G".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than there is".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        // Looks at little without debug assertions, which release builds lack.
        Arguments::command().debug_assert();
        let mut command = Arguments::command();
        command.build();
        let mut commands = vec![&command];
        while let Some(command) = commands.pop() {
            let mut seen = HashSet::new();
            for argument in command.get_arguments() {
                let names = [
                    Some(format!("id {}", argument.get_id())),
                    argument.get_long().map(|long| format!("--{long}")),
                ];
                for name in names.into_iter().flatten() {
                    assert!(!seen.contains(&name), "{}: {name} twice", command.get_name());
                    seen.insert(name);
                }
            }
            commands.extend(command.get_subcommands());
        }
    }

    #[test]
    fn the_help_says_what_it_is_for() {
        let help = Arguments::command().render_help().to_string();
        assert!(help.starts_with("Keeps your files"), "{help}");
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("20G"), Ok(20 << 30));
        assert_eq!(parse_size("1 KiB"), Ok(1024));
        assert_eq!(parse_size("7mb"), Ok(7 << 20));
        for bad in ["", "G", "-1", "1.5G", "10X", "99999999P", "99999999999999999999"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wrong_usage_is_told_apart() {
        for bad in [
            &["keepstone", "put"][..],
            &["keepstone", "put", "a"],
            &["keepstone", "up", "--code", "x"],
            &["keepstone", "restore", "/a"],
            &["keepstone", "versions", "rm", "/a"],
            &["keepstone", "versions", "rm", "/a", "--keep", "0"],
            &["keepstone", "versions", "rm", "/a", "--keep", "1", "--version", "7"],
            &["keepstone", "versions", "rm", "/a", "--before", "yesterday"],
            &["keepstone", "trash", "restore", "docs"],
            &["keepstone", "trash", "restore", "/docs/../x"],
            &["keepstone", "trash", "purge"],
            &["keepstone", "trash", "purge", "0"],
            &["keepstone", "trash", "purge", "7", "--all"],
            &["keepstone", "ls", "-0", "-l"],
            &["keepstone", "ls", "-0", "--json"],
            &["keepstone", "admin", "account", "quota", "a@b", "0"],
            &["keepstone", "meta"],
            &["keepstone", "sync"],
            &["keepstone", "sync", "run"],
            &["keepstone", "sync", "run", "d", "--up", "fast"],
            &["keepstone", "sync", "exclude", "d"],
        ] {
            assert_eq!(Arguments::try_parse_from(bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
        for good in [
            &["keepstone", "versions", "rm", "/a", "--version", "7", "8"][..],
            &["keepstone", "versions", "rm", "/a", "--before", "2026-01-31"],
            &["keepstone", "trash", "restore", "7", "--to", "/x"],
            &["keepstone", "trash", "purge", "/docs/report.txt"],
            &["keepstone", "ls", "-R0", "/"],
            &["keepstone", "admin", "account", "quota", "a@b", "none"],
            &["keepstone", "admin", "account", "quota", "a@b"],
        ] {
            assert!(Arguments::try_parse_from(good).is_ok(), "{good:?}");
        }
        assert!(Arguments::try_parse_from(["keepstone", "put", "a", "b", "/c", "--json"]).is_ok());
        assert!(Arguments::try_parse_from(["keepstone", "meta", "--print-config"]).is_ok());
    }
}
