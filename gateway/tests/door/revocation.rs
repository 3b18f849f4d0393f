//! A revoked device is out within a second, whatever it has open, and through whichever gateway it was revoked.

use std::time::{Duration, Instant};

use gateway::config::Limits;
use proto::v1;
use tonic::{Code, Status};

use super::account;
use crate::cluster::{Client, Cluster, PATIENCE, request_id};
use crate::{noise, put};

const PASSWORD: &str = "correct horse battery";
const WITHIN: Duration = Duration::from_secs(1);

async fn ends<T: std::fmt::Debug>(
    what: &'static str,
    mut stream: tonic::Streaming<T>,
) -> (&'static str, Instant) {
    let ended = tokio::time::timeout(PATIENCE, async {
        loop {
            match stream.message().await {
                Ok(Some(_more)) => {}
                other => return other,
            }
        }
    });
    assert_unauthenticated(what, ended.await.unwrap().map(drop));
    (what, Instant::now())
}

fn assert_unauthenticated(what: &str, ended: Result<(), Status>) {
    assert_eq!(ended.unwrap_err().code(), Code::Unauthenticated, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_that_a_revoked_device_has_open_ends_within_a_second() {
    let cluster = Cluster::start_with(3, Limits::default()).await;
    let other_gateway = cluster.another_gateway(2, Limits::default()).await;
    for through_the_other in [false, true] {
        let email = format!("ada-{through_the_other}@x.org");
        let client = account(&cluster, &email, PASSWORD).await;
        let keeps = {
            let fresh = cluster.client().await;
            let request = super::sign_in(&email, PASSWORD);
            let token = fresh.accounts().sign_in(request).await.unwrap().into_inner().token;
            fresh.with_token(token)
        };
        let me = client.accounts().who_am_i(client.request(v1::WhoAmIRequest {})).await.unwrap().into_inner();
        let revoker = if through_the_other {
            cluster.client_of(&other_gateway).await.with_token(keeps.token.clone())
        } else {
            keeps.clone()
        };
        revoked(&client, &keeps, &revoker, me.device).await;
    }
    other_gateway.stop().await;
    cluster.stop().await;
}

async fn revoked(client: &Client, keeps: &Client, revoker: &Client, device: bytes::Bytes) {
    put(client, "/large", &noise(3, 24 << 20)).await.unwrap();
    let watch = client.sync().watch(client.request(v1::WatchRequest {})).await.unwrap().into_inner();
    let mut kept = keeps.sync().watch(keeps.request(v1::WatchRequest {})).await.unwrap().into_inner();
    kept.message().await.unwrap().unwrap();
    let idle = futures_util::stream::pending::<v1::PutChunksRequest>();
    let mut files = client.files();
    let put = files.put_chunks(client.request(idle)).await.unwrap().into_inner();
    let download = v1::DownloadRequest { path: "/large".to_owned(), ..Default::default() };
    let download = client.files().download(client.request(download)).await.unwrap().into_inner();
    let changes = v1::ChangesRequest::default();
    let cursor = client.sync().changes(client.request(changes)).await.unwrap().into_inner().cursor;
    let wait = v1::WaitForChangeRequest { cursor, timeout_ms: 60_000 };
    let (mut sync, wait) = (client.sync(), client.request(wait));
    let wait = tokio::spawn(async move {
        let ended = sync.wait_for_change(wait).await.map(drop);
        assert_unauthenticated("a long poll", ended);
        ("a long poll", Instant::now())
    });
    // A download that nobody reads is read on once the revocation is through.
    let open = [tokio::spawn(ends("a watch", watch)), tokio::spawn(ends("an upload", put)), wait];
    tokio::time::sleep(Duration::from_millis(300)).await;
    let revoke = v1::RevokeDeviceRequest { request_id: request_id(), device };
    revoker.accounts().revoke_device(revoker.request(revoke)).await.unwrap();
    let revoked = Instant::now();
    for open in open {
        let (what, at) = open.await.unwrap();
        let late = at.saturating_duration_since(revoked);
        eprintln!("{what} ended {late:?} after its device was revoked");
        assert!(late < WITHIN, "{what}: {late:?}");
    }
    ends("a download", download).await;
    let refused = client.accounts().who_am_i(client.request(v1::WhoAmIRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    keeps.accounts().who_am_i(keeps.request(v1::WhoAmIRequest {})).await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(700), kept.message()).await.is_err(),
        "the other's goes on"
    );
}
