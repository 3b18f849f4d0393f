//! What operations came to. Each outcome is one change of the trees, `synced` included.
//!
//! `synced` learns what was done, not what is now: a file that is edited here while it goes up differs from what went
//! up, and that is one side's edit, not two.

use proto::v1;

use super::database::State;
use super::deletes::CARRIED_OUT;
use super::error::StateError;
use super::reached::Reached;
use super::row::{id, signed, unsigned};
use super::trees::{RemoteFacts, Side};
use crate::local::model::{LocalRecord, Stamp};
use crate::planner::model::{Kind, Node, NodeId, ROOT};
pub use crate::planner::transition::Part;
use crate::planner::transition::agreed;

/// What was done.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// On the server: the node is now as the entry says.
    Remote {
        /// Which.
        node: NodeId,
        /// As the server answered.
        entry: v1::Entry,
        /// What was done.
        part: Part,
    },
    /// On the server: deleted, with all below it. The entry as it was.
    RemoteGone {
        /// Which.
        node: NodeId,
        /// As the server answered; `None`: it was gone already.
        entry: Option<v1::Entry>,
    },
    /// On the disk: the node is now so.
    Local {
        /// As it was made.
        record: LocalRecord,
        /// What was done.
        part: Part,
    },
    /// On the disk: moved into the trash, with all below it.
    LocalGone {
        /// Which.
        node: NodeId,
    },
    /// The local file's content under another cutter.
    Recut {
        /// With that content.
        record: LocalRecord,
    },
    /// Both sides agree.
    Agreed {
        /// On which.
        node: NodeId,
    },
    /// What both sides once agreed on counts no more.
    Forgotten {
        /// Of which.
        node: NodeId,
    },
    /// Two nodes are one.
    Linked {
        /// Stands for both.
        keep: NodeId,
        /// Is forgotten.
        gone: NodeId,
    },
    /// Two nodes are one, and the local file is an earlier version of the server's: both sides once agreed on it.
    Adopted {
        /// The local one; stands for both.
        keep: NodeId,
        /// The server's; is forgotten.
        gone: NodeId,
        /// How the local file was when it was compared.
        stamp: Stamp,
    },
    /// The local copy became a node of its own, as it is on the disk now.
    Split {
        /// Which it was.
        node: NodeId,
        /// As it is now, with the new node's number.
        record: LocalRecord,
    },
}

impl State {
    /// A number for a node that [`Outcome::Split`] makes.
    #[must_use]
    pub fn number_for_split(&self) -> NodeId {
        self.new_node()
    }

    /// Records what was done, in one transaction. Gives the nodes that were put into a folder that is not there any more, as
    /// far as is known: nothing was recorded of these, and what is at their places is for a scan to say.
    ///
    /// # Errors
    /// If the file cannot be written; then nothing was recorded.
    pub fn record(&mut self, outcomes: &[Outcome]) -> Result<Vec<NodeId>, StateError> {
        self.transaction(|state| state.record_all(outcomes))
    }

    /// Records what an answer of the server's came to, and where it has led, in one transaction. False: it may be of another
    /// history than what is known by now, and nothing was recorded.
    ///
    /// # Errors
    /// If the file cannot be written; then nothing was recorded.
    pub fn record_answered(
        &mut self,
        asked: &Reached,
        told: &Reached,
        outcomes: &[Outcome],
    ) -> Result<bool, StateError> {
        self.transaction(|state| {
            let taken = state.take_answer(asked, told)?;
            if taken {
                let nowhere = state.record_all(outcomes)?;
                debug_assert!(nowhere.is_empty(), "an answer of the server's puts nothing on the disk");
            }
            Ok(taken)
        })
    }

    fn record_all(&self, outcomes: &[Outcome]) -> Result<Vec<NodeId>, StateError> {
        let before = self.deletes_carried_out();
        let mut nowhere = Vec::new();
        for outcome in outcomes {
            match outcome {
                Outcome::Local { record, .. } if !self.has_folder(record)? => nowhere.push(record.node),
                _ => self.record_one(outcome)?,
            }
        }
        let after = self.deletes_carried_out();
        if after != before {
            self.set_number(CARRIED_OUT, signed(after))?;
        }
        Ok(nowhere)
    }

