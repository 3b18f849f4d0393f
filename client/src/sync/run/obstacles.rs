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

impl Run {
    /// Those that wait for what a scan has just looked at, and that is not there any more as it was.
    pub(super) async fn unblocked(&mut self, scope: &Scope) -> Vec<NodeId> {
        let was_looked_at =
            |obstacle: &Obstacle| obstacle.places().any(|rel| is_within(rel.as_str(), scope, true));
        let obstacles = self.waits.obstacles(was_looked_at);
        self.passed(obstacles).await
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
        let obstacles = self.waits.obstacles(|_any| true);
        let passed = self.passed(obstacles).await;
        if passed.iter().fold(false, |any, node| self.waits.news(*node, now) | any) {
            self.disturb();
        }
    }

    /// Those whose obstacle is not there any more as it was; of very many, those that come next.
    async fn passed(&mut self, mut obstacles: Vec<(NodeId, Obstacle)>) -> Vec<NodeId> {
        if obstacles.is_empty() {
            return Vec::new();
        }
        if obstacles.len() > LOOKED_AT_MAX {
            obstacles.sort_unstable_by_key(|(node, _obstacle)| *node);
            let next = obstacles.partition_point(|(node, _obstacle)| *node <= self.looked_to);
            obstacles.rotate_left(next);
            obstacles.truncate(LOOKED_AT_MAX);
            self.looked_to = obstacles[LOOKED_AT_MAX - 1].0;
        }
        let root = self.shared.root.clone();
        let looked = tokio::task::spawn_blocking(move || {
            obstacles.retain(|(_node, obstacle)| !root.is_kept_by(obstacle));
            obstacles.into_iter().map(|(node, _obstacle)| node).collect()
        });
        looked.await.unwrap_or_default()
    }
}
