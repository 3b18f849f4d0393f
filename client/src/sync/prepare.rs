//! Makes tasks of a plan's operations, with all that their work needs, as the trees are now.

use std::collections::HashMap;

use proto::v1;

use super::task::{Again, DownloadTask, Ended, LocalTask, LocalWork, RemoteTask, Task, UploadTask};
use crate::local::model::{Identity, LocalRecord};
use crate::local::rel::{Rel, RelError};
use crate::local::trash::Fate;
use crate::planner::model::{Attributes, Kind, Node, NodeId, Operation, Place, ROOT};
use crate::planner::transition::{Part, node_of, part_of};
use crate::state::database::State;
use crate::state::error::StateError;
use crate::state::record::Outcome;
use crate::state::trees::{RemoteFacts, Side};

/// What a plan comes to.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// To be carried out.
    pub(crate) tasks: Vec<Task>,
    /// What concerns the state alone.
    pub(crate) outcomes: Vec<Outcome>,
    /// What cannot be done at all.
    pub(crate) failed: Vec<Ended>,
}

/// Why an operation makes no task.
enum Unfit {
    State(StateError),
    /// The trees lack something that it needs; they will have it soon, or it will not be planned again.
    Torn(&'static str),
    /// The disk cannot have that path.
    Path(RelError),
}

impl From<StateError> for Unfit {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

impl From<RelError> for Unfit {
    fn from(error: RelError) -> Self {
        Self::Path(error)
    }
}

/// Prepares a plan's operations.
pub(crate) fn prepare(state: &State, operations: Vec<Operation>) -> Result<Prepared, StateError> {
    let sequence = state.remote_position()?.sequence;
    let mut preparer = Preparer { state, sequence, folders: HashMap::new() };
    let mut prepared = Prepared::default();
    for operation in operations {
        let node = node_of(&operation);
        match preparer.one(operation, &mut prepared) {
            Ok(()) => {}
            Err(Unfit::State(error)) => return Err(error),
            Err(Unfit::Torn(reason)) => prepared.failed.push(Ended::failed(node, reason, Again::Soon)),
            Err(Unfit::Path(error)) => {
                prepared.failed.push(Ended::failed(node, error.to_string(), Again::Later));
            }
        }
    }
    Ok(prepared)
}

struct Preparer<'a> {
    state: &'a State,
    /// The server's number up to which its tree is known.
    sequence: u64,
    /// Local folders that were asked for.
    folders: HashMap<NodeId, Folder>,
}

/// A folder on the disk.
#[derive(Clone)]
struct Folder {
    rel: Rel,
    /// Which object it is; `None` for the root.
    identity: Option<Identity>,
}

impl Preparer<'_> {
    fn one(&mut self, operation: Operation, prepared: &mut Prepared) -> Result<(), Unfit> {
        let part = self.part(&operation)?;
        let task = match operation {
            Operation::Link { keep, gone } => {
                prepared.outcomes.push(Outcome::Linked { keep, gone });
                return Ok(());
            }
            Operation::Agree(node) => {
                prepared.outcomes.push(Outcome::Agreed { node });
                return Ok(());
            }
            Operation::Forget(node) => {
                prepared.outcomes.push(Outcome::Forgotten { node });
                return Ok(());
            }
            Operation::Upload(node) => Task::Upload(self.upload(node)?),
            Operation::Download(node) => Task::Download(self.download(node)?),
            Operation::RemoteCreate(node) => self.remote_create(node)?,
            Operation::RemoteRetarget(node) => self.remote_retarget(node)?,
            Operation::RemoteMove(node, to) => self.remote_move(node, &to, part)?,
            Operation::RemoteDelete(node) => self.remote_delete(node)?,
            Operation::RemoteAttributes(node, attributes) => self.remote_attributes(node, attributes)?,
            Operation::LocalCreate(node) => self.local_create(node)?,
            Operation::LocalRetarget(node) => {
                let target = match self.remote(node)?.kind {
                    Kind::Symlink(target) => target,
                    _ => return Err(Unfit::Torn("it is no symlink on the server any more")),
                };
                let mtime_ns = self.facts(node)?.mtime_ns;
                self.local(node, |record| LocalWork::Retarget { record, target, mtime_ns })?
            }
            Operation::LocalMove(node, place) => {
                let (to, within) = self.target(&place)?;
                self.local(node, |record| LocalWork::Move { record, to, place, within, part })?
            }
            Operation::LocalDelete(node) => {
                // What is on the server and goes from here is excluded.
                let is_excluded = self.state.side(Side::Remote, node)?.is_some();
                let fate = if is_excluded { Fate::Freed } else { Fate::Kept };
                self.local(node, |record| LocalWork::Delete { record, fate })?
            }
            Operation::LocalAttributes(node, attributes) => {
                self.local(node, |record| LocalWork::Attributes { record, attributes })?
            }
            Operation::Recut(node, cutter) => {
                self.local(node, |record| LocalWork::Recut { record, cutter })?
            }
            Operation::Split { node, name } => {
                let new_node = self.state.number_for_split();
                self.local(node, |record| LocalWork::Split { record, new_node, name })?
            }
        };
        prepared.tasks.push(task);
        Ok(())
    }

