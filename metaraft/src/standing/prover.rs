//! Decides whether a metadata node may vote. Pure: no clock, no disk, no network.
//!
//! What happens at a start, in this order:
//! 1. **Ask.** Every witness that can be reached says what it holds of this voter: the other voters, and the storage nodes
//!    that have ever held something of it. One that knows better ends it: the node refuses, for good.
//! 2. **Enrol**, once in a voter's life: when every configured voter was met, none of them enrolled, each notes the
//!    incarnations of all. So nobody founds a group unless all are there, and nobody who came back blank is taken for new.
//! 3. **Begin.** The run gets a number and a name, durably here.
//! 4. **Tell.** Those who answered are told of the run. Now a copy of the directory from before is found out.
//! 5. **Vote.** Witnesses go on being told how far the log is. One that comes late and knows better still ends it.
//!
//! Invariants:
//! - Nothing is begun before all expected witnesses have answered, or the grace has passed and a majority of voters
//!   (this one counted) agree on who is who.
//! - [`Standing::Refuses`] is final.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine::attestation::{Attestation, Behind};
use engine::ids::NodeId;

/// How long witnesses that do not answer are waited for, in each of the two rounds.
pub(crate) const WITNESS_GRACE: Duration = Duration::from_secs(2);
/// Storage nodes that a voter expects to hear from.
pub(crate) const WITNESSES_MAX: usize = 64;

/// Which incarnation each voter had when the cluster was founded.
pub(crate) type Roster = BTreeMap<u64, [u8; 16]>;

/// Who remembers something of a voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) enum WitnessId {
    Voter(u64),
    Storage(u64),
}

impl std::fmt::Display for WitnessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Voter(node) => write!(f, "metadata node {node}"),
            Self::Storage(node) => write!(f, "storage node {node}"),
        }
    }
}

/// What a voter says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VoterSelf {
    pub(crate) incarnation: [u8; 16],
    /// The incarnations of all, once it is enrolled.
    pub(crate) roster: Option<Roster>,
}

/// What a node found in its directory when it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Of its last run.
    pub(crate) attestation: Attestation,
    pub(crate) roster: Option<Roster>,
    /// Storage nodes that have held something of it.
    pub(crate) witnesses: BTreeSet<u64>,
}

/// Where a node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It does not vote yet; says what it waits for.
    Waits(String),
    /// It votes.
    Votes,
    /// It must not vote any more; says why.
    Refuses(String),
}

impl Standing {
    pub(crate) fn votes(&self) -> bool {
        *self == Self::Votes
    }

    /// Why it does not vote; empty if it does.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Votes => "",
            Self::Waits(reason) | Self::Refuses(reason) => reason,
        }
    }
}

/// What is to be made durable next; the shell reports back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Note the roster, then call [`Prover::enrolled`].
    Enrol(Roster),
    /// Give the run a number and a name, then call [`Prover::began`].
    Begin,
    /// Note that this storage node holds something of this voter.
    Remember(BTreeSet<u64>),
}

/// The decision; see the head of this module.
#[derive(Debug)]
pub(crate) struct Prover {
    node: NodeId,
    /// All configured voters, this one included.
    members: BTreeSet<u64>,
    found: Found,
    /// Of this run, since it began.
    current: Option<Attestation>,
    /// When the round under way began.
    since: Duration,
    asked: BTreeSet<WitnessId>,
    told: BTreeSet<WitnessId>,
    peers: BTreeMap<u64, VoterSelf>,
    votes: bool,
    refused: Option<String>,
}

impl Prover {
    /// For a node that starts at `now` (on any clock that only goes forward) from what it found. `refused`: why an earlier
    /// start ended.
    pub(crate) fn new(
        node: NodeId,
        members: BTreeSet<u64>,
        found: Found,
        refused: Option<String>,
        now: Duration,
    ) -> Self {
        Self {
            node,
            members,
            found,
            current: None,
            since: now,
            asked: BTreeSet::new(),
            told: BTreeSet::new(),
            peers: BTreeMap::new(),
            votes: false,
            refused,
        }
    }