    /// Whether the folder is there that something was put into. A scan may have found it gone since.
    fn has_folder(&self, record: &LocalRecord) -> Result<bool, StateError> {
        let parent = record.place.parent;
        let is_folder = |node: Node| node.kind == Kind::Folder;
        Ok(parent == ROOT || self.side(Side::Local, parent)?.is_some_and(is_folder))
    }

    fn record_one(&self, outcome: &Outcome) -> Result<(), StateError> {
        match outcome {
            Outcome::Remote { node, entry, part } => self.record_remote(*node, entry, *part),
            Outcome::RemoteGone { node, entry } => self.record_remote_gone(*node, entry.as_ref()),
            Outcome::Local { record, part } => self.record_local(record, *part),
            Outcome::LocalGone { node } => {
                let removed = self.remove_below(Side::Local, *node)?;
                removed.into_iter().try_for_each(|node| self.forget_deleted(Side::Local, node))
            }
            Outcome::Recut { record } => {
                // What was scanned meanwhile is newer.
                if self.local_record(record.node)?.is_some_and(|known| known.stamp == record.stamp) {
                    self.write_local(record)?;
                }
                self.settle(record.node)
            }
            Outcome::Agreed { node } => self.settle(*node),
            Outcome::Forgotten { node } => self.set_synced_if_known(*node, None),
            Outcome::Linked { keep, gone } => self.link(*keep, *gone),
            Outcome::Adopted { keep, gone, stamp } => {
                let unchanged = self.local_record(*keep)?.is_some_and(|known| known.stamp == *stamp);
                let apart = self.side(Side::Remote, *keep)?.is_none() && self.synced(*gone)?.is_none();
                if unchanged && apart {
                    let agreed = self.side(Side::Local, *keep)?;
                    self.link(*keep, *gone)?;
                    self.set_synced(*keep, agreed)?;
                }
                Ok(())
            }
            Outcome::Split { node, record } => {
                self.set_side(Side::Local, *node, None)?;
                self.set_synced_if_known(*node, None)?;
                if self.has_folder(record)? {
                    self.write_local(record)?;
                }
                self.remove_split(*node)
            }
        }
    }

    fn record_local(&self, record: &LocalRecord, part: Part) -> Result<(), StateError> {
        let known = self.local_record(record.node)?;
        match known {
            // Edited between the plan and the move: what was scanned is newer, its place is not. Its stamp is from
            // before the move, so that it is looked at once more.
            Some(known)
                if matches!(part, Part::Place | Part::Nothing)
                    && (known.kind != record.kind || known.attributes != record.attributes) =>
            {
                self.write_local(&LocalRecord { place: record.place.clone(), ..known })?;
            }
            _ => self.write_local(record)?,
        }
        let done = self.side(Side::Local, record.node)?;
        self.agree_part(record.node, done, part)
    }

    fn write_local(&self, record: &LocalRecord) -> Result<(), StateError> {
        let value =
            Node { place: record.place.clone(), kind: record.kind.clone(), attributes: record.attributes };
        self.set_side(Side::Local, record.node, Some(value))?;
        self.write_stamp(record.node, Some(record.stamp))
    }

    fn record_remote(&self, node: NodeId, entry: &v1::Entry, part: Part) -> Result<(), StateError> {
        // It was made anew, and the journal has told meanwhile that the old one is back: that is another thing.
        if self.remote_facts(node)?.is_some_and(|facts| facts.entry != entry.id)
            && self.side(Side::Remote, node)?.is_some()
        {
            let old = self.new_node();
            self.ensure_row(old)?;
            self.take_remote_from(old, node)?;
        }
        let known = self.node_of_entry(entry.id)?;
        let is_there = match known {
            Some(known) => self.side(Side::Remote, known)?.is_some(),
            None => false,
        };
        if !is_there && entry.sequence <= unsigned(self.number("sequence")?.unwrap_or(0)) {
            // The journal has told up to here: it is gone already, or was changed again and is told later.
            if self.side(Side::Local, node)?.is_none() {
                return Ok(());
            }
            if known.is_none() {
                self.set_remote_facts(node, Some(only_named(entry)))?;
            }
            return self.agree_with(node, entry, part);
        }
        // The journal may have told of it before this answer came: then it has a node of its own.
        match known {
            Some(known) if known != node => {
                self.set_side(Side::Remote, node, None)?;
                self.ensure_row(node)?;
                self.take_remote_from(node, known)?;
            }
            Some(_) => {}
            None => {
                self.ensure_row(node)?;
                self.set_remote_facts(node, Some(only_named(entry)))?;
            }
        }
        let taken = self.take_entry(entry)?;
        self.keep_in_batch(taken)?;
        self.doubt_place(taken)?;
        if !is_there && part != Part::Whole {
            // The journal has told meanwhile that it is gone, and what was below it makes no news of its own.
            self.list_in_next_batch(taken)?;
        }
        self.agree_with(node, entry, part)
    }

