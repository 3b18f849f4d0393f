//! Nodes that nothing is done about for a while, and why. Pure: time is what it is told.
//!
//! Invariants:
//! - A wait's time is a floor: only the first failure in a row ends with the next look at its folder or the next news;
//!   later ones end before their time only by news of the node itself, of what is in its way, of the rights there or of
//!   the room on the disk, or because a person asks for it, and then not faster than [`Wait::early_at`]. So nothing is
//!   tried again and again without a pause, whatever tells of something.
//! - Failures in a row are counted until the node agrees.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::task::{Again, End, Ended};
use crate::local::obstacle::Obstacle;
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
    /// What is in its way has gone, or is another thing; the rights there are others; or the disk has more room.
    Unblocked,
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
    /// When it failed last.
    failed_at: Instant,
    obstacle: Option<Obstacle>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    nodes: HashMap<NodeId, Wait>,
}

/// Failures in a row after which something is said to last.
const LASTING_FAILURES: u32 = 6;
/// The longest wait that news do not shorten.
const EARLY_TIME_MAX: Duration = Duration::from_secs(5);
/// The longest wait.
const WAIT_TIME_MAX: Duration = Duration::from_secs(3_600);

impl Wait {
    /// Before this, not even news of what it waits for end it: at once after the first failure in a row, then ever
    /// later.
    fn early_at(&self) -> Instant {
        match self.failures {
            0 | 1 => self.failed_at,
            more => self.failed_at + Again::Soon.wait(more - 1).min(EARLY_TIME_MAX),
        }
    }

    /// There are news of what it waits for. Says whether it is over.
    fn hear(&mut self, now: Instant) -> bool {
        self.at = self.at.min(self.early_at());
        self.end_if_due(now)
    }

    fn end_if_due(&mut self, now: Instant) -> bool {
        self.over = self.at <= now;
        self.over
    }
}

impl Waits {
    /// Takes in how a task ended. Says whether it failed in a way that was not known yet (to be told of).
    pub(crate) fn ended(&mut self, ended: &Ended, now: Instant) -> bool {
        let node = ended.node;
        let failures = self.nodes.get(&node).map_or(0, |wait| wait.failures) + 1;
        let (until, again, reason) = match (&ended.end, &ended.obstacle) {
            (End::Done | End::Compared | End::Stopped, _) => {
                self.nodes.remove(&node);
                return false;
            }
            (End::LocalChanged, Some(obstacle)) => (Until::Unblocked, Again::Unblocked, obstacle.to_string()),
            (End::Refused { reason, .. }, _) => (Until::Unblocked, Again::Later, reason.clone()),
            (End::LocalChanged, None) => (
                Until::Scanned,
                Again::Soon,
                "it has changed on this device; it is looked at again".to_owned(),
            ),
            (End::RemoteChanged, _) => (
                Until::RemoteNews,
                Again::Soon,
                "it has changed on the server; its news are awaited".to_owned(),
            ),
            (End::Failed { reason, again }, _) => {
                let until = if *again == Again::Online { Until::Online } else { Until::Time };
                (until, *again, reason.clone())
            }
        };
        let told = self.nodes.get(&node).is_some_and(|wait| wait.reason == reason);
        let tellable =
            matches!(ended.end, End::Failed { .. } | End::Refused { .. }) || ended.obstacle.is_some();
        let fresh = tellable && !told && again != Again::Online;
        let lasting = matches!(again, Again::Later | Again::Unblocked) || failures >= LASTING_FAILURES;
        let at = now + again.wait(failures).min(WAIT_TIME_MAX);
        let obstacle = ended.obstacle.clone();
        let wait = Wait { failures, at, until, reason, lasting, over: false, failed_at: now, obstacle };
        self.nodes.insert(node, wait);
        fresh
    }

    /// Ends the waits whose time has come, or that waited for this and failed once only. Says whether there were any.
    pub(crate) fn wake(&mut self, what: Option<Until>, now: Instant) -> bool {
        let mut any = false;
        for wait in self.nodes.values_mut().filter(|wait| !wait.over) {
            let is_for_it = Some(wait.until) == what;
            any |= match wait.until {
                // The gateway's absence has a pause of its own.
                Until::Online if is_for_it => {
                    wait.at = now;
                    wait.end_if_due(now)
                }
                _ if is_for_it && wait.failures <= 1 => wait.hear(now),
                _ => wait.end_if_due(now),
            };
        }
        any
    }

    /// The server's tree has changed: what waits for that may go on. Says whether anything does.
    pub(crate) fn remote_news(&mut self, now: Instant) -> bool {
        let waits = self.nodes.values_mut().filter(|wait| !wait.over && wait.until == Until::RemoteNews);
        waits.fold(false, |any, wait| wait.hear(now) | any)
    }

    /// There are news of a node: what kept it waiting may be past.
    pub(crate) fn news(&mut self, node: NodeId, now: Instant) -> bool {
        self.nodes.get_mut(&node).filter(|wait| !wait.over).is_some_and(|wait| wait.hear(now))
    }

