//! Devices that keep a folder in sync: `keepstone sync run` as processes, and the means to disturb them.
//!
//! Invariants:
//! - Only processes that were started here are signalled, and none outlives its handle.
//! - A device of a test that did not finish shows the end of its log.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::client::{Client, Output, Running, binary};
use crate::cluster::{Cluster, is_kept};
use crate::process::ProcessRef;
use crate::proxy::Proxy;
use crate::snapshot::{OWN_FOLDER, Snapshot};
use crate::wait::wait_for;

/// What somebody is told who has something in the way of what is to come.
const MAKE_WAY: &str = "move it away, or give it another name";
const WAYS_MADE_MAX: usize = 10;

/// How long a clean stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long `--once` may take.
pub const ONCE_DEADLINE: Duration = Duration::from_secs(180);
/// How long a change may take to be everywhere, with room for a busy machine.
pub const SETTLE_DEADLINE: Duration = Duration::from_secs(90);
/// How much of its log a failed test shows.
const LOG_LINES_SHOWN_MAX: usize = 40;
/// How much of it is about files that a test misses.
const LOG_LINES_ABOUT_MAX: usize = 100;

/// A device: a folder, a profile, and the process that keeps it in sync.
#[derive(Debug)]
pub struct Device {
    /// What it is called.
    pub name: String,
    /// The folder.
    pub root: PathBuf,
    /// Its command line.
    pub client: Client,
    /// Further arguments of `sync run`.
    pub arguments: Vec<OsString>,
    /// Run as this user, not as the one who tests.
    pub user: Option<u32>,
    /// Run in this network namespace.
    pub namespace: Option<String>,
    program: PathBuf,
    home: PathBuf,
    /// For sockets, whose paths must be short.
    runtime: tempfile::TempDir,
    log: PathBuf,
    process: Option<(Child, ProcessRef)>,
    /// Set once a test is done with it well.
    calm: bool,
}

impl Device {
    /// A new device of the account `email`, with an empty folder. Nothing runs yet.
    ///
    /// # Errors
    /// If it cannot be signed in.
    pub fn new(cluster: &Cluster, email: &str, password: &str, name: &str) -> anyhow::Result<Self> {
        let home = cluster.scratch(&format!("d/{email}-{name}"))?;
        let root = home.join("root");
        fs::create_dir_all(&root)?;
        let profile = home.join("profile.toml");
        let ca = cluster.ca()?;
        let arguments: [OsString; 11] = [
            "login".into(),
            (&cluster.endpoint).into(),
            "--email".into(),
            email.into(),
            "--ca".into(),
            ca.into(),
            "--out".into(),
            (&profile).into(),
            "--device".into(),
            name.into(),
            "--password-stdin".into(),
        ];
        Running::start(&binary()?, None, &arguments, Some(password), STOP_DEADLINE)?.wait()?.success()?;
        Ok(Self {
            name: name.to_owned(),
            client: Client::new(&profile)?,
            arguments: Vec::new(),
            user: None,
            namespace: None,
            program: binary()?,
            log: home.join("log"),
            root,
            home,
            runtime: tempfile::Builder::new().prefix("ks-").tempdir()?,
            process: None,
            calm: false,
        })
    }

    /// Everything of this device goes through a proxy from now on.
    ///
    /// # Errors
    /// If its profile cannot be written.
    pub fn via(&mut self, proxy: &Proxy) -> anyhow::Result<()> {
        let path = self.client.profile().to_owned();
        let text = fs::read_to_string(&path)?;
        let lines = text.lines().map(|line| {
            if line.starts_with("endpoint = ") {
                format!("endpoint = \"https://{}\"\n", proxy.address)
            } else {
                format!("{line}\n")
            }
        });
        fs::write(&path, lines.collect::<String>())?;
        Ok(())
    }

