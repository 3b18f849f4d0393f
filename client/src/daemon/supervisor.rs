//! All folders of the daemon: one task owns the configuration's changes and starts and stops the keepers; everybody
//! else looks at the list of them as it last was.
//!
//! Invariants:
//! - A change is in the configuration file before it is answered.
//! - A folder is kept if and only if it is in the configuration, as far as this daemon has read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::config::{self, ConfigError, DaemonConfig, RootConfig};
use super::forget::{ForgetError, forget};
use super::keeper::{Keeper, Shared};
use crate::sync::config::{Limits, Rate};
use crate::sync::handle::Handle;

/// Changes that wait.
const EDITS_QUEUED_MAX: usize = 16;

/// The folders by their directories.
pub type Keepers = BTreeMap<PathBuf, Keeper>;

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The configuration does not take it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder cannot be kept in sync.
    #[error("{message}")]
    Start {
        /// Why, in words.
        message: String,
    },
    /// Its state cannot be removed.
    #[error(transparent)]
    Forget(#[from] ForgetError),
    /// The daemon ends.
    #[error("the sync daemon is ending")]
    Ending,
}

/// A change.
#[derive(Debug)]
enum Edit {
    Add(Box<RootConfig>),
    Remove(PathBuf),
    Pause { directory: Option<PathBuf>, paused: bool },
    SetLimits { directory: Option<PathBuf>, up: Option<Rate>, down: Option<Rate> },
    Stop,
}

type Answer = oneshot::Sender<Result<(), EditError>>;

/// The hold on all folders. Clones share it.
#[derive(Clone, Debug)]
pub struct Supervisor {
    edits: mpsc::Sender<(Edit, Answer)>,
    keepers: watch::Receiver<Arc<Keepers>>,
}

impl Supervisor {
    /// Begins with the folders of a configuration. The task ends after [`Supervisor::stop`].
    #[must_use]
    pub fn start(path: PathBuf, config: DaemonConfig, shared: Shared) -> (Self, JoinHandle<()>) {
        let (edits, receiver) = mpsc::channel(EDITS_QUEUED_MAX);
        let (sender, keepers) = watch::channel(Arc::new(Keepers::new()));
        let mut task = Task { store: Store::File(path), shared, keepers: sender, tasks: BTreeMap::new() };
        for root in config.roots {
            // Nobody waits for its start: its status says how it went.
            drop(task.keep(root));
        }
        (Self { edits, keepers }, tokio::spawn(task.run(receiver)))
    }

    /// Takes one session that runs already, as `sync run` does. What is changed is not remembered; nothing can be
    /// added. The task ends after [`Supervisor::stop`].
    #[must_use]
    pub fn of_session(config: RootConfig, session: Handle, shared: Shared) -> (Self, JoinHandle<()>) {
        let (edits, receiver) = mpsc::channel(EDITS_QUEUED_MAX);
        let directory = config.directory.clone();
        let memory = DaemonConfig { roots: vec![config.clone()], ..DaemonConfig::default() };
        let (keeper, task) = Keeper::of_session(config, session, shared.clone());
        let (sender, keepers) = watch::channel(Arc::new(Keepers::from([(directory.clone(), keeper)])));
        let tasks = BTreeMap::from([(directory, task)]);
        let task = Task { store: Store::Memory(Box::new(memory)), shared, keepers: sender, tasks };
        (Self { edits, keepers }, tokio::spawn(task.run(receiver)))
    }

    /// All folders.
    #[must_use]
    pub fn keepers(&self) -> Arc<Keepers> {
        Arc::clone(&self.keepers.borrow())
    }

    /// Those that a request is about: one, or all.
    ///
    /// # Errors
    /// If the one is not kept.
    pub fn select(&self, directory: Option<&Path>) -> Result<Vec<Keeper>, ConfigError> {
        let keepers = self.keepers();
        match directory {
            None => Ok(keepers.values().cloned().collect()),
            Some(directory) => match keepers.get(directory) {
                Some(keeper) => Ok(vec![keeper.clone()]),
                None => Err(ConfigError::Unknown { directory: directory.to_owned() }),
            },
        }
    }

    async fn edit(&self, edit: Edit) -> Result<(), EditError> {
        let (done, answer) = oneshot::channel();
        self.edits.send((edit, done)).await.map_err(|_closed| EditError::Ending)?;
        answer.await.map_err(|_dropped| EditError::Ending)?
    }

    /// Adds a folder and begins with it.
    ///
    /// # Errors
    /// If it cannot be added, or cannot be kept in sync now; then it is not added.
    pub async fn add(&self, root: RootConfig) -> Result<(), EditError> {
        self.edit(Edit::Add(Box::new(root))).await
    }

    /// Ends with a folder, takes it out, and forgets its state.
    ///
    /// # Errors
    /// If it is not there.
    pub async fn remove(&self, directory: PathBuf) -> Result<(), EditError> {
        self.edit(Edit::Remove(directory)).await
    }

    /// Pauses a folder, or all, or goes on.
    ///
    /// # Errors
    /// If it is not there.
    pub async fn pause(&self, directory: Option<PathBuf>, paused: bool) -> Result<(), EditError> {
        self.edit(Edit::Pause { directory, paused }).await
    }

