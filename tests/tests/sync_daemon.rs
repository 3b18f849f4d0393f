//! `keepstone sync` as people and scripts use it: the daemon with several folders, its commands, and `sync run`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::client::{Output, binary};
use chaos::cluster::Cluster;
use chaos::device::{Device, SETTLE_DEADLINE};
use chaos::group::{Group, shared_cluster};
use chaos::process::ProcessRef;
use chaos::snapshot::Snapshot;
use chaos::wait::wait_for;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// A user with a home directory of their own, and a daemon that ends with this handle.
struct User {
    home: TempDir,
    profile: PathBuf,
}

impl User {
    fn new(cluster: &Cluster, name: &str) -> Result<Self> {
        let client = cluster.account(&format!("{name}@example.org"))?;
        Ok(Self {
            home: tempfile::Builder::new().prefix("ks-").tempdir()?,
            profile: client.profile().to_owned(),
        })
    }

    fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.home.path().join(name);
        fs::create_dir_all(&path)?;
        Ok(fs::canonicalize(path)?)
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command
            .arg("--profile")
            .arg(&self.profile)
            .arg("sync")
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .env("XDG_RUNTIME_DIR", self.home.path().join("run"))
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_STATE_HOME")
            .env_remove("KEEPSTONE_SYNC_CONFIG")
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null());
        Ok(command)
    }

    fn sync(&self, arguments: &[&str]) -> Result<Output> {
        let output = self.command()?.args(arguments).output().context("run keepstone sync")?;
        Ok(Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            elapsed: Duration::ZERO,
            resident_bytes_peak: 0,
        })
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        self.sync(&arguments)?.success().with_context(|| arguments.join(" "))?.json()
    }

    fn refused(&self, arguments: &[&str], code: i32, word: &str) -> Result<()> {
        let output = self.sync(arguments)?;
        ensure!(output.code == Some(code), "{arguments:?}: {output:?}");
        ensure!(output.stderr.contains(word), "{arguments:?} does not say {word:?}: {}", output.stderr);
        Ok(())
    }

    /// Waits until a folder agrees.
    fn wait_up_to_date(&self, folder: &str) -> Result<Value> {
        let mut last = Value::Null;
        let done = wait_for("the folder to be up to date", SETTLE_DEADLINE, || {
            last = self.json(&["status", folder])?["roots"][0].clone();
            Ok((last["phase"] == "up-to-date" && last["pending_count"] == 0).then(|| last.clone()))
        });
        done.with_context(|| format!("{last:#}"))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Err(error) = self.sync(&["stop"]) {
            eprintln!("the daemon was not stopped: {error:#}");
        }
        if std::thread::panicking() {
            let log = self.home.path().join(".local/state/keepstone/sync.log");
            eprintln!("{}", fs::read_to_string(log).unwrap_or_default());
        }
    }
}

