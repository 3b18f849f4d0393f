//! Gets trees: makes folders and symlinks as they are listed, small files many at a time, large ones as streams.
//!
//! A call that is repeated completes what an earlier one began: files that are there with the same content are not got
//! again.
//!
//! Invariants:
//! - Once it is told to stop, nothing new is begun, and of what is unfinished nothing is left.
//! - A file gets its name only once it is whole, verified against the version's content id, and synced.
//! - Nothing outside the targets is written, whatever the server says: names are checked, symlinks not followed.
//! - Folders get their permission bits and times last, deepest first, when nothing will change in them any more.

mod large;
mod place;
mod small;
mod stream;
pub(crate) mod verify;

use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::v1;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::place::{FileAt, Placed};
pub use self::stream::DownloadStream;
use crate::call_error::CallError;
use crate::connection::ApiClient;
use crate::local_folder::LocalFolder;
use crate::path::RemotePath;
use crate::progress::Progress;
use crate::report::{DownloadReport, Failure};

/// Files up to this size are got many at a time.
const SMALL_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Small files got at a time. Each holds a descriptor, and its folder one.
const BATCH_FILES_MAX: usize = 64;
/// Their bytes.
const BATCH_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Batches and large files under way.
const TASKS_MAX: usize = 4;

/// Something remote and exactly where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadSource {
    /// A file, folder or symlink.
    pub remote: RemotePath,
    /// An existing local folder that the user named.
    pub folder: PathBuf,
    /// Its name in there; none: what is in the remote folder goes straight into `folder`.
    pub name: Option<OsString>,
}

/// How to get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DownloadOptions {
    /// Replace local files and symlinks that are there already.
    pub overwrite: bool,
}

/// A file to be got.
#[derive(Clone, Debug)]
pub(crate) struct FileJob {
    pub(crate) folder: Arc<LocalFolder>,
    pub(crate) name: OsString,
    pub(crate) remote: RemotePath,
    pub(crate) size: u64,
}

/// What all parts of a download share.
pub(crate) struct Context {
    pub(crate) api: ApiClient,
    pub(crate) options: DownloadOptions,
    pub(crate) progress: Arc<dyn Progress>,
    report: Mutex<DownloadReport>,
    /// Cancelled at the first error after which nothing more can succeed.
    stop: CancellationToken,
}

impl Context {
    fn report(&self) -> MutexGuard<'_, DownloadReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn fail(&self, path: impl Display, reason: impl Into<String>) {
        self.report().failed.push(Failure { path: path.to_string(), reason: reason.into() });
    }

    pub(crate) fn fail_call(&self, path: impl Display, error: &CallError) {
        self.fail(path, error.to_string());
        self.stop_if_fatal(error);
    }

    pub(crate) fn stop_if_fatal(&self, error: &CallError) {
        if error.is_fatal() && !self.stop.is_cancelled() {
            self.stop.cancel();
            self.fail("", format!("stopped before everything was got: {error}"));
        }
    }

    pub(crate) fn fail_file(&self, job: &FileJob, reason: impl Into<String>) {
        self.fail(&job.remote, reason);
    }

    /// A file is there already.
    fn there(&self, size: u64) {
        let mut report = self.report();
        report.files += 1;
        report.unchanged += 1;
        report.bytes += size;
    }

    pub(crate) fn placed(&self, job: &FileJob, size: u64) {
        if job.size <= SMALL_FILE_BYTES_MAX {
            self.progress.advanced(job.size);
        }
        self.progress.file_done();
        let mut report = self.report();
        report.files += 1;
        report.bytes += size;
    }
}

/// Gets all of `sources`, each to exactly its local name.
///
/// What fails is in the report, and the rest goes on, unless the gateway is gone for good, or `stop` is cancelled: then
/// what is unfinished is deleted, and the report says that it was stopped. Not cancel safe: dropped halfway, some files
/// are in place (each whole), unfinished ones may be left for the next call to delete, and folders may lack their
/// permission bits and times.
pub async fn download(
    api: &ApiClient,
    sources: Vec<DownloadSource>,
    options: DownloadOptions,
    progress: Arc<dyn Progress>,
    stop: &CancellationToken,
) -> DownloadReport {
    let context = Arc::new(Context {
        api: api.clone(),
        options,
        progress,
        report: Mutex::default(),
        stop: stop.child_token(),
    });
    let mut work = Work {
        context: context.clone(),
        tasks: JoinSet::new(),
        permits: Arc::new(Semaphore::new(TASKS_MAX)),
        batch: Vec::new(),
        batch_bytes: 0,
        finished: Vec::new(),
    };
    for source in sources {
        if !context.stop.is_cancelled() {
            work.get_source(source).await;
        }
    }
    context.progress.planned_all();
    work.flush().await;
    while let Some(joined) = work.tasks.join_next().await {
        work.joined(joined);
    }
    work.finish_folders().await;
    if stop.is_cancelled() {
        context.fail("", "stopped before everything was got: got to the same place again, it is completed");
    }
    std::mem::take(&mut *context.report())
}

