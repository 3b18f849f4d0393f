//! Devices that delete what they have seen: a deletion goes through exactly if what it takes along is what they saw.

use engine::ids::EntryId;
use rand::Rng;

use super::super::keys::{self, Table};
use super::follower::Follower;
use super::world::World;
use crate::model::command::{DataStep, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::row::{EntryKind, EntryRow};

/// One deletion, of something that the follower knows, among items that fail by themselves.
pub(super) fn delete_seen(world: &mut World, follower: &Follower) {
    let (namespace, unchanged_since, tree) = follower.seen();
    if tree.is_empty() {
        return;
    }
    let some = world.random.random_range(0..tree.len());
    let Some(known) = tree.values().nth(some).cloned() else { return };
    let version = match known.kind {
        EntryKind::File(state) => Some(state.version),
        EntryKind::Folder | EntryKind::Symlink(_) => None,
    };
    let unchanged = unchanged_below(world, follower, &known);
    let delete = DataStep::EntryDeleteSeen {
        namespace,
        entry: known.entry,
        parent: known.parent,
        name: known.name.clone(),
        version,
        recursive: true,
        unchanged_since,
    };
    let fails = DataStep::EntrySetAttributes { namespace, entry: EntryId(999_999), mode: 0, mtime_ns: 0 };
    // What was done before the failure of an item is taken back with it.
    let taken_back = vec![delete.clone(), fails.clone()];
    let items = vec![vec![fails], taken_back, vec![delete], Vec::new()];
    let outcomes = world.done(world.group_of(namespace.slot()), vec![DataStep::Each { items }]);
    let [StepOutcome::Each(results)] = outcomes.as_slice() else { panic!("{outcomes:?}") };
    let [Err(StepError::NotFound { .. }), Err(_), deleted, Ok(nothing)] = results.as_slice() else {
        panic!("{results:?}");
    };
    assert!(nothing.is_empty());
    match deleted {
        Ok(_) => assert!(unchanged, "something that was not seen went along: {known:?}"),
        Err(error) => assert!(!unchanged, "refused, although nothing changed: {known:?} {error}"),
    }
}

/// Whether the entry, and for a folder all below it, is as the follower saw it after its last whole batch; without
/// what has been deleted there meanwhile.
fn unchanged_below(world: &World, follower: &Follower, known: &EntryRow) -> bool {
    let (namespace, _, tree) = follower.seen();
    let mut rows = Vec::new();
    let mut waiting = vec![known.entry];
    let all = world.rows::<EntryRow>(Table::Entry);
    let place = keys::entry(namespace, known.parent, &known.name);
    match all.iter().find(|(key, _)| *key == place) {
        // Of a file its version counts, not its attributes.
        Some((_, row)) if row.entry == known.entry && is_file(known) && row.kind == known.kind => {}
        Some((_, row)) if row == known => {}
        _ => return false,
    }
    // In the tree, and not only in a folder that is in the trash.
    let mut above = known.parent;
    while above.0 > 1 {
        match all.iter().find(|(key, row)| row.entry == above && in_namespace(key, namespace)) {
            Some((_, row)) => above = row.parent,
            None => return false,
        }
    }
    while let Some(folder) = waiting.pop() {
        let prefix = keys::children(namespace, folder);
        for (_, row) in all.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            waiting.push(row.entry);
            rows.push(row);
        }
    }
    rows.iter().all(|row| tree.get(&row.entry) == Some(*row))
}

fn is_file(row: &EntryRow) -> bool {
    matches!(row.kind, EntryKind::File(_))
}

fn in_namespace(key: &[u8], namespace: engine::ids::NamespaceId) -> bool {
    key[1..].starts_with(&keys::namespace(namespace)[1..])
}
