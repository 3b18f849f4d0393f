//! Asks and tells the witnesses: the shell around [`super::prover`].
//!
//! Of two voters one calls the other, whichever came first, and both do as long as anything presses; storage nodes call all
//! voters. A call carries what the caller holds of the one that it
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
const INTERVAL: Duration = Duration::from_secs(1);
/// A peer that has called need not be called for so long: longer than [`INTERVAL`], so that who called first goes on.
const CALLED_TIME: Duration = Duration::from_millis(1500);
/// Storage nodes are told the more seldom the more there are, so that on average one of them is in [`INTERVAL`]; each is at
/// least this often, if there is anything to tell.
const INTERVAL_TURN_MAX: Duration = Duration::from_secs(10);
/// One that does not let its call be kept back does not see a restart by that. It calls more often, for it must be heard
/// within the grace that a start gives to witnesses ([`WITNESS_GRACE`]).
const INTERVAL_STORAGE_MAX: Duration = Duration::from_millis(1500);
const _: () = assert!(INTERVAL_STORAGE_MAX.as_millis() < WITNESS_GRACE.as_millis());
const INTERVAL_PROVING: Duration = Duration::from_millis(50);
const INTERVAL_TOLD: Duration = Duration::from_millis(10);
const INTERVAL_SPARE: Duration = Duration::from_secs(30);
/// How long what only says how far a peer's log is may wait, to be written with the next.
const GATHER_TIME: Duration = Duration::from_secs(1);
/// A peer that takes longer is called again later.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// A call of a storage node is kept back for so long at most while there is nothing to tell it.
const HOLD_TIME_MAX: Duration = Duration::from_secs(30);
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
    /// At which pace a witness is told whose call is kept back.
    pub(crate) pace: Duration,
}

struct Inner {
    prover: Prover,
    /// What is held of other voters, on disk.
    attested: Attestations,
    /// The same, and what is to be on disk soon.
    waiting: Attestations,
    written: Option<Instant>,
    /// When each voter last called, while nothing pressed.
    called: BTreeMap<u64, Instant>,
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
                called: BTreeMap::new(),
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
        let pace = telling_interval(inner.prover.witnesses().len());
        Ok(Answer { own, held, itself: inner.prover.itself(), pause, pace })
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

    /// Notes a call of a voter that was answered with this pause.
    fn was_called(&self, voter: u64, pause: Duration, now: Instant) {
        let mut inner = self.lock();
        if pause == INTERVAL {
            inner.called.insert(voter, now)
        } else {
            inner.called.remove(&voter)
        };
    }

    /// How long a peer need not be called, because it calls itself.
    fn called_for(&self, peer: u64, now: Instant) -> Duration {
        let called = self.lock().called.get(&peer).copied();
        called.map_or(Duration::ZERO, |at| CALLED_TIME.saturating_sub(now.saturating_duration_since(at)))
    }

    /// What its witnesses are to hold of this node by now. Blocks while something is made durable.
    fn telling(&self) -> Option<Attestation> {
        self.lock().prover.telling(self.log.attestation().sequence)
    }

    /// Whether there is something to tell to a witness that holds `held`, as far as can be seen without waiting for a
    /// write: the log grows by that one.
    fn has_news(&self, held: Option<Attestation>) -> bool {
        let (Ok(inner), Some(log)) = (self.inner.try_lock(), self.log.attestation_at_hand()) else {
            return true;
        };
        inner.prover.telling(log.sequence) != held
    }

