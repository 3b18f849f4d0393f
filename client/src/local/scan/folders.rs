//! Lists folders, and decides which node each folder is.
//!
//! Folders that are where they were known to be are gone through first. What is left of the folders is then decided in
//! this order, each decision being followed by a look into the folders that it made known: those whose inode is known
//! from elsewhere are moved; those at a place where no folder was are new; and a folder at the place of another one is
//! that one made anew, unless that one was found elsewhere by then.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::contents::{is_fresh, now_ns};
use super::holding::Holding;
use super::hollow::Hollow;
use super::{
    IGNORED_FOLDERS_MAX, SKIPPED_MAX, Scan, ScanError, ScanOptions, Scope, ScopeFolder, Skipped, Why,
};
use crate::local::beneath;
use crate::local::disk::{DiskError, Object, ObjectKind};
use crate::local::ignore_rules::{Beside, IGNORE_FILE, Level};
use crate::local::list::{Entry, list};
use crate::local::model::{LocalIndex, LocalRecord, LocalUpdate, Stamp, attributes_of};
use crate::local::own_data;
use crate::local::rel::{Rel, STATE_FOLDER};
use crate::local::root::Root;
use crate::planner::model::{Kind, NodeId, Place, ROOT};

/// A folder to be listed.
struct Job {
    node: NodeId,
    rel: Rel,
    /// Which object it must be; `None` for the root.
    expected: Option<Stamp>,
    /// The rules of the folder that it is in; `None`: to be read.
    above: Option<Level>,
    deep: bool,
    /// It was asked for, rather than found: if it is not there any more, the folder it was in is listed.
    asked: bool,
}

/// A folder of which it is not decided yet which node it is.
pub(super) struct Pending {
    pub(super) rel: Rel,
    place: Place,
    pub(super) object: Object,
    above: Level,
    /// The folder that was known at its place.
    known: Option<LocalRecord>,
    /// It is ignored unless it was in sync elsewhere before.
    only_moved: bool,
}

/// A folder whose entries are told apart.
struct Sorting<'a> {
    job: &'a Job,
    level: Level,
    /// Its rules are not known, or those above it.
    is_unknown: bool,
    beside: Beside<'a>,
    unsent: HashSet<NodeId>,
    deep: bool,
}

/// Something in a folder that is being listed.
struct At {
    parent: NodeId,
    rel: Rel,
    object: Object,
    only_moved: bool,
    /// The server has never had it.
    is_unsent: bool,
}

/// A file or symlink that is new or has another stamp.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) rel: Rel,
    pub(super) place: Place,
    pub(super) object: Object,
    /// What was known at its place, if it was of the same kind.
    pub(super) known: Option<Box<LocalRecord>>,
    /// As which node it was known, wherever that was, once that is decided; `None`: it is new.
    pub(super) previous: Option<Box<LocalRecord>>,
    /// It is ignored unless it was in sync elsewhere before.
    pub(super) only_moved: bool,
}

/// A folder that was listed.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) rel: Rel,
    /// Before it was listed.
    pub(super) stamp: Stamp,
    /// If it had changed so shortly before that its stamp would not tell of a further change: what was in it.
    pub(super) fresh: Option<u64>,
}

/// A scan as far as it has come.
pub(super) struct Walk<'a> {
    pub(super) root: &'a Root,
    pub(super) index: &'a mut dyn LocalIndex,
    pub(super) options: &'a ScanOptions,
    jobs: Vec<Job>,
    pending: Vec<Pending>,
    pub(super) visited: HashSet<NodeId>,
    /// Folders at whose place another one is now; they may be found elsewhere yet.
    replaced: Vec<LocalRecord>,
    /// Folders that were moved: where they are now.
    pub(super) moved: HashMap<NodeId, Place>,
    pub(super) listed: Vec<Listed>,
    pub(super) found: Vec<Found>,
    /// Of these, so many have had their other names looked at.
    names_asked: usize,
    /// Known, and not at their place.
    pub(super) vanished: HashMap<NodeId, LocalRecord>,
    /// Another object of the same kind is at their place.
    pub(super) displaced: HashSet<NodeId>,
    /// Found elsewhere.
    pub(super) claimed: HashSet<NodeId>,
    /// Of these, those that have a name that cannot be sent.
    pub(super) holding: Holding,
    /// Never sent, and ignored by now: they are there, and not to be known any more.
    pub(super) dropped: Vec<NodeId>,
    /// New folders, for what is in them.
    pub(super) hollow: Hollow,
    /// Whether all of the root is looked at.
    pub(super) whole: bool,
    /// Something was not as it was a moment before: nothing can be said to be gone.
    pub(super) unsettled: bool,
    pub(super) result: Scan,
}

