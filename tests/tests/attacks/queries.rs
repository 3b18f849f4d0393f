//! Questions with very large answers: asked once by their owner, who has to get them in pages, and many at once by
//! somebody who does not wait for them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use chaos::attack::arena::Arena;
use chaos::attack::caller::{Caller, request_id};
use chaos::serial::serial;
use chaos::size::Size;
use proto::v1;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::entries::symlinks;

/// How deep the folders are, and how long each name is.
const DEPTH: usize = 250;
const NAME_BYTES: usize = 255;
/// Actions in one call.
const TOGETHER: usize = 1000;
/// Whoever pages gets each page by then.
const PAGE_TIME_MAX: Duration = Duration::from_secs(20);

/// Makes `count` folders at the bottom of 250 nested ones, and deletes each by itself.
pub(crate) async fn deep_trash(caller: &Caller, count: usize) -> Result<()> {
    let path = format!("/{}", "d".repeat(NAME_BYTES)).repeat(DEPTH);
    let bottom = caller.make_folder(&path).await?.id;
    for batch in 0..count.div_ceil(TOGETHER) {
        let place = |number: usize| Some(v1::Place { parent_id: bottom, name: format!("{batch}-{number}") });
        let make = |number| {
            let folder = v1::CreateFolderAt { place: place(number), mode: 0o755, mtime_ns: 0 };
            v1::action::Action::CreateFolder(folder)
        };
        let made = caller.apply((0..TOGETHER).map(make).collect()).await?;
        let mut deletes = Vec::new();
        for (number, result) in made.into_iter().enumerate() {
            let Some(v1::apply_result::Result::Entry(entry)) = result.result else {
                anyhow::bail!("a folder was not made: {result:?}");
            };
            let delete = v1::DeleteAt {
                entry_id: entry.id,
                from: place(number),
                recursive: true,
                unchanged_since: u64::MAX >> 1,
                ..v1::DeleteAt::default()
            };
            deletes.push(v1::action::Action::Delete(delete));
        }
        for result in caller.apply(deletes).await? {
            ensure!(matches!(result.result, Some(v1::apply_result::Result::Entry(_))), "{result:?}");
        }
    }
    Ok(())
}

/// The whole trash, by pages of at most `count_max`; gives how many items there are.
async fn whole_trash(caller: &Caller, count_max: u32) -> Result<usize> {
    let mut seen = BTreeSet::new();
    let mut after = 0;
    loop {
        let message = v1::ListTrashRequest { after, count_max };
        let page = timeout(PAGE_TIME_MAX, caller.files().list_trash(caller.request(message))).await;
        let page = page.context("a page of the trash takes too long")??.into_inner();
        for item in &page.items {
            ensure!(!item.path.is_empty(), "an item that was nowhere: {}", item.trash_id);
            ensure!(seen.insert(item.trash_id), "an item comes twice: {}", item.trash_id);
        }
        if !page.more {
            return Ok(seen.len());
        }
        after = page.items.last().context("an empty page, and more to come")?.trash_id;
    }
}

/// Asks for all of it many times at once, and goes away before the answers.
pub(crate) async fn abandoned_lists(caller: &Caller, rounds: usize, at_once: usize) -> Result<()> {
    for _ in 0..rounds {
        let mut asking = JoinSet::new();
        for _ in 0..at_once {
            let caller = caller.clone();
            asking.spawn(async move {
                let message = v1::ListTrashRequest { after: 0, count_max: 10_000 };
                let asked = caller.files().list_trash(caller.request(message)).await;
                drop(asked);
            });
        }
        // All have been sent, some are being answered; the rest is given up.
        tokio::time::sleep(Duration::from_millis(300)).await;
        asking.shutdown().await;
    }
    Ok(())
}

#[test]
fn a_large_trash_is_listed_in_pages_and_harms_nobody() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    let (count, rounds) = Size::chosen().pick((2000, 4), (10_000, 20), (10_000, 20));
    let attacker = neighbour.clone();
    arena.prepare(async move { deep_trash(&attacker, count).await })?;
    for count_max in [0, 10_000, u32::MAX, 7] {
        let attacker = neighbour.clone();
        if count_max == 7 && Size::chosen() != Size::Ci {
            continue;
        }
        let attack = async move { whole_trash(&attacker, count_max).await };
        let (listed, seen) = arena.watch(&format!("a deep trash, {count_max} a page"), attack)?;
        ensure!(listed == count, "{listed} of {count} items are listed, {count_max} a page");
        seen.survived()?;
    }
    let attacker = neighbour.clone();
    let attack = async move { abandoned_lists(&attacker, rounds, 8).await };
    let (_asked, seen) = arena.watch("eight lists of the trash at once, abandoned", attack)?;
    seen.survived()?;
    let begun = Instant::now();
    let listed = arena.prepare(async move { whole_trash(&neighbour, 0).await })?;
    ensure!(listed == count, "{listed} of {count} items are listed after the attack");
    eprintln!("the owner lists all {listed} items in {:?}", begun.elapsed());
    arena.finish()
}

