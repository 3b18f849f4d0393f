//! What a cluster was made with: chosen at its first start, kept in `config/up.toml`, the same ever after.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Context;
use engine::code::Code;
use engine::ids::{ClusterId, NodeId};
use proto::peer::Role;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, RoleName};
use crate::args::Up;
use crate::files::{PUBLIC, write_whole};

/// Metadata replicas.
pub(crate) const META_NODES: u16 = 3;
/// Where the gateway listens unless told otherwise.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7420);
const STORAGE_NODES: u16 = 6;
const DISKS_PER_NODE: u16 = 1;
const DATA_GROUPS: u16 = 1;
const CODE: (u8, u8) = (4, 2);

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parameters {
    /// The installation, in hex.
    pub(crate) cluster: String,
    /// `K+M`.
    pub(crate) code: String,
    pub(crate) data_groups: u16,
    pub(crate) storage_nodes: u16,
    pub(crate) disks_per_node: u16,
    /// Where the gateway listens.
    pub(crate) listen: SocketAddr,
    /// Where metadata and storage nodes listen, by number.
    pub(crate) meta: Vec<SocketAddr>,
    pub(crate) storage: Vec<SocketAddr>,
}

impl Parameters {
    /// Reads them; `None` before the first start.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let parsed: Self = toml::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
        let whole = parsed.meta.len() == usize::from(META_NODES)
            && parsed.storage.len() == usize::from(parsed.storage_nodes);
        anyhow::ensure!(whole, "{} is damaged: it does not name every node", path.display());
        parsed.cluster().and(parsed.code()).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Some(parsed))
    }

    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = toml::to_string(self).context("the parameters as TOML")?;
        let header = "# What this cluster was made with. It cannot be changed.\n\n";
        write_whole(path, format!("{header}{text}").as_bytes(), PUBLIC)
    }

    pub(crate) fn cluster(&self) -> anyhow::Result<ClusterId> {
        Ok(self.cluster.parse()?)
    }

    pub(crate) fn code(&self) -> anyhow::Result<Code> {
        Ok(self.code.parse()?)
    }

    /// All roles, in the order in which they start.
    pub(crate) fn roles(&self) -> Vec<RoleName> {
        let of = |role, count| (1..=count).map(move |number| RoleName { role, number });
        of(Role::Meta, META_NODES)
            .chain(of(Role::Storage, self.storage_nodes))
            .chain(of(Role::Gateway, 1))
            .collect()
    }

    /// Where a role listens.
    pub(crate) fn address(&self, name: RoleName) -> SocketAddr {
        let index = usize::from(name.number) - 1;
        match name.role {
            Role::Meta => self.meta[index],
            Role::Storage => self.storage[index],
            Role::Gateway => self.listen,
        }
    }

    /// All roles and where they listen.
    pub(crate) fn addresses(&self) -> Vec<(RoleName, SocketAddr)> {
        self.roles().into_iter().map(|name| (name, self.address(name))).collect()
    }

    pub(crate) fn meta_nodes(&self) -> Vec<(NodeId, String)> {
        (1..).map(NodeId).zip(self.meta.iter().map(ToString::to_string)).collect()
    }

    /// Where clients on this machine reach the gateway.
    pub(crate) fn endpoint(&self) -> String {
        let ip = match self.listen.ip() {
            ip if !ip.is_unspecified() => ip,
            std::net::IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        format!("https://{}", SocketAddr::new(ip, self.listen.port()))
    }
}

/// What the command line asks for; absent means "as it is", or the default at a first start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    listen: Option<SocketAddr>,
    storage_nodes: Option<u16>,
    disks_per_node: Option<u16>,
    code: Option<Code>,
    data_groups: Option<u16>,
}

impl Changes {
    pub(crate) fn of(arguments: &Up) -> Self {
        Self {
            listen: arguments.listen,
            storage_nodes: arguments.storage_nodes,
            disks_per_node: arguments.disks_per_node,
            code: arguments.code,
            data_groups: arguments.data_groups,
        }
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or(LISTEN)
    }

