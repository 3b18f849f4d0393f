//! Which commands make room, and may go on when a metadata disk is at its reserve. Pure.
//!
//! Deleting writes rows before it frees any: what a person deletes goes to the trash, a purge queues releases, and a
//! release leaves marks. So all steps of these operations count as making room; whatever begins something new does not.

use super::codec;
use super::command::{Command, DataStep, Steps};

/// Whether an encoded command only makes room. One that is not understood does not.
pub(crate) fn makes_room(command: &[u8]) -> bool {
    let Ok(Command { steps, .. }) = codec::decode::<Command>(command) else { return false };
    match steps {
        Steps::Data(steps) => !steps.is_empty() && steps.iter().all(step_makes_room),
        Steps::Root(_) => false,
    }
}

fn step_makes_room(step: &DataStep) -> bool {
    match step {
        DataStep::Each { items } => items.iter().flatten().all(step_makes_room),
        DataStep::EntryDelete { .. }
        | DataStep::EntryDeleteSeen { .. }
        | DataStep::TrashPurge { .. }
        | DataStep::VersionsRemove { .. }
        | DataStep::ReleaseDone { .. }
        | DataStep::ReleaseSetAside { .. }
        | DataStep::ContentRelease { .. }
        | DataStep::DeadContentForget { .. }
        | DataStep::ChunksUnpin { .. }
        | DataStep::HolderDismiss { .. }
        | DataStep::UploadAbort { .. }
        | DataStep::UploadExpire { .. }
        | DataStep::UploadForget { .. }
        | DataStep::DeviceRevoke { .. }
        | DataStep::NurseryForget { .. }
        | DataStep::NurseryLease { .. }
        | DataStep::NurserySettle { .. }
        | DataStep::TokenGuard(_)
        | DataStep::JournalGuard { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use engine::ids::{ContentId, EntryId, NamespaceId, RequestId};

    use super::*;
    use crate::model::command::VersionChoice;

    fn command(steps: Vec<DataStep>) -> Vec<u8> {
        codec::encode(&Command::new(RequestId::new(1, [0; 16]), Steps::Data(steps)))
    }

    #[test]
    fn only_what_makes_room_counts_so() {
        let namespace = NamespaceId::from_bytes([1; 16]);
        let content = ContentId::from_bytes([2; 32]);
        let done = DataStep::ReleaseDone { namespace, content, generation: 1 };
        let which = VersionChoice::AllButNewest(1);
        let versions = DataStep::VersionsRemove { namespace, entry: EntryId(2), which, versions_max: 1 };
        assert!(makes_room(&command(vec![versions])));
        let takes = DataStep::JournalHorizonSet { horizon_ms: 1 };
        assert!(makes_room(&command(vec![done.clone()])));
        assert!(makes_room(&command(vec![DataStep::Each { items: vec![vec![done.clone()]] }])));
        assert!(!makes_room(&command(vec![done.clone(), takes.clone()])));
        assert!(!makes_room(&command(vec![DataStep::Each { items: vec![vec![done], vec![takes]] }])));
        assert!(!makes_room(&command(vec![])));
        assert!(!makes_room(b"what is this"));
    }
}
