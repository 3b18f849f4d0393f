//! Several devices of one account, and the two assertions of synchronisation: after quiet all of them and the server
//! are the same, and no content that was saved is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::client::Client;
use crate::cluster::{Cluster, Options};
use crate::compare::file_digest;
use crate::device::{Device, SETTLE_DEADLINE};
use crate::snapshot::{Item, Snapshot};
use crate::wait::wait_for;

/// How often all devices are run to an end until nothing changes any more.
const ROUNDS_MAX: usize = 8;
/// Digests shown of lost contents.
const LOST_SHOWN_MAX: usize = 10;

type Digest = [u8; 32];

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

/// Contents that users saved, and those of them that users overwrote or deleted themselves.
#[derive(Debug, Default)]
pub struct Contents {
    saved: Mutex<BTreeMap<Digest, String>>,
}

impl Contents {
    fn saved(&self) -> MutexGuard<'_, BTreeMap<Digest, String>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A user has saved a file.
    pub fn save(&self, digest: Digest, what: &str) {
        self.saved().insert(digest, what.to_owned());
    }

    /// A user is about to overwrite or delete what is at `path`, all of it.
    pub fn give_up(&self, path: &Path) {
        for entry in walkdir::WalkDir::new(path).into_iter().flatten() {
            if entry.file_type().is_file()
                && let Ok(digest) = file_digest(entry.path())
            {
                self.saved().remove(&digest);
            }
        }
    }

    /// How many must be somewhere.
    #[must_use]
    pub fn count(&self) -> usize {
        self.saved().len()
    }
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
        Ok(Self { cluster: Some(cluster), client, devices, contents: Contents::default(), email })
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
                self.devices.iter().map(Device::snapshot).collect::<anyhow::Result<_>>()?;
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
                device.once_agreed()?;
            }
            let snapshots: Vec<Snapshot> =
                self.devices.iter().map(Device::snapshot).collect::<anyhow::Result<_>>()?;
            let same = snapshots.windows(2).all(|pair| pair[0] == pair[1]);
            if same && snapshots == before {
                let agreed = snapshots.into_iter().next().context("no devices")?;
                self.assert_server(&agreed)?;
                return Ok(agreed);
            }
            before = snapshots;
        }
        for pair in self.devices.windows(2) {
            let which = format!("{} and {}", pair[0].name, pair[1].name);
            pair[0].snapshot()?.assert_same(&pair[1].snapshot()?, &which)?;
        }
        anyhow::bail!("the devices did not come to an end in {ROUNDS_MAX} rounds")
    }

    fn assert_server(&self, expected: &Snapshot) -> anyhow::Result<()> {
        let back = self.cluster()?.scratch(&format!("back/{}", self.email))?.join("tree");
        if back.exists() {
            fs::remove_dir_all(&back)?;
        }
        self.client.get("/", &back)?;
        expected.assert_same(&Snapshot::take(&back)?, "the devices and the server")
    }

    /// Fails if a content that a user saved, and did not give up, is nowhere: not current, no version, in no trash.
    ///
    /// # Errors
    /// If one is lost.
    pub fn assert_nothing_lost(&self) -> anyhow::Result<()> {
        let mut missing = self.contents.saved().clone();
        let total = missing.len();
        for device in &self.devices {
            // With the local trash, which is below the state.
            find_in_folder(&mut missing, &device.root)?;
        }
        if !missing.is_empty() {
            self.find_in_versions(&mut missing)?;
        }
        if !missing.is_empty() {
            self.bring_back_trash()?;
            self.find_in_versions(&mut missing)?;
        }
        let lost: Vec<&String> = missing.values().take(LOST_SHOWN_MAX).collect();
        ensure!(lost.is_empty(), "lost {} of {total} contents: {lost:?}", missing.len());
        Ok(())
    }

    fn find_in_versions(&self, missing: &mut BTreeMap<Digest, String>) -> anyhow::Result<()> {
        let listing = self.client.json(&["ls", "-R", "/"])?;
        for entry in listing["entries"].as_array().context("no entries")? {
            if entry["kind"] != "file" || missing.is_empty() {
                continue;
            }
            let path = entry["path"].as_str().context("no path")?;
            for version in self.versions(path)? {
                let scratch = self.cluster()?.scratch("version")?.join(&self.email);
                fs::write(&scratch, self.client.cat_version(path, version)?)?;
                missing.remove(&file_digest(&scratch)?);
            }
        }
        Ok(())
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

    fn bring_back_trash(&self) -> anyhow::Result<()> {
        let trash = self.client.json(&["trash", "ls"])?;
        self.client.ok(&["mkdir", "-p", "/from-trash"])?;
        for item in trash["items"].as_array().context("no items")? {
            let id = item["trash_id"].as_u64().context("no id")?;
            let to = format!("/from-trash/{id}");
            self.client.ok(&["trash", "restore", &id.to_string(), "--to", &to])?;
        }
        Ok(())
    }

    /// The two assertions, and the end.
    ///
    /// # Errors
    /// If one does not hold.
    pub fn finish(mut self) -> anyhow::Result<Snapshot> {
        let agreed = self.converge()?;
        self.assert_nothing_lost()?;
        self.devices.iter_mut().for_each(Device::calm);
        // Whoever is the last to use the cluster stops it, and sees that it ends cleanly.
        if let Some(cluster) = self.cluster.take().and_then(Arc::into_inner) {
            cluster.finish()?;
        }
        Ok(agreed)
    }
}

fn find_in_folder(missing: &mut BTreeMap<Digest, String>, root: &Path) -> anyhow::Result<()> {
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry?;
        if entry.file_type().is_file() && !missing.is_empty() {
            missing.remove(&file_digest(entry.path())?);
        }
    }
    Ok(())
}

/// The digests of all files in a snapshot.
#[must_use]
pub fn digests(snapshot: &Snapshot) -> BTreeSet<Digest> {
    snapshot
        .items
        .values()
        .filter_map(|item| match item {
            Item::File { digest, .. } => Some(*digest),
            Item::Folder { .. } | Item::Symlink(_) => None,
        })
        .collect()
}

/// A number in a device's status.
///
/// # Errors
/// If it is not there.
pub fn number(status: &Value, pointer: &str) -> anyhow::Result<u64> {
    status.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("no {pointer} in {status}"))
}
