//! What other sync programs are known to get wrong, one test each: real devices, a real cluster. Every test ends with
//! the two assertions: all devices and the server are the same, and nothing that was saved is lost.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos::client::Client;
use chaos::contents::digests;
use chaos::device::{Device, SETTLE_DEADLINE};
use chaos::group::Group;
use chaos::size::{Size, seed};
use chaos::tree::write_random;
use chaos::wait::wait_for;
use rustix::fs::{CWD, RenameFlags, renameat_with};

const KIB: usize = 1 << 10;
const MIB: u64 = 1 << 20;

/// Two devices that agree and run; the first one has the given files.
fn pair(name: &str, files: &[(&str, &str)]) -> Result<Group> {
    let group = Group::running(name, 2)?;
    for (path, text) in files {
        group.devices[0].write(path, text)?;
    }
    group.settle()?;
    Ok(group)
}

/// Two devices that agree and do not run: what is done now is done offline.
fn offline_pair(name: &str, files: &[(&str, &str)]) -> Result<Group> {
    let mut group = pair(name, files)?;
    group.stop()?;
    Ok(group)
}

/// The texts of all files of a device whose path has `part` in it.
fn texts(device: &Device, part: &str) -> Result<Vec<String>> {
    let snapshot = device.snapshot()?;
    let paths = snapshot.paths();
    let mut texts: Vec<String> = paths
        .iter()
        .filter(|path| path.contains(part))
        .filter_map(|path| device.read(path))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect();
    texts.sort();
    Ok(texts)
}

fn assert_paths(group: &Group, expected: &[&str]) -> Result<()> {
    for device in &group.devices {
        let snapshot = device.snapshot()?;
        ensure!(snapshot.paths() == expected, "{} has {:?}, not {expected:?}", device.name, snapshot.paths());
    }
    Ok(())
}

#[test]
fn identical_content_made_on_two_devices_at_once_is_one_file() -> Result<()> {
    let mut group = offline_pair("identical", &[])?;
    for device in &group.devices {
        device.write("same.txt", "the same words")?;
        device.write("folder/also.txt", "the same again")?;
    }
    group.start()?;
    group.settle()?;
    assert_paths(&group, &["folder", "folder/also.txt", "same.txt"])?;
    ensure!(group.versions("/same.txt")?.len() == 1, "it was stored twice");
    group.finish()?;
    Ok(())
}

#[test]
fn a_rename_and_an_edit_at_once_both_happen() -> Result<()> {
    let mut group = offline_pair("rename-edit", &[("old.txt", "first"), ("old2.txt", "second")])?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    fs::rename(a.path("old.txt"), a.path("new.txt"))?;
    b.write("old.txt", "first, edited")?;
    // The other way round as well: whoever comes first.
    fs::rename(b.path("old2.txt"), b.path("new2.txt"))?;
    a.write("old2.txt", "second, edited")?;
    group.start()?;
    group.settle()?;
    assert_paths(&group, &["new.txt", "new2.txt"])?;
    for device in &group.devices {
        ensure!(device.read("new.txt").as_deref() == Some(b"first, edited"), "{}", device.name);
        ensure!(device.read("new2.txt").as_deref() == Some(b"second, edited"), "{}", device.name);
    }
    group.finish()?;
    Ok(())
}

#[test]
fn a_folder_moved_while_its_files_upload_arrives_whole() -> Result<()> {
    let group = pair("moved", &[])?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    let files = 300;
    for index in 0..files {
        let path = a.path("going").join(format!("{index:03}"));
        fs::create_dir_all(a.path("going"))?;
        write_random(&path, 20_000, seed("moved").wrapping_add(index))?;
    }
    wait_for("the first files on the server", SETTLE_DEADLINE, || {
        Ok((group.client.exists("/going")? || b.path("going").exists()).then_some(()))
    })?;
    fs::create_dir(a.path("there"))?;
    fs::rename(a.path("going"), a.path("there/moved"))?;
    let agreed = group.settle()?;
    let count = agreed.paths().iter().filter(|path| path.starts_with("there/moved/")).count();
    ensure!(u64::try_from(count)? == files, "{count} of {files} files");
    ensure!(agreed.paths().len() == count + 2, "left behind: {:?}", agreed.paths());
    group.finish()?;
    Ok(())
}

