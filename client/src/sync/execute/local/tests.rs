//! What goes from the disk because the server has it, against a gateway whose history is another one by now; and what
//! comes to a folder that took the place of another.

use std::sync::atomic::{AtomicBool, Ordering};

use proto::v1;

use super::*;
use crate::fake_gateway::{FakeGateway, refusal};
use crate::planner::model::ROOT;
use crate::sync::shared::Shared;

const SYNC_ROOT: u64 = 2;

fn link_record(shared: &Shared) -> LocalRecord {
    let stamp = shared.root.stat(&Rel::parse("l").unwrap()).unwrap().unwrap().stamp;
    LocalRecord {
        node: NodeId(7),
        place: Place { parent: ROOT, name: "l".to_owned() },
        kind: Kind::Symlink(b"x".to_vec()),
        attributes: Attributes { mode: 0o777, mtime_ns: stamp.mtime_ns },
        stamp,
    }
}

#[tokio::test]
async fn nothing_is_freed_that_a_server_of_another_history_may_not_have() {
    let went_back = std::sync::Arc::new(AtomicBool::new(true));
    let is_back = went_back.clone();
    let gateway = FakeGateway::default().on("Sync/ListBelow", move |_request: v1::ListBelowRequest| {
        match is_back.load(Ordering::Relaxed) {
            true => Err(refusal(tonic::Code::Aborted, "conflict")),
            false => Ok(v1::ListBelowResponse::default()),
        }
    });
    let (api, calls) = gateway.start().await;
    let folder = tempfile::tempdir().unwrap();
    let shared = Shared::of(api, folder.path(), SYNC_ROOT);
    let link = folder.path().join("l");
    std::os::unix::fs::symlink("x", &link).unwrap();
    let task = |fate| {
        let work = LocalWork::Delete { record: link_record(&shared), fate };
        vec![LocalTask { node: NodeId(7), rel: Rel::parse("l").unwrap(), work }]
    };
    let ended = run(&shared, task(Fate::Freed)).await;
    assert!(matches!(ended[..], [Ended { end: End::RemoteChanged, .. }]), "{ended:?}");
    assert!(link.is_symlink());
    assert_eq!(calls.of("Sync/ListBelow"), 1);
    went_back.store(false, Ordering::Relaxed);
    let ended = run(&shared, task(Fate::Freed)).await;
    assert!(matches!(ended[..], [Ended { end: End::Done, .. }]), "{ended:?}");
    assert!(!link.is_symlink());
    assert_eq!(calls.of("Sync/ListBelow"), 2);
    // What goes to the trash can be had again: nobody is asked.
    std::os::unix::fs::symlink("x", &link).unwrap();
    went_back.store(true, Ordering::Relaxed);
    run(&shared, task(Fate::Kept)).await;
    assert!(!link.is_symlink());
    assert_eq!(calls.of("Sync/ListBelow"), 2);
}

#[tokio::test]
async fn nothing_is_made_in_a_folder_that_took_the_place_of_another() {
    let (api, _calls) = FakeGateway::default().start().await;
    let folder = tempfile::tempdir().unwrap();
    let shared = Shared::of(api, folder.path(), SYNC_ROOT);
    std::fs::create_dir(folder.path().join("p")).unwrap();
    let within = shared.root.stat(&Rel::parse("p").unwrap()).unwrap().map(|object| object.stamp.identity);
    std::fs::rename(folder.path().join("p"), folder.path().join("q")).unwrap();
    std::fs::create_dir(folder.path().join("p")).unwrap();
    for kind in [Kind::Folder, Kind::Symlink(b"x".to_vec())] {
        let place = Place { parent: NodeId(7), name: "x".to_owned() };
        let attributes = Attributes { mode: 0o755, mtime_ns: 0 };
        let work = LocalWork::Create { place, within, kind, attributes };
        let task = LocalTask { node: NodeId(8), rel: Rel::parse("p/x").unwrap(), work };
        let ended = run(&shared, vec![task]).await;
        assert!(matches!(ended[..], [Ended { end: End::LocalChanged, .. }]), "{ended:?}");
    }
    assert_eq!(std::fs::read_dir(folder.path().join("p")).unwrap().count(), 0);
}
