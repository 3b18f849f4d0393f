//! Waits that go in a circle: `a` and `b` swapped their names, a folder took the name of the one that it was in, and so
//! on. In each such circle something is at a place that another is to come to; it steps aside, within its folder, under
//! a name that tells its right one.

use std::collections::BTreeSet;

use super::Decision;
use super::decide::Planning;
use super::model::{NodeId, Operation};
use super::view::Side;

/// What a node waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    on: NodeId,
    /// It waits for the other to leave a place, on this side.
    place: Option<Side>,
}

impl Wait {
    pub(super) fn plain(on: NodeId) -> Self {
        Self { on, place: None }
    }

    pub(super) fn occupant(on: NodeId, side: Side) -> Self {
        Self { on, place: Some(side) }
    }
}

impl Planning<'_> {
    /// Breaks each circle of waits once.
    pub(super) fn break_circles(&mut self) {
        let mut done = BTreeSet::new();
        for start in self.waits.keys().copied().collect::<Vec<_>>() {
            let mut path = Vec::new();
            let mut on_path = BTreeSet::new();
            let mut next = start;
            while !done.contains(&next) && on_path.insert(next) {
                path.push(next);
                match self.waits.get(&next) {
                    Some(wait) if !self.ready.is_planned(next) => next = wait.on,
                    _ => break,
                }
            }
            let closed = on_path.contains(&next) && !done.contains(&next) && self.waits.contains_key(&next);
            if closed && !self.ready.is_planned(next) {
                let circle: Vec<NodeId> = path.iter().copied().skip_while(|node| *node != next).collect();
                self.break_circle(&circle);
            }
            done.extend(path);
        }
    }

    fn break_circle(&mut self, circle: &[NodeId]) {
        for node in circle {
            let Some(Wait { on, place: Some(side) }) = self.waits.get(node).copied() else { continue };
            let triple = self.view.get(on);
            let Some(here) = triple.side(side) else { continue };
            let other = match side {
                Side::Remote => triple.local.as_ref(),
                Side::Local => triple.remote.as_ref(),
            };
            let wish = other.map_or(&here.place.name, |other| &other.place.name);
            let Ok(aside) = self.swap_place(on, here, wish) else { continue };
            let (operation, decision) = match side {
                Side::Remote => (Operation::RemoteMove(on, aside.clone()), Decision::SwapRemote),
                Side::Local => (Operation::LocalMove(on, aside.clone()), Decision::SwapLocal),
            };
            if self.ready.add(operation, Some((side, &aside))).is_ok() {
                self.reach(decision);
                return;
            }
        }
    }
}
