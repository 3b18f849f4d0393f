//! Synchronisation while things break: processes that die or stand still, networks that are cut, disks that are full,
//! folders that cannot be read, databases that are lost, roots that are not what they were. Nothing is lost, nothing is
//! deleted by mistake, and it all goes on by itself.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::cluster::{Cluster, Options};
use chaos::device::{Device, SETTLE_DEADLINE};
use chaos::disk::{Mount, unavailable};
use chaos::gateway::Gateway;
use chaos::group::{Group, number};
use chaos::netns::Namespace;
use chaos::proxy::{Network, Proxy};
use chaos::size::seed;
use chaos::skip::skipped;
use chaos::tree::write_random;
use chaos::wait::wait_for;

const MIB: u64 = 1 << 20;
/// Nobody in particular.
const OTHER_USER: u32 = 65_534;

fn target(group: &Group) -> Result<String> {
    let endpoint = &group.cluster()?.endpoint;
    Ok(endpoint.strip_prefix("https://").context("no https endpoint")?.to_owned())
}

/// A group whose first device is behind a network that can be cut.
fn behind_proxy(name: &str) -> Result<(Group, Proxy)> {
    let mut group = Group::new(name, 2)?;
    let proxy = Proxy::start("127.0.0.1", &target(&group)?)?;
    group.devices[0].via(&proxy)?;
    group.start()?;
    for device in &group.devices {
        device.wait_up_to_date()?;
    }
    Ok((group, proxy))
}

#[test]
fn a_network_that_is_cut_is_waited_for() -> Result<()> {
    let (group, proxy) = behind_proxy("cut")?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    for (round, network) in [Network::Cut, Network::Silent].into_iter().enumerate() {
        write_random(&a.path(&format!("large-{round}")), 6 * MIB, seed("cut"))?;
        std::thread::sleep(Duration::from_millis(180));
        proxy.set(network);
        a.write(&format!("here-{round}"), "made while the network was gone")?;
        b.write(&format!("there-{round}"), "made there meanwhile")?;
        b.wait_up_to_date()?;
        if network == Network::Cut {
            a.wait_status("offline", |status| status["online"] == false)?;
        }
        ensure!(!a.path(&format!("there-{round}")).exists());
        proxy.set(Network::Up);
        a.wait_content(&format!("there-{round}"), "made there meanwhile")?;
        b.wait_content(&format!("here-{round}"), "made while the network was gone")?;
        group.settle()?;
    }
    group.finish()?;
    Ok(())
}

#[test]
fn a_cable_that_is_pulled_is_waited_for() -> Result<()> {
    let Some(namespace) = Namespace::new()? else {
        return skipped("no network namespaces here");
    };
    let options = Options { host: Some(namespace.host.clone()), ..Options::default() };
    let mut group = Group::on(Arc::new(Cluster::start(&options)?), "cable", 2)?;
    group.devices[0].namespace = Some(namespace.name.clone());
    group.start()?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    a.write("before", "before")?;
    b.wait_content("before", "before")?;
    write_random(&a.path("large"), 8 * MIB, seed("cable"))?;
    std::thread::sleep(Duration::from_millis(200));
    namespace.plug(false)?;
    a.write("here", "without a network")?;
    b.write("there", "meanwhile")?;
    b.wait_up_to_date()?;
    ensure!(!a.path("there").exists());
    namespace.plug(true)?;
    a.wait_content("there", "meanwhile")?;
    b.wait_content("here", "without a network")?;
    group.settle()?;
    group.finish()?;
    Ok(())
}

