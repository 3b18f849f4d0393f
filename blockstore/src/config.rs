//! What a storage node is told. The command line reads it from TOML.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use engine::ids::NodeId;
use proto::peer::TlsFiles;

/// A storage node's configuration. Its cluster comes from its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageConfig {
    /// This node, as its certificate names it.
    pub node: NodeId,
    /// Where it serves; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `host:port` by which others reach it; the address it serves at, when absent.
    pub advertise: Option<String>,
    /// Where it remembers which disks it has served.
    pub data_dir: PathBuf,
    /// One directory per disk.
    pub disks: Vec<PathBuf>,
    /// Its failure domain; may be empty.
    pub rack: String,
    /// `host:port` of the metadata nodes.
    pub meta: Vec<String>,
    /// Its certificate.
    pub tls: TlsFiles,
    /// Kept free on each disk; when absent 2% of it, at most 2 GiB.
    pub reserve_bytes: Option<u64>,
    /// The background scrub.
    pub scrub: ScrubConfig,
    /// More places of a disk than this that cannot be read make it suspect: it serves nothing more.
    pub unreadable_places_max: u64,
}

/// The default of [`StorageConfig::unreadable_places_max`]: drives remap some sectors in their life; one with more has
/// begun to die.
pub const UNREADABLE_PLACES_MAX_DEFAULT: u64 = 64;

/// How the background scrub goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubConfig {
    /// How fast each disk is read; 0 switches the background scrub off.
    pub bytes_per_second: u64,
    /// From the beginning of one pass to that of the next.
    pub interval: Duration,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { bytes_per_second: 8 * 1024 * 1024, interval: Duration::from_secs(14 * 24 * 3600) }
    }
}
