//! Work on the disk that moves no content.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use engine::ids::ContentId;

use super::remote::record;
use super::upload_small::end_of_read;
use crate::local::blocker::Blocker;
use crate::local::disk::{DiskError, Durability, Object, ObjectKind, moved_stamp};
use crate::local::ignore_rules::IGNORE_FILE;
use crate::local::model::{Identity, LocalIndex as _, LocalRecord};
use crate::local::rel::Rel;
use crate::local::replace::Replaced;
use crate::local::root::Root;
use crate::local::trash::{Fate, TrashFolderError};
use crate::planner::model::{Attributes, FileContent, Kind, NodeId, Place};
use crate::state::record::{Outcome, Part};
use crate::state::scan_index::ScanIndex;
use crate::state::uploads::SplitIntent;
use crate::sync::shared::Shared;
use crate::sync::status::Done;
use crate::sync::task::{After, Again, End, Ended, LocalTask, LocalWork, MovedFolder};
use crate::upload::read::cut_file;

/// Tasks carried out, and recorded, together.
pub(crate) const BATCH_MAX: usize = 256;

/// What was done on disk.
struct Performed {
    outcome: Outcome,
    what: Done,
    path: String,
    detail: String,
    /// Whose entries are to be made durable.
    folders: Vec<Rel>,
    after: After,
}

/// Carries the tasks out and records what came of them.
pub(crate) async fn run(shared: &Shared, tasks: Vec<LocalTask>) -> Vec<Ended> {
    let nodes: Vec<NodeId> = tasks.iter().flat_map(nodes_of).collect();
    let places = tasks.iter().flat_map(places_of).collect();
    let effect = shared.effects.begin(nodes, places);
    let mut ended = Vec::with_capacity(tasks.len());
    let mut ready = Vec::with_capacity(tasks.len());
    let kept_there = if tasks.iter().any(frees) { check_history(shared).await } else { Ok(()) };
    for task in tasks {
        let may = if frees(&task) { kept_there.clone() } else { Ok(()) };
        let intended = match may {
            Ok(()) => intend(shared, &task).await,
            Err(end) => Err(end),
        };
        match intended {
            Ok(()) => ready.push(task),
            Err(end) => ended.push(Ended::quietly(task.node, end)),
        }
    }
    let (root, index, rules) = (shared.root.clone(), shared.index.clone(), shared.rules.clone());
    let stop = shared.stop.clone();
    let running: Vec<NodeId> = ready.iter().map(|task| task.node).collect();
    let work = tokio::task::spawn_blocking(move || {
        let disk = Disk { root: &root, index: &index, rules: &rules, stop: &stop };
        let done: Vec<_> = ready.into_iter().map(|task| (task.node, disk.perform(&task))).collect();
        sync_folders(&root, done)
    });
    let Ok(done) = work.await else {
        let failed = |node| Ended::failed(node, "work on the disk panicked", Again::Later);
        ended.extend(running.into_iter().map(failed));
        return ended;
    };
    let mut outcomes = Vec::with_capacity(done.len());
    for (node, result) in done {
        match result {
            Ok(performed) => {
                let done = Ended::done(node, performed.what, &performed.path, performed.detail);
                ended.push(Ended { after: performed.after, ..done });
                outcomes.push(performed.outcome);
            }
            Err(end) => ended.push(Ended::quietly(node, end)),
        }
    }
    let ended = record(shared, outcomes, ended).await;
    drop(effect);
    ended
}

/// Whether what a task deletes is kept by the server alone.
fn frees(task: &LocalTask) -> bool {
    matches!(task.work, LocalWork::Delete { fate: Fate::Freed, .. })
}

/// Whether the server is still of the history that is known here: one that went back may not have what it said it has.
async fn check_history(shared: &Shared) -> Result<(), End> {
    let known = shared.known().await?;
    let root = shared.state.ask(|state| state.root_entry()).await;
    let root = root.map_err(|error| End::Failed { reason: error.to_string(), again: Again::Soon })?;
    let root = root.ok_or(End::RemoteChanged)?;
    match shared.api.is_in_tree(root, known.proof.into()).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(End::RemoteChanged),
        Err(error) => Err(End::of_call(&error)),
    }
}

