//! Looks at files of which nobody tells when they change: those that are written through a mapping, those that have a
//! name outside of the folder (hard links), and, a few at a time, all the others.
//!
//! A look is one `stat`, compared with what is known; what differs has its folder scanned. Looks take
//! [`LOOK_TIME_MAX`] of every [`INTERVAL`]: half a percent of one processor. How long it takes until a file has its turn
//! goes with the number of files: some seconds for a few thousand. Blocks.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::local::model::{LocalIndex, LocalRecord, Stamp};
use crate::local::rel::Rel;
use crate::local::root::Root;
use crate::local::scan::ScopeFolder;
use crate::local::watch::{Unquiet, Writers};
use crate::planner::model::{Kind, NodeId, ROOT};
use crate::state::scan_index::ScanIndex;

/// From one look to the next.
pub(crate) const INTERVAL: Duration = Duration::from_secs(2);
/// How long one may take. Files with writers and those with other names have the first half.
const LOOK_TIME_MAX: Duration = Duration::from_millis(10);
/// Files with names outside that are known; what is more has its turn with all the others.
const LINKED_MAX: usize = 10_000;
/// What was said is said again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Of so many files it is remembered that it was said.
const TOLD_MAX: usize = 10_000;
/// Nodes asked for at once.
const PAGE_NODES: usize = 100;
/// Folders within one another that a walk up bears.
const DEPTH_MAX: usize = 4_096;

/// Where it has come to.
#[derive(Debug, Default)]
pub(crate) struct Lookout {
    /// Files with more names than are known here.
    linked: BTreeSet<NodeId>,
    linked_after: Option<NodeId>,
    /// What was said to have changed, and when: it is said again only if it changes again, or after a while. (What a
    /// scan leaves out stays as it was known.)
    told: HashMap<NodeId, (Stamp, Instant)>,
    /// All nodes up to this one have had their turn.
    swept: u64,
}

/// One look.
struct Look<'a> {
    root: &'a Root,
    index: &'a ScanIndex,
    writers: &'a Writers,
    unquiet: Option<&'a Unquiet>,
    folders: HashMap<NodeId, Option<Rel>>,
    changed: BTreeSet<Rel>,
    told: &'a mut HashMap<NodeId, (Stamp, Instant)>,
}

/// What a look at one file says.
enum Seen {
    /// Nothing to be said: it is as it was known, or not to be looked at.
    Same,
    /// So, with a name that is not known here.
    Linked,
}

impl Lookout {
    /// Looks at some. Gives the folders in which something has changed, each to be scanned by itself.
    pub(crate) fn look(
        &mut self,
        root: &Root,
        index: &ScanIndex,
        writers: &Writers,
        unquiet: Option<&Unquiet>,
    ) -> Vec<ScopeFolder> {
        let began = Instant::now();
        let mut told = std::mem::take(&mut self.told);
        told.retain(|_, (_, since)| since.elapsed() < AGAIN_AFTER);
        let (folders, changed) = (HashMap::new(), BTreeSet::new());
        let mut look = Look { root, index, writers, unquiet, folders, changed, told: &mut told };
        let half = |began: Instant| began.elapsed() < LOOK_TIME_MAX / 2;
        for rel in writers.all(began) {
            if !half(began) {
                break;
            }
            look.at_path(&rel);
        }
        self.look_at_linked(&mut look, || half(began));
        self.sweep(&mut look, || began.elapsed() < LOOK_TIME_MAX);
        let changed = look.changed;
        self.told = told;
        changed.into_iter().map(|folder| ScopeFolder { folder, deep: false }).collect()
    }

    /// Goes on with the ones that come after those of the last time.
    fn look_at_linked(&mut self, look: &mut Look<'_>, is_time: impl Fn() -> bool) {
        let from = self.linked_after.map_or(NodeId(0), |last| NodeId(last.0 + 1));
        let order: Vec<NodeId> =
            self.linked.range(from..).chain(self.linked.range(..from)).copied().collect();
        for node in order {
            if !is_time() {
                return;
            }
            self.linked_after = Some(node);
            let still = look.index.node(node).is_some_and(|record| matches!(look.at(&record), Seen::Linked));
            if !still {
                self.linked.remove(&node);
            }
        }
    }

    /// All nodes in turn, once at most.
    fn sweep(&mut self, look: &mut Look<'_>, is_time: impl Fn() -> bool) {
        let start = self.swept;
        let mut wrapped = false;
        while is_time() {
            let nodes = look.index.nodes_after(NodeId(self.swept), PAGE_NODES);
            let Some(last) = nodes.last() else {
                if wrapped || start == 0 {
                    self.swept = 0;
                    return;
                }
                (self.swept, wrapped) = (0, true);
                continue;
            };
            self.swept = last.0;
            for node in nodes {
                let Some(record) = look.index.node(node) else { continue };
                if matches!(look.at(&record), Seen::Linked) && self.linked.len() < LINKED_MAX {
                    self.linked.insert(node);
                }
            }
            if wrapped && self.swept >= start {
                return;
            }
        }
    }
}

