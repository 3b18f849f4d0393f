//! A network namespace for a device, joined to this machine by a virtual cable that can be pulled. Needs root and
//! `ip`. Its namespace goes when it is dropped, and the cable with it.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, ensure};

static COUNT: AtomicU32 = AtomicU32::new(0);

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .context("run ip")?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A namespace with one cable out of it.
#[derive(Debug)]
pub struct Namespace {
    /// Its name, for `ip netns exec`.
    pub name: String,
    /// This machine's address, as seen from inside.
    pub host: String,
    inside: String,
}

impl Namespace {
    /// Makes one; nothing if this machine has none to give (not root, no `ip`, a container without the right).
    ///
    /// # Errors
    /// If it is made in part only.
    pub fn new() -> anyhow::Result<Option<Self>> {
        let number = std::process::id() % 20_000 + 20_000 * COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ks-{number}");
        if !rustix::process::geteuid().is_root() || ip(&["netns", "add", &name]).is_err() {
            return Ok(None);
        }
        let (third, fourth) = (number / 64 % 256, number % 64 * 4);
        let (outside, inside) = (format!("ksh{number}"), format!("ksn{number}"));
        let namespace = Self { name, host: format!("10.213.{third}.{}", fourth + 1), inside };
        let (name, inside) = (namespace.name.as_str(), namespace.inside.as_str());
        if ip(&["link", "add", &outside, "type", "veth", "peer", "name", inside, "netns", name]).is_err() {
            return Ok(None);
        }
        ip(&["addr", "add", &format!("{}/30", namespace.host), "dev", &outside])?;
        ip(&["link", "set", &outside, "up"])?;
        let peer = format!("10.213.{third}.{}/30", fourth + 2);
        ip(&["-n", name, "addr", "add", &peer, "dev", inside])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        namespace.plug(true)?;
        Ok(Some(namespace))
    }

    /// Pulls the cable, or puts it back.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn plug(&self, plugged: bool) -> anyhow::Result<()> {
        ip(&["-n", &self.name, "link", "set", &self.inside, if plugged { "up" } else { "down" }])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("a network namespace is left behind: {error:#}");
        }
    }
}