fn nodes_of(task: &LocalTask) -> Vec<NodeId> {
    match &task.work {
        LocalWork::Split { new_node, .. } => vec![task.node, *new_node],
        _ => vec![task.node],
    }
}

fn places_of(task: &LocalTask) -> Vec<Place> {
    match &task.work {
        LocalWork::Create { place, .. } => vec![place.clone()],
        LocalWork::Move { record, place, .. } => vec![record.place.clone(), place.clone()],
        LocalWork::Split { record, name, .. } => {
            let renamed = name.clone().map(|name| Place { parent: record.place.parent, name });
            std::iter::once(record.place.clone()).chain(renamed).collect()
        }
        LocalWork::Retarget { record, .. }
        | LocalWork::Delete { record, .. }
        | LocalWork::Attributes { record, .. }
        | LocalWork::Recut { record, .. } => vec![record.place.clone()],
    }
}

/// Writes down what could not be told after a crash: a split that renames.
async fn intend(shared: &Shared, task: &LocalTask) -> Result<(), End> {
    let LocalWork::Split { record, new_node, name: Some(name) } = &task.work else { return Ok(()) };
    let intent = SplitIntent {
        node: task.node,
        new_node: *new_node,
        parent: record.place.parent,
        name_before: record.place.name.clone(),
        name_after: name.clone(),
        identity: record.stamp.identity,
    };
    let intended = shared.state.ask(move |state| state.intend_split(&intent)).await;
    intended.map_err(|error| End::Failed { reason: error.to_string(), again: Again::Soon })
}

type Performing = (NodeId, Result<Performed, End>);

/// Makes names durable, each folder once; what cannot be made so counts as failed.
fn sync_folders(root: &Root, mut done: Vec<Performing>) -> Vec<Performing> {
    let folders: BTreeSet<Rel> = done
        .iter()
        .filter_map(|(_node, result)| result.as_ref().ok())
        .flat_map(|performed| performed.folders.iter().cloned())
        .collect();
    let mut failed: BTreeMap<Rel, End> = BTreeMap::new();
    for folder in folders {
        match root.sync_folder(&folder) {
            // It was itself moved or removed meanwhile, by an operation of this batch or by the user.
            Ok(()) | Err(DiskError::Vanished(_) | DiskError::Changed(_)) => {}
            Err(error) => {
                failed.insert(folder, End::of_disk(&error));
            }
        }
    }
    if !failed.is_empty() {
        for (_node, result) in &mut done {
            let end = result
                .as_ref()
                .ok()
                .and_then(|performed| performed.folders.iter().find_map(|folder| failed.get(folder)));
            if let Some(end) = end.cloned() {
                *result = Err(end);
            }
        }
    }
    done
}

/// What the work needs.
struct Disk<'a> {
    root: &'a Root,
    index: &'a Mutex<ScanIndex>,
    rules: &'a crate::local::ignore_rules::IgnoreRules,
    stop: &'a tokio_util::sync::CancellationToken,
}

