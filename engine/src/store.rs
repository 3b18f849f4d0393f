//! The small traits against which stripes are written and chunks are read: so that they run the same over the
//! network, in memory and in a simulation.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use crate::cluster::StripeLayout;
use crate::code::Code;
use crate::ids::{DiskId, Epoch, Position, StripeId};

/// A shard on its way to a disk.
#[derive(Clone, Debug)]
pub struct ShardPut {
    /// The disk it goes to: the volume's member at `position`.
    pub disk: DiskId,
    /// The stripe it is of.
    pub stripe: StripeId,
    /// Which of its pieces.
    pub position: Position,
    /// The volume's epoch, as the writer knows it.
    pub epoch: Epoch,
    /// The volume's code.
    pub code: Code,
    /// Whether the shard is a coded piece or a whole copy.
    pub layout: StripeLayout,
    /// Bytes of the whole stripe, before padding.
    pub stripe_length: u32,
    /// The shard.
    pub payload: Bytes,
}

/// Why a shard was not stored. Variants differ where the writer's next move differs.
#[derive(Debug, thiserror::Error)]
pub enum PutShardError {
    /// The membership has changed: fetch the cluster map, choose again.
    #[error("stale epoch: stripe={stripe} position={position} current_epoch={current}")]
    StaleEpoch {
        /// The stripe.
        stripe: StripeId,
        /// The position.
        position: Position,
        /// The epoch that the node knows.
        current: Epoch,
    },
    /// The disk takes no writes (full, fenced, missing): use another volume until the map says otherwise.
    #[error("disk refuses writes: disk={disk} reason={reason}")]
    DiskRefuses {
        /// The disk.
        disk: DiskId,
        /// Why, in words.
        reason: String,
    },
    /// Too much waits for the disk or its node: nothing was stored; come again in a moment. The disk is well.
    #[error("disk busy: disk={disk} reason={reason}")]
    Busy {
        /// The disk.
        disk: DiskId,
        /// Why, in words.
        reason: String,
    },
    /// The node did not answer, or failed this time: whether the shard is stored is not known.
    #[error("storage node unavailable: disk={disk} reason={reason}")]
    Unavailable {
        /// The disk.
        disk: DiskId,
        /// Why, in words.
        reason: String,
    },
}

/// How a shard that should be there is lost. A repairer counts the three apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardLoss {
    /// Never stored, or deleted.
    Absent,
    /// Its checksums fail.
    Damaged,
    /// The medium does not give it back; its neighbours are read on.
    Unreadable,
}

/// Why a shard cannot be read. Variants differ where the caller's next move differs.
#[derive(Debug, thiserror::Error)]
pub enum ReadShardError {
    /// Gone or damaged here: rebuild from the others, do not retry this disk.
    #[error("shard lost: stripe={stripe} position={position} reason={reason}")]
    Lost {
        /// The stripe.
        stripe: StripeId,
        /// The position.
        position: Position,
        /// How it is lost.
        loss: ShardLoss,
        /// What was found, in words.
        reason: String,
    },
    /// Too much waits for the disk or its node: come again in a moment, or read elsewhere. The disk is well.
    #[error("disk busy: disk={disk} reason={reason}")]
    Busy {
        /// The disk.
        disk: DiskId,
        /// Why, in words.
        reason: String,
    },
    /// The node did not answer, or the disk failed this time: read elsewhere.
    #[error("storage node unavailable: disk={disk} reason={reason}")]
    Unavailable {
        /// The disk.
        disk: DiskId,
        /// Why, in words.
        reason: String,
    },
}

/// Disks somewhere that store shards.
pub trait ShardStore: Send + Sync + 'static {
    /// Stores a shard; when it returns `Ok`, the shard is on stable storage. Storing the same shard twice is
    /// harmless. Dropping the future leaves the shard stored or not.
    fn put_shard(&self, put: ShardPut) -> impl Future<Output = Result<(), PutShardError>> + Send;

    /// Reads `length` bytes of a shard from `offset`; what is returned has passed the shard's checksums.
    fn read_shard(
        &self,
        disk: DiskId,
        stripe: StripeId,
        position: Position,
        offset: u32,
        length: u32,
    ) -> impl Future<Output = Result<Bytes, ReadShardError>> + Send;
}

/// Time, for deadlines only: the engine reads no clock of its own.
pub trait Timer: Send + Sync + 'static {
    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send;
}

/// Where the work of a processor is done that takes long, a stripe's decoding: the engine has no threads of its own.
pub trait Processor: Send + Sync + 'static {
    /// Does `work`, or gives `None` if that came to no end. Cancel-safe: whether it is done then does not matter.
    fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> impl Future<Output = Option<R>> + Send;
}

/// Randomness for ids.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `bytes` with fresh randomness.
    fn fill(&self, bytes: &mut [u8]);
}
