//! Disks that can be broken: XFS on a sparse file that loses its power, and small file systems that fill up.
//!
//! All of them need root. Each is unmounted when its handle is dropped, also on a failed test; the loop device goes
//! with the mount.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::wait::wait_for;

/// XFS refuses to be smaller than 300 MiB; the file is sparse.
pub const XFS_BYTES_MIN: u64 = 512 << 20;
/// The unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;
/// How much is written before it is seen what is left.
const LEAVE_STEP_BYTES: u64 = 8 << 20;
/// How far what is left may be from what was asked for.
const LEAVE_SLACK_BYTES: u64 = 512 << 10;
/// How many looks in turn must find it so.
const LEAVE_SETTLED: u32 = 20;
const LEAVE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a file system may stay busy after its last user was killed.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(20);

/// Why file systems cannot be mounted here; `None` if they can.
#[must_use]
pub fn unavailable() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root");
    }
    if !["mkfs.xfs", "xfs_io", "mount", "umount"].into_iter().all(have_tool) {
        return Some("xfsprogs is missing");
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("no loop devices");
    }
    None
}

/// Whether a system command is installed.
pub(crate) fn have_tool(tool: &str) -> bool {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|place| Path::new(place).join(tool).is_file())
}

/// Runs a system command that must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Bytes that the file system has allocated to everything below `root`.
///
/// # Errors
/// On IO errors, other than for files that vanish meanwhile.
pub fn allocated_bytes(root: &Path) -> anyhow::Result<u64> {
    let mut blocks = 0;
    for entry in walkdir::WalkDir::new(root) {
        match entry.map(|entry| entry.metadata()) {
            Ok(Ok(metadata)) => blocks += metadata.blocks(),
            Ok(Err(error)) | Err(error) => {
                let gone = error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound);
                ensure!(gone, "{error}");
            }
        }
    }
    Ok(blocks * BLOCK_BYTES)
}

pub(crate) fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("not UTF-8: {}", path.display()))
}

/// Bytes that are free in the file system of `directory`.
///
/// # Errors
/// If it does not say.
pub fn free_bytes_of(directory: &Path) -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Fills the file system of `directory`, by a file `ballast` there, until about `free_bytes` are left, and stay left:
/// databases set space aside in steps, by the next write.
///
/// # Errors
/// On IO errors, and if that is not reached in a minute.
pub fn leave(directory: &Path, free_bytes: u64) -> anyhow::Result<()> {
    let mut ballast = File::options().create(true).append(true).open(directory.join("ballast"))?;
    let mut settled = 0;
    wait_for("the free space to be what it should", LEAVE_DEADLINE, || {
        let free = free_bytes_of(directory)?;
        if free.abs_diff(free_bytes) <= LEAVE_SLACK_BYTES {
            settled += 1;
            return Ok((settled == LEAVE_SETTLED).then_some(()));
        }
        settled = 0;
        if free < free_bytes {
            let len = ballast.metadata()?.len();
            ballast.set_len(len.saturating_sub(free_bytes - free))?;
        } else {
            let step = (free - free_bytes).min(LEAVE_STEP_BYTES);
            io::copy(&mut io::repeat(0).take(step), &mut ballast)?;
        }
        Ok(None)
    })
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    image: Option<PathBuf>,
    mounted: bool,
}

impl Mount {
    /// A new XFS on a sparse file at `image`, mounted at `point`.
    ///
    /// # Errors
    /// If any step fails.
    pub fn xfs(image: &Path, bytes: u64, point: &Path) -> anyhow::Result<Self> {
        File::create(image)?.set_len(bytes.max(XFS_BYTES_MIN))?;
        run("mkfs.xfs", &["-q", text(image)?])?;
        fs::create_dir_all(point)?;
        let mut mount = Self { point: point.to_owned(), image: Some(image.to_owned()), mounted: false };
        mount.mount()?;
        Ok(mount)
    }

