//! Damaged files: moved aside, and begun anew, whatever was done to them.

use std::io::{Seek, SeekFrom, Write};

use super::fresh;
use crate::local::model::{Identity, LocalRecord, LocalUpdate, Stamp};
use crate::planner::model::{Attributes, Kind, NodeId, Place, ROOT};
use crate::state::database::{FILE_NAME, State};
use crate::state::error::StateError;
use crate::state::local::Touched;
use crate::state::trees::Side;

struct Untouched;

impl Touched for Untouched {
    fn node(&self, _node: NodeId) -> bool {
        false
    }

    fn place(&self, _parent: NodeId, _name: &str) -> bool {
        false
    }

    fn folder(&self, _folder: NodeId) -> bool {
        false
    }
}

fn fill(state: &mut State) {
    let updates = (2..2_000).map(|number| {
        LocalUpdate::Put(LocalRecord {
            node: NodeId(number),
            place: Place { parent: ROOT, name: format!("folder {number}") },
            kind: Kind::Folder,
            attributes: Attributes { mode: 0o755, mtime_ns: 0 },
            stamp: Stamp {
                identity: Identity { inode: number, born_ns: 0 },
                size: 0,
                mtime_ns: 0,
                ctime_ns: 0,
                mode: 0o755,
            },
        })
    });
    state.apply_local(updates.collect(), &Untouched).unwrap();
}

#[test]
fn a_damaged_file_is_moved_aside_and_begun_anew() {
    let whole = {
        let (folder, mut state) = fresh();
        fill(&mut state);
        state.close().unwrap();
        std::fs::read(folder.path().join(FILE_NAME)).unwrap()
    };
    let mut zeroed = whole.clone();
    zeroed[4_096..40_960].fill(0);
    let mut scribbled = whole.clone();
    scribbled.iter_mut().skip(8_192).step_by(97).for_each(|byte| *byte ^= 0x55);
    let cases = [
        ("zeroed pages", zeroed),
        ("scribbled over", scribbled),
        ("cut off", whole[..whole.len() / 2].to_vec()),
        ("no database", b"this is no database, but it is long enough to be taken for one".repeat(100)),
    ];
    for (what, bytes) in cases {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), bytes).unwrap();
        let opened = State::open(folder.path()).unwrap();
        let (_reason, aside) = opened.rebuilt.unwrap_or_else(|| panic!("{what} was not noticed"));
        assert!(aside.exists(), "{what}");
        assert_eq!(opened.state.side_children(Side::Local, ROOT).unwrap(), [], "{what}");
        drop(opened.state);
        assert!(State::open(folder.path()).unwrap().rebuilt.is_none(), "{what}: the new one is whole");
    }
}

#[test]
fn damage_met_while_it_is_used_is_called_damage() {
    let (folder, mut state) = fresh();
    fill(&mut state);
    state.close().unwrap();
    let state = State::open(folder.path()).unwrap().state;
    let path = folder.path().join(FILE_NAME);
    let length = std::fs::metadata(&path).unwrap().len();
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(4_096)).unwrap();
    let garbage = vec![0xa5; usize::try_from(length).unwrap() - 4_096];
    file.write_all(&garbage).unwrap();
    state.connection.execute_batch("PRAGMA cache_size = 0; PRAGMA shrink_memory;").unwrap();
    let met = state.ids("SELECT id FROM nodes ORDER BY name", &[]);
    assert!(matches!(met, Err(StateError::Damaged(_))), "{met:?}");
    drop(state);
    let anew = State::open_anew(folder.path()).unwrap();
    assert!(anew.rebuilt.is_some() && anew.state.dirty().unwrap().is_empty());
}

#[test]
fn a_later_versions_file_is_left_alone() {
    let (folder, state) = fresh();
    state.connection.pragma_update(None, "user_version", 99).unwrap();
    drop(state);
    let opened = State::open(folder.path());
    assert!(matches!(opened, Err(StateError::Newer { found: 99, .. })));
    assert!(folder.path().join(FILE_NAME).exists());
}
