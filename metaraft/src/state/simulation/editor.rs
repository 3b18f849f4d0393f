//! Edits of the trees: one command each, on entries that are there, or were, or never were.

use engine::ids::{EntryId, NamespaceId};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::super::keys::{self, Table};
use super::world::World;
use crate::model::command::{DataStep, OnExisting, VersionChoice};
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};
use crate::model::row::{EntryKind, EntryRow, ROOT_ENTRY, TrashRow, VersionRow};

/// Few names, so that they collide.
const NAMES: &[&str] = &["a", "b", "c", "d"];

/// All entries of a namespace that have a row in a folder, in the tree or below a trashed one.
fn entries(world: &World, namespace: NamespaceId) -> Vec<EntryRow> {
    let prefix = keys::namespace(namespace)[1..].to_vec();
    let rows = world.rows::<EntryRow>(Table::Entry);
    rows.into_iter().filter(|(key, _)| key[1..].starts_with(&prefix)).map(|(_, row)| row).collect()
}

/// A place to put something: mostly a folder in the tree.
pub(super) fn some_target(world: &mut World, namespace: NamespaceId) -> (EntryId, String) {
    let mut folders: Vec<EntryId> = entries(world, namespace)
        .iter()
        .filter(|row| row.kind == EntryKind::Folder || row.entry.0 % 7 == 0)
        .map(|row| row.entry)
        .collect();
    folders.extend([ROOT_ENTRY, ROOT_ENTRY, EntryId(999_999)]);
    let folder = *folders.choose(&mut world.random).unwrap();
    let name = (*NAMES.choose(&mut world.random).unwrap()).to_owned();
    (folder, name)
}

fn some_trash(world: &mut World, namespace: NamespaceId) -> u64 {
    let prefix = keys::trash_all(namespace);
    let rows = world.rows::<TrashRow>(Table::Trash);
    let items: Vec<u64> =
        rows.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, row)| row.trash).collect();
    items.choose(&mut world.random).copied().unwrap_or(3)
}

/// One edit of a namespace; that it is refused is as good as that it is done.
pub(super) fn edit(world: &mut World) {
    let namespace = *world.namespaces.clone().choose(&mut world.random).unwrap();
    let step = some_edit(world, namespace);
    let group = world.group_of(namespace.slot());
    let request = world.new_request();
    let steps = if world.random.random_bool(0.1) {
        // All or none.
        vec![step, some_edit(world, namespace)]
    } else {
        vec![step]
    };
    let outcome = world.propose(group, request, steps).expect("a request made now");
    if let Ok(Some(StepOutcome::Entry(row))) = outcome.map(|mut outcomes| outcomes.pop()) {
        let entries = vec![row.entry];
        let told = world.ask(group, &Query::EntriesById { namespace, entries });
        assert_eq!(told, Reply::EntriesById(vec![Some(row)]), "answered, but not so in the tree");
    }
}

fn some_edit(world: &mut World, namespace: NamespaceId) -> DataStep {
    let (to_parent, to_name) = some_target(world, namespace);
    let all = entries(world, namespace);
    let entry = all.choose(&mut world.random).unwrap().clone();
    let (device, replace) = (world.device, world.random.random_bool(0.4));
    match world.random.random_range(0..23) {
        0..4 => DataStep::EntryCreate {
            namespace,
            parent: to_parent,
            name: to_name,
            kind: if replace { EntryKind::Symlink(b"to".to_vec()) } else { EntryKind::Folder },
            mode: 0o755,
            mtime_ns: 1,
            existing: *[OnExisting::Refuse, OnExisting::TakeFolder, OnExisting::ReplaceSymlink]
                .choose(&mut world.random)
                .unwrap(),
        },
        4 => {
            let (entry, mtime_ns) = (entry.entry, world.random.random());
            DataStep::EntrySetAttributes { namespace, entry, mode: 0o600, mtime_ns }
        }
        5..9 => DataStep::EntryMove {
            namespace,
            entry: entry.entry,
            from_parent: entry.parent,
            from_name: entry.name,
            to_parent,
            to_name,
            replace,
        },
        9..12 => {
            let entry = entry.entry;
            DataStep::EntryCopy { namespace, entry, to_parent, to_name, replace, device }
        }
        12..15 => {
            let (parent, name) = (entry.parent, entry.name);
            DataStep::EntryDelete { namespace, entry: entry.entry, parent, name, recursive: replace }
        }
        15 => {
            let versions = world.rows::<VersionRow>(Table::Version);
            let of_entry = keys::versions(namespace, entry.entry);
            let version = versions.iter().find(|(key, _)| key.starts_with(&of_entry));
            let version = version.map_or(engine::ids::VersionId(5), |(_, row)| row.version);
            DataStep::VersionRestore { namespace, entry: entry.entry, version, device }
        }
        16..18 => {
            let trash = some_trash(world, namespace);
            DataStep::TrashRestore { namespace, trash, to_parent, to_name }
        }
        20.. => some_removal(world, namespace, entry.entry),
        _ => {
            let (trash, entries_max) = (some_trash(world, namespace), world.random.random_range(1..6));
            DataStep::TrashPurge { namespace, trash, entries_max }
        }
    }
}

/// A removal of some versions of an entry, perhaps of the current one too, which is refused.
fn some_removal(world: &mut World, namespace: NamespaceId, entry: EntryId) -> DataStep {
    let of_entry = keys::versions(namespace, entry);
    let mut versions: Vec<VersionRow> = world
        .rows(Table::Version)
        .into_iter()
        .filter(|(key, _)| key.starts_with(&of_entry))
        .map(|(_, row)| row)
        .collect();
    versions.retain(|_row| world.random.random_bool(0.7));
    let which = match world.random.random_range(0..3) {
        0 => VersionChoice::Listed(versions.iter().map(|row| row.version).collect()),
        1 => VersionChoice::AllButNewest(world.random.random_range(1..3)),
        _ => VersionChoice::Before { time_ms: versions.first().map_or(0, |row| row.created_ms + 1) },
    };
    DataStep::VersionsRemove { namespace, entry, which, versions_max: world.random.random_range(1..4) }
}
