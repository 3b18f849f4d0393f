//! The typed client, with the cluster map and the settings at hand.
//!
//! Invariants:
//! - The map and settings at hand are replaced by newer ones only; they are refreshed by a task every
//!   [`REFRESH_INTERVAL`], and on demand.
//! - A command that went to a group which does not own its slot is sent again under the same request id: nothing was
//!   done there.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use engine::cluster::ClusterMap;
use engine::code::Code;
use engine::ids::{ClusterId, GroupId, ROOT_GROUP, SlotId};
use futures_util::stream::BoxStream;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::MetaError;
use super::transport::Transport;
use crate::client::WatchedChanges;
use crate::model::codec;
use crate::model::command::{Command, CommandOutcome, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::query::{LONG_QUERY_BYTES, Query, Reply};
use crate::model::settings::Settings;

/// How old the map at hand may get.
const REFRESH_INTERVAL: Duration = Duration::from_millis(500);

/// How often a command or query follows a slot to its owner.
const OWNER_ATTEMPTS_MAX: u32 = 5;

/// How long to wait before the map is asked again for a slot's owner.
const OWNER_PAUSE: Duration = Duration::from_millis(100);

/// What is at hand.
#[derive(Clone)]
struct AtHand {
    /// How many refreshes there were.
    refreshes: u64,
    map: Arc<ClusterMap>,
    settings: Arc<Settings>,
}

struct Shared {
    transport: Box<dyn Transport>,
    at_hand: RwLock<AtHand>,
    /// Held while refreshing: one at a time.
    refreshing: Mutex<()>,
    refreshed: watch::Sender<u64>,
}

/// The metadata cluster. Clones share everything; [`MetaApi::stop`] ends the task behind them.
#[derive(Clone)]
pub struct MetaApi {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A map of nothing, until the first one has come.
fn no_map() -> ClusterMap {
    #[expect(clippy::expect_used, reason = "1+1 is a code")]
    let code = Code::new(1, 1).expect("1+1 is a code");
    ClusterMap {
        cluster: ClusterId::from_bytes([0; ClusterId::LENGTH]),
        revision: 0,
        code,
        meta_nodes: Vec::new(),
        storage_nodes: Vec::new(),
        disks: Vec::new(),
        volumes: Vec::new(),
        slots: Vec::new(),
    }
}

/// Sorts items by the group that owns each one's slot.
///
/// # Errors
/// [`MetaError::NoCluster`] if the map does not say who owns a slot.
pub fn by_group<T>(
    map: &ClusterMap,
    items: impl IntoIterator<Item = T>,
    slot: impl Fn(&T) -> SlotId,
) -> Result<BTreeMap<GroupId, Vec<T>>, MetaError> {
    let mut groups: BTreeMap<GroupId, Vec<T>> = BTreeMap::new();
    for item in items {
        let group = map.group_of(slot(&item)).ok_or(MetaError::NoCluster)?;
        groups.entry(group).or_default().push(item);
    }
    Ok(groups)
}

impl MetaApi {
    /// Begins to use the metadata cluster. Must be called within a tokio runtime: a task keeps the map fresh. Until
    /// the first one has come ([`MetaApi::wait_ready`]) the map at hand is empty.
    #[must_use]
    pub fn start(transport: impl Transport) -> Self {
        let map = Arc::new(no_map());
        let at_hand = RwLock::new(AtHand { refreshes: 0, map, settings: Arc::default() });
        let (refreshed, _) = watch::channel(0);
        let refreshing = Mutex::new(());
        let shared = Arc::new(Shared { transport: Box::new(transport), at_hand, refreshing, refreshed });
        let api =
            Self { shared: Arc::clone(&shared), stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let stop = api.stop.clone();
        api.tasks.spawn(async move { keep_fresh(&shared, &stop).await });
        api.tasks.close();
        api
    }

    /// Ends the task that keeps the map fresh, and waits for it. The map at hand stays as it is from then on.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }

    /// Waits until a map is at hand. Cancel safe.
    ///
    /// # Errors
    /// [`MetaError::Unavailable`] after `deadline`.
    pub async fn wait_ready(&self, deadline: Duration) -> Result<(), MetaError> {
        let mut refreshed = self.shared.refreshed.subscribe();
        let ready = refreshed.wait_for(|refreshes| *refreshes > 0);
        match tokio::time::timeout(deadline, ready).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                Err(MetaError::Unavailable { reason: format!("no cluster map within {deadline:?}") })
            }
        }
    }

    /// The map at hand.
    #[must_use]
    pub fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.shared.at_hand().map)
    }

    /// The settings at hand.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.shared.at_hand().settings)
    }

    /// The group that owns `slot`, by the map at hand.
    ///
    /// # Errors
    /// [`MetaError::NoCluster`] if there is no map yet.
    pub fn group_of(&self, slot: SlotId) -> Result<GroupId, MetaError> {
        self.map().group_of(slot).ok_or(MetaError::NoCluster)
    }

    /// Fetches the map and the settings, as of now or later, and gives the map. Cancel safe.
    ///
    /// # Errors
    /// If the root group does not answer, or the cluster has not been made.
    pub async fn refresh_map(&self) -> Result<Arc<ClusterMap>, MetaError> {
        let refreshes = self.shared.at_hand().refreshes;
        let _one = self.shared.refreshing.lock().await;
        // A refresh that began after this call serves as well; the first one to end may have begun before.
        if self.shared.at_hand().refreshes < refreshes + 2 {
            self.shared.refresh().await?;
        }
        Ok(self.map())
    }

    /// Commits a command; gives one outcome per step. Not cancel safe: it may be applied all the same, and is to be
    /// repeated under the same request id.
    ///
    /// # Errors
    /// See [`MetaError`]; with [`MetaError::Step`] nothing was changed.
    pub async fn propose(&self, group: GroupId, command: Command) -> Result<Vec<StepOutcome>, MetaError> {
        let bytes = Bytes::from(codec::encode(&command));
        self.follow(group, |group| {
            let bytes = bytes.clone();
            async move {
                let outcome = self.shared.transport.propose(group, bytes).await?;
                match codec::decode(&outcome)? {
                    CommandOutcome::Done(outcomes) => Ok(outcomes),
                    CommandOutcome::Failed { error, .. } => Err(error.into()),
                    CommandOutcome::RequestOutOfTime { leader_ms } => {
                        Err(MetaError::RequestOutOfTime { leader_ms })
                    }
                    CommandOutcome::NoSpace => Err(MetaError::NoSpace),
                    CommandOutcome::NotUnderstood => {
                        Err(MetaError::Protocol { what: "the group did not understand a command".to_owned() })
                    }
                }
            }
        })
        .await
    }

    /// Answers a query. Cancel safe.
    ///
    /// # Errors
    /// See [`MetaError`]; [`StepError::NotFound`] if the query's namespace is not there.
    pub async fn query(&self, group: GroupId, query: Query) -> Result<Reply, MetaError> {
        let (bytes, little) = encoded(&query);
        self.follow(group, |group| self.shared.ask(group, bytes.clone(), little)).await
    }

    /// One attempt at watching which namespaces of `group` change. The stream begins with a gap; when it ends, or at
    /// an error, begin another one.
    ///
    /// # Errors
    /// [`MetaError::Unavailable`] if the node that was asked does not answer, or does not lead.
    pub async fn watch(&self, group: GroupId) -> Result<BoxStream<'static, WatchedChanges>, MetaError> {
        self.shared.transport.watch(group).await
    }

    /// Runs `attempt` in `group`, or in the group that owns the slot it turns out to be about.
    async fn follow<T, F: Future<Output = Result<T, MetaError>>>(
        &self,
        mut group: GroupId,
        attempt: impl Fn(GroupId) -> F,
    ) -> Result<T, MetaError> {
        for _ in 1..OWNER_ATTEMPTS_MAX {
            match attempt(group).await {
                Err(MetaError::Step(StepError::NotOwner { slot })) => {
                    let before = group;
                    self.refresh_map().await?;
                    group = self.group_of(slot)?;
                    if group == before {
                        tokio::time::sleep(OWNER_PAUSE).await;
                    }
                }
                other => return other,
            }
        }
        attempt(group).await
    }
}

