//! The command line as a script uses it: runs `keepstone`, takes its exit code and its one JSON document.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::process::ProcessRef;

/// A command that takes longer is killed and counts as hung.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// How often a running command's memory is looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);

/// The binary under test: `KEEPSTONE_BIN`, else what `cargo build --release` made.
///
/// # Errors
/// If there is none.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("KEEPSTONE_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "KEEPSTONE_BIN names no file: {}", path.display());
        return Ok(path);
    }
    // A test runs from `<target>/release/deps`.
    let own = std::env::current_exe().context("own path")?;
    own.ancestors()
        .map(|directory| directory.join("keepstone"))
        .find(|candidate| candidate.is_file())
        .context("no keepstone binary: run `make build`, or set KEEPSTONE_BIN")
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub elapsed: Duration,
    /// The most memory seen resident, in bytes.
    pub resident_bytes_peak: u64,
}

impl Output {
    /// Standard output as JSON.
    ///
    /// # Errors
    /// If it is not exactly one JSON document.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not one JSON document: {self:?}"))
    }

    /// Passes on success, else an error that shows everything.
    ///
    /// # Errors
    /// If the exit code is not 0.
    pub fn success(self) -> anyhow::Result<Self> {
        ensure!(self.code == Some(0), "failed: {self:?}");
        Ok(self)
    }
}

/// What `put --json` reports.
#[derive(Debug, Clone, Deserialize)]
pub struct PutReport {
    /// Files stored.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunk bytes that went over the wire.
    pub bytes_sent: u64,
    /// Chunks that the files consist of.
    pub chunks: u64,
    /// Chunks that went over the wire.
    pub chunks_sent: u64,
    /// What was not stored.
    pub failed: Vec<Failed>,
}

/// One failed path.
#[derive(Debug, Clone, Deserialize)]
pub struct Failed {
    /// Which.
    pub path: String,
    /// Why, for people.
    pub reason: String,
}

/// What `admin status --json` reports, as far as the checkers look at it.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// `ok`, `degraded` or `down`.
    pub health: String,
    /// One per disk.
    pub disks: Vec<DiskStatus>,
    /// Stripes known.
    pub stripes_total: u64,
    /// Of them, with a shard missing or on a disk that is not up.
    pub stripes_short: u64,
    /// Damaged shards found, each counted once.
    pub shards_damaged_found: u64,
    /// Bytes of current versions.
    pub bytes_logical: u64,
    /// Bytes of distinct chunks, plain.
    pub bytes_unique: u64,
    /// Bytes allocated on the disks, index included.
    pub bytes_on_disk: u64,
}

/// One disk in [`Status`].
#[derive(Debug, Clone, Deserialize)]
pub struct DiskStatus {
    /// `up`, `down`, `missing`, `failed` or `full`.
    pub state: String,
}

/// Runs the binary with one account's profile.
#[derive(Debug, Clone)]
pub struct Client {
    binary: PathBuf,
    profile: PathBuf,
    deadline: Duration,
}

impl Client {
    /// Uses the account in `profile`.
    ///
    /// # Errors
    /// If there is no binary.
    pub fn new(profile: &Path) -> anyhow::Result<Self> {
        Ok(Self { binary: binary()?, profile: profile.to_owned(), deadline: COMMAND_DEADLINE })
    }

    /// The same, but commands may take up to `deadline`.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// The profile file.
    #[must_use]
    pub fn profile(&self) -> &Path {
        &self.profile
    }

    /// Starts a command without waiting for it.
    ///
    /// # Errors
    /// If the binary cannot be started.
    pub fn start<S: AsRef<OsStr>>(&self, arguments: &[S]) -> anyhow::Result<Running> {
        Running::start(&self.binary, Some(&self.profile), arguments, None, self.deadline)
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// If it cannot be started, or hangs; a failing exit code is not an error here.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> anyhow::Result<Output> {
        self.start(arguments)?.wait()
    }

