//! Changes by ids, many in one request, in order; each succeeds or fails by itself.
//!
//! Actions go as items of few commands, cut by the request alone: so a repetition makes the same commands, and is given
//! the same answers.
//!
//! An answer tells of the entry with its symlink's target, whatever the action says of it: so the number of actions in a
//! command bounds its answer, and the bytes of actions do not.

use engine::ids::{EntryId, NamespaceId, VersionId};
use metaraft::api::MetaError;
use metaraft::model::command::{DataStep, OnExisting, StepError};
use metaraft::model::outcome::StepOutcome;
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::{EntryKind, EntryRow};
use proto::v1;
use proto::v1::action::Action;
use tonic::Code;

use crate::auth::Caller;
use crate::convert;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{APPLY_ACTIONS_MAX, APPLY_COMMAND_ACTIONS_MAX, APPLY_COMMAND_BYTES};
use crate::meta::wrong_reply;
use crate::path::{name_fault, shown};
use crate::sync::history::Guard;

/// Bytes of an action but for names and targets, about.
const ACTION_BYTES: usize = 128;

/// An action, checked: what its messages speak of, and what it does.
struct Wanted {
    subject: String,
    step: DataStep,
    bytes: usize,
}

fn place(place: Option<v1::Place>) -> Result<(EntryId, String), Failure> {
    let place = place.ok_or_else(|| Failure::invalid("an action without its place"))?;
    match name_fault(&place.name) {
        Some(why) => {
            Err(Failure::new(Code::InvalidArgument, "bad-path", format!("{}: {why}", shown(&place.name))))
        }
        None => Ok((EntryId(place.parent_id), place.name)),
    }
}

fn entry_subject(entry: u64) -> String {
    format!("entry {entry}")
}

fn parse(namespace: NamespaceId, action: v1::Action) -> Result<Wanted, Failure> {
    let action =
        action.action.ok_or_else(|| Failure::invalid("an action that this gateway does not know"))?;
    match action {
        Action::CreateFolder(v1::CreateFolderAt { place: at, mode, mtime_ns }) => {
            create(namespace, at, EntryKind::Folder, mode, mtime_ns)
        }
        Action::CreateSymlink(v1::CreateSymlinkAt { place: at, target, mode, mtime_ns }) => {
            create(namespace, at, EntryKind::Symlink(convert::symlink_target(&target)?), mode, mtime_ns)
        }
        Action::SetSymlink(v1::SetSymlinkAt { entry_id, target_before, target, mode, mtime_ns }) => {
            let target = convert::symlink_target(&target)?;
            let target_before = convert::symlink_target(&target_before)?;
            let (entry, mode) = (EntryId(entry_id), convert::mode(mode)?);
            let bytes = ACTION_BYTES + target.len() + target_before.len();
            let step = DataStep::SymlinkRetarget { namespace, entry, target_before, target, mode, mtime_ns };
            Ok(Wanted { subject: entry_subject(entry_id), step, bytes })
        }
        Action::Move(v1::MoveAt { entry_id, from, to }) => {
            let ((from_parent, from_name), (to_parent, to_name)) = (place(from)?, place(to)?);
            let (subject, entry) = (shown(&from_name), EntryId(entry_id));
            let bytes = ACTION_BYTES + from_name.len() + to_name.len();
            let step = DataStep::EntryMove {
                namespace,
                entry,
                from_parent,
                from_name,
                to_parent,
                to_name,
                replace: false,
            };
            Ok(Wanted { subject, step, bytes })
        }
        Action::Delete(v1::DeleteAt { entry_id, from, version, recursive, unchanged_since }) => {
            let (parent, name) = place(from)?;
            let (subject, bytes) = (shown(&name), ACTION_BYTES + name.len());
            let (entry, version) = (EntryId(entry_id), (version != 0).then_some(VersionId(version)));
            let step = DataStep::EntryDeleteSeen {
                namespace,
                entry,
                parent,
                name,
                version,
                recursive,
                unchanged_since,
            };
            Ok(Wanted { subject, step, bytes })
        }
        Action::SetAttributes(v1::SetAttributesAt { entry_id, mode, mtime_ns, version }) => {
            let (entry, mode) = (EntryId(entry_id), convert::mode(mode)?);
            let step = if version == 0 {
                DataStep::EntrySetAttributes { namespace, entry, mode, mtime_ns }
            } else {
                let version = VersionId(version);
                DataStep::EntrySetAttributesSeen { namespace, entry, version, mode, mtime_ns }
            };
            Ok(Wanted { subject: entry_subject(entry_id), step, bytes: ACTION_BYTES })
        }
    }
}

fn create(
    namespace: NamespaceId,
    at: Option<v1::Place>,
    kind: EntryKind,
    mode: u32,
    mtime_ns: i64,
) -> Result<Wanted, Failure> {
    let (parent, name) = place(at)?;
    let target = if let EntryKind::Symlink(target) = &kind { target.len() } else { 0 };
    let (subject, bytes) = (shown(&name), ACTION_BYTES + name.len() + target);
    let (mode, existing) = (convert::mode(mode)?, OnExisting::Refuse);
    let step = DataStep::EntryCreate { namespace, parent, name, kind, mode, mtime_ns, existing };
    Ok(Wanted { subject, step, bytes })
}

