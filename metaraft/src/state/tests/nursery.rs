//! Small files: what puts them, who may, how they are found, and who may move them.

use engine::cutter::Cutter;
use engine::ids::{AccountId, ChunkId, ContentId, DeviceId, EntryId, HolderId, VersionId};
use engine::manifest::ManifestEntry;

use super::{DEVICE, Harness, SPACE, entry};
use crate::model::DEPTH_MAX;
use crate::model::command::{Base, CommandOutcome, DataStep, StepError};
use crate::model::nursery::{
    FileAt, FoundContent, NurseryFile, NurseryState, NurserySums, Opened, SMALL_FILE_BYTES_MAX, SmallFile,
    TokenGuard,
};
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};
use crate::model::row::{AccountRow, DeviceRow, EntryKind, EntryRow, ROOT_ENTRY};

/// Bytes that the nursery may hold.
const BYTES_MAX: u64 = 100_000;

const ACCOUNT: AccountId = AccountId::from_bytes([4; 16]);

pub(super) fn file(names: &[&str], bytes: &[u8]) -> SmallFile {
    let chunk = ManifestEntry { id: ChunkId::of(bytes), size: bytes.len() as u64 };
    SmallFile {
        folder: ROOT_ENTRY,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        base: Base::Any,
        mode: 0o100_644,
        mtime_ns: 6,
        device: DEVICE,
        cutter: Cutter::Cdc64k,
        chunks: if bytes.is_empty() { Vec::new() } else { vec![chunk] },
        bytes: bytes.to_vec(),
    }
}

pub(super) fn put_step(file: SmallFile) -> DataStep {
    DataStep::FilePut { namespace: SPACE, file: Box::new(file), nursery_bytes_max: BYTES_MAX }
}

impl Harness {
    fn put_small(&mut self, file: SmallFile) -> Result<EntryRow, StepError> {
        entry(self.step(put_step(file)))
    }

    fn nursery(&self, since_ms_max: u64) -> Vec<NurseryFile> {
        match self.ask(&Query::Nursery { after: None, since_ms_max, count_max: 100 }) {
            Reply::Nursery { files, next: None } => files,
            other => panic!("{other:?}"),
        }
    }

    fn sums(&self) -> NurserySums {
        match self.ask(&Query::NurserySums) {
            Reply::NurserySums(sums) => sums,
            other => panic!("{other:?}"),
        }
    }

    fn open(&self, guard: Option<TokenGuard>, at: FileAt) -> Opened {
        match self.ask(&Query::OpenFile { guard, namespace: SPACE, at, content: true }) {
            Reply::Opened(opened) => *opened,
            other => panic!("{other:?}"),
        }
    }
}

