//! Chunks that are being stored right now: the same chunk sent twice at once is written once.
//!
//! Its size is bounded by that of the uploads in flight.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use engine::ids::ChunkId;
use tokio::sync::watch;

/// The table.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight {
    chunks: Arc<Mutex<HashMap<ChunkId, watch::Receiver<()>>>>,
}

/// What to do with a chunk.
#[derive(Debug)]
pub(crate) enum Claim {
    /// It is nobody else's: look whether it is there, and store it.
    Mine(Claimed),
    /// Somebody stores it: wait, then look again.
    Others(Wait),
}

/// Claims a chunk until dropped.
#[derive(Debug)]
pub(crate) struct Claimed {
    chunk: ChunkId,
    table: InFlight,
    /// Dropped last: waiters are told by its end.
    _ended: watch::Sender<()>,
}

/// Waits for somebody else's claim to end.
#[derive(Debug)]
pub(crate) struct Wait(watch::Receiver<()>);

impl Wait {
    /// Until it has ended.
    pub(crate) async fn ended(mut self) {
        // Nothing is ever sent: an error means that the sender is gone, which is what is waited for.
        while self.0.changed().await.is_ok() {}
    }
}

impl InFlight {
    /// Claims a chunk, or says whom to wait for.
    pub(crate) fn claim(&self, chunk: ChunkId) -> Claim {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        match chunks.entry(chunk) {
            Entry::Occupied(other) => Claim::Others(Wait(other.get().clone())),
            Entry::Vacant(free) => {
                let (ended, wait) = watch::channel(());
                free.insert(wait);
                Claim::Mine(Claimed { chunk, table: self.clone(), _ended: ended })
            }
        }
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.table.chunks.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_until_the_first_has_ended() {
        let table = InFlight::default();
        let chunk = ChunkId::from_bytes([1; 32]);
        let Claim::Mine(first) = table.claim(chunk) else { panic!("nobody else has it") };
        let Claim::Others(wait) = table.claim(chunk) else { panic!("the first has it") };
        let waiting = tokio::spawn(wait.ended());
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
        assert!(matches!(table.claim(chunk), Claim::Mine(_)));
    }
}