/// Why an action changed nothing. What is no longer as the client has seen it is a conflict, whatever it is.
fn refused(error: &StepError, subject: &str) -> Failure {
    let conflict = |what: &str| {
        let message = format!("{subject}: {what}; look at what has changed and decide anew");
        Failure::new(Code::Aborted, "conflict", message)
    };
    match error {
        StepError::Conflict { .. } => conflict("it was changed by someone else meanwhile"),
        StepError::Changed { what } => conflict(&format!("{what} has changed meanwhile")),
        StepError::NotFound { what } => conflict(&format!("the {what} is not there any more")),
        StepError::AlreadyExists { kind } => conflict(&format!("there is a {kind} of that name already")),
        StepError::WrongKind { is } => conflict(&format!("it is a {is}")),
        StepError::NotEmpty => conflict("the folder is not empty"),
        StepError::Cycle => conflict("the folder that it goes to is in it"),
        other => Failure::from_step(other, subject),
    }
}

/// The items of each command, in order.
fn cut<'a>(all: impl IntoIterator<Item = &'a Wanted>) -> Vec<Vec<Vec<DataStep>>> {
    let (mut commands, mut bytes): (Vec<Vec<Vec<DataStep>>>, usize) = (Vec::new(), 0);
    for wanted in all {
        let item = vec![wanted.step.clone()];
        match commands.last_mut() {
            Some(items)
                if items.len() < APPLY_COMMAND_ACTIONS_MAX && bytes + wanted.bytes <= APPLY_COMMAND_BYTES =>
            {
                bytes += wanted.bytes;
                items.push(item);
            }
            _ => {
                bytes = wanted.bytes;
                commands.push(vec![item]);
            }
        }
    }
    commands
}

/// Applies all of them.
pub(crate) async fn apply(
    core: &Core,
    caller: &Caller,
    request: RequestKey,
    guard: Option<&Guard>,
    actions: Vec<v1::Action>,
) -> Result<Vec<Result<EntryRow, Failure>>, Failure> {
    if actions.len() > APPLY_ACTIONS_MAX {
        return Err(Failure::invalid(format!("at most {APPLY_ACTIONS_MAX} actions in one request")));
    }
    let parsed: Vec<Result<Wanted, Failure>> =
        actions.into_iter().map(|action| parse(caller.namespace, action)).collect();
    let commands = cut(parsed.iter().filter_map(|wanted| wanted.as_ref().ok()));
    let failed = |error| match error {
        MetaError::Step(changed @ StepError::Changed { .. }) => refused(&changed, "changes"),
        other => Failure::from_meta(&other, "changes"),
    };
    let mut outcomes = Vec::with_capacity(parsed.len());
    for (number, items) in (0..).zip(commands) {
        // One after the other: they are to be done in order.
        let slot = caller.namespace.slot();
        let some = core.meta.each_guarded(slot, request.step(number), guard, items).await;
        outcomes.extend(some.map_err(failed)?);
    }
    let mut outcomes = outcomes.into_iter();
    let results = parsed.into_iter().map(|wanted| {
        let Wanted { subject, .. } = wanted?;
        match outcomes.next() {
            Some(Ok(mut steps)) => match steps.pop() {
                Some(StepOutcome::Entry(entry) | StepOutcome::TrashedEntry { entry, .. }) => Ok(entry),
                _ => Err(failed(wrong_reply("action"))),
            },
            Some(Err(error)) => Err(refused(&error, &subject)),
            None => Err(failed(wrong_reply("actions"))),
        }
    });
    Ok(results.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(entry: u64) -> Wanted {
        let namespace = NamespaceId::from_bytes([1; 16]);
        let step = DataStep::EntrySetAttributes { namespace, entry: EntryId(entry), mode: 0, mtime_ns: 0 };
        Wanted { subject: String::new(), step, bytes: ACTION_BYTES }
    }

    #[test]
    fn commands_have_few_actions_each_in_order() {
        let all: Vec<Wanted> = (0..1000).map(touch).collect();
        let commands = cut(&all);
        assert!(commands.iter().all(|items| items.len() <= APPLY_COMMAND_ACTIONS_MAX));
        assert_eq!(commands.len(), all.len().div_ceil(APPLY_COMMAND_ACTIONS_MAX));
        let expected: Vec<Vec<DataStep>> = all.iter().map(|wanted| vec![wanted.step.clone()]).collect();
        assert_eq!(commands.concat(), expected);
        assert!(cut(&[]).is_empty());
    }

    #[test]
    fn a_command_has_only_so_many_bytes_of_actions() {
        let large = |entry| Wanted { bytes: APPLY_COMMAND_BYTES / 2, ..touch(entry) };
        let all: Vec<Wanted> = (0..5).map(large).collect();
        assert_eq!(cut(&all).iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    }
}
