//! What people do: on a device's disk, or on the server by its web pages. A choice that is not possible is nothing done.

use std::collections::BTreeSet;

use super::content::{Bytes, bytes_of_kind, cut};
use super::device::Device;
use super::disk::{self, Inode, Thing};
use super::server::{self, EntryId, Server};
use crate::planner::model::{Attributes, Kind};
use crate::planner::names::OWN_FOLDER;
use engine::cutter::Cutter;

/// Names that everybody uses.
pub(super) const NAMES: [&str; 12] =
    ["a", "b", "A", "c.txt", "\u{e9}", "e\u{301}", "d", "B", "con", "C.txt", "x.tar.gz", "y"];
/// Things on a disk.
const OBJECTS_MAX: usize = 24;
const DEPTH_MAX: usize = 5;
/// Contents below this are made by many.
const COMMON_BYTES: Bytes = 4;

/// What was done with contents.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    next: Bytes,
    /// Written by somebody.
    pub(super) written: BTreeSet<Bytes>,
    /// Overwritten or deleted by somebody.
    pub(super) removed: BTreeSet<Bytes>,
    mtime: i64,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { next: COMMON_BYTES, written: BTreeSet::new(), removed: BTreeSet::new(), mtime: 0 }
    }

    fn fresh(&mut self, pick: u8) -> Bytes {
        if pick.is_multiple_of(8) {
            return Bytes::from(pick / 8) % COMMON_BYTES;
        }
        self.next += 1;
        self.next - 1
    }

    fn attributes(&mut self) -> Attributes {
        self.mtime += 1;
        Attributes { mode: 0o644, mtime_ns: self.mtime }
    }
}

/// One act, with its choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Act {
    pub(super) what: u8,
    pub(super) one: u8,
    pub(super) other: u8,
    pub(super) name: u8,
}

pub(super) const ACTS: u8 = 21;
/// Acts below this make something.
pub(super) const MAKES: u8 = 5;
/// Moves one folder into another.
pub(super) const NEST: u8 = 20;
/// Two things change places.
pub(super) const SWAP: u8 = 12;

fn pick<T: Copy>(from: &[T], choice: u8) -> Option<T> {
    if from.is_empty() { None } else { from.get(usize::from(choice) % from.len()).copied() }
}

fn folder_attributes() -> Attributes {
    Attributes { mode: 0o755, mtime_ns: 0 }
}

/// Does something on a device's disk.
pub(super) fn act(device: &mut Device, ledger: &mut Ledger, act: Act) {
    let mut hand = Hand { device, ledger };
    hand.act(act);
}

struct Hand<'a> {
    device: &'a mut Device,
    ledger: &'a mut Ledger,
}

