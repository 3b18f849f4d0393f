//! How fast the state of synchronisation takes things in, how large it is on disk, and what it costs in memory.
//!
//! `cargo bench -p keepstone-client --bench state -- [NODES]`

#![expect(clippy::print_stdout, reason = "prints its measurements")]

use std::time::Instant;

use client::local::model::{Identity, LocalRecord, LocalUpdate, Stamp};
use client::planner::model::{Attributes, FileContent, Kind, NodeId, Place, ROOT};
use client::state::database::{FILE_NAME, State};
use client::state::local::Touched;
use client::state::reached::Reached;
use client::state::record::{Outcome, Part};
use client::state::remote::RemotePage;
use client::state::trees::Side;
use engine::cutter::Cutter;
use engine::ids::ContentId;
use proto::v1;

const NODES_DEFAULT: u64 = 1_000_000;
const PER_FOLDER: u64 = 100;
const BATCH: u64 = 1_000;

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

fn content(number: u64) -> ContentId {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    ContentId::from_bytes(bytes)
}

fn parent_of(number: u64) -> NodeId {
    if number.is_multiple_of(PER_FOLDER) { ROOT } else { NodeId(2 + number - number % PER_FOLDER) }
}

fn record(number: u64) -> LocalRecord {
    let kind = if number.is_multiple_of(PER_FOLDER) {
        Kind::Folder
    } else {
        Kind::File(FileContent { content: content(number), size: 4_096, cutter: Cutter::Cdc64k })
    };
    let identity = Identity { inode: 1_000_000 + number, born_ns: 1_700_000_000_000_000_000 };
    LocalRecord {
        node: NodeId(2 + number),
        place: Place { parent: parent_of(number), name: format!("document {number}.txt") },
        kind,
        attributes: Attributes { mode: 0o644, mtime_ns: 1_700_000_000_000_000_000 },
        stamp: Stamp {
            identity,
            size: 4_096,
            mtime_ns: 1_700_000_000_000_000_000,
            ctime_ns: 1_700_000_000_000_000_001,
            mode: 0o644,
        },
    }
}

fn entry(number: u64) -> v1::Entry {
    let parent = parent_of(number);
    let mut entry = v1::Entry {
        id: 10 + number,
        parent: if parent == ROOT { 1 } else { 10 + parent.0 - 2 },
        name: format!("document {number}.txt"),
        mode: 0o644,
        mtime_ns: 1_700_000_000_000_000_000,
        size: 4_096,
        version: 1,
        sequence: number + 1,
        ..v1::Entry::default()
    };
    entry.set_cutter(v1::Cutter::Cdc64k);
    if number.is_multiple_of(PER_FOLDER) {
        entry.set_kind(v1::EntryKind::Folder);
    } else {
        entry.set_kind(v1::EntryKind::File);
        entry.content = content(number).as_bytes().to_vec().into();
    }
    entry
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) / 1024
}

fn timed(what: &str, count: u64, work: impl FnOnce()) {
    let begun = Instant::now();
    work();
    let seconds = begun.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "printed with few digits")]
    let rate = count as f64 / seconds;
    println!("{what:44} {seconds:8.2} s  {rate:10.0} nodes/s  {:5} MiB resident", resident_mib());
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nodes = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(NODES_DEFAULT);
    let folder = tempfile::tempdir()?;
    let mut state = State::open(folder.path())?.state;
    state.set_root_entry(1, 0)?;
    let batches =
        || (0..nodes).step_by(usize::try_from(BATCH).unwrap_or(1)).map(|from| from..nodes.min(from + BATCH));
    timed("local: a scan's updates", nodes, || {
        for batch in batches() {
            let updates = batch.map(|number| LocalUpdate::Put(record(number))).collect();
            state.apply_local(updates, &Untouched).expect("written");
        }
    });
    timed("record: uploads", nodes, || {
        for batch in batches() {
            let outcomes: Vec<_> = batch
                .map(|number| Outcome::Remote {
                    node: NodeId(2 + number),
                    entry: entry(number),
                    part: Part::Whole,
                })
                .collect();
            state.record(&outcomes).expect("written");
        }
    });
    assert!(state.dirty()?.is_empty(), "all agree");
    timed("remote: the same again, as echoes", nodes, || {
        for batch in batches() {
            let changes = batch
                .map(|number| v1::Change {
                    entry_id: 10 + number,
                    entry: Some(entry(number)),
                    list_below: false,
                })
                .collect();
            let reached = Reached { proof: vec![1], sequence: nodes, ..Reached::default() };
            let page = RemotePage { changes, reached, more: true };
            state.apply_changes(&page).expect("written");
        }
    });
    timed("remote: the end of that batch", nodes, || {
        state.finish_batch().expect("written");
    });
    timed("asked: a node and what is at its place", nodes, || {
        for number in 0..nodes {
            let record = record(number);
            let there = state.side_at(Side::Local, record.place.parent, &record.place.name).expect("read");
            assert_eq!(there, Some(record.node));
        }
    });
    drop(state);
    let bytes = std::fs::metadata(folder.path().join(FILE_NAME))?.len();
    println!("{} MiB on disk, {} bytes a node", bytes >> 20, bytes / nodes);
    timed("opened again, checked", nodes, || drop(State::open(folder.path()).expect("opened")));
    Ok(())
}