#[test]
fn a_daemon_keeps_several_folders() -> Result<()> {
    let cluster = shared_cluster()?;
    let user = User::new(&cluster, "daemon")?;
    let (one, two) = (user.folder("one")?, user.folder("two")?);
    fs::write(one.join("early"), "before the daemon")?;
    user.refused(&["status"], 1, "does not run")?;
    // Without a daemon it is noted for later.
    ensure!(user.json(&["add", "one", "--remote", "/Docs/deep"])?["running"] == false);
    user.refused(&["add", "one"], 1, "already")?;
    user.refused(&["add", "missing"], 1, "missing")?;
    user.refused(&["add", "two", "--remote", "relative"], 1, "/")?;
    user.refused(&["confirm", "one"], 1, "does not run")?;
    let config = user.home.path().join(".config/keepstone/sync.toml");
    ensure!(fs::metadata(&config)?.permissions().mode() & 0o777 == 0o600);

    let started = user.json(&["start"])?;
    ensure!(started["started"] == true && user.json(&["start"])?["started"] == false, "{started}");
    ensure!(user.json(&["add", "two", "--remote", "/Other"])?["running"] == true);
    user.refused(&["add", "two/", "--remote", "/X"], 1, "already")?;
    fs::create_dir(two.join("inside"))?;
    user.refused(&["add", "two/inside"], 1, "inside")?;
    let socket = user.home.path().join("run/keepstone/sync.sock");
    ensure!(fs::metadata(&socket)?.permissions().mode() & 0o777 == 0o600, "the socket is open to others");

    user.wait_up_to_date("one")?;
    user.wait_up_to_date("two")?;
    let client = chaos::client::Client::new(&user.profile)?;
    ensure!(client.cat("/Docs/deep/early")? == b"before the daemon");
    fs::write(two.join("live"), "while it runs")?;
    wait_for("the file on the server", SETTLE_DEADLINE, || Ok(client.exists("/Other/live")?.then_some(())))?;
    wait_for("the log to name it", SETTLE_DEADLINE, || {
        let log = user.json(&["log", "two"])?;
        let entries = log["entries"].as_array().context("no entries")?;
        let found = entries.iter().any(|entry| entry["what"] == "file-up" && entry["path"] == "live");
        Ok(found.then_some(()))
    })?;

    paused_and_limited(&user, &client, &two)?;

    user.json(&["remove", "one"])?;
    ensure!(one.join("early").exists() && client.exists("/Docs/deep/early")?, "removing touched something");
    ensure!(user.json(&["status"])?["roots"].as_array().map(Vec::len) == Some(1));
    ensure!(user.json(&["stop"])?["stopped"] == true && user.json(&["stop"])?["stopped"] == false);
    ensure!(!socket.exists());
    drop(user);
    end(cluster)
}

fn paused_and_limited(user: &User, client: &chaos::client::Client, two: &Path) -> Result<()> {
    user.json(&["pause", "two"])?;
    wait_for("the pause", SETTLE_DEADLINE, || {
        Ok((user.json(&["status", "two"])?["roots"][0]["phase"] == "paused").then_some(()))
    })?;
    fs::write(two.join("held"), "back")?;
    // It stays paused over a restart of the daemon, and limits are remembered too.
    user.json(&["limits", "two", "--up", "3M", "--down", "auto"])?;
    user.json(&["stop"])?;
    user.json(&["start"])?;
    wait_for("the pause again", SETTLE_DEADLINE, || {
        Ok((user.json(&["status", "two"])?["roots"][0]["phase"] == "paused").then_some(()))
    })?;
    let limits = user.json(&["status", "two"])?["roots"][0]["limits"].clone();
    ensure!(limits["up"]["bytes-per-second"] == 3 << 20 && limits["down"] == "auto", "{limits}");
    ensure!(!client.exists("/Other/held")?, "sent while paused");
    user.json(&["resume"])?;
    wait_for("the held file", SETTLE_DEADLINE, || Ok(client.exists("/Other/held")?.then_some(())))?;
    user.wait_up_to_date("two")?;
    Ok(())
}

fn end(cluster: std::sync::Arc<Cluster>) -> Result<()> {
    match std::sync::Arc::into_inner(cluster) {
        Some(cluster) => cluster.finish(),
        None => Ok(()),
    }
}

#[test]
fn a_killed_daemon_starts_again_and_a_second_one_is_refused() -> Result<()> {
    let cluster = shared_cluster()?;
    let user = User::new(&cluster, "killed")?;
    let folder = user.folder("f")?;
    user.json(&["add", "f"])?;
    let pid = user.json(&["start"])?["pid"].as_u64().context("no pid")?;
    let second = user.command()?.arg("daemon").output()?;
    ensure!(second.status.code() == Some(1), "{second:?}");
    ensure!(String::from_utf8_lossy(&second.stderr).contains("already"), "{second:?}");
    user.wait_up_to_date("f")?;
    ProcessRef::observe(u32::try_from(pid)?).context("no daemon")?.kill()?;
    fs::write(folder.join("file"), "made while it was dead")?;
    ensure!(user.json(&["start"])?["started"] == true);
    user.wait_up_to_date("f")?;
    let client = chaos::client::Client::new(&user.profile)?;
    wait_for("the file", SETTLE_DEADLINE, || Ok(client.exists("/file")?.then_some(())))?;
    drop(user);
    end(cluster)
}