#[test]
fn killed_devices_and_gateways_go_on_where_they_were() -> Result<()> {
    // Roles are killed here, so no other test may use this cluster.
    let cluster = Arc::new(Cluster::start(&Options::default())?);
    let mut gateway = Gateway::of(&cluster)?;
    let mut group = Group::on(Arc::clone(&cluster), "killed-gateway", 2)?;
    drop(cluster);
    group.start()?;
    for index in 0..60_u64 {
        let a = &group.devices[0];
        fs::create_dir_all(a.path("d"))?;
        write_random(&a.path(&format!("d/{index}")), 150_000, index)?;
    }
    wait_for("the first files", SETTLE_DEADLINE, || Ok(group.devices[1].path("d").exists().then_some(())))?;
    group.devices[0].kill()?;
    group.devices[1].kill()?;
    group.start()?;
    gateway.kill()?;
    group.devices[1].write("while", "the gateway was dead")?;
    gateway.start()?;
    group.settle()?;
    let agreed = group.finish()?;
    ensure!(agreed.paths().len() == 62, "{:?}", agreed.paths());
    Ok(())
}

#[test]
fn a_device_that_stood_still_goes_on() -> Result<()> {
    let group = Group::running("still", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    a.write("file", "1")?;
    group.settle()?;
    a.pause(true)?;
    b.write("file", "2, by b")?;
    a.write("file", "2, by a")?;
    b.wait_up_to_date()?;
    a.pause(false)?;
    let agreed = group.settle()?;
    ensure!(agreed.paths().len() == 2 && agreed.conflicted().len() == 1, "{:?}", agreed.paths());
    group.finish()?;
    Ok(())
}

#[test]
fn a_full_disk_is_said_and_what_fits_arrives() -> Result<()> {
    if let Some(why) = unavailable() {
        return skipped(why);
    }
    let mut group = Group::new("full", 2)?;
    let point = group.devices[1].home().join("small");
    let disk = Mount::tmpfs(12 * MIB, &point)?;
    group.devices[1].root = disk.point.join("root");
    fs::create_dir(&group.devices[1].root)?;
    group.start()?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    b.wait_up_to_date()?;
    write_random(&a.path("large"), 20 * MIB, seed("full"))?;
    a.write("small", "fits")?;
    b.wait_content("small", "fits")?;
    let status = b.wait_status("the large file to wait, and why", |status| {
        status["waiting"].as_array().is_some_and(|list| list.iter().any(|item| item["path"] == "large"))
    })?;
    let why = status["waiting"][0]["why"].as_str().context("no reason")?.to_lowercase();
    ensure!(why.contains("full") || why.contains("space") || why.contains("room"), "{why}");
    ensure!(!b.path("large").exists());
    a.write("later", "fits too")?;
    b.wait_content("later", "fits too")?;
    fs::remove_file(a.path("large"))?;
    group.settle()?;
    group.finish()?;
    drop(disk);
    Ok(())
}

#[test]
fn a_folder_that_cannot_be_read_deletes_nothing() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return skipped("not root");
    }
    let mut group = Group::new("denied", 2)?;
    group.devices[0].become_user(OTHER_USER)?;
    group.start()?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    let own = |path: &str| -> Result<()> {
        for entry in walkdir::WalkDir::new(a.path(path)) {
            std::os::unix::fs::lchown(entry?.path(), Some(OTHER_USER), None)?;
        }
        Ok(())
    };
    let staged = a.home().join("closed");
    fs::create_dir(&staged)?;
    fs::write(staged.join("inside"), "inside")?;
    fs::rename(&staged, a.path("closed"))?;
    own("closed")?;
    a.write("file", "readable")?;
    own("file")?;
    b.wait_content("closed/inside", "inside")?;
    group.settle()?;
    fs::set_permissions(a.path("closed"), fs::Permissions::from_mode(0o000))?;
    let root = a.root.to_str().context("UTF-8")?;
    a.sync(&["rescan", root])?.success()?;
    b.write("after", "goes on")?;
    a.wait_content("after", "goes on")?;
    a.wait_status("the folder named", |status| {
        let named = |list: &serde_json::Value| {
            list.as_array().is_some_and(|list| {
                list.iter().any(|item| item["path"].as_str().is_some_and(|path| path.starts_with("closed")))
            })
        };
        named(&status["waiting"]) || named(&status["skipped"])
    })?;
    ensure!(b.path("closed/inside").exists(), "what could not be read was taken for deleted");
    ensure!(group.client.exists("/closed/inside")?);
    fs::set_permissions(a.path("closed"), fs::Permissions::from_mode(0o755))?;
    a.sync(&["rescan", root])?.success()?;
    group.settle()?;
    group.finish()?;
    Ok(())
}

