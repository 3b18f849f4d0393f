//! Decides, from inodes alone, which node each new or changed file and symlink is.
//!
//! - At its place with its inode: the same node.
//! - Its inode is known from another place and is not there any more: that node, moved, if nothing of its kind was at
//!   the new place, or what was there was moved as well (chains, and circles as after a swap).
//! - Else, if a file was at its place: that node with another content. Editors write a new file and rename it over the
//!   old one; the new file may have been seen under its first name, which then is gone.
//! - Else: a new node, or one moved by content (`contents`).

use std::collections::{HashMap, HashSet};

use super::ScopeFolder;
use super::folders::{Found, Walk};
use crate::local::disk::{Object, ObjectKind};
use crate::local::model::{Identity, LocalRecord};
use crate::planner::model::{Kind, NodeId};

/// What is decided about a file that is not at its place with its inode.
#[derive(Clone, Debug)]
enum Decision {
    Open,
    Moved,
    Edited,
    New,
}

/// Decides for all that was found.
pub(super) fn decide(mut walk: Walk<'_>) -> Walk<'_> {
    let found = std::mem::take(&mut walk.found);
    let (mut found, others) = movers(&mut walk, found);
    let mut decisions = vec![Decision::Open; found.len()];
    follow_chains(&mut walk, &found, &others, &mut decisions);
    follow_circles(&mut walk, &found, &others, &mut decisions);
    for (at, file) in found.iter_mut().enumerate() {
        match decisions[at] {
            Decision::Moved => file.previous = others.get(&at).cloned().map(Box::new),
            Decision::Edited => file.previous = file.known.clone(),
            Decision::Open | Decision::New => {}
        }
        if let (Decision::Edited, Some(known)) = (&decisions[at], &file.known) {
            walk.displaced.remove(&known.node);
        }
    }
    // What another node displaced, and what was found nowhere, is gone.
    for file in &found {
        if let Some(known) = &file.known
            && walk.displaced.contains(&known.node)
            && !walk.claimed.contains(&known.node)
        {
            walk.vanished.insert(known.node, (**known).clone());
        }
    }
    // Ignored, after all.
    found.retain(|file| !file.only_moved || file.previous.is_some());
    walk.found = found;
    walk
}

/// What a file's inode tells.
enum Mover {
    /// It was this node, which is not at its place any more.
    Was(LocalRecord),
    /// Nothing.
    Unknown,
    /// It has one name, and was seen at two places: it is being moved.
    Moving,
}

/// For each file whose inode was that of a node elsewhere which is not there any more: that node. Each node once.
/// Files that are being moved are left out, and looked at again.
fn movers(walk: &mut Walk<'_>, found: Vec<Found>) -> (Vec<Found>, HashMap<usize, LocalRecord>) {
    let vanished: HashMap<Identity, NodeId> =
        walk.vanished.values().map(|record| (record.stamp.identity, record.node)).collect();
    let displaced: HashMap<Identity, LocalRecord> = found
        .iter()
        .filter_map(|file| file.known.as_deref().cloned())
        .filter(|known| walk.displaced.contains(&known.node))
        .map(|known| (known.stamp.identity, known))
        .collect();
    let mut carried: HashSet<NodeId> =
        found.iter().filter_map(|file| Some(file.previous.as_ref()?.node)).collect();
    let mut kept = Vec::with_capacity(found.len());
    let mut movers = HashMap::new();
    for file in found {
        let identity = file.object.stamp.identity;
        // One inode may have several names (hard links): first those that are known to be gone.
        let record = match (vanished.get(&identity), displaced.get(&identity)) {
            _ if file.previous.is_some() || !walk.root.keeps_inodes() => None,
            // An editor's backup, made by renaming: the file is what is at its place now.
            (None, Some(known)) if is_backup_of(&file, known) => None,
            (Some(node), _) => walk.vanished.get(node).cloned(),
            (None, Some(known)) => Some(known.clone()),
            (None, None) => walk.index.by_identity(identity),
        };
        match record.map_or(Mover::Unknown, |record| mover(walk, &file, record, &carried)) {
            Mover::Was(record) => {
                carried.insert(record.node);
                movers.insert(kept.len(), record);
                kept.push(file);
            }
            Mover::Unknown => kept.push(file),
            Mover::Moving => {
                walk.unsettled = true;
                let folder = file.rel.parent().unwrap_or_default();
                walk.result.again.push(ScopeFolder { folder, deep: false });
            }
        }
    }
    (kept, movers)
}

fn is_backup_of(file: &Found, known: &LocalRecord) -> bool {
    let is_beside = file.place.parent == known.place.parent;
    file.known.is_none() && is_beside && file.place.name.strip_suffix('~') == Some(known.place.name.as_str())
}

/// `record`: the node that had the file's inode.
fn mover(walk: &mut Walk<'_>, file: &Found, record: LocalRecord, carried: &HashSet<NodeId>) -> Mover {
    let Object { kind, stamp, links } = file.object;
    let is_same_kind = match record.kind {
        Kind::Folder => false,
        Kind::File(_) => kind == ObjectKind::File,
        Kind::Symlink(_) => kind == ObjectKind::Symlink,
    };
    let is_born_with_it = stamp.identity.born_ns != 0;
    let is_alike = record.stamp.size == stamp.size && record.stamp.mtime_ns == stamp.mtime_ns;
    if !is_same_kind || !(is_born_with_it || is_alike) {
        return Mover::Unknown;
    }
    let has_one_place = is_born_with_it && links == 1;
    let is_free = !carried.contains(&record.node) && !walk.claimed.contains(&record.node);
    if is_free && walk.is_gone_from_its_place(&record, has_one_place) {
        return Mover::Was(record);
    }
    if has_one_place { Mover::Moving } else { Mover::Unknown }
}

/// Files at places where nothing of their kind was: moved or new. Their old places are free then, and so on.
fn follow_chains(
    walk: &mut Walk<'_>,
    found: &[Found],
    movers: &HashMap<usize, LocalRecord>,
    decisions: &mut [Decision],
) {
    let at_place: HashMap<NodeId, usize> = found
        .iter()
        .enumerate()
        .filter(|(_, file)| file.previous.is_none())
        .filter_map(|(at, file)| Some((file.known.as_ref()?.node, at)))
        .collect();
    let mut free: Vec<usize> =
        (0..found.len()).filter(|at| found[*at].previous.is_none() && found[*at].known.is_none()).collect();
    while let Some(at) = free.pop() {
        let Some(record) = movers.get(&at) else {
            decisions[at] = Decision::New;
            continue;
        };
        decisions[at] = Decision::Moved;
        claim(walk, record.node);
        if let Some(next) = at_place.get(&record.node) {
            free.push(*next);
        }
    }
}

/// What is left are circles, in which all moved, and chains that end at a file whose inode is nowhere: edits.
fn follow_circles(
    walk: &mut Walk<'_>,
    found: &[Found],
    movers: &HashMap<usize, LocalRecord>,
    decisions: &mut [Decision],
) {
    let carrier: HashMap<NodeId, usize> = movers.iter().map(|(at, record)| (record.node, *at)).collect();
    for start in 0..found.len() {
        if !matches!(decisions[start], Decision::Open) || found[start].previous.is_some() {
            continue;
        }
        let mut path = vec![start];
        let mut is_circle = false;
        while let Some(known) = path.last().and_then(|at| found[*at].known.as_ref()) {
            match carrier.get(&known.node) {
                Some(next) if *next == start => {
                    is_circle = true;
                    break;
                }
                Some(next) if matches!(decisions[*next], Decision::Open) => path.push(*next),
                _ => break,
            }
        }
        for at in path {
            if is_circle {
                decisions[at] = Decision::Moved;
                if let Some(record) = movers.get(&at) {
                    claim(walk, record.node);
                }
            } else {
                decisions[at] = Decision::Edited;
            }
        }
    }
}

fn claim(walk: &mut Walk<'_>, node: NodeId) {
    walk.claimed.insert(node);
    walk.vanished.remove(&node);
}
