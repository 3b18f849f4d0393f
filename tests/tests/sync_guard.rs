//! What keeps deletes from being carried out by mistake: many of them wait until just those are confirmed, or are undone;
//! a folder that cannot be read holds up what concerns it and nothing else; a disk is known by its marker.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use chaos::device::{Device, SETTLE_DEADLINE};
use chaos::disk::{Mount, unavailable};
use chaos::group::{Group, number};
use chaos::wait::wait_for;
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Nobody in particular.
const OTHER_USER: u32 = 65_534;

fn root(device: &Device) -> Result<&str> {
    device.root.to_str().context("UTF-8")
}

fn remove(device: &Device, numbers: std::ops::Range<usize>) -> Result<()> {
    for index in numbers {
        fs::remove_file(device.path(&format!("files/{index}")))?;
    }
    Ok(())
}

/// A device with 60 files that agrees. More than 10 deletes wait.
fn sixty(name: &str) -> Result<Group> {
    let mut group = Group::new(name, 1)?;
    for index in 0..60 {
        group.devices[0].write(&format!("files/{index}"), format!("file {index}"))?;
    }
    group.devices[0].arguments = ["--deletes-max", "10"].map(Into::into).to_vec();
    group.devices[0].once_agreed()?;
    Ok(group)
}

fn wait_deletes(device: &Device, count: u64) -> Result<Value> {
    device.wait_status("the deletes to wait", |status| {
        number(status, "/deletes_to_confirm").is_ok_and(|waiting| waiting == count)
    })
}

#[test]
fn a_confirmation_is_of_what_was_shown() -> Result<()> {
    let mut group = sixty("shown")?;
    group.start()?;
    let device = &group.devices[0];
    device.wait_up_to_date()?;
    remove(device, 0..20)?;
    let shown = wait_deletes(device, 20)?["deletes_shown"].as_str().context("nothing shown")?.to_owned();
    // Others, and as many: one comes back, another goes.
    device.write("files/0", "file 0")?;
    remove(device, 20..21)?;
    device.wait_status("others to wait", |status| {
        status["deletes_to_confirm"] == 20 && status["deletes_shown"] != shown.as_str()
    })?;
    let refused = device.sync(&["confirm", root(device)?, &shown])?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("others"), "{refused:?}");
    remove(device, 21..30)?;
    let now = wait_deletes(device, 29)?["deletes_shown"].as_str().context("nothing shown")?.to_owned();
    ensure!(device.sync(&["confirm", root(device)?, &shown])?.code == Some(1), "more than was shown");
    ensure!(group.client.exists("/files/5")?, "deleted unasked");
    device.sync(&["confirm", root(device)?, &now])?.success()?;
    wait_for("the deletes", SETTLE_DEADLINE, || Ok((!group.client.exists("/files/5")?).then_some(())))?;
    device.wait_up_to_date()?;
    ensure!(group.client.exists("/files/0")?, "what came back was deleted");
    group.finish()?;
    Ok(())
}

/// However many files there were.
#[test]
fn a_folder_that_is_meant_to_be_empty_is_confirmed_once() -> Result<()> {
    let mut group = sixty("emptied")?;
    group.start()?;
    let device = &group.devices[0];
    device.wait_up_to_date()?;
    fs::remove_dir_all(device.path("files"))?;
    device.wait_status("the empty folder", |status| status["deletes_shown"] == "all")?;
    device.sync(&["confirm", root(device)?, "all"])?.success()?;
    device.wait_up_to_date()?;
    ensure!(!group.client.exists("/files/0")?, "it was not deleted");
    // It counts for nothing that comes later.
    for index in 0..60 {
        device.write(&format!("files/{index}"), format!("file {index}"))?;
    }
    // And their folder.
    device.wait_status("all to be in sync", |status| status["agreed_count"] == 61)?;
    remove(device, 0..50)?;
    wait_deletes(device, 50)?;
    group.stop()?;
    group.end()
}

