//! Mutual TLS between tiers: who a peer is, by its certificate, and what role it may act in.
//!
//! Invariants:
//! - A role and id come only from a certificate that the cluster's CA signed; TLS has verified that before.
//! - Every internal call names the roles it takes; all others get PERMISSION_DENIED.
//!
//! - A client says whom it expects, and speaks to nobody else: see [`ExpectedServer`].
//!
//! A certificate carries one URI name, `keepstone://CLUSTER/ROLE/ID`, and the DNS name [`INTERNAL_NAME`], by which
//! peers are verified whatever address they are reached at.

mod expected;
mod meta_address;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use engine::ids::{ClusterId, NodeId};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig};
use tonic::{Request, Status};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::expected::ExpectedServer;
use self::expected::ExpectedServerVerifier;
pub use self::meta_address::MetaAddress;

/// The DNS name in every internal certificate.
pub const INTERNAL_NAME: &str = "node.keepstone.internal";

/// Certificates that are remembered at most: as many as a large cluster has nodes, with some to spare for a change of all.
const READ_MAX: usize = 4096;

/// What certificates name that were read before: the peers of a process are the same few, and each request shows one.
/// Only what TLS has verified gets here.
static READ: RwLock<Option<PeersRead>> = RwLock::new(None);

type PeersRead = HashMap<Box<[u8]>, Option<Peer>>;

/// What a process of the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A metadata node.
    Meta,
    /// A storage node.
    Storage,
    /// A gateway.
    Gateway,
}

impl Role {
    /// The word for it in certificates, configuration and `cluster.json`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Storage => "storage",
            Self::Gateway => "gateway",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Meta, Self::Storage, Self::Gateway].into_iter().find(|role| role.as_str() == word)
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its installation.
    pub cluster: ClusterId,
    /// What it is.
    pub role: Role,
    /// Which one.
    pub node: NodeId,
}

impl Peer {
    /// The URI that a certificate carries for this peer.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("keepstone://{}/{}/{}", self.cluster, self.role.as_str(), self.node)
    }

    fn parse(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix("keepstone://")?.split('/');
        let peer = Self {
            cluster: parts.next()?.parse().ok()?,
            role: Role::parse(parts.next()?)?,
            node: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(peer)
    }

    /// Reads the peer out of a certificate in DER form; `None` if it names none, or more than one.
    #[must_use]
    pub fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_rest, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let mut peers = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Self::parse(uri),
            _ => None,
        });
        let peer = peers.next()?;
        peers.next().is_none().then_some(peer)
    }

    /// The same, of a certificate that is shown again and again.
    fn from_certificate_shown(der: &[u8]) -> Option<Self> {
        let read = READ.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = read.as_ref().and_then(|read| read.get(der)) {
            return *peer;
        }
        drop(read);
        let peer = Self::from_certificate(der);
        let mut read = READ.write().unwrap_or_else(PoisonError::into_inner);
        let read = read.get_or_insert_default();
        if read.len() >= READ_MAX {
            read.clear();
        }
        read.insert(der.into(), peer);
        peer
    }

    /// Checks that a request comes from a node of `cluster` in one of `roles`.
    ///
    /// # Errors
    /// UNAUTHENTICATED without a usable certificate, PERMISSION_DENIED for another cluster or role.
    pub fn authorize<T>(
        request: &Request<T>,
        cluster: ClusterId,
        roles: &[Role],
    ) -> Result<Self, Box<Status>> {
        let peer = request
            .peer_certs()
            .and_then(|certificates| certificates.first().and_then(|leaf| Self::from_certificate_shown(leaf)))
            .ok_or_else(|| Box::new(Status::unauthenticated("no certificate of a cluster node")))?;
        if peer.cluster != cluster || !roles.contains(&peer.role) {
            let who = format!("{} {} of cluster {}", peer.role.as_str(), peer.node, peer.cluster);
            return Err(Box::new(Status::permission_denied(format!("not for {who}"))));
        }
        Ok(peer)
    }
}

/// Where a process keeps its certificate, in PEM form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the cluster's CAs; several while one replaces another.
    pub ca: PathBuf,
    /// This process's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why certificates could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The CAs' certificates cannot be used.
    #[error("{} has no usable certificate of a CA: {why}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The certificate does not say who this process is.
    #[error("{} is not a certificate of a cluster node: it has no name keepstone://CLUSTER/ROLE/ID", path.display())]
    NoPeer {
        /// The file.
        path: PathBuf,
    },
}

