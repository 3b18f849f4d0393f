//! Arguments of the commands on files.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use client::path::RemotePath;

#[derive(Debug, Args)]
pub(crate) struct Put {
    /// Local files, folders and symlinks; folders go with all that is in them.
    #[arg(required = true, value_name = "LOCAL")]
    pub(crate) sources: Vec<PathBuf>,
    /// Where to, absolute in the account's tree. A folder, several sources or a trailing `/` mean "into it".
    #[arg(value_name = "REMOTE")]
    pub(crate) target: String,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// A file or folder of the account's tree; `/` is all of it, and `FOLDER/.` what is in a folder.
    #[arg(value_name = "REMOTE")]
    pub(crate) source: String,
    /// Where to. An existing folder or a trailing `/` mean "into it". A single file may go to standard output (`-`),
    /// a pipe or a device.
    #[arg(value_name = "LOCAL")]
    pub(crate) target: PathBuf,
    /// Replace local files that are there already, if they differ; nothing else is ever replaced.
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Args)]
#[command(disable_version_flag = true)]
pub(crate) struct Cat {
    /// A file of the account's tree.
    pub(crate) path: String,
    /// This version of it, not the current one.
    #[arg(long, value_name = "N")]
    pub(crate) version: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// A folder, or a single entry.
    #[arg(default_value = "/")]
    pub(crate) path: String,
    /// Mode, size and modification time as well.
    #[arg(short, long)]
    pub(crate) long: bool,
    /// Folders below as well.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Names exactly as they are, each with a NUL after it, for programs; with -R whole paths.
    #[arg(short = '0', long, conflicts_with_all = ["long", "json"])]
    pub(crate) null: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Stat {
    /// The entry.
    pub(crate) path: String,
}

#[derive(Debug, Args)]
pub(crate) struct Mkdir {
    /// The folders.
    #[arg(required = true)]
    pub(crate) paths: Vec<String>,
    /// Make missing parents too, and take a folder that is there already as made.
    #[arg(short, long)]
    pub(crate) parents: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Mv {
    /// What to move.
    #[arg(required = true, value_name = "FROM")]
    pub(crate) sources: Vec<String>,
    /// Where to. A folder, several sources or a trailing `/` mean "into it".
    #[arg(value_name = "TO")]
    pub(crate) target: String,
    /// What is at the target goes to the trash.
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// What to copy; folders go with all that is in them.
    #[arg(required = true, value_name = "FROM")]
    pub(crate) sources: Vec<String>,
    /// Where to. A folder, several sources or a trailing `/` mean "into it".
    #[arg(value_name = "TO")]
    pub(crate) target: String,
    /// What is at the target goes to the trash.
    #[arg(long)]
    pub(crate) replace: bool,
    /// Accepted for habit: folders are always copied whole.
    #[arg(short, long, hide = true)]
    pub(crate) recursive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// What to remove.
    #[arg(required = true)]
    pub(crate) paths: Vec<String>,
    /// Folders too, with all that is in them.
    #[arg(short, long)]
    pub(crate) recursive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct History {
    /// The file.
    pub(crate) path: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VersionsCommand {
    /// Show a file's versions, as `keepstone history` does.
    Ls(History),
    /// Delete earlier versions of a file for good. The current one always stays.
    Rm(VersionsRm),
}

#[derive(Debug, Args)]
#[command(disable_version_flag = true, group(clap::ArgGroup::new("which").required(true)))]
pub(crate) struct VersionsRm {
    /// The file.
    pub(crate) path: String,
    /// All but the newest N, the current one counted.
    #[arg(long, value_name = "N", group = "which", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep: Option<u32>,
    /// These, as `keepstone versions ls` shows them.
    #[arg(long, value_name = "ID", group = "which", num_args = 1..)]
    pub(crate) version: Vec<u64>,
    /// Those that were stored before a day or time, such as 2026-01-31, "2026-01-31 12:00" or an RFC 3339 time.
    #[arg(long, value_name = "DATE", group = "which", value_parser = crate::format::parse_time_ms)]
    pub(crate) before: Option<u64>,
}

#[derive(Debug, Args)]
#[command(disable_version_flag = true)]
pub(crate) struct Restore {
    /// The file.
    pub(crate) path: String,
    /// The version to bring back, as `keepstone history` shows it.
    #[arg(long, value_name = "N")]
    pub(crate) version: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrashCommand {
    /// Show what is in the trash.
    Ls,
    /// Bring an item back.
    Restore(TrashRestore),
    /// Delete an item, or everything in the trash, for good.
    Purge(TrashPurge),
}

#[derive(Debug, Args)]
pub(crate) struct TrashRestore {
    /// Its id, as `keepstone trash ls` shows it, or where it was, such as /docs/report.txt.
    #[arg(value_name = "ID|PATH")]
    pub(crate) item: TrashName,
    /// Where to, if not where it was.
    #[arg(long, value_name = "REMOTE")]
    pub(crate) to: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TrashPurge {
    /// Its id, as `keepstone trash ls` shows it, or where it was, such as /docs/report.txt.
    #[arg(required_unless_present = "all", value_name = "ID|PATH")]
    pub(crate) item: Option<TrashName>,
    /// Everything in the trash.
    #[arg(long, conflicts_with = "item")]
    pub(crate) all: bool,
}

/// What somebody calls a thing in the trash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TrashName {
    /// By its number, which is never 0: on the wire that means all of it.
    Id(u64),
    /// By where it was.
    Path(RemotePath),
}

impl std::str::FromStr for TrashName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return RemotePath::parse(text).map(Self::Path).map_err(|error| error.to_string());
        }
        match text.parse() {
            Ok(0) => Err("there is no item 0; ids begin at 1".to_owned()),
            Ok(id) => Ok(Self::Id(id)),
            Err(_not_a_number) => {
                Err("write an id, as `keepstone trash ls` shows it, or a path that begins with `/`"
                    .to_owned())
            }
        }
    }
}
