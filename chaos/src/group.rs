//! Several devices of one account, and the two assertions of synchronisation: after quiet all of them and the server
//! are the same, and what users saved and did not give up themselves is live on each ([`crate::contents`]).

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::client::Client;
use crate::cluster::{Cluster, Options};
use crate::contents::{Contents, Missing};
use crate::device::{Device, SETTLE_DEADLINE};
use crate::snapshot::Snapshot;
use crate::wait::wait_for;

/// How often all devices are run to an end until nothing changes any more.
const ROUNDS_MAX: usize = 8;
/// Lost files that are shown.
const LOST_SHOWN_MAX: usize = 10;

static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// A cluster that all tests of this process share, each with an account of its own. It ends with the last of them.
///
/// # Errors
/// If it does not start.
pub fn shared_cluster() -> anyhow::Result<Arc<Cluster>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = shared.upgrade() {
        return Ok(cluster);
    }
    let cluster = Arc::new(Cluster::start(&Options::default())?);
    *shared = Arc::downgrade(&cluster);
    Ok(cluster)
}

/// Devices of one account.
#[derive(Debug)]
pub struct Group {
    cluster: Option<Arc<Cluster>>,
    /// The account's command line.
    pub client: Client,
    /// Its devices.
    pub devices: Vec<Device>,
    /// What was saved.
    pub contents: Contents,
    /// How names end that are ignored on these devices, and are not compared.
    pub ignored: Vec<String>,
    email: String,
}

impl Group {
    /// A new account on the shared cluster, with so many devices. Nothing runs yet.
    ///
    /// # Errors
    /// If something cannot be started or made.
    pub fn new(name: &str, count: usize) -> anyhow::Result<Self> {
        Self::on(shared_cluster()?, name, count)
    }