    /// What was in a node's way is not there any more as it was: what was said of it holds no longer, and nobody need do
    /// anything before it is tried again.
    pub(crate) fn unblocked(&mut self, node: NodeId, now: Instant) {
        let Some(wait) = self.nodes.get_mut(&node).filter(|wait| !wait.over) else { return };
        wait.obstacle = None;
        wait.lasting = false;
        wait.hear(now);
    }

    /// What is in the way of those that wait for that, as far as it is `asked` for.
    pub(crate) fn obstacles(&self, asked: impl Fn(&Obstacle) -> bool) -> Vec<(NodeId, Obstacle)> {
        let of_wait = |(node, wait): (NodeId, &Wait)| {
            let obstacle = wait.obstacle.as_ref().filter(|obstacle| asked(obstacle))?;
            Some((node, obstacle.clone()))
        };
        self.waiting().filter_map(of_wait).collect()
    }

    pub(crate) fn any_obstacle(&self) -> bool {
        self.waiting().any(|(_node, wait)| wait.obstacle.is_some())
    }

    /// Somebody asks for all to be tried again. Says whether anything is.
    pub(crate) fn asked(&mut self, now: Instant) -> bool {
        let waits = self.nodes.values_mut().filter(|wait| !wait.over && wait.until != Until::Online);
        waits.fold(false, |any, wait| wait.hear(now) | any)
    }

    /// Drops what agrees by now, or is nowhere any more.
    pub(crate) fn drop_agreed(&mut self, is_dirty: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|node, _wait| is_dirty(*node));
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
    use crate::sync::task::Refusal;

    fn ended(node: u64, end: End) -> Ended {
        Ended::quietly(NodeId(node), end)
    }

    #[test]
    fn failures_in_a_row_wait_ever_longer_and_success_forgets_them() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        let failed = ended(2, End::Failed { reason: "no".to_owned(), again: Again::Soon });
        assert!(waits.ended(&failed, now), "the first failure is told");
        let first = waits.next().unwrap() - now;
        assert!(waits.wake(None, now + first));
        assert!(!waits.ended(&failed, now), "the same again is not");
        assert!(waits.next().unwrap() - now >= 2 * first);
        waits.ended(&ended(2, End::Done), now);
        assert_eq!(waits.waiting().count(), 0);
    }

    #[test]
    fn news_end_only_the_waits_for_them() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        waits.ended(&ended(2, End::RemoteChanged), now);
        waits.ended(&ended(3, End::LocalChanged), now);
        assert!(waits.wake(Some(Until::RemoteNews), now));
        assert_eq!(waits.waiting().map(|(node, _)| node).collect::<Vec<_>>(), [NodeId(3)]);
        assert!(!waits.wake(Some(Until::RemoteNews), now));
        assert!(waits.wake(None, now + Duration::from_secs(60)));
    }

    #[test]
    fn a_full_disk_lasts_until_somebody_does_something() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        waits.ended(&ended(2, End::Failed { reason: "full".to_owned(), again: Again::Later }), now);
        assert!(!waits.any_passing());
        waits.ended(&ended(3, End::RemoteChanged), now);
        assert!(waits.any_passing());
    }

    /// Whatever tells of something all the time, what fails each time is tried a bounded number of times in an hour.
    #[test]
    fn nothing_that_fails_each_time_is_tried_without_a_pause() {
        let ends = [
            End::LocalChanged,
            End::RemoteChanged,
            End::Failed { reason: "soon".to_owned(), again: Again::Soon },
            End::Failed { reason: "later".to_owned(), again: Again::Later },
            End::Refused { by: Refusal::Full, reason: "full".to_owned() },
        ];
        for end in ends {
            let (mut waits, mut now) = (Waits::default(), Instant::now());
            let (begun, mut tries, mut tries_with_news) = (now, 0, 0);
            while now - begun < Duration::from_secs(3_600) {
                if waits.waiting().count() == 0 {
                    waits.ended(&ended(2, end.clone()), now);
                    tries += 1;
                }
                for what in [None, Some(Until::Scanned), Some(Until::RemoteNews)] {
                    waits.wake(what, now);
                }
                now += Duration::from_millis(10);
            }
            assert!(tries <= 80, "{end:?}: {tries} tries in an hour");
            // With news of the node itself all the time.
            let (mut waits, begun) = (Waits::default(), now);
            while now - begun < Duration::from_secs(3_600) {
                if waits.waiting().count() == 0 {
                    waits.ended(&ended(2, end.clone()), now);
                    tries_with_news += 1;
                }
                waits.news(NodeId(2), now);
                waits.remote_news(now);
                waits.asked(now);
                now += Duration::from_millis(10);
            }
            assert!(tries_with_news <= 740, "{end:?}: {tries_with_news} tries with news");
        }
    }

    #[test]
    fn news_after_a_long_wait_are_acted_upon_at_once() {
        let (mut waits, mut now) = (Waits::default(), Instant::now());
        for _ in 0..10 {
            waits.ended(&ended(2, End::LocalChanged), now);
            now = waits.next().unwrap();
            waits.wake(None, now);
        }
        waits.ended(&ended(2, End::LocalChanged), now);
        now += Duration::from_secs(10);
        assert!(!waits.wake(Some(Until::Scanned), now), "a scan that found nothing is no news");
        assert!(waits.news(NodeId(2), now));
    }
}
