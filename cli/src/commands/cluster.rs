//! `cluster init`, `cluster bootstrap`: a cluster of several real servers.
//!
//! `init` writes one directory per node, to be copied to its server, and `cluster.toml` for the operator. Nothing is
//! written over: the output directory must be new or empty.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use client::profile::{Ca, Profile};
use engine::code::Code;
use engine::ids::{ClusterId, NodeId};
use gateway::config::Limits;
use proto::peer::{MetaAddress, Role, TlsFiles, TlsIdentity};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::read_password;
use crate::args::{ClusterBootstrap, ClusterCommand, ClusterInit, Member};
use crate::bootstrap::{Administrator, Installation, bootstrap};
use crate::config::gateway::{GatewayFile, PublicSection};
use crate::config::meta::{MemberRow, MetaFile};
use crate::config::storage::{ScrubSection, StorageFile};
use crate::config::{self, TlsSection};
use crate::files::{PUBLIC, make_directory, write_whole};
use crate::output::Output;
use crate::pki::{self, Authority};
use crate::shown::{shown, shown_argument, shown_path};

pub(crate) async fn run(command: ClusterCommand, output: &Output) -> anyhow::Result<ExitCode> {
    match command {
        ClusterCommand::Init(arguments) => init(&arguments, output),
        ClusterCommand::Bootstrap(arguments) => run_bootstrap(arguments, output).await,
    }
}

fn one() -> usize {
    1
}

/// What `bootstrap` needs to know.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    cluster: String,
    code: String,
    data_groups: u16,
    /// How many there will be; volumes are spread over them.
    #[serde(default = "one")]
    storage_nodes: usize,
    endpoint: String,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    members: Vec<FileMember>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMember {
    node: NodeId,
    address: String,
}

fn check(arguments: &ClusterInit) -> anyhow::Result<()> {
    let ClusterInit { metas, storages, gateways, disks, code, .. } = arguments;
    anyhow::ensure!(
        metas.len() % 2 == 1,
        "{} metadata nodes survive no more failures than {}: take an odd number",
        metas.len(),
        metas.len() - 1
    );
    for (what, members) in [("--meta", metas), ("--storage", storages), ("--gateway", gateways)] {
        let mut ids: Vec<NodeId> = members.iter().map(|member| member.node).collect();
        ids.sort_unstable();
        ids.dedup();
        anyhow::ensure!(ids.len() == members.len(), "{what} names an id twice");
    }
    let count = storages.len() * disks.len();
    let total = code.total();
    anyhow::ensure!(count >= total, "code {code} needs {total} disks, and there are {count}");
    Ok(())
}

fn empty_directory(path: &Path) -> anyhow::Result<()> {
    make_directory(path)?;
    let mut entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(entries.next().is_none(), "{} is not empty; name a new directory", path.display());
    Ok(())
}

