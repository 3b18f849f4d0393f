//! The follower against a gateway that says one thing or another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::fake_gateway::{Calls, FakeGateway, refusal};
use crate::planner::model::ROOT;
use crate::state::trees::Side;

const SYNC_ROOT: u64 = 2;
/// How long anything may take.
const TIME_MAX: Duration = Duration::from_secs(60);

fn entry(id: u64, parent: u64, name: &str) -> v1::Entry {
    let mut entry = v1::Entry { id, parent, name: name.to_owned(), mode: 0o755, ..Default::default() };
    entry.set_kind(v1::EntryKind::Folder);
    entry.sequence = 1;
    entry
}

fn told(entry: v1::Entry) -> v1::Change {
    v1::Change { entry_id: entry.id, entry: Some(entry), list_below: false }
}

/// A follower, of a state that knows of one folder in the root, at the cursor `1`.
struct Harness {
    _folder: tempfile::TempDir,
    state: StateThread,
    api: ApiClient,
    calls: Calls,
}

struct Running {
    events: mpsc::Receiver<FollowerEvent>,
    checks: mpsc::Sender<CheckNow>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Harness {
    async fn new(gateway: FakeGateway) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State::open(folder.path()).unwrap().state;
        state.set_root_entry(SYNC_ROOT, 0).unwrap();
        let changes = vec![told(entry(10, SYNC_ROOT, "kept"))];
        state.apply_changes(&RemotePage { changes, reached: Reached::at(5), more: false }).unwrap();
        assert_eq!(state.finish_batch().unwrap(), Finished::Whole);
        let (state, _owner) = StateThread::start(state).unwrap();
        let (api, calls) = gateway.start().await;
        Self { _folder: folder, state, api, calls }
    }

    fn run(&self) -> Running {
        let ((events, received), (checks, asked)) = (mpsc::channel(64), mpsc::channel(4));
        let stop = CancellationToken::new();
        let follower = Follower {
            api: self.api.clone(),
            state: self.state.clone(),
            remote_path: RemotePath::parse("/p/kept").unwrap(),
            events,
            checks: asked,
            stop: stop.clone(),
        };
        Running { events: received, checks, stop, task: tokio::spawn(follower.run()) }
    }

    /// How many folders are in the root, as far as is known.
    async fn known(&self) -> usize {
        self.state.ask(|state| Ok(state.side_children(Side::Remote, ROOT)?.len())).await.unwrap()
    }
}

impl Running {
    /// Waits for the end that cannot be gone on from; gives the reason.
    async fn ended(mut self) -> String {
        let reason = tokio::time::timeout(TIME_MAX, async {
            loop {
                match self.events.recv().await {
                    Some(FollowerEvent::Ended(reason)) => return reason,
                    Some(
                        FollowerEvent::Whole(_) | FollowerEvent::Offline(_) | FollowerEvent::WentBack(_),
                    )
                    | None => panic!("it goes on"),
                    Some(FollowerEvent::Online | FollowerEvent::CaughtUp) => {}
                }
            }
        });
        let reason = reason.await.unwrap();
        self.task.await.unwrap();
        reason
    }

