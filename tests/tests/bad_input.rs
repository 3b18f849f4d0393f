//! Bad input and bad surroundings: each a clear message and the right exit code, nothing lost, nothing half-written
//! under its final name.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::client::{Client, Output};
use chaos::cluster::{Cluster, Options};
use chaos::compare::assert_same;
use chaos::disk::{Mount, unavailable};
use chaos::serial::serial;
use chaos::size::seed;
use chaos::skip::skipped;
use chaos::tree;
use chaos::wait::wait_for;

const MIB: u64 = 1 << 20;

/// The command failed as it should: with exit code 1, one of `words` in its message, and no panic.
fn refused(output: &Output, words: &[&str]) -> Result<()> {
    ensure!(output.code == Some(1), "exit code: {output:?}");
    clear(output, words)
}

fn clear(output: &Output, words: &[&str]) -> Result<()> {
    let message = output.stderr.to_lowercase();
    ensure!(words.iter().any(|word| message.contains(word)), "says none of {words:?}: {output:?}");
    ensure!(!message.contains("panicked") && !message.contains("backtrace"), "{output:?}");
    Ok(())
}

#[test]
fn bad_requests_are_refused_clearly() -> Result<()> {
    let _serial = serial();
    let mut cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("bad")?;
    let file = scratch.join("file");
    tree::write_random(&file, 100_000, seed("bad_input"))?;
    client.put(&[&file], "/file")?;

    wrong_token(&client, &scratch)?;
    unknown_paths(&client, &file, &scratch)?;
    bad_names(&client, &file)?;
    existing_targets(&client, &file, &scratch)?;
    ensure!(client.cat("/file")? == fs::read(&file)?, "the file that was there suffered");

    cluster.kill(("gateway", 0))?;
    let output = client.run(&["ls", "/"])?;
    refused(&output, &["running"])?;
    ensure!(output.stderr.contains("127.0.0.1:"), "which gateway? {}", output.stderr);
    ensure!(output.elapsed < Duration::from_secs(30), "took {:?} to say so", output.elapsed);
    let back = scratch.join("no-gateway");
    let get = client.run(&["get".as_ref(), "/file".as_ref(), back.as_os_str()])?;
    refused(&get, &["running"])?;
    ensure!(!back.exists(), "a get without a gateway made a file");
    cluster.start_role(("gateway", 0))?;
    ensure!(client.cat("/file")? == fs::read(&file)?);
    cluster.finish()
}

fn wrong_token(client: &Client, scratch: &Path) -> Result<()> {
    let text = fs::read_to_string(client.profile())?;
    let good =
        text.lines().find_map(|line| line.strip_prefix("token = ")).context("no token in the profile")?;
    let good = good.trim_matches('"');
    // The same length and letters, but another token.
    let mut bad: Vec<char> = good.chars().collect();
    bad.reverse();
    let bad: String = bad.into_iter().collect();
    // Beside the good one: the CA's path may be relative to it.
    let profile = client.profile().with_file_name("wrong-token.toml");
    fs::write(&profile, text.replace(good, &bad))?;
    let stranger = Client::new(&profile)?;
    refused(&stranger.run(&["ls", "/"])?, &["token", "sign in", "login"])?;
    let target = scratch.join("stolen");
    refused(
        &stranger.run(&["get".as_ref(), "/file".as_ref(), target.as_os_str()])?,
        &["token", "sign in", "login"],
    )?;
    ensure!(!target.exists());
    fs::remove_file(&profile)?;
    refused(&stranger.run(&["ls", "/"])?, &["profile", "no such file", "login"])
}

