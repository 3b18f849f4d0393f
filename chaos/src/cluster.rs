//! A real cluster on this machine: `keepstone up --processes` in a directory, and the means to break it.
//!
//! Invariants:
//! - Only processes that this cluster started are signalled: each is known by pid and start time.
//! - Nothing outlives the handle: dropping it kills every process and removes the directory (kept with
//!   `KEEPSTONE_KEEP=1`).
//! - A cluster that was not finished cleanly shows the end of its logs, since its directory goes with it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use tempfile::TempDir;

use crate::client::{Client, Output, Running, binary};
use crate::process::ProcessRef;
use crate::wait::wait_for;

/// Around the certificates in a profile.
const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----\n";
/// How long a first start may take (keys and certificates are made).
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How long a clean stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long a role that was started alone may take until it listens.
const ROLE_DEADLINE: Duration = Duration::from_secs(20);
/// Where the gateway listens unless said otherwise.
const LOOPBACK: &str = "127.0.0.1";
/// How much of each log a failed test shows.
const LOG_LINES_SHOWN_MAX: usize = 25;

/// One row of `cluster.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct RoleInfo {
    /// `meta`, `storage` or `gateway`.
    pub role: String,
    /// Its node id.
    pub id: u64,
    /// The process that serves it.
    pub pid: u32,
    /// `host:port`.
    pub address: String,
    /// Where it keeps what it stores.
    pub data_dir: Option<PathBuf>,
    /// What starts it again.
    pub argv: Vec<String>,
}

/// A role of the cluster, and the process that serves it now.
#[derive(Debug)]
struct Role {
    info: RoleInfo,
    process: Option<ProcessRef>,
    /// Set when it was started again by its argv, not by `up`.
    own_child: Option<Child>,
}

/// Names a role: its word and which of them, counted from 0 in the order of `cluster.json`.
pub type RoleName = (&'static str, usize);

/// What the first start is given.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Further arguments of `up`, for example `--data-groups 3`.
    pub arguments: Vec<String>,
    /// Where the cluster lives; a scratch directory if absent.
    pub directory: Option<PathBuf>,
    /// Where its gateway listens; loopback if absent.
    pub host: Option<String>,
    /// All roles in one process, the default of `keepstone up`, instead of one each.
    pub one_process: bool,
    /// What is run; the binary of this build if absent.
    pub binary: Option<PathBuf>,
}

impl Options {
    /// The given arguments on top of the defaults.
    #[must_use]
    pub fn with(arguments: &[&str]) -> Self {
        Self { arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(), ..Self::default() }
    }
}

/// A running (or stopped) cluster.
#[derive(Debug)]
pub struct Cluster {
    scratch: Option<TempDir>,
    directory: PathBuf,
    binary: PathBuf,
    /// Not remembered by the cluster itself.
    one_process: bool,
    up: Option<Child>,
    roles: Vec<Role>,
    finished: bool,
    /// How long the latest start took until `ready`.
    pub ready_after: Duration,
    /// What the latest `ready` line named.
    pub endpoint: String,
}

