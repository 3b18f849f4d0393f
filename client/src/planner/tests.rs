//! What a plan costs, how it is bounded, and what it leaves alone. The decisions are the simulation's to test.

use std::cell::Cell;
use std::collections::BTreeSet;

use engine::cutter::Cutter;

use super::model::{Attributes, Kind, Node, NodeId, Operation, Place, ROOT, Tree};
use super::simulation::content::cut;
use super::simulation::state::MapTree;
use super::{Blocked, Deletes, NameRules, Plan, Rules, Trees, plan};

/// A tree that counts questions.
struct Counted<'a>(&'a MapTree, &'a Cell<u64>);

impl Tree for Counted<'_> {
    fn node(&self, id: NodeId) -> Option<Node> {
        self.1.set(self.1.get() + 1);
        self.0.node(id)
    }

    fn at(&self, parent: NodeId, name: &str) -> Option<NodeId> {
        self.1.set(self.1.get() + 1);
        self.0.at(parent, name)
    }

    fn children(&self, parent: NodeId) -> Vec<NodeId> {
        let children = self.0.children(parent);
        self.1.set(self.1.get() + 1 + children.len() as u64);
        children
    }
}

#[derive(Clone, Default)]
struct Three {
    remote: MapTree,
    local: MapTree,
    synced: MapTree,
}

impl Three {
    /// A folder (2) of so many files (from 10 on), the same on both sides.
    fn with_files(count: u64) -> Self {
        let mut three = Self::default();
        three.everywhere(2, &node(ROOT, "folder", Kind::Folder));
        for number in 0..count {
            three.everywhere(10 + number, &file(NodeId(2), &format!("f{number}"), 1));
        }
        three
    }

    fn everywhere(&mut self, id: u64, node: &Node) {
        for tree in [&mut self.remote, &mut self.local, &mut self.synced] {
            tree.set(NodeId(id), Some(node.clone()));
        }
    }

    fn plan(&self, dirty: &[NodeId], busy: &[u64], rules: &Rules) -> (Plan, u64) {
        let questions = Cell::new(0);
        let (remote, local) = (Counted(&self.remote, &questions), Counted(&self.local, &questions));
        let synced = Counted(&self.synced, &questions);
        let trees = Trees { remote: &remote, local: &local, synced: &synced, excluded: &|_| false };
        let busy: BTreeSet<NodeId> = busy.iter().copied().map(NodeId).collect();
        let plan = plan(&trees, dirty, &busy, rules);
        (plan, questions.get())
    }
}

fn node(parent: NodeId, name: &str, kind: Kind) -> Node {
    let place = Place { parent, name: name.to_owned() };
    Node { place, kind, attributes: Attributes { mode: 0o755, mtime_ns: 0 } }
}

fn file(parent: NodeId, name: &str, bytes: u32) -> Node {
    node(parent, name, Kind::File(cut(bytes, Cutter::Cdc64k)))
}

fn rules() -> Rules {
    Rules {
        name: "Ann".to_owned(),
        date: "2026-01-20".to_owned(),
        tag: "t".to_owned(),
        names: NameRules::default(),
        deletes: Deletes::Allowed,
        unread: BTreeSet::new(),
        sends_held: false,
        operations_max: super::PLAN_OPERATIONS_MAX,
    }
}

fn ids(from: u64, count: u64) -> Vec<NodeId> {
    (from..from + count).map(NodeId).collect()
}

#[test]
fn a_folder_that_moved_costs_the_same_however_much_is_in_it() {
    let mut three = Three::with_files(100_000);
    three.local.set(NodeId(2), Some(node(ROOT, "renamed", Kind::Folder)));
    let (plan, questions) = three.plan(&[NodeId(2)], &[], &rules());
    let place = Place { parent: ROOT, name: "renamed".to_owned() };
    assert_eq!(plan.operations, vec![Operation::RemoteMove(NodeId(2), place)]);
    assert!(questions < 20, "{questions} questions");
}

#[test]
fn a_folder_that_was_deleted_is_one_delete_and_each_node_is_asked_for_once() {
    let mut three = Three::with_files(10_000);
    let all: Vec<NodeId> = std::iter::once(NodeId(2)).chain(ids(10, 10_000)).collect();
    for id in &all {
        three.local.set(*id, None);
    }
    let (plan, questions) = three.plan(&all, &[], &rules());
    assert_eq!(plan.operations, vec![Operation::RemoteDelete(NodeId(2))]);
    assert_eq!(plan.blocked.len(), 10_000);
    assert!(plan.blocked.iter().all(|(_, why)| *why == Blocked::WithFolder(NodeId(2))));
    assert!(questions < 5 * 10_000, "{questions} questions");
}

