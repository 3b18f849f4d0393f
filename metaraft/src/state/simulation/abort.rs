//! Giving a session up: abort, release what was held, dismiss the holder, remove its pins, forget it.

use engine::ids::{ChunkId, GroupId, RequestId};
use rand::Rng;

use super::cleaner::Cleaner;
use super::upload::Session;
use super::world::{Progress, World};
use crate::model::command::{DataStep, StepError};
use crate::model::outcome::StepOutcome;

#[derive(Clone, Debug)]
enum Phase {
    Abort,
    Release(Cleaner),
    Dismiss,
    Unpin(Vec<(GroupId, Vec<ChunkId>)>),
    Forget,
}

#[derive(Clone, Debug)]
pub(super) struct Abort {
    session: Session,
    phase: Phase,
    /// Whether it is given up only if its time is over.
    only_expired: bool,
    attempt: [u8; 8],
    started_ms: u64,
    step: u32,
}

impl Abort {
    pub(super) fn new(world: &mut World, session: &Session) -> Self {
        let (attempt, started_ms) = (world.random.random(), world.time_ms);
        let only_expired = world.random.random_bool(0.3);
        Self { session: session.clone(), phase: Phase::Abort, only_expired, attempt, started_ms, step: 0 }
    }

    fn request(&mut self) -> RequestId {
        self.step += 1;
        let step = self.step.to_be_bytes();
        RequestId::new(self.started_ms, World::derived(&[b"abort\0", &self.attempt, &step]))
    }

    fn propose(&mut self, world: &mut World, group: GroupId, step: DataStep) -> Option<StepOutcome> {
        let request = self.request();
        world.propose(group, request, vec![step]).map(|outcome| outcome.unwrap().remove(0))
    }

    pub(super) fn step(&mut self, world: &mut World) -> Progress {
        let Session { namespace, upload, holder, ref content } = self.session;
        let (content_id, chunks) = (content.content, content.ids());
        let phase = match self.phase.clone() {
            Phase::Abort => {
                let expired = DataStep::UploadExpire { namespace, upload, idle: None };
                let given_up = DataStep::UploadAbort { namespace, upload };
                let step = if self.only_expired { expired } else { given_up };
                let request = self.request();
                let outcome = match world.propose(world.group_of(namespace.slot()), request, vec![step]) {
                    // Its time is not over: given up all the same.
                    Some(Err(StepError::Changed { .. })) => {
                        self.only_expired = false;
                        return Progress::Going;
                    }
                    None => return Progress::Ended,
                    Some(outcome) => Some(outcome.unwrap().remove(0)),
                };
                match outcome {
                    Some(StepOutcome::Aborted { holder: Some(holder), release }) => {
                        self.session.holder = holder;
                        match release {
                            Some(release) => Phase::Release(Cleaner::of(world, namespace, release)),
                            None => Phase::Dismiss,
                        }
                    }
                    Some(StepOutcome::Aborted { holder: None, .. }) | None => return Progress::Ended,
                    other => panic!("{other:?}"),
                }
            }
            Phase::Release(mut cleaner) => match cleaner.step(world) {
                Progress::Going => Phase::Release(cleaner),
                Progress::Ended => Phase::Dismiss,
            },
            Phase::Dismiss => {
                let step = DataStep::HolderDismiss { content: content_id, holder };
                match self.propose(world, world.group_of(content_id.slot()), step) {
                    Some(StepOutcome::Dismissed { in_force: false }) => Phase::Unpin(world.by_group(&chunks)),
                    Some(StepOutcome::Dismissed { in_force: true }) => Phase::Forget,
                    None => return Progress::Ended,
                    other => panic!("{other:?}"),
                }
            }
            Phase::Unpin(mut groups) => {
                if let Some((group, chunks)) = groups.pop() {
                    match self.propose(world, group, DataStep::ChunksUnpin { holder, chunks }) {
                        Some(_) => Phase::Unpin(groups),
                        None => return Progress::Ended,
                    }
                } else {
                    Phase::Forget
                }
            }
            Phase::Forget => {
                let request = self.request();
                let step = DataStep::UploadForget { namespace, upload };
                match world.propose(world.group_of(namespace.slot()), request, vec![step]) {
                    // Somebody may still be at work on it.
                    Some(Ok(_) | Err(StepError::Changed { .. })) | None => return Progress::Ended,
                    Some(Err(error)) => panic!("forget: {error}"),
                }
            }
        };
        self.phase = phase;
        Progress::Going
    }
}
