//! Which node to ask for a group: the last known leader, the one that another node named, or the next in line.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::ids::GroupId;
use proto::internal::NotLeader;
use proto::internal::metadata_client::MetadataClient;
use proto::peer::{MetaAddress, Role, TlsIdentity};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::config::ClientConfig;
use crate::raft::peers::{PeerAddressError, connect_lazily};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest pause between attempts, in first pauses.
const PAUSES_MAX: u32 = 8;

/// How often leaders may say that they are short of space before that is the answer.
const NO_SPACE_MAX: u32 = 5;

/// What an attempt came to.
pub(crate) enum Attempt<T> {
    Done(T),
    NotLeader(NotLeader),
    Failed(Status),
}

/// Why the attempts ended without an answer.
pub(crate) enum GaveUp {
    Deadline { last_failure: String },
    Refused { reason: String },
    NoSpace,
}

/// Connections to the metadata nodes, and who leads which group.
pub(crate) struct Leaders {
    config: ClientConfig,
    nodes: Vec<(String, Channel)>,
    /// The index of the node to ask first.
    favourites: Mutex<BTreeMap<GroupId, usize>>,
}

impl Leaders {
    pub(crate) fn new(
        addresses: &[String],
        identity: &TlsIdentity,
        config: ClientConfig,
    ) -> Result<Self, PeerAddressError> {
        let mut nodes = Vec::new();
        for MetaAddress { node, address } in addresses.iter().map(|text| MetaAddress::parse(text)) {
            let expected = identity.expects(Role::Meta, node);
            let channel = connect_lazily(&address, identity, expected, CONNECT_TIMEOUT)?;
            nodes.push((address, channel));
        }
        Ok(Self { config, nodes, favourites: Mutex::default() })
    }

    fn favourites(&self) -> MutexGuard<'_, BTreeMap<GroupId, usize>> {
        // Held only for a look-up or an insertion.
        self.favourites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self, node: usize) -> Option<MetadataClient<Channel>> {
        let (_address, channel) = self.nodes.get(node)?;
        Some(
            MetadataClient::new(channel.clone())
                .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(proto::MESSAGE_BYTES_MAX),
        )
    }

    /// The deadline of a call that begins now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.config.deadline
    }

    /// Makes attempts until one is done, one is refused for good, or `deadline` has come.
    pub(crate) async fn call<T, F>(
        &self,
        group: GroupId,
        deadline: Instant,
        mut attempt: impl FnMut(MetadataClient<Channel>) -> F,
    ) -> Result<T, GaveUp>
    where
        F: Future<Output = Attempt<T>>,
    {
        let mut node = self.favourites().get(&group).copied().unwrap_or(0);
        let mut last_failure = "no attempt was made".to_owned();
        let mut failures: u32 = 0;
        let mut no_space: u32 = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(client) = self.client(node).filter(|_client| !left.is_zero()) else {
                return Err(GaveUp::Deadline { last_failure });
            };
            let limit = left.min(self.config.attempt_timeout);
            let outcome = tokio::time::timeout(limit, attempt(client)).await;
            let mut hint = None;
            match outcome {
                Ok(Attempt::Done(answer)) => {
                    self.favourites().insert(group, node);
                    return Ok(answer);
                }
                Ok(Attempt::NotLeader(not_leader)) => {
                    last_failure = self.describe(node, "does not lead");
                    hint = self.nodes.iter().position(|(address, _)| *address == not_leader.leader_address);
                }
                // The leader said so, and it hands over to one that has room, if any has.
                Ok(Attempt::Failed(status)) if status.code() == Code::ResourceExhausted => {
                    no_space += 1;
                    if no_space >= NO_SPACE_MAX {
                        return Err(GaveUp::NoSpace);
                    }
                    last_failure = self.describe(node, status.message());
                }
                Ok(Attempt::Failed(status)) if is_final(&status) => {
                    return Err(GaveUp::Refused { reason: status.message().to_owned() });
                }
                Ok(Attempt::Failed(status)) => last_failure = self.describe(node, &status.to_string()),
                Err(_elapsed) => last_failure = self.describe(node, "did not answer in time"),
            }
            failures += 1;
            // A hint is followed at once, but two nodes may name each other for a while.
            let followed = hint.filter(|hint| *hint != node);
            node = followed.unwrap_or((node + 1) % self.nodes.len().max(1));
            if followed.is_none() || failures > 1 {
                let pause = self.config.pause * (1 << (failures / 2).min(3)).min(PAUSES_MAX);
                tokio::time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
        }
    }

    /// The node to ask first, and its client.
    pub(crate) fn favourite(&self, group: GroupId) -> Option<(usize, MetadataClient<Channel>)> {
        let node = self.favourites().get(&group).copied().unwrap_or(0);
        Some((node, self.client(node)?))
    }

    /// Goes on with the node that another one named, or with the next in line, if `node` is still the favourite.
    pub(crate) fn pass_on(&self, group: GroupId, node: usize, not_leader: Option<&NotLeader>) {
        let hint = not_leader
            .and_then(|hint| self.nodes.iter().position(|(address, _)| *address == hint.leader_address))
            .filter(|hint| *hint != node);
        let next = hint.unwrap_or((node + 1) % self.nodes.len().max(1));
        let mut favourites = self.favourites();
        if favourites.get(&group).copied().unwrap_or(0) == node {
            favourites.insert(group, next);
        }
    }

    fn describe(&self, node: usize, what: &str) -> String {
        let address = self.nodes.get(node).map_or("?", |(address, _)| address.as_str());
        format!("metadata node {address}: {what}")
    }
}

/// Whether another attempt, here or elsewhere, would come to the same.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::NotFound
            | Code::OutOfRange
    )
}
