//! The watcher on Linux, by inotify itself rather than a crate around it (docs/decisions/0005): each folder has a
//! watch; a folder that is renamed keeps it, and with it all below.
//!
//! Invariants:
//! - `folders` holds each watch that the kernel has, and the folder's place by the watch of the folder it is in.
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
/// A hint that could not be sent, for nobody takes them, is tried again after this.
const RETRY: std::time::Duration = std::time::Duration::from_millis(20);

/// A watched folder.
#[derive(Debug)]
struct Watched {
    /// The watch of the folder it is in; `None` for the root.
    parent: Option<i32>,
    name: Box<str>,
}

struct State {
    root: Arc<Root>,
    inotify: AsyncFd<OwnedFd>,
    folders: HashMap<i32, Watched>,
    by_place: HashMap<(i32, Box<str>), i32>,
    root_watch: i32,
    /// A name that went away, and may come back under another one with the same cookie.
    moved_from: Option<(u32, i32, Box<str>)>,
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
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_bytes().to_vec());
                    self.take_in(event.wd(), event.events(), event.cookie(), name.as_deref(), now);
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
        // Both ends of a move within the root come one after the other.
        self.settle_moved_from();
    }

    fn take_in(&mut self, watch: i32, events: ReadFlags, cookie: u32, name: Option<&[u8]>, now: Instant) {
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            // Folders may have come that nobody watches.
            self.watch_below(self.root_watch, &Rel::root());
            self.unquiet.with(|changes| changes.note_everything(now));
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
            self.writers.written(&rel, now);
        } else if events.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            self.writers.closed(&rel, now);
        }
        if events.contains(ReadFlags::MOVED_FROM) {
            self.settle_moved_from();
            self.moved_from = Some((cookie, watch, name.into()));
            self.unquiet.with(|changes| changes.note(rel, now));
            return;
        }
        if events.contains(ReadFlags::MOVED_TO) {
            self.moved_to(watch, name, &rel, cookie, events.contains(ReadFlags::ISDIR), now);
            return;
        }
        if events.contains(ReadFlags::CREATE | ReadFlags::ISDIR) {
            self.new_folder(watch, name, &rel);
        }
        self.unquiet.with(|changes| changes.note(rel, now));
    }

    fn moved_to(&mut self, watch: i32, name: &str, rel: &Rel, cookie: u32, is_folder: bool, now: Instant) {
        let from = self.moved_from.take_if(|(of, _, _)| *of == cookie);
        let Some((_, from_watch, from_name)) = from else {
            if is_folder {
                self.new_folder(watch, name, rel);
            }
            self.unquiet.with(|changes| changes.note(rel.clone(), now));
            return;
        };
        let from_rel = self.rel_of(from_watch).and_then(|folder| folder.join(&from_name).ok());
        match self.by_place.remove(&(from_watch, from_name)) {
            Some(moved) if is_folder => self.place(moved, watch, name),
            _ if is_folder => self.new_folder(watch, name, rel),
            _ => {}
        }
        self.unquiet.with(|changes| match from_rel {
            Some(from_rel) => changes.join(from_rel, rel.clone(), now),
            None => changes.note(rel.clone(), now),
        });
    }

    /// A folder that went away and did not come back is out of the root: nothing below it is watched any more.
    fn settle_moved_from(&mut self) {
        let Some((_, watch, name)) = self.moved_from.take() else { return };
        let Some(left) = self.by_place.get(&(watch, name)).copied() else { return };
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

    fn place(&mut self, watch: i32, parent: i32, name: &str) {
        let before = self.folders.insert(watch, Watched { parent: Some(parent), name: name.into() });
        if let Some(Watched { parent: Some(parent), name }) = before {
            let place = (parent, name);
            if self.by_place.get(&place) == Some(&watch) {
                self.by_place.remove(&place);
            }
        }
        self.by_place.insert((parent, name.into()), watch);
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

    /// A folder that came: watched with all below, then to be scanned with all below.
    fn new_folder(&mut self, parent: i32, name: &str, rel: &Rel) {
        if let Some(watch) = self.watch(parent, name, rel) {
            self.watch_below(watch, rel);
        }
        self.deep.insert(rel.clone(), ());
    }

    fn watch(&mut self, parent: i32, name: &str, rel: &Rel) -> Option<i32> {
        let fd = beneath::open(self.root.fd(), rel, OFlags::PATH | OFlags::DIRECTORY).ok()?;
        match add_watch(self.inotify.get_ref(), beneath::path_of_fd(fd.as_fd()), flags()) {
            Ok(watch) => {
                self.place(watch, parent, name);
                Some(watch)
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
                if let Some(watch) = self.watch(watch, &name, &below) {
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