fn init(arguments: &ClusterInit, output: &Output) -> anyhow::Result<ExitCode> {
    check(arguments)?;
    let out = &arguments.out;
    empty_directory(out)?;
    let cluster = pki::new_cluster_id()?;
    let authority = Authority::create(cluster)?;
    let pki_directory = out.join("pki");
    make_directory(&pki_directory)?;
    authority.write(&pki_directory)?;
    pki::write_cluster_key(&pki_directory.join("cluster.key"))?;
    let writer = Writer { arguments, cluster, authority };
    for member in &arguments.metas {
        let file = writer.meta_file(member)?;
        writer.write_node(Role::Meta, member, &file.render())?;
    }
    for member in &arguments.storages {
        let file = writer.storage_file(member)?;
        writer.write_node(Role::Storage, member, &file.render())?;
    }
    for member in &arguments.gateways {
        let file = writer.gateway_file(member)?;
        let directory = writer.write_node(Role::Gateway, member, &file.render())?;
        let host = split(&member.address)?.0.trim_matches(['[', ']']).to_owned();
        writer.authority.public(&[host])?.write(&directory, "public")?;
    }
    let cluster_toml = out.join("cluster.toml");
    writer.write_cluster_file(&cluster_toml)?;
    output.print(&json!({ "cluster": cluster.to_string(), "directory": out, "config": cluster_toml }), || {
        format!(
            "Made cluster {cluster} in {}.\n\n\
             1. Copy each node's directory to its server, readable by the user that runs it only.\n\
             2. Look over its configuration, and start it: keepstone meta --config meta-1/meta.toml, and so on.\n\
             3. keepstone cluster bootstrap --config {} --email YOU@EXAMPLE.ORG\n\n\
             Keep pki/ca.key and pki/cluster.key where no server is: with the first others can join the cluster,\n\
             and without the second encrypted disks cannot be read.\n",
            shown_path(out),
            cluster_toml.display()
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn split(address: &str) -> anyhow::Result<(&str, u16)> {
    let (host, port) = address.rsplit_once(':').context("an address without a port")?;
    Ok((host, port.parse().context("a port")?))
}

/// Writes the nodes' directories.
struct Writer<'a> {
    arguments: &'a ClusterInit,
    cluster: ClusterId,
    authority: Authority,
}

impl Writer<'_> {
    fn name(role: Role, member: &Member) -> String {
        format!("{}-{}", role.as_str(), member.node)
    }

    fn write_node(&self, role: Role, member: &Member, config: &str) -> anyhow::Result<PathBuf> {
        let directory = self.arguments.out.join(Self::name(role, member));
        make_directory(&directory)?;
        self.authority.write_certificate(&directory.join("ca.pem"))?;
        self.authority.internal(pki::peer(self.cluster, role, member.node))?.write(&directory, "node")?;
        write_whole(&directory.join(format!("{}.toml", role.as_str())), config.as_bytes(), PUBLIC)?;
        Ok(directory)
    }

    fn tls() -> TlsSection {
        TlsSection { ca: "ca.pem".into(), certificate: "node.pem".into(), key: "node.key".into() }
    }

    fn data_dir(role: Role, member: &Member) -> PathBuf {
        format!("/var/lib/keepstone/{}", Self::name(role, member)).into()
    }

    /// On all of the server's addresses: the one that others use may be a name.
    fn listen(member: &Member) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::from(([0, 0, 0, 0], split(&member.address)?.1)))
    }

    fn meta_addresses(&self) -> Vec<String> {
        let named = |member: &Member| {
            MetaAddress { node: Some(member.node), address: member.address.clone() }.to_string()
        };
        self.arguments.metas.iter().map(named).collect()
    }

    fn meta_file(&self, member: &Member) -> anyhow::Result<MetaFile> {
        let row = |member: &Member| MemberRow { node: member.node, address: member.address.clone() };
        Ok(MetaFile {
            node: member.node,
            listen: Self::listen(member)?,
            advertise: Some(member.address.clone()),
            data_dir: Self::data_dir(Role::Meta, member),
            data_groups: self.arguments.data_groups,
            snapshot_log_entries: None,
            log_entries_kept: None,
            members: self.arguments.metas.iter().map(row).collect(),
            tls: Self::tls(),
        })
    }

    fn storage_file(&self, member: &Member) -> anyhow::Result<StorageFile> {
        Ok(StorageFile {
            node: member.node,
            listen: Self::listen(member)?,
            advertise: Some(member.address.clone()),
            data_dir: Self::data_dir(Role::Storage, member),
            disks: self.arguments.disks.clone(),
            rack: String::new(),
            meta: self.meta_addresses(),
            reserve: None,
            unreadable_places_max: None,
            scrub: ScrubSection::default(),
            tls: Self::tls(),
        })
    }

    fn gateway_file(&self, member: &Member) -> anyhow::Result<GatewayFile> {
        Ok(GatewayFile {
            node: member.node,
            listen: Self::listen(member)?,
            data_dir: Self::data_dir(Role::Gateway, member),
            meta: self.meta_addresses(),
            public: PublicSection { certificate: "public.pem".into(), key: "public.key".into() },
            tls: Self::tls(),
            limits: Limits::default(),
        })
    }

    fn write_cluster_file(&self, path: &Path) -> anyhow::Result<()> {
        let gateway = self.arguments.gateways.first().context("a cluster without a gateway")?;
        let directory = PathBuf::from(Self::name(Role::Gateway, gateway));
        let row = |member: &Member| FileMember { node: member.node, address: member.address.clone() };
        let file = ClusterFile {
            cluster: self.cluster.to_string(),
            code: self.arguments.code.to_string(),
            data_groups: self.arguments.data_groups,
            storage_nodes: self.arguments.storages.len(),
            endpoint: format!("https://{}", gateway.address),
            ca: "pki/ca.pem".into(),
            certificate: directory.join("node.pem"),
            key: directory.join("node.key"),
            members: self.arguments.metas.iter().map(row).collect(),
        };
        let header = "# For `keepstone cluster bootstrap`. Paths are relative to this file's directory.\n\n";
        write_whole(path, format!("{header}{}", toml::to_string(&file)?).as_bytes(), PUBLIC)
    }
}

