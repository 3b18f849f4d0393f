//! Nothing spins: every cause of waiting that can be made for real, each in a device of its own, all at the same time. Each
//! device names what it waits for, uses next to nothing while it does, fetches nothing again and again, and goes on once
//! the cause has gone. With `KEEPSTONE_SIZE=full` they wait for 60 seconds.
//!
//! What needs root is left out, and said, where there is none.

use std::any::Any;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos::device::SETTLE_DEADLINE;
use chaos::disk::{Mount, unavailable};
use chaos::group::{Group, number};
use chaos::proxy::{Network, Proxy};
use chaos::size::Size;
use chaos::wait::wait_for;
use rustix::fs::{CWD, FileType, IFlags, Mode, ioctl_getflags, ioctl_setflags, mknodat};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Nobody in particular.
const OTHER_USER: u32 = 65_534;
/// Of a core, in a hundred parts, for 60 seconds. In the short form what is tried again in the first seconds counts more.
const CPU_PERCENT_MAX: f64 = 2.0;
const CPU_PERCENT_SHORT_MAX: f64 = 4.0;
/// Of the file that waits.
const FILE_BYTES: usize = 300_000;

/// A device that waits.
struct Waiting {
    group: Group,
    /// What its status must say of it: in one item, or in its message.
    path: &'static str,
    word: &'static str,
    /// The cause, which is not there any more once this is dropped.
    held: Vec<Box<dyn Any>>,
    /// What its folder is on; unmounted in this order once nothing runs.
    mounts: Vec<Box<dyn Any>>,
    /// Ends the cause, after `held`; absent: that was all.
    ends: Option<fn(&mut Group) -> Result<()>>,
}

impl Waiting {
    fn new(group: Group, path: &'static str, word: &'static str) -> Self {
        Self { group, path, word, held: Vec::new(), mounts: Vec::new(), ends: None }
    }

    fn hold(mut self, held: impl Any) -> Self {
        self.held.push(Box::new(held));
        self
    }

    fn ends(mut self, ends: fn(&mut Group) -> Result<()>) -> Self {
        self.ends = Some(ends);
        self
    }

    fn named(&self, status: &Value) -> bool {
        let lists = ["waiting", "skipped"].into_iter().filter_map(|list| status[list].as_array());
        let listed = lists.flatten().any(|item| {
            item["path"] == self.path && item["why"].as_str().is_some_and(|why| why.contains(self.word))
        });
        let says = |field: &str| status[field].as_str().is_some_and(|text| text.contains(self.word));
        listed || (self.path.is_empty() && (says("message") || says("phase")))
    }
}

/// A device of an account of its own that agrees, and does not run.
fn group(name: &str) -> Result<Group> {
    let group = Group::new(&format!("waits-{name}"), 1)?;
    group.devices[0].write("first", "both sides agree on it")?;
    group.devices[0].once_agreed()?;
    Ok(group)
}

/// Puts a file on the server that the device does not have.
fn put(group: &Group, path: &str) -> Result<()> {
    put_bytes(group, path, FILE_BYTES)
}

fn put_bytes(group: &Group, path: &str, bytes: usize) -> Result<()> {
    let source = group.devices[0].home().join("source");
    fs::write(&source, vec![7; bytes])?;
    if let Some((folder, _name)) = path.rsplit_once('/').filter(|(folder, _name)| !folder.is_empty()) {
        group.client.ok(&["mkdir", "-p", folder])?;
    }
    group.client.put(&[&source], path)?;
    Ok(())
}

/// A device in whose way something lies.
fn in_the_way(
    name: &str,
    remote: &str,
    path: &'static str,
    word: &'static str,
    lay: impl FnOnce(&Path) -> Result<Box<dyn Any>>,
) -> Result<Waiting> {
    let group = group(name)?;
    put(&group, remote)?;
    let held = lay(&group.devices[0].root)?;
    Ok(Waiting::new(group, path, word).hold(held))
}

