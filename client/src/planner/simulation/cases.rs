//! What people know from elsewhere to go wrong, by name; and event lists that failed once.

use std::collections::BTreeMap;

use super::content::Bytes;
use super::device::Device;
use super::disk::{TOP, Thing};
use super::events::{Event, Setup};
use super::server;
use super::user::Act;
use super::world::{World, run};
use crate::planner::model::Attributes;
use crate::planner::names::NameRules;

const PLAIN: NameRules = NameRules { case_blind: false, normalising: false, windows: false };
const BLIND: NameRules = NameRules { case_blind: true, normalising: false, windows: false };
const NORMALISING: NameRules = NameRules { case_blind: false, normalising: true, windows: false };
const WINDOWS: NameRules = NameRules { case_blind: true, normalising: false, windows: true };

/// Devices with disks that are edited by path.
struct Scene(World);

impl Scene {
    fn of(devices: &[NameRules]) -> Self {
        let devices = devices.iter().map(|names| (*names, true)).collect();
        Self(World::new(&Setup { devices, calm: false }))
    }

    fn device(&mut self, number: usize) -> &mut Device {
        &mut self.0.devices[number]
    }

    fn split(path: &str) -> (Vec<String>, String) {
        let mut names: Vec<String> = path.split('/').map(str::to_owned).collect();
        let name = names.pop().unwrap_or_default();
        (names, name)
    }

    fn make(&mut self, device: usize, path: &str, thing: Thing) {
        let (folders, name) = Self::split(path);
        let device = self.device(device);
        let mut folder = TOP;
        for above in &folders {
            folder = device.disk.at(folder, above).unwrap_or_else(|| {
                let attributes = Attributes { mode: 0o755, mtime_ns: 0 };
                device.disk.make(folder, above, Thing::Folder, attributes).expect("a folder")
            });
        }
        let mtime_ns = i64::try_from(device.disk.tick()).unwrap_or_default();
        let attributes = Attributes { mode: 0o644, mtime_ns };
        if let Thing::File(bytes) = thing {
            device.seen.insert(bytes);
        }
        match device.disk.at(folder, &name) {
            Some(inode) => device.disk.write(inode, thing, attributes),
            None => drop(device.disk.make(folder, &name, thing, attributes)),
        }
    }

    fn write(&mut self, device: usize, path: &str, bytes: Bytes) {
        self.make(device, path, Thing::File(bytes));
    }

    fn folder(&mut self, device: usize, path: &str) {
        self.make(device, path, Thing::Folder);
    }

    fn remove(&mut self, device: usize, path: &str) {
        let (mut names, name) = Self::split(path);
        names.push(name);
        let device = self.device(device);
        let inode = device.disk.resolve(&names).expect("it is there");
        device.disk.remove(inode);
    }

    fn rename(&mut self, device: usize, from: &str, to: &str) {
        let (mut names, name) = Self::split(from);
        names.push(name);
        let (folders, name) = Self::split(to);
        let device = self.device(device);
        let inode = device.disk.resolve(&names).expect("it is there");
        let folder = device.disk.resolve(&folders).expect("a folder");
        device.disk.rename(inode, folder, &name).expect("a free place");
    }

    fn quiet(&mut self) {
        self.0.quiet().expect("all become quiet, and the same");
    }

    /// What is on all devices: files with their bytes, folders with none.
    fn files(&self) -> BTreeMap<String, Option<Bytes>> {
        let first = self.0.devices[0].disk.listing();
        let bytes = |thing| if let Thing::File(bytes) = thing { Some(bytes) } else { None };
        first.into_iter().map(|(path, (thing, _))| (path, bytes(thing))).collect()
    }

    fn has(&self, expected: &[(&str, Option<Bytes>)]) {
        let expected = expected.iter().map(|(path, bytes)| ((*path).to_owned(), *bytes)).collect();
        assert_eq!(self.files(), expected);
    }
}

#[test]
fn one_content_made_on_two_devices_is_one_file() {
    let mut scene = Scene::of(&[PLAIN, PLAIN, PLAIN]);
    // The third cuts otherwise.
    for device in 0..3 {
        scene.write(device, "d/a", 7);
    }
    scene.quiet();
    scene.has(&[("/d", None), ("/d/a", Some(7))]);
}

