//! A cluster's gateway that is killed and started again while others use the cluster.

use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

use crate::cluster::Cluster;
use crate::process::ProcessRef;

/// The gateway. One that was started here ends when this is dropped.
#[derive(Debug)]
pub struct Gateway {
    argv: Vec<String>,
    process: ProcessRef,
    child: Option<Child>,
}

impl Gateway {
    /// The first gateway of a cluster.
    ///
    /// # Errors
    /// If it has none.
    pub fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let gateway = cluster.processes().into_iter().find(|(role, _)| role.role == "gateway");
        let (info, process) = gateway.context("no gateway")?;
        Ok(Self { argv: info.argv.clone(), process, child: None })
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// If it does not go.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// Starts it again by its argv; it listens a moment later.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let (program, arguments) = self.argv.split_first().context("empty argv")?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start the gateway")?;
        self.process = ProcessRef::observe(child.id()).context("it ended at once")?;
        self.child = Some(child);
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
