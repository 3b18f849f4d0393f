//! The model scan: which node each object on the disk is, as the real one decides (`local::scan`): by place and inode,
//! then by inode alone, then by place alone, then by content.

use std::collections::{BTreeMap, BTreeSet};

use engine::cutter::Cutter;

use super::content::cut;
use super::disk::{self, Disk, Inode, Thing};
use super::state::{Local, Stamp, State};
use crate::planner::model::{Kind, Node, NodeId, Place, ROOT, Tree};
use crate::planner::names::OWN_FOLDER;

/// Looks at the whole disk; says whether anything was otherwise than known.
pub(super) fn scan(state: &mut State, disk: &Disk, cutter: Cutter) -> bool {
    let found = match_all(state, disk, cutter);
    let nodes: BTreeSet<NodeId> = found.values().copied().collect();
    let mut changed = false;
    for id in state.local.ids().collect::<Vec<_>>() {
        if !nodes.contains(&id) {
            state.set_local(id, None);
            changed = true;
        }
    }
    for (inode, node) in &found {
        let object = &disk.objects[inode];
        let parent = if object.parent == disk::TOP { ROOT } else { found[&object.parent] };
        let stamp = Stamp { inode: *inode, born: object.born, stamp: object.stamp };
        let known = state.local.get(*node).cloned();
        let kind = match (&object.thing, known.as_ref().map(|known| &known.kind)) {
            (Thing::Folder, _) => Kind::Folder,
            (Thing::Symlink(target), _) => Kind::Symlink(target.clone()),
            // What has the stamp that was known is not read.
            (Thing::File(_), Some(kind)) if state.stamps.get(node) == Some(&stamp) => kind.clone(),
            (Thing::File(bytes), Some(Kind::File(known))) => Kind::File(cut(*bytes, known.cutter)),
            (Thing::File(bytes), _) => Kind::File(cut(*bytes, cutter)),
        };
        let place = Place { parent, name: object.name.clone() };
        let node_now = Node { place, kind, attributes: object.attributes };
        let before = state.local.get(*node).cloned();
        state.set_local(*node, Some(Local { node: node_now, stamp }));
        changed |= before.as_ref() != state.local.get(*node);
    }
    changed
}

fn same_class(kind: &Kind, thing: &Thing) -> bool {
    matches!(
        (kind, thing),
        (Kind::Folder, Thing::Folder)
            | (Kind::File(_), Thing::File(_))
            | (Kind::Symlink(_), Thing::Symlink(_))
    )
}

fn match_all(state: &mut State, disk: &Disk, cutter: Cutter) -> BTreeMap<Inode, NodeId> {
    let mut found: BTreeMap<Inode, NodeId> = BTreeMap::new();
    let mut left: BTreeSet<NodeId> = state.local.ids().collect();
    let by_inode: BTreeMap<Inode, NodeId> =
        state.stamps.iter().map(|(id, stamp)| (stamp.inode, *id)).collect();
    let all: Vec<Inode> =
        disk.below(disk::TOP).into_iter().skip(1).filter(|inode| !own(disk, *inode)).collect();
    // The same object, wherever.
    for inode in &all {
        let object = &disk.objects[inode];
        let Some(id) = by_inode.get(inode).copied() else { continue };
        let (Some(stamp), Some(node)) = (state.stamps.get(&id), state.local.get(id)) else { continue };
        let parent =
            disk.objects.get(&object.parent).map_or(Some(ROOT), |_| by_inode.get(&object.parent).copied());
        let same_place = parent == Some(node.place.parent) && node.place.name == object.name;
        let is_same =
            stamp.born == object.born && (object.born != 0 || same_place || stamp.stamp == object.stamp);
        if is_same && same_class(&node.kind, &object.thing) && left.remove(&id) {
            found.insert(*inode, id);
        }
    }
    // Another object at a place: the same node, made anew. Folders come before what is in them.
    for inode in &all {
        let object = &disk.objects[inode];
        if found.contains_key(inode) {
            continue;
        }
        let parent = if object.parent == disk::TOP { Some(ROOT) } else { found.get(&object.parent).copied() };
        let at = parent.and_then(|parent| state.local.at(parent, &object.name));
        if let Some(id) = at
            && state.local.get(id).is_some_and(|node| same_class(&node.kind, &object.thing))
            && left.remove(&id)
        {
            found.insert(*inode, id);
        }
    }
    by_content(state, disk, cutter, &all, &mut found, &mut left);
    for inode in all {
        found.entry(inode).or_insert_with(|| state.new_node());
    }
    found
}

/// Files that vanished and appeared elsewhere with the same bytes, if there is no doubt which.
fn by_content(
    state: &State,
    disk: &Disk,
    cutter: Cutter,
    all: &[Inode],
    found: &mut BTreeMap<Inode, NodeId>,
    left: &mut BTreeSet<NodeId>,
) {
    let mut gone: BTreeMap<[u8; 32], Vec<NodeId>> = BTreeMap::new();
    for id in left.iter() {
        if let Some(Kind::File(content)) = state.local.get(*id).map(|node| &node.kind)
            && content.size > 0
        {
            gone.entry(*content.content.as_bytes()).or_default().push(*id);
        }
    }
    let mut come: BTreeMap<[u8; 32], Vec<Inode>> = BTreeMap::new();
    for inode in all.iter().filter(|inode| !found.contains_key(inode)) {
        if let Thing::File(bytes) = disk.objects[inode].thing {
            come.entry(*cut(bytes, cutter).content.as_bytes()).or_default().push(*inode);
        }
    }
    for (content, inodes) in come {
        if let ([inode], Some([id])) = (inodes.as_slice(), gone.get(&content).map(Vec::as_slice)) {
            left.remove(id);
            found.insert(*inode, *id);
        }
    }
}

/// The client's own folder is never looked into.
fn own(disk: &Disk, inode: Inode) -> bool {
    disk.objects.get(&inode).is_some_and(|object| object.parent == disk::TOP && object.name == OWN_FOLDER)
}
