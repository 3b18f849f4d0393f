//! The model server: entries by id, versions, trash, a journal, and calls that are refused if what they name is no
//! longer so, as sync.proto says.

use std::collections::{BTreeMap, BTreeSet};

use super::content::{Bytes, bytes_of_kind};
use crate::planner::model::{Attributes, Kind};
use crate::planner::went_back::{self, Place};

pub(super) type EntryId = u64;
/// The account's top folder.
pub(super) const TOP: EntryId = 1;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: EntryId,
    pub(super) parent: EntryId,
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
    pub(super) version: u64,
    pub(super) sequence: u64,
}

/// A journal's row.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) id: EntryId,
    pub(super) entry: Option<Entry>,
    /// What is below a folder that was made before: a device that does not have it lists it.
    pub(super) below: Vec<Entry>,
}

/// Refused: what the call names is no longer so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    pub(super) entries: BTreeMap<EntryId, Entry>,
    places: BTreeMap<(EntryId, String), EntryId>,
    tombstones: BTreeMap<EntryId, u64>,
    restored: BTreeSet<EntryId>,
    trash: Vec<Vec<Entry>>,
    next: EntryId,
    pub(super) sequence: u64,
    /// Contents that were ever committed: versions and the trash keep them.
    pub(super) ever: BTreeSet<Bytes>,
    /// Versions of files that are or were, which can be had as long as the file is there.
    versions: BTreeSet<(EntryId, u64, Bytes)>,
    /// Its history: each reign's number, and the first number that was issued in it.
    pub(super) reigns: Vec<(u64, u64)>,
    /// Whether it can tell up to where another history is the same.
    pub(super) tells_common: bool,
}

/// A place in a journal: a number, and the history that leads to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) reigns: Vec<(u64, u64)>,
    pub(super) sequence: u64,
}

impl Reached {
    fn place(&self) -> Place<Option<u64>> {
        Place { sequence: self.sequence, reign: self.reigns.last().map(|(reign, _first)| *reign) }
    }

    /// Whether what an answer told may be taken in by one who knows of this place, and knew of `asked` when it asked.
    pub(super) fn takes(&self, asked: &Self, told: &Self) -> bool {
        went_back::takes(&self.place(), &asked.place(), &told.place().reign)
    }
}

/// Where somebody's place in a journal lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum History {
    Same,
    /// In another one, that is the same up to this number.
    Parted(u64),
}

impl Server {
    pub(super) fn new() -> Self {
        Self { next: TOP + 1, ..Self::default() }
    }

    /// Goes on from here in a reign of its own.
    pub(super) fn begin_reign(&mut self, reign: u64) {
        self.reigns.push((reign, self.sequence + 1));
    }

    /// Whether a place, with the history that was told with it, is of this one.
    pub(super) fn history(&self, place: &Reached) -> History {
        let common = place.reigns.iter().zip(&self.reigns).take_while(|(one, other)| one == other).count();
        let end =
            |reigns: &[(u64, u64)], last: u64| reigns.get(common).map_or(last, |next| (next.1 - 1).min(last));
        let common = end(&place.reigns, place.sequence).min(end(&self.reigns, self.sequence));
        if common == place.sequence { History::Same } else { History::Parted(common) }
    }

    /// Where it is now.
    pub(super) fn reached(&self) -> Reached {
        Reached { reigns: self.reigns.clone(), sequence: self.sequence }
    }