#[test]
fn deletes_that_wait_can_be_undone() -> Result<()> {
    let mut group = sixty("undone")?;
    // A folder that is all empty is another case.
    group.devices[0].write("stays", "stays")?;
    let names = |device: &Device| -> Result<usize> { Ok(fs::read_dir(device.path("files"))?.count()) };
    for running in [true, false] {
        let device = &mut group.devices[0];
        if running {
            device.start()?;
            device.wait_up_to_date()?;
        }
        fs::remove_dir_all(device.path("files"))?;
        if running {
            wait_deletes(device, 60)?;
            device.sync(&["undelete", root(device)?])?.success()?;
            device.wait_up_to_date()?;
            ensure!(device.sync(&["undelete", root(device)?])?.code == Some(1), "nothing waits any more");
            device.stop()?;
        } else {
            let refused = device.once()?;
            ensure!(refused.code == Some(1), "{refused:?}");
            device.arguments.push("--undelete".into());
            device.once_agreed()?;
        }
        ensure!(names(device)? == 60, "not all are back: {}", names(device)?);
    }
    group.finish()?;
    Ok(())
}

#[test]
fn a_few_deletes_in_each_of_several_runs_count_together() -> Result<()> {
    let mut group = sixty("runs")?;
    let device = &group.devices[0];
    for from in [0, 5] {
        remove(device, from..from + 5)?;
        device.once_agreed()?;
    }
    remove(device, 10..15)?;
    let refused = device.once()?;
    ensure!(refused.code == Some(1), "{refused:?}");
    let status = refused.json()?["status"].clone();
    ensure!(number(&status, "/deletes_to_confirm")? == 5, "{status:#}");
    ensure!(group.client.exists("/files/10")?, "deleted unasked");
    // A confirmation of others counts for nothing, that of these does.
    let shown = status["deletes_shown"].as_str().context("nothing shown")?.to_owned();
    group.devices[0].arguments.extend(["--confirm", "5-00000000"].map(Into::into));
    ensure!(group.devices[0].once()?.code == Some(1), "confirmed by a guess");
    group.devices[0].arguments.pop();
    group.devices[0].arguments.push(shown.into());
    group.devices[0].once_agreed()?;
    ensure!(!group.client.exists("/files/10")?, "not deleted");
    group.devices[0].arguments.truncate(2);
    group.finish()?;
    Ok(())
}

#[test]
fn a_folder_that_cannot_be_read_holds_up_only_its_own_deletes() -> Result<()> {
    if let Some(why) = unavailable() {
        eprintln!("not tried, for root is needed: {why}");
        return Ok(());
    }
    let mut group = Group::new("unread", 1)?;
    for path in ["outer/closed/f", "outer/open", "elsewhere/f", "elsewhere/g"] {
        group.devices[0].write(path, path)?;
    }
    group.devices[0].once_agreed()?;
    group.devices[0].become_user(OTHER_USER)?;
    let closed = group.devices[0].path("outer/closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o0))?;
    group.start()?;
    let device = &group.devices[0];
    device.wait_status("the closed folder named", |status| {
        let all = status["skipped"].as_array();
        all.is_some_and(|all| all.iter().any(|item| item["path"] == "outer/closed"))
    })?;
    // Deleted here and there, beside it.
    fs::remove_file(device.path("elsewhere/f"))?;
    group.client.ok(&["rm", "/elsewhere/g"])?;
    wait_for("the deletes", SETTLE_DEADLINE, || {
        let here = device.path("elsewhere/g").exists();
        Ok((!here && !group.client.exists("/elsewhere/f")?).then_some(()))
    })?;
    // What is around it stays, and says why.
    group.client.ok(&["rm", "-r", "/outer"])?;
    device.wait_status("the folder around it to wait", |status| {
        let all = status["waiting"].as_array();
        all.is_some_and(|all| all.iter().any(|item| item["path"] == "outer"))
    })?;
    ensure!(device.path("outer/closed").exists());
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755))?;
    device.wait_up_to_date()?;
    ensure!(!device.path("outer").exists(), "it was deleted on the server");
    group.finish()?;
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// An image under a loop device, mounted; both end with it.
struct Disk<'a> {
    device: String,
    point: &'a Path,
}

