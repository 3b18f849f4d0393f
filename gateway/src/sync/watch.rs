//! Who waits for changes of which tree, and the one subscription of each metadata group that serves them all.
//!
//! Invariants:
//! - A watched number only grows; a waiter sees the latest one, however many there were.
//! - After anything that may have hidden a change (a new subscription, too much at once, another leader) the numbers
//!   of all watched trees are read anew, linearizably; and every [`WATCH_REREAD`] as well, so that a subscription that
//!   was cut off without a word costs no more than that.
//! - A tree that nobody watches any more is forgotten at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
use crate::limits::{WATCH_GROUPS_CHECK, WATCH_PAUSE, WATCH_REREAD, WATCH_TOKEN_RECHECK};
use crate::sync::changes::{Position, open_cursor};

/// How long a client may wait for a change.
const WAIT_MS_MAX: u32 = 60_000;

/// The watched trees.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    numbers: Mutex<HashMap<NamespaceId, watch::Sender<u64>>>,
}

/// One who watches a tree.
pub(crate) struct Watched {
    namespace: NamespaceId,
    number: watch::Receiver<u64>,
    watches: Arc<Watches>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut numbers = self.watches.lock();
        // Its own receiver is still there.
        if numbers.get(&self.namespace).is_some_and(|sender| sender.receiver_count() <= 1) {
            numbers.remove(&self.namespace);
        }
    }
}

impl Watches {
    fn lock(&self) -> MutexGuard<'_, HashMap<NamespaceId, watch::Sender<u64>>> {
        // Held for a look-up or an insertion.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches from now on; the number is 0 until the present one is told.
    fn watch(self: &Arc<Self>, namespace: NamespaceId) -> Watched {
        let number = self.lock().entry(namespace).or_insert_with(|| watch::Sender::new(0)).subscribe();
        Watched { namespace, number, watches: Arc::clone(self) }
    }

    /// Tells that a tree has reached a number.
    fn tell(&self, namespace: NamespaceId, sequence: u64) {
        if let Some(number) = self.lock().get(&namespace) {
            number.send_if_modified(|latest| {
                let grows = sequence > *latest;
                *latest = sequence.max(*latest);
                grows
            });
        }
    }

    fn watched(&self) -> Vec<NamespaceId> {
        self.lock().keys().copied().collect()
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
    let sequences = core.meta.sequences(namespaces).await?;
    for (namespace, sequence) in namespaces.iter().zip(sequences) {
        if let Some(sequence) = sequence {
            core.watches.tell(*namespace, sequence);
        }
    }
    Ok(())
}

/// Follows every data group until the gateway stops.
pub(crate) async fn follow_groups(core: Arc<Core>) {
    let mut followed = BTreeSet::new();
    loop {
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

/// Holds a subscription of one group, again and again.
async fn follow(core: &Core, group: GroupId) {
    loop {
        match core.meta.api().watch(group).await {
            Ok(mut stream) => {
                if let Err(error) = follow_stream(core, group, &mut stream).await {
                    tracing::debug!(group = group.0, error = %error, "watched numbers could not be read");
                }
            }
            Err(error) => tracing::debug!(group = group.0, error = %error, "group not watched"),
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
                notices.into_iter().for_each(|(namespace, sequence)| core.watches.tell(namespace, sequence));
                if gap {
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

/// Tells a client of its tree's numbers until it goes, its token is revoked, or the gateway stops.
pub(crate) async fn serve(core: &Core, mut caller: Caller, sink: Sink) {
    let ended = tell_all(core, &mut caller, &sink).await;
    if let Err(failure) = ended {
        // The client may have gone, or takes nothing.
        drop(sink.try_send(Err(failure.into())));
    }
}

async fn tell_all(core: &Core, caller: &mut Caller, sink: &Sink) -> Result<(), Failure> {
    let namespace = caller.namespace;
    let mut watched = watch_from_now(core, namespace).await?;
    watched.number.mark_changed();
    let journal = Bytes::copy_from_slice(namespace.as_bytes());
    let mut recheck = tokio::time::interval(WATCH_TOKEN_RECHECK);
    let mut news = false;
    loop {
        tokio::select! {
            () = core.stopping.cancelled() => return Err(stopping()),
            () = sink.closed() => return Ok(()),
            _now = recheck.tick() => caller.recheck(&core.meta).await?,
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

/// Waits until a number is beyond a position. Cancel safe.
async fn beyond(number: &mut watch::Receiver<u64>, position: u64) -> Result<(), Failure> {
    match number.wait_for(|number| *number > position).await {
        Ok(_number) => Ok(()),
        Err(closed) => Err(Failure::internal("watch", &closed)),
    }
}

/// Answers once the tree has changed beyond a cursor, or after a time.
pub(crate) async fn wait_for_change(
    core: &Core,
    caller: &mut Caller,
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
    let mut recheck = tokio::time::interval(WATCH_TOKEN_RECHECK);
    loop {
        tokio::select! {
            () = core.stopping.cancelled() => return Err(stopping()),
            changed = beyond(&mut watched.number, position) => {
                return changed.map(|()| true);
            }
            _now = recheck.tick() => caller.recheck(&core.meta).await?,
            () = &mut timeout => return Ok(false),
        }
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
}