    fn bump(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Whether the bytes of this version can be had: a number that was issued anew is another version.
    pub(super) fn has(&self, entry: &Entry) -> bool {
        let version = bytes_of_kind(&entry.kind).map(|bytes| (entry.id, entry.version, bytes));
        self.entries.contains_key(&entry.id)
            && version.is_some_and(|version| self.versions.contains(&version))
    }

    pub(super) fn is_folder(&self, id: EntryId) -> bool {
        id == TOP || self.entries.get(&id).is_some_and(|entry| entry.kind == Kind::Folder)
    }

    pub(super) fn at(&self, parent: EntryId, name: &str) -> Option<EntryId> {
        self.places.get(&(parent, name.to_owned())).copied()
    }

    pub(super) fn children(&self, parent: EntryId) -> Vec<EntryId> {
        let from = (parent, String::new());
        self.places.range(from..).take_while(|(place, _)| place.0 == parent).map(|(_, id)| *id).collect()
    }

    /// An entry and all below it.
    pub(super) fn below(&self, id: EntryId) -> Vec<EntryId> {
        let mut all = vec![id];
        let mut next = 0;
        while next < all.len() {
            all.extend(self.children(all[next]));
            next += 1;
        }
        all
    }

    pub(super) fn create(
        &mut self,
        parent: EntryId,
        name: &str,
        kind: Kind,
        attributes: Attributes,
    ) -> Result<Entry, Refused> {
        if !self.is_folder(parent) || self.at(parent, name).is_some() {
            return Err(Refused);
        }
        let id = self.next;
        self.next += 1;
        self.ever.extend(bytes_of_kind(&kind));
        let sequence = self.bump();
        self.versions.extend(bytes_of_kind(&kind).map(|bytes| (id, sequence, bytes)));
        let entry =
            Entry { id, parent, name: name.to_owned(), kind, attributes, version: sequence, sequence };
        self.places.insert((parent, name.to_owned()), id);
        self.entries.insert(id, entry.clone());
        Ok(entry)
    }

    /// A new version of the file at a place.
    pub(super) fn commit(
        &mut self,
        parent: EntryId,
        name: &str,
        base: (EntryId, u64),
        kind: Kind,
        attributes: Attributes,
    ) -> Result<Entry, Refused> {
        if self.at(parent, name) != Some(base.0) {
            return Err(Refused);
        }
        let sequence = self.sequence + 1;
        let entry = self.entries.get_mut(&base.0).ok_or(Refused)?;
        if entry.version != base.1 || !matches!(entry.kind, Kind::File(_)) {
            return Err(Refused);
        }
        self.sequence = sequence;
        self.ever.extend(bytes_of_kind(&kind));
        self.versions.extend(bytes_of_kind(&kind).map(|bytes| (base.0, sequence, bytes)));
        (entry.kind, entry.attributes) = (kind, attributes);
        (entry.version, entry.sequence) = (sequence, sequence);
        Ok(entry.clone())
    }

    pub(super) fn retarget(&mut self, id: EntryId, before: &Kind, kind: Kind) -> Result<Entry, Refused> {
        let sequence = self.sequence + 1;
        let entry = self.entries.get_mut(&id).filter(|entry| entry.kind == *before).ok_or(Refused)?;
        entry.kind = kind;
        entry.sequence = sequence;
        self.sequence = sequence;
        Ok(entry.clone())
    }

    pub(super) fn move_entry(
        &mut self,
        id: EntryId,
        from: &(EntryId, String),
        to: &(EntryId, String),
    ) -> Result<Entry, Refused> {
        let Some(entry) = self.entries.get(&id) else { return Err(Refused) };
        let is_there = entry.parent == from.0 && entry.name == from.1;
        let mut above = to.0;
        while above != TOP {
            if above == id {
                return Err(Refused);
            }
            above = self.entries.get(&above).ok_or(Refused)?.parent;
        }
        if !is_there || !self.is_folder(to.0) || self.at(to.0, &to.1).is_some() {
            return Err(Refused);
        }
        let sequence = self.bump();
        self.places.remove(from);
        self.places.insert(to.clone(), id);
        let entry = self.entries.get_mut(&id).ok_or(Refused)?;
        (entry.parent, entry.name) = to.clone();
        entry.sequence = sequence;
        Ok(entry.clone())
    }

    /// Deletes with all below it; `version` of a file, or no change after `unchanged_since` at or below a folder.
    pub(super) fn delete(
        &mut self,
        id: EntryId,
        from: &(EntryId, String),
        version: u64,
        unchanged_since: u64,
    ) -> Result<Entry, Refused> {
        let entry = self.entries.get(&id).cloned().ok_or(Refused)?;
        if entry.parent != from.0 || entry.name != from.1 {
            return Err(Refused);
        }
        let below = self.below(id);
        let refused = match entry.kind {
            Kind::File(_) => entry.version != version,
            Kind::Folder => below.iter().any(|id| self.entries[id].sequence > unchanged_since),
            Kind::Symlink(_) => false,
        };
        if refused {
            return Err(Refused);
        }
        let sequence = self.bump();
        let mut gone = Vec::new();
        for id in below {
            if let Some(entry) = self.entries.remove(&id) {
                self.places.remove(&(entry.parent, entry.name.clone()));
                self.tombstones.insert(id, entry.sequence);
                gone.push(entry);
            }
        }
        self.tombstones.insert(id, sequence);
        self.trash.push(gone);
        Ok(entry)
    }

    /// Brings something back from the trash with all that was below it.
    pub(super) fn restore(&mut self, pick: usize) {
        if self.trash.is_empty() {
            return;
        }
        let at = pick % self.trash.len();
        let top = &self.trash[at][0];
        if !self.is_folder(top.parent) || self.at(top.parent, &top.name).is_some() {
            return;
        }
        let sequence = self.bump();
        let entries = self.trash.remove(at);
        self.restored.extend(entries.iter().map(|entry| entry.id));
        for (number, mut entry) in entries.into_iter().enumerate() {
            if number == 0 {
                entry.sequence = sequence;
            }
            self.tombstones.remove(&entry.id);
            self.places.insert((entry.parent, entry.name.clone()), entry.id);
            self.entries.insert(entry.id, entry);
        }
    }

    pub(super) fn set_attributes(
        &mut self,
        id: EntryId,
        attributes: Attributes,
        version: u64,
    ) -> Result<Entry, Refused> {
        let sequence = self.sequence + 1;
        let entry = self.entries.get_mut(&id).ok_or(Refused)?;
        if matches!(entry.kind, Kind::File(_)) && entry.version != version {
            return Err(Refused);
        }
        entry.attributes = attributes;
        entry.sequence = sequence;
        self.sequence = sequence;
        Ok(entry.clone())
    }

    /// What changed after a number, oldest first.
    pub(super) fn changes(&self, after: u64) -> Vec<Change> {
        let mut changes: Vec<(u64, Change)> = Vec::new();
        for entry in self.entries.values().filter(|entry| entry.sequence > after) {
            let is_old = self.is_folder(entry.id) && entry.version <= after;
            let below = if is_old { self.below(entry.id) } else { Vec::new() };
            let below = below.iter().skip(1).map(|id| self.entries[id].clone()).collect();
            changes.push((entry.sequence, Change { id: entry.id, entry: Some(entry.clone()), below }));
            // It came back: that is listed with all below it, for a device that does not have it. So is a folder that
            // came back with the one above it and was then moved out.
            if self.restored.contains(&entry.id) {
                for id in self.below(entry.id) {
                    let below = self.entries[&id].clone();
                    changes.push((entry.sequence, Change { id, entry: Some(below), below: Vec::new() }));
                }
            }
        }
        for (id, sequence) in self.tombstones.iter().filter(|(_, sequence)| **sequence > after) {
            changes.push((*sequence, Change { id: *id, entry: None, below: Vec::new() }));
        }
        changes.sort_by_key(|(sequence, change)| (*sequence, change.id));
        changes.into_iter().map(|(_, change)| change).collect()
    }
}
