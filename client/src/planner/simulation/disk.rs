//! The model file system: objects with inodes, names that may be blind to case or normalisation, and a trash.

use std::collections::{BTreeMap, BTreeSet};

use super::content::{Bytes, bytes_of_kind};
use crate::planner::model::{Attributes, Kind, NodeId, ROOT};
use crate::planner::names::NameRules;

pub(super) type Inode = u64;
/// The root folder.
pub(super) const TOP: Inode = 1;

/// A file's bytes are kept as content under one cutter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Thing {
    Folder,
    File(Bytes),
    Symlink(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) parent: Inode,
    pub(super) name: String,
    pub(super) thing: Thing,
    pub(super) attributes: Attributes,
    /// Tells objects apart that had one inode after another; 0 where the file system does not say.
    pub(super) born: u64,
    /// Changes with content and attributes.
    pub(super) stamp: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changed;

#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) objects: BTreeMap<Inode, Object>,
    places: BTreeMap<(Inode, String), Inode>,
    pub(super) names: NameRules,
    tells_birth: bool,
    free: Vec<Inode>,
    next: Inode,
    clock: u64,
    /// Contents in the local trash.
    pub(super) trash: BTreeSet<Bytes>,
}

impl Disk {
    pub(super) fn new(names: NameRules, tells_birth: bool) -> Self {
        Self {
            objects: BTreeMap::new(),
            places: BTreeMap::new(),
            names,
            tells_birth,
            free: Vec::new(),
            next: TOP + 1,
            clock: 0,
            trash: BTreeSet::new(),
        }
    }

    fn key(&self, parent: Inode, name: &str) -> (Inode, String) {
        (parent, self.names.fold(name).into_owned())
    }

    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub(super) fn at(&self, parent: Inode, name: &str) -> Option<Inode> {
        self.places.get(&self.key(parent, name)).copied()
    }

    pub(super) fn is_folder(&self, inode: Inode) -> bool {
        inode == TOP || self.objects.get(&inode).is_some_and(|object| object.thing == Thing::Folder)
    }

    pub(super) fn children(&self, parent: Inode) -> Vec<Inode> {
        let from = (parent, String::new());
        self.places.range(from..).take_while(|(place, _)| place.0 == parent).map(|(_, id)| *id).collect()
    }

    /// What all of its files say.
    pub(super) fn contents(&self) -> impl Iterator<Item = Bytes> + '_ {
        self.objects.values().filter_map(|object| match object.thing {
            Thing::File(bytes) => Some(bytes),
            Thing::Folder | Thing::Symlink(_) => None,
        })
    }

    pub(super) fn below(&self, inode: Inode) -> Vec<Inode> {
        let mut all = vec![inode];
        let mut next = 0;
        while next < all.len() {
            all.extend(self.children(all[next]));
            next += 1;
        }
        all
    }

    /// Names that Windows refuses, if this is its disk, and the client's own folder.
    fn refuses(&self, parent: Inode, name: &str) -> bool {
        let folder = if parent == TOP { ROOT } else { NodeId(0) };
        self.names.refused(folder, name)
    }

    /// The object at a path.
    pub(super) fn resolve(&self, path: &[String]) -> Option<Inode> {
        path.iter().try_fold(TOP, |folder, name| self.at(folder, name))
    }

    pub(super) fn make(
        &mut self,
        parent: Inode,
        name: &str,
        thing: Thing,
        attributes: Attributes,
    ) -> Result<Inode, Changed> {
        let refused = self.refuses(parent, name);
        if refused || !self.is_folder(parent) || self.at(parent, name).is_some() {
            return Err(Changed);
        }
        let inode = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        let stamp = self.tick();
        let born = if self.tells_birth { stamp } else { 0 };
        self.places.insert(self.key(parent, name), inode);
        let name = name.to_owned();
        self.objects.insert(inode, Object { parent, name, thing, attributes, born, stamp });
        Ok(inode)
    }

    /// Moves; refuses what would be within itself, and what is taken by something else.
    pub(super) fn rename(&mut self, inode: Inode, parent: Inode, name: &str) -> Result<(), Changed> {
        let refused = self.refuses(parent, name);
        let taken = self.at(parent, name).is_some_and(|other| other != inode);
        if refused || taken || !self.is_folder(parent) || self.below(inode).contains(&parent) {
            return Err(Changed);
        }
        let object = self.objects.get(&inode).ok_or(Changed)?;
        let from = self.key(object.parent, &object.name);
        self.places.remove(&from);
        self.places.insert(self.key(parent, name), inode);
        if let Some(object) = self.objects.get_mut(&inode) {
            object.parent = parent;
            name.clone_into(&mut object.name);
        }
        Ok(())
    }

    /// Removes with all below; gives the contents that are gone.
    pub(super) fn remove(&mut self, inode: Inode) -> Vec<Bytes> {
        let mut gone = Vec::new();
        for inode in self.below(inode) {
            if let Some(object) = self.objects.remove(&inode) {
                self.places.remove(&self.key(object.parent, &object.name));
                if let Thing::File(bytes) = object.thing {
                    gone.push(bytes);
                }
                self.free.push(inode);
            }
        }
        gone
    }

    pub(super) fn write(&mut self, inode: Inode, thing: Thing, attributes: Attributes) {
        let stamp = self.tick();
        if let Some(object) = self.objects.get_mut(&inode) {
            (object.thing, object.attributes, object.stamp) = (thing, attributes, stamp);
        }
    }

    /// All paths, with what is there.
    pub(super) fn listing(&self) -> BTreeMap<String, (Thing, Attributes)> {
        let mut listing = BTreeMap::new();
        let mut pending = vec![(TOP, String::new())];
        while let Some((folder, path)) = pending.pop() {
            for inode in self.children(folder) {
                let object = &self.objects[&inode];
                let path = format!("{path}/{}", object.name);
                listing.insert(path.clone(), (object.thing.clone(), object.attributes));
                pending.push((inode, path));
            }
        }
        listing
    }
}

/// A node's kind as the disk has it.
pub(super) fn thing_of(kind: &Kind) -> Thing {
    match kind {
        Kind::Folder => Thing::Folder,
        Kind::File(_) => Thing::File(bytes_of_kind(kind).unwrap_or_default()),
        Kind::Symlink(target) => Thing::Symlink(target.clone()),
    }
}
