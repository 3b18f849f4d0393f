//! Follows the server: takes in its journal, batch by batch, and learns of new changes as they happen.
//!
//! Changes are told by a stream; where that cannot be held, by long polls; where those fail too, by asking at
//! intervals. Whatever breaks is tried again, ever slower, for as long as the session lives.

use std::time::Duration;

use bytes::Bytes;
use proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming};

use super::state_thread::{AskError, StateThread};
use crate::call_error::CallError;
use crate::connection::{ApiClient, random_16};
use crate::path::RemotePath;
use crate::state::database::State;
use crate::state::reached::Reached;
use crate::state::remote::{Finished, RemotePage};
use crate::state::went_back::FormerPlace;

/// Waits between tries of a gateway that does not answer.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Long polls, where the stream cannot be held.
const POLL_TIME: Duration = Duration::from_secs(55);
/// Asking at intervals, where those cannot be had either.
const ASK_INTERVAL: Duration = Duration::from_secs(5);
/// Streams that end sooner than this, so many in a row, are given up for long polls, for a time.
const STREAM_TIME_MIN: Duration = Duration::from_secs(2);
const STREAM_FAILURES_MAX: u32 = 3;
const POLL_INSTEAD_TIME: Duration = Duration::from_secs(10 * 60);
/// Even a stream that tells nothing is checked upon.
const CHECK_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Pages of one listing, whatever the server says.
const LISTING_PAGES_MAX: usize = 100_000;
/// How often the journal is asked again for one batch: after folders were listed, or for a page that was not taken in.
const ASKED_AGAIN_MAX: usize = 1_000;

/// What the follower tells the session.
#[derive(Debug)]
pub(crate) enum FollowerEvent {
    /// The gateway answers.
    Online,
    /// All of its changes up to now are taken in.
    CaughtUp,
    /// It does not; it is tried again.
    Offline(String),
    /// A batch came in whole, with so many changes.
    Whole(usize),
    /// It went back to an older state: its history and the one that is known here are the same up to this number (0: that
    /// is not known). Nothing is followed any more, until what was known of it is forgotten.
    WentBack(u64),
    /// It cannot go on.
    Ended(String),
}

/// A request to ask the server now; answered once all of its changes are taken in.
pub(crate) type CheckNow = oneshot::Sender<()>;

/// Why a round ended.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the server went back to an older state")]
    WentBack(u64),
    #[error("{0}")]
    Never(String),
}

pub(crate) struct Follower {
    pub(crate) api: ApiClient,
    pub(crate) state: StateThread,
    pub(crate) remote_path: RemotePath,
    pub(crate) events: mpsc::Sender<FollowerEvent>,
    pub(crate) checks: mpsc::Receiver<CheckNow>,
    pub(crate) stop: CancellationToken,
}

/// How the server is listened to.
struct Listening {
    stream: Option<Streaming<v1::WatchResponse>>,
    opened: Instant,
    failures: u32,
    poll_until: Option<Instant>,
}