/// A folder whose permission bits and time are to be set in the end; none for one that the user named.
struct FinishedFolder {
    root: Arc<LocalFolder>,
    relative: String,
    remote: RemotePath,
    attributes: Option<(u32, i64)>,
}

struct Work {
    context: Arc<Context>,
    tasks: JoinSet<()>,
    permits: Arc<Semaphore>,
    batch: Vec<FileJob>,
    batch_bytes: u64,
    finished: Vec<FinishedFolder>,
}

impl Work {
    async fn get_source(&mut self, source: DownloadSource) {
        let context = self.context.clone();
        let entry = match context.api.get_entry(&source.remote).await {
            Ok(entry) => entry,
            Err(error) => return context.fail_call(&source.remote, &error),
        };
        let remote = source.remote.clone();
        let overwrite = context.options.overwrite;
        let opened = tokio::task::spawn_blocking(move || open_target(&source, &entry, overwrite)).await;
        let placed = opened.unwrap_or_else(|error| Err(format!("opening the target panicked: {error}")));
        match placed {
            Ok(Target::File(job)) => self.take_file(job).await,
            Ok(Target::There { size }) => context.there(size),
            Ok(Target::Symlink) => context.report().symlinks += 1,
            Ok(Target::Folder { root, attributes }) => self.get_tree(root, remote, attributes).await,
            Err(reason) => context.fail(&remote, reason),
        }
    }

    /// Walks a remote folder, depth first, into `root`.
    async fn get_tree(&mut self, root: Arc<LocalFolder>, remote: RemotePath, attributes: Option<(u32, i64)>) {
        let top = FinishedFolder { root: root.clone(), relative: String::new(), remote, attributes };
        let mut pending = vec![top];
        while let Some(folder) = pending.pop() {
            if self.context.stop.is_cancelled() {
                return;
            }
            match self.get_folder(&folder).await {
                Ok(subfolders) => {
                    self.context.report().folders += 1;
                    // Popped last, so that the deepest are finished first.
                    pending.extend(subfolders);
                    self.finished.push(folder);
                }
                Err(reason) => self.context.fail(&folder.remote, reason),
            }
        }
    }

    /// Lists one folder and takes what is in it; gives its subfolders.
    async fn get_folder(&mut self, folder: &FinishedFolder) -> Result<Vec<FinishedFolder>, String> {
        let context = self.context.clone();
        let (root, relative) = (folder.root.clone(), folder.relative.clone());
        let opened = blocking(move || {
            let local = root.open_below(&relative)?;
            if let Err(error) = local.remove_unfinished(None) {
                tracing::debug!(%error, "unfinished files are not looked for");
            }
            Ok::<_, std::io::Error>(local)
        });
        let local = opened.await?.map_err(|error| format!("cannot be opened here: {error}"))?;
        let mut subfolders = Vec::new();
        let mut after = String::new();
        loop {
            let listed = context.api.list_folder_page(&folder.remote, &after);
            let Some(listed) = context.stop.run_until_cancelled(listed).await else {
                return Ok(subfolders);
            };
            let (page, more) = match listed {
                Ok(page) => page,
                Err(error) => {
                    context.stop_if_fatal(&error);
                    return Err(error.to_string());
                }
            };
            if let Some(last) = page.last() {
                after.clone_from(&last.name);
            }
            let (local, relative, remote) = (local.clone(), folder.relative.clone(), folder.remote.clone());
            let overwrite = context.options.overwrite;
            let placed =
                blocking(move || place::place_page(&local, &relative, &remote, page, overwrite)).await?;
            for placed in placed {
                match placed {
                    Placed::File(job) => self.take_file(job).await,
                    Placed::There { size } => context.there(size),
                    Placed::Symlink => context.report().symlinks += 1,
                    Placed::Failed { remote, reason } => context.fail(remote, reason),
                    Placed::Folder { relative, remote, mode, mtime_ns } => subfolders.push(FinishedFolder {
                        root: folder.root.clone(),
                        relative,
                        remote,
                        attributes: Some((mode, mtime_ns)),
                    }),
                }
            }
            if !more || context.stop.is_cancelled() {
                return Ok(subfolders);
            }
        }
    }

