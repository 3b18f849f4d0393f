//! Folders that move under a device, by another device's word or its own user's: what is in them is looked at, sent and
//! named where it is then.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos::device::SETTLE_DEADLINE;
use chaos::group::Group;
use chaos::wait::wait_for;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

/// Moves while something is written.
const ROUNDS: usize = 4;
/// Between two files, so that some are new when the folder moves, and not looked at yet.
const WRITE_INTERVAL: Duration = Duration::from_millis(10);

/// A folder may move while something is fetched into it: nobody would find what is in the way where it was.
#[test]
fn once_names_what_is_in_its_way_where_it_is_after_folders_moved() -> Result<()> {
    let group = Group::new("waits-moved", 1)?;
    let device = &group.devices[0];
    device.write(".keepstoneignore", "*.key\n")?;
    let folders: Vec<u32> = (0..24).collect();
    for folder in &folders {
        device.write(&format!("before-{folder}/deep/known"), "in sync")?;
        // The name that the folder gets is to be free first.
        device.write(&format!("after-{folder}"), "in sync")?;
    }
    device.once_agreed()?;
    for folder in &folders {
        device.write(&format!("before-{folder}/deep/comes/left.key"), "ignored")?;
        let source = device.home().join("source");
        fs::write(&source, "it comes")?;
        group.client.put(&[&source], &format!("/before-{folder}/deep/comes"))?;
        group.client.ok(&["rm", &format!("/after-{folder}")])?;
        group.client.ok(&["mv", &format!("/before-{folder}"), &format!("/after-{folder}")])?;
    }
    let output = device.once()?;
    ensure!(output.code == Some(1), "{output:?}");
    let document = output.json()?;
    let waiting = document["waiting"].as_array().context("no list")?;
    ensure!(waiting.len() == folders.len(), "{document:#}");
    for blocked in waiting {
        let path = blocked["path"].as_str().context("no path")?;
        ensure!(path.starts_with("after-") && device.path(path).is_dir(), "{blocked:#}");
        let why = blocked["why"].as_str().context("no reason")?;
        ensure!(
            why.starts_with(&format!("{path} is a folder with nothing but what is ignored")),
            "{blocked:#}"
        );
        fs::remove_dir_all(device.path(path))?;
    }
    device.once_agreed()?;
    group.finish()?;
    Ok(())
}

/// Whoever moves the folder: its user, or another device.
#[test]
fn what_is_left_out_is_named_where_it_is_after_its_folder_moved() -> Result<()> {
    let mut group = Group::new("waits-left-out", 1)?;
    let device = &group.devices[0];
    device.write(".keepstoneignore", "*.key\n")?;
    device.write("first/deep/known", "in sync")?;
    device.write("first/deep/left.key", "ignored")?;
    mknodat(CWD, device.path("first/deep/pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let listed = |status: &Value| -> Vec<String> {
        let paths = status["skipped"].as_array().into_iter().flatten();
        paths.filter_map(|item| Some(item["path"].as_str()?.to_owned())).collect()
    };
    group.start()?;
    let device = &group.devices[0];
    let named = |folder: &str| {
        let pipe = format!("{folder}/deep/pipe");
        device.wait_status(&pipe, |status| listed(status) == [pipe.clone()] && status["ignored_count"] == 1)
    };
    named("first")?;
    group.client.ok(&["mv", "/first", "/second"])?;
    named("second")?;
    fs::rename(device.path("second"), device.path("third"))?;
    named("third")?;
    group.client.ok(&["mv", "/third", "/fourth"])?;
    named("fourth")?;
    // Out of what is kept in sync.
    fs::rename(device.path("fourth"), device.home().join("fourth"))?;
    device.wait_status("nothing left out", |status| {
        listed(status).is_empty() && status["ignored_count"] == 0
    })?;
    group.stop()?;
    group.end()
}

/// What is heard of a change names the place where it was: that is not the one where it is found a moment later.
#[test]
fn what_is_written_until_its_folder_moves_is_sent() -> Result<()> {
    let mut group = Group::new("moves-written", 1)?;
    let name = |round: usize| format!("folder-{round}");
    group.devices[0].write(&format!("{}/deep/first", name(0)), "in sync")?;
    group.start()?;
    let device = &group.devices[0];
    device.wait_up_to_date()?;
    let mut written = 1;
    for round in 0..ROUNDS {
        let moves =
            group.client.start(&["mv", &format!("/{}", name(round)), &format!("/{}", name(round + 1))])?;
        let deep = device.path(&format!("{}/deep", name(round)));
        let deadline = Instant::now() + SETTLE_DEADLINE;
        while fs::write(deep.join(format!("file-{written}")), "written until the folder moved").is_ok() {
            ensure!(Instant::now() < deadline, "the folder does not move");
            written += 1;
            std::thread::sleep(WRITE_INTERVAL);
        }
        moves.wait()?.success()?;
        wait_for(&format!("all that was written until round {round}"), SETTLE_DEADLINE, || {
            let listed = group.client.json(&["ls", &format!("/{}/deep", name(round + 1))])?;
            let count = listed["entries"].as_array().map(Vec::len);
            Ok((count == Some(written)).then_some(()))
        })
        .with_context(|| format!("{written} were written"))?;
        device.wait_up_to_date()?;
    }
    group.stop()?;
    group.finish()?;
    Ok(())
}

/// What they ignored is looked for then.
#[test]
fn rules_that_are_moved_away_elsewhere_hold_no_more() -> Result<()> {
    let mut group = Group::new("moves-rules", 1)?;
    let device = &group.devices[0];
    device.write("a/.keepstoneignore", "*.key\n")?;
    device.write("a/deep/known", "in sync")?;
    device.write("b/known", "in sync")?;
    device.once_agreed()?;
    device.write("a/deep/left.key", "ignored no more, soon")?;
    group.start()?;
    let device = &group.devices[0];
    device.wait_status("what is ignored", |status| status["ignored_count"] == 1)?;
    group.client.ok(&["mv", "/a/.keepstoneignore", "/b/.keepstoneignore"])?;
    wait_for("what is ignored no more", SETTLE_DEADLINE, || {
        Ok(group.client.exists("/a/deep/left.key")?.then_some(()))
    })?;
    group.stop()?;
    group.finish()?;
    Ok(())
}
