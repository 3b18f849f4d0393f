//! Which of the configured directories are served as disks, and why the others are not.
//!
//! Invariants:
//! - A directory that ever held a disk is never formatted again: the node remembers which disk it held, and when
//!   that is gone, or another is in its place, it reports the disk as missing.
//! - A directory is formatted only if it is new to the node and absent or empty.
//! - A directory is locked before anything is written to it or remembered of it, and until its disk is closed.
//! - One disk is served once: a second directory with the same superblock is refused.
//! - A directory that is refused does not keep the others from being served.
//!
//! The memory is `known-disks.json`, replaced whole. A disk is formatted before it is remembered: after a crash in
//! between its superblock is found and remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::cluster::Health;
use engine::ids::{ClusterId, DiskId};

use crate::config::StorageConfig;
use crate::disk::{self, Disk, DiskOptions, OpenError};
use crate::disk_core::DiskStatus;
use crate::files;
use crate::record::Owner;
use crate::superblock::{self, DiskLock, SuperblockError};

/// The memory's file in the node's data directory.
pub const KNOWN_DISKS_FILE: &str = "known-disks.json";

/// Most directories a node serves.
const DISKS_MAX: usize = 256;

/// Why the configured disks cannot even be looked at.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// The node's memory cannot be trusted, so nothing may be formatted.
    #[error("{} is damaged ({reason}); restore it, or remove it if every configured disk is in its place", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The configuration is impossible.
    #[error("a storage node serves 1 to {DISKS_MAX} disks in different directories: {0}")]
    Configuration(String),
    /// The data directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// One configured directory.
pub struct Slot {
    /// The directory.
    pub path: PathBuf,
    /// The disk that is, or was, in it, if that is known.
    pub id: Option<DiskId>,
    /// The disk, if it is served.
    pub disk: Option<Arc<Disk>>,
    /// How it is when it is not served.
    pub refused: DiskStatus,
}

impl Slot {
    /// How the disk is now.
    #[must_use]
    pub fn status(&self) -> DiskStatus {
        self.disk.as_ref().map_or_else(|| self.refused.clone(), |disk| disk.status())
    }
}

/// What the node remembers: which disk was in which directory.
struct Memory {
    file: PathBuf,
    known: BTreeMap<String, String>,
}

impl Memory {
    fn load(data_dir: &Path) -> Result<Self, DisksError> {
        let file = data_dir.join(KNOWN_DISKS_FILE);
        let io = |source| DisksError::Io { path: data_dir.to_owned(), source };
        files::create_directory_durably(data_dir).map_err(io)?;
        let known = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| DisksError::Memory { path: file.clone(), reason: error.to_string() })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(io(error)),
        };
        Ok(Self { file, known })
    }

    fn disk(&self, path: &Path) -> Result<Option<DiskId>, DisksError> {
        let known = self.known.get(&*path.to_string_lossy());
        known
            .map(|text| text.parse())
            .transpose()
            .map_err(|error| DisksError::Memory { path: self.file.clone(), reason: format!("{error}") })
    }

    fn remember(&mut self, path: &Path, disk: DiskId) -> Result<(), DisksError> {
        self.known.insert(path.to_string_lossy().into_owned(), disk.to_string());
        let io = |source| DisksError::Io { path: self.file.clone(), source };
        let bytes = serde_json::to_vec_pretty(&self.known).map_err(|error| io(error.into()))?;
        files::replace_durably(&self.file, &bytes).map_err(io)
    }
}

fn random_disk_id() -> std::io::Result<DiskId> {
    let mut bytes = [0; DiskId::LENGTH];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(DiskId::from_bytes(bytes))
}

/// Why a directory is not served.
struct Refusal {
    status: DiskStatus,
    /// Another process serves it: it is that one's to report.
    others: bool,
}

impl From<DiskStatus> for Refusal {
    fn from(status: DiskStatus) -> Self {
        Self { status, others: false }
    }
}

fn not_locked(error: &SuperblockError) -> Refusal {
    let others = matches!(error, SuperblockError::Locked { .. });
    let health = if others { Health::Missing } else { Health::Failed };
    Refusal { status: DiskStatus { health, reason: error.to_string() }, others }
}

/// Whose disk the directory is, with its lock; formats it if that is right.
fn identify(path: &Path, known: Option<DiskId>, cluster: ClusterId) -> Result<(DiskId, DiskLock), Refusal> {
    match superblock::read(path, cluster) {
        Err(error) if known.is_none() && error.is_blank() => {
            let lock = superblock::lock_blank(path).map_err(|error| not_locked(&error))?;
            Ok((look(path, known, cluster)?, lock))
        }
        _written => {
            let disk = look(path, known, cluster)?;
            let lock = superblock::lock(path).map_err(|error| not_locked(&error))?;
            Ok((disk, lock))
        }
    }
}

