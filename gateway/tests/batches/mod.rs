//! Batches of entries: each item by itself, and a repetition is answered as the first time.

use engine::ids::EntryId;
use proto::v1;

use crate::cluster::{Client, request_id};

fn folder(path: &str) -> v1::CreateEntry {
    v1::CreateEntry {
        path: path.to_owned(),
        kind: v1::EntryKind::Folder.into(),
        mode: 0o755,
        ..v1::CreateEntry::default()
    }
}

fn link(path: &str) -> v1::CreateEntry {
    v1::CreateEntry { kind: v1::EntryKind::Symlink.into(), symlink_target: "there".into(), ..folder(path) }
}

/// What was said of each item: the entry's id, or the reason why there is none.
type Said = Vec<Result<EntryId, String>>;

fn said(results: Vec<v1::EntryResult>) -> Said {
    let said = |result: v1::EntryResult| match result.result.unwrap() {
        v1::entry_result::Result::Entry(entry) => Ok(EntryId(entry.id)),
        v1::entry_result::Result::Error(error) => Err(error.reason),
    };
    results.into_iter().map(said).collect()
}

async fn create(client: &Client, message: &v1::CreateEntriesRequest) -> Said {
    let answer = client.files().create_entries(client.request(message.clone())).await.unwrap();
    said(answer.into_inner().results)
}

fn message(entries: Vec<v1::CreateEntry>) -> v1::CreateEntriesRequest {
    v1::CreateEntriesRequest { request_id: request_id(), entries }
}

/// More than one command's, of several levels, some of which cannot be made.
async fn all_kinds(client: &Client) {
    let mut entries = vec![link("/b/deep/er/than/that"), folder("/b"), folder("bad//path"), link("/b")];
    entries[0].parents = true;
    entries.extend((0..70).map(|number| link(&format!("/b/{number}"))));
    entries.extend((0..70).map(|number| folder(&format!("/b/folder-{number}"))));
    entries.extend((0..70).map(|number| link(&format!("/b/folder-{number}/link"))));
    entries.push(link("/b/7"));
    entries.push(link("/nowhere/7"));
    let message = message(entries);
    let first = create(client, &message).await;
    let reasons: Vec<(usize, &str)> =
        (0..).zip(&first).filter_map(|(index, said)| Some((index, said.as_ref().err()?.as_str()))).collect();
    let last = first.len() - 1;
    assert_eq!(reasons, [(2, "bad-path"), (3, "exists"), (last - 1, "exists"), (last, "not-found")]);
    let mut ids: Vec<EntryId> = first.iter().filter_map(|said| said.clone().ok()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), first.len() - 4, "each is an entry of its own");
    assert_eq!(create(client, &message).await, first, "repeated");
}

/// What was not ready the first time has an empty place in a command that is remembered.
async fn what_comes_later(client: &Client) {
    let message = message(vec![link("/now/1"), link("/later/1"), link("/now/2"), link("/later/2")]);
    create(client, &self::message(vec![folder("/now")])).await.remove(0).unwrap();
    let first = create(client, &message).await;
    assert!(first[0].is_ok() && first[2].is_ok(), "{first:?}");
    let missing = Err("not-found".to_owned());
    assert_eq!((&first[1], &first[3]), (&missing, &missing));
    create(client, &self::message(vec![folder("/later")])).await.remove(0).unwrap();
    let second = create(client, &message).await;
    assert_eq!((&second[0], &second[2]), (&first[0], &first[2]), "made once");
    assert!(second.iter().all(Result::is_ok), "{second:?}");
    assert_eq!(create(client, &message).await, second, "repeated");
}

async fn attributes(client: &Client) {
    let names: Vec<String> = (0..70).map(|number| format!("/set-{number}")).collect();
    let made = create(client, &message(names.iter().map(|name| folder(name)).collect())).await;
    let set = |path: &String| v1::SetAttributes { path: path.clone(), mode: 0o711, mtime_ns: 12_345 };
    let mut entries: Vec<v1::SetAttributes> = names.iter().map(set).collect();
    entries[40].path = "/nowhere".to_owned();
    entries[50].mode = 0o1_000_000;
    let message = v1::SetAttributesRequest { request_id: request_id(), entries };
    for time in ["first", "repeated"] {
        let answer = client.files().set_attributes(client.request(message.clone())).await.unwrap();
        let results = answer.into_inner().results;
        let stated = results.iter().filter_map(|result| match result.result.as_ref()? {
            v1::entry_result::Result::Entry(entry) => Some((entry.mode, entry.mtime_ns)),
            v1::entry_result::Result::Error(_) => None,
        });
        assert_eq!(stated.collect::<Vec<_>>(), [(0o711, 12_345); 68], "{time}");
        for (index, (said, made)) in said(results).into_iter().zip(&made).enumerate() {
            match index {
                40 => assert_eq!(said, Err("not-found".to_owned()), "{time}"),
                50 => assert_eq!(said, Err("invalid".to_owned()), "{time}"),
                _ => assert_eq!(said, *made, "{time}, {index}"),
            }
        }
    }
}

pub(crate) async fn batches_go_item_by_item(client: &Client) {
    all_kinds(client).await;
    what_comes_later(client).await;
    attributes(client).await;
}