/// Removes something when it is dropped.
struct Laid(std::path::PathBuf);

impl Drop for Laid {
    fn drop(&mut self) {
        let removed = if self.0.is_dir() && !self.0.is_symlink() {
            fs::set_permissions(&self.0, fs::Permissions::from_mode(0o755))
                .and_then(|()| fs::remove_dir_all(&self.0))
        } else {
            fs::remove_file(&self.0)
        };
        if let Err(error) = removed {
            eprintln!("{} is left: {error}", self.0.display());
        }
    }
}

/// What can be made without root.
fn plain() -> Result<Vec<Waiting>> {
    let mut all = vec![
        in_the_way("pipe", "/thing", "thing", "a pipe", |root| {
            mknodat(CWD, root.join("thing"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            Ok(Box::new(Laid(root.join("thing"))))
        })?,
        in_the_way("pipe-on-the-way", "/folder/thing", "folder", "a pipe", |root| {
            mknodat(CWD, root.join("folder"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            Ok(Box::new(Laid(root.join("folder"))))
        })?,
        in_the_way("socket", "/thing", "thing", "a socket", |root| {
            let socket = UnixListener::bind(root.join("thing"))?;
            Ok(Box::new((socket, Laid(root.join("thing")))))
        })?,
        in_the_way("other-root", "/thing/f", "thing", "kept in sync by itself", |root| {
            fs::create_dir_all(root.join("thing/.keepstone"))?;
            fs::write(root.join("thing/.keepstone/root"), "of another")?;
            Ok(Box::new(Laid(root.join("thing"))))
        })?,
    ];
    for (name, remote) in [("ignored-file", "/thing"), ("ignored-link", "/thing/f")] {
        let group = group(name)?;
        group.devices[0].write(".keepstoneignore", "thing\n")?;
        group.devices[0].once_agreed()?;
        put(&group, remote)?;
        let thing = group.devices[0].path("thing");
        if name == "ignored-file" {
            fs::write(&thing, "mine")?
        } else {
            symlink("first", &thing)?
        }
        all.push(Waiting::new(group, "thing", "ignored here").hold(Laid(thing)));
    }
    let silent = group("written")?;
    all.push(always_written(silent)?);
    let bad = group("name")?;
    let odd = bad.devices[0].root.join(std::ffi::OsStr::from_bytes(b"odd-\xff"));
    fs::write(&odd, "")?;
    all.push(Waiting::new(bad, "odd-\u{fffd}", "UTF-8").hold(Laid(odd)));
    all.extend([deletes()?, emptied()?, unmarked()?, missing()?, paused()?, offline()?]);
    Ok(all)
}

/// A file that is written all the time at the place of one that comes.
fn always_written(group: Group) -> Result<Waiting> {
    let path = group.devices[0].path("busy");
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, file) = (stop.clone(), path.clone());
    let writer = std::thread::spawn(move || {
        let mut count = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            count += 1;
            if fs::write(&file, format!("{count}")).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    struct Writer(Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>);
    impl Drop for Writer {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
            if let Some(writer) = self.1.take() {
                drop(writer.join());
            }
        }
    }
    Ok(Waiting::new(group, "busy", "still being written").hold(Writer(stop, Some(writer))))
}

fn deletes() -> Result<Waiting> {
    let mut group = group("deletes")?;
    for index in 0..30 {
        group.devices[0].write(&format!("many/{index}"), format!("{index}"))?;
    }
    group.devices[0].arguments = ["--deletes-max", "10"].map(Into::into).to_vec();
    group.devices[0].once_agreed()?;
    fs::remove_dir_all(group.devices[0].path("many"))?;
    let ends = |group: &mut Group| -> Result<()> {
        let root = group.devices[0].root.to_str().context("UTF-8")?.to_owned();
        group.devices[0].sync(&["undelete", &root])?.success()?;
        wait_for("the files to be back", SETTLE_DEADLINE, || {
            Ok(group.devices[0].path("many/29").exists().then_some(()))
        })
    };
    Ok(Waiting::new(group, "", "sync undelete").ends(ends))
}

fn emptied() -> Result<Waiting> {
    let group = group("emptied")?;
    fs::remove_file(group.devices[0].path("first"))?;
    let ends = |group: &mut Group| -> Result<()> {
        let root = group.devices[0].root.to_str().context("UTF-8")?.to_owned();
        group.devices[0].sync(&["undelete", &root])?.success()?;
        group.devices[0].wait_content("first", "both sides agree on it")
    };
    Ok(Waiting::new(group, "", "is empty, and was not").ends(ends))
}

fn unmarked() -> Result<Waiting> {
    let mut group = group("unmarked")?;
    group.devices[0].start()?;
    group.devices[0].wait_up_to_date()?;
    fs::remove_file(group.devices[0].path(".keepstone/root"))?;
    let root = group.devices[0].root.to_str().context("UTF-8")?.to_owned();
    group.devices[0].sync(&["rescan", &root])?.success()?;
    let ends = |group: &mut Group| -> Result<()> {
        let root = group.devices[0].root.to_str().context("UTF-8")?.to_owned();
        group.devices[0].sync(&["add", "--again", &root])?.success()?;
        Ok(())
    };
    Ok(Waiting::new(group, "", "sync add --again").ends(ends))
}

fn missing() -> Result<Waiting> {
    let mut group = group("missing")?;
    group.devices[0].start()?;
    group.devices[0].wait_up_to_date()?;
    fs::rename(&group.devices[0].root, group.devices[0].home().join("aside"))?;
    let ends = |group: &mut Group| -> Result<()> {
        Ok(fs::rename(group.devices[0].home().join("aside"), &group.devices[0].root)?)
    };
    Ok(Waiting::new(group, "", "is not there").ends(ends))
}

fn paused() -> Result<Waiting> {
    let mut group = group("paused")?;
    group.devices[0].start()?;
    group.devices[0].wait_up_to_date()?;
    let root = group.devices[0].root.to_str().context("UTF-8")?.to_owned();
    group.devices[0].sync(&["pause", &root])?.success()?;
    group.devices[0].write("held", "back")?;
    let ends = |group: &mut Group| -> Result<()> {
        let root = group.devices[0].root.to_str().context("UTF-8")?.to_owned();
        group.devices[0].sync(&["resume", &root])?.success()?;
        Ok(())
    };
    Ok(Waiting::new(group, "", "paused").ends(ends))
}

fn offline() -> Result<Waiting> {
    let mut group = group("offline")?;
    let endpoint = &group.cluster()?.endpoint;
    let target = endpoint.strip_prefix("https://").context("no https endpoint")?.to_owned();
    let proxy = Proxy::start("127.0.0.1", &target)?;
    group.devices[0].via(&proxy)?;
    proxy.set(Network::Cut);
    // Its end is not looked at: a proxy that is gone is a gateway that stays away.
    Ok(Waiting::new(group, "", "offline").hold(proxy).ends(|group| group.devices[0].kill()))
}

/// What only root can make: mounts, devices, and devices of another user, whom permissions hold up.
fn privileged() -> Result<Vec<Waiting>> {
    let mut all = vec![
        in_the_way("device", "/thing", "thing", "a device", |root| {
            mknodat(
                CWD,
                root.join("thing"),
                FileType::CharacterDevice,
                Mode::RUSR,
                rustix::fs::makedev(1, 3),
            )?;
            Ok(Box::new(Laid(root.join("thing"))))
        })?,
        in_the_way("mount", "/thing/f", "thing", "another file system", |root| {
            Ok(Box::new(Mount::tmpfs(MIB, &root.join("thing"))?))
        })?,
    ];
    let mut unreadable = group("unreadable")?;
    put(&unreadable, "/thing/f")?;
    fs::create_dir(unreadable.devices[0].path("thing"))?;
    unreadable.devices[0].become_user(OTHER_USER)?;
    let thing = unreadable.devices[0].path("thing");
    fs::set_permissions(&thing, fs::Permissions::from_mode(0o0))?;
    all.push(Waiting::new(unreadable, "thing", "may not be read").hold(Laid(thing)));

    let mut closed = group("closed")?;
    closed.devices[0].write("known/f", "known")?;
    closed.devices[0].once_agreed()?;
    closed.devices[0].become_user(OTHER_USER)?;
    fs::set_permissions(closed.devices[0].path("known"), fs::Permissions::from_mode(0o0))?;
    let ends = |group: &mut Group| -> Result<()> {
        Ok(fs::set_permissions(group.devices[0].path("known"), fs::Permissions::from_mode(0o755))?)
    };
    all.push(Waiting::new(closed, "known", "may not be read").ends(ends));

    let mut foreign = group("foreign")?;
    foreign.devices[0].write("theirs/f", "known")?;
    foreign.devices[0].once_agreed()?;
    foreign.devices[0].become_user(OTHER_USER)?;
    std::os::unix::fs::chown(foreign.devices[0].path("theirs"), Some(0), None)?;
    put(&foreign, "/theirs/thing")?;
    let ends = |group: &mut Group| -> Result<()> {
        Ok(std::os::unix::fs::chown(group.devices[0].path("theirs"), Some(OTHER_USER), None)?)
    };
    all.push(Waiting::new(foreign, "theirs/thing", "permissions").ends(ends));
    all.extend([protected()?, full()?, overlay()?]);
    Ok(all)
}

/// Something comes to a folder that a flag protects, also from root. No system call tells of the flag's going.
fn protected() -> Result<Waiting> {
    let group = group("protected")?;
    group.devices[0].write("kept/f", "known")?;
    group.devices[0].once_agreed()?;
    let kept = group.devices[0].path("kept");
    let held = Immutable::make(&kept)?;
    put(&group, "/kept/thing")?;
    Ok(Waiting::new(group, "kept/thing", "immutable").hold(held))
}

/// A folder with the flag, until this is dropped.
struct Immutable(fs::File);

impl Immutable {
    fn make(folder: &Path) -> Result<Self> {
        let folder = fs::File::open(folder)?;
        let flags = ioctl_getflags(&folder)?;
        ioctl_setflags(&folder, flags | IFlags::IMMUTABLE).context("the flag cannot be set here")?;
        Ok(Self(folder))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let taken =
            ioctl_getflags(&self.0).and_then(|flags| ioctl_setflags(&self.0, flags - IFlags::IMMUTABLE));
        if let Err(error) = taken {
            eprintln!("a flag is left: {error}");
        }
    }
}

/// On a disk that is too small for what comes.
fn full() -> Result<Waiting> {
    let group = Group::new("waits-full", 1)?;
    let mount = Mount::tmpfs(8 * MIB, &group.devices[0].root)?;
    group.devices[0].write("first", "both sides agree on it")?;
    group.devices[0].once_agreed()?;
    put_bytes(&group, "/thing", 900_000)?;
    let free = usize::try_from(chaos::disk::free_bytes_of(&group.devices[0].root)?)?;
    group.devices[0].write(".keepstone/ballast", vec![0; free.saturating_sub(600_000)])?;
    let ends = |group: &mut Group| Ok(fs::remove_file(group.devices[0].path(".keepstone/ballast"))?);
    let mut waiting = Waiting::new(group, "thing", "no space left").ends(ends);
    waiting.mounts.push(Box::new(mount));
    Ok(waiting)
}

/// Is unmounted when it is dropped.
struct Overlay(std::path::PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        if !Command::new("umount").arg(&self.0).status().is_ok_and(|status| status.success()) {
            eprintln!("{} is left", self.0.display());
        }
    }
}

/// An overlay whose lower layer has a folder that was renamed elsewhere: the system cannot rename it.
fn overlay() -> Result<Waiting> {
    let group = Group::new("waits-overlay", 1)?;
    let device = &group.devices[0];
    let layers = device.home().join("layers");
    let base = Mount::tmpfs(64 * MIB, &layers)?;
    // The lower layer on a file system of its own: files have the numbers of theirs, and folders the overlay's.
    let lower = Mount::tmpfs(MIB, &layers.join("lower"))?;
    for layer in ["lower/old", "upper", "work"] {
        fs::create_dir_all(layers.join(layer))?;
    }
    fs::write(layers.join("lower/old/f"), "of the lower layer")?;
    let at = |layer: &str| layers.join(layer).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &format!("{options},redirect_dir=off")])
        .arg(&device.root)
        .status()?;
    ensure!(mounted.success(), "no overlay");
    device.once_agreed()?;
    ensure!(group.client.exists("/old/f")?, "what lies on two file systems was left out");
    group.client.ok(&["mv", "/old", "/new"])?;
    let ends = |group: &mut Group| -> Result<()> {
        // As the message says: by hand.
        let moved =
            Command::new("mv").args([group.devices[0].path("old"), group.devices[0].path("new")]).status()?;
        ensure!(moved.success());
        Ok(())
    };
    let mut waiting = Waiting::new(group, "old", "cannot be renamed").ends(ends);
    waiting.mounts.push(Box::new(Overlay(waiting.group.devices[0].root.clone())));
    waiting.mounts.push(Box::new(lower));
    waiting.mounts.push(Box::new(base));
    Ok(waiting)
}

#[test]
fn whatever_is_waited_for_is_named_and_nothing_spins() -> Result<()> {
    let mut all = plain()?;
    match unavailable() {
        None => all.extend(privileged()?),
        Some(why) => eprintln!("without mounts and other users: {why}"),
    }
    let mut failures = Vec::new();
    for waiting in &mut all {
        if !waiting.group.devices[0].is_running()? {
            waiting.group.devices[0].start()?;
        }
    }
    for waiting in &all {
        let device = &waiting.group.devices[0];
        let named = device.wait_status("the cause to be named", |status| waiting.named(status));
        if let Err(error) = named {
            failures.push(format!("{}: {error:#}", label(waiting)));
        }
    }
    measure(&all, &mut failures)?;
    for mut waiting in all {
        let label = label(&waiting);
        if let Err(error) = end(&mut waiting) {
            failures.push(format!("{label}: it does not go on: {error:#}"));
        }
        waiting.group.end()?;
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn label(waiting: &Waiting) -> String {
    let home = waiting.group.devices[0].home();
    home.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What each uses while all wait, and what it fetches.
fn measure(all: &[Waiting], failures: &mut Vec<String>) -> Result<()> {
    let size = Size::chosen();
    let window = Duration::from_secs(size.pick(5, 60, 60));
    let most = if size == Size::Ci { CPU_PERCENT_SHORT_MAX } else { CPU_PERCENT_MAX };
    let wire = |waiting: &Waiting| -> Result<u64> {
        Ok(match waiting.group.devices[0].status()? {
            Some(status) => number(&status, "/down/bytes_on_wire")?,
            None => 0,
        })
    };
    let cpu =
        |waiting: &Waiting| waiting.group.devices[0].process().and_then(|process| process.cpu_seconds());
    let wire_before: Vec<u64> = all.iter().map(wire).collect::<Result<_>>()?;
    let (began, before): (Instant, Vec<_>) = (Instant::now(), all.iter().map(cpu).collect());
    // What is measured is time itself.
    std::thread::sleep(window);
    let after: Vec<_> = all.iter().map(cpu).collect();
    let seconds = began.elapsed().as_secs_f64();
    for (index, waiting) in all.iter().enumerate() {
        let label = label(waiting);
        let (Some(before), Some(after)) = (before[index], after[index]) else {
            failures.push(format!("{label}: it has ended"));
            continue;
        };
        let percent = (after - before) / seconds * 100.0;
        let fetched = wire(waiting)? - wire_before[index];
        eprintln!("{label}: {percent:.2}% of a core, {fetched} bytes fetched");
        if percent > most {
            failures.push(format!("{label}: {percent:.1}% of a core for {seconds:.0} s"));
        }
        if fetched > 0 {
            failures.push(format!("{label}: {fetched} bytes fetched while it waits"));
        }
    }
    Ok(())
}

/// The cause ends: it goes on.
fn end(waiting: &mut Waiting) -> Result<()> {
    waiting.held.clear();
    if let Some(ends) = waiting.ends {
        ends(&mut waiting.group)?;
    }
    if waiting.group.devices[0].is_running()? {
        waiting.group.devices[0].wait_up_to_date()?;
    }
    waiting.group.devices[0].stop()?;
    waiting.mounts.clear();
    Ok(())
}

#[test]
fn once_ends_and_names_what_is_in_its_way() -> Result<()> {
    let group = group("once")?;
    let device = &group.devices[0];
    put(&group, "/thing")?;
    mknodat(CWD, device.path("thing"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let output = device.once()?;
    ensure!(output.code == Some(1), "{output:?}");
    let document = output.json()?;
    ensure!(document["waiting"][0]["path"] == "thing", "{document:#}");
    let why = document["waiting"][0]["why"].as_str().context("no reason")?;
    ensure!(why.contains("a pipe"), "{why}");
    ensure!(number(&document, "/status/down/bytes_on_wire")? == 0, "it was fetched: {document:#}");
    fs::remove_file(device.path("thing"))?;
    device.once_agreed()?;
    group.finish()?;
    Ok(())
}

#[test]
fn what_waits_for_something_that_is_gone_from_the_server_is_not_named() -> Result<()> {
    let mut group = group("gone")?;
    group.start()?;
    let device = &group.devices[0];
    device.wait_up_to_date()?;
    mknodat(CWD, device.path("thing"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    put(&group, "/thing")?;
    device.wait_status("the pipe in the way", |status| status["waiting_count"] == 1)?;
    group.client.ok(&["rm", "/thing"])?;
    device.wait_status("nothing that waits", |status| {
        status["phase"] == "up-to-date" && status["waiting_count"] == 0
    })?;
    fs::remove_file(device.path("thing"))?;
    group.stop()?;
    group.end()
}

/// A file needs no look into it.
#[test]
fn what_can_be_read_by_now_is_not_named_any_more() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a device of another user needs root");
        return Ok(());
    }
    let mut group = group("readable")?;
    group.devices[0].become_user(OTHER_USER)?;
    group.start()?;
    let device = &group.devices[0];
    device.wait_up_to_date()?;
    let named = |paths: &[&str]| {
        device.wait_status(&format!("{paths:?}"), |status| {
            let skipped = status["skipped"].as_array().into_iter().flatten();
            skipped.map(|item| item["path"].as_str().unwrap_or_default()).eq(paths.iter().copied())
        })
    };
    for name in ["file", "removed"] {
        device.write(name, "not to be read")?;
        fs::set_permissions(device.path(name), fs::Permissions::from_mode(0o000))?;
    }
    fs::create_dir(device.path("folder"))?;
    fs::set_permissions(device.path("folder"), fs::Permissions::from_mode(0o000))?;
    named(&["file", "folder", "removed"])?;
    std::os::unix::fs::chown(device.path("file"), Some(OTHER_USER), Some(OTHER_USER))?;
    fs::set_permissions(device.path("file"), fs::Permissions::from_mode(0o644))?;
    fs::remove_file(device.path("removed"))?;
    fs::rename(device.path("folder"), device.path("folder of another name"))?;
    named(&["folder of another name"])?;
    fs::remove_dir(device.path("folder of another name"))?;
    named(&[])?;
    device.wait_up_to_date()?;
    group.stop()?;
    group.end()
}