    /// A new tmpfs of a fixed size at `point`.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn tmpfs(bytes: u64, point: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(point)?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs", text(point)?])?;
        Ok(Self { point: point.to_owned(), image: None, mounted: true })
    }

    fn mount(&mut self) -> anyhow::Result<()> {
        let image = self.image.as_deref().context("only an image can be mounted again")?;
        run("mount", &["-o", "loop,nodiscard", text(image)?, text(&self.point)?])?;
        self.mounted = true;
        Ok(())
    }

    /// Cuts the power: whatever was not made durable is gone, and every access fails from now on. XFS forgets its
    /// unwritten log as well.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn cut_power(&self) -> anyhow::Result<()> {
        run("xfs_io", &["-x", "-c", "shutdown", text(&self.point)?])
    }

    /// Unmounts and mounts again: after a power cut, what a reboot does (the log is replayed).
    ///
    /// # Errors
    /// If somebody still uses it, or the file system does not recover.
    pub fn remount(&mut self) -> anyhow::Result<()> {
        self.unmount()?;
        self.mount()
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        unmount(&self.point)?;
        self.mounted = false;
        Ok(())
    }

    /// Puts this file system under a directory that has content: the content moves onto it. Used while the cluster is
    /// stopped, so that a role finds its files on a disk that can be broken.
    ///
    /// # Errors
    /// If copying or mounting fails.
    pub fn under(directory: &Path, make: impl FnOnce(&Path) -> anyhow::Result<Self>) -> anyhow::Result<Self> {
        move_onto(directory, make)
    }
}

/// Moves the content of `directory` onto a file system that `make` mounts in its place.
pub(crate) fn move_onto<M>(
    directory: &Path,
    make: impl FnOnce(&Path) -> anyhow::Result<M>,
) -> anyhow::Result<M> {
    let aside = directory.with_extension("aside");
    fs::rename(directory, &aside).with_context(|| format!("move {}", directory.display()))?;
    fs::create_dir(directory)?;
    let mount = make(directory)?;
    run("cp", &["-a", &format!("{}/.", text(&aside)?), text(directory)?])?;
    run("sync", &["-f", text(directory)?])?;
    fs::remove_dir_all(&aside)?;
    Ok(mount)
}

/// Unmounts what is at `point`, as soon as its last user has gone.
pub(crate) fn unmount(point: &Path) -> anyhow::Result<()> {
    let point = text(point)?;
    let mut last = None;
    let result = wait_for("unmounting", UNMOUNT_DEADLINE, || match run("umount", &[point]) {
        Ok(()) => Ok(Some(())),
        Err(error) => {
            last = Some(error);
            Ok(None)
        }
    });
    result.with_context(|| format!("{last:?}"))
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted && self.unmount().is_err() {
            // Whoever still holds it is being killed: the mount goes with its last user.
            if let Ok(point) = text(&self.point) {
                run("umount", &["-l", point]).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::skipped;

    #[test]
    fn a_power_cut_loses_what_was_not_synced_and_nothing_else() {
        if let Some(why) = unavailable() {
            skipped(why).unwrap();
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let point = scratch.path().join("disk");
        let mut disk = Mount::xfs(&scratch.path().join("image"), XFS_BYTES_MIN, &point).unwrap();
        fs::write(point.join("synced"), vec![1; 100_000]).unwrap();
        File::open(point.join("synced")).unwrap().sync_all().unwrap();
        File::open(&point).unwrap().sync_all().unwrap();
        fs::write(point.join("unsynced"), vec![2; 100_000]).unwrap();
        disk.cut_power().unwrap();
        assert!(fs::read(point.join("synced")).is_err());
        disk.remount().unwrap();
        assert_eq!(fs::read(point.join("synced")).unwrap(), vec![1; 100_000]);
        assert_ne!(fs::read(point.join("unsynced")).unwrap_or_default(), vec![2; 100_000]);
    }

    #[test]
    fn a_small_disk_fills_up() {
        if let Some(why) = unavailable() {
            skipped(why).unwrap();
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let disk = Mount::tmpfs(1 << 20, &scratch.path().join("small")).unwrap();
        assert!(fs::write(disk.point.join("large"), vec![0; 2 << 20]).is_err());
    }
}
