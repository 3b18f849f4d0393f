//! The cluster's certificate authority and the certificates it gives.
//!
//! Private keys are written with mode 0600. The CA's key is needed again only to add nodes: an operator of real
//! servers keeps it elsewhere.

use std::path::{Path, PathBuf};

use anyhow::Context;
use engine::ids::{ClusterId, NodeId};
use proto::peer::{INTERNAL_NAME, Peer, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::files::{PRIVATE, PUBLIC, write_whole};

/// How long certificates hold. They are not renewed by themselves yet, so long.
const YEARS: i32 = 20;
/// The cluster key, from which the disks' keys will be wrapped.
const CLUSTER_KEY_BYTES: usize = 32;

/// A CA that can sign.
pub(crate) struct Authority {
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, in PEM form.
pub(crate) struct Leaf {
    certificate_pem: String,
    key_pem: String,
}

/// Where a leaf was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeafFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

fn with_dates(mut params: CertificateParams) -> CertificateParams {
    let year = i32::from(jiff::Timestamp::now().to_zoned_datetime(jiff::tz::TimeZone::UTC).year());
    // From a year ago, so that a clock that is behind does no harm.
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + YEARS, 1, 1);
    params
}

impl Authority {
    /// A new CA.
    pub(crate) fn create(cluster: ClusterId) -> anyhow::Result<Self> {
        let mut params = with_dates(CertificateParams::new(Vec::<String>::new())?);
        params.distinguished_name.push(DnType::CommonName, format!("Keepstone cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Writes the certificate to `ca.pem` and the key to `ca.key`; gives the former's path.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<PathBuf> {
        let path = directory.join("ca.pem");
        write_whole(&directory.join("ca.key"), self.key_pem.as_bytes(), PRIVATE)?;
        self.write_certificate(&path)?;
        Ok(path)
    }

    /// Writes the certificate alone.
    pub(crate) fn write_certificate(&self, path: &Path) -> anyhow::Result<()> {
        write_whole(path, self.certificate_pem.as_bytes(), PUBLIC)
    }

    /// A certificate by which the tiers know each other.
    pub(crate) fn internal(&self, peer: Peer) -> anyhow::Result<Leaf> {
        let mut params = CertificateParams::new(vec![INTERNAL_NAME.to_owned()])?;
        let uri = peer.uri().as_str().try_into().context("a peer's URI")?;
        params.subject_alt_names.push(SanType::URI(uri));
        let name = format!("keepstone {} {}", peer.role.as_str(), peer.node);
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// The certificate that clients see at a gateway which is reached by `hosts`: names or addresses.
    pub(crate) fn public(&self, hosts: &[String]) -> anyhow::Result<Leaf> {
        let mut all: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        for host in hosts.iter().cloned().chain(host_name()) {
            if !all.contains(&host) {
                all.push(host);
            }
        }
        let mut params =
            CertificateParams::new(all).context("a host's name for the gateway's certificate")?;
        params.distinguished_name.push(DnType::CommonName, "keepstone gateway");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> anyhow::Result<Leaf> {
        let mut params = with_dates(params);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

impl Leaf {
    /// Writes `NAME.pem` and `NAME.key`.
    pub(crate) fn write(&self, directory: &Path, name: &str) -> anyhow::Result<LeafFiles> {
        let files = LeafFiles {
            certificate: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        };
        write_whole(&files.key, self.key_pem.as_bytes(), PRIVATE)?;
        write_whole(&files.certificate, self.certificate_pem.as_bytes(), PUBLIC)?;
        Ok(files)
    }
}

/// Writes a new cluster key.
pub(crate) fn write_cluster_key(path: &Path) -> anyhow::Result<()> {
    let mut key = [0; CLUSTER_KEY_BYTES];
    getrandom::fill(&mut key)
        .map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
    write_whole(path, &key, PRIVATE)
}

/// A new cluster's id.
pub(crate) fn new_cluster_id() -> anyhow::Result<ClusterId> {
    let mut bytes = [0; ClusterId::LENGTH];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
    Ok(ClusterId::from_bytes(bytes))
}

/// This host's name, if it is one that a certificate can carry.
pub(crate) fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_lowercase();
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (!name.is_empty() && name.len() <= 253 && name.chars().all(letters)).then_some(name)
}

/// The peer of a role in `cluster`.
pub(crate) fn peer(cluster: ClusterId, role: Role, node: NodeId) -> Peer {
    Peer { cluster, role, node }
}

#[cfg(test)]
mod tests {
    use proto::peer::{TlsFiles, TlsIdentity};

    use super::*;

    #[test]
    fn a_written_certificate_names_its_peer() {
        let directory = tempfile::tempdir().unwrap();
        let cluster = new_cluster_id().unwrap();
        let authority = Authority::create(cluster).unwrap();
        let ca = authority.write(directory.path()).unwrap();
        let peer = peer(cluster, Role::Storage, NodeId(4));
        let files = authority.internal(peer).unwrap().write(directory.path(), "storage-4").unwrap();
        let tls = TlsFiles { ca, certificate: files.certificate, key: files.key };
        assert_eq!(TlsIdentity::load(&tls).unwrap().peer(), peer);
    }

    #[test]
    fn a_gateway_can_be_reached_by_names_and_addresses() {
        let authority = Authority::create(new_cluster_id().unwrap()).unwrap();
        assert!(authority.public(&["127.0.0.1".to_owned(), "files.example.org".to_owned()]).is_ok());
    }
}