impl Hand<'_> {
    fn all(&self, keep: impl Fn(&Thing) -> bool) -> Vec<Inode> {
        let disk = &self.device.disk;
        disk.below(disk::TOP).into_iter().skip(1).filter(|inode| keep(&disk.objects[inode].thing)).collect()
    }

    fn folder(&self, choice: u8) -> Inode {
        let mut folders = vec![disk::TOP];
        folders.extend(self.all(|thing| *thing == Thing::Folder));
        let folder = pick(&folders, choice).unwrap_or(disk::TOP);
        if self.depth(folder) < DEPTH_MAX { folder } else { disk::TOP }
    }

    fn depth(&self, inode: Inode) -> usize {
        let mut depth = 0;
        let mut next = inode;
        while let Some(object) = self.device.disk.objects.get(&next) {
            depth += 1;
            next = object.parent;
        }
        depth
    }

    fn file(&self, choice: u8) -> Option<Inode> {
        pick(&self.all(|thing| matches!(thing, Thing::File(_))), choice)
    }

    fn any(&self, choice: u8) -> Option<Inode> {
        pick(&self.all(|_| true), choice)
    }

    fn make(&mut self, parent: Inode, name: &str, thing: Thing, attributes: Attributes) {
        if self.device.disk.objects.len() >= OBJECTS_MAX {
            return;
        }
        let bytes = if let Thing::File(bytes) = thing { Some(bytes) } else { None };
        if self.device.disk.make(parent, name, thing, attributes).is_ok() {
            self.device.seen.extend(bytes);
            self.ledger.written.extend(bytes);
        }
    }

    fn remove(&mut self, inode: Inode) {
        let gone = self.device.disk.remove(inode);
        self.ledger.removed.extend(gone);
    }

    fn write(&mut self, inode: Inode, bytes: Bytes) {
        let attributes = self.ledger.attributes();
        let Some(object) = self.device.disk.objects.get(&inode) else { return };
        let attributes = Attributes { mode: object.attributes.mode, ..attributes };
        if let Thing::File(old) = object.thing
            && old != bytes
        {
            self.ledger.removed.insert(old);
        }
        self.device.disk.write(inode, Thing::File(bytes), attributes);
        self.device.seen.insert(bytes);
        self.ledger.written.insert(bytes);
    }

    fn rename(&mut self, inode: Inode, parent: Inode, name: &str) -> bool {
        self.device.disk.rename(inode, parent, name).is_ok()
    }

    fn place(&self, inode: Inode) -> (Inode, String) {
        let object = &self.device.disk.objects[&inode];
        (object.parent, object.name.clone())
    }

    fn act(&mut self, act: Act) {
        let name = NAMES[usize::from(act.name) % NAMES.len()];
        match act.what % ACTS {
            0..=2 => {
                let (folder, bytes, attributes) =
                    (self.folder(act.one), self.ledger.fresh(act.other), self.ledger.attributes());
                self.make(folder, name, Thing::File(bytes), attributes);
            }
            3 => {
                let folder = self.folder(act.one);
                self.make(folder, name, Thing::Folder, folder_attributes());
            }
            4 => {
                let folder = self.folder(act.one);
                let target = vec![b't', act.other % 4];
                self.make(folder, name, Thing::Symlink(target), Attributes { mode: 0, mtime_ns: 0 });
            }
            5 | 6 => {
                if let Some(file) = self.file(act.one) {
                    let bytes = self.ledger.fresh(act.other);
                    self.write(file, bytes);
                }
            }
            7 => self.save_as_editors_do(act),
            8 | 9 => {
                if let Some(inode) = self.any(act.one) {
                    let folder = self.folder(act.other);
                    self.rename(inode, folder, name);
                }
            }
            10 | 11 => {
                if let Some(inode) = self.any(act.one) {
                    self.remove(inode);
                }
            }
            SWAP => self.swap(act),
            13 => self.copy(act, name),
            14 => self.replace_by_other_kind(act),
            15 => self.rename_by_case(act),
            16 => self.hoist(act),
            17 => self.invert(act),
            18 => self.move_all(act),
            NEST => {
                let folders = self.all(|thing| *thing == Thing::Folder);
                if let (Some(inner), Some(outer)) = (pick(&folders, act.one), pick(&folders, act.other)) {
                    self.rename(inner, outer, name);
                }
            }
            _ => self.change_attributes(act),
        }
    }

    /// Writes a new file and renames it over the old one.
    fn save_as_editors_do(&mut self, act: Act) {
        let Some(file) = self.file(act.one) else { return };
        let (folder, name) = self.place(file);
        let (bytes, attributes) = (self.ledger.fresh(act.other), self.ledger.attributes());
        if act.name.is_multiple_of(2) {
            // The old one is kept until then under another name.
            self.rename(file, folder, "old~");
            self.make(folder, &name, Thing::File(bytes), attributes);
            self.remove(file);
        } else {
            self.remove(file);
            self.make(folder, &name, Thing::File(bytes), attributes);
        }
    }

    fn swap(&mut self, act: Act) {
        let (Some(one), Some(other)) = (self.any(act.one), self.any(act.other)) else { return };
        let disk = &self.device.disk;
        if one == other || disk.below(one).contains(&other) || disk.below(other).contains(&one) {
            return;
        }
        let (here, there) = (self.place(one), self.place(other));
        if self.rename(one, disk::TOP, "swap~") {
            self.rename(other, here.0, &here.1);
            self.rename(one, there.0, &there.1);
        }
    }

    fn copy(&mut self, act: Act, name: &str) {
        let Some(file) = self.file(act.one) else { return };
        let object = self.device.disk.objects[&file].clone();
        let folder = self.folder(act.other);
        self.make(folder, name, object.thing, object.attributes);
    }

    fn replace_by_other_kind(&mut self, act: Act) {
        let Some(inode) = self.any(act.one) else { return };
        let (folder, name) = self.place(inode);
        let is_folder = self.device.disk.is_folder(inode);
        self.remove(inode);
        if is_folder {
            let (bytes, attributes) = (self.ledger.fresh(act.other), self.ledger.attributes());
            self.make(folder, &name, Thing::File(bytes), attributes);
        } else {
            self.make(folder, &name, Thing::Folder, folder_attributes());
            if let Some(made) = self.device.disk.at(folder, &name)
                && act.other.is_multiple_of(2)
            {
                let (bytes, attributes) = (self.ledger.fresh(act.other / 2), self.ledger.attributes());
                self.make(made, "in", Thing::File(bytes), attributes);
            }
        }
    }

    fn rename_by_case(&mut self, act: Act) {
        let Some(inode) = self.any(act.one) else { return };
        let (folder, name) = self.place(inode);
        let other =
            if name.chars().any(char::is_uppercase) { name.to_lowercase() } else { name.to_uppercase() };
        self.rename(inode, folder, &other);
    }

    /// Something takes the place of the folder that it is in.
    fn hoist(&mut self, act: Act) {
        let Some(inode) = self.any(act.one) else { return };
        let (folder, _) = self.place(inode);
        if folder == disk::TOP {
            return;
        }
        let (above, name) = self.place(folder);
        if self.rename(inode, disk::TOP, "hoist~") {
            if act.other.is_multiple_of(2) {
                self.remove(folder);
            } else {
                self.rename(folder, disk::TOP, "hoisted~");
            }
            self.rename(inode, above, &name);
            if act.other % 2 == 1 && self.device.disk.is_folder(inode) {
                self.rename(folder, inode, &name);
            }
        }
    }

    /// A folder comes to be in one that it held.
    fn invert(&mut self, act: Act) {
        let folders = self.all(|thing| *thing == Thing::Folder);
        let Some(inner) = pick(&folders, act.one) else { return };
        let (outer, name) = self.place(inner);
        if outer == disk::TOP {
            return;
        }
        let (above, outer_name) = self.place(outer);
        if act.other.is_multiple_of(2) {
            if self.rename(inner, above, "invert~") {
                self.rename(outer, inner, &name);
                self.rename(inner, above, &outer_name);
            }
        } else if self.rename(inner, above, &name) {
            self.rename(outer, inner, &outer_name);
        }
    }

    fn move_all(&mut self, act: Act) {
        let (from, to) = (self.folder(act.one), self.folder(act.other));
        for inode in self.device.disk.children(from) {
            let (_, name) = self.place(inode);
            self.rename(inode, to, &name);
        }
    }

    fn change_attributes(&mut self, act: Act) {
        let Some(inode) = self.any(act.one) else { return };
        let object = &self.device.disk.objects[&inode];
        let (thing, mut attributes) = (object.thing.clone(), object.attributes);
        match thing {
            Thing::Symlink(_) => {
                let target = vec![b't', act.other % 4];
                self.device.disk.write(inode, Thing::Symlink(target), attributes);
                return;
            }
            Thing::File(_) if act.other.is_multiple_of(3) => {
                attributes.mtime_ns = self.ledger.attributes().mtime_ns
            }
            _ => attributes.mode = [0o600, 0o644, 0o755, 0o700][usize::from(act.other) % 4],
        }
        self.device.disk.write(inode, thing, attributes);
    }
}