    /// Runs a command with `input` on its standard input.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with_input<S: AsRef<OsStr>>(&self, arguments: &[S], input: &str) -> anyhow::Result<Output> {
        Running::start(&self.binary, Some(&self.profile), arguments, Some(input), self.deadline)?.wait()
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// If it does not.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> anyhow::Result<Output> {
        self.run(arguments)?.success().with_context(|| format!("keepstone {}", shown(arguments)))
    }

    /// Runs a command with `--json` that must succeed, and takes its document.
    ///
    /// # Errors
    /// If it does not succeed, or prints something else.
    pub fn json<S: AsRef<OsStr>>(&self, arguments: &[S]) -> anyhow::Result<Value> {
        let mut all: Vec<OsString> = arguments.iter().map(|argument| argument.as_ref().to_owned()).collect();
        all.push("--json".into());
        self.ok(&all)?.json()
    }

    /// `put --json SOURCES... TARGET`, wholly successful.
    ///
    /// # Errors
    /// If any file failed.
    pub fn put(&self, sources: &[&Path], target: &str) -> anyhow::Result<PutReport> {
        let mut arguments: Vec<OsString> = vec!["put".into()];
        arguments.extend(sources.iter().map(|source| source.as_os_str().to_owned()));
        arguments.push(target.into());
        let report: PutReport = serde_json::from_value(self.json(&arguments)?)?;
        ensure!(report.failed.is_empty(), "put exited with 0 but reports failures: {:?}", report.failed);
        Ok(report)
    }

    /// `get REMOTE LOCAL`, wholly successful.
    ///
    /// # Errors
    /// If anything failed.
    pub fn get(&self, remote: &str, local: &Path) -> anyhow::Result<Output> {
        self.ok(&[OsStr::new("get"), OsStr::new(remote), local.as_os_str()])
    }

    /// `cat REMOTE`, as bytes: through a file, so that nothing is taken for text.
    ///
    /// # Errors
    /// If it fails.
    pub fn cat(&self, remote: &str) -> anyhow::Result<Vec<u8>> {
        self.cat_as(&["cat", remote])
    }

    /// `cat --version N REMOTE`.
    ///
    /// # Errors
    /// If it fails.
    pub fn cat_version(&self, remote: &str, version: u64) -> anyhow::Result<Vec<u8>> {
        self.cat_as(&["cat", "--version", &version.to_string(), remote])
    }

    fn cat_as(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let output = Command::new(&self.binary)
            .arg("--profile")
            .arg(&self.profile)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("run keepstone cat")?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    /// `admin status --json`.
    ///
    /// # Errors
    /// If it fails.
    pub fn status(&self) -> anyhow::Result<Status> {
        Ok(serde_json::from_value(self.json(&["admin", "status"])?)?)
    }

    /// Whether something is at `remote`.
    ///
    /// # Errors
    /// If `stat` fails otherwise than by not finding it.
    pub fn exists(&self, remote: &str) -> anyhow::Result<bool> {
        let output = self.run(&["stat", remote, "--json"])?;
        match output.code {
            Some(0) => Ok(true),
            Some(1) if output.json()?["error"]["reason"] == "not-found" => Ok(false),
            _other => anyhow::bail!("stat {remote}: {output:?}"),
        }
    }
}

fn shown<S: AsRef<OsStr>>(arguments: &[S]) -> String {
    let words: Vec<String> =
        arguments.iter().map(|argument| argument.as_ref().to_string_lossy().into_owned()).collect();
    words.join(" ")
}

/// A command that runs. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    process: Option<ProcessRef>,
    output: Option<JoinHandle<String>>,
    errors: Option<JoinHandle<String>>,
    started: Instant,
    deadline: Duration,
    shown: String,
}

impl Running {
    /// Starts `binary`, in its own words or with a profile before them.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start<S: AsRef<OsStr>>(
        binary: &Path,
        profile: Option<&Path>,
        arguments: &[S],
        input: Option<&str>,
        deadline: Duration,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(binary);
        if let Some(profile) = profile {
            command.arg("--profile").arg(profile);
        }
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().with_context(|| format!("start {}", binary.display()))?;
        if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
            pipe.write_all(text.as_bytes()).context("write standard input")?;
        }
        Ok(Self {
            process: ProcessRef::observe(child.id()),
            output: child.stdout.take().map(read_all),
            errors: child.stderr.take().map(read_all),
            child,
            started: Instant::now(),
            deadline,
            shown: shown(arguments),
        })
    }

    /// The process itself.
    #[must_use]
    pub fn process(&self) -> Option<ProcessRef> {
        self.process
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// If the system cannot say.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// If the system cannot.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it takes longer than its deadline; it is killed then.
    pub fn wait(mut self) -> anyhow::Result<Output> {
        let mut resident_bytes_peak = 0;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if let Some(bytes) = self.process.and_then(|process| process.resident_bytes_peak()) {
                resident_bytes_peak = resident_bytes_peak.max(bytes);
            }
            if self.started.elapsed() > self.deadline {
                self.child.kill()?;
                self.child.wait()?;
                anyhow::bail!(
                    "hung for {:?}: keepstone {}\n{}",
                    self.deadline,
                    self.shown,
                    collect(self.errors.take())
                );
            }
            std::thread::sleep(SAMPLE_INTERVAL);
        };
        Ok(Output {
            code: status.code(),
            elapsed: self.started.elapsed(),
            stdout: collect(self.output.take()),
            stderr: collect(self.errors.take()),
            resident_bytes_peak,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Err(error) = pipe.read_to_end(&mut bytes) {
            bytes.extend_from_slice(format!("<reading failed: {error}>").as_bytes());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn collect(reader: Option<JoinHandle<String>>) -> String {
    reader.and_then(|thread| thread.join().ok()).unwrap_or_default()
}