impl<'a> Walk<'a> {
    pub(super) fn new(root: &'a Root, index: &'a mut dyn LocalIndex, options: &'a ScanOptions) -> Self {
        Self {
            root,
            index,
            options,
            jobs: Vec::new(),
            pending: Vec::new(),
            visited: HashSet::new(),
            replaced: Vec::new(),
            moved: HashMap::new(),
            listed: Vec::new(),
            found: Vec::new(),
            names_asked: 0,
            vanished: HashMap::new(),
            displaced: HashSet::new(),
            claimed: HashSet::new(),
            holding: Holding::default(),
            dropped: Vec::new(),
            hollow: Hollow::default(),
            whole: false,
            unsettled: false,
            result: Scan { complete: true, ..Scan::default() },
        }
    }

    /// Lists all of `scope`, and all that comes to light below it.
    pub(super) fn run(&mut self, scope: &Scope) -> Result<(), ScanError> {
        match scope {
            Scope::Whole => {
                self.whole = true;
                self.ask(&Rel::root(), true)?;
            }
            Scope::Folders(folders) => {
                let mut folders = folders.clone();
                // Those with all below first, so that none is listed twice; parents before their children.
                folders.sort_by(|a, b| (!a.deep, &a.folder).cmp(&(!b.deep, &b.folder)));
                for ScopeFolder { folder, deep } in folders {
                    self.ask(&folder, deep)?;
                }
                for folder in self.options.misnamed.folders() {
                    self.ask(&folder, false)?;
                }
            }
        }
        loop {
            self.list_jobs()?;
            if self.pending.is_empty() && !self.ask_other_names()? {
                let replaced = std::mem::take(&mut self.replaced);
                replaced.into_iter().for_each(|record| self.vanish(record));
                return Ok(());
            }
            self.decide_some()?;
        }
    }

    /// A file that has changed has so under all its names: has the folders listed in which there are others. Says
    /// whether there were any.
    fn ask_other_names(&mut self) -> Result<bool, ScanError> {
        let mut folders = BTreeSet::new();
        for file in &self.found[self.names_asked..] {
            let Object { links, stamp, .. } = file.object;
            if links < 2 {
                continue;
            }
            for other in self.index.by_identity_all(stamp.identity) {
                if other.stamp != stamp
                    && !self.visited.contains(&other.place.parent)
                    && let Some(rel) = self.path_of(&other)
                {
                    folders.extend(rel.parent());
                }
            }
        }
        self.names_asked = self.found.len();
        for folder in &folders {
            self.ask(folder, false)?;
        }
        Ok(!folders.is_empty())
    }

    fn ask(&mut self, folder: &Rel, deep: bool) -> Result<(), ScanError> {
        let mut node = ROOT;
        let mut rel = Rel::root();
        let mut expected = None;
        let mut whole = true;
        for name in folder.names() {
            let known = self.index.at(node, name).filter(|known| known.kind == Kind::Folder);
            let (Some(known), Ok(below)) = (known, rel.join(name)) else {
                whole = false;
                break;
            };
            (node, rel, expected) = (known.node, below, Some(known.stamp));
        }
        self.jobs.push(Job { node, rel, expected, above: None, deep: deep && whole, asked: true });
        self.list_jobs()
    }

    fn list_jobs(&mut self) -> Result<(), ScanError> {
        while let Some(job) = self.jobs.pop() {
            if self.options.stop.is_cancelled() {
                return Err(ScanError::Stopped);
            }
            if self.visited.insert(job.node) {
                self.list_job(job)?;
            }
        }
        Ok(())
    }

