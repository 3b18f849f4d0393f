//! Reads what was found to be new or changed, by several threads; then tells what moved by content, and what is gone.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use engine::cutter::Cutter;
use engine::ids::ContentId;
use rustix::io::Errno;

use super::folders::{Found, Listed, Walk, fingerprint};
use super::{HASH_THREADS_MAX, Reading, Scan, ScanError, ScopeFolder, Why};
use crate::local::disk::{DiskError, ObjectKind};
use crate::local::hash::HashError;
use crate::local::list::list;
use crate::local::model::{LocalRecord, LocalUpdate, NO_CTIME_NS, Stamp, attributes_of};
use crate::local::own_data;
use crate::local::rel::Rel;
use crate::planner::model::{FileContent, Kind, NodeId, Place};

/// A clock of a file system may be behind the machine's by this much: what was changed within it can change once more
/// without another stamp.
const GRANULARITY_NS: i64 = 20_000_000;
/// As above, for file systems that keep whole or even seconds.
const GRANULARITY_COARSE_NS: i64 = 2_000_000_000;

/// What was read.
type Read = Result<Content, HashError>;

struct Content {
    kind: Kind,
    stamp: Stamp,
    /// Before the first byte was read.
    began_ns: i64,
    began: Instant,
    /// Somebody stores into it just now: its time may not change with the next store.
    stored: bool,
    /// It signs a device in.
    is_profile: bool,
}

/// The cutter of each file, or `None` for a symlink.
fn cutters(walk: &Walk<'_>) -> Vec<Option<Cutter>> {
    // A new file may be one that vanished elsewhere: then it is cut as that was, to be compared.
    let mut vanished = HashMap::new();
    for record in walk.vanished.values() {
        if let Kind::File(file) = &record.kind {
            vanished.insert(file.size, file.cutter);
        }
    }
    let cutter_of = |file: &Found| {
        let size = file.object.stamp.size;
        match file.previous.as_ref().map(|previous| &previous.kind) {
            Some(Kind::File(previous)) => Cutter::for_new_version(previous.cutter, size),
            _ => vanished.get(&size).copied().unwrap_or_else(|| Cutter::for_size(size)),
        }
    };
    walk.found.iter().map(|file| (file.object.kind == ObjectKind::File).then(|| cutter_of(file))).collect()
}

/// Reads all that was found, and makes updates of it.
pub(super) fn read(walk: &mut Walk<'_>) -> Result<(), ScanError> {
    let cutters = cutters(walk);
    let results = read_all(walk, &cutters);
    let found = std::mem::take(&mut walk.found);
    let mut new = Vec::new();
    for (file, result) in found.into_iter().zip(results) {
        let error = match result {
            Ok(content) if content.is_profile && !is_known_as(&file, &content.kind) => {
                skip_profile(walk, file);
                continue;
            }
            Ok(content) => {
                accept(walk, file, content, &mut new);
                continue;
            }
            Err(HashError::Stopped) => return Err(ScanError::Stopped),
            Err(error) => error,
        };
        match error {
            HashError::StillChanging(_) => {
                walk.skip(file.rel.to_string(), Why::StillChanging);
                look_again(walk, &file);
            }
            // It went away under our hands: the next scan says what became of it.
            HashError::Disk(DiskError::Vanished(_) | DiskError::Changed(_)) => look_again(walk, &file),
            error => walk.skip(file.rel.to_string(), why_of_read(error)),
        }
        place_unread(walk, file);
    }
    match_by_content(walk, new);
    Ok(())
}

/// Whether a file was known with this content.
fn is_known_as(file: &Found, kind: &Kind) -> bool {
    file.previous.as_ref().is_some_and(|previous| previous.kind == *kind)
}

/// A token is not sent, also not as a new version of what was something else: that stays as it was known.
fn skip_profile(walk: &mut Walk<'_>, file: Found) {
    let is_known = file.previous.is_some();
    let why = if is_known { Why::OwnNow(own_data::PROFILE) } else { Why::OwnFile(own_data::PROFILE) };
    walk.skip(file.rel.to_string(), why);
    place_unread(walk, file);
}

fn why_of_read(error: HashError) -> Why {
    match error {
        HashError::Disk(error) => Why::of_disk(error),
        other => Why::Io(other.to_string()),
    }
}

/// A file that was moved and cannot be read is where it is, with the content it had: the place that it left may be
/// taken. Its stamp makes the next scan read it.
fn place_unread(walk: &mut Walk<'_>, file: Found) {
    if let Some(previous) = file.previous
        && previous.place != file.place
    {
        let stamp = Stamp { ctime_ns: NO_CTIME_NS, ..previous.stamp };
        walk.result.updates.push(LocalUpdate::Put(LocalRecord { place: file.place, stamp, ..*previous }));
    }
}

fn look_again(walk: &mut Walk<'_>, file: &Found) {
    let folder = file.rel.parent().unwrap_or_default();
    walk.result.again.push(ScopeFolder { folder, deep: false });
}

