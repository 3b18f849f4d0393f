//! Puts local trees: walks them, makes folders, sends the chunks that the server lacks, commits files.
//!
//! A walk (`walk`) is cut into units (`batch`). For each unit, in order, its folders are made and what is on the
//! server at its files' paths is looked up (`remote`); then its small files go together (`small`) and its large ones
//! each by itself (`large`), several at once, all chunks through one stream (`chunk_stream`).
//!
//! One small file that is named alone, and that is not there yet, is put by one call (`single`).
//!
//! Invariants:
//! - A file is committed whole, as it was at one moment, against the version that was there when it was looked up:
//!   nothing half-written is ever under its name, and nobody's newer version is replaced unseen.
//! - What is on the server already as it is here is put by sending nothing, once the server has said that it lacks nothing
//!   of it (`unchanged`).
//! - Memory is bounded whatever the trees: units under way, bytes in flight and listings held all have a bound.

mod batch;
pub(crate) mod chunk_stream;
pub(crate) mod large;
pub(crate) mod read;
mod remote;
pub(crate) mod session;
pub(crate) mod single;
mod small;
mod unchanged;
mod walk;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::batch::{Batcher, Unit};
use self::chunk_stream::ChunkSender;
use self::remote::RemoteTree;
use self::walk::Found;
pub(crate) use self::walk::{mode_bits, mtime_ns};
use crate::call_error::CallError;
use crate::connection::ApiClient;
use crate::path::RemotePath;
use crate::progress::Progress;
use crate::report::{Failure, UploadReport};

/// Things that the walk is ahead by.
const FOUND_QUEUED_MAX: usize = 16 * 1024;
/// Units of small files under way.
const UNITS_MAX: usize = 3;
/// Large files under way.
const LARGE_FILES_MAX: usize = 3;
/// Files read and hashed at once.
const HASHING_MAX: usize = 2;

/// Something local and exactly where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadSource {
    /// A file, folder or symlink.
    pub local: PathBuf,
    /// Its path on the server.
    pub remote: RemotePath,
}

/// What all parts of an upload share.
pub(crate) struct Context {
    api: ApiClient,
    chunks: ChunkSender,
    progress: Arc<dyn Progress>,
    hashing: Semaphore,
    report: Mutex<UploadReport>,
    /// Cancelled at the first error after which nothing more can succeed.
    stop: CancellationToken,
}

impl Context {
    fn report(&self) -> MutexGuard<'_, UploadReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, path: &std::path::Path, reason: impl Into<String>) {
        self.report().failed.push(Failure { path: path.display().to_string(), reason: reason.into() });
    }

    /// Records a failed call; stops the upload when no other call could succeed either.
    fn fail_call(&self, path: &std::path::Path, error: &CallError) {
        self.fail(path, error.to_string());
        self.stop_if_fatal(error);
    }

    fn stop_if_fatal(&self, error: &CallError) {
        if error.is_fatal() && !self.stop.is_cancelled() {
            self.stop.cancel();
            self.report().failed.push(Failure {
                path: String::new(),
                reason: format!("stopped before everything was put: {error}"),
            });
        }
    }
}

/// Puts all of `sources`, each to exactly its remote path. Folders on the way to it must exist.
///
/// What fails is in the report, and the rest goes on, unless the gateway is gone for good. Not cancel safe: dropped
/// halfway, files may or may not be committed (each whole), and sessions are left to expire.
pub async fn upload(
    api: &ApiClient,
    sources: Vec<UploadSource>,
    progress: Arc<dyn Progress>,
) -> UploadReport {
    if let [source] = sources.as_slice()
        && let Some(report) = single::put(api, source, &progress).await
    {
        return report;
    }
    let (sender, found) = mpsc::channel(FOUND_QUEUED_MAX);
    let (chunks, chunk_task) = ChunkSender::start(api.clone());
    let walk_progress = progress.clone();
    let walker = tokio::task::spawn_blocking(move || walk::walk(&sources, &sender, &*walk_progress));
    let context = Arc::new(Context {
        api: api.clone(),
        chunks,
        progress,
        hashing: Semaphore::new(HASHING_MAX),
        report: Mutex::default(),
        stop: CancellationToken::new(),
    });
    put_all(&context, found).await;
    let report = std::mem::take(&mut *context.report());
    drop(context);
    for joined in [walker.await, chunk_task.await] {
        if let Err(error) = joined {
            tracing::error!(%error, "a part of the upload panicked");
        }
    }
    report
}

async fn put_all(context: &Arc<Context>, mut found: mpsc::Receiver<Found>) {
    let mut work = Work {
        context: context.clone(),
        remote: RemoteTree::default(),
        units: Arc::new(Semaphore::new(UNITS_MAX)),
        large: Arc::new(Semaphore::new(LARGE_FILES_MAX)),
        tasks: JoinSet::new(),
    };
    let mut batcher = Batcher::default();
    loop {
        let next = tokio::select! {
            next = found.recv() => next,
            () = context.stop.cancelled() => break,
        };
        let unit = match next {
            Some(item) => batcher.push(item),
            None => break,
        };
        if let Some(unit) = unit {
            work.run(unit).await;
        }
    }
    drop(found);
    if !context.stop.is_cancelled()
        && let Some(unit) = batcher.take()
    {
        work.run(unit).await;
    }
    while let Some(joined) = work.tasks.join_next().await {
        work.joined(joined);
    }
}

/// Runs units: the remote part of each in order, the files of several at once.
struct Work {
    context: Arc<Context>,
    remote: RemoteTree,
    units: Arc<Semaphore>,
    large: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Work {
    async fn run(&mut self, mut unit: Unit) {
        self.context.report().failed.append(&mut unit.failed);
        let (small, large) = self.remote.prepare(&self.context, unit).await;
        // The semaphores are never closed.
        if !small.is_empty()
            && let Ok(permit) = self.units.clone().acquire_owned().await
        {
            let context = self.context.clone();
            self.tasks.spawn(async move {
                small::put(&context, small).await;
                drop(permit);
            });
        }
        for file in large {
            if let Ok(permit) = self.large.clone().acquire_owned().await {
                let context = self.context.clone();
                self.tasks.spawn(async move {
                    large::put(&context, file).await;
                    drop(permit);
                });
            }
        }
        while let Some(joined) = self.tasks.try_join_next() {
            self.joined(joined);
        }
    }

    fn joined(&self, joined: Result<(), tokio::task::JoinError>) {
        if let Err(error) = joined {
            self.context.fail(std::path::Path::new(""), format!("a part of the upload panicked: {error}"));
        }
    }
}
