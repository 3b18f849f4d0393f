//! The client stub for storage nodes: a [`ShardStore`] over the network.
//!
//! Invariants:
//! - Every call has a deadline, and a node that refuses the connection is reported at once.
//! - A call never fails by how connecting ended for a call before it: a node that is back is used again at once.
//! - A node that has too much to do is told apart from one that fails: what it did not take can come again.
//! - Dropping a call ends it at the node as well, which then lets go of the shard's bytes.
//! - An answer is `Ok` only for bytes that the node verified; TLS keeps them whole on the way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::cluster::HISTORY;
use engine::ids::{DiskId, Epoch, NodeId, Position, StripeId, VolumeId};
use engine::store::{PutShardError, ReadShardError, ShardPut, ShardStore};
use proto::internal::storage_client::StorageClient as Stub;
use proto::internal::{self, put_shard_response, read_shard_response};
use proto::peer::{Role, TlsIdentity};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::channels::Channels;
use crate::record::ShardName;
use crate::wire;

/// A put or a read that takes longer has failed this time. Callers that hedge or write elsewhere give up sooner.
const SHARD_DEADLINE: Duration = Duration::from_secs(30);

/// Connecting that fails sooner is tried once more: a connection keeps how connecting ended, or what it waits for, when
/// the call that began it is dropped, and gives that to the next call, however much later. Less than it takes to give
/// up a machine that does not answer.
const CONNECT_FAILED_BEFORE: Duration = Duration::from_millis(200);

/// A deletion or a page of a listing that takes longer has failed this time.
const BULK_DEADLINE: Duration = Duration::from_secs(60);

/// Says which node serves a disk, and where: `host:port`; or `None` if it is not known.
pub type Resolve = Arc<dyn Fn(DiskId) -> Option<(NodeId, String)> + Send + Sync>;

/// Why a call that is not a [`ShardStore`]'s failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageCallError {
    /// No node is known to serve the disk.
    #[error("disk {disk} is at no known address")]
    UnknownDisk {
        /// The disk.
        disk: DiskId,
    },
    /// The node did not answer: whether the call took effect is not known.
    #[error("storage node {address} is unavailable: {reason}")]
    Unavailable {
        /// Where it should be.
        address: String,
        /// Why, in words.
        reason: String,
    },
    /// The node answered that it will not.
    #[error("storage node {address} refuses: {reason}")]
    Refused {
        /// Where it is.
        address: String,
        /// Why, in words.
        reason: String,
    },
}

/// A shard, as a node lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedShard {
    /// Its name.
    pub name: ShardName,
    /// The volume's epoch when it was written.
    pub epoch: Epoch,
    /// Its bytes.
    pub length: u32,
}

/// Reaches the storage nodes of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct StorageClient {
    channels: Arc<Channels>,
    resolve: Resolve,
}

impl StorageClient {
    /// A client that proves itself as `identity` and asks `resolve` where disks are. Connects when first used.
    #[must_use]
    pub fn new(identity: &TlsIdentity, resolve: Resolve) -> Self {
        Self { channels: Arc::new(Channels::new(identity)), resolve }
    }

    fn stub(&self, node: NodeId, address: &str) -> Result<Stub<Channel>, String> {
        let channel =
            self.channels.get(address, Role::Storage, Some(node)).map_err(|error| error.to_string())?;
        Ok(Stub::new(channel)
            .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(proto::MESSAGE_BYTES_MAX))
    }

    fn stub_for(&self, disk: DiskId) -> Result<Stub<Channel>, String> {
        let (node, address) = (self.resolve)(disk).ok_or("the cluster map has no address for it")?;
        self.stub(node, &address)
    }

    fn bulk_stub(&self, disk: DiskId) -> Result<(String, Stub<Channel>), StorageCallError> {
        let (node, address) = (self.resolve)(disk).ok_or(StorageCallError::UnknownDisk { disk })?;
        match self.stub(node, &address) {
            Ok(stub) => Ok((address, stub)),
            Err(reason) => Err(StorageCallError::Unavailable { address, reason }),
        }
    }

