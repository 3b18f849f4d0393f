//! The watcher on Linux, by inotify itself rather than a crate around it (docs/decisions/0005): each folder has a
//! watch; a folder that is renamed keeps it, and with it all below.
//!
//! Invariants:
//! - `folders` holds each watch that the kernel has, and the folder's place by the watch of the folder it is in.
//! - Events are old news: what is at a path now may be another folder than the one that the event is about. So events
//!   alone move watches; and each place where a folder came or went is looked at once all events are taken in, and the
//!   watch found there is right. Whoever changes a place after that causes an event, and so a further look.
//! - Opening and reading do not count as events: a scan does not wake the watcher.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use super::debounce::Due;
use super::{Notice, Unquiet, WatchError, Writers};
use crate::local::beneath;
use crate::local::rel::{Rel, STATE_FOLDER};
use crate::local::root::Root;
use crate::local::scan::{Scope, ScopeFolder};

/// Bytes of events read at once.
const BUFFER_BYTES: usize = 64 * 1024;
/// Folders of one hint; more become one of everything.
const FOLDERS_MAX: usize = 1_000;
/// Folders on one path.
const DEPTH_MAX: usize = 2_048;
/// Reads after which a place is looked at, if no folder is found there: one above it may have moved, whose event is yet
/// to be read.
const LOOKS_MAX: u8 = 8;
/// Times that places are looked at after one read, as long as that moves watches.
const ROUNDS_MAX: usize = 16;
/// Places to be looked at; more become one walk through everything.
const UNSURE_MAX: usize = 100_000;
/// A hint that could not be sent, for nobody takes them, is tried again after this.
const RETRY: std::time::Duration = std::time::Duration::from_millis(20);

/// A watched folder.
#[derive(Debug)]
struct Watched {
    /// The watch of the folder it is in; `None` for the root.
    parent: Option<i32>,
    name: Box<str>,
}

/// A name that went away, and may come back under another one with the same cookie.
struct Left {
    cookie: u32,
    /// The watch of the folder it was in.
    parent: i32,
    name: Box<str>,
    is_folder: bool,
}

/// What a look at a place found.
enum Found {
    /// No folder that can be watched.
    Nothing,
    /// The folder that was taken to be there.
    Same,
    /// Another one, which is taken to be there now.
    Other,
}

struct State {
    root: Arc<Root>,
    inotify: AsyncFd<OwnedFd>,
    folders: HashMap<i32, Watched>,
    by_place: HashMap<(i32, Box<str>), i32>,
    root_watch: i32,
    moved_from: Option<Left>,
    /// Places to be looked at, by the watch of the folder they are in, with the looks that are left.
    unsure: HashMap<(i32, Box<str>), u8>,
    /// Watches whose place was given to another one.
    displaced: Vec<i32>,
    unquiet: Unquiet,
    writers: Writers,
    /// New folders: hinted at with all below, once they are quiet.
    deep: HashMap<Rel, ()>,
    notices: mpsc::Sender<Notice>,
    waiting: Option<Notice>,
    limited: bool,
    limit_told: bool,
    gone: bool,
}

fn flags() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MODIFY
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::ATTRIB
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::ONLYDIR
        | WatchFlags::EXCL_UNLINK
}

/// Watches all folders, then starts the thread.
pub(super) fn start(
    root: Arc<Root>,
    notices: mpsc::Sender<Notice>,
    (unquiet, writers): (Unquiet, Writers),
    stop: CancellationToken,
) -> Result<std::thread::JoinHandle<()>, WatchError> {
    let fd = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(std::io::Error::from)?;
    let path = beneath::path_of_fd(root.fd());
    let own = flags() | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    let root_watch = add_watch(&fd, path.as_str(), own).map_err(std::io::Error::from)?;
    let runtime = tokio::runtime::Handle::current();
    let inotify = {
        let _entered = runtime.enter();
        #[expect(deprecated, reason = "what is in its place is unsafe; an OwnedFd keeps what that asks for")]
        AsyncFd::new(fd)?
    };
    let mut state = State {
        root,
        inotify,
        folders: HashMap::from([(root_watch, Watched { parent: None, name: "".into() })]),
        by_place: HashMap::new(),
        root_watch,
        moved_from: None,
        unsure: HashMap::new(),
        displaced: Vec::new(),
        unquiet,
        writers,
        deep: HashMap::new(),
        notices,
        waiting: None,
        limited: false,
        limit_told: false,
        gone: false,
    };
    state.watch_below(root_watch, &Rel::root());
    let thread = std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || runtime.block_on(state.run(stop)))?;
    Ok(thread)
}

