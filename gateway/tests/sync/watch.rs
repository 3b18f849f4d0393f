//! Waiting for changes.

use std::time::{Duration, Instant};

use proto::v1;
use tonic::Code;

use super::follower::Follower;
use super::{ROOT, apply_one, folder};
use crate::cluster::{Client, Cluster, PATIENCE, request_id};

/// How long after its acknowledgement a change may be told, half of the time. It is about a millisecond on an idle
/// machine; tests share theirs.
const TOLD_WITHIN: Duration = Duration::from_millis(20);

async fn watch(client: &Client) -> tonic::Streaming<v1::WatchResponse> {
    client.sync().watch(client.request(v1::WatchRequest {})).await.unwrap().into_inner()
}

async fn next(stream: &mut tonic::Streaming<v1::WatchResponse>) -> v1::WatchResponse {
    tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap()
}

pub(crate) async fn changes_are_told_promptly(client: &Client) {
    let mut follower = Follower::default();
    follower.catch_up(client, 10_000).await;
    let mut stream = watch(client).await;
    let first = next(&mut stream).await;
    assert_eq!(first.sequence, follower.sequence, "the present number is told at once");
    let mut late = Vec::new();
    for number in 0..100 {
        let told = async {
            loop {
                let sequence = next(&mut stream).await.sequence;
                if sequence > follower.sequence + number {
                    return (sequence, Instant::now());
                }
            }
        };
        let made = async {
            let made = apply_one(client, folder(ROOT, &format!("watched {number}"))).await.unwrap();
            (made.sequence, Instant::now())
        };
        let ((told, told_at), (made, made_at)) = tokio::join!(told, made);
        assert_eq!(told, made);
        late.push(told_at.saturating_duration_since(made_at));
    }
    late.sort_unstable();
    eprintln!("told after the acknowledgement: p50 {:?}, p99 {:?}, max {:?}", late[50], late[98], late[99]);
    assert!(late[50] < TOLD_WITHIN, "{:?}", late[50]);

    // Who does not take what is told gets the latest number.
    let mut slow = watch(client).await;
    let begun = next(&mut slow).await.sequence;
    let mut last = begun;
    for number in 0..300 {
        last = apply_one(client, folder(ROOT, &format!("slow {number}"))).await.unwrap().sequence;
    }
    let (mut messages, mut told) = (0, begun);
    while told < last {
        told = next(&mut slow).await.sequence;
        messages += 1;
    }
    assert!(messages <= 300 && told == last, "{messages}");
}

pub(crate) async fn a_wait_ends_with_a_change_or_its_time(client: &Client) {
    let mut follower = Follower::default();
    follower.catch_up(client, 10_000).await;
    let wait = |timeout_ms| {
        let request = v1::WaitForChangeRequest { cursor: follower.cursor.clone(), timeout_ms };
        let (mut sync, request) = (client.sync(), client.request(request));
        async move { sync.wait_for_change(request).await.map(|response| response.into_inner().changed) }
    };
    let begun = Instant::now();
    assert!(!wait(300).await.unwrap());
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let change = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        apply_one(client, folder(ROOT, "waited for")).await.unwrap()
    };
    let begun = Instant::now();
    let (changed, _made) = tokio::join!(wait(0), change);
    assert!(changed.unwrap() && begun.elapsed() < Duration::from_secs(30));
    assert!(wait(10).await.unwrap(), "it has changed already");
    assert_eq!(wait(60_001).await.unwrap_err().code(), Code::InvalidArgument);
}

pub(crate) async fn a_revoked_device_hears_nothing_more(other: &Client) {
    let mut stream = watch(other).await;
    next(&mut stream).await;
    let me = other.accounts().who_am_i(other.request(v1::WhoAmIRequest {})).await.unwrap().into_inner();
    let revoke = v1::RevokeDeviceRequest { request_id: request_id(), device: me.device };
    other.accounts().revoke_device(other.request(revoke)).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Unauthenticated);
    let refused = other.sync().watch(other.request(v1::WatchRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

pub(crate) async fn a_stop_ends_every_stream(client: &Client, cluster: Cluster) {
    let mut stream = watch(client).await;
    next(&mut stream).await;
    let ended = tokio::spawn(async move { stream.message().await });
    let begun = Instant::now();
    cluster.stop().await;
    eprintln!("stopped in {:?}", begun.elapsed());
    assert!(!matches!(ended.await.unwrap(), Ok(Some(_))));
}