    fn agree_with(&self, node: NodeId, entry: &v1::Entry, part: Part) -> Result<(), StateError> {
        let parent = self.node_of_entry(entry.parent)?;
        let done = parent.and_then(|parent| super::remote::node_of(entry, parent));
        self.agree_part(node, done, part)
    }

    fn record_remote_gone(&self, node: NodeId, entry: Option<&v1::Entry>) -> Result<(), StateError> {
        let mut is_back = false;
        if let Some(entry) = entry {
            self.remember_deleted(entry.id, entry.sequence)?;
            // The journal may have told by now that it is back.
            let known = self.remote_facts(node)?;
            is_back = known.is_some_and(|facts| facts.entry == entry.id && facts.sequence > entry.sequence);
        }
        let removed = match self.side(Side::Remote, node)? {
            Some(_) if !is_back => self.remove_below(Side::Remote, node)?,
            _ => vec![node],
        };
        removed.into_iter().try_for_each(|node| self.forget_deleted(Side::Remote, node))
    }

    /// Makes `synced` have `done`'s part.
    fn agree_part(&self, node: NodeId, done: Option<Node>, part: Part) -> Result<(), StateError> {
        let Some(done) = done else { return Ok(()) };
        let known = self.synced(node)?;
        let synced = agreed(known.clone(), &done, part);
        if synced == known { Ok(()) } else { self.set_synced(node, synced) }
    }

    fn set_synced_if_known(&self, node: NodeId, value: Option<Node>) -> Result<(), StateError> {
        if self.synced(node)?.is_some() { self.set_synced(node, value) } else { Ok(()) }
    }

    fn ensure_row(&self, node: NodeId) -> Result<(), StateError> {
        self.connection.prepare_cached("INSERT OR IGNORE INTO nodes (id) VALUES (?)")?.execute([id(node)])?;
        Ok(())
    }

    /// Joins two nodes, of which `keep` lacks a side that `gone` has.
    pub(super) fn link(&self, keep: NodeId, gone: NodeId) -> Result<(), StateError> {
        if self.side(Side::Remote, keep)?.is_none() && self.side(Side::Remote, gone)?.is_some() {
            self.take_remote_from(keep, gone)?;
        }
        if self.side(Side::Local, keep)?.is_none()
            && let Some(record) = self.local_record(gone)?
        {
            self.take_children(keep, gone, Side::Local)?;
            self.set_side(Side::Local, gone, None)?;
            self.write_local(&LocalRecord { node: keep, ..record })?;
        }
        self.set_synced_if_known(gone, None)?;
        self.settle(keep)
    }

    /// Gives `keep` all that is known of `gone` on the server.
    fn take_remote_from(&self, keep: NodeId, gone: NodeId) -> Result<(), StateError> {
        let facts = self.remote_facts(gone)?;
        let value = self.side(Side::Remote, gone)?;
        self.take_children(keep, gone, Side::Remote)?;
        self.connection
            .prepare_cached("UPDATE OR REPLACE arrivals SET node = ? WHERE node = ?")?
            .execute([id(keep), id(gone)])?;
        self.set_remote_facts(gone, None)?;
        self.set_side(Side::Remote, gone, None)?;
        if value.is_some() {
            self.set_side(Side::Remote, keep, value)?;
        }
        self.set_remote_facts(keep, facts)
    }

    /// Makes the children that `gone` has on one side those of `keep`.
    fn take_children(&self, keep: NodeId, gone: NodeId, side: Side) -> Result<(), StateError> {
        for child in self.side_children(side, gone)? {
            if let Some(mut value) = self.side(side, child)? {
                value.place.parent = keep;
                self.set_side(side, child, Some(value))?;
            }
        }
        Ok(())
    }
}

/// What is known of an entry before anything is told of it.
fn only_named(entry: &v1::Entry) -> RemoteFacts {
    RemoteFacts { entry: entry.id, version: 0, sequence: 0, mtime_ns: 0 }
}
