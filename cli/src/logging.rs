//! Logs on standard error: quiet for client commands, telling for roles, as KEEPSTONE_LOG says otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The variable that sets what is logged.
const VARIABLE: &str = "KEEPSTONE_LOG";

/// Who logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Role,
    /// `up`, to a terminal: what goes well is not told.
    WholeCluster,
    Client,
}

pub(crate) fn start(speaks: Speaks, json: bool) {
    let default = match speaks {
        Speaks::Role => "info,openraft=error",
        Speaks::WholeCluster => "warn,openraft=error",
        Speaks::Client => "error",
    };
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_unset| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = if json { builder.json().try_init() } else { builder.try_init() };
    if let Err(error) = started {
        eprintln!("keepstone: no logs: {error}");
    }
}
