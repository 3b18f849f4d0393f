//! How fast a folder is scanned: first with nothing known (all is read), then with all known (nothing is).
//!
//! `cargo bench -p keepstone-client --bench scan -- FILES DIR`: makes FILES small files below DIR, 100 to a folder, unless
//! they are there from before. The index is in memory, so that the scan itself is measured.
#![expect(clippy::print_stdout, reason = "figures are what it is for")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails has nobody to tell")]

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use client::local::ignore_rules::IgnoreRules;
use client::local::model::{Identity, LocalIndex, LocalRecord, LocalUpdate};
use client::local::rel::Rel;
use client::local::root::Root;
use client::local::scan::{Scan, ScanOptions, Scope, ScopeFolder, scan};
use client::planner::model::NodeId;
use tokio_util::sync::CancellationToken;

const FILES_PER_FOLDER: usize = 100;

#[derive(Default)]
struct Index {
    folders: HashMap<NodeId, Vec<LocalRecord>>,
    last: u64,
}

impl LocalIndex for Index {
    fn at(&self, parent: NodeId, name: &str) -> Option<LocalRecord> {
        self.folders.get(&parent)?.iter().find(|record| record.place.name == name).cloned()
    }

    fn children(&self, parent: NodeId) -> Vec<LocalRecord> {
        self.folders.get(&parent).cloned().unwrap_or_default()
    }

    fn children_sent(&self, parent: NodeId) -> Vec<(LocalRecord, bool)> {
        self.children(parent).into_iter().map(|child| (child, true)).collect()
    }

    fn children_unsent(&self, _parent: NodeId) -> HashSet<NodeId> {
        HashSet::new()
    }

    fn is_on_server(&self, _node: NodeId) -> bool {
        true
    }

    fn by_identity(&self, _identity: Identity) -> Option<LocalRecord> {
        None
    }

    fn by_identity_all(&self, _identity: Identity) -> Vec<LocalRecord> {
        Vec::new()
    }

    fn node(&self, _node: NodeId) -> Option<LocalRecord> {
        None
    }

    fn new_node(&mut self) -> NodeId {
        self.last = self.last.max(1) + 1;
        NodeId(self.last)
    }
}

fn resident_mib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn make(dir: &Path, files: usize) {
    for folder in 0..files.div_ceil(FILES_PER_FOLDER) {
        let path: PathBuf = dir.join(format!("{:03}", folder / 100)).join(format!("folder-{folder:06}"));
        if path.exists() {
            continue;
        }
        std::fs::create_dir_all(&path).unwrap();
        for file in 0..FILES_PER_FOLDER.min(files - folder * FILES_PER_FOLDER) {
            std::fs::write(path.join(format!("file-{file:03}.txt")), format!("{folder} {file}")).unwrap();
        }
    }
}

fn measure(what: &str, root: &Root, index: &mut Index, scope: &Scope) -> Scan {
    let before = resident_mib("VmRSS");
    let began = Instant::now();
    let options = ScanOptions::new(IgnoreRules, CancellationToken::new());
    let found = scan(root, index, scope, &options).unwrap();
    let seconds = began.elapsed().as_secs_f64();
    let count = found.counts.files;
    println!(
        "{what}: {count} files in {seconds:.3} s = {:.0} files/s, {} read, {} updates; {before} MiB resident before, \
         peak {} MiB",
        f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / seconds,
        found.counts.hashed,
        found.updates.len(),
        resident_mib("VmHWM"),
    );
    found
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let files: usize = arguments.next().map_or(100_000, |files| files.parse().unwrap());
    let scratch = tempfile::tempdir().unwrap();
    let dir = arguments.next().map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    std::fs::create_dir_all(&dir).unwrap();
    make(&dir, files);
    let root = Root::create(&dir, None, &[]).unwrap();
    let mut index = Index::default();
    let found = measure("nothing known", &root, &mut index, &Scope::Whole);
    for update in found.updates {
        if let LocalUpdate::Put(mut record) = update {
            // Made a moment ago, its stamp may say that it cannot be relied on.
            if record.stamp.ctime_ns == i64::MIN {
                record.stamp = root.stat(&path_of(&record, &index)).unwrap().unwrap().stamp;
            }
            index.folders.entry(record.place.parent).or_default().push(record);
        }
    }
    for _ in 0..3 {
        let found = measure("all known", &root, &mut index, &Scope::Whole);
        assert!(found.updates.is_empty());
    }
    let one = ScopeFolder { folder: Rel::parse("000/folder-000000").unwrap(), deep: false };
    measure("one folder", &root, &mut index, &Scope::Folders(vec![one]));
}

fn path_of(record: &LocalRecord, index: &Index) -> Rel {
    let mut names = vec![record.place.name.clone()];
    let mut at = record.place.parent;
    while let Some(above) = index.folders.values().flatten().find(|above| above.node == at) {
        names.push(above.place.name.clone());
        at = above.place.parent;
    }
    Rel::from_names(names.iter().rev().map(String::as_str)).unwrap()
}