    /// Keeps the call of a witness that holds `held` back until there is something to tell it, which is looked for at
    /// `pace`, or the node no longer votes. For `time_max` at most; not beyond `stop`.
    async fn keep_back(
        &self,
        held: Option<Attestation>,
        pace: Duration,
        time_max: Duration,
        stop: &CancellationToken,
    ) {
        let until = Instant::now() + time_max;
        loop {
            let pause = pace.min(until.saturating_duration_since(Instant::now()));
            let stopped = stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none();
            let over = stopped || Instant::now() >= until;
            if over || self.has_news(held) || !self.standing.borrow().votes() {
                return;
            }
        }
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
            hold_ms: 0,
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

/// From one time that a storage node is told to the next, where so many are witnesses.
fn telling_interval(witnesses: usize) -> Duration {
    let turns = u32::try_from(witnesses.max(1)).unwrap_or(u32::MAX);
    INTERVAL.saturating_mul(turns).min(INTERVAL_TURN_MAX)
}

/// Whether nothing presses, and the storage node is one that a start waits for.
fn is_told_in_turn(pause: Duration) -> bool {
    (INTERVAL..=INTERVAL_STORAGE_MAX).contains(&pause)
}

/// Calls `peer` again and again until `stop`.
pub(crate) async fn call(attester: Arc<Attester>, peers: Arc<Peers>, peer: u64, stop: CancellationToken) {
    loop {
        let called_for = attester.called_for(peer, Instant::now());
        if !called_for.is_zero() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(called_for) => continue,
            }
        }
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

/// Serves a call of a witness, until `stop`.
pub(crate) async fn answer(
    attester: &Arc<Attester>,
    witness: WitnessId,
    request: AttestRequest,
    stop: &CancellationToken,
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
    let (held, taking) = (word.held, Arc::clone(attester));
    let mut answer = tokio::task::spawn_blocking(move || taking.take(word))
        .await
        .map_err(|error| tonic::Status::internal(error.to_string()))?
        .map_err(|error| tonic::Status::unavailable(format!("the disk of this node failed: {error}")))?;
    match witness {
        WitnessId::Voter(voter) => attester.was_called(voter, answer.pause, Instant::now()),
        WitnessId::Storage(_) if request.hold_ms > 0 && is_told_in_turn(answer.pause) => {
            let hold = Duration::from_millis(request.hold_ms.into()).min(HOLD_TIME_MAX);
            attester.keep_back(held, answer.pace, hold, stop).await;
            let telling = Arc::clone(attester);
            let own = tokio::task::spawn_blocking(move || telling.telling()).await;
            answer.own = own.map_err(|error| tonic::Status::internal(error.to_string()))?;
            answer.pause = Duration::ZERO;
        }
        WitnessId::Storage(_) => {}
    }
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
    use crate::raft::log_database::LogDatabase;

    /// A storage node's call, that may be kept back for `hold_ms`.
    async fn call_of_storage(
        attester: &Arc<Attester>,
        held: &Bytes,
        hold_ms: u32,
        stop: &CancellationToken,
    ) -> (AttestResponse, Duration) {
        let request = AttestRequest { voter: 1, held: held.clone(), hold_ms, ..AttestRequest::default() };
        let begun = Instant::now();
        let answer = answer(attester, WitnessId::Storage(7), request, stop).await.unwrap();
        (answer, begun.elapsed())
    }

    #[tokio::test]
    async fn a_witness_that_knows_all_is_answered_when_the_log_grows_or_the_node_stops() {
        let scratch = tempfile::tempdir().unwrap();
        let log = Arc::new(LogDatabase::open(&scratch.path().join("log")).unwrap());
        let members = BTreeMap::from([(1, String::new())]);
        let attester = Attester::open(scratch.path(), NodeId(1), &members, Arc::clone(&log)).unwrap();
        let attester = Arc::new(attester);
        assert!(attester.standing().borrow().votes(), "a voter that is alone");
        let stop = CancellationToken::new();
        let mut held = Bytes::new();
        // It learns of the run, and is a witness from then on.
        for _call in 0..3 {
            held = call_of_storage(&attester, &held, 0, &stop).await.0.own;
        }
        let (answer, took) = call_of_storage(&attester, &held, 0, &stop).await;
        assert_eq!(answer.own, held);
        assert!(took < INTERVAL && answer.pause_ms > 0, "{took:?}: one that does not let it be kept back");
        let (answer, took) = call_of_storage(&attester, &held, 1200, &stop).await;
        assert_eq!(answer.own, held);
        assert!(took >= Duration::from_millis(1200) && answer.pause_ms == 0, "{took:?}");

        // What it does not hold yet it is told after the usual pause.
        log.write_synced(rocksdb::WriteBatch::default()).unwrap();
        let (answer, took) = call_of_storage(&attester, &held, 60_000, &stop).await;
        assert_ne!(answer.own, held);
        assert!(took < Duration::from_secs(30), "{took:?}");
        held = answer.own;

        let stopping = tokio::spawn({
            let stop = stop.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(1200)).await;
                stop.cancel();
            }
        });
        let (answer, took) = call_of_storage(&attester, &held, 60_000, &stop).await;
        stopping.await.unwrap();
        assert!(answer.own == held && took < Duration::from_secs(30), "{took:?}");
    }

    #[test]
    fn a_peer_that_calls_is_not_called_as_long_as_nothing_presses() {
        let scratch = tempfile::tempdir().unwrap();
        let log = Arc::new(LogDatabase::open(&scratch.path().join("log")).unwrap());
        let members = BTreeMap::from([(1, String::new()), (2, String::new())]);
        let attester = Attester::open(scratch.path(), NodeId(1), &members, log).unwrap();
        let now = Instant::now();
        assert_eq!(attester.called_for(2, now), Duration::ZERO);
        attester.was_called(2, INTERVAL, now);
        assert_eq!(attester.called_for(2, now + INTERVAL), CALLED_TIME - INTERVAL);
        assert_eq!(attester.called_for(2, now + CALLED_TIME), Duration::ZERO, "it has gone silent");
        attester.was_called(2, INTERVAL, now + CALLED_TIME);
        attester.was_called(2, INTERVAL_TOLD, now + CALLED_TIME);
        assert_eq!(attester.called_for(2, now + CALLED_TIME), Duration::ZERO, "it is to be told something");
    }

    #[test]
    fn storage_nodes_call_the_more_seldom_the_more_there_are() {
        let interval = |count: u64| storage_interval(&(1..=count).collect(), 1);
        assert_eq!([1, 2, 3].map(interval), [1000, 1000, 1500].map(Duration::from_millis));
        assert_eq!([6, 64].map(interval), [INTERVAL_STORAGE_MAX; 2]);
        assert_eq!([0, 1, 6].map(telling_interval), [1000, 1000, 6000].map(Duration::from_millis));
        assert_eq!(telling_interval(64), INTERVAL_TURN_MAX);
        assert_eq!(
            storage_interval(&BTreeSet::from([1]), 2),
            INTERVAL_SPARE,
            "one that nobody asks at a start"
        );
    }
}
