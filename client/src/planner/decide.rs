//! The table of docs/sync.md: what to do about each node that is not the same in all three trees.

mod content;
mod names;
mod pair;
mod place;
mod rules_first;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use super::fate::{Because, Fate, Wish};
use super::model::{Kind, NodeId, Operation, ROOT};
use super::ready::Ready;
use super::survivors::Survivors;
use super::transition::settled;
use super::view::{Side, Triple, View};
use super::waits::Wait;
use super::{Blocked, Decision, Decisions, Deletes, Plan, Rules, Trees};

/// What came of looking at a node. `Ok`: something is planned, or nothing need be.
type Decided = Result<(), Blocked>;

/// One planning.
pub(super) struct Planning<'a> {
    pub(super) view: &'a View<'a>,
    dirty: &'a [NodeId],
    rules: &'a Rules,
    pub(super) ready: Ready<'a>,
    survivors: OnceCell<Survivors>,
    /// Folders that hold one that could not be read.
    holds_unread: OnceCell<BTreeSet<NodeId>>,
    decisions: Decisions,
    /// Folders of which it was asked whether rules for them are to come.
    awaiting: BTreeMap<NodeId, bool>,
    /// What waits for what.
    pub(super) waits: BTreeMap<NodeId, Wait>,
}

/// Plans; see [`super::plan`].
pub(super) fn plan(trees: &Trees<'_>, dirty: &[NodeId], busy: &BTreeSet<NodeId>, rules: &Rules) -> Plan {
    let view = View::new(trees, &rules.tag);
    let planning = Planning {
        view: &view,
        dirty,
        rules,
        ready: Ready::new(&view, &rules.names, busy),
        survivors: OnceCell::new(),
        holds_unread: OnceCell::new(),
        decisions: Decisions::new(),
        awaiting: BTreeMap::new(),
        waits: BTreeMap::new(),
    };
    planning.run()
}

