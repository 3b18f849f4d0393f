//! What scans say of the disk.

use std::collections::BTreeSet;

use super::database::State;
use super::error::StateError;
use super::trees::Side;
use crate::local::model::{LocalRecord, LocalUpdate};
use crate::planner::model::{Kind, Node, NodeId, ROOT};

/// What was done to the disk by this program while a scan looked at it: what the scan says of these is not believed.
pub trait Touched {
    /// Whether a node was changed, or is being changed.
    fn node(&self, node: NodeId) -> bool;
    /// Whether something was put at a place or taken from it, or is being so.
    fn place(&self, parent: NodeId, name: &str) -> bool;
}

/// What came of a scan's updates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalApplied {
    /// Nodes that are otherwise now than they were known.
    pub changed: Vec<NodeId>,
    /// Folders to be looked at again: something in them was not believed.
    pub again: BTreeSet<NodeId>,
}

impl State {
    /// Takes in a scan's updates, in one transaction.
    ///
    /// # Errors
    /// If the file cannot be written; then nothing was taken in.
    pub fn apply_local(
        &mut self,
        updates: Vec<LocalUpdate>,
        touched: &dyn Touched,
    ) -> Result<LocalApplied, StateError> {
        self.transaction(|state| {
            let mut applied = LocalApplied::default();
            let moving: BTreeSet<NodeId> = updates
                .iter()
                .map(|update| match update {
                    LocalUpdate::Put(record) => record.node,
                    LocalUpdate::Gone(node) => *node,
                })
                .collect();
            let mut gone = Vec::new();
            let mut put = Vec::new();
            for update in updates {
                match update {
                    LocalUpdate::Put(record) => {
                        if state.put_local(&record, &moving, touched, &mut applied)? {
                            put.push(record);
                        }
                    }
                    LocalUpdate::Gone(node) => gone.push(node),
                }
            }
            for node in gone {
                state.gone_local(node, touched, &mut applied)?;
            }
            for record in put {
                state.check_parent(&record, &mut applied)?;
            }
            Ok(applied)
        })
    }

    fn put_local(
        &self,
        record: &LocalRecord,
        moving: &BTreeSet<NodeId>,
        touched: &dyn Touched,
        applied: &mut LocalApplied,
    ) -> Result<bool, StateError> {
        let node = record.node;
        if node == ROOT {
            self.write_stamp(ROOT, Some(record.stamp))?;
            return Ok(false);
        }
        let place = &record.place;
        let occupant = self.side_at(Side::Local, place.parent, &place.name)?;
        let taken = occupant.is_some_and(|other| other != node && !moving.contains(&other));
        if taken || touched.node(node) || touched.place(place.parent, &place.name) {
            applied.again.insert(place.parent);
            return Ok(false);
        }
        if self.local_record(node)?.as_ref() == Some(record) {
            return Ok(false);
        }
        let value = Node { place: place.clone(), kind: record.kind.clone(), attributes: record.attributes };
        self.set_side(Side::Local, node, Some(value))?;
        self.write_stamp(node, Some(record.stamp))?;
        applied.changed.push(node);
        Ok(true)
    }

    fn gone_local(
        &self,
        node: NodeId,
        touched: &dyn Touched,
        applied: &mut LocalApplied,
    ) -> Result<(), StateError> {
        let Some(was) = self.side(Side::Local, node)? else { return Ok(()) };
        if node == ROOT {
            return Err(StateError::Unusable("a scan says that the root is gone".to_owned()));
        }
        let mut pending = vec![node];
        while let Some(next) = pending.pop() {
            if touched.node(next) {
                applied.again.insert(was.place.parent);
                return Ok(());
            }
            pending.extend(self.side_children(Side::Local, next)?);
        }
        applied.changed.extend(self.remove_below(Side::Local, node)?);
        Ok(())
    }

    /// Takes out again what was put into a folder that is not there (it was removed meanwhile).
    fn check_parent(&self, record: &LocalRecord, applied: &mut LocalApplied) -> Result<(), StateError> {
        let parent = self.side(Side::Local, record.place.parent)?;
        if !parent.is_some_and(|parent| parent.kind == Kind::Folder)
            && self.side(Side::Local, record.node)?.is_some()
        {
            self.remove_below(Side::Local, record.node)?;
            applied.again.insert(ROOT);
        }
        Ok(())
    }
}
