//! Each role as a child process.
//!
//! Invariants:
//! - Children are started by the main thread, which lives as long as this process: the system ends each child when the
//!   thread that started it ends.
//! - A child that ends is told of and not started again.
//! - Stopped cleanly: SIGTERM to those that use others first, SIGKILL to what does not end in time.

use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use proto::peer::Role;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::layout::{Layout, RoleName};
use super::manifest::argv;
use super::parameters::Parameters;
use crate::files::make_directory;
use crate::output::{LogEnd, tell};
use crate::role::PARENT_VARIABLE;

/// How long the roles may take until they listen.
const LISTENING_TIME_MAX: Duration = Duration::from_secs(30);
/// How long the roles of one kind may take to end.
const STOP_TIME_MAX: Duration = Duration::from_secs(8);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Lines of a log shown when its role does not start.
const LOG_LINES_SHOWN: usize = 5;

/// The running children.
pub(crate) struct RoleProcesses {
    layout: Layout,
    addresses: HashMap<RoleName, SocketAddr>,
    /// Process ids of the children at their start.
    pids: HashMap<RoleName, u32>,
    /// Those that have not been seen to end.
    running: HashMap<RoleName, u32>,
    waiters: JoinSet<()>,
    ended: mpsc::Receiver<Ended>,
}

/// A child that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    name: RoleName,
    how: String,
}

impl RoleProcesses {
    /// Starts all. If one cannot be started, the others are killed as their handles are dropped.
    pub(crate) fn start(layout: &Layout, parameters: &Parameters) -> anyhow::Result<Self> {
        make_directory(&layout.root().join("logs"))?;
        let roles = parameters.addresses();
        let (sender, ended) = mpsc::channel(roles.len());
        let mut waiters = JoinSet::new();
        let mut pids = HashMap::new();
        for (name, _address) in &roles {
            let mut child = spawn(layout, *name)?;
            let pid = child.id().with_context(|| format!("{name} ended at once"))?;
            pids.insert(*name, pid);
            let (sender, name) = (sender.clone(), *name);
            waiters.spawn(async move {
                let how = child.wait().await.map_or_else(|error| error.to_string(), describe);
                // Nobody listens any more when all are being stopped.
                drop(sender.send(Ended { name, how }).await);
            });
        }
        let running = pids.clone();
        Ok(Self {
            layout: layout.clone(),
            addresses: roles.into_iter().collect(),
            pids,
            running,
            waiters,
            ended,
        })
    }

    pub(crate) fn pid(&self, name: RoleName) -> u32 {
        self.pids.get(&name).copied().unwrap_or_default()
    }

    /// Waits until every role listens.
    pub(crate) async fn wait_listening(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + LISTENING_TIME_MAX;
        let mut waiting: Vec<(RoleName, SocketAddr)> =
            self.addresses.iter().map(|(name, address)| (*name, *address)).collect();
        while let Some((name, address)) = waiting.last().copied() {
            if TcpStream::connect(address).await.is_ok() {
                waiting.pop();
                continue;
            }
            if Instant::now() >= deadline {
                return Err(self.with_log_end(name, format!("{name} does not listen on {address}")));
            }
            tokio::select! {
                ended = self.next_ended() => {
                    let Ended { name, how } = ended;
                    return Err(self.with_log_end(name, format!("{name} does not start: it ended ({how})")));
                }
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
        Ok(())
    }

    /// An error with the end of a role's log.
    fn with_log_end(&self, name: RoleName, what: String) -> anyhow::Error {
        LogEnd::of(what, &self.layout.log(name), LOG_LINES_SHOWN).into()
    }

    /// Waits for a child to end. Cancel safe.
    pub(crate) async fn next_ended(&mut self) -> Ended {
        match self.ended.recv().await {
            Some(ended) => {
                self.running.remove(&ended.name);
                ended
            }
            // All have ended.
            None => std::future::pending().await,
        }
    }

    pub(crate) fn tell_ended(&self, ended: &Ended) {
        let again = argv(&self.layout, ended.name).unwrap_or_default().join(" ");
        tell(&format!(
            "{} ended ({}); its log is {}; start it again with: {again}",
            ended.name,
            ended.how,
            self.layout.log(ended.name).display()
        ));
    }

    /// Ends all.
    pub(crate) async fn stop(mut self) {
        for role in [Role::Gateway, Role::Storage, Role::Meta] {
            self.signal(role, Signal::TERM);
            let deadline = Instant::now() + STOP_TIME_MAX;
            while self.running.keys().any(|name| name.role == role) {
                if tokio::time::timeout_at(deadline, self.next_ended()).await.is_err() {
                    tracing::warn!(role = role.as_str(), "not ended in time; killed");
                    self.signal(role, Signal::KILL);
                    break;
                }
            }
        }
        while self.waiters.join_next().await.is_some() {}
    }

    fn signal(&self, role: Role, signal: Signal) {
        for (name, pid) in self.running.iter().filter(|(name, _pid)| name.role == role) {
            // A child that has not been waited for keeps its process id, so this never hits another process; one
            // that was waited for a moment ago is gone, which is no error.
            let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            if let Some(Err(error)) = pid.map(|pid| kill_process(pid, signal)) {
                tracing::debug!(%name, %error, "not signalled");
            }
        }
    }
}

fn spawn(layout: &Layout, name: RoleName) -> anyhow::Result<tokio::process::Child> {
    let log = layout.log(name);
    let log_file = File::options().create(true).append(true).open(&log);
    let log_file = log_file.with_context(|| format!("cannot write {}", log.display()))?;
    let argv = argv(layout, name)?;
    Command::new(&argv[0])
        .args(&argv[1..])
        .env(PARENT_VARIABLE, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log_file)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {name}"))
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown how".to_owned(),
    }
}