impl Disk<'_> {
    fn perform(&self, task: &LocalTask) -> Result<Performed, End> {
        let later = Durability::Later;
        let rel = &task.rel;
        let disk = |error: DiskError| End::of_disk(&error);
        match &task.work {
            LocalWork::Create { place, within, kind, attributes } => {
                let stamp = match kind {
                    Kind::Folder => match self.root.create_folder(rel, attributes.mode, *within, later) {
                        Err(DiskError::Exists(_)) => return self.adopt(rel, task.node, place),
                        made => made,
                    },
                    Kind::Symlink(target) => {
                        self.root.create_symlink(rel, target, attributes.mtime_ns, *within, later)
                    }
                    Kind::File(_) => return Err(End::LocalChanged),
                };
                let record = LocalRecord {
                    node: task.node,
                    place: place.clone(),
                    kind: kind.clone(),
                    attributes: *attributes,
                    stamp: stamp.map_err(disk)?,
                };
                Ok(local(record, Part::Whole, rel, rel.parent(), "made"))
            }
            LocalWork::Retarget { record, target, mtime_ns } => {
                let stamp = self
                    .root
                    .replace_by_symlink(rel, target, *mtime_ns, &record.stamp, Replaced::Removed, later)
                    .map_err(disk)?;
                let record = LocalRecord { kind: Kind::Symlink(target.clone()), stamp, ..record.clone() };
                Ok(local(record, Part::Target, rel, rel.parent(), "points elsewhere"))
            }
            LocalWork::Move { record, to, place, within, part } => {
                let performed = self.rename(rel, record, (to, *within), place)?;
                Ok(with_part(performed, *part))
            }
            LocalWork::Delete { record, fate } => self.delete(rel, record, *fate),
            LocalWork::Attributes { record, attributes } => {
                let stamp = self
                    .root
                    .set_attributes(rel, &record.stamp, attributes.mode, attributes.mtime_ns)
                    .map_err(disk)?;
                let record = LocalRecord { attributes: *attributes, stamp, ..record.clone() };
                Ok(local(record, Part::Attributes, rel, None, "attributes"))
            }
            LocalWork::Recut { record, cutter } => self.recut(rel, record, *cutter),
            LocalWork::Split { record, new_node, name } => {
                self.split(rel, task.node, record, *new_node, name.as_deref())
            }
        }
    }

    /// Takes a folder that is at the place already, and that nothing is known of, for the one that is to be there: one
    /// that holds only what is ignored, which no scan takes in.
    fn adopt(&self, rel: &Rel, node: NodeId, place: &Place) -> Result<Performed, End> {
        let there = self.root.stat(rel).map_err(|error| End::of_disk(&error))?;
        let Some(Object { kind: ObjectKind::Folder, stamp, .. }) = there else {
            return Err(End::LocalChanged);
        };
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is to come into another root, or into data of this program's own.
        let is_in_the_way = |blocker: &Blocker| !blocker.kind.may_be_adopted();
        if self.root.blocker(rel, &*index, self.rules).as_ref().is_some_and(is_in_the_way)
            || index.by_identity(stamp.identity).is_some()
            || index.check().is_err()
        {
            return Err(End::LocalChanged);
        }
        let attributes = Attributes { mode: stamp.mode, mtime_ns: stamp.mtime_ns };
        let record = LocalRecord { node, place: place.clone(), kind: Kind::Folder, attributes, stamp };
        let performed = local(record, Part::Whole, rel, rel.parent(), "was here already");
        Ok(Performed { after: After { look_below: true, ..After::default() }, ..performed })
    }

    /// `to`: where, and in which folder.
    fn rename(
        &self,
        from: &Rel,
        record: &LocalRecord,
        (to, within): (&Rel, Option<Identity>),
        place: &Place,
    ) -> Result<Performed, End> {
        let stamp = self
            .root
            .move_entry(from, to, record.stamp.identity, within, Durability::Later)
            .map_err(|error| End::of_disk(&error))?;
        let stamp = moved_stamp(&record.stamp, stamp);
        let rules_left = (from.name() == IGNORE_FILE).then_some(record.place.parent);
        let record = LocalRecord { place: place.clone(), stamp, ..record.clone() };
        let moved = (record.kind == Kind::Folder).then(|| MovedFolder {
            from: from.clone(),
            to: to.clone(),
            ruled: [from, to].into_iter().any(|rel| self.is_ruled(rel)),
        });
        let performed = local(record, Part::Place, to, to.parent(), &format!("moved from {}", from.as_str()));
        let folders = performed.folders.into_iter().chain(from.parent()).collect();
        Ok(Performed { folders, after: After { moved, rules_left, ..After::default() }, ..performed })
    }

    /// Whether there are files with rules above a place, as far as that can be told.
    fn is_ruled(&self, rel: &Rel) -> bool {
        let level = self.rules.level_of(self.root, &rel.parent().unwrap_or_default());
        level.map_or(true, |level| level.has_rules())
    }

    fn delete(&self, rel: &Rel, record: &LocalRecord, fate: Fate) -> Result<Performed, End> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let trashed = if record.kind == Kind::Folder {
            let trashed = self.root.trash_folder(rel, record.node, &*index, self.rules, fate);
            index.check().map_err(|error| End::Failed { reason: error.to_string(), again: Again::Soon })?;
            trashed.map_err(|error| match error {
                TrashFolderError::Disk(error) => End::of_disk(&error),
                TrashFolderError::Blocked { .. } => {
                    End::Failed { reason: error.to_string(), again: Again::Later }
                }
            })
        } else {
            self.root.trash_or_free(rel, record, &*index, fate).map_err(|error| End::of_disk(&error))
        };
        drop(index);
        Ok(Performed {
            outcome: Outcome::LocalGone { node: record.node },
            what: Done::LocalDeleted,
            path: rel.as_str().to_owned(),
            detail: trashed?,
            folders: rel.parent().into_iter().collect(),
            after: After::default(),
        })
    }

    fn recut(
        &self,
        rel: &Rel,
        record: &LocalRecord,
        cutter: engine::cutter::Cutter,
    ) -> Result<Performed, End> {
        let (file, stamp) = self.root.open_for_read(rel).map_err(|error| End::of_disk(&error))?;
        if stamp != record.stamp {
            return Err(End::LocalChanged);
        }
        let mut go_on = || !self.stop.is_cancelled();
        let entries = cut_file(&file, stamp.size, cutter, &mut go_on);
        if self.stop.is_cancelled() {
            return Err(End::Stopped);
        }
        let content = ContentId::of(&entries.map_err(end_of_read)?);
        match self.root.stat(rel) {
            Ok(Some(object)) if object.stamp == stamp => {}
            Ok(_) => return Err(End::LocalChanged),
            Err(error) => return Err(End::of_disk(&error)),
        }
        let kind = Kind::File(FileContent { content, size: stamp.size, cutter });
        Ok(Performed {
            outcome: Outcome::Recut { record: LocalRecord { kind, ..record.clone() } },
            what: Done::LocalChanged,
            path: rel.as_str().to_owned(),
            detail: "read again to compare".to_owned(),
            folders: Vec::new(),
            after: After::default(),
        })
    }

    fn split(
        &self,
        rel: &Rel,
        node: NodeId,
        record: &LocalRecord,
        new_node: NodeId,
        name: Option<&str>,
    ) -> Result<Performed, End> {
        let mut record = LocalRecord { node: new_node, ..record.clone() };
        let mut at = rel.clone();
        if let Some(name) = name {
            let refused = |error: crate::local::rel::RelError| End::Failed {
                reason: error.to_string(),
                again: Again::Later,
            };
            at = rel.parent().unwrap_or_default().join(name).map_err(refused)?;
            let stamp = self
                .root
                // In its own folder, whichever that is.
                .move_entry(rel, &at, record.stamp.identity, None, Durability::Later)
                .map_err(|error| End::of_disk(&error))?;
            record.stamp = moved_stamp(&record.stamp, stamp);
            name.clone_into(&mut record.place.name);
        }
        Ok(Performed {
            outcome: Outcome::Split { node, record },
            what: Done::Conflict,
            path: at.as_str().to_owned(),
            detail: format!("{} was changed here and elsewhere; both are kept", rel.as_str()),
            folders: at.parent().into_iter().collect(),
            after: After::default(),
        })
    }
}

fn with_part(performed: Performed, part: Part) -> Performed {
    let outcome = match performed.outcome {
        Outcome::Local { record, part: _ } => Outcome::Local { record, part },
        other => other,
    };
    Performed { outcome, ..performed }
}

fn local(record: LocalRecord, part: Part, rel: &Rel, folder: Option<Rel>, detail: &str) -> Performed {
    Performed {
        outcome: Outcome::Local { record, part },
        what: Done::LocalChanged,
        path: rel.as_str().to_owned(),
        detail: detail.to_owned(),
        folders: folder.into_iter().collect(),
        after: After::default(),
    }
}

#[cfg(test)]
mod tests;
