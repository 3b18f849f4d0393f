//! What all services of a gateway share.

use std::sync::Arc;
use std::time::Duration;

use blockstore::client::StorageClient;
use bytes::Bytes;
use engine::health::{CallKind, HungDisk};
use engine::ids::{AccountId, ChunkId, EntryId, HolderId, NamespaceId, NodeId};
use engine::location::{ChunkKind, ChunkLocation, LocatedChunk};
use metaraft::model::query::Resolved;
use metaraft::model::row::EntryRow;
use proto::peer::TlsIdentity;
use tokio::sync::{OnceCell, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Code;

use crate::chunks::inflight::InFlight;
use crate::chunks::prepare::Preparer;
use crate::chunks::presence::{Presence, mark};
use crate::chunks::reader::ChunkSource;
use crate::chunks::writer::ChunkWriter;
use crate::door::debts::Debts;
use crate::door::refusals::Refusals;
use crate::door::shares::Shares;
use crate::failure::Failure;
use crate::live::LiveDevices;
use crate::meta::Meta;
use crate::password::Passwords;
use crate::path::RemotePath;
use crate::sessions::{Session, Sessions};
use crate::sign_in::turns::Turns;
use crate::suspects::Suspects;
use crate::sync::seal::Sealer;
use crate::sync::waiters::DeviceWaiters;
use crate::sync::watch::Watches;
use crate::uploads::forget::Forgotten;

/// Bytes held are counted in units of this many.
pub(crate) const BUDGET_UNIT_BYTES: u64 = 1024;

/// Name of the secret that cursors are sealed by.
const SEAL_SECRET: &str = "cursor-seal";

/// One per gateway, behind an [`Arc`].
pub(crate) struct Core {
    pub(crate) node: NodeId,
    /// Where clients reach it.
    pub(crate) address: String,
    pub(crate) identity: TlsIdentity,
    pub(crate) meta: Meta,
    pub(crate) storage: Arc<StorageClient>,
    pub(crate) passwords: Passwords,
    /// Whose turn it is to sign in.
    pub(crate) turns: Arc<Turns>,
    pub(crate) sessions: Sessions,
    pub(crate) preparer: Preparer,
    pub(crate) in_flight: InFlight,
    pub(crate) suspects: Arc<Suspects>,
    pub(crate) presence: Presence,
    pub(crate) writer: ChunkWriter,
    pub(crate) source: ChunkSource,
    /// Chunk bytes that are not acknowledged yet, in units of [`BUDGET_UNIT_BYTES`].
    pub(crate) upload_bytes: Shares<AccountId>,
    /// Bytes of downloads that are read and not handed over for sending, in the same units.
    pub(crate) download_bytes: Shares<AccountId>,
    /// Downloads for which it is being looked up where their bytes are.
    pub(crate) lookups: Shares<AccountId>,
    /// Bytes of downloads that are being read just now, in the same units.
    pub(crate) read_bytes: Shares<AccountId>,
    /// What accounts asked for in vain.
    pub(crate) refusals: Refusals,
    /// Entries of chunk lists that uploads began with.
    pub(crate) chunk_lists: Debts,
    /// Streams of chunks.
    pub(crate) put_streams: Shares<AccountId>,
    /// Downloads.
    pub(crate) downloads: Shares<AccountId>,
    /// Devices that have something open.
    pub(crate) live: Arc<LiveDevices>,
    /// Clean-ups under way.
    pub(crate) cleanups: Arc<Semaphore>,
    /// Sessions that are to be forgotten.
    pub(crate) forgetting: mpsc::Sender<Forgotten>,
    /// Clients that wait for changes.
    pub(crate) waiters: Shares<AccountId>,
    /// The same, by device.
    pub(crate) device_waiters: Arc<DeviceWaiters>,
    pub(crate) watches: Arc<Watches>,
    pub(crate) sealer: OnceCell<Sealer>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

impl Core {
    /// Seals what clients keep for us, by the secret that all gateways share.
    pub(crate) async fn sealer(&self) -> Result<&Sealer, Failure> {
        let make = || async {
            let secret = self.meta.secret(SEAL_SECRET).await;
            secret.map(Sealer::new).map_err(|error| Failure::from_meta(&error, "cursor"))
        };
        self.sealer.get_or_try_init(make).await
    }

    /// The entry with an id, if it is in the caller's tree.
    pub(crate) async fn entry_by_id(
        &self,
        namespace: NamespaceId,
        entry: EntryId,
    ) -> Result<EntryRow, Failure> {
        let subject = format!("entry {entry}");
        let rows = self.meta.entries_by_id(namespace, vec![entry]).await;
        let rows = rows.map_err(|error| Failure::from_meta(&error, &subject))?;
        rows.into_iter().next().flatten().ok_or_else(|| Failure::no_entry(&subject))
    }

    /// The entry that a path leads to.
    pub(crate) async fn entry_at(
        &self,
        namespace: NamespaceId,
        path: &RemotePath,
    ) -> Result<EntryRow, Failure> {
        let resolved = self.resolve_one(namespace, path).await?;
        found(path, &resolved)
    }

    /// How far one path leads.
    pub(crate) async fn resolve_one(
        &self,
        namespace: NamespaceId,
        path: &RemotePath,
    ) -> Result<Resolved, Failure> {
        let resolved = self.meta.resolve(namespace, std::slice::from_ref(path)).await;
        let resolved = resolved.map_err(|error| Failure::from_meta(&error, &path.to_string()))?;
        resolved.into_iter().next().ok_or_else(|| Failure::internal("resolve", &"no answer"))
    }

    /// The plain bytes of a download's chunks that lie in one stripe, verified, in order, once it is the account's turn:
    /// reading takes most of what a download costs. Cancel safe.
    pub(crate) async fn read_run(
        &self,
        account: AccountId,
        run: &[LocatedChunk],
    ) -> Result<Vec<Bytes>, Failure> {
        let bytes = run.iter().map(|located| u64::from(located.location.plain_length)).sum::<u64>();
        let _turn = self.read_bytes.take(account, bytes.div_ceil(BUDGET_UNIT_BYTES)).await;
        self.source.read_run(run).await
    }

    /// Stores a manifest node, pinned for `holder`.
    pub(crate) async fn store_node(
        &self,
        node: ChunkId,
        bytes: Bytes,
        holder: HolderId,
    ) -> Result<(), Failure> {
        let known = self.known(&[node]).await?;
        let prepared = self.preparer.prepare(ChunkKind::Manifest, vec![(node, bytes)]).await?;
        for (prepared, known) in prepared.into_iter().zip(known) {
            self.writer.store(prepared, vec![holder], known).await?;
        }
        Ok(())
    }

    /// Where chunks are already, in order. A chunk whose disks are not there, by the map, is marked and counts as new:
    /// fresh bytes take its place.
    pub(crate) async fn known(&self, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkLocation>>, Failure> {
        let failed = |error| Failure::from_meta(&error, "chunks");
        let mut places = self.meta.locate(chunks).await.map_err(failed)?;
        let mut unreadable = Vec::new();
        for (chunk, place) in chunks.iter().zip(&mut places) {
            if let Some(location) = place.take_if(|location| !self.presence.by_map(location)) {
                unreadable.push((*chunk, location.stripe));
            }
        }
        if !unreadable.is_empty() {
            mark(&self.meta, &unreadable).await.map_err(failed)?;
        }
        Ok(places)
    }

    /// What an administrator should hear of disks that hang, one line each.
    pub(crate) fn hung_disks(&self) -> Vec<String> {
        let map = self.meta.map();
        let line = |(hung, since): (HungDisk, Duration)| {
            let place = map
                .disk(hung.disk)
                .map_or_else(String::new, |info| format!(" ({} on storage node {})", info.path, info.node));
            let calls = match hung.kind {
                CallKind::Read => "reads",
                CallKind::Write => "writes",
            };
            format!(
                "disk {}{place} hangs: it has answered no {calls} of this gateway for {} s; check the disk and the \
                 node's log, and restart the node or replace the disk",
                hung.disk,
                since.as_secs()
            )
        };
        self.suspects.hung().into_iter().map(line).collect()
    }

    /// Removes a session's pins in the background; waits only if too many such clean-ups are under way.
    pub(crate) async fn clean_up(self: &Arc<Self>, session: Arc<Session>, dismissed: bool) {
        let Ok(permit) = Arc::clone(&self.cleanups).acquire_owned().await else { return };
        let core = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Err(error) = crate::release::unpin_session(&core.meta, &session, dismissed).await {
                tracing::warn!(upload = %session.upload, error = %error, "pins left behind; they are garbage");
            }
            drop(permit);
        });
    }
}

pub(crate) fn content_gone() -> Failure {
    let message = "its content is not there any more: it was removed meanwhile, or lost";
    Failure::new(Code::DataLoss, "data-loss", message)
}

/// The entry, if the whole path was found.
pub(crate) fn found(path: &RemotePath, resolved: &Resolved) -> Result<EntryRow, Failure> {
    if resolved.found as usize == path.names().len() {
        Ok(resolved.last.clone())
    } else {
        Err(Failure::no_entry(&path.to_string()))
    }
}