    /// What this node says of itself.
    pub(crate) fn itself(&self) -> VoterSelf {
        VoterSelf { incarnation: self.found.attestation.incarnation, roster: self.found.roster.clone() }
    }

    /// A witness says what it holds of this node.
    pub(crate) fn hear(&mut self, witness: WitnessId, held: Option<Attestation>) {
        let judged = match (held, &self.current) {
            (None, _) => Ok(()),
            (Some(held), None) => self.found.attestation.judge(&held),
            (Some(held), Some(current)) => self.found.attestation.judge_running(current, &held),
        };
        if let Err(behind) = judged {
            self.refuse(&format!("{witness} remembers better: {behind}"), behind);
            return;
        }
        self.asked.insert(witness);
        let of_this_run = |held: &Attestation, current: &Attestation| {
            held.incarnation == current.incarnation && held.start == current.start && held.run == current.run
        };
        if let (Some(held), Some(current)) = (&held, &self.current)
            && of_this_run(held, current)
        {
            self.told.insert(witness);
        }
    }

    /// Another voter says who it is.
    pub(crate) fn meet(&mut self, voter: u64, itself: VoterSelf) {
        if voter == self.node.0 || !self.members.contains(&voter) {
            return;
        }
        let own = self.found.attestation.incarnation;
        let named = itself.roster.as_ref().map(|roster| roster.get(&self.node.0) == Some(&own));
        if self.found.roster.is_none() && named == Some(false) {
            let what = format!(
                "metadata node {voter} belongs to a cluster in which node {} had another data directory (this one \
                 was wiped, or is another disk)",
                self.node
            );
            self.refuse(&what, Behind::OtherIncarnation);
        }
        self.peers.insert(voter, itself);
    }

    fn refuse(&mut self, what: &str, behind: Behind) {
        if self.refused.is_some() {
            return;
        }
        let advice = match behind {
            Behind::OtherIncarnation => {
                "Put its own directory back if it still exists; else leave it off and replace it by a node with a new id. \
                 (If this cluster was never in use, remove the data directories of all its nodes and begin anew.)"
            }
            Behind::OlderStart { .. } | Behind::OtherRun { .. } | Behind::LostWrites { .. } => {
                "Put the latest directory back if it still exists; else leave it off and replace it by a node with a new id."
            }
        };
        let node = self.node;
        self.refused = Some(format!(
            "metadata node {node} must not vote: {what}. {advice} The others go on without it."
        ));
        self.votes = false;
    }

    /// Storage nodes that have held something of this node.
    pub(crate) fn witnesses(&self) -> &BTreeSet<u64> {
        &self.found.witnesses
    }

    /// The roster is durable.
    pub(crate) fn enrolled(&mut self, roster: Roster) {
        self.found.roster = Some(roster);
    }

    /// The run has begun, durably, as `current` says.
    pub(crate) fn began(&mut self, current: Attestation, now: Duration) {
        self.current = Some(current);
        self.since = now;
    }

    /// What this node has its witnesses hold, once its run has begun, when its log is at `sequence`.
    pub(crate) fn telling(&self, sequence: u64) -> Option<Attestation> {
        if self.refused.is_some() {
            return None;
        }
        self.current.map(|current| Attestation { sequence, ..current })
    }

    /// Whether a voter is the one that the roster names.
    fn agrees(&self, voter: u64) -> bool {
        let (Some(roster), Some(met)) = (&self.found.roster, self.peers.get(&voter)) else { return false };
        roster.get(&voter) == Some(&met.incarnation)
            && met.roster.as_ref().is_none_or(|theirs| theirs == roster)
    }

