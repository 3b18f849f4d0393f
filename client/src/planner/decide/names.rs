//! Names for what cannot have its own: the first that is free on both sides.

use super::Planning;
use crate::planner::model::{Node, NodeId, Operation, Place};
use crate::planner::names::{NameProblem, conflicted, plain_of_swap, renamed, selective, swap};
use crate::planner::ready::is_folder;
use crate::planner::view::Side;
use crate::planner::{Blocked, Decision};

/// Names that are tried before it is given up.
const NAMES_TRIED_MAX: u32 = 10_000;

impl Planning<'_> {
    fn free_place(&self, node: &Node, name: impl Fn(u32) -> String) -> Result<Place, Blocked> {
        let parent = node.place.parent;
        (1..=NAMES_TRIED_MAX)
            .map(|number| Place { parent, name: name(number) })
            .find(|place| !self.rules.names.refused(parent, &place.name) && self.ready.is_free(place))
            .ok_or(Blocked::NoName)
    }

    pub(super) fn conflict_place(&self, node: &Node) -> Result<Place, Blocked> {
        let (name, rules) = (&node.place.name, self.rules);
        let folder = is_folder(&node.kind);
        self.free_place(node, |number| conflicted(name, folder, &rules.name, &rules.date, number))
    }

    pub(super) fn selective_place(&self, node: &Node) -> Result<Place, Blocked> {
        let folder = is_folder(&node.kind);
        self.free_place(node, |number| selective(&node.place.name, folder, number))
    }

    pub(super) fn renamed_place(&self, node: &Node, problem: NameProblem) -> Result<Place, Blocked> {
        let folder = is_folder(&node.kind);
        self.free_place(node, |number| renamed(&node.place.name, folder, problem, number))
    }

    pub(in crate::planner) fn swap_place(
        &self,
        id: NodeId,
        node: &Node,
        wish: &str,
    ) -> Result<Place, Blocked> {
        self.free_place(node, |number| swap(id, wish, number))
    }

    /// Something new that goes by a name for stepping aside was left over by a crash: it gets its right name, or a
    /// conflict name if that is taken.
    pub(super) fn rename_leftover(
        &mut self,
        id: NodeId,
        node: &Node,
        side: Side,
    ) -> Option<Result<(), Blocked>> {
        let plain = plain_of_swap(&node.place.name)?;
        let mut righted = node.clone();
        plain.clone_into(&mut righted.place.name);
        let place = if self.ready.is_free(&righted.place) {
            Ok(righted.place)
        } else {
            self.conflict_place(&righted)
        };
        Some(place.and_then(|place| {
            let (operation, decision) = match side {
                Side::Remote => (Operation::RemoteMove(id, place.clone()), Decision::SwapLeftoverRemote),
                Side::Local => (Operation::LocalMove(id, place.clone()), Decision::SwapLeftoverLocal),
            };
            self.ready.add(operation, Some((side, &place)))?;
            self.reach(decision);
            Ok(())
        }))
    }
}