#[test]
fn a_folder_that_goes_away_is_said_and_comes_back() -> Result<()> {
    let cluster = shared_cluster()?;
    let user = User::new(&cluster, "away")?;
    let folder = user.folder("f")?;
    fs::write(folder.join("kept"), "kept")?;
    user.json(&["add", "f"])?;
    user.json(&["start"])?;
    user.wait_up_to_date("f")?;
    let aside = folder.with_file_name("aside");
    fs::rename(&folder, &aside)?;
    let path = folder.to_str().context("UTF-8")?;
    wait_for("the daemon to say so", SETTLE_DEADLINE, || {
        let root = user.json(&["status", path])?["roots"][0].clone();
        Ok((root["phase"] != "up-to-date" && root["message"] != "").then_some(()))
    })?;
    let client = chaos::client::Client::new(&user.profile)?;
    ensure!(client.exists("/kept")?, "a folder that was gone was taken for deleted");
    fs::rename(&aside, &folder)?;
    user.json(&["resume", path])?;
    user.wait_up_to_date("f")?;
    ensure!(client.exists("/kept")? && folder.join("kept").exists());
    drop(user);
    end(cluster)
}

#[test]
fn excluded_folders_go_here_only_and_come_back() -> Result<()> {
    let group = Group::running("exclude", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    a.write("photos/raw/1", "large")?;
    a.write("photos/small", "small")?;
    group.settle()?;
    let root = b.root.to_str().context("UTF-8")?;
    b.sync(&["exclude", root, "photos/raw"])?.success()?;
    wait_for("the excluded folder to go", SETTLE_DEADLINE, || {
        Ok((!b.path("photos/raw").exists()).then_some(()))
    })?;
    a.write("photos/raw/2", "more")?;
    a.write("photos/small2", "more")?;
    b.wait_content("photos/small2", "more")?;
    a.wait_up_to_date()?;
    ensure!(a.path("photos/raw/1").exists() && group.client.exists("/photos/raw/2")?);
    let status = b.wait_up_to_date()?;
    ensure!(status["excluded"][0] == "photos/raw", "{status:#}");
    ensure!(!b.path("photos/raw").exists(), "{:?}", b.snapshot()?.paths());
    b.sync(&["include", root, "photos/raw"])?.success()?;
    b.wait_content("photos/raw/2", "more")?;
    group.settle()?;
    group.finish()?;
    Ok(())
}

#[test]
fn what_is_ignored_stays_here() -> Result<()> {
    let group = Group::running("ignored", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    a.write(".keepstoneignore", "*.log\n/build/\n!keep.log\n")?;
    wait_for("the rules", SETTLE_DEADLINE, || Ok(b.path(".keepstoneignore").exists().then_some(())))?;
    // What lies beside its file is known by that.
    a.write("last", "goes")?;
    a.write("sub/z", "goes")?;
    for path in ["x.log", "build/out", "sub/y.log", ".~lock.last#", "sub/.z.swp"] {
        a.write(path, "stays")?;
    }
    for path in ["keep.log", "sub/build/out", "sub/z", "last"] {
        a.write(path, "goes")?;
        b.wait_content(path, "goes")?;
    }
    let wait = || -> Result<Snapshot> {
        a.wait_up_to_date()?;
        b.snapshot()
    };
    let expected = [".keepstoneignore", "keep.log", "last", "sub", "sub/build", "sub/build/out", "sub/z"];
    ensure!(wait()?.paths() == expected, "{:?}", wait()?.paths());
    for path in ["x.log", "build", "sub/y.log", ".~lock.last#", "sub/.z.swp"] {
        if a.path(path).is_dir() { fs::remove_dir_all(a.path(path))? } else { fs::remove_file(a.path(path))? }
    }
    group.finish()?;
    Ok(())
}

/// `sync run --once` of a device's folder, with this profile.
fn run_once(device: &Device, profile: &Path, more: &[&str]) -> Result<std::process::Output> {
    let mut command = Command::new(binary()?);
    command.arg("--profile").arg(profile).args(["sync", "run"]).arg(&device.root).args(&device.arguments);
    Ok(command.arg("--once").args(more).output()?)
}

#[test]
fn run_says_what_it_does_and_ends_as_it_should() -> Result<()> {
    let mut group = Group::new("run", 2)?;
    let [a, b] = &mut group.devices[..] else { anyhow::bail!("two devices") };
    for device in [&mut *a, &mut *b] {
        device.arguments = ["--remote", "/not/there/yet", "--state"].map(Into::into).to_vec();
        device.arguments.push(device.home().join("state").into());
    }
    a.write("file", "bytes")?;
    let document = a.once_agreed()?;
    ensure!(
        document["agreed"] == true && document["status"]["remote_path"] == "/not/there/yet",
        "{document:#}"
    );
    ensure!(group.client.cat("/not/there/yet/file")? == b"bytes", "the remote folder is made");
    // The state is elsewhere; here is the marker only.
    let own: Vec<_> = fs::read_dir(a.state())?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    let is_state = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("state.db");
    ensure!(!own.iter().any(is_state), "{own:?}");
    let state: Vec<_> = a
        .home()
        .join("state")
        .read_dir()?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    ensure!(state.iter().any(is_state), "no state in {state:?}");

    // A second one on the same folder is refused; a signal ends the first with 0.
    b.start()?;
    b.wait_content("file", "bytes")?;
    b.wait_up_to_date()?;
    let second = run_once(b, b.client.profile(), &[])?;
    ensure!(second.status.code() == Some(1), "{second:?}");
    b.process().context("no process")?.signal(Signal::INT)?;
    b.stop()?;

    // Lines for people.
    a.write("another", "bytes")?;
    let output = run_once(a, a.client.profile(), &[])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && text.contains("file up") && text.contains("another"), "{output:?}");

    // What keeps it from agreement is said, with exit code 1.
    let profile = a.home().join("nobody.toml");
    let good = fs::read_to_string(a.client.profile())?;
    let lines = good.lines().map(|line| match line.split_once('=') {
        Some(("token ", _)) => "token = \"ks1_wrong\"\n".to_owned(),
        _ => format!("{line}\n"),
    });
    fs::write(&profile, lines.collect::<String>())?;
    let output = run_once(a, &profile, &["--json"])?;
    ensure!(output.status.code() == Some(1) && !output.stderr.is_empty(), "{output:?}");
    serde_json::from_slice::<Value>(&output.stdout).context("not one JSON document")?;
    let output = Command::new(binary()?).args(["sync", "run"]).output()?;
    ensure!(output.status.code() == Some(2));

    for device in &mut group.devices {
        device.once_agreed()?;
        device.calm();
    }
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    a.snapshot()?.assert_same(&b.snapshot()?, "a and b")
}

#[test]
fn a_unit_for_systemd_is_printed_and_installed() -> Result<()> {
    let home = tempfile::tempdir()?;
    let run = |arguments: &[&str]| -> Result<Value> {
        let output = Command::new(binary()?)
            .args(["sync", "unit", "--json"])
            .args(arguments)
            .env("HOME", home.path())
            .env_remove("XDG_CONFIG_HOME")
            .output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let printed = run(&[])?;
    let installed = run(&["--install"])?;
    let path = home.path().join(".config/systemd/user/keepstone-sync.service");
    ensure!(Some(fs::read_to_string(path)?.as_str()) == printed["unit"].as_str());
    ensure!(installed["unit"] == printed["unit"]);
    ensure!(printed["unit"].as_str().is_some_and(|unit| unit.contains("sync daemon")));
    Ok(())
}

/// Keeps `f` in sync with its state elsewhere, until both sides agree.
const RUN_ONCE: [&str; 5] = ["run", "f", "--state", "state", "--once"];

#[test]
fn a_folder_that_was_only_run_is_forgotten_with_its_state_whether_a_daemon_runs_or_not() -> Result<()> {
    let cluster = shared_cluster()?;
    let user = User::new(&cluster, "forgotten")?;
    let folder = user.folder("f")?;
    let (marker, state) = (folder.join(".keepstone/root"), user.home.path().join("state/state.db"));
    fs::write(folder.join("kept"), "kept")?;
    for with_daemon in [false, true] {
        if with_daemon {
            user.json(&["start"])?;
        }
        user.json(&RUN_ONCE)?;
        // Not while it runs.
        let mut command = user.command()?;
        command.args(&RUN_ONCE[..4]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = command.spawn()?;
        let reached = wait_for("it to be reached", SETTLE_DEADLINE, || {
            ensure!(running.try_wait()?.is_none(), "it ended");
            Ok((user.sync(&["status", "f"])?.code == Some(0)).then_some(()))
        });
        let refused = reached.and_then(|()| user.refused(&["remove", "f"], 1, "stop that first"));
        if let Some(process) = ProcessRef::observe(running.id()) {
            process.signal(Signal::INT)?;
        }
        let ended = running.wait()?;
        refused?;
        ensure!(ended.success() && marker.exists() && state.exists(), "{ended}");
        user.json(&["remove", "f"])?;
        ensure!(!marker.exists() && !state.exists() && folder.join("kept").exists());
        user.refused(&["remove", "f"], 1, "not kept in sync")?;
    }
    // It is new now, for another remote folder too.
    user.json(&[&RUN_ONCE[..], &["--remote", "/Other"]].concat())?;
    ensure!(chaos::client::Client::new(&user.profile)?.cat("/Other/kept")? == b"kept");
    drop(user);
    end(cluster)
}

#[test]
fn a_state_that_is_in_the_way_of_a_new_folder_is_set_aside_if_that_is_asked_for() -> Result<()> {
    let cluster = shared_cluster()?;
    let user = User::new(&cluster, "aside")?;
    let folder = user.folder("f")?;
    fs::write(folder.join("kept"), "kept")?;
    user.json(&RUN_ONCE)?;
    // As earlier versions left it: nothing but the state knows of the folder.
    fs::remove_file(folder.join(".keepstone/root"))?;
    fs::remove_file(user.home.path().join(".local/state/keepstone/roots.toml"))?;
    user.refused(&RUN_ONCE, 1, "--new")?;
    user.json(&[&RUN_ONCE[..], &["--new"]].concat())?;
    let mut aside = 0;
    for entry in fs::read_dir(user.home.path().join("state"))? {
        let name = entry?.file_name();
        let suffix = name.to_str().and_then(|name| name.strip_prefix("state.db.aside-"));
        aside += usize::from(suffix.is_some_and(|suffix| suffix.bytes().all(|byte| byte.is_ascii_digit())));
    }
    ensure!(aside == 1, "{aside} states were set aside");
    // With its marker it is the folder that the state knows.
    user.json(&[&RUN_ONCE[..], &["--new"]].concat())?;
    user.json(&RUN_ONCE)?;
    ensure!(folder.join("kept").exists());
    ensure!(chaos::client::Client::new(&user.profile)?.cat("/kept")? == b"kept");
    drop(user);
    end(cluster)
}

#[test]
fn what_to_do_about_an_emptied_folder_is_said_and_can_be_done() -> Result<()> {
    let cluster = shared_cluster()?;
    let user = User::new(&cluster, "emptied")?;
    let folder = user.folder("f")?;
    let client = chaos::client::Client::new(&user.profile)?;
    fs::write(folder.join("kept"), "kept")?;
    user.json(&RUN_ONCE)?;
    fs::remove_file(folder.join("kept"))?;
    let output = user.sync(&RUN_ONCE)?;
    ensure!(output.code == Some(1) && client.exists("/kept")?, "{output:?}");
    for word in ["is empty, and was not", "--confirm all", "--undelete"] {
        ensure!(output.stderr.contains(word), "no {word:?}: {output:?}");
    }
    // Not what cannot be done, for nothing runs that could be told.
    for line in output.stderr.lines().filter(|line| line.starts_with("keepstone: ")) {
        ensure!(!line.starts_with("keepstone: :") && !line.contains("sync confirm"), "{output:?}");
    }
    user.json(&[&RUN_ONCE[..], &["--undelete"]].concat())?;
    ensure!(fs::read(folder.join("kept"))? == b"kept", "it did not come back");
    fs::remove_file(folder.join("kept"))?;
    user.json(&[&RUN_ONCE[..], &["--confirm", "all"]].concat())?;
    ensure!(!client.exists("/kept")?, "it was meant");
    drop(user);
    end(cluster)
}