impl State {
    /// Until it is stopped, or the root is gone.
    async fn run(mut self, stop: CancellationToken) {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        while !self.gone {
            self.tell();
            let due = match (&self.waiting, self.unquiet.with(|changes| changes.next_due())) {
                (Some(_), _) => Some(Instant::now() + RETRY),
                (None, due) => due,
            };
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = wait => {}
                ready = self.inotify.readable() => match ready {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_ended) => return,
                }
            }
            self.read(&mut buffer);
        }
        drop(self.notices.send(Notice::RootGone).await);
    }

    /// Sends what is due, if it can be sent.
    fn tell(&mut self) {
        if self.limited && !self.limit_told {
            self.limit_told =
                self.notices.try_send(Notice::LimitReached { watched: self.folders.len() }).is_ok();
        }
        if self.waiting.is_none() {
            let due = self.unquiet.with(|changes| changes.take_due(Instant::now()));
            self.waiting = due.map(|due| Notice::Scan(self.scope(due)));
        }
        if let Some(notice) = self.waiting.take() {
            match self.notices.try_send(notice) {
                Ok(()) | Err(TrySendError::Closed(_)) => {}
                Err(TrySendError::Full(notice)) => self.waiting = Some(notice),
            }
        }
    }

    fn scope(&mut self, due: Due<Rel>) -> Scope {
        let Due::Keys(keys) = due else {
            self.deep.clear();
            return Scope::Whole;
        };
        let mut folders: HashMap<Rel, bool> = HashMap::new();
        for key in keys {
            if self.deep.remove(&key).is_some() {
                folders.insert(key.clone(), true);
            }
            folders.entry(key.parent().unwrap_or_default()).or_default();
        }
        if folders.len() > FOLDERS_MAX {
            return Scope::Whole;
        }
        let mut folders: Vec<_> =
            folders.into_iter().map(|(folder, deep)| ScopeFolder { folder, deep }).collect();
        folders.sort();
        Scope::Folders(folders)
    }

    /// Takes in all events that there are.
    fn read(&mut self, buffer: &mut [MaybeUninit<u8>]) {
        let Ok(fd) = self.inotify.get_ref().try_clone() else { return };
        let mut reader = Reader::new(fd, buffer);
        let now = Instant::now();
        let mut heard = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    heard = true;
                    let name = event.file_name().map(|name| name.to_bytes().to_vec());
                    self.take_in(event.wd(), event.events(), event.cookie(), name.as_deref(), now);
                    if self.unsure.len() > UNSURE_MAX {
                        self.settle(now);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => break,
                Err(error) => {
                    tracing::warn!(%error, "the watcher cannot be read");
                    self.unquiet.with(|changes| changes.note_everything(now));
                    break;
                }
            }
        }
        if heard {
            self.settle(now);
        }
    }

    fn take_in(&mut self, watch: i32, events: ReadFlags, cookie: u32, name: Option<&[u8]>, now: Instant) {
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.settle_moved_from();
            self.look_at_everything(now);
            return;
        }
        if events.contains(ReadFlags::IGNORED) {
            self.forget(watch);
            return;
        }
        let Some(name) = name else {
            if watch == self.root_watch {
                let lost = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT;
                self.gone |= events.intersects(lost);
            }
            return;
        };
        if watch == self.root_watch && name == STATE_FOLDER.as_bytes() {
            // With the marker in it. A root that is deleted tells of itself by this alone, for it is open here.
            self.gone |= events.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM);
            return;
        }
        let Some(folder) = self.rel_of(watch) else { return };
        let Some((name, rel)) =
            std::str::from_utf8(name).ok().and_then(|name| Some((name, folder.join(name).ok()?)))
        else {
            // The scan says why it is skipped.
            self.unquiet.with(|changes| changes.note(folder.join("?").unwrap_or_default(), now));
            return;
        };
        self.writers.heard(&rel, now);
        if events.contains(ReadFlags::MODIFY) {
            // Not before it was told of, however long this queue is: a reading may have begun in between.
            self.writers.written(&rel, Instant::now());
        } else if events.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            self.writers.closed(&rel, now);
        }
        if events.contains(ReadFlags::DELETE) {
            self.writers.deleted(&rel);
        }
        let is_folder = events.contains(ReadFlags::ISDIR);
        if is_folder && events.intersects(ReadFlags::CREATE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO) {
            self.unsure.insert((watch, name.into()), LOOKS_MAX);
        }
        if events.contains(ReadFlags::MOVED_FROM) {
            self.settle_moved_from();
            self.moved_from = Some(Left { cookie, parent: watch, name: name.into(), is_folder });
            self.unquiet.with(|changes| changes.note(rel, now));
            return;
        }
        if events.contains(ReadFlags::MOVED_TO) {
            self.moved_to(watch, name, &rel, cookie, is_folder, now);
            return;
        }
        if is_folder && events.contains(ReadFlags::CREATE) {
            self.deep.insert(rel.clone(), ());
        }
        self.unquiet.with(|changes| changes.note(rel, now));
    }

    fn moved_to(&mut self, watch: i32, name: &str, rel: &Rel, cookie: u32, is_folder: bool, now: Instant) {
        let from = self.moved_from.take_if(|left| left.cookie == cookie);
        let from_rel = from.as_ref().and_then(|left| self.rel_of(left.parent)?.join(&left.name).ok());
        let moved =
            from.filter(|_| is_folder).and_then(|left| self.by_place.remove(&(left.parent, left.name)));
        if let Some(moved) = moved {
            self.place(moved, watch, name);
        } else if is_folder {
            self.deep.insert(rel.clone(), ());
        }
        self.writers.moved(from_rel.as_ref(), rel, is_folder);
        self.unquiet.with(|changes| match from_rel {
            Some(from_rel) => changes.join(from_rel, rel.clone(), now),
            None => changes.note(rel.clone(), now),
        });
    }

    /// A folder that went away and did not come back is out of the root: nothing below it is watched any more.
    fn settle_moved_from(&mut self) {
        let Some(left) = self.moved_from.take() else { return };
        if left.is_folder
            && let Some(watch) = self.by_place.get(&(left.parent, left.name)).copied()
        {
            self.leave(watch);
        }
    }

    /// Looks at each place where a folder came or went, and corrects what the events alone made of it.
    fn settle(&mut self, now: Instant) {
        // Both ends of a move within the root come one after the other.
        self.settle_moved_from();
        let mut missing = HashMap::new();
        for _ in 0..ROUNDS_MAX {
            let mut places = std::mem::take(&mut self.unsure);
            places.extend(missing.drain());
            let mut changed = false;
            for ((parent, name), looks) in places {
                match self.look_at(parent, &name, now) {
                    Found::Nothing => {
                        missing.insert((parent, name), looks);
                    }
                    Found::Same => {}
                    Found::Other => changed = true,
                }
            }
            if !changed {
                break;
            }
        }
        for ((parent, name), looks) in missing {
            // The root is where it is: nothing is in that place.
            if looks > 1 && parent != self.root_watch && self.folders.contains_key(&parent) {
                self.unsure.entry((parent, name)).or_insert(looks - 1);
            }
        }
        for watch in std::mem::take(&mut self.displaced) {
            // It left the root, or it is found again by the event that tells where it went.
            if self.folders.contains_key(&watch) && !self.has_place(watch) {
                self.leave(watch);
            }
        }
        if self.unsure.len() > UNSURE_MAX {
            self.look_at_everything(now);
        }
    }

    /// Watches the folder that is in a place now. One that was not watched there is to be scanned with all below: what
    /// happened in it was not heard, or taken for something elsewhere.
    fn look_at(&mut self, parent: i32, name: &str, now: Instant) -> Found {
        if !self.above(parent).into_iter().all(|watch| self.has_place(watch)) {
            return Found::Nothing;
        }
        let Some(rel) = self.rel_of(parent).and_then(|folder| folder.join(name).ok()) else {
            return Found::Nothing;
        };
        let before = self.by_place.get(&(parent, Box::<str>::from(name))).copied();
        let Some((watch, known)) = self.watch(parent, name, &rel) else { return Found::Nothing };
        if known && before == Some(watch) {
            return Found::Same;
        }
        if !known {
            self.watch_below(watch, &rel);
        }
        self.deep.insert(rel.clone(), ());
        self.unquiet.with(|changes| changes.note(rel, now));
        Found::Other
    }

    /// After events were lost: folders may have come that nobody watches.
    fn look_at_everything(&mut self, now: Instant) {
        self.unsure.clear();
        self.watch_below(self.root_watch, &Rel::root());
        self.unquiet.with(|changes| changes.note_everything(now));
    }

    /// Watches neither a folder nor what is below it any more.
    fn leave(&mut self, left: i32) {
        let mut below: HashMap<i32, Vec<i32>> = HashMap::new();
        for (watch, folder) in &self.folders {
            if let Some(parent) = folder.parent {
                below.entry(parent).or_default().push(*watch);
            }
        }
        let mut leaving = vec![left];
        while let Some(watch) = leaving.pop() {
            leaving.extend(below.remove(&watch).unwrap_or_default());
            // Its IGNORED event finds nothing more to forget.
            let _gone_already = remove_watch(self.inotify.get_ref(), watch);
            self.forget(watch);
        }
    }

    fn forget(&mut self, watch: i32) {
        if watch == self.root_watch {
            self.gone = true;
            return;
        }
        if let Some(Watched { parent: Some(parent), name }) = self.folders.remove(&watch) {
            let place = (parent, name);
            if self.by_place.get(&place) == Some(&watch) {
                self.by_place.remove(&place);
            }
        }
    }

    /// Takes a watched folder to be in this place, and no longer where it was.
    fn place(&mut self, watch: i32, parent: i32, name: &str) {
        let place = (parent, Box::<str>::from(name));
        if self.above(parent).contains(&watch) {
            // A folder above was moved, whose event is yet to be read.
            self.unsure.insert(place, LOOKS_MAX);
            self.displaced.push(watch);
            return;
        }
        let before = self.folders.insert(watch, Watched { parent: Some(parent), name: name.into() });
        if let Some(Watched { parent: Some(parent), name }) = before {
            let before = (parent, name);
            if before != place && self.by_place.get(&before) == Some(&watch) {
                self.by_place.remove(&before);
                self.unsure.insert(before, LOOKS_MAX);
            }
        }
        if let Some(other) = self.by_place.insert(place, watch)
            && other != watch
        {
            self.displaced.push(other);
        }
    }

    /// A watch, and those of the folders around it.
    fn above(&self, watch: i32) -> Vec<i32> {
        let mut above = vec![watch];
        let mut at = watch;
        while above.len() < DEPTH_MAX
            && let Some(Watched { parent: Some(parent), .. }) = self.folders.get(&at)
        {
            at = *parent;
            above.push(at);
        }
        above
    }

    /// Whether no other watch was found where this one is taken to be.
    fn has_place(&self, watch: i32) -> bool {
        match self.folders.get(&watch) {
            Some(Watched { parent: Some(parent), name }) => {
                self.by_place.get(&(*parent, name.clone())) == Some(&watch)
            }
            Some(Watched { parent: None, .. }) => true,
            None => false,
        }
    }

    fn rel_of(&self, watch: i32) -> Option<Rel> {
        let mut names = Vec::new();
        let mut at = self.folders.get(&watch)?;
        for _ in 0..DEPTH_MAX {
            let Some(parent) = at.parent else {
                return Rel::from_names(names.into_iter().rev()).ok();
            };
            names.push(&*at.name);
            at = self.folders.get(&parent)?;
        }
        None
    }

    /// Watches the folder that is at `rel` now, and places it: its watch, and whether there was one before.
    fn watch(&mut self, parent: i32, name: &str, rel: &Rel) -> Option<(i32, bool)> {
        let fd = beneath::open(self.root.fd(), rel, OFlags::PATH | OFlags::DIRECTORY).ok()?;
        match add_watch(self.inotify.get_ref(), beneath::path_of_fd(fd.as_fd()), flags()) {
            Ok(watch) => {
                let known = self.folders.contains_key(&watch);
                self.place(watch, parent, name);
                Some((watch, known))
            }
            Err(Errno::NOSPC) => {
                self.limited = true;
                None
            }
            Err(error) => {
                tracing::debug!(%error, path = %rel, "cannot be watched");
                None
            }
        }
    }

    /// Watches all folders below one that is watched.
    fn watch_below(&mut self, watch: i32, rel: &Rel) {
        let mut left = vec![(watch, rel.clone())];
        while let Some((watch, rel)) = left.pop() {
            let Ok(fd) = self.root.open_folder(&rel) else { continue };
            let Ok(names) = folders_in(&fd) else { continue };
            for name in names {
                if rel.is_root() && name == STATE_FOLDER {
                    continue;
                }
                let Ok(below) = rel.join(&name) else { continue };
                if let Some((watch, _known)) = self.watch(watch, &name, &below) {
                    left.push((watch, below));
                }
                if self.limited {
                    return;
                }
            }
        }
    }
}

/// The names of the folders in a folder, those that are UTF-8.
fn folders_in(fd: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
    let mut entries = rustix::fs::RawDir::new(fd, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let is_folder = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => {
                let stat =
                    beneath::stat_at(fd.as_fd(), OsStr::from_bytes(name), rustix::fs::AtFlags::empty());
                stat.is_ok_and(|stat| FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory)
            }
            _ => false,
        };
        if is_folder && !matches!(name, b"." | b"..") {
            names.extend(std::str::from_utf8(name).map(str::to_owned));
        }
    }
    Ok(names)
}
