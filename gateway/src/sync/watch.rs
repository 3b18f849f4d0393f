//! Who waits for changes of which tree, and the one subscription of each metadata group that serves them all.
//!
//! Invariants:
//! - A watched number only grows, but where the metadata itself went back to an older state; a waiter sees the latest
//!   one, however many there were.
//! - After anything that may have hidden a change (a new subscription, too much at once, another leader) the numbers
//!   of all watched trees are read anew, linearizably; and every [`WATCH_REREAD`] as well, so that a subscription that
//!   was cut off without a word, or cannot be had, costs no more than that.
//! - A tree that nobody watches any more is forgotten at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::ids::{GroupId, NamespaceId, ROOT_GROUP};
use futures_util::StreamExt;
use metaraft::api::MetaError;
use metaraft::client::WatchedChanges;
use metaraft::model::QUERY_ITEMS_MAX;
use proto::v1;
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};

use crate::auth::Caller;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{WATCH_GROUPS_CHECK, WATCH_PAUSE, WATCH_REREAD};
use crate::sync::changes::{Position, open_cursor};

/// How long a client may wait for a change.
const WAIT_MS_MAX: u32 = 60_000;

/// The watched trees.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    trees: Mutex<HashMap<NamespaceId, Tree>>,
}

/// A watched tree.
#[derive(Debug)]
struct Tree {
    number: watch::Sender<u64>,
    /// Never 0: the tree goes with the last one.
    watchers: usize,
}

/// One who watches a tree.
pub(crate) struct Watched {
    namespace: NamespaceId,
    number: watch::Receiver<u64>,
    watches: Arc<Watches>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut trees = self.watches.lock();
        if let Some(tree) = trees.get_mut(&self.namespace) {
            // Counted here: receivers go only after the lock is let go, two at once would each see the other's.
            tree.watchers -= 1;
            if tree.watchers == 0 {
                trees.remove(&self.namespace);
            }
        }
    }
}

impl Watches {
    fn lock(&self) -> MutexGuard<'_, HashMap<NamespaceId, Tree>> {
        // Held for a look-up or an insertion.
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches from now on; the number is 0 until the present one is told.
    fn watch(self: &Arc<Self>, namespace: NamespaceId) -> Watched {
        let mut trees = self.lock();
        let tree =
            trees.entry(namespace).or_insert_with(|| Tree { number: watch::Sender::new(0), watchers: 0 });
        tree.watchers += 1;
        let number = tree.number.subscribe();
        Watched { namespace, number, watches: Arc::clone(self) }
    }

    /// Tells that a tree has reached a number.
    fn tell(&self, namespace: NamespaceId, sequence: u64) {
        if let Some(tree) = self.lock().get(&namespace) {
            tree.number.send_if_modified(|latest| {
                let grows = sequence > *latest;
                *latest = sequence.max(*latest);
                grows
            });
        }
    }

    fn watched(&self) -> Vec<NamespaceId> {
        self.lock().keys().copied().collect()
    }

    fn number(&self, namespace: NamespaceId) -> u64 {
        self.lock().get(&namespace).map_or(0, |tree| *tree.number.borrow())
    }

    /// Tells what a tree's number is, read after it was known to be `before` at least: if it is less, the metadata went
    /// back.
    fn tell_read(&self, namespace: NamespaceId, before: u64, sequence: u64) {
        if sequence >= before {
            return self.tell(namespace, sequence);
        }
        tracing::warn!(%namespace, before, sequence, "the metadata went back to an older state");
        if let Some(tree) = self.lock().get(&namespace) {
            tree.number.send_replace(sequence);
        }
    }
}

/// Watches a tree whose present number is told already.
async fn watch_from_now(core: &Core, namespace: NamespaceId) -> Result<Watched, Failure> {
    let watched = core.watches.watch(namespace);
    // After it is watched: what comes later is told by the subscription.
    reread(core, &[namespace]).await.map_err(|error| Failure::from_meta(&error, "watch"))?;
    Ok(watched)
}

async fn reread(core: &Core, namespaces: &[NamespaceId]) -> Result<(), MetaError> {
    let before: Vec<u64> = namespaces.iter().map(|namespace| core.watches.number(*namespace)).collect();
    let sequences = core.meta.sequences(namespaces).await?;
    for ((namespace, before), sequence) in namespaces.iter().zip(before).zip(sequences) {
        if let Some(sequence) = sequence {
            core.watches.tell_read(*namespace, before, sequence);
        }
    }
    Ok(())
}