    /// The same on a given cluster.
    ///
    /// # Errors
    /// If something cannot be made.
    pub fn on(cluster: Arc<Cluster>, name: &str, count: usize) -> anyhow::Result<Self> {
        const PASSWORD: &str = "correct horse battery staple\n";
        let email = format!("{name}@example.org");
        let client = cluster.account(&email)?;
        let devices = ["a", "b", "c", "d", "e"]
            .iter()
            .take(count)
            .map(|name| Device::new(&cluster, &email, PASSWORD, name))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            cluster: Some(cluster),
            client,
            devices,
            contents: Contents::default(),
            ignored: Vec::new(),
            email,
        })
    }

    /// As [`Self::new`], and all devices run and agree.
    ///
    /// # Errors
    /// If they do not.
    pub fn running(name: &str, count: usize) -> anyhow::Result<Self> {
        let mut group = Self::new(name, count)?;
        group.start()?;
        for device in &group.devices {
            device.wait_up_to_date()?;
        }
        Ok(group)
    }

    /// The cluster.
    ///
    /// # Errors
    /// Never while the group lives.
    pub fn cluster(&self) -> anyhow::Result<&Cluster> {
        self.cluster.as_deref().context("the group is finished")
    }

    /// Starts all devices that do not run.
    ///
    /// # Errors
    /// If one cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        for device in &mut self.devices {
            if !device.is_running()? {
                device.kill()?;
                device.start()?;
            }
        }
        Ok(())
    }

    /// Stops all devices as Ctrl-C would.
    ///
    /// # Errors
    /// If one does not come to a clean end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.devices.iter_mut().try_for_each(Device::stop)
    }

    /// Waits until all running devices say that they agree with the server, and hold the same.
    ///
    /// # Errors
    /// If they do not come to.
    pub fn settle(&self) -> anyhow::Result<Snapshot> {
        let mut last = String::new();
        let settled = wait_for("all devices to be the same", SETTLE_DEADLINE, || {
            for device in &self.devices {
                let Some(status) = device.status()? else {
                    last = format!("{} does not answer", device.name);
                    return Ok(None);
                };
                if status["phase"] != "up-to-date" || status["pending_count"] != 0 {
                    last = format!("{} says {status:#}", device.name);
                    return Ok(None);
                }
            }
            let snapshots: Vec<Snapshot> =
                self.devices.iter().map(|device| self.snapshot(device)).collect::<anyhow::Result<_>>()?;
            let Some(first) = snapshots.first() else { return Ok(None) };
            for other in &snapshots[1..] {
                let found = first.differences(other);
                if !found.is_empty() {
                    last = found.join("\n");
                    return Ok(None);
                }
            }
            Ok(Some(first.clone()))
        });
        settled.with_context(|| last)
    }

    /// Brings all devices to an end: stops them, and runs each once until nothing changes any more; then all of them
    /// and the server must be the same.
    ///
    /// # Errors
    /// If they are not.
    pub fn converge(&mut self) -> anyhow::Result<Snapshot> {
        self.stop()?;
        let mut before = Vec::new();
        for _round in 0..ROUNDS_MAX {
            for device in &self.devices {
                // What is ignored stays, and may be in the way of what is not; nothing else is to be.
                if self.ignored.is_empty() {
                    device.once_agreed()?;
                } else {
                    device.once_made_way()?;
                }
            }
            let snapshots: Vec<Snapshot> =
                self.devices.iter().map(|device| self.snapshot(device)).collect::<anyhow::Result<_>>()?;
            let same = snapshots.windows(2).all(|pair| pair[0].differences(&pair[1]).is_empty());
            if same && snapshots == before {
                let agreed = snapshots.into_iter().next().context("no devices")?;
                self.assert_server(&agreed)?;
                return Ok(agreed);
            }
            before = snapshots;
        }
        for pair in self.devices.windows(2) {
            let which = format!("{} and {}", pair[0].name, pair[1].name);
            self.snapshot(&pair[0])?.assert_same(&self.snapshot(&pair[1])?, &which)?;
        }
        anyhow::bail!("the devices did not come to an end in {ROUNDS_MAX} rounds")
    }

    fn assert_server(&self, expected: &Snapshot) -> anyhow::Result<()> {
        let back = self.cluster()?.scratch(&format!("back/{}", self.email))?.join("tree");
        if back.exists() {
            fs::remove_dir_all(&back)?;
        }
        self.client.get("/", &back)?;
        let server = Snapshot::take(&back)?;
        let is_ignored = |path: &&&str| {
            path.split('/').any(|name| self.ignored.iter().any(|end| name.ends_with(end.as_str())))
        };
        let paths = server.paths();
        let sent: Vec<_> = paths.iter().filter(is_ignored).collect();
        ensure!(sent.is_empty(), "ignored, and sent to the server: {sent:?}");
        expected.assert_same(&server, "the devices and the server")
    }

    /// Fails if something that a user saved, and did not give up, is not live on every device, whatever trash or earlier
    /// version it may be in; or if something that stays on its device did not.
    ///
    /// # Errors
    /// If something is not there.
    pub fn assert_nothing_lost(&self) -> anyhow::Result<()> {
        for device in &self.devices {
            let missing = self.contents.missing(&device.name, &self.snapshot(device)?);
            if missing.is_empty() {
                continue;
            }
            let (count, total) = (missing.len(), self.contents.count());
            let shown = &missing[..count.min(LOST_SHOWN_MAX)];
            self.show_logs_about(shown);
            let lines: Vec<String> = shown.iter().map(Missing::to_string).collect();
            anyhow::bail!("{count} of {total} files are not live on {}:\n{}", device.name, lines.join("\n"));
        }
        Ok(())
    }

    fn show_logs_about(&self, missing: &[Missing]) {
        let names: BTreeSet<String> = missing.iter().flat_map(|file| file.names.iter().cloned()).collect();
        for device in &self.devices {
            eprintln!("{}", device.log_about(&names));
        }
    }

    /// A device's folder as a value, without what is ignored.
    fn snapshot(&self, device: &Device) -> anyhow::Result<Snapshot> {
        let is_ignored = |name: &str| self.ignored.iter().any(|end| name.ends_with(end.as_str()));
        Ok(device.snapshot()?.without(&is_ignored))
    }

    /// The numbers of a file's versions.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn versions(&self, path: &str) -> anyhow::Result<Vec<u64>> {
        let history = self.client.json(&["history", path])?;
        let versions = history["versions"].as_array().context("no versions")?;
        Ok(versions.iter().filter_map(|version| version["version"].as_u64()).collect())
    }

    /// The two assertions, and the end.
    ///
    /// # Errors
    /// If one does not hold.
    pub fn finish(mut self) -> anyhow::Result<Snapshot> {
        let agreed = self.converge()?;
        self.assert_nothing_lost()?;
        self.end()?;
        Ok(agreed)
    }

    /// The end without them: for devices that are not to be the same.
    ///
    /// # Errors
    /// If a device or the cluster does not come to a clean end.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.stop()?;
        self.devices.iter_mut().for_each(Device::calm);
        // Whoever is the last to use the cluster stops it, and sees that it ends cleanly.
        if let Some(cluster) = self.cluster.take().and_then(Arc::into_inner) {
            cluster.finish()?;
        }
        Ok(())
    }
}

/// A number in a device's status.
///
/// # Errors
/// If it is not there.
pub fn number(status: &Value, pointer: &str) -> anyhow::Result<u64> {
    status.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("no {pointer} in {status}"))
}