    async fn caught_up(&mut self) {
        let event = tokio::time::timeout(TIME_MAX, async {
            loop {
                match self.events.recv().await {
                    Some(FollowerEvent::CaughtUp) => return,
                    Some(FollowerEvent::Online | FollowerEvent::Whole(_) | FollowerEvent::Offline(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        event.await.unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn no_entry() -> tonic::Status {
    refusal(Code::NotFound, "not-found")
}

/// Answers listings of the root so many times, then has none.
fn root_for(times: usize) -> impl Fn(v1::ListBelowRequest) -> Result<v1::ListBelowResponse, tonic::Status> {
    let left = AtomicUsize::new(times);
    move |request| {
        assert_eq!(request.entry_id, SYNC_ROOT);
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match taken {
            Ok(_left) => Ok(v1::ListBelowResponse::default()),
            Err(_none) => Err(no_entry()),
        }
    }
}

/// Nothing new after `cursor`.
fn nothing_new(cursor: Bytes) -> v1::ChangesResponse {
    v1::ChangesResponse { cursor, sequence: 5, ..v1::ChangesResponse::default() }
}

#[tokio::test]
async fn a_reset_with_the_remote_folder_gone_at_any_moment_changes_nothing() {
    for times in 0..5 {
        let gateway = FakeGateway::default().on("Sync/ListBelow", root_for(times)).on(
            "Sync/Changes",
            |request: v1::ChangesRequest| {
                let mut answer = nothing_new(Bytes::from_static(b"2"));
                answer.cursor_reset = !request.cursor.is_empty();
                Ok(answer)
            },
        );
        let harness = Harness::new(gateway).await;
        for _start in 0..2 {
            let reason = harness.run().ended().await;
            assert!(reason.contains("/p/kept was deleted on the server"), "{times}: {reason}");
            assert_eq!(harness.known().await, 1, "{times}");
        }
    }
}

#[tokio::test]
async fn the_end_of_a_folder_above_the_root_ends_the_session_before_anything_is_dropped() {
    let gateway = FakeGateway::default().on("Sync/ListBelow", root_for(1)).on(
        "Sync/Changes",
        |_request: v1::ChangesRequest| {
            // The folder above, and what changed below it before it went.
            let gone = |entry_id| v1::Change { entry_id, entry: None, list_below: false };
            let mut answer = nothing_new(Bytes::from_static(b"2"));
            answer.changes = vec![gone(10), gone(77)];
            Ok(answer)
        },
    );
    let harness = Harness::new(gateway).await;
    let reason = harness.run().ended().await;
    assert!(reason.contains("or a folder that it is in"), "{reason}");
    assert_eq!(harness.known().await, 1);
}

#[tokio::test]
async fn a_check_that_was_asked_for_looks_for_the_root() {
    let gateway = FakeGateway::default()
        .on("Sync/ListBelow", root_for(1))
        .on("Sync/Changes", |request: v1::ChangesRequest| Ok(nothing_new(request.cursor)));
    let harness = Harness::new(gateway).await;
    let mut running = harness.run();
    running.caught_up().await;
    let (check, _answer) = oneshot::channel();
    running.checks.send(check).await.unwrap();
    assert!(running.ended().await.contains("was deleted on the server"));
}

#[tokio::test]
async fn a_cursor_of_another_tree_ends_the_session_with_what_to_do() {
    let gateway = FakeGateway::default().on("Sync/ListBelow", root_for(9)).on(
        "Sync/Changes",
        |_request: v1::ChangesRequest| -> Result<v1::ChangesResponse, _> {
            Err(refusal(Code::InvalidArgument, "bad-cursor"))
        },
    );
    let harness = Harness::new(gateway).await;
    let reason = harness.run().ended().await;
    assert!(reason.contains("another account") && reason.contains("keepstone login"), "{reason}");
    assert_eq!(harness.calls.of("Sync/Changes"), 1);
}

/// Follows until it is told that the server went back: up to which number it is the same, and how often it was asked.
async fn went_back(harness: &Harness) -> (u64, usize) {
    let mut running = harness.run();
    let told = tokio::time::timeout(TIME_MAX, async {
        loop {
            match running.events.recv().await {
                Some(FollowerEvent::WentBack(common)) => return common,
                Some(FollowerEvent::Online) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    let common = told.await.unwrap();
    running.task.await.unwrap();
    (common, harness.calls.of("Sync/Changes"))
}

#[tokio::test]
async fn a_server_that_went_back_is_told_of_and_nothing_is_forgotten_before() {
    let gateway = FakeGateway::default().on("Sync/ListBelow", root_for(9)).on(
        "Sync/Changes",
        |request: v1::ChangesRequest| {
            let mut answer = nothing_new(Bytes::from_static(b"2"));
            answer.cursor_reset = !request.cursor.is_empty();
            answer.set_reset_reason(v1::ResetReason::WentBack);
            answer.common_sequence = 3;
            Ok(answer)
        },
    );
    let harness = Harness::new(gateway).await;
    assert_eq!(went_back(&harness).await, (3, 1));
    assert_eq!(harness.known().await, 1);
}

#[tokio::test]
async fn a_server_that_goes_back_again_before_it_is_listed_has_less_in_common() {
    // A cursor of its own is taken; of the one before, less is the same than was said first.
    let gateway = FakeGateway::default().on("Sync/ListBelow", root_for(9)).on(
        "Sync/Changes",
        |request: v1::ChangesRequest| {
            let mut answer = nothing_new(Bytes::from_static(b"2"));
            if request.cursor.is_empty() {
                answer.changes.push(told(entry(SYNC_ROOT, 1, "kept")));
            }
            answer.cursor_reset = request.cursor == Bytes::from_static(b"1");
            if answer.cursor_reset {
                answer.set_reset_reason(v1::ResetReason::WentBack);
                answer.common_sequence = 3;
            }
            Ok(answer)
        },
    );
    let harness = Harness::new(gateway).await;
    harness
        .state
        .ask(|state| state.set_remote_position(&Reached { proof: b"1".to_vec(), ..Reached::at(7) }))
        .await
        .unwrap();
    harness.state.ask(|state| state.forget_history(5)).await.unwrap();
    let (common, asked) = went_back(&harness).await;
    assert_eq!(common, 3);
    assert_eq!(asked, 2, "the listing, and the cursor of before");
    // It is not less than that: listed.
    harness.state.ask(|state| state.forget_history(3)).await.unwrap();
    let mut running = harness.run();
    running.caught_up().await;
    running.stop().await;
    assert_eq!(harness.state.ask(|state| state.went_back()).await.unwrap(), None);
    assert_eq!(harness.state.ask(|state| state.former_place()).await.unwrap(), None);
    assert_eq!(harness.calls.of("Sync/Changes"), asked + 3, "and the listing's own cursor again");
}

#[tokio::test]
async fn a_gateway_with_no_room_for_long_polls_is_online_and_asked_at_intervals() {
    let polls = Arc::new(tokio::sync::Semaphore::new(0));
    let polled = polls.clone();
    let gateway = FakeGateway::default()
        .on("Sync/ListBelow", root_for(9))
        .on("Sync/Changes", |request: v1::ChangesRequest| Ok(nothing_new(request.cursor)))
        .on("Sync/WaitForChange", move |_request: v1::WaitForChangeRequest| {
            polled.add_permits(1);
            Err::<v1::WaitForChangeResponse, _>(refusal(Code::ResourceExhausted, "busy"))
        });
    let harness = Harness::new(gateway).await;
    let mut running = harness.run();
    running.caught_up().await;
    let twice = tokio::time::timeout(TIME_MAX, polls.acquire_many(2)).await;
    drop(twice.unwrap().unwrap());
    assert!(running.events.try_recv().is_err(), "not offline, nor caught up anew");
    running.stop().await;
}