/// Follows every data group until the gateway stops.
pub(crate) async fn follow_groups(core: Arc<Core>) {
    let mut followed = BTreeSet::new();
    loop {
        if !core.sealer.initialized()
            && let Err(error) = core.sealer().await
        {
            // Made before anybody needs it: metadata that goes back then still knows the cursors that it gave.
            tracing::debug!(error = %error.message, "the secret of cursors is not there yet");
        }
        let map = core.meta.map();
        for group in map.slots.iter().map(|range| range.group) {
            if group != ROOT_GROUP && followed.insert(group) {
                let following = Arc::clone(&core);
                core.tasks.spawn(async move {
                    let stopping = following.stopping.clone();
                    tokio::select! {
                        () = stopping.cancelled() => {}
                        () = follow(&following, group) => {}
                    }
                });
            }
        }
        tokio::select! {
            () = core.stopping.cancelled() => return,
            () = tokio::time::sleep(WATCH_GROUPS_CHECK) => {}
        }
    }
}

/// When numbers were last reread, for as long as no subscription can be had that tells of them.
struct Reread(Instant);

impl Reread {
    /// Whether it is time to reread; that it is done now is taken for granted.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.0) >= WATCH_REREAD;
        if due {
            self.0 = now;
        }
        due
    }
}

/// Holds a subscription of one group, again and again.
async fn follow(core: &Core, group: GroupId) {
    let mut last = Reread(Instant::now());
    loop {
        let read = match core.meta.api().watch(group).await {
            Ok(mut stream) => {
                let ended = follow_stream(core, group, &mut stream).await;
                last = Reread(Instant::now());
                ended
            }
            Err(error) => {
                tracing::debug!(group = group.0, error = %error, "group not watched");
                if last.is_due(Instant::now()) { reread_group(core, group).await } else { Ok(()) }
            }
        };
        if let Err(error) = read {
            tracing::debug!(group = group.0, error = %error, "watched numbers could not be read");
        }
        tokio::time::sleep(WATCH_PAUSE).await;
    }
}

async fn follow_stream(
    core: &Core,
    group: GroupId,
    stream: &mut (impl futures_util::Stream<Item = WatchedChanges> + Unpin),
) -> Result<(), MetaError> {
    loop {
        match tokio::time::timeout(WATCH_REREAD, stream.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(WatchedChanges { notices, gap })) => {
                for (namespace, sequence) in notices {
                    core.watches.tell(namespace, sequence);
                    core.live.told(namespace);
                }
                if gap {
                    core.live.told_gap();
                    reread_group(core, group).await?;
                }
            }
            Err(_quiet) => reread_group(core, group).await?,
        }
    }
}

async fn reread_group(core: &Core, group: GroupId) -> Result<(), MetaError> {
    let mut own = core.watches.watched();
    own.retain(|namespace| core.meta.group_of(namespace.slot()).is_ok_and(|owner| owner == group));
    for some in own.chunks(QUERY_ITEMS_MAX as usize) {
        reread(core, some).await?;
    }
    Ok(())
}

fn stopping() -> Failure {
    Failure::unavailable("the gateway stops; try again in a moment")
}

/// Where a watcher's messages go.
pub(crate) type Sink = mpsc::Sender<Result<v1::WatchResponse, Status>>;

/// Tells a client of its tree's numbers until it goes (or is ended, see [`crate::live`]), or the gateway stops.
pub(crate) async fn serve(core: &Core, caller: &Caller, sink: Sink) {
    let ended = tell_all(core, caller, &sink).await;
    if let Err(failure) = ended {
        // The client may have gone, or takes nothing.
        drop(sink.try_send(Err(failure.into())));
    }
}

async fn tell_all(core: &Core, caller: &Caller, sink: &Sink) -> Result<(), Failure> {
    let namespace = caller.namespace;
    let mut watched = watch_from_now(core, namespace).await?;
    watched.number.mark_changed();
    let journal = Bytes::copy_from_slice(namespace.as_bytes());
    let mut news = false;
    loop {
        tokio::select! {
            () = core.stopping.cancelled() => return Err(stopping()),
            () = sink.closed() => return Ok(()),
            changed = watched.number.changed(), if !news => {
                changed.map_err(|closed| Failure::internal("watch", &closed))?;
                news = true;
            }
            // Taken only once the client is ready for it, so a slow one gets the latest number.
            room = sink.reserve(), if news => {
                let Ok(room) = room else { return Ok(()) };
                let sequence = *watched.number.borrow_and_update();
                room.send(Ok(v1::WatchResponse { journal: journal.clone(), sequence }));
                news = false;
            }
        }
    }
}

