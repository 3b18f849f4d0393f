//! Takes commands and queries apart, and hands each step to its area.
//!
//! Invariants:
//! - A command is applied whole or not at all, and its outcome is remembered under its request id in the same
//!   transaction. Two answers are not remembered, since they may turn out otherwise without anything having been
//!   done: the slot is not owned (it may be adopted), and the step is for another kind of group.
//! - A command that is not known is not applied: the replica stops. What its bytes alone condemn is refused by the leader,
//!   before it is proposed.
//! - What a command does depends on the rows, its bytes and the entry's times alone.

use std::sync::Arc;

use engine::ids::{GroupId, ROOT_GROUP};

use super::conditional::Seen;
use super::journal;
use super::query;
use super::requests;
use super::tree::{Attributes, Target};
use super::txn::{Group, invalid};
use super::uploads::{Commit, Session};
use crate::app::{App, Made, NotUnderstood, Notice};
use crate::kv::{Changes, Txn, View};
use crate::model::STEPS_MAX;
use crate::model::codec;
use crate::model::command::{Command, CommandOutcome, DataStep, RootStep, StepError, Steps};
use crate::model::outcome::{Release, StepOutcome};
use crate::model::query::{LONG_QUERY_BYTES, Query};
use crate::model::request_key::Payload;
use crate::model::room::makes_room;
use crate::model::row::ContentRow;
use crate::raft::group::COMMAND_BYTES_MAX;
use crate::warden::liveness::Liveness;

/// The state machine of the root group and of the data groups.
pub struct StateMachine {
    liveness: Arc<Liveness>,
}

impl StateMachine {
    /// A state machine whose cluster map tells the health that `liveness` knows of.
    #[must_use]
    pub fn new(liveness: Arc<Liveness>) -> Self {
        Self { liveness }
    }
}

impl App for StateMachine {
    fn apply(
        &self,
        group: GroupId,
        txn: &mut Txn<'_>,
        made: Made,
        command: &[u8],
    ) -> Result<Vec<u8>, NotUnderstood> {
        let decoded: Command =
            codec::decode(command).map_err(|error| NotUnderstood { why: describe(&error) })?;
        let payload = decoded.payload.unwrap_or_else(|| Payload::of_command(command));
        Ok(apply(group, txn, made, &decoded, payload))
    }

    fn refusal(&self, group: GroupId, command: &[u8]) -> Option<Vec<u8>> {
        let refused = |error| Some(codec::encode(&CommandOutcome::Failed { step: 0, error }));
        if command.len() > COMMAND_BYTES_MAX {
            let bytes = command.len();
            return refused(invalid(format!(
                "it takes {bytes} bytes of metadata; a command has at most {COMMAND_BYTES_MAX}"
            )));
        }
        match codec::decode::<Command>(command) {
            Ok(Command { steps, .. }) => match checked(group, &steps) {
                Ok(()) => None,
                Err(error) => refused(error),
            },
            Err(error) => {
                tracing::warn!(group = group.0, error = %describe(&error), "a command is not known and not proposed");
                Some(codec::encode(&CommandOutcome::NotUnderstood))
            }
        }
    }

    fn refusal_at_reserve(&self, command: &[u8]) -> Option<Vec<u8>> {
        (!makes_room(command)).then(|| codec::encode(&CommandOutcome::NoSpace))
    }

    fn query(&self, group: GroupId, view: &View<'_>, query: &[u8]) -> Vec<u8> {
        codec::encode(&query::answer(group, view, query, &self.liveness))
    }

    fn may_take_long(&self, query: &[u8]) -> bool {
        query.len() > LONG_QUERY_BYTES
            || codec::decode::<Query>(query).is_ok_and(|query| query.may_take_long())
    }

    fn notices(&self, changes: &Changes) -> Vec<Notice> {
        journal::notices(changes)
    }
}