fn lose_database(device: &Device) -> Result<usize> {
    let mut lost = 0;
    for entry in fs::read_dir(device.state())? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("state.db")) {
            fs::remove_file(&path)?;
            lost += 1;
        }
    }
    Ok(lost)
}

fn damage_database(device: &Device) -> Result<usize> {
    let mut damaged = 0;
    for entry in fs::read_dir(device.state())? {
        let path = entry?.path();
        let length = fs::metadata(&path)?.len();
        if path.is_file() && length > 4096 {
            let mut bytes = fs::read(&path)?;
            bytes[100..].fill(0xa5);
            fs::write(&path, bytes)?;
            damaged += 1;
        }
    }
    Ok(damaged)
}

#[test]
fn a_lost_or_damaged_database_is_rebuilt_without_a_deletion_a_conflict_or_sending_again() -> Result<()> {
    for (name, harm) in
        [("lost", lose_database as fn(&Device) -> Result<usize>), ("damaged", damage_database)]
    {
        let mut group = Group::running(&format!("database-{name}"), 2)?;
        let shape = chaos::tree::Shape { files: 30, bytes_max: MIB };
        chaos::tree::generate(&group.devices[0].path("tree"), shape, seed("database"))?;
        let before = group.settle()?;
        group.stop()?;
        for device in &group.devices {
            ensure!(harm(device)? > 0, "nothing to harm in {}", device.state().display());
        }
        group.devices[1].write("tree/new", "made while it was lost")?;
        group.start()?;
        let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
        a.wait_content("tree/new", "made while it was lost")?;
        let after = group.settle()?;
        ensure!(after.conflicted().is_empty(), "{name}: {:?}", after.conflicted());
        ensure!(after.paths().len() == before.paths().len() + 1, "{name}: {:?}", before.differences(&after));
        for device in [a, b] {
            let sent = number(&device.wait_up_to_date()?, "/up/bytes_on_wire")?;
            ensure!(sent < 100_000, "{name}: {} sent {sent} bytes", device.name);
        }
        group.finish()?;
    }
    Ok(())
}

#[test]
fn many_deletes_wait_to_be_confirmed() -> Result<()> {
    let mut group = Group::new("guard", 2)?;
    group.devices[0].arguments = ["--deletes-max", "10"].map(Into::into).to_vec();
    group.start()?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    for index in 0..60 {
        a.write(&format!("files/{index}"), format!("file {index}"))?;
    }
    group.settle()?;
    for index in 0..20 {
        fs::remove_file(a.path(&format!("files/{index}")))?;
    }
    a.write("meanwhile", "other things go on")?;
    b.wait_content("meanwhile", "other things go on")?;
    let status = a.wait_status("the deletes to wait", |status| {
        status["deletes_to_confirm"].as_u64().is_some_and(|count| count >= 20)
    })?;
    ensure!(status["waiting_count"].as_u64().is_some_and(|count| count >= 20), "{status:#}");
    ensure!(b.path("files/3").exists() && group.client.exists("/files/3")?, "deleted unasked");
    let root = a.root.to_str().context("UTF-8")?;
    a.sync(&["confirm", root])?.success()?;
    wait_for("the deletes", SETTLE_DEADLINE, || Ok((!b.path("files/3").exists()).then_some(())))?;
    let agreed = group.settle()?;
    ensure!(agreed.paths().len() == 42, "{:?}", agreed.paths());
    // Most of what there is, too, and with --once, which says how to go on.
    group.devices[0].stop()?;
    for index in 20..50 {
        fs::remove_file(group.devices[0].path(&format!("files/{index}")))?;
    }
    group.devices[0].arguments = ["--deletes-max", "100"].map(Into::into).to_vec();
    let refused = group.devices[0].once()?;
    ensure!(refused.code == Some(1), "{refused:?}");
    ensure!(number(&refused.json()?, "/status/deletes_to_confirm")? == 30, "{refused:?}");
    let log = fs::read_to_string(group.devices[0].home().join("log"))?;
    ensure!(log.contains("30 deletes wait: if they are meant"), "not said how to go on");
    ensure!(group.client.exists("/files/20")?, "deleted unasked");
    for device in &mut group.devices {
        device.arguments = ["--deletes-percent-max", "100"].map(Into::into).to_vec();
    }
    group.devices[0].once_agreed()?;
    ensure!(!group.client.exists("/files/20")?, "not deleted");
    group.finish()?;
    Ok(())
}