#[test]
fn two_edits_of_one_file_are_two_files_whichever_comes_first() {
    for order in [[0, 1], [1, 0]] {
        let mut scene = Scene::of(&[PLAIN, PLAIN]);
        scene.write(0, "a.txt", 7);
        scene.quiet();
        scene.write(0, "a.txt", 10);
        scene.write(1, "a.txt", 11);
        for device in order {
            scene.0.event(Event::Work(device)).expect("work");
        }
        scene.quiet();
        let [first, second] = order.map(|device| Bytes::from(device) + 10);
        let copy = format!("/a (D{}'s conflicted copy 2026-01-20).txt", order[1]);
        scene.has(&[("/a.txt", Some(first)), (&copy, Some(second))]);
    }
}

#[test]
fn an_edit_wins_over_a_delete_on_either_side() {
    for editor in [0, 1] {
        let mut scene = Scene::of(&[PLAIN, PLAIN]);
        scene.write(0, "d/a", 7);
        scene.write(0, "d/b", 8);
        scene.quiet();
        scene.write(editor, "d/a", 10);
        scene.remove(1 - editor, "d");
        scene.quiet();
        scene.has(&[("/d", None), ("/d/a", Some(10))]);
    }
}

#[test]
fn a_rename_and_an_edit_on_two_devices_both_happen() {
    let mut scene = Scene::of(&[PLAIN, PLAIN]);
    scene.write(0, "a", 7);
    scene.quiet();
    scene.rename(0, "a", "b");
    scene.write(1, "a", 10);
    scene.quiet();
    scene.has(&[("/b", Some(10))]);
}

#[test]
fn a_rename_then_an_edit_is_one_file() {
    let mut scene = Scene::of(&[PLAIN, PLAIN]);
    scene.write(0, "a", 7);
    scene.quiet();
    scene.rename(0, "a", "b");
    scene.write(0, "b", 10);
    scene.quiet();
    scene.has(&[("/b", Some(10))]);
}

#[test]
fn two_names_are_swapped() {
    let mut scene = Scene::of(&[PLAIN, PLAIN]);
    scene.write(0, "a", 7);
    scene.write(0, "b/in", 8);
    scene.quiet();
    scene.rename(0, "a", "t");
    scene.rename(0, "b", "a");
    scene.rename(0, "t", "b");
    scene.quiet();
    scene.has(&[("/a", None), ("/a/in", Some(8)), ("/b", Some(7))]);
}

#[test]
fn a_folder_is_replaced_by_a_file_that_is_edited_elsewhere() {
    let mut scene = Scene::of(&[PLAIN, PLAIN]);
    scene.write(0, "a", 7);
    scene.quiet();
    scene.remove(0, "a");
    scene.write(0, "a/in", 10);
    scene.write(1, "a", 11);
    scene.0.event(Event::Work(0)).expect("work");
    scene.quiet();
    let copy = "/a (D1's conflicted copy 2026-01-20)";
    scene.has(&[("/a", None), ("/a/in", Some(10)), (copy, Some(11))]);
}

#[test]
fn a_rename_by_case_alone_goes_to_devices_blind_and_not() {
    let mut scene = Scene::of(&[BLIND, PLAIN, BLIND]);
    scene.write(0, "readme/a", 7);
    scene.quiet();
    scene.rename(0, "readme", "README");
    scene.quiet();
    scene.has(&[("/README", None), ("/README/a", Some(7))]);
}

#[test]
fn names_that_a_device_cannot_hold_are_renamed_for_all() {
    let mut scene = Scene::of(&[PLAIN, BLIND, NORMALISING, WINDOWS]);
    scene.write(0, "Readme", 7);
    scene.write(0, "con.txt", 8);
    scene.write(0, "\u{e9}", 9);
    scene.quiet();
    scene.write(0, "README", 10);
    scene.write(0, "e\u{301}", 11);
    scene.quiet();
    let files = scene.files();
    assert_eq!(files.len(), 5, "{files:?}");
    assert_eq!(files.get("/README (case conflict)"), Some(&Some(10)));
    assert_eq!(files.get("/e\u{301} (unicode conflict)"), Some(&Some(11)));
    assert_eq!(files.get("/con (reserved name).txt"), Some(&Some(8)));
}

