//! The daemon's socket: for the same user only, and for one daemon at a time.
//!
//! Invariants:
//! - Whoever listens holds a lock on the file beside the socket; what a killed daemon left behind is replaced.
//! - A connection of another user is closed before a byte of it is read.

use std::fs::{File, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use futures_util::{Stream, StreamExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;

/// Why nothing can be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A daemon runs already.
    #[error("the sync daemon runs already ({} is locked)", lock.display())]
    Taken {
        /// Its lock.
        lock: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A socket that is listened on.
#[derive(Debug)]
pub struct DaemonSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Held as long as this lives.
    _lock: File,
}

impl DaemonSocket {
    /// Takes the lock, and listens. Its directory is made, for the owner only, if it is not there.
    ///
    /// # Errors
    /// If a daemon runs already, or the socket cannot be made.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let io = |source| BindError::Io { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
        }
        let lock = take_lock(path).map_err(io)?;
        let lock = lock.ok_or_else(|| BindError::Taken { lock: lock_path(path) })?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(io)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }

    /// The connections of this user's processes. With it goes the rest: the caller removes the socket by
    /// [`remove`] and drops the lock once all is done.
    pub fn into_parts(self) -> (impl Stream<Item = std::io::Result<UnixStream>> + Send, Held) {
        let own = rustix::process::geteuid().as_raw();
        let connections = UnixListenerStream::new(self.listener).filter_map(move |connection| async move {
            match connection {
                Ok(connection) if is_user(&connection, own) => Some(Ok(connection)),
                Ok(_other_user) => None,
                Err(error) => {
                    // Out of descriptors, most likely: others may end meanwhile.
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    None
                }
            }
        });
        (connections, Held { path: self.path, _lock: self._lock })
    }
}

/// The lock, while connections are served.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    _lock: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Before the lock goes: the next daemon's socket is not touched.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the socket was gone already");
        }
    }
}

fn lock_path(socket: &Path) -> PathBuf {
    socket.with_extension("lock")
}

fn take_lock(socket: &Path) -> std::io::Result<Option<File>> {
    let mut options = File::options();
    let file = options.create(true).write(true).truncate(false).mode(0o600).open(lock_path(socket))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn is_user(connection: &UnixStream, own: u32) -> bool {
    match connection.peer_cred() {
        Ok(peer) if peer.uid() == own => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "another user's connection was refused");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "a connection of nobody knows whom was refused");
            false
        }
    }
}

/// Whether a daemon has the socket, though it may not answer yet, or not any more.
///
/// # Errors
/// If the lock cannot be looked at.
pub fn is_taken(socket: &Path) -> std::io::Result<bool> {
    if !lock_path(socket).exists() {
        return Ok(false);
    }
    Ok(take_lock(socket)?.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_daemon_at_a_time_and_a_killed_ones_socket_is_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("new/sync.sock");
        assert!(!is_taken(&path).unwrap());
        let first = DaemonSocket::bind(&path).unwrap();
        assert!(is_taken(&path).unwrap());
        assert!(matches!(DaemonSocket::bind(&path), Err(BindError::Taken { .. })));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        // As after a kill: the socket stays, the lock is free.
        drop(first);
        assert!(path.exists() && !is_taken(&path).unwrap());
        let (_connections, held) = DaemonSocket::bind(&path).unwrap().into_parts();
        drop(held);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn another_user_is_told_apart() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert!(is_user(&ours, own));
        assert!(!is_user(&ours, own.wrapping_add(1)));
    }
}
