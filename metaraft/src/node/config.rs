//! What a metadata node is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use engine::ids::NodeId;
use proto::peer::TlsFiles;

/// Log entries between two snapshots, unless configured otherwise.
pub const SNAPSHOT_LOG_ENTRIES: u64 = 4096;
/// Log entries kept behind a snapshot for followers that lag, unless configured otherwise.
pub const LOG_ENTRIES_KEPT: u64 = 1024;

/// How long a snapshot on its way to another node may get on by nothing at all, unless configured otherwise.
pub const SNAPSHOT_STALL_MAX: Duration = Duration::from_secs(120);

/// How a metadata node is set up. A restart takes the same; only addresses may change.
#[derive(Clone, Debug)]
pub struct MetaConfig {
    /// This node's id: the one in its certificate. Never used again for another node, nor after its data is lost.
    pub node: NodeId,
    /// Where it listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where the others and the gateways reach it (host:port), if not as `members` says.
    pub advertise: Option<String>,
    /// Where its databases are; made if missing.
    pub data_dir: PathBuf,
    /// Its certificate.
    pub tls: TlsFiles,
    /// The first voters, itself included, with their addresses. The addresses in force are these, whatever they were
    /// when the cluster was founded.
    pub members: Vec<(NodeId, String)>,
    /// Data groups: 1 to this number, beside the root group.
    pub data_groups: u16,
    /// Log entries after which a group's log is compacted.
    pub snapshot_log_entries: u64,
    /// Log entries kept after that for followers that lag behind.
    pub log_entries_kept: u64,
    /// How long a snapshot on its way to another node may get on by nothing at all. There is no bound for the whole.
    pub snapshot_stall_max: Duration,
}
