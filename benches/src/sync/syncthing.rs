//! Two devices by Syncthing: straight to each other over loopback, nothing of the outside asked or told.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use chaos::process::ProcessRef;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::http::Api;
use crate::pair::{Pair, wait};

const FOLDER: &str = "bench";
const KEY: &str = "bench";
/// The least that it takes: how long its watcher waits before it acts.
const WATCHER_DELAY_SECONDS: u32 = 1;

struct Instance {
    home: PathBuf,
    root: PathBuf,
    api: Api,
    listen: SocketAddr,
    id: String,
    child: Option<Child>,
}

pub(crate) struct SyncthingPair {
    devices: [Instance; 2],
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Instance {
    fn new(directory: &Path) -> anyhow::Result<Self> {
        let (home, root) = (directory.join("home"), directory.join("root"));
        std::fs::create_dir_all(&root)?;
        std::fs::create_dir_all(&home)?;
        let generated = Command::new("syncthing")
            .arg("generate")
            .arg(format!("--home={}", home.display()))
            .env("HOME", directory)
            .env("STNODEFAULTFOLDER", "1")
            .output()?;
        ensure!(generated.status.success(), "syncthing generate: {generated:?}");
        let api = Api { address: free_address()?, key: KEY.to_owned() };
        let mut instance = Self { home, root, api, listen: free_address()?, id: String::new(), child: None };
        instance.start()?;
        let status = instance.api.get("/rest/system/status")?;
        status["myID"].as_str().context("no id")?.clone_into(&mut instance.id);
        Ok(instance)
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.home.join("log"))?;
        let child = Command::new("syncthing")
            .args(["serve", "--no-browser", "--no-restart", "--no-upgrade", "--skip-port-probing"])
            .arg(format!("--home={}", self.home.display()))
            .arg(format!("--gui-address={}", self.api.address))
            .arg(format!("--gui-apikey={KEY}"))
            .env("HOME", &self.home)
            .env("STNODEFAULTFOLDER", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start syncthing")?;
        self.child = Some(child);
        wait("Syncthing's API", Instant::now(), Duration::from_millis(50), || {
            Ok(self.api.get("/rest/system/status").is_ok())
        })?;
        Ok(())
    }

    fn configure(&self, other: &Self) -> anyhow::Result<()> {
        let options = json!({
            "listenAddresses": [format!("tcp://{}", self.listen)],
            "globalAnnounceEnabled": false, "localAnnounceEnabled": false, "relaysEnabled": false,
            "natEnabled": false, "urAccepted": -1, "crashReportingEnabled": false, "autoUpgradeIntervalH": 0,
            "announceLANAddresses": false,
        });
        self.api.patch("/rest/config/options", &options)?;
        let device = json!({
            "deviceID": other.id, "name": "other", "addresses": [format!("tcp://{}", other.listen)],
            "compression": "metadata",
        });
        self.api.put(&format!("/rest/config/devices/{}", other.id), &device)?;
        let folder = json!({
            "id": FOLDER, "path": self.root, "type": "sendreceive",
            "devices": [{ "deviceID": self.id }, { "deviceID": other.id }],
            "fsWatcherEnabled": true, "fsWatcherDelayS": WATCHER_DELAY_SECONDS, "rescanIntervalS": 3600,
        });
        self.api.put(&format!("/rest/config/folders/{FOLDER}"), &folder)
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            if let Some(process) = ProcessRef::observe(child.id()) {
                process.signal(Signal::TERM)?;
            }
            child.wait()?;
        }
        Ok(())
    }

    fn is_settled(&self, other: &Self) -> anyhow::Result<bool> {
        let status = self.api.get(&format!("/rest/db/status?folder={FOLDER}"))?;
        let own = status["state"] == "idle" && status["needTotalItems"] == 0;
        let completion = self.api.get(&format!("/rest/db/completion?folder={FOLDER}&device={}", other.id));
        // Unknown while they are not connected.
        let theirs = completion.is_ok_and(|value| value["needItems"] == 0 && value["needDeletes"] == 0);
        Ok(own && theirs)
    }

    fn wire_bytes(&self) -> anyhow::Result<u64> {
        let total = &self.api.get("/rest/system/connections")?["total"];
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        Ok(number(&total["inBytesTotal"]) + number(&total["outBytesTotal"]))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl SyncthingPair {
    /// Nothing if Syncthing is not installed.
    pub(crate) fn start(directory: &Path) -> anyhow::Result<Option<Self>> {
        if Command::new("syncthing").arg("--version").output().is_err() {
            return Ok(None);
        }
        let pair =
            Self { devices: [Instance::new(&directory.join("a"))?, Instance::new(&directory.join("b"))?] };
        let [a, b] = &pair.devices;
        a.configure(b)?;
        b.configure(a)?;
        wait("Syncthing to connect", Instant::now(), Duration::from_millis(100), || {
            let connections = a.api.get("/rest/system/connections")?;
            Ok(connections["connections"][&b.id]["connected"] == true)
        })?;
        pair.settle()?;
        Ok(Some(pair))
    }

    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        self.devices.iter_mut().try_for_each(Instance::stop)
    }
}

impl Pair for SyncthingPair {
    fn name(&self) -> &'static str {
        "Syncthing"
    }

    fn a(&self) -> &Path {
        &self.devices[0].root
    }

    fn b(&self) -> &Path {
        &self.devices[1].root
    }

    fn wire_bytes(&self) -> anyhow::Result<(u64, u64)> {
        Ok((self.devices[0].wire_bytes()?, self.devices[1].wire_bytes()?))
    }

    fn settle(&self) -> anyhow::Result<()> {
        let [a, b] = &self.devices;
        wait("Syncthing idle", Instant::now(), Duration::from_millis(100), || {
            Ok(a.is_settled(b)? && b.is_settled(a)?)
        })?;
        Ok(())
    }

    fn stop_a(&mut self) -> anyhow::Result<()> {
        self.devices[0].stop()
    }

    fn start_a(&mut self) -> anyhow::Result<()> {
        self.devices[0].start()
    }

    fn process_a(&self) -> Option<ProcessRef> {
        self.devices[0].child.as_ref().and_then(|child| ProcessRef::observe(child.id()))
    }

    fn alone(&self, _file: &Path) -> anyhow::Result<Option<(f64, f64)>> {
        Ok(None)
    }
}
