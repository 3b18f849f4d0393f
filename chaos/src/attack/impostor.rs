//! A server at a node's address with another node's certificate: takes whatever comes over HTTP/2 and counts it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// What came.
#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// The server. It ends when this is dropped.
#[derive(Debug)]
pub struct Impostor {
    counts: Arc<Counts>,
    serving: JoinHandle<()>,
}

impl Impostor {
    /// Listens on `address` with the certificate `NAME.pem` and key `NAME.key` of `pki`.
    ///
    /// # Errors
    /// If it cannot listen, or the certificate cannot be used.
    pub async fn start(address: SocketAddr, pki: &Path, name: &str) -> anyhow::Result<Self> {
        let certificates: Vec<CertificateDer<'static>> =
            CertificateDer::pem_file_iter(pki.join(format!("{name}.pem")))?.collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_file(pki.join(format!("{name}.key")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(certificates, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        let serving = tokio::spawn(async move {
            // They end with this task: nobody is served by an impostor that is gone.
            let mut connections = JoinSet::new();
            while let Ok((stream, _peer)) = listener.accept().await {
                counted.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(acceptor.clone(), stream, Arc::clone(&counted)));
            }
        });
        Ok(Self { counts, serving })
    }

    /// Connections that were tried: whether anybody came at all.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Requests that came, and the bytes of their bodies.
    #[must_use]
    pub fn requests(&self) -> (usize, usize) {
        (self.counts.requests.load(Ordering::Relaxed), self.counts.bytes.load(Ordering::Relaxed))
    }

    /// Ends it; once this returns its address is free.
    pub async fn stop(mut self) {
        self.serving.abort();
        // It was cancelled just now.
        (&mut self.serving).await.ok();
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Until the other side ends it, as an honest one does at once.
async fn serve(acceptor: TlsAcceptor, stream: TcpStream, counts: Arc<Counts>) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut answer))) = connection.accept().await {
        counts.requests.fetch_add(1, Ordering::Relaxed);
        let counts = Arc::clone(&counts);
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(part)) = body.data().await {
                counts.bytes.fetch_add(part.len(), Ordering::Relaxed);
                body.flow_control().release_capacity(part.len()).ok();
            }
            let refusal = http::Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "14")
                .body(());
            if let Ok(refusal) = refusal {
                // It may be gone.
                answer.send_response(refusal, true).ok();
            }
        });
    }
}
