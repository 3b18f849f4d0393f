//! A device that follows a tree, and random changes that it must come to know.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::v1;
use proto::v1::action::Action;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{ROOT, apply, delete, folder, moved, symlink};
use crate::cluster::{Client, request_id};

/// What a device knows of its tree.
#[derive(Default)]
pub(crate) struct Follower {
    pub(crate) tree: BTreeMap<u64, v1::Entry>,
    pub(crate) cursor: Bytes,
    pub(crate) sequence: u64,
    pub(crate) resets: u32,
    batch: BTreeMap<u64, Option<v1::Entry>>,
}

impl Follower {
    /// Takes one page; tells whether there is more.
    async fn page(&mut self, client: &Client, count_max: u32) -> bool {
        let request =
            v1::ChangesRequest { cursor: self.cursor.clone(), count_max, ..v1::ChangesRequest::default() };
        let response = client.sync().changes(client.request(request)).await.unwrap().into_inner();
        if response.cursor_reset {
            *self = Self { resets: self.resets + 1, ..Self::default() };
            return true;
        }
        assert!(response.changes.len() <= count_max as usize);
        for change in response.changes {
            self.batch.insert(change.entry_id, change.entry);
            if change.list_below {
                for entry in list_below(client, change.entry_id, count_max).await {
                    self.batch.insert(entry.id, Some(entry));
                }
            }
        }
        self.cursor = response.cursor;
        if !response.more {
            self.finish();
            self.sequence = response.sequence;
        }
        response.more
    }

    fn finish(&mut self) {
        let mut gone = Vec::new();
        for (id, entry) in std::mem::take(&mut self.batch) {
            match entry {
                Some(entry) => drop(self.tree.insert(id, entry)),
                None => gone.push(id),
            }
        }
        while let Some(id) = gone.pop() {
            self.tree.remove(&id);
            gone.extend(self.tree.values().filter(|entry| entry.parent == id).map(|entry| entry.id));
        }
    }

    pub(crate) async fn catch_up(&mut self, client: &Client, count_max: u32) {
        while self.page(client, count_max).await {}
    }
}

pub(crate) async fn list_below(client: &Client, entry_id: u64, count_max: u32) -> Vec<v1::Entry> {
    let (mut found, mut page) = (Vec::new(), Bytes::new());
    loop {
        let request = v1::ListBelowRequest { entry_id, page, count_max, cursor: Bytes::new() };
        let response = client.sync().list_below(client.request(request)).await.unwrap().into_inner();
        assert!(response.entries.len() <= count_max as usize);
        let tells_place = !response.seen.is_empty() && !response.reign.is_empty() && response.sequence > 0;
        assert!(tells_place, "{response:?}");
        found.extend(response.entries);
        page = response.next_page;
        if page.is_empty() {
            return found;
        }
    }
}

/// One random action on what is there, or was.
fn some_action(random: &mut SmallRng, known: &[v1::Entry], sequence: u64) -> Action {
    let root = v1::Entry { id: ROOT, ..v1::Entry::default() };
    let entry = known.choose(random).cloned().unwrap_or_else(|| root.clone());
    let parent = if random.random_bool(0.4) { ROOT } else { known.choose(random).map_or(ROOT, |row| row.id) };
    let name = ["a", "b", "c", "d", "e"].choose(random).copied().unwrap_or("a");
    match random.random_range(0..10) {
        0..4 => folder(parent, name),
        4 => symlink(parent, name, "to"),
        5..8 => moved(&entry, parent, name),
        _ => delete(&entry, random.random_bool(0.5), sequence),
    }
}

pub(crate) async fn random_changes_are_followed(client: &Client) {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut actor, mut other) = (Follower::default(), Follower::default());
    let mut done = 0;
    for round in 0..60 {
        actor.catch_up(client, 1000).await;
        let known: Vec<v1::Entry> = actor.tree.values().cloned().collect();
        let actions: Vec<Action> = (0..random.random_range(1..12))
            .map(|_| some_action(&mut random, &known, actor.sequence))
            .collect();
        done += apply(client, actions).await.iter().filter(|applied| applied.is_ok()).count();
        if random.random_bool(0.3) {
            restore_some(client, &mut random, round).await;
        }
        // The other one looks now and then, a few changes at a time, while the first goes on.
        for _ in 0..random.random_range(0..3) {
            other.page(client, random.random_range(1..6)).await;
        }
    }
    assert!(done > 20, "{done}");
    actor.catch_up(client, 1000).await;
    other.catch_up(client, 3).await;
    let truth: BTreeMap<u64, v1::Entry> =
        list_below(client, ROOT, 7).await.into_iter().map(|entry| (entry.id, entry)).collect();
    assert_eq!(actor.tree, truth);
    assert_eq!(other.tree, truth);
    let mut fresh = Follower::default();
    fresh.catch_up(client, 5).await;
    assert_eq!(fresh.tree, truth, "from nothing");
    let parents: BTreeSet<u64> = truth.values().map(|entry| entry.parent).collect();
    assert!(parents.iter().all(|parent| *parent == ROOT || truth.contains_key(parent)));
}

/// Takes something out of the trash, with all below it.
async fn restore_some(client: &Client, random: &mut SmallRng, round: u32) {
    let list = client.request(v1::ListTrashRequest::default());
    let items = client.files().list_trash(list).await.unwrap().into_inner().items;
    let Some(item) = items.choose(random) else { return };
    let (trash_id, to) = (item.trash_id, format!("/restored {round}"));
    let restore = v1::RestoreTrashRequest { request_id: request_id(), trash_id, to };
    client.files().restore_trash(client.request(restore)).await.unwrap();
}
