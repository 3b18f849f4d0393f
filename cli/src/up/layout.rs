//! Where `keepstone up` keeps what.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use proto::peer::Role;
use rustix::fs::FlockOperation;

use crate::files::make_directory;

/// A role of this cluster: what it is, and its number among its kind, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RoleName {
    pub(crate) role: Role,
    pub(crate) number: u16,
}

impl std::fmt::Display for RoleName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.role.as_str(), self.number)
    }
}

/// The directory and what is in it.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn parameters(&self) -> PathBuf {
        self.root.join("config/up.toml")
    }

    pub(crate) fn config_directory(&self) -> PathBuf {
        self.root.join("config")
    }

    pub(crate) fn config(&self, name: RoleName) -> PathBuf {
        self.root.join(format!("config/{name}.toml"))
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    pub(crate) fn data(&self, name: RoleName) -> PathBuf {
        self.root.join(name.to_string())
    }

    pub(crate) fn log(&self, name: RoleName) -> PathBuf {
        self.root.join(format!("logs/{name}.log"))
    }

    pub(crate) fn manifest(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    pub(crate) fn profile(&self) -> PathBuf {
        self.root.join("profile.toml")
    }

    fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }
}

/// Held while a cluster runs in its directory; the system releases it however the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    pub(crate) fn take(layout: &Layout) -> anyhow::Result<Self> {
        make_directory(layout.root())?;
        let path = layout.lock();
        let opened = File::options().create(true).truncate(false).write(true).open(&path);
        let file = opened.with_context(|| format!("cannot open {}", path.display()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => anyhow::bail!(
                "a cluster runs in {} already; stop it first, or name another directory with --data",
                layout.root().display()
            ),
            Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_cluster_in_a_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("data"));
        let first = Lock::take(&layout).unwrap();
        let error = Lock::take(&layout).unwrap_err().to_string();
        assert!(error.contains(&*layout.root().to_string_lossy()), "{error}");
        drop(first);
        assert!(Lock::take(&layout).is_ok());
    }
}
