//! References that are given back: who refers, and what happens if one of them cannot be let go.

use bytes::Bytes;
use engine::cutter::Cutter;
use engine::hash::sha256_parts;
use engine::ids::{
    ChunkId, ContentId, DeviceId, GroupId, HolderId, NamespaceId, RequestId, UploadId, email_slot,
};
use engine::manifest::{ContentList, ManifestEntry};
use gateway::config::Limits;
use metaraft::api::MetaApi;
use metaraft::model::command::{Base, Command, DataStep, OpenUploadsMax, Steps};
use metaraft::model::outcome::Release;
use metaraft::model::query::{Query, Reply};
use metaraft::model::row::{ROOT_ENTRY, UploadRow};
use proto::v1;

use crate::cluster::{Client, Cluster, random, request_id};
use crate::{any, begin_as, commit, get, noise, put, put_missing};

/// The only data group.
const GROUP: GroupId = GroupId(1);

async fn ask(api: &MetaApi, query: Query) -> Reply {
    api.query(GROUP, query).await.unwrap()
}

/// The administrator's tree.
async fn namespace(api: &MetaApi) -> NamespaceId {
    let email = "root@x.org".to_owned();
    assert_eq!(api.group_of(email_slot(&email)).unwrap(), GROUP);
    let account = match ask(api, Query::AccountByEmail { email }).await {
        Reply::AccountId(account) => account,
        _ => None,
    };
    let row = match ask(api, Query::Account { account: account.unwrap() }).await {
        Reply::Account(row) => row,
        _ => None,
    };
    row.unwrap().namespace
}

async fn upload_row(api: &MetaApi, namespace: NamespaceId, upload: &Bytes) -> UploadRow {
    let uploads = vec![UploadId::from_slice(upload).unwrap()];
    let row = match ask(api, Query::Uploads { namespace, uploads }).await {
        Reply::Uploads(rows) => rows[0],
        _ => None,
    };
    row.unwrap()
}

/// Makes a file whose list is said to be in a node that nobody has: what nobody can let go.
async fn make_unreleasable(api: &MetaApi, namespace: NamespaceId, name: &str) {
    let chunks = vec![ManifestEntry { id: ChunkId::from_bytes(random()), size: 20_000 }];
    let (upload, holder) = (UploadId::from_bytes(random()), HolderId::from_bytes(random()));
    let (content, size) = (ContentId::of(&chunks), 20_000);
    let lost = ManifestEntry { id: ChunkId::from_bytes(random()), size };
    let list = ContentList { depth: 1, entries: vec![lost] };
    let (cutter, most) = (Cutter::Cdc64k, OpenUploadsMax { sessions: 99, list_entries: 999 });
    let steps = vec![
        DataStep::UploadBegin {
            namespace,
            upload,
            holder,
            content,
            size,
            cutter,
            chunks,
            life_ms: 60_000,
            most,
        },
        DataStep::UploadHold { namespace, upload },
        DataStep::ContentRetain { content, namespace, generation: None, holder, size, list },
        DataStep::FileCommit {
            namespace,
            upload,
            parent: ROOT_ENTRY,
            name: name.to_owned(),
            base: Base::Absent,
            mode: 0o644,
            mtime_ns: 0,
            device: DeviceId::from_bytes(random()),
        },
    ];
    let request = RequestId::from_slice(&request_id()).unwrap();
    api.propose(GROUP, Command { request, payload: None, steps: Steps::Data(steps) }).await.unwrap();
}

async fn delete(client: &Client, path: &str) {
    let delete = v1::DeleteEntryRequest { request_id: request_id(), path: path.to_owned(), recursive: false };
    client.files().delete_entry(client.request(delete)).await.unwrap();
}

async fn purge_all(client: &Client) -> v1::PurgeTrashResponse {
    let purge = v1::PurgeTrashRequest { request_id: request_id(), trash_id: 0 };
    client.files().purge_trash(client.request(purge)).await.unwrap().into_inner()
}