#[test]
fn an_edit_wins_over_a_delete() -> Result<()> {
    let files = [("x", "x"), ("y", "y"), ("folder/z", "z"), ("folder/gone", "gone")];
    let mut group = offline_pair("delete-edit", &files)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    fs::remove_file(a.path("x"))?;
    b.write("x", "x, edited")?;
    a.write("y", "y, edited")?;
    fs::remove_file(b.path("y"))?;
    fs::remove_dir_all(a.path("folder"))?;
    b.write("folder/z", "z, edited")?;
    group.start()?;
    group.settle()?;
    assert_paths(&group, &["folder", "folder/z", "x", "y"])?;
    for device in &group.devices {
        for (path, text) in [("x", "x, edited"), ("y", "y, edited"), ("folder/z", "z, edited")] {
            ensure!(device.read(path).as_deref() == Some(text.as_bytes()), "{path} on {}", device.name);
        }
    }
    group.finish()?;
    Ok(())
}

#[test]
fn a_folder_replaced_by_a_file_and_back() -> Result<()> {
    let mut group = pair("kinds", &[("thing/inside", "inside"), ("other/inside", "inside too")])?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    fs::remove_dir_all(a.path("thing"))?;
    a.write("thing", "now a file")?;
    b.wait_content("thing", "now a file")?;
    group.settle()?;
    let b = &group.devices[1];
    fs::remove_file(b.path("thing"))?;
    b.write("thing/again", "a folder again")?;
    group.devices[0].wait_content("thing/again", "a folder again")?;
    group.settle()?;

    // While the other one edits what is inside.
    group.stop()?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    fs::remove_dir_all(a.path("other"))?;
    a.write("other", "a file instead")?;
    b.write("other/inside", "inside, edited")?;
    group.start()?;
    group.settle()?;
    for device in &group.devices {
        ensure!(texts(device, "other")? == ["a file instead", "inside, edited"], "{:?}", device.snapshot()?);
    }
    group.finish()?;
    Ok(())
}

#[test]
fn a_rename_by_case_only_is_a_rename() -> Result<()> {
    let group = pair("case", &[("readme.md", "words"), ("folder/x", "x")])?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    fs::rename(a.path("readme.md"), a.path("README.md"))?;
    fs::rename(a.path("folder"), a.path("Folder"))?;
    b.wait_content("README.md", "words")?;
    group.settle()?;
    assert_paths(&group, &["Folder", "Folder/x", "README.md"])?;
    ensure!(group.versions("/README.md")?.len() == 1, "it was sent again");
    group.finish()?;
    Ok(())
}

#[test]
fn two_names_swapped_are_swapped_everywhere() -> Result<()> {
    let files = [("a", "one"), ("b", "two"), ("d/x", "in d"), ("e/y", "in e")];
    let group = pair("swap", &files)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    renameat_with(CWD, a.path("a"), CWD, a.path("b"), RenameFlags::EXCHANGE)?;
    renameat_with(CWD, a.path("d"), CWD, a.path("e"), RenameFlags::EXCHANGE)?;
    b.wait_content("a", "two")?;
    b.wait_content("d/y", "in e")?;
    group.settle()?;
    assert_paths(&group, &["a", "b", "d", "d/y", "e", "e/x"])?;
    ensure!(group.versions("/a")?.len() == 1 && group.versions("/b")?.len() == 1, "sent again");
    group.finish()?;
    Ok(())
}

/// As vim does with `backupcopy=no`: the old one becomes the backup, the new one is written, the backup goes.
fn save_as_vim(device: &Device, path: &str, text: &str) -> Result<()> {
    let (file, backup) = (device.path(path), device.path(&format!("{path}~")));
    fs::rename(&file, &backup)?;
    fs::write(&file, text)?;
    File::open(&file)?.sync_all()?;
    Ok(fs::remove_file(&backup)?)
}

/// As LibreOffice does: a lock beside the file, a temporary file, renamed over the old one.
fn save_as_office(device: &Device, path: &str, text: &str) -> Result<()> {
    let (lock, temporary) = (device.path(&format!(".~lock.{path}#")), device.path("lu1234abcd.tmp"));
    fs::write(&lock, "me")?;
    fs::write(&temporary, text)?;
    fs::rename(&temporary, device.path(path))?;
    Ok(fs::remove_file(&lock)?)
}

