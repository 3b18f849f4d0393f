//! Where a gateway is, and the ways to it: gRPC channels, bare TCP and TLS, from any loopback address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::cluster::Cluster;

/// Where innocent clients come from.
pub const INNOCENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
/// Where an attacker comes from who has one address only.
pub const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
/// How long an honest client waits for a connection.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Windows of a client that reads what it asks for.
const WINDOW_BYTES: u32 = 4 << 20;

/// One of some 16,000,000 loopback addresses, for an attacker who has many.
#[must_use]
pub fn address_of(number: u32) -> IpAddr {
    let [_, high, middle, low] = number.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, high.saturating_add(1), middle, low))
}

/// A gateway as the network sees it.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Where it listens.
    pub address: SocketAddr,
    ca_pem: Vec<u8>,
    tls: Arc<ClientConfig>,
}

impl Gate {
    /// The gateway that the cluster's `ready` line named.
    ///
    /// # Errors
    /// If it cannot be understood, or the CA cannot be read.
    pub fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let text = cluster.endpoint.strip_prefix("https://").context("no https endpoint")?;
        let ca_pem = std::fs::read(cluster.ca()?)?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&ca_pem) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { address: text.parse()?, ca_pem, tls: Arc::new(tls) })
    }

    /// A gRPC channel from `from`, connected.
    ///
    /// # Errors
    /// If nobody answers in time.
    pub async fn channel(&self, from: IpAddr) -> anyhow::Result<Channel> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca_pem));
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address))?
            .tls_config(tls)?
            .local_address(Some(from))
            .connect_timeout(CONNECT_TIME_MAX)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        // With a deadline of its own: connecting ends with TCP, the handshake comes after it.
        let connected = tokio::time::timeout(CONNECT_TIME_MAX, endpoint.connect()).await;
        Ok(connected.with_context(|| format!("no connection within {CONNECT_TIME_MAX:?}"))??)
    }

    /// A TCP connection from `from`, with nothing sent.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn tcp(&self, from: IpAddr) -> anyhow::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        let stream = tokio::time::timeout(CONNECT_TIME_MAX, socket.connect(self.address)).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A TLS connection from `from` on which HTTP/2 was agreed and nothing of it was said.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn tls(&self, from: IpAddr) -> anyhow::Result<TlsStream<TcpStream>> {
        let stream = self.tcp(from).await?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        Ok(tokio::time::timeout(CONNECT_TIME_MAX, handshake).await??)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_addresses_are_all_loopback_and_no_one_elses() {
        for number in [0, 1, 255, 256, 65_536, u32::MAX] {
            let address = address_of(number);
            assert!(address.is_loopback() && address != INNOCENT && address != ATTACKER, "{address}");
        }
        assert_ne!(address_of(1), address_of(257));
    }
}
