//! When a session is quiet: nothing is left to do, and a last look at both sides found nothing new.

use tokio::sync::oneshot;

use super::{OFFLINE_QUIET, Run};
use crate::sync::scanner::ScanRequest;
use crate::sync::status::{Quiet, Waiting};

impl Run {
    fn is_idle(&self) -> bool {
        let scanned = self.scanned && self.unquiet == 0 && !self.scan_owed;
        scanned && self.remote_known && self.online && self.is_at_rest()
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.running.is_empty()
            && self.busy.is_empty()
            && !self.want_plan
            && self.reading_rules.is_none()
            && !self.waits.any_passing()
    }

    /// Once nothing is left to do, has both sides looked at once more before it says so.
    pub(super) async fn look_for_quiet(&mut self) {
        self.quiet.retain(|quiet| !quiet.is_closed());
        if self.quiet.is_empty() || self.checking.is_some() {
            self.looked_for_unread &= !self.quiet.is_empty();
            return;
        }
        let gone = !self.online && self.offline_since.elapsed() >= OFFLINE_QUIET;
        if gone || self.trouble.is_some() || (self.paused && self.running.is_empty()) {
            self.answer_quiet(true);
            return;
        }
        // What is told to be in the way is to be found there.
        if !self.is_idle() || !self.all_obstacles_stay().await {
            return;
        }
        self.disturbed = false;
        if !self.looked_for_unread && self.board.has_unread() {
            // What could not be read may be gone by now, or be readable: only a look at everything tells.
            self.looked_for_unread = true;
            self.request_scan(ScanRequest::Whole);
        }
        let (done, checking) = oneshot::channel();
        let (checks, scans) = (self.channels.checks.clone(), self.channels.scans.clone());
        tokio::spawn(async move {
            let (remote, remote_done) = oneshot::channel();
            let (local, local_done) = oneshot::channel();
            if checks.send(remote).await.is_ok() && scans.send(ScanRequest::Settled(local)).await.is_ok() {
                // Who drops them has ended, and with it the session.
                drop(remote_done.await);
                drop(local_done.await);
            }
            let _nobody = done.send(());
        });
        self.checking = Some(checking);
    }

    pub(super) fn answer_quiet(&mut self, stuck: bool) {
        if !stuck && (self.disturbed || !self.is_idle()) {
            return;
        }
        let unread = self.board.unread();
        let left_out = self.board.left_out_data();
        let all_read = self.complete && unread.is_empty() && left_out.is_empty();
        let agreed = !stuck && all_read && self.last.dirty.is_empty();
        let mut waiting = self.last.waiting.clone();
        waiting.extend(unread);
        waiting.extend(left_out);
        self.looked_for_unread = false;
        if stuck || !self.complete {
            let why = match (&self.trouble, self.online, self.paused) {
                (Some(trouble), _, _) => trouble.clone(),
                (None, _, true) => "paused".to_owned(),
                (None, false, _) => self.board.offline_reason(),
                (None, true, false) => "not all of the folder could be read".to_owned(),
            };
            waiting.insert(0, Waiting { path: String::new(), why });
        }
        for quiet in self.quiet.drain(..) {
            drop(quiet.send(Quiet { agreed, waiting: waiting.clone() }));
        }
    }
}
