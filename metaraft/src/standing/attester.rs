//! Asks and tells the witnesses: the shell around [`super::prover`].
//!
//! Each voter calls each other one; storage nodes call all voters. A call carries what the caller holds of the one that it
//! calls, and, if it is a voter, what it wants held of itself; the answer carries the same the other way. What is to be
//! held is durable before it is said to be held.
//!
//! Invariant: the standing that is published is never ahead of what is durable: the run has begun on disk before anybody
//! is told of it, and a refusal is on disk before it is published.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::attestation::{Attestation, Attestations};
use engine::ids::NodeId;
use proto::internal::{AttestRequest, AttestResponse, RosterEntry, VoterIdentity};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::directory::{OwnFiles, enrol};
use super::prover::{Action, Prover, Roster, Standing, VoterSelf, WITNESS_GRACE, WitnessId};
use crate::log_clock::{Clocks, own_wall_ms};
use crate::raft::log_database::LogDatabase;
use crate::raft::peers::Peers;

/// From one call to the next, of a peer or by a witness: once this node votes; before that; to confirm what was told. A
/// storage node that is not expected at the next start calls seldom.
const INTERVAL: Duration = Duration::from_millis(500);
/// Storage nodes call the more seldom the more there are, so that on average two of them call in [`INTERVAL`]; each calls
/// at least this often, for it must be heard within the grace that a start gives to witnesses ([`WITNESS_GRACE`]).
const INTERVAL_STORAGE_MAX: Duration = Duration::from_millis(1500);
const _: () = assert!(INTERVAL_STORAGE_MAX.as_millis() < WITNESS_GRACE.as_millis());
const INTERVAL_PROVING: Duration = Duration::from_millis(50);
const INTERVAL_TOLD: Duration = Duration::from_millis(10);
const INTERVAL_SPARE: Duration = Duration::from_secs(30);
/// How long what only says how far a peer's log is may wait, to be written with the next.
const GATHER_TIME: Duration = Duration::from_secs(1);
/// A peer that takes longer is called again later.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Voters in a roster that is taken from the wire.
const ROSTER_MAX: usize = 64;

/// What a call brings, by whomever it was made.
pub(crate) struct Word {
    pub(crate) witness: WitnessId,
    /// Whether the witness knows whom it speaks of, so that `held` means something.
    pub(crate) knows_me: bool,
    pub(crate) held: Option<Attestation>,
    /// What the witness, a voter, wants held of itself.
    pub(crate) own: Option<Attestation>,
    pub(crate) itself: Option<VoterSelf>,
}

/// What it is answered with.
pub(crate) struct Answer {
    pub(crate) own: Option<Attestation>,
    pub(crate) held: Option<Attestation>,
    pub(crate) itself: VoterSelf,
    /// When the witness is to be heard again.
    pub(crate) pause: Duration,
}

struct Inner {
    prover: Prover,
    /// What is held of other voters, on disk.
    attested: Attestations,
    /// The same, and what is to be on disk soon.
    waiting: Attestations,
    written: Option<Instant>,
}

/// See the head of this module. Shared by the server and the tasks that call peers.
pub(crate) struct Attester {
    node: NodeId,
    inner: Mutex<Inner>,
    log: Arc<LogDatabase>,
    files: OwnFiles,
    started: Instant,
    standing: watch::Sender<Standing>,
    may_found: watch::Sender<bool>,
    clocks: Arc<Clocks>,
}

