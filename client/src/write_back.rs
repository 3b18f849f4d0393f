//! Sends what was written of a large file to the disk while the rest is still being written, so that little is left to
//! wait for at its end.
//!
//! Invariants:
//! - A sync that failed is told by every call after it, and none is begun again: what it did not write may be taken for
//!   written by the next one.

use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// So much is gathered before it is sent. Files of less are synced at their end only.
const STEP_BYTES: u64 = 32 * 1024 * 1024;

type SyncFile = fn(&File) -> io::Result<()>;

/// What was sent of one file.
#[derive(Debug)]
pub(crate) struct WriteBack {
    sync: SyncFile,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    gathered_bytes: u64,
    under_way: Option<JoinHandle<io::Result<()>>>,
    failed: Option<io::Error>,
    /// Nothing is begun any more: nobody would hear how it ended.
    ended: bool,
}

impl State {
    fn join(&mut self) {
        let Some(thread) = self.under_way.take() else { return };
        let synced = thread.join().unwrap_or_else(|_panic| Err(io::Error::other("the sync panicked")));
        self.failed = synced.err();
    }

    fn result(&self) -> io::Result<()> {
        let Some(error) = &self.failed else { return Ok(()) };
        Err(match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        })
    }
}

impl Default for WriteBack {
    fn default() -> Self {
        Self::with(File::sync_data)
    }
}

impl WriteBack {
    pub(crate) fn with(sync: SyncFile) -> Self {
        Self { sync, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes more were written to `file`, always the same one. Sends them when they are enough and nothing else
    /// is on its way; never waits for the disk.
    ///
    /// # Errors
    /// That of a sync before.
    pub(crate) fn wrote(&self, file: &File, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        state.gathered_bytes += bytes;
        let busy = state.under_way.as_ref().is_some_and(|thread| !thread.is_finished());
        if state.ended || state.gathered_bytes < STEP_BYTES || busy {
            return state.result();
        }
        state.join();
        state.result()?;
        let (file, sync) = (file.try_clone()?, self.sync);
        let begun = std::thread::Builder::new().name("write-back".to_owned()).spawn(move || sync(&file));
        // Without a thread to spare all of it waits for the end.
        if let Ok(thread) = begun {
            state.gathered_bytes = 0;
            state.under_way = Some(thread);
        }
        Ok(())
    }

    /// Waits for what is on its way, and sends nothing from now on: the rest is left to who ends the file. Blocks.
    ///
    /// # Errors
    /// If a sync has failed: the file must not be used, nor synced once more.
    pub(crate) fn finish(&self) -> io::Result<()> {
        let mut state = self.state();
        state.ended = true;
        state.join();
        state.result()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_failed_sync_is_told_and_never_tried_again() {
        static SYNCS: AtomicU32 = AtomicU32::new(0);
        let file = tempfile::tempfile().unwrap();
        let written = WriteBack::with(|_file| {
            SYNCS.fetch_add(1, Ordering::SeqCst);
            Err(io::ErrorKind::StorageFull.into())
        });
        written.wrote(&file, STEP_BYTES - 1).unwrap();
        assert_eq!(SYNCS.load(Ordering::SeqCst), 0, "too little");
        written.wrote(&file, 1).unwrap();
        written.state().join();
        assert_eq!(written.wrote(&file, 2 * STEP_BYTES).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(written.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(written.wrote(&file, 2 * STEP_BYTES).unwrap_err().kind(), io::ErrorKind::StorageFull);
        written.finish().unwrap_err();
        assert_eq!(SYNCS.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_was_written_is_sent_step_by_step() {
        static SYNCS: AtomicU32 = AtomicU32::new(0);
        let file = tempfile::tempfile().unwrap();
        let written = WriteBack::with(|file| {
            SYNCS.fetch_add(1, Ordering::SeqCst);
            file.sync_data()
        });
        for step in 1..4 {
            written.wrote(&file, STEP_BYTES).unwrap();
            written.state().join();
            assert_eq!(SYNCS.load(Ordering::SeqCst), step);
        }
        written.finish().unwrap();
        written.wrote(&file, STEP_BYTES).unwrap();
        assert_eq!(SYNCS.load(Ordering::SeqCst), 3, "nobody would hear how it ended");
    }
}
