//! Deletes that wait for somebody: confirmed as they were shown, or undone.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Run;
use crate::local::root::RootError;
use crate::sync::board::now_ms;
use crate::sync::handle::DeletesError;
use crate::sync::planning::GUARD;
use crate::sync::scanner::ScanRequest;
use crate::sync::status::DELETES_ALL;

impl Run {
    /// Goes on with what was carried out lately, also by an earlier session.
    pub(super) async fn restore_guard(&mut self) {
        let kept = self.shared.state.ask(|state| state.bytes(GUARD)).await;
        if let Ok(Some(kept)) = kept {
            let guard = std::mem::take(&mut self.guard);
            self.guard = guard.restored(&kept, Instant::now(), now_ms());
        }
    }

    /// Whether the folder is empty and was not, which stands for all of it being deleted.
    pub(super) fn is_emptied(&self) -> bool {
        let emptied = || RootError::Empty(self.shared.root.path().to_owned()).to_string();
        self.trouble.as_ref().is_some_and(|trouble| *trouble == emptied())
    }

    /// The folder was found empty: what was decided of that beforehand is done.
    pub(super) async fn found_emptied(&mut self) {
        if self.guard.takes_all() {
            drop(self.confirm_deletes(DELETES_ALL.to_owned()).await);
        } else if std::mem::take(&mut self.brings_back) {
            drop(self.bring_back(true).await);
        }
    }

    /// What tells the deletes that wait now; empty if none do.
    pub(super) fn deletes_shown(&self) -> String {
        if self.is_emptied() {
            return DELETES_ALL.to_owned();
        }
        if self.last.deletes_to_confirm > 0 { self.last.deletes_shown.clone() } else { String::new() }
    }

    fn waiting(&self) -> Result<String, DeletesError> {
        let waiting = self.deletes_shown();
        if waiting.is_empty() { Err(DeletesError::None) } else { Ok(waiting) }
    }

    /// Lets the deletes go ahead that were shown as `shown`, if it is these that wait. Gives how many.
    pub(super) async fn confirm_deletes(&mut self, shown: String) -> Result<u64, DeletesError> {
        let waiting = self.waiting()?;
        if waiting != shown {
            return Err(DeletesError::Others { waiting });
        }
        if waiting != DELETES_ALL {
            self.guard.confirm_shown(shown);
            self.disturb();
            return Ok(self.last.deletes_to_confirm);
        }
        let root = self.shared.root.clone();
        let is_empty = tokio::task::spawn_blocking(move || root.is_empty()).await;
        if !matches!(is_empty, Ok(Ok(true))) {
            return Err(DeletesError::None);
        }
        // All that was in it is meant to go, however much that was.
        self.guard.confirm_all();
        self.shared.empty_confirmed.store(true, Ordering::Relaxed);
        self.trouble = None;
        // What that comes to is known once everything was looked at.
        self.scanned = false;
        self.disturb();
        self.request_scan(ScanRequest::Whole);
        Ok(self.last.agreed_count)
    }

    /// Undoes what waits to be confirmed.
    pub(super) async fn undelete(&mut self) -> Result<u64, DeletesError> {
        self.waiting()?;
        self.bring_back(self.is_emptied()).await
    }

    pub(super) async fn bring_back(&mut self, emptied: bool) -> Result<u64, DeletesError> {
        let brought = self.shared.state.ask(move |state| state.bring_back(emptied)).await;
        let files = brought.map_err(|error| DeletesError::Failed(error.to_string()))?;
        self.board.session(format!("{files} deletes are undone: the files come back"));
        self.disturb();
        if emptied {
            self.trouble = None;
            self.request_scan(ScanRequest::Whole);
        }
        Ok(files)
    }
}