impl Planning<'_> {
    fn run(mut self) -> Plan {
        let mut blocked = Vec::new();
        let mut truncated = false;
        for &node in self.dirty {
            if node == ROOT || self.ready.is_planned(node) {
                continue;
            }
            if self.ready.count() >= self.rules.operations_max {
                truncated = true;
                break;
            }
            if let Err(why) = self.decide(node) {
                blocked.push((node, why));
            }
        }
        if !truncated {
            self.break_circles();
        }
        for (_node, why) in &blocked {
            match why {
                Blocked::Busy => self.reach(Decision::Busy),
                Blocked::NotYet => self.reach(Decision::NotYet),
                _ => {}
            }
        }
        blocked.retain(|(node, _why)| !self.ready.is_planned(*node));
        Plan { operations: self.ready.into_operations(), blocked, decisions: self.decisions, truncated }
    }

    pub(super) fn reach(&mut self, decision: Decision) {
        self.decisions.insert(decision);
    }

    /// Plans an operation on a node, for the sake of a decision.
    fn act(&mut self, decision: Decision, operation: Operation) -> Decided {
        self.ready.add(operation, None)?;
        self.reach(decision);
        Ok(())
    }

    fn survivors(&self) -> &Survivors {
        self.survivors.get_or_init(|| Survivors::of(self.view, self.dirty))
    }

    /// What is to become of a node.
    fn fate(&self, node: NodeId) -> Fate {
        let own = self.view.own_fate(node);
        let deletes_folder =
            matches!(own, Fate::GoesRemote | Fate::GoesLocal) && self.view.get(node).is_folder();
        if deletes_folder { self.survivors().fate(node, own) } else { own }
    }

    fn decide(&mut self, node: NodeId) -> Decided {
        if self.ready.is_busy(node) {
            return Err(Blocked::Busy);
        }
        if self.view.is_adrift(node) {
            return Err(Blocked::Adrift);
        }
        let triple = self.view.get(node);
        match self.fate(node) {
            Fate::Nowhere if triple.synced.is_some() => self.act(Decision::BothGone, Operation::Agree(node)),
            Fate::Nowhere => Ok(()),
            Fate::Bring(because) => self.bring(node, &triple, because),
            Fate::Send(because) => self.send(node, &triple, because),
            Fate::GoesRemote => self.delete_remote(node, &triple),
            Fate::GoesLocal => self.delete_local(node, &triple),
            Fate::Both(wish) => self.both(node, &triple, wish),
            Fate::Away(_) if self.is_left_over(&triple) => self.right(node, &triple),
            Fate::Away(true) => self.act(Decision::ExcludedForgotten, Operation::Forget(node)),
            Fate::Away(false) => {
                self.reach(Decision::ExcludedAway);
                Ok(())
            }
            Fate::Leaves => self.leave(node, &triple),
            Fate::ForgetsMove => self.act(Decision::MoveCycleUndone, Operation::Forget(node)),
        }
    }

    /// It is on both sides: first what both agree on already, then its place, its content, its attributes. One
    /// operation at a time, for each changes what the next one relies on.
    fn both(&mut self, node: NodeId, triple: &Triple, wish: Wish) -> Decided {
        let (remote, local, synced) = (triple.remote.as_ref(), triple.local.as_ref(), triple.synced.as_ref());
        if settled(remote, local, synced).as_ref() != synced {
            return self.act(Decision::PartsAgree, Operation::Agree(node));
        }
        let place = match wish {
            Wish::Stay | Wish::Undo if self.is_left_over(triple) => Some(self.right(node, triple)),
            Wish::Stay => None,
            Wish::MoveRemote => Some(self.move_remote(node, triple)),
            Wish::MoveLocal(both) => {
                let decision = if both { Decision::MoveBothRemoteWins } else { Decision::MoveLocal };
                Some(self.move_local(node, triple, decision))
            }
            Wish::Undo => Some(self.move_local(node, triple, Decision::MoveCycleUndone)),
        };
        // What cannot be moved yet can be edited where it is.
        match place {
            Some(Ok(())) => Ok(()),
            Some(Err(why)) => self.content(node, triple)?.then_some(()).ok_or(why),
            None => self.content(node, triple).map(|_planned| ()),
        }
    }

    /// Whether this device made something step aside on the server that will not be moved on.
    fn is_left_over(&self, triple: &Triple) -> bool {
        triple.remote.as_ref().is_some_and(|remote| self.view.is_own_swap(&remote.place))
    }

    fn right(&mut self, node: NodeId, triple: &Triple) -> Decided {
        let Some(remote) = &triple.remote else { return Ok(()) };
        self.rename_leftover(node, remote, Side::Remote).unwrap_or(Ok(()))
    }

    fn delete_remote(&mut self, node: NodeId, triple: &Triple) -> Decided {
        let Some(remote) = &triple.remote else { return Ok(()) };
        let folder = remote.place.parent;
        if folder != ROOT && self.fate(folder) == Fate::GoesRemote {
            return self.goes_with(node, folder);
        }
        if self.link_anew(node, triple)? {
            return Ok(());
        }
        self.may_delete(node, Side::Remote)?;
        let is_folder = remote.kind == Kind::Folder;
        let decision = if is_folder { Decision::DeleteRemoteFolder } else { Decision::DeleteRemote };
        self.act(decision, Operation::RemoteDelete(node))
    }

    fn delete_local(&mut self, node: NodeId, triple: &Triple) -> Decided {
        let Some(local) = &triple.local else { return Ok(()) };
        let folder = local.place.parent;
        if self.link_anew(node, triple)? {
            return Ok(());
        }
        if folder != ROOT && matches!(self.fate(folder), Fate::GoesLocal | Fate::Leaves) {
            return self.goes_with(node, folder);
        }
        self.may_delete(node, Side::Local)?;
        let is_folder = local.kind == Kind::Folder;
        let decision = if is_folder { Decision::DeleteLocalFolder } else { Decision::DeleteLocal };
        self.act(decision, Operation::LocalDelete(node))
    }

    fn goes_with(&mut self, node: NodeId, folder: NodeId) -> Decided {
        self.reach(Decision::GoesWithFolder);
        self.waits.insert(node, Wait::plain(folder));
        Err(Blocked::WithFolder(folder))
    }

    /// Whether a node may be deleted on a side now.
    fn may_delete(&mut self, node: NodeId, side: Side) -> Decided {
        if self.view.get(node).is_folder()
            && let Some(inner) = self.survivors().to_leave(side, node)
        {
            self.reach(Decision::WaitToLeave);
            self.waits.insert(node, Wait::plain(inner));
            return Err(Blocked::Leaving(inner));
        }
        self.deletes_allowed(node)
    }

    fn deletes_allowed(&mut self, node: NodeId) -> Decided {
        let blocked = match self.rules.deletes {
            Deletes::Withheld => Blocked::DeletesWithheld,
            Deletes::Allowed if self.is_near_unread(node) => Blocked::Unread,
            Deletes::Allowed => return Ok(()),
        };
        self.reach(Decision::DeleteWithheld);
        Err(blocked)
    }

    /// Whether a folder that could not be read is at, below or above a node, on either side.
    fn is_near_unread(&self, node: NodeId) -> bool {
        let unread = &self.rules.unread;
        if unread.is_empty() {
            return false;
        }
        let above = |node: NodeId| {
            [Side::Local, Side::Remote].into_iter().flat_map(move |side| self.view.above(side, node))
        };
        let holds_unread = self.holds_unread.get_or_init(|| unread.iter().copied().flat_map(above).collect());
        unread.contains(&node)
            || holds_unread.contains(&node)
            || above(node).any(|folder| unread.contains(&folder))
    }

    /// It is excluded, and here without changes of its own: it goes from here, with all that is in it.
    fn leave(&mut self, node: NodeId, triple: &Triple) -> Decided {
        let Some(local) = &triple.local else { return Ok(()) };
        let folder = local.place.parent;
        if folder != ROOT && self.view.is_excluded(folder) {
            return self.goes_with(node, folder);
        }
        if local.kind == Kind::Folder
            && let Some(inner) = self.survivors().unsent(node)
        {
            self.reach(Decision::ExcludedWaits);
            self.waits.insert(node, Wait::plain(inner));
            return Err(Blocked::Excluded);
        }
        self.deletes_allowed(node)?;
        self.act(Decision::ExcludedRemoved, Operation::LocalDelete(node))
    }

    fn bring(&mut self, node: NodeId, triple: &Triple, because: Because) -> Decided {
        let Some(remote) = triple.remote.as_ref() else { return Ok(()) };
        if let Some(decided) = self.rename_leftover(node, remote, Side::Remote) {
            return decided;
        }
        self.come_local(node, remote, |planning| {
            let (decision, operation) = match remote.kind {
                Kind::Folder => (Decision::BringFolder, Operation::LocalCreate(node)),
                Kind::File(_) => (Decision::BringFile, Operation::Download(node)),
                Kind::Symlink(_) => (Decision::BringSymlink, Operation::LocalCreate(node)),
            };
            planning.ready.add(operation, Some((Side::Local, &remote.place)))?;
            planning.reach(match because {
                Because::New => decision,
                Because::Edited => Decision::EditBeatsDeleteHere,
                Because::Moved => Decision::MoveBeatsDeleteHere,
                Because::Kept => Decision::FolderKeptHere,
            });
            Ok(())
        })
    }

    fn send(&mut self, node: NodeId, triple: &Triple, because: Because) -> Decided {
        let Some(local) = triple.local.as_ref() else { return Ok(()) };
        if because == Because::New && (self.rules.sends_held || self.awaits_rules(local.place.parent)) {
            return Err(Blocked::Rules);
        }
        if let Some(decided) = self.rename_leftover(node, local, Side::Local) {
            return decided;
        }
        if self.link_anew(node, triple)? {
            return Ok(());
        }
        self.come_remote(node, local, Decision::TakenCreated, |planning| {
            let (decision, operation) = match local.kind {
                Kind::Folder => (Decision::SendFolder, Operation::RemoteCreate(node)),
                Kind::File(_) => (Decision::SendFile, Operation::Upload(node)),
                Kind::Symlink(_) => (Decision::SendSymlink, Operation::RemoteCreate(node)),
            };
            planning.ready.add(operation, Some((Side::Remote, &local.place)))?;
            planning.reach(match because {
                Because::New => decision,
                Because::Edited => Decision::EditBeatsDeleteThere,
                Because::Moved => Decision::MoveBeatsDeleteThere,
                Because::Kept => Decision::FolderKeptThere,
            });
            Ok(())
        })
    }
}
