//! Doing a release: in the content's group, then the chunks of what died of it, then off both queues.

use engine::ids::{ChunkId, GroupId, NamespaceId, RequestId};
use rand::Rng;

use super::super::keys::{Table, release_parts};
use super::world::{Progress, World};
use crate::model::command::DataStep;
use crate::model::outcome::{DeadContent, Release, StepOutcome};
use crate::model::query::{Query, Reply};
use crate::model::row::AsideRelease;

#[derive(Clone, Debug)]
enum Phase {
    Look,
    Release(Release),
    Unpin(Release, DeadContent, Vec<(GroupId, Vec<ChunkId>)>),
    Done(Release),
}

#[derive(Clone, Debug)]
pub(super) struct Cleaner {
    namespace: NamespaceId,
    phase: Phase,
    /// It cannot do what it takes up, or thinks so.
    fails: bool,
    attempt: [u8; 8],
    started_ms: u64,
    step: u32,
}

impl Cleaner {
    /// Takes up whatever is queued in some namespace.
    pub(super) fn new(world: &mut World) -> Self {
        let namespace = world.namespaces[world.random.random_range(0..world.namespaces.len())];
        Self::with(world, namespace, Phase::Look)
    }

    /// Does one release.
    pub(super) fn of(world: &mut World, namespace: NamespaceId, release: Release) -> Self {
        Self::with(world, namespace, Phase::Release(release))
    }

    /// One for each release that is queued anywhere.
    pub(super) fn needed(world: &mut World) -> impl Iterator<Item = Self> {
        let queued = world.rows::<()>(Table::Release);
        let mut cleaners = Vec::new();
        for (_key, aside) in world.rows::<AsideRelease>(Table::ReleaseAside) {
            cleaners.push(Self::of(world, aside.namespace, aside.release));
        }
        for (key, ()) in queued {
            let (content, generation) = release_parts(&key).unwrap();
            let namespace = NamespaceId::from_slice(&key[3..19]).unwrap();
            cleaners.push(Self::of(world, namespace, Release { content, generation }));
        }
        cleaners.into_iter()
    }

    fn with(world: &mut World, namespace: NamespaceId, phase: Phase) -> Self {
        let fails = world.random.random_bool(0.1);
        Self { namespace, phase, fails, attempt: world.random.random(), started_ms: world.time_ms, step: 0 }
    }

    fn request(&mut self) -> RequestId {
        self.step += 1;
        let step = self.step.to_be_bytes();
        RequestId::new(self.started_ms, World::derived(&[b"release\0", &self.attempt, &step]))
    }

    fn propose(&mut self, world: &mut World, group: GroupId, step: DataStep) -> Option<StepOutcome> {
        let request = self.request();
        world.propose(group, request, vec![step]).map(|outcome| outcome.unwrap().remove(0))
    }

    pub(super) fn step(&mut self, world: &mut World) -> Progress {
        let namespace = self.namespace;
        let home = world.group_of(namespace.slot());
        let phase = match self.phase.clone() {
            Phase::Look => {
                // Two that look at once need not find the same: from here on their requests are their own.
                self.attempt = world.random.random();
                let Reply::Releases(queued) = world.ask(home, &Query::Releases { namespace, count_max: 10 })
                else {
                    panic!("no releases");
                };
                let query = Query::ReleasesDue { now_ms: world.time_ms, count_max: 1 };
                let Reply::ReleasesAside(due) = world.ask(home, &query) else { panic!("no releases") };
                if let Some(due) = due.first() {
                    assert!(due.retry_ms <= world.time_ms, "not due yet: {due:?}");
                    (self.namespace, self.phase) = (due.namespace, Phase::Release(due.release));
                    return Progress::Going;
                }
                if queued.is_empty() {
                    return Progress::Ended;
                }
                Phase::Release(queued[world.random.random_range(0..queued.len())])
            }
            Phase::Release(release) => {
                let Release { content, generation } = release;
                if self.fails {
                    let why = "the list is unreadable".to_owned();
                    self.propose(
                        world,
                        home,
                        DataStep::ReleaseSetAside { namespace, content, generation, why },
                    );
                    return Progress::Ended;
                }
                let step = DataStep::ContentRelease { content, namespace, generation };
                match self.propose(world, world.group_of(content.slot()), step) {
                    Some(StepOutcome::Released { dead: None }) => Phase::Done(release),
                    Some(StepOutcome::Released { dead: Some(dead) }) => {
                        let chunks: Vec<_> = dead.list.entries.iter().map(|entry| entry.id).collect();
                        Phase::Unpin(release, dead, world.by_group(&chunks))
                    }
                    None => return Progress::Ended,
                    other => panic!("{other:?}"),
                }
            }
            Phase::Unpin(release, dead, mut groups) => match groups.pop() {
                Some((group, chunks)) => {
                    let holder = dead.holder;
                    match self.propose(world, group, DataStep::ChunksUnpin { holder, chunks }) {
                        Some(_) => Phase::Unpin(release, dead, groups),
                        None => return Progress::Ended,
                    }
                }
                None => {
                    let DeadContent { content, holder, .. } = dead;
                    let step = DataStep::DeadContentForget { content, holder };
                    match self.propose(world, world.group_of(content.slot()), step) {
                        Some(_) => Phase::Done(release),
                        None => return Progress::Ended,
                    }
                }
            },
            Phase::Done(Release { content, generation }) => {
                let step = DataStep::ReleaseDone { namespace, content, generation };
                self.propose(world, home, step);
                return Progress::Ended;
            }
        };
        self.phase = phase;
        Progress::Going
    }
}
