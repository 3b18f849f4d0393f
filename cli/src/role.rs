//! One role of a cluster, running: started from its configuration file, in this process.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use blockstore::node::StorageNode;
use engine::ids::ROOT_GROUP;
use gateway::server::Gateway;
use metaraft::node::MetaNode;
use metaraft::state::StateMachine;
use metaraft::warden::Warden;
use metaraft::warden::liveness::Liveness;
use proto::peer::TlsIdentity;

use crate::args::{RoleArguments, StorageArguments};
use crate::config;
use crate::config::gateway::GatewayFile;
use crate::config::meta::MetaFile;
use crate::config::storage::StorageFile;
use crate::listen::wait_until_free;
use crate::output::Output;
use crate::shutdown::StopSignals;

/// Set by `keepstone up --processes`: the process id with which a role ends.
pub(crate) const PARENT_VARIABLE: &str = "KEEPSTONE_PARENT";
/// How long a role may take to stop before its process ends anyway: all that is acknowledged is durable.
const STOP_TIME_MAX: Duration = Duration::from_secs(15);

/// A metadata node with its warden.
pub(crate) struct RunningMeta {
    node: MetaNode,
    warden: Warden,
}

impl RunningMeta {
    pub(crate) async fn start(file: &Path) -> anyhow::Result<Self> {
        let (parsed, directory) = config::load::<MetaFile>(file)?;
        wait_to_listen(parsed.listen)?;
        let liveness = Arc::new(Liveness::default());
        let app = Arc::new(StateMachine::new(liveness.clone()));
        let node = MetaNode::start(parsed.resolve(&directory), app)
            .await
            .with_context(|| format!("metadata node {} does not start", parsed.node))?;
        let root = node.group(ROOT_GROUP).context("a metadata node without a root group")?;
        let warden = Warden::start(root, liveness);
        node.set_heartbeat_sink(warden.sink());
        Ok(Self { node, warden })
    }

    /// Waits until it is of no use any more, and says why. Cancel safe.
    pub(crate) fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        self.node.failed()
    }

    pub(crate) async fn stop(self) {
        self.warden.stop().await;
        drop(self.warden);
        self.node.stop().await;
    }
}

pub(crate) async fn start_storage(file: &Path) -> anyhow::Result<StorageNode> {
    let (parsed, directory) = config::load::<StorageFile>(file)?;
    wait_to_listen(parsed.listen)?;
    let config = parsed.resolve(&directory).with_context(|| format!("in {}", file.display()))?;
    StorageNode::start(config).await.with_context(|| format!("storage node {} does not start", parsed.node))
}

pub(crate) async fn start_gateway(file: &Path) -> anyhow::Result<Gateway> {
    let (parsed, directory) = config::load::<GatewayFile>(file)?;
    wait_to_listen(parsed.listen)?;
    Gateway::start(parsed.resolve(&directory))
        .await
        .with_context(|| format!("gateway {} does not start", parsed.node))
}

fn wait_to_listen(address: SocketAddr) -> anyhow::Result<()> {
    wait_until_free(address).with_context(|| format!("cannot listen on {address}"))
}

/// Prints the example, or gives the file to start from.
fn file_or_example<'a>(
    arguments: &'a RoleArguments,
    output: &Output,
    example: impl FnOnce() -> String,
) -> anyhow::Result<Option<&'a Path>> {
    if arguments.print_config {
        let example = example();
        output.print(&serde_json::json!({ "config": example }), || example.clone())?;
        return Ok(None);
    }
    Ok(Some(arguments.config.as_deref().context("no --config")?))
}

/// Makes this process end with the one that started it, if that asked for it.
fn end_with_parent() -> anyhow::Result<()> {
    let Some(parent) = std::env::var_os(PARENT_VARIABLE) else { return Ok(()) };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let now = rustix::process::getppid().map(rustix::process::Pid::as_raw_nonzero);
    if now.map(|pid| pid.to_string()).as_deref() != parent.to_str() {
        anyhow::bail!("the process that started this one has ended");
    }
    Ok(())
}

async fn stop_in_time(role: &str, stop: impl Future<Output = ()>) -> ExitCode {
    tracing::info!(role, "stops");
    if tokio::time::timeout(STOP_TIME_MAX, stop).await.is_err() {
        tracing::warn!(role, "did not stop in time; ends anyway");
    }
    ExitCode::SUCCESS
}

pub(crate) async fn run_meta(arguments: &RoleArguments, output: &Output) -> anyhow::Result<ExitCode> {
    let Some(file) = file_or_example(arguments, output, || MetaFile::example().render())? else {
        return Ok(ExitCode::SUCCESS);
    };
    end_with_parent()?;
    let mut signals = StopSignals::new()?;
    let meta = RunningMeta::start(file).await?;
    let failed = tokio::select! {
        () = signals.wait() => None,
        reason = meta.failed() => Some(reason),
    };
    let code = stop_in_time("meta", meta.stop()).await;
    match failed {
        None => Ok(code),
        Some(reason) => anyhow::bail!(
            "{reason}. Look after the disk, then start this metadata node again; the others go on meanwhile"
        ),
    }
}

pub(crate) async fn run_storage(arguments: &StorageArguments, output: &Output) -> anyhow::Result<ExitCode> {
    let Some(file) = file_or_example(&arguments.role, output, || StorageFile::example().render())? else {
        return Ok(ExitCode::SUCCESS);
    };
    if let Some(disk) = &arguments.unfence {
        return unfence(file, disk, output).await;
    }
    end_with_parent()?;
    let mut signals = StopSignals::new()?;
    let storage = start_storage(file).await?;
    signals.wait().await;
    Ok(stop_in_time("storage", storage.stop()).await)
}

/// Verifies a disk and lifts its fence.
async fn unfence(file: &Path, disk: &Path, output: &Output) -> anyhow::Result<ExitCode> {
    let (parsed, directory) = config::load::<StorageFile>(file)?;
    let config = parsed.resolve(&directory).with_context(|| format!("in {}", file.display()))?;
    let cluster = TlsIdentity::load(&config.tls)?.peer().cluster;
    let path = disk.to_owned();
    let verified = tokio::task::spawn_blocking(move || blockstore::disks::unfence(&config, cluster, &path))
        .await?
        .with_context(|| format!("the disk in {} stays fenced", disk.display()))?;
    let (shards, damaged) = (verified.shards, verified.damaged);
    output.print(&serde_json::json!({ "disk": disk, "shards": shards, "damaged": damaged }), || {
        format!(
            "The disk in {} was read from beginning to end: {shards} shards, {damaged} of them damaged.\n\
             It serves again once its node is started.\n",
            disk.display()
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn run_gateway(arguments: &RoleArguments, output: &Output) -> anyhow::Result<ExitCode> {
    let Some(file) = file_or_example(arguments, output, || GatewayFile::example().render())? else {
        return Ok(ExitCode::SUCCESS);
    };
    end_with_parent()?;
    let mut signals = StopSignals::new()?;
    let gateway = start_gateway(file).await?;
    tracing::info!(address = %gateway.address(), "gateway started");
    signals.wait().await;
    Ok(stop_in_time("gateway", gateway.stop()).await)
}