async fn run_bootstrap(arguments: ClusterBootstrap, output: &Output) -> anyhow::Result<ExitCode> {
    let (file, directory) = config::load::<ClusterFile>(&arguments.config)?;
    let damaged = || format!("{} is damaged", arguments.config.display());
    let ca = directory.join(&file.ca);
    let identity = TlsIdentity::load(&TlsFiles {
        ca: ca.clone(),
        certificate: directory.join(&file.certificate),
        key: directory.join(&file.key),
    })?;
    let installation = Installation {
        cluster: file.cluster.parse::<ClusterId>().with_context(damaged)?,
        code: file.code.parse::<Code>().with_context(damaged)?,
        data_groups: file.data_groups,
        storage_nodes: file.storage_nodes,
        meta_nodes: file.members.into_iter().map(|member| (member.node, member.address)).collect(),
    };
    let password = if arguments.password_stdin { Some(read_password(true, false).await?) } else { None };
    let administrator = Administrator {
        email: arguments.email.clone(),
        name: arguments.name,
        password,
        device: "keepstone cluster bootstrap".to_owned(),
    };
    let admin = bootstrap(&identity, &installation, &administrator).await?;
    let path = arguments.out.unwrap_or_else(|| directory.join("profile.toml"));
    let profile = Profile {
        endpoint: file.endpoint,
        ca: Ca::read(&ca)?,
        token: admin.token,
        account: admin.account.to_string(),
        device: admin.device.to_string(),
    };
    profile.save(&path)?;
    let document = json!({
        "cluster": installation.cluster.to_string(), "endpoint": profile.endpoint,
        "account": profile.account, "profile": path,
    });
    output.print(&document, || {
        format!(
            "The cluster is initialised. The administrator is {}, the profile {}.\n\
             Next: keepstone --profile {} admin status",
            shown(&arguments.email),
            shown_path(&path),
            shown_argument(&path)
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command};

    fn arguments(more: &[&str]) -> ClusterInit {
        let base = [
            "keepstone",
            "cluster",
            "init",
            "--storage",
            "1=s1:7441",
            "--gateway",
            "1=files.example.org:443",
        ];
        let parsed = Arguments::try_parse_from(base.iter().chain(more)).unwrap();
        match parsed.command {
            Command::Cluster(ClusterCommand::Init(init)) => init,
            _ => panic!("not init"),
        }
    }

    #[test]
    fn each_node_gets_what_it_needs() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        let out_text = out.to_str().unwrap();
        let flags = ["--out", out_text, "--meta", "1=m1:1", "--code", "1+1", "--disk", "/a", "--disk", "/b"];
        let arguments = arguments(&flags);
        init(&arguments, &Output::new(false)).unwrap();
        let (meta, base) = config::load::<MetaFile>(&out.join("meta-1/meta.toml")).unwrap();
        assert!(TlsIdentity::load(&meta.resolve(&base).tls).is_ok());
        let (gateway, base) = config::load::<GatewayFile>(&out.join("gateway-1/gateway.toml")).unwrap();
        assert!(gateway.resolve(&base).certificate.is_file());
        let (cluster, base) = config::load::<ClusterFile>(&out.join("cluster.toml")).unwrap();
        assert!(base.join(cluster.certificate).is_file());
        assert_eq!(cluster.endpoint, "https://files.example.org:443");
        assert!(init(&arguments, &Output::new(false)).is_err(), "nothing is written over");
    }

    #[test]
    fn clusters_that_cannot_work_are_refused() {
        let two = ["--out", "/none", "--meta", "1=m1:1", "--meta", "2=m2:1", "--code", "1+1", "--disk", "/a"];
        assert!(check(&arguments(&two)).is_err());
        let few = ["--out", "/none", "--meta", "1=m1:1", "--code", "4+2"];
        assert!(check(&arguments(&few)).is_err());
        let twice =
            ["--out", "/none", "--meta", "1=m1:1", "--code", "1+1", "--disk", "/a", "--storage", "1=s2:1"];
        assert!(check(&arguments(&twice)).is_err());
    }
}