#[test]
fn a_plan_is_bounded_and_says_that_there_is_more() {
    let mut three = Three::with_files(0);
    for id in ids(10, 5_000) {
        three.local.set(id, Some(file(NodeId(2), &format!("f{}", id.0), 1)));
    }
    let (plan, questions) = three.plan(&ids(10, 5_000), &[], &Rules { operations_max: 100, ..rules() });
    assert_eq!(plan.operations.len(), 100);
    assert!(plan.truncated);
    assert!(questions < 3 * 5_000 + 1_000, "{questions} questions");
    let (whole, _) = three.plan(&ids(10, 50), &[], &rules());
    assert!(!whole.truncated && whole.operations.len() == 50);
}

#[test]
fn withheld_deletes_hold_up_nothing_else() {
    let mut three = Three::with_files(3);
    three.local.set(NodeId(10), None);
    three.remote.set(NodeId(11), None);
    three.local.set(NodeId(12), Some(file(NodeId(2), "f2", 7)));
    let withheld = Rules { deletes: Deletes::Withheld, ..rules() };
    let (plan, _) = three.plan(&ids(10, 3), &[], &withheld);
    assert_eq!(plan.operations, vec![Operation::Upload(NodeId(12))]);
    let held = [(NodeId(10), Blocked::DeletesWithheld), (NodeId(11), Blocked::DeletesWithheld)];
    assert_eq!(plan.blocked, held);
}

#[test]
fn what_could_not_be_read_holds_up_the_deletes_at_below_and_above_it_alone() {
    let mut three = Three::with_files(2);
    // A folder (3) with one in it (4) that could not be read, and a file in that (20) and beside it (21).
    three.everywhere(3, &node(ROOT, "outer", Kind::Folder));
    three.everywhere(4, &node(NodeId(3), "closed", Kind::Folder));
    three.everywhere(20, &file(NodeId(4), "in", 1));
    three.everywhere(21, &file(NodeId(3), "beside", 1));
    let dirty = [3, 4, 10, 11, 20, 21].map(NodeId);
    for gone in [3, 4, 10, 20, 21] {
        three.remote.set(NodeId(gone), None);
    }
    three.local.set(NodeId(11), None);
    let unread = Rules { unread: BTreeSet::from([NodeId(4)]), ..rules() };
    let (plan, _) = three.plan(&dirty, &[], &unread);
    assert_eq!(plan.operations, [Operation::LocalDelete(NodeId(10)), Operation::RemoteDelete(NodeId(11))]);
    assert!(plan.blocked.contains(&(NodeId(3), Blocked::Unread)), "{:?}", plan.blocked);
    let (plan, _) = three.plan(&dirty, &[], &rules());
    assert!(plan.operations.contains(&Operation::LocalDelete(NodeId(3))), "{:?}", plan.operations);
}

#[test]
fn nothing_is_planned_at_or_above_what_is_busy() {
    let mut three = Three::with_files(2);
    three.remote.set(NodeId(2), Some(node(ROOT, "moved", Kind::Folder)));
    three.local.set(NodeId(10), Some(file(NodeId(2), "f0", 7)));
    let dirty = [NodeId(2), NodeId(10)];
    let (plan, _) = three.plan(&dirty, &[10], &rules());
    assert_eq!(plan.operations, vec![]);
    assert_eq!(plan.blocked, [(NodeId(2), Blocked::Busy), (NodeId(10), Blocked::Busy)]);
    let (plan, _) = three.plan(&dirty, &[], &rules());
    // The move changes the path that the upload would read from.
    assert_eq!(plan.operations.len(), 1);
    assert_eq!(plan.blocked, [(NodeId(10), Blocked::NotYet)]);
}

#[test]
fn the_same_trees_give_the_same_plan() {
    let mut three = Three::with_files(20);
    for id in ids(10, 20) {
        three.local.set(id, Some(file(NodeId(2), &format!("f{}", (id.0 - 9) % 20), 1)));
    }
    let (one, _) = three.plan(&ids(10, 20), &[], &rules());
    let (other, _) = three.plan(&ids(10, 20), &[], &rules());
    assert_eq!(one.operations, other.operations);
    assert_eq!(one.operations.len(), 1, "a circle of twenty is broken at one place: {:?}", one.operations);
}
