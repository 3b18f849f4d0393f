//! Roots in temporary folders, and an index in memory, for the tests of this module.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::model::{Identity, LocalIndex, LocalRecord, LocalUpdate, Stamp};
use super::rel::Rel;
use super::root::Root;
use crate::planner::model::{Kind, NodeId, ROOT};

pub(super) fn rel(path: &str) -> Rel {
    Rel::parse(path).unwrap()
}

const CHILD: &str = "KEEPSTONE_TEST_AS_ANOTHER_USER";

/// For tests of permissions, which root does not have to care about: true if this process is to run the test; else it
/// was run as another user, by a process of its own.
pub(super) fn as_another_user(test: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() || std::env::var_os(CHILD).is_some() {
        return true;
    }
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65_534), Some(65_534)).unwrap();
    // Where another user can reach it.
    let program = dir.path().join("tests");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let run = || {
        std::process::Command::new(&program)
            .args(["--exact", test])
            .env(CHILD, "1")
            .env("TMPDIR", dir.path())
            .current_dir(dir.path())
            .uid(65_534)
            .gid(65_534)
            .output()
    };
    // A child of another test that was forked meanwhile holds the copy open for writing until it runs its own program.
    let is_busy = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ExecutableFileBusy;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let mut output = run();
    while output.as_ref().is_err_and(is_busy) && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(10));
        output = run();
    }
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// A file system in memory, mounted as long as this is there.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    /// `None` if this user may not mount.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(path)
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            println!("not allowed to mount: only root can try that");
        }
        mounted.then(|| Self(path.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            println!("{} stays mounted", self.0.display());
        }
    }
}

/// A root that is there as long as this is.
pub(super) struct TestRoot {
    root: Arc<Root>,
    _dir: Option<tempfile::TempDir>,
}

impl TestRoot {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { root: Arc::new(Root::create(dir.path(), None, &[]).unwrap()), _dir: Some(dir) }
    }

    pub(super) fn at(path: &Path) -> Self {
        let root = Root::create(path, None, &[]).unwrap();
        Self { root: Arc::new(root), _dir: None }
    }

    pub(super) fn root(&self) -> &Arc<Root> {
        &self.root
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.root.path().to_owned()
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        std::fs::write(self.dir().join(path), text).unwrap();
    }

    pub(super) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir().join(path)).unwrap()
    }

    pub(super) fn stamp(&self, path: &str) -> Stamp {
        self.root.stat(&rel(path)).unwrap().unwrap().stamp
    }

    /// All that is in the trash: path below a day, and bytes.
    pub(super) fn trashed(&self) -> BTreeMap<String, Vec<u8>> {
        let trash = self.root.trash_path();
        walkdir::WalkDir::new(&trash)
            .into_iter()
            .map(|entry| entry.unwrap())
            .filter(|entry| !entry.file_type().is_dir())
            .map(|entry| {
                let path = entry.path().strip_prefix(&trash).unwrap();
                let below_day: PathBuf = path.components().skip(1).collect();
                (below_day.to_str().unwrap().to_owned(), std::fs::read(entry.path()).unwrap_or_default())
            })
            .collect()
    }

    pub(super) fn temporary_count(&self) -> usize {
        std::fs::read_dir(self.dir().join(".keepstone/tmp")).unwrap().count()
    }
}

impl Deref for TestRoot {
    type Target = Root;

    fn deref(&self) -> &Root {
        &self.root
    }
}

/// The local tree, in memory.
#[derive(Default)]
pub(super) struct MemoryIndex {
    nodes: HashMap<NodeId, LocalRecord>,
    places: BTreeMap<(NodeId, String), NodeId>,
    identities: HashMap<Identity, NodeId>,
    /// What the server has never had.
    pub(super) unsent: HashSet<NodeId>,
    /// What the server has in another version.
    pub(super) outdated: HashSet<NodeId>,
    last: u64,
}