    /// What a move makes the same on both sides: its place, unless it only gets out of the way.
    fn part(&self, operation: &Operation) -> Result<Part, Unfit> {
        let (Operation::RemoteMove(node, _) | Operation::LocalMove(node, _)) = operation else {
            return Ok(Part::Nothing);
        };
        let remote = self.state.side(Side::Remote, *node)?;
        let local = self.state.side(Side::Local, *node)?;
        Ok(part_of(operation, remote.as_ref(), local.as_ref()).unwrap_or(Part::Nothing))
    }

    fn remote(&self, node: NodeId) -> Result<Node, Unfit> {
        self.state.side(Side::Remote, node)?.ok_or(Unfit::Torn("it is not on the server any more"))
    }

    fn facts(&self, node: NodeId) -> Result<RemoteFacts, Unfit> {
        self.state.remote_facts(node)?.ok_or(Unfit::Torn("its folder is not on the server yet"))
    }

    fn record(&self, node: NodeId) -> Result<LocalRecord, Unfit> {
        self.state.local_record(node)?.ok_or(Unfit::Torn("it is not on this device any more"))
    }

    fn remote_place(&self, place: &Place) -> Result<v1::Place, Unfit> {
        Ok(v1::Place { parent_id: self.facts(place.parent)?.entry, name: place.name.clone() })
    }

    fn folder(&mut self, node: NodeId) -> Result<Folder, Unfit> {
        if node == ROOT {
            return Ok(Folder { rel: Rel::root(), identity: None });
        }
        if let Some(folder) = self.folders.get(&node) {
            return Ok(folder.clone());
        }
        let Some(value) = self.state.side(Side::Local, node)? else {
            return Err(Unfit::Torn("its folder is not on this device yet"));
        };
        // Depth is bounded: the path has a longest length.
        let rel = self.folder(value.place.parent)?.rel.join(&value.place.name)?;
        let identity = self.state.local_record(node)?.map(|record| record.stamp.identity);
        let folder = Folder { rel, identity };
        self.folders.insert(node, folder.clone());
        Ok(folder)
    }

    fn rel_at(&mut self, place: &Place) -> Result<Rel, Unfit> {
        Ok(self.target(place)?.0)
    }

    /// Where something is to be put, and the folder that it is to be put into: by then another one may be at its path.
    fn target(&mut self, place: &Place) -> Result<(Rel, Option<Identity>), Unfit> {
        let folder = self.folder(place.parent)?;
        Ok((folder.rel.join(&place.name)?, folder.identity))
    }

    fn local(&mut self, node: NodeId, work: impl FnOnce(LocalRecord) -> LocalWork) -> Result<Task, Unfit> {
        let record = self.record(node)?;
        let rel = self.rel_at(&record.place)?;
        Ok(Task::Local(LocalTask { node, rel, work: work(record) }))
    }

    fn local_create(&mut self, node: NodeId) -> Result<Task, Unfit> {
        let Node { place, kind, mut attributes } = self.remote(node)?;
        if kind != Kind::Folder {
            attributes.mtime_ns = self.facts(node)?.mtime_ns;
        }
        let (rel, within) = self.target(&place)?;
        let work = LocalWork::Create { place, within, kind, attributes };
        Ok(Task::Local(LocalTask { node, rel, work }))
    }

    fn upload(&mut self, node: NodeId) -> Result<UploadTask, Unfit> {
        let record = self.record(node)?;
        let Kind::File(content) = record.kind else { return Err(Unfit::Torn("it is no file any more")) };
        let remote = self.state.side(Side::Remote, node)?;
        let (place, base) = match remote {
            Some(remote) => {
                let facts = self.facts(node)?;
                (remote.place, Some((facts.entry, facts.version)))
            }
            None => (record.place.clone(), None),
        };
        Ok(UploadTask {
            node,
            rel: self.rel_at(&record.place)?,
            content,
            attributes: record.attributes,
            stamp: record.stamp,
            base,
            parent: self.facts(place.parent)?.entry,
            name: place.name,
        })
    }