fn read_all(walk: &Walk<'_>, cutters: &[Option<Cutter>]) -> Vec<Read> {
    let next = AtomicUsize::new(0);
    let (root, found, stop) = (walk.root, &walk.found, &walk.options.stop);
    let (unquiet, writers) = (walk.options.unquiet.as_ref(), walk.options.writers.as_ref());
    let one = |at: usize| -> Read {
        let rel = &found[at].rel;
        if unquiet.is_some_and(|unquiet| unquiet.contains(rel)) {
            return Err(HashError::StillChanging(rel.clone()));
        }
        let (began_ns, began) = (now_ns(), Instant::now());
        let is_known_file = cutters[at].is_some() && found[at].previous.is_some();
        let may_store = match writers {
            Some(writers) if is_known_file => writers.may_store(rel, began),
            Some(writers) => writers.contains(rel),
            None => false,
        };
        let before = may_store.then(|| root.write_back(rel)).transpose()?;
        let (kind, stamp, is_profile) = match cutters[at] {
            Some(cutter) => {
                let read = root.hash(rel, |_size| cutter, stop)?;
                (Kind::File(read.content), read.stamp, read.is_profile)
            }
            None => {
                let (target, stamp) = root.read_symlink(rel)?;
                (Kind::Symlink(target), stamp, false)
            }
        };
        let stored = before.is_some_and(|before| before != stamp);
        Ok(Content { kind, stamp, began_ns, began, stored, is_profile })
    };
    let work = || {
        let mut read = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= found.len() {
                return read;
            }
            read.push((at, one(at)));
        }
    };
    let threads = walk.options.hash_threads.clamp(1, HASH_THREADS_MAX).min(walk.found.len() / 8 + 1);
    let mut all: Vec<(usize, Read)> = if threads == 1 {
        work()
    } else {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    };
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, read)| read).collect()
}

pub(super) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Whether a file or folder with this stamp can change within the same tick of the clock that the stamp is of.
pub(super) fn is_fresh(stamp: &Stamp, now_ns: i64) -> bool {
    let coarse = stamp.ctime_ns % 1_000_000_000 == 0;
    let granularity = if coarse { GRANULARITY_COARSE_NS } else { GRANULARITY_NS };
    // A time in the future is of another clock, or was set by somebody, and tells nothing.
    let is_now =
        |time_ns: i64| time_ns <= now_ns + GRANULARITY_NS && now_ns.saturating_sub(time_ns) < granularity;
    is_now(stamp.ctime_ns) || is_now(stamp.mtime_ns)
}

/// Makes an update of a file that was read; new files are put aside.
fn accept(walk: &mut Walk<'_>, file: Found, content: Content, new: &mut Vec<LocalRecord>) {
    let Content { kind, stamp, began_ns, began, stored, is_profile: _ } = content;
    if walk.options.writers.as_ref().is_some_and(|writers| writers.is_stale(&file.rel)) {
        let node = file.previous.as_ref().map(|previous| previous.node);
        walk.result.read.push(Reading { rel: file.rel.clone(), node, began });
    }
    walk.result.counts.hashed += 1;
    walk.result.counts.hashed_bytes += stamp.size;
    let takes_modes = walk.options.takes_modes;
    let attributes = attributes_of(&stamp, &kind, None, takes_modes);
    let mut record = LocalRecord { node: NodeId(0), place: file.place.clone(), kind, attributes, stamp };
    if stored || is_fresh(&stamp, began_ns) {
        record.stamp.ctime_ns = NO_CTIME_NS;
        look_again(walk, &file);
    }
    match file.previous {
        Some(previous) if is_still(&previous, &record) => {
            record.node = previous.node;
            record.attributes = attributes_of(&stamp, &record.kind, Some(&previous), takes_modes);
            if record != *previous {
                walk.result.updates.push(LocalUpdate::Put(record));
            }
        }
        Some(previous) => {
            // The inode number was given anew, after all.
            walk.claimed.remove(&previous.node);
            walk.vanished.insert(previous.node, *previous);
            if !file.only_moved {
                new.push(record);
            }
        }
        None => new.push(record),
    }
}

/// Whether a file is the node that its inode says: where there is no time of birth, one that moved must have the same
/// content.
fn is_still(previous: &LocalRecord, record: &LocalRecord) -> bool {
    previous.place == record.place || record.stamp.identity.born_ns != 0 || previous.kind == record.kind
}

type ContentKey = (ContentId, u64, Cutter);

fn key_of(file: &FileContent) -> ContentKey {
    (file.content, file.size, file.cutter)
}

