//! The configuration of a gateway.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use engine::ids::NodeId;
use gateway::config::{GatewayConfig, Limits};
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
    #[serde(default)]
    pub(crate) limits: Limits,
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
            limits: self.limits.clone(),
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
             # The metadata nodes, ID@host:port each: nobody else is spoken to there. (Without ID@: any metadata node.)\n\
             meta = {meta}\n\n\
             # The certificate that clients see, with its chain.\n\
             [public]\ncertificate = {certificate}\nkey = {key}\n\n\
             {tls}\n\
             # What clients may do at most, where it is not the default; docs/limits.md lists and explains all of it.\n\
             [limits]\n{limits}",
            node = self.node,
            listen = self.listen,
            data_dir = path(&self.data_dir),
            meta = texts(&self.meta),
            certificate = path(&self.public.certificate),
            key = path(&self.public.key),
            tls = self.tls.render(),
            limits = render_limits(&self.limits),
        )
    }

    /// For `--print-config`.
    pub(crate) fn example() -> Self {
        Self {
            node: NodeId(1),
            listen: SocketAddr::from(([0, 0, 0, 0], 7420)),
            data_dir: "/var/lib/keepstone/gateway-1".into(),
            meta: (1..=3).map(|node| format!("{node}@meta{node}.example.org:7431")).collect(),
            public: PublicSection { certificate: "public.pem".into(), key: "public.key".into() },
            tls: TlsSection::example("gateway-1"),
            limits: Limits::default(),
        }
    }
}

/// Those that are not the default.
fn render_limits(limits: &Limits) -> String {
    let default = Limits::default().values();
    let own = limits.values().into_iter().zip(default).filter(|(own, default)| own != default);
    own.map(|((name, value), _default)| format!("{name} = {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rendered_parses_alike() {
        let mut file = GatewayFile::example();
        assert_eq!(toml::from_str::<GatewayFile>(&file.render()).unwrap(), file);
        file.limits.account_downloads_max = 7;
        assert_eq!(toml::from_str::<GatewayFile>(&file.render()).unwrap(), file);
    }

    #[test]
    fn a_limit_that_there_is_not_is_refused() {
        let text = format!("{}no_such_limit = 1\n", GatewayFile::example().render());
        assert!(toml::from_str::<GatewayFile>(&text).unwrap_err().to_string().contains("no_such_limit"));
    }
}