async fn queued(api: &MetaApi, namespace: NamespaceId) -> Vec<Release> {
    let releases = match ask(api, Query::Releases { namespace, count_max: 100 }).await {
        Reply::Releases(releases) => Some(releases),
        _ => None,
    };
    releases.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_cannot_be_let_go_is_set_aside_and_purges_go_on() {
    let cluster = Cluster::start(1).await;
    let (client, api) = (cluster.client().await, cluster.meta_api());
    api.refresh_map().await.unwrap();
    let namespace = namespace(&api).await;
    for round in 0..2_u64 {
        let name = format!("lost-{round}");
        make_unreleasable(&api, namespace, &name).await;
        for number in 0..5 {
            put(&client, &format!("/{number}"), &noise(10 * round + number, 50_000)).await.unwrap();
        }
        delete(&client, &format!("/{name}")).await;
        for number in 0..5 {
            delete(&client, &format!("/{number}")).await;
        }
        // The second round begins with what the first one left behind.
        assert_eq!(purge_all(&client).await.entries, 6);
        assert_eq!(queued(&api, namespace).await, [], "the rest is let go");
        let status = cluster.wait_for_status(|status| status.releases_aside == round + 1).await;
        let told = format!("{} removed contents could not be let go", round + 1);
        assert!(status.problems.iter().any(|line| line.starts_with(&told)), "{:?}", status.problems);
        assert_eq!(status.health, "ok", "the cluster does all that it is asked for");
    }
    let due = ask(&api, Query::ReleasesDue { now_ms: u64::MAX, count_max: 10 }).await;
    let Reply::ReleasesAside(due) = due else { panic!("{due:?}") };
    assert_eq!(due.len(), 2);
    for aside in due {
        assert!(aside.attempts == 1 && aside.retry_ms > aside.since_ms, "{aside:?}");
        assert!(!aside.why.is_empty(), "{aside:?}");
    }
    api.stop().await;
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_has_one_minted_holder_through_whichever_gateway() {
    let cluster = Cluster::start(1).await;
    let second = cluster.another_gateway(2, Limits::default()).await;
    let (one, two) = (cluster.client().await, cluster.client_of(&second).await);
    let api = cluster.meta_api();
    api.refresh_map().await.unwrap();
    let namespace = namespace(&api).await;
    let bytes = noise(1, 400_000);
    let mut holders = std::collections::BTreeSet::new();
    for round in 0..4 {
        let upload = Bytes::copy_from_slice(&random::<16>());
        let path = format!("/f{round}");
        let begun = begin_as(&one, &upload, &path, &bytes, "").await;
        let holder = upload_row(&api, namespace, &upload).await.holder;
        assert!(holders.insert(holder), "{holder:?} is another session's too");
        let known = sha256_parts(&[b"keepstone holder\0", namespace.as_bytes(), &upload]);
        assert_ne!(holder.as_bytes()[..], known[..16], "it follows from what anybody may repeat");
        // Some go through the one, begun again through the other the rest, and the commit through the first.
        let (some, rest) = begun.missing.split_at(begun.missing.len() / 2);
        put_missing(&one, &upload, &bytes, some).await;
        let again = begin_as(&two, &upload, &path, &bytes, "").await;
        assert_eq!(again.error, None);
        assert_eq!(upload_row(&api, namespace, &upload).await.holder, holder);
        for result in put_missing(&two, &upload, &bytes, rest).await {
            assert_eq!(result.error, None);
        }
        let status = v1::UploadStatusRequest { upload_id: upload.clone() };
        let status = two.files().upload_status(two.request(status)).await.unwrap().into_inner();
        assert_eq!(status.missing, Vec::<u32>::new(), "both refer by the one holder");
        commit(&one, &request_id(), &upload, &path, any()).await.unwrap();
        assert_eq!(get(&two, &path).await.unwrap(), bytes);
        delete(&one, &path).await;
        assert_eq!(purge_all(&one).await.entries, 1);
    }
    api.stop().await;
    drop((one, two));
    second.stop().await;
    cluster.stop().await;
}