impl<'a> Disk<'a> {
    fn plug(image: &Path, point: &'a Path) -> Result<Self> {
        let device = run("losetup", &["--find", "--show", image.to_str().context("UTF-8")?])?;
        let disk = Self { device, point };
        run("mount", &[&disk.device, point.to_str().context("UTF-8")?])?;
        Ok(disk)
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        for (program, argument) in [("umount", self.point.as_os_str()), ("losetup", self.device.as_ref())] {
            let mut command = Command::new(program);
            if program == "losetup" {
                command.arg("--detach");
            }
            if !command.arg(argument).status().is_ok_and(|status| status.success()) {
                eprintln!("{} is left", self.device);
            }
        }
    }
}

#[test]
fn a_disk_under_another_device_name_is_the_same_folder() -> Result<()> {
    if let Some(why) = unavailable() {
        eprintln!("not tried, for root is needed: {why}");
        return Ok(());
    }
    let group = Group::new("renamed-disk", 1)?;
    let device = &group.devices[0];
    let (image, other) = (device.home().join("image"), device.home().join("other"));
    fs::File::create(&image)?.set_len(320 * MIB)?;
    fs::File::create(&other)?.set_len(MIB)?;
    run("mkfs.xfs", &["-q", image.to_str().context("UTF-8")?])?;
    let point = device.root.clone();
    {
        let _disk = Disk::plug(&image, &point)?;
        for path in ["kept/f", "out/f"] {
            device.write(path, path)?;
        }
        device.once_agreed()?;
    }
    // Not plugged in: an empty mount point is no folder of ours, and nothing is deleted.
    let refused = device.once()?;
    ensure!(refused.code == Some(1), "{refused:?}");
    ensure!(group.client.exists("/kept/f")? && fs::read_dir(&point)?.next().is_none());
    // Something else has its device name by now.
    let taken = run("losetup", &["--find", "--show", other.to_str().context("UTF-8")?])?;
    let plugged = Disk::plug(&image, &point);
    let tried = plugged.and_then(|disk| {
        ensure!(disk.device != taken);
        fs::remove_file(device.path("kept/f"))?;
        device.write("new", "new")?;
        device.once_agreed()?;
        ensure!(!group.client.exists("/kept/f")? && group.client.exists("/new")?);
        // A lost marker: it is said what to do, that works, and nothing is deleted.
        fs::remove_file(device.path(".keepstone/root"))?;
        let refused = device.once()?;
        ensure!(refused.code == Some(1), "{refused:?}");
        device.sync(&["add", "--again", root(device)?])?.success()?;
        device.once_agreed()?;
        ensure!(group.client.exists("/out/f")?);
        Ok(())
    });
    run("losetup", &["--detach", &taken])?;
    tried?;
    group.end()?;
    Ok(())
}

#[test]
fn a_disk_that_is_plugged_in_again_while_it_is_synced_is_gone_on_with() -> Result<()> {
    if let Some(why) = unavailable() {
        eprintln!("not tried, for root is needed: {why}");
        return Ok(());
    }
    let mut group = Group::new("replugged", 1)?;
    let (one, two) = (group.devices[0].home().join("one"), group.devices[0].home().join("two"));
    let state = group.devices[0].home().join("state");
    group.devices[0].arguments = vec!["--state".into(), (&state).into()];
    let point = group.devices[0].root.clone();
    let first = Mount::tmpfs(8 * MIB, &point)?;
    group.devices[0].write("f", "first")?;
    group.start()?;
    group.devices[0].wait_up_to_date()?;
    run("cp", &["-a", &format!("{}/.", root(&group.devices[0])?), one.to_str().context("UTF-8")?])?;
    fs::create_dir_all(&two)?;
    // Taken out while it runs, and there again with another number.
    run("umount", &["-l", root(&group.devices[0])?])?;
    let _second = Mount::tmpfs(8 * MIB, &point)?;
    run("cp", &["-a", &format!("{}/.", one.display()), root(&group.devices[0])?])?;
    group.devices[0].write("g", "after")?;
    let device = &group.devices[0];
    device.sync(&["rescan", root(device)?])?.success()?;
    wait_for("the new file on the server", SETTLE_DEADLINE, || Ok(group.client.exists("/g")?.then_some(())))?;
    ensure!(group.client.exists("/f")?, "deleted");
    device.wait_up_to_date()?;
    group.devices[0].stop()?;
    std::mem::forget(first);
    group.end()?;
    Ok(())
}