    /// Deletes shards of one disk, up to 4,096; says how many there were. `epochs` names those of their volumes, as the
    /// caller's cluster map has them: the node deletes nothing if it knows newer ones. Repeating it is harmless.
    ///
    /// # Errors
    /// See [`StorageCallError`].
    pub async fn delete_shards(
        &self,
        disk: DiskId,
        shards: &[ShardName],
        epochs: &BTreeMap<VolumeId, Epoch>,
    ) -> Result<u64, StorageCallError> {
        let (address, stub) = self.bulk_stub(disk)?;
        let named = |(volume, epoch): (&VolumeId, &Epoch)| internal::VolumeAuthority {
            volume: volume.0,
            epoch: epoch.0,
        };
        let request = internal::DeleteShardsRequest {
            disk: disk.as_bytes().to_vec().into(),
            shards: shards.iter().map(wire_name).collect(),
            history: HISTORY,
            volumes: epochs.iter().map(named).collect(),
        };
        let call = |mut stub: Stub<Channel>, request| async move { stub.delete_shards(request).await };
        Ok(within(BULK_DEADLINE, &stub, request, call)
            .await
            .map_err(|status| call_error(address, &status))?
            .deleted)
    }

    /// A page of the shards of one disk, after `after`, by stripe and position; and whether there are more.
    ///
    /// # Errors
    /// See [`StorageCallError`].
    pub async fn list_shards(
        &self,
        disk: DiskId,
        after: Option<ShardName>,
        count_max: u32,
    ) -> Result<(Vec<ListedShard>, bool), StorageCallError> {
        let (address, stub) = self.bulk_stub(disk)?;
        let request = internal::ListShardsRequest {
            disk: disk.as_bytes().to_vec().into(),
            after: after.as_ref().map(wire_name),
            count_max,
        };
        let call = |mut stub: Stub<Channel>, request| async move { stub.list_shards(request).await };
        let page = within(BULK_DEADLINE, &stub, request, call)
            .await
            .map_err(|status| call_error(address.clone(), &status))?;
        let mut shards = Vec::with_capacity(page.shards.len());
        for shard in page.shards {
            let name = wire::shard_name(&shard.stripe, shard.position)
                .map_err(|status| call_error(address.clone(), &status))?;
            shards.push(ListedShard { name, epoch: Epoch(shard.epoch), length: shard.length });
        }
        Ok((shards, page.more))
    }

    /// Has `node`, at `address`, verify every record of its disks now. The last message has `done` set; dropping the
    /// stream ends the scrub.
    ///
    /// # Errors
    /// See [`StorageCallError`].
    pub async fn scrub(
        &self,
        node: NodeId,
        address: &str,
    ) -> Result<Streaming<internal::ScrubProgress>, StorageCallError> {
        let unavailable = |reason| StorageCallError::Unavailable { address: address.to_owned(), reason };
        let stub = self.stub(node, address).map_err(unavailable)?;
        let call = |mut stub: Stub<Channel>, request| async move { stub.scrub(request).await };
        within(BULK_DEADLINE, &stub, internal::ScrubRequest {}, call)
            .await
            .map_err(|status| call_error(address.to_owned(), &status))
    }
}

fn wire_name(name: &ShardName) -> internal::ShardName {
    internal::ShardName { stripe: name.stripe.as_bytes().to_vec().into(), position: name.position.0.into() }
}

/// A call about a shard that the node itself gives up in time.
fn with_deadline<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(SHARD_DEADLINE);
    request
}

/// Makes a call of `request` and waits for it until its deadline; once more if there was no connection and that was
/// known at once, which may be news of long ago.
async fn within<M: Clone, T, F>(
    deadline: Duration,
    stub: &Stub<Channel>,
    request: M,
    call: impl Fn(Stub<Channel>, M) -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let began = Instant::now();
    let twice = async {
        match call(stub.clone(), request.clone()).await {
            Err(status) if is_unconnected(&status) && began.elapsed() < CONNECT_FAILED_BEFORE => {
                call(stub.clone(), request).await
            }
            answer => answer,
        }
    };
    match tokio::time::timeout(deadline, twice).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_elapsed) => Err(Status::deadline_exceeded(format!("no answer within {deadline:?}"))),
    }
}

