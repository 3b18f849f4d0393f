//! The file and account commands as scripts use them: versions, moves, copies, trash, quota, devices, settings.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use chaos::client::{Client, Output};
use chaos::cluster::{Cluster, Options};
use chaos::serial::serial;

fn refused(output: &Output, word: &str) -> Result<()> {
    ensure!(output.code == Some(1) && output.stderr.contains(word), "no {word:?}: {output:?}");
    Ok(())
}

#[test]
fn the_commands_do_what_they_say() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::with(&["--data-groups", "3"]))?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("commands")?;
    versions_come_back(&client, &scratch)?;
    moves_and_copies(&client, &scratch)?;
    trash_gives_back_and_purges(&client, &scratch)?;
    quotas_hold(&cluster, &scratch)?;
    devices_are_revoked(&cluster)?;
    settings_are_kept(&client)?;
    ensure!(client.ok(&["completions", "bash"])?.stdout.contains("keepstone"));
    cluster.finish()
}

fn put_text(client: &Client, scratch: &Path, text: &str, remote: &str) -> Result<()> {
    let local = scratch.join("text");
    fs::write(&local, text)?;
    client.put(&[&local], remote)?;
    Ok(())
}

fn versions_come_back(client: &Client, scratch: &Path) -> Result<()> {
    for text in ["one", "two", "three"] {
        put_text(client, scratch, text, "/versions")?;
    }
    let history = client.json(&["history", "/versions"])?;
    let versions = history["versions"].as_array().context("no versions")?.clone();
    ensure!(versions.len() == 3 && versions[0]["current"] == true, "{history}");
    let first = versions[2]["version"].to_string();
    client.ok(&["restore", "/versions", "--version", &first])?;
    ensure!(client.cat("/versions")? == b"one");
    ensure!(client.json(&["history", "/versions"])?["versions"].as_array().map(Vec::len) == Some(4));
    let second = versions[1]["version"].to_string();
    ensure!(client.ok(&["cat", "/versions", "--version", &second])?.stdout == "two");
    Ok(())
}

fn moves_and_copies(client: &Client, scratch: &Path) -> Result<()> {
    client.ok(&["mkdir", "-p", "/a/b/c"])?;
    put_text(client, scratch, "moved", "/a/b/c/file")?;
    put_text(client, scratch, "there", "/there")?;
    refused(&client.run(&["mkdir", "/a"])?, "already")?;
    client.ok(&["mkdir", "-p", "/a/b"])?;
    // Into itself, and onto something.
    ensure!(client.run(&["mv", "/a", "/a/b/c"])?.code == Some(1), "a folder moved into itself");
    refused(&client.run(&["mv", "/a/b/c/file", "/there"])?, "already")?;
    ensure!(client.cat("/there")? == b"there");
    client.ok(&["mv", "--replace", "/a/b/c/file", "/there"])?;
    ensure!(client.cat("/there")? == b"moved" && !client.exists("/a/b/c/file")?);

    put_text(client, scratch, "copied", "/a/b/c/file")?;
    client.ok(&["cp", "/a", "/copy"])?;
    client.ok(&["mv", "/a", "/elsewhere"])?;
    ensure!(client.cat("/copy/b/c/file")? == b"copied");
    ensure!(client.cat("/elsewhere/b/c/file")? == b"copied");
    // A copy is a file of its own.
    put_text(client, scratch, "changed", "/copy/b/c/file")?;
    ensure!(client.cat("/elsewhere/b/c/file")? == b"copied");
    let listed = client.json(&["ls", "-R", "/copy"])?;
    ensure!(listed["entries"].as_array().map(Vec::len) == Some(3), "{listed}");
    let long = client.ok(&["ls", "-l", "/copy/b/c"])?.stdout;
    ensure!(long.contains("rw") && long.contains("file"), "{long}");
    Ok(())
}

