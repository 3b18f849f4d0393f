//! The one binary, `keepstone`: parses, composes, calls, prints.
//!
//! Exit codes: 0 done, 1 failed in part or whole (what and why is on standard error, and in the JSON document),
//! 2 usage. Standard output carries results only: with `--json`, exactly one JSON document. Whether anybody reads it
//! changes none of that; only `ls`, `cat` and `get … -` end early, and well, once nobody does.

// What people read goes through `output`, which escapes it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod allocator;
mod args;
mod bootstrap;
mod commands;
mod config;
mod cpu;
mod files;
mod format;
mod listen;
mod logging;
mod output;
mod pki;
mod progress;
mod role;
mod shown;
mod shutdown;
mod table;
mod target;
mod up;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Arguments, Command, SyncCommand};
use crate::logging::Speaks;
use crate::output::Output;

/// Threads that run async work: for a role as many as there are processors, within these bounds. More of them only wake one
/// another; fewer than two would let one long step hold up all others. Few: memory is bounded, and the disk work has
/// threads of its own.
const ROLE_WORKERS_MIN: usize = 2;
const ROLE_WORKERS_MAX: usize = 8;
const CLIENT_WORKERS: usize = 2;

fn main() -> ExitCode {
    let arguments = Arguments::try_parse().unwrap_or_else(|error| output::usage(&error));
    let output = Output::new(arguments.global.json);
    let is_role = arguments.command.is_role();
    let speaks = match &arguments.command {
        Command::Up(_) => Speaks::WholeCluster,
        _ if is_role => Speaks::Role,
        _ => Speaks::Client,
    };
    logging::start(speaks, arguments.global.log_json);
    match &arguments.command {
        Command::Sync(SyncCommand::Daemon(_) | SyncCommand::Run(_)) => allocator::share_heaps(),
        _ if is_role => allocator::keep_buffers(),
        _ => {}
    }
    if let Err(error) = cpu::check() {
        return output.failed(&error);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(if is_role { role_workers() } else { CLIENT_WORKERS })
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return output.failed(&anyhow::anyhow!("the async runtime does not start: {error}")),
    };
    let done = runtime.block_on(run(arguments, &output));
    // Blocking work that nobody waits for any more must not hold up the end.
    runtime.shutdown_background();
    match done {
        Ok(code) => code,
        Err(error) if error.is::<output::NobodyReads>() => ExitCode::SUCCESS,
        Err(error) => output.failed(&error),
    }
}

fn role_workers() -> usize {
    let processors = std::thread::available_parallelism().map_or(ROLE_WORKERS_MIN, std::num::NonZero::get);
    processors.clamp(ROLE_WORKERS_MIN, ROLE_WORKERS_MAX)
}

async fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let global = &arguments.global;
    match arguments.command {
        Command::Up(up) => up::run(up, output).await,
        Command::Meta(role) => role::run_meta(&role, output).await,
        Command::Storage(role) => role::run_storage(&role, output).await,
        Command::Gateway(role) => role::run_gateway(&role, output).await,
        Command::Cluster(command) => commands::cluster::run(command, output).await,
        Command::Admin(command) => commands::admin::run(global, command, output).await,
        Command::Login(login) => commands::account::login(global, login, output).await,
        Command::Whoami => commands::account::who_am_i(global, output).await,
        Command::Devices(command) => commands::account::devices(global, command, output).await,
        Command::Put(put) => commands::transfer::put(global, put, output).await,
        Command::Get(get) => commands::transfer::get(global, get, output).await,
        Command::Cat(cat) => commands::transfer::cat(global, &cat, output).await,
        Command::Ls(ls) => commands::list::ls(global, &ls, output).await,
        Command::Stat(stat) => commands::list::stat(global, &stat, output).await,
        Command::History(history) => commands::versions::history(global, &history, output).await,
        Command::Versions(command) => commands::versions::run(global, command, output).await,
        Command::Restore(restore) => commands::versions::restore(global, &restore, output).await,
        Command::Mkdir(mkdir) => commands::entries::mkdir(global, mkdir, output).await,
        Command::Mv(mv) => commands::entries::mv(global, mv, output).await,
        Command::Cp(cp) => commands::entries::cp(global, cp, output).await,
        Command::Rm(rm) => commands::entries::rm(global, rm, output).await,
        Command::Trash(command) => commands::trash::run(global, command, output).await,
        Command::Sync(command) => commands::sync::run(global, command, output).await,
        Command::Completions(completions) => commands::shell::completions(&completions, output),
        Command::Man(man) => commands::shell::man(&man, output),
    }
}