/// It must refuse, say so, and delete nothing.
fn assert_refused(group: &Group, device: &Device, word: &str) -> Result<()> {
    let output = device.once()?;
    ensure!(output.code == Some(1), "{word}: {output:?}");
    for path in ["/one", "/folder/two"] {
        ensure!(group.client.exists(path)?, "{word}: {path} was deleted");
    }
    Ok(())
}

#[test]
fn a_root_that_is_not_what_it_was_deletes_nothing() -> Result<()> {
    let mut group = Group::running("root", 2)?;
    group.devices[0].write("one", "1")?;
    group.devices[0].write("folder/two", "2")?;
    group.settle()?;
    group.stop()?;
    // Kept outside, so that what happens to the folder does not happen to the state.
    let state = group.devices[0].home().join("state");
    group.devices[0].arguments = vec!["--state".into(), (&state).into()];
    let moved: Vec<_> = fs::read_dir(group.devices[0].state())?.collect::<Result<_, _>>()?;
    fs::create_dir(&state)?;
    for entry in moved {
        if entry.file_name() != "root" {
            fs::rename(entry.path(), state.join(entry.file_name()))?;
        }
    }
    group.devices[0].once_agreed()?;

    let a = &group.devices[0];
    let aside = a.root.with_file_name("aside");
    fs::rename(&a.root, &aside)?;
    assert_refused(&group, a, "a root that is missing")?;
    fs::create_dir(&a.root)?;
    assert_refused(&group, a, "a root that is empty")?;
    if let Some(why) = unavailable() {
        skipped(why)?;
    } else {
        let _other = Mount::tmpfs(MIB, &a.root)?;
        assert_refused(&group, a, "another file system")?;
    }
    fs::remove_dir(&a.root)?;
    fs::rename(&aside, &a.root)?;
    group.devices[0].once_agreed()?;

    // Emptied, but for its marker: the guard.
    let a = &group.devices[0];
    let empty = |path: &Path| -> Result<()> {
        fs::create_dir_all(&aside)?;
        fs::rename(a.path("one"), path.join("one"))?;
        Ok(fs::rename(a.path("folder"), path.join("folder"))?)
    };
    empty(&aside)?;
    assert_refused(&group, a, "everything gone at once")?;
    fs::rename(aside.join("one"), a.path("one"))?;
    fs::rename(aside.join("folder"), a.path("folder"))?;
    group.finish()?;
    Ok(())
}

#[test]
fn an_upload_that_was_broken_off_goes_on() -> Result<()> {
    let (mut group, proxy) = behind_proxy("resume")?;
    let bytes = 24 * MIB;
    write_random(&group.devices[0].path("large"), bytes, seed("resume"))?;
    let mut kills: u64 = 0;
    // Killed after each further third.
    for part in 1..3 {
        let sent = wait_for("a part to be sent", SETTLE_DEADLINE, || {
            let sent = proxy.bytes().0;
            Ok((sent > part * bytes / 3).then_some(sent))
        })?;
        eprintln!("killed after {sent} bytes");
        group.devices[0].kill()?;
        kills += 1;
        group.start()?;
    }
    group.settle()?;
    let (up, _down) = proxy.bytes();
    ensure!(up < bytes + kills * 10 * MIB, "{up} bytes for a file of {bytes}");
    group.finish()?;
    Ok(())
}