/// Does something on the server.
pub(super) fn act_on_server(server: &mut Server, ledger: &mut Ledger, act: Act) {
    // The client's own folder's name is an ordinary one there.
    let name = if act.name % 13 == 12 { OWN_FOLDER } else { NAMES[usize::from(act.name) % NAMES.len()] };
    let all: Vec<EntryId> = server.below(server::TOP).into_iter().skip(1).collect();
    let folders: Vec<EntryId> =
        std::iter::once(server::TOP).chain(all.iter().copied().filter(|id| server.is_folder(*id))).collect();
    let files: Vec<EntryId> =
        all.iter().copied().filter(|id| matches!(server.entries[id].kind, Kind::File(_))).collect();
    let folder = pick(&folders, act.other).unwrap_or(server::TOP);
    let cutter = if act.other.is_multiple_of(2) { Cutter::Cdc64k } else { Cutter::Cdc256k };
    match act.what % 7 {
        0 if all.len() < OBJECTS_MAX => {
            let (bytes, attributes) = (ledger.fresh(act.one), ledger.attributes());
            if server.create(folder, name, Kind::File(cut(bytes, cutter)), attributes).is_ok() {
                ledger.written.insert(bytes);
            }
        }
        1 if all.len() < OBJECTS_MAX => {
            drop(server.create(folder, name, Kind::Folder, folder_attributes()));
        }
        2 => {
            let Some(entry) = pick(&files, act.one).map(|id| server.entries[&id].clone()) else { return };
            let (bytes, attributes) = (ledger.fresh(act.other), ledger.attributes());
            let kind = Kind::File(cut(bytes, cutter));
            let base = (entry.id, entry.version);
            if server.commit(entry.parent, &entry.name, base, kind, attributes).is_ok() {
                ledger.written.insert(bytes);
                ledger.removed.extend(bytes_of_kind(&entry.kind).filter(|old| *old != bytes));
            }
        }
        3 => {
            let Some(entry) = pick(&all, act.one).map(|id| server.entries[&id].clone()) else { return };
            drop(server.move_entry(entry.id, &(entry.parent, entry.name), &(folder, name.to_owned())));
        }
        4 => {
            let Some(entry) = pick(&all, act.one).map(|id| server.entries[&id].clone()) else { return };
            for id in server.below(entry.id) {
                ledger.removed.extend(bytes_of_kind(&server.entries[&id].kind));
            }
            let from = (entry.parent, entry.name);
            drop(server.delete(entry.id, &from, entry.version, u64::MAX));
        }
        5 => server.restore(usize::from(act.one)),
        _ => {
            let Some(entry) = pick(&files, act.one).map(|id| server.entries[&id].clone()) else { return };
            let attributes = Attributes { mode: 0o600, ..entry.attributes };
            drop(server.set_attributes(entry.id, attributes, entry.version));
        }
    }
}