    /// Sets the given limits of a folder, or of each.
    ///
    /// # Errors
    /// If it is not there.
    pub async fn set_limits(
        &self,
        directory: Option<PathBuf>,
        up: Option<Rate>,
        down: Option<Rate>,
    ) -> Result<(), EditError> {
        self.edit(Edit::SetLimits { directory, up, down }).await
    }

    /// Ends all sessions, and the task.
    ///
    /// # Errors
    /// If it has ended already.
    pub async fn stop(&self) -> Result<(), EditError> {
        self.edit(Edit::Stop).await
    }
}

/// Where the configuration is.
enum Store {
    File(PathBuf),
    Memory(Box<DaemonConfig>),
}

struct Task {
    store: Store,
    shared: Shared,
    keepers: watch::Sender<Arc<Keepers>>,
    tasks: BTreeMap<PathBuf, JoinHandle<()>>,
}

impl Task {
    async fn run(mut self, mut edits: mpsc::Receiver<(Edit, Answer)>) {
        while let Some((edit, answer)) = edits.recv().await {
            let done = match edit {
                Edit::Add(root) => self.add(*root).await,
                Edit::Remove(directory) => self.remove(directory).await,
                Edit::Pause { directory, paused } => self.pause(directory, paused).await,
                Edit::SetLimits { directory, up, down } => self.set_limits(directory, up, down).await,
                Edit::Stop => {
                    self.stop_all().await;
                    // Whoever asked may be gone.
                    drop(answer.send(Ok(())));
                    return;
                }
            };
            drop(answer.send(done));
        }
        self.stop_all().await;
    }

    fn keep(&mut self, root: RootConfig) -> Keeper {
        let directory = root.directory.clone();
        let (keeper, task) = Keeper::start(root, self.shared.clone());
        self.tasks.insert(directory.clone(), task);
        self.publish(|keepers| drop(keepers.insert(directory, keeper.clone())));
        keeper
    }

    fn publish(&self, change: impl FnOnce(&mut Keepers)) {
        self.keepers.send_modify(|keepers| change(Arc::make_mut(keepers)));
    }

    async fn end(&mut self, directory: &Path) {
        let keeper = self.keepers.borrow().get(directory).cloned();
        if let Some(keeper) = keeper {
            keeper.stop().await;
        }
        join(self.tasks.remove(directory)).await;
        self.publish(|keepers| drop(keepers.remove(directory)));
    }

    async fn stop_all(&mut self) {
        let keepers: Vec<Keeper> = self.keepers.borrow().values().cloned().collect();
        for keeper in &keepers {
            keeper.stop().await;
        }
        for (_directory, task) in std::mem::take(&mut self.tasks) {
            join(Some(task)).await;
        }
        self.publish(Keepers::clear);
    }

    async fn change<T: Send + 'static>(
        &mut self,
        change: impl FnOnce(&mut DaemonConfig) -> Result<T, ConfigError> + Send + 'static,
    ) -> Result<T, EditError> {
        let path = match &mut self.store {
            Store::Memory(config) => return Ok(change(config)?),
            Store::File(path) => path.clone(),
        };
        let changed = tokio::task::spawn_blocking(move || config::edit(&path, change)).await;
        Ok(changed.map_err(|_panicked| EditError::Ending)??)
    }

    async fn add(&mut self, root: RootConfig) -> Result<(), EditError> {
        if matches!(self.store, Store::Memory(_)) {
            let reason = "this is not the daemon, but a `sync run` of one folder".to_owned();
            return Err(ConfigError::Refused { directory: root.directory, reason }.into());
        }
        let added = root.clone();
        self.change(move |config| config.add(added)).await?;
        let directory = root.directory.clone();
        let mut keeper = self.keep(root);
        if let Err(message) = keeper.started().await {
            self.end(&directory).await;
            self.change(move |config| config.remove(&directory).map(drop)).await?;
            return Err(EditError::Start { message });
        }
        Ok(())
    }

    async fn remove(&mut self, directory: PathBuf) -> Result<(), EditError> {
        if matches!(self.store, Store::Memory(_)) {
            let reason = "it is kept in sync by a `sync run`: end that first".to_owned();
            return Err(ConfigError::Refused { directory, reason }.into());
        }
        let removed = directory.clone();
        let root = self.change(move |config| config.remove(&removed)).await?;
        self.end(&directory).await;
        let forgotten = tokio::task::spawn_blocking(move || forget(&root.directory, root.state.as_deref()));
        forgotten.await.map_err(|_panicked| EditError::Ending)??;
        Ok(())
    }

    fn selected(&self, directory: Option<&Path>) -> Vec<Keeper> {
        let keepers = self.keepers.borrow();
        keepers
            .iter()
            .filter(|(path, _)| directory.is_none_or(|directory| directory == path.as_path()))
            .map(|(_, keeper)| keeper.clone())
            .collect()
    }

    async fn pause(&mut self, directory: Option<PathBuf>, paused: bool) -> Result<(), EditError> {
        let selected = directory.clone();
        self.change(move |config| set_paused(config, selected.as_deref(), paused)).await?;
        for keeper in self.selected(directory.as_deref()) {
            keeper.pause(paused).await;
        }
        Ok(())
    }

    async fn set_limits(
        &mut self,
        directory: Option<PathBuf>,
        up: Option<Rate>,
        down: Option<Rate>,
    ) -> Result<(), EditError> {
        let selected = directory.clone();
        let limits = self.change(move |config| set_limits(config, selected.as_deref(), up, down)).await?;
        for keeper in self.selected(directory.as_deref()) {
            let new = limits.iter().find(|(path, _)| *path == keeper.config().directory);
            if let Some((_, limits)) = new {
                keeper.set_limits(*limits).await;
            }
        }
        Ok(())
    }
}

