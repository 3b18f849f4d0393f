//! A disk whose reads and writes fail with EIO at will: XFS on a loop device, over a file that nbdkit serves and can
//! refuse. What the kernel does with such errors (pages dropped, a failed fsync told once) is the real thing.
//!
//! Needs root, nbdkit, nbdfuse and FUSE. Everything ends with the handle, also on a failed test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use crate::disk::{self, run, text};
use crate::wait::wait_for;

/// How long the servers below the disk may take to serve.
const SERVING_DEADLINE: Duration = Duration::from_secs(20);

/// Why such disks cannot be had here; `None` if they can.
#[must_use]
pub fn unavailable() -> Option<&'static str> {
    if let Some(why) = disk::unavailable() {
        return Some(why);
    }
    if !["nbdkit", "nbdfuse", "fusermount3", "losetup"].into_iter().all(disk::have_tool) {
        return Some("nbdkit, libnbd-bin or fuse3 is missing");
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("no FUSE");
    }
    None
}

/// A mounted file system on a disk that can fail.
#[derive(Debug)]
pub struct FaultyDisk {
    scratch: TempDir,
    point: PathBuf,
    servers: Vec<Child>,
    device: Option<String>,
    mounted: bool,
}

impl FaultyDisk {
    /// A new XFS of at least `bytes` at `point`, on a disk that works so far.
    ///
    /// # Errors
    /// If any step fails.
    pub fn new(bytes: u64, point: &Path) -> anyhow::Result<Self> {
        let scratch = tempfile::Builder::new().prefix("keepstone-faulty-").tempdir()?;
        let mut disk =
            Self { scratch, point: point.to_owned(), servers: Vec::new(), device: None, mounted: false };
        File::create(disk.file("image"))?.set_len(bytes.max(disk::XFS_BYTES_MIN))?;
        disk.serve()?;
        let device = losetup(&disk.file("served"))?;
        disk.device = Some(device.clone());
        run("mkfs.xfs", &["-q", "-f", &device])?;
        disk.mount()?;
        Ok(disk)
    }

    /// Puts such a disk under a directory that has content, while nothing uses it: see [`disk::Mount::under`].
    ///
    /// # Errors
    /// If copying or mounting fails.
    pub fn under(directory: &Path, bytes: u64) -> anyhow::Result<Self> {
        disk::move_onto(directory, |point| Self::new(bytes, point))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Starts nbdkit on the image, and nbdfuse, which makes a file of what it serves.
    fn serve(&mut self) -> anyhow::Result<()> {
        let socket = self.file("socket");
        let flag = |operation: &str| format!("error-{operation}-file={}", self.file(operation).display());
        let kit = Command::new("nbdkit")
            .args(["--foreground", "--unix"])
            .arg(&socket)
            .args(["--filter=error", "file"])
            .arg(self.file("image"))
            .args(["error=EIO", "error-pread-rate=100%", "error-pwrite-rate=100%"])
            .args([flag("pread"), flag("pwrite")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start nbdkit")?;
        self.servers.push(kit);
        wait_for("nbdkit", SERVING_DEADLINE, || Ok(socket.exists().then_some(())))?;
        let served = self.file("served");
        File::create(&served)?;
        let fuse = Command::new("nbdfuse")
            .arg(&served)
            .arg("--unix")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start nbdfuse")?;
        self.servers.push(fuse);
        wait_for("nbdfuse", SERVING_DEADLINE, || {
            Ok(fs::metadata(&served).is_ok_and(|served| served.len() > 0).then_some(()))
        })
    }

    fn mount(&mut self) -> anyhow::Result<()> {
        let device = self.device.as_deref().context("no loop device")?;
        run("mount", &[device, text(&self.point)?])?;
        self.mounted = true;
        Ok(())
    }

    /// From now on every write to the disk fails with EIO, or none does.
    ///
    /// # Errors
    /// If the switch cannot be set.
    pub fn fail_writes(&self, fail: bool) -> anyhow::Result<()> {
        self.switch("pwrite", fail)
    }

    /// From now on every read from the disk fails with EIO, or none does. What the kernel has read before it forgets.
    ///
    /// # Errors
    /// If the switch cannot be set.
    pub fn fail_reads(&self, fail: bool) -> anyhow::Result<()> {
        self.switch("pread", fail)?;
        fs::write("/proc/sys/vm/drop_caches", "1").context("drop caches")
    }

    fn switch(&self, operation: &str, fail: bool) -> anyhow::Result<()> {
        let flag = self.file(operation);
        if fail {
            File::create(flag)?;
        } else if flag.exists() {
            fs::remove_file(flag)?;
        }
        Ok(())
    }

    /// Unmounts and mounts again: what a reboot does after the disk was healed.
    ///
    /// # Errors
    /// If somebody still uses it, or the file system does not recover.
    pub fn remount(&mut self) -> anyhow::Result<()> {
        disk::unmount(&self.point)?;
        self.mounted = false;
        self.mount()
    }
}

fn losetup(file: &Path) -> anyhow::Result<String> {
    let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().context("losetup")?;
    ensure!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.fail_writes(false).ok();
        self.switch("pread", false).ok();
        if self.mounted && disk::unmount(&self.point).is_err() {
            text(&self.point).and_then(|point| run("umount", &["-l", point])).ok();
        }
        if let Some(device) = &self.device {
            run("losetup", &["--detach", device]).ok();
        }
        text(&self.file("served")).and_then(|served| run("fusermount3", &["-u", "-z", served])).ok();
        // nbdfuse ends with its mount; nbdkit is told to.
        for server in self.servers.iter_mut().rev() {
            server.kill().ok();
            server.wait().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::skip::skipped;

    #[test]
    fn writes_and_reads_fail_while_they_are_told_to() {
        if let Some(why) = unavailable() {
            skipped(why).unwrap();
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let point = scratch.path().join("disk");
        fs::create_dir(&point).unwrap();
        let mut disk = FaultyDisk::new(disk::XFS_BYTES_MIN, &point).unwrap();
        let write = |name: &str| {
            let mut file = File::create(point.join(name))?;
            file.write_all(&[7; 100_000])?;
            file.sync_data()
        };
        write("kept").unwrap();
        disk.fail_writes(true).unwrap();
        assert!(write("lost").is_err(), "a sync succeeded on a disk that takes no writes");
        disk.fail_writes(false).unwrap();
        disk.remount().unwrap();
        assert_eq!(fs::read(point.join("kept")).unwrap(), vec![7; 100_000]);
        disk.remount().unwrap();
        disk.fail_reads(true).unwrap();
        assert!(fs::read(point.join("kept")).is_err(), "a read succeeded on a disk that gives nothing");
        disk.fail_reads(false).unwrap();
    }
}