#[test]
fn editors_that_save_by_renaming_keep_one_file_with_versions() -> Result<()> {
    let group = pair("editors", &[("vim.txt", "0"), ("office.odt", "0")])?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    let rounds = 5;
    for round in 1..=rounds {
        save_as_vim(a, "vim.txt", &format!("vim {round}"))?;
        save_as_office(a, "office.odt", &format!("office {round}"))?;
        b.wait_content("vim.txt", format!("vim {round}"))?;
        b.wait_content("office.odt", format!("office {round}"))?;
    }
    group.settle()?;
    assert_paths(&group, &["office.odt", "vim.txt"])?;
    for path in ["/vim.txt", "/office.odt"] {
        let versions = group.versions(path)?;
        ensure!(versions.len() == rounds + 1, "{path} has the versions {versions:?}");
    }
    group.finish()?;
    Ok(())
}

#[test]
fn a_file_that_is_always_open_arrives_and_is_not_sent_all_the_time() -> Result<()> {
    let group = pair("database", &[])?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    let file = File::options().create_new(true).read(true).write(true).open(a.path("data.db"))?;
    file.set_len(40 * 4096)?;
    let (began, writes_last) = (Instant::now(), Duration::from_secs(5));
    let mut count: u64 = 0;
    while began.elapsed() < writes_last {
        let page = vec![u8::try_from(count % 251)?; 4096];
        file.write_all_at(&page, (count % 40) * 4096)?;
        count += 1;
        std::thread::sleep(Duration::from_millis(30));
    }
    file.sync_all()?;
    // It stays open, and arrives all the same.
    let last = fs::read(a.path("data.db"))?;
    b.wait_content("data.db", &last)?;
    group.settle()?;
    let versions = group.versions("/data.db")?.len();
    ensure!(versions <= 5, "{versions} versions of a file that changed for {writes_last:?}");
    drop(file);
    group.finish()?;
    Ok(())
}

#[test]
fn a_file_that_shrinks_while_it_is_read_arrives_as_it_is_in_the_end() -> Result<()> {
    let group = pair("shrinks", &[])?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    let path = a.path("shrinking");
    write_random(&path, 12 * MIB, seed("shrinks"))?;
    let file = File::options().write(true).open(&path)?;
    for mib in (1..12).rev() {
        std::thread::sleep(Duration::from_millis(60));
        file.set_len(mib * MIB + 17)?;
    }
    drop(file);
    let last = fs::read(&path)?;
    b.wait_content("shrinking", &last)?;
    group.settle()?;
    group.finish()?;
    Ok(())
}

#[test]
fn files_whose_times_jump_are_noticed() -> Result<()> {
    let mut group = pair("clock", &[("past", "1"), ("future", "1"), ("same", "1111")])?;
    let set_time = |device: &Device, path: &str, seconds: u64| -> Result<()> {
        let file = File::options().write(true).open(device.path(path))?;
        Ok(file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds))?)
    };
    let before = fs::metadata(group.devices[0].path("same"))?.modified()?;
    for live in [true, false] {
        if !live {
            group.stop()?;
        }
        let [a, _b] = &group.devices[..] else { anyhow::bail!("two devices") };
        let round = if live { "2" } else { "3" };
        a.write("past", round)?;
        set_time(a, "past", 1_000)?;
        a.write("future", round)?;
        set_time(a, "future", 4_102_444_800)?;
        // The same size and time as before, with other bytes.
        a.write("same", round.repeat(4))?;
        File::options().write(true).open(a.path("same"))?.set_modified(before)?;
        group.start()?;
        let b = &group.devices[1];
        b.wait_content("past", round)?;
        b.wait_content("future", round)?;
        b.wait_content("same", round.repeat(4))?;
        group.settle()?;
    }
    group.finish()?;
    Ok(())
}

#[test]
fn ten_thousand_renames_in_a_loop_end_where_they_end() -> Result<()> {
    let group = pair("renames", &[("0", "round and round"), ("folder/f", "inside")])?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    let mut at = a.path("0");
    for index in 1..=10_000 {
        let next = a.path(&format!("{}", index % 7));
        if next != at {
            fs::rename(&at, &next)?;
            at = next;
        }
        if index % 50 == 0 {
            let (from, to) = if index % 100 == 0 { ("goes", "folder") } else { ("folder", "goes") };
            fs::rename(a.path(from), a.path(to))?;
        }
    }
    let last = at.file_name().context("no name")?.to_string_lossy().into_owned();
    b.wait_content(&last, "round and round")?;
    group.settle()?;
    assert_paths(&group, &[&last, "folder", "folder/f"])?;
    ensure!(group.versions(&format!("/{last}"))?.len() == 1, "it was sent again");
    group.finish()?;
    Ok(())
}