/// Notes in the configuration that a folder, or each, is paused.
///
/// # Errors
/// If it is not there.
pub fn set_paused(
    config: &mut DaemonConfig,
    directory: Option<&Path>,
    paused: bool,
) -> Result<(), ConfigError> {
    match directory {
        Some(directory) => config.root_mut(directory)?.paused = paused,
        None => config.roots.iter_mut().for_each(|root| root.paused = paused),
    }
    Ok(())
}

/// Notes limits of a folder, or of each, and gives those that hold now.
///
/// # Errors
/// If it is not there.
pub fn set_limits(
    config: &mut DaemonConfig,
    directory: Option<&Path>,
    up: Option<Rate>,
    down: Option<Rate>,
) -> Result<Vec<(PathBuf, Limits)>, ConfigError> {
    let set = |root: &mut RootConfig| {
        root.up = up.unwrap_or(root.up);
        root.down = down.unwrap_or(root.down);
        (root.directory.clone(), root.limits())
    };
    match directory {
        Some(directory) => Ok(vec![set(config.root_mut(directory)?)]),
        None => Ok(config.roots.iter_mut().map(set).collect()),
    }
}

async fn join(task: Option<JoinHandle<()>>) {
    if let Some(task) = task
        && let Err(error) = task.await
    {
        tracing::error!(%error, "a folder's task panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::RemotePath;

    struct Fixture {
        scratch: tempfile::TempDir,
        supervisor: Supervisor,
        task: JoinHandle<()>,
        _metered: watch::Sender<bool>,
    }

    impl Fixture {
        fn start(roots: &[&str]) -> Self {
            let scratch = tempfile::tempdir().unwrap();
            let path = scratch.path().join("sync.toml");
            for root in roots {
                let root = RootConfig::new(root.into(), &RemotePath::root());
                config::edit(&path, |config| config.add(root)).unwrap();
            }
            let (metered, metered_pause) = watch::channel(false);
            let shared = Shared { profile: scratch.path().join("no-profile"), metered_pause, notices: None };
            let config = DaemonConfig::load(&path).unwrap();
            let (supervisor, task) = Supervisor::start(path, config, shared);
            Self { scratch, supervisor, task, _metered: metered }
        }

        fn config(&self) -> DaemonConfig {
            DaemonConfig::load(&self.scratch.path().join("sync.toml")).unwrap()
        }

        async fn stop(self) {
            self.supervisor.stop().await.unwrap();
            self.task.await.unwrap();
            assert!(self.supervisor.keepers().is_empty());
            assert!(matches!(self.supervisor.pause(None, true).await, Err(EditError::Ending)));
        }
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_not_added() {
        let fixture = Fixture::start(&["/a"]);
        let error = fixture.supervisor.add(RootConfig::new("/b".into(), &RemotePath::root())).await;
        assert!(matches!(error, Err(EditError::Start { .. })), "{error:?}");
        let error = fixture.supervisor.add(RootConfig::new("/a/b".into(), &RemotePath::root())).await;
        assert!(matches!(error, Err(EditError::Config(ConfigError::Refused { .. }))), "{error:?}");
        assert_eq!(fixture.config().roots.len(), 1);
        assert_eq!(fixture.supervisor.keepers().len(), 1);
        fixture.stop().await;
    }

    #[tokio::test]
    async fn changes_are_remembered() {
        let fixture = Fixture::start(&["/a", "/b"]);
        fixture.supervisor.pause(Some("/a".into()), true).await.unwrap();
        fixture.supervisor.set_limits(None, Some(Rate::Auto), None).await.unwrap();
        let rows: Vec<_> =
            fixture.config().roots.into_iter().map(|root| (root.paused, root.up, root.down)).collect();
        assert_eq!(rows, [(true, Rate::Auto, Rate::Unlimited), (false, Rate::Auto, Rate::Unlimited)]);
        assert!(fixture.supervisor.pause(Some("/c".into()), true).await.is_err());
        fixture.supervisor.remove("/a".into()).await.unwrap();
        assert!(fixture.supervisor.select(Some(Path::new("/a"))).is_err());
        assert_eq!(fixture.supervisor.select(None).unwrap().len(), 1);
        assert_eq!(fixture.config().roots.len(), 1);
        fixture.stop().await;
    }
}
