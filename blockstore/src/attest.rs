//! Remembers how far the metadata voters are, for them: see [`engine::attestation`]. A voter that lost its data, or was put
//! back from an older copy, is told so by this node, which lies on other disks.
//!
//! Invariants:
//! - What this node says that it holds is on disk.
//! - A file that cannot be read counts as nothing held, and is said; it is not replaced by less than it held before a voter
//!   has been heard.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::attestation::file::{self, Halves};
use engine::attestation::{Attestation, Attestations};
use engine::ids::NodeId;
use proto::internal::metadata_client::MetadataClient;
use proto::internal::{AttestRequest, AttestResponse};
use proto::peer::{MetaAddress, Role, TlsIdentity};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::channels::Channels;
use crate::config::StorageConfig;
use crate::files::{replace_durably, sync_directory};
use crate::locks::locked;

/// The file, in the node's data directory.
const FILE_NAME: &str = "metadata-voters";

/// How soon a voter may ask to be called again, and how late; and when one that did not answer is called again.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(60);
const PAUSE_FAILED: Duration = Duration::from_millis(200);

/// How long what only says how far a log is may wait for the same of other voters, to be written together.
const GATHER_TIME: Duration = Duration::from_secs(1);

/// A metadata node that takes longer is called again later; than that and for how long it may keep its answer back. What it
/// keeps back is a call whose connection breaks when it starts anew, so that it is called at once.
const DEADLINE: Duration = Duration::from_secs(2);
const HOLD_TIME: Duration = Duration::from_secs(20);

/// What is held.
struct Held {
    path: PathBuf,
    /// As on disk.
    attestations: Mutex<Attestations>,
    /// Locked while the file is written.
    waiting: Mutex<Waiting>,
    /// Whether the last write failed: said when that changes, not with each.
    failing: AtomicBool,
}

/// What is to be on disk soon.
struct Waiting {
    attestations: Attestations,
    written: Option<Instant>,
    halves: Halves<File>,
}

impl Waiting {
    fn write(&mut self, path: &Path) -> std::io::Result<()> {
        let make = |bytes: &[u8]| {
            replace_durably(path, bytes)?;
            OpenOptions::new().write(true).open(path)
        };
        let overwrite = |file: &File, offset, bytes: &[u8]| {
            file.write_all_at(bytes, offset)?;
            file.sync_data()
        };
        self.halves.keep(&self.attestations, make, overwrite)?;
        self.written = Some(Instant::now());
        Ok(())
    }
}

/// What is held, once it is on disk: a run that was killed may have written it and not synced it.
fn read(path: &Path) -> std::io::Result<Attestations> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Attestations::default()),
        read => read?,
    };
    File::open(path)?.sync_all()?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))?;
    file::read(&bytes).map_err(std::io::Error::other)
}

impl Held {
    fn open(path: PathBuf) -> Self {
        let attestations = read(&path).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "what metadata voters told cannot be read: begun anew");
            Attestations::default()
        });
        let waiting =
            Waiting { attestations: attestations.clone(), written: None, halves: Halves::default() };
        Self {
            path,
            attestations: Mutex::new(attestations),
            waiting: Mutex::new(waiting),
            failing: AtomicBool::new(false),
        }
    }

    fn of(&self, voter: u64) -> Option<Attestation> {
        locked(&self.attestations).of(NodeId(voter))
    }

    /// Takes in what a voter says of itself. Blocks until it is on disk, unless it can wait.
    fn tell(&self, voter: u64, told: Attestation) -> std::io::Result<()> {
        let mut waiting = locked(&self.waiting);
        let can_wait = Attestation::only_goes_on(self.of(voter), told)
            && waiting.written.is_some_and(|written| written.elapsed() < GATHER_TIME);
        waiting.attestations.tell(NodeId(voter), told);
        if can_wait || waiting.attestations == *locked(&self.attestations) {
            return Ok(());
        }
        let written = waiting.write(&self.path);
        if let Err(error) = &written
            && !self.failing.swap(true, Ordering::Relaxed)
        {
            let path = self.path.display();
            tracing::error!(%path, %error, "what metadata voters tell cannot be written: this node attests nothing new");
        }
        written?;
        self.failing.store(false, Ordering::Relaxed);
        locked(&self.attestations).clone_from(&waiting.attestations);
        Ok(())
    }
}

