//! The first start: ports, CA, certificates, cluster key and configuration files. See `up` for the order.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::Context;
use engine::ids::NodeId;
use gateway::config::Limits;
use proto::peer::{MetaAddress, Role};

use super::layout::{Layout, RoleName};
use super::parameters::{Changes, META_NODES, Parameters};
use super::ports::FreePorts;
use crate::config::TlsSection;
use crate::config::gateway::{GatewayFile, PublicSection};
use crate::config::meta::{MemberRow, MetaFile};
use crate::config::storage::{ScrubSection, StorageFile};
use crate::files::{PUBLIC, make_directory, write_whole};
use crate::pki::{self, Authority};

/// Makes a new cluster in an empty directory (or one in which an earlier try was cut short).
pub(crate) fn generate(layout: &Layout, changes: &Changes) -> anyhow::Result<Parameters> {
    refuse_foreign(layout)?;
    let cluster = pki::new_cluster_id()?;
    let mut parameters = changes.new_cluster(cluster)?;
    choose_addresses(&mut parameters)?;
    for directory in [layout.config_directory(), layout.pki(), layout.root().join("logs")] {
        make_directory(&directory)?;
    }
    let authority = Authority::create(cluster)?;
    authority.write(&layout.pki())?;
    pki::write_cluster_key(&layout.pki().join("cluster.key"))?;
    for name in parameters.roles() {
        let peer = pki::peer(cluster, name.role, NodeId(name.number.into()));
        authority.internal(peer)?.write(&layout.pki(), &name.to_string())?;
        make_directory(&layout.data(name))?;
        let text = match name.role {
            Role::Meta => meta_file(&parameters, name).render(),
            Role::Storage => storage_file(&parameters, name).render(),
            Role::Gateway => gateway_file(&parameters, name).render(),
        };
        write_whole(&layout.config(name), text.as_bytes(), PUBLIC)?;
    }
    let host = parameters.listen.ip();
    let hosts = if host.is_unspecified() { Vec::new() } else { vec![host.to_string()] };
    authority.public(&hosts)?.write(&layout.pki(), "public")?;
    parameters.save(&layout.parameters())?;
    Ok(parameters)
}

/// A directory with other things in it is not taken for a cluster's.
fn refuse_foreign(layout: &Layout) -> anyhow::Result<()> {
    let root = layout.root();
    let ours = ["lock", "config", "pki", "logs"];
    for entry in std::fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let role = ["meta-", "storage-", "gateway-"].iter().any(|prefix| name.starts_with(prefix));
        // The harness that runs us, or a shell, may write our output there.
        let log = name.ends_with(".log");
        let known = ours.contains(&&*name) || role || log || name == "profile.toml";
        anyhow::ensure!(
            known,
            "{} is not a cluster's directory and not empty (there is {name:?} in it); name another with --data",
            root.display()
        );
    }
    Ok(())
}

fn choose_addresses(parameters: &mut Parameters) -> anyhow::Result<()> {
    let mut ports = FreePorts::new();
    if parameters.listen.port() == 0 {
        parameters.listen = ports.take(parameters.listen.ip())?;
    } else {
        ports.take_exactly(parameters.listen)?;
    }
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    parameters.meta = (0..META_NODES).map(|_| ports.take(loopback)).collect::<Result<_, _>>()?;
    parameters.storage =
        (0..parameters.storage_nodes).map(|_| ports.take(loopback)).collect::<Result<_, _>>()?;
    Ok(())
}

/// As seen from `config/`.
fn tls(name: RoleName) -> TlsSection {
    TlsSection {
        ca: "../pki/ca.pem".into(),
        certificate: format!("../pki/{name}.pem").into(),
        key: format!("../pki/{name}.key").into(),
    }
}

fn data(name: RoleName) -> PathBuf {
    format!("../{name}").into()
}

fn meta_file(parameters: &Parameters, name: RoleName) -> MetaFile {
    let members = parameters.meta_nodes();
    MetaFile {
        node: NodeId(name.number.into()),
        listen: parameters.address(name),
        advertise: None,
        data_dir: data(name),
        data_groups: parameters.data_groups,
        snapshot_log_entries: None,
        log_entries_kept: None,
        members: members.into_iter().map(|(node, address)| MemberRow { node, address }).collect(),
        tls: tls(name),
    }
}

fn meta_addresses(parameters: &Parameters) -> Vec<String> {
    let named = |(node, address)| MetaAddress { node: Some(node), address }.to_string();
    parameters.meta_nodes().into_iter().map(named).collect()
}

fn storage_file(parameters: &Parameters, name: RoleName) -> StorageFile {
    let disk = |number| data(name).join(format!("disk-{number}"));
    StorageFile {
        node: NodeId(name.number.into()),
        listen: parameters.address(name),
        advertise: None,
        data_dir: data(name),
        disks: (1..=parameters.disks_per_node).map(disk).collect(),
        rack: String::new(),
        meta: meta_addresses(parameters),
        reserve: None,
        unreadable_places_max: None,
        scrub: ScrubSection::default(),
        tls: tls(name),
    }
}

fn gateway_file(parameters: &Parameters, name: RoleName) -> GatewayFile {
    GatewayFile {
        node: NodeId(name.number.into()),
        listen: parameters.listen,
        data_dir: data(name),
        meta: meta_addresses(parameters),
        public: PublicSection { certificate: "../pki/public.pem".into(), key: "../pki/public.key".into() },
        tls: tls(name),
        limits: Limits::default(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command};

    fn changes(flags: &[&str]) -> Changes {
        let arguments = ["keepstone", "up", "--listen", "127.0.0.1:0"].iter().chain(flags);
        match Arguments::try_parse_from(arguments).unwrap().command {
            Command::Up(up) => Changes::of(&up),
            _ => panic!("not up"),
        }
    }

    #[test]
    fn a_new_cluster_has_what_its_roles_need() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned());
        let parameters = generate(&layout, &changes(&["--disks-per-node", "2"])).unwrap();
        assert_ne!(parameters.listen.port(), 0);
        assert_eq!(Parameters::load(&layout.parameters()).unwrap(), Some(parameters.clone()));
        for name in parameters.roles() {
            let path = layout.config(name);
            match name.role {
                Role::Meta => {
                    let (file, base) = crate::config::load::<MetaFile>(&path).unwrap();
                    let config = file.resolve(&base);
                    assert!(config.tls.key.is_file() && config.members.len() == 3);
                }
                Role::Storage => {
                    let (file, base) = crate::config::load::<StorageFile>(&path).unwrap();
                    assert_eq!(file.resolve(&base).unwrap().disks.len(), 2);
                }
                Role::Gateway => {
                    let (file, base) = crate::config::load::<GatewayFile>(&path).unwrap();
                    assert!(file.resolve(&base).certificate.is_file());
                }
            }
        }
    }

    #[test]
    fn a_directory_of_something_else_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("thesis.tex"), "").unwrap();
        let layout = Layout::new(directory.path().to_owned());
        let error = generate(&layout, &changes(&[])).unwrap_err().to_string();
        assert!(error.contains("thesis.tex"), "{error}");
    }
}
