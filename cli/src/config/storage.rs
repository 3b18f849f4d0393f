//! The configuration of a storage node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use blockstore::config::{ScrubConfig, StorageConfig, UNREADABLE_PLACES_MAX_DEFAULT};
use engine::ids::NodeId;
use serde::Deserialize;

use super::{TlsSection, join, optional, path, text, texts};
use crate::args::parse_size;

/// How the background scrub goes on.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScrubSection {
    pub(crate) bytes_per_second: Option<String>,
    pub(crate) interval: Option<String>,
}

/// The file's keys.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StorageFile {
    pub(crate) node: NodeId,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<String>,
    pub(crate) data_dir: PathBuf,
    pub(crate) disks: Vec<PathBuf>,
    #[serde(default)]
    pub(crate) rack: String,
    pub(crate) meta: Vec<String>,
    pub(crate) reserve: Option<String>,
    pub(crate) unreadable_places_max: Option<u64>,
    #[serde(default)]
    pub(crate) scrub: ScrubSection,
    pub(crate) tls: TlsSection,
}

fn size(key: &str, value: &str) -> anyhow::Result<u64> {
    parse_size(value).map_err(|error| anyhow::anyhow!("{key} = {value:?}: {error}"))
}

impl StorageFile {
    pub(crate) fn resolve(&self, directory: &Path) -> anyhow::Result<StorageConfig> {
        let mut scrub = ScrubConfig::default();
        if let Some(rate) = &self.scrub.bytes_per_second {
            scrub.bytes_per_second = size("bytes_per_second", rate)?;
        }
        if let Some(interval) = &self.scrub.interval {
            scrub.interval = humantime::parse_duration(interval)
                .with_context(|| format!("interval = {interval:?}: write a duration such as 14d"))?;
        }
        Ok(StorageConfig {
            node: self.node,
            listen: self.listen,
            advertise: self.advertise.clone(),
            data_dir: join(directory, &self.data_dir),
            disks: self.disks.iter().map(|disk| join(directory, disk)).collect(),
            rack: self.rack.clone(),
            meta: self.meta.clone(),
            tls: self.tls.resolve(directory),
            reserve_bytes: self.reserve.as_deref().map(|reserve| size("reserve", reserve)).transpose()?,
            scrub,
            unreadable_places_max: self.unreadable_places_max.unwrap_or(UNREADABLE_PLACES_MAX_DEFAULT),
        })
    }

    pub(crate) fn render(&self) -> String {
        let disks: Vec<String> = self.disks.iter().map(|disk| path(disk)).collect();
        let quoted = |value: &Option<String>| value.as_deref().map(text);
        format!(
            "# A storage node. Paths are relative to this file's directory.\n\n\
             # This node's number, as in its certificate. Never give it to another node.\n\
             node = {node}\n\
             # Where it serves the other nodes.\n\
             listen = \"{listen}\"\n\
             # host:port by which others reach it, if not by the above.\n\
             {advertise}\
             # Where it remembers which disks it has served.\n\
             data_dir = {data_dir}\n\
             # One directory per disk. A new or empty one becomes a new disk; one that has been served before and\n\
             # is empty or gone is reported as missing, and never made anew.\n\
             disks = [{disks}]\n\
             # Its failure domain: stripes are spread over racks where there are enough.\n\
             rack = {rack}\n\
             # The metadata nodes, ID@host:port each: nobody else is spoken to there. (Without ID@: any metadata node.)\n\
             meta = {meta}\n\
             # Kept free on each disk for deletes and repairs; 2% of the disk and at most 2G unless set.\n\
             {reserve}\n\
             # How fast each disk is re-read in the background, and how long from one pass to the next.\n\
             [scrub]\n{rate}{interval}\n\
             {tls}",
            node = self.node,
            listen = self.listen,
            advertise =
                optional("advertise", quoted(&self.advertise).as_deref(), "\"storage1.example.org:7441\""),
            data_dir = path(&self.data_dir),
            disks = disks.join(", "),
            rack = text(&self.rack),
            meta = texts(&self.meta),
            reserve = optional("reserve", quoted(&self.reserve).as_deref(), "\"2G\""),
            rate = optional("bytes_per_second", quoted(&self.scrub.bytes_per_second).as_deref(), "\"8M\""),
            interval = optional("interval", quoted(&self.scrub.interval).as_deref(), "\"14d\""),
            tls = self.tls.render(),
        )
    }

    /// For `--print-config`.
    pub(crate) fn example() -> Self {
        Self {
            node: NodeId(1),
            listen: SocketAddr::from(([0, 0, 0, 0], 7441)),
            advertise: Some("storage1.example.org:7441".to_owned()),
            data_dir: "/var/lib/keepstone/storage-1".into(),
            disks: vec!["/srv/keepstone/disk-1".into(), "/srv/keepstone/disk-2".into()],
            rack: "rack-1".to_owned(),
            meta: (1..=3).map(|node| format!("{node}@meta{node}.example.org:7431")).collect(),
            reserve: None,
            unreadable_places_max: None,
            scrub: ScrubSection::default(),
            tls: TlsSection::example("storage-1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rendered_parses_alike() {
        let mut file = StorageFile::example();
        assert_eq!(toml::from_str::<StorageFile>(&file.render()).unwrap(), file);
        file.reserve = Some("1G".to_owned());
        file.scrub.interval = Some("1d".to_owned());
        assert_eq!(toml::from_str::<StorageFile>(&file.render()).unwrap(), file);
    }

    #[test]
    fn sizes_and_durations_are_checked() {
        let mut file = StorageFile::example();
        file.reserve = Some("much".to_owned());
        assert!(file.resolve(Path::new("/")).is_err());
        file.reserve = Some("3G".to_owned());
        assert_eq!(file.resolve(Path::new("/")).unwrap().reserve_bytes, Some(3 << 30));
        file.scrub.interval = Some("sometimes".to_owned());
        assert!(file.resolve(Path::new("/")).is_err());
    }
}