/// Whose disk the directory is; formats it if that is right, once the caller has locked it.
fn look(path: &Path, known: Option<DiskId>, cluster: ClusterId) -> Result<DiskId, DiskStatus> {
    let missing = |reason: String| DiskStatus { health: Health::Missing, reason };
    match (superblock::read(path, cluster), known) {
        (Ok(found), Some(known)) if found != known => Err(missing(format!(
            "{} holds disk {found}, but disk {known} was there before: put each disk back in its place",
            path.display()
        ))),
        (Ok(found), _) => Ok(found),
        (Err(error), None) if error.is_blank() => {
            let disk = random_disk_id().map_err(|error| missing(error.to_string()))?;
            superblock::format(path, Owner { cluster, disk }).map_err(|error| missing(error.to_string()))?;
            tracing::info!(%disk, path = %path.display(), "a new disk was formatted");
            Ok(disk)
        }
        (Err(SuperblockError::Io { source, .. }), _) => {
            let reason = format!("cannot read the superblock in {}: {source}", path.display());
            Err(DiskStatus { health: Health::Failed, reason })
        }
        (Err(error), Some(known)) if error.is_blank() => Err(missing(format!(
            "disk {known} has gone from {}: mount it there; it is not formatted anew",
            path.display()
        ))),
        (Err(error), _) => Err(missing(error.to_string())),
    }
}

/// Opens every configured directory, several at a time. Blocks.
///
/// # Errors
/// Only if the node's memory of its disks fails, or the configuration is impossible; a directory that is refused is
/// in its slot with the reason.
pub fn open_all(config: &StorageConfig, cluster: ClusterId) -> Result<Vec<Slot>, DisksError> {
    let mut paths = Vec::new();
    for path in &config.disks {
        let path =
            std::path::absolute(path).map_err(|source| DisksError::Io { path: path.clone(), source })?;
        if paths.contains(&path) {
            return Err(DisksError::Configuration(format!("{} is named twice", path.display())));
        }
        paths.push(path);
    }
    if paths.is_empty() || paths.len() > DISKS_MAX {
        return Err(DisksError::Configuration(format!("{} are configured", paths.len())));
    }
    let mut memory = Memory::load(&config.data_dir)?;
    let mut served = BTreeSet::new();
    let mut slots = Vec::new();
    let mut locks = Vec::new();
    for path in paths {
        let known = memory.disk(&path)?;
        let mut slot = Slot { path, id: known, disk: None, refused: DiskStatus::up() };
        let mut held = None;
        match identify(&slot.path, known, cluster) {
            Ok((disk, _lock)) if !served.insert(disk) => {
                let reason = format!("{} is a second copy of disk {disk}", slot.path.display());
                slot.id = None;
                slot.refused = DiskStatus { health: Health::Missing, reason };
            }
            Ok((disk, lock)) => {
                slot.id = Some(disk);
                held = Some(lock);
                if known.is_none() {
                    memory.remember(&slot.path, disk)?;
                }
            }
            Err(Refusal { status, others }) => {
                slot.refused = status;
                slot.id = slot.id.filter(|_known| !others);
            }
        }
        slots.push(slot);
        locks.push(held);
    }
    std::thread::scope(|scope| {
        for (slot, lock) in slots.iter_mut().zip(locks) {
            if let Some(lock) = lock {
                scope.spawn(|| open_slot(slot, lock, cluster, config));
            }
        }
    });
    for slot in slots.iter().filter(|slot| slot.disk.is_none()) {
        tracing::error!(path = %slot.path.display(), reason = slot.refused.reason, "a disk is not served");
    }
    Ok(slots)
}

/// What the disk in `path` is opened with.
fn options(path: &Path, owner: Owner, config: &StorageConfig) -> DiskOptions {
    DiskOptions {
        path: path.to_owned(),
        owner,
        reserve_bytes: config.reserve_bytes,
        scrub: config.scrub.clone(),
        data_dir: Some(config.data_dir.clone()),
        unreadable_places_max: config.unreadable_places_max,
    }
}

fn open_slot(slot: &mut Slot, lock: DiskLock, cluster: ClusterId, config: &StorageConfig) {
    let Some(disk) = slot.id else { return };
    match Disk::open_locked(&options(&slot.path, Owner { cluster, disk }, config), lock) {
        Ok(disk) => slot.disk = Some(Arc::new(disk)),
        Err(error) => {
            slot.refused = DiskStatus { health: Health::Failed, reason: error.to_string() };
        }
    }
}

/// Has the disk in `path`, one of the configured ones, verified, and lifts its fence: see [`disk::unfence`]. Blocks.
///
/// # Errors
/// If it is no disk of this cluster, or as [`disk::unfence`].
pub fn unfence(config: &StorageConfig, cluster: ClusterId, path: &Path) -> Result<disk::Verified, OpenError> {
    let disk = superblock::read(path, cluster)?;
    disk::unfence(&options(path, Owner { cluster, disk }, config))
}

#[cfg(test)]
mod tests;
