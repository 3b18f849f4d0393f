//! Looks at what keeps tasks waiting, so that they go on soon after it has gone.

use std::time::Duration;

use tokio::time::Instant;

use super::Run;
use crate::local::obstacle::Obstacle;
use crate::local::scan::Scope;
use crate::planner::model::NodeId;
use crate::sync::board::is_within;

/// Obstacles that are looked at in one go.
const LOOKED_AT_MAX: usize = 1_000;
/// How often they are looked at, whatever the system tells.
const INTERVAL: Duration = Duration::from_secs(15);
/// How soon after something changed here.
const INTERVAL_CHANGED: Duration = Duration::from_secs(1);

impl Run {
    /// Looks at what lies where a scan has just looked.
    pub(super) async fn look_at_obstacles_in(&mut self, scope: &Scope) {
        let was_looked_at =
            |obstacle: &Obstacle| obstacle.places().any(|rel| is_within(rel.as_str(), scope, true));
        let obstacles = self.waits.obstacles(was_looked_at);
        self.look_at_next_of(obstacles).await;
    }

    /// Something here is another than it was, or elsewhere: a folder that moved takes along what is in somebody's way.
    pub(super) fn doubt_obstacles(&mut self) {
        self.obstacles_due = self.obstacles_due.min(Instant::now() + INTERVAL_CHANGED);
    }

    /// Looks at all now and then: the system does not tell of all that ends one (a file system that can be written to
    /// again), and no scan compares owners and access lists.
    pub(super) async fn look_at_obstacles(&mut self) {
        let now = Instant::now();
        if now < self.obstacles_due {
            return;
        }
        self.obstacles_due = now + INTERVAL;
        // A folder that is not there says nothing of what is in it.
        if self.trouble.is_some() || !self.waits.any_obstacle() {
            return;
        }
        self.look_at_next_of(self.waits.obstacles(|_any| true)).await;
    }

    /// Looks at all of them, before somebody is told of them. Says whether all are still there as they were.
    pub(super) async fn all_obstacles_stay(&mut self) -> bool {
        self.look_at(self.waits.obstacles(|_any| true)).await
    }

    /// Of very many, looks at those that come next.
    async fn look_at_next_of(&mut self, mut obstacles: Vec<(NodeId, Obstacle)>) {
        if obstacles.len() > LOOKED_AT_MAX {
            obstacles.sort_unstable_by_key(|(node, _obstacle)| *node);
            let next = obstacles.partition_point(|(node, _obstacle)| *node <= self.looked_to);
            obstacles.rotate_left(next);
            obstacles.truncate(LOOKED_AT_MAX);
            self.looked_to = obstacles[LOOKED_AT_MAX - 1].0;
        }
        self.look_at(obstacles).await;
    }

    /// Those whose obstacle is not there any more as it was are tried again. Says whether there are none.
    async fn look_at(&mut self, mut obstacles: Vec<(NodeId, Obstacle)>) -> bool {
        if obstacles.is_empty() {
            return true;
        }
        let root = self.shared.root.clone();
        let looked = tokio::task::spawn_blocking(move || {
            obstacles.retain(|(_node, obstacle)| !root.is_kept_by(obstacle));
            obstacles
        });
        let (passed, now) = (looked.await.unwrap_or_default(), Instant::now());
        for (node, _obstacle) in &passed {
            self.waits.unblocked(*node, now);
        }
        if !passed.is_empty() {
            self.disturb();
        }
        passed.is_empty()
    }
}