fn unknown_paths(client: &Client, file: &Path, scratch: &Path) -> Result<()> {
    const NOT_THERE: [&str; 4] = ["no such", "not found", "does not exist", "there is no"];
    let target = scratch.join("nothing");
    refused(&client.run(&["get".as_ref(), "/no/such".as_ref(), target.as_os_str()])?, &NOT_THERE)?;
    ensure!(!target.exists());
    for arguments in [
        &["cat", "/no-such"][..],
        &["ls", "/no-such"],
        &["stat", "/no-such"],
        &["rm", "/no-such"],
        &["mv", "/no-such", "/other"],
        &["cp", "/no-such", "/other"],
        &["history", "/no-such"],
        &["mkdir", "/no/parent"],
        &["restore", "/file", "--version", "999999"],
    ] {
        refused(&client.run(arguments)?, &NOT_THERE).with_context(|| format!("{arguments:?}"))?;
    }
    refused(&client.run(&["put", "/no/such/local/file", "/x"])?, &NOT_THERE)?;
    ensure!(!client.exists("/x")?);
    // A file is no folder.
    refused(
        &client.run(&["put".as_ref(), file.as_os_str(), "/file/below".as_ref()])?,
        &["folder", "directory"],
    )
}

fn bad_names(client: &Client, file: &Path) -> Result<()> {
    let long = format!("/{}", "x".repeat(300));
    for name in ["/..", "/a/../b", "/.", "/a/./b", "relative", long.as_str()] {
        for output in [
            client.run(&["put".as_ref(), file.as_os_str(), name.as_ref()])?,
            client.run(&["mkdir", name])?,
            client.run(&["mv", "/file", name])?,
        ] {
            ensure!(matches!(output.code, Some(1 | 2)), "{name}: {output:?}");
            clear(&output, &["name", "path"]).with_context(|| name.to_owned())?;
        }
    }
    ensure!(client.exists("/file")?);
    Ok(())
}

fn existing_targets(client: &Client, file: &Path, scratch: &Path) -> Result<()> {
    let local = scratch.join("mine");
    fs::write(&local, b"mine")?;
    let get = |more: &[&str]| {
        let mut arguments = vec!["get".as_ref(), "/file".as_ref(), local.as_os_str()];
        arguments.extend(more.iter().map(std::ffi::OsStr::new));
        client.run(&arguments)
    };
    refused(&get(&[])?, &["exist", "overwrite"])?;
    ensure!(fs::read(&local)? == b"mine", "a get replaced a local file");
    get(&["--overwrite"])?.success()?;
    assert_same(file, &local)?;
    client.ok(&["mkdir", "/folder"])?;
    client.ok(&["cp", "/file", "/folder/file"])?;
    refused(&client.run(&["rm", "/folder"])?, &["empty", "-r"])?;
    ensure!(client.exists("/folder/file")?);
    no_leftovers(scratch)
}

/// No temporary file stayed behind.
fn no_leftovers(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        ensure!(!name.to_string_lossy().starts_with('.'), "left behind: {}", name.display());
    }
    Ok(())
}