/// Calls all metadata nodes until `stop`.
pub(crate) fn start(
    config: &StorageConfig,
    identity: &TlsIdentity,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let held = Arc::new(Held::open(config.data_dir.join(FILE_NAME)));
    let channels = Arc::new(Channels::new(identity));
    for address in &config.meta {
        let (held, channels) = (Arc::clone(&held), Arc::clone(&channels));
        tasks.spawn(attend(held, channels, MetaAddress::parse(address), stop.clone()));
    }
}

async fn attend(held: Arc<Held>, channels: Arc<Channels>, address: MetaAddress, stop: CancellationToken) {
    // Which voter serves there, as far as it is known.
    let mut voter = address.node.map_or(0, |node| node.0);
    loop {
        let pause = match stop.run_until_cancelled(attend_once(&held, &channels, &address, &mut voter)).await
        {
            None => return,
            Some(Ok(pause)) => pause.clamp(PAUSE_MIN, PAUSE_MAX),
            Some(Err(reason)) => {
                tracing::debug!(%address, reason, "a metadata voter cannot be attended");
                PAUSE_FAILED
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn call(
    channels: &Channels,
    at: &MetaAddress,
    request: AttestRequest,
) -> Result<AttestResponse, String> {
    let channel = channels.get(&at.address, Role::Meta, at.node).map_err(|error| error.to_string())?;
    let mut request = tonic::Request::new(request);
    request.set_timeout(DEADLINE + HOLD_TIME);
    tokio::time::timeout(DEADLINE + HOLD_TIME, MetadataClient::new(channel).attest(request))
        .await
        .map_err(|_elapsed| "no answer in time".to_owned())?
        .map(tonic::Response::into_inner)
        .map_err(|status| status.to_string())
}

/// One call. Says when the next one is due: it confirms what this one brought.
async fn attend_once(
    held: &Arc<Held>,
    channels: &Channels,
    address: &MetaAddress,
    voter: &mut u64,
) -> Result<Duration, String> {
    let of_voter = held.of(*voter).map_or_else(Bytes::new, |held| Bytes::copy_from_slice(&held.to_bytes()));
    let hold_ms = u32::try_from(HOLD_TIME.as_millis()).unwrap_or(u32::MAX);
    let request = AttestRequest { voter: *voter, held: of_voter, hold_ms, ..AttestRequest::default() };
    let response = call(channels, address, request).await?;
    if response.voter != *voter {
        *voter = response.voter;
        return Ok(PAUSE_MIN);
    }
    let pause = Duration::from_millis(response.pause_ms.into());
    if response.own.is_empty() {
        return Ok(pause);
    }
    let told = Attestation::from_bytes(&response.own).ok_or("not an attestation")?;
    let (keeping, voter) = (Arc::clone(held), *voter);
    tokio::task::spawn_blocking(move || keeping.tell(voter, told))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    Ok(pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_survives_a_restart_and_never_goes_back() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join(FILE_NAME);
        let told = Attestation { incarnation: [1; 16], start: 2, run: [2; 16], sequence: 9 };
        let held = Held::open(path.clone());
        held.tell(1, told).unwrap();
        held.tell(1, Attestation { sequence: 8, ..told }).unwrap();
        assert_eq!(Held::open(path.clone()).of(1), Some(told));
        for start in 3..6 {
            let next = Attestation { start, ..told };
            held.tell(1, next).unwrap();
            assert_eq!(Held::open(path.clone()).of(1), Some(next));
        }
    }

    #[test]
    fn what_could_not_be_written_is_not_held() {
        let held = Held::open(PathBuf::from("/proc/no-such-directory/file"));
        let told = Attestation { incarnation: [1; 16], start: 2, run: [2; 16], sequence: 9 };
        assert!(held.tell(1, told).is_err());
        assert_eq!(held.of(1), None);
    }
}
