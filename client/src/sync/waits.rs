//! Nodes that nothing is done about for a while, and why. Pure: time is what it is told.

use std::collections::HashMap;

use tokio::time::Instant;

use super::task::{Again, End};
use crate::planner::model::NodeId;

/// What ends a wait before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Time alone, or news of the node.
    Time,
    /// News from the server.
    RemoteNews,
    /// The gateway answers again.
    Online,
    /// Its folder was scanned.
    Scanned,
}

#[derive(Clone, Debug)]
pub(crate) struct Wait {
    pub(crate) failures: u32,
    pub(crate) at: Instant,
    pub(crate) until: Until,
    pub(crate) reason: String,
    /// Somebody must do something about it: no use in waiting for it to pass.
    pub(crate) lasting: bool,
    /// Its time has come: it is tried again; kept for the count of failures.
    pub(crate) over: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    nodes: HashMap<NodeId, Wait>,
}

/// Failures in a row after which something is said to last.
const LASTING_FAILURES: u32 = 6;

impl Waits {
    /// Takes in how a task ended. Says whether it failed in a way that was not known yet (to be told of).
    pub(crate) fn ended(&mut self, node: NodeId, end: &End, now: Instant) -> bool {
        let failures = self.nodes.get(&node).map_or(0, |wait| wait.failures) + 1;
        let (until, again, reason) = match end {
            End::Done | End::Stopped => {
                self.nodes.remove(&node);
                return false;
            }
            End::LocalChanged => (
                Until::Scanned,
                Again::Soon,
                "it has changed on this device; it is looked at again".to_owned(),
            ),
            End::RemoteChanged => (
                Until::RemoteNews,
                Again::Soon,
                "it has changed on the server; its news are awaited".to_owned(),
            ),
            End::Failed { reason, again } => {
                let until = if *again == Again::Online { Until::Online } else { Until::Time };
                (until, *again, reason.clone())
            }
        };
        let told = self.nodes.get(&node).is_some_and(|wait| wait.reason == reason);
        let fresh = matches!(end, End::Failed { .. }) && !told && again != Again::Online;
        let lasting = again == Again::Later || failures >= LASTING_FAILURES;
        let at = now + again.wait(failures).min(std::time::Duration::from_secs(3_600));
        self.nodes.insert(node, Wait { failures, at, until, reason, lasting, over: false });
        fresh
    }

    /// Ends the waits whose time has come, or that waited for this. Says whether there were any.
    pub(crate) fn wake(&mut self, what: Option<Until>, now: Instant) -> bool {
        let mut any = false;
        for wait in self.nodes.values_mut() {
            if !wait.over && (wait.at <= now || Some(wait.until) == what) {
                wait.over = true;
                any = true;
            }
        }
        any
    }

    /// There are news of a node: what kept it waiting may be past.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// Drops what is over and was not planned again: it agrees by now.
    pub(crate) fn drop_over(&mut self, is_dirty: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|node, wait| !wait.over || is_dirty(*node));
    }

    /// Those that wait now.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (NodeId, &Wait)> {
        self.nodes.iter().filter(|(_node, wait)| !wait.over).map(|(node, wait)| (*node, wait))
    }

    /// When the next one ends.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.waiting().map(|(_node, wait)| wait.at).min()
    }

    /// Whether any is expected to pass by itself soon.
    pub(crate) fn any_passing(&self) -> bool {
        self.waiting().any(|(_node, wait)| !wait.lasting)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn failures_in_a_row_wait_ever_longer_and_success_forgets_them() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        let failed = End::Failed { reason: "no".to_owned(), again: Again::Soon };
        assert!(waits.ended(NodeId(2), &failed, now), "the first failure is told");
        let first = waits.next().unwrap() - now;
        assert!(waits.wake(None, now + first));
        assert!(!waits.ended(NodeId(2), &failed, now), "the same again is not");
        assert!(waits.next().unwrap() - now >= 2 * first);
        waits.ended(NodeId(2), &End::Done, now);
        assert_eq!(waits.waiting().count(), 0);
    }

    #[test]
    fn news_end_only_the_waits_for_them() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        waits.ended(NodeId(2), &End::RemoteChanged, now);
        waits.ended(NodeId(3), &End::LocalChanged, now);
        assert!(waits.wake(Some(Until::RemoteNews), now));
        assert_eq!(waits.waiting().map(|(node, _)| node).collect::<Vec<_>>(), [NodeId(3)]);
        assert!(!waits.wake(Some(Until::RemoteNews), now));
        assert!(waits.wake(None, now + Duration::from_secs(60)));
    }

    #[test]
    fn a_full_disk_lasts_until_somebody_does_something() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        waits.ended(NodeId(2), &End::Failed { reason: "full".to_owned(), again: Again::Later }, now);
        assert!(!waits.any_passing());
        waits.ended(NodeId(3), &End::RemoteChanged, now);
        assert!(waits.any_passing());
    }
}
