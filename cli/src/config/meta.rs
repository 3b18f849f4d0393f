//! The configuration of a metadata node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use engine::ids::NodeId;
use metaraft::node::{LOG_ENTRIES_KEPT, MetaConfig, SNAPSHOT_LOG_ENTRIES, SNAPSHOT_STALL_MAX};
use serde::Deserialize;

use super::{TlsSection, join, optional, path, text};

/// A metadata node and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemberRow {
    pub(crate) node: NodeId,
    pub(crate) address: String,
}

/// The file's keys.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MetaFile {
    pub(crate) node: NodeId,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<String>,
    pub(crate) data_dir: PathBuf,
    pub(crate) data_groups: u16,
    pub(crate) snapshot_log_entries: Option<u64>,
    pub(crate) log_entries_kept: Option<u64>,
    pub(crate) members: Vec<MemberRow>,
    pub(crate) tls: TlsSection,
}

impl MetaFile {
    pub(crate) fn resolve(&self, directory: &Path) -> MetaConfig {
        MetaConfig {
            node: self.node,
            listen: self.listen,
            advertise: self.advertise.clone(),
            data_dir: join(directory, &self.data_dir),
            tls: self.tls.resolve(directory),
            members: self.members.iter().map(|member| (member.node, member.address.clone())).collect(),
            data_groups: self.data_groups,
            snapshot_log_entries: self.snapshot_log_entries.unwrap_or(SNAPSHOT_LOG_ENTRIES),
            log_entries_kept: self.log_entries_kept.unwrap_or(LOG_ENTRIES_KEPT),
            snapshot_stall_max: SNAPSHOT_STALL_MAX,
        }
    }

    pub(crate) fn render(&self) -> String {
        let number = |value: Option<u64>| value.map(|value| value.to_string());
        let members: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("    {{ node = {}, address = {} }},\n", member.node, text(&member.address)))
            .collect();
        format!(
            "# A metadata node. Paths are relative to this file's directory.\n\n\
             # This node's number, as in its certificate. Never give it to another node.\n\
             node = {node}\n\
             # Where it serves the other nodes.\n\
             listen = \"{listen}\"\n\
             # host:port by which others reach it, if not by the above.\n\
             {advertise}\
             # Where its databases are. Must survive: what is acknowledged is here.\n\
             data_dir = {data_dir}\n\
             # Raft groups that hold metadata, beside the root group. The same on all nodes; fixed by the first start.\n\
             data_groups = {data_groups}\n\
             # Log entries after which a group's log is compacted, and how many are kept after that.\n\
             {snapshot}{kept}\
             # All metadata nodes, this one too.\n\
             members = [\n{members}]\n\n\
             {tls}",
            node = self.node,
            listen = self.listen,
            advertise = optional(
                "advertise",
                self.advertise.as_deref().map(text).as_deref(),
                "\"meta1.example.org:7431\""
            ),
            data_dir = path(&self.data_dir),
            data_groups = self.data_groups,
            snapshot = optional(
                "snapshot_log_entries",
                number(self.snapshot_log_entries).as_deref(),
                &SNAPSHOT_LOG_ENTRIES.to_string()
            ),
            kept = optional(
                "log_entries_kept",
                number(self.log_entries_kept).as_deref(),
                &LOG_ENTRIES_KEPT.to_string()
            ),
            members = members.concat(),
            tls = self.tls.render(),
        )
    }

    /// For `--print-config`.
    pub(crate) fn example() -> Self {
        let member = |node| MemberRow { node: NodeId(node), address: format!("meta{node}.example.org:7431") };
        Self {
            node: NodeId(1),
            listen: SocketAddr::from(([0, 0, 0, 0], 7431)),
            advertise: Some("meta1.example.org:7431".to_owned()),
            data_dir: "/var/lib/keepstone/meta-1".into(),
            data_groups: 1,
            snapshot_log_entries: None,
            log_entries_kept: None,
            members: (1..=3).map(member).collect(),
            tls: TlsSection::example("meta-1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rendered_parses_alike() {
        let file = MetaFile::example();
        assert_eq!(toml::from_str::<MetaFile>(&file.render()).unwrap(), file);
    }

    #[test]
    fn unknown_keys_are_refused() {
        let text = format!("no_such_key = 1\n{}", MetaFile::example().render());
        assert!(toml::from_str::<MetaFile>(&text).unwrap_err().to_string().contains("no_such_key"));
    }
}
