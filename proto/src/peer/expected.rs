//! Who a client expects at an address, checked during the TLS handshake, before a byte of a request is sent.
//!
//! Invariants:
//! - A server is taken only if the cluster's CA signed its certificate and the certificate names the expected
//!   cluster, role and, where the client knows it, node. A storage node at a metadata node's address gets nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::ids::{ClusterId, NodeId};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::{Peer, Role};

/// Who must be at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExpectedServer {
    /// Its installation.
    pub cluster: ClusterId,
    /// What it is.
    pub role: Role,
    /// Which one; `None` where only the role is known.
    pub node: Option<NodeId>,
}

impl ExpectedServer {
    fn is(&self, peer: &Peer) -> bool {
        self.cluster == peer.cluster
            && self.role == peer.role
            && self.node.is_none_or(|node| node == peer.node)
    }
}

impl std::fmt::Display for ExpectedServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} node", self.role.as_str())?;
        if let Some(node) = self.node {
            write!(f, " {node}")?;
        }
        write!(f, " of cluster {}", self.cluster)
    }
}

/// The server is not who was expected.
#[derive(Debug, thiserror::Error)]
#[error("expected a {expected} at this address, but the certificate there is {found}")]
struct WrongServer {
    expected: ExpectedServer,
    found: String,
}

/// Verifies a server's certificate as rustls does, and who it names.
#[derive(Debug)]
pub(super) struct ExpectedServerVerifier {
    expected: ExpectedServer,
    chain: Arc<WebPkiServerVerifier>,
    /// Whether the last server was refused and that has been said: it is tried again many times a second.
    warned: AtomicBool,
}

impl ExpectedServerVerifier {
    /// `ca` is the CAs' certificates in PEM form. An error says why they cannot be used.
    pub(super) fn new(ca: &[u8], expected: ExpectedServer) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca) {
            roots.add(certificate.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { expected, chain, warned: AtomicBool::new(false) })
    }

    fn check_peer(&self, certificate: &[u8]) -> Result<(), WrongServer> {
        let found = match Peer::from_certificate(certificate) {
            Some(peer) if self.expected.is(&peer) => return Ok(()),
            Some(peer) => peer.uri(),
            None => "without a name keepstone://CLUSTER/ROLE/ID (issue it anew)".to_owned(),
        };
        Err(WrongServer { expected: self.expected, found })
    }
}

impl ServerCertVerifier for ExpectedServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        match self.check_peer(end_entity) {
            Ok(()) => {
                self.warned.store(false, Ordering::Relaxed);
                Ok(verified)
            }
            Err(wrong) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::error!(error = %wrong, "refused a server: check the addresses and certificates");
                }
                Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(wrong)))))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId::from_bytes([7; 16]);

    /// A CA's certificate in PEM form, and one that it signed for `peer`.
    fn issued(peer: Option<Peer>) -> (String, CertificateDer<'static>) {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let mut params = rcgen::CertificateParams::new(vec![super::super::INTERNAL_NAME.to_owned()]).unwrap();
        if let Some(peer) = peer {
            params.subject_alt_names.push(rcgen::SanType::URI(peer.uri().try_into().unwrap()));
        }
        let leaf = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();
        (ca, leaf.der().clone())
    }

    fn taken(peer: Option<Peer>, expected: ExpectedServer) -> bool {
        let (ca, leaf) = issued(peer);
        let name = ServerName::try_from(super::super::INTERNAL_NAME).unwrap();
        let verifier = ExpectedServerVerifier::new(ca.as_bytes(), expected).unwrap();
        let verified = verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now());
        let (other_ca, _leaf) = issued(peer);
        let other = ExpectedServerVerifier::new(other_ca.as_bytes(), expected).unwrap();
        assert!(other.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now()).is_err(), "another CA's");
        verified.is_ok()
    }

    #[test]
    fn only_the_expected_role_node_and_cluster_are_taken() {
        let peer = |role, node| Some(Peer { cluster: CLUSTER, role, node: NodeId(node) });
        let any_meta = ExpectedServer { cluster: CLUSTER, role: Role::Meta, node: None };
        let meta_2 = ExpectedServer { node: Some(NodeId(2)), ..any_meta };
        assert!(taken(peer(Role::Meta, 2), meta_2));
        assert!(taken(peer(Role::Meta, 3), any_meta));
        assert!(!taken(peer(Role::Meta, 3), meta_2));
        assert!(!taken(peer(Role::Storage, 2), meta_2));
        assert!(!taken(peer(Role::Gateway, 2), any_meta));
        assert!(!taken(None, any_meta));
        let elsewhere = ExpectedServer { cluster: ClusterId::from_bytes([8; 16]), ..any_meta };
        assert!(!taken(peer(Role::Meta, 2), elsewhere));
    }
}