    /// The parameters of a new cluster, but for its addresses.
    pub(crate) fn new_cluster(&self, cluster: ClusterId) -> anyhow::Result<Parameters> {
        let code = match self.code {
            Some(code) => code,
            None => Code::new(CODE.0, CODE.1)?,
        };
        let parameters = Parameters {
            cluster: cluster.to_string(),
            code: code.to_string(),
            data_groups: self.data_groups.unwrap_or(DATA_GROUPS),
            storage_nodes: self.storage_nodes.unwrap_or(STORAGE_NODES),
            disks_per_node: self.disks_per_node.unwrap_or(DISKS_PER_NODE),
            listen: self.listen(),
            meta: Vec::new(),
            storage: Vec::new(),
        };
        let disks = usize::from(parameters.storage_nodes) * usize::from(parameters.disks_per_node);
        anyhow::ensure!(
            disks >= code.total(),
            "code {code} needs {} disks, and {disks} are asked for: raise --storage-nodes or --disks-per-node, \
             or choose another --code",
            code.total()
        );
        Ok(parameters)
    }

    /// Refuses to change a cluster that has been made.
    pub(crate) fn check(&self, made: &Parameters, layout: &Layout) -> anyhow::Result<()> {
        let differs = |wanted: Option<u16>, is: u16| wanted.is_some_and(|wanted| wanted != is);
        // Port 0 asks for a free one, and one has been found.
        let listen = self.listen.is_some_and(|wanted| {
            wanted.ip() != made.listen.ip() || (wanted.port() != 0 && wanted.port() != made.listen.port())
        });
        let code = self.code.is_some_and(|wanted| wanted.to_string() != made.code);
        let different = [
            (listen, "--listen", made.listen.to_string()),
            (
                differs(self.storage_nodes, made.storage_nodes),
                "--storage-nodes",
                made.storage_nodes.to_string(),
            ),
            (
                differs(self.disks_per_node, made.disks_per_node),
                "--disks-per-node",
                made.disks_per_node.to_string(),
            ),
            (code, "--code", made.code.clone()),
            (differs(self.data_groups, made.data_groups), "--data-groups", made.data_groups.to_string()),
        ];
        match different.into_iter().find(|(differs, ..)| *differs) {
            Some((_, flag, is)) => anyhow::bail!(
                "the cluster in {} was made with {flag} {is}, which cannot be changed; leave the flag out, \
                 or make another cluster with --data",
                layout.root().display()
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Parameters {
        let mut parameters = Changes::default().new_cluster(ClusterId::from_bytes([1; 16])).unwrap();
        parameters.meta = vec![LISTEN; 3];
        parameters.storage = vec![LISTEN; 6];
        parameters
    }

    #[test]
    fn parameters_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("up.toml");
        assert_eq!(Parameters::load(&path).unwrap(), None);
        made().save(&path).unwrap();
        assert_eq!(Parameters::load(&path).unwrap(), Some(made()));
        std::fs::write(&path, "cluster = 1").unwrap();
        assert!(Parameters::load(&path).is_err());
    }

    #[test]
    fn only_the_same_flags_may_be_given_again() {
        let layout = Layout::new("/d".into());
        assert!(Changes::default().check(&made(), &layout).is_ok());
        let same = Changes { storage_nodes: Some(6), data_groups: Some(1), ..Changes::default() };
        assert!(same.check(&made(), &layout).is_ok());
        let other = Changes { data_groups: Some(3), ..Changes::default() };
        let error = other.check(&made(), &layout).unwrap_err().to_string();
        assert!(error.contains("--data-groups 1"), "{error}");
        let any_port = Changes { listen: Some(SocketAddr::new(LISTEN.ip(), 0)), ..Changes::default() };
        assert!(any_port.check(&made(), &layout).is_ok());
    }

    #[test]
    fn a_code_with_too_few_disks_is_refused() {
        let changes = Changes { storage_nodes: Some(3), ..Changes::default() };
        assert!(changes.new_cluster(ClusterId::from_bytes([1; 16])).is_err());
        let changes = Changes { storage_nodes: Some(3), disks_per_node: Some(2), ..Changes::default() };
        assert!(changes.new_cluster(ClusterId::from_bytes([1; 16])).is_ok());
    }

    #[test]
    fn an_endpoint_can_be_connected_to() {
        let mut parameters = made();
        parameters.listen = "0.0.0.0:7420".parse().unwrap();
        assert_eq!(parameters.endpoint(), "https://127.0.0.1:7420");
        parameters.listen = "[::]:1".parse().unwrap();
        assert_eq!(parameters.endpoint(), "https://[::1]:1");
    }
}
