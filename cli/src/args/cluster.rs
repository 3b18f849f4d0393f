//! Arguments of the commands that run a cluster or its parts.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use engine::code::Code;
use engine::ids::NodeId;

#[derive(Clone, Debug, Args)]
pub(crate) struct Up {
    /// Where everything is kept. [default: $XDG_DATA_HOME/keepstone, or ~/.local/share/keepstone]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where clients reach the gateway; port 0 picks a free one. [default: 127.0.0.1:7420]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Storage nodes. [default: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) storage_nodes: Option<u16>,
    /// Disks in each storage node. [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) disks_per_node: Option<u16>,
    /// Data and parity shards of a stripe. [default: 4+2]
    #[arg(long, value_name = "K+M")]
    pub(crate) code: Option<Code>,
    /// Raft groups that hold metadata, beside the root group. [default: 1]
    #[arg(long, value_name = "G", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) data_groups: Option<u16>,
    /// Run each role as a process of its own.
    #[arg(long)]
    pub(crate) processes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RoleArguments {
    /// The configuration, a TOML file; paths in it are relative to its directory.
    #[arg(long, value_name = "FILE", required_unless_present = "print_config")]
    pub(crate) config: Option<PathBuf>,
    /// Print a configuration with comments to begin with, and stop.
    #[arg(long)]
    pub(crate) print_config: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StorageArguments {
    #[command(flatten)]
    pub(crate) role: RoleArguments,
    /// Verify every record of a fenced disk from the medium, let it serve again, and stop. The node must not run.
    #[arg(long, value_name = "DISK-DIR", conflicts_with = "print_config")]
    pub(crate) unfence: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make a new cluster's CA, certificates, key and configuration files.
    Init(ClusterInit),
    /// Initialise a cluster whose metadata nodes run, once, and make an administrator.
    Bootstrap(ClusterBootstrap),
}

/// A node to be set up: its id and where others reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) node: NodeId,
    /// `host:port`.
    pub(crate) address: String,
}

impl std::str::FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "write ID=HOST:PORT, such as 1=meta1.example.org:7431".to_owned();
        let (id, address) = text.split_once('=').ok_or_else(bad)?;
        let node: NodeId = id.parse().map_err(|_not_an_id| bad())?;
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_not_a_port| bad())?;
        if node.0 == 0 || host.is_empty() || port == 0 {
            return Err(bad());
        }
        Ok(Self { node, address: address.to_owned() })
    }
}

#[derive(Debug, Args)]
pub(crate) struct ClusterInit {
    /// Where to write everything; must not exist or be empty. Keep `pki/ca.key` and `pki/cluster.key` safe.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// A metadata node; three, or five, each on a server of its own.
    #[arg(long = "meta", value_name = "ID=HOST:PORT", required = true)]
    pub(crate) metas: Vec<Member>,
    /// A storage node.
    #[arg(long = "storage", value_name = "ID=HOST:PORT", required = true)]
    pub(crate) storages: Vec<Member>,
    /// A gateway, by the name that clients use.
    #[arg(long = "gateway", value_name = "ID=HOST:PORT", required = true)]
    pub(crate) gateways: Vec<Member>,
    /// A disk's directory on the storage nodes; several times for several.
    #[arg(long = "disk", value_name = "DIR", default_value = "/srv/keepstone/disk-1")]
    pub(crate) disks: Vec<PathBuf>,
    /// Data and parity shards of a stripe.
    #[arg(long, value_name = "K+M", default_value = "6+3")]
    pub(crate) code: Code,
    /// Raft groups that hold metadata, beside the root group.
    #[arg(long, value_name = "G", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) data_groups: u16,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterBootstrap {
    /// `cluster.toml` as `keepstone cluster init` wrote it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The administrator's email address.
    #[arg(long)]
    pub(crate) email: String,
    /// The administrator's name.
    #[arg(long, default_value = "Administrator")]
    pub(crate) name: String,
    /// Read a password for the administrator from standard input; without it there is only the profile's token.
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// Where to write the administrator's profile. [default: profile.toml beside the configuration]
    #[arg(long, value_name = "PROFILE")]
    pub(crate) out: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_have_an_id_a_host_and_a_port() {
        let member: Member = "3=[::1]:7431".parse().unwrap();
        assert_eq!(member, Member { node: NodeId(3), address: "[::1]:7431".to_owned() });
        for bad in ["", "3", "3=host", "=host:1", "0=host:1", "3=:1", "3=host:0", "3=host:99999", "x=host:1"]
        {
            assert!(bad.parse::<Member>().is_err(), "{bad}");
        }
    }
}
