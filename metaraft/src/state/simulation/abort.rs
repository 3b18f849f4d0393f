//! Giving a session up: abort, release what was held, dismiss the holder, remove its pins.

use engine::ids::{ChunkId, GroupId, RequestId};
use rand::Rng;

use super::cleaner::Cleaner;
use super::upload::Session;
use super::world::{Progress, World};
use crate::model::command::DataStep;
use crate::model::outcome::StepOutcome;

#[derive(Clone, Debug)]
enum Phase {
    Abort,
    Release(Cleaner),
    Dismiss,
    Unpin(Vec<(GroupId, Vec<ChunkId>)>),
}

#[derive(Clone, Debug)]
pub(super) struct Abort {
    session: Session,
    phase: Phase,
    attempt: [u8; 8],
    started_ms: u64,
    step: u32,
}

impl Abort {
    pub(super) fn new(world: &mut World, session: &Session) -> Self {
        let (attempt, started_ms) = (world.random.random(), world.time_ms);
        Self { session: session.clone(), phase: Phase::Abort, attempt, started_ms, step: 0 }
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
                let group = world.group_of(namespace.slot());
                match self.propose(world, group, DataStep::UploadAbort { namespace, upload }) {
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
                    Some(StepOutcome::Dismissed { in_force: true }) | None => return Progress::Ended,
                    other => panic!("{other:?}"),
                }
            }
            Phase::Unpin(mut groups) => {
                let Some((group, chunks)) = groups.pop() else { return Progress::Ended };
                match self.propose(world, group, DataStep::ChunksUnpin { holder, chunks }) {
                    Some(_) => Phase::Unpin(groups),
                    None => return Progress::Ended,
                }
            }
        };
        self.phase = phase;
        Progress::Going
    }
}
