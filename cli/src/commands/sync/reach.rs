//! Who keeps a folder in sync: a `sync run` of it, or the daemon; and how a command reaches them.

use std::path::Path;

use anyhow::Context;
use client::daemon::client::{self as daemon_client, DaemonApi};
use client::daemon::paths::Paths;
use proto::daemon as wire;

/// Whoever keeps `directory` in sync, or the daemon; nothing if nobody runs.
pub(crate) async fn find(directory: Option<&Path>) -> anyhow::Result<Option<DaemonApi>> {
    let paths = Paths::from_environment()?;
    if let Some(directory) = directory
        && let Some(api) = daemon_client::connect(&paths.socket_of_run(directory)).await?
    {
        return Ok(Some(api));
    }
    Ok(daemon_client::connect(&paths.socket).await?)
}

/// As [`find`], for what only somebody who runs can do.
pub(crate) async fn require(directory: Option<&Path>) -> anyhow::Result<DaemonApi> {
    find(directory).await?.context("the sync daemon does not run; start it with `keepstone sync start`")
}

/// One folder, or all.
pub(crate) fn roots(directory: Option<&Path>) -> anyhow::Result<Option<wire::Roots>> {
    let directory = directory.map(super::utf8).transpose()?;
    Ok(directory.map(|directory| wire::Roots { directory }))
}
