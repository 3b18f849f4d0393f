//! What strangers and neighbours may do to others: as little as possible. Raw HTTP/2 where a well-behaved client would
//! not do it.

mod bounds;
mod costs;
mod neighbours;
mod revocation;
mod sign_in;
mod strangers;

use std::sync::Arc;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use proto::v1;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cluster::{Client, Cluster, request_id};

/// TLS to a gateway, without a byte of HTTP/2.
pub(crate) async fn tls(cluster: &Cluster) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&cluster.ca()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols.push(b"h2".to_vec());
    let stream = TcpStream::connect(cluster.gateway.address()).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// HTTP/2 to a gateway, for requests that no client of ours would make.
pub(crate) async fn raw(cluster: &Cluster) -> SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder.initial_max_send_streams(300);
    let (requests, connection) = builder.handshake(tls(cluster).await.unwrap()).await.unwrap();
    // Ends with the connection, and with the test.
    drop(tokio::spawn(connection));
    requests.ready().await.unwrap()
}

/// The same, where streams have no windows until their size is sent.
pub(crate) async fn raw_without_windows(cluster: &Cluster) -> (SendRequest<Bytes>, oneshot::Sender<u32>) {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0).initial_connection_window_size(64 << 20);
    let (requests, mut connection) = builder.handshake(tls(cluster).await.unwrap()).await.unwrap();
    let (open, opened) = oneshot::channel();
    drop(tokio::spawn(async move {
        let size = tokio::select! {
            ended = &mut connection => return ended,
            size = opened => size.unwrap_or_default(),
        };
        connection.set_initial_window_size(size)?;
        connection.await
    }));
    (requests.ready().await.unwrap(), open)
}

pub(crate) fn grpc(path: &str, token: Option<&str>) -> Request<()> {
    let request = Request::post(format!("https://localhost/keepstone.v1.{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    };
    request.body(()).unwrap()
}

/// The head of a gRPC message of so many bytes.
pub(crate) fn message_head(bytes: u32) -> Bytes {
    [&[0][..], &bytes.to_be_bytes()].concat().into()
}

/// The gRPC status that a request ends with.
pub(crate) async fn grpc_status(response: ResponseFuture) -> i32 {
    let response = response.await.unwrap();
    let status = |headers: &http::HeaderMap| headers.get("grpc-status")?.to_str().ok()?.parse::<i32>().ok();
    if let Some(status) = status(response.headers()) {
        return status;
    }
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data.unwrap().len()).unwrap();
    }
    status(&body.trailers().await.unwrap().unwrap()).unwrap()
}

/// Makes an account, and signs a device of it in, on a connection of its own.
pub(crate) async fn account(cluster: &Cluster, email: &str, password: &str) -> Client {
    let admin = cluster.client().await;
    let create = v1::CreateAccountRequest {
        request_id: request_id(),
        email: email.to_owned(),
        name: email.to_owned(),
        password: password.to_owned(),
        quota_bytes: 0,
        admin: false,
    };
    admin.admin().create_account(admin.request(create)).await.unwrap();
    let client = cluster.client().await;
    let request = sign_in(email, password);
    let token = client.accounts().sign_in(request).await.unwrap().into_inner().token;
    client.with_token(token)
}

pub(crate) fn sign_in(email: &str, password: &str) -> v1::SignInRequest {
    v1::SignInRequest {
        email: email.to_owned(),
        password: password.to_owned(),
        device_name: "laptop".to_owned(),
    }
}
