//! `keepstone.v1.Sync` against a real cluster: following, changing, waiting, many small files, hostile requests.

mod follower;
mod hostile;
mod many;
mod watch;

use bytes::Bytes;
use proto::v1;
use proto::v1::action::Action;
use tonic::Code;

use self::follower::{Follower, random_changes_are_followed};
use crate::cluster::{Client, Cluster, request_id};
use crate::second_account;

/// The root folder's id.
pub(crate) const ROOT: u64 = 1;

pub(crate) fn place(parent_id: u64, name: &str) -> Option<v1::Place> {
    Some(v1::Place { parent_id, name: name.to_owned() })
}

pub(crate) fn folder(parent: u64, name: &str) -> Action {
    Action::CreateFolder(v1::CreateFolderAt { place: place(parent, name), mode: 0o755, mtime_ns: 1 })
}

pub(crate) fn symlink(parent: u64, name: &str, target: &str) -> Action {
    let (place, target) = (place(parent, name), Bytes::copy_from_slice(target.as_bytes()));
    Action::CreateSymlink(v1::CreateSymlinkAt { place, target, mode: 0o777, mtime_ns: 1 })
}

pub(crate) fn moved(entry: &v1::Entry, parent: u64, name: &str) -> Action {
    let (from, to) = (place(entry.parent, &entry.name), place(parent, name));
    Action::Move(v1::MoveAt { entry_id: entry.id, from, to })
}

pub(crate) fn delete(entry: &v1::Entry, recursive: bool, unchanged_since: u64) -> Action {
    Action::Delete(v1::DeleteAt {
        entry_id: entry.id,
        from: place(entry.parent, &entry.name),
        version: entry.version,
        recursive,
        unchanged_since,
    })
}

pub(crate) type Applied = Result<v1::Entry, v1::ItemError>;

pub(crate) async fn apply_as(client: &Client, request_id: Bytes, actions: Vec<Action>) -> Vec<Applied> {
    let actions = actions.into_iter().map(|action| v1::Action { action: Some(action) }).collect();
    let request = client.request(v1::ApplyRequest { request_id, actions, ..Default::default() });
    let results = client.sync().apply(request).await.unwrap().into_inner().results;
    let result = |result: v1::ApplyResult| match result.result.unwrap() {
        v1::apply_result::Result::Entry(entry) => Ok(entry),
        v1::apply_result::Result::Error(error) => Err(error),
    };
    results.into_iter().map(result).collect()
}

pub(crate) async fn apply(client: &Client, actions: Vec<Action>) -> Vec<Applied> {
    apply_as(client, request_id(), actions).await
}

pub(crate) async fn apply_one(client: &Client, action: Action) -> Applied {
    apply(client, vec![action]).await.remove(0)
}

pub(crate) fn is_conflict(applied: &Applied) -> bool {
    matches!(applied, Err(error) if error.code == Code::Aborted as u32 && error.reason == "conflict")
}

async fn actions_say_what_they_have_seen(client: &Client) {
    let top = apply_one(client, folder(ROOT, "seen")).await.unwrap();
    let made = apply(
        client,
        vec![folder(top.id, "a"), folder(top.id, "b"), symlink(top.id, "l", "x"), folder(top.id, "a")],
    )
    .await;
    assert!(is_conflict(&made[3]), "the place is taken: {:?}", made[3]);
    let [a, b, link] = [0, 1, 2].map(|number| made[number].clone().unwrap());
    let seen = link.sequence;

    let stale = v1::Entry { name: "elsewhere".to_owned(), ..a.clone() };
    let outcomes = apply(
        client,
        vec![
            moved(&stale, top.id, "z"),
            moved(&a, a.id, "in itself"),
            moved(&a, top.id, "b"),
            moved(&a, b.id, "a"),
            delete(&stale, true, seen),
        ],
    )
    .await;
    assert!([0, 1, 2, 4].into_iter().all(|number| is_conflict(&outcomes[number])), "{outcomes:?}");
    let a = outcomes[3].clone().unwrap();
    assert_eq!((a.parent, a.name.as_str()), (b.id, "a"));

    // Something came into `b` that the caller has not seen.
    assert!(is_conflict(&apply_one(client, delete(&b, true, seen)).await));
    assert!(is_conflict(&apply_one(client, delete(&b, false, a.sequence)).await), "not empty");
    let retarget = |before: &str, to: &str| {
        Action::SetSymlink(v1::SetSymlinkAt {
            entry_id: link.id,
            target_before: Bytes::copy_from_slice(before.as_bytes()),
            target: Bytes::copy_from_slice(to.as_bytes()),
            mode: 0o777,
            mtime_ns: 2,
        })
    };
    assert!(is_conflict(&apply_one(client, retarget("y", "z")).await));
    let link = apply_one(client, retarget("x", "y")).await.unwrap();
    assert_eq!(link.symlink_target.as_ref(), b"y");
    assert!(is_conflict(&apply_one(client, delete(&link, false, seen)).await), "it points elsewhere since");

    let request = request_id();
    let actions = vec![delete(&b, true, link.sequence), delete(&link, false, link.sequence)];
    let first = apply_as(client, request.clone(), actions.clone()).await;
    assert_eq!(first[0].as_ref().unwrap().id, b.id);
    assert_eq!(first, apply_as(client, request, actions).await, "a repetition gives the first answers");

    let attributes = |entry: &v1::Entry, version| {
        Action::SetAttributes(v1::SetAttributesAt { entry_id: entry.id, mode: 0o700, mtime_ns: 3, version })
    };
    assert_eq!(apply_one(client, attributes(&top, 0)).await.unwrap().mode, 0o700);
    assert!(is_conflict(&apply_one(client, attributes(&top, 5)).await), "a folder has no version");
    assert!(is_conflict(&apply_one(client, attributes(&b, 0)).await), "it is gone");
}