/// A query's bytes, and whether it travels with others.
fn encoded(query: &Query) -> (Bytes, bool) {
    let bytes = Bytes::from(codec::encode(query));
    let little = query.answers_little() && bytes.len() <= LONG_QUERY_BYTES;
    (bytes, little)
}

impl Shared {
    fn at_hand(&self) -> AtHand {
        // Held only to clone or replace.
        self.at_hand.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn ask(&self, group: GroupId, query: Bytes, little: bool) -> Result<Reply, MetaError> {
        let reply = self.transport.query(group, query, little).await?;
        match codec::decode(&reply)? {
            Reply::NoNamespace => Err(StepError::NotFound { what: "namespace".to_owned() }.into()),
            Reply::NotOwner(slot) => Err(StepError::NotOwner { slot }.into()),
            Reply::NoCluster => Err(MetaError::NoCluster),
            Reply::NotUnderstood => {
                Err(MetaError::Protocol { what: "the group did not understand a query".to_owned() })
            }
            reply => Ok(reply),
        }
    }

    /// Fetches map and settings. The caller holds `refreshing`.
    async fn refresh(&self) -> Result<(), MetaError> {
        let unexpected = || MetaError::Protocol { what: "unexpected answer of the root group".to_owned() };
        let ask = |query: Query| {
            let (bytes, little) = encoded(&query);
            self.ask(ROOT_GROUP, bytes, little)
        };
        let (map, settings) = tokio::join!(ask(Query::ClusterMap), ask(Query::Settings));
        let (Reply::ClusterMap(map), Reply::Settings(settings)) = (map?, settings?) else {
            return Err(unexpected());
        };
        let refreshes = {
            let mut at_hand = self.at_hand.write().unwrap_or_else(PoisonError::into_inner);
            at_hand.refreshes += 1;
            at_hand.map = Arc::from(map);
            at_hand.settings = Arc::new(Settings::new(settings));
            at_hand.refreshes
        };
        self.refreshed.send_replace(refreshes);
        Ok(())
    }
}

async fn keep_fresh(shared: &Shared, stop: &CancellationToken) {
    loop {
        let refresh = async {
            let _one = shared.refreshing.lock().await;
            shared.refresh().await
        };
        tokio::select! {
            () = stop.cancelled() => return,
            result = refresh => match result {
                Ok(()) | Err(MetaError::NoCluster) => {}
                Err(error) => tracing::warn!(error = %error, "the cluster map could not be refreshed"),
            },
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REFRESH_INTERVAL) => {}
        }
    }
}
