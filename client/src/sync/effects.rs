//! What this program is doing to the disk, and did since a scan began: what the scan says of these is not believed,
//! for it may have looked before, after or in between.
//!
//! Invariants:
//! - A node and a place are under way from before the first byte is touched until the outcome is recorded.
//! - What ended while a scan ran is remembered until that scan's updates are taken in.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::planner::model::{NodeId, Place};
use crate::state::local::Touched;

/// Shared by those who change the disk and those who scan it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Effects(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    nodes: HashMap<NodeId, Mark>,
    places: HashMap<Place, Mark>,
    /// The folders of those places.
    folders: HashMap<NodeId, Mark>,
    scans: usize,
}

#[derive(Debug, Default)]
struct Mark {
    /// How many are under way.
    under_way: usize,
}

/// Something under way; ends when it is dropped, which must be after its outcome is recorded.
#[derive(Debug)]
pub(crate) struct Effect {
    effects: Effects,
    nodes: Vec<NodeId>,
    places: Vec<Place>,
}

/// A scan under way, until its updates are taken in.
#[derive(Debug)]
pub(crate) struct ScanUnderWay(Effects);

impl Effects {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that nodes and places are about to be changed.
    pub(crate) fn begin(&self, nodes: Vec<NodeId>, places: Vec<Place>) -> Effect {
        let mut inner = self.inner();
        for node in &nodes {
            inner.nodes.entry(*node).or_default().under_way += 1;
        }
        for place in &places {
            inner.places.entry(place.clone()).or_default().under_way += 1;
            inner.folders.entry(place.parent).or_default().under_way += 1;
        }
        drop(inner);
        Effect { effects: self.clone(), nodes, places }
    }

    /// Whether nothing is being changed.
    pub(crate) fn is_idle(&self) -> bool {
        self.inner().nodes.values().all(|mark| mark.under_way == 0)
    }

    /// Says that a scan begins.
    pub(crate) fn begin_scan(&self) -> ScanUnderWay {
        self.inner().scans += 1;
        ScanUnderWay(self.clone())
    }
}

fn end<K: Eq + Hash>(marks: &mut HashMap<K, Mark>, key: &K, forget: bool) {
    if let Some(mark) = marks.get_mut(key) {
        mark.under_way -= 1;
        if mark.under_way == 0 && forget {
            marks.remove(key);
        }
    }
}

impl Drop for Effect {
    fn drop(&mut self) {
        let mut inner = self.effects.inner();
        let forget = inner.scans == 0;
        let inner = &mut *inner;
        self.nodes.iter().for_each(|node| end(&mut inner.nodes, node, forget));
        for place in &self.places {
            end(&mut inner.places, place, forget);
            end(&mut inner.folders, &place.parent, forget);
        }
    }
}

impl Drop for ScanUnderWay {
    fn drop(&mut self) {
        let mut inner = self.0.inner();
        inner.scans -= 1;
        if inner.scans == 0 {
            inner.nodes.retain(|_node, mark| mark.under_way > 0);
            inner.places.retain(|_place, mark| mark.under_way > 0);
            inner.folders.retain(|_folder, mark| mark.under_way > 0);
        }
    }
}

impl Touched for ScanUnderWay {
    fn node(&self, node: NodeId) -> bool {
        self.0.inner().nodes.contains_key(&node)
    }

    fn folder(&self, folder: NodeId) -> bool {
        self.0.inner().folders.contains_key(&folder)
    }

    fn place(&self, parent: NodeId, name: &str) -> bool {
        self.0.inner().places.contains_key(&Place { parent, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_during_a_scan_is_touched_until_the_scan_ends() {
        let effects = Effects::default();
        let place = Place { parent: NodeId(1), name: "a".to_owned() };
        let before = effects.begin(vec![NodeId(2)], vec![]);
        let scan = effects.begin_scan();
        assert!(scan.node(NodeId(2)) && !scan.node(NodeId(3)));
        drop(before);
        let within = effects.begin(vec![NodeId(3)], vec![place]);
        drop(within);
        assert!(scan.node(NodeId(2)) && scan.node(NodeId(3)) && scan.place(NodeId(1), "a"));
        assert!(scan.folder(NodeId(1)) && !scan.folder(NodeId(2)));
        drop(scan);
        let next = effects.begin_scan();
        assert!(!next.node(NodeId(2)) && !next.node(NodeId(3)) && !next.place(NodeId(1), "a"));
        assert!(!next.folder(NodeId(1)));
    }

    #[test]
    fn a_node_under_way_twice_is_so_until_both_have_ended() {
        let effects = Effects::default();
        let (one, two) = (effects.begin(vec![NodeId(2)], vec![]), effects.begin(vec![NodeId(2)], vec![]));
        drop(one);
        let scan = effects.begin_scan();
        assert!(scan.node(NodeId(2)));
        drop(two);
        drop(scan);
        assert!(!effects.begin_scan().node(NodeId(2)));
    }
}
