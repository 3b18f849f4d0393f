//! Decides, from inodes alone, which node each new or changed file and symlink is.
//!
//! - At its place with its inode: the same node.
//! - Its inode is known from another place and is not there any more: that node, moved, if nothing of its kind was at
//!   the new place, or what was there was moved as well (chains, and circles as after a swap).
//! - Else, if a file was at its place: that node with another content. Editors write a new file and rename it over the
//!   old one; the new file may have been seen under its first name, which then is gone.
//! - Else: a new node, or one moved by content (`contents`).

use std::collections::HashMap;

use super::ScanError;
use super::folders::{Found, Walk};
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
pub(super) fn decide(mut walk: Walk<'_>) -> Result<Walk<'_>, ScanError> {
    let mut found = std::mem::take(&mut walk.found);
    let others = movers(&mut walk, &found)?;
    let mut decisions = vec![Decision::Open; found.len()];
    follow_chains(&mut walk, &found, &others, &mut decisions);
    follow_circles(&mut walk, &found, &others, &mut decisions);
    for (at, file) in found.iter_mut().enumerate() {
        match decisions[at] {
            Decision::Moved => file.previous = others.get(&at).cloned(),
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
            walk.vanished.insert(known.node, known.clone());
        }
    }
    walk.found = found;
    Ok(walk)
}

/// For each file whose inode was that of a node elsewhere which is not there any more: that node. Each node once.
fn movers(walk: &mut Walk<'_>, found: &[Found]) -> Result<HashMap<usize, LocalRecord>, ScanError> {
    let vanished: HashMap<Identity, NodeId> =
        walk.vanished.values().map(|record| (record.stamp.identity, record.node)).collect();
    let displaced: HashMap<Identity, LocalRecord> = found
        .iter()
        .filter_map(|file| file.known.clone())
        .filter(|known| walk.displaced.contains(&known.node))
        .map(|known| (known.stamp.identity, known))
        .collect();
    let mut carried: HashMap<NodeId, usize> = HashMap::new();
    let mut movers = HashMap::new();
    for (at, file) in found.iter().enumerate() {
        if file.previous.is_some() {
            continue;
        }
        let identity = file.object.stamp.identity;
        // One inode may have several names (hard links): first those that are known to be gone.
        let record = match (vanished.get(&identity), displaced.get(&identity)) {
            (Some(node), _) => walk.vanished.get(node).cloned(),
            (None, Some(known)) => Some(known.clone()),
            (None, None) => walk.index.by_identity(identity),
        };
        let Some(record) = record else { continue };
        let is_same_kind = match record.kind {
            Kind::Folder => false,
            Kind::File(_) => file.object.kind == crate::local::disk::ObjectKind::File,
            Kind::Symlink(_) => file.object.kind == crate::local::disk::ObjectKind::Symlink,
        };
        let is_same_object = identity.born_ns != 0
            || (record.stamp.size == file.object.stamp.size
                && record.stamp.mtime_ns == file.object.stamp.mtime_ns);
        if !is_same_kind || !is_same_object || carried.contains_key(&record.node) {
            continue;
        }
        if walk.claimed.contains(&record.node) || !walk.is_gone_from_its_place(&record)? {
            continue;
        }
        carried.insert(record.node, at);
        movers.insert(at, record);
    }
    Ok(movers)
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
    let mut free: Vec<usize> = (0..found.len())
        .filter(|at| found[*at].previous.is_none() && found[*at].known.is_none())
        .collect();
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
