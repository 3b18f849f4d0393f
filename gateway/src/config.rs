//! How a gateway is told what to be.

use std::net::SocketAddr;
use std::path::PathBuf;

use engine::ids::NodeId;
use proto::peer::TlsFiles;

/// A gateway's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Its id, as in its certificate.
    pub node: NodeId,
    /// Where clients reach it; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Metadata nodes, `host:port` each.
    pub meta: Vec<String>,
    /// Who it is towards the other tiers.
    pub internal_tls: TlsFiles,
    /// The certificate that clients see, in PEM form, with its chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// For caches to come; nothing durable, and nothing at all yet.
    pub data_dir: PathBuf,
}