#[test]
fn eight_lists_of_a_large_trash_at_once_harm_nobody() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    let (count, rounds) = Size::chosen().pick((2000, 4), (10_000, 20), (10_000, 20));
    let attacker = neighbour.clone();
    arena.prepare(async move { deep_trash(&attacker, count).await })?;
    let attack = async move { abandoned_lists(&neighbour, rounds, 8).await };
    let (_asked, seen) = arena.watch("eight lists of the trash at once, abandoned", attack)?;
    seen.survived()?;
    arena.finish()
}

/// Every name in a folder, by pages.
async fn whole_folder(caller: &Caller, count_max: u32) -> Result<usize> {
    let (mut after, mut count) = (String::new(), 0);
    loop {
        let message = v1::ListFolderRequest { path: "/".to_owned(), after, count_max };
        let page = timeout(PAGE_TIME_MAX, caller.files().list_folder(caller.request(message))).await;
        let page = page.context("a page of the folder takes too long")??.into_inner();
        count += page.entries.len();
        if !page.more {
            return Ok(count);
        }
        after = page.entries.last().context("an empty page, and more to come")?.name.clone();
    }
}

/// Every change of the tree, by pages.
async fn whole_journal(caller: &Caller, count_max: u32) -> Result<usize> {
    let (mut cursor, mut count) = (Bytes::new(), 0);
    loop {
        let message = v1::ChangesRequest { cursor, count_max, ..v1::ChangesRequest::default() };
        let page = timeout(PAGE_TIME_MAX, caller.sync().changes(caller.request(message))).await;
        let page = page.context("a page of the journal takes too long")??.into_inner();
        count += page.changes.len();
        if !page.more {
            return Ok(count);
        }
        cursor = page.cursor;
    }
}

/// All that is below the root folder, by pages.
async fn whole_tree(caller: &Caller, count_max: u32) -> Result<usize> {
    let (mut page, mut count) = (Bytes::new(), 0);
    loop {
        let message =
            v1::ListBelowRequest { entry_id: 1, page, count_max, ..v1::ListBelowRequest::default() };
        let answer = timeout(PAGE_TIME_MAX, caller.sync().list_below(caller.request(message))).await;
        let answer = answer.context("a page of the tree takes too long")??.into_inner();
        count += answer.entries.len();
        if answer.next_page.is_empty() {
            return Ok(count);
        }
        page = answer.next_page;
    }
}

#[test]
fn long_symlinks_are_listed_in_pages() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    // 10,000 of 4,000 bytes are more than a message may have.
    let wanted = Size::chosen().pick(6000, 20_000, 20_000);
    let attacker = neighbour.clone();
    let count = arena.prepare(async move { symlinks(&attacker, wanted).await })?;
    ensure!(count > 0, "no symlink could be made");
    let attacker = neighbour.clone();
    let attack = async move {
        let counts = [
            whole_folder(&attacker, 10_000).await.context("the folder")?,
            whole_journal(&attacker, 10_000).await.context("the journal")?,
            whole_tree(&attacker, 10_000).await.context("the tree")?,
        ];
        let mut asking = JoinSet::new();
        for _ in 0..8 {
            let caller = attacker.clone();
            asking.spawn(async move {
                let whole = [whole_folder(&caller, 10_000).await, whole_tree(&caller, 10_000).await];
                drop(whole);
            });
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        asking.shutdown().await;
        Ok(counts)
    };
    let (counts, seen) = arena.watch("pages of long symlinks", attack)?;
    ensure!(counts == [count; 3], "{counts:?} of {count} symlinks are listed");
    seen.survived()?;
    arena.finish()
}

#[test]
fn many_devices_do_not_stop_their_owner() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    arena.prepare(async move {
        // What a device list is asked for, by whoever holds one token, many times at once.
        let mut asking = JoinSet::new();
        for _ in 0..200 {
            let caller = neighbour.clone();
            asking.spawn(async move {
                caller.accounts().list_devices(caller.request(v1::ListDevicesRequest {})).await
            });
        }
        while let Some(answer) = asking.join_next().await {
            if let Err(status) = answer? {
                ensure!(status.code() == tonic::Code::ResourceExhausted, "{status}");
            }
        }
        let request = neighbour.request(v1::ListDevicesRequest {});
        let devices = neighbour.accounts().list_devices(request).await?.into_inner().devices;
        ensure!(devices.len() == 1, "{} devices", devices.len());
        // The only device is taken out of use, and is out at once.
        let message = v1::RevokeDeviceRequest { request_id: request_id(), device: devices[0].device.clone() };
        neighbour.accounts().revoke_device(neighbour.request(message)).await?;
        let refused = neighbour.accounts().who_am_i(neighbour.request(v1::WhoAmIRequest {})).await;
        ensure!(refused.is_err_and(|status| status.code() == tonic::Code::Unauthenticated));
        Ok(())
    })?;
    arena.finish()
}