fn path(names: &[&str]) -> FileAt {
    FileAt::Path(names.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn a_path_is_walked_and_a_base_compared() {
    let mut harness = Harness::data();
    let folder = harness.folder(ROOT_ENTRY, "a");
    let deeper = harness.folder(folder, "b");
    let put = harness.put_small(file(&["a", "b", "c"], b"one")).unwrap();
    assert_eq!((put.parent, put.name.as_str(), put.mode), (deeper, "c", 0o644));
    let by_id = SmallFile { folder: deeper, ..file(&["d"], b"two") };
    assert_eq!(harness.put_small(by_id).unwrap().parent, deeper);
    let absent = SmallFile { base: Base::Absent, ..file(&["a", "b", "c"], b"x") };
    assert!(matches!(harness.put_small(absent), Err(StepError::Conflict { current: Some(_) })));
    let stale = SmallFile { base: Base::Version(VersionId(99)), ..file(&["a", "b", "c"], b"x") };
    assert!(matches!(harness.put_small(stale), Err(StepError::Conflict { .. })));
    let refused = |harness: &mut Harness, names: &[&str]| harness.put_small(file(names, b"x")).unwrap_err();
    assert!(matches!(refused(&mut harness, &["a", "no", "c"]), StepError::NotFound { .. }));
    assert!(matches!(refused(&mut harness, &["a", "", "c"]), StepError::NotFound { .. }));
    assert!(matches!(refused(&mut harness, &["a", "b", "c", "x"]), StepError::WrongKind { .. }));
    assert!(matches!(refused(&mut harness, &["a", "b"]), StepError::WrongKind { .. }));
    assert!(matches!(refused(&mut harness, &["a", ".."]), StepError::BadName { .. }));
    assert!(matches!(refused(&mut harness, &[]), StepError::Invalid { .. }));
    let row = harness.put_small(file(&["a", "b", "c"], b"three")).unwrap();
    assert_eq!(row.entry, put.entry, "a new version");
    // What is in a folder that is in the trash is out of the tree, by its id as well.
    let there = EntryRow { entry: folder, parent: ROOT_ENTRY, name: "a".to_owned(), ..put };
    harness.delete(&there, true).unwrap();
    assert!(matches!(refused(&mut harness, &["a", "b", "c"]), StepError::NotFound { .. }));
    let by_id = SmallFile { folder: deeper, ..file(&["d"], b"x") };
    assert!(matches!(harness.put_small(by_id), Err(StepError::NotFound { .. })));
    assert_eq!(harness.open(None, FileAt::Entry(row.entry)), Opened::NoEntry(None));
}

#[test]
fn folders_are_no_deeper_than_for_other_files() {
    let mut harness = Harness::data();
    let mut parent = ROOT_ENTRY;
    for _ in 0..DEPTH_MAX {
        parent = harness.folder(parent, "f");
    }
    let mut names = vec!["f"; DEPTH_MAX as usize];
    names.push("file");
    harness.put_small(file(&names, b"x")).unwrap();
    let put = SmallFile { folder: parent, ..file(&["by id"], b"x") };
    harness.put_small(put).unwrap();
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let mut harness = Harness::data();
    let good = file(&["a"], b"some bytes");
    let bad = [
        SmallFile { bytes: b"some byte".to_vec(), ..good.clone() },
        SmallFile { chunks: Vec::new(), ..good.clone() },
        file(&["a"], &vec![7; SMALL_FILE_BYTES_MAX + 1]),
    ];
    for bad in bad {
        assert!(matches!(harness.put_small(bad), Err(StepError::Invalid { .. })));
    }
    assert_eq!(harness.sums(), NurserySums::default());
}

#[test]
fn the_nursery_is_bounded_and_what_the_namespace_has_takes_no_room() {
    let mut harness = Harness::data();
    let large = vec![1; 60_000];
    harness.put_small(file(&["a"], &large)).unwrap();
    assert_eq!(harness.sums(), NurserySums { files: 1, bytes: 60_256 });
    harness.put_small(file(&["b"], &large)).unwrap();
    harness.put_small(file(&["empty"], b"")).unwrap();
    assert_eq!(harness.sums(), NurserySums { files: 1, bytes: 60_256 });
    let used = harness.used_bytes();
    let full = harness.put_small(file(&["c"], &[2; 40_000]));
    assert_eq!(full, Err(StepError::NurseryFull));
    assert_eq!(
        (harness.used_bytes(), harness.names(ROOT_ENTRY)),
        (used, vec!["a".into(), "b".into(), "empty".into()])
    );
    // What a session has committed is in stripes: whether it can be read there is for the other way to find out.
    let row = harness.file(1, "session");
    let EntryKind::File(state) = row.kind else { panic!("{row:?}") };
    let chunks = super::chunks(1, 1000);
    assert_eq!(state.content, ContentId::of(&chunks));
    let again = harness.put_small(SmallFile { chunks, ..file(&["again"], &[0; 1000]) });
    assert_eq!((again, harness.sums().files), (Err(StepError::ContentHeld), 1));
}

/// An account with a device, and what its right token shows.
fn with_account(harness: &mut Harness) -> TokenGuard {
    let row = AccountRow {
        email: "a@x.org".to_owned(),
        name: "A".to_owned(),
        password_hash: String::new(),
        namespace: SPACE,
        admin: false,
        created_ms: 0,
    };
    harness.done(DataStep::AccountCreate { account: ACCOUNT, row });
    let (device, token_hash) = (DeviceId::from_bytes([5; 8]), [6; 32]);
    let row = DeviceRow { name: "d".to_owned(), token_hash, created_ms: 0, revoked_ms: None };
    harness.done(DataStep::DeviceAdd { account: ACCOUNT, device, row });
    TokenGuard { account: ACCOUNT, device, token_hash }
}

#[test]
fn a_token_is_judged_with_the_command_and_with_the_query() {
    let mut harness = Harness::data();
    let right = with_account(&mut harness);
    let put = |harness: &mut Harness, guard: TokenGuard| {
        harness.all(vec![DataStep::TokenGuard(guard), put_step(file(&["a"], b"x"))])
    };
    let wrong = [
        TokenGuard { token_hash: [7; 32], ..right },
        TokenGuard { device: DeviceId::from_bytes([9; 8]), ..right },
        TokenGuard { account: AccountId::from_bytes([9; 16]), ..right },
    ];
    for wrong in wrong {
        let refused = CommandOutcome::Failed { step: 0, error: StepError::TokenRefused };
        assert_eq!(put(&mut harness, wrong), refused);
        assert_eq!(harness.open(Some(wrong), path(&["a"])), Opened::TokenRefused);
    }
    assert!(harness.names(ROOT_ENTRY).is_empty());
    assert!(matches!(put(&mut harness, right), CommandOutcome::Done(_)));
    assert!(matches!(harness.open(Some(right), path(&["a"])), Opened::Found { .. }));
    harness.done(DataStep::DeviceRevoke { account: ACCOUNT, device: right.device });
    assert!(matches!(put(&mut harness, right), CommandOutcome::Failed { .. }));
    assert_eq!(harness.open(Some(right), path(&["a"])), Opened::TokenRefused);
    assert!(!format!("{right:?}").contains("6, 6"), "a hash is not shown");
}

#[test]
fn a_file_is_opened_in_one_look_wherever_it_is() {
    let mut harness = Harness::data();
    harness.folder(ROOT_ENTRY, "folder");
    harness.put_small(file(&["folder", "kept"], b"bytes")).unwrap();
    let Opened::Found { entry, content, places } = harness.open(None, path(&["folder", "kept"])) else {
        panic!("not found");
    };
    assert_eq!((entry.name.as_str(), places), ("kept", Vec::new()));
    let Some(FoundContent::Nursery { bytes, chunks }) = content else { panic!("{content:?}") };
    assert_eq!((bytes.as_slice(), chunks.len()), (&b"bytes"[..], 1));
    harness.file(1, "stored");
    let Opened::Found { content: Some(FoundContent::Stored(row)), places, .. } =
        harness.open(None, path(&["stored"]))
    else {
        panic!("not stored");
    };
    // Its chunk was never registered here.
    assert_eq!((row.size, places), (1000, vec![None]));
    harness.put_small(file(&["empty"], b"")).unwrap();
    for (names, content) in [(&["folder"][..], None), (&["empty"], None)] {
        assert!(
            matches!(harness.open(None, path(names)), Opened::Found { content: found, .. } if found == content)
        );
    }
    let Opened::NoEntry(Some(resolved)) = harness.open(None, path(&["folder", "x", "y"])) else { panic!() };
    assert_eq!(resolved.found, 1);
    assert_eq!(harness.open(None, FileAt::Entry(EntryId(77))), Opened::NoEntry(None));
    let contents = vec![ContentId::from_bytes([1; 32]), row_content(&entry)];
    let query = Query::ContentsIn { namespace: SPACE, contents, bytes: false };
    let Reply::ContentsIn(found) = harness.ask(&query) else { panic!() };
    assert_eq!(found[0], FoundContent::Absent);
    assert!(matches!(&found[1], FoundContent::Nursery { bytes, .. } if bytes.is_empty()), "{found:?}");
}

fn row_content(row: &EntryRow) -> ContentId {
    match row.kind {
        EntryKind::File(state) => state.content,
        _ => panic!("{row:?}"),
    }
}

#[test]
fn one_mover_at_a_time_has_the_lease_until_it_is_over() {
    let mut harness = Harness::data();
    let lease = |mover| DataStep::NurseryLease { mover, life_ms: 30_000 };
    harness.done(lease(1));
    harness.time_ms += 29_000;
    assert!(matches!(harness.step(lease(2)), Err(StepError::Changed { .. })));
    harness.done(lease(1));
    harness.time_ms += 29_000;
    assert!(matches!(harness.step(lease(2)), Err(StepError::Changed { .. })));
    harness.time_ms += 1001;
    harness.done(lease(2));
    assert!(matches!(harness.step(lease(1)), Err(StepError::Changed { .. })));
    // However long a mover asks for.
    harness.done(DataStep::NurseryLease { mover: 2, life_ms: u64::MAX });
    harness.time_ms += 24 * 60 * 60 * 1000;
    harness.done(lease(1));
}

#[test]
fn the_nursery_is_listed_by_age_and_in_pages_with_what_is_on_its_way() {
    let mut harness = Harness::data();
    let begun = harness.time_ms;
    for number in 0..5_u8 {
        harness.put_small(file(&[&format!("f{number}")], &[number; 100])).unwrap();
        harness.time_ms += 1000;
    }
    assert_eq!(harness.nursery(begun + 2000).len(), 3);
    assert_eq!(harness.nursery(u64::MAX).len(), 5);
    let NurseryFile { namespace, content, generation, .. } =
        harness.nursery(u64::MAX).into_iter().find(|file| file.row.since_ms > begun + 2000).unwrap();
    let holder = HolderId::from_bytes([3; 16]);
    let take = |holder| DataStep::NurseryTake { namespace, content, generation, holder };
    assert_eq!(harness.done(take(holder)), StepOutcome::NurseryTaken { holder: Some(holder) });
    let other = HolderId::from_bytes([4; 16]);
    assert_eq!(
        harness.done(take(other)),
        StepOutcome::NurseryTaken { holder: Some(holder) },
        "the first one"
    );
    let listed = harness.nursery(begun + 2000);
    assert_eq!(listed.len(), 4, "what is on its way is always listed");
    assert!(listed.iter().any(|file| file.row.state == NurseryState::Moving { holder }));
    let (mut after, mut pages) = (None, Vec::new());
    loop {
        let query = Query::Nursery { after, since_ms_max: u64::MAX, count_max: 2 };
        let Reply::Nursery { files, next } = harness.ask(&query) else { panic!() };
        pages.push(files.len());
        after = next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages.iter().sum::<usize>(), 5);
    assert!(pages.iter().all(|page| *page <= 2), "{pages:?}");
    let settle = DataStep::NurserySettle { namespace, content, generation: generation + 50, in_force: None };
    assert_eq!(harness.done(settle), StepOutcome::NurserySettled { leaving: true }, "nothing is there");
    let forget = DataStep::NurseryForget { namespace, content, generation };
    assert!(matches!(harness.step(forget), Err(StepError::Changed { .. })), "it is not leaving");
}