#[test]
fn a_file_that_grows_or_vanishes_while_it_is_put_is_reported() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("moving")?;

    let growing = scratch.join("growing");
    tree::write_random(&growing, 64 * MIB, seed("growing"))?;
    let stop = AtomicBool::new(false);
    let output = std::thread::scope(|scope| -> Result<Output> {
        let writer = scope.spawn(|| -> Result<()> {
            let mut file = fs::File::options().append(true).open(&growing)?;
            while !stop.load(Ordering::Relaxed) {
                file.write_all(&[7; 1000])?;
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        let output = client.run(&["put".as_ref(), growing.as_os_str(), "/growing".as_ref()]);
        stop.store(true, Ordering::Relaxed);
        writer.join().map_err(|panic| anyhow::anyhow!("{panic:?}"))??;
        output
    })?;
    refused(&output, &["changed"])?;
    ensure!(output.stderr.contains("growing"), "which file? {}", output.stderr);
    ensure!(!client.exists("/growing")?, "half a file is there");

    // A folder of which a part vanishes: what is left out is reported, what is stored is whole.
    let folder = scratch.join("folder");
    fs::create_dir(&folder)?;
    tree::write_random(&folder.join("a-large"), 96 * MIB, seed("vanishing"))?;
    for index in 0..400 {
        tree::write_random(&folder.join(format!("z-{index:03}")), 3000 + index, index)?;
    }
    let copy = scratch.join("copy");
    ensure!(std::process::Command::new("cp").arg("-a").args([&folder, &copy]).status()?.success());
    let running =
        client.start(&["put".as_ref(), "--json".as_ref(), folder.as_os_str(), "/folder".as_ref()])?;
    wait_for("the folder to be begun", Duration::from_secs(20), || {
        Ok(client.exists("/folder")?.then_some(()))
    })?;
    for index in 0..400 {
        fs::remove_file(folder.join(format!("z-{index:03}")))?;
    }
    let output = running.wait()?;
    let report = output.json()?;
    let failed = report["failed"].as_array().map_or(0, Vec::len);
    ensure!(output.code == Some(i32::from(failed > 0)), "{failed} failed: {output:?}");
    client.get("/folder", &scratch.join("back"))?;
    let mut stored = 0;
    for entry in fs::read_dir(scratch.join("back"))? {
        let name = entry?.file_name();
        assert_same(&copy.join(&name), &scratch.join("back").join(&name))?;
        stored += 1;
    }
    ensure!(report["files"] == stored, "{stored} stored: {}", report["files"]);
    cluster.finish()
}

#[test]
fn a_full_disk_refuses_writes_and_serves_reads() -> Result<()> {
    if let Some(why) = unavailable() {
        return skipped(&format!("small disks need root ({why})"));
    }
    let _serial = serial();
    let directory = tempfile::tempdir()?;
    let mut mounts = Vec::new();
    let options = Options { directory: Some(directory.path().join("cluster")), ..Options::default() };
    let mut cluster = Cluster::start(&options)?;
    let client = cluster.client()?;
    let scratch = tempfile::tempdir()?;
    cluster.stop()?;
    for node in [0, 3] {
        let data_dir = cluster.roles("storage")[node].data_dir.clone().context("no data_dir")?;
        mounts.push(Mount::under(&data_dir, |point| Mount::tmpfs(64 * MIB, point))?);
    }
    cluster.restart()?;

    let file = scratch.path().join("file");
    let mut stored = 0;
    let refusal = loop {
        tree::write_random(&file, 24 * MIB, stored)?;
        let target = format!("/file-{stored}");
        let output = client.run(&["put".as_ref(), file.as_os_str(), target.as_ref()])?;
        if output.code != Some(0) {
            ensure!(!client.exists(&target)?, "a refused file is there");
            break output;
        }
        stored += 1;
        ensure!(stored < 40, "two of six disks hold 64 MiB each, and {stored} files of 24 MiB were stored");
    };
    refused(&refusal, &["space", "full", "disk"])?;
    ensure!(stored >= 3, "only {stored} files of 24 MiB before two disks of 64 MiB were full");
    for index in 0..stored {
        tree::write_random(&file, 24 * MIB, index)?;
        let back = scratch.path().join("back");
        client.get(&format!("/file-{index}"), &back)?;
        ensure!(fs::read(&file)? == fs::read(&back)?, "/file-{index} is wrong");
        fs::remove_file(back)?;
    }
    let status = client.status()?;
    ensure!(status.health == "degraded", "{status:?}");
    ensure!(status.disks.iter().filter(|disk| disk.state == "full").count() == 2, "{:?}", status.disks);
    // Metadata goes on, and the cluster starts with full disks.
    client.ok(&["mkdir", "/still-works"])?;
    client.ok(&["rm", "/file-0"])?;
    cluster.stop()?;
    cluster.restart()?;
    client.get("/file-1", &scratch.path().join("after"))?;
    cluster.finish()?;
    drop(mounts);
    Ok(())
}