fn trash_gives_back_and_purges(client: &Client, scratch: &Path) -> Result<()> {
    let used = |client: &Client| -> Result<u64> {
        client.json(&["whoami"])?["used_bytes"].as_u64().context("no used_bytes")
    };
    client.ok(&["mkdir", "-p", "/bin/below"])?;
    put_text(client, scratch, &"x".repeat(5000), "/bin/below/file")?;
    let before = used(client)?;
    refused(&client.run(&["rm", "/bin"])?, "-r")?;
    client.ok(&["rm", "-r", "/bin"])?;
    ensure!(!client.exists("/bin")?);
    ensure!(used(client)? == before, "what is in the trash no longer counts");
    let find = |client: &Client| -> Result<String> {
        let trash = client.json(&["trash", "ls"])?;
        let items = trash["items"].as_array().context("no items")?;
        let item = items.iter().find(|item| item["path"] == "/bin").context("not in the trash")?;
        Ok(item["trash_id"].to_string())
    };
    // A name can be deleted twice.
    put_text(client, scratch, "another", "/bin")?;
    let folder = find(client)?;
    refused(&client.run(&["trash", "restore", &folder])?, "already")?;
    client.ok(&["rm", "/bin"])?;
    client.ok(&["trash", "restore", &folder])?;
    ensure!(client.cat("/bin/below/file")?.len() == 5000);
    client.ok(&["rm", "-r", "/bin"])?;
    let purged = client.json(&["trash", "purge", "--all"])?;
    ensure!(purged["bytes"].as_u64() >= Some(5000), "{purged}");
    ensure!(client.json(&["trash", "ls"])?["items"].as_array().map(Vec::len) == Some(0));
    ensure!(used(client)? <= before - 5000, "a purge gives nothing back");
    Ok(())
}

fn quotas_hold(cluster: &Cluster, scratch: &Path) -> Result<()> {
    let admin = cluster.client()?;
    let password = "a long enough password\n";
    let create = ["admin", "account", "create", "small@example.org", "--quota", "100K", "--password-stdin"];
    admin.run_with_input(&create, password)?.success()?;
    refused(&admin.run_with_input(&create, password)?, "small@example.org")?;
    let profile = scratch.join("small.toml");
    cluster.sign_in("small@example.org", password, &profile)?.success()?;
    let wrong = cluster.sign_in("small@example.org", "another password\n", &scratch.join("wrong.toml"))?;
    ensure!(wrong.code == Some(1) && !scratch.join("wrong.toml").exists(), "{wrong:?}");
    let small = Client::new(&profile)?;
    put_text(&small, scratch, &"y".repeat(60_000), "/first")?;
    let large = scratch.join("large");
    fs::write(&large, "z".repeat(60_000))?;
    refused(&small.run(&["put".as_ref(), large.as_os_str(), "/second".as_ref()])?, "do not fit")?;
    ensure!(!small.exists("/second")?);
    // Accounts do not administer.
    ensure!(small.run(&["admin", "status"])?.code == Some(1), "anybody sees the cluster's state");
    Ok(())
}

fn devices_are_revoked(cluster: &Cluster) -> Result<()> {
    let first = cluster.account("devices@example.org")?;
    let devices = first.json(&["devices", "ls"])?;
    let device = first.json(&["whoami"])?["device"].as_str().context("no device")?.to_owned();
    ensure!(devices.to_string().contains(&device), "{devices}");
    first.ok(&["devices", "revoke", &device])?;
    let output = first.run(&["ls", "/"])?;
    ensure!(output.code == Some(1), "a revoked device is let in: {output:?}");
    Ok(())
}

fn settings_are_kept(client: &Client) -> Result<()> {
    let settings = client.json(&["admin", "settings", "ls"])?;
    ensure!(settings.to_string().contains("reclaim-delay"), "{settings}");
    client.ok(&["admin", "settings", "set", "reclaim-delay", "7d"])?;
    let shown = client.ok(&["admin", "settings", "get", "reclaim-delay"])?.stdout;
    ensure!(shown.contains("7d") || shown.contains("7days"), "{shown}");
    ensure!(client.run(&["admin", "settings", "set", "reclaim-delay", "soon"])?.code == Some(1));
    ensure!(client.run(&["admin", "settings", "set", "no-such-setting", "1"])?.code == Some(1));
    Ok(())
}