    async fn take_file(&mut self, job: FileJob) {
        if self.context.stop.is_cancelled() {
            return;
        }
        self.context.progress.planned(1, job.size);
        if job.size > SMALL_FILE_BYTES_MAX {
            let context = self.context.clone();
            return self.spawn(async move { large::get(&context, job).await }).await;
        }
        if self.batch.len() >= BATCH_FILES_MAX || self.batch_bytes + job.size > BATCH_BYTES_MAX {
            self.flush().await;
        }
        self.batch_bytes += job.size;
        self.batch.push(job);
    }

    async fn flush(&mut self) {
        self.batch_bytes = 0;
        let jobs = std::mem::take(&mut self.batch);
        if jobs.is_empty() || self.context.stop.is_cancelled() {
            return;
        }
        let context = self.context.clone();
        self.spawn(async move {
            for job in small::get(&context, jobs).await {
                large::get(&context, job).await;
            }
        })
        .await;
    }

    async fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        // Never closed.
        if let Ok(permit) = self.permits.clone().acquire_owned().await {
            self.tasks.spawn(async move {
                work.await;
                drop(permit);
            });
        }
        while let Some(joined) = self.tasks.try_join_next() {
            self.joined(joined);
        }
    }

    fn joined(&self, joined: Result<(), tokio::task::JoinError>) {
        if let Err(error) = joined {
            self.context.fail("", format!("a part of the download panicked: {error}"));
        }
    }

    async fn finish_folders(&mut self) {
        let mut finished = std::mem::take(&mut self.finished);
        // By depth, whatever the order of the walk: a folder closed to its owner must come after what is in it.
        finished.sort_by_key(|folder| std::cmp::Reverse(folder.relative.matches('/').count()));
        let failed = blocking(move || {
            finished
                .into_iter()
                .filter_map(|folder| finish_folder(&folder).err().map(|error| (folder.remote, error)))
                .collect::<Vec<_>>()
        })
        .await;
        match failed {
            Ok(failed) => failed.into_iter().for_each(|(remote, error)| {
                self.context.fail(remote, format!("its permission bits and time cannot be set: {error}"));
            }),
            Err(reason) => self.context.fail("", reason),
        }
    }
}

fn finish_folder(folder: &FinishedFolder) -> std::io::Result<()> {
    let local = folder.root.open_below(&folder.relative)?;
    match folder.attributes {
        Some((mode, mtime_ns)) => local.finish(mode, mtime_ns),
        None => local.sync(),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("work on the disk panicked: {error}"))
}

/// What a source turns out to be.
enum Target {
    File(FileJob),
    There { size: u64 },
    Symlink,
    Folder { root: Arc<LocalFolder>, attributes: Option<(u32, i64)> },
}

fn open_target(source: &DownloadSource, entry: &v1::Entry, overwrite: bool) -> Result<Target, String> {
    let cannot =
        |what: &str, path: &Path, error: std::io::Error| format!("cannot {what} {}: {error}", path.display());
    let folder = Arc::new(
        LocalFolder::open(&source.folder)
            .map_err(|error| cannot("open the folder", &source.folder, error))?,
    );
    let Some(name) = &source.name else {
        return match entry.kind() {
            v1::EntryKind::Folder => Ok(Target::Folder { root: folder, attributes: None }),
            _ => Err("it is no folder".to_owned()),
        };
    };
    let path = source.folder.join(name);
    match entry.kind() {
        v1::EntryKind::File => {
            if let Err(error) = folder.remove_unfinished(Some(name)) {
                tracing::debug!(%error, "unfinished files are not looked for");
            }
            match place::look_at_file(&folder, name, entry, overwrite)? {
                FileAt::Free => {}
                FileAt::There => return Ok(Target::There { size: entry.size }),
            }
            let job = FileJob { folder, name: name.clone(), remote: source.remote.clone(), size: entry.size };
            Ok(Target::File(job))
        }
        v1::EntryKind::Symlink => {
            place::make_symlink(&folder, name, entry, overwrite)?;
            Ok(Target::Symlink)
        }
        v1::EntryKind::Folder => {
            folder.make_child(name).map_err(|error| cannot("make the folder", &path, error))?;
            let root = folder.open_child(name).map_err(|error| cannot("open the folder", &path, error))?;
            Ok(Target::Folder { root: Arc::new(root), attributes: Some((entry.mode, entry.mtime_ns)) })
        }
        v1::EntryKind::Unspecified => Err("this version of keepstone does not know its kind".to_owned()),
    }
}
