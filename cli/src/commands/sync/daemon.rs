//! `sync daemon`, `sync start`, `sync stop`.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use client::daemon::client::{self as daemon_client, DaemonApi, Refused};
use client::daemon::paths::Paths;
use client::daemon::server::{self, DaemonOptions};
use client::daemon::socket;
use proto::daemon as wire;
use serde_json::json;

use super::reach;
use crate::args::{Global, SyncDaemon};
use crate::output::{LogEnd, Output};
use crate::shown::shown_path;
use crate::shutdown::StopSignals;

/// How long the daemon may take until it answers, and until it has ended.
const START_TIME_MAX: Duration = Duration::from_secs(15);
const STOP_TIME_MAX: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A larger log is moved aside at the next start.
const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// Lines of the log that are shown when it does not start.
const LOG_LINES_SHOWN: usize = 5;

pub(crate) async fn run(global: &Global, arguments: &SyncDaemon) -> anyhow::Result<ExitCode> {
    if arguments.detached {
        rustix::process::setsid().context("cannot leave the terminal's session")?;
    }
    let mut signals = StopSignals::new()?;
    let paths = Paths::from_environment()?;
    let options = DaemonOptions {
        config: super::absolute(&paths.config)?,
        socket: paths.socket,
        profile: super::super::profile_path(global)?,
    };
    tracing::info!(config = %options.config.display(), socket = %options.socket.display(), "sync daemon");
    server::run(options, signals.wait()).await?;
    tracing::info!("sync daemon ended");
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn start(global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let paths = Paths::from_environment()?;
    if let Some(api) = daemon_client::connect(&paths.socket).await? {
        let pid = process_id(api).await?;
        output.print(&json!({ "pid": pid, "started": false }), || {
            format!("The sync daemon runs already (pid {pid})")
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut child = spawn(global, &paths)?;
    let api = wait_answering(&mut child, &paths).await?;
    let pid = process_id(api).await?;
    let document = json!({ "pid": pid, "started": true, "config": paths.config, "log": paths.log });
    output.print(&document, || {
        format!("Started the sync daemon (pid {pid}); log: {}", shown_path(&paths.log))
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn process_id(mut api: DaemonApi) -> anyhow::Result<u32> {
    let status = api.status(wire::StatusRequest::default()).await.map_err(Refused::from)?;
    Ok(status.into_inner().process_id)
}

fn spawn(global: &Global, paths: &Paths) -> anyhow::Result<Child> {
    let log = open_log(&paths.log).with_context(|| format!("cannot write {}", paths.log.display()))?;
    let program = std::env::current_exe().context("where is this program?")?;
    let mut command = std::process::Command::new(program);
    if let Some(profile) = &global.profile {
        command.arg("--profile").arg(super::absolute(profile)?);
    }
    command
        .args(["sync", "daemon", "--detached"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot start the sync daemon")
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    File::options().create(true).append(true).mode(0o600).open(path)
}

async fn wait_answering(child: &mut Child, paths: &Paths) -> anyhow::Result<DaemonApi> {
    let deadline = Instant::now() + START_TIME_MAX;
    loop {
        if let Some(api) = daemon_client::connect(&paths.socket).await? {
            return Ok(api);
        }
        if let Some(status) = child.try_wait()? {
            return Err(did_not_start(format!("the sync daemon does not start ({status})"), paths));
        }
        if Instant::now() >= deadline {
            return Err(did_not_start("the sync daemon does not answer".to_owned(), paths));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn did_not_start(what: String, paths: &Paths) -> anyhow::Error {
    LogEnd::of(what, &paths.log, LOG_LINES_SHOWN).into()
}

pub(crate) async fn stop(output: &Output) -> anyhow::Result<ExitCode> {
    let paths = Paths::from_environment()?;
    let api = reach::find(None).await?;
    let running = api.is_some();
    if let Some(mut api) = api {
        api.stop(wire::StopRequest {}).await.map_err(Refused::from)?;
    }
    let deadline = Instant::now() + STOP_TIME_MAX;
    while socket::is_taken(&paths.socket)? {
        anyhow::ensure!(Instant::now() < deadline, "the sync daemon does not end");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    output.print(&json!({ "stopped": running }), || {
        if running { "Stopped the sync daemon" } else { "The sync daemon does not run" }.to_owned()
    })?;
    Ok(ExitCode::SUCCESS)
}