    fn download(&mut self, node: NodeId) -> Result<DownloadTask, Unfit> {
        let remote = self.remote(node)?;
        let Kind::File(content) = remote.kind else { return Err(Unfit::Torn("it is no file any more")) };
        let facts = self.facts(node)?;
        let replaces = match self.state.side(Side::Local, node)? {
            Some(_) => Some(self.record(node)?),
            None => None,
        };
        let place = replaces.as_ref().map_or(remote.place, |record| record.place.clone());
        let (rel, within) = self.target(&place)?;
        Ok(DownloadTask {
            node,
            rel,
            place,
            within,
            entry: facts.entry,
            version: facts.version,
            content,
            attributes: remote.attributes,
            replaces,
            keeps_replaced: self.state.was_reset()?,
        })
    }

    fn remote_task(
        &self,
        node: NodeId,
        action: v1::action::Action,
        part: Option<Part>,
        detail: &str,
    ) -> Result<Task, Unfit> {
        let path = self.state.shown_path(node)?;
        let action = v1::Action { action: Some(action) };
        Ok(Task::Remote(RemoteTask { node, action, part, path, detail: detail.to_owned() }))
    }

    fn remote_create(&self, node: NodeId) -> Result<Task, Unfit> {
        let record = self.record(node)?;
        let place = Some(self.remote_place(&record.place)?);
        let mode = record.stamp.mode;
        let mtime_ns = record.stamp.mtime_ns;
        let action = match record.kind {
            Kind::Folder => {
                let mode = record.attributes.mode;
                v1::action::Action::CreateFolder(v1::CreateFolderAt { place, mode, mtime_ns })
            }
            Kind::Symlink(target) => v1::action::Action::CreateSymlink(v1::CreateSymlinkAt {
                place,
                target: target.into(),
                mode,
                mtime_ns,
            }),
            Kind::File(_) => return Err(Unfit::Torn("it is a file by now")),
        };
        self.remote_task(node, action, Some(Part::Whole), "made")
    }

    fn remote_retarget(&self, node: NodeId) -> Result<Task, Unfit> {
        let record = self.record(node)?;
        let (Kind::Symlink(target), Kind::Symlink(before)) = (record.kind, self.remote(node)?.kind) else {
            return Err(Unfit::Torn("it is no symlink any more"));
        };
        let action = v1::action::Action::SetSymlink(v1::SetSymlinkAt {
            entry_id: self.facts(node)?.entry,
            target_before: before.into(),
            target: target.into(),
            mode: record.stamp.mode,
            mtime_ns: record.stamp.mtime_ns,
        });
        self.remote_task(node, action, Some(Part::Target), "points elsewhere")
    }

    fn remote_move(&self, node: NodeId, to: &Place, part: Part) -> Result<Task, Unfit> {
        let before = self.state.path(Side::Remote, node)?.unwrap_or_default();
        let action = v1::action::Action::Move(v1::MoveAt {
            entry_id: self.facts(node)?.entry,
            from: Some(self.remote_place(&self.remote(node)?.place)?),
            to: Some(self.remote_place(to)?),
        });
        self.remote_task(node, action, Some(part), &format!("moved from {before}"))
    }

    fn remote_delete(&self, node: NodeId) -> Result<Task, Unfit> {
        let remote = self.remote(node)?;
        let facts = self.facts(node)?;
        let action = v1::action::Action::Delete(v1::DeleteAt {
            entry_id: facts.entry,
            from: Some(self.remote_place(&remote.place)?),
            version: if matches!(remote.kind, Kind::File(_)) { facts.version } else { 0 },
            recursive: remote.kind == Kind::Folder,
            unchanged_since: self.sequence,
        });
        self.remote_task(node, action, None, "deleted")
    }

    fn remote_attributes(&self, node: NodeId, attributes: Attributes) -> Result<Task, Unfit> {
        let remote = self.remote(node)?;
        let facts = self.facts(node)?;
        let is_file = matches!(remote.kind, Kind::File(_));
        let action = v1::action::Action::SetAttributes(v1::SetAttributesAt {
            entry_id: facts.entry,
            mode: attributes.mode,
            // A folder's time is not kept in sync: as it is there.
            mtime_ns: if is_file { attributes.mtime_ns } else { facts.mtime_ns },
            version: if is_file { facts.version } else { 0 },
        });
        self.remote_task(node, action, Some(Part::Attributes), "attributes")
    }
}
