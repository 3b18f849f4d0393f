//! One account cannot use up what is everybody's.

use std::time::{Duration, Instant};

use futures_util::future::select_all;
use gateway::config::Limits;
use tokio::time::timeout;
use tonic::Code;

use super::{account, grpc, grpc_status, message_head, raw, raw_without_windows};
use crate::cluster::{Client, Cluster, PATIENCE, request_id};
use crate::{get, noise, put};

/// The innocent account reads and writes, and nothing of it takes long.
async fn is_undisturbed(client: &Client, name: &str) {
    for number in 0..10 {
        let path = format!("/{name}-{number}");
        let begun = Instant::now();
        put(client, &path, &noise(number, 100_000)).await.unwrap();
        assert_eq!(get(client, &path).await.unwrap(), noise(number, 100_000));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn idle_uploads_of_one_account_stop_no_other_and_end() {
    let limits = Limits { body_idle_seconds_max: 3, ..Limits::default() };
    let cluster = Cluster::start_with(1, limits.clone()).await;
    let client = account(&cluster, "ada@x.org", "correct horse battery").await;
    let other = account(&cluster, "bob@x.org", "hunter2hunter2").await;
    let mut requests = raw(&cluster).await;
    let streams = limits.account_put_streams_max;
    let idle: Vec<_> = (0..streams)
        .map(|_| requests.send_request(grpc("Files/PutChunks", Some(&other.token)), false).unwrap())
        .collect();
    is_undisturbed(&client, "beside-idle").await;
    for (response, body) in idle {
        let status = timeout(PATIENCE, grpc_status(response)).await.unwrap();
        assert_eq!(status, Code::DeadlineExceeded as i32);
        drop(body);
    }
    // A message that comes too slowly ends as well, and what it held is there again.
    let (response, mut body) =
        requests.send_request(grpc("Files/BeginUploads", Some(&other.token)), false).unwrap();
    body.send_data(message_head(10 << 20), false).unwrap();
    assert_eq!(grpc_status(response).await, Code::DeadlineExceeded as i32);
    is_undisturbed(&other, "after-idle").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn unread_downloads_of_one_account_stop_no_others_reads() {
    let cluster = Cluster::start_with(1, Limits::default()).await;
    let client = account(&cluster, "ada@x.org", "correct horse battery").await;
    let other = account(&cluster, "bob@x.org", "hunter2hunter2").await;
    put(&other, "/large", &noise(7, 24 << 20)).await.unwrap();
    let download = |client: &Client| {
        let request = proto::v1::DownloadRequest { path: "/large".to_owned(), ..Default::default() };
        let (mut files, request) = (client.files(), client.request(request));
        async move { files.download(request).await }
    };
    let mut unread = Vec::new();
    for _more in 0..40 {
        unread.push(download(&other).await.unwrap().into_inner());
    }
    // Those that the bounds let through have begun to send bytes: the rest of them waits for this account's own share.
    let mut begun = 0;
    for stream in &mut unread {
        let first_bytes = async {
            while let Ok(Some(message)) = stream.message().await {
                if !message.data.is_empty() {
                    return true;
                }
            }
            false
        };
        begun += usize::from(timeout(Duration::from_millis(50), first_bytes).await == Ok(true));
    }
    assert!(begun > 0, "none of the downloads began");
    is_undisturbed(&client, "beside-unread").await;
    drop(unread);
    assert_eq!(get(&other, "/large").await.unwrap(), noise(7, 24 << 20), "what it held is there again");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_read_for_a_client_whose_window_takes_nothing_and_all_once_it_does() {
    let limits = Limits { account_download_bytes_max: 4 << 20, ..Limits::default() };
    let cluster = Cluster::start_with(1, limits).await;
    let client = account(&cluster, "ada@x.org", "correct horse battery").await;
    let large = noise(7, 9 << 20);
    put(&client, "/large", &large).await.unwrap();
    let (mut requests, open_windows) = raw_without_windows(&cluster).await;
    // DownloadRequest { path: "/large" }
    let message = [&message_head(8)[..], &[0x0a, 6], b"/large"].concat();
    let mut bodies = Vec::new();
    for _more in 0..4 {
        let request = grpc("Files/Download", Some(&client.token));
        let (response, mut body) = requests.send_request(request, false).unwrap();
        body.send_data(message.clone().into(), true).unwrap();
        bodies.push(response.await.unwrap().into_body());
    }
    // Each of them alone would hold all that this account may, until it counts as pausing.
    let begun = Instant::now();
    assert_eq!(get(&client, "/large").await.unwrap(), large);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    open_windows.send(1 << 20).unwrap();
    for mut body in bodies {
        let mut bytes = 0;
        while let Some(data) = timeout(PATIENCE, body.data()).await.unwrap() {
            let data = data.unwrap();
            bytes += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        assert!(bytes > large.len(), "{bytes} bytes");
        assert_eq!(body.trailers().await.unwrap().unwrap().get("grpc-status").unwrap(), "0");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_limit_says_its_name_and_when_to_come_back() {
    let limits = Limits { account_requests_max: 2, device_waiters_max: 1, ..Limits::default() };
    let cluster = Cluster::start_with(1, limits).await;
    let client = account(&cluster, "ada@x.org", "correct horse battery").await;
    let mut requests = raw(&cluster).await;
    let begin = |requests: &mut h2::client::SendRequest<bytes::Bytes>| {
        let request = grpc("Files/BeginUploads", Some(&client.token));
        let (response, mut body) = requests.send_request(request, false).unwrap();
        body.send_data(message_head(1 << 20), false).unwrap();
        (response, body)
    };
    // Of three that are never finished two are let in; which is refused is not said.
    let (responses, _bodies): (Vec<_>, Vec<_>) = (0..3).map(|_| begin(&mut requests)).unzip();
    let statuses = responses.into_iter().map(|response| Box::pin(grpc_status(response)));
    let (status, _, _let_in) = timeout(PATIENCE, select_all(statuses)).await.expect("none is refused");
    assert_eq!(status, Code::ResourceExhausted as i32);
    let request = client.request(proto::v1::WhoAmIRequest {});
    let refused = client.accounts().who_am_i(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("account_requests_max"), "{}", refused.message());
    assert_eq!(refused.metadata().get(proto::REASON_TRAILER).unwrap(), "busy");
    assert_eq!(refused.metadata().get(proto::RETRY_AFTER_TRAILER).unwrap(), "1");
    let admin = cluster.client().await;
    let who = admin.accounts().who_am_i(admin.request(proto::v1::WhoAmIRequest {})).await;
    who.unwrap();

    let watch = || admin.request(proto::v1::WatchRequest {});
    let mut open = admin.sync().watch(watch()).await.unwrap().into_inner();
    open.message().await.unwrap().unwrap();
    let refused = admin.sync().watch(watch()).await.unwrap_err();
    assert!(refused.message().contains("device_waiters_max"), "{}", refused.message());
    drop((open, request_id()));
    cluster.stop().await;
}