    /// Runs as another user from now on, who gets the folder and the profile. Needs root.
    ///
    /// # Errors
    /// If something cannot be given away.
    pub fn become_user(&mut self, user: u32) -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let own = self.home.join("keepstone");
        if fs::hard_link(&self.program, &own).is_err() {
            fs::copy(&self.program, &own)?;
        }
        self.program = own;
        let runtime = walkdir::WalkDir::new(self.runtime.path());
        for entry in walkdir::WalkDir::new(&self.home).into_iter().chain(runtime) {
            let entry = entry?;
            if entry.path() != self.program {
                std::os::unix::fs::lchown(entry.path(), Some(user), None)?;
            }
        }
        // The way there must be open, as it is on a real machine.
        for folder in self.home.ancestors().skip(1).take_while(|folder| **folder != *std::env::temp_dir()) {
            let mode = fs::metadata(folder)?.permissions().mode();
            fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o011))?;
        }
        self.user = Some(user);
        Ok(())
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = match &self.namespace {
            // `ip` becomes the program, so the process that was started is it.
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .arg("--profile")
            .arg(self.client.profile())
            .args(["sync", "run"])
            .arg(&self.root)
            .args(&self.arguments)
            .args(more)
            .env("HOME", &self.home)
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null());
        if std::env::var_os("KEEPSTONE_LOG").is_none() {
            command.env("KEEPSTONE_LOG", "warn,client=debug");
        }
        if let Some(user) = self.user {
            command.uid(user);
        }
        command
    }

    /// Starts `sync run`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "{} runs already", self.name);
        let log = fs::File::options().create(true).append(true).open(&self.log)?;
        let errors = log.try_clone()?;
        let child =
            self.command(&[]).stdout(log).stderr(errors).spawn().context("start keepstone sync run")?;
        let process = ProcessRef::observe(child.id()).context("it ended at once")?;
        self.process = Some((child, process));
        Ok(())
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// If the system cannot say.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        match &mut self.process {
            Some((child, _)) => Ok(child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> Option<ProcessRef> {
        self.process.as_ref().map(|(_, process)| *process)
    }

    /// Stops it as Ctrl-C would, if it runs.
    ///
    /// # Errors
    /// If it does not end with exit code 0.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some((mut child, process)) = self.process.take() else { return Ok(()) };
        process.signal(Signal::CONT)?;
        // In its first moments a signal ends it, as it would any program.
        let caught = wait_for("sync run to catch signals", STOP_DEADLINE, || {
            Ok((child.try_wait()?.is_some() || process.catches(Signal::TERM)).then_some(()))
        });
        let status = caught.and_then(|()| {
            process.signal(Signal::TERM)?;
            wait_for("end of sync run after SIGTERM", STOP_DEADLINE, || Ok(child.try_wait()?))
        });
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                child.kill().ok();
                child.wait().ok();
                return Err(error);
            }
        };
        ensure!(status.success(), "sync run of {} ended with {status}", self.name);
        Ok(())
    }

    /// Kills it with SIGKILL, if it runs.
    ///
    /// # Errors
    /// If it does not go.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some((mut child, process)) = self.process.take() {
            child.kill()?;
            child.wait()?;
            process.wait_gone()?;
        }
        Ok(())
    }

    /// Stops the process where it stands, or lets it go on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self, paused: bool) -> anyhow::Result<()> {
        let (_, process) = self.process.as_ref().context("it does not run")?;
        process.signal(if paused { Signal::STOP } else { Signal::CONT })
    }

    /// `sync run --once --json`, to its end.
    ///
    /// # Errors
    /// If it hangs, or cannot be run.
    pub fn once(&self) -> anyhow::Result<Output> {
        ensure!(self.process.is_none(), "{} runs", self.name);
        let errors = fs::File::options().create(true).append(true).open(&self.log)?;
        let mut command = self.command(&["--once", "--json"]);
        let started = std::time::Instant::now();
        let mut child = command.stdout(Stdio::piped()).stderr(errors).spawn()?;
        let mut pipe = child.stdout.take().context("no standard output")?;
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut pipe, &mut text).map(|_bytes| text)
        });
        let status = wait_for("end of sync run --once", ONCE_DEADLINE, || Ok(child.try_wait()?));
        if status.is_err() {
            child.kill().ok();
            child.wait().ok();
        }
        let stdout = reader.join().ok().context("the reader panicked")??;
        Ok(Output {
            code: status?.code(),
            stdout,
            stderr: String::new(),
            elapsed: started.elapsed(),
            resident_bytes_peak: 0,
        })
    }

    /// `sync run --once`, which must end in agreement.
    ///
    /// # Errors
    /// If it does not.
    pub fn once_agreed(&self) -> anyhow::Result<Value> {
        let output = self.once()?;
        ensure!(output.code == Some(0), "sync run --once of {}: {output:?}", self.name);
        output.json()
    }

    /// The same, by a user who does what is asked of them: what is in the way is given another name.
    ///
    /// # Errors
    /// If it does not end in agreement with nothing in the way.
    pub fn once_made_way(&self) -> anyhow::Result<Value> {
        for number in 0..WAYS_MADE_MAX {
            let output = self.once()?;
            let document: Value = output.json()?;
            let in_the_way: Vec<&str> = document["waiting"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|blocked| blocked["why"].as_str().is_some_and(|why| why.contains(MAKE_WAY)))
                .filter_map(|blocked| self.named_in(blocked["why"].as_str()?))
                .collect();
            if in_the_way.is_empty() {
                ensure!(output.code == Some(0), "sync run --once of {}: {output:?}", self.name);
                return Ok(document);
            }
            for (count, path) in in_the_way.into_iter().enumerate() {
                let from = self.path(path);
                fs::rename(&from, from.with_file_name(format!("made way {} {number} {count}", self.name)))
                    .with_context(|| format!("{path} is in the way: {output:?}"))?;
            }
        }
        anyhow::bail!("{} has more and more in the way", self.name)
    }

    /// The path that a message about it begins with: what is in the way need not be what waits.
    fn named_in<'a>(&self, why: &'a str) -> Option<&'a str> {
        let begins = why.match_indices(" is ").map(|(at, _)| &why[..at]);
        begins.into_iter().find(|path| fs::symlink_metadata(self.path(path)).is_ok())
    }

    /// `sync COMMAND ...` to whoever keeps its folder in sync.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn sync(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(&self.program);
        command
            .arg("--profile")
            .arg(self.client.profile())
            .arg("sync")
            .args(arguments)
            .env("HOME", &self.home)
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user);
        }
        let started = std::time::Instant::now();
        let output = command.output().context("run keepstone sync")?;
        Ok(Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            elapsed: started.elapsed(),
            resident_bytes_peak: 0,
        })
    }

    /// `sync status --json` of its folder; nothing if nobody answers yet.
    ///
    /// # Errors
    /// If it cannot be run, or says something else.
    pub fn status(&self) -> anyhow::Result<Option<Value>> {
        let root = self.root.to_str().context("not UTF-8")?;
        let output = self.sync(&["status", root, "--json"])?;
        if output.code != Some(0) {
            return Ok(None);
        }
        Ok(Some(output.json()?["roots"][0].clone()))
    }

    /// Waits until its status is as wanted.
    ///
    /// # Errors
    /// If it does not become so; the message has the last one.
    pub fn wait_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        let found = wait_for(what, SETTLE_DEADLINE, || {
            let Some(status) = self.status()? else { return Ok(None) };
            last = status.clone();
            Ok(wanted(&status).then_some(status))
        });
        found.with_context(|| format!("{} says {last:#}", self.name))
    }

    /// Waits until it says that both sides agree.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait_up_to_date(&self) -> anyhow::Result<Value> {
        self.wait_status("up to date", |status| {
            status["phase"] == "up-to-date" && status["pending_count"] == 0
        })
    }

    /// Its folder as a value.
    ///
    /// # Errors
    /// On IO errors.
    pub fn snapshot(&self) -> anyhow::Result<Snapshot> {
        Snapshot::take(&self.root)
    }

    /// A path in its folder.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Writes a file of its folder.
    ///
    /// # Errors
    /// On IO errors.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let path = self.path(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }

    /// Reads a file of its folder; nothing if it is not there.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.path(path)).ok()
    }

    /// Waits until a file of its folder has the given bytes.
    ///
    /// # Errors
    /// If it does not get them.
    pub fn wait_content(&self, path: &str, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        wait_for(&format!("{path} on {}", self.name), SETTLE_DEADLINE, || {
            Ok((self.read(path).as_deref() == Some(bytes.as_ref())).then_some(()))
        })
    }

    /// Where its state is, unless other arguments say otherwise.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join(OWN_FOLDER)
    }

    /// A place of its own, outside of its folder.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// For a failed test: where all of its log is if that is kept, else the last lines that have one of these names.
    #[must_use]
    pub fn log_about(&self, names: &BTreeSet<String>) -> String {
        if is_kept() {
            return format!("--- device {}: all of its log is {} ---", self.name, self.log.display());
        }
        let text = self.log_text();
        let is_about = |line: &&str| names.iter().any(|name| has_name(line, name));
        let lines: Vec<&str> = text.lines().filter(is_about).collect();
        let shown = last(&lines, LOG_LINES_ABOUT_MAX).join("\n");
        format!("--- device {}: the last of {} lines with {names:?} ---\n{shown}", self.name, lines.len())
    }

    fn log_text(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Declares the test's part with it well done.
    pub fn calm(&mut self) {
        self.calm = true;
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{} not ended: {error:#}", self.name);
        }
        if !self.calm {
            let text = self.log_text();
            let lines: Vec<&str> = text.lines().collect();
            let shown = last(&lines, LOG_LINES_SHOWN_MAX);
            eprintln!("--- device {} ---\n{}", self.name, shown.join("\n"));
        }
    }
}

fn last<'a, 'b>(lines: &'a [&'b str], count_max: usize) -> &'a [&'b str] {
    &lines[lines.len().saturating_sub(count_max)..]
}

/// Whether a name is in a line, and not just in the middle of a word.
fn has_name(line: &str, name: &str) -> bool {
    let ends_word = |beside: Option<char>| beside.is_none_or(|character| !character.is_alphanumeric());
    line.match_indices(name).any(|(at, found)| {
        let (before, after) = (&line[..at], &line[at + found.len()..]);
        ends_word(before.chars().next_back()) && ends_word(after.chars().next())
    })
}
