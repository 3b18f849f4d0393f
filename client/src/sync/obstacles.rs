//! What the disk refused is looked at, so that it is named and that its going is noticed.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

use super::shared::Shared;
use super::task::{End, Ended, Refusal};
use crate::local::obstacle::Obstacle;
use crate::local::rel::Rel;
use crate::planner::model::NodeId;

/// Looks what is in the way of those that the disk was not ready for, and at the rights or the room where it refused.
/// `places`: where the tasks were to do something.
pub(super) async fn name(shared: &Shared, places: Vec<(NodeId, Rel)>, mut ended: Vec<Ended>) -> Vec<Ended> {
    let changed = ended.iter().filter(|ended| matches!(ended.end, End::LocalChanged));
    let changed: HashSet<NodeId> = changed.map(|ended| ended.node).collect();
    let mut denied: HashMap<NodeId, Vec<Rel>> = HashMap::new();
    let mut full = Vec::new();
    for ended in &ended {
        match &ended.end {
            End::Refused { by: Refusal::Rights(rel), .. } => {
                denied.entry(ended.node).or_default().push(rel.clone());
            }
            End::Refused { by: Refusal::Full, .. } => full.push(ended.node),
            _ => {}
        }
    }
    if changed.is_empty() && denied.is_empty() && full.is_empty() {
        return ended;
    }
    let (root, index, rules) = (shared.root.clone(), shared.index.clone(), shared.rules.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let index = index.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = HashMap::new();
        for (node, rel) in places {
            if changed.contains(&node) {
                let blocker = root.blocker(&rel, &*index, &rules);
                found.extend(blocker.map(|blocker| (node, Obstacle::Blocker(blocker))));
            } else if let Some(places) = denied.get_mut(&node).filter(|places| !places.contains(&rel)) {
                places.push(rel);
            }
        }
        if index.check().is_err() {
            // What could not be asked for is known when it is tried again.
            found.clear();
        }
        drop(index);
        found.extend(denied.into_iter().map(|(node, places)| (node, Obstacle::Rights(root.rights(places)))));
        if let Some(room) = (!full.is_empty()).then(|| root.room()).flatten() {
            found.extend(full.into_iter().map(|node| (node, Obstacle::Full(room))));
        }
        found
    });
    let mut found = looked.await.unwrap_or_default();
    for ended in &mut ended {
        ended.obstacle = found.remove(&ended.node);
    }
    ended
}