#[test]
fn folders_moved_into_one_another_on_two_devices_end_in_one_tree() {
    let mut scene = Scene::of(&[PLAIN, PLAIN]);
    scene.write(0, "a/x", 7);
    scene.write(0, "b/y", 8);
    scene.quiet();
    scene.rename(0, "a", "b/a");
    scene.rename(1, "b", "a/b");
    scene.quiet();
    scene.has(&[("/b", None), ("/b/a", None), ("/b/a/x", Some(7)), ("/b/y", Some(8))]);
}

#[test]
fn a_chain_of_folders_turned_over_here_ends_as_it_is_on_the_server() {
    let mut scene = Scene::of(&[PLAIN, PLAIN]);
    scene.folder(0, "outer/middle");
    scene.folder(0, "inner");
    scene.quiet();
    scene.rename(0, "inner", "outer/middle/inner");
    scene.rename(1, "outer/middle", "inner/middle");
    scene.rename(1, "outer", "inner/middle/outer");
    scene.0.event(Event::Work(0)).expect("work");
    scene.quiet();
    scene.has(&[("/outer", None), ("/outer/middle", None), ("/outer/middle/inner", None)]);
}

#[test]
fn a_new_file_keeps_the_folder_that_another_device_deletes() {
    let mut scene = Scene::of(&[PLAIN, PLAIN]);
    scene.write(0, "d/e/a", 7);
    scene.folder(0, "d/f");
    scene.quiet();
    scene.remove(0, "d");
    scene.write(1, "d/e/new", 10);
    scene.0.event(Event::Work(0)).expect("work");
    scene.quiet();
    scene.has(&[("/d", None), ("/d/e", None), ("/d/e/new", Some(10))]);
}

/// A device dies between renaming its conflicted copy and recording it.
pub(super) fn crash_within_a_split() -> Result<(), String> {
    let mut scene = Scene::of(&[PLAIN, PLAIN]);
    scene.write(0, "a.txt", 7);
    scene.quiet();
    scene.write(0, "a.txt", 10);
    scene.write(1, "a.txt", 11);
    for event in [
        Event::Work(0),
        Event::Fetch(1),
        Event::Take(1),
        Event::Scan(1),
        Event::Plan(1, 7),
        Event::Begin(1, 0),
        Event::Crash(1),
    ] {
        scene.0.event(event)?;
    }
    scene.0.quiet()?;
    let copy = "/a (D1's conflicted copy 2026-01-20).txt";
    let expected = [("/a.txt", Some(10)), (copy, Some(11))].map(|(path, bytes)| (path.to_owned(), bytes));
    let files = scene.files();
    if files == BTreeMap::from(expected) { Ok(()) } else { Err(format!("{files:?}")) }
}

#[test]
fn a_crash_within_a_split_makes_no_second_copy() {
    assert_eq!(crash_within_a_split(), Ok(()));
}

/// Something is made anew on the server, for it was deleted there and moved here, and meanwhile it is restored.
pub(super) fn restored_while_made_anew() -> Result<(), String> {
    let mut scene = Scene::of(&[PLAIN, PLAIN]);
    scene.write(0, "a", 7);
    scene.folder(0, "d");
    scene.0.quiet()?;
    let server = &mut scene.0.server;
    let entry = server.at(server::TOP, "a").and_then(|id| server.entries.get(&id).cloned()).expect("a file");
    server.delete(entry.id, &(server::TOP, entry.name), entry.version, u64::MAX).expect("a delete");
    scene.rename(1, "a", "d/a");
    for event in [Event::Fetch(1), Event::Take(1), Event::Scan(1), Event::Plan(1, 7)] {
        scene.0.event(event)?;
    }
    scene.0.server.restore(0);
    for event in [Event::Fetch(1), Event::Take(1), Event::Perform(1, 0)] {
        scene.0.event(event)?;
    }
    scene.0.quiet()?;
    let expected = [("/a", Some(7)), ("/d", None), ("/d/a", Some(7))];
    let expected = expected.map(|(path, bytes)| (path.to_owned(), bytes));
    let files = scene.files();
    if files == BTreeMap::from(expected) { Ok(()) } else { Err(format!("{files:?}")) }
}