impl Look<'_> {
    fn at_path(&mut self, rel: &Rel) {
        let mut record = None;
        let mut at = ROOT;
        for name in rel.names() {
            record = self.index.at(at, name);
            let Some(found) = &record else { return };
            at = found.node;
        }
        if let Some(record) = record {
            self.at(&record);
        }
    }

    fn at(&mut self, record: &LocalRecord) -> Seen {
        if !matches!(record.kind, Kind::File(_)) || !record.stamp.is_reliable() {
            return Seen::Same;
        }
        let Some(folder) = self.folder(record.place.parent, 0) else { return Seen::Same };
        let Ok(rel) = folder.join(&record.place.name) else { return Seen::Same };
        // What is gone, or something else by now, is told of by its folder.
        let Ok(Some(object)) = self.root.stat(&rel) else { return Seen::Same };
        let is_other = object.stamp.identity == record.stamp.identity && object.stamp != record.stamp;
        if is_other && self.tell(record.node, object.stamp) {
            let is_told = self.unquiet.is_some_and(|unquiet| unquiet.contains(&rel));
            if !is_told && object.stamp.mtime_ns != record.stamp.mtime_ns {
                self.writers.suspect(&rel, Instant::now());
            }
            self.changed.insert(folder);
        }
        let names = || self.index.by_identity_all(record.stamp.identity).len();
        if object.links > 1 && usize::try_from(object.links).is_ok_and(|links| links > names()) {
            Seen::Linked
        } else {
            Seen::Same
        }
    }

    /// Whether it is news that a node has this stamp.
    fn tell(&mut self, node: NodeId, stamp: Stamp) -> bool {
        let is_told = self.told.get(&node).is_some_and(|(told, _)| *told == stamp);
        if is_told || self.told.len() >= TOLD_MAX {
            return false;
        }
        self.told.insert(node, (stamp, Instant::now()));
        true
    }

    fn folder(&mut self, node: NodeId, depth: usize) -> Option<Rel> {
        if node == ROOT {
            return Some(Rel::root());
        }
        if let Some(known) = self.folders.get(&node) {
            return known.clone();
        }
        let record = self.index.node(node).filter(|_| depth < DEPTH_MAX)?;
        let rel = self.folder(record.place.parent, depth + 1)?.join(&record.place.name).ok();
        self.folders.insert(node, rel.clone());
        rel
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::local::ignore_rules::IgnoreRules;
    use crate::local::scan::{ScanOptions, Scope, scan};
    use crate::state::database::State;
    use crate::sync::effects::Effects;

    /// Long enough for the slowest machine, and for a stamp to be one to rely on.
    const TRIES_MAX: usize = 500;
    const PAUSE: Duration = Duration::from_millis(10);

    struct Known {
        _dir: tempfile::TempDir,
        root: Root,
        state: State,
        index: ScanIndex,
    }

    impl Known {
        fn new(make: impl FnOnce(&std::path::Path)) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("root");
            std::fs::create_dir(&folder).unwrap();
            make(&folder);
            let root = Root::create(&folder, None, &[]).unwrap();
            let state = State::open(root.state_path()).unwrap().state;
            let index = state.scan_index().unwrap();
            let mut known = Self { _dir: dir, root, state, index };
            known.settle();
            known
        }

        fn settle(&mut self) {
            for _ in 0..TRIES_MAX {
                let options = ScanOptions::new(IgnoreRules, CancellationToken::new());
                let found = scan(&self.root, &mut self.index, &Scope::Whole, &options).unwrap();
                let again = found.again.len();
                self.state.apply_local(found.updates, &Effects::default().begin_scan()).unwrap();
                if again == 0 {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
            panic!("the folder does not get quiet");
        }

        /// Looks until something is seen.
        fn look(&self, lookout: &mut Lookout, writers: &Writers) -> Vec<ScopeFolder> {
            for _ in 0..TRIES_MAX {
                let changed = lookout.look(&self.root, &self.index, writers, None);
                if !changed.is_empty() {
                    return changed;
                }
                std::thread::sleep(PAUSE);
            }
            panic!("nothing is seen");
        }
    }

    fn append(path: &std::path::Path) {
        std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
    }

    #[test]
    fn what_is_written_unheard_is_seen_and_watched_from_then_on() {
        let known = Known::new(|folder| {
            std::fs::create_dir_all(folder.join("a/b")).unwrap();
            for at in 0..500 {
                std::fs::write(folder.join(format!("a/b/{at}")), "x").unwrap();
            }
        });
        let (mut lookout, writers) = (Lookout::default(), Writers::default());
        assert_eq!(lookout.look(&known.root, &known.index, &writers, None), []);
        append(&known.root.path().join("a/b/321"));
        let folder = Rel::parse("a/b").unwrap();
        assert_eq!(known.look(&mut lookout, &writers), [ScopeFolder { folder, deep: false }]);
        assert_eq!(writers.all(Instant::now()), [Rel::parse("a/b/321").unwrap()]);
        known.index.check().unwrap();
    }

    #[test]
    fn a_file_with_a_name_outside_is_looked_at_each_time_and_one_without_is_not() {
        let outside = tempfile::tempdir().unwrap();
        let mut known = Known::new(|folder| {
            for name in ["linked", "twice", "single"] {
                std::fs::write(folder.join(name), name).unwrap();
            }
            std::fs::hard_link(folder.join("twice"), folder.join("here too")).unwrap();
        });
        std::fs::hard_link(known.root.path().join("linked"), outside.path().join("name")).unwrap();
        known.settle();
        let (mut lookout, writers) = (Lookout::default(), Writers::default());
        for _ in 0..TRIES_MAX {
            assert_eq!(lookout.look(&known.root, &known.index, &writers, None), []);
            if !lookout.linked.is_empty() {
                break;
            }
        }
        assert_eq!(lookout.linked.len(), 1);
        append(&outside.path().join("name"));
        let root = ScopeFolder { folder: Rel::root(), deep: false };
        assert_eq!(known.look(&mut lookout, &writers), [root]);
        known.settle();
        // Its other name goes: it is one like all the others.
        std::fs::remove_file(outside.path().join("name")).unwrap();
        known.settle();
        lookout.look(&known.root, &known.index, &writers, None);
        assert!(lookout.linked.is_empty());
        known.index.check().unwrap();
    }
}
