//! A session without a gateway: what it does with the disk, and how it ends.

use super::*;
use crate::connection::ConnectOptions;
use crate::local::rel::Rel;
use crate::local::scan::{Scope, ScopeFolder};
use crate::path::RemotePath;
use crate::sync::config::Expected;
use crate::sync::scanner::{LeftOut, LeftOutKind};
use crate::sync::status::Waiting;
use crate::sync::task::MovedFolder;

const DEADLINE: Duration = Duration::from_secs(120);

/// Nobody listens at that port.
fn config(root: PathBuf) -> SyncConfig {
    let connect =
        ConnectOptions { endpoint: "https://127.0.0.1:9".to_owned(), ca_pem: Vec::new(), token: None };
    SyncConfig::new(root, RemotePath::root(), connect)
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().canonicalize().unwrap().join("root");
    std::fs::create_dir(&root).unwrap();
    (scratch, root)
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_late| panic!("{what} takes too long"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_answers_and_ends_at_once_while_a_scan_takes_hours() {
    let (_scratch, root) = folder();
    // Takes an hour to read, and no room.
    std::fs::File::create(root.join("large")).unwrap().set_len(1 << 42).unwrap();
    let session = Session::start(config(root)).await.unwrap();
    within("asking for scans", async {
        for _ in 0..EVENTS_MAX * 4 {
            session.rescan().await.unwrap();
        }
    })
    .await;
    within("the log", session.log_tail(1)).await.unwrap();
    within("the end", session.stop()).await;
    assert_eq!(session.status().phase, Phase::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_was_away_is_watched_again() {
    let (scratch, root) = folder();
    std::fs::write(root.join("file"), "bytes").unwrap();
    // In the root it would be gone with it, and that ends the session.
    let elsewhere = SyncConfig { state_dir: Some(scratch.path().join("state")), ..config(root.clone()) };
    let session = Session::start(elsewhere).await.unwrap();
    let mut status = session.watch_status();
    within("the watcher", status.wait_for(|status| status.watching)).await.unwrap();
    let aside = scratch.path().join("aside");
    std::fs::rename(&root, &aside).unwrap();
    within("the end of the watcher", status.wait_for(|status| !status.watching)).await.unwrap();
    std::fs::rename(&aside, &root).unwrap();
    within("the watcher again", status.wait_for(|status| status.watching)).await.unwrap();
    within("the end", session.stop()).await;
    assert!(!status.borrow().watching, "nobody watches after the end");
}

#[tokio::test]
async fn a_root_that_is_not_mounted_is_refused_when_it_was_known() {
    let (_scratch, root) = folder();
    let session = Session::start(config(root.clone())).await.unwrap();
    let known = Expected::Root(session.root_id());
    within("the end", session.stop()).await;
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::create_dir(&root).unwrap();
    let again = SyncConfig { expected: known, ..config(root.clone()) };
    assert!(matches!(Session::start(again).await, Err(StartError::Unmarked(_))));
    assert!(std::fs::read_dir(&root).unwrap().next().is_none());
}

#[test]
fn what_could_not_be_read_is_known_until_it_was_looked_at_again() {
    let (sender, _status) = watch::channel(first_status(&config("/r".into())));
    let mut board = Board::new(sender, broadcast::channel(1).0);
    let left_out = |path: &str, kind| LeftOut {
        waiting: Waiting { path: path.to_owned(), why: "why".to_owned() },
        kind,
    };
    let all = vec![
        left_out("d/changing", LeftOutKind::Changing),
        left_out("d/closed", LeftOutKind::Closed),
        left_out("d/socket", LeftOutKind::Meant),
    ];
    board.skipped(all, &Scope::Whole);
    let paths = |board: &Board| board.unread().into_iter().map(|unread| unread.path).collect::<Vec<_>>();
    assert_eq!(paths(&board), ["d/changing", "d/closed"]);
    let scope =
        |path: &str, deep| Scope::Folders(vec![ScopeFolder { folder: Rel::parse(path).unwrap(), deep }]);
    board.skipped(Vec::new(), &scope("e", true));
    assert_eq!(paths(&board), ["d/changing", "d/closed"]);
    // It was read now; what is in a closed folder was not looked at.
    board.skipped(Vec::new(), &scope("d", false));
    assert_eq!(paths(&board), ["d/closed"]);
    board.skipped(Vec::new(), &scope("d", true));
    assert!(!board.has_unread());
    // What is in a folder goes where the folder goes; what only begins with the same letters does not.
    let all = ["d", "d.txt", "d/e/closed", "d0/closed"].map(|path| left_out(path, LeftOutKind::Unread));
    board.skipped(all.to_vec(), &Scope::Whole);
    let rel = |path: &str| Rel::parse(path).unwrap();
    board.moved(&MovedFolder { from: rel("d"), to: rel("z/y"), ruled: false });
    assert_eq!(paths(&board), ["d.txt", "d0/closed", "z/y", "z/y/e/closed"]);
    let below = |path: &str| {
        let found = board.folders_with_left_out(&scope(path, false));
        found.iter().map(Rel::to_string).collect::<Vec<_>>()
    };
    assert_eq!(below(""), ["d.txt", "d0", "z"]);
    assert_eq!(below("z/y"), ["z/y/e"]);
    assert_eq!(below("d"), [""; 0]);
    board.left(&rel("z"));
    assert_eq!(paths(&board), ["d.txt", "d0/closed"]);
}

#[test]
fn ids_of_what_is_excluded_that_became_void_are_not_gone_by() {
    let (_scratch, path) = folder();
    let root = Root::create(&path, None, &[]).unwrap();
    let mut state = State::open(root.state_path()).unwrap().state;
    let list = |entry: u64| vec![(entry, "large".to_owned())];
    root.write_exclusions(&list(7)).unwrap();
    reconcile_exclusions(&mut state, &root).unwrap();
    assert_eq!(state.excluded().unwrap(), list(7), "a new state follows the list");
    state.forget_history(0).unwrap();
    reconcile_exclusions(&mut state, &root).unwrap();
    assert_eq!(state.excluded().unwrap(), [], "that id may be another folder's by now");
    assert_eq!(
        root.exclusions().unwrap(),
        Some(list(7)),
        "the path is still known, whatever becomes of the state"
    );
    // As once the server's tree was listed anew.
    state.set_number("went_back", 0).unwrap();
    state.exclude(9, "large").unwrap();
    for _ in 0..2 {
        reconcile_exclusions(&mut state, &root).unwrap();
        assert_eq!((state.excluded().unwrap(), root.exclusions().unwrap()), (list(9), Some(list(9))));
    }
}