fn git(device: &Device, arguments: &[&str]) -> Result<String> {
    let identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0"];
    let output = Command::new("git")
        .arg("-C")
        .arg(device.path("repo"))
        .args(identity)
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()
        .context("run git")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "git {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

#[test]
fn a_git_checkout_that_switches_branches_arrives_whole() -> Result<()> {
    let group = pair("git", &[])?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    let files = Size::chosen().pick(60, 400, 400);
    fs::create_dir(a.path("repo"))?;
    git(a, &["init", "-q", "-b", "one"])?;
    for index in 0..files {
        a.write(&format!("repo/src/{}/file-{index}", index % 9), format!("one {index}\n").repeat(40))?;
    }
    git(a, &["add", "."])?;
    git(a, &["commit", "-q", "-m", "one"])?;
    git(a, &["checkout", "-q", "-b", "two"])?;
    for index in 0..files / 2 {
        a.write(&format!("repo/src/{}/file-{index}", index % 9), format!("two {index}\n").repeat(30))?;
    }
    fs::remove_dir_all(a.path("repo/src/8"))?;
    a.write("repo/new/file", "only in two")?;
    git(a, &["add", "-A", "."])?;
    git(a, &["commit", "-q", "-m", "two"])?;
    for _ in 0..3 {
        for branch in ["one", "two"] {
            git(a, &["checkout", "-q", branch])?;
            std::thread::sleep(Duration::from_millis(150));
        }
    }
    git(a, &["checkout", "-q", "one"])?;
    group.settle()?;
    for device in [a, b] {
        git(device, &["fsck", "--strict"])?;
        let status = git(device, &["status", "--porcelain"])?;
        ensure!(status.is_empty(), "git status on {}: {status}", device.name);
        ensure!(git(device, &["branch", "--show-current"])?.trim() == "one");
    }
    let agreed = group.finish()?;
    ensure!(agreed.conflicted().is_empty(), "{:?}", agreed.conflicted());
    Ok(())
}

#[test]
fn two_edits_of_one_file_end_as_two_files_whichever_comes_first() -> Result<()> {
    for first in [0, 1] {
        let mut group = offline_pair(&format!("edits-{first}"), &[("deep/plan.tar.gz", "base")])?;
        group.devices[0].write("deep/plan.tar.gz", "by a")?;
        group.devices[1].write("deep/plan.tar.gz", "by b")?;
        group.devices[first].start()?;
        group.devices[first].wait_up_to_date()?;
        group.start()?;
        let agreed = group.settle()?;
        let conflicted = agreed.conflicted();
        let [copy] = conflicted[..] else { anyhow::bail!("not one conflicted copy: {:?}", agreed.paths()) };
        ensure!(copy.starts_with("deep/plan ("), "{copy}");
        ensure!(copy.contains("'s conflicted copy 20") && copy.ends_with(").tar.gz"), "{copy}");
        let winner = ["by a", "by b"][first];
        for device in &group.devices {
            ensure!(texts(device, "plan")? == ["by a", "by b"], "{:?}", texts(device, "plan")?);
            ensure!(device.read("deep/plan.tar.gz").as_deref() == Some(winner.as_bytes()));
        }
        group.finish()?;
    }
    Ok(())
}

#[test]
fn moves_that_would_make_a_circle_end_the_same_everywhere() -> Result<()> {
    let files = [("one/x", "x"), ("two/y", "y"), ("three/z", "z")];
    let mut group = offline_pair("circle", &files)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    fs::rename(a.path("one"), a.path("two/one"))?;
    fs::rename(b.path("two"), b.path("one/two"))?;
    // And two onto one name.
    fs::rename(a.path("three/z"), a.path("same"))?;
    b.write("three/w", "w")?;
    fs::rename(b.path("three/w"), b.path("same"))?;
    group.start()?;
    let agreed = group.settle()?;
    for device in &group.devices {
        ensure!(texts(device, "/x")? == ["x"] && texts(device, "/y")? == ["y"], "{:?}", agreed.paths());
        ensure!(texts(device, "same")? == ["w", "z"], "{:?}", agreed.paths());
    }
    group.finish()?;
    Ok(())
}

#[test]
fn a_tree_with_every_oddity_arrives_whole() -> Result<()> {
    let group = Group::running("oddities", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    let shape = chaos::tree::Shape { files: 60, bytes_max: MIB };
    chaos::tree::generate(&a.path("tree"), shape, seed("oddities"))?;
    let agreed = group.settle()?;
    ensure!(agreed.paths().len() > 100, "{}", agreed.paths().len());
    // Something that is neither file, folder nor symlink is left alone, and said.
    let _socket = std::os::unix::net::UnixListener::bind(a.path("socket"))?;
    a.write("beside", "the socket")?;
    b.wait_content("beside", "the socket")?;
    let status = a.wait_status("the socket named", |status| {
        status["skipped"].as_array().is_some_and(|list| list.iter().any(|item| item["path"] == "socket"))
    })?;
    ensure!(status["phase"] == "up-to-date", "{status:#}");
    fs::remove_file(a.path("socket"))?;
    group.finish()?;
    Ok(())
}

#[test]
fn content_that_is_on_the_device_already_is_not_fetched_again() -> Result<()> {
    let group = pair("local-chunks", &[])?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    write_random(&a.path("large"), 8 * MIB, seed("local-chunks"))?;
    group.settle()?;
    let wire = |device: &Device, way: &str| -> Result<u64> {
        let status = device.wait_up_to_date()?;
        chaos::group::number(&status, &format!("/{way}/bytes_on_wire"))
    };
    let before = (wire(a, "up")?, wire(b, "down")?);
    // One MiB in the middle, and a copy of it all.
    let mut bytes = fs::read(a.path("large"))?;
    bytes[4 << 20..][..64 * KIB].fill(7);
    fs::write(a.path("large"), &bytes)?;
    b.wait_content("large", &bytes)?;
    fs::copy(a.path("large"), a.path("copy"))?;
    b.wait_content("copy", &bytes)?;
    group.settle()?;
    let after = (wire(a, "up")?, wire(b, "down")?);
    ensure!(after.0 - before.0 < 2 * MIB, "{} bytes went up", after.0 - before.0);
    ensure!(after.1 - before.1 < 2 * MIB, "{} bytes came down", after.1 - before.1);
    group.finish()?;
    Ok(())
}

#[test]
fn what_is_put_and_removed_on_the_server_comes_and_goes() -> Result<()> {
    let group = pair("server", &[("mine", "mine")])?;
    let client: &Client = &group.client;
    let source = group.devices[0].home().join("put");
    fs::write(&source, "from elsewhere")?;
    client.ok(&["mkdir", "-p", "/deep/er"])?;
    client.put(&[&source], "/deep/er/put")?;
    group.devices[0].wait_content("deep/er/put", "from elsewhere")?;
    client.ok(&["mv", "/deep/er", "/moved"])?;
    group.devices[1].wait_content("moved/put", "from elsewhere")?;
    client.ok(&["rm", "/mine"])?;
    client.ok(&["rm", "-r", "/moved"])?;
    wait_for(
        "the removal",
        SETTLE_DEADLINE,
        || Ok((!group.devices[0].path("moved").exists()).then_some(())),
    )?;
    group.settle()?;
    // Back from the trash, as a folder with what is in it.
    let trash = client.json(&["trash", "ls"])?;
    let items = trash["items"].as_array().context("no items")?;
    let item =
        items.iter().find(|item| item["name"] == "moved" || item["path"] == "/moved").context("no item")?;
    client.ok(&["trash", "restore", &item["trash_id"].to_string(), "--to", "/back"])?;
    group.devices[1].wait_content("back/put", "from elsewhere")?;
    let agreed = group.settle()?;
    ensure!(agreed.paths() == ["back", "back/put", "deep"], "{:?}", agreed.paths());
    group.finish()?;
    Ok(())
}

#[test]
fn many_small_files_at_once_are_all_there() -> Result<()> {
    let group = Group::running("many", 2)?;
    let files = Size::chosen().pick(600_usize, 10_000, 10_000);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let a = &group.devices[0];
        let maker = scope.spawn(move || -> Result<()> {
            for index in 0..files {
                a.write(&format!("many/{}/{index}", index % 40), format!("file {index}").repeat(index % 60))?;
            }
            Ok(())
        });
        // Meanwhile somebody else works in the same folder.
        let b = &group.devices[1];
        let other = scope.spawn(|| -> Result<()> {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                b.write(&format!("many/0/other-{count}"), format!("other {count}"))?;
                count += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        let made = maker.join().map_err(|panic| anyhow::anyhow!("{panic:?}"))?;
        stop.store(true, Ordering::Relaxed);
        other.join().map_err(|panic| anyhow::anyhow!("{panic:?}"))??;
        made
    })?;
    let agreed = group.settle()?;
    ensure!(digests(&agreed).len() >= files - files / 60, "{}", digests(&agreed).len());
    group.finish()?;
    Ok(())
}