impl Attester {
    /// For a node with these voters, from what is in its directory. Blocks.
    pub(crate) fn open(
        directory: &Path,
        node: NodeId,
        members: &BTreeMap<u64, String>,
        log: Arc<LogDatabase>,
    ) -> io::Result<Self> {
        let files = OwnFiles::new(directory);
        let opened = files.open(node, &log)?;
        if let Some(reason) = &opened.refused {
            tracing::error!(%node, "{reason}");
        }
        let clocks = Arc::new(Clocks::new(members.len()));
        let members = members.keys().copied().collect();
        let prover = Prover::new(node, members, opened.found, opened.refused, Duration::ZERO);
        let standing = watch::Sender::new(prover.standing());
        let attester = Self {
            node,
            inner: Mutex::new(Inner {
                prover,
                waiting: opened.attested.clone(),
                attested: opened.attested,
                written: None,
            }),
            log,
            files,
            started: Instant::now(),
            standing,
            may_found: watch::Sender::new(false),
            clocks,
        };
        // A voter that is alone, and that no storage node remembers, has nobody to ask.
        attester.proceed(&mut attester.lock());
        Ok(attester)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is whole before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the node stands, and every change of it.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Whether a group may be founded, and every change of that.
    pub(crate) fn may_found(&self) -> watch::Receiver<bool> {
        self.may_found.subscribe()
    }

    /// What the voters' clocks show: they are told along with the rest.
    pub(crate) fn clocks(&self) -> Arc<Clocks> {
        Arc::clone(&self.clocks)
    }

    /// Takes a witness's word in, and answers it. Blocks: what it makes this node hold is durable when it returns.
    pub(crate) fn take(&self, word: Word) -> io::Result<Answer> {
        let mut inner = self.lock();
        let mut held = None;
        if let WitnessId::Voter(voter) = word.witness {
            let voter = NodeId(voter);
            if let Some(own) = word.own {
                self.hold(&mut inner, voter, own)?;
            }
            held = inner.attested.of(voter);
            if let Some(itself) = word.itself {
                inner.prover.meet(voter.0, itself);
            }
        }
        if word.knows_me {
            inner.prover.hear(word.witness, word.held);
        }
        self.proceed(&mut inner);
        let own = inner.prover.telling(self.log.attestation().sequence);
        let run = |attestation: Option<Attestation>| attestation.map(|attestation| attestation.run);
        let usual = match word.witness {
            WitnessId::Voter(_) => INTERVAL,
            WitnessId::Storage(node) => storage_interval(inner.prover.witnesses(), node),
        };
        let pause = match &*self.standing.borrow() {
            _ if run(own) != run(word.held) && own.is_some() => INTERVAL_TOLD,
            Standing::Waits(_) => INTERVAL_PROVING,
            Standing::Votes | Standing::Refuses(_) => usual,
        };
        Ok(Answer { own, held, itself: inner.prover.itself(), pause })
    }

    /// Holds what a peer says of itself: durably, unless it can wait.
    fn hold(&self, inner: &mut Inner, voter: NodeId, own: Attestation) -> io::Result<()> {
        let can_wait = Attestation::only_goes_on(inner.attested.of(voter), own)
            && inner.written.is_some_and(|written| written.elapsed() < GATHER_TIME);
        inner.waiting.tell(voter, own);
        if can_wait || inner.waiting == inner.attested {
            return Ok(());
        }
        self.files.keep(&inner.waiting)?;
        inner.written = Some(Instant::now());
        inner.attested = inner.waiting.clone();
        Ok(())
    }

    /// Does what is due, and publishes the standing.
    fn proceed(&self, inner: &mut Inner) {
        if let Err(error) = self.act(inner) {
            tracing::error!(node = %self.node, %error, "this node cannot note whether it may vote; it is tried again");
        }
        let standing = inner.prover.standing();
        if let Standing::Refuses(reason) = &standing
            && !matches!(&*self.standing.borrow(), Standing::Refuses(_))
        {
            tracing::error!(node = %self.node, "{reason}");
            if let Err(error) = self.files.refuse(reason) {
                tracing::error!(node = %self.node, %error, "the refusal is not on disk: never start this directory again");
            }
        }
        let founding = inner.prover.may_found();
        self.may_found.send_if_modified(|may| std::mem::replace(may, founding) != founding);
        self.standing.send_if_modified(|now| {
            let changed = *now != standing;
            if changed && standing.votes() {
                tracing::info!(node = %self.node, "others confirm this node's log: it votes");
            }
            *now = standing;
            changed
        });
    }

    fn act(&self, inner: &mut Inner) -> io::Result<()> {
        let mut enrolled = inner.prover.itself().roster;
        while let Some(action) = inner.prover.step(self.started.elapsed()) {
            match action {
                Action::Enrol(roster) => {
                    enrol(&self.log, Some(roster.clone()), inner.prover.witnesses().clone())?;
                    enrolled = Some(roster.clone());
                    inner.prover.enrolled(roster);
                }
                Action::Begin => {
                    let begun = self.log.begin()?;
                    self.files.identify(&begun)?;
                    inner.prover.began(begun, self.started.elapsed());
                }
                Action::Remember(witnesses) => enrol(&self.log, enrolled.clone(), witnesses)?,
            }
        }
        Ok(())
    }

    /// What a peer is called with. Blocks while something is made durable.
    fn request(&self, peer: u64) -> AttestRequest {
        let inner = self.lock();
        let own = inner.prover.telling(self.log.attestation().sequence);
        AttestRequest {
            voter: peer,
            held: to_wire(inner.attested.of(NodeId(peer))),
            own: to_wire(own),
            identity: Some(identity_to_wire(&inner.prover.itself())),
            time_ms: own_wall_ms(),
        }
    }
}

/// From one call of a storage node to its next, while nothing presses.
fn storage_interval(witnesses: &BTreeSet<u64>, node: u64) -> Duration {
    if !witnesses.contains(&node) {
        return INTERVAL_SPARE;
    }
    let turns = u32::try_from(witnesses.len().div_ceil(2)).unwrap_or(u32::MAX);
    INTERVAL.saturating_mul(turns).min(INTERVAL_STORAGE_MAX)
}

/// Calls `peer` again and again until `stop`.
pub(crate) async fn call(attester: Arc<Attester>, peers: Arc<Peers>, peer: u64, stop: CancellationToken) {
    loop {
        let pause = match stop.run_until_cancelled(call_once(&attester, &peers, peer)).await {
            None => return,
            Some(Ok(pause)) => pause,
            Some(Err(reason)) => {
                tracing::debug!(node = %attester.node, peer, reason, "a voter cannot be asked");
                let attester = Arc::clone(&attester);
                // Time has passed: a grace may be over.
                let waits = move || {
                    attester.proceed(&mut attester.lock());
                    !attester.standing.borrow().votes()
                };
                let waits = tokio::task::spawn_blocking(waits).await.unwrap_or(false);
                if waits { INTERVAL_PROVING } else { INTERVAL }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One call. Says when the next one is due.
async fn call_once(attester: &Arc<Attester>, peers: &Peers, peer: u64) -> Result<Duration, String> {
    let mut client = peers.metadata(peer).ok_or("not in the configuration")?;
    let asking = Arc::clone(attester);
    let request = tokio::task::spawn_blocking(move || asking.request(peer));
    let mut request = tonic::Request::new(request.await.map_err(|error| error.to_string())?);
    request.set_timeout(CALL_TIMEOUT);
    let response = tokio::time::timeout(CALL_TIMEOUT, client.attest(request))
        .await
        .map_err(|_elapsed| "no answer in time".to_owned())?
        .map_err(|status| status.to_string())?
        .into_inner();
    if response.voter != peer {
        return Err(format!("it is node {}", response.voter));
    }
    attester.clocks.hear(peer, response.time_ms, Instant::now());
    let word = Word {
        witness: WitnessId::Voter(peer),
        knows_me: true,
        held: from_wire(&response.held)?,
        own: from_wire(&response.own)?,
        itself: response.identity.map(|identity| identity_from_wire(&identity)).transpose()?,
    };
    let taking = Arc::clone(attester);
    let answer = tokio::task::spawn_blocking(move || taking.take(word))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    Ok(answer.pause)
}

/// Serves a call of a witness.
pub(crate) async fn answer(
    attester: &Arc<Attester>,
    witness: WitnessId,
    request: AttestRequest,
) -> Result<AttestResponse, tonic::Status> {
    let malformed = |why: String| tonic::Status::invalid_argument(why);
    if let WitnessId::Voter(voter) = witness {
        attester.clocks.hear(voter, request.time_ms, Instant::now());
    }
    let word = Word {
        witness,
        knows_me: request.voter == attester.node.0,
        held: from_wire(&request.held).map_err(malformed)?,
        own: from_wire(&request.own).map_err(malformed)?,
        itself: request
            .identity
            .map(|identity| identity_from_wire(&identity))
            .transpose()
            .map_err(malformed)?,
    };
    let taking = Arc::clone(attester);
    let answer = tokio::task::spawn_blocking(move || taking.take(word))
        .await
        .map_err(|error| tonic::Status::internal(error.to_string()))?
        .map_err(|error| tonic::Status::unavailable(format!("the disk of this node failed: {error}")))?;
    Ok(AttestResponse {
        voter: attester.node.0,
        own: to_wire(answer.own),
        held: to_wire(answer.held),
        identity: Some(identity_to_wire(&answer.itself)),
        pause_ms: u32::try_from(answer.pause.as_millis()).unwrap_or(u32::MAX),
        time_ms: own_wall_ms(),
    })
}

fn to_wire(attestation: Option<Attestation>) -> Bytes {
    attestation.map_or_else(Bytes::new, |attestation| Bytes::copy_from_slice(&attestation.to_bytes()))
}

fn from_wire(bytes: &[u8]) -> Result<Option<Attestation>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    Attestation::from_bytes(bytes)
        .map(Some)
        .ok_or_else(|| format!("not an attestation: {} bytes", bytes.len()))
}

fn identity_to_wire(itself: &VoterSelf) -> VoterIdentity {
    let entry = |(node, incarnation): (&u64, &[u8; 16])| RosterEntry {
        node: *node,
        incarnation: Bytes::copy_from_slice(incarnation),
    };
    VoterIdentity {
        incarnation: Bytes::copy_from_slice(&itself.incarnation),
        roster: itself.roster.iter().flatten().map(entry).collect(),
    }
}

fn identity_from_wire(identity: &VoterIdentity) -> Result<VoterSelf, String> {
    let incarnation = |bytes: &[u8]| {
        <[u8; 16]>::try_from(bytes).map_err(|_length| format!("not an incarnation: {} bytes", bytes.len()))
    };
    if identity.roster.len() > ROSTER_MAX {
        return Err(format!("a roster of {} voters; at most {ROSTER_MAX}", identity.roster.len()));
    }
    let roster: Roster = identity
        .roster
        .iter()
        .map(|entry| Ok((entry.node, incarnation(&entry.incarnation)?)))
        .collect::<Result<_, String>>()?;
    Ok(VoterSelf {
        incarnation: incarnation(&identity.incarnation)?,
        roster: (!roster.is_empty()).then_some(roster),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_nodes_call_the_more_seldom_the_more_there_are() {
        let interval = |count: u64| storage_interval(&(1..=count).collect(), 1);
        assert_eq!([1, 2, 3].map(interval), [500, 500, 1000].map(Duration::from_millis));
        assert_eq!([6, 64].map(interval), [INTERVAL_STORAGE_MAX; 2]);
        assert_eq!(
            storage_interval(&BTreeSet::from([1]), 2),
            INTERVAL_SPARE,
            "one that nobody asks at a start"
        );
    }
}