    fn others(&self) -> impl Iterator<Item = u64> + '_ {
        self.members.iter().copied().filter(|member| *member != self.node.0)
    }

    /// Whether a round is over: all expected witnesses are in `heard`, or the grace has passed and the voters that agree
    /// and are in it make a majority with this one.
    fn complete(&self, heard: &BTreeSet<WitnessId>, now: Duration) -> bool {
        let voters =
            self.others().filter(|voter| self.agrees(*voter) && heard.contains(&WitnessId::Voter(*voter)));
        let agreeing = voters.count() + 1;
        let majority = agreeing > self.members.len() / 2;
        let all_storage = self.found.witnesses.iter().all(|node| heard.contains(&WitnessId::Storage(*node)));
        let all = agreeing == self.members.len() && all_storage;
        all || (majority && now.saturating_sub(self.since) >= WITNESS_GRACE)
    }

    /// The roster that may be noted now.
    fn roster_due(&self) -> Option<Roster> {
        let own = self.found.attestation.incarnation;
        let enrolled = self.others().filter_map(|voter| self.peers.get(&voter)?.roster.as_ref()).next();
        if let Some(roster) = enrolled {
            return Some(roster.clone());
        }
        let met = self.others().map(|voter| Some((voter, self.peers.get(&voter)?.incarnation)));
        met.chain(std::iter::once(Some((self.node.0, own)))).collect()
    }

    /// What is to be done next; nothing while it waits, votes or refuses.
    pub(crate) fn step(&mut self, now: Duration) -> Option<Action> {
        if self.refused.is_some() {
            return None;
        }
        if self.found.roster.is_none() {
            return self.roster_due().map(Action::Enrol);
        }
        if self.current.is_none() {
            return self.complete(&self.asked, now).then_some(Action::Begin);
        }
        if !self.votes && self.complete(&self.told, now) {
            self.votes = true;
        }
        let new = self.told.iter().filter_map(|witness| match witness {
            WitnessId::Storage(node) if !self.found.witnesses.contains(node) => Some(*node),
            _ => None,
        });
        let room = WITNESSES_MAX.saturating_sub(self.found.witnesses.len());
        let new: BTreeSet<u64> = new.take(room).collect();
        if new.is_empty() {
            return None;
        }
        self.found.witnesses.extend(new);
        Some(Action::Remember(self.found.witnesses.clone()))
    }

    /// Whether all voters are there, enrolled alike: a group may be founded.
    pub(crate) fn may_found(&self) -> bool {
        let enrolled = |voter: u64| self.peers.get(&voter).is_some_and(|met| met.roster == self.found.roster);
        self.votes && self.others().all(|voter| self.agrees(voter) && enrolled(voter))
    }

    /// Where the node stands.
    pub(crate) fn standing(&self) -> Standing {
        if let Some(reason) = &self.refused {
            return Standing::Refuses(reason.clone());
        }
        if self.votes {
            return Standing::Votes;
        }
        let heard = if self.current.is_some() { &self.told } else { &self.asked };
        let mut missing: Vec<String> = Vec::new();
        for voter in self.others() {
            if self.found.roster.is_some() && self.peers.contains_key(&voter) && !self.agrees(voter) {
                missing.push(format!("metadata node {voter} (it is not the one that it was)"));
            } else if !heard.contains(&WitnessId::Voter(voter)) {
                missing.push(WitnessId::Voter(voter).to_string());
            }
        }
        let storage = self.found.witnesses.iter().map(|node| WitnessId::Storage(*node));
        missing.extend(storage.filter(|witness| !heard.contains(witness)).map(|witness| witness.to_string()));
        let why = if self.found.roster.is_some() {
            "does not vote before others have confirmed that its log is whole"
        } else {
            "does not found a cluster before all its metadata nodes are there"
        };
        let missing = if missing.is_empty() { "nobody".to_owned() } else { missing.join(", ") };
        Standing::Waits(format!("metadata node {} {why}; not heard of yet: {missing}", self.node))
    }
}

#[cfg(test)]
mod tests;