impl Follower {
    /// Follows until it is stopped, or cannot go on.
    pub(crate) async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&mut self) {
        let mut wait = RETRY_FIRST;
        loop {
            let begun = Instant::now();
            let Err(error) = self.round().await;
            if begun.elapsed() > RETRY_MAX {
                wait = RETRY_FIRST;
            }
            match &error {
                FollowError::Ask(AskError::Closed) => return,
                FollowError::WentBack(common) => {
                    drop(self.events.send(FollowerEvent::WentBack(*common)).await);
                    return;
                }
                FollowError::Call(CallError::Token { .. } | CallError::Setup { .. })
                | FollowError::Ask(_)
                | FollowError::Never(_) => {
                    drop(self.events.send(FollowerEvent::Ended(error.to_string())).await);
                    return;
                }
                FollowError::Call(call) => {
                    drop(self.events.send(FollowerEvent::Offline(call.to_string())).await);
                }
            }
            self.pause(jittered(wait)).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Waits before the next try; a check is answered by that one.
    async fn pause(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Takes in what there is, then listens, until something fails.
    async fn round(&mut self) -> Result<std::convert::Infallible, FollowError> {
        self.find_root().await?;
        self.check_root().await?;
        self.catch_up(true).await?;
        drop(self.events.send(FollowerEvent::CaughtUp).await);
        let mut listening = Listening { stream: None, opened: Instant::now(), failures: 0, poll_until: None };
        loop {
            let check = self.wait_for_news(&mut listening).await?;
            self.catch_up(false).await?;
            if let Some(check) = check {
                // Something on the server was found not to be as it is known here. That may be the root's own end: if
                // a folder above it goes, the journal tells of that folder alone.
                self.check_root().await?;
                let _nobody = check.send(());
            }
        }
    }

    /// Sees to it that the remote folder is in the server's tree.
    async fn check_root(&self) -> Result<(), FollowError> {
        if self.remote_path.is_root() {
            return Ok(());
        }
        let root = self.state.ask(|state| state.root_entry()).await?;
        match root {
            Some(root) if !self.api.is_in_tree(root, Bytes::new()).await? => Err(self.root_gone()),
            _ => Ok(()),
        }
    }

    fn root_gone(&self) -> FollowError {
        FollowError::Never(format!(
            "the remote folder {} was deleted on the server, or a folder that it is in; nothing is deleted here. \
             Restore it from the trash, or remove this folder from synchronisation",
            self.remote_path
        ))
    }

    /// Finds, or makes, the remote folder, once; afterwards it is followed by its id.
    async fn find_root(&self) -> Result<(), FollowError> {
        if self.state.ask(|state| state.root_entry()).await?.is_some() {
            return Ok(());
        }
        let entry = match self.api.find_entry(&self.remote_path).await? {
            Some(entry) => entry,
            None => self.make_root().await?,
        };
        if entry.kind() != v1::EntryKind::Folder {
            return Err(FollowError::Never(format!("{} on the server is no folder", self.remote_path)));
        }
        let (id, sequence) = (entry.id, entry.sequence);
        self.state.ask(move |state| state.set_root_entry(id, sequence)).await?;
        Ok(())
    }

    async fn make_root(&self) -> Result<v1::Entry, FollowError> {
        let wanted = v1::CreateEntry {
            path: self.remote_path.to_string(),
            kind: v1::EntryKind::Folder.into(),
            mode: 0o755,
            parents: true,
            ..v1::CreateEntry::default()
        };
        let made = self.api.create_entries(vec![wanted]).await?.pop();
        Ok(made.ok_or_else(|| CallError::protocol("no answer"))??)
    }

    /// Takes in all changes up to now. Nothing of a batch counts before all of it is in.
    async fn catch_up(&mut self, mut greet: bool) -> Result<(), FollowError> {
        let position = self.state.ask(|state| state.remote_position()).await?;
        if position.cursor.is_empty() {
            // A listing that broke off is begun again: what it was to find would be swept away.
            self.relist().await?;
        }
        let mut former = self.state.ask(|state| state.former_place()).await?;
        let mut cursor = Bytes::from(position.cursor);
        let (mut count, mut asked_again) = (0, 0);
        let mut open = position.batch_open || cursor.is_empty();
        loop {
            if asked_again > ASKED_AGAIN_MAX {
                return Err(CallError::protocol("a journal that has to be asked again and again").into());
            }
            let (asked, answered) =
                self.state.ask(|state| Ok((state.known()?, state.answered()?.unwrap_or_default()))).await?;
            let has_answers = !answered.proof.is_empty();
            let answer = self.changes(cursor.clone(), answered.proof.into()).await?;
            if std::mem::take(&mut greet) {
                drop(self.events.send(FollowerEvent::Online).await);
            }
            if answer.cursor_reset {
                if answer.reset_reason() == v1::ResetReason::WentBack && (!cursor.is_empty() || has_answers) {
                    return Err(FollowError::WentBack(answer.common_sequence));
                }
                if cursor.is_empty() {
                    return Err(CallError::protocol("a reset of no cursor").into());
                }
                self.relist().await?;
                cursor = Bytes::new();
                open = true;
                continue;
            }
            let more = answer.more;
            if more && answer.changes.is_empty() && answer.cursor == cursor {
                return Err(CallError::protocol("an empty page with more to come").into());
            }
            let tells = open || more || !answer.changes.is_empty();
            let (behind, changed) = (answer.cursor.clone(), answer.changes.len());
            if !self.take_page(asked, answer, tells).await? {
                // A call was answered meanwhile, perhaps in another history: the next question is about both.
                asked_again += 1;
                continue;
            }
            cursor = behind;
            open |= tells;
            count += changed;
            if more {
                continue;
            }
            // What was listed is of one history: the server's next answer proves that it still is.
            if let Some(former) = former.take() {
                self.compare(former).await?;
            } else if !open || !self.list_wanted().await? {
                break;
            }
            asked_again += 1;
        }
        if open {
            self.finish(count).await?;
        }
        Ok(())
    }

    /// Takes in a page that was asked for when `asked` was known; `tells`: it is of a batch. False: it may be of another
    /// history than what is known by now.
    async fn take_page(
        &self,
        asked: Reached,
        answer: v1::ChangesResponse,
        tells: bool,
    ) -> Result<bool, AskError> {
        let reached = Reached::told(&answer.cursor, answer.sequence, &answer.reign);
        let page = RemotePage { changes: answer.changes, reached, more: answer.more };
        let taken = self.state.ask(move |state| {
            if !state.takes(&asked, &page.reached)? {
                return Ok(false);
            }
            if tells {
                state.apply_changes(&page)?;
            } else if page.reached.sequence > state.remote_position()?.sequence {
                // Nothing for this device, but deletes are judged by how far it has seen.
                state.set_remote_position(&page.reached)?;
            }
            Ok(true)
        });
        taken.await
    }

    /// Lists what the batch asks for. Says whether that was anything: then the journal is asked once more, for it may have
    /// gone on meanwhile.
    async fn list_wanted(&self) -> Result<bool, FollowError> {
        let wanted = self.state.ask(|state| state.listings_wanted()).await?;
        for folder in &wanted {
            self.list_below(*folder).await?;
        }
        Ok(!wanted.is_empty())
    }

    /// Whether the server still has as much in common with the history before as when it was found to have gone back:
    /// since then it may have gone back again, and further.
    async fn compare(&self, former: FormerPlace) -> Result<(), FollowError> {
        let answer = self.changes(former.cursor.into(), former.seen.into()).await?;
        let common = match answer.reset_reason() {
            _ if !answer.cursor_reset => return Ok(()),
            v1::ResetReason::WentBack => answer.common_sequence,
            _ => 0,
        };
        if common < former.common { Err(FollowError::WentBack(common)) } else { Ok(()) }
    }

    async fn changes(&self, cursor: Bytes, seen: Bytes) -> Result<v1::ChangesResponse, FollowError> {
        match self.api.changes(cursor, seen).await {
            // No reset: ids are small numbers, and another tree's would be taken for this one's.
            Err(error) if error.reason() == "bad-cursor" => Err(FollowError::Never(format!(
                "the server at {} says that this folder was synchronised with another account or cluster ({error}); \
                 nothing is changed. Sign in to that one with `keepstone login`, or remove this folder from \
                 synchronisation and add it anew",
                self.api.endpoint()
            ))),
            answer => Ok(answer?),
        }
    }

    /// Begins to list the remote folder anew. What is below it comes first: of the journal, which is of the whole
    /// tree, only what is near needs to be looked at then.
    async fn relist(&self) -> Result<(), FollowError> {
        self.check_root().await?;
        let whole = self.remote_path.is_root();
        let root = self.state.ask(move |state| {
            state.begin_relist(whole)?;
            state.root_entry()
        });
        match root.await? {
            Some(root) if !whole => self.list_below(root).await,
            _ => Ok(()),
        }
    }

    async fn finish(&mut self, count: usize) -> Result<(), FollowError> {
        if self.state.ask(|state| state.is_root_doubted()).await? {
            self.check_root().await?;
        }
        match self.state.ask(State::finish_batch).await? {
            Finished::Whole => {
                drop(self.events.send(FollowerEvent::Whole(count)).await);
                Ok(())
            }
            Finished::RootGone => Err(self.root_gone()),
        }
    }

    async fn list_below(&self, folder: u64) -> Result<(), FollowError> {
        let root = self.state.ask(|state| state.root_entry()).await?;
        let mut page = Bytes::new();
        for _ in 0..LISTING_PAGES_MAX {
            let asked = self.state.ask(|state| state.known()).await?;
            let answer = match self.api.list_below(folder, page.clone(), asked.proof.clone().into()).await {
                Ok(answer) => answer,
                Err(error) if error.is_not_found() && root == Some(folder) => return Err(self.root_gone()),
                // It has gone again: later changes say so.
                Err(error) if error.is_not_found() => v1::ListBelowResponse::default(),
                // The journal says why.
                Err(error) if error.reason() == "conflict" => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let last = answer.next_page.is_empty();
            let entries = answer.entries;
            let told = Reached::told(&answer.seen, answer.sequence, &answer.reign);
            let taken = self.state.ask(move |state| {
                let taken = state.note_answered(&asked, &told)?;
                if taken {
                    state.apply_listing(folder, &entries, last)?;
                }
                Ok(taken)
            });
            if !taken.await? {
                continue;
            }
            if last {
                return Ok(());
            }
            page = answer.next_page;
        }
        Err(CallError::protocol("a listing without end").into())
    }

    /// Waits until there may be changes, or somebody asks for a check.
    async fn wait_for_news(&mut self, listening: &mut Listening) -> Result<Option<CheckNow>, FollowError> {
        if listening.poll_until.is_some_and(|until| Instant::now() > until) {
            *listening = Listening { stream: None, opened: Instant::now(), failures: 0, poll_until: None };
        }
        if listening.poll_until.is_some() {
            return self.poll().await;
        }
        if listening.stream.is_none() {
            listening.opened = Instant::now();
            match self.api.watch().await {
                Ok(stream) => listening.stream = Some(stream),
                Err(error) => return self.stream_failed(listening, error).await,
            }
        }
        let Some(stream) = &mut listening.stream else { return Ok(None) };
        let known = self.state.ask(|state| state.remote_position()).await?.sequence;
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                Some(check) = self.checks.recv() => return Ok(Some(check)),
                () = tokio::time::sleep(CHECK_INTERVAL) => return Ok(None),
            };
            match message {
                // Less: it may have gone back to an older state.
                Ok(Some(news)) if news.sequence != known => return Ok(None),
                Ok(Some(_old)) => {}
                Ok(None) => {
                    let ended = CallError::Unreachable {
                        endpoint: self.api.endpoint().to_owned(),
                        reason: "it ended the stream of changes".to_owned(),
                    };
                    return self.stream_failed(listening, ended).await;
                }
                Err(status) => {
                    let error = self.api.status(&status);
                    return self.stream_failed(listening, error).await;
                }
            }
        }
    }

    /// A stream that broke is opened again at once; one that never holds is given up for long polls.
    async fn stream_failed(
        &self,
        listening: &mut Listening,
        error: CallError,
    ) -> Result<Option<CheckNow>, FollowError> {
        tracing::debug!(%error, "the stream of changes broke");
        listening.stream = None;
        if matches!(error, CallError::Token { .. } | CallError::Setup { .. } | CallError::Certificate { .. })
        {
            return Err(error.into());
        }
        let short = listening.opened.elapsed() < STREAM_TIME_MIN;
        listening.failures = if short { listening.failures + 1 } else { 0 };
        if listening.failures >= STREAM_FAILURES_MAX || error.code() == Some(Code::Unimplemented) {
            listening.poll_until = Some(Instant::now() + POLL_INSTEAD_TIME);
        } else if short {
            tokio::time::sleep(jittered(RETRY_FIRST * listening.failures)).await;
        }
        // Whether the gateway is gone altogether shows when it is asked for changes.
        Ok(None)
    }

    async fn poll(&mut self) -> Result<Option<CheckNow>, FollowError> {
        let cursor = Bytes::from(self.state.ask(|state| state.remote_position()).await?.cursor);
        let answer = tokio::select! {
            answer = self.api.wait_for_change(cursor, POLL_TIME) => answer,
            Some(check) = self.checks.recv() => return Ok(Some(check)),
        };
        match answer {
            Ok(_changed) => Ok(None),
            // A gateway that has no room for one more to wait is there all the same.
            Err(error) if error.is_fatal() || (error.is_transient() && !is_busy(&error)) => Err(error.into()),
            Err(error) => {
                tracing::debug!(%error, "long polls cannot be had either");
                tokio::select! {
                    () = tokio::time::sleep(ASK_INTERVAL) => Ok(None),
                    Some(check) = self.checks.recv() => Ok(Some(check)),
                }
            }
        }
    }
}

fn is_busy(error: &CallError) -> bool {
    error.code() == Some(Code::ResourceExhausted)
}

/// Between half and all of `wait`, so that many clients do not come back at one moment.
fn jittered(wait: Duration) -> Duration {
    let random = random_16().map_or(128, |bytes| u32::from(bytes[0]));
    wait / 2 + wait / 2 * random / 255
}

#[cfg(test)]
mod tests;