    fn list_job(&mut self, job: Job) -> Result<(), ScanError> {
        let opened = self.root.open_folder(&job.rel).and_then(|fd| {
            let object = self.root.object_of_fd(fd.as_fd())?;
            Ok((fd, object))
        });
        let (fd, object) = match opened {
            Ok((fd, object))
                if job.expected.is_none_or(|expected| expected.identity == object.stamp.identity) =>
            {
                (fd, object)
            }
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) if job.asked => {
                self.visited.remove(&job.node);
                if let Some(parent) = job.rel.parent() {
                    return self.ask(&parent, false);
                }
                return Err(DiskError::Vanished(job.rel).into());
            }
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                // It was there a moment ago.
                self.unsettled = true;
                let folder = job.rel.parent().unwrap_or_default();
                self.result.again.push(ScopeFolder { folder, deep: false });
                return Ok(());
            }
            Err(errno) => return self.unlisted(&job, errno),
        };
        let fresh = is_fresh(&object.stamp, now_ns());
        match list(fd.as_fd(), &self.root.home()) {
            Ok(entries) => {
                self.result.counts.folders += 1;
                let fresh = fresh.then(|| fingerprint(&entries));
                self.listed.push(Listed { rel: job.rel.clone(), stamp: object.stamp, fresh });
                self.sort(&job, &fd, &entries)
            }
            Err(errno) => self.unlisted(&job, errno),
        }
    }

    /// A known folder cannot be listed: what is in it stays as it was known.
    fn unlisted(&mut self, job: &Job, errno: Errno) -> Result<(), ScanError> {
        if job.rel.is_root() {
            return Err(DiskError::of(&job.rel, errno).into());
        }
        self.unread(job, Why::of_errno(errno));
        Ok(())
    }

    fn unread(&mut self, job: &Job, why: Why) {
        self.result.complete = false;
        self.result.unread.insert(job.rel.clone(), job.node);
        self.skip(job.rel.to_string(), why);
    }

    pub(super) fn skip(&mut self, path: String, why: Why) {
        self.result.counts.skipped += 1;
        if self.result.skipped.len() < SKIPPED_MAX {
            self.result.skipped.push(Skipped { path, why });
        }
    }

    /// The rules in a known folder cannot be read, for one above it cannot be opened: what is in it stays as it was
    /// known.
    fn unruled(&mut self, job: &Job, error: DiskError) {
        if let DiskError::Vanished(_) | DiskError::Changed(_) = error {
            // It was there a moment ago.
            self.unsettled = true;
            let folder = job.rel.parent().unwrap_or_default();
            self.result.again.push(ScopeFolder { folder, deep: false });
            return;
        }
        self.unread(job, Why::of_disk(error));
    }

    fn level(&self, job: &Job, fd: &OwnedFd, has_rules: bool) -> Result<Level, DiskError> {
        Ok(match (&job.above, job.rel.split()) {
            (_, None) => self.options.rules.top(fd.as_fd()),
            (Some(above), Some((_, name))) if has_rules => above.enter(fd.as_fd(), name),
            (Some(above), Some((_, name))) => above.enter_without(name),
            (None, Some(_)) => self.options.rules.level_of(self.root, &job.rel)?,
        })
    }

    /// Tells what is in a listed folder apart.
    fn sort(&mut self, job: &Job, fd: &OwnedFd, entries: &[Entry]) -> Result<(), ScanError> {
        if !job.rel.is_root() && is_root_of_its_own(fd, entries) {
            self.skip(job.rel.to_string(), Why::OtherRoot);
            return Ok(());
        }
        if let Some(what) = own_data::folder(fd.as_fd(), job.rel.name(), entries)
            && !job.rel.is_root()
        {
            self.skip(job.rel.to_string(), Why::Own(what));
            self.hollow.ignored(job.node, 1);
            return Ok(());
        }
        let mut known: HashMap<String, LocalRecord> = self
            .index
            .children(job.node)
            .into_iter()
            .map(|record| (record.place.name.clone(), record))
            .collect();
        let rules = entries.iter().find(|entry| entry.name == IGNORE_FILE);
        let rules_known = known.get(IGNORE_FILE).map(|record| record.stamp);
        // With other rules, what was ignored before may not be, at any depth.
        let deep = job.deep || rules.map(|entry| entry.object.stamp) != rules_known;
        let level = match self.level(job, fd, rules.is_some()) {
            Ok(level) => level,
            Err(error) => {
                self.unruled(job, error);
                return Ok(());
            }
        };
        self.tell_unknown_rules(&job.rel, &level);
        let unsent = self.index.children_unsent(job.node);
        let is_unknown = level.is_unknown();
        let folder = Sorting { job, level, is_unknown, beside: Beside::new(entries), unsent, deep };
        self.name_unsendable(&job.rel, entries);
        let mut ignored = 0;
        for entry in entries {
            let known = entry.name.to_str().and_then(|name| known.remove(name));
            ignored += u64::from(self.sort_entry(&folder, entry, known));
        }
        self.count_ignored(job, ignored);
        known.into_values().for_each(|record| self.vanish(record));
        Ok(())
    }

    /// Says whether it is ignored.
    fn sort_entry(&mut self, folder: &Sorting<'_>, entry: &Entry, known: Option<LocalRecord>) -> bool {
        let (job, object) = (folder.job, entry.object);
        // What cannot be sent has been named.
        let Some(name) = entry.name.to_str() else { return false };
        if job.rel.is_root() && name == STATE_FOLDER {
            return false;
        }
        let Ok(rel) = job.rel.join(name) else { return false };
        if self.is_instead_of_held(known.as_ref(), &object, &rel) {
            return false;
        }
        match object.kind {
            ObjectKind::Special => self.skip(rel.to_string(), Why::Special),
            ObjectKind::MountPoint
                if known.is_none()
                    && folder.level.judge(name, ObjectKind::Folder, &folder.beside).is_some() =>
            {
                return true;
            }
            ObjectKind::MountPoint => self.skip(rel.to_string(), Why::MountPoint),
            kind => {
                // Something of another kind at its place is new.
                let known = self.same_kind(known, kind);
                let is_unsent = known.as_ref().is_some_and(|known| folder.unsent.contains(&known.node));
                let judged = self.judge(known, is_unsent, &object, || {
                    folder.is_unknown || folder.level.judge(name, kind, &folder.beside).is_some()
                });
                let Some((known, only_moved)) = judged else { return !folder.is_unknown };
                let at = At { parent: job.node, rel, object, only_moved, is_unsent };
                match kind {
                    ObjectKind::Folder => self.sort_folder(at, known, &folder.level, folder.deep),
                    _ => self.sort_file(at, known),
                }
            }
        }
        false
    }

    fn count_ignored(&mut self, job: &Job, count: u64) {
        self.result.counts.ignored += count;
        self.hollow.ignored(job.node, count);
        let is_told = !self.whole || count > 0;
        if self.result.ignored.len() < IGNORED_FOLDERS_MAX {
            self.result.ignored.extend(is_told.then(|| (job.rel.to_string(), count)));
        } else if let Some((_folder, sum)) = self.result.ignored.last_mut() {
            *sum += count;
        }
    }

    fn sort_folder(&mut self, at: At, known: Option<LocalRecord>, level: &Level, deep: bool) {
        let At { parent, rel, object, only_moved, is_unsent } = at;
        match known {
            Some(known) if known.stamp.identity == object.stamp.identity => {
                let node = known.node;
                if deep && is_unsent {
                    self.hollow.is_unsent(node, parent);
                } else {
                    self.hollow.holds(parent, rel.name());
                }
                if known.stamp.mode != object.stamp.mode {
                    self.put_folder(node, known.place.clone(), object, Some(&known));
                }
                if deep {
                    let (expected, above) = (Some(object.stamp), Some(level.clone()));
                    self.jobs.push(Job { node, rel, expected, above, deep, asked: false });
                }
            }
            known => {
                if let Some(known) = &known {
                    self.displaced.insert(known.node);
                }
                let place = Place { parent, name: rel.name().to_owned() };
                let above = level.clone();
                self.pending.push(Pending { rel, place, object, above, known, only_moved });
            }
        }
    }

    fn sort_file(&mut self, at: At, known: Option<LocalRecord>) {
        let At { parent, rel, object, only_moved, .. } = at;
        self.hollow.holds(parent, rel.name());
        self.result.counts.files += 1;
        let is_stale = self.options.writers.as_ref().is_some_and(|writers| writers.is_stale(&rel));
        let is_same = |known: &LocalRecord| known.stamp == object.stamp && is_kind(known, object.kind);
        if !is_stale && known.as_ref().is_some_and(is_same) {
            return;
        }
        let same = known.as_ref().is_some_and(|known| known.stamp.identity == object.stamp.identity);
        if let (Some(known), false) = (&known, same) {
            self.displaced.insert(known.node);
        }
        let place = Place { parent, name: rel.name().to_owned() };
        let known = known.map(Box::new);
        let previous = if same { known.clone() } else { None };
        self.found.push(Found { rel, place, object, known, previous, only_moved });
    }

    /// What was known at a place, if it is of the kind that is there now; else it has vanished.
    fn same_kind(&mut self, known: Option<LocalRecord>, kind: ObjectKind) -> Option<LocalRecord> {
        let known = known?;
        if is_kind(&known, kind) {
            return Some(known);
        }
        self.vanish(known);
        None
    }

    /// A node is not at its place; it may have been found elsewhere before.
    fn vanish(&mut self, record: LocalRecord) {
        if !self.claimed.contains(&record.node) {
            self.vanished.insert(record.node, record);
        }
    }

    fn put_folder(&mut self, node: NodeId, place: Place, object: Object, known: Option<&LocalRecord>) {
        let stamp = object.stamp;
        let attributes = attributes_of(&stamp, &Kind::Folder, known, self.options.takes_modes);
        self.result.updates.push(LocalUpdate::Put(LocalRecord {
            node,
            place,
            kind: Kind::Folder,
            attributes,
            stamp,
        }));
    }

    /// Decides what can be decided of the pending folders. See the module.
    fn decide_some(&mut self) -> Result<(), ScanError> {
        let mut left = Vec::new();
        for folder in std::mem::take(&mut self.pending) {
            if self.is_instead_of_held(folder.known.as_ref(), &folder.object, &folder.rel) {
                continue;
            }
            match self.mover(&folder) {
                Some(record) => {
                    self.claimed.insert(record.node);
                    self.vanished.remove(&record.node);
                    self.moved.insert(record.node, folder.place.clone());
                    self.hollow.holds(folder.place.parent, &folder.place.name);
                    self.place_folder(record.node, folder);
                }
                // Ignored, after all.
                None if folder.only_moved => {}
                None => left.push(folder),
            }
        }
        if !self.jobs.is_empty() {
            self.pending = left;
            return Ok(());
        }
        let (new, replacing): (Vec<_>, Vec<_>) = left.into_iter().partition(|folder| folder.known.is_none());
        if !new.is_empty() {
            self.pending = replacing;
            for folder in new {
                self.place_new_folder(folder);
            }
            return Ok(());
        }
        for folder in replacing {
            match folder.known.as_ref().map(|known| known.node) {
                Some(node) if !self.claimed.contains(&node) => {
                    self.displaced.remove(&node);
                    self.place_folder(node, folder);
                }
                _ => self.place_new_folder(folder),
            }
        }
        Ok(())
    }

    fn place_new_folder(&mut self, folder: Pending) {
        match self.root.open_folder(&folder.rel) {
            // Nothing is to come into it.
            Ok(fd) if has_marker(&fd) => self.skip(folder.rel.to_string(), Why::OtherRoot),
            Ok(_readable) => {
                let node = self.index.new_node();
                self.hollow.is_new(node, folder.place.parent);
                self.place_folder(node, folder);
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                let again = folder.rel.parent().unwrap_or_default();
                self.result.again.push(ScopeFolder { folder: again, deep: false });
            }
            Err(errno) => {
                self.skip(folder.rel.to_string(), Why::of_errno(errno));
            }
        }
    }

    fn place_folder(&mut self, node: NodeId, folder: Pending) {
        let known = self.index.node(node);
        if let Some(known) = folder.known
            && known.node != node
        {
            self.replaced.push(known);
        }
        self.put_folder(node, folder.place, folder.object, known.as_ref());
        let (expected, above) = (Some(folder.object.stamp), Some(folder.above));
        self.jobs.push(Job { node, rel: folder.rel, expected, above, deep: true, asked: false });
    }
}

pub(super) fn is_kind(record: &LocalRecord, kind: ObjectKind) -> bool {
    match record.kind {
        Kind::Folder => kind == ObjectKind::Folder,
        Kind::File(_) => kind == ObjectKind::File,
        Kind::Symlink(_) => kind == ObjectKind::Symlink,
    }
}

/// A number that two listings share if the same objects are at the same names.
pub(super) fn fingerprint(entries: &[Entry]) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let each = entries.iter().map(|entry| hasher.hash_one((&entry.name, entry.object.stamp.identity)));
    each.fold(0, u64::wrapping_add)
}

/// Whether a folder has a marker.
fn is_root_of_its_own(fd: &OwnedFd, entries: &[Entry]) -> bool {
    entries.iter().any(|entry| entry.name == STATE_FOLDER) && has_marker(fd)
}

fn has_marker(fd: &OwnedFd) -> bool {
    beneath::stat_at(fd.as_fd(), ".keepstone/root".as_ref(), AtFlags::empty()).is_ok()
}
