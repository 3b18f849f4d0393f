//! What is ignored, what is excluded and what is this program's own: real devices, a real cluster.

use std::fs;
use std::sync::Arc;

use anyhow::{Result, ensure};
use chaos::cluster::{Cluster, Options};
use chaos::device::{Device, SETTLE_DEADLINE};
use chaos::group::Group;
use chaos::wait::wait_for;
use serde_json::Value;

/// Paths in a device's local trash, whatever the day.
fn trashed(device: &Device) -> Vec<String> {
    let files = walkdir::WalkDir::new(device.state().join("trash")).into_iter().flatten();
    let files = files.filter(|entry| !entry.file_type().is_dir());
    files.map(|entry| entry.path().display().to_string()).collect()
}

/// What `sync ls --ignored` says: paths and rules.
fn ignored(device: &Device) -> Result<Vec<(String, String)>> {
    let root = device.path("");
    let root = root.to_str().unwrap_or_default().trim_end_matches('/').to_owned();
    let document = device.sync(&["ls", &root, "--ignored", "--json"])?.success()?.json()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = document["roots"][0]["ignored"].as_array().cloned().unwrap_or_default();
    Ok(rows.iter().map(|row| (text(&row["path"]), text(&row["rule"]))).collect())
}

#[test]
fn what_is_ignored_survives_that_its_folder_is_deleted_elsewhere() -> Result<()> {
    let mut group = Group::running("ignored-deleted", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    // A folder that is all empty is another case.
    a.write("stays", "stays")?;
    a.write("d/.keepstoneignore", "*.key\nbuild/\n")?;
    a.write("d/sub/f", "in sync")?;
    b.wait_content("d/sub/f", "in sync")?;
    b.wait_content("d/.keepstoneignore", "*.key\nbuild/\n")?;
    b.write("d/sub/secret.key", "secret")?;
    b.write("d/sub/build/out", "built")?;
    b.wait_status("what is ignored, and is no work", |status| {
        status["ignored_count"] == 2 && status["phase"] == "up-to-date"
    })?;
    let expected = [
        ("d/sub/build", "d/.keepstoneignore:2: build/"),
        ("d/sub/secret.key", "d/.keepstoneignore:1: *.key"),
    ];
    let expected = expected.map(|(path, rule)| (path.to_owned(), rule.to_owned()));
    ensure!(ignored(b)? == expected, "{:?}", ignored(b)?);
    fs::remove_dir_all(a.path("d"))?;
    wait_for("the delete on b", SETTLE_DEADLINE, || Ok((!b.path("d/sub/f").exists()).then_some(())))?;
    for _ in 0..2 {
        b.wait_up_to_date()?;
        b.sync(&["rescan"])?;
        ensure!(b.read("d/sub/secret.key").as_deref() == Some(b"secret"), "the key is gone");
        ensure!(b.read("d/sub/build/out").as_deref() == Some(b"built"), "what was built is gone");
        let in_trash = trashed(b);
        ensure!(
            !in_trash.iter().any(|path| path.contains("secret") || path.contains("build")),
            "{in_trash:?}"
        );
        a.wait_up_to_date()?;
        ensure!(!a.path("d").exists() && !group.client.exists("/d")?, "the folder came back");
    }
    // Made again elsewhere: it is the folder that is here.
    a.write("d/sub/again", "again")?;
    b.wait_content("d/sub/again", "again")?;
    b.wait_up_to_date()?;
    ensure!(b.read("d/sub/secret.key").as_deref() == Some(b"secret".as_slice()));
    ensure!(!group.client.exists("/d/sub/secret.key")? && !group.client.exists("/d/sub/build")?, "sent");
    fs::remove_dir_all(b.path("d/sub/build"))?;
    fs::remove_file(b.path("d/sub/secret.key"))?;
    group.settle()?;
    group.stop()?;
    group.end()
}

#[test]
fn what_is_left_of_a_deleted_folder_is_one_thing_everywhere_once_nothing_in_it_is_ignored() -> Result<()> {
    let mut group = Group::running("ignored-left", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    a.write("stays", "stays")?;
    a.write(".keepstoneignore", "*.key\n")?;
    a.write("d/sub/f", "in sync")?;
    b.wait_content("d/sub/f", "in sync")?;
    b.wait_content(".keepstoneignore", "*.key\n")?;
    b.write("d/sub/secret.key", "secret")?;
    b.wait_status("what is ignored", |status| status["ignored_count"] == 1)?;
    fs::remove_dir_all(a.path("d"))?;
    wait_for("the delete on b", SETTLE_DEADLINE, || Ok((!b.path("d/sub/f").exists()).then_some(())))?;
    b.wait_up_to_date()?;
    ensure!(b.path("d/sub/secret.key").exists() && !a.path("d").exists());
    // What somebody makes in what is left goes to the others, be it empty.
    fs::create_dir(b.path("d/made"))?;
    wait_for("the made one on a", SETTLE_DEADLINE, || Ok(a.path("d/made").is_dir().then_some(())))?;
    ensure!(b.path("d/sub/secret.key").exists() && !a.path("d/sub").exists());
    fs::remove_file(b.path("d/sub/secret.key"))?;
    wait_for("what is empty on a", SETTLE_DEADLINE, || Ok(a.path("d/sub").is_dir().then_some(())))?;
    group.settle()?;
    group.stop()?;
    group.end()
}

#[test]
fn rules_on_the_server_hold_before_anything_is_sent() -> Result<()> {
    let mut group = Group::new("rules-first", 2)?;
    let [a, b] = &mut group.devices[..] else { anyhow::bail!("two devices") };
    a.write(".keepstoneignore", "s\n")?;
    a.write("n/deep/.keepstoneignore", "t\n")?;
    a.once_agreed()?;
    for path in ["s", "n/s", "n/deep/t", "n/deep/er/t", "n/deep/u"] {
        b.write(path, "of the new device")?;
    }
    b.once_agreed()?;
    for path in ["/s", "/n/s", "/n/deep/t", "/n/deep/er"] {
        ensure!(!group.client.exists(path)?, "{path} was sent");
    }
    ensure!(group.client.exists("/n/deep/u")?);
    // Rules that come while files wait to be sent.
    a.write("n/deep/.keepstoneignore", "t\nlate*\n")?;
    a.once_agreed()?;
    (0..50).try_for_each(|number| b.write(&format!("n/deep/late-{number}"), "late"))?;
    b.once_agreed()?;
    ensure!(!group.client.exists("/n/deep/late-0")? && !group.client.exists("/n/deep/late-49")?, "sent");
    ensure!(b.read("n/deep/late-49").is_some());
    group.end()
}

#[test]
fn rules_that_are_not_understood_stop_what_is_new() -> Result<()> {
    let group = Group::new("rules-bad", 1)?;
    let [a] = &group.devices[..] else { anyhow::bail!("one device") };
    a.write("d/known", "known")?;
    a.once_agreed()?;
    let bad: [&[u8]; 4] = [b"secret\n\xff\n", b"secret\n[z-a]\n", &[b'#'; (1 << 20) + 1], b"s\0e\0"];
    for bytes in bad {
        a.write("d/.keepstoneignore", bytes)?;
        a.write("d/secret", "secret")?;
        a.write("d/known", bytes.len().to_string())?;
        let output = a.once()?;
        ensure!(output.code == Some(1), "{output:?}");
        ensure!(output.stdout.contains("d/.keepstoneignore"), "{}", output.stdout);
        ensure!(!group.client.exists("/d/secret")?, "the secret was sent");
        ensure!(
            group.client.cat("/d/known")? == bytes.len().to_string().as_bytes(),
            "what is in sync stays so"
        );
    }
    fs::remove_file(a.path("d/.keepstoneignore"))?;
    std::os::unix::fs::symlink("nowhere", a.path("d/.keepstoneignore"))?;
    ensure!(a.once()?.code == Some(1) && !group.client.exists("/d/secret")?, "a symlink");
    fs::remove_file(a.path("d/.keepstoneignore"))?;
    a.write("d/.keepstoneignore", "\u{feff}secret\n")?;
    let document = a.once_agreed()?;
    ensure!(document["status"]["ignored_count"] == 1, "{document:#}");
    ensure!(!group.client.exists("/d/secret")?, "a mark before the first rule");
    group.end()
}

#[test]
fn names_that_people_use_are_sent_and_a_new_name_drops_nothing() -> Result<()> {
    let group = Group::new("names-used", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    let used = ["4913", "notes~", "film.part", "x.crdownload", "Album/1", "Other/1"];
    used.iter().try_for_each(|path| a.write(path, *path))?;
    a.once_agreed()?;
    b.once_agreed()?;
    for path in used {
        ensure!(b.read(path).as_deref() == Some(path.as_bytes()), "{path}");
    }
    a.write(".keepstoneignore", "*.old\nOther/\n")?;
    fs::rename(a.path("Album"), a.path("Album.old"))?;
    fs::rename(a.path("film.part"), a.path("film.old"))?;
    a.write("new.old", "never sent")?;
    a.write("Other/new", "never sent")?;
    a.once_agreed()?;
    b.once_agreed()?;
    for (path, bytes) in [("Album.old/1", "Album/1"), ("film.old", "film.part"), ("Other/1", "Other/1")] {
        ensure!(b.read(path).as_deref() == Some(bytes.as_bytes()), "{path} was dropped");
    }
    ensure!(!group.client.exists("/new.old")? && !group.client.exists("/Other/new")?, "sent");
    group.end()
}

#[test]
fn own_data_and_keys_are_never_sent() -> Result<()> {
    let cluster = Arc::new(Cluster::start(&Options::default())?);
    let mut group = Group::on(Arc::clone(&cluster), "own-data", 2)?;
    drop(cluster);
    group.devices[1].write("f", "of another folder")?;
    group.devices[1].once_agreed()?;
    let home = group.devices[0].home().to_owned();
    // Around the cluster's directory, both devices' profiles and the other's folder.
    let around = home.ancestors().nth(3).map(std::path::Path::to_owned).unwrap_or_default();
    ensure!(around.join("cluster/pki").exists(), "{}", around.display());
    let profile = fs::read_to_string(group.devices[0].client.profile())?;
    fs::write(around.join("any-name"), &profile)?;
    fs::write(around.join("mine"), "mine")?;
    group.devices[0].root = around;
    group.devices[0].arguments = ["--remote", "/around"].map(Into::into).to_vec();
    let output = group.devices[0].once()?;
    let document = output.json()?;
    let skipped = document["status"]["skipped"].to_string();
    for own in ["cluster", "any-name", "profile.toml"] {
        ensure!(skipped.contains(own), "{own} is not named: {skipped}");
    }
    ensure!(group.client.exists("/around/mine")?, "{output:?}");
    for own in ["/around/cluster", "/around/any-name"] {
        ensure!(!group.client.exists(own)?, "{own} was sent");
    }
    let found = group.client.ok(&["ls", "-R", "--json", "/around"])?;
    for own in ["profile.toml", "ca.key", "state.db", ".keepstone\""] {
        ensure!(!found.stdout.contains(own), "{own} was sent: {}", found.stdout);
    }
    group.end()
}

#[test]
fn exclusions_survive_the_state_and_free_space() -> Result<()> {
    let mut group = Group::running("exclusions", 2)?;
    let [a, b] = &mut group.devices[..] else { anyhow::bail!("two devices") };
    a.write("big/deep/f", "bytes")?;
    a.write("small", "small")?;
    b.wait_content("big/deep/f", "bytes")?;
    b.wait_content("small", "small")?;
    b.wait_up_to_date()?;
    let root = b.path("").to_string_lossy().trim_end_matches('/').to_owned();
    b.sync(&["exclude", &root, "big"])?.success()?;
    wait_for("the excluded folder to go", SETTLE_DEADLINE, || Ok((!b.path("big").exists()).then_some(())))?;
    b.wait_up_to_date()?;
    ensure!(trashed(b).is_empty(), "no space came free: {:?}", trashed(b));
    b.stop()?;
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        fs::remove_file(b.state().join(name)).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
    }
    b.start()?;
    let status = b.wait_up_to_date()?;
    ensure!(status["excluded"][0] == "big", "{status:#}");
    ensure!(!b.path("big").exists(), "it was fetched with the state lost");
    ensure!(group.client.cat("/big/deep/f")? == b"bytes");
    b.sync(&["include", &root, "big"])?.success()?;
    b.wait_content("big/deep/f", "bytes")?;
    group.settle()?;
    group.finish()?;
    Ok(())
}