fn describe(error: &codec::DecodeError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn steps_bounded(count: usize) -> Result<(), StepError> {
    if count <= STEPS_MAX {
        return Ok(());
    }
    Err(invalid(format!("{count} steps; a command has at most {STEPS_MAX}")))
}

/// What can be judged of a command without any row. Applying judges it again: an older leader may have proposed it.
fn checked(group: GroupId, steps: &Steps) -> Result<(), StepError> {
    let is_root = matches!(steps, Steps::Root(_));
    if is_root != (group == ROOT_GROUP) {
        return Err(StepError::WrongGroup);
    }
    match steps {
        Steps::Root(steps) => steps_bounded(steps.len()),
        Steps::Data(steps) => {
            steps_bounded(steps.len())?;
            for step in steps {
                if let DataStep::Each { items } = step {
                    steps_bounded(items.len().max(items.iter().map(Vec::len).sum()))?;
                }
            }
            Ok(())
        }
    }
}

/// Applies a command that was understood; gives its encoded outcome.
fn apply(group: GroupId, txn: &mut Txn<'_>, made: Made, command: &Command, payload: Payload) -> Vec<u8> {
    let time = made.time;
    if let Some(remembered) = requests::remembered(txn, command.request, payload) {
        let refused = |error| codec::encode(&CommandOutcome::Failed { step: 0, error });
        return remembered.unwrap_or_else(refused);
    }
    if requests::out_of_time(txn, command.request, time) {
        return codec::encode(&CommandOutcome::RequestOutOfTime { leader_ms: time.wall_ms });
    }
    requests::sweep(txn, time);
    let outcome = match txn.attempt(|txn| run(group, txn, made, &command.steps)) {
        Ok(outcomes) => CommandOutcome::Done(outcomes),
        Err((step, error)) => CommandOutcome::Failed { step, error },
    };
    let encoded = codec::encode(&outcome);
    let elsewhere = StepError::WrongGroup;
    let passing = matches!(&outcome, CommandOutcome::Failed { error, .. }
        if *error == elsewhere || matches!(error, StepError::NotOwner { .. }));
    if !passing {
        requests::remember(txn, command.request, payload, &encoded);
    }
    encoded
}

/// Runs the steps in order; tells which one failed.
fn run(
    group: GroupId,
    txn: &mut Txn<'_>,
    made: Made,
    steps: &Steps,
) -> Result<Vec<StepOutcome>, (u32, StepError)> {
    let mut group = Group::begin(group, made, txn).map_err(|error| (0, error))?;
    let outcomes = match steps {
        Steps::Root(steps) => run_each(steps, |step| root_step(&mut group, step)),
        Steps::Data(steps) => run_each(steps, |step| data_step(&mut group, step)),
    }?;
    group.finish();
    Ok(outcomes)
}

fn run_each<S>(
    steps: &[S],
    mut run: impl FnMut(&S) -> Result<StepOutcome, StepError>,
) -> Result<Vec<StepOutcome>, (u32, StepError)> {
    steps_bounded(steps.len()).map_err(|error| (0, error))?;
    (0..).zip(steps).map(|(number, step)| run(step).map_err(|error| (number, error))).collect()
}

fn root_step(group: &mut Group<'_, '_>, step: &RootStep) -> Result<StepOutcome, StepError> {
    if group.group != ROOT_GROUP {
        return Err(StepError::WrongGroup);
    }
    match step {
        RootStep::ClusterInit { cluster, code, slots, meta_nodes } => {
            group.cluster_init(*cluster, *code, slots, meta_nodes)
        }
        RootStep::StorageNodeRegister { node, address, location } => {
            group.storage_node_register(*node, address, location)
        }
        RootStep::DiskRegister { disk, node, path } => group.disk_register(*disk, *node, path),
        RootStep::VolumesCreate { existing, code, members } => {
            group.volumes_create(*existing, *code, members)
        }
        RootStep::SettingSet { name, value } => group.setting_set(name, value),
        RootStep::SecretMake { name, secret } => group.secret_make(name, *secret),
        RootStep::DisksAttest { disks } => group.disks_attest(disks),
    }
}

/// Items that each succeed or fail by themselves.
fn each(group: &mut Group<'_, '_>, items: &[Vec<DataStep>]) -> Result<StepOutcome, StepError> {
    steps_bounded(items.len().max(items.iter().map(Vec::len).sum()))?;
    let mut results = Vec::with_capacity(items.len());
    for item in items {
        let result = group.attempt(|group| {
            item.iter()
                .map(|step| match step {
                    DataStep::Each { .. } => Err(invalid("items within an item")),
                    step => data_step(group, step),
                })
                .collect::<Result<Vec<StepOutcome>, StepError>>()
        });
        // The command goes to another group as a whole.
        if let Err(error @ (StepError::NotOwner { .. } | StepError::WrongGroup)) = result {
            return Err(error);
        }
        results.push(result);
    }
    Ok(StepOutcome::Each(results))
}

#[expect(clippy::too_many_lines, reason = "one arm for each step, nothing else")]
fn data_step(group: &mut Group<'_, '_>, step: &DataStep) -> Result<StepOutcome, StepError> {
    if group.group == ROOT_GROUP {
        return Err(StepError::WrongGroup);
    }
    match step {
        DataStep::SlotsAdopt { first, last } => group.slots_adopt(*first, *last),
        DataStep::EmailReserve { email, account } => group.email_reserve(email, *account),
        DataStep::AccountCreate { account, row } => group.account_create(*account, row),
        DataStep::DeviceAdd { account, device, row } => group.device_add(*account, *device, row),
        DataStep::DeviceRevoke { account, device } => group.device_revoke(*account, *device),
        DataStep::NamespaceCreate { namespace, owner, quota_bytes } => {
            group.namespace_create(*namespace, *owner, *quota_bytes)
        }
        DataStep::UploadBegin { namespace, upload, holder, content, size, cutter, chunks, life_ms, most } => {
            let (holder, content, size, cutter) = (*holder, *content, *size, *cutter);
            let session = Session { holder, content, size, cutter, chunks, life_ms: *life_ms, most: *most };
            group.upload_begin(*namespace, *upload, &session)
        }
        DataStep::UploadHold { namespace, upload } => group.upload_hold(*namespace, *upload),
        DataStep::FileCommit { namespace, upload, parent, name, base, mode, mtime_ns, device } => {
            let attributes = Attributes { mode: *mode, mtime_ns: *mtime_ns };
            let commit = Commit { upload: *upload, base: *base, attributes, device: *device };
            group.file_commit(*namespace, Target { parent: *parent, name }, commit)
        }
        DataStep::UploadAbort { namespace, upload } => group.upload_abort(*namespace, *upload),
        DataStep::EntryCreate { namespace, parent, name, kind, mode, mtime_ns, existing } => {
            let attributes = Attributes { mode: *mode, mtime_ns: *mtime_ns };
            let target = Target { parent: *parent, name };
            group.entry_create(*namespace, target, kind, attributes, *existing)
        }
        DataStep::EntrySetAttributes { namespace, entry, mode, mtime_ns } => {
            let attributes = Attributes { mode: *mode, mtime_ns: *mtime_ns };
            group.entry_set_attributes(*namespace, *entry, attributes)
        }
        DataStep::EntryMove { namespace, entry, from_parent, from_name, to_parent, to_name, replace } => {
            let from = Target { parent: *from_parent, name: from_name };
            let to = Target { parent: *to_parent, name: to_name };
            group.entry_move(*namespace, *entry, from, to, *replace)
        }
        DataStep::EntryCopy { namespace, entry, to_parent, to_name, replace, device } => {
            let to = Target { parent: *to_parent, name: to_name };
            group.entry_copy(*namespace, *entry, to, *replace, *device)
        }
        DataStep::EntryDelete { namespace, entry, parent, name, recursive } => {
            group.entry_delete(*namespace, *entry, Target { parent: *parent, name }, *recursive)
        }
        DataStep::VersionRestore { namespace, entry, version, device } => {
            group.version_restore(*namespace, *entry, *version, *device)
        }
        DataStep::TrashRestore { namespace, trash, to_parent, to_name } => {
            group.trash_restore(*namespace, *trash, Target { parent: *to_parent, name: to_name })
        }
        DataStep::TrashPurge { namespace, trash, entries_max } => {
            group.trash_purge(*namespace, *trash, *entries_max)
        }
        DataStep::ReleaseDone { namespace, content, generation } => {
            group.release_done(*namespace, *content, *generation)
        }
        DataStep::ContentRetain { content, namespace, generation, holder, size, list } => {
            let row = ContentRow { holder: *holder, size: *size, list: list.clone() };
            group.content_retain(*content, *namespace, *generation, &row)
        }
        DataStep::ContentRelease { content, namespace, generation } => {
            group.content_release(*content, *namespace, *generation)
        }
        DataStep::DeadContentForget { content, holder } => group.dead_content_forget(*content, *holder),
        DataStep::ChunksPin { holder, chunks } => group.chunks_pin(*holder, chunks),
        DataStep::ChunksRegister { epoch, chunks } => group.chunks_register(*epoch, chunks),
        DataStep::ChunksUnpin { holder, chunks } => group.chunks_unpin(*holder, chunks),
        DataStep::StripeRegister { record } => group.stripe_register(record),
        DataStep::VolumeFence { volume, epoch } => group.volume_fence(*volume, *epoch),
        DataStep::HolderDismiss { content, holder } => group.holder_dismiss(*content, *holder),
        DataStep::Each { items } => each(group, items),
        DataStep::JournalHorizonSet { horizon_ms } => group.journal_horizon_set(*horizon_ms),
        DataStep::EntryDeleteSeen { namespace, entry, parent, name, version, recursive, unchanged_since } => {
            let at = Target { parent: *parent, name };
            let seen = Seen { version: *version, recursive: *recursive, unchanged_since: *unchanged_since };
            group.entry_delete_seen(*namespace, *entry, at, seen)
        }
        DataStep::EntrySetAttributesSeen { namespace, entry, version, mode, mtime_ns } => {
            let attributes = Attributes { mode: *mode, mtime_ns: *mtime_ns };
            group.entry_set_attributes_seen(*namespace, *entry, *version, attributes)
        }
        DataStep::SymlinkRetarget { namespace, entry, target_before, target, mode, mtime_ns } => {
            let attributes = Attributes { mode: *mode, mtime_ns: *mtime_ns };
            group.symlink_retarget(*namespace, *entry, target_before, target, attributes)
        }
        DataStep::UploadExtend { namespace, upload, life_ms } => {
            group.upload_extend(*namespace, *upload, *life_ms)
        }
        DataStep::ChunksUnreadable { chunks } => group.chunks_unreadable(chunks),
        DataStep::UploadExpire { namespace, upload, idle } => group.upload_expire(*namespace, *upload, *idle),
        DataStep::UploadForget { namespace, upload } => group.upload_forget(*namespace, *upload),
        DataStep::VersionsRemove { namespace, entry, which, versions_max } => {
            group.versions_remove(*namespace, *entry, which, *versions_max)
        }
        DataStep::NamespaceQuotaSet { namespace, quota_bytes } => {
            group.namespace_quota_set(*namespace, *quota_bytes)
        }
        DataStep::ReleaseSetAside { namespace, content, generation, why } => {
            group.release_set_aside(*namespace, Release { content: *content, generation: *generation }, why)
        }
        DataStep::JournalGuard { namespace, seen } => group.journal_guard(*namespace, seen),
        DataStep::TokenGuard(guard) => group.token_guard(guard),
        DataStep::FilePut { namespace, file, nursery_bytes_max } => {
            group.small_file_put(*namespace, file, *nursery_bytes_max)
        }
        DataStep::NurseryLease { mover, life_ms } => group.nursery_lease(*mover, *life_ms),
        DataStep::NurseryTake { namespace, content, generation, holder } => {
            group.nursery_take(*namespace, *content, *generation, *holder)
        }
        DataStep::NurserySettle { namespace, content, generation, in_force } => {
            group.nursery_settle(*namespace, *content, *generation, *in_force)
        }
        DataStep::NurseryForget { namespace, content, generation } => {
            group.nursery_forget(*namespace, *content, *generation)
        }
    }
}