impl MemoryIndex {
    /// Takes in a set of updates, checking that it makes a tree.
    pub(super) fn apply(&mut self, updates: &[LocalUpdate]) {
        let puts: HashSet<NodeId> = updates
            .iter()
            .filter_map(|update| match update {
                LocalUpdate::Put(record) => Some(record.node),
                LocalUpdate::Gone(_) => None,
            })
            .collect();
        let mut gone: Vec<NodeId> = updates
            .iter()
            .filter_map(|update| match update {
                LocalUpdate::Gone(node) => Some(*node),
                LocalUpdate::Put(_) => None,
            })
            .collect();
        assert!(gone.iter().all(|node| !puts.contains(node)), "a node is put and gone");
        while let Some(node) = gone.pop() {
            gone.extend(
                self.children(node).into_iter().map(|child| child.node).filter(|child| !puts.contains(child)),
            );
            self.remove(node);
        }
        for node in &puts {
            self.remove(*node);
        }
        let mut seen = HashSet::new();
        for update in updates {
            if let LocalUpdate::Put(record) = update {
                assert!(seen.insert(record.node), "a node is put twice: {record:?}");
                let place = (record.place.parent, record.place.name.clone());
                let there = self.places.insert(place, record.node);
                assert_eq!(there, None, "two at one place: {record:?}");
                self.identities.insert(record.stamp.identity, record.node);
                self.nodes.insert(record.node, record.clone());
            }
        }
        for record in self.nodes.values() {
            assert!(self.path(record.node).is_some(), "not below the root: {record:?}");
        }
    }

    fn remove(&mut self, node: NodeId) {
        if let Some(record) = self.nodes.remove(&node) {
            let place = (record.place.parent, record.place.name);
            if self.places.get(&place) == Some(&node) {
                self.places.remove(&place);
            }
            if self.identities.get(&record.stamp.identity) == Some(&node) {
                self.identities.remove(&record.stamp.identity);
            }
        }
    }

    pub(super) fn path(&self, node: NodeId) -> Option<String> {
        let mut names = Vec::new();
        let mut at = node;
        for _ in 0..1_000 {
            if at == ROOT {
                names.reverse();
                return Some(names.join("/"));
            }
            let record = self.nodes.get(&at)?;
            if record.place.parent != ROOT && self.nodes.get(&record.place.parent)?.kind != Kind::Folder {
                return None;
            }
            names.push(record.place.name.clone());
            at = record.place.parent;
        }
        None
    }

    pub(super) fn find(&self, path: &str) -> Option<LocalRecord> {
        let mut at = ROOT;
        let mut found = None;
        for name in path.split('/') {
            let record = self.at(at, name)?;
            at = record.node;
            found = Some(record);
        }
        found
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &LocalRecord> {
        self.nodes.values()
    }
}

impl LocalIndex for MemoryIndex {
    fn at(&self, parent: NodeId, name: &str) -> Option<LocalRecord> {
        self.node(*self.places.get(&(parent, name.to_owned()))?)
    }

    fn children(&self, parent: NodeId) -> Vec<LocalRecord> {
        self.places
            .range((parent, String::new())..)
            .take_while(|((folder, _), _)| *folder == parent)
            .filter_map(|(_, node)| self.node(*node))
            .collect()
    }

    fn children_sent(&self, parent: NodeId) -> Vec<(LocalRecord, bool)> {
        let children = self.children(parent).into_iter();
        let sent = |child: LocalRecord| {
            let sent = !self.unsent.contains(&child.node);
            (child, sent)
        };
        children.map(sent).collect()
    }

    fn children_unsent(&self, parent: NodeId) -> HashSet<NodeId> {
        let children = self.children(parent).into_iter().map(|child| child.node);
        children.filter(|node| self.unsent.contains(node)).collect()
    }

    fn is_on_server(&self, node: NodeId) -> bool {
        !self.unsent.contains(&node) && !self.outdated.contains(&node)
    }

    fn by_identity(&self, identity: Identity) -> Option<LocalRecord> {
        self.node(*self.identities.get(&identity)?)
    }

    fn by_identity_all(&self, identity: Identity) -> Vec<LocalRecord> {
        let all = self.nodes.values().filter(|record| record.stamp.identity == identity);
        all.cloned().collect()
    }

    fn node(&self, node: NodeId) -> Option<LocalRecord> {
        self.nodes.get(&node).cloned()
    }

    fn new_node(&mut self) -> NodeId {
        self.last = self.last.max(ROOT.0) + 1;
        NodeId(self.last)
    }
}