/// Waits until a number is another than a position: beyond it, or before it because the metadata went back. Cancel safe.
async fn beyond(number: &mut watch::Receiver<u64>, position: u64) -> Result<(), Failure> {
    // 0: not known yet.
    match number.wait_for(|number| *number != position && *number != 0).await {
        Ok(_number) => Ok(()),
        Err(closed) => Err(Failure::internal("watch", &closed)),
    }
}

/// Answers once the tree has changed beyond a cursor, or after a time.
pub(crate) async fn wait_for_change(
    core: &Core,
    caller: &Caller,
    request: &v1::WaitForChangeRequest,
) -> Result<bool, Failure> {
    let timeout_ms = match request.timeout_ms {
        0 => WAIT_MS_MAX,
        timeout_ms if timeout_ms <= WAIT_MS_MAX => timeout_ms,
        other => {
            let message = format!("timeout_ms: {other} is more than {WAIT_MS_MAX}");
            return Err(Failure::new(Code::InvalidArgument, "invalid", message));
        }
    };
    let Position::At { position, .. } = open_cursor(core, caller, &request.cursor).await? else {
        return Ok(true);
    };
    let mut watched = watch_from_now(core, caller.namespace).await?;
    let timeout = tokio::time::sleep(Duration::from_millis(u64::from(timeout_ms)));
    let mut timeout = std::pin::pin!(timeout);
    tokio::select! {
        () = core.stopping.cancelled() => Err(stopping()),
        changed = beyond(&mut watched.number, position) => changed.map(|()| true),
        () = &mut timeout => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_number_only_grows_and_the_latest_is_seen() {
        let watches = Arc::new(Watches::default());
        let namespace = NamespaceId::from_bytes([1; 16]);
        watches.tell(namespace, 9);
        let mut watched = watches.watch(namespace);
        for number in [3, 7, 5] {
            watches.tell(namespace, number);
        }
        assert!(watched.number.has_changed().unwrap());
        assert_eq!(*watched.number.borrow_and_update(), 7);
        watches.tell(namespace, 7);
        assert!(!watched.number.has_changed().unwrap());
    }

    #[tokio::test]
    async fn a_number_that_was_read_goes_back_but_not_for_one_that_came_while_it_was_read() {
        let watches = Arc::new(Watches::default());
        let namespace = NamespaceId::from_bytes([1; 16]);
        let mut watched = watches.watch(namespace);
        watches.tell(namespace, 7);
        watches.tell_read(namespace, 5, 6);
        assert_eq!(*watched.number.borrow_and_update(), 7, "7 was told while 6 was read");
        beyond(&mut watched.number, 6).await.unwrap();
        watches.tell_read(namespace, 7, 3);
        assert!(watched.number.has_changed().unwrap());
        beyond(&mut watched.number, 7).await.unwrap();
        watches.tell(namespace, 4);
        assert_eq!(*watched.number.borrow_and_update(), 4);
    }

    #[test]
    fn watched_numbers_are_reread_now_and_then_while_no_subscription_can_be_had() {
        let begun = Instant::now();
        let mut last = Reread(begun);
        let tries = (0..400).map(|number| begun + WATCH_PAUSE * number);
        let rereads: Vec<Instant> = tries.filter(|now| last.is_due(*now)).collect();
        assert_eq!(rereads, [1, 2, 3].map(|number| begun + WATCH_REREAD * number));
    }

    #[test]
    fn a_tree_that_nobody_watches_is_forgotten() {
        let watches = Arc::new(Watches::default());
        let namespace = NamespaceId::from_bytes([1; 16]);
        let (one, other) = (watches.watch(namespace), watches.watch(namespace));
        drop(one);
        assert_eq!(watches.watched(), [namespace]);
        drop(other);
        assert!(watches.watched().is_empty());
    }

    #[test]
    fn a_tree_is_forgotten_though_a_receiver_of_it_still_goes() {
        let watches = Arc::new(Watches::default());
        let (one, other) = {
            let namespace = NamespaceId::from_bytes([1; 16]);
            (watches.watch(namespace), watches.watch(namespace))
        };
        let (going, still_going) = (one.number.clone(), other.number.clone());
        drop((one, other));
        assert!(watches.watched().is_empty());
        drop((going, still_going));
    }
}