/// Why no connection can be prepared.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address is none.
    #[error("not an address: {source}")]
    Address {
        /// Why.
        #[from]
        source: tonic::transport::Error,
    },
    /// The CAs' certificates cannot be used.
    #[error("no usable certificate of a CA: {why}")]
    Ca {
        /// Why.
        why: String,
    },
}

/// A process's loaded certificate, and who it says the process is.
#[derive(Clone)]
pub struct TlsIdentity {
    ca: Certificate,
    identity: Identity,
    peer: Peer,
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

impl TlsIdentity {
    /// Loads and checks the files.
    ///
    /// # Errors
    /// If a file cannot be read or the certificate names no peer.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let no_peer = || TlsError::NoPeer { path: files.certificate.clone() };
        let certificate = read(&files.certificate)?;
        let pem = x509_parser::pem::parse_x509_pem(&certificate).map_err(|_not_pem| no_peer())?.1;
        let peer = Peer::from_certificate(&pem.contents).ok_or_else(no_peer)?;
        let ca = read(&files.ca)?;
        let anybody = ExpectedServer { cluster: peer.cluster, role: peer.role, node: None };
        ExpectedServerVerifier::new(&ca, anybody)
            .map_err(|why| TlsError::Ca { path: files.ca.clone(), why })?;
        Ok(Self {
            ca: Certificate::from_pem(ca),
            identity: Identity::from_pem(&certificate, read(&files.key)?),
            peer,
        })
    }

    /// Who this process is.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// For a server that takes only peers with a certificate of this cluster's CA.
    #[must_use]
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity.clone()).client_ca_root(self.ca.clone())
    }

    /// Whom this process expects where a node of `role` should be; `node` if it knows which.
    #[must_use]
    pub fn expects(&self, role: Role, node: Option<NodeId>) -> ExpectedServer {
        ExpectedServer { cluster: self.peer.cluster, role, node }
    }

    /// For a client that proves itself and speaks to `expected` only, at `address` (host:port).
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub fn endpoint(&self, address: &str, expected: ExpectedServer) -> Result<Endpoint, EndpointError> {
        let verifier = ExpectedServerVerifier::new(self.ca.as_ref(), expected)
            .map_err(|why| EndpointError::Ca { why })?;
        let tls = ClientTlsConfig::new().identity(self.identity.clone()).domain_name(INTERNAL_NAME);
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?;
        Ok(endpoint.tls_config_with_verifier(tls, Arc::new(verifier))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate_with(uris: &[&str]) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec![INTERNAL_NAME.to_owned()]).unwrap();
        for uri in uris {
            params.subject_alt_names.push(rcgen::SanType::URI((*uri).try_into().unwrap()));
        }
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_names_exactly_one_peer() {
        let peer = Peer { cluster: ClusterId::from_bytes([7; 16]), role: Role::Storage, node: NodeId(3) };
        assert_eq!(Peer::from_certificate(&certificate_with(&[&peer.uri()])), Some(peer));
        assert_eq!(Peer::from_certificate(&certificate_with(&[])), None);
        assert_eq!(Peer::from_certificate(&certificate_with(&["keepstone://x/meta/1"])), None);
        assert_eq!(Peer::from_certificate(&certificate_with(&[&format!("{}/x", peer.uri())])), None);
        assert_eq!(Peer::from_certificate(&certificate_with(&[&peer.uri(), &peer.uri()])), None);
        assert_eq!(Peer::from_certificate(b"garbage"), None);
    }

    #[test]
    fn a_certificate_names_the_same_peer_when_it_is_shown_again() {
        let peer =
            |node| Peer { cluster: ClusterId::from_bytes([7; 16]), role: Role::Meta, node: NodeId(node) };
        let certificates = [1, 2].map(|node| certificate_with(&[&peer(node).uri()]));
        for _shown in 0..3 {
            for (certificate, node) in certificates.iter().zip(1..) {
                assert_eq!(Peer::from_certificate_shown(certificate), Some(peer(node)));
            }
            assert_eq!(Peer::from_certificate_shown(b"garbage"), None);
        }
        // More than are remembered: each is what it is all the same.
        for number in 0..READ_MAX * 2 {
            assert_eq!(Peer::from_certificate_shown(&number.to_be_bytes()), None);
        }
        assert_eq!(Peer::from_certificate_shown(&certificates[1]), Some(peer(2)));
        assert!(READ.read().unwrap().as_ref().unwrap().len() <= READ_MAX);
    }
}