#[test]
fn what_is_restored_while_it_is_made_anew_is_not_lost() {
    assert_eq!(restored_while_made_anew(), Ok(()));
}

/// An event list that failed once.
fn once(names: &[(NameRules, bool)], events: &[Event]) {
    let setup = Setup { devices: names.to_vec(), calm: false };
    assert_eq!(run(&setup, events).err(), None);
}

const fn act(what: u8, one: u8, other: u8, name: u8) -> Act {
    Act { what, one, other, name }
}

#[test]
fn a_folder_that_stepped_aside_and_then_stays_gets_its_name_back() {
    let events = [
        Event::Web(act(50, 53, 117, 38)),
        Event::User(5, act(3, 192, 71, 1)),
        Event::User(7, act(4, 145, 70, 152)),
        Event::User(0, act(1, 247, 28, 37)),
        Event::Quiet,
        Event::User(0, act(0, 128, 55, 144)),
        Event::Work(5),
        Event::Work(3),
        Event::User(3, act(16, 33, 60, 149)),
        Event::User(0, act(8, 102, 20, 56)),
        Event::Work(3),
    ];
    once(&[(PLAIN, true), (PLAIN, true), (PLAIN, true), (PLAIN, false), (PLAIN, true)], &events);
}

#[test]
fn what_is_in_a_folder_that_is_being_linked_waits() {
    let events = [
        Event::User(7, act(3, 17, 250, 190)),
        Event::Work(3),
        Event::Work(1),
        Event::User(7, act(10, 182, 137, 127)),
        Event::Work(2),
        Event::Work(7),
        Event::User(1, act(2, 35, 144, 248)),
    ];
    once(&[(PLAIN, true), (BLIND, true), (WINDOWS, true), (PLAIN, false)], &events);
}

#[test]
fn a_folder_is_excluded_while_things_in_it_change_places() {
    let events = [
        Event::User(6, act(3, 74, 169, 198)),
        Event::Quiet,
        Event::User(0, act(14, 23, 183, 235)),
        Event::LoseDatabase(5),
        Event::User(4, act(2, 202, 26, 239)),
        Event::Quiet,
        Event::User(2, act(1, 249, 65, 1)),
        Event::User(6, act(18, 150, 167, 210)),
        Event::Quiet,
        Event::User(1, act(12, 117, 134, 82)),
        Event::Work(1),
        Event::Fetch(0),
        Event::Take(0),
        Event::Plan(0, 7),
        Event::Exclude(6, 188, true),
    ];
    once(&[(PLAIN, true), (PLAIN, true), (PLAIN, true)], &events);
}

#[test]
fn what_two_edited_alike_is_agreed_on_before_its_excluded_folder_goes() {
    let events = [
        Event::User(6, act(3, 182, 227, 39)),
        Event::User(4, act(2, 237, 38, 235)),
        Event::Quiet,
        Event::User(8, act(5, 126, 240, 104)),
        Event::User(7, act(6, 126, 208, 37)),
        Event::Exclude(7, 46, true),
    ];
    once(&[(PLAIN, true), (PLAIN, true)], &events);
}

#[test]
fn a_move_that_cannot_be_is_forgotten_before_an_excluded_folder_goes() {
    let events = [
        Event::User(3, act(3, 22, 27, 1)),
        Event::User(4, act(3, 22, 201, 127)),
        Event::Quiet,
        Event::User(6, act(20, 8, 157, 102)),
        Event::User(7, act(20, 157, 8, 178)),
        Event::Exclude(2, 227, true),
    ];
    once(&[(PLAIN, true), (PLAIN, false), (PLAIN, true), (PLAIN, true), (PLAIN, false)], &events);
}