async fn a_thousand_actions_are_few_commands(client: &Client) {
    let top = apply_one(client, folder(ROOT, "thousand")).await.unwrap();
    let actions: Vec<Action> = (0..1000).map(|number| folder(top.id, &format!("{number:04}"))).collect();
    let begun = std::time::Instant::now();
    let made = apply(client, actions).await;
    eprintln!("1,000 actions in {:?}", begun.elapsed());
    let ids: Vec<u64> = made.iter().map(|made| made.as_ref().unwrap().id).collect();
    assert!(ids.is_sorted(), "in order");
    let mut follower = Follower::default();
    follower.catch_up(client, 10_000).await;
    let top = follower.tree[&top.id].clone();
    apply_one(client, delete(&top, true, follower.sequence)).await.unwrap();
}

/// A cursor from before what the journal has forgotten.
async fn a_cursor_older_than_the_horizon_is_reset(client: &Client) {
    let kept = apply_one(client, folder(ROOT, "horizon")).await.unwrap();
    let mut early = Follower::default();
    early.catch_up(client, 100).await;
    let gone = apply_one(client, folder(kept.id, "gone")).await.unwrap();
    apply_one(client, delete(&gone, true, gone.sequence)).await.unwrap();
    let set = |value: &str| {
        let (name, value) = ("journal-horizon".to_owned(), value.to_owned());
        client.request(v1::SetSettingRequest { request_id: request_id(), name, value })
    };
    client.admin().set_setting(set("1s")).await.unwrap();
    let deadline = std::time::Instant::now() + crate::cluster::PATIENCE;
    for number in 0_u64.. {
        let request = v1::ChangesRequest {
            cursor: early.cursor.clone(),
            count_max: 100,
            ..v1::ChangesRequest::default()
        };
        let response = client.sync().changes(client.request(request)).await.unwrap().into_inner();
        if response.cursor_reset {
            assert!(response.changes.is_empty() && response.cursor.is_empty());
            break;
        }
        assert!(std::time::Instant::now() < deadline, "never reset");
        // Each command prunes some of what is too old by then.
        apply_one(client, folder(kept.id, &number.to_string())).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    early.catch_up(client, 3).await;
    assert_eq!(early.resets, 1);
    assert!(early.tree.contains_key(&kept.id) && !early.tree.contains_key(&gone.id));
    client.admin().set_setting(set("30d")).await.unwrap();
}

async fn scenario(data_groups: u16) {
    let cluster = Cluster::start(data_groups).await;
    let client = cluster.client().await;
    let other = second_account(&cluster, &client).await;
    actions_say_what_they_have_seen(&client).await;
    a_thousand_actions_are_few_commands(&client).await;
    many::small_files_go_together_and_come_back_by_id(&client).await;
    many::what_could_not_go_at_first_goes_when_it_comes_again(&client).await;
    many::a_manifest_is_the_list_that_was_sent(&client, &other).await;
    random_changes_are_followed(&client).await;
    a_cursor_older_than_the_horizon_is_reset(&client).await;
    hostile::requests_are_refused(&client, &other).await;
    watch::changes_are_told_promptly(&client).await;
    watch::a_wait_ends_with_a_change_or_its_time(&client).await;
    watch::a_revoked_device_hears_nothing_more(&other).await;
    watch::a_stop_ends_every_stream(&client, cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn devices_follow_and_change_their_tree_with_one_data_group() {
    scenario(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn devices_follow_and_change_their_tree_across_three_data_groups() {
    scenario(3).await;
}