impl Cluster {
    /// Starts a new cluster and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        let (scratch, directory) = match &options.directory {
            Some(directory) => (None, directory.clone()),
            None => {
                let scratch = tempfile::Builder::new().prefix("keepstone-test-").tempdir()?;
                let directory = scratch.path().join("cluster");
                (Some(scratch), directory)
            }
        };
        let binary = options.binary.clone().map_or_else(binary, Ok)?;
        let mut cluster = Self {
            scratch,
            directory,
            binary,
            one_process: options.one_process,
            up: None,
            roles: Vec::new(),
            finished: false,
            ready_after: Duration::ZERO,
            endpoint: String::new(),
        };
        let host = options.host.as_deref().unwrap_or(LOOPBACK);
        let listen = ["--listen".to_owned(), format!("{host}:0")];
        let all: Vec<String> = listen.into_iter().chain(options.arguments.iter().cloned()).collect();
        cluster.launch(&all)?;
        Ok(cluster)
    }

    /// Starts a new cluster whose roles all run in one process, the default of `keepstone up`.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start_in_one_process() -> anyhow::Result<Self> {
        Self::start(&Options { one_process: true, ..Options::default() })
    }

    /// Starts it again where it is, as an operator would: in the same mode, all else as it was.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn restart(&mut self) -> anyhow::Result<Duration> {
        self.launch(&[])?;
        Ok(self.ready_after)
    }

    fn launch(&mut self, arguments: &[String]) -> anyhow::Result<()> {
        ensure!(self.up.is_none(), "the cluster runs already");
        let started = Instant::now();
        fs::create_dir_all(&self.directory)?;
        let log = fs::File::options().create(true).append(true).open(self.up_log())?;
        let mode: &[&str] = if self.one_process { &[] } else { &["--processes"] };
        let mut child = Command::new(&self.binary)
            .arg("up")
            .arg("--data")
            .arg(&self.directory)
            .args(mode)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("start keepstone up")?;
        let lines = lines_of(&mut child)?;
        self.up = Some(child);
        self.endpoint = self.wait_ready(&lines, started)?;
        self.ready_after = started.elapsed();
        self.read_roles()
    }

    fn wait_ready(&mut self, lines: &Receiver<String>, started: Instant) -> anyhow::Result<String> {
        let mut seen = Vec::new();
        loop {
            let left = READY_DEADLINE.saturating_sub(started.elapsed());
            match lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(endpoint) = line.strip_prefix("ready ") {
                        return Ok(endpoint.split_whitespace().next().unwrap_or_default().to_owned());
                    }
                    seen.push(line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    anyhow::bail!("not ready within {READY_DEADLINE:?}; it printed {seen:?}")
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.up.as_mut().map(Child::wait).transpose()?;
                    self.up = None;
                    anyhow::bail!("keepstone up ended before it was ready ({status:?}); it printed {seen:?}")
                }
            }
        }
    }

    fn read_roles(&mut self) -> anyhow::Result<()> {
        let path = self.directory.join("cluster.json");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let infos: Vec<RoleInfo> =
            serde_json::from_str(&text).with_context(|| format!("cluster.json: {text}"))?;
        self.roles = infos
            .into_iter()
            .map(|info| Role { process: ProcessRef::observe(info.pid), info, own_child: None })
            .collect();
        for role in &self.roles {
            ensure!(
                role.process.is_some(),
                "cluster.json names a process that does not run: {:?}",
                role.info
            );
        }
        Ok(())
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A place for test files beside the cluster, on the same file system.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self, name: &str) -> anyhow::Result<PathBuf> {
        let base = self.scratch.as_ref().map_or(self.directory.as_path(), TempDir::path);
        let path = base.join("scratch").join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// The administrator's command line.
    ///
    /// # Errors
    /// If there is no binary.
    pub fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.directory.join("profile.toml"))
    }

    /// All roles of one kind.
    #[must_use]
    pub fn roles(&self, kind: &str) -> Vec<&RoleInfo> {
        self.roles.iter().map(|role| &role.info).filter(|info| info.role == kind).collect()
    }

    /// All roles with their processes, where they run.
    #[must_use]
    pub fn processes(&self) -> Vec<(&RoleInfo, ProcessRef)> {
        self.roles.iter().filter_map(|role| Some((&role.info, role.process?))).collect()
    }

    fn role_mut(&mut self, (kind, index): RoleName) -> anyhow::Result<&mut Role> {
        self.roles
            .iter_mut()
            .filter(|role| role.info.role == kind)
            .nth(index)
            .with_context(|| format!("no role {kind} {index}"))
    }

    /// Kills one role with SIGKILL.
    ///
    /// # Errors
    /// If it does not go.
    pub fn kill(&mut self, name: RoleName) -> anyhow::Result<()> {
        let role = self.role_mut(name)?;
        if let Some(process) = role.process.take() {
            process.signal(Signal::KILL)?;
            if let Some(mut child) = role.own_child.take() {
                child.wait()?;
            }
            process.wait_gone()?;
        }
        Ok(())
    }

    /// Stops one role's process where it stands (SIGSTOP), or lets it go on (SIGCONT).
    ///
    /// # Errors
    /// If the signal is refused.
    pub fn pause(&mut self, name: RoleName, paused: bool) -> anyhow::Result<()> {
        let role = self.role_mut(name)?;
        let process = role.process.context("the role does not run")?;
        process.signal(if paused { Signal::STOP } else { Signal::CONT })
    }

    /// Starts a killed role again by its argv, and waits until it listens.
    ///
    /// # Errors
    /// If it does not.
    pub fn start_role(&mut self, name: RoleName) -> anyhow::Result<()> {
        self.start_role_under(name, &[])
    }

    /// As [`Self::start_role`], with further environment variables.
    ///
    /// # Errors
    /// As [`Self::start_role`].
    pub fn start_role_under(&mut self, name: RoleName, environment: &[(&str, String)]) -> anyhow::Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.up_log())?;
        let role = self.role_mut(name)?;
        ensure!(role.process.is_none(), "{name:?} runs already");
        let (program, arguments) = role.info.argv.split_first().context("empty argv")?;
        let mut child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (*name, value.as_str())))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {:?}", role.info.argv))?;
        let process = ProcessRef::observe(child.id());
        let address = role.info.address.clone();
        let listening = wait_for(&format!("{name:?} listens on {address}"), ROLE_DEADLINE, || {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("{name:?} ended at once: {status}");
            }
            Ok(TcpStream::connect(&address).ok().map(drop))
        });
        if let Err(error) = listening {
            child.kill().ok();
            child.wait().ok();
            return Err(error);
        }
        role.process = process;
        role.own_child = Some(child);
        Ok(())
    }

    /// Kills everything with SIGKILL: `up` first, then each role.
    ///
    /// # Errors
    /// If something does not go.
    pub fn kill_all(&mut self) -> anyhow::Result<()> {
        if let Some(mut up) = self.up.take() {
            up.kill()?;
            up.wait()?;
        }
        for role in &mut self.roles {
            if let Some(process) = &role.process {
                process.signal(Signal::KILL)?;
            }
        }
        for role in &mut self.roles {
            if let Some(mut child) = role.own_child.take() {
                child.wait()?;
            }
            if let Some(process) = role.process.take() {
                process.wait_gone()?;
            }
        }
        Ok(())
    }

    /// Kills only `up` with SIGKILL; its children must follow by themselves.
    ///
    /// # Errors
    /// If it does not go.
    pub fn kill_parent_only(&mut self) -> anyhow::Result<()> {
        let mut up = self.up.take().context("the cluster does not run")?;
        up.kill()?;
        up.wait()?;
        Ok(())
    }

    /// Stops it as Ctrl-C would (SIGTERM) and waits for a clean end of every process.
    ///
    /// # Errors
    /// If the exit code is not 0, or something stays behind.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let mut up = self.up.take().context("the cluster does not run")?;
        let main = ProcessRef::observe(up.id()).context("keepstone up is gone")?;
        main.signal(Signal::TERM)?;
        for role in &mut self.roles {
            if let (Some(_child), Some(process)) = (&role.own_child, &role.process) {
                process.signal(Signal::TERM)?;
            }
        }
        let status = wait_for("end of keepstone up after SIGTERM", STOP_DEADLINE, || Ok(up.try_wait()?));
        let status: ExitStatus = match status {
            Ok(status) => status,
            Err(error) => {
                self.up = Some(up);
                return Err(error);
            }
        };
        ensure!(status.success(), "keepstone up ended with {status} after SIGTERM");
        for role in &mut self.roles {
            if let Some(mut child) = role.own_child.take() {
                let status =
                    wait_for("end of a role after SIGTERM", STOP_DEADLINE, || Ok(child.try_wait()?))?;
                ensure!(status.success(), "{:?} ended with {status} after SIGTERM", role.info.argv);
            }
            if let Some(process) = role.process.take() {
                process.wait_gone().with_context(|| format!("left behind: {:?}", role.info))?;
            }
        }
        Ok(())
    }

    /// Stops it and declares the test's part with it well done.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub fn finish(mut self) -> anyhow::Result<()> {
        if self.up.is_some() {
            self.stop()?;
        }
        self.finished = true;
        Ok(())
    }

    /// Makes a further account and signs it in.
    ///
    /// # Errors
    /// If either fails.
    pub fn account(&self, email: &str) -> anyhow::Result<Client> {
        let password = "correct horse battery staple\n";
        self.client()?
            .run_with_input(&["admin", "account", "create", email, "--password-stdin"], password)?
            .success()?;
        let profile = self.scratch("profiles")?.join(format!("{email}.toml"));
        self.sign_in(email, password, &profile)?.success()?;
        Client::new(&profile)
    }

    /// `keepstone login`, by password, with the cluster's own CA.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn sign_in(&self, email: &str, password: &str, profile: &Path) -> anyhow::Result<Output> {
        let ca = self.ca()?;
        let arguments = [
            "login".as_ref(),
            self.endpoint.as_ref(),
            "--email".as_ref(),
            email.as_ref(),
            "--ca".as_ref(),
            ca.as_os_str(),
            "--out".as_ref(),
            profile.as_os_str(),
            "--password-stdin".as_ref(),
        ];
        Running::start(&binary()?, None, &arguments, Some(password), STOP_DEADLINE)?.wait()
    }

    /// A file with the CA's certificate, which the administrator's profile holds or names.
    ///
    /// # Errors
    /// If the profile has none, or the file cannot be written.
    pub fn ca(&self) -> anyhow::Result<PathBuf> {
        let text = fs::read_to_string(self.directory.join("profile.toml"))?;
        if let Some((begin, end)) = text.find(PEM_BEGIN).zip(text.rfind(PEM_END)) {
            let file = self.directory.join("ca-of-profile.pem");
            // Tests share a cluster: none ever reads half of it.
            let mut whole = tempfile::NamedTempFile::new_in(&self.directory)?;
            whole.write_all(&text.as_bytes()[begin..end + PEM_END.len()])?;
            whole.persist(&file)?;
            return Ok(file);
        }
        let line = text.lines().find_map(|line| line.strip_prefix("ca = ")).context("profile has no ca")?;
        Ok(self.directory.join(line.trim().trim_matches(['"', '\''])))
    }

    fn up_log(&self) -> PathBuf {
        self.directory.join("harness.log")
    }

    /// The last lines of every log, for a test that failed.
    fn show_logs(&self) {
        let mut logs = vec![self.up_log()];
        if let Ok(entries) = fs::read_dir(self.directory.join("logs")) {
            logs.extend(entries.flatten().map(|entry| entry.path()));
        }
        for log in logs {
            let text = fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let text = text.unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN_MAX)..];
            if !shown.is_empty() {
                eprintln!("--- {} ---\n{}", log.display(), shown.join("\n"));
            }
        }
    }
}

/// Whether what a test left behind is kept.
pub(crate) fn is_kept() -> bool {
    std::env::var_os("KEEPSTONE_KEEP").is_some()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.kill_all() {
            eprintln!("cluster not ended: {error:#}");
        }
        if !self.finished {
            self.show_logs();
        }
        if is_kept()
            && let Some(scratch) = self.scratch.take()
        {
            eprintln!("kept: {}", scratch.keep().display());
        }
    }
}

/// The lines that a process prints, read until it ends so that it never blocks.
fn lines_of(child: &mut Child) -> anyhow::Result<Receiver<String>> {
    let pipe = child.stdout.take().context("no standard output")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // The receiver goes once `ready` was seen; reading goes on.
            sender.send(line).ok();
        }
    });
    Ok(receiver)
}
