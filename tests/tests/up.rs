//! `keepstone up` as scripts rely on it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::client::{Running, binary};
use chaos::cluster::{Cluster, Options};
use chaos::compare::assert_same;
use chaos::serial::serial;
use chaos::size::seed;
use chaos::tree::{self, Shape};

const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_later_start_finds_everything_as_it_was() -> Result<()> {
    let _serial = serial();
    let mut cluster = Cluster::start(&Options::with(&["--data-groups", "3"]))?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("up")?;
    let made = scratch.join("made");
    tree::generate(&made, Shape { files: 20, bytes_max: 1 << 20 }, seed("up"))?;
    client.put(&[&made], "/tree")?;
    let profile = fs::read_to_string(client.profile())?;
    let endpoint = cluster.endpoint.clone();
    let before = client.json(&["whoami"])?;
    cluster.stop()?;

    let ready_after = cluster.restart()?;
    ensure!(ready_after < Duration::from_secs(5), "ready after {ready_after:?}");
    ensure!(cluster.endpoint == endpoint, "{endpoint} became {}", cluster.endpoint);
    ensure!(fs::read_to_string(client.profile())? == profile, "the profile changed");
    ensure!(client.json(&["whoami"])? == before);
    ensure!(client.json(&["admin", "status"])?["data_groups"] == 3);
    client.get("/tree", &scratch.join("back"))?;
    assert_same(&made, &scratch.join("back"))?;
    cluster.finish()
}

#[test]
fn what_it_writes_is_as_promised() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let mode = |name: &str| -> Result<u32> {
        Ok(fs::metadata(cluster.directory().join(name))?.permissions().mode() & 0o777)
    };
    ensure!(mode("profile.toml")? == 0o600, "profile.toml is {:o}", mode("profile.toml")?);
    let profile = fs::read_to_string(cluster.directory().join("profile.toml"))?;
    for key in ["endpoint", "ca", "token", "account", "device"] {
        ensure!(profile.lines().any(|line| line.starts_with(&format!("{key} = "))), "no {key}: {profile}");
    }
    ensure!(
        cluster.endpoint.contains("127.0.0.1:") && !cluster.endpoint.ends_with(":0"),
        "{}",
        cluster.endpoint
    );
    for (kind, count) in [("meta", 3), ("storage", 6), ("gateway", 1)] {
        ensure!(cluster.roles(kind).len() == count, "{} of {kind}", cluster.roles(kind).len());
    }
    for (role, process) in cluster.processes() {
        let command_line = fs::read(format!("/proc/{}/cmdline", process.pid))?;
        let expected: Vec<u8> = role.argv.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
        ensure!(
            command_line == expected,
            "{:?} runs as {:?}",
            role.argv,
            String::from_utf8_lossy(&command_line)
        );
    }
    private_keys_are_private(&cluster)?;
    // The other roles do not take the gateway's clients.
    let status = cluster.client()?.status()?;
    ensure!(status.health == "ok", "{status:?}");
    cluster.finish()
}

fn private_keys_are_private(cluster: &Cluster) -> Result<()> {
    let mut folders = vec![cluster.directory().to_owned()];
    let mut keys = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().contains("key") {
                let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
                ensure!(mode & 0o077 == 0, "{} is {mode:o}", path.display());
                keys += 1;
            }
        }
    }
    ensure!(keys > 0, "no keys found");
    Ok(())
}

#[test]
fn two_on_one_directory_are_refused() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let data = cluster.directory().as_os_str().to_owned();
    let second =
        Running::start(&binary()?, None, &["up".into(), "--data".into(), data], None, COMMAND_DEADLINE)?;
    let output = second.wait()?;
    ensure!(output.code == Some(1), "{output:?}");
    ensure!(
        output.stderr.contains(&*cluster.directory().to_string_lossy()),
        "which directory? {}",
        output.stderr
    );
    ensure!(cluster.client()?.status()?.health == "ok", "the first one suffered");
    cluster.finish()
}

#[test]
fn children_end_with_their_parent() -> Result<()> {
    let _serial = serial();
    let mut cluster = Cluster::start(&Options::default())?;
    let children: Vec<_> = cluster.processes().into_iter().map(|(_, process)| process).collect();
    cluster.kill_parent_only()?;
    for child in children {
        child.wait_gone().context("a role outlived its parent")?;
    }
    cluster.kill_all()?;
    cluster.restart()?;
    cluster.finish()
}

#[test]
fn one_process_serves_everything_and_ends_cleanly() -> Result<()> {
    let _serial = serial();
    let mut cluster = Cluster::start_in_one_process()?;
    let client = cluster.client()?;
    let file = cluster.scratch("one")?.join("file");
    tree::write_random(&file, 5 << 20, seed("one-process"))?;
    client.put(&[&file], "/file")?;
    ensure!(client.cat("/file")? == fs::read(&file)?);
    cluster.stop()?;
    cluster.restart()?;
    ensure!(client.cat("/file")? == fs::read(&file)?);
    cluster.finish()
}

#[test]
fn usage_errors_exit_with_two() -> Result<()> {
    for arguments in
        [&["no-such-command"][..], &["put"], &["up", "--code", "nonsense"], &["ls", "--no-such-flag"]]
    {
        let output = Command::new(binary()?).args(arguments).output()?;
        ensure!(output.status.code() == Some(2), "{arguments:?}: {output:?}");
        ensure!(!output.stderr.is_empty(), "{arguments:?} says nothing");
    }
    let help = Command::new(binary()?).arg("--help").output()?;
    ensure!(help.status.success() && !help.stdout.is_empty());
    Ok(())
}