/// Whether a call failed because there was no connection: nothing of it was sent.
fn is_unconnected(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What went wrong, with the innermost cause: tonic's own text often names only the outermost.
fn words(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    if text.is_empty() { status.code().to_string() } else { text }
}

fn call_error(address: String, status: &Status) -> StorageCallError {
    let reason = words(status);
    match status.code() {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::ResourceExhausted => StorageCallError::Refused { address, reason },
        _ => StorageCallError::Unavailable { address, reason },
    }
}

impl ShardStore for StorageClient {
    async fn put_shard(&self, put: ShardPut) -> Result<(), PutShardError> {
        let disk = put.disk;
        let unavailable = |reason| PutShardError::Unavailable { disk, reason };
        let stub = self.stub_for(disk).map_err(unavailable)?;
        let (code_data, code_parity) = put.code.into();
        let request = internal::PutShardRequest {
            disk: disk.as_bytes().to_vec().into(),
            stripe: put.stripe.as_bytes().to_vec().into(),
            position: put.position.0.into(),
            epoch: put.epoch.0,
            code_data: code_data.into(),
            code_parity: code_parity.into(),
            layout: wire::layout_to_wire(put.layout).into(),
            stripe_length: put.stripe_length,
            payload_crc32: crc32fast::hash(&put.payload),
            payload: put.payload,
            history: HISTORY,
        };
        let call =
            |mut stub: Stub<Channel>, request| async move { stub.put_shard(with_deadline(request)).await };
        let answer = within(SHARD_DEADLINE, &stub, request, call).await;
        match answer.map(|response| response.result) {
            Ok(Some(put_shard_response::Result::Stored(_))) => Ok(()),
            Ok(Some(put_shard_response::Result::StaleEpoch(stale))) => Err(PutShardError::StaleEpoch {
                stripe: put.stripe,
                position: put.position,
                current: Epoch(stale.current),
            }),
            Ok(Some(put_shard_response::Result::DiskRefuses(refusal))) => {
                Err(PutShardError::DiskRefuses { disk, reason: refusal.reason })
            }
            Ok(None) => Err(unavailable("an answer of a kind this version does not know".to_owned())),
            Err(status) if status.code() == Code::ResourceExhausted => {
                Err(PutShardError::Busy { disk, reason: words(&status) })
            }
            Err(status) if status.code() == Code::AlreadyExists => {
                Err(PutShardError::DiskRefuses { disk, reason: words(&status) })
            }
            Err(status) => Err(unavailable(words(&status))),
        }
    }

    async fn read_shard(
        &self,
        disk: DiskId,
        stripe: StripeId,
        position: Position,
        offset: u32,
        length: u32,
    ) -> Result<Bytes, ReadShardError> {
        let unavailable = |reason| ReadShardError::Unavailable { disk, reason };
        let stub = self.stub_for(disk).map_err(unavailable)?;
        let request = internal::ReadShardRequest {
            disk: disk.as_bytes().to_vec().into(),
            stripe: stripe.as_bytes().to_vec().into(),
            position: position.0.into(),
            offset,
            length,
        };
        let call =
            |mut stub: Stub<Channel>, request| async move { stub.read_shard(with_deadline(request)).await };
        let answer = within(SHARD_DEADLINE, &stub, request, call).await;
        match answer.map(|response| response.result) {
            Ok(Some(read_shard_response::Result::Payload(bytes))) if bytes.len() == length as usize => {
                Ok(bytes)
            }
            Ok(Some(read_shard_response::Result::Payload(bytes))) => {
                Err(unavailable(format!("{} bytes came where {length} were asked for", bytes.len())))
            }
            Ok(Some(read_shard_response::Result::Lost(lost))) => {
                let loss = wire::loss_from_wire(lost.loss());
                Err(ReadShardError::Lost { stripe, position, loss, reason: lost.reason })
            }
            Ok(Some(read_shard_response::Result::DiskRefuses(refusal))) => Err(unavailable(refusal.reason)),
            Ok(None) => Err(unavailable("an answer of a kind this version does not know".to_owned())),
            Err(status) if status.code() == Code::ResourceExhausted => {
                Err(ReadShardError::Busy { disk, reason: words(&status) })
            }
            Err(status) => Err(unavailable(words(&status))),
        }
    }
}
