//! Who has no token gets little, for a short time, and disturbs nobody.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use gateway::config::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use super::{account, grpc, grpc_status, message_head, raw, tls};
use crate::cluster::{Cluster, PATIENCE};
use crate::{get, noise, put};

fn strict() -> Limits {
    Limits {
        handshake_seconds_max: 2,
        first_request_seconds_max: 2,
        idle_seconds_max: 4,
        stranger_body_seconds_max: 2,
        ..Limits::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stranger_is_refused_before_its_body_and_stops_nobody() {
    let cluster = Cluster::start_with(1, strict()).await;
    let client = account(&cluster, "ada@x.org", "correct horse battery").await;
    let forged = format!("{}x", &client.token[..client.token.len() - 1]);
    let mut requests = raw(&cluster).await;
    let mut open = Vec::new();
    let paths =
        ["Files/BeginUploads", "Files/PutChunks", "Sync/Apply", "Admin/CreateAccount", "Files/GetEntry"];
    for token in [None, Some("ks1_nonsense"), Some(forged.as_str())] {
        for path in paths.iter().cycle().take(20) {
            let (response, mut body) = requests.send_request(grpc(path, token), false).unwrap();
            // Refused already, perhaps: nothing of the body was waited for.
            body.send_data(message_head(15 << 20), false).ok();
            open.push((response, body));
        }
    }
    let begun = Instant::now();
    put(&client, "/innocent", &noise(1, 300_000)).await.unwrap();
    assert_eq!(get(&client, "/innocent").await.unwrap(), noise(1, 300_000));
    assert!(begun.elapsed() < Duration::from_secs(10));
    let refused = open.into_iter().map(|(response, body)| async move {
        let status = tokio::time::timeout(PATIENCE, grpc_status(response)).await.unwrap();
        drop(body);
        status
    });
    let refused = join_all(refused).await;
    assert!(refused.iter().all(|status| *status == Code::Unauthenticated as i32), "{refused:?}");

    // Without administrator's rights the body of an administrator's request is not read either.
    let (response, body) =
        requests.send_request(grpc("Admin/CreateAccount", Some(&client.token)), false).unwrap();
    assert_eq!(grpc_status(response).await, Code::PermissionDenied as i32);
    drop(body);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn bytes_before_the_caller_is_known_are_few_and_have_little_time() {
    let cluster = Cluster::start_with(1, strict()).await;
    let mut requests = raw(&cluster).await;
    let send = |requests: &mut h2::client::SendRequest<Bytes>, sent: usize| {
        let (response, mut body) = requests.send_request(grpc("Accounts/SignIn", None), false).unwrap();
        body.send_data(message_head(4 << 20), false).unwrap();
        body.send_data(vec![0; sent].into(), false).ok();
        (response, body)
    };
    // Too large: refused once that is seen, whatever is still to come.
    let large: Vec<_> = (0..60).map(|_| send(&mut requests, 12_000)).collect();
    let refused = large.into_iter().map(|(response, body)| async move {
        let answer = tokio::time::timeout(PATIENCE, response).await.unwrap();
        drop(body);
        answer.unwrap().headers()["grpc-status"].to_str().unwrap().parse::<i32>().unwrap()
    });
    let refused = join_all(refused).await;
    assert!(refused.iter().all(|status| *status == Code::ResourceExhausted as i32), "{refused:?}");
    // Never whole: ended after the time for it.
    let begun = Instant::now();
    let mut requests = raw(&cluster).await;
    let slow: Vec<_> = (0..50).map(|_| send(&mut requests, 100)).collect();
    for (response, body) in slow {
        let status = tokio::time::timeout(PATIENCE, grpc_status(response)).await.unwrap();
        assert_eq!(status, Code::DeadlineExceeded as i32);
        drop(body);
    }
    assert!(begun.elapsed() >= Duration::from_secs(1));
    cluster.stop().await;
}

/// Until the other side has closed.
async fn closed(mut stream: impl AsyncReadExt + Unpin) -> Duration {
    let begun = Instant::now();
    let mut buffer = [0; 4096];
    let end = async { while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {} };
    tokio::time::timeout(PATIENCE, end).await.expect("it stays open");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_that_ask_for_nothing_are_closed() {
    let cluster = Cluster::start_with(1, strict()).await;
    let address = cluster.gateway.address();
    let silent = TcpStream::connect(address).await.unwrap();
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00]).await.unwrap();
    let no_preface = tls(&cluster).await.unwrap();
    let mut no_request = tls(&cluster).await.unwrap();
    no_request.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let (silent, half, no_preface, no_request) =
        tokio::join!(closed(silent), closed(half), closed(no_preface), closed(no_request));
    for open in [silent, half, no_preface, no_request] {
        assert!(open < Duration::from_secs(8), "{open:?}");
    }

    // Somebody who is known and asks for nothing any more has longer; who waits for changes is not idle.
    let waiting = cluster.client().await;
    let request = waiting.request(proto::v1::WatchRequest {});
    let mut watch = waiting.sync().watch(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let (mut requests, connection) = h2::client::handshake(tls(&cluster).await.unwrap()).await.unwrap();
    let connection = tokio::spawn(connection);
    let (response, mut body) =
        requests.send_request(grpc("Accounts/WhoAmI", Some(&waiting.token)), false).unwrap();
    body.send_data(message_head(0), true).unwrap();
    assert_eq!(grpc_status(response).await, 0);
    let begun = Instant::now();
    tokio::time::timeout(PATIENCE, connection).await.expect("it stays open").unwrap().unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    crate::sync::apply_one(&waiting, crate::sync::folder(crate::sync::ROOT, "still heard")).await.unwrap();
    tokio::time::timeout(PATIENCE, watch.message()).await.unwrap().unwrap().unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_connections_locks_nobody_out() {
    let limits =
        Limits { unproven_connections_max: 40, address_unproven_connections_max: 20, ..Limits::default() };
    let cluster = Cluster::start_with(1, limits).await;
    let client = cluster.client().await;
    put(&client, "/before", &noise(1, 1000)).await.unwrap();
    let mut silent = Vec::new();
    for _more in 0..300 {
        silent.push(TcpStream::connect(cluster.gateway.address()).await.unwrap());
    }
    // Known connections stay, and a new one gets in.
    assert_eq!(get(&client, "/before").await.unwrap(), noise(1, 1000));
    let newcomer = cluster.client().await;
    assert_eq!(get(&newcomer, "/before").await.unwrap(), noise(1, 1000));
    let gone = join_all(silent.into_iter().take(250).map(closed)).await;
    assert!(gone.iter().all(|open| *open < Duration::from_secs(5)), "{gone:?}");
    cluster.stop().await;
}
