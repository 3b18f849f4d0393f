//! Packs chunks into stripes and stores these: one task around the engine's packer.
//!
//! What a caller gets back means: `Ok` = the chunk is durable, registered, and pinned for its holders. The task runs
//! on when a caller goes away; what it stored then is garbage at worst.

use std::collections::HashMap;
use std::time::Duration;

use engine::codec::PreparedChunk;
use engine::ids::{ChunkId, HolderId};
use engine::location::ChunkLocation;
use engine::packer::{PackAction, PackEvent, Packer};
use engine::stripe::SealedStripe;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chunks::deposit::{Depositor, Done, Waiting};
use crate::failure::Failure;
use crate::limits::STRIPES_IN_FLIGHT_MAX;

/// How long a chunk waits for others while stripes are under way.
const LINGER: Duration = Duration::from_millis(4);

/// Chunks waiting to be packed; their bytes are bounded elsewhere.
const QUEUE_CHUNKS_MAX: usize = 4096;

struct Queued {
    chunk: PreparedChunk,
    holders: Vec<HolderId>,
    known: Option<ChunkLocation>,
    done: Done,
}

/// A cheap handle to the packing task.
#[derive(Clone)]
pub(crate) struct ChunkWriter {
    queue: mpsc::Sender<Queued>,
}

fn stopping() -> Failure {
    Failure::unavailable("the gateway is stopping; go on in a moment")
}

impl ChunkWriter {
    /// The handle, and the task to be spawned.
    pub(crate) fn new(
        depositor: Depositor,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, queued) = mpsc::channel(QUEUE_CHUNKS_MAX);
        let task = PackTask {
            depositor,
            packer: Packer::new(STRIPES_IN_FLIGHT_MAX),
            waiting: HashMap::new(),
            writing: JoinSet::new(),
            linger_until: None,
        };
        (Self { queue }, task.run(queued, stop))
    }

    /// Makes a chunk durable and pins it for `holders`. `known` says where it is already, if it is; it is answered all
    /// the same as if it were new. Dropping the future changes nothing: the chunk is stored or not.
    pub(crate) async fn store(
        &self,
        chunk: PreparedChunk,
        holders: Vec<HolderId>,
        known: Option<ChunkLocation>,
    ) -> Result<(), Failure> {
        let (done, result) = oneshot::channel();
        let queued = Queued { chunk, holders, known, done };
        if self.queue.send(queued).await.is_err() {
            return Err(stopping());
        }
        result.await.unwrap_or_else(|_task_ended| Err(stopping()))
    }
}

struct PackTask {
    depositor: Depositor,
    packer: Packer,
    /// Chunks in the packer's open stripe.
    waiting: HashMap<ChunkId, Waiting>,
    writing: JoinSet<()>,
    linger_until: Option<Instant>,
}

async fn linger(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl PackTask {
    async fn run(mut self, mut queued: mpsc::Receiver<Queued>, stop: CancellationToken) {
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(over) = self.writing.join_next() => {
                    log_panic(over);
                    PackEvent::WriteOver
                }
                () = linger(self.linger_until) => {
                    self.linger_until = None;
                    PackEvent::LingerOver
                }
                next = queued.recv(), if self.packer.accepts() => match next {
                    Some(next) => self.take(next, !queued.is_empty()),
                    None => break,
                },
            };
            self.step(event);
        }
        queued.close();
        // What waits is written; what is still queued is refused by its sender being dropped.
        self.step(PackEvent::Flush);
        while let Some(over) = self.writing.join_next().await {
            log_panic(over);
            self.step(PackEvent::WriteOver);
        }
    }

    fn take(&mut self, queued: Queued, more: bool) -> PackEvent {
        let Queued { chunk, holders, known, done } = queued;
        // The packer may seal what it has before it takes this chunk: its waiters must be there already, and are kept
        // apart by chunk, so that each stripe finds its own.
        let waiting =
            self.waiting.entry(chunk.chunk()).or_insert_with(|| Waiting { known, ..Waiting::default() });
        waiting.holders.extend(holders);
        waiting.done.push(done);
        // Whoever does not know it has it stored, for both.
        waiting.known = waiting.known.and(known);
        PackEvent::Chunk { chunk, more }
    }

    fn step(&mut self, event: PackEvent) {
        for action in self.packer.step(event) {
            match action {
                PackAction::Linger => self.linger_until = Some(Instant::now() + LINGER),
                PackAction::Write(sealed) => self.write(sealed),
            }
        }
    }

    fn write(&mut self, sealed: SealedStripe) {
        let mut waiting = HashMap::with_capacity(sealed.chunks().len());
        for row in sealed.chunks() {
            waiting.extend(self.waiting.remove(&row.chunk).map(|waiting| (row.chunk, waiting)));
        }
        let depositor = self.depositor.clone();
        self.writing.spawn(async move { depositor.deposit(sealed, waiting).await });
    }
}

fn log_panic(over: Result<(), tokio::task::JoinError>) {
    if let Err(error) = over {
        tracing::error!(error = %error, "a stripe's task failed");
    }
}
