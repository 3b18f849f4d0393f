//! What is on both sides: its bytes or target, and its attributes.

use super::Planning;
use crate::planner::model::{Attributes, Kind, Node, NodeId, Operation};
use crate::planner::transition::{same_attributes, same_kind};
use crate::planner::view::{Side, Triple};
use crate::planner::{Blocked, Decision};

impl Planning<'_> {
    /// Plans what is to be done about content and attributes; says whether anything was.
    pub(super) fn content(&mut self, node: NodeId, triple: &Triple) -> Result<bool, Blocked> {
        let (Some(remote), Some(local)) = (&triple.remote, &triple.local) else { return Ok(false) };
        if same_kind(&remote.kind, &local.kind) {
            return self.attributes(node, triple, remote, local);
        }
        let (here, there) = (triple.edited(Side::Local), triple.edited(Side::Remote));
        let by_class = match (&remote.kind, &local.kind) {
            (Kind::File(_), Kind::File(_)) => self.file(node, triple, here, there),
            (Kind::Symlink(_), Kind::Symlink(_)) => match (here, there) {
                (true, false) => self.act(Decision::RetargetRemote, Operation::RemoteRetarget(node)),
                (false, true) => self.act(Decision::RetargetLocal, Operation::LocalRetarget(node)),
                _ => self.split(node, triple),
            },
            _ => Err(Blocked::Kinds),
        };
        by_class.map(|()| true)
    }

    fn file(&mut self, node: NodeId, triple: &Triple, here: bool, there: bool) -> Result<(), Blocked> {
        let (Some(remote), Some(local)) = (&triple.remote, &triple.local) else { return Ok(()) };
        let synced = triple.synced.as_ref();
        match (here, there) {
            (true, false) => {
                let mode = merged_mode(remote, local, synced);
                if mode == local.attributes.mode {
                    return self.act(Decision::UploadEdit, Operation::Upload(node));
                }
                let attributes = Attributes { mode, ..local.attributes };
                self.act(Decision::ModeBeforeUpload, Operation::LocalAttributes(node, attributes))
            }
            (false, true) => {
                let mode = merged_mode(remote, local, synced);
                if mode == remote.attributes.mode {
                    return self.act(Decision::DownloadEdit, Operation::Download(node));
                }
                let attributes = Attributes { mode, ..remote.attributes };
                self.act(Decision::ModeBeforeDownload, Operation::RemoteAttributes(node, attributes))
            }
            // Both, or (of what is not in synced) nobody knows which.
            _ => match incomparable(remote, local) {
                Some(operation) => self.act(Decision::RecutEdited, operation(node)),
                None => self.split(node, triple),
            },
        }
    }

    /// The local one becomes a node of its own; under another name, unless it is elsewhere anyway.
    fn split(&mut self, node: NodeId, triple: &Triple) -> Result<(), Blocked> {
        let (Some(remote), Some(local)) = (&triple.remote, &triple.local) else { return Ok(()) };
        let same_place = remote.place.parent == local.place.parent
            && self.rules.names.fold(&remote.place.name) == self.rules.names.fold(&local.place.name);
        if !same_place && triple.moved(Side::Local) {
            return self.act(Decision::SplitInPlace, Operation::Split { node, name: None });
        }
        let place = self.conflict_place(local)?;
        let operation = Operation::Split { node, name: Some(place.name.clone()) };
        self.ready.add(operation, Some((Side::Local, &place)))?;
        self.reach(Decision::SplitRenamed);
        Ok(())
    }

    fn attributes(
        &mut self,
        node: NodeId,
        triple: &Triple,
        remote: &Node,
        local: &Node,
    ) -> Result<bool, Blocked> {
        if same_attributes(remote, local) {
            return Ok(false);
        }
        let changed =
            |side: &Node| triple.synced.as_ref().is_none_or(|synced| !same_attributes(side, synced));
        let (decision, operation) = match (changed(local), changed(remote)) {
            (true, false) => {
                (Decision::AttributesRemote, Operation::RemoteAttributes(node, local.attributes))
            }
            (false, _) => (Decision::AttributesLocal, Operation::LocalAttributes(node, remote.attributes)),
            (true, true) => {
                (Decision::AttributesBothRemoteWins, Operation::LocalAttributes(node, remote.attributes))
            }
        };
        self.act(decision, operation).map(|()| true)
    }
}

/// Permissions as they are to be on both sides: what one side changed; the server's if both did.
fn merged_mode(remote: &Node, local: &Node, synced: Option<&Node>) -> u32 {
    match synced {
        Some(synced) if remote.attributes.mode == synced.attributes.mode => local.attributes.mode,
        _ => remote.attributes.mode,
    }
}

/// If two files may be equal but were cut otherwise: what makes them comparable.
pub(super) fn incomparable(remote: &Node, local: &Node) -> Option<impl Fn(NodeId) -> Operation + use<>> {
    match (&remote.kind, &local.kind) {
        (Kind::File(remote), Kind::File(local))
            if remote.size == local.size && remote.cutter != local.cutter =>
        {
            let cutter = remote.cutter;
            Some(move |node| Operation::Recut(node, cutter))
        }
        _ => None,
    }
}
