//! A certificate authority in a scratch directory, and storage nodes whose certificates come from it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockstore::client::StorageClient;
use blockstore::config::{ScrubConfig, StorageConfig, UNREADABLE_PLACES_MAX_DEFAULT};
use engine::ids::{ClusterId, NodeId};
use proto::peer::{INTERNAL_NAME, Peer, Role, TlsFiles, TlsIdentity};

pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([0xc1; 16]);

/// One cluster's certificate authority.
pub(crate) struct Authority {
    directory: PathBuf,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(crate) fn new(directory: &Path) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
        Self { directory: directory.to_owned(), issuer: rcgen::Issuer::new(params, key) }
    }

    /// Issues a certificate.
    pub(crate) fn issue(&self, cluster: ClusterId, role: Role, node: u64) -> TlsFiles {
        let peer = Peer { cluster, role, node: NodeId(node) };
        let mut params = rcgen::CertificateParams::new(vec![INTERNAL_NAME.to_owned()]).unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(peer.uri().as_str().try_into().unwrap()));
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |suffix: &str| self.directory.join(format!("{cluster}-{}-{node}.{suffix}", role.as_str()));
        std::fs::write(file("pem"), certificate.pem()).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        TlsFiles { ca: self.directory.join("ca.pem"), certificate: file("pem"), key: file("key") }
    }

    pub(crate) fn identity(&self, cluster: ClusterId, role: Role, node: u64) -> TlsIdentity {
        TlsIdentity::load(&self.issue(cluster, role, node)).unwrap()
    }

    /// The configuration of a storage node with `disks` disks.
    pub(crate) fn config(&self, scratch: &Path, disks: usize, meta: Vec<String>) -> StorageConfig {
        StorageConfig {
            node: NodeId(7),
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            data_dir: scratch.join("node"),
            disks: (0..disks).map(|number| scratch.join(format!("disk-{number}"))).collect(),
            rack: "r1".to_owned(),
            meta,
            tls: self.issue(CLUSTER, Role::Storage, 7),
            reserve_bytes: Some(0),
            scrub: ScrubConfig { bytes_per_second: 0, interval: Duration::from_secs(3600) },
            unreadable_places_max: UNREADABLE_PLACES_MAX_DEFAULT,
        }
    }

    /// A client in some role that finds every disk at `address`, at the node of [`Self::config`].
    pub(crate) fn client(&self, cluster: ClusterId, role: Role, address: &str) -> StorageClient {
        let address = address.to_owned();
        StorageClient::new(
            &self.identity(cluster, role, 1),
            Arc::new(move |_disk| Some((NodeId(7), address.clone()))),
        )
    }
}