/// A new file with the content of exactly one that vanished, and no other new one with it: moved.
fn match_by_content(walk: &mut Walk<'_>, new: Vec<LocalRecord>) {
    let mut by_content: HashMap<ContentKey, (usize, Vec<NodeId>)> = HashMap::new();
    for record in &new {
        if let Kind::File(file) = &record.kind
            && file.size > 0
        {
            by_content.entry(key_of(file)).or_default().0 += 1;
        }
    }
    if !by_content.is_empty() {
        for (node, file) in vanished_files(walk) {
            if let Some((_, nodes)) = by_content.get_mut(&key_of(&file)) {
                nodes.push(node);
            }
        }
    }
    for mut record in new {
        let moved = match &record.kind {
            Kind::File(file) => match by_content.get(&key_of(file)) {
                Some((1, nodes)) if nodes.len() == 1 => nodes.first().copied(),
                _ => None,
            },
            _ => None,
        };
        record.node = match moved {
            Some(node) => {
                walk.claimed.insert(node);
                let was = walk.vanished.remove(&node);
                if !walk.options.takes_modes {
                    let known = was.or_else(|| walk.index.node(node));
                    record.attributes = attributes_of(&record.stamp, &record.kind, known.as_ref(), false);
                }
                node
            }
            None => walk.index.new_node(),
        };
        walk.result.updates.push(LocalUpdate::Put(record));
    }
}

/// All files that vanished, also those in folders that did, but for those that were found elsewhere.
fn vanished_files(walk: &Walk<'_>) -> Vec<(NodeId, FileContent)> {
    let mut files = Vec::new();
    let mut left: Vec<LocalRecord> = walk.vanished.values().cloned().collect();
    while let Some(record) = left.pop() {
        match &record.kind {
            _ if walk.claimed.contains(&record.node) => {}
            Kind::File(file) => files.push((record.node, *file)),
            Kind::Symlink(_) => {}
            Kind::Folder => left.extend(walk.index.children(record.node)),
        }
    }
    files
}

impl Walk<'_> {
    /// Says what is gone, if that can be said, and ends the scan.
    pub(super) fn finish(mut self) -> Result<Scan, ScanError> {
        if !self.vanished.is_empty() {
            let changed = self.changed_since_listed();
            if !changed.is_empty() {
                self.unsettled = true;
                self.result.again.extend(changed);
            }
        }
        let gone: Vec<NodeId> =
            if self.unsettled { self.replaced() } else { self.vanished.keys().copied().collect() };
        self.result.left = self.left(&gone);
        self.result.updates.extend(gone.into_iter().map(LocalUpdate::Gone));
        let dropped = std::mem::take(&mut self.dropped).into_iter();
        let dropped =
            dropped.filter(|node| !self.claimed.contains(node) && !self.vanished.contains_key(node));
        self.result.updates.extend(dropped.map(LocalUpdate::Gone));
        self.hollow.leave_out(&mut self.result.updates);
        self.spare_held();
        if self.unsettled {
            let folders = self.vanished.values().filter_map(|record| self.path_of(record)?.parent());
            let again: Vec<_> = folders.map(|folder| ScopeFolder { folder, deep: false }).collect();
            self.result.again.extend(again);
        }
        self.root.check(false)?;
        self.keep_misnamed();
        self.result.again.sort();
        self.result.again.dedup();
        Ok(self.result)
    }

    /// Where the folders were that are `gone`, or moved.
    fn left(&self, gone: &[NodeId]) -> Vec<Rel> {
        let left: HashSet<NodeId> = self.moved.keys().chain(gone).copied().collect();
        let known = left.iter().filter_map(|node| self.index.node(*node));
        let topmost =
            known.filter(|record| record.kind == Kind::Folder && !left.contains(&record.place.parent));
        topmost.filter_map(|record| self.path_of(&record)).collect()
    }

    /// Vanished nodes at whose place another one was found: two cannot be at one place.
    fn replaced(&self) -> Vec<NodeId> {
        let places: HashSet<&Place> = self
            .result
            .updates
            .iter()
            .filter_map(|update| match update {
                LocalUpdate::Put(record) => Some(&record.place),
                LocalUpdate::Gone(_) => None,
            })
            .collect();
        let vanished = self.vanished.values().filter(|record| places.contains(&record.place));
        vanished.map(|record| record.node).collect()
    }

    /// Folders that are not as they were when they were listed: something that vanished may have come into them.
    fn changed_since_listed(&self) -> Vec<ScopeFolder> {
        let is_as_it_was = |folder: &Listed| {
            let fd = self.root.open_folder(&folder.rel)?;
            if self.root.object_of_fd(fd.as_fd())?.stamp != folder.stamp {
                return Ok(false);
            }
            match folder.fresh {
                None => Ok(true),
                // Its times do not tell whether it changed: what is in it does.
                Some(before) => Ok::<_, Errno>(fingerprint(&list(fd.as_fd(), &self.root.home())?) == before),
            }
        };
        let changed = self.listed.iter().filter(|folder| is_as_it_was(folder) != Ok(true));
        changed.map(|folder| ScopeFolder { folder: folder.rel.clone(), deep: false }).collect()
    }
}
