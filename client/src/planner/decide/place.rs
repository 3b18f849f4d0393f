//! Coming to a place, on either side: the folder has to be there, the place free, and the name one that can be.

use super::Planning;
use crate::planner::fate::{Fate, Wish};
use crate::planner::model::{Node, NodeId, Operation, Place};
use crate::planner::names::NameProblem;
use crate::planner::view::{Side, Triple};
use crate::planner::waits::Wait;
use crate::planner::{Blocked, Decision};

impl Planning<'_> {
    pub(super) fn move_remote(&mut self, node: NodeId, triple: &Triple) -> Result<(), Blocked> {
        let Some(local) = triple.local.as_ref() else { return Ok(()) };
        self.outside_itself(Side::Remote, node, local.place.parent)?;
        self.come_remote(node, local, Decision::TakenMoved, |planning| {
            let operation = Operation::RemoteMove(node, local.place.clone());
            planning.ready.add(operation, Some((Side::Remote, &local.place)))?;
            planning.reach(Decision::MoveRemote);
            Ok(())
        })
    }

    pub(super) fn move_local(
        &mut self,
        node: NodeId,
        triple: &Triple,
        decision: Decision,
    ) -> Result<(), Blocked> {
        let Some(remote) = triple.remote.as_ref() else { return Ok(()) };
        self.outside_itself(Side::Local, node, remote.place.parent)?;
        self.come_local(node, remote, |planning| {
            let operation = Operation::LocalMove(node, remote.place.clone());
            planning.ready.add(operation, Some((Side::Local, &remote.place)))?;
            planning.reach(decision);
            Ok(())
        })
    }

    /// A folder cannot come to be within itself: what it is to be in has to leave it first.
    fn outside_itself(&mut self, side: Side, node: NodeId, folder: NodeId) -> Result<(), Blocked> {
        let Some(between) = self.view.between(side, node, folder) else { return Ok(()) };
        let leaves = between.into_iter().find(|inner| {
            let wish = self.view.own_fate(*inner);
            match side {
                Side::Remote => wish == Fate::Both(Wish::MoveRemote),
                Side::Local => {
                    matches!(wish, Fate::Both(Wish::MoveLocal(_) | Wish::Undo) | Fate::Send(_))
                }
            }
        });
        self.reach(Decision::MoveWaitsForInner);
        let inner = leaves.unwrap_or(folder);
        self.waits.insert(node, Wait::plain(inner));
        Err(Blocked::Leaving(inner))
    }

    /// Does `then` if a node can come to its local place on the server now. If another stays there, the local one gets
    /// the conflict name.
    pub(super) fn come_remote(
        &mut self,
        node: NodeId,
        local: &Node,
        taken: Decision,
        then: impl FnOnce(&mut Self) -> Result<(), Blocked>,
    ) -> Result<(), Blocked> {
        let folder = local.place.parent;
        if !self.view.has_folder(Side::Remote, folder) {
            self.reach(Decision::WaitFolderRemote);
            self.waits.insert(node, Wait::plain(folder));
            return Err(Blocked::Folder(folder));
        }
        let Some(other) = self.view.at(Side::Remote, &local.place).filter(|other| *other != node) else {
            return then(self);
        };
        if matches!(self.fate(other), Fate::GoesRemote | Fate::Both(Wish::MoveRemote)) {
            self.reach(Decision::WaitPlaceRemote);
            self.waits.insert(node, Wait::occupant(other, Side::Remote));
            return Err(Blocked::Place(other));
        }
        if self.ready.is_busy(other) {
            return Err(Blocked::Busy);
        }
        let excluded = self.view.is_excluded(other);
        let place = if excluded { self.selective_place(local)? } else { self.conflict_place(local)? };
        self.ready.add(Operation::LocalMove(node, place.clone()), Some((Side::Local, &place)))?;
        self.reach(if excluded { Decision::ExcludedTaken } else { taken });
        Ok(())
    }

    /// Does `then` if a node can come to its remote place here now. If another stays there, that is its own to
    /// resolve; but what differs only to this device's file system is renamed on the server.
    pub(super) fn come_local(
        &mut self,
        node: NodeId,
        remote: &Node,
        then: impl FnOnce(&mut Self) -> Result<(), Blocked>,
    ) -> Result<(), Blocked> {
        let place = &remote.place;
        if self.rules.names.refused(place.parent, &place.name) {
            return self.rename_for_device(node, remote, NameProblem::Reserved);
        }
        let folder = place.parent;
        if !self.view.has_folder(Side::Local, folder) {
            self.reach(Decision::WaitFolderLocal);
            self.waits.insert(node, Wait::plain(folder));
            return Err(Blocked::Folder(folder));
        }
        let Some(other) = self.ready.occupant_here(node, place) else { return then(self) };
        let occupant = self.view.get(other);
        let Some(theirs) = occupant.local.as_ref() else { return then(self) };
        if theirs.place == *place
            && occupant.remote.is_none()
            && self.view.get(node).local.is_none()
            && self.link(other, node)?
        {
            return Ok(());
        }
        let stays = occupant.remote.as_ref().is_some_and(|there| there.place == theirs.place);
        let leaves = matches!(self.fate(other), Fate::GoesLocal | Fate::Leaves);
        if stays && !leaves && theirs.place != *place {
            let problem = self.rules.names.clash(&theirs.place.name, &place.name);
            return self.rename_for_device(node, remote, problem);
        }
        self.reach(Decision::WaitPlaceLocal);
        self.waits.insert(node, Wait::occupant(other, Side::Local));
        Err(Blocked::Place(other))
    }

    /// Gives a node another name on the server, for all: this device cannot hold it under its own.
    fn rename_for_device(
        &mut self,
        node: NodeId,
        remote: &Node,
        problem: NameProblem,
    ) -> Result<(), Blocked> {
        let place: Place = self.renamed_place(remote, problem)?;
        self.ready.add(Operation::RemoteMove(node, place.clone()), Some((Side::Remote, &place)))?;
        self.reach(match problem {
            NameProblem::Case => Decision::RenameCase,
            NameProblem::Unicode => Decision::RenameUnicode,
            NameProblem::Reserved => Decision::RenameReserved,
        });
        Ok(())
    }
}
