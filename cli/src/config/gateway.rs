//! The configuration of a gateway.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use engine::ids::NodeId;
use gateway::config::GatewayConfig;
use serde::Deserialize;

use super::{TlsSection, join, path, texts};

/// The certificate that clients see.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PublicSection {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// The file's keys.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayFile {
    pub(crate) node: NodeId,
    pub(crate) listen: SocketAddr,
    pub(crate) data_dir: PathBuf,
    pub(crate) meta: Vec<String>,
    pub(crate) public: PublicSection,
    pub(crate) tls: TlsSection,
}

impl GatewayFile {
    pub(crate) fn resolve(&self, directory: &Path) -> GatewayConfig {
        GatewayConfig {
            node: self.node,
            listen: self.listen,
            meta: self.meta.clone(),
            internal_tls: self.tls.resolve(directory),
            certificate: join(directory, &self.public.certificate),
            key: join(directory, &self.public.key),
            data_dir: join(directory, &self.data_dir),
        }
    }

    pub(crate) fn render(&self) -> String {
        format!(
            "# A gateway. Paths are relative to this file's directory.\n\n\
             # This node's number, as in its certificate. Never give it to another node.\n\
             node = {node}\n\
             # Where clients reach it.\n\
             listen = \"{listen}\"\n\
             # For caches. Nothing here has to survive.\n\
             data_dir = {data_dir}\n\
             # host:port of the metadata nodes.\n\
             meta = {meta}\n\n\
             # The certificate that clients see, with its chain.\n\
             [public]\ncertificate = {certificate}\nkey = {key}\n\n\
             {tls}",
            node = self.node,
            listen = self.listen,
            data_dir = path(&self.data_dir),
            meta = texts(&self.meta),
            certificate = path(&self.public.certificate),
            key = path(&self.public.key),
            tls = self.tls.render(),
        )
    }

    /// For `--print-config`.
    pub(crate) fn example() -> Self {
        Self {
            node: NodeId(1),
            listen: SocketAddr::from(([0, 0, 0, 0], 7420)),
            data_dir: "/var/lib/keepstone/gateway-1".into(),
            meta: (1..=3).map(|node| format!("meta{node}.example.org:7431")).collect(),
            public: PublicSection { certificate: "public.pem".into(), key: "public.key".into() },
            tls: TlsSection::example("gateway-1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rendered_parses_alike() {
        let file = GatewayFile::example();
        assert_eq!(toml::from_str::<GatewayFile>(&file.render()).unwrap(), file);
    }
}
